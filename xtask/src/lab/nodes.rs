//! Five node processes, one on each machine of the network, and the load through two of them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::net::{MACHINES, Network, address, call};
use crate::bars::{
    cluster::{Load, Running, get, metric},
    json::{self, Value},
};

/// The ports of every node.
const CLIENT: u16 = 7420;
const PEER: u16 = 7421;
const GOSSIP: u16 = 7422;
const ADMIN: u16 = 7423;
/// Replicas of a shard in a cluster of this size.
const COPIES: usize = 3;
/// Time for anything that a cluster does by itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time for leaders to go where they belong: without it they begin where they happen to be.
const SPREADING: Duration = Duration::from_secs(10);
/// Time without a new reign after which leaders are where they belong. They look around every half second.
const QUIET: Duration = Duration::from_millis(1500);
/// Pause between looks.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// The nodes. They end when this is dropped.
pub(super) struct Nodes<'a> {
    network: &'a Network,
    program: &'a Path,
    directory: PathBuf,
    processes: Vec<Running>,
}

/// What is counted at one moment, over all nodes that answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// Changes of a path to a node.
    pub(super) route_changes: f64,
    /// Packets passed on for others.
    pub(super) relayed: f64,
    /// Reigns that have begun, over all shards.
    pub(super) reigns: f64,
}

impl<'a> Nodes<'a> {
    /// Makes keys, files and the cluster, starts all nodes and waits until every shard has its copies.
    ///
    /// * `directory`: to be made.
    pub(super) fn up(network: &'a Network, program: &'a Path, directory: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let mut nodes = Self { network, program, directory, processes: Vec::new() };
        call(Command::new(program).args(["certs", "init", "--out"]).arg(&nodes.directory))?;
        let keys = ["keys", "generate", "--out"];
        let ca = nodes.directory.join("ca.pem");
        call(Command::new(program).args(keys).arg(&nodes.directory).arg("--ca").arg(ca))?;
        for node in 1..=MACHINES {
            let mut issue = Command::new(program);
            issue.args(["certs", "issue", "--ca"]).arg(&nodes.directory);
            issue.args(["--node", &node.to_string(), "--hosts", &address(node).to_string()]);
            call(&mut issue)?;
            let folder = nodes.folder(node);
            let written =
                fs::create_dir_all(&folder).and_then(|()| fs::write(nodes.config(node), config(node)));
            written.map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        call(Command::new(program).args(["init", "--open-join", "--config"]).arg(nodes.config(1)))?;
        for node in 1..=MACHINES {
            let running = nodes.start(node)?;
            nodes.processes.push(running);
        }
        nodes.settle(PATIENCE)?;
        nodes.spread()?;
        Ok(nodes)
    }

    /// Where files of this cluster lie.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn folder(&self, node: u16) -> PathBuf {
        self.directory.join(format!("node-{node}"))
    }

    fn config(&self, node: u16) -> PathBuf {
        self.folder(node).join("node.toml")
    }

    fn start(&self, node: u16) -> Result<Running, String> {
        let log = self.folder(node).join("node.log");
        let output = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let errors = output.try_clone().map_err(|error| format!("{}: {error}", log.display()))?;
        let mut command = self.network.on(node, self.program);
        command.args(["node", "--config"]).arg(self.config(node)).env_remove("SWARMMQ_KEYRING");
        let child = command.stdout(output).stderr(errors).spawn();
        child.map(Running).map_err(|error| format!("cannot start node {node}: {error}"))
    }

    /// The process of a node.
    pub(super) fn pid(&self, node: u16) -> u32 {
        // What enters the namespace becomes the node: it is one process.
        self.processes[usize::from(node) - 1].0.id()
    }

    /// What the cluster says about itself; asked beside the bridge, where no fault reaches.
    fn status(&self) -> Result<Value, String> {
        let servers: Vec<String> = (1..=MACHINES).map(client).collect();
        let mut command = Command::new(self.program);
        command.args(["status", "--json", "--servers", &servers.join(","), "--keyring"]);
        let output = command.arg(self.keyring()).output().map_err(|error| format!("status: {error}"))?;
        json::last_line(&String::from_utf8_lossy(&output.stdout))
    }

    fn keyring(&self) -> PathBuf {
        self.directory.join("client.keyring")
    }

    /// Waits until all nodes are members, and every shard has a leader and all its copies in sync: seconds that took.
    pub(super) fn settle(&self, limit: Duration) -> Result<f64, String> {
        let began = Instant::now();
        loop {
            let missing = missing(&self.status()?);
            match missing {
                None => return Ok(began.elapsed().as_secs_f64()),
                Some(missing) if began.elapsed() > limit => {
                    return Err(format!("after {} s {missing}", limit.as_secs()));
                }
                Some(_) => std::thread::sleep(LOOK_PAUSE),
            }
        }
    }

    /// Waits until every node shows a direct path to all others, and until leaders have gone where they belong, as far as
    /// they go in time: what moves later is counted as the fault's doing.
    fn spread(&self) -> Result<(), String> {
        let began = Instant::now();
        let (mut reigns, mut quiet_since) = (0.0, Instant::now());
        loop {
            let status = self.status()?;
            let now = begun(&status);
            if now > reigns {
                (reigns, quiet_since) = (now, Instant::now());
            }
            let lead = (1..=MACHINES).all(|node| leads(&status, node) > 0);
            let direct = (1..=MACHINES).all(|node| self.sees_all(node));
            match () {
                () if direct && lead && quiet_since.elapsed() > QUIET => return Ok(()),
                () if direct && began.elapsed() > SPREADING => return Ok(()),
                () if began.elapsed() > PATIENCE => {
                    return Err("nodes show no direct paths to each other".into());
                }
                () => std::thread::sleep(LOOK_PAUSE),
            }
        }
    }

    fn sees_all(&self, node: u16) -> bool {
        let mut others = (1..=MACHINES).filter(|other| *other != node);
        others.all(|other| self.hops(node, other) == Ok(1.0))
    }

    /// The node, of those without clients, that leads most.
    pub(super) fn busiest(&self) -> Result<u16, String> {
        let status = self.status()?;
        Ok((3..=MACHINES).max_by_key(|node| leads(&status, *node)).expect("there are more than two machines"))
    }

    /// Counts over all nodes.
    pub(super) fn look(&self) -> Result<Look, String> {
        let mut look = Look::default();
        for node in 1..=MACHINES {
            let text = self.metrics(node)?;
            let count = |name| metric(&text, name).ok_or_else(|| format!("node {node} has no metric {name}"));
            look.route_changes += count("swarmmq_route_changes_total")?;
            look.relayed += count("swarmmq_relayed_total")?;
        }
        look.reigns = begun(&self.status()?);
        Ok(look)
    }

    /// Links on the path from one node to another; 0: there is no path.
    pub(super) fn hops(&self, from: u16, to: u16) -> Result<f64, String> {
        let name = format!("swarmmq_route_hops{{node=\"{to}\"}}");
        let text = self.metrics(from)?;
        let line = text.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok());
        line.ok_or_else(|| format!("node {from} shows no path to node {to}"))
    }

    /// Waits until two nodes reach each other over one link: seconds that took, up to a second more than it was.
    pub(super) fn wait_direct(&self, pair: [u16; 2], limit: Duration) -> Result<f64, String> {
        let began = Instant::now();
        let [a, b] = pair;
        while self.hops(a, b) != Ok(1.0) || self.hops(b, a) != Ok(1.0) {
            if began.elapsed() > limit {
                return Err(format!(
                    "nodes {pair:?} use no direct path {} s after the fault",
                    limit.as_secs()
                ));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        Ok(began.elapsed().as_secs_f64())
    }

    fn metrics(&self, node: u16) -> Result<String, String> {
        let at = format!("{}:{ADMIN}", address(node));
        get(&at, "/metrics").ok_or_else(|| format!("node {node} shows no metrics"))
    }

    /// Changes a setting of the whole cluster.
    pub(super) fn set(&self, name: &str, value: &str) -> Result<(), String> {
        let servers: Vec<String> = (1..=MACHINES).map(client).collect();
        let mut command = Command::new(self.program);
        command.args(["settings", "set", &format!("{name}={value}"), "--servers", &servers.join(",")]);
        call(command.arg("--keyring").arg(self.keyring())).map(drop)
    }

    /// A load on the machine of a node and through that node, for so many seconds.
    ///
    /// * `order`: `key`, or `none`: any shard may take a message.
    /// * `more`: further options of `bench e2e`.
    pub(super) fn load(
        &self,
        node: u16,
        rate: u32,
        seconds: u64,
        order: &str,
        more: &[&str],
    ) -> Result<Load, String> {
        let mut command = self.network.on(node, self.program);
        command.args(["bench", "e2e", "--producers", "2", "--consumers", "2", "--size", "256"]);
        command.args(["--order", order, "--rate", &rate.to_string(), "--duration", &seconds.to_string()]);
        command.args(more).args(["--json", "--servers", &client(node), "--keyring"]).arg(self.keyring());
        Load::start(command)
    }

    /// What every node said last, for whoever wants to know why something failed.
    pub(super) fn last_words(&self) -> String {
        let mut text = String::new();
        for node in 1..=MACHINES {
            let log = fs::read_to_string(self.folder(node).join("node.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(12)..] {
                text.push_str(&format!("    node {node}: {line}\n"));
            }
        }
        text
    }
}

impl Drop for Nodes<'_> {
    fn drop(&mut self) {
        self.processes.clear();
        // Each fault has its own; what is left is removed with all the rest.
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("{}: {error}", self.directory.display());
        }
    }
}

fn client(node: u16) -> String {
    format!("{}:{CLIENT}", address(node))
}

/// `node.toml`. The seeds are all others.
fn config(node: u16) -> String {
    let at = address(node);
    let seeds: Vec<String> = (1..=MACHINES)
        .filter(|other| *other != node)
        .map(|other| format!("{}:{PEER}", address(other)))
        .collect();
    format!(
        "[node]\nid = {node}\ndata = \"data\"\nkeyring = \"../node.keyring\"\n\n[listen]\nclient = \"{}\"\npeer = \"{at}:{PEER}\"\n\
         gossip = \"{at}:{GOSSIP}\"\nadmin = \"{at}:{ADMIN}\"\n\n[tls]\ncertificate = \"../node-{node}.pem\"\nkey = \"../node-{node}.key\"\n\
         ca = \"../ca.pem\"\n\n[cluster]\nseeds = {seeds:?}\n",
        client(node)
    )
}

fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    match value.at(path) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
}

fn shards(status: &Value) -> &[Value] {
    items(status, "shards")
}

/// How many shards a node leads.
fn leads(status: &Value, node: u16) -> usize {
    let leader = |shard: &&Value| shard.number("leader") == Ok(f64::from(node));
    shards(status).iter().filter(leader).count()
}

/// Reigns that have begun, over all shards.
fn begun(status: &Value) -> f64 {
    shards(status).iter().filter_map(|shard| shard.number("term").ok()).sum()
}

/// What keeps a cluster from being as well as it can be.
fn missing(status: &Value) -> Option<String> {
    let members = items(status, "nodes").len();
    if members != usize::from(MACHINES) {
        return Some(format!("there are {members} members"));
    }
    let copies = |shard: &&Value| items(shard, "in_sync").len() < COPIES;
    if let Some(shard) = shards(status).iter().find(copies) {
        return Some(format!("a shard lacks copies: {shard:?}"));
    }
    (status.at("healthy") != Some(&Value::Bool(true))).then(|| format!("it is not healthy: {status:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(healthy: bool, members: usize, in_sync: &str) -> Value {
        let nodes = vec!["{\"id\":1}"; members].join(",");
        json::parse(&format!(
            "{{\"healthy\":{healthy},\"nodes\":[{nodes}],\"shards\":[{{\"id\":0,\"leader\":4,\"term\":2,\"in_sync\":[{in_sync}]}}]}}"
        ))
        .unwrap()
    }

    #[test]
    fn a_cluster_is_whole_with_all_members_and_copies() {
        assert_eq!(missing(&status(true, 5, "1,2,3")), None);
        assert!(missing(&status(true, 4, "1,2,3")).unwrap().contains("4 members"));
        assert!(missing(&status(true, 5, "1,2")).unwrap().contains("copies"));
        assert!(missing(&status(false, 5, "1,2,3")).unwrap().contains("not healthy"));
        assert_eq!((leads(&status(true, 5, ""), 4), leads(&status(true, 5, ""), 1)), (1, 0));
    }

    #[test]
    fn a_node_listens_on_its_machine_and_knows_all_others() {
        let text = config(2);
        assert!(text.contains("client = \"127.77.0.2:7420\"\npeer = \"127.77.0.2:7421\"\n"), "{text}");
        assert!(text.contains("[\"127.77.0.1:7421\", \"127.77.0.3:7421\","), "{text}");
    }
}
