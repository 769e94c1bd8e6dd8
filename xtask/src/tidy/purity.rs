//! The deciding crates stay pure: no clock, entropy, file, socket, thread, lock or randomly ordered map in them, and no
//! async outside the crates that own sockets.

use super::{Finding, Tree, rust};

/// Crates whose every decision must be repeatable from its inputs.
const PURE: &[&str] = &["protocol", "engine", "sim"];
/// The simulator's front end reads arguments, prints and measures its speed; it decides nothing.
const PURE_EXCEPT: &[&str] = &["crates/sim/src/main.rs"];
/// Crates that may wait.
const MAY_BE_ASYNC: &[&str] = &["server", "client", "cli"];

/// Paths that a pure crate must not name, with everything below them. `core` counts as `std`.
const BANNED: &[(&str, &str)] = &[
    ("std::time::Instant", "time is handed in; use `swarmmq_protocol::time`"),
    ("std::time::SystemTime", "time is handed in; use `swarmmq_protocol::time`"),
    ("std::time::UNIX_EPOCH", "time is handed in; use `swarmmq_protocol::time`"),
    ("std::collections::HashMap", "its order is random; use `BTreeMap`"),
    ("std::collections::HashSet", "its order is random; use `BTreeSet`"),
    ("std::collections::hash_map", "its order is random; use `BTreeMap`"),
    ("std::collections::hash_set", "its order is random; use `BTreeSet`"),
    ("std::hash::RandomState", "it is entropy"),
    ("std::fs", "files belong to the shell"),
    ("std::net", "sockets belong to the shell"),
    ("std::os", "the operating system belongs to the shell"),
    ("std::process", "processes belong to the shell"),
    ("std::env", "settings are handed in"),
    ("std::thread", "threads belong to the shell"),
    ("std::sync::Mutex", "a machine has one owner and no lock"),
    ("std::sync::RwLock", "a machine has one owner and no lock"),
    ("std::sync::Condvar", "a machine has one owner and no lock"),
    ("std::sync::mpsc", "what must happen is an effect, not a message to a thread"),
    ("rand", "entropy is handed in"),
    ("getrandom", "entropy is handed in"),
    ("aws_lc_rs::rand", "entropy is handed in"),
];

/// Modules that hold something banned: naming them whole would hide what is used.
const NAME_THE_ITEM: &[&str] =
    &["std", "std::collections", "std::hash", "std::sync", "std::time", "aws_lc_rs"];

/// Words that give a banned type away, however it was imported.
const BANNED_WORDS: &[&str] =
    &["HashMap", "HashSet", "RandomState", "SystemTime", "SystemRandom", "Mutex", "RwLock"];

/// Reports impure code in pure crates, and async code where nothing may wait.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.sources() {
        let name = file.crate_name().unwrap_or_default();
        let pure = PURE.contains(&name) && !PURE_EXCEPT.contains(&file.path.as_str());
        let sync = !MAY_BE_ASYNC.contains(&name);
        if !pure && !sync {
            continue;
        }
        for found in rust::paths(&rust::code_only(&file.text)) {
            let what = if pure { impurity(&found.path) } else { None };
            let what = what.or_else(|| if sync { waiting(&found.path) } else { None });
            findings.extend(what.map(|what| Finding::new(&file.path, found.line, what)));
        }
    }
    findings.dedup();
    findings
}

/// What is wrong with naming `path` in a pure crate.
fn impurity(path: &str) -> Option<String> {
    let path = path.strip_prefix("core::").map_or_else(|| path.to_owned(), |rest| format!("std::{rest}"));
    for (banned, why) in BANNED {
        // A single word also names locals; as the root of a path it is the crate.
        let below = path.strip_prefix(banned).is_some_and(|rest| rest.starts_with("::"));
        if below || (path == *banned && banned.contains("::")) {
            return Some(format!("`{path}` in a pure crate: {why}"));
        }
    }
    if let Some(module) = NAME_THE_ITEM.iter().find(|module| path.strip_suffix("::*") == Some(module)) {
        return Some(format!(
            "`{module}::*` in a pure crate: name the items, so that a reader and this check can see them"
        ));
    }
    if NAME_THE_ITEM.iter().any(|module| module.contains("::") && path == *module) {
        return Some(format!("`{path}` as a whole in a pure crate: name the item"));
    }
    let word = path.split("::").find(|part| BANNED_WORDS.contains(part))?;
    Some(format!("`{word}` in a pure crate"))
}

fn waiting(path: &str) -> Option<String> {
    matches!(path, "async" | "await").then(|| format!("`{path}` outside server, client and cli"))
}

#[cfg(test)]
mod tests {
    use super::{super::lines, *};

    fn findings(path: &str, text: &str) -> Vec<String> {
        lines(&check(&Tree::of(&[(path, text)])))
    }

    const ENGINE: &str = "crates/engine/src/shard/mod.rs";

    #[test]
    fn pure_code_is_fine() {
        let text = "//! Instead of HashMap and std::fs.\nuse std::{collections::BTreeMap, fmt, time::Duration};\n\
                    use swarmmq_protocol::time::Instant;\nconst TEXT: &str = \"std::thread::sleep\"; fn rand() { rand() }";
        assert_eq!(findings(ENGINE, text), [] as [&str; 0]);
    }

    #[test]
    fn each_kind_of_impurity_is_found() {
        for bad in [
            "use std::time::Instant;",
            "use std::{fmt, time::{Duration, SystemTime}};",
            "let now = std::time::Instant::now();",
            "use std::time::{self, Duration};",
            "use std::collections::*;",
            "use std::collections::{BTreeMap, HashMap};",
            "use std::collections::HashSet as Set;",
            "let m = collections::HashMap::new();",
            "std::fs::read(path);",
            "use core::net::IpAddr;",
            "std::thread::sleep(pause);",
            "use std::sync::{Arc, Mutex};",
            "use rand::Rng;",
            "getrandom::fill(&mut bytes);",
            "use aws_lc_rs::{hmac, rand};",
            "use aws_lc_rs::rand::SystemRandom;",
        ] {
            assert_eq!(findings(ENGINE, bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_finding_says_where_and_what_to_do() {
        assert_eq!(
            findings(ENGINE, "//! A.\n\nuse std::collections::HashMap;\n"),
            [
                "crates/engine/src/shard/mod.rs:3: `std::collections::HashMap` in a pure crate: its order is random; use `BTreeMap`"
            ]
        );
    }

    #[test]
    fn the_shell_and_the_simulators_front_end_may_read_clocks() {
        for path in ["crates/server/src/clock.rs", "crates/sim/src/main.rs", "crates/cli/src/main.rs"] {
            assert_eq!(findings(path, "use std::time::Instant;"), [] as [&str; 0]);
        }
        assert_eq!(findings("crates/sim/src/clock.rs", "use std::time::Instant;").len(), 1);
    }

    #[test]
    fn async_is_found_where_nothing_may_wait() {
        assert_eq!(
            findings("crates/client/src/producer.rs", "async fn send() { x().await }"),
            [] as [&str; 0]
        );
        assert_eq!(
            findings("crates/seal/src/seal.rs", "async fn seal() {\nx().await }"),
            [
                "crates/seal/src/seal.rs:1: `async` outside server, client and cli",
                "crates/seal/src/seal.rs:2: `await` outside server, client and cli",
            ]
        );
    }
}
