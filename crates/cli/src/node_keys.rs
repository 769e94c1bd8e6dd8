//! `keys node`: the keys that nodes share with clients and with each other, replaced step by step while everything runs.
//! Like all of `keys`, it changes files and asks no node; whoever runs it brings the file to every node before the next step.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use swarmmq_seal::{NodeKey, NodeKeyring, StepError};

use crate::{
    keys::{Edit, random},
    output::{Failure, Outcomes, note, print, table},
};

/// Which key of a node's keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    /// Root's token, from which the tokens of all principals follow
    AccessToken,
    /// What lets messages in
    AdmissionKey,
    /// What nodes prove to each other; datagrams between them depend on it too
    PeerSecret,
}

impl Which {
    fn key(self) -> NodeKey {
        match self {
            Self::AccessToken => NodeKey::AccessToken,
            Self::AdmissionKey => NodeKey::AdmissionKey,
            Self::PeerSecret => NodeKey::PeerSecret,
        }
    }
}

/// What to do with a node's keyring. Bring the file to every node after each step; they take it up by themselves.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeKeysCommand {
    /// First step: another key counts beside the present one
    Next {
        /// Which
        which: Which,
        /// The node's keyring
        file: PathBuf,
    },
    /// Second step: the other key is the one in use, and the old one counts beside it
    Turn {
        /// Which
        which: Which,
        /// The node's keyring
        file: PathBuf,
    },
    /// Third step: the old key counts no more
    Drop {
        /// Which
        which: Which,
        /// The node's keyring
        file: PathBuf,
    },
    /// Which keys count, by fingerprint; nodes say the same figures in their logs
    Show {
        /// The node's keyring
        file: PathBuf,
    },
}

/// A node's keyring, from its file.
pub(crate) fn load(path: &Path) -> Outcomes<NodeKeyring> {
    let hint = "give the node.keyring that `swarmmq keys generate` wrote";
    let text = std::fs::read_to_string(path)
        .map(zeroize::Zeroizing::new)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display()), hint))?;
    NodeKeyring::parse(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display()), hint))
}

/// The command.
pub(crate) fn run(command: &NodeKeysCommand, as_json: bool) -> Outcomes<u8> {
    match command {
        NodeKeysCommand::Next { which, file } => step(file, as_json, |keyring| {
            let next = keyring.next(which.key(), &mut random)?;
            Ok((next, "bring the file to every node, then `keys node turn`"))
        }),
        NodeKeysCommand::Turn { which, file } => step(file, as_json, |keyring| {
            let hint = match which {
                Which::PeerSecret => "bring the file to every node, then `keys node drop`",
                Which::AdmissionKey => {
                    "bring the file to every node, let every client keyring follow (`keys follow`), then `keys node drop`"
                }
                Which::AccessToken => {
                    "bring the file to every node, let root's keyring follow (`keys follow`), give every principal a token (`access rotate`), then `keys node drop`"
                }
            };
            Ok((keyring.turned(which.key())?, hint))
        }),
        NodeKeysCommand::Drop { which, file } => {
            step(file, as_json, |keyring| Ok((keyring.dropped(which.key())?, "bring the file to every node")))
        }
        NodeKeysCommand::Show { file } => {
            shown(file, &load(file)?, as_json);
            Ok(0)
        }
    }
}

fn step(
    file: &Path,
    as_json: bool,
    change: impl FnOnce(&NodeKeyring) -> Result<(NodeKeyring, &'static str), StepError>,
) -> Outcomes<u8> {
    let edit = Edit::begin(file, load)?;
    let (changed, next) = change(&edit.keyring).map_err(refused)?;
    edit.finish(&changed.to_text())?;
    shown(file, &changed, as_json);
    if !as_json {
        note(format!("next: {next}"));
    }
    Ok(0)
}

fn refused(error: StepError) -> Failure {
    let message = error.to_string();
    match error {
        StepError::Missing(_) => Failure::usage(
            message,
            "a cluster of one node needs none; `swarmmq keys generate` makes a pair with one",
        ),
        StepError::UnderWay(_) => {
            Failure::usage(message, "`keys node turn` and `keys node drop` end that change first")
        }
        StepError::Alone(_) => Failure::usage(message, "`keys node next` begins the change"),
        StepError::Unlucky => Failure::local(message, "try again"),
    }
}

fn shown(file: &Path, keyring: &NodeKeyring, as_json: bool) {
    let hex = |keys: &[u32]| keys.iter().map(|key| format!("{key:08x}")).collect::<Vec<_>>();
    let keys = keyring.fingerprints();
    if as_json {
        let keys: serde_json::Map<_, _> =
            keys.iter().map(|(key, prints)| (key.field().to_owned(), json!(hex(prints)))).collect();
        print(&json!({"file": file, "keys": keys}));
        return;
    }
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|(key, prints)| {
            let mut prints = hex(prints).into_iter();
            vec![key.field().to_owned(), prints.next().unwrap_or_default(), prints.next().unwrap_or_default()]
        })
        .collect();
    table(&["KEY", "IN USE", "COUNTS TOO"], &rows);
}
