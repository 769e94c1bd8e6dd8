//! What a seed means: which nodes, which addresses, which clients, which faults and when. Drawn once, before anything
//! runs.

mod fault;

use std::time::Duration;

use swarmmq_engine::node::bug::Bugs;
use swarmmq_protocol::{
    admin::{Order, Settings},
    id::{Address, GroupName},
};

pub use self::fault::Fault;
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

/// How many machines a run has: one is drawn.
const HOSTS: &[usize] = &[1, 3, 5, 5, 5];

/// Role bit: takes client connections.
pub const ROLE_INGRESS: u8 = 1;
/// Role bit: relays packets.
pub const ROLE_ROUTER: u8 = 2;
/// Role bit: holds replicas.
pub const ROLE_STORE: u8 = 4;
/// All of them.
const ROLES_ALL: u8 = ROLE_INGRESS | ROLE_ROUTER | ROLE_STORE;

/// One machine with a node. The first one makes the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedHost {
    /// What its node does, as role bits.
    pub roles: u8,
    /// When it comes, counted from the beginning of the chaos; 0: it is there from the start.
    pub comes_at: u64,
    /// How far its wall clock is off from the beginning, in milliseconds.
    pub skew_ms: i64,
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
    /// Machines with a node each.
    pub hosts: Vec<PlannedHost>,
    /// Copies of each shard where there are nodes enough.
    pub replicas: u8,
    /// Whether faults wait until every shard has its copies.
    pub settles_first: bool,
    /// Whether a node dies for good after everything else is mended.
    pub loses_one: bool,
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
    /// Of these, those that talk to leaders directly.
    pub direct: usize,
    /// Consumer processes.
    pub consumers: Vec<PlannedConsumer>,
    /// Whether writes are torn at crashes.
    pub torn_writes: bool,
    /// Datagrams between nodes that get lost, in 1,000.
    pub datagram_loss_permille: u64,
    /// Faults in order of time.
    pub faults: Vec<(u64, Fault)>,
    /// How long a turn of a slow node takes, and for how long. Then nothing else goes wrong, and it is judged who leads.
    pub slowness: Option<(u64, u64)>,
    /// Times without sends: from, to.
    pub quiet: Vec<(u64, u64)>,
}

impl Plan {
    /// Draws the plan of `seed`.
    pub fn new(seed: u64, bugs: Bugs) -> Self {
        let mut faults = Rng::new(seed, Stream::Faults);
        let mut rng = Rng::new(seed, Stream::Workload);
        let hosts = draw_hosts(&mut faults);
        let many = hosts.len() > 1;
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
            replicas: 3,
            settles_first: faults.chance(700),
            loses_one: many && faults.chance(250),
            shards: [4, 8, 16, 16][rng.below(4) as usize],
            segment_bytes: [128 << 10, 256 << 10, 1 << 20][rng.below(3) as usize],
            cache_bytes: [8 << 10, 64 << 10, 1 << 20][rng.below(3) as usize],
            horizon_ahead: [4, 64, 1024][rng.below(3) as usize],
            addresses: addresses.to_vec(),
            producers: 4,
            direct: 2,
            consumers,
            torn_writes: faults.chance(800),
            datagram_loss_permille: [0, 1, 10, 100, 300][rng.below(5) as usize],
            faults: draw_faults(&mut faults, many),
            slowness: None,
            hosts,
            quiet: draw_quiet(&mut rng),
        }
    }

    /// The standard mix: what the speed of the simulator is measured with (safety rule 28).
    pub fn standard(seed: u64, bugs: Bugs) -> Self {
        let plan = Self::new(seed, bugs);
        Self { hosts: vec![host(ROLES_ALL); 5], shards: 16, settles_first: true, loses_one: false, ..plan }
            .refaulted()
    }

    /// Five machines, four shards, and nothing that goes wrong, with producers and consumers: what instructions are counted
    /// with.
    pub fn busy(seed: u64) -> Self {
        let Self { addresses, consumers, .. } = Self::new(seed, Bugs::NONE);
        let plan = Self::calm(seed);
        Self { addresses, consumers, producers: 3, direct: 2, datagram_loss_permille: 0, ..plan }
    }

    /// Five machines, four shards, one address, and nothing that goes wrong: for masks.
    pub fn calm(seed: u64) -> Self {
        let plan = Self::new(seed, Bugs::NONE).with_hosts(5);
        Self {
            shards: 4,
            settles_first: true,
            loses_one: false,
            addresses: plan.addresses.into_iter().filter(|planned| planned.order == Order::None).collect(),
            producers: 0,
            consumers: Vec::new(),
            datagram_loss_permille: 1,
            faults: Vec::new(),
            quiet: Vec::new(),
            ..plan
        }
    }

    /// The same with only the first `count` machines, there from the start.
    pub fn with_hosts(mut self, count: usize) -> Self {
        self.hosts = vec![host(ROLES_ALL); count];
        self.loses_one &= count > 1;
        self
    }

    /// Faults drawn anew for the machines that there are now.
    fn refaulted(mut self) -> Self {
        let mut rng = Rng::new(self.seed ^ 0x5eed, Stream::Faults);
        self.faults = draw_faults(&mut rng, self.hosts.len() > 1);
        self
    }

    /// Whether nobody sends at `at`, counted from the beginning of the chaos.
    pub fn is_quiet(&self, at: u64) -> bool {
        self.quiet.iter().any(|(from, to)| (*from..*to).contains(&at))
    }
}

fn host(roles: u8) -> PlannedHost {
    PlannedHost { roles, comes_at: 0, skew_ms: 0 }
}

/// Mostly five, sometimes three, sometimes one. Of five, two may only take connections; another one may come later.
fn draw_hosts(rng: &mut Rng) -> Vec<PlannedHost> {
    let count = HOSTS[rng.below(HOSTS.len() as u64) as usize];
    let mut hosts = vec![host(ROLES_ALL); count];
    if count == 5 && rng.chance(150) {
        hosts[..3].fill(host(ROLE_ROUTER | ROLE_STORE));
        hosts[3..].fill(host(ROLE_INGRESS));
    }
    if count > 1 && rng.chance(250) {
        let comes_at = rng.between(SECOND, 40 * SECOND);
        hosts.push(PlannedHost { comes_at, ..host(ROLES_ALL) });
    }
    if count > 1 && rng.chance(500) {
        hosts.iter_mut().for_each(|host| host.skew_ms = rng.below(120_000) as i64 - 60_000);
    }
    hosts
}

/// Each kind is part of about half of the runs. Bit flips and sync errors come with restarts of their own.
fn draw_faults(rng: &mut Rng, many: bool) -> Vec<(u64, Fault)> {
    let mut faults = Vec::new();
    for fault in Fault::ALL {
        let drawn = rng.chance(fault.share()) && (many || !fault.needs_many());
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
