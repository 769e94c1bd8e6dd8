//! One other node as somebody to talk to: what it is known to have, what was sent to it, what gets lost on the way.

use std::{collections::BTreeMap, time::Duration};

use swarmmq_protocol::{
    datagram::{Gossiped, ReplayWindow},
    id::NodeId,
    mac::DualKey,
    node_key::NodeKey,
    time::Instant,
};

/// What was sent once is not sent again before it can have arrived and been shown.
const REPEAT_AFTER: Duration = Duration::from_millis(60);
/// Nor later, as long as the other end has shown nothing since; but not for ever: perhaps it is not heard.
const REPEAT_UNSHOWN_AFTER: Duration = Duration::from_secs(5);
/// Seconds over which losses are counted.
const LOSS_SECONDS: usize = 20;
/// Loss of so many thousandths is as good as none: it is what more must stand out from.
const LOSS_FLOOR_PERMILLE: u64 = 10;
/// Twice as many standard deviations as what gets lost must be above what was believed: of 200 at 1 % that is 11, by chance in one of
/// 120,000 times of twenty seconds...
const RISE_DEVIATIONS_TWICE: u64 = 10;
/// ...and below it. Less is enough, as it costs less to be wrong: what is lost after all stands out again.
const FALL_DEVIATIONS_TWICE: u64 = 4;
/// Longest gap that counts as loss: at 30 % loss one in 15,000 is longer. A longer one is an outage, which is not what loss means.
const GAP_MAX: u64 = 8;
/// Most of one gap that count: at 30 % loss one gap in forty is longer, and after a short cut nearly all are.
const GAP_LOST_MAX: u64 = 3;
/// Losses are a share of at least so many: of three datagrams one lost says little.
const EXPECTED_MIN: u32 = 100;
/// Datagrams whose time of sending is remembered.
const SENT: usize = 16;

/// Which of the two things that a node signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What it says of itself.
    Report,
    /// Whom it does not hear.
    Accusations,
}

/// What somebody has of what one node signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Versions {
    /// In which boot.
    pub boot: u64,
    /// The report's; 0: none.
    pub report: u64,
    /// The accusations'; 0: none.
    pub accusations: u64,
}

impl Versions {
    /// The version of one kind.
    pub fn of(self, kind: Kind) -> u64 {
        match kind {
            Kind::Report => self.report,
            Kind::Accusations => self.accusations,
        }
    }
}

/// What one correspondent is known to have of one node's words, and what it was given.
#[derive(Clone, Copy, Debug, Default)]
struct Has {
    shown: Option<Versions>,
    shown_at: Instant,
    asked: bool,
    report: Given,
    accusations: Given,
}

#[derive(Clone, Copy, Debug, Default)]
struct Given {
    boot: u64,
    version: u64,
    at: Option<Instant>,
}

/// One other node as somebody to talk to.
pub(super) struct Correspondent {
    /// Which life of its disk.
    pub incarnation: u64,
    /// Its keys.
    pub key: NodeKey,
    /// What both ends prove their datagrams with.
    pub pair: DualKey,
    /// What came of its present life.
    pub window: ReplayWindow,
    /// When it last got an answer out of turn.
    pub answered_at: Option<Instant>,
    /// What it misses of what is sent to it, by its own account.
    pub their_loss_permille: u16,
    /// Smoothed time there and back.
    pub round_trip: Option<Duration>,
    counter: u64,
    sent: [(u64, Instant); SENT],
    arrived_at: Option<Instant>,
    losses: [Loss; LOSS_SECONDS],
    steady_permille: u16,
    has: BTreeMap<NodeId, Has>,
}

/// What was to come in one second, and what came.
#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    second: u64,
    expected: u32,
    arrived: u32,
}

fn second(now: Instant) -> u64 {
    now.0 / 1_000_000_000
}

impl Correspondent {
    pub fn new(incarnation: u64, key: NodeKey, pair: DualKey) -> Self {
        Self {
            incarnation,
            key,
            pair,
            window: ReplayWindow::default(),
            answered_at: None,
            their_loss_permille: 0,
            round_trip: None,
            counter: 0,
            sent: [(0, Instant(0)); SENT],
            arrived_at: None,
            losses: [Loss::default(); LOSS_SECONDS],
            steady_permille: 0,
            has: BTreeMap::new(),
        }
    }

    /// It is in a later life: it has nothing, and counts anew.
    pub fn begin_anew(&mut self) {
        self.window = ReplayWindow::default();
        self.arrived_at = None;
        self.has.clear();
    }

    /// `node` does not count any more.
    pub fn forget(&mut self, node: NodeId) {
        self.has.remove(&node);
    }

    /// Whether the datagram with this counter is here for the first time. Counts what is missing before it, unless this node
    /// was stalled: then it missed that by its own fault.
    pub fn takes(&mut self, now: Instant, counter: u64, was_stalled: bool) -> bool {
        let highest = self.window.highest();
        if !self.window.takes(counter) {
            return false;
        }
        let ahead = counter.saturating_sub(highest);
        let is_outage = highest == 0 || was_stalled || ahead > GAP_MAX;
        let expected = if is_outage { 1 } else { ahead.min(1 + GAP_LOST_MAX) };
        let second = second(now);
        let loss = &mut self.losses[(second % LOSS_SECONDS as u64) as usize];
        if loss.second != second {
            *loss = Loss { second, ..Loss::default() };
        }
        loss.expected += expected as u32;
        loss.arrived += 1;
        if ahead > 0 {
            self.arrived_at = Some(now);
        }
        true
    }

    /// What gets lost on the way here; noise does not change it.
    pub fn loss_permille(&self) -> u16 {
        self.steady_permille
    }

    /// Looks whether what gets lost in twenty seconds has changed by more than chance. How many get lost by chance is a Poisson
    /// variable: its variance is its mean.
    pub fn look_at_losses(&mut self, now: Instant) {
        let oldest = second(now).saturating_sub(LOSS_SECONDS as u64 - 1);
        let (mut expected, mut arrived) = (0, 0);
        for loss in self.losses.iter().filter(|loss| loss.second >= oldest) {
            (expected, arrived) = (expected + loss.expected, arrived + loss.arrived);
        }
        if expected == 0 {
            self.steady_permille = if self.window.highest() == 0 { 0 } else { 1000 };
            return;
        }
        // A member decides how much comes: whatever it sends, nothing here overflows.
        let lost = u64::from(expected.saturating_sub(arrived));
        let expected = u64::from(expected.max(EXPECTED_MIN));
        let before = u64::from(self.steady_permille);
        let believed = expected * before.max(LOSS_FLOOR_PERMILLE) / 1000;
        let off = 2 * lost.abs_diff(believed);
        let has_changed = if lost > believed {
            off * off > RISE_DEVIATIONS_TWICE * RISE_DEVIATIONS_TWICE * (believed + 1)
        } else {
            off * off > FALL_DEVIATIONS_TWICE * FALL_DEVIATIONS_TWICE * believed || lost == 0
        };
        if has_changed {
            self.steady_permille = (lost * 1000 / expected) as u16;
        }
    }

    /// The highest counter that came, and for how long it has been here, in microseconds.
    pub fn echo(&self, now: Instant) -> (u64, u32) {
        let held = self.arrived_at.map_or(0, |at| now.since(at).as_micros());
        (self.window.highest(), u32::try_from(held).unwrap_or(u32::MAX))
    }

    /// It says what it got last, and what it misses.
    pub fn echoed(&mut self, now: Instant, body: &Gossiped) {
        self.their_loss_permille = body.loss_permille;
        let (counter, at) = self.sent[(body.echo % SENT as u64) as usize];
        if counter == body.echo && counter > 0 {
            let sample = now.since(at).saturating_sub(Duration::from_micros(body.held_us.into()));
            self.round_trip = Some(self.round_trip.map_or(sample, |before| (before * 7 + sample) / 8));
        }
    }

    /// The number of the next datagram to it.
    pub fn count(&mut self, now: Instant) -> u64 {
        self.counter += 1;
        self.sent[(self.counter % SENT as u64) as usize] = (self.counter, now);
        self.counter
    }

    /// Its digest says what it has of `node`.
    pub fn shows(&mut self, now: Instant, node: NodeId, versions: Versions) {
        let has = self.has.entry(node).or_default();
        (has.shown, has.shown_at) = (Some(versions), now);
    }

    /// It sent something of `node`, so it has that.
    pub fn has_at_least(&mut self, node: NodeId, boot: u64, version: u64, kind: Kind) {
        let shown = self.has.entry(node).or_default().shown.get_or_insert_default();
        if shown.boot < boot {
            *shown = Versions { boot, ..Versions::default() };
        }
        if shown.boot == boot {
            let known = match kind {
                Kind::Report => &mut shown.report,
                Kind::Accusations => &mut shown.accusations,
            };
            *known = version.max(*known);
        }
    }

    /// It asks for what there is of `node`.
    pub fn lacks(&mut self, node: NodeId) {
        if let Some(has) = self.has.get_mut(&node) {
            has.asked = true;
        }
    }

    /// It was sent something of `node`.
    pub fn gave(&mut self, now: Instant, node: NodeId, boot: u64, kind: Kind, version: u64) {
        let has = self.has.entry(node).or_default();
        has.asked = false;
        let given = Given { boot, version, at: Some(now) };
        match kind {
            Kind::Report => has.report = given,
            Kind::Accusations => has.accusations = given,
        }
    }

    /// What it is known to have of `node`.
    pub fn versions(&self, node: NodeId) -> Option<Versions> {
        self.has.get(&node)?.shown
    }

    /// What it is known to have, of everybody.
    pub fn shown(&self) -> impl Iterator<Item = (NodeId, Versions)> {
        self.has.iter().filter_map(|(node, has)| Some((*node, has.shown?)))
    }

    /// Whether to send it this: its digest shows that it lacks it, or says nothing about it and the thing is new.
    ///
    /// * `is_own`: this node's own words are repeated until the other shows that it has them, heard or not.
    /// * `is_hot`: the thing is new.
    pub fn wants(
        &self,
        now: Instant,
        node: NodeId,
        document: (u64, Kind, u64),
        is_own: bool,
        is_hot: bool,
    ) -> bool {
        let (boot, kind, version) = document;
        let Some(has) = self.has.get(&node) else { return is_hot };
        let given = match kind {
            Kind::Report => has.report,
            Kind::Accusations => has.accusations,
        };
        if let Some(at) = given.at.filter(|_| (given.boot, given.version) == (boot, version)) {
            let is_shown_since = is_own || has.shown_at > at || now.since(at) >= REPEAT_UNSHOWN_AFTER;
            if now.since(at) < REPEAT_AFTER || !is_shown_since {
                return false;
            }
        }
        match has.shown {
            Some(shown) => shown.boot < boot || (shown.boot == boot && shown.of(kind) < version),
            None => is_hot || has.asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::mac::MacKey;

    use super::*;

    /// A member that leaves out most numbers and sends as fast as it can made others panic, whose arithmetic was too narrow.
    #[test]
    fn a_flood_with_gaps_is_a_loss_and_nothing_worse() {
        let (key, pair) = (NodeKey::from_bytes(&[7; 64]), MacKey::new([7; 32]).into());
        let mut other = Correspondent::new(1, key, pair);
        let now = Instant(1_000_000_000);
        for number in 0..200_000 {
            assert!(other.takes(now, 1 + 4 * number, false));
        }
        other.look_at_losses(now);
        assert_eq!(other.loss_permille(), 749);
        other.look_at_losses(now);
        assert_eq!(other.loss_permille(), 749);
    }
}
