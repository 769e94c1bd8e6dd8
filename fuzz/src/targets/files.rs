//! What people write: keyrings and settings.

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{codec::Reader, policy::Setting, time::WallTime};
use swarmmq_seal::{ClientKeyring, KeyringError, NodeKey, NodeKeyring};

use super::Mark;
use crate::rng::Rng;

pub(super) fn keyrings() -> Vec<Vec<u8>> {
    let mut rng = Rng::new(1);
    let mut random = |out: &mut [u8]| out.fill_with(|| rng.next() as u8);
    let keyring = ClientKeyring::generate(WallTime(1), &mut random).expect("the secrets differ");
    let node = keyring.to_node_text(&mut random).expect("the secrets differ");
    let turning = NodeKeyring::parse(&node).expect("it was written by ourselves");
    let turning = turning.next(NodeKey::PeerSecret, &mut random).expect("only one counts");
    [keyring.to_text(), node, turning.to_text()].map(|text| text.as_bytes().to_vec()).into()
}

/// A keyring file: what reads is written so that it reads the same; an error never quotes a key.
pub(super) fn keyring(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    let Ok(text) = std::str::from_utf8(input) else { return mark.done() };
    match ClientKeyring::parse(text) {
        Ok(keyring) => {
            let again = keyring.to_text();
            let second = ClientKeyring::parse(&again).expect("it was written by ourselves");
            assert!(*second.to_text() == *again, "a keyring changes as it is written and read");
            mark.note(keyring.payload_keys().count());
        }
        Err(error) => {
            assert!(!quotes_a_key(&error), "an error quotes a key");
            mark.error(&error);
        }
    }
    match NodeKeyring::parse(text) {
        Ok(keyring) => {
            let again = keyring.to_text();
            let second = NodeKeyring::parse(&again).expect("it was written by ourselves");
            assert!(*second.to_text() == *again, "a node's keyring changes as it is written and read");
            mark.note(keyring.fingerprints().iter().map(|(_, keys)| keys.len()).sum::<usize>());
        }
        Err(error) => assert!(!quotes_a_key(&error), "an error quotes a key"),
    }
    mark.done()
}

fn quotes_a_key(error: &KeyringError) -> bool {
    let said = format!("{error} {error:?}");
    said.as_bytes().windows(16).any(|part| part.iter().all(u8::is_ascii_hexdigit))
}

pub(super) fn settings() -> Vec<Vec<u8>> {
    let texts = [
        "routing.policy=least-cost",
        "routing.policy=p2c-ewma",
        "routing.cohort=none",
        "routing.cohort=static-hash:20",
        "routing.cohort=round-robin:1000",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// A setting as a person writes it, and as it travels.
pub(super) fn setting(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    if let Ok(text) = std::str::from_utf8(input) {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        match Setting::parse(name, value) {
            Ok(setting) => {
                let again = Setting::parse(setting.name(), &setting.value());
                assert_eq!(again.as_ref(), Ok(&setting), "a setting changes as it is written and read");
                let mut bytes = BytesMut::new();
                setting.put(&mut bytes);
                let read = Setting::read(&mut Reader::new(bytes.freeze()));
                assert_eq!(read, Ok(setting), "a setting changes as it travels");
                mark.note(name);
            }
            Err(error) => mark.error(&error),
        }
    }
    match Setting::read(&mut Reader::new(Bytes::copy_from_slice(input))) {
        Ok(setting) => mark.note(setting.name()),
        Err(error) => mark.error(&error),
    }
    mark.done()
}
