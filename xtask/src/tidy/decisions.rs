//! Every decision page has its own number, says it, and is listed in the index.

use std::collections::BTreeMap;

use super::{Finding, Tree};

const FOLDER: &str = "docs/decisions/";
const INDEX: &str = "docs/decisions/README.md";

/// Reports decision pages that are numbered twice, titled wrongly or missing in the index.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let index = tree.file(INDEX).map_or("", |file| &file.text);
    let mut numbers: BTreeMap<&str, &str> = BTreeMap::new();
    for file in tree.with_suffix(".md") {
        let Some(name) = file.path.strip_prefix(FOLDER).filter(|name| *name != "README.md") else { continue };
        let Some(number) =
            name.split_once('-').map(|(number, _)| number).filter(|number| is_decision_number(number))
        else {
            findings.push(Finding::new(&file.path, 0, "a decision page is named NNNN-what-was-decided.md"));
            continue;
        };
        if let Some(other) = numbers.insert(number, name) {
            findings.push(Finding::new(
                &file.path,
                0,
                format!("number {number} belongs to `{other}` already"),
            ));
        }
        if !file.text.starts_with(&format!("# {number}: ")) {
            findings.push(Finding::new(
                &file.path,
                1,
                format!("the page opens with `# {number}: ` and its title"),
            ));
        }
        if !index.contains(&format!("]({name})")) {
            findings.push(Finding::new(INDEX, 0, format!("`{name}` is not listed")));
        }
    }
    findings
}

fn is_decision_number(text: &str) -> bool {
    text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::{super::lines, *};

    #[test]
    fn listed_pages_with_their_own_numbers_are_fine() {
        let files = [
            (INDEX, "[0001](0001-record-decisions.md) [0002](0002-log.md)"),
            ("docs/decisions/0001-record-decisions.md", "# 0001: record decisions\n"),
            ("docs/decisions/0002-log.md", "# 0002: the log\n"),
            ("docs/design/log.md", "# The log\n"),
        ];
        assert_eq!(lines(&check(&Tree::of(&files))), [] as [&str; 0]);
    }

    #[test]
    fn each_mistake_is_found() {
        let files = [
            (INDEX, "[0001](0001-log.md) [0001](0001-wire.md)"),
            ("docs/decisions/0001-log.md", "# The log\n"),
            ("docs/decisions/0001-wire.md", "# 0001: wire numbers\n"),
            ("docs/decisions/0002-ring.md", "# 0002: the ring\n"),
            ("docs/decisions/notes.md", "# Notes\n"),
        ];
        assert_eq!(
            lines(&check(&Tree::of(&files))),
            [
                "docs/decisions/0001-log.md:1: the page opens with `# 0001: ` and its title",
                "docs/decisions/0001-wire.md: number 0001 belongs to `0001-log.md` already",
                "docs/decisions/README.md: `0002-ring.md` is not listed",
                "docs/decisions/notes.md: a decision page is named NNNN-what-was-decided.md",
            ]
        );
    }
}
