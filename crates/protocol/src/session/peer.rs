//! Two nodes meet: both prove that they know the cluster's secret, then packets begin on the same stream.
//!
//! ```text
//! dialler                                   acceptor
//!   Hello 1 {hello, nonce}         ------>
//!                                  <------  Accept 2 {hello, nonce, HMAC(secret, accept label, h)}
//!   Proof 3 {HMAC(secret, dial label, h)}
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
//! or reflected. What the other end says of itself is believed only after its proof. The handshake says who is at the
//! other end, not that nobody changes bytes later: that is for TLS, which wraps the stream from outside.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    codec::{DecodeError, Reader, cut_at, put_name, put_text},
    error::Code,
    id::{ClusterId, NodeId},
    limits::UNAUTHENTICATED_BYTES_MAX,
    mac::{MacKey, sha256},
    node_key::NodeKey,
};

/// First bytes of a hello. Not a client's, so that neither is taken for the other.
pub const PEER_MAGIC: [u8; 4] = *b"SWMP";
/// The version of the language between nodes that this code speaks. 1 had no keys in a hello.
pub const PEER_VERSION: u16 = 2;
/// Longest version text, in bytes.
const VERSION_BYTES_MAX: usize = 64;
/// Longest reason in a refusal, in bytes.
const REFUSAL_BYTES_MAX: usize = 1024;
const LENGTH_BYTES: usize = 4;
const PROOF_BYTES: usize = 32;
const ACCEPT_LABEL: &[u8] = b"swarmmq/peer/accept/v1";
const DIAL_LABEL: &[u8] = b"swarmmq/peer/dial/v1";
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
        out.put_u16(PEER_VERSION);
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

    /// Versions come first and are looked at first: the rest may be of a version that this code cannot read.
    fn read(bytes: Bytes) -> Result<Self, PeerError> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != PEER_MAGIC {
            return Err(PeerError::Malformed);
        }
        if !(reader.u16()?..=reader.u16()?).contains(&PEER_VERSION) {
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
        };
        if hello.version.len() > VERSION_BYTES_MAX {
            return Err(PeerError::Malformed);
        }
        // The nonce counts as part of the bytes that are proven.
        reader.array::<32>()?;
        reader.end()?;
        Ok(hello)
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
    secret: MacKey,
    me: PeerHello,
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
    pub fn dial(
        secret: MacKey,
        me: PeerHello,
        expected: Option<NodeId>,
        nonce: [u8; 32],
        out: &mut BytesMut,
    ) -> Self {
        let hello = me.bytes(&nonce);
        put(HELLO, &[&hello], out);
        Self { secret, me, state: State::Dialled { hello, expected }, taken_bytes: 0 }
    }

    /// Waits as the one who was dialled. `nonce` is fresh randomness.
    pub fn accept(secret: MacKey, me: PeerHello, nonce: [u8; 32]) -> Self {
        Self { secret, me, state: State::Waiting { nonce }, taken_bytes: 0 }
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
                    let claimed = PeerHello::read(body.clone())?;
                    let hello = self.me.bytes(&nonce);
                    let hellos = sha256(&[&body, &hello]);
                    put(ACCEPT, &[&hello, &self.secret.sign(&[ACCEPT_LABEL, &hellos])], out);
                    self.state = State::Challenged { claimed, hellos };
                }
                (State::Challenged { claimed, hellos }, PROOF) => {
                    if !self.secret.verify(&[DIAL_LABEL, &hellos], &body) {
                        return Err(PeerError::WrongSecret);
                    }
                    self.judge(&claimed)?;
                    out.put_slice(&READY_MESSAGE);
                    return Ok(Some(claimed));
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
        let claimed = PeerHello::read(body.clone())?;
        let hellos = sha256(&[hello, &body]);
        if !self.secret.verify(&[ACCEPT_LABEL, &hellos], &proof) {
            return Err(PeerError::WrongSecret);
        }
        self.judge(&claimed)?;
        if let Some(wanted) = expected.filter(|wanted| *wanted != claimed.node) {
            return Err(PeerError::Unexpected { wanted, found: claimed.node });
        }
        put(PROOF, &[&self.secret.sign(&[DIAL_LABEL, &hellos])], out);
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

fn refusal(body: Bytes) -> PeerError {
    let read = || {
        let mut reader = Reader::new(body);
        let refused = PeerError::Refused { code: reader.u16()?, message: reader.text("message")? };
        reader.end().map(|()| refused)
    };
    read().unwrap_or(PeerError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Class, Packet, PacketReader};

    type Verdict = Result<Option<PeerHello>, PeerError>;

    fn hello(node: u16) -> PeerHello {
        PeerHello {
            cluster: Some(ClusterId(5)),
            shard_count: 16,
            node: NodeId(node),
            incarnation: 3,
            boot: 4,
            roles: PeerHello::INGRESS | PeerHello::STORE,
            client: format!("10.0.0.{node}:7400"),
            peer: format!("10.0.0.{node}:7401"),
            admin: format!("10.0.0.{node}:7402"),
            gossip: format!("10.0.0.{node}:7403"),
            version: "0.1.0".to_owned(),
            key: PeerHello::NO_KEY,
        }
    }

    fn secret(byte: u8) -> MacKey {
        MacKey::new([byte; 32])
    }

    /// Two ends and what is on its way between them.
    struct Pair {
        dialler: PeerHandshake,
        acceptor: PeerHandshake,
        up: BytesMut,
        down: BytesMut,
    }

    impl Pair {
        fn of(dial: (u8, PeerHello, Option<u16>), accept: (u8, PeerHello)) -> Self {
            let mut up = BytesMut::new();
            let expected = dial.2.map(NodeId);
            let dialler = PeerHandshake::dial(secret(dial.0), dial.1, expected, [1; 32], &mut up);
            let acceptor = PeerHandshake::accept(secret(accept.0), accept.1, [2; 32]);
            Self { dialler, acceptor, up, down: BytesMut::new() }
        }

        fn example() -> Self {
            Self::of((7, hello(1), Some(2)), (7, hello(2)))
        }

        fn accept(&mut self) -> Verdict {
            self.acceptor.advance(&mut self.up, &mut self.down)
        }

        fn dial(&mut self) -> Verdict {
            self.dialler.advance(&mut self.down, &mut self.up)
        }

        /// Carries the four messages, each through `spoil` with its step, and gives both verdicts, dialler first.
        fn run(mut self, mut spoil: impl FnMut(u8, &mut BytesMut)) -> (Verdict, Verdict) {
            spoil(HELLO, &mut self.up);
            let mut accepted = self.accept();
            spoil(ACCEPT, &mut self.down);
            let mut dialled = self.dial();
            if dialled == Ok(None) {
                spoil(PROOF, &mut self.up);
            }
            if accepted == Ok(None) {
                accepted = self.accept();
            }
            if dialled == Ok(None) {
                spoil(READY, &mut self.down);
                dialled = self.dial();
            }
            (dialled, accepted)
        }
    }

    fn untouched(_: u8, _: &mut BytesMut) {}

    fn refused(verdict: &Verdict) -> Option<Code> {
        let Err(PeerError::Refused { code, .. }) = verdict else { return None };
        Code::from_number(*code)
    }

    #[test]
    fn two_nodes_meet_over_the_same_secret() {
        let (dialled, accepted) = Pair::example().run(untouched);
        assert_eq!((dialled, accepted), (Ok(Some(hello(2))), Ok(Some(hello(1)))));
    }

    #[test]
    fn a_node_that_joins_knows_no_cluster_yet() {
        let joining = PeerHello { cluster: None, shard_count: 0, ..hello(1) };
        let (dialled, accepted) = Pair::of((7, joining.clone(), None), (7, hello(2))).run(untouched);
        assert_eq!((dialled, accepted), (Ok(Some(hello(2))), Ok(Some(joining.clone()))));
        let (dialled, accepted) = Pair::of((7, hello(2), None), (7, joining.clone())).run(untouched);
        assert_eq!((dialled, accepted), (Ok(Some(joining)), Ok(Some(hello(2)))));
    }

    #[test]
    fn packets_begin_right_behind_the_last_message() {
        let mut pair = Pair::example();
        assert_eq!((pair.accept(), pair.dial()), (Ok(None), Ok(None)));
        let packet =
            |from, to| Packet::direct(Class::Bulk, NodeId(from), NodeId(to), Bytes::from_static(b"x"));
        assert!(pair.accept().unwrap().is_some());
        packet(2, 1).encode(&mut pair.down);
        assert!(pair.dial().unwrap().is_some());
        let mut reader = PacketReader::new();
        *reader.buffer() = pair.down;
        assert_eq!(reader.next(), Ok(Some(packet(2, 1))));
    }

    #[test]
    fn bytes_may_come_one_at_a_time() {
        let mut pair = Pair::example();
        let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
        let mut met = [None, None];
        for _ in 0..3 {
            for byte in pair.up.split() {
                up.put_u8(byte);
                met[1] = pair.acceptor.advance(&mut up, &mut pair.down).unwrap();
            }
            for byte in pair.down.split() {
                down.put_u8(byte);
                met[0] = pair.dialler.advance(&mut down, &mut pair.up).unwrap();
            }
        }
        assert_eq!(met, [Some(hello(2)), Some(hello(1))]);
    }

    #[test]
    fn a_wrong_secret_is_found_out_by_both() {
        let (dialled, accepted) = Pair::of((7, hello(1), None), (8, hello(2))).run(untouched);
        assert_eq!(dialled, Err(PeerError::WrongSecret));
        assert_eq!(refused(&accepted), Some(Code::Unauthenticated));

        // A dialler that goes on all the same is found out by the acceptor.
        let mut pair = Pair::example();
        assert_eq!(pair.accept(), Ok(None));
        put(PROOF, &[&[0; 32]], &mut pair.up);
        assert_eq!(pair.accept(), Err(PeerError::WrongSecret));
        assert_eq!(refused(&pair.dial()), Some(Code::Unauthenticated));
    }

    #[test]
    fn nodes_that_cannot_be_peers_say_so_to_each_other() {
        let other = PeerHello { cluster: Some(ClusterId(6)), ..hello(2) };
        let wrong_cluster = PeerError::WrongCluster { ours: ClusterId(5), theirs: ClusterId(6) };
        let unexpected = PeerError::Unexpected { wanted: NodeId(3), found: NodeId(2) };
        for (expected, answering, why) in [
            (None, other, wrong_cluster),
            (None, hello(1), PeerError::SameNode(NodeId(1))),
            (Some(3), hello(2), unexpected),
        ] {
            let (dialled, accepted) = Pair::of((7, hello(1), expected), (7, answering)).run(untouched);
            assert_eq!(refused(&accepted), Some(why.code()));
            assert_eq!(dialled, Err(why));
        }
    }

    #[test]
    fn an_acceptor_judges_by_itself_too() {
        // A dialler that does not look.
        for (claimed, why) in [
            (
                PeerHello { cluster: Some(ClusterId(6)), ..hello(1) },
                PeerError::WrongCluster { ours: ClusterId(5), theirs: ClusterId(6) },
            ),
            (hello(2), PeerError::SameNode(NodeId(2))),
        ] {
            let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
            let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
            let mine = claimed.bytes(&[1; 32]);
            put(HELLO, &[&mine], &mut up);
            assert_eq!(acceptor.advance(&mut up, &mut down), Ok(None), "nothing is said before the proof");
            let theirs = down.split().freeze().slice(LENGTH_BYTES + 1..);
            let hellos = sha256(&[&mine, &theirs[..theirs.len() - PROOF_BYTES]]);
            put(PROOF, &[&secret(7).sign(&[DIAL_LABEL, &hellos])], &mut up);
            assert_eq!(acceptor.advance(&mut up, &mut down), Err(why.clone()));
            assert_eq!(&down[LENGTH_BYTES..LENGTH_BYTES + 1], &[REFUSED], "{why}");
        }
    }

    #[test]
    fn an_acceptor_can_refuse_whom_it_has_recognised() {
        let mut pair = Pair::example();
        assert_eq!((pair.accept(), pair.dial()), (Ok(None), Ok(None)));
        assert_eq!(pair.accept(), Ok(Some(hello(1))));
        refuse(Code::Removed, "node 1 was removed", &mut pair.down);
        let why = PeerError::Refused { code: 29, message: "node 1 was removed".to_owned() };
        assert_eq!(why.code(), Code::Removed);
        assert_eq!(pair.dial(), Err(why));
        assert!(pair.up.is_empty(), "a refusal is not answered");
    }

    #[test]
    fn one_flipped_bit_anywhere_and_nobody_who_received_it_believes() {
        for step in [HELLO, ACCEPT, PROOF, READY] {
            let mut bits = 0;
            let met = Pair::example().run(|at, bytes| bits = if at == step { bytes.len() * 8 } else { bits });
            assert!(met.0.is_ok() && bits > 0);
            for bit in 0..bits {
                let (dialled, accepted) = Pair::example().run(|at, bytes| {
                    if at == step {
                        bytes[bit / 8] ^= 1 << (bit % 8);
                    }
                });
                assert!(!matches!(dialled, Ok(Some(_))), "step {step}, bit {bit}");
                // Before `Ready` the acceptor has believed already, and rightly.
                assert_eq!(matches!(accepted, Ok(Some(_))), step == READY, "step {step}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_proof_that_is_sent_back_proves_nothing() {
        // To the acceptor: its own proof.
        let mut pair = Pair::example();
        assert_eq!(pair.accept(), Ok(None));
        let accept = pair.down.split();
        put(PROOF, &[&accept[accept.len() - PROOF_BYTES..]], &mut pair.up);
        assert_eq!(pair.accept(), Err(PeerError::WrongSecret));
        // To the dialler: its own hello, with a proof that another acceptor made for it.
        let mut pair = Pair::example();
        let mine = pair.up.clone().freeze().slice(LENGTH_BYTES + 1..);
        put(ACCEPT, &[&mine, &accept[accept.len() - PROOF_BYTES..]], &mut pair.down);
        assert_eq!(pair.dial(), Err(PeerError::WrongSecret));
    }

    #[test]
    fn a_proof_does_not_serve_on_another_connection() {
        let mut pair = Pair::example();
        let hello_message = pair.up.clone();
        assert_eq!((pair.accept(), pair.dial()), (Ok(None), Ok(None)));
        let mut second = PeerHandshake::accept(secret(7), hello(2), [3; 32]);
        let mut replayed = hello_message;
        replayed.unsplit(pair.up);
        assert_eq!(second.advance(&mut replayed, &mut BytesMut::new()), Err(PeerError::WrongSecret));
    }

    #[test]
    fn a_node_that_dials_itself_notices() {
        let (dialled, _) = Pair::of((7, hello(1), None), (7, hello(1))).run(untouched);
        assert_eq!(dialled, Err(PeerError::SameNode(NodeId(1))));
    }

    #[test]
    fn no_version_in_common_is_said_before_the_rest_is_read() {
        let mut later = BytesMut::new();
        put(HELLO, &[&PEER_MAGIC, &[0, 3, 0, 4], b"something else"], &mut later);
        let mut out = BytesMut::new();
        let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
        assert_eq!(acceptor.advance(&mut later, &mut out), Err(PeerError::Version));
        let mut pair = Pair::example();
        pair.down = out;
        assert_eq!(refused(&pair.dial()), Some(Code::Version));
    }

    #[test]
    fn a_message_cut_short_inside_is_malformed_and_one_under_way_is_waited_for() {
        let whole = Pair::example().up.freeze();
        for length in 0..whole.len() {
            let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
            let mut under_way = BytesMut::from(&whole[..length]);
            assert_eq!(acceptor.advance(&mut under_way, &mut BytesMut::new()), Ok(None), "{length}");
            if length > LENGTH_BYTES {
                let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
                let mut short = BytesMut::new();
                short.put_u32((length - LENGTH_BYTES) as u32);
                short.put_slice(&whole[LENGTH_BYTES..length]);
                let verdict = acceptor.advance(&mut short, &mut BytesMut::new());
                assert_eq!(verdict, Err(PeerError::Malformed), "{length}");
            }
        }
    }

    #[test]
    fn too_many_bytes_are_refused_before_they_come() {
        let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
        let mut claimed = BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]);
        assert_eq!(acceptor.advance(&mut claimed, &mut BytesMut::new()), Err(PeerError::TooLarge));
        // Together, too: each of the two alone would be allowed.
        let mut pair = Pair::example();
        let hello_bytes = pair.up.len();
        assert_eq!(pair.accept(), Ok(None));
        pair.up.put_u32((UNAUTHENTICATED_BYTES_MAX - hello_bytes - LENGTH_BYTES + 1) as u32);
        assert_eq!(pair.accept(), Err(PeerError::TooLarge));
    }

    #[test]
    fn any_other_step_ends_the_handshake_and_then_it_stays_over() {
        for step in (0..=u8::MAX).filter(|step| *step != HELLO) {
            let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
            let (mut buffer, mut out) = (BytesMut::new(), BytesMut::new());
            put(step, &[], &mut buffer);
            assert_eq!(acceptor.advance(&mut buffer, &mut out), Err(PeerError::Malformed));
            out.clear();
            buffer.put_slice(b"more");
            assert_eq!(acceptor.advance(&mut buffer, &mut out), Err(PeerError::Malformed));
            assert_eq!((buffer.len(), out.len()), (4, 0));
        }
    }

    #[test]
    fn long_texts_are_cut_and_a_hello_always_fits() {
        let long = "ä".repeat(300);
        let texts = [&long; 4].map(Clone::clone);
        let [client, peer, admin, gossip] = texts;
        let me = PeerHello { client, peer, admin, gossip, version: long, ..hello(1) };
        let bytes = me.bytes(&[1; 32]);
        assert!(LENGTH_BYTES + 1 + bytes.len() + PROOF_BYTES < UNAUTHENTICATED_BYTES_MAX / 2);
        let read = PeerHello::read(bytes).unwrap();
        assert_eq!((read.client.len(), read.version.len()), (254, 64));
        assert_eq!(PeerHello::read(hello(0).bytes(&[1; 32])), Err(PeerError::Malformed));
    }
}
