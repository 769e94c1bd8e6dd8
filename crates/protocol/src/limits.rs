//! Every bound on what may travel or be remembered, and the relations between them.

use std::time::Duration;

/// Longest address, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// Longest segment of an address, and longest group name, in bytes.
pub const SEGMENT_BYTES_MAX: usize = 64;
/// Body plus sealed headers of one message, in bytes, before sealing.
pub const PLAINTEXT_BYTES_MAX: usize = 1 << 20;
/// Clear header of one message, in bytes.
pub const HEADER_BYTES_MAX: usize = 4 << 10;
/// Most user headers on one message.
pub const USER_HEADERS_MAX: usize = 32;
/// All user headers of one message together, names and values, in bytes.
pub const USER_HEADERS_BYTES_MAX: usize = 8 << 10;
/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 256;
/// AES-GCM tag, in bytes.
pub const TAG_BYTES: usize = 16;
/// Admission MAC, in bytes.
pub const MAC_BYTES: usize = 32;
/// What the sealed plaintext adds to body and user headers: counts, lengths, the key.
pub const PLAINTEXT_FRAMING_BYTES_MAX: usize = KEY_BYTES_MAX + 2 + 1 + 2 + USER_HEADERS_MAX * 4;
/// Ciphertext with tag, in bytes.
pub const CIPHERTEXT_BYTES_MAX: usize = PLAINTEXT_BYTES_MAX + PLAINTEXT_FRAMING_BYTES_MAX + TAG_BYTES;
/// One sealed message: clear header, ciphertext with tag, admission MAC.
pub const SEALED_BYTES_MAX: usize = HEADER_BYTES_MAX + CIPHERTEXT_BYTES_MAX + MAC_BYTES;
/// Body of one frame, in bytes, after authentication.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// Body of one packet between nodes, in bytes. It must hold a full publish frame with what consensus adds.
pub const PACKET_BYTES_MAX: usize = 8 << 20;
/// One datagram between nodes, whole, in bytes: what every network takes in one piece, also inside tunnels.
pub const DATAGRAM_BYTES_MAX: usize = 1200;
/// One signed statement in a datagram, in bytes. The header, the MAC and two digest entries go beside it.
pub const DATAGRAM_DOCUMENT_BYTES_MAX: usize = 1024;
/// Links on the path of a packet. Clusters are small: who is further away than this is not reached in useful time.
pub const HOPS_MAX: usize = 7;
/// Voters of one shard, and learners of one shard, that a message between replicas may name.
pub const REPLICAS_MAX: usize = 16;
/// Nodes that a list of leaders may name: as many as a cluster may have.
pub const NODES_MAX: usize = 64;
/// Bytes accepted on a connection before it has authenticated.
pub const UNAUTHENTICATED_BYTES_MAX: usize = 8 << 10;
/// Time a connection may take to authenticate.
pub const UNAUTHENTICATED_TIME_MAX: Duration = Duration::from_secs(2);
/// Most messages in one publish frame, deliver frame or settle frame.
pub const BATCH_MESSAGES_MAX: usize = 4096;
/// Addresses in a cluster.
pub const ADDRESSES_MAX: usize = 10_000;
/// Groups of one address.
pub const GROUPS_PER_ADDRESS_MAX: usize = 100;
/// Lasting names of producers in a cluster.
pub const PRODUCER_NAMES_MAX: usize = 10_000;
/// Producers one shard remembers.
pub const PRODUCERS_PER_SHARD_MAX: usize = 100_000;
/// Principals of a cluster, the built-in one aside.
pub const PRINCIPALS_MAX: usize = 256;
/// Rules of one principal.
pub const RULES_MAX: usize = 32;
/// Join tokens of a cluster that were not used yet.
pub const JOIN_TOKENS_MAX: usize = 256;
/// Longest reason of a nack or dead letter, in bytes.
pub const REASON_BYTES_MAX: usize = 256;
/// Sealed bytes of messages in one publish frame.
pub const PUBLISH_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;
/// Unanswered publishes on one connection: messages.
pub const PUBLISH_WINDOW_MESSAGES: u32 = 65_536;
/// Unanswered publishes on one connection: bytes.
pub const PUBLISH_WINDOW_BYTES: u64 = 64 << 20;
/// Credit of one subscription: messages.
pub const CREDIT_MESSAGES_MAX: u32 = 65_536;
/// Credit of one subscription: bytes.
pub const CREDIT_BYTES_MAX: u64 = 256 << 20;
/// Subscriptions on one connection.
pub const SUBSCRIPTIONS_PER_CONNECTION_MAX: usize = 1024;
/// Highest sequence of a session in one shard: far above what a session key may seal, far below where counting ends.
pub const SEQUENCE_MAX: u64 = 1 << 48;
/// Time a producer may be silent in a shard before the shard forgets it.
pub const FORGET_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);
/// Time consumers have to re-claim their leases from a new leader.
pub const RECLAIM_WINDOW: Duration = Duration::from_secs(2);
/// Lease of a delivered message, unless extended.
pub const LEASE: Duration = Duration::from_secs(30);
/// Longest time a lease may be extended to, from delivery.
pub const LEASE_TOTAL_MAX: Duration = Duration::from_secs(600);
/// Failed attempts after which a message is dead-lettered.
pub const ATTEMPTS_MAX: u32 = 10;
/// First pause before a redelivery; doubles with every attempt.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Longest pause before a redelivery.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);

const _: () = assert!(SEALED_BYTES_MAX <= PUBLISH_BYTES_MAX);
const _: () = assert!(PUBLISH_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX < PACKET_BYTES_MAX);
const _: () = assert!(DATAGRAM_DOCUMENT_BYTES_MAX < DATAGRAM_BYTES_MAX);
// All principals with all their rules fit into one answer.
const _: () = assert!(PRINCIPALS_MAX * (1024 + RULES_MAX * (ADDRESS_BYTES_MAX + 2)) < FRAME_BYTES_MAX);
const _: () = assert!(HOPS_MAX < u8::MAX as usize);
const _: () = assert!(REPLICAS_MAX <= u8::MAX as usize);
const _: () = assert!(ADDRESS_BYTES_MAX <= u8::MAX as usize);
