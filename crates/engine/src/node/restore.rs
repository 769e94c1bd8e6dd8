//! From a recovered log to a running node. Recovering uses the same `apply` as running, and has no effects.

use std::collections::BTreeMap;

use swarmmq_protocol::id::ShardId;

use super::{Config, Node, Now, bug::Bug};
use crate::{
    log::{RecordRef, Verdict, Writer},
    shard::{
        ENTRY_BYTES_MAX,
        restore::{ReadLog, Replica, Restore as ShardRestore, RestoreError as ShardError},
    },
};

/// Why a node cannot start from its log. Nothing changed on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// Records that had been synced are damaged. Blame: disk. With one replica nothing can repair them.
    Corrupt {
        /// What and where.
        what: String,
    },
    /// The records are whole but make no sense together. Blame: another version, or a program error.
    Inconsistent(String),
}

impl std::fmt::Display for RestoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Corrupt { what } => write!(f, "the log is corrupt below its synced watermark: {what}"),
            Self::Inconsistent(what) => write!(f, "the log makes no sense: {what}"),
        }
    }
}

impl std::error::Error for RestoreError {}

impl From<ShardError> for RestoreError {
    fn from(error: ShardError) -> Self {
        Self::Inconsistent(error.to_string())
    }
}

/// Collects records until the whole log was read.
pub struct Restore {
    config: Config,
    shards: BTreeMap<u32, ShardRestore>,
    segments: Vec<u32>,
    error: Option<String>,
}

impl Restore {
    pub(super) fn new(config: Config) -> Self {
        Self { config, shards: BTreeMap::new(), segments: Vec::new(), error: None }
    }

    /// Takes one verified record, in log order.
    pub fn record(&mut self, record: &RecordRef<'_>) {
        if self.error.is_some() {
            return;
        }
        if record.shard != ShardId::CLUSTER.0 && record.shard >= self.config.shard_count {
            self.error = Some(format!("a record of shard {}, of {}", record.shard, self.config.shard_count));
            return;
        }
        if let Err(what) = self.shard(record.shard).record(record) {
            self.error = Some(what);
        }
    }

    fn shard(&mut self, shard: u32) -> &mut ShardRestore {
        let bugs = self.config.bugs;
        self.shards.entry(shard).or_insert_with(|| ShardRestore::with(bugs))
    }

    /// The log's segments that exist, by number, whether or not they held records.
    pub fn segments(&mut self, segments: &[u32]) {
        self.segments = segments.to_vec();
    }

    /// The node, ready to be driven. `read` fetches bytes of records that were verified while the log was read.
    pub fn finish(
        mut self,
        verdict: &Verdict,
        now: Now,
        read: &mut ReadLog<'_>,
    ) -> Result<Node, RestoreError> {
        if let Some(what) = self.error {
            return Err(RestoreError::Inconsistent(what));
        }
        let tail = match verdict {
            Verdict::Clean { tail } | Verdict::Torn { tail, .. } => *tail,
            Verdict::Corrupt { tail: Some(tail), .. } if self.config.bugs.has(Bug::TruncateCorruption) => {
                *tail
            }
            Verdict::Corrupt { ranges, .. } => {
                let what: Vec<String> = ranges
                    .iter()
                    .map(|(from, to)| {
                        format!(
                            "from byte {} of segment {} to byte {} of segment {}",
                            from.offset, from.segment, to.offset, to.segment
                        )
                    })
                    .collect();
                return Err(RestoreError::Corrupt { what: what.join(", ") });
            }
        };
        let writer = Writer::new(self.config.log(), tail);
        let replica = self.config.replica();
        let ids = (0..self.config.shard_count).map(ShardId).chain([ShardId::CLUSTER]);
        let mut shards = Vec::new();
        for id in ids {
            let restore = self.shards.remove(&id.0).unwrap_or_default();
            let replica = Replica {
                id: replica,
                is_founder: self.config.founder,
                seed: self.config.seed ^ u64::from(id.0),
                horizon_ahead: self.config.horizon_ahead,
                entry_bytes_max: ENTRY_BYTES_MAX.min(writer.body_bytes_max()),
                bugs: self.config.bugs,
            };
            shards.push(restore.finish(id, &replica, read)?);
        }
        Ok(Node::assemble(self.config, now, writer, shards, self.segments))
    }
}
