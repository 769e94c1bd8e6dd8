//! Whom this node knew last, in a file beside its identity: where to ask for its cluster when its log cannot tell any more.

use std::{
    fs::{self, File},
    io::Write,
    net::SocketAddr,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{StartError, identity};

const FILE: &str = "peers.toml";

#[derive(Serialize, Deserialize)]
struct Written {
    /// Where the other members listen for nodes.
    peers: Vec<String>,
}

/// Where the other members listened when this node last heard of them. Empty if it never did, or the file cannot be read:
/// it only helps, so it stops nobody.
pub(crate) fn load(data: &Path) -> Vec<SocketAddr> {
    let path = data.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "nobody knows who the other members were");
            }
            return Vec::new();
        }
    };
    match toml::from_str::<Written>(&text) {
        Ok(written) => written.peers.iter().filter_map(|peer| peer.parse().ok()).collect(),
        Err(error) => {
            tracing::warn!(path = %path.display(), error = error.message(), "nobody knows who the other members were");
            Vec::new()
        }
    }
}

/// Replaces the file, unless it says so already. A power cut afterwards leaves the old one or the new one.
pub(crate) fn save(data: &Path, peers: &[SocketAddr]) -> Result<(), StartError> {
    if load(data) == peers {
        return Ok(());
    }
    let written = Written { peers: peers.iter().map(SocketAddr::to_string).collect() };
    let text = toml::to_string(&written).expect("a list of words can be written");
    let temporary = data.join("peers.tmp");
    File::create(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, data.join(FILE)))
        .map_err(|error| identity::unwritable(data, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_known_is_known_again_and_damage_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).is_empty());
        let peers: Vec<SocketAddr> = vec!["127.0.0.1:7".parse().unwrap(), "127.0.0.1:9".parse().unwrap()];
        save(dir.path(), &peers).unwrap();
        assert_eq!(load(dir.path()), peers);
        save(dir.path(), &peers[..1]).unwrap();
        assert_eq!(load(dir.path()), peers[..1]);
        fs::write(dir.path().join(FILE), "peers = [").unwrap();
        assert!(load(dir.path()).is_empty());
    }
}
