//! Payload bytes at hand: what was written last, and what was read back for a backlog. Bounded; losing any of it only
//! costs a read.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::log::Position;

/// Chunks read back from disk that are kept, at most.
const READ_CHUNKS_MAX: usize = 16;

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
}

impl Cache {
    /// Remembers an entry as it was handed to the log at `at`. Entries come in log order.
    pub fn wrote(&mut self, at: Position, bytes: Bytes) {
        self.written_bytes += bytes.len();
        self.written.push_back(Chunk { at, bytes });
    }

    /// Remembers what the disk gave back, pushing out the oldest such chunk.
    pub fn fetched(&mut self, at: Position, bytes: Bytes) {
        if self.read.len() == READ_CHUNKS_MAX {
            self.read.pop_front();
        }
        self.read.push_back(Chunk { at, bytes });
    }

    /// Drops everything read back, for instance because it failed its check.
    pub fn distrust(&mut self) {
        self.read.clear();
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
