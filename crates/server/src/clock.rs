//! The only place that reads time or entropy.

use std::time::{Duration, Instant as StdInstant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use swarmmq_engine::node::Now;
use swarmmq_protocol::time::{Instant, WallTime};

/// A process that was killed a moment ago still holds its lock and its ports; its successor waits so long for them.
pub(crate) const SUCCESSION_TIME_MAX: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// A process's clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: StdInstant,
}

impl Clock {
    /// Begins at a nonzero instant, so that "long ago" can be said.
    pub(crate) fn start() -> Self {
        Self { started: StdInstant::now() }
    }

    /// Both clocks.
    pub(crate) fn now(&self) -> Now {
        let monotonic = self.started.elapsed().as_nanos() as u64 + 1_000_000_000;
        Now { monotonic: Instant(monotonic), wall: wall() }
    }
}

/// Measures how long something takes or lies back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(StdInstant);

impl Stopwatch {
    /// Zero, from now on.
    pub(crate) fn start() -> Self {
        Self(StdInstant::now())
    }

    /// Time since the start.
    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Tries again until it works, the error is another one than `passes`, or `patience` is over. Blocks: for starts only.
pub(crate) fn patiently<T, E>(
    patience: Duration,
    passes: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let began = Stopwatch::start();
    loop {
        match attempt() {
            Err(error) if passes(&error) && began.elapsed() < patience => std::thread::sleep(RETRY_PAUSE),
            done => return done,
        }
    }
}

/// The wall clock.
pub(crate) fn wall() -> WallTime {
    // A clock before 1970 is a clock that was never set: stamps start at zero then.
    WallTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
}

/// Fresh random bytes.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_for_errors_that_pass_and_has_an_end() {
        let mut answers = [Err("held"), Err("held"), Ok(3)].into_iter();
        assert_eq!(
            patiently(SUCCESSION_TIME_MAX, |error| *error == "held", || answers.next().unwrap()),
            Ok(3)
        );
        let mut tries = 0;
        let mut attempt = |error| {
            tries += 1;
            Err::<(), _>(error)
        };
        assert!(patiently(SUCCESSION_TIME_MAX, |error| *error == "held", || attempt("broken")).is_err());
        assert!(patiently(Duration::ZERO, |error| *error == "held", || attempt("held")).is_err());
        assert_eq!(tries, 2);
    }
}
