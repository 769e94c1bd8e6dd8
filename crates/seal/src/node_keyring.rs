//! The keyring of nodes: what clients and nodes share with them, and how each of these keys is replaced while everything runs.
//!
//! ```toml
//! version = 1
//! access_token = "64 hex digits"        # opens connections: root's
//! admission_key = "64 hex digits"       # lets messages in
//! peer_secret = "64 hex digits"         # between nodes
//! peer_secret_also = "64 hex digits"    # counts beside it, while one replaces the other; so may the two above
//! ```
//! In three steps, each brought to every node before the next: another key counts beside the present one ([`NodeKeyring::next`]); it
//! is the one in use and the old one counts beside it ([`NodeKeyring::turned`]); the old one counts no more
//! ([`NodeKeyring::dropped`]). Any two nodes that are at most one step apart understand each other.

use std::fmt;

use serde::Deserialize;
use swarmmq_protocol::mac::{MacKey, peer_secret};
use zeroize::Zeroizing;

use crate::{
    derive::Secret,
    keyring::{
        ClientKeyring, FieldError, HexKey, KeyringError, check, malformed, push_hex, push_number,
        text_with_room,
    },
};

/// One of the keys of a node's keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeKey {
    /// Root's token, from which all others follow.
    AccessToken,
    /// What lets messages in.
    AdmissionKey,
    /// What nodes prove to each other that they know.
    PeerSecret,
}

impl NodeKey {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::AccessToken, Self::AdmissionKey, Self::PeerSecret];

    /// As it stands in the file; the key beside it has `_also` behind that.
    pub fn field(self) -> &'static str {
        self.fields()[0]
    }

    fn fields(self) -> [&'static str; 2] {
        match self {
            Self::AccessToken => ["access_token", "access_token_also"],
            Self::AdmissionKey => ["admission_key", "admission_key_also"],
            Self::PeerSecret => ["peer_secret", "peer_secret_also"],
        }
    }
}

/// Why a step cannot be taken. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepError {
    /// There is no such key in the file.
    Missing(NodeKey),
    /// Two of them count already: the change before is not over.
    UnderWay(NodeKey),
    /// Only one counts: there is nothing to turn to and nothing to drop.
    Alone(NodeKey),
    /// The new key is zero, or one that is there: the source of randomness is broken.
    Unlucky,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(key) => write!(f, "there is no {}", key.field()),
            Self::UnderWay(key) => write!(f, "two of {} count already", key.field()),
            Self::Alone(key) => write!(f, "only one {} counts", key.field()),
            Self::Unlucky => f.write_str("the new key is zero, or one that is there"),
        }
    }
}

impl std::error::Error for StepError {}

#[derive(Clone)]
struct Dual {
    current: Secret,
    also: Option<Secret>,
}

/// All that a node shares with others.
#[derive(Clone)]
pub struct NodeKeyring {
    /// In the order of [`NodeKey::ALL`].
    keys: [Option<Dual>; 3],
}

impl fmt::Debug for NodeKeyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKeyring").finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    version: i64,
    access_token: Option<HexKey>,
    access_token_also: Option<HexKey>,
    admission_key: Option<HexKey>,
    admission_key_also: Option<HexKey>,
    peer_secret: Option<HexKey>,
    peer_secret_also: Option<HexKey>,
}

impl NodeKeyring {
    /// Parses the text of a node's keyring. Errors never quote it.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let raw: Raw = toml::from_str(text).map_err(|error: toml::de::Error| {
            malformed(text.as_bytes(), error.span().map_or(0, |span| span.start))
        })?;
        if raw.version != 1 {
            return Err(KeyringError::Version(raw.version));
        }
        let one = |field: &'static str, key: Option<HexKey>| {
            key.map(HexKey::secret).transpose().map_err(|why| KeyringError::Field { field, why })
        };
        let pairs = [
            (raw.access_token, raw.access_token_also),
            (raw.admission_key, raw.admission_key_also),
            (raw.peer_secret, raw.peer_secret_also),
        ];
        let mut keys = [None, None, None];
        for ((slot, key), (current, also)) in keys.iter_mut().zip(NodeKey::ALL).zip(pairs) {
            let [field, field_also] = key.fields();
            let (current, also) = (one(field, current)?, one(field_also, also)?);
            *slot = match (current, also) {
                (Some(current), also) => Some(Dual { current, also }),
                (None, None) if key == NodeKey::PeerSecret => None,
                (None, _) => return Err(KeyringError::Field { field, why: FieldError::Missing }),
            };
        }
        Self { keys }.checked()
    }

    fn checked(self) -> Result<Self, KeyringError> {
        let mut seen = Vec::with_capacity(6);
        for (key, dual) in NodeKey::ALL.into_iter().zip(&self.keys) {
            let secrets = dual.iter().flat_map(|dual| std::iter::once(&dual.current).chain(&dual.also));
            for (field, secret) in key.fields().into_iter().zip(secrets) {
                check(secret, &mut seen).map_err(|why| KeyringError::Field { field, why })?;
            }
        }
        Ok(self)
    }

    /// The text of the file. Secret: write it with mode 0600.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = text_with_room(2048);
        text.push_str("# SwarmMQ keyring for nodes. It lets messages and nodes in and opens none.\n");
        push_number(&mut text, "version", 1);
        for (key, dual) in NodeKey::ALL.into_iter().zip(&self.keys) {
            let Some(dual) = dual else { continue };
            let [field, field_also] = key.fields();
            push_hex(&mut text, field, &dual.current);
            dual.also.iter().for_each(|also| push_hex(&mut text, field_also, also));
        }
        text
    }

    fn dual(&self, key: NodeKey) -> Option<&Dual> {
        self.keys[key as usize].as_ref()
    }

    fn with(&self, key: NodeKey, dual: Dual) -> Self {
        let mut keys = self.keys.clone();
        keys[key as usize] = Some(dual);
        Self { keys }
    }

    pub(crate) fn current(&self, key: NodeKey) -> Option<&Secret> {
        self.dual(key).map(|dual| &dual.current)
    }

    /// First step: one more `key` counts.
    ///
    /// * `random` fills its argument with bytes nobody can guess.
    pub fn next(&self, key: NodeKey, random: &mut dyn FnMut(&mut [u8])) -> Result<Self, StepError> {
        let Dual { current, also } = self.dual(key).ok_or(StepError::Missing(key))?.clone();
        if also.is_some() {
            return Err(StepError::UnderWay(key));
        }
        let also = Some(Secret::filled(|out| random(out)));
        self.with(key, Dual { current, also }).checked().map_err(|_| StepError::Unlucky)
    }

    /// Second step: the other `key` is the one in use. Taken again, it goes back.
    pub fn turned(&self, key: NodeKey) -> Result<Self, StepError> {
        let Dual { current, also } = self.dual(key).ok_or(StepError::Missing(key))?.clone();
        let next = also.ok_or(StepError::Alone(key))?;
        Ok(self.with(key, Dual { current: next, also: Some(current) }))
    }

    /// Third step: only the `key` in use counts.
    pub fn dropped(&self, key: NodeKey) -> Result<Self, StepError> {
        let Dual { current, also } = self.dual(key).ok_or(StepError::Missing(key))?.clone();
        also.ok_or(StepError::Alone(key))?;
        Ok(self.with(key, Dual { current, also: None }))
    }

    /// What tells the keys apart, the one in use first; the same figures stand in a node's log.
    pub fn fingerprints(&self) -> Vec<(NodeKey, Vec<u32>)> {
        let fingerprint = |key: NodeKey, secret: &Secret| {
            let mac = MacKey::new(*secret.bytes());
            if key == NodeKey::PeerSecret { peer_secret(&mac).fingerprint() } else { mac.fingerprint() }
        };
        let of = |(key, dual): (NodeKey, &Option<Dual>)| {
            let dual = dual.as_ref()?;
            let secrets = std::iter::once(&dual.current).chain(&dual.also);
            Some((key, secrets.map(|secret| fingerprint(key, secret)).collect()))
        };
        NodeKey::ALL.into_iter().zip(&self.keys).filter_map(of).collect()
    }
}

impl ClientKeyring {
    /// The keyring file for nodes: the access token and the admission key, which open no message, and a fresh secret between
    /// nodes. Every node of a cluster needs the same one, so this is called once for a cluster.
    ///
    /// * `random` as for [`ClientKeyring::generate`].
    pub fn to_node_text(&self, random: &mut dyn FnMut(&mut [u8])) -> Result<Zeroizing<String>, KeyringError> {
        let keys = self.keys();
        let alone = |current: &Secret| Some(Dual { current: current.clone(), also: None });
        let peer = Secret::filled(|out| random(out));
        let made = NodeKeyring { keys: [alone(keys.root_token()?), alone(&keys.admission), alone(&peer)] };
        let mut seen = vec![keys.root_token()?, &keys.admission, &keys.routing];
        seen.extend(keys.payload.values().map(|key| &key.secret));
        check(&peer, &mut seen)
            .map_err(|why| KeyringError::Field { field: NodeKey::PeerSecret.field(), why })?;
        Ok(made.to_text())
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::time::WallTime;

    use super::*;

    fn pair() -> (ClientKeyring, NodeKeyring) {
        let mut next = 0xa0;
        let mut random = |out: &mut [u8]| {
            out.fill(next);
            next += 1;
        };
        let client = ClientKeyring::generate(WallTime(1), &mut random).unwrap();
        let text = client.to_node_text(&mut random).unwrap();
        (client, NodeKeyring::parse(&text).unwrap())
    }

    #[test]
    fn a_nodes_keyring_survives_writing_and_reading() {
        let (_, node) = pair();
        let all = NodeKey::ALL
            .into_iter()
            .enumerate()
            .fold(node, |node, (at, key)| node.next(key, &mut |out| out.fill(1 + at as u8)).unwrap());
        let again = NodeKeyring::parse(&all.to_text()).unwrap();
        assert_eq!(again.to_text(), all.to_text());
        assert_eq!(again.fingerprints(), all.fingerprints());
        assert!(again.fingerprints().iter().all(|(_, keys)| keys.len() == 2));
        assert!(!format!("{all:?}").contains("a0"));
    }

    #[test]
    fn a_key_is_replaced_in_three_steps_and_in_no_other_order() {
        let (_, node) = pair();
        let key = NodeKey::PeerSecret;
        assert_eq!(node.turned(key).unwrap_err(), StepError::Alone(key));
        assert_eq!(node.dropped(key).unwrap_err(), StepError::Alone(key));
        assert_eq!(node.next(key, &mut |out| out.fill(0)).unwrap_err(), StepError::Unlucky);
        assert_eq!(node.next(key, &mut |out| out.fill(0xa0)).unwrap_err(), StepError::Unlucky);
        let next = node.next(key, &mut |out| out.fill(1)).unwrap();
        assert_eq!(next.next(key, &mut |out| out.fill(2)).unwrap_err(), StepError::UnderWay(key));
        let turned = next.turned(key).unwrap();
        let keys = |keyring: &NodeKeyring| keyring.fingerprints()[2].1.clone();
        assert_eq!(keys(&turned), keys(&next).into_iter().rev().collect::<Vec<_>>());
        assert_eq!(turned.turned(key).unwrap().to_text(), next.to_text(), "and back");
        let dropped = turned.dropped(key).unwrap();
        assert_eq!(keys(&dropped), keys(&turned)[..1]);
        assert_eq!(dropped.fingerprints()[..2], node.fingerprints()[..2], "the others stay");
        let text = node.to_text();
        let without =
            text.lines().filter(|line| !line.starts_with("peer_secret")).collect::<Vec<_>>().join("\n");
        let alone = NodeKeyring::parse(&without).unwrap();
        assert_eq!(alone.turned(key).unwrap_err(), StepError::Missing(key));
    }

    #[test]
    fn clients_follow_what_nodes_use() {
        let (root, node) = pair();
        let token = |keyring: &ClientKeyring| keyring.access_token().fingerprint();
        let admission = |keyring: &ClientKeyring| keyring.admission_key().fingerprint();
        let mut next = 1;
        let mut random = |out: &mut [u8]| {
            out.fill(next);
            next += 1;
        };
        let mut turned = node.clone();
        for key in [NodeKey::AccessToken, NodeKey::AdmissionKey] {
            turned = turned.next(key, &mut random).unwrap().turned(key).unwrap();
        }
        let followed = root.following(&turned).unwrap();
        assert_eq!(token(&followed), turned.fingerprints()[0].1[0]);
        assert_eq!(admission(&followed), turned.fingerprints()[1].1[0]);
        assert!(root.is_of_same_cluster(&followed) && !root.is_same(&followed));
        // The token of another principal is its own affair.
        let name = swarmmq_protocol::access::PrincipalName::parse("till").unwrap();
        let till = root.for_principal(swarmmq_protocol::id::ClusterId(5), &name, 1).unwrap();
        let followed = till.following(&turned).unwrap();
        assert_eq!(token(&followed), token(&till));
        assert_eq!(admission(&followed), turned.fingerprints()[1].1[0]);
    }
}
