//! A session over a socket that never blocks, itself something to read from and write to that never blocks.
//!
//! **Reading** goes on until the buffer is full or nothing is left, because whoever reads takes a short read for an empty
//! socket. **Writing** takes bytes only while nothing of before is left to be sent: what the socket does not take
//! at once waits here, one piece of at most [`PIECE_BYTES`], and `flush` says `WouldBlock` until it is gone. Before the
//! handshake is over nothing is taken; what the handshake itself has to say goes out whenever either is called.
//!
//! An idle session holds no buffers: bytes are turned in buffers of the thread, and only what is incomplete is kept. The
//! same type is also a plain socket, for connections on loopback that are asked to be.

use std::{
    cell::RefCell,
    fmt,
    io::{self, IoSlice, Read, Write},
};

use rustls::{
    Error,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus},
};
use swarmmq_protocol::limits::UNAUTHENTICATED_BYTES_MAX;

use crate::{Name, TlsError, identity::verified_name};

/// Bytes that are made into records at a time: four whole records.
const PIECE_BYTES: usize = 64 << 10;
/// Ciphertext that is read at a time.
const READ_BYTES: usize = 64 << 10;
/// What records add to a piece, with room for a message of the protocol's own in front.
const OVERHEAD_BYTES: usize = 1 << 10;
/// A slice of this size is worth a record of its own; smaller ones are gathered.
const WHOLE_BYTES: usize = 16 << 10;
/// First byte of whatever a handshake may begin with: an alert, a message (RFC 8446, 5.1).
const RECORD_TYPES: [u8; 2] = [21, 22];

/// What whoever speaks plain text is told: a fatal alert, unexpected_message, in plain text (RFC 8446, 6).
const NO_TLS: [u8; 7] = [21, 3, 3, 0, 2, 2, 10];

/// Buffers that every session of a thread uses, one after the other.
struct Scratch {
    incoming: Vec<u8>,
    gathered: Vec<u8>,
    outgoing: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { incoming: Vec::new(), gathered: Vec::new(), outgoing: Vec::new() })
    };
}

/// A socket, with a session around it or without.
#[derive(Debug)]
pub struct Stream<S> {
    socket: S,
    session: Option<Box<Session>>,
}

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

struct Session {
    side: Side,
    /// Ciphertext that is not a whole record yet.
    partial: Vec<u8>,
    /// Plaintext that did not fit the reader's buffer, and how much of it was read.
    spill: Vec<u8>,
    spill_read: usize,
    /// Ciphertext that the socket has not taken, and how much of it it has.
    unsent: Vec<u8>,
    unsent_written: usize,
    /// Raw bytes that were read while the other end was a stranger; `None` once it is trusted.
    allowance: Option<usize>,
    /// Both ends have proven themselves as far as TLS goes.
    is_established: bool,
    peer: Option<Name>,
    /// Nothing more will come.
    is_ended: bool,
    failure: Option<TlsError>,
    broken: Option<io::ErrorKind>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("is_established", &self.is_established)
            .field("peer", &self.peer)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

/// What the library wants next.
enum Next {
    /// Another look: it did something.
    Again,
    /// It can encrypt, and has nothing more to say.
    Open,
    /// It waits for the other end.
    Waits,
    /// The other end said that nothing more will come.
    Ended,
}

/// Where decrypted bytes go: to the reader first, and behind it what does not fit.
struct Sink<'a> {
    buffer: &'a mut [u8],
    filled: usize,
}

impl<S> Stream<S> {
    /// No session: what is written is what travels.
    pub fn plain(socket: S) -> Self {
        Self { socket, session: None }
    }

    pub(crate) fn client(socket: S, session: UnbufferedClientConnection) -> Self {
        Self { socket, session: Some(Box::new(Session::new(Side::Client(session)))) }
    }

    pub(crate) fn server(socket: S, session: UnbufferedServerConnection) -> Self {
        Self { socket, session: Some(Box::new(Session::new(Side::Server(session)))) }
    }

    /// The socket, to be watched.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// The socket, to be registered. Not to be read from or written to.
    pub fn socket_mut(&mut self) -> &mut S {
        &mut self.socket
    }

    /// Whether a session is being begun; never without one.
    pub fn is_handshaking(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.is_established)
    }

    /// Whether there is a session at all.
    pub fn is_encrypted(&self) -> bool {
        self.session.is_some()
    }

    /// Whose certificate the other end has shown and proven, once the handshake is over.
    pub fn peer(&self) -> Option<&Name> {
        self.session.as_ref()?.peer.as_ref()
    }

    /// Whether plaintext is left that no event of the socket will announce.
    pub fn has_more(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.spill.len() > session.spill_read)
    }

    /// Whether the socket has yet to take something.
    pub fn has_unsent(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.unsent.len() > session.unsent_written)
    }

    /// The other end is known to whoever is above: it may send as much as it likes from now on.
    pub fn trust(&mut self) {
        if let Some(session) = &mut self.session {
            session.allowance = None;
        }
    }

    /// Bytes that it holds in buffers of its own.
    #[cfg(test)]
    pub(crate) fn buffered_bytes(&self) -> usize {
        let kept = |session: &Session| {
            session.partial.capacity() + session.spill.capacity() + session.unsent.capacity()
        };
        self.session.as_deref().map_or(0, kept)
    }

    /// Why the session failed, if it did.
    pub fn failure(&self) -> Option<&TlsError> {
        self.session.as_ref()?.failure.as_ref()
    }
}

impl<S: Read + Write> Stream<S> {
    /// Goes on with the handshake as far as the socket allows, without taking any plaintext. Returns whether it is over.
    pub fn handshake(&mut self) -> io::Result<bool> {
        if self.is_handshaking() {
            match self.read(&mut []) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let is_over = self.session.as_ref().is_none_or(|session| session.is_ended);
            if is_over && self.is_handshaking() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(!self.is_handshaking())
    }

    /// Says that nothing more will come, if the socket takes it at once. An end without it is an end all the same: frames
    /// carry their lengths.
    pub fn close(&mut self) {
        let Some(session) = &mut self.session else { return };
        if !session.is_established || session.failure.is_some() || session.has_unsent() {
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { outgoing, .. } = scratch;
            outgoing.resize(PIECE_BYTES + OVERHEAD_BYTES, 0);
            let kept = &mut session.partial;
            let count = match &mut session.side {
                Side::Client(side) => close_notify(side.process_tls_records(kept), outgoing),
                Side::Server(side) => close_notify(side.process_tls_records(kept), outgoing),
            };
            // The end comes either way.
            let _unsaid = self.socket.write(&outgoing[..count]).is_err();
        });
    }
}

impl<S: Read + Write> Read for Stream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else { return self.socket.read(buffer) };
        SCRATCH.with_borrow_mut(|scratch| session.read(&mut self.socket, buffer, &mut scratch.incoming))
    }
}

impl<S: Read + Write> Write for Stream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else { return self.socket.write(bytes) };
        SCRATCH.with_borrow_mut(|scratch| session.write(&mut self.socket, &[IoSlice::new(bytes)], scratch))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(session) = &mut self.session else { return self.socket.write_vectored(slices) };
        SCRATCH.with_borrow_mut(|scratch| session.write(&mut self.socket, slices, scratch))
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.session {
            Some(session) => session.flush(&mut self.socket),
            None => self.socket.flush(),
        }
    }
}

impl Side {
    /// Whether the library has something to send.
    fn has_words(&self) -> bool {
        match self {
            Self::Client(side) => side.wants_write(),
            Self::Server(side) => side.wants_write(),
        }
    }
}

impl Session {
    fn new(side: Side) -> Self {
        Self {
            side,
            partial: Vec::new(),
            spill: Vec::new(),
            spill_read: 0,
            unsent: Vec::new(),
            unsent_written: 0,
            allowance: Some(UNAUTHENTICATED_BYTES_MAX),
            is_established: false,
            peer: None,
            is_ended: false,
            failure: None,
            broken: None,
        }
    }

    fn has_unsent(&self) -> bool {
        self.unsent.len() > self.unsent_written
    }

    fn read(
        &mut self,
        socket: &mut (impl Read + Write),
        buffer: &mut [u8],
        incoming: &mut Vec<u8>,
    ) -> io::Result<usize> {
        incoming.resize(READ_BYTES, 0);
        let mut sink = Sink { buffer, filled: 0 };
        self.read_spill(&mut sink);
        self.begin();
        while (sink.filled < sink.buffer.len() || !self.is_established)
            && !self.is_ended
            && self.failure.is_none()
            && self.broken.is_none()
        {
            let kept = self.partial.len();
            if kept == READ_BYTES {
                self.failure = Some(TlsError::Broken("a message has no end".into()));
                break;
            }
            incoming[..kept].copy_from_slice(&self.partial);
            // One byte more than it may send shows that it sends too much.
            let room = (READ_BYTES - kept).min(self.allowance.map_or(READ_BYTES, |left| left + 1));
            match socket.read(&mut incoming[kept..kept + room]) {
                Ok(0) => self.is_ended = true,
                Ok(count) => {
                    self.came(&incoming[..count], kept == 0, count);
                    if self.failure.is_none() {
                        let all = kept + count;
                        let used = self.turn(&mut incoming[..all], &mut sink);
                        self.partial.clear();
                        self.partial.extend_from_slice(&incoming[used..all]);
                    }
                    // Short: the socket is empty, and the next event says when it is not.
                    if count < room {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.broken = Some(error.kind()),
            }
        }
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        // Answers of the handshake, new keys, alerts. What is left is for whoever writes next.
        if let Err(error) = self.flush(socket)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.broken = Some(error.kind());
        }
        if sink.filled > 0 {
            return Ok(sink.filled);
        }
        if let Some(failure) = &self.failure {
            return Err(failure.clone().into());
        }
        match (self.is_ended, self.broken) {
            (true, _) => Ok(0),
            (false, Some(kind)) => Err(kind.into()),
            (false, None) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Counts what came from a stranger, and looks whether it is TLS at all.
    fn came(&mut self, bytes: &[u8], is_record_start: bool, count: usize) {
        let Some(left) = self.allowance else { return };
        let is_first = left == UNAUTHENTICATED_BYTES_MAX;
        match left.checked_sub(count) {
            Some(left) => self.allowance = Some(left),
            None => self.failure = Some(TlsError::TooMuch),
        }
        if is_first && is_record_start && !RECORD_TYPES.contains(&bytes[0]) {
            self.failure = Some(TlsError::PlainText);
            self.unsent.extend_from_slice(&NO_TLS);
        }
    }

    fn read_spill(&mut self, sink: &mut Sink<'_>) {
        let left = &self.spill[self.spill_read..];
        let count = left.len().min(sink.buffer.len());
        sink.buffer[..count].copy_from_slice(&left[..count]);
        sink.filled = count;
        self.spill_read += count;
        if self.spill_read == self.spill.len() {
            self.spill = Vec::new();
            self.spill_read = 0;
        }
    }

    /// Takes all whole records from `records`. Returns how many bytes that were.
    fn turn(&mut self, records: &mut [u8], sink: &mut Sink<'_>) -> usize {
        let mut used = 0;
        // After a failure only the alert is fetched that tells the other end why: the library is not to be asked twice about
        // the bytes that it could not read.
        while self.failure.is_none() || self.side.has_words() {
            let left = &mut records[used..];
            let (discard, next) = match &mut self.side {
                Side::Client(side) => {
                    take(side.process_tls_records(left), sink, &mut self.spill, &mut self.unsent)
                }
                Side::Server(side) => {
                    take(side.process_tls_records(left), sink, &mut self.spill, &mut self.unsent)
                }
            };
            used += discard;
            match next {
                Ok(Next::Again) => {}
                Ok(Next::Open | Next::Waits) => break,
                Ok(Next::Ended) => {
                    self.is_ended = true;
                    break;
                }
                Err(error) => {
                    self.failure.get_or_insert_with(|| error.into());
                }
            }
        }
        if !self.is_established && self.failure.is_none() {
            let (is_handshaking, certificates) = match &self.side {
                Side::Client(side) => (side.is_handshaking(), side.peer_certificates()),
                Side::Server(side) => (side.is_handshaking(), side.peer_certificates()),
            };
            if !is_handshaking {
                self.is_established = true;
                self.peer = certificates.and_then(|chain| verified_name(chain.first()?));
            }
        }
        used
    }

    fn write(
        &mut self,
        socket: &mut (impl Read + Write),
        slices: &[IoSlice<'_>],
        scratch: &mut Scratch,
    ) -> io::Result<usize> {
        self.begin();
        self.flush(socket)?;
        if let Some(failure) = &self.failure {
            return Err(failure.clone().into());
        }
        if !self.is_established {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let Scratch { gathered, outgoing, .. } = scratch;
        let first = slices.iter().find(|slice| !slice.is_empty());
        let piece = match first {
            None => return Ok(0),
            Some(slice) if slice.len() >= WHOLE_BYTES => &slice[..slice.len().min(PIECE_BYTES)],
            Some(_) => {
                gathered.clear();
                for slice in slices {
                    let room = PIECE_BYTES - gathered.len();
                    gathered.extend_from_slice(&slice[..slice.len().min(room)]);
                }
                gathered.as_slice()
            }
        };
        let count = self.encrypt(piece, outgoing)?;
        let records = &outgoing[..count];
        let written = match socket.write(records) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(error) => return Err(error),
        };
        // They are taken: with these keys they can be made only once.
        self.unsent.extend_from_slice(&records[written..]);
        Ok(piece.len())
    }

    /// Lets a client's session say its first word.
    fn begin(&mut self) {
        if !self.is_established && self.failure.is_none() {
            let mut kept = std::mem::take(&mut self.partial);
            let used = self.turn(&mut kept, &mut Sink { buffer: &mut [], filled: 0 });
            kept.drain(..used);
            self.partial = kept;
        }
    }

    /// Makes `piece` into records at the front of `outgoing`. Returns how many bytes they have.
    fn encrypt(&mut self, piece: &[u8], outgoing: &mut Vec<u8>) -> io::Result<usize> {
        outgoing.resize(outgoing.len().max(PIECE_BYTES + OVERHEAD_BYTES), 0);
        let mut at = 0;
        // What the library has to say itself comes first, then it is open.
        loop {
            // What is kept goes along each time: the library counts on finding what it has looked at.
            let (discard, done) = match &mut self.side {
                Side::Client(side) => {
                    seal(side.process_tls_records(&mut self.partial), piece, &mut outgoing[at..])
                }
                Side::Server(side) => {
                    seal(side.process_tls_records(&mut self.partial), piece, &mut outgoing[at..])
                }
            };
            self.partial.drain(..discard);
            match done {
                Ok((count, is_sealed)) => {
                    at += count;
                    if is_sealed {
                        return Ok(at);
                    }
                }
                Err(Trouble::Room(bytes)) => outgoing.resize(at + bytes, 0),
                Err(Trouble::Failed(failure)) => {
                    self.failure = Some(failure.clone());
                    return Err(failure.into());
                }
            }
        }
    }

    /// Lets the socket take what is left.
    fn flush(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while self.has_unsent() {
            match socket.write(&self.unsent[self.unsent_written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.unsent_written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.unsent.capacity() > 0 {
            self.unsent = Vec::new();
            self.unsent_written = 0;
        }
        Ok(())
    }
}

/// Does what the library wants, while records are taken.
fn take<D>(
    status: UnbufferedStatus<'_, '_, D>,
    sink: &mut Sink<'_>,
    spill: &mut Vec<u8>,
    unsent: &mut Vec<u8>,
) -> (usize, Result<Next, Error>) {
    let UnbufferedStatus { mut discard, state, .. } = status;
    let next = match state {
        Ok(ConnectionState::ReadTraffic(mut records)) => loop {
            match records.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    let room = &mut sink.buffer[sink.filled..];
                    let fits = record.payload.len().min(room.len());
                    room[..fits].copy_from_slice(&record.payload[..fits]);
                    sink.filled += fits;
                    spill.extend_from_slice(&record.payload[fits..]);
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(Next::Again),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut message)) => {
            let at = unsent.len();
            if let Err(EncodeError::InsufficientSize(size)) = message.encode(&mut []) {
                unsent.resize(at + size.required_size, 0);
                let count = message.encode(&mut unsent[at..]).unwrap_or(0);
                unsent.truncate(at + count);
            }
            Ok(Next::Again)
        }
        // It waits in `unsent`, in order: for the library that is as good as sent.
        Ok(ConnectionState::TransmitTlsData(message)) => {
            message.done();
            Ok(Next::Again)
        }
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Next::Open),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Next::Ended),
        Ok(_) => Ok(Next::Waits),
        Err(error) => Err(error),
    };
    (discard, next)
}

/// Why nothing was encrypted.
enum Trouble {
    /// So many bytes are needed.
    Room(usize),
    Failed(TlsError),
}

/// Encrypts `piece` if the library is open, or else does what it wants first. Returns how much of what was kept is used up,
/// how many bytes were made, and whether the piece is among them.
fn seal<D>(
    status: UnbufferedStatus<'_, '_, D>,
    piece: &[u8],
    into: &mut [u8],
) -> (usize, Result<(usize, bool), Trouble>) {
    let broken = |what: &str| Err(Trouble::Failed(TlsError::Broken(what.into())));
    let done = match status.state {
        Ok(ConnectionState::WriteTraffic(mut open)) => match open.encrypt(piece, into) {
            Ok(count) => Ok((count, true)),
            Err(EncryptError::InsufficientSize(size)) => Err(Trouble::Room(size.required_size)),
            Err(EncryptError::EncryptExhausted) => broken("its keys are used up"),
        },
        Ok(ConnectionState::EncodeTlsData(mut message)) => match message.encode(into) {
            Ok(count) => Ok((count, false)),
            // Asking again would be too late, because the message is gone; there is always room for one.
            Err(_) => broken("a message of its own is too large"),
        },
        Ok(ConnectionState::TransmitTlsData(message)) => {
            message.done();
            Ok((0, false))
        }
        // The other end will send nothing more, and may still take something.
        Ok(ConnectionState::PeerClosed) => Ok((0, false)),
        Ok(_) => broken("it is closed"),
        Err(error) => Err(Trouble::Failed(error.into())),
    };
    (status.discard, done)
}

fn close_notify<D>(status: UnbufferedStatus<'_, '_, D>, into: &mut [u8]) -> usize {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut open)) => open.queue_close_notify(into).unwrap_or(0),
        _ => 0,
    }
}
