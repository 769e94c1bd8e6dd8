//! Keyed and plain hashes: admission of messages, proofs of the handshake, key hashes, the ring.

use std::{fmt, sync::Arc};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest, hmac};
use zeroize::Zeroizing;

use crate::id::{Address, ClusterId, KeyHash, ProducerId, ProducerName, ShardId};

/// A 256-bit key for HMAC-SHA256. Cheap to clone; its bytes are zeroed with the last clone and never shown.
#[derive(Clone)]
pub struct MacKey {
    inner: Arc<Inner>,
}

struct Inner {
    bytes: Zeroizing<[u8; 32]>,
    key: hmac::Key,
}

impl MacKey {
    /// A key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        let bytes = Zeroizing::new(bytes);
        let key = hmac::Key::new(hmac::HMAC_SHA256, bytes.as_ref());
        Self { inner: Arc::new(Inner { bytes, key }) }
    }

    /// HMAC-SHA256 over `parts`, one after the other. Cost: 0.8 us per KiB.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.inner.key);
        parts.iter().for_each(|part| context.update(part));
        context.sign().as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
    }

    /// Whether `mac` is the HMAC of `parts`, in time that does not depend on where they differ.
    #[must_use]
    pub fn verify(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        verify_slices_are_equal(&self.sign(parts), mac).is_ok()
    }

    /// Whether `mac`, of at least 16 bytes, begins the HMAC of `parts`; in constant time too.
    #[must_use]
    pub fn verify_start(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        let whole = self.sign(parts);
        (16..=whole.len()).contains(&mac.len()) && verify_slices_are_equal(&whole[..mac.len()], mac).is_ok()
    }

    /// Four bytes that tell keys apart, for people and logs; nobody finds the key from them.
    pub fn fingerprint(&self) -> u32 {
        let mac = self.sign(&[b"swarmmq/fingerprint/v1"]);
        u32::from_be_bytes(mac[..4].try_into().expect("4 of 32 bytes"))
    }

    /// Whether every byte is zero: a key that somebody forgot to fill in.
    pub fn is_zero(&self) -> bool {
        self.inner.bytes.iter().all(|byte| *byte == 0)
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(..)")
    }
}

/// A key in use, and perhaps another one that counts beside it: while everybody who has it goes from one to the other.
#[derive(Clone, Debug)]
pub struct DualKey {
    /// What proofs are made with.
    pub current: MacKey,
    /// Whose proofs count as well.
    pub also: Option<MacKey>,
}

impl DualKey {
    /// Those whose proofs count, the current one first.
    pub fn all(&self) -> impl Iterator<Item = &MacKey> {
        std::iter::once(&self.current).chain(&self.also)
    }

    /// The key that made this MAC, if any of them did.
    pub fn of_mac(&self, parts: &[&[u8]], mac: &[u8]) -> Option<&MacKey> {
        self.all().find(|key| key.verify(parts, mac))
    }
}

impl From<MacKey> for DualKey {
    fn from(current: MacKey) -> Self {
        Self { current, also: None }
    }
}

/// SHA-256 over `parts`, one after the other.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Hash of a message's key under the cluster's routing key, which never changes: equal keys stay together for ever, and
/// who does not know the routing key cannot guess keys from their hashes.
pub fn key_hash(routing: &MacKey, address: &Address, key: &[u8]) -> KeyHash {
    let text = address.as_str().as_bytes();
    let mac = routing.sign(&[b"swarmmq/key/v1", &[text.len() as u8], text, key]);
    KeyHash(mac[..16].try_into().expect("16 of 32 bytes"))
}

/// The shard of an address, or of one key of it. Fixed for ever, as the shard count is (docs/decisions/0007-ring.md).
///
/// * `shard_count`: at least 1.
pub fn ring(address: &Address, key: Option<&KeyHash>, shard_count: u32) -> ShardId {
    let text = address.as_str().as_bytes();
    let key: &[u8] = key.map_or(&[], |key| &key.0);
    let hash = sha256(&[b"swarmmq/ring/v1", &[text.len() as u8], text, key]);
    let point = u64::from_be_bytes(hash[..8].try_into().expect("8 of 32 bytes"));
    ShardId(((u128::from(point) * u128::from(shard_count)) >> 64) as u32)
}

/// Which producer a name means in a cluster; the same for ever, so that a later life fences an earlier one.
pub fn producer_of(cluster: ClusterId, name: &ProducerName) -> ProducerId {
    let hash = sha256(&[b"swarmmq/producer/v1", &cluster.0.to_be_bytes(), name.as_str().as_bytes()]);
    ProducerId(u128::from_be_bytes(hash[..16].try_into().expect("16 of 32 bytes")))
}

/// The token of a principal: derived, so that no node has to remember it. Whoever has `access`, the access token, can
/// make every principal's; nobody can find another one from it.
///
/// * `generation`: from 1; of each token that the cluster ever issued another one.
pub fn principal_token(
    access: &MacKey,
    cluster: ClusterId,
    name: &str,
    generation: u64,
) -> Zeroizing<[u8; 32]> {
    let parts: [&[u8]; 5] = [
        b"swarmmq/principal/v1",
        &cluster.0.to_be_bytes(),
        &[name.len() as u8],
        name.as_bytes(),
        &generation.to_be_bytes(),
    ];
    Zeroizing::new(access.sign(&parts))
}

/// What nodes prove to each other, from the secret in their keyrings.
pub fn peer_secret(in_keyring: &MacKey) -> MacKey {
    MacKey::new(in_keyring.sign(&[b"swarmmq/peer/secret/v1"]))
}

/// What stands in the place of a token where a principal is known by its certificate. It is no secret and proves nothing: that
/// does the session around the handshake. It only ties both ends' proofs to the hellos and to the name, as a token does.
pub fn certified_key(name: &str) -> MacKey {
    MacKey::new(sha256(&[b"swarmmq/certified/v1", name.as_bytes()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_covers_every_part_and_no_other_key_makes_it() {
        let key = MacKey::new([1; 32]);
        let mac = key.sign(&[b"ab", b"c"]);
        assert!(key.verify(&[b"a", b"bc"], &mac));
        assert!(!key.verify(&[b"abd"], &mac));
        assert!(!MacKey::new([2; 32]).verify(&[b"abc"], &mac));
        assert!(!key.verify(&[b"abc"], &mac[..31]));
        assert!(key.verify_start(&[b"abc"], &mac[..16]) && !key.verify_start(&[b"abc"], &mac[..15]));
        assert!(
            !key.verify_start(&[b"abd"], &mac[..16]) && !key.verify_start(&[b"abc"], &[mac, mac].concat())
        );
    }

    #[test]
    fn every_principal_in_every_generation_and_cluster_has_a_token_of_its_own() {
        let access = MacKey::new([1; 32]);
        let token =
            |cluster, name, generation| *principal_token(&access, ClusterId(cluster), name, generation);
        let tokens = [token(5, "till", 1), token(5, "till", 2), token(6, "till", 1), token(5, "tills", 1)];
        for (at, one) in tokens.iter().enumerate() {
            assert!(tokens[..at].iter().all(|other| other != one));
        }
        assert_eq!(tokens[0], token(5, "till", 1));
        // Recorded with Python's hmac module from docs/protocol.md.
        let start: String = tokens[0][..8].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(start, "3a305bf52ea483f1");
    }

    #[test]
    fn keys_are_never_shown() {
        assert_eq!(format!("{:?}", MacKey::new([0x41; 32])), "MacKey(..)");
    }

    #[test]
    fn the_ring_is_the_one_that_was_decided() {
        // Recorded with Python's hashlib from docs/decisions/0007-ring.md.
        let address = |text| Address::parse(text).unwrap();
        assert_eq!(ring(&address("shop.orders"), None, 16), ShardId(3));
        assert_eq!(ring(&address("shop.orders"), Some(&KeyHash([7; 16])), 16), ShardId(0));
        assert_eq!(ring(&address("a"), None, 1000), ShardId(601));
    }

    #[test]
    fn the_ring_spreads_addresses_evenly() {
        let mut counts = [0; 16];
        for n in 0..16_000 {
            let address = Address::parse(&format!("a{n}")).unwrap();
            counts[ring(&address, None, 16).0 as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
