//! A node stepped by hand: frames in, frames out, a disk made of vectors, and crashes.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    access::ROOT,
    admin::{AdminAnswer, AdminRequest, Order, Settings},
    envelope::Header,
    error::{Code, Outcome},
    frame::{
        Admin, Answer, Credit, Deliver, DeliverItem, Frame, FrameReader, Held, OpenSession, Publish,
        Published, Resolve, Settle, SettleAction, SettleItem, Skip, StartAt, Subscribe, Subscribed,
    },
    id::{
        Address, Attempt, ClusterId, ConsumerId, GroupName, KeyId, KeyRenewal, NodeId, ProducerEpoch,
        ProducerId, Salt, Sequence, ShardId,
    },
    mac::{self, MacKey},
    node_key::NodeSecret,
    session::{guard::Source, handshake::ClientHandshake},
    time::{Instant, WallTime},
};

use super::*;
use crate::log::{Append, Recovery, Verdict};

const HERE: Source = Source([7; 16]);
const SHARDS: u32 = 4;
const SEGMENT: u32 = 64 << 10;
const DEADLINE: Duration = Duration::from_secs(30);

fn config() -> Config {
    Config {
        cluster: ClusterId(5),
        node: NodeId(1),
        incarnation: 9,
        shard_count: SHARDS,
        access_token: MacKey::new([1; 32]).into(),
        admission_key: MacKey::new([2; 32]).into(),
        secret: NodeSecret::new([1; 32]),
        cluster_secret: MacKey::new([3; 32]).into(),
        segment_bytes: SEGMENT,
        cache_bytes_max: 16 << 10,
        boot: 1,
        founder: true,
        replicas: 3,
        open_join: true,
        roles: 7,
        addresses: Addresses::default(),
        horizon_ahead: 1024,
        reserve_bytes: 1000,
        seed: 7,
        version: "test".into(),
        bugs: bug::Bugs::NONE,
    }
}

/// A node, its disk, and its clients' unread frames.
struct World {
    node: Node,
    disk: BTreeMap<u32, Vec<u8>>,
    in_flight: Option<Append>,
    /// Syncs come back at once unless a test holds them.
    hold_syncs: bool,
    now: Now,
    inboxes: BTreeMap<ConnectionId, (FrameReader, VecDeque<(u64, Frame)>)>,
    closed: Vec<ConnectionId>,
    audit: Vec<AuditRecord>,
    next_connection: u64,
    next_request: u64,
}

impl World {
    fn new() -> Self {
        Self::on(BTreeMap::new(), Now { monotonic: Instant(1_000_000_000), wall: WallTime(1_000_000) })
    }

    fn on(disk: BTreeMap<u32, Vec<u8>>, now: Now) -> Self {
        let node = restore(&disk, now).unwrap();
        let mut world = Self {
            node,
            disk,
            in_flight: None,
            hold_syncs: false,
            now,
            inboxes: BTreeMap::new(),
            closed: Vec::new(),
            audit: Vec::new(),
            next_connection: 1,
            next_request: 1,
        };
        world.run();
        assert!(world.node.report().ready, "{}", world.node.report().reason);
        world
    }

    /// The process dies; what was synced stays. What was written and not synced is gone.
    fn crash(self) -> Self {
        Self::on(self.disk, Now { monotonic: Instant(1_000_000_000), wall: self.now.wall })
    }

    fn write(&mut self, append: &Append) {
        for write in &append.writes {
            let file = self.disk.entry(write.segment).or_insert_with(|| vec![0; SEGMENT as usize]);
            file[write.offset as usize..write.offset as usize + write.bytes.len()]
                .copy_from_slice(&write.bytes);
        }
    }

    fn sync(&mut self) {
        if let Some(append) = self.in_flight.take() {
            self.write(&append);
            self.node.handle(self.now, Input::Synced { batch: append.batch });
        }
    }

    /// Carries out effects until there are none.
    fn run(&mut self) {
        for _ in 0..1000 {
            let mut effects = Effects::default();
            self.node.flush(self.now, &mut effects);
            let idle = effects.append.is_none() && effects.reads.is_empty() && self.in_flight.is_none();
            if let Some(append) = effects.append {
                self.in_flight = Some(append);
            }
            for read in effects.reads {
                let (from, length) = (read.position.offset as usize, read.length as usize);
                let bytes = &self.disk[&read.position.segment][from..];
                let bytes = Bytes::copy_from_slice(&bytes[..length.min(bytes.len())]);
                self.node.handle(self.now, Input::Read { ticket: read.ticket, result: Ok(bytes) });
            }
            self.audit.extend(effects.audit);
            for segment in effects.release {
                self.disk.remove(&segment);
            }
            for (connection, bytes) in effects.sends {
                let (reader, inbox) = self.inboxes.get_mut(&connection).unwrap();
                reader.set_authenticated();
                reader.buffer().extend_from_slice(&bytes);
                while let Some((header, body)) = reader.next_frame().unwrap() {
                    inbox.push_back((header.request, Frame::decode(header.kind, body).unwrap()));
                }
            }
            self.closed.extend(effects.closes);
            if self.hold_syncs || idle {
                return;
            }
            self.sync();
        }
        panic!("the node never comes to rest");
    }

    fn pass(&mut self, duration: Duration) {
        let until = self.now.monotonic + duration;
        while let Some(at) = self.node.next_wake().filter(|at| *at <= until) {
            let step = at.max(self.now.monotonic).since(self.now.monotonic);
            self.now.monotonic = self.now.monotonic + step.max(Duration::from_millis(1));
            self.now.wall = self.now.wall.plus(step.max(Duration::from_millis(1)));
            self.node.handle(self.now, Input::Woken);
            self.run();
        }
        if self.now.monotonic < until {
            self.now.wall = self.now.wall.plus(until.since(self.now.monotonic));
            self.now.monotonic = until;
        }
        self.run();
    }

    fn deliver_bytes(&mut self, connection: ConnectionId, bytes: &mut BytesMut) {
        let mut reader = FrameReader::new();
        reader.set_authenticated();
        reader.buffer().extend_from_slice(&bytes.split());
        while let Some((header, body)) = reader.next_frame().unwrap() {
            self.node.handle(self.now, Input::Frame { connection, header, body });
        }
        self.run();
    }

    fn connect(&mut self) -> ConnectionId {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        self.inboxes.insert(connection, (FrameReader::new(), VecDeque::new()));
        self.node.handle(self.now, Input::Connected { connection, nonce: [3; 32], source: HERE });
        let mut out = BytesMut::new();
        let mut handshake = ClientHandshake::start(MacKey::new([1; 32]), ROOT, [4; 32], &mut out);
        while !self.node.is_authenticated(connection) {
            self.deliver_bytes(connection, &mut out);
            for (request, frame) in self.take(connection) {
                let mut bytes = BytesMut::new();
                frame.encode(request, &mut bytes);
                let mut reader = FrameReader::new();
                reader.buffer().extend_from_slice(&bytes);
                let (header, body) = reader.next_frame().unwrap().unwrap();
                handshake.frame(header, body, &mut out).unwrap();
            }
        }
        connection
    }

    fn take(&mut self, connection: ConnectionId) -> Vec<(u64, Frame)> {
        self.inboxes.get_mut(&connection).unwrap().1.drain(..).collect()
    }

    fn send(&mut self, connection: ConnectionId, frame: &Frame) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        let mut bytes = BytesMut::new();
        frame.encode(request, &mut bytes);
        self.deliver_bytes(connection, &mut bytes);
        request
    }

    /// Asks and takes the answer; anything else stays in the inbox.
    fn ask(&mut self, connection: ConnectionId, frame: &Frame) -> Frame {
        let request = self.send(connection, frame);
        self.answer(connection, request).unwrap_or_else(|| panic!("no answer to {frame:?}"))
    }

    fn answer(&mut self, connection: ConnectionId, request: u64) -> Option<Frame> {
        let inbox = &mut self.inboxes.get_mut(&connection).unwrap().1;
        let at = inbox.iter().position(|(of, _)| *of == request)?;
        inbox.remove(at).map(|(_, frame)| frame)
    }

    fn deliveries(&mut self, connection: ConnectionId) -> Vec<DeliverItem> {
        self.take(connection)
            .into_iter()
            .flat_map(|(_, frame)| match frame {
                Frame::Deliver(Deliver { items, .. }) => items,
                Frame::LeaseLost(_) => Vec::new(),
                other => panic!("{other:?} among deliveries"),
            })
            .collect()
    }
}

fn restore(disk: &BTreeMap<u32, Vec<u8>>, now: Now) -> Result<Node, RestoreError> {
    let config = config();
    let mut recovery = Recovery::new(config.log(), disk.keys().copied().collect());
    let mut restore = Node::restore(config);
    restore.segments(recovery.order());
    for sequence in recovery.order().to_vec() {
        recovery.segment(sequence, &disk[&sequence], &mut |record| restore.record(&record));
    }
    let verdict = recovery.finish();
    assert!(!matches!(verdict, Verdict::Corrupt { .. }), "{verdict:?}");
    restore.finish(&verdict, now, &mut |position, length| {
        let from = position.offset as usize;
        Ok(Bytes::copy_from_slice(&disk[&position.segment][from..from + length as usize]))
    })
}

/// A producer that counts by itself.
struct Sender {
    producer: ProducerId,
    next: BTreeMap<ShardId, u64>,
}

impl Sender {
    fn new(number: u128) -> Self {
        Self { producer: ProducerId(number), next: BTreeMap::new() }
    }

    fn salt(&self) -> Salt {
        Salt([self.producer.0 as u8; 32])
    }

    fn open(&self, shard: ShardId) -> Frame {
        Frame::OpenSession(OpenSession {
            shard,
            producer: self.producer,
            epoch: ProducerEpoch(1),
            salt: self.salt(),
            created_at: WallTime(1_000_000),
            deadline: DEADLINE,
        })
    }

    fn seal(&self, shard: ShardId, address: &str, key: Option<&str>, sequence: u64, body: usize) -> Vec<u8> {
        let parsed = Address::parse(address).unwrap();
        let header = Header {
            address,
            shard,
            key_id: KeyId(1),
            renewal: KeyRenewal(0),
            producer: self.producer,
            epoch: ProducerEpoch(1),
            sequence: Sequence(sequence),
            salt: self.salt(),
            published_at: WallTime(1_000_000 + sequence),
            key_hash: key.map(|key| mac::key_hash(&MacKey::new([8; 32]), &parsed, key.as_bytes())),
            trace: None,
        };
        let mut bytes = Vec::new();
        header.encode(body as u32 + 16, &mut bytes);
        bytes.extend((0..body + 16).map(|n| (n as u64 + sequence * 13) as u8));
        let mac = MacKey::new([2; 32]).sign(&[&bytes]);
        bytes.extend(mac);
        bytes
    }

    /// Publishes `count` messages and expects them to be stored.
    fn publish(
        &mut self,
        world: &mut World,
        connection: ConnectionId,
        address: &str,
        keys: &[Option<&str>],
        body: usize,
    ) {
        for key in keys {
            let shard = self.shard(address, *key, key.is_some());
            let next = match self.next.get(&shard) {
                Some(next) => *next,
                None => {
                    assert_eq!(world.ask(connection, &self.open(shard)), Frame::Answer(Answer::ok()));
                    1
                }
            };
            let frame = self.frame(shard, 1, self.seal(shard, address, *key, next, body));
            let Frame::Published(Published { runs }) = world.ask(connection, &frame) else { panic!() };
            assert_eq!((runs[0].outcome, runs[0].duplicate), (Outcome::Ok, false), "{runs:?}");
            self.next.insert(shard, next + 1);
        }
    }

    fn frame(&self, shard: ShardId, count: u16, messages: Vec<u8>) -> Frame {
        Frame::Publish(Publish { shard, deadline: DEADLINE, count, messages: messages.into() })
    }

    fn shard(&self, address: &str, key: Option<&str>, by_key: bool) -> ShardId {
        let address = Address::parse(address).unwrap();
        let hash =
            key.filter(|_| by_key).map(|key| mac::key_hash(&MacKey::new([8; 32]), &address, key.as_bytes()));
        mac::ring(&address, hash.as_ref(), SHARDS)
    }
}

fn make(world: &mut World, connection: ConnectionId, address: &str, order: Order) {
    let resolve = Resolve {
        address: Address::parse(address).unwrap(),
        create: true,
        order: Some(order),
        deadline: DEADLINE,
    };
    assert!(matches!(world.ask(connection, &Frame::Resolve(resolve)), Frame::Resolved(_)));
}

fn subscribe(address: &str, group: &str, consumer: u128, credit: u32, held: Vec<Held>) -> Frame {
    Frame::Subscribe(Subscribe {
        subscription: consumer as u32,
        consumer: ConsumerId(consumer),
        address: Address::parse(address).unwrap(),
        group: GroupName::parse(group).unwrap(),
        start: None,
        credit_messages: credit,
        credit_bytes: 1 << 20,
        deadline: DEADLINE,
        held,
    })
}

fn settle(consumer: u128, items: &[&DeliverItem], action: SettleAction) -> Frame {
    let items = items
        .iter()
        .map(|item| SettleItem {
            shard: item.shard,
            offset: item.offset,
            term: item.term,
            attempt: item.attempt,
            action,
            reason: "said the consumer".into(),
        })
        .collect();
    Frame::Settle(Settle { subscription: consumer as u32, deadline: DEADLINE, items })
}

fn fates(frame: Frame) -> Vec<(Outcome, u16)> {
    let Frame::Settled(settled) = frame else { panic!("{frame:?}") };
    settled.runs.iter().flat_map(|run| vec![(run.outcome, run.code); run.count.into()]).collect()
}

fn depth(world: &World) -> usize {
    world
        .node
        .shards
        .iter()
        .flat_map(|shard| shard.state().queues.values())
        .map(|queue| queue.messages.len())
        .sum()
}

fn settled_ok(count: usize) -> Vec<(Outcome, u16)> {
    vec![(Outcome::Ok, 0); count]
}

#[test]
fn a_publish_is_answered_only_when_it_is_synced() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let mut sender = Sender::new(1);
    sender.publish(&mut world, connection, "a", &[None], 10);
    world.hold_syncs = true;
    let shard = sender.shard("a", None, false);
    let request = world.send(connection, &sender.frame(shard, 1, sender.seal(shard, "a", None, 2, 10)));
    assert_eq!(world.answer(connection, request), None);
    world.hold_syncs = false;
    world.run();
    assert!(matches!(world.answer(connection, request), Some(Frame::Published(_))));
}

#[test]
fn copies_gaps_forgeries_and_strays_are_told_apart() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let mut sender = Sender::new(1);
    sender.publish(&mut world, connection, "a", &[None, None], 10);
    let shard = sender.shard("a", None, false);
    let run = |world: &mut World, messages: Vec<u8>, shard: ShardId| {
        let Frame::Published(published) = world.ask(connection, &sender.frame(shard, 1, messages)) else {
            panic!()
        };
        published.runs[0]
    };
    let copy = run(&mut world, sender.seal(shard, "a", None, 1, 10), shard);
    assert_eq!((copy.outcome, copy.duplicate, copy.first_offset), (Outcome::Ok, true, Some(Offset(0))));
    let gap = run(&mut world, sender.seal(shard, "a", None, 9, 10), shard);
    assert_eq!((gap.outcome, gap.code), (Outcome::Failed, Code::Gap.number()));
    let mut forged = sender.seal(shard, "a", None, 3, 10);
    forged[120] ^= 1;
    assert_eq!(run(&mut world, forged, shard).code, Code::Forged.number());
    let other = ShardId((shard.0 + 1) % SHARDS);
    assert_eq!(run(&mut world, sender.seal(other, "a", None, 3, 10), other).code, Code::WrongShard.number());
    assert_eq!(
        run(&mut world, sender.seal(shard, "zz", None, 3, 10), shard).code,
        Code::NoSuchAddress.number()
    );
    let stranger = Sender::new(2);
    assert_eq!(run(&mut world, stranger.seal(shard, "a", None, 1, 10), shard).code, Code::NotOpen.number());
    assert_eq!(depth(&world), 2);

    let skip = Skip {
        shard,
        producer: sender.producer,
        epoch: ProducerEpoch(1),
        first: Sequence(3),
        last: Sequence(3),
        deadline: DEADLINE,
    };
    assert_eq!(world.ask(connection, &Frame::Skip(skip)), Frame::Answer(Answer::ok()));
    assert!(
        run(&mut world, sender.seal(shard, "a", None, 3, 10), shard).duplicate,
        "a skipped sequence counts as seen"
    );
}

#[test]
fn what_is_acknowledged_is_gone_and_an_ack_without_a_lease_fails_visibly() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    Sender::new(1).publish(&mut world, connection, "a", &[None; 5], 10);
    world.send(connection, &subscribe("a", "g", 1, 3, vec![]));
    let frames = world.take(connection);
    assert!(matches!(frames[0].1, Frame::Subscribed(_)));
    let items: Vec<DeliverItem> = frames[1..]
        .iter()
        .flat_map(|(_, frame)| match frame {
            Frame::Deliver(deliver) => deliver.items.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(items.iter().map(|item| item.offset.0).collect::<Vec<_>>(), [0, 1, 2], "credit is for three");
    let answer = world.ask(connection, &settle(1, &[&items[0], &items[1]], SettleAction::Ack));
    assert_eq!(fates(answer), settled_ok(2));
    assert_eq!(depth(&world), 3);
    let again = world.ask(connection, &settle(1, &[&items[0]], SettleAction::Ack));
    assert_eq!(fates(again), [(Outcome::Failed, Code::LeaseLost.number())]);

    // The third one's lease runs out; then its ack is void, and it comes again, flagged.
    world.pass(Duration::from_secs(31));
    let late = world.ask(connection, &settle(1, &[&items[2]], SettleAction::Ack));
    assert_eq!(fates(late), [(Outcome::Failed, Code::LeaseLost.number())]);
    world.send(connection, &Frame::Credit(Credit { subscription: 1, messages: 10, bytes: 1000 }));
    world.pass(Duration::from_secs(2));
    let items = world.deliveries(connection);
    let mut seen: Vec<(u64, u32)> = items.iter().map(|item| (item.offset.0, item.attempt.0)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(2, 2), (3, 1), (4, 1)]);
}

#[test]
fn a_message_refused_ten_times_lies_in_the_dead_letter_queue_with_its_reason() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    Sender::new(1).publish(&mut world, connection, "a", &[None], 10);
    world.ask(connection, &subscribe("a", "g", 1, 100, vec![]));
    for attempt in 1..=10 {
        let items = world.deliveries(connection);
        assert_eq!(items.len(), 1, "attempt {attempt}");
        assert_eq!(items[0].attempt, Attempt(attempt));
        let nack = SettleAction::Nack { delay: Some(Duration::from_millis(10)) };
        assert_eq!(fates(world.ask(connection, &settle(1, &[&items[0]], nack))), settled_ok(1));
        world.pass(Duration::from_millis(20));
    }
    assert_eq!(world.deliveries(connection), []);
    world.ask(connection, &subscribe("a.dlq", "g", 2, 100, vec![]));
    let dead = world.deliveries(connection);
    assert_eq!(dead.len(), 1);
    let reason = &dead[0].reason;
    assert!(reason.contains("group g: 10 failed attempts, the last: said the consumer"), "{reason}");
    // Dead letters do not dead-letter again.
    let bury = world.ask(connection, &settle(2, &[&dead[0]], SettleAction::DeadLetter));
    assert_eq!(fates(bury), settled_ok(1));
    assert_eq!(depth(&world), 1);
}

#[test]
fn after_a_restart_what_is_held_is_reclaimed_and_the_rest_comes_flagged_after_the_window() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let mut sender = Sender::new(1);
    sender.publish(&mut world, connection, "a", &[None; 6], 10);
    world.ask(connection, &subscribe("a", "g", 1, 4, vec![]));
    let items = world.deliveries(connection);
    assert_eq!(items.len(), 4);
    assert_eq!(fates(world.ask(connection, &settle(1, &[&items[0]], SettleAction::Ack))), settled_ok(1));

    let mut world = world.crash();
    let connection = world.connect();
    let held = [&items[0], &items[1], &items[2]].map(|item| Held {
        shard: item.shard,
        offset: item.offset,
        attempt: item.attempt,
    });
    let Frame::Subscribed(Subscribed { shards, lost }) =
        world.ask(connection, &subscribe("a", "g", 1, 10, held.to_vec()))
    else {
        panic!()
    };
    assert_eq!(lost, [(items[0].shard, Offset(0))], "it was settled");
    assert!(shards[0].1 > items[0].term, "a new reign");
    assert_eq!(world.deliveries(connection), [], "nothing below the horizon goes out within the window");
    sender.publish(&mut world, connection, "a", &[None], 10);
    let fresh = world.deliveries(connection);
    assert_eq!(fresh.iter().map(|item| (item.offset.0, item.attempt.0)).collect::<Vec<_>>(), [(6, 1)]);
    let reclaimed = DeliverItem { term: shards[0].1, ..items[1].clone() };
    assert_eq!(fates(world.ask(connection, &settle(1, &[&reclaimed], SettleAction::Ack))), settled_ok(1));
    world.pass(Duration::from_millis(2100));
    let rest = world.deliveries(connection);
    let seen: Vec<(u64, u32)> = rest.iter().map(|item| (item.offset.0, item.attempt.0)).collect();
    assert_eq!(seen, [(3, 2), (4, 2), (5, 2)], "flagged, because they may have been seen");
}

#[test]
fn attempts_and_dedup_survive_a_restart() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let mut sender = Sender::new(1);
    sender.publish(&mut world, connection, "a", &[None; 2], 10);
    world.ask(connection, &subscribe("a", "g", 1, 1, vec![]));
    let items = world.deliveries(connection);
    let nack = SettleAction::Nack { delay: Some(Duration::ZERO) };
    assert_eq!(fates(world.ask(connection, &settle(1, &[&items[0]], nack))), settled_ok(1));
    let mut world = world.crash();
    let connection = world.connect();
    let shard = sender.shard("a", None, false);
    let Frame::Published(copy) =
        world.ask(connection, &sender.frame(shard, 1, sender.seal(shard, "a", None, 2, 10)))
    else {
        panic!()
    };
    assert!(copy.runs[0].duplicate);
    world.ask(connection, &subscribe("a", "g", 2, 1, vec![]));
    world.pass(Duration::from_millis(2100));
    let attempt = world.deliveries(connection)[0].attempt;
    assert_eq!(attempt, Attempt(3), "twice sent out before, as far as the log knows");
}

#[test]
fn a_key_has_one_message_in_flight_and_blocks_only_itself() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "k", Order::Key);
    let mut sender = Sender::new(1);
    sender.publish(&mut world, connection, "k", &[Some("x"), Some("x"), Some("y"), Some("x")], 10);
    world.ask(connection, &subscribe("k", "g", 1, 100, vec![]));
    let first = world.deliveries(connection);
    assert_eq!(first.len(), 2, "one x and one y");
    let x = sender.shard("k", Some("x"), true);
    let of_x = |items: &[DeliverItem]| -> Vec<u64> {
        let mine = items.iter().filter(|item| item.shard == x);
        mine.map(|item| {
            swarmmq_protocol::envelope::split_sealed(&item.sealed).unwrap().0.header().sequence().0
        })
        .collect()
    };
    let held: Vec<&DeliverItem> =
        first.iter().filter(|item| of_x(std::slice::from_ref(item)) == [1]).collect();
    assert_eq!(held.len(), 1);
    let nack = SettleAction::Nack { delay: Some(Duration::from_secs(1)) };
    world.ask(connection, &settle(1, &held, nack));
    assert_eq!(world.deliveries(connection), [], "the key waits for its retry");
    world.pass(Duration::from_millis(1100));
    let retry = world.deliveries(connection);
    assert_eq!((of_x(&retry), retry[0].attempt), (vec![1], Attempt(2)));
    world.ask(connection, &settle(1, &[&retry[0]], SettleAction::Ack));
    let next = world.deliveries(connection);
    assert_eq!(next.len(), 1, "then the next of the key");
    assert!(next[0].offset > retry[0].offset);
}

#[test]
fn a_message_goes_when_every_group_has_settled_it() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let mut sender = Sender::new(1);
    world.ask(connection, &subscribe("a", "one", 1, 100, vec![]));
    world.ask(connection, &subscribe("a", "two", 2, 100, vec![]));
    sender.publish(&mut world, connection, "a", &[None; 3], 10);
    let frames = world.take(connection);
    let of = |subscription: u32| -> Vec<DeliverItem> {
        frames
            .iter()
            .flat_map(|(_, frame)| match frame {
                Frame::Deliver(deliver) if deliver.subscription == subscription => deliver.items.clone(),
                _ => Vec::new(),
            })
            .collect()
    };
    let (one, two) = (of(1), of(2));
    assert_eq!((one.len(), two.len()), (3, 3));
    world.ask(connection, &settle(1, &one.iter().collect::<Vec<_>>(), SettleAction::Ack));
    assert_eq!(depth(&world), 3);
    world.ask(connection, &settle(2, &[&two[1]], SettleAction::Ack));
    assert_eq!(depth(&world), 2);
    let mut world = world.crash();
    let connection = world.connect();
    world.ask(connection, &subscribe("a", "one", 1, 100, vec![]));
    world.pass(Duration::from_millis(2100));
    assert_eq!(world.deliveries(connection), [], "the first group's settlements survived");
}

#[test]
fn a_minimum_age_keeps_messages_for_replay() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let set = AdminRequest::AddressSet {
        address: Address::parse("a").unwrap(),
        settings: Settings { min_age: Some(Duration::from_secs(60)), ..Settings::default() },
    };
    assert_eq!(world.ask(connection, &Frame::Admin(Admin(set))), Frame::Answer(Answer::ok()));
    let mut sender = Sender::new(1);
    world.ask(connection, &subscribe("a", "g", 1, 100, vec![]));
    sender.publish(&mut world, connection, "a", &[None; 3], 10);
    let items = world.deliveries(connection);
    world.ask(connection, &settle(1, &items.iter().collect::<Vec<_>>(), SettleAction::Ack));
    assert_eq!(depth(&world), 3, "settled, and too young to go");
    let seek = AdminRequest::GroupSeek {
        address: Address::parse("a").unwrap(),
        group: GroupName::parse("g").unwrap(),
        start: StartAt::Oldest,
        dry_run: false,
    };
    let request = world.send(connection, &Frame::Admin(Admin(seek)));
    let answer = world.answer(connection, request).unwrap();
    assert!(
        matches!(&answer, Frame::AdminReply(reply) if reply.0 == AdminAnswer::Count { messages: 3 }),
        "{answer:?}"
    );
    let again = world.deliveries(connection);
    assert_eq!(again.iter().map(|item| item.attempt.0).collect::<Vec<_>>(), [2, 2, 2]);
    world.ask(connection, &settle(1, &again.iter().collect::<Vec<_>>(), SettleAction::Ack));
    world.pass(Duration::from_secs(70));
    assert_eq!(depth(&world), 0);
}

#[test]
fn a_failed_sync_stops_the_log_and_leaves_what_waited_unknown() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let mut sender = Sender::new(1);
    sender.publish(&mut world, connection, "a", &[None], 10);
    world.hold_syncs = true;
    let shard = sender.shard("a", None, false);
    let request = world.send(connection, &sender.frame(shard, 1, sender.seal(shard, "a", None, 2, 10)));
    world.node.handle(world.now, Input::DiskFailed { what: "EIO".into() });
    world.in_flight = None;
    world.run();
    let Some(Frame::Published(unknown)) = world.answer(connection, request) else { panic!() };
    assert_eq!(unknown.runs[0].outcome, Outcome::Unknown);
    let frame = sender.frame(shard, 1, sender.seal(shard, "a", None, 2, 10));
    let Frame::Published(refused) = world.ask(connection, &frame) else { panic!() };
    assert_eq!((refused.runs[0].outcome, refused.runs[0].code), (Outcome::Failed, Code::LogStopped.number()));
    let report = world.node.report();
    assert!(!report.ready && report.reason.contains("EIO"), "{}", report.reason);
}

#[test]
fn a_backlog_is_read_back_from_disk_and_the_log_shrinks_when_it_is_settled() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let mut sender = Sender::new(1);
    // Far more than the cache holds, over many segments.
    sender.publish(&mut world, connection, "a", &[None; 400], 2000);
    assert!(world.disk.len() > 10, "{} segments", world.disk.len());
    world.ask(connection, &subscribe("a", "g", 1, 50, vec![]));
    let mut seen = Vec::new();
    let mut keep = None;
    while seen.len() < 400 {
        let items = world.deliveries(connection);
        assert!(!items.is_empty(), "stuck after {}", seen.len());
        seen.extend(items.iter().map(|item| item.offset.0));
        // One early message stays unsettled and must not pin the log.
        let acked: Vec<&DeliverItem> = items.iter().filter(|item| item.offset.0 != 3).collect();
        if let Some(item) = items.iter().find(|item| item.offset.0 == 3) {
            keep = Some(item.clone());
        }
        world.send(connection, &settle(1, &acked, SettleAction::Ack));
        let credit = Credit { subscription: 1, messages: acked.len() as u32, bytes: 1 << 20 };
        world.send(connection, &Frame::Credit(credit));
        let inbox = &mut world.inboxes.get_mut(&connection).unwrap().1;
        inbox.retain(|(_, frame)| matches!(frame, Frame::Deliver(_)));
    }
    assert_eq!(seen, (0..400).collect::<Vec<_>>());
    for _ in 0..50 {
        sender.publish(&mut world, connection, "a", &[None], 2000);
        world.pass(Duration::from_millis(50));
    }
    assert!(world.disk.len() <= 8, "{} segments hold 51 messages", world.disk.len());
    let state = digests(&world.node);
    let mut world = world.crash();
    assert_eq!(digests(&world.node), state, "replay = live");
    let connection = world.connect();
    let keep = keep.unwrap();
    let held = Held { shard: keep.shard, offset: keep.offset, attempt: keep.attempt };
    let Frame::Subscribed(subscribed) = world.ask(connection, &subscribe("a", "g", 1, 1, vec![held])) else {
        panic!()
    };
    assert_eq!(subscribed.lost, [], "the moved message is still leased to its consumer");
}

fn digests(node: &Node) -> Vec<[u8; 32]> {
    let mut digests = Vec::new();
    for shard in &node.shards {
        // A restart adds the entry that opens its reign; everything else must be equal.
        let mut state = shard.state().clone();
        state.applied = 0;
        digests.push(state.digest());
    }
    digests
}

#[test]
fn draining_refuses_new_work_and_ends_when_the_old_is_done() {
    let mut world = World::new();
    let connection = world.connect();
    make(&mut world, connection, "a", Order::Total);
    let mut sender = Sender::new(1);
    sender.publish(&mut world, connection, "a", &[None], 10);
    world.node.handle(world.now, Input::Drain);
    world.run();
    let mut effects = Effects::default();
    world.node.flush(world.now, &mut effects);
    assert!(effects.drained);
    assert!(world.take(connection).iter().any(|(_, frame)| matches!(frame, Frame::GoAway(_))));
    let shard = sender.shard("a", None, false);
    let frame = sender.frame(shard, 1, sender.seal(shard, "a", None, 2, 10));
    let Frame::Published(refused) = world.ask(connection, &frame) else { panic!() };
    assert_eq!(refused.runs[0].code, Code::Draining.number());
    let mut world = world.crash();
    let connection = world.connect();
    world.ask(connection, &subscribe("a", "g", 1, 10, vec![]));
    assert_eq!(world.deliveries(connection).len(), 1);
}

#[path = "hostile_tests.rs"]
mod hostile;

#[path = "access_tests.rs"]
mod access_rules;
#[path = "bound_tests.rs"]
mod bound;
#[path = "cluster_tests.rs"]
mod cluster;
#[path = "found_tests.rs"]
mod found;
