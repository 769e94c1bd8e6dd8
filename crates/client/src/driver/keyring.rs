//! The keyring of a client that runs: looked at where it lies, and replaced when the file is another one. What cannot be
//! used is told and changes nothing: the keys held before go on.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use swarmmq_seal::{ClientKeyring, LoadError};
use tokio::{sync::oneshot, task::JoinSet, time::Instant};

use super::{
    Driver,
    clock::{after, wall},
    told,
};
use crate::{Error, KeyringState, Options, connection::Access};

/// What tells one content of a file from another without reading it: a file that was replaced has another number, one
/// that was written to has other times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    number: u64,
    bytes: u64,
    modified: Option<SystemTime>,
    changed: (i64, i64),
}

/// What a look found.
pub(super) enum Looked {
    /// The file that was read before.
    Same,
    /// Another one; or why it is none.
    Read(Box<Result<(ClientKeyring, Stamp), LoadError>>),
    /// The look itself came to nothing.
    Nothing(String),
}

/// Who waits for a look. Whether other keys are used now than before.
pub(crate) type ReloadReply = oneshot::Sender<Result<bool, Error>>;

/// Keys that are used from now on, and how connections are made with them.
pub(super) struct Adopted {
    keyring: ClientKeyring,
    access: Access,
}

pub(super) struct Keyring {
    keyring: ClientKeyring,
    path: Option<PathBuf>,
    pause: Option<Duration>,
    next_look: Option<Instant>,
    /// Of the file as it was read last.
    stamp: Option<Stamp>,
    /// At most one at a time, on a thread that may wait for a file system.
    look: JoinSet<Looked>,
    /// Who waits for the look under way, and who came too late for it.
    waiting: Vec<ReloadReply>,
    late: Vec<ReloadReply>,
    replaced: u64,
    problem: Option<String>,
}

impl Keyring {
    pub(super) fn new(options: &Options) -> Self {
        let path = options.keyring.source().map(Path::to_path_buf);
        // The first look is due at once: the program may have held the keyring for long.
        let next_look = options.keyring_look.filter(|_| path.is_some()).map(|_| Instant::now());
        Self {
            keyring: options.keyring.clone(),
            path,
            pause: options.keyring_look,
            next_look,
            stamp: None,
            look: JoinSet::new(),
            waiting: Vec::new(),
            late: Vec::new(),
            replaced: 0,
            problem: None,
        }
    }

    /// How often the keys were replaced, and what is wrong with the file since the last look.
    pub(super) fn report(&self) -> (&ClientKeyring, u64, Option<String>) {
        (&self.keyring, self.replaced, self.problem.clone())
    }

    /// Looks, if it is time.
    pub(super) fn tick(&mut self) {
        if self.next_look.is_some_and(|at| at <= Instant::now()) {
            self.seek();
        }
    }

    /// When it is time to look. While a look is under way, its end is what is waited for.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.next_look.filter(|_| self.look.is_empty())
    }

    /// Begins a look, unless one is under way.
    pub(super) fn seek(&mut self) {
        let Some(path) = self.path.clone().filter(|_| self.look.is_empty()) else { return };
        let known = self.stamp;
        self.look.spawn_blocking(move || look(&path, known));
    }

    /// Looks because the program says so, and tells it what came of it.
    pub(super) fn reload(&mut self, reply: ReloadReply) {
        if self.path.is_none() {
            let message = "the keyring was not loaded from a file".into();
            told(reply, Err(Error::Keyring { message }));
        } else if self.look.is_empty() {
            self.waiting.push(reply);
            self.seek();
        } else {
            self.late.push(reply);
        }
    }

    /// Waits until a look has ended; for ever if none is under way. Cancel safe.
    pub(super) async fn looked(&mut self) -> Looked {
        match self.look.join_next().await {
            Some(Ok(looked)) => looked,
            Some(Err(error)) => Looked::Nothing(error.to_string()),
            None => std::future::pending().await,
        }
    }

    /// Takes what a look found. `Some`: these keys from now on.
    pub(super) fn found(&mut self, looked: Looked) -> Option<Adopted> {
        self.next_look = self.pause.map(after);
        let result = match looked {
            Looked::Same => match self.problem.clone() {
                Some(message) => Err(message),
                None => Ok(None),
            },
            Looked::Nothing(message) => Err(message),
            Looked::Read(read) => match *read {
                Ok((keyring, stamp)) => {
                    self.stamp = Some(stamp);
                    self.adopt(keyring)
                }
                Err(error) => {
                    // Perhaps somebody is writing it: the next look reads it again.
                    self.stamp = None;
                    Err(error.to_string())
                }
            },
        };
        self.problem = result.as_ref().err().cloned();
        for reply in std::mem::take(&mut self.waiting) {
            told(
                reply,
                match &result {
                    Ok(adopted) => Ok(adopted.is_some()),
                    Err(message) => Err(Error::Keyring { message: message.clone() }),
                },
            );
        }
        if !self.late.is_empty() {
            self.waiting = std::mem::take(&mut self.late);
            self.seek();
        }
        result.ok().flatten()
    }

    /// Uses a keyring that the program hands over. From now on its file is looked at, if it was loaded from one, and no other.
    pub(super) fn replace(&mut self, keyring: ClientKeyring, reply: ReloadReply) -> Option<Adopted> {
        let path = keyring.source().map(Path::to_path_buf);
        let adopted = self.adopt(keyring);
        if adopted.is_ok() {
            self.next_look = self.pause.filter(|_| path.is_some()).map(|_| Instant::now());
            (self.path, self.stamp, self.problem) = (path, None, None);
            // What was seen of the old file says nothing of the new one.
            self.look = JoinSet::new();
            for reply in self.waiting.drain(..).chain(self.late.drain(..)) {
                let message = "another keyring was handed over meanwhile".into();
                told(reply, Err(Error::Keyring { message }));
            }
        }
        told(
            reply,
            match &adopted {
                Ok(new) => Ok(new.is_some()),
                Err(message) => Err(Error::Keyring { message: message.clone() }),
            },
        );
        adopted.ok().flatten()
    }

    /// Another routing key would move keys to other shards.
    fn adopt(&mut self, keyring: ClientKeyring) -> Result<Option<Adopted>, String> {
        if !keyring.is_of_same_cluster(&self.keyring) {
            return Err("its routing key is another: that is the keyring of another cluster".into());
        }
        if keyring.is_same(&self.keyring) {
            return Ok(None);
        }
        // Made once: it may read files, which can be gone the next time.
        let access = Access::new(&keyring).map_err(|error| error.to_string())?;
        self.replaced += 1;
        self.keyring = keyring.clone();
        Ok(Some(Adopted { keyring, access }))
    }

    /// The client ends.
    pub(super) fn end(&mut self) {
        for reply in self.waiting.drain(..).chain(self.late.drain(..)) {
            told(reply, Err(Error::Closed));
        }
    }
}

impl Driver {
    /// The keyring's file was looked at.
    pub(super) fn looked(&mut self, looked: Looked) {
        if let Some(adopted) = self.keyring.found(looked) {
            self.take_keyring(adopted);
        }
        self.consumers.looked();
    }

    /// Other keys from now on: for the next message that is sealed, the next one that is opened, the next connection.
    fn take_keyring(&mut self, Adopted { keyring, access }: Adopted) {
        self.producers.take_keyring(&keyring);
        self.consumers.take_keyring(&keyring);
        self.questions.take_keyring(&keyring);
        self.access = access;
        self.options.keyring = keyring;
    }

    pub(super) fn keyring_state(&self) -> KeyringState {
        let (keyring, replaced, problem) = self.keyring.report();
        KeyringState {
            sealing_key: keyring.sealing_key(wall()),
            keys: keyring.payload_keys().collect(),
            replaced,
            problem,
            undecryptable: self.consumers.undecryptable(),
        }
    }

    /// The program hands over a keyring.
    pub(super) fn use_keyring(&mut self, keyring: ClientKeyring, reply: ReloadReply) {
        if let Some(adopted) = self.keyring.replace(keyring, reply) {
            self.take_keyring(adopted);
        }
        self.consumers.looked();
    }
}

fn look(path: &Path, known: Option<Stamp>) -> Looked {
    let stamp = match stamp(path) {
        Ok(stamp) => stamp,
        Err(kind) => return Looked::Read(Box::new(Err(LoadError::File { path: path.into(), kind }))),
    };
    if known == Some(stamp) {
        return Looked::Same;
    }
    // Replaced in between, it is read again at the next look: the stamp is that of the file before.
    Looked::Read(Box::new(ClientKeyring::load(path).map(|keyring| (keyring, stamp))))
}

fn stamp(path: &Path) -> Result<Stamp, ErrorKind> {
    let file = fs::metadata(path).map_err(|error| error.kind())?;
    Ok(Stamp {
        device: file.dev(),
        number: file.ino(),
        bytes: file.len(),
        modified: file.modified().ok(),
        changed: (file.ctime(), file.ctime_nsec()),
    })
}
