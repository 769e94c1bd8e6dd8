//! What comes over sockets: frames of clients, packets, consensus messages, datagrams and what they carry.

use bytes::{Buf, Bytes, BytesMut};
use swarmmq_engine::swarm::report::{SignedAccusations, SignedReport};
use swarmmq_protocol::{
    consensus,
    datagram::{Gossiped, Header, Life, Unproven, cluster_tag, seal},
    frame::{Frame, FrameReader},
    id::{ClusterId, NodeId},
    mac::MacKey,
    node_key::NodeSecret,
    packet::{Class, PacketReader},
};

use super::{Mark, magnitude, recorded};

const FRAMES: &str = include_str!("../../../crates/protocol/testdata/frames_v1.txt");
const ADMIN: &str = include_str!("../../../crates/protocol/testdata/admin_v1.txt");
const NODES: &str = include_str!("../../../crates/protocol/testdata/nodes_v1.txt");

/// The first byte says whether the stranger has proven itself.
pub(super) fn frames() -> Vec<Vec<u8>> {
    recorded(FRAMES).into_iter().map(|frame| [vec![1], frame].concat()).collect()
}

pub(super) fn admin_frames() -> Vec<Vec<u8>> {
    recorded(ADMIN).into_iter().map(|frame| [vec![1], frame].concat()).collect()
}

/// A stream of frames: each that reads is written again as it was.
pub(super) fn frame(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    let Some((first, stream)) = input.split_first() else { return mark.done() };
    let mut reader = FrameReader::new();
    if first & 1 != 0 {
        reader.set_authenticated();
    }
    reader.buffer().extend_from_slice(stream);
    loop {
        match reader.next_frame() {
            Ok(Some((header, body))) => {
                mark.note(header.kind);
                match Frame::decode(header.kind, body.clone()) {
                    Ok(frame) => {
                        let mut again = BytesMut::new();
                        frame.encode(header.request, &mut again);
                        // Not always the same bytes: what a later version may say is read as what is nearest.
                        let mut second = FrameReader::new();
                        second.set_authenticated();
                        second.buffer().extend_from_slice(&again);
                        let (header, body) =
                            second.next_frame().expect("it was written by ourselves").expect("all of it");
                        let read = Frame::decode(header.kind, body.clone());
                        assert_eq!(read.as_ref(), Ok(&frame), "a frame changes as it is written and read");
                        mark.note(magnitude(body.len()));
                    }
                    Err(error) => mark.error(&error),
                }
            }
            Ok(None) => {
                mark.note(reader.missing() > 0);
                return mark.done();
            }
            Err(error) => {
                mark.error(&error);
                return mark.done();
            }
        }
    }
}

pub(super) fn packets() -> Vec<Vec<u8>> {
    recorded(NODES)
}

/// A stream of packets, as node 2 has it from node 1.
pub(super) fn packet(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    let mut reader = PacketReader::new();
    reader.buffer().extend_from_slice(input);
    loop {
        match reader.next() {
            Ok(Some(packet)) => {
                mark.note((packet.class, magnitude(packet.body.len())));
                let mut again = BytesMut::new();
                packet.encode(&mut again);
                let mut second = PacketReader::new();
                second.buffer().extend_from_slice(&again);
                assert_eq!(second.next().expect("it was written by ourselves"), Some(packet.clone()));
                if packet.class == Class::Consensus {
                    mark.note(batch(&packet.body));
                }
                match packet.arrive(NodeId(2), NodeId(1)) {
                    Ok(arrived) => mark.note(std::mem::discriminant(&arrived)),
                    Err(error) => mark.error(&error),
                }
            }
            Ok(None) => {
                mark.note(reader.missing() > 0);
                return mark.done();
            }
            Err(error) => {
                mark.error(&error);
                return mark.done();
            }
        }
    }
}

pub(super) fn batches() -> Vec<Vec<u8>> {
    let line = NODES.lines().find(|line| line.starts_with("batch "));
    recorded(line.expect("the recorded bytes have a batch"))
}

/// Consensus messages of several shards: what reads is written again as it was.
pub(super) fn batch(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    match consensus::decode_batch(Bytes::copy_from_slice(input)) {
        Ok(messages) => {
            let mut again = BytesMut::new();
            consensus::encode_batch(&messages, &mut again);
            assert!(again == input, "{messages:?} are written in another way than they were read");
            mark.note(magnitude(messages.len()));
            for (_, message) in &messages {
                mark.note((message.kind, message.entries.len().min(4), message.snapshot.is_some()));
            }
        }
        Err(error) => mark.error(&error),
    }
    mark.done()
}

const CLUSTER: ClusterId = ClusterId(5);

fn key() -> MacKey {
    MacKey::new([7; 32])
}

/// The first byte says whether the MAC is made good: then what lies behind it is reached.
pub(super) fn datagrams() -> Vec<Vec<u8>> {
    let life = Life { incarnation: 3, boot: 1 };
    let header = Header { kind: 1, origin: NodeId(1), destination: NodeId(2), life, to: life, counter: 9 };
    let entry =
        swarmmq_protocol::datagram::Entry { node: NodeId(1), life, beat: 4, report: 2, accusations: 1 };
    let full = Gossiped {
        echo: 1,
        held_us: 2,
        loss_permille: 3,
        entries: vec![entry; 3],
        wishes: vec![NodeId(3)],
        reports: vec![Bytes::from_static(&[1; 90])],
        accusations: vec![Bytes::from_static(&[2; 80])],
    };
    let of = |gossiped: &Gossiped| {
        let mut body = BytesMut::new();
        gossiped.encode(&mut body);
        seal(cluster_tag(CLUSTER), &header, &body, &key()).to_vec()
    };
    let whole = [of(&Gossiped::default()), of(&full)];
    whole.iter().flat_map(|bytes| [[&[0], &bytes[..]].concat(), [&[1], &bytes[..]].concat()]).collect()
}

/// A datagram from whoever, as node 2 takes it.
pub(super) fn datagram(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    let Some((first, bytes)) = input.split_first() else { return mark.done() };
    let mut bytes = bytes.to_vec();
    if first & 1 != 0 && bytes.len() > 16 {
        let covered = bytes.len() - 16;
        let mac = key().sign(&[&bytes[..covered]]);
        bytes[covered..].copy_from_slice(&mac[..16]);
    }
    let proven =
        Unproven::read(&bytes, cluster_tag(CLUSTER), NodeId(2)).and_then(|read| read.prove(&key().into()));
    match proven {
        Ok((header, body)) => {
            mark.note(header.kind);
            match Gossiped::decode(Bytes::copy_from_slice(body)) {
                Ok(gossiped) => {
                    let mut again = BytesMut::new();
                    gossiped.encode(&mut again);
                    assert!(again == body, "{gossiped:?} is written in another way than it was read");
                    mark.note((gossiped.entries.len().min(4), gossiped.wishes.len().min(4)));
                    mark.note((gossiped.reports.len().min(4), gossiped.accusations.len().min(4)));
                    for document in gossiped.reports.iter().chain(&gossiped.accusations) {
                        documents(document, &mut mark);
                    }
                }
                Err(error) => mark.error(&error),
            }
        }
        Err(error) => mark.error(&error),
    }
    mark.done()
}

/// What nodes sign: recorded nowhere, so the seeds are only of about the right size; datagrams carry them too.
pub(super) fn reports() -> Vec<Vec<u8>> {
    vec![vec![0; 90], vec![1; 120], (0..160).collect()]
}

/// A signed report or accusation: nothing of it is believed without the key of whoever it is from.
pub(super) fn report(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    documents(&Bytes::copy_from_slice(input), &mut mark);
    mark.done()
}

fn documents(bytes: &Bytes, mark: &mut Mark) {
    match SignedReport::read(bytes) {
        Ok(report) => {
            mark.note(report.claim().0.0 == 0);
            // Verifying costs 50 us: one in many is enough to see that nobody's word is taken for somebody else's.
            if bytes.first().is_some_and(|first| *first == 0) && bytes.remaining().is_multiple_of(64) {
                assert!(
                    report.verify(&NodeSecret::new([9; 32]).public()).is_err(),
                    "a report that nobody signed is believed"
                );
            }
        }
        Err(error) => mark.note(format!("{error:?}")),
    }
    match SignedAccusations::read(bytes) {
        Ok(accusations) => mark.note(accusations.claim().0.0 == 0),
        Err(error) => mark.note(format!("{error:?}")),
    }
}
