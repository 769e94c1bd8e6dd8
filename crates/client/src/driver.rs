//! The task behind a [`crate::SwarmMq`]: owns the connection and every session on it, and only carries bytes and news
//! between them. What is retried, re-claimed or filtered is decided in `protocol::session`.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use swarmmq_protocol::{
    admin::{AdminAnswer, AdminRequest, Order},
    envelope,
    error::{Code, Outcome},
    frame::{self, Admin, Answer, Frame, FrameHeader, FrameKind, Peek, Resolve, SettleAction},
    id::{Address, ClusterId, ConsumerId, GroupName, Offset, ProducerEpoch, ProducerId, Salt, ShardId},
    mac,
    session::{
        consumer::{self, ConsumerConfig, DeliveryId, SettleResolution, SettleResult},
        producer::{self, ProducerConfig, Resolution, SendResult},
    },
    time::{Instant, WallTime},
};
use swarmmq_seal::{Draft, Opener, Sealer, UserHeader};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Error, Options, ProducerOptions, Receipt, Received, Seen, SettleError, SubscribeOptions,
    connection::{ConnectError, Connection, Reply},
    producer::Submission,
};

/// First pause between attempts to connect; doubles up to [`RECONNECT_MAX`].
const RECONNECT_FIRST: Duration = Duration::from_millis(10);
const RECONNECT_MAX: Duration = Duration::from_millis(400);
/// Commands taken before the sessions are pumped.
const COMMANDS_PER_TURN: usize = 8192;
/// Time to finish what is under way when the program closes.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes of all unanswered messages of one producer.
const PRODUCER_WINDOW_BYTES: usize = 64 << 20;
/// Messages of unkeyed traffic that go to one shard before the next one has its turn.
const SPREAD_RUN: u64 = 32;
/// Tag of requests that belong to no session.
const CONTROL_TAG: u64 = 0xffff;

/// What the program asks of its connection.
pub(crate) enum Command {
    OpenProducer {
        number: u64,
        options: ProducerOptions,
    },
    Submit(Submission),
    CloseProducer {
        number: u64,
        done: Option<oneshot::Sender<()>>,
    },
    OpenConsumer {
        number: u64,
        address: Address,
        group: GroupName,
        options: SubscribeOptions,
        outbox: mpsc::UnboundedSender<Result<Received, Error>>,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    Settle {
        consumer: u64,
        id: DeliveryId,
        action: SettleAction,
        reason: String,
        reply: oneshot::Sender<Result<(), SettleError>>,
    },
    CloseConsumer {
        number: u64,
        done: Option<oneshot::Sender<()>>,
    },
    Admin {
        request: AdminRequest,
        reply: Reply<Option<AdminAnswer>>,
    },
    Resolve {
        address: Address,
        create: bool,
        order: Option<Order>,
        reply: Reply<Order>,
    },
    Peek {
        peek: Peek,
        reply: Reply<(Vec<Seen>, Offset, bool)>,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

/// A question that belongs to no session. Asked again on the next connection if the first one breaks.
enum Question {
    Admin(AdminRequest, Reply<Option<AdminAnswer>>),
    Resolve(Resolve, Reply<Order>),
    Peek(Peek, Reply<(Vec<Seen>, Offset, bool)>),
    /// For the driver itself: waiting submissions go on when it is answered.
    Order(Address, Option<Order>),
}

struct ProducerState {
    session: producer::Producer,
    sealer: Sealer,
    options: ProducerOptions,
    waiting: BTreeMap<u64, (oneshot::Sender<Result<Receipt, Error>>, tokio::sync::OwnedSemaphorePermit)>,
    spread: u64,
    done: Option<oneshot::Sender<()>>,
}

struct ConsumerState {
    session: consumer::Consumer,
    address: Address,
    outbox: mpsc::UnboundedSender<Result<Received, Error>>,
    joined: Option<oneshot::Sender<Result<(), Error>>>,
    waiting: BTreeMap<u64, oneshot::Sender<Result<(), SettleError>>>,
    done: Option<oneshot::Sender<()>>,
}

enum Known {
    Order(Order),
    Asking(Vec<Submission>),
}

pub(crate) struct Driver {
    options: Options,
    inbox: mpsc::UnboundedReceiver<Command>,
    /// For handles given to the program; does not keep the driver alive.
    commands: mpsc::WeakUnboundedSender<Command>,
    first: Option<oneshot::Sender<Result<(ClusterId, u32), Error>>>,
    started: tokio::time::Instant,
    producers: BTreeMap<u64, ProducerState>,
    consumers: BTreeMap<u64, ConsumerState>,
    by_tag: BTreeMap<u64, (bool, u64)>,
    next_tag: u64,
    opener: Opener,
    orders: BTreeMap<Address, Known>,
    shard_count: u32,
    questions: BTreeMap<u64, Question>,
    unsent: VecDeque<u64>,
    next_number: u64,
    closing: Option<(tokio::time::Instant, Vec<oneshot::Sender<()>>)>,
    resolutions: Vec<Resolution>,
    settlements: Vec<SettleResolution>,
}

impl Driver {
    pub(crate) fn new(
        options: Options,
        inbox: mpsc::UnboundedReceiver<Command>,
        commands: mpsc::WeakUnboundedSender<Command>,
        first: oneshot::Sender<Result<(ClusterId, u32), Error>>,
    ) -> Self {
        let opener = Opener::new(&options.keyring);
        Self {
            options,
            inbox,
            commands,
            first: Some(first),
            started: tokio::time::Instant::now(),
            producers: BTreeMap::new(),
            consumers: BTreeMap::new(),
            by_tag: BTreeMap::new(),
            next_tag: 0,
            opener,
            orders: BTreeMap::new(),
            shard_count: 1,
            questions: BTreeMap::new(),
            unsent: VecDeque::new(),
            next_number: 1,
            closing: None,
            resolutions: Vec::new(),
            settlements: Vec::new(),
        }
    }

    fn now(&self) -> Instant {
        Instant(self.started.elapsed().as_nanos() as u64 + 1_000_000_000)
    }

    fn at(&self, instant: Instant) -> tokio::time::Instant {
        self.started + Duration::from_nanos(instant.0.saturating_sub(1_000_000_000))
    }

    /// Runs until the program closes the connection or drops every handle.
    pub(crate) async fn run(mut self) {
        let give_up = tokio::time::Instant::now() + self.options.connect_timeout;
        let mut pause = RECONNECT_FIRST;
        let mut attempt = usize::from_be_bytes(crate::random());
        loop {
            let servers = &self.options.servers;
            let server = servers.get(attempt % servers.len().max(1)).cloned().unwrap_or_default();
            attempt = attempt.wrapping_add(1);
            match Connection::open(&server, &self.options.keyring, &self.options.principal).await {
                Ok((connection, ready)) => {
                    pause = RECONNECT_FIRST;
                    self.shard_count = ready.welcome.shard_count;
                    if let Some(first) = self.first.take()
                        && first.send(Ok((ready.cluster, ready.welcome.shard_count))).is_err()
                    {
                        return;
                    }
                    let now = self.now();
                    let (messages, bytes) =
                        (ready.welcome.publish_window_messages, ready.welcome.publish_window_bytes);
                    self.producers.values_mut().for_each(|state| state.session.connected(messages, bytes));
                    self.consumers.values_mut().for_each(|state| state.session.connected(now));
                    if self.serve(connection, messages, bytes).await {
                        return;
                    }
                    self.producers.values_mut().for_each(|state| state.session.disconnected());
                    self.consumers.values_mut().for_each(|state| state.session.disconnected());
                    self.unsent = self.questions.keys().copied().collect();
                }
                Err(error) => {
                    let fatal = match error {
                        ConnectError::Refused(error) => Some(error),
                        ConnectError::Io(last) if tokio::time::Instant::now() >= give_up => {
                            Some(Error::Unreachable { servers: self.options.servers.join(","), last })
                        }
                        ConnectError::Io(_) => None,
                    };
                    if let Some(error) = fatal
                        && let Some(first) = self.first.take()
                    {
                        // Nobody waits for the connection any more if this fails.
                        let _unheard = first.send(Err(error)).is_err();
                        return;
                    }
                }
            }
            let jitter = 0.5 + f64::from(u16::from_be_bytes(crate::random())) / 65_536.0;
            let until = tokio::time::Instant::now() + pause.mul_f64(jitter);
            pause = (pause * 2).min(RECONNECT_MAX);
            if self.wait_detached(until).await {
                return;
            }
        }
    }

    /// Takes commands while there is no connection. True: the program is done.
    async fn wait_detached(&mut self, until: tokio::time::Instant) -> bool {
        loop {
            tokio::select! {
                biased;
                command = self.inbox.recv() => {
                    match command {
                        Some(command) => self.command(command),
                        None => self.begin_close(None),
                    }
                }
                () = tokio::time::sleep_until(until) => {
                    self.expire();
                    return self.closed(false);
                }
            }
            self.expire();
            if self.closed(false) {
                return true;
            }
            if self.inbox.is_closed() && self.closing.is_some() {
                tokio::time::sleep_until(until).await;
                return self.closed(false);
            }
        }
    }

    /// Deadlines pass without a connection too.
    fn expire(&mut self) {
        let now = self.now();
        let mut nowhere = bytes::BytesMut::new();
        for state in self.producers.values_mut() {
            state.session.pump(now, &mut nowhere);
        }
        self.tell();
    }

    /// Serves one connection until it breaks. True: the program is done.
    async fn serve(&mut self, mut connection: Connection, messages: u32, bytes: u64) -> bool {
        let mut ended = false;
        loop {
            self.pump(&mut connection);
            if connection.write().is_err() {
                return false;
            }
            if self.closed(true) && !connection.has_output() {
                return true;
            }
            let now = self.now();
            let wake = self
                .producers
                .values()
                .map(|state| state.session.next_wake(now))
                .chain(self.consumers.values().map(|state| state.session.next_wake()))
                .flatten()
                .min()
                .map_or_else(|| tokio::time::Instant::now() + Duration::from_secs(1), |at| self.at(at));
            let wake = self.closing.as_ref().map_or(wake, |(until, _)| wake.min(*until));
            tokio::select! {
                biased;
                ready = connection.ready() => {
                    if ready.is_err() || !self.hear(&mut connection) {
                        return false;
                    }
                    self.take_commands(messages, bytes, None);
                }
                command = self.inbox.recv(), if !ended => {
                    match command {
                        Some(command) => self.take_commands(messages, bytes, Some(command)),
                        None => {
                            ended = true;
                            self.begin_close(None);
                        }
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Takes what the program has asked so far, so that everything at hand goes out together.
    fn take_commands(&mut self, messages: u32, bytes: u64, first: Option<Command>) {
        let now = self.now();
        let known: (usize, usize) = (self.producers.len(), self.consumers.len());
        if let Some(command) = first {
            self.command(command);
        }
        for _ in 0..COMMANDS_PER_TURN {
            let Ok(command) = self.inbox.try_recv() else { break };
            self.command(command);
        }
        if (self.producers.len(), self.consumers.len()) != known {
            // Sessions made meanwhile are connected too; for the others this changes nothing.
            for state in self.producers.values_mut().filter(|state| !state.session.is_connected()) {
                state.session.connected(messages, bytes);
            }
            self.consumers.values_mut().for_each(|state| state.session.connected(now));
        }
    }

    fn pump(&mut self, connection: &mut Connection) {
        let now = self.now();
        while let Some(number) = self.unsent.pop_front() {
            let request = CONTROL_TAG << 48 | number;
            match self.questions.get(&number) {
                None => {}
                Some(Question::Admin(admin, _)) => {
                    frame::encode(&Admin(admin.clone()), request, &mut connection.out)
                }
                Some(Question::Resolve(resolve, _)) => frame::encode(resolve, request, &mut connection.out),
                Some(Question::Peek(peek, _)) => frame::encode(peek, request, &mut connection.out),
                Some(Question::Order(address, order)) => {
                    let resolve = Resolve {
                        address: address.clone(),
                        create: true,
                        order: *order,
                        deadline: Duration::from_secs(30),
                    };
                    frame::encode(&resolve, request, &mut connection.out);
                }
            }
        }
        self.producers.values_mut().for_each(|state| state.session.pump(now, &mut connection.out));
        self.consumers.values_mut().for_each(|state| state.session.pump(now, &mut connection.out));
        self.tell();
    }

    /// Reads frames and hands them to their sessions. False: the connection is over.
    fn hear(&mut self, connection: &mut Connection) -> bool {
        let open = matches!(connection.read(), Ok(true));
        let now = self.now();
        loop {
            match connection.next_frame() {
                Ok(Some((header, body))) => {
                    if !self.frame(now, header, body, connection) {
                        return false;
                    }
                }
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        open
    }

    fn frame(&mut self, now: Instant, header: FrameHeader, body: Bytes, connection: &mut Connection) -> bool {
        let Ok(frame) = Frame::decode(header.kind, body) else { return false };
        let request = header.request;
        let tag = request >> 48;
        let owner = self.by_tag.get(&tag).copied();
        match frame {
            Frame::Deliver(deliver) => {
                if let Some(state) = self
                    .consumers
                    .values_mut()
                    .find(|state| state.session.subscription() == deliver.subscription)
                {
                    state.session.deliver(now, deliver);
                }
            }
            Frame::LeaseLost(lost) => {
                if let Some(state) = self
                    .consumers
                    .values_mut()
                    .find(|state| state.session.subscription() == lost.subscription)
                {
                    state.session.lease_lost(&lost);
                }
            }
            Frame::Published(published) => {
                if let Some((true, number)) = owner
                    && let Some(state) = self.producers.get_mut(&number)
                {
                    state.session.published(now, request, &published);
                }
            }
            Frame::Subscribed(subscribed) => {
                if let Some((false, number)) = owner
                    && let Some(state) = self.consumers.get_mut(&number)
                {
                    state.session.subscribed(request, &subscribed);
                }
            }
            Frame::Settled(settled) => {
                if let Some((false, number)) = owner
                    && let Some(state) = self.consumers.get_mut(&number)
                {
                    state.session.settled(now, request, &settled);
                }
            }
            Frame::Answer(answer) => match owner {
                Some((true, number)) => {
                    if let Some(state) = self.producers.get_mut(&number) {
                        state.session.answer(now, request, &answer);
                    }
                }
                Some((false, number)) => {
                    if let Some(state) = self.consumers.get_mut(&number) {
                        state.session.answer(now, request, &answer);
                    }
                }
                None => self.answered(request, &answer),
            },
            Frame::Resolved(resolved) => match self.questions.remove(&(request & 0xffff_ffff_ffff)) {
                Some(Question::Order(address, _)) => self.order_known(&address, resolved.order),
                Some(Question::Resolve(_, reply)) => answer(reply, Ok(resolved.order)),
                _ => {}
            },
            Frame::AdminReply(reply) => {
                if let Some(Question::Admin(_, to)) = self.questions.remove(&(request & 0xffff_ffff_ffff)) {
                    answer(to, Ok(Some(reply.0)));
                }
            }
            Frame::Peeked(peeked) => {
                if let Some(Question::Peek(peek, to)) = self.questions.remove(&(request & 0xffff_ffff_ffff)) {
                    let seen = peeked
                        .items
                        .into_iter()
                        .map(|item| self.see(peek.shard, item.offset, item.reason, &item.sealed))
                        .collect::<Result<Vec<Seen>, Error>>();
                    answer(to, seen.map(|seen| (seen, peeked.next_offset, peeked.end)));
                }
            }
            Frame::Ping(_) => frame::encode(&frame::Pong, request, &mut connection.out),
            // The node is stopping: what is under way will be repeated elsewhere, or when it is back.
            Frame::GoAway(_) => {}
            Frame::Refused(_) => return false,
            _ => return header.kind == FrameKind::Pong,
        }
        true
    }

    fn answered(&mut self, request: u64, reply: &Answer) {
        let number = request & 0xffff_ffff_ffff;
        let code = Code::from_number(reply.code).unwrap_or(Code::Malformed);
        let error = match reply.outcome {
            Outcome::Unknown => Error::Unknown { code, message: reply.message.clone() },
            _ => Error::Failed { code, message: reply.message.clone() },
        };
        match self.questions.remove(&number) {
            Some(Question::Admin(_, to)) if reply.outcome == Outcome::Ok => answer(to, Ok(None)),
            Some(Question::Admin(_, to)) => answer(to, Err(error)),
            Some(Question::Resolve(_, to)) => answer(to, Err(error)),
            Some(Question::Peek(_, to)) => answer(to, Err(error)),
            Some(Question::Order(address, _)) => {
                if let Some(Known::Asking(waiting)) = self.orders.remove(&address) {
                    for submission in waiting {
                        // The program may have stopped waiting.
                        let _unheard = submission.reply.send(Err(error.clone())).is_err();
                    }
                }
            }
            None => {}
        }
    }

    fn question(&mut self, question: Question) {
        let number = self.next_number;
        self.next_number += 1;
        self.questions.insert(number, question);
        self.unsent.push_back(number);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::OpenProducer { number, options } => {
                let state = self.make_producer(number, options);
                self.producers.insert(number, state);
            }
            Command::Submit(submission) => self.submit(submission),
            Command::CloseProducer { number, done } => {
                if let Some(state) = self.producers.get_mut(&number) {
                    state.session.close();
                    if done.is_some() {
                        state.done = done;
                    }
                }
            }
            Command::OpenConsumer { number, address, group, options, outbox, reply } => {
                let tag = self.tag(false, number);
                let session = consumer::Consumer::new(ConsumerConfig {
                    tag: tag as u16,
                    subscription: tag as u32,
                    consumer: ConsumerId(u128::from_be_bytes(crate::random())),
                    address: address.clone(),
                    group,
                    start: options.start,
                    credit_messages: options.credit_messages.max(1),
                    credit_bytes: options.credit_bytes.max(1),
                    extend: true,
                });
                let waiting = BTreeMap::new();
                let state =
                    ConsumerState { session, address, outbox, joined: Some(reply), waiting, done: None };
                self.consumers.insert(number, state);
            }
            Command::Settle { consumer, id, action, reason, reply } => {
                let ticket = self.next_number;
                self.next_number += 1;
                if let Some(state) = self.consumers.get_mut(&consumer) {
                    state.waiting.insert(ticket, reply);
                    state.session.settle(id, action, reason, ticket);
                }
            }
            Command::CloseConsumer { number, done } => {
                if let Some(state) = self.consumers.get_mut(&number) {
                    state.session.close();
                    if done.is_some() {
                        state.done = done;
                    }
                }
            }
            Command::Admin { request, reply } => self.question(Question::Admin(request, reply)),
            Command::Resolve { address, create, order, reply } => {
                let resolve = Resolve { address, create, order, deadline: Duration::from_secs(30) };
                self.question(Question::Resolve(resolve, reply));
            }
            Command::Peek { peek, reply } => self.question(Question::Peek(peek, reply)),
            Command::Close { done } => self.begin_close(Some(done)),
        }
    }

    fn begin_close(&mut self, done: Option<oneshot::Sender<()>>) {
        self.producers.values_mut().for_each(|state| state.session.close());
        self.consumers.values_mut().for_each(|state| state.session.close());
        let until = tokio::time::Instant::now() + CLOSE_TIME_MAX;
        self.closing.get_or_insert((until, Vec::new())).1.extend(done);
    }

    /// Whether closing was asked for and is complete, or has taken too long.
    fn closed(&mut self, connected: bool) -> bool {
        let Some((until, _)) = &self.closing else { return false };
        let late = tokio::time::Instant::now() >= *until;
        let idle = self.producers.is_empty() && self.consumers.is_empty();
        let nothing_to_say = !connected
            && self.consumers.values().all(|state| state.session.held() == 0)
            && self.producers.values().all(|state| state.session.open_messages() == 0);
        if !(idle || late || nothing_to_say) {
            return false;
        }
        let (_, done) = self.closing.take().expect("looked at above");
        for done in done {
            // The program may have stopped waiting.
            let _unheard = done.send(()).is_err();
        }
        true
    }

    fn tag(&mut self, producer: bool, number: u64) -> u64 {
        loop {
            self.next_tag = self.next_tag % (CONTROL_TAG - 1) + 1;
            if !self.by_tag.contains_key(&self.next_tag) {
                self.by_tag.insert(self.next_tag, (producer, number));
                return self.next_tag;
            }
        }
    }

    /// A fresh session under a fresh random identity: its key is new, so its sequences may begin at one.
    fn make_producer(&mut self, number: u64, options: ProducerOptions) -> ProducerState {
        let tag = self.tag(true, number);
        let (producer, epoch) = (ProducerId(u128::from_be_bytes(crate::random())), ProducerEpoch(1));
        let salt = Salt(crate::random());
        let session = producer::Producer::new(ProducerConfig {
            tag: tag as u16,
            producer,
            epoch,
            salt,
            created_at: wall(),
            window_messages: options.in_flight.max(1) * 2,
            window_bytes: PRODUCER_WINDOW_BYTES,
            seed: u64::from_be_bytes(crate::random()),
        });
        let sealer = Sealer::new(&self.options.keyring, producer, epoch, salt);
        let spread = u64::from_be_bytes(crate::random()) >> 8;
        ProducerState { session, sealer, options, waiting: BTreeMap::new(), spread, done: None }
    }

    fn submit(&mut self, submission: Submission) {
        match self.orders.get_mut(&submission.address) {
            Some(Known::Order(order)) => {
                let order = *order;
                self.submit_to(submission, order);
            }
            Some(Known::Asking(waiting)) => waiting.push(submission),
            None => {
                let address = submission.address.clone();
                let wanted = self.producers.get(&submission.producer).and_then(|state| state.options.order);
                self.orders.insert(address.clone(), Known::Asking(vec![submission]));
                self.question(Question::Order(address, wanted));
            }
        }
    }

    fn order_known(&mut self, address: &Address, order: Order) {
        let before = self.orders.insert(address.clone(), Known::Order(order));
        if let Some(Known::Asking(waiting)) = before {
            waiting.into_iter().for_each(|submission| self.submit_to(submission, order));
        }
    }

    fn submit_to(&mut self, submission: Submission, order: Order) {
        let now = self.now();
        let shard_count = self.shard_count;
        let Some(state) = self.producers.get_mut(&submission.producer) else {
            let _unheard = submission.reply.send(Err(Error::Closed)).is_err();
            return;
        };
        if state.options.order.is_some_and(|wanted| wanted != order) {
            let message = format!("{} has order {}", submission.address, order.text());
            let error = Error::Failed { code: Code::OrderConflict, message };
            let _unheard = submission.reply.send(Err(error)).is_err();
            return;
        }
        let Submission { address, message, deadline, reply, permit, .. } = submission;
        let key = message.key.as_deref();
        let shard = match (order, key) {
            (Order::Total, _) => mac::ring(&address, None, shard_count),
            (Order::Key, Some(key)) => {
                mac::ring(&address, Some(&state.sealer.key_hash(&address, key)), shard_count)
            }
            (Order::Key | Order::None, _) => {
                state.spread += 1;
                ShardId((state.spread / SPREAD_RUN % u64::from(shard_count)) as u32)
            }
        };
        let headers: Vec<UserHeader> =
            message.headers.into_iter().map(|(name, value)| UserHeader { name, value }).collect();
        let ticket = self.next_number;
        self.next_number += 1;
        let sealer = &mut state.sealer;
        let sealed = state.session.submit(ticket, shard, now + deadline, |sequence| {
            sealer.seal(&Draft {
                address: &address,
                shard,
                sequence,
                key,
                headers: &headers,
                body: &message.body,
                published_at: wall(),
                trace: None,
            })
        });
        match sealed {
            Ok(_) => {
                state.waiting.insert(ticket, (reply, permit));
            }
            Err(error) => {
                let _unheard = reply.send(Err(Error::Seal(error))).is_err();
            }
        }
    }

    /// Tells the program what became known.
    fn tell(&mut self) {
        let mut ended = Vec::new();
        for (number, state) in &mut self.producers {
            state.session.take_resolutions(&mut self.resolutions);
            for Resolution { ticket, result } in self.resolutions.drain(..) {
                let Some((reply, permit)) = state.waiting.remove(&ticket) else { continue };
                drop(permit);
                let result = match result {
                    SendResult::Stored { id, offset, duplicate } => {
                        Ok(Receipt { id, shard: id.shard, offset, duplicate })
                    }
                    SendResult::Failed(code) => Err(Error::Failed { code, message: String::new() }),
                    SendResult::Unknown(code) => Err(Error::Unknown { code, message: String::new() }),
                };
                let _unheard = reply.send(result).is_err();
            }
            if state.session.is_closed() || state.session.fenced().is_some() {
                ended.push(*number);
            }
        }
        for number in ended {
            self.producer_ended(number);
        }
        let mut ended = Vec::new();
        for (number, state) in &mut self.consumers {
            state.session.take_resolutions(&mut self.settlements);
            for SettleResolution { ticket, result } in self.settlements.drain(..) {
                let Some(reply) = state.waiting.remove(&ticket) else { continue };
                let result = match result {
                    SettleResult::Done => Ok(()),
                    SettleResult::LeaseLost => Err(Error::LeaseLost),
                    SettleResult::Unknown => Err(Error::Unknown {
                        code: Code::LeaseLost,
                        message: "the connection broke meanwhile".into(),
                    }),
                };
                let _unheard = reply.send(result).is_err();
            }
            if state.session.is_active()
                && let Some(joined) = state.joined.take()
            {
                let _unheard = joined.send(Ok(())).is_err();
            }
            if state.session.refusal().is_some() || state.session.is_closed() {
                ended.push(*number);
            }
        }
        for number in ended {
            self.consumer_ended(number);
        }
        self.hand_out();
    }

    fn producer_ended(&mut self, number: u64) {
        let Some(mut old) = self.producers.remove(&number) else { return };
        self.by_tag.retain(|_, owner| *owner != (true, number));
        if old.session.is_closed() {
            if let Some(done) = old.done.take() {
                let _unheard = done.send(()).is_err();
            }
            return;
        }
        // Fenced or forgotten: a fresh session takes over; what was open has been told its fate.
        let mut fresh = self.make_producer(number, old.options);
        fresh.done = old.done;
        fresh.session.adopt_window(&old.session);
        self.producers.insert(number, fresh);
    }

    fn consumer_ended(&mut self, number: u64) {
        let Some(state) = self.consumers.remove(&number) else { return };
        self.by_tag.retain(|_, owner| *owner != (false, number));
        if let Some(refusal) = state.session.refusal() {
            let error = Error::Failed { code: refusal.code, message: refusal.message.clone() };
            let _unheard = match state.joined {
                Some(joined) => joined.send(Err(error)).is_err(),
                None => state.outbox.send(Err(error)).is_err(),
            };
        }
        if let Some(done) = state.done {
            let _unheard = done.send(()).is_err();
        }
    }

    /// Opens what was delivered and hands it to the program.
    fn hand_out(&mut self) {
        let Some(commands) = self.commands.upgrade() else { return };
        for (number, state) in &mut self.consumers {
            while let Some(delivery) = state.session.next_delivery() {
                let (header, opened) = match envelope::split_sealed(&delivery.sealed) {
                    Ok((sealed, _)) => (sealed.header(), self.opener.open(&delivery.sealed)),
                    Err(_) => continue,
                };
                let base = state.address.as_str();
                let item = match opened {
                    Err(error) => Err(Error::Open { id: header.message_id().to_string(), error }),
                    Ok(opened) => Ok(Received {
                        id: header.message_id(),
                        address: base.to_owned(),
                        key: opened.key,
                        headers: opened
                            .headers
                            .into_iter()
                            .map(|header| (header.name, header.value))
                            .collect(),
                        body: opened.body,
                        shard: delivery.id.shard,
                        offset: delivery.id.offset,
                        attempt: delivery.attempt.0,
                        published_at: header.published_at(),
                        dead_reason: delivery.reason.clone(),
                        commands: commands.clone(),
                        consumer: *number,
                    }),
                };
                if state.outbox.send(item).is_err() {
                    // The program dropped the consumer: its close command is on the way.
                    break;
                }
            }
        }
    }

    fn see(&mut self, shard: ShardId, offset: Offset, reason: String, sealed: &Bytes) -> Result<Seen, Error> {
        let (view, _) = envelope::split_sealed(sealed).map_err(|_| Error::Failed {
            code: Code::Malformed,
            message: "the node sent no message".into(),
        })?;
        let header = view.header();
        let opened = self
            .opener
            .open(sealed)
            .map_err(|error| Error::Open { id: header.message_id().to_string(), error })?;
        Ok(Seen {
            id: header.message_id(),
            address: header.address().to_owned(),
            key: opened.key,
            headers: opened.headers.into_iter().map(|header| (header.name, header.value)).collect(),
            body: opened.body,
            shard,
            offset,
            published_at: header.published_at(),
            dead_reason: reason,
        })
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, Error>) {
    // The program may have stopped waiting.
    let _unheard = reply.send(result).is_err();
}

fn wall() -> WallTime {
    WallTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
}
