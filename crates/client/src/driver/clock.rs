//! Time for the driver: the runtime's clock, and the same instants as the sessions count them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use swarmmq_protocol::time::{Instant, WallTime};

/// The sessions' clock begins here, so that an instant before the start can still be told.
const START: Instant = Instant::from_millis(1000);
/// What stands for "never": a duration that no clock can hold ends here.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// `duration` from now; one that is too long for the clock means thirty years.
pub(crate) fn after(duration: Duration) -> tokio::time::Instant {
    let now = tokio::time::Instant::now();
    now.checked_add(duration.min(FAR)).unwrap_or(now)
}

/// The wall clock, for stamps and people.
pub(super) fn wall() -> WallTime {
    WallTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
}

/// One clock for all rooms of a driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: tokio::time::Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { started: tokio::time::Instant::now() }
    }

    /// Now, as the sessions count.
    pub(crate) fn now(self) -> Instant {
        START + self.started.elapsed()
    }

    /// An instant of the runtime, as the sessions count.
    pub(super) fn of(self, at: tokio::time::Instant) -> Instant {
        START + at.saturating_duration_since(self.started)
    }

    /// An instant of the sessions, as the runtime counts.
    pub(crate) fn at(self, instant: Instant) -> tokio::time::Instant {
        self.started + instant.since(START).min(FAR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_tell_the_same_time() {
        let clock = Clock::start();
        let at = clock.started + Duration::from_millis(1500);
        assert_eq!(clock.of(at), Instant::from_millis(2500));
        assert_eq!(clock.at(Instant::from_millis(2500)), at);
        assert_eq!(clock.at(Instant(0)), clock.started, "before the start is at the start");
    }

    #[test]
    fn a_deadline_without_end_is_far_away_and_does_not_overflow() {
        let far = after(Duration::MAX);
        assert!(far > tokio::time::Instant::now() + Duration::from_secs(365 * 24 * 3600));
        let clock = Clock::start();
        assert!(clock.at(Instant(u64::MAX)) > clock.started);
    }
}
