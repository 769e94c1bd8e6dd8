//! One replicated log and the queues in it: accepts each message once, leases it, forgets it when it is settled.
//!
//! This file is the composer: it carries events to consensus, entries to the log, committed entries to the state, and
//! what was applied to deliveries and to whoever waits. It decides nothing itself.

pub mod access;
pub mod cache;
pub mod catalog;
mod codec;
pub mod consensus;
pub mod credit;
pub mod dedup;
pub mod delivery;
pub mod event;
pub mod intake;
mod keep;
pub mod member;
pub mod queue;
mod replication;
pub mod restore;
pub mod snapshot;
pub mod state;
mod translate;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use swarmmq_protocol::{
    consensus::{EntryKind, Message},
    error::{Code, Outcome as Fate},
    id::{Address, Attempt, GroupName, NodeId, Offset, ProducerEpoch, ProducerId, Sequence, ShardId, Term},
    time::{Instant, WallTime},
};

use self::{
    cache::Cache,
    consensus::{Consensus, LogEntry},
    credit::Credits,
    dedup::Verdict,
    delivery::{Delivered, Delivery, Expired, Joining, LeaseLost, Leased, Needs, Settlement, SubscriberId},
    event::{Entry, EntryWriter, Event, Order},
    intake::{Intake, Wanted},
    state::{Outcome, Placed, PlacedRun, State},
};
use crate::{
    log::{Position, Writer},
    node::{
        Now,
        bug::{Bug, Bugs},
    },
};

/// Log record: hard state of consensus.
pub const RECORD_HARD: u8 = 1;
/// Log record: one entry.
pub const RECORD_ENTRY: u8 = 2;
/// Log record: part of a snapshot.
pub const RECORD_SNAPSHOT: u8 = 3;
/// Log record: a live message copied out of an old segment, or fetched from another replica.
pub const RECORD_MOVED: u8 = 4;
/// Log record: one entry that changes the group of replicas.
pub const RECORD_MEMBERSHIP: u8 = 5;
/// Log record: part of a state taken over from another replica; what was in the log before is void.
pub const RECORD_INSTALLED: u8 = 6;

/// Bytes of one entry, unless one event alone is longer, or a segment of the log holds less.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Bytes of a snapshot in one record.
const SNAPSHOT_PART_BYTES: usize = 4 << 20;
/// Bytes before the state in each of these records: which part of how many, hard state.
const SNAPSHOT_HEAD_BYTES: usize = 32;
/// Pause between looks for messages that are old enough to go.
const AGING_MILLIS: u64 = 1000;
/// Pause between looks for producers to forget.
const FORGETTING_MILLIS: u64 = 3_600_000;

/// Names a question to a shard; the answer carries it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// How a question ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Committed, with this effect.
    Committed(Outcome),
    /// Definitely not done.
    Refused(Code),
    /// Perhaps done: the shard lost its leader or its log before it could tell.
    Unknown(Code),
    /// A consumer takes part from now on; which of what it said to hold is lost.
    Joined {
        /// The reign that feeds it.
        term: Term,
        /// Not its any more.
        lost: Vec<Offset>,
    },
    /// How each settlement of a list ended: what became of it, and the code where it is not done.
    Settled(Vec<(Fate, Option<Code>)>),
    /// Bytes of an answer that only the asking room reads.
    Found(Bytes),
}

/// What a shard wants done.
#[derive(Debug, Default)]
pub struct Work {
    /// For whoever asked.
    pub answers: Vec<(Ticket, Answer)>,
    /// For consumers.
    pub delivered: Vec<Delivered>,
    /// Leases that ran out, for those who had them.
    pub expired: Vec<Expired>,
    /// To be read from the log, in bytes.
    pub reads: Vec<(Position, u32)>,
    /// For other replicas of the shard.
    pub messages: Vec<Message>,
    /// What a state being taken over wants from the leader's node.
    pub wanted: Vec<(NodeId, Wanted)>,
    /// The group of replicas changed, or who leads.
    pub regrouped: bool,
    /// Consensus rounds that wait for the records appended since the last batch to be on stable storage.
    pub rounds: Vec<u64>,
}

/// Consecutive messages of one producer, checked by the node.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Who.
    pub producer: ProducerId,
    /// In which life.
    pub epoch: ProducerEpoch,
    /// Sequence of the first message; the others follow without gaps.
    pub first: Sequence,
    /// How many.
    pub count: u32,
    /// Sealed bytes, one message after the other.
    pub messages: Bytes,
}

#[derive(Debug, Default)]
struct Building {
    entry: EntryWriter,
    tickets: Vec<Option<Ticket>>,
}

/// One shard on one node.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    /// Its name in the group.
    replica: u64,
    consensus: Consensus,
    state: State,
    delivery: Delivery,
    cache: Cache,
    building: Building,
    /// What is being built are settlements that may wait for company.
    lingers: bool,
    entry_bytes_max: usize,
    /// Entries closed and not yet proposed.
    closed: VecDeque<(EntryWriter, Vec<Option<Ticket>>)>,
    /// Who waits for which index; every event of the entry in order.
    waiting: VecDeque<(u64, Vec<Option<Ticket>>)>,
    /// Where entries lie that are not applied yet.
    places: VecDeque<(u64, u64, Position)>,
    /// Highest sequence proposed per producer, in the current reign.
    proposed: BTreeMap<ProducerId, (ProducerEpoch, Sequence)>,
    applied_term: u64,
    stamp: WallTime,
    /// The term in which this replica leads, as of the latest round.
    reign: Option<u64>,
    /// Another replica's state on its way.
    intake: Option<Intake>,
    seed: u64,
    /// When to ask for the lead without waiting for an election timeout.
    campaign_at: Option<Instant>,
    /// Since when a leader has proposals that do not commit, and the commit index then.
    stalled_since: Option<(Instant, u64)>,
    /// The group goes on without this replica.
    leaving: bool,
    /// What was committed when this replica was last sent entries or told of a state.
    fed_as_of: u64,
    /// An entry that was proposed when the latest change of the group was applied, in this reign; and whether one is due.
    group_marked_at: Option<u64>,
    group_unmarked: bool,
    /// When replicas left the group, in this reign.
    left_at: BTreeMap<u64, Instant>,
    /// When replicas being caught up last asked for something.
    pulled_at: BTreeMap<u64, Instant>,
    /// To nodes that are being sent this replica's state.
    giving: BTreeMap<NodeId, replication::Giving>,
    next_tick: Instant,
    next_aging: Instant,
    forget_at: WallTime,
    /// Oldest segment this shard needs beside those with live messages.
    floor_segment: u32,
    log_bytes_since_snapshot: u64,
    snapshot_bytes: u64,
    reading: Option<Position>,
    /// Rounds of consensus that wait for a sync, in order.
    unsynced: VecDeque<u64>,
    /// The latest round.
    last_round: u64,
    stopped: Option<String>,
    bugs: Bugs,
}

impl Shard {
    /// Which shard.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// What it remembers.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether it leads and everything it must know was applied.
    pub fn is_serving(&self) -> bool {
        self.stopped.is_none() && self.delivery.is_serving()
    }

    /// Current reign.
    pub fn term(&self) -> Term {
        self.consensus.term()
    }

    /// Why it stopped for good, if it did.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// What is leased now and not being settled.
    pub fn leases(&self) -> impl Iterator<Item = Leased<'_>> {
        self.delivery.leases()
    }

    /// Messages leased now to consumers of `group`.
    pub fn leased(&self, address: &Address, group: &GroupName) -> u64 {
        self.delivery.leased(address, group)
    }

    /// Whether somebody consumes in `group` now.
    pub fn has_consumers(&self, address: &Address, group: &GroupName) -> bool {
        self.delivery.has_consumers(address, group)
    }

    /// Proposes `event`; the answer comes with `ticket`, if there is one.
    pub fn propose(&mut self, event: &Event, ticket: Option<Ticket>, work: &mut Work) {
        if !self.is_serving() {
            self.refuse(ticket, work);
            return;
        }
        self.push(event, ticket);
    }

    /// Takes a batch of messages. What can be answered without the log is answered at once.
    pub fn publish(&mut self, batch: Batch, ticket: Ticket, work: &mut Work) {
        if !self.is_serving() {
            self.refuse(Some(ticket), work);
            return;
        }
        let last = Sequence(batch.first.0 + u64::from(batch.count) - 1);
        if let Verdict::Seen(_) = self.state.producers.classify(batch.producer, batch.epoch, last) {
            // All of it is in the log and committed: `apply` would say the same of every message.
            let runs = (0..u64::from(batch.count))
                .map(|n| {
                    let sequence = Sequence(batch.first.0 + n);
                    let Verdict::Seen(offset) =
                        self.state.producers.classify(batch.producer, batch.epoch, sequence)
                    else {
                        unreachable!("sequences below a seen one are seen");
                    };
                    PlacedRun { count: 1, placed: Placed::Seen(offset) }
                })
                .collect();
            work.answers.push((ticket, Answer::Committed(Outcome::Placed(runs))));
            return;
        }
        let durable = self.state.producers.last(batch.producer, batch.epoch);
        let proposed = self.proposed.get(&batch.producer).filter(|(epoch, _)| *epoch == batch.epoch);
        let known = durable.max(proposed.map(|(_, last)| *last));
        if known.is_some_and(|known| batch.first.0 > known.0 + 1) && !self.bugs.has(Bug::AcceptGaps) {
            work.answers.push((ticket, Answer::Refused(Code::Gap)));
            return;
        }
        let highest = known.unwrap_or(Sequence(0)).max(last);
        self.proposed.insert(batch.producer, (batch.epoch, highest));
        self.push(&Event::Published { messages: batch.messages, at: 0 }, Some(ticket));
    }

    fn refuse(&self, ticket: Option<Ticket>, work: &mut Work) {
        let Some(ticket) = ticket else { return };
        let code = if self.stopped.is_some() { Code::LogStopped } else { Code::NotLeader };
        work.answers.push((ticket, Answer::Refused(code)));
    }

    fn push(&mut self, event: &Event, ticket: Option<Ticket>) {
        self.lingers = false;
        if let Some(full) = self.building.entry.push(event, self.entry_bytes_max) {
            self.closed.push_back((full, std::mem::take(&mut self.building.tickets)));
        }
        self.building.tickets.push(ticket);
        if self.building.entry.count() == u16::MAX {
            let full = std::mem::take(&mut self.building);
            self.closed.push_back((full.entry, full.tickets));
        }
    }

    /// Lets a consumer take part in its group. Returns which of `held` are lost. Refused where nothing is led.
    pub fn subscribe(&mut self, now: Now, joining: &Joining<'_>) -> Result<Vec<Offset>, Code> {
        if !self.is_serving() {
            return Err(Code::NotLeader);
        }
        let mut needs = Needs::default();
        let lost = self.delivery.subscribe(now.monotonic, &self.state, joining, &mut needs);
        needs.events.iter().for_each(|event| self.push(event, None));
        Ok(lost)
    }

    /// Ends a subscription; what it holds stays leased.
    pub fn unsubscribe(&mut self, subscriber: SubscriberId) {
        self.delivery.unsubscribe(subscriber);
    }

    /// Asks to settle one message. `Ok(true)`: done. `Ok(false)`: `ticket` will be answered.
    pub fn settle(
        &mut self,
        now: Now,
        subscriber: SubscriberId,
        offset: Offset,
        attempt: Attempt,
        settlement: &Settlement,
        ticket: Ticket,
    ) -> Result<bool, LeaseLost> {
        if !self.is_serving() {
            return Err(LeaseLost);
        }
        match self.delivery.settle(now.monotonic, subscriber, offset, attempt, settlement)? {
            None => Ok(true),
            Some(event) if self.bugs.has(Bug::SettleBeforeCommit) => {
                self.push(&event, None);
                Ok(true)
            }
            Some(event) => {
                self.push(&event, Some(ticket));
                Ok(false)
            }
        }
    }

    /// Proposes the acknowledgements of many messages at once; the caller made sure of each with
    /// [`Shard::check_ack`].
    ///
    /// With `may_wait` they are only proposed with whatever else comes, or after [`Shard::hurry`], if nobody in the group
    /// waits for anything: then this returns true.
    pub fn settle_ranges(
        &mut self,
        address: &Address,
        group: &GroupName,
        ranges: Vec<(Offset, u32)>,
        ticket: Ticket,
        may_wait: bool,
    ) -> bool {
        let alone = self.lingers || self.building.entry.is_empty();
        let event = Event::Settled { address: address.clone(), group: group.clone(), ranges };
        let ticket = (!self.settles_early()).then_some(ticket);
        self.push(&event, ticket);
        self.lingers = may_wait && alone && self.delivery.is_drained(address, group, self.state.next_offset);
        self.lingers
    }

    /// Settlements that wait for company wait no more.
    pub fn hurry(&mut self) {
        self.lingers = false;
    }

    /// Whether `subscriber` may acknowledge `offset`; its lease then waits for the settlement.
    pub fn check_ack(
        &mut self,
        now: Now,
        subscriber: SubscriberId,
        offset: Offset,
        attempt: Attempt,
    ) -> Result<(), LeaseLost> {
        if !self.is_serving() {
            return Err(LeaseLost);
        }
        self.delivery.settle(now.monotonic, subscriber, offset, attempt, &Settlement::Ack).map(|_| ())
    }

    /// Whether acknowledgements may be confirmed before they are committed; a planted bug.
    pub fn settles_early(&self) -> bool {
        self.bugs.has(Bug::SettleBeforeCommit)
    }

    /// A consensus round is on stable storage, and with it every round that waited only behind it.
    pub fn persisted(&mut self, round: u64) {
        while self.unsynced.front().is_some_and(|first| *first <= round) {
            self.unsynced.pop_front();
        }
        let through = self.unsynced.front().map_or(self.last_round, |next| next - 1);
        self.consensus.persisted(through);
    }

    /// The log stopped: nothing is acknowledged any more, and whoever waits learns that the outcome is unknown.
    pub fn stop(&mut self, why: &str, work: &mut Work) {
        if self.stopped.is_none() {
            self.stopped = Some(why.to_owned());
        }
        self.end_reign(Code::LogStopped, work);
    }

    /// Whoever waits learns that this replica cannot tell; leases of the reign are void.
    fn end_reign(&mut self, code: Code, work: &mut Work) {
        let building = std::mem::take(&mut self.building);
        self.lingers = false;
        let unproposed = self.closed.drain(..).map(|(_, tickets)| tickets).chain([building.tickets]);
        for ticket in unproposed.flatten().flatten() {
            work.answers.push((ticket, Answer::Refused(code)));
        }
        for ticket in self.waiting.drain(..).flat_map(|(_, tickets)| tickets).flatten() {
            work.answers.push((ticket, Answer::Unknown(code)));
        }
        if !self.bugs.has(Bug::KeepLeasesOverReigns) {
            self.delivery.end();
        }
        self.proposed.clear();
        self.reign = None;
        self.stalled_since = None;
        self.pulled_at.clear();
        self.giving.clear();
        self.left_at.clear();
        self.group_marked_at = None;
        self.group_unmarked = true;
    }

    /// Bytes of the log that were asked for. What the disk does not give back is as bad as what does not check: with one
    /// voter no other replica can repair it.
    pub fn read(&mut self, place: Position, result: Result<Bytes, String>, work: &mut Work) {
        if self.reading == Some(place) {
            self.reading = None;
        }
        match result {
            Ok(bytes) => self.cache.fetched(place, bytes),
            Err(why) => self.stop(&format!("the log cannot be read: {why}"), work),
        }
    }

    /// Bytes of payload in memory.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Drops payload bytes from memory, oldest first.
    pub fn shrink_cache(&mut self, bytes_max: usize) {
        self.cache.shrink(bytes_max);
    }

    /// Bytes of entries in memory, for replicas that lag; many of them are the cache's as well.
    pub fn retained_bytes(&self) -> usize {
        self.consensus.retained_bytes() as usize
    }

    /// Drops entries that were applied, oldest first: whoever lags more is caught up by a snapshot.
    pub fn shrink_retained(&mut self, bytes_max: usize) {
        self.consensus.shrink(bytes_max as u64);
    }

    /// When [`Shard::flush`] has something to do without any input.
    pub fn next_wake(&self) -> Option<Instant> {
        if self.stopped.is_some() {
            return None;
        }
        let alone = self.consensus.is_leader() && self.state.conf.members().count() == 1;
        let tick = (!self.state.conf.is_empty() && !alone).then_some(self.next_tick);
        let aging = (self.is_serving() && self.needs_aging()).then_some(self.next_aging);
        let patience = self.intake.as_ref().map(Intake::patience_ends);
        [tick, aging, patience, self.campaign_at, self.delivery.next_wake()].into_iter().flatten().min()
    }

    fn needs_aging(&self) -> bool {
        self.state
            .queues
            .values()
            .any(|queue| !queue.settings.min_age.is_zero() && !queue.messages.is_empty())
    }

    /// Does everything that can be done now: proposes what was pushed, appends records, applies what is committed,
    /// delivers. Returns whether records were appended.
    pub fn flush(&mut self, now: Now, log: &mut Writer, credits: &mut Credits, work: &mut Work) {
        if self.stopped.is_some() {
            return;
        }
        self.retire(log, work);
        self.pass_time(now, work);
        self.advance_intake(now, work);
        // What is applied may ask for more events, which go into the same batch.
        for _ in 0..4 {
            self.propose_pushed(now, work);
            self.mark_group();
            self.rounds(now, log, work);
            let mut needs = Needs::default();
            if self.delivery.is_serving() {
                self.delivery.deliver(
                    now.monotonic,
                    &self.state,
                    &self.cache,
                    credits,
                    &mut work.delivered,
                    &mut needs,
                );
            }
            let more = !needs.events.is_empty();
            self.meet(needs, work);
            if !more {
                break;
            }
        }
        if cfg!(debug_assertions) && self.state.applied.is_multiple_of(64) {
            self.state.check();
        }
    }

    fn pass_time(&mut self, now: Now, work: &mut Work) {
        self.tick(now, work);
        if !self.delivery.is_serving() {
            return;
        }
        let mut needs = Needs::default();
        self.delivery.wake(now.monotonic, &self.state, &mut needs);
        self.meet(needs, work);
        if now.monotonic >= self.next_aging {
            self.next_aging = now.monotonic + std::time::Duration::from_millis(AGING_MILLIS);
            let old_enough = self.state.queues.values().any(|queue| {
                !queue.settings.min_age.is_zero()
                    && queue.messages.first_key_value().is_some_and(|(offset, message)| {
                        queue.settled_by_all(*offset)
                            && now.wall.since(message.published_at) >= queue.settings.min_age
                    })
            });
            let forget = now.wall >= self.forget_at && !self.state.producers.known.is_empty();
            if old_enough || forget {
                self.forget_at = WallTime(now.wall.0 + FORGETTING_MILLIS);
                self.push(&Event::Ticked, None);
            }
        }
    }

    fn meet(&mut self, needs: Needs, work: &mut Work) {
        for event in &needs.events {
            self.push(event, None);
        }
        work.expired.extend(needs.expired);
        for (place, length) in needs.reads {
            if self.reading.is_none() {
                self.reading = Some(place);
                work.reads.push((place, self.cache.read_ahead(place, length)));
            }
        }
        if let Some((address, offset)) = needs.rotten.into_iter().next() {
            // One voter: no other replica can repair it. Nothing is served past it; an operator decides.
            self.cache.distrust();
            self.stop(&rotten(&address, offset), work);
        }
    }

    fn propose_pushed(&mut self, now: Now, work: &mut Work) {
        if !self.building.entry.is_empty() && !self.lingers {
            let next = Building { entry: self.building.entry.next(), tickets: Vec::new() };
            let building = std::mem::replace(&mut self.building, next);
            self.closed.push_back((building.entry, building.tickets));
        }
        // Nothing is taken while the lead is handed over. If nobody takes it this reign goes on, and deliveries, leases and
        // horizons wait for what they proposed meanwhile; if somebody does, the end of the reign refuses all of it.
        if self.consensus.is_transferring() {
            return;
        }
        while let Some((entry, tickets)) = self.closed.pop_front() {
            self.stamp = self.stamp.max(self.state.time).max(now.wall);
            match self.consensus.propose(entry.finish(self.stamp)) {
                Some(index) => self.waiting.push_back((index, tickets)),
                // The lead is lost since these events were taken.
                None => work.answers.extend(
                    tickets.into_iter().flatten().map(|ticket| (ticket, Answer::Refused(Code::NotLeader))),
                ),
            }
        }
    }

    fn rounds(&mut self, now: Now, log: &mut Writer, work: &mut Work) {
        while let Some(round) = self.consensus.round() {
            self.follow_reign(work);
            if let Some(mark) = &round.snapshot {
                self.install(mark, log, work);
            }
            if let Some(hard) = round.hard {
                let mut body = [0; 24];
                body[..8].copy_from_slice(&hard.term.to_be_bytes());
                body[8..16].copy_from_slice(&hard.vote.to_be_bytes());
                body[16..].copy_from_slice(&hard.commit.to_be_bytes());
                log.append(RECORD_HARD, self.id.0, 0, hard.term, &[&body]);
            }
            for entry in round.entries {
                let kind = match entry.kind {
                    EntryKind::Normal => RECORD_ENTRY,
                    EntryKind::Membership => RECORD_MEMBERSHIP,
                };
                while self.places.back().is_some_and(|(index, ..)| *index >= entry.index) {
                    self.places.pop_back();
                }
                let place = log.append(kind, self.id.0, entry.index, entry.term, &[&entry.data]);
                self.log_bytes_since_snapshot += entry.data.len() as u64 + 64;
                self.places.push_back((entry.index, entry.term, place));
                self.cache.wrote(place, entry.data);
            }
            for entry in round.committed {
                self.apply(now, entry, work);
            }
            self.last_round = round.number;
            if round.must_sync && !self.bugs.has(Bug::AckBeforeSync) {
                self.unsynced.push_back(round.number);
                work.rounds.push(round.number);
            } else if self.unsynced.is_empty() {
                // A round speaks for all before it: while one of them waits for the disk, this one waits with it.
                self.consensus.persisted(round.number);
            }
        }
        self.follow_reign(work);
        self.consensus.take_messages(&mut work.messages);
    }

    fn apply(&mut self, now: Now, entry: LogEntry, work: &mut Work) {
        let (index, term) = (entry.index, entry.term);
        let place = loop {
            let (at, _, place) = self.places.pop_front().expect("a committed entry was appended before");
            if at == index {
                break place;
            }
        };
        let tickets = match self.waiting.front() {
            Some((waiting, _)) if *waiting == index => self.waiting.pop_front().expect("looked at above").1,
            _ => Vec::new(),
        };
        if entry.kind == EntryKind::Membership {
            self.regroup(now, &entry.data, work);
        } else if !entry.data.is_empty() {
            let read = Entry::read(&entry.data).expect("this shard proposed it and its checksum holds");
            let mut tickets = tickets.into_iter().chain(std::iter::repeat(None));
            for event in &read.events {
                let keys = self.keys_of(event);
                let outcome = self.state.apply(read.time, place, event);
                match event {
                    Event::Closed { producer, .. } => drop(self.proposed.remove(producer)),
                    Event::Ticked => {
                        let known = &self.state.producers.known;
                        self.proposed.retain(|producer, _| known.contains_key(producer));
                    }
                    _ => {}
                }
                if self.delivery.is_serving() {
                    self.delivery.applied(now.monotonic, &self.state, event, &keys);
                }
                if let Some(ticket) = tickets.next().flatten() {
                    work.answers.push((ticket, Answer::Committed(outcome)));
                }
            }
        }
        self.state.applied_to(index);
        self.applied_term = term;
        self.consensus.applied(index);
        let own = term == self.consensus.term().0 || self.bugs.has(Bug::ServeBeforeOwnTerm);
        if self.consensus.is_leader() && own && !self.delivery.is_serving() {
            self.proposed.clear();
            self.state.relocated.clear();
            self.delivery.begin(now.monotonic, self.state.next_offset);
            work.regrouped = true;
        }
    }

    /// Keys of the messages that `event` is about, before it changes them. Empty keys unless the order is `key`.
    fn keys_of(&self, event: &Event) -> Vec<(u64, Option<swarmmq_protocol::id::KeyHash>)> {
        if !self.delivery.is_serving() {
            return Vec::new();
        }
        let key_of = |address: &Address, offset: u64| {
            let queue = self.state.queues.get(address).filter(|queue| queue.order == Order::Key)?;
            queue.messages.get(&offset)?.key
        };
        match event {
            Event::Settled { address, ranges, .. } => ranges
                .iter()
                .flat_map(|(first, count)| first.0..first.0 + u64::from(*count))
                .map(|offset| (offset, key_of(address, offset)))
                .collect(),
            Event::Buried { address, offset, .. } => vec![(offset.0, key_of(address, offset.0))],
            Event::Returned { address, items, .. } => {
                items.iter().map(|item| (item.offset.0, key_of(address, item.offset.0))).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn rotten(address: &Address, offset: Offset) -> String {
    format!("message {} of {address} does not match its checksum on disk", offset.0)
}
