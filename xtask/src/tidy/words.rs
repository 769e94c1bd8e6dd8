//! Words that must not stand in the tree: unfinished code, silenced tests, names that say nothing, one machine's paths.

use super::{Finding, SourceFile, Tree, rust};

/// Code that was left for later, or for the author's eyes.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!", "#[ignore"];
/// Names under which anything can be put and nothing is found.
const EMPTY_NAMES: &[&str] = &["common", "helper", "helpers", "misc", "types", "util", "utils"];
/// First folders of paths that exist on one machine only.
const MACHINE_ROOTS: &[&str] = &["home", "root", "work"];

/// Reports forbidden words.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files() {
        if file.path.ends_with(".rs") {
            code(file, &mut findings);
        }
        machine_paths(file, &mut findings);
        if let Some(name) = empty_name(&file.path) {
            findings.push(Finding::new(
                &file.path,
                0,
                format!("`{name}` says nothing; name it for what is inside"),
            ));
        }
    }
    findings
}

fn code(file: &SourceFile, findings: &mut Vec<Finding>) {
    let in_tests = file.path.split('/').any(|part| part == "tests");
    for (index, line) in rust::code_only(&file.text).lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| stands_in(word, line)) {
            findings.push(Finding::new(&file.path, index + 1, format!("`{word}` must not stay")));
        }
        if in_tests && line.contains("thread::sleep") {
            let what = "a test waits for a condition with a deadline, it does not sleep";
            findings.push(Finding::new(&file.path, index + 1, what));
        }
    }
}

/// Whether `word` stands in `line` on its own, not as the end of a longer word.
fn stands_in(word: &str, line: &str) -> bool {
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

fn machine_paths(file: &SourceFile, findings: &mut Vec<Finding>) {
    for (index, line) in file.text.lines().enumerate() {
        for root in MACHINE_ROOTS {
            let is_absolute =
                |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-~)}".contains(c));
            if line.match_indices(&format!("/{root}/")).any(|(at, _)| is_absolute(at)) {
                findings.push(Finding::new(
                    &file.path,
                    index + 1,
                    format!("a path below `/{root}` exists on one machine only"),
                ));
            }
        }
    }
}

/// A folder or module of a crate with a name that says nothing.
fn empty_name(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("crates/")?;
    let named = |part: &str| EMPTY_NAMES.contains(&part.strip_suffix(".rs").unwrap_or(part));
    inside.split('/').find(|part| named(part))
}

#[cfg(test)]
mod tests {
    use super::{super::lines, *};

    fn findings(path: &str, text: &str) -> Vec<String> {
        lines(&check(&Tree::of(&[(path, text)])))
    }

    #[test]
    fn finished_code_is_fine() {
        let text = "//! Not todo!() here.\nmy_todo!(); let text = \"dbg!\"; // unimplemented!\nlet url = \"https://a.example/home/x\";";
        assert_eq!(findings("crates/engine/src/lib.rs", text), [] as [&str; 0]);
    }

    #[test]
    fn unfinished_code_is_found() {
        for bad in [
            "todo!()",
            "unimplemented!(\"x\")",
            "dbg!(x)",
            "#[ignore]",
            "#[ignore = \"slow\"]",
            "std::todo!()",
        ] {
            assert_eq!(findings("crates/engine/src/lib.rs", bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_sleeping_test_is_found() {
        let sleeps = "fn main() { std::thread::sleep(PAUSE); }";
        assert_eq!(findings("crates/cli/tests/demo.rs", sleeps).len(), 1);
        assert_eq!(findings("crates/cli/src/demo.rs", sleeps), [] as [&str; 0]);
    }

    #[test]
    fn names_that_say_nothing_are_found() {
        for bad in [
            "crates/util/src/lib.rs",
            "crates/engine/src/types.rs",
            "crates/engine/src/common/mod.rs",
            "crates/cli/tests/helpers/mod.rs",
        ] {
            assert_eq!(findings(bad, "").len(), 1, "{bad}");
        }
        assert_eq!(findings("crates/engine/src/commonplace.rs", ""), [] as [&str; 0]);
    }

    #[test]
    fn one_machines_paths_are_found() {
        // Put together here, so that this file passes its own check.
        for root in MACHINE_ROOTS {
            for line in [format!("cd /{root}/x"), format!("PATH=/{root}/bin"), format!("(/{root}/y)")] {
                assert_eq!(findings("docs/page.md", &line).len(), 1, "{line}");
            }
            assert_eq!(findings("docs/page.md", &format!("at/{root}/x and ../{root}/y")), [] as [&str; 0]);
        }
    }
}
