//! The consensus engine (the `raft` crate) behind our own inputs and effects.
//!
//! One voter or many, the path is the same: propose, persist, learn that it is persisted, apply what is committed.
//! A leader's appends travel while its own disk writes; what a follower promises travels only once its disk has it.
//! Timeouts are seeded here because the crate would draw them from the process's entropy; its own message encoding
//! is never used on bytes from outside. See docs/decisions/0005-consensus-engine.md for its traps.

use std::collections::{BTreeMap, VecDeque};

use raft::{
    Config, GetEntriesContext, ProgressState, RaftState, RawNode, SnapshotStatus, StateRole, Storage,
    StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};
use swarmmq_protocol::{
    consensus::{Message, MessageKind, SnapshotMark},
    id::{NodeId, Term},
    time::Instant,
};

pub use swarmmq_protocol::consensus::Entry as LogEntry;

use super::{
    codec::{Malformed, Reader},
    translate,
};
use crate::node::bug::{Bug, Bugs};

/// Ticks between heartbeats; the shell ticks every [`TICK_MILLIS`].
const HEARTBEAT_TICKS: usize = 1;
/// Least ticks without a heartbeat before a candidacy; up to twice as many, seeded.
const ELECTION_TICKS: usize = 6;
/// Ticks in which the answer to a heartbeat is there, if nothing is lost: it may wait for one.
const ANSWER_TICKS: u64 = 3;
/// Length of one tick.
pub const TICK_MILLIS: u64 = 100;
/// Bytes of entries in one append message.
const APPEND_BYTES_MAX: u64 = 1 << 20;
/// Unanswered append messages to one follower: together less than a link holds.
const APPENDS_IN_FLIGHT_MAX: usize = 32;
/// Bytes of applied entries that a leader keeps in memory for followers that lag; who lags more is caught up by a snapshot,
/// which costs all of them much more than this. The node bounds what its shards keep together.
const LEADER_RETAINED_BYTES_MAX: u64 = 32 << 20;
/// The same, of a follower: it may lead next.
const FOLLOWER_RETAINED_BYTES_MAX: u64 = 4 << 20;
/// What an entry costs in memory beside its bytes.
const ENTRY_OVERHEAD_BYTES: u64 = 128;

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

/// The replicas of a group, by name, in order. Changes only by committed entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conf {
    /// Who decides.
    pub voters: Vec<u64>,
    /// Who only follows, usually to become a voter.
    pub learners: Vec<u64>,
}

impl Conf {
    /// A group of one.
    pub fn alone(replica: u64) -> Self {
        Self { voters: vec![replica], learners: Vec::new() }
    }

    /// Whether `replica` takes part.
    pub fn contains(&self, replica: u64) -> bool {
        self.voters.contains(&replica) || self.learners.contains(&replica)
    }

    /// Everybody who takes part.
    pub fn members(&self) -> impl Iterator<Item = u64> + '_ {
        self.voters.iter().chain(&self.learners).copied()
    }

    /// Nobody takes part: this replica has not been told of its group yet.
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    fn sorted(mut self) -> Self {
        self.voters.sort_unstable();
        self.learners.sort_unstable();
        self
    }
}

/// One step from one set of replicas to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A replica begins to follow.
    Follow(u64),
    /// A replica that follows begins to vote.
    Vote(u64),
    /// A replica takes part no more.
    Leave(u64),
}

impl Change {
    /// Its bytes in the log.
    pub fn to_bytes(self) -> [u8; 9] {
        let (kind, replica) = match self {
            Self::Follow(replica) => (1, replica),
            Self::Vote(replica) => (2, replica),
            Self::Leave(replica) => (3, replica),
        };
        let mut bytes = [kind; 9];
        bytes[1..].copy_from_slice(&u64::to_be_bytes(replica));
        bytes
    }

    /// From its bytes in the log.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u8()?;
        let replica = reader.u64()?;
        reader.end()?;
        match kind {
            1 => Ok(Self::Follow(replica)),
            2 => Ok(Self::Vote(replica)),
            3 => Ok(Self::Leave(replica)),
            _ => Err(Malformed),
        }
    }
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
    /// The group at that index; empty: not told yet.
    pub conf: Conf,
    /// Entries above the snapshot, without gaps.
    pub entries: Vec<LogEntry>,
}

/// One round of work that consensus asks for.
#[derive(Debug, Default)]
pub struct Round {
    /// Names this round for [`Consensus::persisted`].
    pub number: u64,
    /// The state that was staged replaces ours, before anything else of this round.
    pub snapshot: Option<SnapshotMark>,
    /// To be on stable storage before `persisted(number)`.
    pub hard: Option<Hard>,
    /// To be on stable storage before `persisted(number)`.
    pub entries: Vec<LogEntry>,
    /// Committed: to be applied now, in order.
    pub committed: Vec<LogEntry>,
    /// Whether `persisted(number)` must wait for a sync.
    pub must_sync: bool,
}

/// How far another replica is, as its leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Highest index it has on stable storage.
    pub matched: u64,
    /// It was heard from within the last election timeout.
    pub is_active: bool,
    /// It is being caught up by a snapshot.
    pub takes_snapshot: bool,
}

/// Entries in memory, as the crate wants to read them: synchronously.
struct Memory {
    hard: HardState,
    conf: ConfState,
    /// Index and term just before the first entry held.
    floor: (u64, u64),
    entries: VecDeque<Entry>,
    entry_bytes: u64,
    /// Index and term of what was applied last: what a snapshot would cover.
    applied: (u64, u64),
}

fn cost(entry: &Entry) -> u64 {
    entry.data.len() as u64 + ENTRY_OVERHEAD_BYTES
}

impl Memory {
    fn last(&self) -> u64 {
        self.floor.0 + self.entries.len() as u64
    }

    fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.floor.0 && first.index <= self.last() + 1, "entries follow without a gap");
        while self.last() >= first.index {
            let gone = self.entries.pop_back().expect("the last is above the floor");
            self.entry_bytes -= cost(&gone);
        }
        self.entry_bytes += entries.iter().map(cost).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Drops applied entries that nobody needs, and the oldest where more than `bytes_max` wait.
    fn forget(&mut self, needed_above: u64, bytes_max: u64) {
        while let Some(front) = self.entries.front()
            && front.index <= self.applied.0
            && (front.index <= needed_above || self.entry_bytes > bytes_max)
        {
            self.floor = (front.index, front.term);
            self.entry_bytes -= cost(front);
            self.entries.pop_front();
        }
    }

    fn restore(&mut self, index: u64, term: u64, conf: ConfState) {
        self.floor = (index, term);
        self.entries.clear();
        self.entry_bytes = 0;
        self.conf = conf;
        self.applied = (index, term);
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

    /// Only its mark: whoever is told of it asks for the state itself.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.applied.0 < request_index.max(1) {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mark = SnapshotMark {
            index: self.applied.0,
            term: self.applied.1,
            voters: self.conf.voters.clone(),
            learners: self.conf.learners.clone(),
        };
        Ok(translate::snapshot_to_raft(mark))
    }
}

/// One replica's part in one shard's consensus group.
pub struct Consensus {
    raw: RawNode<Memory>,
    seed: u64,
    bugs: Bugs,
    /// What may be told others only when the round with this number is on stable storage.
    held: VecDeque<(u64, Vec<Message>)>,
    /// What is to be told others now.
    outbox: Vec<Message>,
    /// The latest round that is on stable storage, and the latest there was.
    rounds: (u64, u64),
    /// The hard state changed since it was last given out to be stored.
    unsaved: bool,
    /// A snapshot on its way to the disk: its round and index. The crate counts it as applied only when told.
    installing: Option<(u64, u64)>,
    /// A term and a state of the crate, and the election timeout that follows from them.
    seeded: ((u64, u64), usize),
    /// What a leader told this replica to have that it has not: its disk was rolled back.
    amnesia: bool,
    /// The answer to the latest heartbeat may wait for the next tick: nothing is under way that hangs on it.
    at_rest: bool,
    /// That answer, until then.
    answer: Option<Message>,
    /// Ticks so far, and at which of them a leader had just heard from whom.
    ticks: u64,
    active_at: BTreeMap<u64, u64>,
}

impl Consensus {
    /// A replica named `id`, resuming from what its disk holds.
    ///
    /// `seed` decides election timeouts; equal seeds and inputs give equal behaviour.
    pub fn new(id: u64, restored: Restored, seed: u64, bugs: Bugs) -> Self {
        let hard = HardState {
            term: restored.hard.term.max(restored.snapshot_term),
            vote: if bugs.has(Bug::ForgetVoteOnRestart) { 0 } else { restored.hard.vote },
            commit: restored.hard.commit.max(restored.snapshot_index),
            ..HardState::default()
        };
        let mut memory = Memory {
            hard,
            conf: ConfState::from((restored.conf.voters, restored.conf.learners)),
            floor: (restored.snapshot_index, restored.snapshot_term),
            entries: VecDeque::new(),
            entry_bytes: 0,
            applied: (restored.snapshot_index, restored.snapshot_term),
        };
        let entries: Vec<Entry> = restored.entries.into_iter().map(translate::to_raft).collect();
        memory.append(&entries);
        memory.hard.commit = memory.hard.commit.min(memory.last());
        let config = Config {
            id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: restored.snapshot_index,
            max_size_per_msg: APPEND_BYTES_MAX,
            max_inflight_msgs: APPENDS_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            // The crate batches without bound, into what no packet can hold: see [`Consensus::say`].
            batch_append: false,
            max_uncommitted_size: u64::MAX,
            max_committed_size_per_ready: 32 << 20,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, memory, &logger).expect("a constant configuration and a checked log");
        let mut consensus = Self {
            raw,
            seed,
            bugs,
            held: VecDeque::new(),
            outbox: Vec::new(),
            at_rest: false,
            answer: None,
            ticks: 0,
            active_at: BTreeMap::new(),
            rounds: (0, 0),
            unsaved: false,
            installing: None,
            seeded: ((u64::MAX, 0), ELECTION_TICKS),
            amnesia: false,
        };
        consensus.reseed();
        consensus
    }

    /// Whether a leader tells what is committed in a message of its own, or with the next append or heartbeat, a tick later
    /// at most. The message costs two more between each pair and wakes both; changes of the group are always told at once.
    pub fn announcing_commits(mut self, at_once: bool) -> Self {
        self.raw.raft.skip_bcast_commit(!at_once);
        self
    }

    /// Time passed: one tick. A group of one voter elects itself at its first.
    pub fn tick(&mut self) {
        self.at_rest = false;
        self.outbox.extend(self.answer.take());
        self.note_active();
        if self.installing.is_some() {
            // The crate looks for unapplied entries before a candidacy, and the state on its way to the disk has none.
            return;
        }
        let alone = self.is_alone() && self.rounds.0 == self.rounds.1;
        if alone && self.raw.raft.state != StateRole::Leader {
            self.campaign();
        } else {
            self.raw.tick();
        }
        self.reseed();
    }

    fn is_alone(&self) -> bool {
        let voters = self.raw.raft.prs().conf().voters().ids();
        voters.len() == 1 && voters.contains(self.raw.raft.id)
    }

    /// Asks the others whether this replica may lead.
    pub fn campaign(&mut self) {
        if self.raw.raft.promotable() && self.installing.is_none() {
            self.raw.campaign().expect("campaigning is always allowed to a voter");
        }
        self.reseed();
    }

    /// The leader's process is gone: this replica believes in it no more, and lets others campaign.
    pub fn forget_leader(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Follower {
            let term = raft.term;
            raft.become_follower(term, 0);
        }
        self.reseed();
    }

    /// This replica leads without effect: it makes room for another.
    pub fn step_down(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader {
            let term = raft.term;
            raft.become_follower(term, 0);
        }
        self.reseed();
    }

    /// The crate forgets who is active whenever it looks for its majority, and may hear of it two ticks later.
    fn note_active(&mut self) {
        self.ticks += 1;
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            self.active_at.clear();
            return;
        }
        let active = raft.prs().iter().filter(|(_, progress)| progress.recent_active);
        self.active_at.extend(active.map(|(replica, _)| (*replica, self.ticks)));
    }

    /// Hands the lead to `replica`, once it has everything.
    pub fn transfer(&mut self, replica: u64) {
        self.raw.transfer_leader(replica);
    }

    /// Whether the lead is being handed over; nothing can be proposed meanwhile.
    pub fn is_transferring(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// Takes what another replica says. What makes no sense is dropped.
    pub fn step(&mut self, message: Message) {
        let held = self.raw.raft.raft_log.last_index();
        if message.kind == MessageKind::Heartbeat && message.commit > held {
            // A leader says only what this replica once promised to have. One of an earlier reign, or one that does not
            // know that this replica has left and forgotten everything, proves nothing.
            self.amnesia |= message.term >= self.raw.raft.term && !self.conf().is_empty();
            return;
        }
        if message.kind == MessageKind::TimeoutNow && self.installing.is_some() {
            return;
        }
        self.at_rest = message.kind == MessageKind::Heartbeat && [message.index, message.commit] == [held; 2];
        // The crate may add entries to an empty append that it has not handed out, also where its view of the follower was
        // set back in between: they begin before where the append says. Such a one counts as lost, and is sent anew.
        if message.kind == MessageKind::Append
            && message.entries.first().is_some_and(|first| first.index != message.index + 1)
        {
            return;
        }
        // What the crate refuses comes from a replica that is no member any more.
        let _ = self.raw.step(translate::message_to_raft(message));
        self.reseed();
    }

    /// Whether the next round replaces the state.
    pub fn has_snapshot(&self) -> bool {
        self.raw.snap().is_some_and(|snapshot| !snapshot.is_empty())
    }

    /// Whether a leader knows more of this replica's log than its disk: the disk was rolled back.
    pub fn has_amnesia(&self) -> bool {
        self.amnesia
    }

    /// `replica` cannot be reached now: appends to it are not pipelined until it answers.
    pub fn unreachable(&mut self, replica: u64) {
        if self.raw.raft.state == StateRole::Leader {
            self.raw.report_unreachable(replica);
            if self.progress(replica).is_some_and(|progress| progress.takes_snapshot) {
                self.raw.report_snapshot(replica, SnapshotStatus::Failure);
            }
        }
    }

    /// Whether this replica may propose.
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether this replica votes.
    pub fn is_voter(&self) -> bool {
        self.raw.raft.promotable()
    }

    /// The reign this replica knows of.
    pub fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    /// The replica that leads, as far as known; 0: none.
    pub fn leader(&self) -> u64 {
        self.raw.raft.leader_id
    }

    /// Highest index in the log, on stable storage or not.
    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// Highest index known to be committed.
    pub fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// How far `replica` is; only a leader knows.
    pub fn progress(&self, replica: u64) -> Option<Progress> {
        let raft = &self.raw.raft;
        let progress = raft.prs().get(replica)?;
        let was_active = self.active_at.get(&replica).is_some_and(|at| self.ticks - at < ANSWER_TICKS);
        Some(Progress {
            matched: progress.matched,
            is_active: progress.recent_active || replica == raft.id || was_active,
            takes_snapshot: progress.state == ProgressState::Snapshot,
        })
    }

    /// Appends `data` to the log of the leader. Returns its index, or `None` where this replica cannot propose.
    pub fn propose(&mut self, data: Vec<u8>) -> Option<u64> {
        self.raw.propose(Vec::new(), data).ok()?;
        Some(self.last_index())
    }

    /// Proposes a step to another set of replicas. Returns whether it was taken; there is one at a time.
    pub fn propose_change(&mut self, change: Change) -> bool {
        !self.is_changing()
            && self
                .raw
                .propose_conf_change(change.to_bytes().to_vec(), translate::change_to_raft(change))
                .is_ok()
    }

    /// Whether a change of the group is under way.
    pub fn is_changing(&self) -> bool {
        self.raw.raft.has_pending_conf()
    }

    /// The next round of work, if there is any. Its entries count as held in memory from now on.
    pub fn round(&mut self) -> Option<Round> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let number = ready.number();
        let snapshot = (!ready.snapshot().is_empty()).then(|| translate::mark_of(ready.snapshot()));
        if let Some(mark) = &snapshot {
            let conf = ConfState::from((mark.voters.clone(), mark.learners.clone()));
            self.raw.mut_store().restore(mark.index, mark.term, conf);
            self.installing = Some((number, mark.index));
        }
        let entries = ready.take_entries();
        self.raw.mut_store().append(&entries);
        if let Some(hard) = ready.hs() {
            self.raw.mut_store().hard = hard.clone();
            self.unsaved = true;
        }
        // What is committed costs no sync of its own, but goes with the next one: a restarted replica may know of its
        // group at most one step less than those who act on it.
        let save = ready.must_sync() && std::mem::take(&mut self.unsaved);
        let hard = save.then(|| self.hard());
        let committed = ready.take_committed_entries();
        for message in ready.take_messages().into_iter().filter_map(translate::message_from_raft) {
            self.say(message);
        }
        let promises: Vec<Message> =
            ready.take_persisted_messages().into_iter().filter_map(translate::message_from_raft).collect();
        if self.bugs.has(Bug::PromiseBeforeSync) {
            self.outbox.extend(promises);
        } else if !promises.is_empty() {
            self.held.push_back((number, promises));
        }
        let round = Round {
            number,
            snapshot,
            hard,
            must_sync: ready.must_sync(),
            entries: translate::all_from_raft(entries),
            committed: translate::all_from_raft(committed),
        };
        self.rounds.1 = number;
        self.raw.advance_append_async(ready);
        self.reseed();
        Some(round)
    }

    /// Everything of rounds up to `number` is on stable storage.
    pub fn persisted(&mut self, number: u64) {
        self.rounds.0 = number;
        self.raw.on_persist_ready(number);
        if let Some((_, index)) = self.installing.take_if(|(round, _)| *round <= number)
            && self.raw.raft.raft_log.applied < index
        {
            self.raw.advance_apply_to(index);
        }
        while self.held.front().is_some_and(|(round, _)| *round <= number) {
            let (_, promises) = self.held.pop_front().expect("looked at above");
            self.outbox.extend(promises);
        }
        self.reseed();
    }

    /// Puts a message into the outbox. An append that goes on where the one before it ends becomes part of that, as long as
    /// both together are no longer than one may be: what is proposed at once costs each follower one message.
    fn say(&mut self, mut message: Message) {
        let before = self.outbox.iter_mut().rev().find(|before| before.to == message.to);
        if let Some(before) = before
            && message.kind == MessageKind::Append
            && before.goes_on_with(&message)
            && before.encoded_bytes() + message.encoded_bytes() <= APPEND_BYTES_MAX as usize
        {
            before.commit = before.commit.max(message.commit);
            before.entries.append(&mut message.entries);
            return;
        }
        self.outbox.push(message);
    }

    /// Adds what is to be told other replicas now.
    ///
    /// A heartbeat says how long the leader's log is. A follower that has all of it, committed, answers with its next tick:
    /// then its node has heartbeats of its own to send, and the two are one packet. A leader of an earlier build says no
    /// length, and is answered at once.
    pub fn take_messages(&mut self, out: &mut Vec<Message>) {
        let last = self.last_index();
        for mut message in self.outbox.drain(..) {
            match message.kind {
                MessageKind::HeartbeatResponse if self.at_rest => {
                    self.answer = Some(message);
                    continue;
                }
                MessageKind::Heartbeat => message.index = last,
                _ => {}
            }
            out.push(message);
        }
    }

    /// A committed change of the group takes effect. Returns the group from now on.
    pub fn apply_change(&mut self, change: Change) -> Conf {
        // One that asks for what is so already, or would leave nobody, changes nothing.
        if let Ok(conf) = self.raw.apply_conf_change(&translate::change_to_raft(change)) {
            self.raw.mut_store().conf = conf;
        }
        // Elected before it had applied that it leaves: the crate does not expect a leader that is none of the group, and
        // panics when it hears of its disk.
        if self.raw.raft.prs().get(self.raw.raft.id).is_none() {
            self.step_down();
        }
        self.reseed();
        self.conf()
    }

    /// The group as of what was applied.
    pub fn conf(&self) -> Conf {
        let conf = &self.raw.store().conf;
        Conf { voters: conf.voters.clone(), learners: conf.learners.clone() }.sorted()
    }

    /// Everything up to `index` was applied; entries below need not be held in memory any more.
    pub fn applied(&mut self, index: u64) {
        let term = self.raw.store().term(index).unwrap_or(self.raw.store().applied.1);
        self.raw.advance_apply_to(index);
        let raft = &self.raw.raft;
        let (needed_above, bytes_max) = if raft.prs().iter().count() <= 1 {
            (index, 0)
        } else if raft.state == StateRole::Leader {
            let matched = raft.prs().iter().map(|(_, progress)| progress.matched);
            (matched.min().unwrap_or(index), LEADER_RETAINED_BYTES_MAX)
        } else {
            (0, FOLLOWER_RETAINED_BYTES_MAX)
        };
        let memory = self.raw.mut_store();
        memory.applied = (index, term);
        memory.forget(needed_above, bytes_max);
    }

    /// Bytes of entries kept in memory.
    pub fn retained_bytes(&self) -> u64 {
        self.raw.store().entry_bytes
    }

    /// Keeps at most `bytes_max` of entries that were applied.
    pub fn shrink(&mut self, bytes_max: u64) {
        self.raw.mut_store().forget(0, bytes_max);
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
        let now = (raft.term, raft.state as u64);
        if self.seeded.0 != now {
            let mixed = mix(self.seed ^ raft.id.rotate_left(17) ^ (now.0 << 8) ^ now.1);
            self.seeded = (now, ELECTION_TICKS + (mixed % ELECTION_TICKS as u64) as usize);
        }
        raft.set_randomized_election_timeout(self.seeded.1);
    }
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").field("term", &self.term()).field("leader", &self.leader()).finish()
    }
}

/// The first tick of a node after `now`. All of its replicas have the same ticks, and it probes its links with them, so that
/// what it says to another node of its own accord is one packet, and wakes that once. Nodes have different ones.
pub(crate) fn tick_after(node: NodeId, now: Instant) -> Instant {
    const TICK_NANOS: u64 = TICK_MILLIS * 1_000_000;
    // Multiples of the golden section lie far apart, however many there are.
    let phase = u64::from(node.0) * (TICK_NANOS * 618 / 1000) % TICK_NANOS;
    Instant((now.0 + TICK_NANOS - phase) / TICK_NANOS * TICK_NANOS + phase)
}

/// Scrambles `x`; the finalizer of SplitMix64.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
#[path = "consensus_tests.rs"]
mod tests;
