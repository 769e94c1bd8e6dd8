//! One connection of a client process: the handshake, then frames both ways.

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    frame::{FrameHeader, FrameReader},
    mac::MacKey,
    session::handshake::{ClientHandshake, ClientReady},
};

use super::Broken;

/// The client's end.
#[derive(Debug)]
pub(super) struct Wire {
    /// Its number in the network.
    pub(super) connection: u64,
    /// What is to be sent.
    pub(super) out: BytesMut,
    handshake: Option<ClientHandshake>,
    reader: FrameReader,
}

/// What came.
pub(super) enum Heard {
    /// The connection is open and proven.
    Opened(ClientReady),
    Frame(FrameHeader, Bytes),
}

impl Wire {
    /// Begins the handshake.
    pub(super) fn dialled(connection: u64, token: MacKey, nonce: [u8; 32]) -> Self {
        let mut out = BytesMut::new();
        let handshake = Some(ClientHandshake::start(token, "simulated", nonce, &mut out));
        let mut reader = FrameReader::new();
        reader.set_authenticated();
        Self { connection, out, handshake, reader }
    }

    /// Whether it is open and proven.
    pub(super) fn is_open(&self) -> bool {
        self.handshake.is_none()
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.reader.buffer().extend_from_slice(bytes);
    }

    /// The next thing that came, if it is whole.
    pub(super) fn hear(&mut self) -> Result<Option<Heard>, Broken> {
        while let Some((header, body)) = self.reader.next_frame().map_err(|_| Broken)? {
            let Some(handshake) = &mut self.handshake else { return Ok(Some(Heard::Frame(header, body))) };
            if let Some(ready) = handshake.frame(header, body, &mut self.out).map_err(|_| Broken)? {
                self.handshake = None;
                return Ok(Some(Heard::Opened(ready)));
            }
        }
        Ok(None)
    }
}
