//! When a settlement may wait for something to be written with.
//!
//! A settlement costs what a message costs: an entry, a packet to each follower and back, a sync on each replica. Where
//! messages keep coming it can share theirs, and nobody loses by it as long as nothing waits for what it frees: the same
//! trade as in Nagle's algorithm (RFC 896), with the same remedy, that whoever waited in vain does not wait again soon.

use std::{collections::BTreeSet, time::Duration};

use swarmmq_protocol::time::Instant;

/// Longest wait of a settlement. Messages that come less often than this are not waited for.
const PATIENCE: Duration = Duration::from_millis(4);
/// Settlements that go at once after one that waited in vain.
const DISAPPOINTED: u32 = 16;

/// What this node, as a leader, expects to write soon, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Company {
    /// When messages were last taken for a shard that is led here, and how long after those before.
    latest: Option<Instant>,
    pause: Option<Duration>,
    /// How many settlements are not to wait.
    impatient: u32,
    /// Shards with settlements that wait.
    waiting: BTreeSet<usize>,
    until: Option<Instant>,
}

impl Company {
    /// Messages were taken.
    pub(super) fn comes(&mut self, now: Instant) {
        if self.latest != Some(now) {
            self.pause = self.latest.map(|latest| now.since(latest));
            self.latest = Some(now);
        }
    }

    /// Whether a settlement may wait, since messages are likely to come before anybody notices.
    pub(super) fn is_expected(&mut self, now: Instant) -> bool {
        if self.impatient > 0 {
            self.impatient -= 1;
            return false;
        }
        self.reach().is_some_and(|reach| reach > now)
    }

    /// When messages should have come.
    fn reach(&self) -> Option<Instant> {
        let pause = self.pause.filter(|pause| *pause <= PATIENCE)?;
        Some(self.latest? + PATIENCE.min(pause * 2))
    }

    /// `shard` has settlements that wait.
    pub(super) fn await_with(&mut self, shard: usize) {
        self.waiting.insert(shard);
        self.until = self.until.or(self.reach());
    }

    /// Something is being written: whoever waited goes with it.
    pub(super) fn take(&mut self) -> BTreeSet<usize> {
        self.until = None;
        std::mem::take(&mut self.waiting)
    }

    /// Nothing came in time: whoever waited goes alone.
    pub(super) fn give_up(&mut self, now: Instant) -> BTreeSet<usize> {
        if self.until.is_none_or(|until| until > now) {
            return BTreeSet::new();
        }
        self.impatient = DISAPPOINTED;
        self.take()
    }

    /// When [`Company::give_up`] has something to do.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant(1_000_000_000) + Duration::from_micros(micros)
    }

    #[test]
    fn settlements_wait_where_messages_keep_coming_and_for_twice_their_pause() {
        let mut company = Company::default();
        assert!(!company.is_expected(at(0)), "nothing has come yet");
        company.comes(at(0));
        assert!(!company.is_expected(at(10)), "one message says nothing of the next");
        company.comes(at(1_000));
        company.comes(at(1_000));
        assert!(company.is_expected(at(1_500)));
        company.await_with(3);
        assert_eq!(company.next_wake(), Some(at(3_000)));
        assert!(company.give_up(at(2_900)).is_empty());
        assert_eq!(company.take().into_iter().collect::<Vec<_>>(), [3]);
        assert_eq!(company.next_wake(), None);
    }

    #[test]
    fn rare_messages_are_not_waited_for() {
        let mut company = Company::default();
        company.comes(at(0));
        company.comes(at(4_100));
        assert!(!company.is_expected(at(4_200)));
        company.comes(at(5_000));
        assert!(company.is_expected(at(5_100)));
        assert!(!company.is_expected(at(7_000)), "they have stopped");
    }

    #[test]
    fn whoever_waited_in_vain_does_not_wait_again_soon() {
        let mut company = Company::default();
        company.comes(at(0));
        company.comes(at(1_000));
        company.await_with(2);
        assert_eq!(company.give_up(at(3_000)).into_iter().collect::<Vec<_>>(), [2]);
        for n in 0..u64::from(DISAPPOINTED) {
            company.comes(at(4_000 + n));
            assert!(!company.is_expected(at(4_000 + n)));
        }
        company.comes(at(5_000));
        assert!(company.is_expected(at(5_100)));
    }
}
