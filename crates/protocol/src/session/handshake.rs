//! Who talks: both ends prove that they know the token of the client's principal, without sending it.
//!
//! ```text
//! client                                   node
//!   ClientHello {versions, nonce}  ------>
//!                                  <------  ServerHello {version, cluster, node, nonce}
//!   ClientProof {HMAC(token, ..)}  ------>
//!                                  <------  Welcome {HMAC(token, ..), limits}   or   Refused
//! ```
//! Both proofs cover the bytes of both hellos, under different labels, so that neither can be replayed or reflected.
//! TLS wraps the connection from outside and leaves this as it is. A principal with a certificate has proven itself there: it says
//! so in its hello, and [`certified_key`] stands for the token.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::{
    error::Code,
    frame::{
        self, Body, ClientHello, ClientProof, FrameHeader, FrameKind, PROTOCOL_VERSION, Refused, ServerHello,
        Welcome,
    },
    id::{ClusterId, NodeId},
    limits::{PUBLISH_WINDOW_BYTES, PUBLISH_WINDOW_MESSAGES},
    mac::{MacKey, certified_key, sha256},
    time::WallTime,
};

/// How a client wants to prove who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// By the token of the principal.
    Token,
    /// By the certificate that it has shown around this handshake.
    Certificate,
}

impl Auth {
    fn to_u8(self) -> u8 {
        match self {
            Self::Token => 1,
            Self::Certificate => 2,
        }
    }

    fn from_u8(byte: u8) -> Option<Self> {
        [Self::Token, Self::Certificate].into_iter().find(|auth| auth.to_u8() == byte)
    }
}

const CLIENT_LABEL: &[u8] = b"swarmmq/auth/client/v1";
const SERVER_LABEL: &[u8] = b"swarmmq/auth/server/v1";

/// To whoever is not known where not everybody is known yet.
const LEARNING: &str = "the node does not know every principal yet";

/// Why a handshake failed. The connection is useless; nothing else changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// A frame that does not belong here, or does not read. Blame: peer.
    Malformed(FrameKind),
    /// No version in common. Blame: whoever is older.
    Version,
    /// The client does not know the token of the principal that it named, or there is no such principal: which of the two is
    /// not told. Blame: client's configuration, or an attacker.
    WrongToken,
    /// The principal proved itself and is disabled. The client hears the same as for a wrong token.
    Disabled,
    /// The node does not know the token: it is not ours. Blame: address, or an attacker.
    WrongServer,
    /// The principal is who it says, and is not let in now. Blame: the code tells.
    NotNow(Code, &'static str),
    /// The node said no.
    Refused {
        /// For programs.
        code: u16,
        /// For people.
        message: String,
    },
}

impl HandshakeError {
    /// The code that tells the peer.
    pub fn code(&self) -> Code {
        match self {
            Self::Malformed(_) => Code::Malformed,
            Self::Version => Code::Version,
            Self::WrongToken | Self::Disabled | Self::WrongServer => Code::Unauthenticated,
            Self::NotNow(code, _) => *code,
            Self::Refused { code, .. } => Code::from_number(*code).unwrap_or(Code::Malformed),
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(kind) => write!(f, "unexpected or malformed {kind:?} during the handshake"),
            Self::Version => write!(f, "no protocol version in common (this side speaks {PROTOCOL_VERSION})"),
            Self::WrongToken | Self::Disabled => {
                write!(f, "no enabled principal of this name has this token, or this certificate")
            }
            Self::WrongServer => write!(f, "the node does not know our access token"),
            Self::NotNow(_, why) => f.write_str(why),
            Self::Refused { code, message } => write!(f, "refused ({code}): {message}"),
        }
    }
}

impl std::error::Error for HandshakeError {}

fn proof(token: &MacKey, label: &[u8], hellos: &[u8; 32]) -> [u8; 32] {
    token.sign(&[label, hellos])
}

fn body_bytes<B: Body>(body: &B) -> BytesMut {
    let mut bytes = BytesMut::new();
    body.put(&mut bytes);
    bytes
}

fn read<B: Body>(header: FrameHeader, body: Bytes) -> Result<B, HandshakeError> {
    if header.kind != B::KIND {
        return Err(HandshakeError::Malformed(header.kind));
    }
    frame::decode(body).map_err(|_| HandshakeError::Malformed(header.kind))
}

/// The client's end.
#[derive(Debug)]
pub struct ClientHandshake {
    token: MacKey,
    hello: BytesMut,
    hellos: Option<[u8; 32]>,
    server: Option<(ClusterId, NodeId)>,
}

/// What a client knows after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientReady {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Which node.
    pub node: NodeId,
    /// What it allows.
    pub welcome: Welcome,
}

impl ClientHandshake {
    /// Begins: writes the hello. `nonce` is fresh randomness.
    pub fn start(token: MacKey, principal: &str, nonce: [u8; 32], out: &mut BytesMut) -> Self {
        Self::begin(Auth::Token, token, principal, nonce, out)
    }

    /// The same for whoever has shown the certificate of `principal` in the session around it.
    pub fn start_certified(principal: &str, nonce: [u8; 32], out: &mut BytesMut) -> Self {
        Self::begin(Auth::Certificate, certified_key(principal), principal, nonce, out)
    }

    fn begin(auth: Auth, token: MacKey, principal: &str, nonce: [u8; 32], out: &mut BytesMut) -> Self {
        let hello = ClientHello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            auth: auth.to_u8(),
            principal: principal.to_owned(),
            nonce,
        };
        frame::encode(&hello, 0, out);
        Self { token, hello: body_bytes(&hello), hellos: None, server: None }
    }

    /// Takes the node's next frame. `Some`: the connection is open.
    pub fn frame(
        &mut self,
        header: FrameHeader,
        body: Bytes,
        out: &mut BytesMut,
    ) -> Result<Option<ClientReady>, HandshakeError> {
        if header.kind == FrameKind::Refused {
            let refused: Refused = read(header, body)?;
            return Err(HandshakeError::Refused { code: refused.code, message: refused.message });
        }
        let Some(hellos) = self.hellos else {
            let bytes = body.clone();
            let hello: ServerHello = read(header, body)?;
            if hello.version != PROTOCOL_VERSION {
                return Err(HandshakeError::Version);
            }
            let hellos = sha256(&[&self.hello, &bytes]);
            frame::encode(&ClientProof { proof: proof(&self.token, CLIENT_LABEL, &hellos) }, 0, out);
            self.hellos = Some(hellos);
            self.server = Some((hello.cluster, hello.node));
            return Ok(None);
        };
        let welcome: Welcome = read(header, body)?;
        if !self.token.verify(&[SERVER_LABEL, &hellos], &welcome.proof) {
            return Err(HandshakeError::WrongServer);
        }
        if welcome.shard_count == 0 {
            return Err(HandshakeError::Malformed(FrameKind::Welcome));
        }
        let (cluster, node) = self.server.expect("set together with the hellos");
        Ok(Some(ClientReady { cluster, node, welcome }))
    }
}

/// How a name can prove itself, as the node knows it.
#[derive(Debug)]
pub struct Candidates {
    /// Tokens that are accepted. For names that nobody has, as many that nobody has: whether there is such a principal is not
    /// to be seen in what a refusal costs.
    pub tokens: Vec<MacKey>,
    /// Whether a proof is enough: there is such a principal, and it is enabled.
    pub is_known: bool,
    /// The node may not know every principal yet: whoever cannot prove itself is to try again, or elsewhere.
    pub is_learning: bool,
    /// Why it is not let in although it is who it says: its quota of connections is used up.
    pub not_now: Option<(Code, &'static str)>,
    /// Unanswered sealed bytes that it may have on one connection.
    pub publish_window_bytes: u64,
}

impl Candidates {
    /// One token and nothing else, without bounds.
    pub fn only(token: MacKey) -> Self {
        Self {
            tokens: vec![token],
            is_known: true,
            is_learning: false,
            not_now: None,
            publish_window_bytes: PUBLISH_WINDOW_BYTES,
        }
    }
}

/// Who has proven itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// As whom.
    pub principal: String,
    /// With which of its [`Candidates::tokens`].
    pub token: usize,
}

/// The node's end.
#[derive(Debug)]
pub struct ServerHandshake {
    hello: ServerHello,
    shard_count: u32,
    client: Option<(String, [u8; 32])>,
    auth: Auth,
}

impl ServerHandshake {
    /// Waits for a client. `nonce` is fresh randomness.
    pub fn new(cluster: ClusterId, node: NodeId, shard_count: u32, nonce: [u8; 32]) -> Self {
        Self {
            hello: ServerHello { version: PROTOCOL_VERSION, cluster, node, nonce },
            shard_count,
            client: None,
            auth: Auth::Token,
        }
    }

    /// How the client wants to prove that, as its hello says; a token until it came.
    pub fn auth(&self) -> Auth {
        self.auth
    }

    /// Who the client says it is; not believed before its proof.
    pub fn claimed(&self) -> &str {
        self.client.as_ref().map_or("", |(principal, _)| principal)
    }

    /// Takes the client's next frame. `Some`: the connection is open. After an error the refusal has been
    /// written and the connection is to be closed.
    ///
    /// * `find`: what the node knows of a name, asked once the proof is there.
    pub fn frame(
        &mut self,
        time: WallTime,
        header: FrameHeader,
        body: Bytes,
        find: &dyn Fn(&str) -> Candidates,
        out: &mut BytesMut,
    ) -> Result<Option<Proven>, HandshakeError> {
        let result = self.step(time, header, body, find, out);
        if let Err(error) = &result {
            frame::encode(&Refused { code: error.code().number(), message: error.to_string() }, 0, out);
        }
        result
    }

    fn step(
        &mut self,
        time: WallTime,
        header: FrameHeader,
        body: Bytes,
        find: &dyn Fn(&str) -> Candidates,
        out: &mut BytesMut,
    ) -> Result<Option<Proven>, HandshakeError> {
        let Some((principal, hellos)) = &self.client else {
            let bytes = body.clone();
            let hello: ClientHello = read(header, body)?;
            if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
                return Err(HandshakeError::Version);
            }
            self.auth = Auth::from_u8(hello.auth).ok_or(HandshakeError::Malformed(header.kind))?;
            let hellos = sha256(&[&bytes, &body_bytes(&self.hello)]);
            self.client = Some((hello.principal, hellos));
            frame::encode(&self.hello, 0, out);
            return Ok(None);
        };
        let shown: ClientProof = read(header, body)?;
        let known = find(principal);
        // All are tried whatever the first one says, and the name counts last.
        let fits = |token: &MacKey| token.verify(&[CLIENT_LABEL, hellos], &shown.proof);
        let fitting: Vec<bool> = known.tokens.iter().map(fits).collect();
        let token = fitting.iter().position(|fits| *fits);
        let Some(token) = token.filter(|_| known.is_known) else {
            return Err(match token {
                _ if known.is_learning => HandshakeError::NotNow(Code::NotLeader, LEARNING),
                Some(_) => HandshakeError::Disabled,
                None => HandshakeError::WrongToken,
            });
        };
        if let Some((code, why)) = known.not_now {
            return Err(HandshakeError::NotNow(code, why));
        }
        let welcome = Welcome {
            proof: proof(&known.tokens[token], SERVER_LABEL, hellos),
            shard_count: self.shard_count,
            publish_window_messages: PUBLISH_WINDOW_MESSAGES,
            publish_window_bytes: known.publish_window_bytes.min(PUBLISH_WINDOW_BYTES),
            server_time: time,
        };
        frame::encode(&welcome, 0, out);
        Ok(Some(Proven { principal: principal.clone(), token }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameReader;

    fn frames(bytes: &mut BytesMut) -> Vec<(FrameHeader, Bytes)> {
        let mut reader = FrameReader::new();
        reader.buffer().extend_from_slice(&bytes.split());
        std::iter::from_fn(|| reader.next_frame().unwrap()).collect()
    }

    fn server(nonce: u8) -> ServerHandshake {
        ServerHandshake::new(ClusterId(5), NodeId(1), 16, [nonce; 32])
    }

    /// A node that knows one name and its tokens.
    fn knows(tokens: [u8; 2]) -> impl Fn(&str) -> Candidates {
        move |name| Candidates {
            tokens: tokens.map(|byte| MacKey::new([byte; 32])).into(),
            is_known: name == "app",
            is_learning: false,
            not_now: None,
            publish_window_bytes: 1000,
        }
    }

    fn run(
        name: &str,
        client_token: u8,
        find: &dyn Fn(&str) -> Candidates,
    ) -> (Result<Option<ClientReady>, HandshakeError>, Option<Proven>) {
        let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
        let mut client = ClientHandshake::start(MacKey::new([client_token; 32]), name, [1; 32], &mut up);
        let mut server = server(2);
        let mut principal = None;
        let mut last = Ok(None);
        for _ in 0..2 {
            for (header, body) in frames(&mut up) {
                principal = server.frame(WallTime(0), header, body, find, &mut down).unwrap_or_default();
            }
            for (header, body) in frames(&mut down) {
                last = client.frame(header, body, &mut up);
            }
        }
        (last, principal)
    }

    #[test]
    fn both_ends_meet_over_the_same_token() {
        // The token of before counts as much as the current one.
        for (tokens, token) in [([7, 8], 0), ([8, 7], 1)] {
            let (client, principal) = run("app", 7, &knows(tokens));
            assert_eq!(principal, Some(Proven { principal: "app".into(), token }));
            let ready = client.unwrap().unwrap();
            assert_eq!((ready.cluster, ready.welcome.publish_window_bytes), (ClusterId(5), 1000));
        }
    }

    #[test]
    fn whoever_has_shown_a_certificate_needs_no_token_and_says_so_in_its_hello() {
        let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
        let mut client = ClientHandshake::start_certified("app", [1; 32], &mut up);
        let mut server = server(2);
        let find = |name: &str| Candidates::only(certified_key(name));
        let (header, body) = frames(&mut up).remove(0);
        assert_eq!(server.auth(), Auth::Token);
        server.frame(WallTime(0), header, body, &find, &mut down).unwrap();
        assert_eq!((server.auth(), server.claimed()), (Auth::Certificate, "app"));
        let (header, body) = frames(&mut down).remove(0);
        client.frame(header, body, &mut up).unwrap();
        let (header, body) = frames(&mut up).remove(0);
        let proven = server.frame(WallTime(0), header, body, &find, &mut down).unwrap();
        assert_eq!(proven.unwrap().principal, "app");
        let (header, body) = frames(&mut down).remove(0);
        assert!(client.frame(header, body, &mut up).unwrap().is_some());
    }

    #[test]
    fn a_way_to_prove_oneself_that_nobody_knows_is_malformed() {
        let hello = ClientHello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            auth: 3,
            principal: "app".to_owned(),
            nonce: [1; 32],
        };
        let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
        frame::encode(&hello, 0, &mut up);
        let (header, body) = frames(&mut up).remove(0);
        let result = server(2).frame(WallTime(0), header, body, &knows([7, 8]), &mut down);
        assert_eq!(result, Err(HandshakeError::Malformed(FrameKind::ClientHello)));
    }

    #[test]
    fn a_name_that_nobody_has_is_refused_as_a_wrong_token_is() {
        let (unknown, principal) = run("nobody", 7, &knows([7, 8]));
        assert_eq!(principal, None);
        assert_eq!(unknown, run("app", 6, &knows([7, 8])).0);
    }

    #[test]
    fn where_not_everybody_is_known_yet_a_stranger_is_to_try_again() {
        let learns = |name: &str| Candidates { is_learning: true, ..knows([7, 8])(name) };
        let code = |name, token| match run(name, token, &learns).0 {
            Err(HandshakeError::Refused { code, .. }) => Code::from_number(code),
            Ok(Some(_)) => None,
            other => panic!("{other:?}"),
        };
        assert_eq!((code("nobody", 7), code("app", 6)), (Some(Code::NotLeader), Some(Code::NotLeader)));
        assert_eq!(code("app", 7), None, "who is known is known");
    }

    #[test]
    fn who_is_not_let_in_now_hears_why_only_after_the_proof() {
        let full = |name: &str| Candidates {
            not_now: Some((Code::Quota, "too many connections")),
            ..knows([7, 8])(name)
        };
        let code = |token| match run("app", token, &full).0 {
            Err(HandshakeError::Refused { code, .. }) => Code::from_number(code),
            other => panic!("{other:?}"),
        };
        assert_eq!((code(7), code(6)), (Some(Code::Quota), Some(Code::Unauthenticated)));
    }

    #[test]
    fn a_wrong_token_is_refused_with_its_reason() {
        let (client, principal) = run("app", 7, &knows([8, 9]));
        assert_eq!(principal, None);
        let Err(HandshakeError::Refused { code, .. }) = client else { panic!("{client:?}") };
        assert_eq!(code, Code::Unauthenticated.number());
    }

    #[test]
    fn a_proof_does_not_serve_on_another_connection() {
        let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
        let mut client = ClientHandshake::start(MacKey::new([7; 32]), "app", [1; 32], &mut up);
        let hello = frames(&mut up);
        let find = knows([7, 8]);
        let mut first = server(2);
        first.frame(WallTime(0), hello[0].0, hello[0].1.clone(), &find, &mut down).unwrap();
        let (header, body) = frames(&mut down).remove(0);
        client.frame(header, body, &mut up).unwrap();
        let proof = frames(&mut up).remove(0);

        let mut second = server(3);
        second.frame(WallTime(0), hello[0].0, hello[0].1.clone(), &find, &mut down).unwrap();
        let replayed = second.frame(WallTime(0), proof.0, proof.1, &find, &mut down);
        assert_eq!(replayed, Err(HandshakeError::WrongToken));
    }

    #[test]
    fn a_server_that_does_not_know_the_token_is_found_out() {
        let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
        let mut client = ClientHandshake::start(MacKey::new([7; 32]), "app", [1; 32], &mut up);
        let hello = frames(&mut up).remove(0);
        server(2).frame(WallTime(0), hello.0, hello.1, &knows([9, 9]), &mut down).unwrap();
        let (header, body) = frames(&mut down).remove(0);
        client.frame(header, body, &mut up).unwrap();
        let welcome = Welcome {
            proof: [0; 32],
            shard_count: 16,
            publish_window_messages: 1,
            publish_window_bytes: 1,
            server_time: WallTime(0),
        };
        frame::encode(&welcome, 0, &mut down);
        let (header, body) = frames(&mut down).remove(0);
        assert_eq!(client.frame(header, body, &mut up), Err(HandshakeError::WrongServer));
    }

    #[test]
    fn any_other_frame_ends_the_handshake() {
        for kind in FrameKind::ALL.iter().filter(|kind| **kind != FrameKind::ClientHello) {
            let mut down = BytesMut::new();
            let header = FrameHeader { length: 0, kind: *kind, request: 0 };
            let result = server(2).frame(WallTime(0), header, Bytes::new(), &knows([7, 8]), &mut down);
            assert_eq!(result, Err(HandshakeError::Malformed(*kind)));
        }
    }
}
