//! Hostile bytes cost a node no more memory than were sent, plus 64 KiB: measured, not argued.
//!
//! The kernel counts: resident pages and their peak, which can be set back, and pages that could be written. A counting
//! allocator would be finer, and would need unsafe code. Everything here is either made large or many times over, so
//! that pages are fine enough.

#![cfg(target_os = "linux")]

use std::{
    collections::BTreeMap,
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::{BufMut, Bytes, BytesMut};
use swarmmq_protocol::{
    codec::DecodeError,
    envelope::Header,
    frame::{FRAME_HEADER_BYTES, Frame, FrameError, FrameKind, FrameReader},
    id::{KeyId, KeyRenewal, ProducerEpoch, ProducerId, Salt, Sequence, ShardId},
    limits::{ADDRESSES_MAX, BATCH_MESSAGES_MAX, FRAME_BYTES_MAX, UNAUTHENTICATED_BYTES_MAX},
    time::WallTime,
};

/// What hostile bytes may cost beside themselves.
const BESIDE_BYTES: usize = 64 << 10;
/// Older kernels add up each processor's page counts only now and then.
const COUNTING_BYTES: usize = 256 << 10;

/// Tests of one process share its memory, so they come one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line of the process's status, in bytes.
fn status(name: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()).expect("a line of the status");
    kib.parse::<usize>().expect("a number of KiB") << 10
}

/// How far `work` raised the resident memory while it ran.
fn peak_growth<T>(work: impl FnOnce() -> T) -> (T, usize) {
    fs::write("/proc/self/clear_refs", "5").expect("the peak can be set back");
    let before = status("VmRSS");
    let result = work();
    (result, status("VmHWM").saturating_sub(before))
}

/// One recorded frame of every kind.
fn recorded() -> BTreeMap<FrameKind, Vec<u8>> {
    let line = |line: &str| {
        let (_, hex) = line.split_once(' ').expect("a name and hex");
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        (FrameKind::from_u8(bytes[4]).expect("a known kind"), bytes)
    };
    let text = include_str!("../testdata/frames_v1.txt");
    let frames: BTreeMap<_, _> =
        text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(line).collect();
    assert!(frames.keys().eq(FrameKind::ALL), "every kind is recorded");
    frames
}

/// Takes bytes as they come off a socket, the way both ends do. The error, if there is one, and how much room was made.
fn receive(reader: &mut FrameReader, bytes: &[u8], piece: usize) -> (Result<(), FrameError>, usize) {
    let mut room = 0;
    for piece in bytes.chunks(piece) {
        reader.buffer().extend_from_slice(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return (Err(error), room),
            }
        }
        let missing = reader.missing();
        reader.buffer().reserve(missing);
        room = room.max(reader.buffer().capacity());
    }
    (Ok(()), room)
}

fn authenticated() -> FrameReader {
    let mut reader = FrameReader::new();
    reader.set_authenticated();
    reader
}

/// The head of a frame that claims a body of `length` bytes.
fn head(kind: FrameKind, length: u32) -> [u8; FRAME_HEADER_BYTES] {
    let mut head = [0; FRAME_HEADER_BYTES];
    head[..4].copy_from_slice(&length.to_be_bytes());
    head[4] = kind as u8;
    head
}

#[test]
fn a_length_is_only_a_claim_until_its_bytes_come() {
    let _alone = alone();
    let frame_max = FRAME_BYTES_MAX as u32;
    let stranger_max = (UNAUTHENTICATED_BYTES_MAX - FRAME_HEADER_BYTES) as u32;
    for (kind, bytes) in recorded() {
        let real = (bytes.len() - FRAME_HEADER_BYTES) as u32;
        for length in [
            0,
            1,
            real.saturating_sub(1),
            real,
            real + 1,
            stranger_max,
            stranger_max + 1,
            u16::MAX.into(),
            frame_max - 1,
            frame_max,
            frame_max + 1,
            u32::MAX - 1,
            u32::MAX,
        ] {
            for (mut reader, max) in [(FrameReader::new(), stranger_max), (authenticated(), frame_max)] {
                let mut forged = head(kind, length).to_vec();
                forged.extend(&bytes[FRAME_HEADER_BYTES..]);
                let (result, room) = receive(&mut reader, &forged, 7);
                assert!(room <= forged.len() + BESIDE_BYTES, "{kind:?} claims {length}: room for {room}");
                if length > max {
                    let (length, max) = (length.into(), max.into());
                    assert_eq!(result, Err(FrameError::TooLarge { length, max }), "{kind:?}");
                } else if length >= real {
                    assert_eq!(result, Ok(()), "{kind:?} claims {length}");
                }
            }
        }
    }
}

#[test]
fn room_is_made_as_bytes_come() {
    let _alone = alone();
    let body = vec![0; FRAME_BYTES_MAX];
    for piece in [1 << 10, 16 << 10, 256 << 10] {
        let mut reader = authenticated();
        let claim = head(FrameKind::Publish, FRAME_BYTES_MAX as u32);
        assert_eq!(receive(&mut reader, &claim, 16).0, Ok(()));
        let mut received = FRAME_HEADER_BYTES;
        for piece in body.chunks(piece) {
            assert_eq!(receive(&mut reader, piece, piece.len()).0, Ok(()));
            received += piece.len();
            // Growing by doubling is what makes receiving linear; what is not written to is not resident either.
            let room = reader.buffer().capacity();
            assert!(room <= 2 * received + BESIDE_BYTES, "room for {room} of {received}");
        }
        assert!(reader.buffer().is_empty(), "the frame is whole");
    }
}

#[test]
fn many_frames_that_never_end_cost_what_they_sent() {
    let _alone = alone();
    for (count, received) in [(2000, FRAME_HEADER_BYTES), (200, 100 << 10), (20, 1 << 20)] {
        let mut bytes = head(FrameKind::Publish, FRAME_BYTES_MAX as u32).to_vec();
        bytes.resize(received, 1);
        let (resident, writable) = (status("VmRSS"), status("VmData"));
        let mut readers = Vec::new();
        for _ in 0..count {
            let mut reader = authenticated();
            assert_eq!(receive(&mut reader, &bytes, 4 << 10).0, Ok(()));
            readers.push(reader);
        }
        let grown = status("VmRSS") - resident;
        assert!(
            grown <= count * (received + BESIDE_BYTES),
            "{count} connections sent {received} bytes each: {grown} resident"
        );
        // And could not be made to cost more than as much again by writing to the rest.
        let grown = status("VmData").saturating_sub(writable);
        assert!(
            grown <= count * (2 * received + BESIDE_BYTES),
            "{count} connections sent {received} bytes each: {grown} writable"
        );
        assert_eq!(readers.len(), count);
    }
}

/// A body made of `prefix`, `count` times `item`, and `suffix`.
fn body(prefix: &[&[u8]], item: &[u8], count: usize, suffix: &[u8]) -> Bytes {
    let prefix = prefix.concat();
    // One allocation, so that nothing freed lies around for the reader to use.
    let mut body = BytesMut::with_capacity(prefix.len() + item.len() * count + suffix.len());
    body.put_slice(&prefix);
    (0..count).for_each(|_| body.put_slice(item));
    body.put_slice(suffix);
    body.freeze()
}

/// The smallest sealed message.
fn sealed() -> Vec<u8> {
    let header = Header {
        address: "a",
        shard: ShardId(0),
        key_id: KeyId(1),
        renewal: KeyRenewal(0),
        producer: ProducerId(7),
        epoch: ProducerEpoch(1),
        sequence: Sequence(1),
        salt: Salt([5; 32]),
        published_at: WallTime(1),
        key_hash: None,
        trace: None,
    };
    let mut bytes = Vec::new();
    header.encode(16, &mut bytes);
    bytes.extend([0xcc; 16 + 32]);
    bytes
}

/// Bodies that are all list, as long as `bytes_max` and their counts allow, each whole but for what is put behind it.
fn lists(bytes_max: usize, behind: &[u8]) -> Vec<(&'static str, FrameKind, Bytes)> {
    let make = |kind, what, prefix: &[&[u8]], count_bytes: usize, item: &[u8], most: usize, suffix: &[u8]| {
        let around = prefix.iter().map(|part| part.len()).sum::<usize>() + count_bytes + suffix.len() + 1;
        let count = ((bytes_max - around) / item.len()).min(most);
        let number = (count as u32).to_be_bytes();
        let suffix = [suffix, behind].concat();
        (what, kind, body(&[&prefix.concat(), &number[4 - count_bytes..]], item, count, &suffix))
    };
    let u16_max = usize::from(u16::MAX);
    let sealed = sealed();
    let delivery = [&[0; 28][..], &[0], &sealed].concat();
    let peeked = [&[0; 8][..], &[0], &sealed].concat();
    let reason = [&[0; 29][..], &[1, 0], &[b'x'; 256]].concat();
    let address_info = [&[3, 1, b'a', 0, 0][..]];
    use FrameKind as Kind;
    vec![
        make(Kind::Publish, "messages", &[&[0; 8], &[0, 1]], 0, &sealed, usize::MAX, &[]),
        make(Kind::Published, "runs", &[], 2, &[0; 14], u16_max, &[]),
        make(Kind::Subscribe, "held", &[&[0; 20], b"\x01a\x01g", &[0; 25]], 4, &[0; 16], usize::MAX, &[]),
        make(Kind::Subscribed, "shards", &[], 2, &[0; 12], u16_max, &[0; 4]),
        make(Kind::Subscribed, "lost", &[&[0; 2]], 4, &[0; 12], usize::MAX, &[]),
        make(Kind::Deliver, "items", &[&[0; 4]], 2, &delivery, u16_max, &[]),
        make(Kind::Settle, "items", &[&[0; 8]], 2, &[0; 31], BATCH_MESSAGES_MAX, &[]),
        make(Kind::Settle, "reasons", &[&[0; 8]], 2, &reason, BATCH_MESSAGES_MAX, &[]),
        make(Kind::Settled, "runs", &[], 2, &[0; 5], u16_max, &[]),
        make(Kind::LeaseLost, "items", &[&[0; 4]], 2, &[0; 16], u16_max, &[]),
        make(Kind::Peeked, "items", &[&[0; 9]], 2, &peeked, u16_max, &[]),
        make(Kind::AdminReply, "addresses", &[&[2]], 4, b"\x01a\0", ADDRESSES_MAX * 2, &[]),
        make(Kind::AdminReply, "shards of an address", &address_info, 2, &[0; 22], u16_max, &[0; 2]),
        make(Kind::AdminReply, "nodes", &[&[10], &[0; 16]], 2, &[0; 5], u16_max, &[0; 4]),
        make(Kind::AdminReply, "shards", &[&[10], &[0; 18]], 2, &[0; 16], u16_max, &[0; 2]),
        make(Kind::AdminReply, "problems", &[&[10], &[0; 20]], 2, &[0; 6], u16_max, &[]),
    ]
}

#[test]
fn a_malformed_frame_costs_nothing_beside_its_bytes_however_late_the_fault_is() {
    let _alone = alone();
    // Brings the code into memory.
    lists(4 << 10, &[0]).into_iter().for_each(|(_, kind, body)| drop(Frame::decode(kind, body)));
    // One byte too many at the end, or one too few.
    for (behind, cut) in [(&[0][..], 0), (&[][..], 1)] {
        for (what, kind, body) in lists(FRAME_BYTES_MAX, behind) {
            let body = body.slice(..body.len() - cut);
            let length = body.len();
            let (result, grown) = peak_growth(|| Frame::decode(kind, body));
            // A node reads the messages of a publish one by one; they are opaque here.
            if kind != FrameKind::Publish {
                assert!(
                    matches!(
                        result,
                        Err(DecodeError::TrailingBytes(1)
                            | DecodeError::Truncated
                            | DecodeError::TooLarge(_))
                    ),
                    "{kind:?} of {what}: {result:?}"
                );
            }
            assert!(
                grown <= BESIDE_BYTES + COUNTING_BYTES,
                "{kind:?} of {length} bytes of {what}: {grown} more"
            );
        }
    }
}

#[test]
fn a_small_frame_grows_to_less_than_64_kib() {
    let _alone = alone();
    const COPIES: usize = 200;
    for (what, kind, body) in lists(2 << 10, &[]) {
        let before = status("VmRSS");
        let frames: Vec<Frame> = (0..COPIES)
            .map(|_| Frame::decode(kind, body.clone()).unwrap_or_else(|error| panic!("{what}: {error}")))
            .collect();
        let grown = status("VmRSS").saturating_sub(before);
        assert!(grown <= COPIES * BESIDE_BYTES, "{kind:?} of {what}: {grown} for {COPIES} copies");
        assert_eq!(frames.len(), COPIES);
    }
}
