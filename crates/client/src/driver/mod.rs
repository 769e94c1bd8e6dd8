//! The task behind a [`crate::SwarmMq`]: owns the home connection, the direct ones to leaders and every session, and only
//! carries bytes and news between them. What is retried, re-claimed, filtered, or sent which way is decided in
//! `protocol::session`.
//!
//! Each room below owns one kind of session with everything that the program waits for in it; this file connects,
//! sorts frames to rooms, keeps time, and ends.

mod clock;
mod consumers;
mod direct;
mod elsewhere;
mod homing;
mod keyring;
mod orders;
mod producers;
mod questions;
mod tags;

use std::{pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    error::{Code, Outcome},
    frame::{self, Answer, Frame, FrameHeader, FrameKind, Leaders, WatchLeaders},
    id::{ClusterId, NodeId},
    session::{
        handshake::ClientReady,
        silence::{Bounds, Patience, Verdict},
        ways::Way,
    },
};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::{
    clock::{Clock, after},
    consumers::{OUTBOX_MESSAGES, Settlement, Subscription},
    keyring::ReloadReply,
    producers::Identity,
    questions::{Question, Reply},
};
use self::{
    consumers::Consumers,
    direct::{Directs, Stir},
    elsewhere::{Elsewhere, Found},
    homing::Homing,
    keyring::Keyring,
    producers::Producers,
    questions::Questions,
    tags::{Owner, Tags},
};
use crate::{
    ClientKeyring, Error, KeyringState, Options, ProducerOptions,
    connection::{Access, CONNECT_TIME_MAX, ConnectError, Connection},
    producer::Submission,
};

/// First pause between attempts to connect; doubles up to [`RECONNECT_MAX`].
const RECONNECT_FIRST: Duration = Duration::from_millis(10);
/// Pause after every server has refused a client that had been let in before: an operator may let it in again. Nodes do
/// not listen to a place where attempts fail more often.
const KEPT_OUT_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause between attempts. A connection that lived at least so long was a good one.
const RECONNECT_MAX: Duration = Duration::from_millis(400);
/// Time for an attempt while there are others to try: a node that stands still takes connections and says nothing.
const ATTEMPT_FIRST: Duration = Duration::from_millis(500);
/// Time without which an attempt to connect means nothing.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);
/// Commands taken before the sessions are pumped.
const COMMANDS_PER_TURN: usize = 8192;
/// Longest sleep without anything to wait for.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Shortest silence after which a connection may be given up.
const SILENCE_MIN: Duration = Duration::from_millis(100);
/// Longest.
const SILENCE_MAX: Duration = Duration::from_secs(3600);

/// What the program asks of its connection.
pub(crate) enum Command {
    OpenProducer {
        number: u64,
        options: ProducerOptions,
        named: Option<Identity>,
    },
    Submit(Submission),
    CloseProducer {
        number: u64,
        done: Option<oneshot::Sender<()>>,
    },
    OpenConsumer(Box<Subscription>),
    Settle(Settlement),
    /// The program took messages: there is room in an outbox.
    Taken,
    CloseConsumer {
        number: u64,
        done: Option<oneshot::Sender<()>>,
    },
    Ask(Question, tokio::time::Instant),
    /// Look at the keyring's file now.
    ReloadKeyring(ReloadReply),
    UseKeyring(ClientKeyring, ReloadReply),
    TellKeyring(oneshot::Sender<KeyringState>),
    Close {
        done: oneshot::Sender<()>,
    },
}

/// Who waits for the first connection: which cluster it is, and how many shards it has.
pub(crate) type First = oneshot::Sender<Result<(ClusterId, u32), Error>>;

struct Closing {
    until: tokio::time::Instant,
    done: Vec<oneshot::Sender<()>>,
}

/// How serving a connection ended.
enum Served {
    /// It broke.
    Broken,
    /// There is a better one, to another node.
    Moved(Box<(Connection, ClientReady)>),
    /// The program wants no more.
    Done,
}

pub(crate) struct Driver {
    options: Options,
    access: Access,
    inbox: mpsc::UnboundedReceiver<Command>,
    /// Every handle of the program is gone: nothing more will be asked.
    abandoned: bool,
    first: Option<First>,
    cluster: Option<ClusterId>,
    /// The node of the home connection, now or last.
    home: Option<NodeId>,
    /// Where the cluster says that its nodes are, in an order of this client's own.
    doors: Vec<(NodeId, String)>,
    direct: Directs,
    elsewhere: Elsewhere,
    homing: Homing,
    patience: Patience,
    clock: Clock,
    tags: Tags,
    producers: Producers,
    consumers: Consumers,
    questions: Questions,
    keyring: Keyring,
    closing: Option<Closing>,
}

impl Driver {
    pub(crate) fn new(
        options: Options,
        access: Access,
        inbox: mpsc::UnboundedReceiver<Command>,
        commands: mpsc::WeakUnboundedSender<Command>,
        first: First,
    ) -> Self {
        let clock = Clock::start();
        let goodbye = options.close_timeout;
        Self {
            clock,
            abandoned: false,
            first: Some(first),
            cluster: None,
            home: None,
            doors: Vec::new(),
            direct: Directs::new(),
            elsewhere: Elsewhere::new(),
            homing: Homing::new(),
            patience: Patience::default(),
            tags: Tags::default(),
            producers: Producers::new(clock, &options, tags::ORDERS),
            consumers: Consumers::new(clock, &options.keyring, commands, goodbye),
            questions: Questions::new(tags::QUESTIONS, &options.keyring),
            keyring: Keyring::new(&options),
            closing: None,
            access,
            options,
            inbox,
        }
    }

    /// Runs until the program closes the connection or drops every handle.
    pub(crate) async fn run(mut self) {
        self.live().await;
        self.end();
    }

    async fn live(&mut self) {
        let given = shuffled(self.options.servers.clone());
        if given.is_empty() {
            self.no_connection(Error::Unreachable { servers: String::new(), last: "none was given".into() });
            return;
        }
        let give_up = after(self.options.connect_timeout);
        let mut pause = RECONNECT_FIRST;
        let mut attempt = 0_usize;
        // Servers in a row that came to nothing. One is followed by the next at once; after all of them comes a pause.
        let mut misses = 0;
        let mut refusals = 0;
        let mut is_kept_out = false;
        let mut cause = String::new();
        loop {
            let servers = self.servers(&given);
            let server = &servers[attempt % servers.len()];
            attempt = attempt.wrapping_add(1);
            let began = tokio::time::Instant::now();
            let is_last = misses + 1 >= servers.len();
            let mut deadline = began + if is_last { CONNECT_TIME_MAX } else { ATTEMPT_FIRST };
            if self.first.is_some() {
                deadline = deadline.min(give_up);
            }
            let connecting = Connection::open(server.clone(), self.access.clone(), deadline, self.clock);
            let Some(connected) = self.detached(connecting).await else { return };
            match connected.and_then(|home| self.same_cluster(home)) {
                Ok(home) => {
                    refusals = 0;
                    let mut began = tokio::time::Instant::now();
                    let mut next = Some(Box::new(home));
                    while let Some(home) = next.take() {
                        let (connection, ready) = *home;
                        if !self.connected(&ready) {
                            return;
                        }
                        let served = self.serve(connection).await;
                        self.elsewhere.stop();
                        self.homing.lost();
                        match served {
                            Served::Done => return,
                            Served::Broken => {}
                            Served::Moved(home) => {
                                began = tokio::time::Instant::now();
                                next = Some(home);
                            }
                        }
                        self.disconnected();
                    }
                    if began.elapsed() >= RECONNECT_MAX {
                        pause = RECONNECT_FIRST;
                        misses = 0;
                    } else {
                        misses += 1;
                    }
                }
                Err(error) => {
                    misses += 1;
                    let fatal = match error {
                        ConnectError::Refused(error) => {
                            refusals += 1;
                            is_kept_out |= error.code() == Code::Unauthenticated.text();
                            // One wrong address among good ones must not be the end.
                            (refusals >= servers.len()).then_some(error)
                        }
                        ConnectError::Io(said) => {
                            refusals = 0;
                            // An attempt that had hardly any time says less than the one before it.
                            if cause.is_empty() || deadline - began > ATTEMPT_MIN {
                                cause = said;
                            }
                            let late = tokio::time::Instant::now() >= give_up;
                            let last = cause.clone();
                            late.then(|| Error::Unreachable { servers: given.join(","), last })
                        }
                    };
                    if let Some(error) = fatal
                        && self.first.is_some()
                    {
                        self.no_connection(error);
                        return;
                    }
                }
            }
            if misses < servers.len() {
                continue;
            }
            let jitter = 0.5 + f64::from(u16::from_be_bytes(crate::random())) / 65_536.0;
            let mut until = tokio::time::Instant::now() + pause.mul_f64(jitter);
            if self.first.is_some() {
                until = until.min(give_up);
            }
            pause = (pause * 2).min(RECONNECT_MAX);
            if std::mem::take(&mut is_kept_out) && self.first.is_none() {
                until = until.max(tokio::time::Instant::now() + KEPT_OUT_PAUSE.mul_f64(jitter));
            }
            if self.detached(tokio::time::sleep_until(until)).await.is_none() {
                return;
            }
        }
    }

    /// Where home may be: the servers that the program named, then those that the cluster named.
    fn servers(&self, given: &[String]) -> Vec<String> {
        let learned = self.doors.iter().map(|(_, door)| door).filter(|door| !given.contains(door));
        given.iter().chain(learned).cloned().collect()
    }

    fn no_connection(&mut self, error: Error) {
        if let Some(first) = self.first.take() {
            told(first, Err(error));
        }
    }

    /// A server of another cluster would take what is repeated as if it were new.
    fn same_cluster(
        &self,
        (connection, ready): (Connection, ClientReady),
    ) -> Result<(Connection, ClientReady), ConnectError> {
        match self.cluster {
            Some(ours) if ours != ready.cluster => Err(ConnectError::Io(format!(
                "a server belongs to cluster {} and not to {ours}",
                ready.cluster
            ))),
            _ => Ok((connection, ready)),
        }
    }

    /// Sessions begin or go on. False: whoever asked for the connection is gone.
    fn connected(&mut self, ready: &ClientReady) -> bool {
        self.cluster = Some(ready.cluster);
        let welcome = &ready.welcome;
        if let Some(first) = self.first.take()
            && first.send(Ok((ready.cluster, welcome.shard_count))).is_err()
        {
            return false;
        }
        let window = (welcome.publish_window_messages, welcome.publish_window_bytes);
        self.home = Some(ready.node);
        self.direct.home(self.home);
        self.homing.connected(ready.node);
        self.producers.welcomed(welcome.shard_count);
        self.producers.connected(Way::Home, window);
        self.consumers.connected();
        true
    }

    fn disconnected(&mut self) {
        self.direct.home(None);
        self.producers.disconnected(Way::Home);
        self.consumers.disconnected();
        self.questions.disconnected();
    }

    /// Does `wait` without a connection. Commands are taken and deadlines pass meanwhile. `None`: the program is done.
    async fn detached<T>(&mut self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = pin!(wait);
        let mut nowhere = BytesMut::new();
        loop {
            self.questions.expire(self.clock.now());
            self.pump_producers(&mut nowhere);
            self.tell_consumers();
            if self.closed(false) {
                return None;
            }
            let wake = self.next_wake();
            tokio::select! {
                biased;
                done = &mut wait => return Some(done),
                stir = self.direct.stirs() => self.stirred(stir),
                command = self.inbox.recv(), if !self.abandoned => self.take_commands(command),
                looked = self.keyring.looked() => self.looked(looked),
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Serves one connection until it breaks or the program is done.
    async fn serve(&mut self, mut connection: Connection) -> Served {
        if self.options.direct {
            frame::encode(&WatchLeaders, tags::QUESTIONS << 48, &mut connection.out);
        }
        loop {
            let bounds = self.bounds(self.has_others());
            match connection.look(bounds, tags::QUESTIONS << 48) {
                Verdict::Dead => return Served::Broken,
                Verdict::Silent => self.seek_elsewhere(connection.server()),
                Verdict::Fine | Verdict::Ask => {}
            }
            if let Some(home) = self.better_home(&connection) {
                return Served::Moved(home);
            }
            let asked = connection.out.len();
            self.questions.pump(self.clock.now(), &mut connection.out);
            self.pump_producers(&mut connection.out);
            self.consumers.pump(&mut connection.out);
            self.tell_consumers();
            if connection.out.len() > asked {
                connection.said();
            }
            if connection.write().is_err() {
                return Served::Broken;
            }
            // A node that does not read must not keep the program from ending.
            let said = !connection.has_output() && !self.direct.has_output();
            if self.closed(true) && (self.is_late() || said) {
                return Served::Done;
            }
            let wake = self.next_wake().min(connection.next_look(bounds));
            tokio::select! {
                biased;
                ready = connection.ready() => {
                    if ready.is_err() || !self.hear(&mut connection) {
                        return Served::Broken;
                    }
                    self.spoke(&connection);
                    self.look_at_direct();
                    self.take_waiting_commands();
                }
                found = self.elsewhere.found() => {
                    if let Some(home) = self.better(found, &connection) {
                        return Served::Moved(home);
                    }
                }
                found = self.homing.found() => {
                    let found = found.and_then(|home| self.same_cluster(home));
                    self.homing.keep(self.clock.now(), found);
                }
                stir = self.direct.stirs() => self.stirred(stir),
                command = self.inbox.recv(), if !self.abandoned => self.take_commands(command),
                looked = self.keyring.looked() => self.looked(looked),
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Another home, where that is better for consumers and a move costs nobody anything: nothing is held, nothing
    /// waits for an answer.
    fn better_home(&mut self, home: &Connection) -> Option<Box<(Connection, ClientReady)>> {
        if !self.options.direct || self.closing.is_some() {
            return None;
        }
        self.homing.steer(self.clock, self.consumers.shards(), &self.doors, &self.access);
        let is_at_rest = self.homing.is_waiting()
            && self.consumers.is_at_rest()
            && self.questions.is_idle()
            && self.producers.is_drained(Way::Home)
            && !home.has_output();
        is_at_rest.then(|| self.homing.take(self.clock.now())).flatten()
    }

    /// Hands out messages. Where one needs a key that is not here, the keyring's file is looked at.
    fn tell_consumers(&mut self) {
        self.consumers.tell(&mut self.tags);
        if self.consumers.wants_look() {
            self.keyring.seek();
        }
        self.keyring.tick();
    }

    /// Writes what producers have to say, home and to leaders. What a direct connection cannot carry goes home at once.
    fn pump_producers(&mut self, home: &mut BytesMut) {
        loop {
            self.producers.pump(&mut self.tags, home, self.direct.connections());
            let is_free = self.direct.steer(self.clock, &self.access, &mut self.producers);
            let over = self.direct.write(self.direct_bounds());
            if over.is_empty() && !is_free {
                return;
            }
            let now = self.clock.now();
            for (node, is_silent) in over {
                if is_silent {
                    self.patience.was_tried(now);
                }
                self.direct.lost(now, node, &mut self.producers);
            }
        }
    }

    /// Something happened on a direct connection.
    fn stirred(&mut self, stir: Stir) {
        let now = self.clock.now();
        match stir {
            Stir::Tried(attempt) => self.direct.tried(now, *attempt, self.cluster, &mut self.producers),
            Stir::Ready => self.look_at_direct(),
        }
        self.take_waiting_commands();
    }

    /// Whatever has happened on direct connections meanwhile: another may never be silent, and they must not wait for that.
    fn look_at_direct(&mut self) {
        while let Some(attempt) = self.direct.try_tried() {
            self.direct.tried(self.clock.now(), attempt, self.cluster, &mut self.producers);
        }
        self.direct.nodes().into_iter().for_each(|node| self.hear_direct(node));
    }

    fn hear_direct(&mut self, node: NodeId) {
        let (frames, is_open) = self.direct.hear(node);
        let understood = frames.into_iter().all(|(header, body)| self.direct_frame(node, header, body));
        if !(is_open && understood) {
            self.direct.lost(self.clock.now(), node, &mut self.producers);
        }
    }

    /// A frame of a direct connection: answers for producers, and little else. False: the connection is over.
    fn direct_frame(&mut self, node: NodeId, header: FrameHeader, body: Bytes) -> bool {
        let Ok(frame) = Frame::decode(header.kind, body) else { return false };
        let owner = self.tags.owner(header.request >> 48);
        match (frame, owner) {
            (Frame::Published(published), Some(Owner::Producer(number))) => {
                self.producers.published(number, header.request, &published);
            }
            (Frame::Answer(answer), Some(Owner::Producer(number))) => {
                self.producers.answered(number, header.request, &answer);
            }
            // Of a session that is over.
            (Frame::Published(_) | Frame::Answer(_) | Frame::Pong(_), _) => {}
            (Frame::GoAway(_), _) => self.direct.going_away(node),
            (Frame::Ping(_), _) => self.direct.pong(node, header.request),
            _ => return false,
        }
        true
    }

    /// Who leads what, and where.
    fn learned(&mut self, leaders: &Leaders) {
        self.direct.learned(leaders);
        self.homing.learned(&leaders.shards);
        self.producers.learned(&leaders.shards, &leaders.routing);
        self.doors.retain(|door| leaders.nodes.contains(door));
        let new = leaders.nodes.iter().filter(|door| !self.doors.contains(door)).cloned().collect();
        self.doors.extend(shuffled(new));
    }

    /// Whether there is another node than the one at hand.
    fn has_others(&self) -> bool {
        self.options.servers.len() > 1 || self.doors.iter().any(|(node, _)| Some(*node) != self.home)
    }

    /// Which silence is bearable: half of it, then a question and the other half for its answer; less of it where there is
    /// another way.
    fn bounds(&self, has_others: bool) -> Bounds {
        Bounds {
            dead: (self.options.silence_max / 2).clamp(SILENCE_MIN / 2, SILENCE_MAX / 2),
            elsewhere: has_others.then(|| self.patience.time(self.clock.now())),
        }
    }

    fn direct_bounds(&self) -> Bounds {
        self.bounds(self.producers.is_home())
    }

    /// Home is silent: another node is tried.
    fn seek_elsewhere(&mut self, home: &String) {
        let is_home = |server: &String| {
            server == home || self.doors.iter().any(|(node, door)| Some(*node) == self.home && door == server)
        };
        let mut others = self.servers(&self.options.servers);
        others.retain(|server| !is_home(server));
        self.elsewhere.seek(&others, &self.access, self.clock);
    }

    /// Something was read at home. If it was given up already, it was given up too early.
    fn spoke(&mut self, home: &Connection) {
        if !home.is_asked() && self.elsewhere.stop() {
            self.patience.was_tried(self.clock.now());
        }
    }

    /// What was found elsewhere, if it is another node of the same cluster, and home is still silent.
    fn better(&mut self, found: Found, home: &Connection) -> Option<Box<(Connection, ClientReady)>> {
        // Whoever is not there is not the next home; the next one is tried while this one is silent.
        let (connection, ready) = self.same_cluster(found.ok()?).ok()?;
        if !home.is_asked() || Some(ready.node) == self.home {
            return None;
        }
        self.patience.was_tried(self.clock.now());
        Some(Box::new((connection, ready)))
    }

    fn next_wake(&self) -> tokio::time::Instant {
        let wakes = [
            self.producers.next_wake(),
            self.consumers.next_wake(),
            self.questions.next_wake(),
            self.direct.next_step(),
            self.homing.next_wake(),
        ];
        let next = wakes.into_iter().flatten().min().map(|at| self.clock.at(at));
        let others = [self.direct.next_wake(self.direct_bounds()), self.keyring.next_wake()];
        let next = others.into_iter().chain([next]).flatten().min();
        let next = next.unwrap_or_else(|| tokio::time::Instant::now() + SLEEP_MAX);
        self.closing.as_ref().map_or(next, |closing| next.min(closing.until))
    }

    /// Takes a command and what has gathered behind it, so that everything at hand goes out together.
    fn take_commands(&mut self, first: Option<Command>) {
        match first {
            Some(command) => {
                self.command(command);
                self.take_waiting_commands();
            }
            None => {
                self.abandoned = true;
                self.begin_close(None);
            }
        }
    }

    fn take_waiting_commands(&mut self) {
        for _ in 0..COMMANDS_PER_TURN {
            let Ok(command) = self.inbox.try_recv() else { break };
            self.command(command);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::OpenProducer { number, options, named } => {
                self.producers.open(&mut self.tags, number, options, named);
            }
            Command::Submit(submission) => self.producers.submit(submission),
            Command::CloseProducer { number, done } => self.producers.close(number, done),
            Command::OpenConsumer(subscription) => self.consumers.open(&mut self.tags, *subscription),
            Command::Settle(settlement) => self.consumers.settle(settlement),
            // The turn that follows hands out what there is room for.
            Command::Taken => {}
            Command::CloseConsumer { number, done } => self.consumers.close(number, done),
            Command::Ask(question, until) => self.questions.ask(question, self.clock.of(until)),
            Command::ReloadKeyring(reply) => self.keyring.reload(reply),
            Command::UseKeyring(keyring, reply) => self.use_keyring(keyring, reply),
            Command::TellKeyring(reply) => told(reply, self.keyring_state()),
            Command::Close { done } => self.begin_close(Some(done)),
        }
    }

    /// Reads frames and hands them to their rooms. False: the connection is over.
    fn hear(&mut self, connection: &mut Connection) -> bool {
        let open = matches!(connection.read(), Ok(true));
        loop {
            match connection.next_frame() {
                Ok(Some((header, body))) => {
                    if !self.frame(header, body, connection) {
                        return false;
                    }
                }
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        open
    }

    fn frame(&mut self, header: FrameHeader, body: Bytes, connection: &mut Connection) -> bool {
        let Ok(frame) = Frame::decode(header.kind, body) else { return false };
        let request = header.request;
        let tag = request >> 48;
        let owner = self.tags.owner(tag);
        match frame {
            Frame::Deliver(deliver) => {
                if let Some(Owner::Consumer(number)) = self.tags.owner(deliver.subscription.into()) {
                    self.consumers.delivered(number, deliver);
                }
            }
            Frame::LeaseLost(lost) => {
                if let Some(Owner::Consumer(number)) = self.tags.owner(lost.subscription.into()) {
                    self.consumers.lease_lost(number, &lost);
                }
            }
            Frame::Published(published) => {
                if let Some(Owner::Producer(number)) = owner {
                    self.producers.published(number, request, &published);
                }
            }
            Frame::Subscribed(subscribed) => {
                if let Some(Owner::Consumer(number)) = owner {
                    self.consumers.subscribed(number, request, &subscribed);
                }
            }
            Frame::Settled(settled) => {
                if let Some(Owner::Consumer(number)) = owner {
                    self.consumers.settled(number, request, &settled);
                }
            }
            Frame::Answer(answer) => match owner {
                Some(Owner::Producer(number)) => self.producers.answered(number, request, &answer),
                Some(Owner::Consumer(number)) => self.consumers.answered(number, request, &answer),
                None if tag == tags::ORDERS => self.producers.unresolved(request, &answer),
                None => self.questions.answered(self.clock.now(), request, &answer),
            },
            Frame::Resolved(resolved) if tag == tags::ORDERS => {
                self.producers.resolved(request, resolved.order);
            }
            Frame::Resolved(resolved) => self.questions.resolved(request, resolved.order),
            Frame::AdminReply(reply) => self.questions.admin(request, reply.0),
            Frame::Peeked(peeked) => self.questions.peeked(request, peeked),
            Frame::Ping(_) => frame::encode(&frame::Pong, request, &mut connection.out),
            // The node is stopping: what is under way is repeated elsewhere, or here when it is back.
            Frame::GoAway(_) => return !self.has_others(),
            Frame::Leaders(leaders) => self.learned(&leaders),
            Frame::Refused(_) => return false,
            _ => return header.kind == FrameKind::Pong,
        }
        true
    }

    fn begin_close(&mut self, done: Option<oneshot::Sender<()>>) {
        self.producers.close_all();
        self.consumers.close_all();
        self.homing.lost();
        let until = after(self.options.close_timeout);
        self.closing.get_or_insert_with(|| Closing { until, done: Vec::new() }).done.extend(done);
    }

    /// Whether closing was asked for and is complete, or has taken too long.
    fn closed(&self, connected: bool) -> bool {
        let idle = self.producers.is_idle() && self.consumers.is_idle();
        let nothing_to_say = !connected && self.producers.is_quiet() && self.consumers.is_quiet();
        self.closing.is_some() && (idle || nothing_to_say || self.is_late())
    }

    fn is_late(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| closing.until <= tokio::time::Instant::now())
    }

    /// Tells everybody who still waits what is certain.
    fn end(&mut self) {
        self.inbox.close();
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Submit(submission) => told(submission.reply, Err(Error::Closed)),
                Command::OpenConsumer(subscription) => told(subscription.joined, Err(Error::Closed)),
                Command::Settle(settlement) => told(settlement.reply, Err(Error::Closed)),
                Command::Ask(question, _) => question.fail(Error::Closed),
                Command::ReloadKeyring(reply) | Command::UseKeyring(_, reply) => {
                    told(reply, Err(Error::Closed));
                }
                // Whoever waits for an end learns it from the reply that is dropped.
                Command::OpenProducer { .. }
                | Command::CloseProducer { .. }
                | Command::Taken
                | Command::TellKeyring(_)
                | Command::CloseConsumer { .. }
                | Command::Close { .. } => {}
            }
        }
        self.producers.end();
        self.consumers.end();
        self.questions.end();
        self.keyring.end();
        for done in self.closing.take().into_iter().flat_map(|closing| closing.done) {
            // The program may have stopped waiting.
            let _unheard = done.send(()).is_err();
        }
    }
}

/// In any order, so that not all clients go to the same node, and not all from there to the same next one.
fn shuffled<T>(mut servers: Vec<T>) -> Vec<T> {
    for place in 1..servers.len() {
        servers.swap(place, usize::from_be_bytes(crate::random()) % (place + 1));
    }
    servers
}

/// Answers the program, which may have stopped waiting.
fn told<T>(reply: oneshot::Sender<T>, result: T) {
    let _unheard = reply.send(result).is_err();
}

/// A node's answer other than ok.
fn refusal(answer: &Answer) -> Error {
    let code = Code::from_number(answer.code).unwrap_or(Code::Malformed);
    let message = answer.message.clone();
    match answer.outcome {
        Outcome::Unknown => Error::Unknown { code, message },
        _ => Error::Failed { code, message },
    }
}
