//! Bounds: what is refused or comes back when, so that nothing is dropped in silence, and what waits for how long.

use super::*;
use swarmmq_protocol::limits::FORGET_AFTER;

/// Publishes one message of a fresh sender and returns how that ended.
fn try_publish(world: &mut World, connection: ConnectionId, number: u128) -> (Outcome, u16) {
    let sender = Sender::new(number);
    let shard = sender.shard("a", None, false);
    let mut open = sender.open(shard);
    if let Frame::OpenSession(open) = &mut open {
        open.created_at = world.now.wall;
    }
    assert_eq!(world.ask(connection, &open), Frame::Answer(Answer::ok()));
    let frame = sender.frame(shard, 1, sender.seal(shard, "a", None, 1, 10));
    let Frame::Published(published) = world.ask(connection, &frame) else { panic!() };
    (published.runs[0].outcome, published.runs[0].code)
}

#[test]
fn what_nobody_comes_for_stops_growing_after_a_week_and_goes_on_when_somebody_comes() {
    let full = (Outcome::Failed, Code::BacklogFull.number());
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    assert_eq!(try_publish(&mut world, connection, 1), (Outcome::Ok, 0));
    world.now.wall = world.now.wall.plus(FORGET_AFTER + Duration::from_secs(60));
    assert_eq!(try_publish(&mut world, connection, 2), full, "no group ever came");

    world.ask(connection, &subscribe("a", "g", 1, 0, vec![]));
    assert_eq!(try_publish(&mut world, connection, 3), (Outcome::Ok, 0), "a slow consumer is no idle group");
    world.node.handle(world.now, Input::Disconnected { connection });
    let connection = world.connect();
    assert_eq!(try_publish(&mut world, connection, 4), full, "the group is idle");

    world.ask(connection, &subscribe("a", "g", 1, 10, vec![]));
    let items = world.deliveries(connection);
    let items: Vec<&DeliverItem> = items.iter().collect();
    assert!(!items.is_empty());
    world.ask(connection, &settle(1, &items, SettleAction::Ack));
    world.node.handle(world.now, Input::Disconnected { connection });
    let connection = world.connect();
    world.now.wall = world.now.wall.plus(Duration::from_secs(1));
    let ended = try_publish(&mut world, connection, 5);
    assert_eq!(ended, (Outcome::Ok, 0), "an idle group that owes nothing old stops nobody");
}

#[test]
fn a_backlog_of_too_many_bytes_refuses_more_until_some_are_settled() {
    let mut world = World::new();
    let connection = world.connect();
    let address = Address::parse("a").unwrap();
    let settings = Settings { backlog_bytes_max: Some(200), ..Settings::default() };
    let create = AdminRequest::AddressCreate { address, order: Order::Total, settings };
    assert_eq!(world.ask(connection, &Frame::Admin(Admin(create))), Frame::Answer(Answer::ok()));
    assert_eq!(try_publish(&mut world, connection, 1), (Outcome::Ok, 0));
    assert_eq!(
        try_publish(&mut world, connection, 2),
        (Outcome::Ok, 0),
        "the bound is where it stops, not before"
    );
    assert_eq!(try_publish(&mut world, connection, 3), (Outcome::Failed, Code::BacklogFull.number()));
    world.ask(connection, &subscribe("a", "g", 1, 10, vec![]));
    let items = world.deliveries(connection);
    world.ask(connection, &settle(1, &items.iter().collect::<Vec<_>>(), SettleAction::Ack));
    assert_eq!(try_publish(&mut world, connection, 4), (Outcome::Ok, 0));
}

#[test]
fn a_dead_letter_that_is_given_up_again_comes_back() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    Sender::new(1).publish(&mut world, connection, "a", &[None], 10);
    world.ask(connection, &subscribe("a", "g", 1, 10, vec![]));
    let items = world.deliveries(connection);
    world.ask(connection, &settle(1, &[&items[0]], SettleAction::DeadLetter));
    world.ask(connection, &subscribe("a.dlq", "u", 2, 10, vec![]));
    let letters = world.deliveries(connection);
    assert_eq!(letters.len(), 1);
    let given_up = world.ask(connection, &settle(2, &[&letters[0]], SettleAction::DeadLetter));
    assert_eq!(fates(given_up), settled_ok(1));
    world.pass(Duration::from_secs(3));
    let again = world.deliveries(connection);
    assert_eq!(
        again.iter().map(|item| (item.offset, item.attempt.0)).collect::<Vec<_>>(),
        [(letters[0].offset, 2)]
    );
}

#[test]
fn an_address_too_long_for_a_dead_letter_queue_keeps_what_is_given_up() {
    let long = ["x".repeat(64), "y".repeat(64), "z".repeat(64), "w".repeat(60)].join(".");
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, &long, Order::Total);
    Sender::new(1).publish(&mut world, connection, &long, &[None], 10);
    world.ask(connection, &subscribe(&long, "g", 1, 10, vec![]));
    let items = world.deliveries(connection);
    world.ask(connection, &settle(1, &[&items[0]], SettleAction::DeadLetter));
    world.pass(Duration::from_secs(3));
    assert_eq!(world.deliveries(connection).len(), 1);
    assert_eq!(depth(&world), 1);
}

#[test]
fn the_time_stamped_into_entries_never_goes_back() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let mut sender = Sender::new(1);
    sender.publish(&mut world, connection, "a", &[None], 10);
    let index = world.node.index_of(sender.shard("a", None, false)).unwrap();
    let before = world.node.shards[index].state().time;
    world.now.wall = WallTime(5);
    sender.publish(&mut world, connection, "a", &[None], 10);
    assert_eq!(world.node.shards[index].state().time, before);
}

#[test]
fn a_copy_sent_while_the_original_waits_for_the_disk_waits_with_it() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let mut sender = Sender::new(1);
    sender.publish(&mut world, connection, "a", &[None], 10);
    let shard = sender.shard("a", None, false);
    world.hold_syncs = true;
    let frame = sender.frame(shard, 1, sender.seal(shard, "a", None, 2, 10));
    let (original, copy) = (world.send(connection, &frame), world.send(connection, &frame));
    assert_eq!((world.answer(connection, original), world.answer(connection, copy)), (None, None));
    world.hold_syncs = false;
    world.run();
    let runs = [original, copy].map(|request| {
        let Some(Frame::Published(published)) = world.answer(connection, request) else { panic!() };
        (published.runs[0].outcome, published.runs[0].duplicate)
    });
    assert_eq!(runs, [(Outcome::Ok, false), (Outcome::Ok, true)]);
}

#[test]
fn a_full_disk_refuses_publishes_and_goes_on_with_the_rest() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let mut sender = Sender::new(1);
    sender.publish(&mut world, connection, "a", &[None], 10);
    world.node.handle(world.now, Input::DiskSpace { free_bytes: 10 });
    let shard = sender.shard("a", None, false);
    let frame = sender.frame(shard, 1, sender.seal(shard, "a", None, 2, 10));
    let Frame::Published(refused) = world.ask(connection, &frame) else { panic!() };
    assert_eq!((refused.runs[0].outcome, refused.runs[0].code), (Outcome::Failed, Code::DiskFull.number()));
    world.ask(connection, &subscribe("a", "g", 1, 10, vec![]));
    let items = world.deliveries(connection);
    assert_eq!(fates(world.ask(connection, &settle(1, &[&items[0]], SettleAction::Ack))), settled_ok(1));
    world.node.handle(world.now, Input::DiskSpace { free_bytes: 1 << 30 });
    sender.publish(&mut world, connection, "a", &[None], 10);
}

/// A consumer without anything more to get, and a producer whose messages come a millisecond apart.
fn stream() -> (World, ConnectionId, Sender) {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    world.ask(connection, &subscribe("a", "g", 1, 10, vec![]));
    let mut sender = Sender::new(1);
    for _ in 0..2 {
        world.now.monotonic = world.now.monotonic + Duration::from_millis(1);
        sender.publish(&mut world, connection, "a", &[None], 10);
    }
    (world, connection, sender)
}

#[test]
fn a_settlement_that_nobody_waits_for_goes_with_the_next_message() {
    let (mut world, connection, sender) = stream();
    let items = world.deliveries(connection);
    let settled = world.send(connection, &settle(1, &[&items[0], &items[1]], SettleAction::Ack));
    assert_eq!(world.answer(connection, settled), None);
    assert_eq!(depth(&world), 2);
    world.now.monotonic = world.now.monotonic + Duration::from_millis(1);
    let shard = sender.shard("a", None, false);
    world.hold_syncs = true;
    world.send(connection, &sender.frame(shard, 1, sender.seal(shard, "a", None, 3, 10)));
    let batch = world.in_flight.clone().unwrap().batch;
    world.sync();
    world.run();
    assert_eq!(fates(world.answer(connection, settled).unwrap()), settled_ok(2));
    assert_eq!((depth(&world), world.in_flight.as_ref()), (1, None), "batch {batch} had both");
}

#[test]
fn a_settlement_waits_for_company_only_for_a_moment_and_not_twice_in_a_row() {
    let (mut world, connection, mut sender) = stream();
    let items = world.deliveries(connection);
    let settled = world.send(connection, &settle(1, &[&items[0], &items[1]], SettleAction::Ack));
    world.pass(Duration::from_millis(1));
    assert_eq!(world.answer(connection, settled), None);
    world.pass(Duration::from_millis(1));
    assert_eq!(fates(world.answer(connection, settled).unwrap()), settled_ok(2));
    sender.publish(&mut world, connection, "a", &[None], 10);
    let items = world.deliveries(connection);
    assert_eq!(fates(world.ask(connection, &settle(1, &[&items[0]], SettleAction::Ack))), settled_ok(1));
}

#[test]
fn a_settlement_goes_at_once_where_others_of_its_group_are_at_work() {
    let (mut world, connection, _) = stream();
    let items = world.deliveries(connection);
    assert_eq!(fates(world.ask(connection, &settle(1, &[&items[0]], SettleAction::Ack))), settled_ok(1));
}
