//! `cargo x`: the one door to everything that is run on this project besides `cargo` itself.
//!
//! `check` is what continuous integration runs and never writes; `fix` repairs what a machine can repair; `tidy` reads
//! the tree and reports what the compiler does not; `sim` runs the simulator; `chaos` does to real
//! nodes what the simulator does to simulated ones; `lab` does it to the network between them; `attack` and `fuzz` are hostile; `bars` measures a node on this machine.

#![expect(clippy::print_stdout, reason = "a command line tool answers on standard output")]

mod attack;
mod bars;
mod chaos;
mod instructions;
mod lab;
mod step;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Usage or configuration: nothing was run.
const EXIT_USAGE: u8 = 2;

const USAGE: &str = "\
usage: cargo x COMMAND

commands:
  check       everything continuous integration runs, in its order; never writes to the tree
  fix         formats, and applies the lints' own suggestions
  tidy        reads the tree: arrows, purity, sizes, map, links, decisions, wire numbers, words
  sim ARGS    runs the simulator in a release build, e.g. `cargo x sim --seeds 200`
  masks       every set of links of five simulated nodes: who must be served is, and nobody else
  chaos ARGS  kills, stops and damages real nodes of a release build under load; `--long` for more of it
  lab ARGS    cuts, slows and isolates real nodes in network namespaces, under load; as root
  attack ARGS hostile clients and networks against real nodes of a release build
  fuzz ARGS   hostile bytes against every decoder, hostile histories against a node, e.g. `cargo x fuzz --seconds 60`
  instructions  counts the instructions of hot paths with valgrind, and compares; `--record` keeps the counts
  bars ARGS   measures a release build on this machine against its bars; minutes, by hand
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["check"] => step::run_all(step::CHECK),
        ["fix"] => step::run_all(step::FIX),
        ["tidy"] => step::tidy(),
        ["sim", rest @ ..] => step::simulate(rest),
        ["masks", rest @ ..] => step::masks(rest),
        ["instructions", rest @ ..] => instructions::run(rest),
        ["chaos", "--help" | "-h"] => {
            print!("{}", chaos::USAGE);
            ExitCode::SUCCESS
        }
        ["chaos", rest @ ..] => chaos::run(rest),
        ["lab", "--help" | "-h"] => {
            print!("{}", lab::USAGE);
            ExitCode::SUCCESS
        }
        ["lab", rest @ ..] => lab::run(rest),
        ["attack", "--help" | "-h"] => {
            print!("{}", attack::USAGE);
            ExitCode::SUCCESS
        }
        ["attack", rest @ ..] => attack::run(rest),
        ["fuzz", rest @ ..] => step::fuzz(rest),
        ["bars", "--help" | "-h"] => {
            print!("{}", bars::USAGE);
            ExitCode::SUCCESS
        }
        ["bars", rest @ ..] => bars::run(rest),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        [] => usage_error("no command given"),
        [command @ ("check" | "fix" | "tidy"), ..] => usage_error(&format!("`{command}` takes no arguments")),
        [command, ..] => usage_error(&format!("no command `{command}`")),
    }
}

fn usage_error(what: &str) -> ExitCode {
    eprint!("{what}\n\n{USAGE}");
    ExitCode::from(EXIT_USAGE)
}

/// The folder with the workspace's `Cargo.toml`.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("xtask lies one folder below the root").to_owned()
}
