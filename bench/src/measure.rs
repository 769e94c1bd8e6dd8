//! What is counted: which messages were seen, how long they took, how long nothing came; and medians of several runs.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

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

/// As it is written, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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

    pub(crate) fn report(&self) -> LatencyReport {
        let millis = |nanoseconds: f64| (nanoseconds / 1e3).round() / 1e3;
        let at = |quantile: f64| millis(self.0.value_at_quantile(quantile) as f64);
        LatencyReport {
            mean: millis(self.0.mean()),
            p50: at(0.5),
            p99: at(0.99),
            p99_9: at(0.999),
            max: millis(self.0.max() as f64),
        }
    }
}

/// The longest time without an event between a beginning and an end. Instants are nanoseconds of one clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gap {
    end: u64,
    last: u64,
    longest: u64,
}

impl Gap {
    /// Counts what lies between `begin` and `end`; silence up to either counts.
    pub(crate) fn between(begin: u64, end: u64) -> Self {
        Self { end, last: begin, longest: 0 }
    }

    /// Something happened at `now`. Instants do not go backwards.
    pub(crate) fn event(&mut self, now: u64) {
        // What began within counts in full, also when it ended after the end.
        if self.last < self.end && now > self.last {
            self.longest = self.longest.max(now - self.last);
            self.last = now;
        }
    }

    /// Nothing more will happen until the end.
    pub(crate) fn longest(mut self) -> Duration {
        self.event(self.end);
        Duration::from_nanos(self.longest)
    }
}

/// The middle of several figures, and the least and the most of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// `None` if there is none. Of an even number, the median is the mean of the middle two.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().filter(|figure| figure.is_finite()).collect();
        figures.sort_by(f64::total_cmp);
        let (least, most) = (*figures.first()?, *figures.last()?);
        let (low, high) = (figures[(figures.len() - 1) / 2], figures[figures.len() / 2]);
        Some(Self { median: low.midpoint(high), least, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_new_once_and_missing_until_it_is_there() {
        let (mut sent, mut seen) = (Bitmap::default(), Bitmap::default());
        assert!([0, 63, 64, 1000].into_iter().all(|number| sent.insert(number)));
        assert!(!sent.insert(64));
        seen.insert(64);
        seen.insert(5000);
        assert_eq!((sent.len(), sent.missing_in(&seen), seen.missing_in(&sent)), (4, 3, 1));
    }

    #[test]
    fn quantiles_are_those_of_the_times() {
        let mut latency = Latency::new();
        (1..=1000).for_each(|n| latency.record_ns(n * 1_000_000));
        let report = latency.report();
        for (measured, true_value) in
            [(report.mean, 500.5), (report.p50, 500.0), (report.p99, 990.0), (report.p99_9, 999.0)]
        {
            assert!((measured / true_value - 1.0).abs() < 0.002, "{measured} for {true_value}");
        }
    }

    #[test]
    fn silence_at_either_end_counts_and_what_lies_outside_does_not() {
        let mut gap = Gap::between(1000, 5000);
        assert_eq!(gap.longest().as_nanos(), 4000, "nothing at all happened");
        gap.event(500);
        gap.event(1600);
        gap.event(2000);
        assert_eq!(gap.longest().as_nanos(), 3000, "from the last event to the end");
        gap.event(4900);
        assert_eq!(gap.longest().as_nanos(), 2900);
        gap.event(9000);
        gap.event(90_000);
        assert_eq!(gap.longest().as_nanos(), 4100, "began within, ended after");
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let spread = |figures: &[f64]| Spread::of(figures.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[f64::NAN]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, least: 1.0, most: 4.0 }));
    }
}
