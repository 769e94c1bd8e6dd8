//! Paths change when something happens, and else hardly ever.
//!
//! What happens to a link explains two changes of a path: away from it and back. A link that fails more than about eight
//! times a minute is avoided (`damping` of the engine), so it explains no more however often it fails.

use std::collections::{BTreeMap, VecDeque};

use super::look::{Life, Look};
use crate::clock::SECOND;

/// Time in which changes are counted.
pub(crate) const WINDOW: u64 = 60 * SECOND;
/// For how long what happened explains changes: the window, and the minute after which any link is used again.
const EXPLAINS: u64 = WINDOW + 60 * SECOND;
/// Failures of one link in that time that can move packets. A penalty halves in 10 s and a link is avoided above 2,500 points, 1,000
/// for each failure: three at once, then one every 7.4 s.
const FAILURES_MAX: u64 = 3 + EXPLAINS / (7_400_000_000);

/// To what something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// A host: it ended, began, or stood still.
    Host(usize),
    /// What is between two hosts, the lower one first.
    Link(usize, usize),
}

/// Changes of paths, and what explains them.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// What each process had counted for each destination.
    counted: BTreeMap<(usize, usize), (Life, u64)>,
    /// When which path changed how often.
    changes: VecDeque<(u64, (usize, usize), u64)>,
    happened: VecDeque<(u64, What)>,
}

impl Changes {
    /// Something happened.
    pub(crate) fn happened(&mut self, at: u64, what: What) {
        self.happened.push_back((at, what));
    }

    /// Counts anew. Returns the largest number of changes that nothing explains, and whose they are.
    pub(crate) fn look(&mut self, look: &Look) -> Option<(u64, String)> {
        self.happened.retain(|(at, _)| at + EXPLAINS > look.at);
        self.changes.retain(|(at, _, _)| at + WINDOW > look.at);
        for (host, seen) in look.running() {
            let Some(life) = seen.life else { continue };
            for (to, count) in &seen.view.changes {
                let known = self.counted.insert((host, *to), (life, *count));
                // The first path of a new process, or to somebody new, is no change.
                let before = known.filter(|(of, before)| *of == life && before <= count);
                let more = before.map_or(0, |(_, before)| count - before);
                if more > 0 {
                    self.changes.push_back((look.at, (host, *to), more));
                }
            }
        }
        let mut sums: BTreeMap<(usize, usize), u64> = BTreeMap::new();
        self.changes.iter().for_each(|(_, pair, count)| *sums.entry(*pair).or_default() += count);
        let excess = sums.into_iter().map(|(pair, sum)| {
            let explained = self.explained(pair);
            let what = format!(
                "node {} changed its path to node {} {sum} times in a minute, {explained} explained",
                pair.0 + 1,
                pair.1 + 1
            );
            (sum.saturating_sub(explained), what)
        });
        excess.max_by_key(|(excess, _)| *excess)
    }

    /// How many changes of the path between two hosts what happened explains: to any host, and to links that end at one of them.
    fn explained(&self, (a, b): (usize, usize)) -> u64 {
        let mut counts: BTreeMap<What, u64> = BTreeMap::new();
        for (_, what) in &self.happened {
            let concerns = match what {
                What::Host(_) => true,
                What::Link(x, y) => [x, y].iter().any(|end| **end == a || **end == b),
            };
            *counts.entry(*what).or_default() += u64::from(concerns);
        }
        2 * counts.values().map(|count| count.min(&FAILURES_MAX)).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::look::tests::calm, *};

    /// Excess after each of some seconds, in each of which the path from node 1 to node 2 changes so often.
    fn excess(changes: &mut Changes, each_second: &[u64]) -> u64 {
        let mut look = calm(3);
        let mut worst = 0;
        for (second, more) in each_second.iter().enumerate() {
            look.at = (200 + second as u64) * SECOND;
            *look.hosts[0].view.changes.get_mut(&1).unwrap() += more;
            worst = worst.max(changes.look(&look).map_or(0, |(excess, _)| excess));
        }
        worst
    }

    #[test]
    fn changes_without_a_reason_are_counted_by_the_minute() {
        assert_eq!(
            excess(&mut Changes::default(), &[7, 1, 0, 2]),
            3,
            "what a process counted before is not known"
        );
        let mut slow = [0; 300];
        slow.iter_mut().step_by(61).for_each(|change| *change = 1);
        assert_eq!(excess(&mut Changes::default(), &slow), 1);
    }

    #[test]
    fn what_happens_explains_two_changes_and_a_link_that_is_avoided_none() {
        let mut changes = Changes::default();
        changes.happened(200 * SECOND, What::Link(0, 2));
        changes.happened(200 * SECOND, What::Host(2));
        assert_eq!(excess(&mut changes, &[0, 5]), 1);
        let mut elsewhere = Changes::default();
        elsewhere.happened(200 * SECOND, What::Link(2, 3));
        assert_eq!(excess(&mut elsewhere, &[0, 5]), 5);
        let mut flapping = Changes::default();
        (0..1000).for_each(|_| flapping.happened(200 * SECOND, What::Link(0, 1)));
        assert_eq!(excess(&mut flapping, &[0, 100]), 100 - 2 * FAILURES_MAX);
    }
}
