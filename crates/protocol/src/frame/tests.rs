//! Every frame kind: there and back, cut at every byte, lengths and counts at their boundary values, recorded bytes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    admin::{
        AddressInfo, GroupInfo, NodeState, NodeStatus, Order, Problem, Settings, ShardInfo, ShardStatus,
        StatusReport,
    },
    envelope::Header,
    id::{
        Address, Attempt, ClusterId, ConsumerId, GroupName, KeyHash, KeyId, KeyRenewal, NodeId, Offset,
        ProducerEpoch, ProducerId, ProducerName, Salt, Sequence, ShardId, Term,
    },
    policy::{Cohort, Policy, Routing},
    route::{
        LinkFault, LinkFaults, LinkView, LinkWord, NodeRoutes, RelayView, Route, RouteCandidate,
        RouteExplanation, RouteWhy,
    },
    time::WallTime,
};

fn sealed(sequence: u64, address: &str) -> Bytes {
    let header = Header {
        address,
        shard: ShardId(3),
        key_id: KeyId(1),
        renewal: KeyRenewal(0),
        producer: ProducerId(7),
        epoch: ProducerEpoch(1),
        sequence: Sequence(sequence),
        salt: Salt([5; 32]),
        published_at: WallTime(1_700_000_000_000),
        key_hash: Some(KeyHash([6; 16])),
        trace: None,
    };
    let mut bytes = Vec::new();
    header.encode(20, &mut bytes);
    bytes.extend([0xcc; 20 + 32]);
    Bytes::from(bytes)
}

/// One example of every frame, the request number beside it.
fn examples() -> Vec<(u64, Frame)> {
    let address = || Address::parse("shop.orders").unwrap();
    let group = || GroupName::parse("billing").unwrap();
    let (producer, epoch, shard) = (ProducerId(7), ProducerEpoch(1), ShardId(3));
    let deadline = Duration::from_secs(30);
    let settle = |action, reason: &str| SettleItem {
        shard,
        offset: Offset(9),
        term: Term(2),
        attempt: Attempt(1),
        action,
        reason: reason.to_owned(),
    };
    let frames = vec![
        Frame::ClientHello(ClientHello {
            version_min: 1,
            version_max: 1,
            auth: 1,
            principal: "app".into(),
            nonce: [1; 32],
        }),
        Frame::ServerHello(ServerHello {
            version: 1,
            cluster: ClusterId(5),
            node: NodeId(1),
            nonce: [2; 32],
        }),
        Frame::ClientProof(ClientProof { proof: [3; 32] }),
        Frame::Welcome(Welcome {
            proof: [4; 32],
            shard_count: 16,
            publish_window_messages: 65_536,
            publish_window_bytes: 64 << 20,
            server_time: WallTime(1_700_000_000_000),
        }),
        Frame::Refused(Refused { code: 1, message: "the access token does not match".into() }),
        Frame::Resolve(Resolve { address: address(), create: true, order: Some(Order::Key), deadline }),
        Frame::Resolved(Resolved { order: Order::Key, shard_count: 16 }),
        Frame::OpenSession(OpenSession {
            shard,
            producer,
            epoch,
            salt: Salt([5; 32]),
            created_at: WallTime(1_700_000_000_000),
            deadline,
        }),
        Frame::Answer(Answer { outcome: Outcome::Failed, code: 11, message: "stale_session".into() }),
        Frame::Publish(Publish {
            shard,
            deadline,
            count: 2,
            messages: [sealed(1, "shop.orders"), sealed(2, "shop.orders")].concat().into(),
        }),
        Frame::Published(Published {
            runs: vec![
                PublishedRun {
                    count: 1,
                    outcome: Outcome::Ok,
                    code: 0,
                    duplicate: false,
                    first_offset: Some(Offset(7)),
                },
                PublishedRun {
                    count: 1,
                    outcome: Outcome::Failed,
                    code: 9,
                    duplicate: false,
                    first_offset: None,
                },
            ],
        }),
        Frame::Skip(Skip { shard, producer, epoch, first: Sequence(3), last: Sequence(4), deadline }),
        Frame::CloseSession(CloseSession { shard, producer, epoch }),
        Frame::Subscribe(Subscribe {
            subscription: 1,
            consumer: ConsumerId(8),
            address: address(),
            group: group(),
            start: Some(StartAt::Time(WallTime(77))),
            credit_messages: 256,
            credit_bytes: 8 << 20,
            deadline,
            held: vec![Held { shard, offset: Offset(4), attempt: Attempt(2) }],
        }),
        Frame::Subscribed(Subscribed { shards: vec![(shard, Term(2))], lost: vec![(shard, Offset(4))] }),
        Frame::Unsubscribe(Unsubscribe { subscription: 1 }),
        Frame::Credit(Credit { subscription: 1, messages: 128, bytes: 1 << 20 }),
        Frame::Deliver(Deliver {
            subscription: 1,
            items: vec![DeliverItem {
                shard,
                offset: Offset(9),
                term: Term(2),
                attempt: Attempt(1),
                lease: deadline,
                reason: "group billing: poison".into(),
                sealed: sealed(1, "shop.orders"),
            }],
        }),
        Frame::Settle(Settle {
            subscription: 1,
            deadline,
            items: vec![
                settle(SettleAction::Ack, ""),
                settle(SettleAction::Nack { delay: None }, "busy"),
                settle(SettleAction::Nack { delay: Some(Duration::from_secs(5)) }, ""),
                settle(SettleAction::Extend { duration: Duration::from_secs(9) }, ""),
                settle(SettleAction::DeadLetter, "poison"),
                settle(SettleAction::Release, ""),
            ],
        }),
        Frame::Settled(Settled { runs: vec![SettledRun { count: 6, outcome: Outcome::Ok, code: 0 }] }),
        Frame::LeaseLost(LeaseLost {
            subscription: 1,
            items: vec![Held { shard, offset: Offset(4), attempt: Attempt(2) }],
        }),
        Frame::Peek(Peek {
            address: address(),
            shard,
            start: None,
            from_offset: Offset(3),
            messages_max: 10,
            bytes_max: 4096,
        }),
        Frame::Peeked(Peeked {
            next_offset: Offset(10),
            end: true,
            items: vec![PeekedItem {
                offset: Offset(9),
                reason: String::new(),
                sealed: sealed(1, "shop.orders"),
            }],
        }),
        Frame::Admin(Admin(AdminRequest::GroupSeek {
            address: address(),
            group: group(),
            start: StartAt::Oldest,
            dry_run: true,
        })),
        Frame::AdminReply(AdminReply(AdminAnswer::Address(AddressInfo {
            address: address(),
            order: Order::Total,
            settings: Settings { min_age: Some(Duration::from_secs(1)), ..Settings::default() },
            shards: vec![ShardInfo { id: shard, leader: 1, messages: 10, bytes: 10_240 }],
            groups: vec![GroupInfo {
                name: group(),
                lag_messages: 10,
                lag_ms: 1500,
                leased: 2,
                dead_lettered: 0,
            }],
        }))),
        Frame::Ping(Ping),
        Frame::Pong(Pong),
        Frame::GoAway(GoAway { reason: "the node is stopping".into() }),
        Frame::WatchLeaders(WatchLeaders),
        Frame::Leaders(Leaders {
            nodes: vec![(NodeId(1), "10.0.0.1:7420".into()), (NodeId(3), "10.0.0.3:7420".into())],
            shards: vec![Some(NodeId(3)), None, Some(NodeId(1)), Some(NodeId(2))],
            routing: Routing {
                policy: Policy::LeastCost,
                cohort: Some(Cohort { policy: Policy::P2cEwma, permille: 100 }),
            },
        }),
    ];
    frames.into_iter().zip(1..).map(|(frame, request)| (request, frame)).collect()
}

fn other_admin() -> Vec<Frame> {
    let address = || Address::parse("a").unwrap();
    let group = || GroupName::parse("g").unwrap();
    let settings = Settings {
        min_age: None,
        attempts_max: Some(3),
        lease: Some(Duration::from_secs(1)),
        backlog_bytes_max: Some(9),
    };
    let requests = vec![
        AdminRequest::AddressCreate { address: address(), order: Order::None, settings: settings.clone() },
        AdminRequest::AddressList,
        AdminRequest::AddressInfo { address: address() },
        AdminRequest::AddressSet { address: address(), settings },
        AdminRequest::AddressRemove { address: address(), dry_run: true },
        AdminRequest::AddressPurge { address: address(), dry_run: false },
        AdminRequest::GroupList { address: address() },
        AdminRequest::GroupRemove { address: address(), group: group(), dry_run: false },
        AdminRequest::Status,
        AdminRequest::ProducerTakeOver { name: ProducerName::parse("till-7").unwrap() },
        AdminRequest::NodeDrain { node: NodeId(4), draining: true },
        AdminRequest::NodeRemove { node: NodeId(4) },
        AdminRequest::Routes,
        AdminRequest::RouteExplain { from: NodeId(1), to: NodeId(2) },
        AdminRequest::SettingSet { name: "routing.policy".into(), value: "p2c-ewma".into() },
        AdminRequest::SettingList,
    ];
    let status = StatusReport {
        cluster: ClusterId(5),
        nodes: vec![NodeStatus {
            id: NodeId(1),
            state: NodeState::Draining,
            roles: 7,
            version: "0.1.0".into(),
        }],
        shards: vec![ShardStatus {
            id: ShardId(0),
            leader: 1,
            term: Term(3),
            replicas: vec![1, 2, 3],
            in_sync: vec![1],
        }],
        problems: vec![Problem { what: "w".into(), meaning: "m".into(), action: "a".into() }],
    };
    let answers = vec![
        AdminAnswer::Addresses(vec![(address(), Order::Total)]),
        AdminAnswer::Groups(Vec::new()),
        AdminAnswer::Count { messages: 12 },
        AdminAnswer::Producer { producer: ProducerId(9), epoch: ProducerEpoch(2) },
        AdminAnswer::Status(status),
        AdminAnswer::Routes(vec![
            NodeRoutes { from: NodeId(1), routes: Some(vec![route()]) },
            NodeRoutes { from: NodeId(4), routes: None },
        ]),
        AdminAnswer::Settings(vec![("routing.cohort".into(), "none".into())]),
        AdminAnswer::RouteExplanation(None),
        AdminAnswer::RouteExplanation(Some(Box::new(explanation()))),
    ];
    let requests = requests.into_iter().map(|request| Frame::Admin(Admin(request)));
    requests.chain(answers.into_iter().map(|answer| Frame::AdminReply(AdminReply(answer)))).collect()
}

fn route() -> Route {
    Route {
        to: NodeId(2),
        path: vec![NodeId(1), NodeId(3), NodeId(2)],
        cost_us: Some(1_900),
        before: vec![NodeId(1), NodeId(2)],
        why: RouteWhy::Cheaper { from_us: 9_000, to_us: 2_000 },
        changed_ms: 5_000,
        changes: 2,
    }
}

fn explanation() -> RouteExplanation {
    let mut faults = LinkFaults::default();
    faults.note(LinkFault::Unreported, true);
    let link = LinkView {
        from: NodeId(1),
        to: NodeId(3),
        cost_us: None,
        half_rtt_us: 200,
        loss_us: 400,
        faults,
        is_own: true,
        words: vec![LinkWord { by: NodeId(1), rtt_us: 400, loss_permille: 22 }],
        penalty: 1_000,
        until_ms: 700,
    };
    let relay = RelayView {
        node: NodeId(3),
        cost_us: Some(1_600),
        surcharge_us: 1_500,
        lag_us: 100,
        is_router: true,
        heard_ms: None,
    };
    let candidate = RouteCandidate { path: vec![NodeId(1), NodeId(2)], links_us: 500, relays_us: 0 };
    RouteExplanation {
        from: NodeId(1),
        route: Route { path: Vec::new(), cost_us: None, why: RouteWhy::Lost, ..route() },
        streak: 1,
        streak_needed: 3,
        worth_us: Some(900),
        candidates: vec![candidate],
        links: vec![link],
        relays: vec![relay],
        next: "n".into(),
    }
}

/// Every kind, and every question and answer of an operator.
fn all() -> impl Iterator<Item = (u64, Frame)> {
    examples().into_iter().chain(other_admin().into_iter().map(|frame| (99, frame)))
}

fn encoded(request: u64, frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    frame.encode(request, &mut out);
    out
}

fn read(bytes: &[u8]) -> Result<Option<(u64, Frame)>, FrameError> {
    let mut reader = FrameReader::new();
    reader.set_authenticated();
    reader.buffer().extend_from_slice(bytes);
    let Some((header, body)) = reader.next_frame()? else { return Ok(None) };
    let frame = Frame::decode(header.kind, body).map_err(|error| FrameError::Body(header.kind, error))?;
    Ok(Some((header.request, frame)))
}

#[test]
fn there_is_an_example_of_every_kind() {
    let kinds: Vec<u8> = examples().iter().map(|(request, frame)| encoded(*request, frame)[4]).collect();
    assert_eq!(kinds, FrameKind::ALL.iter().map(|kind| *kind as u8).collect::<Vec<_>>());
}

#[test]
fn every_frame_reads_back_as_it_was_written() {
    for (request, frame) in all() {
        assert_eq!(read(&encoded(request, &frame)), Ok(Some((request, frame))));
    }
}

#[test]
fn frames_are_the_recorded_bytes() {
    // One line per frame: its kind, then its bytes in hex. The page docs/protocol.md refers to this file.
    let recorded: BTreeMap<String, String> = include_str!("../../testdata/frames_v1.txt")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_once(' ').expect("a name and hex"))
        .map(|(name, hex)| (name.to_owned(), hex.to_owned()))
        .collect();
    let mut fresh = BTreeMap::new();
    for (request, frame) in examples() {
        let bytes = encoded(request, &frame);
        let name = format!("{:?}", FrameKind::from_u8(bytes[4]).unwrap());
        fresh.insert(name, bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    }
    assert_eq!(recorded, fresh);
}

#[test]
fn a_frame_cut_anywhere_waits_or_is_refused_and_never_panics() {
    for (request, frame) in all() {
        let bytes = encoded(request, &frame);
        for cut in 0..bytes.len() {
            // As it comes over a slow wire: not there yet.
            assert_eq!(read(&bytes[..cut]), Ok(None), "{frame:?} cut at {cut}");
            // As a liar sends it: the length says that this is all.
            if cut >= FRAME_HEADER_BYTES {
                let mut short = bytes[..cut].to_vec();
                short[..4].copy_from_slice(&((cut - FRAME_HEADER_BYTES) as u32).to_be_bytes());
                match read(&short) {
                    Err(FrameError::Body(..)) => {}
                    // The messages of a publish are opaque here; the node reads them one by one.
                    Ok(Some((_, Frame::Publish(_)))) => {}
                    other => panic!("{frame:?} shortened to {cut}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn every_field_survives_its_boundary_values() {
    let (mut whole, mut waiting, mut refused) = (0, 0, 0);
    for (request, frame) in all() {
        let bytes = encoded(request, &frame);
        // Every length, count and number of one, two, four or eight bytes is one of these windows.
        for width in [1, 2, 4, 8] {
            for at in 0..=bytes.len() - width {
                let mut real = [0; 8];
                real[8 - width..].copy_from_slice(&bytes[at..at + width]);
                let real = u64::from_be_bytes(real);
                let max = u64::MAX >> (64 - 8 * width);
                for value in [0, 1, real.wrapping_sub(1), real.wrapping_add(1), max / 2, max - 1, max] {
                    let mut forged = bytes.to_vec();
                    forged[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
                    match read(&forged) {
                        // What can be read can be written, and means the same to the next reader.
                        Ok(Some((request, frame))) => {
                            assert_eq!(read(&encoded(request, &frame)), Ok(Some((request, frame))));
                            whole += 1;
                        }
                        Ok(None) => waiting += 1,
                        Err(_) => refused += 1,
                    }
                }
            }
        }
    }
    assert!(whole > 1000 && waiting > 100 && refused > 1000, "{whole}, {waiting}, {refused}");
}

#[test]
fn lengths_are_checked_before_anything_is_kept() {
    let mut reader = FrameReader::new();
    let mut head = [0u8; FRAME_HEADER_BYTES];
    head[4] = FrameKind::ClientHello as u8;
    head[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    reader.buffer().extend_from_slice(&head);
    assert!(matches!(reader.next_frame(), Err(FrameError::TooLarge { .. })));
    assert!(reader.buffer().capacity() < 4096);

    let mut reader = FrameReader::new();
    reader.set_authenticated();
    head[..4].copy_from_slice(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes());
    reader.buffer().extend_from_slice(&head);
    assert!(matches!(reader.next_frame(), Err(FrameError::TooLarge { .. })));
}

#[test]
fn strangers_may_send_eight_kilobytes_in_all() {
    let mut reader = FrameReader::new();
    let mut frames = 0;
    let error = loop {
        Frame::GoAway(GoAway { reason: "x".repeat(1000) }).encode(0, reader.buffer());
        match reader.next_frame() {
            Ok(Some(_)) => frames += 1,
            Ok(None) => panic!("a whole frame was written"),
            Err(error) => break error,
        }
    };
    assert_eq!(frames, 8);
    assert!(matches!(error, FrameError::TooLarge { .. }), "{error}");
}

#[test]
fn unknown_kinds_and_reserved_bytes_are_refused() {
    let ping = encoded(1, &Frame::Ping(Ping));
    for number in 0..=u8::MAX {
        let mut bytes = ping.clone();
        bytes[4] = number;
        let known = FrameKind::from_u8(number).is_some();
        assert_eq!(matches!(read(&bytes), Err(FrameError::UnknownKind(_))), !known, "0x{number:02x}");
    }
    for at in 5..8 {
        let mut bytes = ping.clone();
        bytes[at] = 1;
        assert_eq!(read(&bytes), Err(FrameError::Reserved));
    }
}

#[test]
fn what_is_checked_first_is_what_is_read() {
    // Bodies above the size from which they are checked before anything of them is kept.
    fn often<T: Clone>(items: &[T]) -> Vec<T> {
        items.iter().cycle().take(400).cloned().collect()
    }
    let many = |frame: &Frame| match frame.clone() {
        Frame::Deliver(frame) => Some(Frame::Deliver(Deliver { items: often(&frame.items), ..frame })),
        Frame::Settle(frame) => Some(Frame::Settle(Settle { items: often(&frame.items), ..frame })),
        Frame::Subscribe(frame) => Some(Frame::Subscribe(Subscribe { held: often(&frame.held), ..frame })),
        Frame::Answer(frame) => Some(Frame::Answer(Answer { message: frame.message.repeat(400), ..frame })),
        Frame::Leaders(frame) => {
            Some(Frame::Leaders(Leaders { shards: often(&frame.shards).repeat(4), ..frame }))
        }
        Frame::AdminReply(AdminReply(AdminAnswer::Status(report))) => {
            let problems = often(&report.problems);
            Some(Frame::AdminReply(AdminReply(AdminAnswer::Status(StatusReport { problems, ..report }))))
        }
        _ => None,
    };
    let large: Vec<Frame> = all().filter_map(|(_, frame)| many(&frame)).collect();
    assert_eq!(large.len(), 6);
    for frame in large {
        let bytes = encoded(7, &frame);
        assert!(bytes.len() > SMALL_BODY_BYTES + FRAME_HEADER_BYTES, "{frame:?}");
        assert_eq!(read(&bytes), Ok(Some((7, frame))));
        let mut longer = bytes.to_vec();
        longer.push(0);
        longer[..4].copy_from_slice(&((bytes.len() + 1 - FRAME_HEADER_BYTES) as u32).to_be_bytes());
        assert!(matches!(read(&longer), Err(FrameError::Body(_, DecodeError::TrailingBytes(1)))));
    }
}

#[test]
fn a_list_of_leaders_names_no_more_nodes_than_a_cluster_has() {
    let many = |count: u16| Leaders {
        nodes: (1..=count).map(|node| (NodeId(node), "x".to_owned())).collect(),
        shards: Vec::new(),
        routing: Routing::default(),
    };
    let bytes = encoded(1, &Frame::Leaders(many(65)));
    assert_eq!(read(&bytes), Ok(Some((1, Frame::Leaders(many(64))))), "cut where it is written");
    let mut forged = bytes.to_vec();
    forged[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + 2].copy_from_slice(&65u16.to_be_bytes());
    let error = FrameError::Body(FrameKind::Leaders, DecodeError::TooLarge("nodes"));
    assert_eq!(read(&forged), Err(error));
}

#[test]
fn reasons_are_bounded() {
    let item = |reason: String| SettleItem {
        shard: ShardId(3),
        offset: Offset(9),
        term: Term(2),
        attempt: Attempt(1),
        action: SettleAction::DeadLetter,
        reason,
    };
    let settle = |reason| Settle { subscription: 1, deadline: Duration::ZERO, items: vec![item(reason)] };
    let longest = "x".repeat(crate::limits::REASON_BYTES_MAX);
    let bytes = encoded(1, &Frame::Settle(settle(format!("{longest}more"))));
    assert_eq!(read(&bytes), Ok(Some((1, Frame::Settle(settle(longest))))), "cut where it is written");
    let mut forged = bytes.to_vec();
    let at = forged.len() - crate::limits::REASON_BYTES_MAX - 2;
    forged[at..at + 2].copy_from_slice(&257u16.to_be_bytes());
    forged.push(b'x');
    forged[..4].copy_from_slice(&((bytes.len() + 1 - FRAME_HEADER_BYTES) as u32).to_be_bytes());
    let error = FrameError::Body(FrameKind::Settle, DecodeError::TooLarge("reason"));
    assert_eq!(read(&forged), Err(error));
}

proptest! {
    #[test]
    fn random_bodies_never_panic(kind in 0usize..30, body in prop::collection::vec(any::<u8>(), 0..300)) {
        let kind = FrameKind::ALL[kind % FrameKind::ALL.len()];
        let _decoded: Result<_, DecodeError> = Frame::decode(kind, body.into());
    }
}
