//! What operators can look up later: every refusal, and every change that an administrator made.
//!
//! A flood of refusals must not fill a disk: equal ones within a second are one line with a count, and of different
//! ones only so many within a second have lines of their own.

use std::{collections::BTreeMap, time::Duration};

use swarmmq_protocol::{
    codec::cut_at,
    error::Code,
    session::guard::Source,
    time::{Instant, WallTime},
};

use super::Now;

/// Over which equal refusals are counted together.
const WINDOW: Duration = Duration::from_secs(1);
/// Different refusals within a second that have lines of their own.
const DIFFERENT_MAX: usize = 32;
/// Longest text of a stranger that is written down, in bytes.
const TEXT_BYTES_MAX: usize = 255;

/// Something that was refused or changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Where it came from. `None`: from several places, or from this node itself.
    pub source: Option<Source>,
    /// Who asked; of a refused authentication who it said it was; of a node `node N`.
    pub principal: String,
    /// What was asked for.
    pub verb: &'static str,
    /// What it was about: an address, a principal, a node; `*`: the whole cluster, or several.
    pub address: String,
    /// Why it was refused. `None`: it was done.
    pub code: Option<Code>,
}

/// One line of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// When it was seen; with a count above 1 when it was seen last.
    pub at: WallTime,
    /// What was seen.
    pub seen: Seen,
    /// How often.
    pub count: u64,
}

/// Collects lines.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// When the present second began.
    since: Instant,
    /// Refusals of this second that have a line, and how often they came since.
    counted: BTreeMap<Seen, u64>,
    /// All others of this second.
    others: BTreeMap<Code, u64>,
    lines: Vec<AuditRecord>,
    /// Since the process began, by reason.
    pub(super) refusals: BTreeMap<&'static str, u64>,
}

impl Audit {
    /// Writes something down.
    pub(super) fn note(&mut self, now: Now, mut seen: Seen) {
        self.settle(now);
        for text in [&mut seen.principal, &mut seen.address] {
            let length = cut_at(text, TEXT_BYTES_MAX).len();
            text.truncate(length);
        }
        let Some(code) = seen.code else {
            self.lines.push(AuditRecord { at: now.wall, seen, count: 1 });
            return;
        };
        *self.refusals.entry(code.text()).or_default() += 1;
        if self.counted.is_empty() && self.others.is_empty() {
            self.since = now.monotonic;
        }
        if let Some(count) = self.counted.get_mut(&seen) {
            *count += 1;
        } else if self.counted.len() < DIFFERENT_MAX {
            self.lines.push(AuditRecord { at: now.wall, seen: seen.clone(), count: 1 });
            self.counted.insert(seen, 0);
        } else {
            *self.others.entry(code).or_default() += 1;
        }
    }

    /// What is to be written now.
    pub(super) fn take(&mut self, now: Now) -> Vec<AuditRecord> {
        self.settle(now);
        std::mem::take(&mut self.lines)
    }

    /// When [`Audit::take`] has something new.
    pub(super) fn wake(&self) -> Option<Instant> {
        let waits = !self.others.is_empty() || self.counted.values().any(|count| *count > 0);
        waits.then_some(self.since + WINDOW)
    }

    /// The second is over: what was only counted becomes lines.
    fn settle(&mut self, now: Now) {
        if now.monotonic.since(self.since) < WINDOW {
            return;
        }
        let at = now.wall;
        for (seen, count) in std::mem::take(&mut self.counted) {
            if count > 0 {
                self.lines.push(AuditRecord { at, seen, count });
            }
        }
        for (code, count) in std::mem::take(&mut self.others) {
            let all = "*".to_owned();
            let seen =
                Seen { source: None, principal: all.clone(), verb: "*", address: all, code: Some(code) };
            self.lines.push(AuditRecord { at, seen, count });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now { monotonic: Instant::from_millis(1_000 + ms), wall: WallTime(50_000 + ms) }
    }

    fn refused(principal: &str) -> Seen {
        Seen {
            source: Some(Source::v4([10, 0, 0, 1])),
            principal: principal.into(),
            verb: "publish",
            address: "a".into(),
            code: Some(Code::NotAllowed),
        }
    }

    #[test]
    fn the_first_refusal_is_a_line_at_once_and_equal_ones_are_one_more_after_a_second() {
        let mut audit = Audit::default();
        audit.note(at(0), refused("till"));
        assert_eq!(
            audit.take(at(0)),
            [AuditRecord { at: WallTime(50_000), seen: refused("till"), count: 1 }]
        );
        assert_eq!(audit.wake(), None, "nothing is left to be said");
        (1..=500).for_each(|ms| audit.note(at(ms), refused("till")));
        assert_eq!((audit.take(at(500)), audit.wake()), (vec![], Some(at(1000).monotonic)));
        let lines = audit.take(at(1000));
        assert_eq!(lines, [AuditRecord { at: WallTime(51_000), seen: refused("till"), count: 500 }]);
        assert_eq!((audit.take(at(2000)), audit.wake()), (vec![], None));
        assert_eq!(audit.refusals["not_allowed"], 501);
    }

    #[test]
    fn a_flood_of_different_refusals_has_few_lines_and_no_refusal_is_lost() {
        let mut audit = Audit::default();
        let mut lines = Vec::new();
        for n in 0..100_000 {
            audit.note(at(n / 100), refused(&format!("p{n}")));
            lines.extend(audit.take(at(n / 100)));
        }
        lines.extend(audit.take(at(2_000)));
        assert!(lines.len() <= 2 * (DIFFERENT_MAX + 1), "{}", lines.len());
        assert_eq!(lines.iter().map(|line| line.count).sum::<u64>(), 100_000);
    }

    #[test]
    fn changes_are_never_folded_and_long_words_are_cut() {
        let mut audit = Audit::default();
        let change = Seen { code: None, ..refused(&"ä".repeat(200)) };
        audit.note(at(0), change.clone());
        audit.note(at(0), change);
        let lines = audit.take(at(0));
        assert_eq!((lines.len(), lines[0].seen.principal.len()), (2, 254));
        assert!(audit.refusals.is_empty());
    }
}
