//! Hostile clients of real nodes: with a token and without, with every key that a client has. Part of `cargo x attack`.
//!
//! After each story the node lives, has not panicked, and serves somebody who behaves.

#[path = "cluster/attacker.rs"]
mod attacker;
mod cluster;

use std::{fs, path::Path, time::Duration};

use bytes::BytesMut;
use swarmmq_protocol::{
    admin::Order,
    envelope::split_sealed,
    error::{Code, Outcome},
    frame::{FRAME_HEADER_BYTES, Frame, Resolve},
    id::{Address, ProducerId},
    limits::{FRAME_BYTES_MAX, MAC_BYTES, SEQUENCE_MAX, UNAUTHENTICATED_BYTES_MAX},
};
use swarmmq_seal::{ClientKeyring, OpenError, Opener};

use self::{
    attacker::{Attacker, Forger, admission_key, keyring},
    cluster::{Dev, column, figures, ok, resident_bytes},
};

/// Recorded frames, whole, one of every kind.
const FRAMES: &str = include_str!("../../protocol/testdata/frames_v1.txt");
const ADMIN: &str = include_str!("../../protocol/testdata/admin_v1.txt");

fn recorded() -> Vec<Vec<u8>> {
    let lines = FRAMES.lines().chain(ADMIN.lines()).filter(|line| !line.starts_with('#') && !line.is_empty());
    let frames = lines.map(|line| unhex(line.rsplit(' ').next().unwrap()));
    // An answer of a node is no less strange to it than a question.
    frames.collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// It lives, never panicked, and takes and gives a message.
fn serves(dev: &Dev) {
    let body = "still here";
    ok(&dev.run(&["send", "honest", body]));
    let received = dev.run(&["recv", "honest", "-n", "1", "--timeout", "20s", "--json"]);
    ok(&received);
    assert_eq!(column(&received, "body"), [body]);
    let log = Path::new(&dev.node("data")).parent().unwrap().join("node.log");
    let log = fs::read_to_string(log).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

/// How many messages a new group of the address is given.
fn count(dev: &Dev, address: &str) -> usize {
    let words = ["recv", address, "--group", "counting", "--from", "start", "--timeout", "3s", "--json"];
    column(&dev.run(&words), "body").iter().filter(|body| body.is_string()).count()
}

/// S1. What a length claims is not allocated before it has come, neither for strangers nor for clients, at either port.
#[test]
fn lengths_that_lie_cost_nothing() {
    let dev = Dev::up_in_plain_text();
    let keyring = keyring(&dev);
    serves(&dev);
    let before = resident_bytes(dev.pid());
    let (mut sent, mut open) = (0, Vec::new());
    let lengths: [u32; 12] = [
        0,
        1,
        UNAUTHENTICATED_BYTES_MAX as u32,
        UNAUTHENTICATED_BYTES_MAX as u32 + 1,
        FRAME_BYTES_MAX as u32 - 1,
        FRAME_BYTES_MAX as u32,
        FRAME_BYTES_MAX as u32 + 1,
        8 << 20,
        i32::MAX as u32,
        1 << 31,
        u32::MAX - 15,
        u32::MAX,
    ];
    for kind in [1_u8, 3, 0x14, 0x24, 0x30, 0xff] {
        for length in lengths {
            let claim = [&length.to_be_bytes()[..], &[kind, 0, 0, 0], &[0; 8], &[0; 100]].concat();
            for port in ["client", "peer"] {
                let mut stranger = Attacker::stranger(&dev.node(port));
                stranger.bytes(&claim);
                open.push(stranger);
            }
            let mut client = Attacker::client(&dev.node("client"), &keyring);
            client.bytes(&claim);
            open.push(client);
            sent += 3 * (claim.len() as u64 + 1024);
        }
    }
    // All of them are open at once, or closed because of what they claimed.
    let grown = resident_bytes(dev.pid()).saturating_sub(before);
    let most = sent + open.len() as u64 * (8 << 10) + (2 << 20);
    assert!(grown <= most, "{grown} bytes for {sent} sent over {} connections; {most} may be", open.len());
    drop(open);
    serves(&dev);
}

/// S6. No bit of a message can be changed on the way: the first node refuses it. With the key that nodes have, which makes the
/// MAC good again, the receiver refuses it.
#[test]
fn every_bit_of_a_message_counts() {
    let dev = Dev::up_in_plain_text();
    let (keyring, admission) = (keyring(&dev), admission_key(&dev));
    let mut attacker = Attacker::client(&dev.node("client"), &keyring);
    let mut forger = Forger::new(&mut attacker, &keyring, "bits", 40);
    let sealed = forger.seal(&[7; 900]);
    let mut opener = Opener::new(&keyring);
    assert!(opener.open(&sealed).is_ok());
    let covered = sealed.len() - MAC_BYTES;
    let (mut refused, mut unopened) = (0, 0);
    for bit in 0..8 * sealed.len() {
        let mut forged = sealed.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        let Some((outcome, code, _)) = forger.publish(&mut attacker, &forged) else {
            // Bytes that do not even look like a message end the connection.
            attacker = Attacker::client(&dev.node("client"), &keyring);
            refused += 1;
            continue;
        };
        assert_ne!(outcome, Outcome::Ok, "bit {bit} was changed and the message taken");
        let codes = [Code::Forged, Code::Malformed, Code::WrongShard, Code::TooLarge];
        assert!(code.is_some_and(|code| codes.contains(&code)), "bit {bit}: {code:?}");
        refused += 1;
        if bit / 8 < covered {
            let mac = admission.sign(&[&forged[..covered]]);
            forged[covered..].copy_from_slice(&mac);
            assert!(opener.open(&forged).is_err(), "bit {bit} was changed by a node and the message opened");
            unopened += 1;
        }
    }
    assert_eq!((refused, unopened), (8 * sealed.len(), 8 * covered));
    assert_eq!(
        forger.publish(&mut attacker, &sealed),
        Some((Outcome::Ok, None, false)),
        "the message itself"
    );
    assert_eq!(count(&dev, "bits"), 1);
    figures(format_args!("{refused} forgeries refused by a node, {unopened} by a receiver"));
    serves(&dev);
}

/// S6. A million random forgeries of messages, most of them with a good length, against both checks.
#[test]
fn no_forgery_of_a_million_is_taken() {
    let dev = Dev::up_in_plain_text();
    let (keyring, admission) = (keyring(&dev), admission_key(&dev));
    let mut attacker = Attacker::client(&dev.node("client"), &keyring);
    let sealed = Forger::new(&mut attacker, &keyring, "forged", 41).seal(&[7; 40]);
    let mut opener = Opener::new(&keyring);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let covered = sealed.len() - MAC_BYTES;
    for number in 0..1_000_000 {
        let mut forged = sealed.clone();
        for _ in 0..=random() % 3 {
            let at = random() as usize % forged.len();
            forged[at] ^= 1 + (random() % 255) as u8;
        }
        if forged == sealed {
            continue;
        }
        if let Ok((message, [])) = split_sealed(&forged) {
            assert!(!message.verify(&admission), "forgery {number} passes a node");
        }
        let mac = admission.sign(&[&forged[..covered]]);
        forged[covered..].copy_from_slice(&mac);
        if forged[..covered] != sealed[..covered] {
            assert!(opener.open(&forged).is_err(), "forgery {number} passes a receiver");
        }
    }
    figures(format_args!("1000000 random forgeries, 0 taken"));
}

/// S7. The same bytes again, whoever brings them and whenever, are no second message.
#[test]
fn bytes_that_come_again_have_no_effect() {
    let dev = Dev::up_in_plain_text();
    let keyring = keyring(&dev);
    let mut attacker = Attacker::client(&dev.node("client"), &keyring);
    let mut forger = Forger::new(&mut attacker, &keyring, "again", 42);
    let messages: Vec<Vec<u8>> = (0..20_u8).map(|number| forger.seal(&[number; 30])).collect();
    for sealed in &messages {
        assert_eq!(forger.publish(&mut attacker, sealed), Some((Outcome::Ok, None, false)));
    }
    let again = |attacker: &mut Attacker, when: &str| {
        for sealed in messages.iter().rev() {
            let fate = forger.publish(attacker, sealed);
            assert_eq!(fate, Some((Outcome::Ok, None, true)), "{when}: it is known as stored, once");
        }
    };
    again(&mut attacker, "on the same connection");
    let mut other = Attacker::client(&dev.node("client"), &keyring);
    again(&mut other, "on another connection");
    // Under another address, and in another shard: neither is what the MAC says.
    let elsewhere = Forger::new(&mut other, &keyring, "elsewhere", 43);
    for sealed in &messages {
        let fate = elsewhere.publish(&mut other, sealed);
        assert!(
            matches!(
                fate,
                Some(
                    (Outcome::Ok, None, true)
                        | (Outcome::Failed, Some(Code::WrongShard | Code::Forged | Code::NotOpen), _)
                )
            ),
            "{fate:?}"
        );
    }
    dev.crash_and_start();
    let mut after = Attacker::client(&dev.node("client"), &keyring);
    again(&mut after, "after a crash");
    assert_eq!((count(&dev, "again"), count(&dev, "elsewhere")), (20, 0));
    figures(format_args!("80 messages replayed, 0 effective"));
    serves(&dev);
}

/// S8. The ciphertext of one message under the header of another, its MAC made good: a node cannot see it, a receiver does.
#[test]
fn what_is_cut_and_pasted_does_not_open() {
    let dev = Dev::up_in_plain_text();
    let (keyring, admission) = (keyring(&dev), admission_key(&dev));
    let mut attacker = Attacker::client(&dev.node("client"), &keyring);
    let mut messages = Vec::new();
    for (address, producer) in [("cut.a", 44), ("cut.b", 44), ("cut.a", 45)] {
        let mut forger = Forger::new(&mut attacker, &keyring, address, producer);
        messages.extend((0..3).map(|_| forger.seal(b"the same body in all of them")));
    }
    let mut opener = Opener::new(&keyring);
    let parts = |sealed: &[u8]| {
        let (message, _) = split_sealed(sealed).unwrap();
        (message.header().bytes().to_vec(), message.ciphertext().to_vec())
    };
    let mut pasted_count = 0;
    for (one, other) in messages.iter().flat_map(|one| messages.iter().map(move |other| (one, other))) {
        if one == other {
            assert!(opener.open(one).is_ok());
            continue;
        }
        let ((header, _), (_, ciphertext)) = (parts(one), parts(other));
        let mut pasted = [header, ciphertext].concat();
        let mac = admission.sign(&[&pasted]);
        pasted.extend(mac);
        assert_eq!(opener.open(&pasted).err(), Some(OpenError::Forged));
        pasted_count += 1;
    }
    assert_eq!(pasted_count, messages.len() * (messages.len() - 1));
}

/// S11. Keys of zeros are refused where they would be used, and a wrong one opens nothing.
#[test]
fn keys_of_zeros_and_wrong_keys_open_nothing() {
    let dev = Dev::up_in_plain_text();
    let keyring = keyring(&dev);
    let text = fs::read_to_string(dev.directory().join("client.keyring")).unwrap();
    let mut attacker = Attacker::client(&dev.node("client"), &keyring);
    let sealed = Forger::new(&mut attacker, &keyring, "zero", 46).seal(b"secret");
    for line in text.lines().filter(|line| line.contains(" = \"") && line.len() > 64) {
        let (name, value) = line.split_once(" = ").unwrap();
        let digits = value.trim_matches('"');
        let with = |other: &str| ClientKeyring::parse(&text.replace(digits, &other.repeat(64)));
        assert!(with("0").is_err(), "{name} of zeros is taken");
        if name == "key" {
            let wrong = with("7").unwrap();
            assert_eq!(Opener::new(&wrong).open(&sealed).err(), Some(OpenError::Forged));
        }
    }
    serves(&dev);
}

/// S18. Somebody with a token who wants everything there is: producers, addresses, messages that nobody takes.
#[test]
fn greed_is_bounded() {
    let dev = Dev::up_in_plain_text();
    let keyring = keyring(&dev);
    let mut attacker = Attacker::client(&dev.node("client"), &keyring);
    for number in 0..2_000_u128 {
        let forger = Forger::new(&mut attacker, &keyring, "greed", 1000 + number);
        assert_eq!(forger.producer, ProducerId(1000 + number));
    }
    let (mut made, mut refused) = (0, 0);
    for number in 0..2_000 {
        let address = Address::parse(&format!("greed.{number}")).unwrap();
        let resolve =
            Resolve { address, create: true, order: Some(Order::None), deadline: Duration::from_secs(10) };
        match attacker.ask(&Frame::Resolve(resolve)) {
            Some(Frame::Resolved(_)) => made += 1,
            Some(Frame::Answer(answer)) => {
                assert_eq!(Code::from_number(answer.code), Some(Code::Limit), "{answer:?}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(made + refused, 2_000);
    let resident = resident_bytes(dev.pid());
    assert!(resident < 256 << 20, "{} MiB", resident >> 20);
    figures(format_args!("2000 producers, {made} addresses, node at {} MiB", resident >> 20));
    serves(&dev);
}

/// S19. Every frame in every state, whole, cut at every byte, and with what follows it swapped: an answer or an end, no panic.
#[test]
fn every_frame_in_every_state_has_an_answer_or_an_end() {
    let dev = Dev::up_in_plain_text();
    let keyring = keyring(&dev);
    let mut stories = 0;
    for frame in recorded() {
        // Whole: as a stranger, and as a client.
        for known in [false, true] {
            let open = || match known {
                true => Attacker::client(&dev.node("client"), &keyring),
                false => Attacker::stranger(&dev.node("client")),
            };
            let mut attacker = open();
            attacker.bytes(&frame);
            let ping = {
                let mut bytes = BytesMut::new();
                Frame::Ping(swarmmq_protocol::frame::Ping).encode(u64::MAX, &mut bytes);
                bytes
            };
            attacker.bytes(&ping);
            let alive = loop {
                match attacker.next() {
                    Some((u64::MAX, Frame::Pong(_))) => break true,
                    Some(_) => {}
                    None => break false,
                }
            };
            assert!(known || !alive, "a stranger's ping is answered after {frame:02x?}");
            // Cut, with a length that says that this is all: never more than a typed refusal.
            let mut attacker = open();
            for cut in FRAME_HEADER_BYTES..frame.len() {
                let mut short = frame[..cut].to_vec();
                short[..4].copy_from_slice(&((cut - FRAME_HEADER_BYTES) as u32).to_be_bytes());
                if !attacker.bytes(&short) {
                    attacker = open();
                }
                stories += 1;
            }
            // Cut, and gone.
            for cut in [1, FRAME_HEADER_BYTES - 1, FRAME_HEADER_BYTES, frame.len() - 1] {
                open().bytes(&frame[..cut.min(frame.len())]);
                stories += 1;
            }
        }
    }
    figures(format_args!("{stories} frames cut or in a wrong state"));
    serves(&dev);
}

/// S20. Who poisons its own numbers hurts itself alone.
#[test]
fn a_poisoned_sequence_hurts_nobody_else() {
    let dev = Dev::up_in_plain_text();
    let keyring = keyring(&dev);
    let mut attacker = Attacker::client(&dev.node("client"), &keyring);
    let mut honest = Forger::new(&mut attacker, &keyring, "numbers", 50);
    let first = honest.seal(b"one");
    assert_eq!(honest.publish(&mut attacker, &first), Some((Outcome::Ok, None, false)));
    for (producer, sequence) in [(51, SEQUENCE_MAX), (52, SEQUENCE_MAX + 1), (53, u64::MAX), (54, 2)] {
        let mut forger = Forger::new(&mut attacker, &keyring, "numbers", producer);
        let sealed = forger.seal_as(sequence, b"far ahead");
        let fate = forger.publish(&mut attacker, &sealed);
        assert!(
            matches!(
                fate,
                None | Some((Outcome::Failed, Some(Code::Gap | Code::Malformed | Code::Limit), false))
            ),
            "{sequence}: {fate:?}"
        );
        if fate.is_none() {
            attacker = Attacker::client(&dev.node("client"), &keyring);
        }
    }
    let second = honest.seal(b"two");
    assert_eq!(honest.publish(&mut attacker, &second), Some((Outcome::Ok, None, false)));
    serves(&dev);
}
