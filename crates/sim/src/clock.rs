//! Virtual time: a monotonic clock that only the event queue moves, and wall clocks that faults push around.

use std::time::Duration;

use swarmmq_engine::node::Now;
use swarmmq_protocol::time::{Instant, WallTime};

/// One millisecond in the unit of virtual time, nanoseconds.
pub const MILLISECOND: u64 = 1_000_000;
/// One second.
pub const SECOND: u64 = 1000 * MILLISECOND;

/// Where all wall clocks begin, in milliseconds since 1970.
const BEGINNING_MS: u64 = 1_763_964_000_000;

/// One machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// How far the wall clock is off, in milliseconds.
    skew_ms: i64,
}

impl Clock {
    /// A clock that is off from the beginning.
    pub fn skewed(skew_ms: i64) -> Self {
        Self { skew_ms }
    }

    /// Both clocks at virtual time `at`.
    pub fn now(self, at: u64) -> Now {
        Now { monotonic: instant(at), wall: self.wall(at) }
    }

    /// The wall clock at virtual time `at`.
    pub fn wall(self, at: u64) -> WallTime {
        WallTime((BEGINNING_MS + at / MILLISECOND).saturating_add_signed(self.skew_ms))
    }

    /// Somebody sets the wall clock; the monotonic one does not notice.
    pub fn jump(&mut self, by_ms: i64) {
        self.skew_ms += by_ms;
    }
}

/// Virtual time as the machines under test see it.
pub fn instant(at: u64) -> Instant {
    Instant(at) + Duration::from_secs(1)
}

/// Back from what they see.
pub fn virtual_time(instant: Instant) -> u64 {
    instant.0.saturating_sub(SECOND)
}
