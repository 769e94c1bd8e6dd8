//! Wire numbers are for ever: no frame kind shares a number, revives a retired one, or is missing in docs/protocol.md.
//!
//! A retired number stays in that page on a line that says `retired`.

use std::collections::BTreeMap;

use super::{Finding, Tree, rust};

const CODE: &str = "crates/protocol/src/frame";
const PAGE: &str = "docs/protocol.md";
/// What opens a list of frame kinds in the code.
const DECLARATIONS: &[&str] = &["kinds! {", "pub enum FrameKind {"];

/// A frame kind as the code has it.
#[derive(Debug)]
struct Kind {
    path: String,
    line: usize,
    name: String,
    number: String,
}

/// Compares the frame kinds in the code with each other and with the page.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let sources = tree.sources().filter(|file| file.path.starts_with(CODE));
    let kinds: Vec<Kind> = sources.flat_map(|file| kinds(&file.path, &file.text)).collect();
    if kinds.is_empty() {
        return vec![Finding::new(
            CODE,
            0,
            "no frame kinds like `Name = 0x..` found; this check would see nothing",
        )];
    }
    let mut findings = Vec::new();
    let mut users: BTreeMap<&str, &str> = BTreeMap::new();
    for kind in &kinds {
        if let Some(other) = users.insert(&kind.number, &kind.name) {
            let what = format!("{} belongs to `{other}` already; `{}` needs its own", kind.number, kind.name);
            findings.push(Finding::new(&kind.path, kind.line, what));
        }
    }
    let Some(page) = tree.file(PAGE) else {
        findings.push(Finding::new(PAGE, 0, "the protocol is not documented"));
        return findings;
    };
    for kind in &kinds {
        let has = |line: &str, word: &str| {
            line.split(|c: char| !c.is_ascii_alphanumeric()).any(|found| found == word)
        };
        let mut lines =
            page.text.lines().enumerate().filter(|(_, line)| has(&line.replace("0X", "0x"), &kind.number));
        if let Some((index, _)) = lines.clone().find(|(_, line)| has(line, "retired")) {
            let what = format!("{} is retired, and used by `{}` in {}", kind.number, kind.name, kind.path);
            findings.push(Finding::new(PAGE, index + 1, what));
        } else if !lines.any(|(_, line)| has(line, &kind.name)) {
            findings.push(Finding::new(
                PAGE,
                0,
                format!("no line has both {} and `{}`", kind.number, kind.name),
            ));
        }
    }
    findings
}

/// Frame kinds declared in a file: `Name = 0x..` in `enum FrameKind {` or `kinds! {`.
fn kinds(path: &str, text: &str) -> Vec<Kind> {
    let code = rust::code_only(text);
    let mut kinds = Vec::new();
    let mut inside = false;
    for (index, line) in code.lines().enumerate() {
        let line = line.trim();
        if DECLARATIONS.contains(&line) {
            inside = true;
        } else if inside && line.starts_with('}') {
            inside = false;
        } else if inside
            && let Some((name, number)) = line.trim_end_matches([',', ';']).split_once(" = ")
            && let Some(digits) = number.strip_prefix("0x")
        {
            let number = format!("0x{}", digits.to_ascii_lowercase());
            kinds.push(Kind { path: path.to_owned(), line: index + 1, name: name.to_owned(), number });
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::{super::lines, *};

    const FRAME: &str = "crates/protocol/src/frame.rs";
    const ENUM: &str =
        "pub enum FrameKind {\n    /// Asks.\n    Ping = 0x40,\n    Pong = 0x41,\n}\nconst X: u8 = 0x40;\n";
    const TABLE: &str = "| `0x40` | Ping |\n| `0x41` | Pong |\n| `0x42` | retired, was GoAway |\n";

    fn findings(code: &str, page: &str) -> Vec<String> {
        lines(&check(&Tree::of(&[(FRAME, code), (PAGE, page)])))
    }

    #[test]
    fn numbers_of_their_own_that_are_documented_are_fine() {
        assert_eq!(findings(ENUM, TABLE), [] as [&str; 0]);
    }

    #[test]
    fn a_shared_number_is_found() {
        let code = ENUM.replace("0x41", "0x40");
        assert_eq!(
            findings(&code, "0x40 Ping Pong"),
            ["crates/protocol/src/frame.rs:4: 0x40 belongs to `Ping` already; `Pong` needs its own"]
        );
    }

    #[test]
    fn a_revived_number_is_found() {
        let code = ENUM.replace("}\nconst", "    Halt = 0x42,\n}\nconst");
        assert_eq!(
            findings(&code, TABLE),
            ["docs/protocol.md:3: 0x42 is retired, and used by `Halt` in crates/protocol/src/frame.rs"]
        );
    }

    #[test]
    fn an_undocumented_number_is_found() {
        assert_eq!(
            findings(ENUM, "| 0x40 | Ping |\n"),
            ["docs/protocol.md: no line has both 0x41 and `Pong`"]
        );
        assert_eq!(
            lines(&check(&Tree::of(&[(FRAME, ENUM)]))),
            ["docs/protocol.md: the protocol is not documented"]
        );
    }

    #[test]
    fn kinds_declared_through_the_macro_are_seen() {
        let code = "macro_rules! kinds {\n    ($name:ident = $number:literal;) => { enum FrameKind {} };\n}\n\
                    kinds! {\n    Ping = 0x40;\n    Pong = 0x40;\n}\n";
        assert_eq!(findings(code, TABLE).len(), 2, "shared, and 0x40 is not `Pong` on the page");
    }

    #[test]
    fn a_check_that_sees_nothing_says_so() {
        assert_eq!(findings("", TABLE).len(), 1);
    }
}
