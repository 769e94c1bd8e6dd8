//! Several real nodes of one cluster, each with a directory of its own, and load through all of them that is checked.
//!
//! The nodes are made by hand and not by `dev up`, because here they lie on disks of their own, run under other programs,
//! and end in every way there is.
#![allow(dead_code, reason = "every test file uses another part of this")]

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::cluster::{self, Dev, Running, SWARMMQ, ok, read_lines, signal, until};

/// Time for anything that a cluster does by itself.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster.
pub struct Swarm {
    /// Where it lives; dropped after its processes.
    pub nodes: Vec<Member>,
    dev: Dev,
}

/// One node of it.
pub struct Member {
    /// Its number, from 1.
    pub id: u16,
    /// Where clients connect.
    pub client: String,
    /// Where it tells how it is.
    pub admin: String,
    peer: String,
    /// Its data directory.
    pub data: PathBuf,
    folder: PathBuf,
    process: Option<Running>,
}

impl Member {
    /// Its process, which must run.
    pub fn pid(&self) -> i32 {
        self.process.as_ref().expect("the node runs").pid()
    }

    /// Whether it was started and has not ended.
    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.0.try_wait().unwrap().is_none())
    }

    /// All that it ever said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// A number that it shows.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let answer = std::panic::catch_unwind(|| cluster::get(&self.admin, "/metrics")).ok()?.1;
        let line = answer.lines().find(|line| line.split(['{', ' ']).next() == Some(name))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    /// Memory that it holds, in MiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default() >> 10
    }
}

impl Swarm {
    /// So many nodes, healthy.
    pub fn up(count: u16) -> Self {
        Self::on(count, |_| None)
    }

    /// So many nodes, healthy, each with its data where `place` says, or in its own directory.
    pub fn on(count: u16, place: impl Fn(u16) -> Option<PathBuf>) -> Self {
        let dev = Dev::nothing();
        ok(&dev.run(&["keys", "generate", "--out", "keys", "--insecure-plaintext"]));
        // All at once, so that no two get the same.
        let free: Vec<_> = (0..3 * count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let port = |n: u16| free[usize::from(n)].local_addr().unwrap().to_string();
        let first_peer = port(1);
        let mut nodes = Vec::new();
        for id in 1..=count {
            let at = 3 * (id - 1);
            let folder = dev.path(&format!("node-{id}"));
            fs::create_dir_all(&folder).unwrap();
            let data = place(id).unwrap_or_else(|| folder.join("data"));
            let [client, peer, admin] = [port(at), port(at + 1), port(at + 2)];
            let text = format!(
                "[node]\nid = {id}\ndata = {data:?}\nkeyring = \"../keys/node.keyring\"\n\
                 [listen]\ninsecure_plaintext = true\nclient = \"{client}\"\nadmin = \"{admin}\"\npeer = \"{peer}\"\ngossip = \"{peer}\"\n\
                 [cluster]\nseeds = [\"{first_peer}\"]\n"
            );
            fs::write(folder.join("node.toml"), text).unwrap();
            nodes.push(Member { id, client, admin, peer, data, folder, process: None });
        }
        drop(free);
        let mut swarm = Self { nodes, dev };
        let config = swarm.nodes[0].folder.join("node.toml");
        ok(&swarm.dev.run(&["init", "--open-join", "--config", config.to_str().unwrap()]));
        (0..usize::from(count)).for_each(|at| swarm.start(at));
        swarm.heals();
        swarm
    }

    /// Starts a node.
    pub fn start(&mut self, at: usize) {
        self.start_under(at, &[]);
    }

    /// Starts a node by way of another program, with these words before its own.
    pub fn start_under(&mut self, at: usize, words: &[&str]) {
        let node = &mut self.nodes[at];
        assert!(!node.runs(), "node {} runs", node.id);
        let log = File::options().create(true).append(true).open(node.folder.join("log")).unwrap();
        let mut line: Vec<&str> = words.to_vec();
        let config = node.folder.join("node.toml");
        line.extend([SWARMMQ, "node", "--config", config.to_str().unwrap()]);
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).env_remove("SWARMMQ_KEYRING").env_remove("SWARMMQ_SERVERS");
        command.current_dir(&node.folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        node.process = Some(Running(command.spawn().unwrap()));
    }

    /// Ends a node as an accident would.
    pub fn kill(&mut self, at: usize) {
        let process = self.nodes[at].process.take().expect("the node runs");
        signal(process.pid(), Signal::KILL);
        assert_eq!(process.code(), None, "killed");
    }

    /// Ends a node as an operator would, and waits for it.
    pub fn stop(&mut self, at: usize) {
        let process = self.nodes[at].process.take().expect("the node runs");
        signal(process.pid(), Signal::TERM);
        assert_eq!(process.code(), Some(0), "{}", self.nodes[at].log());
    }

    /// Waits for a node that ends by itself. Its exit code.
    pub fn ends(&mut self, at: usize) -> Option<i32> {
        until("the end of a node", PATIENCE, || !self.nodes[at].runs());
        self.nodes[at].process.take().expect("the node ran").code()
    }

    /// Sends a node a signal.
    pub fn signal(&self, at: usize, which: Signal) {
        signal(self.nodes[at].pid(), which);
    }

    /// The executable, with the address of these nodes.
    pub fn command(&self, servers: &[usize], words: &[&str]) -> Command {
        let servers: Vec<&str> = servers.iter().map(|at| &*self.nodes[*at].client).collect();
        let mut command = self.dev.command(words);
        command.args(["--json", "--keyring", "keys/client.keyring", "--servers", &servers.join(",")]);
        command
    }

    /// All of them.
    pub fn everyone(&self) -> Vec<usize> {
        (0..self.nodes.len()).collect()
    }

    /// What a node says of the cluster; null if it does not answer.
    pub fn status(&self, at: usize) -> Value {
        let output = self.command(&[at], &["status"]).output().unwrap();
        read_lines(&output).pop().unwrap_or_default()
    }

    /// Waits until every node says that all are there and that nothing is missing.
    pub fn heals(&mut self) {
        let began = Instant::now();
        for at in self.everyone() {
            loop {
                let status = self.status(at);
                let nodes = status["nodes"].as_array().map_or(0, Vec::len);
                if is_whole(&status) && nodes == self.nodes.len() && is_replicated(&status) {
                    break;
                }
                if began.elapsed() > PATIENCE {
                    let logs: Vec<String> = self.nodes.iter().map(|node| tail(&node.log(), 15)).collect();
                    panic!("not healthy within {PATIENCE:?}: {status}\n{}", logs.join("\n---\n"));
                }
            }
        }
    }

    /// Which node leads a shard.
    pub fn leader(&self, shard: u64) -> usize {
        let mut found = None;
        until("a leader", PATIENCE, || {
            for at in self.everyone() {
                let status = self.status(at);
                let shards = status["shards"].as_array().cloned().unwrap_or_default();
                found = shards.iter().find(|one| one["id"] == shard).and_then(|one| one["leader"].as_u64());
                found = found.filter(|id| *id > 0);
                if found.is_some() {
                    return true;
                }
            }
            false
        });
        found.expect("found above") as usize - 1
    }

    /// Who leads what, by shard, as one node sees it.
    pub fn leaders(&self, at: usize) -> Vec<(u64, u64, u64)> {
        let status = self.status(at);
        let shards = status["shards"].as_array().cloned().unwrap_or_default();
        let number = |shard: &Value, field: &str| shard[field].as_u64().unwrap_or_default();
        shards.iter().map(|one| (number(one, "id"), number(one, "leader"), number(one, "term"))).collect()
    }

    /// The shard of an address that is in use and has one.
    pub fn shard_of(&self, address: &str) -> u64 {
        let mut found = None;
        until("where an address lies", PATIENCE, || {
            let output = self.command(&self.everyone(), &["address", "info", address]).output().unwrap();
            let shards = read_lines(&output).pop().unwrap_or_default()["shards"].as_array().cloned();
            let busy = |shard: &&Value| shard["messages"].as_u64().is_some_and(|messages| messages > 0);
            let shards = shards.unwrap_or_default();
            found = shards.iter().find(busy).or(shards.first()).and_then(|shard| shard["id"].as_u64());
            found.is_some()
        });
        found.expect("found above")
    }
}

/// Whether every shard has its three copies, in sync.
/// Nothing is wrong, or only that a node is slow, as on a busy machine some are: it is there, and serves.
fn is_whole(status: &Value) -> bool {
    let all =
        |list: &Value, one: &dyn Fn(&Value) -> bool| list.as_array().is_some_and(|all| all.iter().all(one));
    let is_there = |node: &Value| node["state"] == "alive" || node["state"] == "slow";
    let is_slowness =
        |problem: &Value| problem["what"].as_str().is_some_and(|what| what.ends_with(" is slow"));
    status["healthy"] == true || all(&status["nodes"], &is_there) && all(&status["problems"], &is_slowness)
}

fn is_replicated(status: &Value) -> bool {
    let shards = status["shards"].as_array().cloned().unwrap_or_default();
    let many = |shard: &Value, field: &str| shard[field].as_array().map_or(0, Vec::len);
    !shards.is_empty() && shards.iter().all(|one| many(one, "replicas") >= 3 && many(one, "in_sync") >= 3)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A load test that runs beside whatever goes wrong.
pub struct Load {
    child: Child,
    progress: Arc<Mutex<(u64, u64)>>,
    reader: Option<JoinHandle<Vec<String>>>,
    /// Asks how the cluster is: for when nothing comes.
    status: Command,
}

impl Load {
    /// Starts `bench e2e` with these words, by way of these nodes, and waits until messages flow.
    pub fn start(swarm: &Swarm, servers: &[usize], words: &[&str]) -> Self {
        let words = [&["bench", "e2e"], words].concat();
        let mut command = swarm.command(servers, &words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let progress = Arc::new(Mutex::new((0, 0)));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let told = Arc::clone(&progress);
        let reader = std::thread::spawn(move || {
            let mut said = Vec::new();
            for line in lines.map_while(Result::ok) {
                if let Some(now) = counts(&line) {
                    *told.lock().unwrap() = now;
                }
                said.push(line);
            }
            said
        });
        let mut load = Self {
            child,
            progress,
            reader: Some(reader),
            status: swarm.command(&swarm.everyone(), &["status"]),
        };
        load.flows();
        load
    }

    /// What was acknowledged and delivered so far, at most a second ago.
    pub fn progress(&self) -> (u64, u64) {
        *self.progress.lock().unwrap()
    }

    /// Waits until more was acknowledged and delivered than now.
    pub fn flows(&mut self) {
        let before = self.progress();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.progress();
            if now.0 > before.0 && now.1 > before.1 {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the load ended with {status}: {:#?}", self.reader.take().unwrap().join());
            }
            if Instant::now() > deadline {
                let status =
                    self.status.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
                let _gone = self.child.kill().is_err();
                panic!("nothing flows: {now:?}: {status:?}: {:#?}", self.reader.take().unwrap().join());
            }
            std::thread::yield_now();
        }
    }

    /// Ends it, and what it found: nothing lost, doubled, out of order, nothing whose fate stayed open.
    pub fn finish(self) -> Value {
        signal(self.child.id() as i32, Signal::INT);
        self.result()
    }

    /// Waits until it ends by itself, and what it found, as [`Load::finish`].
    pub fn result(mut self) -> Value {
        let output = {
            let stdout = self.child.stdout.take().unwrap();
            let mut lines = BufReader::new(stdout).lines();
            let line = lines.by_ref().map_while(Result::ok).last().unwrap_or_default();
            (line, self.child.wait().unwrap())
        };
        let said = self.reader.take().unwrap().join().unwrap();
        let end: Vec<&String> = said.iter().rev().take(8).collect();
        let report: Value = serde_json::from_str(&output.0).unwrap_or_default();
        for field in ["lost", "duplicated", "out_of_order", "unknown", "failed"] {
            assert_eq!(report[field], 0, "{field} in {} ({}): {end:#?}", output.0, output.1);
        }
        assert_eq!(report["delivered"], report["acknowledged"], "{report}");
        assert!(matches!(output.1.code(), Some(0 | 130)), "{}: {end:#?}", output.1);
        report
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill().and_then(|()| self.child.wait().map(drop)).is_err();
    }
}

/// The numbers in a line of progress: "3 s: 12 acknowledged (+4), 12 delivered (+4)".
fn counts(line: &str) -> Option<(u64, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let before = |word: &str| {
        let at = words.iter().position(|one| *one == word)?;
        words.get(at.checked_sub(1)?)?.parse().ok()
    };
    Some((before("acknowledged")?, before("delivered")?))
}

/// A file system in a file, mounted until this is dropped.
pub struct Disk {
    image: tempfile::NamedTempFile,
    place: tempfile::TempDir,
}

impl Disk {
    /// Makes one of this size, or says what is missing: root, loop devices, xfsprogs.
    pub fn make(bytes: u64) -> Result<Self, String> {
        let image = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
        image.as_file().set_len(bytes).map_err(|error| error.to_string())?;
        let place = tempfile::tempdir().map_err(|error| error.to_string())?;
        let disk = Self { image, place };
        run(Command::new("mkfs.xfs").arg("-q").arg(disk.image.path()))?;
        run(Command::new("xfs_io").arg("-V"))?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image.path()).arg(self.place.path()))
    }

    /// From now on nothing is written any more, not even what the file system has in its own log's buffers.
    pub fn cut_power(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(self.place.path())).unwrap();
    }

    /// The machine comes back: the file system recovers. Whoever was killed a moment ago may still hold it.
    pub fn bring_back(&self) {
        until("the disk is unmounted", PATIENCE, || {
            run(Command::new("umount").arg(self.place.path())).is_ok()
        });
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let lazily = run(Command::new("umount").arg("-l").arg(self.place.path()));
        if let Err(why) = lazily
            && !std::thread::panicking()
        {
            panic!("the disk stays mounted: {why}");
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.stdout(Stdio::null()).stderr(Stdio::piped()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
