//! While the lead of a shard is handed over to a node that does not take it.

use super::*;

/// Messages came back while the lead was being handed over to a node that did not take it. What was proposed then was
/// dropped, and they stayed on their way back for the rest of the reign; so would horizons and settlements.
#[test]
fn what_is_proposed_while_a_lead_is_not_taken_over_is_not_lost() {
    // Nobody relays: the node that does not hear of it is not to hear of it by way of another either.
    let mut cluster = Cluster::new(0);
    (1..=3).for_each(|node| cluster.add(node, PeerHello::INGRESS | PeerHello::STORE));
    cluster.until("healthy", HEALTHY_WITHIN, |cluster| cluster.is_healthy());
    let mut sender = Sender::new(1);
    let shard = sender.shard("a", None, false);
    let index = shard.0 as usize;
    let leader = cluster.leader(shard);
    let client = cluster.connect(leader);
    cluster.make(client, "a");
    cluster.join(client, "a", "g", 1, 10);
    cluster.publish(client, &mut sender, "a");
    assert_eq!(cluster.deliveries(client).len(), 1);
    cluster.pass(Duration::from_secs(1));
    let term = cluster.node(leader).shards[index].term();
    let heir = *cluster.hosts.keys().find(|node| **node != leader).unwrap();
    cluster.slow = Some((leader, heir));
    let replica = cluster.hosts[&heir].config.replica();
    assert!(cluster.node(leader).shards[index].hand_over(Some(replica)));
    // The consumer comes again and names nothing: what it was sent never reached it.
    cluster.input(leader, Input::Disconnected { connection: client.1 });
    let back = cluster.connect(leader);
    cluster.join(back, "a", "g", 1, 10);
    cluster.publish(back, &mut sender, "a");
    cluster.pass(Duration::from_secs(1));
    assert_eq!(cluster.node(leader).shards[index].term(), term, "it still leads");
    let mut given: Vec<u32> = cluster.deliveries(back).iter().map(|item| item.attempt.0).collect();
    given.sort_unstable();
    assert_eq!(given, [1, 2]);
}
