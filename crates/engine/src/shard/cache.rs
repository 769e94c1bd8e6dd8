//! Payload bytes at hand: what was written last, and what was read back for a backlog. Bounded; losing any of it only
//! costs a read.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::log::Position;

/// Bytes read back from disk that are kept, at most, unless one chunk alone is longer.
const READ_BYTES_MAX: usize = 4 << 20;
/// Read at once where nothing was read before it.
const READ_AHEAD_FIRST_BYTES: u32 = 256 << 10;
/// Read at once where the latest read goes on: somebody works through a backlog, and each read waits for a batch.
const READ_AHEAD_BYTES: u32 = 1 << 20;
/// What may lie between two reads that follow each other, beside records of other shards that were passed over: a message.
const READ_GAP_BYTES: u32 = 1 << 20;

/// What the cache has of a place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// Nothing.
    Missing,
    /// The bytes as this process wrote them.
    Written(Bytes),
    /// The bytes as the disk gave them back: to be checked.
    Read(Bytes),
}

#[derive(Debug)]
struct Chunk {
    at: Position,
    bytes: Bytes,
}

impl Chunk {
    fn slice(&self, place: Position, length: u32) -> Option<Bytes> {
        if place.segment != self.at.segment || place.offset < self.at.offset {
            return None;
        }
        let from = (place.offset - self.at.offset) as usize;
        let to = from.checked_add(length as usize)?;
        (to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }
}

/// Bytes of one shard's log entries.
#[derive(Debug, Default)]
pub struct Cache {
    written: VecDeque<Chunk>,
    written_bytes: usize,
    read: VecDeque<Chunk>,
    read_bytes: usize,
}

impl Cache {
    /// Remembers an entry as it was handed to the log at `at`. Entries come in log order.
    pub fn wrote(&mut self, at: Position, bytes: Bytes) {
        self.written_bytes += bytes.len();
        self.written.push_back(Chunk { at, bytes });
    }

    /// Remembers what the disk gave back, pushing out the oldest such chunks.
    pub fn fetched(&mut self, at: Position, bytes: Bytes) {
        self.read_bytes += bytes.len();
        while self.read_bytes > READ_BYTES_MAX
            && let Some(oldest) = self.read.pop_front()
        {
            self.read_bytes -= oldest.bytes.len();
        }
        self.read.push_back(Chunk { at, bytes });
    }

    /// How much is worth reading at `place`, to have `length` bytes there.
    pub fn read_ahead(&self, place: Position, length: u32) -> u32 {
        let goes_on = self.read.iter().any(|chunk| {
            let end = chunk.at.offset.saturating_add(chunk.bytes.len() as u32);
            chunk.at.segment == place.segment
                && (chunk.at.offset..=end.saturating_add(READ_GAP_BYTES)).contains(&place.offset)
        });
        length.max(if goes_on { READ_AHEAD_BYTES } else { READ_AHEAD_FIRST_BYTES })
    }

    /// Drops everything read back, for instance because it failed its check.
    pub fn distrust(&mut self) {
        self.read.clear();
        self.read_bytes = 0;
    }

    /// The bytes of a message. Cost: O(log entries).
    pub fn get(&self, place: Position, length: u32) -> Fetched {
        let after = self.written.partition_point(|chunk| chunk.at <= place);
        if let Some(sealed) = after.checked_sub(1).and_then(|index| self.written[index].slice(place, length))
        {
            return Fetched::Written(sealed);
        }
        match self.read.iter().rev().find_map(|chunk| chunk.slice(place, length)) {
            Some(sealed) => Fetched::Read(sealed),
            None => Fetched::Missing,
        }
    }

    /// Bytes of entries held.
    pub fn bytes(&self) -> usize {
        self.written_bytes
    }

    /// Drops the oldest entries until at most `bytes_max` are held.
    pub fn shrink(&mut self, bytes_max: usize) {
        while self.written_bytes > bytes_max
            && let Some(chunk) = self.written.pop_front()
        {
            self.written_bytes -= chunk.bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u32) -> Position {
        Position { segment: 1, offset }
    }

    #[test]
    fn messages_are_found_inside_the_entry_that_holds_them() {
        let mut cache = Cache::default();
        cache.wrote(at(100), Bytes::from_static(b"abcdef"));
        cache.wrote(at(200), Bytes::from_static(b"ghi"));
        assert_eq!(cache.get(at(102), 3), Fetched::Written(Bytes::from_static(b"cde")));
        assert_eq!(cache.get(at(200), 3), Fetched::Written(Bytes::from_static(b"ghi")));
        assert_eq!(cache.get(at(104), 9), Fetched::Missing);
        assert_eq!(cache.get(Position { segment: 2, offset: 100 }, 1), Fetched::Missing);
    }

    #[test]
    fn a_backlog_is_read_in_larger_pieces_than_a_single_message() {
        let mut cache = Cache::default();
        assert_eq!(cache.read_ahead(at(100), 10), READ_AHEAD_FIRST_BYTES);
        cache.fetched(at(100), Bytes::from(vec![0; READ_AHEAD_FIRST_BYTES as usize]));
        let end = 100 + READ_AHEAD_FIRST_BYTES;
        assert_eq!(cache.read_ahead(at(end - 5), 10), READ_AHEAD_BYTES);
        assert_eq!(cache.read_ahead(at(end + 300), 2 << 20), 2 << 20, "never less than is wanted");
        assert_eq!(cache.read_ahead(at(99), 10), READ_AHEAD_FIRST_BYTES);
        assert_eq!(cache.read_ahead(at(end + READ_GAP_BYTES + 1), 10), READ_AHEAD_FIRST_BYTES);
        for n in 1..=8 {
            cache.fetched(at(n << 20), Bytes::from(vec![0; 1 << 20]));
        }
        assert_eq!((cache.read.len(), cache.read_bytes), (4, 4 << 20));
    }

    #[test]
    fn the_oldest_entries_go_first() {
        let mut cache = Cache::default();
        cache.wrote(at(0), Bytes::from_static(b"abcdef"));
        cache.wrote(at(8), Bytes::from_static(b"ghi"));
        cache.shrink(5);
        assert_eq!(cache.get(at(0), 1), Fetched::Missing);
        assert_eq!(cache.bytes(), 3);
        cache.fetched(at(0), Bytes::from_static(b"abcdef"));
        assert_eq!(cache.get(at(0), 1), Fetched::Read(Bytes::from_static(b"a")));
    }
}
