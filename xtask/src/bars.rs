//! `cargo x bars`: measures on real processes and the real disk what one node promises, and says what is kept.
//!
//! Run by hand on a machine that does nothing else: it takes minutes, and a busy machine makes every figure worse.
//! Absent here: what needs no processes. The simulator and the tests judge that in every run of `cargo x check`.

mod backlog;
pub(crate) mod cluster;
mod connections;
mod crashes;
mod disk;
pub(crate) mod json;
mod latency;
mod process;
mod saturation;
mod verdict;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use self::verdict::Verdict;
use crate::{root, step};

pub(crate) const USAGE: &str = "\
usage: cargo x bars [--only NAME] [--quick] [--json] [--program FILE]

  --only NAME     one of: crashes, throughput, cpu, latency, memory, restart, connections
  --quick         fewer repetitions; the amounts stay
  --json          one object per bar and line, the totals last
  --program FILE  measure this swarmmq instead of building one

Writes up to some 10 GiB below TMPDIR, or else below the build directory, and removes it.
";

/// One way to measure, which yields one or more bars.
struct Measurement {
    bars: &'static [&'static str],
    run: fn(&Setting) -> Result<Vec<Verdict>, String>,
}

/// All of them. What a measurement leaves behind in the page cache must not help a later one: each has its own node.
const MEASUREMENTS: &[Measurement] = &[
    Measurement { bars: &["crashes"], run: crashes::run },
    Measurement { bars: &["throughput", "cpu"], run: saturation::run },
    Measurement { bars: &["latency"], run: latency::run },
    Measurement { bars: &["memory"], run: backlog::memory },
    Measurement { bars: &["restart"], run: backlog::restart },
    Measurement { bars: &["connections"], run: connections::run },
];

/// What every measurement needs to know.
struct Setting {
    /// The executable.
    program: PathBuf,
    /// A directory of ours on the disk; there while a cluster is in it.
    place: PathBuf,
    quick: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    only: Option<String>,
    quick: bool,
    json: bool,
    program: Option<PathBuf>,
}

impl Arguments {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let mut arguments = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match *word {
                "--quick" => arguments.quick = true,
                "--json" => arguments.json = true,
                "--program" => arguments.program = Some(value()?.into()),
                "--only" => {
                    let name = *value()?;
                    if !MEASUREMENTS.iter().any(|measurement| measurement.bars.contains(&name)) {
                        return Err(format!("no bar `{name}`"));
                    }
                    arguments.only = Some(name.to_owned());
                }
                other => return Err(format!("no option `{other}`")),
            }
        }
        Ok(arguments)
    }

    fn wants(&self, bar: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == bar)
    }
}

/// The command. Fails if any bar is missed.
pub(crate) fn run(words: &[&str]) -> ExitCode {
    let arguments = match Arguments::parse(words) {
        Ok(arguments) => arguments,
        Err(what) => return usage_error(&what),
    };
    let setting = match prepare(&arguments) {
        Ok(setting) => setting,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::FAILURE;
        }
    };
    let verdicts = measure(&arguments, &setting);
    let passed = verdicts.iter().filter(|passed| **passed).count();
    let failed = verdicts.len() - passed;
    if arguments.json {
        println!("{{\"passed\":{passed},\"failed\":{failed}}}");
    } else {
        println!("{passed} passed, {failed} failed");
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage_error(what: &str) -> ExitCode {
    eprint!("{what}\n\n{USAGE}");
    ExitCode::from(crate::EXIT_USAGE)
}

/// Measures what is wanted, and tells each verdict as soon as it is there. Whether each bar is reached.
fn measure(arguments: &Arguments, setting: &Setting) -> Vec<bool> {
    let mut passed = Vec::new();
    for measurement in MEASUREMENTS {
        if !measurement.bars.iter().any(|bar| arguments.wants(bar)) {
            continue;
        }
        eprintln!("measuring {}", measurement.bars.join(" and "));
        let began = Instant::now();
        let verdicts = (measurement.run)(setting).unwrap_or_else(|error| {
            measurement.bars.iter().map(|bar| Verdict::broken(bar, &error)).collect()
        });
        eprintln!("  took {} s", began.elapsed().as_secs());
        for verdict in verdicts.iter().filter(|verdict| arguments.wants(verdict.name)) {
            passed.push(verdict.passed());
            println!("{}", if arguments.json { verdict.json() } else { verdict.show() });
        }
    }
    passed
}

/// Builds, and finds a place to write.
fn prepare(arguments: &Arguments) -> Result<Setting, String> {
    let program = program(arguments.program.as_deref())?;
    let place = disk()?.join(format!("bars-{}", std::process::id()));
    Ok(Setting { program, place, quick: arguments.quick })
}

/// The absolute path of the executable: the one that is given, or else a release build of this tree.
pub(crate) fn program(given: Option<&Path>) -> Result<PathBuf, String> {
    let program = match given {
        Some(program) => program.to_owned(),
        None => {
            if step::cargo(&["build", "--release", "--quiet", "-p", "swarmmq-cli"]) != ExitCode::SUCCESS {
                return Err("the build failed: nothing was measured".into());
            }
            target().join("release/swarmmq")
        }
    };
    // Absolute, because commands run elsewhere.
    program.canonicalize().map_err(|error| format!("{}: {error}", program.display()))
}

/// A directory to write in that does not lie in memory: TMPDIR, or else the build directory.
pub(crate) fn disk() -> Result<PathBuf, String> {
    let below = std::env::var_os("TMPDIR").map_or_else(target, PathBuf::from);
    std::fs::create_dir_all(&below).map_err(|error| format!("{}: {error}", below.display()))?;
    let below = below.canonicalize().map_err(|error| format!("{}: {error}", below.display()))?;
    refuse_memory(&below)?;
    Ok(below)
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A file system in memory would pass every bar and mean nothing.
fn refuse_memory(directory: &Path) -> Result<(), String> {
    let output = Command::new("stat").args(["-f", "-c", "%T"]).arg(directory).output();
    let kind = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    match kind {
        Ok(kind) if kind == "tmpfs" || kind == "ramfs" => Err(format!(
            "{} lies in memory ({kind}): set TMPDIR to a directory on the disk",
            directory.display()
        )),
        // Where it cannot be told, whoever reads the disk's figure sees it.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let arguments = Arguments::parse(&["--quick", "--only", "cpu", "--program", "a/b"]).unwrap();
        let program = Some(PathBuf::from("a/b"));
        assert_eq!(arguments, Arguments { only: Some("cpu".into()), quick: true, json: false, program });
        assert!(arguments.wants("cpu") && !arguments.wants("throughput"));
        assert!(Arguments::parse(&["--json"]).unwrap().wants("throughput"));
        for bad in [&["--only"][..], &["--only", "speed"], &["--fast"], &["cpu"]] {
            assert!(Arguments::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_bar_is_in_the_usage_and_on_the_page_of_figures() {
        let page =
            std::fs::read_to_string(root().join("docs/design/performance.md")).expect("the page is there");
        for bar in MEASUREMENTS.iter().flat_map(|measurement| measurement.bars) {
            assert!(USAGE.contains(bar), "{bar} is not in the usage");
            assert!(page.contains(&format!("| `{bar}` |")), "{bar} has no row on the page");
        }
    }
}
