//! `cargo x sim`: runs seeds, scenarios and the hunt for planted bugs, measures its own speed, and reports.

#![expect(clippy::print_stdout, reason = "a command line tool answers on standard output")]

use std::{
    collections::BTreeMap,
    process::{Command, ExitCode},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use swarmmq_engine::node::bug::{self, Bug, Bugs};
use swarmmq_sim::{
    plan::{Fault, Plan},
    run::{HUNT_SEEDS_MAX, MASKS, Outcome, hunt, run, run_mask},
    scenario,
};

const USAGE: &str = "\
usage: sim [--seeds N] [--seed S] [--jobs J] [--bug NAME] [--standard|--busy] [--trace]
       sim --masks [--mask M] [--settled] [--jobs J]

  --seeds N    run N seeds (default 100; 1 if --seed is given alone), every scenario, and hunt every planted bug
  --seed S     the first seed (default 1); alone: run exactly this one
  --jobs J     seeds at a time (default: the number of processors)
  --bug NAME   plant this bug in every seed; the run then should fail
  --standard   only the standard mix, for comparable speeds: 5 nodes, 16 shards, 50 messages a second, faults on
  --busy       only a calm network with producers and consumers, for counting instructions
  --trace      print every step; for a single seed
  --masks      every set of links of five nodes: who must be served then is, and nobody else
  --settled    leave leaders time to settle before the cut, and count whose leader changed
  --mask M     only this one: bit by bit which pairs keep their link, 1-2, 1-3, .. 4-5
";

/// What the command line asks for.
struct Options {
    first: u64,
    count: u64,
    single: bool,
    jobs: usize,
    bug: Option<Bug>,
    standard: bool,
    busy: bool,
    trace: bool,
    masks: bool,
    settled: bool,
    mask: Option<u64>,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(what) => {
            eprint!("{what}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    // A panic of the code under test becomes a verdict of its run, with seed and last steps. A traced run says where.
    if !options.trace {
        std::panic::set_hook(Box::new(|_| {}));
    }
    let began = Instant::now();
    if options.masks {
        return masks(&options);
    }
    let mut score = Score::default();
    seeds(&options, &mut score);
    if !options.single && options.bug.is_none() && !options.standard && !options.busy {
        scenarios(&mut score);
        hunts(options.jobs, &mut score);
    }
    score.print(began.elapsed());
    println!("{} passed, {} failed", score.passed, score.failed);
    if score.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let (mut seed, mut seeds, mut bug, mut standard, mut trace) = (None, None, None, false, false);
    let (mut masks, mut mask, mut settled, mut busy) = (false, None, false, false);
    let mut jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u64, String> {
            let value = arguments.next().ok_or_else(|| format!("{argument} needs a number"))?;
            value.parse().map_err(|_| format!("{value:?} is no number"))
        };
        match argument.as_str() {
            "--seed" => seed = Some(number()?),
            "--seeds" => seeds = Some(number()?),
            "--jobs" => jobs = (number()? as usize).max(1),
            "--bug" => {
                let name = arguments.next().ok_or("--bug needs a name")?;
                let known = bug::ALL.iter().find(|bug| format!("{bug:?}") == name);
                let names = || bug::ALL.iter().map(|bug| format!("{bug:?}")).collect::<Vec<_>>().join(", ");
                bug = Some(*known.ok_or_else(|| format!("no bug {name:?}; there are {}", names()))?);
            }
            "--standard" => standard = true,
            "--busy" => busy = true,
            "--trace" => trace = true,
            "--masks" => masks = true,
            "--settled" => settled = true,
            "--mask" => (masks, mask) = (true, Some(number()?)),
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    let single = seeds.is_none() && seed.is_some();
    if trace && !single {
        return Err("--trace goes with --seed S alone".to_owned());
    }
    let count = seeds.unwrap_or(if single { 1 } else { 100 });
    Ok(Options {
        first: seed.unwrap_or(1),
        count,
        single,
        jobs,
        bug,
        standard,
        busy,
        trace,
        masks,
        settled,
        mask,
    })
}

/// What all runs add up to.
#[derive(Default)]
struct Score {
    passed: u64,
    failed: u64,
    messages: u64,
    deliveries: u64,
    boots: u64,
    torn: u64,
    refused_logs: u64,
    replays: u64,
    faults: BTreeMap<Fault, u64>,
    margins: BTreeMap<&'static str, u64>,
    virtual_seconds: f64,
    /// Processor time of all runs that count for the speed.
    busy: Duration,
}

impl Score {
    fn count(&mut self, outcome: &Outcome) {
        self.messages += outcome.sent;
        self.deliveries += outcome.given;
        self.boots += outcome.boots;
        self.torn += outcome.torn;
        self.refused_logs += outcome.refused_logs;
        self.replays += outcome.replays;
        for (fault, count) in &outcome.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        for (judge, longest) in &outcome.margins {
            let of_all = self.margins.entry(judge).or_default();
            *of_all = (*longest).max(*of_all);
        }
        self.virtual_seconds += outcome.seconds;
    }

    fn verdict(&mut self, good: bool) {
        if good { self.passed += 1 } else { self.failed += 1 }
    }

    fn print(&self, elapsed: Duration) {
        let faults: u64 = self.faults.values().sum();
        println!(
            "{} messages, {} deliveries, {} starts ({} with a torn batch, {} refused as corrupt), {} replays compared",
            self.messages, self.deliveries, self.boots, self.torn, self.refused_logs, self.replays
        );
        let kinds: Vec<String> =
            self.faults.iter().map(|(fault, count)| format!("{} {count}", fault.text())).collect();
        println!("{faults} faults: {}", kinds.join(", "));
        let longest = |judge: &str| self.margins.get(judge).copied().unwrap_or(0);
        let ms = |judge| longest(judge) / 1_000_000;
        println!(
            "wrong without an excuse at most: paths {} ms, pictures of links {} ms, living nodes called dead {} ms; unexplained changes of a path in a minute: {}",
            ms("paths"),
            ms("pictures"),
            ms("deaths"),
            longest("changes")
        );
        println!(
            "{:.0} virtual seconds in {:.1} s of one core ({:.1} s of time): {:.0} x real time per core",
            self.virtual_seconds,
            self.busy.as_secs_f64(),
            elapsed.as_secs_f64(),
            self.virtual_seconds / self.busy.as_secs_f64().max(0.001)
        );
    }
}

/// Runs `task` for every number below `count`, several at a time; results in order.
fn spread<T: Send>(count: u64, jobs: usize, task: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(0);
    let mut results: Vec<(u64, T)> = std::thread::scope(|scope| {
        let work = || {
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return done;
                }
                done.push((number, task(number)));
            }
        };
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a run panicked; it said why above"))
            .collect()
    });
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Processor time that this process has used, so that a busy machine does not make the simulator look slow. Where it
/// cannot be read it is the time that has passed.
fn processor_time(began: Instant) -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in parentheses: user and system time are fields 14 and 15, in hundredths of a second.
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .map(|rest| rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect())
        .unwrap_or_default();
    match fields.as_slice() {
        [user, system] => Duration::from_millis((user + system) * 10),
        _ => began.elapsed(),
    }
}

fn seeds(options: &Options, score: &mut Score) {
    let bugs = options.bug.map_or(Bugs::NONE, Bugs::only);
    let began = Instant::now();
    let before = processor_time(began);
    let outcomes = spread(options.count, options.jobs, |number| {
        let seed = options.first + number;
        let plan = match options.bug {
            Some(bug) if !options.standard => scenario::hunting(bug, seed),
            _ if options.standard => Plan::standard(seed, bugs),
            _ if options.busy => Plan::busy(seed),
            _ => Plan::new(seed, bugs),
        };
        run(plan, options.trace)
    });
    score.busy = processor_time(began) - before;
    for outcome in &outcomes {
        score.count(outcome);
        score.verdict(outcome.violations.is_empty());
        if options.trace {
            outcome.lines.iter().for_each(|line| println!("{line}"));
        }
        if !outcome.violations.is_empty() {
            report(&format!("seed {}", outcome.seed), outcome, options.trace);
        }
    }
}

/// Every mask, or one. What must hold is safety rule 23; what is measured beside it, how long whoever must be served waits.
fn masks(options: &Options) -> ExitCode {
    let first = options.mask.unwrap_or(0);
    let count = if options.mask.is_some() { 1 } else { MASKS };
    let outcomes = spread(count, options.jobs, |number| run_mask(first + number, options.settled));
    let (mut passed, mut failed, mut messages) = (0, 0, 0);
    let (mut waits, mut whole, mut steady) = (Vec::new(), 0, 0);
    for outcome in &outcomes {
        messages += outcome.sent;
        waits.extend(&outcome.waits_ms);
        whole += u64::from(outcome.is_whole);
        steady += u64::from(outcome.is_whole && outcome.reigns == 0);
        if outcome.violations.is_empty() {
            passed += 1;
            continue;
        }
        failed += 1;
        println!("FAILED: mask {}, commit {}", outcome.mask, commit());
        for violation in &outcome.violations {
            println!("  {}: {}", violation.judge, violation.what);
        }
        println!("  again: cargo x masks --mask {}", outcome.mask);
    }
    waits.sort_unstable();
    let part =
        |permille: usize| waits.get((waits.len() * permille / 1000).min(waits.len().saturating_sub(1)));
    println!(
        "{messages} messages through {count} sets of links; {} pairs of client and shard served",
        waits.len()
    );
    println!(
        "served after the cut: p50 {:?} ms, p99 {:?} ms, longest {:?} ms",
        part(500).unwrap_or(&0),
        part(990).unwrap_or(&0),
        waits.last().unwrap_or(&0)
    );
    if options.settled {
        println!("{whole} sets leave all nodes connected; {steady} of them changed no leader");
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn scenarios(score: &mut Score) {
    for scenario in scenario::ALL {
        let outcome = run((scenario.plan)(), false);
        score.verdict(outcome.violations.is_empty());
        if !outcome.violations.is_empty() {
            report(&format!("scenario {}", scenario.name), &outcome, false);
        }
    }
}

/// A simulator that finds nothing proves nothing: every planted bug must be found.
fn hunts(jobs: usize, score: &mut Score) {
    let found = spread(bug::ALL.len() as u64, jobs, |number| hunt(bug::ALL[number as usize], 1));
    for (bug, found) in bug::ALL.iter().zip(found) {
        score.verdict(found.is_some());
        match found {
            Some(outcome) => {
                let first = &outcome.violations[0];
                println!(
                    "planted bug {bug:?}: found by `{}` with seed {}: {}",
                    first.judge, outcome.seed, first.what
                );
            }
            None => println!("planted bug {bug:?}: NOT FOUND in {HUNT_SEEDS_MAX} seeds"),
        }
    }
}

fn report(what: &str, outcome: &Outcome, traced: bool) {
    println!("FAILED: {what}, commit {}", commit());
    for violation in &outcome.violations {
        println!("  {}: {}", violation.judge, violation.what);
    }
    if !traced {
        println!("  the last steps of {}, trace {:016x}:", outcome.steps, outcome.trace_hash);
        outcome.lines.iter().for_each(|line| println!("    {line}"));
        println!("  again: cargo x sim --seed {} [--trace]", outcome.seed);
    }
}

/// Which code ran, as far as git knows.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}
