//! How a node touches the world: sockets, disk, clock, telemetry. Everything it decides is decided in the engine.

mod bootstrap;
mod clock;
mod disk;
mod http;
mod identity;
mod link;
mod telemetry;
mod worker;

use std::{fmt, path::Path};

use swarmmq_engine::{
    log::{Recovery, SEGMENT_HEADER_BYTES, Verdict},
    node::{self, bug::Bugs},
};

use self::{bootstrap::NodeConfig, disk::SegmentFiles, identity::Identity};

/// Bytes of one log segment.
const SEGMENT_BYTES: u32 = 64 << 20;
/// Payload bytes kept in memory.
const CACHE_BYTES_MAX: usize = 48 << 20;

/// Why a node did not start. Nothing was changed that a later start could miss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    code: u8,
    message: String,
    hint: String,
}

impl StartError {
    /// Usage or configuration: the operator's files say something that cannot be.
    pub(crate) fn config(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: 2, message: message.into(), hint: hint.into() }
    }

    /// Local data or local resources: directory, lock, log, port.
    pub(crate) fn local(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: 7, message: message.into(), hint: hint.into() }
    }

    /// Exit code of the process.
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    /// What happened.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)
    }
}

impl std::error::Error for StartError {}

/// What `init` made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitReport {
    /// The cluster's name, 32 hex digits.
    pub cluster: String,
    /// This node.
    pub node: u16,
    /// Data shards, for ever.
    pub shard_count: u32,
}

/// Makes a cluster, once, on its first node: names it and begins the log. An existing one is refused, never overwritten.
pub fn init(config_path: &Path) -> Result<InitReport, StartError> {
    let config = NodeConfig::load(config_path)?;
    let _lock = identity::lock(&config.data)?;
    let made = Identity::make(&config.data, config.node)?;
    Ok(InitReport { cluster: made.cluster.to_string(), node: made.node.0, shard_count: made.shard_count })
}

/// Runs a node until it is told to stop. Returns when it has drained.
pub fn run(config_path: &Path) -> Result<(), StartError> {
    telemetry::init();
    let config = NodeConfig::load(config_path)?;
    let _lock = identity::lock(&config.data)?;
    let identity = Identity::load(&config.data)?;
    if identity.node != config.node {
        return Err(StartError::config(
            format!(
                "{} belongs to node {}, the configuration says {}",
                config.data.display(),
                identity.node.0,
                config.node.0
            ),
            "use the configuration that made this directory, or another data directory",
        ));
    }
    let keyring = bootstrap::NodeKeyring::load(&config.keyring)?;
    let mut files = SegmentFiles::open(&config.data.join("log"), SEGMENT_BYTES)?;
    if files.sequences().is_empty() {
        return Err(StartError::local(
            format!("{} has an identity but no log: the disk was lost or emptied", config.data.display()),
            "a single node cannot rebuild what it lost; restore the directory from where it went",
        ));
    }
    let reserve_bytes = (files.total_bytes() / 20).max(64 << 20);
    let node_config = node::Config {
        cluster: identity.cluster,
        node: identity.node,
        incarnation: identity.incarnation,
        shard_count: identity.shard_count,
        access_token: keyring.access_token,
        admission_key: keyring.admission_key,
        segment_bytes: SEGMENT_BYTES,
        cache_bytes_max: CACHE_BYTES_MAX,
        reserve_bytes,
        seed: identity.incarnation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        bugs: Bugs::NONE,
    };
    let node = recover(node_config, &mut files)?;
    worker::run(&config, node, files)
}

/// Reads the whole log, checks it, and rebuilds the node from it.
fn recover(config: node::Config, files: &mut SegmentFiles) -> Result<node::Node, StartError> {
    let log = swarmmq_engine::log::Config { segment_bytes: config.segment_bytes, log_id: config.log_id() };
    let sequences = files.sequences();
    let mut recovery = Recovery::new(log, sequences.clone());
    let mut restore = node::Node::restore(config);
    restore.segments(&sequences);
    let mut buffer = Vec::new();
    for sequence in recovery.order().to_vec() {
        files.read_whole(sequence, &mut buffer)?;
        if buffer.len() < SEGMENT_HEADER_BYTES as usize {
            buffer.resize(SEGMENT_HEADER_BYTES as usize, 0);
        }
        recovery.segment(sequence, &buffer, &mut |record| restore.record(&record));
    }
    drop(buffer);
    let verdict = recovery.finish();
    match &verdict {
        Verdict::Clean { tail } => tracing::info!(?tail, "the log is clean"),
        Verdict::Torn { tail, cut_at } => {
            tracing::warn!(
                ?tail,
                ?cut_at,
                "the last batch was torn by a crash; nothing in it was acknowledged"
            );
        }
        Verdict::Corrupt { ranges, .. } => tracing::error!(?ranges, "the log is corrupt"),
    }
    let now = clock::Clock::start().now();
    restore.finish(&verdict, now, &mut |position, length| files.read_at(position, length)).map_err(|error| {
        StartError::local(
            error.to_string(),
            "a single node cannot repair its log; nothing was changed: copy the data directory, then restore it from a backup",
        )
    })
}
