//! The page docs/protocol.md and the vectors it links to say what the code does. The vectors of the handshake and of
//! administration come from a second implementation, written from the page: `testdata/make_vectors.py`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    admin::AdminAnswer,
    codec::DecodeError,
    error::Code,
    frame::{Admin, AdminReply, FRAME_HEADER_BYTES, Frame, FrameHeader, FrameKind, FrameReader, decode},
    id::{ClusterId, NodeId, ProducerName},
    limits,
    mac::{MacKey, producer_of, sha256},
    session::handshake::{Candidates, ClientHandshake, Proven, ServerHandshake},
    time::WallTime,
};

const PAGE: &str = include_str!("../../../docs/protocol.md");
const FRAMES: &str = include_str!("../testdata/frames_v1.txt");
const HANDSHAKE: &str = include_str!("../testdata/handshake_v1.txt");
const ADMIN: &str = include_str!("../testdata/admin_v1.txt");

fn unhex(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "odd number of hex digits");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

/// The lines of a file of vectors: labels, then bytes.
fn vectors(text: &str) -> Vec<(String, Vec<u8>)> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.rsplit_once(' ').expect("labels and hex"))
        .map(|(label, hex)| (label.to_owned(), unhex(hex)))
        .collect()
}

fn read(bytes: &[u8]) -> (FrameHeader, Bytes) {
    let mut reader = FrameReader::new();
    reader.set_authenticated();
    reader.buffer().extend_from_slice(bytes);
    let read = reader.next_frame().expect("a frame").expect("a whole one");
    assert!(reader.buffer().is_empty());
    read
}

/// Reads a recorded frame and writes it again: the same bytes.
fn understood(bytes: &[u8]) -> Frame {
    let (header, body) = read(bytes);
    let frame = Frame::decode(header.kind, body).expect("a recorded frame reads");
    let mut again = BytesMut::new();
    frame.encode(header.request, &mut again);
    assert_eq!(again, bytes, "{frame:?}");
    frame
}

/// The cells of the table below `heading`.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}\n")).expect("the page has this section");
    section
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with("| "))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

#[test]
fn every_frame_kind_has_a_vector_and_a_row_on_the_page() {
    let recorded: BTreeMap<String, Vec<u8>> = vectors(FRAMES).into_iter().collect();
    assert_eq!(recorded.len(), FrameKind::ALL.len());
    for kind in FrameKind::ALL {
        let name = format!("{kind:?}");
        let bytes = recorded.get(&name).unwrap_or_else(|| panic!("no vector of {name}"));
        assert_eq!(read(bytes).0.kind, *kind);
        understood(bytes);
        let words = format!("`{name}` 0x{:02x}", *kind as u8);
        assert!(PAGE.contains(&words), "the page does not say {words}");
    }
}

#[test]
fn both_ends_make_the_recorded_handshake() {
    let recorded: BTreeMap<String, Vec<u8>> = vectors(HANDSHAKE).into_iter().collect();
    let array = |label: &str| -> [u8; 32] { recorded[label].as_slice().try_into().expect("32 bytes") };
    let token = MacKey::new(array("token"));
    let cluster =
        ClusterId(u128::from_be_bytes(recorded["cluster"].as_slice().try_into().expect("16 bytes")));

    let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
    let mut client = ClientHandshake::start(token.clone(), "app", array("client_nonce"), &mut up);
    let mut server = ServerHandshake::new(cluster, NodeId(3), 16, array("server_nonce"));
    let find = |_: &str| Candidates::only(token.clone());
    let step = |sent: &mut BytesMut, label: &str| {
        assert_eq!(sent.split(), recorded[label], "{label}");
        read(&recorded[label])
    };
    let (header, body) = step(&mut up, "ClientHello");
    assert_eq!(server.frame(WallTime(1_700_000_000_000), header, body, &find, &mut down), Ok(None));
    let (header, body) = step(&mut down, "ServerHello");
    assert_eq!(client.frame(header, body, &mut up), Ok(None));
    let (header, body) = step(&mut up, "ClientProof");
    let principal = server.frame(WallTime(1_700_000_000_000), header, body, &find, &mut down);
    assert_eq!(principal, Ok(Some(Proven { principal: "app".to_owned(), token: 0 })));
    let (header, body) = step(&mut down, "Welcome");
    let ready =
        client.frame(header, body, &mut up).expect("the proof is right").expect("the connection is open");
    assert_eq!((ready.cluster, ready.node, ready.welcome.shard_count), (cluster, NodeId(3), 16));

    // What is in between, as the page says it.
    let body = |label: &str| recorded[label][FRAME_HEADER_BYTES..].to_vec();
    let hash = sha256(&[&body("ClientHello"), &body("ServerHello")]);
    assert_eq!(hash, array("h"));
    assert_eq!(token.sign(&[b"swarmmq/auth/client/v1", &hash]), array("client_proof"));
    assert_eq!(token.sign(&[b"swarmmq/auth/server/v1", &hash]), array("server_proof"));
}

#[test]
fn every_question_and_answer_of_an_operator_has_a_vector_and_a_row_on_the_page() {
    let (mut questions, mut answers) = (BTreeSet::new(), BTreeSet::new());
    let mut cluster = None;
    let mut producer = None;
    for (labels, bytes) in vectors(ADMIN) {
        let verb = bytes[FRAME_HEADER_BYTES];
        let (found, seen) = match understood(&bytes) {
            Frame::Admin(Admin(question)) => (format!("Q {question:?}"), questions.insert(verb)),
            Frame::AdminReply(AdminReply(answer)) => {
                match &answer {
                    AdminAnswer::Status(report) => cluster = Some(report.cluster),
                    AdminAnswer::Producer { producer: id, .. } => producer = Some(*id),
                    _ => {}
                }
                (format!("A {answer:?}"), answers.insert(verb))
            }
            other => panic!("{labels}: {other:?}"),
        };
        assert!(found.starts_with(&labels), "{labels} reads as {found}");
        assert!(seen, "{labels}: a second vector");
    }
    let name = ProducerName::parse("till-7").expect("a name");
    assert_eq!(producer, Some(producer_of(cluster.expect("a status"), &name)));

    // Which verbs there are is found out by asking: an unknown one is refused as such, a known one for what it lacks.
    let known = |read: fn(Bytes) -> Option<DecodeError>, refusal: DecodeError| -> BTreeSet<u8> {
        (0..=u8::MAX).filter(|verb| read(Bytes::copy_from_slice(&[*verb])) != Some(refusal.clone())).collect()
    };
    let question = |body| decode::<Admin>(body).err();
    let answer = |body| decode::<AdminReply>(body).err();
    assert_eq!(questions, known(question, DecodeError::Invalid("admin verb")));
    assert_eq!(answers, known(answer, DecodeError::Invalid("admin answer")));

    let rows = table("Administration");
    assert_eq!(rows.iter().map(|row| row[0].parse().expect("a verb")).collect::<BTreeSet<u8>>(), questions);
    for row in rows {
        let answer = row[2].split([':', ';']).next().unwrap_or_default();
        assert!(answer == "`Answer`" || answers.contains(&answer.parse().expect("a verb")), "{row:?}");
    }
}

#[test]
fn the_page_lists_every_code_and_which_of_them_are_transient() {
    let listed: Vec<(u16, &str, bool)> = table("Codes")
        .into_iter()
        .map(|row| (row[0].parse().expect("a number"), row[1], row[2] == "later"))
        .collect();
    let there: Vec<_> =
        Code::ALL.iter().map(|code| (code.number(), code.text(), code.is_transient())).collect();
    assert_eq!(listed, there);
}

#[test]
fn the_page_lists_the_limits_that_are_kept() {
    let listed: Vec<(&str, u64)> =
        table("Limits").into_iter().map(|row| (row[0], row[1].parse().expect("a number"))).collect();
    let millis = |duration: std::time::Duration| duration.as_millis() as u64;
    let kept: Vec<(&str, u64)> = vec![
        ("body of a frame, bytes", limits::FRAME_BYTES_MAX as u64),
        ("before authentication: bytes in all", limits::UNAUTHENTICATED_BYTES_MAX as u64),
        ("before authentication: milliseconds", millis(limits::UNAUTHENTICATED_TIME_MAX)),
        ("messages in one publish or settle frame", limits::BATCH_MESSAGES_MAX as u64),
        ("ciphertext of a message with its tag, bytes", limits::CIPHERTEXT_BYTES_MAX as u64),
        ("body and user headers of a message, bytes", limits::PLAINTEXT_BYTES_MAX as u64),
        ("user headers of a message", limits::USER_HEADERS_MAX as u64),
        ("user headers of a message, bytes", limits::USER_HEADERS_BYTES_MAX as u64),
        ("key, bytes", limits::KEY_BYTES_MAX as u64),
        ("sequence", limits::SEQUENCE_MAX),
        ("unanswered messages on a connection (as `Welcome` says)", limits::PUBLISH_WINDOW_MESSAGES.into()),
        ("unanswered sealed bytes on a connection (as `Welcome` says)", limits::PUBLISH_WINDOW_BYTES),
        ("subscriptions on a connection", limits::SUBSCRIPTIONS_PER_CONNECTION_MAX as u64),
        ("credit of a subscription, messages", limits::CREDIT_MESSAGES_MAX.into()),
        ("credit of a subscription, bytes", limits::CREDIT_BYTES_MAX),
        ("reason of a settlement, bytes", limits::REASON_BYTES_MAX as u64),
        ("addresses in a cluster", limits::ADDRESSES_MAX as u64),
        ("groups of an address", limits::GROUPS_PER_ADDRESS_MAX as u64),
        ("names of producers in a cluster", limits::PRODUCER_NAMES_MAX as u64),
        ("producers a shard remembers", limits::PRODUCERS_PER_SHARD_MAX as u64),
        ("until a silent producer is forgotten, milliseconds", millis(limits::FORGET_AFTER)),
        ("lease, milliseconds, unless set", millis(limits::LEASE)),
        ("lease with extensions, milliseconds", millis(limits::LEASE_TOTAL_MAX)),
        ("nodes in a list of leaders", limits::NODES_MAX as u64),
        ("body of a packet between nodes, bytes", limits::PACKET_BYTES_MAX as u64),
        ("links on the path of a packet", limits::HOPS_MAX as u64),
        ("voters, or learners, of a snapshot between replicas", limits::REPLICAS_MAX as u64),
        ("a datagram between nodes, bytes", limits::DATAGRAM_BYTES_MAX as u64),
        ("a signed statement in a datagram, bytes", limits::DATAGRAM_DOCUMENT_BYTES_MAX as u64),
    ];
    assert_eq!(listed, kept);
}

#[test]
fn the_page_names_every_file_of_vectors() {
    let linked: Vec<&str> = table("Vectors").into_iter().map(|row| row[1]).collect();
    for file in ["frames_v1.txt", "handshake_v1.txt", "admin_v1.txt", "nodes_v1.txt", "envelope_v1.toml"] {
        assert!(linked.iter().any(|link| link.contains(file)), "{file} is not linked");
    }
}
