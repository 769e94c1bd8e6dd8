//! From log records back to a running shard.
//!
//! Records are met in log order. The latest whole snapshot counts, and the entries above it; an entry written again at
//! the same index replaces the older one and what followed it. Only places are kept while the log is read; the bytes of
//! the few entries above the snapshot are fetched at the end.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use swarmmq_protocol::{
    consensus::EntryKind,
    id::{Address, ShardId},
    time::{Instant, WallTime},
};

use super::{
    Building, RECORD_ENTRY, RECORD_HARD, RECORD_INSTALLED, RECORD_MEMBERSHIP, RECORD_MOVED, RECORD_SNAPSHOT,
    Shard,
    cache::Cache,
    codec::Reader,
    consensus::{Consensus, Hard, LogEntry, Restored},
    delivery::Delivery,
    state::{FOUNDING_INDEX, State},
};
use crate::{
    log::{Position, RecordRef},
    node::bug::{Bug, Bugs},
};

/// Why a shard could not be rebuilt. Nothing changed on disk. Blame: disk or operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreError {
    /// Which shard.
    pub shard: ShardId,
    /// What was found.
    pub what: String,
}

impl std::fmt::Display for RestoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "shard {}: {}", self.shard.0, self.what)
    }
}

impl std::error::Error for RestoreError {}

/// Who rebuilds a shard, and how it is to behave.
#[derive(Clone, Copy, Debug)]
pub struct Replica {
    /// Its name in the consensus group.
    pub id: u64,
    /// Its disk made the cluster: without a snapshot its groups begin with this replica alone.
    pub is_founder: bool,
    /// Of everything random that is no secret.
    pub seed: u64,
    /// How far ahead of deliveries the horizon is logged, in messages.
    pub horizon_ahead: u64,
    /// Bytes that one entry in its log may have.
    pub entry_bytes_max: usize,
    /// Planted mistakes.
    pub bugs: Bugs,
}

/// Reads bytes of the log back.
pub type ReadLog<'a> = dyn FnMut(Position, u32) -> Result<Bytes, String> + 'a;

struct Snapshot {
    index: u64,
    term: u64,
    hard: Hard,
    bytes: Vec<u8>,
    segment: u32,
    installed: bool,
}

/// What the log told about one shard so far.
#[derive(Default)]
pub struct Restore {
    hard: Hard,
    snapshot: Option<Snapshot>,
    partial: Option<(u32, Snapshot)>,
    entries: BTreeMap<u64, (u64, EntryKind, Position, u32)>,
    moves: Vec<(Address, u64, Position)>,
    first_segment: Option<u32>,
    /// A planted mistake.
    keeps_old_entries: bool,
}

impl Restore {
    /// With planted mistakes.
    pub fn with(bugs: Bugs) -> Self {
        Self { keeps_old_entries: bugs.has(Bug::KeepEntriesUnderInstalled), ..Self::default() }
    }

    /// Takes one record of this shard. An error means that the bytes, though whole, are not ours.
    pub fn record(&mut self, record: &RecordRef<'_>) -> Result<(), String> {
        self.first_segment.get_or_insert(record.position.segment);
        let mut reader = Reader::new(record.body);
        let malformed = |_| format!("record of kind {} at {:?} is malformed", record.kind, record.position);
        match record.kind {
            RECORD_HARD => self.hard = read_hard(&mut reader).map_err(malformed)?,
            RECORD_ENTRY | RECORD_MEMBERSHIP => {
                let kind =
                    if record.kind == RECORD_ENTRY { EntryKind::Normal } else { EntryKind::Membership };
                self.entries.split_off(&record.index);
                let entry = (record.epoch, kind, record.position, record.body.len() as u32);
                self.entries.insert(record.index, entry);
            }
            RECORD_SNAPSHOT | RECORD_INSTALLED => {
                let part = reader.u32().map_err(malformed)?;
                let parts = reader.u32().map_err(malformed)?;
                let hard = read_hard(&mut reader).map_err(malformed)?;
                self.snapshot_part(record, part, parts, hard, &record.body[reader.position()..]);
            }
            RECORD_MOVED => {
                let address = super::event::read_address(&mut reader).map_err(malformed)?;
                let place = Position {
                    segment: record.position.segment,
                    offset: record.position.offset + reader.position() as u32,
                };
                self.moves.push((address, record.index, place));
            }
            kind => return Err(format!("unknown record kind {kind} at {:?}", record.position)),
        }
        Ok(())
    }

    fn snapshot_part(&mut self, record: &RecordRef<'_>, part: u32, parts: u32, hard: Hard, bytes: &[u8]) {
        if part == 0 {
            let snapshot = Snapshot {
                index: record.index,
                term: record.epoch,
                hard,
                bytes: Vec::new(),
                segment: record.position.segment,
                installed: record.kind == RECORD_INSTALLED,
            };
            self.partial = Some((0, snapshot));
        }
        let Some((next, snapshot)) = &mut self.partial else { return };
        if *next != part || snapshot.index != record.index {
            // The first parts lay in a segment that is gone: an older snapshot, replaced by a newer one.
            self.partial = None;
            return;
        }
        *next += 1;
        snapshot.bytes.extend_from_slice(bytes);
        if *next == parts {
            let (_, whole) = self.partial.take().expect("matched above");
            self.hard = whole.hard;
            self.entries = self.entries.split_off(&(whole.index + 1));
            if whole.installed && !self.keeps_old_entries {
                // Another replica's state replaced ours and our entries: what lay above it was never committed.
                self.entries.clear();
            }
            self.snapshot = Some(whole);
        }
    }

    /// Rebuilds the shard. `read` fetches bytes that were verified while the log was read.
    pub fn finish(
        self,
        id: ShardId,
        replica: &Replica,
        read: &mut ReadLog<'_>,
    ) -> Result<Shard, RestoreError> {
        let Replica { id: replica, is_founder, seed, horizon_ahead, entry_bytes_max, bugs } = *replica;
        let fail = |what: String| RestoreError { shard: id, what };
        let (mut state, index, term) = match &self.snapshot {
            None if is_founder => (State::founded(replica, bugs), FOUNDING_INDEX, FOUNDING_INDEX),
            None => (State { bugs, ..State::default() }, 0, 0),
            Some(snapshot) => {
                let state = State::read(&snapshot.bytes, bugs)
                    .map_err(|_| fail(format!("the snapshot at index {} is malformed", snapshot.index)))?;
                if state.applied != snapshot.index {
                    return Err(fail(format!(
                        "snapshot {} holds the state at {}",
                        snapshot.index, state.applied
                    )));
                }
                (state, snapshot.index, snapshot.term)
            }
        };
        if bugs.has(Bug::ForgetDedupOnRestart) {
            state
                .producers
                .known
                .values_mut()
                .for_each(|known| known.last = swarmmq_protocol::id::Sequence(0));
        }
        for (address, offset, place) in self.moves {
            state.relocate(address, offset, place);
        }
        let mut entries = Vec::new();
        let mut places = VecDeque::new();
        let mut cache = Cache::default();
        let mut log_bytes = 0;
        for ((index, (term, kind, place, length)), expected) in self.entries.into_iter().zip(index + 1..) {
            if index != expected {
                return Err(fail(format!("entry {expected} is missing, {index} is there")));
            }
            let data = read(place, length)
                .map_err(|error| fail(format!("entry {index} cannot be read: {error}")))?;
            log_bytes += u64::from(length) + 64;
            places.push_back((index, term, place));
            cache.wrote(place, data.clone());
            entries.push(LogEntry { index, term, kind, data });
        }
        let first_entry = places.front().map(|(_, _, place): &(u64, u64, Position)| place.segment);
        let snapshot_segment = self.snapshot.as_ref().map(|snapshot| snapshot.segment);
        let floor_segment =
            first_entry.into_iter().chain(snapshot_segment).min().or(self.first_segment).unwrap_or(1);
        let snapshot_bytes = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.bytes.len() as u64);
        let restored = Restored {
            hard: self.hard,
            snapshot_index: index,
            snapshot_term: term,
            conf: state.conf.clone(),
            entries,
        };
        let stamp = state.time;
        // Every node answers from the cluster's facts; of the others only their leaders need to know at once.
        let consensus =
            Consensus::new(replica, restored, seed, bugs).announcing_commits(id == ShardId::CLUSTER);
        Ok(Shard {
            id,
            replica,
            consensus,
            state,
            delivery: Delivery::new(horizon_ahead, bugs),
            cache,
            building: Building::default(),
            lingers: false,
            entry_bytes_max,
            closed: VecDeque::new(),
            waiting: VecDeque::new(),
            places,
            proposed: BTreeMap::new(),
            applied_term: term,
            stamp,
            reign: None,
            intake: None,
            leaving: false,
            fed_as_of: 0,
            seed,
            campaign_at: None,
            stalled_since: None,
            pulled_at: BTreeMap::new(),
            giving: BTreeMap::new(),
            group_marked_at: None,
            group_unmarked: true,
            left_at: BTreeMap::new(),
            next_tick: Instant(0),
            next_aging: Instant(0),
            forget_at: WallTime(0),
            floor_segment,
            log_bytes_since_snapshot: log_bytes,
            snapshot_bytes,
            reading: None,
            unsynced: VecDeque::new(),
            last_round: 0,
            stopped: None,
            bugs,
        })
    }
}

fn read_hard(reader: &mut Reader<'_>) -> Result<Hard, super::codec::Malformed> {
    Ok(Hard { term: reader.u64()?, vote: reader.u64()?, commit: reader.u64()? })
}
