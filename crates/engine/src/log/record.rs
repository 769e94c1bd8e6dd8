//! One record: a checked header, a body, padding.
//!
//! ```text
//!  0          4        5      8          12         16          24          32         40
//!  | body u32 | kind u8| zero | shard u32| crc u32  | index u64 | epoch u64 | chain u64| body | zero to 8 |
//! ```
//! The CRC-32C covers the log's name and the segment's number, which are not stored here, then everything but itself,
//! padding included. So a record of a recycled segment does not check, no flipped bit goes unnoticed, and bytes that a
//! client chose do not look like a record, because the log's name holds a random number that clients do not know. `chain` continues from the record
//! before, so that records cannot be exchanged for older ones that once stood in the same place.

use crc_fast::{CrcAlgorithm, Digest, checksum};

use super::Position;

/// Bytes before the body.
pub const RECORD_HEADER_BYTES: usize = 40;
/// Largest body.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 8;
/// The log's own record: a batch begins here, and everything before it has been synced.
pub(super) const KIND_BATCH: u8 = 0;
/// Body of a batch record: its number.
pub(super) const BATCH_BODY_BYTES: usize = 8;

/// CRC-32C (RFC 3720) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A record as recovery found it, whole and in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Its writer's word for it.
    pub kind: u8,
    /// Whose it is.
    pub shard: u32,
    /// Its writer's number.
    pub index: u64,
    /// Its writer's reign.
    pub epoch: u64,
    /// Where its body begins.
    pub position: Position,
    /// Its bytes.
    pub body: &'a [u8],
}

/// Bytes of a whole record with a body of `body_bytes`.
pub(super) const fn record_bytes(body_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + body_bytes).next_multiple_of(ALIGN)
}

/// The link from one record to the next.
pub(super) fn next_chain(chain: u64, crc: u32) -> u64 {
    let x = (chain ^ u64::from(crc)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

/// Where a record lies, as far as its checksum knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub log_id: u128,
    pub segment: u32,
}

fn crc_of(home: Home, record: &[u8]) -> u32 {
    let mut head = [0; 32];
    head[..16].copy_from_slice(&home.log_id.to_be_bytes());
    head[16..20].copy_from_slice(&home.segment.to_be_bytes());
    head[20..].copy_from_slice(&record[..12]);
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&head);
    digest.update(&record[16..]);
    digest.finalize() as u32
}

/// What a record says beside its body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label {
    pub kind: u8,
    pub shard: u32,
    pub index: u64,
    pub epoch: u64,
}

/// Appends a record to `out`, whose end is a record boundary. Returns its CRC, which continues the chain.
pub(super) fn put(out: &mut Vec<u8>, home: Home, chain: u64, label: Label, body: &[&[u8]]) -> u32 {
    let start = out.len();
    let body_bytes: usize = body.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&(body_bytes as u32).to_be_bytes());
    out.extend_from_slice(&[label.kind, 0, 0, 0]);
    out.extend_from_slice(&label.shard.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&label.index.to_be_bytes());
    out.extend_from_slice(&label.epoch.to_be_bytes());
    out.extend_from_slice(&chain.to_be_bytes());
    body.iter().for_each(|part| out.extend_from_slice(part));
    out.resize(start + record_bytes(body_bytes), 0);
    let crc = crc_of(home, &out[start..]);
    out[start + 12..start + 16].copy_from_slice(&crc.to_be_bytes());
    crc
}

/// A record that checks, without looking at its chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    pub label: Label,
    pub chain: u64,
    pub crc: u32,
    pub body: &'a [u8],
    /// Bytes of the whole record.
    pub bytes: usize,
}

/// The record at the start of `bytes`, if there is a whole one that checks.
pub(super) fn read(home: Home, bytes: &[u8]) -> Option<Found<'_>> {
    let head = bytes.get(..RECORD_HEADER_BYTES)?;
    let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("4 of 40 bytes"));
    let long = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("8 of 40 bytes"));
    let body_bytes = number(0) as usize;
    if body_bytes > MAX_BODY_BYTES || head[5..8] != [0; 3] {
        return None;
    }
    let total = record_bytes(body_bytes);
    let record = bytes.get(..total)?;
    let crc = number(12);
    if crc_of(home, record) != crc {
        return None;
    }
    let body = &record[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + body_bytes];
    let label = Label { kind: head[4], shard: number(8), index: long(16), epoch: long(24) };
    Some(Found { label, chain: long(32), crc, body, bytes: total })
}

/// Whether a batch record could begin here; cheap, before the checksum is tried.
pub(super) fn could_be_batch(bytes: &[u8]) -> bool {
    bytes.len() >= RECORD_HEADER_BYTES
        && bytes[..4] == (BATCH_BODY_BYTES as u32).to_be_bytes()
        && bytes[4] == KIND_BATCH
        && bytes[5..8] == [0; 3]
}
