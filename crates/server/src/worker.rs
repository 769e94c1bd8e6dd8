//! One thread with its connections and its node: whatever woke it, it takes everything at hand, lets the node decide
//! once, and sends each connection one write and the disk one batch. Nothing here blocks but the wait for events.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mio::{Events, Interest, Token, event::Event, net::TcpStream};
use swarmmq_engine::node::{ConnectionId, Effects, Input, Neighbour, Node, Now};
use swarmmq_protocol::{
    error::Code,
    id::NodeId,
    limits::UNAUTHENTICATED_TIME_MAX,
    mac::MacKey,
    session::{guard::Source, peer::PeerHello},
    time::Instant,
};
use swarmmq_tls::{Name, Stream};

use crate::{
    StartError, acquaintances,
    audit::AuditLog,
    bootstrap::NodeConfig,
    clock::{self, Clock},
    disk::{Disk, DiskEvent, SegmentFiles},
    gossip::Gossip,
    http::Shared,
    identity::Identity,
    keyring::{KeyringFile, NodeKeyring},
    link::{Link, ReadState},
    listener::{CONNECTIONS_MAX, Listener, raise_file_limit, source_of},
    peers::{self, Owner, PeerEvent, Peers},
    shutdown::{DRAIN_TIME_MAX, NEWS, Watch},
    telemetry::Timings,
    tls::{Certificates, Failures},
};

const LISTENER: Token = Token(0);
const GOSSIP: Token = Token(2);
const FIRST_CONNECTION: usize = 3;
/// Pause between reports.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// Pause between looks whether the node has become ready.
const READY_PAUSE: Duration = Duration::from_millis(20);
/// Time for a connection that is being closed to take its last bytes.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(5);
/// Connections taken, and strangers sent away, before others get their turn: thousands may come or go together, and each
/// costs some 20 us.
const STRANGERS_PER_TURN: usize = 16;
/// Bytes taken from all connections before the node decides: bounds memory and the wait of whoever came first.
const BURST_BYTES_MAX: usize = 32 << 20;
const SCRATCH_BYTES: usize = 256 << 10;

/// A node that is ready to run, and what it runs on.
pub(crate) struct Ready {
    pub(crate) node: Node,
    pub(crate) files: SegmentFiles,
    pub(crate) identity: Identity,
    pub(crate) clock: Clock,
}

/// How a node ends that could start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked to, and has drained.
    Drained,
    /// Others know more of its log than its disk: it can only come back as a new disk (safety rule 14).
    DiskLost {
        /// Where those listen for nodes who had a link with it.
        others: Vec<SocketAddr>,
    },
}

/// Runs a node until it has drained, or its disk turns out to be lost.
pub(crate) fn run(
    config: &NodeConfig,
    ready: Ready,
    keyring: &mut KeyringFile,
    certificates: &mut Certificates,
    watch: &mut Watch,
    shared: &Shared,
) -> Result<Ended, StartError> {
    raise_file_limit();
    let internal = |error: io::Error| {
        StartError::local(format!("cannot start: {error}"), "check the limits of the process")
    };
    let Ready { mut node, files, identity, clock } = ready;
    let registry = watch.poll.registry();
    let listener = config
        .takes_clients()
        .then(|| Listener::bind("client", config.client, registry, LISTENER))
        .transpose()?;
    let own = registry.try_clone().map_err(internal)?;
    let now = clock.now();
    // A secret that nobody else knows lets nobody in.
    let secret = keyring.keys().peer_secret.clone().unwrap_or_else(|| MacKey::new(clock::random()).into());
    let security = certificates.security();
    let mut peers = Peers::start(own, Some(config.peer), &config.seeds, secret, security, &node, now)?;
    if identity.founder {
        // Whoever made the cluster is a member from the beginning: it waits for nobody to let it in.
        peers.set_members(now, &[], &mut node);
    }
    let gossip = Gossip::bind(config.gossip, registry, GOSSIP)?;
    let disk = Disk::start(files, Arc::clone(&watch.waker)).map_err(internal)?;
    peers.set_token(config.token.clone());
    let mut worker = Worker {
        audit: AuditLog::new(&config.data, config.node),
        watch,
        config,
        identity,
        keyring,
        certificates,
        failures: Failures::default(),
        listener,
        has_queue: false,
        peers,
        gossip,
        disk,
        node,
        links: BTreeMap::new(),
        next_connection: FIRST_CONNECTION,
        strangers: VecDeque::new(),
        leaving: VecDeque::new(),
        unread: VecDeque::new(),
        paused: BTreeSet::new(),
        scratch: vec![0; SCRATCH_BYTES],
        clock,
        drain_until: None,
        disk_lost: false,
        fatal: None,
        shared,
        next_report: Instant(0),
        timings: Timings::default(),
        was_ready: false,
        problems: Vec::new(),
    };
    tracing::info!(
        client = %config.client,
        peer = %config.peer,
        admin = %config.admin,
        node = config.node.0,
        boot = identity.boot,
        "listening"
    );
    worker.run()
}

impl Owner for Node {
    fn hello(&self) -> PeerHello {
        Self::hello(self)
    }

    fn admits(&self, now: Now, hello: &PeerHello) -> Result<(), (Code, String)> {
        Self::admits(self, now, hello)
    }

    fn turned_away(&mut self, now: Now, source: Option<Source>, node: Option<NodeId>, code: Code) {
        self.handle(now, Input::PeerRefused { source, node, code });
    }

    fn hear(&mut self, now: Now, event: PeerEvent) {
        let input = match event {
            PeerEvent::Up(hello) => Input::PeerUp { hello },
            PeerEvent::Down { node, gone } => Input::PeerDown { node, gone },
            PeerEvent::Packet { from, packet } => Input::Packet { from, packet },
        };
        self.handle(now, input);
    }
}

struct Worker<'a> {
    watch: &'a mut Watch,
    config: &'a NodeConfig,
    identity: Identity,
    keyring: &'a mut KeyringFile,
    certificates: &'a mut Certificates,
    /// Sessions at the client port that did not come about.
    failures: Failures,
    /// Gone when draining: whoever tries then is refused at once and goes elsewhere. Never there without the role.
    listener: Option<Listener>,
    /// There may be connections that were not taken for want of a turn.
    has_queue: bool,
    /// Up until the node has drained: others take over what it leads.
    peers: Peers,
    gossip: Gossip,
    disk: Disk,
    node: Node,
    links: BTreeMap<usize, Link<Stream<TcpStream>>>,
    next_connection: usize,
    /// Connections that have not authenticated, oldest first.
    strangers: VecDeque<(Instant, usize)>,
    /// Connections that are closing and have not taken their last bytes, oldest first.
    leaving: VecDeque<(Instant, usize)>,
    /// Links with bytes left to read, for want of budget.
    unread: VecDeque<usize>,
    /// Connections that are not read before then, because of quotas. Each stands here once.
    paused: BTreeSet<(Instant, usize)>,
    audit: AuditLog,
    scratch: Vec<u8>,
    clock: Clock,
    drain_until: Option<Instant>,
    disk_lost: bool,
    fatal: Option<StartError>,
    shared: &'a Shared,
    next_report: Instant,
    timings: Timings,
    was_ready: bool,
    /// As of the latest report.
    problems: Vec<String>,
}

impl Worker<'_> {
    fn run(&mut self) -> Result<Ended, StartError> {
        let mut events = Events::with_capacity(1024);
        let mut drained = self.step(self.clock.now());
        while !self.is_done(drained) {
            let timeout = self.timeout(self.clock.now());
            self.watch.wait(&mut events, timeout)?;
            let now = self.clock.now();
            // Room for what comes: the disk's news first, then those who waited, then those who just came.
            self.hear_disk(now);
            self.begin_drain(now);
            let mut budget = BURST_BYTES_MAX;
            self.end_pauses(now);
            for _ in 0..self.unread.len() {
                let Some(connection) = self.unread.pop_front() else { break };
                if let Some(link) = self.links.get_mut(&connection) {
                    link.unread = false;
                    self.read(now, connection, &mut budget);
                }
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.has_queue = true,
                    NEWS => {}
                    GOSSIP => self.gossip.wake(),
                    Token(token) if token >= peers::FIRST_TOKEN => {
                        self.peers.serve(now, event, &mut budget, &mut self.node);
                    }
                    Token(connection) => self.serve(now, connection, event, &mut budget),
                }
            }
            self.gossip.receive(|bytes| self.node.handle(now, Input::Datagram { bytes }));
            let is_due =
                self.listener.as_ref().and_then(Listener::retry_at).is_some_and(|at| at <= now.monotonic);
            if is_due || self.has_queue {
                self.accept(now);
            }
            self.send_away(now);
            self.look_at_files(now);
            self.peers.turn(now, &mut budget, &mut self.node);
            drained = self.step(now);
            self.report(now);
            if self.disk_lost && self.drain_until.is_none() {
                return Ok(Ended::DiskLost { others: self.peers.linked_addresses() });
            }
            if let Some(error) = self.fatal.take().or_else(|| self.peers.take_fatal()) {
                return Err(error);
            }
        }
        tracing::info!(drained, "stopped");
        Ok(Ended::Drained)
    }

    fn is_done(&self, drained: bool) -> bool {
        let Some(until) = self.drain_until else { return false };
        let quiet = drained && self.peers.is_quiet() && self.links.values().all(|link| !link.blocked);
        quiet || self.clock.now().monotonic >= until
    }

    fn timeout(&self, now: Now) -> Duration {
        if !self.unread.is_empty() || self.gossip.has_more() || self.has_queue {
            return Duration::ZERO;
        }
        let wake = [
            self.node.next_wake(),
            self.peers.next_at(now),
            Some(self.next_report),
            self.strangers.front().map(|(at, _)| *at),
            self.paused.first().map(|(at, _)| *at),
            self.certificates.next_at(),
            Some(self.keyring.next_at()),
            self.leaving.front().map(|(at, _)| *at),
            self.listener.as_ref().and_then(Listener::retry_at),
            self.drain_until,
        ];
        wake.into_iter().flatten().min().map_or(REPORT_PAUSE, |at| at.since(now.monotonic))
    }

    fn begin_drain(&mut self, now: Now) {
        if !self.watch.shutdown.is_asked() || self.drain_until.is_some() {
            return;
        }
        self.drain_until = Some(now.monotonic + DRAIN_TIME_MAX);
        self.listener = None;
        self.node.handle(now, Input::Drain);
        self.next_report = now.monotonic;
    }

    fn accept(&mut self, now: Now) {
        self.has_queue = true;
        for _ in 0..STRANGERS_PER_TURN {
            let Some(mut stream) = self.listener.as_mut().and_then(|door| door.accept(now.monotonic)) else {
                self.has_queue = false;
                return;
            };
            if self.links.len() >= CONNECTIONS_MAX {
                self.timings.connections_shed += 1;
                continue;
            }
            let connection = self.next_connection;
            self.next_connection += 1;
            let ready = stream.set_nodelay(true).and_then(|()| {
                self.watch.poll.registry().register(&mut stream, Token(connection), Interest::READABLE)
            });
            if let Err(error) = ready {
                tracing::warn!(%error, "a connection could not be set up");
                continue;
            }
            let source = source_of(&stream).unwrap_or_default();
            match self.certificates.security().accept_client(stream) {
                Ok(stream) => self.links.insert(connection, Link::new(stream)),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be set up");
                    continue;
                }
            };
            self.strangers.push_back((now.monotonic + UNAUTHENTICATED_TIME_MAX, connection));
            let id = ConnectionId(connection as u64);
            self.node.handle(now, Input::Connected { connection: id, nonce: clock::random(), source });
        }
    }

    fn serve(&mut self, now: Now, connection: usize, event: &Event, budget: &mut usize) {
        if event.is_writable() {
            self.write(now, connection);
        }
        let Some(link) = self.links.get_mut(&connection) else { return };
        link.ended |= event.is_read_closed() || event.is_error();
        if event.is_readable() || link.ended {
            self.read(now, connection, budget);
        }
    }

    fn read(&mut self, now: Now, connection: usize, budget: &mut usize) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        if link.closing {
            // Nothing is taken any more; a peer that is gone need not be waited for.
            if link.ended {
                self.close(now, connection);
            }
            return;
        }
        // What came before a pause goes before anything else is read.
        if link.paused || !self.take_frames(now, connection) {
            return;
        }
        let Some(link) = self.links.get_mut(&connection) else { return };
        let (state, taken) = if *budget > 0 { link.read(&mut self.scratch) } else { (ReadState::More, 0) };
        *budget = budget.saturating_sub(taken);
        if !self.take_frames(now, connection) {
            return;
        }
        let Some(link) = self.links.get_mut(&connection) else { return };
        match state {
            ReadState::Drained => {}
            ReadState::More if link.unread => {}
            ReadState::More => {
                link.unread = true;
                self.unread.push_back(connection);
            }
            ReadState::Closed => {
                if let Some(failure) = link.stream.failure() {
                    let from = link.stream.socket().peer_addr().ok();
                    self.failures.count(now.monotonic, "client", from, failure);
                }
                return self.close(now, connection);
            }
        }
        // Reading brought the session on: it has words of its own, or takes what waited for it.
        if link.stream.has_unsent() || link.blocked {
            self.write(now, connection);
        }
    }

    /// New connections use the certificate that is in its files now, and everybody the keys of the keyring.
    fn look_at_files(&mut self, now: Now) {
        let is_asked = self.watch.shutdown.take_reload();
        if let Some(NodeKeyring { access_token, admission_key, peer_secret }) =
            self.keyring.look(now.monotonic, is_asked).cloned()
        {
            let cluster_secret = peer_secret.unwrap_or_else(|| MacKey::new(clock::random()).into());
            self.peers.set_secret(cluster_secret.clone());
            self.node.handle(now, Input::Keys { access_token, admission_key, cluster_secret });
        }
        if let Some(security) = self.certificates.look(now.monotonic, is_asked) {
            self.peers.set_security(security);
            // The warning may be over.
            self.next_report = now.monotonic;
        }
    }

    /// Hands the node every whole frame that was read. False: nothing more is to be read now.
    fn take_frames(&mut self, now: Now, connection: usize) -> bool {
        let Some(link) = self.links.get_mut(&connection) else { return false };
        let id = ConnectionId(connection as u64);
        loop {
            // What has come stays where it is, and the socket fills: that slows whoever sends.
            if let Some(until) = self.node.paused_until(now.monotonic, id) {
                link.paused = true;
                self.paused.insert((until, connection));
                return false;
            }
            match link.next_frame() {
                Ok(Some((header, body))) => {
                    if !link.is_authenticated()
                        && let Some(Name::Client(name)) = link.stream.peer()
                    {
                        let name = name.to_string();
                        self.node.handle(now, Input::Certified { connection: id, name });
                    }
                    self.node.handle(now, Input::Frame { connection: id, header, body });
                    if !link.is_authenticated() && self.node.is_authenticated(id) {
                        link.set_authenticated();
                        link.stream.trust();
                    }
                }
                Ok(None) => return true,
                Err(error) => {
                    link.begin_closing();
                    self.node.handle(now, Input::Malformed { connection: id, error });
                    return false;
                }
            }
        }
    }

    /// Whoever has waited long enough is read again.
    fn end_pauses(&mut self, now: Now) {
        while let Some((until, connection)) = self.paused.first().copied()
            && until <= now.monotonic
        {
            self.paused.pop_first();
            let Some(link) = self.links.get_mut(&connection) else { continue };
            link.paused = false;
            if !std::mem::replace(&mut link.unread, true) {
                self.unread.push_back(connection);
            }
        }
    }

    fn close(&mut self, now: Now, connection: usize) {
        let Some(mut link) = self.links.remove(&connection) else { return };
        link.stream.close();
        if let Err(error) = self.watch.poll.registry().deregister(link.stream.socket_mut()) {
            tracing::debug!(%error, "a closed connection was not registered");
        }
        self.node.handle(now, Input::Disconnected { connection: ConnectionId(connection as u64) });
    }

    fn hear_disk(&mut self, now: Now) {
        while let Some(event) = self.disk.next_event() {
            let input = match event {
                DiskEvent::Synced { batch, took } => {
                    self.timings.synced(took);
                    self.synced(batch)
                }
                DiskEvent::Failed(what) => {
                    tracing::error!(what, "the log stopped: nothing is acknowledged any more");
                    self.next_report = now.monotonic;
                    Input::DiskFailed { what }
                }
                DiskEvent::Read { ticket, result } => Input::Read { ticket, result },
                DiskEvent::Space { free_bytes } => Input::DiskSpace { free_bytes },
            };
            self.node.handle(now, input);
        }
    }

    /// From the first batch on, an empty log is a lost one. That is on the disk before anybody hears of the batch.
    fn synced(&mut self, batch: u64) -> Input {
        if !self.identity.begun
            && let Err(error) = self.identity.set_begun(&self.config.data)
        {
            tracing::error!(%error, "the log stopped: nothing is acknowledged any more");
            self.next_report = Instant(0);
            return Input::DiskFailed { what: error.to_string() };
        }
        Input::Synced { batch }
    }

    /// Whoever has not authenticated in time, or does not take its last bytes, is closed without a word.
    fn send_away(&mut self, now: Now) {
        // Whoever authenticated in time is only forgotten.
        let mut turns = STRANGERS_PER_TURN;
        while let Some((at, connection)) = self.strangers.front().copied()
            && at <= now.monotonic
            && turns > 0
        {
            self.strangers.pop_front();
            if self.links.get(&connection).is_some_and(|link| !link.is_authenticated()) {
                turns -= 1;
                self.close(now, connection);
            }
        }
        while let Some((at, connection)) = self.leaving.front().copied()
            && at <= now.monotonic
        {
            self.leaving.pop_front();
            self.close(now, connection);
        }
    }

    /// Lets the node decide and carries out what it wants. Returns whether it has drained.
    fn step(&mut self, now: Now) -> bool {
        loop {
            let mut effects = Effects::default();
            self.node.flush(now, &mut effects);
            let links = (self.links.len(), self.peers.lost());
            let drained = self.carry_out(now, effects);
            // A connection that broke while it was written gives its leases back: the node decides on that at once.
            // Each round has one connection less.
            if (self.links.len(), self.peers.lost()) == links {
                return drained;
            }
        }
    }

    fn carry_out(&mut self, now: Now, effects: Effects) -> bool {
        if let Some(append) = effects.append {
            self.disk.append(append);
        }
        effects.reads.into_iter().for_each(|request| self.disk.read(request));
        effects.release.into_iter().for_each(|segment| self.disk.release(segment));
        for (id, bytes) in effects.sends {
            let connection = id.0 as usize;
            let Some(link) = self.links.get_mut(&connection) else { continue };
            if !link.queue(bytes) {
                tracing::warn!(connection, "a client takes nothing and its output is full: closed");
                self.close(now, connection);
            } else if !link.blocked {
                self.write(now, connection);
            }
        }
        for (node, packet) in effects.packets {
            self.peers.send(now, node, packet, &mut self.node);
        }
        self.peers.flush(now, &mut self.node);
        effects.datagrams.iter().for_each(|(node, bytes)| self.gossip.send(*node, bytes));
        if let Some(members) = effects.peers {
            self.meet(now, &members);
        }
        for node in effects.unwanted {
            self.peers.let_go(now, node, &mut self.node);
        }
        self.audit.write(&effects.audit);
        self.disk_lost |= effects.lost_disk;
        for id in effects.closes {
            let connection = id.0 as usize;
            let Some(link) = self.links.get_mut(&connection) else { continue };
            link.begin_closing();
            if link.blocked && !link.ended {
                self.leaving.push_back((now.monotonic + LEAVE_TIME_MAX, connection));
            } else {
                self.close(now, connection);
            }
        }
        effects.drained
    }

    /// These are the members, this node among them or not.
    fn meet(&mut self, now: Now, members: &[Neighbour]) {
        let others = members.iter().filter(|member| member.node != self.config.node);
        let others: Vec<SocketAddr> = others.filter_map(|member| member.peer.parse().ok()).collect();
        if self.keyring.keys().peer_secret.is_none() && !others.is_empty() {
            self.fatal = Some(NodeKeyring::no_peer_secret(&self.config.keyring));
        }
        if let Err(error) = acquaintances::save(&self.config.data, &others) {
            tracing::warn!(%error, "who the other members are is not remembered");
        }
        self.gossip.set_members(members);
        let members: Vec<(NodeId, String)> =
            members.iter().map(|member| (member.node, member.peer.clone())).collect();
        self.peers.set_members(now, &members, &mut self.node);
    }

    fn write(&mut self, now: Now, connection: usize) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        let was_blocked = link.blocked;
        match link.write() {
            Ok(done) => {
                if link.blocked != was_blocked {
                    let interest = if link.blocked {
                        Interest::READABLE | Interest::WRITABLE
                    } else {
                        Interest::READABLE
                    };
                    let registry = self.watch.poll.registry();
                    if let Err(error) =
                        registry.reregister(link.stream.socket_mut(), Token(connection), interest)
                    {
                        tracing::warn!(%error, "a connection cannot be watched");
                    }
                }
                if done && link.closing {
                    self.close(now, connection);
                }
            }
            Err(error) => {
                tracing::debug!(connection, %error, "a connection broke");
                self.close(now, connection);
            }
        }
    }

    /// Once a second, and as soon as readiness may have changed. A report is not free, so a node that was ready is only
    /// asked out of turn after what makes it unready: a failed disk, a drain.
    fn report(&mut self, now: Now) {
        if now.monotonic < self.next_report {
            return;
        }
        let warning = self.certificates.warning(now.wall);
        self.node.handle(now, Input::Certificate { warning });
        let report = self.node.report();
        if report.ready != self.was_ready {
            tracing::info!(ready = report.ready, reason = report.reason, "readiness changed");
        }
        self.was_ready = report.ready;
        for problem in report.problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::error!(problem, "something is wrong");
        }
        for problem in self.problems.iter().filter(|problem| !report.problems.contains(problem)) {
            tracing::info!(problem, "this is over");
        }
        self.problems.clone_from(&report.problems);
        let unsettled = !report.ready && self.drain_until.is_none();
        self.next_report = now.monotonic + if unsettled { READY_PAUSE } else { REPORT_PAUSE };
        self.timings.datagrams_lost = self.gossip.lost();
        self.timings.certificates = self.certificates.numbers();
        self.timings.keyring = (self.keyring.keys().counts(), self.keyring.looks());
        self.timings.tls_failures = self.failures.counts();
        self.timings.tls_failures.extend(self.peers.failures());
        self.shared.publish(&report, &self.timings);
    }
}
