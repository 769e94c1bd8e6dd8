//! `cargo x chaos`: real faults on real nodes. The stories are tests of `crates/cli`, of which only a selection runs otherwise;
//! here they are told one after the other, with release builds, and what they count is added up.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Read, Write},
    process::{Command, ExitCode, Stdio},
    sync::mpsc::{Sender, channel},
    time::Instant,
};

use crate::root;

pub(crate) const USAGE: &str = "\
usage: cargo x chaos [--long] [NAME]

  --long  tells every story at length: about half an hour instead of some minutes
  NAME    tells the stories whose names contain this

Power cuts and full disks need root, loop devices and xfsprogs; failing syncs need strace. A story without what it needs
says SKIPPED.
";

/// How a line of figures of a story begins.
const FIGURES: &str = "chaos: ";
const SKIPPED: &str = "SKIPPED ";

/// Everything that was counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    passed: u64,
    failed: u64,
    /// Stories that could not be told here.
    pub(crate) skipped: u64,
    messages: u64,
    faults: u64,
}

impl Totals {
    /// Says the last line, and what the command ends with.
    pub(crate) fn verdict(&self, ended_well: bool) -> ExitCode {
        println!("{} passed, {} failed", self.passed, self.failed);
        if ended_well && self.failed == 0 && self.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Takes a line of a test's output.
    fn take(&mut self, line: &str) {
        // The harness puts its dots before whatever a test says.
        if let Some((_, figures)) = line.split_once(FIGURES) {
            self.messages += before(figures, "messages");
            self.faults += before(figures, "faults");
        } else if line.contains(SKIPPED) {
            self.skipped += 1;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += before(result, "passed");
            self.failed += before(result, "failed");
        }
    }
}

/// The number before a word.
fn before(text: &str, word: &str) -> u64 {
    let words: Vec<&str> = text.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
    let at = words.windows(2).find(|pair| pair[1] == word);
    at.and_then(|pair| pair[0].parse().ok()).unwrap_or_default()
}

/// The command. Fails if a story does.
pub(crate) fn run(words: &[&str]) -> ExitCode {
    let (long, names): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| **word == "--long");
    if names.len() > 1 || names.iter().any(|name| name.starts_with('-')) {
        eprint!("no such options: {names:?}\n\n{USAGE}");
        return ExitCode::from(crate::EXIT_USAGE);
    }
    let began = Instant::now();
    let length = if long.is_empty() { "short" } else { "long" };
    let Some((totals, ended_well)) =
        tell(&["chaos_processes", "chaos_disks"], &names, ("SWARMMQ_CHAOS", length))
    else {
        return ExitCode::FAILURE;
    };
    let Totals { messages, faults, skipped, .. } = totals;
    println!("{messages} messages, {faults} faults, {skipped} skipped, {} s", began.elapsed().as_secs());
    totals.verdict(ended_well)
}

/// Tells stories of `crates/cli`, one after the other, with release builds, and counts. `None`: it could not; it was said.
///
/// * `files`: the test files they are in.
/// * `names`: those whose names contain one of these; all if there is none.
/// * `variable`: what they find in their environment.
pub(crate) fn tell(files: &[&str], names: &[&str], variable: (&str, &str)) -> Option<(Totals, bool)> {
    let mut line = vec!["test", "--quiet", "--release", "--no-fail-fast", "-p", "swarmmq-cli"];
    files.iter().for_each(|file| line.extend(["--test", file]));
    line.extend(["--", "--test-threads", "1"]);
    line.extend(names);
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.args(&line).current_dir(root()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env(variable.0, variable.1);
    let told = told(&mut command);
    told.inspect_err(|error| eprintln!("cannot run cargo: {error}")).ok()
}

/// Runs it, shows what it says, and counts.
fn told(command: &mut Command) -> std::io::Result<(Totals, bool)> {
    let mut child = command.spawn()?;
    let (lines, heard) = channel();
    for stream in [
        child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>),
        child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>),
    ]
    .into_iter()
    .flatten()
    {
        let lines = lines.clone();
        std::thread::spawn(move || read(stream, &lines));
    }
    drop(lines);
    let mut totals = Totals::default();
    let mut out = std::io::stdout();
    for line in heard {
        totals.take(&line);
        writeln!(out, "{line}")?;
    }
    Ok((totals, child.wait()?.success()))
}

fn read(stream: Box<dyn Read + Send>, lines: &Sender<String>) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if lines.send(line).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stories_say_is_added_up() {
        let mut totals = Totals::default();
        for line in [
            "running 9 tests",
            "..chaos: kill of the leader: 1600 messages, 2 faults, 8 s; gaps: publish p50 52 ms",
            "chaos: stop: 400 messages, 1 faults, 6 s; longest gaps",
            "SKIPPED a failed sync: it needs strace: none",
            "test result: ok. 8 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 1 filtered out",
        ] {
            totals.take(line);
        }
        assert_eq!(totals, Totals { passed: 11, failed: 2, skipped: 1, messages: 2000, faults: 3 });
    }
}
