//! Consumers of a node whose way to a leader breaks and comes back.

use super::*;

/// A node that leads everything, and one that only takes clients and has a consumer of every shard, with room for ten.
fn fed() -> (Cluster, NodeId, (NodeId, ConnectionId)) {
    let mut cluster = Cluster::new(1);
    let edge = NodeId(2);
    cluster.add(2, PeerHello::INGRESS);
    cluster.until("healthy", HEALTHY_WITHIN, |cluster| cluster.is_healthy());
    cluster.pass(Duration::from_secs(1));
    let client = cluster.connect(edge);
    let answer = cluster.ask(client, &resolve("a", Order::Key));
    assert!(matches!(answer, Frame::Resolved(_)), "{answer:?}");
    cluster.join(client, "a", "g", 1, 10);
    (cluster, edge, client)
}

/// While feeds of a lost leader were opened again one after the other, credit was shared out to it for those whose turn had
/// not come. It never got there, was counted as granted when the leader was back, and nothing was delivered any more.
#[test]
fn credit_is_not_granted_to_a_leader_that_was_just_lost() {
    let (mut cluster, edge, client) = fed();
    let leader = NodeId(1);
    let now = cluster.now;
    for index in 0..SHARDS as usize {
        let (term, _) = cluster.node(edge).leaders[index].unwrap();
        // A join is under way when an answer to some other question says that its node leads no more.
        cluster.node(edge).unled(now, index);
        cluster.node(edge).led_by(now, index, term, leader);
        cluster.node(edge).unled(now, index);
    }
    cluster.run();
    let known = cluster.node(edge).leaders[..SHARDS as usize].to_vec();
    assert_eq!(known, [None; SHARDS as usize], "it has not announced itself again");
    cluster.cut(edge, leader);
    cluster.pass(Duration::from_millis(50));
    cluster.link(edge, leader);
    cluster.pass(Duration::from_secs(1));
    let mut sender = Sender::new(1);
    for _ in 0..5 {
        cluster.publish(client, &mut sender, "a");
    }
    cluster.pass(Duration::from_millis(50));
    assert_eq!(cluster.deliveries(client).len(), 5);
}
