//! Which node is the best home for a client that consumes: the one that leads most of what its consumers are fed from,
//! because everything from elsewhere comes by way of home, and that way costs a hop, a copy and a wait.
//!
//! Nothing depends on it: any node feeds any consumer. So home moves rarely, only to a node that has been the best for a
//! while, and whoever cannot be reached is left alone for longer and longer. When nothing is under way is the driver's
//! to see.

use std::{collections::BTreeMap, time::Duration};

use crate::{id::NodeId, time::Instant};

/// A node is the best for so long before home moves there: a lead may only pass by.
const SETTLED: Duration = Duration::from_millis(100);
/// First pause after a move, or after one that came to nothing; the latter doubles up to [`REST_MAX`].
const REST_FIRST: Duration = Duration::from_secs(10);
const REST_MAX: Duration = Duration::from_secs(600);

/// Where home is, and where it should be.
#[derive(Debug)]
pub struct Home {
    at: Option<NodeId>,
    /// The best node, if it is another, and since when.
    wish: Option<(NodeId, Instant)>,
    rests_until: Instant,
    rest: Duration,
}

impl Home {
    /// Is nowhere yet.
    pub fn new() -> Self {
        Self { at: None, wish: None, rests_until: Instant(0), rest: REST_FIRST }
    }

    /// The home connection is with `node` now.
    pub fn connected(&mut self, node: NodeId) {
        self.at = Some(node);
        self.wish = None;
    }

    /// There is no home, or it is not to move any more.
    pub fn lost(&mut self) {
        self.at = None;
        self.wish = None;
    }

    /// The best node as of the latest look, if home is elsewhere.
    pub fn best(&self) -> Option<NodeId> {
        self.wish.map(|(node, _)| node)
    }

    /// Consumers are fed from shards that are led by these, as far as known. Returns where home should move now, if
    /// anywhere: then say how that went, with [`Home::moved`] or [`Home::failed`].
    pub fn look(&mut self, now: Instant, leaders: impl Iterator<Item = Option<NodeId>>) -> Option<NodeId> {
        let mut shares = BTreeMap::<NodeId, usize>::new();
        let mut shards = 0;
        for leader in leaders {
            shards += 1;
            if let Some(node) = leader {
                *shares.entry(node).or_default() += 1;
            }
        }
        let most = shares.into_iter().max_by_key(|(_, led)| *led).filter(|(_, led)| led * 2 > shards);
        let best = most.map(|(node, _)| node).filter(|node| self.at.is_some() && self.at != Some(*node));
        if best != self.best() {
            self.wish = best.map(|node| (node, now));
        }
        self.due().filter(|due| *due <= now).and(best)
    }

    fn due(&self) -> Option<Instant> {
        self.wish.map(|(_, since)| (since + SETTLED).max(self.rests_until))
    }

    /// It moved, for this reason.
    pub fn moved(&mut self, now: Instant) {
        self.rest = REST_FIRST;
        self.rests_until = now + REST_FIRST;
    }

    /// It could not move there, or not in time.
    pub fn failed(&mut self, now: Instant) {
        self.rests_until = now + self.rest;
        self.rest = (self.rest * 2).min(REST_MAX);
    }

    /// When [`Home::look`] may have another answer without any news.
    pub fn next_wake(&self) -> Option<Instant> {
        self.due()
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_millis(10_000);

    fn at(millis: u64) -> Instant {
        START + Duration::from_millis(millis)
    }

    fn led_by(nodes: &[u16]) -> impl Iterator<Item = Option<NodeId>> {
        nodes.iter().map(|node| (*node > 0).then_some(NodeId(*node)))
    }

    fn home() -> Home {
        let mut home = Home::new();
        home.connected(NodeId(1));
        home
    }

    #[test]
    fn home_moves_to_the_leader_of_what_is_consumed_once_that_has_lasted() {
        let mut home = home();
        assert_eq!(home.look(at(0), led_by(&[2])), None);
        assert_eq!(home.next_wake(), Some(at(100)));
        assert_eq!(home.look(at(99), led_by(&[2])), None);
        assert_eq!(home.look(at(100), led_by(&[2])), Some(NodeId(2)));
        home.connected(NodeId(2));
        home.moved(at(110));
        assert_eq!((home.look(at(500), led_by(&[2])), home.next_wake()), (None, None));
    }

    #[test]
    fn a_lead_that_passes_by_moves_nothing() {
        let mut home = home();
        for millis in (0..2_000).step_by(60) {
            let leader = if millis % 120 == 0 { 2 } else { 3 };
            assert_eq!(home.look(at(millis), led_by(&[leader])), None);
        }
        assert_eq!(home.look(at(2_000), led_by(&[0])), None, "not known");
        assert_eq!(home.next_wake(), None);
    }

    #[test]
    fn without_a_home_nothing_is_due() {
        let mut home = home();
        home.look(at(0), led_by(&[2]));
        assert_eq!((home.best(), home.next_wake()), (Some(NodeId(2)), Some(at(100))));
        home.lost();
        assert_eq!((home.best(), home.next_wake()), (None, None));
        home.look(at(200), led_by(&[2]));
        assert_eq!(home.next_wake(), None);
    }

    #[test]
    fn whoever_is_fed_by_many_stays_and_by_one_most_of_all_goes() {
        for (leaders, best) in [
            (&[2, 3, 4, 5][..], None),
            (&[2, 2, 3, 4], None),
            (&[2, 2, 2, 4], Some(NodeId(2))),
            (&[1, 1, 1, 2], None),
            (&[2, 0, 0], None),
            (&[], None),
        ] {
            let mut home = home();
            home.look(at(0), led_by(leaders));
            assert_eq!(home.look(at(1_000), led_by(leaders)), best, "{leaders:?}");
        }
    }

    #[test]
    fn moves_are_rare_and_vain_attempts_rarer_and_rarer() {
        let mut home = home();
        let mut attempts = Vec::new();
        for second in 0..200 {
            if home.look(at(second * 1_000), led_by(&[2])).is_some() {
                attempts.push(second);
                home.failed(at(second * 1_000));
            }
        }
        assert_eq!(attempts, [1, 11, 31, 71, 151]);
        home.connected(NodeId(2));
        home.moved(at(200_000));
        home.look(at(200_100), led_by(&[3]));
        assert_eq!(home.look(at(209_000), led_by(&[3])), None);
        assert_eq!(home.look(at(210_000), led_by(&[3])), Some(NodeId(3)));
    }
}
