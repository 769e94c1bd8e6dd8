//! ARCHITECTURE.md shows the tree as it is: every source is on the map with a caption, and nothing else is.
//!
//! The map is the section `## Map`. A heading ``### `crates/seal/src/`: ...`` names a folder; the first cell of each
//! table row below it names files and folders inside, in backticks; the second cell says what they are for.

use std::collections::BTreeMap;

use super::{Finding, Tree};

const PAGE: &str = "ARCHITECTURE.md";
/// What can be read at one sitting.
const LINES_MAX: usize = 300;
/// How a name that must exist begins, wherever it stands on the page.
const ROOTS: &[&str] = &[".ci/", "crates/", "deploy/", "docs/", "testdata/", "xtask/"];

/// Compares the page with the tree.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let Some(page) = tree.file(PAGE) else {
        return vec![Finding::new(PAGE, 0, "the map of the project is missing")];
    };
    let mut findings = Vec::new();
    let count = page.text.lines().count();
    if count > LINES_MAX {
        findings.push(Finding::new(PAGE, 0, format!("{count} lines; {LINES_MAX} is the most")));
    }
    let mapped = mapped(&page.text, &mut findings);
    for (path, line) in &mapped {
        if !exists(tree, path) {
            findings.push(Finding::new(PAGE, *line, format!("`{path}` is on the map but not in the tree")));
        }
    }
    for file in tree.sources().filter(|file| file.path.starts_with("crates/")) {
        if !folders_and_self(&file.path).any(|path| mapped.contains_key(path)) {
            findings.push(Finding::new(
                PAGE,
                0,
                format!("`{}` is in the tree but not on the map", file.path),
            ));
        }
    }
    for (index, line) in page.text.lines().enumerate() {
        for name in in_backticks(line) {
            if names_nothing(tree, name) && !mapped.contains_key(name) {
                findings.push(Finding::new(PAGE, index + 1, format!("`{name}` does not exist")));
            }
        }
    }
    findings
}

/// Paths on the map and their lines. Folders end with `/`.
fn mapped(text: &str, findings: &mut Vec<Finding>) -> BTreeMap<String, usize> {
    let mut mapped = BTreeMap::new();
    let mut in_map = false;
    let mut folder = None;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("## ") {
            in_map = line == "## Map";
        } else if in_map && line.starts_with("### ") {
            folder = in_backticks(line).next().filter(|name| name.ends_with('/'));
        } else if in_map && let (Some(folder), Some(row)) = (folder, line.strip_prefix('|')) {
            let mut cells = row.split('|').map(str::trim);
            let names = cells.next().unwrap_or_default();
            let caption = cells.next().unwrap_or_default();
            for name in in_backticks(names) {
                if caption.is_empty() {
                    findings.push(Finding::new(PAGE, index + 1, format!("`{name}` has no caption")));
                }
                if mapped.insert(format!("{folder}{name}"), index + 1).is_some() {
                    findings.push(Finding::new(
                        PAGE,
                        index + 1,
                        format!("`{folder}{name}` is on the map twice"),
                    ));
                }
            }
        }
    }
    mapped
}

fn exists(tree: &Tree, path: &str) -> bool {
    if path.ends_with('/') { tree.is_folder(path) } else { tree.file(path).is_some() }
}

/// The file itself and the folders around it that lie below `src`: any of these on the map covers it.
fn folders_and_self(path: &str) -> impl Iterator<Item = &str> {
    let inside = path.find("/src/").map_or(path.len(), |at| at + "/src/".len());
    let folders =
        path.match_indices('/').map(|(at, _)| &path[..=at]).filter(move |folder| folder.len() > inside);
    folders.chain([path])
}

/// A path from the root, or the end of a path to a Rust file, that is not there.
fn names_nothing(tree: &Tree, name: &str) -> bool {
    if name.contains(['*', ' ', '<', '{']) {
        return false;
    }
    if ROOTS.iter().any(|root| name.starts_with(root)) {
        return !exists(tree, name) && !tree.is_folder(name);
    }
    let is_end_of =
        |path: &str| path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
    name.ends_with(".rs") && !tree.files().iter().any(|file| is_end_of(&file.path))
}

fn in_backticks(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::{super::lines, *};

    const SOURCES: &[(&str, &str)] = &[
        ("crates/seal/src/lib.rs", ""),
        ("crates/seal/src/seal.rs", ""),
        ("crates/sim/src/judge/loss.rs", ""),
        ("crates/sim/src/judge/order.rs", ""),
        ("docs/protocol.md", ""),
    ];

    const PAGE_TEXT: &str = "\
# Architecture

## Map

### `crates/seal/src/`: what only the ends read
| Path | What it is for |
| --- | --- |
| `lib.rs` | the door |
| `seal.rs` | closes and opens |

### `crates/sim/src/`: who judges
| Path | What it is for |
| --- | --- |
| `judge/` | one judge per file |

## Journeys
`seal.rs`, then `judge/loss.rs`; see `docs/protocol.md` and `docs/`.
";

    fn findings(page: &str) -> Vec<String> {
        let mut files = SOURCES.to_vec();
        files.push((PAGE, page));
        lines(&check(&Tree::of(&files)))
    }

    #[test]
    fn a_map_like_the_tree_is_fine() {
        assert_eq!(findings(PAGE_TEXT), [] as [&str; 0]);
    }

    #[test]
    fn a_source_that_is_not_on_the_map_is_found() {
        let page = PAGE_TEXT.replace("| `seal.rs` | closes and opens |\n", "");
        assert_eq!(
            findings(&page),
            ["ARCHITECTURE.md: `crates/seal/src/seal.rs` is in the tree but not on the map"]
        );
    }

    #[test]
    fn the_src_folder_as_a_whole_covers_nothing() {
        let page = PAGE_TEXT
            .replace("### `crates/seal/src/`", "### `crates/seal/`")
            .replace("| `lib.rs`", "| `src/`");
        assert!(findings(&page).iter().any(|line| line.contains("`crates/seal/src/lib.rs` is in the tree")));
    }

    #[test]
    fn a_mapped_path_that_is_gone_is_found() {
        let page = PAGE_TEXT.replace("| `judge/` |", "| `judge/` `trial.rs` |");
        assert_eq!(
            findings(&page)[0],
            "ARCHITECTURE.md:14: `crates/sim/src/trial.rs` is on the map but not in the tree"
        );
    }

    #[test]
    fn a_row_without_a_caption_and_a_row_twice_are_found() {
        let page =
            PAGE_TEXT.replace("| `seal.rs` | closes and opens |", "| `seal.rs` | |\n| `lib.rs` | again |");
        assert_eq!(
            findings(&page),
            [
                "ARCHITECTURE.md:9: `seal.rs` has no caption",
                "ARCHITECTURE.md:10: `crates/seal/src/lib.rs` is on the map twice"
            ]
        );
    }

    #[test]
    fn a_journey_through_a_file_that_is_gone_is_found() {
        let page = PAGE_TEXT.replace("`judge/loss.rs`", "`judge/lost.rs` to `docs/protocols.md`");
        assert_eq!(
            findings(&page),
            [
                "ARCHITECTURE.md:17: `judge/lost.rs` does not exist",
                "ARCHITECTURE.md:17: `docs/protocols.md` does not exist"
            ]
        );
    }

    #[test]
    fn a_page_that_is_missing_or_too_long_is_found() {
        assert_eq!(lines(&check(&Tree::of(&[]))), ["ARCHITECTURE.md: the map of the project is missing"]);
        let page = format!("{PAGE_TEXT}{}", "\n".repeat(300));
        assert_eq!(findings(&page), ["ARCHITECTURE.md: 317 lines; 300 is the most"]);
    }
}
