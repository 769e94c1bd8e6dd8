//! When a local cluster is as well as the processes that run allow.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use swarmmq_client::{Options, SwarmMq};
use swarmmq_protocol::admin::{AdminAnswer, AdminRequest, NodeState, StatusReport};

use super::{
    directory::{Cluster, Node},
    process::START_TIME_MAX,
};
use crate::{
    discover::load_keyring,
    output::{Failure, Outcomes, note},
    runtime,
};

/// Time for replicas to catch up, which depends on how much there is.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);
/// Time for problems to go that have nothing to do with what was started, a full disk perhaps.
const PROBLEM_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause between questions.
const LOOK_PAUSE: Duration = Duration::from_millis(15);
/// Time after which whoever waits is told what for.
const SILENT_TIME_MAX: Duration = Duration::from_secs(5);
/// Role bit: holds replicas.
const STORE: u8 = 4;

/// Waits until every node that runs is a member, and every shard with a majority of them has a leader and all of them in
/// sync. Without a majority of the nodes there is nothing to wait for.
pub(crate) fn wait_settled(cluster: &Cluster) -> Outcomes<()> {
    let running = cluster.nodes.iter().filter(|node| node.pid.is_some()).count();
    let servers: Vec<String> = cluster
        .nodes
        .iter()
        .filter(|node| node.pid.is_some() && takes_clients(node))
        .map(|node| node.client.clone())
        .collect();
    if running * 2 <= cluster.nodes.len() || servers.is_empty() {
        return Ok(());
    }
    let keyring = load_keyring(&cluster.keyring.to_string_lossy())?;
    runtime()?.block_on(async {
        // What one node knows of shards led by others may be half a second old: whoever asks any of them afterwards
        // shall hear the same.
        for server in servers {
            let mut options = Options::new(vec![server], keyring.clone());
            options.connect_timeout = START_TIME_MAX;
            let client = SwarmMq::connect(options).await?;
            let result = settled(cluster, &client).await;
            client.close().await;
            result?;
        }
        Ok(())
    })
}

async fn settled(cluster: &Cluster, client: &SwarmMq) -> Outcomes<()> {
    let began = tokio::time::Instant::now();
    let mut told = false;
    loop {
        let missing = match client.admin(AdminRequest::Status).await {
            Ok(Some(AdminAnswer::Status(report))) => match missing(cluster, &report) {
                Some(missing) => missing,
                None => match worry(&report) {
                    // Whoever stopped nodes knows that something is wrong.
                    Some(problem) if is_whole(cluster) && began.elapsed() < PROBLEM_TIME_MAX => problem,
                    _ => return Ok(()),
                },
            },
            Ok(_) => "the cluster's answer is none".to_owned(),
            Err(error) => error.to_string(),
        };
        if began.elapsed() > SETTLE_TIME_MAX {
            return Err(Failure::new(
                10,
                "degraded",
                format!("the nodes run, and after {} s {missing}", SETTLE_TIME_MAX.as_secs()),
                "see `swarmmq status` and the nodes' logs",
            ));
        }
        if began.elapsed() > SILENT_TIME_MAX && !std::mem::replace(&mut told, true) {
            note(format!("waiting: {missing}"));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// What is wrong, beside nodes that are slow: those serve, and on a busy machine some are.
fn worry(report: &StatusReport) -> Option<String> {
    let slow = report.nodes.iter().filter(|node| node.state == NodeState::Slow);
    let slow: Vec<String> = slow.map(|node| format!("node {} is slow", node.id.0)).collect();
    report.problems.iter().map(|problem| &problem.what).find(|what| !slow.contains(what)).cloned()
}

fn is_whole(cluster: &Cluster) -> bool {
    cluster.nodes.iter().all(|node| node.pid.is_some())
}

/// Whether the node listens for clients, as far as its file says.
fn takes_clients(node: &Node) -> bool {
    fs::read_to_string(&node.config)
        .map_or(true, |text| !text.contains("\nroles = ") || text.contains("\"ingress\""))
}

/// What keeps the cluster from being as well as it can be.
fn missing(cluster: &Cluster, report: &StatusReport) -> Option<String> {
    let local: BTreeMap<u16, bool> = cluster.nodes.iter().map(|node| (node.id, node.pid.is_some())).collect();
    let is_alive = |state: NodeState| !matches!(state, NodeState::Dead | NodeState::Suspect);
    let alive: BTreeSet<u16> =
        report.nodes.iter().filter(|node| is_alive(node.state)).map(|node| node.id.0).collect();
    if let Some((node, _)) = local.iter().find(|(node, runs)| **runs && !alive.contains(node)) {
        return Some(format!("node {node} is no living member yet"));
    }
    // Nodes from elsewhere may belong to the cluster, too.
    let is_up = |node: &u16| local.get(node).copied().unwrap_or_else(|| alive.contains(node));
    let stores = report
        .nodes
        .iter()
        .filter(|node| node.roles & STORE != 0 && node.state != NodeState::Draining && is_up(&node.id.0));
    let copies = crate::status::copies(stores.count());
    let all_run = report.nodes.iter().all(|node| is_up(&node.id.0));
    for shard in &report.shards {
        let up: Vec<u16> = shard.replicas.iter().copied().filter(is_up).collect();
        if up.len() * 2 <= shard.replicas.len() {
            continue;
        }
        if !is_up(&shard.leader) {
            return Some(format!("shard {} has no leader", shard.id.0));
        }
        if let Some(node) = up.iter().find(|node| !shard.in_sync.contains(node)) {
            return Some(format!("node {node} has not caught up with shard {}", shard.id.0));
        }
        if all_run && up.len() != copies {
            return Some(format!("shard {} has {} replicas on its way to {copies}", shard.id.0, up.len()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use swarmmq_protocol::{
        admin::{NodeStatus, Problem, ShardStatus},
        id::{ClusterId, NodeId, ShardId, Term},
    };

    use super::*;

    fn cluster(runs: [bool; 3]) -> Cluster {
        let node = |(number, runs): (usize, bool)| Node {
            id: number as u16 + 1,
            pid: runs.then_some(100),
            client: String::new(),
            peer: String::new(),
            gossip: String::new(),
            admin: String::new(),
            config: PathBuf::new(),
            data: PathBuf::new(),
        };
        let nodes = runs.into_iter().enumerate().map(node).collect();
        Cluster { cluster: String::new(), keyring: PathBuf::new(), nodes }
    }

    fn report(alive: [bool; 3], leader: u16, replicas: &[u16], in_sync: &[u16]) -> StatusReport {
        let node = |(number, alive): (usize, bool)| NodeStatus {
            id: NodeId(number as u16 + 1),
            state: if alive { NodeState::Alive } else { NodeState::Dead },
            roles: 7,
            version: String::new(),
        };
        let shard = ShardStatus {
            id: ShardId(0),
            leader,
            term: Term(1),
            replicas: replicas.to_vec(),
            in_sync: in_sync.to_vec(),
        };
        StatusReport {
            cluster: ClusterId(1),
            nodes: alive.into_iter().enumerate().map(node).collect(),
            shards: vec![shard],
            problems: Vec::new(),
        }
    }

    #[test]
    fn a_whole_cluster_is_waited_for_until_every_shard_has_all_its_copies() {
        let (whole, all) = (cluster([true; 3]), [1, 2, 3]);
        let missing = |report: &StatusReport| missing(&whole, report).unwrap_or_default();
        assert_eq!(missing(&report([true; 3], 1, &all, &all)), "");
        assert!(missing(&report([true, true, false], 1, &all, &all)).contains("no living member"));
        assert!(missing(&report([true; 3], 0, &all, &[])).contains("no leader"));
        assert!(missing(&report([true; 3], 1, &all, &[1, 2])).contains("caught up"));
        assert!(missing(&report([true; 3], 1, &[1], &[1])).contains("1 replicas on its way to 3"));
    }

    #[test]
    fn what_needs_a_stopped_node_is_not_waited_for() {
        let all = [1, 2, 3];
        let two = cluster([true, true, false]);
        assert_eq!(missing(&two, &report([true, true, false], 1, &all, &[1, 2])), None);
        assert!(missing(&two, &report([true, true, false], 3, &all, &[])).is_some(), "the leader is gone");
        let one = cluster([true, false, false]);
        assert_eq!(missing(&one, &report([true, false, false], 0, &all, &[])), None);
    }

    #[test]
    fn a_slow_node_is_not_waited_for() {
        let all = [1, 2, 3];
        let mut report = report([true; 3], 1, &all, &all);
        let problem =
            |what: &str| Problem { what: what.into(), meaning: String::new(), action: String::new() };
        report.nodes[1].state = NodeState::Slow;
        report.problems = vec![problem("node 2 is slow")];
        assert_eq!(worry(&report), None);
        report.problems.push(problem("shard 3 has no leader"));
        assert_eq!(worry(&report).as_deref(), Some("shard 3 has no leader"));
    }
}
