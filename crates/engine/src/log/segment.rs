//! The first block of a segment: which log, which number, and where the segment before it ended.
//!
//! ```text
//!  0            8           24        28         32          36     40         48          56
//!  | "SWMQLOG1" | log u128  | seq u32 | prev seg | prev off  | zero | chain u64| wall ms   | crc u32 | zero to 4096 |
//! ```

use swarmmq_protocol::time::WallTime;

use super::{Position, record::crc32c};

/// Bytes before the first record.
pub const SEGMENT_HEADER_BYTES: u32 = 4096;
const MAGIC: &[u8; 8] = b"SWMQLOG1";
const USED: usize = 56;

/// A segment's first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub log_id: u128,
    pub sequence: u32,
    /// Where the segment before it ended.
    pub previous_end: Position,
    /// End of that segment's chain.
    pub chain: u64,
    pub created_at: WallTime,
}

impl SegmentHeader {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.log_id.to_be_bytes());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.previous_end.segment.to_be_bytes());
        out.extend_from_slice(&self.previous_end.offset.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.chain.to_be_bytes());
        out.extend_from_slice(&self.created_at.0.to_be_bytes());
        let crc = crc32c(&out[start..]);
        out.extend_from_slice(&crc.to_be_bytes());
        out.resize(start + SEGMENT_HEADER_BYTES as usize, 0);
    }

    /// `None`: blank, foreign, of another number, or damaged; any flipped bit of the block makes it so.
    pub(super) fn read(bytes: &[u8], log_id: u128, sequence: u32) -> Option<Self> {
        Self::read_any(bytes).filter(|header| header.log_id == log_id && header.sequence == sequence)
    }

    /// Whether this is the first block of a segment of another log.
    pub(super) fn is_foreign(bytes: &[u8], log_id: u128) -> bool {
        Self::read_any(bytes).is_some_and(|header| header.log_id != log_id)
    }

    fn read_any(bytes: &[u8]) -> Option<Self> {
        let block = bytes.get(..SEGMENT_HEADER_BYTES as usize)?;
        let crc = u32::from_be_bytes(block[USED..USED + 4].try_into().expect("4 bytes"));
        if &block[..8] != MAGIC
            || crc32c(&block[..USED]) != crc
            || block[USED + 4..].iter().any(|byte| *byte != 0)
        {
            return None;
        }
        let number = |at: usize| u32::from_be_bytes(block[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_be_bytes(block[at..at + 8].try_into().expect("8 bytes"));
        Some(Self {
            log_id: u128::from_be_bytes(block[8..24].try_into().expect("16 bytes")),
            sequence: number(24),
            previous_end: Position { segment: number(28), offset: number(32) },
            chain: long(40),
            created_at: WallTime(long(48)),
        })
    }
}
