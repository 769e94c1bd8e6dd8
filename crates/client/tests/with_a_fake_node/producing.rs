//! What becomes of messages when answers are lost, late or bad.

use std::time::Duration;

use swarmmq_client::{Code, Error, Message, Order, Outcome, Pending, Producer, ProducerOptions, SwarmMq};
use swarmmq_protocol::frame::{Frame, Published, PublishedRun};

use super::fake::{FakeNode, Peer, soon};

const SHORT: Duration = Duration::from_millis(300);

async fn start() -> (FakeNode, SwarmMq, Peer) {
    let node = FakeNode::start().await;
    let (client, peer) = node.connect(node.options()).await;
    (node, client, peer)
}

fn hasty(client: &SwarmMq) -> Producer {
    client.producer(ProducerOptions { deadline: SHORT, ..ProducerOptions::default() })
}

async fn enqueue(producer: &Producer) -> Pending {
    soon(producer.enqueue(Message::new("shop.orders", "two apples"))).await.unwrap()
}

async fn error_of(pending: Pending) -> Error {
    soon(pending).await.unwrap_err()
}

/// Sends one message that is stored, so that order and session are known.
async fn warm_up(producer: &Producer, peer: &mut Peer) {
    let pending = enqueue(producer).await;
    let (request, _) = peer.first_publish().await;
    peer.stored(request, 1).await;
    soon(pending).await.unwrap();
}

#[tokio::test]
async fn a_reconnect_repeats_the_same_bytes() {
    let (node, client, mut peer) = start().await;
    let producer = client.producer(ProducerOptions::default());
    let pending = [enqueue(&producer).await, enqueue(&producer).await];
    let (_, first) = peer.first_publish().await;
    assert_eq!(first.count, 2);
    drop(peer);

    let mut peer = node.accept().await;
    let (request, again) = peer.publish().await;
    assert_eq!((again.shard, again.count), (first.shard, first.count));
    assert_eq!(again.messages, first.messages);
    let run = PublishedRun { count: 2, outcome: Outcome::Ok, code: 0, duplicate: true, first_offset: None };
    peer.send(request, &Published { runs: vec![run] }).await;
    for one in pending {
        let receipt = soon(one).await.unwrap();
        assert!(receipt.duplicate, "it had arrived the first time");
    }
}

#[tokio::test]
async fn a_message_that_was_sent_and_not_answered_is_unknown_at_its_deadline() {
    let (_node, client, mut peer) = start().await;
    let producer = hasty(&client);
    let pending = enqueue(&producer).await;
    let (_, _) = peer.first_publish().await;
    let error = error_of(pending).await;
    assert!(matches!(error, Error::Unknown { code: Code::Deadline, .. }), "{error:?}");
}

#[tokio::test]
async fn a_message_that_never_left_has_failed_at_its_deadline() {
    let (node, client, mut peer) = start().await;
    let producer = hasty(&client);
    // The order of the address is asked for and never told.
    let pending = enqueue(&producer).await;
    peer.asked_for_order().await;
    let error = error_of(pending).await;
    assert!(matches!(error, Error::Failed { code: Code::Deadline, .. }), "{error:?}");
    assert_eq!(error.exit_code(), 3);

    // The node is gone: nothing can be sent at all.
    drop((peer, node));
    let error = error_of(enqueue(&producer).await).await;
    assert!(matches!(error, Error::Failed { code: Code::Deadline, .. }), "{error:?}");
}

#[tokio::test]
async fn messages_that_were_never_sent_do_not_pile_up_while_the_node_is_gone() {
    let (node, client, mut peer) = start().await;
    let options =
        ProducerOptions { in_flight: 2, deadline: Duration::from_millis(10), ..ProducerOptions::default() };
    let patient = ProducerOptions { deadline: Duration::from_secs(20), ..options };
    let producer = client.producer(options);
    let other = client.producer(patient);
    warm_up(&other, &mut peer).await;
    drop(peer);
    for _ in 0..20 {
        let error = error_of(enqueue(&producer).await).await;
        assert!(matches!(error, Error::Failed { code: Code::Deadline, .. }), "{error:?}");
    }
    let mut peer = node.accept().await;
    peer.open_session().await;
    match peer.next().await.unwrap() {
        (_, Frame::Skip(skip)) => {
            assert_eq!(skip.first.0, 1);
            assert!(skip.last.0 <= 4, "only so many were given a sequence: {}", skip.last.0);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_made_now_is_asked_for_again() {
    let (_node, client, mut peer) = start().await;
    let producer = client.producer(ProducerOptions::default());
    let pending = enqueue(&producer).await;
    for _ in 0..3 {
        let request = peer.asked_for_order().await;
        peer.refuse(request, Code::NotLeader).await;
    }
    let (request, _) = peer.first_publish().await;
    peer.stored(request, 1).await;
    soon(pending).await.unwrap();
}

#[tokio::test]
async fn producers_that_want_different_orders_are_judged_one_by_one() {
    let (_node, client, mut peer) = start().await;
    let by_key = client.producer(ProducerOptions { order: Some(Order::Key), ..ProducerOptions::default() });
    let any = client.producer(ProducerOptions::default());
    let (refused, taken) = (enqueue(&by_key).await, enqueue(&any).await);
    let request = peer.asked_for_order().await;
    peer.refuse(request, Code::OrderConflict).await;
    let (request, _) = peer.first_publish().await;
    peer.stored(request, 1).await;
    soon(taken).await.unwrap();
    let error = error_of(refused).await;
    assert!(matches!(error, Error::Failed { code: Code::OrderConflict, .. }), "{error:?}");
}

#[tokio::test]
async fn an_address_that_was_removed_is_made_again_by_the_next_message() {
    let (_node, client, mut peer) = start().await;
    let producer = client.producer(ProducerOptions::default());
    warm_up(&producer, &mut peer).await;
    let pending = enqueue(&producer).await;
    let (request, _) = peer.publish().await;
    let gone = PublishedRun {
        count: 1,
        outcome: Outcome::Failed,
        code: Code::NoSuchAddress.number(),
        duplicate: false,
        first_offset: None,
    };
    peer.send(request, &Published { runs: vec![gone] }).await;
    match peer.next().await.unwrap() {
        (request, Frame::Skip(_)) => peer.ok(request).await,
        other => panic!("{other:?}"),
    }
    let error = error_of(pending).await;
    assert!(matches!(error, Error::Failed { code: Code::NoSuchAddress, .. }), "{error:?}");

    let pending = enqueue(&producer).await;
    peer.tell_order(Order::Total).await;
    let (request, _) = peer.publish().await;
    peer.stored(request, 1).await;
    soon(pending).await.unwrap();
}

#[tokio::test]
async fn a_dropped_producer_still_sends_what_was_handed_over() {
    let (_node, client, mut peer) = start().await;
    let producer = client.producer(ProducerOptions::default());
    let pending = enqueue(&producer).await;
    drop(producer);
    let (request, _) = peer.first_publish().await;
    peer.stored(request, 1).await;
    soon(pending).await.unwrap();
    assert!(matches!(peer.next().await.unwrap(), (_, Frame::CloseSession(_))));
}

#[tokio::test]
async fn a_producer_of_a_fenced_session_goes_on_with_a_fresh_one() {
    let (_node, client, mut peer) = start().await;
    let producer = client.producer(ProducerOptions::default());
    warm_up(&producer, &mut peer).await;
    let pending = enqueue(&producer).await;
    let (request, _) = peer.publish().await;
    let fenced = PublishedRun {
        count: 1,
        outcome: Outcome::Failed,
        code: Code::Fenced.number(),
        duplicate: false,
        first_offset: None,
    };
    peer.send(request, &Published { runs: vec![fenced] }).await;
    assert_eq!(error_of(pending).await.outcome(), Outcome::Unknown);

    let pending = enqueue(&producer).await;
    peer.open_session().await;
    let (request, _) = peer.publish().await;
    peer.stored(request, 1).await;
    let receipt = soon(pending).await.unwrap();
    assert_eq!(receipt.id.sequence.0, 1, "under another name, so counted anew");
}

#[tokio::test]
async fn closing_a_producer_ends_even_if_the_node_is_gone() {
    let (node, client, mut peer) = start().await;
    let producer = hasty(&client);
    let pending = enqueue(&producer).await;
    let (_, _) = peer.first_publish().await;
    drop((peer, node));
    soon(producer.close()).await;
    let error = error_of(pending).await;
    assert!(matches!(error, Error::Unknown { .. }), "{error:?}");
}

#[tokio::test]
async fn closing_the_client_says_which_messages_may_be_stored() {
    let (_node, client, mut peer) = start().await;
    let producer = client.producer(ProducerOptions::default());
    let sent = enqueue(&producer).await;
    let (_, _) = peer.first_publish().await;
    let never_sent = soon(producer.enqueue(Message::new("another.address", "x"))).await.unwrap();
    peer.asked_for_order().await;
    soon(client.close()).await;
    assert!(matches!(error_of(sent).await, Error::Unknown { .. }));
    assert_eq!(error_of(never_sent).await, Error::Closed);
}

#[tokio::test]
async fn closing_the_client_ends_even_if_the_node_has_stopped_reading() {
    let (_node, client, mut peer) = start().await;
    let producer = client.producer(ProducerOptions::default());
    warm_up(&producer, &mut peer).await;
    let mut pending = Vec::new();
    for _ in 0..32 {
        // Far more than sockets hold.
        pending.push(producer.enqueue(Message::new("shop.orders", vec![7; 1 << 20])).await.unwrap());
    }
    soon(client.close()).await;
    for one in pending {
        assert!(matches!(error_of(one).await, Error::Unknown { .. }));
    }
    drop(peer);
}

#[tokio::test]
async fn flush_returns_when_every_fate_is_known() {
    let (_node, client, mut peer) = start().await;
    let producer = client.producer(ProducerOptions::default());
    let pending = [enqueue(&producer).await, enqueue(&producer).await];
    let (request, publish) = peer.first_publish().await;
    tokio::select! {
        biased;
        () = producer.flush() => panic!("two messages have no fate yet"),
        () = peer.settle_down() => {}
    }
    peer.stored(request, publish.count).await;
    soon(producer.flush()).await;
    for one in pending {
        // Ready already: flush came after the answers.
        one.await.unwrap();
    }
}
