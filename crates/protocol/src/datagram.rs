//! Datagrams between nodes: one length for all of them, a clear header, a body, a MAC that only the two ends can make.
//!
//! ```text
//!  0        4        5         6             10           12               14                 22
//!  | "SWMG" | ver u8 | kind u8 | cluster u32 | origin u16 | destination u16 | incarnation u64 | boot u64 |
//!  30                          38                   46           54            len - 16
//!  | to incarnation u64        | to boot u64        | counter u64 | body        | mac [16] |
//! ```
//! `incarnation` and `boot` are the life of the sender, `to ...` the life of the receiver as the sender knows it, boot 0 if it
//! does not. `counter` rises with every datagram from one life to one node. The MAC covers everything before it, and apart
//! from what is needed to find its key nothing is looked at before it is checked. Nobody answers what does not pass.
//! Absent here: sockets, whom to tell what. Why so: docs/decisions/0010-gossip-and-node-keys.md.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    codec::{DecodeError, Reader},
    id::{ClusterId, NodeId},
    limits::{DATAGRAM_BYTES_MAX, DATAGRAM_DOCUMENT_BYTES_MAX},
    mac::{DualKey, MacKey, sha256},
};

/// First bytes of every datagram.
pub const DATAGRAM_MAGIC: [u8; 4] = *b"SWMG";
/// The layout this code speaks.
pub const DATAGRAM_VERSION: u8 = 1;
/// Kind: gossip. Numbers are never reused.
pub const KIND_GOSSIP: u8 = 1;
/// Bytes of the header.
pub const DATAGRAM_HEADER_BYTES: usize = 54;
/// Bytes of the MAC: half of HMAC-SHA256. A forger has one chance in 2^128 a try, and no key is at stake.
pub const DATAGRAM_MAC_BYTES: usize = 16;
/// Most bytes of a body.
pub const DATAGRAM_BODY_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - DATAGRAM_HEADER_BYTES - DATAGRAM_MAC_BYTES;
/// Bytes of one digest entry.
pub const ENTRY_BYTES: usize = 42;
/// Bytes of a gossip body without entries, wishes and documents: echo, loss, four counts.
pub const GOSSIP_FIXED_BYTES: usize = 18;
/// Bytes that a document takes besides its own: its length.
pub const DOCUMENT_FRAMING_BYTES: usize = 2;
/// Datagrams behind the newest that are still told apart.
const WINDOW: u64 = 128;

const _: () = assert!(
    GOSSIP_FIXED_BYTES + 2 * ENTRY_BYTES + DOCUMENT_FRAMING_BYTES + DATAGRAM_DOCUMENT_BYTES_MAX
        <= DATAGRAM_BODY_BYTES_MAX
);

/// One life of a node's process: which life of its disk, which start on it. A later one is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Life {
    /// Which life of its disk.
    pub incarnation: u64,
    /// Which start of its process, from 1. 0: not known.
    pub boot: u64,
}

/// Who tells whom, and which of the tellings this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: u8,
    /// Who sends.
    pub origin: NodeId,
    /// Who receives.
    pub destination: NodeId,
    /// The sender's life.
    pub life: Life,
    /// The receiver's life as the sender knows it; boot 0 where it does not.
    pub to: Life,
    /// Rises with every datagram from this life to this node; from 1.
    pub counter: u64,
}

/// Why a datagram was not taken. Nothing changed and nobody is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatagramError {
    /// Too short for header and MAC, or longer than a datagram may be. Blame: whoever sent it.
    Size(usize),
    /// Other first bytes. Blame: whoever sent it; something else talks to this port.
    Magic,
    /// A version that this code does not speak. Blame: nobody, or an upgrade that went too far.
    Version(u8),
    /// For another cluster. Blame: the settings of one of the two.
    OtherCluster,
    /// For another node. Blame: an address that changed hands.
    NotForMe(NodeId),
    /// From a node that this one does not know, or whose key is none. Often only early.
    Stranger(NodeId),
    /// The MAC is wrong: other keys, or bytes altered on the way. Blame: sender or network.
    Forged,
    /// From a life of the sender that is over or was never registered, or for a life of this node that is over.
    OtherLife,
    /// This one was here before, or is too old to tell.
    Replayed,
    /// Proven, and yet its body does not read. Blame: the sender, or another version of it.
    Malformed(DecodeError),
}

impl DatagramError {
    /// Every reason as a short word, in the order of [`DatagramError::index`].
    pub const REASONS: [&str; 10] = [
        "size",
        "magic",
        "version",
        "other_cluster",
        "not_for_me",
        "stranger",
        "forged",
        "other_life",
        "replayed",
        "malformed",
    ];

    /// Place of the reason in [`DatagramError::REASONS`], to count by.
    pub const fn index(&self) -> usize {
        match self {
            Self::Size(_) => 0,
            Self::Magic => 1,
            Self::Version(_) => 2,
            Self::OtherCluster => 3,
            Self::NotForMe(_) => 4,
            Self::Stranger(_) => 5,
            Self::Forged => 6,
            Self::OtherLife => 7,
            Self::Replayed => 8,
            Self::Malformed(_) => 9,
        }
    }
}

impl fmt::Display for DatagramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(bytes) => write!(f, "a datagram of {bytes} bytes"),
            Self::Magic => write!(f, "no datagram of a node"),
            Self::Version(version) => write!(f, "a datagram of version {version}, not {DATAGRAM_VERSION}"),
            Self::OtherCluster => write!(f, "a datagram of another cluster"),
            Self::NotForMe(node) => write!(f, "a datagram for node {}", node.0),
            Self::Stranger(node) => write!(f, "a datagram from node {}, which is not known here", node.0),
            Self::Forged => write!(f, "a datagram whose MAC is wrong"),
            Self::OtherLife => write!(f, "a datagram from or for another life of a node"),
            Self::Replayed => write!(f, "a datagram that was here before"),
            Self::Malformed(error) => write!(f, "malformed datagram: {error}"),
        }
    }
}

impl std::error::Error for DatagramError {}

impl From<DecodeError> for DatagramError {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

/// The cluster in four bytes: tells clusters apart that share a network; proves nothing.
pub fn cluster_tag(cluster: ClusterId) -> u32 {
    let hash = sha256(&[b"swarmmq/datagram/cluster/v1", &cluster.0.to_be_bytes()]);
    u32::from_be_bytes(hash[..4].try_into().expect("4 of 32 bytes"))
}

/// The whole datagram. Cost: 1 us for 300 bytes.
///
/// * `body`: at most [`DATAGRAM_BODY_BYTES_MAX`] bytes.
pub fn seal(tag: u32, header: &Header, body: &[u8], key: &MacKey) -> Bytes {
    assert!(body.len() <= DATAGRAM_BODY_BYTES_MAX, "a body of {} bytes", body.len());
    let mut out = BytesMut::with_capacity(DATAGRAM_HEADER_BYTES + body.len() + DATAGRAM_MAC_BYTES);
    out.put_slice(&DATAGRAM_MAGIC);
    out.put_u8(DATAGRAM_VERSION);
    out.put_u8(header.kind);
    out.put_u32(tag);
    out.put_u16(header.origin.0);
    out.put_u16(header.destination.0);
    out.put_u64(header.life.incarnation);
    out.put_u64(header.life.boot);
    out.put_u64(header.to.incarnation);
    out.put_u64(header.to.boot);
    out.put_u64(header.counter);
    debug_assert_eq!(out.len(), DATAGRAM_HEADER_BYTES);
    out.put_slice(body);
    let mac = key.sign(&[&out]);
    out.put_slice(&mac[..DATAGRAM_MAC_BYTES]);
    out.freeze()
}

/// A datagram of which nothing is proven yet: only who claims to send it, which names the key to prove it with.
#[derive(Debug)]
pub struct Unproven<'a> {
    bytes: &'a [u8],
    origin: NodeId,
}

impl<'a> Unproven<'a> {
    /// Sorts out what cannot be for this node, in order of cost. No allocation.
    pub fn read(bytes: &'a [u8], tag: u32, me: NodeId) -> Result<Self, DatagramError> {
        if !(DATAGRAM_HEADER_BYTES + DATAGRAM_MAC_BYTES..=DATAGRAM_BYTES_MAX).contains(&bytes.len()) {
            return Err(DatagramError::Size(bytes.len()));
        }
        let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        if bytes[..4] != DATAGRAM_MAGIC {
            return Err(DatagramError::Magic);
        }
        if bytes[4] != DATAGRAM_VERSION {
            return Err(DatagramError::Version(bytes[4]));
        }
        if bytes[6..10] != tag.to_be_bytes() {
            return Err(DatagramError::OtherCluster);
        }
        let (origin, destination) = (NodeId(u16_at(10)), NodeId(u16_at(12)));
        if destination != me {
            return Err(DatagramError::NotForMe(destination));
        }
        if origin == me || origin == NodeId(0) {
            return Err(DatagramError::Stranger(origin));
        }
        Ok(Self { bytes, origin })
    }

    /// Who claims to have sent it.
    pub fn origin(&self) -> NodeId {
        self.origin
    }

    /// Checks the MAC in constant time, and only then reads the header. Cost: 1 us for 300 bytes and each key.
    pub fn prove(self, keys: &DualKey) -> Result<(Header, &'a [u8]), DatagramError> {
        let (covered, mac) = self.bytes.split_at(self.bytes.len() - DATAGRAM_MAC_BYTES);
        if !keys.all().any(|key| key.verify_start(&[covered], mac)) {
            return Err(DatagramError::Forged);
        }
        let u64_at = |at: usize| u64::from_be_bytes(covered[at..at + 8].try_into().expect("eight bytes"));
        let life = |at: usize| Life { incarnation: u64_at(at), boot: u64_at(at + 8) };
        let header = Header {
            kind: covered[5],
            origin: self.origin,
            destination: NodeId(u16::from_be_bytes([covered[12], covered[13]])),
            life: life(14),
            to: life(30),
            counter: u64_at(46),
        };
        if header.kind != KIND_GOSSIP {
            return Err(DecodeError::Invalid("kind").into());
        }
        if header.life.boot == 0 || header.counter == 0 {
            return Err(DecodeError::Invalid("life or counter").into());
        }
        Ok((header, &covered[DATAGRAM_HEADER_BYTES..]))
    }
}

/// Which datagrams of one life of a sender were here: each is taken once, in whatever order they come, as long as they are
/// not more than 127 behind the newest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayWindow {
    highest: u64,
    /// Bit n: `highest` - n was here.
    seen: u128,
}

impl ReplayWindow {
    /// Highest counter so far; 0 before the first.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// Whether `counter` is here for the first time. Notes it.
    pub fn takes(&mut self, counter: u64) -> bool {
        if counter > self.highest {
            let ahead = counter - self.highest;
            self.seen = if ahead < WINDOW { self.seen << ahead } else { 0 } | 1;
            self.highest = counter;
            return true;
        }
        let behind = self.highest - counter;
        if counter == 0 || behind >= WINDOW || self.seen & (1 << behind) != 0 {
            return false;
        }
        self.seen |= 1 << behind;
        true
    }
}

/// What a node knows of one node, in numbers: whoever has higher ones knows more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of whom.
    pub node: NodeId,
    /// Its latest life that is proven.
    pub life: Life,
    /// The highest beat of that life.
    pub beat: u64,
    /// Version of its latest report; 0: none.
    pub report: u64,
    /// Version of its latest accusations; 0: none.
    pub accusations: u64,
}

/// The body of a gossip datagram.
///
/// ```text
///  | echo u64 | held_us u32 | loss u16 | entries u8 | entry x entries | wishes u8 | node u16 x wishes
///  | reports u8 | { len u16 | bytes } x reports | accusations u8 | { len u16 | bytes } x accusations |
///  entry: | node u16 | incarnation u64 | boot u64 | beat u64 | report u64 | accusations u64 |
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gossiped {
    /// Highest counter that the sender has from the receiver; 0: none.
    pub echo: u64,
    /// Time between the arrival of that one and the sending of this, in microseconds.
    pub held_us: u32,
    /// Of the receiver's datagrams, how many in 1,000 the sender misses, lately.
    pub loss_permille: u16,
    /// What the sender knows; a part of it where there are many nodes.
    pub entries: Vec<Entry>,
    /// Of whom the sender lacks something that the receiver has.
    pub wishes: Vec<NodeId>,
    /// Signed reports, each by the node it is about; opaque here.
    pub reports: Vec<Bytes>,
    /// Signed accusations, each by its accuser; opaque here.
    pub accusations: Vec<Bytes>,
}

impl Gossiped {
    /// Bytes of the body.
    pub fn len(&self) -> usize {
        let documents = self.reports.iter().chain(&self.accusations);
        GOSSIP_FIXED_BYTES
            + ENTRY_BYTES * self.entries.len()
            + 2 * self.wishes.len()
            + documents.map(|document| DOCUMENT_FRAMING_BYTES + document.len()).sum::<usize>()
    }

    /// Whether it says nothing at all.
    pub fn is_empty(&self) -> bool {
        self.len() == GOSSIP_FIXED_BYTES && self.echo == 0
    }

    /// Writes the body. Lists have at most 255 items, documents at most [`DATAGRAM_DOCUMENT_BYTES_MAX`] bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.echo);
        out.put_u32(self.held_us);
        out.put_u16(self.loss_permille);
        out.put_u8(count(self.entries.len()));
        for entry in &self.entries {
            out.put_u16(entry.node.0);
            out.put_u64(entry.life.incarnation);
            out.put_u64(entry.life.boot);
            out.put_u64(entry.beat);
            out.put_u64(entry.report);
            out.put_u64(entry.accusations);
        }
        out.put_u8(count(self.wishes.len()));
        self.wishes.iter().for_each(|node| out.put_u16(node.0));
        for documents in [&self.reports, &self.accusations] {
            out.put_u8(count(documents.len()));
            for document in documents {
                out.put_u16(u16::try_from(document.len()).expect("documents fit in a datagram"));
                out.put_slice(document);
            }
        }
    }

    /// Reads a whole body.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let (echo, held_us, loss_permille) = (reader.u64()?, reader.u32()?, reader.u16()?);
        if loss_permille > 1000 {
            return Err(DecodeError::Invalid("loss"));
        }
        let entries = reader.u8()?.into();
        let entries = reader.list(entries, ENTRY_BYTES, "entries", read_entry)?;
        let wishes = reader.u8()?.into();
        let wishes = reader.list(wishes, 2, "wishes", read_node)?;
        let mut documents = [Vec::new(), Vec::new()];
        for list in &mut documents {
            let count = reader.u8()?.into();
            *list = reader.list(count, DOCUMENT_FRAMING_BYTES, "documents", |reader| {
                let length = usize::from(reader.u16()?);
                if length > DATAGRAM_DOCUMENT_BYTES_MAX {
                    return Err(DecodeError::TooLarge("document"));
                }
                reader.take(length)
            })?;
        }
        reader.end()?;
        let [reports, accusations] = documents;
        Ok(Self { echo, held_us, loss_permille, entries, wishes, reports, accusations })
    }
}

fn count(count: usize) -> u8 {
    u8::try_from(count).expect("lists of a datagram have at most 255 items")
}

fn read_node(reader: &mut Reader) -> Result<NodeId, DecodeError> {
    match reader.u16()? {
        0 => Err(DecodeError::Invalid("node")),
        node => Ok(NodeId(node)),
    }
}

fn read_entry(reader: &mut Reader) -> Result<Entry, DecodeError> {
    Ok(Entry {
        node: read_node(reader)?,
        life: Life { incarnation: reader.u64()?, boot: reader.u64()? },
        beat: reader.u64()?,
        report: reader.u64()?,
        accusations: reader.u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: u32 = 0x0a0b_0c0d;

    fn key() -> MacKey {
        MacKey::new([7; 32])
    }

    fn header() -> Header {
        Header {
            kind: KIND_GOSSIP,
            origin: NodeId(1),
            destination: NodeId(2),
            life: Life { incarnation: 3, boot: 4 },
            to: Life { incarnation: 5, boot: 0 },
            counter: 6,
        }
    }

    fn body() -> Gossiped {
        let entry = |node| Entry {
            node: NodeId(node),
            life: Life { incarnation: 3, boot: 4 },
            beat: 70,
            report: 8,
            accusations: 0,
        };
        Gossiped {
            echo: 9,
            held_us: 10,
            loss_permille: 11,
            entries: vec![entry(1), entry(2)],
            wishes: vec![NodeId(3)],
            reports: vec![Bytes::from_static(b"report")],
            accusations: vec![Bytes::new(), Bytes::from_static(b"a")],
        }
    }

    fn encoded(body: &Gossiped) -> Bytes {
        let mut out = BytesMut::new();
        body.encode(&mut out);
        out.freeze()
    }

    fn opened(bytes: &[u8]) -> Result<(Header, Bytes), DatagramError> {
        let (header, body) = Unproven::read(bytes, TAG, NodeId(2))?.prove(&key().into())?;
        Ok((header, Bytes::copy_from_slice(body)))
    }

    #[test]
    fn a_datagram_arrives_as_it_was_sent() {
        let bytes = seal(TAG, &header(), &encoded(&body()), &key());
        let (read, rest) = opened(&bytes).unwrap();
        assert_eq!(read, header());
        assert_eq!(rest.len(), body().len());
        assert_eq!(Gossiped::decode(rest), Ok(body()));
    }

    #[test]
    fn its_bytes_are_the_ones_in_the_page() {
        let bytes = seal(TAG, &header(), &[0xee], &key());
        let hex: String = bytes[..55].iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = "53574d47010" // magic, version, kind
            .to_owned()
            + "10a0b0c0d00010002"
            + "00000000000000030000000000000004"
            + "00000000000000050000000000000000"
            + "0000000000000006ee";
        assert_eq!(hex, expected);
        assert_eq!(bytes[55..], key().sign(&[&bytes[..55]])[..16]);
        let hex: String = encoded(&body()).iter().map(|byte| format!("{byte:02x}")).collect();
        let entry = |node| {
            format!("000{node}0000000000000003000000000000000400000000000000460000000000000008{:016}", 0)
        };
        let expected = format!(
            "00000000000000090000000a000b02{}{}010003010006{}0200000001{}",
            entry(1),
            entry(2),
            "7265706f7274",
            "61"
        );
        assert_eq!(hex, expected);
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_nothing_cut_reads() {
        let bytes = seal(TAG, &header(), &encoded(&body()), &key());
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.to_vec();
                changed[at] ^= 1 << bit;
                assert!(opened(&changed).is_err(), "byte {at} bit {bit}");
            }
            assert!(opened(&bytes[..at]).is_err(), "cut at {at}");
        }
        let whole = encoded(&body());
        for at in 0..whole.len() {
            assert!(Gossiped::decode(whole.slice(..at)).is_err(), "cut at {at}");
        }
        let longer = [&whole[..], &[0]].concat();
        assert_eq!(Gossiped::decode(longer.into()), Err(DecodeError::TrailingBytes(1)));
    }

    #[test]
    fn what_is_not_for_this_node_is_sorted_out_before_the_mac() {
        let bytes = seal(TAG, &header(), &[], &key());
        let read = |bytes: &[u8], tag, me| Unproven::read(bytes, tag, NodeId(me)).map(|read| read.origin());
        assert_eq!(read(&bytes, TAG, 2), Ok(NodeId(1)));
        assert_eq!(read(&bytes[1..], TAG, 2), Err(DatagramError::Size(69)));
        assert_eq!(read(&[0; DATAGRAM_BYTES_MAX + 1], TAG, 2), Err(DatagramError::Size(1201)));
        assert_eq!(read(&bytes, TAG + 1, 2), Err(DatagramError::OtherCluster));
        assert_eq!(read(&bytes, TAG, 3), Err(DatagramError::NotForMe(NodeId(2))));
        assert_eq!(read(&[0; 70], TAG, 2), Err(DatagramError::Magic));
        let mut newer = bytes.to_vec();
        newer[4] = 2;
        assert_eq!(read(&newer, TAG, 2), Err(DatagramError::Version(2)));
        let mirrored = Header { origin: NodeId(2), ..header() };
        assert_eq!(read(&seal(TAG, &mirrored, &[], &key()), TAG, 2), Err(DatagramError::Stranger(NodeId(2))));
    }

    #[test]
    fn who_lacks_the_key_is_refused_whatever_it_says() {
        let bytes = seal(TAG, &header(), &encoded(&body()), &MacKey::new([8; 32]));
        assert_eq!(opened(&bytes).unwrap_err(), DatagramError::Forged);
        let odd = Header { kind: 9, ..header() };
        assert_eq!(opened(&seal(TAG, &odd, &[], &key())).unwrap_err(), DecodeError::Invalid("kind").into());
    }

    #[test]
    fn each_counter_is_taken_once_in_any_order() {
        let mut window = ReplayWindow::default();
        let mut takes = |counter| window.takes(counter);
        assert!(!takes(0));
        assert!(takes(5) && takes(3) && takes(6) && takes(4));
        assert!(!takes(5) && !takes(3) && !takes(6) && !takes(4));
        assert!(takes(131), "a hundred and twenty-five ahead");
        assert!(!takes(3) && !takes(6) && takes(7) && !takes(7));
        assert!(takes(1_000_000) && !takes(131) && takes(999_999));
        assert!(!takes(1_000_000 - 128) && takes(1_000_000 - 127));
        assert!(takes(u64::MAX) && !takes(u64::MAX));
        assert_eq!(window.highest(), u64::MAX);
    }

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let errors = [
            DatagramError::Size(1),
            DatagramError::Magic,
            DatagramError::Version(2),
            DatagramError::OtherCluster,
            DatagramError::NotForMe(NodeId(1)),
            DatagramError::Stranger(NodeId(1)),
            DatagramError::Forged,
            DatagramError::OtherLife,
            DatagramError::Replayed,
            DatagramError::Malformed(DecodeError::Truncated),
        ];
        assert!(errors.iter().enumerate().all(|(at, error)| error.index() == at));
        assert_eq!(errors.len(), DatagramError::REASONS.len());
    }
}
