//! A second home connection, made while the first one is silent. The first is left only for one that is proven, and not at
//! all if it speaks meanwhile.

use std::time::Duration;

use swarmmq_protocol::session::handshake::ClientReady;
use tokio::{task::JoinSet, time::Instant};

use super::{ATTEMPT_FIRST, RECONNECT_MAX, clock::after};
use crate::{
    connection::{Access, ConnectError, Connection},
    driver::Clock,
};

/// Pause after everybody was tried in vain.
const PAUSE: Duration = RECONNECT_MAX;

/// How an attempt ended.
pub(super) type Found = Result<(Connection, ClientReady), ConnectError>;

/// One attempt at a time, by turns.
pub(super) struct Elsewhere {
    /// Dropped, it ends the attempt.
    attempt: JoinSet<Found>,
    turn: usize,
    rests_until: Option<Instant>,
}

impl Elsewhere {
    pub(super) fn new() -> Self {
        Self { attempt: JoinSet::new(), turn: usize::from_be_bytes(crate::random()) >> 1, rests_until: None }
    }

    /// Tries the next of `servers`, unless an attempt is under way or all have just been tried.
    pub(super) fn seek(&mut self, servers: &[String], access: &Access, clock: Clock) {
        let rests = self.rests_until.is_some_and(|until| until > Instant::now());
        if servers.is_empty() || rests || !self.attempt.is_empty() {
            return;
        }
        let server = servers[self.turn % servers.len()].clone();
        self.turn = self.turn.wrapping_add(1);
        self.rests_until = self.turn.is_multiple_of(servers.len()).then(|| after(ATTEMPT_FIRST + PAUSE));
        self.attempt.spawn(Connection::open(server, access.clone(), after(ATTEMPT_FIRST), clock));
    }

    /// The attempt is not needed any more. Returns whether there was one.
    pub(super) fn stop(&mut self) -> bool {
        self.rests_until = None;
        let was_seeking = !self.attempt.is_empty();
        self.attempt = JoinSet::new();
        was_seeking
    }

    /// Waits until an attempt has ended; for ever if none is under way. Cancel safe.
    pub(super) async fn found(&mut self) -> Found {
        match self.attempt.join_next().await {
            Some(Ok(found)) => found,
            Some(Err(error)) => Err(ConnectError::Io(error.to_string())),
            None => std::future::pending().await,
        }
    }
}
