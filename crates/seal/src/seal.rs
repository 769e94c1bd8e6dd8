//! Closes and opens messages: one [`Sealer`] per producer session, one [`Opener`] per receiver.
//!
//! Invariant: a sealer never uses a (shard, sequence) twice, so no nonce repeats under its keys, whichever of them it is at.
//! Absent here: retries; they send the bytes that were sealed, they do not seal again.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use swarmmq_protocol::{
    codec::DecodeError,
    envelope::{self, Header},
    id::{Address, KeyHash, KeyId, KeyRenewal, ProducerEpoch, ProducerId, Salt, Sequence, ShardId},
    limits::{MAC_BYTES, TAG_BYTES},
    mac::{self, MacKey},
    time::WallTime,
};

use crate::{
    compression,
    derive::{Session, SessionKey, SessionKeys, SessionName},
    keyring::ClientKeyring,
    plaintext::{ContentError, Opened, Plaintext, UserHeader},
    turn::{KeyLimits, NoMoreKeys, Turn},
};

/// Messages one session may seal, over all shards and addresses. No key wears out: it is replaced long before, see
/// [`KeyLimits`]. But nodes take no sequence above 2^48, and half of them is enough.
pub const SESSION_MESSAGES_MAX: u64 = 1 << 47;

/// Shards one session may seal for; a cluster has far fewer.
const SHARDS_MAX: usize = 1 << 16;

/// A message about to be sealed.
#[derive(Clone, Copy)]
pub struct Draft<'a> {
    /// Where it goes.
    pub address: &'a Address,
    /// Through which shard, for ever.
    pub shard: ShardId,
    /// Its number in (session, shard): above all that this sealer sealed for the shard.
    pub sequence: Sequence,
    /// Its key, if it has one; at most 256 bytes.
    pub key: Option<&'a [u8]>,
    /// At most 32, together at most 8 KiB.
    pub headers: &'a [UserHeader],
    /// The payload; with the headers at most 1 MiB.
    pub body: &'a [u8],
    /// The sender's wall clock.
    pub published_at: WallTime,
    /// W3C trace context (trace id 16, span id 8, flags 1). Travels in the clear.
    pub trace: Option<[u8; 25]>,
    /// Make the body shorter before it is sealed, where that helps. Its length then says something about its contents: not for
    /// bodies in which a secret stands next to text that others choose.
    pub compress: bool,
}

impl<'a> Draft<'a> {
    fn plaintext(&self) -> Plaintext<'a> {
        Plaintext { key: self.key, headers: self.headers, body: self.body, is_compressed: false }
    }
}

/// Seals the messages of one producer session.
pub struct Sealer {
    keyring: ClientKeyring,
    limits: KeyLimits,
    turn: Turn,
    session: Session,
    admission: MacKey,
    routing: MacKey,
    keys: SessionKeys,
    spent: BTreeMap<ShardId, Sequence>,
    sealed: u64,
}

impl Sealer {
    /// A sealer for a new session. Each message is sealed under the key that the keyring names for its time.
    ///
    /// * `salt`: 256 fresh random bits. Never use a salt for a second sealer: its sequences would repeat nonces.
    pub fn new(keyring: &ClientKeyring, producer: ProducerId, epoch: ProducerEpoch, salt: Salt) -> Self {
        Self {
            limits: KeyLimits::default(),
            turn: Turn::new(),
            session: Session { producer, epoch, salt, renewal: KeyRenewal(0) },
            admission: keyring.admission_key(),
            routing: keyring.routing_key(),
            keys: SessionKeys::default(),
            spent: BTreeMap::new(),
            sealed: 0,
            keyring: keyring.clone(),
        }
    }

    /// With other limits than the usual ones.
    #[must_use]
    pub fn with_limits(mut self, limits: KeyLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Seals under the keys of `keyring` from the next message on. What was sealed keeps its bytes.
    ///
    /// Payload keys and the admission key are taken from it; [`ClientKeyring::is_of_same_cluster`] says whether that is enough.
    pub fn take_keyring(&mut self, keyring: &ClientKeyring) {
        let is_same = |id: KeyId| match (self.keyring.payload_key(id), keyring.payload_key(id)) {
            (Some(old), Some(new)) => old.bytes() == new.bytes(),
            _ => false,
        };
        let must_leave = self.turn.key_id().is_some_and(|id| !is_same(id));
        self.turn.keyring_replaced(must_leave);
        self.admission = keyring.admission_key();
        self.keyring = keyring.clone();
    }

    /// The payload key of the last message; `None` before the first.
    pub fn key_id(&self) -> Option<KeyId> {
        self.turn.key_id()
    }

    /// The hash of `key` that nodes see, and that picks its shard where the order is by key.
    pub fn key_hash(&self, address: &Address, key: &[u8]) -> KeyHash {
        mac::key_hash(&self.routing, address, key)
    }

    /// As if it had taken so many keys before.
    #[cfg(test)]
    pub(crate) fn begin_at(&mut self, renewal: KeyRenewal) {
        self.turn.renewed_before(renewal);
        self.session.renewal = renewal;
    }

    /// Messages this session may still seal.
    pub fn remaining(&self) -> u64 {
        SESSION_MESSAGES_MAX - self.sealed
    }

    /// Seals `draft`. The bytes belong to its sequence for ever: a retry sends them again, unchanged.
    ///
    /// * A refused draft spends no sequence.
    /// * Cost: one allocation; about 1 us for 1 KiB, most of it the MAC. Compressed: one more.
    pub fn seal(&mut self, draft: &Draft<'_>) -> Result<Bytes, SealError> {
        let mut plaintext = draft.plaintext();
        let mut plaintext_bytes = plaintext.bytes()?;
        let compressed = draft.compress.then(|| compression::compress(draft.body)).flatten();
        if let Some(body) = &compressed {
            plaintext = Plaintext { body, is_compressed: true, ..plaintext };
            plaintext_bytes = plaintext.bytes()?;
        }
        self.check(draft.shard, draft.sequence)?;

        let address = draft.address.as_str();
        let mut header = Header {
            address,
            shard: draft.shard,
            key_id: KeyId(0),
            renewal: KeyRenewal(0),
            producer: self.session.producer,
            epoch: self.session.epoch,
            sequence: draft.sequence,
            salt: self.session.salt,
            published_at: draft.published_at,
            key_hash: draft.key.map(|key| self.key_hash(draft.address, key)),
            trace: draft.trace,
        };
        let header_bytes = header.encoded_bytes();
        let ciphertext_bytes = plaintext_bytes + TAG_BYTES;
        let total = header_bytes + ciphertext_bytes + MAC_BYTES;
        (header.key_id, header.renewal) =
            self.take_turn(draft.published_at, (header_bytes + ciphertext_bytes) as u64)?;
        self.spent.insert(draft.shard, draft.sequence);
        self.sealed += 1;

        let mut sealed = Vec::with_capacity(total);
        header.encode(ciphertext_bytes as u32, &mut sealed);
        plaintext.write(&mut sealed);
        assert_eq!(sealed.len(), header_bytes + plaintext_bytes, "lengths computed and written differ");

        let key_id = header.key_id;
        let (header, text) = sealed.split_at_mut(header_bytes);
        let tag = self.key(key_id, address).seal(draft.shard, draft.sequence, header, text);
        sealed.extend_from_slice(&tag);
        let mac = self.admission.sign(&[&sealed]);
        sealed.extend_from_slice(&mac);
        assert_eq!(sealed.len(), total, "a sealed message fills its buffer");
        Ok(sealed.into())
    }

    /// Whether the sequence may be spent. It is spent before anything is encrypted under it.
    fn check(&self, shard: ShardId, sequence: Sequence) -> Result<(), SealError> {
        if self.sealed >= SESSION_MESSAGES_MAX {
            return Err(SealError::Exhausted);
        }
        let last = self.spent.get(&shard).copied().unwrap_or(Sequence(0));
        if sequence <= last {
            return Err(SealError::SequenceSpent { shard, sequence, last });
        }
        if last == Sequence(0) && self.spent.len() >= SHARDS_MAX {
            return Err(SealError::TooManyShards { max: SHARDS_MAX });
        }
        Ok(())
    }

    /// Which key one more message of so many bytes is sealed with.
    fn take_turn(&mut self, now: WallTime, bytes: u64) -> Result<(KeyId, KeyRenewal), SealError> {
        let is_new = self.turn.before_message(&self.keyring, &self.limits, now, bytes);
        if is_new.map_err(|NoMoreKeys| SealError::Exhausted)? {
            self.keys.clear();
            self.session.renewal = self.turn.renewal();
        }
        Ok((self.turn.key_id().expect("taken above"), self.session.renewal))
    }

    fn key(&mut self, key_id: KeyId, address: &str) -> &SessionKey {
        let Self { keyring, session, keys, .. } = self;
        keys.find_or_insert(address.as_bytes(), || {
            let payload_key = keyring.payload_key(key_id).expect("a keyring holds the key that it names");
            SessionKey::derive(payload_key, address, session)
        })
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("producer", &self.session.producer)
            .field("epoch", &self.session.epoch)
            .field("turn", &self.turn)
            .field("sealed", &self.sealed)
            .finish_non_exhaustive()
    }
}

/// Opens sealed messages of every producer of the cluster.
pub struct Opener {
    keyring: ClientKeyring,
    keys: SessionKeys,
}

impl Opener {
    /// An opener that holds the keys of `keyring`.
    pub fn new(keyring: &ClientKeyring) -> Self {
        Self { keyring: keyring.clone(), keys: SessionKeys::default() }
    }

    /// Opens with the keys of `keyring` from now on.
    pub fn take_keyring(&mut self, keyring: &ClientKeyring) {
        self.keyring = keyring.clone();
        // They may come from payload keys that are not there any more.
        self.keys.clear();
    }

    /// Opens one sealed message that was handed out as one of `address` in `shard`: a node that mixes them up, or lies,
    /// is found out. Dead letters are sealed for the address that they went to.
    pub fn open_from(
        &mut self,
        address: &Address,
        shard: ShardId,
        sealed: &[u8],
    ) -> Result<Opened, OpenError> {
        let opened = self.open(sealed)?;
        let (message, _) = envelope::split_sealed(sealed).map_err(OpenError::Malformed)?;
        let header = message.header();
        let base = if address.is_dead_letter() { address.as_str().strip_suffix(".dlq") } else { None };
        let expected = base.unwrap_or(address.as_str());
        if header.address() != expected || header.shard() != shard {
            return Err(OpenError::Misplaced);
        }
        Ok(opened)
    }

    /// Opens one sealed message; `sealed` ends where it ends.
    ///
    /// * Does not check the admission MAC: any node could forge that one. The cipher covers the header too.
    /// * Remembers a session's key only once a message of it opened, so forgeries cannot push out keys in use.
    /// * Cost: one allocation of the plaintext's size; about 0.3 us for 1 KiB of a known session.
    pub fn open(&mut self, sealed: &[u8]) -> Result<Opened, OpenError> {
        let (message, rest) = envelope::split_sealed(sealed).map_err(OpenError::Malformed)?;
        if !rest.is_empty() {
            return Err(OpenError::Malformed(DecodeError::TrailingBytes(rest.len())));
        }
        let header = message.header();
        let key_id = header.key_id();
        let payload_key = self.keyring.payload_key(key_id).ok_or(OpenError::UnknownKey(key_id))?;
        let session = Session {
            producer: header.producer(),
            epoch: header.epoch(),
            salt: header.salt(),
            renewal: header.renewal(),
        };
        let name = SessionName::new(key_id, header.address(), &session);

        let (text, tag) = message.ciphertext().split_at(message.ciphertext().len() - TAG_BYTES);
        let mut plaintext = vec![0; text.len()];
        let mut open = |key: &SessionKey| {
            key.open(header.shard(), header.sequence(), header.bytes(), text, tag, &mut plaintext)
                .map_err(|_| OpenError::Forged)
        };
        match self.keys.find(name.bytes()) {
            Some(key) => open(key)?,
            None => {
                let key = SessionKey::derive(payload_key, header.address(), &session);
                open(&key)?;
                self.keys.insert(name.bytes().into(), key);
            }
        }
        Opened::read(plaintext.into(), header.key_hash().is_some()).map_err(OpenError::Malformed)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("keyring", &self.keyring).finish_non_exhaustive()
    }
}

/// Why a draft was not sealed. No sequence was spent. Blame: caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealError {
    /// Key, headers or body are not allowed.
    Content(ContentError),
    /// Not above the last sequence sealed for this shard, or zero. Sealing it would use a nonce twice.
    SequenceSpent {
        /// The shard.
        shard: ShardId,
        /// The sequence refused.
        sequence: Sequence,
        /// The last one sealed; 0 before the first.
        last: Sequence,
    },
    /// More shards than any cluster has. Blame: the node that named the shard.
    TooManyShards {
        /// Most allowed.
        max: usize,
    },
    /// [`SESSION_MESSAGES_MAX`] messages were sealed, or 2^32 keys used up: open a new session with a new salt.
    Exhausted,
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content(error) => error.fmt(f),
            Self::SequenceSpent { shard, sequence, last } => {
                write!(
                    f,
                    "sequence {} of shard {} is not above {}, the last one sealed",
                    sequence.0, shard.0, last.0
                )
            }
            Self::TooManyShards { max } => write!(f, "one session seals for at most {max} shards"),
            Self::Exhausted => {
                write!(f, "the session has sealed all that it may and must be replaced")
            }
        }
    }
}

impl std::error::Error for SealError {}

impl From<ContentError> for SealError {
    fn from(error: ContentError) -> Self {
        Self::Content(error)
    }
}

/// Why a message did not open. No plaintext was released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Tag mismatch: wrong key, or header or ciphertext altered on the way. Blame: sender, node or network.
    Forged,
    /// No payload key with this id. Trying again helps only after a keyring update. Blame: configuration.
    UnknownKey(KeyId),
    /// No envelope at all (blame: node or network), or an authentic one that holds no message (blame: sender).
    Malformed(DecodeError),
    /// An authentic message of another address or shard than it was handed out from. Blame: node, and a hostile one.
    Misplaced,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forged => {
                write!(f, "the message was altered, or sealed under another key of the same number")
            }
            Self::UnknownKey(id) => {
                write!(f, "sealed under payload key {}, which the keyring does not hold", id.0)
            }
            Self::Malformed(error) => write!(f, "malformed message: {error}"),
            Self::Misplaced => write!(f, "the node handed out a message of another address or shard"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Malformed(error) => Some(error),
            Self::Forged | Self::UnknownKey(_) | Self::Misplaced => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use swarmmq_protocol::limits::{KEY_BYTES_MAX, PLAINTEXT_BYTES_MAX, USER_HEADERS_BYTES_MAX};

    use super::*;

    const SALT: Salt = Salt([0x5a; 32]);

    fn keyring(seed: u8) -> ClientKeyring {
        let mut next = seed;
        ClientKeyring::generate(WallTime(1), &mut |out| {
            out.fill(next);
            next += 1;
        })
        .expect("the four secrets differ")
    }

    fn sealer() -> Sealer {
        Sealer::new(&keyring(0xa0), ProducerId(7), ProducerEpoch(1), SALT)
    }

    fn opener() -> Opener {
        Opener::new(&keyring(0xa0))
    }

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn draft<'a>(address: &'a Address, sequence: u64, body: &'a [u8]) -> Draft<'a> {
        Draft {
            address,
            shard: ShardId(3),
            sequence: Sequence(sequence),
            key: None,
            headers: &[],
            body,
            published_at: WallTime(1_763_964_000_000),
            trace: None,
            compress: false,
        }
    }

    fn header(name: &str, value: &[u8]) -> UserHeader {
        UserHeader { name: name.into(), value: Bytes::copy_from_slice(value) }
    }

    fn admitted(sealed: &[u8]) -> bool {
        envelope::split_sealed(sealed)
            .is_ok_and(|(message, rest)| rest.is_empty() && message.verify(&keyring(0xa0).admission_key()))
    }

    #[test]
    fn every_flipped_bit_is_refused_at_admission_and_by_the_opener() {
        let address = address("shop.orders");
        let headers = [header("content-type", b"text/plain")];
        let sealed = sealer()
            .seal(&Draft {
                key: Some(b"customer-17"),
                headers: &headers,
                trace: Some([9; 25]),
                ..draft(&address, 1, &[0x42; 64])
            })
            .unwrap();
        assert!((280..=320).contains(&sealed.len()), "{}", sealed.len());
        assert!(admitted(&sealed));
        let mut opener = opener();
        let whole = opener.open(&sealed).unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut forged = sealed.to_vec();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!admitted(&forged), "bit {bit} passed admission");
            match opener.open(&forged) {
                // The receiver trusts the cipher; the MAC is the nodes' affair.
                Ok(opened) => {
                    assert!(bit / 8 >= sealed.len() - MAC_BYTES && opened == whole, "bit {bit} opened")
                }
                Err(_) => assert!(bit / 8 < sealed.len() - MAC_BYTES, "bit {bit} of the MAC mattered"),
            }
        }
        assert_eq!(opener.open(&sealed), Ok(whole));
    }

    #[test]
    fn a_message_handed_out_from_elsewhere_is_found_out() {
        let sealed = sealer().seal(&draft(&address("shop.orders"), 1, b"body")).unwrap();
        let from =
            |name: &str, shard| opener().open_from(&address(name), ShardId(shard), &sealed).map(|_| ());
        assert_eq!(from("shop.orders", 3), Ok(()));
        assert_eq!(from("shop.orders.dlq", 3), Ok(()), "its dead letters are sealed as it was");
        for (name, shard) in [("shop.others", 3), ("shop.orders", 4), ("shop", 3), ("shop.others.dlq", 3)] {
            assert_eq!(from(name, shard), Err(OpenError::Misplaced), "{name} {shard}");
        }
    }

    #[test]
    fn a_message_cut_or_lengthened_does_not_open() {
        let sealed = sealer().seal(&draft(&address("a"), 1, b"body")).unwrap();
        for length in 0..sealed.len() {
            assert_eq!(opener().open(&sealed[..length]), Err(OpenError::Malformed(DecodeError::Truncated)));
        }
        let longer = [&sealed[..], b"x"].concat();
        assert_eq!(opener().open(&longer), Err(OpenError::Malformed(DecodeError::TrailingBytes(1))));
    }

    #[test]
    fn parts_of_different_messages_do_not_join() {
        let (orders, returns) = (address("shop.orders"), address("shop.return"));
        let mut sealer = sealer();
        let mut other_session = Sealer::new(&keyring(0xa0), ProducerId(7), ProducerEpoch(2), SALT);
        let seal = |sealer: &mut Sealer, draft: &Draft<'_>| sealer.seal(draft).unwrap().to_vec();
        let messages = [
            seal(&mut sealer, &draft(&orders, 1, b"body")),
            seal(&mut sealer, &draft(&orders, 2, b"body")),
            seal(&mut sealer, &draft(&returns, 3, b"body")),
            seal(&mut sealer, &Draft { shard: ShardId(4), ..draft(&orders, 1, b"body") }),
            seal(&mut sealer, &Draft { published_at: WallTime(1), ..draft(&orders, 4, b"body") }),
            seal(&mut other_session, &draft(&orders, 1, b"body")),
        ];
        let admission = keyring(0xa0).admission_key();
        let mut opener = opener();
        for (i, head) in messages.iter().enumerate() {
            for (j, tail) in messages.iter().enumerate() {
                let (head, _) = envelope::split_sealed(head).unwrap();
                let (tail, _) = envelope::split_sealed(tail).unwrap();
                let mut joined = [head.header().bytes(), tail.ciphertext()].concat();
                // As a node or a client with the admission key would do it.
                let mac = admission.sign(&[&joined]);
                joined.extend_from_slice(&mac);
                assert!(admitted(&joined));
                assert_eq!(opener.open(&joined).is_ok(), i == j, "header of {i} with ciphertext of {j}");
            }
        }
    }

    #[test]
    fn another_keyring_opens_nothing() {
        let sealed = sealer().seal(&draft(&address("a"), 1, b"body")).unwrap();
        assert_eq!(Opener::new(&keyring(0xb0)).open(&sealed), Err(OpenError::Forged));
        let text =
            keyring(0xa0).to_text().replace("id = 1", "id = 2").replace("current_key = 1", "current_key = 2");
        let renumbered = ClientKeyring::parse(&text).unwrap();
        assert_eq!(Opener::new(&renumbered).open(&sealed), Err(OpenError::UnknownKey(KeyId(1))));
    }

    #[test]
    fn messages_of_an_older_key_open_after_a_rotation() {
        let sealed = sealer().seal(&draft(&address("a"), 1, b"old")).unwrap();
        let mut text = keyring(0xa0).to_text().replace("current_key = 1", "current_key = 2");
        text.push_str(&format!(
            "\n[[payload_keys]]\nid = 2\ncreated_at_ms = 2\nkey = \"{}\"\n",
            "ee".repeat(32)
        ));
        let rotated = ClientKeyring::parse(&text).unwrap();
        let mut opener = Opener::new(&rotated);
        assert_eq!(&opener.open(&sealed).unwrap().body[..], b"old");
        let newer = Sealer::new(&rotated, ProducerId(7), ProducerEpoch(2), Salt([1; 32]))
            .seal(&draft(&address("a"), 1, b"new"))
            .unwrap();
        assert_eq!(&opener.open(&newer).unwrap().body[..], b"new");
        assert_eq!(self::opener().open(&newer), Err(OpenError::UnknownKey(KeyId(2))));
    }

    #[test]
    fn a_sequence_is_never_sealed_twice_nor_backwards() {
        let address = address("a");
        let mut sealer = sealer();
        let spent = |sequence, last| {
            Err(SealError::SequenceSpent {
                shard: ShardId(3),
                sequence: Sequence(sequence),
                last: Sequence(last),
            })
        };
        assert_eq!(sealer.seal(&draft(&address, 0, b"")), spent(0, 0));
        sealer.seal(&draft(&address, 5, b"one")).unwrap();
        assert_eq!(sealer.seal(&draft(&address, 5, b"one")), spent(5, 5));
        assert_eq!(sealer.seal(&draft(&address, 4, b"two")), spent(4, 5));
        // Sequences belong to the shard, not to the address.
        assert_eq!(sealer.seal(&draft(&self::address("b"), 5, b"one")), spent(5, 5));
        assert!(sealer.seal(&Draft { shard: ShardId(4), ..draft(&address, 5, b"one") }).is_ok());
        assert!(sealer.seal(&draft(&address, 6, b"two")).is_ok());
    }

    #[test]
    fn a_session_ends_at_its_limit() {
        let address = address("a");
        let mut sealer = sealer();
        sealer.sealed = SESSION_MESSAGES_MAX - 1;
        assert!(sealer.seal(&draft(&address, 1, b"last")).is_ok());
        assert_eq!(sealer.remaining(), 0);
        assert_eq!(sealer.seal(&draft(&address, 2, b"more")), Err(SealError::Exhausted));

        let once = KeyLimits { messages: 1, ..KeyLimits::default() };
        let mut sealer = self::sealer().with_limits(once);
        sealer.seal(&draft(&address, 1, b"first")).unwrap();
        sealer.turn.renewed_before(KeyRenewal(u32::MAX));
        assert_eq!(sealer.seal(&draft(&address, 2, b"more")), Err(SealError::Exhausted));
        assert_eq!(sealer.remaining(), SESSION_MESSAGES_MAX - 1, "nothing was spent");
    }

    #[test]
    fn the_same_plaintext_never_gives_the_same_bytes() {
        let address = address("a");
        let mut sealer = sealer();
        let mut fresh = Sealer::new(&keyring(0xa0), ProducerId(7), ProducerEpoch(1), Salt([1; 32]));
        let sealed = [
            sealer.seal(&draft(&address, 1, &[0; 64])).unwrap(),
            sealer.seal(&draft(&address, 2, &[0; 64])).unwrap(),
            sealer.seal(&draft(&self::address("b"), 3, &[0; 64])).unwrap(),
            sealer.seal(&Draft { shard: ShardId(4), ..draft(&address, 1, &[0; 64]) }).unwrap(),
            fresh.seal(&draft(&address, 1, &[0; 64])).unwrap(),
        ];
        let texts: Vec<&[u8]> =
            sealed.iter().map(|sealed| envelope::split_sealed(sealed).unwrap().0.ciphertext()).collect();
        for (i, text) in texts.iter().enumerate() {
            assert!(texts[..i].iter().all(|other| other[..16] != text[..16]), "{i}");
        }
    }

    #[test]
    fn a_refused_draft_spends_no_sequence() {
        let address = address("a");
        let mut sealer = sealer();
        let refused = sealer.seal(&Draft { headers: &[header("", b"")], ..draft(&address, 1, b"") });
        assert_eq!(refused, Err(SealError::Content(ContentError::EmptyHeaderName)));
        assert!(sealer.seal(&draft(&address, 1, b"")).is_ok());
    }

    #[test]
    fn the_largest_messages_are_sealed_and_opened() {
        let address = address("a");
        let body = vec![0x42; PLAINTEXT_BYTES_MAX];
        let headers: Vec<UserHeader> = (10..42).map(|i| header(&format!("h{i}"), &[1; 253])).collect();
        let mut sealer = sealer();
        for draft in [
            Draft { key: Some(&[7; KEY_BYTES_MAX]), ..draft(&address, 1, &body) },
            Draft { headers: &headers, ..draft(&address, 2, &body[USER_HEADERS_BYTES_MAX..]) },
        ] {
            let opened = opener().open(&sealer.seal(&draft).unwrap()).unwrap();
            assert_eq!(opened.body, draft.body);
            assert_eq!(opened.key.as_deref(), draft.key);
            assert_eq!(opened.headers, draft.headers);
        }
    }

    #[test]
    fn sessions_that_differ_in_one_thing_open_side_by_side() {
        let mut text = keyring(0xa0).to_text().to_string();
        text.push_str(&format!(
            "\n[[payload_keys]]\nid = 2\ncreated_at_ms = 2\nkey = \"{}\"\n",
            "ee".repeat(32)
        ));
        let both = ClientKeyring::parse(&text).unwrap();
        let second = ClientKeyring::parse(&text.replace("current_key = 1", "current_key = 2")).unwrap();
        let mut opener = Opener::new(&both);
        for (keyring, to, producer, epoch, salt) in [
            (&both, "a", 7, 1, 1),
            (&second, "a", 7, 1, 1),
            (&both, "b", 7, 1, 1),
            (&both, "a", 8, 1, 1),
            (&both, "a", 7, 2, 1),
            (&both, "a", 7, 1, 2),
        ] {
            let mut sealer =
                Sealer::new(keyring, ProducerId(producer), ProducerEpoch(epoch), Salt([salt; 32]));
            let sealed = sealer.seal(&draft(&address(to), 1, b"body")).unwrap();
            assert_eq!(&opener.open(&sealed).unwrap().body[..], b"body");
        }
        assert_eq!(opener.keys.len(), 6);
    }

    #[test]
    fn forged_sessions_cannot_push_out_keys_in_use() {
        let sealed = sealer().seal(&draft(&address("a"), 1, b"body")).unwrap();
        let mut opener = opener();
        for salt in 0..=255 {
            let mut forged = sealed.to_vec();
            forged[56] = salt;
            assert_eq!(opener.open(&forged).is_ok(), salt == SALT.0[0]);
        }
        assert_eq!(opener.keys.len(), 1);
    }

    #[test]
    fn nothing_secret_is_printed() {
        let mut sealer = sealer();
        let mut opener = opener();
        let headers = [header("canary", b"canary")];
        let sealed = sealer.seal(&Draft { headers: &headers, ..draft(&address("a"), 1, b"canary") }).unwrap();
        let opened = opener.open(&sealed).unwrap();
        let (producer, epoch) = (ProducerId(7), ProducerEpoch(1));
        let session = Session { producer, epoch, salt: SALT, renewal: KeyRenewal(0) };
        let keyring = keyring(0xa0);
        let address_key = crate::derive::address_key(keyring.payload_key(KeyId(1)).unwrap(), "a");
        let session_key = crate::derive::session_secret(&address_key, "a", &session);
        let printed = format!("{sealer:?} {opener:?} {opened:?} {headers:?} {keyring:?} {address_key:?}");
        let secrets: [&[u8]; 7] = [
            &[0xa0; 32],
            &[0xa1; 32],
            &[0xa2; 32],
            &[0xa3; 32],
            address_key.bytes(),
            session_key.bytes(),
            b"canary",
        ];
        for secret in secrets {
            let hex: String = secret[..4].iter().map(|byte| format!("{byte:02x}")).collect();
            let list: String = secret[..4].iter().map(|byte| format!("{byte}, ")).collect();
            for shape in [hex, list, secret.escape_ascii().to_string()] {
                assert!(!printed.to_lowercase().contains(&shape), "{shape} in {printed}");
            }
        }
    }

    fn user_headers() -> impl Strategy<Value = Vec<UserHeader>> {
        let values =
            proptest::collection::btree_map(".{1,20}", proptest::collection::vec(any::<u8>(), 0..80), 0..8);
        values.prop_map(|map| map.iter().map(|(name, value)| header(name, value)).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_sealed_opens_as_it_was(
            name in "[a-z0-9]{1,60}(\\.[A-Za-z0-9-]{1,60}){0,2}",
            shard: u32,
            sequence in 1..=u64::MAX,
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..=256)),
            headers in user_headers(),
            body in prop_oneof![proptest::collection::vec(any::<u8>(), 0..3000), proptest::collection::vec(0..3_u8, 0..3000)],
            published_at: u64,
            trace: Option<[u8; 25]>,
            compress: bool,
            producer: u128,
            epoch: u64,
            salt: [u8; 32],
        ) {
            let address = address(&name);
            let mut sealer = Sealer::new(&keyring(0xa0), ProducerId(producer), ProducerEpoch(epoch), Salt(salt));
            let sealed = sealer.seal(&Draft {
                address: &address,
                shard: ShardId(shard),
                sequence: Sequence(sequence),
                key: key.as_deref(),
                headers: &headers,
                body: &body,
                published_at: WallTime(published_at),
                trace,
                compress,
            }).unwrap();
            prop_assert!(admitted(&sealed));
            let (message, _) = envelope::split_sealed(&sealed).unwrap();
            let header = message.header();
            prop_assert_eq!(header.address(), &name);
            prop_assert_eq!(header.published_at(), WallTime(published_at));
            prop_assert_eq!(header.trace(), trace);
            prop_assert_eq!(header.key_hash(), key.as_deref().map(|key| sealer.key_hash(&address, key)));
            let opened = opener().open(&sealed).unwrap();
            prop_assert_eq!(opened.key.as_deref(), key.as_deref());
            prop_assert_eq!(opened.headers, headers);
            prop_assert_eq!(opened.body, body);
        }

        #[test]
        fn no_bytes_make_the_opener_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(opener().open(&bytes).is_err());
        }

    }
}
