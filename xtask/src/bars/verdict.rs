//! What was measured, against which bar, and whether it passes. Pure: figures in, words out.

use std::fmt::Write;

use super::json::quote;

/// What a figure must reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bar {
    /// The median counts.
    AtMost(f64),
    /// The median counts.
    AtLeast(f64),
    /// Every single sample counts: for promises without exceptions.
    NeverAbove(f64),
    /// Told because it explains the others.
    None,
}

/// One thing that was measured, perhaps several times.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    pub(super) what: String,
    pub(super) unit: &'static str,
    pub(super) samples: Vec<f64>,
    pub(super) bar: Bar,
}

impl Figure {
    pub(super) fn new(what: &str, unit: &'static str, samples: Vec<f64>, bar: Bar) -> Self {
        Self { what: what.to_owned(), unit, samples, bar }
    }

    /// A figure that was not measured misses its bar.
    fn passed(&self) -> bool {
        let (median, highest) = (median(&self.samples), highest(&self.samples));
        match self.bar {
            Bar::None => true,
            Bar::AtMost(bar) => median.is_some_and(|median| median <= bar),
            Bar::AtLeast(bar) => median.is_some_and(|median| median >= bar),
            Bar::NeverAbove(bar) => highest.is_some_and(|highest| highest <= bar),
        }
    }

    fn bar_in_words(&self) -> Option<String> {
        let (words, bar) = match self.bar {
            Bar::None => return None,
            Bar::AtMost(bar) => ("at most", bar),
            Bar::AtLeast(bar) => ("at least", bar),
            Bar::NeverAbove(bar) => ("never above", bar),
        };
        Some(format!("{words} {}", with_unit(bar, self.unit)))
    }

    fn show(&self) -> String {
        let Some(median) = median(&self.samples) else { return "not measured".into() };
        let mut text = with_unit(median, self.unit);
        if self.samples.len() > 1 {
            let (lowest, highest) = (lowest(&self.samples), highest(&self.samples));
            let _infallible = write!(
                text,
                " ({} to {}, {} samples)",
                number(lowest.unwrap_or(median)),
                number(highest.unwrap_or(median)),
                self.samples.len()
            );
        }
        text
    }

    fn json(&self) -> String {
        let number = |value: Option<f64>| value.map_or("null".to_owned(), |value| format!("{value}"));
        format!(
            "{{\"what\":{},\"unit\":{},\"median\":{},\"min\":{},\"max\":{},\"samples\":{},\"bar\":{},\"passed\":{}}}",
            quote(&self.what),
            quote(self.unit),
            number(median(&self.samples)),
            number(lowest(&self.samples)),
            number(highest(&self.samples)),
            self.samples.len(),
            self.bar_in_words().map_or("null".to_owned(), |words| quote(&words)),
            self.passed()
        )
    }
}

/// One bar: everything that was measured for it.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    /// As after `--only`.
    pub(super) name: &'static str,
    pub(super) what: String,
    pub(super) figures: Vec<Figure>,
    /// Why it could not be measured to the end.
    pub(super) error: Option<String>,
}

impl Verdict {
    pub(super) fn new(name: &'static str, what: impl Into<String>, figures: Vec<Figure>) -> Self {
        Self { name, what: what.into(), figures, error: None }
    }

    /// The measurement itself broke: the bar is not reached.
    pub(super) fn broken(name: &'static str, error: &str) -> Self {
        let error = Some(error.to_owned());
        Self { name, what: "could not be measured".into(), figures: Vec::new(), error }
    }

    pub(super) fn passed(&self) -> bool {
        self.error.is_none()
            && self.figures.iter().any(|figure| figure.bar != Bar::None)
            && self.figures.iter().all(Figure::passed)
    }

    /// For people.
    pub(super) fn show(&self) -> String {
        let verdict = if self.passed() { "passed" } else { "failed" };
        let mut text = format!("{}: {verdict}: {}\n", self.name, self.what);
        let width = self.figures.iter().map(|figure| figure.what.len()).max().unwrap_or(0);
        for figure in &self.figures {
            let _infallible = write!(text, "  {:<width$}  {}", figure.what, figure.show());
            if let Some(bar) = figure.bar_in_words() {
                let missed = if figure.passed() { "" } else { ": MISSED" };
                let _infallible = write!(text, "; bar: {bar}{missed}");
            }
            text.push('\n');
        }
        if let Some(error) = &self.error {
            let _infallible = writeln!(text, "  {error}");
        }
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        let figures: Vec<String> = self.figures.iter().map(Figure::json).collect();
        format!(
            "{{\"bar\":{},\"what\":{},\"passed\":{},\"figures\":[{}],\"error\":{}}}",
            quote(self.name),
            quote(&self.what),
            self.passed(),
            figures.join(","),
            self.error.as_deref().map_or("null".to_owned(), quote)
        )
    }
}

/// The middle one; of an even number the mean of the two in the middle.
pub(super) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

fn lowest(samples: &[f64]) -> Option<f64> {
    samples.iter().copied().min_by(f64::total_cmp)
}

fn highest(samples: &[f64]) -> Option<f64> {
    samples.iter().copied().max_by(f64::total_cmp)
}

fn with_unit(value: f64, unit: &str) -> String {
    if unit.is_empty() { number(value) } else { format!("{} {unit}", number(value)) }
}

/// With as many digits as can be trusted, and thousands set apart.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::from(sign);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    fraction.map_or(grouped.clone(), |fraction| format!("{grouped}.{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::{super::json, *};

    fn figure(samples: &[f64], bar: Bar) -> Figure {
        Figure::new("speed", "msg/s", samples.to_vec(), bar)
    }

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn a_bar_is_reached_by_the_median_or_by_every_sample() {
        let samples = [1.0, 2.0, 9.0];
        assert!(figure(&samples, Bar::AtMost(2.0)).passed());
        assert!(!figure(&samples, Bar::AtMost(1.9)).passed());
        assert!(figure(&samples, Bar::AtLeast(2.0)).passed());
        assert!(!figure(&samples, Bar::AtLeast(2.1)).passed());
        assert!(!figure(&samples, Bar::NeverAbove(8.0)).passed());
        assert!(figure(&samples, Bar::NeverAbove(9.0)).passed());
        assert!(!figure(&[], Bar::AtMost(2.0)).passed(), "what was not measured has not passed");
    }

    #[test]
    fn a_verdict_needs_every_figure_and_at_least_one_bar() {
        let good = figure(&[1.0], Bar::AtMost(2.0));
        let bad = figure(&[3.0], Bar::AtMost(2.0));
        let told = figure(&[3.0], Bar::None);
        assert!(Verdict::new("a", "", vec![good.clone(), told.clone()]).passed());
        assert!(!Verdict::new("a", "", vec![good.clone(), bad]).passed());
        assert!(!Verdict::new("a", "", vec![told]).passed());
        assert!(!Verdict::broken("a", "no disk").passed());
        assert!(!Verdict { error: Some("late".into()), ..Verdict::new("a", "", vec![good]) }.passed());
    }

    #[test]
    fn a_missed_bar_stands_beside_what_was_measured() {
        let figures =
            vec![figure(&[1234.5, 90.0, 5000.0], Bar::AtLeast(150_000.0)), figure(&[0.25], Bar::None)];
        let verdict = Verdict::new("throughput", "a load", figures);
        assert_eq!(
            verdict.show(),
            "throughput: failed: a load\n  speed  1,234 msg/s (90 to 5,000, 3 samples); bar: at least 150,000 msg/s: MISSED\n  speed  0.25 msg/s\n"
        );
        let value = json::parse(&verdict.json()).unwrap();
        assert_eq!(value.number("figures.0.median"), Ok(1234.5));
        assert_eq!(value.at("passed"), Some(&json::Value::Bool(false)));
        assert_eq!(value.text("figures.0.bar"), Ok("at least 150,000 msg/s"));
        assert!(Verdict::broken("a", "no \"disk\"").show().contains("a: failed"));
        assert!(json::parse(&Verdict::broken("a", "no \"disk\"").json()).is_ok());
    }

    #[test]
    fn numbers_have_as_many_digits_as_can_be_trusted() {
        for (value, text) in [
            (0.0, "0"),
            (0.756, "0.76"),
            (12.34, "12.3"),
            (999.6, "1,000"),
            (150_000.0, "150,000"),
            (-1234.0, "-1,234"),
            (1_234_567.8, "1,234,568"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
