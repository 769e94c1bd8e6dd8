//! Known answers from a second implementation (`testdata/README.md`): every byte on the way must be the same.

use serde::Deserialize;
use swarmmq_protocol::{
    envelope,
    id::{Address, KeyHash, KeyId, KeyRenewal, ProducerEpoch, ProducerId, Salt, Sequence, ShardId},
    mac::ring,
    time::WallTime,
};

use crate::{
    ClientKeyring, Draft, Opener, Sealer, UserHeader,
    derive::{Secret, Session, address_key, session_secret},
};

#[derive(Deserialize)]
struct Vectors {
    admission_key: String,
    routing_key: String,
    shard_counts: Vec<u32>,
    case: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    address: String,
    shard: u32,
    key_id: u32,
    #[serde(default)]
    renewal: u32,
    payload_key: String,
    producer: String,
    epoch: String,
    sequence: String,
    salt: String,
    published_at_ms: String,
    key: Option<String>,
    trace: Option<String>,
    headers: Vec<(String, String)>,
    body: String,
    address_key: String,
    session_key: String,
    nonce: String,
    key_hash: String,
    header: String,
    plaintext: String,
    ciphertext: String,
    mac: String,
    ring_by_address: Vec<u32>,
    ring_by_key: Vec<u32>,
}

impl Case {
    fn keyring(&self, vectors: &Vectors) -> ClientKeyring {
        let Vectors { admission_key, routing_key, .. } = vectors;
        let Self { key_id, payload_key, .. } = self;
        let access_token = "11".repeat(32);
        ClientKeyring::parse(&format!(
            "version = 1\naccess_token = \"{access_token}\"\nadmission_key = \"{admission_key}\"\n\
             routing_key = \"{routing_key}\"\ncurrent_key = {key_id}\n\
             [[payload_keys]]\nid = {key_id}\ncreated_at_ms = 1\nkey = \"{payload_key}\"\n"
        ))
        .expect("the vectors hold a valid keyring")
    }

    fn session(&self) -> Session {
        Session {
            producer: ProducerId(u128::from_be_bytes(array(&self.producer))),
            epoch: ProducerEpoch(u64::from_be_bytes(array(&self.epoch))),
            salt: Salt(array(&self.salt)),
            renewal: KeyRenewal(self.renewal),
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "odd number of hex digits");
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex digits")).collect()
}

fn array<const N: usize>(text: &str) -> [u8; N] {
    unhex(text).try_into().expect("the field has its width")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn vectors() -> Vectors {
    let read = |text| toml::from_str::<Vectors>(text).expect("the vectors parse");
    let mut vectors = read(include_str!("../testdata/envelope_v1.toml"));
    let renewed = read(include_str!("../testdata/envelope_v1_renewed.toml"));
    assert_eq!((vectors.case.len(), renewed.case.len()), (9, 3));
    assert_eq!(
        (&vectors.admission_key, &vectors.routing_key),
        (&renewed.admission_key, &renewed.routing_key)
    );
    vectors.case.extend(renewed.case);
    vectors
}

#[test]
fn every_step_gives_the_bytes_of_the_second_implementation() {
    let vectors = vectors();
    for case in &vectors.case {
        let name = &case.name;
        let keyring = case.keyring(&vectors);
        let session = case.session();
        let address = Address::parse(&case.address).unwrap();
        let (shard, sequence) = (ShardId(case.shard), Sequence(u64::from_be_bytes(array(&case.sequence))));

        let payload_key = Secret::filled(|out| *out = array(&case.payload_key));
        let address_key = address_key(&payload_key, &case.address);
        assert_eq!(hex(address_key.bytes()), case.address_key, "{name}: address key");
        let session_key = session_secret(&address_key, &case.address, &session);
        assert_eq!(hex(session_key.bytes()), case.session_key, "{name}: session key");
        assert_eq!(hex(&envelope::nonce(shard, sequence)), case.nonce, "{name}: nonce");

        let mut sealer = Sealer::new(&keyring, session.producer, session.epoch, session.salt);
        sealer.begin_at(session.renewal);
        let key = case.key.as_deref().map(unhex);
        let key_hash = key.as_deref().map(|key| sealer.key_hash(&address, key));
        assert_eq!(hex(&key_hash.map_or([0; 16], |KeyHash(bytes)| bytes)), case.key_hash, "{name}: key hash");
        for (i, count) in vectors.shard_counts.iter().enumerate() {
            assert_eq!(ring(&address, None, *count).0, case.ring_by_address[i], "{name}: ring of {count}");
            assert_eq!(
                ring(&address, key_hash.as_ref(), *count).0,
                case.ring_by_key[i],
                "{name}: ring of {count}"
            );
        }

        let headers: Vec<UserHeader> = case
            .headers
            .iter()
            .map(|(name, value)| UserHeader { name: name.clone(), value: unhex(value).into() })
            .collect();
        let body = unhex(&case.body);
        let trace = case.trace.as_deref().map(|trace| {
            let [trace @ .., last] = array::<26>(trace);
            assert_eq!(last, 0);
            trace
        });
        let sealed = sealer
            .seal(&Draft {
                address: &address,
                shard,
                sequence,
                key: key.as_deref(),
                headers: &headers,
                body: &body,
                published_at: WallTime(u64::from_be_bytes(array(&case.published_at_ms))),
                trace,
                compress: false,
            })
            .unwrap();
        let (message, rest) = envelope::split_sealed(&sealed).unwrap();
        assert!(rest.is_empty());
        assert_eq!(hex(message.header().bytes()), case.header, "{name}: header");
        assert_eq!(hex(message.ciphertext()), case.ciphertext, "{name}: ciphertext");
        assert_eq!(hex(&sealed[sealed.len() - 32..]), case.mac, "{name}: mac");
        assert_eq!(message.ciphertext().len(), case.plaintext.len() / 2 + 16, "{name}: plaintext length");
    }
}

#[test]
fn every_message_of_the_second_implementation_is_admitted_and_opens() {
    let vectors = vectors();
    for case in &vectors.case {
        let name = &case.name;
        let keyring = case.keyring(&vectors);
        let sealed = unhex(&format!("{}{}{}", case.header, case.ciphertext, case.mac));
        let (message, _) = envelope::split_sealed(&sealed).unwrap();
        assert!(message.verify(&keyring.admission_key()), "{name}");
        assert_eq!(message.header().key_id(), KeyId(case.key_id), "{name}");
        assert_eq!(message.header().address(), case.address, "{name}");
        assert_eq!(message.header().renewal(), KeyRenewal(case.renewal), "{name}");

        let opened = Opener::new(&keyring).open(&sealed).unwrap();
        assert_eq!(opened.key.as_deref(), case.key.as_deref().map(unhex).as_deref(), "{name}");
        assert_eq!(hex(&opened.body), case.body, "{name}");
        let headers: Vec<_> =
            opened.headers.iter().map(|header| (header.name.clone(), hex(&header.value))).collect();
        assert_eq!(headers, case.headers, "{name}");
    }
}
