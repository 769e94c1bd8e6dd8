//! Nodes that want to belong to a cluster, as real processes: who waits, who is let in, who must go.

mod cluster;

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;

use self::cluster::{Dev, Running, get, ok, signal, until};

const PATIENCE: Duration = Duration::from_secs(30);

/// A node of a cluster, made by hand beside the directory of `dev`.
struct Node<'a> {
    dev: &'a Dev,
    name: &'a str,
    admin: String,
    peer: String,
}

impl<'a> Node<'a> {
    fn new(dev: &'a Dev, name: &'a str, id: u16, keys: &str, seeds: &[&str]) -> Self {
        let free = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let [client, admin, peer] = free.map(|listener| listener.local_addr().unwrap().to_string());
        fs::create_dir_all(dev.path(name)).unwrap();
        let ca = dev.directory().join("ca.pem");
        // Beside a cluster that speaks TLS it does so too, with a certificate of the same authority.
        let (listen, tls) = if ca.exists() {
            let number = id.to_string();
            let issue = [
                "certs",
                "issue",
                "--ca",
                ".swarmmq",
                "--out",
                name,
                "--node",
                &number,
                "--hosts",
                "127.0.0.1",
            ];
            ok(&dev.run(&issue));
            let files = format!("certificate = \"node-{id}.pem\"\nkey = \"node-{id}.key\"\nca = {ca:?}\n");
            (String::new(), format!("[tls]\n{files}"))
        } else {
            ("insecure_plaintext = true\n".to_owned(), String::new())
        };
        let text = format!(
            "[node]\nid = {id}\ndata = \"data\"\nkeyring = \"{keys}\"\n\
             [listen]\n{listen}client = \"{client}\"\nadmin = \"{admin}\"\npeer = \"{peer}\"\ngossip = \"{peer}\"\n{tls}\
             [cluster]\nseeds = {seeds:?}\n"
        );
        fs::write(dev.path(name).join("node.toml"), text).unwrap();
        Self { dev, name, admin, peer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dev.path(self.name).join(name)
    }

    fn config(&self) -> String {
        self.path("node.toml").to_str().unwrap().to_owned()
    }

    fn start(&self) -> Running {
        let log = File::create(self.path("log")).unwrap();
        let mut command = self.dev.command(&["node", "--config", &self.config()]);
        Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// What `/readyz` answers, once anything does.
    fn readiness(&self) -> String {
        until("the admin port", PATIENCE, || std::net::TcpStream::connect(&self.admin).is_ok());
        get(&self.admin, "/readyz").1
    }

    fn says(&self, what: &str) {
        until(what, PATIENCE, || self.log().contains(what));
    }

    fn ends_with(&self, mut process: Running, code: i32, words: &[&str]) {
        until("the end", PATIENCE, || process.0.try_wait().unwrap().is_some());
        let log = self.log();
        assert_eq!(process.code(), Some(code), "{log}");
        words.iter().for_each(|word| assert!(log.contains(word), "{word:?} is not in {log}"));
    }
}

/// A directory with keys, as `keys generate` makes them.
fn with_keys() -> Dev {
    let dev = Dev::nothing();
    ok(&dev.run(&["keys", "generate", "--out", "keys", "--insecure-plaintext"]));
    dev
}

const KEYS: &str = "../keys/node.keyring";
const KEYS_OF_DEV: &str = "../.swarmmq/node.keyring";

#[test]
fn an_empty_disk_waits_for_its_seeds_says_so_and_can_be_stopped() {
    let dev = with_keys();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let node = Node::new(&dev, "two", 2, KEYS, &[&nobody]);
    let process = node.start();
    until("the reason", PATIENCE, || node.readiness().contains("refused"));
    assert!(node.readiness().contains(&nobody));
    assert_eq!(get(&node.admin, "/livez").1, "ok\n");
    node.says("waiting for a seed that answers");
    signal(process.pid(), Signal::TERM);
    node.ends_with(process, 0, &["stopped before a seed answered"]);
    assert!(!node.path("data/identity.toml").exists() && !node.path("data/log").exists());
}

#[test]
fn seeds_that_come_later_are_found_and_the_first_node_never_waits() {
    let dev = with_keys();
    let one = Node::new(&dev, "one", 1, KEYS, &[]);
    let two = Node::new(&dev, "two", 2, KEYS, &[&one.peer]);
    let _two = two.start();
    two.says("no link yet");
    let made: Value = cluster::last(&dev.run(&["init", "--open-join", "--config", &one.config(), "--json"]));
    let _one = one.start();
    two.says("found the cluster");
    two.says("a link with another node is up");
    one.says("a link with another node is up");
    let identity = fs::read_to_string(two.path("data/identity.toml")).unwrap();
    assert!(identity.contains(made["cluster"].as_str().unwrap()), "{identity}");
    assert!(identity.contains("founder = false") && identity.contains("shard_count = 16"), "{identity}");
}

#[test]
fn a_number_that_is_taken_ends_the_second_process_and_harms_nobody() {
    let dev = Dev::up();
    let peer = dev.node("peer");
    let impostor = Node::new(&dev, "impostor", 1, KEYS_OF_DEV, &[&peer]);
    impostor.ends_with(impostor.start(), 2, &["this node's number", "node.id"]);
    assert!(!impostor.path("data/identity.toml").exists());
    ok(&dev.run(&["status"]));
}

#[test]
fn other_keys_are_found_out_and_nothing_is_learned() {
    let dev = Dev::up();
    ok(&dev.run(&["keys", "generate", "--out", "keys", "--insecure-plaintext"]));
    let peer = dev.node("peer");
    let stranger = Node::new(&dev, "stranger", 2, KEYS, &[&peer]);
    let process = stranger.start();
    until("the reason", PATIENCE, || stranger.readiness().contains("secret does not match"));
    signal(process.pid(), Signal::TERM);
    stranger.ends_with(process, 0, &["secret does not match"]);
    assert!(!stranger.path("data/identity.toml").exists());
    ok(&dev.run(&["status"]));
}

#[test]
fn a_node_of_another_cluster_is_not_taken_for_a_member_not_even_at_its_address() {
    let dev = with_keys();
    let one = Node::new(&dev, "one", 1, KEYS, &[]);
    let two = Node::new(&dev, "two", 2, KEYS, &[&one.peer]);
    ok(&dev.run(&["init", "--open-join", "--config", &one.config()]));
    let process = one.start();
    let _two = two.start();
    two.says("a link with another node is up");
    signal(process.pid(), Signal::TERM);
    one.ends_with(process, 0, &[]);

    // The same number, the same keys, the same addresses.
    let other = Node { dev: &dev, name: "other", admin: one.admin.clone(), peer: one.peer.clone() };
    fs::create_dir(dev.path("other")).unwrap();
    fs::copy(one.path("node.toml"), other.path("node.toml")).unwrap();
    ok(&dev.run(&["init", "--open-join", "--config", &other.config()]));
    let _other = other.start();
    two.says("this side belongs to cluster");
    assert!(!other.log().contains("a link with another node is up"), "{}", other.log());
}
