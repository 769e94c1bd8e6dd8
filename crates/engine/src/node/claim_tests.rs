//! What a consumer holds while leaders come and go: claimed again by its node, or known to be lost.

use swarmmq_protocol::frame::LeaseLost;

use super::*;

/// Address `a`, group `g`, and one message of it that the consumer at `edge` holds.
struct Scene {
    cluster: Cluster,
    leader: NodeId,
    edge: NodeId,
    client: (NodeId, ConnectionId),
    item: DeliverItem,
}

fn held_by_way_of_another() -> Scene {
    let mut cluster = healthy(5);
    let mut sender = Sender::new(1);
    let shard = sender.shard("a", None, false);
    let leader = cluster.leader(shard);
    let edge = NodeId(if leader == NodeId(1) { 2 } else { 1 });
    let client = cluster.connect(edge);
    cluster.make(client, "a");
    cluster.join(client, "a", "g", 1, 10);
    cluster.publish(client, &mut sender, "a");
    let item = cluster.deliveries(client).remove(0);
    Scene { cluster, leader, edge, client, item }
}

/// The leases that a client was told are lost.
fn lost(cluster: &mut Cluster, client: (NodeId, ConnectionId)) -> Vec<Held> {
    let frames = cluster.take(client).into_iter();
    frames
        .flat_map(
            |(_, frame)| {
                if let Frame::LeaseLost(LeaseLost { items, .. }) = frame { items } else { Vec::new() }
            },
        )
        .collect()
}

/// Its node told the consumer of attempt 0, which nobody holds: it went on for nothing.
#[test]
fn a_lease_that_cannot_be_claimed_again_is_lost_by_its_attempt() {
    let Scene { mut cluster, leader, edge, client, item, .. } = held_by_way_of_another();
    let others: Vec<NodeId> = cluster.hosts.keys().copied().filter(|other| *other != edge).collect();
    others.iter().for_each(|other| cluster.cut(edge, *other));
    cluster.pass(Duration::from_secs(31));
    assert_eq!(lost(&mut cluster, client), [], "nobody can tell");
    cluster.link(edge, leader);
    cluster.pass(Duration::from_millis(100));
    let held = Held { shard: item.shard, offset: item.offset, attempt: item.attempt };
    assert_eq!(lost(&mut cluster, client), [held]);
}

/// A leader that had been followed without knowing it, and then heard of, said that leases of its reign had run out. Their
/// consumer believed it, though its node had claimed them again: they came back to others long before they should.
#[test]
fn a_leader_that_was_followed_ends_no_lease_of_its_successor() {
    let Scene { mut cluster, leader, edge, client, item, .. } = held_by_way_of_another();
    let subscriber = cluster.node(edge).subscribers.keys().next().unwrap().0;
    let letter = Letter::Expired {
        subscriber,
        shard: item.shard,
        term: item.term,
        items: vec![(item.offset, item.attempt)],
    };
    let expired = |cluster: &mut Cluster| {
        let now = cluster.now;
        cluster.node(edge).letter(now, leader, letter.clone());
    };
    cluster.kill(leader);
    expired(&mut cluster);
    cluster.pass(Duration::from_secs(1));
    expired(&mut cluster);
    cluster.run();
    assert_eq!(lost(&mut cluster, client), []);
    let Frame::Settled(settled) = cluster.ask(client, &settle(1, &[&item], SettleAction::Ack)) else {
        panic!()
    };
    assert_eq!(settled.runs[0].outcome, Outcome::Ok, "{settled:?}");
}

/// Who feeds a consumer still ends its leases.
#[test]
fn a_lease_that_runs_out_is_told_by_whoever_leads() {
    let Scene { mut cluster, client, item, .. } = held_by_way_of_another();
    cluster.pass(Duration::from_secs(31));
    let held = Held { shard: item.shard, offset: item.offset, attempt: item.attempt };
    assert_eq!(lost(&mut cluster, client), [held]);
}

/// While a claim waited for a leader, the one before still said that a lease was lost. The next leader then leased the
/// message to a consumer that did not have it, and nobody got it until that ran out.
#[test]
fn a_claim_says_what_is_held_when_it_is_sent() {
    let Scene { mut cluster, leader, edge, client, item, .. } = held_by_way_of_another();
    let (now, index) = (cluster.now, item.shard.0 as usize);
    let mut bytes = BytesMut::new();
    settle(1, &[&item], SettleAction::Nack { delay: None }).encode(900, &mut bytes);
    let mut reader = FrameReader::new();
    reader.set_authenticated();
    reader.buffer().extend_from_slice(&bytes);
    let (header, body) = reader.next_frame().unwrap().unwrap();
    let node = cluster.node(edge);
    node.handle(now, Input::Frame { connection: client.1, header, body });
    let settling = *node.asked.last_key_value().unwrap().0;
    node.unled(now, index);
    node.replied(
        now,
        settling,
        leader,
        crate::shard::Answer::Settled(vec![(Outcome::Failed, Some(Code::LeaseLost))]),
    );
    cluster.kill(leader);
    cluster.pass(Duration::from_secs(1));
    let next = cluster.leader(item.shard);
    let (address, group) = (Address::parse("a").unwrap(), GroupName::parse("g").unwrap());
    assert_eq!(cluster.node(next).shards[index].leased(&address, &group), 0);
}

/// Two subscriptions of one consumer were at one node, the elder of a client that had left unnoticed. At a new leader it claimed a
/// message that the younger one had been told is lost; the younger one's word that it has no such message gave it to others at
/// once, within the time for claims.
#[test]
fn what_only_an_elder_subscription_claims_waits_like_what_nobody_claims() {
    let Scene { mut cluster, leader, edge, client, item } = held_by_way_of_another();
    let younger = cluster.connect(edge);
    let held = Held { shard: item.shard, offset: item.offset, attempt: item.attempt };
    let answer = cluster.ask(younger, &subscribe("a", "g", 1, 10, vec![held]));
    assert!(matches!(&answer, Frame::Subscribed(subscribed) if subscribed.lost.is_empty()), "{answer:?}");
    let (now, term) = (cluster.now, item.term);
    let subscriber = cluster.node(edge).subscribers.keys().last().unwrap().0;
    let items = vec![(item.offset, item.attempt)];
    let expired = Letter::Expired { subscriber, shard: item.shard, term, items };
    cluster.node(edge).letter(now, leader, expired);
    cluster.run();
    assert_eq!(lost(&mut cluster, younger), [held]);
    cluster.kill(leader);
    cluster.pass(Duration::from_secs(1));
    cluster.leader(item.shard);
    let other = cluster.connect(edge);
    cluster.join(other, "a", "g", 2, 10);
    let given = |cluster: &mut Cluster| {
        [client, younger, other].iter().map(|client| cluster.deliveries(*client).len()).sum::<usize>()
    };
    assert_eq!(given(&mut cluster), 0, "within the time for claims");
    cluster.pass(Duration::from_secs(3));
    assert_eq!(given(&mut cluster), 1);
}

/// A consumer had gone on to another node, and the one before did not know it yet: what came meanwhile went by way of that
/// one to nobody, and nobody else got it until its lease ran out.
#[test]
fn a_consumer_that_has_gone_on_is_not_fed_by_the_way_it_left() {
    let Scene { mut cluster, leader, edge, client: left, item } = held_by_way_of_another();
    let mut sender = Sender::new(7);
    let held = Held { shard: item.shard, offset: item.offset, attempt: item.attempt };
    let client = cluster.connect(leader);
    let answer = cluster.ask(client, &subscribe("a", "g", 1, 10, vec![held]));
    assert!(matches!(&answer, Frame::Subscribed(subscribed) if subscribed.lost.is_empty()), "{answer:?}");
    let given = |cluster: &mut Cluster, client| {
        let items = cluster.deliveries(client).into_iter();
        items.map(|item| item.offset.0 - held.offset.0).collect::<Vec<_>>()
    };
    (0..4).for_each(|_| assert!(!cluster.publish(client, &mut sender, "a"), "new"));
    assert_eq!((given(&mut cluster, client), given(&mut cluster, left)), (vec![1, 2, 3, 4], vec![]));
    // Joined once more by the node that it has left, as after a lost link.
    cluster.cut(edge, leader);
    cluster.pass(Duration::from_millis(300));
    cluster.link(edge, leader);
    cluster.pass(Duration::from_millis(500));
    (0..4).for_each(|_| assert!(!cluster.publish(client, &mut sender, "a"), "new"));
    assert_eq!((given(&mut cluster, client), given(&mut cluster, left)), (vec![5, 6, 7, 8], vec![]));
}

/// A consumer had gone on to another node, and its leader was lost; the node before, out of reach until then, claimed at the
/// next leader what it had sent to nobody: nobody got it until that lease ran out.
#[test]
fn what_a_consumer_does_not_hold_is_not_claimed_by_the_way_it_left() {
    let Scene { mut cluster, leader, edge, item, .. } = held_by_way_of_another();
    let others: Vec<NodeId> = cluster.hosts.keys().copied().filter(|other| *other != edge).collect();
    others.iter().for_each(|other| cluster.cut(edge, *other));
    cluster.kill(leader);
    cluster.pass(Duration::from_secs(1));
    let next = cluster.leader(item.shard);
    let client = cluster.connect(next);
    cluster.join(client, "a", "g", 1, 10);
    others.iter().filter(|other| **other != leader).for_each(|other| cluster.link(edge, *other));
    cluster.pass(Duration::from_secs(1));
    assert!(cluster.node(next).attending.keys().any(|(node, _)| *node == edge), "the elder one has joined");
    assert_eq!(cluster.deliveries(client), [], "within the time for claims");
    cluster.pass(Duration::from_secs(3));
    let again: Vec<_> = cluster.deliveries(client).iter().map(|item| (item.offset, item.attempt)).collect();
    assert_eq!(again, [(item.offset, Attempt(2))]);
}

/// A lease ran out while its node was out of reach, and the leader sent the message once more to the same consumer, in vain.
/// Joined again, the node said that it holds the first attempt: the second was taken for known, and nobody got it until it
/// ran out too.
#[test]
fn whoever_holds_an_earlier_attempt_does_not_have_the_later_one() {
    let Scene { mut cluster, leader, edge, client, item } = held_by_way_of_another();
    let others: Vec<NodeId> = cluster.hosts.keys().copied().filter(|other| *other != edge).collect();
    cluster.pass(Duration::from_millis(29_900));
    cluster.slow = Some((leader, edge));
    others.iter().filter(|other| **other != leader).for_each(|other| cluster.cut(edge, *other));
    cluster.pass(Duration::from_secs(2));
    let shard = &cluster.node(leader).shards[item.shard.0 as usize];
    assert_eq!(shard.leases().map(|leased| leased.attempt).collect::<Vec<_>>(), [Attempt(2)]);
    cluster.cut(edge, leader);
    cluster.late.clear();
    cluster.slow = None;
    assert_eq!(cluster.deliveries(client), []);
    cluster.pass(Duration::from_millis(300));
    others.iter().for_each(|other| cluster.link(edge, *other));
    cluster.pass(Duration::from_secs(1));
    let again: Vec<_> = cluster.deliveries(client).iter().map(|item| (item.offset, item.attempt)).collect();
    assert_eq!(again, [(item.offset, Attempt(3))]);
}

/// A group that begins anew, as after a purge, still knows which subscription of a consumer is the youngest: the elder one,
/// joined once more by its node, would be fed in its stead.
#[test]
fn a_group_that_begins_anew_knows_whom_it_feeds() {
    let Scene { mut cluster, leader, edge, client: left, .. } = held_by_way_of_another();
    let mut sender = Sender::new(7);
    let client = cluster.connect(leader);
    cluster.join(client, "a", "g", 1, 10);
    let purge = AdminRequest::AddressPurge { address: Address::parse("a").unwrap(), dry_run: false };
    let answer = cluster.ask(client, &Frame::Admin(Admin(purge)));
    assert!(matches!(answer, Frame::AdminReply(_)), "{answer:?}");
    cluster.deliveries(client);
    cluster.cut(edge, leader);
    cluster.pass(Duration::from_millis(300));
    cluster.link(edge, leader);
    cluster.pass(Duration::from_millis(500));
    (0..4).for_each(|_| assert!(!cluster.publish(client, &mut sender, "a"), "new"));
    assert_eq!((cluster.deliveries(client).len(), cluster.deliveries(left).len()), (4, 0));
}

/// Of thousands of consumers that came and went a group forgets the order, but not of those that it feeds.
#[test]
fn a_consumer_that_is_fed_is_not_taken_for_its_elder_after_thousands_of_others() {
    let Scene { mut cluster, leader, edge, client: left, .. } = held_by_way_of_another();
    let mut sender = Sender::new(7);
    let client = cluster.connect(leader);
    cluster.join(client, "a", "g", 1, 10);
    let again = cluster.deliveries(client).remove(0);
    cluster.ask(client, &settle(1, &[&again], SettleAction::Ack));
    for number in 0..64 {
        let others = cluster.connect(leader);
        (0..64).for_each(|other| cluster.join(others, "a", "g", 2 + number * 64 + other, 1));
        cluster.input(leader, Input::Disconnected { connection: others.1 });
    }
    cluster.cut(edge, leader);
    cluster.pass(Duration::from_millis(300));
    cluster.link(edge, leader);
    cluster.pass(Duration::from_millis(500));
    (0..4).for_each(|_| assert!(!cluster.publish(client, &mut sender, "a"), "new"));
    assert_eq!((cluster.deliveries(client).len(), cluster.deliveries(left).len()), (4, 0));
}
