//! Who talks: both ends prove that they know the access token, without sending it.
//!
//! ```text
//! client                                   node
//!   ClientHello {versions, nonce}  ------>
//!                                  <------  ServerHello {version, cluster, node, nonce}
//!   ClientProof {HMAC(token, ..)}  ------>
//!                                  <------  Welcome {HMAC(token, ..), limits}   or   Refused
//! ```
//! Both proofs cover the bytes of both hellos, under different labels, so that neither can be replayed or reflected.
//! TLS will wrap the connection from outside and leave this as it is.

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
    mac::{MacKey, sha256},
    time::WallTime,
};

/// The shared access token.
const AUTH_TOKEN: u8 = 1;
const CLIENT_LABEL: &[u8] = b"swarmmq/auth/client/v1";
const SERVER_LABEL: &[u8] = b"swarmmq/auth/server/v1";

/// Why a handshake failed. The connection is useless; nothing else changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// A frame that does not belong here, or does not read. Blame: peer.
    Malformed(FrameKind),
    /// No version in common. Blame: whoever is older.
    Version,
    /// The client does not know the token. Blame: client's configuration, or an attacker.
    WrongToken,
    /// The node does not know the token: it is not ours. Blame: address, or an attacker.
    WrongServer,
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
            Self::WrongToken | Self::WrongServer => Code::Unauthenticated,
            Self::Refused { code, .. } => Code::from_number(*code).unwrap_or(Code::Malformed),
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(kind) => write!(f, "unexpected or malformed {kind:?} during the handshake"),
            Self::Version => write!(f, "no protocol version in common (this side speaks {PROTOCOL_VERSION})"),
            Self::WrongToken => write!(f, "the access token does not match"),
            Self::WrongServer => write!(f, "the node does not know our access token"),
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
        let hello = ClientHello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            auth: AUTH_TOKEN,
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

/// The node's end.
#[derive(Debug)]
pub struct ServerHandshake {
    token: MacKey,
    hello: ServerHello,
    shard_count: u32,
    client: Option<(String, [u8; 32])>,
}

impl ServerHandshake {
    /// Waits for a client. `nonce` is fresh randomness.
    pub fn new(token: MacKey, cluster: ClusterId, node: NodeId, shard_count: u32, nonce: [u8; 32]) -> Self {
        Self {
            token,
            hello: ServerHello { version: PROTOCOL_VERSION, cluster, node, nonce },
            shard_count,
            client: None,
        }
    }

    /// Takes the client's next frame. `Some(principal)`: the connection is open. After an error the refusal has been
    /// written and the connection is to be closed.
    pub fn frame(
        &mut self,
        time: WallTime,
        header: FrameHeader,
        body: Bytes,
        out: &mut BytesMut,
    ) -> Result<Option<String>, HandshakeError> {
        let result = self.step(time, header, body, out);
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
        out: &mut BytesMut,
    ) -> Result<Option<String>, HandshakeError> {
        let Some((principal, hellos)) = &self.client else {
            let bytes = body.clone();
            let hello: ClientHello = read(header, body)?;
            if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
                return Err(HandshakeError::Version);
            }
            if hello.auth != AUTH_TOKEN {
                return Err(HandshakeError::Malformed(header.kind));
            }
            let hellos = sha256(&[&bytes, &body_bytes(&self.hello)]);
            self.client = Some((hello.principal, hellos));
            frame::encode(&self.hello, 0, out);
            return Ok(None);
        };
        let shown: ClientProof = read(header, body)?;
        if !self.token.verify(&[CLIENT_LABEL, hellos], &shown.proof) {
            return Err(HandshakeError::WrongToken);
        }
        let welcome = Welcome {
            proof: proof(&self.token, SERVER_LABEL, hellos),
            shard_count: self.shard_count,
            publish_window_messages: PUBLISH_WINDOW_MESSAGES,
            publish_window_bytes: PUBLISH_WINDOW_BYTES,
            server_time: time,
        };
        frame::encode(&welcome, 0, out);
        Ok(Some(principal.clone()))
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

    fn server(token: u8, nonce: u8) -> ServerHandshake {
        ServerHandshake::new(MacKey::new([token; 32]), ClusterId(5), NodeId(1), 16, [nonce; 32])
    }

    fn run(
        client_token: u8,
        server_token: u8,
    ) -> (Result<Option<ClientReady>, HandshakeError>, Option<String>) {
        let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
        let mut client = ClientHandshake::start(MacKey::new([client_token; 32]), "app", [1; 32], &mut up);
        let mut server = server(server_token, 2);
        let mut principal = None;
        let mut last = Ok(None);
        for _ in 0..2 {
            for (header, body) in frames(&mut up) {
                principal = server.frame(WallTime(0), header, body, &mut down).unwrap_or_default();
            }
            for (header, body) in frames(&mut down) {
                last = client.frame(header, body, &mut up);
            }
        }
        (last, principal)
    }

    #[test]
    fn both_ends_meet_over_the_same_token() {
        let (client, principal) = run(7, 7);
        assert_eq!(principal.as_deref(), Some("app"));
        assert_eq!(client.unwrap().unwrap().cluster, ClusterId(5));
    }

    #[test]
    fn a_wrong_token_is_refused_with_its_reason() {
        let (client, principal) = run(7, 8);
        assert_eq!(principal, None);
        let Err(HandshakeError::Refused { code, .. }) = client else { panic!("{client:?}") };
        assert_eq!(code, Code::Unauthenticated.number());
    }

    #[test]
    fn a_proof_does_not_serve_on_another_connection() {
        let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
        let mut client = ClientHandshake::start(MacKey::new([7; 32]), "app", [1; 32], &mut up);
        let hello = frames(&mut up);
        let mut first = server(7, 2);
        first.frame(WallTime(0), hello[0].0, hello[0].1.clone(), &mut down).unwrap();
        let (header, body) = frames(&mut down).remove(0);
        client.frame(header, body, &mut up).unwrap();
        let proof = frames(&mut up).remove(0);

        let mut second = server(7, 3);
        second.frame(WallTime(0), hello[0].0, hello[0].1.clone(), &mut down).unwrap();
        let replayed = second.frame(WallTime(0), proof.0, proof.1, &mut down);
        assert_eq!(replayed, Err(HandshakeError::WrongToken));
    }

    #[test]
    fn a_server_that_does_not_know_the_token_is_found_out() {
        let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
        let mut client = ClientHandshake::start(MacKey::new([7; 32]), "app", [1; 32], &mut up);
        let hello = frames(&mut up).remove(0);
        server(9, 2).frame(WallTime(0), hello.0, hello.1, &mut down).unwrap();
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
            let result = server(7, 2).frame(WallTime(0), header, Bytes::new(), &mut down);
            assert_eq!(result, Err(HandshakeError::Malformed(*kind)));
        }
    }
}
