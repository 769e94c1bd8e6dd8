//! What only the two ends may read: payload encryption and the keyring. The format is in `docs/design/sealing.md`.
//!
//! A [`Sealer`] belongs to one producer session, an [`Opener`] to one receiver; both take their keys from a
//! [`ClientKeyring`]. Nothing that a node runs may depend on this crate: that is how the crate graph shows that no
//! node can open a message. Absent here: clocks, entropy, sockets. Randomness and time are handed in.

mod compression;
mod derive;
mod keyring;
mod lifecycle;
mod node_keyring;
#[cfg(test)]
mod nonce_hunt;
mod plaintext;
mod seal;
mod turn;
#[cfg(test)]
mod vectors;

pub use keyring::{
    CA_BYTES_MAX, ClientCertificate, ClientKeyring, FieldError, KeyringError, LoadError, PAYLOAD_KEYS_MAX,
    Trust,
};
pub use lifecycle::{ChangeError, Imported, KeyState, PayloadKeyInfo};
pub use node_keyring::{NodeKey, NodeKeyring, StepError};
pub use plaintext::{ContentError, Opened, UserHeader};
pub use seal::{Draft, OpenError, Opener, SESSION_MESSAGES_MAX, SealError, Sealer};
pub use turn::KeyLimits;
