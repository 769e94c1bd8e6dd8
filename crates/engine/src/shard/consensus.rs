//! The consensus engine (the `raft` crate) behind our own inputs and effects.
//!
//! One voter or many, the path is the same: propose, persist, learn that it is persisted, apply what is committed.
//! Timeouts are seeded here because the crate would draw them from the process's entropy; its own message encoding
//! is never used on bytes from outside. See docs/decisions/0005-consensus-engine.md for its traps.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::{
    Config, GetEntriesContext, RaftState, RawNode, StateRole, Storage, StorageError,
    eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot},
};
use swarmmq_protocol::id::Term;

/// Ticks between heartbeats; the shell ticks every [`TICK_MILLIS`].
const HEARTBEAT_TICKS: usize = 1;
/// Least ticks without a heartbeat before a candidacy; up to twice as many, seeded.
const ELECTION_TICKS: usize = 6;
/// Length of one tick.
pub const TICK_MILLIS: u64 = 100;

/// What must survive a crash beside the entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hard {
    /// Current term.
    pub term: u64,
    /// Whom this replica voted for in it; 0: nobody.
    pub vote: u64,
    /// Known to be committed.
    pub commit: u64,
}

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place.
    pub index: u64,
    /// The reign it was proposed in.
    pub term: u64,
    /// Our events; empty for the entry that opens a reign.
    pub data: Bytes,
}

/// What a restarted replica knows.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Latest hard state found.
    pub hard: Hard,
    /// Index that the snapshot covers; 0: none.
    pub snapshot_index: u64,
    /// Term of that index.
    pub snapshot_term: u64,
    /// Entries above the snapshot, without gaps.
    pub entries: Vec<LogEntry>,
}

/// One round of work that consensus asks for.
#[derive(Debug, Default)]
pub struct Round {
    /// Names this round for [`Consensus::persisted`].
    pub number: u64,
    /// To be on stable storage before `persisted(number)`.
    pub hard: Option<Hard>,
    /// To be on stable storage before `persisted(number)`.
    pub entries: Vec<LogEntry>,
    /// Committed: to be applied now, in order.
    pub committed: Vec<LogEntry>,
    /// Whether `persisted(number)` must wait for a sync.
    pub must_sync: bool,
}

/// Entries in memory, as the crate wants to read them: synchronously.
struct Memory {
    hard: HardState,
    conf: ConfState,
    /// Index and term just before the first entry held.
    floor: (u64, u64),
    entries: VecDeque<Entry>,
}

impl Memory {
    fn last(&self) -> u64 {
        self.floor.0 + self.entries.len() as u64
    }

    fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.floor.0 && first.index <= self.last() + 1, "entries follow without a gap");
        self.entries.truncate((first.index - self.floor.0 - 1) as usize);
        self.entries.extend(entries.iter().cloned());
    }

    fn forget_to(&mut self, index: u64) {
        while let Some(front) = self.entries.front()
            && front.index <= index
        {
            self.floor = (front.index, front.term);
            self.entries.pop_front();
        }
    }
}

impl Storage for Memory {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.floor.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "asked for entries below {high}, the last is {}", self.last());
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0u64;
        let mut found = Vec::new();
        for index in low..high {
            let entry = &self.entries[(index - self.floor.0 - 1) as usize];
            size += entry.data.len() as u64;
            if !found.is_empty() && size > max_size {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.floor.0 {
            return Ok(self.floor.1);
        }
        if index < self.floor.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        match self.entries.get((index - self.floor.0 - 1) as usize) {
            Some(entry) => Ok(entry.term),
            None => Err(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.floor.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

/// One replica's part in one shard's consensus group.
pub struct Consensus {
    raw: RawNode<Memory>,
    seed: u64,
}

impl Consensus {
    /// A replica named `id` in a group whose voters are `voters`, resuming from what its disk holds.
    ///
    /// `seed` decides election timeouts; equal seeds and inputs give equal behaviour.
    pub fn new(id: u64, voters: &[u64], restored: Restored, seed: u64) -> Self {
        let hard = HardState {
            term: restored.hard.term.max(restored.snapshot_term),
            vote: restored.hard.vote,
            commit: restored.hard.commit.max(restored.snapshot_index),
            ..HardState::default()
        };
        let mut memory = Memory {
            hard,
            conf: ConfState::from((voters.to_vec(), Vec::new())),
            floor: (restored.snapshot_index, restored.snapshot_term),
            entries: VecDeque::new(),
        };
        let entries: Vec<Entry> = restored.entries.into_iter().map(to_raft).collect();
        memory.append(&entries);
        memory.hard.commit = memory.hard.commit.min(memory.last());
        let config = Config {
            id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: restored.snapshot_index,
            max_size_per_msg: 4 << 20,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            max_uncommitted_size: u64::MAX,
            max_committed_size_per_ready: 32 << 20,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, memory, &logger).expect("a constant configuration and a checked log");
        let mut consensus = Self { raw, seed };
        consensus.reseed();
        consensus
    }

    /// Time passed: one tick. A group of one voter elects itself at its first.
    pub fn tick(&mut self) {
        let alone = self.raw.raft.prs().conf().voters().ids().len() == 1;
        if alone && self.raw.raft.state != StateRole::Leader {
            self.raw.campaign().expect("campaigning is always allowed to a voter");
        } else {
            self.raw.tick();
        }
        self.reseed();
    }

    /// Whether this replica may propose.
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The reign this replica knows of.
    pub fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    /// The replica that leads, as far as known; 0: none.
    pub fn leader(&self) -> u64 {
        self.raw.raft.leader_id
    }

    /// Appends `data` to the log of the leader. Returns its index, or `None` where this replica does not lead.
    pub fn propose(&mut self, data: Vec<u8>) -> Option<u64> {
        self.raw.propose(Vec::new(), data).ok()?;
        Some(self.raw.raft.raft_log.last_index())
    }

    /// The next round of work, if there is any. Its entries count as held in memory from now on.
    pub fn round(&mut self) -> Option<Round> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let hard = ready.hs().map(|hard| Hard { term: hard.term, vote: hard.vote, commit: hard.commit });
        let entries = ready.take_entries();
        self.raw.mut_store().append(&entries);
        if let Some(hard) = ready.hs() {
            self.raw.mut_store().hard = hard.clone();
        }
        let committed = ready.take_committed_entries();
        let round = Round {
            number: ready.number(),
            hard: hard.filter(|_| ready.must_sync()),
            must_sync: ready.must_sync(),
            entries: entries.into_iter().map(from_raft).collect(),
            committed: committed.into_iter().map(from_raft).collect(),
        };
        self.raw.advance_append_async(ready);
        self.reseed();
        Some(round)
    }

    /// Everything of rounds up to `number` is on stable storage.
    pub fn persisted(&mut self, number: u64) {
        self.raw.on_persist_ready(number);
        self.reseed();
    }

    /// Everything up to `index` was applied; entries below need not be held in memory any more.
    pub fn applied(&mut self, index: u64) {
        self.raw.advance_apply_to(index);
        self.raw.mut_store().forget_to(index);
    }

    /// The latest hard state, for snapshots.
    pub fn hard(&self) -> Hard {
        let hard = &self.raw.store().hard;
        Hard { term: hard.term, vote: hard.vote, commit: hard.commit }
    }

    /// The crate draws a fresh timeout from the process's entropy whenever its state changes; ours follows from the
    /// seed, the replica and the term.
    fn reseed(&mut self) {
        let raft = &mut self.raw.raft;
        let state = raft.state as u64;
        let mixed = mix(self.seed ^ raft.id.rotate_left(17) ^ (raft.term << 8) ^ state);
        let timeout = ELECTION_TICKS + (mixed % ELECTION_TICKS as u64) as usize;
        raft.set_randomized_election_timeout(timeout);
    }
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").field("term", &self.term()).field("leader", &self.leader()).finish()
    }
}

/// Scrambles `x`; the finalizer of SplitMix64.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn to_raft(entry: LogEntry) -> Entry {
    Entry {
        entry_type: EntryType::EntryNormal,
        index: entry.index,
        term: entry.term,
        data: entry.data,
        ..Entry::default()
    }
}

fn from_raft(entry: Entry) -> LogEntry {
    debug_assert_eq!(entry.entry_type, EntryType::EntryNormal, "membership does not change yet");
    LogEntry { index: entry.index, term: entry.term, data: entry.data }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(consensus: &mut Consensus, persist: bool) -> (Vec<LogEntry>, Vec<LogEntry>) {
        let (mut stored, mut committed) = (Vec::new(), Vec::new());
        while let Some(round) = consensus.round() {
            stored.extend(round.entries);
            if let Some(last) = round.committed.last() {
                let index = last.index;
                committed.extend(round.committed);
                consensus.applied(index);
            }
            if persist {
                consensus.persisted(round.number);
            }
        }
        (stored, committed)
    }

    #[test]
    fn a_single_voter_leads_after_its_vote_is_stored() {
        let mut consensus = Consensus::new(1, &[1], Restored::default(), 0);
        consensus.tick();
        let (stored, committed) = run(&mut consensus, true);
        assert!(consensus.is_leader());
        assert_eq!(stored.len(), 1, "the entry that opens the reign");
        assert_eq!(committed, stored);
    }

    #[test]
    fn nothing_is_committed_before_it_is_stored() {
        let mut consensus = Consensus::new(1, &[1], Restored::default(), 0);
        consensus.tick();
        run(&mut consensus, true);
        let index = consensus.propose(b"x".to_vec()).unwrap();
        let round = consensus.round().unwrap();
        assert_eq!(round.entries[0].index, index);
        assert!(round.must_sync);
        assert_eq!(round.committed, []);
        assert!(consensus.round().is_none());
        consensus.persisted(round.number);
        assert_eq!(consensus.round().unwrap().committed[0].data, "x");
    }

    #[test]
    fn a_restarted_voter_commits_what_it_had_stored_in_a_higher_term() {
        let entries = vec![
            LogEntry { index: 6, term: 2, data: "a".into() },
            LogEntry { index: 7, term: 2, data: "b".into() },
        ];
        let hard = Hard { term: 2, vote: 1, commit: 5 };
        let restored = Restored { hard, snapshot_index: 5, snapshot_term: 1, entries };
        let mut consensus = Consensus::new(1, &[1], restored, 0);
        consensus.tick();
        let (stored, committed) = run(&mut consensus, true);
        assert_eq!(stored.iter().map(|entry| (entry.index, entry.term)).collect::<Vec<_>>(), [(8, 3)]);
        assert_eq!(committed.iter().map(|entry| entry.index).collect::<Vec<_>>(), [6, 7, 8]);
    }
}
