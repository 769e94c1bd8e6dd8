//! The directory of a local cluster: `cluster.json`, keyrings, the authority, one folder for every node.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use swarmmq_protocol::id::NodeId;
use swarmmq_seal::Trust;
use swarmmq_tls::{Authority, DAYS_AUTHORITY, DAYS_CERTIFICATE, Name};

use super::process::is_node;
use crate::{
    certs,
    discover::CLUSTER,
    keys,
    output::{Failure, Outcomes, note},
    ports,
};

/// What a node can do, as `node.toml` names it.
pub(crate) const ROLES: [&str; 3] = ["ingress", "router", "store"];
/// Where the nodes of a local cluster are dialled.
const HOSTS: [&str; 3] = ["127.0.0.1", "::1", "localhost"];
/// Time for a process that is ending, and for one that is told to.
pub(crate) const STOP_TIME_MAX: Duration = Duration::from_secs(15);

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

impl Node {
    /// What it says while it runs.
    pub(crate) fn log(&self) -> PathBuf {
        self.config.with_file_name("node.log")
    }
}

/// `cluster.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) cluster: String,
    pub(crate) keyring: PathBuf,
    pub(crate) nodes: Vec<Node>,
}

/// What one node does; the others do everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RolesOf {
    pub(crate) node: u16,
    pub(crate) roles: Vec<&'static str>,
}

/// `ROLE,ROLE,...`
pub(crate) fn parse_roles(text: &str) -> Result<Vec<&'static str>, String> {
    let known = |word: &str| ROLES.into_iter().find(|role| *role == word);
    let mut roles = Vec::new();
    for word in text.split(',') {
        let role =
            known(word).ok_or_else(|| format!("{word:?} is no role; there are ingress, router, store"))?;
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    Ok(roles)
}

/// `NODE=ROLE,ROLE,...`
pub(crate) fn parse_roles_of(text: &str) -> Result<RolesOf, String> {
    let (node, roles) = text.split_once('=').ok_or("not of the form NODE=ROLE,ROLE")?;
    let node = node.parse().map_err(|_| format!("{node:?} is no node number"))?;
    Ok(RolesOf { node, roles: parse_roles(roles)? })
}

impl Cluster {
    pub(crate) fn path(directory: &Path) -> PathBuf {
        directory.join(CLUSTER)
    }

    /// Reads it and forgets processes that are gone.
    pub(crate) fn load(directory: &Path) -> Outcomes<Self> {
        let path = Self::path(directory);
        let text = fs::read_to_string(&path).map_err(|error| {
            Failure::local(
                format!("no local cluster in {}: {error}", directory.display()),
                "make one with `swarmmq dev up`",
            )
        })?;
        let mut cluster: Self = serde_json::from_str(&text).map_err(|error| {
            Failure::local(
                format!("{} is damaged: {error}", path.display()),
                "restore it: ports and keyrings are in node-N/node.toml beside it; the messages are in node-N/data",
            )
        })?;
        for node in &mut cluster.nodes {
            node.pid = node.pid.filter(|pid| is_node(*pid, &node.config));
        }
        Ok(cluster)
    }

    pub(crate) fn save(&self, directory: &Path) -> Outcomes<()> {
        let text = serde_json::to_string(self).expect("plain fields can be written");
        let temporary = directory.join("cluster.json.tmp");
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, Self::path(directory)));
        written.map_err(|error| local(directory, &error))
    }

    pub(crate) fn node(&self, id: u16) -> Outcomes<&Node> {
        self.nodes.iter().find(|node| node.id == id).ok_or_else(|| unknown(id))
    }

    pub(crate) fn node_mut(&mut self, id: u16) -> Outcomes<&mut Node> {
        self.nodes.iter_mut().find(|node| node.id == id).ok_or_else(|| unknown(id))
    }

    /// Where clients reach those that run.
    pub(crate) fn servers(&self) -> Vec<String> {
        self.nodes.iter().filter(|node| node.pid.is_some()).map(|node| node.client.clone()).collect()
    }

    /// Makes keys, folders and files for `nodes` nodes, and the cluster on the first of them.
    pub(crate) fn make(
        directory: &Path,
        nodes: u16,
        base_port: Option<u16>,
        roles: &[RolesOf],
        insecure_plaintext: bool,
    ) -> Outcomes<Self> {
        let base = ports::block(nodes, base_port)?;
        let authority = if insecure_plaintext {
            keys::generate(directory, Trust::InsecurePlaintext)?;
            None
        } else {
            let authority = certs::make_authority(directory, DAYS_AUTHORITY)?;
            keys::generate(directory, Trust::Authorities(authority.certificate_pem().to_owned()))?;
            Some(authority)
        };
        let all: Vec<Node> =
            (1..=nodes).map(|id| describe(directory, id, base + ports::PER_NODE * (id - 1))).collect();
        for node in &all {
            let roles = roles.iter().find(|of| of.node == node.id).map_or(&ROLES[..], |of| &of.roles);
            write_config(node, &all, roles, authority.as_ref())?;
        }
        let first = all.first().ok_or_else(|| Failure::usage("no nodes", "use --nodes 1 or more"))?;
        let name = swarmmq_server::init(&first.config, true)?.cluster;
        let cluster = Self { cluster: name, keyring: directory.join("client.keyring"), nodes: all };
        cluster.save(directory)?;
        Ok(cluster)
    }

    /// Whether its nodes speak TLS.
    pub(crate) fn is_encrypted(&self, directory: &Path) -> bool {
        directory.join(certs::CA).exists()
    }

    /// Makes folder and file of one more node, with the next number.
    pub(crate) fn extend(&mut self, directory: &Path, roles: &[&str]) -> Outcomes<u16> {
        let last = self.nodes.iter().map(|node| node.id).max().unwrap_or(0);
        let id = last.checked_add(1).ok_or_else(|| Failure::usage("no number is left", "remove nodes"))?;
        let place = directory.join(format!("node-{id}"));
        if place.join("data").exists() {
            return Err(Failure::local(
                format!("there is data in {} that no node of this cluster owns", place.display()),
                "look at it, then move it away",
            ));
        }
        let first = self.nodes.first().and_then(|node| Some((node.id, port_of(&node.client)?)));
        // Behind the others if that is free.
        let regular =
            first.and_then(|(first, port)| port.checked_add(ports::PER_NODE.checked_mul(id - first)?));
        let base = match regular.filter(|base| ports::are_free(*base)) {
            Some(base) => base,
            None => {
                let base = ports::block(1, None)?;
                note(format!(
                    "the ports behind those of the other nodes are in use: node {id} has {base} and up"
                ));
                base
            }
        };
        let node = describe(directory, id, base);
        let authority =
            if self.is_encrypted(directory) { Some(certs::load_authority(directory)?) } else { None };
        write_config(&node, &self.nodes, roles, authority.as_ref())?;
        self.nodes.push(node);
        self.save(directory)?;
        Ok(id)
    }
}

fn unknown(id: u16) -> Failure {
    Failure::usage(format!("there is no node {id}"), "see `swarmmq dev status`")
}

/// The port of HOST:PORT.
pub(crate) fn port_of(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}

fn describe(directory: &Path, id: u16, base: u16) -> Node {
    let port = |offset: u16| format!("127.0.0.1:{}", base + offset);
    let folder = directory.join(format!("node-{id}"));
    Node {
        id,
        pid: None,
        client: port(0),
        peer: port(1),
        gossip: port(2),
        admin: port(3),
        config: folder.join("node.toml"),
        data: folder.join("data"),
    }
}

fn roles_line(roles: &[&str]) -> String {
    format!("roles = {roles:?}\n")
}

/// Writes `node.toml`. The seeds are all others: any of them can let it in again when its disk is lost.
fn write_config(node: &Node, all: &[Node], roles: &[&str], authority: Option<&Authority>) -> Outcomes<()> {
    let folder = node.config.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| local(folder, &error))?;
    let seeds: Vec<&str> =
        all.iter().filter(|other| other.id != node.id).map(|other| other.peer.as_str()).collect();
    let mut text = format!("[node]\nid = {}\ndata = \"data\"\n{}", node.id, roles_line(roles));
    text.push_str("keyring = \"../node.keyring\"\n\n[listen]\n");
    let listens =
        [("client", &node.client), ("peer", &node.peer), ("gossip", &node.gossip), ("admin", &node.admin)];
    for (name, address) in listens {
        writeln!(text, "{name} = \"{address}\"").expect("a string takes everything");
    }
    match authority {
        None => text.push_str("insecure_plaintext = true\n"),
        Some(authority) => {
            let (certificate, key) = (folder.join("node.pem"), folder.join("node.key"));
            // Those of one that was removed must not be in the way of its successor.
            for path in [&certificate, &key].into_iter().filter(|path| path.exists()) {
                fs::remove_file(path).map_err(|error| local(folder, &error))?;
            }
            let name = Name::Node(NodeId(node.id));
            let hosts = certs::parse_hosts(&HOSTS.map(str::to_owned))?;
            certs::issue(authority, &name, &hosts, DAYS_CERTIFICATE, &certificate, &key)?;
            text.push_str("\n[tls]\ncertificate = \"node.pem\"\nkey = \"node.key\"\nca = \"../ca.pem\"\n");
        }
    }
    writeln!(text, "\n[cluster]\nseeds = {seeds:?}").expect("a string takes everything");
    fs::write(&node.config, text).map_err(|error| local(folder, &error))
}

/// Whether a node that is there already has these roles.
pub(crate) fn has_roles(node: &Node, roles: &[&str]) -> bool {
    fs::read_to_string(&node.config).is_ok_and(|text| text.contains(&roles_line(roles)))
}

pub(crate) fn local(directory: &Path, error: &std::io::Error) -> Failure {
    Failure::local(
        format!("cannot write in {}: {error}", directory.display()),
        "check the directory and its disk",
    )
}

/// One `dev` command at a time works on a directory; the others wait.
pub(crate) fn lock(directory: &Path) -> Outcomes<File> {
    let path = directory.join("dev.lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| local(directory, &error))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| local(directory, &error.into()))?;
    Ok(file)
}

/// The absolute path of a directory that must hold a cluster.
pub(crate) fn existing(directory: &Path) -> Outcomes<PathBuf> {
    Cluster::load(directory)?;
    directory.canonicalize().map_err(|error| local(directory, &error))
}

/// A cluster whose `cluster.json` is gone is not made anew over its keys and data.
pub(crate) fn refuse_leftovers(directory: &Path) -> Outcomes<()> {
    let left = ["client.keyring", "node.keyring", certs::CA, "node-1"].map(|name| directory.join(name));
    let Some(left) = left.iter().find(|path| path.exists()) else { return Ok(()) };
    Err(Failure::local(
        format!("there is {} but no {CLUSTER} beside it", left.display()),
        "if an interrupted `dev up` left this, remove the directory; otherwise restore cluster.json, or use another --dir",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_json_has_the_promised_shape() {
        let node = describe(Path::new("d"), 1, 20_000);
        let cluster = Cluster { cluster: "c".into(), keyring: "d/client.keyring".into(), nodes: vec![node] };
        assert_eq!(
            serde_json::to_string(&cluster).unwrap(),
            r#"{"cluster":"c","keyring":"d/client.keyring","nodes":[{"id":1,"pid":null,"client":"127.0.0.1:20000","peer":"127.0.0.1:20001","gossip":"127.0.0.1:20002","admin":"127.0.0.1:20003","config":"d/node-1/node.toml","data":"d/node-1/data"}]}"#
        );
    }

    #[test]
    fn every_node_has_its_ports_and_all_others_as_seeds() {
        let place = tempfile::tempdir().unwrap();
        let roles = [RolesOf { node: 3, roles: vec!["ingress"] }];
        let mut cluster = Cluster::make(place.path(), 3, Some(21_000), &roles, false).unwrap();
        assert_eq!(cluster.cluster.len(), 32);
        let config = |id: u16| fs::read_to_string(&cluster.nodes[usize::from(id) - 1].config).unwrap();
        assert!(config(1).contains("seeds = [\"127.0.0.1:21011\", \"127.0.0.1:21021\"]"), "{}", config(1));
        assert!(config(3).contains("roles = [\"ingress\"]\n") && config(2).contains("\"store\"]\n"));
        assert!(config(3).contains("client = \"127.0.0.1:21020\"") && config(3).contains("id = 3\n"));
        assert!(has_roles(&cluster.nodes[2], &["ingress"]) && !has_roles(&cluster.nodes[1], &["ingress"]));
        assert!(config(1).contains("[tls]"));
        assert_eq!(cluster.extend(place.path(), &ROLES).unwrap(), 4);
        assert_eq!(Cluster::load(place.path()).unwrap().nodes.len(), 4);
        assert!(place.path().join("node-4/node.key").exists());
        let plain = tempfile::tempdir().unwrap();
        let cluster = Cluster::make(plain.path(), 1, Some(21_100), &[], true).unwrap();
        assert!(!cluster.is_encrypted(plain.path()) && !plain.path().join("node-1/node.key").exists());
        assert!(fs::read_to_string(&cluster.nodes[0].config).unwrap().contains("insecure_plaintext = true"));
    }

    #[test]
    fn roles_are_read_as_they_are_written() {
        assert_eq!(parse_roles("ingress,store"), Ok(vec!["ingress", "store"]));
        assert_eq!(parse_roles_of("4=router"), Ok(RolesOf { node: 4, roles: vec!["router"] }));
        assert!(parse_roles("ingres").unwrap_err().contains("no role"));
        assert!(parse_roles_of("ingress").is_err() && parse_roles_of("x=store").is_err());
    }
}
