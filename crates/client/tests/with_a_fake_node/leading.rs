//! Going to leaders directly, and what happens when one is not there.

use std::time::Instant;

use swarmmq_client::{Address, Message, Pending, Producer, ProducerOptions, SwarmMq};
use swarmmq_protocol::{
    error::Code,
    frame::{Frame, GoAway, Leaders},
    id::NodeId,
    policy::Routing,
};

use super::fake::{FakeNode, LONG, Peer, SHARDS, soon};

/// Everything is led by node 2, which is said to listen there.
fn led_by(leader: String, home: &FakeNode) -> Leaders {
    let nodes = vec![(NodeId(1), home.address()), (NodeId(2), leader)];
    Leaders { nodes, shards: vec![Some(NodeId(2)); SHARDS as usize], routing: Routing::default() }
}

fn message() -> Message {
    Message::new("shop.orders", "x")
}

/// A client at home with node 1 that knows of a leader, and what its first message brought home, not answered yet.
async fn informed(home: &FakeNode, leader: String) -> (SwarmMq, Producer, Peer, u64, Pending) {
    let (client, mut peer) = home.connect(home.options()).await;
    peer.send(0, &led_by(leader, home)).await;
    peer.settle_down().await;
    let producer = client.producer(ProducerOptions::default());
    let pending = producer.enqueue(message()).await.unwrap();
    let (request, _) = peer.first_publish().await;
    (client, producer, peer, request, pending)
}

#[tokio::test]
async fn messages_go_to_the_leader_and_home_when_it_is_gone() {
    let (home, leader) = (FakeNode::start().await, FakeNode::start_as(NodeId(2)).await);
    let (client, producer, mut at_home, request, first) = informed(&home, leader.address()).await;
    let mut direct = leader.accept().await;
    direct.settle_down().await;
    let second = producer.enqueue(message()).await.unwrap();
    at_home.settle_down().await;
    at_home.stored(request, 1).await;
    soon(first).await.unwrap();
    let (request, _) = direct.publish().await;
    direct.stored(request, 1).await;
    soon(second).await.unwrap();

    let third = producer.enqueue(message()).await.unwrap();
    let (_, sent) = direct.publish().await;
    drop(direct);
    let (request, again) = at_home.publish().await;
    assert_eq!(again.messages, sent.messages, "the same bytes");
    at_home.refuse(request, Code::NotLeader).await;
    let (request, _) = at_home.publish().await;
    at_home.stored(request, 1).await;
    soon(third).await.unwrap();
    drop((client, producer));
}

#[tokio::test]
async fn a_leader_that_cannot_be_reached_costs_nothing() {
    let home = FakeNode::start().await;
    // Nobody listens there any more.
    let nowhere = FakeNode::start().await.address();
    let (client, producer, mut peer, request, first) = informed(&home, nowhere).await;
    peer.stored(request, 1).await;
    soon(first).await.unwrap();
    let began = Instant::now();
    for _ in 0..20 {
        let pending = producer.enqueue(message()).await.unwrap();
        let (request, _) = peer.publish().await;
        peer.stored(request, 1).await;
        soon(pending).await.unwrap();
    }
    assert!(began.elapsed() < LONG / 8, "{:?}", began.elapsed());
    drop(client);
}

#[tokio::test]
async fn another_node_under_the_leaders_address_is_left_at_once() {
    let (home, stranger) = (FakeNode::start().await, FakeNode::start_as(NodeId(3)).await);
    let (client, producer, mut at_home, request, first) = informed(&home, stranger.address()).await;
    let mut direct = stranger.accept().await;
    assert!(direct.next().await.is_none(), "the client leaves without a word");
    at_home.stored(request, 1).await;
    soon(first).await.unwrap();
    let second = producer.enqueue(message()).await.unwrap();
    let (request, _) = at_home.publish().await;
    at_home.stored(request, 1).await;
    soon(second).await.unwrap();
    drop(client);
}

#[tokio::test]
async fn a_leader_that_stops_gets_nothing_new_and_may_still_answer() {
    let (home, leader) = (FakeNode::start().await, FakeNode::start_as(NodeId(2)).await);
    let (client, producer, mut at_home, request, first) = informed(&home, leader.address()).await;
    let mut direct = leader.accept().await;
    direct.settle_down().await;
    at_home.stored(request, 1).await;
    soon(first).await.unwrap();
    let second = producer.enqueue(message()).await.unwrap();
    let (request, _) = direct.publish().await;
    direct.send(0, &GoAway { reason: "the node is stopping".into() }).await;
    direct.settle_down().await;
    let third = producer.enqueue(message()).await.unwrap();
    at_home.settle_down().await;
    direct.stored(request, 1).await;
    soon(second).await.unwrap();
    assert!(direct.next().await.is_none(), "it is left when it has answered");
    let (request, _) = at_home.publish().await;
    at_home.stored(request, 1).await;
    soon(third).await.unwrap();
    drop(client);
}

#[tokio::test]
async fn a_client_that_was_told_one_server_moves_to_another_node_when_home_stops() {
    let (home, other) = (FakeNode::start().await, FakeNode::start_as(NodeId(2)).await);
    let (client, mut peer) = home.connect(home.options()).await;
    peer.send(0, &led_by(other.address(), &home)).await;
    peer.send(0, &GoAway { reason: "the node is stopping".into() }).await;
    let mut moved = other.accept().await;
    assert!(peer.next().await.is_none(), "the client has left");
    let producer = client.producer(ProducerOptions::default());
    let pending = producer.enqueue(message()).await.unwrap();
    let (request, _) = moved.first_publish().await;
    moved.stored(request, 1).await;
    soon(pending).await.unwrap();
}

#[tokio::test]
async fn who_does_not_want_to_know_does_not_ask() {
    let home = FakeNode::start().await;
    for direct in [true, false] {
        let mut options = home.options();
        options.direct = direct;
        let (client, mut peer) = home.connect(options).await;
        let address = Address::parse("shop.orders").unwrap();
        let asking = client.resolve(&address, false, None);
        let answering = async {
            let (request, frame) = peer.next().await.unwrap();
            assert!(matches!(frame, Frame::Resolve(_)), "{frame:?}");
            peer.refuse(request, Code::NoSuchAddress).await;
        };
        let (refused, ()) = soon(async { tokio::join!(asking, answering) }).await;
        assert!(refused.is_err());
        assert_eq!(peer.watched(), direct);
    }
}
