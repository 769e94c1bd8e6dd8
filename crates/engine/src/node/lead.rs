//! The leader's side: answers questions about the shards that this node leads, whoever asks, and sends deliveries to
//! the nodes that have the consumers.

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use swarmmq_protocol::{
    error::{Code, Outcome as Fate},
    frame::{Body, Peek, Peeked, PeekedItem, SettleAction, SettleItem},
    id::{Address, Attempt, GroupName, NodeId, Offset},
    packet::Class,
};

use super::{
    Node, Now, Waiting,
    ask::Asker,
    letter::{Letter, Parcel},
    question::Question,
};
use crate::shard::{
    Answer, Ticket, Work,
    delivery::{Delivered, Expired, Joining, Settlement, SubscriberId},
    event::{Event, Start},
    state::Outcome,
};

/// Looks that wait for the disk, at most.
const PEEKS_MAX: usize = 4096;
/// Bytes of deliveries in one letter, unless one message alone is longer.
const LETTER_BYTES: usize = 1 << 20;

/// A consumer of some node, fed by shards that this node leads.
#[derive(Debug)]
pub(super) struct Attendee {
    /// The node that has its connection.
    pub(super) edge: NodeId,
    /// As that node numbers it.
    pub(super) number: u64,
    pub(super) address: Address,
    pub(super) group: GroupName,
    pub(super) shards: BTreeSet<usize>,
}

/// One list of settlements that waits for its shard.
#[derive(Debug)]
pub(super) struct PendingSettle {
    asker: Asker,
    results: Vec<(Fate, Option<Code>)>,
    outstanding: usize,
}

/// A look that waits for bytes from disk.
#[derive(Debug)]
pub(super) struct PendingPeek {
    asker: Asker,
    frame: Peek,
}

impl Node {
    /// Answers, or sees to it that an answer comes.
    pub(super) fn serve(&mut self, now: Now, index: usize, asker: Asker, question: Question) {
        match question {
            Question::Publish { count, messages } => {
                let ticket = self.ticket_for(asker);
                match self.take(now, index, ticket, count, &messages) {
                    Ok(()) => self.company.comes(now.monotonic),
                    Err(code) => self.answered(now, ticket, Answer::Refused(code)),
                }
            }
            Question::Propose(event) => self.propose(now, index, asker, &event),
            Question::Prepare { address, order, settings, group, start } => {
                let shard = &self.shards[index];
                if !shard.is_serving() {
                    self.reply(now, asker, Answer::Refused(Code::NotLeader));
                    return;
                }
                let queue = shard.state().queues.get(&address);
                if queue.is_some_and(|queue| queue.groups.contains_key(&group)) {
                    self.reply(now, asker, Answer::Committed(Outcome::Done));
                    return;
                }
                if queue.is_none() {
                    let made = Event::QueueMade { address: address.clone(), order, settings };
                    let mut work = Work::default();
                    self.shards[index].propose(&made, None, &mut work);
                    self.carry(now, index, work);
                }
                self.propose(now, index, asker, &Event::GroupMade { address, group, start });
            }
            Question::Join { .. } => self.attend(now, index, asker, question),
            Question::Leave { subscriber } => {
                if let Some(id) = self.attending.get(&(self.edge_of(asker), subscriber)).copied() {
                    self.dismiss(id);
                }
            }
            Question::Credit { subscriber, messages, bytes } => {
                let Some(id) = self.attending.get(&(self.edge_of(asker), subscriber)).copied() else {
                    return;
                };
                let at = self.elsewhere(self.edge_of(asker));
                self.credits.grant(id, at, messages, bytes);
                for shard in self.attendees[&id].shards.clone() {
                    self.dirty[shard] = true;
                }
            }
            Question::Settle { subscriber, items } => self.judge(now, index, asker, subscriber, &items),
            Question::Peek(frame) => self.show(now, index, asker, frame),
            Question::Mark => {
                let shard = &self.shards[index];
                let applied = shard.is_serving().then_some(shard.state().applied);
                let answer = applied.map_or(Answer::Refused(Code::NotLeader), |applied| {
                    Answer::Committed(Outcome::Count(applied))
                });
                self.reply(now, asker, answer);
            }
            Question::Look { address, start } => {
                let answer = if self.shards[index].is_serving() {
                    Answer::Found(self.view(index, &address, start))
                } else {
                    Answer::Refused(Code::NotLeader)
                };
                self.reply(now, asker, answer);
            }
        }
    }

    fn edge_of(&self, asker: Asker) -> NodeId {
        match asker {
            Asker::Here(_) => self.config.node,
            Asker::There(node, _) => node,
        }
    }

    /// `node`, unless it is this one.
    fn elsewhere(&self, node: NodeId) -> Option<NodeId> {
        (node != self.config.node).then_some(node)
    }

    /// A number under which a shard may answer `asker`.
    fn ticket_for(&mut self, asker: Asker) -> Ticket {
        match asker {
            Asker::Here(number) => Ticket(number),
            Asker::There(..) => self.ticket(Waiting::Reply(asker)),
        }
    }

    fn propose(&mut self, now: Now, index: usize, asker: Asker, event: &Event) {
        let ticket = self.ticket_for(asker);
        let mut work = Work::default();
        self.shards[index].propose(event, Some(ticket), &mut work);
        self.dirty[index] = true;
        self.carry(now, index, work);
    }

    /// Answers `asker`.
    pub(super) fn reply(&mut self, now: Now, asker: Asker, answer: Answer) {
        match asker {
            Asker::Here(number) => self.replied(now, number, self.config.node, answer),
            Asker::There(_, 0) => {}
            Asker::There(node, ticket) => {
                // Deliveries must not overtake the answer that announces them.
                let joined = matches!(answer, Answer::Joined { .. });
                let class = if joined { Class::Delivery } else { Class::Settlement };
                self.post(node, class, Letter::Answer { ticket, answer });
            }
        }
    }

    fn attend(&mut self, now: Now, index: usize, asker: Asker, question: Question) {
        let Question::Join {
            subscriber,
            consumer,
            order,
            address,
            group,
            credit_messages,
            credit_bytes,
            held,
        } = question
        else {
            return;
        };
        if !self.shards[index].is_serving() {
            self.reply(now, asker, Answer::Refused(Code::NotLeader));
            return;
        }
        let edge = self.edge_of(asker);
        let id = match self.attending.get(&(edge, subscriber)) {
            Some(id) => *id,
            None => {
                let id = SubscriberId(self.number());
                self.attending.insert((edge, subscriber), id);
                let (address, group) = (address.clone(), group.clone());
                let shards = BTreeSet::new();
                self.attendees.insert(id, Attendee { edge, number: subscriber, address, group, shards });
                id
            }
        };
        self.attendees.get_mut(&id).expect("found or inserted above").shards.insert(index);
        self.credits.grant(id, self.elsewhere(edge), credit_messages, credit_bytes);
        let shard = &mut self.shards[index];
        shard.unsubscribe(id);
        let (address, group, held) = (&address, &group, &held);
        let route = (edge, subscriber);
        let joining = Joining { subscriber: id, route, consumer, order, address, group, held };
        let answer = match shard.subscribe(now, &joining) {
            Ok(lost) => Answer::Joined { term: shard.term(), lost },
            Err(code) => Answer::Refused(code),
        };
        self.dirty[index] = true;
        self.reply(now, asker, answer);
    }

    /// A consumer takes part no more; its leases stay until settled, re-claimed or run out.
    pub(super) fn dismiss(&mut self, id: SubscriberId) {
        let Some(attendee) = self.attendees.remove(&id) else { return };
        self.attending.remove(&(attendee.edge, attendee.number));
        self.credits.remove(id);
        for index in attendee.shards {
            self.shards[index].unsubscribe(id);
        }
    }

    /// The consumers of a node that cannot be reached any more.
    pub(super) fn dismiss_all_of(&mut self, edge: NodeId) {
        let gone: Vec<SubscriberId> =
            self.attending.range((edge, 0)..=(edge, u64::MAX)).map(|(_, id)| *id).collect();
        gone.into_iter().for_each(|id| self.dismiss(id));
    }

    /// Sends deliveries on their way, each consumer's in one letter.
    pub(super) fn deliver(&mut self, now: Now, index: usize, mut delivered: Vec<Delivered>) {
        let term = self.shards[index].term();
        delivered.sort_by_key(|delivery| delivery.subscriber);
        for deliveries in delivered.chunk_by(|a, b| a.subscriber == b.subscriber) {
            let Some(attendee) = self.attendees.get(&deliveries[0].subscriber) else { continue };
            let (edge, number) = (attendee.edge, attendee.number);
            self.counters.delivered += deliveries.len() as u64;
            self.counters.redelivered +=
                deliveries.iter().filter(|delivery| delivery.attempt > Attempt(1)).count() as u64;
            let parcel = |delivery: &Delivered| Parcel {
                offset: delivery.offset,
                attempt: delivery.attempt,
                lease_millis: delivery.lease.as_millis() as u32,
                reason: delivery.reason.clone(),
                sealed: delivery.sealed.clone(),
            };
            if edge == self.config.node {
                let parcels = deliveries.iter().map(parcel).collect();
                self.hand_out(now, SubscriberId(number), index, (edge, term), parcels);
                continue;
            }
            let shard = self.shards[index].id();
            let letter = |parcels| Letter::Deliver { subscriber: number, shard, term, parcels };
            let mut parcels: Vec<Parcel> = Vec::new();
            let (mut bytes, mut before) = (0, 0);
            for delivery in deliveries {
                if bytes > before && bytes - before + delivery.sealed.len() > LETTER_BYTES {
                    self.post(edge, Class::Delivery, letter(std::mem::take(&mut parcels)));
                    before = bytes;
                }
                bytes += delivery.sealed.len();
                parcels.push(parcel(delivery));
            }
            self.post(edge, Class::Delivery, letter(parcels));
            if self.ways.lead_to(edge) {
                self.credits.sent(edge, bytes as u64);
            }
        }
        self.credits.chosen_is_over();
    }

    /// What was sent to consumers at `edge` has arrived there: others of them may be sent something now.
    pub(super) fn window_moves(&mut self, edge: NodeId, bytes: u64) {
        if !self.credits.arrived(edge, bytes) {
            return;
        }
        for (_, id) in self.attending.range((edge, 0)..=(edge, u64::MAX)) {
            for shard in &self.attendees[id].shards {
                self.dirty[*shard] = true;
            }
        }
    }

    /// Tells consumers which leases ran out, so that they do not go on for nothing.
    pub(super) fn tell_expired(&mut self, index: usize, mut expired: Vec<Expired>) {
        let (shard, term) = (self.shards[index].id(), self.shards[index].term());
        self.counters.expired += expired.len() as u64;
        expired.sort_by_key(|lease| lease.subscriber);
        for leases in expired.chunk_by(|a, b| a.subscriber == b.subscriber) {
            let Some(attendee) = self.attendees.get(&leases[0].subscriber) else { continue };
            let (edge, subscriber) = (attendee.edge, attendee.number);
            let items: Vec<(Offset, Attempt)> =
                leases.iter().map(|lease| (lease.offset, lease.attempt)).collect();
            if edge == self.config.node {
                self.leases_gone(SubscriberId(subscriber), index, (edge, term), &items);
            } else {
                self.post(edge, Class::Delivery, Letter::Expired { subscriber, shard, term, items });
            }
        }
    }

    /// Judges settlements item by item. Acknowledgements become one event.
    fn judge(&mut self, now: Now, index: usize, asker: Asker, subscriber: u64, items: &[SettleItem]) {
        let lost = (Fate::Failed, Some(Code::LeaseLost));
        let edge = self.edge_of(asker);
        let id = self.attending.get(&(edge, subscriber)).copied();
        let id = id.filter(|id| self.attendees[id].shards.contains(&index));
        let Some(id) = id.filter(|_| self.shards[index].is_serving()) else {
            // Not a verdict on the leases: this node only does not lead, or does not know the consumer yet.
            let code = if self.stopped.is_some() { Code::LogStopped } else { Code::NotLeader };
            self.reply(now, asker, Answer::Settled(vec![(Fate::Failed, Some(code)); items.len()]));
            return;
        };
        let number = self.number();
        let mut pending =
            PendingSettle { asker, results: vec![(Fate::Ok, None); items.len()], outstanding: 0 };
        let mut acks: Vec<(Offset, u16)> = Vec::new();
        for (position, item) in items.iter().enumerate() {
            if item.term != self.shards[index].term() {
                // Its node has not joined in this reign yet; whether the lease is kept shows when it does.
                pending.results[position] = (Fate::Failed, Some(Code::NotLeader));
                continue;
            }
            let settlement = match &item.action {
                SettleAction::Ack => {
                    match self.shards[index].check_ack(now, id, item.offset, item.attempt) {
                        Ok(()) => acks.push((item.offset, position as u16)),
                        Err(_) => pending.results[position] = lost,
                    }
                    continue;
                }
                SettleAction::Nack { delay } => {
                    Settlement::Nack { delay: *delay, reason: item.reason.to_string() }
                }
                SettleAction::Extend { duration } => Settlement::Extend(*duration),
                SettleAction::DeadLetter => Settlement::DeadLetter { reason: item.reason.to_string() },
                SettleAction::Release => Settlement::Release,
            };
            let ticket = self.ticket(Waiting::Settle { settlement: number, items: vec![position as u16] });
            match self.shards[index].settle(now, id, item.offset, item.attempt, &settlement, ticket) {
                Ok(true) => {
                    self.waiting.remove(&ticket);
                    self.dirty[index] = true;
                }
                Ok(false) => {
                    pending.outstanding += 1;
                    self.dirty[index] = true;
                }
                Err(_) => {
                    self.waiting.remove(&ticket);
                    pending.results[position] = lost;
                }
            }
        }
        if !acks.is_empty() {
            let (address, group) = {
                let attendee = &self.attendees[&id];
                (attendee.address.clone(), attendee.group.clone())
            };
            acks.sort_unstable();
            let items = acks.iter().map(|(_, position)| *position).collect();
            let ticket = self.ticket(Waiting::Settle { settlement: number, items });
            let ranges = to_ranges(acks.iter().map(|(offset, _)| *offset));
            let may_wait = !self.draining && self.company.is_expected(now.monotonic);
            if self.shards[index].settle_ranges(&address, &group, ranges, ticket, may_wait) {
                self.company.await_with(index);
            }
            if self.shards[index].settles_early() {
                self.waiting.remove(&ticket);
            } else {
                pending.outstanding += 1;
            }
            self.dirty[index] = true;
        }
        if pending.outstanding == 0 {
            self.reply(now, asker, Answer::Settled(pending.results));
        } else {
            self.judging.insert(number, pending);
        }
    }

    /// The shard has decided on some items of a list.
    pub(super) fn judged(&mut self, now: Now, settlement: u64, items: &[u16], answer: &Answer) {
        let Some(pending) = self.judging.get_mut(&settlement) else { return };
        let fate = match answer {
            Answer::Committed(Outcome::Refused(code)) | Answer::Refused(code) => (Fate::Failed, Some(*code)),
            Answer::Unknown(code) => (Fate::Unknown, Some(*code)),
            _ => (Fate::Ok, None),
        };
        if fate.0 == Fate::Ok {
            self.counters.settled += items.len() as u64;
        }
        for item in items {
            pending.results[usize::from(*item)] = fate;
        }
        pending.outstanding -= 1;
        if pending.outstanding == 0 {
            let done = self.judging.remove(&settlement).expect("found above");
            self.reply(now, done.asker, Answer::Settled(done.results));
        }
    }

    /// Looks at messages without leasing them. Waits for the disk where bytes are not at hand.
    fn show(&mut self, now: Now, index: usize, asker: Asker, frame: Peek) {
        if !self.shards[index].is_serving() {
            self.reply(now, asker, Answer::Refused(Code::NotLeader));
            return;
        }
        if self.peeks.len() >= PEEKS_MAX {
            self.reply(now, asker, Answer::Refused(Code::Busy));
            return;
        }
        let next_offset = self.shards[index].state().next_offset;
        let mut items = Vec::new();
        let mut bytes = 0;
        let mut next = frame.from_offset.0;
        let mut end = true;
        let mut work = Work::default();
        let mut failed = None;
        let count_max = usize::from(frame.messages_max.clamp(1, 1024));
        let found: Vec<_> = match self.shards[index].state().queues.get(&frame.address) {
            None => Vec::new(),
            Some(queue) => {
                let start = frame.start.map_or(Start::Oldest, super::operation::start_of);
                let from = next.max(queue.start_offset(start, next_offset));
                let messages = queue.messages.range(from..).take(count_max + 1);
                messages
                    .map(|(offset, message)| {
                        (*offset, message.place, message.length, message.crc, message.dead_reason())
                    })
                    .collect()
            }
        };
        for (offset, place, length, crc, reason) in found {
            let full =
                items.len() == count_max || (bytes > 0 && bytes + length > frame.bytes_max.min(2 << 20));
            if full {
                end = false;
                break;
            }
            match self.shards[index].peek(place, length, crc, &mut work) {
                Some(Ok(sealed)) => {
                    bytes += length;
                    next = offset + 1;
                    items.push(PeekedItem { offset: Offset(offset), reason, sealed });
                }
                Some(Err(code)) => {
                    failed = Some(code);
                    break;
                }
                None if items.is_empty() => {
                    let number = self.number();
                    self.peeks.insert(number, (index, PendingPeek { asker, frame }));
                    self.carry(now, index, work);
                    return;
                }
                None => {
                    end = false;
                    break;
                }
            }
        }
        self.carry(now, index, work);
        let answer = match failed {
            Some(code) => Answer::Refused(code),
            None => {
                let mut body = BytesMut::new();
                Peeked { next_offset: Offset(next), end, items }.put(&mut body);
                Answer::Found(body.freeze())
            }
        };
        self.reply(now, asker, answer);
    }

    /// Bytes arrived for a shard, or cannot be read: looks that waited for them are tried again, or end.
    pub(super) fn show_again(&mut self, now: Now, shard: usize, readable: bool) {
        let waiting: Vec<u64> =
            self.peeks.iter().filter(|(_, (index, _))| *index == shard).map(|(number, _)| *number).collect();
        for number in waiting {
            let (_, pending) = self.peeks.remove(&number).expect("listed above");
            if readable {
                self.show(now, shard, pending.asker, pending.frame);
            } else {
                self.reply(now, pending.asker, Answer::Refused(Code::LogStopped));
            }
        }
    }

    /// Looks of a node that is gone need no bytes.
    pub(super) fn forget_looks_of(&mut self, node: NodeId) {
        self.peeks.retain(|_, (_, peek)| !matches!(peek.asker, Asker::There(of, _) if of == node));
    }
}

/// Sorted offsets as first offset and count.
fn to_ranges(offsets: impl Iterator<Item = Offset>) -> Vec<(Offset, u32)> {
    let mut ranges: Vec<(Offset, u32)> = Vec::new();
    for offset in offsets {
        match ranges.last_mut() {
            Some((first, count)) if first.0 + u64::from(*count) == offset.0 => *count += 1,
            Some((first, count)) if offset.0 < first.0 + u64::from(*count) => {}
            _ => ranges.push((offset, 1)),
        }
    }
    ranges
}

/// What a node keeps for its led shards, beside the shards.
pub(super) type Attending = BTreeMap<(NodeId, u64), SubscriberId>;
