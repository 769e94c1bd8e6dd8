//! Counts what was acknowledged and what was delivered, how long nothing was, and says what that means.

use std::time::Duration;

use serde::Serialize;

use super::{CONSUMERS, PRODUCERS, worker::News};
use crate::measure::{Bitmap, Gap, Latency, LatencyReport, millis};

/// Lost messages that are told by name, at most.
const NAMED_MAX: usize = 10;

/// What the demo shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Passed,
    /// Something was lost, came twice or out of order, or the load did not come to its end.
    Failed,
    /// Nothing is known to be wrong, but the fate of some messages is open.
    Unknown,
}

impl Verdict {
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed => 1,
            Self::Unknown => 5,
        }
    }
}

/// The longest time without progress, from one fault to the next.
#[derive(Clone, Debug)]
struct Window {
    /// Nanoseconds of the machine's monotonic clock.
    since: u64,
    publish: Vec<Gap>,
    deliver: Vec<Gap>,
}

impl Window {
    fn new(since: u64) -> Self {
        Self {
            since,
            publish: vec![Gap::default(); PRODUCERS.into()],
            deliver: vec![Gap::default(); PRODUCERS.into()],
        }
    }

    fn longest(gaps: &[Gap]) -> Duration {
        gaps.iter().map(Gap::longest).max().unwrap_or_default()
    }
}

/// What it has heard.
pub(super) struct Judge {
    sent: Vec<Bitmap>,
    acknowledged: Vec<Bitmap>,
    delivered: Vec<Bitmap>,
    unknown: Vec<Bitmap>,
    pub(super) duplicated: u64,
    /// Given again, flagged as a later attempt.
    pub(super) redelivered: u64,
    pub(super) out_of_order: u64,
    /// The first one is the time before any fault.
    windows: Vec<Window>,
    latency: Latency,
    subscribed: u16,
    done: u16,
    pub(super) failure: Option<String>,
}

impl Judge {
    pub(super) fn new() -> Self {
        let none = || vec![Bitmap::default(); PRODUCERS.into()];
        Self {
            sent: none(),
            acknowledged: none(),
            delivered: none(),
            unknown: none(),
            duplicated: 0,
            redelivered: 0,
            out_of_order: 0,
            windows: vec![Window::new(0)],
            latency: Latency::new(),
            subscribed: 0,
            done: 0,
            failure: None,
        }
    }

    /// From `now` on another fault is to blame.
    pub(super) fn fault(&mut self, now_ns: u64) {
        let last = self.windows.last().expect("there is always one");
        let (publish, deliver) = (last.publish.iter().map(Gap::anew), last.deliver.iter().map(Gap::anew));
        self.windows.push(Window { since: now_ns, publish: publish.collect(), deliver: deliver.collect() });
    }

    fn window(&mut self, now_ns: u64) -> &mut Window {
        let place = self.windows.iter().rposition(|window| window.since <= now_ns).unwrap_or(0);
        &mut self.windows[place]
    }

    pub(super) fn hear(&mut self, news: News) {
        match news {
            News::Subscribed => self.subscribed += 1,
            News::Acknowledged { producer, sequence, handed_ns, now_ns } => {
                self.sent[usize::from(producer)].insert(sequence);
                self.acknowledged[usize::from(producer)].insert(sequence);
                self.window(now_ns).publish[usize::from(producer)].progress(handed_ns, now_ns);
            }
            News::Unknown { producer, sequence, handed_ns, now_ns } => {
                self.sent[usize::from(producer)].insert(sequence);
                self.unknown[usize::from(producer)].insert(sequence);
                self.window(now_ns).publish[usize::from(producer)].gave_up(handed_ns, now_ns);
            }
            News::Delivered { producer, sequence, handed_ns, now_ns, late, again } => {
                self.out_of_order += u64::from(late);
                if self.delivered[usize::from(producer)].insert(sequence) {
                    self.latency.record_ns(now_ns.saturating_sub(handed_ns));
                } else if again {
                    // Its holder was silent for longer than a new leader waits: it comes again, and says so.
                    self.redelivered += 1;
                } else {
                    self.duplicated += 1;
                }
                self.window(now_ns).deliver[usize::from(producer)].progress(handed_ns, now_ns);
            }
            News::Done => self.done += 1,
            News::Failed { message } => {
                self.failure.get_or_insert(message);
            }
        }
    }

    fn count(bitmaps: &[Bitmap]) -> u64 {
        bitmaps.iter().map(Bitmap::len).sum()
    }

    fn missing(&self, bitmaps: &[Bitmap]) -> u64 {
        bitmaps.iter().zip(&self.delivered).map(|(these, seen)| these.missing_in(seen)).sum()
    }

    /// Messages whose fate was told.
    pub(super) fn sent(&self) -> u64 {
        Self::count(&self.sent)
    }

    pub(super) fn acknowledged(&self) -> u64 {
        Self::count(&self.acknowledged)
    }

    pub(super) fn delivered(&self) -> u64 {
        Self::count(&self.delivered)
    }

    /// Acknowledged and never delivered.
    pub(super) fn lost(&self) -> u64 {
        self.missing(&self.acknowledged)
    }

    /// The first of those, as `producer:sequence`.
    pub(super) fn lost_names(&self) -> Vec<String> {
        let pairs = self.acknowledged.iter().zip(&self.delivered).enumerate();
        let names = pairs.flat_map(|(producer, (stored, seen))| {
            stored.without(seen).map(move |sequence| format!("{producer}:{sequence}"))
        });
        names.take(NAMED_MAX).collect()
    }

    /// Neither acknowledged nor delivered: a delivery resolves what the answer did not.
    pub(super) fn unknown(&self) -> u64 {
        self.missing(&self.unknown)
    }

    /// Whether the consumers wait for messages.
    pub(super) fn is_ready(&self) -> bool {
        self.subscribed == CONSUMERS
    }

    pub(super) fn is_complete(&self) -> bool {
        self.done == PRODUCERS && self.lost() == 0
    }

    pub(super) fn verdict(&self) -> Verdict {
        if !self.is_complete() || self.duplicated + self.out_of_order > 0 {
            Verdict::Failed
        } else if self.unknown() > 0 {
            Verdict::Unknown
        } else {
            Verdict::Passed
        }
    }

    /// Longest pauses of a producer and of deliveries after the fault with this number, in milliseconds.
    pub(super) fn gaps_ms(&self, fault: usize) -> (f64, f64) {
        let window = &self.windows[fault + 1];
        (millis(Window::longest(&window.publish)), millis(Window::longest(&window.deliver)))
    }

    /// The same over all.
    pub(super) fn longest_gaps_ms(&self) -> (f64, f64) {
        let longest = |of: fn(&Window) -> &[Gap]| {
            millis(self.windows.iter().map(|window| Window::longest(of(window))).max().unwrap_or_default())
        };
        (longest(|window| &window.publish), longest(|window| &window.deliver))
    }

    pub(super) fn latency(&self) -> LatencyReport {
        self.latency.report()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(sequence: u32, handed_ns: u64, now_ns: u64) -> News {
        News::Acknowledged { producer: 1, sequence, handed_ns, now_ns }
    }

    fn delivered(sequence: u32, late: bool) -> News {
        News::Delivered { producer: 1, sequence, handed_ns: 1, now_ns: 5000, late, again: false }
    }

    #[test]
    fn the_judge_tells_lost_from_duplicated_and_disordered() {
        let mut judge = Judge::new();
        let news = [acknowledged(0, 1, 2), acknowledged(1, 1, 2), delivered(0, false)];
        news.into_iter().for_each(|news| judge.hear(news));
        assert_eq!((judge.lost(), judge.duplicated, judge.sent()), (1, 0, 2));
        assert_eq!(judge.lost_names(), ["1:1"]);
        [delivered(1, false), delivered(0, false)].into_iter().for_each(|news| judge.hear(news));
        assert_eq!((judge.lost(), judge.duplicated, judge.out_of_order), (0, 1, 0));
        judge.hear(News::Delivered {
            producer: 1,
            sequence: 0,
            handed_ns: 1,
            now_ns: 5000,
            late: false,
            again: true,
        });
        assert_eq!((judge.duplicated, judge.redelivered), (1, 1), "a flagged one is counted apart");
        assert!(!judge.is_complete(), "producers still run");
        (0..PRODUCERS).for_each(|_| judge.hear(News::Done));
        assert!(judge.is_complete());
        let mut judge = Judge::new();
        (0..PRODUCERS).for_each(|_| judge.hear(News::Done));
        judge.hear(delivered(0, true));
        assert_eq!((judge.verdict(), judge.out_of_order), (Verdict::Failed, 1));
    }

    #[test]
    fn the_verdict_needs_everything_to_be_known() {
        let mut judge = Judge::new();
        assert_eq!(judge.verdict(), Verdict::Failed, "nobody has finished");
        (0..PRODUCERS).for_each(|_| judge.hear(News::Done));
        assert_eq!(judge.verdict(), Verdict::Passed);
        judge.hear(News::Unknown { producer: 1, sequence: 7, handed_ns: 0, now_ns: 5_000_000 });
        assert_eq!((judge.verdict(), judge.unknown()), (Verdict::Unknown, 1));
        assert_eq!(judge.longest_gaps_ms().0, 5.0, "waiting in vain is a pause too");
        judge.hear(delivered(7, false));
        assert_eq!(judge.verdict(), Verdict::Passed, "it was stored, as its delivery shows");
        judge.hear(delivered(7, false));
        assert_eq!(judge.verdict(), Verdict::Failed);
    }

    #[test]
    fn a_pause_belongs_to_the_fault_before_its_end() {
        let ms = 1_000_000;
        let mut judge = Judge::new();
        judge.hear(acknowledged(0, 0, 2 * ms));
        judge.fault(10 * ms);
        judge.hear(acknowledged(1, 9 * ms, 40 * ms));
        judge.fault(50 * ms);
        judge.hear(acknowledged(2, 48 * ms, 51 * ms));
        assert_eq!((judge.gaps_ms(0).0, judge.gaps_ms(1).0), (31.0, 3.0));
        assert_eq!(judge.longest_gaps_ms(), (31.0, 0.0));
    }
}
