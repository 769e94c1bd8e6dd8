//! Who this disk belongs to: made once, locked while used, never guessed.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use swarmmq_protocol::id::{ClusterId, NodeId};

use crate::{StartError, clock};

/// Data shards of a new cluster.
const SHARD_COUNT: u32 = 16;
const FILE: &str = "identity.toml";

/// Why a log cannot be gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is empty or gone, or older than what others remember of it.
    Lost,
    /// What had been synced is damaged, or makes no sense.
    Corrupt,
}

/// Whose disk this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    /// Which life of the disk.
    pub(crate) incarnation: u64,
    pub(crate) shard_count: u32,
    /// This disk made the cluster. Without a log it begins the shards; every other disk only joins (safety rule 20).
    pub(crate) founder: bool,
    /// Starts in this life.
    pub(crate) boot: u64,
    /// Something was synced to the log in this life: if the log is empty, it was lost.
    pub(crate) begun: bool,
    /// The cluster was made for nodes to join without a token. Means nothing but to a founder, and once.
    pub(crate) open_join: bool,
    created_at_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    cluster: String,
    node: u16,
    incarnation: String,
    shard_count: u32,
    created_at_ms: u64,
    /// Files from before there was more than one node do not say these; they were all made by `init`.
    #[serde(default = "yes")]
    founder: bool,
    #[serde(default)]
    boot: u64,
    #[serde(default = "yes")]
    begun: bool,
    #[serde(default)]
    open_join: bool,
}

fn yes() -> bool {
    true
}

/// A number for a new life of a disk.
pub(crate) fn new_incarnation() -> u64 {
    u64::from_be_bytes(clock::random()) >> 16 | 1
}

impl Identity {
    /// Draws a new cluster and writes it down, together with the beginning of the log.
    pub(crate) fn make(data: &Path, node: NodeId, open_join: bool) -> Result<Self, StartError> {
        if data.join(FILE).exists() {
            return Err(StartError::local(
                format!("{} is already part of a cluster", data.display()),
                "run `swarmmq node --config FILE`; to begin anew, choose an empty data directory",
            ));
        }
        refuse_orphaned_log(data)?;
        let identity = Self {
            cluster: ClusterId(u128::from_be_bytes(clock::random())),
            node,
            incarnation: new_incarnation(),
            shard_count: SHARD_COUNT,
            founder: true,
            boot: 0,
            begun: false,
            open_join,
            created_at_ms: clock::wall().0,
        };
        identity.begin_log(data)?;
        identity.write(data)?;
        Ok(identity)
    }

    /// Writes down that this disk belongs to a cluster that exists, together with the beginning of the log.
    ///
    /// * `incarnation`: as the cluster was told when it was asked.
    pub(crate) fn join(
        data: &Path,
        node: NodeId,
        incarnation: u64,
        cluster: ClusterId,
        shard_count: u32,
    ) -> Result<Self, StartError> {
        refuse_orphaned_log(data)?;
        let created_at_ms = clock::wall().0;
        let (founder, boot, begun, open_join) = (false, 0, false, false);
        let identity =
            Self { cluster, node, incarnation, shard_count, founder, boot, begun, open_join, created_at_ms };
        identity.begin_log(data)?;
        identity.write(data)?;
        Ok(identity)
    }

    /// The next life of a disk whose log cannot be gone on with: it can only join again. What is left of the log is kept
    /// beside it, named after `fate`.
    ///
    /// * `incarnation`: of the next life.
    pub(crate) fn renew(&mut self, data: &Path, incarnation: u64, fate: Fate) -> Result<(), StartError> {
        let log = data.join("log");
        if log.exists() {
            let aside = self.aside(data, fate);
            fs::rename(&log, &aside).map_err(|error| {
                StartError::local(
                    format!("cannot set {} aside: {error}", log.display()),
                    "check the data directory and its disk",
                )
            })?;
        }
        self.incarnation = incarnation;
        (self.founder, self.boot, self.begun) = (false, 0, false);
        self.begin_log(data)?;
        self.write(data)
    }

    /// Where the log of this life goes when it cannot be gone on with.
    pub(crate) fn aside(&self, data: &Path, fate: Fate) -> PathBuf {
        let name = match fate {
            Fate::Lost => "lost",
            Fate::Corrupt => "corrupt",
        };
        data.join(format!("log.{name}-{:016x}", self.incarnation))
    }

    /// Counts a start.
    pub(crate) fn count_boot(&mut self, data: &Path) -> Result<(), StartError> {
        self.boot += 1;
        self.write(data)
    }

    /// Remembers that the log holds something.
    pub(crate) fn set_begun(&mut self, data: &Path) -> Result<(), StartError> {
        self.begun = true;
        self.write(data)
    }

    /// The first segment is there before the identity: an identity without a log is a lost disk.
    fn begin_log(&self, data: &Path) -> Result<(), StartError> {
        let log = data.join("log");
        let first = log.join(crate::disk::segment_name(1));
        fs::create_dir_all(&log)
            .and_then(|()| File::create(&first)?.sync_all())
            .and_then(|()| sync_directory(&log))
            .map_err(|error| unwritable(data, &error))
    }

    /// Replaces the file. When this returns, a power cut does not take it back.
    fn write(&self, data: &Path) -> Result<(), StartError> {
        let written = Written {
            version: 1,
            cluster: self.cluster.to_string(),
            node: self.node.0,
            incarnation: format!("{:016x}", self.incarnation),
            shard_count: self.shard_count,
            created_at_ms: self.created_at_ms,
            founder: self.founder,
            boot: self.boot,
            begun: self.begun,
            open_join: self.open_join,
        };
        let text = toml::to_string(&written).expect("plain fields can be written");
        let temporary = data.join("identity.tmp");
        File::create(&temporary)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, data.join(FILE)))
            .and_then(|()| sync_directory(data))
            .map_err(|error| unwritable(data, &error))
    }

    /// Reads what was written down; `None` if nothing ever was.
    pub(crate) fn load(data: &Path) -> Result<Option<Self>, StartError> {
        let path = data.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(StartError::local(
                    format!("cannot read {}: {error}", path.display()),
                    "check permissions and the disk",
                ));
            }
        };
        let broken = |what: String| {
            StartError::local(
                format!("{} is damaged: {what}", path.display()),
                "restore the file from a backup",
            )
        };
        let written: Written = toml::from_str(&text).map_err(|error| broken(error.message().to_owned()))?;
        let cluster =
            u128::from_str_radix(&written.cluster, 16).map_err(|error| broken(error.to_string()))?;
        let incarnation =
            u64::from_str_radix(&written.incarnation, 16).map_err(|error| broken(error.to_string()))?;
        if written.version != 1 || written.shard_count == 0 {
            return Err(broken(format!("version {} with {} shards", written.version, written.shard_count)));
        }
        Ok(Some(Self {
            cluster: ClusterId(cluster),
            node: NodeId(written.node),
            incarnation,
            shard_count: written.shard_count,
            founder: written.founder,
            boot: written.boot,
            open_join: written.open_join,
            begun: written.begun,
            created_at_ms: written.created_at_ms,
        }))
    }
}

/// A log without an identity belongs to somebody who will want it back.
pub(crate) fn refuse_orphaned_log(data: &Path) -> Result<(), StartError> {
    let log = data.join("log");
    if holds_bytes(&log) {
        return Err(StartError::local(
            format!("{} holds a log without an identity", log.display()),
            "restore identity.toml from where it went, or choose an empty data directory",
        ));
    }
    Ok(())
}

pub(crate) fn unwritable(data: &Path, error: &std::io::Error) -> StartError {
    StartError::local(
        format!("cannot write to {}: {error}", data.display()),
        "check the directory and its disk",
    )
}

/// Whether anything was ever written here. An `init` that was interrupted leaves files, but empty ones.
fn holds_bytes(log: &Path) -> bool {
    let Ok(entries) = log.read_dir() else { return false };
    entries.flatten().any(|entry| entry.metadata().map_or(true, |metadata| metadata.len() > 0))
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the data directory, and makes sure that it will still be there after a power cut.
pub(crate) fn make_directory(data: &Path) -> Result<(), StartError> {
    let missing: Vec<&Path> = data.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(data)
        .and_then(|()| {
            let parents = missing.iter().filter_map(|path| path.parent());
            parents
                .map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path })
                .try_for_each(sync_directory)
        })
        .map_err(|error| {
            StartError::local(
                format!("cannot use {}: {error}", data.display()),
                "check `node.data` and its permissions",
            )
        })
}

/// Holds the data directory for this process; released when dropped or when the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Takes the data directory, or tells who has it and keeps it for longer than `patience`.
pub(crate) fn lock(data: &Path, patience: Duration) -> Result<Lock, StartError> {
    let path = data.join("lock");
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(
            |error| {
                StartError::local(format!("cannot open {}: {error}", path.display()), "check permissions")
            },
        )?;
    let locked = clock::patiently(
        patience,
        |error| *error == Errno::WOULDBLOCK,
        || flock(&file, FlockOperation::NonBlockingLockExclusive),
    );
    if let Err(error) = locked {
        if error != Errno::WOULDBLOCK {
            return Err(StartError::local(
                format!("cannot lock {}: {error}", path.display()),
                "use a file system that knows locks",
            ));
        }
        let mut holder = String::new();
        let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
        let who = if known { format!("process {}", holder.trim()) } else { "another process".to_owned() };
        return Err(StartError::local(
            format!("{} is locked by {who}", data.display()),
            "one node per data directory: stop the other, or use another directory",
        ));
    }
    let io = |error: std::io::Error| {
        StartError::local(format!("cannot write {}: {error}", path.display()), "check the disk")
    };
    file.set_len(0).map_err(io)?;
    write!(file, "{}", std::process::id()).map_err(io)?;
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::load(dir.path()), Ok(None));
        let made = Identity::make(dir.path(), NodeId(3), false).unwrap();
        assert_eq!((made.founder, made.boot, made.begun), (true, 0, false));
        assert_eq!(Identity::load(dir.path()), Ok(Some(made)));
        let again = Identity::make(dir.path(), NodeId(3), false).unwrap_err();
        assert_eq!(again.exit_code(), 7);
        assert!(again.message().contains("already"), "{again}");
    }

    #[test]
    fn what_an_interrupted_init_left_is_no_obstacle_but_a_log_is() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::create_dir(&log).unwrap();
        File::create(log.join(crate::disk::segment_name(1))).unwrap();
        fs::write(dir.path().join("identity.tmp"), "half").unwrap();
        Identity::make(dir.path(), NodeId(1), false).unwrap();

        fs::remove_file(dir.path().join(FILE)).unwrap();
        fs::write(log.join(crate::disk::segment_name(1)), "records").unwrap();
        let error = Identity::make(dir.path(), NodeId(1), false).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.message().contains("without an identity"), "{error}");
    }

    #[test]
    fn a_damaged_identity_is_told_apart_from_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::load(dir.path()), Ok(None));
        Identity::make(dir.path(), NodeId(1), false).unwrap();
        fs::write(dir.path().join(FILE), "version = 1\ncluster = \"").unwrap();
        let error = Identity::load(dir.path()).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.message().contains("damaged"), "{error}");
    }

    #[test]
    fn starts_and_the_first_sync_are_counted_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity::make(dir.path(), NodeId(1), false).unwrap();
        let made = identity;
        identity.count_boot(dir.path()).unwrap();
        identity.count_boot(dir.path()).unwrap();
        identity.set_begun(dir.path()).unwrap();
        assert_eq!(identity, Identity { boot: 2, begun: true, ..made });
        assert_eq!(Identity::load(dir.path()), Ok(Some(identity)));
    }

    #[test]
    fn a_disk_that_joins_makes_no_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let joined = Identity::join(dir.path(), NodeId(2), 77, ClusterId(5), 4).unwrap();
        assert_eq!((joined.founder, joined.boot, joined.begun), (false, 0, false));
        assert_eq!((joined.incarnation, joined.cluster, joined.shard_count), (77, ClusterId(5), 4));
        assert_eq!(Identity::load(dir.path()), Ok(Some(joined)));
        assert_eq!(Identity::make(dir.path(), NodeId(2), false).unwrap_err().exit_code(), 7);
    }

    #[test]
    fn the_next_life_of_a_disk_is_no_founder_and_keeps_what_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity::make(dir.path(), NodeId(1), false).unwrap();
        identity.count_boot(dir.path()).unwrap();
        identity.set_begun(dir.path()).unwrap();
        let before = identity;
        fs::write(dir.path().join("log/note"), "left").unwrap();
        identity.renew(dir.path(), 99, Fate::Lost).unwrap();
        assert_eq!(identity.incarnation, 99);
        assert_eq!((identity.founder, identity.boot, identity.begun), (false, 0, false));
        assert_eq!((identity.cluster, identity.shard_count), (before.cluster, before.shard_count));
        assert_eq!(Identity::load(dir.path()), Ok(Some(identity)));
        let aside = dir.path().join(format!("log.lost-{:016x}", before.incarnation));
        assert_eq!(fs::read(aside.join("note")).unwrap(), b"left");
        assert!(dir.path().join("log").join(crate::disk::segment_name(1)).exists());
    }

    #[test]
    fn an_identity_of_a_single_node_made_earlier_is_a_founder_with_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let old = "version = 1\ncluster = \"5\"\nnode = 1\nincarnation = \"7\"\nshard_count = 16\ncreated_at_ms = 1\n";
        fs::write(dir.path().join(FILE), old).unwrap();
        let identity = Identity::load(dir.path()).unwrap().unwrap();
        assert_eq!((identity.founder, identity.boot, identity.begun), (true, 0, true));
    }

    #[test]
    fn a_directory_is_made_with_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b/data");
        make_directory(&data).unwrap();
        make_directory(&data).unwrap();
        lock(&data, Duration::ZERO).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(make_directory(&dir.path().join("file/data")).unwrap_err().exit_code(), 7);
    }

    #[test]
    fn a_directory_is_held_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path(), Duration::ZERO).unwrap();
        let refused = lock(dir.path(), Duration::ZERO).unwrap_err();
        assert_eq!(refused.exit_code(), 7);
        assert!(refused.message().contains(&std::process::id().to_string()), "{refused}");
        drop(held);
        lock(dir.path(), Duration::ZERO).unwrap();
    }
}
