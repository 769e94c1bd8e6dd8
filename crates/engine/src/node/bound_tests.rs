//! Bounds: what is refused when, so that nothing is dropped in silence.

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
