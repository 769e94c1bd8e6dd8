//! `cargo x attack`: hostile clients and networks against real nodes of a release build. The stories are tests of `crates/cli`, which
//! every run of the tests tells too; here they are told one after the other, and what attacks cost others is measured and judged.

use std::{process::ExitCode, time::Instant};

use crate::chaos;

pub(crate) const USAGE: &str = "\
usage: cargo x attack [NAME]

  NAME  tells the stories whose names contain this

Captures need root and tcpdump. A story without what it needs says SKIPPED. Judges latencies: run it on a machine that does
nothing else.
";

/// Where the stories are.
const FILES: &[&str] = &["attack_clients", "attack_network", "canary"];

/// The command. Fails if a story does.
pub(crate) fn run(names: &[&str]) -> ExitCode {
    if names.len() > 1 || names.iter().any(|name| name.starts_with('-')) {
        eprint!("no such options: {names:?}\n\n{USAGE}");
        return ExitCode::from(crate::EXIT_USAGE);
    }
    let began = Instant::now();
    let Some((totals, ended_well)) = chaos::tell(FILES, names, ("SWARMMQ_ATTACK", "measure")) else {
        return ExitCode::FAILURE;
    };
    println!("{} skipped, {} s", totals.skipped, began.elapsed().as_secs());
    totals.verdict(ended_well)
}
