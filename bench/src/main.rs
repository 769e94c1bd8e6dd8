//! The same work for SwarmMQ and for other brokers, in one run on one machine: `run` measures, `report` writes tables,
//! plots and a verdict from what was measured.
//!
//! Absent here: results. Whatever a table says was computed from the file that `run` wrote.

mod bars;
mod failure;
mod limits;
mod load;
mod measure;
mod pacer;
mod peer;
mod plan;
mod plot;
mod process;
mod report;
mod results;
mod run;
mod scale;

use std::{fs, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum as _};

use crate::{
    failure::{During, Failure, Outcome},
    plan::{HEADER_BYTES, Load},
    process::INTERRUPTED,
    results::Results,
    run::{ROWS, Row, Wish},
    scale::Curve,
};

/// Size of the messages that come on a schedule and of those of a failover.
const SIZE: u32 = 1024;

#[derive(Parser)]
#[command(name = "swarmmq-bench", version, about = "The same work for SwarmMQ and for other brokers")]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure; the tables go to standard output
    Run(Box<RunArgs>),
    /// Measure SwarmMQ alone, with more and more of one thing; the tables go to standard output
    Scale(Box<ScaleArgs>),
    /// Write tables, plots and the verdict from a file of results
    Report {
        /// What `run --json` wrote
        results: PathBuf,
        /// Put them into this page, between its markers, and the plots beside it
        #[arg(long, value_name = "PAGE")]
        into: Option<PathBuf>,
    },
}

#[derive(Args)]
struct ScaleArgs {
    /// Of what there is more and more; all curves if none is named
    #[arg(long, value_delimiter = ',', value_enum, value_name = "CURVE,...")]
    curves: Vec<Curve>,
    /// No point of a curve before this
    #[arg(long, default_value_t = 0, value_name = "N")]
    least: u64,
    /// No point of a curve beyond this
    #[arg(long, default_value_t = u64::MAX, value_name = "N")]
    most: u64,
    /// How often, by turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
    /// Seconds before what counts
    #[arg(long, default_value_t = 2.0, value_name = "S", value_parser = seconds)]
    warm_up: f64,
    /// Seconds that count
    #[arg(long, default_value_t = 5.0, value_name = "S", value_parser = seconds)]
    window: f64,
    /// A directory on a disk, for everything that the nodes write
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// The product's program; built from this tree if not given
    #[arg(long, value_name = "PATH")]
    swarmmq: Option<PathBuf>,
    /// Write the results here, after every point
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Do not measure: take the results from this file
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    from: Option<PathBuf>,
    /// Put tables and plot into this page, between its markers
    #[arg(long, value_name = "PAGE")]
    into: Option<PathBuf>,
}

#[derive(Args)]
struct RunArgs {
    /// Which rows: swarmmq, swarmmq-spread, nats, nats-always, rabbitmq, redis; swarmmq-key only if named
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    peers: Vec<String>,
    /// Which loads: idle, rate, saturation, failover
    #[arg(long, value_delimiter = ',', value_name = "KIND,...")]
    loads: Vec<String>,
    /// How often, by turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
    /// Seconds before what counts
    #[arg(long, default_value_t = 3.0, value_name = "S", value_parser = seconds)]
    warm_up: f64,
    /// Seconds that count
    #[arg(long, default_value_t = 15.0, value_name = "S", value_parser = seconds)]
    window: f64,
    /// Bytes of messages at saturation
    #[arg(long, value_delimiter = ',', default_values_t = [128, 1024, 16_384])]
    sizes: Vec<u32>,
    /// Messages per second on a schedule
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 10_000])]
    rates: Vec<u32>,
    /// How often a leader is killed, per row and repetition
    #[arg(long, default_value_t = 2)]
    kills: u32,
    /// Seconds that count when a leader is killed
    #[arg(long, default_value_t = 20.0, value_name = "S", value_parser = seconds)]
    kill_window: f64,
    /// A directory on a disk, for everything that the brokers write
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// The product's program; built from this tree if not given
    #[arg(long, value_name = "PATH")]
    swarmmq: Option<PathBuf>,
    /// The NATS server; otherwise the one that `peers.sh` installed, or from the path
    #[arg(long, value_name = "PATH")]
    nats: Option<PathBuf>,
    /// Write the results here; after every row, so that an interrupted run leaves some
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Does it work at all? A second or two for each load, once; the figures mean nothing
    #[arg(long)]
    quick: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.ok_or_else(|| format!("{text:?}: seconds, 0.1 to 3600"))
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match listen_to_signals().and_then(|()| carry_out(command)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(if failure == Failure::Interrupted { 130 } else { 1 })
        }
    }
}

/// A signal ends the run in an orderly way: no broker outlives it.
fn listen_to_signals() -> Outcome<()> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&INTERRUPTED)).during("cannot listen to signals")?;
    }
    Ok(())
}

fn carry_out(command: Verb) -> Outcome<bool> {
    match command {
        Verb::Run(args) => {
            let (results, whole) = run::all(&wish(&args)?)?;
            println!("{}", report::page(&results));
            Ok(whole)
        }
        Verb::Scale(args) => scale_curves(&args),
        Verb::Report { results, into } => {
            let text = fs::read_to_string(&results).during(results.display())?;
            let results: Results = serde_json::from_str(&text).during(results.display())?;
            match into {
                Some(page) => report::write_into(&page, &results)?,
                None => println!("{}", report::page(&results)),
            }
            Ok(true)
        }
    }
}

fn scale_curves(args: &ScaleArgs) -> Outcome<bool> {
    let (curves, whole) = if let Some(file) = &args.from {
        let text = fs::read_to_string(file).during(file.display())?;
        (serde_json::from_str(&text).during(file.display())?, true)
    } else {
        let (warm_up, window) = (Duration::from_secs_f64(args.warm_up), Duration::from_secs_f64(args.window));
        let all = || Curve::value_variants().to_vec();
        let wish = scale::Wish {
            curves: if args.curves.is_empty() { all() } else { args.curves.clone() },
            least: args.least,
            most: args.most,
            repetitions: args.repetitions,
            warm_up,
            window,
            directory: args.dir.clone(),
            swarmmq: args.swarmmq.clone().map_or_else(run::build_swarmmq, Ok)?,
            json: args.json.clone(),
        };
        scale::measure(&wish, run::machine(args.repetitions, warm_up, window))?
    };
    match &args.into {
        Some(page) => scale::write_into(page, &curves)?,
        None => println!("{}", scale::page(&curves)),
    }
    Ok(whole)
}

fn wish(args: &RunArgs) -> Outcome<Wish> {
    if let Some(size) = args.sizes.iter().find(|size| !(HEADER_BYTES as u32..=1 << 20).contains(size)) {
        return Err(Failure::broken(format!(
            "--sizes {size}: a message has {HEADER_BYTES} to {} bytes",
            1 << 20
        )));
    }
    if args.rates.contains(&0) {
        return Err(Failure::broken("--rates 0: at least one message per second"));
    }
    let duration = Duration::from_secs_f64;
    let wish = Wish {
        rows: rows(&args.peers)?,
        loads: loads(args)?,
        repetitions: args.repetitions,
        warm_up: duration(args.warm_up),
        window: duration(args.window),
        kills: args.kills,
        kill_window: duration(args.kill_window),
        directory: args.dir.clone(),
        swarmmq: args.swarmmq.clone(),
        nats: args.nats.clone(),
        limits_scale: 1.0,
        json: args.json.clone(),
    };
    if !args.quick {
        return Ok(wish);
    }
    let second = Duration::from_secs(1);
    Ok(Wish {
        repetitions: 1,
        warm_up: second,
        window: 2 * second,
        kills: wish.kills.min(1),
        kill_window: 12 * second,
        limits_scale: 0.1,
        ..wish
    })
}

fn rows(names: &[String]) -> Outcome<Vec<Row>> {
    if names.is_empty() {
        return Ok(ROWS.into_iter().filter(|row| row.by_default).collect());
    }
    let known = || ROWS.map(|row| row.name).join(", ");
    names
        .iter()
        .map(|name| ROWS.into_iter().find(|row| row.name == name))
        .zip(names)
        .map(|(row, name)| {
            row.ok_or_else(|| Failure::broken(format!("--peers {name}: there are {}", known())))
        })
        .collect()
}

fn loads(args: &RunArgs) -> Outcome<Vec<Load>> {
    const KINDS: [&str; 4] = ["idle", "rate", "saturation", "failover"];
    if let Some(kind) = args.loads.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
        return Err(Failure::broken(format!("--loads {kind}: there are {}", KINDS.join(", "))));
    }
    let wanted = |kind: &str| args.loads.is_empty() || args.loads.iter().any(|load| load == kind);
    let mut loads = Vec::new();
    if wanted("idle") {
        loads.push(Load::Idle);
    }
    if wanted("rate") {
        loads.extend(args.rates.iter().map(|per_s| Load::Rate { size: SIZE, per_s: *per_s }));
    }
    if wanted("saturation") {
        loads.extend(args.sizes.iter().map(|size| Load::Saturation { size: *size }));
    }
    if wanted("failover") && args.kills > 0 {
        loads.push(Load::Failover { size: SIZE, per_s: 1000 });
    }
    Ok(loads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish_of(words: &[&str]) -> Outcome<Wish> {
        let words = ["swarmmq-bench", "run"].iter().chain(words);
        match Cli::try_parse_from(words).expect("the words are arguments").command {
            Verb::Run(args) => wish(&args),
            Verb::Scale(_) | Verb::Report { .. } => Err(Failure::broken("another command")),
        }
    }

    #[test]
    fn without_arguments_everything_is_measured() {
        let wish = wish_of(&[]).unwrap();
        assert_eq!((wish.rows.len(), wish.loads.len(), wish.repetitions), (ROWS.len() - 1, 7, 3));
    }

    #[test]
    fn a_selection_keeps_only_what_it_names() {
        let wish =
            wish_of(&["--peers", "redis,swarmmq", "--loads", "rate", "--rates", "7", "--quick"]).unwrap();
        assert_eq!(wish.rows.iter().map(|row| row.name).collect::<Vec<_>>(), ["redis", "swarmmq"]);
        assert_eq!(wish.loads, [Load::Rate { size: SIZE, per_s: 7 }]);
        assert_eq!(wish.repetitions, 1);
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        for words in [["--peers", "kafka"], ["--loads", "burst"], ["--sizes", "15"], ["--rates", "0"]] {
            assert!(wish_of(&words).is_err(), "{words:?}");
        }
    }
}
