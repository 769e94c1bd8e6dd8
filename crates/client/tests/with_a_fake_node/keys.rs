//! Payload keys that change while a client runs: what seals, what is repeated, what opens, and what becomes of the rest.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use swarmmq_client::{
    ClientKeyring, Consumer, Error, KeyId, KeyLimits, Message, Options, Order, Producer, ProducerOptions,
    SubscribeOptions, SwarmMq, WallTime,
};
use swarmmq_protocol::{
    envelope::split_sealed,
    error::Outcome,
    frame::{Publish, SettleAction},
    id::{Offset, Salt},
};

use super::fake::{FakeNode, Peer, keyring, messages, sealed, soon};

/// The keyring of these tests with one more key, which seals from the beginning on.
fn rotated() -> ClientKeyring {
    keyring(1).rotated(WallTime(0), WallTime(1), &mut |out| out.fill(0xe1)).unwrap().0
}

fn now() -> WallTime {
    WallTime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}

/// A keyring in a file of its own, gone with this.
struct File(PathBuf);

impl File {
    fn new(name: &str, keyring: &ClientKeyring) -> Self {
        let path = std::env::temp_dir().join(format!("swarmmq-{name}-{}.keyring", std::process::id()));
        let file = Self(path);
        file.replace(&keyring.to_text());
        file
    }

    /// As `swarmmq keys` does it: another file in its place.
    fn replace(&self, text: &str) {
        let new = self.0.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &self.0).unwrap();
    }

    fn options(&self, node: &FakeNode) -> Options {
        let mut options = Options::new(vec![node.address()], ClientKeyring::load(&self.0).unwrap());
        options.close_timeout = Duration::from_millis(200);
        options.keyring_look = None;
        options
    }
}

impl Drop for File {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// What the clear headers of a publish say: key, renewal, sequence, salt.
fn headers(publish: &Publish) -> Vec<(u32, u32, u64, Salt)> {
    let mut rest: &[u8] = &publish.messages;
    let mut headers = Vec::new();
    while !rest.is_empty() {
        let (message, behind) = split_sealed(rest).unwrap();
        let header = message.header();
        headers.push((header.key_id().0, header.renewal().0, header.sequence().0, header.salt()));
        rest = behind;
    }
    headers
}

async fn enqueue(producer: &Producer) -> swarmmq_client::Pending {
    soon(producer.enqueue(Message::new("shop.orders", "two apples"))).await.unwrap()
}

/// Sends one message that is stored, and tells which key and which renewal it had.
async fn send(producer: &Producer, peer: &mut Peer) -> (u32, u32) {
    let pending = enqueue(producer).await;
    let (request, publish) = peer.publish().await;
    peer.stored(request, publish.count).await;
    soon(pending).await.unwrap();
    let (key, renewal, ..) = headers(&publish)[0];
    (key, renewal)
}

async fn warm_up(client: &SwarmMq, peer: &mut Peer) -> Producer {
    let producer = client.producer(ProducerOptions::default());
    let pending = enqueue(&producer).await;
    let (request, _) = peer.first_publish().await;
    peer.stored(request, 1).await;
    soon(pending).await.unwrap();
    producer
}

#[tokio::test]
async fn a_session_goes_on_under_another_key_and_what_was_sealed_is_repeated_as_it_was() {
    let node = FakeNode::start().await;
    let (client, mut peer) = node.connect(node.options()).await;
    let producer = client.producer(ProducerOptions::default());
    let old = [enqueue(&producer).await, enqueue(&producer).await];
    let (_, before) = peer.first_publish().await;
    assert_eq!(client.use_keyring(rotated()).await, Ok(true));
    let new = [enqueue(&producer).await, enqueue(&producer).await];
    let (_, after) = peer.publish().await;
    // Nothing was answered.
    drop(peer);

    let mut peer = node.accept().await;
    let (request, again) = peer.publish().await;
    let both = [&before.messages[..], &after.messages].concat();
    assert_eq!(again.messages, both, "in order, byte for byte");
    let salt = headers(&before)[0].3;
    let expected = [(1, 0, 1, salt), (1, 0, 2, salt), (2, 1, 3, salt), (2, 1, 4, salt)];
    assert_eq!(headers(&again), expected, "one session, one row of sequences");
    peer.stored(request, 4).await;
    for pending in old.into_iter().chain(new) {
        soon(pending).await.unwrap();
    }
    let state = client.keyring_state().await.unwrap();
    assert_eq!((state.sealing_key, state.replaced, state.problem), (KeyId(2), 1, None));
}

#[tokio::test]
async fn a_key_that_is_used_up_is_followed_by_a_fresh_one_of_the_same_session() {
    let node = FakeNode::start().await;
    let mut options = node.options();
    options.key_limits = KeyLimits { messages: 3, ..KeyLimits::default() };
    let (client, mut peer) = node.connect(options).await;
    let producer = client.producer(ProducerOptions::default());
    let mut pending = Vec::new();
    for _ in 0..8 {
        pending.push(enqueue(&producer).await);
    }
    let (request, publish) = peer.first_publish().await;
    let keys: Vec<_> =
        headers(&publish).iter().map(|(key, renewal, sequence, _)| (*key, *renewal, *sequence)).collect();
    let renewals = [0, 0, 0, 1, 1, 1, 2, 2];
    assert_eq!(keys, renewals.iter().zip(1..).map(|(renewal, n)| (1, *renewal, n)).collect::<Vec<_>>());
    peer.stored(request, 8).await;
    for one in pending {
        soon(one).await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_was_replaced_is_taken_up_without_a_word() {
    let node = FakeNode::start().await;
    let file = File::new("watched", &keyring(1));
    let mut options = file.options(&node);
    options.keyring_look = Some(Duration::from_millis(5));
    let (client, mut peer) = node.connect(options).await;
    let producer = warm_up(&client, &mut peer).await;
    file.replace(&rotated().to_text());
    soon(async { while send(&producer, &mut peer).await.0 != 2 {} }).await;
    // Half of a file changes nothing, and is told to whoever asks.
    file.replace(&rotated().to_text()[..200]);
    soon(async { while client.keyring_state().await.unwrap().problem.is_none() {} }).await;
    assert_eq!(send(&producer, &mut peer).await.0, 2);
    file.replace(&rotated().to_text());
    soon(async { while client.keyring_state().await.unwrap().problem.is_some() {} }).await;
    assert_eq!(client.keyring_state().await.unwrap().replaced, 1);
}

#[tokio::test]
async fn a_key_begins_to_seal_at_its_time_and_not_before() {
    let node = FakeNode::start().await;
    let far = now().plus(Duration::from_secs(3600));
    let waiting = keyring(1).rotated(now(), far, &mut |out| out.fill(0xe1)).unwrap().0;
    let (client, mut peer) = node.connect(node.options()).await;
    let producer = warm_up(&client, &mut peer).await;
    assert_eq!(client.use_keyring(waiting).await, Ok(true));
    assert_eq!(send(&producer, &mut peer).await, (1, 0));
    let soon_active =
        keyring(1).rotated(now(), now().plus(Duration::from_millis(20)), &mut |out| out.fill(0xe2));
    assert_eq!(client.use_keyring(soon_active.unwrap().0).await, Ok(true));
    soon(async { while send(&producer, &mut peer).await != (2, 1) {} }).await;
}

#[tokio::test]
async fn a_program_is_told_what_came_of_looking_at_its_keyring() {
    let node = FakeNode::start().await;
    let file = File::new("told", &keyring(1));
    let (client, mut peer) = node.connect(file.options(&node)).await;
    let producer = warm_up(&client, &mut peer).await;
    assert_eq!(client.reload_keyring().await, Ok(false), "it is as it was");
    file.replace(&rotated().to_text());
    assert_eq!(client.reload_keyring().await, Ok(true));
    assert_eq!(send(&producer, &mut peer).await, (2, 1));
    for (text, word) in [(String::new(), "version"), (keyring(99).to_text().to_string(), "another cluster")] {
        file.replace(&text);
        let error = client.reload_keyring().await.unwrap_err();
        assert!(matches!(error, Error::Keyring { .. }) && error.to_string().contains(word), "{error}");
        assert_eq!(send(&producer, &mut peer).await, (2, 1), "the keys from before go on");
    }
    let error = client.use_keyring(keyring(99)).await.unwrap_err();
    assert!(error.to_string().contains("another cluster"), "{error}");
    assert_eq!(client.use_keyring(keyring(1)).await, Ok(true));
    assert_eq!(
        send(&producer, &mut peer).await,
        (1, 2),
        "the first key again, and not its first session key"
    );
    let error = client.reload_keyring().await.unwrap_err();
    assert!(error.to_string().contains("not loaded from a file"), "{error}");
    client.clone().close().await;
    assert_eq!(client.reload_keyring().await, Err(Error::Closed));
}

async fn consume(options: Options, patience: Duration, node: &FakeNode) -> (SwarmMq, Peer, Consumer, u32) {
    let (client, mut peer) = node.connect(options).await;
    let with = SubscribeOptions { key_patience: patience, ..SubscribeOptions::default() };
    let (consumer, subscribe) =
        soon(async { tokio::join!(client.subscribe("shop.orders", with), peer.subscribe(&[])) }).await;
    (client, peer, consumer.unwrap(), subscribe.subscription)
}

fn new_message(number: u64) -> (u64, Bytes) {
    (number, sealed(&rotated(), number))
}

#[tokio::test]
async fn a_message_whose_key_has_come_to_the_file_opens_at_once() {
    let node = FakeNode::start().await;
    let file = File::new("come", &keyring(1));
    let (client, mut peer, mut consumer, subscription) =
        consume(file.options(&node), Duration::from_secs(30), &node).await;
    file.replace(&rotated().to_text());
    peer.deliver(subscription, vec![messages([0]).remove(0), new_message(1), new_message(2)]).await;
    for offset in 0..3 {
        let received = soon(consumer.next()).await.unwrap().unwrap();
        assert_eq!((received.offset, received.attempt), (Offset(offset), 1), "in order");
    }
    assert_eq!(client.keyring_state().await.unwrap().replaced, 1);
}

#[tokio::test]
async fn a_message_whose_key_is_missing_comes_again_for_a_while_and_keeps_nothing_up() {
    let node = FakeNode::start().await;
    let (client, mut peer, mut consumer, subscription) =
        consume(node.options(), Duration::from_secs(30), &node).await;
    peer.deliver(subscription, vec![new_message(0), messages([1]).remove(0)]).await;
    assert_eq!(soon(consumer.next()).await.unwrap().unwrap().offset, Offset(1));
    let (request, settle) = peer.asked_to_settle().await;
    let item = &settle.items[0];
    assert_eq!((settle.items.len(), item.offset), (1, Offset(0)));
    assert_eq!(item.action, SettleAction::Nack { delay: Some(Duration::from_secs(1)) });
    assert_eq!(item.reason, "undecryptable: no key 2 in this keyring");
    peer.settled(request, &[(Outcome::Ok, None)]).await;

    assert_eq!(client.use_keyring(rotated()).await, Ok(true));
    peer.deliver(subscription, vec![new_message(0)]).await;
    assert_eq!(soon(consumer.next()).await.unwrap().unwrap().offset, Offset(0));
    assert_eq!(client.keyring_state().await.unwrap().undecryptable, 0);
}

#[tokio::test]
async fn a_message_whose_key_does_not_come_is_a_dead_letter_when_patience_ends() {
    let node = FakeNode::start().await;
    let file = File::new("missing", &keyring(1));
    let patience = Duration::from_millis(400);
    let (client, mut peer, mut consumer, subscription) = consume(file.options(&node), patience, &node).await;
    // The pretended node delivers again at once whatever delay it is told, so patience is all that ends this.
    let mut rounds = 0;
    peer.deliver(subscription, vec![new_message(0)]).await;
    let settle = soon(async {
        loop {
            tokio::select! {
                next = consumer.next() => {
                    let error = next.unwrap().unwrap_err();
                    assert!(error.to_string().contains("payload key 2"), "{error}");
                    break peer.asked_to_settle().await.1;
                }
                (request, settle) = peer.asked_to_settle() => {
                    assert!(matches!(settle.items[0].action, SettleAction::Nack { delay: Some(delay) } if delay <= patience));
                    rounds += 1;
                    peer.settled(request, &[(Outcome::Ok, None)]).await;
                    peer.deliver(subscription, vec![new_message(0)]).await;
                }
            }
        }
    })
    .await;
    assert!(rounds > 0, "it came again");
    assert_eq!(settle.items[0].action, SettleAction::DeadLetter);
    assert_eq!(settle.items[0].reason, "undecryptable: no key 2 in this keyring");
    assert_eq!(client.keyring_state().await.unwrap().undecryptable, 1);
}

#[tokio::test]
async fn no_nonce_repeats_over_a_thousand_producers_of_real_clients() {
    const CLIENTS: usize = 8;
    const LIVES: usize = 125;
    let mut used = std::collections::BTreeSet::new();
    for _ in 0..CLIENTS {
        let node = FakeNode::start().await;
        let mut options = node.options();
        // Clones of one keyring.
        options.keyring = ClientKeyring::parse(&keyring(1).to_text()).unwrap();
        options.key_limits = KeyLimits { messages: 2, ..KeyLimits::default() };
        let (client, mut peer) = node.connect(options).await;
        for life in 0..LIVES {
            let producer = client.producer(ProducerOptions::default());
            let pending = [enqueue(&producer).await, enqueue(&producer).await, enqueue(&producer).await];
            if life == 0 {
                peer.tell_order(Order::Total).await;
            }
            peer.open_session().await;
            let (request, publish) = peer.publish().await;
            for (key, renewal, sequence, salt) in headers(&publish) {
                // Whatever the producer is called: salt and renewal make the key, shard and sequence the nonce.
                assert!(used.insert((key, renewal, salt, publish.shard, sequence)), "a nonce repeats");
            }
            peer.stored(request, publish.count).await;
            for one in pending {
                soon(one).await.unwrap();
            }
            // Ends without a goodbye that anybody answers, as a crash does.
            drop(producer);
            peer.settle_down().await;
        }
    }
    assert_eq!(used.len(), CLIENTS * LIVES * 3);
}
