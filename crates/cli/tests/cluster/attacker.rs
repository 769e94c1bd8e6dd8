//! Somebody who speaks the protocol byte by byte, and not as agreed. Has whatever a client's keyring holds, if it wants to.

use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use bytes::BytesMut;
use swarmmq_protocol::{
    admin::Order,
    error::{Code, Outcome},
    frame::{Frame, FrameReader, OpenSession, Publish, Published, Resolve},
    id::{Address, ProducerEpoch, ProducerId, Salt, Sequence, ShardId},
    mac::{MacKey, ring},
    session::handshake::ClientHandshake,
    time::WallTime,
};
use swarmmq_seal::{ClientKeyring, Draft, Sealer};

use crate::cluster::Dev;

/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(10);

/// One TCP connection to a node.
pub struct Attacker {
    pub stream: TcpStream,
    reader: FrameReader,
    next: u64,
}

impl Attacker {
    /// Connects, and says nothing.
    pub fn stranger(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, reader: FrameReader::new(), next: 1 }
    }

    /// Connects and proves itself, as a client does.
    pub fn client(address: &str, keyring: &ClientKeyring) -> Self {
        let mut attacker = Self::stranger(address);
        let mut out = BytesMut::new();
        let mut handshake =
            ClientHandshake::start(keyring.access_token(), keyring.principal(), [7; 32], &mut out);
        loop {
            attacker.stream.write_all(&out.split()).unwrap();
            let (header, body) = attacker.next_raw().expect("the node answers");
            if handshake.frame(header, body, &mut out).expect("the node lets us in").is_some() {
                attacker.reader.set_authenticated();
                return attacker;
            }
        }
    }

    fn next_raw(&mut self) -> Option<(swarmmq_protocol::frame::FrameHeader, bytes::Bytes)> {
        let mut buffer = [0; 64 << 10];
        loop {
            if let Some(frame) = self.reader.next_frame().expect("a node's frames are whole") {
                return Some(frame);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(taken) => self.reader.buffer().extend_from_slice(&buffer[..taken]),
                // It was cut off while bytes of ours were under way.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// The next frame of the node; `None`: it closed the connection.
    pub fn next(&mut self) -> Option<(u64, Frame)> {
        let (header, body) = self.next_raw()?;
        Some((header.request, Frame::decode(header.kind, body).expect("a node's frames read")))
    }

    /// Sends bytes as they are. The node may have closed the connection already.
    pub fn bytes(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends a frame and waits for its answer; `None`: the node closed the connection.
    pub fn ask(&mut self, frame: &Frame) -> Option<Frame> {
        let request = self.next;
        self.next += 1;
        let mut bytes = BytesMut::new();
        frame.encode(request, &mut bytes);
        if !self.bytes(&bytes) {
            return None;
        }
        loop {
            let (of, answer) = self.next()?;
            if of == request {
                return Some(answer);
            }
        }
    }
}

/// A producer whose messages are its own to change before they go.
pub struct Forger {
    pub address: Address,
    pub shard: ShardId,
    pub producer: ProducerId,
    sealer: Sealer,
    sequence: u64,
}

impl Forger {
    /// Makes the address and opens a session, as agreed.
    pub fn new(attacker: &mut Attacker, keyring: &ClientKeyring, address: &str, producer: u128) -> Self {
        let address = Address::parse(address).unwrap();
        let resolve =
            Resolve { address: address.clone(), create: true, order: Some(Order::Total), deadline: DEADLINE };
        let Some(Frame::Resolved(resolved)) = attacker.ask(&Frame::Resolve(resolve)) else {
            panic!("the address is not there")
        };
        let shard = ring(&address, None, resolved.shard_count);
        let producer = ProducerId(producer);
        let (epoch, salt) = (ProducerEpoch(1), Salt([producer.0 as u8; 32]));
        let open = OpenSession { shard, producer, epoch, salt, created_at: now(), deadline: DEADLINE };
        let answer = attacker.ask(&Frame::OpenSession(open));
        assert!(matches!(&answer, Some(Frame::Answer(answer)) if answer.code == 0), "{answer:?}");
        Self { address, shard, producer, sealer: Sealer::new(keyring, producer, epoch, salt), sequence: 0 }
    }

    /// Its next message, sealed.
    pub fn seal(&mut self, body: &[u8]) -> Vec<u8> {
        self.sequence += 1;
        self.seal_as(self.sequence, body)
    }

    /// A message of any sequence.
    pub fn seal_as(&mut self, sequence: u64, body: &[u8]) -> Vec<u8> {
        let draft = Draft {
            address: &self.address,
            shard: self.shard,
            sequence: Sequence(sequence),
            key: None,
            headers: &[],
            body,
            published_at: now(),
            trace: None,
            compress: false,
        };
        self.sealer.seal(&draft).unwrap().to_vec()
    }

    /// Sends one sealed message and tells its fate, why, and whether it was there before; `None`: the connection was closed.
    pub fn publish(&self, attacker: &mut Attacker, sealed: &[u8]) -> Option<(Outcome, Option<Code>, bool)> {
        let messages = bytes::Bytes::copy_from_slice(sealed);
        let frame = Frame::Publish(Publish { shard: self.shard, deadline: DEADLINE, count: 1, messages });
        match attacker.ask(&frame)? {
            Frame::Published(Published { runs }) => {
                Some((runs[0].outcome, Code::from_number(runs[0].code), runs[0].duplicate))
            }
            Frame::Answer(answer) => Some((answer.outcome, Code::from_number(answer.code), false)),
            other => panic!("{other:?}"),
        }
    }
}

fn now() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    WallTime(since.as_millis() as u64)
}

/// The keyring of a local cluster's clients.
pub fn keyring(dev: &Dev) -> ClientKeyring {
    ClientKeyring::load(&dev.directory().join("client.keyring")).unwrap()
}

/// The admission key out of the keyring file: what a node holds too.
pub fn admission_key(dev: &Dev) -> MacKey {
    let text = fs::read_to_string(dev.directory().join("client.keyring")).unwrap();
    let line = text.lines().find(|line| line.starts_with("admission_key")).unwrap();
    let digits = line.split('"').nth(1).unwrap();
    let mut key = [0; 32];
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap();
    }
    MacKey::new(key)
}
