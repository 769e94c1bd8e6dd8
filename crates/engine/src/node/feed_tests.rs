//! Consumers of a node whose way to a leader breaks and comes back.

use super::*;

/// A node that leads everything, and one that only takes clients and has a consumer of every shard, with room for ten.
fn fed() -> (Cluster, NodeId, (NodeId, ConnectionId)) {
    let mut cluster = Cluster::new(1);
    let edge = NodeId(2);
    cluster.add(2, PeerHello::INGRESS);
    cluster.until("healthy", HEALTHY_WITHIN, |cluster| cluster.is_healthy());
    cluster.pass(Duration::from_secs(1));
    let client = cluster.connect(edge);
    let answer = cluster.ask(client, &resolve("a", Order::Key));
    assert!(matches!(answer, Frame::Resolved(_)), "{answer:?}");
    cluster.join(client, "a", "g", 1, 10);
    (cluster, edge, client)
}

/// While feeds of a lost leader were opened again one after the other, credit was shared out to it for those whose turn had
/// not come. It never got there, was counted as granted when the leader was back, and nothing was delivered any more.
#[test]
fn credit_is_not_granted_to_a_leader_that_was_just_lost() {
    let (mut cluster, edge, client) = fed();
    let leader = NodeId(1);
    let now = cluster.now;
    for index in 0..SHARDS as usize {
        let (term, _) = cluster.node(edge).leaders[index].unwrap();
        // A join is under way when an answer to some other question says that its node leads no more.
        cluster.node(edge).unled(now, index);
        cluster.node(edge).led_by(now, index, term, leader);
        cluster.node(edge).unled(now, index);
    }
    cluster.run();
    let known = cluster.node(edge).leaders[..SHARDS as usize].to_vec();
    assert_eq!(known, [None; SHARDS as usize], "it has not announced itself again");
    cluster.cut(edge, leader);
    cluster.pass(Duration::from_millis(50));
    cluster.link(edge, leader);
    cluster.pass(Duration::from_secs(1));
    let mut sender = Sender::new(1);
    for _ in 0..5 {
        cluster.publish(client, &mut sender, "a");
    }
    cluster.pass(Duration::from_millis(50));
    assert_eq!(cluster.deliveries(client).len(), 5);
}

/// A join was under way when its node asked again, at the same leader. The answer to the first copy opened the feed for what
/// had been sent behind it, which the leader took back at the second copy and gave to others.
#[test]
fn an_answer_to_an_earlier_join_opens_no_feed() {
    let (mut cluster, edge, client) = fed();
    let leader = NodeId(1);
    let mut sender = Sender::new(1);
    let index = sender.shard("a", None, false).0 as usize;
    let join_again = |cluster: &mut Cluster| {
        let now = cluster.now;
        let (term, _) = cluster.node(edge).leaders[index].unwrap();
        cluster.node(edge).unled(now, index);
        cluster.node(edge).led_by(now, index, term, leader);
        cluster.run();
    };
    let other = cluster.connect(leader);
    cluster.slow = Some((leader, edge));
    join_again(&mut cluster);
    cluster.publish(other, &mut sender, "a");
    cluster.join(other, "a", "g", 2, 10);
    join_again(&mut cluster);
    let attempts = |items: Vec<DeliverItem>| items.iter().map(|item| item.attempt.0).collect::<Vec<_>>();
    assert_eq!(attempts(cluster.deliveries(other)), [2]);
    cluster.slow = None;
    cluster.packets.append(&mut cluster.late);
    cluster.run();
    assert_eq!(attempts(cluster.deliveries(client)), [], "another consumer has it");
    // The answer to the second copy opens it.
    for _ in 0..2 {
        cluster.publish(other, &mut sender, "a");
    }
    assert_eq!(attempts(cluster.deliveries(client)), [1]);
}

/// A consumer had left while its join was under way; asked again, it claimed messages at a new leader for nobody.
#[test]
fn nobody_is_asked_to_feed_a_consumer_that_left() {
    let (mut cluster, edge, client) = fed();
    let leader = NodeId(1);
    cluster.slow = Some((leader, edge));
    let now = cluster.now;
    let (term, _) = cluster.node(edge).leaders[0].unwrap();
    cluster.node(edge).unled(now, 0);
    cluster.input(edge, Input::Disconnected { connection: client.1 });
    cluster.node(edge).led_by(now, 0, term, leader);
    cluster.run();
    assert!(cluster.node(leader).attendees.is_empty());
}

/// All joins of a consumer waited too long; the end of the first ended the others, which were then looked for.
#[test]
fn a_consumer_whose_joins_all_wait_too_long_is_refused() {
    let (mut cluster, edge, _) = fed();
    let client = cluster.connect(edge);
    cluster.slow = Some((NodeId(1), edge));
    let now = cluster.now;
    for index in 0..SHARDS as usize {
        cluster.node(edge).unled(now, index);
    }
    let Frame::Subscribe(frame) = subscribe("a", "g", 2, 10, vec![]) else { panic!() };
    cluster.node(edge).open_feeds(now, client.1, 900, &frame);
    cluster.pass(Duration::from_secs(12));
    let answer = cluster.answer(client, 900);
    let Some(Frame::Answer(Answer { code, .. })) = answer else { panic!("{answer:?}") };
    assert_eq!(Code::from_number(code), Some(Code::QuorumLost));
}

/// A consumer joined a second node with a message whose lease was over, and got it anew before the last of its shards had a
/// leader. Then came the answer that the message is lost: it let go of it, and nobody got it until that lease ran out.
#[test]
fn what_comes_anew_before_all_feeds_are_joined_is_not_called_lost() {
    let (mut cluster, edge, client) = fed();
    let leader = NodeId(1);
    let mut sender = Sender::new(1);
    let index = sender.shard("a", None, false).0 as usize;
    cluster.publish(client, &mut sender, "a");
    let first = cluster.deliveries(client).remove(0);
    let nack = SettleAction::Nack { delay: Some(Duration::ZERO) };
    cluster.ask(client, &settle(1, &[&first], nack));
    assert_eq!(cluster.deliveries(client)[0].attempt, Attempt(2));
    // The same consumer, which has not heard of the second attempt.
    let again = cluster.connect(edge);
    let (now, waits) = (cluster.now, (index + 1) % SHARDS as usize);
    let (term, _) = cluster.node(edge).leaders[waits].unwrap();
    cluster.node(edge).unled(now, waits);
    let held = Held { shard: first.shard, offset: first.offset, attempt: first.attempt };
    let Frame::Subscribe(frame) = subscribe("a", "g", 1, 10, vec![held]) else { panic!() };
    cluster.node(edge).open_feeds(now, again.1, 900, &frame);
    cluster.run();
    let inbox = cluster.take(again);
    let [(0, Frame::Deliver(deliver))] = &inbox[..] else { panic!("{inbox:?}") };
    assert_eq!((deliver.items[0].offset, deliver.items[0].attempt), (first.offset, Attempt(3)));
    cluster.node(edge).led_by(now, waits, term, leader);
    cluster.run();
    let Some(Frame::Subscribed(subscribed)) = cluster.answer(again, 900) else { panic!("not joined") };
    assert_eq!(subscribed.lost, []);
}

/// Sixty groups with a consumer each at the edge, which have sixty messages of 16 KiB before them: seven times the window.
/// Nothing that is sent to the edge arrives.
fn crowd() -> (Cluster, NodeId, (NodeId, ConnectionId)) {
    let (mut cluster, edge, client) = fed();
    let leader = NodeId(1);
    for group in 2..62 {
        cluster.join(client, "a", &format!("g{group}"), group, 0);
    }
    cluster.take(client);
    cluster.slow = Some((leader, edge));
    let other = cluster.connect(leader);
    let sender = Sender::new(1);
    let shard = sender.shard("a", None, false);
    assert_eq!(cluster.ask(other, &sender.open(shard)), Frame::Answer(Answer::ok()));
    for sequence in 1..=60 {
        let frame = sender.frame(shard, 1, sender.seal(shard, "a", None, sequence, LARGE));
        let Frame::Published(Published { runs }) = cluster.ask(other, &frame) else { panic!() };
        assert_eq!(runs[0].outcome, Outcome::Ok, "{runs:?}");
    }
    for subscription in 2..62 {
        cluster.send(client, &Frame::Credit(Credit { subscription, messages: 100, bytes: 0 }));
    }
    cluster.pass(Duration::from_millis(100));
    (cluster, edge, client)
}

const LARGE: usize = 16 << 10;

/// Deliveries that wait for the link: for which subscription, and how many bytes.
fn waiting(cluster: &Cluster) -> Vec<(u64, usize)> {
    let letters = cluster.late.iter().filter(|(_, _, packet)| packet.class == Class::Delivery);
    let letters =
        letters.map(|(_, _, packet)| (Letter::read(packet.body.clone()).unwrap(), packet.body.len()));
    let deliver = |(letter, bytes)| {
        if let Letter::Deliver { subscriber, .. } = letter { Some((subscriber, bytes)) } else { None }
    };
    letters.filter_map(deliver).collect()
}

/// Every consumer was sent what it had room for. A hundred of them at one node were more than its link holds: it was given up,
/// everything on it came again as a second attempt, and the link was too full again.
#[test]
fn what_is_on_its_way_to_the_consumers_of_one_node_is_bounded() {
    let (mut cluster, _, client) = crowd();
    let bytes: usize = waiting(&cluster).iter().map(|(_, bytes)| bytes).sum();
    let window = crate::shard::credit::WINDOW_BYTES as usize;
    assert!((window..window + 4 * LARGE).contains(&bytes), "{bytes} bytes wait for the link");
    // As the link takes them, the others follow.
    cluster.slow = None;
    cluster.packets.append(&mut cluster.late);
    cluster.pass(Duration::from_millis(100));
    let came = cluster.deliveries(client);
    assert_eq!(came.len(), 60 * 60 + 10, "the first consumer had room for ten");
    assert!(came.iter().all(|item| item.attempt == Attempt(1)));
}

/// Whatever room there was went to the first groups that had something to send, until they had nothing.
#[test]
fn groups_that_share_a_window_take_turns() {
    let (mut cluster, ..) = crowd();
    let mut subscribers = BTreeSet::new();
    let before: BTreeSet<u64> = waiting(&cluster).iter().map(|(subscriber, _)| *subscriber).collect();
    // Each time there is room for about 32 turns, and half a hundred groups wait.
    for _ in 0..2 {
        let mut room = 3 << 20;
        while room > 0 {
            let (from, to, packet) = cluster.late.pop_front().expect("more than that waits");
            room -= packet.body.len() as i64;
            cluster.input(to, Input::Packet { from, packet });
        }
        let still = waiting(&cluster).len();
        cluster.run();
        subscribers.extend(waiting(&cluster)[still..].iter().map(|(subscriber, _)| *subscriber));
        // Whoever looks meanwhile finds no room, and does not forget whose turn it is.
        cluster.pass(Duration::from_millis(100));
    }
    let served = before.union(&subscribers).count();
    assert_eq!(served, 61, "{} of {}", subscribers.len(), 61 - before.len());
}
