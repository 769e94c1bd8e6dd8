//! From the keyring's payload key to the key of one producer session, and the sessions whose keys are ready for use.
//!
//! ```text
//! payload key (keyring, by id) --address--> address key --salt, address, producer, epoch, renewal--> session key
//! ```
//!
//! Both steps are HKDF-SHA256. A session key belongs to one salt, so two sessions never share a nonce space; and to one
//! renewal, so a session can take a fresh key without beginning anew.

use std::{collections::BTreeMap, fmt};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
    hkdf::{self, HKDF_SHA256},
};
use swarmmq_protocol::{
    envelope,
    id::{KeyId, KeyRenewal, ProducerEpoch, ProducerId, Salt, Sequence, ShardId},
    limits::{ADDRESS_BYTES_MAX, TAG_BYTES},
};
use zeroize::Zeroize;

/// Secret 256 bits. Zeroed on drop, each copy by itself; lies on the heap, so that moving it leaves no copy behind.
#[derive(Clone)]
pub(crate) struct Secret(Box<[u8; 32]>);

impl Secret {
    /// A secret that `fill` writes in place.
    pub(crate) fn filled(fill: impl FnOnce(&mut [u8; 32])) -> Self {
        let mut secret = Self(Box::new([0; 32]));
        fill(&mut secret.0);
        secret
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// One life of one producer, as its session key is bound to it, and which of the keys of that life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) producer: ProducerId,
    pub(crate) epoch: ProducerEpoch,
    pub(crate) salt: Salt,
    pub(crate) renewal: KeyRenewal,
}

/// The key of one address, from which all its session keys come.
pub(crate) fn address_key(payload_key: &Secret, address: &str) -> Secret {
    expand(b"swarmmq/address/v1", payload_key, &[address.as_bytes()])
}

/// The bytes of a session key. Cost: about 0.5 us.
pub(crate) fn session_secret(address_key: &Secret, address: &str, session: &Session) -> Secret {
    let address_len = u8::try_from(address.len()).expect("an address has at most 255 bytes");
    let producer = session.producer.0.to_be_bytes();
    let epoch = session.epoch.0.to_be_bytes();
    let renewal = session.renewal.0.to_be_bytes();
    // The first key as it was before there were renewals: messages sealed under it lie on disks.
    let (label, renewal): (&[u8], &[u8]) = match session.renewal {
        KeyRenewal(0) => (b"swarmmq/session/v1", &[]),
        _ => (b"swarmmq/renewed/v1", &renewal),
    };
    let info = [label, &[address_len], address.as_bytes(), &producer, &epoch, renewal];
    expand(&session.salt.0, address_key, &info)
}

fn expand(salt: &[u8], secret: &Secret, info: &[&[u8]]) -> Secret {
    Secret::filled(|out| {
        hkdf::Salt::new(HKDF_SHA256, salt)
            .extract(secret.bytes())
            .expand(info, HKDF_SHA256)
            .and_then(|okm| okm.fill(out))
            .expect("32 bytes are one block of HKDF-SHA256");
    })
}

/// A session key, expanded for AES-256-GCM. The library zeroes it on drop.
pub(crate) struct SessionKey(LessSafeKey);

impl SessionKey {
    /// The key of `session` at `address`. Cost: two derivations and a key schedule, about 1.2 us.
    pub(crate) fn derive(payload_key: &Secret, address: &str, session: &Session) -> Self {
        let secret = session_secret(&address_key(payload_key, address), address, session);
        let key = UnboundKey::new(&AES_256_GCM, secret.bytes()).expect("an AES-256 key has 32 bytes");
        Self(LessSafeKey::new(key))
    }

    /// Encrypts `in_out` in place and returns the tag. The caller vouches that (shard, sequence) was never used.
    pub(crate) fn seal(
        &self,
        shard: ShardId,
        sequence: Sequence,
        header: &[u8],
        in_out: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        let nonce = Nonce::assume_unique_for_key(envelope::nonce(shard, sequence));
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(header), in_out)
            .expect("a plaintext is far below the 64 GiB of one nonce");
        tag.as_ref().try_into().expect("a GCM tag has 16 bytes")
    }

    /// Decrypts `ciphertext` into `out` of the same length. On failure `out` holds nothing of use and must not be released.
    pub(crate) fn open(
        &self,
        shard: ShardId,
        sequence: Sequence,
        header: &[u8],
        ciphertext: &[u8],
        tag: &[u8],
        out: &mut [u8],
    ) -> Result<(), Unspecified> {
        let nonce = Nonce::assume_unique_for_key(envelope::nonce(shard, sequence));
        self.0.open_separate_gather(nonce, Aad::from(header), ciphertext, tag, out)
    }
}

/// Sessions in one generation of [`SessionKeys`]; two generations are kept, about 2 MiB in all.
const GENERATION_SESSIONS_MAX: usize = 1024;

/// Session keys ready for use: at least the 1,024 used last, at most 2,048.
///
/// Two generations: keys in use move to the young one; when that is full, the old one is dropped. So an eviction
/// costs no search, and one pass over many sessions cannot push out those in constant use.
#[derive(Default)]
pub(crate) struct SessionKeys {
    young: BTreeMap<Box<[u8]>, SessionKey>,
    old: BTreeMap<Box<[u8]>, SessionKey>,
}

impl SessionKeys {
    /// The key stored under `name`, if it is still there.
    pub(crate) fn find(&mut self, name: &[u8]) -> Option<&SessionKey> {
        if let Some((name, key)) = self.old.remove_entry(name) {
            self.insert(name, key);
        }
        self.young.get(name)
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    /// The key stored under `name`, or the one that `derive` makes, which is then remembered.
    pub(crate) fn find_or_insert(&mut self, name: &[u8], derive: impl FnOnce() -> SessionKey) -> &SessionKey {
        if self.find(name).is_none() {
            self.insert(name.into(), derive());
        }
        self.young.get(name).expect("found or inserted above")
    }

    /// Remembers `key` under `name`.
    pub(crate) fn insert(&mut self, name: Box<[u8]>, key: SessionKey) {
        if self.young.len() >= GENERATION_SESSIONS_MAX && !self.young.contains_key(&name) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, key);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// Names a session among all that a receiver meets, without allocating.
pub(crate) struct SessionName {
    bytes: [u8; SESSION_NAME_BYTES_MAX],
    len: usize,
}

const SESSION_NAME_BYTES_MAX: usize = 16 + 8 + 32 + 4 + 4 + ADDRESS_BYTES_MAX;

impl SessionName {
    pub(crate) fn new(key_id: KeyId, address: &str, session: &Session) -> Self {
        let mut name = Self { bytes: [0; SESSION_NAME_BYTES_MAX], len: 0 };
        // All but the address have a fixed width, so no two sessions share a name.
        name.push(&session.producer.0.to_be_bytes());
        name.push(&session.epoch.0.to_be_bytes());
        name.push(&session.salt.0);
        name.push(&session.renewal.0.to_be_bytes());
        name.push(&key_id.0.to_be_bytes());
        name.push(address.as_bytes());
        name
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, part: &[u8]) {
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret::filled(|out| out.fill(byte))
    }

    fn session(producer: u128, epoch: u64, salt: u8) -> Session {
        let (producer, epoch) = (ProducerId(producer), ProducerEpoch(epoch));
        Session { producer, epoch, salt: Salt([salt; 32]), renewal: KeyRenewal(0) }
    }

    fn renewed(renewal: u32) -> Session {
        Session { renewal: KeyRenewal(renewal), ..session(1, 1, 1) }
    }

    #[test]
    fn every_part_of_a_session_changes_its_key() {
        let of = |payload: u8, address: &str, session: Session| {
            *session_secret(&address_key(&secret(payload), address), address, &session).bytes()
        };
        let keys = [
            of(1, "a.b", session(1, 1, 1)),
            of(2, "a.b", session(1, 1, 1)),
            of(1, "a.c", session(1, 1, 1)),
            of(1, "a.b", session(2, 1, 1)),
            of(1, "a.b", session(1, 2, 1)),
            of(1, "a.b", session(1, 1, 2)),
            of(1, "a.b", renewed(1)),
            of(1, "a.b", renewed(2)),
            of(2, "a.b", renewed(1)),
            of(1, "a.c", renewed(1)),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key), "case {i} repeats a key");
        }
    }

    #[test]
    fn the_session_cache_is_bounded_and_keeps_what_is_in_use() {
        let mut keys = SessionKeys::default();
        let name = |i: u64| Box::from(i.to_be_bytes());
        let key = || SessionKey::derive(&secret(1), "a", &session(1, 1, 1));
        for i in 0..5_000 {
            keys.insert(name(i), key());
            assert!(keys.find(&name(0)).is_some(), "the session in use was dropped after {i}");
            assert!(keys.len() <= 2 * GENERATION_SESSIONS_MAX);
        }
        assert!(keys.find(&name(4_900)).is_some());
        assert!(keys.find(&name(1)).is_none());
    }

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(format!("{:?}", secret(0xab)), "Secret(..)");
    }
}
