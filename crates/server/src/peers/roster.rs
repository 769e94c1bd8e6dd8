//! Whom to dial, and when. Pure: time and chance come in.
//!
//! Of two nodes without a link the lower dials at once and the higher after a second, so that mostly only one does. A node
//! that knows no members dials its seeds, one after the other, until it is linked with all of them; so does one that has
//! reached no member for a while, because all of them may have moved, until it is linked with one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use swarmmq_protocol::{id::NodeId, time::Instant};

/// Time that the higher of two nodes leaves to the lower.
const HIGHER_WAITS: Duration = Duration::from_secs(1);
/// Pause after the first failed attempt; doubles with every further one.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Time without any link after which seeds are dialled although members are known.
const SEEDS_AFTER: Duration = Duration::from_secs(5);

/// Who is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// A node, where it is known to listen.
    Node(NodeId),
    /// Whoever listens at the seed with this place in the list.
    Seed(usize),
}

#[derive(Debug)]
struct Entry {
    address: Option<SocketAddr>,
    /// The next attempt, if none is under way.
    at: Instant,
    pause: Duration,
    under_way: bool,
    /// What went wrong last.
    why: Option<String>,
    /// Of a seed: who answered there last.
    node: Option<NodeId>,
}

impl Entry {
    fn new(address: Option<SocketAddr>, at: Instant) -> Self {
        Self { address, at, pause: PAUSE_FIRST, under_way: false, why: None, node: None }
    }

    fn failed(&mut self, now: Instant, why: String, chance: u64) -> bool {
        self.under_way = false;
        self.at = now + jittered(self.pause, chance);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        let is_news = self.why.as_ref() != Some(&why);
        self.why = Some(why);
        is_news
    }
}

/// Every node and seed worth a connection.
#[derive(Debug)]
pub(crate) struct Roster {
    me: NodeId,
    /// Unknown until the node hears who belongs to its cluster.
    members: Option<BTreeMap<NodeId, Entry>>,
    seeds: Vec<Entry>,
    /// Who is linked, and where it says that it listens.
    linked: BTreeMap<NodeId, Option<SocketAddr>>,
    /// Since when there is no link at all.
    alone_since: Instant,
}

impl Roster {
    /// `seeds` are dialled as long as nobody says who the members are.
    pub(crate) fn new(me: NodeId, seeds: &[SocketAddr], now: Instant) -> Self {
        Self {
            me,
            members: None,
            seeds: seeds.iter().map(|address| Entry::new(Some(*address), now)).collect(),
            linked: BTreeMap::new(),
            alone_since: now,
        }
    }

    /// Replaces the list of members. Returns who was on it and is not any more.
    pub(crate) fn set_members(&mut self, now: Instant, list: &[(NodeId, String)]) -> Vec<NodeId> {
        let before = self.members.take().unwrap_or_default();
        let mut gone: BTreeSet<NodeId> = before.keys().copied().collect();
        let mut before = before;
        let mut members = BTreeMap::new();
        for (node, text) in list.iter().filter(|(node, _)| *node != self.me) {
            gone.remove(node);
            let address = text.parse().ok();
            if address.is_none() {
                tracing::warn!(node = node.0, address = text, "a member's peer address is none");
            }
            let at = self.first_attempt(now, *node);
            let entry = match before.remove(node) {
                Some(entry) if entry.address == address => entry,
                Some(entry) => Entry { under_way: entry.under_way, ..Entry::new(address, at) },
                None => Entry::new(address, at),
            };
            members.insert(*node, entry);
        }
        self.members = Some(members);
        gone.into_iter().collect()
    }

    /// A link with `node`, which says that it listens at `address`, is up.
    pub(crate) fn linked(&mut self, node: NodeId, address: Option<SocketAddr>) {
        self.linked.insert(node, address);
        if let Some(entry) = self.member(node) {
            entry.under_way = false;
            entry.why = None;
        }
    }

    /// The link with `node` is down. One that did not last counts as a failed attempt.
    pub(crate) fn unlinked(&mut self, now: Instant, node: NodeId, lasted: Duration) {
        self.linked.remove(&node);
        if self.linked.is_empty() {
            self.alone_since = now;
        }
        let at = self.first_attempt(now, node);
        let Some(entry) = self.member(node) else { return };
        if lasted >= PAUSE_MAX {
            entry.at = at;
            entry.pause = PAUSE_FIRST;
        } else {
            entry.at = at + entry.pause;
            entry.pause = (entry.pause * 2).min(PAUSE_MAX);
        }
    }

    /// Where those listen who are linked.
    pub(crate) fn linked_addresses(&self) -> Vec<SocketAddr> {
        self.linked.values().flatten().copied().collect()
    }

    /// Whether nobody is linked.
    pub(crate) fn is_alone(&self) -> bool {
        self.linked.is_empty()
    }

    /// Whether nobody has said yet who the members are.
    pub(crate) fn is_joining(&self) -> bool {
        self.members.is_none()
    }

    /// Somebody dials `target`, for whatever reason: not to be dialled a second time.
    pub(crate) fn begun(&mut self, target: Target) {
        if let Some(entry) = self.entry(target) {
            entry.under_way = true;
        }
    }

    /// Whom to dial now; the attempt counts as begun. Call until there is nobody.
    pub(crate) fn due(&mut self, now: Instant) -> Option<(Target, SocketAddr)> {
        let linked = &self.linked;
        let member = self.members.iter_mut().flatten().find_map(|(node, entry)| {
            let wanted = !linked.contains_key(node) && !entry.under_way && entry.at <= now;
            let address = entry.address.filter(|_| wanted)?;
            entry.under_way = true;
            Some((Target::Node(*node), address))
        });
        if member.is_some() {
            return member;
        }
        let (seed, at) = self.next_seed()?;
        let entry = self.seeds.get_mut(seed).filter(|_| at <= now)?;
        entry.under_way = true;
        entry.address.map(|address| (Target::Seed(seed), address))
    }

    /// When [`Roster::due`] is worth another look.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let members = self.members.iter().flatten().filter(|(node, entry)| {
            !self.linked.contains_key(*node) && !entry.under_way && entry.address.is_some()
        });
        members.map(|(_, entry)| entry.at).chain(self.next_seed().map(|(_, at)| at)).min()
    }

    /// An attempt came to nothing. Returns whether the reason is another one than last time.
    ///
    /// * `chance`: any random number, so that nodes do not dial in step.
    pub(crate) fn failed(&mut self, now: Instant, target: Target, why: String, chance: u64) -> bool {
        self.entry(target).is_some_and(|entry| entry.failed(now, why, chance))
    }

    /// An attempt ended in a link that is kept, or was not needed any more, because `node` is there.
    pub(crate) fn ended(&mut self, now: Instant, target: Target, node: NodeId) {
        if let Some(entry) = self.entry(target) {
            entry.under_way = false;
            entry.why = None;
            entry.node = Some(node);
            entry.at = entry.at.max(now + PAUSE_MAX);
        }
    }

    /// The seed leads back to this node: it is not dialled any more.
    pub(crate) fn is_myself(&mut self, seed: usize) {
        if let Some(entry) = self.seeds.get_mut(seed) {
            entry.address = None;
            entry.under_way = false;
        }
    }

    /// What became of every seed, for people.
    pub(crate) fn seeds_in_words(&self) -> String {
        let seeds = self.seeds.iter().filter_map(|entry| {
            let address = entry.address?;
            Some(match &entry.why {
                Some(why) => format!("{address}: {why}"),
                None => format!("{address}: no answer yet"),
            })
        });
        seeds.collect::<Vec<_>>().join("; ")
    }

    /// Whose turn it is among the seeds, and when; `None` while seeds are not needed or one is being dialled.
    fn next_seed(&self) -> Option<(usize, Instant)> {
        if self.seeds.iter().any(|entry| entry.under_way) {
            return None;
        }
        let since = match &self.members {
            None => Instant(0),
            Some(members) if members.is_empty() || !self.linked.is_empty() => return None,
            Some(_) => self.alone_since + SEEDS_AFTER,
        };
        let is_linked = |entry: &Entry| {
            entry.node.is_some_and(|node| self.linked.contains_key(&node))
                || self.linked.values().any(|address| *address == entry.address)
        };
        let wanted = |entry: &Entry| entry.address.is_some() && !is_linked(entry);
        let seeds = self.seeds.iter().enumerate().filter(|(_, entry)| wanted(entry));
        let (seed, entry) = seeds.min_by_key(|(_, entry)| entry.at)?;
        Some((seed, since.max(entry.at)))
    }

    /// The lower node dials first.
    fn first_attempt(&self, now: Instant, node: NodeId) -> Instant {
        if self.me < node { now } else { now + HIGHER_WAITS }
    }

    fn member(&mut self, node: NodeId) -> Option<&mut Entry> {
        self.members.as_mut()?.get_mut(&node)
    }

    fn entry(&mut self, target: Target) -> Option<&mut Entry> {
        match target {
            Target::Node(node) => self.member(node),
            Target::Seed(seed) => self.seeds.get_mut(seed),
        }
    }
}

/// Between three and five quarters of `pause`.
fn jittered(pause: Duration, chance: u64) -> Duration {
    pause * 3 / 4 + pause / 2 * (chance % 1024) as u32 / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(100_000 + millis)
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn members(list: &[u16]) -> Vec<(NodeId, String)> {
        list.iter().map(|node| (NodeId(*node), address(*node).to_string())).collect()
    }

    fn roster(me: u16, list: &[u16]) -> Roster {
        let mut roster = Roster::new(NodeId(me), &[], at(0));
        assert!(roster.set_members(at(0), &members(list)).is_empty());
        roster
    }

    fn node(node: u16) -> Option<(Target, SocketAddr)> {
        Some((Target::Node(NodeId(node)), address(node)))
    }

    fn seed(place: usize, port: u16) -> Option<(Target, SocketAddr)> {
        Some((Target::Seed(place), address(port)))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn the_lower_dials_at_once_and_the_higher_after_a_second() {
        let mut roster = roster(2, &[1, 2, 3]);
        assert_eq!(roster.due(at(0)), node(3));
        assert_eq!((roster.due(at(0)), roster.next_at()), (None, Some(at(1000))));
        assert_eq!(roster.due(at(1000)), node(1));
        roster.linked(NodeId(1), Some(address(1)));
        roster.linked(NodeId(3), Some(address(3)));
        assert_eq!(roster.next_at(), None);
        roster.unlinked(at(9000), NodeId(1), LONG);
        assert_eq!((roster.due(at(9999)), roster.due(at(10_000))), (None, node(1)));
    }

    #[test]
    fn pauses_double_up_to_a_second_and_begin_anew_after_a_link_that_lasted() {
        let mut roster = roster(1, &[2]);
        let mut now = at(0);
        for pause in [50, 100, 200, 400, 800, 1000, 1000] {
            assert_eq!(roster.due(now), node(2));
            roster.failed(now, Target::Node(NodeId(2)), "refused".into(), 512);
            now = now + Duration::from_millis(pause);
            assert_eq!(roster.next_at(), Some(now));
        }
        roster.linked(NodeId(2), Some(address(2)));
        roster.unlinked(now, NodeId(2), Duration::from_millis(3));
        assert_eq!(roster.next_at(), Some(now + PAUSE_MAX), "a link that does not last is no success");
        roster.linked(NodeId(2), Some(address(2)));
        roster.unlinked(now, NodeId(2), LONG);
        assert_eq!(roster.next_at(), Some(now));
    }

    #[test]
    fn pauses_of_different_nodes_drift_apart_but_not_far() {
        let pauses: BTreeSet<Duration> = (0..1024).map(|chance| jittered(PAUSE_MAX, chance)).collect();
        assert!(pauses.len() > 1000);
        assert!(*pauses.first().unwrap() >= Duration::from_millis(750));
        assert!(*pauses.last().unwrap() <= Duration::from_millis(1250));
    }

    #[test]
    fn only_a_node_that_knows_nobody_or_reaches_nobody_dials_its_seeds() {
        let mut roster = Roster::new(NodeId(2), &[address(7), address(8)], at(0));
        assert_eq!(roster.due(at(0)), seed(0, 7));
        assert_eq!(roster.due(at(0)), None, "one after the other");
        assert!(roster.failed(at(0), Target::Seed(0), "refused".into(), 0));
        assert_eq!(roster.due(at(1)), seed(1, 8));
        assert!(roster.failed(at(1), Target::Seed(1), "refused".into(), 0));
        assert_eq!(roster.due(at(100)), seed(0, 7));
        assert!(!roster.failed(at(100), Target::Seed(0), "refused".into(), 0), "no news");
        assert_eq!(roster.seeds_in_words(), "127.0.0.1:7: refused; 127.0.0.1:8: refused");

        roster.set_members(at(200), &members(&[2, 3]));
        roster.linked(NodeId(3), Some(address(3)));
        roster.unlinked(at(1000), NodeId(3), LONG);
        roster.begun(Target::Node(NodeId(3)));
        assert_eq!(roster.due(at(5999)), None);
        assert_eq!(roster.due(at(6000)), seed(1, 8), "all members may have moved");
        roster.ended(at(6000), Target::Seed(1), NodeId(3));
        roster.set_members(at(6000), &[]);
        assert_eq!(roster.due(at(60_000)), None, "a cluster of its own");
    }

    #[test]
    fn a_node_that_joins_wants_a_link_with_every_seed_once() {
        let mut roster = Roster::new(NodeId(2), &[address(7), address(8), address(9)], at(0));
        assert_eq!(roster.due(at(0)), seed(0, 7));
        // Reached under another address than it gives.
        roster.linked(NodeId(5), Some(address(55)));
        roster.ended(at(0), Target::Seed(0), NodeId(5));
        // Came by itself.
        roster.linked(NodeId(6), Some(address(8)));
        assert_eq!(roster.due(at(9000)), seed(2, 9));
        roster.linked(NodeId(7), Some(address(9)));
        roster.ended(at(9000), Target::Seed(2), NodeId(7));
        assert_eq!((roster.due(at(60_000)), roster.next_at()), (None, None));
        roster.unlinked(at(60_000), NodeId(5), LONG);
        assert_eq!(roster.due(at(60_000)), seed(0, 7));
    }

    #[test]
    fn a_seed_that_is_this_node_is_left_out() {
        let mut roster = Roster::new(NodeId(2), &[address(7), address(8)], at(0));
        assert_eq!(roster.due(at(0)), seed(0, 7));
        roster.is_myself(0);
        assert_eq!(roster.due(at(0)), seed(1, 8));
        assert_eq!(roster.seeds_in_words(), "127.0.0.1:8: no answer yet");
    }

    #[test]
    fn who_leaves_the_list_is_named_and_who_moves_is_dialled_there() {
        let mut roster = roster(1, &[2, 3]);
        assert_eq!(roster.due(at(0)), node(2));
        roster.failed(at(0), Target::Node(NodeId(2)), "refused".into(), 0);
        let moved = vec![(NodeId(2), address(22).to_string()), (NodeId(4), "nowhere".to_owned())];
        assert_eq!(roster.set_members(at(1), &moved), [NodeId(3)]);
        assert_eq!(roster.due(at(1)), Some((Target::Node(NodeId(2)), address(22))));
        assert_eq!(roster.due(at(9999)), None, "without an address nobody is dialled");
    }
}
