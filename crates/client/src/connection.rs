//! One TCP connection, encrypted and authenticated: bytes to frames, frames to bytes.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use swarmmq_protocol::{
    error::Code,
    frame::{self, FrameError, FrameHeader, FrameKind, FrameReader, Ping},
    session::{
        handshake::{ClientHandshake, ClientReady, HandshakeError},
        silence::{Bounds, Silence, Verdict},
    },
};
use swarmmq_seal::{ClientCertificate, ClientKeyring, Trust};
use swarmmq_tls::{Connector, Identity, Stream, TlsError};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{Error, driver::Clock};

/// Time for one attempt, from the first packet to the proof of both ends.
pub(crate) const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
const READ_BYTES: usize = 128 << 10;

/// First two bytes of an alert (RFC 8446, 5.1), which no frame begins with: what a TLS port says to plain text.
const TLS_ALERT: [u8; 2] = [21, 3];

/// As whom to connect, and whom to believe.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    keyring: ClientKeyring,
    security: Security,
}

#[derive(Clone, Debug)]
enum Security {
    InsecurePlaintext,
    Tls(Arc<Connector>),
    /// With a certificate, which is read for every connection: it may be renewed at any time.
    Certified {
        authorities: String,
        certificate: ClientCertificate,
    },
}

/// The certificate as it is now.
fn certified(authorities: &str, paths: &ClientCertificate) -> Result<Connector, Error> {
    let identity = Identity::load_for(&paths.certificate, &paths.key, authorities.as_bytes());
    identity
        .and_then(|identity| Connector::new(authorities.as_bytes(), Some(&identity)))
        .map_err(|error| Error::Trust(error.to_string()))
}

impl Access {
    /// As the keyring says.
    pub(crate) fn new(keyring: &ClientKeyring) -> Result<Self, Error> {
        let security = match keyring.trust() {
            Trust::InsecurePlaintext => Security::InsecurePlaintext,
            Trust::Authorities(pem) => match keyring.certificate() {
                None => {
                    let connector = Connector::new(pem.as_bytes(), None);
                    Security::Tls(Arc::new(connector.map_err(|error| Error::Trust(error.to_string()))?))
                }
                Some(certificate) => {
                    certified(pem, &certificate)?;
                    Security::Certified { authorities: pem.clone(), certificate }
                }
            },
            Trust::Unsaid => return Err(Error::Trust("it names no authority to know nodes by".into())),
        };
        Ok(Self { keyring: keyring.clone(), security })
    }

    /// Whether this address may be tried at all: plain text is not even offered beyond loopback.
    fn check(&self, server: &str) -> Result<(), ConnectError> {
        let address = server.parse::<SocketAddr>().map(|address| address.ip());
        match (&self.security, address) {
            (Security::InsecurePlaintext, Ok(ip)) if !ip.is_loopback() => Err(not_on_loopback(server)),
            _ => Ok(()),
        }
    }

    fn secure(&self, server: &str, socket: TcpStream) -> Result<Stream<Socket>, ConnectError> {
        let peer: IpAddr = socket.peer_addr()?.ip();
        match &self.security {
            Security::Tls(connector) => connect(connector, server, socket),
            Security::Certified { authorities, certificate } => {
                // Whoever renews it may not be done.
                let connector = certified(authorities, certificate)
                    .map_err(|error| ConnectError::Io(error.to_string()))?;
                connect(&connector, server, socket)
            }
            Security::InsecurePlaintext if peer.is_loopback() => Ok(Stream::plain(Socket(socket))),
            // A name that led elsewhere.
            Security::InsecurePlaintext => Err(not_on_loopback(server)),
        }
    }
}

fn connect(connector: &Connector, server: &str, socket: TcpStream) -> Result<Stream<Socket>, ConnectError> {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    connector.connect(Socket(socket), host).map_err(|error| untrusted(server, error))
}

/// A socket of the runtime that never blocks.
#[derive(Debug)]
struct Socket(TcpStream);

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a connection attempt failed.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// Perhaps another time, or another server.
    Io(String),
    /// Trying again will not help.
    Refused(Error),
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// An open connection.
pub(crate) struct Connection {
    server: String,
    stream: Stream<Socket>,
    reader: FrameReader,
    /// What waits to be written. Bounded by what makes it: windows, credit, and questions that somebody awaits.
    pub(crate) out: BytesMut,
    scratch: Vec<u8>,
    clock: Clock,
    silence: Silence,
}

impl Connection {
    /// Connects and proves both ends, at the latest at `deadline`.
    pub(crate) async fn open(
        server: String,
        access: Access,
        deadline: Instant,
        clock: Clock,
    ) -> Result<(Self, ClientReady), ConnectError> {
        access.check(&server)?;
        let late = |_| ConnectError::Io(format!("{server} does not answer"));
        let failed = |error: io::Error| ConnectError::Io(format!("{server}: {error}"));
        let stream =
            timeout_at(deadline, TcpStream::connect(&server)).await.map_err(late)?.map_err(failed)?;
        stream.set_nodelay(true)?;
        let stream = access.secure(&server, stream)?;
        let mut connection = Self {
            server: server.clone(),
            stream,
            reader: FrameReader::new(),
            out: BytesMut::new(),
            scratch: vec![0; READ_BYTES],
            clock,
            silence: Silence::new(clock.now()),
        };
        let ready = timeout_at(deadline, connection.handshake(&access)).await.map_err(late)??;
        connection.silence = Silence::new(clock.now());
        Ok((connection, ready))
    }

    async fn handshake(&mut self, access: &Access) -> Result<ClientReady, ConnectError> {
        let server = self.server.clone();
        let failed = |error: io::Error| match TlsError::of(&error) {
            Some(failure) => untrusted(&server, failure.clone()),
            None => ConnectError::from(error),
        };
        while !self.stream.handshake().map_err(failed)? {
            if self.stream.has_unsent() {
                self.stream.socket().0.writable().await?;
            } else {
                self.stream.socket().0.readable().await?;
            }
        }
        let (token, principal) = (access.keyring.access_token(), access.keyring.principal());
        let mut handshake = if access.keyring.certificate().is_some() {
            ClientHandshake::start_certified(principal, crate::random(), &mut self.out)
        } else {
            ClientHandshake::start(token, principal, crate::random(), &mut self.out)
        };
        loop {
            while self.has_output() {
                self.stream.socket().0.writable().await?;
                self.write().map_err(failed)?;
            }
            if !self.stream.has_more() {
                self.stream.socket().0.readable().await?;
            }
            if !self.read().map_err(failed)? {
                return Err(ConnectError::Io("the server closed the connection".into()));
            }
            if !self.stream.is_encrypted() && self.reader.buffer().starts_with(&TLS_ALERT) {
                return Err(untrusted(&server, TlsError::SpeaksTls));
            }
            while let Some((header, body)) =
                self.next_frame().map_err(|error| ConnectError::Io(error.to_string()))?
            {
                match handshake.frame(header, body, &mut self.out) {
                    Ok(None) => {}
                    Ok(Some(ready)) => {
                        self.reader.set_authenticated();
                        self.stream.trust();
                        return Ok(ready);
                    }
                    Err(error) => return Err(refusal(error)),
                }
            }
        }
    }

    /// Waits until the socket can be read, or written if there is output.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        if self.stream.has_more() {
            return Ok(());
        }
        let interest =
            if self.has_output() { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.stream.socket().0.ready(interest).await.map(|_| ())
    }

    /// The same, for whoever waits for several at a time: only the latest waker is remembered.
    pub(crate) fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        let socket = &self.stream.socket().0;
        let readable = self.stream.has_more() || socket.poll_read_ready(context).is_ready();
        let writable = self.has_output() && socket.poll_write_ready(context).is_ready();
        if readable || writable { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Where it was made to.
    pub(crate) fn server(&self) -> &String {
        &self.server
    }

    /// Asks a peer that is quiet whether it lives, as request `request`, and tells what its silence means.
    pub(crate) fn look(&mut self, bounds: Bounds, request: u64) -> Verdict {
        let verdict = self.silence.look(self.clock.now(), bounds);
        if verdict == Verdict::Ask {
            frame::encode(&Ping, request, &mut self.out);
        }
        verdict
    }

    /// When [`Connection::look`] may have something new to say.
    pub(crate) fn next_look(&self, bounds: Bounds) -> Instant {
        self.clock.at(self.silence.next_look(self.clock.now(), bounds))
    }

    /// Reads what is there. False: the peer closed.
    pub(crate) fn read(&mut self) -> io::Result<bool> {
        loop {
            match self.stream.read(&mut self.scratch) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    self.silence.heard(self.clock.now());
                    self.reader.buffer().extend_from_slice(&self.scratch[..count]);
                    if count < self.scratch.len() {
                        return Ok(true);
                    }
                    if self.reader.buffer().len() > 4 * READ_BYTES {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next whole frame that was read.
    pub(crate) fn next_frame(&mut self) -> Result<Option<(FrameHeader, Bytes)>, FrameError> {
        let next = self.reader.next_frame();
        match &next {
            Ok(Some((header, _))) if header.kind == FrameKind::Pong => self.silence.lives(),
            Ok(Some(_)) => self.silence.news(),
            Ok(None) => {
                let missing = self.reader.missing();
                self.reader.buffer().reserve(missing);
            }
            Err(_) => {}
        }
        next
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.out.is_empty() || self.stream.has_unsent()
    }

    /// Something other than a question or its answer is being sent.
    pub(crate) fn said(&mut self) {
        self.silence.said(self.clock.now());
    }

    /// Whether the peer was asked whether it lives, and has said nothing since.
    pub(crate) fn is_asked(&self) -> bool {
        self.silence.is_asked()
    }

    /// Writes what the socket takes.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.out.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        match self.stream.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stream.close();
    }
}

fn not_on_loopback(server: &str) -> ConnectError {
    let why = format!("it says insecure_plaintext, and {server} is not on loopback");
    ConnectError::Refused(Error::Trust(why))
}

/// A node that is not believed, or does not believe: trying again does not help, another server may.
fn untrusted(server: &str, error: TlsError) -> ConnectError {
    ConnectError::Refused(Error::Untrusted { server: server.to_owned(), error })
}

fn refusal(error: HandshakeError) -> ConnectError {
    let code = error.code();
    let message = match &error {
        HandshakeError::Refused { message, .. } => message.clone(),
        other => other.to_string(),
    };
    match code {
        // A node that is stopping, or one whose bytes make no sense: another may do better.
        Code::Draining | Code::Busy | Code::NotLeader | Code::Malformed | Code::Throttled => {
            ConnectError::Io(message)
        }
        _ => ConnectError::Refused(Error::Failed { code, message }),
    }
}
