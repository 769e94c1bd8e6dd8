//! The hunt for a nonce that is used twice: a log of (derived key, nonce) of everything that is sealed, over restarts,
//! crashes, copied keyrings, rotations and used-up keys. One repeat would give AES-GCM away.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use aws_lc_rs::rand;
use bytes::Bytes;
use swarmmq_protocol::{
    envelope::split_sealed,
    id::{Address, KeyId, ProducerEpoch, ProducerId, Salt, Sequence, ShardId},
    limits::TAG_BYTES,
    time::WallTime,
};

use crate::{
    ClientKeyring, Draft, KeyLimits, OpenError, Opener, SealError, Sealer,
    derive::{Secret, Session, address_key, session_secret},
};

const ADDRESSES: [&str; 3] = ["shop.orders", "shop.returns", "a"];

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

fn fill(out: &mut [u8]) {
    rand::fill(out).expect("the operating system gives random bytes");
}

fn draft<'a>(address: &'a Address, place: (u32, u64), now: u64, body: &'a [u8]) -> Draft<'a> {
    Draft {
        address,
        shard: ShardId(place.0),
        sequence: Sequence(place.1),
        key: None,
        headers: &[],
        body,
        published_at: WallTime(now),
        trace: None,
        compress: false,
    }
}

/// Everything that was ever sealed, by what must not repeat.
#[derive(Default)]
struct Log {
    used: BTreeSet<([u8; 32], [u8; 12])>,
    ciphertexts: BTreeSet<Vec<u8>>,
    session_keys: BTreeMap<[u8; 32], u64>,
    repeats: u64,
}

impl Log {
    /// Notes the derived key and the nonce, worked out from the clear header alone, as a receiver does.
    fn note(&mut self, keyring: &ClientKeyring, sealed: &Bytes) {
        let (message, _) = split_sealed(sealed).unwrap();
        let header = message.header();
        let session = Session {
            producer: header.producer(),
            epoch: header.epoch(),
            salt: header.salt(),
            renewal: header.renewal(),
        };
        let payload_key = keyring.payload_key(header.key_id()).expect("it sealed just now");
        let secret = session_secret(&address_key(payload_key, header.address()), header.address(), &session);
        *self.session_keys.entry(*secret.bytes()).or_default() += 1;
        self.repeats += u64::from(!self.used.insert((*secret.bytes(), header.nonce())));
        // All bodies are the same.
        let ciphertext = message.ciphertext();
        let text = ciphertext[..ciphertext.len() - TAG_BYTES].to_vec();
        self.repeats += u64::from(!self.ciphertexts.insert(text));
    }
}

#[test]
fn no_nonce_repeats_over_a_thousand_restarts_clones_crashes_and_rotations() {
    const LIVES: u64 = 1_000;
    const BODY: [u8; 48] = [0x42; 48];
    let limits = KeyLimits { messages: 5, bytes: 1 << 11, age: Duration::from_secs(60) };
    let addresses = ADDRESSES.map(|text| Address::parse(text).unwrap());
    let mut keyring = ClientKeyring::generate(WallTime(1), &mut fill).unwrap();
    let mut log = Log::default();
    let mut sealed_messages = 0_u64;
    for life in 0..LIVES {
        let mut now = 1_000 + life * 1_000;
        if life % 50 == 49 {
            // Takes effect in the middle of lives that are under way.
            keyring = keyring.rotated(WallTime(now), WallTime(now + 500), &mut fill).unwrap().0;
        }
        // Every other life is a named producer's, each time with the same name; every tenth epoch was a clone's as well,
        // which has the same keyring, name and epoch, and begins with the same sequence.
        let (producer, epoch) = match life % 2 {
            0 => (ProducerId(u128::from_be_bytes(random())), ProducerEpoch(1)),
            _ => (ProducerId(77), ProducerEpoch(life / 10)),
        };
        let copies = if life % 5 == 0 { 2 } else { 1 };
        for copy in 0..copies {
            let mut own =
                if copy == 0 { keyring.clone() } else { ClientKeyring::parse(&keyring.to_text()).unwrap() };
            let mut sealer = Sealer::new(&own, producer, epoch, Salt(random())).with_limits(limits);
            let mut next = [1_u64; 3];
            // A crash ends it anywhere.
            let length = u64::from(random::<1>()[0]) % 40;
            for n in 0..length {
                let shard = (n % 3) as usize;
                let address = &addresses[random::<1>()[0] as usize % addresses.len()];
                let one = draft(address, (shard as u32, next[shard]), now, &BODY);
                let sealed = sealer.seal(&one).unwrap();
                log.note(&own, &sealed);
                sealed_messages += 1;
                // A second sealing under a sequence is refused, whatever became of the first one.
                assert!(matches!(sealer.seal(&one), Err(SealError::SequenceSpent { .. })));
                next[shard] += 1;
                now += 37;
                if n == 20 {
                    // A keyring that comes while the session runs; then the old one again.
                    own = own
                        .rotated(WallTime(now), WallTime(now + 1_000), &mut fill)
                        .unwrap_or((own, KeyId(0)))
                        .0;
                    sealer.take_keyring(&own);
                }
                if n == 30 {
                    own = keyring.clone();
                    sealer.take_keyring(&own);
                }
                if n == 33 {
                    // The clock is set back.
                    now = now.saturating_sub(5_000);
                }
            }
        }
    }
    assert_eq!(log.repeats, 0, "{sealed_messages} messages");
    assert_eq!(log.used.len() as u64, sealed_messages);
    assert!(sealed_messages > 15_000, "{sealed_messages}");
    let most = log.session_keys.values().max().copied();
    assert_eq!(most, Some(limits.messages), "a key serves as long as it may and no longer");
    // Past the test harness, which shows nothing of a test that passes.
    let line = format!(
        "nonce hunt: {sealed_messages} messages, {} session keys, 0 repeats\n",
        log.session_keys.len()
    );
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
}

#[test]
fn the_hunt_finds_a_repeat() {
    let keyring = ClientKeyring::generate(WallTime(1), &mut fill).unwrap();
    let address = Address::parse("a").unwrap();
    let mut log = Log::default();
    for _ in 0..2 {
        // What a sealer's owner must never do: the same salt in two lives.
        let mut sealer = Sealer::new(&keyring, ProducerId(1), ProducerEpoch(1), Salt([7; 32]));
        log.note(&keyring, &sealer.seal(&draft(&address, (0, 1), 5, b"body")).unwrap());
    }
    assert_eq!(log.repeats, 2, "the nonce, and with it the ciphertext");
}

/// Sealed under what a broken program could take for a key.
#[test]
fn zero_swapped_and_wrong_keys_are_refused() {
    let keyring = ClientKeyring::generate(WallTime(1), &mut fill).unwrap();
    let keyring = keyring.rotated(WallTime(2), WallTime(2), &mut fill).unwrap().0;
    let address = Address::parse("a").unwrap();
    let mut sealer = Sealer::new(&keyring, ProducerId(1), ProducerEpoch(1), Salt(random()));
    let sealed = sealer.seal(&draft(&address, (0, 1), 5, b"body")).unwrap();
    assert_eq!(split_sealed(&sealed).unwrap().0.header().key_id(), KeyId(2));
    assert!(Opener::new(&keyring).open(&sealed).is_ok());

    let text = keyring.to_text();
    let key = |id: u32| {
        let from = text.find(&format!("id = {id}\n")).unwrap();
        text[from..].lines().find_map(|line| line.strip_prefix("key = ")).unwrap().to_owned()
    };
    let zero = text.replace(&key(2), &format!("\"{}\"", "0".repeat(64)));
    assert!(ClientKeyring::parse(&zero).is_err(), "no keyring has a key of zeros");
    let swapped = text.replace(&key(1), "ONE").replace(&key(2), &key(1)).replace("ONE", &key(2));
    let swapped = ClientKeyring::parse(&swapped).unwrap();
    assert_eq!(Opener::new(&swapped).open(&sealed), Err(OpenError::Forged));
    let wrong = ClientKeyring::parse(&text.replace(&key(2), &format!("\"{}\"", "5a".repeat(32)))).unwrap();
    assert_eq!(Opener::new(&wrong).open(&sealed), Err(OpenError::Forged));
    let retired = keyring.retired(WallTime(5), KeyId(1)).unwrap();
    assert!(Opener::new(&retired).open(&sealed).is_ok());

    // Nor does a session key of zeros open it: the derivation is in between.
    let header = split_sealed(&sealed).unwrap().0.header();
    let session = Session {
        producer: header.producer(),
        epoch: header.epoch(),
        salt: header.salt(),
        renewal: header.renewal(),
    };
    let nothing = Secret::filled(|_| ());
    let of_nothing = session_secret(&address_key(&nothing, "a"), "a", &session);
    assert!(!of_nothing.is_zero());
}

#[test]
fn a_session_takes_another_key_and_keeps_its_sequences() {
    let address = Address::parse("a").unwrap();
    let first = ClientKeyring::generate(WallTime(1), &mut fill).unwrap();
    let limits = KeyLimits { messages: 3, bytes: 1 << 20, age: Duration::from_secs(3600) };
    let mut sealer = Sealer::new(&first, ProducerId(1), ProducerEpoch(1), Salt(random())).with_limits(limits);
    let second = first.rotated(WallTime(1_000), WallTime(9_000), &mut fill).unwrap().0;
    let mut opener = Opener::new(&second);
    let mut sequence = 0;
    let mut seal = |sealer: &mut Sealer, now: u64, body: &[u8]| {
        sequence += 1;
        let sealed = sealer.seal(&draft(&address, (0, sequence), now, body)).unwrap();
        let (message, _) = split_sealed(&sealed).unwrap();
        let header = message.header();
        assert_eq!((header.sequence(), header.producer()), (Sequence(sequence), ProducerId(1)));
        assert_eq!(&opener.open(&sealed).unwrap().body[..], body);
        (header.key_id().0, header.renewal().0)
    };
    let of_messages: Vec<_> = (0..7).map(|_| seal(&mut sealer, 2_000, b"x")).collect();
    assert_eq!(of_messages, [(1, 0), (1, 0), (1, 0), (1, 1), (1, 1), (1, 1), (1, 2)], "three each");

    assert_eq!(seal(&mut sealer, 9_500, b"x"), (1, 2), "it has not heard of another key");
    sealer.take_keyring(&second);
    assert_eq!(seal(&mut sealer, 8_000, b"x"), (1, 2), "which waits");
    assert_eq!(seal(&mut sealer, 9_000, b"x"), (2, 3), "and is active");
    assert_eq!(seal(&mut sealer, 8_000, b"x"), (2, 3), "and stays so when a clock is set back");

    sealer.take_keyring(&second.clone());
    assert_eq!(seal(&mut sealer, 9_001, b"x"), (2, 3), "the same key is no reason for a new one");
    assert_eq!(seal(&mut sealer, 9_000 + 3_600_000, b"x"), (2, 4), "three, once more");
    assert_eq!(seal(&mut sealer, 9_000 + 7_200_000, b"x"), (2, 5), "an hour");
    assert_eq!(
        seal(&mut sealer, 9_000 + 7_200_001, &[7; (1 << 20) - 200]),
        (2, 6),
        "a MiB does not fit any more"
    );

    // The same number with other bytes: nothing may be sealed with what is not there any more.
    let other = first.rotated(WallTime(1_000), WallTime(9_000), &mut fill).unwrap().0;
    sealer.take_keyring(&other);
    let sealed = sealer.seal(&draft(&address, (0, 99), 9_000 + 7_200_002, b"x")).unwrap();
    let (message, _) = split_sealed(&sealed).unwrap();
    assert_eq!((message.header().key_id().0, message.header().renewal().0), (2, 7));
    assert_eq!(Opener::new(&second).open(&sealed), Err(OpenError::Forged));
    assert!(Opener::new(&other).open(&sealed).is_ok());
}

#[test]
fn an_opener_takes_keys_that_come_and_leaves_those_that_go() {
    let address = Address::parse("a").unwrap();
    let first = ClientKeyring::generate(WallTime(1), &mut fill).unwrap();
    let second = first.rotated(WallTime(2), WallTime(2), &mut fill).unwrap().0;
    let seal = |keyring: &ClientKeyring| {
        let mut sealer = Sealer::new(keyring, ProducerId(1), ProducerEpoch(1), Salt(random()));
        sealer.seal(&draft(&address, (0, 1), 5, b"body")).unwrap()
    };
    let (old, new) = (seal(&first), seal(&second));
    let mut opener = Opener::new(&first);
    assert!(opener.open(&old).is_ok());
    assert_eq!(opener.open(&new), Err(OpenError::UnknownKey(KeyId(2))));
    opener.take_keyring(&second);
    assert!(opener.open(&new).is_ok() && opener.open(&old).is_ok());
    opener.take_keyring(&second.retired(WallTime(5), KeyId(1)).unwrap());
    assert!(opener.open(&new).is_ok());
    assert_eq!(opener.open(&old), Err(OpenError::UnknownKey(KeyId(1))), "though its session key was at hand");
}
