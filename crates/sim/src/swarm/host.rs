//! A machine and the node on it: hands the node inputs, and carries out its effects.
//!
//! Absent here: how its process dies and comes back (`life`), what connects it with clients (`network`) and with other
//! nodes (`links`), and whether what it does is right (`watch`).

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use swarmmq_engine::node::{Addresses, Config, ConnectionId, Effects, Input, Node, Now};
use swarmmq_protocol::{
    frame::FrameKind,
    id::{ClusterId, NodeId, Term},
    mac::MacKey,
    node_key::NodeSecret,
    packet::Class,
    session::guard::Source,
};
use swarmmq_seal::ClientKeyring;

use super::{Event, Swarm, network::Slowness};
use crate::{
    clock::{Clock, MILLISECOND, SECOND, virtual_time},
    disk::{Disk, Flip},
    plan::{Plan, PlannedHost, ROLE_INGRESS},
    rng::{Rng, Stream},
};

/// Free bytes below which a node refuses publishes.
pub(super) const RESERVE_BYTES: u64 = 1 << 20;

/// Virtual time for which turns with late deliveries are remembered: longer than any lease.
const SLOW_TURN_KEPT: u64 = 60 * SECOND;

/// Something that waits for a node's next turn.
#[derive(Debug)]
pub(super) enum Arrival {
    Connected {
        connection: u64,
        nonce: [u8; 32],
    },
    /// Bytes lie in the connection's reader.
    Bytes {
        connection: u64,
    },
    Disconnected {
        connection: u64,
    },
    Input(Input),
    /// A packet, and when its origin sent it.
    Packet {
        since: u64,
        input: Input,
    },
}

/// What a turn decided, until it comes out.
#[derive(Debug)]
pub(super) struct Decided {
    effects: Effects,
    /// When the turn was.
    at: u64,
    /// When the oldest delivery in it was sent.
    since: u64,
    wake: Option<u64>,
}

/// Where a node runs.
pub(super) struct Host {
    pub(super) config: Config,
    pub(super) planned: PlannedHost,
    pub(super) disk: Disk,
    pub(super) clock: Clock,
    /// Counts the lives of the process.
    pub(super) boot: u64,
    /// It will never run again.
    pub(super) gone: bool,
    /// The operator wants it to hold no shards.
    pub(super) draining: bool,
    /// The process is stopped until then, without knowing.
    pub(super) paused_until: u64,
    /// How long its turns take.
    pub(super) pace: Slowness,
    /// Its latest turn takes until then; what it decided has not come out yet.
    pub(super) busy_until: Option<u64>,
    /// Syncs are slow until then.
    pub(super) slow_until: u64,
    /// Syncs take seconds until then.
    pub(super) stalled_until: u64,
    /// The next sync fails.
    pub(super) fail_sync: bool,
    /// What is read back until then has bits turned over.
    pub(super) rotten_until: u64,
    /// The process dies soon after its next write.
    pub(super) kill_at_write: bool,
    /// A bit turns over before the next start.
    pub(super) flip_next: bool,
    /// Which one did.
    pub(super) flip: Option<Flip>,
    /// Space for the log.
    pub(super) free_bytes: u64,
    /// Boxed: it is taken out for each turn and put back, and a node is large.
    pub(super) node: Option<Box<Node>>,
    /// Hosts that it wants links with.
    pub(super) wanted: BTreeSet<usize>,
    /// In which reign it serves which shard, as of its latest turn, how far it has applied, and who holds the shard then.
    pub(super) serving: Vec<(Option<Term>, u64, u64)>,
    pub(super) rng: Rng,
    pub(super) inbox: Vec<Arrival>,
    /// Turns in which deliveries came that had travelled for long, and when these were sent.
    pub(super) slow_turns: VecDeque<(u64, u64)>,
}

impl Host {
    pub(super) fn new(plan: &Plan, keyring: &ClientKeyring, index: usize) -> Self {
        let planned = plan.hosts[index];
        let config = Config {
            cluster: ClusterId(0x5157_4d51),
            node: node_id(index),
            incarnation: index as u64 + 1,
            boot: 0,
            founder: index == 0,
            replicas: plan.replicas,
            open_join: true,
            roles: planned.roles,
            addresses: Addresses {
                client: if planned.roles & ROLE_INGRESS != 0 {
                    format!("host{}", index + 1)
                } else {
                    String::new()
                },
                peer: format!("host{}", index + 1),
                ..Addresses::default()
            },
            shard_count: plan.shards,
            access_token: keyring.access_token().into(),
            admission_key: keyring.admission_key().into(),
            secret: NodeSecret::new([index as u8 + 1; 32]),
            cluster_secret: MacKey::new([7; 32]).into(),
            segment_bytes: plan.segment_bytes,
            cache_bytes_max: plan.cache_bytes,
            horizon_ahead: plan.horizon_ahead,
            reserve_bytes: RESERVE_BYTES,
            seed: plan.seed,
            version: "simulated".to_owned(),
            bugs: plan.bugs,
        };
        Self {
            config,
            planned,
            disk: Disk::new(plan.segment_bytes),
            clock: Clock::skewed(planned.skew_ms),
            boot: 0,
            gone: false,
            draining: false,
            paused_until: 0,
            pace: Slowness::default(),
            busy_until: None,
            slow_until: 0,
            stalled_until: 0,
            fail_sync: false,
            rotten_until: 0,
            kill_at_write: false,
            flip_next: false,
            flip: None,
            free_bytes: u64::MAX,
            node: None,
            wanted: BTreeSet::new(),
            serving: Vec::new(),
            rng: Rng::new(plan.seed ^ (index as u64) << 32, Stream::Disk),
            inbox: Vec::new(),
            slow_turns: VecDeque::new(),
        }
    }

    /// When its next turn can be. While what the latest one decided has not come out, just after that.
    fn free_at(&self) -> u64 {
        self.paused_until.max(self.busy_until.map_or(0, |until| until + 1))
    }

    pub(super) fn is_up(&self) -> bool {
        self.node.is_some()
    }

    /// Whether clients may connect to it.
    pub(super) fn is_ingress(&self) -> bool {
        self.planned.roles & ROLE_INGRESS != 0
    }
}

/// The name of the node on a host.
pub(super) fn node_id(host: usize) -> NodeId {
    NodeId(host as u16 + 1)
}

impl Swarm {
    pub(super) fn arrive(&mut self, host: usize, arrival: Arrival) {
        if self.hosts[host].node.is_some() {
            self.hosts[host].inbox.push(arrival);
            let pause = self.scheduling.between(5_000, 100_000);
            self.turn_by(host, self.at + pause);
        }
    }

    pub(super) fn turn_by(&mut self, host: usize, at: u64) {
        self.queue.plan_turn(host, at.max(self.hosts[host].free_at()));
    }

    /// A node takes what came in, then says what is to be done.
    pub(super) fn turn(&mut self, host: usize) {
        let state = &mut self.hosts[host];
        if state.free_at() > self.at {
            let until = state.free_at();
            self.turn_by(host, until);
            return;
        }
        let Some(mut node) = state.node.take() else { return };
        let now = state.clock.now(self.at);
        let mut arrivals = std::mem::take(&mut state.inbox);
        self.note("turn", host as u64, arrivals.len() as u64, now.wall.0);
        if arrivals.is_empty() {
            node.handle(now, Input::Woken);
        }
        // Deliveries that are only handed on were sent earlier.
        let mut since = self.at;
        for arrival in arrivals.drain(..) {
            if let Arrival::Packet { since: sent_at, input: Input::Packet { packet, .. } } = &arrival
                && packet.class == Class::Delivery
            {
                since = since.min(*sent_at);
            }
            self.hand_in(&mut node, now, arrival);
        }
        if since + MILLISECOND < self.at {
            let turns = &mut self.hosts[host].slow_turns;
            turns.push_back((self.at, since));
            turns.retain(|(at, _)| at + SLOW_TURN_KEPT > self.at);
        }
        let mut effects = Effects::default();
        node.flush(now, &mut effects);
        self.watch(host, &node, &effects.touched);
        let buries = self.buries(host, &node);
        let wake = node.next_wake().map(virtual_time);
        let state = &mut self.hosts[host];
        state.node = Some(node);
        // Nothing arrives during a turn: the inbox keeps its room.
        state.inbox = arrivals;
        if buries {
            self.look_out();
        }
        let state = &mut self.hosts[host];
        let decided = Decided { effects, at: self.at, since, wake };
        let takes = state.pace.at(self.at);
        if takes == 0 {
            self.let_out(host, decided);
            return;
        }
        let until = self.at + takes;
        state.busy_until = Some(until);
        let boot = state.boot;
        self.push(until, Event::TurnEnds { host, boot, decided: Box::new(decided) });
    }

    /// A turn that took long is over, unless its process ended before. One that is stopped says nothing.
    pub(super) fn turn_ends(&mut self, host: usize, boot: u64, decided: Box<Decided>) {
        let state = &mut self.hosts[host];
        if state.boot != boot || !state.is_up() {
            return;
        }
        if state.paused_until > self.at {
            let until = state.paused_until;
            state.busy_until = Some(until);
            self.push(until, Event::TurnEnds { host, boot, decided });
            return;
        }
        state.busy_until = None;
        self.let_out(host, *decided);
        if !self.hosts[host].inbox.is_empty() {
            self.turn_by(host, self.at);
        }
    }

    fn let_out(&mut self, host: usize, decided: Decided) {
        let (drained, wake) = (decided.effects.drained, decided.wake);
        self.carry_out(host, decided);
        if let Some(wake) = wake {
            self.turn_by(host, wake.max(self.at + 10_000));
        }
        if drained {
            self.drained(host);
        }
    }

    fn hand_in(&mut self, node: &mut Node, now: Now, arrival: Arrival) {
        match arrival {
            Arrival::Input(input) | Arrival::Packet { input, .. } => node.handle(now, input),
            Arrival::Connected { connection, nonce } => {
                // Wherever clients come from: nobody here fails to authenticate.
                let (connection, source) = (ConnectionId(connection), Source::default());
                node.handle(now, Input::Connected { connection, nonce, source });
            }
            Arrival::Disconnected { connection } => {
                node.handle(now, Input::Disconnected { connection: ConnectionId(connection) });
            }
            Arrival::Bytes { connection } => {
                let id = ConnectionId(connection);
                loop {
                    let Some(state) = self.connections.get_mut(&connection) else { return };
                    if state.broken_at_node {
                        return;
                    }
                    match state.reader.next_frame() {
                        Ok(None) => return,
                        Ok(Some((header, body))) => {
                            if header.kind == FrameKind::Publish {
                                self.look_at_nonces(&body);
                            }
                            node.handle(now, Input::Frame { connection: id, header, body });
                        }
                        Err(error) => {
                            state.broken_at_node = true;
                            node.handle(now, Input::Malformed { connection: id, error });
                        }
                    }
                    if node.is_authenticated(id)
                        && let Some(state) = self.connections.get_mut(&connection)
                    {
                        state.reader.set_authenticated();
                    }
                }
            }
        }
    }

    fn carry_out(&mut self, host: usize, decided: Decided) {
        let Decided { effects, at: decided_at, since, .. } = decided;
        let boot = self.hosts[host].boot;
        if let Some(append) = effects.append {
            for write in &append.writes {
                self.trace.bytes(self.at, "write", u64::from(write.segment), &write.bytes);
            }
            let latency = self.sync_time(host);
            self.after(latency, Event::Synced { host, boot });
            self.hosts[host].disk.write(append);
            if std::mem::take(&mut self.hosts[host].kill_at_write) {
                let until = self.chaos.between(1, 2 * latency + 2);
                self.after(until, Event::Kill { host, boot });
            }
        }
        for read in effects.reads {
            let mut result = self.hosts[host].disk.read(read.position, read.length);
            if self.at < self.hosts[host].rotten_until
                && let Ok(bytes) = &mut result
                && !bytes.is_empty()
            {
                let mut rotten = bytes.to_vec();
                // The message asked for comes first in what is read.
                let at = self.chaos.below(rotten.len().min(400) as u64) as usize;
                rotten[at] ^= 1 << self.chaos.below(8);
                *bytes = rotten.into();
                // Whoever operates the node sees that a shard stopped, and restarts it.
                let pause = self.chaos.between(SECOND / 10, SECOND);
                self.after(pause, Event::Kill { host, boot });
            }
            let latency = self.scheduling.between(MILLISECOND / 20, MILLISECOND);
            self.after(latency, Event::ReadBack { host, boot, ticket: read.ticket, result });
        }
        for segment in effects.release {
            self.note("release", host as u64, u64::from(segment), 0);
            self.hosts[host].disk.release(segment);
        }
        for (connection, bytes) in effects.sends {
            self.send_to_client(connection.0, bytes, (since, decided_at));
        }
        for (to, packet) in effects.packets {
            let since = if packet.hop > 0 { since } else { decided_at };
            self.send_packet(host, to, packet, since);
        }
        for (to, bytes) in effects.datagrams {
            self.send_datagram(host, to, bytes);
        }
        if let Some(peers) = effects.peers {
            self.want(host, &peers);
        }
        for connection in effects.closes {
            self.node_leaves(connection.0);
        }
    }

    /// How long the batch that is written now takes to be on stable storage.
    fn sync_time(&mut self, host: usize) -> u64 {
        let state = &self.hosts[host];
        let (low, high) = if self.at < state.stalled_until {
            (SECOND / 2, 5 * SECOND)
        } else if self.at < state.slow_until {
            (5 * MILLISECOND, 300 * MILLISECOND)
        } else {
            (0, 2 * MILLISECOND)
        };
        self.scheduling.between(low + MILLISECOND / 10, high)
    }

    pub(super) fn synced(&mut self, host: usize, boot: u64) {
        let state = &mut self.hosts[host];
        if boot != state.boot {
            return;
        }
        if std::mem::take(&mut state.fail_sync) {
            state.disk.fail(&mut state.rng);
            self.note("sync fails", host as u64, 0, 0);
            self.arrive(host, Arrival::Input(Input::DiskFailed { what: "simulated".to_owned() }));
            // Whoever operates the node sees that it stopped, and restarts it.
            let pause = self.chaos.between(SECOND / 10, 2 * SECOND);
            self.after(pause, Event::Kill { host, boot });
            return;
        }
        if let Some(batch) = state.disk.sync() {
            self.note("synced", host as u64, batch, 0);
            self.arrive(host, Arrival::Input(Input::Synced { batch }));
        }
    }

    pub(super) fn read_back(&mut self, host: usize, boot: u64, ticket: u64, result: Result<Bytes, String>) {
        if boot == self.hosts[host].boot {
            self.arrive(host, Arrival::Input(Input::Read { ticket, result }));
        }
    }

    /// A disk is full, or has space again.
    pub(super) fn space(&mut self, host: usize, free: bool) {
        let free_bytes = if free { u64::MAX } else { RESERVE_BYTES / 2 };
        self.hosts[host].free_bytes = free_bytes;
        self.arrive(host, Arrival::Input(Input::DiskSpace { free_bytes }));
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_engine::node::bug::Bugs;

    use super::*;
    use crate::swarm::Phase;

    const TURN: u64 = 100 * MILLISECOND;

    /// Two nodes, the turns of the first take long. Nothing else happens.
    fn slow() -> Swarm {
        let mut swarm = Swarm::new(Plan::new(12, Bugs::NONE).with_hosts(2), false);
        swarm.queue.clear();
        swarm.start(0);
        swarm.start(1);
        swarm.hosts[0].pace = Slowness { until: u64::MAX, by: TURN };
        swarm
    }

    /// Lets the next thing happen. Whether a turn of the first node began, and whether one ended.
    fn step(swarm: &mut Swarm) -> (bool, bool) {
        let before = swarm.hosts[0].busy_until;
        let (at, event) = swarm.queue.pop().expect("two nodes always have something to do");
        swarm.at = at;
        swarm.happen(event);
        let after = swarm.hosts[0].busy_until;
        (before.is_none() && after.is_some(), before.is_some() && after.is_none())
    }

    #[test]
    fn what_a_slow_node_decides_comes_out_when_its_turn_ends_and_the_next_one_begins_after_that() {
        let mut swarm = slow();
        let (mut began_at, mut turns, mut writes) = (0, 0, 0);
        while turns < 50 {
            let (wrote, waiting) = (swarm.hosts[0].disk.is_writing(), swarm.hosts[0].inbox.len());
            let (began, ended) = step(&mut swarm);
            if !wrote && swarm.hosts[0].disk.is_writing() {
                assert!(ended, "a write before the end of the turn");
                writes += 1;
            }
            assert!(began || swarm.hosts[0].inbox.len() >= waiting, "another turn within one");
            if began {
                began_at = swarm.at;
                turns += 1;
            }
            assert!(!ended || swarm.at == began_at + TURN);
        }
        assert!(writes > 0);
    }

    #[test]
    fn what_was_decided_in_a_turn_that_did_not_end_never_comes_out() {
        let mut swarm = slow();
        while !step(&mut swarm).0 {}
        let boot = swarm.hosts[0].boot;
        assert!(!swarm.hosts[0].disk.is_writing(), "its first turn");
        swarm.kill_for(0, SECOND);
        while swarm.hosts[0].boot == boot {
            step(&mut swarm);
            assert!(!swarm.hosts[0].disk.is_writing());
        }
    }

    #[test]
    fn a_slow_node_that_leads_is_objected_to() {
        let mut swarm = slow();
        swarm.hosts[0].pace = Slowness::default();
        while (0..=swarm.plan.shards as usize).any(|shard| swarm.leader_of(shard) != Some(0)) {
            step(&mut swarm);
        }
        let until = swarm.at + SECOND;
        swarm.judge_pace(0, until);
        assert_eq!(swarm.history.violations, [], "nobody is judged before chaos begins");
        swarm.phase = Phase::Chaos { since: swarm.at };
        swarm.judge_pace(0, until);
        assert!(swarm.history.violations.iter().all(|violation| violation.judge == "pace"));
        assert_eq!(swarm.history.violations.len(), swarm.plan.shards as usize + 1);
    }
}
