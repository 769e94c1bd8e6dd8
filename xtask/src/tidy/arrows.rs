//! Which crate may know which: the arrows of ARCHITECTURE.md, read from the manifests.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Tree};

/// What one crate may and may not depend on.
struct Row {
    folder: &'static str,
    /// Crates of ours that it may name, in tests too.
    ours: &'static [&'static str],
    /// Foreign crates that it may never reach, neither itself nor through one of ours.
    never: &'static [&'static str],
}

const ROWS: &[Row] = &[
    Row {
        folder: "protocol",
        ours: &[],
        never: &[
            "axum",
            "getrandom",
            "mio",
            "rand",
            "rustix",
            "serde",
            "serde_json",
            "signal-hook",
            "tokio",
            "toml",
            "tracing",
        ],
    },
    Row { folder: "seal", ours: &["protocol"], never: &["axum", "mio", "tokio", "tracing"] },
    Row {
        folder: "engine",
        ours: &["protocol"],
        never: &[
            "axum",
            "getrandom",
            "mio",
            "rand",
            "rustix",
            "serde",
            "serde_json",
            "signal-hook",
            "tokio",
            "toml",
            "tracing",
            "tracing-subscriber",
        ],
    },
    Row { folder: "tls", ours: &["protocol"], never: &["axum", "mio", "ring", "serde", "tokio", "tracing"] },
    Row { folder: "server", ours: &["engine", "protocol", "tls"], never: &[] },
    Row { folder: "client", ours: &["protocol", "seal", "tls"], never: &["raft"] },
    Row { folder: "cli", ours: &["client", "protocol", "seal", "server", "tls"], never: &[] },
    Row {
        folder: "sim",
        ours: &["engine", "protocol", "seal"],
        never: &["axum", "getrandom", "mio", "rand", "rustix", "signal-hook", "tempfile", "tokio", "tracing"],
    },
];

/// The manifest of one crate, as far as arrows go.
#[derive(Debug, Default)]
struct Manifest {
    /// Line of each dependency of the product and its build.
    product: BTreeMap<String, usize>,
    /// Line of each dependency of the tests alone.
    tests: BTreeMap<String, usize>,
}

/// Reports every arrow that the table does not draw.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let real_names = tree.file("Cargo.toml").map(|root| workspace_renames(&root.text)).unwrap_or_default();
    let mut manifests = BTreeMap::new();
    for file in tree.with_suffix("/Cargo.toml") {
        if file.path.matches('/').count() == if file.path.starts_with("crates/") { 2 } else { 1 }
            && let Some(folder) = file.crate_name()
        {
            manifests.insert(folder.to_owned(), (file.path.clone(), manifest(&file.text, &real_names)));
        }
    }
    for (folder, (path, manifest)) in &manifests {
        if folder == "xtask" {
            // It builds before everything else and must not wait for anything.
            let all = manifest.product.iter().chain(&manifest.tests);
            findings.extend(all.map(|(name, line)| {
                Finding::new(path, *line, format!("xtask needs `{name}`; it may need nothing"))
            }));
            continue;
        }
        let Some(row) = ROWS.iter().find(|row| row.folder == folder) else {
            findings.push(Finding::new(path, 0, format!("crate `{folder}` has no row in the arrow table")));
            continue;
        };
        direct(row, path, manifest, &mut findings);
        reached(row, path, &manifests, &mut findings);
    }
    findings
}

/// Arrows drawn by the crate itself.
fn direct(row: &Row, path: &str, manifest: &Manifest, findings: &mut Vec<Finding>) {
    for (name, line) in &manifest.product {
        if let Some(ours) = ours(name)
            && !row.ours.contains(&ours)
        {
            findings.push(Finding::new(path, *line, format!("`{}` must not depend on `{ours}`", row.folder)));
        }
    }
    for (name, line) in &manifest.tests {
        let allowed = ours(name).map_or(!row.never.contains(&name.as_str()), |ours| row.ours.contains(&ours));
        if !allowed {
            let what = format!("`{}` must not depend on `{name}`, not even in tests", row.folder);
            findings.push(Finding::new(path, *line, what));
        }
    }
}

/// What the crate reaches through others of ours: nothing that its own row rules out.
fn reached(
    row: &Row,
    path: &str,
    manifests: &BTreeMap<String, (String, Manifest)>,
    findings: &mut Vec<Finding>,
) {
    let mut seen = BTreeSet::from([row.folder.to_owned()]);
    let mut chains = vec![vec![row.folder.to_owned()]];
    while let Some(chain) = chains.pop() {
        let last = chain.last().expect("a chain begins with the crate itself");
        let Some((_, manifest)) = manifests.get(last) else { continue };
        for (name, line) in &manifest.product {
            // Only a crate's own dependency has a line in its own manifest.
            let line = if chain.len() == 1 { *line } else { 0 };
            match ours(name) {
                Some(ours) => {
                    if chain.len() > 1 && !may_reach(row, ours) {
                        let what = format!("`{}` reaches `{ours}` by {}", row.folder, chain.join(" -> "));
                        findings.push(Finding::new(path, line, what));
                    }
                    if seen.insert(ours.to_owned()) {
                        chains.push(chain.iter().cloned().chain([ours.to_owned()]).collect());
                    }
                }
                None if row.never.contains(&name.as_str()) => {
                    let what =
                        format!("`{}` must never need `{name}`, here by {}", row.folder, chain.join(" -> "));
                    findings.push(Finding::new(path, line, what));
                }
                None => {}
            }
        }
    }
}

/// What a row allows, and what the rows of those allow in turn.
fn may_reach(row: &Row, folder: &str) -> bool {
    let rows = || ROWS.iter().filter(|other| row.ours.contains(&other.folder));
    row.ours.contains(&folder) || rows().any(|other| may_reach(other, folder))
}

/// The folder of a package of ours.
fn ours(package: &str) -> Option<&str> {
    package.strip_prefix("swarmmq-")
}

/// Dependencies that the workspace gives another name: that name, and the package behind it.
fn workspace_renames(text: &str) -> BTreeMap<String, String> {
    let entries = dependency_lines(text).filter(|entry| entry.section.starts_with("workspace."));
    entries.filter_map(|entry| Some((entry.name, renamed(entry.value)?))).collect()
}

fn manifest(text: &str, real_names: &BTreeMap<String, String>) -> Manifest {
    let mut manifest = Manifest::default();
    for entry in dependency_lines(text) {
        let behind = renamed(entry.value).or_else(|| real_names.get(&entry.name).cloned());
        let package = behind.unwrap_or(entry.name);
        let side = if entry.section.ends_with("dev-dependencies") {
            &mut manifest.tests
        } else {
            &mut manifest.product
        };
        side.entry(package).or_insert(entry.line);
    }
    manifest
}

struct Entry<'a> {
    line: usize,
    section: &'a str,
    name: String,
    value: &'a str,
}

/// Every dependency of a manifest: `name = ...`, `name.workspace = true` and `[dependencies.name]`.
fn dependency_lines(text: &str) -> impl Iterator<Item = Entry<'_>> {
    let mut section = "";
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim();
        let is_dependencies = |section: &str| section.ends_with("dependencies");
        if let Some(header) = line.strip_prefix('[') {
            section = header.split(']').next().unwrap_or_default();
            // `[dependencies.name]`: the header itself is the dependency.
            let (outer, name) = section.rsplit_once('.')?;
            let value = "";
            return is_dependencies(outer).then(|| Entry {
                line: index + 1,
                section: outer,
                name: unquoted(name),
                value,
            });
        }
        if !is_dependencies(section) || line.starts_with('#') {
            return None;
        }
        let (key, value) = line.split_once('=')?;
        let name = unquoted(key.trim().split('.').next().unwrap_or_default());
        Some(Entry { line: index + 1, section, name, value })
    })
}

/// The `package = "..."` of an inline table.
fn renamed(value: &str) -> Option<String> {
    let (_, after) = value.split_once("package")?;
    after.trim_start().strip_prefix('=')?.split('"').nth(1).map(ToOwned::to_owned)
}

fn unquoted(name: &str) -> String {
    name.trim().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::lines, *};

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        lines(&check(&Tree::of(files)))
    }

    #[test]
    fn the_drawn_arrows_are_fine() {
        let files = [
            (
                "crates/protocol/Cargo.toml",
                "[dependencies]\nbytes = \"1\"\n[dev-dependencies]\nproptest.workspace = true\n",
            ),
            (
                "crates/engine/Cargo.toml",
                "[dependencies]\nswarmmq-protocol.workspace = true\nraft.workspace = true\n",
            ),
            (
                "crates/server/Cargo.toml",
                "[dependencies]\nswarmmq-engine.workspace = true\n[dev-dependencies]\ntempfile.workspace = true\n",
            ),
            (
                "crates/client/Cargo.toml",
                "[dependencies]\nswarmmq-seal.workspace = true\ntokio.workspace = true\n",
            ),
            ("xtask/Cargo.toml", "[dependencies]\n"),
        ];
        assert_eq!(findings(&files), [] as [&str; 0]);
    }

    #[test]
    fn a_server_that_names_seal_is_found() {
        let files =
            [("crates/server/Cargo.toml", "[package]\n[dependencies]\nswarmmq-seal.workspace = true\n")];
        assert_eq!(findings(&files), ["crates/server/Cargo.toml:3: `server` must not depend on `seal`"]);
    }

    #[test]
    fn a_server_that_reaches_seal_through_another_crate_is_found_twice() {
        let files = [
            ("crates/server/Cargo.toml", "[dependencies]\nswarmmq-engine.workspace = true\n"),
            ("crates/engine/Cargo.toml", "[dependencies]\nswarmmq-seal.workspace = true\n"),
            ("crates/seal/Cargo.toml", ""),
        ];
        assert_eq!(
            findings(&files),
            [
                "crates/engine/Cargo.toml:2: `engine` must not depend on `seal`",
                "crates/server/Cargo.toml: `server` reaches `seal` by server -> engine",
            ]
        );
    }

    #[test]
    fn a_pure_crate_that_reaches_a_runtime_is_found() {
        let files = [
            ("crates/protocol/Cargo.toml", "[target.'cfg(unix)'.dependencies]\ntokio = \"1\"\n"),
            ("crates/engine/Cargo.toml", "[dependencies.swarmmq-protocol]\nworkspace = true\n"),
        ];
        assert_eq!(
            findings(&files),
            [
                "crates/engine/Cargo.toml: `engine` must never need `tokio`, here by engine -> protocol",
                "crates/protocol/Cargo.toml:2: `protocol` must never need `tokio`, here by protocol",
            ]
        );
    }

    #[test]
    fn another_name_hides_nothing() {
        let renamed = [(
            "crates/engine/Cargo.toml",
            "[dependencies]\nclockwork = { version = \"1\", package = \"tokio\" }\n",
        )];
        assert_eq!(findings(&renamed).len(), 1);
        let in_workspace = [
            (
                "Cargo.toml",
                "[workspace.dependencies]\nclockwork = { version = \"1\", package = \"tokio\" }\n",
            ),
            ("crates/engine/Cargo.toml", "[dependencies]\nclockwork.workspace = true\n"),
        ];
        assert_eq!(findings(&in_workspace).len(), 1);
    }

    #[test]
    fn tests_may_not_widen_an_arrow_either() {
        let files = [("crates/client/Cargo.toml", "[dev-dependencies]\nswarmmq-server.workspace = true\n")];
        let expected =
            "crates/client/Cargo.toml:2: `client` must not depend on `swarmmq-server`, not even in tests";
        assert_eq!(findings(&files), [expected]);
    }

    #[test]
    fn a_crate_without_a_row_and_a_tool_with_dependencies_are_found() {
        let files = [("crates/extra/Cargo.toml", ""), ("xtask/Cargo.toml", "[dependencies]\nclap = \"4\"\n")];
        assert_eq!(
            findings(&files),
            [
                "crates/extra/Cargo.toml: crate `extra` has no row in the arrow table",
                "xtask/Cargo.toml:2: xtask needs `clap`; it may need nothing",
            ]
        );
    }
}
