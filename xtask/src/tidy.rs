//! What the compiler does not check: reads every text file of the project and reports what breaks the house rules.
//!
//! Each check is a pure function from the tree to findings, one file each, with tests that show it failing.
//! Absent here: repairing. A finding is for a person to judge.

mod arrows;
mod ci;
mod decisions;
mod links;
mod map;
mod purity;
mod rust;
mod shape;
mod wire;
mod words;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// Folders that hold no source: build output, version control, local clusters.
const FOLDERS_SKIPPED: &[&str] = &["target", ".git", ".swarmmq"];

/// Something that breaks a rule, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Relative to the root.
    path: String,
    /// From 1; 0 means the file as a whole.
    line: usize,
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

/// One text file.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    /// Relative to the root, with `/` between the parts.
    path: String,
    text: String,
}

/// Every text file of the project, by path.
#[derive(Clone, Debug)]
pub(crate) struct Tree(Vec<SourceFile>);

impl Tree {
    /// Reads all text files below `root`. Files that are not UTF-8 are left out: no check reads bytes.
    pub(crate) fn read(root: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(root.join(&folder))? {
                let entry = entry?;
                let path = folder.join(entry.file_name());
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    if !FOLDERS_SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                        folders.push(path);
                    }
                } else if kind.is_file()
                    && let (Some(path), Ok(text)) =
                        (path.to_str(), String::from_utf8(fs::read(entry.path())?))
                {
                    files.push(SourceFile { path: path.to_owned(), text });
                }
            }
        }
        Ok(Self::from_files(files))
    }

    fn from_files(mut files: Vec<SourceFile>) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self(files)
    }

    /// All files, by path.
    pub(crate) fn files(&self) -> &[SourceFile] {
        &self.0
    }

    fn file(&self, path: &str) -> Option<&SourceFile> {
        self.0.iter().find(|file| file.path == path)
    }

    fn is_folder(&self, path: &str) -> bool {
        let inside = format!("{}/", path.trim_end_matches('/'));
        self.0.iter().any(|file| file.path.starts_with(&inside))
    }

    /// Files whose path ends with `suffix`.
    fn with_suffix<'a>(&'a self, suffix: &'a str) -> impl Iterator<Item = &'a SourceFile> {
        self.0.iter().filter(move |file| file.path.ends_with(suffix))
    }

    /// Rust files that make up crates and tools: `crates/*/src/**` and `xtask/src/**`.
    fn sources(&self) -> impl Iterator<Item = &SourceFile> {
        self.with_suffix(".rs").filter(|file| file.crate_name().is_some() && file.is_in_src())
    }
}

impl SourceFile {
    /// Folder name of the crate that the file belongs to: `protocol`, `engine`, ..., `xtask`.
    fn crate_name(&self) -> Option<&str> {
        let mut parts = self.path.split('/');
        match parts.next()? {
            "xtask" => Some("xtask"),
            "crates" => parts.next(),
            _ => None,
        }
    }

    fn is_in_src(&self) -> bool {
        let root_parts = if self.path.starts_with("crates/") { 2 } else { 1 };
        self.path.split('/').nth(root_parts) == Some("src")
    }
}

/// Runs every check. The order is by check, then as the check found it.
pub(crate) fn check_all(tree: &Tree) -> Vec<Finding> {
    let checks: &[fn(&Tree) -> Vec<Finding>] = &[
        arrows::check,
        purity::check,
        shape::check,
        map::check,
        links::check,
        decisions::check,
        wire::check,
        words::check,
        ci::check,
    ];
    checks.iter().flat_map(|check| check(tree)).collect()
}

#[cfg(test)]
impl Tree {
    /// A tree from paths and texts.
    fn of(files: &[(&str, &str)]) -> Self {
        Self::from_files(
            files
                .iter()
                .map(|(path, text)| SourceFile { path: (*path).to_owned(), text: (*text).to_owned() })
                .collect(),
        )
    }
}

/// Findings as lines, for comparing in tests.
#[cfg(test)]
fn lines(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_is_tidy() {
        let tree = Tree::read(&crate::root()).expect("the tree can be read");
        let findings = check_all(&tree);
        assert!(findings.is_empty(), "run `cargo x tidy`:\n{}", lines(&findings).join("\n"));
    }

    #[test]
    fn the_tree_is_read_without_build_output() {
        let tree = Tree::read(&crate::root()).expect("the tree can be read");
        assert!(tree.file("xtask/src/tidy.rs").is_some());
        assert!(tree.is_folder("crates/protocol/src"));
        assert!(!tree.is_folder("target"));
        assert!(!tree.is_folder(".git"));
    }

    #[test]
    fn a_file_knows_its_crate() {
        let tree = Tree::of(&[
            ("crates/engine/src/log/mod.rs", ""),
            ("crates/cli/tests/demo.rs", ""),
            ("xtask/src/main.rs", ""),
        ]);
        let known: Vec<_> = tree.files().iter().map(|file| (file.crate_name(), file.is_in_src())).collect();
        assert_eq!(known, [(Some("cli"), false), (Some("engine"), true), (Some("xtask"), true)]);
    }
}
