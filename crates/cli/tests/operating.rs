//! What `docs/operating/README.md` says is what the executable does.

mod cluster;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
};

use serde_json::json;

use self::cluster::{Dev, column, errors, exits, fails, get, last, ok};

/// The page for operators.
fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operating/README.md");
    fs::read_to_string(path).unwrap()
}

/// One row for every metric: name with label, kind, meaning.
fn metric_rows(exposition: &str) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    let mut help = String::new();
    for line in exposition.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap().1.trim_end_matches('.').to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let label = exposition.lines().find_map(|line| {
                let labels = line.strip_prefix(name)?.strip_prefix('{')?;
                labels.split_once('=').map(|(label, _)| format!("{{{label}}}"))
            });
            rows.insert(format!("| `{name}{}` | {kind} | {help} |", label.unwrap_or_default()));
        }
    }
    rows
}

#[test]
fn every_metric_is_in_the_table_as_it_is_exposed() {
    let dev = Dev::up();
    // Refusals are listed by reason, and a reason appears with its first refusal.
    let keyring = fs::read_to_string(dev.directory().join("client.keyring")).unwrap();
    let admission = keyring.lines().find(|line| line.starts_with("admission_key")).unwrap();
    let forger = format!("admission_key = \"{}\"", "5a".repeat(32));
    fs::write(dev.path("forger"), keyring.replace(admission, &forger)).unwrap();
    exits(&dev.run(&["send", "a", "x", "--keyring", "forger"]), 4);
    let admin = dev.node("admin");
    cluster::until("the refusal is counted", std::time::Duration::from_secs(10), || {
        get(&admin, "/metrics").1.contains("swarmmq_messages_rejected_total{")
    });
    let exposed = metric_rows(&get(&admin, "/metrics").1);
    assert!(exposed.len() > 20, "{exposed:#?}");
    let page = page();
    let documented: BTreeSet<String> =
        page.lines().filter(|line| line.starts_with("| `swarmmq_")).map(str::to_owned).collect();
    let missing: Vec<&String> = exposed.difference(&documented).collect();
    let stale: Vec<&String> = documented.difference(&exposed).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "the table in docs/operating/README.md lacks {missing:#?} and should not have {stale:#?}"
    );
}

#[test]
fn every_key_of_node_toml_is_in_the_table() {
    let dev = Dev::nothing();
    for section in ["node", "listen", "cluster"] {
        let text = match section {
            "node" => "[node]\nwhat = 1\n".to_owned(),
            other => format!("[node]\nid = 1\ndata = \"d\"\nkeyring = \"k\"\n[{other}]\nwhat = 1\n"),
        };
        fs::write(dev.path("node.toml"), text).unwrap();
        let said = errors(&dev.run(&["init", "--config", "node.toml"]));
        let known = said.split("expected ").nth(1).expect("the message lists the keys");
        let known: Vec<&str> = known.lines().next().unwrap().split('`').skip(1).step_by(2).collect();
        assert!(!known.is_empty(), "{said}");
        for key in known {
            assert!(page().contains(&format!("| `{section}.{key}` |")), "{section}.{key} is not on the page");
        }
    }
}

#[test]
fn every_exit_code_of_the_help_is_in_the_table() {
    let help = String::from_utf8(Dev::nothing().run(&["--help"]).stdout).unwrap();
    let list = help.split_once("Exit codes: ").unwrap().1.split_once("\n\n").unwrap().0.replace('\n', " ");
    let codes: Vec<&str> = list.split(", ").filter_map(|item| item.split(' ').next()).collect();
    assert_eq!(codes, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "10", "11", "130"]);
    for code in codes {
        assert!(page().contains(&format!("\n| {code} | ")), "{code} is not on the page");
    }
}

#[test]
fn the_shortest_configuration_of_the_page_makes_a_cluster() {
    let dev = Dev::nothing();
    let page = page();
    let text = page.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
    fs::write(dev.path("node.toml"), text).unwrap();
    let made = dev.run(&["init", "--config", "node.toml", "--json"]);
    ok(&made);
    assert_eq!((&last(&made)["node"], &last(&made)["shards"]), (&json!(1), &json!(16)));
    for path in ["data/identity.toml", "data/lock", "data/log/00000001.seg"] {
        assert!(dev.path(path).exists(), "{path}");
    }
}

#[test]
fn the_admin_port_answers_reads_and_nothing_else() {
    let dev = Dev::up();
    let admin = dev.node("admin");
    assert_eq!(get(&admin, "/livez"), (200, "ok\n".into()));
    assert_eq!(get(&admin, "/readyz"), (200, "ready\n".into()));
    assert_eq!(get(&admin, "/").0, 404);
    let mut stream = TcpStream::connect(&admin).unwrap();
    stream
        .write_all(b"POST /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    // What is kept for datagrams is free.
    drop(TcpListener::bind(dev.node("gossip")).unwrap());
}

#[test]
fn a_lost_node_keyring_is_made_again_from_three_lines_of_the_client_s() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "kept"]));
    ok(&dev.run(&["dev", "down"]));
    let keyring = dev.directory().join("node.keyring");
    fs::remove_file(&keyring).unwrap();
    fails(&dev.run(&["dev", "up"]), 2, &["node.keyring"]);
    let client = fs::read_to_string(dev.directory().join("client.keyring")).unwrap();
    let wanted = ["version", "access_token", "admission_key"];
    let lines: Vec<&str> =
        client.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name))).collect();
    assert_eq!(lines.len(), 3);
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&keyring)
        .and_then(|mut file| file.write_all(lines.join("\n").as_bytes()))
        .unwrap();
    ok(&dev.run(&["dev", "up"]));
    assert_eq!(column(&dev.run(&["recv", "a", "-n", "1", "--timeout", "20s", "--json"]), "body"), ["kept"]);
}

#[test]
fn a_copy_of_a_stopped_node_s_data_is_a_backup() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "a", "kept", "--count", "3"]));
    ok(&dev.run(&["dev", "down"]));
    let copied = std::process::Command::new("cp")
        .args(["-r", &dev.node("data"), dev.path("backup").to_str().unwrap()])
        .status()
        .unwrap();
    assert!(copied.success());
    ok(&dev.run(&["dev", "up"]));
    ok(&dev.run(&["recv", "a", "-n", "3", "--timeout", "20s"]));
    ok(&dev.run(&["dev", "down"]));
    fs::remove_dir_all(dev.node("data")).unwrap();
    fs::rename(dev.path("backup"), dev.node("data")).unwrap();
    ok(&dev.run(&["dev", "up"]));
    let again = dev.run(&["recv", "a", "-n", "3", "--timeout", "20s", "--json"]);
    assert_eq!(column(&again, "body"), vec![json!("kept"); 3], "the moment of the copy is back");
}

#[test]
fn whoever_uses_a_keyring_that_others_may_read_is_warned() {
    let dev = Dev::up();
    let keyring = dev.directory().join("client.keyring");
    let modes: BTreeSet<u32> = ["client.keyring", "node.keyring"]
        .iter()
        .map(|name| fs::metadata(dev.directory().join(name)).unwrap().permissions().mode() & 0o777)
        .collect();
    assert_eq!(modes, BTreeSet::from([0o600]));
    assert_eq!(errors(&dev.run(&["status"])), "");
    fs::set_permissions(&keyring, fs::Permissions::from_mode(0o644)).unwrap();
    let output = dev.run(&["status", "--json"]);
    ok(&output);
    assert!(errors(&output).contains("chmod 600"), "{}", errors(&output));
    assert_eq!(last(&output)["healthy"], json!(true));
}
