//! What a round of gossip costs in time. Prints; run it in release.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant as Clock},
};

use swarmmq_engine::swarm::{
    detector::Verdict,
    gossip::{Acquaintance, Gossip, Me},
    report::Load,
};
use swarmmq_protocol::{
    id::{ClusterId, NodeId},
    mac::MacKey,
    node_key::NodeSecret,
    time::Instant,
};

#[test]
fn a_round_of_gossip() {
    for (count, rounds) in [(5_u16, 2_000), (64, 100)] {
        let mut now = Instant::from_millis(1000);
        let secret = |node| NodeSecret::new([node as u8; 32]);
        let known: BTreeMap<_, _> = (1..=count)
            .map(|node| (NodeId(node), Acquaintance { incarnation: 1, key: secret(node).public() }))
            .collect();
        let mut nodes: Vec<Gossip> = (1..=count)
            .map(|node| {
                let me = Me { node: NodeId(node), incarnation: 1, boot: 1 };
                let mut gossip =
                    Gossip::new(me, secret(node), ClusterId(1), MacKey::new([9; 32]).into(), 1, now);
                gossip.know(now, &known);
                gossip.say(now, 7, "0.1.0", Load::default(), Vec::new(), false);
                gossip
            })
            .collect();
        let mut out = Vec::new();
        let mut sent = 0;
        let mut begin = Clock::now();
        for round in 0..rounds + 20 {
            if round == 20 {
                (begin, sent) = (Clock::now(), 0);
            }
            now = now + Duration::from_millis(105);
            for from in 0..nodes.len() {
                nodes[from].poll(now, &mut out);
                sent += out.len();
                for (to, bytes) in out.drain(..) {
                    nodes[usize::from(to.0) - 1].datagram(now, &bytes).expect("all of them know each other");
                }
            }
        }
        let spent = begin.elapsed().as_nanos() / (u128::from(count) * rounds);
        let datagrams = sent as f64 / (f64::from(count) * rounds as f64);
        eprintln!(
            "{count} nodes: {spent} ns per node and round, {datagrams:.1} datagrams out and as many in"
        );
        let alive = |gossip: &Gossip| known.keys().all(|node| gossip.verdict(*node) == Verdict::Alive);
        assert!(nodes.iter().all(alive));
    }
}

#[test]
fn keys_and_signatures() {
    let (a, b) = (NodeSecret::new([1; 32]), NodeSecret::new([2; 32]));
    let (text, cluster) = ([7; 200], MacKey::new([3; 32]));
    let signature = a.sign("swarmmq/cost/v1", &[&text]);
    let time = |what: &str, step: &dyn Fn() -> bool| {
        let begin = Clock::now();
        assert!((0..1000).all(|_| step()));
        eprintln!("{what}: {} ns", begin.elapsed().as_nanos() / 1000);
    };
    time("sign", &|| a.sign("swarmmq/cost/v1", &[&text]) == signature);
    time("verify", &|| a.public().verify("swarmmq/cost/v1", &[&text], &signature));
    time("key of a pair", &|| {
        a.pair_key(&b.public(), ClusterId(1), &cluster, NodeId(1), NodeId(2)).is_some()
    });
}
