//! Everything that people get wrong: one message that says what to do, the documented exit code, and nothing lost.
//!
//! One test mounts a small file system, which needs root; where that is impossible it says so on standard error.

mod cluster;

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::json;

use self::cluster::{Dev, column, errors, exits, fails, fails_as_json, last, ok, until};

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

/// Files of a node of its own, with ports that nobody uses unless `extra` says others.
fn node_file(dev: &Dev, name: &str, extra: &str) -> String {
    let folder = dev.path(name);
    if !dev.path("keys").exists() {
        ok(&dev.run(&["keys", "generate", "--out", "keys", "--insecure-plaintext"]));
    }
    fs::create_dir_all(&folder).unwrap();
    let listen = if extra.contains("[listen]") {
        String::new()
    } else {
        let free: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let port = |at: usize| free[at].local_addr().unwrap();
        let (client, admin, peer) = (port(0), port(1), port(2));
        format!(
            "[listen]\ninsecure_plaintext = true\nclient = \"{client}\"\nadmin = \"{admin}\"\npeer = \"{peer}\"\ngossip = \"{peer}\"\n"
        )
    };
    let text = format!(
        "[node]\nid = 1\ndata = \"data\"\nkeyring = \"../keys/node.keyring\"\n{extra}\n{listen}[cluster]\nseeds = []\n"
    );
    let path = folder.join("node.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Every file below a directory, with its bytes.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            files.push((path, bytes));
        }
    }
    files.sort();
    files
}

#[test]
fn a_wrong_word_is_a_usage_error_in_both_forms() {
    let dev = Dev::nothing();
    for words in [
        &["send", "a", "b", "--colour", "red"][..],
        &["fly"],
        &["send", "a..b", "x"],
        &["send", "a.*", "x"],
        &["send", "a.>", "x"],
        &["send", "a b", "x"],
        &["send", "übung", "x"],
        &["send", "", "x"],
        &["send", "_system", "x"],
        &["send", "a.dlq", "x"],
        &["recv", "_system", "--timeout", "1"],
        &["recv", "a", "--from", "yesterday"],
        &["recv", "a", "--group", "a.b", "--timeout", "1"],
        &["recv", "a", "--timeout", "soon"],
        &["send", "a"],
        &["send", "a", "-", "--count", "2"],
        &["send", "a", "x", "--header", "novalue"],
        &["send", "a", "x", "--servers", "nowhere"],
        &["send", "a", "x"],
        &["address", "create", "a", "--order", "fifo"],
        &["address", "create", "a.dlq"],
        &["address", "set", "a"],
        &["address", "set", "a", "--lease", "11m"],
        &["address", "set", "a", "--attempts", "0"],
        &["bench", "e2e", "--size", "3"],
        &["bench", "e2e", "--size", "2MiB"],
        &["bench", "e2e", "--rate", "-1"],
        &["bench", "e2e", "--address", "a.dlq"],
        &["dev", "up", "--nodes", "65"],
        &["dev", "up", "--roles", "1=ingres"],
        &["node", "drain", "0"],
        &["node"],
        &["dev", "up", "--nodes", "0"],
        &["dev", "up", "--base-port", "65530"],
        &["keys", "generate"],
        &["init", "--config", "missing.toml"],
        &["node", "--config", "missing.toml"],
        &["recv", "a", "--keyring", "missing.keyring"],
        &["status"],
    ] {
        let plain = dev.run(words);
        exits(&plain, 2);
        let said = errors(&plain);
        assert!(said.starts_with("error: ") && plain.stdout.is_empty(), "{words:?}: {said}");
        let mut words = words.to_vec();
        words.push("--json");
        let output = dev.run(&words);
        exits(&output, 2);
        let error = &last(&output)["error"];
        assert_eq!(error["outcome"], "failed", "{words:?}: {error}");
        for part in ["code", "message", "hint"] {
            assert!(
                error[part].as_str().is_some_and(|text| !text.is_empty()),
                "{part} of {words:?}: {error}"
            );
        }
    }
    assert_eq!(fs::read_dir(dev.path("")).unwrap().count(), 0, "nothing was made");
}

#[test]
fn an_unknown_option_is_answered_with_what_may_have_been_meant() {
    let dev = Dev::nothing();
    let output = dev.run(&["send", "a", "x", "--cuont", "3", "--json"]);
    fails_as_json(&output, 2, "usage", &["--cuont", "--count"]);
    assert!(last(&output)["error"]["hint"].as_str().unwrap().contains("--count"));
}

#[test]
fn a_directory_without_a_cluster_is_missing_local_data() {
    let dev = Dev::nothing();
    for words in [
        &["dev", "status"][..],
        &["dev", "start", "1"],
        &["dev", "kill", "1"],
        &["dev", "down"],
        &["dev", "env"],
    ] {
        fails(&dev.run(words), 7, &["no local cluster in .swarmmq", "swarmmq dev up"]);
    }
    assert_eq!(fs::read_dir(dev.path("")).unwrap().count(), 0, "nothing was made");
}

#[test]
fn a_local_cluster_that_lost_its_description_is_not_made_anew_over_its_data() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "kept"]));
    ok(&dev.run(&["dev", "down"]));
    let description = dev.directory().join("cluster.json");
    let text = fs::read(&description).unwrap();
    fs::write(&description, "{").unwrap();
    for words in [&["dev", "up"][..], &["dev", "status"], &["send", "a", "x"], &["status"]] {
        fails(&dev.run(words), 7, &["cluster.json is damaged"]);
    }
    fs::remove_file(&description).unwrap();
    fails(&dev.run(&["dev", "up"]), 7, &["no cluster.json", "restore cluster.json"]);
    fs::write(&description, text).unwrap();
    ok(&dev.run(&["dev", "up"]));
    assert_eq!(last(&dev.run(&["recv", "a", "-n", "1", "--timeout", "20s", "--json"]))["body"], "kept");
}

#[test]
fn a_keyring_that_cannot_be_read_is_told_from_one_that_is_damaged() {
    let dev = Dev::nothing();
    ok(&dev.run(&["keys", "generate", "--out", "keys", "--insecure-plaintext"]));
    let good = fs::read(dev.path("keys/client.keyring")).unwrap();
    fs::write(dev.path("cut.keyring"), &good[..good.len() / 2]).unwrap();
    fs::write(dev.path("noise.keyring"), [0xff; 100]).unwrap();
    let with = |path: &str| dev.run(&["send", "a", "x", "--keyring", path]);
    fails(&with("missing.keyring"), 2, &["missing.keyring", "--keyring"]);
    // A directory cannot be read, not even by root, for whom permissions do not count.
    fails(&with("keys"), 2, &["cannot read the keyring keys", "--keyring"]);
    for damaged in ["cut.keyring", "noise.keyring"] {
        let output = with(damaged);
        fails(&output, 7, &[damaged, "client.keyring"]);
        let secret = field(std::str::from_utf8(&good).unwrap(), "access_token").to_owned();
        assert!(!errors(&output).contains(&secret[..16]), "no key bytes in messages");
    }
    fails(&with("keys/node.keyring"), 7, &["this is a node's keyring", "client.keyring"]);
}

#[test]
fn a_wrong_token_is_refused_by_every_command() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "kept"]));
    let keyring = altered(&dev, "access_token");
    for words in [
        &["send", "a", "x"][..],
        &["recv", "a"],
        &["recv", "a", "--peek"],
        &["status"],
        &["address", "ls"],
        &["group", "ls", "a"],
        &["bench", "e2e", "--duration", "1"],
    ] {
        let with: Vec<&str> = words.iter().copied().chain(["--keyring", &keyring]).collect();
        fails(&dev.run(&with), 4, &["no enabled principal", "client.keyring"]);
        let with: Vec<&str> = with.into_iter().chain(["--json"]).collect();
        fails_as_json(&dev.run(&with), 4, "unauthenticated", &["client.keyring"]);
        // Who fails five times within a second is not listened to; one success makes it good.
        ok(&dev.run(&["address", "ls"]));
    }
    assert_eq!(last(&dev.run(&["recv", "a", "-n", "1", "--timeout", "20s", "--json"]))["body"], "kept");
}

#[test]
fn a_wrong_admission_key_is_a_forger_s() {
    let dev = Dev::up();
    let keyring = altered(&dev, "admission_key");
    fails(&dev.run(&["send", "a", "x", "--keyring", &keyring]), 4, &["forge", "client.keyring"]);
    fails_as_json(&dev.run(&["send", "a", "x", "--keyring", &keyring, "--json"]), 4, "forged", &[]);
    ok(&dev.run(&["send", "a", "genuine"]));
    let peeked = dev.run(&["recv", "a", "--peek", "--json"]);
    assert_eq!(column(&peeked, "body"), ["genuine"], "nothing forged was stored");
}

#[test]
fn a_wrong_payload_key_ends_recv_at_the_first_message_which_stays_for_whoever_can_open_it() {
    let dev = Dev::up();
    for body in ["first", "second", "third"] {
        ok(&dev.run(&["send", "a", body]));
    }
    let keyring = altered(&dev, "key ");
    // Without -n and --timeout it would wait for ever, if it did not notice.
    let with = ["recv", "a", "--keyring", &keyring];
    fails(&dev.run(&with), 4, &["cannot be opened", "the keyring that it was sealed with"]);
    let unopened = dev.run(&["recv", "a", "-n", "1", "--timeout", "20s", "--keyring", &keyring, "--json"]);
    fails_as_json(&unopened, 4, "cannot_open", &[]);
    assert_eq!(cluster::lines(&unopened).len(), 1, "nothing was printed as a message");
    fails(&dev.run(&["recv", "a", "--peek", "--keyring", &keyring]), 4, &["cannot be opened"]);

    let opened = dev.run(&["recv", "a", "-n", "1", "--timeout", "20s", "--json"]);
    ok(&opened);
    assert_eq!(last(&opened)["body"], json!("third"), "each run gave up one message, and no more");
    let dead = dev.run(&["recv", "a.dlq", "-n", "2", "--timeout", "20s", "--json"]);
    ok(&dead);
    assert_eq!(column(&dead, "body"), ["first", "second"], "whoever has the key still gets them");
    let reason = last(&dead)["dead_reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("undecryptable: the seal does not match"), "{reason}");
}

#[test]
fn a_message_key_or_header_above_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let dev = Dev::up();
    let send = |bytes: usize| dev.pipe(&["send", "a", "-", "--json"], "x".repeat(bytes).as_bytes());
    fails_as_json(&send((1 << 20) + 1), 6, "too_large", &["1048576"]);
    ok(&send(1 << 20));
    let together = dev.pipe(&["send", "a", "-", "--header", "a=b"], "x".repeat(1 << 20).as_bytes());
    fails(&together, 6, &["1048576"]);
    // What came before a line that is too long was sent, and what comes after it was not.
    let mut input = b"before\n".to_vec();
    input.resize(input.len() + (1 << 20) + 1, b'x');
    input.extend_from_slice(b"\nafter\n");
    let mixed = dev.pipe(&["send", "b", "-"], &input);
    exits(&mixed, 6);
    assert!(String::from_utf8_lossy(&mixed.stdout).contains("sent 1 message"), "{mixed:?}");
    assert!(errors(&mixed).contains("nor was what follows"), "{mixed:?}");
    assert_eq!(column(&dev.run(&["recv", "b", "--peek", "--json"]), "body"), ["before"]);

    let keyed = |bytes: usize| dev.run(&["send", "c", "x", "--key", &"k".repeat(bytes)]);
    fails(&keyed(257), 6, &["257", "256"]);
    ok(&keyed(256));
    let headers = |count: usize, bytes: usize| {
        let headers: Vec<String> = (0..count).map(|n| format!("h{n}={}", "v".repeat(bytes))).collect();
        let words: Vec<&str> = ["send", "c", "x"]
            .into_iter()
            .chain(headers.iter().flat_map(|header| ["--header", header.as_str()]))
            .collect();
        dev.run(&words)
    };
    fails(&headers(33, 1), 6, &["33", "32"]);
    fails(&headers(1, 9000), 6, &["8192"]);
    ok(&headers(32, 1));
    let address = format!("{}.{0}.{0}.{0}", "a".repeat(64));
    fails(&dev.run(&["send", &address, "x"]), 2, &["255"]);
}

#[test]
fn a_data_directory_has_one_node() {
    let dev = Dev::up();
    let config = dev.node("config");
    let second = dev.run(&["node", "--config", &config, "--json"]);
    fails_as_json(&second, 7, "local_data", &["is locked by", &dev.pid().to_string(), "stop the other"]);
    fails(&dev.run(&["init", "--config", &config]), 7, &["is locked by"]);
    ok(&dev.run(&["status"]));
    ok(&dev.run(&["dev", "down"]));
    fails(&dev.run(&["init", "--config", &config]), 7, &["already part of a cluster", "swarmmq node"]);
}

#[test]
fn a_node_without_data_or_with_lost_data_does_not_begin_anew() {
    let dev = Dev::nothing();
    let config = node_file(&dev, "n", "");
    fails(&dev.run(&["node", "--config", &config]), 7, &["not part of a cluster", "swarmmq init"]);
    assert!(!dev.path("n/data").exists(), "it left nothing behind");
    ok(&dev.run(&["init", "--config", &config]));
    fs::rename(dev.path("n/data/log"), dev.path("away")).unwrap();
    let lost = dev.run(&["node", "--config", &config]);
    fails(&lost, 7, &["the disk was lost or emptied", "restore the directory"]);
    fs::remove_dir_all(dev.path("n/data")).unwrap();
    let gone = dev.run(&["node", "--config", &config, "--json"]);
    fails_as_json(&gone, 7, "local_data", &["mount or restore its disk first"]);
}

#[test]
fn a_corrupt_log_stops_the_start_and_changes_nothing() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "kept", "--count", "50"]));
    ok(&dev.run(&["dev", "down"]));
    let data = PathBuf::from(dev.node("data"));
    let segment = data.join("log/00000001.seg");
    let good = fs::read(&segment).unwrap();
    let mut bad = good.clone();
    bad[9000] ^= 1;
    fs::write(&segment, &bad).unwrap();
    let before = contents(&data);
    fails(
        &dev.run(&["dev", "up"]),
        7,
        &["the log is corrupt", "nothing was changed", "restore it from a backup"],
    );
    let config = dev.node("config");
    let output = dev.run(&["node", "--config", &config, "--json"]);
    fails_as_json(&output, 7, "local_data", &["the log is corrupt"]);
    assert!(contents(&data.join("log")) == contents_of(&before, &data.join("log")), "the log was changed");
    assert_eq!(dev.cluster()["nodes"][0]["pid"], json!(null));
    fs::write(&segment, &good).unwrap();
    ok(&dev.run(&["dev", "up"]));
    let received = dev.run(&["recv", "a", "-n", "50", "--timeout", "20s", "--json"]);
    ok(&received);
    assert_eq!(column(&received, "body"), vec![json!("kept"); 50]);
}

fn contents_of(files: &[(PathBuf, Vec<u8>)], below: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files.iter().filter(|(path, _)| path.starts_with(below)).cloned().collect()
}

#[test]
fn a_port_in_use_is_named_together_with_its_setting() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "kept"]));
    ok(&dev.run(&["dev", "down"]));
    for what in ["client", "peer", "admin"] {
        let address = dev.node(what);
        let stranger = TcpListener::bind(&address).unwrap();
        let words = [&format!("the {what} port {address} is in use"), &format!("listen.{what}")];
        let words = words.map(String::as_str);
        fails(&dev.run(&["dev", "up"]), 7, &words);
        fails_as_json(
            &dev.run(&["node", "--config", &dev.node("config"), "--json"]),
            7,
            "local_data",
            &words,
        );
        assert_eq!(dev.cluster()["nodes"][0]["pid"], json!(null));
        drop(stranger);
    }
    ok(&dev.run(&["dev", "up"]));
    assert_eq!(last(&dev.run(&["recv", "a", "-n", "1", "--timeout", "20s", "--json"]))["body"], "kept");
}

#[test]
fn a_mistake_in_node_toml_is_named_with_its_line_and_what_was_meant() {
    let dev = Dev::nothing();
    for (name, extra, message, hint) in [
        ("key", "datta = \"x\"\n", "line 5: unknown field `datta`", "did you mean `data`?"),
        ("place", "client = \"127.0.0.1:1\"\n", "unknown field `client`", "`client` belongs into [listen]"),
        ("section", "[listn]\n", "unknown field `listn`", "did you mean `listen`?"),
        ("nothing", "[metrics]\nport = 1\n", "unknown field `metrics`", "docs/operating/README.md"),
        (
            "host",
            "[listen]\ninsecure_plaintext = true\nclient = \"0.0.0.0:1\"\n",
            "is not on loopback",
            "plain text works on loopback only",
        ),
        ("role", "roles = [\"boss\"]\n", "node.roles names \"boss\"", "roles are ingress, router, store"),
    ] {
        let config = node_file(&dev, name, extra);
        for command in ["init", "node"] {
            fails(&dev.run(&[command, "--config", &config]), 2, &[message, hint]);
        }
        assert!(!dev.path(name).join("data").exists(), "nothing was made");
    }
}

#[test]
fn a_node_refuses_a_keyring_that_opens_messages_wherever_it_comes_from() {
    let dev = Dev::nothing();
    let config = node_file(&dev, "n", "");
    ok(&dev.run(&["init", "--config", &config]));
    let words = ["a node must not be able to open messages"];
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("node.keyring", "client.keyring")).unwrap();
    fails(&dev.run(&["node", "--config", &config]), 2, &[words[0], "client.keyring carries"]);
    fs::write(&config, &text).unwrap();
    let named =
        dev.command(&["node", "--config", &config]).env("SWARMMQ_KEYRING", "keys/client.keyring").output();
    fails(&named.unwrap(), 2, &[words[0], "SWARMMQ_KEYRING"]);
    for command in ["node", "init"] {
        let given = dev.run(&[command, "--config", &config, "--keyring", "keys/client.keyring"]);
        fails(&given, 2, &[words[0], "--keyring"]);
    }
    fs::write(&config, text.replace("node.keyring", "missing.keyring")).unwrap();
    fails(&dev.run(&["node", "--config", &config]), 2, &["missing.keyring", "swarmmq keys generate"]);
}

#[test]
fn keyrings_are_never_overwritten() {
    let dev = Dev::nothing();
    let generate = ["keys", "generate", "--out", "keys"];
    ok(&dev.run(&generate));
    let before = contents(&dev.path("keys"));
    fails(&dev.run(&generate), 7, &["client.keyring exists", "choose another --out"]);
    fs::remove_file(dev.path("keys/client.keyring")).unwrap();
    fails(&dev.run(&generate), 7, &["node.keyring exists"]);
    assert_eq!(contents(&dev.path("keys")), before[1..], "neither written nor completed");
}

#[test]
fn nobody_there_is_unreachable() {
    let dev = Dev::up();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let status = dev.run(&["status", "--servers", &nobody, "--json"]);
    exits(&status, 3);
    assert_eq!(
        (
            &last(&status)["healthy"],
            &last(&status)["state"],
            &last(&status)["problems"][0]["what"].is_string()
        ),
        (&json!(false), &json!("unreachable"), &true)
    );
    let output = dev.run(&["recv", "a", "--servers", &nobody, "--timeout", "500ms"]);
    fails(&output, 3, &[&nobody, "--servers"]);
    ok(&dev.run(&["dev", "down"]));
    // Who means the local cluster is told how to start it.
    fails(&dev.run(&["recv", "a", "--timeout", "500ms"]), 3, &["swarmmq dev up"]);
    let status = dev.run(&["status"]);
    exits(&status, 3);
    assert!(String::from_utf8_lossy(&status.stdout).contains("swarmmq dev up"), "{status:?}");
}

/// A file system of so many megabytes; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `Err`: this machine does not let us, and why.
    fn mount(megabytes: u32) -> Result<Self, String> {
        let disk = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(disk.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Self(disk)),
            Ok(output) => Err(errors(&output).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node that lies on it may be ending.
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        let unmounted = unmounted.is_ok_and(|status| status.success());
        assert!(unmounted || std::thread::panicking(), "{} stays mounted", self.0.path().display());
    }
}

/// Needs root, for a file system that is small enough to be filled.
#[test]
fn a_full_disk_refuses_messages_keeps_what_it_has_and_recovers_without_a_restart() {
    // Before the cluster that lies on it, so that it is dropped after it.
    let disk = match SmallDisk::mount(240) {
        Ok(disk) => disk,
        Err(why) => {
            // Past the harness, which hides what a passing test prints.
            let skipped =
                "SKIPPED a_full_disk_refuses_messages...: it needs root to mount a small file system";
            writeln!(std::io::stderr(), "{skipped}: {why}").unwrap();
            return;
        }
    };
    let dev = Dev::nothing();
    std::os::unix::fs::symlink(disk.0.path(), dev.path(".swarmmq")).unwrap();
    ok(&dev.run(&["dev", "up"]));
    ok(&dev.run(&["send", "a", "kept", "--count", "5"]));

    // Somebody else fills the disk.
    let filler = disk.0.path().join("filler");
    let fill = fs::File::create(&filler).unwrap();
    let mut size = 0;
    let chunk = vec![1; 1 << 20];
    while (&fill).write_all(&chunk).is_ok() {
        size += 1;
    }
    drop(fill);
    assert!(size > 64, "{size} MiB were free");
    until("the node notices", Duration::from_secs(20), || dev.run(&["status"]).status.code() == Some(10));
    let status = last(&dev.run(&["status", "--json"]));
    assert_eq!(status["state"], "degraded");
    assert!(status["problems"][0]["do"].as_str().unwrap().contains("free space"), "{status}");

    let refused = dev.run(&["send", "a", "too much", "--deadline", "1s"]);
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    assert!(errors(&refused).contains("reserve"), "it says why: {}", errors(&refused));
    let received = dev.run(&["recv", "a", "-n", "5", "--timeout", "20s", "--json"]);
    ok(&received);
    assert_eq!(column(&received, "body"), vec![json!("kept"); 5]);

    fs::remove_file(&filler).unwrap();
    until("the node notices", Duration::from_secs(20), || dev.run(&["status"]).status.success());
    ok(&dev.run(&["send", "a", "again"]));
    ok(&dev.command(&["dev", "down"]).stdout(Stdio::null()).output().unwrap());
}
