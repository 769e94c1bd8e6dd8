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

    /// Which of these are not in `other`, from the lowest on.
    pub(crate) fn without(&self, other: &Self) -> impl Iterator<Item = u32> {
        let numbers = 0..self.words.len() as u32 * u64::BITS;
        numbers.filter(|number| self.contains(*number) && !other.contains(*number))
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

/// Columns of the longest bar of a chart.
const CHART_COLUMNS: u64 = 40;

impl Latency {
    /// For people: a line for each step of 1, 2, 5, 10, ... from the least to the most, with a bar, a count and a share.
    pub(crate) fn chart(&self) -> Vec<String> {
        // In nanoseconds; below a microsecond nothing is told apart.
        let edges: Vec<u64> = (0..12)
            .flat_map(|decade| [1, 2, 5].map(|digit| digit * 1000 * 10u64.pow(decade)))
            .take_while(|edge| *edge <= LATENCY_NS_MAX)
            .collect();
        let mut counts = vec![0u64; edges.len() + 1];
        for value in self.0.iter_recorded() {
            let step = edges.partition_point(|edge| *edge <= value.value_iterated_to());
            counts[step] += value.count_at_value();
        }
        let (Some(first), Some(last)) =
            (counts.iter().position(|count| *count > 0), counts.iter().rposition(|count| *count > 0))
        else {
            return Vec::new();
        };
        let most = counts.iter().copied().max().unwrap_or(1).max(1);
        let line = |step: usize| {
            let count = counts[step];
            let upto = edges.get(step).map_or_else(|| "more".to_owned(), |edge| spell(*edge));
            let bar = "#".repeat((count * CHART_COLUMNS).div_ceil(most) as usize);
            let share = count as f64 * 100.0 / self.0.len() as f64;
            let columns = CHART_COLUMNS as usize;
            format!("  below {upto:>6} {bar:<columns$} {count:>10} {share:>6.2} %")
        };
        (first..=last).map(line).collect()
    }
}

/// A step of a chart.
fn spell(nanoseconds: u64) -> String {
    let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
    let (unit, name) = units.into_iter().find(|(unit, _)| nanoseconds >= *unit).unwrap_or((1, "ns"));
    format!("{} {name}", nanoseconds / unit)
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
    fn a_chart_has_a_line_for_each_step_from_the_least_to_the_most() {
        assert!(Latency::new().chart().is_empty());
        let mut latency = Latency::new();
        (0..80).for_each(|_| latency.record_ns(1_500_000));
        (0..20).for_each(|_| latency.record_ns(7_000_000));
        let chart = latency.chart();
        let shown: Vec<Vec<&str>> = chart.iter().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(shown.len(), 3);
        assert_eq!(shown[0], ["below", "2", "ms", &"#".repeat(40), "80", "80.00", "%"]);
        assert_eq!(shown[1], ["below", "5", "ms", "0", "0.00", "%"]);
        assert_eq!(shown[2], ["below", "10", "ms", &"#".repeat(10), "20", "20.00", "%"]);
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
