//! Consuming: deliveries on their way out, settlements on their way in, and looking without leasing.

use std::collections::BTreeMap;

use swarmmq_protocol::{
    error::{Code, Outcome as Fate},
    frame::{
        Credit, DeliverHeader, DeliverWriter, Held, LeaseLost, Peek, Peeked, PeekedItem, Settle,
        SettleAction, Settled, SettledRun,
    },
    id::{Address, Attempt, GroupName, Offset},
    limits::BATCH_MESSAGES_MAX,
};

use super::{ConnectionId, Node, Now, QUESTIONS_MAX, Waiting};
use crate::shard::{
    Answer, Work,
    delivery::{Delivered, Expired, Settlement, SubscriberId},
    event::Start,
    state::Outcome,
};

/// Bytes of one deliver frame after which a new one begins.
const DELIVER_FRAME_BYTES: usize = 1 << 20;

/// One subscription: whose, and where it is fed from.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) connection: ConnectionId,
    /// As its connection numbers it.
    pub(super) number: u32,
    pub(super) address: Address,
    pub(super) group: GroupName,
    pub(super) shards: Vec<usize>,
}

/// One settle frame that waits for its shards.
#[derive(Debug)]
pub(super) struct PendingSettle {
    connection: ConnectionId,
    request: u64,
    results: Vec<(Fate, Option<Code>)>,
    outstanding: usize,
}

/// A look that waits for bytes from disk.
#[derive(Debug)]
pub(super) struct PendingPeek {
    pub(super) connection: ConnectionId,
    pub(super) request: u64,
    pub(super) frame: Peek,
}

impl Node {
    /// Writes deliveries into their connections' output, each subscription's in one frame.
    pub(super) fn deliver(&mut self, index: usize, mut delivered: Vec<Delivered>) {
        let shard = self.shards[index].id();
        let term = self.shards[index].term();
        delivered.sort_by_key(|delivery| delivery.subscriber);
        for deliveries in delivered.chunk_by(|a, b| a.subscriber == b.subscriber) {
            let Some(subscriber) = self.subscribers.get(&deliveries[0].subscriber) else { continue };
            let Some(connection) = self.connections.get_mut(&subscriber.connection) else { continue };
            self.talking.insert(subscriber.connection);
            self.counters.delivered += deliveries.len() as u64;
            let mut writer = DeliverWriter::begin(&mut connection.out, subscriber.number);
            for delivery in deliveries {
                if delivery.attempt > Attempt(1) {
                    self.counters.redelivered += 1;
                }
                if writer.is_full(delivery.sealed.len(), DELIVER_FRAME_BYTES) {
                    writer.finish();
                    writer = DeliverWriter::begin(&mut connection.out, subscriber.number);
                }
                let header = DeliverHeader {
                    shard,
                    offset: delivery.offset,
                    term,
                    attempt: delivery.attempt,
                    lease: delivery.lease,
                    reason: &delivery.reason,
                };
                writer.push(&header, &delivery.sealed);
            }
            writer.finish();
        }
    }

    /// Tells consumers which leases ran out, so that they do not go on for nothing.
    pub(super) fn tell_expired(&mut self, index: usize, mut expired: Vec<Expired>) {
        let shard = self.shards[index].id();
        self.counters.expired += expired.len() as u64;
        expired.sort_by_key(|lease| lease.subscriber);
        for leases in expired.chunk_by(|a, b| a.subscriber == b.subscriber) {
            let Some(subscriber) = self.subscribers.get(&leases[0].subscriber) else { continue };
            let (connection, subscription) = (subscriber.connection, subscriber.number);
            for leases in leases.chunks(BATCH_MESSAGES_MAX) {
                let held = |lease: &Expired| Held { shard, offset: lease.offset, attempt: lease.attempt };
                let items = leases.iter().map(held).collect();
                self.send(connection, 0, &LeaseLost { subscription, items });
            }
        }
    }

    pub(super) fn credit(&mut self, connection: ConnectionId, frame: &Credit) {
        let Some(id) = self.subscription(connection, frame.subscription) else { return };
        self.credits.grant(id, frame.messages, frame.bytes);
        for shard in self.subscribers[&id].shards.clone() {
            self.dirty[shard] = true;
        }
    }

    pub(super) fn subscription(&self, connection: ConnectionId, number: u32) -> Option<SubscriberId> {
        self.connections.get(&connection)?.subscriptions.get(&number).copied()
    }

    /// Judges a settle frame item by item. Acknowledgements of one shard become one event.
    pub(super) fn settle(&mut self, now: Now, connection: ConnectionId, request: u64, frame: &Settle) {
        let count = frame.items.len();
        let all = |fate, code| vec![(fate, Some(code)); count];
        if let Some(code) = self.stopped.is_some().then_some(Code::LogStopped) {
            self.answer_settle(connection, request, &all(Fate::Failed, code));
            return;
        }
        let Some(id) = self.subscription(connection, frame.subscription) else {
            self.answer_settle(connection, request, &all(Fate::Failed, Code::LeaseLost));
            return;
        };
        let number = self.number();
        let mut pending =
            PendingSettle { connection, request, results: vec![(Fate::Ok, None); count], outstanding: 0 };
        let mut acks: BTreeMap<usize, Vec<(Offset, u16)>> = BTreeMap::new();
        for (position, item) in frame.items.iter().enumerate() {
            let lost = (Fate::Failed, Some(Code::LeaseLost));
            let Some(index) = self.index_of(item.shard) else {
                pending.results[position] = lost;
                continue;
            };
            if item.term != self.shards[index].term() {
                pending.results[position] = lost;
                continue;
            }
            let settlement = match &item.action {
                SettleAction::Ack => {
                    match self.shards[index].check_ack(now, id, item.offset, item.attempt) {
                        Ok(()) => acks.entry(index).or_default().push((item.offset, position as u16)),
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
        let (address, group) = {
            let subscriber = &self.subscribers[&id];
            (subscriber.address.clone(), subscriber.group.clone())
        };
        for (index, mut offsets) in acks {
            offsets.sort_unstable();
            let items = offsets.iter().map(|(_, position)| *position).collect();
            let ticket = self.ticket(Waiting::Settle { settlement: number, items });
            let ranges = to_ranges(offsets.iter().map(|(offset, _)| *offset));
            self.shards[index].settle_ranges(&address, &group, ranges, ticket);
            if self.shards[index].settles_early() {
                self.waiting.remove(&ticket);
            } else {
                pending.outstanding += 1;
            }
            self.dirty[index] = true;
        }
        if pending.outstanding == 0 {
            self.answer_settle(connection, request, &pending.results);
        } else {
            self.settlements.insert(number, pending);
        }
    }

    pub(super) fn settled(&mut self, settlement: u64, items: &[u16], answer: &Answer) {
        let Some(pending) = self.settlements.get_mut(&settlement) else { return };
        let fate = match answer {
            Answer::Committed(Outcome::Refused(code)) | Answer::Refused(code) => (Fate::Failed, Some(*code)),
            Answer::Committed(_) => (Fate::Ok, None),
            Answer::Unknown(code) => (Fate::Unknown, Some(*code)),
        };
        if fate.0 == Fate::Ok {
            self.counters.settled += items.len() as u64;
        }
        for item in items {
            pending.results[usize::from(*item)] = fate;
        }
        pending.outstanding -= 1;
        if pending.outstanding == 0 {
            let done = self.settlements.remove(&settlement).expect("found above");
            self.answer_settle(done.connection, done.request, &done.results);
        }
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

    /// Looks at messages without leasing them. Waits for the disk where bytes are not at hand.
    pub(super) fn peek(&mut self, connection: ConnectionId, request: u64, frame: Peek) {
        let Some(index) = self.index_of(frame.shard) else {
            self.fail(connection, request, Code::WrongShard, "no such shard");
            return;
        };
        if self.is_learning() {
            self.fail(connection, request, Code::NotLeader, "the node does not know everything yet");
            return;
        }
        if self.peeks.values().filter(|(_, peek)| peek.connection == connection).count() >= QUESTIONS_MAX {
            self.fail(connection, request, Code::Busy, "too many open questions on this connection");
            return;
        }
        let next_offset = self.shards[index].state().next_offset;
        let mut items = Vec::new();
        let mut bytes = 0;
        let mut next = frame.from_offset.0;
        let mut end = true;
        let mut work = Work::default();
        let mut failed = None;
        let found: Vec<_> = {
            let Some(queue) = self.shards[index].state().queues.get(&frame.address) else {
                let peeked = Peeked { next_offset: Offset(next), end: true, items };
                self.send(connection, request, &peeked);
                return;
            };
            let from = next.max(
                queue
                    .start_offset(frame.start.map_or(Start::Oldest, super::operation::start_of), next_offset),
            );
            let limit = usize::from(frame.messages_max.clamp(1, 1024)) + 1;
            let messages = queue.messages.range(from..).take(limit);
            messages
                .map(|(offset, message)| {
                    (*offset, message.place, message.length, message.crc, message.dead_reason())
                })
                .collect()
        };
        for (offset, place, length, crc, reason) in found {
            let full = items.len() == usize::from(frame.messages_max.clamp(1, 1024))
                || (bytes > 0 && bytes + length > frame.bytes_max.min(2 << 20));
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
                    self.peeks.insert(number, (index, PendingPeek { connection, request, frame }));
                    self.carry(Now::default(), index, work);
                    return;
                }
                None => {
                    end = false;
                    break;
                }
            }
        }
        self.carry(Now::default(), index, work);
        match failed {
            Some(code) => self.fail(connection, request, code, "the message is damaged on disk"),
            None => self.send(connection, request, &Peeked { next_offset: Offset(next), end, items }),
        }
    }

    /// Bytes arrived for a shard, or cannot be read: looks that waited for them are tried again, or end.
    pub(super) fn peek_again(&mut self, shard: usize, readable: bool) {
        let waiting: Vec<u64> =
            self.peeks.iter().filter(|(_, (index, _))| *index == shard).map(|(number, _)| *number).collect();
        for number in waiting {
            let (_, pending) = self.peeks.remove(&number).expect("listed above");
            if readable {
                self.peek(pending.connection, pending.request, pending.frame);
            } else {
                self.fail(pending.connection, pending.request, Code::LogStopped, "the log cannot be read");
            }
        }
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
