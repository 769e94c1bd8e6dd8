//! Who this disk belongs to: made once, locked while used, never guessed.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
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

/// Whose disk this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) shard_count: u32,
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
}

impl Identity {
    /// Draws a new cluster and writes it down, together with the beginning of the log.
    pub(crate) fn make(data: &Path, node: NodeId) -> Result<Self, StartError> {
        let path = data.join(FILE);
        if path.exists() {
            return Err(StartError::local(
                format!("{} is already part of a cluster", data.display()),
                "run `swarmmq node --config FILE`; to begin anew, choose an empty data directory",
            ));
        }
        let log = data.join("log");
        if holds_bytes(&log) {
            return Err(StartError::local(
                format!("{} holds a log without an identity", log.display()),
                "restore identity.toml from where it went, or choose an empty data directory",
            ));
        }
        let identity = Self {
            cluster: ClusterId(u128::from_be_bytes(clock::random())),
            node,
            incarnation: u64::from_be_bytes(clock::random()) >> 16 | 1,
            shard_count: SHARD_COUNT,
        };
        let written = Written {
            version: 1,
            cluster: identity.cluster.to_string(),
            node: node.0,
            incarnation: format!("{:016x}", identity.incarnation),
            shard_count: SHARD_COUNT,
            created_at_ms: clock::wall().0,
        };
        let text = toml::to_string(&written).expect("plain fields can be written");
        let io = |error: std::io::Error| {
            StartError::local(
                format!("cannot write to {}: {error}", data.display()),
                "check the directory and its disk",
            )
        };
        fs::create_dir_all(&log).map_err(io)?;
        // The first segment is there before the identity: an identity without a log is a lost disk.
        let first = log.join(crate::disk::segment_name(1));
        File::create(&first).and_then(|file| file.sync_all()).map_err(io)?;
        sync_directory(&log).map_err(io)?;
        let temporary = data.join("identity.tmp");
        File::create(&temporary)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| sync_directory(data))
            .map_err(io)?;
        Ok(identity)
    }

    /// Reads what was written down.
    pub(crate) fn load(data: &Path) -> Result<Self, StartError> {
        let path = data.join(FILE);
        let text = fs::read_to_string(&path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                return StartError::local(
                    format!("{} is not part of a cluster: there is no {FILE}", data.display()),
                    "a new node: run `swarmmq init --config FILE`, once; one that held data: mount or restore its disk first",
                );
            }
            StartError::local(
                format!("cannot read {}: {error}", path.display()),
                "check permissions and the disk",
            )
        })?;
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
        let (node, shard_count) = (NodeId(written.node), written.shard_count);
        Ok(Self { cluster: ClusterId(cluster), node, incarnation, shard_count })
    }
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
        assert_eq!(Identity::load(dir.path()).unwrap_err().exit_code(), 7);
        let made = Identity::make(dir.path(), NodeId(3)).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), made);
        let again = Identity::make(dir.path(), NodeId(3)).unwrap_err();
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
        Identity::make(dir.path(), NodeId(1)).unwrap();

        fs::remove_file(dir.path().join(FILE)).unwrap();
        fs::write(log.join(crate::disk::segment_name(1)), "records").unwrap();
        let error = Identity::make(dir.path(), NodeId(1)).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.message().contains("without an identity"), "{error}");
    }

    #[test]
    fn a_damaged_identity_is_told_apart_from_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Identity::load(dir.path()).unwrap_err().hint().contains("swarmmq init --config FILE"));
        Identity::make(dir.path(), NodeId(1)).unwrap();
        fs::write(dir.path().join(FILE), "version = 1\ncluster = \"").unwrap();
        let error = Identity::load(dir.path()).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.message().contains("damaged"), "{error}");
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
