//! Sealed messages: the product's way of opening them against a second one, written for this purpose from
//! docs/design/sealing.md with another library.

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use swarmmq_protocol::{
    envelope::split_sealed,
    id::{Address, ProducerEpoch, ProducerId, Salt, Sequence, ShardId},
    mac::MacKey,
    time::WallTime,
};
use swarmmq_seal::{ClientKeyring, Draft, Opener, Sealer, UserHeader};

use super::{Mark, magnitude};
use crate::rng::Rng;

/// Payload key 1, admission key.
struct Keys {
    keyring: ClientKeyring,
    payload: [u8; 32],
    admission: [u8; 32],
}

/// Equal bytes in each key: all differ, and none is zero.
fn keys() -> Keys {
    let digits = |byte: u8| format!("{byte:02x}").repeat(32);
    let text = format!(
        "version = 1\naccess_token = \"{}\"\nadmission_key = \"{}\"\nrouting_key = \"{}\"\ncurrent_key = 1\n\
         [[payload_keys]]\nid = 1\ncreated_at_ms = 1\nkey = \"{}\"\n",
        digits(1),
        digits(2),
        digits(3),
        digits(4)
    );
    let keyring = ClientKeyring::parse(&text).expect("a keyring");
    Keys { keyring, payload: [4; 32], admission: [2; 32] }
}

/// The first byte says what is made good: 1 the MAC, 2 the seal too.
pub(super) fn messages() -> Vec<Vec<u8>> {
    let keys = keys();
    let mut sealer = Sealer::new(&keys.keyring, ProducerId(7), ProducerEpoch(1), Salt([5; 32]));
    let address = Address::parse("orders.eu").expect("an address");
    let headers = [UserHeader { name: "kind".into(), value: bytes::Bytes::from_static(b"test") }];
    let mut rng = Rng::new(1);
    let mut seeds = Vec::new();
    for (sequence, (key, headers, trace)) in
        [(None, &headers[..0], None), (Some(&b"customer"[..]), &headers[..], Some([1; 25]))]
            .into_iter()
            .enumerate()
    {
        let body: Vec<u8> = (0..40).map(|_| rng.next() as u8).collect();
        let draft = Draft {
            address: &address,
            shard: ShardId(3),
            sequence: Sequence(sequence as u64 + 1),
            key,
            headers,
            body: &body,
            published_at: WallTime(1_000),
            trace,
            compress: false,
        };
        let sealed = sealer.seal(&draft).expect("a good draft");
        seeds.extend((0..3).map(|mode| [&[mode], &sealed[..]].concat()));
    }
    seeds
}

/// HMAC-SHA256 by the other library.
fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("any length is a key");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

/// Where header, ciphertext and MAC of a message lie, if it says so consistently: (header, ciphertext).
fn layout(bytes: &[u8]) -> Option<(usize, usize)> {
    if bytes.len() < 16 {
        return None;
    }
    let header = usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
    let ciphertext = u32_at(bytes, 8);
    let end = header.checked_add(ciphertext)?.checked_add(32)?;
    (header >= 113 && ciphertext >= 16 && bytes.len() >= end).then_some((header, ciphertext))
}

fn session_cipher(keys: &Keys, header: &[u8]) -> Option<(Aes256Gcm, [u8; 12])> {
    let address_len = usize::from(header[3]);
    let address = &header[header.len().checked_sub(address_len)?..];
    let mut address_key = [0; 32];
    Hkdf::<Sha256>::new(Some(b"swarmmq/address/v1"), &keys.payload).expand(address, &mut address_key).ok()?;
    // The first key of a session, or one that it has taken since.
    let (label, renewal): (&[u8], &[u8]) = match &header[20..24] {
        [0, 0, 0, 0] => (b"swarmmq/session/v1", &[]),
        renewal => (b"swarmmq/renewed/v1", renewal),
    };
    let info = [label, &[header[3]][..], address, &header[24..48], renewal].concat();
    let mut session = [0; 32];
    Hkdf::<Sha256>::new(Some(&header[56..88]), &address_key).expand(&info, &mut session).ok()?;
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&header[12..16]);
    nonce[4..].copy_from_slice(&header[48..56]);
    Some((Aes256Gcm::new_from_slice(&session).expect("32 bytes"), nonce))
}

/// Opens as the page says, nothing more: the plaintext, if seal and MAC are good.
fn second_opinion(keys: &Keys, bytes: &[u8]) -> Option<Vec<u8>> {
    let (header, ciphertext) = layout(bytes)?;
    let (covered, mac) = bytes.split_at(header + ciphertext);
    if hmac(&keys.admission, &[covered]) != mac[..32] || u32_at(covered, 16) != 1 {
        return None;
    }
    let (cipher, nonce) = session_cipher(keys, &covered[..header])?;
    let payload = Payload { msg: &covered[header..], aad: &covered[..header] };
    cipher.decrypt(&nonce.into(), payload).ok()
}

/// Makes seal or MAC fit what stands there, as somebody with the keys could.
fn make_good(keys: &Keys, bytes: &mut Vec<u8>, seal: bool) {
    let Some((header, ciphertext)) = layout(bytes) else { return };
    bytes.truncate(header + ciphertext + 32);
    if seal && let Some((cipher, nonce)) = session_cipher(keys, &bytes[..header]) {
        // What stands where the ciphertext goes is taken for the plaintext.
        let plain = bytes[header..header + ciphertext - 16].to_vec();
        let payload = Payload { msg: &plain, aad: &bytes[..header] };
        if let Ok(sealed) = cipher.encrypt(&nonce.into(), payload) {
            bytes[header..header + ciphertext].copy_from_slice(&sealed);
        }
    }
    let mac = hmac(&keys.admission, &[&bytes[..header + ciphertext]]);
    bytes[header + ciphertext..].copy_from_slice(&mac);
}

/// A sealed message from whoever: what the product opens, the second implementation opens to the same; what the second
/// refuses, the product refuses too.
pub(super) fn open(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    let Some((mode, bytes)) = input.split_first() else { return mark.done() };
    let keys = keys();
    let mut bytes = bytes.to_vec();
    if *mode > 0 {
        make_good(&keys, &mut bytes, *mode > 1);
    }
    let second = second_opinion(&keys, &bytes);
    match split_sealed(&bytes) {
        Ok((message, rest)) => {
            let admitted = message.verify(&MacKey::new(keys.admission));
            let (header, ciphertext) = layout(&bytes).expect("the second implementation sees the same parts");
            assert_eq!(message.bytes().len(), header + ciphertext + 32, "both see the same end");
            let expected = hmac(&keys.admission, &[&bytes[..header + ciphertext]]);
            assert_eq!(admitted, expected == bytes[header + ciphertext..header + ciphertext + 32], "the MAC");
            mark.note((admitted, rest.is_empty()));
            if rest.is_empty() {
                match Opener::new(&keys.keyring).open(&bytes) {
                    Ok(opened) => {
                        if admitted {
                            let plain = second.expect("the second implementation opens it too");
                            assert!(plain.ends_with(&opened.body), "both open it to the same");
                        }
                        mark.note((opened.key.is_some(), opened.headers.len(), magnitude(opened.body.len())));
                    }
                    Err(error) => mark.error(&error),
                }
            }
        }
        Err(error) => mark.error(&error),
    }
    mark.done()
}
