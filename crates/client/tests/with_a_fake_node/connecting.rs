//! Making, checking, mending and ending connections.

use std::time::{Duration, Instant};

use swarmmq_client::{
    ClusterId, Code, Error, Message, Options, Outcome, ProducerOptions, SubscribeOptions, SwarmMq,
};
use swarmmq_protocol::frame::{Frame, GoAway, Pong};
use tokio::io::AsyncReadExt;

use super::fake::{FakeNode, LONG, keyring, soon};

const SHORT: Duration = Duration::from_millis(300);

async fn refused(options: Options) -> Error {
    soon(SwarmMq::connect(options)).await.unwrap_err()
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable_within_the_deadline() {
    let address = FakeNode::start().await.address();
    let mut options = Options::new(vec![address.clone()], keyring(1));
    options.connect_timeout = SHORT;
    let began = Instant::now();
    let error = refused(options).await;
    assert!(matches!(&error, Error::Unreachable { servers, .. } if *servers == address), "{error:?}");
    assert_eq!((error.outcome(), error.exit_code()), (Outcome::Failed, 3));
    assert!(began.elapsed() >= SHORT, "it may come up");
    assert!(began.elapsed() < LONG / 4);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_unreachable_within_the_deadline() {
    let node = FakeNode::start().await;
    let mut options = node.options();
    options.connect_timeout = SHORT;
    let began = Instant::now();
    let error = refused(options).await;
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(2), "not even one whole attempt");
}

#[tokio::test]
async fn without_servers_it_is_unreachable_at_once() {
    let error = refused(Options::new(Vec::new(), keyring(1))).await;
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_wrong_token_is_told_at_once() {
    let node = FakeNode::start().await;
    let options = Options::new(vec![node.address()], keyring(100));
    let error = tokio::select! {
        error = refused(options) => error,
        _ = node.accept() => panic!("the token is wrong"),
    };
    assert!(matches!(error, Error::Failed { code: Code::Unauthenticated, .. }), "{error:?}");
}

#[tokio::test]
async fn one_wrong_server_among_good_ones_does_no_harm() {
    let (good, wrong) = (FakeNode::start().await, FakeNode::start().await);
    let refusing = async {
        loop {
            // What a server with another token does: it takes the hello and says no, or closes.
            drop(wrong.accept_silently().await);
        }
    };
    let mut options = good.options();
    options.servers = vec![wrong.address(), good.address()];
    let client = tokio::select! {
        (client, _) = good.connect(options) => client,
        () = refusing => unreachable!("it goes on for ever"),
    };
    assert_eq!(client.cluster(), ClusterId(5));
}

#[tokio::test]
async fn what_is_repeated_never_goes_to_another_cluster() {
    let node = FakeNode::start().await;
    let (client, mut peer) = node.connect(node.options()).await;
    let producer = client.producer(ProducerOptions::default());
    let pending = producer.enqueue(Message::new("shop.orders", "x")).await.unwrap();
    let (_, first) = peer.first_publish().await;
    drop(peer);

    let mut other = node.accept_as(ClusterId(6)).await;
    assert!(other.next().await.is_none(), "the client leaves without a word");

    let mut peer = node.accept().await;
    let (request, again) = peer.publish().await;
    assert_eq!(again.messages, first.messages);
    peer.stored(request, 1).await;
    soon(pending).await.unwrap();
}

#[tokio::test]
async fn a_node_that_falls_silent_is_left_and_one_that_answers_is_not() {
    let node = FakeNode::start().await;
    let mut options = node.options();
    options.silence_max = Duration::from_millis(200);
    let (client, mut peer) = node.connect(options).await;
    peer.leave_pings();
    for _ in 0..3 {
        match peer.next().await.unwrap() {
            (request, Frame::Ping(_)) => peer.send(request, &Pong).await,
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(peer.next().await.unwrap(), (_, Frame::Ping(_))));
    // No answer: a second connection is made while the first one is still open on this side.
    let _second = node.accept().await;
    assert!(peer.next().await.is_none());
    drop(client);
}

#[tokio::test]
async fn a_connection_attempt_that_nobody_waits_for_leaves_nothing_behind() {
    let node = FakeNode::start().await;
    let connecting = tokio::spawn(SwarmMq::connect(node.options()));
    let mut stream = node.accept_silently().await;
    connecting.abort();
    let mut bytes = Vec::new();
    // Ends when the driver has closed its socket.
    soon(stream.read_to_end(&mut bytes)).await.unwrap();
}

#[tokio::test]
async fn closing_says_goodbye_to_shards_and_groups() {
    let node = FakeNode::start().await;
    let (client, mut peer) = node.connect(node.options()).await;
    let producer = client.producer(ProducerOptions::default());
    let pending = producer.enqueue(Message::new("shop.orders", "x")).await.unwrap();
    let (request, _) = peer.first_publish().await;
    peer.stored(request, 1).await;
    soon(pending).await.unwrap();
    let (consumer, _) = soon(async {
        tokio::join!(client.subscribe("shop.orders", SubscribeOptions::default()), peer.subscribe(&[]))
    })
    .await;
    let mut consumer = consumer.unwrap();

    let closing = tokio::spawn(client.close());
    let mut said = Vec::new();
    for _ in 0..2 {
        let (request, frame) = peer.next().await.unwrap();
        match frame {
            Frame::CloseSession(_) => said.push("session"),
            Frame::Unsubscribe(_) => said.push("group"),
            other => panic!("{other:?}"),
        }
        peer.ok(request).await;
    }
    said.sort_unstable();
    assert_eq!(said, ["group", "session"]);
    soon(closing).await.unwrap();
    assert!(peer.next().await.is_none());
    assert!(soon(consumer.next()).await.is_none());
    assert_eq!(producer.send(Message::new("shop.orders", "x")).await, Err(Error::Closed));
}

#[tokio::test]
async fn a_node_that_stops_or_dies_is_left_for_another_one() {
    let nodes = (FakeNode::start().await, FakeNode::start().await);
    let mut options = nodes.0.options();
    options.servers = vec![nodes.0.address(), nodes.1.address()];
    let connecting = tokio::spawn(SwarmMq::connect(options));
    let (peer, mut at, mut other) = soon(async {
        tokio::select! {
            peer = nodes.0.accept() => (peer, &nodes.0, &nodes.1),
            peer = nodes.1.accept() => (peer, &nodes.1, &nodes.0),
        }
    })
    .await;
    let client = soon(connecting).await.unwrap().unwrap();
    let producer = client.producer(ProducerOptions::default());
    let pending = producer.enqueue(Message::new("shop.orders", "x")).await.unwrap();
    let mut peer = peer;
    let (_, first) = peer.first_publish().await;
    for stops in [true, false] {
        if stops {
            peer.send(0, &GoAway { reason: "the node is stopping".into() }).await;
            let next = other.accept().await;
            assert!(peer.next().await.is_none(), "the client has left");
            peer = next;
        } else {
            drop(peer);
            peer = other.accept().await;
        }
        std::mem::swap(&mut at, &mut other);
        let (_, again) = peer.publish().await;
        assert_eq!(again.messages, first.messages, "what had no answer is repeated there");
    }
    drop((pending, client));
}
