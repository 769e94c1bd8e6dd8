//! Simulated client processes: what a program with the client library does, on the same sessions.
//!
//! A process dials, proves itself, carries frames between its sessions and its connection, and dials again after a
//! pause when the connection breaks. Absent here: when bytes arrive; that is the network's affair.

pub mod consumer;
pub mod operator;
pub mod producer;

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    admin::AdminRequest,
    frame::{Frame, FrameHeader, FrameReader, Welcome},
    mac::MacKey,
    session::handshake::ClientHandshake,
    time::Instant,
};

use self::{consumer::ConsumerProcess, operator::Operator, producer::ProducerProcess};
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

/// One process, through all its lives.
#[derive(Debug)]
pub struct Client {
    /// Counts its lives; what belongs to an earlier life is ignored.
    pub life: u64,
    /// Its own wall clock.
    pub clock: Clock,
    /// The host that it talks to, or would like to.
    pub home: Option<usize>,
    /// The connection it uses.
    pub connection: Option<u64>,
    /// Earliest wake-up that is scheduled.
    pub wake_at: Option<u64>,
    /// What it does.
    pub role: Role,
    handshake: Option<ClientHandshake>,
    reader: FrameReader,
    out: BytesMut,
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
            connection: None,
            wake_at: None,
            role,
            handshake: None,
            reader: FrameReader::new(),
            out: BytesMut::new(),
        }
    }

    /// The connection is made: begins the handshake.
    pub fn dialled(&mut self, connection: u64, token: MacKey, nonce: [u8; 32]) {
        self.connection = Some(connection);
        self.reader = FrameReader::new();
        self.reader.set_authenticated();
        self.out = BytesMut::new();
        self.handshake = Some(ClientHandshake::start(token, "simulated", nonce, &mut self.out));
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) {
        self.connection = None;
        self.handshake = None;
        self.out.clear();
        match &mut self.role {
            Role::Producer(producer) => producer.session.disconnected(),
            Role::Consumer(consumer) => consumer.disconnected(),
            Role::Operator(_) => {}
        }
    }

    /// Whether the connection is open and proven.
    pub fn is_open(&self) -> bool {
        self.connection.is_some() && self.handshake.is_none()
    }

    /// Bytes arrived. Frames are handed to the sessions.
    pub fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Broken> {
        self.reader.buffer().extend_from_slice(bytes);
        while let Some((header, body)) = self.reader.next_frame().map_err(|_| Broken)? {
            if let Some(handshake) = &mut self.handshake {
                if let Some(ready) = handshake.frame(header, body, &mut self.out).map_err(|_| Broken)? {
                    self.handshake = None;
                    self.opened(now, &ready.welcome);
                }
                continue;
            }
            self.frame(now, header, body)?;
        }
        Ok(())
    }

    fn opened(&mut self, now: Instant, welcome: &Welcome) {
        match &mut self.role {
            Role::Producer(producer) => producer.opened(welcome, &mut self.out),
            Role::Consumer(consumer) => consumer.opened(now),
            Role::Operator(operator) => operator.ask(&mut self.out),
        }
    }

    fn frame(&mut self, now: Instant, header: FrameHeader, body: Bytes) -> Result<(), Broken> {
        let frame = Frame::decode(header.kind, body).map_err(|_| Broken)?;
        if matches!(frame, Frame::Refused(_)) {
            return Err(Broken);
        }
        match &mut self.role {
            Role::Producer(producer) => producer.frame(now, header.request, frame),
            Role::Consumer(consumer) => consumer.frame(now, header.request, frame),
            Role::Operator(operator) => operator.frame(&frame, &mut self.out),
        }
        Ok(())
    }

    /// The operator gets one more thing to do.
    pub fn instruct(&mut self, question: AdminRequest) {
        let open = self.is_open();
        if let Role::Operator(operator) = &mut self.role
            && operator.add(question)
            && open
        {
            operator.ask(&mut self.out);
        }
    }

    /// What is to be sent now.
    pub fn pump(&mut self, now: Instant) -> Option<BytesMut> {
        // Deadlines pass without a connection too.
        let mut nowhere = BytesMut::new();
        let open = self.is_open();
        let out = if open { &mut self.out } else { &mut nowhere };
        match &mut self.role {
            Role::Producer(producer) => producer.pump(now, open, out),
            Role::Consumer(consumer) if open => consumer.pump(now, out),
            Role::Consumer(_) | Role::Operator(_) => {}
        }
        (self.connection.is_some() && !self.out.is_empty()).then(|| self.out.split())
    }

    /// When [`Client::pump`] has something to do without any input.
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        match &self.role {
            Role::Producer(producer) => producer.next_wake(now),
            Role::Consumer(consumer) if self.is_open() => consumer.next_wake(),
            Role::Consumer(_) | Role::Operator(_) => None,
        }
    }
}
