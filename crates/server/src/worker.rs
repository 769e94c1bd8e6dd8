//! One thread with its connections and its node: whatever woke it, it takes everything at hand, lets the node decide
//! once, and sends each connection one write and the disk one batch. Nothing here blocks but the wait for events.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use mio::{Events, Interest, Poll, Token, Waker, net::TcpListener};
use swarmmq_engine::node::{ConnectionId, Effects, Input, Node, Now};
use swarmmq_protocol::{limits::UNAUTHENTICATED_TIME_MAX, time::Instant};

use crate::{
    StartError,
    bootstrap::NodeConfig,
    clock::{self, Clock},
    disk::{Disk, DiskEvent, SegmentFiles},
    http::{self, Shared},
    link::{Link, ReadState},
    telemetry::Timings,
};

const LISTENER: Token = Token(0);
const NEWS: Token = Token(1);
const FIRST_CONNECTION: usize = 2;
/// Connections at a time.
const CONNECTIONS_MAX: usize = 12_000;
/// Pause between reports.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// Time to finish what is under way after SIGTERM.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
const SCRATCH_BYTES: usize = 256 << 10;

/// Runs `node` until it has drained.
pub(crate) fn run(config: &NodeConfig, node: Node, files: SegmentFiles) -> Result<(), StartError> {
    raise_file_limit();
    let shared = Shared::default();
    let admin = http::serve(config.admin, shared.clone())?;
    let listener = TcpListener::bind(config.client)
        .map_err(|error| http::port_error("client", config.client, &error))?;
    let internal = |error: io::Error| {
        StartError::local(format!("cannot start: {error}"), "check the limits of the process")
    };
    let poll = Poll::new().map_err(internal)?;
    let waker = Arc::new(Waker::new(poll.registry(), NEWS).map_err(internal)?);
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(&stop, &waker).map_err(internal)?;
    let disk = Disk::start(files, waker).map_err(internal)?;
    let clock = Clock::start();
    let now = clock.now();
    let mut worker = Worker {
        poll,
        listener,
        disk,
        node,
        links: BTreeMap::new(),
        next_connection: FIRST_CONNECTION,
        strangers: VecDeque::new(),
        unread: Vec::new(),
        scratch: vec![0; SCRATCH_BYTES],
        clock,
        stop,
        drain_until: None,
        shared,
        next_report: Instant(0),
        timings: Timings::default(),
        was_ready: false,
    };
    let listener = &mut worker.listener;
    worker.poll.registry().register(listener, LISTENER, Interest::READABLE).map_err(internal)?;
    tracing::info!(client = %config.client, admin = %config.admin, node = config.node.0, "listening");
    worker.step(now);
    let result = worker.run();
    drop(worker);
    admin.stop();
    result
}

fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit of open files stays where it is");
    }
}

/// SIGTERM and SIGINT mean: drain.
fn watch_signals(stop: &Arc<AtomicBool>, waker: &Arc<Waker>) -> io::Result<()> {
    let mut signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])?;
    let (stop, waker) = (Arc::clone(stop), Arc::clone(waker));
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            tracing::info!(signal, "asked to stop");
            stop.store(true, Ordering::SeqCst);
            if let Err(error) = waker.wake() {
                tracing::error!(%error, "the worker cannot be woken");
            }
        }
    })?;
    Ok(())
}

struct Worker {
    poll: Poll,
    listener: TcpListener,
    disk: Disk,
    node: Node,
    links: BTreeMap<usize, Link>,
    next_connection: usize,
    /// Connections that have not authenticated, oldest first.
    strangers: VecDeque<(Instant, usize)>,
    /// Links whose reading was cut short by the budget.
    unread: Vec<(usize, bool)>,
    scratch: Vec<u8>,
    clock: Clock,
    stop: Arc<AtomicBool>,
    drain_until: Option<Instant>,
    shared: Shared,
    next_report: Instant,
    timings: Timings,
    was_ready: bool,
}

impl Worker {
    fn run(&mut self) -> Result<(), StartError> {
        let mut events = Events::with_capacity(1024);
        loop {
            let now = self.clock.now();
            if let Err(error) = self.poll.poll(&mut events, Some(self.timeout(now)))
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(StartError::local(
                    format!("waiting for events failed: {error}"),
                    "restart the node",
                ));
            }
            let now = self.clock.now();
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(now),
                    NEWS => {}
                    Token(connection) => {
                        if event.is_writable() {
                            self.write(connection);
                        }
                        let ended = event.is_read_closed() || event.is_error();
                        if event.is_readable() || ended {
                            self.read(now, connection, ended);
                        }
                    }
                }
            }
            for (connection, ended) in std::mem::take(&mut self.unread) {
                self.read(now, connection, ended);
            }
            self.hear_disk(now);
            if self.stop.load(Ordering::SeqCst) && self.drain_until.is_none() {
                self.drain_until = Some(now.monotonic + DRAIN_TIME_MAX);
                self.node.handle(now, Input::Drain);
            }
            self.send_strangers_away(now);
            let drained = self.step(now);
            self.report(now);
            let late = self.drain_until.is_some_and(|until| now.monotonic >= until);
            if self.drain_until.is_some()
                && (drained && self.links.values().all(|link| !link.blocked) || late)
            {
                tracing::info!(drained, "stopped");
                return Ok(());
            }
        }
    }

    fn timeout(&self, now: Now) -> Duration {
        if !self.unread.is_empty() {
            return Duration::ZERO;
        }
        let stranger = self.strangers.front().map(|(at, _)| *at);
        let wake = [self.node.next_wake(), Some(self.next_report), stranger, self.drain_until];
        wake.into_iter().flatten().min().map_or(REPORT_PAUSE, |at| {
            // The kernel counts in milliseconds: a little late is cheaper than spinning.
            at.since(now.monotonic)
        })
    }

    fn accept(&mut self, now: Now) {
        loop {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    if self.links.len() >= CONNECTIONS_MAX {
                        self.timings.connections_shed += 1;
                        continue;
                    }
                    let connection = self.next_connection;
                    self.next_connection += 1;
                    let ready = stream.set_nodelay(true).and_then(|()| {
                        self.poll.registry().register(&mut stream, Token(connection), Interest::READABLE)
                    });
                    if let Err(error) = ready {
                        tracing::warn!(%error, "a connection could not be set up");
                        continue;
                    }
                    self.links.insert(connection, Link::new(stream));
                    self.strangers.push_back((now.monotonic + UNAUTHENTICATED_TIME_MAX, connection));
                    let id = ConnectionId(connection as u64);
                    self.node.handle(now, Input::Connected { connection: id, nonce: clock::random() });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors, or a peer that gave up: existing connections go on.
                    tracing::warn!(%error, "accepting failed");
                    return;
                }
            }
        }
    }

    /// `ended`: the peer will send no more, so reading goes on to the end of what came.
    fn read(&mut self, now: Now, connection: usize, ended: bool) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        if link.closing {
            return;
        }
        let id = ConnectionId(connection as u64);
        let state = link.read(&mut self.scratch, ended);
        loop {
            let Some(link) = self.links.get_mut(&connection) else { return };
            match link.next_frame() {
                Ok(Some((header, body))) => {
                    self.node.handle(now, Input::Frame { connection: id, header, body });
                    if self.node.is_authenticated(id) {
                        link.set_authenticated();
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    link.closing = true;
                    self.node.handle(now, Input::Malformed { connection: id, error });
                    return;
                }
            }
        }
        match state {
            ReadState::Drained => {}
            ReadState::More => self.unread.push((connection, ended)),
            ReadState::Closed => self.close(now, connection),
        }
    }

    fn close(&mut self, now: Now, connection: usize) {
        let Some(mut link) = self.links.remove(&connection) else { return };
        if let Err(error) = self.poll.registry().deregister(&mut link.stream) {
            tracing::debug!(%error, "a closed connection was not registered");
        }
        self.node.handle(now, Input::Disconnected { connection: ConnectionId(connection as u64) });
    }

    fn hear_disk(&mut self, now: Now) {
        while let Some(event) = self.disk.next_event() {
            let input = match event {
                DiskEvent::Synced { batch, took } => {
                    self.timings.synced(took);
                    Input::Synced { batch }
                }
                DiskEvent::Failed(what) => {
                    tracing::error!(what, "the log stopped: nothing is acknowledged any more");
                    Input::DiskFailed { what }
                }
                DiskEvent::Read { ticket, result } => Input::Read { ticket, result },
                DiskEvent::Space { free_bytes } => Input::DiskSpace { free_bytes },
            };
            self.node.handle(now, input);
        }
    }

    /// Whoever has not authenticated in time is closed without a word.
    fn send_strangers_away(&mut self, now: Now) {
        while let Some((at, connection)) = self.strangers.front().copied()
            && at <= now.monotonic
        {
            self.strangers.pop_front();
            if !self.node.is_authenticated(ConnectionId(connection as u64)) {
                self.close(now, connection);
            }
        }
    }

    /// Lets the node decide and carries out what it wants. Returns whether it has drained.
    fn step(&mut self, now: Now) -> bool {
        let mut effects = Effects::default();
        self.node.flush(now, &mut effects);
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
                continue;
            }
            if !link.blocked {
                self.write(connection);
            }
        }
        for id in effects.closes {
            let connection = id.0 as usize;
            if let Some(link) = self.links.get_mut(&connection) {
                link.closing = true;
                if !link.blocked {
                    self.close(now, connection);
                }
            }
        }
        effects.drained
    }

    fn write(&mut self, connection: usize) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        let was_blocked = link.blocked;
        let result = link.write();
        let blocked = link.blocked;
        let closing = link.closing;
        match result {
            Ok(done) => {
                if blocked != was_blocked {
                    let interest =
                        if blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
                    if let Err(error) =
                        self.poll.registry().reregister(&mut link.stream, Token(connection), interest)
                    {
                        tracing::warn!(%error, "a connection cannot be watched");
                    }
                }
                if done && closing {
                    self.close(self.clock.now(), connection);
                }
            }
            Err(_) => self.close(self.clock.now(), connection),
        }
    }

    fn report(&mut self, now: Now) {
        let due = now.monotonic >= self.next_report;
        if !due && self.was_ready {
            return;
        }
        let report = self.node.report();
        if !due && report.ready == self.was_ready {
            return;
        }
        self.was_ready = report.ready;
        self.next_report = now.monotonic + REPORT_PAUSE;
        self.shared.publish(&report, &self.timings);
    }
}
