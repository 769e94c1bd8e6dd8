//! The ways that a producer's frames can take: one home connection, to any node, and direct ones to nodes that lead.
//!
//! Which way is best is only a matter of speed, because every node takes every frame. What must hold whatever the way is
//! in `producer`: a lane moves to another way only when nothing of it is unanswered on the one before.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{NodeId, ShardId};

/// One connection of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// To whatever node took it; everything that is no producer's goes here.
    Home,
    /// To this node, because it leads.
    Direct(NodeId),
}

/// What a connection still allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) messages: u32,
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    window: Window,
    /// It takes nothing new, and ends when all is answered.
    is_leaving: bool,
}

/// The open ways, and who leads what.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    open: BTreeMap<Way, Open>,
    leaders: BTreeMap<ShardId, NodeId>,
    /// Leaders of what was sent since the last look, by whatever way.
    wishes: BTreeSet<NodeId>,
}

impl Ways {
    /// A way is open and allows this much unanswered.
    pub fn opened(&mut self, way: Way, messages: u32, bytes: u64) {
        self.open.insert(way, Open { window: Window { messages, bytes }, is_leaving: false });
    }

    /// A way takes nothing new.
    pub fn leaving(&mut self, way: Way) {
        if let Some(open) = self.open.get_mut(&way) {
            open.is_leaving = true;
        }
    }

    /// A way is gone.
    pub fn lost(&mut self, way: Way) {
        self.open.remove(&way);
    }

    /// Who leads each data shard, in order. Of a shard without a known leader the last one is remembered: moving to another
    /// way and back would only cost time. Returns the shards that another one leads now.
    pub fn learned(&mut self, leaders: &[Option<NodeId>]) -> Vec<ShardId> {
        let known = (0..).zip(leaders).filter_map(|(shard, leader)| Some((ShardId(shard), (*leader)?)));
        known
            .filter(|(shard, leader)| self.leaders.insert(*shard, *leader).is_some_and(|old| old != *leader))
            .map(|(shard, _)| shard)
            .collect()
    }

    pub(super) fn is_open(&self, way: Way) -> bool {
        self.open.contains_key(&way)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn all(&self) -> Vec<Way> {
        self.open.keys().copied().collect()
    }

    pub(super) fn window(&mut self, way: Way) -> Option<&mut Window> {
        self.open.get_mut(&way).map(|open| &mut open.window)
    }

    /// Where frames of `shard` go: to its leader, or home, or to any node that takes them.
    pub(super) fn best(&self, shard: ShardId) -> Option<Way> {
        let takes = |way: &Way| self.open.get(way).is_some_and(|open| !open.is_leaving);
        let direct = self.leaders.get(&shard).map(|leader| Way::Direct(*leader));
        direct.filter(takes).or_else(|| self.open.keys().copied().find(takes))
    }

    /// Something of `shard` is sent: a direct way would be of use.
    pub(super) fn wish(&mut self, shard: ShardId) {
        if let Some(leader) = self.leaders.get(&shard) {
            self.wishes.insert(*leader);
        }
    }

    pub(super) fn take_wishes(&mut self, into: &mut BTreeSet<NodeId>) {
        into.append(&mut self.wishes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(0);
    const OTHER: ShardId = ShardId(1);

    #[test]
    fn frames_go_to_the_leader_or_home_or_to_anybody_who_takes_them() {
        let mut ways = Ways::default();
        assert_eq!(ways.best(SHARD), None);
        ways.opened(Way::Direct(NodeId(3)), 1, 1);
        assert_eq!(ways.best(SHARD), Some(Way::Direct(NodeId(3))), "any node is better than none");
        ways.opened(Way::Home, 1, 1);
        assert_eq!(ways.best(SHARD), Some(Way::Home));
        ways.learned(&[Some(NodeId(3)), Some(NodeId(4))]);
        assert_eq!(ways.best(SHARD), Some(Way::Direct(NodeId(3))));
        assert_eq!(ways.best(OTHER), Some(Way::Home), "nobody has gone there");
        ways.learned(&[None, None]);
        assert_eq!(ways.best(SHARD), Some(Way::Direct(NodeId(3))), "a list that says less changes nothing");
        ways.leaving(Way::Direct(NodeId(3)));
        assert_eq!(ways.best(SHARD), Some(Way::Home));
        ways.lost(Way::Home);
        assert_eq!(ways.best(SHARD), None, "who leaves is not bothered");
    }

    #[test]
    fn only_known_leaders_are_wished_for() {
        let mut ways = Ways::default();
        ways.learned(&[Some(NodeId(3))]);
        ways.wish(SHARD);
        ways.wish(OTHER);
        let mut wishes = BTreeSet::new();
        ways.take_wishes(&mut wishes);
        assert_eq!(wishes, BTreeSet::from([NodeId(3)]));
    }
}
