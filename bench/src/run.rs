//! Every load on every broker, several times, by turns: so that an hour in which the machine is slow is slow for all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use crate::{
    failure::{During, Failure, Outcome},
    limits, load,
    peer::{Broker, Place, nats::Nats, rabbitmq::RabbitMq, redis::Redis, swarmmq::Swarm},
    plan::{Load, PRODUCERS, Plan},
    process::{adopt_orphans, check_interrupted, end_all, find_program, processors},
    results::{Figures, Machine, Results, Run},
};

/// Of a file system that lives in memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Pause after a broker has ended: what it left to be written is written before the next one begins.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// Something that is measured: a broker, and how it is configured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    kind: Kind,
    configuration: &'static str,
    /// Whether the leader is killed: it has one, and the row is not the same in that respect as another one.
    fails_over: bool,
    /// Whether it is measured when no rows are named.
    pub(crate) by_default: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Swarm,
    Nats,
    RabbitMq,
    Redis,
}

/// All rows, in the order of tables.
pub(crate) const ROWS: [Row; 7] = [
    Row { name: "swarmmq", kind: Kind::Swarm, configuration: "total", fails_over: true, by_default: true },
    Row {
        name: "swarmmq-spread",
        kind: Kind::Swarm,
        configuration: "spread",
        fails_over: false,
        by_default: true,
    },
    Row {
        name: "swarmmq-key",
        kind: Kind::Swarm,
        configuration: "key",
        fails_over: false,
        by_default: false,
    },
    Row { name: "nats", kind: Kind::Nats, configuration: "default", fails_over: true, by_default: true },
    Row {
        name: "nats-always",
        kind: Kind::Nats,
        configuration: "always",
        fails_over: false,
        by_default: true,
    },
    Row {
        name: "rabbitmq",
        kind: Kind::RabbitMq,
        configuration: "quorum",
        fails_over: true,
        by_default: true,
    },
    Row { name: "redis", kind: Kind::Redis, configuration: "always", fails_over: false, by_default: true },
];

/// What is asked of all of them.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) rows: Vec<Row>,
    pub(crate) loads: Vec<Load>,
    pub(crate) repetitions: u32,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    /// How often a leader is killed, per row and repetition.
    pub(crate) kills: u32,
    pub(crate) kill_window: Duration,
    pub(crate) directory: PathBuf,
    pub(crate) swarmmq: Option<PathBuf>,
    pub(crate) nats: Option<PathBuf>,
    pub(crate) limits_scale: f64,
    pub(crate) json: Option<PathBuf>,
}

/// Says what happens, on standard error.
pub(crate) fn note(what: impl AsRef<str>) {
    eprintln!("{}", what.as_ref());
}

/// Measures. True: everything that was asked for was measured.
pub(crate) fn all(wish: &Wish) -> Outcome<(Results, bool)> {
    refuse_memory(&wish.directory)?;
    adopt_orphans()?;
    let directory = tempfile::Builder::new()
        .prefix("swarmmq-bench-")
        .tempdir_in(&wish.directory)
        .during(format!("cannot make a directory in {}", wish.directory.display()))?;
    let place = Place {
        directory: directory.path().to_owned(),
        swarmmq: match &wish.swarmmq {
            Some(program) => program.canonicalize().during(program.display())?,
            None => build_swarmmq()?,
        },
        nats: wish.nats.clone().or_else(find_nats),
    };
    let mut results =
        Results { machine: machine(wish.repetitions, wish.warm_up, wish.window), ..Results::default() };
    let mut whole = true;
    for repetition in 1..=wish.repetitions {
        results.limits.push(limits::measure(directory.path(), wish.limits_scale)?);
        for row in &wish.rows {
            if results.skipped.contains_key(row.name) {
                continue;
            }
            let place = Place { directory: directory.path().join(row.name), ..place.clone() };
            fs::create_dir_all(&place.directory)?;
            let outcome = match row.kind {
                Kind::Swarm => one::<Swarm>(row, wish, &place, repetition, &mut results),
                Kind::Nats => one::<Nats>(row, wish, &place, repetition, &mut results),
                Kind::RabbitMq => one::<RabbitMq>(row, wish, &place, repetition, &mut results),
                Kind::Redis => one::<Redis>(row, wish, &place, repetition, &mut results),
            };
            end_all();
            match outcome {
                Ok(()) => {}
                Err(Failure::Interrupted) => return Err(Failure::Interrupted),
                Err(failure) => {
                    whole = false;
                    note(format!("!!! {} was NOT measured: {failure}", row.name));
                    if let Failure::Absent { .. } = failure {
                        results.skipped.insert(row.name.into(), failure.to_string());
                    }
                    keep_logs(row.name, &place.directory);
                }
            }
            fs::remove_dir_all(&place.directory).during(place.directory.display())?;
            if let Some(file) = &wish.json {
                let text = serde_json::to_string_pretty(&results).during("cannot write the results")?;
                fs::write(file, text + "\n").during(file.display())?;
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
    }
    Ok((results, whole))
}

fn one<B: Broker>(
    row: &Row,
    wish: &Wish,
    place: &Place,
    repetition: u32,
    results: &mut Results,
) -> Outcome<()> {
    note(format!("{} ({repetition} of {}): starting", row.name, wish.repetitions));
    let mut broker = B::start(place, row.configuration)?;
    results.peers.insert(row.name.into(), broker.describe().clone());
    for load in &wish.loads {
        let (times, window) = match load {
            Load::Failover { .. } if row.fails_over => (wish.kills, wish.kill_window),
            Load::Failover { .. } => (0, wish.kill_window),
            _ => (1, wish.window),
        };
        for _ in 0..times {
            check_interrupted()?;
            let number = results.runs.len();
            // What a start leaves behind is no idleness yet.
            let warm_up = if *load == Load::Idle { 2 * wish.warm_up } else { wish.warm_up };
            let plan = Plan {
                run: number as u16,
                load: *load,
                producers: PRODUCERS,
                warm_up,
                window,
                in_order: broker.describe().in_order,
            };
            let name = format!("bench-{number}");
            let figures = match load {
                Load::Idle => load::idle(&broker, &plan),
                _ => load::run(&mut broker, &plan, &name),
            }
            .map_err(|failure| in_load(failure, *load))?;
            say(row.name, *load, &figures);
            results.runs.push(Run { peer: row.name.into(), repetition, load: *load, figures });
        }
    }
    Ok(())
}

fn in_load(failure: Failure, load: Load) -> Failure {
    match failure {
        Failure::Broken(what) => Failure::Broken(format!("{}: {what}", load.name())),
        other => other,
    }
}

fn say(row: &str, load: Load, figures: &Figures) {
    let Some(traffic) = &figures.traffic else {
        note(format!(
            "{row}, {}: {:.1} % of a core, {:?} MiB",
            load.name(),
            figures.server_cores * 100.0,
            figures.resident_mib
        ));
        return;
    };
    note(format!(
        "{row}, {}: {:.0} msg/s, p50 {:.2} ms, p99 {:.2} ms, {:.1} us/msg, gaps {:.0} and {:.0} ms; lost {}, duplicated {}, \
         out of order {}, undelivered {}, retried {}; others used {:.2} cores",
        load.name(),
        traffic.per_s,
        traffic.delivery_ms.p50,
        traffic.delivery_ms.p99,
        traffic.server_us_per_message,
        traffic.publish_gap_ms,
        traffic.delivery_gap_ms,
        traffic.lost,
        traffic.duplicated,
        traffic.out_of_order.map_or_else(|| "not promised".into(), |count| count.to_string()),
        traffic.undelivered,
        traffic.retried,
        figures.other_cores
    ));
}

/// The last words of its nodes, for whoever looks into it.
pub(crate) fn keep_logs(row: &str, directory: &Path) {
    let logs = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    for log in logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for line in &lines[lines.len().saturating_sub(8)..] {
            note(format!("    {row} {name}: {line}"));
        }
    }
}

/// On a file system in memory, synced means nothing.
pub(crate) fn refuse_memory(directory: &Path) -> Outcome<()> {
    let kind = rustix::fs::statfs(directory).during(directory.display())?.f_type;
    if kind as u64 == TMPFS_MAGIC {
        return Err(Failure::broken(format!(
            "{} lies in memory, where syncing costs nothing: --dir names a directory on a disk",
            directory.display()
        )));
    }
    Ok(())
}

pub(crate) fn build_swarmmq() -> Outcome<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    note("building swarmmq; --swarmmq PATH takes another one");
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "--quiet", "--package", "swarmmq-cli"])
        .current_dir(&root)
        .status()
        .during("cannot start cargo")?;
    if !built.success() {
        return Err(Failure::broken("swarmmq could not be built"));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let program = target.join("release/swarmmq");
    program.canonicalize().during(program.display())
}

/// Where `peers.sh` puts it, or anywhere on the path.
fn find_nats() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/nats-server");
    if installed.is_file() { Some(installed) } else { find_program("nats-server") }
}

pub(crate) fn machine(repetitions: u32, warm_up: Duration, window: Duration) -> Machine {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let kib: f64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0.0);
    Machine {
        processors: processors(),
        model: field("/proc/cpuinfo", "model name"),
        memory_gib: (kib / 1_048_576.0 * 10.0).round() / 10.0,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        date: date(SystemTime::now()),
        repetitions,
        warm_up_s: warm_up.as_secs_f64(),
        window_s: window.as_secs_f64(),
    }
}

/// Year, month and day in UTC.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut days = seconds / 86_400;
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_count_leap_years() {
        let at = |days: u64| date(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400 + 5));
        assert_eq!(at(0), "1970-01-01");
        assert_eq!(at(789), "1972-02-29");
        assert_eq!(at(11_017), "2000-03-01");
        assert_eq!(at(20_787), "2026-11-30");
    }

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let mut names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }
}
