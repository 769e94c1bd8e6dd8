//! What the simulator found, told step by step. Each test is named after what went wrong.

use super::*;
use swarmmq_protocol::frame::Peek;

fn publish_one(
    world: &mut World,
    connection: ConnectionId,
    sender: &Sender,
    sequence: u64,
    body: usize,
) -> u64 {
    let shard = sender.shard("a", None, false);
    let frame = sender.frame(shard, 1, sender.seal(shard, "a", None, sequence, body));
    world.send(connection, &frame)
}

/// A world with address `a` and an open session.
fn world_with(order: Order) -> (World, ConnectionId, Sender) {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", order);
    let mut sender = Sender::new(1);
    sender.publish(&mut world, connection, "a", &[None], 10);
    (world, connection, sender)
}

/// The commit of one batch made the next one count as stored, though its own sync was still to come.
#[test]
fn a_commit_says_nothing_of_what_is_still_to_be_synced() {
    let (mut world, connection, sender) = world_with(Order::Total);
    world.hold_syncs = true;
    let first = publish_one(&mut world, connection, &sender, 2, 10);
    let second = publish_one(&mut world, connection, &sender, 3, 10);
    world.sync();
    // Looks at everything that follows from the first sync, and starts the second write, but does not sync it.
    world.run();
    assert!(world.answer(connection, first).is_some());
    assert_eq!(world.answer(connection, second), None, "its batch is not on stable storage");
    let mut world = world.crash();
    let connection = world.connect();
    assert_eq!(depth(&world), 2);
    let again = publish_one(&mut world, connection, &sender, 3, 10);
    let Some(Frame::Published(published)) = world.answer(connection, again) else { panic!() };
    assert!(!published.runs[0].duplicate);
}

/// A read for a backlog also fetched what lay behind the end of the log; written later, it was looked up there.
#[test]
fn what_is_read_ahead_ends_where_the_synced_log_ends() {
    let (mut world, connection, mut sender) = world_with(Order::Total);
    world.ask(connection, &subscribe("a", "g", 1, 1, vec![]));
    assert_eq!(world.deliveries(connection).len(), 1);
    // The cache holds 16 KiB: of these, the first must be read back, together with what follows it.
    sender.publish(&mut world, connection, "a", &[None; 24], 1000);
    let credit = Credit { subscription: 1, messages: 1, bytes: 1 << 20 };
    world.send(connection, &Frame::Credit(credit));
    assert_eq!(world.deliveries(connection).len(), 1);
    sender.publish(&mut world, connection, "a", &[None; 24], 1000);
    let credit = Credit { subscription: 1, messages: 100, bytes: 1 << 20 };
    world.send(connection, &Frame::Credit(credit));
    assert_eq!(world.deliveries(connection).len(), 47);
    assert!(world.node.report().ready, "{}", world.node.report().reason);
}

/// A skip whose answer was lost was asked for again, was told that the sequence existed, and counted as a stored message.
#[test]
fn a_skip_asked_for_again_is_still_a_skip() {
    let (mut world, connection, sender) = world_with(Order::Total);
    let skip = |first, last| {
        Frame::Skip(Skip {
            shard: sender.shard("a", None, false),
            producer: sender.producer,
            epoch: ProducerEpoch(1),
            first: Sequence(first),
            last: Sequence(last),
            deadline: DEADLINE,
        })
    };
    for _ in 0..2 {
        assert_eq!(world.ask(connection, &skip(2, 3)), Frame::Answer(Answer::ok()));
    }
    let Frame::Answer(answer) = world.ask(connection, &skip(1, 5)) else { panic!() };
    assert_eq!((answer.outcome, answer.code), (Outcome::Failed, Code::Exists.number()), "1 holds a message");
    assert_eq!(
        world.ask(connection, &skip(4, 4)),
        Frame::Answer(Answer::ok()),
        "the refused range closed nothing"
    );
}

/// A node that had not applied its log yet said that addresses did not exist, and messages were given up for that.
#[test]
fn a_node_that_does_not_know_yet_does_not_say_no() {
    let (world, _, sender) = world_with(Order::Total);
    let now = world.now;
    let mut world = World::on(world.disk, now);
    // The same node again, before its first tick.
    world.node = restore(&world.disk, now).unwrap();
    world.inboxes.clear();
    world.hold_syncs = true;
    let connection = world.connect();
    let resolve =
        Resolve { address: Address::parse("a").unwrap(), create: false, order: None, deadline: DEADLINE };
    let Frame::Answer(answer) = world.ask(connection, &Frame::Resolve(resolve)) else { panic!() };
    assert_eq!(answer.code, Code::NotLeader.number());
    let list = Frame::Admin(Admin(AdminRequest::AddressList));
    let Frame::Answer(answer) = world.ask(connection, &list) else { panic!() };
    assert_eq!(answer.code, Code::NotLeader.number());
    let request = publish_one(&mut world, connection, &sender, 2, 10);
    assert!(world.answer(connection, request).is_none(), "it waits for a leader");
    world.hold_syncs = false;
    world.run();
    let Some(Frame::Published(published)) = world.answer(connection, request) else { panic!() };
    assert_eq!(published.runs[0].outcome, Outcome::Ok);
}

/// A refusal sent twice, because the first answer was lost with its connection, counted as two failed attempts, and the
/// message went out to two consumers.
#[test]
fn a_nack_sent_twice_counts_once() {
    let (mut world, connection, _) = world_with(Order::Total);
    world.ask(connection, &subscribe("a", "g", 1, 10, vec![]));
    let items = world.deliveries(connection);
    world.hold_syncs = true;
    world.send(connection, &settle(1, &[&items[0]], SettleAction::Nack { delay: None }));
    world.node.handle(world.now, Input::Disconnected { connection });
    let connection = world.connect();
    let held = vec![Held { shard: items[0].shard, offset: items[0].offset, attempt: items[0].attempt }];
    world.ask(connection, &subscribe("a", "g", 1, 10, held));
    let request = world.send(connection, &settle(1, &[&items[0]], SettleAction::Nack { delay: None }));
    world.hold_syncs = false;
    world.run();
    assert_eq!(fates(world.answer(connection, request).unwrap()), settled_ok(1));
    world.take(connection);
    world.pass(Duration::from_secs(3));
    let again = world.deliveries(connection);
    assert_eq!(again.iter().map(|item| item.attempt.0).collect::<Vec<_>>(), [2]);
}

/// Having refused a message, its consumer acknowledges it before the refusal is committed.
#[test]
fn a_second_and_different_settlement_comes_too_late() {
    let (mut world, connection, _) = world_with(Order::Total);
    world.ask(connection, &subscribe("a", "g", 1, 10, vec![]));
    let items = world.deliveries(connection);
    world.hold_syncs = true;
    world.send(connection, &settle(1, &[&items[0]], SettleAction::Nack { delay: None }));
    let request = world.send(connection, &settle(1, &[&items[0]], SettleAction::Ack));
    world.hold_syncs = false;
    world.run();
    let late = fates(world.answer(connection, request).unwrap());
    assert_eq!(late, [(Outcome::Failed, Code::LeaseLost.number())]);
    assert_eq!(depth(&world), 1);
}

/// A lease that had been claimed again, and so lasted longer than its consumer knew, was extended by what was left of the
/// lease of another message, which was nothing: it ended at once, and others got the message within the re-claim window.
#[test]
fn an_extension_ends_no_lease_early() {
    let (mut world, connection, _) = world_with(Order::Total);
    world.ask(connection, &subscribe("a", "g", 1, 10, vec![]));
    let items = world.deliveries(connection);
    let extend = SettleAction::Extend { duration: Duration::ZERO };
    assert_eq!(fates(world.ask(connection, &settle(1, &[&items[0]], extend))), settled_ok(1));
    world.pass(Duration::from_secs(29));
    assert_eq!(fates(world.ask(connection, &settle(1, &[&items[0]], SettleAction::Ack))), settled_ok(1));
}

/// All that came in one turn went into one entry, which no segment of a small log could hold.
#[test]
fn an_entry_is_no_longer_than_a_segment() {
    let (mut world, connection, sender) = world_with(Order::Total);
    let shard = sender.shard("a", None, false);
    let mut bytes = BytesMut::new();
    for sequence in 2..20 {
        let message = sender.seal(shard, "a", None, sequence, SEGMENT as usize / 8);
        sender.frame(shard, 1, message).encode(900 + sequence, &mut bytes);
    }
    world.deliver_bytes(connection, &mut bytes);
    assert_eq!(depth(&world), 19);
}

/// Messages that were on their way when a connection broke stayed leased for 30 s to somebody who had never seen them.
#[test]
fn what_a_returning_consumer_does_not_hold_never_reached_it() {
    let (mut world, connection, mut sender) = world_with(Order::Total);
    sender.publish(&mut world, connection, "a", &[None, None], 10);
    world.ask(connection, &subscribe("a", "g", 1, 10, vec![]));
    let items = world.deliveries(connection);
    assert_eq!(items.len(), 3);
    world.node.handle(world.now, Input::Disconnected { connection });
    let connection = world.connect();
    let held = vec![Held { shard: items[0].shard, offset: items[0].offset, attempt: items[0].attempt }];
    world.ask(connection, &subscribe("a", "g", 1, 10, held));
    let again = world.deliveries(connection);
    assert_eq!(
        again.iter().map(|item| (item.offset.0, item.attempt.0)).collect::<Vec<_>>(),
        [(1, 2), (2, 2)],
        "flagged, because only the consumer can know"
    );
}

/// A dead letter made after the latest snapshot was copied to a younger segment; after a restart it was looked for in the
/// old one, which was gone.
#[test]
fn a_moved_dead_letter_is_found_after_a_restart() {
    let (mut world, connection, mut sender) = world_with(Order::Total);
    world.ask(connection, &subscribe("a", "g", 1, 1, vec![]));
    let items = world.deliveries(connection);
    let index = world.node.index_of(items[0].shard).unwrap();
    world.node.snapshot(index);
    world.run();
    world.ask(connection, &settle(1, &[&items[0]], SettleAction::DeadLetter));
    let dead = Address::parse("a.dlq").unwrap();
    let place = |world: &World| {
        let queue = &world.node.shards[index].state().queues[&dead];
        queue
            .messages
            .first_key_value()
            .map(|(offset, message)| (*offset, message.place, message.length))
            .unwrap()
    };
    let (offset, before, length) = place(&world);
    world.node.moving.push_back((index, dead.clone(), Offset(offset), before, length));
    world.node.move_messages();
    world.run();
    let (_, after, _) = place(&world);
    assert_ne!(before, after);
    let world = world.crash();
    assert_eq!(place(&world), (offset, after, length));
    sender.next.clear();
}

/// A place that cannot be read was asked for again and again, without end.
#[test]
fn a_log_that_cannot_be_read_stops_its_shard_and_ends_the_looks() {
    let (mut world, connection, mut sender) = world_with(Order::Total);
    sender.publish(&mut world, connection, "a", &[None; 24], 1000);
    let shard = sender.shard("a", None, false);
    let peek = Peek {
        address: Address::parse("a").unwrap(),
        shard,
        start: None,
        from_offset: Offset(0),
        messages_max: 10,
        bytes_max: 1 << 20,
    };
    let mut bytes = BytesMut::new();
    Frame::Peek(peek).encode(77, &mut bytes);
    let mut reader = FrameReader::new();
    reader.set_authenticated();
    reader.buffer().extend_from_slice(&bytes);
    let (header, body) = reader.next_frame().unwrap().unwrap();
    world.node.handle(world.now, Input::Frame { connection, header, body });
    let mut effects = Effects::default();
    world.node.flush(world.now, &mut effects);
    let ticket = effects.reads[0].ticket;
    world.node.handle(world.now, Input::Read { ticket, result: Err("the disk says no".into()) });
    world.run();
    let Some(Frame::Answer(answer)) = world.answer(connection, 77) else { panic!() };
    assert_eq!(answer.code, Code::LogStopped.number());
    let stopped = world.node.shards[world.node.index_of(shard).unwrap()].stopped().unwrap();
    assert!(stopped.contains("the disk says no"), "{stopped}");
    assert!(!world.node.report().ready);
}

/// Two subscriptions under one number, asked for at once, both succeeded; the first stayed for ever and took leases.
#[test]
fn a_subscription_number_is_used_once() {
    let (mut world, connection, _) = world_with(Order::Total);
    let mut bytes = BytesMut::new();
    subscribe("a", "new", 1, 0, vec![]).encode(70, &mut bytes);
    subscribe("a", "new", 1, 10, vec![]).encode(71, &mut bytes);
    world.deliver_bytes(connection, &mut bytes);
    assert!(matches!(world.answer(connection, 70), Some(Frame::Subscribed(_))));
    let Some(Frame::Answer(answer)) = world.answer(connection, 71) else { panic!() };
    assert_eq!(answer.code, Code::Exists.number());
    world.node.handle(world.now, Input::Disconnected { connection });
    assert!(world.node.subscribers.is_empty());
    let connection = world.connect();
    world.ask(connection, &subscribe("a", "new", 2, 10, vec![]));
    assert_eq!(world.deliveries(connection).len(), 1);
}

/// Copies and snapshots did not count as needed, so that a log of small messages was cleaned without end.
#[test]
fn cleaning_a_log_of_small_messages_comes_to_rest() {
    let (mut world, connection, mut sender) = world_with(Order::Total);
    for _ in 0..10 {
        sender.publish(&mut world, connection, "a", &[None; 100], 40);
    }
    world.pass(Duration::from_secs(5));
    let moved = world.node.counters.moved;
    world.pass(Duration::from_secs(60));
    assert_eq!(world.node.counters.moved, moved);
    assert_eq!(depth(&world), 1001);
}

/// A consumer learned that its lease had run out only when it settled.
#[test]
fn a_consumer_is_told_when_its_lease_runs_out() {
    let (mut world, connection, _) = world_with(Order::Total);
    world.ask(connection, &subscribe("a", "g", 1, 1, vec![]));
    let items = world.deliveries(connection);
    world.pass(Duration::from_secs(31));
    let lost = world.take(connection).into_iter().find_map(|(_, frame)| match frame {
        Frame::LeaseLost(lost) => Some(lost),
        _ => None,
    });
    let held = Held { shard: items[0].shard, offset: items[0].offset, attempt: items[0].attempt };
    assert_eq!(lost.map(|lost| (lost.subscription, lost.items)), Some((1, vec![held])));
}

/// Credit went to the shard that came first as long as it had a backlog; the others of its node waited ten seconds and more.
#[test]
fn a_backlog_in_one_shard_does_not_starve_the_others() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Key);
    let mut sender = Sender::new(1);
    let keys: Vec<String> = (0..64).map(|number| format!("key {number}")).collect();
    let keys: Vec<Option<&str>> = keys.iter().map(|key| Some(key.as_str())).collect();
    sender.publish(&mut world, connection, "a", &keys, 10);
    let shards: BTreeSet<ShardId> = keys.iter().map(|key| sender.shard("a", *key, true)).collect();
    assert_eq!(shards.len(), SHARDS as usize, "all have something");
    world.ask(connection, &subscribe("a", "g", 1, 1, vec![]));
    let mut fed = BTreeSet::new();
    for _ in 0..4 * SHARDS {
        fed.extend(world.deliveries(connection).iter().map(|item| item.shard));
        let credit = Credit { subscription: 1, messages: 1, bytes: 1 << 20 };
        world.send(connection, &Frame::Credit(credit));
    }
    assert_eq!(fed, shards);
}
