//! `cargo x lab --compare`: the same load and the same fault at the same time, once with each policy. A fresh cluster every
//! time; policies take turns, so that a machine that others use is about the same for all of them.

use std::{
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    Arguments, Lab, RATE, SETTLING, begun,
    fault::{A, B, Fault, Kind, fault},
    finish,
    nodes::Nodes,
    plot::{self, Group, figure},
    samples::{self, Sample, Spread, median},
    verdict::Figures,
    wait_until, warm_up,
};
use crate::bars::json::quote;

/// Which policies, if nobody says.
pub(super) const POLICIES: &str = "static-hash,least-cost";
/// All there are.
const KNOWN: [&str; 4] = ["static-hash", "round-robin", "least-cost", "p2c-ewma"];
/// Those for which all nodes and links are alike.
const BLIND: [&str; 2] = ["static-hash", "round-robin"];

/// What a client waits for an answer, in milliseconds.
const PATIENCE_MS: f64 = 1000.0;
/// Messages under way per producer: more than ever wait, so that none is sent late because of another.
const IN_FLIGHT: &str = "8192";
/// The end of a fault, when everybody has had time to adapt.
const LATE: Duration = Duration::from_secs(5);
/// Pause between looks at a path. Each look costs a node some work.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// The faults, in the order in which they are told.
pub(super) const CASES: &[Fault] = &[
    fault("control", "nothing", Kind::Nothing, None, None),
    fault(
        "slow-link",
        "50 ms more in each direction between A and B: a detour is faster",
        Kind::Delay { ms: 50 },
        None,
        None,
    ),
    fault(
        "lossy-link",
        "the link between A and B loses 30 % in each direction",
        Kind::LossyLink { percent: 30 },
        None,
        None,
    ),
    fault("cut", "A and B cut from each other", Kind::Cut, None, None),
    fault("slow-node", "one node without clients has 5 % of a processor", Kind::SlowCpu, None, None),
    fault("frozen", "one node without clients answers in two seconds", Kind::Stutter, None, None),
    fault(
        "slow-disk",
        "every sync of one node without clients takes 2 s more",
        Kind::SlowSync { ms: 2000 },
        None,
        None,
    ),
];

/// Reads `POLICY,POLICY`.
pub(super) fn policies(text: &str) -> Result<Vec<String>, String> {
    let policies: Vec<String> = text.split(',').map(str::to_owned).collect();
    if let Some(unknown) = policies.iter().find(|policy| !KNOWN.contains(&policy.as_str())) {
        return Err(format!("no policy `{unknown}`; there are {}", KNOWN.join(", ")));
    }
    let repeated = (0..policies.len()).any(|at| policies[..at].contains(&policies[at]));
    if policies.len() < 2 || repeated {
        return Err("--compare takes two or more different policies".to_owned());
    }
    Ok(policies)
}

/// What clients felt, of one run or in the median of several.
#[derive(Clone, Debug, Default, PartialEq)]
struct Measured {
    /// Of messages that were due while the fault was there.
    acknowledged: Spread,
    delivered: Spread,
    /// How many of a hundred of them were acknowledged in time.
    in_time: f64,
    /// Medians of the acknowledgement before the fault, and in its last seconds.
    before_ms: f64,
    late_ms: f64,
    /// From the fault until A reached B by more than one link. Infinite: it did not.
    detour_s: f64,
    /// Counts of the whole run.
    figures: Figures,
}

impl Measured {
    /// * `fault_us`: from when to when it was there, in microseconds since 1970.
    fn of(samples: &[Sample], fault_us: [u64; 2], figures: Figures, detour_s: f64) -> Result<Self, String> {
        let [begin, end] = fault_us;
        let due =
            |from: u64, to: u64| samples.iter().filter(move |sample| (from..to).contains(&sample.due_us));
        let acknowledged = |from, to| due(from, to).map(|sample| sample.acknowledged_ms);
        let late = end.saturating_sub(LATE.as_micros() as u64).max(begin);
        Ok(Self {
            acknowledged: Spread::of(acknowledged(begin, end))?,
            delivered: Spread::of(due(begin, end).map(|sample| sample.delivered_ms))?,
            in_time: samples::percent_within(acknowledged(begin, end), PATIENCE_MS),
            before_ms: Spread::of(acknowledged(0, begin))?.p50,
            late_ms: Spread::of(acknowledged(late, end))?.p50,
            detour_s,
            figures,
        })
    }

    /// The median of each figure; of counts that must be 0 the sum.
    fn median(runs: &[Self]) -> Self {
        let of = |get: &dyn Fn(&Self) -> f64| median(runs.iter().map(get).collect());
        let sum = |get: &dyn Fn(&Figures) -> f64| runs.iter().map(|run| get(&run.figures)).sum();
        let spread = |get: &dyn Fn(&Self) -> Spread| Spread {
            p50: of(&|run| get(run).p50),
            p99: of(&|run| get(run).p99),
            p99_9: of(&|run| get(run).p99_9),
            max: of(&|run| get(run).max),
        };
        Self {
            acknowledged: spread(&|run| run.acknowledged),
            delivered: spread(&|run| run.delivered),
            in_time: of(&|run| run.in_time),
            before_ms: of(&|run| run.before_ms),
            late_ms: of(&|run| run.late_ms),
            detour_s: of(&|run| run.detour_s),
            figures: Figures {
                published: sum(&|figures| figures.published),
                lost: sum(&|figures| figures.lost),
                twice: sum(&|figures| figures.twice),
                disordered: sum(&|figures| figures.disordered),
                unanswered: sum(&|figures| figures.unanswered),
                publish_gap_ms: of(&|run| run.figures.publish_gap_ms),
                delivery_gap_ms: of(&|run| run.figures.delivery_gap_ms),
                relayed: of(&|run| run.figures.relayed),
                reigns: of(&|run| run.figures.reigns),
                ..Figures::default()
            },
        }
    }

    /// What was promised and not kept, in words. Who does not look at links may leave messages behind a cut unanswered.
    fn missed(&self, case: &Fault, policy: &str, expected: f64) -> Vec<String> {
        let excused = case.kind == Kind::Cut && BLIND.contains(&policy);
        let unanswered = if excused { 0.0 } else { self.figures.unanswered };
        Figures { unanswered, ..self.figures.clone() }.missed(case, expected)
    }

    /// A row under [`HEAD`].
    fn row(&self, case: &str, policy: &str, verdict: &str) -> String {
        let spread = |spread: Spread| {
            [spread.p50, spread.p99, spread.p99_9, spread.max]
                .map(|ms| format!("{:>7}", figure(ms)))
                .join(" ")
        };
        let of = &self.figures;
        format!(
            "{case:<10} {policy:<11} {} {} {:>7.3} {:>7} {:>7} {:>6} {:>6} {:>6} {:>7} {:>6} {:>4} {:>5} {:>8}  {verdict}",
            spread(self.acknowledged),
            spread(self.delivered),
            self.in_time,
            figure(of.publish_gap_ms),
            figure(of.delivery_gap_ms),
            figure(self.before_ms),
            figure(self.late_ms),
            if self.detour_s.is_finite() { format!("{:.1}", self.detour_s) } else { "-".to_owned() },
            of.relayed,
            of.reigns,
            of.lost,
            of.twice,
            of.unanswered
        )
    }

    /// For programs. What is infinite is null.
    fn json(&self, case: &str, policy: &str, missed: &[String]) -> String {
        let fields: String = [
            ("ack_p50_ms", self.acknowledged.p50),
            ("ack_p99_ms", self.acknowledged.p99),
            ("ack_p99_9_ms", self.acknowledged.p99_9),
            ("ack_max_ms", self.acknowledged.max),
            ("delivery_p50_ms", self.delivered.p50),
            ("delivery_p99_ms", self.delivered.p99),
            ("delivery_p99_9_ms", self.delivered.p99_9),
            ("delivery_max_ms", self.delivered.max),
            ("in_time_percent", self.in_time),
            ("ack_p50_before_ms", self.before_ms),
            ("ack_p50_late_ms", self.late_ms),
            ("detour_seconds", self.detour_s),
            ("longest_publish_gap_ms", self.figures.publish_gap_ms),
            ("longest_delivery_gap_ms", self.figures.delivery_gap_ms),
            ("published", self.figures.published),
            ("lost", self.figures.lost),
            ("duplicated", self.figures.twice),
            ("unanswered", self.figures.unanswered),
            ("relayed", self.figures.relayed),
            ("reigns", self.figures.reigns),
        ]
        .iter()
        .map(|(name, value)| match value.is_finite() {
            true => format!(",\"{name}\":{}", (value * 1000.0).round() / 1000.0),
            false => format!(",\"{name}\":null"),
        })
        .collect();
        let missed: Vec<String> = missed.iter().map(|text| quote(text)).collect();
        format!(
            "{{\"case\":{},\"policy\":{},\"passed\":{}{fields},\"missed\":[{}]}}",
            quote(case),
            quote(policy),
            missed.is_empty(),
            missed.join(",")
        )
    }
}

/// What stands above the rows. Milliseconds, a percentage, seconds until the detour, counts.
const HEAD: &str = "CASE       POLICY      ACK-P50     P99   P99.9     MAX DEL-P50     P99   P99.9     MAX IN-1S-% ACK-GAP DEL-GAP BEFORE   LATE DETOUR RELAYED REIGNS LOST TWICE UNANSWRD  VERDICT";

/// What a bar of the project says about a case; none: no bar is about it.
fn bar(case: &str, first: &Measured, last: &Measured) -> Option<(bool, String)> {
    let (first_p99, last_p99) = (first.acknowledged.p99, last.acknowledged.p99);
    Some(match case {
        "control" => {
            let worse = last_p99 / first_p99;
            (worse <= 1.05, format!("p99 {worse:.2} times as long, at most 1.05 (1.01 to reach for)"))
        }
        "slow-node" => {
            let better = first_p99 / last_p99;
            (better >= 3.0, format!("p99 better by {better:.1}, at least 3 (10 to reach for)"))
        }
        "slow-link" => {
            let worse = last.late_ms / last.before_ms;
            let text = format!(
                "detour after {:.1} s, at most 5; then p50 {worse:.2} times the healthy one, at most 1.1",
                last.detour_s
            );
            (last.detour_s <= 5.0 && worse <= 1.1, text)
        }
        "frozen" | "slow-disk" => {
            let text = format!(
                "{:.3} % in time, at least 99.9; without looking {:.3} %",
                last.in_time, first.in_time
            );
            (last.in_time >= 99.9, text)
        }
        _ => return None,
    })
}

impl Lab<'_> {
    /// All cases with all policies. Fails if anything was lost, doubled or, by a policy that looks at links, unanswered;
    /// the bars are told and fail nothing, because they depend on what else the machine does.
    pub(super) fn compare(&self, arguments: &Arguments) -> Result<ExitCode, String> {
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        let mut groups = Vec::new();
        if !arguments.json {
            println!("{HEAD}");
        }
        for case in arguments.wanted() {
            if let Some(missing) = case.kind.lacks(&self.network) {
                super::skip(case, &missing);
                skipped += arguments.compare.len();
                continue;
            }
            eprintln!("{}: {}", case.name, case.what);
            let of_policies: Vec<Measured> = self
                .in_turn(case, arguments)
                .into_iter()
                .zip(&arguments.compare)
                .map(|(result, policy)| {
                    let (measured, missed) = match result {
                        Ok(measured) => {
                            let expected = u64::from(RATE) * arguments.seconds * arguments.rounds as u64;
                            let missed = measured.missed(case, policy, expected as f64);
                            (measured, missed)
                        }
                        Err(error) => (Measured::default(), vec![error]),
                    };
                    *(if missed.is_empty() { &mut passed } else { &mut failed }) += 1;
                    if arguments.json {
                        println!("{}", measured.json(case.name, policy, &missed));
                    } else {
                        let verdict = if missed.is_empty() { "passed" } else { "FAILED" };
                        println!("{}", measured.row(case.name, policy, verdict));
                        missed.iter().for_each(|missed| println!("  {missed}"));
                    }
                    measured
                })
                .collect();
            if !arguments.json {
                tell(case, &arguments.compare, &of_policies);
            }
            let values = of_policies.iter().map(|measured| measured.acknowledged.p99).collect();
            groups.push(Group { name: case.name.to_owned(), values });
            // After each case: whoever ends this early has a picture of what there was.
            if let Some(file) = &arguments.plot {
                let title = "99th percentile of publish acknowledgements during the fault, ms";
                std::fs::write(file, plot::svg(title, &arguments.compare, &groups))
                    .map_err(|error| format!("{}: {error}", file.display()))?;
            }
        }
        super::total(arguments, passed, failed, skipped);
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// One case, every policy in every round. The median of each policy, or why a run came to nothing.
    fn in_turn(&self, case: &Fault, arguments: &Arguments) -> Vec<Result<Measured, String>> {
        let mut runs: Vec<Result<Vec<Measured>, String>> = vec![Ok(Vec::new()); arguments.compare.len()];
        for round in 1..=arguments.rounds {
            for (policy, runs) in arguments.compare.iter().zip(&mut runs) {
                let Ok(of_policy) = runs else { continue };
                let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
                match self.once(case, policy, arguments.seconds) {
                    Ok(measured) => {
                        eprintln!(
                            "  {policy} {round}: p99 {} ms, {:.3} % in time; load {}",
                            figure(measured.acknowledged.p99),
                            measured.in_time,
                            load.split(' ').next().unwrap_or_default()
                        );
                        of_policy.push(measured);
                    }
                    Err(error) => *runs = Err(format!("round {round}: {error}")),
                }
            }
        }
        runs.into_iter().map(|runs| runs.map(|runs| Measured::median(&runs))).collect()
    }

    /// One case with one policy on a fresh cluster.
    fn once(&self, case: &Fault, policy: &str, seconds: u64) -> Result<Measured, String> {
        self.network.clear_all()?;
        let nodes =
            Nodes::up(&self.network, self.program, self.place.join(format!("{}-{policy}", case.name)))?;
        nodes.set("routing.policy", policy)?;
        let result = self.measure(case, &nodes, seconds);
        if result.is_err() {
            eprint!("{}", nodes.last_words());
        }
        result
    }

    fn measure(&self, case: &Fault, nodes: &Nodes<'_>, seconds: u64) -> Result<Measured, String> {
        let victim = nodes.busiest()?;
        let before = nodes.look()?;
        let files = [A, B].map(|node| nodes.directory().join(format!("samples-{node}")));
        let mut loads = Vec::new();
        for (node, file) in [A, B].into_iter().zip(&files) {
            let file = file.to_str().ok_or("the place to write to has no readable name")?;
            let more = ["--in-flight", IN_FLIGHT, "--samples", file];
            loads.push(nodes.load(node, RATE / 2, seconds, "none", &more)?);
        }
        let began = begun(&mut loads)?;
        let length = Duration::from_secs(seconds);
        wait_until(began + warm_up(length));
        let present = case.kind.begin(&self.network, nodes, victim)?;
        let begin = microseconds();
        let detour_s = detour(nodes, began + warm_up(length) + case.kind.lasts(length))?;
        let end = microseconds();
        present.end(&self.network, nodes, victim)?;
        let mut figures = Figures { direct_s: nodes.wait_direct([A, B], SETTLING)?, ..Figures::default() };
        finish(&mut figures, loads, nodes, before)?;
        let mut all = Vec::new();
        for file in &files {
            let text =
                std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            all.extend(samples::parse(&text)?);
        }
        Measured::of(&all, [begin, end], figures, detour_s)
    }
}

/// Watches the path from A to B until it takes more than one link, and then waits for the end of the fault: seconds until
/// then, or infinity.
fn detour(nodes: &Nodes<'_>, end: Instant) -> Result<f64, String> {
    let began = Instant::now();
    let mut detour_s = f64::INFINITY;
    while detour_s.is_infinite() && Instant::now() + LOOK_PAUSE < end {
        if nodes.hops(A, B)? > 1.0 {
            detour_s = began.elapsed().as_secs_f64();
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    wait_until(end);
    Ok(detour_s)
}

/// Since 1970.
fn microseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// How the first policy compares with each other one, and what the bars say about the last.
fn tell(case: &Fault, policies: &[String], measured: &[Measured]) {
    let (Some(first), Some(last)) = (measured.first(), measured.last()) else { return };
    for (policy, of) in policies.iter().zip(measured).skip(1) {
        let ratio = |first: f64, of: f64| figure(first / of);
        println!(
            "  {} / {policy}: ack p99 {}, delivery p99 {}",
            policies[0],
            ratio(first.acknowledged.p99, of.acknowledged.p99),
            ratio(first.delivered.p99, of.delivered.p99)
        );
    }
    if let Some((reached, what)) = bar(case.name, first, last) {
        println!("  bar {}: {what}", if reached { "reached" } else { "MISSED" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str) -> &'static Fault {
        CASES.iter().find(|case| case.name == name).unwrap()
    }

    fn sample(second: u64, ms: f64) -> Sample {
        Sample { due_us: second * 1_000_000, acknowledged_ms: ms, delivered_ms: ms + 1.0 }
    }

    fn good() -> Measured {
        let samples: Vec<Sample> = (0..20).map(|second| sample(second, 10.0)).collect();
        let figures = Figures { published: 20.0, ..Figures::default() };
        Measured::of(&samples, [5_000_000, 15_000_000], figures, 1.0).unwrap()
    }

    #[test]
    fn only_what_was_due_during_the_fault_counts() {
        let mut samples: Vec<Sample> = (0..20).map(|second| sample(second, 1000.0 + second as f64)).collect();
        samples[6].acknowledged_ms = 2.0;
        samples[7].acknowledged_ms = f64::INFINITY;
        let measured =
            Measured::of(&samples, [5_000_000, 15_000_000], Figures::default(), f64::INFINITY).unwrap();
        assert_eq!((measured.acknowledged.max, measured.delivered.max), (f64::INFINITY, 1015.0));
        assert_eq!((measured.acknowledged.p50, measured.in_time), (1010.0, 10.0));
        assert_eq!((measured.before_ms, measured.late_ms), (1002.0, 1012.0));
        assert!(Measured::of(&samples, [30_000_000, 31_000_000], Figures::default(), 0.0).is_err());
    }

    #[test]
    fn whoever_looks_at_links_answers_and_nobody_loses() {
        let unanswered = Figures { unanswered: 1.0, ..good().figures };
        let of = |figures: Figures| Measured { figures, ..good() };
        assert_eq!(of(unanswered.clone()).missed(case("cut"), "static-hash", 20.0), [] as [&str; 0]);
        assert_eq!(of(unanswered.clone()).missed(case("cut"), "least-cost", 20.0).len(), 1);
        assert_eq!(of(unanswered).missed(case("frozen"), "static-hash", 20.0).len(), 1);
        let lost = Figures { lost: 1.0, ..good().figures };
        assert_eq!(of(lost).missed(case("cut"), "static-hash", 20.0).len(), 1);
    }

    #[test]
    fn a_median_adds_up_what_must_not_be() {
        let mut runs = vec![good(), good(), good()];
        runs[1].acknowledged.p99 = 900.0;
        runs[2].figures.lost = 1.0;
        let median = Measured::median(&runs);
        assert_eq!(
            (median.acknowledged.p99, median.figures.lost, median.figures.published),
            (10.0, 1.0, 60.0)
        );
    }

    #[test]
    fn every_bar_can_be_missed() {
        let slow = Measured { acknowledged: Spread { p99: 100.0, ..Spread::default() }, ..good() };
        let bars = [
            ("control", bar("control", &good(), &good()), bar("control", &good(), &slow)),
            ("slow-node", bar("slow-node", &slow, &good()), bar("slow-node", &good(), &good())),
            (
                "slow-link",
                bar("slow-link", &good(), &good()),
                bar("slow-link", &good(), &Measured { detour_s: f64::INFINITY, ..good() }),
            ),
            (
                "frozen",
                bar("frozen", &good(), &good()),
                bar("frozen", &good(), &Measured { in_time: 99.8, ..good() }),
            ),
        ];
        for (name, reached, missed) in bars {
            assert!(reached.unwrap().0 && !missed.unwrap().0, "{name}");
        }
        assert_eq!(bar("cut", &good(), &good()), None);
    }

    #[test]
    fn a_row_stands_under_its_head_and_what_never_came_is_null() {
        let row = good().row("lossy-link", "static-hash", "passed");
        assert_eq!(row.find("passed"), HEAD.find("VERDICT"), "{HEAD}\n{row}");
        let never = Measured { detour_s: f64::INFINITY, ..good() };
        let value = crate::bars::json::parse(&never.json("cut", "least-cost", &[])).unwrap();
        assert_eq!(value.number("ack_p99_ms"), Ok(10.0));
        assert_eq!(value.at("detour_seconds"), Some(&crate::bars::json::Value::Null));
    }

    #[test]
    fn policies_are_known_and_different() {
        assert_eq!(policies(POLICIES).unwrap().len(), 2);
        for bad in ["least-cost", "least-cost,least-cost", "least-cost,", ""] {
            assert!(policies(bad).is_err(), "{bad:?}");
        }
    }
}
