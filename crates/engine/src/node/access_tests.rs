//! Principals at a node stepped by hand: what each may do, changes while they are connected, quotas, who tries too often,
//! and what of it all is written down.

use swarmmq_protocol::{
    access::{AccessRequest, Pattern, PrincipalName, Quota, QuotaChanges, ROOT_BEFORE, Rules, Verb},
    frame::{CloseSession, Peek, Refused},
    mac::{DualKey, principal_token},
    policy::Setting,
};

use super::*;
use crate::shard::{
    access::{AccessEvent, Ticket},
    event::{CatalogEvent, Event},
};

const ELSEWHERE: Source = Source([9; 16]);

fn name(text: &str) -> PrincipalName {
    PrincipalName::parse(text).unwrap()
}

fn rules(texts: &[&str]) -> Rules {
    let mut rules = Rules::default();
    texts.iter().for_each(|text| rules.add(text).unwrap());
    rules
}

fn admin(request: AccessRequest) -> Frame {
    Frame::Admin(Admin(AdminRequest::Access(request)))
}

/// Root makes a principal. Gives the generation of its token.
pub(super) fn add(
    world: &mut World,
    root: ConnectionId,
    who: &str,
    allow: &[&str],
    quotas: &[(Quota, u64)],
) -> u64 {
    let (name, rules, quotas) = (name(who), rules(allow), QuotaChanges(quotas.to_vec()));
    match world.ask(root, &admin(AccessRequest::Add { name, rules, quotas })) {
        Frame::AdminReply(reply) => match reply.0 {
            AdminAnswer::Generation(generation) => generation,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn change(world: &mut World, root: ConnectionId, request: AccessRequest) {
    assert_eq!(world.ask(root, &admin(request)), Frame::Answer(Answer::ok()));
}

fn token(who: &str, generation: u64) -> MacKey {
    MacKey::new(*principal_token(&MacKey::new([1; 32]), ClusterId(5), who, generation))
}

/// Connects and proves to be `who`, or is refused.
fn enter(world: &mut World, who: &str, token: MacKey, source: Source) -> Result<ConnectionId, Refused> {
    let connection = ConnectionId(world.next_connection);
    world.next_connection += 1;
    world.inboxes.insert(connection, (FrameReader::new(), VecDeque::new()));
    world.node.handle(world.now, Input::Connected { connection, nonce: [3; 32], source });
    world.run();
    let mut out = BytesMut::new();
    let handshake = ClientHandshake::start(token, who, [4; 32], &mut out);
    shake(world, connection, handshake, out)
}

/// Goes on with a handshake that has begun with `out`.
fn shake(
    world: &mut World,
    connection: ConnectionId,
    mut handshake: ClientHandshake,
    mut out: BytesMut,
) -> Result<ConnectionId, Refused> {
    while !world.node.is_authenticated(connection) {
        world.deliver_bytes(connection, &mut out);
        for (request, frame) in world.take(connection) {
            if let Frame::Refused(refused) = frame {
                assert!(world.closed.contains(&connection));
                return Err(refused);
            }
            let mut bytes = BytesMut::new();
            frame.encode(request, &mut bytes);
            let mut reader = FrameReader::new();
            reader.buffer().extend_from_slice(&bytes);
            let (header, body) = reader.next_frame().unwrap().unwrap();
            handshake.frame(header, body, &mut out).unwrap();
        }
    }
    Ok(connection)
}

pub(super) fn enter_as(world: &mut World, who: &str, generation: u64) -> ConnectionId {
    enter(world, who, token(who, generation), ELSEWHERE).unwrap()
}

pub(super) fn code(frame: &Frame) -> Option<Code> {
    let number = match frame {
        Frame::Answer(answer) => answer.code,
        Frame::Published(published) => published.runs[0].code,
        Frame::Settled(settled) => settled.runs[0].code,
        Frame::Refused(refused) => refused.code,
        _ => 0,
    };
    Code::from_number(number)
}

fn resolve(address: &str, create: bool) -> Frame {
    let address = Address::parse(address).unwrap();
    Frame::Resolve(Resolve { address, create, order: None, deadline: DEADLINE })
}

fn peek(address: &str) -> Frame {
    Frame::Peek(Peek {
        address: Address::parse(address).unwrap(),
        shard: Sender::new(1).shard(address, None, false),
        from_offset: Offset(0),
        start: None,
        messages_max: 10,
        bytes_max: 1000,
    })
}

/// Every administrative question about one address.
fn questions_about(address: &str) -> Vec<AdminRequest> {
    let address = Address::parse(address).unwrap();
    let group = GroupName::parse("g").unwrap();
    let (a, g) = (|| address.clone(), || group.clone());
    let dry_run = true;
    vec![
        AdminRequest::AddressSet { address: a(), settings: Settings::default() },
        AdminRequest::AddressRemove { address: a(), dry_run },
        AdminRequest::AddressPurge { address: a(), dry_run },
        AdminRequest::GroupSeek { address: a(), group: g(), start: StartAt::Oldest, dry_run },
        AdminRequest::GroupRemove { address: a(), group: g(), dry_run },
    ]
}

/// Every question about the cluster as a whole.
fn questions_about_all() -> Vec<AdminRequest> {
    vec![
        AdminRequest::Status,
        AdminRequest::SettingList,
        AdminRequest::SettingSet { name: "routing.cohort".into(), value: "none".into() },
        AdminRequest::NodeDrain { node: NodeId(1), draining: false },
        AdminRequest::Routes,
        AdminRequest::Access(AccessRequest::List),
        AdminRequest::Access(AccessRequest::Change {
            name: name("p"),
            granted: rules(&["admin:*"]),
            revoked: Rules::default(),
        }),
    ]
}

/// A cluster with the address `shop.a` that has one message and the group `g`; and root.
fn shop() -> (World, ConnectionId) {
    let mut world = World::new();
    let root = world.connect();
    make(&mut world, root, "shop.a", Order::Total);
    make(&mut world, root, "else", Order::Total);
    world.ask(root, &subscribe("shop.a", "g", 50, 0, vec![]));
    world.ask(root, &subscribe("else", "g", 51, 0, vec![]));
    Sender::new(1).publish(&mut world, root, "shop.a", &[None], 10);
    (world, root)
}

#[test]
fn each_verb_allows_its_requests_at_its_addresses_and_every_other_request_is_refused() {
    for verb in Verb::ALL {
        for pattern in ["shop", "shop.a", "*", "else"] {
            let (mut world, root) = shop();
            let rule = format!("{}:{pattern}", verb.text());
            let generation = add(&mut world, root, "p", &[&rule], &[]);
            let p = enter_as(&mut world, "p", generation);
            let covers = Pattern::parse(pattern).unwrap().covers("shop.a");
            let refused =
                |world: &mut World, frame: &Frame| code(&world.ask(p, frame)) == Some(Code::NotAllowed);
            let here = |wanted: Verb| covers && verb == wanted;

            // Publishing: a session anywhere, a message where the rule says.
            let sender = Sender::new(7);
            let shard = sender.shard("shop.a", None, false);
            assert_eq!(refused(&mut world, &sender.open(shard)), verb != Verb::Publish, "{rule}");
            if verb != Verb::Publish {
                world.ask(root, &sender.open(shard));
            }
            let message = sender.frame(shard, 1, sender.seal(shard, "shop.a", None, 1, 10));
            assert_eq!(refused(&mut world, &message), !here(Verb::Publish), "{rule}");

            // Consuming and looking.
            assert_eq!(refused(&mut world, &peek("shop.a")), !here(Verb::Consume), "{rule}");
            let joined = refused(&mut world, &subscribe("shop.a", "g", 1, 10, vec![]));
            assert_eq!(joined, !here(Verb::Consume), "{rule}");
            assert_eq!(refused(&mut world, &resolve("shop.a", false)), !covers, "{rule}: any verb will do");
            let info = AdminRequest::AddressInfo { address: Address::parse("shop.a").unwrap() };
            assert_eq!(refused(&mut world, &Frame::Admin(Admin(info))), !covers, "{rule}");

            // Administration.
            for question in questions_about("shop.a") {
                let refused = refused(&mut world, &Frame::Admin(Admin(question.clone())));
                assert_eq!(refused, !here(Verb::Admin), "{rule}: {question:?}");
            }
            for question in questions_about_all() {
                let refused = refused(&mut world, &Frame::Admin(Admin(question.clone())));
                assert_eq!(refused, verb != Verb::Admin || pattern != "*", "{rule}: {question:?}");
            }
            // The list names what its rules touch.
            let Frame::AdminReply(reply) = world.ask(p, &Frame::Admin(Admin(AdminRequest::AddressList)))
            else {
                panic!()
            };
            let AdminAnswer::Addresses(listed) = reply.0 else { panic!() };
            assert_eq!(listed.len(), if pattern == "*" { 2 } else { 1 }, "{rule}: {listed:?}");
        }
    }
}

#[test]
fn settling_needs_a_rule_of_its_own_and_giving_back_does_not() {
    let (mut world, root) = shop();
    let generation = add(&mut world, root, "p", &["consume:shop"], &[]);
    let p = enter_as(&mut world, "p", generation);
    world.send(p, &subscribe("shop.a", "g", 1, 10, vec![]));
    let items: Vec<DeliverItem> = world
        .take(p)
        .into_iter()
        .filter_map(|(_, frame)| if let Frame::Deliver(deliver) = frame { Some(deliver.items) } else { None })
        .flatten()
        .collect();
    let [item] = &items[..] else { panic!("{items:?}") };
    let actions = [
        SettleAction::Ack,
        SettleAction::Nack { delay: None },
        SettleAction::Extend { duration: Duration::from_secs(5) },
        SettleAction::DeadLetter,
    ];
    let not_allowed = [(Outcome::Failed, Code::NotAllowed.number())];
    for action in actions {
        assert_eq!(fates(world.ask(p, &settle(1, &[item], action))), not_allowed, "{action:?}");
    }
    let granted = rules(&["settle:shop"]);
    change(&mut world, root, AccessRequest::Change { name: name("p"), granted, revoked: Rules::default() });
    assert_eq!(
        fates(world.ask(p, &settle(1, &[item], SettleAction::Ack))),
        settled_ok(1),
        "nothing was lost"
    );
    Sender::new(2).publish(&mut world, root, "shop.a", &[None], 10);
    let items = world.deliveries(p);
    let revoked = rules(&["settle:shop"]);
    change(&mut world, root, AccessRequest::Change { name: name("p"), granted: Rules::default(), revoked });
    assert_eq!(fates(world.ask(p, &settle(1, &[&items[0]], SettleAction::Release))), settled_ok(1));
}

#[test]
fn a_batch_with_one_message_for_a_forbidden_address_is_refused_whole() {
    let (mut world, root) = shop();
    let generation = add(&mut world, root, "p", &["publish:shop"], &[]);
    let p = enter_as(&mut world, "p", generation);
    let sender = Sender::new(7);
    let shard = sender.shard("shop.a", None, false);
    world.ask(p, &sender.open(shard));
    let both = [sender.seal(shard, "shop.a", None, 1, 10), sender.seal(shard, "else", None, 2, 10)].concat();
    assert_eq!(code(&world.ask(p, &sender.frame(shard, 2, both))), Some(Code::NotAllowed));
    assert_eq!(depth(&world), 1, "what root sent");
}

#[test]
fn first_use_makes_an_address_or_group_only_with_a_rule_or_a_quota_for_it() {
    let (mut world, root) = shop();
    let generation = add(&mut world, root, "p", &["use:shop"], &[]);
    let p = enter_as(&mut world, "p", generation);
    assert_eq!(code(&world.ask(p, &resolve("shop.new", true))), Some(Code::NotAllowed));
    assert_eq!(code(&world.ask(p, &subscribe("shop.a", "new", 1, 1, vec![]))), Some(Code::NotAllowed));
    let quotas = QuotaChanges(vec![(Quota::Addresses, 1), (Quota::Groups, 1)]);
    change(&mut world, root, AccessRequest::Bound { name: name("p"), quotas });
    assert!(matches!(world.ask(p, &resolve("shop.new", true)), Frame::Resolved(_)));
    assert!(matches!(world.ask(p, &resolve("shop.new", true)), Frame::Resolved(_)), "it exists");
    assert!(matches!(world.ask(p, &subscribe("shop.a", "new", 1, 1, vec![])), Frame::Subscribed(_)));
    assert_eq!(code(&world.ask(p, &resolve("shop.newer", true))), Some(Code::Quota));
    assert_eq!(code(&world.ask(p, &subscribe("shop.a", "newer", 2, 1, vec![]))), Some(Code::Quota));
    let (granted, revoked) = (rules(&["admin:shop"]), Rules::default());
    let quotas = QuotaChanges(vec![(Quota::Addresses, 0), (Quota::Groups, 0)]);
    change(&mut world, root, AccessRequest::Bound { name: name("p"), quotas });
    change(&mut world, root, AccessRequest::Change { name: name("p"), granted, revoked });
    assert!(matches!(world.ask(p, &resolve("shop.newer", true)), Frame::Resolved(_)), "it administrates");
    // Of its own, a dead-letter queue is made by nobody; it comes with its address.
    assert!(matches!(world.ask(p, &subscribe("shop.a.dlq", "g", 3, 1, vec![])), Frame::Subscribed(_)));
}

#[test]
fn a_name_that_is_unknown_disabled_or_has_a_wrong_proof_gets_one_and_the_same_refusal() {
    let (mut world, root) = shop();
    let generation = add(&mut world, root, "p", &[], &[]);
    let wrong = enter(&mut world, "p", token("p", generation + 1), ELSEWHERE).unwrap_err();
    let unknown = enter(&mut world, "nobody", token("nobody", 1), ELSEWHERE).unwrap_err();
    let guessed = enter(&mut world, "nobody", token("nobody", 0), Source([1; 16])).unwrap_err();
    change(&mut world, root, AccessRequest::Enable { name: name("p"), enabled: false });
    let disabled = enter(&mut world, "p", token("p", generation), ELSEWHERE).unwrap_err();
    assert_eq!(wrong.code, Code::Unauthenticated.number());
    assert!([unknown, guessed, disabled].iter().all(|refused| *refused == wrong));
    change(&mut world, root, AccessRequest::Enable { name: name("p"), enabled: true });
    enter_as(&mut world, "p", generation);
    // Another principal's token, and root's, prove nothing.
    for (who, key) in [("p", MacKey::new([1; 32])), (ROOT, token("p", generation))] {
        assert!(enter(&mut world, who, key, Source([2; 16])).is_err(), "{who}");
    }
    // What clients called themselves before there were principals is root.
    assert!(enter(&mut world, ROOT_BEFORE, MacKey::new([1; 32]), Source([3; 16])).is_ok());
}

#[test]
fn whoever_is_disabled_removed_or_may_not_consume_any_more_is_let_go() {
    for end in [
        AccessRequest::Enable { name: name("p"), enabled: false },
        AccessRequest::Remove { name: name("p") },
        AccessRequest::Change {
            name: name("p"),
            granted: Rules::default(),
            revoked: rules(&["consume:shop"]),
        },
    ] {
        let (mut world, root) = shop();
        let generation = add(&mut world, root, "p", &["use:shop"], &[]);
        let p = enter_as(&mut world, "p", generation);
        world.ask(p, &subscribe("shop.a", "g", 1, 0, vec![]));
        let idle = enter_as(&mut world, "p", generation);
        let shrinks = matches!(end, AccessRequest::Change { .. });
        change(&mut world, root, end);
        assert!(world.closed.contains(&p) && !world.closed.contains(&root));
        assert_eq!(world.closed.contains(&idle), !shrinks, "who consumes nothing goes on with fewer rules");
        let last = world.take(p).pop().unwrap().1;
        let expected = if shrinks { Code::NotAllowed } else { Code::Unauthenticated };
        assert_eq!(code(&last), Some(expected));
    }
}

#[test]
fn a_rotated_token_is_accepted_beside_the_next_one_until_its_time_is_over() {
    let (mut world, root) = shop();
    let old = add(&mut world, root, "p", &[], &[]);
    let before = enter_as(&mut world, "p", old);
    let overlap = Duration::from_secs(60);
    let answer = world.ask(root, &admin(AccessRequest::Rotate { name: name("p"), overlap }));
    let Frame::AdminReply(reply) = answer else { panic!("{answer:?}") };
    assert_eq!(reply.0, AdminAnswer::Generation(old + 1));
    let between = enter_as(&mut world, "p", old);
    let after = enter_as(&mut world, "p", old + 1);
    world.pass(Duration::from_secs(59));
    assert!(world.closed.is_empty());
    world.pass(Duration::from_secs(2));
    assert!(
        world.closed.contains(&before) && world.closed.contains(&between) && !world.closed.contains(&after)
    );
    assert!(enter(&mut world, "p", token("p", old), ELSEWHERE).is_err());
    // Without an overlap at once: the token is in the wrong hands.
    world.ask(root, &admin(AccessRequest::Rotate { name: name("p"), overlap: Duration::ZERO }));
    assert!(world.closed.contains(&after));
}

#[test]
fn principals_survive_a_crash_and_are_told_to_administrators_alone() {
    let (mut world, root) = shop();
    let generation = add(&mut world, root, "p", &["use:shop"], &[(Quota::Connections, 2)]);
    let mut world = world.crash();
    let p = enter_as(&mut world, "p", generation);
    let root = world.connect();
    let Frame::AdminReply(reply) = world.ask(root, &admin(AccessRequest::List)) else { panic!() };
    let AdminAnswer::Principals(all) = reply.0 else { panic!() };
    assert_eq!((all.len(), all[0].rules.clone()), (1, rules(&["use:shop"])));
    assert_eq!(code(&world.ask(p, &admin(AccessRequest::List))), Some(Code::NotAllowed));
}

#[test]
fn connections_and_producers_beyond_their_quota_are_refused_and_come_back_when_others_end() {
    let (mut world, root) = shop();
    let quotas = [(Quota::Connections, 2), (Quota::Producers, 1)];
    let generation = add(&mut world, root, "p", &["publish:shop"], &quotas);
    let (one, two) = (enter_as(&mut world, "p", generation), enter_as(&mut world, "p", generation));
    let third = enter(&mut world, "p", token("p", generation), ELSEWHERE).unwrap_err();
    assert_eq!(third.code, Code::Quota.number());

    let (first, second) = (Sender::new(7), Sender::new(8));
    let shard = first.shard("shop.a", None, false);
    let ok = Frame::Answer(Answer::ok());
    assert_eq!(world.ask(one, &first.open(shard)), ok);
    assert_eq!(world.ask(two, &first.open(shard)), ok, "the same producer over another connection");
    assert_eq!(code(&world.ask(two, &second.open(shard))), Some(Code::Quota));
    let close = CloseSession { shard, producer: first.producer, epoch: ProducerEpoch(1) };
    assert_eq!(world.ask(one, &Frame::CloseSession(close)), ok);
    world.node.handle(world.now, Input::Disconnected { connection: two });
    assert_eq!(world.ask(one, &second.open(shard)), ok);
    enter_as(&mut world, "p", generation);
}

#[test]
fn whoever_sends_too_much_is_not_read_and_nobody_else_waits() {
    let (mut world, root) = shop();
    let generation = add(&mut world, root, "p", &["publish:shop"], &[(Quota::Messages, 100)]);
    let p = enter_as(&mut world, "p", generation);
    let mut offender = Sender::new(7);
    let mut honest = Sender::new(8);
    honest.publish(&mut world, root, "shop.a", &[None], 10);
    let begun = world.now.monotonic;
    let mut sent = 0;
    while world.now.monotonic.since(begun) < Duration::from_secs(10) {
        // At full speed for as long as it is read; the honest one at any time.
        while world.node.paused_until(world.now.monotonic, p).is_none() {
            offender.publish(&mut world, p, "shop.a", &[None], 10);
            sent += 1;
        }
        assert!(world.node.paused_until(world.now.monotonic, root).is_none());
        honest.publish(&mut world, root, "shop.a", &[None; 5], 10);
        world.pass(Duration::from_millis(100));
    }
    // A second's worth at once, then the rate; the session's own request counts too.
    assert!((1_050..=1_120).contains(&sent), "{sent}");
    // What it could not ask is not its death: it hears that the node lives.
    let shard = offender.shard("shop.a", None, false);
    let flood = |from: u64| -> Vec<u8> {
        (from..from + 100).flat_map(|sequence| offender.seal(shard, "shop.a", None, sequence, 10)).collect()
    };
    world.pass(Duration::from_millis(20));
    world.take(p);
    assert_eq!(code(&world.ask(p, &offender.frame(shard, 100, flood(sent + 1)))), None, "what came is taken");
    world.pass(Duration::from_millis(900));
    let words = world.take(p).into_iter().filter(|(_, frame)| matches!(frame, Frame::Pong(_))).count();
    assert!((3..=5).contains(&words), "{words}");
    // Connecting again pays nothing.
    world.pass(Duration::from_millis(200));
    world.ask(p, &offender.frame(shard, 100, flood(sent + 101)));
    world.node.handle(world.now, Input::Disconnected { connection: p });
    let p = enter_as(&mut world, "p", generation);
    assert!(world.node.paused_until(world.now.monotonic, p).is_some());
    assert_eq!(world.node.connections.len(), 2);
}

#[test]
fn bytes_in_flight_beyond_the_quota_are_refused_until_others_were_answered() {
    let (mut world, root) = shop();
    let generation = add(&mut world, root, "p", &["publish:shop"], &[(Quota::InFlight, 1500)]);
    let p = enter_as(&mut world, "p", generation);
    let sender = Sender::new(7);
    let shard = sender.shard("shop.a", None, false);
    world.ask(p, &sender.open(shard));
    world.hold_syncs = true;
    let message = |sequence| sender.frame(shard, 1, sender.seal(shard, "shop.a", None, sequence, 800));
    let first = world.send(p, &message(1));
    assert_eq!(code(&world.ask(p, &message(2))), Some(Code::Busy));
    world.hold_syncs = false;
    world.run();
    assert!(world.answer(p, first).is_some());
    assert_eq!(code(&world.ask(p, &message(2))), None);
    let guest = world.node.connections[&p].publishing.bytes;
    assert_eq!(guest, 0);
}

#[test]
fn whoever_fails_too_often_is_not_listened_to_and_others_are() {
    let (mut world, root) = shop();
    let generation = add(&mut world, root, "p", &[], &[]);
    let guess = |world: &mut World, source| {
        let refused = enter(world, ROOT, MacKey::new([99; 32]), source).unwrap_err();
        Code::from_number(refused.code).unwrap()
    };
    for _ in 0..5 {
        assert_eq!(guess(&mut world, ELSEWHERE), Code::Unauthenticated);
    }
    assert_eq!(guess(&mut world, ELSEWHERE), Code::Throttled);
    let right = enter(&mut world, "p", token("p", generation), ELSEWHERE).unwrap_err();
    assert_eq!(right.code, Code::Throttled.number(), "it is not even looked at");
    assert!(enter(&mut world, "p", token("p", generation), HERE).is_ok());
    world.pass(Duration::from_secs(1));
    enter_as(&mut world, "p", generation);

    // Ten thousand connections that were opened before are no way around it: five of them are looked at.
    let mut looked_at = 0;
    let source = Source([5; 16]);
    let open: Vec<ConnectionId> = (0..1000)
        .map(|_| {
            let connection = ConnectionId(world.next_connection);
            world.next_connection += 1;
            world.inboxes.insert(connection, (FrameReader::new(), VecDeque::new()));
            world.node.handle(world.now, Input::Connected { connection, nonce: [3; 32], source });
            let mut out = BytesMut::new();
            ClientHandshake::start(MacKey::new([99; 32]), ROOT, [4; 32], &mut out);
            world.deliver_bytes(connection, &mut out);
            connection
        })
        .collect();
    for connection in open {
        let mut proof = BytesMut::new();
        let frame = swarmmq_protocol::frame::ClientProof { proof: [0; 32] };
        swarmmq_protocol::frame::encode(&frame, 0, &mut proof);
        world.deliver_bytes(connection, &mut proof);
        let last = world.take(connection).pop().unwrap().1;
        looked_at += usize::from(code(&last) == Some(Code::Unauthenticated));
        assert!(!world.node.is_authenticated(connection));
    }
    assert_eq!(looked_at, 5);
}

#[test]
fn refusals_and_changes_are_written_down_with_who_and_where() {
    let (mut world, root) = shop();
    let generation = add(&mut world, root, "p", &["publish:shop"], &[]);
    let p = enter_as(&mut world, "p", generation);
    world.audit.clear();
    for _ in 0..100 {
        world.ask(p, &peek("shop.a"));
    }
    enter(&mut world, "p", token("p", 77), ELSEWHERE).unwrap_err();
    let remove = AdminRequest::AddressRemove { address: Address::parse("else").unwrap(), dry_run: false };
    world.ask(root, &Frame::Admin(Admin(remove)));
    world.pass(Duration::from_secs(2));
    let lines: Vec<_> = world
        .audit
        .iter()
        .map(|line| {
            let Seen { source, principal, verb, address, code } = line.seen.clone();
            (source.unwrap(), principal, verb, address, code, line.count)
        })
        .collect();
    let line = |source, who: &str, verb, address: &str, code, count| {
        (source, who.to_owned(), verb, address.to_owned(), code, count)
    };
    let expected = [
        line(ELSEWHERE, "p", "consume", "shop.a", Some(Code::NotAllowed), 1),
        line(ELSEWHERE, "p", "connect", "*", Some(Code::Unauthenticated), 1),
        line(HERE, ROOT, "address remove", "else", None, 1),
        line(ELSEWHERE, "p", "consume", "shop.a", Some(Code::NotAllowed), 99),
    ];
    assert_eq!(lines, expected);
    let metrics = world.node.report().metrics;
    let refusals = metrics.iter().find(|metric| metric.name == "swarmmq_refusals_total").unwrap();
    let reasons: Vec<(&str, f64)> =
        refusals.samples.iter().map(|(labels, value)| (labels[0].1.as_str(), *value)).collect();
    assert_eq!(reasons, [("not_allowed", 100.0), ("unauthenticated", 1.0)]);
}

/// A node of a closed cluster, which knows itself as a member.
fn closed() -> (World, ConnectionId) {
    let mut world = World::new();
    let root = world.connect();
    let closed = AdminRequest::SettingSet { name: Setting::NAMES[2].into(), value: "false".into() };
    assert_eq!(world.ask(root, &Frame::Admin(Admin(closed))), Frame::Answer(Answer::ok()));
    (world, root)
}

fn stranger(world: &World, node: u16, join: Option<[u8; 32]>) -> swarmmq_protocol::session::peer::PeerHello {
    let mut hello = world.node.hello();
    (hello.node, hello.incarnation, hello.join) = (NodeId(node), 1000 + u64::from(node), join);
    hello
}

#[test]
fn a_node_joins_a_closed_cluster_with_a_token_once() {
    let (mut world, root) = closed();
    let verdict = |world: &World, node, join| {
        world.node.admits(world.now, &stranger(world, node, join)).map_err(|(code, _)| code)
    };
    assert_eq!(verdict(&world, 2, None), Err(Code::JoinRequired));
    assert_eq!(verdict(&world, 2, Some([7; 32])), Err(Code::JoinUnknown));
    let issue = |world: &mut World, byte, node: Option<u16>, seconds| {
        let expires = Duration::from_secs(seconds);
        let request = AccessRequest::JoinToken { hash: [byte; 32], node: node.map(NodeId), expires };
        change(world, root, request);
    };
    issue(&mut world, 7, None, 60);
    issue(&mut world, 8, Some(9), 60);
    assert_eq!(verdict(&world, 2, Some([8; 32])), Err(Code::JoinOtherNode));
    assert_eq!(verdict(&world, 2, Some([7; 32])), Ok(()));
    let hello = stranger(&world, 2, Some([7; 32]));
    world.node.handle(world.now, Input::PeerUp { hello });
    world.run();
    let members = |world: &World| -> Vec<u16> {
        world.node.cluster_shard().state().catalog.members.nodes.keys().map(|node| node.0).collect()
    };
    assert_eq!(members(&world), [1, 2]);
    assert_eq!(verdict(&world, 3, Some([7; 32])), Err(Code::JoinUnknown), "it is spent");
    assert_eq!(verdict(&world, 2, None), Ok(()), "a member needs none");
}

#[test]
fn a_join_token_that_is_too_old_lets_nobody_in_and_neither_do_two_at_once() {
    let (mut world, root) = closed();
    let request = |byte, seconds| AccessRequest::JoinToken {
        hash: [byte; 32],
        node: None,
        expires: Duration::from_secs(seconds),
    };
    assert_eq!(code(&world.ask(root, &admin(request(6, 0)))), Some(Code::Malformed));
    change(&mut world, root, request(7, 60));
    world.pass(Duration::from_secs(61));
    // The cluster's own time goes on with what it writes.
    change(&mut world, root, request(8, 60));
    let old = stranger(&world, 2, Some([7; 32]));
    let refused = world.node.admits(world.now, &old).unwrap_err().0;
    assert_eq!(refused, Code::JoinExpired);
    // Two bring the same token before either is a member: one becomes one, the other's link ends.
    let (a, b) = (stranger(&world, 2, Some([8; 32])), stranger(&world, 3, Some([8; 32])));
    assert!(world.node.admits(world.now, &a).is_ok() && world.node.admits(world.now, &b).is_ok());
    world.hold_syncs = true;
    world.node.handle(world.now, Input::PeerUp { hello: a });
    world.node.handle(world.now, Input::PeerUp { hello: b });
    world.hold_syncs = false;
    world.run();
    let members = &world.node.cluster_shard().state().catalog.members.nodes;
    assert_eq!(members.len(), 2, "{members:?}");
    let mut effects = Effects::default();
    world.now.monotonic = world.now.monotonic + Duration::from_secs(1);
    world.node.handle(world.now, Input::Woken);
    world.node.flush(world.now, &mut effects);
    assert_eq!(effects.unwanted, [NodeId(3)]);
    assert!(effects.audit.iter().any(|line| line.seen.code == Some(Code::JoinUnknown)));
}

#[test]
fn a_member_whose_disk_is_new_needs_no_token_and_a_removed_one_does() {
    let (mut world, root) = closed();
    let event = AccessEvent::TicketMade {
        hash: [7; 32],
        ticket: Ticket { node: None, expires_at: WallTime(u64::MAX) },
    };
    let mut work = Work::default();
    let cluster = world.node.shards.len() - 1;
    world.node.shards[cluster].propose(&Event::Catalog(CatalogEvent::Access(event)), None, &mut work);
    world.node.dirty[cluster] = true;
    world.run();
    let hello = stranger(&world, 2, Some([7; 32]));
    world.node.handle(world.now, Input::PeerUp { hello });
    world.run();
    world.node.handle(world.now, Input::PeerDown { node: NodeId(2), gone: false });
    let mut renewed = stranger(&world, 2, None);
    renewed.incarnation = 77;
    assert_eq!(world.node.admits(world.now, &renewed), Ok(()));
    let remove = Frame::Admin(Admin(AdminRequest::NodeRemove { node: NodeId(2) }));
    assert_eq!(world.ask(root, &remove), Frame::Answer(Answer::ok()));
    let code = |world: &World, hello| world.node.admits(world.now, hello).unwrap_err().0;
    assert_eq!(code(&world, &renewed), Code::JoinRequired);
    assert_eq!(code(&world, &stranger(&world, 2, Some([7; 32]))), Code::Removed);
}

#[test]
fn the_setting_opens_the_door_and_closes_it() {
    let (mut world, root) = closed();
    assert!(world.node.admits(world.now, &stranger(&world, 2, None)).is_err());
    let open = AdminRequest::SettingSet { name: Setting::NAMES[2].into(), value: "true".into() };
    world.ask(root, &Frame::Admin(Admin(open)));
    assert_eq!(world.node.admits(world.now, &stranger(&world, 2, None)), Ok(()));
    let Frame::AdminReply(reply) = world.ask(root, &Frame::Admin(Admin(AdminRequest::SettingList))) else {
        panic!()
    };
    let AdminAnswer::Settings(all) = reply.0 else { panic!() };
    assert!(all.contains(&("cluster.open_join".to_owned(), "true".to_owned())));
}

/// Like [`enter`], with the certificate of `shown` in place of a token.
fn enter_certified(world: &mut World, who: &str, shown: Option<&str>) -> Result<ConnectionId, Refused> {
    let connection = ConnectionId(world.next_connection);
    world.next_connection += 1;
    world.inboxes.insert(connection, (FrameReader::new(), VecDeque::new()));
    let source = ELSEWHERE;
    world.node.handle(world.now, Input::Connected { connection, nonce: [3; 32], source });
    if let Some(name) = shown {
        world.node.handle(world.now, Input::Certified { connection, name: name.to_owned() });
    }
    let mut out = BytesMut::new();
    let handshake = ClientHandshake::start_certified(who, [4; 32], &mut out);
    shake(world, connection, handshake, out)
}

#[test]
fn a_certificate_lets_in_as_the_principal_that_it_names_and_as_nobody_else() {
    let mut world = World::new();
    let root = world.connect();
    for who in ["billing", "shop"] {
        add(&mut world, root, who, &["publish:shop"], &[]);
    }
    let refused = |result: Result<ConnectionId, Refused>| Code::from_number(result.unwrap_err().code);
    let billing = enter_certified(&mut world, "billing", Some("billing")).unwrap();
    assert!(world.node.is_authenticated(billing));
    let strangers = [
        ("shop", Some("billing")),
        ("billing", None),
        ("nobody", Some("nobody")),
        ("root", Some("root")),
        ("", Some("")),
    ];
    for (who, shown) in strangers {
        world.pass(Duration::from_secs(700));
        let result = enter_certified(&mut world, who, shown);
        assert_eq!(refused(result), Some(Code::Unauthenticated), "{who} with {shown:?}");
    }
    // Its rules are those of the principal...
    assert_eq!(code(&world.ask(billing, &peek("shop"))), Some(Code::NotAllowed));
    // ...another token ends nothing, and whoever is disabled goes.
    let rotate = AccessRequest::Rotate { name: name("billing"), overlap: Duration::ZERO };
    world.ask(root, &admin(rotate));
    assert!(!world.closed.contains(&billing));
    change(&mut world, root, AccessRequest::Enable { name: name("billing"), enabled: false });
    assert!(world.closed.contains(&billing));
    world.pass(Duration::from_secs(700));
    assert_eq!(refused(enter_certified(&mut world, "billing", Some("billing"))), Some(Code::Unauthenticated));
}

/// The keys of the node while they are replaced: in use, and beside it.
fn keys(world: &mut World, access: (u8, Option<u8>), admission: (u8, Option<u8>)) {
    let key = |byte| MacKey::new([byte; 32]);
    let dual = |(current, also): (u8, Option<u8>)| DualKey { current: key(current), also: also.map(key) };
    let (access_token, admission_key) = (dual(access), dual(admission));
    let input = Input::Keys { access_token, admission_key, cluster_secret: key(3).into() };
    world.node.handle(world.now, input);
    world.run();
}

#[test]
fn an_access_token_is_replaced_and_whoever_has_only_the_old_one_goes() {
    let mut world = World::new();
    let root = world.connect();
    let generation = add(&mut world, root, "till", &["publish:shop"], &[]);
    let till = enter_as(&mut world, "till", generation);
    let of = |access: u8| {
        let access = MacKey::new([access; 32]);
        MacKey::new(*principal_token(&access, ClusterId(5), "till", generation))
    };
    keys(&mut world, (1, Some(7)), (2, None));
    let early = enter(&mut world, "till", of(7), ELSEWHERE).unwrap();
    let other_root = enter(&mut world, ROOT, MacKey::new([7; 32]), ELSEWHERE).unwrap();
    keys(&mut world, (7, Some(1)), (2, None));
    let late = enter(&mut world, "till", of(1), ELSEWHERE).unwrap();
    let open = |world: &World| [root, till, early, other_root, late].map(|id| !world.closed.contains(&id));
    assert_eq!(open(&world), [true; 5]);
    keys(&mut world, (7, None), (2, None));
    assert_eq!(open(&world), [false, false, true, true, false]);
    let refused = enter(&mut world, "till", of(1), ELSEWHERE).unwrap_err();
    assert_eq!(Code::from_number(refused.code), Some(Code::Unauthenticated));
    assert!(enter(&mut world, "till", of(7), ELSEWHERE).is_ok());
}

#[test]
fn an_admission_key_is_replaced_and_what_only_the_old_one_lets_in_is_refused() {
    let mut world = World::new();
    let client = world.connect();
    make(&mut world, client, "a", Order::Total);
    let mut sender = Sender::new(1);
    for admission in [(2, None), (2, Some(7)), (7, Some(2))] {
        keys(&mut world, (1, None), admission);
        sender.publish(&mut world, client, "a", &[None], 10);
    }
    keys(&mut world, (1, None), (7, None));
    let shard = sender.shard("a", None, false);
    let late = sender.frame(shard, 1, sender.seal(shard, "a", None, 4, 10));
    assert_eq!(code(&world.ask(client, &late)), Some(Code::Forged));
}
