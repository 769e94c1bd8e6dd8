//! `dev`: a local cluster of real processes, without a supervisor. What runs is written in `cluster.json`.

mod directory;
mod health;
mod process;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Subcommand;
use rustix::process::Signal;
use serde_json::json;

pub(crate) use self::directory::{Cluster, parse_roles};
use self::{
    directory::{RolesOf, STOP_TIME_MAX, existing, has_roles, local, lock, parse_roles_of, refuse_leftovers},
    health::wait_settled,
    process::{POLL, START_TIME_MAX, Starting, is_node, not_ready, serves, signal, spawn, wait_gone},
};
use crate::{
    discover::LOCAL,
    output::{Failure, Outcomes, print, say},
    ports,
};

/// Most nodes of a cluster.
const NODES_MAX: i64 = 64;

/// What to do with a local cluster.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// Make a local cluster, or start the one that is there
    Up {
        /// How many nodes; without it, as many as there are, or one
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=NODES_MAX))]
        nodes: Option<u16>,
        /// Where it lives
        #[arg(long, default_value = LOCAL)]
        dir: PathBuf,
        /// Node i has ports P+10(i-1) to P+10(i-1)+3; without it, a free block
        #[arg(long, value_name = "P")]
        base_port: Option<u16>,
        /// What a node does, e.g. 4=ingress,router; the others are ingress, router and store
        #[arg(long, value_name = "NODE=ROLE,...", value_parser = parse_roles_of)]
        roles: Vec<RolesOf>,
        /// Without TLS, to compare; of a cluster that is made now
        #[arg(long)]
        insecure_plaintext: bool,
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
    /// Stop a node (SIGTERM): it hands over what it leads, then ends
    Stop {
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
        DevCommand::Up { nodes, dir, base_port, roles, insecure_plaintext } => {
            up(dir, *nodes, *base_port, roles, *insecure_plaintext)?
        }
        DevCommand::Down { dir } => down(dir)?,
        DevCommand::Status { dir } => Cluster::load(dir)?,
        DevCommand::Kill { node, dir } => kill(dir, *node)?,
        DevCommand::Stop { node, dir } => stop(dir, *node)?,
        DevCommand::Start { node, dir } => start(dir, *node)?,
        DevCommand::Env { dir } => {
            env(&Cluster::load(dir)?, as_json);
            return Ok(0);
        }
    };
    show(&cluster, as_json);
    Ok(0)
}

/// `dev up`.
pub(crate) fn up(
    directory: &Path,
    nodes: Option<u16>,
    base_port: Option<u16>,
    roles: &[RolesOf],
    insecure_plaintext: bool,
) -> Outcomes<Cluster> {
    let there = if Cluster::path(directory).exists() { Some(Cluster::load(directory)?) } else { None };
    let nodes = nodes.unwrap_or_else(|| there.map_or(1, |cluster| cluster.nodes.len() as u16));
    if base_port.is_some() {
        ports::block(nodes, base_port)?;
    }
    if let Some(of) = roles.iter().find(|of| !(1..=nodes).contains(&of.node)) {
        return Err(Failure::usage(
            format!("--roles {}=...: there are nodes 1 to {nodes}", of.node),
            "correct --roles or --nodes",
        ));
    }
    if roles.iter().any(|of| of.node == 1 && !of.roles.contains(&"store")) {
        return Err(Failure::usage(
            "--roles 1=...: node 1 makes the cluster and holds its first data, so it needs the role store",
            "give it the role store",
        ));
    }
    fs::create_dir_all(directory).map_err(|error| local(directory, &error))?;
    let directory = &directory.canonicalize().map_err(|error| local(directory, &error))?;
    let _lock = lock(directory)?;
    let mut cluster = if Cluster::path(directory).exists() {
        let cluster = Cluster::load(directory)?;
        refuse_another(directory, &cluster, nodes, base_port, roles)?;
        if insecure_plaintext && cluster.is_encrypted(directory) {
            return Err(Failure::usage(
                format!("{} holds a cluster that speaks TLS", directory.display()),
                "leave --insecure-plaintext out, or use another --dir",
            ));
        }
        cluster
    } else {
        refuse_leftovers(directory)?;
        Cluster::make(directory, nodes, base_port, roles, insecure_plaintext)?
    };
    let all: Vec<u16> = cluster.nodes.iter().map(|node| node.id).collect();
    start_nodes(directory, &mut cluster, &all)?;
    Ok(cluster)
}

/// What is there is resumed as it is, not changed.
fn refuse_another(
    directory: &Path,
    cluster: &Cluster,
    nodes: u16,
    base_port: Option<u16>,
    roles: &[RolesOf],
) -> Outcomes<()> {
    let base = cluster.nodes.first().and_then(|node| directory::port_of(&node.client));
    if base_port.is_some() && base_port != base {
        return Err(Failure::usage(
            format!("{} holds a cluster with other ports", directory.display()),
            "leave --base-port out, or use another --dir",
        ));
    }
    if cluster.nodes.len() != usize::from(nodes) {
        return Err(Failure::usage(
            format!("{} holds a cluster of {} nodes", directory.display(), cluster.nodes.len()),
            format!(
                "use --nodes {}, another --dir for another cluster, or `swarmmq node add` for one more node",
                cluster.nodes.len()
            ),
        ));
    }
    for of in roles {
        if !has_roles(cluster.node(of.node)?, &of.roles) {
            return Err(Failure::usage(
                format!("node {} of the cluster in {} has other roles", of.node, directory.display()),
                "leave --roles out; what a node does is in its node.toml",
            ));
        }
    }
    Ok(())
}

/// Starts those of `ids` that do not run, all at once, and waits until they serve and the cluster has settled.
fn start_nodes(directory: &Path, cluster: &mut Cluster, ids: &[u16]) -> Outcomes<()> {
    serve_all(directory, cluster, ids).and_then(|()| wait_settled(cluster)).inspect_err(|_| {
        for node in &mut cluster.nodes {
            node.pid = node.pid.filter(|pid| is_node(*pid, &node.config));
        }
        // The failure to start is the better story.
        let _unsaved = cluster.save(directory).is_err();
    })
}

/// Starts and waits until all of `ids` serve. One that was killed a moment ago looks alive until it ends; then it is
/// started, too.
fn serve_all(directory: &Path, cluster: &mut Cluster, ids: &[u16]) -> Outcomes<()> {
    let deadline = Instant::now() + START_TIME_MAX;
    let mut started: BTreeMap<u16, Starting> = BTreeMap::new();
    let mut waiting = ids.to_vec();
    loop {
        for id in &waiting {
            let node = cluster.node_mut(*id)?;
            if !started.contains_key(id) {
                node.pid = node.pid.filter(|pid| is_node(*pid, &node.config));
            }
            if node.pid.is_none() {
                started.insert(*id, spawn(directory, cluster, *id)?);
            }
        }
        let alone = cluster.nodes.iter().any(|node| node.pid.is_none());
        let mut left = Vec::new();
        for id in waiting {
            let node = cluster.node(id)?;
            let is_up = match started.get_mut(&id) {
                Some(starting) => starting.is_up(node, alone)?,
                None => serves(&node.admin, alone) && node.pid.is_some_and(|pid| is_node(pid, &node.config)),
            };
            if !is_up {
                left.push(id);
            }
        }
        let Some(first) = left.first() else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(not_ready(cluster.node(*first)?));
        }
        std::thread::sleep(POLL);
        waiting = left;
    }
}

/// `dev start N`.
pub(crate) fn start(directory: &Path, id: u16) -> Outcomes<Cluster> {
    let directory = existing(directory)?;
    let _lock = lock(&directory)?;
    let mut cluster = Cluster::load(&directory)?;
    cluster.node(id)?;
    start_nodes(&directory, &mut cluster, &[id])?;
    Ok(cluster)
}

/// `node add`: one more node, with the next number. Returns its number too.
pub(crate) fn add(directory: &Path, roles: &[&str]) -> Outcomes<(Cluster, u16)> {
    let directory = existing(directory)?;
    let _lock = lock(&directory)?;
    let mut cluster = Cluster::load(&directory)?;
    if cluster.servers().is_empty() {
        return Err(Failure::new(
            3,
            "unreachable",
            "no node of this cluster runs, so there is nobody to join",
            "start it with `swarmmq dev up`",
        ));
    }
    let id = cluster.extend(&directory, roles)?;
    start_nodes(&directory, &mut cluster, &[id])?;
    Ok((cluster, id))
}

/// Ends the process of a node that was removed from its cluster, if it still runs, and strikes it off the list.
pub(crate) fn forget(directory: &Path, id: u16) -> Outcomes<()> {
    let directory = existing(directory)?;
    let _lock = lock(&directory)?;
    let mut cluster = Cluster::load(&directory)?;
    let Ok(node) = cluster.node(id) else { return Ok(()) };
    if let Some(pid) = node.pid {
        end(pid, id, Signal::TERM)?;
    }
    cluster.nodes.retain(|node| node.id != id);
    cluster.save(&directory)
}

/// Sends a signal and waits for the end.
fn end(pid: i32, id: u16, with: Signal) -> Outcomes<()> {
    signal(pid, with);
    if wait_gone(pid, STOP_TIME_MAX) {
        return Ok(());
    }
    let hint = if with == Signal::KILL { "look at its disk" } else { "`swarmmq dev kill N` ends it" };
    Err(Failure::new(1, "still_running", format!("node {id} does not end"), hint))
}

fn end_one(directory: &Path, id: u16, with: Signal) -> Outcomes<Cluster> {
    let directory = existing(directory)?;
    let _lock = lock(&directory)?;
    let mut cluster = Cluster::load(&directory)?;
    let Some(pid) = cluster.node_mut(id)?.pid.take() else {
        cluster.save(&directory)?;
        return Err(Failure::new(
            1,
            "not_running",
            format!("node {id} does not run"),
            "see `swarmmq dev status`",
        ));
    };
    end(pid, id, with)?;
    cluster.save(&directory)?;
    Ok(cluster)
}

/// Sends a node a signal that does not end it.
pub(crate) fn tell(directory: &Path, id: u16, what: Signal) -> Outcomes<()> {
    let cluster = Cluster::load(directory)?;
    match cluster.node(id)?.pid {
        Some(pid) if signal(pid, what) => Ok(()),
        _ => {
            Err(Failure::new(1, "not_running", format!("node {id} does not run"), "see `swarmmq dev status`"))
        }
    }
}

/// `dev kill N`: SIGKILL.
pub(crate) fn kill(directory: &Path, id: u16) -> Outcomes<Cluster> {
    end_one(directory, id, Signal::KILL)
}

/// `dev stop N`: SIGTERM.
fn stop(directory: &Path, id: u16) -> Outcomes<Cluster> {
    end_one(directory, id, Signal::TERM)
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

pub(crate) fn show(cluster: &Cluster, as_json: bool) {
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
    fn roles_that_cannot_be_are_refused_before_anything_is_made() {
        let refused = |node, role| {
            up(Path::new("unused"), Some(3), None, &[RolesOf { node, roles: vec![role] }], false).unwrap_err()
        };
        assert!(refused(4, "store").message.contains("nodes 1 to 3"));
        let failure = refused(1, "ingress");
        assert!(failure.exit == 2 && failure.message.contains("store"), "{failure:?}");
        assert!(!Path::new("unused").exists());
    }
}
