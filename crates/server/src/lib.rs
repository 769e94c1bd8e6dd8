//! How a node touches the world: sockets, disk, clock, telemetry. Everything it decides is decided in the engine.

mod acquaintances;
mod audit;
mod bootstrap;
mod clock;
mod disk;
mod gossip;
mod http;
mod identity;
mod join;
mod keyring;
mod link;
mod listener;
mod node_secret;
mod peers;
mod shutdown;
mod telemetry;
mod tls;
mod worker;

use std::{fmt, path::Path};

use swarmmq_engine::{
    log::{Recovery, SEGMENT_HEADER_BYTES, Verdict},
    node::{self, bug::Bugs},
};
use swarmmq_protocol::{join_token::JoinToken, mac::MacKey, node_key::NodeSecret, session::peer::PeerHello};

use self::{
    bootstrap::NodeConfig,
    clock::{Clock, SUCCESSION_TIME_MAX},
    disk::SegmentFiles,
    http::Shared,
    identity::{Fate, Identity, new_incarnation},
    keyring::{KeyringFile, NodeKeyring},
    shutdown::Watch,
    tls::Certificates,
    worker::Ended,
};

/// Bytes of one log segment.
const SEGMENT_BYTES: u32 = 64 << 20;
/// Payload bytes kept in memory.
const CACHE_BYTES_MAX: usize = 48 << 20;
/// Messages that the logged horizon runs ahead of deliveries.
const HORIZON_AHEAD: u64 = 1024;
/// Copies of each shard in a cluster that is made now.
pub const REPLICAS: u8 = 3;
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
///
/// * `open_join`: nodes that know the peer secret become members without a join token, until that setting is changed.
pub fn init(config_path: &Path, open_join: bool) -> Result<InitReport, StartError> {
    let config = NodeConfig::load(config_path)?;
    if config.roles & PeerHello::STORE == 0 {
        return Err(StartError::config(
            "node.roles leaves store out: the first node of a cluster holds its data",
            "give this node the role store, or make the cluster on another one",
        ));
    }
    identity::make_directory(&config.data)?;
    let _lock = identity::lock(&config.data, SUCCESSION_TIME_MAX)?;
    let made = Identity::make(&config.data, config.node, open_join)?;
    Ok(InitReport { cluster: made.cluster.to_string(), node: made.node.0, shard_count: made.shard_count })
}

/// Runs a node until it is told to stop. Returns when it has drained.
///
/// * `token`: what lets it join, if it is no member yet; `cluster.join_token_file` counts where this is `None`.
pub fn run(config_path: &Path, token: Option<JoinToken>) -> Result<(), StartError> {
    telemetry::init();
    let mut config = NodeConfig::load(config_path)?;
    config.token = match token {
        Some(token) => Some(token),
        None => config.read_token()?,
    };
    let named = std::env::var_os("SWARMMQ_KEYRING").is_some();
    let mut keyring = KeyringFile::load(&config.keyring, named)?;
    if Identity::load(&config.data)?.is_none() {
        identity::refuse_orphaned_log(&config.data)?;
        if config.seeds.is_empty() {
            return Err(StartError::local(
                format!("{} is not part of a cluster: there is no identity.toml", config.data.display()),
                "a new cluster: run `swarmmq init --config FILE`, once; a node that joins one: name its seeds; one that held data: mount or restore its disk first",
            ));
        }
        identity::make_directory(&config.data)?;
    }
    let _lock = identity::lock(&config.data, SUCCESSION_TIME_MAX)?;
    let identity = Identity::load(&config.data)?;
    if let Some(identity) = identity.filter(|identity| identity.node != config.node) {
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
    if identity.is_some() {
        config.add_seeds(&acquaintances::load(&config.data));
    }
    if keyring.keys().peer_secret.is_none() && !config.seeds.is_empty() {
        return Err(NodeKeyring::no_peer_secret(&config.keyring));
    }
    let mut certificates = Certificates::load(&config)?;
    let shared = Shared::default();
    // Before the log is read, which may take long: whoever watches can see that the node lives.
    let admin = http::serve(config.admin, shared.clone())?;
    let result = run_here(&mut config, identity, &mut keyring, &mut certificates, &shared);
    admin.stop();
    result
}

fn run_here(
    config: &mut NodeConfig,
    identity: Option<Identity>,
    keyring: &mut KeyringFile,
    certificates: &mut Certificates,
    shared: &Shared,
) -> Result<(), StartError> {
    let clock = Clock::start();
    let mut watch = None;
    let secret = keyring.keys().peer_secret.clone();
    let find = |config: &NodeConfig, certificates: &mut Certificates, watch: &mut Watch, why: &str| {
        let secret = secret.clone().ok_or_else(|| NodeKeyring::no_peer_secret(&config.keyring))?;
        join::find(config, secret, certificates, clock, watch, shared, why)
    };
    let mut identity = match identity {
        Some(identity) => identity,
        None => {
            let watch = begin_watch(&mut watch)?;
            let Some(found) = find(config, certificates, watch, "an empty disk")? else { return Ok(()) };
            Identity::join(&config.data, config.node, found.incarnation, found.cluster, found.shard_count)?
        }
    };
    loop {
        let (node, files) = match open(config, &mut identity, keyring.keys(), clock)? {
            Opened::Whole(node, files) => (*node, files),
            Opened::Corrupt(what) => {
                refuse_only_copy(config, &what)?;
                tracing::error!(
                    data = %config.data.display(),
                    what,
                    "THE LOG OF THIS DISK IS CORRUPT: nothing is changed until a member of the cluster answers"
                );
                let watch = begin_watch(&mut watch)?;
                let why = "a disk with a corrupt log";
                let Some(found) = find(config, certificates, watch, why)? else { return Ok(()) };
                if found.cluster != identity.cluster {
                    return Err(StartError::config(
                        format!(
                            "the seeds belong to cluster {}, this disk to {}",
                            found.cluster, identity.cluster
                        ),
                        "correct `cluster.seeds`; nothing was changed",
                    ));
                }
                renew(config, &mut identity, found.incarnation, Fate::Corrupt)?;
                continue;
            }
        };
        identity.count_boot(&config.data)?;
        // Until here a signal ends the process at once, unless it was asked to wait: there is nothing to finish.
        let watch = begin_watch(&mut watch)?;
        let ready = worker::Ready { node, files, identity, clock };
        match worker::run(config, ready, keyring, certificates, watch, shared)? {
            Ended::Drained => return Ok(()),
            Ended::DiskLost { others } => {
                config.add_seeds(&others);
                identity = Identity::load(&config.data)?.ok_or_else(|| lost(config))?;
                renew(config, &mut identity, new_incarnation(), Fate::Lost)?;
            }
        }
    }
}

/// From the first call on a signal does not end the process: it is asked to stop.
fn begin_watch(watch: &mut Option<Watch>) -> Result<&mut Watch, StartError> {
    Ok(match watch.take() {
        Some(begun) => watch.insert(begun),
        None => watch.insert(Watch::start()?),
    })
}

/// What was found where the log should be.
enum Opened {
    /// A node as its log left it, and the log.
    Whole(Box<node::Node>, SegmentFiles),
    /// A log that cannot be gone on with, and why.
    Corrupt(String),
}

/// Opens the log. A lost one makes the disk a new one at once, if there are others to join again: there is nothing to keep.
fn open(
    config: &NodeConfig,
    identity: &mut Identity,
    keyring: &NodeKeyring,
    clock: Clock,
) -> Result<Opened, StartError> {
    let mut log = Log::read(config, identity, keyring)?;
    if log.as_ref().is_none_or(|log| log.is_blank() && identity.begun) {
        renew(config, identity, new_incarnation(), Fate::Lost)?;
        log = Log::read(config, identity, keyring)?;
    }
    Ok(log.ok_or_else(|| lost(config))?.finish(clock))
}

/// The log that this disk had cannot be gone on with. What it had promised may be lost with it, so it must not go on under
/// its old name: it would vote again, and answer with what it does not know any more (safety rules 14 and 20).
fn renew(
    config: &NodeConfig,
    identity: &mut Identity,
    incarnation: u64,
    fate: Fate,
) -> Result<(), StartError> {
    if config.seeds.is_empty() {
        return Err(lost(config));
    }
    let before = *identity;
    identity.renew(&config.data, incarnation, fate)?;
    let what = match fate {
        Fate::Lost => "THE LOG OF THIS DISK IS LOST, or older than what others remember of it",
        Fate::Corrupt => "THE LOG OF THIS DISK IS CORRUPT",
    };
    tracing::error!(
        data = %config.data.display(),
        aside = %before.aside(&config.data, fate).display(),
        before = format!("{:016x}", before.incarnation),
        now = format!("{:016x}", identity.incarnation),
        "{what}: it joins its cluster again as a new, empty disk; what only it held is set aside"
    );
    Ok(())
}

/// A corrupt log is never abandoned where it may be the only copy: nodes that know of fewer than three members keep one.
fn refuse_only_copy(config: &NodeConfig, what: &str) -> Result<(), StartError> {
    let others = acquaintances::load(&config.data).len();
    let may_be_only = if others == 0 { config.seeds.is_empty() } else { others + 1 < usize::from(REPLICAS) };
    if !may_be_only {
        return Ok(());
    }
    Err(StartError::local(
        format!("{}: {what}", config.data.join("log").display()),
        "nobody else has a copy of what is in it, so nothing was changed: copy the data directory, then restore it from a backup",
    ))
}

fn lost(config: &NodeConfig) -> StartError {
    StartError::local(
        format!("{} has an identity but no log: the disk was lost or emptied", config.data.display()),
        "restore the directory from where it went; only a node with seeds can join its cluster again without it",
    )
}

fn node_config(
    config: &NodeConfig,
    identity: &Identity,
    keyring: &NodeKeyring,
    files: &SegmentFiles,
    secret: NodeSecret,
) -> node::Config {
    node::Config {
        cluster: identity.cluster,
        node: identity.node,
        incarnation: identity.incarnation,
        // This start is counted once it has succeeded.
        boot: identity.boot + 1,
        founder: identity.founder,
        replicas: REPLICAS,
        open_join: identity.open_join,
        roles: config.roles,
        addresses: config.addresses(),
        shard_count: identity.shard_count,
        access_token: keyring.access_token.clone(),
        admission_key: keyring.admission_key.clone(),
        secret,
        // A node alone has nobody to agree with.
        cluster_secret: keyring.peer_secret.clone().unwrap_or_else(|| MacKey::new(clock::random()).into()),
        segment_bytes: SEGMENT_BYTES,
        cache_bytes_max: CACHE_BYTES_MAX,
        horizon_ahead: HORIZON_AHEAD,
        reserve_bytes: (files.total_bytes() / RESERVE_FRACTION).max(RESERVE_BYTES_MIN),
        seed: identity.incarnation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        bugs: Bugs::NONE,
    }
}

/// A log that was read and checked.
struct Log {
    files: SegmentFiles,
    restore: node::Restore,
    verdict: Verdict,
    records: u64,
}

impl Log {
    /// Reads the whole log; `None` if there is not even an empty one.
    fn read(
        config: &NodeConfig,
        identity: &Identity,
        keyring: &NodeKeyring,
    ) -> Result<Option<Self>, StartError> {
        let directory = config.data.join("log");
        if !directory.exists() {
            return Ok(None);
        }
        let mut files = SegmentFiles::open(&directory, SEGMENT_BYTES)?;
        let sequences = files.sequences();
        if sequences.is_empty() {
            return Ok(None);
        }
        let config = node_config(config, identity, keyring, &files, node_secret::load_or_make(&config.data)?);
        let log =
            swarmmq_engine::log::Config { segment_bytes: config.segment_bytes, log_id: config.log_id() };
        let mut recovery = Recovery::new(log, sequences.clone());
        let mut restore = node::Node::restore(config);
        restore.segments(&sequences);
        let mut records = 0;
        let mut buffer = Vec::new();
        for sequence in recovery.order().to_vec() {
            files.read_whole(sequence, &mut buffer)?;
            if buffer.len() < SEGMENT_HEADER_BYTES as usize {
                buffer.resize(SEGMENT_HEADER_BYTES as usize, 0);
            }
            recovery.segment(sequence, &buffer, &mut |record| {
                records += 1;
                restore.record(&record);
            });
        }
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
        Ok(Some(Self { files, restore, verdict, records }))
    }

    /// Whether nothing is in it, and nothing is wrong with it.
    fn is_blank(&self) -> bool {
        self.records == 0 && !matches!(self.verdict, Verdict::Corrupt { .. })
    }

    /// Rebuilds the node.
    fn finish(self, clock: Clock) -> Opened {
        let Self { files, restore, verdict, .. } = self;
        let mut read = |position, length| files.read_at(position, length);
        match restore.finish(&verdict, clock.now(), &mut read) {
            Ok(node) => Opened::Whole(Box::new(node), files),
            Err(error) => Opened::Corrupt(error.to_string()),
        }
    }
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
            let keys = ["access_token", "admission_key", "peer_secret"];
            let keys = keys.map(|key| format!("{key} = \"{}\"\n", "1f".repeat(32))).concat();
            fs::write(directory.path().join("node.keyring"), format!("version = 1\n{keys}")).unwrap();
            let config = directory.path().join("node.toml");
            // Ports nobody reaches in these tests: every start ends before the client port.
            let text = "[node]\nid = 1\ndata = \"data\"\nkeyring = \"node.keyring\"\n[listen]\ninsecure_plaintext = true\nadmin = \"127.0.0.1:PORT\"\n";
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            fs::write(&config, text.replace("PORT", &port.to_string())).unwrap();
            Self { directory, config }
        }

        fn data(&self) -> PathBuf {
            self.directory.path().join("data")
        }

        /// Exit code and message of a start that fails.
        fn run(&self) -> (u8, String) {
            let error = run(&self.config, None).unwrap_err();
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
        let made = init(&place.config, false).unwrap();
        assert_eq!((made.node, made.shard_count, made.cluster.len()), (1, 16, 32));
        let again = init(&place.config, false).unwrap_err();
        assert!(again.exit_code() == 7 && again.message().contains("already"), "{again}");
    }

    #[test]
    fn an_identity_without_a_log_is_a_lost_disk() {
        let place = Place::new();
        init(&place.config, false).unwrap();
        let log = place.data().join("log");
        fs::remove_file(log.join(disk::segment_name(1))).unwrap();
        for _ in 0..2 {
            let (code, said) = place.run();
            assert!(code == 7 && said.contains("the disk was lost"), "{code} {said}");
            let _ = fs::remove_dir(&log);
        }
    }

    #[test]
    fn a_keyring_without_the_secret_between_nodes_is_one_for_a_node_alone() {
        let place = Place::new();
        let text = fs::read_to_string(&place.config).unwrap();
        fs::write(&place.config, format!("{text}[cluster]\nseeds = [\"127.0.0.1:9\"]\n")).unwrap();
        let keyring = place.directory.path().join("node.keyring");
        let keys = fs::read_to_string(&keyring).unwrap();
        init(&place.config, false).unwrap();
        let lines: Vec<&str> = keys.lines().filter(|line| !line.contains("peer")).collect();
        fs::write(&keyring, lines.join("\n")).unwrap();
        let (code, said) = place.run();
        assert!(
            code == 2 && said.contains("no `peer_secret`") && said.contains("keys generate"),
            "{code} {said}"
        );
        // Whom it knew counts as much as its seeds.
        fs::write(&place.config, text).unwrap();
        acquaintances::save(&place.data(), &["127.0.0.1:9".parse().unwrap()]).unwrap();
        let (code, said) = place.run();
        assert!(code == 2 && said.contains("no `peer_secret`"), "{code} {said}");
    }

    #[test]
    fn a_corrupt_log_that_may_be_the_only_copy_is_kept() {
        let place = Place::new();
        init(&place.config, false).unwrap();
        let mut config = NodeConfig::load(&place.config).unwrap();
        let refused = |config: &NodeConfig| refuse_only_copy(config, "corrupt").is_err();
        assert!(refused(&config), "it knows nobody");
        let others = ["127.0.0.1:8", "127.0.0.1:9"].map(|address| address.parse().unwrap());
        acquaintances::save(&place.data(), &others[..1]).unwrap();
        config.add_seeds(&others);
        assert!(refused(&config), "two nodes keep one copy");
        acquaintances::save(&place.data(), &others).unwrap();
        assert!(!refused(&config));
    }

    /// Opens the log as a start would, with a seed to join through.
    fn open_with_a_seed(place: &Place) -> Identity {
        let text = fs::read_to_string(&place.config).unwrap();
        if !text.contains("seeds") {
            fs::write(&place.config, format!("{text}[cluster]\nseeds = [\"127.0.0.1:9\"]\n")).unwrap();
        }
        let config = NodeConfig::load(&place.config).unwrap();
        let keyring = NodeKeyring::load(&config.keyring, false).unwrap();
        let identity = Identity::load(&config.data).unwrap().unwrap();
        let mut identity = identity;
        let Opened::Whole(node, _) = open(&config, &mut identity, &keyring, Clock::start()).unwrap() else {
            panic!("the log is corrupt");
        };
        identity.count_boot(&config.data).unwrap();
        assert_eq!(Identity::load(&config.data), Ok(Some(identity)));
        let hello = node.hello();
        assert_eq!((hello.incarnation, hello.boot), (identity.incarnation, identity.boot));
        identity
    }

    #[test]
    fn starts_before_the_first_record_are_starts_of_the_same_disk() {
        let place = Place::new();
        init(&place.config, false).unwrap();
        let made = Identity::load(&place.data()).unwrap().unwrap();
        for boot in 1..=3 {
            let mut started = made;
            started.boot = boot;
            assert_eq!(open_with_a_seed(&place), started);
        }
    }

    #[test]
    fn a_disk_that_lost_its_log_can_only_join_again_as_a_new_one() {
        let place = Place::new();
        init(&place.config, false).unwrap();
        let log = place.data().join("log");
        let mut before = open_with_a_seed(&place);
        // Its log is empty although it had begun; then it is gone; then even the folder is.
        for lose in [
            |_: &Path| {},
            |log: &Path| fs::remove_file(log.join(disk::segment_name(1))).unwrap(),
            |log: &Path| fs::remove_dir_all(log).unwrap(),
        ] {
            before.set_begun(&place.data()).unwrap();
            lose(&log);
            let after = open_with_a_seed(&place);
            assert_ne!(after.incarnation, before.incarnation);
            assert_eq!((after.founder, after.begun, after.boot), (false, false, 1));
            assert_eq!((after.cluster, after.node), (before.cluster, before.node));
            before = after;
        }
    }

    #[test]
    fn a_log_without_an_identity_is_nobody_s_to_join_over() {
        let place = Place::new();
        fs::create_dir_all(place.data().join("log")).unwrap();
        fs::write(place.data().join("log").join(disk::segment_name(1)), "records").unwrap();
        let (code, said) = place.run();
        assert!(code == 7 && said.contains("without an identity"), "{code} {said}");
    }

    #[test]
    fn the_first_node_holds_data() {
        let place = Place::new();
        let text = fs::read_to_string(&place.config).unwrap();
        fs::write(&place.config, text.replace("[listen]", "roles = [\"router\"]\n[listen]")).unwrap();
        let error = init(&place.config, false).unwrap_err();
        assert!(error.exit_code() == 2 && error.message().contains("store"), "{error}");
        assert!(!place.data().exists());
    }

    #[test]
    fn a_second_node_on_one_directory_is_told_who_holds_it() {
        let place = Place::new();
        init(&place.config, false).unwrap();
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
        init(&place.config, false).unwrap();
        let text = fs::read_to_string(&place.config).unwrap();
        fs::write(&place.config, text.replace("id = 1", "id = 2")).unwrap();
        let (code, said) = place.run();
        assert!(code == 2 && said.contains("belongs to node 1"), "{code} {said}");
    }

    #[test]
    fn damage_below_the_watermark_ends_the_start_and_changes_nothing() {
        let place = Place::new();
        init(&place.config, false).unwrap();
        let segment = place.data().join("log").join(disk::segment_name(1));
        let (log, identity) = {
            let identity = Identity::load(&place.data()).unwrap().unwrap();
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
