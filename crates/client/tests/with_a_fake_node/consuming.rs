//! Leases, settlements, and messages that cannot be opened.

use std::time::Duration;

use swarmmq_client::{
    Code, Consumer, Error, Outcome, Received, StartAt, SubscribeOptions, SwarmMq, Unopened,
};
use swarmmq_protocol::{
    frame::{Frame, Held, LeaseLost, SettleAction},
    id::{Attempt, Offset, ShardId},
};

use super::fake::{FakeNode, Peer, keyring, messages, sealed, soon};

const SHORT: Duration = Duration::from_millis(300);

struct Story {
    node: FakeNode,
    client: SwarmMq,
    peer: Peer,
    consumer: Consumer,
    subscription: u32,
}

async fn start(options: SubscribeOptions) -> Story {
    let node = FakeNode::start().await;
    let (client, mut peer) = node.connect(node.options()).await;
    let (consumer, subscribe) =
        soon(async { tokio::join!(client.subscribe("shop.orders", options), peer.subscribe(&[])) }).await;
    Story { node, client, peer, consumer: consumer.unwrap(), subscription: subscribe.subscription }
}

impl Story {
    async fn deliver(&mut self, numbers: impl IntoIterator<Item = u64>) {
        self.peer.deliver(self.subscription, messages(numbers)).await;
    }

    async fn next(&mut self) -> Received {
        soon(self.consumer.next()).await.unwrap().unwrap()
    }
}

fn hasty() -> SubscribeOptions {
    SubscribeOptions { deadline: SHORT, ..SubscribeOptions::default() }
}

#[tokio::test]
async fn an_ack_of_a_lost_lease_fails_visibly() {
    let mut story = start(SubscribeOptions::default()).await;
    story.deliver([0, 1]).await;
    let (lost, kept) = (story.next().await, story.next().await);
    // Both are asked for before the driver runs, so they go out together.
    let (late, in_time) = (lost.ack_later(), kept.ack_later());
    let (request, settle) = story.peer.asked_to_settle().await;
    assert_eq!(settle.items.len(), 2);
    story.peer.settled(request, &[(Outcome::Failed, Some(Code::LeaseLost)), (Outcome::Ok, None)]).await;
    assert_eq!(soon(late).await, Err(Error::LeaseLost));
    assert_eq!(soon(in_time).await, Ok(()));
    assert_eq!(soon(kept.ack()).await, Err(Error::LeaseLost), "it is settled once");
}

#[tokio::test]
async fn an_ack_after_the_lease_was_lost_with_the_connection_fails_visibly() {
    let mut story = start(SubscribeOptions::default()).await;
    story.deliver([0]).await;
    let received = story.next().await;
    drop(story.peer);
    let mut peer = story.node.accept().await;
    let again = peer.subscribe(&[0]).await;
    let held = Held { shard: ShardId(0), offset: Offset(0), attempt: Attempt(1) };
    assert_eq!(again.held, [held], "what is held is re-claimed");
    peer.settle_down().await;
    assert_eq!(soon(received.ack()).await, Err(Error::LeaseLost));
}

#[tokio::test]
async fn an_ack_that_was_sent_is_repeated_on_the_next_connection() {
    let mut story = start(SubscribeOptions::default()).await;
    story.deliver([0]).await;
    let received = story.next().await;
    let ack = received.ack_later();
    story.peer.asked_to_settle().await;
    drop(story.peer);
    let mut peer = story.node.accept().await;
    peer.subscribe(&[]).await;
    let (request, settle) = peer.asked_to_settle().await;
    assert_eq!((settle.items[0].offset, settle.items[0].action), (Offset(0), SettleAction::Ack));
    peer.settled(request, &[(Outcome::Ok, None)]).await;
    assert_eq!(soon(ack).await, Ok(()));
}

#[tokio::test]
async fn an_ack_without_an_answer_is_unknown_at_its_deadline() {
    let mut story = start(hasty()).await;
    story.deliver([0, 1]).await;
    let (first, second) = (story.next().await, story.next().await);
    let unanswered = first.ack_later();
    story.peer.asked_to_settle().await;
    assert!(matches!(soon(unanswered).await, Err(Error::Unknown { code: Code::Deadline, .. })));
    drop((story.peer, story.node));
    assert!(matches!(soon(second.ack()).await, Err(Error::Unknown { code: Code::Deadline, .. })));
}

#[tokio::test]
async fn a_dropped_consumer_gives_back_what_it_holds_and_unsubscribes() {
    let mut story = start(SubscribeOptions::default()).await;
    story.deliver([0, 1]).await;
    let received = story.next().await;
    drop(story.consumer);
    let (request, settle) = story.peer.asked_to_settle().await;
    let actions: Vec<_> = settle.items.iter().map(|item| (item.offset.0, item.action)).collect();
    assert_eq!(actions, [(0, SettleAction::Release), (1, SettleAction::Release)]);
    story.peer.settled(request, &[(Outcome::Ok, None), (Outcome::Ok, None)]).await;
    match story.peer.next().await.unwrap() {
        (request, Frame::Unsubscribe(leaving)) => {
            assert_eq!(leaving.subscription, story.subscription);
            story.peer.ok(request).await;
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(soon(received.ack()).await, Err(Error::LeaseLost));
    drop(story.client);
}

#[tokio::test]
async fn closing_a_consumer_ends_even_if_the_node_is_gone_and_says_what_is_uncertain() {
    let mut story = start(SubscribeOptions::default()).await;
    story.deliver([0, 1]).await;
    let received = story.next().await;
    let ack = received.ack_later();
    story.peer.asked_to_settle().await;
    drop((story.peer, story.node));
    soon(story.consumer.close()).await;
    assert!(matches!(soon(ack).await, Err(Error::Unknown { .. })), "it was sent, so it may hold");
}

#[tokio::test]
async fn a_consumer_that_the_node_does_not_release_leaves_all_the_same() {
    let mut story = start(SubscribeOptions::default()).await;
    story.deliver([0]).await;
    let _received = story.next().await;
    let closing = tokio::spawn(story.consumer.close());
    story.peer.asked_to_settle().await;
    // No answer to the release. The subscription must not stay behind and go on being fed.
    match story.peer.next().await.unwrap() {
        (_, Frame::Unsubscribe(leaving)) => assert_eq!(leaving.subscription, story.subscription),
        other => panic!("{other:?}"),
    }
    soon(closing).await.unwrap();
}

#[tokio::test]
async fn a_message_whose_seal_does_not_match_is_told_and_a_dead_letter_at_once() {
    let mut story = start(SubscribeOptions::default()).await;
    // The node takes what has the right admission MAC; the payload key is another.
    let strange = vec![(0, sealed(&keyring(50), 0)), (1, sealed(&keyring(50), 1))];
    story.peer.deliver(story.subscription, strange).await;
    story.deliver([2]).await;
    story.peer.settle_down().await;

    let error = soon(story.consumer.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Open { .. }), "{error:?}");
    let (_, settle) = story.peer.asked_to_settle().await;
    assert_eq!(settle.items.len(), 1, "the second one waits until the program was told of it");
    assert_eq!(settle.items[0].offset, Offset(0));
    assert_eq!(settle.items[0].action, SettleAction::DeadLetter);
    assert_eq!(settle.items[0].reason, "undecryptable: the seal does not match");

    soon(story.consumer.next()).await.unwrap().unwrap_err();
    assert_eq!(story.next().await.offset, Offset(2), "the consumer goes on");
    assert_eq!(story.client.keyring_state().await.unwrap().undecryptable, 2);
}

#[tokio::test]
async fn a_message_that_cannot_be_opened_can_be_tried_again_as_any_other() {
    let mut story =
        start(SubscribeOptions { unopened: Unopened::Retry, ..SubscribeOptions::default() }).await;
    story.peer.deliver(story.subscription, vec![(0, sealed(&keyring(50), 0))]).await;
    soon(story.consumer.next()).await.unwrap().unwrap_err();
    let (_, settle) = story.peer.asked_to_settle().await;
    assert_eq!(settle.items[0].action, SettleAction::Nack { delay: None });
    assert!(settle.items[0].reason.starts_with("undecryptable: "), "{}", settle.items[0].reason);
}

#[tokio::test]
async fn a_message_that_was_lost_while_it_waited_here_is_not_handed_out() {
    let mut story = start(SubscribeOptions::default()).await;
    story.deliver(0..200).await;
    let item = Held { shard: ShardId(0), offset: Offset(150), attempt: Attempt(1) };
    story.peer.send(0, &LeaseLost { subscription: story.subscription, items: vec![item] }).await;
    story.peer.settle_down().await;
    let mut seen = Vec::new();
    while seen.len() < 199 {
        seen.push(story.next().await.offset.0);
    }
    assert!(!seen.contains(&150));
    assert!(story.consumer.try_next().is_none());
}

#[tokio::test]
async fn a_group_that_is_gone_is_told_and_then_the_consumer_ends() {
    let mut story = start(SubscribeOptions::default()).await;
    story.deliver(0..100).await;
    story.peer.settle_down().await;
    drop(story.peer);
    let mut peer = story.node.accept().await;
    let (request, _) = peer.asked_to_subscribe().await;
    peer.refuse(request, Code::NoSuchGroup).await;
    let error = loop {
        match soon(story.consumer.next()).await.unwrap() {
            // Whatever had been handed out before.
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Failed { code: Code::NoSuchGroup, .. }), "{error:?}");
    assert!(soon(story.consumer.next()).await.is_none());
}

#[tokio::test]
async fn a_subscription_without_an_answer_fails_in_time_and_leaves_nothing_behind() {
    let node = FakeNode::start().await;
    let (client, mut peer) = node.connect(node.options()).await;
    let joining = client.subscribe("shop.orders", hasty());
    let (result, (request, subscribe)) =
        soon(async { tokio::join!(joining, peer.asked_to_subscribe()) }).await;
    assert!(matches!(result, Err(Error::Failed { code: Code::Deadline, .. })), "{result:?}");
    match peer.next().await.unwrap() {
        (_, Frame::Unsubscribe(leaving)) => assert_eq!(leaving.subscription, subscribe.subscription),
        other => panic!("{request} {other:?}"),
    }
}

#[tokio::test]
async fn a_start_that_took_effect_before_the_connection_broke_is_not_held_against_the_consumer() {
    let node = FakeNode::start().await;
    let (client, mut peer) = node.connect(node.options()).await;
    let options = SubscribeOptions { start: Some(StartAt::End), ..SubscribeOptions::default() };
    let joining = tokio::spawn(async move { client.subscribe("shop.orders", options).await.map(|_| ()) });
    assert_eq!(peer.asked_to_subscribe().await.1.start, Some(StartAt::End));
    drop(peer);
    let mut peer = node.accept().await;
    let (request, _) = peer.asked_to_subscribe().await;
    peer.refuse(request, Code::Exists).await;
    assert_eq!(peer.subscribe(&[]).await.start, None);
    soon(joining).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_start_for_a_group_that_exists_is_refused() {
    let node = FakeNode::start().await;
    let (client, mut peer) = node.connect(node.options()).await;
    let options = SubscribeOptions { start: Some(StartAt::End), ..SubscribeOptions::default() };
    let refusing = async {
        let (request, _) = peer.asked_to_subscribe().await;
        peer.refuse(request, Code::Exists).await;
    };
    let (result, ()) = soon(async { tokio::join!(client.subscribe("shop.orders", options), refusing) }).await;
    assert!(matches!(result, Err(Error::Failed { code: Code::Exists, .. })), "{result:?}");
}
