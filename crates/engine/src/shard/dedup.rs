//! Who sent what already: one high-watermark per producer, kept as long as the producer is remembered.
//!
//! There is no time window: a sequence at or below the watermark is a copy, one above the next is a gap, and a producer
//! that was forgotten must open a new session. Durable state: changed by `apply` only, part of every snapshot.
//!
//! Absent here: who is asking, what the messages say.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use swarmmq_protocol::{
    id::{Offset, ProducerEpoch, ProducerId, Salt, Sequence},
    limits::{FORGET_AFTER, PRODUCERS_PER_SHARD_MAX},
    time::WallTime,
};

/// Places of recent messages kept per producer, so that a repeated publish can be told its offset.
const RUNS_MAX: usize = 32;
/// Ranges of skipped sequences kept per producer; far more than a window of unanswered messages can hold. Older ones
/// count as taken, so a skip repeated that late is told to be too late.
const SKIPPED_MAX: usize = 1024;

/// Closed sessions dropped at once where there is no room.
const DROPPED_AT_ONCE: usize = 1024;

/// A session older than this when it is opened could have been forgotten already, and is refused.
pub const OPEN_AGE_MAX: Duration = Duration::from_secs(FORGET_AFTER.as_secs() / 2);

/// Consecutive sequences at consecutive offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub first: Sequence,
    pub offset: Offset,
    pub count: u64,
}

/// What the shard knows of one producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Producer {
    pub epoch: ProducerEpoch,
    pub salt: Salt,
    pub last: Sequence,
    pub seen_at: WallTime,
    pub closed: bool,
    pub recent: VecDeque<Run>,
    /// Closed without a message: first and last, apart from each other, in order.
    pub skipped: VecDeque<(Sequence, Sequence)>,
}

impl Producer {
    fn offset_of(&self, sequence: Sequence) -> Option<Offset> {
        self.recent
            .iter()
            .rev()
            .find(|run| run.first <= sequence && sequence.0 - run.first.0 < run.count)
            .map(|run| Offset(run.offset.0 + (sequence.0 - run.first.0)))
    }

    /// Whether all of `first..=last` was skipped. Neighbours are kept as one range, so one range must hold it.
    fn was_skipped(&self, first: Sequence, last: Sequence) -> bool {
        self.skipped.iter().rev().any(|(from, to)| *from <= first && last <= *to)
    }

    fn remember_skipped(&mut self, first: Sequence, last: Sequence) {
        if let Some((_, to)) = self.skipped.back_mut()
            && to.0 + 1 == first.0
        {
            *to = last;
            return;
        }
        if self.skipped.len() == SKIPPED_MAX {
            self.skipped.pop_front();
        }
        self.skipped.push_back((first, last));
    }

    fn remember(&mut self, sequence: Sequence, offset: Offset) {
        if let Some(run) = self.recent.back_mut()
            && run.first.0 + run.count == sequence.0
            && run.offset.0 + run.count == offset.0
        {
            run.count += 1;
            return;
        }
        if self.recent.len() == RUNS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(Run { first: sequence, offset, count: 1 });
    }
}

/// What a message's (producer, epoch, sequence) means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next one: take it.
    New,
    /// A copy of one that is in the log or was skipped; its place if still known.
    Seen(Option<Offset>),
    /// Something before it is missing. Nothing changes.
    Gap,
    /// A later life of this producer has spoken. Nothing changes.
    Fenced,
    /// No session is open; perhaps forgotten. Nothing changes.
    NotOpen,
}

/// Why a session was not opened. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenRefusal {
    /// Made too long ago, or not above the known epoch. Blame: client, or a replay.
    Stale,
    /// The shard remembers as many producers as it may. Blame: load.
    Full,
}

/// Every producer this shard remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producers {
    pub(super) known: BTreeMap<ProducerId, Producer>,
}

impl Producers {
    /// Judges without changing anything.
    pub fn classify(&self, producer: ProducerId, epoch: ProducerEpoch, sequence: Sequence) -> Verdict {
        let Some(known) = self.known.get(&producer) else { return Verdict::NotOpen };
        if epoch < known.epoch {
            return Verdict::Fenced;
        }
        if epoch > known.epoch {
            return Verdict::NotOpen;
        }
        if sequence <= known.last {
            return Verdict::Seen(known.offset_of(sequence));
        }
        if known.closed {
            return Verdict::Fenced;
        }
        if sequence.0 == known.last.0 + 1 { Verdict::New } else { Verdict::Gap }
    }

    /// Whether a session opened with `salt` is the one that is known: the salt makes the key, so it must match.
    pub fn salt_matches(&self, producer: ProducerId, salt: &Salt) -> bool {
        self.known.get(&producer).is_some_and(|known| known.salt == *salt)
    }

    /// The highest sequence taken of an open session; `None` where there is none.
    pub fn last(&self, producer: ProducerId, epoch: ProducerEpoch) -> Option<Sequence> {
        self.known
            .get(&producer)
            .filter(|known| known.epoch == epoch && !known.closed)
            .map(|known| known.last)
    }

    /// Opens a session, or finds it open already.
    pub(super) fn open(
        &mut self,
        time: WallTime,
        producer: ProducerId,
        epoch: ProducerEpoch,
        salt: Salt,
        created_at: WallTime,
    ) -> Result<(), OpenRefusal> {
        if let Some(known) = self.known.get(&producer) {
            if known.epoch == epoch && known.salt == salt && !known.closed {
                return Ok(());
            }
            if epoch <= known.epoch {
                return Err(OpenRefusal::Stale);
            }
        }
        if time.since(created_at) > OPEN_AGE_MAX {
            return Err(OpenRefusal::Stale);
        }
        if !self.known.contains_key(&producer) && self.known.len() >= PRODUCERS_PER_SHARD_MAX {
            self.forget(time);
            if self.known.len() >= PRODUCERS_PER_SHARD_MAX && !self.drop_closed() {
                return Err(OpenRefusal::Full);
            }
        }
        self.known.insert(
            producer,
            Producer {
                epoch,
                salt,
                last: Sequence(0),
                seen_at: time,
                closed: false,
                recent: VecDeque::new(),
                skipped: VecDeque::new(),
            },
        );
        Ok(())
    }

    /// Remembers a message that was judged new.
    pub(super) fn take(&mut self, time: WallTime, producer: ProducerId, sequence: Sequence, offset: Offset) {
        let known = self.known.get_mut(&producer).expect("judged new, so a session is open");
        debug_assert_eq!(sequence.0, known.last.0 + 1, "only the next sequence is new");
        known.last = sequence;
        known.seen_at = time;
        known.remember(sequence, offset);
    }

    /// Closes `first..=last` without messages, so that copies of them count as seen: all of them or, if a message was
    /// taken under one of them, none. Repeating a skip is harmless.
    pub(super) fn skip(
        &mut self,
        time: WallTime,
        producer: ProducerId,
        epoch: ProducerEpoch,
        first: Sequence,
        last: Sequence,
    ) -> Verdict {
        let verdict = self.classify(producer, epoch, first);
        if !matches!(verdict, Verdict::New | Verdict::Seen(_)) {
            return verdict;
        }
        let known = self.known.get_mut(&producer).expect("classified as known above");
        let fresh = if verdict == Verdict::New { first } else { Sequence(known.last.0 + 1) };
        // At or below the watermark a sequence was either taken or skipped.
        if first < fresh && !known.was_skipped(first, last.min(known.last)) {
            return verdict;
        }
        if known.closed && fresh <= last {
            return Verdict::Fenced;
        }
        known.seen_at = time;
        if fresh <= last {
            known.remember_skipped(fresh, last);
            known.last = last;
        }
        Verdict::New
    }

    /// Ends a session. Its watermark stays until forgotten, so that late copies are still recognised.
    pub(super) fn close(&mut self, producer: ProducerId, epoch: ProducerEpoch) {
        if let Some(known) = self.known.get_mut(&producer)
            && known.epoch == epoch
        {
            known.closed = true;
            known.recent.clear();
            known.skipped.clear();
        }
    }

    /// Drops who was silent for the forget time.
    pub(super) fn forget(&mut self, time: WallTime) {
        self.known.retain(|_, known| time.since(known.seen_at) <= FORGET_AFTER);
    }

    /// Makes room by dropping closed sessions, those first that have been silent longest; many at once, because looking
    /// for them costs as much as there are. False: there is none.
    fn drop_closed(&mut self) -> bool {
        let closed = self.known.iter().filter(|(_, known)| known.closed);
        let mut closed: Vec<_> = closed.map(|(id, known)| (known.seen_at, *id)).collect();
        closed.sort_unstable();
        closed.truncate(DROPPED_AT_ONCE);
        closed.iter().for_each(|(_, id)| drop(self.known.remove(id)));
        !closed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: ProducerId = ProducerId(7);
    const E: ProducerEpoch = ProducerEpoch(1);
    const T: WallTime = WallTime(1_000_000_000);

    fn opened() -> Producers {
        let mut producers = Producers::default();
        producers.open(T, P, E, Salt([1; 32]), T).unwrap();
        producers
    }

    #[test]
    fn sequences_are_new_once_and_seen_ever_after() {
        let mut producers = opened();
        assert_eq!(producers.classify(P, E, Sequence(1)), Verdict::New);
        producers.take(T, P, Sequence(1), Offset(10));
        assert_eq!(producers.classify(P, E, Sequence(1)), Verdict::Seen(Some(Offset(10))));
        assert_eq!(producers.classify(P, E, Sequence(2)), Verdict::New);
        assert_eq!(producers.classify(P, E, Sequence(3)), Verdict::Gap);
    }

    #[test]
    fn a_higher_epoch_fences_the_lower_and_starts_at_one() {
        let mut producers = opened();
        producers.take(T, P, Sequence(1), Offset(0));
        producers.open(T, P, ProducerEpoch(2), Salt([2; 32]), T).unwrap();
        assert_eq!(producers.classify(P, E, Sequence(2)), Verdict::Fenced);
        assert_eq!(producers.classify(P, ProducerEpoch(2), Sequence(1)), Verdict::New);
        assert_eq!(producers.open(T, P, E, Salt([1; 32]), T), Err(OpenRefusal::Stale));
    }

    #[test]
    fn opening_the_same_session_again_changes_nothing() {
        let mut producers = opened();
        producers.take(T, P, Sequence(1), Offset(0));
        producers.open(T, P, E, Salt([1; 32]), T).unwrap();
        assert_eq!(producers.classify(P, E, Sequence(2)), Verdict::New);
        assert_eq!(
            producers.open(T, P, E, Salt([9; 32]), T),
            Err(OpenRefusal::Stale),
            "same epoch, other salt"
        );
    }

    #[test]
    fn a_session_made_too_long_ago_is_refused() {
        let mut producers = Producers::default();
        let late = T.plus(OPEN_AGE_MAX + Duration::from_secs(1));
        assert_eq!(producers.open(late, P, E, Salt([1; 32]), T), Err(OpenRefusal::Stale));
    }

    #[test]
    fn a_silent_producer_is_forgotten_and_then_refused_not_silently_taken() {
        let mut producers = opened();
        producers.take(T, P, Sequence(1), Offset(0));
        let late = T.plus(FORGET_AFTER + Duration::from_secs(1));
        producers.forget(late);
        assert_eq!(producers.classify(P, E, Sequence(1)), Verdict::NotOpen);
        assert_eq!(producers.open(late, P, E, Salt([1; 32]), T), Err(OpenRefusal::Stale));
    }

    #[test]
    fn a_full_memory_drops_closed_sessions_and_refuses_where_all_are_open() {
        let mut producers = Producers::default();
        for n in 0..PRODUCERS_PER_SHARD_MAX as u128 {
            producers.open(T, ProducerId(n), E, Salt([1; 32]), T).unwrap();
        }
        let newcomer = ProducerId(u128::MAX);
        assert_eq!(producers.open(T, newcomer, E, Salt([1; 32]), T), Err(OpenRefusal::Full));
        producers.close(ProducerId(7), E);
        assert_eq!(producers.open(T, newcomer, E, Salt([1; 32]), T), Ok(()));
        assert_eq!(producers.classify(ProducerId(7), E, Sequence(1)), Verdict::NotOpen);
        let late = T.plus(FORGET_AFTER + Duration::from_secs(1));
        assert_eq!(
            producers.open(late, ProducerId(7), E, Salt([1; 32]), late),
            Ok(()),
            "the silent are forgotten"
        );
        assert_eq!(producers.known.len(), 1);
    }

    #[test]
    fn a_skip_closes_sequences_for_ever() {
        let mut producers = opened();
        assert_eq!(producers.skip(T, P, E, Sequence(1), Sequence(3)), Verdict::New);
        assert_eq!(producers.classify(P, E, Sequence(2)), Verdict::Seen(None));
        assert_eq!(producers.classify(P, E, Sequence(4)), Verdict::New);
        assert_eq!(producers.skip(T, P, E, Sequence(6), Sequence(6)), Verdict::Gap);
    }

    #[test]
    fn a_skip_may_be_repeated_and_grow() {
        let mut producers = opened();
        producers.skip(T, P, E, Sequence(1), Sequence(3));
        assert_eq!(producers.skip(T, P, E, Sequence(1), Sequence(3)), Verdict::New);
        assert_eq!(producers.skip(T, P, E, Sequence(2), Sequence(5)), Verdict::New);
        assert_eq!(producers.classify(P, E, Sequence(6)), Verdict::New);
        assert_eq!(producers.known[&P].skipped, [(Sequence(1), Sequence(5))]);
    }

    #[test]
    fn a_skip_that_comes_after_one_of_its_messages_changes_nothing() {
        let mut producers = opened();
        producers.take(T, P, Sequence(1), Offset(9));
        let before = producers.clone();
        assert_eq!(producers.skip(T, P, E, Sequence(1), Sequence(4)), Verdict::Seen(Some(Offset(9))));
        assert_eq!(producers, before);
        producers.skip(T, P, E, Sequence(2), Sequence(2));
        producers.take(T, P, Sequence(3), Offset(10));
        assert_eq!(producers.skip(T, P, E, Sequence(2), Sequence(3)), Verdict::Seen(None));
        assert_eq!(producers.skip(T, P, E, Sequence(2), Sequence(2)), Verdict::New);
    }

    #[test]
    fn old_skips_are_forgotten_and_then_count_as_taken() {
        let mut producers = opened();
        for n in 0..=SKIPPED_MAX as u64 {
            producers.skip(T, P, E, Sequence(2 * n + 1), Sequence(2 * n + 1));
            producers.take(T, P, Sequence(2 * n + 2), Offset(n));
        }
        assert_eq!(producers.known[&P].skipped.len(), SKIPPED_MAX);
        assert!(matches!(producers.skip(T, P, E, Sequence(1), Sequence(1)), Verdict::Seen(_)));
        assert_eq!(producers.skip(T, P, E, Sequence(3), Sequence(3)), Verdict::New);
    }

    #[test]
    fn a_closed_session_takes_nothing_more_and_cannot_be_reopened() {
        let mut producers = opened();
        producers.take(T, P, Sequence(1), Offset(0));
        producers.close(P, E);
        assert!(matches!(producers.classify(P, E, Sequence(1)), Verdict::Seen(_)));
        assert_eq!(producers.classify(P, E, Sequence(2)), Verdict::Fenced);
        assert_eq!(producers.open(T, P, E, Salt([1; 32]), T), Err(OpenRefusal::Stale));
    }

    #[test]
    fn places_of_recent_messages_are_kept_in_runs() {
        let mut producers = opened();
        for n in 1..=100 {
            producers.take(T, P, Sequence(n), Offset(if n <= 50 { n } else { n + 5 }));
        }
        assert_eq!(producers.known[&P].recent.len(), 2);
        assert_eq!(producers.classify(P, E, Sequence(50)), Verdict::Seen(Some(Offset(50))));
        assert_eq!(producers.classify(P, E, Sequence(51)), Verdict::Seen(Some(Offset(56))));
    }
}
