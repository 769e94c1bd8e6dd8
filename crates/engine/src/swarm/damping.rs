//! When better is good enough: change at once for bad news, slowly for good news, and ever more slowly for what keeps
//! changing.

use std::time::Duration;

use swarmmq_protocol::{id::NodeId, time::Instant};

use super::path::Path;

/// Penalty of one failure.
const FLAP: u32 = 1_000;
/// Time in which a penalty halves.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// Highest penalty: after a quiet minute any link is used again.
const PENALTY_MAX: u32 = 20_000;
/// A link above this is avoided...
const SUPPRESS: u32 = 2_500;
/// ...until it is below this.
const REUSE: u32 = 750;
/// After so long the highest penalty is below [`REUSE`].
const FORGOTTEN: Duration = Duration::from_secs(60);
/// A path must be cheaper by this many microseconds to be worth a change...
const GAIN_US: u64 = 1_000;
/// ...and by one part of this many.
const GAIN_PART: u64 = 5;
/// ...and so often in a row...
pub const SAMPLES: u8 = 3;
/// ...twice as often for so much penalty of changes of late that were made for a gain...
const UNREST: u32 = 500;
/// ...but no more than so many times as often.
const SAMPLES_FACTOR_MAX: u32 = 16;

/// What a link has done wrong lately: grows with every failure and halves every ten seconds.
///
/// Source: RFC 2439, with the thresholds of RFC 7196's spirit: only what fails again and again is avoided, and never the last
/// path.
#[derive(Clone, Copy, Debug, Default)]
pub struct Penalty {
    value: u32,
    since: Instant,
    is_suppressed: bool,
}

impl Penalty {
    /// A failure.
    pub fn add(&mut self, now: Instant) {
        self.value = (self.at(now) + FLAP).min(PENALTY_MAX);
        self.since = now;
        self.is_suppressed |= self.value > SUPPRESS;
    }

    /// What is left of it. Between two half-lives it falls in a straight line.
    pub fn at(&self, now: Instant) -> u32 {
        let passed = now.since(self.since).as_millis() as u64;
        let half = HALF_LIFE.as_millis() as u64;
        let whole = self.value.checked_shr((passed / half).min(31) as u32).unwrap_or(0);
        whole - (u64::from(whole) * (passed % half) / (2 * half)) as u32
    }

    /// Whether the link is to be avoided while there is another way.
    pub fn is_suppressed(&mut self, now: Instant) -> bool {
        self.is_suppressed &= self.at(now) >= REUSE;
        self.is_suppressed
    }

    /// How long the link is still avoided if nothing more happens.
    pub fn suppressed_for(mut self, now: Instant) -> Duration {
        if !self.is_suppressed(now) {
            return Duration::ZERO;
        }
        let (mut avoided, mut used) = (Duration::ZERO, FORGOTTEN);
        while used - avoided > Duration::from_millis(1) {
            let middle = (avoided + used) / 2;
            *(if self.at(now + middle) >= REUSE { &mut avoided } else { &mut used }) = middle;
        }
        used
    }
}

/// Why a path was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There was none before.
    Found,
    /// The one before does not lead there any more.
    Broken,
    /// It was cheaper by enough for long enough: costs of the earlier and of the new one, in microseconds.
    Cheaper {
        /// Of the earlier path.
        from_us: u64,
        /// Of the new one.
        to_us: u64,
    },
    /// There is no path.
    Lost,
}

/// The most that another path may cost to be worth a change from one that costs `current_us`. `None`: none is.
pub fn worth_us(current_us: u64) -> Option<u64> {
    current_us.checked_sub(GAIN_US.max(current_us / GAIN_PART))
}

/// Which path is in use to one node, and what speaks for another.
#[derive(Clone, Debug)]
pub struct Choice {
    /// From this node to that one; `None`: there is none.
    pub path: Option<Vec<NodeId>>,
    /// The one before.
    pub before: Option<Vec<NodeId>>,
    /// Samples in a row in which another path was better by enough.
    pub streak: u8,
    /// Why the latest change was made.
    pub why: Why,
    /// When.
    pub changed_at: Instant,
    /// How often the path has changed.
    pub changes: u64,
    /// For changes that were made for a gain.
    unrest: Penalty,
}

impl Choice {
    /// Of a node that was just heard of.
    pub fn new(now: Instant) -> Self {
        Self {
            path: None,
            before: None,
            streak: 0,
            why: Why::Lost,
            changed_at: now,
            changes: 0,
            unrest: Penalty::default(),
        }
    }

    /// Compares the path in use with the cheapest one. True: it is another one now.
    ///
    /// * `current_us`: what the path in use costs; `None`: it does not lead there any more.
    /// * `is_sample`: there are new measurements. Bad news counts at any time, good news only then.
    pub fn consider(
        &mut self,
        now: Instant,
        best: Option<&Path>,
        current_us: Option<u64>,
        is_sample: bool,
    ) -> bool {
        let Some(best) = best else {
            return self.path.is_some() && self.change(now, None, Why::Lost);
        };
        if self.path.is_none() {
            return self.change(now, Some(best), Why::Found);
        }
        let Some(current_us) = current_us else {
            return self.change(now, Some(best), Why::Broken);
        };
        if self.path.as_ref() == Some(&best.nodes) {
            self.streak = 0;
            return false;
        }
        if worth_us(current_us).is_none_or(|worth| best.cost_us > worth) {
            self.streak = 0;
            return false;
        }
        self.streak = self.streak.saturating_add(u8::from(is_sample));
        let why = Why::Cheaper { from_us: current_us, to_us: best.cost_us };
        if self.streak < self.samples_needed(now) {
            return false;
        }
        self.unrest.add(now);
        self.change(now, Some(best), why)
    }

    /// Samples in a row in which another path must be better by enough. Where everything is noisy, one or the other path is
    /// always better for a moment, and each change costs what is under way.
    pub fn samples_needed(&self, now: Instant) -> u8 {
        let factor = 1u32.checked_shl(self.unrest.at(now) / UNREST).unwrap_or(SAMPLES_FACTOR_MAX);
        SAMPLES * factor.min(SAMPLES_FACTOR_MAX) as u8
    }

    fn change(&mut self, now: Instant, path: Option<&Path>, why: Why) -> bool {
        self.before = std::mem::replace(&mut self.path, path.map(|path| path.nodes.clone()));
        self.streak = 0;
        self.why = why;
        self.changed_at = now;
        self.changes += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant(1_000_000_000 + millis * 1_000_000)
    }

    fn path(nodes: &[u16], cost_us: u64) -> Path {
        Path { nodes: nodes.iter().copied().map(NodeId).collect(), cost_us }
    }

    fn chosen() -> Choice {
        let mut choice = Choice::new(at(0));
        assert!(choice.consider(at(0), Some(&path(&[1, 2], 10_000)), None, true));
        assert_eq!(choice.why, Why::Found);
        choice
    }

    #[test]
    fn a_penalty_halves_in_ten_seconds_and_three_failures_suppress() {
        let mut penalty = Penalty::default();
        penalty.add(at(0));
        assert_eq!((penalty.at(at(0)), penalty.at(at(10_000)), penalty.at(at(5_000))), (1_000, 500, 750));
        assert!(!penalty.is_suppressed(at(0)), "once is no pattern");
        penalty.add(at(100));
        assert!(!penalty.is_suppressed(at(100)));
        penalty.add(at(200));
        assert!(penalty.is_suppressed(at(200)));
        assert!(penalty.is_suppressed(at(15_000)));
        let left = penalty.suppressed_for(at(15_000));
        assert!(penalty.is_suppressed(at(15_000) + left - Duration::from_millis(2)), "{left:?}");
        let mut later = penalty;
        assert!(!later.is_suppressed(at(15_000) + left));
        assert!(!penalty.is_suppressed(at(21_000)), "{}", penalty.at(at(21_000)));
        assert_eq!(penalty.suppressed_for(at(21_000)), Duration::ZERO);
        (0..100).for_each(|_| penalty.add(at(30_000)));
        assert!(!penalty.is_suppressed(at(90_000)), "a quiet minute is enough");
    }

    #[test]
    fn bad_news_counts_at_once() {
        let mut choice = chosen();
        let detour = path(&[1, 3, 2], 20_000);
        assert!(choice.consider(at(10), Some(&detour), None, false));
        assert_eq!((choice.why, choice.path.clone()), (Why::Broken, Some(detour.nodes)));
        assert!(choice.consider(at(20), None, None, false));
        assert_eq!((choice.why, choice.path), (Why::Lost, None));
    }

    #[test]
    fn good_news_must_be_good_enough_three_times_in_a_row() {
        let better = path(&[1, 3, 2], 7_000);
        let mut choice = chosen();
        assert!(!choice.consider(at(200), Some(&better), Some(10_000), true));
        assert!(!choice.consider(at(210), Some(&better), Some(10_000), false), "no new measurement");
        assert!(!choice.consider(at(400), Some(&better), Some(10_000), true));
        assert!(!choice.consider(at(600), Some(&path(&[1, 3, 2], 9_000)), Some(10_000), true), "a tenth");
        assert!(!choice.consider(at(800), Some(&better), Some(10_000), true));
        assert!(!choice.consider(at(1_000), Some(&better), Some(10_000), true));
        assert!(choice.consider(at(1_200), Some(&better), Some(10_000), true));
        assert_eq!(choice.why, Why::Cheaper { from_us: 10_000, to_us: 7_000 });
        assert_eq!(choice.changes, 2);
    }

    #[test]
    fn who_has_just_changed_for_a_gain_needs_a_longer_one() {
        let mut choice = chosen();
        let paths = [path(&[1, 3, 2], 7_000), path(&[1, 2], 5_000), path(&[1, 3, 2], 3_000)];
        let mut now = 0;
        let samples = paths.map(|better| {
            let mut samples = 0;
            loop {
                now += 200;
                samples += 1;
                let current = better.cost_us + 2_000;
                if choice.consider(at(now), Some(&better), Some(current), true) {
                    return samples;
                }
            }
        });
        assert_eq!(samples[0], 3);
        assert!((6..=12).contains(&samples[1]) && (20..=48).contains(&samples[2]), "{samples:?}");
        assert_eq!(choice.samples_needed(at(now + 60_000)), 3, "and forgets");
        // What is broken is left at once, whatever was before.
        assert!(choice.consider(at(now + 1), Some(&path(&[1, 4, 2], 90_000)), None, false));
    }

    #[test]
    fn a_gain_of_less_than_a_millisecond_is_none() {
        let mut choice = Choice::new(at(0));
        choice.consider(at(0), Some(&path(&[1, 2], 1_000)), None, true);
        for step in 1..100 {
            let better = path(&[1, 3, 2], 10);
            assert!(!choice.consider(at(step * 200), Some(&better), Some(1_000), true));
        }
    }
}
