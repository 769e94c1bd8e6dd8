//! A shard among its replicas: reigns that begin and end, states that travel, and the group that changes one step at a
//! time. What is said to other replicas leaves as [`Work::messages`].

use bytes::Bytes;
use swarmmq_protocol::{
    consensus::{Message, MessageKind, SnapshotMark},
    error::Code,
    id::{NodeId, ShardId},
};

use super::{
    RECORD_INSTALLED, RECORD_MOVED, Shard, Work, codec,
    consensus::{Change, Conf, Consensus, Hard, Progress, Restored, mix, tick_after},
    intake::{Intake, Payload, StatePart},
    member::{Wish, node_of},
    state::{FOUNDING_INDEX, NOWHERE, State},
};
use crate::{
    log::{Position, Writer},
    node::{Now, bug::Bug},
};

/// Time in which a leader must see a proposal commit, or make room for another (safety rule 22): an election timeout.
const STALL_TIME_MAX: std::time::Duration = std::time::Duration::from_millis(1200);
/// Time between two candidates after their leader's process is gone; the first asks at once.
const STAGGER_MILLIS: u64 = 25;
/// Silence of a replica that is being caught up after which its leader begins anew.
const PULL_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(5);
/// Time after which a replica that left may come again under its name. What it had confirmed before it forgot everything
/// must not arrive any more: its leader would count on it.
const RETURN_TIME: std::time::Duration = std::time::Duration::from_secs(10);
/// Entries a follower may lack and still count as caught up.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// Bytes of a state in one packet.
const STATE_PART_BYTES: usize = 1 << 20;
/// Parts of a state that are under way at a time: all of a large one would be more than a link holds.
const STATE_PARTS_AHEAD: u32 = 4;

/// This replica's state, as it is being given to another one.
#[derive(Debug)]
pub(super) struct Giving {
    index: u64,
    term: u64,
    bytes: Bytes,
    /// Parts that were sent.
    sent: u32,
}

impl Shard {
    /// The replicas, as of what was applied.
    pub fn conf(&self) -> &Conf {
        &self.state.conf
    }

    /// The replica that leads as far as this one knows.
    pub fn leader(&self) -> Option<NodeId> {
        Some(self.consensus.leader()).filter(|leader| *leader != 0).map(node_of)
    }

    /// Whether what this replica has applied is all that it knows to be committed, and somebody leads.
    pub fn is_current(&self) -> bool {
        let leader = self.consensus.leader();
        let follows = leader != 0 && leader != self.replica && !self.state.conf.is_empty();
        self.is_serving() || follows && self.state.applied >= self.consensus.committed()
    }

    /// Whether the group as it is would still be known if all replicas restarted now: most voters have stored an entry
    /// that was proposed when the latest change had been applied, and with it that the change is committed.
    pub fn is_group_settled(&self) -> bool {
        let Some(index) = self.group_marked_at else { return false };
        let voters = &self.state.conf.voters;
        let has_mark =
            |voter: &&u64| self.consensus.progress(**voter).is_some_and(|progress| progress.matched >= index);
        self.is_serving() && voters.iter().filter(has_mark).count() * 2 > voters.len()
    }

    /// Proposes an empty entry behind a change of the group, or the beginning of a reign.
    pub(super) fn mark_group(&mut self) {
        if self.group_unmarked && self.is_serving() {
            self.group_marked_at = self.consensus.propose(Vec::new());
            self.group_unmarked = self.group_marked_at.is_none();
        }
    }

    /// The leader says who the replicas are, as of a state at least as new as ours. One that is none of them any more
    /// forgets what it held, but not whom it voted for.
    ///
    /// * `is_settled`: see [`Shard::is_group_settled`]. Before that, who restarts may still believe in the group with this
    ///   replica in it, and need its vote.
    pub fn told_of_group(&mut self, voters: &[u64], learners: &[u64], applied: u64, is_settled: bool) {
        let belongs = voters.contains(&self.replica) || learners.contains(&self.replica);
        // Appends and announcements overtake each other. Whoever is sent entries belonged to the group then, also before it has
        // the entry that says so, and has perhaps confirmed some: only a later state can say otherwise.
        let is_later = applied >= self.fed_as_of;
        let is_news = applied > self.consensus.last_index() && is_later && self.intake.is_none();
        self.leaving = is_settled && !belongs && !self.state.conf.is_empty() && is_news;
    }

    /// Lets go of everything but whom this replica voted for, once it belongs to the group no more.
    pub(super) fn retire(&mut self, log: &mut Writer, work: &mut Work) {
        // Rounds on their way to the disk belong to the old part.
        if !self.leaving || self.consensus.is_leader() || !self.unsynced.is_empty() {
            return;
        }
        self.leaving = false;
        self.fed_as_of = 0;
        self.end_reign(Code::NotLeader, work);
        let hard = Hard { commit: 0, ..self.consensus.hard() };
        let restored = Restored { hard, ..Restored::default() };
        let consensus = Consensus::new(self.replica, restored, self.seed, self.bugs);
        self.consensus = consensus.announcing_commits(self.is_clusters());
        self.state = State { bugs: self.bugs, ..State::default() };
        self.applied_term = 0;
        self.places.clear();
        self.intake = None;
        self.campaign_at = None;
        self.last_round = 0;
        self.put_snapshot(RECORD_INSTALLED, log);
        work.regrouped = true;
    }

    /// Whether this node holds a replica.
    pub fn is_replica(&self) -> bool {
        self.state.conf.contains(self.replica)
    }

    /// Whether this replica leads, perhaps without knowing everything yet.
    pub fn is_leader(&self) -> bool {
        self.consensus.is_leader()
    }

    /// Whether a leader has shown that this replica lacks what it once promised to have.
    pub fn has_amnesia(&self) -> bool {
        self.consensus.has_amnesia()
    }

    /// Replicas whose logs hold all but the latest entries; only the leader knows.
    pub fn in_sync(&self) -> Vec<u64> {
        if !self.is_serving() {
            return Vec::new();
        }
        let is_close = |replica: &u64| self.is_caught_up(*replica);
        self.state.conf.members().filter(is_close).collect()
    }

    fn is_caught_up(&self, replica: u64) -> bool {
        let progress = self.consensus.progress(replica);
        progress.is_some_and(|Progress { matched, is_active, takes_snapshot }| {
            // In a short log everybody is close to its end, also who has confirmed nothing at all.
            let has_begun = matched >= FOUNDING_INDEX;
            is_active
                && has_begun
                && !takes_snapshot
                && matched + CAUGHT_UP_ENTRIES >= self.consensus.last_index()
        })
    }

    pub(super) fn tick(&mut self, now: Now, work: &mut Work) {
        if self.campaign_at.is_some_and(|at| at <= now.monotonic) {
            self.campaign_at = None;
            if self.consensus.leader() == 0 && !self.consensus.is_leader() {
                self.consensus.campaign();
            }
        }
        if now.monotonic < self.next_tick {
            return;
        }
        self.consensus.tick();
        self.next_tick = tick_after(node_of(self.replica), now.monotonic);
        if !self.consensus.is_leader() {
            self.stalled_since = None;
            return;
        }
        let committed = self.consensus.committed();
        match self.stalled_since {
            _ if self.consensus.last_index() == committed => self.stalled_since = None,
            Some((since, mark)) if mark == committed => {
                let alone = self.state.conf.voters.len() == 1;
                if now.monotonic.since(since) > STALL_TIME_MAX && !alone {
                    self.consensus.step_down();
                    self.follow_reign(work);
                }
            }
            _ => self.stalled_since = Some((now.monotonic, committed)),
        }
        for replica in self.state.conf.members().collect::<Vec<_>>() {
            if self.consensus.progress(replica).is_some_and(|progress| progress.takes_snapshot) {
                let heard = *self.pulled_at.entry(replica).or_insert(now.monotonic);
                if now.monotonic.since(heard) > PULL_TIME_MAX {
                    self.pulled_at.insert(replica, now.monotonic);
                    self.consensus.unreachable(replica);
                }
            }
        }
    }

    /// Notices that a reign of this replica ended or another began.
    pub(super) fn follow_reign(&mut self, work: &mut Work) {
        let reign = self.consensus.is_leader().then_some(self.consensus.term().0);
        if self.reign == reign {
            return;
        }
        if self.reign.is_some() {
            self.end_reign(Code::NotLeader, work);
        }
        self.reign = reign;
        work.regrouped = true;
    }

    /// Takes what another replica says.
    pub fn step(&mut self, now: Now, message: Message) {
        if self.stopped.is_some() || message.to != self.replica {
            return;
        }
        // Who holds nothing has no voice: one that left and forgot what it had stored would let somebody lead who never
        // heard of it, if that one still counts it as a voter.
        let asks = matches!(message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote);
        if asks && self.state.conf.is_empty() {
            return;
        }
        let feeds = matches!(message.kind, MessageKind::Append | MessageKind::Snapshot);
        if feeds && message.term >= self.consensus.term().0 {
            let as_of = message.snapshot.as_ref().map_or(message.commit, |mark| mark.index);
            self.fed_as_of = self.fed_as_of.max(as_of);
            self.leaving = false;
        }
        let lags = message.snapshot.as_ref().is_some_and(|mark| mark.index > self.consensus.committed());
        if message.kind != MessageKind::Snapshot || !lags {
            self.consensus.step(message);
            return;
        }
        if message.term < self.consensus.term().0 {
            return;
        }
        // Consensus hears of it once everything is here. Until then its sender is the leader, as with a heartbeat.
        self.consensus.step(Message {
            kind: MessageKind::Heartbeat,
            from: message.from,
            to: message.to,
            term: message.term,
            ..Message::default()
        });
        match &mut self.intake {
            Some(intake) if intake.source() == node_of(message.from) => intake.heard(message),
            _ => self.intake = Some(Intake::new(now.monotonic, message)),
        }
    }

    /// A node cannot be reached any more; `gone`: its process has ended.
    pub fn lost_node(&mut self, now: Now, node: NodeId, gone: bool) {
        for replica in
            self.state.conf.members().filter(|replica| node_of(*replica) == node).collect::<Vec<_>>()
        {
            self.consensus.unreachable(replica);
        }
        if self.intake.as_ref().is_some_and(|intake| intake.source() == node) {
            self.intake = None;
        }
        self.giving.remove(&node);
        if gone && self.leader() == Some(node) && !self.consensus.is_leader() {
            self.consensus.forget_leader();
            if self.consensus.is_voter() {
                let voters = &self.state.conf.voters;
                let rank = voters.iter().position(|voter| *voter == self.replica).unwrap_or(0) as u64;
                let turn = (rank + mix(self.seed ^ self.consensus.term().0)) % voters.len().max(1) as u64;
                self.campaign_at =
                    Some(now.monotonic + std::time::Duration::from_millis(turn * STAGGER_MILLIS));
            }
        }
    }

    /// A committed change of the group takes effect.
    pub(super) fn regroup(&mut self, now: Now, data: &[u8], work: &mut Work) {
        let change = Change::read(data).expect("this shard proposed it and its checksum holds");
        if let Change::Leave(replica) = change {
            self.left_at.insert(replica, now.monotonic);
        }
        let conf = self.consensus.apply_change(change);
        self.state.regroup(conf);
        self.group_marked_at = None;
        self.group_unmarked = true;
        work.regrouped = true;
    }

    /// Another replica's state replaces this one's: everything of it was handed to the log before.
    pub(super) fn install(&mut self, mark: &SnapshotMark, log: &mut Writer, work: &mut Work) {
        let intake = self.intake.take().expect("consensus is told of a snapshot only when its state is here");
        let (state, term) = intake.finish();
        assert_eq!((state.applied, term), (mark.index, mark.term), "the state that consensus was told of");
        self.state = state;
        self.applied_term = term;
        self.places.clear();
        self.proposed.clear();
        self.put_snapshot(RECORD_INSTALLED, log);
        work.regrouped = true;
    }

    pub(super) fn advance_intake(&mut self, now: Now, work: &mut Work) {
        let Some(intake) = &mut self.intake else { return };
        intake.lose_patience(now.monotonic);
        let source = intake.source();
        let mut wanted = Vec::new();
        intake.wants(now.monotonic, &mut wanted);
        work.wanted.extend(wanted.into_iter().map(|wanted| (source, wanted)));
        let early = self.bugs.has(Bug::InstallWithoutPayloads) && intake.has_state();
        if !intake.is_whole() && !early {
            return;
        }
        let message = intake.announcement();
        self.consensus.step(message);
        if !self.consensus.has_snapshot() {
            // Consensus found what it lacked in its own log.
            self.intake = None;
        }
    }

    /// Takes part of another replica's state.
    pub fn take_state(&mut self, now: Now, from: NodeId, part: &StatePart) {
        let Some(intake) = self.intake.as_mut().filter(|intake| intake.source() == from) else { return };
        intake.part(now.monotonic, part, &self.state, self.bugs);
    }

    /// Takes payloads that were asked for; they go to the log with the next batch.
    pub fn take_payloads(&mut self, now: Now, from: NodeId, payloads: Vec<Payload>, log: &mut Writer) {
        let Some(intake) = self.intake.as_mut().filter(|intake| intake.source() == from) else { return };
        let shard = self.id.0;
        intake.payloads(now.monotonic, payloads, &mut |payload, sealed| {
            put_moved(log, shard, &payload.address, payload.offset, sealed)
        });
    }

    /// This replica's state for another one: its first parts.
    pub fn give_state(&mut self, now: Now, to: NodeId) -> Vec<StatePart> {
        self.pulled(now, to);
        self.giving.remove(&to);
        if !self.consensus.is_leader() {
            return Vec::new();
        }
        let bytes = if self.bugs.has(Bug::SendStateWithoutProducers) {
            let producers = super::dedup::Producers::default();
            Bytes::from(State { producers, ..self.state.clone() }.to_portable())
        } else {
            Bytes::from(self.state.to_portable())
        };
        let giving = Giving { index: self.state.applied, term: self.applied_term, bytes, sent: 0 };
        self.giving.insert(to, giving);
        self.give_parts(to, 0)
    }

    /// Of the state that is being given to another one, what may follow the `come` parts that are there.
    pub fn give_more(
        &mut self,
        now: Now,
        to: NodeId,
        (index, term): (u64, u64),
        come: u32,
    ) -> Vec<StatePart> {
        self.pulled(now, to);
        let is_this = self.giving.get(&to).is_some_and(|giving| (giving.index, giving.term) == (index, term));
        if !is_this || !self.consensus.is_leader() {
            return Vec::new();
        }
        self.give_parts(to, come)
    }

    fn give_parts(&mut self, to: NodeId, come: u32) -> Vec<StatePart> {
        let Some(giving) = self.giving.get_mut(&to) else { return Vec::new() };
        let parts = giving.bytes.len().div_ceil(STATE_PART_BYTES) as u32;
        // What was not sent cannot have come.
        let until = (come.min(giving.sent) + STATE_PARTS_AHEAD).min(parts).max(giving.sent);
        let next = std::mem::replace(&mut giving.sent, until)..until;
        let part = |part: u32| {
            let from = part as usize * STATE_PART_BYTES;
            let to = giving.bytes.len().min(from + STATE_PART_BYTES);
            let bytes = giving.bytes.slice(from..to);
            StatePart { index: giving.index, term: giving.term, part, parts, bytes }
        };
        let given = next.map(part).collect();
        if until == parts {
            self.giving.remove(&to);
        }
        given
    }

    /// Another replica is still being caught up.
    pub fn pulled(&mut self, now: Now, to: NodeId) {
        for replica in self.state.conf.members().filter(|replica| node_of(*replica) == to).collect::<Vec<_>>()
        {
            self.pulled_at.insert(replica, now.monotonic);
        }
    }

    /// Where the payload of a message lies: place, length, checksum. What was dead-lettered meanwhile is found there.
    pub fn find_payload(
        &self,
        address: &swarmmq_protocol::id::Address,
        offset: u64,
    ) -> Option<(Position, u32, u32)> {
        let queues = &self.state.queues;
        let message = queues.get(address).and_then(|queue| queue.messages.get(&offset)).or_else(|| {
            let dead = queues.get(&address.dead_letter()?)?;
            dead.messages
                .values()
                .find(|message| message.dead.as_ref().is_some_and(|letter| letter.origin.0 == offset))
        })?;
        (message.place != NOWHERE).then_some((message.place, message.length, message.crc))
    }

    /// Bytes of a payload, if they are in memory.
    pub fn cached(&self, place: Position, length: u32) -> Option<Bytes> {
        match self.cache.get(place, length) {
            super::cache::Fetched::Written(sealed) | super::cache::Fetched::Read(sealed) => Some(sealed),
            super::cache::Fetched::Missing => None,
        }
    }

    /// Whether most of the other voters are here and have everything: a smaller group may need the one that is lost.
    fn can_spare(&self, voter: u64, is_up: &dyn Fn(NodeId) -> bool) -> bool {
        let rest = || self.state.conf.voters.iter().copied().filter(|other| *other != voter);
        let is_here =
            |other: &u64| *other == self.replica || is_up(node_of(*other)) && self.is_caught_up(*other);
        let here = rest().filter(is_here).count();
        here * 2 > rest().count()
    }

    /// Takes one step towards `wish`, if this replica leads and no step is under way. Returns whether the wish is met.
    ///
    /// * `may_lead`: who should be handed the lead where there is a choice.
    pub fn steer(
        &mut self,
        now: Now,
        wish: &Wish,
        is_up: &dyn Fn(NodeId) -> bool,
        may_lead: &dyn Fn(NodeId) -> bool,
    ) -> bool {
        if !self.is_serving() || self.consensus.is_transferring() {
            return true;
        }
        let conf = self.state.conf.clone();
        if wish.is_met(&conf) {
            return true;
        }
        if self.consensus.is_changing() {
            return false;
        }
        let wanted = || wish.voters.iter().chain(&wish.learners).copied();
        let changes = || {
            // A disk that was replaced never comes back: its vote goes before the new one's comes.
            let is_replaced = |old: &u64| {
                !wanted().any(|new| new == *old) && wanted().any(|new| node_of(new) == node_of(*old))
            };
            let may_come = |replica: &u64| {
                let just_left = self.left_at.get(replica);
                let is_late = just_left.is_none_or(|at| now.monotonic.since(*at) > RETURN_TIME);
                !conf.contains(*replica) && is_late && is_up(node_of(*replica))
            };
            if let Some(new) = wanted().find(may_come) {
                return Some(Change::Follow(new));
            }
            let ready = |replica: &u64| conf.learners.contains(replica) && self.is_caught_up(*replica);
            let any = |replica: &u64| conf.learners.contains(replica);
            let rash = self.bugs.has(Bug::PromoteEmptyReplica);
            let next = wish.voters.iter().copied().find(|new| ready(new) || rash && any(new));
            match (next, conf.voters.iter().copied().find(is_replaced)) {
                (Some(_), Some(old)) if self.can_spare(old, is_up) => return Some(Change::Leave(old)),
                (Some(new), None) => return Some(Change::Vote(new)),
                _ => {}
            }
            if let Some(gone) =
                conf.learners.iter().copied().find(|replica| !wanted().any(|new| new == *replica))
            {
                return Some(Change::Leave(gone));
            }
            let complete = wish.voters.iter().all(|replica| conf.voters.contains(replica));
            let is_surplus = |replica: &u64| {
                !wish.voters.contains(replica) && *replica != self.replica && self.can_spare(*replica, is_up)
            };
            let surplus = conf.voters.iter().copied().find(is_surplus);
            match surplus {
                // Its vote goes and the rest stays: one that left would forget what it has just promised to have.
                Some(gone) if wish.learners.contains(&gone) => Some(Change::Follow(gone)),
                Some(gone) if complete => Some(Change::Leave(gone)),
                _ => None,
            }
        };
        if let Some(change) = changes() {
            self.consensus.propose_change(change);
        } else if !wish.voters.contains(&self.replica) {
            // What is left is this replica itself: another has to lead before it can go.
            let has_all = |replica: &u64| conf.voters.contains(replica) && self.is_caught_up(*replica);
            let heirs = || wish.voters.iter().copied().filter(has_all);
            let heir = heirs().find(|replica| may_lead(node_of(*replica))).or_else(|| heirs().next());
            if let Some(heir) = heir {
                self.consensus.transfer(heir);
            }
        }
        false
    }

    /// Hands the lead to a replica on another node that has everything, the `preferred` one if it can be. Returns
    /// whether there is one.
    pub fn hand_over(&mut self, preferred: Option<u64>) -> bool {
        if !self.consensus.is_leader() || self.consensus.is_transferring() {
            return self.consensus.is_leader();
        }
        let fits = |replica: &u64| *replica != self.replica && self.is_caught_up(*replica);
        let heir = match preferred {
            Some(replica) => {
                Some(replica).filter(|replica| self.state.conf.voters.contains(replica) && fits(replica))
            }
            None => self.state.conf.voters.iter().copied().find(fits),
        };
        if let Some(heir) = heir {
            self.consensus.transfer(heir);
        }
        heir.is_some()
    }

    /// Whether the lead is on its way to another replica; it may yet stay.
    pub fn is_handing_over(&self) -> bool {
        self.consensus.is_leader() && self.consensus.is_transferring()
    }

    /// Whether the shard is the cluster's own.
    pub fn is_clusters(&self) -> bool {
        self.id == ShardId::CLUSTER
    }
}

/// Appends a copy of a message's bytes. Returns where they lie.
pub(super) fn put_moved(
    log: &mut Writer,
    shard: u32,
    address: &swarmmq_protocol::id::Address,
    offset: u64,
    sealed: &[u8],
) -> Position {
    let mut head = Vec::with_capacity(address.as_str().len() + 2);
    codec::put_text(&mut head, address.as_str());
    let place = log.append(RECORD_MOVED, shard, offset, 0, &[&head, sealed]);
    Position { segment: place.segment, offset: place.offset + head.len() as u32 }
}
