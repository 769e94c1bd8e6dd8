//! `status`: how the cluster is, also when nothing answers.

use std::time::Duration;

use serde::Serialize;
use swarmmq_client::SwarmMq;
use swarmmq_protocol::admin::{AdminAnswer, AdminRequest, NodeState, StatusReport};

use crate::{
    address::unexpected,
    discover::Target,
    output::{Failure, Outcomes, print, say, table},
};

/// Time for an answer.
const TIME_MAX: Duration = Duration::from_secs(3);
/// Time for the settings, beside.
const SETTINGS_TIME_MAX: Duration = Duration::from_millis(500);
/// The setting that says whether nodes may join without a token.
const OPEN_JOIN: &str = "cluster.open_join";
/// Names of roles, by bit.
const ROLES: [&str; 3] = ["ingress", "router", "store"];

#[derive(Serialize)]
struct Status {
    healthy: bool,
    state: &'static str,
    cluster: Option<String>,
    /// Whether nodes may join without a token; null if that could not be found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    open_join: Option<bool>,
    nodes: Vec<Node>,
    shards: Vec<Shard>,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct Node {
    id: u16,
    state: &'static str,
    roles: Vec<&'static str>,
    version: String,
}

#[derive(Serialize)]
struct Shard {
    id: u32,
    leader: u16,
    term: u64,
    replicas: Vec<u16>,
    in_sync: Vec<u16>,
}

#[derive(Serialize)]
struct Problem {
    what: String,
    meaning: String,
    #[serde(rename = "do")]
    action: String,
}

/// Copies of each shard that `stores` nodes can hold: an even number survives no more losses than the odd one below.
pub(crate) fn copies(stores: usize) -> usize {
    let most = usize::from(swarmmq_server::REPLICAS).min(stores);
    if most.is_multiple_of(2) { most.saturating_sub(1).max(1) } else { most }
}

impl Status {
    fn of(report: StatusReport) -> Self {
        let is_dead = |node: &u16| {
            let known = report.nodes.iter().find(|known| known.id.0 == *node);
            known.is_none_or(|known| known.state == NodeState::Dead)
        };
        // Who leads serves, however far the others are behind; and whose majority has just gone does not for long.
        let headless = |shard: &swarmmq_protocol::admin::ShardStatus| {
            let dead = shard.replicas.iter().filter(|node| is_dead(node)).count();
            shard.leader == 0 || dead * 2 >= shard.replicas.len()
        };
        let state = if report.shards.iter().any(headless) {
            "critical"
        } else if report.nodes.iter().any(|node| node.state != NodeState::Alive)
            || report.shards.iter().any(|shard| shard.in_sync.len() < shard.replicas.len())
            || !report.problems.is_empty()
        {
            "degraded"
        } else {
            "healthy"
        };
        let roles = |bits: u8| ROLES.into_iter().enumerate().filter(move |(bit, _)| bits >> bit & 1 == 1);
        Self {
            healthy: state == "healthy",
            state,
            cluster: Some(report.cluster.to_string()),
            open_join: None,
            nodes: report
                .nodes
                .into_iter()
                .map(|node| Node {
                    id: node.id.0,
                    state: node.state.text(),
                    roles: roles(node.roles).map(|(_, role)| role).collect(),
                    version: node.version,
                })
                .collect(),
            shards: report
                .shards
                .into_iter()
                .map(|shard| Shard {
                    id: shard.id.0,
                    leader: shard.leader,
                    term: shard.term.0,
                    replicas: shard.replicas,
                    in_sync: shard.in_sync,
                })
                .collect(),
            problems: report
                .problems
                .into_iter()
                .map(|problem| Problem {
                    what: problem.what,
                    meaning: problem.meaning,
                    action: problem.action,
                })
                .collect(),
        }
    }

    fn unreachable(failure: &Failure) -> Self {
        let problem = Problem {
            what: failure.message.clone(),
            meaning: "nothing can be sent or received from here".to_owned(),
            action: failure.hint.clone(),
        };
        Self {
            healthy: false,
            state: "unreachable",
            cluster: None,
            open_join: None,
            nodes: Vec::new(),
            shards: Vec::new(),
            problems: vec![problem],
        }
    }

    fn exit_code(&self) -> u8 {
        match self.state {
            "healthy" => 0,
            "degraded" => 10,
            "critical" => 11,
            _ => 3,
        }
    }

    fn show(&self) {
        say(self.state);
        let ids = |ids: &[u16]| ids.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        if let Some(cluster) = &self.cluster {
            say(format!("cluster {cluster}"));
            if self.open_join == Some(true) {
                say("joining is open: nodes that know the peer secret need no token");
            }
            let rows: Vec<Vec<String>> = self
                .nodes
                .iter()
                .map(|node| {
                    vec![node.id.to_string(), node.state.into(), node.roles.join(","), node.version.clone()]
                })
                .collect();
            table(&["NODE", "STATE", "ROLES", "VERSION"], &rows);
            let rows: Vec<Vec<String>> = self
                .shards
                .iter()
                .map(|shard| {
                    let leader = if shard.leader == 0 { "none".to_owned() } else { shard.leader.to_string() };
                    vec![
                        shard.id.to_string(),
                        leader,
                        shard.term.to_string(),
                        ids(&shard.replicas),
                        ids(&shard.in_sync),
                    ]
                })
                .collect();
            table(&["SHARD", "LEADER", "TERM", "REPLICAS", "IN SYNC"], &rows);
        }
        for problem in &self.problems {
            say(format!(
                "problem: {}\n  meaning: {}\n  do: {}",
                problem.what, problem.meaning, problem.action
            ));
        }
    }
}

/// The command.
pub(crate) async fn run(target: &Target, as_json: bool) -> Outcomes<u8> {
    let status = match ask(target).await {
        Ok((report, open_join)) => Status { open_join, ..Status::of(report) },
        // A node that is reached and does not answer in time is as good as none.
        Err(failure) if failure.exit == 3 || failure.exit == 5 => Status::unreachable(&failure),
        Err(failure) => return Err(failure),
    };
    if as_json {
        print(&status);
    } else {
        status.show();
    }
    Ok(status.exit_code())
}

async fn ask(target: &Target) -> Outcomes<(StatusReport, Option<bool>)> {
    let client = target.connect(TIME_MAX).await?;
    let Some(AdminAnswer::Status(report)) = client.admin(AdminRequest::Status).await? else {
        return Err(unexpected());
    };
    // Settings are the cluster's, not one node's: where it cannot agree, status is to come all the same.
    let settings = tokio::time::timeout(SETTINGS_TIME_MAX, client.admin(AdminRequest::SettingList)).await;
    let open_join = match settings {
        Ok(Ok(Some(AdminAnswer::Settings(all)))) => {
            all.iter().find(|(name, _)| name == OPEN_JOIN).map(|(_, value)| value == "true")
        }
        _ => None,
    };
    Ok((report, open_join))
}

/// What the cluster says when it is asked why something takes so long, in a clause.
pub(crate) async fn problem(client: &SwarmMq) -> String {
    match client.admin(AdminRequest::Status).await {
        Ok(Some(AdminAnswer::Status(report))) => match report.problems.first() {
            Some(problem) => format!("the cluster says: {}", problem.what),
            None => "the cluster names no problem".to_owned(),
        },
        _ => "the cluster does not answer".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::{
        admin::{NodeStatus, ShardStatus},
        id::{ClusterId, NodeId, ShardId, Term},
    };

    use super::*;

    fn report() -> StatusReport {
        StatusReport {
            cluster: ClusterId(1),
            nodes: (1..=3)
                .map(|id| NodeStatus {
                    id: NodeId(id),
                    state: NodeState::Alive,
                    roles: 0b111,
                    version: "0.1.0".into(),
                })
                .collect(),
            shards: vec![ShardStatus {
                id: ShardId(0),
                leader: 1,
                term: Term(3),
                replicas: vec![1, 2, 3],
                in_sync: vec![1, 2, 3],
            }],
            problems: Vec::new(),
        }
    }

    #[test]
    fn a_healthy_cluster_has_the_promised_shape() {
        let mut report = report();
        report.nodes.truncate(1);
        (report.shards[0].replicas, report.shards[0].in_sync) = (vec![1], vec![1]);
        let status = Status::of(report);
        assert_eq!(status.exit_code(), 0);
        assert_eq!(
            serde_json::to_string(&status).unwrap(),
            r#"{"healthy":true,"state":"healthy","cluster":"00000000000000000000000000000001","nodes":[{"id":1,"state":"alive","roles":["ingress","router","store"],"version":"0.1.0"}],"shards":[{"id":0,"leader":1,"term":3,"replicas":[1],"in_sync":[1]}],"problems":[]}"#
        );
    }

    #[test]
    fn a_missing_replica_is_degraded_and_a_missing_quorum_critical() {
        let mut degraded = report();
        degraded.shards[0].in_sync = vec![1, 2];
        assert_eq!(Status::of(degraded).exit_code(), 10);
        let mut dead = report();
        dead.nodes[2].state = NodeState::Dead;
        assert_eq!(Status::of(dead.clone()).exit_code(), 10);
        dead.nodes[1].state = NodeState::Dead;
        assert_eq!(Status::of(dead).exit_code(), 11, "its leader cannot lead for long");
        let mut critical = report();
        critical.shards[0].leader = 0;
        assert_eq!(Status::of(critical).exit_code(), 11);
    }

    #[test]
    fn a_cluster_that_does_not_answer_is_reported_too() {
        let status = Status::unreachable(&Failure::new(3, "unreachable", "no server", "start one"));
        assert_eq!(status.exit_code(), 3);
        assert_eq!(
            serde_json::to_string(&status).unwrap(),
            r#"{"healthy":false,"state":"unreachable","cluster":null,"nodes":[],"shards":[],"problems":[{"what":"no server","meaning":"nothing can be sent or received from here","do":"start one"}]}"#
        );
    }
}
