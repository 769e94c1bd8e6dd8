//! Everything that can go wrong, by name: how often it is drawn, and what reports call it.

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A node's process dies at once, or during its next write.
    Crash,
    /// A node is asked to stop, and started again.
    GracefulRestart,
    /// One client's connection breaks.
    Cut,
    /// Every client's connection breaks.
    CutAll,
    /// One direction of one client's connection takes seconds for a while.
    SlowLink,
    /// Syncs of one disk take long for a while.
    SlowDisk,
    /// One disk is full for a while.
    FullDisk,
    /// The next sync of one disk fails.
    SyncError,
    /// A node's wall clock is set.
    ClockJump,
    /// A bit of a log turns over while its node is down.
    BitFlip,
    /// Bits turn over in what a node reads back.
    ReadFlip,
    /// A consumer process dies.
    ConsumerCrash,
    /// A producer process dies.
    ProducerCrash,
    /// A consumer joins a group that did not exist before.
    NewGroup,
    /// Several nodes die at once, perhaps most of them.
    CrashSome,
    /// Every machine loses its power at once.
    PowerCut,
    /// A process is stopped for a while, and goes on as if nothing had happened.
    Pause,
    /// The same for a process that leads.
    PauseLeader,
    /// A process that leads dies.
    CrashLeader,
    /// One disk takes seconds for every sync for a while.
    DiskStall,
    /// A node loses its disk, and comes back with an empty one.
    Wipe,
    /// Two nodes cannot reach each other, and hear of it.
    LinkCut,
    /// One direction between two nodes delivers nothing for a while, and nobody is told.
    BlackHole,
    /// One direction between two nodes takes seconds for a while.
    LinkSlow,
    /// A link between two nodes breaks and comes back, again and again.
    LinkFlap,
    /// Fewer than half of the nodes are on their own.
    Partition,
    /// The same, and one of them leads.
    PartitionLeader,
    /// The operator has a node emptied, or lets an emptied one hold shards again.
    Drain,
    /// A node is lost for good, and the operator takes it out of the cluster.
    Remove,
    /// Each turn of a node takes long for a while: what it decided comes out late, and its next turn not before that.
    SlowNode,
}

impl Fault {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self::Crash,
        Self::GracefulRestart,
        Self::Cut,
        Self::CutAll,
        Self::SlowLink,
        Self::SlowDisk,
        Self::FullDisk,
        Self::SyncError,
        Self::ClockJump,
        Self::BitFlip,
        Self::ReadFlip,
        Self::ConsumerCrash,
        Self::ProducerCrash,
        Self::NewGroup,
        Self::CrashSome,
        Self::PowerCut,
        Self::Pause,
        Self::PauseLeader,
        Self::CrashLeader,
        Self::DiskStall,
        Self::Wipe,
        Self::LinkCut,
        Self::BlackHole,
        Self::LinkSlow,
        Self::LinkFlap,
        Self::Partition,
        Self::PartitionLeader,
        Self::Drain,
        Self::Remove,
        Self::SlowNode,
    ];

    /// Whether it takes more than one node.
    pub fn needs_many(self) -> bool {
        let alone = [Self::Pause, Self::DiskStall, Self::PowerCut, Self::SlowNode];
        self >= Self::CrashSome && !alone.contains(&self)
    }

    /// In how many runs of a thousand it is drawn.
    pub(super) fn share(self) -> u64 {
        match self {
            Self::SlowNode => 250,
            _ if self >= Self::CrashSome => 450,
            _ => 667,
        }
    }

    /// Mean pause between two of the kind, in seconds, where the kind is drawn at all.
    pub(super) fn pause_seconds(self) -> u64 {
        match self {
            Self::Crash => 7,
            Self::GracefulRestart => 17,
            Self::Cut => 3,
            Self::CutAll => 15,
            Self::SlowLink => 4,
            Self::SlowDisk => 9,
            Self::FullDisk => 8,
            Self::SyncError => 25,
            Self::ClockJump => 15,
            Self::BitFlip => 20,
            Self::ReadFlip => 25,
            Self::ConsumerCrash => 12,
            Self::ProducerCrash => 20,
            Self::NewGroup => 18,
            Self::CrashSome => 20,
            Self::PowerCut => 25,
            Self::Pause => 12,
            Self::PauseLeader => 15,
            Self::CrashLeader => 12,
            Self::DiskStall => 18,
            Self::Wipe => 14,
            Self::LinkCut => 5,
            Self::BlackHole => 8,
            Self::LinkSlow => 7,
            Self::LinkFlap => 15,
            Self::Partition => 14,
            Self::PartitionLeader => 16,
            Self::Drain => 15,
            Self::Remove => 25,
            Self::SlowNode => 20,
        }
    }

    /// In reports.
    pub fn text(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::GracefulRestart => "graceful restart",
            Self::Cut => "cut",
            Self::CutAll => "all cut",
            Self::SlowLink => "slow link",
            Self::SlowDisk => "slow disk",
            Self::FullDisk => "full disk",
            Self::SyncError => "sync error",
            Self::ClockJump => "clock jump",
            Self::BitFlip => "bit flip",
            Self::ReadFlip => "read flip",
            Self::ConsumerCrash => "consumer crash",
            Self::ProducerCrash => "producer crash",
            Self::NewGroup => "new group",
            Self::CrashSome => "several crashes",
            Self::PowerCut => "power cut",
            Self::Pause => "pause",
            Self::PauseLeader => "leader pause",
            Self::CrashLeader => "leader crash",
            Self::DiskStall => "disk stall",
            Self::Wipe => "wiped disk",
            Self::LinkCut => "node link cut",
            Self::BlackHole => "black hole",
            Self::LinkSlow => "slow node link",
            Self::LinkFlap => "flapping link",
            Self::Partition => "partition",
            Self::PartitionLeader => "leader partition",
            Self::Drain => "drain",
            Self::Remove => "removed node",
            Self::SlowNode => "slow node",
        }
    }
}
