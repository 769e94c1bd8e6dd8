//! What a seed means: which addresses, which clients, which faults and when. Drawn once, before anything runs.

use std::time::Duration;

use swarmmq_engine::node::bug::Bugs;
use swarmmq_protocol::{
    admin::{Order, Settings},
    id::{Address, GroupName},
};

use crate::{
    clock::{MILLISECOND, SECOND},
    rng::{Rng, Stream},
};

/// Least length of the chaos, in virtual time.
pub const CHAOS_TIME_MIN: u64 = 60 * SECOND;
/// Least number of messages sent in it.
pub const MESSAGES_MIN: u64 = 1000;
/// Chaos ends here whatever was sent.
pub const CHAOS_TIME_MAX: u64 = 300 * SECOND;
/// Time after healing in which everything must have been delivered and settled.
pub const DRAIN_TIME_MAX: u64 = 400 * SECOND;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The node's process dies at once.
    Crash,
    /// The node is asked to stop, and started again.
    GracefulRestart,
    /// One connection breaks.
    Cut,
    /// Every connection breaks.
    CutAll,
    /// One direction of one connection takes seconds for a while.
    SlowLink,
    /// Syncs take long for a while.
    SlowDisk,
    /// The disk is full for a while.
    FullDisk,
    /// The next sync fails.
    SyncError,
    /// The node's wall clock is set.
    ClockJump,
    /// A bit of the log turns over while the node is down.
    BitFlip,
    /// Bits turn over in what is read back.
    ReadFlip,
    /// A consumer process dies.
    ConsumerCrash,
    /// A producer process dies.
    ProducerCrash,
    /// A consumer joins a group that did not exist before.
    NewGroup,
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
    ];

    /// Mean pause between two of the kind, in seconds, where the kind is drawn at all.
    fn pause_seconds(self) -> u64 {
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
        }
    }
}

/// One address of the run.
#[derive(Clone, Debug)]
pub struct PlannedAddress {
    /// Its name.
    pub address: Address,
    /// Its order.
    pub order: Order,
    /// Its settings.
    pub settings: Settings,
}

/// One consumer process.
#[derive(Clone, Debug)]
pub struct PlannedConsumer {
    /// Its group, of every address.
    pub group: GroupName,
    /// Whether it keeps extending leases.
    pub extend: bool,
    /// Messages it holds at a time.
    pub credit: u32,
    /// How long it handles a message at most, in the usual case.
    pub handling: u64,
    /// Whether it reads dead letters too.
    pub dead_letters: bool,
}

/// Everything a run needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of which all is drawn.
    pub seed: u64,
    /// Planted.
    pub bugs: Bugs,
    /// Data shards.
    pub shards: u32,
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// Payload bytes in memory.
    pub cache_bytes: usize,
    /// How far ahead of deliveries the horizon is logged.
    pub horizon_ahead: u64,
    /// Addresses.
    pub addresses: Vec<PlannedAddress>,
    /// Producer processes.
    pub producers: usize,
    /// Consumer processes.
    pub consumers: Vec<PlannedConsumer>,
    /// Whether writes are torn at crashes.
    pub torn_writes: bool,
    /// Faults in order of time.
    pub faults: Vec<(u64, Fault)>,
    /// Times without sends: from, to.
    pub quiet: Vec<(u64, u64)>,
}

impl Plan {
    /// Draws the plan of `seed`.
    pub fn new(seed: u64, bugs: Bugs) -> Self {
        let mut faults = Rng::new(seed, Stream::Faults);
        let mut rng = Rng::new(seed, Stream::Workload);
        let addresses =
            [("bank.transfers", Order::Total), ("shop.orders", Order::Key), ("app.logs", Order::None)].map(
                |(name, order)| PlannedAddress {
                    address: Address::parse(name).expect("a good name"),
                    order,
                    settings: Settings {
                        lease: Some(Duration::from_millis(rng.between(2500, 8000))),
                        attempts_max: Some(rng.between(3, 8) as u32),
                        ..Settings::default()
                    },
                },
            );
        let consumers = (0..4u64)
            .map(|n| PlannedConsumer {
                group: GroupName::parse(if n % 2 == 0 { "alpha" } else { "beta" }).expect("a good name"),
                extend: rng.chance(700),
                credit: rng.between(5, 60) as u32,
                handling: rng.between(2, 60) * MILLISECOND,
                dead_letters: n == 0,
            })
            .collect();
        Self {
            seed,
            bugs,
            shards: [4, 8, 16, 16][rng.below(4) as usize],
            segment_bytes: [128 << 10, 256 << 10, 1 << 20][rng.below(3) as usize],
            cache_bytes: [8 << 10, 64 << 10, 1 << 20][rng.below(3) as usize],
            horizon_ahead: [4, 64, 1024][rng.below(3) as usize],
            addresses: addresses.to_vec(),
            producers: 4,
            consumers,
            torn_writes: faults.chance(800),
            faults: draw_faults(&mut faults),
            quiet: draw_quiet(&mut rng),
        }
    }

    /// Whether nobody sends at `at`, counted from the beginning of the chaos.
    pub fn is_quiet(&self, at: u64) -> bool {
        self.quiet.iter().any(|(from, to)| (*from..*to).contains(&at))
    }
}

/// Each kind is part of two runs of three. Bit flips and sync errors come with restarts of their own.
fn draw_faults(rng: &mut Rng) -> Vec<(u64, Fault)> {
    let mut faults = Vec::new();
    for fault in Fault::ALL {
        let drawn = rng.chance(667);
        let pause = 2 * fault.pause_seconds() * SECOND;
        let mut at = rng.below(pause);
        while drawn && at < CHAOS_TIME_MAX {
            faults.push((at, *fault));
            at += rng.between(pause / 20, pause);
        }
    }
    faults.sort_unstable();
    faults
}

/// A quarter of the time nobody sends.
fn draw_quiet(rng: &mut Rng) -> Vec<(u64, u64)> {
    let mut quiet = Vec::new();
    let mut at = rng.between(4 * SECOND, 16 * SECOND);
    while at < CHAOS_TIME_MAX {
        let length = rng.between(SECOND, 6 * SECOND);
        quiet.push((at, at + length));
        at += length + rng.between(5 * SECOND, 16 * SECOND);
    }
    quiet
}
