//! What travels between nodes: the recorded bytes, which come from a second implementation (`testdata/make_vectors.py`),
//! and hostile ones, which must never do more than be refused.

use std::{collections::BTreeMap, ops::Range};

use bytes::{Buf, Bytes, BytesMut};
use swarmmq_protocol::{
    codec::Reader,
    consensus::{Entry, EntryKind, Message, MessageKind, SnapshotMark, decode_batch, encode_batch},
    error::Code,
    id::{ClusterId, NodeId, ShardId},
    join_token::JoinToken,
    mac::{MacKey, sha256},
    node_key::NodeKey,
    packet::{Arrived, Class, Conversation, Packet, PacketReader},
    session::peer::{PeerError, PeerHandshake, PeerHello, refuse},
};

const NODES: &str = include_str!("../testdata/nodes_v1.txt");
/// Length and step, before the body of a handshake message.
const STEP_HEADER_BYTES: usize = 5;

fn recorded() -> BTreeMap<&'static str, Bytes> {
    let unhex = |hex: &str| {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        Bytes::from_iter((0..hex.len()).step_by(2).map(byte))
    };
    let lines = NODES.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').expect("a label and hex")).map(|(l, hex)| (l, unhex(hex))).collect()
}

fn array(bytes: &Bytes) -> [u8; 32] {
    bytes[..].try_into().expect("32 bytes")
}

/// Node 1 joins, node 2 is in the cluster.
fn hellos(cluster: &Bytes) -> (PeerHello, PeerHello) {
    let hello = |node: u16, cluster| PeerHello {
        cluster,
        shard_count: if cluster.is_some() { 16 } else { 0 },
        node: NodeId(node),
        incarnation: 2,
        boot: 9,
        roles: PeerHello::INGRESS | PeerHello::ROUTER | PeerHello::STORE,
        client: format!("10.0.0.{node}:7400"),
        peer: format!("10.0.0.{node}:7401"),
        admin: format!("10.0.0.{node}:7402"),
        gossip: format!("10.0.0.{node}:7403"),
        version: "0.1.0".to_owned(),
        key: NodeKey::from_bytes(&[node as u8; 64]),
        join: None,
    };
    (hello(1, None), hello(2, Some(ClusterId(cluster.clone().get_u128()))))
}

#[test]
fn both_nodes_make_the_recorded_handshake() {
    let recorded = recorded();
    let secret = MacKey::new(array(&recorded["secret"]));
    let (joining, member) = hellos(&recorded["cluster"]);
    let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
    let expected = Some(NodeId(2));
    let dial_nonce = array(&recorded["dial_nonce"]);
    let token = JoinToken::new(member.cluster.expect("a member has one"), array(&recorded["join_token"]));
    let hash = token.hash();
    let mut dialler =
        PeerHandshake::dial(secret.clone(), joining.clone(), expected, dial_nonce, Some(token), &mut up);
    let mut acceptor =
        PeerHandshake::accept(secret.clone(), member.clone(), array(&recorded["accept_nonce"]));
    assert_eq!(up, recorded["Hello"]);
    assert_eq!(acceptor.advance(&mut up, &mut down), Ok(None));
    assert_eq!(down, recorded["Accept"]);
    assert_eq!(dialler.advance(&mut down, &mut up), Ok(None));
    assert_eq!(up, recorded["Proof"]);
    let joining = PeerHello { join: Some(hash), ..joining };
    assert_eq!(acceptor.advance(&mut up, &mut down), Ok(Some(joining)));
    assert_eq!(down, recorded["Ready"]);
    let mut instead = down.clone();
    refuse(Code::Removed, "node 1 was removed", &mut instead);
    assert_eq!(instead, recorded["Refused"]);
    assert_eq!(dialler.advance(&mut down, &mut up), Ok(Some(member)));

    // What is in between, as the page says it.
    let dialled = &recorded["Hello"][STEP_HEADER_BYTES..];
    let accepted = &recorded["Accept"][STEP_HEADER_BYTES..];
    let hash = sha256(&[dialled, &accepted[..accepted.len() - 32]]);
    assert_eq!(hash, array(&recorded["h"]));
    assert_eq!(secret.sign(&[b"swarmmq/peer/accept/v1", &hash]), array(&recorded["accept_proof"]));
    let masked = &recorded["Proof"][STEP_HEADER_BYTES + 32..];
    assert_eq!(secret.sign(&[b"swarmmq/peer/dial/v1", &hash, masked]), array(&recorded["dial_proof"]));
}

#[test]
fn the_recorded_messages_and_their_packet_read_and_write_the_same() {
    let recorded = recorded();
    let heartbeat =
        Message { kind: MessageKind::Heartbeat, from: 1, to: 2, term: 3, commit: 4, ..Message::default() };
    let everything = Message {
        kind: MessageKind::Append,
        from: 1,
        to: 2,
        term: 3,
        log_term: 4,
        index: 5,
        commit: 6,
        commit_term: 7,
        reject: true,
        reject_hint: 8,
        request_snapshot: 9,
        context: Bytes::from_static(b"why"),
        entries: vec![
            Entry { index: 6, term: 3, kind: EntryKind::Normal, data: Bytes::from_static(b"one") },
            Entry { index: 7, term: 3, kind: EntryKind::Membership, data: Bytes::new() },
        ],
        snapshot: Some(SnapshotMark { index: 10, term: 11, voters: vec![1, 2], learners: vec![3] }),
    };
    for (label, message) in [("heartbeat", &heartbeat), ("everything", &everything)] {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        assert_eq!(out, recorded[label]);
        assert_eq!(Message::decode(&mut Reader::new(out.freeze())).as_ref(), Ok(message));
    }

    let messages = vec![(ShardId(7), heartbeat), (ShardId::CLUSTER, everything)];
    let mut batch = BytesMut::new();
    encode_batch(&messages, &mut batch);
    assert_eq!(batch, recorded["batch"]);
    let path = vec![NodeId(1), NodeId(4), NodeId(2)];
    let conversation = Conversation { origin: 0x0102_0304, destination: 0x0506_0708, number: 9 };
    let sent =
        Packet::along(Class::Consensus, path, batch.freeze()).expect("a good path").within(conversation);
    let Ok(Arrived::Onward { next: NodeId(2), packet }) = sent.arrive(NodeId(4), NodeId(1)) else {
        panic!("node 4 is on the way");
    };
    let mut out = BytesMut::new();
    packet.encode(&mut out);
    assert_eq!(out, recorded["packet"]);
    let mut reader = PacketReader::new();
    reader.buffer().extend_from_slice(&out);
    let received = reader.next().expect("it reads").expect("it is whole");
    let Ok(Arrived::Here(packet)) = received.arrive(NodeId(2), NodeId(4)) else {
        panic!("node 2 is the last");
    };
    assert_eq!(decode_batch(packet.body), Ok(messages));
}

/// Chance from a seed: xorshift64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn within(&mut self, range: Range<usize>) -> usize {
        range.start + (self.next() % (range.len() as u64)) as usize
    }

    /// Bytes of chance alone, or recorded ones with a few changed, cut out or doubled.
    fn bytes(&mut self, seeds: &[Bytes]) -> BytesMut {
        if self.next().is_multiple_of(4) {
            let length = self.within(0..200);
            return (0..length).map(|_| self.next() as u8).collect();
        }
        let mut bytes = seeds[self.within(0..seeds.len())].to_vec();
        for _ in 0..self.within(1..5) {
            let at = self.within(0..bytes.len() + 1);
            let to = self.within(at..bytes.len() + 1);
            match self.next() % 5 {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..to)),
                2 => bytes.extend_from_within(at..to),
                3 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0xff][self.within(0..4)],
                _ if at < bytes.len() => bytes[at] ^= 1 << self.within(0..8),
                _ => {}
            }
        }
        bytes[..].into()
    }
}

#[test]
fn hostile_bytes_are_refused_and_what_is_taken_has_one_encoding() {
    let recorded = recorded();
    let seeds = |labels: &[&str]| labels.iter().map(|label| recorded[label].clone()).collect::<Vec<_>>();
    let messages = seeds(&["heartbeat", "everything"]);
    let batches = seeds(&["batch"]);
    let packets = seeds(&["packet"]);
    let mut chance = Chance(0x5eed);
    let mut taken = [0; 3];
    for _ in 0..100_000 {
        let bytes = chance.bytes(&messages).freeze();
        let mut reader = Reader::new(bytes.clone());
        if let Ok(message) = Message::decode(&mut reader) {
            let mut again = BytesMut::new();
            message.encode(&mut again);
            assert_eq!(again, bytes[..bytes.len() - reader.remaining()]);
            taken[0] += 1;
        }
        let bytes = chance.bytes(&batches).freeze();
        if let Ok(batch) = decode_batch(bytes.clone()) {
            let mut again = BytesMut::new();
            encode_batch(&batch, &mut again);
            assert_eq!(again, bytes);
            taken[1] += 1;
        }
        let bytes = chance.bytes(&packets).freeze();
        let mut reader = PacketReader::new();
        reader.buffer().extend_from_slice(&bytes);
        let mut read_bytes = 0;
        while let Ok(Some(packet)) = reader.next() {
            let mut again = BytesMut::new();
            packet.encode(&mut again);
            assert_eq!(again, bytes[read_bytes..read_bytes + again.len()]);
            read_bytes += again.len();
            let (me, from) = (NodeId(chance.next() as u16 % 6), NodeId(chance.next() as u16 % 6));
            drop(packet.arrive(me, from));
            taken[2] += 1;
        }
    }
    assert!(taken.iter().all(|count| *count > 1000), "too little got through to mean anything: {taken:?}");
}

#[test]
fn hostile_bytes_never_pass_a_handshake() {
    let recorded = recorded();
    let (joining, member) = hellos(&recorded["cluster"]);
    let seeds: Vec<Bytes> =
        ["Hello", "Accept", "Proof", "Ready", "Refused"].map(|label| recorded[label].clone()).into();
    // Another secret than the recorded one: no recorded proof is a right one.
    let secret = MacKey::new([9; 32]);
    let mut chance = Chance(0x5eed);
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut out = BytesMut::new();
        let dialler = PeerHandshake::dial(secret.clone(), joining.clone(), None, [1; 32], None, &mut out);
        for mut end in [dialler, PeerHandshake::accept(secret.clone(), member.clone(), [2; 32])] {
            let mut buffer = BytesMut::new();
            for _ in 0..3 {
                buffer.unsplit(chance.bytes(&seeds));
                match end.advance(&mut buffer, &mut out) {
                    Ok(None) => {}
                    Ok(Some(peer)) => panic!("{peer:?} has proven nothing"),
                    Err(PeerError::Refused { .. }) => refused += 1,
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
    }
    assert!(refused > 100, "too little got through to mean anything: {refused}");
}
