//! `keys generate`: a keyring for clients and one for nodes, never overwriting.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde_json::json;
use swarmmq_seal::{ClientKeyring, KeyringError};

use crate::{
    output::{Failure, Outcomes, note, print, say},
    parse,
};

/// Writes `client.keyring` and `node.keyring` into `directory`.
pub(crate) fn generate(directory: &Path) -> Outcomes<()> {
    let mut random = |bytes: &mut [u8]| {
        aws_lc_rs::rand::fill(bytes).expect("the operating system gives random bytes");
    };
    let unlucky = |error: KeyringError| Failure::local(error.to_string(), "try again");
    let keyring = ClientKeyring::generate(parse::now(), &mut random).map_err(unlucky)?;
    let for_nodes = keyring.to_node_text(&mut random).map_err(unlucky)?;
    fs::create_dir_all(directory).map_err(|error| {
        Failure::local(
            format!("cannot make {}: {error}", directory.display()),
            "check the path and its permissions",
        )
    })?;
    for name in ["client.keyring", "node.keyring"] {
        let path = directory.join(name);
        if path.exists() {
            return Err(Failure::local(
                format!("{} exists", path.display()),
                "keyrings are never overwritten: choose another --out",
            ));
        }
    }
    let client = directory.join("client.keyring");
    write(&client, keyring.to_text().as_bytes())?;
    write(&directory.join("node.keyring"), for_nodes.as_bytes()).inspect_err(|_| take_back(&client))
}

/// Half a pair would be in the way of the next attempt.
fn take_back(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        note(format!("{} is left behind: {error}", path.display()));
    }
}

fn write(path: &Path, bytes: &[u8]) -> Outcomes<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = made.and_then(|mut file| {
        file.write_all(bytes).and_then(|()| file.sync_all()).inspect_err(|_| take_back(path))
    });
    written.map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::AlreadyExists => "keyrings are never overwritten: choose another --out",
            _ => "check the directory and its disk",
        };
        Failure::local(format!("cannot write {}: {error}", path.display()), hint)
    })
}

/// The command.
pub(crate) fn run(directory: &Path, as_json: bool) -> Outcomes<u8> {
    generate(directory)?;
    let (client, node) = (directory.join("client.keyring"), directory.join("node.keyring"));
    if as_json {
        print(&json!({"client": client, "node": node}));
    } else {
        say(format!("{}: for producers and consumers; whoever has it can read and write", client.display()));
        say(format!("{}: for the nodes of one cluster; it opens no message", node.display()));
    }
    Ok(0)
}
