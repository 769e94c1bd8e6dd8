//! Which nodes a client connects to directly, and when: those that lead what it publishes, as far as they can be reached.
//!
//! Nothing waits for such a connection, so whatever goes wrong with one only means that frames go home for a while. At
//! most one for each node, none to the node that is home already, and none that was of no use for half a minute.

use std::{collections::BTreeMap, time::Duration};

use crate::{id::NodeId, time::Instant};

/// Direct connections, at most: more than a cluster has leaders.
const DIRECT_MAX: usize = 32;
/// A connection that nothing wished for so long ends.
const IDLE: Duration = Duration::from_secs(30);
/// First pause after a connection that could not be made or was lost; doubles up to [`REST_MAX`].
const REST_FIRST: Duration = Duration::from_secs(2);
const REST_MAX: Duration = Duration::from_secs(60);
/// A connection that lived so long was a good one.
const GOOD: Duration = Duration::from_secs(10);
/// Time for answers on a connection that takes nothing new.
const LEAVE_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not to be tried before.
    Resting {
        until: Instant,
    },
    Wished,
    Dialling,
    Open {
        since: Instant,
    },
    /// It is stopping.
    Going,
    Leaving {
        until: Instant,
    },
}

#[derive(Debug)]
struct Node {
    stage: Stage,
    address: String,
    /// How long it rests after the next failure.
    rest: Duration,
    wished_at: Instant,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Connect there, and check that it is that node: then [`Direct::opened`], else [`Direct::lost`].
    Dial(NodeId, String),
    /// Send nothing new there.
    Leave(NodeId),
    /// Close the connection.
    End(NodeId),
}

/// The direct connections of one client.
#[derive(Debug)]
pub struct Direct {
    /// Where clients reach which node.
    doors: BTreeMap<NodeId, String>,
    home: Option<NodeId>,
    nodes: BTreeMap<NodeId, Node>,
    jitter: u64,
}

impl Direct {
    /// Knows nobody yet. `seed` spreads the pauses of many clients.
    pub fn new(seed: u64) -> Self {
        Self { doors: BTreeMap::new(), home: None, nodes: BTreeMap::new(), jitter: seed }
    }

    /// The cluster says where clients reach its nodes.
    pub fn learned(&mut self, doors: &[(NodeId, String)]) {
        self.doors = doors.iter().cloned().collect();
    }

    /// The home connection is with this node, or with none.
    pub fn home(&mut self, node: Option<NodeId>) {
        self.home = node;
    }

    /// Frames are sent for which `node` would be the best.
    pub fn wished(&mut self, now: Instant, node: NodeId) {
        let Some(address) = self.doors.get(&node).filter(|_| self.home != Some(node)) else { return };
        if !self.nodes.contains_key(&node) && self.nodes.len() >= DIRECT_MAX {
            let rested = |known: &Node| matches!(known.stage, Stage::Resting { until } if until <= now);
            let Some(other) = self.nodes.iter().find(|(_, known)| rested(known)).map(|(other, _)| *other)
            else {
                return;
            };
            self.nodes.remove(&other);
        }
        let known = self.nodes.entry(node).or_insert_with(|| Node {
            stage: Stage::Resting { until: now },
            address: address.clone(),
            rest: REST_FIRST,
            wished_at: now,
        });
        known.wished_at = now;
        if matches!(known.stage, Stage::Resting { until } if until <= now) {
            known.address.clone_from(address);
            known.stage = Stage::Wished;
        }
    }

    /// The connection is open and proven.
    pub fn opened(&mut self, now: Instant, node: NodeId) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.stage = Stage::Open { since: now };
        }
    }

    /// The connection could not be made, or is gone.
    pub fn lost(&mut self, now: Instant, node: NodeId) {
        self.jitter =
            self.jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let spread = 0.5 + (self.jitter >> 40) as f64 / (1u64 << 24) as f64;
        if let Some(known) = self.nodes.get_mut(&node) {
            if matches!(known.stage, Stage::Open { since } if now.since(since) >= GOOD) {
                known.rest = REST_FIRST;
            }
            known.stage = Stage::Resting { until: now + known.rest.mul_f64(spread) };
            known.rest = (known.rest * 2).min(REST_MAX);
        }
    }

    /// The node says that it is stopping. Answers may still come.
    pub fn going_away(&mut self, node: NodeId) {
        if let Some(known) = self.nodes.get_mut(&node)
            && matches!(known.stage, Stage::Open { .. })
        {
            known.stage = Stage::Going;
        }
    }

    /// The next thing to do. `is_drained` says whether everything sent over a direct connection was answered.
    pub fn step(&mut self, now: Instant, is_drained: impl Fn(NodeId) -> bool) -> Option<Step> {
        for (node, known) in &mut self.nodes {
            match known.stage {
                Stage::Wished => {
                    known.stage = Stage::Dialling;
                    return Some(Step::Dial(*node, known.address.clone()));
                }
                Stage::Open { .. } | Stage::Going => {
                    let is_going = known.stage == Stage::Going;
                    let is_idle = now.since(known.wished_at) >= IDLE;
                    let has_moved = self.doors.get(node) != Some(&known.address);
                    if is_going || is_idle || has_moved || self.home == Some(*node) {
                        known.stage = Stage::Leaving { until: now + LEAVE_MAX };
                        return Some(Step::Leave(*node));
                    }
                }
                Stage::Leaving { until } => {
                    if until <= now || is_drained(*node) {
                        known.stage = Stage::Resting { until: now + REST_FIRST };
                        return Some(Step::End(*node));
                    }
                }
                Stage::Resting { .. } | Stage::Dialling => {}
            }
        }
        None
    }

    /// When [`Direct::step`] has something to do without any news.
    pub fn next_wake(&self) -> Option<Instant> {
        let wakes = self.nodes.values().filter_map(|known| match known.stage {
            Stage::Open { .. } => Some(known.wished_at + IDLE),
            Stage::Leaving { until } => Some(until),
            _ => None,
        });
        wakes.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(1_000_000 + seconds * 1000)
    }

    fn doors() -> Vec<(NodeId, String)> {
        vec![(ONE, "one".into()), (TWO, "two".into())]
    }

    fn steps(direct: &mut Direct, now: Instant) -> Vec<Step> {
        std::iter::from_fn(|| direct.step(now, |_| true)).collect()
    }

    /// At home with one, connected to two.
    fn open() -> Direct {
        let mut direct = Direct::new(1);
        direct.learned(&doors());
        direct.home(Some(ONE));
        direct.wished(at(0), TWO);
        assert_eq!(steps(&mut direct, at(0)), [Step::Dial(TWO, "two".into())]);
        direct.opened(at(0), TWO);
        direct
    }

    #[test]
    fn a_leader_is_dialled_once_and_never_where_home_is_or_where_no_door_is_known() {
        let mut direct = open();
        for node in [ONE, TWO, NodeId(9)] {
            direct.wished(at(1), node);
        }
        assert_eq!(steps(&mut direct, at(1)), []);
    }

    #[test]
    fn who_cannot_be_reached_is_left_alone_for_longer_and_longer() {
        let mut direct = open();
        direct.lost(at(0), TWO);
        let mut pauses = Vec::new();
        let mut now = 0;
        for _ in 0..5 {
            let began = now;
            while steps(&mut direct, at(now)).is_empty() {
                now += 1;
                direct.wished(at(now), TWO);
            }
            pauses.push(now - began);
            direct.lost(at(now), TWO);
        }
        assert!((1..=4).contains(&pauses[0]), "{pauses:?}");
        assert!((16..=49).contains(&pauses[4]), "{pauses:?}");
    }

    #[test]
    fn a_good_connection_that_is_lost_is_soon_made_again() {
        let mut direct = open();
        for life in 1..6 {
            let now = life * 100;
            direct.lost(at(now), TWO);
            direct.wished(at(now + 4), TWO);
            assert_eq!(steps(&mut direct, at(now + 4)), [Step::Dial(TWO, "two".into())]);
            direct.opened(at(now + 4), TWO);
        }
    }

    #[test]
    fn a_connection_ends_when_it_is_idle_or_its_node_moves_or_stops_or_is_home() {
        let mut idle = open();
        assert_eq!(idle.next_wake(), Some(at(30)));
        assert_eq!(steps(&mut idle, at(30)), [Step::Leave(TWO), Step::End(TWO)]);
        let mut moved = open();
        moved.learned(&[(ONE, "one".into()), (TWO, "elsewhere".into())]);
        assert_eq!(steps(&mut moved, at(1)), [Step::Leave(TWO), Step::End(TWO)]);
        moved.wished(at(10), TWO);
        assert_eq!(steps(&mut moved, at(10)), [Step::Dial(TWO, "elsewhere".into())]);
        let mut stopping = open();
        stopping.going_away(TWO);
        assert_eq!(steps(&mut stopping, at(1)), [Step::Leave(TWO), Step::End(TWO)]);
        let mut home = open();
        home.home(Some(TWO));
        assert_eq!(steps(&mut home, at(1)), [Step::Leave(TWO), Step::End(TWO)]);
    }

    #[test]
    fn answers_are_waited_for_but_not_for_ever() {
        let mut direct = open();
        direct.going_away(TWO);
        assert_eq!(direct.step(at(1), |_| false), Some(Step::Leave(TWO)));
        assert_eq!(direct.step(at(1), |_| false), None);
        assert_eq!(direct.next_wake(), Some(at(6)));
        assert_eq!(direct.step(at(6), |_| false), Some(Step::End(TWO)));
    }

    #[test]
    fn there_is_a_bound() {
        let mut direct = Direct::new(1);
        let many: Vec<_> = (1..=DIRECT_MAX as u16 + 5).map(|n| (NodeId(n), "x".to_owned())).collect();
        direct.learned(&many);
        many.iter().for_each(|(node, _)| direct.wished(at(0), *node));
        assert_eq!(steps(&mut direct, at(0)).len(), DIRECT_MAX);
    }
}
