//! One node as its users meet it: started, used, killed, started again.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::json;

use self::common::{Dev, exits, last, lines, ok, until};

#[test]
fn what_was_acknowledged_before_a_kill_comes_exactly_once_after_it() {
    let dev = Dev::up();
    let mut sent = BTreeSet::new();
    for n in 0..10 {
        let output = dev.run(&["send", "shop.orders", &format!("m{n}"), "--json"]);
        ok(&output);
        let receipt = last(&output);
        assert_eq!((&receipt["address"], &receipt["duplicate"]), (&json!("shop.orders"), &json!(false)));
        sent.insert(receipt["id"].as_str().unwrap().to_owned());
    }
    let first = dev.run(&["recv", "shop.orders", "-n", "4", "--timeout", "20s", "--json"]);
    ok(&first);

    let killed = dev.run(&["dev", "kill", "1", "--json"]);
    ok(&killed);
    assert_eq!(last(&killed)["nodes"][0]["pid"], json!(null));
    assert_eq!(dev.cluster()["nodes"][0]["pid"], json!(null));
    exits(&dev.run(&["dev", "kill", "1"]), 1);
    let unreachable = dev.run(&["status", "--json"]);
    exits(&unreachable, 3);
    assert_eq!(last(&unreachable)["state"], "unreachable");
    ok(&dev.run(&["dev", "start", "1"]));
    ok(&dev.run(&["status"]));

    let rest = dev.run(&["recv", "shop.orders", "-n", "6", "--timeout", "20s", "--json"]);
    ok(&rest);
    let nothing = dev.run(&["recv", "shop.orders", "-n", "1", "--timeout", "300ms", "--json"]);
    exits(&nothing, 8);
    assert_eq!(last(&nothing)["error"]["code"], "timeout");

    let received: Vec<_> = [lines(&first), lines(&rest)].concat();
    let bodies: Vec<_> =
        received.iter().map(|message| message["body"].as_str().unwrap().to_owned()).collect();
    assert_eq!(bodies, (0..10).map(|n| format!("m{n}")).collect::<Vec<_>>());
    let ids: BTreeSet<_> =
        received.iter().map(|message| message["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, sent);
}

#[test]
fn a_local_cluster_is_resumed_and_keeps_its_ports() {
    let dev = Dev::up();
    let before = dev.cluster();
    let node = &before["nodes"][0];
    for name in ["client", "peer", "gossip", "admin", "config", "data"] {
        assert!(node[name].is_string(), "{name} in {node}");
    }
    assert_eq!(before["keyring"], json!(dev.directory().join("client.keyring")));
    for name in ["client.keyring", "node.keyring"] {
        let mode = fs::metadata(dev.directory().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let session = fs::read_to_string(format!("/proc/{}/stat", dev.pid())).unwrap();
    let session = session.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, dev.pid().to_string(), "a session of its own");

    let again = dev.run(&["dev", "up", "--json"]);
    ok(&again);
    assert_eq!(last(&again), before, "a cluster that runs is left alone");
    ok(&dev.run(&["dev", "down"]));
    assert_eq!(dev.cluster()["nodes"][0]["pid"], json!(null));
    ok(&dev.run(&["dev", "up"]));
    let mut after = dev.cluster();
    assert_ne!(after["nodes"][0]["pid"], before["nodes"][0]["pid"]);
    after["nodes"][0]["pid"] = before["nodes"][0]["pid"].clone();
    assert_eq!(after, before);
    exits(&dev.run(&["dev", "up", "--nodes", "5"]), 2);
}

#[test]
fn a_node_that_was_killed_from_outside_is_started_again_at_once() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "x"]));
    for _ in 0..3 {
        dev.crash_and_start();
    }
    ok(&dev.run(&["recv", "a", "-n", "1", "--timeout", "20s"]));
}

#[test]
fn lines_of_standard_input_are_messages() {
    let dev = Dev::up();
    let mut child = dev
        .command(&["send", "a.lines", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"one\n\nthree").unwrap();
    let sent = child.wait_with_output().unwrap();
    ok(&sent);
    assert_eq!(lines(&sent).len(), 3);
    let peeked = dev.run(&["recv", "a.lines", "--peek", "--json"]);
    let received = dev.run(&["recv", "a.lines", "-n", "3", "--timeout", "20s", "--json"]);
    for output in [&peeked, &received] {
        ok(output);
        let bodies: Vec<_> =
            lines(output).iter().map(|line| line["body"].as_str().unwrap().to_owned()).collect();
        assert_eq!(bodies, ["one", "", "three"]);
    }
    let empty = dev.run(&["recv", "a.lines", "--peek", "--json"]);
    ok(&empty);
    assert_eq!(lines(&empty), Vec::<serde_json::Value>::new(), "settled by its only group");
}

#[test]
fn keys_headers_and_bytes_travel_unchanged() {
    let dev = Dev::up();
    ok(&dev
        .run(&["send", "a", "hello", "--key", "k", "--header", "x=1", "--header", "y=a=b", "--count", "2"]));
    let received = dev.run(&["recv", "a", "-n", "2", "--timeout", "20s", "--json"]);
    ok(&received);
    for line in lines(&received) {
        assert_eq!((&line["key"], &line["headers"]), (&json!("k"), &json!({"x": "1", "y": "a=b"})));
        assert_eq!((&line["body"], &line["attempt"]), (&json!("hello"), &json!(1)));
        assert!(line["published_at"].as_str().unwrap().ends_with('Z'));
    }
}

#[test]
fn an_interrupted_consumer_gives_back_what_it_holds() {
    let dev = Dev::up();
    let mut consumer = dev.command(&["recv", "a", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(consumer.stdout.take().unwrap());
    ok(&dev.run(&["send", "a", "first"]));
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert!(line.contains("first"), "{line}");
    assert!(Command::new("kill").args(["-INT", &consumer.id().to_string()]).status().unwrap().success());
    assert_eq!(consumer.wait().unwrap().code(), Some(130));
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    let rest: serde_json::Value = serde_json::from_str(&rest).unwrap();
    assert_eq!(
        (&rest["error"]["code"], &rest["error"]["outcome"]),
        (&json!("interrupted"), &json!("failed"))
    );
    ok(&dev.run(&["send", "a", "second"]));
    let received = dev.run(&["recv", "a", "-n", "1", "--timeout", "20s", "--json"]);
    ok(&received);
    assert_eq!((&last(&received)["body"], &last(&received)["attempt"]), (&json!("second"), &json!(1)));
}

#[test]
fn addresses_and_groups_are_made_looked_at_and_removed() {
    let dev = Dev::up();
    ok(&dev.run(&["address", "create", "shop.orders", "--order", "key", "--attempts", "3"]));
    ok(&dev.run(&["send", "shop.orders", "x", "--key", "k", "--count", "3"]));
    let conflict = dev.run(&["send", "shop.orders", "x", "--order", "total", "--json"]);
    exits(&conflict, 1);
    assert_eq!(last(&conflict)["error"]["code"], "order_conflict");
    ok(&dev.run(&["recv", "shop.orders", "-n", "1", "--timeout", "20s"]));
    let info = last(&dev.run(&["address", "info", "shop.orders", "--json"]));
    assert_eq!((&info["address"], &info["order"]), (&json!("shop.orders"), &json!("key")));
    assert_eq!(info["groups"][0]["name"], "default");
    assert_eq!(info["groups"][0]["lag_messages"], json!(2));
    let list = last(&dev.run(&["address", "ls", "--json"]));
    assert!(
        list["addresses"].as_array().unwrap().contains(&json!({"address": "shop.orders", "order": "key"}))
    );

    let rehearsal = dev.run(&["address", "purge", "shop.orders", "--dry-run", "--json"]);
    ok(&rehearsal);
    assert_eq!((&last(&rehearsal)["messages"], &last(&rehearsal)["dry_run"]), (&json!(2), &json!(true)));
    let real = dev.run(&["address", "purge", "shop.orders", "--json"]);
    ok(&real);
    assert_eq!(last(&real)["messages"], json!(2));
    ok(&dev.run(&["address", "set", "shop.orders", "--lease", "5s"]));
    ok(&dev.run(&["group", "seek", "shop.orders", "default", "--to", "start", "--dry-run"]));
    ok(&dev.run(&["group", "rm", "shop.orders", "default"]));
    let groups = last(&dev.run(&["group", "ls", "shop.orders", "--json"]));
    assert_eq!(groups, json!({"address": "shop.orders", "groups": []}));
    ok(&dev.run(&["address", "rm", "shop.orders"]));
    let gone = dev.run(&["address", "info", "shop.orders", "--json"]);
    exits(&gone, 1);
    assert_eq!(last(&gone)["error"]["code"], "no_such_address");
}

#[test]
fn sigterm_drains_and_what_was_stored_is_there_afterwards() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "x", "--count", "100"]));
    let pid = dev.pid();
    assert!(Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap().success());
    until("the node ends", Duration::from_secs(15), || {
        fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty()
    });
    ok(&dev.run(&["dev", "start", "1"]));
    let received = dev.run(&["recv", "a", "-n", "100", "--timeout", "20s", "--json"]);
    ok(&received);
    assert!(lines(&received).iter().all(|line| line["attempt"] == json!(1)), "nothing was held");
}
