//! One list of steps: continuous integration runs what `cargo x check` runs, and the README's commands are among it.

use super::{Finding, Tree};
use crate::step;

const SCRIPT: &str = ".ci/run";
const README: &str = "README.md";
/// The commands a newcomer is told first.
const FIRST_COMMANDS: [&str; 2] = ["cargo run --release -- demo", "cargo test --workspace"];

/// Compares the script's `step` lines with [`step::CHECK`], and the README with its two commands.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let script = tree.file(SCRIPT).map_or("", |file| &file.text);
    let has: Vec<(usize, &str)> = script
        .lines()
        .enumerate()
        .filter_map(|(index, line)| Some((index + 1, line.trim().strip_prefix("step ")?)))
        .collect();
    for (position, expected) in step::CHECK.iter().enumerate() {
        match has.get(position) {
            Some((_, found)) if *found == expected.0 => {}
            Some((line, found)) => {
                findings.push(Finding::new(
                    SCRIPT,
                    *line,
                    format!("has `{found}` where `cargo x check` has `{}`", expected.0),
                ));
            }
            None => findings.push(Finding::new(SCRIPT, 0, format!("lacks `step {}`", expected.0))),
        }
    }
    for (line, found) in has.iter().skip(step::CHECK.len()) {
        findings.push(Finding::new(SCRIPT, *line, format!("has `{found}`, which `cargo x check` lacks")));
    }
    let readme = tree.file(README).map_or("", |file| &file.text);
    for command in FIRST_COMMANDS.iter().filter(|command| !readme.contains(**command)) {
        findings.push(Finding::new(README, 0, format!("does not name `{command}`")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::lines, *};

    fn findings(script: &str) -> Vec<String> {
        lines(&check(&Tree::of(&[(SCRIPT, script), (README, &FIRST_COMMANDS.join("\n"))])))
    }

    fn script() -> String {
        let steps: Vec<String> = step::CHECK.iter().map(|step| format!("step {}", step.0)).collect();
        format!("#!/usr/bin/env bash\nstep() {{\n  \"$@\"\n}}\n{}\n", steps.join("\n"))
    }

    #[test]
    fn the_same_steps_in_the_same_order_are_fine() {
        assert_eq!(findings(&script()), [] as [&str; 0]);
    }

    #[test]
    fn a_missing_a_changed_and_an_extra_step_are_found() {
        let last = step::CHECK.last().expect("there are steps").0;
        let expected = [format!("{SCRIPT}: lacks `step {last}`")];
        assert_eq!(findings(&script().replace(&format!("step {last}\n"), "")), expected);
        assert_eq!(findings(&script().replace("test --workspace", "test")).len(), 1);
        assert_eq!(findings(&format!("{}step cargo bench\n", script())).len(), 1);
    }

    #[test]
    fn a_readme_without_the_commands_is_found() {
        let found = lines(&check(&Tree::of(&[(SCRIPT, &script()), (README, "# SwarmMQ")])));
        assert_eq!(found, FIRST_COMMANDS.map(|command| format!("{README}: does not name `{command}`")));
    }
}
