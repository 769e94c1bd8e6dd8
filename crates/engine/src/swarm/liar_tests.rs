//! One node of five lies, and signs it properly: it is near to everybody, has nothing to do, and does not hear anybody else.

use bytes::BytesMut;
use swarmmq_protocol::datagram;

use super::{
    report::{Accusation, Accusations, SignedAccusations},
    route_tests::{World, node},
    *,
};

const LIAR: u16 = 3;
/// A quarter of the twelve ways that lead from one of the other four to another.
const CAPTURED_MAX: usize = 3;

/// What the liar does instead of its turn: it answers and relays as usual, and what it says is wrong.
fn lie(swarm: &mut Swarm, now: Instant, out: &mut Sending) {
    let gossip = &swarm.gossip;
    out.probes = swarm.links.look(now, |node| gossip.heard_at(node)).probes;
    let me = swarm.config.me.node;
    let others: Vec<NodeId> = swarm.known.keys().copied().filter(|node| *node != me).collect();
    let near = |to: &NodeId| LinkReport { to: *to, session: 1, is_up: true, rtt_us: 0, loss_permille: 0 };
    swarm.gossip.say(now, 7, "test", Load::default(), others.iter().map(near).collect(), false);
    let due = swarm.gossip.turn(now);
    let detector = &swarm.gossip.detector;
    // Always the latest beat, so that no earlier one has refuted it yet.
    let accused = others.iter().map(|node| Accusation {
        node: *node,
        life: detector.life(*node).unwrap(),
        beat: detector.beat(*node),
        is_gone: false,
    });
    let version = now.0 / 1_000_000;
    let said = Accusations { node: me, life: swarm.gossip.life, version, accused: accused.collect() };
    swarm.gossip.own.accusations = Some((SignedAccusations::new(said, &swarm.config.secret), now));
    for (to, is_answer) in due {
        let (header, body) = swarm.gossip.compose(now, to, is_answer).unwrap();
        let mut bytes = BytesMut::new();
        body.encode(&mut bytes);
        let tag = datagram::cluster_tag(swarm.config.cluster);
        out.datagrams
            .push((to, datagram::seal(tag, &header, &bytes, &swarm.gossip.others[&to].pair.current)));
    }
}

/// Five nodes 10 ms apart, with noise.
fn world(far_us: u64) -> World {
    let mut world = World::new(5);
    for (a, b) in world.pairs() {
        let is_far = a == node(LIAR) || b == node(LIAR);
        world.rtt.insert((a, b), if is_far { far_us } else { 10_000 });
    }
    world.noise = 20;
    world.pass(10_000);
    world.liar = Some((node(LIAR), lie));
    world
}

/// Ways between two of the others that lead by way of the liar.
fn captured(world: &World) -> usize {
    let passes = |from: &NodeId, swarm: &Swarm| {
        let others = world.swarms.keys().filter(|to| *to != from && **to != node(LIAR));
        others.filter(|to| swarm.path(**to).is_some_and(|path| path.contains(&node(LIAR)))).count()
    };
    let honest = world.swarms.iter().filter(|(node, _)| node.0 != LIAR);
    honest.map(|(node, swarm)| passes(node, swarm)).sum()
}

/// Whom honest nodes call dead.
fn condemned(world: &World) -> Vec<(NodeId, NodeId)> {
    let honest = world.swarms.iter().filter(|(node, _)| node.0 != LIAR);
    let pairs = honest.flat_map(|(by, swarm)| world.swarms.keys().map(move |whom| (*by, swarm, *whom)));
    let dead = pairs.filter(|(_, swarm, whom)| swarm.verdict(*whom) == Verdict::Dead);
    dead.map(|(by, _, whom)| (by, whom)).collect()
}

/// Runs for 30 s. The most ways that are captured at once, and for how long in all, in milliseconds, some are.
fn suffer(world: &mut World) -> (usize, u64) {
    let end = world.now + Duration::from_secs(30);
    let (mut most, mut lasted) = (0, 0);
    while world.now < end {
        world.step();
        most = most.max(captured(world));
        lasted += 5 * u64::from(captured(world) > 0);
        assert_eq!(condemned(world), []);
    }
    let said = world.swarms[&node(1)].gossip.report(node(LIAR)).unwrap();
    assert!(said.links.iter().all(|link| link.rtt_us == 0), "its lies are heard");
    (most, lasted)
}

#[test]
fn who_claims_to_be_near_captures_nothing_where_links_are_good() {
    for far_us in [200, 10_000, 60_000] {
        let mut world = world(far_us);
        let is_shortcut = far_us == 200;
        let before = captured(&world);
        let (most, lasted) = suffer(&mut world);
        eprintln!(
            "liar {far_us} us away: {before} ways by way of it before, {most} at most, for {lasted} ms"
        );
        if is_shortcut {
            assert_eq!((before, most), (12, 12), "it is near indeed: that is no lie, and was so before");
        } else {
            assert_eq!((before, most, lasted), (0, 0, 0));
        }
    }
}

#[test]
fn who_claims_to_be_near_is_not_taken_for_a_detour_when_it_is_far() {
    let mut world = world(60_000);
    world.hole(1, 2);
    let (most, lasted) = suffer(&mut world);
    eprintln!("a liar that is far, one link cut: {most} ways at most, for {lasted} ms");
    assert!(most <= CAPTURED_MAX && lasted <= 5_000, "{most} for {lasted} ms");
    assert!(world.works(node(1), node(2)) && world.works(node(2), node(1)));
}

#[test]
fn a_liar_that_is_as_near_as_others_gets_no_more_than_its_share_of_detours() {
    let mut world = world(10_000);
    world.hole(1, 2);
    let (most, _) = suffer(&mut world);
    assert!(most <= 2, "only the two ways that need a detour: {most}");
}

#[test]
fn accusations_condemn_nobody_who_stops_for_less_than_a_second() {
    let mut world = world(10_000);
    for stopped in [1, 2, 4, 5, 1] {
        world.stopped.insert(node(stopped));
        let end = world.now + Duration::from_millis(900);
        while world.now < end {
            world.step();
            assert_eq!(condemned(&world), []);
        }
        world.stopped.clear();
        let (_, lasted) = suffer(&mut world);
        assert!(lasted <= 5_000, "{lasted}");
    }
}
