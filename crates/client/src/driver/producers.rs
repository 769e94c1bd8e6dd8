//! The producers of one connection: from a message of the program to a sealed one in its session, and back to its fate.
//!
//! A message waits here, unsealed, while the order of its address is not known or its session has no room; whoever waits
//! past the deadline has failed, because nothing was sent. Once in the session it keeps its shard, its sequence and its
//! bytes. Bounded by the producers' in-flight permits, each of which is held until its message's fate is known.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::BytesMut;
use swarmmq_protocol::{
    admin::Order,
    envelope,
    error::Code,
    frame::{Answer, Published},
    id::{Address, NodeId, ProducerEpoch, ProducerId, Salt},
    limits::{ADDRESS_BYTES_MAX, MAC_BYTES, PLAINTEXT_FRAMING_BYTES_MAX, TAG_BYTES},
    mac,
    policy::Routing,
    session::{
        producer::{self, ProducerConfig, Resolution, SendResult},
        ways::{Way, Ways},
    },
    time::Instant,
};
use swarmmq_seal::{ClientKeyring, Draft, KeyLimits, SESSION_MESSAGES_MAX, Sealer, UserHeader};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    Tags,
    clock::{Clock, wall},
    orders::Orders,
    told,
};
use crate::{
    Error, Message, Options, ProducerOptions, Receipt, SendError,
    connection::Connection,
    producer::{SendReply, Submission},
};

/// Sealed bytes of all open messages of one producer.
const WINDOW_BYTES: usize = 64 << 20;
/// A session holds twice what may be in flight: besides what the program waits for, what it was told to be unknown and
/// is still repeated.
const WINDOW_FACTOR: usize = 2;
/// What sealing adds to headers, key and body, at most.
const SEALING_BYTES_MAX: usize =
    envelope::FIXED_BYTES + ADDRESS_BYTES_MAX + PLAINTEXT_FRAMING_BYTES_MAX + TAG_BYTES + MAC_BYTES;

/// A message whose fate is open.
struct Waiting {
    address: Address,
    reply: SendReply,
    /// Room for the next message, given back with the fate.
    _permit: OwnedSemaphorePermit,
}

struct State {
    tag: u64,
    session: producer::Producer,
    sealer: Sealer,
    /// Messages that this session may still seal.
    seals_left: u64,
    options: ProducerOptions,
    /// Of a named producer: it is never renewed by itself, because another life of it may have taken over.
    named: Option<Identity>,
    /// Why a named producer is over.
    over: Option<Code>,
    waiting: BTreeMap<u64, Waiting>,
    /// What the session has no room for, in order.
    backlog: VecDeque<(Submission, Order)>,
    /// Messages that wait for their address's order.
    unplaced: usize,
    closing: bool,
    /// All fates are known; the shards may be told until then that the session ended.
    goodbye_until: Option<Instant>,
    done: Vec<oneshot::Sender<()>>,
}

impl State {
    /// Whether the program waits for nothing more.
    fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.backlog.is_empty() && self.unplaced == 0
    }

    fn has_room(&self, message: &Message) -> bool {
        self.seals_left > 0 && self.session.has_room(sealed_bytes_max(message))
    }
}

/// Who a named producer is in this life.
pub(crate) type Identity = (ProducerId, ProducerEpoch);

/// What a connection allows: messages and sealed bytes without an answer.
pub(super) type Window = (u32, u64);

pub(super) struct Producers {
    clock: Clock,
    keyring: ClientKeyring,
    key_limits: KeyLimits,
    /// How long a closed producer may take to end its session.
    goodbye: Duration,
    session_messages_max: u64,
    shard_count: u32,
    /// The connections that there are, as a new session finds them.
    ways: Ways,
    /// How the cluster wants messages spread that any shard may take.
    routing: Routing,
    is_home: bool,
    states: BTreeMap<u64, State>,
    /// Producers for which there was no room at all.
    turned_away: BTreeSet<u64>,
    orders: Orders,
    /// Messages that wait for their address's order, as they came.
    parked: BTreeMap<Address, Vec<Submission>>,
    /// No message that is parked or in a backlog is late before.
    next_late: Instant,
    next_ticket: u64,
    resolutions: Vec<Resolution>,
}

impl Producers {
    /// `orders_tag` marks the requests about addresses.
    pub(super) fn new(clock: Clock, options: &Options, orders_tag: u64) -> Self {
        Self {
            clock,
            keyring: options.keyring.clone(),
            key_limits: options.key_limits,
            goodbye: options.close_timeout,
            session_messages_max: SESSION_MESSAGES_MAX,
            shard_count: 1,
            ways: Ways::default(),
            routing: Routing::default(),
            is_home: false,
            states: BTreeMap::new(),
            turned_away: BTreeSet::new(),
            orders: Orders::new(orders_tag),
            parked: BTreeMap::new(),
            next_late: Instant(u64::MAX),
            next_ticket: 1,
            resolutions: Vec::new(),
        }
    }

    /// Other keys for what is sealed from now on. What was sealed before is repeated as it is, in the same lanes: sessions and
    /// sequences go on, so nothing is overtaken and nobody fenced.
    pub(super) fn take_keyring(&mut self, keyring: &ClientKeyring) {
        self.keyring = keyring.clone();
        self.states.values_mut().for_each(|state| state.sealer.take_keyring(keyring));
    }

    pub(super) fn welcomed(&mut self, shard_count: u32) {
        self.shard_count = shard_count;
    }

    pub(super) fn connected(&mut self, way: Way, window: Window) {
        self.is_home |= way == Way::Home;
        self.ways.opened(way, window.0, window.1);
        self.states.values_mut().for_each(|state| state.session.connected(way, window.0, window.1));
    }

    /// Whether there is a home connection.
    pub(super) fn is_home(&self) -> bool {
        self.is_home
    }

    /// Who leads each data shard; of others there is nothing to know.
    pub(super) fn learned(&mut self, leaders: &[Option<NodeId>], routing: &Routing) {
        let leaders = &leaders[..leaders.len().min(self.shard_count as usize)];
        self.ways.learned(leaders);
        self.routing = *routing;
        for state in self.states.values_mut() {
            state.session.learned(leaders);
            state.session.set_routing(routing);
        }
    }

    /// Leaders to which direct connections would be of use.
    pub(super) fn take_wishes(&mut self, into: &mut BTreeSet<NodeId>) {
        self.states.values_mut().for_each(|state| state.session.take_wishes(into));
    }

    /// Nothing new is sent over this connection.
    pub(super) fn leaving(&mut self, way: Way) {
        self.ways.leaving(way);
        self.states.values_mut().for_each(|state| state.session.leaving(way));
    }

    /// Whether everything sent over this connection was answered.
    pub(super) fn is_drained(&self, way: Way) -> bool {
        self.states.values().all(|state| state.session.is_drained(way))
    }

    pub(super) fn disconnected(&mut self, way: Way) {
        if way == Way::Home {
            self.is_home = false;
            self.orders.disconnected();
        }
        self.ways.lost(way);
        self.states.values_mut().for_each(|state| state.session.disconnected(way));
    }

    pub(super) fn open(
        &mut self,
        tags: &mut Tags,
        number: u64,
        options: ProducerOptions,
        named: Option<Identity>,
    ) {
        let Some(tag) = tags.producer(number) else {
            self.turned_away.insert(number);
            return;
        };
        let (session, sealer) = self.session(tag, options, named);
        let state = State {
            tag,
            session,
            sealer,
            seals_left: self.session_messages_max,
            options,
            named,
            over: None,
            waiting: BTreeMap::new(),
            backlog: VecDeque::new(),
            unplaced: 0,
            closing: false,
            goodbye_until: None,
            done: Vec::new(),
        };
        self.states.insert(number, state);
    }

    /// A session in a life that nobody had before: its key is new, so its sequences may begin at one.
    fn session(
        &self,
        tag: u64,
        options: ProducerOptions,
        named: Option<Identity>,
    ) -> (producer::Producer, Sealer) {
        let unnamed = || (ProducerId(u128::from_be_bytes(crate::random())), ProducerEpoch(1));
        let (producer, epoch) = named.unwrap_or_else(unnamed);
        let salt = Salt(crate::random());
        let mut session = producer::Producer::new(ProducerConfig {
            tag: tag as u16,
            producer,
            epoch,
            salt,
            created_at: wall(),
            policy: options.policy,
            window_messages: options.in_flight.max(1).saturating_mul(WINDOW_FACTOR),
            window_bytes: WINDOW_BYTES,
            seed: u64::from_be_bytes(crate::random()),
            slip: None,
        });
        session.take_ways(self.ways.clone());
        session.set_shards(self.shard_count);
        session.set_routing(&self.routing);
        (session, Sealer::new(&self.keyring, producer, epoch, salt).with_limits(self.key_limits))
    }

    /// A fresh session takes over: the old one was fenced, forgotten, or has sealed all that its key may.
    fn renew(&mut self, tags: &mut Tags, number: u64) {
        let State { tag: old, options, .. } = self.states[&number];
        // Under a new tag, so that late answers to the old session reach nobody.
        let tag = tags.producer(number).unwrap_or(old);
        if tag != old {
            tags.release(old);
        }
        let (mut session, sealer) = self.session(tag, options, None);
        let state = self.states.get_mut(&number).expect("looked up above");
        session.adopt_ways(&state.session);
        debug_assert!(state.waiting.is_empty(), "a session ends when all of its fates are known");
        (state.tag, state.session, state.sealer) = (tag, session, sealer);
        state.seals_left = self.session_messages_max;
    }

    /// Takes a message of the program.
    pub(super) fn submit(&mut self, submission: Submission) {
        let Some(state) = self.states.get_mut(&submission.producer).filter(|state| !state.closing) else {
            let error = if self.turned_away.contains(&submission.producer) {
                let message = "too many producers and consumers on one connection".into();
                Error::Failed { code: Code::Limit, message }
            } else {
                Error::Closed
            };
            told(submission.reply, Err(error));
            return;
        };
        match self.orders.get(&submission.address) {
            Some(order) => self.place(submission, order),
            None => {
                state.unplaced += 1;
                self.orders.want(&submission.address, state.options.order);
                self.next_late = self.next_late.min(self.clock.of(submission.until));
                self.parked.entry(submission.address.clone()).or_default().push(submission);
            }
        }
    }

    /// The order of the message's address is known: into the session, or behind those that wait for room there.
    fn place(&mut self, submission: Submission, order: Order) {
        let Some(state) = self.states.get_mut(&submission.producer) else {
            told(submission.reply, Err(Error::Closed));
            return;
        };
        if let Some(code) = state.over {
            told(submission.reply, Err(is_over(code)));
            return;
        }
        if state.options.order.is_some_and(|wanted| wanted != order) {
            let message = format!("{} has order {}", submission.address, order.text());
            told(submission.reply, Err(Error::Failed { code: Code::OrderConflict, message }));
            return;
        }
        if !state.backlog.is_empty() || !state.has_room(&submission.message) {
            self.next_late = self.next_late.min(self.clock.of(submission.until));
            state.backlog.push_back((submission, order));
            return;
        }
        self.next_ticket += 1;
        hand_over(state, submission, order, self.next_ticket, self.shard_count, self.clock);
    }

    /// The node says which order an address has. False: nobody asked it here.
    pub(super) fn resolved(&mut self, request: u64, order: Order) {
        let Some(address) = self.orders.resolved(request, order) else { return };
        for submission in self.unpark(&address) {
            self.place(submission, order);
        }
    }

    /// The node does not say which order an address has.
    pub(super) fn unresolved(&mut self, request: u64, answer: &Answer) {
        let Some((address, error)) = self.orders.refused(self.clock.now(), request, answer) else { return };
        for submission in self.unpark(&address) {
            told(submission.reply, Err(error.clone()));
        }
    }

    fn unpark(&mut self, address: &Address) -> Vec<Submission> {
        let submissions = self.parked.remove(address).unwrap_or_default();
        for submission in &submissions {
            if let Some(state) = self.states.get_mut(&submission.producer) {
                state.unplaced -= 1;
            }
        }
        submissions
    }

    pub(super) fn published(&mut self, number: u64, request: u64, published: &Published) {
        if let Some(state) = self.states.get_mut(&number) {
            state.session.published(self.clock.now(), request, published);
        }
    }

    pub(super) fn answered(&mut self, number: u64, request: u64, answer: &Answer) {
        if let Some(state) = self.states.get_mut(&number) {
            state.session.answer(self.clock.now(), request, answer);
        }
    }

    /// A producer takes no more messages; it goes when all fates are known and its shards were told, or soon after.
    pub(super) fn close(&mut self, number: u64, done: Option<oneshot::Sender<()>>) {
        self.turned_away.remove(&number);
        if let Some(state) = self.states.get_mut(&number) {
            state.closing = true;
            state.done.extend(done);
        }
    }

    pub(super) fn close_all(&mut self) {
        self.states.values_mut().for_each(|state| state.closing = true);
    }

    /// Whether no producer is left.
    pub(super) fn is_idle(&self) -> bool {
        self.states.is_empty()
    }

    /// Whether the program waits for no fate.
    pub(super) fn is_quiet(&self) -> bool {
        self.states.values().all(State::is_quiet)
    }

    /// Writes what can be sent home and over direct connections, and tells the program what became known. Deadlines pass
    /// without any connection too.
    pub(super) fn pump(
        &mut self,
        tags: &mut Tags,
        home: &mut BytesMut,
        direct: &mut BTreeMap<NodeId, Connection>,
    ) {
        let now = self.clock.now();
        self.hear_fates(now, tags);
        self.expire(now);
        for state in self.states.values_mut() {
            while let Some((next, _)) = state.backlog.front()
                && state.has_room(&next.message)
            {
                let (submission, order) = state.backlog.pop_front().expect("looked at above");
                self.next_ticket += 1;
                hand_over(state, submission, order, self.next_ticket, self.shard_count, self.clock);
            }
            if state.closing && state.unplaced == 0 && state.backlog.is_empty() {
                state.session.close();
            }
            state.session.pump(now, Way::Home, home);
            for (node, connection) in &mut *direct {
                state.session.pump(now, Way::Direct(*node), &mut connection.out);
            }
        }
        if self.is_home {
            self.orders.pump(now, home);
        }
        self.hear_fates(now, tags);
    }

    /// Ends messages that waited too long for the order of their address, or for room.
    fn expire(&mut self, now: Instant) {
        if now < self.next_late {
            return;
        }
        self.next_late = Instant(u64::MAX);
        let clock = self.clock;
        for (address, submissions) in &mut self.parked {
            for submission in std::mem::take(submissions) {
                let late = clock.of(submission.until);
                if late > now {
                    self.next_late = self.next_late.min(late);
                    submissions.push(submission);
                    continue;
                }
                if let Some(state) = self.states.get_mut(&submission.producer) {
                    state.unplaced -= 1;
                }
                told(submission.reply, Err(not_sent()));
            }
            if submissions.is_empty() {
                self.orders.unwant(address);
            }
        }
        self.parked.retain(|_, submissions| !submissions.is_empty());
        for state in self.states.values_mut() {
            for (submission, order) in std::mem::take(&mut state.backlog) {
                let late = clock.of(submission.until);
                if late > now {
                    self.next_late = self.next_late.min(late);
                    state.backlog.push_back((submission, order));
                } else {
                    told(submission.reply, Err(not_sent()));
                }
            }
        }
    }

    /// Tells the program the fates that became known, renews sessions that ended, drops producers that are done.
    fn hear_fates(&mut self, now: Instant, tags: &mut Tags) {
        let (mut ended, mut over) = (Vec::new(), Vec::new());
        for (number, state) in &mut self.states {
            state.session.take_resolutions(&mut self.resolutions);
            for Resolution { ticket, result } in self.resolutions.drain(..) {
                let Some(waiting) = state.waiting.remove(&ticket) else { continue };
                if let SendResult::Failed(Code::NoSuchAddress | Code::WrongShard) = result {
                    // Removed, or made anew in another order: the next message asks again.
                    self.orders.forget(&waiting.address);
                }
                told(waiting.reply, fate(result));
            }
            if state.closing && state.is_quiet() {
                let until = *state.goodbye_until.get_or_insert(now + self.goodbye);
                if state.session.is_closed() || until <= now {
                    over.push(*number);
                }
            } else if state.session.fenced().is_some()
                || state.seals_left == 0 && state.session.open_messages() == 0
            {
                ended.push(*number);
            }
        }
        for number in ended {
            let state = self.states.get_mut(&number).expect("listed above");
            if state.named.is_none() {
                self.renew(tags, number);
            } else if state.over.is_none() {
                let code = state.session.fenced().unwrap_or(Code::Limit);
                state.over = Some(code);
                for (submission, _) in state.backlog.drain(..) {
                    told(submission.reply, Err(is_over(code)));
                }
            }
        }
        for number in over {
            let Some(state) = self.states.remove(&number) else { continue };
            tags.release(state.tag);
            for done in state.done {
                // The program may have stopped waiting.
                let _unheard = done.send(()).is_err();
            }
        }
    }

    /// When [`Producers::pump`] has something to do without any input.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let now = self.clock.now();
        let late = Some(self.next_late).filter(|at| at.0 != u64::MAX);
        let orders = if self.is_home { self.orders.next_wake() } else { None };
        let sessions =
            self.states.values().flat_map(|state| [state.session.next_wake(now), state.goodbye_until]);
        sessions.chain([late, orders]).flatten().min()
    }

    /// The client ends: every message is told what is certain about it.
    pub(super) fn end(&mut self) {
        let mut nowhere = BytesMut::new();
        for state in self.states.values_mut() {
            // At the end of time every deadline has passed, and the session knows what was ever sent.
            state.session.cut_off();
            state.session.pump(Instant(u64::MAX), Way::Home, &mut nowhere);
            state.session.take_resolutions(&mut self.resolutions);
            for Resolution { ticket, result } in self.resolutions.drain(..) {
                let Some(waiting) = state.waiting.remove(&ticket) else { continue };
                let result = match result {
                    SendResult::Failed(Code::Deadline) => Err(Error::Closed),
                    SendResult::Unknown(code) => Err(Error::Unknown {
                        code,
                        message: "the client was closed before the answer".into(),
                    }),
                    known => fate(known),
                };
                told(waiting.reply, result);
            }
            for (submission, _) in std::mem::take(&mut state.backlog) {
                told(submission.reply, Err(Error::Closed));
            }
        }
        for submission in std::mem::take(&mut self.parked).into_values().flatten() {
            told(submission.reply, Err(Error::Closed));
        }
    }
}

/// Pins a message to its shard and its sequence, and seals it for them.
fn hand_over(
    state: &mut State,
    submission: Submission,
    order: Order,
    ticket: u64,
    shard_count: u32,
    clock: Clock,
) {
    let Submission { address, message, until, reply, permit, .. } = submission;
    let key = message.key.as_deref();
    let shard = match (order, key) {
        (Order::Total, _) => mac::ring(&address, None, shard_count),
        (Order::Key, Some(key)) => {
            mac::ring(&address, Some(&state.sealer.key_hash(&address, key)), shard_count)
        }
        (Order::Key | Order::None, _) => state.session.choose(clock.now()),
    };
    let headers: Vec<UserHeader> =
        message.headers.into_iter().map(|(name, value)| UserHeader { name, value }).collect();
    let (sealer, compress) = (&mut state.sealer, state.options.compress);
    let sealed = state.session.submit(ticket, shard, (clock.now(), clock.of(until)), |sequence| {
        sealer.seal(&Draft {
            address: &address,
            shard,
            sequence,
            key,
            headers: &headers,
            body: &message.body,
            published_at: wall(),
            trace: None,
            compress,
        })
    });
    match sealed {
        Ok(_) => {
            state.seals_left -= 1;
            state.waiting.insert(ticket, Waiting { address, reply, _permit: permit });
        }
        Err(error) => told(reply, Err(Error::Seal(error))),
    }
}

fn fate(result: SendResult) -> Result<Receipt, SendError> {
    match result {
        SendResult::Stored { id, offset, duplicate } => {
            Ok(Receipt { id, shard: id.shard, offset, duplicate })
        }
        SendResult::Failed(code) => Err(Error::Failed { code, message: String::new() }),
        SendResult::Unknown(code) => Err(Error::Unknown { code, message: String::new() }),
    }
}

/// A named producer that can send nothing more.
fn is_over(code: Code) -> Error {
    let message = match code {
        Code::Fenced | Code::StaleSession => "another life of this named producer took over",
        Code::Gap => "the cluster has lost what it acknowledged to this named producer: take it over again",
        _ => "this life of the named producer is used up: take it over again",
    };
    Error::Failed { code, message: message.into() }
}

fn not_sent() -> Error {
    let message = "no room, or no answer about the address, in time; nothing was sent".into();
    Error::Failed { code: Code::Deadline, message }
}

/// An upper bound, so that a window of bytes is kept before anything is sealed.
fn sealed_bytes_max(message: &Message) -> usize {
    let headers: usize = message.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    message.body.len() + headers + message.key.as_ref().map_or(0, bytes::Bytes::len) + SEALING_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use swarmmq_protocol::{
        error::Outcome,
        frame::{Frame, FrameReader, PublishedRun},
        time::WallTime,
    };
    use tokio::sync::Semaphore;

    use super::{super::clock::after, *};

    const NUMBER: u64 = 7;

    struct Story {
        producers: Producers,
        tags: Tags,
        permits: Arc<Semaphore>,
    }

    impl Story {
        /// One producer on an open connection, with sessions of at most so many messages.
        fn new(options: ProducerOptions, session_messages_max: u64) -> Self {
            let mut next = 0;
            let keyring = ClientKeyring::generate(WallTime(1), &mut |out| {
                next += 1;
                out.fill(next);
            })
            .unwrap();
            let mut with = Options::new(Vec::new(), keyring);
            with.close_timeout = Duration::from_secs(60);
            let mut producers = Producers::new(Clock::start(), &with, super::super::tags::ORDERS);
            producers.session_messages_max = session_messages_max;
            producers.welcomed(4);
            producers.connected(Way::Home, (100, 1 << 30));
            let mut tags = Tags::default();
            producers.open(&mut tags, NUMBER, options, None);
            Self { producers, tags, permits: Arc::new(Semaphore::new(100)) }
        }

        fn submit(&mut self, body: usize) -> oneshot::Receiver<Result<Receipt, SendError>> {
            let (reply, fate) = oneshot::channel();
            self.producers.submit(Submission {
                producer: NUMBER,
                address: Address::parse("a.b").unwrap(),
                message: Message::new("a.b", vec![7; body]),
                until: after(Duration::from_secs(60)),
                reply,
                permit: Arc::clone(&self.permits).try_acquire_owned().unwrap(),
            });
            fate
        }

        fn pump(&mut self) -> Vec<(u64, Frame)> {
            let mut out = BytesMut::new();
            self.producers.pump(&mut self.tags, &mut out, &mut BTreeMap::new());
            let mut reader = FrameReader::new();
            reader.set_authenticated();
            reader.buffer().extend_from_slice(&out);
            std::iter::from_fn(|| reader.next_frame().unwrap())
                .map(|(header, body)| (header.request, Frame::decode(header.kind, body).unwrap()))
                .collect()
        }

        /// Answers everything with yes until nothing more is asked. Returns how many messages each session was sent.
        fn run(&mut self) -> Vec<u16> {
            let mut sent = Vec::new();
            loop {
                let frames = self.pump();
                if frames.is_empty() {
                    return sent;
                }
                for (request, frame) in frames {
                    match frame {
                        Frame::Resolve(_) => self.producers.resolved(request, Order::Total),
                        Frame::OpenSession(_) => {
                            sent.push(0);
                            self.producers.answered(NUMBER, request, &Answer::ok());
                        }
                        Frame::Publish(publish) => {
                            *sent.last_mut().unwrap() += publish.count;
                            let run = PublishedRun {
                                count: publish.count,
                                outcome: Outcome::Ok,
                                code: 0,
                                duplicate: false,
                                first_offset: None,
                            };
                            self.producers.published(NUMBER, request, &Published { runs: vec![run] });
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_session_that_has_sealed_all_it_may_is_followed_by_a_fresh_one() {
        let mut story = Story::new(ProducerOptions::default(), 2);
        let fates: Vec<_> = (0..5).map(|_| story.submit(1)).collect();
        assert_eq!(story.run(), [2, 2, 1]);
        let ids: Vec<_> = fates.into_iter().map(|mut fate| fate.try_recv().unwrap().unwrap().id).collect();
        assert_eq!(ids.iter().map(|id| id.sequence.0).collect::<Vec<_>>(), [1, 2, 1, 2, 1]);
        assert_ne!(ids[1].producer, ids[2].producer, "never two sessions under one key");
        assert_eq!(story.permits.available_permits(), 100);
    }

    #[test]
    fn large_messages_wait_unsealed_behind_the_window_of_bytes() {
        let mut story = Story::new(ProducerOptions::default(), 1000);
        let fates: Vec<_> = (0..70).map(|_| story.submit(1 << 20)).collect();
        assert!(matches!(story.pump()[..], [(request, Frame::Resolve(_))] if {
            story.producers.resolved(request, Order::Total);
            true
        }));
        let state = &story.producers.states[&NUMBER];
        assert!((60..64).contains(&state.waiting.len()), "{}", state.waiting.len());
        assert_eq!(state.waiting.len() + state.backlog.len(), 70);
        assert_eq!(story.run(), [70]);
        assert!(fates.into_iter().all(|mut fate| fate.try_recv().unwrap().is_ok()));
    }

    #[test]
    fn closing_waits_for_fates_and_then_no_longer_than_a_goodbye_takes() {
        let mut story = Story::new(ProducerOptions::default(), 1000);
        let mut fate = story.submit(1);
        let (done, mut closed) = oneshot::channel();
        story.producers.close(NUMBER, Some(done));
        story.pump();
        assert!(!story.producers.is_idle(), "its message has no fate yet");
        assert!(closed.try_recv().is_err());
        story.producers.end();
        assert_eq!(fate.try_recv().unwrap(), Err(Error::Closed), "it never left");

        let mut story = Story::new(ProducerOptions::default(), 1000);
        drop(story.submit(1));
        story.run();
        let (done, mut closed) = oneshot::channel();
        story.producers.close(NUMBER, Some(done));
        assert!(matches!(story.pump()[..], [(_, Frame::CloseSession(_))]));
        assert!(!story.producers.is_idle(), "the shard has not answered");
        story.producers.hear_fates(Instant(u64::MAX), &mut story.tags);
        assert!(story.producers.is_idle());
        assert_eq!(closed.try_recv(), Ok(()));
    }

    #[test]
    fn a_producer_without_a_tag_is_told_so() {
        let mut story = Story::new(ProducerOptions::default(), 1000);
        while story.tags.producer(1).is_some() {}
        story.producers.close(NUMBER, None);
        story.producers.open(&mut story.tags, NUMBER + 1, ProducerOptions::default(), None);
        let (reply, mut fate) = oneshot::channel();
        story.producers.submit(Submission {
            producer: NUMBER + 1,
            address: Address::parse("a.b").unwrap(),
            message: Message::new("a.b", "x"),
            until: after(Duration::from_secs(60)),
            reply,
            permit: Arc::clone(&story.permits).try_acquire_owned().unwrap(),
        });
        let error = fate.try_recv().unwrap().unwrap_err();
        assert!(matches!(error, Error::Failed { code: Code::Limit, .. }), "{error:?}");
    }
}
