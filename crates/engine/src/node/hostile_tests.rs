//! A node among liars: whatever an authenticated or unknown client sends, the node goes on, says what was wrong or
//! closes, keeps nothing of it, and serves everybody else.

use swarmmq_protocol::{
    frame::{self, FRAME_HEADER_BYTES, FrameKind, Peek, Ping, Pong, Refused, Unsubscribe},
    id::Offset,
    limits::{FRAME_BYTES_MAX, MAC_BYTES, SEQUENCE_MAX},
};

use super::*;

/// One recorded frame of every kind, as docs/protocol.md has it.
fn recorded() -> Vec<(FrameKind, Vec<u8>)> {
    let line = |line: &str| {
        let (_, hex) = line.split_once(' ').unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        (FrameKind::from_u8(bytes[4]).unwrap(), bytes)
    };
    let text = include_str!("../../../protocol/testdata/frames_v1.txt");
    let frames: Vec<_> =
        text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(line).collect();
    assert_eq!(frames.len(), FrameKind::ALL.len());
    frames
}

/// `bytes` cut short at every byte of its body, with a length that says that this is all.
fn cuts(bytes: &[u8]) -> Vec<Vec<u8>> {
    let cut = |cut| {
        let mut short = bytes[..cut].to_vec();
        short[..4].copy_from_slice(&((cut - FRAME_HEADER_BYTES) as u32).to_be_bytes());
        short
    };
    (FRAME_HEADER_BYTES..bytes.len()).map(cut).collect()
}

/// `bytes` with every field of one, two, four or eight bytes, wherever it may lie, at its boundary values.
fn forgeries(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut forgeries = Vec::new();
    for width in [1, 2, 4, 8] {
        for at in 0..=bytes.len() - width {
            let mut real = [0; 8];
            real[8 - width..].copy_from_slice(&bytes[at..at + width]);
            let real = u64::from_be_bytes(real);
            let max = u64::MAX >> (64 - 8 * width);
            for value in [0, 1, real.wrapping_sub(1), real.wrapping_add(1), max - 1, max] {
                let mut forged = bytes.to_vec();
                forged[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
                forgeries.push(forged);
            }
        }
    }
    forgeries
}

/// A node with somebody who behaves, and somebody who does not.
struct Siege {
    world: World,
    honest: ConnectionId,
    sender: Sender,
    liar: ConnectionId,
}

/// How the node took what was sent.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    /// The connection goes on; what came back.
    Open(Vec<Frame>),
    /// The connection was told why and closed.
    Closed(Code),
}

impl Siege {
    fn new() -> Self {
        let mut world = World::new();
        let honest = world.connect();
        make(&mut world, honest, "witness", Order::Total);
        world.ask(honest, &subscribe("witness", "w", 99, 1000, vec![]));
        let liar = world.connect();
        let mut siege = Self { world, honest, sender: Sender::new(99), liar };
        siege.furnish();
        siege
    }

    /// Makes what the recorded frames speak of, so that they go as far as they can.
    fn furnish(&mut self) {
        let (world, liar) = (&mut self.world, self.liar);
        make(world, liar, "shop.orders", Order::Key);
        let open = OpenSession {
            shard: ShardId(3),
            producer: ProducerId(7),
            epoch: ProducerEpoch(1),
            salt: Salt([5; 32]),
            created_at: world.now.wall,
            deadline: DEADLINE,
        };
        assert_eq!(world.ask(liar, &Frame::OpenSession(open)), Frame::Answer(Answer::ok()));
        self.subscribe();
    }

    fn subscribe(&mut self) {
        let joined = self.world.ask(self.liar, &subscribe("shop.orders", "billing", 1, 100, vec![]));
        assert!(matches!(joined, Frame::Subscribed(_)), "{joined:?}");
    }

    /// Sends bytes as a socket would bring them.
    fn send(&mut self, bytes: &[u8]) -> Taken {
        let (world, connection) = (&mut self.world, self.liar);
        let mut reader = FrameReader::new();
        reader.set_authenticated();
        reader.buffer().extend_from_slice(bytes);
        loop {
            match reader.next_frame() {
                Ok(Some((header, body))) => {
                    world.node.handle(world.now, Input::Frame { connection, header, body });
                }
                Ok(None) => break,
                Err(error) => {
                    world.node.handle(world.now, Input::Malformed { connection, error });
                    break;
                }
            }
        }
        world.run();
        let mut frames: Vec<Frame> = world.take(connection).into_iter().map(|(_, frame)| frame).collect();
        let is_closed = world.closed.contains(&connection);
        assert_eq!(is_closed, !world.node.connections.contains_key(&connection));
        if !is_closed {
            return Taken::Open(frames);
        }
        let Some(Frame::Refused(Refused { code, .. })) = frames.pop() else {
            panic!("closed without a word")
        };
        Taken::Closed(Code::from_number(code).unwrap())
    }

    /// Sends bytes that may end the connection, and makes a new one if they did.
    fn send_and_return(&mut self, bytes: &[u8]) -> Taken {
        let taken = self.send(bytes);
        if matches!(taken, Taken::Closed(_)) {
            self.liar = self.world.connect();
            self.subscribe();
        }
        taken
    }

    /// A message of the honest client goes through and comes out.
    fn is_served(&mut self) {
        self.sender.publish(&mut self.world, self.honest, "witness", &[None], 10);
        let items = self.world.deliveries(self.honest);
        assert_eq!(items.len(), 1);
        let fates = fates(self.world.ask(self.honest, &settle(99, &[&items[0]], SettleAction::Ack)));
        assert_eq!(fates, settled_ok(1));
        let credit = Credit { subscription: 99, messages: 1, bytes: 1000 };
        self.world.send(self.honest, &Frame::Credit(credit));
    }

    /// The liar goes, and everything of it.
    fn is_rid_of_the_liar(&mut self) {
        let gone = Input::Disconnected { connection: self.liar };
        self.world.node.handle(self.world.now, gone);
        self.world.pass(Duration::from_secs(1));
        let node = &self.world.node;
        assert_eq!(node.connections.keys().collect::<Vec<_>>(), [&self.honest]);
        assert_eq!(node.subscribers.len(), 1);
        assert!(node.waiting.is_empty(), "{:?}", node.waiting);
        assert!(node.operations.is_empty(), "{:?}", node.operations);
        assert!(node.settlements.is_empty(), "{:?}", node.settlements);
        assert!(node.peeks.is_empty() && node.readings.is_empty() && node.talking.is_empty());
        assert!(node.report().ready, "{}", node.report().reason);
    }
}

/// What a node does with a frame, as far as it follows from the frame alone.
fn expected(bytes: &[u8]) -> Option<Taken> {
    let mut reader = FrameReader::new();
    reader.set_authenticated();
    reader.buffer().extend_from_slice(bytes);
    match reader.next_frame() {
        Err(error) => Some(Taken::Closed(error.code())),
        Ok(None) => Some(Taken::Open(Vec::new())),
        // What is not for a node is not looked into.
        Ok(Some((header, _))) if !connection::is_for_node(header.kind) => Some(Taken::Closed(Code::State)),
        Ok(Some((header, body))) => match Frame::decode(header.kind, body) {
            Err(_) => Some(Taken::Closed(Code::Malformed)),
            Ok(Frame::Pong(_) | Frame::Credit(_)) => Some(Taken::Open(Vec::new())),
            Ok(
                Frame::Resolve(_)
                | Frame::OpenSession(_)
                | Frame::Publish(_)
                | Frame::Skip(_)
                | Frame::CloseSession(_)
                | Frame::Subscribe(_)
                | Frame::Unsubscribe(_)
                | Frame::Settle(_)
                | Frame::Peek(_)
                | Frame::Admin(_)
                | Frame::Ping(_)
                | Frame::WatchLeaders(_),
            ) => None,
            Ok(_) => Some(Taken::Closed(Code::State)),
        },
    }
}

/// Besieges a node with what `attack` makes of each recorded frame. How many left the connection open, and closed it.
fn besiege(attack: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> (usize, usize) {
    let (mut open, mut closed) = (0, 0);
    for (kind, bytes) in recorded() {
        let mut siege = Siege::new();
        for (number, forged) in attack(&bytes).into_iter().enumerate() {
            if kind == FrameKind::Subscribe {
                // A number that is in use would be all that the node looks at.
                siege.world.ask(siege.liar, &Frame::Unsubscribe(Unsubscribe { subscription: 1 }));
            }
            let taken = siege.send_and_return(&forged);
            match &taken {
                Taken::Open(frames) => {
                    // Credit may be answered by deliveries; there are none here. One question has one answer.
                    assert!(frames.len() <= 1, "{kind:?} {forged:02x?}: {frames:?}");
                    open += 1;
                }
                Taken::Closed(_) => closed += 1,
            }
            let length = u32::from_be_bytes(forged[..4].try_into().unwrap()) as usize;
            // Behind a frame that says it is shorter come further frames.
            if let Some(expected) = expected(&forged)
                && length + FRAME_HEADER_BYTES >= forged.len()
            {
                assert_eq!(taken, expected, "{kind:?} {forged:02x?}");
            }
            if number % 100 == 0 {
                siege.is_served();
            }
        }
        siege.is_rid_of_the_liar();
        siege.is_served();
    }
    (open, closed)
}

#[test]
fn every_frame_cut_at_every_byte_is_answered_or_refused_and_others_are_served() {
    let (open, closed) = besiege(cuts);
    assert!(open > 0 && closed > 500, "{open} {closed}");
}

#[test]
fn every_field_at_its_boundary_values_is_answered_or_refused_and_others_are_served() {
    let (open, closed) = besiege(forgeries);
    assert!(open > 1000 && closed > 1000, "{open} {closed}");
}

#[test]
fn strangers_are_refused_whatever_they_send_and_never_let_in() {
    let mut world = World::new();
    let honest = world.connect();
    let hello = recorded().remove(0).1;
    let mut refused = 0;
    // As the first word, and as the second.
    for before in [&[][..], &hello] {
        for (_, bytes) in recorded() {
            for forged in [cuts(&bytes), forgeries(&bytes)].concat() {
                let connection = ConnectionId(world.next_connection);
                world.next_connection += 1;
                world.inboxes.insert(connection, (FrameReader::new(), VecDeque::new()));
                let source = Source(u128::from(connection.0).to_be_bytes());
                world.node.handle(world.now, Input::Connected { connection, nonce: [3; 32], source });
                let mut reader = FrameReader::new();
                reader.buffer().extend_from_slice(before);
                reader.buffer().extend_from_slice(&forged);
                loop {
                    match reader.next_frame() {
                        Ok(None) => break,
                        Ok(Some((header, body))) => {
                            world.node.handle(world.now, Input::Frame { connection, header, body });
                        }
                        Err(error) => {
                            world.node.handle(world.now, Input::Malformed { connection, error });
                            break;
                        }
                    }
                }
                world.run();
                assert!(!world.node.is_authenticated(connection));
                let frames = world.take(connection);
                if world.closed.contains(&connection) {
                    assert!(matches!(frames.last(), Some((_, Frame::Refused(_)))), "{frames:?}");
                    refused += 1;
                } else {
                    world.node.handle(world.now, Input::Disconnected { connection });
                }
                world.closed.clear();
                world.inboxes.remove(&connection);
            }
        }
    }
    assert!(refused > 10_000, "{refused}");
    assert_eq!(world.node.connections.keys().collect::<Vec<_>>(), [&honest]);
    assert_eq!(world.ask(honest, &Frame::Ping(Ping)), Frame::Pong(Pong));
}

#[test]
fn a_principal_without_rules_changes_nothing_whatever_it_sends() {
    let mut siege = Siege::new();
    let root = siege.honest;
    let generation = access_rules::add(&mut siege.world, root, "liar", &[], &[]);
    siege.is_served();
    let remembered = |world: &World| {
        let shards = world.node.shards.iter().map(|shard| {
            let state = shard.state();
            let queues: Vec<usize> = state.queues.values().map(|queue| queue.messages.len()).collect();
            (state.catalog.clone(), queues, state.producers.clone())
        });
        shards.collect::<Vec<_>>()
    };
    let before = remembered(&siege.world);
    siege.liar = access_rules::enter_as(&mut siege.world, "liar", generation);
    let mut refused = 0;
    for (kind, bytes) in recorded() {
        for forged in [vec![bytes.clone()], cuts(&bytes), forgeries(&bytes)].concat() {
            match siege.send(&forged) {
                Taken::Closed(_) => {
                    siege.liar = access_rules::enter_as(&mut siege.world, "liar", generation);
                }
                Taken::Open(frames) => {
                    let is_told = |frame: &Frame| access_rules::code(frame) == Some(Code::NotAllowed);
                    refused += frames.iter().filter(|frame| is_told(frame)).count();
                    let deliveries = frames.iter().filter(|frame| matches!(frame, Frame::Deliver(_)));
                    assert_eq!(deliveries.count(), 0, "{kind:?} {forged:02x?}");
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
    assert_eq!(remembered(&siege.world), before);
    siege.is_served();
}

#[test]
fn a_frame_above_the_limit_is_refused_by_its_head_alone() {
    let mut siege = Siege::new();
    for length in [FRAME_BYTES_MAX as u32 + 1, u32::MAX - 1, u32::MAX] {
        let mut head = [0; FRAME_HEADER_BYTES];
        head[..4].copy_from_slice(&length.to_be_bytes());
        head[4] = FrameKind::Publish as u8;
        assert_eq!(siege.send_and_return(&head), Taken::Closed(Code::TooLarge));
        head[..4].copy_from_slice(&(FRAME_BYTES_MAX as u32).to_be_bytes());
        assert_eq!(siege.send(&head), Taken::Open(vec![]), "the rest may still come");
    }
    siege.is_served();
}

#[test]
fn settlements_of_real_leases_survive_the_boundary_values_of_every_field() {
    let actions = [
        SettleAction::Ack,
        SettleAction::Nack { delay: Some(Duration::from_secs(1)) },
        SettleAction::Extend { duration: Duration::from_secs(1) },
        SettleAction::DeadLetter,
        SettleAction::Release,
    ];
    let mut fates_seen = BTreeMap::new();
    for action in actions {
        let settle_two = |siege: &mut Siege| {
            let keys = [Some("x"), Some("y")];
            Sender::new(5).publish(&mut siege.world, siege.honest, "shop.orders", &keys, 10);
            let items = siege.world.deliveries(siege.liar);
            assert_eq!(items.len(), 2);
            let mut bytes = BytesMut::new();
            settle(1, &items.iter().collect::<Vec<_>>(), action).encode(7, &mut bytes);
            bytes
        };
        let bytes = settle_two(&mut Siege::new());
        for forged in forgeries(&bytes[FRAME_HEADER_BYTES..]) {
            let mut siege = Siege::new();
            settle_two(&mut siege);
            let taken = siege.send(&[&bytes[..FRAME_HEADER_BYTES], &forged].concat());
            let acknowledged = match (taken, frame::decode::<Settle>(forged.into())) {
                (Taken::Closed(code), Err(_)) => {
                    assert_eq!(code, Code::Malformed);
                    0
                }
                (Taken::Open(frames), Ok(asked)) => {
                    // What is given back may come again beside the answer.
                    let answer = frames.into_iter().find(|frame| matches!(frame, Frame::Settled(_)));
                    let fates = fates(answer.unwrap_or_else(|| panic!("no answer to {asked:?}")));
                    assert_eq!(fates.len(), asked.items.len());
                    for fate in &fates {
                        *fates_seen.entry(fate.1).or_insert(0) += 1;
                    }
                    // Both may name the same message.
                    let acks = asked
                        .items
                        .iter()
                        .zip(fates)
                        .filter(|(item, fate)| item.action == SettleAction::Ack && fate.0 == Outcome::Ok);
                    acks.map(|(item, _)| (item.shard, item.offset)).collect::<BTreeSet<_>>().len()
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(depth(&siege.world), 2 - acknowledged, "what is not acknowledged is still there");
            siege.is_served();
        }
    }
    assert!(fates_seen[&0] > 1000 && fates_seen[&Code::LeaseLost.number()] > 1000, "{fates_seen:?}");
}

#[test]
fn an_insiders_messages_survive_the_boundary_values_of_every_field() {
    let insider = Sender::new(6);
    let shard = insider.shard("shop.orders", Some("k"), true);
    // Everything that the MAC covers; the MAC is made anew.
    let seal = |sequence| {
        let mut sealed = insider.seal(shard, "shop.orders", Some("k"), sequence, 10);
        sealed.truncate(sealed.len() - MAC_BYTES);
        sealed
    };
    let count = forgeries(&seal(1)).len();
    let mut codes = BTreeMap::new();
    for few in (0..count).collect::<Vec<_>>().chunks(100) {
        let mut siege = Siege::new();
        let opened = siege.world.ask(siege.liar, &insider.open(shard));
        assert_eq!(opened, Frame::Answer(Answer::ok()));
        let mut next = 1;
        for number in few {
            let mut message = forgeries(&seal(next)).swap_remove(*number);
            message.extend(MacKey::new([2; 32]).sign(&[&message]));
            let mut bytes = BytesMut::new();
            insider.frame(shard, 1, message).encode(7, &mut bytes);
            let Taken::Open(frames) = siege.send(&bytes) else { panic!("closed") };
            let runs = frames.into_iter().find_map(|frame| match frame {
                Frame::Published(published) => Some(published.runs),
                _ => None,
            });
            let [run] = runs.unwrap()[..] else { panic!("one message has one fate") };
            assert_eq!(run.count, 1);
            *codes.entry(run.code).or_insert(0) += 1;
            if run.outcome == Outcome::Ok && !run.duplicate {
                next += 1;
            }
        }
        siege.is_served();
        siege.is_rid_of_the_liar();
        // What was taken can be read again.
        assert!(siege.world.crash().node.report().ready);
    }
    assert!(codes[&0] > 100, "{codes:?}");
    for code in [Code::Malformed, Code::WrongShard, Code::NotOpen, Code::Gap, Code::NoSuchAddress] {
        assert!(codes.contains_key(&code.number()), "{code}: {codes:?}");
    }
}

#[test]
fn a_publish_that_counts_wrongly_or_mixes_producers_is_refused_whole() {
    let mut siege = Siege::new();
    let (insider, other) = (Sender::new(6), Sender::new(8));
    let shard = insider.shard("shop.orders", Some("k"), true);
    let world = &mut siege.world;
    for producer in [&insider, &other] {
        assert_eq!(world.ask(siege.liar, &producer.open(shard)), Frame::Answer(Answer::ok()));
    }
    let seal = |from: &Sender, sequence| from.seal(shard, "shop.orders", Some("k"), sequence, 10);
    let two = [seal(&insider, 1), seal(&insider, 2)].concat();
    let mixed = [seal(&insider, 1), seal(&other, 1)].concat();
    let jumping = [seal(&insider, 1), seal(&insider, 3)].concat();
    for (count, messages) in [(1, &two), (3, &two), (4096, &two), (2, &mixed), (2, &jumping), (1, &vec![])] {
        let answer = world.ask(siege.liar, &insider.frame(shard, count, messages.clone()));
        let Frame::Published(Published { runs }) = answer else { panic!("{answer:?}") };
        let [run] = runs[..] else { panic!("{runs:?}") };
        assert_eq!((run.count, run.outcome, run.code), (count, Outcome::Failed, Code::Malformed.number()));
        assert_eq!(depth(world), 0);
    }
    assert!(matches!(world.ask(siege.liar, &insider.frame(shard, 2, two)), Frame::Published(_)));
    assert_eq!(depth(world), 2);
}

#[test]
fn wishes_without_measure_are_answered_and_harm_nobody() {
    let mut siege = Siege::new();
    let address = || Address::parse("shop.orders").unwrap();
    let (shard, producer, epoch) = (ShardId(3), ProducerId(7), ProducerEpoch(1));
    let skip = |first, last| {
        let (first, last) = (Sequence(first), Sequence(last));
        Frame::Skip(Skip { shard, producer, epoch, first, last, deadline: Duration::MAX })
    };
    let set = |min_age, attempts_max, lease, backlog_bytes_max| {
        let (min_age, lease) = (Duration::from_millis(min_age), Duration::from_millis(lease));
        let settings = Settings {
            min_age: Some(min_age),
            attempts_max: Some(attempts_max),
            lease: Some(lease),
            backlog_bytes_max: Some(backlog_bytes_max),
        };
        Frame::Admin(Admin(AdminRequest::AddressSet { address: address(), settings }))
    };
    let peek = |shard, from, messages_max, bytes_max| {
        let start = Some(StartAt::Time(WallTime(u64::MAX)));
        let from_offset = Offset(from);
        Frame::Peek(Peek { address: address(), shard, start, from_offset, messages_max, bytes_max })
    };
    let seek = |time| {
        let (group, start) = (GroupName::parse("billing").unwrap(), StartAt::Time(WallTime(time)));
        Frame::Admin(Admin(AdminRequest::GroupSeek { address: address(), group, start, dry_run: false }))
    };
    let held = Held { shard: ShardId(u32::MAX), offset: Offset(u64::MAX), attempt: Attempt(u32::MAX) };
    let Frame::Subscribe(greedy) = subscribe("shop.orders", "billing", 2, u32::MAX, vec![held; 200_000])
    else {
        panic!()
    };
    let wishes = [
        skip(1, SEQUENCE_MAX),
        skip(1, SEQUENCE_MAX + 1),
        skip(SEQUENCE_MAX, u64::MAX),
        skip(1, u64::MAX),
        skip(SEQUENCE_MAX, SEQUENCE_MAX),
        set(u64::MAX, u32::MAX, u32::MAX.into(), u64::MAX),
        set(0, 0, 0, 0),
        peek(shard, u64::MAX, u16::MAX, u32::MAX),
        peek(ShardId::CLUSTER, 0, 0, 0),
        peek(ShardId(4), 0, 1, 1),
        seek(0),
        seek(u64::MAX),
        Frame::Subscribe(Subscribe { credit_bytes: u64::MAX, ..greedy }),
        Frame::Settle(Settle { subscription: u32::MAX, deadline: Duration::MAX, items: vec![] }),
    ];
    for wish in wishes {
        let answer = siege.world.ask(siege.liar, &wish);
        assert!(!matches!(answer, Frame::Refused(_)), "{wish:?}: {answer:?}");
        for _ in 0..3 {
            let credit = Credit { subscription: 2, messages: u32::MAX, bytes: u64::MAX };
            siege.world.send(siege.liar, &Frame::Credit(credit));
        }
        siege.world.pass(Duration::from_secs(3));
        siege.is_served();
    }
    siege.is_rid_of_the_liar();
    let mut siege = Siege { world: siege.world.crash(), ..siege };
    siege.honest = siege.world.connect();
    let world = &mut siege.world;
    assert!(matches!(world.ask(siege.honest, &skip(1, 1)), Frame::Answer(_)), "and after a restart");
}
