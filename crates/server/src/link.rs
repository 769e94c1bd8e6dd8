//! One client's socket: bytes to frames, frames to bytes. Idle links hold no buffers.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read, Write},
};

use bytes::{Buf, Bytes, BytesMut};
use swarmmq_protocol::{
    frame::{FrameError, FrameHeader, FrameReader},
    limits::UNAUTHENTICATED_BYTES_MAX,
};

/// Bytes read from one link before others get their turn.
pub(crate) const READ_BUDGET_BYTES: usize = 1 << 20;
/// The same for a stranger: one byte more than it may send shows that it sends too much.
pub(crate) const STRANGER_BUDGET_BYTES: usize = UNAUTHENTICATED_BYTES_MAX + 1;
/// Output a client may leave untaken; credit keeps well-behaved ones far below.
const OUTPUT_BYTES_MAX: usize = 320 << 20;
const SLICES_MAX: usize = 32;

/// What reading brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadState {
    /// Nothing more for now.
    Drained,
    /// The budget is used up; there may be more.
    More,
    /// The peer closed, or the connection broke.
    Closed,
}

/// Bytes on their way to a socket. Empty, it holds no buffer.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    parts: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    /// What waits, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Adds bytes behind those that wait.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        if !bytes.is_empty() {
            self.parts.push_back(bytes);
        }
    }

    /// Writes once what `stream` takes, many parts at a time. Returns how many bytes; none is an error.
    pub(crate) fn write(&mut self, stream: &mut impl Write) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut used = 0;
        for (slice, bytes) in slices.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(bytes);
            used += 1;
        }
        let count = stream.write_vectored(&slices[..used])?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.bytes -= count;
        let mut left = count;
        while left > 0 {
            let front = self.parts.front_mut().expect("what was written came from here");
            let part = left.min(front.len());
            front.advance(part);
            left -= part;
            if front.is_empty() {
                self.parts.pop_front();
            }
        }
        if self.parts.is_empty() {
            self.parts = VecDeque::new();
        }
        Ok(count)
    }

    /// Bytes that it keeps from others.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.parts.capacity()
    }
}

/// One connection over `S`, a socket that never blocks.
#[derive(Debug)]
pub(crate) struct Link<S> {
    pub(crate) stream: S,
    reader: FrameReader,
    /// Bytes that came in the latest turn: the next is likely to bring as many.
    burst: usize,
    out: Outbox,
    authenticated: bool,
    /// Waiting for the socket to take more.
    pub(crate) blocked: bool,
    /// No frame is taken any more; what is queued still goes out.
    pub(crate) closing: bool,
    /// The peer will send no more than what has already arrived.
    pub(crate) ended: bool,
    /// Queued for another turn of reading.
    pub(crate) unread: bool,
    /// Nothing is read before that: its principal is above its quota.
    pub(crate) paused: bool,
}

impl<S: Read + Write> Link<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            reader: FrameReader::new(),
            burst: 0,
            out: Outbox::default(),
            authenticated: false,
            blocked: false,
            closing: false,
            ended: false,
            unread: false,
            paused: false,
        }
    }

    /// Whether full frames are allowed.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// Full frames are allowed from now on.
    pub(crate) fn set_authenticated(&mut self) {
        self.authenticated = true;
        self.reader.set_authenticated();
    }

    /// No frame is taken from now on.
    pub(crate) fn begin_closing(&mut self) {
        self.closing = true;
        self.reader = FrameReader::new();
    }

    /// Reads what is there, through `scratch`. Returns how many bytes came.
    pub(crate) fn read(&mut self, scratch: &mut [u8]) -> (ReadState, usize) {
        let budget = if self.authenticated { READ_BUDGET_BYTES } else { STRANGER_BUDGET_BYTES };
        fill(&mut self.stream, self.reader.buffer(), &mut self.burst, scratch, budget, self.ended)
    }

    /// The next whole frame that was read.
    pub(crate) fn next_frame(&mut self) -> Result<Option<(FrameHeader, Bytes)>, FrameError> {
        let next = self.reader.next_frame();
        if matches!(next, Ok(None)) {
            let buffer = self.reader.buffer();
            if buffer.is_empty() {
                *buffer = BytesMut::new();
            } else {
                let missing = self.reader.missing();
                self.reader.buffer().reserve(missing);
            }
        }
        next
    }

    /// Queues output. False: the peer takes nothing and the bound is reached.
    pub(crate) fn queue(&mut self, bytes: BytesMut) -> bool {
        self.out.push(bytes.freeze());
        self.out.len() <= OUTPUT_BYTES_MAX
    }

    /// Writes what the socket takes. Returns whether everything went out.
    pub(crate) fn write(&mut self) -> io::Result<bool> {
        while !self.out.is_empty() {
            match self.out.write(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // What was taken may wait in front of the socket, as records.
        self.blocked = match self.stream.flush() {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) => return Err(error),
        };
        Ok(!self.blocked)
    }

    /// Bytes that this link holds in buffers.
    #[cfg(test)]
    fn buffered_bytes(&mut self) -> usize {
        self.reader.buffer().capacity() + self.out.len() + self.out.capacity()
    }
}

/// Reads from `stream` until nothing is left, or `budget` bytes have come, through `scratch` to the end of `buffer`.
/// Returns how many came.
///
/// * `burst`: how many came in the latest turn; that much room is made at once, since growing costs a copy.
/// * `ended`: the peer will send no more, so only the end itself says that everything was read.
pub(crate) fn fill(
    stream: &mut impl Read,
    buffer: &mut BytesMut,
    burst: &mut usize,
    scratch: &mut [u8],
    budget: usize,
    ended: bool,
) -> (ReadState, usize) {
    let expected = std::mem::take(burst);
    let mut taken = 0;
    while taken < budget {
        let room = scratch.len().min(budget - taken);
        match stream.read(&mut scratch[..room]) {
            Ok(0) => return (ReadState::Closed, taken),
            Ok(count) => {
                if taken == 0 {
                    buffer.reserve(count.max(expected));
                }
                buffer.extend_from_slice(&scratch[..count]);
                taken += count;
                *burst = taken;
                if count < room && !ended {
                    // A short read means the socket is empty; the next event says when it is not.
                    return (ReadState::Drained, taken);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return (ReadState::Drained, taken);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return (ReadState::Closed, taken),
        }
    }
    (ReadState::More, taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarmmq_protocol::frame::{self, Ping};

    /// A socket with so many bytes to read and so much room to write.
    #[derive(Default)]
    struct Socket {
        incoming: VecDeque<u8>,
        ended: bool,
        room: usize,
        written: Vec<u8>,
        /// Bytes that were taken and have not gone out.
        waiting: bool,
    }

    impl Read for Socket {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.incoming.is_empty() && !self.ended && !into.is_empty() {
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
            if self.waiting { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        }
    }

    fn link(incoming: &[u8]) -> Link<Socket> {
        Link::new(Socket { incoming: incoming.iter().copied().collect(), ..Socket::default() })
    }

    fn ping() -> BytesMut {
        let mut bytes = BytesMut::new();
        frame::encode(&Ping, 7, &mut bytes);
        bytes
    }

    #[test]
    fn a_frame_in_pieces_is_taken_when_it_is_whole_and_leaves_no_buffer() {
        let bytes = ping();
        let mut link = link(&bytes[..5]);
        let mut scratch = [0; 64];
        assert_eq!(link.read(&mut scratch), (ReadState::Drained, 5));
        assert!(link.next_frame().unwrap().is_none());
        link.stream.incoming.extend(&bytes[5..]);
        assert_eq!(link.read(&mut scratch).0, ReadState::Drained);
        assert_eq!(link.next_frame().unwrap().unwrap().0.request, 7);
        assert!(link.next_frame().unwrap().is_none());
        assert_eq!(link.buffered_bytes(), 0);
    }

    #[test]
    fn what_came_before_the_end_is_read_to_the_end() {
        let mut link = link(&ping());
        link.stream.ended = true;
        link.ended = true;
        assert_eq!(link.read(&mut [0; 64]), (ReadState::Closed, 16));
        assert!(link.next_frame().unwrap().is_some());
    }

    #[test]
    fn a_stranger_is_read_no_further_than_its_allowance() {
        let mut link = link(&vec![0; 1 << 20]);
        let mut scratch = vec![0; 256 << 10];
        assert_eq!(link.read(&mut scratch), (ReadState::More, STRANGER_BUDGET_BYTES));
        link.set_authenticated();
        link.stream.incoming.extend(&vec![0; 1 << 20]);
        assert_eq!(link.read(&mut scratch), (ReadState::More, READ_BUDGET_BYTES));
    }

    #[test]
    fn output_goes_out_in_order_as_the_peer_takes_it() {
        let mut link = link(&[]);
        for part in [&b"one "[..], b"two ", b"three"] {
            assert!(link.queue(BytesMut::from(part)));
        }
        link.stream.room = 6;
        assert!(!link.write().unwrap());
        assert!(link.blocked);
        link.stream.room = 100;
        assert!(link.write().unwrap());
        assert!(!link.blocked);
        assert_eq!(link.stream.written, b"one two three");
        assert_eq!((link.out.len(), link.buffered_bytes()), (0, 0));
    }

    #[test]
    fn what_was_taken_and_has_not_gone_out_blocks_the_link() {
        let mut link = link(&[]);
        link.stream.room = 100;
        link.stream.waiting = true;
        assert!(link.queue(BytesMut::from(&b"word"[..])));
        assert!(!link.write().unwrap() && link.blocked);
        link.stream.waiting = false;
        assert!(link.write().unwrap() && !link.blocked);
        assert_eq!(link.stream.written, b"word");
    }

    #[test]
    fn a_peer_that_takes_nothing_reaches_a_bound() {
        let mut link = link(&[]);
        let part = BytesMut::zeroed(OUTPUT_BYTES_MAX / 4);
        let taken = (0..5).map(|_| link.queue(part.clone())).collect::<Vec<_>>();
        assert_eq!(taken, [true, true, true, true, false]);
    }
}
