//! What a node says before everybody, signed by itself: how it is, and whom it does not hear.
//!
//! ```text
//!  report      | node u16 | incarnation u64 | boot u64 | version u64 | roles u8 | release name
//!              | lag_us u32 | fsync_us u32 | queued u32 | errors_permille u16 | draining u8
//!              | links u8 | { to u16 | session u32 | up u8 | rtt_us u32 | loss_permille u16 } x links | signature [64] |
//!  accusations | node u16 | incarnation u64 | boot u64 | version u64
//!              | accused u8 | { node u16 | incarnation u64 | boot u64 | beat u64 | gone u8 } x accused | signature [64] |
//! ```
//! Both are decoded first, then verified with the key of the node they name, and count only after that. Whoever passes one on
//! passes on the same bytes. A later version replaces an earlier one whole, so nothing has to be put together from parts.

use bytes::{BufMut, Bytes, BytesMut};
use swarmmq_protocol::{
    codec::{DecodeError, Reader, cut_at, put_name},
    datagram::Life,
    id::NodeId,
    limits::DATAGRAM_DOCUMENT_BYTES_MAX,
    node_key::{NodeKey, NodeSecret, SIGNATURE_BYTES},
};

use crate::shard::member::NODES_MAX;

/// Longest name of what a node runs, in bytes.
pub const RELEASE_BYTES_MAX: usize = 64;
/// Nodes that one node accuses at a time. Who does not hear more than half of the others distrusts itself and accuses none.
pub const ACCUSED_MAX: usize = 32;

const REPORT_LABEL: &str = "swarmmq/report/v1";
const ACCUSATIONS_LABEL: &str = "swarmmq/accusations/v1";
const LINK_BYTES: usize = 13;
const ACCUSATION_BYTES: usize = 27;
/// Who, in which life, which version.
const OPENING_BYTES: usize = 26;
const REPORT_BYTES_MAX: usize =
    OPENING_BYTES + 1 + 1 + RELEASE_BYTES_MAX + 15 + 1 + NODES_MAX * LINK_BYTES + SIGNATURE_BYTES;
const ACCUSATIONS_BYTES_MAX: usize = OPENING_BYTES + 1 + ACCUSED_MAX * ACCUSATION_BYTES + SIGNATURE_BYTES;

const _: () = assert!(REPORT_BYTES_MAX <= DATAGRAM_DOCUMENT_BYTES_MAX);
const _: () = assert!(ACCUSATIONS_BYTES_MAX <= DATAGRAM_DOCUMENT_BYTES_MAX);
const _: () = assert!(2 * ACCUSED_MAX >= NODES_MAX);

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who.
    pub node: NodeId,
    /// In which life of its disk.
    pub incarnation: u64,
    /// In which start of its process.
    pub boot: u64,
    /// Rises with every change, from 1 in each boot.
    pub version: u64,
    /// What it does: `ROLE_INGRESS`, `ROLE_ROUTER`, `ROLE_STORE`, added up.
    pub roles: u8,
    /// What it runs; at most [`RELEASE_BYTES_MAX`] bytes.
    pub release: String,
    /// How busy it is.
    pub load: Load,
    /// Its ways to others, as it measures them; at most [`NODES_MAX`].
    pub links: Vec<LinkReport>,
}

/// How busy a node is, by its own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// How late its loop comes to what is due, in microseconds.
    pub lag_us: u32,
    /// How long its disk takes to make a write durable, in microseconds.
    pub fsync_us: u32,
    /// What waits in its queues, in messages.
    pub queued: u32,
    /// Requests that it fails by its own fault, in 1,000.
    pub errors_permille: u16,
    /// It takes no new work.
    pub is_draining: bool,
}

/// One direction of one link, as the node at its beginning measures it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkReport {
    /// To whom.
    pub to: NodeId,
    /// Rises with every new connection.
    pub session: u32,
    /// Whether there is a connection now.
    pub is_up: bool,
    /// Round trip, in microseconds.
    pub rtt_us: u32,
    /// What gets lost on the way, in 1,000.
    pub loss_permille: u16,
}

impl Report {
    /// The life it is about.
    pub fn life(&self) -> Life {
        Life { incarnation: self.incarnation, boot: self.boot }
    }

    fn encode(&self, out: &mut BytesMut) {
        assert!(self.links.len() <= NODES_MAX, "a report of {} links", self.links.len());
        put_opening(out, self.node, self.life(), self.version);
        out.put_u8(self.roles);
        put_name(out, cut_at(&self.release, RELEASE_BYTES_MAX));
        out.put_u32(self.load.lag_us);
        out.put_u32(self.load.fsync_us);
        out.put_u32(self.load.queued);
        out.put_u16(self.load.errors_permille);
        out.put_u8(self.load.is_draining.into());
        out.put_u8(self.links.len() as u8);
        for link in &self.links {
            out.put_u16(link.to.0);
            out.put_u32(link.session);
            out.put_u8(link.is_up.into());
            out.put_u32(link.rtt_us);
            out.put_u16(link.loss_permille);
        }
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let (node, life, version) = opening(&mut reader)?;
        let roles = reader.u8()?;
        let release = reader.name("release")?;
        if release.len() > RELEASE_BYTES_MAX {
            return Err(DecodeError::TooLarge("release"));
        }
        let load = Load {
            lag_us: reader.u32()?,
            fsync_us: reader.u32()?,
            queued: reader.u32()?,
            errors_permille: permille(&mut reader, "errors")?,
            is_draining: reader.flag("draining")?,
        };
        let count = usize::from(reader.u8()?);
        if count > NODES_MAX {
            return Err(DecodeError::TooLarge("links"));
        }
        let links = reader.list(count, LINK_BYTES, "links", |reader| {
            Ok(LinkReport {
                to: node_id(reader)?,
                session: reader.u32()?,
                is_up: reader.flag("up")?,
                rtt_us: reader.u32()?,
                loss_permille: permille(reader, "loss")?,
            })
        })?;
        reader.end()?;
        let Life { incarnation, boot } = life;
        Ok(Self { node, incarnation, boot, version, roles, release, load, links })
    }
}

/// One node does not hear another, or found its process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accusation {
    /// Whom it does not hear.
    pub node: NodeId,
    /// In which life, as far as the accuser knows.
    pub life: Life,
    /// The last beat it heard of; a later one refutes the accusation.
    pub beat: u64,
    /// Its host refuses connections: the process ended. Otherwise there is only silence.
    pub is_gone: bool,
}

/// Everybody whom one node accuses at a time. None: it takes back what it said before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accusations {
    /// Who accuses.
    pub node: NodeId,
    /// In which of its lives.
    pub life: Life,
    /// Rises with every change, from 1 in each boot.
    pub version: u64,
    /// Whom; at most [`ACCUSED_MAX`].
    pub accused: Vec<Accusation>,
}

impl Accusations {
    fn encode(&self, out: &mut BytesMut) {
        assert!(self.accused.len() <= ACCUSED_MAX, "{} accused", self.accused.len());
        put_opening(out, self.node, self.life, self.version);
        out.put_u8(self.accused.len() as u8);
        for accusation in &self.accused {
            out.put_u16(accusation.node.0);
            out.put_u64(accusation.life.incarnation);
            out.put_u64(accusation.life.boot);
            out.put_u64(accusation.beat);
            out.put_u8(accusation.is_gone.into());
        }
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let (node, life, version) = opening(&mut reader)?;
        let count = usize::from(reader.u8()?);
        if count > ACCUSED_MAX {
            return Err(DecodeError::TooLarge("accused"));
        }
        let accused = reader.list(count, ACCUSATION_BYTES, "accused", |reader| {
            Ok(Accusation {
                node: node_id(reader)?,
                life: Life { incarnation: reader.u64()?, boot: reader.u64()? },
                beat: reader.u64()?,
                is_gone: reader.flag("gone")?,
            })
        })?;
        reader.end()?;
        Ok(Self { node, life, version, accused })
    }
}

/// Something signed, with the bytes that were signed: they are what travels on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed<T> {
    content: T,
    bytes: Bytes,
}

/// A report, and the bytes that prove it.
pub type SignedReport = Signed<Report>;
/// Accusations, and the bytes that prove them.
pub type SignedAccusations = Signed<Accusations>;

/// Why something signed does not count. Nothing changed. Blame: whoever made it; who passed it on could have noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentError {
    /// It does not read.
    Malformed(DecodeError),
    /// Not signed by the node that it names.
    Forged,
}

impl From<DecodeError> for DocumentError {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

/// Something read whose signature was not looked at yet, because it may be known already: who says it, which version.
#[derive(Debug)]
pub struct Unverified<T>(Signed<T>);

impl<T> Signed<T> {
    /// What it says.
    pub fn content(&self) -> &T {
        &self.content
    }

    /// What travels.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

fn sign<T>(
    content: T,
    secret: &NodeSecret,
    label: &'static str,
    encode: impl Fn(&T, &mut BytesMut),
) -> Signed<T> {
    let mut out = BytesMut::with_capacity(256);
    encode(&content, &mut out);
    let signature = secret.sign(label, &[&out]);
    out.put_slice(&signature);
    Signed { content, bytes: out.freeze() }
}

fn unsigned(bytes: &Bytes) -> Result<Bytes, DecodeError> {
    let length = bytes.len().checked_sub(SIGNATURE_BYTES).ok_or(DecodeError::Truncated)?;
    Ok(bytes.slice(..length))
}

fn verified<T>(
    unverified: Unverified<T>,
    key: &NodeKey,
    label: &'static str,
) -> Result<Signed<T>, DocumentError> {
    let signed = unverified.0;
    let (text, signature) = signed.bytes.split_at(signed.bytes.len() - SIGNATURE_BYTES);
    let signature = signature.try_into().expect("the signature was cut off by its length");
    if !key.verify(label, &[text], signature) {
        return Err(DocumentError::Forged);
    }
    // The bytes lie in a datagram; kept for long they would keep all of it.
    Ok(Signed { content: signed.content, bytes: Bytes::copy_from_slice(&signed.bytes) })
}

impl SignedReport {
    /// Signs. Cost: 20 us.
    pub fn new(report: Report, secret: &NodeSecret) -> Self {
        sign(report, secret, REPORT_LABEL, Report::encode)
    }

    /// Reads without believing.
    pub fn read(bytes: &Bytes) -> Result<Unverified<Report>, DocumentError> {
        let content = Report::decode(unsigned(bytes)?)?;
        Ok(Unverified(Signed { content, bytes: bytes.clone() }))
    }
}

impl Unverified<Report> {
    /// Who would say this, in which life, which version.
    pub fn claim(&self) -> (NodeId, Life, u64) {
        let report = &self.0.content;
        (report.node, report.life(), report.version)
    }

    /// Believes if the node itself signed it. Cost: 50 us.
    pub fn verify(self, key: &NodeKey) -> Result<SignedReport, DocumentError> {
        verified(self, key, REPORT_LABEL)
    }
}

impl SignedAccusations {
    /// Signs. Cost: 20 us.
    pub fn new(accusations: Accusations, secret: &NodeSecret) -> Self {
        sign(accusations, secret, ACCUSATIONS_LABEL, Accusations::encode)
    }

    /// Reads without believing.
    pub fn read(bytes: &Bytes) -> Result<Unverified<Accusations>, DocumentError> {
        let content = Accusations::decode(unsigned(bytes)?)?;
        Ok(Unverified(Signed { content, bytes: bytes.clone() }))
    }
}

impl Unverified<Accusations> {
    /// Who would say this, in which life, which version.
    pub fn claim(&self) -> (NodeId, Life, u64) {
        let accusations = &self.0.content;
        (accusations.node, accusations.life, accusations.version)
    }

    /// Believes if the accuser itself signed it. Cost: 50 us.
    pub fn verify(self, key: &NodeKey) -> Result<SignedAccusations, DocumentError> {
        verified(self, key, ACCUSATIONS_LABEL)
    }
}

fn put_opening(out: &mut BytesMut, node: NodeId, life: Life, version: u64) {
    out.put_u16(node.0);
    out.put_u64(life.incarnation);
    out.put_u64(life.boot);
    out.put_u64(version);
}

fn opening(reader: &mut Reader) -> Result<(NodeId, Life, u64), DecodeError> {
    let node = node_id(reader)?;
    let life = Life { incarnation: reader.u64()?, boot: reader.u64()? };
    let version = reader.u64()?;
    if life.boot == 0 || version == 0 {
        return Err(DecodeError::Invalid("boot or version"));
    }
    Ok((node, life, version))
}

fn node_id(reader: &mut Reader) -> Result<NodeId, DecodeError> {
    match reader.u16()? {
        0 => Err(DecodeError::Invalid("node")),
        node => Ok(NodeId(node)),
    }
}

fn permille(reader: &mut Reader, field: &'static str) -> Result<u16, DecodeError> {
    let permille = reader.u16()?;
    if permille > 1000 { Err(DecodeError::Invalid(field)) } else { Ok(permille) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(n: u8) -> NodeSecret {
        NodeSecret::new([n; 32])
    }

    fn report(links: u16) -> Report {
        let link = |to| LinkReport {
            to: NodeId(to),
            session: 7,
            is_up: to % 2 == 0,
            rtt_us: 350,
            loss_permille: 12,
        };
        Report {
            node: NodeId(1),
            incarnation: 2,
            boot: 3,
            version: 4,
            roles: 7,
            release: "0.1.0".into(),
            load: Load { lag_us: 1, fsync_us: 2, queued: 3, errors_permille: 4, is_draining: true },
            links: (1..=links).map(link).collect(),
        }
    }

    fn accusations(count: u16) -> Accusations {
        let life = Life { incarnation: 5, boot: 6 };
        let accused = |node| Accusation { node: NodeId(node), life, beat: 700, is_gone: node == 2 };
        Accusations { node: NodeId(1), life, version: 9, accused: (1..=count).map(accused).collect() }
    }

    fn known(bytes: &[u8]) -> Result<SignedReport, DocumentError> {
        SignedReport::read(&Bytes::copy_from_slice(bytes))?.verify(&secret(1).public())
    }

    #[test]
    fn what_a_node_signs_everybody_can_read_and_pass_on() {
        let signed = SignedReport::new(report(2), &secret(1));
        let read = SignedReport::read(signed.bytes()).unwrap();
        assert_eq!(read.claim(), (NodeId(1), Life { incarnation: 2, boot: 3 }, 4));
        assert_eq!(read.verify(&secret(1).public()), Ok(signed));

        let signed = SignedAccusations::new(accusations(2), &secret(1));
        let read = SignedAccusations::read(signed.bytes()).unwrap();
        assert_eq!(read.claim(), (NodeId(1), Life { incarnation: 5, boot: 6 }, 9));
        assert_eq!(read.verify(&secret(1).public()), Ok(signed));
    }

    #[test]
    fn nobody_signs_for_another_and_no_kind_passes_for_the_other() {
        let signed = SignedReport::new(report(1), &secret(2));
        assert_eq!(known(signed.bytes()), Err(DocumentError::Forged));
        // The bytes of one kind, signed as the other.
        let mut text = BytesMut::new();
        accusations(0).encode(&mut text);
        let signature = secret(1).sign(REPORT_LABEL, &[&text]);
        text.put_slice(&signature);
        let read = SignedAccusations::read(&text.freeze()).unwrap();
        assert_eq!(read.verify(&secret(1).public()), Err(DocumentError::Forged));
    }

    #[test]
    fn a_report_that_was_changed_or_cut_anywhere_counts_for_nothing() {
        let signed = SignedReport::new(report(2), &secret(1));
        for at in 0..signed.bytes().len() {
            let mut changed = signed.bytes().to_vec();
            changed[at] ^= 0x10;
            assert!(known(&changed).is_err(), "byte {at}");
            assert!(known(&signed.bytes()[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn its_bytes_are_the_ones_in_the_page() {
        let signed = SignedReport::new(report(1), &secret(1));
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let text = "0001000000000000000200000000000000030000000000000004".to_owned()
            + "0705302e312e30"
            + "000000010000000200000003000401"
            + "01000100000007000000015e000c";
        let length = signed.bytes().len() - SIGNATURE_BYTES;
        assert_eq!(hex(&signed.bytes()[..length]), text);
        let signed = SignedAccusations::new(accusations(1), &secret(1));
        let text = "0001000000000000000500000000000000060000000000000009".to_owned()
            + "01000100000000000000050000000000000006"
            + "00000000000002bc00";
        let length = signed.bytes().len() - SIGNATURE_BYTES;
        assert_eq!(hex(&signed.bytes()[..length]), text);
    }

    #[test]
    fn the_largest_ones_fit_and_larger_ones_are_refused() {
        let mut large = report(NODES_MAX as u16);
        large.release = "x".repeat(100);
        let signed = SignedReport::new(large, &secret(1));
        assert_eq!(signed.bytes().len(), REPORT_BYTES_MAX);
        assert!(known(signed.bytes()).is_ok());
        let most = SignedAccusations::new(accusations(ACCUSED_MAX as u16), &secret(1));
        assert_eq!(most.bytes().len(), ACCUSATIONS_BYTES_MAX);
        let mut more = signed.bytes().to_vec();
        more[REPORT_BYTES_MAX - SIGNATURE_BYTES - NODES_MAX * LINK_BYTES - 1] += 1;
        assert_eq!(known(&more), Err(DecodeError::TooLarge("links").into()));
    }
}
