//! Payload keys as operators meet them: rotated under load, handed out, retired, and missing.

mod cluster;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};

use self::cluster::{Dev, Running, column, errors, exits, fails, fails_as_json, get, last, lines, ok, until};

const SOON: Duration = Duration::from_secs(60);

fn seals(dev: &Dev) -> Value {
    last(&dev.run(&["keys", "ls", "--json"]))["seals"].clone()
}

/// How many messages were acknowledged and how many delivered, of a progress line.
fn progress(line: &str) -> Option<(u64, u64)> {
    let number = |before: &str| line.split(before).next()?.rsplit(' ').next()?.parse().ok();
    Some((number(" acknowledged")?, number(" delivered")?))
}

#[test]
fn keys_are_rotated_twice_and_the_first_one_retired_under_load_and_nothing_is_lost() {
    let dev = Dev::up();
    let old = dev.path("old.keyring");
    fs::copy(dev.directory().join("client.keyring"), &old).unwrap();
    // What was consumed stays, to be looked at.
    ok(&dev.run(&["address", "create", "my.load", "--min-age", "1h"]));
    let words =
        ["bench", "e2e", "--address", "my.load", "--producers", "2", "--consumers", "2", "--size", "64"];
    let words = [&words[..], &["--rate", "1000", "--duration", "20", "--json"]].concat();
    let command = &mut dev.command(&words);
    let mut bench = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut said = BufReader::new(bench.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut wait_for = |enough: &dyn Fn((u64, u64)) -> bool| {
        loop {
            let line = said.next().expect("the load goes on");
            if let Some(now) = progress(&line).filter(|now| enough(*now)) {
                return now;
            }
        }
    };
    wait_for(&|(_, delivered)| delivered > 0);
    for key in [2, 3] {
        let rotated = dev.run(&["keys", "rotate", "--activates-in", "2s", "--json"]);
        assert_eq!(last(&rotated)["id"], json!(key), "{}", errors(&rotated));
        until("the next key seals", SOON, || seals(&dev) == json!(key));
    }
    // Sealed with the third key or the second, what was acknowledged since; so the first one is not needed any more when
    // everything from before has been delivered.
    let (acknowledged, _) = wait_for(&|_| true);
    wait_for(&|(_, delivered)| delivered > acknowledged + 1000);
    let kept = dev.run(&["keys", "retire", "--id", "1"]);
    fails(&kept, 2, &["key 1", "--older-than", "--force"]);
    ok(&dev.run(&["keys", "retire", "--id", "1", "--force"]));

    let rest: Vec<String> = said.collect();
    let mut output = String::new();
    bench.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(bench.code(), Some(0), "{output}{rest:?}");
    let report: Value = serde_json::from_str(&output).unwrap();
    for field in ["lost", "duplicated", "out_of_order", "undecryptable", "unknown", "failed"] {
        assert_eq!(report[field], json!(0), "{field} in {report}");
    }
    assert_eq!(report["published"], json!(20_000));
    assert_eq!(report["delivered"], json!(20_000));

    // Each keyring opens what was sealed with its keys: together that is everything, and each has a share.
    let look = |keyring: &str| dev.run(&["recv", "my.load", "--peek", "--json", "--keyring", keyring]);
    let (first, others) = (look(old.to_str().unwrap()), look(dev.cluster()["keyring"].as_str().unwrap()));
    let opened = |output| lines(output).iter().filter(|line| line["id"].is_string()).count();
    for (output, word) in [(&first, "sealed under payload key 2"), (&others, "sealed under payload key 1")] {
        exits(output, 4);
        assert!(errors(output).contains(word), "{}", errors(output));
        assert!(opened(output) > 1000, "{}", opened(output));
    }
    assert_eq!(opened(&first) + opened(&others), 20_000);
}

#[test]
fn a_message_whose_key_is_missing_waits_for_it_and_then_is_a_dead_letter_with_the_reason() {
    let dev = Dev::up();
    let old = dev.path("old.keyring");
    fs::copy(dev.directory().join("client.keyring"), &old).unwrap();
    let old = old.to_str().unwrap();
    ok(&dev.run(&["send", "a", "one"]));
    ok(&dev.run(&["keys", "rotate", "--activates-in", "0"]));
    ok(&dev.run(&["send", "a", "two"]));
    let words =
        ["recv", "a", "-n", "2", "--timeout", "15s", "--key-patience", "2s", "--json", "--keyring", old];
    let received = dev.run(&words);
    fails_as_json(&received, 4, "cannot_open", &["payload key 2", "ADDRESS.dlq"]);
    assert_eq!(lines(&received)[0]["body"], json!("one"));
    assert!(errors(&received).contains("a dead letter now: message "), "{}", errors(&received));
    let dead = dev.run(&["recv", "a.dlq", "--peek", "--json"]);
    assert_eq!(column(&dead, "body"), ["two"], "whoever has the key can open it");
    let reason = last(&dead)["dead_reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("undecryptable: no key 2 in this keyring"), "{reason}");

    // In time, the key comes to who has waited for it.
    let command = &mut dev.command(&["recv", "b", "-n", "1", "--timeout", "60s", "--json", "--keyring", old]);
    let mut waiting = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    ok(&dev.run(&["send", "b", "three"]));
    let retried = || {
        let info = last(&dev.run(&["address", "info", "b", "--json"]));
        info["groups"][0]["lag_messages"] == json!(1)
    };
    until("the group wants it", SOON, retried);
    let keys = dev.path("key-2");
    ok(&dev.run(&["keys", "export", "--id", "2", "--out", keys.to_str().unwrap()]));
    ok(&dev.run(&["keys", "import", keys.to_str().unwrap(), "--keyring", old]));
    let mut output = String::new();
    waiting.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(waiting.code(), Some(0), "{output}");
    assert_eq!(serde_json::from_str::<Value>(&output).unwrap()["body"], json!("three"));
}

#[test]
fn keyrings_are_changed_as_a_whole_and_refuse_what_would_lose_messages() {
    let dev = Dev::nothing();
    ok(&dev.run(&["keys", "generate", "--out", "here"]));
    ok(&dev.run(&["keys", "generate", "--out", "elsewhere"]));
    let here = dev.path("here/client.keyring");
    fs::copy(&here, dev.path("copy.keyring")).unwrap();
    fs::set_permissions(&here, fs::Permissions::from_mode(0o640)).unwrap();
    let keys = |words: &[&str]| {
        dev.run(&[&["keys"], words, &["--json", "--keyring", "here/client.keyring"]].concat())
    };
    let copy =
        |words: &[&str]| dev.run(&[&["keys"], words, &["--json", "--keyring", "copy.keyring"]].concat());

    let rotated = keys(&["rotate"]);
    assert_eq!(last(&rotated)["id"], json!(2));
    assert_eq!(fs::metadata(&here).unwrap().permissions().mode() & 0o777, 0o640, "the mode stays");
    assert_eq!(fs::read_dir(dev.path("here")).unwrap().count(), 2, "nothing is left beside it");
    let listed = last(&keys(&["ls"]));
    assert_eq!((&listed["seals"], &listed["retired"]), (&json!(1), &json!([])));
    assert_eq!(
        (&listed["keys"][0]["state"], &listed["keys"][1]["state"]),
        (&json!("seals"), &json!("waits"))
    );
    assert_eq!(listed["keys"][1]["activates_at"], last(&rotated)["activates_at"]);

    fails_as_json(&keys(&["retire", "--id", "1"]), 2, "usage", &["the one that seals", "keys rotate"]);
    fails_as_json(&keys(&["retire", "--id", "2", "--force"]), 2, "usage", &["is about to become"]);
    fails_as_json(&keys(&["retire", "--id", "7"]), 2, "usage", &["no payload key 7", "keys ls"]);
    fails_as_json(&keys(&["rotate", "--activates-in", "0"]), 2, "usage", &["payload key 2 waits"]);
    fails_as_json(&keys(&["retire"]), 2, "usage", &["--id"]);

    ok(&keys(&["export", "--id", "2", "--out", "two"]));
    assert_eq!(fs::metadata(dev.path("two")).unwrap().permissions().mode() & 0o777, 0o600);
    fails_as_json(&keys(&["export", "--out", "two"]), 7, "local_data", &["never overwritten"]);
    let imported = last(&copy(&["import", "two"]));
    assert_eq!(imported, json!({"added": [2], "known": [], "retired": []}));
    assert_eq!(last(&copy(&["import", "two"])), json!({"added": [], "known": [2], "retired": []}));
    let text = |path: &str| fs::read_to_string(dev.path(path)).unwrap();
    assert_eq!(text("copy.keyring"), text("here/client.keyring"), "now they are the same again");
    let stranger = ["keys", "import", "two", "--json", "--keyring", "elsewhere/client.keyring"];
    fails_as_json(&dev.run(&stranger), 2, "usage", &["another cluster"]);
    fails_as_json(&copy(&["import", "nowhere"]), 2, "usage", &["keys export"]);
    fails_as_json(&copy(&["import", "copy.keyring"]), 7, "local_data", &["malformed"]);

    // The second key has become active, as if ten minutes had passed.
    let active = text("here/client.keyring");
    let active: Vec<&str> = active.lines().filter(|line| !line.starts_with("activates_at_ms")).collect();
    fs::write(&here, active.join("\n").replace("id = 2\n", "id = 2\nactivates_at_ms = 5\n")).unwrap();
    assert_eq!(last(&keys(&["ls"]))["keys"][0]["left_at"], json!("1970-01-01T00:00:00.005Z"));
    assert_eq!(last(&keys(&["retire", "--older-than", "30d"])), json!({"retired": [1]}));
    assert_eq!(last(&keys(&["retire", "--older-than", "30d"])), json!({"retired": []}));
    let listed = last(&keys(&["ls"]));
    assert_eq!((&listed["seals"], &listed["retired"]), (&json!(2), &json!([1])));
    assert!(listed["warning"].as_str().unwrap().contains("keys rotate"), "{listed}");
    let shown = dev.run(&["keys", "ls", "--keyring", "here/client.keyring"]);
    assert!(String::from_utf8(shown.stdout).unwrap().contains("retired"));
    assert_eq!(last(&keys(&["rotate", "--activates-in", "0"]))["id"], json!(3), "no number is given twice");

    let missing = dev.run(&["keys", "rotate", "--json", "--keyring", "nowhere"]);
    fails_as_json(&missing, 2, "usage", &["nowhere"]);
}

fn metric(dev: &Dev, node: u16, name: &str) -> f64 {
    let text = get(&dev.node_of(node, "admin"), "/metrics").1;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).expect("it is always there")
}

#[test]
fn all_that_nodes_share_is_replaced_under_load_and_nothing_is_lost() {
    let dev = Dev::up_with(3, &[]);
    let old = dev.path("old.keyring");
    fs::copy(dev.directory().join("client.keyring"), &old).unwrap();
    ok(&dev.run(&[
        "access",
        "add",
        "till",
        "--allow",
        "use:shop",
        "--quota",
        "addresses=1",
        "--out",
        "till",
    ]));
    let bench = ["bench", "e2e", "--rate", "300", "--duration", "20s", "--json"];
    let bench = dev.command(&bench).stdout(Stdio::piped()).spawn().unwrap();
    let file = ".swarmmq/node.keyring";
    let of_all = |name: &str, value: f64| {
        until(name, SOON, || (1..=3).all(|node| metric(&dev, node, name) == value));
    };
    let taken = "swarmmq_keyring_reloads_total{result=\"ok\"}";
    let mut steps = 0.0;
    let mut step = |word: &str, which: &str| {
        let said = dev.run(&["keys", "node", word, which, file, "--json"]);
        ok(&said);
        steps += 1.0;
        of_all(taken, steps);
        last(&said)["keys"][which.replace('-', "_")].clone()
    };
    for which in ["peer-secret", "admission-key", "access-token"] {
        let before = step("next", which);
        let after = step("turn", which);
        assert_eq!((&before[0], &before[1]), (&after[1], &after[0]));
        of_all(&format!("swarmmq_keyring_keys{{key=\"{}\"}}", which.replace('-', "_")), 2.0);
        // Each is followed by every keyring that has it; running clients read theirs every second.
        ok(&dev.run(&["keys", "follow", file]));
        ok(&dev.run(&["keys", "follow", file, "--keyring", "till"]));
        if which == "access-token" {
            ok(&dev.run(&["access", "rotate", "till", "--out", "till-2"]));
        }
        ok(&dev.run(&["send", "shop", which, "--keyring", "till"]));
        step("drop", which);
        fails(&dev.run(&["keys", "node", "turn", which, file]), 2, &["only one", "keys node next"]);
    }
    // Links of before end, and new ones come about with what is left.
    ok(&dev.run(&["dev", "stop", "2"]));
    ok(&dev.run(&["dev", "start", "2"]));
    let verdict = last(&bench.wait_with_output().unwrap());
    assert_eq!((&verdict["lost"], &verdict["duplicated"]), (&json!(0), &json!(0)), "{verdict}");
    assert_eq!((&verdict["failed"], &verdict["unknown"]), (&json!(0), &json!(0)), "{verdict}");
    let with = |keyring: &str| dev.run(&["send", "shop", "late", "--keyring", keyring]);
    fails(&with(old.to_str().unwrap()), 4, &["this token"]);
    fails(&with("till"), 4, &["this token"]);
    ok(&with("till-2"));
    // A file that has nothing in common with what is used changes nothing.
    let text = fs::read_to_string(dev.path(file)).unwrap();
    ok(&dev.run(&["keys", "generate", "--out", "other", "--insecure-plaintext"]));
    fs::copy(dev.path("other/node.keyring"), dev.path(file)).unwrap();
    until("the complaint", SOON, || {
        metric(&dev, 1, "swarmmq_keyring_reloads_total{result=\"failed\"}") > 0.0
    });
    ok(&with("till-2"));
    fs::write(dev.path(file), text).unwrap();
}
