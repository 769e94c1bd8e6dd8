//! `cargo x lab`: faults of real networks between five real node processes, each in a network namespace of its own.
//!
//! Two processes: the outer one makes the network and sees to it that everything is removed, however this ends; the
//! inner one works beside the bridge, from where it reaches all nodes whatever is cut between them.

mod compare;
mod delay;
mod fault;
mod net;
mod nodes;
mod plot;
mod samples;
mod verdict;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use self::{
    compare::CASES,
    fault::{A, B, FAULTS, Fault},
    net::{Cleaner, Network, call},
    nodes::{Look, Nodes},
    verdict::{Figures, HEAD},
};
use crate::bars::{self, cluster::Load};

pub(crate) const USAGE: &str = "\
usage: cargo x lab [--fault NAME] [--seconds S] [--json] [--program FILE]
       cargo x lab --compare [POLICY,POLICY] [--rounds N] [--plot FILE] [--fault CASE] [...]

  --fault NAME    only this one: control, cut, cut-one-way, loss10, loss30, delay, slow-cpu, isolated, freeze, slow-fsync
  --seconds S     how long each load lasts, at least 8; the fault comes after a quarter and stays for half of it (20)
  --json          one object per fault and line, the totals last
  --program FILE  run this swarmmq instead of building one
  --compare       each case once with each policy (static-hash,least-cost), side by side; --fault selects one of
                  control, slow-link, lossy-link, cut, slow-node, frozen, slow-disk
  --rounds N      so often, and the median of each figure (1)
  --plot FILE     a picture of the 99th percentiles (SVG)

Needs root, ip (iproute2), nft (nftables) and nsenter (util-linux); `delay` needs VXLAN, `slow-cpu` control groups of
version 1, `slow-fsync` strace. What lacks what it needs says SKIPPED. Removes everything that it makes.
";

/// How the inner process is told that it is one; the name of the network follows.
const INSIDE: &str = "--inside";
/// Messages per second of both loads together.
const RATE: u32 = 1000;
/// A shorter load leaves no time before and after the longest fault.
const SECONDS_MIN: u64 = 8;
const SECONDS: u64 = 20;
/// Time for every shard to have all its copies again once the load is over.
const SETTLING: Duration = Duration::from_secs(60);
/// How long before its end a fault is looked at.
const LOOK_BEFORE: Duration = Duration::from_millis(500);

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    fault: Option<String>,
    seconds: u64,
    json: bool,
    program: Option<PathBuf>,
    /// Policies to compare; none: faults are judged.
    compare: Vec<String>,
    rounds: usize,
    plot: Option<PathBuf>,
    /// Name of the network that was made for this process.
    inside: Option<String>,
    /// Where this process may write.
    place: Option<PathBuf>,
}

impl Arguments {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let mut arguments = Self {
            fault: None,
            seconds: SECONDS,
            json: false,
            program: None,
            compare: Vec::new(),
            rounds: 1,
            plot: None,
            inside: None,
            place: None,
        };
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            if *word == "--compare" {
                let given = words.next_if(|word| !word.starts_with('-'));
                arguments.compare = compare::policies(given.unwrap_or(&compare::POLICIES))?;
                continue;
            }
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match *word {
                "--json" => arguments.json = true,
                "--program" => arguments.program = Some(value()?.into()),
                INSIDE => arguments.inside = Some((*value()?).to_owned()),
                "--plot" => arguments.plot = Some(value()?.into()),
                "--rounds" => {
                    let rounds = value()?.parse().ok().filter(|rounds| *rounds >= 1);
                    arguments.rounds = rounds.ok_or_else(|| format!("{word}: a number, at least 1"))?;
                }
                "--place" => arguments.place = Some(value()?.into()),
                "--seconds" => {
                    let seconds = value()?.parse().ok().filter(|seconds| *seconds >= SECONDS_MIN);
                    arguments.seconds =
                        seconds.ok_or_else(|| format!("{word}: a number, at least {SECONDS_MIN}"))?;
                }
                "--fault" => {
                    arguments.fault = Some((*value()?).to_owned());
                }
                other => return Err(format!("no option `{other}`")),
            }
        }
        if let Some(name) = &arguments.fault
            && arguments.wanted().next().is_none()
        {
            return Err(format!("no fault `{name}`"));
        }
        if arguments.compare.is_empty() && (arguments.plot.is_some() || arguments.rounds > 1) {
            return Err("--plot and --rounds belong to --compare".to_owned());
        }
        Ok(arguments)
    }

    fn wanted(&self) -> impl Iterator<Item = &'static Fault> {
        let all = if self.compare.is_empty() { FAULTS } else { CASES };
        all.iter().filter(|fault| self.fault.as_deref().is_none_or(|name| name == fault.name))
    }
}

/// The command. Fails if any fault misses a bar. Where this machine lacks what everything needs, all faults are skipped,
/// as the stories of `cargo x chaos` are.
pub(crate) fn run(words: &[&str]) -> ExitCode {
    let arguments = match Arguments::parse(words) {
        Ok(arguments) => arguments,
        Err(what) => {
            eprint!("{what}\n\n{USAGE}");
            return ExitCode::from(crate::EXIT_USAGE);
        }
    };
    let result = match (&arguments.inside, &arguments.place, &arguments.program) {
        (Some(name), Some(place), Some(program)) => {
            let lab = Lab { network: Network::named(name), place, program };
            if arguments.compare.is_empty() { Ok(lab.run(&arguments)) } else { lab.compare(&arguments) }
        }
        _ => outside(&arguments, words),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

/// Makes the network, runs everything in it, removes it.
fn outside(arguments: &Arguments, words: &[&str]) -> Result<ExitCode, String> {
    if let Some(missing) = missing() {
        return Ok(skip_all(arguments, &missing));
    }
    let program = bars::program(arguments.program.as_deref())?;
    let disk = bars::disk()?;
    let place_of = |process| disk.join(Network::of(process).name());
    net::remove_leftovers(place_of)?;
    let network = Network::of(std::process::id());
    let place = place_of(std::process::id());
    std::fs::create_dir_all(&place).map_err(|error| format!("{}: {error}", place.display()))?;
    let _cleaner = Cleaner::start(&network, &place)?;
    if let Err(error) = network.make() {
        return Ok(skip_all(arguments, &format!("network namespaces joined by a bridge: {error}")));
    }
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut inner = network.beside(&own);
    inner.arg("lab").args(words).args([INSIDE, network.name(), "--place"]).arg(&place);
    // The last one counts.
    let status = inner.arg("--program").arg(&program).status().map_err(|error| error.to_string())?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What this machine lacks for anything at all.
fn missing() -> Option<String> {
    let user = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Real and effective number; the effective one counts.
    let effective = user.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    if effective != Some("0") {
        return Some("root: namespaces are made and packets dropped".to_owned());
    }
    [("ip", "-V", "iproute2"), ("nft", "--version", "nftables"), ("nsenter", "--version", "util-linux")]
        .into_iter()
        .find_map(|(tool, version, package)| {
            call(Command::new(tool).arg(version)).err().map(|error| format!("{tool} ({package}): {error}"))
        })
}

fn skip_all(arguments: &Arguments, missing: &str) -> ExitCode {
    for fault in arguments.wanted() {
        skip(fault, missing);
    }
    total(arguments, 0, 0, arguments.wanted().count());
    ExitCode::SUCCESS
}

fn skip(fault: &Fault, missing: &str) {
    eprintln!("SKIPPED {}: it needs {missing}", fault.name);
}

fn total(arguments: &Arguments, passed: usize, failed: usize, skipped: usize) {
    if arguments.json {
        println!("{{\"passed\":{passed},\"failed\":{failed},\"skipped\":{skipped}}}");
    } else {
        println!("{skipped} skipped");
        println!("{passed} passed, {failed} failed");
    }
}

/// When a fault comes, in a load of this length.
fn warm_up(load: Duration) -> Duration {
    load / 4
}

/// What the inner process works with.
struct Lab<'a> {
    network: Network,
    place: &'a Path,
    program: &'a Path,
}

impl Lab<'_> {
    fn run(&self, arguments: &Arguments) -> ExitCode {
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        if !arguments.json {
            println!("{HEAD}");
        }
        for fault in arguments.wanted() {
            if let Some(missing) = fault.kind.lacks(&self.network) {
                skip(fault, &missing);
                skipped += 1;
                continue;
            }
            eprintln!("{}: {}", fault.name, fault.what);
            let (figures, missed) = match self.suffer(fault, arguments.seconds) {
                Ok(result) => result,
                Err(error) => (Figures::default(), vec![error]),
            };
            *(if missed.is_empty() { &mut passed } else { &mut failed }) += 1;
            if arguments.json {
                println!("{}", figures.json(fault.name, &missed));
            } else {
                let verdict = if missed.is_empty() { "passed" } else { "FAILED" };
                println!("{}", figures.row(fault.name, verdict));
                missed.iter().for_each(|missed| println!("  {missed}"));
            }
        }
        total(arguments, passed, failed, skipped);
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// One fault on a fresh cluster: what it did, and which bars were missed.
    fn suffer(&self, fault: &Fault, seconds: u64) -> Result<(Figures, Vec<String>), String> {
        self.network.clear_all()?;
        let nodes = Nodes::up(&self.network, self.program, self.place.join(fault.name))?;
        let result = self.under_load(fault, &nodes, seconds).map(|figures| {
            let missed = figures.missed(fault, (u64::from(RATE) * seconds) as f64);
            (figures, missed)
        });
        if result.as_ref().map_or(true, |(_, missed)| !missed.is_empty()) {
            eprint!("{}", nodes.last_words());
        }
        result
    }

    fn under_load(&self, fault: &Fault, nodes: &Nodes<'_>, seconds: u64) -> Result<Figures, String> {
        let victim = nodes.busiest()?;
        let before = nodes.look()?;
        let mut loads = Vec::new();
        for node in [A, B] {
            loads.push(nodes.load(node, RATE / 2, seconds, "key", &[])?);
        }
        let began = begun(&mut loads)?;
        let length = Duration::from_secs(seconds);
        let begin = warm_up(length);
        let end = begin + fault.kind.lasts(length);
        wait_until(began + begin);
        let present = fault.kind.begin(&self.network, nodes, victim)?;
        wait_until(began + end.saturating_sub(LOOK_BEFORE));
        let mut figures = Figures { hops: nodes.hops(A, B)?, ..Figures::default() };
        wait_until(began + end);
        present.end(&self.network, nodes, victim)?;
        figures.direct_s = nodes.wait_direct([A, B], SETTLING)?;
        finish(&mut figures, loads, nodes, before)?;
        Ok(figures)
    }
}

/// When all loads have begun to be acknowledged.
fn begun(loads: &mut [Load]) -> Result<Instant, String> {
    for load in loads {
        load.wait_for(|line| line.contains("acknowledged (+"))?;
    }
    Ok(Instant::now())
}

/// Waits for the ends of all loads, and until the cluster has come to rest; notes what that came to.
fn finish(figures: &mut Figures, loads: Vec<Load>, nodes: &Nodes<'_>, before: Look) -> Result<(), String> {
    for load in loads {
        let (code, report) = load.finish()?;
        figures.take(&report).map_err(|error| format!("bench ended with {code:?}: {error}: {report:?}"))?;
    }
    figures.settled_s = nodes.settle(SETTLING)?;
    figures.between(before, nodes.look()?);
    Ok(())
}

fn wait_until(time: Instant) {
    std::thread::sleep(time.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root;

    #[test]
    fn arguments_are_read() {
        let arguments = Arguments::parse(&["--fault", "cut", "--seconds", "12", "--json"]).unwrap();
        assert_eq!((arguments.fault.as_deref(), arguments.seconds, arguments.json), (Some("cut"), 12, true));
        assert_eq!(arguments.wanted().map(|fault| fault.name).collect::<Vec<_>>(), ["cut"]);
        assert_eq!(Arguments::parse(&[]).unwrap().wanted().count(), FAULTS.len());
        let compare = Arguments::parse(&["--compare", "--fault", "slow-link", "--rounds", "3"]).unwrap();
        assert_eq!((compare.compare.len(), compare.rounds), (2, 3));
        assert_eq!(compare.wanted().count(), 1);
        let named = Arguments::parse(&["--compare", "round-robin,p2c-ewma", "--plot", "a.svg"]).unwrap();
        assert_eq!(named.compare, ["round-robin", "p2c-ewma"]);
        assert_eq!(named.wanted().count(), CASES.len());
        let bad: [&[&str]; 8] = [
            &["--fault"],
            &["--fault", "rain"],
            &["--fault", "slow-link"],
            &["--seconds", "7"],
            &["--rounds", "2"],
            &["--compare", "least-cost"],
            &["--compare", "least-cost,best"],
            &["cut"],
        ];
        for bad in bad {
            assert!(Arguments::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_fault_is_in_the_usage_and_on_the_page() {
        let page = std::fs::read_to_string(root().join("docs/design/lab.md")).expect("the page is there");
        for fault in FAULTS.iter().chain(CASES) {
            assert!(USAGE.contains(fault.name), "{} is not in the usage", fault.name);
            assert!(page.contains(&format!("| `{}` |", fault.name)), "{} has no row on the page", fault.name);
        }
    }
}
