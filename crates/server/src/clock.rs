//! The only place that reads time or entropy.

use std::time::{Instant as StdInstant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use swarmmq_engine::node::Now;
use swarmmq_protocol::time::{Instant, WallTime};

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
