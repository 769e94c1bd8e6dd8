//! Home moves to the node that leads what consumers are fed from, when `protocol::session::home` says so and nothing is
//! under way: a second connection is made first, and waits for such a moment.

use swarmmq_protocol::{
    id::{NodeId, ShardId},
    session::{handshake::ClientReady, home::Home},
    time::Instant,
};
use tokio::task::JoinSet;

use super::{ATTEMPT_FIRST, clock::after, elsewhere::Found};
use crate::{
    connection::{Access, Connection},
    driver::Clock,
};

/// Longest wait of a second connection for a moment in which nothing is under way.
const WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(8);

pub(super) struct Homing {
    decides: Home,
    /// Who leads each data shard, as far as known.
    leaders: Vec<Option<NodeId>>,
    /// Dropped, it ends the attempt.
    attempt: JoinSet<Found>,
    target: Option<NodeId>,
    waiting: Option<(Box<(Connection, ClientReady)>, Instant)>,
}

impl Homing {
    pub(super) fn new() -> Self {
        Self {
            decides: Home::new(),
            leaders: Vec::new(),
            attempt: JoinSet::new(),
            target: None,
            waiting: None,
        }
    }

    /// Home is with `node` now.
    pub(super) fn connected(&mut self, node: NodeId) {
        self.decides.connected(node);
        self.stop();
    }

    pub(super) fn learned(&mut self, leaders: &[Option<NodeId>]) {
        self.leaders = leaders.to_vec();
    }

    /// There is no home, or it is not to move any more: nothing is due until there is another.
    pub(super) fn lost(&mut self) {
        self.decides.lost();
        self.stop();
    }

    /// No move is under way any more.
    fn stop(&mut self) {
        self.attempt = JoinSet::new();
        self.target = None;
        self.waiting = None;
    }

    /// Begins an attempt where one is due. `doors` says where clients reach which node.
    pub(super) fn steer(
        &mut self,
        clock: Clock,
        shards: impl Iterator<Item = ShardId>,
        doors: &[(NodeId, String)],
        access: &Access,
    ) {
        let now = clock.now();
        if self.waiting.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.failed(now);
        }
        let leaders = shards.map(|shard| self.leaders.get(shard.0 as usize).copied().flatten());
        let due = self.decides.look(now, leaders);
        if self.target.is_some() && self.target != self.decides.best() {
            // The lead has moved on meanwhile.
            self.stop();
        }
        let Some(node) = due.filter(|_| self.target.is_none()) else { return };
        let Some((_, door)) = doors.iter().find(|(known, _)| *known == node) else {
            self.decides.failed(now);
            return;
        };
        self.target = Some(node);
        self.attempt.spawn(Connection::open(door.clone(), access.clone(), after(ATTEMPT_FIRST), clock));
    }

    fn failed(&mut self, now: Instant) {
        self.decides.failed(now);
        self.stop();
    }

    /// Waits until an attempt has ended; for ever if none is under way. Cancel safe.
    pub(super) async fn found(&mut self) -> Found {
        match self.attempt.join_next().await {
            Some(Ok(found)) => found,
            Some(Err(error)) => Err(crate::connection::ConnectError::Io(error.to_string())),
            None => std::future::pending().await,
        }
    }

    /// Keeps what was found for a moment in which home can move, if it is whom it was looked for.
    pub(super) fn keep(&mut self, now: Instant, found: Found) {
        match found {
            Ok(home) if Some(home.1.node) == self.target => {
                self.waiting = Some((Box::new(home), now + WAIT_MAX));
            }
            _ => self.failed(now),
        }
    }

    /// Whether a second connection waits.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// The next home, as nothing is under way now.
    pub(super) fn take(&mut self, now: Instant) -> Option<Box<(Connection, ClientReady)>> {
        let (home, _) = self.waiting.take()?;
        self.decides.moved(now);
        Some(home)
    }

    /// When [`Homing::steer`] has something to do.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        match (&self.waiting, self.target) {
            (Some((_, until)), _) => Some(*until),
            (None, Some(_)) => None,
            (None, None) => self.decides.next_wake(),
        }
    }
}
