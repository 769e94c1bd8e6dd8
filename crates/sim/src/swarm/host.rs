//! The node's host: hands it inputs, carries out its effects, kills it and starts it again from its disk.

use bytes::Bytes;
use swarmmq_engine::{
    log::Verdict,
    node::{Config, ConnectionId, Effects, Input, Node, Now, RestoreError},
};
use swarmmq_protocol::{
    envelope,
    frame::{self, FrameKind, Publish},
    id::{ClusterId, NodeId},
    time::WallTime,
};
use swarmmq_seal::ClientKeyring;

use super::{Event, Swarm};
use crate::{
    clock::{Clock, MILLISECOND, SECOND, virtual_time},
    disk::{Disk, Flip, Landing},
    history::Boot,
    plan::Plan,
    rng::{Rng, Stream},
};

/// Free bytes below which the node refuses publishes.
const RESERVE_BYTES: u64 = 1 << 20;
/// A drain that takes longer is ended by force.
const DRAIN_TIME_MAX: u64 = 10 * SECOND;
/// Virtual time a rebuilt node may take to serve.
const REBUILD_TIME_MAX: u64 = 30 * SECOND;

/// Something that waits for the node's next turn.
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
}

/// Where the node runs.
pub(super) struct Host {
    pub(super) config: Config,
    pub(super) disk: Disk,
    pub(super) clock: Clock,
    /// Counts the lives of the process.
    pub(super) boot: u64,
    /// Syncs are slow until then.
    pub(super) slow_until: u64,
    /// The next sync fails.
    pub(super) fail_sync: bool,
    /// What is read back until then has bits turned over.
    pub(super) rotten_until: u64,
    /// The process dies soon after its next write.
    pub(super) kill_at_write: bool,
    /// A bit turns over before the next start.
    pub(super) flip_next: bool,
    /// Space for the log.
    pub(super) free_bytes: u64,
    /// The life before ended in an orderly way.
    graceful: bool,
    node: Option<Node>,
    inbox: Vec<Arrival>,
    turn_at: Option<u64>,
    flip: Option<Flip>,
    rng: Rng,
}

impl Host {
    pub(super) fn new(plan: &Plan, keyring: &ClientKeyring) -> Self {
        let config = Config {
            cluster: ClusterId(0x5157_4d51),
            node: NodeId(1),
            incarnation: 1,
            shard_count: plan.shards,
            access_token: keyring.access_token(),
            admission_key: keyring.admission_key(),
            segment_bytes: plan.segment_bytes,
            cache_bytes_max: plan.cache_bytes,
            boot: 1,
            founder: true,
            replicas: 3,
            roles: 7,
            addresses: swarmmq_engine::node::Addresses::default(),
            horizon_ahead: plan.horizon_ahead,
            reserve_bytes: RESERVE_BYTES,
            seed: plan.seed,
            version: "simulated".to_owned(),
            bugs: plan.bugs,
        };
        Self {
            config,
            disk: Disk::new(plan.segment_bytes),
            clock: Clock::default(),
            boot: 0,
            slow_until: 0,
            fail_sync: false,
            rotten_until: 0,
            kill_at_write: false,
            flip_next: false,
            free_bytes: u64::MAX,
            graceful: true,
            node: None,
            inbox: Vec::new(),
            turn_at: None,
            flip: None,
            rng: Rng::new(plan.seed, Stream::Disk),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.node.is_some()
    }

    /// A queue that is not empty, and what its groups still want, in words.
    pub(super) fn leftover(&self) -> String {
        let shards = self.node.iter().flat_map(|node| node.shards());
        for shard in shards {
            let left = shard.state().queues.values().find(|queue| !queue.messages.is_empty());
            let Some(queue) = left else { continue };
            let offset = *queue.messages.keys().next().expect("the queue is not empty");
            let groups: Vec<String> = queue
                .groups
                .iter()
                .filter(|(_, group)| group.wants(offset))
                .map(|(name, group)| {
                    let leased = shard.leased(&queue.address, name);
                    format!("{name} wants it as attempt {}, leases {leased}", group.attempt(offset).0)
                })
                .collect();
            return format!(
                "first message {offset} of {} in shard {}: {}",
                queue.address,
                shard.id().0,
                groups.join(", ")
            );
        }
        "no queue has any".to_owned()
    }

    /// Messages in all queues, or why it does not serve.
    pub(super) fn depth(&self) -> Result<u64, String> {
        let Some(node) = &self.node else { return Err("it does not run".to_owned()) };
        if let Some(shard) = node.shards().iter().find(|shard| !shard.is_serving()) {
            return Err(format!("shard {}: {}", shard.id().0, shard.stopped().unwrap_or("no leader")));
        }
        Ok(node
            .shards()
            .iter()
            .flat_map(|shard| shard.state().queues.values())
            .map(|queue| queue.messages.len() as u64)
            .sum())
    }
}

impl Swarm {
    pub(super) fn arrive(&mut self, arrival: Arrival) {
        if self.host.node.is_some() {
            self.host.inbox.push(arrival);
            let pause = self.scheduling.between(5_000, 100_000);
            self.turn_by(self.at + pause);
        }
    }

    fn turn_by(&mut self, at: u64) {
        if self.host.turn_at.is_none_or(|planned| planned > at) {
            self.host.turn_at = Some(at);
            self.push(at, Event::Turn { boot: self.host.boot });
        }
    }

    /// The node takes what came in, then says what is to be done.
    pub(super) fn turn(&mut self, boot: u64) {
        if boot != self.host.boot || self.host.turn_at != Some(self.at) {
            return;
        }
        self.host.turn_at = None;
        let Some(mut node) = self.host.node.take() else { return };
        let now = self.host.clock.now(self.at);
        let arrivals = std::mem::take(&mut self.host.inbox);
        self.note("turn", boot, arrivals.len() as u64, now.wall.0);
        if arrivals.is_empty() {
            node.handle(now, Input::Woken);
        }
        for arrival in arrivals {
            self.hand_in(&mut node, now, arrival);
        }
        let mut effects = Effects::default();
        node.flush(now, &mut effects);
        let wake = node.next_wake().map(virtual_time);
        self.host.node = Some(node);
        let drained = effects.drained;
        self.carry_out(effects);
        if let Some(wake) = wake {
            self.turn_by(wake.max(self.at + 10_000));
        }
        if drained {
            self.note("drained", boot, 0, 0);
            self.judge_replay("after a drain");
            self.stop(true);
            let pause = self.chaos.between(5, 500) * MILLISECOND;
            self.after(pause, Event::Start);
        }
    }

    fn hand_in(&mut self, node: &mut Node, now: Now, arrival: Arrival) {
        match arrival {
            Arrival::Input(input) => node.handle(now, input),
            Arrival::Connected { connection, nonce } => {
                node.handle(now, Input::Connected { connection: ConnectionId(connection), nonce });
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

    /// What travels under a nonce is noted for the judge.
    fn look_at_nonces(&mut self, body: &Bytes) {
        let Ok(publish) = frame::decode::<Publish>(body.clone()) else { return };
        let mut rest: &[u8] = &publish.messages;
        while let Ok((sealed, after)) = envelope::split_sealed(rest) {
            let header = sealed.header();
            let nonce = (header.salt().0, header.shard().0, header.sequence().0);
            let hash = swarmmq_engine::log::crc32c(sealed.bytes());
            let known = *self.history.nonces.entry(nonce).or_insert(hash);
            if known != hash {
                self.history.violation(
                    "nonces",
                    format!("two ciphertexts under the nonce of {}", header.message_id()),
                );
            }
            rest = after;
        }
    }

    fn carry_out(&mut self, effects: Effects) {
        let boot = self.host.boot;
        if let Some(append) = effects.append {
            for write in &append.writes {
                self.trace.bytes(self.at, "write", u64::from(write.segment), &write.bytes);
            }
            self.host.disk.write(append);
            let slow = self.at < self.host.slow_until;
            let (low, high) = if slow { (5, 300) } else { (0, 2) };
            let latency = self.scheduling.between(low * MILLISECOND + MILLISECOND / 10, high * MILLISECOND);
            self.after(latency, Event::Synced { boot });
            if std::mem::take(&mut self.host.kill_at_write) {
                let until = self.chaos.between(1, 2 * latency + 2);
                self.after(until, Event::Kill { boot });
            }
        }
        for read in effects.reads {
            let mut result = self.host.disk.read(read.position, read.length);
            if self.at < self.host.rotten_until
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
                self.after(pause, Event::Kill { boot });
            }
            let latency = self.scheduling.between(MILLISECOND / 20, MILLISECOND);
            self.after(latency, Event::ReadBack { boot, ticket: read.ticket, result });
        }
        for segment in effects.release {
            self.note("release", u64::from(segment), 0, 0);
            self.host.disk.release(segment);
        }
        for (connection, bytes) in effects.sends {
            self.send_to_client(connection.0, bytes);
        }
        for connection in effects.closes {
            self.node_leaves(connection.0);
        }
    }

    pub(super) fn synced(&mut self, boot: u64) {
        if boot != self.host.boot {
            return;
        }
        if std::mem::take(&mut self.host.fail_sync) {
            self.note("sync fails", 0, 0, 0);
            self.host.disk.fail(&mut self.host.rng);
            self.arrive(Arrival::Input(Input::DiskFailed { what: "simulated".to_owned() }));
            // Whoever operates the node sees that it stopped, and restarts it.
            let pause = self.chaos.between(SECOND / 10, 2 * SECOND);
            self.after(pause, Event::Kill { boot });
            return;
        }
        if let Some(batch) = self.host.disk.sync() {
            self.note("synced", batch, 0, 0);
            self.arrive(Arrival::Input(Input::Synced { batch }));
        }
    }

    pub(super) fn read_back(&mut self, boot: u64, ticket: u64, result: Result<Bytes, String>) {
        if boot == self.host.boot {
            self.arrive(Arrival::Input(Input::Read { ticket, result }));
        }
    }

    /// The disk is full, or has space again.
    pub(super) fn space(&mut self, free: bool) {
        self.host.free_bytes = if free { u64::MAX } else { RESERVE_BYTES / 2 };
        self.arrive(Arrival::Input(Input::DiskSpace { free_bytes: self.host.free_bytes }));
    }

    /// Asks the node to stop; ends it by force if that takes too long.
    pub(super) fn drain(&mut self) {
        if self.host.is_up() {
            self.arrive(Arrival::Input(Input::Drain));
            self.after(DRAIN_TIME_MAX, Event::Kill { boot: self.host.boot });
        }
    }

    /// The process dies at once, and is started again after a pause.
    pub(super) fn kill(&mut self) {
        if !self.host.is_up() {
            return;
        }
        self.note("crash", self.host.boot, u64::from(self.host.disk.is_writing()), 0);
        let landing = if self.plan.torn_writes { Landing::Torn } else { Landing::Whole };
        self.host.disk.crash(landing, &mut self.host.rng);
        self.stop(false);
        let pause = match self.chaos.below(10) {
            0 => self.chaos.between(1000, 6000),
            1..4 => self.chaos.between(100, 1500),
            _ => self.chaos.between(1, 100),
        };
        self.after(pause * MILLISECOND, Event::Start);
    }

    fn stop(&mut self, graceful: bool) {
        self.host.node = None;
        self.host.inbox.clear();
        self.host.turn_at = None;
        self.host.graceful = graceful;
        self.host.kill_at_write = false;
        self.host.fail_sync = false;
        let boot = self.host.boot;
        let open: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, state)| state.boot == boot)
            .map(|(number, _)| *number)
            .collect();
        open.into_iter().for_each(|connection| self.node_leaves(connection));
    }

    /// Starts the node from what its disk holds.
    pub(super) fn start(&mut self) {
        if self.host.is_up() {
            return;
        }
        if std::mem::take(&mut self.host.flip_next) {
            self.host.flip = self.host.disk.flip(&mut self.host.rng);
        }
        let now = self.host.clock.now(self.at);
        let flip = self.host.flip.take();
        match self.host.disk.restore(&self.host.config, now) {
            Ok((node, verdict)) => {
                self.torn += u64::from(matches!(verdict, Verdict::Torn { .. }));
                self.host.boot += 1;
                self.host.node = Some(node);
                self.note("start", self.host.boot, self.host.disk.segments() as u64, 0);
                self.history.boots.push(Boot { at: self.at, graceful: self.host.graceful });
                self.forget_connections();
                let free_bytes = self.host.free_bytes;
                self.arrive(Arrival::Input(Input::DiskSpace { free_bytes }));
                self.turn_by(self.at);
            }
            Err(RestoreError::Corrupt { .. }) if flip.is_some() => {
                self.note("log refused", 0, 0, 0);
                self.refused_logs += 1;
                // Somebody brings the copy back that was made before.
                flip.into_iter().for_each(|flip| self.host.disk.turn(flip));
                self.after(100 * MILLISECOND, Event::Start);
            }
            Err(error) => {
                self.history.violation("recovery", format!("the node does not start: {error}"));
                self.phase = super::Phase::Over;
            }
        }
    }

    /// Replay = live: a node rebuilt from the disk has the same state as the one that runs.
    pub(super) fn judge_replay(&mut self, when: &str) {
        let Some(node) = &self.host.node else { return };
        if node.shards().iter().any(|shard| shard.stopped().is_some()) {
            // After a failed write the disk may hold what the node never learned.
            return;
        }
        let live = digests(node);
        let mut disk = self.host.disk.clone();
        disk.sync();
        let mut at = self.at;
        let mut node = match disk.restore(&self.host.config, self.host.clock.now(at)) {
            Ok((node, _)) => node,
            Err(error) => {
                self.history.violation("replay", format!("{when}, the log cannot be read: {error}"));
                return;
            }
        };
        while !node.report().ready && at < self.at + REBUILD_TIME_MAX {
            let now = self.host.clock.now(at);
            node.handle(now, Input::Woken);
            let mut effects = Effects::default();
            node.flush(now, &mut effects);
            if let Some(append) = effects.append {
                disk.write(append);
                let batch = disk.sync().expect("just written");
                node.handle(now, Input::Synced { batch });
            } else {
                at = node
                    .next_wake()
                    .map_or(at + MILLISECOND, |wake| virtual_time(wake).max(at + MILLISECOND));
            }
        }
        self.replays += 1;
        let rebuilt = digests(&node);
        let different = live.iter().zip(&rebuilt).filter(|(a, b)| a != b).count();
        if different > 0 || live.len() != rebuilt.len() {
            self.history.violation(
                "replay",
                format!("{when}, {different} rebuilt shards differ from the living ones"),
            );
        }
    }
}

/// One digest per shard. A restart adds the entry that opens its reign, and looks at the clock; everything else must be
/// equal.
fn digests(node: &Node) -> Vec<[u8; 32]> {
    node.shards()
        .iter()
        .map(|shard| {
            let mut state = shard.state().clone();
            state.applied = 0;
            state.time = WallTime(0);
            state.digest()
        })
        .collect()
}
