//! What a shard remembers. [`State::apply`] is the only writer; running and recovering use nothing else.
//!
//! `apply` is deterministic: it reads its entry and its state. Where the message's bytes lie on this node's disk is
//! handed in beside the event and stays out of digests, because it differs between replicas.

use std::{collections::BTreeMap, time::Duration};

use swarmmq_protocol::{
    envelope,
    error::Code,
    id::{Address, GroupName, Offset, ProducerId, Sequence},
    limits::{BACKOFF_FIRST, BACKOFF_MAX},
    time::WallTime,
};

use super::{
    catalog::Catalog,
    consensus::Conf,
    dedup::{OpenRefusal, Producers, Verdict},
    event::{Cause, Event, Returned},
    queue::{DeadLetter, Group, Message, Queue, Retry},
};
use crate::{
    log::Position,
    node::bug::{Bug, Bugs},
};

/// Where a payload lies that this replica does not have. No segment has this number.
pub const NOWHERE: Position = Position { segment: 0, offset: 0 };

/// What became of consecutive messages of one publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// In the log now, at consecutive offsets from this one.
    New(Offset),
    /// In the log (or skipped) before; the first one's offset if still known.
    Seen(Option<Offset>),
    /// Definitely not taken.
    Refused(Code),
}

/// `count` messages with the same fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedRun {
    /// How many.
    pub count: u32,
    /// Their fate.
    pub placed: Placed,
}

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect, or had taken effect before.
    Done,
    /// It concerned this many messages.
    Count(u64),
    /// The fate of every message of a publish, in order.
    Placed(Vec<PlacedRun>),
    /// Nothing changed.
    Refused(Code),
}

/// Index and term that every group begins with: what comes after it is in the log, what was before never was.
pub const FOUNDING_INDEX: u64 = 1;

/// Bytes of a log segment that are still needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// How many messages point into it.
    pub messages: u64,
    /// Their sealed bytes.
    pub bytes: u64,
}

/// Everything a shard must not forget.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Stamp of the latest entry; never decreases.
    pub time: WallTime,
    /// Index of the latest entry applied.
    pub applied: u64,
    /// Offset of the next message.
    pub next_offset: u64,
    /// The replicas of this shard.
    pub conf: Conf,
    /// Who sent what.
    pub producers: Producers,
    /// Queues by address.
    pub queues: BTreeMap<Address, Queue>,
    /// Cluster facts; empty outside the cluster's own shard.
    pub catalog: Catalog,
    /// Local: which segments hold bytes of existing messages.
    pub(super) live: BTreeMap<u32, Live>,
    /// Local, while recovering: where messages lie that an entry not yet applied again will make.
    pub(super) relocated: BTreeMap<(Address, u64), Position>,
    pub(super) bugs: Bugs,
}

impl PartialEq for State {
    /// Equality of what replicas agree on; places are local.
    fn eq(&self, other: &Self) -> bool {
        self.digest() == other.digest()
    }
}

impl State {
    /// Remembers one event of the entry at `index`, stamped `time`.
    ///
    /// * `body`: where the entry's bytes lie in this node's log; messages are found relative to it.
    /// * Total: every committed event is applicable; what makes no sense any more changes nothing.
    pub fn apply(&mut self, time: WallTime, body: Position, event: &Event) -> Outcome {
        self.time = self.time.max(time);
        match event {
            Event::Opened { producer, epoch, salt, created_at } => {
                match self.producers.open(self.time, *producer, *epoch, *salt, *created_at) {
                    Ok(()) => Outcome::Done,
                    Err(OpenRefusal::Stale) => Outcome::Refused(Code::StaleSession),
                    Err(OpenRefusal::Full) => Outcome::Refused(Code::Limit),
                }
            }
            Event::Closed { producer, epoch } => {
                self.producers.close(*producer, *epoch);
                Outcome::Done
            }
            Event::Skipped { producer, epoch, first, last } => {
                match self.producers.skip(self.time, *producer, *epoch, *first, *last) {
                    Verdict::New => Outcome::Done,
                    Verdict::Seen(_) => Outcome::Refused(Code::Exists),
                    Verdict::Gap => Outcome::Refused(Code::Gap),
                    Verdict::Fenced => Outcome::Refused(Code::Fenced),
                    Verdict::NotOpen => Outcome::Refused(Code::NotOpen),
                }
            }
            Event::Published { messages, at } => Outcome::Placed(self.publish(body, messages, *at)),
            Event::QueueMade { address, order, settings } => {
                self.queues
                    .entry(address.clone())
                    .or_insert_with(|| Queue::new(address.clone(), *order, settings.clone()));
                Outcome::Done
            }
            Event::QueueChanged { address, settings } => match self.queues.get_mut(address) {
                Some(queue) => {
                    queue.settings = settings.clone();
                    self.sweep(address);
                    Outcome::Done
                }
                None => Outcome::Refused(Code::NoSuchAddress),
            },
            Event::QueueRemoved { address } => self.empty(address, true),
            Event::QueuePurged { address } => self.empty(address, false),
            Event::GroupMade { address, group, start } => {
                let next_offset = self.next_offset;
                let Some(queue) = self.queues.get_mut(address) else {
                    return Outcome::Refused(Code::NoSuchAddress);
                };
                let floor = queue.start_offset(*start, next_offset);
                queue.groups.entry(group.clone()).or_insert_with(|| Group { floor, ..Group::default() });
                self.sweep(address);
                Outcome::Done
            }
            Event::GroupRemoved { address, group } => {
                let Some(queue) = self.queues.get_mut(address) else {
                    return Outcome::Refused(Code::NoSuchAddress);
                };
                let Some(removed) = queue.groups.remove(group) else {
                    return Outcome::Refused(Code::NoSuchGroup);
                };
                let lag = queue.lag(&removed);
                self.sweep(address);
                Outcome::Count(lag)
            }
            Event::GroupSought { address, group, start } => self.seek(address, group, *start),
            Event::Horizon { address, group, upto } => {
                if let Some(group) = self.group_mut(address, group) {
                    group.horizon = group.horizon.max(upto.0);
                }
                Outcome::Done
            }
            Event::Settled { address, group, ranges } => {
                for (first, count) in ranges {
                    for offset in first.0..first.0.saturating_add(u64::from(*count)) {
                        self.settle(address, group, offset);
                    }
                }
                if let Some(queue) = self.queues.get_mut(address) {
                    queue.raise_floor(group);
                }
                Outcome::Done
            }
            Event::Returned { address, group, items } => {
                for item in items {
                    self.give_back(address, group, item);
                }
                Outcome::Done
            }
            Event::Buried { address, group, offset, reason } => {
                self.bury(address, group, offset.0, reason);
                Outcome::Done
            }
            Event::Ticked => {
                self.producers.forget(self.time);
                let aging: Vec<Address> = self
                    .queues
                    .values()
                    .filter(|queue| queue.settings.min_age > Duration::ZERO)
                    .map(|queue| queue.address.clone())
                    .collect();
                aging.iter().for_each(|address| self.sweep(address));
                Outcome::Done
            }
            Event::Catalog(event) => self.catalog.apply(self.time, event),
        }
    }

    /// The index up to which everything was applied; set once per entry, with the state, in one record.
    pub(super) fn applied_to(&mut self, index: u64) {
        self.applied = index;
    }

    /// The state of a group that begins with one replica.
    pub fn founded(replica: u64, bugs: Bugs) -> Self {
        Self { applied: FOUNDING_INDEX, conf: Conf::alone(replica), bugs, ..Self::default() }
    }

    /// A committed change of the group took effect.
    pub(super) fn regroup(&mut self, conf: Conf) {
        self.conf = conf;
    }

    /// How many messages' payloads this replica does not have.
    pub fn hole_count(&self) -> u64 {
        self.live.get(&NOWHERE.segment).map_or(0, |live| live.messages)
    }

    /// Messages whose payloads this replica does not have, at most `count`. Cost: O(messages).
    pub fn holes(&self, count: usize) -> Vec<(Address, u64)> {
        if self.hole_count() == 0 {
            return Vec::new();
        }
        let messages = self.queues.values().flat_map(|queue| {
            queue.messages.iter().map(|(offset, message)| (&queue.address, *offset, message.place))
        });
        let holes = messages.filter(|(_, _, place)| *place == NOWHERE);
        holes.take(count).map(|(address, offset, _)| (address.clone(), offset)).collect()
    }

    fn publish(&mut self, body: Position, messages: &[u8], at: u32) -> Vec<PlacedRun> {
        let mut runs: Vec<PlacedRun> = Vec::new();
        let mut rest = messages;
        let mut address: Option<Address> = None;
        while !rest.is_empty() {
            let from = at + (messages.len() - rest.len()) as u32;
            let Ok((sealed, after)) = envelope::split_sealed(rest) else {
                unreachable!("the leader proposes only batches that it has parsed");
            };
            let length = (rest.len() - after.len()) as u32;
            let bytes = &rest[..length as usize];
            rest = after;

            let header = sealed.header();
            let known = address.as_ref().is_some_and(|known| known.as_str() == header.address());
            if !known {
                address =
                    Address::parse(header.address()).ok().filter(|found| self.queues.contains_key(found));
            }
            let mut verdict = self.producers.classify(header.producer(), header.epoch(), header.sequence());
            if verdict == Verdict::Gap && self.bugs.has(Bug::AcceptGaps) {
                self.accept_gap(header.producer(), header.sequence());
                verdict = Verdict::New;
            }
            let placed = match verdict {
                Verdict::Seen(offset) => Placed::Seen(offset),
                Verdict::Gap => Placed::Refused(Code::Gap),
                Verdict::Fenced => Placed::Refused(Code::Fenced),
                Verdict::NotOpen => Placed::Refused(Code::NotOpen),
                Verdict::New if !self.producers.salt_matches(header.producer(), &header.salt()) => {
                    Placed::Refused(Code::NotOpen)
                }
                Verdict::New => match &address {
                    None => Placed::Refused(Code::NoSuchAddress),
                    Some(address) => {
                        let offset = Offset(self.next_offset);
                        self.next_offset += 1;
                        self.producers.take(self.time, header.producer(), header.sequence(), offset);
                        let message = Message {
                            place: Position { segment: body.segment, offset: body.offset + from },
                            length,
                            crc: crate::log::crc32c(bytes),
                            published_at: header.published_at(),
                            key: header.key_hash(),
                            dead: None,
                        };
                        self.add(address.clone(), offset.0, message);
                        Placed::New(offset)
                    }
                },
            };
            extend_runs(&mut runs, placed);
        }
        runs
    }

    fn accept_gap(&mut self, producer: ProducerId, sequence: Sequence) {
        if let Some(known) = self.producers.known.get_mut(&producer) {
            known.last = Sequence(sequence.0 - 1);
        }
    }

    fn add(&mut self, address: Address, offset: u64, mut message: Message) {
        if !self.relocated.is_empty()
            && let Some(place) = self.relocated.remove(&(address.clone(), offset))
        {
            message.place = place;
        }
        let live = self.live.entry(message.place.segment).or_default();
        live.messages += 1;
        live.bytes += u64::from(message.length);
        let queue = self.queues.get_mut(&address).expect("the caller looked the queue up");
        queue.bytes += u64::from(message.length);
        queue.messages.insert(offset, message);
    }

    fn drop_message(&mut self, address: &Address, offset: u64) {
        let Some(message) = self.queues.get_mut(address).and_then(|queue| queue.remove(offset)) else {
            return;
        };
        self.release(&message);
    }

    fn release(&mut self, message: &Message) {
        let live =
            self.live.get_mut(&message.place.segment).expect("every message is counted in its segment");
        live.messages -= 1;
        live.bytes -= u64::from(message.length);
        if live.messages == 0 {
            self.live.remove(&message.place.segment);
        }
    }

    fn group_mut(&mut self, address: &Address, group: &GroupName) -> Option<&mut Group> {
        self.queues.get_mut(address)?.groups.get_mut(group)
    }

    fn settle(&mut self, address: &Address, group: &GroupName, offset: u64) {
        let time = self.time;
        let bugs = self.bugs;
        let Some(queue) = self.queues.get_mut(address) else { return };
        if !queue.settle(group, offset) {
            return;
        }
        let all = queue.settled_by_all(offset) || bugs.has(Bug::DeleteAtFirstSettle);
        let aged = queue.messages.get(&offset).is_some_and(|m| is_aged(time, m, queue.settings.min_age));
        if all && aged {
            self.drop_message(address, offset);
        }
    }

    /// Removes what nobody wants any more and is old enough. Cost: O(messages of the queue).
    fn sweep(&mut self, address: &Address) {
        let time = self.time;
        let Some(queue) = self.queues.get_mut(address) else { return };
        let names: Vec<GroupName> = queue.groups.keys().cloned().collect();
        names.iter().for_each(|name| queue.raise_floor(name));
        let min_age = queue.settings.min_age;
        let gone: Vec<u64> = queue
            .messages
            .iter()
            .filter(|(offset, message)| is_aged(time, message, min_age) && queue.settled_by_all(**offset))
            .map(|(offset, _)| *offset)
            .collect();
        gone.into_iter().for_each(|offset| self.drop_message(address, offset));
    }

    fn empty(&mut self, address: &Address, remove: bool) -> Outcome {
        let Some(queue) = self.queues.get_mut(address) else { return Outcome::Refused(Code::NoSuchAddress) };
        let count = queue.messages.len() as u64;
        let offsets: Vec<u64> = queue.messages.keys().copied().collect();
        offsets.into_iter().for_each(|offset| self.drop_message(address, offset));
        if remove {
            self.queues.remove(address);
        }
        Outcome::Count(count)
    }

    fn seek(&mut self, address: &Address, name: &GroupName, start: super::event::Start) -> Outcome {
        let next_offset = self.next_offset;
        let Some(queue) = self.queues.get_mut(address) else { return Outcome::Refused(Code::NoSuchAddress) };
        let floor = queue.start_offset(start, next_offset);
        let Some(group) = queue.groups.get_mut(name) else { return Outcome::Refused(Code::NoSuchGroup) };
        group.floor = floor;
        group.settled.clear();
        // What lies below the horizon may have been delivered before: it comes back flagged.
        let horizon = group.horizon.min(next_offset);
        let old = std::mem::take(&mut group.retries);
        let again: Vec<u64> =
            queue.messages.range(floor..horizon.max(floor)).map(|(offset, _)| *offset).collect();
        let group = queue.groups.get_mut(name).expect("found above");
        for offset in again {
            let retry = old.get(&offset).copied().unwrap_or_default();
            group.retries.insert(offset, Retry { attempt: retry.attempt.max(1) + 1, ..retry });
        }
        let group = group.clone();
        let lag = queue.lag(&group);
        self.sweep(address);
        Outcome::Count(lag)
    }

    fn give_back(&mut self, address: &Address, name: &GroupName, item: &Returned) {
        let time = self.time;
        let Some(queue) = self.queues.get_mut(address) else { return };
        let attempts_max = queue.settings.attempts_max;
        let in_dead_letters = queue.address.is_dead_letter();
        let offset = item.offset.0;
        let exists = queue.messages.contains_key(&offset);
        let Some(group) = queue.groups.get_mut(name) else { return };
        if !exists || !group.wants(offset) || group.attempt(offset) != item.attempt {
            return;
        }
        let retry = group.retries.entry(offset).or_insert(Retry { attempt: 1, ..Retry::default() });
        retry.attempt = retry.attempt.saturating_add(1);
        if item.cause != Cause::Released {
            retry.failures = retry.failures.saturating_add(1);
        }
        let failures = retry.failures;
        retry.not_before = match item.cause {
            Cause::Released => time,
            Cause::Refused { delay: Some(delay) } => time.plus(delay),
            Cause::Refused { delay: None } | Cause::Expired => time.plus(back_off(failures, offset)),
        };
        if failures >= attempts_max && !in_dead_letters && item.cause != Cause::Released {
            let last = match item.cause {
                Cause::Expired => "the lease ran out".to_owned(),
                _ if item.reason.is_empty() => "refused by the consumer".to_owned(),
                _ => item.reason.clone(),
            };
            let reason = format!("{failures} failed attempts, the last: {last}");
            self.bury(address, name, offset, &reason);
        }
    }

    /// Moves `offset` out of the group's way into `ADDRESS.dlq` of this shard; the bytes stay where they are.
    fn bury(&mut self, address: &Address, name: &GroupName, offset: u64, reason: &str) {
        let Some(queue) = self.queues.get_mut(address) else { return };
        if address.is_dead_letter() {
            return;
        }
        let Some(message) = queue.messages.get(&offset).cloned() else { return };
        let Some(group) = queue.groups.get_mut(name) else { return };
        if !group.wants(offset) {
            return;
        }
        let Some(dead_address) = address.dead_letter() else { return };
        group.dead_lettered += 1;
        let settings = queue.settings.clone();
        let order = queue.order;
        self.queues
            .entry(dead_address.clone())
            .or_insert_with(|| Queue::new(dead_address.clone(), order, settings.for_dead_letters()));
        let dead = DeadLetter { group: name.clone(), origin: Offset(offset), reason: reason.to_owned() };
        let buried = Message { dead: Some(Box::new(dead)), ..message };
        let next = self.next_offset;
        self.next_offset += 1;
        self.add(dead_address, next, buried);
        self.settle(address, name, offset);
        if let Some(queue) = self.queues.get_mut(address) {
            queue.raise_floor(name);
        }
    }

    /// Points a message at a copy of its bytes elsewhere in the log, so that its old segment can go. Local.
    pub(super) fn moved(&mut self, address: &Address, offset: u64, place: Position) {
        let Some(message) = self.queues.get_mut(address).and_then(|queue| queue.messages.get_mut(&offset))
        else {
            return;
        };
        let old = message.clone();
        message.place = place;
        let live = self.live.entry(place.segment).or_default();
        live.messages += 1;
        live.bytes += u64::from(old.length);
        self.release(&old);
    }

    /// Learns from the log where a copy of a message lies. The message may exist already, or come with an entry that is
    /// applied later; where it was before may be gone.
    pub(super) fn relocate(&mut self, address: Address, offset: u64, place: Position) {
        if self.queues.get(&address).is_some_and(|queue| queue.messages.contains_key(&offset)) {
            self.moved(&address, offset, place);
        } else {
            self.relocated.insert((address, offset), place);
        }
    }

    /// Segments that hold bytes of existing messages, in order.
    pub fn live_segments(&self) -> &BTreeMap<u32, Live> {
        &self.live
    }

    /// Everything that must hold, checked where debug assertions are on.
    pub fn check(&self) {
        let mut live: BTreeMap<u32, Live> = BTreeMap::new();
        for queue in self.queues.values() {
            queue.check(self.next_offset);
            for message in queue.messages.values() {
                let entry = live.entry(message.place.segment).or_default();
                entry.messages += 1;
                entry.bytes += u64::from(message.length);
            }
        }
        assert_eq!(live, self.live, "bytes counted per segment");
    }
}

fn is_aged(time: WallTime, message: &Message, min_age: Duration) -> bool {
    min_age.is_zero() || time.since(message.published_at) >= min_age
}

/// Pause before the next delivery after `failures` failures: 1 s doubling to 60 s, spread by 20 % with the offset.
fn back_off(failures: u32, offset: u64) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(BACKOFF_MAX);
    let spread = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(failures)) % 401;
    doubled.mul_f64(0.8 + spread as f64 / 1000.0)
}

fn extend_runs(runs: &mut Vec<PlacedRun>, placed: Placed) {
    if let Some(run) = runs.last_mut() {
        let next = match run.placed {
            Placed::New(first) => Placed::New(Offset(first.0 + u64::from(run.count))),
            Placed::Seen(Some(first)) => Placed::Seen(Some(Offset(first.0 + u64::from(run.count)))),
            other => other,
        };
        if next == placed {
            run.count += 1;
            return;
        }
    }
    runs.push(PlacedRun { count: 1, placed });
}
