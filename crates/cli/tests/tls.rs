//! Real nodes that speak TLS: who is believed and who is not, and certificates that change while messages flow.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Stdio,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

mod cluster;

use cluster::{Dev, fails, fails_as_json, get, last, ok, signal, until};

const PATIENCE: Duration = Duration::from_secs(20);

/// A number of `/metrics`.
fn metric(dev: &Dev, node: u16, name: &str) -> Option<f64> {
    let text = get(&dev.node_of(node, "admin"), "/metrics").1;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// A copy of the client keyring with another word on how nodes are known.
fn keyring(dev: &Dev, name: &str, words: &[&str]) -> String {
    let path = dev.path(name).to_str().unwrap().to_owned();
    fs::copy(dev.directory().join("client.keyring"), &path).unwrap();
    ok(&dev.run(&[&["keys", "trust", "--keyring", &path], words].concat()));
    path
}

#[test]
fn a_local_cluster_speaks_tls_with_whoever_trusts_its_authority() {
    let dev = Dev::up_with(3, &[]);
    ok(&dev.run(&["send", "a", "hello"]));
    assert_eq!(last(&dev.run(&["recv", "a", "-n", "1", "--timeout", "20s", "--json"]))["body"], "hello");
    // Nothing of what is said in plain text comes back but an alert (RFC 8446, 5.1).
    let mut stream = TcpStream::connect(dev.node("client")).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer).is_err();
    assert!(answer.is_empty() || answer.starts_with(&[21, 3]), "{answer:?}");
    until("the count", PATIENCE, || {
        metric(&dev, 1, "swarmmq_tls_failures_total{port=\"client\",reason=\"plain_text\"}") == Some(1.0)
    });
    assert!(metric(&dev, 1, "swarmmq_tls_certificate_expires_at_seconds").unwrap() > 1.7e9);

    ok(&dev.run(&["certs", "init", "--out", "other"]));
    let foreign = keyring(&dev, "foreign", &["--ca", "other/ca.pem"]);
    let with = ["send", "a", "x", "--keyring", &foreign];
    fails(&dev.run(&with), 4, &["an authority that is not trusted here", "keys trust"]);
    fails_as_json(&dev.run(&[&with[..], &["--json"]].concat()), 4, "untrusted", &["not trusted"]);
    let plain = keyring(&dev, "plain", &["--insecure-plaintext"]);
    fails(&dev.run(&["send", "a", "x", "--keyring", &plain]), 4, &["speaks TLS", "keys trust"]);
    let untold = dev.path("untold");
    let text = fs::read_to_string(&plain).unwrap().replace("insecure_plaintext = true\n", "");
    fs::write(&untold, text).unwrap();
    let untold = ["send", "a", "x", "--keyring", untold.to_str().unwrap()];
    fails(&dev.run(&untold), 2, &["names no authority", "keys trust"]);
    // Both authorities at once, as while one replaces the other.
    let both = dev.path("both.pem");
    let text = [dev.path("other/ca.pem"), dev.directory().join("ca.pem")]
        .map(|path| fs::read(path).unwrap())
        .concat();
    fs::write(&both, text).unwrap();
    let both = keyring(&dev, "both", &["--ca", both.to_str().unwrap()]);
    ok(&dev.run(&["send", "a", "y", "--keyring", &both]));
}

#[test]
fn plain_text_is_asked_for_by_name() {
    let dev = Dev::up_with(1, &["--insecure-plaintext"]);
    ok(&dev.run(&["send", "a", "hello"]));
    ok(&dev.run(&["certs", "init", "--out", "ca"]));
    let encrypted = keyring(&dev, "encrypted", &["--ca", "ca/ca.pem"]);
    fails(&dev.run(&["send", "a", "x", "--keyring", &encrypted]), 4, &["speaks plain text"]);
    let elsewhere = ["send", "a", "x", "--servers", "192.0.2.1:7420"];
    fails(&dev.run(&elsewhere), 2, &["not on loopback", "keys trust"]);
    ok(&dev.run(&["dev", "down"]));
    // Without the switch a node does not start, and with it only on loopback.
    let config = dev.node("config");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("insecure_plaintext = true\n", "")).unwrap();
    fails(&dev.run(&["node", "--config", &config]), 2, &["there is no [tls]", "insecure_plaintext"]);
    fs::write(&config, text.replace("client = \"127.0.0.1", "client = \"192.0.2.1")).unwrap();
    fails(&dev.run(&["node", "--config", &config]), 2, &["not on loopback", "certificate"]);
}

#[test]
fn a_node_starts_only_with_its_own_certificate() {
    let dev = Dev::up_with(1, &[]);
    ok(&dev.run(&["dev", "down"]));
    let config = dev.node("config");
    let good = fs::read_to_string(&config).unwrap();
    let issue =
        ["certs", "issue", "--ca", ".swarmmq", "--out", "three", "--node", "3", "--hosts", "127.0.0.1"];
    ok(&dev.run(&issue));
    let three = |name: &str| format!("{:?}", dev.path(name));
    let start = |certificate: &str, key: &str, ca: &str| {
        let text = good
            .replace("\"node.pem\"", certificate)
            .replace("\"node.key\"", key)
            .replace("\"../ca.pem\"", ca);
        fs::write(&config, text).unwrap();
        dev.run(&["node", "--config", &config])
    };
    let (own, key, ca) = ("\"node.pem\"", "\"node.key\"", "\"../ca.pem\"");
    let of_three = (three("three/node-3.pem"), three("three/node-3.key"));
    fails(&start(&of_three.0, &of_three.1, ca), 2, &["certificate of node 3, node.id is 1"]);
    fails(&start(own, &of_three.1, ca), 2, &["does not belong to the certificate"]);
    ok(&dev.run(&["certs", "init", "--out", "other"]));
    fails(&start(own, key, &three("other/ca.pem")), 2, &["not from this authority"]);
    fails(&start("\"missing.pem\"", key, ca), 2, &["missing.pem", "certs issue"]);
    fails(&start(ca, key, ca), 2, &["for no node and no client"]);
    fs::write(&config, &good).unwrap();
    ok(&dev.run(&["dev", "up"]));
}

#[test]
fn certificates_change_while_messages_flow_and_nothing_is_lost() {
    let dev = Dev::up_with(3, &[]);
    let bench = ["bench", "e2e", "--rate", "300", "--duration", "8s", "--json"];
    let bench = dev.command(&bench).stdout(Stdio::piped()).spawn().unwrap();
    let files: Vec<String> =
        (1..=3).map(|node| format!("{}/node-{node}/node.pem", dev.directory().display())).collect();
    let shown = |file: &str| last(&dev.run(&["certs", "show", file, "--json"]))["certificates"][0].clone();
    let before: Vec<Value> = files.iter().map(|file| shown(file)).collect();
    let renew: Vec<&str> = ["certs", "renew", "--ca", ".swarmmq", "--days", "700"]
        .into_iter()
        .chain(files.iter().map(String::as_str))
        .collect();
    ok(&dev.run(&renew));
    for (before, file) in before.iter().zip(&files) {
        let after = shown(file);
        assert_eq!((&after["node"], &after["hosts"]), (&before["node"], &before["hosts"]));
        assert!(after["seconds_left"].as_i64().unwrap() > 600 * 86_400, "{after}");
    }
    for node in 1..=3 {
        until("the new one", PATIENCE, || {
            metric(&dev, node, "swarmmq_tls_reloads_total{result=\"ok\"}") >= Some(1.0)
        });
    }
    // Links of before end, and new ones come about with what was read.
    ok(&dev.run(&["dev", "stop", "2"]));
    ok(&dev.run(&["dev", "start", "2"]));
    let output = bench.wait_with_output().unwrap();
    let verdict = last(&output);
    assert_eq!((&verdict["lost"], &verdict["duplicated"]), (&json!(0), &json!(0)), "{verdict}");

    // What cannot be used changes nothing, and is said.
    let good = fs::read(&files[0]).unwrap();
    fs::write(&files[0], "no certificate").unwrap();
    signal(dev.pid(), Signal::HUP);
    until("the complaint", PATIENCE, || {
        metric(&dev, 1, "swarmmq_tls_reloads_total{result=\"failed\"}") >= Some(1.0)
    });
    ok(&dev.run(&["send", "a", "still there", "--servers", &dev.node("client")]));
    assert_eq!(get(&dev.node("admin"), "/readyz").1, "ready\n");
    fs::write(&files[0], good).unwrap();
    let reloads = metric(&dev, 1, "swarmmq_tls_reloads_total{result=\"ok\"}");
    until("the good one", PATIENCE, || metric(&dev, 1, "swarmmq_tls_reloads_total{result=\"ok\"}") > reloads);
}

#[test]
fn a_certificate_that_ends_soon_is_warned_of() {
    let dev = Dev::up_with(1, &[]);
    let file = format!("{}/node-1/node.pem", dev.directory().display());
    ok(&dev.run(&["certs", "renew", "--ca", ".swarmmq", "--days", "5", &file]));
    until("the warning", PATIENCE, || {
        let status: Value = last(&dev.run(&["status", "--json"]));
        status["problems"].to_string().contains("expires in")
    });
    assert_eq!(get(&dev.node("admin"), "/readyz").1, "ready\n");
    ok(&dev.run(&["certs", "renew", "--ca", ".swarmmq", &file]));
    until("the end of it", PATIENCE, || last(&dev.run(&["status", "--json"]))["problems"] == json!([]));
}

#[test]
fn a_client_with_a_certificate_needs_no_token_and_is_who_it_says() {
    let dev = Dev::up_with(1, &[]);
    let issue = |name: &str| {
        ok(&dev.run(&["certs", "issue", "--ca", ".swarmmq", "--out", "certs", "--client", name]));
    };
    issue("billing");
    issue("shop");
    ok(&dev.run(&["address", "create", "shop.orders"]));
    let with = |name: &str, certificate: &str, key: &str, out: &str| {
        let rule = ["access", "add", name, "--allow", "publish:shop", "--out", out];
        dev.run(&[&rule[..], &["--certificate", certificate, "--certificate-key", key]].concat())
    };
    // Mistakes are told before there is a principal.
    let out = "certs/billing.keyring";
    fails(
        &with("billing", "client-shop.pem", "client-shop.key", out),
        2,
        &["client shop", "principal is billing"],
    );
    fails(&with("billing", "client-billing.pem", "client-shop.key", out), 2, &["does not belong"]);
    fails(&with("billing", "missing.pem", "missing.key", out), 2, &["missing.pem", "certs issue"]);
    fails(
        &with("billing", "../.swarmmq/node-1/node.pem", "../.swarmmq/node-1/node.key", out),
        2,
        &["certificate of node 1"],
    );
    ok(&with("billing", "client-billing.pem", "client-billing.key", out));
    let text = fs::read_to_string(dev.path(out)).unwrap();
    assert!(!text.contains("access_token") && text.contains("certificate = \"client-billing.pem\""));

    let send = |keyring: &str, address: &str| dev.run(&["send", address, "x", "--keyring", keyring]);
    ok(&send(out, "shop.orders"));
    fails(&send(out, "app.logs"), 4, &["billing", "app.logs"]);
    // The certificate of another one, whatever the keyring says.
    let stolen = text.replace("client-billing", "client-shop");
    fs::write(dev.path("certs/stolen.keyring"), stolen).unwrap();
    fails(&send("certs/stolen.keyring", "shop.orders"), 4, &["this certificate"]);
    // Root has no certificate: who may make certificates is not who may do everything.
    let root = text.replace("principal = \"billing\"\n", "");
    fs::write(dev.path("certs/root.keyring"), root).unwrap();
    fails(&send("certs/root.keyring", "shop.orders"), 7, &["access_token", "certificate_key"]);
    ok(&dev.run(&["access", "disable", "billing"]));
    fails(&send(out, "shop.orders"), 4, &["enabled principal"]);
    ok(&dev.run(&["access", "enable", "billing"]));
    // Renewed while a program runs that connects again and again; what is there in between does not end it.
    let mut sender = dev.command(&["send", "shop.orders", "-", "--keyring", out]);
    let mut sender = cluster::Running(sender.stdin(Stdio::piped()).spawn().unwrap());
    let mut lines = sender.0.stdin.take().unwrap();
    lines.write_all(b"one\n").unwrap();
    let certificate = dev.path("certs/client-billing.pem");
    ok(&dev.run(&["certs", "renew", "--ca", ".swarmmq", certificate.to_str().unwrap()]));
    dev.crash_and_start();
    lines.write_all(b"two\n").unwrap();
    drop(lines);
    assert_eq!(sender.code(), Some(0));
    let received = dev.run(&["recv", "shop.orders", "-n", "3", "--timeout", "20s", "--json"]);
    assert_eq!(cluster::column(&received, "body"), ["x", "one", "two"].map(Value::from));
}
