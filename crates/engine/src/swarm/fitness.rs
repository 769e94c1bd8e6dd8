//! Which nodes are slow: too slow to lead while others could. Nothing but who leads may follow from it.
//!
//! Of every node there is one number, its service time: how late its loop comes and how long its disk takes. A node is slow
//! when that is high in itself and out of line with the others, several samples in a row; it is not slow again before
//! it has been in line for longer, and the longer the more often it has changed. Of all nodes at most a minority is called
//! slow, so that there is always somebody who can lead, and nobody is while too few are known to say what is usual.
//! Absent here: what is done about it (`node/peer`), where the numbers come from (`swarm/mod`).
//!
//! Sources: RFC 2439 for the penalty; median and median absolute deviation as the average that a few bad nodes cannot move.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmmq_protocol::{id::NodeId, time::Instant};

use super::{damping::Penalty, report::Load};

/// Service time below which nobody is slow, in microseconds, however quick the others are.
const FLOOR_US: u32 = 20_000;
/// How many times the median of the others a node may take.
const MEDIANS: u32 = 4;
/// How many median absolute deviations above the median of the others a node may be.
const DEVIATIONS: u32 = 5;
/// Samples in a row above the limit that make a node slow.
const SAMPLES_SLOW: u8 = 3;
/// Samples in a row below half the limit after which it may be called fit again: 5 s.
const SAMPLES_FIT: u8 = 25;
/// Becoming slow counts as so many failures of a link: it lasts for some 20 s at least.
const FAILURES: usize = 3;
/// Nodes whose service times must be known before anybody is slow.
const KNOWN_MIN: usize = 3;
/// Whoever was missed gets no lead before it has been heard for so long.
const STEADY: Duration = Duration::from_secs(3);

/// How long a node with this load takes for what it is asked, in microseconds.
pub fn service_us(load: &Load) -> u32 {
    load.lag_us.saturating_add(load.fsync_us)
}

/// What is known of one node at one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Its service time, in microseconds.
    Takes(u32),
    /// What it said last is too old to count.
    Unknown,
    /// It is not heard: whatever it said last does not count.
    Missed,
}

#[derive(Clone, Debug, Default)]
struct Subject {
    /// As of the latest sample that counts.
    us: u32,
    /// Samples in a row above the limit, and below half of it.
    above: u8,
    below: u8,
    /// Out of line and not back yet.
    is_out: bool,
    /// Called slow: out of line, or by its own word, and among the few who can be.
    is_slow: bool,
    penalty: Penalty,
    missed_at: Option<Instant>,
    /// When it was called fit again.
    fit_since: Option<Instant>,
}

impl Subject {
    fn take(&mut self, now: Instant, seen: Seen, limit_us: Option<u32>) {
        let (Seen::Takes(us), Some(limit)) = (seen, limit_us) else {
            if seen == Seen::Missed {
                self.missed_at = Some(now);
            }
            self.below = 0;
            return;
        };
        self.us = us;
        let (is_above, is_below) = (us > limit, us < limit / 2);
        self.above = if is_above { self.above.saturating_add(1) } else { 0 };
        self.below = if is_below { self.below.saturating_add(1) } else { 0 };
        self.is_out |= self.above >= SAMPLES_SLOW;
        self.is_out &= self.below < SAMPLES_FIT || self.penalty.is_suppressed(now);
    }

    fn call(&mut self, now: Instant, is_slow: bool) -> bool {
        let failures = match (self.is_slow, is_slow) {
            (false, true) => FAILURES,
            (true, false) => 1,
            _ => return false,
        };
        (0..failures).for_each(|_| self.penalty.add(now));
        self.fit_since = (!is_slow).then_some(now);
        self.is_slow = is_slow;
        true
    }
}

/// One node's judgement of all nodes, itself included. A hint, as everything in this folder.
#[derive(Debug, Default)]
pub struct Fitness {
    subjects: BTreeMap<NodeId, Subject>,
}

impl Fitness {
    /// Takes one sample of everybody; who is not among `seen` is forgotten. Returns whether who is slow has changed.
    ///
    /// * `admitted`: nodes that say of themselves that they are slow. They know best, within the same bounds.
    pub fn sample(
        &mut self,
        now: Instant,
        seen: &BTreeMap<NodeId, Seen>,
        admitted: &BTreeSet<NodeId>,
    ) -> bool {
        self.subjects.retain(|node, _| seen.contains_key(node));
        let known: Vec<(NodeId, u32)> = seen
            .iter()
            .filter_map(|(node, seen)| if let Seen::Takes(us) = seen { Some((*node, *us)) } else { None })
            .collect();
        let enough = known.len() >= KNOWN_MIN;
        for (node, seen) in seen {
            let limit = enough.then(|| limit_us(known.iter().filter(|(of, _)| of != node)));
            self.subjects.entry(*node).or_default().take(now, *seen, limit);
        }
        let is_out = |node: &NodeId, subject: &Subject| subject.is_out || admitted.contains(node);
        let mut out: Vec<(bool, u32, NodeId)> = self
            .subjects
            .iter()
            .filter(|(node, subject)| is_out(node, subject))
            .map(|(node, subject)| (subject.is_slow || admitted.contains(node), subject.us, *node))
            .collect();
        // Whoever is called slow already stays so; of several at once it is the slowest ones, which all nodes see alike.
        out.sort_unstable_by(|a, b| b.cmp(a));
        let silent = out.iter().filter(|(_, _, node)| known.iter().all(|(of, _)| of != node)).count();
        out.truncate(if enough { (known.len() + silent - 1) / 2 } else { 0 });
        let slow: BTreeSet<NodeId> = out.into_iter().map(|(_, _, node)| node).collect();
        let mut changed = false;
        for (node, subject) in &mut self.subjects {
            changed |= subject.call(now, slow.contains(node));
        }
        changed
    }

    /// Whether `node` is slow. Whoever is not known is not.
    pub fn is_slow(&self, node: NodeId) -> bool {
        self.subjects.get(&node).is_some_and(|subject| subject.is_slow)
    }

    /// Whether `node` should be handed the lead of anything: it is neither slow nor out of line, not even in the latest sample,
    /// and has not been missed lately.
    pub fn may_lead(&self, now: Instant, node: NodeId) -> bool {
        self.subjects.get(&node).is_none_or(|subject| {
            let is_steady = subject.missed_at.is_none_or(|at| now.since(at) >= STEADY);
            is_steady && !subject.is_slow && !subject.is_out && subject.above == 0
        })
    }

    /// Since when `node` is fit again that was slow; `None`: it is slow now, or never was.
    pub fn fit_since(&self, node: NodeId) -> Option<Instant> {
        self.subjects.get(&node)?.fit_since
    }

    /// Everybody known, and whether each is slow.
    pub fn all(&self) -> impl Iterator<Item = (NodeId, bool)> {
        self.subjects.iter().map(|(node, subject)| (*node, subject.is_slow))
    }
}

/// The most that a node may take whose peers take these times, in microseconds.
fn limit_us<'a>(peers: impl Iterator<Item = &'a (NodeId, u32)>) -> u32 {
    let mut times: Vec<u32> = peers.map(|(_, us)| *us).collect();
    let median = lower_median(&mut times);
    times.iter_mut().for_each(|us| *us = us.abs_diff(median));
    let deviation = lower_median(&mut times);
    let spread = median.saturating_add(deviation.saturating_mul(DEVIATIONS));
    FLOOR_US.max(median.saturating_mul(MEDIANS)).max(spread)
}

/// Of an even number the lower of both in the middle: half of the others being slow does not make it usual.
fn lower_median(times: &mut [u32]) -> u32 {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: u32 = 1_000;
    const BAD: u32 = 200_000;

    /// Samples every 200 ms, as the swarm takes them.
    struct Bed {
        fitness: Fitness,
        at: u64,
        admitted: BTreeSet<NodeId>,
    }

    fn bed() -> Bed {
        Bed { fitness: Fitness::default(), at: 0, admitted: BTreeSet::new() }
    }

    impl Bed {
        fn now(&self) -> Instant {
            Instant(1_000_000_000 + self.at * 1_000_000)
        }

        /// The same sample so many times: what nodes 1, 2, .. take.
        fn see(&mut self, times: usize, seen: &[Seen]) -> Vec<u16> {
            let seen: BTreeMap<NodeId, Seen> =
                (1u16..).zip(seen).map(|(node, seen)| (NodeId(node), *seen)).collect();
            for _ in 0..times {
                self.at += 200;
                let now = self.now();
                self.fitness.sample(now, &seen, &self.admitted);
            }
            self.slow()
        }

        fn take(&mut self, times: usize, us: &[u32]) -> Vec<u16> {
            let seen: Vec<Seen> = us.iter().copied().map(Seen::Takes).collect();
            self.see(times, &seen)
        }

        fn slow(&self) -> Vec<u16> {
            self.fitness.all().filter(|(_, slow)| *slow).map(|(node, _)| node.0).collect()
        }
    }

    #[test]
    fn a_node_is_slow_after_three_bad_samples_in_a_row() {
        let mut bed = bed();
        for _ in 0..10 {
            assert_eq!(bed.take(2, &[BAD, FINE, FINE, FINE, FINE]), [0; 0]);
            assert_eq!(bed.take(1, &[FINE; 5]), [0; 0]);
        }
        assert_eq!(bed.take(3, &[BAD, FINE, FINE, FINE, FINE]), [1]);
        assert!(!bed.fitness.may_lead(bed.now(), NodeId(1)));
        assert!(bed.fitness.may_lead(bed.now(), NodeId(2)));
    }

    #[test]
    fn slow_is_what_is_slow_in_itself_and_out_of_line() {
        let alone = |us: &[u32]| bed().take(5, us);
        assert_eq!(alone(&[FLOOR_US, 1, 1, 1, 1]), [0; 0], "others being quick is no fault");
        assert_eq!(alone(&[FLOOR_US + 1, 1, 1, 1, 1]), [1]);
        assert_eq!(alone(&[80_000, 20_000, 20_000, 20_000, 20_000]), [0; 0], "four times the median");
        assert_eq!(alone(&[80_001, 20_000, 20_000, 20_000, 20_000]), [1]);
        // The others are far apart themselves: their median is 10 ms, its deviations are 8, 0, 8 and 35 ms.
        assert_eq!(alone(&[50_000, 2_000, 10_000, 18_000, 45_000]), [0; 0]);
        assert_eq!(alone(&[50_001, 2_000, 10_000, 18_000, 45_000]), [1]);
        assert_eq!(alone(&[BAD; 5]), [0; 0], "where all are slow nobody is");
    }

    #[test]
    fn at_most_a_minority_is_slow_and_those_are_the_slowest() {
        assert_eq!(bed().take(5, &[BAD, BAD + 1, BAD + 2, FINE, FINE]), [2, 3]);
        assert_eq!(bed().take(5, &[BAD, BAD + 1, FINE]), [2]);
        assert_eq!(bed().take(5, &[BAD, FINE, FINE, BAD]), [4]);
        assert_eq!(bed().take(50, &[BAD, FINE]), [0; 0], "of two nobody can say which one is usual");
        // Who is slow already is not relieved by one that is worse.
        let mut bed = bed();
        assert_eq!(bed.take(5, &[BAD, FINE, FINE]), [1]);
        assert_eq!(bed.take(50, &[BAD, 2 * BAD, FINE]), [1]);
        assert!(!bed.fitness.may_lead(bed.now(), NodeId(2)), "but that one gets no lead either");
    }

    #[test]
    fn a_node_is_fit_again_when_it_has_been_well_below_the_limit_for_long() {
        let mut bed = bed();
        bed.take(3, &[BAD, FINE, FINE]);
        assert_eq!(bed.take(200, &[FLOOR_US * 2 / 3, FINE, FINE]), [1], "not well below");
        assert_eq!(bed.take(24, &[FINE; 3]), [1]);
        assert_eq!(bed.take(1, &[FLOOR_US, FINE, FINE]), [1]);
        assert_eq!(bed.take(24, &[FINE; 3]), [1], "it counts from the beginning again");
        assert_eq!(bed.take(1, &[FINE; 3]), [0; 0]);
    }

    #[test]
    fn once_slow_is_slow_for_twenty_seconds_and_longer_each_further_time() {
        let mut bed = bed();
        let mut lasted = Vec::new();
        for _ in 0..4 {
            assert_eq!(bed.take(3, &[BAD, FINE, FINE]), [1]);
            let since = bed.at;
            while bed.take(1, &[FINE; 3]) == [1] {
                assert!(bed.at < since + 60_000, "a quiet minute is enough");
            }
            lasted.push(bed.at - since);
        }
        assert!((18_000..22_000).contains(&lasted[0]), "{lasted:?}");
        assert_eq!(bed.fitness.fit_since(NodeId(1)), Some(bed.now()));
        assert!(lasted[1..].iter().all(|more| *more > lasted[0] + 3_000), "{lasted:?}");
    }

    #[test]
    fn what_is_not_known_counts_neither_for_nor_against() {
        let fine = Seen::Takes(FINE);
        let mut bed = bed();
        bed.see(2, &[Seen::Takes(BAD), fine, fine, fine]);
        assert_eq!(bed.see(20, &[Seen::Unknown, fine, fine, fine]), [0; 0]);
        assert_eq!(bed.see(1, &[Seen::Takes(BAD), fine, fine, fine]), [1], "the third in a row that counts");
        assert_eq!(bed.see(500, &[Seen::Unknown, fine, fine, fine]), [1]);
        // With what is left there are two whose times are known.
        assert_eq!(bed.see(1, &[Seen::Unknown, fine, fine, Seen::Missed]), [0; 0]);
        bed.see(1, &[]);
        assert_eq!(bed.fitness.all().count(), 0, "who is no member any more is forgotten");
    }

    #[test]
    fn silent_nodes_that_are_slow_take_their_place_among_the_minority() {
        let fine = Seen::Takes(FINE);
        let mut bed = bed();
        assert_eq!(bed.take(3, &[BAD, BAD, FINE, FINE, FINE]), [1, 2]);
        let later = [Seen::Missed, Seen::Missed, Seen::Takes(BAD), fine, fine];
        assert_eq!(bed.see(10, &later), [1, 2], "three of five would be most");
    }

    #[test]
    fn whoever_was_missed_gets_no_lead_for_three_seconds() {
        let fine = Seen::Takes(FINE);
        let mut bed = bed();
        assert!(bed.fitness.may_lead(bed.now(), NodeId(1)), "nothing speaks against a stranger");
        bed.see(1, &[Seen::Missed, fine, fine]);
        bed.see(14, &[fine; 3]);
        assert!(!bed.fitness.may_lead(bed.now(), NodeId(1)));
        bed.see(1, &[fine; 3]);
        assert!(bed.fitness.may_lead(bed.now(), NodeId(1)));
        assert_eq!(bed.slow(), [0; 0], "which is not to be slow");
    }

    #[test]
    fn a_node_that_calls_itself_slow_is_believed_as_far_as_there_is_room() {
        let mut bed = bed();
        bed.admitted.extend([NodeId(1), NodeId(2)]);
        assert_eq!(bed.take(1, &[BAD, FINE, FINE, FINE, FINE]), [1, 2]);
        bed.admitted.insert(NodeId(3));
        // Three at once: the least slow is let go, and it hears so from everybody's point of view.
        assert_eq!(bed.take(1, &[BAD, 2 * BAD, 3 * BAD, FINE, FINE]), [2, 3]);
        bed.admitted.clear();
        assert_eq!(bed.take(1, &[FINE; 5]), [0; 0]);
    }
}
