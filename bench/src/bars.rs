//! What SwarmMQ promises against others, and whether it holds: computed from what was measured, never written down.

use crate::{
    measure::Spread,
    plan::{Load, thousands},
    results::{Results, Traffic},
};

/// Brokers that keep copies: only these are compared. One copy is another promise.
const REPLICATED_PEERS: [&str; 3] = ["nats", "nats-always", "rabbitmq"];
const TOTAL: &str = "swarmmq";
const SPREAD: &str = "swarmmq-spread";
/// Each message is written so often.
const COPIES: f64 = 3.0;

const SATURATION_128: Load = Load::Saturation { size: 128 };
const SATURATION_1K: Load = Load::Saturation { size: 1024 };
const RATE_1K: Load = Load::Rate { size: 1024, per_s: 1000 };
const RATE_10K: Load = Load::Rate { size: 1024, per_s: 10_000 };
const FAILOVER: Load = Load::Failover { size: 1024, per_s: 1000 };

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    NotMeasured,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "**missed**",
            Self::NotMeasured => "not measured",
        }
    }
}

/// One promise and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    pub(crate) what: String,
    pub(crate) row: &'static str,
    pub(crate) measured: String,
    pub(crate) must_be: String,
    pub(crate) verdict: Verdict,
}

/// On which side of the bound is good.
#[derive(Clone, Copy, Debug)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn judge(self, figure: Option<f64>) -> Verdict {
        match (self, figure) {
            (_, None) => Verdict::NotMeasured,
            (Self::AtLeast(bound), Some(figure)) if figure >= bound => Verdict::Met,
            (Self::AtMost(bound), Some(figure)) if figure <= bound => Verdict::Met,
            _ => Verdict::Missed,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::AtLeast(bound) => format!("at least {bound}{unit}"),
            Self::AtMost(bound) => format!("at most {bound}{unit}"),
        }
    }
}

/// All promises.
pub(crate) fn judge(results: &Results) -> Vec<Judged> {
    let mut judged = Vec::new();
    for row in [TOTAL, SPREAD] {
        let throughput = [
            (SATURATION_1K, "nats", 2.5),
            (SATURATION_128, "nats", 5.0),
            (SATURATION_1K, "rabbitmq", 4.0),
            (SATURATION_128, "rabbitmq", 4.0),
            (SATURATION_1K, "nats-always", 2.5),
        ];
        for (load, peer, bound) in throughput {
            let what = format!("throughput against `{peer}`, {}", load.name());
            let figure =
                |peer| results.traffic(peer, load, |traffic| traffic.per_s).map(|spread| spread.median);
            judged.push(ratio(what, row, "msg/s", figure(row), figure(peer), Bound::AtLeast(bound)));
        }
        let cpu = |peer| {
            let figure = |traffic: &Traffic| traffic.server_us_per_message;
            results.traffic(peer, SATURATION_1K, figure).map(|spread| spread.median)
        };
        let what =
            format!("processor time of the nodes per message against `nats`, {}", SATURATION_1K.name());
        judged.push(ratio(what, row, "us", cpu(row), cpu("nats"), Bound::AtMost(0.25)));
    }
    for (load, bound) in [(RATE_10K, 0.2), (RATE_1K, 1.0)] {
        let what = format!("p99 to delivery against the best peer, {}", load.name());
        let figure = |traffic: &Traffic| traffic.delivery_ms.p99;
        judged.push(against_best(results, what, load, figure, bound));
    }
    let what =
        "longest time without a confirmation after `kill -9` of the leader, against the best peer".into();
    judged.push(against_best(results, what, FAILOVER, |traffic| traffic.publish_gap_ms, 1.0));
    judged.push(disk(results));
    judged.extend(alone(results));
    judged
}

fn ratio(
    what: String,
    row: &'static str,
    unit: &str,
    ours: Option<f64>,
    theirs: Option<f64>,
    bound: Bound,
) -> Judged {
    let ratio = ours.zip(theirs).filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| ours / theirs);
    let measured = match (ratio, ours, theirs) {
        (Some(ratio), Some(ours), Some(theirs)) => {
            format!("{ratio:.2}x ({} against {} {unit})", figure(ours), figure(theirs))
        }
        _ => "-".into(),
    };
    Judged { what, row, measured, must_be: bound.text("x"), verdict: bound.judge(ratio) }
}

fn against_best(
    results: &Results,
    what: String,
    load: Load,
    of: impl Fn(&Traffic) -> f64 + Copy,
    bound: f64,
) -> Judged {
    let median = |row| results.traffic(row, load, of).map(|spread: Spread| spread.median);
    let best = REPLICATED_PEERS.into_iter().filter_map(|row| Some((median(row)?, row)));
    let best = best.min_by(|(one, _), (other, _)| one.total_cmp(other));
    let what = best.map_or_else(|| what.clone(), |(_, row)| format!("{what} (`{row}`)"));
    ratio(what, TOTAL, "ms", median(TOTAL), best.map(|(figure, _)| figure), Bound::AtMost(bound))
}

fn disk(results: &Results) -> Judged {
    let bound = Bound::AtLeast(55.0);
    let limit = Spread::of(results.limits.iter().map(|limits| limits.disk_mb_per_s / COPIES));
    let reached = results.traffic(SPREAD, SATURATION_1K, |traffic| traffic.per_s * 1024.0 / 1e6);
    let share = limit.zip(reached).map(|(limit, reached)| 100.0 * reached.median / limit.median);
    let measured = match (share, limit, reached) {
        (Some(share), Some(limit), Some(reached)) => {
            format!("{share:.0} % ({:.0} of {:.0} MB/s)", reached.median, limit.median)
        }
        _ => "-".into(),
    };
    Judged {
        what: format!("a third of the disk, written in sequence, {}", SATURATION_1K.name()),
        row: SPREAD,
        measured,
        must_be: bound.text(" %"),
        verdict: bound.judge(share),
    }
}

/// What it costs by itself, and what must never happen.
fn alone(results: &Results) -> Vec<Judged> {
    let plain = |what: String, measured: Option<f64>, digits: usize, unit: &str, bound: Bound| Judged {
        what,
        row: TOTAL,
        measured: measured.map_or_else(|| "-".into(), |figure| format!("{figure:.digits$}{unit}")),
        must_be: bound.text(unit),
        verdict: bound.judge(measured),
    };
    let median = |load, of: fn(&crate::results::Figures) -> Option<f64>| {
        results.spread(TOTAL, load, of).map(|spread| spread.median)
    };
    let busy = median(RATE_1K, |figures| Some(figures.server_cores));
    let idle =
        median(Load::Idle, |figures| Some(100.0 * figures.server_cores / f64::from(figures.nodes.max(1))));
    let memory = median(Load::Idle, |figures| figures.resident_mib.iter().copied().reduce(f64::max));
    let wrong: Vec<f64> = results
        .runs
        .iter()
        .filter(|run| [TOTAL, SPREAD].contains(&run.peer.as_str()))
        .filter_map(|run| run.figures.traffic.as_ref())
        .map(|traffic| (traffic.lost + traffic.duplicated + traffic.out_of_order.unwrap_or(0)) as f64)
        .collect();
    let wrong = (!wrong.is_empty()).then(|| wrong.iter().sum());
    vec![
        plain(
            format!("processors kept busy by the cluster, {}", RATE_1K.name()),
            busy,
            2,
            "",
            Bound::AtMost(0.7),
        ),
        plain("share of a processor of an idle node".into(), idle, 1, " %", Bound::AtMost(1.0)),
        plain("resident memory of the largest idle node".into(), memory, 0, " MiB", Bound::AtMost(64.0)),
        plain(
            "lost, duplicated or out of order, in all runs of both rows".into(),
            wrong,
            0,
            "",
            Bound::AtMost(0.0),
        ),
    ]
}

/// Three digits or so.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => thousands(value.round() as u64),
        large if large >= 100.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Figures, Limits, Run};

    /// Measured figures of one run.
    pub(crate) fn run(peer: &str, load: Load, per_s: f64, p99: f64) -> Run {
        let mut traffic = Traffic { per_s, server_us_per_message: 10.0, ..Traffic::default() };
        traffic.delivery_ms.p99 = p99;
        traffic.publish_gap_ms = p99;
        let figures = Figures { nodes: 5, traffic: Some(traffic), ..Figures::default() };
        Run { peer: peer.into(), repetition: 1, load, figures }
    }

    fn verdict_of(results: &Results, what: &str, row: &str) -> Verdict {
        let judged = judge(results);
        let one = judged.iter().find(|judged| judged.what.contains(what) && judged.row == row);
        one.expect("there is such a promise").verdict
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        assert!(judge(&Results::default()).iter().all(|judged| judged.verdict == Verdict::NotMeasured));
    }

    #[test]
    fn a_ratio_is_that_of_medians() {
        let runs = |ours: [f64; 3], theirs: [f64; 3]| Results {
            runs: ours
                .map(|per_s| run(TOTAL, SATURATION_1K, per_s, 1.0))
                .into_iter()
                .chain(theirs.map(|per_s| run("nats", SATURATION_1K, per_s, 1.0)))
                .collect(),
            ..Results::default()
        };
        let what = "throughput against `nats`, saturation, 1 KiB";
        assert_eq!(verdict_of(&runs([1.0, 250.0, 900.0], [90.0, 100.0, 900.0]), what, TOTAL), Verdict::Met);
        assert_eq!(
            verdict_of(&runs([900.0, 249.0, 1.0], [90.0, 100.0, 900.0]), what, TOTAL),
            Verdict::Missed
        );
        assert_eq!(
            verdict_of(&runs([900.0, 249.0, 1.0], [90.0, 100.0, 900.0]), what, SPREAD),
            Verdict::NotMeasured
        );
    }

    #[test]
    fn the_best_peer_is_one_that_keeps_copies() {
        let results = Results {
            runs: vec![
                run(TOTAL, RATE_10K, 1.0, 10.0),
                run("nats", RATE_10K, 1.0, 60.0),
                run("rabbitmq", RATE_10K, 1.0, 50.0),
                run("redis", RATE_10K, 1.0, 2.0),
            ],
            ..Results::default()
        };
        let what = "p99 to delivery against the best peer, 10,000 msg/s of 1 KiB (`rabbitmq`)";
        assert_eq!(verdict_of(&results, what, TOTAL), Verdict::Met);
    }

    #[test]
    fn the_disk_is_shared_by_three_copies() {
        let limits = Limits {
            disk_mb_per_s: 300.0,
            round_trip_us: 1.0,
            round_trip_p99_us: 1.0,
            loopback_mb_per_s: 1.0,
        };
        let at = |per_s| Results {
            limits: vec![limits],
            runs: vec![run(SPREAD, SATURATION_1K, per_s, 1.0)],
            ..Results::default()
        };
        assert_eq!(verdict_of(&at(54_000.0), "a third of the disk", SPREAD), Verdict::Met);
        assert_eq!(verdict_of(&at(53_000.0), "a third of the disk", SPREAD), Verdict::Missed);
    }

    #[test]
    fn one_lost_message_in_any_run_is_told() {
        let mut results = Results {
            runs: vec![run(SPREAD, RATE_1K, 1.0, 1.0), run(TOTAL, FAILOVER, 1.0, 1.0)],
            ..Results::default()
        };
        assert_eq!(verdict_of(&results, "lost, duplicated", TOTAL), Verdict::Met);
        results.runs[1].figures.traffic.as_mut().expect("made above").lost = 1;
        assert_eq!(verdict_of(&results, "lost, duplicated", TOTAL), Verdict::Missed);
    }

    #[test]
    fn figures_have_about_three_digits() {
        assert_eq!([12_345.6, 123.4, 12.34, 1.234].map(figure), ["12,346", "123", "12.3", "1.23"]);
    }
}
