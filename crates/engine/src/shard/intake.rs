//! Taking over the state of another replica: first its facts, then the payloads of what it still has to deliver.
//!
//! A replica that lags too far, or is new, is told by its leader that the log it would need is gone. It then asks for the
//! leader's state, works out which payloads it lacks, fetches them, and only when all of them were handed to its log lets
//! consensus replace what it had (safety rule 13). A payload that the leader has no more was settled meanwhile: the log
//! behind the state says so, and this replica leads nobody before it has applied that.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    consensus::Message,
    id::{Address, NodeId},
    time::Instant,
};

use super::{
    member::node_of,
    state::{NOWHERE, State},
};
use crate::{log::Position, node::bug::Bugs};

/// Payloads asked for at once.
const WANTED_MAX: usize = 128;
/// Their bytes, at most, unless one alone is longer.
const WANTED_BYTES_MAX: u64 = 512 << 10;
/// Requests under way at a time.
const REQUESTS_MAX: usize = 4;
/// Silence after which what is missing is asked for again.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
/// Bytes of a state, at most: far above what the bounds on producers, addresses and backlog allow.
const STATE_BYTES_MAX: usize = 4 << 30;

/// One part of a state on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePart {
    /// Names the transfer, so that parts of two are not mixed.
    pub index: u64,
    /// Term of that index.
    pub term: u64,
    /// Which part.
    pub part: u32,
    /// Of how many.
    pub parts: u32,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A payload that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Of which queue.
    pub address: Address,
    /// Of which message.
    pub offset: u64,
    /// Its bytes; `None`: there is no such message any more.
    pub sealed: Option<Bytes>,
}

/// What an intake wants from the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Its state.
    State,
    /// More of it: these many parts, from the first on, have come.
    Parts {
        /// As in [`StatePart`].
        index: u64,
        /// As in [`StatePart`].
        term: u64,
        /// Parts that are here.
        come: u32,
    },
    /// These payloads.
    Payloads(Vec<(Address, u64)>),
}

/// A state being taken over.
#[derive(Debug)]
pub struct Intake {
    /// As the leader announced it; given to consensus at the end.
    message: Message,
    bytes: BytesMut,
    next_part: u32,
    /// Parts that the leader knows to have come.
    told_part: u32,
    of: Option<(u64, u64, u32)>,
    state: Option<Box<(State, u64)>>,
    missing: VecDeque<(Address, u64)>,
    asked: BTreeMap<(Address, u64), u64>,
    requests: usize,
    heard_at: Instant,
    /// Oldest segment that holds payloads of it.
    pub first_segment: Option<u32>,
}

impl Intake {
    /// Begins, on a leader's word.
    pub fn new(now: Instant, message: Message) -> Self {
        Self {
            message,
            bytes: BytesMut::new(),
            next_part: 0,
            told_part: 0,
            of: None,
            state: None,
            missing: VecDeque::new(),
            asked: BTreeMap::new(),
            requests: 0,
            heard_at: now,
            first_segment: None,
        }
    }

    /// Whom it comes from.
    pub fn source(&self) -> NodeId {
        node_of(self.message.from)
    }

    /// The leader said again that a state is needed; if it speaks for a later term, that counts.
    pub fn heard(&mut self, message: Message) {
        if message.term >= self.message.term && message.from == self.message.from {
            self.message = message;
        }
    }

    /// Takes a part of the state. Parts of another transfer begin anew; returns whether the state is whole.
    pub fn part(&mut self, now: Instant, part: &StatePart, own: &State, bugs: Bugs) -> bool {
        self.heard_at = now;
        if self.state.is_some() {
            return false;
        }
        let of = (part.index, part.term, part.parts);
        if part.part == 0 {
            self.of = Some(of);
            self.bytes.clear();
            self.next_part = 0;
            self.told_part = 0;
        }
        if self.of != Some(of) || part.part != self.next_part {
            return false;
        }
        if self.bytes.len() + part.bytes.len() > STATE_BYTES_MAX {
            return false;
        }
        self.bytes.extend_from_slice(&part.bytes);
        self.next_part += 1;
        if self.next_part < part.parts {
            return false;
        }
        let bytes = std::mem::take(&mut self.bytes);
        let Ok(mut state) = State::read_portable(&bytes, bugs) else { return false };
        let mut missing = VecDeque::new();
        let mut held = Vec::new();
        for queue in state.queues.values() {
            let ours = own.queues.get(&queue.address);
            for (offset, message) in &queue.messages {
                let here = ours.and_then(|queue| queue.messages.get(offset));
                match here.filter(|here| here.crc == message.crc && here.place != NOWHERE) {
                    Some(here) => held.push((queue.address.clone(), *offset, here.place)),
                    None => missing.push_back((queue.address.clone(), *offset)),
                }
            }
        }
        for (address, offset, place) in held {
            state.moved(&address, offset, place);
        }
        self.missing = missing;
        self.state = Some(Box::new((state, part.term)));
        true
    }

    /// What to ask the leader for now.
    pub fn wants(&mut self, now: Instant, out: &mut Vec<Wanted>) {
        if self.state.is_none() {
            if self.of.is_none() && self.requests == 0 {
                self.requests = 1;
                out.push(Wanted::State);
            }
            if let Some((index, term, _)) = self.of.filter(|_| self.next_part > self.told_part) {
                self.told_part = self.next_part;
                out.push(Wanted::Parts { index, term, come: self.next_part });
            }
            return;
        }
        if self.requests > REQUESTS_MAX {
            self.requests = 0;
        }
        while self.requests < REQUESTS_MAX && !self.missing.is_empty() {
            let state = &self.state.as_ref().expect("looked at above").0;
            let mut items = Vec::new();
            let mut bytes = 0;
            while items.len() < WANTED_MAX
                && let Some((address, offset)) = self.missing.front()
            {
                let message = state.queues.get(address).and_then(|queue| queue.messages.get(offset));
                let length = message.map_or(0, |message| u64::from(message.length));
                if !items.is_empty() && bytes + length > WANTED_BYTES_MAX {
                    break;
                }
                bytes += length;
                let item = self.missing.pop_front().expect("looked at above");
                self.asked.insert(item.clone(), now.0);
                items.push(item);
            }
            self.requests += 1;
            out.push(Wanted::Payloads(items));
        }
    }

    /// Takes payloads. `store` hands a checked one to the log and says where it will lie.
    pub fn payloads(
        &mut self,
        now: Instant,
        payloads: Vec<Payload>,
        store: &mut dyn FnMut(&Payload, &[u8]) -> Position,
    ) {
        let Some(held) = &mut self.state else { return };
        self.heard_at = now;
        self.requests = self.requests.saturating_sub(1);
        for payload in payloads {
            let key = (payload.address.clone(), payload.offset);
            if self.asked.remove(&key).is_none() {
                continue;
            }
            let Some(sealed) = &payload.sealed else { continue };
            let message = held.0.queues.get(&key.0).and_then(|queue| queue.messages.get(&key.1));
            let Some(message) = message else { continue };
            if crate::log::crc32c(sealed) != message.crc {
                // Damaged at its source or on the way: to be asked for again, perhaps from another leader.
                self.missing.push_back(key);
                continue;
            }
            let place = store(&payload, sealed);
            self.first_segment =
                Some(self.first_segment.map_or(place.segment, |first| first.min(place.segment)));
            held.0.moved(&key.0, key.1, place);
        }
    }

    /// Whether the state is here, if not its payloads.
    pub fn has_state(&self) -> bool {
        self.state.is_some()
    }

    /// Whether everything is here.
    pub fn is_whole(&self) -> bool {
        self.state.is_some() && self.missing.is_empty() && self.asked.is_empty()
    }

    /// Asks again for everything that was asked for and did not come.
    pub fn lose_patience(&mut self, now: Instant) {
        if now.since(self.heard_at) < PATIENCE {
            return;
        }
        self.heard_at = now;
        self.requests = 0;
        self.of = None;
        self.missing.extend(std::mem::take(&mut self.asked).into_keys());
    }

    /// When [`Intake::lose_patience`] has something to do.
    pub fn patience_ends(&self) -> Instant {
        self.heard_at + PATIENCE
    }

    /// The leader's word, with the mark of the state that came.
    pub fn announcement(&self) -> Message {
        let (state, term) = &**self.state.as_ref().expect("only a whole intake is announced");
        let mut message = self.message.clone();
        if let Some(mark) = &mut message.snapshot {
            mark.index = state.applied;
            mark.term = *term;
            mark.voters.clone_from(&state.conf.voters);
            mark.learners.clone_from(&state.conf.learners);
        }
        message
    }

    /// The state and the term of its index.
    pub fn finish(self) -> (State, u64) {
        *self.state.expect("only a whole intake is finished")
    }
}
