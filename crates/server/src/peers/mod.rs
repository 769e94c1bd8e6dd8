//! Links with the other nodes: one connection for each pair, whoever dialled it, used both ways.
//!
//! Here is decided which connections are links: who is let in, which of two with one node stays, when one is given up, and
//! whether the process behind a broken one is gone. `roster` knows whom to dial and when, `link` one socket. What travels
//! is the engine's business. The order of things for whoever owns the links: `Up`, packets, `Down`.

mod ending;
mod link;
mod roster;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use bytes::BytesMut;
use mio::{Interest, Registry, Token, event::Event, net::TcpStream};
use rustix::net::sockopt;
use swarmmq_engine::node::Now;
use swarmmq_protocol::{
    error::Code,
    id::NodeId,
    join_token::JoinToken,
    limits::UNAUTHENTICATED_TIME_MAX,
    mac::DualKey,
    packet::Packet,
    session::{
        guard::{Guard, Source},
        peer::{self, PeerError, PeerHandshake, PeerHello},
    },
    time::Instant,
};
use swarmmq_tls::Stream;

use self::{
    ending::{Inquest, Setback},
    link::PeerLink,
    roster::{Roster, Target},
};
use crate::{
    StartError, clock,
    link::ReadState,
    listener::{Listener, source_of},
    tls::{Failures, Security, is_certified},
};

/// Tokens from here on belong to links with nodes; the first is the port's.
pub(crate) const FIRST_TOKEN: usize = usize::MAX / 2;
/// Accepted connections that have proven nothing yet. A node that means it needs a moment; with more of them than
/// this, the oldest goes.
const STRANGERS_MAX: usize = 128;
/// Bytes that the kernel keeps for a slow peer: enough for a fast link, little enough not to delay heartbeats.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// A connection on which nothing that was sent is confirmed for so long is given up by the kernel, in milliseconds. Left
/// alone it repeats ever more rarely: a link that was cut for a minute would stay silent for up to another one, while
/// a new connection comes about within seconds. Packets take another way long before.
const UNCONFIRMED_MS_MAX: u32 = 5_000;
/// Two connections of one pair that both came up within this time may have crossed on their way.
const CROSSING_TIME_MAX: Duration = Duration::from_secs(4);
const _: () = assert!(CROSSING_TIME_MAX.as_millis() >= 2 * UNAUTHENTICATED_TIME_MAX.as_millis());
/// Pause between lines that say the same.
const SAY_AGAIN: Duration = Duration::from_secs(5);
const SCRATCH_BYTES: usize = 256 << 10;

/// What whoever owns the links is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PeerEvent {
    /// A link with this node is up.
    Up(PeerHello),
    /// It is down.
    Down {
        /// With whom.
        node: NodeId,
        /// The connection broke and connecting again was refused, or a later boot has taken over: the process is gone.
        gone: bool,
    },
    /// A packet came.
    Packet {
        /// Over the link with this node.
        from: NodeId,
        /// What.
        packet: Packet,
    },
}

/// Who owns the links.
pub(crate) trait Owner {
    /// What this node says of itself.
    fn hello(&self) -> PeerHello;
    /// Whether a link with this node, which has proven that it belongs here, is wanted.
    fn admits(&self, now: Now, hello: &PeerHello) -> Result<(), (Code, String)>;
    /// Somebody was turned away.
    fn turned_away(&mut self, now: Now, source: Option<Source>, node: Option<NodeId>, code: Code);
    /// Something happened.
    fn hear(&mut self, now: Now, event: PeerEvent);
}

/// Whose idea a connection was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Accepted,
    Dialled {
        target: Target,
        address: SocketAddr,
        /// The socket is connected.
        connected: bool,
    },
}

#[derive(Debug)]
struct Entry {
    link: PeerLink<Stream<TcpStream>>,
    origin: Origin,
    /// When it was begun, or since when it is up.
    since: Instant,
    /// Who it is, once it is up.
    peer: Option<PeerHello>,
}

impl Entry {
    fn is_ours(&self) -> bool {
        self.origin != Origin::Accepted
    }
}

/// All links of one node.
#[derive(Debug)]
pub(crate) struct Peers {
    /// Closed first when the process ends, so that connecting is refused by the time links break.
    listener: Option<Listener>,
    links: BTreeMap<usize, Entry>,
    /// The link of each node that is up.
    up: BTreeMap<NodeId, usize>,
    inquests: BTreeMap<NodeId, Inquest>,
    /// When the latest of each node began.
    inquired_at: BTreeMap<NodeId, Instant>,
    roster: Roster,
    /// Connections by the time at which they must have authenticated.
    strangers: VecDeque<(Instant, usize)>,
    /// Links with bytes left to read, for want of budget.
    unread: VecDeque<usize>,
    registry: Registry,
    secret: DualKey,
    /// What lets this node join, if it is no member.
    token: Option<JoinToken>,
    /// Who fails to prove itself too often.
    guard: Guard,
    security: Security,
    /// Sessions that did not come about.
    failures: Failures,
    next_token: usize,
    scratch: Vec<u8>,
    /// Since when others say that this node's number is taken, and when somebody said so last.
    conflict: Option<(Instant, Instant)>,
    fatal: Option<StartError>,
    lost: u64,
    /// When it may next be said that strangers were turned away, and how many were since the last time.
    strangers_quiet: (Instant, u64),
    next_words: Instant,
}

impl Peers {
    /// Begins to listen at `listen`, if at all; dials `seeds` until it is told who the members are.
    pub(crate) fn start(
        registry: Registry,
        listen: Option<SocketAddr>,
        seeds: &[SocketAddr],
        secret: DualKey,
        security: Security,
        owner: &dyn Owner,
        now: Now,
    ) -> Result<Self, StartError> {
        let bind = |address| Listener::bind("peer", address, &registry, Token(FIRST_TOKEN));
        let listener = listen.map(bind).transpose()?;
        Ok(Self {
            listener,
            links: BTreeMap::new(),
            up: BTreeMap::new(),
            inquests: BTreeMap::new(),
            inquired_at: BTreeMap::new(),
            roster: Roster::new(owner.hello().node, seeds, now.monotonic),
            strangers: VecDeque::new(),
            unread: VecDeque::new(),
            registry,
            secret,
            token: None,
            guard: Guard::default(),
            security,
            failures: Failures::default(),
            next_token: FIRST_TOKEN + 1,
            scratch: vec![0; SCRATCH_BYTES],
            conflict: None,
            fatal: None,
            lost: 0,
            strangers_quiet: (now.monotonic, 0),
            next_words: now.monotonic + SAY_AGAIN,
        })
    }

    /// What is proven and demanded on links that are made from now on; those that stand stay.
    pub(crate) fn set_secret(&mut self, secret: DualKey) {
        self.secret = secret;
    }

    /// Whom this node asks is given a join token from now on.
    pub(crate) fn set_token(&mut self, token: Option<JoinToken>) {
        self.token = token;
    }

    /// Ends the link with a node that is no member and was not let in.
    pub(crate) fn let_go(&mut self, now: Now, node: NodeId, owner: &mut dyn Owner) {
        if let Some(token) = self.up.get(&node).copied() {
            self.give_up(now, token, "it is no member, and was not let in", owner);
        }
    }

    /// Something happened to one of the tokens from [`FIRST_TOKEN`] on.
    pub(crate) fn serve(&mut self, now: Now, event: &Event, budget: &mut usize, owner: &mut dyn Owner) {
        let token = event.token().0;
        if token == FIRST_TOKEN {
            self.accept(now, owner);
            return;
        }
        let ended = event.is_read_closed() || event.is_error();
        match self.finish_connecting(token) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return self.broken(now, token, &error, owner),
        }
        if event.is_writable() {
            self.write(now, token, owner);
        }
        let Some(entry) = self.links.get_mut(&token) else { return };
        entry.link.ended |= ended;
        if event.is_readable() || entry.link.ended {
            self.read(now, token, budget, owner);
        }
    }

    /// Everything that time brings, and what was left to be read. Once per turn of the loop.
    pub(crate) fn turn(&mut self, now: Now, budget: &mut usize, owner: &mut dyn Owner) {
        for _ in 0..self.unread.len() {
            let Some(token) = self.unread.pop_front() else { break };
            if let Some(entry) = self.links.get_mut(&token) {
                entry.link.unread = false;
                self.read(now, token, budget, owner);
            }
        }
        if self.listener.as_ref().and_then(Listener::retry_at).is_some_and(|at| at <= now.monotonic) {
            self.accept(now, owner);
        }
        while let Some((at, token)) = self.strangers.front().copied()
            && at <= now.monotonic
        {
            self.strangers.pop_front();
            if self.links.get(&token).is_some_and(|entry| entry.peer.is_none()) {
                self.broken(now, token, &io::ErrorKind::TimedOut.into(), owner);
            }
        }
        let stalled = self
            .links
            .iter()
            .filter(|(_, entry)| entry.link.stalls_at().is_some_and(|at| at <= now.monotonic));
        for token in stalled.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.give_up(now, token, "it takes nothing", owner);
        }
        let over = self.inquests.iter().filter(|(_, inquest)| inquest.until <= now.monotonic);
        for node in over.map(|(node, _)| *node).collect::<Vec<_>>() {
            self.conclude(now, node, false, owner);
        }
        while let Some((target, address)) = self.roster.due(now.monotonic) {
            self.dial(now, target, address, owner);
        }
        self.speak(now);
    }

    /// Queues a packet for the link with `to`, if there is one: who asked will ask again. Goes out with
    /// [`Peers::flush`].
    pub(crate) fn send(&mut self, now: Now, to: NodeId, packet: Packet, owner: &mut dyn Owner) {
        let Some(token) = self.up.get(&to).copied() else { return };
        let Some(entry) = self.links.get_mut(&token) else { return };
        if !entry.link.queue(packet) {
            self.give_up(now, token, "too much waits for it", owner);
        }
    }

    /// Writes what was queued, the urgent first.
    pub(crate) fn flush(&mut self, now: Now, owner: &mut dyn Owner) {
        let ready =
            self.links.iter().filter(|(_, entry)| entry.link.has_output() && !entry.link.is_blocked());
        for token in ready.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.write(now, token, owner);
        }
    }

    /// Replaces the list of those to keep a link with. Who was on it and is not any more is let go.
    pub(crate) fn set_members(&mut self, now: Now, list: &[(NodeId, String)], owner: &mut dyn Owner) {
        for node in self.roster.set_members(now.monotonic, list) {
            let Some(token) = self.up.get(&node).copied() else { continue };
            // What waits for it may be the news that it does not belong here any more.
            self.write(now, token, owner);
            self.give_up(now, token, "it is no member any more", owner);
        }
    }

    /// What new connections are protected with from now on.
    pub(crate) fn set_security(&mut self, security: Security) {
        self.security = security;
    }

    /// Sessions that did not come about, by port and kind.
    pub(crate) fn failures(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.failures.counts()
    }

    /// When [`Peers::turn`] has something to do without any event.
    pub(crate) fn next_at(&self, now: Now) -> Option<Instant> {
        if !self.unread.is_empty() {
            return Some(now.monotonic);
        }
        let links = self.links.values().filter_map(|entry| entry.link.stalls_at());
        let inquests = self.inquests.values().map(|inquest| inquest.until);
        let single = [
            self.listener.as_ref().and_then(Listener::retry_at),
            self.strangers.front().map(|(at, _)| *at),
            self.roster.next_at(),
        ];
        links.chain(inquests).chain(single.into_iter().flatten()).min()
    }

    /// Whether everything that was sent over links has been taken by their sockets.
    pub(crate) fn is_quiet(&self) -> bool {
        self.links
            .values()
            .all(|entry| entry.peer.is_none() || !(entry.link.has_output() || entry.link.is_blocked()))
    }

    /// How many links have gone down since the start.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Why this node cannot be part of the cluster, if it cannot.
    pub(crate) fn take_fatal(&mut self) -> Option<StartError> {
        self.fatal.take()
    }

    /// Where those listen who have a link with this node.
    pub(crate) fn linked_addresses(&self) -> Vec<SocketAddr> {
        self.roster.linked_addresses()
    }

    /// What became of every seed, for people.
    pub(crate) fn seeds_in_words(&self) -> String {
        self.roster.seeds_in_words()
    }

    fn accept(&mut self, now: Now, owner: &mut dyn Owner) {
        while let Some(stream) = self.listener.as_mut().and_then(|door| door.accept(now.monotonic)) {
            if source_of(&stream).is_some_and(|source| !self.guard.listens_to(now.monotonic, source)) {
                self.not_listened_to(now, stream, owner);
                continue;
            }
            let handshake = PeerHandshake::accept(self.secret.clone(), owner.hello(), clock::random());
            let secured = self.security.accept_peer(stream);
            let admitted = secured.and_then(|stream| {
                self.admit(now, PeerLink::new(stream, handshake, BytesMut::new()), Origin::Accepted)
            });
            if let Err(error) = admitted {
                tracing::warn!(%error, "a connection of a node could not be set up");
            }
        }
        let waiting = |entry: &&Entry| entry.origin == Origin::Accepted && entry.peer.is_none();
        let strangers = self.links.values().filter(waiting).count();
        let surplus: Vec<usize> = {
            let oldest = self.links.iter().filter(|(_, entry)| waiting(entry)).map(|(token, _)| *token);
            oldest.take(strangers.saturating_sub(STRANGERS_MAX)).collect()
        };
        for token in surplus {
            self.close(token);
            self.turned_away(now, "too many connections wait for their handshake");
        }
    }

    /// Refused without looking: too many failed attempts came from there.
    fn not_listened_to(&mut self, now: Now, mut stream: TcpStream, owner: &mut dyn Owner) {
        let mut out = BytesMut::new();
        let why = "too many failed attempts came from this place: try later";
        peer::refuse(Code::Throttled, why, &mut out);
        // It hears why if its socket takes it at once.
        let _heard = stream.write(&out).is_ok();
        owner.turned_away(now, source_of(&stream), None, Code::Throttled);
        self.turned_away(now, why);
    }

    fn admit(
        &mut self,
        now: Now,
        mut link: PeerLink<Stream<TcpStream>>,
        origin: Origin,
    ) -> io::Result<usize> {
        let token = self.next_token;
        self.next_token += 1;
        let socket = link.stream.socket_mut();
        socket.set_nodelay(true)?;
        sockopt::set_socket_send_buffer_size(&*socket, SEND_BUFFER_BYTES)?;
        sockopt::set_tcp_user_timeout(&*socket, UNCONFIRMED_MS_MAX)?;
        self.registry.register(socket, Token(token), Interest::READABLE | Interest::WRITABLE)?;
        self.links.insert(token, Entry { link, origin, since: now.monotonic, peer: None });
        self.strangers.push_back((now.monotonic + UNAUTHENTICATED_TIME_MAX, token));
        Ok(token)
    }

    fn dial(&mut self, now: Now, target: Target, address: SocketAddr, owner: &mut dyn Owner) {
        let expected = if let Target::Node(node) = target { Some(node) } else { None };
        let mut first = BytesMut::new();
        let nonce = clock::random();
        let handshake = PeerHandshake::dial(
            self.secret.clone(),
            owner.hello(),
            expected,
            nonce,
            self.token.clone(),
            &mut first,
        );
        let origin = Origin::Dialled { target, address, connected: false };
        let begun = TcpStream::connect(address)
            .and_then(|stream| self.security.dial(stream, address))
            .and_then(|stream| self.admit(now, PeerLink::new(stream, handshake, first), origin));
        if let Err(error) = begun {
            self.dial_failed(now, target, address, &Setback::Io(error), owner);
        }
    }

    /// Whether the socket of `token` is connected; an error if it never will be.
    fn finish_connecting(&mut self, token: usize) -> io::Result<bool> {
        let Some(entry) = self.links.get_mut(&token) else { return Ok(false) };
        let Origin::Dialled { connected, .. } = &mut entry.origin else { return Ok(true) };
        if *connected {
            return Ok(true);
        }
        let socket = entry.link.stream.socket();
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        match socket.peer_addr() {
            // The kernel picked the port that is dialled for this end: nobody listens there.
            Ok(peer) if socket.local_addr()? == peer => Err(io::ErrorKind::ConnectionRefused.into()),
            Ok(_) => {
                *connected = true;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read(&mut self, now: Now, token: usize, budget: &mut usize, owner: &mut dyn Owner) {
        let Some(entry) = self.links.get_mut(&token) else { return };
        let (state, taken) =
            if *budget > 0 { entry.link.read(&mut self.scratch) } else { (ReadState::More, 0) };
        *budget = budget.saturating_sub(taken);
        if !entry.link.is_authenticated() {
            match entry.link.meet() {
                Ok(met) => {
                    if let Some(hello) = met {
                        self.met(now, token, hello, owner);
                    }
                    self.write(now, token, owner);
                }
                Err(error) => return self.strange(now, token, &error, owner),
            }
        }
        loop {
            let Some(entry) = self.links.get_mut(&token) else { return };
            let Some(from) = entry.peer.as_ref().map(|peer| peer.node) else { break };
            match entry.link.next_packet() {
                Ok(Some(packet)) => owner.hear(now, PeerEvent::Packet { from, packet }),
                Ok(None) => break,
                Err(error) => return self.give_up(now, token, &error.to_string(), owner),
            }
        }
        let Some(entry) = self.links.get_mut(&token) else { return };
        match state {
            ReadState::Drained => {}
            ReadState::More if entry.link.unread => {}
            ReadState::More => {
                entry.link.unread = true;
                self.unread.push_back(token);
            }
            ReadState::Closed => {
                let failure = entry.link.stream.failure().cloned();
                let error = failure.map_or_else(|| io::ErrorKind::UnexpectedEof.into(), io::Error::from);
                self.broken(now, token, &error, owner);
            }
        }
    }

    fn write(&mut self, now: Now, token: usize, owner: &mut dyn Owner) {
        let Some(entry) = self.links.get_mut(&token) else { return };
        if matches!(entry.origin, Origin::Dialled { connected: false, .. }) {
            return;
        }
        if let Err(error) = entry.link.write(now.monotonic) {
            self.broken(now, token, &error, owner);
        }
    }

    /// Both ends have proven themselves. Is this a link?
    fn met(&mut self, now: Now, token: usize, hello: PeerHello, owner: &mut dyn Owner) {
        let me = owner.hello();
        let Some(entry) = self.links.get(&token) else { return };
        let origin = entry.origin;
        if origin == Origin::Accepted
            && let Some(source) = source_of(entry.link.stream.socket())
        {
            self.guard.succeeded(source);
        }
        let verdict = self.certified(token, &hello);
        let verdict = verdict.and_then(|()| self.judge(now, token, &me, &hello)).and_then(|replaced| {
            owner.admits(now, &hello)?;
            Ok(replaced)
        });
        let replaced = match verdict {
            Ok(replaced) => replaced,
            Err((code, message)) => return self.turn_down(now, token, &hello, code, &message, owner),
        };
        // Whoever knows no cluster yet only asks: afterwards it comes back as who it is then.
        if hello.cluster.is_none() || me.cluster.is_none() {
            self.write(now, token, owner);
            self.close(token);
            if let Origin::Dialled { target, address, .. } = origin {
                if hello.cluster.is_some() {
                    self.roster.ended(now.monotonic, target, hello.node);
                    owner.hear(now, PeerEvent::Up(hello));
                } else {
                    let why = Setback::Said("it belongs to no cluster yet either".into());
                    self.dial_failed(now, target, address, &why, owner);
                }
            }
            return;
        }
        let node = hello.node;
        if let Some(old) = replaced {
            let old = self.close(old).and_then(|entry| entry.peer);
            self.down(now, node, old.is_some_and(|old| old.boot < hello.boot), owner);
        }
        if let Some(inquest) = self.inquests.get(&node) {
            let later_boot = inquest.boot < hello.boot;
            self.conclude(now, node, later_boot, owner);
        }
        self.cancel_dials(now, token, &hello);
        if let Origin::Dialled { target, .. } = origin {
            self.roster.ended(now.monotonic, target, hello.node);
        }
        self.conflict = None;
        self.roster.linked(node, hello.peer.parse().ok());
        self.up.insert(node, token);
        let Some(entry) = self.links.get_mut(&token) else { return };
        entry.since = now.monotonic;
        entry.link.stream.trust();
        entry.peer = Some(hello.clone());
        tracing::info!(
            node = node.0,
            peer = hello.peer,
            version = hello.version,
            dialled = entry.is_ours(),
            "a link with another node is up"
        );
        owner.hear(now, PeerEvent::Up(hello));
    }

    /// Whether the certificate is the one of the node that it says it is: before anything that it says is believed.
    fn certified(&self, token: usize, hello: &PeerHello) -> Result<(), (Code, String)> {
        let Some(entry) = self.links.get(&token) else { return Ok(()) };
        is_certified(&entry.link.stream, hello.node).map_err(|why| (Code::Unauthenticated, why))
    }

    /// Whether a connection with `hello` can be the link, and which one it replaces. Both ends come to the same end:
    /// of two connections that crossed on their way, the one that the lower node dialled stays.
    fn judge(
        &self,
        now: Now,
        token: usize,
        me: &PeerHello,
        hello: &PeerHello,
    ) -> Result<Option<usize>, (Code, String)> {
        let ours = self.links.get(&token).is_some_and(Entry::is_ours);
        let taken = |what: &str| {
            Err((Code::NodeConflict, format!("node {} is running already, {what}", hello.node.0)))
        };
        if let Some((old, entry, peer)) = self.up.get(&hello.node).and_then(|old| {
            let entry = self.links.get(old)?;
            Some((*old, entry, entry.peer.as_ref()?))
        }) {
            if peer.incarnation != hello.incarnation {
                return taken("with another disk");
            }
            if peer.boot > hello.boot {
                return taken("started later");
            }
            let crossed = now.monotonic.since(entry.since) < CROSSING_TIME_MAX;
            let stays = peer.boot == hello.boot
                && crossed
                && entry.is_ours() != ours
                && entry.is_ours() == (me.node < hello.node);
            return if stays { Err((Code::Busy, "there is a link already".into())) } else { Ok(Some(old)) };
        }
        // Ours will be the link in a moment: two that come up at once would only disturb each other.
        let crossing = !ours
            && me.node < hello.node
            && self.links.values().any(|entry| {
                let Origin::Dialled { target, address, connected } = entry.origin else { return false };
                connected && (target == Target::Node(hello.node) || hello.peer.parse() == Ok(address))
            });
        if crossing { Err((Code::Busy, "the other direction is under way".into())) } else { Ok(None) }
    }

    /// A peer that is who it says, and is not wanted.
    fn turn_down(
        &mut self,
        now: Now,
        token: usize,
        hello: &PeerHello,
        code: Code,
        message: &str,
        owner: &mut dyn Owner,
    ) {
        let Some(entry) = self.links.get_mut(&token) else { return };
        if let Origin::Dialled { target, address, .. } = entry.origin {
            self.close(token);
            if code == Code::Busy {
                self.roster.ended(now.monotonic, target, hello.node);
            } else {
                let why = Setback::Said(format!("not wanted ({code}): {message}"));
                self.dial_failed(now, target, address, &why, owner);
            }
            return;
        }
        if code != Code::Busy {
            owner.turned_away(now, source_of(entry.link.stream.socket()), Some(hello.node), code);
        }
        entry.link.refuse(code, message);
        self.write(now, token, owner);
        self.close(token);
        if code == Code::Busy {
            tracing::debug!(node = hello.node.0, message, "a second connection is not needed");
        } else {
            let why = format!("node {} at {} is not let in ({code}): {message}", hello.node.0, hello.peer);
            self.turned_away(now, &why);
        }
    }

    /// The handshake failed.
    fn strange(&mut self, now: Now, token: usize, error: &PeerError, owner: &mut dyn Owner) {
        // The peer hears why, if its socket takes it.
        self.write(now, token, owner);
        let Some(entry) = self.close(token) else { return };
        let Origin::Dialled { target, address, .. } = entry.origin else {
            let source = source_of(entry.link.stream.socket());
            if let (PeerError::WrongSecret, Some(source)) = (error, source) {
                self.guard.failed(now.monotonic, source);
            }
            owner.turned_away(now, source, None, error.code());
            let from = entry.link.stream.socket().peer_addr();
            let from = from.map_or_else(|_| "?".into(), |from| from.to_string());
            return self.turned_away(now, &format!("{error}, from {from}"));
        };
        if let (PeerError::SameNode(_), Target::Seed(seed)) = (error, target)
            && self.is_accepted_here(&entry)
        {
            tracing::debug!(%address, "this seed is this node itself");
            return self.roster.is_myself(seed);
        }
        self.dial_failed(now, target, address, &Setback::Peer(error.clone()), owner);
    }

    /// Whether the other end of a dialled connection is one that this process accepted.
    fn is_accepted_here(&self, dialled: &Entry) -> bool {
        let Ok(local) = dialled.link.stream.socket().local_addr() else { return false };
        self.links.values().any(|entry| {
            entry.origin == Origin::Accepted
                && entry.link.stream.socket().peer_addr().is_ok_and(|peer| peer == local)
        })
    }

    /// Dials that are not needed any more, because `kept` leads to the same node.
    fn cancel_dials(&mut self, now: Now, kept: usize, hello: &PeerHello) {
        let address = hello.peer.parse().ok();
        let superfluous = |(token, entry): (&usize, &Entry)| match entry.origin {
            Origin::Dialled { target, address: dialled, .. } if *token != kept && entry.peer.is_none() => {
                let same = target == Target::Node(hello.node) || Some(dialled) == address;
                same.then_some((*token, target))
            }
            _ => None,
        };
        for (token, target) in self.links.iter().filter_map(superfluous).collect::<Vec<_>>() {
            self.close(token);
            self.roster.ended(now.monotonic, target, hello.node);
        }
    }

    fn close(&mut self, token: usize) -> Option<Entry> {
        let mut entry = self.links.remove(&token)?;
        entry.link.stream.close();
        if let Err(error) = self.registry.deregister(entry.link.stream.socket_mut()) {
            tracing::debug!(%error, "a closed connection was not registered");
        }
        Some(entry)
    }

    /// Somebody was turned away. Said at most every few seconds: whoever floods the port must not flood the log.
    fn turned_away(&mut self, now: Now, why: &str) {
        let (quiet_until, count) = &mut self.strangers_quiet;
        *count += 1;
        if *quiet_until <= now.monotonic {
            tracing::warn!(why, count = *count, "turned away at the peer port");
            self.strangers_quiet = (now.monotonic + SAY_AGAIN, 0);
        }
    }

    /// What a node that belongs to nobody yet waits for, every few seconds.
    fn speak(&mut self, now: Now) {
        if now.monotonic < self.next_words {
            return;
        }
        self.next_words = now.monotonic + SAY_AGAIN;
        if self.roster.is_joining() && self.roster.is_alone() {
            let seeds = self.roster.seeds_in_words();
            if !seeds.is_empty() {
                tracing::warn!(seeds, "waiting for a seed that answers");
            }
        }
    }
}
