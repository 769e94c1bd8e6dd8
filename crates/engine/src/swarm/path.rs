//! The shared picture of links and nodes, and the cheapest paths through it.
//!
//! Costs are microseconds: what a packet is expected to take one way. What cannot be expressed so is a surcharge in the same
//! unit, so that everything compares.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use swarmmq_protocol::{id::NodeId, limits::HOPS_MAX};

/// No link.
const NONE: u32 = u32::MAX;
/// What a relay costs beyond its time: the work of a third node, and one more thing that can break.
pub const RELAY_US: u32 = 1_500;
/// What a link costs that is avoided. It is used where nothing else leads on: the last path is never given up.
pub const AVOIDED_US: u32 = 1_000_000;

/// Beginnings of paths that [`Picture::cheapest`] looks at: far more than it needs where links cost anything.
const LOOKS_MAX: usize = 10_000;

/// A way to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// With both ends.
    pub nodes: Vec<NodeId>,
    /// One way, in microseconds.
    pub cost_us: u64,
}

/// Nodes, what it costs to pass them, and the links between them.
#[derive(Clone, Debug)]
pub struct Picture {
    nodes: Vec<NodeId>,
    /// What passing through a node costs; [`NONE`]: it does not relay.
    relays: Vec<u32>,
    /// From row to column.
    links: Vec<u32>,
}

impl Picture {
    /// Without links. `nodes` are in order, none twice.
    pub fn new(nodes: Vec<NodeId>) -> Self {
        debug_assert!(nodes.is_sorted());
        let count = nodes.len();
        Self { nodes, relays: vec![NONE; count], links: vec![NONE; count * count] }
    }

    fn place(&self, node: NodeId) -> Option<usize> {
        self.nodes.binary_search(&node).ok()
    }

    /// Packets may pass `node`, at this cost in microseconds beyond [`RELAY_US`].
    pub fn relay(&mut self, node: NodeId, cost_us: u32) {
        if let Some(place) = self.place(node) {
            self.relays[place] = cost_us.saturating_add(RELAY_US).min(NONE - 1);
        }
    }

    /// Packets may go from `from` to `to`, at this cost in microseconds.
    pub fn link(&mut self, from: NodeId, to: NodeId, cost_us: u32) {
        if let (Some(from), Some(to)) = (self.place(from), self.place(to)) {
            self.links[from * self.nodes.len() + to] = cost_us.min(NONE - 1);
        }
    }

    /// What `path` costs. `None`: it does not lead to its end.
    pub fn cost_us(&self, path: &[NodeId]) -> Option<u64> {
        let mut cost = 0;
        for (hop, pair) in path.windows(2).enumerate() {
            let (from, to) = (self.place(pair[0])?, self.place(pair[1])?);
            let link = self.links[from * self.nodes.len() + to];
            let relay = if hop == 0 { 0 } else { self.relays[from] };
            if link == NONE || relay == NONE {
                return None;
            }
            cost += u64::from(link) + u64::from(relay);
        }
        Some(cost)
    }

    /// What passing `node` costs, with [`RELAY_US`]. `None`: nothing passes it.
    pub fn relay_us(&self, node: NodeId) -> Option<u32> {
        self.place(node).map(|place| self.relays[place]).filter(|us| *us != NONE)
    }

    /// The cheapest paths from `from` to `to` that pass no node twice, best first, at most `most`; of equal ones first that
    /// over the fewest links, then that over the lowest nodes.
    ///
    /// Source: P. E. Hart and others, "A formal basis for the heuristic determination of minimum cost paths", 1968; what is
    /// left is known exactly here but for nodes passed already, so hardly anything is looked at in vain.
    pub fn cheapest(&self, from: NodeId, to: NodeId, most: usize) -> Vec<Path> {
        let count = self.nodes.len();
        let (Some(start), Some(end)) = (self.place(from), self.place(to)) else { return Vec::new() };
        if start == end {
            return Vec::new();
        }
        let rest = self.rest(end);
        let mut found = Vec::new();
        let mut open = BinaryHeap::from([Reverse((rest[start], 1, vec![start], 0_u64))]);
        for _ in 0..LOOKS_MAX {
            let Some(Reverse((_, length, places, cost))) = open.pop() else { break };
            let at = *places.last().expect("a path has an end");
            if at == end {
                found.push(Path {
                    nodes: places.iter().map(|node| self.nodes[*node]).collect(),
                    cost_us: cost,
                });
                if found.len() == most {
                    break;
                }
                continue;
            }
            let relay = if at == start { 0 } else { self.relays[at] };
            if relay == NONE || length > HOPS_MAX {
                continue;
            }
            for next in (0..count).filter(|next| !places.contains(next)) {
                let link = self.links[at * count + next];
                let left = if next == end { 0 } else { rest[next].saturating_add(self.relays[next].into()) };
                if link == NONE || rest[next] == u64::MAX {
                    continue;
                }
                let cost = cost + u64::from(relay) + u64::from(link);
                open.push(Reverse((cost + left, length + 1, [places.as_slice(), &[next]].concat(), cost)));
            }
        }
        found
    }

    /// What it costs at least from each node to `end`, without passing the node itself.
    fn rest(&self, end: usize) -> Vec<u64> {
        let count = self.nodes.len();
        let mut rest = vec![u64::MAX; count];
        rest[end] = 0;
        let mut goes_on = true;
        while std::mem::take(&mut goes_on) {
            for at in (0..count).filter(|at| *at != end) {
                for next in (0..count).filter(|next| self.links[at * count + next] != NONE) {
                    let relay = if next == end { 0 } else { self.relays[next] };
                    if relay == NONE || rest[next] == u64::MAX {
                        continue;
                    }
                    let cost = rest[next] + u64::from(relay) + u64::from(self.links[at * count + next]);
                    if cost < rest[at] {
                        rest[at] = cost;
                        goes_on = true;
                    }
                }
            }
        }
        rest
    }

    /// The cheapest path from `from` to every other node that it leads to, in the order of nodes. Of equal ones that over the
    /// fewest links is taken, then that over the lowest nodes. Cost: about a microsecond for 5 nodes; grows with the square.
    ///
    /// Source: E. W. Dijkstra, "A note on two problems in connexion with graphs", 1959.
    pub fn paths(&self, from: NodeId) -> Vec<Path> {
        let count = self.nodes.len();
        let Some(start) = self.place(from) else { return Vec::new() };
        // Cost and links so far; what is smaller is better.
        let mut best = vec![(u64::MAX, usize::MAX); count];
        let mut before = vec![start; count];
        let mut done = vec![false; count];
        best[start] = (0, 0);
        while let Some(at) = (0..count).filter(|node| !done[*node]).min_by_key(|node| best[*node]) {
            let (cost, hops) = best[at];
            if cost == u64::MAX {
                break;
            }
            done[at] = true;
            let relay = if at == start { 0 } else { self.relays[at] };
            if relay == NONE || hops == HOPS_MAX {
                continue;
            }
            for next in 0..count {
                let link = self.links[at * count + next];
                let reached = (cost + u64::from(relay) + u64::from(link), hops + 1);
                let is_better = match reached.cmp(&best[next]) {
                    Ordering::Less => true,
                    Ordering::Equal => is_lower(&before, at, before[next]),
                    Ordering::Greater => false,
                };
                if link != NONE && !done[next] && is_better {
                    best[next] = reached;
                    before[next] = at;
                }
            }
        }
        let reached = (0..count).filter(|node| *node != start && best[*node].0 != u64::MAX);
        let path = |node: usize| {
            let mut nodes = vec![self.nodes[node]];
            let mut at = node;
            while at != start {
                at = before[at];
                nodes.push(self.nodes[at]);
            }
            nodes.reverse();
            Path { nodes, cost_us: best[node].0 }
        };
        reached.map(path).collect()
    }
}

/// Whether the path to `a` leads over lower nodes than that to `b`, at the first place where they differ. Both have as many links.
///
/// * `before`: the node before each on its path; the first node is before itself.
fn is_lower(before: &[usize], mut a: usize, mut b: usize) -> bool {
    let mut order = Ordering::Equal;
    while a != b {
        order = a.cmp(&b);
        (a, b) = (before[a], before[b]);
    }
    order == Ordering::Less
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(list: &[u16]) -> Vec<NodeId> {
        list.iter().copied().map(NodeId).collect()
    }

    /// Every node relays for nothing; links go both ways.
    fn picture(count: u16, links: &[(u16, u16, u32)]) -> Picture {
        let all: Vec<u16> = (1..=count).collect();
        let mut picture = Picture::new(nodes(&all));
        nodes(&all).into_iter().for_each(|node| picture.relay(node, 0));
        for (a, b, cost) in links {
            picture.link(NodeId(*a), NodeId(*b), *cost);
            picture.link(NodeId(*b), NodeId(*a), *cost);
        }
        picture
    }

    fn to(picture: &Picture, from: u16, to: u16) -> Option<Path> {
        picture.paths(NodeId(from)).into_iter().find(|path| path.nodes.last() == Some(&NodeId(to)))
    }

    #[test]
    fn the_direct_link_is_taken_until_a_detour_saves_more_than_a_relay_costs() {
        let near = picture(3, &[(1, 2, 2_000), (1, 3, 200), (3, 2, 200)]);
        assert_eq!(to(&near, 1, 2), Some(Path { nodes: nodes(&[1, 3, 2]), cost_us: 400 + 1_500 }));
        let far = picture(3, &[(1, 2, 1_800), (1, 3, 200), (3, 2, 200)]);
        assert_eq!(to(&far, 1, 2), Some(Path { nodes: nodes(&[1, 2]), cost_us: 1_800 }));
    }

    #[test]
    fn a_chain_is_followed_to_its_end_and_no_further_than_packets_go() {
        let links: Vec<(u16, u16, u32)> = (1..9).map(|node| (node, node + 1, 100)).collect();
        let chain = picture(9, &links);
        assert_eq!(to(&chain, 1, 8).unwrap().nodes.len(), HOPS_MAX + 1);
        assert_eq!(to(&chain, 1, 9), None);
        assert_eq!(to(&chain, 2, 9).unwrap().cost_us, 7 * 100 + 6 * 1_500);
    }

    #[test]
    fn who_does_not_relay_is_reached_and_not_passed() {
        let mut picture = Picture::new(nodes(&[1, 2, 3]));
        for (a, b) in [(1, 2), (2, 3)] {
            picture.link(NodeId(a), NodeId(b), 100);
        }
        assert_eq!(to(&picture, 1, 2).unwrap().cost_us, 100);
        assert_eq!(to(&picture, 1, 3), None);
        assert_eq!(picture.cost_us(&nodes(&[1, 2, 3])), None);
        picture.relay(NodeId(2), 50);
        assert_eq!(picture.cost_us(&nodes(&[1, 2, 3])), Some(100 + 50 + 1_500 + 100));
    }

    #[test]
    fn an_avoided_link_is_used_where_nothing_else_leads_on() {
        let picture = picture(4, &[(1, 2, AVOIDED_US), (1, 3, 100), (3, 2, 100), (2, 4, AVOIDED_US)]);
        assert_eq!(to(&picture, 1, 2).unwrap().nodes, nodes(&[1, 3, 2]));
        assert_eq!(to(&picture, 1, 4).unwrap().nodes, nodes(&[1, 3, 2, 4]));
    }

    /// The nearer relay was taken though both detours cost the same, and explained was the other one.
    #[test]
    fn of_equal_detours_that_over_the_lower_nodes_is_taken() {
        let picture = picture(5, &[(1, 5, 100), (5, 2, 300), (1, 3, 300), (3, 2, 100)]);
        let path =
            picture.paths(NodeId(1)).into_iter().find(|path| path.nodes.ends_with(&[NodeId(2)])).unwrap();
        assert_eq!(path.nodes, nodes(&[1, 3, 2]));
        assert_eq!(picture.cheapest(NodeId(1), NodeId(2), 1), [path]);
    }

    proptest! {
        /// Against trying every path.
        #[test]
        fn no_path_is_cheaper(
            links in prop::collection::vec((1_u16..6, 1_u16..6, prop_oneof![0_u32..5_000, 0_u32..3]), 0..20),
        ) {
            let picture = picture(5, &links.into_iter().filter(|(a, b, _)| a != b).collect::<Vec<_>>());
            let mut best = std::collections::BTreeMap::new();
            let mut open = vec![nodes(&[1])];
            while let Some(path) = open.pop() {
                for next in (1..6).map(NodeId).filter(|next| !path.contains(next)) {
                    let longer = [path.as_slice(), &[next]].concat();
                    if let Some(cost) = picture.cost_us(&longer) {
                        let entry = best.entry(next).or_insert(cost);
                        *entry = cost.min(*entry);
                        open.push(longer);
                    }
                }
            }
            let found: std::collections::BTreeMap<NodeId, u64> =
                picture.paths(NodeId(1)).into_iter().map(|path| (*path.nodes.last().unwrap(), path.cost_us)).collect();
            prop_assert_eq!(&found, &best);
            for path in picture.paths(NodeId(1)) {
                prop_assert_eq!(picture.cost_us(&path.nodes), Some(path.cost_us));
                let candidates = picture.cheapest(NodeId(1), *path.nodes.last().unwrap(), 1);
                prop_assert_eq!(candidates, [path]);
            }
        }

        /// Against trying every path.
        #[test]
        fn the_candidates_are_the_cheapest_ones(
            links in prop::collection::vec((1_u16..6, 1_u16..6, 0_u32..5_000), 0..20), most in 1_usize..7,
        ) {
            let picture = picture(5, &links.into_iter().filter(|(a, b, _)| a != b).collect::<Vec<_>>());
            let (mut all, mut open) = (Vec::new(), vec![nodes(&[1])]);
            while let Some(path) = open.pop() {
                for next in (1..6).map(NodeId).filter(|next| !path.contains(next)) {
                    let longer = [path.as_slice(), &[next]].concat();
                    match picture.cost_us(&longer) {
                        Some(cost_us) if next == NodeId(2) => all.push(Path { nodes: longer, cost_us }),
                        Some(_) => open.push(longer),
                        None => {}
                    }
                }
            }
            all.sort_by_key(|path| (path.cost_us, path.nodes.len(), path.nodes.clone()));
            all.truncate(most);
            prop_assert_eq!(picture.cheapest(NodeId(1), NodeId(2), most), all);
        }
    }
}
