//! Bars in SVG: one group per load, one bar per row, with a line from the least to the most.

use std::fmt::Write as _;

use crate::{bars::figure, measure::Spread};

const WIDTH: f64 = 760.0;
const LABELS_WIDTH: f64 = 130.0;
const FIGURES_WIDTH: f64 = 70.0;
const BAR_HEIGHT: f64 = 16.0;
const BAR_PITCH: f64 = 20.0;
const GROUP_GAP: f64 = 30.0;
const TOP: f64 = 30.0;
const COLOURS: [&str; 6] = ["#1a7f37", "#57ab5a", "#0969da", "#54aeff", "#bc4c00", "#8250df"];

/// The bars of one group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    /// Row, its place among all rows, and its figures.
    pub(crate) bars: Vec<(String, usize, Spread)>,
}

/// How long a bar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// For figures that differ by orders of magnitude; from the power of ten below the least one on.
    Logarithmic,
}

/// Draws; empty if there is nothing to draw.
pub(crate) fn draw(title: &str, groups: &[Group], scale: Scale) -> String {
    let all = || groups.iter().flat_map(|group| group.bars.iter().map(|(_, _, spread)| *spread));
    let Some(range) = Spread::of(all().flat_map(|spread| [spread.least, spread.most])) else {
        return String::new();
    };
    let (least, most) = (range.least.max(1e-6), range.most.max(1e-6));
    let floor = 10f64.powf(least.log10().floor());
    let room = WIDTH - LABELS_WIDTH - FIGURES_WIDTH;
    let x = |value: f64| {
        let share = match scale {
            Scale::Linear => value / most,
            Scale::Logarithmic => (value.max(floor) / floor).ln() / (most / floor).ln().max(1e-9),
        };
        LABELS_WIDTH + room * share.clamp(0.0, 1.0)
    };
    let mut body = String::new();
    let mut y = TOP;
    for group in groups.iter().filter(|group| !group.bars.is_empty()) {
        put(
            &mut body,
            format_args!("<text x=\"0\" y=\"{:.1}\" class=\"g\">{}</text>", y + 12.0, escaped(&group.name)),
        );
        y += BAR_PITCH;
        for (row, place, spread) in &group.bars {
            let middle = y + BAR_HEIGHT / 2.0;
            let (begin, end) = (LABELS_WIDTH, x(spread.median));
            put(
                &mut body,
                format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    begin - 8.0,
                    y + 12.0,
                    escaped(row)
                ),
            );
            put(
                &mut body,
                format_args!(
                    "<rect x=\"{begin:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{}\"/>",
                    (end - begin).max(1.0),
                    COLOURS[place % COLOURS.len()]
                ),
            );
            put(
                &mut body,
                format_args!(
                    "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>",
                    x(spread.least),
                    x(spread.most)
                ),
            );
            put(
                &mut body,
                format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    x(spread.most) + 6.0,
                    y + 12.0,
                    figure(spread.median)
                ),
            );
            y += BAR_PITCH;
        }
        y += GROUP_GAP - BAR_PITCH;
    }
    let title = escaped(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" role=\"img\">\n<title>{title}</title>\n\
         <style>text{{font:12px sans-serif;fill:#24292f}}.g{{font-weight:bold}}line{{stroke:#8c959f;stroke-width:2}}\
         @media(prefers-color-scheme:dark){{text{{fill:#d0d7de}}}}</style>\n\
         <text x=\"0\" y=\"16\">{title}</text>\n{body}</svg>\n"
    )
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a text does not fail");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(figures: &[f64]) -> Group {
        let bars = figures.iter().enumerate();
        let spread = |median: f64| Spread { median, least: median / 2.0, most: median * 2.0 };
        Group {
            name: "a < b".into(),
            bars: bars.map(|(at, median)| ("row".into(), at, spread(*median))).collect(),
        }
    }

    fn widths(svg: &str) -> Vec<f64> {
        let rects = svg.lines().filter(|line| line.starts_with("<rect"));
        rects
            .map(|line| line.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect()
    }

    #[test]
    fn bars_are_as_long_as_their_figures() {
        let widths = widths(&draw("t", &[group(&[10.0, 20.0])], Scale::Linear));
        assert!((widths[1] / widths[0] - 2.0).abs() < 0.01, "{widths:?}");
    }

    #[test]
    fn on_a_logarithmic_scale_a_factor_is_a_length() {
        let widths = widths(&draw("t", &[group(&[10.0, 100.0, 1000.0])], Scale::Logarithmic));
        assert!(((widths[2] - widths[1]) - (widths[1] - widths[0])).abs() < 0.2, "{widths:?}");
    }

    #[test]
    fn names_cannot_break_the_picture_and_nothing_is_no_picture() {
        assert!(draw("t", &[group(&[1.0])], Scale::Linear).contains("a &lt; b"));
        assert_eq!(draw("t", &[], Scale::Linear), "");
    }
}
