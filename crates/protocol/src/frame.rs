//! The client alphabet: every frame between a client and a node, byte by byte. See docs/protocol.md.
//!
//! ```text
//!  0        4         5          6        8           16
//!  | len u32 | kind u8 | flags u8 | zero u16 | request u64 | body (len) |
//! ```
//! Answers carry the request number of their question; unsolicited frames carry 0.

use std::{fmt, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    admin::{AdminAnswer, AdminRequest, Order, PutStart},
    codec::{DecodeError, Reader, cut_at, put_name, put_text},
    envelope,
    error::{Code, Outcome},
    id::{
        Address, Attempt, ClusterId, ConsumerId, GroupName, NodeId, Offset, ProducerEpoch, ProducerId, Salt,
        Sequence, ShardId, Term,
    },
    limits::{BATCH_MESSAGES_MAX, FRAME_BYTES_MAX, REASON_BYTES_MAX, UNAUTHENTICATED_BYTES_MAX},
    time::WallTime,
};

/// Bytes before a frame's body.
pub const FRAME_HEADER_BYTES: usize = 16;
/// First bytes of a client's first body.
pub const MAGIC: [u8; 4] = *b"SWMQ";
/// The protocol version this code speaks.
pub const PROTOCOL_VERSION: u16 = 1;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        /// What a frame is. Numbers are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum FrameKind { $($(#[$doc])* $name = $number,)* }

        impl FrameKind {
            /// Every kind, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// From its number on the wire.
            pub const fn from_u8(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }

        $(impl Body for $name { const KIND: FrameKind = FrameKind::$name;
            fn put(&self, out: &mut BytesMut) { $name::put(self, out) }
            fn read(reader: &mut Reader) -> Result<Self, DecodeError> { $name::read(reader) }
        })*

        /// Any frame, decoded.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each variant is the frame of its name")]
        pub enum Frame { $($name($name),)* }

        impl Frame {
            /// Reads the body of a frame.
            pub fn decode(kind: FrameKind, body: Bytes) -> Result<Self, DecodeError> {
                match kind { $(FrameKind::$name => decode(body).map(Self::$name),)* }
            }

            /// Writes the whole frame.
            pub fn encode(&self, request: u64, out: &mut BytesMut) {
                match self { $(Self::$name(body) => encode(body, request, out),)* }
            }
        }
    };
}

kinds! {
    /// First word of a client.
    ClientHello = 0x01;
    /// First word of a node.
    ServerHello = 0x02;
    /// The client proves that it knows the token.
    ClientProof = 0x03;
    /// The node proves it too; the connection is open.
    Welcome = 0x04;
    /// The connection is refused and will be closed.
    Refused = 0x05;
    /// Which order does an address have?
    Resolve = 0x10;
    /// This one.
    Resolved = 0x11;
    /// A producer begins in a shard.
    OpenSession = 0x12;
    /// How a request ended.
    Answer = 0x13;
    /// Sealed messages for one shard.
    Publish = 0x14;
    /// What became of them.
    Published = 0x15;
    /// Sequences that will never be used.
    Skip = 0x16;
    /// A producer ends in a shard.
    CloseSession = 0x17;
    /// A consumer joins a group.
    Subscribe = 0x20;
    /// It has joined.
    Subscribed = 0x21;
    /// It leaves.
    Unsubscribe = 0x22;
    /// It can take more.
    Credit = 0x23;
    /// Messages for it.
    Deliver = 0x24;
    /// What it has done with them.
    Settle = 0x25;
    /// Whether that holds.
    Settled = 0x26;
    /// It holds these no more.
    LeaseLost = 0x27;
    /// Look without leasing.
    Peek = 0x28;
    /// What was seen.
    Peeked = 0x29;
    /// A question of an operator.
    Admin = 0x30;
    /// Its answer.
    AdminReply = 0x31;
    /// Are you there?
    Ping = 0x40;
    /// Yes.
    Pong = 0x41;
    /// This node is stopping: go to another.
    GoAway = 0x42;
}

/// A body that knows its kind.
pub trait Body: Sized {
    /// Its number on the wire.
    const KIND: FrameKind;
    /// Writes the body.
    fn put(&self, out: &mut BytesMut);
    /// Reads the body.
    fn read(reader: &mut Reader) -> Result<Self, DecodeError>;
}

/// Writes a whole frame.
pub fn encode<B: Body>(body: &B, request: u64, out: &mut BytesMut) {
    let start = begin(out, B::KIND, request);
    body.put(out);
    finish(out, start);
}

/// Reads a whole body; nothing may be left over.
pub fn decode<B: Body>(body: Bytes) -> Result<B, DecodeError> {
    let mut reader = Reader::new(body);
    let value = B::read(&mut reader)?;
    reader.end()?;
    Ok(value)
}

fn begin(out: &mut BytesMut, kind: FrameKind, request: u64) -> usize {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(kind as u8);
    out.put_u8(0);
    out.put_u16(0);
    out.put_u64(request);
    start
}

fn finish(out: &mut BytesMut, start: usize) {
    let length = out.len() - start - FRAME_HEADER_BYTES;
    debug_assert!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
    out[start..start + 4].copy_from_slice(&(length as u32).to_be_bytes());
}

/// The first 16 bytes of a frame, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the body.
    pub length: u32,
    /// What the body is.
    pub kind: FrameKind,
    /// Ties answers to questions.
    pub request: u64,
}

/// Why a connection's bytes are no frames. The connection cannot go on. Blame: the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A length above the limit; nothing was allocated for it.
    TooLarge {
        /// Length claimed.
        length: u64,
        /// Longest allowed now.
        max: u64,
    },
    /// A kind that this version does not know.
    UnknownKind(u8),
    /// Flags or reserved bytes that are not zero.
    Reserved,
    /// The body does not read as its kind.
    Body(FrameKind, DecodeError),
}

impl FrameError {
    /// The code that tells the peer.
    pub fn code(&self) -> Code {
        match self {
            Self::TooLarge { .. } => Code::TooLarge,
            _ => Code::Malformed,
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { length, max } => write!(f, "a frame of {length} bytes where {max} are allowed"),
            Self::UnknownKind(kind) => write!(f, "unknown frame kind 0x{kind:02x}"),
            Self::Reserved => write!(f, "reserved bytes of a frame header are not zero"),
            Self::Body(kind, error) => write!(f, "frame {kind:?}: {error}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Cuts a stream of bytes into frames. Until [`FrameReader::set_authenticated`], all of them together may have at most
/// [`UNAUTHENTICATED_BYTES_MAX`] bytes.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: BytesMut,
    authenticated: bool,
    unauthenticated_bytes: usize,
}

impl FrameReader {
    /// For a fresh connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where received bytes are to be appended.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The peer has proven who it is: full frames are allowed from now on.
    pub fn set_authenticated(&mut self) {
        self.authenticated = true;
    }

    /// The next whole frame, without copying its body. `None`: more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<(FrameHeader, Bytes)>, FrameError> {
        let Some(head) = self.buffer.get(..FRAME_HEADER_BYTES) else { return Ok(None) };
        let length = u32::from_be_bytes(head[..4].try_into().expect("4 of 16 bytes"));
        let total = length as usize + FRAME_HEADER_BYTES;
        let max = if self.authenticated {
            FRAME_BYTES_MAX
        } else {
            UNAUTHENTICATED_BYTES_MAX.saturating_sub(self.unauthenticated_bytes + FRAME_HEADER_BYTES)
        };
        if length as usize > max {
            return Err(FrameError::TooLarge { length: length.into(), max: max as u64 });
        }
        let kind = FrameKind::from_u8(head[4]).ok_or(FrameError::UnknownKind(head[4]))?;
        if head[5..8] != [0; 3] {
            return Err(FrameError::Reserved);
        }
        let request = u64::from_be_bytes(head[8..16].try_into().expect("8 of 16 bytes"));
        if self.buffer.len() < total {
            return Ok(None);
        }
        if !self.authenticated {
            self.unauthenticated_bytes += total;
        }
        let mut frame = self.buffer.split_to(total);
        bytes::Buf::advance(&mut frame, FRAME_HEADER_BYTES);
        Ok(Some((FrameHeader { length, kind, request }, frame.freeze())))
    }

    /// Bytes that the frame under way still lacks; 0 if nothing of it has come.
    pub fn missing(&self) -> usize {
        match self.buffer.get(..4) {
            None => 0,
            Some(head) => {
                let length = u32::from_be_bytes(head.try_into().expect("4 bytes")) as usize;
                (length + FRAME_HEADER_BYTES).saturating_sub(self.buffer.len()).min(FRAME_BYTES_MAX)
            }
        }
    }
}

/// First word of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// Lowest version it speaks.
    pub version_min: u16,
    /// Highest version it speaks.
    pub version_max: u16,
    /// How it will prove itself: 1, the shared token.
    pub auth: u8,
    /// Who it says it is.
    pub principal: String,
    /// Fresh randomness.
    pub nonce: [u8; 32],
}

impl ClientHello {
    fn put(&self, out: &mut BytesMut) {
        out.put_slice(&MAGIC);
        out.put_u16(self.version_min);
        out.put_u16(self.version_max);
        out.put_u8(self.auth);
        put_name(out, &self.principal);
        out.put_slice(&self.nonce);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        if reader.array::<4>()? != MAGIC {
            return Err(DecodeError::Invalid("magic"));
        }
        Ok(Self {
            version_min: reader.u16()?,
            version_max: reader.u16()?,
            auth: reader.u8()?,
            principal: reader.name("principal")?,
            nonce: reader.array()?,
        })
    }
}

/// First word of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// Version chosen.
    pub version: u16,
    /// Which cluster.
    pub cluster: ClusterId,
    /// Which node.
    pub node: NodeId,
    /// Fresh randomness.
    pub nonce: [u8; 32],
}

impl ServerHello {
    fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.version);
        out.put_u128(self.cluster.0);
        out.put_u16(self.node.0);
        out.put_slice(&self.nonce);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            version: reader.u16()?,
            cluster: ClusterId(reader.u128()?),
            node: NodeId(reader.u16()?),
            nonce: reader.array()?,
        })
    }
}

/// The client's proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientProof {
    /// HMAC over both hellos.
    pub proof: [u8; 32],
}

impl ClientProof {
    fn put(&self, out: &mut BytesMut) {
        out.put_slice(&self.proof);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { proof: reader.array()? })
    }
}

/// The node's proof and what it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// HMAC over both hellos.
    pub proof: [u8; 32],
    /// Data shards of the cluster.
    pub shard_count: u32,
    /// Unanswered messages allowed on this connection.
    pub publish_window_messages: u32,
    /// Unanswered sealed bytes allowed on this connection.
    pub publish_window_bytes: u64,
    /// The node's wall clock.
    pub server_time: WallTime,
}

impl Welcome {
    fn put(&self, out: &mut BytesMut) {
        out.put_slice(&self.proof);
        out.put_u32(self.shard_count);
        out.put_u32(self.publish_window_messages);
        out.put_u64(self.publish_window_bytes);
        out.put_u64(self.server_time.0);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            proof: reader.array()?,
            shard_count: reader.u32()?,
            publish_window_messages: reader.u32()?,
            publish_window_bytes: reader.u64()?,
            server_time: WallTime(reader.u64()?),
        })
    }
}

/// The connection ends here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why, for programs.
    pub code: u16,
    /// Why, for people.
    pub message: String,
}

impl Refused {
    fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.code);
        put_text(out, &self.message);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { code: reader.u16()?, message: reader.text("message")? })
    }
}

/// Which order does an address have?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolve {
    /// Which.
    pub address: Address,
    /// Make it if it is not there.
    pub create: bool,
    /// The order wanted; `None`: whatever it has, or `total` when made.
    pub order: Option<Order>,
    /// Time the client waits.
    pub deadline: Duration,
}

impl Resolve {
    fn put(&self, out: &mut BytesMut) {
        put_name(out, self.address.as_str());
        out.put_u8(self.create.into());
        out.put_u8(self.order.map_or(u8::MAX, Order::to_u8));
        put_millis(out, self.deadline);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let address = reader.address()?;
        let create = reader.flag("create")?;
        let order = match reader.u8()? {
            u8::MAX => None,
            number => Some(Order::from_u8(number).ok_or(DecodeError::Invalid("order"))?),
        };
        Ok(Self { address, create, order, deadline: read_millis(reader)? })
    }
}

/// The order of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Fixed at its first use.
    pub order: Order,
    /// Data shards of the cluster.
    pub shard_count: u32,
}

impl Resolved {
    fn put(&self, out: &mut BytesMut) {
        out.put_u8(self.order.to_u8());
        out.put_u32(self.shard_count);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            order: Order::from_u8(reader.u8()?).ok_or(DecodeError::Invalid("order"))?,
            shard_count: reader.u32()?,
        })
    }
}

/// A producer begins in a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSession {
    /// Which shard.
    pub shard: ShardId,
    /// Who.
    pub producer: ProducerId,
    /// In which life.
    pub epoch: ProducerEpoch,
    /// Of the session.
    pub salt: Salt,
    /// When the session was made.
    pub created_at: WallTime,
    /// Time the client waits.
    pub deadline: Duration,
}

impl OpenSession {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        out.put_u128(self.producer.0);
        out.put_u64(self.epoch.0);
        out.put_slice(&self.salt.0);
        out.put_u64(self.created_at.0);
        put_millis(out, self.deadline);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            shard: ShardId(reader.u32()?),
            producer: ProducerId(reader.u128()?),
            epoch: ProducerEpoch(reader.u64()?),
            salt: Salt(reader.array()?),
            created_at: WallTime(reader.u64()?),
            deadline: read_millis(reader)?,
        })
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What became of it.
    pub outcome: Outcome,
    /// Why, for programs; 0 when it went well.
    pub code: u16,
    /// Why, for people.
    pub message: String,
}

impl Answer {
    /// It went well.
    pub fn ok() -> Self {
        Self { outcome: Outcome::Ok, code: 0, message: String::new() }
    }

    fn put(&self, out: &mut BytesMut) {
        out.put_u8(self.outcome.to_u8());
        out.put_u16(self.code);
        put_text(out, &self.message);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { outcome: read_outcome(reader)?, code: reader.u16()?, message: reader.text("message")? })
    }
}

/// Sealed messages of one producer for one shard, with sequences that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Which shard.
    pub shard: ShardId,
    /// Time the client waits.
    pub deadline: Duration,
    /// How many messages.
    pub count: u16,
    /// The messages, one after the other.
    pub messages: Bytes,
}

impl Publish {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        put_millis(out, self.deadline);
        out.put_u16(self.count);
        out.put_slice(&self.messages);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let shard = ShardId(reader.u32()?);
        let deadline = read_millis(reader)?;
        let count = reader.u16()?;
        if count == 0 {
            return Err(DecodeError::Invalid("count"));
        }
        if usize::from(count) > BATCH_MESSAGES_MAX {
            return Err(DecodeError::TooLarge("count"));
        }
        Ok(Self { shard, deadline, count, messages: reader.rest() })
    }
}

/// `count` messages of a publish with the same fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedRun {
    /// How many.
    pub count: u16,
    /// Their fate.
    pub outcome: Outcome,
    /// Why; 0 when it went well.
    pub code: u16,
    /// They were in the log before.
    pub duplicate: bool,
    /// Offset of the first; the others follow. Unknown for old duplicates.
    pub first_offset: Option<Offset>,
}

/// What became of a publish, in the order of its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Covers every message.
    pub runs: Vec<PublishedRun>,
}

impl Published {
    fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.runs.len() as u16);
        for run in &self.runs {
            out.put_u16(run.count);
            out.put_u8(run.outcome.to_u8());
            out.put_u16(run.code);
            out.put_u8(run.duplicate.into());
            out.put_u64(run.first_offset.map_or(u64::MAX, |offset| offset.0));
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = usize::from(reader.u16()?);
        let count = reader.count(count, 14, "runs")?;
        let runs = (0..count)
            .map(|_| {
                Ok(PublishedRun {
                    count: reader.u16()?,
                    outcome: read_outcome(reader)?,
                    code: reader.u16()?,
                    duplicate: reader.flag("duplicate")?,
                    first_offset: Some(reader.u64()?).filter(|offset| *offset != u64::MAX).map(Offset),
                })
            })
            .collect::<Result<_, DecodeError>>()?;
        Ok(Self { runs })
    }
}

/// Sequences that will never be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// Which shard.
    pub shard: ShardId,
    /// Whose.
    pub producer: ProducerId,
    /// In which life.
    pub epoch: ProducerEpoch,
    /// From here.
    pub first: Sequence,
    /// To here, inclusive.
    pub last: Sequence,
    /// Time the client waits.
    pub deadline: Duration,
}

impl Skip {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        out.put_u128(self.producer.0);
        out.put_u64(self.epoch.0);
        out.put_u64(self.first.0);
        out.put_u64(self.last.0);
        put_millis(out, self.deadline);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let skip = Self {
            shard: ShardId(reader.u32()?),
            producer: ProducerId(reader.u128()?),
            epoch: ProducerEpoch(reader.u64()?),
            first: Sequence(reader.u64()?),
            last: Sequence(reader.u64()?),
            deadline: read_millis(reader)?,
        };
        if skip.first.0 == 0 || skip.first > skip.last {
            return Err(DecodeError::Invalid("sequences"));
        }
        Ok(skip)
    }
}

/// A producer ends in a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseSession {
    /// Which shard.
    pub shard: ShardId,
    /// Who.
    pub producer: ProducerId,
    /// In which life.
    pub epoch: ProducerEpoch,
}

impl CloseSession {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        out.put_u128(self.producer.0);
        out.put_u64(self.epoch.0);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            shard: ShardId(reader.u32()?),
            producer: ProducerId(reader.u128()?),
            epoch: ProducerEpoch(reader.u64()?),
        })
    }
}

/// Where a group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the oldest message there is.
    Oldest,
    /// After the newest.
    End,
    /// At the first message published at this time or later.
    Time(WallTime),
}

/// A message that a consumer says it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Of which shard.
    pub shard: ShardId,
    /// Which.
    pub offset: Offset,
    /// Which delivery of it.
    pub attempt: Attempt,
}

impl Held {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        out.put_u64(self.offset.0);
        out.put_u32(self.attempt.0);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            shard: ShardId(reader.u32()?),
            offset: Offset(reader.u64()?),
            attempt: Attempt(reader.u32()?),
        })
    }
}

/// A consumer joins a group, saying what it holds of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// The connection's number for this subscription.
    pub subscription: u32,
    /// Who; the same over all of its reconnects.
    pub consumer: ConsumerId,
    /// Of which address.
    pub address: Address,
    /// Which group; made if it is not there.
    pub group: GroupName,
    /// Where a new group begins; `None`: the cluster decides.
    pub start: Option<StartAt>,
    /// Messages it can take.
    pub credit_messages: u32,
    /// Sealed bytes it can take.
    pub credit_bytes: u64,
    /// Time the client waits.
    pub deadline: Duration,
    /// What it holds.
    pub held: Vec<Held>,
}

impl Subscribe {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
        out.put_u128(self.consumer.0);
        put_name(out, self.address.as_str());
        put_name(out, self.group.as_str());
        self.start.put(out);
        out.put_u32(self.credit_messages);
        out.put_u64(self.credit_bytes);
        put_millis(out, self.deadline);
        out.put_u32(self.held.len() as u32);
        self.held.iter().for_each(|held| held.put(out));
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let subscription = reader.u32()?;
        let consumer = ConsumerId(reader.u128()?);
        let address = reader.address()?;
        let group = reader.group()?;
        let start = Option::<StartAt>::read(reader)?;
        let credit_messages = reader.u32()?;
        let credit_bytes = reader.u64()?;
        let deadline = read_millis(reader)?;
        let count = reader.u32()? as usize;
        let count = reader.count(count, 16, "held")?;
        let held = (0..count).map(|_| Held::read(reader)).collect::<Result<_, DecodeError>>()?;
        Ok(Self {
            subscription,
            consumer,
            address,
            group,
            start,
            credit_messages,
            credit_bytes,
            deadline,
            held,
        })
    }
}

/// The consumer has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// Shards of the address and their reigns: what it holds there carries this term from now on.
    pub shards: Vec<(ShardId, Term)>,
    /// What it held and holds no more.
    pub lost: Vec<(ShardId, Offset)>,
}

impl Subscribed {
    fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.shards.len() as u16);
        for (shard, term) in &self.shards {
            out.put_u32(shard.0);
            out.put_u64(term.0);
        }
        out.put_u32(self.lost.len() as u32);
        for (shard, offset) in &self.lost {
            out.put_u32(shard.0);
            out.put_u64(offset.0);
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = usize::from(reader.u16()?);
        let count = reader.count(count, 12, "shards")?;
        let shards = (0..count)
            .map(|_| Ok((ShardId(reader.u32()?), Term(reader.u64()?))))
            .collect::<Result<_, DecodeError>>()?;
        let count = reader.u32()? as usize;
        let count = reader.count(count, 12, "lost")?;
        let lost = (0..count)
            .map(|_| Ok((ShardId(reader.u32()?), Offset(reader.u64()?))))
            .collect::<Result<_, DecodeError>>()?;
        Ok(Self { shards, lost })
    }
}

/// The consumer leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Which subscription.
    pub subscription: u32,
}

impl Unsubscribe {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { subscription: reader.u32()? })
    }
}

/// The consumer can take more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Which subscription.
    pub subscription: u32,
    /// So many messages more.
    pub messages: u32,
    /// So many sealed bytes more.
    pub bytes: u64,
}

impl Credit {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
        out.put_u32(self.messages);
        out.put_u64(self.bytes);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { subscription: reader.u32()?, messages: reader.u32()?, bytes: reader.u64()? })
    }
}

/// One message for a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliverItem {
    /// Of which shard.
    pub shard: ShardId,
    /// Which.
    pub offset: Offset,
    /// Of which reign the lease is.
    pub term: Term,
    /// Which delivery of it.
    pub attempt: Attempt,
    /// Length of the lease.
    pub lease: Duration,
    /// Why it is a dead letter; empty if it is none.
    pub reason: String,
    /// As its producer sealed it.
    pub sealed: Bytes,
}

/// Messages for a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deliver {
    /// Which subscription.
    pub subscription: u32,
    /// The messages.
    pub items: Vec<DeliverItem>,
}

const DELIVER_ITEM_BYTES_MIN: usize = 29 + envelope::FIXED_BYTES;

impl Deliver {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
        out.put_u16(self.items.len() as u16);
        for item in &self.items {
            let header = DeliverHeader {
                shard: item.shard,
                offset: item.offset,
                term: item.term,
                attempt: item.attempt,
                lease: item.lease,
                reason: &item.reason,
            };
            header.put(out);
            out.put_slice(&item.sealed);
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let subscription = reader.u32()?;
        let count = usize::from(reader.u16()?);
        let count = reader.count(count, DELIVER_ITEM_BYTES_MIN, "items")?;
        let items = (0..count)
            .map(|_| {
                let shard = ShardId(reader.u32()?);
                let offset = Offset(reader.u64()?);
                let term = Term(reader.u64()?);
                let attempt = Attempt(reader.u32()?);
                let lease = read_millis(reader)?;
                let reason = reader.name("reason")?;
                Ok(DeliverItem { shard, offset, term, attempt, lease, reason, sealed: read_sealed(reader)? })
            })
            .collect::<Result<_, DecodeError>>()?;
        Ok(Self { subscription, items })
    }
}

/// Everything of a delivery but its bytes.
#[derive(Clone, Copy, Debug)]
pub struct DeliverHeader<'a> {
    /// Of which shard.
    pub shard: ShardId,
    /// Which.
    pub offset: Offset,
    /// Of which reign the lease is.
    pub term: Term,
    /// Which delivery of it.
    pub attempt: Attempt,
    /// Length of the lease.
    pub lease: Duration,
    /// Why it is a dead letter.
    pub reason: &'a str,
}

impl DeliverHeader<'_> {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        out.put_u64(self.offset.0);
        out.put_u64(self.term.0);
        out.put_u32(self.attempt.0);
        put_millis(out, self.lease);
        put_name(out, self.reason);
    }
}

/// Writes a deliver frame message by message, straight into a connection's output.
#[derive(Debug)]
pub struct DeliverWriter<'a> {
    out: &'a mut BytesMut,
    start: usize,
    count: u16,
}

impl<'a> DeliverWriter<'a> {
    /// Begins a frame.
    pub fn begin(out: &'a mut BytesMut, subscription: u32) -> Self {
        let start = begin(out, FrameKind::Deliver, 0);
        out.put_u32(subscription);
        out.put_u16(0);
        Self { out, start, count: 0 }
    }

    /// Whether a message of `bytes` should go into the next frame.
    pub fn is_full(&self, bytes: usize, frame_bytes: usize) -> bool {
        self.count > 0
            && (self.out.len() - self.start + bytes + 512 > frame_bytes
                || usize::from(self.count) == BATCH_MESSAGES_MAX)
    }

    /// Adds a message.
    pub fn push(&mut self, header: &DeliverHeader<'_>, sealed: &[u8]) {
        header.put(self.out);
        self.out.put_slice(sealed);
        self.count += 1;
    }

    /// Ends the frame.
    pub fn finish(self) {
        let at = self.start + FRAME_HEADER_BYTES + 4;
        self.out[at..at + 2].copy_from_slice(&self.count.to_be_bytes());
        finish(self.out, self.start);
    }
}

/// What a consumer has done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleAction {
    /// Done with it.
    Ack,
    /// Try again later.
    Nack {
        /// `None`: the default back-off.
        delay: Option<Duration>,
    },
    /// Not done yet.
    Extend {
        /// From now.
        duration: Duration,
    },
    /// Never again.
    DeadLetter,
    /// Given back unprocessed.
    Release,
}

/// One message settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleItem {
    /// Of which shard.
    pub shard: ShardId,
    /// Which.
    pub offset: Offset,
    /// Of which reign the lease is.
    pub term: Term,
    /// Which delivery of it.
    pub attempt: Attempt,
    /// What was done.
    pub action: SettleAction,
    /// The consumer's words, for nacks and dead letters.
    pub reason: String,
}

/// What a consumer has done with messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// Which subscription.
    pub subscription: u32,
    /// Time the client waits.
    pub deadline: Duration,
    /// Message by message.
    pub items: Vec<SettleItem>,
}

impl Settle {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
        put_millis(out, self.deadline);
        out.put_u16(self.items.len() as u16);
        for item in &self.items {
            out.put_u32(item.shard.0);
            out.put_u64(item.offset.0);
            out.put_u64(item.term.0);
            out.put_u32(item.attempt.0);
            let (action, argument) = match item.action {
                SettleAction::Ack => (0, 0),
                SettleAction::Nack { delay: None } => (1, u32::MAX),
                SettleAction::Nack { delay: Some(delay) } => (1, millis(delay).min(u32::MAX - 1)),
                SettleAction::Extend { duration } => (2, millis(duration)),
                SettleAction::DeadLetter => (3, 0),
                SettleAction::Release => (4, 0),
            };
            out.put_u8(action);
            out.put_u32(argument);
            put_text(out, cut_at(&item.reason, REASON_BYTES_MAX));
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let subscription = reader.u32()?;
        let deadline = read_millis(reader)?;
        let count = usize::from(reader.u16()?);
        if count > BATCH_MESSAGES_MAX {
            return Err(DecodeError::TooLarge("items"));
        }
        let count = reader.count(count, 31, "items")?;
        let items = (0..count)
            .map(|_| {
                let shard = ShardId(reader.u32()?);
                let offset = Offset(reader.u64()?);
                let term = Term(reader.u64()?);
                let attempt = Attempt(reader.u32()?);
                let action = reader.u8()?;
                let argument = reader.u32()?;
                let duration = Duration::from_millis(argument.into());
                let action = match action {
                    0 => SettleAction::Ack,
                    1 => SettleAction::Nack { delay: (argument != u32::MAX).then_some(duration) },
                    2 => SettleAction::Extend { duration },
                    3 => SettleAction::DeadLetter,
                    4 => SettleAction::Release,
                    _ => return Err(DecodeError::Invalid("action")),
                };
                let reason = reader.text("reason")?;
                if reason.len() > REASON_BYTES_MAX {
                    return Err(DecodeError::TooLarge("reason"));
                }
                Ok(SettleItem { shard, offset, term, attempt, action, reason })
            })
            .collect::<Result<_, DecodeError>>()?;
        Ok(Self { subscription, deadline, items })
    }
}

/// `count` settlements with the same fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettledRun {
    /// How many.
    pub count: u16,
    /// Their fate.
    pub outcome: Outcome,
    /// Why; 0 when it went well.
    pub code: u16,
}

/// Whether settlements hold, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Covers every item.
    pub runs: Vec<SettledRun>,
}

impl Settled {
    fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.runs.len() as u16);
        for run in &self.runs {
            out.put_u16(run.count);
            out.put_u8(run.outcome.to_u8());
            out.put_u16(run.code);
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = usize::from(reader.u16()?);
        let count = reader.count(count, 5, "runs")?;
        let runs = (0..count)
            .map(|_| {
                Ok(SettledRun { count: reader.u16()?, outcome: read_outcome(reader)?, code: reader.u16()? })
            })
            .collect::<Result<_, DecodeError>>()?;
        Ok(Self { runs })
    }
}

/// Leases that ended without the consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseLost {
    /// Which subscription.
    pub subscription: u32,
    /// Which messages.
    pub items: Vec<Held>,
}

impl LeaseLost {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
        out.put_u16(self.items.len() as u16);
        self.items.iter().for_each(|item| item.put(out));
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let subscription = reader.u32()?;
        let count = usize::from(reader.u16()?);
        let count = reader.count(count, 16, "items")?;
        Ok(Self {
            subscription,
            items: (0..count).map(|_| Held::read(reader)).collect::<Result<_, DecodeError>>()?,
        })
    }
}

/// Look at messages without leasing them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peek {
    /// Of which address.
    pub address: Address,
    /// In which shard.
    pub shard: ShardId,
    /// Not before this place.
    pub start: Option<StartAt>,
    /// Not before this offset.
    pub from_offset: Offset,
    /// At most so many.
    pub messages_max: u16,
    /// Hardly more sealed bytes than this.
    pub bytes_max: u32,
}

impl Peek {
    fn put(&self, out: &mut BytesMut) {
        put_name(out, self.address.as_str());
        out.put_u32(self.shard.0);
        self.start.put(out);
        out.put_u64(self.from_offset.0);
        out.put_u16(self.messages_max);
        out.put_u32(self.bytes_max);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            address: reader.address()?,
            shard: ShardId(reader.u32()?),
            start: Option::<StartAt>::read(reader)?,
            from_offset: Offset(reader.u64()?),
            messages_max: reader.u16()?,
            bytes_max: reader.u32()?,
        })
    }
}

/// One message seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeekedItem {
    /// Which.
    pub offset: Offset,
    /// Why it is a dead letter; empty if it is none.
    pub reason: String,
    /// As its producer sealed it.
    pub sealed: Bytes,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// Where to look next.
    pub next_offset: Offset,
    /// There is nothing further now.
    pub end: bool,
    /// The messages.
    pub items: Vec<PeekedItem>,
}

impl Peeked {
    fn put(&self, out: &mut BytesMut) {
        out.put_u64(self.next_offset.0);
        out.put_u8(self.end.into());
        out.put_u16(self.items.len() as u16);
        for item in &self.items {
            out.put_u64(item.offset.0);
            put_name(out, &item.reason);
            out.put_slice(&item.sealed);
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let next_offset = Offset(reader.u64()?);
        let end = reader.flag("end")?;
        let count = usize::from(reader.u16()?);
        let count = reader.count(count, 9 + envelope::FIXED_BYTES, "items")?;
        let items = (0..count)
            .map(|_| {
                let offset = Offset(reader.u64()?);
                let reason = reader.name("reason")?;
                Ok(PeekedItem { offset, reason, sealed: read_sealed(reader)? })
            })
            .collect::<Result<_, DecodeError>>()?;
        Ok(Self { next_offset, end, items })
    }
}

/// A question of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin(pub AdminRequest);

impl Admin {
    fn put(&self, out: &mut BytesMut) {
        self.0.put(out);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        AdminRequest::read(reader).map(Self)
    }
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminReply(pub AdminAnswer);

impl AdminReply {
    fn put(&self, out: &mut BytesMut) {
        self.0.put(out);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        AdminAnswer::read(reader).map(Self)
    }
}

macro_rules! empty {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name;

        impl $name {
            fn put(&self, _out: &mut BytesMut) {}

            fn read(_reader: &mut Reader) -> Result<Self, DecodeError> {
                Ok(Self)
            }
        }
    };
}

empty!(
    /// Are you there?
    Ping
);
empty!(
    /// Yes.
    Pong
);

/// This node is stopping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoAway {
    /// Why, for people.
    pub reason: String,
}

impl GoAway {
    fn put(&self, out: &mut BytesMut) {
        put_text(out, &self.reason);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { reason: reader.text("reason")? })
    }
}

fn read_sealed(reader: &mut Reader) -> Result<Bytes, DecodeError> {
    let length = {
        let (sealed, _) = envelope::split_sealed(reader.peek())?;
        sealed.bytes().len()
    };
    reader.take(length)
}

fn read_outcome(reader: &mut Reader) -> Result<Outcome, DecodeError> {
    Outcome::from_u8(reader.u8()?).ok_or(DecodeError::Invalid("outcome"))
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn put_millis(out: &mut BytesMut, duration: Duration) {
    out.put_u32(millis(duration));
}

fn read_millis(reader: &mut Reader) -> Result<Duration, DecodeError> {
    Ok(Duration::from_millis(reader.u32()?.into()))
}
