//! Home moves to the node that leads what is consumed, and only when that costs nothing.

use swarmmq_client::{Consumer, SubscribeOptions, SwarmMq};
use swarmmq_protocol::{error::Outcome, frame::Leaders, id::NodeId, policy::Routing};

use super::fake::{FakeNode, Peer, SHARDS, messages, soon};

/// A consumer at home with node 1, and what that was asked.
async fn consuming(home: &FakeNode) -> (SwarmMq, Consumer, Peer, u32) {
    let (client, mut peer) = home.connect(home.options()).await;
    let (consumer, subscribe) = soon(async {
        tokio::join!(client.subscribe("shop.orders", SubscribeOptions::default()), peer.subscribe(&[]))
    })
    .await;
    (client, consumer.unwrap(), peer, subscribe.subscription)
}

/// Node 2 is said to be where `leader` listens, and node `leads` to lead everything.
async fn tell(peer: &mut Peer, home: &FakeNode, leader: &FakeNode, leads: NodeId) {
    let nodes = vec![(NodeId(1), home.address()), (NodeId(2), leader.address())];
    let leaders = Leaders { nodes, shards: vec![Some(leads); SHARDS as usize], routing: Routing::default() };
    peer.send(0, &leaders).await;
}

#[tokio::test]
async fn a_consumer_goes_to_the_leader_of_its_messages() {
    let (home, leader) = (FakeNode::start().await, FakeNode::start_as(NodeId(2)).await);
    let (client, mut consumer, mut peer, subscription) = consuming(&home).await;
    tell(&mut peer, &home, &leader, NodeId(2)).await;
    let mut there = leader.accept().await;
    let again = there.subscribe(&[]).await;
    assert_eq!((again.subscription, again.held.len(), again.start), (subscription, 0, None));
    assert!(peer.next().await.is_none(), "home is left");
    there.deliver(subscription, messages([0])).await;
    assert_eq!(soon(consumer.next()).await.unwrap().unwrap().body[..], 0u64.to_be_bytes());
    assert!(there.watched(), "it asks its new home who leads");
    drop(client);
}

#[tokio::test]
async fn a_consumer_that_holds_something_stays_until_that_is_settled() {
    let (home, leader) = (FakeNode::start().await, FakeNode::start_as(NodeId(2)).await);
    let (client, mut consumer, mut peer, subscription) = consuming(&home).await;
    peer.deliver(subscription, messages([0])).await;
    let received = soon(consumer.next()).await.unwrap().unwrap();
    tell(&mut peer, &home, &leader, NodeId(2)).await;
    let mut there = leader.accept().await;
    peer.settle_down().await;
    let ack = received.ack_later();
    let (request, _) = peer.asked_to_settle().await;
    peer.settled(request, &[(Outcome::Ok, None)]).await;
    assert_eq!(soon(ack).await, Ok(()));
    there.subscribe(&[]).await;
    assert!(peer.next().await.is_none(), "home is left");
    drop(client);
}

#[tokio::test]
async fn another_node_under_the_leaders_address_is_no_home() {
    let (home, leader) = (FakeNode::start().await, FakeNode::start_as(NodeId(3)).await);
    let (client, mut consumer, mut peer, subscription) = consuming(&home).await;
    tell(&mut peer, &home, &leader, NodeId(2)).await;
    let mut there = leader.accept().await;
    assert!(there.next().await.is_none(), "it is left at once");
    peer.deliver(subscription, messages([0])).await;
    soon(consumer.next()).await.unwrap().unwrap();
    drop(client);
}

#[tokio::test]
async fn a_lead_that_moves_on_meanwhile_is_not_followed() {
    let (home, leader) = (FakeNode::start().await, FakeNode::start_as(NodeId(2)).await);
    let (client, mut consumer, mut peer, subscription) = consuming(&home).await;
    peer.deliver(subscription, messages([0])).await;
    let received = soon(consumer.next()).await.unwrap().unwrap();
    tell(&mut peer, &home, &leader, NodeId(2)).await;
    let mut there = leader.accept().await;
    tell(&mut peer, &home, &leader, NodeId(1)).await;
    assert!(there.next().await.is_none(), "the second connection is given up");
    let ack = received.ack_later();
    let (request, _) = peer.asked_to_settle().await;
    peer.settled(request, &[(Outcome::Ok, None)]).await;
    assert_eq!(soon(ack).await, Ok(()));
    peer.settle_down().await;
    drop(client);
}
