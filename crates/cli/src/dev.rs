//! `dev`: a local cluster of real processes, without a supervisor. What runs is written in `cluster.json`.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use clap::Subcommand;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, flock},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use swarmmq_client::{Options, SwarmMq};
use swarmmq_protocol::admin::{AdminAnswer, AdminRequest};

use crate::{
    discover::{CLUSTER, LOCAL, load_keyring},
    keys,
    output::{Failure, Outcomes, print, say},
    ports,
};

/// Time for a node to serve.
const START_TIME_MAX: Duration = Duration::from_secs(20);
/// Time for a node to drain.
const STOP_TIME_MAX: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);

/// What to do with a local cluster.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// Make a local cluster, or start the one that is there
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
        nodes: u16,
        /// Where it lives
        #[arg(long, default_value = LOCAL)]
        dir: PathBuf,
        /// Node i has ports P+10(i-1) to P+10(i-1)+3; without it, a free block
        #[arg(long, value_name = "P")]
        base_port: Option<u16>,
    },
    /// Stop every node; data stays
    Down {
        /// Where it lives
        #[arg(long, default_value = LOCAL)]
        dir: PathBuf,
    },
    /// Which nodes run
    Status {
        /// Where it lives
        #[arg(long, default_value = LOCAL)]
        dir: PathBuf,
    },
    /// End a node at once (SIGKILL)
    Kill {
        /// Which
        node: u16,
        /// Where it lives
        #[arg(long, default_value = LOCAL)]
        dir: PathBuf,
    },
    /// Start a stopped node
    Start {
        /// Which
        node: u16,
        /// Where it lives
        #[arg(long, default_value = LOCAL)]
        dir: PathBuf,
    },
    /// Print exports that point clients to it
    Env {
        /// Where it lives
        #[arg(long, default_value = LOCAL)]
        dir: PathBuf,
    },
}

/// Does it.
pub(crate) fn run(command: &DevCommand, as_json: bool) -> Outcomes<u8> {
    let cluster = match command {
        DevCommand::Up { nodes, dir, base_port } => up(dir, *nodes, *base_port)?,
        DevCommand::Down { dir } => down(dir)?,
        DevCommand::Status { dir } => Cluster::load(dir)?,
        DevCommand::Kill { node, dir } => kill(dir, *node)?,
        DevCommand::Start { node, dir } => start(dir, *node)?,
        DevCommand::Env { dir } => {
            env(&Cluster::load(dir)?, as_json);
            return Ok(0);
        }
    };
    show(&cluster, as_json);
    Ok(0)
}

/// One node of a local cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: u16,
    pub(crate) pid: Option<i32>,
    pub(crate) client: String,
    pub(crate) peer: String,
    pub(crate) gossip: String,
    pub(crate) admin: String,
    pub(crate) config: PathBuf,
    pub(crate) data: PathBuf,
}

/// `cluster.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) cluster: String,
    pub(crate) keyring: PathBuf,
    pub(crate) nodes: Vec<Node>,
}

impl Cluster {
    fn path(directory: &Path) -> PathBuf {
        directory.join(CLUSTER)
    }

    /// Reads it and forgets processes that are gone.
    pub(crate) fn load(directory: &Path) -> Outcomes<Self> {
        let path = Self::path(directory);
        let text = fs::read_to_string(&path).map_err(|error| {
            Failure::local(
                format!("no local cluster in {}: {error}", directory.display()),
                "make one with `swarmmq dev up --nodes 1`",
            )
        })?;
        let mut cluster: Self = serde_json::from_str(&text).map_err(|error| {
            Failure::local(
                format!("{} is damaged: {error}", path.display()),
                "restore it: ports and keyrings are in node-1/node.toml beside it; the messages are in node-1/data",
            )
        })?;
        for node in &mut cluster.nodes {
            node.pid = node.pid.filter(|pid| is_node(*pid, &node.config));
        }
        Ok(cluster)
    }

    fn save(&self, directory: &Path) -> Outcomes<()> {
        let text = serde_json::to_string(self).expect("plain fields can be written");
        let temporary = directory.join("cluster.json.tmp");
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, Self::path(directory)));
        written.map_err(|error| local(directory, &error))
    }

    fn node_mut(&mut self, id: u16) -> Outcomes<&mut Node> {
        self.nodes
            .iter_mut()
            .find(|node| node.id == id)
            .ok_or_else(|| Failure::usage(format!("there is no node {id}"), "see `swarmmq dev status`"))
    }
}

fn local(directory: &Path, error: &std::io::Error) -> Failure {
    Failure::local(
        format!("cannot write in {}: {error}", directory.display()),
        "check the directory and its disk",
    )
}

/// Whether `pid` is a node of ours: process numbers are used again. One that is ending is waited for: it still holds its
/// data directory and its ports.
fn is_node(pid: i32, config: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    if line.is_empty() {
        // Its memory has gone already, its files perhaps not. (A dead one counts as ended at once.)
        wait_gone(pid, STOP_TIME_MAX);
        return false;
    }
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    words.contains(&b"node".as_slice()) && words.contains(&config.as_os_str().as_encoded_bytes())
}

/// Waits until every thread of a process has ended and its files are closed. False: it did not in time.
fn wait_gone(pid: i32, limit: Duration) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return true };
    // What cannot be opened is not there any more.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Ok(0) => return false,
            Ok(_) => return true,
            // A signal came in between.
            Err(_) if Instant::now() < deadline => {}
            Err(_) => return false,
        }
    }
}

/// One `dev` command at a time works on a directory; the others wait.
fn lock(directory: &Path) -> Outcomes<File> {
    let path = directory.join("dev.lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| local(directory, &error))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| local(directory, &error.into()))?;
    Ok(file)
}

/// The absolute path of a directory that must hold a cluster.
fn existing(directory: &Path) -> Outcomes<PathBuf> {
    Cluster::load(directory)?;
    directory.canonicalize().map_err(|error| local(directory, &error))
}

/// `dev up`.
pub(crate) fn up(directory: &Path, nodes: u16, base_port: Option<u16>) -> Outcomes<Cluster> {
    if nodes != 1 {
        return Err(Failure::usage(
            format!("--nodes {nodes}: several nodes come with replication, which is not built yet"),
            "use --nodes 1",
        ));
    }
    if base_port.is_some() {
        ports::block(nodes, base_port)?;
    }
    fs::create_dir_all(directory).map_err(|error| local(directory, &error))?;
    let directory = &directory.canonicalize().map_err(|error| local(directory, &error))?;
    let _lock = lock(directory)?;
    let mut cluster = if Cluster::path(directory).exists() {
        let cluster = Cluster::load(directory)?;
        let base = cluster.nodes.first().and_then(|node| node.client.rsplit_once(':')?.1.parse().ok());
        if base_port.is_some() && base_port != base {
            return Err(Failure::usage(
                format!("{} holds a cluster with other ports", directory.display()),
                "leave --base-port out, or use another --dir",
            ));
        }
        if cluster.nodes.len() != usize::from(nodes) {
            return Err(Failure::usage(
                format!("{} holds a cluster of {} nodes", directory.display(), cluster.nodes.len()),
                "use another --dir for another cluster",
            ));
        }
        cluster
    } else {
        refuse_leftovers(directory)?;
        make(directory, nodes, base_port)?
    };
    for id in 1..=nodes {
        start_node(directory, &mut cluster, id)?;
    }
    Ok(cluster)
}

/// A cluster whose `cluster.json` is gone is not made anew over its keys and data.
fn refuse_leftovers(directory: &Path) -> Outcomes<()> {
    let left = ["client.keyring", "node.keyring", "node-1"].map(|name| directory.join(name));
    let Some(left) = left.iter().find(|path| path.exists()) else { return Ok(()) };
    Err(Failure::local(
        format!("there is {} but no {CLUSTER} beside it", left.display()),
        "if an interrupted `dev up` left this, remove the directory; otherwise restore cluster.json, or use another --dir",
    ))
}

fn make(directory: &Path, nodes: u16, base_port: Option<u16>) -> Outcomes<Cluster> {
    let base = ports::block(nodes, base_port)?;
    keys::generate(directory)?;
    let mut made = Vec::new();
    let mut name = String::new();
    for id in 1..=nodes {
        let port = |offset: u16| format!("127.0.0.1:{}", base + ports::PER_NODE * (id - 1) + offset);
        let folder = directory.join(format!("node-{id}"));
        fs::create_dir_all(&folder).map_err(|error| local(&folder, &error))?;
        let node = Node {
            id,
            pid: None,
            client: port(0),
            peer: port(1),
            gossip: port(2),
            admin: port(3),
            config: folder.join("node.toml"),
            data: folder.join("data"),
        };
        let text = format!(
            "[node]\nid = {id}\ndata = \"data\"\nroles = [\"ingress\", \"router\", \"store\"]\nkeyring = \"../node.keyring\"\n\n\
             [listen]\nclient = \"{}\"\npeer = \"{}\"\ngossip = \"{}\"\nadmin = \"{}\"\n\n[cluster]\nseeds = [\"127.0.0.1:{}\"]\n",
            node.client,
            node.peer,
            node.gossip,
            node.admin,
            base + 1
        );
        fs::write(&node.config, text).map_err(|error| local(&folder, &error))?;
        if id == 1 {
            name = swarmmq_server::init(&node.config)?.cluster;
        }
        made.push(node);
    }
    let cluster = Cluster { cluster: name, keyring: directory.join("client.keyring"), nodes: made };
    cluster.save(directory)?;
    Ok(cluster)
}

/// Starts a node, unless it runs, and waits until clients can use it.
fn start_node(directory: &Path, cluster: &mut Cluster, id: u16) -> Outcomes<()> {
    let keyring = load_keyring(&cluster.keyring.to_string_lossy())?;
    let log = directory.join(format!("node-{id}/node.log"));
    let node = cluster.node_mut(id)?.clone();
    let options = Options::new(vec![node.client.clone()], keyring);
    if let Some(pid) = node.pid {
        let result = if serves(pid, &node) { wait_healthy(options.clone(), id, &log) } else { Ok(()) };
        // One that was killed a moment ago looks alive until it ends.
        if is_node(pid, &node.config) {
            return result;
        }
        cluster.node_mut(id)?.pid = None;
    }
    spawn_node(directory, cluster, id, &log)?;
    wait_healthy(options, id, &log)
}

/// Waits until a node that was there before answers. False: it ended.
fn serves(pid: i32, node: &Node) -> bool {
    let deadline = Instant::now() + START_TIME_MAX;
    while is_node(pid, &node.config) {
        if is_ready(&node.admin) || Instant::now() > deadline {
            return true;
        }
        std::thread::sleep(POLL);
    }
    false
}

fn spawn_node(directory: &Path, cluster: &mut Cluster, id: u16, log: &Path) -> Outcomes<()> {
    let node = cluster.node_mut(id)?.clone();
    let written_before = fs::metadata(log).map_or(0, |metadata| metadata.len()) as usize;
    let output =
        OpenOptions::new().create(true).append(true).open(log).map_err(|error| local(directory, &error))?;
    let errors = output.try_clone().map_err(|error| local(directory, &error))?;
    let program = std::env::current_exe().map_err(|error| local(directory, &error))?;
    let child = Command::new(program)
        .args(["node", "--own-session", "--config"])
        .arg(&node.config)
        .env_remove("SWARMMQ_KEYRING")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|error| {
            Failure::local(format!("cannot start node {id}: {error}"), "check the program's permissions")
        })?;
    cluster.node_mut(id)?.pid = i32::try_from(child.id()).ok();
    // Written before it serves: a node that runs is never forgotten.
    cluster.save(directory)?;
    wait_ready(child, &node, log, written_before).inspect_err(|_| {
        if let Ok(node) = cluster.node_mut(id) {
            node.pid = node.pid.filter(|pid| is_node(*pid, &node.config));
        }
        // The failure to start is the better story.
        let _unsaved = cluster.save(directory).is_err();
    })
}

/// Waits until the node says that it serves.
fn wait_ready(mut child: Child, node: &Node, log: &Path, written_before: usize) -> Outcomes<()> {
    let id = node.id;
    let deadline = Instant::now() + START_TIME_MAX;
    loop {
        // First of all: a stranger who answers on our port does not count.
        if let Ok(Some(status)) = child.try_wait() {
            let said = fs::read(log).unwrap_or_default();
            let said = String::from_utf8_lossy(said.get(written_before..).unwrap_or_default()).into_owned();
            let line =
                |mark: &str| said.lines().find_map(|line| line.trim().strip_prefix(mark).map(str::to_owned));
            let message = line("error: ").unwrap_or_else(|| status.to_string());
            let hint = line("next: ").unwrap_or_else(|| format!("read {}", log.display()));
            let exit = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Err(Failure::new(
                exit.max(1),
                "node_ended",
                format!("node {id} ended at once: {message}"),
                hint,
            ));
        }
        if is_ready(&node.admin) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(not_ready(id, log));
        }
        std::thread::sleep(POLL);
    }
}

fn not_ready(id: u16, log: &Path) -> Failure {
    Failure::new(
        3,
        "not_ready",
        format!("node {id} runs and does not serve after {} s", START_TIME_MAX.as_secs()),
        format!("read {}", log.display()),
    )
}

/// Waits until a client is let in and the cluster is healthy.
fn wait_healthy(options: Options, id: u16, log: &Path) -> Outcomes<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::local(format!("cannot start: {error}"), "check process limits"))?;
    runtime.block_on(async {
        let deadline = tokio::time::Instant::now() + START_TIME_MAX;
        let client = SwarmMq::connect(options).await?;
        loop {
            if let Some(AdminAnswer::Status(report)) = client.admin(AdminRequest::Status).await?
                && report.shards.iter().all(|shard| shard.leader != 0)
            {
                break;
            }
            if tokio::time::Instant::now() > deadline {
                return Err(not_ready(id, log));
            }
            tokio::time::sleep(POLL).await;
        }
        client.close().await;
        Ok(())
    })
}

fn is_ready(admin: &str) -> bool {
    http_get(admin, "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// The answer to a GET on loopback, head and body.
fn http_get(address: &str, path: &str) -> Option<String> {
    let address: SocketAddr = address.parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// `dev start N`.
pub(crate) fn start(directory: &Path, id: u16) -> Outcomes<Cluster> {
    let directory = existing(directory)?;
    let _lock = lock(&directory)?;
    let mut cluster = Cluster::load(&directory)?;
    start_node(&directory, &mut cluster, id)?;
    Ok(cluster)
}

fn signal(pid: i32, signal: Signal) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// `dev kill N`: SIGKILL.
pub(crate) fn kill(directory: &Path, id: u16) -> Outcomes<Cluster> {
    let directory = existing(directory)?;
    let _lock = lock(&directory)?;
    let mut cluster = Cluster::load(&directory)?;
    let node = cluster.node_mut(id)?;
    let Some(pid) = node.pid.take() else {
        cluster.save(&directory)?;
        return Err(Failure::new(
            1,
            "not_running",
            format!("node {id} does not run"),
            "see `swarmmq dev status`",
        ));
    };
    signal(pid, Signal::KILL);
    if !wait_gone(pid, STOP_TIME_MAX) {
        return Err(Failure::new(1, "still_running", format!("node {id} does not end"), "look at its disk"));
    }
    cluster.save(&directory)?;
    Ok(cluster)
}

/// `dev down`: SIGTERM to all; data stays.
pub(crate) fn down(directory: &Path) -> Outcomes<Cluster> {
    let directory = existing(directory)?;
    let _lock = lock(&directory)?;
    let mut cluster = Cluster::load(&directory)?;
    for pid in cluster.nodes.iter().filter_map(|node| node.pid) {
        signal(pid, Signal::TERM);
    }
    let mut stuck = Vec::new();
    for node in &mut cluster.nodes {
        let Some(pid) = node.pid else { continue };
        if wait_gone(pid, STOP_TIME_MAX) {
            node.pid = None;
        } else {
            stuck.push(node.id);
        }
    }
    cluster.save(&directory)?;
    if stuck.is_empty() {
        return Ok(cluster);
    }
    Err(Failure::new(
        1,
        "still_running",
        format!("nodes {stuck:?} do not stop"),
        "`swarmmq dev kill N` ends them",
    ))
}

fn show(cluster: &Cluster, as_json: bool) {
    if as_json {
        print(cluster);
        return;
    }
    say(format!("cluster {}", cluster.cluster));
    for node in &cluster.nodes {
        let state = node.pid.map_or("stopped".to_owned(), |pid| format!("running, pid {pid}"));
        say(format!("node {}: {state}; client {}, admin http://{}", node.id, node.client, node.admin));
    }
}

fn env(cluster: &Cluster, as_json: bool) {
    let servers: Vec<&str> = cluster.nodes.iter().map(|node| node.client.as_str()).collect();
    let (servers, keyring) = (servers.join(","), cluster.keyring.to_string_lossy());
    if as_json {
        print(&json!({"SWARMMQ_SERVERS": servers, "SWARMMQ_KEYRING": keyring}));
        return;
    }
    say(format!("export SWARMMQ_SERVERS={servers}"));
    // Single quotes: the path may hold anything.
    say(format!("export SWARMMQ_KEYRING='{}'", keyring.replace('\'', "'\\''")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_json_has_the_promised_shape() {
        let node = Node {
            id: 1,
            pid: None,
            client: "127.0.0.1:20000".into(),
            peer: "127.0.0.1:20001".into(),
            gossip: "127.0.0.1:20002".into(),
            admin: "127.0.0.1:20003".into(),
            config: "d/node-1/node.toml".into(),
            data: "d/node-1/data".into(),
        };
        let cluster = Cluster { cluster: "c".into(), keyring: "d/client.keyring".into(), nodes: vec![node] };
        assert_eq!(
            serde_json::to_string(&cluster).unwrap(),
            r#"{"cluster":"c","keyring":"d/client.keyring","nodes":[{"id":1,"pid":null,"client":"127.0.0.1:20000","peer":"127.0.0.1:20001","gossip":"127.0.0.1:20002","admin":"127.0.0.1:20003","config":"d/node-1/node.toml","data":"d/node-1/data"}]}"#
        );
    }

    #[test]
    fn a_process_that_is_no_node_of_ours_is_not_taken_for_one() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!is_node(own, Path::new("d/node-1/node.toml")));
        assert!(!is_node(i32::MAX, Path::new("d/node-1/node.toml")));
    }

    #[test]
    fn several_nodes_are_refused_until_there_is_replication() {
        let failure = up(Path::new("unused"), 5, None).unwrap_err();
        assert_eq!(failure.exit, 2);
        assert!(failure.message.contains("replication"), "{}", failure.message);
    }
}
