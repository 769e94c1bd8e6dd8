//! Files that a person can take in: each says first what it is for, and none grows without a reason.

use std::collections::BTreeMap;

use super::{Finding, Tree};

/// From here on a file needs a reason in [`EXCEPTIONS`].
const LINES_MAX: usize = 800;
/// From here on no reason helps.
const LINES_MAX_EVER: usize = 1200;
/// `path: reason` per line; `#` begins a comment.
const EXCEPTIONS: &str = "xtask/size-exceptions.txt";

/// Reports sources without an opening paragraph, files that are too long, and exceptions that nothing needs.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.sources() {
        match file.text.lines().next().map(|line| line.strip_prefix("//!")) {
            Some(Some(opening)) if !opening.trim().is_empty() => {
                if opening.trim().trim_end_matches('.').eq_ignore_ascii_case("placeholder") {
                    findings.push(Finding::new(&file.path, 1, "the opening paragraph says nothing"));
                }
            }
            _ => findings.push(Finding::new(&file.path, 1, "a file opens with `//!` and what it is for")),
        }
    }
    sizes(tree, &mut findings);
    findings
}

fn sizes(tree: &Tree, findings: &mut Vec<Finding>) {
    let mut exceptions = exceptions(tree, findings);
    for file in tree.with_suffix(".rs") {
        let count = file.text.lines().count();
        if count <= LINES_MAX {
            continue;
        }
        let excepted = exceptions.remove(file.path.as_str()).is_some();
        if count > LINES_MAX_EVER {
            findings.push(Finding::new(
                &file.path,
                0,
                format!("{count} lines; above {LINES_MAX_EVER} it must be split"),
            ));
        } else if !excepted {
            let what = format!(
                "{count} lines; above {LINES_MAX} it is split, or listed in {EXCEPTIONS} with a reason"
            );
            findings.push(Finding::new(&file.path, 0, what));
        }
    }
    for (path, line) in exceptions {
        findings.push(Finding::new(
            EXCEPTIONS,
            line,
            format!("`{path}` needs no exception; remove the line"),
        ));
    }
}

/// Excepted paths and their lines.
fn exceptions<'a>(tree: &'a Tree, findings: &mut Vec<Finding>) -> BTreeMap<&'a str, usize> {
    let mut exceptions = BTreeMap::new();
    let text = tree.file(EXCEPTIONS).map_or("", |file| &file.text);
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once(':') {
            Some((path, reason)) if !reason.trim().is_empty() => {
                exceptions.insert(path.trim(), index + 1);
            }
            _ => findings.push(Finding::new(EXCEPTIONS, index + 1, "an exception reads `path: reason`")),
        }
    }
    exceptions
}

#[cfg(test)]
mod tests {
    use super::{super::lines, *};

    fn long(count: usize) -> String {
        format!("//! Long.\n{}", "\n".repeat(count - 1))
    }

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        lines(&check(&Tree::of(files)))
    }

    #[test]
    fn a_file_that_says_what_it_is_for_is_fine() {
        assert_eq!(
            findings(&[("crates/seal/src/lib.rs", "//! Seals.\n"), ("crates/cli/tests/demo.rs", "")]),
            [] as [&str; 0]
        );
    }

    #[test]
    fn a_file_without_an_opening_is_found() {
        for bad in ["", "use std::fmt;\n//! Too late.\n", "//!\n", "//! Placeholder.\n"] {
            assert_eq!(findings(&[("crates/seal/src/lib.rs", bad)]).len(), 1, "{bad:?}");
        }
    }

    #[test]
    fn a_long_file_needs_a_reason_and_a_very_long_one_has_none() {
        let path = "crates/engine/src/shard/mod.rs";
        let reason = format!("# path: reason\n{path}: the composer, split next month\n");
        assert_eq!(findings(&[(path, &long(800))]), [] as [&str; 0]);
        assert_eq!(
            findings(&[(path, &long(801))]),
            [format!("{path}: 801 lines; above 800 it is split, or listed in {EXCEPTIONS} with a reason")]
        );
        assert_eq!(findings(&[(path, &long(801)), (EXCEPTIONS, &reason)]), [] as [&str; 0]);
        assert_eq!(
            findings(&[(path, &long(1201)), (EXCEPTIONS, &reason)]),
            [format!("{path}: 1201 lines; above 1200 it must be split")]
        );
    }

    #[test]
    fn an_exception_without_a_reason_or_without_need_is_found() {
        let path = "crates/engine/src/shard/mod.rs";
        let exceptions = format!("{path}:\n{path}: it was long once\n");
        assert_eq!(
            findings(&[(path, &long(10)), (EXCEPTIONS, &exceptions)]),
            [
                format!("{EXCEPTIONS}:1: an exception reads `path: reason`"),
                format!("{EXCEPTIONS}:2: `{path}` needs no exception; remove the line"),
            ]
        );
    }
}
