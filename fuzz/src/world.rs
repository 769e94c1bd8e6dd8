//! A node stepped by hand, with a disk made of vectors: what histories are played against, and where whole logs, entries and
//! snapshots come from.

use std::{collections::BTreeMap, time::Duration};

use bytes::{Bytes, BytesMut};
use swarmmq_engine::{
    log::{Append, Config as LogConfig, Recovery, Verdict},
    node::{Addresses, Config, ConnectionId, Effects, Input, Node, Now, bug::Bugs},
};
use swarmmq_protocol::{
    access::ROOT,
    envelope::Header,
    frame::{Frame, FrameReader, OpenSession, Publish},
    id::{Address, ClusterId, KeyId, KeyRenewal, NodeId, ProducerEpoch, ProducerId, Salt, Sequence, ShardId},
    mac::{self, MacKey},
    node_key::NodeSecret,
    session::{guard::Source, handshake::ClientHandshake},
    time::{Instant, WallTime},
};

/// Data shards of the little cluster.
pub const SHARDS: u32 = 2;
const SEGMENT_BYTES: u32 = 16 << 10;
/// Looks at a node after which it should have come to rest.
const LOOKS_MAX: usize = 1000;

/// Who it is.
pub fn config() -> Config {
    Config {
        cluster: ClusterId(5),
        node: NodeId(1),
        incarnation: 9,
        boot: 1,
        founder: true,
        open_join: true,
        replicas: 1,
        roles: 7,
        addresses: Addresses::default(),
        shard_count: SHARDS,
        access_token: MacKey::new([1; 32]).into(),
        admission_key: MacKey::new([2; 32]).into(),
        segment_bytes: SEGMENT_BYTES,
        cache_bytes_max: 8 << 10,
        horizon_ahead: 64,
        secret: NodeSecret::new([1; 32]),
        cluster_secret: MacKey::new([3; 32]).into(),
        reserve_bytes: 1000,
        seed: 7,
        version: "fuzzed".into(),
        bugs: Bugs::NONE,
    }
}

/// How its log is named.
pub fn log_config() -> LogConfig {
    LogConfig { segment_bytes: SEGMENT_BYTES, log_id: config().log_id() }
}

const START: Now = Now { monotonic: Instant(1_000_000_000), wall: WallTime(1_000_000) };

/// The node and everything around it.
pub struct World {
    /// The node.
    pub node: Node,
    /// Its segments.
    pub disk: BTreeMap<u32, Vec<u8>>,
    /// Its clocks.
    pub now: Now,
    /// Syncs come back at once unless this is set.
    pub hold_syncs: bool,
    in_flight: Option<Append>,
    inboxes: BTreeMap<ConnectionId, Vec<(u64, Frame)>>,
    connections: u64,
    requests: u64,
}

impl World {
    /// A cluster that was made just now.
    pub fn new() -> Self {
        Self::on(BTreeMap::new(), START)
    }

    fn on(disk: BTreeMap<u32, Vec<u8>>, now: Now) -> Self {
        let config = config();
        let mut recovery = Recovery::new(log_config(), disk.keys().copied().collect());
        let mut restore = Node::restore(config);
        restore.segments(recovery.order());
        for sequence in recovery.order().to_vec() {
            recovery.segment(sequence, &disk[&sequence], &mut |record| restore.record(&record));
        }
        let verdict = recovery.finish();
        assert!(
            !matches!(verdict, Verdict::Corrupt { .. }),
            "what a node wrote and synced is whole: {verdict:?}"
        );
        let node = restore.finish(&verdict, now, &mut |position, length| {
            let from = position.offset as usize;
            Ok(Bytes::copy_from_slice(&disk[&position.segment][from..from + length as usize]))
        });
        let node = node.expect("what a node wrote it can read");
        let mut world = Self {
            node,
            disk,
            now,
            hold_syncs: false,
            in_flight: None,
            inboxes: BTreeMap::new(),
            connections: 0,
            requests: 1,
        };
        world.input(Input::DiskSpace { free_bytes: 1 << 40 });
        world
    }

    /// The process dies and starts again; what was not synced is gone.
    pub fn crash(self) -> Self {
        let now = Now { monotonic: START.monotonic, wall: self.now.wall };
        Self::on(self.disk, now)
    }

    /// Something happens.
    pub fn input(&mut self, input: Input) {
        self.node.handle(self.now, input);
        self.run();
    }

    /// Writes and syncs what is under way.
    pub fn sync(&mut self) {
        let Some(append) = self.in_flight.take() else { return };
        for write in &append.writes {
            let file = self.disk.entry(write.segment).or_insert_with(|| vec![0; SEGMENT_BYTES as usize]);
            let from = write.offset as usize;
            file[from..from + write.bytes.len()].copy_from_slice(&write.bytes);
        }
        self.node.handle(self.now, Input::Synced { batch: append.batch });
    }

    /// Carries out effects until there are none.
    pub fn run(&mut self) {
        for _ in 0..LOOKS_MAX {
            let mut effects = Effects::default();
            self.node.flush(self.now, &mut effects);
            let idle = effects.append.is_none() && effects.reads.is_empty() && self.in_flight.is_none();
            if let Some(append) = effects.append {
                self.in_flight = Some(append);
            }
            for read in effects.reads {
                let (from, length) = (read.position.offset as usize, read.length as usize);
                let bytes = &self.disk[&read.position.segment][from..];
                let bytes = Bytes::copy_from_slice(&bytes[..length.min(bytes.len())]);
                self.node.handle(self.now, Input::Read { ticket: read.ticket, result: Ok(bytes) });
            }
            for segment in effects.release {
                self.disk.remove(&segment);
            }
            for (connection, bytes) in effects.sends {
                let mut reader = FrameReader::new();
                reader.set_authenticated();
                reader.buffer().extend_from_slice(&bytes);
                while let Some((header, body)) = reader.next_frame().expect("a node's frames are whole") {
                    let frame = Frame::decode(header.kind, body).expect("a node's frames read");
                    if let Some(inbox) = self.inboxes.get_mut(&connection) {
                        inbox.push((header.request, frame));
                    }
                }
            }
            for connection in effects.closes {
                self.inboxes.remove(&connection);
            }
            if self.hold_syncs || idle {
                return;
            }
            self.sync();
        }
        panic!("the node never comes to rest");
    }

    /// Lets time pass, waking the node as it wishes, at most a hundred times.
    pub fn pass(&mut self, duration: Duration) {
        let until = self.now.monotonic + duration;
        for _ in 0..100 {
            let Some(at) = self.node.next_wake().filter(|at| *at <= until) else { break };
            let step = at.max(self.now.monotonic).since(self.now.monotonic).max(Duration::from_millis(1));
            self.now = Now { monotonic: self.now.monotonic + step, wall: self.now.wall.plus(step) };
            self.input(Input::Woken);
        }
        if self.now.monotonic < until {
            let step = until.since(self.now.monotonic);
            self.now = Now { monotonic: until, wall: self.now.wall.plus(step) };
        }
        self.input(Input::Woken);
    }

    /// A client that has said nothing.
    pub fn stranger(&mut self) -> ConnectionId {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        self.inboxes.insert(connection, Vec::new());
        self.input(Input::Connected { connection, source: Source([7; 16]), nonce: [3; 32] });
        connection
    }

    /// A client that has proven itself.
    pub fn client(&mut self) -> ConnectionId {
        let connection = self.stranger();
        let mut out = BytesMut::new();
        let mut handshake = ClientHandshake::start(MacKey::new([1; 32]), ROOT, [4; 32], &mut out);
        for _ in 0..2 {
            self.bytes(connection, &out.split());
            for (request, frame) in self.take(connection) {
                let mut bytes = BytesMut::new();
                frame.encode(request, &mut bytes);
                let mut reader = FrameReader::new();
                reader.buffer().extend_from_slice(&bytes);
                let (header, body) = reader.next_frame().expect("just written").expect("whole");
                handshake.frame(header, body, &mut out).expect("the token is right");
            }
        }
        assert!(self.node.is_authenticated(connection), "an honest client gets in");
        connection
    }

    /// Whether the node keeps the connection.
    pub fn is_open(&self, connection: ConnectionId) -> bool {
        self.inboxes.contains_key(&connection)
    }

    /// What came for it.
    pub fn take(&mut self, connection: ConnectionId) -> Vec<(u64, Frame)> {
        self.inboxes.get_mut(&connection).map(std::mem::take).unwrap_or_default()
    }

    /// Bytes of a client arrive, framed as a node's shell frames them.
    pub fn bytes(&mut self, connection: ConnectionId, bytes: &[u8]) {
        if !self.is_open(connection) {
            return;
        }
        let mut reader = FrameReader::new();
        if self.node.is_authenticated(connection) {
            reader.set_authenticated();
        }
        reader.buffer().extend_from_slice(bytes);
        loop {
            match reader.next_frame() {
                Ok(Some((header, body))) if self.is_open(connection) => {
                    self.input(Input::Frame { connection, header, body });
                }
                Ok(_) => return,
                Err(error) => {
                    self.input(Input::Malformed { connection, error });
                    return;
                }
            }
        }
    }

    /// A client says something.
    pub fn send(&mut self, connection: ConnectionId, frame: &Frame) -> u64 {
        self.requests += 1;
        let mut bytes = BytesMut::new();
        frame.encode(self.requests, &mut bytes);
        self.bytes(connection, &bytes);
        self.requests
    }

    /// A client is gone.
    pub fn disconnect(&mut self, connection: ConnectionId) {
        if self.inboxes.remove(&connection).is_some() {
            self.input(Input::Disconnected { connection });
        }
    }
}

/// A producer that counts by itself, of the address `a`.
pub struct Sender {
    producer: ProducerId,
    sequence: u64,
}

const DEADLINE: Duration = Duration::from_secs(30);

impl Sender {
    /// Of this number.
    pub fn new(number: u128) -> Self {
        Self { producer: ProducerId(number), sequence: 0 }
    }

    fn shard() -> ShardId {
        mac::ring(&Address::parse("a").expect("an address"), None, SHARDS)
    }

    /// Opens its session.
    pub fn open(&self) -> Frame {
        Frame::OpenSession(OpenSession {
            shard: Self::shard(),
            producer: self.producer,
            epoch: ProducerEpoch(1),
            salt: Salt([self.producer.0 as u8; 32]),
            created_at: WallTime(1_000_000),
            deadline: DEADLINE,
        })
    }

    /// Its next message, of `bytes` bytes.
    pub fn publish(&mut self, bytes: usize) -> Frame {
        self.sequence += 1;
        let header = Header {
            address: "a",
            shard: Self::shard(),
            key_id: KeyId(1),
            renewal: KeyRenewal(0),
            producer: self.producer,
            epoch: ProducerEpoch(1),
            sequence: Sequence(self.sequence),
            salt: Salt([self.producer.0 as u8; 32]),
            published_at: WallTime(1_000_000),
            key_hash: None,
            trace: None,
        };
        let mut sealed = Vec::new();
        header.encode(bytes as u32 + 16, &mut sealed);
        sealed.extend((0..bytes + 16).map(|at| at as u8));
        let mac = MacKey::new([2; 32]).sign(&[&sealed]);
        sealed.extend(mac);
        Frame::Publish(Publish {
            shard: Self::shard(),
            deadline: DEADLINE,
            count: 1,
            messages: sealed.into(),
        })
    }
}
