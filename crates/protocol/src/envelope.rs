//! A sealed message: clear header, ciphertext, admission MAC. The header is read by nodes, bound to the ciphertext by
//! the cipher, and unchanged from producer to consumer.
//!
//! ```text
//!  0      1       2       3      4        6         8         12      16       20
//!  | ver  | suite | flags | alen | hlen   | zero    | clen    | shard | key id | renewal |
//!  24               40       48         56           88        96            112
//!  | producer u128  | epoch  | sequence | salt [32]  | time ms | key hash    | [trace 26] | address |
//!  | ciphertext with tag (clen) | mac [32] |
//! ```

use bytes::{BufMut, Bytes};

use crate::{
    codec::DecodeError,
    id::{KeyHash, KeyId, KeyRenewal, MessageId, ProducerEpoch, ProducerId, Salt, Sequence, ShardId},
    limits::{CIPHERTEXT_BYTES_MAX, HEADER_BYTES_MAX, MAC_BYTES, TAG_BYTES},
    mac::MacKey,
    time::WallTime,
};

/// Version of the layout.
pub const VERSION: u8 = 1;
/// AES-256-GCM with HKDF-SHA256 session keys and HMAC-SHA256 admission.
pub const SUITE_AES_256_GCM: u8 = 1;
/// Bytes of the header before trace and address.
pub const FIXED_BYTES: usize = 112;
/// W3C trace context: trace id 16, span id 8, flags 1, zero 1.
pub const TRACE_BYTES: usize = 26;

const FLAG_KEY: u8 = 1;
const FLAG_TRACE: u8 = 2;

const _: () = assert!(FIXED_BYTES + TRACE_BYTES + 255 <= HEADER_BYTES_MAX);

/// The clear header, to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Where it goes.
    pub address: &'a str,
    /// Through which shard, for ever.
    pub shard: ShardId,
    /// Which payload key.
    pub key_id: KeyId,
    /// Which of its session's keys, in turn.
    pub renewal: KeyRenewal,
    /// Who sends.
    pub producer: ProducerId,
    /// In which life.
    pub epoch: ProducerEpoch,
    /// Which of its messages in this shard.
    pub sequence: Sequence,
    /// Of its session.
    pub salt: Salt,
    /// When, by the producer's clock.
    pub published_at: WallTime,
    /// Of its key, if it has one.
    pub key_hash: Option<KeyHash>,
    /// W3C trace context, if there is one.
    pub trace: Option<[u8; 25]>,
}

impl Header<'_> {
    /// Bytes it takes.
    pub fn encoded_bytes(&self) -> usize {
        FIXED_BYTES + if self.trace.is_some() { TRACE_BYTES } else { 0 } + self.address.len()
    }

    /// Writes it. `ciphertext_bytes` includes the tag.
    pub fn encode(&self, ciphertext_bytes: u32, out: &mut impl BufMut) {
        let flags = if self.key_hash.is_some() { FLAG_KEY } else { 0 }
            | if self.trace.is_some() { FLAG_TRACE } else { 0 };
        out.put_slice(&[VERSION, SUITE_AES_256_GCM, flags, self.address.len() as u8]);
        out.put_u16(self.encoded_bytes() as u16);
        out.put_u16(0);
        out.put_u32(ciphertext_bytes);
        out.put_u32(self.shard.0);
        out.put_u32(self.key_id.0);
        out.put_u32(self.renewal.0);
        out.put_u128(self.producer.0);
        out.put_u64(self.epoch.0);
        out.put_u64(self.sequence.0);
        out.put_slice(&self.salt.0);
        out.put_u64(self.published_at.0);
        out.put_slice(&self.key_hash.map_or([0; 16], |hash| hash.0));
        if let Some(trace) = self.trace {
            out.put_slice(&trace);
            out.put_u8(0);
        }
        out.put_slice(self.address.as_bytes());
    }
}

/// A checked header inside somebody else's bytes. Getters cost nothing.
#[derive(Clone, Copy, Debug)]
pub struct HeaderView<'a> {
    bytes: &'a [u8],
}

impl<'a> HeaderView<'a> {
    fn fixed<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes[at..at + N].try_into().expect("a checked header has its fixed part")
    }

    fn flags(&self) -> u8 {
        self.bytes[2]
    }

    /// The header's bytes: the associated data of the cipher.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Where it goes. The characters are not checked against the grammar here.
    pub fn address(&self) -> &'a str {
        let length = usize::from(self.bytes[3]);
        std::str::from_utf8(&self.bytes[self.bytes.len() - length..]).expect("checked to be ASCII")
    }

    /// Through which shard.
    pub fn shard(&self) -> ShardId {
        ShardId(u32::from_be_bytes(self.fixed(12)))
    }

    /// Which payload key.
    pub fn key_id(&self) -> KeyId {
        KeyId(u32::from_be_bytes(self.fixed(16)))
    }

    /// Which of its session's keys, in turn.
    pub fn renewal(&self) -> KeyRenewal {
        KeyRenewal(u32::from_be_bytes(self.fixed(20)))
    }

    /// Who sent it.
    pub fn producer(&self) -> ProducerId {
        ProducerId(u128::from_be_bytes(self.fixed(24)))
    }

    /// In which life.
    pub fn epoch(&self) -> ProducerEpoch {
        ProducerEpoch(u64::from_be_bytes(self.fixed(40)))
    }

    /// Which of the producer's messages in this shard.
    pub fn sequence(&self) -> Sequence {
        Sequence(u64::from_be_bytes(self.fixed(48)))
    }

    /// Of the producer's session.
    pub fn salt(&self) -> Salt {
        Salt(self.fixed(56))
    }

    /// When, by the producer's clock.
    pub fn published_at(&self) -> WallTime {
        WallTime(u64::from_be_bytes(self.fixed(88)))
    }

    /// Hash of its key.
    pub fn key_hash(&self) -> Option<KeyHash> {
        (self.flags() & FLAG_KEY != 0).then(|| KeyHash(self.fixed(96)))
    }

    /// W3C trace context.
    pub fn trace(&self) -> Option<[u8; 25]> {
        (self.flags() & FLAG_TRACE != 0).then(|| self.fixed(FIXED_BYTES))
    }

    /// Its name.
    pub fn message_id(&self) -> MessageId {
        MessageId {
            producer: self.producer(),
            epoch: self.epoch(),
            shard: self.shard(),
            sequence: self.sequence(),
        }
    }

    /// 96-bit nonce: shard and sequence. Unique under a session key because sequences are never reused.
    pub fn nonce(&self) -> [u8; 12] {
        nonce(self.shard(), self.sequence())
    }
}

/// 96-bit nonce of a message under its session key.
pub fn nonce(shard: ShardId, sequence: Sequence) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&shard.0.to_be_bytes());
    nonce[4..].copy_from_slice(&sequence.0.to_be_bytes());
    nonce
}

/// One sealed message inside somebody else's bytes: well formed, not yet verified.
#[derive(Clone, Copy, Debug)]
pub struct SealedRef<'a> {
    bytes: &'a [u8],
    header_bytes: usize,
}

impl<'a> SealedRef<'a> {
    /// The clear header.
    pub fn header(&self) -> HeaderView<'a> {
        HeaderView { bytes: &self.bytes[..self.header_bytes] }
    }

    /// Ciphertext with its tag.
    pub fn ciphertext(&self) -> &'a [u8] {
        &self.bytes[self.header_bytes..self.bytes.len() - MAC_BYTES]
    }

    /// All of it.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether the admission MAC matches. Constant time in the MAC. Cost: 0.8 us per KiB.
    #[must_use]
    pub fn verify(&self, admission: &MacKey) -> bool {
        let (covered, mac) = self.bytes.split_at(self.bytes.len() - MAC_BYTES);
        admission.verify(&[covered], mac)
    }
}

/// Reads the first sealed message of `bytes`. Returns it and what follows it.
///
/// Every length is checked and the encoding must be the only possible one for its fields.
pub fn split_sealed(bytes: &[u8]) -> Result<(SealedRef<'_>, &[u8]), DecodeError> {
    let fixed = bytes.get(..FIXED_BYTES).ok_or(DecodeError::Truncated)?;
    if fixed[0] != VERSION {
        return Err(DecodeError::Invalid("envelope version"));
    }
    if fixed[1] != SUITE_AES_256_GCM {
        return Err(DecodeError::Invalid("suite"));
    }
    let flags = fixed[2];
    if flags & !(FLAG_KEY | FLAG_TRACE) != 0 {
        return Err(DecodeError::Invalid("envelope flags"));
    }
    let address_bytes = usize::from(fixed[3]);
    if address_bytes == 0 {
        return Err(DecodeError::Invalid("address length"));
    }
    let trace_bytes = if flags & FLAG_TRACE != 0 { TRACE_BYTES } else { 0 };
    let header_bytes = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    if header_bytes != FIXED_BYTES + trace_bytes + address_bytes {
        return Err(DecodeError::Invalid("header length"));
    }
    if fixed[6..8] != [0; 2] {
        return Err(DecodeError::Invalid("reserved bytes"));
    }
    let ciphertext_bytes = u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]) as usize;
    if ciphertext_bytes < TAG_BYTES {
        return Err(DecodeError::Invalid("ciphertext length"));
    }
    if ciphertext_bytes > CIPHERTEXT_BYTES_MAX {
        return Err(DecodeError::TooLarge("ciphertext"));
    }
    if fixed[48..56] == [0; 8] {
        return Err(DecodeError::Invalid("sequence"));
    }
    if flags & FLAG_KEY == 0 && fixed[96..112] != [0; 16] {
        return Err(DecodeError::Invalid("key hash"));
    }
    let total = header_bytes + ciphertext_bytes + MAC_BYTES;
    if bytes.len() < total {
        return Err(DecodeError::Truncated);
    }
    let (message, rest) = bytes.split_at(total);
    if trace_bytes > 0 && message[FIXED_BYTES + TRACE_BYTES - 1] != 0 {
        return Err(DecodeError::Invalid("trace"));
    }
    if !message[header_bytes - address_bytes..header_bytes].is_ascii() {
        return Err(DecodeError::Invalid("address"));
    }
    Ok((SealedRef { bytes: message, header_bytes }, rest))
}

/// Length of the first sealed message of `bytes`, checked as in [`split_sealed`].
pub fn sealed_bytes(bytes: &Bytes) -> Result<usize, DecodeError> {
    split_sealed(bytes).map(|(sealed, _)| sealed.bytes().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(trace: bool) -> (Header<'static>, Vec<u8>) {
        let header = Header {
            address: "shop.orders",
            shard: ShardId(3),
            key_id: KeyId(1),
            renewal: KeyRenewal(4),
            producer: ProducerId(7),
            epoch: ProducerEpoch(2),
            sequence: Sequence(9),
            salt: Salt([5; 32]),
            published_at: WallTime(1000),
            key_hash: Some(KeyHash([6; 16])),
            trace: trace.then_some([8; 25]),
        };
        let mut bytes = Vec::new();
        header.encode(20, &mut bytes);
        bytes.extend([0xcc; 20]);
        let mac = MacKey::new([1; 32]).sign(&[&bytes]);
        bytes.extend(mac);
        (header, bytes)
    }

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        for trace in [false, true] {
            let (header, bytes) = example(trace);
            let (sealed, rest) = split_sealed(&bytes).unwrap();
            assert!(rest.is_empty());
            let view = sealed.header();
            assert_eq!(view.address(), header.address);
            assert_eq!(view.shard(), header.shard);
            assert_eq!(view.key_id(), header.key_id);
            assert_eq!(view.renewal(), header.renewal);
            assert_eq!(view.producer(), header.producer);
            assert_eq!(view.epoch(), header.epoch);
            assert_eq!(view.sequence(), header.sequence);
            assert_eq!(view.salt(), header.salt);
            assert_eq!(view.published_at(), header.published_at);
            assert_eq!(view.key_hash(), header.key_hash);
            assert_eq!(view.trace(), header.trace);
            assert!(sealed.verify(&MacKey::new([1; 32])));
        }
    }

    #[test]
    fn a_message_cut_anywhere_is_truncated_and_never_read() {
        let (_, bytes) = example(true);
        for length in 0..bytes.len() {
            assert!(split_sealed(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn every_flipped_bit_is_refused_at_admission() {
        let (_, bytes) = example(true);
        let key = MacKey::new([1; 32]);
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let admitted = split_sealed(&forged).is_ok_and(|(sealed, _)| sealed.verify(&key));
            assert!(!admitted, "bit {bit}");
        }
    }
}
