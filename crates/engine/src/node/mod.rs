//! One node: client connections on one side, shards and their log on the other.
//!
//! This file is the composer: it carries frames to the room that answers them, questions to shards, their answers back,
//! and gathers what all shards want written into one batch. Which room decides what:
//! `connection` who may talk, `publish` and `consume` the two hot paths where clients are, `ask` whom to ask, `lead` what
//! a leader answers, `peer` other nodes, `way` how they are reached, `route` by which path, `survey` what is told of that,
//! `operation` what needs several steps, `space` which segments can go.

mod access;
mod alphabet;
mod ask;
mod audit;
pub mod bug;
mod company;
mod connection;
mod consume;
mod join;
mod lead;
mod leaders;
mod letter;
mod look;
mod operation;
mod peer;
mod publish;
mod question;
mod quota;
mod report;
mod restore;
mod route;
mod space;
mod survey;
mod way;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use swarmmq_protocol::{
    error::Code,
    id::{Address, NodeId, Offset, ShardId, Term},
    packet::Packet,
    session::guard::Guard,
    time::Instant,
};

pub use self::{
    alphabet::{Addresses, Config, ConnectionId, Effects, Input, Neighbour, Now, ReadRequest},
    audit::{AuditRecord, Seen},
    report::{Metric, MetricKind, Report},
    restore::{Restore, RestoreError},
};
use self::{
    ask::{Asked, Asker},
    audit::Audit,
    bug::Bug,
    company::Company,
    connection::Connection,
    consume::Subscriber,
    lead::{Attendee, Attending},
    leaders::Audience,
    operation::{Operation, OperationId},
    peer::Peers,
    quota::Guests,
    report::Counters,
    route::{Busy, Relaying},
    space::{Cleaning, SNAPSHOT_INTERVAL_BYTES, Space},
    survey::Survey,
    way::Ways,
};
use crate::{
    log::{Position, Writer},
    shard::{Answer, Shard, Ticket, Work, credit::Credits, delivery::SubscriberId},
    swarm::Swarm,
};

/// Pause without writes after which the watermark is logged on its own.
const WATERMARK_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
/// Numbers that one process gives out: 2 to the power of this, more than any will.
const NUMBER_BITS: u32 = 40;
/// Processes of one node whose numbers differ.
const BOOTS_TOLD_APART: u64 = (1 << (64 - NUMBER_BITS)) - 1;
/// Rounds of shards answering each other within one flush; more than ever needed, so that a mistake cannot spin.
const ROUNDS_MAX: usize = 64;
/// Open questions of one connection that need more than one step, and looks that wait for the disk; each.
const QUESTIONS_MAX: usize = 256;
/// Messages copied out of an old segment in one batch.
const MOVES_MAX: usize = 64;

/// Who waits for a shard's answer.
#[derive(Debug)]
enum Waiting {
    /// Another node, or this one.
    Reply(Asker),
    /// Part of a list of settlements.
    Settle { settlement: u64, items: Vec<u16> },
}

/// Why bytes are being read.
#[derive(Clone, Debug)]
enum Reading {
    Shard { shard: usize, place: Position },
    Move { shard: usize, address: Address, offset: Offset, place: Position },
    Fetch { fetch: u64, item: usize },
}

/// What becomes true when a batch is on stable storage.
#[derive(Debug, Default)]
struct Promises {
    /// Consensus rounds, by shard.
    rounds: Vec<(usize, u64)>,
    /// Snapshots: shard and the oldest segment it needs then.
    snapshots: Vec<(usize, u32)>,
    /// Copies of messages: shard, which, where.
    moves: Vec<(usize, Address, Offset, Position)>,
}

/// A node's deciding half. See [`Node::handle`] and [`Node::flush`].
#[derive(Debug)]
pub struct Node {
    config: Config,
    writer: Writer,
    /// Data shards in order, then the cluster's own.
    shards: Vec<Shard>,
    dirty: Vec<bool>,
    /// When each shard has something to do by itself, as of its latest flush: looking costs as much as its groups.
    wakes: Vec<Option<Instant>>,
    connections: BTreeMap<ConnectionId, Connection>,
    /// Who fails to authenticate too often.
    guard: Guard,
    /// What principals use.
    guests: Guests,
    audit: Audit,
    /// As of which index of the cluster's own shard identities were looked at.
    access_seen: u64,
    next_access_look: Option<Instant>,
    /// Nodes with a link that were not let in.
    unwanted: BTreeSet<NodeId>,
    /// Connections with bytes to send.
    talking: BTreeSet<ConnectionId>,
    /// Consumers connected here.
    subscribers: BTreeMap<SubscriberId, Subscriber>,
    settlements: BTreeMap<u64, consume::PendingFrame>,
    operations: BTreeMap<OperationId, Operation>,
    /// Operations that wait until this node knows the cluster's facts up to an index.
    catching_up: Vec<(OperationId, u64)>,
    /// Questions under way, to whoever leads.
    asked: BTreeMap<u64, Asked>,
    next_ask_look: Instant,
    /// Looks at routes under way.
    surveys: BTreeMap<u64, Survey>,
    /// Who leads each shard, as far as known: a hint.
    leaders: Vec<Option<(Term, NodeId)>>,
    audience: Audience,
    /// Consumers of all nodes that are fed from here.
    attendees: BTreeMap<SubscriberId, Attendee>,
    attending: Attending,
    credits: Credits,
    company: Company,
    /// Shards that are led here have written since the latest look.
    wrote: bool,
    /// The data shard that is looked at first.
    first: usize,
    waiting: BTreeMap<Ticket, Waiting>,
    judging: BTreeMap<u64, lead::PendingSettle>,
    readings: BTreeMap<u64, Reading>,
    peeks: BTreeMap<u64, (usize, lead::PendingPeek)>,
    peers: Peers,
    ways: Ways,
    relayed: Vec<(NodeId, Packet)>,
    peers_changed: Option<Vec<Neighbour>>,
    swarm: Swarm,
    relaying: Relaying,
    busy: Busy,
    reads: Vec<ReadRequest>,
    promises: Promises,
    in_flight: Option<(u64, Promises)>,
    last_write: Instant,
    space: Space,
    moving: VecDeque<(usize, Address, Offset, Position, u32)>,
    moves_outstanding: usize,
    snapshots_outstanding: usize,
    free_bytes: u64,
    draining: bool,
    /// A shard, a batch or a read came on since space was last looked after.
    changed: bool,
    drain_snapshots: bool,
    /// Other nodes know more of this node's log than its disk.
    lost_disk: bool,
    stopped: Option<String>,
    next_number: u64,
    counters: Counters,
}

impl Config {
    pub(crate) fn log(&self) -> crate::log::Config {
        crate::log::Config { segment_bytes: self.segment_bytes, log_id: self.log_id() }
    }

    /// Names this node's log; under every checksum's segment header, so that a foreign segment is recognised.
    pub fn log_id(&self) -> u128 {
        self.cluster.0 ^ (u128::from(self.node.0) << 64) ^ u128::from(self.incarnation)
    }

    /// This node's name in consensus groups: its number and the life of its disk (safety rule 14).
    pub(crate) fn replica(&self) -> u64 {
        crate::shard::member::replica_of(self.node, self.incarnation)
    }
}

impl Node {
    /// Begins with a log, empty or not.
    pub fn restore(config: Config) -> Restore {
        Restore::new(config)
    }

    fn assemble(config: Config, now: Now, writer: Writer, shards: Vec<Shard>, segments: Vec<u32>) -> Self {
        let space = Space { segments: segments.into_iter().collect() };
        // Others may still answer what an earlier process of this node asked: no number may come again.
        let life = crate::shard::consensus::mix(config.incarnation ^ config.boot.rotate_left(32));
        let ways = Ways::new(config.incarnation, config.boot);
        let swarm = route::swarm(&config, now);
        let next_number = (life & BOOTS_TOLD_APART) << NUMBER_BITS;
        Self {
            dirty: vec![true; shards.len()],
            wakes: vec![None; shards.len()],
            leaders: vec![None; shards.len()],
            audience: Audience::default(),
            config,
            writer,
            shards,
            connections: BTreeMap::new(),
            guard: Guard::default(),
            guests: Guests::default(),
            audit: Audit::default(),
            access_seen: 0,
            next_access_look: None,
            unwanted: BTreeSet::new(),
            talking: BTreeSet::new(),
            subscribers: BTreeMap::new(),
            settlements: BTreeMap::new(),
            operations: BTreeMap::new(),
            catching_up: Vec::new(),
            asked: BTreeMap::new(),
            next_ask_look: now.monotonic,
            surveys: BTreeMap::new(),
            attendees: BTreeMap::new(),
            attending: Attending::new(),
            credits: Credits::default(),
            company: Company::default(),
            wrote: false,
            first: 0,
            waiting: BTreeMap::new(),
            judging: BTreeMap::new(),
            peers: Peers::default(),
            ways,
            relayed: Vec::new(),
            peers_changed: None,
            swarm,
            relaying: Relaying::default(),
            busy: Busy::default(),
            readings: BTreeMap::new(),
            peeks: BTreeMap::new(),
            reads: Vec::new(),
            promises: Promises::default(),
            in_flight: None,
            last_write: now.monotonic,
            space,
            moving: VecDeque::new(),
            moves_outstanding: 0,
            snapshots_outstanding: 0,
            free_bytes: u64::MAX,
            draining: false,
            changed: true,
            drain_snapshots: false,
            lost_disk: false,
            stopped: None,
            next_number,
            counters: Counters::default(),
        }
    }

    /// Takes one input. Cheap; what follows from it is collected by [`Node::flush`].
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Connected { connection, nonce, source } => self.connected(now, connection, nonce, source),
            Input::Keys { access_token, admission_key, cluster_secret } => {
                self.take_keys(access_token, admission_key, cluster_secret);
            }
            Input::Certified { connection, name } => self.certified(connection, name),
            Input::PeerRefused { source, node, code } => self.peer_refused(now, source, node, code),
            Input::Frame { connection, header, body } => self.frame(now, connection, header, body),
            Input::Malformed { connection, error } => self.malformed(connection, &error),
            Input::Disconnected { connection } => self.disconnected(now, connection),
            Input::Synced { batch } => self.synced(now, batch),
            Input::DiskFailed { what } => self.disk_failed(now, &what),
            Input::Read { ticket, result } => self.read(now, ticket, result),
            Input::DiskSpace { free_bytes } => self.free_bytes = free_bytes,
            Input::Certificate { warning } => self.counters.certificate = warning,
            Input::PeerUp { hello } => self.peer_up(now, hello),
            Input::PeerDown { node, gone } => self.peer_down(now, node, gone),
            Input::Packet { from, packet } => self.packet(now, from, packet),
            Input::Datagram { bytes } => self.datagram(now, &bytes),
            Input::Drain => self.drain(),
            Input::Woken => {}
        }
    }

    /// Its shards: data shards in order, then the cluster's own.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// What it believes of the other nodes, to be looked at.
    pub fn swarm(&self) -> &Swarm {
        &self.swarm
    }

    /// Whether `connection` has proven that it knows the access token.
    pub fn is_authenticated(&self, connection: ConnectionId) -> bool {
        self.connections.get(&connection).is_some_and(Connection::is_ready)
    }

    /// What is to be done now, after a burst of inputs: everything at hand goes into one batch and one write each.
    pub fn flush(&mut self, now: Now, out: &mut Effects) {
        for shard in 0..self.shards.len() {
            if self.wakes[shard].is_some_and(|at| at <= now.monotonic) {
                self.dirty[shard] = true;
            }
        }
        self.give_up_asking(now);
        self.survey_on(now);
        self.look_around(now, out);
        self.steer(now);
        if self.draining {
            self.hand_over_all(now);
        }
        let alone = self.company.give_up(now.monotonic);
        self.hurry(alone);
        for _ in 0..ROUNDS_MAX {
            if std::mem::take(&mut self.wrote) {
                let company = self.company.take();
                self.hurry(company);
            }
            if !self.dirty.contains(&true) {
                break;
            }
            // Credit goes to who comes first: every data shard does in its turn. The cluster's own comes last.
            let last = self.shards.len() - 1;
            self.first = (self.first + 1) % last.max(1);
            for shard in (self.first..last).chain(0..self.first).chain([last]) {
                if std::mem::take(&mut self.dirty[shard]) {
                    out.touched.push(shard);
                    self.flush_shard(now, shard);
                }
            }
        }
        self.announce(now);
        self.tell_leaders(now);
        if self.next_access_look.is_some_and(|at| at <= now.monotonic) {
            self.follow_access(now);
        }
        self.comfort(now);
        // Looking after space looks at every shard: only where there is something new, and once for what becomes one batch.
        let changed = self.draining || self.in_flight.is_none() && std::mem::take(&mut self.changed);
        if self.stopped.is_none() {
            if changed {
                self.clean(now, out);
            }
            self.write(now, out);
        }
        if changed {
            self.trim_caches();
        }
        out.reads.append(&mut self.reads);
        for id in std::mem::take(&mut self.talking) {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if !connection.out.is_empty() {
                out.sends.push((id, connection.out.split()));
            }
            if connection.closing {
                out.closes.push(id);
                self.disconnected(now, id);
            }
        }
        self.pack(out);
        out.audit = self.audit.take(now);
        self.busy.plan(self.next_wake());
        out.lost_disk = self.lost_disk;
        out.drained = self.draining
            && (self.stopped.is_some()
                || (self.drain_snapshots
                    && self.waiting.is_empty()
                    && !self.leads_shared()
                    && self.in_flight.is_none()
                    && self.writer.buffered_bytes() == 0));
    }

    /// When [`Node::flush`] has something to do without any input.
    pub fn next_wake(&self) -> Option<Instant> {
        // Without a log it still lives, still passes on to others, and still tells of routes.
        if self.stopped.is_some() {
            return [self.survey_wake(), self.swarm_wake()].into_iter().flatten().min();
        }
        let watermark = (self.in_flight.is_none() && self.writer.watermark_lags())
            .then_some(self.last_write + WATERMARK_PAUSE);
        let others = [
            watermark,
            self.asking_wake(),
            self.survey_wake(),
            self.peers_wake(),
            self.swarm_wake(),
            self.leaders_wake(),
            self.access_wake(),
            self.comfort_wake(),
            self.audit.wake(),
            self.company.next_wake(),
        ];
        self.wakes.iter().copied().chain(others).flatten().min()
    }

    /// Settlements of these shards wait no more for company.
    fn hurry(&mut self, shards: BTreeSet<usize>) {
        for index in shards {
            self.shards[index].hurry();
            self.dirty[index] = true;
        }
    }

    fn flush_shard(&mut self, now: Now, index: usize) {
        let mut work = Work::default();
        let extent = self.shards[index].extent();
        self.shards[index].flush(now, &mut self.writer, &mut self.credits, &mut work);
        self.changed |= self.shards[index].extent() != extent;
        self.wakes[index] = self.shards[index].next_wake();
        self.wrote |= !work.rounds.is_empty() && self.shards[index].is_leader();
        // Before anything else is told: whoever joins again because of it must know what was leased to it just now.
        self.hand_on(now, index, &mut work);
        self.gather(now, index, &mut work);
        self.carry(now, index, work);
        if self.shards[index].has_amnesia() && self.stopped.is_none() {
            self.lost_disk = true;
            self.disk_failed(now, "the disk has lost what it had stored: it can only come back as a new one");
        }
        if index + 1 == self.shards.len() {
            self.audience.knows(self.shards[index].state().applied);
            self.found(now);
            let applied = self.shards[index].state().applied;
            if std::mem::replace(&mut self.access_seen, applied) != applied {
                self.follow_access(now);
            }
            self.go_on(now);
        }
    }

    /// Carries deliveries, and the news that leases ended, to where the consumers are.
    fn hand_on(&mut self, now: Now, index: usize, work: &mut Work) {
        let (expired, delivered) = (std::mem::take(&mut work.expired), std::mem::take(&mut work.delivered));
        if !expired.is_empty() {
            self.tell_expired(index, expired);
        }
        if !delivered.is_empty() {
            self.deliver(now, index, delivered);
        }
    }

    /// Carries what a shard wants done to where it is done.
    fn carry(&mut self, now: Now, index: usize, mut work: Work) {
        self.hand_on(now, index, &mut work);
        self.promises.rounds.extend(work.rounds.into_iter().map(|round| (index, round)));
        for (place, length) in work.reads {
            let length = self.writer.readable(place, length);
            self.ask_disk(Reading::Shard { shard: index, place }, place, length);
        }
        for (ticket, answer) in work.answers {
            self.answered(now, ticket, answer);
        }
        if let Some(why) = self.shards[index].stopped().map(str::to_owned)
            && self.stopped.is_none()
            && !self.counters.problems.contains(&why)
        {
            self.counters.problems.push(why);
        }
    }

    fn ask_disk(&mut self, reading: Reading, position: Position, length: u32) {
        let ticket = self.number();
        self.readings.insert(ticket, reading);
        self.reads.push(ReadRequest { ticket, position, length });
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn ticket(&mut self, waiting: Waiting) -> Ticket {
        let ticket = Ticket(self.number());
        self.waiting.insert(ticket, waiting);
        ticket
    }

    /// Position of a shard in `shards`; `None`: there is no such shard.
    fn index_of(&self, shard: ShardId) -> Option<usize> {
        if shard == ShardId::CLUSTER {
            return Some(self.shards.len() - 1);
        }
        (shard.0 < self.config.shard_count).then_some(shard.0 as usize)
    }

    fn cluster_shard(&self) -> &Shard {
        self.shards.last().expect("the cluster's own shard always exists")
    }

    fn answered(&mut self, now: Now, ticket: Ticket, answer: Answer) {
        match self.waiting.remove(&ticket) {
            // Asked from here, under the question's own number.
            None => self.replied(now, ticket.0, self.config.node, answer),
            Some(Waiting::Reply(asker)) => self.reply(now, asker, answer),
            Some(Waiting::Settle { settlement, items }) => self.judged(now, settlement, &items, &answer),
        }
    }

    fn synced(&mut self, now: Now, batch: u64) {
        let Some((expected, promises)) = self.in_flight.take() else { return };
        self.changed = true;
        assert_eq!(expected, batch, "batches are synced one after the other");
        self.writer.synced(batch);
        self.busy.synced(now.monotonic);
        self.last_write = now.monotonic;
        for (shard, round) in promises.rounds {
            self.shards[shard].persisted(round);
            self.dirty[shard] = true;
        }
        for (shard, floor) in promises.snapshots {
            self.snapshots_outstanding -= 1;
            self.shards[shard].snapshot_synced(floor);
        }
        for (shard, address, offset, place) in promises.moves {
            self.shards[shard].moved(&address, offset, place);
        }
    }

    /// The first failed write or sync stops the log for good: what the disk holds is unknown (safety rule 18).
    fn disk_failed(&mut self, now: Now, what: &str) {
        if self.config.bugs.has(Bug::IgnoreSyncError) {
            if let Some((batch, _)) = &self.in_flight {
                self.synced(now, *batch);
            }
            return;
        }
        if self.stopped.is_some() {
            return;
        }
        self.stopped = Some(what.to_owned());
        self.busy.lost_disk();
        self.counters.problems.push(format!("the log stopped: {what}"));
        for index in 0..self.shards.len() {
            let mut work = Work::default();
            self.shards[index].stop(what, &mut work);
            // Whoever asks who leads is to hear that this node does not.
            self.dirty[index] = true;
            self.carry(now, index, work);
        }
    }

    fn read(&mut self, now: Now, ticket: u64, result: Result<Bytes, String>) {
        let mut work = Work::default();
        self.changed = true;
        match self.readings.remove(&ticket) {
            None => {}
            Some(Reading::Fetch { fetch, item }) => self.fetched(fetch, item, result),
            Some(Reading::Shard { shard, place }) => {
                let readable = result.is_ok();
                self.shards[shard].read(place, result, &mut work);
                self.dirty[shard] = true;
                self.carry(now, shard, work);
                self.show_again(now, shard, readable);
            }
            Some(Reading::Move { shard, address, offset, place: from }) => {
                self.moves_outstanding -= 1;
                self.dirty[shard] = true;
                match result {
                    Ok(sealed) => {
                        let of = &mut self.shards[shard];
                        let place = of.write_moved(&mut self.writer, &address, offset, &sealed, &mut work);
                        if let Some(place) = place {
                            self.promises.moves.push((shard, address, offset, place));
                        }
                    }
                    Err(why) if self.shards[shard].lies_at(&address, offset, from) => {
                        self.shards[shard].stop(&format!("the log cannot be read: {why}"), &mut work);
                    }
                    Err(_) => {}
                }
                self.carry(now, shard, work);
            }
        }
    }

    /// Group commit: everything buffered since the last batch goes as one, as soon as that one is synced.
    fn write(&mut self, now: Now, out: &mut Effects) {
        if self.in_flight.is_some() {
            return;
        }
        if self.writer.buffered_bytes() == 0
            && self.writer.watermark_lags()
            && now.monotonic >= self.last_write + WATERMARK_PAUSE
        {
            self.writer.idle_watermark();
        }
        let Some(append) = self.writer.take(now.wall) else { return };
        for write in &append.writes {
            self.space.segments.insert(write.segment);
        }
        self.in_flight = Some((append.batch, std::mem::take(&mut self.promises)));
        self.last_write = now.monotonic;
        self.busy.writes(now.monotonic);
        out.append = Some(append);
    }

    /// Gives segments back that nobody needs, and writes anew what keeps mostly dead ones.
    fn clean(&mut self, _now: Now, out: &mut Effects) {
        let active = self.writer.active_segment();
        out.release.extend(self.space.release(&self.shards, active));
        if self.snapshots_outstanding > 0 {
            return;
        }
        for index in 0..self.shards.len() {
            if self.shards[index]
                .wants_snapshot(SNAPSHOT_INTERVAL_BYTES.min(u64::from(self.config.segment_bytes)))
            {
                self.snapshot(index);
            }
        }
        if self.draining && !self.drain_snapshots && self.waiting.is_empty() {
            self.drain_snapshots = true;
            (0..self.shards.len())
                .filter(|index| self.shards[*index].stopped().is_none())
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|index| self.snapshot(index));
        }
        if self.snapshots_outstanding > 0 {
            return;
        }
        self.move_messages();
        if !self.moving.is_empty() || self.moves_outstanding > 0 || !self.promises.moves.is_empty() {
            return;
        }
        if self.in_flight.as_ref().is_some_and(|(_, promises)| !promises.moves.is_empty()) {
            return;
        }
        match self.space.cleaning(&self.shards, active, u64::from(self.config.segment_bytes)) {
            Cleaning::Nothing => {}
            Cleaning::Snapshot(shards) => shards.into_iter().for_each(|index| self.snapshot(index)),
            Cleaning::Move(shards) => {
                let oldest = self.space.segments.first().copied().expect("something pins the oldest segment");
                for index in shards {
                    let messages = self.shards[index].messages_in(oldest);
                    self.moving.extend(
                        messages.into_iter().map(|(a, o, place, length)| (index, a, o, place, length)),
                    );
                }
                self.move_messages();
            }
        }
    }

    fn snapshot(&mut self, index: usize) {
        let floor = self.shards[index].write_snapshot(&mut self.writer);
        self.promises.snapshots.push((index, floor));
        self.snapshots_outstanding += 1;
        self.counters.snapshots += 1;
    }

    fn move_messages(&mut self) {
        while self.moves_outstanding < MOVES_MAX
            && let Some((shard, address, offset, place, length)) = self.moving.pop_front()
        {
            // Settled meanwhile: its segment may be gone already.
            if !self.shards[shard].lies_at(&address, offset, place) {
                continue;
            }
            self.moves_outstanding += 1;
            self.counters.moved += 1;
            self.ask_disk(Reading::Move { shard, address, offset, place }, place, length);
        }
    }

    /// Keeps the payload bytes in memory below the limit, and as many of entries for replicas that lag.
    fn trim_caches(&mut self) {
        let bytes_max = self.config.cache_bytes_max;
        trim(&mut self.shards, bytes_max, Shard::cache_bytes, Shard::shrink_cache);
        trim(&mut self.shards, bytes_max, Shard::retained_bytes, Shard::shrink_retained);
    }

    fn drain(&mut self) {
        if self.draining {
            return;
        }
        self.draining = true;
        let ready: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.is_ready())
            .map(|(id, _)| *id)
            .collect();
        for id in ready {
            self.go_away(id, "the node is stopping");
        }
    }

    /// Whether this node does not know the cluster's facts yet. What it does not know is then no proof of absence.
    fn is_learning(&self) -> bool {
        let cluster = self.cluster_shard();
        !cluster.is_current() && cluster.stopped().is_none()
    }

    /// Whether the disk has too little space for publishes; the rest is for settlements.
    fn is_below_reserve(&self) -> bool {
        self.free_bytes < self.config.reserve_bytes
    }

    /// Refusals that hold for every publish and every change, whatever it says.
    fn refuses_writes(&self) -> Option<Code> {
        // Without a log of its own a node can still pass on to others.
        if self.stopped.is_some() && self.ways.nodes().is_empty() {
            return Some(Code::LogStopped);
        }
        self.draining.then_some(Code::Draining)
    }
}

/// Halves what the shard with most of it has, until all have at most `bytes_max`, or nothing goes.
fn trim(shards: &mut [Shard], bytes_max: usize, bytes: fn(&Shard) -> usize, shrink: fn(&mut Shard, usize)) {
    let mut total: usize = shards.iter().map(bytes).sum();
    while total > bytes_max {
        let largest = shards.iter_mut().max_by_key(|shard| bytes(shard)).expect("there are shards");
        let before = bytes(largest);
        shrink(largest, before / 2);
        let gone = before - bytes(largest);
        if gone == 0 {
            return;
        }
        total -= gone;
    }
}
