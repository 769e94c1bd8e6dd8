//! Which log segments can go, and what must be written anew so that they can.
//!
//! The log shrinks from its old end. A segment goes when no shard needs its records (each has a newer snapshot) and no
//! existing message lies in it. When more than half of the log is garbage, what pins the oldest segment is written
//! again at the new end: snapshots of idle shards, and the few messages that are still wanted.

use std::collections::BTreeSet;

use crate::shard::Shard;

/// Segments that are never worth cleaning.
const SEGMENTS_MIN: usize = 3;
/// What a copy of a message costs beside its bytes: record header, address, its share of a batch record.
const COPY_BYTES: u64 = 128;
/// Log written by one shard between its snapshots, at least, in bytes.
pub(super) const SNAPSHOT_INTERVAL_BYTES: u64 = 64 << 20;

/// What to do next about the oldest segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cleaning {
    /// Nothing pays.
    Nothing,
    /// These shards (by position) pin it with old records: write their snapshots.
    Snapshot(Vec<usize>),
    /// Messages of these shards lie in it: copy them.
    Move(Vec<usize>),
}

/// The segments on disk and who needs them.
#[derive(Debug, Default)]
pub(super) struct Space {
    pub(super) segments: BTreeSet<u32>,
}

impl Space {
    /// Segments that nobody needs, oldest first; forgets them.
    pub(super) fn release(&mut self, shards: &[Shard], active: u32) -> Vec<u32> {
        let mut gone = Vec::new();
        while let Some(oldest) = self.segments.first().copied()
            && oldest < active
            && shards.iter().all(|shard| shard.floor_segment() > oldest && !lies_in(shard, oldest))
        {
            self.segments.pop_first();
            gone.push(oldest);
        }
        gone
    }

    /// What would free the oldest segment, if more than half of the log is garbage.
    pub(super) fn cleaning(&self, shards: &[Shard], active: u32, segment_bytes: u64) -> Cleaning {
        let Some(oldest) = self.segments.first().copied().filter(|oldest| *oldest < active) else {
            return Cleaning::Nothing;
        };
        if self.segments.len() <= SEGMENTS_MIN {
            return Cleaning::Nothing;
        }
        let total = self.segments.len() as u64 * segment_bytes;
        let messages = shards.iter().flat_map(|shard| shard.state().live_segments().values());
        let copies: u64 = messages.map(|live| live.bytes + live.messages * COPY_BYTES).sum();
        let snapshots: u64 = shards.iter().map(Shard::snapshot_bytes).sum();
        let live = copies + snapshots;
        if live * 2 > total {
            return Cleaning::Nothing;
        }
        let which = |test: &dyn Fn(&Shard) -> bool| -> Vec<usize> {
            shards.iter().enumerate().filter(|(_, shard)| test(shard)).map(|(index, _)| index).collect()
        };
        // A shard that stopped keeps what it pins until an operator decides, one that waits for its leader until that comes.
        // Whatever is written for them meanwhile would let go of nothing, and be written again and again.
        let pins = |shard: &Shard| shard.floor_segment() <= oldest || lies_in(shard, oldest);
        if shards.iter().any(|shard| shard.anchor() <= oldest && pins(shard)) {
            return Cleaning::Nothing;
        }
        let pinning = which(&|shard| shard.floor_segment() <= oldest);
        if !pinning.is_empty() {
            return Cleaning::Snapshot(pinning);
        }
        Cleaning::Move(which(&|shard| lies_in(shard, oldest)))
    }
}

fn lies_in(shard: &Shard, segment: u32) -> bool {
    shard.state().live_segments().contains_key(&segment)
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::{
        consensus::{Message, MessageKind, SnapshotMark},
        id::ShardId,
        time::{Instant, WallTime},
    };

    use super::*;
    use crate::{
        node::{Now, bug::Bugs},
        shard::restore::{Replica, Restore},
    };

    /// It wrote its snapshot as fast as the disk synced, until the state was there or the disk full.
    #[test]
    fn a_replica_that_takes_over_a_state_is_not_written_again_and_again() {
        let bugs = Bugs::NONE;
        let replica =
            Replica { id: 1, is_founder: false, seed: 0, horizon_ahead: 1, entry_bytes_max: 1 << 20, bugs };
        let restored =
            Restore::default().finish(ShardId(0), &replica, &mut |_, _| unreachable!("no entries"));
        let mut shards = [restored.unwrap()];
        let space = Space { segments: (1..=5).collect() };
        assert_eq!(space.cleaning(&shards, 5, 1 << 20), Cleaning::Snapshot(vec![0]));
        let mark = SnapshotMark { index: 9, term: 1, voters: vec![2], learners: vec![1] };
        let kind = MessageKind::Snapshot;
        let message = Message { kind, from: 2, to: 1, term: 1, snapshot: Some(mark), ..Message::default() };
        shards[0].step(Now { monotonic: Instant(1), wall: WallTime(1) }, message);
        assert_eq!(space.cleaning(&shards, 5, 1 << 20), Cleaning::Nothing);
    }
}
