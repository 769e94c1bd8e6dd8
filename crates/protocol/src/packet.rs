//! Packets between nodes: each names its whole path, so that no node on the way has to decide where it goes.
//!
//! ```text
//!  0        4        5          6        7          8             12                 16           20
//!  | len u32 | ver u8 | class u8 | hop u8 | nodes u8 | origin u32 | destination u32 | number u32 | node u16 x nodes | body |
//! ```
//! `len` counts what follows it. `hop` is the place in the path of the node that sends the packet over this link. The
//! three numbers before the path say which conversation the packet belongs to.
//! Absent here: who decides on the path, queues, sockets. Why so: docs/decisions/0008-node-to-node-packets.md.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    codec::{DecodeError, Reader},
    error::Code,
    id::NodeId,
    limits::{HOPS_MAX, PACKET_BYTES_MAX},
};

/// The packet layout this code speaks. 1 had no conversation.
pub const PACKET_VERSION: u8 = 2;
/// Bytes of the length prefix.
const LENGTH_BYTES: usize = 4;
/// Version, class, hop, nodes, conversation.
const FIXED_BYTES: usize = 16;
/// Largest value of the length prefix: the longest path and the largest body.
const LENGTH_MAX: usize = FIXED_BYTES + 2 * (HOPS_MAX + 1) + PACKET_BYTES_MAX;
/// Room that is made for bytes that were announced and have not come.
const ROOM_AHEAD_BYTES: usize = 32 << 10;

const _: () = assert!(LENGTH_MAX <= u32::MAX as usize);

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        /// What a packet is for, and so which goes first where several wait: the lower one. Numbers are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Class { $($(#[$doc])* $name = $number,)* }

        impl Class {
            /// Every class, the one that goes first in front.
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

classes! {
    /// Who is alive, and who leads: late ones cost elections.
    Heartbeat = 0;
    /// Entries and votes.
    Consensus = 1;
    /// What consumers have done with messages: it frees room.
    Settlement = 2;
    /// Messages on their way to consumers.
    Delivery = 3;
    /// New messages: they wait before what is in already.
    Publish = 4;
    /// Snapshots and everything else that has time.
    Bulk = 5;
}

/// What a packet belongs to: a stretch of time in which two processes rely on hearing everything that the other one sends,
/// in its order within a class. It ends when something may have been lost or overtaken, because a link broke or another
/// path is taken; then both begin the next one, and what arrives late from an earlier one is told by this and dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// Which process of the origin; see [`life`].
    pub origin: u32,
    /// Which process of the destination.
    pub destination: u32,
    /// Rises with every conversation of these two processes, from 1; the higher one counts. 0: in none, for neighbours
    /// that measure their link.
    pub number: u32,
}

/// The short name of a node's process, by the life of its disk and the start of its process. Two may be alike by chance,
/// once in four thousand million; then late packets of the earlier one could be taken for the later one's.
pub fn life(incarnation: u64, boot: u64) -> u32 {
    let mut hash = incarnation ^ boot.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15;
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash ^ (hash >> 31)) as u32
}

/// One packet between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is for.
    pub class: Class,
    /// Every node it passes: first the origin, last the destination. No node twice; 2 to [`HOPS_MAX`] + 1 of them.
    pub path: Vec<NodeId>,
    /// Place in `path` of the node that holds the packet now.
    pub hop: u8,
    /// What it belongs to.
    pub conversation: Conversation,
    /// What it carries; at most [`PACKET_BYTES_MAX`] bytes.
    pub body: Bytes,
}

/// What a node has to do with a packet that reached it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// It is the destination.
    Here(Packet),
    /// It has to send the packet on as it is.
    Onward {
        /// Over which link.
        next: NodeId,
        /// What.
        packet: Packet,
    },
}

/// Why bytes are no packet, or a packet is not one for this node. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PacketError {
    /// The bytes do not read. Blame: the neighbour, or another version of it.
    Malformed(DecodeError),
    /// A node twice in the path. Blame: the origin.
    Loop,
    /// The path does not lead here next. Blame: the neighbour.
    NotForMe,
    /// The path leads here next, but from somebody else. Blame: the neighbour.
    WrongNeighbour {
        /// Whose turn it was to send.
        named: NodeId,
        /// Who sent.
        from: NodeId,
    },
    /// More than [`HOPS_MAX`] links. Blame: the origin.
    TooLong,
    /// More bytes than a packet may have; nothing was allocated for them. Blame: the neighbour.
    TooLarge,
}

impl PacketError {
    /// The code that tells the peer.
    pub fn code(&self) -> Code {
        match self {
            Self::TooLarge => Code::TooLarge,
            _ => Code::Malformed,
        }
    }
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => write!(f, "malformed packet: {error}"),
            Self::Loop => write!(f, "a packet whose path has a node twice"),
            Self::NotForMe => write!(f, "a packet whose path does not lead to this node next"),
            Self::WrongNeighbour { named, from } => {
                write!(f, "a packet from node {} that node {} had to send", from.0, named.0)
            }
            Self::TooLong => write!(f, "a packet whose path has more than {HOPS_MAX} links"),
            Self::TooLarge => write!(f, "a packet of more than {PACKET_BYTES_MAX} bytes"),
        }
    }
}

impl std::error::Error for PacketError {}

impl From<DecodeError> for PacketError {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

/// What must hold for every path, on both sides of the wire.
fn check_path(path: &[NodeId]) -> Result<(), PacketError> {
    if path.len() < 2 {
        return Err(DecodeError::Invalid("path").into());
    }
    if path.len() > HOPS_MAX + 1 {
        return Err(PacketError::TooLong);
    }
    if path.contains(&NodeId(0)) {
        return Err(DecodeError::Invalid("node").into());
    }
    let twice = path.iter().enumerate().any(|(place, node)| path[..place].contains(node));
    if twice { Err(PacketError::Loop) } else { Ok(()) }
}

impl Packet {
    /// For a neighbour; the link between the two is the whole path. `from` and `to` differ.
    pub fn direct(class: Class, from: NodeId, to: NodeId, body: Bytes) -> Self {
        debug_assert!(from != to, "a packet from node {} to itself", from.0);
        Self { class, path: vec![from, to], hop: 0, conversation: Conversation::default(), body }
    }

    /// Along `path`, from its first node to its last.
    pub fn along(class: Class, path: Vec<NodeId>, body: Bytes) -> Result<Self, PacketError> {
        check_path(&path)?;
        if body.len() > PACKET_BYTES_MAX {
            return Err(PacketError::TooLarge);
        }
        Ok(Self { class, path, hop: 0, conversation: Conversation::default(), body })
    }

    /// The same as part of `conversation`.
    pub fn within(mut self, conversation: Conversation) -> Self {
        self.conversation = conversation;
        self
    }

    /// Whether it belongs to no conversation: two neighbours measure their link.
    pub fn is_between_neighbours(&self) -> bool {
        self.conversation.number == 0 && self.path.len() == 2
    }

    /// Who sent it first.
    pub fn origin(&self) -> NodeId {
        *self.path.first().expect("a path has at least two nodes")
    }

    /// Who it is for.
    pub fn destination(&self) -> NodeId {
        *self.path.last().expect("a path has at least two nodes")
    }

    /// Writes the whole packet with its length, as the node at `hop` sends it. Not for the destination: there is no
    /// next link, and nobody would read it. Cost: one copy of the body.
    pub fn encode(&self, out: &mut BytesMut) {
        out.reserve(LENGTH_BYTES + FIXED_BYTES + 2 * self.path.len() + self.body.len());
        self.encode_head(out);
        out.put_slice(&self.body);
    }

    /// What [`Packet::encode`] writes before the body.
    pub fn encode_head(&self, out: &mut BytesMut) {
        debug_assert_eq!(check_path(&self.path), Ok(()), "path {:?}", self.path);
        debug_assert!(usize::from(self.hop) + 1 < self.path.len(), "sent on from its destination");
        debug_assert!(self.body.len() <= PACKET_BYTES_MAX, "a packet of {} bytes", self.body.len());
        let length = FIXED_BYTES + 2 * self.path.len() + self.body.len();
        out.put_u32(length as u32);
        out.put_u8(PACKET_VERSION);
        out.put_u8(self.class.to_u8());
        out.put_u8(self.hop);
        out.put_u8(self.path.len() as u8);
        out.put_u32(self.conversation.origin);
        out.put_u32(self.conversation.destination);
        out.put_u32(self.conversation.number);
        self.path.iter().for_each(|node| out.put_u16(node.0));
    }

    /// Reads what follows a packet's length, without copying the body.
    pub fn decode(body: Bytes) -> Result<Self, PacketError> {
        let mut reader = Reader::new(body);
        if reader.u8()? != PACKET_VERSION {
            return Err(DecodeError::Invalid("packet version").into());
        }
        let class = Class::from_u8(reader.u8()?).ok_or(DecodeError::Invalid("class"))?;
        let hop = reader.u8()?;
        let nodes = usize::from(reader.u8()?);
        if nodes > HOPS_MAX + 1 {
            return Err(PacketError::TooLong);
        }
        let conversation =
            Conversation { origin: reader.u32()?, destination: reader.u32()?, number: reader.u32()? };
        let mut path = Vec::with_capacity(nodes);
        for _ in 0..nodes {
            path.push(NodeId(reader.u16()?));
        }
        check_path(&path)?;
        if usize::from(hop) + 1 >= nodes {
            return Err(DecodeError::Invalid("hop").into());
        }
        if reader.remaining() > PACKET_BYTES_MAX {
            return Err(PacketError::TooLarge);
        }
        Ok(Self { class, path, hop, conversation, body: reader.rest() })
    }

    /// What the node `me`, which received this packet from its neighbour `from`, has to do. The neighbour must be whose
    /// turn it was, and `me` the one after it in the path; then `me` holds the packet.
    pub fn arrive(mut self, me: NodeId, from: NodeId) -> Result<Arrived, PacketError> {
        let held = usize::from(self.hop);
        let (Some(named), Some(next)) = (self.path.get(held), self.path.get(held + 1)) else {
            return Err(PacketError::NotForMe);
        };
        if *next != me {
            return Err(PacketError::NotForMe);
        }
        if *named != from {
            return Err(PacketError::WrongNeighbour { named: *named, from });
        }
        self.hop += 1;
        Ok(match self.path.get(held + 2) {
            Some(next) => Arrived::Onward { next: *next, packet: self },
            None => Arrived::Here(self),
        })
    }
}

/// Cuts a stream of bytes into packets, on a link whose other end has proven who it is.
#[derive(Debug, Default)]
pub struct PacketReader {
    buffer: BytesMut,
}

impl PacketReader {
    /// For a link that has just opened.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where received bytes are to be appended; at first, what the handshake left over.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole packet, without copying its body. `None`: more bytes are needed. After an error the link cannot
    /// go on.
    #[allow(clippy::should_implement_trait, reason = "an iterator would be over after the first `None`")]
    pub fn next(&mut self) -> Result<Option<Packet>, PacketError> {
        let Some(length) = self.length() else { return Ok(None) };
        if length > LENGTH_MAX {
            return Err(PacketError::TooLarge);
        }
        if self.buffer.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        let mut packet = self.buffer.split_to(LENGTH_BYTES + length);
        bytes::Buf::advance(&mut packet, LENGTH_BYTES);
        Packet::decode(packet.freeze()).map(Some)
    }

    /// Bytes to make room for: what the packet under way still lacks, if that is little. For more the buffer grows as
    /// the bytes come: 0 then, and if nothing of a packet has come.
    pub fn missing(&self) -> usize {
        let Some(length) = self.length() else { return 0 };
        let lacking = (LENGTH_BYTES + length).saturating_sub(self.buffer.len());
        if lacking <= ROOM_AHEAD_BYTES { lacking } else { 0 }
    }

    fn length(&self) -> Option<usize> {
        let head = self.buffer.get(..LENGTH_BYTES)?;
        Some(u32::from_be_bytes(head.try_into().expect("4 bytes")) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(nodes: &[u16]) -> Vec<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn along(nodes: &[u16]) -> Packet {
        Packet::along(Class::Publish, path(nodes), Bytes::from_static(b"body")).expect("a good path")
    }

    fn encoded(packet: &Packet) -> BytesMut {
        let mut out = BytesMut::new();
        packet.encode(&mut out);
        out
    }

    fn received(bytes: &[u8]) -> Result<Option<Packet>, PacketError> {
        let mut reader = PacketReader::new();
        reader.buffer().extend_from_slice(bytes);
        reader.next()
    }

    fn hopped(mut packet: Packet, hop: u8) -> Packet {
        packet.hop = hop;
        packet
    }

    #[test]
    fn classes_keep_their_numbers_and_the_lower_goes_first() {
        for (number, class) in Class::ALL.iter().enumerate() {
            assert_eq!(usize::from(class.to_u8()), number);
            assert_eq!(Class::from_u8(class.to_u8()), Some(*class));
        }
        assert_eq!(Class::from_u8(6), None);
        assert!(Class::Heartbeat < Class::Consensus && Class::Publish < Class::Bulk);
    }

    #[test]
    fn a_packet_lies_on_the_wire_as_drawn() {
        let bytes = encoded(&hopped(along(&[1, 0x0203, 9]), 1));
        let drawn = [&[0, 0, 0, 26, 2, 4, 1, 3], &[0; 12][..], &[0, 1, 2, 3, 0, 9], &b"body"[..]].concat();
        assert_eq!(bytes, drawn);
        let conversation = Conversation { origin: 0x0102_0304, destination: 5, number: 0x0607_0809 };
        let bytes = encoded(&along(&[1, 2]).within(conversation));
        assert_eq!(&bytes[8..20], [1, 2, 3, 4, 0, 0, 0, 5, 6, 7, 8, 9]);
        assert_eq!(received(&bytes).unwrap().unwrap().conversation, conversation);
    }

    #[test]
    fn every_packet_reads_back_and_its_body_is_not_copied() {
        for class in Class::ALL {
            for nodes in 2..=HOPS_MAX as u16 + 1 {
                let nodes: Vec<u16> = (1..=nodes).collect();
                let packet = Packet::along(*class, path(&nodes), Bytes::from_static(b"body")).unwrap();
                assert_eq!(received(&encoded(&packet)), Ok(Some(packet)));
            }
        }
        let bytes = encoded(&along(&[1, 2])).freeze();
        let packet = Packet::decode(bytes.slice(LENGTH_BYTES..)).unwrap();
        assert_eq!(packet.body.as_ptr(), bytes[bytes.len() - 4..].as_ptr());
    }

    #[test]
    fn a_packet_goes_from_node_to_node_and_stops_at_the_last() {
        let sent = along(&[5, 3, 8]);
        assert_eq!((sent.origin(), sent.destination()), (NodeId(5), NodeId(8)));
        let Ok(Arrived::Onward { next, packet }) = sent.arrive(NodeId(3), NodeId(5)) else { panic!() };
        assert_eq!((next, packet.hop), (NodeId(8), 1));
        let packet = received(&encoded(&packet)).unwrap().unwrap();
        let Ok(Arrived::Here(packet)) = packet.arrive(NodeId(8), NodeId(3)) else { panic!() };
        assert_eq!(packet, hopped(along(&[5, 3, 8]), 2));
        // It is at its end: nobody else can take it.
        assert_eq!(packet.arrive(NodeId(5), NodeId(8)), Err(PacketError::NotForMe));
    }

    #[test]
    fn a_packet_for_another_or_from_another_is_refused() {
        let packet = along(&[5, 3, 8]);
        assert_eq!(packet.clone().arrive(NodeId(8), NodeId(5)), Err(PacketError::NotForMe));
        assert_eq!(packet.clone().arrive(NodeId(5), NodeId(5)), Err(PacketError::NotForMe));
        let named = NodeId(5);
        let wrong = PacketError::WrongNeighbour { named, from: NodeId(8) };
        assert_eq!(packet.arrive(NodeId(3), NodeId(8)), Err(wrong));
        assert_eq!(hopped(along(&[5, 3]), 255).arrive(NodeId(3), NodeId(5)), Err(PacketError::NotForMe));
    }

    #[test]
    fn paths_that_cannot_be_are_refused_on_both_sides() {
        let nine: Vec<u16> = (1..=9).collect();
        let invalid = |field| PacketError::Malformed(DecodeError::Invalid(field));
        for (nodes, why) in [
            (&[][..], invalid("path")),
            (&[1], invalid("path")),
            (&[1, 0], invalid("node")),
            (&[1, 2, 1], PacketError::Loop),
            (&[4, 4], PacketError::Loop),
            (&nine, PacketError::TooLong),
        ] {
            let made = Packet::along(Class::Bulk, path(nodes), Bytes::new());
            assert_eq!(made, Err(why.clone()), "{nodes:?}");
            let mut bytes = vec![PACKET_VERSION, 5, 0, nodes.len() as u8];
            bytes.extend([0; 12]);
            nodes.iter().for_each(|node| bytes.extend(node.to_be_bytes()));
            assert_eq!(Packet::decode(bytes.into()), Err(why), "{nodes:?}");
        }
    }

    #[test]
    fn unknown_versions_classes_and_hops_are_refused() {
        let good = encoded(&along(&[1, 2]));
        for (place, value, field) in [(4, 1, "packet version"), (5, 6, "class"), (6, 1, "hop")] {
            let mut bytes = good.clone();
            bytes[place] = value;
            assert_eq!(received(&bytes), Err(PacketError::Malformed(DecodeError::Invalid(field))));
        }
    }

    #[test]
    fn a_header_cut_anywhere_is_an_error_and_a_stream_cut_anywhere_waits() {
        let good = encoded(&along(&[1, 2, 3])).freeze();
        let header = FIXED_BYTES + 6;
        for length in 0..header {
            let cut = good.slice(LENGTH_BYTES..LENGTH_BYTES + length);
            assert_eq!(Packet::decode(cut), Err(PacketError::Malformed(DecodeError::Truncated)), "{length}");
        }
        let mut reader = PacketReader::new();
        for byte in &good[..good.len() - 1] {
            reader.buffer().put_u8(*byte);
            assert_eq!(reader.next(), Ok(None));
        }
        assert_eq!(reader.missing(), 1);
        reader.buffer().put_slice(&[good[good.len() - 1], 0, 0]);
        assert_eq!(reader.next(), Ok(Some(along(&[1, 2, 3]))));
        assert_eq!(reader.next(), Ok(None));
        assert_eq!(reader.buffer().len(), 2, "the next packet's beginning stays");
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_anything_is_allocated() {
        let mut reader = PacketReader::new();
        reader.buffer().put_u32(LENGTH_MAX as u32 + 1);
        assert_eq!(reader.next(), Err(PacketError::TooLarge));
        let mut reader = PacketReader::new();
        reader.buffer().put_u32(LENGTH_MAX as u32);
        assert_eq!((reader.next(), reader.missing()), (Ok(None), 0));
        assert!(reader.buffer().capacity() < 1024);
    }

    #[test]
    fn a_body_of_the_largest_size_travels_and_a_larger_one_does_not() {
        let body = Bytes::from(vec![7; PACKET_BYTES_MAX + 1]);
        let large = Packet::along(Class::Bulk, path(&[1, 2]), body.slice(1..)).unwrap();
        let bytes = encoded(&large);
        assert_eq!(received(&bytes), Ok(Some(large)));
        assert_eq!(Packet::along(Class::Bulk, path(&[1, 2]), body), Err(PacketError::TooLarge));
        let header = LENGTH_BYTES + FIXED_BYTES + 4;
        let larger = [&bytes[LENGTH_BYTES..header], &[7], &bytes[header..]].concat();
        assert_eq!(Packet::decode(larger.into()), Err(PacketError::TooLarge));
    }

    #[test]
    fn every_start_of_every_disk_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<u32> =
            (0..64).flat_map(|disk| (0..64).map(move |boot| life(disk, boot))).collect();
        assert_eq!(names.len(), 64 * 64);
    }

    #[test]
    fn messages_for_people_carry_what_is_known() {
        let error = PacketError::WrongNeighbour { named: NodeId(5), from: NodeId(8) };
        assert_eq!(error.to_string(), "a packet from node 8 that node 5 had to send");
        assert_eq!(PacketError::TooLarge.code(), Code::TooLarge);
        assert_eq!(PacketError::Loop.code(), Code::Malformed);
    }
}
