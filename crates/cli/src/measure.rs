//! What load tests count with: which messages were seen, how long they took, how long nothing came.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency told apart, in nanoseconds: an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// A set of small numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
    ones: u64,
}

impl Bitmap {
    /// Adds a number. False: it was there.
    pub(crate) fn insert(&mut self, number: u32) -> bool {
        let (word, bit) = (number as usize / 64, 1u64 << (number % 64));
        if word >= self.words.len() {
            self.words.resize((word + 1).next_power_of_two(), 0);
        }
        let fresh = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.ones += u64::from(fresh);
        fresh
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        self.words.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// How many numbers.
    pub(crate) fn len(&self) -> u64 {
        self.ones
    }

    /// How many of these are not in `other`.
    pub(crate) fn missing_in(&self, other: &Self) -> u64 {
        let there = other.words.iter().chain(std::iter::repeat(&0));
        self.words.iter().zip(there).map(|(here, there)| u64::from((here & !there).count_ones())).sum()
    }
}

/// Times that things took.
#[derive(Clone, Debug)]
pub(crate) struct Latency(Histogram<u64>);

/// As it is printed, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct LatencyReport {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) max: f64,
}

impl Latency {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are in order"))
    }

    pub(crate) fn record_ns(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds.max(1));
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    pub(crate) fn report(&self) -> LatencyReport {
        let micros = |nanoseconds: f64| (nanoseconds / 100.0).round() / 10.0;
        let at = |quantile: f64| micros(self.0.value_at_quantile(quantile) as f64);
        LatencyReport {
            mean: micros(self.0.mean()),
            p50: at(0.5),
            p99: at(0.99),
            p99_9: at(0.999),
            max: micros(self.0.max() as f64),
        }
    }
}

/// The longest time something that had work saw no progress. Instants are nanoseconds of one clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gap {
    last: u64,
    longest: u64,
}

impl Gap {
    /// Progress at `now` on work that was there since `since`. Work is finished in order, so nothing older was waiting.
    pub(crate) fn progress(&mut self, since: u64, now: u64) {
        self.longest = self.longest.max(now.saturating_sub(since.max(self.last)));
        self.last = self.last.max(now);
    }

    /// The same with nothing counted yet.
    pub(crate) fn anew(&self) -> Self {
        Self { last: self.last, longest: 0 }
    }

    /// Work that was there since `since` is given up at `now`: nothing came for it.
    pub(crate) fn gave_up(&mut self, since: u64, now: u64) {
        self.longest = self.longest.max(now.saturating_sub(since.max(self.last)));
    }

    pub(crate) fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest)
    }
}

/// Per second, to one decimal.
pub(crate) fn per_second(count: u64, nanoseconds: u64) -> f64 {
    if nanoseconds == 0 {
        return 0.0;
    }
    (count as f64 * 1e10 / nanoseconds as f64).round() / 10.0
}

/// Milliseconds to one decimal.
pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_knows_what_was_seen_and_what_is_missing() {
        let (mut acknowledged, mut delivered) = (Bitmap::default(), Bitmap::default());
        for number in [0, 63, 64, 1000] {
            assert!(acknowledged.insert(number));
        }
        assert!(delivered.insert(64) && !delivered.insert(64) && delivered.insert(5));
        assert_eq!((acknowledged.len(), delivered.len()), (4, 2));
        assert_eq!((acknowledged.missing_in(&delivered), delivered.missing_in(&acknowledged)), (3, 1));
        assert!(
            acknowledged.contains(1000) && !acknowledged.contains(1001) && !acknowledged.contains(1 << 30)
        );
    }

    #[test]
    fn a_gap_counts_only_while_there_is_work() {
        let mut gap = Gap::default();
        gap.progress(0, 10);
        gap.progress(5, 25);
        gap.progress(1000, 1012);
        assert_eq!(gap.longest(), Duration::from_nanos(15));
        gap.gave_up(1000, 1112);
        assert_eq!(gap.longest(), Duration::from_nanos(100), "what never came is a gap too");
    }

    #[test]
    fn latencies_are_reported_in_microseconds() {
        let mut latency = Latency::new();
        (1..=1000u64).for_each(|micros| latency.record_ns(micros * 1000));
        let report = latency.report();
        assert!((report.mean - 500.5).abs() < 1.0 && (report.p50 - 500.0).abs() < 1.0, "{report:?}");
        assert!((report.p99 - 990.0).abs() < 1.0 && (report.max - 1000.0).abs() < 1.0, "{report:?}");
    }
}
