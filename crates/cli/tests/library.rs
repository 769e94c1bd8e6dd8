//! One real node on loopback, used through the client library. Here, because the server's own tests must not reach the
//! code that opens messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use swarmmq_client::{KeyLimits, Message, Options, ProducerOptions, SubscribeOptions, SwarmMq};
use swarmmq_protocol::{
    admin::{AdminAnswer, AdminRequest, Order},
    id::Address,
    time::WallTime,
};
use swarmmq_seal::{ClientKeyring, Trust};

struct Node {
    _directory: tempfile::TempDir,
    keyring: ClientKeyring,
    client: String,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn write(path: &Path, text: &str) -> PathBuf {
    std::fs::write(path, text).unwrap();
    path.to_owned()
}

/// Starts a node in a thread of this process; it ends with the process.
fn start() -> Node {
    let directory = tempfile::tempdir().unwrap();
    let mut seed = 1u64;
    let mut random = |bytes: &mut [u8]| {
        for byte in bytes {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (seed >> 56) as u8;
        }
    };
    let keyring = ClientKeyring::generate(WallTime(1), &mut random).unwrap();
    let keyring = keyring.with_trust(Trust::InsecurePlaintext).unwrap();
    write(&directory.path().join("node.keyring"), &keyring.to_node_text(&mut random).unwrap());
    let client = format!("127.0.0.1:{}", free_port());
    let admin = format!("127.0.0.1:{}", free_port());
    let peer = format!("127.0.0.1:{}", free_port());
    let config = write(
        &directory.path().join("node.toml"),
        &format!(
            "[node]\nid = 1\ndata = \"data\"\nkeyring = \"node.keyring\"\n[listen]\ninsecure_plaintext = true\nclient = \"{client}\"\nadmin = \"{admin}\"\npeer = \"{peer}\"\ngossip = \"{peer}\"\n"
        ),
    );
    swarmmq_server::init(&config, false).unwrap();
    std::thread::Builder::new()
        .name("node".into())
        .spawn(move || swarmmq_server::run(&config, None).unwrap())
        .unwrap();
    Node { _directory: directory, keyring, client }
}

async fn connect(node: &Node) -> SwarmMq {
    SwarmMq::connect(Options::new(vec![node.client.clone()], node.keyring.clone())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_through_in_every_order_and_are_settled_once() {
    let node = start();
    let client = connect(&node).await;
    for order in [Order::Total, Order::Key, Order::None] {
        let address = format!("shop.{}", order.text());
        let producer = client.producer(ProducerOptions { order: Some(order), ..ProducerOptions::default() });
        let mut pending = Vec::new();
        for n in 0..500u32 {
            let message = Message::new(&address, n.to_be_bytes().to_vec())
                .key(format!("k{}", n % 7))
                .header("n", n.to_string());
            pending.push(producer.enqueue(message).await.unwrap());
        }
        for one in pending {
            assert!(!one.await.unwrap().duplicate);
        }
        let mut consumer = client.subscribe(&address, SubscribeOptions::default()).await.unwrap();
        let mut seen = vec![0u32; 500];
        let mut last_of_key = [None; 7];
        for _ in 0..500 {
            let received = tokio::time::timeout(Duration::from_secs(10), consumer.next())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            let n = u32::from_be_bytes(received.body[..].try_into().unwrap());
            assert_eq!(received.attempt, 1);
            assert_eq!(received.key.as_deref(), Some(format!("k{}", n % 7).as_bytes()));
            seen[n as usize] += 1;
            if order != Order::None {
                let last = last_of_key[n as usize % 7].replace(n);
                assert!(last < Some(n), "{order:?}: {n} after {last:?}");
            }
            received.ack().await.unwrap();
        }
        assert!(seen.iter().all(|count| *count == 1), "{order:?}");
        consumer.close().await;
        producer.close().await;
    }
    client.close().await;
}

/// Sealed bytes as a node holds them.
async fn sealed_bytes(client: &SwarmMq, address: &str) -> u64 {
    let address = Address::parse(address).unwrap();
    let answer = client.admin(AdminRequest::AddressInfo { address }).await.unwrap();
    let Some(AdminAnswer::Address(info)) = answer else { panic!("{answer:?}") };
    info.shards.iter().map(|shard| shard.bytes).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_body_is_short_on_its_way_and_whole_at_its_end() {
    let node = start();
    let client = connect(&node).await;
    let text = "a line that is there again and again\n".repeat(500);
    let mut sealed = Vec::new();
    for compress in [false, true] {
        let address = format!("text.{compress}");
        let producer = client.producer(ProducerOptions { compress, ..ProducerOptions::default() });
        let message = Message::new(&address, text.clone()).key("k").header("h", "v");
        producer.send(message).await.unwrap();
        sealed.push(sealed_bytes(&client, &address).await);
        let mut consumer = client.subscribe(&address, SubscribeOptions::default()).await.unwrap();
        let received =
            tokio::time::timeout(Duration::from_secs(10), consumer.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(received.body, text);
        assert_eq!(received.key.as_deref(), Some(&b"k"[..]));
        received.ack().await.unwrap();
        consumer.close().await;
        producer.close().await;
    }
    assert!(sealed[0] > text.len() as u64 && sealed[1] < text.len() as u64 / 10, "{sealed:?}");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throughput_is_not_absurd() {
    let node = start();
    let client = connect(&node).await;
    let count: u64 = std::env::var("LOAD_MESSAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let began = Instant::now();
    let receiver = {
        let client = client.clone();
        tokio::spawn(async move {
            let options = SubscribeOptions {
                credit_messages: 4096,
                credit_bytes: 32 << 20,
                ..SubscribeOptions::default()
            };
            let mut consumer = client.subscribe("load", options).await.unwrap();
            let mut acks = std::collections::VecDeque::new();
            for _ in 0..count {
                let received = consumer.next().await.unwrap().unwrap();
                acks.push_back(received.ack_later());
                if acks.len() > 2048 {
                    acks.pop_front().unwrap().await.unwrap();
                }
            }
            for ack in acks {
                ack.await.unwrap();
            }
            consumer.close().await;
        })
    };
    let mut senders = Vec::new();
    for _ in 0..4 {
        let client = client.clone();
        senders.push(tokio::spawn(async move {
            let producer = client.producer(ProducerOptions { in_flight: 256, ..ProducerOptions::default() });
            let mut pending = std::collections::VecDeque::new();
            for _ in 0..count / 4 {
                pending.push_back(producer.enqueue(Message::new("load", vec![7u8; 1024])).await.unwrap());
                if pending.len() > 200 {
                    pending.pop_front().unwrap().await.unwrap();
                }
            }
            for one in pending {
                one.await.unwrap();
            }
        }));
    }
    for sender in senders {
        sender.await.unwrap();
    }
    let published = began.elapsed();
    receiver.await.unwrap();
    let all = began.elapsed();
    eprintln!(
        "published {:.0}/s, all {:.0}/s",
        count as f64 / published.as_secs_f64(),
        count as f64 / all.as_secs_f64()
    );
    assert!(all < Duration::from_secs(60), "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_life_of_a_named_producer_fences_the_one_before() {
    let node = start();
    let (first, second) = (connect(&node).await, connect(&node).await);
    let message = |body: &str| Message::new("tills.sales", body.to_owned());
    let old = first.named_producer("till-7", ProducerOptions::default()).await.unwrap();
    old.send(message("one")).await.unwrap();
    let new = second.named_producer("till-7", ProducerOptions::default()).await.unwrap();
    old.send(message("two")).await.expect("a life fences from its first message on");
    new.send(message("three")).await.unwrap();
    for _ in 0..2 {
        let refused = old.send(message("never")).await.unwrap_err();
        assert_eq!(refused.code(), "fenced", "{refused}");
    }
    new.send(message("four")).await.unwrap();
    let seen = first.peek("tills.sales", None).await.unwrap();
    let bodies: Vec<&[u8]> = seen.iter().map(|seen| &seen.body[..]).collect();
    assert_eq!(bodies, [&b"one"[..], b"two", b"three", b"four"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_change_and_wear_out_end_no_life_and_keep_every_order() {
    let node = start();
    let mut byte = 0x60;
    let (rotated, _) = node
        .keyring
        .rotated(WallTime(2), WallTime(2), &mut |out| {
            byte += 1;
            out.fill(byte);
        })
        .unwrap();
    let mut options = Options::new(vec![node.client.clone()], node.keyring.clone());
    options.key_limits = KeyLimits { messages: 3, ..KeyLimits::default() };
    let (client, reader) = (SwarmMq::connect(options).await.unwrap(), connect(&node).await);
    reader.use_keyring(rotated.clone()).await.unwrap();
    for (order, name) in [(Order::Total, "total"), (Order::Key, "key")] {
        let address = format!("keys.{name}");
        let with = ProducerOptions { order: Some(order), ..ProducerOptions::default() };
        let named = client.named_producer(&format!("till-{name}"), with).await.unwrap();
        let unnamed = client.producer(with);
        let mut pending = Vec::new();
        for n in 0..600u32 {
            if n % 50 == 49 {
                // While messages are under way.
                let keyring = if n % 100 == 49 { &rotated } else { &node.keyring };
                assert!(client.use_keyring(keyring.clone()).await.unwrap());
            }
            for (who, producer) in [(b'n', &named), (b'u', &unnamed)] {
                let body = [&[who][..], &n.to_be_bytes()].concat();
                pending.push(producer.enqueue(Message::new(&address, body).key("anna")).await.unwrap());
            }
        }
        let mut producers = BTreeSet::new();
        for one in pending {
            let receipt = one.await.unwrap();
            assert!(!receipt.duplicate);
            producers.insert((receipt.id.producer, receipt.id.epoch));
        }
        assert_eq!(producers.len(), 2, "each in its one life");
        let mut consumer = reader.subscribe(&address, SubscribeOptions::default()).await.unwrap();
        let mut next = BTreeMap::from([(b'n', 0), (b'u', 0)]);
        for _ in 0..1200 {
            let received = tokio::time::timeout(Duration::from_secs(20), consumer.next()).await.unwrap();
            let received = received.unwrap().unwrap();
            let n = u32::from_be_bytes(received.body[1..].try_into().unwrap());
            let next = next.get_mut(&received.body[0]).unwrap();
            assert_eq!((n, received.attempt), (*next, 1), "{order:?}");
            *next += 1;
            received.ack().await.unwrap();
        }
    }
}
