//! Clients that want to know who leads.

use swarmmq_protocol::frame::{Leaders, WatchLeaders};

use super::*;

fn lists(cluster: &mut Cluster, client: (NodeId, ConnectionId)) -> Vec<Leaders> {
    let lists = cluster.take(client).into_iter().map(|(_, frame)| frame);
    let list = |frame| if let Frame::Leaders(list) = frame { list } else { panic!("{frame:?}") };
    lists.map(list).collect()
}

#[test]
fn who_asks_is_told_who_leads_and_told_again_when_that_changes() {
    let mut cluster = healthy(5);
    let (client, other) = (cluster.connect(NodeId(1)), cluster.connect(NodeId(1)));
    let Frame::Leaders(first) = cluster.ask(client, &Frame::WatchLeaders(WatchLeaders)) else { panic!() };
    let leads = |cluster: &Cluster| (0..SHARDS).map(|n| Some(cluster.leader(ShardId(n)))).collect::<Vec<_>>();
    assert_eq!(first.shards, leads(&cluster));
    let doors: Vec<(NodeId, String)> = (1..=5).map(|n| (NodeId(n), format!("client{n}"))).collect();
    assert_eq!(first.nodes, doors);
    cluster.pass(Duration::from_secs(1));
    assert_eq!(lists(&mut cluster, client), [], "nothing changed");

    let victim = first.shards.iter().flatten().copied().find(|node| *node != NodeId(1)).unwrap();
    cluster.kill(victim);
    cluster.until("others lead", Duration::from_secs(10), |cluster| {
        let leads = &cluster.hosts[&NodeId(1)].node.as_ref().unwrap().leaders;
        leads.iter().flatten().filter(|(_, node)| *node != victim).count() == leads.len()
    });
    cluster.pass(Duration::from_millis(200));
    let told = lists(&mut cluster, client);
    assert_eq!(told.last().unwrap().shards, leads(&cluster));
    assert!(told.len() <= 20, "as seldom as was said: {}", told.len());
    assert_eq!(lists(&mut cluster, other), [], "who does not ask is not told");
}

#[test]
fn a_node_that_knows_nothing_yet_says_so_and_more_later() {
    let mut world = World::new();
    let connection = world.connect();
    let Frame::Leaders(list) = world.ask(connection, &Frame::WatchLeaders(WatchLeaders)) else { panic!() };
    assert_eq!(list.nodes, [], "this one takes clients nowhere that it could name");
    assert_eq!(list.shards.len(), SHARDS as usize);
}
