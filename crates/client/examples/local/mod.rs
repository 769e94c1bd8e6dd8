//! Which cluster the examples use: what the environment says (`eval "$(swarmmq dev env)"`), or the local cluster that
//! `swarmmq dev up --nodes 1` made in this directory.

use std::{env, error::Error, fs, path::Path};

use swarmmq_client::{ClientKeyring, Options, SwarmMq};

/// Where `dev up` puts a cluster.
const DIRECTORY: &str = ".swarmmq";

/// Connects, or says what is missing.
pub(crate) async fn connect() -> Result<SwarmMq, Box<dyn Error>> {
    let keyring = env::var("SWARMMQ_KEYRING").unwrap_or_else(|_| format!("{DIRECTORY}/client.keyring"));
    let servers = match env::var("SWARMMQ_SERVERS") {
        Ok(servers) => servers.split(',').map(str::to_owned).collect(),
        Err(_) => local_servers().ok_or("no cluster here: `swarmmq dev up --nodes 1` makes one")?,
    };
    Ok(SwarmMq::connect(Options::new(servers, ClientKeyring::load(Path::new(&keyring))?)).await?)
}

/// From `cluster.json`: every `"client":"HOST:PORT"`. A program of yours has a configuration instead.
fn local_servers() -> Option<Vec<String>> {
    let text = fs::read_to_string(Path::new(DIRECTORY).join("cluster.json")).ok()?;
    let after = text.split("\"client\":\"").skip(1);
    Some(after.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect())
}
