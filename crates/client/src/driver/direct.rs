//! The direct connections of a client: made, served and ended as `protocol::session::direct` decides.
//!
//! Nobody waits for them: attempts are tasks of their own, and what cannot be reached is simply not there.

use std::{
    collections::{BTreeMap, BTreeSet},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use swarmmq_protocol::{
    frame::{self, FrameHeader, Leaders, Pong},
    id::{ClusterId, NodeId},
    session::{
        direct::{Direct, Step},
        handshake::ClientReady,
        silence::{Bounds, Verdict},
        ways::Way,
    },
    time::Instant,
};
use tokio::task::JoinSet;

use super::{clock::after, producers::Producers, tags};
use crate::{
    connection::{Access, ConnectError, Connection},
    driver::Clock,
};

/// Time for an attempt: whoever leads is near and up, or home does better.
const ATTEMPT_TIME: Duration = Duration::from_secs(1);

/// How an attempt ended.
pub(super) type Attempt = (NodeId, Result<(Connection, ClientReady), ConnectError>);

pub(super) struct Directs {
    decides: Direct,
    open: BTreeMap<NodeId, Connection>,
    attempts: JoinSet<Attempt>,
    wishes: BTreeSet<NodeId>,
}

/// Something happened on a direct connection.
pub(super) enum Stir {
    /// One can be read or written.
    Ready,
    /// An attempt has ended.
    Tried(Box<Attempt>),
}

impl Directs {
    pub(super) fn new() -> Self {
        Self {
            decides: Direct::new(u64::from_be_bytes(crate::random())),
            open: BTreeMap::new(),
            attempts: JoinSet::new(),
            wishes: BTreeSet::new(),
        }
    }

    pub(super) fn home(&mut self, node: Option<NodeId>) {
        self.decides.home(node);
    }

    pub(super) fn learned(&mut self, leaders: &Leaders) {
        self.decides.learned(&leaders.nodes);
    }

    /// The open ones, to be written to.
    pub(super) fn connections(&mut self) -> &mut BTreeMap<NodeId, Connection> {
        &mut self.open
    }

    /// Begins and ends connections. Returns whether that may have set something free to go another way.
    pub(super) fn steer(&mut self, clock: Clock, access: &Access, producers: &mut Producers) -> bool {
        let now = clock.now();
        let mut is_free = false;
        producers.take_wishes(&mut self.wishes);
        while let Some(node) = self.wishes.pop_first() {
            self.decides.wished(now, node);
        }
        while let Some(step) = self.decides.step(now, |node| producers.is_drained(Way::Direct(node))) {
            match step {
                Step::Dial(node, address) => {
                    let access = access.clone();
                    self.attempts.spawn(async move {
                        let until = after(ATTEMPT_TIME);
                        (node, Connection::open(address, access, until, clock).await)
                    });
                }
                Step::Leave(node) => {
                    producers.leaving(Way::Direct(node));
                    is_free = true;
                }
                Step::End(node) => {
                    self.open.remove(&node);
                    producers.disconnected(Way::Direct(node));
                    is_free = true;
                }
            }
        }
        is_free
    }

    /// The open ones.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.open.keys().copied().collect()
    }

    /// An attempt that has ended, if there is one.
    pub(super) fn try_tried(&mut self) -> Option<Attempt> {
        self.attempts.try_join_next()?.ok()
    }

    /// Takes a connection that was made, if it is what it was made for.
    pub(super) fn tried(
        &mut self,
        now: Instant,
        (node, attempt): Attempt,
        cluster: Option<ClusterId>,
        producers: &mut Producers,
    ) {
        match attempt {
            Ok((connection, ready)) if ready.node == node && Some(ready.cluster) == cluster => {
                let welcome = &ready.welcome;
                let window = (welcome.publish_window_messages, welcome.publish_window_bytes);
                producers.connected(Way::Direct(node), window);
                self.decides.opened(now, node);
                self.open.insert(node, connection);
            }
            // Unreachable from here, or another node under an address that means something else here.
            Ok(_) | Err(_) => self.decides.lost(now, node),
        }
    }

    /// Reads what came from `node`. False: the connection is over; the frames before that count all the same.
    pub(super) fn hear(&mut self, node: NodeId) -> (Vec<(FrameHeader, Bytes)>, bool) {
        let Some(connection) = self.open.get_mut(&node) else { return (Vec::new(), true) };
        let mut is_open = matches!(connection.read(), Ok(true));
        let mut frames = Vec::new();
        loop {
            match connection.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => {
                    is_open = false;
                    break;
                }
            }
        }
        (frames, is_open)
    }

    pub(super) fn going_away(&mut self, node: NodeId) {
        self.decides.going_away(node);
    }

    pub(super) fn pong(&mut self, node: NodeId, request: u64) {
        if let Some(connection) = self.open.get_mut(&node) {
            frame::encode(&Pong, request, &mut connection.out);
        }
    }

    pub(super) fn lost(&mut self, now: Instant, node: NodeId, producers: &mut Producers) {
        if self.open.remove(&node).is_some() {
            self.decides.lost(now, node);
            producers.disconnected(Way::Direct(node));
        }
    }

    /// Writes what the sockets take, and asks quiet nodes whether they live. Returns whose connection is over, and whether
    /// that is so only because of its silence: home does better, if `bounds` say that it is there.
    pub(super) fn write(&mut self, bounds: Bounds) -> Vec<(NodeId, bool)> {
        let mut over = Vec::new();
        for (node, connection) in &mut self.open {
            if connection.has_output() {
                connection.said();
            }
            let is_silent =
                matches!(connection.look(bounds, tags::QUESTIONS << 48), Verdict::Silent | Verdict::Dead);
            if is_silent || connection.write().is_err() {
                over.push((*node, is_silent));
            }
        }
        over
    }

    /// Whether everything was handed to the network.
    pub(super) fn has_output(&self) -> bool {
        self.open.values().any(Connection::has_output)
    }

    /// Waits until something happens. Cancel safe.
    pub(super) async fn stirs(&mut self) -> Stir {
        std::future::poll_fn(|context| {
            if self.open.values().any(|connection| connection.poll_ready(context).is_ready()) {
                return Poll::Ready(Stir::Ready);
            }
            match self.attempts.poll_join_next(context) {
                Poll::Ready(Some(Ok(attempt))) => Poll::Ready(Stir::Tried(Box::new(attempt))),
                // None under way, or one that was dropped with the runtime.
                Poll::Ready(_) | Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// When something is to be done without any news.
    pub(super) fn next_wake(&self, bounds: Bounds) -> Option<tokio::time::Instant> {
        self.open.values().map(|connection| connection.next_look(bounds)).min()
    }

    /// When [`Directs::steer`] has something to do.
    pub(super) fn next_step(&self) -> Option<Instant> {
        self.decides.next_wake()
    }
}
