//! What a shard keeps of the log, and how it lets go: snapshots written anew, live messages moved, bytes read again.

use bytes::Bytes;
use swarmmq_protocol::{
    error::Code,
    id::{Address, Offset},
};

use super::{
    RECORD_SNAPSHOT, SNAPSHOT_HEAD_BYTES, SNAPSHOT_PART_BYTES, Shard, Work, cache, replication, rotten,
};
use crate::log::{Position, Writer};

/// Log written between snapshots, in lengths of the latest one: so much more than the log itself they cost, at most. The
/// other way, a restart reads so much more.
const SNAPSHOT_PAYS: u64 = 4;

impl Shard {
    /// Oldest segment whose records this shard still needs, beside live messages.
    pub fn floor_segment(&self) -> u32 {
        // A state being taken over points into segments that ours may let go meanwhile.
        if self.intake.is_some() { 0 } else { self.floor_segment }
    }

    /// Oldest segment that stays whatever is written anew: with entries that are not applied yet, or while it is open what
    /// will be needed.
    pub fn anchor(&self) -> u32 {
        if self.stopped.is_some() || self.intake.is_some() {
            return 0;
        }
        self.places.front().map_or(u32::MAX, |(_, _, place)| place.segment)
    }

    /// Entries applied, and bytes logged since the latest snapshot: while both stay, so does what is needed of the log.
    pub fn extent(&self) -> (u64, u64) {
        (self.state.applied, self.log_bytes_since_snapshot)
    }

    /// Bytes of the latest snapshot.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes
    }

    /// Whether enough was logged since the last snapshot for a new one to pay.
    pub fn wants_snapshot(&self, interval_bytes: u64) -> bool {
        self.stopped.is_none()
            && self.log_bytes_since_snapshot > interval_bytes.max(self.snapshot_bytes * SNAPSHOT_PAYS)
    }

    /// Appends a snapshot of the state. Returns the oldest segment needed once it is on stable storage; the caller
    /// reports that with [`Shard::snapshot_synced`].
    pub fn write_snapshot(&mut self, log: &mut Writer) -> u32 {
        self.put_snapshot(RECORD_SNAPSHOT, log)
    }

    pub(super) fn put_snapshot(&mut self, kind: u8, log: &mut Writer) -> u32 {
        let hard = self.consensus.hard();
        let mut head = Vec::with_capacity(24);
        for number in [hard.term, hard.vote, hard.commit] {
            head.extend_from_slice(&u64::to_be_bytes(number));
        }
        let bytes = self.state.to_bytes();
        let part_bytes = SNAPSHOT_PART_BYTES.min(log.body_bytes_max() - SNAPSHOT_HEAD_BYTES);
        let parts: Vec<&[u8]> = bytes.chunks(part_bytes).collect();
        let mut first = None;
        for (part, chunk) in parts.iter().enumerate() {
            let mut numbers = [0; 8];
            numbers[..4].copy_from_slice(&(part as u32).to_be_bytes());
            numbers[4..].copy_from_slice(&(parts.len() as u32).to_be_bytes());
            let place =
                log.append(kind, self.id.0, self.state.applied, self.applied_term, &[&numbers, &head, chunk]);
            first.get_or_insert(place.segment);
        }
        self.log_bytes_since_snapshot = 0;
        self.snapshot_bytes = bytes.len() as u64;
        let snapshot = first.expect("a state has at least one byte");
        let unapplied = self.places.front().map_or(snapshot, |(_, _, place)| place.segment);
        snapshot.min(unapplied)
    }

    /// The snapshot is on stable storage: nothing below `floor_segment` is needed but live messages.
    pub fn snapshot_synced(&mut self, floor_segment: u32) {
        self.floor_segment = floor_segment;
    }

    /// Live messages whose bytes lie in `segment`. Cost: O(messages).
    pub fn messages_in(&self, segment: u32) -> Vec<(Address, Offset, Position, u32)> {
        let queues = self.state.queues.values();
        queues
            .flat_map(|queue| {
                queue.messages.iter().filter(|(_, message)| message.place.segment == segment).map(
                    |(offset, message)| {
                        (queue.address.clone(), Offset(*offset), message.place, message.length)
                    },
                )
            })
            .collect()
    }

    /// Whether the message exists and its bytes lie at `place`.
    pub fn lies_at(&self, address: &Address, offset: Offset, place: Position) -> bool {
        let message = self.state.queues.get(address).and_then(|queue| queue.messages.get(&offset.0));
        message.is_some_and(|message| message.place == place)
    }

    /// Appends a copy of a live message's bytes, checked first; rotten ones stop the shard. `None`: there is no copy.
    pub fn write_moved(
        &mut self,
        log: &mut Writer,
        address: &Address,
        offset: Offset,
        sealed: &[u8],
        work: &mut Work,
    ) -> Option<Position> {
        let message = self.state.queues.get(address)?.messages.get(&offset.0)?;
        if crate::log::crc32c(sealed) != message.crc {
            self.stop(&rotten(address, offset), work);
            return None;
        }
        Some(replication::put_moved(log, self.id.0, address, offset.0, sealed))
    }

    /// The copy is on stable storage: the message lies there from now on.
    pub fn moved(&mut self, address: &Address, offset: Offset, place: Position) {
        self.state.moved(address, offset.0, place);
    }

    /// Reads a message's bytes for a reader outside any group, if they are at hand; otherwise asks for them.
    pub fn peek(
        &mut self,
        place: Position,
        length: u32,
        crc: u32,
        work: &mut Work,
    ) -> Option<Result<Bytes, Code>> {
        match self.cache.get(place, length) {
            cache::Fetched::Written(sealed) => Some(Ok(sealed)),
            cache::Fetched::Read(sealed) if crate::log::crc32c(&sealed) == crc => Some(Ok(sealed)),
            cache::Fetched::Read(_) => Some(Err(Code::Corrupt)),
            cache::Fetched::Missing => {
                if self.reading.is_none() {
                    self.reading = Some(place);
                    work.reads.push((place, self.cache.read_ahead(place, length)));
                }
                None
            }
        }
    }
}
