//! How links and attempts end, and what follows from it: another attempt, the word that a process is gone, or the end of
//! this node.

use std::{io, net::SocketAddr, time::Duration};

use swarmmq_engine::node::Now;
use swarmmq_protocol::{
    error::Code,
    id::NodeId,
    session::peer::{PeerError, PeerHello},
    time::Instant,
};
use swarmmq_tls::TlsError;

use super::{Origin, Owner, PeerEvent, Peers, roster::Target};
use crate::{StartError, clock};

/// Time to find out whether the process behind a broken link is gone.
const INQUEST_TIME_MAX: Duration = Duration::from_millis(100);
/// Pause between such questions about one node.
const INQUEST_PAUSE: Duration = Duration::from_secs(1);
/// Attempts in that time: a port that is just being closed may still take a connection, and reset it.
const INQUEST_DIALS_MAX: u8 = 3;
/// A node that is told for so long, and by nobody anything else, that its number is taken or its disk removed, ends.
const CONFLICT_TIME_MAX: Duration = Duration::from_secs(3);
/// What was said before a pause of this length has nothing to do with what is said now.
const CONFLICT_MEMORY: Duration = Duration::from_secs(30);

/// A link that broke, while it is found out whether the process behind it is gone.
#[derive(Debug)]
pub(super) struct Inquest {
    pub(super) boot: u64,
    address: SocketAddr,
    pub(super) until: Instant,
    dials: u8,
}

/// Why a dial came to nothing.
#[derive(Debug)]
pub(super) enum Setback {
    Io(io::Error),
    Peer(PeerError),
    Said(String),
    /// There was no TLS session: a certificate, or none.
    Tls(TlsError),
}

impl Setback {
    fn in_words(&self) -> String {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                "the connection was closed".into()
            }
            Self::Io(error) => error.to_string(),
            Self::Peer(error) => error.to_string(),
            Self::Said(why) => why.clone(),
            Self::Tls(failure) => failure.to_string(),
        }
    }

    /// Nobody listens there.
    fn is_refused(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// The connection came about and was taken back.
    fn is_reset(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        matches!(self, Self::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof))
    }
}

impl Peers {
    /// The connection broke, was refused, or took too long.
    pub(super) fn broken(&mut self, now: Now, token: usize, error: &io::Error, owner: &mut dyn Owner) {
        let Some(entry) = self.close(token) else { return };
        match (entry.peer, entry.origin) {
            (Some(peer), _) => {
                tracing::info!(node = peer.node.0, %error, "a link with another node broke");
                self.inquire(now, &peer, now.monotonic.since(entry.since), owner);
            }
            (None, Origin::Dialled { target, address, .. }) if TlsError::of(error).is_some() => {
                let Some(failure) = TlsError::of(error) else { return };
                self.failures.count(now.monotonic, "out", Some(address), failure);
                self.dial_failed(now, target, address, &Setback::Tls(failure.clone()), owner);
            }
            (None, Origin::Dialled { target, address, .. }) => {
                let error = io::Error::new(error.kind(), error.to_string());
                self.dial_failed(now, target, address, &Setback::Io(error), owner);
            }
            (None, Origin::Accepted) => {
                if let Some(failure) = TlsError::of(error) {
                    let from = entry.link.stream.socket().peer_addr().ok();
                    self.failures.count(now.monotonic, "peer", from, failure);
                }
                tracing::debug!(%error, "a connection ended before its handshake");
            }
        }
    }

    /// Ends a link that is up, for a reason of this node's own.
    pub(super) fn give_up(&mut self, now: Now, token: usize, why: &str, owner: &mut dyn Owner) {
        let Some(entry) = self.close(token) else { return };
        match (entry.peer, entry.origin) {
            (Some(peer), _) => {
                tracing::warn!(node = peer.node.0, why, "a link with another node is closed");
                self.up.remove(&peer.node);
                self.roster.unlinked(now.monotonic, peer.node, now.monotonic.since(entry.since));
                self.down(now, peer.node, false, owner);
            }
            (None, Origin::Dialled { target, address, .. }) => {
                self.dial_failed(now, target, address, &Setback::Said(why.to_owned()), owner);
            }
            (None, Origin::Accepted) => {}
        }
    }

    /// A link broke: dials its other end at once, to find out whether the process is gone. Not over and over: a peer that
    /// breaks every link would be dialled without pause.
    fn inquire(&mut self, now: Now, peer: &PeerHello, lasted: Duration, owner: &mut dyn Owner) {
        let node = peer.node;
        self.up.remove(&node);
        self.roster.unlinked(now.monotonic, node, lasted);
        let tired = |at: &Instant| now.monotonic.since(*at) < INQUEST_PAUSE;
        let address = peer.peer.parse().ok().filter(|_| !self.inquired_at.get(&node).is_some_and(tired));
        let Some(address) = address else { return self.down(now, node, false, owner) };
        let until = now.monotonic + INQUEST_TIME_MAX;
        self.inquired_at.insert(node, now.monotonic);
        self.inquests.insert(node, Inquest { boot: peer.boot, address, until, dials: 1 });
        self.roster.begun(Target::Node(node));
        self.dial(now, Target::Node(node), address, owner);
    }

    pub(super) fn conclude(&mut self, now: Now, node: NodeId, gone: bool, owner: &mut dyn Owner) {
        if self.inquests.remove(&node).is_some() {
            self.down(now, node, gone, owner);
        }
    }

    /// The last word on a link.
    pub(super) fn down(&mut self, now: Now, node: NodeId, gone: bool, owner: &mut dyn Owner) {
        tracing::info!(node = node.0, gone, "a link with another node is down");
        self.lost += 1;
        owner.hear(now, PeerEvent::Down { node, gone });
    }

    pub(super) fn dial_failed(
        &mut self,
        now: Now,
        target: Target,
        address: SocketAddr,
        failure: &Setback,
        owner: &mut dyn Owner,
    ) {
        let why = failure.in_words();
        let is_news = self.roster.failed(now.monotonic, target, why.clone(), chance());
        match failure {
            Setback::Peer(PeerError::Refused { code, .. }) if *code == Code::Busy.number() => {}
            // Said where it is counted.
            Setback::Tls(_) => {}
            Setback::Io(_) | Setback::Said(_) => {
                if is_news {
                    tracing::info!(%address, why, "no link yet");
                }
            }
            Setback::Peer(error) => {
                if is_news {
                    tracing::error!(%address, why, "a node refuses a link, or cannot be accepted");
                }
                self.weigh(now, target, address, error);
            }
        }
        let Target::Node(node) = target else { return };
        let Some(inquest) = self.inquests.get_mut(&node) else { return };
        let again = failure.is_reset() && inquest.dials < INQUEST_DIALS_MAX && now.monotonic < inquest.until;
        if again {
            inquest.dials += 1;
            let address = inquest.address;
            self.roster.begun(target);
            self.dial(now, target, address, owner);
        } else {
            self.conclude(now, node, failure.is_refused(), owner);
        }
    }

    /// Whether what a peer said means that this node cannot go on.
    fn weigh(&mut self, now: Now, target: Target, address: SocketAddr, error: &PeerError) {
        let is_removed = matches!(error, PeerError::Refused { code, .. } if *code == Code::Removed.number());
        let is_conflict = match error {
            PeerError::SameNode(_) => matches!(target, Target::Seed(_)),
            PeerError::Refused { code, .. } => *code == Code::NodeConflict.number() || is_removed,
            // Proven by the other end, and there is nobody else to believe.
            PeerError::WrongCluster { .. } if self.roster.is_joining() => {
                self.fatal = Some(StartError::config(
                    format!("the seed {address} belongs to another cluster: {error}"),
                    "correct cluster.seeds, or use the data directory that belongs to that cluster",
                ));
                return;
            }
            _ => return,
        };
        if !is_conflict || !self.roster.is_alone() {
            return;
        }
        // Nobody vouches for a refusal, and the other one may just be ending.
        let recent = |(_, last): &(Instant, Instant)| now.monotonic.since(*last) < CONFLICT_MEMORY;
        let (since, _) = self.conflict.filter(recent).unwrap_or((now.monotonic, now.monotonic));
        self.conflict = Some((since, now.monotonic));
        if now.monotonic.since(since) >= CONFLICT_TIME_MAX {
            self.fatal = Some(if is_removed {
                StartError::local(
                    format!(
                        "this node does not belong to the cluster any more, says the node at {address}: {error}"
                    ),
                    "if it is to join again, as a new node: move its data directory away first; nothing of it is needed there",
                )
            } else {
                StartError::config(
                    format!("another process has this node's number, says the node at {address}: {error}"),
                    "give every node its own node.id; a disk that moved must not run twice",
                )
            });
        }
    }
}

fn chance() -> u64 {
    u64::from_be_bytes(clock::random())
}
