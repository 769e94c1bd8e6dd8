//! Every relative link in every page leads somewhere, to the heading it names.

use super::{Finding, Tree};

/// Reports relative links to files or headings that do not exist.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.with_suffix(".md") {
        for (line, target) in links(&file.text) {
            if let Some(what) = broken(tree, &file.path, &target) {
                findings.push(Finding::new(&file.path, line, what));
            }
        }
    }
    findings
}

fn broken(tree: &Tree, from: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, heading) =
        target.split_once('#').map_or((target, None), |(path, heading)| (path, Some(heading)));
    let path = if path.is_empty() { Some(from.to_owned()) } else { resolve(from, path) };
    let Some(path) = path else {
        return Some(format!("link `{target}` leaves the project"));
    };
    if !(path.is_empty() || tree.file(&path).is_some() || tree.is_folder(&path)) {
        return Some(format!("link `{target}` leads nowhere"));
    }
    let (page, heading) = (tree.file(&path)?, heading?);
    let known = !page.path.ends_with(".md") || headings(&page.text).iter().any(|known| known == heading);
    (!known).then(|| format!("link `{target}`: `{path}` has no such heading"))
}

/// `path` as seen from the file `from`, from the root; none if it climbs above the root.
fn resolve(from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Targets of `[text](target)` and `[name]: target` outside code, and their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (line, prose) in prose(text) {
        for after in prose.split("](").skip(1) {
            let target = after.split(')').next().unwrap_or_default();
            // What follows a blank is a title.
            links.push((line, target.split_whitespace().next().unwrap_or_default().to_owned()));
        }
        if let Some((_, target)) = prose.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
            links.push((line, target.trim().to_owned()));
        }
    }
    links
}

/// Anchors of a page's headings: lower case, blanks as `-`, other marks dropped, repeated ones counted.
fn headings(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let is_prose = fences(text).nth(index) == Some(false);
        let Some(title) = line.strip_prefix('#').filter(|_| is_prose) else { continue };
        let kept = title.trim_start_matches('#').trim().to_lowercase();
        let anchor: String = kept
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let is_repeat = |known: &&String| {
            **known == anchor || known.strip_prefix(&format!("{anchor}-")).is_some_and(is_number)
        };
        let repeats = anchors.iter().filter(is_repeat).count();
        anchors.push(if repeats == 0 { anchor } else { format!("{anchor}-{repeats}") });
    }
    anchors
}

fn is_number(text: &str) -> bool {
    text.parse::<u32>().is_ok()
}

/// Lines outside fenced blocks, without inline code.
fn prose(text: &str) -> Vec<(usize, String)> {
    let lines = text.lines().zip(fences(text)).enumerate();
    lines
        .filter(|(_, (_, fenced))| !fenced)
        .map(|(index, (line, _))| (index + 1, line.split('`').step_by(2).collect::<Vec<_>>().join(" ")))
        .collect()
}

/// For each line, whether it belongs to a fenced block.
fn fences(text: &str) -> impl Iterator<Item = bool> {
    let mut open = false;
    text.lines().map(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        open ^= is_fence;
        open || is_fence
    })
}

#[cfg(test)]
mod tests {
    use super::{super::lines, *};

    fn findings(page: &str) -> Vec<String> {
        let files = [
            ("docs/page.md", page),
            ("docs/design/log.md", "# The log\n## Torn tails, and rot\n"),
            ("LICENSE", ""),
        ];
        lines(&check(&Tree::of(&files)))
    }

    #[test]
    fn links_that_lead_somewhere_are_fine() {
        let page = "# Page\n[a](design/log.md) [b](../LICENSE \"title\") [c](./design/) [d](https://example.com/x) [e](#page)\n\
                    [f](design/log.md#torn-tails-and-rot) [g](..)\n[h]: design/log.md\n\
                    `[code](nowhere.md)`\n```text\n[fenced](nowhere.md)\n```\n";
        assert_eq!(findings(page), [] as [&str; 0]);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        assert_eq!(
            findings(
                "[a](design/lot.md)\n\n[b](../../else.md) [c](#nothing)\n[d](design/log.md#torn)\n[e]: gone.md\n"
            ),
            [
                "docs/page.md:1: link `design/lot.md` leads nowhere",
                "docs/page.md:3: link `../../else.md` leaves the project",
                "docs/page.md:3: link `#nothing`: `docs/page.md` has no such heading",
                "docs/page.md:4: link `design/log.md#torn`: `docs/design/log.md` has no such heading",
                "docs/page.md:5: link `gone.md` leads nowhere",
            ]
        );
    }

    #[test]
    fn repeated_headings_are_counted() {
        assert_eq!(headings("# A b\n## A b\n```\n# not one\n```\n## C: `d`!\n"), ["a-b", "a-b-1", "c-d"]);
    }
}
