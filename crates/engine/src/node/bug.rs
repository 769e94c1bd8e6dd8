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
    /// Forget, when a replica restarts, whom it voted for.
    ForgetVoteOnRestart,
    /// Tell a leader that entries are stored when they are only written.
    PromiseBeforeSync,
    /// Take over a state without the payloads that belong to it.
    InstallWithoutPayloads,
    /// Leave out of a state that travels what producers sent.
    SendStateWithoutProducers,
    /// Let a replica vote before it has caught up.
    PromoteEmptyReplica,
    /// Read entries back that a state taken over had made void.
    KeepEntriesUnderInstalled,
    /// Serve as a new leader before an entry of the own reign was applied.
    ServeBeforeOwnTerm,
    /// Report as failed what another copy may have done.
    FailWhenUnsure,
    /// Deliver on in a reign that is over.
    KeepLeasesOverReigns,
    /// A producer takes another connection for a shard while it waits for answers on the one before.
    MoveUndrained,
    /// A producer forgets the copies that it sent over a direct connection that broke.
    ForgetLostCopies,
    /// Feed a consumer by ways that it has left, and take claims that come by them.
    HeedElders,
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
    Bug::ForgetVoteOnRestart,
    Bug::PromiseBeforeSync,
    Bug::InstallWithoutPayloads,
    Bug::SendStateWithoutProducers,
    Bug::PromoteEmptyReplica,
    Bug::KeepEntriesUnderInstalled,
    Bug::ServeBeforeOwnTerm,
    Bug::FailWhenUnsure,
    Bug::KeepLeasesOverReigns,
    Bug::MoveUndrained,
    Bug::ForgetLostCopies,
    Bug::HeedElders,
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
