//! Ways to other nodes: along which nodes packets go, and which conversation they belong to.
//!
//! Everything that nodes write to each other counts on the other one hearing all of it, in order. So when something may be
//! lost or overtaken, because a link broke or another path is taken, both ends begin a new conversation: they forget what
//! was under way, as if the other had left and come back, and ask for it again. Who begins numbers it one higher, who hears
//! a higher number begins too, and what arrives late under a lower one is dropped, from however far it comes.
//!
//! Absent here: which path is the best one (`swarm`), and what is forgotten (`peer`).

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use swarmmq_protocol::{
    id::NodeId,
    packet::{Class, Conversation, Packet, life},
    session::peer::PeerHello,
    time::Instant,
};

/// Pause between two reminders that an earlier conversation is over.
const REMIND_PAUSE: Duration = Duration::from_millis(50);

/// How one node is reached.
#[derive(Debug)]
struct Way {
    hello: PeerHello,
    /// Its process.
    life: u32,
    /// The latest conversation with it that this node knows of.
    number: u32,
    /// From this node to that one. Empty: there is no way.
    path: Vec<NodeId>,
    reminded_at: Option<Instant>,
}

/// How every other node is reached that this one has heard of.
#[derive(Debug)]
pub(super) struct Ways {
    life: u32,
    ways: BTreeMap<NodeId, Way>,
}

/// What a packet's conversation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It belongs to the one under way.
    Now,
    /// Its origin has begun a new one, which is noted: what was under way is lost.
    Anew,
    /// It is of an earlier one.
    Late {
        /// Its origin should be told that there is a newer one.
        remind: bool,
    },
    /// It is for another process than this one, or from one that this one does not know.
    Strange,
}

impl Ways {
    /// Of a node that has just started.
    pub(super) fn new(incarnation: u64, boot: u64) -> Self {
        Self { life: life(incarnation, boot), ways: BTreeMap::new() }
    }

    /// Whether packets reach `node`.
    pub(super) fn lead_to(&self, node: NodeId) -> bool {
        self.path(node).is_some()
    }

    /// Nodes that packets reach.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.ways.iter().filter(|(_, way)| !way.path.is_empty()).map(|(node, _)| *node).collect()
    }

    /// What a node that packets reach said of itself.
    pub(super) fn hello(&self, node: NodeId) -> Option<&PeerHello> {
        self.ways.get(&node).filter(|way| !way.path.is_empty()).map(|way| &way.hello)
    }

    /// Whether packets reach the very process that says `hello`.
    pub(super) fn is_with(&self, hello: &PeerHello) -> bool {
        let life = life(hello.incarnation, hello.boot);
        self.ways.get(&hello.node).is_some_and(|way| !way.path.is_empty() && way.life == life)
    }

    /// The path to `node`, with both ends.
    pub(super) fn path(&self, node: NodeId) -> Option<&[NodeId]> {
        self.ways.get(&node).map(|way| way.path.as_slice()).filter(|path| !path.is_empty())
    }

    /// Begins a conversation along `path` with the process that says `hello`.
    pub(super) fn open(&mut self, hello: PeerHello, path: Vec<NodeId>) {
        debug_assert_eq!(path.last(), Some(&hello.node));
        let life = life(hello.incarnation, hello.boot);
        let known = self.ways.get(&hello.node).filter(|way| way.life == life);
        let number = known.map_or(0, |way| way.number) + 1;
        self.ways.insert(hello.node, Way { hello, life, number, path, reminded_at: None });
    }

    /// Goes on along `path`, in the conversation that the other end has begun.
    pub(super) fn follow(&mut self, node: NodeId, path: Vec<NodeId>) {
        if let Some(way) = self.ways.get_mut(&node) {
            way.path = path;
        }
    }

    /// Packets do not reach `node` any more. False: they did not before.
    pub(super) fn close(&mut self, node: NodeId) -> bool {
        self.ways.get_mut(&node).is_some_and(|way| !std::mem::take(&mut way.path).is_empty())
    }

    /// A packet of `class` for `to`, and who takes it next. `None`: there is no way.
    pub(super) fn wrap(&self, to: NodeId, class: Class, body: Bytes) -> Option<(NodeId, Packet)> {
        let way = self.ways.get(&to).filter(|way| !way.path.is_empty())?;
        let conversation = Conversation { origin: self.life, destination: way.life, number: way.number };
        let packet = Packet::along(class, way.path.clone(), body).ok()?;
        Some((way.path[1], packet.within(conversation)))
    }

    /// Compares a packet's conversation with what is known of its `origin`.
    pub(super) fn hear(&mut self, now: Instant, origin: NodeId, said: Conversation) -> Heard {
        let Some(way) = self.ways.get_mut(&origin) else { return Heard::Strange };
        if said.destination != self.life || said.origin != way.life {
            return Heard::Strange;
        }
        if said.number > way.number {
            way.number = said.number;
            // Without a way back there is nothing under way. Whoever opens one begins anew, and the other end hears of it.
            return if way.path.is_empty() { Heard::Strange } else { Heard::Anew };
        }
        if way.path.is_empty() {
            return Heard::Strange;
        }
        if said.number == way.number {
            return Heard::Now;
        }
        let remind = way.reminded_at.is_none_or(|at| now.since(at) >= REMIND_PAUSE);
        if remind {
            way.reminded_at = Some(now);
        }
        Heard::Late { remind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: NodeId = NodeId(1);
    const THERE: NodeId = NodeId(2);

    fn hello(node: NodeId, boot: u64) -> PeerHello {
        PeerHello {
            cluster: None,
            shard_count: 0,
            node,
            incarnation: 5,
            boot,
            roles: 7,
            client: String::new(),
            peer: String::new(),
            admin: String::new(),
            gossip: String::new(),
            version: String::new(),
            key: PeerHello::NO_KEY,
            join: None,
        }
    }

    fn pair() -> (Ways, Ways) {
        let (mut here, mut there) = (Ways::new(5, 1), Ways::new(5, 2));
        here.open(hello(THERE, 2), vec![HERE, THERE]);
        there.open(hello(HERE, 1), vec![THERE, HERE]);
        (here, there)
    }

    fn said(ways: &Ways, to: NodeId) -> Conversation {
        ways.wrap(to, Class::Publish, Bytes::new()).expect("there is a way").1.conversation
    }

    const NOW: Instant = Instant(1_000_000_000);

    #[test]
    fn two_ends_that_meet_are_in_one_conversation() {
        let (here, mut there) = pair();
        assert_eq!(there.hear(NOW, HERE, said(&here, THERE)), Heard::Now);
        assert_eq!(here.path(THERE), Some(&[HERE, THERE][..]));
    }

    #[test]
    fn who_begins_anew_is_followed_and_what_comes_late_is_dropped() {
        let (mut here, mut there) = pair();
        let (late, answer) = (said(&here, THERE), said(&there, HERE));
        here.open(hello(THERE, 2), vec![HERE, NodeId(3), THERE]);
        assert_eq!(there.hear(NOW, HERE, said(&here, THERE)), Heard::Anew);
        assert_eq!(there.hear(NOW, HERE, late), Heard::Late { remind: true });
        assert_eq!(there.hear(NOW, HERE, late), Heard::Late { remind: false }, "once is enough");
        assert_eq!(here.hear(NOW, THERE, answer), Heard::Late { remind: true });
        assert_eq!(there.hear(NOW, HERE, said(&here, THERE)), Heard::Now);
        assert_eq!(here.hear(NOW, THERE, said(&there, HERE)), Heard::Now);
    }

    #[test]
    fn both_may_begin_anew_at_once() {
        let (mut here, mut there) = pair();
        here.open(hello(THERE, 2), vec![HERE, THERE]);
        there.open(hello(HERE, 1), vec![THERE, HERE]);
        assert_eq!(there.hear(NOW, HERE, said(&here, THERE)), Heard::Now);
        assert_eq!(here.hear(NOW, THERE, said(&there, HERE)), Heard::Now);
    }

    #[test]
    fn what_was_heard_without_a_way_back_is_begun_anew_by_whoever_finds_one() {
        let (mut here, mut there) = pair();
        assert!(there.close(HERE));
        assert!(!there.close(HERE));
        here.open(hello(THERE, 2), vec![HERE, NodeId(3), THERE]);
        assert_eq!(there.hear(NOW, HERE, said(&here, THERE)), Heard::Strange);
        there.open(hello(HERE, 1), vec![THERE, NodeId(3), HERE]);
        assert_eq!(
            here.hear(NOW, THERE, said(&there, HERE)),
            Heard::Anew,
            "what was dropped must be said again"
        );
    }

    #[test]
    fn another_process_is_a_stranger() {
        let (here, mut there) = pair();
        let mut restarted = Ways::new(5, 3);
        restarted.open(hello(HERE, 1), vec![THERE, HERE]);
        assert_eq!(
            restarted.hear(NOW, HERE, said(&here, THERE)),
            Heard::Strange,
            "it was for the earlier one"
        );
        there.open(hello(HERE, 4), vec![THERE, HERE]);
        assert_eq!(there.hear(NOW, HERE, said(&here, THERE)), Heard::Strange, "it is from an earlier one");
    }
}
