//! Classic mistakes, planted on purpose so that the judges can be judged. Empty outside the simulator.

/// One planted mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// Acknowledge a batch when it is written, before it is synced.
    AckBeforeSync,
    /// Forget what producers sent when the node restarts.
    ForgetDedupOnRestart,
    /// Take a publish whose sequence skips ahead.
    AcceptGaps,
    /// Start redelivery at once after a restart, without waiting for re-claims.
    SkipReclaimWindow,
    /// Confirm an acknowledgement whose lease is gone.
    AckWithoutLease,
    /// Confirm settlements before they are committed.
    SettleBeforeCommit,
    /// Treat a bad record below the watermark as a torn tail and cut it.
    TruncateCorruption,
    /// Go on after a failed sync as if it had worked.
    IgnoreSyncError,
    /// Deliver past the logged horizon.
    SkipHorizon,
    /// Two messages of one key in flight at once.
    IgnoreKeyLocks,
    /// Drop a message when the first of several groups has settled it.
    DeleteAtFirstSettle,
    /// Serve payload bytes without checking them against their checksum.
    SkipReadCheck,
}

/// Every bug there is, in order.
pub const ALL: &[Bug] = &[
    Bug::AckBeforeSync,
    Bug::ForgetDedupOnRestart,
    Bug::AcceptGaps,
    Bug::SkipReclaimWindow,
    Bug::AckWithoutLease,
    Bug::SettleBeforeCommit,
    Bug::TruncateCorruption,
    Bug::IgnoreSyncError,
    Bug::SkipHorizon,
    Bug::IgnoreKeyLocks,
    Bug::DeleteAtFirstSettle,
    Bug::SkipReadCheck,
];

/// The planted bugs of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bugs(u32);

impl Bugs {
    /// None, as in production.
    pub const NONE: Self = Self(0);

    /// Only `bug`.
    pub const fn only(bug: Bug) -> Self {
        Self(1 << bug as u32)
    }

    /// Whether `bug` is planted.
    pub const fn has(self, bug: Bug) -> bool {
        self.0 & (1 << bug as u32) != 0
    }
}
