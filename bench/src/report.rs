//! From results to a page: tables, plots, the verdict. Every figure is computed from the file of results.

use std::{fmt::Write as _, fs, path::Path};

use crate::{
    bars::{self, figure},
    failure::{During, Failure, Outcome},
    measure::Spread,
    plan::{Load, bytes, thousands},
    plot::{self, Group, Scale},
    results::{Figures, Machine, Results, Traffic},
};

/// Processors used by others above which a run was disturbed. On a quiet machine they use a few hundredths.
const OTHERS_CORES_MAX: f64 = 0.25;
/// Nodes of a cluster write each message so often.
const COPIES: f64 = 3.0;

/// The parts of a page, by the names of their markers.
fn parts(results: &Results) -> Vec<(&'static str, String)> {
    vec![
        ("machine", machine(results)),
        ("rows", rows(results)),
        ("verdict", verdict(results)),
        ("saturation", loads(results, |load| matches!(load, Load::Saturation { .. }))),
        ("rates", loads(results, |load| matches!(load, Load::Rate { .. }))),
        ("failover", failover(results)),
        ("idle", idle(results)),
    ]
}

/// Everything, as it goes to standard output.
pub(crate) fn page(results: &Results) -> String {
    parts(results).into_iter().map(|(name, text)| format!("## {name}\n\n{text}\n")).collect()
}

/// Puts the parts between the markers of a page, and the plots into the folder of its name.
pub(crate) fn write_into(page: &Path, results: &Results) -> Outcome<()> {
    let mut text = fs::read_to_string(page).during(page.display())?;
    let folder = page.with_extension("");
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    fs::create_dir_all(&folder).during(folder.display())?;
    let mut pictures = String::new();
    for (file, title, svg) in plots(results) {
        let path = folder.join(file);
        if svg.is_empty() {
            continue;
        }
        fs::write(&path, svg).during(path.display())?;
        put(&mut pictures, format_args!("![{title}]({name}/{file})\n"));
    }
    for (marker, part) in parts(results).into_iter().chain([("plots", pictures)]) {
        text = replace(&text, marker, &part)?;
    }
    fs::write(page, text).during(page.display())
}

/// `text` with `part` between the markers.
pub(crate) fn replace(text: &str, marker: &str, part: &str) -> Outcome<String> {
    let (begin, end) = (format!("<!-- {marker}: computed -->\n"), format!("<!-- {marker}: end -->"));
    let missing =
        || Failure::broken(format!("the page has no place for {marker:?}: {} ... {end}", begin.trim_end()));
    let (before, rest) = text.split_once(&begin).ok_or_else(missing)?;
    let (_, after) = rest.split_once(&end).ok_or_else(missing)?;
    Ok(format!("{before}{begin}\n{}\n\n{end}{after}", part.trim()))
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a text does not fail");
}

/// A table of texts.
pub(crate) fn table(head: &[&str], lines: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = String::new();
    put(&mut text, format_args!("| {} |", head.join(" | ")));
    put(&mut text, format_args!("|{}", " --- |".repeat(head.len())));
    for line in lines {
        put(&mut text, format_args!("| {} |", line.join(" | ")));
    }
    text
}

/// The median, and the least and the most if there are several.
pub(crate) fn cell(spread: Option<Spread>) -> String {
    match spread {
        None => "-".into(),
        Some(Spread { median, least, most }) if least == most => figure(median),
        Some(Spread { median, least, most }) => {
            format!("{} [{} to {}]", figure(median), figure(least), figure(most))
        }
    }
}

/// When and on what, and how often.
pub(crate) fn measured_on(machine: &Machine) -> String {
    format!(
        "{}: {} processors ({}), {} GiB, Linux {}. {} repetitions by turns, {} s of warm-up, {} s that count.\n\n",
        machine.date,
        machine.processors,
        machine.model,
        machine.memory_gib,
        machine.kernel,
        machine.repetitions,
        machine.warm_up_s,
        machine.window_s
    )
}

fn machine(results: &Results) -> String {
    let limits = &results.limits;
    let of = |figure: fn(&crate::results::Limits) -> f64| cell(Spread::of(limits.iter().map(figure)));
    let mut text = disturbed(results);
    text += &measured_on(&results.machine);
    text += &table(
        &["limit of the machine", "measured"],
        [
            vec![
                "disk, written in sequence, `fdatasync` after every 16 MiB, MB/s".into(),
                of(|l| l.disk_mb_per_s),
            ],
            vec!["loopback, 1 KiB there and back, p50, us".into(), of(|l| l.round_trip_us)],
            vec!["the same, p99, us".into(), of(|l| l.round_trip_p99_us)],
            vec!["loopback, one way, writes of 64 KiB, MB/s".into(), of(|l| l.loopback_mb_per_s)],
        ],
    );
    text
}

/// A warning if the machine was not quiet.
fn disturbed(results: &Results) -> String {
    let others = || results.runs.iter().map(|run| run.figures.other_cores);
    let count = others().filter(|cores| *cores > OTHERS_CORES_MAX).count();
    if count == 0 {
        return String::new();
    }
    format!(
        "**The machine was not quiet:** in {count} of {} runs others used more than {OTHERS_CORES_MAX} processors, at most {:.2}.\n\n",
        results.runs.len(),
        others().fold(0.0, f64::max)
    )
}

fn rows(results: &Results) -> String {
    let described = results.rows().into_iter().filter_map(|row| Some((row, results.peers.get(row)?)));
    let mut lines: Vec<Vec<String>> = described
        .map(|(row, peer)| {
            vec![format!("`{row}`"), peer.version.clone(), peer.setup.clone(), peer.durability.clone()]
        })
        .collect();
    lines.extend(
        results
            .skipped
            .iter()
            .map(|(row, why)| vec![format!("`{row}`"), "**not measured**".into(), why.clone(), "-".into()]),
    );
    table(&["row", "version", "set up", "what a confirmation means"], lines)
}

fn verdict(results: &Results) -> String {
    let lines = bars::judge(results).into_iter().map(|judged| {
        vec![
            judged.what,
            format!("`{}`", judged.row),
            judged.measured,
            judged.must_be,
            judged.verdict.name().into(),
        ]
    });
    table(&["bar", "row", "measured", "must be", "verdict"], lines)
}

const HEAD: [&str; 16] = [
    "row",
    "n",
    "msg/s",
    "delivery mean, ms",
    "p50",
    "p99",
    "p99.9",
    "confirmation p50, ms",
    "p99",
    "nodes, us/msg",
    "clients, us/msg",
    "machine busy, %",
    "others, cores",
    "most memory of a node, MiB",
    "disk, B/msg",
    "lost / duplicated / out of order / undelivered",
];

fn loads(results: &Results, wanted: impl Fn(Load) -> bool) -> String {
    let mut text = String::new();
    for load in results.loads().into_iter().filter(|load| wanted(*load)) {
        let mut name = load.name();
        name[..1].make_ascii_uppercase();
        put(&mut text, format_args!("**{name}**\n"));
        let mut lines: Vec<Vec<String>> =
            results.rows().into_iter().filter_map(|row| line(results, row, load)).collect();
        lines.extend(limits_as_lines(results, load));
        text += &table(&HEAD, lines);
        text.push('\n');
    }
    text
}

fn line(results: &Results, row: &str, load: Load) -> Option<Vec<String>> {
    let count = results.runs_of(row, load).count();
    if count == 0 {
        return None;
    }
    let traffic = |of: fn(&Traffic) -> f64| cell(results.traffic(row, load, of));
    let figures = |of: fn(&Figures) -> Option<f64>| cell(results.spread(row, load, of));
    Some(vec![
        format!("`{row}`"),
        count.to_string(),
        traffic(|t| t.per_s),
        traffic(|t| t.delivery_ms.mean),
        traffic(|t| t.delivery_ms.p50),
        traffic(|t| t.delivery_ms.p99),
        traffic(|t| t.delivery_ms.p99_9),
        traffic(|t| t.confirmation_ms.p50),
        traffic(|t| t.confirmation_ms.p99),
        traffic(|t| t.server_us_per_message),
        traffic(|t| t.client_us_per_message),
        figures(|f| Some(f.busy_share * 100.0)),
        figures(|f| Some(f.other_cores)),
        figures(|f| f.peak_mib.iter().copied().reduce(f64::max)),
        traffic(|t| t.disk_bytes_per_message),
        wrong(results, row, load),
    ])
}

/// Sums over all runs: once is too often.
fn wrong(results: &Results, row: &str, load: Load) -> String {
    let all: Vec<&Traffic> =
        results.runs_of(row, load).filter_map(|figures| figures.traffic.as_ref()).collect();
    let sum = |of: fn(&Traffic) -> u64| thousands(all.iter().map(|traffic| of(traffic)).sum());
    let in_order = all.iter().all(|traffic| traffic.out_of_order.is_some());
    let out_of_order = if in_order { sum(|t| t.out_of_order.unwrap_or(0)) } else { "not promised".into() };
    [sum(|t| t.lost), sum(|t| t.duplicated), out_of_order, sum(|t| t.undelivered)].join(" / ")
}

/// What the machine would allow, as lines of the same table.
fn limits_as_lines(results: &Results, load: Load) -> Vec<Vec<String>> {
    let size = f64::from(load.size().max(1));
    let blank = || vec!["-".to_owned(); HEAD.len()];
    let mut lines = Vec::new();
    let mut add = |name: &str, column: usize, spread: Option<Spread>| {
        let mut line = blank();
        line[0] = format!("*limit: {name}*");
        line[column] = cell(spread);
        lines.push(line);
    };
    let limits = || results.limits.iter();
    if let Load::Saturation { .. } = load {
        let disk = limits().map(|limit| limit.disk_mb_per_s * 1e6 / COPIES / size);
        add("the disk, three copies", 2, Spread::of(disk));
        add("loopback, one way", 2, Spread::of(limits().map(|limit| limit.loopback_mb_per_s * 1e6 / size)));
    } else {
        add("loopback, there and back", 4, Spread::of(limits().map(|limit| limit.round_trip_us / 1e3)));
    }
    lines
}

fn failover(results: &Results) -> String {
    let mut text = String::new();
    for load in results.loads() {
        let Load::Failover { size, per_s } = load else { continue };
        put(
            &mut text,
            format_args!(
                "`kill -9` of the leader at {} msg/s of {}:\n",
                thousands(per_s.into()),
                bytes(size)
            ),
        );
        let lines = results.rows().into_iter().filter_map(|row| {
            let kills = results.runs_of(row, load).count();
            let traffic = |of: fn(&Traffic) -> f64| cell(results.traffic(row, load, of));
            let confirmed: u64 = results
                .runs_of(row, load)
                .filter_map(|figures| Some(figures.traffic.as_ref()?.confirmed))
                .sum();
            (kills > 0).then(|| {
                vec![
                    format!("`{row}`"),
                    kills.to_string(),
                    traffic(|t| t.publish_gap_ms),
                    traffic(|t| t.delivery_gap_ms),
                    thousands(confirmed),
                    traffic(|t| t.retried as f64),
                    wrong(results, row, load),
                ]
            })
        });
        text += &table(
            &[
                "row",
                "kills",
                "longest time without a confirmation, ms",
                "without a delivery, ms",
                "confirmed",
                "sent again by the bench, per kill",
                "lost / duplicated / out of order / undelivered",
            ],
            lines.collect::<Vec<_>>(),
        );
    }
    text
}

fn idle(results: &Results) -> String {
    let lines = results.rows().into_iter().filter_map(|row| {
        let figures = |of: fn(&Figures) -> Option<f64>| results.spread(row, Load::Idle, of);
        figures(|f| Some(f.server_cores))?;
        Some(vec![
            format!("`{row}`"),
            figures(|f| Some(f64::from(f.nodes)))
                .map_or_else(String::new, |nodes| format!("{:.0}", nodes.median)),
            cell(figures(|f| Some(f.server_cores * 100.0))),
            cell(figures(|f| f.resident_mib.iter().copied().reduce(f64::max))),
        ])
    });
    table(&["row", "nodes", "all nodes, % of a processor", "largest node, MiB"], lines.collect::<Vec<_>>())
}

/// Files, titles, pictures.
fn plots(results: &Results) -> Vec<(&'static str, &'static str, String)> {
    type Of = fn(&Traffic) -> f64;
    type Wanted = fn(Load) -> bool;
    let draw = |title: &str, wanted: Wanted, of: Of, scale: Scale| {
        let rows = results.rows();
        let group = |load: Load| Group {
            name: load.name(),
            bars: rows
                .iter()
                .enumerate()
                .filter_map(|(place, row)| Some(((*row).to_owned(), place, results.traffic(row, load, of)?)))
                .collect(),
        };
        let groups: Vec<Group> =
            results.loads().into_iter().filter(|load| wanted(*load)).map(group).collect();
        plot::draw(title, &groups, scale)
    };
    let saturation: Wanted = |load| matches!(load, Load::Saturation { .. });
    let rates: Wanted = |load| matches!(load, Load::Rate { .. });
    let failover: Wanted = |load| matches!(load, Load::Failover { .. });
    let all: [(&str, &str, Wanted, Of, Scale); 4] = [
        (
            "throughput.svg",
            "Delivered per second at saturation; more is better",
            saturation,
            |t| t.per_s,
            Scale::Linear,
        ),
        (
            "latency.svg",
            "99th percentile from due to delivered, ms, logarithmic; less is better",
            rates,
            |t| t.delivery_ms.p99,
            Scale::Logarithmic,
        ),
        (
            "processor.svg",
            "Processor time of all nodes per message at saturation, us; less is better",
            saturation,
            |t| t.server_us_per_message,
            Scale::Linear,
        ),
        (
            "failover.svg",
            "Longest time without a confirmation after kill -9 of the leader, ms, logarithmic; less is better",
            failover,
            |t| t.publish_gap_ms,
            Scale::Logarithmic,
        ),
    ];
    all.into_iter()
        .map(|(file, title, wanted, of, scale)| (file, title, draw(title, wanted, of, scale)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Limits, Run};

    const LOAD: Load = Load::Saturation { size: 1024 };

    fn results() -> Results {
        let run = |peer: &str, repetition, per_s, out_of_order| {
            let traffic = Traffic { per_s, out_of_order, lost: 1, ..Traffic::default() };
            let figures = Figures { nodes: 3, traffic: Some(traffic), ..Figures::default() };
            Run { peer: peer.into(), repetition, load: LOAD, figures }
        };
        let limits = Limits {
            disk_mb_per_s: 307.2,
            round_trip_us: 12.0,
            round_trip_p99_us: 20.0,
            loopback_mb_per_s: 1024.0,
        };
        Results {
            limits: vec![limits],
            runs: vec![
                run("swarmmq-spread", 1, 3000.0, None),
                run("nats", 1, 10.0, Some(2)),
                run("swarmmq-spread", 2, 1000.0, None),
            ],
            ..Results::default()
        }
    }

    #[test]
    fn a_table_has_a_line_per_row_and_the_limits_beside_them() {
        let text = loads(&results(), |load| load == LOAD);
        assert!(text.contains("**Saturation, 1 KiB**"), "{text}");
        assert!(text.contains("| `swarmmq-spread` | 2 | 2,000 [1,000 to 3,000] |"), "{text}");
        assert!(text.contains("2 / 0 / not promised / 0 |"), "lost in two runs: {text}");
        assert!(text.contains("| `nats` | 1 | 10.0 |") && text.contains("1 / 0 / 2 / 0 |"), "{text}");
        assert!(text.contains("| *limit: the disk, three copies* | - | 100,000 |"), "{text}");
        let columns = |line: &str| line.matches('|').count();
        assert!(
            text.lines().filter(|line| line.starts_with('|')).all(|line| columns(line) == HEAD.len() + 1)
        );
    }

    #[test]
    fn a_machine_that_was_not_quiet_is_told() {
        let mut results = results();
        assert!(!machine(&results).contains("not quiet"));
        results.runs[1].figures.other_cores = 1.5;
        assert!(
            machine(&results).contains("in 1 of 3 runs others used more than 0.25 processors, at most 1.50")
        );
    }

    #[test]
    fn results_survive_being_written() {
        let text = serde_json::to_string(&results()).unwrap();
        let again: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(page(&again), page(&results()));
    }

    #[test]
    fn a_part_replaces_what_is_between_its_markers() {
        let text = "a\n<!-- idle: computed -->\nold\n<!-- idle: end -->\nb\n";
        let once = replace(text, "idle", "new").unwrap();
        assert_eq!(once, "a\n<!-- idle: computed -->\n\nnew\n\n<!-- idle: end -->\nb\n");
        assert_eq!(replace(&once, "idle", "new"), Ok(once));
        assert!(replace("a", "idle", "new").is_err());
    }

    #[test]
    fn a_whole_page_and_its_plots_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let page = directory.path().join("figures.md");
        let markers: String = parts(&results())
            .iter()
            .map(|(name, _)| *name)
            .chain(["plots"])
            .map(|name| format!("<!-- {name}: computed -->\n<!-- {name}: end -->\n"))
            .collect();
        fs::write(&page, markers).unwrap();
        write_into(&page, &results()).unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.contains("](figures/throughput.svg)") && !text.contains("failover.svg"), "{text}");
        assert!(
            fs::read_to_string(directory.path().join("figures/throughput.svg")).unwrap().starts_with("<svg")
        );
    }
}
