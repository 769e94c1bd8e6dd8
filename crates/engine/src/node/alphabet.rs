//! Everything that can come into a node and everything a node can wish for, in one small file.

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    error::Code,
    id::{ClusterId, NodeId},
    mac::DualKey,
    node_key::NodeSecret,
    packet::Packet,
    session::{guard::Source, peer::PeerHello},
    time::{Instant, WallTime},
};

use super::audit::AuditRecord;
use crate::log::{Append, Position};

/// One client connection, numbered by whoever accepts it; never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Both clocks, read together once per burst of inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic: deadlines, leases, timeouts.
    pub monotonic: Instant,
    /// Wall clock: stamps only.
    pub wall: WallTime,
}

/// Where a node listens, as host:port; empty where it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For clients.
    pub client: String,
    /// For other nodes.
    pub peer: String,
    /// For datagrams of other nodes.
    pub gossip: String,
    /// For people and probes.
    pub admin: String,
}

/// Who this node is and what it may use. Fixed while it runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Its number.
    pub node: NodeId,
    /// Which life of its disk; drawn at random when the disk was first used.
    pub incarnation: u64,
    /// Which start of its process on this disk.
    pub boot: u64,
    /// Its disk made the cluster: without a log its shards begin here, with this node as their only replica.
    pub founder: bool,
    /// Copies of each shard in a cluster that is made now: 1, 3 or 5.
    pub replicas: u8,
    /// Whether nodes may join a cluster that is made now without a join token.
    pub open_join: bool,
    /// What it does: [`PeerHello::INGRESS`], [`PeerHello::ROUTER`], [`PeerHello::STORE`], added up.
    pub roles: u8,
    /// Where it listens, for others to know.
    pub addresses: Addresses,
    /// Data shards of the cluster; fixed when the cluster is made.
    pub shard_count: u32,
    /// The access token: root's, and what the tokens of all other principals are derived from.
    pub access_token: DualKey,
    /// Admission key: verifies sealed messages without being able to open them.
    pub admission_key: DualKey,
    /// Bytes of one log segment.
    pub segment_bytes: u32,
    /// Payload bytes kept in memory for delivery without reading the disk.
    pub cache_bytes_max: usize,
    /// How far ahead of deliveries the horizon is logged, in messages: more costs fewer entries, and more messages that
    /// wait for re-claims after a restart.
    pub horizon_ahead: u64,
    /// Its own secret, whose public half other nodes know it by.
    pub secret: NodeSecret,
    /// What all nodes of the cluster have and nobody else; goes into the keys of their datagrams.
    pub cluster_secret: DualKey,
    /// Free bytes on the disk below which publishes are refused.
    pub reserve_bytes: u64,
    /// Seed of everything random that is no secret: election timeouts, jitter.
    pub seed: u64,
    /// Shown in status.
    pub version: String,
    /// Classic mistakes planted on purpose; always empty outside the simulator.
    pub bugs: crate::node::bug::Bugs,
}

/// What can happen to a node.
#[derive(Debug)]
pub enum Input {
    /// A client connected. `nonce` is 32 fresh random bytes for the handshake.
    Connected {
        /// The new connection.
        connection: ConnectionId,
        /// Fresh randomness.
        nonce: [u8; 32],
        /// Where it comes from.
        source: Source,
    },
    /// A client has shown a certificate and proven to have its key. Before any frame of its.
    Certified {
        /// Whose connection.
        connection: ConnectionId,
        /// Whose certificate.
        name: String,
    },
    /// Other keys count from now on than those of the configuration.
    Keys {
        /// See [`Config::access_token`].
        access_token: DualKey,
        /// See [`Config::admission_key`].
        admission_key: DualKey,
        /// See [`Config::cluster_secret`].
        cluster_secret: DualKey,
    },
    /// Somebody was turned away at the port for nodes.
    PeerRefused {
        /// Where it came from.
        source: Option<Source>,
        /// Which node it said it was. `None`: it did not come to that.
        node: Option<NodeId>,
        /// Why.
        code: Code,
    },
    /// One whole frame arrived (framing and length limits are checked by `protocol::frame::FrameReader`).
    Frame {
        /// From where.
        connection: ConnectionId,
        /// Its header.
        header: swarmmq_protocol::frame::FrameHeader,
        /// Its body.
        body: Bytes,
    },
    /// The bytes of a connection broke framing; it will be told and closed.
    Malformed {
        /// From where.
        connection: ConnectionId,
        /// What was wrong.
        error: swarmmq_protocol::frame::FrameError,
    },
    /// The connection is gone.
    Disconnected {
        /// Which.
        connection: ConnectionId,
    },
    /// A batch of the log is on stable storage.
    Synced {
        /// As named in [`Append::batch`].
        batch: u64,
    },
    /// A write or sync failed. The log stops for good; nothing is retried.
    DiskFailed {
        /// For people.
        what: String,
    },
    /// A read came back.
    Read {
        /// As named in [`ReadRequest::ticket`].
        ticket: u64,
        /// The bytes asked for, or why not.
        result: Result<Bytes, String>,
    },
    /// Space on the log's disk, reported about once a second and after each change of segments.
    DiskSpace {
        /// Bytes free for us.
        free_bytes: u64,
    },
    /// What there is to say about the end of this node's certificate. `None`: nothing any more.
    Certificate {
        /// For people.
        warning: Option<String>,
    },
    /// A link to another node is up, in both directions.
    PeerUp {
        /// What it said of itself, and proved that it may.
        hello: PeerHello,
    },
    /// A link is down.
    PeerDown {
        /// To whom.
        node: NodeId,
        /// Its process has ended: its host said so itself, by refusing a connection (safety rule 21).
        gone: bool,
    },
    /// A packet arrived over a link.
    Packet {
        /// From which neighbour.
        from: NodeId,
        /// Whole.
        packet: Packet,
    },
    /// A datagram arrived, from whoever.
    Datagram {
        /// All of it.
        bytes: Bytes,
    },
    /// Stop taking work, tell clients to go away, finish what is under way.
    Drain,
    /// Time passed; [`super::Node::next_wake`] said when to come.
    Woken,
}

/// Bytes of the log that are needed and not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Names the answer.
    pub ticket: u64,
    /// Where.
    pub position: Position,
    /// How many bytes.
    pub length: u32,
}

/// A node with which a link is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Which.
    pub node: NodeId,
    /// Where it listens for nodes.
    pub peer: String,
    /// Where it takes datagrams.
    pub gossip: String,
}

/// What a node wants done. The shell carries it out in the order of the fields; the lists keep their order.
#[derive(Debug, Default)]
pub struct Effects {
    /// At most one batch: write all of it, then `fdatasync`, then report [`Input::Synced`].
    pub append: Option<Append>,
    /// Reads; answered by [`Input::Read`] in any order.
    pub reads: Vec<ReadRequest>,
    /// Segments that hold nothing needed any more: their files may be recycled. Already durable.
    pub release: Vec<u32>,
    /// Encoded frames, appended to what the connection has not taken yet.
    pub sends: Vec<(ConnectionId, BytesMut)>,
    /// Packets, each for the neighbour that is its next hop. Those of one class and one neighbour keep their order.
    pub packets: Vec<(NodeId, Packet)>,
    /// Datagrams, each for the place where its node takes them. They may get lost.
    pub datagrams: Vec<(NodeId, Bytes)>,
    /// With whom links are wanted, and where they listen. Set when that changed.
    pub peers: Option<Vec<Neighbour>>,
    /// Nodes whose links are to end: they are no members, and were not let in.
    pub unwanted: Vec<NodeId>,
    /// Lines for the audit log.
    pub audit: Vec<AuditRecord>,
    /// Connections to close after their pending bytes went out.
    pub closes: Vec<ConnectionId>,
    /// The disk was rolled back: the process is to end, and to come back with a new disk incarnation (safety rule 14).
    pub lost_disk: bool,
    /// Draining is complete; the process may end.
    pub drained: bool,
    /// Shards, by position, that were looked at; all others are as they were. For whoever watches, nothing to be done.
    pub touched: Vec<usize>,
}
