//! Consuming, where the consumers are: subscriptions fed by the leaders of their shards, credit shared out among them,
//! settlements on their way to whoever leads.
//!
//! When a leader is lost, what its consumers hold is claimed again at the next one before anything is delivered there
//! anew; the consumers notice nothing but leases that could not be kept.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use swarmmq_protocol::{
    error::{Code, Outcome as Fate},
    frame::{
        Answer as Reply, Body, Credit, DeliverHeader, DeliverWriter, Held, LeaseLost, Peek, Peeked, Settle,
        SettleAction, SettleItem, Settled, SettledRun, Subscribe, Subscribed,
    },
    id::{Address, Attempt, ConsumerId, GroupName, NodeId, Offset, ShardId, Term},
    limits::BATCH_MESSAGES_MAX,
    time::Instant,
};

use super::{ConnectionId, Node, Now, QUESTIONS_MAX, ask::Purpose, letter::Parcel, question::Question};
use crate::shard::{Answer, delivery::SubscriberId};

/// Bytes of one deliver frame after which a new one begins.
const DELIVER_FRAME_BYTES: usize = 1 << 20;

/// Where a subscription gets the messages of one shard from.
#[derive(Debug, Default)]
struct Feed {
    /// Who feeds it, in which reign; `None`: nobody now.
    from: Option<(NodeId, Term)>,
    /// A question is under way that asks to be fed.
    joining: bool,
}

/// What one leader may still send, as far as it was told.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    messages: i64,
    bytes: i64,
}

/// One message that waits here for room.
#[derive(Debug)]
struct Parked {
    index: usize,
    term: Term,
    parcel: Parcel,
    since: Instant,
}

/// One subscription of one connection.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) connection: ConnectionId,
    /// As its connection numbers it.
    number: u32,
    consumer: ConsumerId,
    address: Address,
    group: GroupName,
    feeds: BTreeMap<usize, Feed>,
    /// What the client was sent and has not settled, and what waits here for room.
    held: BTreeMap<(usize, u64), Attempt>,
    /// What came before the client had room for it: with more leaders than credit, each may send one.
    parked: VecDeque<Parked>,
    /// What the client can take.
    room: Share,
    shares: BTreeMap<NodeId, Share>,
    /// The number of the request that asked for it: a consumer's rise, over all its connections.
    order: u64,
    /// The request to answer when all feeds are joined for the first time, and what was lost until then.
    opening: Option<(u64, Vec<(ShardId, Offset)>)>,
}

/// One settle frame that waits for its shards.
#[derive(Debug)]
pub(super) struct PendingFrame {
    connection: ConnectionId,
    request: u64,
    subscriber: SubscriberId,
    items: Vec<(usize, Offset, Attempt, bool)>,
    results: Vec<(Fate, Option<Code>)>,
    outstanding: usize,
}

impl Subscriber {
    /// What a leader of the shard at `index` is told to be held.
    pub(super) fn held_in(&self, index: usize) -> Vec<(Offset, Attempt)> {
        let held = self.held.range((index, 0)..=(index, u64::MAX));
        held.map(|((_, offset), attempt)| (Offset(*offset), *attempt)).collect()
    }
}

impl Node {
    /// Everything that the subscription needs exists: its shards are asked to feed it.
    pub(super) fn open_feeds(&mut self, now: Now, connection: ConnectionId, request: u64, frame: &Subscribe) {
        if !self.connections.get(&connection).is_some_and(super::connection::Connection::is_ready) {
            return;
        }
        if self.subscription(connection, frame.subscription).is_some() {
            // Two subscriptions under one number were asked for at once; this one came second.
            self.fail(connection, request, Code::Exists, "this subscription number is in use");
            return;
        }
        let Some(entry) = self.cluster_shard().state().catalog.addresses.get(&frame.address) else {
            self.fail(connection, request, Code::NoSuchAddress, "the address was removed meanwhile");
            return;
        };
        let shards = self.shards_of(&frame.address, entry.order);
        let known: Vec<ShardId> = shards.iter().map(|index| self.shards[*index].id()).collect();
        let foreign = frame.held.iter().filter(|held| !known.contains(&held.shard));
        let lost = foreign.map(|held| (held.shard, held.offset)).collect();
        let mut held = BTreeMap::new();
        for (index, shard) in shards.iter().zip(&known) {
            let of_shard = frame.held.iter().filter(|held| held.shard == *shard);
            held.extend(of_shard.map(|held| ((*index, held.offset.0), held.attempt)));
        }
        let id = SubscriberId(self.number());
        let subscriber = Subscriber {
            connection,
            number: frame.subscription,
            consumer: frame.consumer,
            address: frame.address.clone(),
            group: frame.group.clone(),
            feeds: shards.iter().map(|index| (*index, Feed::default())).collect(),
            held,
            parked: VecDeque::new(),
            room: Share {
                messages: i64::from(frame.credit_messages),
                bytes: i64::try_from(frame.credit_bytes).unwrap_or(i64::MAX),
            },
            shares: BTreeMap::new(),
            order: request,
            opening: Some((request, lost)),
        };
        self.subscribers.insert(id, subscriber);
        let state = self.connections.get_mut(&connection).expect("looked at above");
        state.subscriptions.insert(frame.subscription, id);
        for index in shards {
            self.join(now, id, index);
        }
    }

    fn join(&mut self, now: Now, id: SubscriberId, index: usize) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        let Some(feed) = subscriber.feeds.get_mut(&index) else { return };
        feed.from = None;
        if std::mem::replace(&mut feed.joining, true) {
            return;
        }
        let question = Question::Join {
            subscriber: id.0,
            consumer: subscriber.consumer,
            order: subscriber.order,
            address: subscriber.address.clone(),
            group: subscriber.group.clone(),
            credit_messages: 0,
            credit_bytes: 0,
            held: subscriber.held_in(index),
        };
        // Answered at once, perhaps, where this node leads: the feed knows of its question already.
        self.ask(now, index, question, Purpose::Join { subscriber: id, index });
    }

    /// A leader feeds the subscription from now on, or nobody does.
    pub(super) fn joined(&mut self, now: Now, id: SubscriberId, index: usize, from: NodeId, answer: Answer) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else {
            if matches!(answer, Answer::Joined { .. }) {
                self.tell(now, from, index, Question::Leave { subscriber: id.0 });
            }
            return;
        };
        let shard = self.shards[index].id();
        let feed = subscriber.feeds.get_mut(&index).expect("a subscription's shards do not change");
        feed.joining = false;
        let (term, lost) = match answer {
            Answer::Joined { term, lost } => (term, lost),
            Answer::Committed(_) | Answer::Settled(_) | Answer::Found(_) => return,
            Answer::Refused(code) | Answer::Unknown(code) => {
                if let Some((request, _)) = subscriber.opening.take() {
                    let connection = subscriber.connection;
                    let number = subscriber.number;
                    self.unsubscribe(now, id);
                    if let Some(state) = self.connections.get_mut(&connection) {
                        state.subscriptions.remove(&number);
                    }
                    self.fail(connection, request, code, "a shard of the address does not serve now");
                } else {
                    self.join(now, id, index);
                }
                return;
            }
        };
        if self.leaders[index].is_some_and(|(known, node)| known > term && node != from) {
            self.join(now, id, index);
            return;
        }
        let feed = subscriber.feeds.get_mut(&index).expect("found above");
        feed.from = Some((from, term));
        subscriber.shares.entry(from).or_default();
        let mut told = Vec::new();
        for offset in &lost {
            let attempt = subscriber.held.remove(&(index, offset.0));
            told.extend(attempt.map(|attempt| Held { shard, offset: *offset, attempt }));
            subscriber.parked.retain(|parked| parked.index != index || parked.parcel.offset != *offset);
        }
        let complete = subscriber.feeds.values().all(|feed| feed.from.is_some());
        match &mut subscriber.opening {
            Some((_, all)) => {
                all.extend(lost.into_iter().map(|offset| (shard, offset)));
                if complete {
                    self.opened(id);
                }
            }
            None => {
                let (connection, subscription) = (subscriber.connection, subscriber.number);
                for items in told.chunks(BATCH_MESSAGES_MAX) {
                    self.send(connection, 0, &LeaseLost { subscription, items: items.to_vec() });
                }
            }
        }
        self.share(now, id);
    }

    fn opened(&mut self, id: SubscriberId) {
        let subscriber = self.subscribers.get_mut(&id).expect("the caller looked it up");
        let Some((request, lost)) = subscriber.opening.take() else { return };
        let connection = subscriber.connection;
        let terms = subscriber.feeds.iter().filter_map(|(index, feed)| Some((*index, feed.from?.1)));
        let terms = terms.collect::<Vec<_>>();
        let shards = terms.into_iter().map(|(index, term)| (self.shards[index].id(), term)).collect();
        self.send(connection, request, &Subscribed { shards, lost });
    }

    /// Who leads the shard at `index` changed: subscriptions that were fed from there are fed from the next one.
    pub(super) fn feeds_follow(&mut self, now: Now, index: usize) {
        let leader = self.leaders[index];
        let stale = |subscriber: &Subscriber| {
            subscriber.feeds.get(&index).is_some_and(|feed| match feed.from {
                Some((node, term)) => leader != Some((term, node)),
                None => !feed.joining,
            })
        };
        let ids: Vec<SubscriberId> =
            self.subscribers.iter().filter(|(_, subscriber)| stale(subscriber)).map(|(id, _)| *id).collect();
        for id in ids {
            self.join(now, id, index);
        }
    }

    /// `node` cannot be reached: it feeds nobody, and what it might still have sent will not come.
    pub(super) fn feeds_lost(&mut self, now: Now, node: NodeId) {
        let mut open = Vec::new();
        for (id, subscriber) in &mut self.subscribers {
            subscriber.shares.remove(&node);
            for (index, feed) in &mut subscriber.feeds {
                if feed.from.is_some_and(|(from, _)| from == node) {
                    // All of them, before credit is shared again: what is granted to `node` now never gets there.
                    feed.from = None;
                    open.push((*id, *index));
                }
            }
        }
        for (id, index) in open {
            self.join(now, id, index);
            self.share(now, id);
        }
    }

    /// Shares what the client can take among the leaders that feed it, evenly, and at least one message each.
    fn share(&mut self, now: Now, id: SubscriberId) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        let mut nodes: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (index, feed) in &subscriber.feeds {
            if let Some((node, _)) = feed.from {
                nodes.entry(node).or_insert(*index);
            }
        }
        let (room, count) = (subscriber.room, nodes.len() as i64);
        if room.messages <= 0 || room.bytes <= 0 {
            return;
        }
        let target = Share {
            messages: (room.messages / count.max(1)).max(1),
            bytes: (room.bytes / count.max(1)).max(1),
        };
        let mut grants = Vec::new();
        for (node, index) in nodes {
            let share = subscriber.shares.entry(node).or_default();
            let messages = (target.messages - share.messages).clamp(0, i64::from(u32::MAX)) as u32;
            let bytes = (target.bytes - share.bytes).max(0) as u64;
            if messages > 0 || (bytes > 0 && share.bytes <= 0) {
                share.messages += i64::from(messages);
                share.bytes += bytes as i64;
                grants.push((node, index, messages, bytes));
            }
        }
        for (node, index, messages, bytes) in grants {
            self.tell(now, node, index, Question::Credit { subscriber: id.0, messages, bytes });
        }
    }

    pub(super) fn credit(&mut self, now: Now, connection: ConnectionId, frame: &Credit) {
        use swarmmq_protocol::limits::{CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX};
        let Some(id) = self.subscription(connection, frame.subscription) else { return };
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        let room = &mut subscriber.room;
        room.messages = (room.messages + i64::from(frame.messages)).min(i64::from(CREDIT_MESSAGES_MAX));
        let bytes = i64::try_from(frame.bytes).unwrap_or(i64::MAX);
        room.bytes = room.bytes.saturating_add(bytes).min(CREDIT_BYTES_MAX as i64);
        self.unpark(now, id);
        self.share(now, id);
    }

    fn unpark(&mut self, now: Now, id: SubscriberId) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        let mut ready: Vec<Parked> = Vec::new();
        while subscriber.room.messages > 0
            && subscriber.room.bytes > 0
            && let Some(mut parked) = subscriber.parked.pop_front()
        {
            subscriber.room.messages -= 1;
            subscriber.room.bytes -= parked.parcel.sealed.len() as i64;
            // The consumer is told what is left of its lease.
            let waited = now.monotonic.since(parked.since).as_millis() as u32;
            parked.parcel.lease_millis = parked.parcel.lease_millis.saturating_sub(waited);
            ready.push(parked);
        }
        for parcels in ready.chunk_by(|a, b| (a.index, a.term) == (b.index, b.term)) {
            let (index, term) = (parcels[0].index, parcels[0].term);
            self.send_parcels(id, index, term, parcels.iter().map(|parked| &parked.parcel));
        }
    }

    /// Whether a message waits here until `consumer` has room for it, for those who look at it from outside.
    pub fn parks(&self, consumer: ConsumerId, shard: ShardId, offset: Offset) -> bool {
        let mine = self.subscribers.values().filter(|subscriber| subscriber.consumer == consumer);
        let mut parked = mine.flat_map(|subscriber| &subscriber.parked);
        parked.any(|parked| self.shards[parked.index].id() == shard && parked.parcel.offset == offset)
    }

    /// Which address a subscription of this node consumes.
    pub(super) fn address_of(&self, id: SubscriberId) -> Option<&str> {
        self.subscribers.get(&id).map(|subscriber| subscriber.address.as_str())
    }

    pub(super) fn subscription(&self, connection: ConnectionId, number: u32) -> Option<SubscriberId> {
        self.connections.get(&connection)?.subscriptions.get(&number).copied()
    }

    /// Messages from a leader, for a consumer of this node.
    pub(super) fn hand_out(
        &mut self,
        now: Now,
        id: SubscriberId,
        index: usize,
        from: (NodeId, Term),
        parcels: Vec<Parcel>,
    ) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        let bytes: i64 = parcels.iter().map(|parcel| parcel.sealed.len() as i64).sum();
        // Whatever becomes of them, their sender counts them against what it was told it may send.
        if let Some(share) = subscriber.shares.get_mut(&from.0) {
            share.messages -= parcels.len() as i64;
            share.bytes -= bytes;
        }
        if subscriber.feeds.get(&index).is_none_or(|feed| feed.from != Some(from)) {
            self.share(now, id);
            return;
        }
        let term = from.1;
        for parcel in &parcels {
            subscriber.held.insert((index, parcel.offset.0), parcel.attempt);
        }
        if let Some((_, lost)) = &mut subscriber.opening {
            // What was lost is its again, before it was told.
            let shard = self.shards[index].id();
            lost.retain(|(of, offset)| {
                *of != shard || !parcels.iter().any(|parcel| parcel.offset == *offset)
            });
        }
        let fits = subscriber.parked.is_empty() && subscriber.room.messages >= parcels.len() as i64;
        if fits {
            subscriber.room.messages -= parcels.len() as i64;
            subscriber.room.bytes -= bytes;
            self.send_parcels(id, index, term, parcels.iter());
        } else {
            let since = now.monotonic;
            let parked = parcels.into_iter().map(|parcel| Parked { index, term, parcel, since });
            subscriber.parked.extend(parked);
            self.unpark(now, id);
        }
        // The client reports room in large pieces; what is left of it serves whoever has used up its share.
        let spent = |subscriber: &Subscriber| {
            subscriber.shares.get(&from.0).is_some_and(|share| share.messages <= 0 || share.bytes <= 0)
        };
        if self.subscribers.get(&id).is_some_and(spent) {
            self.share(now, id);
        }
    }

    fn send_parcels<'a>(
        &mut self,
        id: SubscriberId,
        index: usize,
        term: Term,
        parcels: impl Iterator<Item = &'a Parcel>,
    ) {
        let subscriber = &self.subscribers[&id];
        let Some(connection) = self.connections.get_mut(&subscriber.connection) else { return };
        self.talking.insert(subscriber.connection);
        let shard = self.shards[index].id();
        let mut writer = DeliverWriter::begin(&mut connection.out, subscriber.number);
        for parcel in parcels {
            if writer.is_full(parcel.sealed.len(), DELIVER_FRAME_BYTES) {
                writer.finish();
                writer = DeliverWriter::begin(&mut connection.out, subscriber.number);
            }
            let header = DeliverHeader {
                shard,
                offset: parcel.offset,
                term,
                attempt: parcel.attempt,
                lease: Duration::from_millis(u64::from(parcel.lease_millis)),
                reason: &parcel.reason,
            };
            writer.push(&header, &parcel.sealed);
        }
        writer.finish();
    }

    /// Leases of a consumer of this node ran out, as a leader says. Only whoever feeds it now can tell: others may have
    /// been followed, and what was claimed again at their successor, or is about to be, has a fresh lease there.
    pub(super) fn leases_gone(
        &mut self,
        id: SubscriberId,
        index: usize,
        from: (NodeId, Term),
        items: &[(Offset, Attempt)],
    ) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        if subscriber.feeds.get(&index).is_none_or(|feed| feed.from != Some(from)) {
            return;
        }
        let shard = self.shards[index].id();
        let mut told = Vec::new();
        for (offset, attempt) in items {
            if subscriber.held.get(&(index, offset.0)) == Some(attempt) {
                subscriber.held.remove(&(index, offset.0));
            }
            let parked = subscriber.parked.len();
            subscriber.parked.retain(|Parked { index: of, parcel, .. }| {
                *of != index || parcel.offset != *offset || parcel.attempt != *attempt
            });
            if subscriber.parked.len() == parked {
                told.push(Held { shard, offset: *offset, attempt: *attempt });
            }
        }
        let (connection, subscription) = (subscriber.connection, subscriber.number);
        for items in told.chunks(BATCH_MESSAGES_MAX) {
            self.send(connection, 0, &LeaseLost { subscription, items: items.to_vec() });
        }
    }

    /// Sends each item of a settle frame to the leader of its shard.
    pub(super) fn settle(&mut self, now: Now, connection: ConnectionId, request: u64, frame: &Settle) {
        let count = frame.items.len();
        let Some(id) = self.subscription(connection, frame.subscription) else {
            self.answer_settle(connection, request, &vec![(Fate::Failed, Some(Code::LeaseLost)); count]);
            return;
        };
        let subscriber = &self.subscribers[&id];
        let mut pending = PendingFrame {
            connection,
            request,
            subscriber: id,
            items: Vec::with_capacity(count),
            results: vec![(Fate::Failed, Some(Code::LeaseLost)); count],
            outstanding: 0,
        };
        let mut lists: BTreeMap<usize, (NodeId, Vec<SettleItem>, Vec<u16>)> = BTreeMap::new();
        for (position, item) in frame.items.iter().enumerate() {
            let index = self.index_of(item.shard).unwrap_or(usize::MAX);
            let ends = !matches!(item.action, SettleAction::Extend { .. });
            pending.items.push((index, item.offset, item.attempt, ends));
            let Some(feed) = subscriber.feeds.get(&index) else { continue };
            if !subscriber.held.contains_key(&(index, item.offset.0))
                && !self.config.bugs.has(super::bug::Bug::AckWithoutLease)
            {
                continue;
            }
            let Some((node, term)) = feed.from else {
                // Nobody leads now; what is held will be claimed again.
                pending.results[position] = (Fate::Failed, Some(Code::NotLeader));
                continue;
            };
            let (_, items, positions) = lists.entry(index).or_insert_with(|| (node, Vec::new(), Vec::new()));
            // The lease was claimed again in this reign, whatever reign the consumer has it from.
            items.push(SettleItem { term, ..item.clone() });
            positions.push(position as u16);
        }
        let number = self.number();
        pending.outstanding = lists.len();
        self.settlements.insert(number, pending);
        for (index, (_, items, positions)) in lists {
            let question = Question::Settle { subscriber: id.0, items };
            self.ask(now, index, question, Purpose::Settle { settlement: number, items: positions });
        }
        self.finish_settle(number);
    }

    pub(super) fn settled(&mut self, settlement: u64, items: &[u16], answer: &Answer) {
        let Some(pending) = self.settlements.get_mut(&settlement) else { return };
        for (position, item) in items.iter().enumerate() {
            pending.results[usize::from(*item)] = match answer {
                Answer::Settled(results) => {
                    results.get(position).copied().unwrap_or((Fate::Unknown, Some(Code::Malformed)))
                }
                Answer::Refused(code) => (Fate::Failed, Some(*code)),
                Answer::Unknown(code) => (Fate::Unknown, Some(*code)),
                _ => (Fate::Unknown, Some(Code::Malformed)),
            };
        }
        pending.outstanding -= 1;
        self.finish_settle(settlement);
    }

    fn finish_settle(&mut self, settlement: u64) {
        if self.settlements.get(&settlement).is_none_or(|pending| pending.outstanding > 0) {
            return;
        }
        let done = self.settlements.remove(&settlement).expect("looked at above");
        if let Some(subscriber) = self.subscribers.get_mut(&done.subscriber) {
            for ((index, offset, attempt, ends), (fate, code)) in done.items.iter().zip(&done.results) {
                let over = (*fate == Fate::Ok && *ends) || *code == Some(Code::LeaseLost);
                if over && subscriber.held.get(&(*index, offset.0)) == Some(attempt) {
                    subscriber.held.remove(&(*index, offset.0));
                }
            }
        }
        self.answer_settle(done.connection, done.request, &done.results);
    }

    fn answer_settle(&mut self, connection: ConnectionId, request: u64, results: &[(Fate, Option<Code>)]) {
        let runs = results
            .chunk_by(|a, b| a == b)
            .map(|run| SettledRun {
                count: run.len() as u16,
                outcome: run[0].0,
                code: run[0].1.map_or(0, Code::number),
            })
            .collect();
        self.send(connection, request, &Settled { runs });
    }

    /// Ends a subscription; its leases stay until settled, re-claimed or run out. What never reached the client is
    /// given back at once.
    pub(super) fn unsubscribe(&mut self, now: Now, id: SubscriberId) {
        let Some(subscriber) = self.subscribers.remove(&id) else { return };
        let mut back: BTreeMap<usize, Vec<SettleItem>> = BTreeMap::new();
        for Parked { index, term, parcel, .. } in subscriber.parked {
            back.entry(index).or_default().push(SettleItem {
                shard: self.shards[index].id(),
                offset: parcel.offset,
                term,
                attempt: parcel.attempt,
                action: SettleAction::Release,
                reason: String::new(),
            });
        }
        // A claim that came later would hold messages for nobody.
        let mut leaders: BTreeSet<NodeId> = subscriber.shares.into_keys().collect();
        if subscriber.feeds.values().any(|feed| feed.joining) {
            leaders.extend(self.forget_joins(id));
        }
        for (index, feed) in subscriber.feeds {
            let Some((node, _)) = feed.from else { continue };
            if let Some(items) = back.remove(&index) {
                self.tell(now, node, index, Question::Settle { subscriber: id.0, items });
            }
        }
        for node in leaders {
            self.tell(now, node, 0, Question::Leave { subscriber: id.0 });
        }
    }

    /// Looks at messages without leasing them, wherever they are.
    pub(super) fn peek(&mut self, now: Now, connection: ConnectionId, request: u64, frame: Peek) {
        let Some(index) = self.index_of(frame.shard) else {
            self.fail(connection, request, Code::WrongShard, "no such shard");
            return;
        };
        let Some(state) = self.connections.get_mut(&connection) else { return };
        if state.looks >= QUESTIONS_MAX {
            self.fail(connection, request, Code::Busy, "too many open questions on this connection");
            return;
        }
        state.looks += 1;
        self.ask(now, index, Question::Peek(frame), Purpose::Peek { connection, request });
    }

    pub(super) fn peeked(&mut self, connection: ConnectionId, request: u64, answer: Answer) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        state.looks -= 1;
        match answer {
            Answer::Found(body) => match read_peeked(body) {
                Some(peeked) => self.send(connection, request, &peeked),
                None => self.fail(connection, request, Code::Malformed, "the leader's answer makes no sense"),
            },
            Answer::Refused(code) => self.fail(connection, request, code, code.text()),
            _ => {
                let code = Code::NotLeader;
                let reply =
                    Reply { outcome: Fate::Unknown, code: code.number(), message: code.text().to_owned() };
                self.send(connection, request, &reply);
            }
        }
    }
}

fn read_peeked(body: Bytes) -> Option<Peeked> {
    let mut reader = swarmmq_protocol::codec::Reader::new(body);
    let peeked = Peeked::read(&mut reader).ok()?;
    reader.end().ok()?;
    Some(peeked)
}
