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

use super::{ConnectionId, Node, Now, access::Denied, ask::Purpose, question::Question};
use crate::shard::{
    Answer, Batch, Ticket, Work,
    event::Event,
    queue::Message,
    state::{Outcome, Placed},
};

impl Node {
    /// Takes a publish frame of a client: what can be judged here is, the rest the shard's leader decides.
    pub(super) fn publish(&mut self, now: Now, connection: ConnectionId, request: u64, frame: &Publish) {
        self.counters.publish_frames += 1;
        let bytes = frame.messages.len() as u64;
        match self.admit(connection, frame) {
            Ok(index) => {
                self.count_in_flight(connection, bytes, 0);
                let state =
                    &mut self.connections.get_mut(&connection).expect("it sent this frame").publishing;
                state.messages += u32::from(frame.count);
                state.bytes += bytes;
                let purpose = Purpose::Publish { connection, request, count: frame.count, bytes };
                let question = Question::Publish { count: frame.count, messages: frame.messages.clone() };
                self.ask(now, index, question, purpose);
            }
            Err(code) => {
                if matches!(code, Code::NotAllowed | Code::Quota) {
                    let address = first_address(&frame.messages);
                    let why = "no rule of this principal allows it";
                    self.audit_denied(now, connection, &Denied { verb: "publish", address, code, why });
                }
                *self.counters.refused.entry(code.text()).or_default() += u64::from(frame.count);
                let runs = vec![refused(frame.count, code)];
                self.send(connection, request, &Published { runs });
            }
        }
    }

    /// Checks what does not depend on any shard: windows, and every message's admission MAC.
    fn admit(&self, connection: ConnectionId, frame: &Publish) -> Result<usize, Code> {
        if let Some(code) = self.refuses_writes() {
            return Err(code);
        }
        let publishing = &self.connections[&connection].publishing;
        if publishing.messages + u32::from(frame.count) > PUBLISH_WINDOW_MESSAGES
            || publishing.bytes + frame.messages.len() as u64 > PUBLISH_WINDOW_BYTES
        {
            return Err(Code::Busy);
        }
        if !self.has_room_in_flight(connection, frame.messages.len() as u64) {
            return Err(Code::Busy);
        }
        if frame.shard == ShardId::CLUSTER {
            return Err(Code::WrongShard);
        }
        let index = self.index_of(frame.shard).ok_or(Code::WrongShard)?;
        let mut rest: &[u8] = &frame.messages;
        let mut allowed = "";
        while !rest.is_empty() {
            let (sealed, after) = envelope::split_sealed(rest).map_err(|_| Code::Malformed)?;
            if !self.config.admission_key.all().any(|key| sealed.verify(key)) {
                return Err(Code::Forged);
            }
            let address = sealed.header().address();
            if address != allowed && !self.may_publish(connection, address) {
                return Err(Code::NotAllowed);
            }
            (allowed, rest) = (address, after);
        }
        Ok(index)
    }

    /// Takes a publish as the leader of its shard; the shard answers with `ticket`.
    pub(super) fn take(
        &mut self,
        now: Now,
        index: usize,
        ticket: Ticket,
        count: u16,
        messages: &Bytes,
    ) -> Result<(), Code> {
        if !self.has_room(index) {
            return Err(Code::DiskFull);
        }
        let shard = self.shards[index].id();
        if !self.shards[index].is_serving() {
            return Err(Code::NotLeader);
        }
        let mut rest: &[u8] = messages;
        let mut batch: Option<Batch> = None;
        let mut checked: Option<(String, Option<KeyHash>)> = None;
        while !rest.is_empty() {
            let (sealed, after) = envelope::split_sealed(rest).map_err(|_| Code::Malformed)?;
            rest = after;
            let header = sealed.header();
            if header.shard() != shard {
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
                self.check_address(now, index, shard, header.address(), key)?;
                checked = Some((header.address().to_owned(), key));
            }
        }
        let mut batch = batch.ok_or(Code::Malformed)?;
        if batch.count != u32::from(count) {
            return Err(Code::Malformed);
        }
        batch.messages = messages.clone();
        let mut work = Work::default();
        self.shards[index].publish(batch, ticket, &mut work);
        self.carry(now, index, work);
        self.dirty[index] = true;
        Ok(())
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
        let catalog = &self.cluster_shard().state().catalog;
        let queue = self.shards[index].state().queues.get(&address);
        let (order, settings) = match (queue, catalog.addresses.get(&address)) {
            (Some(queue), _) => (queue.order, None),
            (None, Some(entry)) => (entry.order, Some(entry.settings.clone())),
            // Perhaps it is only not known here yet.
            (None, None) if !self.cluster_shard().is_serving() => return Err(Code::NotLeader),
            (None, None) => return Err(Code::NoSuchAddress),
        };
        let ring_key = if order == Order::Key { key } else { None };
        let pinned = order == Order::Total || ring_key.is_some();
        if pinned && mac::ring(&address, ring_key.as_ref(), self.config.shard_count) != shard {
            return Err(Code::WrongShard);
        }
        match self.shards[index].state().queues.get(&address) {
            None => {
                let event = Event::QueueMade { order, settings: settings.unwrap_or_default(), address };
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
        unsure: bool,
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
                        // Another copy may be in, where this one was refused.
                        Placed::Refused(code) if unsure => unknown(count, code),
                        Placed::Refused(code) => {
                            *self.counters.refused.entry(code.text()).or_default() += u64::from(run.count);
                            refused(count, code)
                        }
                    }
                })
                .collect(),
            Answer::Refused(code) => {
                *self.counters.refused.entry(code.text()).or_default() += u64::from(count);
                vec![refused(count, *code)]
            }
            other => {
                let code = if let Answer::Unknown(code) = other { *code } else { Code::State };
                vec![unknown(count, code)]
            }
        };
        let Some(state) = self.connections.get_mut(&connection) else { return };
        state.publishing.messages -= u32::from(count);
        state.publishing.bytes -= bytes;
        self.count_in_flight(connection, 0, bytes);
        self.send(connection, request, &Published { runs });
    }
}

/// For the audit log: all messages of a frame have one, or several of which the first will do.
fn first_address(messages: &[u8]) -> String {
    envelope::split_sealed(messages)
        .map_or_else(|_| String::new(), |(sealed, _)| sealed.header().address().to_owned())
}

fn refused(count: u16, code: Code) -> PublishedRun {
    PublishedRun { count, outcome: Fate::Failed, code: code.number(), duplicate: false, first_offset: None }
}

fn unknown(count: u16, code: Code) -> PublishedRun {
    PublishedRun { count, outcome: Fate::Unknown, code: code.number(), duplicate: false, first_offset: None }
}
