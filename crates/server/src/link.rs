//! One client's socket: bytes to frames, frames to bytes. Idle links hold no buffers.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read, Write},
};

use bytes::{Buf, Bytes, BytesMut};
use mio::net::TcpStream;
use swarmmq_protocol::frame::{FrameError, FrameHeader, FrameReader};

/// Bytes read from one link before others get their turn.
const READ_BUDGET_BYTES: usize = 1 << 20;
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

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) stream: TcpStream,
    reader: FrameReader,
    out: VecDeque<BytesMut>,
    out_bytes: usize,
    /// Waiting for the socket to take more.
    pub(crate) blocked: bool,
    pub(crate) closing: bool,
}

impl Link {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            reader: FrameReader::new(),
            out: VecDeque::new(),
            out_bytes: 0,
            blocked: false,
            closing: false,
        }
    }

    /// Full frames are allowed from now on.
    pub(crate) fn set_authenticated(&mut self) {
        self.reader.set_authenticated();
    }

    /// Reads what is there, through `scratch`. `to_end`: the peer has closed its side, so there is an end to find.
    pub(crate) fn read(&mut self, scratch: &mut [u8], to_end: bool) -> ReadState {
        let mut budget = READ_BUDGET_BYTES;
        while budget > 0 {
            match self.stream.read(scratch) {
                Ok(0) => return ReadState::Closed,
                Ok(count) => {
                    self.reader.buffer().extend_from_slice(&scratch[..count]);
                    budget = budget.saturating_sub(count);
                    if count < scratch.len() && !to_end {
                        // A short read means the socket is empty; the next event says when it is not.
                        return ReadState::Drained;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return ReadState::Drained,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return ReadState::Closed,
            }
        }
        ReadState::More
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
        self.out_bytes += bytes.len();
        self.out.push_back(bytes);
        self.out_bytes <= OUTPUT_BYTES_MAX
    }

    /// Writes what the socket takes. Returns whether everything went out.
    pub(crate) fn write(&mut self) -> io::Result<bool> {
        while !self.out.is_empty() {
            let slices: Vec<IoSlice<'_>> =
                self.out.iter().take(SLICES_MAX).map(|bytes| IoSlice::new(bytes)).collect();
            match self.stream.write_vectored(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(mut count) => {
                    self.out_bytes -= count;
                    while count > 0 {
                        let front = self.out.front_mut().expect("what was written came from here");
                        let part = count.min(front.len());
                        front.advance(part);
                        count -= part;
                        if front.is_empty() {
                            self.out.pop_front();
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.blocked = false;
        Ok(true)
    }
}
