//! Who leads which shard and where clients reach it, for clients that want to go there directly. Only a hint: any node
//! takes any frame, and the log decides.

use std::{collections::BTreeSet, time::Duration};

use swarmmq_protocol::{frame::Leaders, time::Instant};

use super::{ConnectionId, Node, Now};
use crate::shard::member::ROLE_INGRESS;

/// Pause between two lists. While leaders are lost and elected, one list says what several would.
const TELL_PAUSE: Duration = Duration::from_millis(100);

/// Clients that want to know, and what they know.
#[derive(Debug, Default)]
pub(super) struct Audience {
    clients: BTreeSet<ConnectionId>,
    told: Leaders,
    /// How much of the cluster's facts `told` takes into account.
    facts: u64,
    /// What was told may not be so any more.
    is_outdated: bool,
    next: Instant,
}

impl Audience {
    /// A leader has changed.
    pub(super) fn outdated(&mut self) {
        self.is_outdated = true;
    }

    /// This node knows the cluster's facts up to there: members may have come, gone or moved.
    pub(super) fn knows(&mut self, applied: u64) {
        self.is_outdated |= applied != self.facts;
        self.facts = applied;
    }
}

impl Node {
    /// Answers with what everybody else was told, who will soon be told more if there is more.
    pub(super) fn watch_leaders(&mut self, connection: ConnectionId, request: u64) {
        if self.audience.clients.is_empty() {
            self.renew_leaders();
        }
        let told = self.audience.told.clone();
        self.send(connection, request, &told);
        self.audience.clients.insert(connection);
    }

    pub(super) fn leaders_unwatched(&mut self, connection: ConnectionId) {
        self.audience.clients.remove(&connection);
    }

    /// Tells who leads, if that changed.
    pub(super) fn tell_leaders(&mut self, now: Now) {
        if self.leaders_wake().is_some_and(|at| at <= now.monotonic) {
            self.audience.next = now.monotonic + TELL_PAUSE;
            self.renew_leaders();
        }
    }

    /// Everybody knows the same list.
    fn renew_leaders(&mut self) {
        self.audience.is_outdated = false;
        let fresh = self.list_leaders();
        if fresh == self.audience.told {
            return;
        }
        for client in self.audience.clients.iter().copied().collect::<Vec<_>>() {
            self.send(client, 0, &fresh);
        }
        self.audience.told = fresh;
    }

    fn list_leaders(&self) -> Leaders {
        let members = self.cluster_shard().state().catalog.members.nodes.iter();
        let doors =
            members.filter(|(_, member)| member.roles & ROLE_INGRESS != 0 && !member.client.is_empty());
        let data = &self.leaders[..self.leaders.len() - 1];
        Leaders {
            nodes: doors.map(|(node, member)| (*node, member.client.clone())).collect(),
            shards: data.iter().map(|leader| leader.map(|(_, node)| node)).collect(),
            routing: self.cluster_shard().state().catalog.routing,
        }
    }

    /// When [`Node::tell_leaders`] has something to do.
    pub(super) fn leaders_wake(&self) -> Option<Instant> {
        (self.audience.is_outdated && !self.audience.clients.is_empty()).then_some(self.audience.next)
    }
}
