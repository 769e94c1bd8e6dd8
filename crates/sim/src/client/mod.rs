//! Simulated client processes: what a program with the client library does, on the same sessions.
//!
//! A process dials, proves itself, carries frames between its sessions and its connections, and dials again after a
//! pause when its home connection breaks. Absent here: when bytes arrive; that is the network's affair.

pub mod consumer;
pub mod operator;
pub mod producer;
mod wire;

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    admin::AdminRequest,
    frame::{self, Frame, FrameHeader, Leaders, WatchLeaders},
    id::NodeId,
    mac::MacKey,
    session::{
        direct::{self, Direct},
        handshake::ClientReady,
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

/// What a process does about its direct connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Connects to this node.
    Dial(NodeId),
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
    /// Earliest wake-up that is scheduled.
    pub wake_at: Option<u64>,
    /// What it does.
    pub role: Role,
    /// The home connection.
    wire: Option<Wire>,
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
        Self { life, clock, home: None, wake_at: None, role, wire: None, directs: None }
    }

    /// Talks to leaders directly.
    pub fn go_direct(&mut self, seed: u64) {
        self.directs = Some(Directs { decides: Direct::new(seed), wires: BTreeMap::new() });
    }

    /// The connection is made: begins the handshake.
    pub fn dialled(&mut self, way: Way, connection: u64, token: MacKey, nonce: [u8; 32]) {
        let wire = Wire::dialled(connection, token, nonce);
        match (way, &mut self.directs) {
            (Way::Home, _) => self.wire = Some(wire),
            (Way::Direct(node), Some(directs)) => {
                directs.wires.insert(node, wire);
            }
            (Way::Direct(_), None) => unreachable!("it never asked for one"),
        }
    }

    /// A direct connection could not be made.
    pub fn unreachable(&mut self, now: Instant, node: NodeId) {
        if let Some(directs) = &mut self.directs {
            directs.decides.lost(now, node);
        }
    }

    /// Which of its connections this is, if it is one.
    pub fn way(&self, connection: u64) -> Option<Way> {
        if self.wire.as_ref().is_some_and(|wire| wire.connection == connection) {
            return Some(Way::Home);
        }
        let mut wires = self.directs.iter().flat_map(|directs| &directs.wires);
        wires.find(|(_, wire)| wire.connection == connection).map(|(node, _)| Way::Direct(*node))
    }

    fn wire(&mut self, way: Way) -> Option<&mut Wire> {
        match way {
            Way::Home => self.wire.as_mut(),
            Way::Direct(node) => self.directs.as_mut()?.wires.get_mut(&node),
        }
    }

    /// The connection is gone.
    pub fn disconnected(&mut self, now: Instant, way: Way) {
        match (way, &mut self.directs) {
            (Way::Home, directs) => {
                self.wire = None;
                directs.iter_mut().for_each(|directs| directs.decides.home(None));
            }
            (Way::Direct(node), Some(directs)) => {
                directs.wires.remove(&node);
                directs.decides.lost(now, node);
            }
            (Way::Direct(_), None) => {}
        }
        match &mut self.role {
            Role::Producer(producer) => producer.session.disconnected(way),
            Role::Consumer(consumer) => consumer.disconnected(),
            Role::Operator(_) => {}
        }
    }

    /// Lets go of all its connections, without a word to its sessions.
    pub fn leave(&mut self) -> Vec<u64> {
        let direct = self.directs.take().into_iter().flat_map(|directs| directs.wires.into_values());
        self.wire.take().into_iter().chain(direct).map(|wire| wire.connection).collect()
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
        self.way(connection).and_then(|way| self.wire(way)).is_some_and(|wire| !wire.is_open())
    }

    /// Bytes arrived. Frames are handed to the sessions.
    pub fn receive(&mut self, now: Instant, way: Way, bytes: &[u8]) -> Result<(), Broken> {
        if let Some(wire) = self.wire(way) {
            wire.receive(bytes);
        }
        while let Some(wire) = self.wire(way)
            && let Some(heard) = wire.hear()?
        {
            match heard {
                Heard::Opened(ready) => self.opened(now, way, &ready),
                Heard::Frame(header, body) => self.frame(now, way, header, body)?,
            }
        }
        Ok(())
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
        self.wire(way).expect("it has just been opened").out.extend_from_slice(&out);
    }

    fn frame(&mut self, now: Instant, way: Way, header: FrameHeader, body: Bytes) -> Result<(), Broken> {
        let frame = Frame::decode(header.kind, body).map_err(|_| Broken)?;
        if matches!(frame, Frame::Refused(_)) {
            return Err(Broken);
        }
        if let Some(directs) = &mut self.directs {
            match (&frame, way) {
                (Frame::GoAway(_), Way::Home) => return Err(Broken),
                (Frame::GoAway(_), Way::Direct(node)) => directs.decides.going_away(node),
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

    /// The next thing to do about direct connections.
    pub fn next_step(&mut self, now: Instant) -> Option<Step> {
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
        let direct = self.directs.iter_mut().flat_map(|directs| directs.wires.values_mut());
        let wires = self.wire.iter_mut().chain(direct).filter(|wire| !wire.out.is_empty());
        wires.map(|wire| (wire.connection, wire.out.split())).collect()
    }

    /// When [`Client::pump`] has something to do without any input.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        let role = match &self.role {
            Role::Producer(producer) => producer.next_wake(now),
            Role::Consumer(consumer) if self.is_open() => consumer.next_wake(),
            Role::Consumer(_) | Role::Operator(_) => None,
        };
        let direct = self.directs.as_ref().and_then(|directs| directs.decides.next_wake());
        role.into_iter().chain(direct).min()
    }
}
