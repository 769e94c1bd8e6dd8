//! `init` and `node`: one node of a cluster, in the foreground.

use std::{io::Read as _, path::Path};

use serde_json::json;
use swarmmq_protocol::join_token::{JoinToken, TEXT_BYTES_MAX};
use zeroize::Zeroizing;

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
pub(crate) fn init(config: &Path, open_join: bool, as_json: bool) -> Outcomes<u8> {
    let made = swarmmq_server::init(config, open_join)?;
    if as_json {
        print(&json!({
            "cluster": made.cluster,
            "node": made.node,
            "shards": made.shard_count,
            "open_join": open_join,
        }));
    } else {
        say(format!("cluster {} of {} shards; this is node {}", made.cluster, made.shard_count, made.node));
        say(format!("next: swarmmq node --config {}", config.display()));
        if open_join {
            say(
                "every node that knows the peer secret may join, until `swarmmq settings set cluster.open_join=false`",
            );
        } else {
            say("other nodes join with what `swarmmq node token` prints");
        }
    }
    Ok(0)
}

/// `node`: runs until SIGTERM.
///
/// * `own_session`: leave the terminal and the process group of whoever started it.
/// * `token`: the file with a join token; `-`: standard input.
pub(crate) fn run(config: &Path, token: Option<&Path>, own_session: bool) -> Outcomes<u8> {
    let token = token.map(read_token).transpose()?;
    if own_session && let Err(error) = rustix::process::setsid() {
        note(format!("this node stays in the process session of its parent: {error}"));
    }
    swarmmq_server::run(config, token)?;
    Ok(0)
}

fn read_token(path: &Path) -> Outcomes<JoinToken> {
    // Read into its final buffer, and no more than a token has.
    let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES_MAX + 1));
    let limit = TEXT_BYTES_MAX as u64 + 1;
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.map_err(|error| {
        Failure::usage(
            format!("cannot read the join token from {}: {error}", path.display()),
            "give a file with what `swarmmq node token` printed, or - for standard input",
        )
    })?;
    JoinToken::parse(&text).map_err(|error| {
        Failure::usage(error.to_string(), "copy the whole line that `swarmmq node token` printed")
    })
}
