//! What replicas of a shard say to each other, in our own encoding: the consensus engine's messages, but not its bytes.
//!
//! ```text
//!  0         1              3          11       19         27
//!  | kind u8 | presence u16 | from u64 | to u64 | term u64 | the fields that presence names, in the order of its bits |
//!
//!  bit 0 log_term u64   1 index u64         2 commit u64             3 commit_term u64   4 reject (no bytes)
//!      5 reject_hint u64   6 request_snapshot u64   7 context   8 entries   9 snapshot   10..15 zero
//!
//!  context    | len u16 | bytes |
//!  entries    | count u32 | count x { index u64 | term u64 | kind u8 | len u32 | data } |
//!  snapshot   | index u64 | term u64 | voters u8 | voters x u64 | learners u8 | learners x u64 |
//!
//!  batch      | count u32 | count x { shard u32 | message } |
//! ```
//! A field that is zero or empty is left out, so one message has one encoding and a heartbeat has 35 bytes.
//! Absent here: the engine itself, and what entries mean.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    codec::{DecodeError, Reader},
    id::ShardId,
    limits::REPLICAS_MAX,
};

/// Kind, presence, from, to, term.
const FIXED_BYTES: usize = 1 + 2 + 3 * 8;
/// An entry without data.
const ENTRY_BYTES: usize = 8 + 8 + 1 + 4;

macro_rules! numbered {
    ($(#[$outer:meta])* $enum:ident: $($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(u8)]
        pub enum $enum { $($(#[$doc])* $name = $number,)* }

        impl $enum {
            /// Every kind, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Number on the wire.
            pub const fn to_u8(self) -> u8 {
                self as u8
            }

            /// From its number on the wire.
            pub const fn from_u8(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

numbered! {
    /// What a replica says to another. Numbers are never reused. Kinds that never leave a node have none.
    MessageKind:
    /// Leader: these entries follow.
    #[default]
    Append = 1;
    /// Follower: taken so far, or refused.
    AppendResponse = 2;
    /// Candidate: vote for me.
    RequestVote = 3;
    /// The vote, or none.
    RequestVoteResponse = 4;
    /// Who might become a candidate: would you vote for me?
    RequestPreVote = 5;
    /// It would, or would not.
    RequestPreVoteResponse = 6;
    /// Leader: still here, committed so far, and the log goes to `index` (0: not said).
    Heartbeat = 7;
    /// Follower: heard.
    HeartbeatResponse = 8;
    /// Leader: begin with this snapshot. The state itself travels apart.
    Snapshot = 9;
    /// Leader: campaign now, without waiting.
    TimeoutNow = 10;
    /// Follower, passing a wish on to its leader: hand over to that one.
    TransferLeader = 11;
    /// Follower, passing a question on to its leader: how far must a read see?
    ReadIndex = 12;
    /// Leader: so far.
    ReadIndexResponse = 13;
}

numbered! {
    /// What an entry of a shard's log changes. Numbers are never reused.
    EntryKind:
    /// The shard's state, or nothing if it has no data.
    #[default]
    Normal = 1;
    /// Who its replicas are.
    Membership = 2;
}

/// One entry of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Entry {
    /// Its place in the log.
    pub index: u64,
    /// Under which leader it was proposed.
    pub term: u64,
    /// What it changes.
    pub kind: EntryKind,
    /// The change; for [`crate::consensus`] just bytes.
    pub data: Bytes,
}

/// Which snapshot a follower is to begin with: everything about it but the state.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SnapshotMark {
    /// Last entry that is in it.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Replicas that vote; at most [`REPLICAS_MAX`].
    pub voters: Vec<u64>,
    /// Replicas that follow without a vote; at most [`REPLICAS_MAX`].
    pub learners: Vec<u64>,
}

/// One message from a replica of a shard to another. What a field means depends on the kind, as in Raft.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Message {
    /// What is said.
    pub kind: MessageKind,
    /// Replica that says it.
    pub from: u64,
    /// Replica that it is for.
    pub to: u64,
    /// Term of the sender; 0 where the kind has none.
    pub term: u64,
    /// Term of the entry at `index`.
    pub log_term: u64,
    /// Place in the log.
    pub index: u64,
    /// How far the sender knows the log to be committed.
    pub commit: u64,
    /// Term of the entry at `commit`.
    pub commit_term: u64,
    /// The answer is no.
    pub reject: bool,
    /// With a no: where the two logs may still agree.
    pub reject_hint: u64,
    /// A snapshot at least this new is wanted; 0: none.
    pub request_snapshot: u64,
    /// Handed back with the answer; at most 65,535 bytes.
    pub context: Bytes,
    /// Entries, one after the other without gaps.
    pub entries: Vec<Entry>,
    /// The snapshot to begin with.
    pub snapshot: Option<SnapshotMark>,
}

/// The bits of the presence field.
mod presence {
    pub(super) const LOG_TERM: u16 = 1 << 0;
    pub(super) const INDEX: u16 = 1 << 1;
    pub(super) const COMMIT: u16 = 1 << 2;
    pub(super) const COMMIT_TERM: u16 = 1 << 3;
    pub(super) const REJECT: u16 = 1 << 4;
    pub(super) const REJECT_HINT: u16 = 1 << 5;
    pub(super) const REQUEST_SNAPSHOT: u16 = 1 << 6;
    pub(super) const CONTEXT: u16 = 1 << 7;
    pub(super) const ENTRIES: u16 = 1 << 8;
    pub(super) const SNAPSHOT: u16 = 1 << 9;
    pub(super) const ALL: u16 = (1 << 10) - 1;
}

impl Message {
    /// Fields that are there, with what they are worth on the wire.
    fn presence(&self) -> u16 {
        let bit = |there: bool, bit: u16| if there { bit } else { 0 };
        bit(self.log_term != 0, presence::LOG_TERM)
            | bit(self.index != 0, presence::INDEX)
            | bit(self.commit != 0, presence::COMMIT)
            | bit(self.commit_term != 0, presence::COMMIT_TERM)
            | bit(self.reject, presence::REJECT)
            | bit(self.reject_hint != 0, presence::REJECT_HINT)
            | bit(self.request_snapshot != 0, presence::REQUEST_SNAPSHOT)
            | bit(!self.context.is_empty(), presence::CONTEXT)
            | bit(!self.entries.is_empty(), presence::ENTRIES)
            | bit(self.snapshot.is_some(), presence::SNAPSHOT)
    }

    /// The numbers that may be left out, in the order of their bits: those before `reject`, then those after it.
    fn numbers(&self) -> [u64; 6] {
        [self.log_term, self.index, self.commit, self.commit_term, self.reject_hint, self.request_snapshot]
    }

    /// How many bytes [`Message::encode`] writes, so that a sender can fill packets without going above their limit; in
    /// a batch each message has 4 bytes more, and the batch 4.
    pub fn encoded_bytes(&self) -> usize {
        let numbers = self.numbers().iter().filter(|number| **number != 0).count() * 8;
        let context = if self.context.is_empty() { 0 } else { 2 + self.context.len() };
        let entries = self.entries.iter().map(|entry| ENTRY_BYTES + entry.data.len()).sum::<usize>();
        let entries = if self.entries.is_empty() { 0 } else { 4 + entries };
        let snapshot = self
            .snapshot
            .as_ref()
            .map_or(0, |mark| 8 + 8 + 1 + 1 + (mark.voters.len() + mark.learners.len()) * 8);
        FIXED_BYTES + numbers + context + entries + snapshot
    }

    /// Whether `next` is an append that goes on where this one ends, in the same term.
    pub fn goes_on_with(&self, next: &Self) -> bool {
        let is_append = self.kind == MessageKind::Append && next.kind == MessageKind::Append;
        let parties = |message: &Self| (message.from, message.to, message.term);
        is_append && parties(self) == parties(next) && self.index + self.entries.len() as u64 == next.index
    }

    /// Writes the message. Cost: one copy of the entries' data.
    ///
    /// Entries without gaps, a context of at most 65,535 bytes and at most [`REPLICAS_MAX`] voters and learners are the
    /// caller's promise.
    pub fn encode(&self, out: &mut BytesMut) {
        debug_assert!(self.entries.windows(2).all(|pair| follows(&pair[0], &pair[1])), "a gap in {self:?}");
        let start = out.len();
        out.reserve(self.encoded_bytes());
        out.put_u8(self.kind.to_u8());
        out.put_u16(self.presence());
        out.put_u64(self.from);
        out.put_u64(self.to);
        out.put_u64(self.term);
        self.numbers().into_iter().filter(|number| *number != 0).for_each(|number| out.put_u64(number));
        if !self.context.is_empty() {
            out.put_u16(u16::try_from(self.context.len()).expect("a context has at most 65,535 bytes"));
            out.put_slice(&self.context);
        }
        if !self.entries.is_empty() {
            out.put_u32(self.entries.len() as u32);
        }
        for entry in &self.entries {
            out.put_u64(entry.index);
            out.put_u64(entry.term);
            out.put_u8(entry.kind.to_u8());
            out.put_u32(entry.data.len() as u32);
            out.put_slice(&entry.data);
        }
        if let Some(mark) = &self.snapshot {
            out.put_u64(mark.index);
            out.put_u64(mark.term);
            put_replicas(out, &mark.voters);
            put_replicas(out, &mark.learners);
        }
        debug_assert_eq!(out.len() - start, self.encoded_bytes(), "{self:?}");
    }

    /// Reads one message; what follows it stays in `reader`. Data and context are slices of the shared buffer: they keep
    /// all of it in memory as long as one of them lives.
    pub fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let kind = MessageKind::from_u8(reader.u8()?).ok_or(DecodeError::Invalid("message kind"))?;
        let presence = reader.u16()?;
        if presence & !presence::ALL != 0 {
            return Err(DecodeError::Invalid("presence"));
        }
        let has = |bit: u16| presence & bit != 0;
        let number = |reader: &mut Reader, bit: u16, field: &'static str| match has(bit) {
            // Present and zero would be a second way to say the same.
            true => Some(reader.u64()?).filter(|number| *number != 0).ok_or(DecodeError::Invalid(field)),
            false => Ok(0),
        };
        // A struct's fields are read in the order they are written here.
        Ok(Self {
            kind,
            from: reader.u64()?,
            to: reader.u64()?,
            term: reader.u64()?,
            log_term: number(reader, presence::LOG_TERM, "log term")?,
            index: number(reader, presence::INDEX, "index")?,
            commit: number(reader, presence::COMMIT, "commit")?,
            commit_term: number(reader, presence::COMMIT_TERM, "commit term")?,
            reject: has(presence::REJECT),
            reject_hint: number(reader, presence::REJECT_HINT, "reject hint")?,
            request_snapshot: number(reader, presence::REQUEST_SNAPSHOT, "requested snapshot")?,
            context: if has(presence::CONTEXT) { read_context(reader)? } else { Bytes::new() },
            entries: if has(presence::ENTRIES) { read_entries(reader)? } else { Vec::new() },
            snapshot: if has(presence::SNAPSHOT) { Some(read_mark(reader)?) } else { None },
        })
    }
}

fn follows(before: &Entry, after: &Entry) -> bool {
    before.index.checked_add(1) == Some(after.index)
}

fn read_context(reader: &mut Reader) -> Result<Bytes, DecodeError> {
    let length = reader.u16()?;
    if length == 0 {
        return Err(DecodeError::Invalid("context"));
    }
    reader.take(length.into())
}

fn read_entries(reader: &mut Reader) -> Result<Vec<Entry>, DecodeError> {
    let count = reader.u32()? as usize;
    if count == 0 {
        return Err(DecodeError::Invalid("entries"));
    }
    let entries = reader.list(count, ENTRY_BYTES, "entries", |reader| {
        let index = reader.u64()?;
        let term = reader.u64()?;
        let kind = EntryKind::from_u8(reader.u8()?).ok_or(DecodeError::Invalid("entry kind"))?;
        let length = reader.u32()? as usize;
        Ok(Entry { index, term, kind, data: reader.take(length)? })
    })?;
    if entries.windows(2).all(|pair| follows(&pair[0], &pair[1])) {
        Ok(entries)
    } else {
        Err(DecodeError::Invalid("entry index"))
    }
}

fn put_replicas(out: &mut BytesMut, replicas: &[u64]) {
    assert!(replicas.len() <= REPLICAS_MAX, "{} replicas in a snapshot", replicas.len());
    out.put_u8(replicas.len() as u8);
    replicas.iter().for_each(|replica| out.put_u64(*replica));
}

fn read_replicas(reader: &mut Reader, field: &'static str) -> Result<Vec<u64>, DecodeError> {
    let count = usize::from(reader.u8()?);
    if count > REPLICAS_MAX {
        return Err(DecodeError::TooLarge(field));
    }
    reader.list(count, 8, field, Reader::u64)
}

fn read_mark(reader: &mut Reader) -> Result<SnapshotMark, DecodeError> {
    Ok(SnapshotMark {
        index: reader.u64()?,
        term: reader.u64()?,
        voters: read_replicas(reader, "voters")?,
        learners: read_replicas(reader, "learners")?,
    })
}

/// How many bytes [`encode_batch`] writes.
pub fn batch_bytes(messages: &[(ShardId, Message)]) -> usize {
    4 + messages.iter().map(|(_, message)| 4 + message.encoded_bytes()).sum::<usize>()
}

/// Writes messages of several shards, for one peer, as the body of one packet.
pub fn encode_batch(messages: &[(ShardId, Message)], out: &mut BytesMut) {
    out.put_u32(messages.len() as u32);
    for (shard, message) in messages {
        out.put_u32(shard.0);
        message.encode(out);
    }
}

/// Reads the body of such a packet; nothing may be left over.
pub fn decode_batch(body: Bytes) -> Result<Vec<(ShardId, Message)>, DecodeError> {
    let mut reader = Reader::new(body);
    let count = reader.u32()? as usize;
    let messages = reader.list(count, 4 + FIXED_BYTES, "messages", |reader| {
        Ok((ShardId(reader.u32()?), Message::decode(reader)?))
    })?;
    reader.end()?;
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, data: &'static [u8]) -> Entry {
        Entry { index, term: 3, kind: EntryKind::Normal, data: Bytes::from_static(data) }
    }

    fn heartbeat() -> Message {
        Message { kind: MessageKind::Heartbeat, from: 1, to: 2, term: 3, commit: 4, ..Message::default() }
    }

    /// Every field there.
    fn full() -> Message {
        Message {
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
            context: Bytes::from_static(b"context"),
            entries: vec![entry(6, b"one"), Entry { kind: EntryKind::Membership, ..entry(7, b"") }],
            snapshot: Some(SnapshotMark { index: 10, term: 11, voters: vec![1, 2, 3], learners: vec![4] }),
        }
    }

    fn encoded(message: &Message) -> Bytes {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        assert_eq!(out.len(), message.encoded_bytes());
        out.freeze()
    }

    fn decoded(bytes: &Bytes) -> Result<Message, DecodeError> {
        let mut reader = Reader::new(bytes.clone());
        let message = Message::decode(&mut reader)?;
        reader.end()?;
        Ok(message)
    }

    fn batch(messages: &[(ShardId, Message)]) -> Bytes {
        let mut out = BytesMut::new();
        encode_batch(messages, &mut out);
        assert_eq!(out.len(), batch_bytes(messages));
        out.freeze()
    }

    fn changed(bytes: &Bytes, place: usize, new: &[u8]) -> Bytes {
        let mut bytes = BytesMut::from(&bytes[..]);
        bytes[place..place + new.len()].copy_from_slice(new);
        bytes.freeze()
    }

    #[test]
    fn kinds_keep_their_numbers() {
        for (number, kind) in (1..).zip(MessageKind::ALL) {
            assert_eq!((kind.to_u8(), MessageKind::from_u8(number)), (number, Some(*kind)));
        }
        assert_eq!((MessageKind::from_u8(0), MessageKind::from_u8(14)), (None, None));
        for (number, kind) in (1..).zip(EntryKind::ALL) {
            assert_eq!((kind.to_u8(), EntryKind::from_u8(number)), (number, Some(*kind)));
        }
        assert_eq!((EntryKind::from_u8(0), EntryKind::from_u8(3)), (None, None));
    }

    #[test]
    fn a_heartbeat_is_small_and_lies_as_drawn() {
        let number = |n: u8| [0, 0, 0, 0, 0, 0, 0, n];
        let drawn = [&[7, 0, 4][..], &number(1), &number(2), &number(3), &number(4)].concat();
        assert_eq!(encoded(&heartbeat()), drawn);
        assert_eq!(encoded(&heartbeat()).len(), 35);
    }

    #[test]
    fn every_choice_of_fields_reads_back() {
        for bits in 0..=presence::ALL {
            let has = |bit: u16| bits & bit != 0;
            let full = full();
            let number = |bit: u16, number: u64| if has(bit) { number } else { 0 };
            let message = Message {
                kind: MessageKind::ALL[usize::from(bits) % MessageKind::ALL.len()],
                log_term: number(presence::LOG_TERM, full.log_term),
                index: number(presence::INDEX, full.index),
                commit: number(presence::COMMIT, full.commit),
                commit_term: number(presence::COMMIT_TERM, full.commit_term),
                reject: has(presence::REJECT),
                reject_hint: number(presence::REJECT_HINT, full.reject_hint),
                request_snapshot: number(presence::REQUEST_SNAPSHOT, full.request_snapshot),
                context: if has(presence::CONTEXT) { full.context } else { Bytes::new() },
                entries: if has(presence::ENTRIES) { full.entries } else { Vec::new() },
                snapshot: full.snapshot.filter(|_| has(presence::SNAPSHOT)),
                ..full
            };
            assert_eq!(message.presence(), bits);
            assert_eq!(decoded(&encoded(&message)), Ok(message));
        }
    }

    #[test]
    fn data_and_context_are_slices_of_what_was_received() {
        let bytes = encoded(&full());
        let message = decoded(&bytes).unwrap();
        for shared in [&message.context, &message.entries[0].data] {
            assert!(bytes.as_ptr_range().contains(&shared.as_ptr()));
        }
    }

    #[test]
    fn a_message_cut_anywhere_is_an_error() {
        for message in [heartbeat(), full()] {
            let bytes = encoded(&message);
            for length in 0..bytes.len() {
                assert!(decoded(&bytes.slice(..length)).is_err(), "{length}");
            }
        }
    }

    #[test]
    fn a_field_that_is_there_and_says_nothing_is_refused() {
        let absent = encoded(&Message { commit: 0, ..heartbeat() });
        let names = [(0, "log term"), (1, "index"), (2, "commit"), (3, "commit term")].into_iter();
        let names = names.chain([(5, "reject hint"), (6, "requested snapshot"), (7, "context")]);
        for (bit, field) in names.chain([(8, "entries")]) {
            let claimed = changed(&absent, 1, &(1u16 << bit).to_be_bytes());
            let zeros = [&claimed[..], &[0; 8]].concat().into();
            assert_eq!(decoded(&zeros), Err(DecodeError::Invalid(field)));
        }
        for bit in 10..16 {
            let unknown = changed(&absent, 1, &(1u16 << bit).to_be_bytes());
            assert_eq!(decoded(&unknown), Err(DecodeError::Invalid("presence")));
        }
    }

    #[test]
    fn hostile_counts_cost_nothing() {
        let entries = encoded(&Message { entries: vec![entry(1, b"")], ..Message::default() });
        let many = changed(&entries, FIXED_BYTES, &u32::MAX.to_be_bytes());
        assert_eq!(decoded(&many), Err(DecodeError::TooLarge("entries")));
        let long = changed(&entries, FIXED_BYTES + 4 + 17, &u32::MAX.to_be_bytes());
        assert_eq!(decoded(&long), Err(DecodeError::Truncated));

        let mark = SnapshotMark { voters: vec![1; REPLICAS_MAX], ..SnapshotMark::default() };
        let mark = encoded(&Message { snapshot: Some(mark), ..Message::default() });
        assert!(decoded(&mark).is_ok());
        let voters = changed(&mark, FIXED_BYTES + 16, &[REPLICAS_MAX as u8 + 1]);
        assert_eq!(decoded(&voters), Err(DecodeError::TooLarge("voters")));
        let learners = changed(&mark, mark.len() - 1, &[1]);
        assert_eq!(decoded(&learners), Err(DecodeError::TooLarge("learners")));

        let messages = changed(&batch(&[(ShardId(1), heartbeat())]), 0, &[0xff; 4]);
        assert_eq!(decode_batch(messages), Err(DecodeError::TooLarge("messages")));
    }

    #[test]
    fn entries_with_a_gap_and_unknown_kinds_are_refused() {
        let two = Message { entries: vec![entry(1, b""), entry(2, b"")], ..Message::default() };
        let bytes = encoded(&two);
        let second = FIXED_BYTES + 4 + ENTRY_BYTES;
        let gap = changed(&bytes, second, &3u64.to_be_bytes());
        assert_eq!(decoded(&gap), Err(DecodeError::Invalid("entry index")));
        let kind = changed(&bytes, second + 16, &[9]);
        assert_eq!(decoded(&kind), Err(DecodeError::Invalid("entry kind")));
        assert_eq!(decoded(&changed(&bytes, 0, &[0])), Err(DecodeError::Invalid("message kind")));
    }

    #[test]
    fn a_batch_carries_the_messages_of_many_shards() {
        let messages =
            vec![(ShardId(7), heartbeat()), (ShardId::CLUSTER, full()), (ShardId(7), Message::default())];
        let bytes = batch(&messages);
        let bytes_expected =
            4 + messages.iter().map(|(_, message)| 4 + message.encoded_bytes()).sum::<usize>();
        assert_eq!(bytes.len(), bytes_expected);
        assert_eq!(decode_batch(bytes.clone()), Ok(messages));
        for length in 0..bytes.len() {
            assert!(decode_batch(bytes.slice(..length)).is_err(), "{length}");
        }
        let longer = [&bytes[..], &[0]].concat().into();
        assert_eq!(decode_batch(longer), Err(DecodeError::TrailingBytes(1)));
        assert_eq!(decode_batch(batch(&[])), Ok(Vec::new()));
    }
}
