//! The client alphabet: every frame between a client and a node, byte by byte. See docs/protocol.md.
//!
//! ```text
//!  0        4         5          6        8           16
//!  | len u32 | kind u8 | flags u8 | zero u16 | request u64 | body (len) |
//! ```
//! Answers carry the request number of their question; unsolicited frames carry 0.

mod consume;
mod hello;
mod leaders;
mod publish;

#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};

pub use self::{
    consume::{
        Credit, Deliver, DeliverHeader, DeliverItem, DeliverWriter, Held, LeaseLost, Peek, Peeked,
        PeekedItem, Settle, SettleAction, SettleItem, Settled, SettledRun, StartAt, Subscribe, Subscribed,
        Unsubscribe,
    },
    hello::{ClientHello, ClientProof, Refused, ServerHello, Welcome},
    leaders::Leaders,
    publish::{Answer, CloseSession, OpenSession, Publish, Published, PublishedRun, Resolve, Resolved, Skip},
};
use crate::{
    admin::{AdminAnswer, AdminRequest},
    codec::{DecodeError, Reader, put_text},
    envelope,
    error::{Code, Outcome},
    limits::{FRAME_BYTES_MAX, UNAUTHENTICATED_BYTES_MAX},
};

/// Bytes before a frame's body.
pub const FRAME_HEADER_BYTES: usize = 16;
/// Longest body that is read without being checked first: nothing grows to more than 64 KiB out of so little.
const SMALL_BODY_BYTES: usize = 2 << 10;
/// Room that is made for bytes that were announced and have not come.
const ROOM_AHEAD_BYTES: usize = 32 << 10;
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
    /// Who leads what? Tell me whenever that changes.
    WatchLeaders = 0x43;
    /// They do.
    Leaders = 0x44;
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

/// Reads a whole body; nothing may be left over. A body that does not read costs no memory beyond its bytes.
pub fn decode<B: Body>(body: Bytes) -> Result<B, DecodeError> {
    if body.len() > SMALL_BODY_BYTES {
        // A list can take several times the room of its bytes, and the fault may stand at its end: look there first.
        let mut check = Reader::checking(body.clone());
        B::read(&mut check)?;
        check.end()?;
    }
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

    /// Bytes to make room for: what the frame under way still lacks, if that is little. A length is only a claim, so
    /// for more the buffer grows as the bytes come: 0 then, and if nothing of a frame has come.
    pub fn missing(&self) -> usize {
        let Some(head) = self.buffer.get(..4) else { return 0 };
        let length = u32::from_be_bytes(head.try_into().expect("4 bytes")) as usize;
        let lacking = (length + FRAME_HEADER_BYTES).saturating_sub(self.buffer.len());
        if lacking <= ROOM_AHEAD_BYTES { lacking } else { 0 }
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
empty!(
    /// Who leads what? Answered with [`Leaders`], which comes again, unasked, whenever it changes.
    WatchLeaders
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
