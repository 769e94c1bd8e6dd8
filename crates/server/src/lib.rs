//! How a node touches the world: sockets, disk, clock, telemetry. Everything it decides is decided in the engine.

mod bootstrap;
mod clock;
mod disk;
mod http;
mod identity;
mod link;
mod listener;
mod shutdown;
mod telemetry;
mod worker;

use std::{fmt, path::Path};

use swarmmq_engine::{
    log::{Recovery, SEGMENT_HEADER_BYTES, Verdict},
    node::{self, bug::Bugs},
};

use self::{
    bootstrap::{NodeConfig, NodeKeyring},
    clock::{Clock, SUCCESSION_TIME_MAX},
    disk::SegmentFiles,
    http::Shared,
    identity::Identity,
};

/// Bytes of one log segment.
const SEGMENT_BYTES: u32 = 64 << 20;
/// Payload bytes kept in memory.
const CACHE_BYTES_MAX: usize = 48 << 20;
/// Messages that the logged horizon runs ahead of deliveries.
const HORIZON_AHEAD: u64 = 1024;
/// Of the disk, one part in so many is kept for settlements.
const RESERVE_FRACTION: u64 = 20;
/// On small disks, at least so much.
const RESERVE_BYTES_MIN: u64 = 64 << 20;

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
    identity::make_directory(&config.data)?;
    let _lock = identity::lock(&config.data, SUCCESSION_TIME_MAX)?;
    let made = Identity::make(&config.data, config.node)?;
    Ok(InitReport { cluster: made.cluster.to_string(), node: made.node.0, shard_count: made.shard_count })
}

/// Runs a node until it is told to stop. Returns when it has drained.
pub fn run(config_path: &Path) -> Result<(), StartError> {
    telemetry::init();
    let config = NodeConfig::load(config_path)?;
    let keyring = NodeKeyring::load(&config.keyring, std::env::var_os("SWARMMQ_KEYRING").is_some())?;
    let identity = Identity::load(&config.data)?;
    let _lock = identity::lock(&config.data, SUCCESSION_TIME_MAX)?;
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
    let shared = Shared::default();
    // Before the log is read, which may take long: whoever watches can see that the node lives.
    let admin = http::serve(config.admin, shared.clone())?;
    let result = open(&config, identity, keyring)
        .and_then(|(node, files, clock)| worker::run(&config, clock, node, files, shared));
    admin.stop();
    result
}

/// The node as its log left it, and the log.
fn open(
    config: &NodeConfig,
    identity: Identity,
    keyring: NodeKeyring,
) -> Result<(node::Node, SegmentFiles, Clock), StartError> {
    let log = config.data.join("log");
    let lost = || {
        StartError::local(
            format!("{} has an identity but no log: the disk was lost or emptied", config.data.display()),
            "a single node cannot rebuild what it lost; restore the directory from where it went",
        )
    };
    if !log.exists() {
        return Err(lost());
    }
    let mut files = SegmentFiles::open(&log, SEGMENT_BYTES)?;
    if files.sequences().is_empty() {
        return Err(lost());
    }
    let node_config = node::Config {
        cluster: identity.cluster,
        node: identity.node,
        incarnation: identity.incarnation,
        shard_count: identity.shard_count,
        access_token: keyring.access_token,
        admission_key: keyring.admission_key,
        segment_bytes: SEGMENT_BYTES,
        cache_bytes_max: CACHE_BYTES_MAX,
        boot: 1,
        founder: true,
        replicas: 3,
        roles: 7,
        addresses: swarmmq_engine::node::Addresses::default(),
        horizon_ahead: HORIZON_AHEAD,
        reserve_bytes: (files.total_bytes() / RESERVE_FRACTION).max(RESERVE_BYTES_MIN),
        seed: identity.incarnation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        bugs: Bugs::NONE,
    };
    let clock = Clock::start();
    let node = recover(node_config, &mut files, clock)?;
    Ok((node, files, clock))
}

/// Reads the whole log, checks it, and rebuilds the node from it.
fn recover(config: node::Config, files: &mut SegmentFiles, clock: Clock) -> Result<node::Node, StartError> {
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
    restore.finish(&verdict, clock.now(), &mut |position, length| files.read_at(position, length)).map_err(|error| {
        StartError::local(
            format!("{}: {error}", files.directory().display()),
            "a single node cannot repair its log; nothing was changed: copy the data directory, then restore it from a backup",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::PathBuf};

    struct Place {
        directory: tempfile::TempDir,
        config: PathBuf,
    }

    impl Place {
        /// A configuration with a keyring, and no data yet.
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let keys = format!("access_token = \"{0}\"\nadmission_key = \"{0}\"\n", "1f".repeat(32));
            fs::write(directory.path().join("node.keyring"), format!("version = 1\n{keys}")).unwrap();
            let config = directory.path().join("node.toml");
            // Ports nobody reaches in these tests: every start ends before the client port.
            let text = "[node]\nid = 1\ndata = \"data\"\nkeyring = \"node.keyring\"\n[listen]\nadmin = \"127.0.0.1:PORT\"\n";
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            fs::write(&config, text.replace("PORT", &port.to_string())).unwrap();
            Self { directory, config }
        }

        fn data(&self) -> PathBuf {
            self.directory.path().join("data")
        }

        /// Exit code and message of a start that fails.
        fn run(&self) -> (u8, String) {
            let error = run(&self.config).unwrap_err();
            (error.exit_code(), format!("{error}; {}", error.hint()))
        }
    }

    #[test]
    fn a_node_without_an_identity_is_sent_to_init_and_leaves_nothing_behind() {
        let place = Place::new();
        let (code, said) = place.run();
        assert!(code == 7 && said.contains("swarmmq init --config FILE"), "{code} {said}");
        assert!(!place.data().exists());
    }

    #[test]
    fn a_cluster_is_made_once() {
        let place = Place::new();
        let made = init(&place.config).unwrap();
        assert_eq!((made.node, made.shard_count, made.cluster.len()), (1, 16, 32));
        let again = init(&place.config).unwrap_err();
        assert!(again.exit_code() == 7 && again.message().contains("already"), "{again}");
    }

    #[test]
    fn an_identity_without_a_log_is_a_lost_disk() {
        let place = Place::new();
        init(&place.config).unwrap();
        let log = place.data().join("log");
        fs::remove_file(log.join(disk::segment_name(1))).unwrap();
        for _ in 0..2 {
            let (code, said) = place.run();
            assert!(code == 7 && said.contains("the disk was lost"), "{code} {said}");
            let _ = fs::remove_dir(&log);
        }
    }

    #[test]
    fn a_second_node_on_one_directory_is_told_who_holds_it() {
        let place = Place::new();
        init(&place.config).unwrap();
        let _held = identity::lock(&place.data(), SUCCESSION_TIME_MAX).unwrap();
        let (code, said) = place.run();
        assert!(code == 7 && said.contains(&format!("process {}", std::process::id())), "{code} {said}");
    }

    #[test]
    fn a_keyring_that_opens_messages_is_refused_before_anything_is_touched() {
        let place = Place::new();
        let keyring = place.directory.path().join("node.keyring");
        let text = fs::read_to_string(&keyring).unwrap();
        fs::write(&keyring, format!("{text}[[payload_keys]]\nid = 1\nkey = \"00\"\n")).unwrap();
        let (code, said) = place.run();
        assert!(code == 2 && said.contains("payload_keys"), "{code} {said}");
        assert!(!place.data().exists());
    }

    #[test]
    fn another_node_s_directory_is_refused() {
        let place = Place::new();
        init(&place.config).unwrap();
        let text = fs::read_to_string(&place.config).unwrap();
        fs::write(&place.config, text.replace("id = 1", "id = 2")).unwrap();
        let (code, said) = place.run();
        assert!(code == 2 && said.contains("belongs to node 1"), "{code} {said}");
    }

    #[test]
    fn damage_below_the_watermark_ends_the_start_and_changes_nothing() {
        let place = Place::new();
        init(&place.config).unwrap();
        let segment = place.data().join("log").join(disk::segment_name(1));
        let (log, identity) = {
            let identity = Identity::load(&place.data()).unwrap();
            let log_id =
                identity.cluster.0 ^ (u128::from(identity.node.0) << 64) ^ u128::from(identity.incarnation);
            (swarmmq_engine::log::Config { segment_bytes: 1 << 20, log_id }, identity)
        };
        assert_eq!(identity.node.0, 1);
        let mut writer = swarmmq_engine::log::Writer::new(log, swarmmq_engine::log::Tail::fresh());
        let mut bytes = vec![0; 1 << 20];
        for _ in 0..4 {
            writer.append(200, 0, 1, 1, &[&[7; 100]]);
            let append = writer.take(swarmmq_protocol::time::WallTime(1)).unwrap();
            for write in append.writes {
                let at = write.offset as usize;
                bytes[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
            }
            writer.synced(append.batch);
        }
        bytes[SEGMENT_HEADER_BYTES as usize + 100] ^= 1;
        fs::write(&segment, &bytes).unwrap();
        let (code, said) = place.run();
        assert!(code == 7 && said.contains("corrupt"), "{code} {said}");
        assert_eq!(fs::read(&segment).unwrap(), bytes);
    }
}
