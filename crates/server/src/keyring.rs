//! The node's keyring: read at the start, and again whenever its file changes, so that its keys can be replaced while everything
//! runs: first every node accepts the next one beside the present, then it is used, then the old one is dropped.
//!
//! A file that cannot be used, or that has nothing in common with the keys in use, changes nothing: what was there goes on, and
//! metrics and log say so.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de::IgnoredAny};
use swarmmq_protocol::{
    mac::{DualKey, MacKey, peer_secret as proven},
    time::Instant,
};
use zeroize::Zeroizing;

use crate::{StartError, bootstrap::unhex};

/// Pause between looks at the file.
const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// Everything a node's keyring may say.
const KEYRING_KEYS: &[&str] = &[
    "version",
    "access_token",
    "access_token_also",
    "admission_key",
    "admission_key_also",
    "peer_secret",
    "peer_secret_also",
];

/// Whatever else a keyring file says is looked at by name only: it may be secret.
#[derive(Deserialize)]
struct Raw {
    version: u32,
    access_token: Zeroizing<String>,
    access_token_also: Option<Zeroizing<String>>,
    admission_key: Zeroizing<String>,
    admission_key_also: Option<Zeroizing<String>>,
    peer_secret: Option<Zeroizing<String>>,
    peer_secret_also: Option<Zeroizing<String>>,
}

/// What a node may know: who may connect, and what a genuine message looks like. No key that opens one.
#[derive(Clone, Debug)]
pub(crate) struct NodeKeyring {
    pub(crate) access_token: DualKey,
    pub(crate) admission_key: DualKey,
    /// What nodes prove to each other that they know. Keyrings made before there were several nodes do not have it.
    pub(crate) peer_secret: Option<DualKey>,
}

impl NodeKeyring {
    /// The error of a node that has others but no secret to share with them.
    ///
    /// * `path`: of the keyring.
    pub(crate) fn no_peer_secret(path: &Path) -> StartError {
        StartError::config(
            format!(
                "{} has no `peer_secret`, which the nodes of a cluster prove to each other",
                path.display()
            ),
            "run `swarmmq keys generate --out DIR` and copy the line `peer_secret` of its node.keyring into this file, the same for every node",
        )
    }

    /// Reads and checks the file. Whatever a node must not have is refused, in the file and in the environment (safety
    /// rule 25).
    ///
    /// * `named_in_environment`: `SWARMMQ_KEYRING` is set, which names a client's keyring.
    pub(crate) fn load(path: &Path, named_in_environment: bool) -> Result<Self, StartError> {
        if named_in_environment {
            return Err(StartError::config(
                "SWARMMQ_KEYRING is set: it names a client keyring",
                "a node must not be able to open messages: unset it for the node",
            ));
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| {
            StartError::config(
                format!("cannot read the node keyring {}: {error}", path.display()),
                "make one with `swarmmq keys generate --out DIR`",
            )
        })?);
        if fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
            tracing::warn!(keyring = %path.display(), "others may read the keyring: give it mode 0600");
        }
        // The parser's own words may quote the file, which holds secrets: they stay out of the message.
        let no_keyring = || {
            StartError::config(
                format!("{} is no node keyring", path.display()),
                "use the node.keyring that `swarmmq keys generate` wrote",
            )
        };
        let keys: BTreeMap<String, IgnoredAny> = toml::from_str(&text).map_err(|_| no_keyring())?;
        if let Some(key) = keys.keys().find(|key| !KEYRING_KEYS.contains(&key.as_str())) {
            return Err(StartError::config(
                format!("{} carries `{key}`, which a node must not have", path.display()),
                "a node must not be able to open messages: give it node.keyring, not client.keyring",
            ));
        }
        let file: Raw = toml::from_str(&text).map_err(|_| no_keyring())?;
        if file.version != 1 {
            return Err(StartError::config(
                format!("{} has version {}, this program knows 1", path.display(), file.version),
                "use a keyring of this version",
            ));
        }
        let key = |field: &str, text: &str| {
            let bytes = unhex(text).filter(|bytes| bytes.iter().any(|byte| *byte != 0)).ok_or_else(|| {
                StartError::config(
                    format!("{}: {field} is not 64 hex digits, or all zero", path.display()),
                    "make a fresh keyring with `swarmmq keys generate --out DIR`",
                )
            })?;
            Ok(MacKey::new(*bytes))
        };
        let dual = |field: &str, text: &str, also: &Option<Zeroizing<String>>| {
            let also = also.as_ref().map(|text| key(&format!("{field}_also"), text)).transpose()?;
            Ok(DualKey { current: key(field, text)?, also })
        };
        if file.peer_secret.is_none() && file.peer_secret_also.is_some() {
            return Err(StartError::config(
                format!("{} has peer_secret_also and no peer_secret", path.display()),
                "change it with `swarmmq keys node`, and copy it as a whole",
            ));
        }
        let peer = file.peer_secret.as_ref().map(|text| dual("peer_secret", text, &file.peer_secret_also));
        Ok(Self {
            access_token: dual("access_token", &file.access_token, &file.access_token_also)?,
            admission_key: dual("admission_key", &file.admission_key, &file.admission_key_also)?,
            peer_secret: peer.transpose()?.map(|DualKey { current, also }| DualKey {
                current: proven(&current),
                also: also.as_ref().map(proven),
            }),
        })
    }

    fn parts(&self) -> [(&'static str, Option<&DualKey>); 3] {
        [
            ("access_token", Some(&self.access_token)),
            ("admission_key", Some(&self.admission_key)),
            ("peer_secret", self.peer_secret.as_ref()),
        ]
    }

    /// A key of which `newer` has nothing left: whoever has only that one would be shut out at once.
    fn lost_in(&self, newer: &Self) -> Option<&'static str> {
        let known = |dual: &DualKey| dual.all().map(MacKey::fingerprint).collect::<Vec<_>>();
        self.parts().into_iter().zip(newer.parts()).find_map(|((name, before), (_, after))| {
            let (before, after) = (known(before?), after.map(known).unwrap_or_default());
            before.iter().all(|key| !after.contains(key)).then_some(name)
        })
    }

    /// How many keys of each kind count.
    pub(crate) fn counts(&self) -> [(&'static str, usize); 3] {
        self.parts().map(|(name, dual)| (name, dual.map_or(0, |dual| dual.all().count())))
    }

    /// Which keys there are, without saying what they are.
    fn in_words(&self) -> String {
        let word = |(name, dual): (&str, Option<&DualKey>)| {
            let keys: Vec<String> = dual?.all().map(|key| format!("{:08x}", key.fingerprint())).collect();
            Some(format!("{name} {}", keys.join(" and ")))
        };
        self.parts().into_iter().filter_map(word).collect::<Vec<_>>().join(", ")
    }
}

/// The keyring where it lies.
#[derive(Debug)]
pub(crate) struct KeyringFile {
    path: PathBuf,
    stamp: Option<Stamp>,
    keys: NodeKeyring,
    next_look: Instant,
    reloads: u64,
    failures: u64,
}

/// What tells one content of a file from another without reading it.
type Stamp = (u64, u64, (i64, i64));

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some((file.ino(), file.len(), (file.ctime(), file.ctime_nsec())))
}

impl KeyringFile {
    /// Reads it. See [`NodeKeyring::load`].
    pub(crate) fn load(path: &Path, named_in_environment: bool) -> Result<Self, StartError> {
        let stamp = stamp(path);
        let keys = NodeKeyring::load(path, named_in_environment)?;
        Ok(Self { path: path.into(), stamp, keys, next_look: Instant(0), reloads: 0, failures: 0 })
    }

    /// What it says.
    pub(crate) fn keys(&self) -> &NodeKeyring {
        &self.keys
    }

    /// Looks whether the file has changed, every few seconds or because somebody asked. `Some`: from now on these.
    pub(crate) fn look(&mut self, now: Instant, is_asked: bool) -> Option<&NodeKeyring> {
        if now < self.next_look && !is_asked {
            return None;
        }
        self.next_look = now + LOOK_PAUSE;
        let stamp = stamp(&self.path);
        if stamp == self.stamp && !is_asked {
            return None;
        }
        self.stamp = stamp;
        let read = NodeKeyring::load(&self.path, false).map_err(|error| error.message().to_owned());
        let fits = read.and_then(|keys| match self.keys.lost_in(&keys) {
            None => Ok(keys),
            Some(name) => Err(format!("its {name} has nothing in common with the one in use")),
        });
        match fits {
            Ok(keys) => {
                tracing::info!(keys = keys.in_words(), "the keyring was read again and is used from now on");
                self.reloads += 1;
                self.keys = keys;
                Some(&self.keys)
            }
            Err(error) => {
                tracing::error!(error, "the keys that were there are used on: what was read cannot be");
                self.failures += 1;
                None
            }
        }
    }

    /// When [`KeyringFile::look`] has something to do.
    pub(crate) fn next_at(&self) -> Instant {
        self.next_look
    }

    /// Times that a changed file was taken, and that it was not.
    pub(crate) fn looks(&self) -> (u64, u64) {
        (self.reloads, self.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(access: &str, peer: &str) -> String {
        format!(
            "version = 1\naccess_token = \"{}\"\nadmission_key = \"{}\"\npeer_secret = \"{}\"\n",
            access.repeat(32),
            "22".repeat(32),
            peer.repeat(32)
        )
    }

    #[test]
    fn a_keyring_is_replaced_in_steps_and_never_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.keyring");
        let mut at = 0;
        fs::write(&path, text("11", "33")).unwrap();
        let mut file = KeyringFile::load(&path, false).unwrap();
        let mut look = |file: &mut KeyringFile, text: String| {
            fs::write(path.with_extension("new"), text).unwrap();
            fs::rename(path.with_extension("new"), &path).unwrap();
            at += 3_000_000_000;
            assert!(file.look(Instant(at - 2_500_000_000), false).is_none(), "not so soon");
            file.look(Instant(at), false).is_some()
        };
        assert!(!look(&mut file, text("44", "33")), "whoever has the old token only would be shut out");
        assert!(!look(&mut file, text("11", "44")));
        assert!(!look(&mut file, text("11", "33").replace("peer_secret", "some_secret")));
        let also =
            |text: String, name: &str, key: &str| format!("{text}{name}_also = \"{}\"\n", key.repeat(32));
        assert!(look(&mut file, also(text("11", "33"), "peer_secret", "44")));
        assert_eq!(file.keys().counts(), [("access_token", 1), ("admission_key", 1), ("peer_secret", 2)]);
        let next = file.keys().peer_secret.as_ref().unwrap().also.as_ref().unwrap().fingerprint();
        assert!(look(&mut file, also(text("11", "44"), "peer_secret", "33")));
        assert!(look(&mut file, text("11", "44")));
        let secret = file.keys().peer_secret.as_ref().unwrap();
        assert_eq!((secret.current.fingerprint(), secret.also.is_none()), (next, true));
        assert!(look(&mut file, also(text("44", "44"), "access_token", "11")));
        assert!(!look(&mut file, "nonsense".to_owned()));
        assert_eq!(file.looks(), (4, 4));
        assert!(file.look(Instant(at + 1), false).is_none() && file.look(Instant(at + 1), true).is_none());
        assert_eq!(file.looks(), (4, 5), "who asks hears again that it cannot be used");
        let words = file.keys().in_words();
        assert!(
            words.starts_with("access_token ") && words.contains(" and ") && !words.contains("4444"),
            "{words}"
        );
    }

    #[test]
    fn a_node_refuses_keys_that_open_messages_and_empty_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.keyring");
        let good = format!(
            "version = 1\naccess_token = \"{}\"\nadmission_key = \"{}\"\n",
            "11".repeat(32),
            "22".repeat(32)
        );
        fs::write(&path, &good).unwrap();
        assert!(NodeKeyring::load(&path, false).unwrap().peer_secret.is_none());
        let with_peer = format!("{good}peer_secret = \"{}\"\n", "44".repeat(32));
        fs::write(&path, &with_peer).unwrap();
        assert!(NodeKeyring::load(&path, false).unwrap().peer_secret.is_some());
        assert_eq!(NodeKeyring::load(&path, true).unwrap_err().exit_code(), 2, "SWARMMQ_KEYRING is set");
        for bad in [
            format!("{good}routing_key = \"33\"\n"),
            format!("{good}[[payload_keys]]\nid = 1\n"),
            format!("{good}some_later_kind_of_key = \"2222\"\n"),
            good.replace("11", "00"),
            with_peer.replace("peer_secret", "peer_secret_also"),
            with_peer.replace("44", "00"),
            good.replace("11", "1"),
            good.replace("version = 1", "version = 2"),
            "nonsense".to_owned(),
        ] {
            fs::write(&path, &bad).unwrap();
            let error = NodeKeyring::load(&path, false).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad}");
            assert!(!error.message().contains("2222"), "no key bytes in messages: {error}");
        }
    }
}
