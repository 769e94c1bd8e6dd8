//! Who may become a member: whoever is one, whoever brings a join token, and everybody where the cluster is open.
//!
//! All of this comes after the proof of the secret between nodes; without it nobody gets here. What this node does not
//! know yet is no reason to refuse: a link is let in then, and looked at again as soon as the cluster's facts are current.

use swarmmq_protocol::{error::Code, id::NodeId, session::guard::Source, session::peer::PeerHello};

use super::{Node, Now, audit::Seen};
use crate::shard::{
    access::AccessEvent,
    event::CatalogEvent,
    member::{Member, NodeEvent},
};

impl Node {
    /// Whether the node that says `hello` belongs here, or brings what lets it in.
    pub(super) fn may_join(&self, now: Now, hello: &PeerHello) -> Result<(), Code> {
        let state = self.cluster_shard().state();
        let (members, access) = (&state.catalog.members.nodes, &state.catalog.access);
        // A node whose disk was lost comes back with another one by itself: its number is a member's.
        let belongs = members.contains_key(&hello.node) || access.open_join;
        if belongs || members.is_empty() || !self.cluster_shard().is_current() {
            return Ok(());
        }
        let hash = hello.join.as_ref().ok_or(Code::JoinRequired)?;
        access.judge(state.time.max(now.wall), hash, hello.node)
    }

    /// The event by which the node that says `hello` becomes a member, or is one at another place. `None`: it will not.
    pub(super) fn joining(&mut self, now: Now, hello: &PeerHello, member: Member) -> Option<CatalogEvent> {
        if let Err(code) = self.may_join(now, hello) {
            self.peer_refused(now, None, Some(hello.node), code);
            self.unwanted.insert(hello.node);
            return None;
        }
        let catalog = &self.cluster_shard().state().catalog;
        let is_known = catalog.members.nodes.contains_key(&hello.node);
        let needs_token = !is_known && !catalog.access.open_join && !catalog.members.nodes.is_empty();
        let node = hello.node;
        Some(match hello.join.filter(|_| needs_token) {
            Some(hash) => CatalogEvent::Access(AccessEvent::JoinedWith { hash, node, member }),
            None => CatalogEvent::Node(NodeEvent::Joined { node, member }),
        })
    }

    /// Somebody was turned away at the port for nodes.
    pub(super) fn peer_refused(
        &mut self,
        now: Now,
        source: Option<Source>,
        node: Option<NodeId>,
        code: Code,
    ) {
        let principal = node.map_or_else(String::new, |node| format!("node {}", node.0));
        let (verb, address) = ("join", "*".to_owned());
        self.audit.note(now, Seen { source, principal, verb, address, code: Some(code) });
    }
}

/// For people: what a refused node is missing.
pub(super) fn in_words(code: Code) -> &'static str {
    match code {
        Code::JoinRequired => "it is no member, and joining needs a token: `swarmmq node token` prints one",
        Code::JoinUnknown => "its join token was used before, or never issued by this cluster",
        Code::JoinExpired => "its join token is too old: `swarmmq node token` prints another one",
        Code::JoinOtherNode => "its join token is for a node of another number",
        _ => code.text(),
    }
}
