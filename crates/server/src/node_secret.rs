//! The secret of this node: drawn once for a data directory, kept beside its identity, never sent. Its public half is what the
//! cluster knows the node by, so a directory that lost it gets a new one and is introduced again.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use swarmmq_protocol::node_key::NodeSecret;
use zeroize::Zeroizing;

use crate::{StartError, bootstrap::unhex, clock, identity::unwritable};

const FILE: &str = "node.key";

/// Reads the secret, or draws it if there is none yet.
pub(crate) fn load_or_make(data: &Path) -> Result<NodeSecret, StartError> {
    let path = data.join(FILE);
    match fs::read_to_string(&path).map(Zeroizing::new) {
        Ok(text) => {
            let seed = unhex(text.trim()).ok_or_else(|| {
                StartError::local(
                    format!("{} is damaged: it should be 64 hexadecimal digits", path.display()),
                    "restore the file from a backup; or remove it: the node draws a new one and is introduced to the others again",
                )
            })?;
            Ok(NodeSecret::new(*seed))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(data),
        Err(error) => Err(StartError::local(
            format!("cannot read {}: {error}", path.display()),
            "check permissions and the disk",
        )),
    }
}

fn make(data: &Path) -> Result<NodeSecret, StartError> {
    let seed = Zeroizing::new(clock::random::<32>());
    let mut text = Zeroizing::new(String::with_capacity(65));
    for byte in seed.iter() {
        text.push_str(&format!("{byte:02x}"));
    }
    text.push('\n');
    let temporary = data.join("node.key.tmp");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, data.join(FILE)))
        .and_then(|()| File::open(data)?.sync_all())
        .map_err(|error| unwritable(data, &error))?;
    Ok(NodeSecret::new(*seed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_drawn_once_and_only_its_owner_may_read_it() {
        let place = tempfile::tempdir().unwrap();
        let made = load_or_make(place.path()).unwrap().public();
        assert_eq!(load_or_make(place.path()).unwrap().public(), made);
        let mode = fs::metadata(place.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(load_or_make(other.path()).unwrap().public(), made);
    }

    #[test]
    fn a_damaged_secret_is_refused_and_kept() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join(FILE), "0123").unwrap();
        let error = load_or_make(place.path()).unwrap_err().to_string();
        assert!(error.contains("node.key is damaged"), "{error}");
        assert_eq!(fs::read_to_string(place.path().join(FILE)).unwrap(), "0123");
    }
}
