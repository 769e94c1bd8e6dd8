//! Everything that people get wrong: one sentence, one exit code, and nothing changed.

mod common;

use std::{fs, path::Path, process::Stdio};

use serde_json::json;

use self::common::{Dev, exits, last, ok};

/// The value of a field in a keyring file.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split('"').nth(1).unwrap()
}

/// The client keyring with one field replaced by another value.
fn altered(dev: &Dev, name: &str) -> String {
    let text = fs::read_to_string(dev.directory().join("client.keyring")).unwrap();
    let path = dev.path(&format!("altered-{name}"));
    fs::write(&path, text.replace(field(&text, name), &"5a".repeat(32))).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_wrong_word_is_a_usage_error_in_both_forms() {
    let dev = Dev::up();
    for words in [
        &["send", "a", "b", "--colour", "red"][..],
        &["fly"],
        &["send", "a..b", "x"],
        &["send", "a.*", "x"],
        &["recv", "_system", "--timeout", "1"],
        &["recv", "a", "--from", "yesterday"],
        &["recv", "a", "--group", "a.b", "--timeout", "1"],
        &["send", "a"],
        &["send", "a", "x", "--header", "novalue"],
        &["send", "a", "x", "--servers", "nowhere"],
        &["address", "create", "a", "--order", "fifo"],
        &["address", "set", "a"],
        &["bench", "e2e", "--size", "3"],
        &["bench", "e2e", "--rate", "-1"],
        &["dev", "up", "--nodes", "5"],
        &["node", "--config", "missing.toml"],
        &["recv", "a", "--keyring", "missing.keyring"],
    ] {
        let plain = dev.run(words);
        exits(&plain, 2);
        let said = String::from_utf8(plain.stderr).unwrap();
        assert!(said.starts_with("error: "), "{words:?}: {said}");
        let mut words = words.to_vec();
        words.push("--json");
        let output = dev.run(&words);
        exits(&output, 2);
        let error = &last(&output)["error"];
        assert_eq!(error["outcome"], "failed", "{words:?}: {error}");
        assert!(error["message"].is_string() && error["hint"].is_string() && error["code"].is_string());
    }
}

#[test]
fn a_directory_without_a_cluster_is_missing_local_data() {
    let directory = tempfile::tempdir().unwrap();
    for words in
        [["dev", "status"].as_slice(), &["dev", "start", "1"], &["dev", "kill", "1"], &["dev", "down"]]
    {
        let output = std::process::Command::new(common::SWARMMQ)
            .args(words)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        exits(&output, 7);
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn keyrings_of_another_cluster_are_refused() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "secret"]));
    let token = altered(&dev, "access_token");
    for words in [&["send", "a", "x", "--keyring", &token][..], &["status", "--keyring", &token]] {
        exits(&dev.run(words), 4);
    }
    let forger = altered(&dev, "admission_key");
    let forged = dev.run(&["send", "a", "x", "--keyring", &forger, "--json"]);
    exits(&forged, 4);
    assert_eq!(last(&forged)["error"]["code"], "forged");
    let blind = altered(&dev, "key ");
    let unopened = dev.run(&["recv", "a", "-n", "1", "--timeout", "20s", "--keyring", &blind, "--json"]);
    exits(&unopened, 4);
    assert_eq!(last(&unopened)["error"]["code"], "cannot_open");
    let node = dev.directory().join("node.keyring");
    exits(&dev.run(&["recv", "a", "--keyring", node.to_str().unwrap()]), 7);

    let opened = dev.run(&["recv", "a", "-n", "1", "--timeout", "20s", "--json"]);
    ok(&opened);
    assert_eq!(last(&opened)["body"], json!("secret"), "whoever has the key still gets it");
}

#[test]
fn a_message_above_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let dev = Dev::up();
    let send = |bytes: usize| {
        let path = dev.path("body");
        fs::write(&path, "x".repeat(bytes)).unwrap();
        let input = fs::File::open(&path).unwrap();
        dev.command(&["send", "a", "-", "--json"]).stdin(input).output().unwrap()
    };
    let refused = send((1 << 20) + 1);
    exits(&refused, 6);
    assert_eq!(last(&refused)["error"]["code"], "too_large");
    ok(&send(1 << 20));
}

#[test]
fn a_data_directory_has_one_node() {
    let dev = Dev::up();
    let config = dev.directory().join("node-1/node.toml");
    let second = dev.run(&["node", "--config", config.to_str().unwrap(), "--json"]);
    exits(&second, 7);
    let message = last(&second)["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&dev.pid().to_string()), "it says who: {message}");
    let again = dev.run(&["init", "--config", config.to_str().unwrap()]);
    exits(&again, 7);
    ok(&dev.run(&["status"]));
}

/// A node of its own beside the cluster, on the ports that `listen` gives it.
fn node_file(dev: &Dev, name: &str, extra: &str) -> String {
    let path = dev.path(name);
    fs::create_dir_all(&path).unwrap();
    let keyring = dev.directory().join("node.keyring");
    let text = format!("[node]\nid = 1\ndata = \"data\"\nkeyring = {keyring:?}\n{extra}");
    fs::write(path.join("node.toml"), text).unwrap();
    path.join("node.toml").to_str().unwrap().to_owned()
}

#[test]
fn a_node_says_what_keeps_it_from_starting() {
    let dev = Dev::up();
    let fresh = node_file(&dev, "fresh", "");
    exits(&dev.run(&["node", "--config", &fresh]), 7);
    assert!(!Path::new(&fresh).with_file_name("data").join("log").exists());

    let (client, admin) =
        (dev.cluster()["nodes"][0]["client"].clone(), dev.cluster()["nodes"][0]["admin"].clone());
    let taken = node_file(&dev, "taken", &format!("[listen]\nclient = {client}\nadmin = {admin}\n"));
    ok(&dev.run(&["init", "--config", &taken]));
    let in_use = dev.run(&["node", "--config", &taken, "--json"]);
    exits(&in_use, 7);
    assert!(last(&in_use)["error"]["message"].as_str().unwrap().contains("in use"));

    let typo = node_file(&dev, "typo", "datta = \"x\"\n");
    let output = dev.run(&["node", "--config", &typo, "--json"]);
    exits(&output, 2);
    assert_eq!(last(&output)["error"]["hint"], "did you mean `data`?");

    let wrong = node_file(&dev, "wrong", "");
    let keyring = dev.directory().join("client.keyring");
    let text = fs::read_to_string(&wrong).unwrap().replace("node.keyring", "client.keyring");
    fs::write(&wrong, text).unwrap();
    ok(&dev.run(&["init", "--config", &wrong]));
    exits(&dev.run(&["node", "--config", &wrong]), 2);
    let fresh = node_file(&dev, "named", "");
    ok(&dev.run(&["init", "--config", &fresh]));
    exits(&dev.command(&["node", "--config", &fresh]).env("SWARMMQ_KEYRING", keyring).output().unwrap(), 2);
}

#[test]
fn keyrings_are_never_overwritten() {
    let dev = Dev::up();
    let out = dev.path("keys");
    let out = out.to_str().unwrap();
    ok(&dev.run(&["keys", "generate", "--out", out]));
    let before = fs::read(Path::new(out).join("client.keyring")).unwrap();
    exits(&dev.run(&["keys", "generate", "--out", out]), 7);
    assert_eq!(fs::read(Path::new(out).join("client.keyring")).unwrap(), before);
    let other = Path::new(out).join("client.keyring");
    exits(&dev.run(&["status", "--keyring", other.to_str().unwrap()]), 4);
}

#[test]
fn nobody_there_is_unreachable() {
    let dev = Dev::up();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let status = dev.run(&["status", "--servers", &nobody, "--json"]);
    exits(&status, 3);
    assert_eq!(last(&status)["healthy"], json!(false));
    exits(&dev.run(&["recv", "a", "--servers", &nobody, "--timeout", "500ms"]), 3);
}
