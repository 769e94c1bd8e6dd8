//! Which cluster a command means: what it says, what the environment says, or the local cluster of this directory.

use std::{env, fs, path::Path, time::Duration};

use clap::Args;
use serde_json::Value;
use swarmmq_client::{Options, SwarmMq};
use swarmmq_seal::{ClientKeyring, LoadError};

use crate::{
    output::{Failure, Outcomes},
    parse,
};

/// Where `dev up` puts a cluster unless told otherwise.
pub(crate) const LOCAL: &str = ".swarmmq";

/// Time for the first connection.
pub(crate) const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

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
    pub(crate) fn find(&self) -> Outcomes<(Vec<String>, String)> {
        let local = fs::read_to_string(Path::new(LOCAL).join("cluster.json"))
            .ok()
            .and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let said = self.servers.clone().or_else(|| env::var("SWARMMQ_SERVERS").ok());
        let servers = match (said, &local) {
            (Some(said), _) => parse::servers(&said)
                .map_err(|message| Failure::usage(message, "check --servers and SWARMMQ_SERVERS"))?,
            (None, Some(local)) => {
                let nodes = local["nodes"].as_array().cloned().unwrap_or_default();
                nodes.iter().filter_map(|node| node["client"].as_str().map(str::to_owned)).collect()
            }
            (None, None) => vec!["127.0.0.1:7420".to_owned()],
        };
        let keyring = self
            .keyring
            .clone()
            .or_else(|| env::var("SWARMMQ_KEYRING").ok())
            .or_else(|| local.as_ref().and_then(|local| local["keyring"].as_str().map(str::to_owned)))
            .ok_or_else(|| {
                Failure::usage(
                    "no keyring: messages are sealed here, so a key is needed",
                    "give --keyring FILE or set SWARMMQ_KEYRING; `swarmmq dev up` makes a local cluster with one",
                )
            })?;
        Ok((servers, keyring))
    }

    /// Connects, or tells why not.
    pub(crate) async fn connect(&self, timeout: Duration) -> Outcomes<SwarmMq> {
        let (servers, keyring) = self.find()?;
        let mut options = Options::new(servers, load_keyring(&keyring)?);
        options.connect_timeout = timeout;
        Ok(SwarmMq::connect(options).await?)
    }
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
                "use the client.keyring that `swarmmq keys generate` or `dev up` wrote",
            ),
        }
    })
}
