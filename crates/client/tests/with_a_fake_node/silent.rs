//! Nodes that stand still: their connections stay, and nothing is heard on them.

use std::time::{Duration, Instant};

use swarmmq_client::{Message, ProducerOptions, SubscribeOptions};
use swarmmq_protocol::{
    error::Code,
    frame::{Frame, Leaders, Pong},
    id::NodeId,
    policy::Routing,
};
use tokio::io::AsyncReadExt;

use super::fake::{FakeNode, SHARDS, soon};

/// Long before `silence_max`, however slow the machine.
const BEFORE_LONG: Duration = Duration::from_secs(6);

fn message() -> Message {
    Message::new("shop.orders", "x")
}

/// Both nodes take clients, and this one leads everything.
fn led_by(leader: u16, home: &FakeNode, other: &FakeNode) -> Leaders {
    let nodes = vec![(NodeId(1), home.address()), (NodeId(2), other.address())];
    Leaders { nodes, shards: vec![Some(NodeId(leader)); SHARDS as usize], routing: Routing::default() }
}

#[tokio::test]
async fn who_waits_for_a_home_that_stands_still_moves_with_everything_it_has() {
    let (home, other) = (FakeNode::start().await, FakeNode::start_as(NodeId(2)).await);
    let (client, mut peer) = home.connect(home.options()).await;
    peer.send(0, &led_by(1, &home, &other)).await;
    let (consumer, _) = soon(async {
        tokio::join!(client.subscribe("shop.orders", SubscribeOptions::default()), peer.subscribe(&[]))
    })
    .await;
    let producer = client.producer(ProducerOptions::default());
    let pending = producer.enqueue(message()).await.unwrap();
    let (_, first) = peer.first_publish().await;

    // Nobody reads at home any more, and the socket stays open.
    let began = Instant::now();
    let mut moved = other.accept().await;
    assert!(began.elapsed() < BEFORE_LONG, "{:?}", began.elapsed());
    let (mut published, mut joined) = (None, false);
    while published.is_none() || !joined {
        match moved.next().await.unwrap() {
            (request, Frame::Publish(publish)) => published = Some((request, publish)),
            (_, Frame::Subscribe(_)) => joined = true,
            other => panic!("{other:?}"),
        }
    }
    let (request, again) = published.unwrap();
    assert_eq!(again.messages, first.messages, "the same bytes");
    moved.stored(request, 1).await;
    soon(pending).await.unwrap();
    while peer.next().await.is_some() {}
    drop(consumer);
}

#[tokio::test]
async fn a_home_that_speaks_before_another_one_is_there_is_kept() {
    let (home, other) = (FakeNode::start().await, FakeNode::start_as(NodeId(2)).await);
    let (client, mut peer) = home.connect(home.options()).await;
    peer.send(0, &led_by(1, &home, &other)).await;
    peer.settle_down().await;
    peer.leave_pings();
    let producer = client.producer(ProducerOptions::default());
    let pending = producer.enqueue(message()).await.unwrap();
    let (request, _) = peer.first_publish().await;
    let (ping, asked) = peer.next().await.unwrap();
    assert!(matches!(asked, Frame::Ping(_)), "{asked:?}");

    let mut attempt = other.accept_silently().await;
    peer.send(ping, &Pong).await;
    // The client hangs up there, and has asked for nothing but a proof.
    soon(attempt.read_to_end(&mut Vec::new())).await.unwrap();
    peer.stored(request, 1).await;
    soon(pending).await.unwrap();
}

#[tokio::test]
async fn a_leader_that_stands_still_is_left_for_home() {
    let (home, leader) = (FakeNode::start().await, FakeNode::start_as(NodeId(2)).await);
    let (client, mut at_home) = home.connect(home.options()).await;
    at_home.send(0, &led_by(2, &home, &leader)).await;
    at_home.settle_down().await;
    let producer = client.producer(ProducerOptions::default());
    let first = producer.enqueue(message()).await.unwrap();
    let (request, _) = at_home.first_publish().await;
    let mut direct = leader.accept().await;
    direct.settle_down().await;
    at_home.stored(request, 1).await;
    soon(first).await.unwrap();

    let second = producer.enqueue(message()).await.unwrap();
    let (_, sent) = direct.publish().await;
    let began = Instant::now();
    let (request, again) = at_home.publish().await;
    assert!(began.elapsed() < BEFORE_LONG, "{:?}", began.elapsed());
    assert_eq!(again.messages, sent.messages, "the same bytes");
    // The other copy may still arrive: a refusal of this one is not the end.
    at_home.refuse(request, Code::NotLeader).await;
    let (request, _) = at_home.publish().await;
    at_home.stored(request, 1).await;
    soon(second).await.unwrap();
    while direct.next().await.is_some() {}
}

#[tokio::test]
async fn where_there_is_no_other_node_nobody_is_asked_early() {
    let home = FakeNode::start().await;
    let (client, mut peer) = home.connect(home.options()).await;
    peer.leave_pings();
    let producer = client.producer(ProducerOptions::default());
    let pending = producer.enqueue(message()).await.unwrap();
    let (request, _) = peer.first_publish().await;
    let began = Instant::now();
    let (_, asked) = peer.next().await.unwrap();
    assert!(matches!(asked, Frame::Ping(_)), "{asked:?}");
    assert!(began.elapsed() > Duration::from_secs(2), "{:?}", began.elapsed());
    peer.stored(request, 1).await;
    soon(pending).await.unwrap();
}
