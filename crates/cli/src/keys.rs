//! `keys`: makes keyrings, and changes them while clients run: the next payload key, its way to other keyrings, the end of
//! an old one, whom clients believe. Keyrings are files; no node is asked.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use swarmmq_protocol::{id::KeyId, time::WallTime};
use swarmmq_seal::{ChangeError, ClientKeyring, Imported, KeyState, KeyringError, Trust};

use crate::{
    discover::{Target, load_keyring},
    node_keys::{self, NodeKeysCommand},
    output::{Failure, Outcomes, note, print, say, table},
    parse,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Age of a sealing key above which its owner is reminded.
const SEALING_AGE_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// Time for which messages are taken to wait, unless it is said.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// How clients know that they speak with a node of their cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct TrustArgs {
    /// By a certificate from an authority in this file, as `certs init` writes it
    #[arg(long, value_name = "FILE", conflicts_with = "insecure_plaintext")]
    ca: Option<PathBuf>,
    /// Not at all: no encryption, and only on loopback
    #[arg(long)]
    insecure_plaintext: bool,
}

impl TrustArgs {
    fn read(&self) -> Outcomes<Trust> {
        Ok(match &self.ca {
            Some(path) => Trust::Authorities(crate::certs::read_authorities(path)?),
            None if self.insecure_plaintext => Trust::InsecurePlaintext,
            None => Trust::Unsaid,
        })
    }
}

/// What to do with keyrings. All but `generate` mean the client keyring of `--keyring`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Write client.keyring and node.keyring; never overwrites
    Generate {
        /// Into this directory
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        trust: TrustArgs,
    },
    /// Say in the keyring how nodes are known
    Trust {
        #[command(flatten)]
        trust: TrustArgs,
    },
    /// Which payload keys there are, and which one seals
    Ls,
    /// Add the next payload key; running clients take it up by themselves
    Rotate {
        /// When it begins to seal; until then it must have come to all other keyrings
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse::duration)]
        activates_in: Duration,
    },
    /// Remove a payload key: what it sealed cannot be opened any more with this keyring
    Retire {
        /// Which; without it, all that sealed last so long ago as --older-than says
        #[arg(long, required_unless_present = "older_than")]
        id: Option<u32>,
        /// How long messages wait at most, by default 30d: a key that sealed since then is kept
        #[arg(long, value_name = "TIME", value_parser = parse::duration)]
        older_than: Option<Duration>,
        /// Even if messages may still need it
        #[arg(long, requires = "id")]
        force: bool,
    },
    /// Write payload keys to a file that `import` takes elsewhere; never overwrites
    Export {
        /// Which; all, if none is named
        #[arg(long)]
        id: Vec<u32>,
        /// To this file
        #[arg(long)]
        out: PathBuf,
    },
    /// Take the payload keys of a file that `export` wrote
    Import {
        /// The file
        file: PathBuf,
    },
    /// Replace what nodes share with clients and with each other, step by step
    #[command(subcommand)]
    Node(NodeKeysCommand),
    /// Take the admission key from a node's keyring, and the access token if this is root's
    Follow {
        /// The node's keyring
        file: PathBuf,
    },
}

pub(crate) fn random(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the operating system gives random bytes");
}

/// Writes `client.keyring` and `node.keyring` into `directory`.
pub(crate) fn generate(directory: &Path, trust: Trust) -> Outcomes<()> {
    let unlucky = |error: KeyringError| Failure::local(error.to_string(), "try again");
    let keyring = ClientKeyring::generate(parse::now(), &mut random).map_err(unlucky)?;
    let keyring = keyring.with_trust(trust).map_err(unfit)?;
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

fn unfit(error: KeyringError) -> Failure {
    Failure::usage(error.to_string(), "give the ca.pem that `swarmmq certs init` wrote")
}

/// Half a pair would be in the way of the next attempt.
fn take_back(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        note(format!("{} is left behind: {error}", path.display()));
    }
}

/// Writes a keyring that only its owner may read.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Outcomes<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = made.and_then(|mut file| {
        file.write_all(bytes).and_then(|()| file.sync_all()).inspect_err(|_| take_back(path))
    });
    written.map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::AlreadyExists => "files with keys are never overwritten: choose another --out",
            _ => "check the directory and its disk",
        };
        Failure::local(format!("cannot write {}: {error}", path.display()), hint)
    })
}

/// The command.
pub(crate) fn run(command: &KeysCommand, target: &Target, as_json: bool) -> Outcomes<u8> {
    match command {
        KeysCommand::Generate { out, trust } => make(out, trust.read()?, as_json),
        KeysCommand::Trust { trust } => trust_nodes(target, trust, as_json),
        KeysCommand::Ls => list(target, as_json),
        KeysCommand::Rotate { activates_in } => rotate(target, *activates_in, as_json),
        KeysCommand::Retire { id, older_than, force } => {
            retire(target, id.map(KeyId), *older_than, *force, as_json)
        }
        KeysCommand::Export { id, out } => export(target, id, out, as_json),
        KeysCommand::Import { file } => import(target, file, as_json),
        KeysCommand::Node(command) => node_keys::run(command, as_json),
        KeysCommand::Follow { file } => follow(target, file, as_json),
    }
}

/// `keys trust`: replaces what a client keyring says about how nodes are known.
fn trust_nodes(target: &Target, args: &TrustArgs, as_json: bool) -> Outcomes<u8> {
    let trust = args.read()?;
    if trust == Trust::Unsaid {
        let what = "--ca or --insecure-plaintext is missing";
        return Err(Failure::usage(what, "see `swarmmq keys trust --help`"));
    }
    let encrypted = matches!(trust, Trust::Authorities(_));
    let path = target.keyring_path()?;
    let edit = Edit::of_client(&path)?;
    let changed = edit.keyring.with_trust(trust).map_err(unfit)?;
    edit.finish(&changed.to_text())?;
    if as_json {
        print(&json!({"keyring": path, "tls": encrypted}));
    } else if encrypted {
        say(format!("{path}: trusts nodes with a certificate from this authority"));
    } else {
        say(format!("{path}: plain text, on loopback only"));
    }
    Ok(0)
}

fn make(directory: &Path, trust: Trust, as_json: bool) -> Outcomes<u8> {
    let is_unsaid = trust == Trust::Unsaid;
    generate(directory, trust)?;
    let (client, node) = (directory.join("client.keyring"), directory.join("node.keyring"));
    if as_json {
        print(&json!({"client": client, "node": node}));
    } else {
        say(format!("{}: for producers and consumers; whoever has it can read and write", client.display()));
        say(format!("{}: for the nodes of one cluster; it opens no message", node.display()));
        if is_unsaid {
            say("clients do not know yet whom to trust: `swarmmq keys trust --keyring FILE --ca ca.pem`");
        }
    }
    Ok(0)
}

fn list(target: &Target, as_json: bool) -> Outcomes<u8> {
    let path = target.keyring_path()?;
    let keyring = load_keyring(&path)?;
    let now = parse::now();
    let warning = old_age(&keyring, now);
    let retired: Vec<u32> = keyring.retired_keys().map(|id| id.0).collect();
    let keys = keyring.payload_keys().map(|key| (key, keyring.key_state(key.id, now).expect("it is listed")));
    if as_json {
        let keys: Vec<_> = keys
            .map(|(key, state)| {
                json!({
                    "id": key.id.0,
                    "state": name(state),
                    "created_at": parse::rfc3339(key.created_at),
                    "age_seconds": now.since(key.created_at).as_secs(),
                    "activates_at": key.activates_at.map(parse::rfc3339),
                    "left_at": keyring.left_at(key.id, now).map(parse::rfc3339),
                })
            })
            .collect();
        print(&json!({
            "keyring": path,
            "seals": keyring.sealing_key(now).0,
            "keys": keys,
            "retired": retired,
            "warning": warning,
        }));
        return Ok(0);
    }
    let rows: Vec<Vec<String>> = keys
        .map(|(key, state)| {
            let since = match (state, keyring.left_at(key.id, now)) {
                (KeyState::Waits(at), _) => format!("seals from {} on", parse::rfc3339(at)),
                (_, Some(at)) => format!("sealed until {}", parse::rfc3339(at)),
                _ => String::new(),
            };
            let age = format!("{} d", now.since(key.created_at).as_secs() / DAY.as_secs());
            vec![key.id.0.to_string(), name(state).into(), parse::rfc3339(key.created_at), age, since]
        })
        .chain(retired.iter().map(|id| vec![id.to_string(), "retired".into(), String::new(), String::new()]))
        .collect();
    table(&["KEY", "STATE", "MADE", "AGE", ""], &rows);
    if let Some(warning) = warning {
        note(warning);
    }
    Ok(0)
}

fn name(state: KeyState) -> &'static str {
    match state {
        KeyState::Seals => "seals",
        KeyState::Opens => "opens",
        KeyState::Waits(_) => "waits",
    }
}

/// There is no age at which a payload key stops being safe; there is one at which it has been in too many hands.
fn old_age(keyring: &ClientKeyring, now: WallTime) -> Option<String> {
    let sealing = keyring.payload_keys().find(|key| key.id == keyring.sealing_key(now))?;
    let age = now.since(sealing.activates_at.unwrap_or(sealing.created_at));
    (age > SEALING_AGE_MAX).then(|| {
        let days = age.as_secs() / DAY.as_secs();
        format!(
            "warning: key {} has sealed for {days} days; `swarmmq keys rotate` makes the next one",
            sealing.id.0
        )
    })
}

fn rotate(target: &Target, activates_in: Duration, as_json: bool) -> Outcomes<u8> {
    let edit = Edit::of_client(&target.keyring_path()?)?;
    let now = parse::now();
    let activates_at = now.plus(activates_in);
    let (rotated, id) = edit.keyring.rotated(now, activates_at, &mut random).map_err(refused)?;
    edit.finish(&rotated.to_text())?;
    if as_json {
        print(&json!({"id": id.0, "activates_at": parse::rfc3339(activates_at)}));
    } else {
        say(format!("key {} seals from {} on", id.0, parse::rfc3339(activates_at)));
        note(format!(
            "bring it to the other keyrings before: `swarmmq keys export --id {} --out FILE`, then `keys import FILE` there",
            id.0
        ));
    }
    Ok(0)
}

fn retire(
    target: &Target,
    id: Option<KeyId>,
    older_than: Option<Duration>,
    force: bool,
    as_json: bool,
) -> Outcomes<u8> {
    let edit = Edit::of_client(&target.keyring_path()?)?;
    let now = parse::now();
    let retention = older_than.unwrap_or(RETENTION);
    let left_for = |id: KeyId| edit.keyring.left_at(id, now).map(|at| now.since(at));
    let ids: Vec<KeyId> = match id {
        Some(id) => {
            if let Some(time) = left_for(id).filter(|time| *time < retention && !force) {
                return Err(Failure::usage(
                    format!(
                        "key {} sealed until {} ago, and messages may wait for {}: they could never be opened again",
                        id.0,
                        spell(time),
                        spell(retention)
                    ),
                    "wait, say with --older-than how long messages wait at most, or use --force",
                ));
            }
            vec![id]
        }
        None => {
            let keys = edit.keyring.payload_keys().map(|key| key.id);
            keys.filter(|id| left_for(*id).is_some_and(|time| time >= retention)).collect()
        }
    };
    let mut keyring = edit.keyring.clone();
    for id in &ids {
        keyring = keyring.retired(now, *id).map_err(refused)?;
    }
    if !ids.is_empty() {
        edit.finish(&keyring.to_text())?;
    }
    let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
    if as_json {
        print(&json!({"retired": ids}));
    } else if ids.is_empty() {
        say(format!("no key that could be retired sealed last longer than {} ago", spell(retention)));
    } else {
        ids.iter().for_each(|id| {
            say(format!("key {id} is retired: what it sealed cannot be opened any more here"))
        });
    }
    Ok(0)
}

/// In the largest unit of which there are two.
fn spell(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "min")];
    let fit = units.into_iter().find(|(unit, _)| seconds >= 2 * unit);
    fit.map_or_else(|| format!("{seconds} s"), |(unit, name)| format!("{} {name}", seconds / unit))
}

fn export(target: &Target, ids: &[u32], out: &Path, as_json: bool) -> Outcomes<u8> {
    let keyring = load_keyring(&target.keyring_path()?)?;
    let ids: Vec<KeyId> = match ids {
        [] => keyring.payload_keys().map(|key| key.id).collect(),
        some => some.iter().copied().map(KeyId).collect(),
    };
    let text = keyring.export(&ids).map_err(refused)?;
    write(out, text.as_bytes())?;
    let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
    if as_json {
        print(&json!({"file": out, "ids": ids}));
    } else {
        say(format!(
            "{}: keys {ids:?}; whoever has it can read messages, so remove it when it has arrived",
            out.display()
        ));
    }
    Ok(0)
}

fn import(target: &Target, file: &Path, as_json: bool) -> Outcomes<u8> {
    let edit = Edit::of_client(&target.keyring_path()?)?;
    let (keyring, imported) = edit.keyring.imported_from(file).map_err(refused)?;
    let numbers = |ids: &[KeyId]| ids.iter().map(|id| id.0).collect::<Vec<_>>();
    if !imported.added.is_empty() {
        edit.finish(&keyring.to_text())?;
    }
    let Imported { added, known, retired } = &imported;
    let (added, known, retired) = (numbers(added), numbers(known), numbers(retired));
    if as_json {
        print(&json!({"added": added, "known": known, "retired": retired}));
    } else {
        say(format!("added {added:?}, known {known:?}"));
        if !retired.is_empty() {
            note(format!("keys {retired:?} had been retired here, and stay so"));
        }
    }
    Ok(0)
}

fn follow(target: &Target, file: &Path, as_json: bool) -> Outcomes<u8> {
    let nodes = node_keys::load(file)?;
    let path = target.keyring_path()?;
    let edit = Edit::of_client(&path)?;
    let followed = edit
        .keyring
        .following(&nodes)
        .map_err(|error| Failure::usage(error.to_string(), "give the node.keyring of the same cluster"))?;
    let has_changed = !followed.is_same(&edit.keyring);
    if has_changed {
        edit.finish(&followed.to_text())?;
    }
    if as_json {
        print(&json!({"keyring": path, "changed": has_changed}));
    } else if has_changed {
        say(format!(
            "{path}: uses the keys of {}; running clients take them up by themselves",
            file.display()
        ));
    } else {
        say(format!("{path}: used them already"));
    }
    Ok(0)
}

fn refused(error: ChangeError) -> Failure {
    let message = error.to_string();
    match error {
        ChangeError::NoSuchKey(_) => Failure::usage(message, "`swarmmq keys ls` shows which keys there are"),
        ChangeError::Seals(_) => {
            Failure::usage(message, "`swarmmq keys rotate` makes another one, which seals first")
        }
        ChangeError::Waits(_, at) => Failure::usage(
            message,
            format!(
                "once it seals, at {}, and another one has followed, it can be retired",
                parse::rfc3339(at)
            ),
        ),
        ChangeError::AnotherWaits(_) => Failure::usage(
            message,
            "wait for it, or give a longer --activates-in: rotations follow each other",
        ),
        ChangeError::AnotherCluster | ChangeError::OtherBytes(_) => Failure::usage(
            message,
            "rotate in one keyring only, and bring the key to the others with `keys export` and `keys import`",
        ),
        ChangeError::File(_) => Failure::usage(message, "name a file that `swarmmq keys export` wrote"),
        ChangeError::Export(_) => {
            Failure::local(message, "use a file that `swarmmq keys export` wrote, unchanged")
        }
        ChangeError::NoNumberLeft => {
            Failure::local(message, "make a fresh pair with `swarmmq keys generate`")
        }
        ChangeError::Keyring(_) => {
            Failure::local(message, "retire keys that nobody needs any more with `swarmmq keys retire`")
        }
    }
}

/// A keyring that is being changed: locked against other commands, replaced as a whole or not at all.
pub(crate) struct Edit<K> {
    pub(crate) keyring: K,
    path: PathBuf,
    /// Held until the end.
    file: File,
}

impl Edit<ClientKeyring> {
    fn of_client(path: &str) -> Outcomes<Self> {
        Self::begin(Path::new(path), |path| load_keyring(&path.to_string_lossy()))
    }
}

impl<K> Edit<K> {
    pub(crate) fn begin(given: &Path, load: impl Fn(&Path) -> Outcomes<K>) -> Outcomes<Self> {
        let failed = |error: std::io::Error| {
            Failure::usage(
                format!("cannot open the keyring {}: {error}", given.display()),
                "give the path of a keyring that this user may read",
            )
        };
        // A link to it stays a link.
        let path = given.canonicalize().map_err(failed)?;
        loop {
            let file = File::open(&path).map_err(failed)?;
            flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
            let (ours, there) = (file.metadata().map_err(failed)?, fs::metadata(&path).map_err(failed)?);
            if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
                // Replaced while we waited for whoever replaced it.
                continue;
            }
            let keyring = load(&path)?;
            return Ok(Self { keyring, path, file });
        }
    }

    /// Puts `text` in its place, with the same owner and mode. A crash leaves the old file or the new one.
    pub(crate) fn finish(self, text: &str) -> Outcomes<()> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = self.path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let replaced = self.write(&temporary, text).and_then(|()| {
            fs::rename(&temporary, &self.path)?;
            File::open(directory)?.sync_all()
        });
        replaced.map_err(|error| {
            if temporary.exists() {
                take_back(&temporary);
            }
            Failure::local(
                format!("cannot replace {}: {error}; the keyring is as it was", self.path.display()),
                "check its directory and disk, and that this user may write there",
            )
        })
    }

    fn write(&self, temporary: &Path, text: &str) -> std::io::Result<()> {
        let old = self.file.metadata()?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        let new = file.metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(old.permissions())?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }
}
