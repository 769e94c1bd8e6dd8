//! What this node knows by itself of its links: whether anything comes over them, how long an answer takes, how often they
//! have failed lately.
//!
//! A link is a connection with a neighbour. It is *quiet* when nothing has come for longer than is usual on it, and *silent*
//! when its other end was heard elsewhere meanwhile: then the link is at fault and not the node, and packets go another way.

use std::{collections::BTreeMap, time::Duration};

use swarmmq_protocol::{id::NodeId, time::Instant};

use super::damping::Penalty;
use crate::shard::consensus::tick_after;

/// Pause between two probes of a link; the first may be shorter, because probes go with the node's ticks.
pub const PROBE_PAUSE: Duration = Duration::from_millis(200);
/// Pause between two probes of a link on which nothing is heard, or was until a moment ago.
const PROBE_PAUSE_QUIET: Duration = Duration::from_millis(50);
/// Time without a word after which a link is probed at once.
const PROBE_AFTER: Duration = Duration::from_millis(150);
/// Shortest time without a word after which a link counts as quiet.
const QUIET_MIN: Duration = Duration::from_millis(250);
/// Longest pause that is lateness and not a fault. A link that is often late is given twice its longest pause.
const LATE_MAX: Duration = Duration::from_millis(600);
/// Part of the longest pause that each word after it takes away: one of so many.
const GAP_DECAY: u64 = 128;
/// How much later than the last word over a link its other end must have been heard elsewhere.
const ELSEWHERE_AFTER: Duration = Duration::from_millis(200);
/// Answers in a row that a silent link owes before it is believed again.
const ANSWERS_TO_RETURN: u32 = 3;
/// A turn that comes so late says that this node itself stood still: then silence means nothing.
const STALL: Duration = Duration::from_millis(150);
/// Part of the difference by which a value falls with each better sample: one of so many.
const DECAY: u64 = 8;
/// Round trip that is assumed before there is an answer, in microseconds.
const RTT_UNKNOWN_US: u32 = 1_000;

/// A value that rises with a worse sample at once and falls slowly with better ones (fast attack, slow decay). One bad sample
/// among three is an accident: the middle one of the last three counts.
///
/// Source: peak-EWMA of Finagle; RFC 9616 for the wish to compare smoothed values only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    value: u64,
    last: [u64; 3],
    count: u8,
}

impl Peak {
    /// Takes a sample.
    pub fn add(&mut self, sample: u64) {
        self.last.rotate_left(1);
        self.last[2] = sample;
        self.count = self.count.saturating_add(1);
        if self.count < 3 {
            self.value = if self.count == 1 { sample } else { self.value.min(sample) };
            return;
        }
        let mut sorted = self.last;
        sorted.sort_unstable();
        let middle = sorted[1];
        self.value =
            if middle >= self.value { middle } else { self.value - (self.value - middle).div_ceil(DECAY) };
    }

    /// What the samples amount to. `None`: there was none.
    pub fn value(&self) -> Option<u64> {
        (self.count > 0).then_some(self.value)
    }
}

/// One link, or what is remembered of it while it is down.
#[derive(Debug)]
pub struct Link {
    /// Rises with every connection.
    pub session: u32,
    /// Whether there is a connection.
    pub is_open: bool,
    /// Whether the connection carries nothing although its other end lives.
    pub is_silent: bool,
    /// When the connection was made.
    pub opened_at: Instant,
    /// When it was last heard.
    pub heard_at: Instant,
    rtt: Peak,
    /// The longest pause lately that ended by itself, in microseconds; forgotten within half a minute.
    gap_us: u64,
    next_probe: Instant,
    /// Probes since the last word.
    unanswered: u32,
    answers: u32,
    /// For going down and coming back.
    pub flaps: Penalty,
}

impl Link {
    fn new(now: Instant) -> Self {
        Self {
            session: 0,
            is_open: false,
            is_silent: false,
            opened_at: now,
            heard_at: now,
            rtt: Peak::default(),
            gap_us: 0,
            next_probe: now,
            unanswered: 0,
            answers: 0,
            flaps: Penalty::default(),
        }
    }

    /// Whether packets may go over it.
    pub fn is_usable(&self) -> bool {
        self.is_open && !self.is_silent
    }

    /// Smoothed round trip in microseconds.
    pub fn rtt_us(&self) -> u32 {
        self.rtt.value().map_or(RTT_UNKNOWN_US, |us| us.min(u64::from(u32::MAX)) as u32)
    }

    /// How long nothing may be heard before that is unusual.
    fn patience(&self) -> Duration {
        Duration::from_micros(2 * self.gap_us).max(QUIET_MIN)
    }

    /// A word came. Pauses that were long enough to be faults teach nothing about what is usual.
    fn word(&mut self, now: Instant) {
        let pause = now.since(self.heard_at);
        self.heard_at = now;
        // A pause in which nobody was asked anything says nothing.
        if self.unanswered > 0 && pause <= LATE_MAX {
            self.gap_us = (self.gap_us - self.gap_us.div_ceil(GAP_DECAY)).max(pause.as_micros() as u64);
        }
    }

    /// Whether more than one probe waits for its answer.
    pub fn is_unanswered(&self) -> bool {
        self.unanswered > 1
    }

    /// Whether nothing has been heard for unusually long, although the other end was asked.
    pub fn is_quiet(&self, now: Instant) -> bool {
        self.is_open && self.unanswered > 1 && now.since(self.heard_at) > self.patience()
    }
}

/// All links of this node.
#[derive(Debug)]
pub struct Links {
    me: NodeId,
    links: BTreeMap<NodeId, Link>,
    looked_at: Instant,
}

/// What a look at the links found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Whom to send a probe.
    pub probes: Vec<NodeId>,
    /// A link was given up, or is believed again.
    pub changed: bool,
}

impl Links {
    /// Of a node that has just started.
    pub fn new(me: NodeId, now: Instant) -> Self {
        Self { me, links: BTreeMap::new(), looked_at: now }
    }

    /// Every link, also those that are down.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Link)> {
        self.links.iter().map(|(node, link)| (*node, link))
    }

    /// The link with a neighbour.
    pub fn get(&self, node: NodeId) -> Option<&Link> {
        self.links.get(&node)
    }

    /// A connection with `node` is there.
    pub fn opened(&mut self, now: Instant, node: NodeId) {
        let link = self.links.entry(node).or_insert_with(|| Link::new(now));
        link.session += 1;
        link.is_open = true;
        link.is_silent = false;
        link.opened_at = now;
        link.heard_at = now;
        link.next_probe = now;
        link.unanswered = 0;
    }

    /// The connection with `node` is gone.
    pub fn closed(&mut self, now: Instant, node: NodeId) {
        let Some(link) = self.links.get_mut(&node).filter(|link| link.is_open) else { return };
        link.is_open = false;
        if !std::mem::take(&mut link.is_silent) {
            link.flaps.add(now);
        }
    }

    /// Forgets whoever is not in `known`.
    pub fn keep(&mut self, known: impl Fn(NodeId) -> bool) {
        self.links.retain(|node, link| link.is_open || known(*node));
    }

    /// Something came over the link from `node`.
    pub fn heard(&mut self, now: Instant, node: NodeId) {
        let Some(link) = self.links.get_mut(&node).filter(|link| link.is_open) else { return };
        link.word(now);
        if !link.is_silent {
            link.unanswered = 0;
        }
    }

    /// A probe came back from `node` after `rtt`.
    pub fn answered(&mut self, now: Instant, node: NodeId, rtt: Duration) {
        let Some(link) = self.links.get_mut(&node).filter(|link| link.is_open) else { return };
        link.word(now);
        link.rtt.add(rtt.as_micros() as u64);
        link.unanswered = 0;
        if link.is_silent && rtt < QUIET_MIN {
            link.answers += 1;
        }
    }

    /// Looks which links need a probe, and which are silent. `elsewhere`: when a node was last heard, by whatever way.
    pub fn look(&mut self, now: Instant, elsewhere: impl Fn(NodeId) -> Option<Instant>) -> Look {
        let stalled = now.since(self.looked_at) > PROBE_PAUSE + STALL;
        self.looked_at = now;
        let mut look = Look::default();
        for (node, link) in &mut self.links {
            if !link.is_open {
                continue;
            }
            if stalled {
                link.heard_at = now;
                link.unanswered = 0;
            }
            let quiet_for = now.since(link.heard_at);
            let late = quiet_for >= PROBE_AFTER && link.next_probe > now + PROBE_PAUSE_QUIET;
            if link.next_probe <= now || late {
                // A silent link owes answers: it is asked for them until it is believed again.
                link.next_probe = if quiet_for >= PROBE_AFTER || link.is_silent {
                    now + PROBE_PAUSE_QUIET
                } else {
                    tick_after(self.me, now + PROBE_PAUSE / 2)
                };
                link.unanswered += 1;
                look.probes.push(*node);
            }
            if link.is_silent {
                if link.answers >= ANSWERS_TO_RETURN {
                    link.is_silent = false;
                    look.changed = true;
                }
            } else if link.is_quiet(now)
                && elsewhere(*node).is_some_and(|at| at >= link.heard_at + ELSEWHERE_AFTER)
            {
                link.is_silent = true;
                link.answers = 0;
                link.flaps.add(now);
                look.changed = true;
            }
        }
        look
    }

    /// When to look again.
    pub fn next_wake(&self) -> Option<Instant> {
        let open = self.links.values().filter(|link| link.is_open);
        open.map(|link| {
            link.next_probe.min((link.heard_at + PROBE_AFTER).max(self.looked_at + PROBE_PAUSE_QUIET))
        })
        .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: NodeId = NodeId(2);

    fn at(millis: u64) -> Instant {
        Instant(1_000_000_000 + millis * 1_000_000)
    }

    fn open() -> Links {
        let mut links = Links::new(NodeId(1), at(0));
        links.opened(at(0), B);
        links
    }

    /// Lets time pass in steps of 25 ms; `answers` says whether a probe is answered then.
    fn pass(
        links: &mut Links,
        from: u64,
        to: u64,
        answers: impl Fn(u64) -> bool,
        elsewhere: impl Fn(u64) -> Option<u64>,
    ) -> Vec<u64> {
        let mut changes = Vec::new();
        for now in (from..to).step_by(25) {
            let look = links.look(at(now), |_| elsewhere(now).map(at));
            if look.changed {
                changes.push(now);
            }
            if look.probes.contains(&B) && answers(now) {
                links.answered(at(now), B, Duration::from_micros(300));
            }
        }
        changes
    }

    #[test]
    fn one_bad_sample_is_an_accident_and_two_are_news() {
        let mut peak = Peak::default();
        [100, 100, 100, 9_000, 100].into_iter().for_each(|sample| peak.add(sample));
        assert_eq!(peak.value(), Some(100));
        [9_000, 9_000].into_iter().for_each(|sample| peak.add(sample));
        assert_eq!(peak.value(), Some(9_000), "it rises at once");
        peak.add(100);
        peak.add(100);
        assert!(peak.value().unwrap() > 7_000, "and falls slowly");
        (0..60).for_each(|_| peak.add(100));
        assert_eq!(peak.value(), Some(100), "all the way");
    }

    #[test]
    fn a_link_that_answers_is_never_silent() {
        let mut links = open();
        assert_eq!(pass(&mut links, 0, 60_000, |_| true, Some), [0; 0]);
        assert_eq!(links.get(B).unwrap().rtt_us(), 300);
    }

    #[test]
    fn a_link_is_silent_when_its_other_end_lives_and_returns_after_three_answers() {
        let mut links = open();
        let cut = |now| !(1_000..3_000).contains(&now);
        let changes = pass(&mut links, 0, 5_000, cut, Some);
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert!((1_200..1_400).contains(&changes[0]), "{changes:?}");
        assert!((3_100..3_300).contains(&changes[1]), "{changes:?}");
    }

    #[test]
    fn a_node_that_stands_still_does_not_make_its_links_silent() {
        let mut links = open();
        let stops = |now: u64| now < 1_000;
        assert_eq!(pass(&mut links, 0, 4_000, stops, |now| Some(now.min(1_000))), [0; 0]);
        assert!(links.get(B).unwrap().is_quiet(at(3_990)));
    }

    #[test]
    fn whoever_stood_still_blames_nobody() {
        let mut links = open();
        pass(&mut links, 0, 1_000, |_| true, Some);
        let look = links.look(at(3_000), |_| Some(at(3_000)));
        assert!(!look.changed);
        assert!(!links.get(B).unwrap().is_quiet(at(3_000)));
    }

    #[test]
    fn a_link_that_is_often_late_is_given_more_time() {
        let mut links = open();
        // Every other second nothing comes for 400 ms, as when TCP waits before it repeats.
        let lossy = |now: u64| now % 2_000 < 1_500 || now % 2_000 > 1_900;
        let changes = pass(&mut links, 0, 60_000, lossy, Some);
        assert!(changes.len() <= 8, "{changes:?}");
        assert!(changes.iter().all(|at| *at < 20_000), "{changes:?}");
    }

    #[test]
    fn a_connection_that_ends_counts_once_against_its_link() {
        let mut links = open();
        links.closed(at(10), B);
        links.closed(at(20), B);
        assert_eq!(links.get(B).unwrap().flaps.at(at(20)), 1_000, "and not twice");
        links.opened(at(30), B);
        assert_eq!(links.get(B).unwrap().session, 2);
        links.keep(|_| false);
        assert!(links.get(B).is_some(), "it is open");
        links.closed(at(40), B);
        links.keep(|_| false);
        assert!(links.get(B).is_none());
    }
}
