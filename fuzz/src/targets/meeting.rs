//! First words: handshakes of clients and of nodes, both ends.

use bytes::BytesMut;
use swarmmq_protocol::{
    frame::FrameReader,
    id::{ClusterId, NodeId},
    mac::MacKey,
    session::{
        handshake::{Candidates, ClientHandshake, ServerHandshake},
        peer::{PeerHandshake, PeerHello},
    },
    time::WallTime,
};

use super::{Mark, recorded};

const HANDSHAKE: &str = include_str!("../../../crates/protocol/testdata/handshake_v1.txt");
const NODES: &str = include_str!("../../../crates/protocol/testdata/nodes_v1.txt");

/// The first byte says which end is talked to.
fn for_both_ends(streams: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let all = streams.concat();
    let mut seeds = vec![[vec![0], all.clone()].concat(), [vec![1], all].concat()];
    for stream in streams {
        seeds.push([&[0], &stream[..]].concat());
        seeds.push([&[1], &stream[..]].concat());
    }
    seeds
}

pub(super) fn clients() -> Vec<Vec<u8>> {
    for_both_ends(recorded(HANDSHAKE))
}

/// A stranger talks to a node, or to a client that thinks it is a node. Neither lets it in: it cannot know the token.
pub(super) fn client(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    let Some((first, stream)) = input.split_first() else { return mark.done() };
    // Not the recorded token: the recorded proof is nobody's here.
    let token = MacKey::new([0x55; 32]);
    let mut reader = FrameReader::new();
    reader.buffer().extend_from_slice(stream);
    let mut out = BytesMut::new();
    let mut server = ServerHandshake::new(ClusterId(5), NodeId(1), 16, [3; 32]);
    let find = |name: &str| Candidates {
        tokens: vec![MacKey::new([0x55; 32]), MacKey::new([0x66; 32])],
        is_known: !name.is_empty(),
        is_learning: false,
        not_now: None,
        publish_window_bytes: 1 << 20,
    };
    let mut client = ClientHandshake::start(token, "app", [4; 32], &mut out);
    for _ in 0..8 {
        match reader.next_frame() {
            Ok(Some((header, body))) => {
                mark.note(header.kind);
                if first & 1 == 0 {
                    match server.frame(WallTime(1), header, body, &find, &mut out) {
                        Ok(None) => {}
                        Ok(Some(principal)) => panic!("{principal:?} is let in without the token"),
                        Err(error) => {
                            mark.error(&error);
                            break;
                        }
                    }
                } else {
                    match client.frame(header, body, &mut out) {
                        Ok(None) => {}
                        Ok(Some(ready)) => panic!("{ready:?} without the token"),
                        Err(error) => {
                            mark.error(&error);
                            break;
                        }
                    }
                }
            }
            Ok(None) => break,
            Err(error) => {
                mark.error(&error);
                break;
            }
        }
    }
    assert!(out.len() <= 4096, "{} bytes for a stranger", out.len());
    mark.done()
}

pub(super) fn peers() -> Vec<Vec<u8>> {
    for_both_ends(recorded(NODES))
}

fn hello(node: u16) -> PeerHello {
    PeerHello {
        cluster: Some(ClusterId(5)),
        shard_count: 16,
        node: NodeId(node),
        incarnation: 1,
        boot: 1,
        roles: 7,
        client: "10.0.0.1:7420".into(),
        peer: "10.0.0.1:7421".into(),
        admin: "10.0.0.1:7423".into(),
        gossip: "10.0.0.1:7422".into(),
        version: "0.1.0".into(),
        key: PeerHello::NO_KEY,
        join: None,
    }
}

/// A stranger dials a node, or is dialled by one. Neither takes it for a node: it cannot know the secret.
pub(super) fn peer(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    let Some((first, stream)) = input.split_first() else { return mark.done() };
    let secret = MacKey::new([0x55; 32]);
    let mut out = BytesMut::new();
    let mut handshake = if first & 1 == 0 {
        PeerHandshake::accept(secret, hello(2), [3; 32])
    } else {
        PeerHandshake::dial(secret, hello(2), None, [3; 32], None, &mut out)
    };
    let mut buffer = BytesMut::new();
    let chunk = 1 + usize::from(first >> 1);
    for piece in stream.chunks(chunk) {
        buffer.extend_from_slice(piece);
        match handshake.advance(&mut buffer, &mut out) {
            Ok(None) => {}
            Ok(Some(hello)) => panic!("{hello:?} is let in without the secret"),
            Err(error) => {
                mark.error(&error);
                break;
            }
        }
    }
    mark.note(out.len());
    assert!(out.len() <= 4096, "{} bytes for a stranger", out.len());
    mark.done()
}
