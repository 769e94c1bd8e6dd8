//! Takes connections of clients and of nodes, as many as the process may hold open.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mio::{
    Interest, Registry, Token,
    net::{TcpListener, TcpStream},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use swarmmq_protocol::{session::guard::Source, time::Instant};

use crate::{
    StartError,
    clock::{SUCCESSION_TIME_MAX, patiently},
    http::{is_in_use, port_error},
};

/// Connections at a time.
pub(crate) const CONNECTIONS_MAX: usize = 12_000;
/// Descriptors for all else: segments, spares, sockets of our own.
const OTHER_FILES: u64 = 1_000;
/// Pause after the process ran out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// A port that is listened on.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: TcpListener,
    /// Accepting failed; the kernel will not remind us of who waits.
    retry_at: Option<Instant>,
}

impl Listener {
    /// Begins to listen on the port `listen.{what}`.
    pub(crate) fn bind(
        what: &str,
        address: SocketAddr,
        registry: &Registry,
        token: Token,
    ) -> Result<Self, StartError> {
        let failed = |error: io::Error| port_error(what, address, &error);
        let mut listener =
            patiently(SUCCESSION_TIME_MAX, is_in_use, || TcpListener::bind(address)).map_err(failed)?;
        registry.register(&mut listener, token, Interest::READABLE).map_err(failed)?;
        Ok(Self { listener, retry_at: None })
    }

    /// The next connection that waits, if there is one.
    pub(crate) fn accept(&mut self, now: Instant) -> Option<TcpStream> {
        self.retry_at = None;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // The peer gave up before its turn, or a signal came.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    tracing::warn!(%error, "accepting failed; connections that exist go on");
                    self.retry_at = Some(now + PAUSE);
                    return None;
                }
            }
        }
    }

    /// When accepting is worth another try, although nothing new came.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}

/// Where a connection comes from. `None`: it is gone already.
pub(crate) fn source_of(stream: &TcpStream) -> Option<Source> {
    Some(match stream.peer_addr().ok()?.ip() {
        IpAddr::V4(address) => Source::v4(address.octets()),
        IpAddr::V6(address) => Source(address.octets()),
    })
}

/// Lets the process open as many files as it may.
pub(crate) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wish = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wish) {
        tracing::warn!(%error, "the limit of open files stays where it is");
    }
    let enough = CONNECTIONS_MAX as u64 + OTHER_FILES;
    if let Some(files) = getrlimit(Resource::Nofile).current.filter(|files| *files < enough) {
        tracing::warn!(files, enough, "fewer open files are allowed than a full house of clients needs");
    }
}
