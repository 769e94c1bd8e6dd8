//! Grouped bars on a logarithmic axis, as SVG: one group per case, one bar per policy. Readable on white and on black.

/// Pixels.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 330.0;
/// Room of a group that stays empty.
const GAP: f64 = 0.3;
/// One per policy, in turn: told apart on both grounds, and by those who do not tell red from green.
const COLOURS: [&str; 4] = ["#d9822b", "#2b7bba", "#7a6fbe", "#5f9e6e"];
const STYLE: &str = "text{font:12px sans-serif;fill:#24292f}line{stroke:#8c959f;stroke-width:.5}\
                     @media(prefers-color-scheme:dark){text{fill:#d0d7de}}";

/// A group of bars.
pub(super) struct Group {
    pub(super) name: String,
    /// Milliseconds, one per policy. What is infinite reaches the top.
    pub(super) values: Vec<f64>,
}

/// The whole picture.
///
/// * `title`: what the bars are, with the unit.
pub(super) fn svg(title: &str, policies: &[String], groups: &[Group]) -> String {
    let (low, high) = decades(groups);
    let y = |value: f64| {
        let part = (value.max(low).log10() - low.log10()) / (high.log10() - low.log10());
        BOTTOM - part.min(1.0) * (BOTTOM - TOP)
    };
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n<text x=\"{LEFT}\" y=\"18\">{title}</text>\n"
    );
    let mut tick = low;
    while tick <= high * 1.001 {
        let at = y(tick);
        text.push_str(&format!("<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\n"));
        text.push_str(&label(LEFT - 6.0, at + 4.0, "end", &figure(tick)));
        tick *= 10.0;
    }
    let room = (WIDTH - LEFT) / groups.len().max(1) as f64;
    let bar = room * (1.0 - GAP) / policies.len().max(1) as f64;
    for (number, group) in groups.iter().enumerate() {
        let left = LEFT + room * (number as f64 + GAP / 2.0);
        for (place, (value, colour)) in group.values.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let (x, top) = (left + bar * place as f64, y(*value));
            text.push_str(&format!(
                "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\n",
                bar - 2.0,
                BOTTOM - top
            ));
            text.push_str(&label(x + bar / 2.0, top - 4.0, "middle", &figure(*value)));
        }
        text.push_str(&label(left + room * (1.0 - GAP) / 2.0, BOTTOM + 18.0, "middle", &group.name));
    }
    for (place, (policy, colour)) in policies.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let x = LEFT + 140.0 * place as f64;
        text.push_str(&format!(
            "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\n",
            HEIGHT - 24.0
        ));
        text.push_str(&label(x + 18.0, HEIGHT - 14.0, "start", policy));
    }
    text.push_str("</svg>\n");
    text
}

fn label(x: f64, y: f64, anchor: &str, words: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n")
}

/// The powers of ten around all values; a value above the last one is infinite.
fn decades(groups: &[Group]) -> (f64, f64) {
    let finite =
        || groups.iter().flat_map(|group| &group.values).filter(|value| value.is_finite() && **value > 0.0);
    let low = finite().copied().fold(f64::INFINITY, f64::min).min(1e6);
    let high = finite().copied().fold(0.0, f64::max).max(low);
    let low = 10_f64.powf(low.log10().floor());
    // A bar without height would look like nothing at all.
    (low, 10_f64.powf(high.log10().ceil()).max(low * 10.0))
}

/// A figure with as many digits as matter. Infinite: never.
pub(super) fn figure(value: f64) -> String {
    match value {
        value if value.is_infinite() => "never".to_owned(),
        value if value < 10.0 && value.fract() != 0.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, values: &[f64]) -> Group {
        Group { name: name.to_owned(), values: values.to_vec() }
    }

    #[test]
    fn ten_times_as_much_is_one_decade_higher() {
        let policies = ["static-hash".to_owned(), "least-cost".to_owned()];
        let text = svg(
            "p99, ms",
            &policies,
            &[group("control", &[10.0, 1.0]), group("cut", &[f64::INFINITY, 100.0])],
        );
        let heights: Vec<f64> = text
            .lines()
            .filter(|line| line.starts_with("<rect") && !line.contains("height=\"12\""))
            .filter_map(|line| line.split("height=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(heights, [140.0, 0.0, 280.0, 280.0]);
        for word in [">static-hash<", ">least-cost<", ">control<", ">cut<", ">never<", ">p99, ms<"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert_eq!(text.matches("<text").count(), text.matches("</text>").count());
    }

    #[test]
    fn the_axis_spans_all_values() {
        assert_eq!(decades(&[group("a", &[12.0, 3400.0])]), (10.0, 10_000.0));
        assert_eq!(decades(&[group("a", &[1.0])]), (1.0, 10.0));
        assert_eq!(
            (figure(7.25), figure(123.4), figure(f64::INFINITY)),
            ("7.2".into(), "123".into(), "never".into())
        );
    }
}
