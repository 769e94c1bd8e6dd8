//! Principals on real nodes: who may do what, changes while programs are connected, quotas that others do not notice, who
//! guesses, who joins.

mod cluster;

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use cluster::{Dev, Running, SWARMMQ, column, errors, exits, fails, last, ok, until};
use serde_json::Value;
use swarmmq_client::{ClientKeyring, Message, Options, ProducerOptions, SwarmMq};
use swarmmq_protocol::{
    error::Code,
    frame::FrameReader,
    mac::MacKey,
    session::handshake::{ClientHandshake, HandshakeError},
};

/// Far above what any step here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes a principal; gives the path of its keyring.
fn add(dev: &Dev, name: &str, words: &[&str]) -> String {
    let out = dev.path(&format!("{name}.keyring")).to_str().unwrap().to_owned();
    ok(&dev.run(&[&["access", "add", name, "--out", &out], words].concat()));
    out
}

fn audit(dev: &Dev) -> Vec<Value> {
    let text = fs::read_to_string(dev.directory().join("node-1/data/audit.log")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

#[test]
fn every_principal_can_do_what_its_rules_say_and_nothing_else() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "shop.orders", "one"]));
    ok(&dev.run(&["recv", "shop.orders", "-n", "1"]));
    ok(&dev.run(&["send", "else", "one"]));
    let rules: [(&str, &[&str]); 6] = [
        ("nobody", &[]),
        ("sender", &["--allow", "publish:shop"]),
        ("watcher", &["--allow", "consume:shop"]),
        ("worker", &["--allow", "consume:shop", "--allow", "settle:shop"]),
        ("keeper", &["--allow", "admin:shop"]),
        ("ops", &["--allow", "admin:*"]),
    ];
    // What, and who may.
    let requests: [(&[&str], &[&str]); 9] = [
        (&["send", "shop.orders", "two"], &["sender"]),
        (&["recv", "shop.orders", "--peek"], &["watcher", "worker"]),
        (&["recv", "shop.orders", "-n", "1", "--timeout", "20s"], &["worker"]),
        (&["address", "info", "shop.orders"], &["sender", "watcher", "worker", "keeper", "ops"]),
        (&["address", "set", "shop.orders", "--lease", "40s"], &["keeper", "ops"]),
        (&["address", "create", "shop.more"], &["keeper", "ops"]),
        (&["group", "seek", "shop.orders", "default", "--to", "end", "--dry-run"], &["keeper", "ops"]),
        (&["access", "ls"], &["ops"]),
        (&["settings", "ls"], &["ops"]),
    ];
    let mut refused = 0;
    for (name, words) in rules {
        let keyring = add(&dev, name, words);
        for (request, allowed) in requests {
            let output = dev.run(&[request, &["--keyring", &keyring]].concat());
            if allowed.contains(&name) {
                assert_eq!(output.status.code(), Some(0), "{name} {request:?}: {}", errors(&output));
            } else {
                assert_eq!(output.status.code(), Some(4), "{name} {request:?}: {}", errors(&output));
                refused += 1;
            }
        }
        // Nothing anywhere else, for anybody but who administrates everything.
        let elsewhere = dev.run(&["address", "info", "else", "--keyring", &keyring]);
        exits(&elsewhere, if name == "ops" { 0 } else { 4 });
        // And nobody makes tokens but root.
        let out = dev.path("stolen.keyring");
        let words = ["access", "add", "x", "--allow", "admin:*", "--keyring", &keyring, "--out"];
        fails(&dev.run(&[&words[..], &[out.to_str().unwrap()]].concat()), 2, &["only from root's"]);
        assert!(!out.exists());
    }
    assert!(refused > 30);
    until("every refusal is written down", PATIENCE, || {
        let lines = audit(&dev);
        let refusals = lines.iter().filter(|line| line["code"] == "not_allowed");
        refusals.map(|line| line["count"].as_u64().unwrap()).sum::<u64>() >= refused
    });
    let lines = audit(&dev);
    let line = |principal: &str, verb: &str, address: &str, code: &str| {
        lines.iter().any(|line| {
            let is = |field: &str, value: &str| line[field] == value;
            is("principal", principal)
                && is("verb", verb)
                && is("address", address)
                && is("code", code)
                && is("source", "127.0.0.1")
        })
    };
    assert!(
        line("nobody", "publish", "*", "not_allowed") || line("nobody", "look", "shop.orders", "not_allowed")
    );
    assert!(
        line("root", "access add", "keeper", "ok") && line("keeper", "address create", "shop.more", "ok")
    );
    assert!(line("sender", "admin", "*", "not_allowed"));
    let metrics = cluster::get(&dev.node("admin"), "/metrics").1;
    assert!(metrics.contains("swarmmq_refusals_total{reason=\"not_allowed\"}"), "{metrics}");
}

#[test]
fn changes_hold_for_programs_that_are_connected() {
    let dev = Dev::up();
    ok(&dev.run(&["send", "shop.orders", "one"]));
    let keyring = add(&dev, "worker", &["--allow", "use:shop", "--quota", "groups=1"]);
    let start = || {
        let mut command =
            dev.command(&["--json", "recv", "shop.orders", "--group", "g", "--keyring", &keyring]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running(child)
    };
    let in_group = |count: u64| {
        until("the group is done with it", PATIENCE, || {
            let info = dev.run(&["--json", "address", "info", "shop.orders"]);
            let groups = last(&info)["groups"].as_array().cloned().unwrap_or_default();
            groups.iter().any(|group| group["name"] == "g" && group["lag_messages"] == count)
        });
    };
    let running = start();
    ok(&dev.run(&["send", "shop.orders", "two"]));
    in_group(0);
    // Less than it needs: it is refused when it comes back.
    ok(&dev.run(&["access", "deny", "worker", "consume:shop"]));
    assert_eq!(running.code(), Some(4));
    ok(&dev.run(&["access", "allow", "worker", "consume:shop"]));
    let running = start();
    ok(&dev.run(&["send", "shop.orders", "three"]));
    in_group(0);
    // Kept out, it waits; let in again, it goes on.
    ok(&dev.run(&["access", "disable", "worker"]));
    ok(&dev.run(&["send", "shop.orders", "four"]));
    in_group(1);
    ok(&dev.run(&["access", "enable", "worker"]));
    in_group(0);
    drop(running);
    ok(&dev.run(&["access", "disable", "worker"]));
    let words = ["send", "shop.orders", "x", "--keyring", &keyring];
    fails(&dev.run(&words), 4, &["no enabled principal"]);
    ok(&dev.run(&["access", "enable", "worker"]));
    ok(&dev.run(&words));

    // The next token, beside the one before; then without it.
    let out = dev.path("next.keyring").to_str().unwrap().to_owned();
    ok(&dev.run(&["access", "rotate", "worker", "--overlap", "1h", "--out", &out]));
    ok(&dev.run(&words));
    ok(&dev.run(&["send", "shop.orders", "x", "--keyring", &out]));
    let again = dev.path("again.keyring").to_str().unwrap().to_owned();
    ok(&dev.run(&["access", "rotate", "worker", "--overlap", "0", "--out", &again]));
    exits(&dev.run(&words), 4);
    exits(&dev.run(&["send", "shop.orders", "x", "--keyring", &out]), 4);
    ok(&dev.run(&["send", "shop.orders", "x", "--keyring", &again]));
    let shown = dev.run(&["--json", "access", "show", "worker"]);
    assert_eq!(last(&shown)["generation"], 3);
    // All of it is there after a crash, and a removed principal's token does not come back with its name.
    dev.crash_and_start();
    ok(&dev.run(&["send", "shop.orders", "x", "--keyring", &again]));
    ok(&dev.run(&["access", "remove", "worker"]));
    add(&dev, "worker-2", &[]);
    let back = dev.path("back.keyring").to_str().unwrap().to_owned();
    ok(&dev.run(&["access", "add", "worker", "--allow", "use:shop", "--out", &back]));
    exits(&dev.run(&["send", "shop.orders", "x", "--keyring", &again]), 4);
    ok(&dev.run(&["send", "shop.orders", "x", "--keyring", &back]));
    assert_eq!(column(&dev.run(&["--json", "access", "ls"]), "principals")[0].as_array().unwrap().len(), 2);
}

async fn client(dev: &Dev, keyring: &str) -> SwarmMq {
    let keyring = ClientKeyring::load(Path::new(keyring)).unwrap();
    SwarmMq::connect(Options::new(vec![dev.node("client")], keyring)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_too_much_is_slowed_and_others_do_not_notice() {
    /// What the offender may send in a second.
    const RATE: u64 = 200;
    /// Bound on the 99th percentile of whoever behaves, with room for a busy machine.
    const P99_MAX: Duration = Duration::from_millis(500);
    let dev = Dev::up();
    ok(&dev.run(&["address", "create", "shop.a"]));
    ok(&dev.run(&["address", "create", "shop.b"]));
    let quota = format!("messages-per-second={RATE}");
    let greedy = add(&dev, "greedy", &["--allow", "publish:shop", "--quota", &quota]);
    let modest = add(&dev, "modest", &["--allow", "publish:shop"]);
    let (greedy, modest) = (client(&dev, &greedy).await, client(&dev, &modest).await);
    let begun = Instant::now();
    let flood = tokio::spawn(async move {
        let producer = greedy.producer(ProducerOptions::default());
        let mut stored = 0u64;
        let mut pending = Vec::new();
        // At full speed: as much as a producer lets in.
        while begun.elapsed() < Duration::from_secs(5) {
            pending.push(producer.enqueue(Message::new("shop.a", vec![0; 100])).await.unwrap());
            if pending.len() >= 1000 {
                for receipt in pending.drain(..) {
                    receipt.await.unwrap();
                    stored += 1;
                }
            }
        }
        (stored, greedy, producer)
    });
    let producer = modest.producer(ProducerOptions::default());
    let mut times = Vec::new();
    while begun.elapsed() < Duration::from_secs(5) {
        let sent = Instant::now();
        producer.send(Message::new("shop.b", "x")).await.expect("nothing of it fails");
        times.push(sent.elapsed());
    }
    times.sort();
    let p99 = times[times.len() * 99 / 100];
    assert!(times.len() >= 50 && p99 < P99_MAX, "{} messages, p99 {p99:?}", times.len());
    let (stored, _greedy, _producer) = flood.await.unwrap();
    let seconds = begun.elapsed().as_secs() + 2;
    // A frame that is taken may hold many; what it held is paid for before the next.
    assert!(stored <= RATE * seconds + 4096, "{stored} messages within {seconds} s");
    let metrics = cluster::get(&dev.node("admin"), "/metrics").1;
    let pauses = metrics.lines().find(|line| line.starts_with("swarmmq_pauses_total ")).unwrap();
    assert!(!pauses.ends_with(" 0"), "{pauses}");
}

/// One guess at root's token. What the node said.
fn guess(address: &str, number: u64) -> Option<Code> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(address).unwrap();
    let mut token = [0x55; 32];
    token[..8].copy_from_slice(&number.to_be_bytes());
    let mut out = BytesMut::new();
    let mut handshake = ClientHandshake::start(MacKey::new(token), "root", [7; 32], &mut out);
    let mut reader = FrameReader::new();
    loop {
        // Whoever is refused at once may be closed before it has spoken.
        let _closed = stream.write_all(&out.split()).is_err();
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).unwrap_or(0);
        if count == 0 {
            return None;
        }
        reader.buffer().extend_from_slice(&bytes[..count]);
        while let Some((header, body)) = reader.next_frame().unwrap() {
            match handshake.frame(header, body, &mut out) {
                Ok(None) => {}
                Ok(Some(_)) => panic!("guess {number} was right"),
                Err(HandshakeError::Refused { code, .. }) => return Code::from_number(code),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn of_ten_thousand_guesses_few_are_looked_at_and_programs_that_are_connected_go_on() {
    // Guesses are raw frames.
    let dev = Dev::up_in_plain_text();
    ok(&dev.run(&["send", "shop.orders", "one"]));
    let mut command = dev.command(&["--json", "recv", "shop.orders", "-n", "2", "--timeout", "120s"]);
    let running = Running(command.stdout(Stdio::null()).spawn().unwrap());
    until("it is connected", PATIENCE, || {
        let info = dev.run(&["--json", "address", "info", "shop.orders"]);
        last(&info)["groups"][0]["lag_messages"] == 0
    });
    let address = dev.node("client");
    let begun = Instant::now();
    let mut looked_at = 0;
    for number in 0..10_000 {
        looked_at += u64::from(guess(&address, number) == Some(Code::Unauthenticated));
    }
    let took = begun.elapsed();
    // Five, and one after each pause of 1, 2, 4, ... s.
    let pauses = (0..).take_while(|power| (1u64 << power) - 1 <= took.as_secs()).count() as u64;
    assert!((5..=5 + pauses).contains(&looked_at), "{looked_at} in {took:?}");
    until("the pause is over and the right token counts", Duration::from_secs(150), || {
        dev.run(&["send", "shop.orders", "two"]).status.code() == Some(0)
    });
    assert_eq!(running.code(), Some(0), "its connection was not touched");
    let lines = audit(&dev);
    let throttled: u64 = lines
        .iter()
        .filter(|line| line["code"] == "throttled")
        .map(|line| line["count"].as_u64().unwrap())
        .sum();
    assert!(throttled > 9_000 && lines.len() < 500, "{throttled} in {} lines", lines.len());
}

/// A node of a cluster made by hand.
struct Hand {
    directory: PathBuf,
    peer: String,
    client: String,
    admin: String,
}

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn by_hand(root: &Path, name: &str, id: u16, seeds: &[&str]) -> Hand {
    let directory = root.join(name);
    fs::create_dir_all(&directory).unwrap();
    let [client, peer, gossip, admin] =
        [port(), port(), port(), port()].map(|port| format!("127.0.0.1:{port}"));
    let text = format!(
        "[node]\nid = {id}\ndata = \"data\"\nkeyring = \"../node.keyring\"\n[listen]\ninsecure_plaintext = true\nclient = \"{client}\"\npeer = \"{peer}\"\ngossip = \"{gossip}\"\nadmin = \"{admin}\"\n[cluster]\nseeds = {seeds:?}\n"
    );
    fs::write(directory.join("node.toml"), text).unwrap();
    Hand { directory, peer, client, admin }
}

impl Hand {
    fn config(&self) -> String {
        self.directory.join("node.toml").to_str().unwrap().to_owned()
    }

    fn start(&self, token: Option<&str>) -> Running {
        let mut command = Command::new(SWARMMQ);
        command.args(["node", "--config", &self.config()]).env_remove("SWARMMQ_KEYRING");
        if let Some(token) = token {
            let path = self.directory.join("token");
            fs::write(&path, token).unwrap();
            command.args(["--join-token", path.to_str().unwrap()]);
        }
        let log = fs::File::create(self.directory.join("node.log")).unwrap();
        Running(command.stdin(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn said(&self) -> String {
        fs::read_to_string(self.directory.join("node.log")).unwrap_or_default()
    }
}

#[test]
fn a_node_joins_with_a_token_once_and_with_no_other() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let run = |words: &[&str]| Command::new(SWARMMQ).args(words).stdin(Stdio::null()).output().unwrap();
    let keys = root.join("client.keyring").to_str().unwrap().to_owned();
    ok(&run(&["keys", "generate", "--insecure-plaintext", "--out", root.to_str().unwrap()]));
    let first = by_hand(root, "one", 1, &[]);
    ok(&run(&["init", "--config", &first.config()]));
    let _first = first.start(None);
    let asks =
        |words: &[&str]| run(&[words, &["--json", "--servers", &first.client, "--keyring", &keys]].concat());
    until("the first node serves", PATIENCE, || asks(&["status"]).status.code() == Some(0));
    let status = asks(&["status"]);
    assert_eq!(last(&status)["open_join"], false);
    let members = || last(&asks(&["status"]))["nodes"].as_array().unwrap().len();
    let token = |words: &[&str]| {
        let made = asks(&[&["node", "token"], words].concat());
        ok(&made);
        last(&made)["token"].as_str().unwrap().to_owned()
    };
    let audited = |code: &str| {
        let text = fs::read_to_string(first.directory.join("data/audit.log")).unwrap_or_default();
        text.lines().any(|line| line.contains("\"join\"") && line.contains(&format!("\"{code}\"")))
    };

    // Without one, with an old one, with one for another number: refused by name, and written down.
    let two = by_hand(root, "two", 2, &[&first.peer]);
    let old = token(&["--expires", "1ms"]);
    let other = token(&["--node", "7"]);
    for (text, code) in [
        (None, ["join_required", "joining needs a token"]),
        (Some(old.as_str()), ["join_expired", "is too old"]),
        (Some(other.as_str()), ["join_other_node", "a node of another number"]),
    ] {
        let running = two.start(text);
        let [code, words] = code;
        until(code, PATIENCE, || audited(code) && two.said().contains(words));
        drop(running);
        assert_eq!(members(), 1, "{code}");
    }
    assert!(!two.directory.join("data/identity.toml").exists(), "nothing was learned");

    // A mistyped one is told apart at once, and so is what is none.
    let good = token(&[]);
    let digit = if good.ends_with('0') { "1" } else { "0" };
    fs::write(root.join("wrong"), format!("{}{digit}", &good[..good.len() - 1])).unwrap();
    let wrong = root.join("wrong");
    let words = ["node", "--config", &two.config(), "--join-token", wrong.to_str().unwrap()];
    fails(&run(&words), 2, &["mistyped"]);

    // With the right one it becomes a member; it starts again without.
    let running = two.start(Some(&good));
    until("the second node is a member", PATIENCE, || members() == 2);
    until("and is ready", PATIENCE, || cluster::get(&two.admin, "/readyz").0 == 200);
    drop(running);
    let _two = two.start(None);
    until("it is back", PATIENCE, || {
        TcpStream::connect(&two.admin).is_ok() && cluster::get(&two.admin, "/readyz").0 == 200
    });

    // The same token lets nobody else in.
    let three = by_hand(root, "three", 3, &[&first.peer]);
    let running = three.start(Some(&good));
    until("a used token is refused", PATIENCE, || audited("join_unknown"));
    drop(running);
    assert_eq!(members(), 2);

    // A token of another cluster is none of this one.
    let elsewhere = Dev::up();
    let foreign = last(&elsewhere.run(&["--json", "node", "token"]))["token"].as_str().unwrap().to_owned();
    let running = three.start(Some(&foreign));
    until("a foreign token is refused", PATIENCE, || three.said().contains("never issued by this cluster"));
    drop(running);
    assert_eq!(members(), 2);

    // Once opened, none is needed.
    ok(&asks(&["settings", "set", "cluster.open_join=true"]));
    let _three = three.start(None);
    until("the third node is a member", PATIENCE, || members() == 3);
}
