//! `cargo x instructions`: how many instructions the hot paths take, counted by `valgrind --tool=callgrind` in a simulated
//! cluster. Times on a shared machine say little; these numbers hardly vary, so a change that makes a path dearer shows.
//!
//! Counted is one seed of the simulator without faults, per message that was sent in it. What is compared stands in
//! `xtask/instructions.txt`, one path a line. Another compiler or processor may count a little differently, hence the
//! tolerance.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, ExitCode, Stdio},
};

use crate::{root, step};

pub(crate) const USAGE: &str = "\
usage: cargo x instructions [--record]

  --record   writes what was counted as what is expected from now on
";

/// More than what is expected by this share is a finding.
const TOLERANCE: f64 = 0.08;
const EXPECTED: &str = "xtask/instructions.txt";
const SEED: &str = "1";

/// What is counted: a name for people, and the function with all that it calls.
const PATHS: &[(&str, &str)] = &[
    ("everything", "swarmmq_sim::run::run"),
    ("a node takes inputs", "swarmmq_engine::node::Node::handle"),
    ("a node decides", "swarmmq_engine::node::Node::flush"),
    ("a shard decides", "swarmmq_engine::shard::Shard::flush"),
    ("a round of consensus", "swarmmq_engine::shard::consensus::Consensus::round"),
    ("what is committed changes the state", "swarmmq_engine::shard::state::State::apply"),
    ("deliveries are looked for", "swarmmq_engine::shard::delivery::Delivery::deliver"),
    ("a record is placed", "swarmmq_engine::log::writer::Writer::place"),
    ("a message is sealed", "swarmmq_seal::seal::Sealer::seal"),
    ("a MAC", "swarmmq_protocol::mac::MacKey::sign"),
];

/// Counts, and compares or records.
pub(crate) fn run(arguments: &[&str]) -> ExitCode {
    let record = match arguments {
        [] => false,
        ["--record"] => true,
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let has_valgrind = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !has_valgrind {
        println!("SKIPPED: there is no valgrind on this machine");
        return ExitCode::SUCCESS;
    }
    let build = step::cargo(&["build", "--release", "--locked", "--quiet", "-p", "swarmmq-sim"]);
    if build != ExitCode::SUCCESS {
        return build;
    }
    match count().and_then(|counted| judge(&counted, record)) {
        Ok(code) => code,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}

/// Instructions per message, by path.
fn count() -> Result<BTreeMap<&'static str, u64>, String> {
    let target = step::target();
    let (program, out) = (target.join("release/swarmmq-sim"), target.join("callgrind.out"));
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["--busy", "--seed", SEED, "--jobs", "1"])
        .current_dir(root())
        .output()
        .map_err(|error| format!("cannot run valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&ran.stdout);
    if !ran.status.success() {
        return Err(format!("the simulator failed: {said}"));
    }
    let messages = said.lines().find_map(|line| line.split_once(" messages, ")?.0.parse::<u64>().ok());
    let messages = messages.filter(|count| *count > 0).ok_or_else(|| format!("no messages in: {said}"))?;
    let annotated = Command::new("callgrind_annotate")
        .args(["--inclusive=yes", "--threshold=100"])
        .arg(&out)
        .output()
        .map_err(|error| format!("cannot run callgrind_annotate: {error}"))?;
    let table = String::from_utf8_lossy(&annotated.stdout);
    let mut counted = BTreeMap::new();
    for (path, function) in PATHS {
        // A function has a line for each file that was inlined into it; the largest number is of all of it.
        let most = table.lines().filter_map(|line| instructions(line, function)).max();
        let most =
            most.ok_or_else(|| format!("{function} is not in the profile: name another for {path:?}"))?;
        counted.insert(*path, most / messages);
    }
    println!("{messages} messages");
    Ok(counted)
}

/// The number at the start of a line of the table, if it is about `function`.
fn instructions(line: &str, function: &str) -> Option<u64> {
    let (number, rest) = line.trim_start().split_once(' ')?;
    let name = rest.split_once(") ")?.1.trim_start().split(" [").next()?;
    let is_it =
        name.strip_suffix(function).is_some_and(|before| before.ends_with(':') && !before.ends_with("::"));
    is_it.then(|| number.replace(',', "").parse().ok()).flatten()
}

fn judge(counted: &BTreeMap<&'static str, u64>, record: bool) -> Result<ExitCode, String> {
    let file = root().join(EXPECTED);
    if record {
        let lines: Vec<String> =
            PATHS.iter().map(|(path, _)| format!("{} {path}\n", counted[path])).collect();
        let text = format!(
            "# Instructions per message; `cargo x instructions --record` writes this.\n{}",
            lines.concat()
        );
        fs::write(&file, text).map_err(|error| format!("cannot write {EXPECTED}: {error}"))?;
        println!("{EXPECTED} says so from now on");
    }
    let text = fs::read_to_string(&file).map_err(|error| format!("cannot read {EXPECTED}: {error}"))?;
    let (mut passed, mut failed) = (0, 0);
    for (path, _) in PATHS {
        let is_of = |line: &&str| line.split_once(' ').is_some_and(|(_, name)| name == *path);
        let expected = text.lines().find(is_of).and_then(|line| line.split(' ').next()?.parse::<u64>().ok());
        let expected = expected.ok_or_else(|| format!("{EXPECTED} says nothing of {path:?}"))?;
        let now = counted[path];
        let change = now as f64 / expected as f64 - 1.0;
        let verdict = if change > TOLERANCE {
            failed += 1;
            "FAILED"
        } else {
            passed += 1;
            if change < -TOLERANCE { "ok, and worth recording" } else { "ok" }
        };
        println!("{now:>9} instead of {expected:>9} ({:+.1} %) {path}: {verdict}", change * 100.0);
    }
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_read_by_its_whole_function() {
        let line = "7,662,057 (37.37%)  crates/engine/src/node/mod.rs:a::Node::flush [target/release/sim]";
        assert_eq!(instructions(line, "a::Node::flush"), Some(7_662_057));
        assert_eq!(instructions(line, "Node::flush"), None, "the end of a name is not the name");
        assert_eq!(instructions("  1,000 ( 0.1%)  ???:a::b", "a::b"), Some(1_000));
        assert_eq!(instructions("Ir", "a::b"), None);
    }
}
