//! What looking for paths costs in time. Prints; its bars hold in release, on a machine that is not busy otherwise.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant as Clock},
};

use swarmmq_engine::swarm::{
    Config, Sending, Swarm,
    gossip::{Acquaintance, Me},
    path::Picture,
};
use swarmmq_protocol::{
    id::{ClusterId, NodeId},
    mac::MacKey,
    node_key::NodeSecret,
    time::Instant,
};

/// The shortest of many: what else the machine does is not of interest.
fn shortest(times: usize, mut step: impl FnMut()) -> Duration {
    let one = || {
        let begin = Clock::now();
        step();
        begin.elapsed()
    };
    std::iter::repeat_with(one).take(times).min().expect("at least one")
}

fn judge(what: &str, took: Duration, bar: Duration) {
    eprintln!("{what}: {} ns (bar {} us)", took.as_nanos(), bar.as_micros());
    assert!(cfg!(debug_assertions) || took <= bar, "{what}: {took:?}, not {bar:?}");
}

/// A full mesh in which every link costs something else, so that detours are worth a look.
fn mesh(count: u16) -> Picture {
    let nodes: Vec<NodeId> = (1..=count).map(NodeId).collect();
    let mut picture = Picture::new(nodes.clone());
    for a in &nodes {
        picture.relay(*a, 0);
        for b in nodes.iter().filter(|b| *b != a) {
            picture.link(*a, *b, (u32::from(a.0) * 7919 + u32::from(b.0) * 104_729) % 20_000);
        }
    }
    picture
}

#[test]
fn all_paths_of_a_node() {
    for (count, times, bar_us) in [(5, 1_000, 20), (64, 100, 500), (200, 20, 5_000)] {
        let mut paths = Vec::new();
        let took = shortest(times, || paths = mesh(count).paths(NodeId(1)));
        assert_eq!(paths.len(), usize::from(count) - 1);
        assert!(paths.iter().any(|path| path.nodes.len() > 2), "a mesh without a detour says little");
        let what = format!("picture and paths, {count} nodes");
        judge(&what, took, Duration::from_micros(bar_us));
    }
}

/// Swarms that have gossiped until each has everybody's report, over links that are all open.
fn gossiped(count: u16) -> (Instant, BTreeMap<NodeId, Swarm>) {
    let mut now = Instant::from_millis(1_000);
    let secret = |node: NodeId| NodeSecret::new([node.0 as u8; 32]);
    let known: BTreeMap<NodeId, Acquaintance> = (1..=count)
        .map(|node| (NodeId(node), Acquaintance { incarnation: 1, key: secret(NodeId(node)).public() }))
        .collect();
    let swarm = |node: NodeId| {
        let config = Config {
            me: Me { node, incarnation: 1, boot: 1 },
            roles: 7,
            release: "test".into(),
            secret: secret(node),
            cluster: ClusterId(7),
            cluster_secret: MacKey::new([9; 32]).into(),
            seed: 1,
        };
        let mut swarm = Swarm::new(config, now);
        swarm.know(now, known.clone());
        known.keys().filter(|other| **other != node).for_each(|other| swarm.link_opened(now, *other));
        (node, swarm)
    };
    let mut swarms: BTreeMap<NodeId, Swarm> = known.keys().map(|node| swarm(*node)).collect();
    let has_all = |swarm: &Swarm| {
        known.keys().all(|node| swarm.report(*node).is_some_and(|said| said.links.len() + 1 == known.len()))
    };
    for _ in 0..100 {
        now = now + Duration::from_millis(100);
        let mut under_way = Vec::new();
        for swarm in swarms.values_mut() {
            let mut out = Sending::default();
            swarm.turn(now, &mut out);
            under_way.append(&mut out.datagrams);
            out.probes.into_iter().for_each(|to| swarm.answered(now, to, Duration::from_millis(1)));
        }
        for (to, bytes) in under_way {
            swarms.get_mut(&to).expect("all are known").datagram(now, &bytes).expect("all are genuine");
        }
        if swarms.values().all(has_all) {
            return (now, swarms);
        }
    }
    panic!("not everybody has everything after ten seconds");
}

/// All that a node does when something changed: the picture from everybody's reports, the paths, the comparison with those in use.
#[test]
fn a_look_at_all_routes() {
    for (count, times, bar_us) in [(5, 1_000, 20), (64, 50, 2_000)] {
        let (mut now, mut swarms) = gossiped(count);
        let swarm = swarms.get_mut(&NodeId(1)).expect("it is the first one");
        let took = shortest(times, || {
            now = now + Duration::from_micros(200);
            let neighbour = NodeId(2);
            swarm.path_broken(now, (NodeId(1), neighbour), neighbour);
            swarm.reroute(now);
        });
        assert_eq!(
            swarm.choices().filter(|(_, choice)| choice.path.is_some()).count(),
            usize::from(count) - 1
        );
        judge(&format!("a look at all routes, {count} nodes"), took, Duration::from_micros(bar_us));
    }
}
