//! A node's keys: one for what it signs before everybody, one for what it tells another node alone.
//!
//! Both come from one secret of 32 bytes. Signatures (Ed25519) stand on what other nodes pass on: who passes it on can
//! neither change nor invent it. Keys of a pair (X25519) stand behind the MAC of a datagram: nobody but the two can make it,
//! not even another node of the same cluster. Why both: docs/decisions/0010-gossip-and-node-keys.md.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    agreement::{PrivateKey, UnparsedPublicKey as AgreeingKey, X25519, agree},
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey as SigningKey},
};
use zeroize::Zeroizing;

use crate::{
    id::{ClusterId, NodeId},
    mac::MacKey,
};

/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes of a node's public keys.
pub const NODE_KEY_BYTES: usize = 64;

const SIGN_LABEL: &[u8] = b"swarmmq/node/sign/v1";
const AGREE_LABEL: &[u8] = b"swarmmq/node/agree/v1";
const PAIR_LABEL: &[u8] = b"swarmmq/node/pair/v1";
/// The number 9 of X25519: who agrees with it has computed its own public key.
const BASE_POINT: [u8; 32] = {
    let mut point = [0; 32];
    point[0] = 9;
    point
};

/// The points of small order on the curve of Ed25519, without their sign bit: under such a key anybody can sign, zeros are one.
/// Last bytes first, as hexadecimal numbers are written.
const WEAK_KEYS: [[u128; 2]; 7] = [
    [0, 0],
    [0, 1],
    [0x05fc_536d_8802_38b1_3933_c6d3_05ac_dfd5, 0xf098_eff2_89f4_c345_b027_b2c2_8f95_e826],
    [0x7a03_ac92_77fd_c74e_c6cc_392c_fa53_202a, 0x0f67_100d_760b_3cba_4fd8_4d3d_706a_17c7],
    [u128::MAX >> 1, u128::MAX - 19],
    [u128::MAX >> 1, u128::MAX - 18],
    [u128::MAX >> 1, u128::MAX - 17],
];

/// Both public keys of a node: how others check its signatures and share a key with it. Encoded as these 64 bytes,
/// `sign` first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey {
    /// Ed25519.
    pub sign: [u8; 32],
    /// X25519.
    pub agree: [u8; 32],
}

impl NodeKey {
    /// The 64 bytes.
    pub fn to_bytes(self) -> [u8; NODE_KEY_BYTES] {
        let mut bytes = [0; NODE_KEY_BYTES];
        bytes[..32].copy_from_slice(&self.sign);
        bytes[32..].copy_from_slice(&self.agree);
        bytes
    }

    /// From its 64 bytes. Any bytes are taken: wrong ones verify nothing and agree with nobody.
    pub fn from_bytes(bytes: &[u8; NODE_KEY_BYTES]) -> Self {
        let half = |at: usize| bytes[at..at + 32].try_into().expect("32 of 64 bytes");
        Self { sign: half(0), agree: half(32) }
    }

    /// Whether this node signed exactly these bytes under this label. Cost: 50 us.
    ///
    /// * `parts` count as one text, one after the other: whoever signs sees to it that it can be cut in one way only.
    #[must_use]
    pub fn verify(&self, label: &'static str, parts: &[&[u8]], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        !self.is_weak()
            && SigningKey::new(&ED25519, self.sign).verify(&labelled(label, parts), signature).is_ok()
    }

    fn is_weak(&self) -> bool {
        let half =
            |at: usize| u128::from_le_bytes(self.sign[at..at + 16].try_into().expect("16 of 32 bytes"));
        WEAK_KEYS.contains(&[half(16) & (u128::MAX >> 1), half(0)])
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "NodeKey({:02x}{:02x}{:02x}{:02x}..)",
            self.sign[0], self.sign[1], self.sign[2], self.sign[3]
        )
    }
}

/// What makes a node this node. Cheap to clone; never shown. The seed is zeroed with the last clone, and so are the keys
/// made of it, by the library.
#[derive(Clone)]
pub struct NodeSecret {
    inner: Arc<Inner>,
}

struct Inner {
    seed: Zeroizing<[u8; 32]>,
    sign: Ed25519KeyPair,
    agree: PrivateKey,
    public: NodeKey,
}

impl NodeSecret {
    /// The keys of these 32 random bytes. Cost: 100 us.
    pub fn new(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        let root = MacKey::new(*seed);
        let sign = Zeroizing::new(root.sign(&[SIGN_LABEL]));
        let sign = Ed25519KeyPair::from_seed_unchecked(sign.as_ref()).expect("any 32 bytes are a seed");
        let bytes = Zeroizing::new(root.sign(&[AGREE_LABEL]));
        let agree = PrivateKey::from_private_key(&X25519, bytes.as_ref()).expect("any 32 bytes are a key");
        let public = NodeKey {
            sign: sign.public_key().as_ref().try_into().expect("a public key of Ed25519 has 32 bytes"),
            agree: shared(&agree, &BASE_POINT).expect("the base point agrees with every key"),
        };
        Self { inner: Arc::new(Inner { seed, sign, agree, public }) }
    }

    /// What others may know.
    pub fn public(&self) -> NodeKey {
        self.inner.public
    }

    /// The 32 bytes, for whoever keeps them.
    pub fn seed(&self) -> &[u8; 32] {
        &self.inner.seed
    }

    /// This node's signature under `parts`, one after the other; `label` says what they are, so that a signature for one
    /// purpose is worth nothing for another. The same bytes always get the same signature. Cost: 20 us.
    pub fn sign(&self, label: &'static str, parts: &[&[u8]]) -> [u8; SIGNATURE_BYTES] {
        let signature = self.inner.sign.sign(&labelled(label, parts));
        signature.as_ref().try_into().expect("a signature of Ed25519 has 64 bytes")
    }

    /// The key for datagrams between this node and another, the same at both ends and in both directions: the MAC covers who
    /// sends and who receives. Cost: 50 us.
    ///
    /// * `cluster_secret` goes in, so that a registered key alone does not let anybody talk.
    /// * Nothing where `other_key` is one of the few points that give every secret the same result.
    pub fn pair_key(
        &self,
        other_key: &NodeKey,
        cluster: ClusterId,
        cluster_secret: &MacKey,
        me: NodeId,
        other: NodeId,
    ) -> Option<MacKey> {
        let secret = Zeroizing::new(shared(&self.inner.agree, &other_key.agree)?);
        let (mine, theirs) = ((me, &self.inner.public.agree), (other, &other_key.agree));
        let ((low, low_key), (high, high_key)) = if me < other { (mine, theirs) } else { (theirs, mine) };
        Some(MacKey::new(cluster_secret.sign(&[
            PAIR_LABEL,
            &cluster.0.to_be_bytes(),
            &low.0.to_be_bytes(),
            &high.0.to_be_bytes(),
            low_key,
            high_key,
            secret.as_ref(),
        ])))
    }
}

impl fmt::Debug for NodeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeSecret(.., {:?})", self.inner.public)
    }
}

/// What two X25519 keys have in common. Nothing where that is zero, whatever the secret.
fn shared(secret: &PrivateKey, public: &[u8; 32]) -> Option<[u8; 32]> {
    let shared: [u8; 32] =
        agree(secret, AgreeingKey::new(&X25519, public), (), |bytes| bytes.try_into().map_err(|_| ()))
            .ok()?;
    (shared != [0; 32]).then_some(shared)
}

fn labelled(label: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut text = Vec::with_capacity(1 + label.len() + parts.iter().map(|part| part.len()).sum::<usize>());
    text.push(u8::try_from(label.len()).expect("labels are short constants"));
    text.extend_from_slice(label.as_bytes());
    parts.iter().for_each(|part| text.extend_from_slice(part));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn pair(one: &NodeSecret, me: u16, key: &NodeKey, other: u16) -> Option<[u8; 32]> {
        let cluster_secret = MacKey::new([3; 32]);
        let key = one.pair_key(key, CLUSTER, &cluster_secret, NodeId(me), NodeId(other))?;
        Some(key.sign(&[b"probe"]))
    }

    #[test]
    fn the_keys_are_the_ones_that_a_second_implementation_makes() {
        // Recorded with Python's hmac and cryptography (OpenSSL).
        let (a, b) = (NodeSecret::new([1; 32]), NodeSecret::new([2; 32]));
        assert_eq!(hex(&a.public().sign), "67dccef9f8759add64b832869a6b9a2a1a942839d6173409cb69581645ad6b05");
        assert_eq!(
            hex(&a.public().agree),
            "bf783f7d4797ddc0a054ba1ff338ab25321fd5a8810d5b749a7a297868ca5e71"
        );
        assert_eq!(
            hex(&a.sign("swarmmq/test/v1", &[b"ab", b"c"])),
            "7b66291259bb488f446d839b9d58e81d47e20ad6cea634df61575fece027d547659df71e4dbfc0ab9c1fb9eeffe011f342e44d37bcfe269826aef1487c974c02"
        );
        assert_eq!(
            hex(&pair(&a, 1, &b.public(), 2).unwrap()),
            "91d4ccb1757a45bedf45b6a3395dd793eaa7629a1367a3a7e584947579b65031"
        );
    }

    #[test]
    fn both_ends_have_one_key_and_nobody_else_has_it() {
        let (a, b, c) = (NodeSecret::new([1; 32]), NodeSecret::new([2; 32]), NodeSecret::new([3; 32]));
        let key = pair(&a, 1, &b.public(), 2);
        assert!(key.is_some());
        assert_eq!(key, pair(&b, 2, &a.public(), 1));
        assert_ne!(key, pair(&a, 2, &b.public(), 1), "the numbers count");
        assert_ne!(key, pair(&c, 1, &b.public(), 2), "the keys count");
        let other = a.pair_key(&b.public(), CLUSTER, &MacKey::new([4; 32]), NodeId(1), NodeId(2)).unwrap();
        assert_ne!(key, Some(other.sign(&[b"probe"])), "the cluster's secret counts");
    }

    #[test]
    fn a_key_that_gives_everybody_the_same_secret_is_refused() {
        let a = NodeSecret::new([1; 32]);
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            assert_eq!(pair(&a, 1, &NodeKey { sign: [0; 32], agree: point }, 2), None);
        }
    }

    #[test]
    fn a_signature_is_for_one_label_one_text_and_one_node() {
        let (a, b) = (NodeSecret::new([1; 32]), NodeSecret::new([2; 32]));
        let signature = a.sign("swarmmq/test/v1", &[b"text"]);
        assert!(a.public().verify("swarmmq/test/v1", &[b"te", b"xt"], &signature));
        assert!(!a.public().verify("swarmmq/test/v2", &[b"text"], &signature));
        assert!(!a.public().verify("swarmmq/test/v1", &[b"Text"], &signature));
        assert!(!b.public().verify("swarmmq/test/v1", &[b"text"], &signature));
        for at in 0..SIGNATURE_BYTES {
            let mut changed = signature;
            changed[at] ^= 1;
            assert!(!a.public().verify("swarmmq/test/v1", &[b"text"], &changed), "byte {at}");
        }
    }

    #[test]
    fn under_a_key_that_anybody_can_sign_with_nothing_verifies() {
        for [high, low] in WEAK_KEYS {
            for sign_bit in [0, 1 << 127] {
                let mut key = NodeKey { sign: [0; 32], agree: [0; 32] };
                key.sign[..16].copy_from_slice(&low.to_le_bytes());
                key.sign[16..].copy_from_slice(&(high | sign_bit).to_le_bytes());
                let mut signature = [0; SIGNATURE_BYTES];
                signature[..32].copy_from_slice(&key.sign);
                for text in [&b"a"[..], b"b", b"c", b"d", b"e", b"f", b"g", b"h"] {
                    assert!(!key.verify("swarmmq/test/v1", &[text], &[0; SIGNATURE_BYTES]));
                    assert!(!key.verify("swarmmq/test/v1", &[text], &signature));
                }
            }
        }
    }

    #[test]
    fn public_keys_travel_and_secrets_are_never_shown() {
        let secret = NodeSecret::new([0x41; 32]);
        assert_eq!(NodeKey::from_bytes(&secret.public().to_bytes()), secret.public());
        let shown = format!("{secret:?}");
        assert!(shown.starts_with("NodeSecret(.., NodeKey(") && !shown.contains("4141"), "{shown}");
    }
}
