//! What became of every message of a load, as `bench e2e --samples` wrote it; and what a client would have felt in a
//! stretch of time.

/// One message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// When it was to be sent: microseconds since 1970.
    pub(super) due_us: u64,
    /// From then until it was acknowledged, in milliseconds. Infinite: it never was.
    pub(super) acknowledged_ms: f64,
    /// The same until it was delivered.
    pub(super) delivered_ms: f64,
}

/// Reads a file of samples.
pub(super) fn parse(text: &str) -> Result<Vec<Sample>, String> {
    let time = |word: &str| match word {
        "-" => Some(f64::INFINITY),
        number => number.parse::<f64>().ok().map(|us| us / 1000.0),
    };
    let sample = |line: &str| {
        let mut words = line.split(' ');
        let due_us = words.next()?.parse().ok()?;
        let (acknowledged_ms, delivered_ms) = (time(words.next()?)?, time(words.next()?)?);
        words.next().is_none().then_some(Sample { due_us, acknowledged_ms, delivered_ms })
    };
    text.lines().map(|line| sample(line).ok_or_else(|| format!("no sample: {line:?}"))).collect()
}

/// A distribution, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spread {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p99_9: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Of any number of values, in any order. Fails when there are none: nothing was measured.
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Result<Self, String> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let max = *values.last().ok_or("no message was due while it was measured")?;
        // The smallest value that so many thousandths of all do not exceed.
        let at = |thousandths: usize| values[(values.len() * thousandths).div_ceil(1000).max(1) - 1];
        Ok(Self { p50: at(500), p99: at(990), p99_9: at(999), max })
    }
}

/// How many of a hundred values are at most `limit`. Of none: 0.
pub(super) fn percent_within(values: impl Iterator<Item = f64>, limit: f64) -> f64 {
    let (mut within, mut all) = (0_u32, 0_u32);
    for value in values {
        within += u32::from(value <= limit);
        all += 1;
    }
    100.0 * f64::from(within) / f64::from(all.max(1))
}

/// The middle one; of an even number the mean of the two in the middle. Of none: 0.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len() / 2, values.len() % 2) {
        (0, 0) => 0.0,
        (middle, 0) => (values[middle - 1] + values[middle]) / 2.0,
        (middle, _) => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_answered_took_forever() {
        let samples = parse("1700000000000000 1500 2500\n1700000000002000 - 3000\n").unwrap();
        assert_eq!(
            samples[0],
            Sample { due_us: 1_700_000_000_000_000, acknowledged_ms: 1.5, delivered_ms: 2.5 }
        );
        assert_eq!((samples[1].acknowledged_ms, samples[1].delivered_ms), (f64::INFINITY, 3.0));
        for bad in ["1 2", "1 2 3 4", "- 1 2", "1 x 2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let spread = Spread::of((1..=1000).rev().map(f64::from)).unwrap();
        assert_eq!(spread, Spread { p50: 500.0, p99: 990.0, p99_9: 999.0, max: 1000.0 });
        let one = Spread::of([7.0, f64::INFINITY].into_iter()).unwrap();
        assert_eq!((one.p50, one.p99), (7.0, f64::INFINITY));
        assert!(Spread::of(std::iter::empty()).is_err());
    }

    #[test]
    fn shares_and_medians() {
        assert_eq!(percent_within([1.0, 1000.0, 1000.1, f64::INFINITY].into_iter(), 1000.0), 50.0);
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0]), median(vec![])), (2.0, 2.5, 0.0));
    }
}
