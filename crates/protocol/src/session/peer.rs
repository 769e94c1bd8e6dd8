//! Two nodes meet: both prove that they know the cluster's secret, then packets begin on the same stream.
//!
//! ```text
//! dialler                                   acceptor
//!   Hello 1 {hello, nonce}         ------>
//!                                  <------  Accept 2 {hello, nonce, HMAC(secret, accept label, h)}
//!   Proof 3 {HMAC(secret, dial label, h, masked), masked}
//!                                  ------>
//!                                  <------  Ready 4   or   Refused 5 {code, message}
//!
//!  message  | len u32 | step u8 | body |                                       len counts step and body
//!  hello    | "SWMP" | version_min u16 | version_max u16 | node u16 | incarnation u64 | boot u64 | roles u8
//!           | cluster known u8 | cluster u128 and shards u32 if known | client name | peer name
//!           | admin name | gossip name | version name | key [64] | nonce [32] |                           name: length u8 and bytes
//!  h = SHA-256(dialler's hello, acceptor's hello)
//! ```
//! Both proofs cover the bytes of both hellos with their nonces, under different labels, so that neither can be replayed
//! or reflected. `masked` is there if the dialler has a join token: its secret, xor HMAC(secret, join label, h), so that
//! whoever listens learns nothing of it; it is sent only to an acceptor that has proven itself. What the other end says of itself is believed only after its proof. The handshake says who is at the
//! other end, not that nobody changes bytes later: that is for TLS, which wraps the stream from outside.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use zeroize::Zeroizing;

use crate::{
    codec::{DecodeError, Reader, cut_at, put_name, put_text},
    error::Code,
    id::{ClusterId, NodeId},
    join_token::{self, JoinToken},
    limits::UNAUTHENTICATED_BYTES_MAX,
    mac::{DualKey, MacKey, sha256},
    node_key::NodeKey,
};

/// First bytes of a hello. Not a client's, so that neither is taken for the other.
pub const PEER_MAGIC: [u8; 4] = *b"SWMP";
/// The version of the language between nodes that this code speaks. 1 had no keys in a hello, 2 no join tokens.
pub const PEER_VERSION: u16 = 3;
/// The lowest version that this code speaks: a cluster may be changed to this one node by node.
const PEER_VERSION_MIN: u16 = 2;
/// The first version in which a dialler may bring a join token.
const PEER_VERSION_OF_TOKENS: u16 = 3;
/// Longest version text, in bytes.
const VERSION_BYTES_MAX: usize = 64;
/// Longest reason in a refusal, in bytes.
const REFUSAL_BYTES_MAX: usize = 1024;
const LENGTH_BYTES: usize = 4;
const PROOF_BYTES: usize = 32;
const ACCEPT_LABEL: &[u8] = b"swarmmq/peer/accept/v1";
const DIAL_LABEL: &[u8] = b"swarmmq/peer/dial/v1";
const JOIN_LABEL: &[u8] = b"swarmmq/peer/join/v1";
/// The whole message.
const READY_MESSAGE: [u8; 5] = [0, 0, 0, 1, READY];

const HELLO: u8 = 1;
const ACCEPT: u8 = 2;
const PROOF: u8 = 3;
const READY: u8 = 4;
const REFUSED: u8 = 5;

/// What a node says of itself to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// Its cluster. `None`: it is about to join and knows none yet.
    pub cluster: Option<ClusterId>,
    /// Data shards of that cluster, so that who joins knows; 0 without a cluster.
    pub shard_count: u32,
    /// Its number.
    pub node: NodeId,
    /// Which life of its disk.
    pub incarnation: u64,
    /// Which start of its process.
    pub boot: u64,
    /// [`PeerHello::INGRESS`], [`PeerHello::ROUTER`], [`PeerHello::STORE`], added up.
    pub roles: u8,
    /// Where it listens for clients, host:port. This and the other texts: at most 255 bytes, longer ones are cut.
    pub client: String,
    /// Where it listens for nodes.
    pub peer: String,
    /// Where it answers HTTP.
    pub admin: String,
    /// Where it takes datagrams.
    pub gossip: String,
    /// What it runs; at most 64 bytes.
    pub version: String,
    /// Its public keys. All zero: it has none yet.
    pub key: NodeKey,
    /// SHA-256 of the secret of the join token that it brought. Not part of the hello's bytes: it comes with the proof.
    pub join: Option<[u8; 32]>,
}

impl PeerHello {
    /// Role bit: takes client connections.
    pub const INGRESS: u8 = 1;
    /// Role bit: relays packets.
    pub const ROUTER: u8 = 2;
    /// Role bit: holds replicas.
    pub const STORE: u8 = 4;
    /// Of a node that has no keys yet.
    pub const NO_KEY: NodeKey = NodeKey { sign: [0; 32], agree: [0; 32] };

    fn bytes(&self, nonce: &[u8; 32]) -> Bytes {
        let mut out = BytesMut::new();
        out.put_slice(&PEER_MAGIC);
        out.put_u16(PEER_VERSION_MIN);
        out.put_u16(PEER_VERSION);
        out.put_u16(self.node.0);
        out.put_u64(self.incarnation);
        out.put_u64(self.boot);
        out.put_u8(self.roles);
        out.put_u8(self.cluster.is_some().into());
        if let Some(cluster) = self.cluster {
            out.put_u128(cluster.0);
            out.put_u32(self.shard_count);
        }
        for address in [&self.client, &self.peer, &self.admin, &self.gossip] {
            put_name(&mut out, address);
        }
        put_name(&mut out, cut_at(&self.version, VERSION_BYTES_MAX));
        out.put_slice(&self.key.to_bytes());
        out.put_slice(nonce);
        out.freeze()
    }

    /// Versions come first and are looked at first: the rest may be of a version that this code cannot read. Gives the
    /// highest version in common, too.
    fn read(bytes: Bytes) -> Result<(Self, u16), PeerError> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != PEER_MAGIC {
            return Err(PeerError::Malformed);
        }
        let (version_min, version_max) = (reader.u16()?, reader.u16()?);
        let version = version_max.min(PEER_VERSION);
        if version < version_min.max(PEER_VERSION_MIN) {
            return Err(PeerError::Version);
        }
        let node = NodeId(reader.u16()?);
        if node == NodeId(0) {
            return Err(PeerError::Malformed);
        }
        let (incarnation, boot, roles) = (reader.u64()?, reader.u64()?, reader.u8()?);
        let known = reader.flag("cluster known")?;
        let (cluster, shard_count) =
            if known { (Some(ClusterId(reader.u128()?)), reader.u32()?) } else { (None, 0) };
        let hello = Self {
            cluster,
            shard_count,
            node,
            incarnation,
            boot,
            roles,
            client: reader.name("client address")?,
            peer: reader.name("peer address")?,
            admin: reader.name("admin address")?,
            gossip: reader.name("gossip address")?,
            version: reader.name("version")?,
            key: NodeKey::from_bytes(&reader.array()?),
            join: None,
        };
        if hello.version.len() > VERSION_BYTES_MAX {
            return Err(PeerError::Malformed);
        }
        // The nonce counts as part of the bytes that are proven.
        reader.array::<32>()?;
        reader.end()?;
        Ok((hello, version))
    }
}

/// Why two nodes do not come together. The connection is useless; nothing else changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerError {
    /// Bytes that do not belong here. Blame: the peer, if it is a node at all.
    Malformed,
    /// No version in common. Blame: whoever is older.
    Version,
    /// The peer does not know the secret. Blame: either side's configuration, or an attacker.
    WrongSecret,
    /// The peer knows the secret and belongs to another cluster. Blame: configuration.
    WrongCluster {
        /// This node's cluster.
        ours: ClusterId,
        /// The peer's.
        theirs: ClusterId,
    },
    /// The peer has this node's own number, or is this node itself. Blame: configuration.
    SameNode(NodeId),
    /// Another node answers at the address that was dialled. Blame: an outdated address.
    Unexpected {
        /// Who was dialled.
        wanted: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// The peer said no. Nobody vouches for these words: who sits on the wire can write them too. They are for people
    /// and for the next attempt; nothing is to be given up or deleted because of them.
    Refused {
        /// For programs.
        code: u16,
        /// For people.
        message: String,
    },
    /// More bytes than a peer may send before it has proven anything. Blame: the peer.
    TooLarge,
}

impl PeerError {
    /// The code that tells the peer.
    pub fn code(&self) -> Code {
        match self {
            Self::Malformed => Code::Malformed,
            Self::Version => Code::Version,
            Self::WrongSecret => Code::Unauthenticated,
            Self::WrongCluster { .. } => Code::WrongCluster,
            Self::SameNode(_) | Self::Unexpected { .. } => Code::NodeConflict,
            Self::Refused { code, .. } => Code::from_number(*code).unwrap_or(Code::Malformed),
            Self::TooLarge => Code::TooLarge,
        }
    }
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => write!(f, "unexpected or malformed bytes while two nodes meet"),
            Self::Version => {
                write!(f, "no version in common between the nodes (this side speaks {PEER_VERSION})")
            }
            Self::WrongSecret => write!(f, "the cluster's secret does not match"),
            Self::WrongCluster { ours, theirs } => {
                write!(f, "this side belongs to cluster {ours}, the other to {theirs}")
            }
            Self::SameNode(node) => write!(f, "both sides are node {}", node.0),
            Self::Unexpected { wanted, found } => {
                write!(f, "node {} answers where node {} was expected", found.0, wanted.0)
            }
            Self::Refused { code, message } => write!(f, "refused ({code}): {message}"),
            Self::TooLarge => {
                write!(f, "more than {UNAUTHENTICATED_BYTES_MAX} bytes before the handshake is complete")
            }
        }
    }
}

impl std::error::Error for PeerError {}

impl From<DecodeError> for PeerError {
    fn from(_: DecodeError) -> Self {
        Self::Malformed
    }
}

/// Says no, so that the dialler hears why; then the connection is to be closed. A `Ready` that still stands at the end
/// of `out` is taken back: an acceptor that looks up the hello it was given and does not want it calls this before it
/// sends anything.
pub fn refuse(code: Code, message: &str, out: &mut BytesMut) {
    if out.ends_with(&READY_MESSAGE) {
        out.truncate(out.len() - READY_MESSAGE.len());
    }
    let start = begin(REFUSED, out);
    out.put_u16(code.number());
    put_text(out, cut_at(message, REFUSAL_BYTES_MAX));
    finish(start, out);
}

fn begin(step: u8, out: &mut BytesMut) -> usize {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(step);
    start
}

fn finish(start: usize, out: &mut BytesMut) {
    let length = out.len() - start - LENGTH_BYTES;
    out[start..start + LENGTH_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
}

fn put(step: u8, parts: &[&[u8]], out: &mut BytesMut) {
    let start = begin(step, out);
    parts.iter().for_each(|part| out.put_slice(part));
    finish(start, out);
}

/// Either end of a handshake between two nodes.
#[derive(Debug)]
pub struct PeerHandshake {
    /// An acceptor proves itself with the current one, before it knows whom it talks to; a dialler answers with the same one.
    secret: DualKey,
    me: PeerHello,
    /// What lets this node join, if it has anything of the kind.
    token: Option<JoinToken>,
    state: State,
    taken_bytes: usize,
}

#[derive(Debug)]
enum State {
    /// Dialler: the hello is out.
    Dialled { hello: Bytes, expected: Option<NodeId> },
    /// Dialler: the peer has proven itself, and so have we.
    Proven { peer: PeerHello },
    /// Acceptor: nothing has come.
    Waiting { nonce: [u8; 32] },
    /// Acceptor: has proven itself; the peer, whose words these are, has not.
    Challenged { claimed: PeerHello, hellos: [u8; 32] },
    /// Complete, or failed.
    Over,
}

impl PeerHandshake {
    /// Begins as the one who dialled: writes the hello.
    ///
    /// * `expected`: who should answer, if that is known.
    /// * `nonce`: fresh randomness.
    /// * `token`: given to whoever answers, once it has proven itself.
    pub fn dial(
        secret: impl Into<DualKey>,
        me: PeerHello,
        expected: Option<NodeId>,
        nonce: [u8; 32],
        token: Option<JoinToken>,
        out: &mut BytesMut,
    ) -> Self {
        let hello = me.bytes(&nonce);
        put(HELLO, &[&hello], out);
        let secret = secret.into();
        Self { secret, me, token, state: State::Dialled { hello, expected }, taken_bytes: 0 }
    }

    /// Waits as the one who was dialled. `nonce` is fresh randomness.
    pub fn accept(secret: impl Into<DualKey>, me: PeerHello, nonce: [u8; 32]) -> Self {
        let secret = secret.into();
        Self { secret, me, token: None, state: State::Waiting { nonce }, taken_bytes: 0 }
    }

    /// Takes what has come so far off `buffer` and writes answers to `out`.
    ///
    /// * `Ok(None)`: more bytes are needed.
    /// * `Ok(Some(hello))`: the peer is authenticated, `out` goes to it, and what is left in `buffer` belongs to packets.
    ///   An acceptor that does not want this peer calls [`refuse`] with the same `out` instead of sending it.
    /// * `Err`: unless the peer itself refused, `out` tells it why; the connection is to be closed. From then on, and
    ///   after the end, nothing is read or written.
    pub fn advance(
        &mut self,
        buffer: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<PeerHello>, PeerError> {
        if matches!(self.state, State::Over) {
            return Err(PeerError::Malformed);
        }
        let result = self.steps(buffer, out);
        if let Err(error) = &result {
            self.state = State::Over;
            if !matches!(error, PeerError::Refused { .. }) {
                refuse(error.code(), &error.to_string(), out);
            }
        }
        result
    }

    fn steps(&mut self, buffer: &mut BytesMut, out: &mut BytesMut) -> Result<Option<PeerHello>, PeerError> {
        while let Some((step, body)) = self.next_message(buffer)? {
            match (std::mem::replace(&mut self.state, State::Over), step) {
                (State::Dialled { hello, expected }, ACCEPT) => {
                    let peer = self.accepted(&hello, expected, body, out)?;
                    self.state = State::Proven { peer };
                }
                (State::Proven { peer }, READY) if body.is_empty() => return Ok(Some(peer)),
                (State::Waiting { nonce }, HELLO) => {
                    let (claimed, _) = PeerHello::read(body.clone())?;
                    let hello = self.me.bytes(&nonce);
                    let hellos = sha256(&[&body, &hello]);
                    put(ACCEPT, &[&hello, &self.secret.current.sign(&[ACCEPT_LABEL, &hellos])], out);
                    self.state = State::Challenged { claimed, hellos };
                }
                (State::Challenged { claimed, hellos }, PROOF) => {
                    let (proof, masked) = body.split_at(body.len().min(PROOF_BYTES));
                    let secret = self.secret.of_mac(&[DIAL_LABEL, &hellos, masked], proof);
                    let secret = secret.ok_or(PeerError::WrongSecret)?;
                    let join = unmask(secret, &hellos, masked);
                    self.judge(&claimed)?;
                    let join = join?;
                    out.put_slice(&READY_MESSAGE);
                    return Ok(Some(PeerHello { join, ..claimed }));
                }
                (_, REFUSED) => return Err(refusal(body)),
                _ => return Err(PeerError::Malformed),
            }
        }
        Ok(None)
    }

    /// The acceptor's hello and proof, looked at by the dialler, who then proves itself.
    fn accepted(
        &self,
        hello: &Bytes,
        expected: Option<NodeId>,
        mut body: Bytes,
        out: &mut BytesMut,
    ) -> Result<PeerHello, PeerError> {
        let hello_bytes = body.len().checked_sub(PROOF_BYTES).ok_or(PeerError::Malformed)?;
        let proof = body.split_off(hello_bytes);
        let (claimed, version) = PeerHello::read(body.clone())?;
        let hellos = sha256(&[hello, &body]);
        let secret = self.secret.of_mac(&[ACCEPT_LABEL, &hellos], &proof).ok_or(PeerError::WrongSecret)?;
        self.judge(&claimed)?;
        if let Some(wanted) = expected.filter(|wanted| *wanted != claimed.node) {
            return Err(PeerError::Unexpected { wanted, found: claimed.node });
        }
        let token = self.token.as_ref().filter(|_| version >= PEER_VERSION_OF_TOKENS);
        let masked = token.map(|token| mask(secret, &hellos, token.secret()));
        let masked = masked.as_ref().map_or(&[][..], |masked| &masked[..]);
        put(PROOF, &[&secret.sign(&[DIAL_LABEL, &hellos, masked]), masked], out);
        Ok(claimed)
    }

    /// Whether a peer that has proven itself can be a peer of this node. Who knows no cluster yet fits to any.
    fn judge(&self, peer: &PeerHello) -> Result<(), PeerError> {
        if let (Some(ours), Some(theirs)) = (self.me.cluster, peer.cluster)
            && ours != theirs
        {
            return Err(PeerError::WrongCluster { ours, theirs });
        }
        if peer.node == self.me.node { Err(PeerError::SameNode(peer.node)) } else { Ok(()) }
    }

    /// The next whole message. All of them together may have [`UNAUTHENTICATED_BYTES_MAX`] bytes.
    fn next_message(&mut self, buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, PeerError> {
        let Some(head) = buffer.get(..LENGTH_BYTES) else { return Ok(None) };
        let length = u32::from_be_bytes(head.try_into().expect("4 bytes")) as usize;
        let total = LENGTH_BYTES + length;
        if self.taken_bytes + total > UNAUTHENTICATED_BYTES_MAX {
            return Err(PeerError::TooLarge);
        }
        if length == 0 {
            return Err(PeerError::Malformed);
        }
        if buffer.len() < total {
            return Ok(None);
        }
        self.taken_bytes += total;
        let mut message = buffer.split_to(total).freeze();
        let body = message.split_off(LENGTH_BYTES + 1);
        Ok(Some((message[LENGTH_BYTES], body)))
    }
}

/// A join token's secret as it travels, and back: a key stream that is used once hides it.
fn mask(key: &MacKey, hellos: &[u8; 32], secret: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let mut masked = Zeroizing::new(key.sign(&[JOIN_LABEL, hellos]));
    masked.iter_mut().zip(secret).for_each(|(byte, of_secret)| *byte ^= of_secret);
    masked
}

/// What the acceptor keeps of a join token.
fn unmask(key: &MacKey, hellos: &[u8; 32], masked: &[u8]) -> Result<Option<[u8; 32]>, PeerError> {
    if masked.is_empty() {
        return Ok(None);
    }
    let masked: &[u8; 32] = masked.try_into().map_err(|_| PeerError::Malformed)?;
    Ok(Some(join_token::hash(&mask(key, hellos, masked))))
}

fn refusal(body: Bytes) -> PeerError {
    let read = || {
        let mut reader = Reader::new(body);
        let refused = PeerError::Refused { code: reader.u16()?, message: reader.text("message")? };
        reader.end().map(|()| refused)
    };
    read().unwrap_or(PeerError::Malformed)
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
