//! Simulated client processes: what a program with the client library does, on the same sessions.
//!
//! A process dials, proves itself, carries frames between its sessions and its connections, and dials again after a
//! pause when its home connection breaks, or elsewhere when it is silent. Absent here: when bytes arrive; that is the
//! network's affair.

pub mod consumer;
pub mod operator;
pub mod producer;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    admin::AdminRequest,
    frame::{self, Frame, FrameHeader, Leaders, WatchLeaders},
    id::NodeId,
    mac::MacKey,
    session::{
        direct::{self, Direct},
        handshake::ClientReady,
        silence::{Bounds, Patience, Verdict},
        ways::Way,
    },
    time::Instant,
};

use self::{
    consumer::ConsumerProcess,
    operator::Operator,
    producer::ProducerProcess,
    wire::{Heard, Wire},
};
use crate::clock::Clock;

/// Silence after which a connection is dead: first until it is asked, then until it has answered.
const DEAD: Duration = Duration::from_secs(5);
/// Pause between two attempts to find another home.
const SEEK_PAUSE: Duration = Duration::from_millis(100);

/// What a process is for.
#[derive(Debug)]
pub enum Role {
    /// Sends.
    Producer(Box<ProducerProcess>),
    /// Receives.
    Consumer(ConsumerProcess),
    /// Makes addresses, empties and removes nodes.
    Operator(Operator),
}

/// Direct connections of a producer.
#[derive(Debug)]
struct Directs {
    decides: Direct,
    wires: BTreeMap<NodeId, Wire>,
}

/// What one of its connections is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Home.
    Home,
    /// Home soon, if the present one stays silent until this one is proven.
    Next,
    /// To this node, because it leads.
    Direct(NodeId),
}

/// What a process does about its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Connects to this node directly.
    Dial(NodeId),
    /// Looks for another home.
    Elsewhere,
    /// Gives this connection up for its silence.
    GiveUp(u64),
    /// Has closed this connection.
    Closed(u64),
}

/// One process, through all its lives.
#[derive(Debug)]
pub struct Client {
    /// Counts its lives; what belongs to an earlier life is ignored.
    pub life: u64,
    /// Its own wall clock.
    pub clock: Clock,
    /// The host that it talks to, or would like to.
    pub home: Option<usize>,
    /// Whether another node would take it.
    pub has_others: bool,
    /// Earliest wake-up that is scheduled.
    pub wake_at: Option<u64>,
    /// What it does.
    pub role: Role,
    /// The home connection.
    wire: Option<Wire>,
    /// What may become the home connection.
    next: Option<Wire>,
    /// Home is, and another is wanted.
    is_silent: bool,
    seek_at: Instant,
    patience: Patience,
    /// Connections that are silent for too long.
    given_up: Vec<u64>,
    /// Connections that it has closed.
    closed: Vec<u64>,
    /// `None`: everything goes home.
    directs: Option<Directs>,
}

/// The connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl Client {
    /// A process that has not dialled yet.
    pub fn new(role: Role, clock: Clock) -> Self {
        Self::again(role, clock, 1)
    }

    /// The same machine, with another process.
    pub fn again(role: Role, clock: Clock, life: u64) -> Self {
        Self {
            life,
            clock,
            home: None,
            has_others: false,
            wake_at: None,
            role,
            wire: None,
            next: None,
            is_silent: false,
            seek_at: Instant(0),
            patience: Patience::default(),
            given_up: Vec::new(),
            closed: Vec::new(),
            directs: None,
        }
    }

    /// Talks to leaders directly.
    pub fn go_direct(&mut self, seed: u64) {
        self.directs = Some(Directs { decides: Direct::new(seed), wires: BTreeMap::new() });
    }

    /// The connection is made: begins the handshake.
    pub fn dialled(&mut self, line: Line, connection: u64, token: MacKey, nonce: [u8; 32]) {
        let wire = Wire::dialled(connection, token, nonce);
        match (line, &mut self.directs) {
            (Line::Home, _) => self.wire = Some(wire),
            (Line::Next, _) => self.next = Some(wire),
            (Line::Direct(node), Some(directs)) => {
                directs.wires.insert(node, wire);
            }
            (Line::Direct(_), None) => unreachable!("it never asked for one"),
        }
    }

    /// Whether it looks for another home.
    pub fn is_seeking(&self) -> bool {
        self.is_silent && self.next.is_none()
    }

    /// A direct connection could not be made.
    pub fn unreachable(&mut self, now: Instant, node: NodeId) {
        if let Some(directs) = &mut self.directs {
            directs.decides.lost(now, node);
        }
    }

    /// Which of its connections this is, if it is one.
    pub fn line(&self, connection: u64) -> Option<Line> {
        let is_it = |wire: &Option<Wire>| wire.as_ref().is_some_and(|wire| wire.connection == connection);
        if is_it(&self.wire) {
            return Some(Line::Home);
        }
        if is_it(&self.next) {
            return Some(Line::Next);
        }
        let mut wires = self.directs.iter().flat_map(|directs| &directs.wires);
        wires.find(|(_, wire)| wire.connection == connection).map(|(node, _)| Line::Direct(*node))
    }

    fn wire(&mut self, line: Line) -> Option<&mut Wire> {
        match line {
            Line::Home => self.wire.as_mut(),
            Line::Next => self.next.as_mut(),
            Line::Direct(node) => self.directs.as_mut()?.wires.get_mut(&node),
        }
    }

    /// The connection is gone.
    pub fn disconnected(&mut self, now: Instant, line: Line) {
        let way = match (line, &mut self.directs) {
            (Line::Home, directs) => {
                self.wire = None;
                directs.iter_mut().for_each(|directs| directs.decides.home(None));
                self.stop_seeking();
                Way::Home
            }
            (Line::Next, _) => {
                self.next = None;
                return;
            }
            (Line::Direct(node), directs) => {
                if let Some(directs) = directs {
                    directs.wires.remove(&node);
                    directs.decides.lost(now, node);
                }
                Way::Direct(node)
            }
        };
        match &mut self.role {
            Role::Producer(producer) => producer.session.disconnected(way),
            Role::Consumer(consumer) => consumer.disconnected(),
            Role::Operator(_) => {}
        }
    }

    /// Lets go of all its connections, without a word to its sessions.
    pub fn leave(&mut self) -> Vec<u64> {
        let direct = self.directs.take().into_iter().flat_map(|directs| directs.wires.into_values());
        let homes = self.wire.take().into_iter().chain(self.next.take());
        homes.chain(direct).map(|wire| wire.connection).collect()
    }

    /// Whether it has a home connection, open or not.
    pub fn is_dialling(&self) -> bool {
        self.wire.is_some()
    }

    /// Whether the home connection is open and proven.
    pub fn is_open(&self) -> bool {
        self.wire.as_ref().is_some_and(Wire::is_open)
    }

    /// Whether this connection of it is not proven yet.
    pub fn waits_for(&mut self, connection: u64) -> bool {
        self.line(connection).and_then(|line| self.wire(line)).is_some_and(|wire| !wire.is_open())
    }

    /// Bytes arrived. Frames are handed to the sessions.
    pub fn receive(&mut self, now: Instant, line: Line, bytes: &[u8]) -> Result<(), Broken> {
        if let Some(wire) = self.wire(line) {
            wire.receive(now, bytes);
        }
        if line == Line::Home && self.stop_seeking() {
            self.patience.was_tried(now);
        }
        while let Some(wire) = self.wire(line)
            && let Some(heard) = wire.hear(now)?
        {
            match (heard, line) {
                (Heard::Opened(ready), Line::Next) => {
                    self.move_home(now, &ready);
                    return Ok(());
                }
                (Heard::Opened(ready), Line::Home) => self.opened(now, Way::Home, &ready),
                (Heard::Opened(ready), Line::Direct(node)) => self.opened(now, Way::Direct(node), &ready),
                (Heard::Frame(header, body), _) => self.frame(now, line, header, body)?,
            }
        }
        Ok(())
    }

    /// Home has spoken, or is gone. Returns whether another one was looked for.
    fn stop_seeking(&mut self) -> bool {
        self.is_silent = false;
        let next = self.next.take();
        self.closed.extend(next.iter().map(|wire| wire.connection));
        next.is_some()
    }

    /// Another node takes it, and home is still silent.
    fn move_home(&mut self, now: Instant, ready: &ClientReady) {
        let next = self.next.take();
        self.closed.extend(self.wire.iter().map(|wire| wire.connection));
        self.disconnected(now, Line::Home);
        self.patience.was_tried(now);
        self.wire = next;
        self.home = Some(usize::from(ready.node.0) - 1);
        self.opened(now, Way::Home, ready);
    }

    fn opened(&mut self, now: Instant, way: Way, ready: &ClientReady) {
        let mut out = BytesMut::new();
        if let Some(directs) = &mut self.directs {
            match way {
                Way::Home => {
                    directs.decides.home(Some(ready.node));
                    frame::encode(&WatchLeaders, 1, &mut out);
                }
                Way::Direct(node) => directs.decides.opened(now, node),
            }
        }
        match &mut self.role {
            Role::Producer(producer) => producer.opened(way, &ready.welcome, &mut out),
            Role::Consumer(consumer) => consumer.opened(now),
            Role::Operator(operator) => operator.ask(&mut out),
        }
        let line = match way {
            Way::Home => Line::Home,
            Way::Direct(node) => Line::Direct(node),
        };
        self.wire(line).expect("it has just been opened").out.extend_from_slice(&out);
    }

    fn frame(&mut self, now: Instant, line: Line, header: FrameHeader, body: Bytes) -> Result<(), Broken> {
        let frame = Frame::decode(header.kind, body).map_err(|_| Broken)?;
        if matches!(frame, Frame::Refused(_)) {
            return Err(Broken);
        }
        if let Some(directs) = &mut self.directs {
            match (&frame, line) {
                (Frame::GoAway(_), Line::Home) => return Err(Broken),
                (Frame::GoAway(_), Line::Direct(node)) => directs.decides.going_away(node),
                (Frame::Leaders(leaders), _) => self.learned(leaders),
                _ => {}
            }
        }
        match &mut self.role {
            Role::Producer(producer) => producer.frame(now, header.request, frame),
            Role::Consumer(consumer) => consumer.frame(now, header.request, frame),
            Role::Operator(operator) => {
                if let Some(wire) = &mut self.wire {
                    operator.frame(&frame, &mut wire.out);
                }
            }
        }
        Ok(())
    }

    fn learned(&mut self, leaders: &Leaders) {
        if let Some(directs) = &mut self.directs {
            directs.decides.learned(&leaders.nodes);
        }
        if let Role::Producer(producer) = &mut self.role {
            producer.session.learned(&leaders.shards);
            producer.session.set_routing(&leaders.routing);
        }
    }

    /// The operator gets one more thing to do.
    pub fn instruct(&mut self, question: AdminRequest) {
        let wire = self.wire.as_mut().filter(|wire| wire.is_open());
        if let Role::Operator(operator) = &mut self.role
            && operator.add(question)
            && let Some(wire) = wire
        {
            operator.ask(&mut wire.out);
        }
    }

    /// The next thing to do about its connections.
    pub fn next_step(&mut self, now: Instant) -> Option<Step> {
        if let Some(connection) = self.closed.pop() {
            return Some(Step::Closed(connection));
        }
        if let Some(connection) = self.given_up.pop() {
            return Some(Step::GiveUp(connection));
        }
        if self.is_seeking() && self.seek_at <= now {
            self.seek_at = now + SEEK_PAUSE;
            return Some(Step::Elsewhere);
        }
        let (Some(directs), Role::Producer(producer)) = (&mut self.directs, &mut self.role) else {
            return None;
        };
        let mut wishes = BTreeSet::new();
        producer.session.take_wishes(&mut wishes);
        wishes.into_iter().for_each(|node| directs.decides.wished(now, node));
        loop {
            let session = &mut producer.session;
            match directs.decides.step(now, |node| session.is_drained(Way::Direct(node)))? {
                direct::Step::Dial(node, _) => return Some(Step::Dial(node)),
                direct::Step::Leave(node) => session.leaving(Way::Direct(node)),
                direct::Step::End(node) => {
                    session.disconnected(Way::Direct(node));
                    if let Some(wire) = directs.wires.remove(&node) {
                        return Some(Step::Closed(wire.connection));
                    }
                }
            }
        }
    }

    /// What is to be sent now, over which connections.
    pub fn pump(&mut self, now: Instant) -> Vec<(u64, BytesMut)> {
        // Deadlines pass without a connection too.
        let mut nowhere = BytesMut::new();
        let open = self.is_open();
        let out = self.wire.as_mut().filter(|_| open).map_or(&mut nowhere, |wire| &mut wire.out);
        match &mut self.role {
            Role::Producer(producer) => {
                producer.pump(now, open, out);
                for (node, wire) in self.directs.iter_mut().flat_map(|directs| &mut directs.wires) {
                    producer.session.pump(now, Way::Direct(*node), &mut wire.out);
                }
            }
            Role::Consumer(consumer) if open => consumer.pump(now, out),
            Role::Consumer(_) | Role::Operator(_) => {}
        }
        self.look(now);
        let direct = self.directs.iter_mut().flat_map(|directs| directs.wires.values_mut());
        let wires = self.wire.iter_mut().chain(&mut self.next).chain(direct);
        let wires = wires.filter(|wire| !wire.out.is_empty());
        wires.map(|wire| (wire.connection, wire.out.split())).collect()
    }

    /// Who is silent for too long.
    fn look(&mut self, now: Instant) {
        let home = self.bounds(now, self.has_others);
        let direct = self.bounds(now, self.is_open());
        match self.wire.as_mut().map(|wire| (wire.connection, wire.look(now, home))) {
            Some((connection, Verdict::Dead)) => self.given_up.push(connection),
            Some((_, verdict)) => self.is_silent = verdict == Verdict::Silent,
            None => self.is_silent = false,
        }
        for wire in self.directs.iter_mut().flat_map(|directs| directs.wires.values_mut()) {
            if matches!(wire.look(now, direct), Verdict::Silent | Verdict::Dead) {
                self.patience.was_tried(now);
                self.given_up.push(wire.connection);
            }
        }
    }

    fn bounds(&self, now: Instant, has_others: bool) -> Bounds {
        Bounds { dead: DEAD, elsewhere: has_others.then(|| self.patience.time(now)) }
    }

    /// When [`Client::pump`] has something to do without any input.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        let role = match &self.role {
            Role::Producer(producer) => producer.next_wake(now),
            Role::Consumer(consumer) if self.is_open() => consumer.next_wake(),
            Role::Consumer(_) | Role::Operator(_) => None,
        };
        let direct = self.directs.as_ref().and_then(|directs| directs.decides.next_wake());
        let home = self.bounds(now, self.has_others);
        let home = self.wire.as_ref().and_then(|wire| wire.next_look(now, home));
        let bounds = self.bounds(now, self.is_open());
        let wires = self.directs.iter().flat_map(|directs| directs.wires.values());
        let looks = wires.filter_map(|wire| wire.next_look(now, bounds));
        role.into_iter().chain(direct).chain(home).chain(looks).min()
    }
}
