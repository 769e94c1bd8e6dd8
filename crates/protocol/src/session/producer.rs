//! The sending end: numbers messages, keeps the sealed bytes until their fate is known, and repeats exactly those bytes.
//!
//! One lane per shard. A message is pinned to its lane and its sequence before it is first sent. Invariants: sequences of
//! a lane follow each other without gaps; what was sealed under a sequence is never replaced; a lane takes another
//! connection only when nothing of it is unanswered on the one before, or that one is lost, so its frames never overtake
//! each other; *failed* is reported only when no copy can take effect any more, which means: never sent, or every copy was
//! answered with a refusal and none is sent again, or its sequence was closed by a committed skip (safety rules 1 and 2).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::{
    lane::{BACKOFF_FIRST, BACKOFF_MAX, Door, Item, Lane, Stage},
    spread::{Spread, Waiting},
    ways::{Way, Ways},
};
use crate::{
    error::{Code, Outcome},
    frame::{self, Answer, CloseSession, OpenSession, Publish, Published, Skip},
    id::{MessageId, NodeId, Offset, ProducerEpoch, ProducerId, Salt, Sequence, ShardId},
    limits::{BATCH_MESSAGES_MAX, PUBLISH_BYTES_MAX},
    policy::{Policy, Routing},
    time::{Instant, WallTime},
};

/// Time that a message whose caller was told *unknown* is still repeated, before its sequence is given up.
const LINGER: Duration = Duration::from_secs(120);
/// Messages that may be repeated after a refusal per message sent for the first time, in thousandths.
const RETRY_SHARE_THOUSANDTHS: u64 = 100;
/// Repeats that are always allowed, in thousandths of a message.
const RETRY_FLOOR_THOUSANDTHS: u64 = 256_000;

/// Who sends, and how much at a time.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Upper 16 bits of every request number, so that answers find their way.
    pub tag: u16,
    /// Who.
    pub producer: ProducerId,
    /// In which life.
    pub epoch: ProducerEpoch,
    /// Fresh for this session.
    pub salt: Salt,
    /// When the session was made.
    pub created_at: WallTime,
    /// How shards are chosen for messages that any may take; `None`: as the cluster says.
    pub policy: Option<Policy>,
    /// Messages whose fate is open, at most.
    pub window_messages: usize,
    /// Their sealed bytes, at most.
    pub window_bytes: usize,
    /// Seed of the jitter.
    pub seed: u64,
    /// Planted where judges are judged; nowhere else.
    pub slip: Option<Slip>,
}

/// Classic mistakes of a sender with several ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slip {
    /// A lane takes another way while it waits for answers on the one before.
    MoveUndrained,
    /// What was unanswered on a direct way that is lost counts as never sent.
    ForgetLostCopies,
}

/// How a send ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendResult {
    /// On stable storage.
    Stored {
        /// Its name.
        id: MessageId,
        /// Its place; unknown for a copy of an old message.
        offset: Option<Offset>,
        /// An earlier copy had been taken.
        duplicate: bool,
    },
    /// Definitely not taken, and never will be.
    Failed(Code),
    /// Perhaps taken. The session goes on repeating the same bytes for a while.
    Unknown(Code),
}

/// The fate of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// As given at the submission.
    pub ticket: u64,
    /// How it ended.
    pub result: SendResult,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Open(ShardId),
    Publish { shard: ShardId, first: u64, count: u16 },
    Skip(ShardId),
    Close(ShardId),
}

impl Asked {
    fn shard(&self) -> ShardId {
        match *self {
            Self::Open(shard) | Self::Publish { shard, .. } | Self::Skip(shard) | Self::Close(shard) => shard,
        }
    }
}

/// One producer session.
#[derive(Debug)]
pub struct Producer {
    config: ProducerConfig,
    lanes: BTreeMap<ShardId, Lane>,
    asked: BTreeMap<u64, Asked>,
    next_request: u64,
    ways: Ways,
    spread: Spread,
    open_messages: usize,
    open_bytes: usize,
    retry_budget_thousandths: u64,
    resolutions: Vec<Resolution>,
    fenced: Option<Code>,
    closing: bool,
    jitter: u64,
}

impl Producer {
    /// A fresh session; nothing is sent before a message is.
    pub fn new(config: ProducerConfig) -> Self {
        let next_request = (u64::from(config.tag) << 48) + 1;
        let mut spread = Spread::new(config.seed);
        spread.set_policy(config.policy.unwrap_or_default());
        Self {
            jitter: config.seed,
            config,
            lanes: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_request,
            ways: Ways::default(),
            spread,
            open_messages: 0,
            open_bytes: 0,
            retry_budget_thousandths: RETRY_FLOOR_THOUSANDTHS,
            resolutions: Vec::new(),
            fenced: None,
            closing: false,
        }
    }

    /// Why the session can send nothing more, if so: make a new one.
    pub fn fenced(&self) -> Option<Code> {
        self.fenced
    }

    /// Who sends.
    pub fn identity(&self) -> (ProducerId, ProducerEpoch, Salt) {
        (self.config.producer, self.config.epoch, self.config.salt)
    }

    /// Whether one more message of `bytes` sealed bytes may be submitted now.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.fenced.is_none()
            && !self.closing
            && self.open_messages < self.config.window_messages
            && (self.open_messages == 0 || self.open_bytes + bytes <= self.config.window_bytes)
    }

    /// Messages whose fate is open.
    pub fn open_messages(&self) -> usize {
        self.open_messages
    }

    /// Where the next message goes that any shard may take. Cost: O(shards) for one message of 32, else O(1).
    pub fn choose(&mut self, now: Instant) -> ShardId {
        let lanes = &self.lanes;
        self.spread.choose(now, |shard| {
            lanes.get(&shard).map_or_else(Waiting::default, |lane| Waiting {
                messages: lane.items.len(),
                since: lane.items.front().map(|item| item.since),
            })
        })
    }

    /// How many data shards the cluster has; until then there is one to choose.
    pub fn set_shards(&mut self, count: u32) {
        self.spread.set_shards(count);
    }

    /// How the cluster wants such messages spread.
    pub fn set_routing(&mut self, routing: &Routing) {
        let policy = self.config.policy.unwrap_or_else(|| routing.of_flow(self.config.producer));
        self.spread.set_policy(policy);
    }

    /// Pins a message to `shard` under the next sequence. The caller made sure of [`Producer::has_room`].
    ///
    /// `seal` makes its bytes for that sequence; if it fails nothing changed.
    pub fn submit<E>(
        &mut self,
        ticket: u64,
        shard: ShardId,
        (now, deadline): (Instant, Instant),
        seal: impl FnOnce(Sequence) -> Result<Bytes, E>,
    ) -> Result<Sequence, E> {
        let lane = self.lanes.entry(shard).or_insert_with(Lane::new);
        let sequence = Sequence(lane.first + lane.items.len() as u64);
        let sealed = seal(sequence)?;
        self.open_messages += 1;
        self.open_bytes += sealed.len();
        lane.pending += 1;
        lane.next_deadline = lane.next_deadline.min(deadline);
        let item = Item {
            ticket,
            sealed,
            since: now,
            deadline,
            stage: Stage::Pending,
            ever_sent: false,
            unsure: false,
            refusal: None,
            told: false,
        };
        lane.items.push_back(item);
        Ok(sequence)
    }

    /// Goes on with connections that are there already.
    pub fn take_ways(&mut self, ways: Ways) {
        self.ways = ways;
    }

    /// Goes on where a fenced session stood: on the same connections.
    pub fn adopt_ways(&mut self, fenced: &Self) {
        self.ways = fenced.ways.clone();
    }

    /// A connection is open and allows this much unanswered.
    pub fn connected(&mut self, way: Way, messages: u32, bytes: u64) {
        self.ways.opened(way, messages, bytes);
    }

    /// Whether any connection is open.
    pub fn is_connected(&self) -> bool {
        !self.ways.is_empty()
    }

    /// Who leads each data shard, in order, as far as known.
    pub fn learned(&mut self, leaders: &[Option<NodeId>]) {
        for shard in self.ways.learned(leaders) {
            self.spread.moved(shard);
        }
    }

    /// Leaders to which direct connections would be of use, since the last call.
    pub fn take_wishes(&mut self, into: &mut BTreeSet<NodeId>) {
        self.ways.take_wishes(into);
    }

    /// Nothing new is sent over this connection.
    pub fn leaving(&mut self, way: Way) {
        self.ways.leaving(way);
    }

    /// Whether everything sent over this connection was answered.
    pub fn is_drained(&self, way: Way) -> bool {
        self.lanes.values().all(|lane| lane.way != way || lane.unanswered == 0)
    }

    /// All connections are gone.
    pub fn cut_off(&mut self) {
        self.ways.all().into_iter().for_each(|way| self.disconnected(way));
    }

    /// A connection is gone: what was unanswered on it will be repeated on another.
    pub fn disconnected(&mut self, way: Way) {
        self.ways.lost(way);
        let lanes = &self.lanes;
        self.asked.retain(|_, asked| lanes[&asked.shard()].way != way);
        let forgets = self.config.slip == Some(Slip::ForgetLostCopies) && way != Way::Home;
        for lane in self.lanes.values_mut().filter(|lane| lane.way == way) {
            lane.retry_at = Instant(0);
            lane.take_back(!forgets);
        }
    }

    /// Takes no more messages; when all fates are known the shards are told that the session ended.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Whether closing is complete.
    pub fn is_closed(&self) -> bool {
        self.closing
            && self.open_messages == 0
            && self.lanes.values().all(|lane| {
                lane.items.is_empty() && matches!(lane.door, Door::Closed | Door::Unopened)
                    || self.fenced.is_some()
            })
    }

    /// Fates that became known since the last call.
    pub fn take_resolutions(&mut self, into: &mut Vec<Resolution>) {
        into.append(&mut self.resolutions);
    }

    /// Writes what can be sent over this connection now, everything at hand in as few frames as possible.
    pub fn pump(&mut self, now: Instant, way: Way, out: &mut BytesMut) {
        self.expire(now);
        if !self.ways.is_open(way) || self.fenced.is_some() {
            return;
        }
        let busy = self.lanes.iter().filter(|(_, lane)| self.closing || lane.has_work());
        let shards: Vec<ShardId> = busy.map(|(shard, _)| *shard).collect();
        for shard in shards {
            if self.way_of(shard) == Some(way) {
                self.pump_lane(now, shard, out);
            }
        }
    }

    /// The way that a lane takes now. `None`: there is none, or the lane must be drained before it takes another.
    fn way_of(&mut self, shard: ShardId) -> Option<Way> {
        let best = self.ways.best(shard)?;
        let lane = self.lanes.get_mut(&shard).expect("listed by the caller");
        if lane.way != best && lane.unanswered > 0 && self.config.slip != Some(Slip::MoveUndrained) {
            return None;
        }
        lane.way = best;
        Some(best)
    }

    fn request(&mut self, asked: Asked) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        self.asked.insert(request, asked);
        self.lanes.get_mut(&asked.shard()).expect("who asks has a lane").unanswered += 1;
        request
    }

    /// What `request` was, now that it is answered.
    fn answered(&mut self, request: u64) -> Option<Asked> {
        let asked = self.asked.remove(&request)?;
        self.lanes.get_mut(&asked.shard()).expect("lanes are never removed").unanswered -= 1;
        Some(asked)
    }

    fn pump_lane(&mut self, now: Instant, shard: ShardId, out: &mut BytesMut) {
        let lane = self.lanes.get_mut(&shard).expect("listed by the caller");
        if lane.retry_at > now {
            return;
        }
        let (producer, epoch) = (self.config.producer, self.config.epoch);
        let deadline = Duration::from_secs(30);
        match lane.door {
            Door::Unopened if !lane.items.is_empty() => {
                lane.door = Door::Opening;
                let open = OpenSession {
                    shard,
                    producer,
                    epoch,
                    salt: self.config.salt,
                    created_at: self.config.created_at,
                    deadline,
                };
                let request = self.request(Asked::Open(shard));
                frame::encode(&open, request, out);
                return;
            }
            Door::Open if lane.items.is_empty() && self.closing => {
                lane.door = Door::Closing;
                let request = self.request(Asked::Close(shard));
                frame::encode(&CloseSession { shard, producer, epoch }, request, out);
                return;
            }
            Door::Open => {}
            _ => return,
        }
        let doomed = lane.items.front().map(|item| item.stage);
        if let Some(Stage::Doomed(_)) = doomed
            && !lane.skipping
        {
            // All that are doomed in a row at the front go together.
            let mut count = 0;
            let count_max = if lane.skip_singly { 1 } else { usize::MAX };
            for item in lane.items.iter_mut().take(count_max) {
                let Stage::Doomed(code) = item.stage else { break };
                item.stage = Stage::Skipping(code);
                count += 1;
            }
            lane.skipping = true;
            let (first, last) = (Sequence(lane.first), Sequence(lane.first + count - 1));
            let request = self.request(Asked::Skip(shard));
            frame::encode(&Skip { shard, producer, epoch, first, last, deadline }, request, out);
        }
        while self.publish(now, shard, out) {}
    }

    /// Sends the next run of pending messages. False: there is none, or the window is used up.
    fn publish(&mut self, now: Instant, shard: ShardId, out: &mut BytesMut) -> bool {
        let lane = self.lanes.get_mut(&shard).expect("listed by the caller");
        let Some(window) = self.ways.window(lane.way) else { return false };
        if lane.pending == 0 || window.messages == 0 {
            return false;
        }
        let mut end = lane.items.len();
        if lane.doomed > 0 {
            let closed = |item: &Item| matches!(item.stage, Stage::Doomed(_) | Stage::Skipping(_));
            end = lane.items.iter().position(closed).unwrap_or(end);
        }
        let Some(from) = (lane.look_from..end).find(|n| lane.items[*n].stage == Stage::Pending) else {
            return false;
        };
        let mut count = 0usize;
        let mut bytes = 0usize;
        let mut deadline = now;
        for item in lane.items.iter().skip(from) {
            let fits = count < BATCH_MESSAGES_MAX
                && (count as u32) < window.messages
                && bytes + item.sealed.len() <= PUBLISH_BYTES_MAX.min(BATCH_BYTES)
                && (bytes + item.sealed.len()) as u64 <= window.bytes;
            if item.stage != Stage::Pending
                || !(fits || count == 0 && item.sealed.len() as u64 <= window.bytes)
            {
                break;
            }
            count += 1;
            bytes += item.sealed.len();
            deadline = deadline.max(item.deadline);
        }
        if count == 0 {
            return false;
        }
        let mut messages = BytesMut::with_capacity(bytes);
        for item in lane.items.iter_mut().skip(from).take(count) {
            messages.extend_from_slice(&item.sealed);
            if !item.ever_sent {
                self.retry_budget_thousandths = (self.retry_budget_thousandths + RETRY_SHARE_THOUSANDTHS)
                    .min(RETRY_FLOOR_THOUSANDTHS * 64);
            }
            item.ever_sent = true;
            item.stage = Stage::InFlight;
        }
        lane.pending -= count;
        lane.look_from = from + count;
        window.messages -= count as u32;
        window.bytes -= bytes as u64;
        let publish = Publish {
            shard,
            deadline: deadline.since(now).max(Duration::from_millis(100)),
            count: count as u16,
            messages: messages.freeze(),
        };
        let first = lane.first + from as u64;
        self.ways.wish(shard);
        let request = self.request(Asked::Publish { shard, first, count: count as u16 });
        frame::encode(&publish, request, out);
        true
    }

    /// Whether `request` was asked by this session.
    pub fn owns(&self, request: u64) -> bool {
        request >> 48 == u64::from(self.config.tag)
    }

    /// Takes the answer to a publish.
    pub fn published(&mut self, now: Instant, request: u64, answer: &Published) {
        if let Some(Asked::Publish { shard, first, count }) = self.answered(request) {
            self.told(now, shard, first, count, answer);
        }
    }

    /// Takes what became of so many messages of a lane, as one frame had them.
    fn told(&mut self, now: Instant, shard: ShardId, first: u64, count: u16, answer: &Published) {
        let id = |sequence| MessageId {
            producer: self.config.producer,
            epoch: self.config.epoch,
            shard,
            sequence: Sequence(sequence),
        };
        let lane = self.lanes.get_mut(&shard).expect("lanes are never removed");
        let mut sequence = first;
        let mut retried = 0u64;
        let mut worst = None;
        let mut waited = None;
        for run in &answer.runs {
            for n in 0..u64::from(run.count) {
                if sequence >= first + u64::from(count) {
                    break;
                }
                let Some(item) =
                    sequence.checked_sub(lane.first).and_then(|at| lane.items.get_mut(at as usize))
                else {
                    sequence += 1;
                    continue;
                };
                if let Some(window) = self.ways.window(lane.way) {
                    window.messages += 1;
                    window.bytes += item.sealed.len() as u64;
                }
                let code = Code::from_number(run.code).unwrap_or(Code::Malformed);
                match run.outcome {
                    Outcome::Ok => {
                        if !item.told {
                            let offset = run.first_offset.map(|offset| Offset(offset.0 + n));
                            let result =
                                SendResult::Stored { id: id(sequence), offset, duplicate: run.duplicate };
                            self.resolutions.push(Resolution { ticket: item.ticket, result });
                            item.told = true;
                        }
                        item.stage = Stage::Done;
                        lane.backoff = BACKOFF_FIRST;
                        waited = waited.max(Some(now.since(item.since)));
                    }
                    Outcome::Failed if code == Code::Fenced || code == Code::StaleSession => {
                        worst = Some(code);
                        item.stage = Stage::Pending;
                        lane.pending += 1;
                    }
                    Outcome::Failed if !code.is_transient() => {
                        item.stage = Stage::Doomed(code);
                        lane.doomed += 1;
                    }
                    Outcome::Failed | Outcome::Unknown => {
                        item.stage = Stage::Pending;
                        match run.outcome {
                            Outcome::Failed => item.refusal = Some(code),
                            _ => item.unsure = true,
                        }
                        lane.pending += 1;
                        // What is in flight is not watched; its time may have passed meanwhile.
                        lane.next_deadline = lane.next_deadline.min(item.deadline);
                        retried += 1;
                        if code == Code::NotOpen && lane.door == Door::Open {
                            lane.door = Door::Unopened;
                        }
                    }
                }
                sequence += 1;
            }
        }
        if let Some(waited) = waited {
            self.spread.answered(now, shard, waited);
        }
        if retried > 0 {
            lane.look_from = 0;
            // Repeats beyond the budget wait longest, so that a struggling node is not made to struggle more.
            let affordable = self.retry_budget_thousandths >= retried * 1000;
            self.retry_budget_thousandths = self.retry_budget_thousandths.saturating_sub(retried * 1000);
            if !affordable {
                self.retry_budget_thousandths = 0;
                lane.backoff = BACKOFF_MAX;
            }
            self.jitter =
                self.jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let spread = 0.5 + (self.jitter >> 40) as f64 / (1u64 << 24) as f64;
            lane.retry_at = now + lane.backoff.mul_f64(spread);
            lane.backoff = (lane.backoff * 2).min(BACKOFF_MAX);
            self.retry_budget_thousandths += lane.backoff.as_millis() as u64 * 10;
        }
        if let Some(code) = worst {
            self.fence(code);
            return;
        }
        self.shed(shard);
    }

    /// Takes any other answer.
    pub fn answer(&mut self, now: Instant, request: u64, answer: &Answer) {
        let Some(asked) = self.answered(request) else { return };
        let code = Code::from_number(answer.code).unwrap_or(Code::Malformed);
        match asked {
            Asked::Open(shard) => {
                let lane = self.lanes.get_mut(&shard).expect("lanes are never removed");
                match answer.outcome {
                    Outcome::Ok => lane.door = Door::Open,
                    Outcome::Failed if !code.is_transient() => self.fence(code),
                    _ => {
                        lane.door = Door::Unopened;
                        self.pause(now, shard);
                    }
                }
            }
            Asked::Skip(shard) => {
                let lane = self.lanes.get_mut(&shard).expect("lanes are never removed");
                lane.skipping = false;
                let closed = answer.outcome == Outcome::Ok;
                // Already in the log: a copy that was thought refused had been taken.
                let exists = answer.outcome == Outcome::Failed && code == Code::Exists;
                let asked = lane.items.iter().filter(|item| matches!(item.stage, Stage::Skipping(_))).count();
                // Of several, the answer does not say which.
                let taken = exists && asked == 1;
                lane.skip_singly = exists && asked > 1 || lane.skip_singly && lane.doomed > 1;
                let (producer, epoch) = (self.config.producer, self.config.epoch);
                for (at, item) in lane.items.iter_mut().enumerate() {
                    let Stage::Skipping(why) = item.stage else { continue };
                    if !closed && !taken {
                        item.stage = Stage::Doomed(why);
                        continue;
                    }
                    item.stage = Stage::Done;
                    lane.doomed -= 1;
                    if !item.told {
                        item.told = true;
                        let sequence = Sequence(lane.first + at as u64);
                        let id = MessageId { producer, epoch, shard, sequence };
                        let result = if closed {
                            SendResult::Failed(why)
                        } else {
                            SendResult::Stored { id, offset: None, duplicate: true }
                        };
                        self.resolutions.push(Resolution { ticket: item.ticket, result });
                    }
                }
                // All that came before is answered, and a skip is judged by what is committed: with a gap the shard has lost
                // what it acknowledged, and nothing of this session is taken any more.
                if matches!(code, Code::Fenced | Code::StaleSession | Code::Gap) {
                    self.fence(code);
                    return;
                }
                if !closed && !exists {
                    if code == Code::NotOpen && lane.door == Door::Open {
                        lane.door = Door::Unopened;
                    }
                    self.pause(now, shard);
                }
                self.shed(shard);
            }
            Asked::Close(shard) => {
                let lane = self.lanes.get_mut(&shard).expect("lanes are never removed");
                // Whatever the answer: the shard forgets the session by itself, only later.
                lane.door = Door::Closed;
            }
            Asked::Publish { shard, first, count } => {
                // A plain answer to a publish speaks for all of it.
                let run = frame::PublishedRun {
                    count,
                    outcome: answer.outcome,
                    code: answer.code,
                    duplicate: false,
                    first_offset: None,
                };
                self.told(now, shard, first, count, &Published { runs: vec![run] });
            }
        }
    }

    fn pause(&mut self, now: Instant, shard: ShardId) {
        self.lanes.get_mut(&shard).expect("lanes are never removed").pause(now);
    }

    /// Drops what is done from the front of a lane.
    fn shed(&mut self, shard: ShardId) {
        let lane = self.lanes.get_mut(&shard).expect("lanes are never removed");
        while lane.items.front().is_some_and(|item| item.stage == Stage::Done) {
            let item = lane.items.pop_front().expect("looked at above");
            lane.first += 1;
            lane.look_from = lane.look_from.saturating_sub(1);
            self.open_messages -= 1;
            self.open_bytes -= item.sealed.len();
        }
        if lane.items.is_empty() {
            lane.next_deadline = Instant(u64::MAX);
        }
    }

    fn fence(&mut self, code: Code) {
        self.fenced = Some(code);
        for lane in self.lanes.values_mut() {
            for item in lane.items.drain(..) {
                // Its answer comes to nobody; the next session on this connection has the room.
                if item.stage == Stage::InFlight
                    && let Some(window) = self.ways.window(lane.way)
                {
                    window.messages += 1;
                    window.bytes += item.sealed.len() as u64;
                }
                if !item.told {
                    let result =
                        if item.ever_sent { SendResult::Unknown(code) } else { SendResult::Failed(code) };
                    self.resolutions.push(Resolution { ticket: item.ticket, result });
                }
            }
            lane.pending = 0;
            lane.doomed = 0;
        }
        self.open_messages = 0;
        self.open_bytes = 0;
    }

    /// Tells callers whose deadline passed.
    fn expire(&mut self, now: Instant) {
        for lane in self.lanes.values_mut() {
            if lane.next_deadline > now {
                continue;
            }
            lane.next_deadline = Instant(u64::MAX);
            for item in &mut lane.items {
                if item.stage == Stage::Done {
                    continue;
                }
                if item.deadline > now {
                    lane.next_deadline = lane.next_deadline.min(item.deadline);
                    continue;
                }
                if item.told {
                    // Lingered long enough: give the sequence up.
                    if item.stage == Stage::Pending {
                        item.stage = Stage::Doomed(Code::Deadline);
                        lane.pending -= 1;
                        lane.doomed += 1;
                    }
                    continue;
                }
                item.told = true;
                let result = match item.stage {
                    // Never sent, or every copy was refused: the last refusal says why.
                    Stage::Pending if !item.unsure => {
                        let code = item.refusal.unwrap_or(Code::Deadline);
                        item.stage = Stage::Doomed(code);
                        lane.pending -= 1;
                        lane.doomed += 1;
                        SendResult::Failed(code)
                    }
                    Stage::Doomed(code) | Stage::Skipping(code) if !item.unsure => SendResult::Failed(code),
                    _ => {
                        item.deadline = now + LINGER;
                        lane.next_deadline = lane.next_deadline.min(item.deadline);
                        SendResult::Unknown(Code::Deadline)
                    }
                };
                self.resolutions.push(Resolution { ticket: item.ticket, result });
            }
        }
    }

    /// When [`Producer::pump`] has something to do without any input.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        if self.fenced.is_some() {
            return None;
        }
        self.lanes
            .values()
            .flat_map(|lane| {
                let deadline = Some(lane.next_deadline).filter(|at| at.0 != u64::MAX);
                let retry = (!self.ways.is_empty() && lane.retry_at > now && !lane.items.is_empty())
                    .then_some(lane.retry_at);
                [deadline, retry]
            })
            .flatten()
            .min()
    }
}

/// Sealed bytes of one publish frame after which the next begins: large enough to amortise, small enough to pipeline.
const BATCH_BYTES: usize = 256 << 10;

#[cfg(test)]
#[path = "producer_tests.rs"]
mod tests;
