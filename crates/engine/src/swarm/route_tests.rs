//! Several swarms over links and datagrams that can be cut: which paths packets take.

use swarmmq_protocol::{
    mac::MacKey,
    route::{LinkFault, RouteCandidate, RouteWhy},
    session::peer::PeerHello,
};

use super::{damping::Why, *};

const STEP: Duration = Duration::from_millis(5);

/// A turn of a swarm, or what a liar does instead.
type Turn = fn(&mut Swarm, Instant, &mut Sending);

pub(super) struct World {
    pub now: Instant,
    pub swarms: BTreeMap<NodeId, Swarm>,
    /// Between whom nothing passes, though their connections stay.
    holes: BTreeSet<(NodeId, NodeId)>,
    /// Round trip of a pair, in microseconds.
    pub rtt: BTreeMap<(NodeId, NodeId), u64>,
    /// Part by which round trips vary, in percent.
    pub noise: u64,
    /// What arrives when: from whom to whom, what.
    under_way: Vec<(Instant, NodeId, NodeId, Item)>,
    /// Nodes that do nothing.
    pub stopped: BTreeSet<NodeId>,
    /// A node that does something else.
    pub liar: Option<(NodeId, Turn)>,
    pub changes: Vec<(Instant, NodeId, NodeId, Option<Vec<NodeId>>)>,
    chance: u64,
}

enum Item {
    Datagram(Bytes),
    Probe(Instant),
    Echo(Instant),
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

pub(super) fn node(number: u16) -> NodeId {
    NodeId(number)
}

fn secret(node: NodeId) -> NodeSecret {
    NodeSecret::new([node.0 as u8; 32])
}

impl World {
    pub fn new(count: u16) -> Self {
        let now = Instant(1_000_000_000);
        let key = |node: NodeId| Acquaintance { incarnation: 1, key: secret(node).public() };
        let known: BTreeMap<NodeId, Acquaintance> =
            (1..=count).map(node).map(|node| (node, key(node))).collect();
        let mut world = Self {
            now,
            swarms: BTreeMap::new(),
            holes: BTreeSet::new(),
            rtt: BTreeMap::new(),
            noise: 0,
            under_way: Vec::new(),
            stopped: BTreeSet::new(),
            liar: None,
            changes: Vec::new(),
            chance: 88_172_645_463_325_252,
        };
        for id in known.keys() {
            let config = Config {
                me: Me { node: *id, incarnation: 1, boot: 1 },
                roles: 7,
                release: "test".into(),
                secret: secret(*id),
                cluster: ClusterId(7),
                cluster_secret: MacKey::new([9; 32]).into(),
                seed: u64::from(id.0),
            };
            let mut swarm = Swarm::new(config, now);
            swarm.know(now, known.clone());
            world.swarms.insert(*id, swarm);
        }
        for (a, b) in world.pairs() {
            world.open(a, b);
        }
        world.pass(1_000);
        assert!(world.pairs().iter().all(|(a, b)| world.is_direct(*a, *b)), "healthy");
        world.changes.clear();
        world
    }

    pub fn pairs(&self) -> Vec<(NodeId, NodeId)> {
        let nodes: Vec<NodeId> = self.swarms.keys().copied().collect();
        nodes.iter().flat_map(|a| nodes.iter().filter(move |b| *b > a).map(|b| (*a, *b))).collect()
    }

    fn open(&mut self, a: NodeId, b: NodeId) {
        let now = self.now;
        self.swarm(a).link_opened(now, b);
        self.swarm(b).link_opened(now, a);
    }

    fn swarm(&mut self, node: NodeId) -> &mut Swarm {
        self.swarms.get_mut(&node).unwrap()
    }

    pub fn hole(&mut self, a: u16, b: u16) {
        self.holes.insert(pair(node(a), node(b)));
    }

    fn is_direct(&self, a: NodeId, b: NodeId) -> bool {
        self.path(a.0, b.0) == Some(vec![a.0, b.0]) && self.path(b.0, a.0) == Some(vec![b.0, a.0])
    }

    fn path(&self, from: u16, to: u16) -> Option<Vec<u16>> {
        let path = self.swarms[&node(from)].path(node(to))?;
        Some(path.iter().map(|node| node.0).collect())
    }

    /// Whether packets of one get to the other.
    pub fn works(&self, from: NodeId, to: NodeId) -> bool {
        let path = self.swarms[&from].path(to);
        path.is_some_and(|path| path.windows(2).all(|hop| !self.holes.contains(&pair(hop[0], hop[1]))))
    }

    fn one_way(&mut self, from: NodeId, to: NodeId) -> Duration {
        let us = self.rtt.get(&pair(from, to)).copied().unwrap_or(200) / 2;
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        let part = 100 - self.noise + self.chance % (2 * self.noise + 1);
        Duration::from_micros(us * part / 100)
    }

    fn send(&mut self, from: NodeId, to: NodeId, item: Item) {
        if !self.holes.contains(&pair(from, to)) {
            let at = self.now + self.one_way(from, to);
            self.under_way.push((at, from, to, item));
        }
    }

    pub fn pass(&mut self, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        while self.now < until {
            self.step();
        }
    }

    pub fn step(&mut self) {
        let end = self.now + STEP;
        while let Some(first) = (0..self.under_way.len())
            .filter(|item| self.under_way[*item].0 <= end)
            .min_by_key(|item| self.under_way[*item].0)
        {
            let (at, from, to, item) = self.under_way.swap_remove(first);
            self.now = at.max(self.now);
            if self.stopped.contains(&to) || self.holes.contains(&pair(from, to)) {
                continue;
            }
            let now = self.now;
            match item {
                Item::Datagram(bytes) => self.swarm(to).datagram(now, &bytes).unwrap(),
                Item::Probe(stamp) => {
                    self.swarm(to).heard(now, from);
                    self.send(to, from, Item::Echo(stamp));
                }
                Item::Echo(stamp) => self.swarm(to).answered(now, from, now.since(stamp)),
            }
        }
        self.now = end;
        for id in self.swarms.keys().copied().collect::<Vec<_>>() {
            if self.stopped.contains(&id) {
                continue;
            }
            let now = self.now;
            let mut out = Sending::default();
            let liar = self.liar.filter(|(liar, _)| *liar == id);
            liar.map_or(Swarm::turn as Turn, |(_, lie)| lie)(self.swarm(id), now, &mut out);
            let changed = self.swarm(id).reroute(now);
            self.changes.extend(changed.into_iter().map(|(to, path)| (now, id, to, path)));
            out.datagrams.into_iter().for_each(|(to, bytes)| self.send(id, to, Item::Datagram(bytes)));
            out.probes.into_iter().for_each(|to| self.send(id, to, Item::Probe(now)));
        }
    }

    /// Milliseconds until `test` holds.
    fn until(&mut self, most: u64, test: impl Fn(&Self) -> bool) -> u64 {
        let from = self.now;
        while !test(self) {
            assert!(self.now.since(from) < Duration::from_millis(most), "not within {most} ms");
            self.step();
        }
        self.now.since(from).as_millis() as u64
    }
}

/// Three nodes, and a link between the first two that has just failed four times.
fn flapped() -> World {
    let mut world = World::new(3);
    for _ in 0..4 {
        world.hole(1, 2);
        world.pass(600);
        world.holes.clear();
        world.pass(1_500);
    }
    world
}

#[test]
fn a_cut_between_two_is_passed_by_way_of_a_third_and_healed() {
    let mut world = World::new(5);
    world.hole(1, 2);
    let took = world.until(600, |world| world.works(node(1), node(2)) && world.works(node(2), node(1)));
    assert!(took > 200, "nobody could know after {took} ms");
    let others = world.changes.iter().filter(|(_, from, to, _)| pair(*from, *to) != pair(node(1), node(2)));
    assert_eq!(others.count(), 0, "only that pair is concerned");
    world.holes.clear();
    // What was lost in the hole counts against the link until it is forgotten.
    world.until(20_000, |world| world.is_direct(node(1), node(2)));
    assert!(matches!(world.swarms[&node(1)].choices[&node(2)].why, Why::Cheaper { .. }));
    world.changes.clear();
    world.pass(20_000);
    assert_eq!(world.changes, [], "and then all is quiet");
}

#[test]
fn a_detour_is_explained_by_the_figures_that_it_was_chosen_by() {
    let mut world = World::new(5);
    world.hole(1, 2);
    world.until(600, |world| world.works(node(1), node(2)));
    world.pass(200);
    let said = world.swarms[&node(1)].explain(world.now, node(2));
    assert_eq!((said.route.why, said.route.before.as_slice()), (RouteWhy::Broken, &[node(1), node(2)][..]));
    assert_eq!((&said.candidates[0].path, said.candidates.len()), (&said.route.path, 5));
    assert_eq!(said.route.cost_us, Some(said.candidates[0].cost_us()));
    assert!(said.candidates.is_sorted_by_key(RouteCandidate::cost_us));
    let link = |from: u16, to: u16| {
        said.links.iter().find(|link| (link.from, link.to) == (node(from), node(to))).unwrap()
    };
    let relay = said.route.path[1];
    let (first, second) = (link(1, relay.0), link(relay.0, 2));
    assert!(first.is_own && !second.is_own);
    assert_eq!(second.words.iter().map(|word| word.by).collect::<Vec<_>>(), [relay, node(2)]);
    let links_us = first.cost_us.unwrap() + second.cost_us.unwrap();
    let passed = said.relays.iter().find(|view| view.node == relay).unwrap();
    assert_eq!(said.candidates[0].links_us, u64::from(links_us));
    assert_eq!(said.candidates[0].relays_us, u64::from(passed.cost_us.unwrap()));
    assert_eq!(passed.cost_us, Some(passed.surcharge_us + passed.lag_us));
    let direct = &said.links[0];
    assert_eq!((direct.to, direct.cost_us), (node(2), Some(AVOIDED_US)));
    assert!(direct.faults.iter().any(|fault| fault == LinkFault::Silent), "{direct:?}");
    assert!(direct.penalty > 900 && direct.until_ms == 0, "once is no pattern: {direct:?}");
    assert!(said.next.starts_with("at once if a link or relay on it fails"), "{}", said.next);
}

#[test]
fn a_link_that_is_left_alone_says_until_when() {
    let mut world = flapped();
    let said = world.swarms[&node(1)].explain(world.now, node(2));
    let direct = &said.links[0];
    assert!(direct.faults.iter().any(|fault| fault == LinkFault::Suppressed), "{direct:?}");
    let itself = world.swarms[&node(1)].explain(world.now, node(1));
    assert!(itself.candidates.is_empty() && itself.route.path.is_empty(), "{itself:?}");
    let routes = world.swarms[&node(1)].routes(world.now);
    assert_eq!(routes.iter().map(|route| route.to).collect::<Vec<_>>(), [node(2), node(3)]);
    world.pass(u64::from(direct.until_ms));
    let later = &world.swarms[&node(1)].explain(world.now, node(2)).links[0];
    assert!(later.faults.iter().all(|fault| fault != LinkFault::Suppressed), "{direct:?}, {later:?}");
}

#[test]
fn a_chain_of_links_is_enough() {
    let mut world = World::new(5);
    for (a, b) in world.pairs() {
        if b.0 != a.0 + 1 {
            world.hole(a.0, b.0);
        }
    }
    world.until(1_000, |world| world.pairs().iter().all(|(a, b)| world.works(*a, *b) && world.works(*b, *a)));
    assert_eq!(world.path(1, 5), Some(vec![1, 2, 3, 4, 5]));
    world.changes.clear();
    world.pass(60_000);
    assert_eq!(world.changes, []);
}

/// How many times as much as usual is measured.
fn length() -> u64 {
    option_env!("SWARMMQ_ROUTE_LENGTH").map_or(1, |text| text.parse().expect("a number"))
}

#[test]
fn a_detour_that_is_faster_is_taken_and_left_again() {
    for direct_ms in [8, 20, 60] {
        let mut world = World::new(3);
        world.rtt.insert(pair(node(1), node(2)), direct_ms * 1_000);
        let taken = world.until(5_000, |world| world.path(1, 2) == Some(vec![1, 3, 2]));
        let swarm = &world.swarms[&node(1)];
        let picture = swarm.picture(world.now);
        let used = picture.cost_us(swarm.path(node(2)).unwrap()).unwrap();
        let best = picture.cheapest(node(1), node(2), 1)[0].cost_us;
        eprintln!("{direct_ms} ms or a detour: taken after {taken} ms, costs {used} us of {best} us at best");
        assert!(used * 10 <= best * 11);
        world.rtt.clear();
        world.until(60_000, |world| world.is_direct(node(1), node(2)));
    }
}

#[test]
fn noise_changes_nothing() {
    let mut world = World::new(5);
    for (a, b) in world.pairs() {
        world.rtt.insert((a, b), 10_000);
    }
    world.pass(10_000);
    world.noise = 20;
    world.changes.clear();
    let seconds = 300 * length();
    world.pass(seconds * 1_000);
    eprintln!("{} changes in {seconds} s of noise, of 20 paths", world.changes.len());
    assert_eq!(world.changes, []);
}

#[test]
fn a_node_that_stops_or_ends_is_not_looked_for_elsewhere() {
    let mut world = World::new(5);
    world.stopped.insert(node(5));
    world.pass(300);
    world.stopped.clear();
    world.pass(5_000);
    assert_eq!(world.changes, [], "a pause of 300 ms");
    world.stopped.insert(node(5));
    world.pass(3_000);
    assert_eq!(world.changes, [], "it is silent everywhere");
    let now = world.now;
    for other in 1..=4 {
        world.swarm(node(other)).link_closed(now, node(5), true);
    }
    world.pass(100);
    assert_eq!(world.changes.len(), 4, "{:?}", world.changes);
    assert!(world.changes.iter().all(|(_, _, to, path)| *to == node(5) && path.is_none()));
}

#[test]
fn a_connection_that_ends_is_replaced_by_a_detour_at_once() {
    let mut world = World::new(5);
    let now = world.now;
    world.swarm(node(1)).link_closed(now, node(2), false);
    let changed = world.swarm(node(1)).reroute(now);
    assert!(matches!(&changed[..], [(to, Some(path))] if *to == node(2) && path.len() == 3), "{changed:?}");
}

#[test]
fn a_link_that_fails_again_and_again_is_left_alone_for_a_while() {
    let mut world = flapped();
    assert_eq!(world.path(1, 2), Some(vec![1, 3, 2]));
    world.changes.clear();
    world.pass(10_000);
    assert_eq!(world.path(1, 2), Some(vec![1, 3, 2]), "it is not trusted yet");
    world.until(60_000, |world| world.is_direct(node(1), node(2)));
}

/// The baseline for comparisons: what every queue without an overlay does.
#[test]
fn a_static_policy_takes_open_links_and_nothing_else() {
    let mut world = World::new(5);
    world.hole(1, 2);
    world.until(600, |world| world.works(node(1), node(2)));
    let now = world.now;
    for id in 1..=5 {
        world.swarm(node(id)).set_policy(Policy::StaticHash);
        world.swarm(node(id)).reroute(now);
    }
    assert!(world.is_direct(node(1), node(2)), "though nothing comes through");
    world.pass(5_000);
    assert!(world.is_direct(node(1), node(2)));
    let now = world.now;
    world.swarm(node(1)).link_closed(now, node(3), false);
    world.pass(500);
    assert_eq!(world.path(1, 3), None, "no link, no way");
    for id in 1..=5 {
        world.swarm(node(id)).set_policy(Policy::LeastCost);
    }
    world.until(600, |world| world.works(node(1), node(2)) && world.works(node(1), node(3)));
}

#[test]
fn the_last_path_is_never_given_up() {
    let mut world = World::new(2);
    for _ in 0..4 {
        world.hole(1, 2);
        world.pass(600);
        world.holes.clear();
        world.pass(600);
    }
    world.hole(1, 2);
    world.pass(5_000);
    assert!(world.is_direct(node(1), node(2)));
}

#[test]
fn who_does_not_relay_is_not_passed() {
    let mut world = World::new(3);
    world.swarm(node(3)).config.roles = PeerHello::INGRESS | PeerHello::STORE;
    world.pass(1_000);
    world.hole(1, 2);
    world.pass(3_000);
    assert!(world.is_direct(node(1), node(2)), "there is no other way");
}

#[test]
fn a_relay_that_says_that_it_cannot_is_left() {
    let mut world = World::new(4);
    world.hole(1, 2);
    world.until(600, |world| world.works(node(1), node(2)));
    let relay = node(world.path(1, 2).unwrap()[1]);
    let now = world.now;
    let other = if relay == node(3) { node(4) } else { node(3) };
    assert!(
        !world.swarm(node(1)).path_broken(now, (relay, other), node(2)),
        "of a path that was left before"
    );
    assert!(world.swarm(node(1)).reroute(now).is_empty());
    assert!(world.swarm(node(1)).path_broken(now, (relay, node(2)), node(2)));
    let changed = world.swarm(node(1)).reroute(now);
    assert!(matches!(&changed[..], [(_, Some(path))] if path[1] != relay), "{changed:?}");
    assert!(!world.swarm(node(1)).path_broken(now, (relay, node(2)), node(2)), "that path is not in use");
}

/// Nodes 1 to 5 have 1,024 sets of links. Each is cut out of a healthy cluster; whoever is still connected must be reached.
#[test]
fn whatever_links_are_left_are_used() {
    let healthy = World::new(5);
    let pairs = healthy.pairs();
    drop(healthy);
    let mut took = Vec::new();
    // Every eleventh mask here; all of them with the whole cluster in the simulator.
    for mask in (0_u32..1 << pairs.len()).step_by(11) {
        let mut world = World::new(5);
        let cut = pairs.iter().enumerate().filter(|(bit, _)| mask & 1 << bit == 0);
        world.holes = cut.map(|(_, pair)| *pair).collect();
        let mut side: BTreeMap<NodeId, NodeId> = world.swarms.keys().map(|node| (*node, *node)).collect();
        for _ in 0..5 {
            for (a, b) in pairs.iter().filter(|pair| !world.holes.contains(pair)) {
                let low = side[a].min(side[b]);
                side.insert(*a, low);
                side.insert(*b, low);
            }
        }
        let ends: Vec<(NodeId, NodeId)> = pairs.iter().copied().filter(|(a, b)| side[a] == side[b]).collect();
        took.push(
            world.until(2_000, |world| ends.iter().all(|(a, b)| world.works(*a, *b) && world.works(*b, *a))),
        );
    }
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    assert!(p99 <= 600, "{took:?}");
}
