//! What `check` and `fix` run, as data, so that a tidy check can compare it with `.ci/run`.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode, ExitStatus},
    time::Instant,
};

use crate::{instructions, lab, root, tidy};

/// One command line, as a person would type it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step(pub(crate) &'static str);

/// What continuous integration runs, in its order.
pub(crate) const CHECK: &[Step] = &[
    Step("cargo fmt --all --check"),
    Step("cargo clippy --locked --workspace --all-targets -- -D warnings"),
    Step("cargo build --release"),
    Step("cargo test --workspace"),
    Step("cargo x tidy"),
    Step("cargo x sim --seeds 150"),
    Step("cargo x masks"),
    Step("cargo x instructions"),
    Step("cargo x fuzz --seconds 1"),
    Step("cargo x lab --fault cut --seconds 12"),
];

/// What a machine can repair. Formatting comes last, because the lints' suggestions are not formatted.
pub(crate) const FIX: &[Step] = &[
    Step("cargo clippy --fix --allow-dirty --allow-staged --workspace --all-targets"),
    Step("cargo fmt --all"),
];

/// Runs the steps until one fails; that one's failure is the answer.
pub(crate) fn run_all(steps: &[Step]) -> ExitCode {
    for step in steps {
        println!("==> {}", step.0);
        let started = Instant::now();
        let code = run(*step);
        if code != ExitCode::SUCCESS {
            println!("==> failed: {}", step.0);
            return code;
        }
        println!("==> ok, {} s", started.elapsed().as_secs());
    }
    ExitCode::SUCCESS
}

/// Runs one step. Our own commands run in this process instead of through `cargo x` again.
fn run(step: Step) -> ExitCode {
    let words: Vec<&str> = step.0.split_whitespace().collect();
    match words.as_slice() {
        ["cargo", "x", "tidy"] => tidy(),
        ["cargo", "x", "sim", rest @ ..] => simulate(rest),
        ["cargo", "x", "masks", rest @ ..] => masks(rest),
        ["cargo", "x", "instructions", rest @ ..] => instructions::run(rest),
        ["cargo", "x", "fuzz", rest @ ..] => fuzz(rest),
        ["cargo", "x", "lab", rest @ ..] => lab::run(rest),
        ["cargo", rest @ ..] => cargo(rest),
        _ => unreachable!("every step is a cargo command: {step:?}"),
    }
}

/// Reads the tree and prints what is wrong with it.
pub(crate) fn tidy() -> ExitCode {
    let tree = match tidy::Tree::read(&root()) {
        Ok(tree) => tree,
        Err(error) => {
            eprintln!("cannot read the tree: {error}");
            return ExitCode::FAILURE;
        }
    };
    let findings = tidy::check_all(&tree);
    for finding in &findings {
        println!("{finding}");
    }
    println!("{} files, {} findings", tree.files().len(), findings.len());
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the simulator with `arguments`, and ends as it ends.
pub(crate) fn simulate(arguments: &[&str]) -> ExitCode {
    let mut words = vec!["run", "--release", "--quiet", "-p", "swarmmq-sim", "--"];
    words.extend(arguments);
    cargo(&words)
}

/// Cuts every set of links out of a simulated cluster of five, and ends as that ends.
pub(crate) fn masks(arguments: &[&str]) -> ExitCode {
    let mut words = vec!["--masks"];
    words.extend(arguments);
    simulate(&words)
}

/// Where builds lie.
pub(crate) fn target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    root().join(target)
}

/// Runs the fuzzer, which is a workspace of its own, and ends as it ends. Builds are shared with the product's.
pub(crate) fn fuzz(arguments: &[&str]) -> ExitCode {
    let target = target().to_string_lossy().into_owned();
    let mut words = vec!["run", "--release", "--quiet", "--locked", "--manifest-path", "fuzz/Cargo.toml"];
    words.extend(["--target-dir", &target, "--"]);
    words.extend(arguments);
    cargo(&words)
}

/// Runs cargo in the project's root, and ends as it ends.
pub(crate) fn cargo(words: &[&str]) -> ExitCode {
    // The cargo that runs us, so that a pinned or overridden toolchain stays the same all the way down.
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    match Command::new(program).args(words).current_dir(root()).status() {
        Ok(status) => exit_code(status),
        Err(error) => {
            eprintln!("cannot run cargo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The same code; a process ended by a signal has none, and counts as a plain failure.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}
