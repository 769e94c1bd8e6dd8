//! `init` and `node`: one node of a cluster, in the foreground.

use std::path::Path;

use serde_json::json;

use crate::{
    discover::Target,
    output::{Failure, Outcomes, note, print, say},
};

/// A node is never given a keyring that opens messages, not even one that it would not read (safety rule 25).
pub(crate) fn refuse_keyring(target: &Target) -> Outcomes<()> {
    if target.keyring.is_none() {
        return Ok(());
    }
    Err(Failure::usage(
        "--keyring is for clients: a node must not be able to open messages",
        "leave it out; the node's own keyring is `node.keyring` in its node.toml",
    ))
}

/// `init`: makes a cluster, once.
pub(crate) fn init(config: &Path, as_json: bool) -> Outcomes<u8> {
    let made = swarmmq_server::init(config)?;
    if as_json {
        print(&json!({"cluster": made.cluster, "node": made.node, "shards": made.shard_count}));
    } else {
        say(format!("cluster {} of {} shards; this is node {}", made.cluster, made.shard_count, made.node));
        say(format!("next: swarmmq node --config {}", config.display()));
    }
    Ok(0)
}

/// `node`: runs until SIGTERM.
///
/// * `own_session`: leave the terminal and the process group of whoever started it.
pub(crate) fn run(config: &Path, own_session: bool) -> Outcomes<u8> {
    if own_session && let Err(error) = rustix::process::setsid() {
        note(format!("this node stays in the process session of its parent: {error}"));
    }
    swarmmq_server::run(config)?;
    Ok(0)
}
