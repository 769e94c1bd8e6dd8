//! One socket to another node: a handshake first, then packets both ways, urgent ones in front.
//!
//! What waits is kept as packets, by class; only so much is made into bytes as the socket may take soon. So a heartbeat
//! waits for what is already on its way, never for all that is to go.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    time::Duration,
};

use bytes::BytesMut;
use swarmmq_protocol::{
    packet::{Class, Packet, PacketError, PacketReader},
    session::peer::{self, PeerError, PeerHandshake, PeerHello},
    time::Instant,
};

use crate::link::{Outbox, READ_BUDGET_BYTES, ReadState, STRANGER_BUDGET_BYTES, fill};

/// Output that may wait; consensus bounds what it has in flight far below.
pub(crate) const OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Bytes that are made ready for the socket at a time, give or take one packet.
const WIRE_BYTES: usize = 256 << 10;
/// Bodies up to here are copied next to their heads: fewer, longer parts are cheaper to send.
const COPIED_BYTES_MAX: usize = 4 << 10;
/// A peer that takes nothing for so long, while something waits, is given up.
pub(crate) const STALL_TIME_MAX: Duration = Duration::from_secs(10);

/// One connection over `S`, a socket that never blocks.
#[derive(Debug)]
pub(crate) struct PeerLink<S> {
    pub(crate) stream: S,
    /// Until both ends are authenticated.
    handshake: Option<PeerHandshake>,
    reader: PacketReader,
    /// Bytes that came in the latest turn.
    burst: usize,
    /// Of the handshake, to be written.
    words: BytesMut,
    /// Being written: messages of the handshake, or whole packets.
    wire: Outbox,
    /// Waiting, by class.
    queues: [VecDeque<Packet>; Class::ALL.len()],
    queued_bytes: usize,
    /// Since when the socket takes nothing.
    blocked_since: Option<Instant>,
    /// The peer will send no more than what has already arrived.
    pub(crate) ended: bool,
    /// Queued for another turn of reading.
    pub(crate) unread: bool,
}

impl<S: Read + Write> PeerLink<S> {
    /// A link whose handshake is to begin; `first` are the bytes it begins with, if this end does.
    pub(crate) fn new(stream: S, handshake: PeerHandshake, first: BytesMut) -> Self {
        Self {
            stream,
            handshake: Some(handshake),
            reader: PacketReader::new(),
            burst: 0,
            words: first,
            wire: Outbox::default(),
            queues: Default::default(),
            queued_bytes: 0,
            blocked_since: None,
            ended: false,
            unread: false,
        }
    }

    /// Whether both ends have proven that they know the secret.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.handshake.is_none()
    }

    /// Reads what is there, through `scratch`. Returns how many bytes came.
    pub(crate) fn read(&mut self, scratch: &mut [u8]) -> (ReadState, usize) {
        let budget = if self.is_authenticated() { READ_BUDGET_BYTES } else { STRANGER_BUDGET_BYTES };
        fill(&mut self.stream, self.reader.buffer(), &mut self.burst, scratch, budget, self.ended)
    }

    /// Goes on with the handshake. `Some`: it is complete, and this is who the peer is. Whatever this end has to say waits
    /// to be written.
    pub(crate) fn meet(&mut self) -> Result<Option<PeerHello>, PeerError> {
        let Some(handshake) = &mut self.handshake else { return Ok(None) };
        let met = handshake.advance(self.reader.buffer(), &mut self.words)?;
        if met.is_some() {
            self.handshake = None;
        }
        Ok(met)
    }

    /// Turns the welcome that waits into a refusal. Only right after [`PeerLink::meet`], and before anything is written.
    pub(crate) fn refuse(&mut self, code: swarmmq_protocol::error::Code, message: &str) {
        peer::refuse(code, message, &mut self.words);
    }

    /// The next whole packet that was read. A link that waits for none holds no buffer.
    pub(crate) fn next_packet(&mut self) -> Result<Option<Packet>, PacketError> {
        let next = self.reader.next();
        if matches!(next, Ok(None)) {
            let missing = self.reader.missing();
            let buffer = self.reader.buffer();
            if buffer.is_empty() {
                *buffer = BytesMut::new();
            } else {
                buffer.reserve(missing);
            }
        }
        next
    }

    /// Queues a packet. False: the peer takes too little and the bound is reached.
    pub(crate) fn queue(&mut self, packet: Packet) -> bool {
        self.queued_bytes += packet.body.len();
        self.queues[usize::from(packet.class.to_u8())].push_back(packet);
        self.queued_bytes + self.wire.len() <= OUTPUT_BYTES_MAX
    }

    /// Writes what the socket takes. Returns whether everything went out.
    pub(crate) fn write(&mut self, now: Instant) -> io::Result<bool> {
        loop {
            self.wire.push(std::mem::take(&mut self.words).freeze());
            let is_all = self.wire.is_empty() && !self.fill_wire();
            // What was taken may wait in front of the socket, as records.
            let written =
                if is_all { self.stream.flush() } else { self.wire.write(&mut self.stream).map(|_| ()) };
            match written {
                Ok(()) => {
                    self.blocked_since = None;
                    if is_all {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked_since.get_or_insert(now);
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether something waits to go out.
    pub(crate) fn has_output(&self) -> bool {
        let is_empty = self.words.is_empty() && self.wire.is_empty();
        !is_empty || self.queues.iter().any(|queue| !queue.is_empty())
    }

    /// Whether writing waits for the socket.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// When this link is given up, unless the peer takes something before.
    pub(crate) fn stalls_at(&self) -> Option<Instant> {
        self.blocked_since.map(|since| since + STALL_TIME_MAX)
    }

    /// Makes waiting packets into bytes, the lowest class first. Returns whether there are any.
    fn fill_wire(&mut self) -> bool {
        // Packets of a handshake that has not ended would be read as part of it.
        if !self.is_authenticated() {
            return false;
        }
        let mut small = BytesMut::new();
        while self.wire.len() + small.len() < WIRE_BYTES
            && let Some(packet) = self.queues.iter_mut().find_map(VecDeque::pop_front)
        {
            self.queued_bytes -= packet.body.len();
            if packet.body.len() <= COPIED_BYTES_MAX {
                packet.encode(&mut small);
            } else {
                packet.encode_head(&mut small);
                self.wire.push(small.split().freeze());
                self.wire.push(packet.body);
            }
        }
        self.wire.push(small.freeze());
        !self.wire.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use swarmmq_protocol::{id::NodeId, mac::MacKey};

    /// A socket with so much room to write.
    #[derive(Default)]
    struct Socket {
        incoming: VecDeque<u8>,
        room: usize,
        written: Vec<u8>,
    }

    impl Read for Socket {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.incoming.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.incoming.read(into)
        }
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(self.room);
            self.room -= count;
            self.written.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn hello(node: u16) -> PeerHello {
        PeerHello {
            cluster: None,
            shard_count: 0,
            node: NodeId(node),
            incarnation: 1,
            boot: 1,
            roles: 7,
            client: String::new(),
            peer: String::new(),
            admin: String::new(),
            gossip: String::new(),
            version: String::new(),
            key: PeerHello::NO_KEY,
            join: None,
        }
    }

    /// Whose handshake is over.
    fn link() -> PeerLink<Socket> {
        let handshake = PeerHandshake::accept(MacKey::new([1; 32]), hello(1), [1; 32]);
        let mut link = PeerLink::new(Socket::default(), handshake, BytesMut::new());
        link.handshake = None;
        link
    }

    fn packet(class: Class, mark: u8, bytes: usize) -> Packet {
        Packet::direct(class, NodeId(1), NodeId(2), Bytes::from(vec![mark; bytes]))
    }

    /// The first byte of every packet written so far.
    fn marks(link: &mut PeerLink<Socket>) -> Vec<u8> {
        let mut reader = PacketReader::new();
        reader.buffer().extend_from_slice(&link.stream.written);
        std::iter::from_fn(|| reader.next().unwrap()).map(|packet| packet.body[0]).collect()
    }

    const NOW: Instant = Instant::from_millis(5_000);

    #[test]
    fn the_urgent_goes_first_and_equals_keep_their_order() {
        let mut link = link();
        let bulk = WIRE_BYTES / 2;
        for (class, mark, bytes) in [
            (Class::Bulk, 50, bulk),
            (Class::Bulk, 51, bulk),
            (Class::Bulk, 52, bulk),
            (Class::Publish, 40, 1),
            (Class::Consensus, 10, 1),
            (Class::Consensus, 11, 1),
        ] {
            assert!(link.queue(packet(class, mark, bytes)));
        }
        link.stream.room = 100;
        assert!(!link.write(NOW).unwrap());
        assert!(link.is_blocked() && link.has_output());
        // What is on its way by now stays in front; the heartbeat overtakes all else.
        assert!(link.queue(packet(Class::Heartbeat, 1, 1)));
        link.stream.room = usize::MAX;
        assert!(link.write(NOW).unwrap());
        assert_eq!(marks(&mut link), [10, 11, 40, 50, 51, 1, 52]);
        assert!(!link.is_blocked() && !link.has_output());
        assert_eq!((link.queued_bytes, link.wire.capacity()), (0, 0), "an idle link holds no buffer");
    }

    #[test]
    fn a_peer_that_takes_too_little_reaches_a_bound() {
        let mut link = link();
        let part = OUTPUT_BYTES_MAX / 16;
        let taken: Vec<bool> = (0..17).map(|_| link.queue(packet(Class::Bulk, 1, part))).collect();
        assert_eq!(taken.iter().filter(|taken| **taken).count(), 16);
        assert_eq!(taken.last(), Some(&false));
    }

    #[test]
    fn a_link_is_given_up_ten_seconds_after_the_last_byte_that_was_taken() {
        let mut link = link();
        assert_eq!(link.stalls_at(), None);
        link.queue(packet(Class::Bulk, 1, 1000));
        assert!(!link.write(NOW).unwrap());
        let later = NOW + Duration::from_secs(3);
        assert!(!link.write(later).unwrap());
        assert_eq!(link.stalls_at(), Some(NOW + STALL_TIME_MAX));
        link.stream.room = 10;
        assert!(!link.write(later).unwrap());
        assert_eq!(link.stalls_at(), Some(later + STALL_TIME_MAX));
        link.stream.room = usize::MAX;
        assert!(link.write(later).unwrap());
        assert_eq!(link.stalls_at(), None);
    }

    #[test]
    fn no_packet_goes_out_before_the_handshake_is_over() {
        let handshake = PeerHandshake::accept(MacKey::new([1; 32]), hello(1), [1; 32]);
        let mut link = PeerLink::new(Socket::default(), handshake, BytesMut::new());
        link.stream.room = usize::MAX;
        link.queue(packet(Class::Heartbeat, 1, 1));
        assert!(link.write(NOW).unwrap());
        assert!(link.stream.written.is_empty() && link.has_output());
    }

    #[test]
    fn a_stranger_is_read_no_further_than_its_allowance() {
        let handshake = PeerHandshake::accept(MacKey::new([1; 32]), hello(1), [1; 32]);
        let mut link = PeerLink::new(Socket::default(), handshake, BytesMut::new());
        link.stream.incoming.extend(std::iter::repeat_n(0, 1 << 20));
        let (state, taken) = link.read(&mut vec![0; 256 << 10]);
        assert_eq!((state, taken), (ReadState::More, STRANGER_BUDGET_BYTES));
        assert!(link.meet().is_err());
    }
}
