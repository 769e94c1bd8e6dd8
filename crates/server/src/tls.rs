//! How this node's connections are protected: its certificate, read at the start and again whenever its files change.
//!
//! Only connections that are made afterwards see a new certificate. A file that cannot be used changes nothing: what was
//! there goes on, and metrics and log say so.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mio::net::TcpStream;
use swarmmq_protocol::{
    id::NodeId,
    time::{Instant, WallTime},
};
use swarmmq_tls::{Acceptor, CertificateError, Dialler, Identity, Name, Stream, TlsError};

use crate::{StartError, bootstrap::NodeConfig};

/// Pause between looks at the files.
const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// Time before its end from which on a certificate is warned of.
const WARN_BEFORE_SECONDS: u64 = 14 * 86_400;
/// Pause between lines about failures of one kind.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Where the three files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
}

impl TlsFiles {
    /// What the files are like now; equal until one of them changes.
    fn marks(&self) -> Marks {
        [&self.certificate, &self.key, &self.ca].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }

    fn load(&self, node: NodeId) -> Result<Identity, CertificateError> {
        let identity = Identity::load(&self.certificate, &self.key, &self.ca)?;
        if *identity.name() == Name::Node(node) { Ok(identity) } else { Err(CertificateError::NoName) }
    }
}

type Marks = [Option<(SystemTime, u64)>; 3];

/// What new connections are protected with.
#[derive(Clone, Debug)]
pub(crate) enum Security {
    /// Nothing: on loopback, and asked for by name.
    Plain,
    /// TLS 1.3.
    Tls(Arc<Ports>),
}

/// Both ports, and the way out.
#[derive(Debug)]
pub(crate) struct Ports {
    clients: Acceptor,
    peers: Acceptor,
    dialler: Dialler,
}

impl Security {
    /// What this identity shows and believes.
    pub(crate) fn of(identity: &Identity) -> Result<Self, CertificateError> {
        let ports =
            Ports { clients: identity.clients()?, peers: identity.peers()?, dialler: identity.dialler()? };
        Ok(Self::Tls(Arc::new(ports)))
    }

    /// Around a connection of a client.
    pub(crate) fn accept_client(&self, socket: TcpStream) -> io::Result<Stream<TcpStream>> {
        match self {
            Self::Plain => Ok(Stream::plain(socket)),
            Self::Tls(ports) => Ok(ports.clients.accept(socket)?),
        }
    }

    /// Around a connection of another node.
    pub(crate) fn accept_peer(&self, socket: TcpStream) -> io::Result<Stream<TcpStream>> {
        match self {
            Self::Plain => Ok(Stream::plain(socket)),
            Self::Tls(ports) => Ok(ports.peers.accept(socket)?),
        }
    }

    /// Around a connection to another node.
    pub(crate) fn dial(&self, socket: TcpStream, address: SocketAddr) -> io::Result<Stream<TcpStream>> {
        match self {
            Self::Plain => Ok(Stream::plain(socket)),
            Self::Tls(ports) => Ok(ports.dialler.dial(socket, address.ip())?),
        }
    }
}

/// Whether the certificate that the other end has shown is the one of the node that it says it is.
pub(crate) fn is_certified(stream: &Stream<TcpStream>, node: NodeId) -> Result<(), String> {
    if !stream.is_encrypted() {
        return Ok(());
    }
    match stream.peer() {
        Some(Name::Node(certified)) if *certified == node => Ok(()),
        Some(name) => Err(format!("the certificate is for {name}, the hello says node {}", node.0)),
        None => Err(format!("there is no certificate, and the hello says node {}", node.0)),
    }
}

/// This node's certificate, as it is now and as it was read.
#[derive(Debug)]
pub(crate) struct Certificates {
    node: NodeId,
    files: Option<TlsFiles>,
    security: Security,
    not_after: Option<u64>,
    marks: Marks,
    next_look: Instant,
    failures: u64,
    reloads: u64,
}

impl Certificates {
    /// Reads them. A node that cannot prove who it is does not start.
    pub(crate) fn load(config: &NodeConfig) -> Result<Self, StartError> {
        let mut certificates = Self {
            node: config.node,
            files: config.tls.clone(),
            security: Security::Plain,
            not_after: None,
            marks: [None; 3],
            next_look: Instant(0),
            failures: 0,
            reloads: 0,
        };
        let Some(files) = &config.tls else { return Ok(certificates) };
        certificates.marks = files.marks();
        let failed = |error: CertificateError| StartError::config(format!("[tls]: {error}"), error.hint());
        let identity = Identity::load(&files.certificate, &files.key, &files.ca).map_err(failed)?;
        if *identity.name() != Name::Node(config.node) {
            return Err(StartError::config(
                format!(
                    "{} is the certificate of {}, node.id is {}",
                    files.certificate.display(),
                    identity.name(),
                    config.node.0
                ),
                "give every node its own: `swarmmq certs issue --ca DIR --node N --hosts ...`",
            ));
        }
        for address in [config.client, config.peer] {
            if !identity.is_at(address.ip()) {
                tracing::warn!(
                    %address,
                    certificate = %files.certificate.display(),
                    "the certificate does not name this address: clients that dial it will not believe this node"
                );
            }
        }
        certificates.not_after = Some(identity.facts().not_after);
        certificates.security = Security::of(&identity).map_err(failed)?;
        Ok(certificates)
    }

    /// What new connections are protected with.
    pub(crate) fn security(&self) -> Security {
        self.security.clone()
    }

    /// Looks whether the files have changed, every few seconds or because somebody asked. `Some`: from now on this.
    pub(crate) fn look(&mut self, now: Instant, is_asked: bool) -> Option<Security> {
        let files = self.files.as_ref()?;
        if now < self.next_look && !is_asked {
            return None;
        }
        self.next_look = now + LOOK_PAUSE;
        let marks = files.marks();
        if marks == self.marks && !is_asked {
            return None;
        }
        self.marks = marks;
        let loaded = files.load(self.node).and_then(|identity| {
            let security = Security::of(&identity)?;
            Ok((security, identity.facts().not_after))
        });
        match loaded {
            Ok((security, not_after)) => {
                tracing::info!(not_after, "new connections use the certificate that was read again");
                self.reloads += 1;
                self.not_after = Some(not_after);
                self.security = security.clone();
                Some(security)
            }
            Err(error) => {
                let error = if error == CertificateError::NoName {
                    format!("{} is not node {}'s", files.certificate.display(), self.node.0)
                } else {
                    error.to_string()
                };
                tracing::error!(error, "the certificate that was there is used on: what was read cannot be");
                self.failures += 1;
                None
            }
        }
    }

    /// When [`Certificates::look`] has something to do; never without files.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.files.as_ref().map(|_| self.next_look)
    }

    /// What is to be said about the end of the certificate, if it is near.
    pub(crate) fn warning(&self, now: WallTime) -> Option<String> {
        let (left, what) = (self.not_after?.checked_sub(now.0 / 1000), "this node's certificate");
        match left {
            None => Some(format!("{what} has expired: new connections with it are refused")),
            Some(left) if left < WARN_BEFORE_SECONDS => {
                Some(format!("{what} expires in {} days", left / 86_400))
            }
            Some(_) => None,
        }
    }

    /// Numbers for `/metrics`.
    pub(crate) fn numbers(&self) -> Numbers {
        Numbers { not_after: self.not_after, reloads: self.reloads, failures: self.failures }
    }
}

/// What metrics say of certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// Seconds since 1970; nothing without TLS.
    pub(crate) not_after: Option<u64>,
    pub(crate) reloads: u64,
    pub(crate) failures: u64,
}

/// Sessions that did not come about: counted by port and kind, and said at most once a minute for each.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    counts: BTreeMap<(&'static str, &'static str), u64>,
    quiet_until: BTreeMap<(&'static str, &'static str), Instant>,
}

impl Failures {
    /// One more.
    pub(crate) fn count(
        &mut self,
        now: Instant,
        port: &'static str,
        from: Option<SocketAddr>,
        failure: &TlsError,
    ) {
        let key = (port, failure.kind());
        *self.counts.entry(key).or_default() += 1;
        if self.quiet_until.get(&key).is_none_or(|until| *until <= now) {
            self.quiet_until.insert(key, now + SAY_AGAIN);
            let from = from.map_or_else(|| "?".to_owned(), |from| from.to_string());
            let total = self.counts[&key];
            tracing::warn!(port, from, why = %failure, total, hint = failure.hint(), "no TLS session");
        }
    }

    /// How often what happened where.
    pub(crate) fn counts(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.counts.clone()
    }
}
