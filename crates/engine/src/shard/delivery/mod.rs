//! Who gets which message next, and until when: groups, leases, credit, keys, re-claims, redelivery.
//!
//! All of it is volatile and belongs to one reign of one leader; what must survive lies in [`super::state`]. A first
//! delivery writes nothing by itself: it stays below the group's logged horizon. What a new leader finds unsettled
//! below the horizon is *doubtful*: it may be held by a consumer, so it waits for re-claims before it goes out again,
//! flagged as a later attempt.
//!
//! Invariant: at most one lease per (group, message), and with order `key` at most one per (group, key).

mod deliverer;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem::Discriminant,
    ops::Bound::{Excluded, Included, Unbounded},
    time::Duration,
};

use bytes::Bytes;
use swarmmq_protocol::{
    id::{Address, Attempt, ConsumerId, GroupName, KeyHash, NodeId, Offset},
    limits::{LEASE_TOTAL_MAX, RECLAIM_WINDOW},
    time::Instant,
};

use self::deliverer::{Looked, Round};
use super::{
    cache::Cache,
    credit::Credits,
    event::{Cause, Event, Order, Returned},
    queue::Queue,
    state::State,
};
use crate::{
    log::Position,
    node::bug::{Bug, Bugs},
};

/// Offsets of one group that wait for their key, at most; scanning stops there.
const WAITING_FOR_KEY_MAX: usize = 65_536;
/// Consumers of one group whose youngest subscription is remembered, before those that are not fed and hold nothing are forgotten.
const CONSUMERS_RANKED_MAX: usize = 4096;
/// Messages returned in one event, at most.
const RETURNED_MAX: usize = 1024;

/// One subscription of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriberId(pub u64);

/// A message on its way to a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// To whom.
    pub subscriber: SubscriberId,
    /// Which.
    pub offset: Offset,
    /// Which delivery of it.
    pub attempt: Attempt,
    /// Length of its lease.
    pub lease: Duration,
    /// Why it is a dead letter; empty if it is none.
    pub reason: String,
    /// As its producer sealed it.
    pub sealed: Bytes,
}

/// Where a subscription has its connection: the node, and how that node numbers it. It stays the same when the node itself
/// was out of reach and joins again.
pub type Route = (NodeId, u64);

/// A consumer that takes part in a group, for the first time or again.
#[derive(Clone, Copy, Debug)]
pub struct Joining<'a> {
    /// Its subscription.
    pub subscriber: SubscriberId,
    /// By way of whom.
    pub route: Route,
    /// Who it is, over all reconnects.
    pub consumer: ConsumerId,
    /// Rises with every subscription of this consumer, over all its connections. Joins travel on different ways: one that
    /// comes after a younger one speaks for a connection that is gone, without its node knowing it.
    pub order: u64,
    /// Of which address.
    pub address: &'a Address,
    /// In which group.
    pub group: &'a GroupName,
    /// What it holds.
    pub held: &'a [(Offset, Attempt)],
}

/// A message that a consumer of `group` has, or should have.
#[derive(Clone, Copy, Debug)]
pub struct Leased<'a> {
    /// Of which address.
    pub address: &'a Address,
    /// In which group.
    pub group: &'a GroupName,
    /// Which message.
    pub offset: Offset,
    /// Which delivery of it.
    pub attempt: Attempt,
    /// Whose it is.
    pub consumer: ConsumerId,
}

/// A lease that ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Whose it was.
    pub subscriber: SubscriberId,
    /// Of which message.
    pub offset: Offset,
    /// Which delivery of it.
    pub attempt: Attempt,
}

/// What deliveries need before they can go on.
#[derive(Debug, Default)]
pub struct Needs {
    /// To be proposed.
    pub events: Vec<Event>,
    /// Leases that ran out.
    pub expired: Vec<Expired>,
    /// To be read from the log.
    pub reads: Vec<(Position, u32)>,
    /// Bytes that failed their checksum: they were not served.
    pub rotten: Vec<(Address, Offset)>,
}

/// What a consumer asks for one message that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done with it.
    Ack,
    /// Try again later.
    Nack {
        /// `None`: the default back-off.
        delay: Option<Duration>,
        /// For the dead-letter queue, if this was the last attempt.
        reason: String,
    },
    /// Not done yet.
    Extend(Duration),
    /// Never again.
    DeadLetter {
        /// For the dead-letter queue.
        reason: String,
    },
    /// Given back unprocessed.
    Release,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    subscriber: SubscriberId,
    route: Route,
    consumer: ConsumerId,
    attempt: Attempt,
    since: Instant,
    expires_at: Instant,
    /// It was granted in an earlier reign, and claimed in this one.
    is_claimed: bool,
    /// A settlement of this kind was proposed; the lease no longer runs out.
    settling: Option<Discriminant<Settlement>>,
}

#[derive(Debug, Default)]
struct KeyLock {
    holder: u64,
    waiting: VecDeque<u64>,
}

/// One group at work.
#[derive(Debug)]
struct Run {
    subscribers: VecDeque<SubscriberId>,
    /// First deliveries are looked for from here.
    next: u64,
    /// There was nothing more to find for a first delivery when the shard's next offset was this.
    looked_to: Option<u64>,
    /// Wanted again and free to go.
    ready: BTreeSet<u64>,
    /// Wanted again later.
    delayed: BTreeSet<(Instant, u64)>,
    leases: BTreeMap<u64, Lease>,
    /// When leases run out; entries of leases that are gone or were extended are stale and skipped.
    deadlines: BTreeSet<(Instant, u64)>,
    /// Perhaps held by a consumer of the previous reign.
    doubtful: BTreeSet<u64>,
    reclaim_until: Instant,
    /// Being returned: proposed, not committed.
    leaving: BTreeSet<u64>,
    keys: BTreeMap<KeyHash, KeyLock>,
    waiting_for_key: usize,
    horizon_asked: u64,
    /// The youngest subscription of each consumer that joined, and its route.
    youngest: BTreeMap<ConsumerId, (u64, Route)>,
}

/// How a join stands to those of the same consumer before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rank {
    /// A new subscription: the consumer itself says what it holds.
    Youngest,
    /// The youngest one joined again, by its node.
    Again,
    /// The consumer has left it.
    Older,
}

impl Run {
    fn rank(
        &mut self,
        members: &BTreeMap<SubscriberId, Member>,
        consumer: ConsumerId,
        order: u64,
        route: Route,
    ) -> Rank {
        match self.youngest.get(&consumer) {
            Some((known, _)) if order < *known => return Rank::Older,
            Some(known) if *known == (order, route) => return Rank::Again,
            _ => {}
        }
        if self.youngest.len() >= CONSUMERS_RANKED_MAX {
            // Who is not fed and holds nothing has nothing to lose by a late join; who is fed would be fed no more.
            let fed = self.subscribers.iter().map(|subscriber| members[subscriber].consumer);
            let concerned: BTreeSet<ConsumerId> =
                fed.chain(self.leases.values().map(|lease| lease.consumer)).collect();
            self.youngest.retain(|known, _| concerned.contains(known));
        }
        self.youngest.insert(consumer, (order, route));
        Rank::Youngest
    }

    fn lock_key(&mut self, key: KeyHash, offset: u64) -> bool {
        match self.keys.get_mut(&key) {
            None => {
                self.keys.insert(key, KeyLock { holder: offset, waiting: VecDeque::new() });
                true
            }
            Some(lock) if lock.holder == offset => true,
            Some(lock) => {
                lock.waiting.push_back(offset);
                self.waiting_for_key += 1;
                false
            }
        }
    }

    fn forget(&mut self, offset: u64, key: Option<KeyHash>) {
        if let Some(lease) = self.leases.remove(&offset) {
            self.deadlines.remove(&(lease.expires_at, offset));
        }
        self.leaving.remove(&offset);
        self.doubtful.remove(&offset);
        self.ready.remove(&offset);
        let Some(key) = key else { return };
        let Some(lock) = self.keys.get_mut(&key) else { return };
        if lock.holder != offset {
            return;
        }
        match lock.waiting.pop_front() {
            Some(next) => {
                self.waiting_for_key -= 1;
                lock.holder = next;
                if !self.doubtful.contains(&next) && !self.leaving.contains(&next) {
                    self.ready.insert(next);
                }
            }
            None => {
                self.keys.remove(&key);
            }
        }
    }

    fn holds_key(&self, offset: u64, key: Option<KeyHash>) -> bool {
        key.is_none_or(|key| self.keys.get(&key).is_none_or(|lock| lock.holder == offset))
    }
}

/// Who a subscription is for.
#[derive(Clone, Debug)]
struct Member {
    address: Address,
    group: GroupName,
    consumer: ConsumerId,
    route: Route,
}

/// All groups of one shard at work under one leader.
#[derive(Debug, Default)]
pub struct Delivery {
    runs: BTreeMap<(Address, GroupName), Run>,
    subscribers: BTreeMap<SubscriberId, Member>,
    /// When this reign began and the offset next to be given out then; `None`: this replica does not lead.
    reign: Option<(Instant, u64)>,
    /// How far past the next delivery the horizon is logged.
    horizon_ahead: u64,
    /// The group that was sent something last before what may be on its way to a node was. The one after it comes first next
    /// time: where many share that, each has its turn.
    served_last: Option<(Address, GroupName)>,
    bugs: Bugs,
}

impl Delivery {
    /// Nobody is served yet.
    pub fn new(horizon_ahead: u64, bugs: Bugs) -> Self {
        Self { horizon_ahead, bugs, ..Self::default() }
    }

    /// A reign begins: everything it must know was applied.
    pub fn begin(&mut self, now: Instant, next_offset: u64) {
        self.runs.clear();
        self.subscribers.clear();
        self.reign = Some((now, next_offset));
    }

    /// Whether a reign is under way.
    pub fn is_serving(&self) -> bool {
        self.reign.is_some()
    }

    /// The reign is over: leases of it are void.
    pub fn end(&mut self) {
        *self = Self::new(self.horizon_ahead, self.bugs);
    }

    /// Lets `subscriber` take part in its group. Returns which of the messages it says it holds are not its any more.
    ///
    /// What was leased to this consumer and is not among `held` never reached it: its connection broke on the way. Such
    /// leases are given back at once instead of running out. Where an older subscription of it, or the youngest once more, is
    /// joined by its node, only what was sent by way of that counts: the consumer may hold what came another way. Only the
    /// youngest is fed.
    pub fn subscribe(
        &mut self,
        now: Instant,
        state: &State,
        joining: &Joining<'_>,
        needs: &mut Needs,
    ) -> Vec<Offset> {
        let Joining { subscriber, route, consumer, order, address, group, held } = *joining;
        let mut lost = Vec::new();
        let name = (address.clone(), group.clone());
        let Some(queue) = state.queues.get(address).filter(|queue| queue.groups.contains_key(group)) else {
            return held.iter().map(|(offset, _)| *offset).collect();
        };
        if !self.runs.contains_key(&name) {
            let run = self.start(queue, group);
            self.runs.insert(name.clone(), run);
        }
        let run = self.runs.get_mut(&name).expect("inserted above if it was missing");
        let rank = run.rank(&self.subscribers, consumer, order, route);
        let heeds_elders = self.bugs.has(Bug::HeedElders);
        if rank == Rank::Youngest && !heeds_elders {
            // What went by a way that the consumer has left would reach nobody, and nobody else until its lease runs out.
            let members = &self.subscribers;
            run.subscribers.retain(|other| members[other].consumer != consumer);
        }
        let counts = rank != Rank::Older || heeds_elders;
        if counts {
            run.subscribers.push_back(subscriber);
        }
        self.subscribers.insert(subscriber, Member { address: name.0, group: name.1, consumer, route });
        let durable = &queue.groups[group];
        for (offset, attempt) in held {
            let kept = match run.leases.get_mut(&offset.0) {
                Some(lease) if lease.consumer == consumer && lease.attempt == *attempt => {
                    if rank != Rank::Older {
                        lease.subscriber = subscriber;
                        lease.route = route;
                    }
                    true
                }
                Some(_) => false,
                // Claimed only by a way that the consumer has left, nobody may have it: it waits like what nobody claims.
                None => {
                    counts
                        && run.doubtful.contains(&offset.0)
                        && !run.leaving.contains(&offset.0)
                        && durable.attempt(offset.0) == *attempt
                }
            };
            if !kept {
                lost.push(*offset);
            } else if run.doubtful.remove(&offset.0) {
                let expires_at = now + queue.settings.lease;
                let (attempt, since) = (*attempt, now);
                let (is_claimed, settling) = (true, None);
                let lease =
                    Lease { subscriber, route, consumer, attempt, since, expires_at, is_claimed, settling };
                run.leases.insert(offset.0, lease);
                run.deadlines.insert((expires_at, offset.0));
            }
        }
        // Whoever holds an earlier attempt has not got this one.
        let known: BTreeSet<(u64, Attempt)> =
            held.iter().map(|(offset, attempt)| (offset.0, *attempt)).collect();
        let astray = |(offset, lease): &(&u64, &Lease)| {
            let mine = rank == Rank::Youngest || lease.route == route;
            let is_known = known.contains(&(**offset, lease.attempt));
            lease.consumer == consumer && mine && lease.settling.is_none() && !is_known
        };
        let astray: Vec<(u64, Lease)> =
            run.leases.iter().filter(astray).map(|(offset, lease)| (*offset, *lease)).collect();
        let mut items = Vec::new();
        for (offset, lease) in astray {
            run.leases.remove(&offset);
            run.deadlines.remove(&(lease.expires_at, offset));
            // What one subscription claimed and a younger one does not know is as if nobody had claimed it: until the time for
            // claims is over, who had it may still be at work on it.
            if lease.is_claimed && now < run.reclaim_until {
                run.doubtful.insert(offset);
                continue;
            }
            run.leaving.insert(offset);
            items.push(Returned {
                offset: Offset(offset),
                attempt: lease.attempt,
                cause: Cause::Released,
                reason: String::new(),
            });
        }
        let chunks = items.chunks(RETURNED_MAX);
        needs.events.extend(chunks.map(|items| Event::Returned {
            address: address.clone(),
            group: group.clone(),
            items: items.to_vec(),
        }));
        lost
    }

    fn start(&self, queue: &Queue, name: &GroupName) -> Run {
        let (began, next_offset) = self.reign.expect("only a leader takes subscribers");
        let group = &queue.groups[name];
        let next = group.horizon.min(next_offset).max(group.floor);
        let reclaim_until =
            if self.bugs.has(Bug::SkipReclaimWindow) { began } else { began + RECLAIM_WINDOW };
        let mut run = Run {
            subscribers: VecDeque::new(),
            next,
            looked_to: None,
            ready: BTreeSet::new(),
            delayed: BTreeSet::new(),
            leases: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            reclaim_until,
            leaving: BTreeSet::new(),
            keys: BTreeMap::new(),
            waiting_for_key: 0,
            horizon_asked: group.horizon,
            youngest: BTreeMap::new(),
        };
        for (offset, message) in queue.messages.range(group.floor..next) {
            if group.wants(*offset) {
                run.doubtful.insert(*offset);
                if let (Order::Key, Some(key)) = (queue.order, message.key) {
                    run.lock_key(key, *offset);
                }
            }
        }
        run
    }

    /// `subscriber` takes part no more. What it holds stays leased until it is settled, re-claimed or runs out.
    pub fn unsubscribe(&mut self, subscriber: SubscriberId) {
        let Some(Member { address, group, .. }) = self.subscribers.remove(&subscriber) else { return };
        if let Some(run) = self.runs.get_mut(&(address, group)) {
            run.subscribers.retain(|other| *other != subscriber);
        }
    }

    /// Judges what `subscriber` wants done with a message. `Err`: the lease is not its any more, nothing changes.
    /// `Ok(None)`: done at once. `Ok(Some(event))`: to be proposed; the lease waits for it.
    pub fn settle(
        &mut self,
        now: Instant,
        subscriber: SubscriberId,
        offset: Offset,
        attempt: Attempt,
        settlement: &Settlement,
    ) -> Result<Option<Event>, LeaseLost> {
        let Some(Member { address, group, consumer, .. }) = self.subscribers.get(&subscriber).cloned() else {
            return Err(LeaseLost);
        };
        let run = self.runs.get_mut(&(address.clone(), group.clone())).ok_or(LeaseLost)?;
        let lease = match run.leases.get_mut(&offset.0) {
            Some(lease) if lease.consumer == consumer && lease.attempt == attempt => lease,
            _ if self.bugs.has(Bug::AckWithoutLease) => {
                return Ok(Some(Event::Settled { address, group, ranges: vec![(offset, 1)] }));
            }
            _ => return Err(LeaseLost),
        };
        if let Settlement::Extend(duration) = settlement {
            if lease.settling.is_some() {
                return Ok(None);
            }
            run.deadlines.remove(&(lease.expires_at, offset.0));
            // Claimed again, it may last longer than its consumer knows: a wish to keep it ends nothing early.
            let wished = (now + *duration).min(lease.since + LEASE_TOTAL_MAX);
            lease.expires_at = lease.expires_at.max(wished);
            run.deadlines.insert((lease.expires_at, offset.0));
            return Ok(None);
        }
        // The same wish again is the same wish; another one comes too late.
        match lease.settling {
            None => {
                lease.settling = Some(std::mem::discriminant(settlement));
                run.deadlines.remove(&(lease.expires_at, offset.0));
            }
            Some(kind) if kind == std::mem::discriminant(settlement) => {}
            Some(_) => return Err(LeaseLost),
        }
        let returned = |cause, reason: &str| Event::Returned {
            address: address.clone(),
            group: group.clone(),
            items: vec![Returned { offset, attempt, cause, reason: reason.to_owned() }],
        };
        Ok(Some(match settlement {
            Settlement::Ack => Event::Settled { address, group, ranges: vec![(offset, 1)] },
            Settlement::Nack { delay, reason } => returned(Cause::Refused { delay: *delay }, reason),
            Settlement::Release => returned(Cause::Released, ""),
            // Dead letters do not dead-letter again, nor does what has no room for the longer name: it comes back.
            Settlement::DeadLetter { reason }
                if address.is_dead_letter() || address.dead_letter().is_none() =>
            {
                returned(Cause::Refused { delay: None }, reason)
            }
            Settlement::DeadLetter { reason } => {
                Event::Buried { address, group, offset, reason: reason.clone() }
            }
            Settlement::Extend(_) => unreachable!("answered above"),
        }))
    }

    /// An event was applied: what it settled or returned is looked at anew. `key_of` tells keys of messages that
    /// existed before.
    pub fn applied(&mut self, now: Instant, state: &State, event: &Event, keys: &[(u64, Option<KeyHash>)]) {
        match event {
            Event::Settled { address, group, .. } | Event::Buried { address, group, .. } => {
                let Some(run) = self.runs.get_mut(&(address.clone(), group.clone())) else { return };
                for (offset, key) in keys {
                    run.forget(*offset, *key);
                }
            }
            Event::Returned { address, group, items } => {
                let Some(run) = self.runs.get_mut(&(address.clone(), group.clone())) else { return };
                let durable = state.queues.get(address).and_then(|queue| queue.groups.get(group));
                for (item, (_, key)) in items.iter().zip(keys) {
                    let offset = item.offset.0;
                    let lease = run.leases.get(&offset);
                    let ended = lease.is_some_and(|lease| lease.attempt == item.attempt);
                    if !ended && !run.leaving.contains(&offset) {
                        // A repeated return: the first one counted.
                        continue;
                    }
                    let retry = durable.and_then(|durable| durable.retries.get(&offset));
                    let Some(retry) = retry else {
                        run.forget(offset, *key);
                        continue;
                    };
                    if let Some(lease) = run.leases.remove(&offset) {
                        run.deadlines.remove(&(lease.expires_at, offset));
                    }
                    run.leaving.remove(&offset);
                    run.doubtful.remove(&offset);
                    if !run.holds_key(offset, *key) {
                        continue;
                    }
                    let delay = retry.not_before.since(state.time);
                    if delay.is_zero() {
                        run.ready.insert(offset);
                    } else {
                        run.delayed.insert((now + delay, offset));
                    }
                }
            }
            Event::QueueRemoved { address } | Event::QueuePurged { address } => {
                self.restart(state, |(of, _)| of == address);
            }
            Event::GroupRemoved { address, group } | Event::GroupSought { address, group, .. } => {
                self.restart(state, |(of, name)| of == address && name == group);
            }
            _ => {}
        }
    }

    /// Begins the runs that `which` names anew: their leases are void, nothing is doubtful.
    fn restart(&mut self, state: &State, which: impl Fn(&(Address, GroupName)) -> bool) {
        let names: Vec<_> = self.runs.keys().filter(|name| which(name)).cloned().collect();
        for name in names {
            let old = self.runs.remove(&name).expect("listed above");
            let Some(queue) = state.queues.get(&name.0) else { continue };
            let Some(group) = queue.groups.get(&name.1) else { continue };
            let mut run = self.start(queue, &name.1);
            // Everything is flagged by its attempt already, so nothing needs to wait for re-claims.
            run.doubtful.clear();
            run.keys.clear();
            run.waiting_for_key = 0;
            let next = run.next;
            for offset in group.retries.keys().filter(|offset| **offset < next) {
                let key = queue.messages.get(offset).and_then(|message| message.key);
                let free = match key {
                    Some(key) if queue.order == Order::Key => run.lock_key(key, *offset),
                    _ => true,
                };
                if free {
                    run.ready.insert(*offset);
                }
            }
            run.subscribers = old.subscribers;
            run.youngest = old.youngest;
            self.runs.insert(name, run);
        }
    }

    /// Time passed: leases that ran out and doubtful messages nobody re-claimed go back, delayed ones become ready.
    pub fn wake(&mut self, now: Instant, state: &State, needs: &mut Needs) {
        for ((address, group), run) in &mut self.runs {
            while let Some((at, offset)) = run.delayed.first().copied()
                && at <= now
            {
                run.delayed.pop_first();
                run.ready.insert(offset);
            }
            let mut items = Vec::new();
            while let Some((at, offset)) = run.deadlines.first().copied()
                && at <= now
                && items.len() < RETURNED_MAX
            {
                run.deadlines.pop_first();
                let lease = run.leases.remove(&offset).expect("a deadline goes with its lease");
                run.leaving.insert(offset);
                let (subscriber, attempt) = (lease.subscriber, lease.attempt);
                needs.expired.push(Expired { subscriber, offset: Offset(offset), attempt });
                items.push(Returned {
                    offset: Offset(offset),
                    attempt,
                    cause: Cause::Expired,
                    reason: String::new(),
                });
            }
            if now >= run.reclaim_until && !run.doubtful.is_empty() {
                let durable = state.queues.get(address).and_then(|queue| queue.groups.get(group));
                while items.len() < RETURNED_MAX
                    && let Some(durable) = durable
                    && let Some(offset) = run.doubtful.pop_first()
                {
                    run.leaving.insert(offset);
                    items.push(Returned {
                        offset: Offset(offset),
                        attempt: durable.attempt(offset),
                        cause: Cause::Released,
                        reason: String::new(),
                    });
                }
            }
            if !items.is_empty() {
                needs.events.push(Event::Returned { address: address.clone(), group: group.clone(), items });
            }
        }
    }

    /// When [`Delivery::wake`] has something to do next.
    pub fn next_wake(&self) -> Option<Instant> {
        self.runs
            .values()
            .flat_map(|run| {
                let doubtful = (!run.doubtful.is_empty()).then_some(run.reclaim_until);
                let delayed = run.delayed.first().map(|(at, _)| *at);
                let deadline = run.deadlines.first().map(|(at, _)| *at);
                [doubtful, delayed, deadline]
            })
            .flatten()
            .min()
    }

    /// Leases what can go out now to whoever has credit.
    pub fn deliver(
        &mut self,
        now: Instant,
        state: &State,
        cache: &Cache,
        credits: &mut Credits,
        out: &mut Vec<Delivered>,
        needs: &mut Needs,
    ) {
        let (bugs, ahead, members) = (self.bugs, self.horizon_ahead, &self.subscribers);
        let round = Round { now, state, cache, ahead, bugs, members };
        let last = self.served_last.take();
        let served = &mut self.served_last;
        // Those who can go on after their turn have others, without anybody else being looked at.
        let mut again: VecDeque<(Address, GroupName)> = VecDeque::new();
        let mut serve = |key: &(Address, GroupName), run: &mut Run| {
            let looked = round.turn(key, run, credits, out, needs);
            if looked != Looked::Nothing && credits.has_full_window() {
                *served = Some(key.clone());
            }
            looked == Looked::TurnOver
        };
        let mut first = |(key, run): (&(Address, GroupName), &mut Run)| {
            if serve(key, run) {
                again.push_back(key.clone());
            }
        };
        if let Some(last) = &last {
            let behind = self.runs.range_mut::<(Address, GroupName), _>((Excluded(last), Unbounded));
            behind.for_each(&mut first);
            self.runs.range_mut::<(Address, GroupName), _>((Unbounded, Included(last))).for_each(&mut first);
        } else {
            self.runs.iter_mut().for_each(&mut first);
        }
        while let Some(key) = again.pop_front() {
            let run = self.runs.get_mut(&key).expect("it had a turn just now");
            if serve(&key, run) {
                again.push_back(key);
            }
        }
        if self.served_last.is_none() && credits.has_full_window() {
            self.served_last = last;
        }
    }

    /// Whether `group` has nothing but settlements under way: all of its messages below `next_offset` went out and are
    /// being settled, so nobody waits for what settlements free.
    pub fn is_drained(&self, address: &Address, group: &GroupName, next_offset: u64) -> bool {
        self.runs.get(&(address.clone(), group.clone())).is_some_and(|run| {
            // Leases that are being settled have no deadline.
            run.deadlines.is_empty()
                && run.ready.is_empty()
                && run.doubtful.is_empty()
                && run.waiting_for_key == 0
                && run.looked_to == Some(next_offset)
        })
    }

    /// Whether `group` has a subscriber now.
    pub fn has_consumers(&self, address: &Address, group: &GroupName) -> bool {
        self.runs.get(&(address.clone(), group.clone())).is_some_and(|run| !run.subscribers.is_empty())
    }

    /// What is leased and not being settled, for those who look at it from outside.
    pub fn leases(&self) -> impl Iterator<Item = Leased<'_>> {
        self.runs.iter().flat_map(|((address, group), run)| {
            let open = run.leases.iter().filter(|(_, lease)| lease.settling.is_none());
            open.map(move |(offset, lease)| Leased {
                address,
                group,
                offset: Offset(*offset),
                attempt: lease.attempt,
                consumer: lease.consumer,
            })
        })
    }

    /// Messages leased right now to consumers of `group`.
    pub fn leased(&self, address: &Address, group: &GroupName) -> u64 {
        self.runs.get(&(address.clone(), group.clone())).map_or(0, |run| run.leases.len() as u64)
    }
}

/// The lease is not the consumer's any more: it ran out, or the message was settled or given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseLost;
