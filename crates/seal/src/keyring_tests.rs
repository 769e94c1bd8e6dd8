//! Keyring files: what they say, what they must not, and what errors give away.

use super::*;

fn example() -> ClientKeyring {
    let mut next = 0xa0;
    ClientKeyring::generate(WallTime(1_763_964_000_000), &mut |out| {
        out.fill(next);
        next += 1;
    })
    .expect("the four secrets differ")
}

fn parse_with(from: &str, to: &str) -> KeyringError {
    let text = example().to_text();
    assert!(text.contains(from), "{from}");
    ClientKeyring::parse(&text.replace(from, to)).expect_err("must be refused")
}

#[test]
fn a_keyring_survives_writing_and_reading() {
    let keyring = example();
    let again = ClientKeyring::parse(&keyring.to_text()).unwrap();
    assert_eq!(again.to_text(), keyring.to_text());
    assert_eq!(again.current_key(), KeyId(1));
    let keys: Vec<_> = again.payload_keys().map(|key| (key.id, key.created_at, key.activates_at)).collect();
    assert_eq!(keys, [(KeyId(1), WallTime(1_763_964_000_000), None)]);
    assert_eq!(again.payload_key(KeyId(1)).unwrap().bytes(), &[0xa3; 32]);
}

#[test]
fn a_principal_has_a_token_of_its_own_beside_the_same_keys() {
    let (root, name) = (example(), PrincipalName::parse("till-7").unwrap());
    let till = root.for_principal(ClusterId(5), &name, 1).unwrap();
    let again = ClientKeyring::parse(&till.to_text()).unwrap();
    assert_eq!((root.principal(), till.principal(), again.principal()), ("root", "till-7", "till-7"));
    assert_eq!(again.to_text(), till.to_text());
    let token = principal_token(&root.access_token(), ClusterId(5), "till-7", 1);
    assert_eq!(again.access_token().sign(&[b"x"]), MacKey::new(*token).sign(&[b"x"]));
    assert_eq!(again.admission_key().sign(&[b"x"]), root.admission_key().sign(&[b"x"]));
    assert_eq!(again.payload_key(KeyId(1)).unwrap().bytes(), &[0xa3; 32]);
    // The cluster's secret is not in it, and nothing can be derived from it.
    let secret = "a0".repeat(32);
    assert!(root.to_text().contains(&secret) && !till.to_text().contains(&secret));
    assert_eq!(till.for_principal(ClusterId(5), &name, 2).unwrap_err(), KeyringError::NotRoot);
    assert_eq!(till.to_node_text(&mut |out| out.fill(7)).unwrap_err(), KeyringError::NotRoot);
    let text = till.to_text().replace("till-7", "till.7");
    assert_eq!(ClientKeyring::parse(&text).unwrap_err(), KeyringError::Principal);
}

#[test]
fn a_principal_with_a_certificate_has_no_token_and_makes_none() {
    let (root, name) = (example(), PrincipalName::parse("till-7").unwrap());
    let paths =
        |certificate: &str, key: &str| ClientCertificate { certificate: certificate.into(), key: key.into() };
    let till = root.for_certificate(&name, paths("till.pem", "/keys/till.key")).unwrap();
    let again = ClientKeyring::parse(&till.to_text()).unwrap();
    assert_eq!((again.principal(), again.to_text()), ("till-7", till.to_text()));
    assert_eq!(
        again.certificate(),
        Some(paths("till.pem", "/keys/till.key")),
        "of a text: as it stands there"
    );
    let beside = paths("till.pem", "/keys/till.key").beside(Path::new("/etc/mq/till.keyring"));
    assert_eq!(beside, paths("/etc/mq/till.pem", "/keys/till.key"));
    assert!(!till.to_text().contains(&"a0".repeat(32)) && root.certificate().is_none());
    // What stands for the token is no secret, and not root's.
    assert_eq!(again.access_token().sign(&[b"x"]), certified_key("till-7").sign(&[b"x"]));
    assert_eq!(till.for_principal(ClusterId(5), &name, 2).unwrap_err(), KeyringError::NotRoot);
    assert_eq!(till.for_certificate(&name, paths("a", "b")).unwrap_err(), KeyringError::NotRoot);
    let without = |line: &str| ClientKeyring::parse(&till.to_text().replace(line, "")).unwrap_err();
    assert_eq!(without("principal = \"till-7\"\n"), KeyringError::Certificate, "root has none");
    assert_eq!(without("certificate_key = \"/keys/till.key\"\n"), KeyringError::Certificate);
    let both =
        till.to_text().replace("principal", &format!("access_token = \"{}\"\nprincipal", "b1".repeat(32)));
    assert_eq!(ClientKeyring::parse(&both).unwrap_err(), KeyringError::Certificate);
    for bad in ["", "a\"b", "a\nb", "\u{e4}", &"x".repeat(PATH_BYTES_MAX + 1)] {
        assert_eq!(root.for_certificate(&name, paths(bad, "b")).unwrap_err(), KeyringError::Path, "{bad:?}");
    }
}

#[test]
fn the_largest_keyring_fits_its_file() {
    let mut text = example().to_text().to_string();
    for id in 2..=PAYLOAD_KEYS_MAX {
        write!(
            text,
            "\n[[payload_keys]]\nid = {}\ncreated_at_ms = {max}\nactivates_at_ms = {max}\nkey = \"{id:064x}\"\n",
            u32::MAX - id as u32,
            max = i64::MAX
        )
        .unwrap();
    }
    let retired: Vec<u32> = (0..RETIRED_KEYS_MAX as u32).map(|n| u32::MAX / 2 - n).collect();
    text = text.replace("current_key", &format!("retired_keys = {retired:?}\ncurrent_key"));
    assert!(ClientKeyring::parse(&text).unwrap().to_text().len() <= FILE_BYTES_MAX);
    text.push_str(&format!("\n[[payload_keys]]\nid = 9\ncreated_at_ms = 1\nkey = \"{:064x}\"\n", 9_999));
    assert_eq!(ClientKeyring::parse(&text).unwrap_err(), KeyringError::TooManyKeys(PAYLOAD_KEYS_MAX + 1));
}

#[test]
fn the_node_text_opens_no_message() {
    let text = example().to_node_text(&mut |out| out.fill(0xb0)).unwrap();
    for key in ["a0", "a1", "b0"] {
        assert!(text.contains(&key.repeat(32)), "{key}");
    }
    assert!(!text.contains(&"a2".repeat(32)) && !text.contains(&"a3".repeat(32)));
    assert!(!text.contains("payload"));
    assert_eq!(ClientKeyring::parse(&text).unwrap_err(), KeyringError::NodeKeyring);
}

#[test]
fn the_secret_between_nodes_is_no_other_key_and_never_a_client_s() {
    let node_text = |byte: u8| example().to_node_text(&mut |out| out.fill(byte)).unwrap_err();
    let peer = |why| KeyringError::Field { field: PEER_SECRET, why };
    assert_eq!(node_text(0xa3), peer(FieldError::Repeated));
    assert_eq!(node_text(0), peer(FieldError::Zero));
    let line = format!("peer_secret = \"{}\"\nversion = 1", "b0".repeat(32));
    assert_eq!(parse_with("version = 1", &line), KeyringError::PeerSecret);
}

#[test]
fn every_fault_of_a_keyring_has_a_name() {
    let field = |field, why| KeyringError::Field { field, why };
    let payload = |why| KeyringError::PayloadKey { id: KeyId(1), why };
    let (token, admission, key) = ("a0".repeat(32), "a1".repeat(32), "a3".repeat(32));
    for (from, to, expected) in [
        ("version = 1", "version = 2\ncurve = \"x\"", KeyringError::Version(2)),
        ("version = 1", "", field("version", FieldError::Missing)),
        (&*token, &"0".repeat(64), field("access_token", FieldError::Zero)),
        (&token, &"g".repeat(64), field("access_token", FieldError::NotHex)),
        (&token, "", field("access_token", FieldError::NotHex)),
        (&admission, &token, field("admission_key", FieldError::Repeated)),
        ("routing_key", "# routing_key", field("routing_key", FieldError::Missing)),
        ("current_key = 1", "current_key = 7", KeyringError::NoCurrentKey(KeyId(7))),
        ("current_key = 1", "", field("current_key", FieldError::Missing)),
        (&key, &"0".repeat(64), payload(FieldError::Zero)),
        (&key, &admission, payload(FieldError::Repeated)),
        (&key, "a3", payload(FieldError::NotHex)),
        ("routing_key", "rooting_key", KeyringError::Malformed { line: 5 }),
        ("current_key = 1", "current_key = -1", KeyringError::Malformed { line: 6 }),
        ("version = 1", "version 1", KeyringError::Malformed { line: 2 }),
    ] {
        assert_eq!(parse_with(from, to), expected, "{from} -> {to}");
    }
    let twice = format!(
        "{}\n[[payload_keys]]\nid = 1\ncreated_at_ms = 1\nkey = \"{}\"\n",
        *example().to_text(),
        "ee".repeat(32)
    );
    assert_eq!(ClientKeyring::parse(&twice).unwrap_err(), KeyringError::DuplicateId(KeyId(1)));
}

#[test]
fn how_nodes_are_known_is_said_once() {
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(example().trust(), &Trust::Unsaid);
    for trust in [Trust::Authorities(pem.repeat(2)), Trust::InsecurePlaintext, Trust::Unsaid] {
        let keyring = example().with_trust(trust.clone()).unwrap();
        let again = ClientKeyring::parse(&keyring.to_text()).unwrap();
        assert_eq!((again.trust(), again.to_text()), (&trust, keyring.to_text()));
        assert!(!example().to_node_text(&mut |out| out.fill(0xb0)).unwrap().contains("CERTIFICATE"));
    }
    let large = pem.repeat(CA_BYTES_MAX / pem.len() + 1);
    for wrong in ["", "PEM", &large, &pem.replace("AAAA", "\"\"\""), &pem.replace("AAAA", "\\u0041")] {
        let error = example().with_trust(Trust::Authorities(wrong.to_owned())).unwrap_err();
        assert_eq!(error, KeyringError::Authorities, "{wrong}");
    }
    let both = format!("current_key = 1\nca = \"\"\"\n{pem}\"\"\"\ninsecure_plaintext = true");
    assert_eq!(parse_with("current_key = 1", &both), KeyringError::Contradiction);
}

#[test]
fn no_error_quotes_a_key() {
    let key = "a3".repeat(32);
    for (from, to) in [
        ("current_key = 1", &*format!("current_key = \"{key}\"")),
        ("current_key = 1", &format!("current_key = {key}")),
        ("created_at_ms = ", &format!("created_at_ms = \"{key}\" # ")),
        ("version = 1", &format!("version = \"{key}\"")),
        ("version = 1", &format!("version = 1\n{key} = 5")),
        ("version = 1", &format!("version = 1\n\"{key}")),
    ] {
        let error = parse_with(from, to);
        assert!(!format!("{error} {error:?}").contains("a3a3"), "{error}");
    }
}

#[test]
fn a_keyring_does_not_print_its_secrets() {
    assert_eq!(
        format!("{:?}", example()),
        "ClientKeyring { principal: \"root\", current_key: 1, payload_keys: [1], .. }"
    );
}

#[test]
fn a_broken_source_of_randomness_makes_no_keyring() {
    let of = |byte: u8| ClientKeyring::generate(WallTime(0), &mut |out| out.fill(byte)).unwrap_err();
    assert_eq!(of(0), KeyringError::Field { field: "access_token", why: FieldError::Zero });
    assert_eq!(of(5), KeyringError::Field { field: "admission_key", why: FieldError::Repeated });
}

#[test]
fn loading_says_what_is_wrong_with_the_file() {
    let dir = std::env::temp_dir().join(format!("swarmmq-keyring-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("client.keyring");
    let missing = ClientKeyring::load(&path).unwrap_err();
    assert!(missing.to_string().contains("swarmmq keys generate"), "{missing}");

    std::fs::write(&path, &*example().to_text()).unwrap();
    assert_eq!(ClientKeyring::load(&path).unwrap().to_text(), example().to_text());
    assert_eq!(ClientKeyring::load(&path).unwrap().source(), Some(&*path));

    std::fs::write(&path, b"version = 1\n\xff").unwrap();
    let error = KeyringError::Malformed { line: 2 };
    assert_eq!(ClientKeyring::load(&path).unwrap_err(), LoadError::Keyring { path: path.clone(), error });

    std::fs::write(&path, vec![b'#'; FILE_BYTES_MAX + 1]).unwrap();
    assert_eq!(ClientKeyring::parse(&example().to_text()).unwrap().source(), None);

    let error = KeyringError::TooLarge;
    assert_eq!(ClientKeyring::load(&path).unwrap_err(), LoadError::Keyring { path: path.clone(), error });

    let denied = LoadError::File { path: path.clone(), kind: io::ErrorKind::PermissionDenied };
    assert!(denied.to_string().starts_with("this user may not read"), "{denied}");
    std::fs::remove_dir_all(&dir).unwrap();
}
