//! One connection of a client process: the handshake, then frames both ways.

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    access::ROOT,
    frame::{self, FrameHeader, FrameKind, FrameReader, Ping},
    mac::MacKey,
    session::{
        handshake::{ClientHandshake, ClientReady},
        silence::{Bounds, Silence, Verdict},
    },
    time::Instant,
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
    silence: Silence,
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
        let handshake = Some(ClientHandshake::start(token, ROOT, nonce, &mut out));
        let mut reader = FrameReader::new();
        reader.set_authenticated();
        Self { connection, out, handshake, silence: Silence::new(Instant(0)), reader }
    }

    /// Whether it is open and proven.
    pub(super) fn is_open(&self) -> bool {
        self.handshake.is_none()
    }

    /// Asks a quiet node whether it lives, and tells what its silence means.
    pub(super) fn look(&mut self, now: Instant, bounds: Bounds) -> Verdict {
        if !self.is_open() {
            return Verdict::Fine;
        }
        if !self.out.is_empty() {
            self.silence.said(now);
        }
        let verdict = self.silence.look(now, bounds);
        if verdict == Verdict::Ask {
            frame::encode(&Ping, 0, &mut self.out);
        }
        verdict
    }

    /// When [`Wire::look`] may have something new to say.
    pub(super) fn next_look(&self, now: Instant, bounds: Bounds) -> Option<Instant> {
        self.is_open().then(|| self.silence.next_look(now, bounds))
    }

    pub(super) fn receive(&mut self, now: Instant, bytes: &[u8]) {
        self.silence.heard(now);
        self.reader.buffer().extend_from_slice(bytes);
    }

    /// The next thing that came, if it is whole.
    pub(super) fn hear(&mut self, now: Instant) -> Result<Option<Heard>, Broken> {
        while let Some((header, body)) = self.reader.next_frame().map_err(|_| Broken)? {
            let Some(handshake) = &mut self.handshake else {
                match header.kind {
                    FrameKind::Pong => self.silence.lives(),
                    _ => self.silence.news(),
                }
                return Ok(Some(Heard::Frame(header, body)));
            };
            if let Some(ready) = handshake.frame(header, body, &mut self.out).map_err(|_| Broken)? {
                self.handshake = None;
                self.silence = Silence::new(now);
                return Ok(Some(Heard::Opened(ready)));
            }
        }
        Ok(None)
    }
}
