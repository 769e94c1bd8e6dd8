//! Bytes of memory: knows records, not their meaning.
//!
//! One write-ahead log per node, in segments of fixed size. Records are placed by [`Writer`], gathered into batches,
//! written and synced by the shell, and read back by [`Recovery`], which tells what is whole, what is a torn tail, and
//! what is rot. Layout and crash cases: docs/decisions/0003-log-record-layout.md.

pub mod record;
pub mod recovery;
pub mod segment;
pub mod writer;

#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use self::{
    record::{MAX_BODY_BYTES, RecordRef, crc32c},
    recovery::{Recovery, Verdict},
    segment::SEGMENT_HEADER_BYTES,
    writer::Writer,
};

/// A place in the log: a segment by number and a byte in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Which segment; counts from 1, never reused.
    pub segment: u32,
    /// Which byte of it.
    pub offset: u32,
}

/// What all segments of one log share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes of every segment.
    pub segment_bytes: u32,
    /// Names the log, so that a foreign segment is recognised.
    pub log_id: u128,
}

/// Where writing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The next byte; offset 0: the segment is to be begun.
    pub position: Position,
    /// End of the hash chain.
    pub chain: u64,
    /// Number of the next batch.
    pub batch: u64,
}

impl Tail {
    /// Of a log that holds nothing.
    pub const fn fresh() -> Self {
        Self { position: Position { segment: 1, offset: 0 }, chain: 0, batch: 1 }
    }
}

/// Bytes for one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentWrite {
    /// Which segment.
    pub segment: u32,
    /// From which byte.
    pub offset: u32,
    /// What.
    pub bytes: Bytes,
    /// The segment begins here: a file must be provided for it.
    pub fresh: bool,
}

/// Everything gathered since the last batch: write it all, then sync it all, then report the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Names the batch.
    pub batch: u64,
    /// In order; more than one where the batch goes over into the next segment.
    pub writes: Vec<SegmentWrite>,
}
