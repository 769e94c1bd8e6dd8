//! `recv --peek`: looks page by page, no further than it must, and past what it cannot open.

mod cluster;
#[path = "cluster/relay.rs"]
mod relay;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use serde_json::Value;

use self::{
    cluster::{Dev, Running, column, errors, exits, fails_as_json, lines, ok},
    relay::Relay,
};

fn passed(relay: &Relay) -> usize {
    let mut bytes = 0;
    relay.look(|stream| bytes += stream.len());
    bytes
}

#[test]
fn looking_at_a_few_of_many_does_not_fetch_them_all() {
    let dev = Dev::up();
    let body = "x".repeat(100_000);
    ok(&dev.run(&["send", "a", &body, "--count", "200"]));
    let relay = Relay::to(dev.node("client"));
    let keyring = dev.directory().join("client.keyring").to_str().unwrap().to_owned();
    let through = ["--servers", &relay.address, "--keyring", &keyring];

    let few = dev.run(&[&["recv", "a", "--peek", "-n", "2", "--json"][..], &through].concat());
    ok(&few);
    assert_eq!(column(&few, "body"), [body.as_str(); 2]);
    assert!(passed(&relay) < 300_000, "{} bytes for two messages", passed(&relay));

    // Without a number it prints while it looks: who reads no further stops it.
    let words = [&["recv", "a", "--peek"][..], &through].concat();
    let mut looking = dev.command(&words).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(looking.stdout.take().unwrap());
    let mut first = String::new();
    output.read_line(&mut first).unwrap();
    drop(output);
    assert_eq!((first.trim_end(), Running(looking).code()), (body.as_str(), Some(0)));
    assert!(passed(&relay) < 10_000_000, "{} bytes for one message", passed(&relay));
}

#[test]
fn a_look_goes_over_every_page_of_every_shard_and_ends_at_its_number() {
    let dev = Dev::up();
    let input: String = (0..700).map(|n| format!("m{n}\n")).collect();
    ok(&dev.pipe(&["send", "a", "-"], input.as_bytes()));
    for (number, expected) in [("699", 699), ("256", 256), ("257", 257), ("0", 0), ("1000", 700)] {
        let seen = dev.run(&["recv", "a", "--peek", "-n", number, "--json"]);
        ok(&seen);
        assert_eq!(column(&seen, "body"), (0..expected).map(|n| format!("m{n}")).collect::<Vec<_>>());
    }
    for n in 0..40 {
        ok(&dev.run(&["send", "b", "x", "--key", &n.to_string(), "--order", "key"]));
    }
    for (words, expected) in [(&["-n", "15"][..], 15), (&[], 40)] {
        let seen = dev.run(&[&["recv", "b", "--peek", "--json"], words].concat());
        ok(&seen);
        let mut keys: Vec<Value> = column(&seen, "key");
        keys.sort_by_key(|key| key.as_str().unwrap().parse::<u32>().unwrap());
        keys.dedup();
        assert_eq!(keys.len(), expected);
    }
}

#[test]
fn a_message_that_cannot_be_opened_is_told_of_and_does_not_hide_the_others() {
    let dev = Dev::up();
    let keyring = fs::read_to_string(dev.directory().join("client.keyring")).unwrap();
    let key = keyring.lines().find(|line| line.starts_with("key = ")).unwrap();
    let other = dev.path("other.keyring");
    fs::write(&other, keyring.replace(key, &format!("key = \"{}\"", "5a".repeat(32)))).unwrap();
    let other = other.to_str().unwrap();
    for n in 0..24 {
        let body = format!("m{n}");
        match n {
            // More than are told of one by one.
            5..=16 => ok(&dev.run(&["send", "a", &body, "--keyring", other])),
            _ => ok(&dev.run(&["send", "a", &body])),
        }
    }
    let seen = dev.run(&["recv", "a", "--peek", "--json"]);
    fails_as_json(&seen, 4, "cannot_open", &["12 of 24 messages", "cannot be opened", "keyring"]);
    let opened: Vec<Value> = lines(&seen).into_iter().filter(|line| line["error"].is_null()).collect();
    let bodies: Vec<&str> = opened.iter().map(|line| line["body"].as_str().unwrap()).collect();
    assert_eq!(bodies, [0..5, 17..24].into_iter().flatten().map(|n| format!("m{n}")).collect::<Vec<_>>());
    assert_eq!(errors(&seen).matches("passed over: message ").count(), 10, "{}", errors(&seen));

    // The number is that of messages looked at: a look with the wrong keyring ends too.
    let seen = dev.run(&["recv", "a", "--peek", "-n", "7"]);
    exits(&seen, 4);
    assert_eq!(String::from_utf8_lossy(&seen.stdout), "m0\nm1\nm2\nm3\nm4\n");
    assert!(errors(&seen).contains("2 of 7 messages cannot be opened"), "{}", errors(&seen));
    let seen = dev.run(&["recv", "a", "--peek", "-n", "5"]);
    ok(&seen);
    assert_eq!(errors(&seen), "");
}
