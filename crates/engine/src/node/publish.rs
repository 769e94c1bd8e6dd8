//! Publishing: what a node checks before a shard is asked, and how the shard's verdict becomes an answer.
//!
//! The admission MAC is verified before anything else is done with a message (safety rule 5). Every message of one
//! frame comes from one producer, with sequences that follow each other, so that a shard can judge the frame as one.

use bytes::Bytes;
use swarmmq_protocol::{
    admin::Order,
    envelope,
    error::{Code, Outcome as Fate},
    frame::{Publish, Published, PublishedRun},
    id::{Address, KeyHash, ShardId},
    limits::{FORGET_AFTER, PUBLISH_WINDOW_BYTES, PUBLISH_WINDOW_MESSAGES, SEQUENCE_MAX},
    mac,
};

use super::{ConnectionId, Node, Now, Waiting};
use crate::shard::{
    Answer, Batch, Work,
    event::Event,
    queue::Message,
    state::{Outcome, Placed},
};

impl Node {
    pub(super) fn publish(&mut self, now: Now, connection: ConnectionId, request: u64, frame: &Publish) {
        self.counters.publish_frames += 1;
        let bytes = frame.messages.len() as u64;
        let index = match self.admit(now, connection, frame) {
            Ok((index, batch)) => {
                let state =
                    &mut self.connections.get_mut(&connection).expect("it sent this frame").publishing;
                state.messages += u32::from(frame.count);
                state.bytes += bytes;
                let ticket = self.ticket(Waiting::Publish { connection, request, count: frame.count, bytes });
                let mut work = Work::default();
                self.shards[index].publish(batch, ticket, &mut work);
                self.carry(now, index, work);
                index
            }
            Err(code) => {
                *self.counters.refused.entry(code.text()).or_default() += u64::from(frame.count);
                let runs = vec![refused(frame.count, code)];
                self.send(connection, request, &Published { runs });
                return;
            }
        };
        self.dirty[index] = true;
    }

    /// Checks a whole publish frame. On success: which shard, and the batch for it.
    fn admit(&mut self, now: Now, connection: ConnectionId, frame: &Publish) -> Result<(usize, Batch), Code> {
        if let Some(code) = self.refuses_writes() {
            return Err(code);
        }
        let publishing = &self.connections[&connection].publishing;
        if publishing.messages + u32::from(frame.count) > PUBLISH_WINDOW_MESSAGES
            || publishing.bytes + frame.messages.len() as u64 > PUBLISH_WINDOW_BYTES
        {
            return Err(Code::Busy);
        }
        if self.is_below_reserve() {
            return Err(Code::DiskFull);
        }
        if !self.cluster_shard().is_serving() {
            return Err(Code::NotLeader);
        }
        if frame.shard == ShardId::CLUSTER {
            return Err(Code::WrongShard);
        }
        let index = self.index_of(frame.shard).ok_or(Code::WrongShard)?;

        let mut rest: &[u8] = &frame.messages;
        let mut batch: Option<Batch> = None;
        let mut checked: Option<(String, Option<KeyHash>)> = None;
        while !rest.is_empty() {
            let (sealed, after) = envelope::split_sealed(rest).map_err(|_| Code::Malformed)?;
            if !sealed.verify(&self.config.admission_key) {
                return Err(Code::Forged);
            }
            rest = after;
            let header = sealed.header();
            if header.shard() != frame.shard {
                return Err(Code::WrongShard);
            }
            if header.sequence().0 == 0 || header.sequence().0 > SEQUENCE_MAX {
                return Err(Code::Malformed);
            }
            let batch = batch.get_or_insert_with(|| Batch {
                producer: header.producer(),
                epoch: header.epoch(),
                first: header.sequence(),
                count: 0,
                messages: Bytes::new(),
            });
            let follows = header.producer() == batch.producer
                && header.epoch() == batch.epoch
                && header.sequence().0 == batch.first.0 + u64::from(batch.count);
            if !follows {
                return Err(Code::Malformed);
            }
            batch.count += 1;
            let key = header.key_hash();
            let same =
                checked.as_ref().is_some_and(|(address, of)| address == header.address() && *of == key);
            if !same {
                self.check_address(now, index, frame.shard, header.address(), key)?;
                checked = Some((header.address().to_owned(), key));
            }
        }
        let mut batch = batch.ok_or(Code::Malformed)?;
        if batch.count != u32::from(frame.count) {
            return Err(Code::Malformed);
        }
        batch.messages = frame.messages.clone();
        Ok((index, batch))
    }

    /// Whether messages of `address` with `key` belong into `shard`, and may come. Makes the queue if it is not there.
    fn check_address(
        &mut self,
        now: Now,
        index: usize,
        shard: ShardId,
        text: &str,
        key: Option<KeyHash>,
    ) -> Result<(), Code> {
        let address = Address::parse(text).map_err(|_| Code::Malformed)?;
        if address.is_dead_letter() {
            return Err(Code::NotAllowed);
        }
        let entry =
            self.cluster_shard().state().catalog.addresses.get(&address).ok_or(Code::NoSuchAddress)?;
        let ring_key = if entry.order == Order::Key { key } else { None };
        let pinned = entry.order == Order::Total || ring_key.is_some();
        if pinned && mac::ring(&address, ring_key.as_ref(), self.config.shard_count) != shard {
            return Err(Code::WrongShard);
        }
        match self.shards[index].state().queues.get(&address) {
            None => {
                let event =
                    Event::QueueMade { order: entry.order, settings: entry.settings.clone(), address };
                let mut work = Work::default();
                self.shards[index].propose(&event, None, &mut work);
            }
            Some(queue) => {
                if queue.bytes >= queue.settings.backlog_bytes_max {
                    return Err(Code::BacklogFull);
                }
                let is_old = |message: &Message| now.wall.since(message.published_at) > FORGET_AFTER;
                if queue.messages.first_key_value().is_some_and(|(_, message)| is_old(message)) {
                    // Nobody may ever come for it: rather refuse more than drop what was promised (safety rule 9).
                    let of = &self.shards[index];
                    let idle = queue.groups.iter().any(|(name, group)| {
                        queue.oldest_wanted(group).is_some_and(is_old) && !of.has_consumers(&address, name)
                    });
                    if queue.groups.is_empty() || idle {
                        return Err(Code::BacklogFull);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn published(
        &mut self,
        connection: ConnectionId,
        request: u64,
        count: u16,
        bytes: u64,
        answer: &Answer,
    ) {
        let runs = match answer {
            Answer::Committed(Outcome::Placed(runs)) => runs
                .iter()
                .map(|run| {
                    let count = run.count as u16;
                    match run.placed {
                        Placed::New(offset) => {
                            self.counters.accepted += u64::from(run.count);
                            PublishedRun {
                                count,
                                outcome: Fate::Ok,
                                code: 0,
                                duplicate: false,
                                first_offset: Some(offset),
                            }
                        }
                        Placed::Seen(offset) => {
                            self.counters.deduplicated += u64::from(run.count);
                            PublishedRun {
                                count,
                                outcome: Fate::Ok,
                                code: 0,
                                duplicate: true,
                                first_offset: offset,
                            }
                        }
                        Placed::Refused(code) => {
                            *self.counters.refused.entry(code.text()).or_default() += u64::from(run.count);
                            refused(count, code)
                        }
                    }
                })
                .collect(),
            Answer::Committed(_) => unreachable!("a publish is answered with places"),
            Answer::Refused(code) => {
                *self.counters.refused.entry(code.text()).or_default() += u64::from(count);
                vec![refused(count, *code)]
            }
            Answer::Unknown(code) => vec![PublishedRun {
                count,
                outcome: Fate::Unknown,
                code: code.number(),
                duplicate: false,
                first_offset: None,
            }],
        };
        let Some(state) = self.connections.get_mut(&connection) else { return };
        state.publishing.messages -= u32::from(count);
        state.publishing.bytes -= bytes;
        self.send(connection, request, &Published { runs });
    }
}

fn refused(count: u16, code: Code) -> PublishedRun {
    PublishedRun { count, outcome: Fate::Failed, code: code.number(), duplicate: false, first_offset: None }
}
