//! Which cluster a command means: what it says, what the environment says, or the local cluster of this directory.

use std::{env, fs, io::ErrorKind, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use clap::Args;
use serde_json::Value;
use swarmmq_client::{Options, SwarmMq};
use swarmmq_seal::{ClientKeyring, LoadError};

use crate::{
    output::{Failure, Outcomes, note},
    parse,
};

/// Where `dev up` puts a cluster unless told otherwise.
pub(crate) const LOCAL: &str = ".swarmmq";

/// The file in it that says what runs where.
pub(crate) const CLUSTER: &str = "cluster.json";

/// Time for the first connection.
pub(crate) const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Time after which whoever waits for a connection is told what for. Longer than `status` waits.
const SILENT_TIME_MAX: Duration = Duration::from_secs(4);

/// Time for a session to say goodbye.
pub(crate) const CLOSE_TIME_MAX: Duration = Duration::from_secs(5);

/// Options of every command that talks to a cluster.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Target {
    /// HOST:PORT of nodes, separated by commas [env: SWARMMQ_SERVERS]
    #[arg(long, global = true)]
    pub(crate) servers: Option<String>,
    /// The client keyring [env: SWARMMQ_KEYRING]
    #[arg(long, global = true)]
    pub(crate) keyring: Option<String>,
}

impl Target {
    /// Servers and path of the keyring.
    fn find(&self) -> Outcomes<(Vec<String>, String)> {
        let servers = self.servers.clone().or_else(|| env::var("SWARMMQ_SERVERS").ok());
        let keyring = self.keyring.clone().or_else(|| env::var("SWARMMQ_KEYRING").ok());
        // What is said completely is not disturbed by a local cluster, not even by a damaged one.
        let local = if servers.is_some() && keyring.is_some() { None } else { local_cluster()? };
        let servers = match (servers, &local) {
            (Some(said), _) => parse::servers(&said)
                .map_err(|message| Failure::usage(message, "check --servers and SWARMMQ_SERVERS"))?,
            (None, Some(local)) => {
                let nodes = local["nodes"].as_array().cloned().unwrap_or_default();
                nodes.iter().filter_map(|node| node["client"].as_str().map(str::to_owned)).collect()
            }
            (None, None) => vec!["127.0.0.1:7420".to_owned()],
        };
        let local = local.as_ref().and_then(|local| local["keyring"].as_str().map(str::to_owned));
        let keyring = keyring.or(local).ok_or_else(|| {
            Failure::usage(
                "no keyring: messages are sealed here, so a key is needed",
                "give --keyring FILE or set SWARMMQ_KEYRING; `swarmmq dev up` makes a local cluster with one",
            )
        })?;
        Ok((servers, keyring))
    }

    /// Where the client's keyring lies.
    pub(crate) fn keyring_path(&self) -> Outcomes<String> {
        self.find().map(|(_, keyring)| keyring)
    }

    /// Whether the cluster is the local one in `directory`, as far as can be told.
    pub(crate) fn is_local(&self, directory: &Path) -> bool {
        let Ok((servers, _)) = self.find() else { return false };
        let Ok(cluster) = crate::dev::Cluster::load(directory) else { return false };
        cluster.nodes.iter().any(|node| servers.contains(&node.client))
    }

    /// What a connection needs.
    pub(crate) fn options(&self, connect_timeout: Duration) -> Outcomes<Options> {
        let (servers, keyring) = self.find()?;
        let mut options = Options::new(servers, load_keyring(&keyring)?);
        options.connect_timeout = connect_timeout;
        let open = fs::metadata(&keyring).is_ok_and(|file| file.permissions().mode() & 0o077 != 0);
        if open {
            note(format!("warning: others may read {keyring}; `chmod 600` it"));
        }
        Ok(options)
    }

    /// Connects, or tells why not.
    pub(crate) async fn connect(&self, timeout: Duration) -> Outcomes<SwarmMq> {
        let options = self.options(timeout)?;
        let patience = format!("waiting for {}, at most {} s", options.servers.join(","), timeout.as_secs());
        let mut connecting = std::pin::pin!(SwarmMq::connect(options));
        let connected = tokio::select! {
            connected = &mut connecting => connected,
            () = tokio::time::sleep(SILENT_TIME_MAX) => {
                note(patience);
                connecting.await
            }
        };
        connected.map_err(|error| self.explain(error.into()))
    }

    /// Who found the cluster in this directory is told how to start it.
    pub(crate) fn explain(&self, failure: Failure) -> Failure {
        let said = self.servers.is_some() || env::var_os("SWARMMQ_SERVERS").is_some();
        if failure.code != "unreachable" || said || !Path::new(LOCAL).join(CLUSTER).exists() {
            return failure;
        }
        let hint = format!("this is the local cluster in ./{LOCAL}: start it with `swarmmq dev up`");
        Failure { hint, ..failure }
    }
}

/// What `dev up` wrote in this directory, if it did.
fn local_cluster() -> Outcomes<Option<Value>> {
    let path = Path::new(LOCAL).join(CLUSTER);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Failure::local(
                format!("cannot read {}: {error}", path.display()),
                "check its permissions, or give --servers and --keyring",
            ));
        }
    };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Failure::local(
            format!("{} is damaged: {error}", path.display()),
            "restore it, or give --servers and --keyring",
        )
    })
}

/// Reads a keyring, or tells why not: an unreadable one is a matter of configuration, a damaged one of local data.
pub(crate) fn load_keyring(path: &str) -> Outcomes<ClientKeyring> {
    ClientKeyring::load(Path::new(path)).map_err(|error| {
        let message = error.to_string();
        match error {
            LoadError::File { .. } => {
                Failure::usage(message, "give the path of a readable client.keyring with --keyring")
            }
            LoadError::Keyring { .. } => Failure::local(
                message,
                "use the client.keyring that `swarmmq keys generate` or `dev up` wrote, or a copy of it",
            ),
        }
    })
}
