//! One node as its users meet it: started, used, killed, started again.

mod cluster;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use self::cluster::{
    Dev, Running, column, ended, errors, exits, fails, fails_as_json, last, lines, ok, signal,
};

/// A consumer under way, and what it prints.
fn consumer(dev: &Dev, words: &[&str]) -> (Running, BufReader<std::process::ChildStdout>) {
    let mut child = dev.command(words).stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (Running(child), output)
}

/// The next line it prints.
fn next(output: &mut impl BufRead) -> Value {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line:?}"))
}

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
fn bytes_that_are_no_text_travel_as_base64_for_programs_and_unchanged_for_people() {
    let dev = Dev::up();
    let body = [0xff, 0xfe, 0, b'x'];
    ok(&dev.pipe(&["send", "a", "-"], &body));
    let peeked = last(&dev.run(&["recv", "a", "--peek", "--json"]));
    assert_eq!((&peeked["body"], &peeked["body_base64"]), (&json!(null), &json!("//4AeA==")));
    let received = dev.run(&["recv", "a", "-n", "1", "--timeout", "20s"]);
    ok(&received);
    assert_eq!(received.stdout, [&body[..], b"\n"].concat());
}

#[test]
fn groups_begin_where_they_were_told_and_looking_takes_nothing() {
    let dev = Dev::up();
    let recv = |words: &[&str]| dev.run(&[&["recv", "a", "--json", "--timeout", "20s"][..], words].concat());
    ok(&dev.run(&["send", "a", "old"]));
    assert_eq!(column(&recv(&["--peek"]), "body"), ["old"]);
    assert_eq!(
        column(&recv(&["--group", "first", "-n", "1"]), "body"),
        ["old"],
        "the first begins at the oldest"
    );
    let (late, mut late_output) = consumer(&dev, &["recv", "a", "--json", "--group", "late", "-n", "1"]);
    cluster::until("the group is made", Duration::from_secs(20), || {
        last(&dev.run(&["group", "ls", "a", "--json"])).to_string().contains("\"late\"")
    });
    ok(&dev.run(&["send", "a", "new"]));
    assert_eq!(next(&mut late_output)["body"], "new", "later ones begin at the end");
    assert_eq!(late.code(), Some(0));
    assert_eq!(
        column(&recv(&["--group", "all", "--from", "start", "-n", "1"]), "body"),
        ["new"],
        "old was settled"
    );
    fails_as_json(&recv(&["--group", "all", "--from", "start"]), 1, "exists", &["group seek"]);
    assert_eq!(column(&recv(&["--group", "first", "-n", "1"]), "body"), ["new"]);
    fails_as_json(
        &dev.run(&["recv", "a", "-n", "1", "--timeout", "100ms", "--json"]),
        8,
        "timeout",
        &["0 of 1"],
    );
}

#[test]
fn what_is_kept_for_a_while_can_be_replayed() {
    let dev = Dev::up();
    ok(&dev.run(&["address", "create", "a", "--min-age", "1h"]));
    let other = dev.run(&["address", "create", "a", "--min-age", "2h", "--json"]);
    fails_as_json(&other, 1, "exists", &["address set"]);
    ok(&dev.run(&["send", "a", "again", "--count", "3"]));
    let recv = ["recv", "a", "-n", "3", "--timeout", "20s", "--json"];
    assert_eq!(lines(&dev.run(&recv)).len(), 3);
    let dry = last(&dev.run(&["group", "seek", "a", "default", "--to", "start", "--dry-run", "--json"]));
    assert_eq!((&dry["messages"], &dry["dry_run"]), (&json!(3), &json!(true)));
    ok(&dev.run(&["group", "seek", "a", "default", "--to", "-10m"]));
    assert_eq!(lines(&dev.run(&recv)).len(), 3, "sought to before they were sent");
    ok(&dev.run(&["group", "seek", "a", "default", "--to", "end"]));
    exits(&dev.run(&["recv", "a", "-n", "1", "--timeout", "100ms"]), 8);
}

#[test]
fn an_interrupted_consumer_gives_back_what_it_holds() {
    let dev = Dev::up();
    // More than it may hold: whoever reads only one line makes it wait with the others in its hands.
    let body = "x".repeat(1000);
    ok(&dev.run(&["send", "a", &body, "--count", "400"]));
    let (running, mut output) = consumer(&dev, &["recv", "a", "--json"]);
    let mut printed = vec![next(&mut output)];
    signal(running.pid(), Signal::INT);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(running.code(), Some(130));
    printed.extend(rest.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    let error = printed.pop().unwrap()["error"].clone();
    assert_eq!((&error["code"], &error["outcome"]), (&json!("interrupted"), &json!("failed")), "{error}");
    let left = (400 - printed.len()).to_string();
    let received = dev.run(&["recv", "a", "-n", &left, "--timeout", "20s", "--json"]);
    ok(&received);
    let twice: BTreeSet<String> =
        printed.iter().chain(&lines(&received)).map(|line| line["id"].to_string()).collect();
    assert_eq!(twice.len(), 400, "every message was printed, and none twice");
}

#[test]
fn output_that_nobody_reads_ends_the_consumer_and_loses_nothing() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "x", "--count", "3"]));
    let (running, mut output) = consumer(&dev, &["recv", "a", "--json"]);
    let mut printed: Vec<Value> = (0..3).map(|_| next(&mut output)).collect();
    drop(output);
    ok(&dev.run(&["send", "a", "y"]));
    assert_eq!(running.code(), Some(1));
    printed.push(last(&dev.run(&["recv", "a", "-n", "1", "--timeout", "20s", "--json"])));
    let bodies: Vec<&Value> = printed.iter().map(|line| &line["body"]).collect();
    assert_eq!(bodies, ["x", "x", "x", "y"]);
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
fn sigterm_drains_and_clients_go_on_when_the_node_is_back() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "x", "--count", "100"]));
    let (running, mut output) = consumer(&dev, &["recv", "a", "--json", "-n", "101"]);
    for _ in 0..100 {
        assert_eq!(next(&mut output)["attempt"], json!(1));
    }
    let pid = dev.pid();
    signal(pid, Signal::TERM);
    ended(pid, Duration::from_secs(15));
    let log = fs::read_to_string(dev.directory().join("node-1/node.log")).unwrap();
    assert!(log.contains("stopped drained=true"), "{log}");
    exits(&dev.run(&["status"]), 3);
    ok(&dev.run(&["dev", "start", "1"]));
    ok(&dev.run(&["send", "a", "after"]));
    let after = next(&mut output);
    assert_eq!((&after["body"], &after["attempt"]), (&json!("after"), &json!(1)));
    assert_eq!(running.code(), Some(0));
}

#[test]
fn a_node_of_its_own_is_made_run_and_stopped_by_hand() {
    let dev = Dev::nothing();
    ok(&dev.run(&["keys", "generate", "--out", "keys", "--insecure-plaintext"]));
    let free = [0; 3].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let [client, admin, peer] = free.map(|listener| listener.local_addr().unwrap().to_string());
    let text = format!(
        "[node]\nid = 7\ndata = \"data\"\nkeyring = \"keys/node.keyring\"\n[listen]\ninsecure_plaintext = true\nclient = \"{client}\"\nadmin = \"{admin}\"\npeer = \"{peer}\"\ngossip = \"{peer}\"\n"
    );
    fs::write(dev.path("node.toml"), text).unwrap();
    let made = last(&dev.run(&["init", "--config", "node.toml", "--json"]));
    assert_eq!((&made["node"], &made["shards"]), (&json!(7), &json!(16)));
    let node =
        Running(dev.command(&["node", "--config", "node.toml"]).stderr(Stdio::null()).spawn().unwrap());
    let with = ["--servers", &client, "--keyring", "keys/client.keyring", "--json"];
    let status = |dev: &Dev| dev.run(&[&["status"][..], &with].concat());
    cluster::until("the node serves", Duration::from_secs(20), || status(&dev).status.success());
    let report = last(&status(&dev));
    assert_eq!(report["cluster"], made["cluster"]);
    assert_eq!(
        (&report["healthy"], &report["state"], &report["problems"]),
        (&json!(true), &json!("healthy"), &json!([]))
    );
    assert_eq!(
        report["nodes"],
        json!([{"id": 7, "state": "alive", "roles": ["ingress", "router", "store"], "version": env!("CARGO_PKG_VERSION")}])
    );
    assert_eq!(report["shards"].as_array().unwrap().len(), 16);
    assert_eq!(
        report["shards"][3],
        json!({"id": 3, "leader": 7, "term": 2, "replicas": [7], "in_sync": [7]})
    );
    signal(node.pid(), Signal::TERM);
    assert_eq!(node.code(), Some(0), "a drained node ends well");
}

#[test]
fn exports_point_clients_elsewhere_to_the_cluster() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "found"]));
    let exports = String::from_utf8(dev.run(&["dev", "env"]).stdout).unwrap();
    let script = format!("{exports} cd / && {} recv a -n 1 --timeout 20s", cluster::SWARMMQ);
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    ok(&output);
    assert_eq!(output.stdout, b"found\n");
    let object = last(&dev.run(&["dev", "env", "--json"]));
    assert_eq!(object["SWARMMQ_SERVERS"], json!(dev.node("client")));
    assert_eq!(object["SWARMMQ_KEYRING"], dev.cluster()["keyring"]);
}

#[test]
fn people_are_told_in_words_and_errors_go_to_standard_error() {
    let dev = Dev::up();
    let said = |words: &[&str]| {
        let output = dev.run(words);
        ok(&output);
        assert_eq!(errors(&output), "", "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(said(&["send", "shop.orders", "one"]).starts_with("sent "));
    assert_eq!(said(&["send", "shop.orders", "more", "--count", "2"]), "sent 2 messages to shop.orders\n");
    assert_eq!(said(&["recv", "shop.orders", "-n", "2"]), "one\nmore\n");
    assert!(said(&["address", "info", "shop.orders"]).contains("default  1"));
    assert!(said(&["address", "purge", "shop.orders", "--dry-run"]).contains("removing 1 messages"));
    assert!(said(&["group", "rm", "shop.orders", "default", "--dry-run"]).contains("nothing was changed"));
    assert!(said(&["group", "ls", "shop.orders"]).starts_with("GROUP"));
    assert!(said(&["address", "rm", "shop.orders"]).contains("done: 1 messages"));
    assert!(said(&["status"]).starts_with("healthy\n"));
    assert!(said(&["dev", "status"]).contains("running, pid "));
    let piped = dev.pipe(&["send", "a", "-"], b"only one");
    assert_eq!(String::from_utf8(piped.stdout).unwrap(), "sent 1 message to a\n");
    fails(&dev.run(&["address", "info", "nowhere"]), 1, &["no such address", "swarmmq address ls"]);
    fails(&dev.run(&["group", "rm", "a", "nobody"]), 1, &["swarmmq group ls"]);
    fails(&dev.run(&["dev", "start", "2"]), 2, &["there is no node 2", "swarmmq dev status"]);
}
