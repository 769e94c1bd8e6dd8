//! `node add`, `node token`, `node drain`, `node remove`: nodes come to a cluster, are emptied, and go.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;
use serde_json::json;
use swarmmq_client::{Code, Error, SwarmMq};
use swarmmq_protocol::{
    access::AccessRequest,
    admin::{AdminAnswer, AdminRequest, NodeState, StatusReport},
    id::NodeId,
    join_token::JoinToken,
};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::{
    address::unexpected,
    dev::{self, parse_roles},
    discover::{CONNECT_TIME_MAX, LOCAL, Target},
    output::{Failure, Outcomes, note, print, say},
    parse,
    status::copies,
};

/// Pause between looks at a node that is being emptied.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Time to find out whether a node is a member, once nobody said what became of the question. A removed one ends in 3 s.
const CONFIRM_TIME_MAX: Duration = Duration::from_secs(10);
/// Role bit: holds replicas.
const STORE: u8 = 4;

/// What to do with the nodes of a cluster.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// Add a node to a local cluster, with the next number, and start it
    Add {
        /// Where the local cluster lives
        #[arg(long, default_value = LOCAL)]
        dir: PathBuf,
        /// What it does
        #[arg(long, value_name = "ROLE,...", default_value = "ingress,router,store")]
        roles: String,
    },
    /// Print what lets one more node join, once
    Token {
        /// It can be used for so long
        #[arg(long, value_name = "TIME", value_parser = parse::duration, default_value = "1h")]
        expires: Duration,
        /// Only by the node of this number
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        node: Option<u16>,
    },
    /// Empty a node: others take over its shards; waits for that
    Drain {
        /// Which
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        node: u16,
        /// Let it hold shards again
        #[arg(long)]
        undo: bool,
        /// Also if shards have fewer copies afterwards
        #[arg(long)]
        force: bool,
        /// Longest wait; the draining goes on without
        #[arg(long, value_name = "TIME", value_parser = parse::duration, default_value = "10m")]
        timeout: Duration,
    },
    /// Remove a node from the cluster, for ever; its disk can never come back
    Remove {
        /// Which
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        node: u16,
        /// Only say what would follow
        #[arg(long)]
        dry_run: bool,
        /// At once, without emptying it first: what only it holds is lost
        #[arg(long)]
        force: bool,
        /// Longest wait until it is empty
        #[arg(long, value_name = "TIME", value_parser = parse::duration, default_value = "10m")]
        timeout: Duration,
        /// The local cluster whose list it is struck off
        #[arg(long, default_value = LOCAL)]
        dir: PathBuf,
    },
}

/// `node add`.
pub(crate) fn add(dir: &Path, roles: &str, as_json: bool) -> Outcomes<u8> {
    let roles = parse_roles(roles).map_err(|message| Failure::usage(message, "correct --roles"))?;
    let (cluster, id) = dev::add(dir, &roles)?;
    let node = cluster.node(id)?;
    if as_json {
        print(node);
    } else {
        say(format!("node {id} belongs to the cluster; client {}, admin http://{}", node.client, node.admin));
    }
    Ok(0)
}

/// `node drain` and `node remove`.
pub(crate) async fn run(command: &MemberCommand, target: &Target, as_json: bool) -> Outcomes<u8> {
    let client = target.connect(CONNECT_TIME_MAX).await?;
    let result = match command {
        MemberCommand::Add { .. } => Ok(0),
        MemberCommand::Token { expires, node } => token(&client, *expires, *node, as_json).await,
        MemberCommand::Drain { node, undo: true, .. } => undo(&client, *node, as_json).await,
        MemberCommand::Drain { node, force, timeout, .. } => {
            let drained = drain(&client, *node, *force, *timeout).await;
            drained.map(|()| told(as_json, &json!({"node": node, "draining": true, "shards": 0}), || {
                format!("node {node} holds nothing any more; `swarmmq node remove {node}` lets it go, `swarmmq node drain {node} --undo` keeps it")
            }))
        }
        MemberCommand::Remove { node, dry_run: true, .. } => foretell(&client, *node, as_json).await,
        MemberCommand::Remove { node, force, timeout, .. } => {
            remove(&client, *node, *force, *timeout, as_json).await
        }
    };
    client.close().await;
    let code = result?;
    if let MemberCommand::Remove { node, dry_run: false, dir, .. } = command
        && target.is_local(dir)
    {
        dev::forget(dir, *node)?;
    }
    Ok(code)
}

fn told(as_json: bool, object: &serde_json::Value, words: impl FnOnce() -> String) -> u8 {
    if as_json {
        print(object);
    } else {
        say(words());
    }
    0
}

/// Makes a join token. The cluster is told its hash; the token itself is printed here and nowhere else.
async fn token(client: &SwarmMq, expires: Duration, node: Option<u16>, as_json: bool) -> Outcomes<u8> {
    let mut secret = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut secret[..]).expect("the operating system gives random bytes");
    let token = JoinToken::new(client.cluster(), *secret);
    let request = AccessRequest::JoinToken { hash: token.hash(), node: node.map(NodeId), expires };
    client.admin(AdminRequest::Access(request)).await?;
    let text = token.to_text();
    if as_json {
        print(&json!({ "token": *text, "node": node, "expires_s": expires.as_secs() }));
    } else {
        say(&*text);
        note(format!(
            "for one node, once, within {} s: swarmmq node --config FILE --join-token FILE",
            expires.as_secs()
        ));
    }
    Ok(0)
}

async fn undo(client: &SwarmMq, node: u16, as_json: bool) -> Outcomes<u8> {
    ask(client, node, AdminRequest::NodeDrain { node: NodeId(node), draining: false }).await?;
    Ok(told(as_json, &json!({"node": node, "draining": false}), || {
        format!("node {node} may hold shards again")
    }))
}

/// Empties a node and waits until it is empty.
async fn drain(client: &SwarmMq, node: u16, force: bool, timeout: Duration) -> Outcomes<()> {
    let plan = Plan::of(&status(client).await?, node)?;
    if !force {
        plan.refuse_fewer_copies()?;
    }
    ask(client, node, AdminRequest::NodeDrain { node: NodeId(node), draining: true }).await?;
    let deadline = Instant::now() + timeout;
    let mut said = usize::MAX;
    let mut missing_since = None;
    loop {
        let left = match Plan::of(&status(client).await?, node) {
            Ok(plan) => plan.shards,
            // It was there. Whoever answers may be catching up itself and know nobody for a moment.
            Err(failure) => {
                let since = *missing_since.get_or_insert_with(Instant::now);
                if since.elapsed() > CONFIRM_TIME_MAX {
                    return Err(failure);
                }
                tokio::time::sleep(LOOK_PAUSE).await;
                continue;
            }
        };
        missing_since = None;
        if left == 0 {
            return Ok(());
        }
        if left != said {
            note(format!("node {node} still holds {left} shards"));
            said = left;
        }
        if Instant::now() > deadline {
            return Err(Failure::new(
                8,
                "timeout",
                format!(
                    "node {node} still holds {left} shards after {} s; the draining goes on",
                    timeout.as_secs()
                ),
                "run it again to go on waiting; `swarmmq status` tells who holds what",
            ));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

async fn foretell(client: &SwarmMq, node: u16, as_json: bool) -> Outcomes<u8> {
    let plan = Plan::of(&status(client).await?, node)?;
    let object = json!({
        "node": node,
        "dry_run": true,
        "shards": plan.shards,
        "copies": plan.copies_now,
        "copies_after": plan.copies_after,
    });
    Ok(told(as_json, &object, || {
        format!(
            "node {node} holds {} shards, which others would take over first; copies of each shard: {} now, {} then",
            plan.shards, plan.copies_now, plan.copies_after
        )
    }))
}

async fn remove(client: &SwarmMq, node: u16, force: bool, timeout: Duration, as_json: bool) -> Outcomes<u8> {
    if force {
        Plan::of(&status(client).await?, node)?;
    } else {
        drain(client, node, false, timeout).await?;
    }
    match ask(client, node, AdminRequest::NodeRemove { node: NodeId(node) }).await {
        Ok(()) => {}
        // It was there: this is the answer to a repetition, after the leader that did it was lost.
        Err(failure) if failure.code == "no_such_node" => {}
        Err(failure) if failure.unknown => confirm_removal(client, node, failure).await?,
        Err(failure) => return Err(failure),
    }
    Ok(told(as_json, &json!({"node": node, "removed": true}), || {
        format!(
            "node {node} belongs to the cluster no more; its process ends, its data directory is of no use"
        )
    }))
}

/// Whoever was asked through the node itself has no answer: it is cut off as soon as it is removed.
async fn confirm_removal(client: &SwarmMq, node: u16, failure: Failure) -> Outcomes<()> {
    let deadline = Instant::now() + CONFIRM_TIME_MAX;
    while Instant::now() < deadline {
        if status(client).await.is_ok_and(|report| report.nodes.iter().all(|known| known.id.0 != node)) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Err(failure)
}

/// What follows from the loss of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    node: u16,
    /// Shards with a replica there.
    shards: usize,
    copies_now: usize,
    copies_after: usize,
}

impl Plan {
    fn of(report: &StatusReport, node: u16) -> Outcomes<Self> {
        if !report.nodes.iter().any(|known| known.id.0 == node) {
            return Err(no_such_node(node));
        }
        let stores = report
            .nodes
            .iter()
            .filter(|known| known.roles & STORE != 0 && known.state != NodeState::Draining);
        let after = stores.clone().filter(|known| known.id.0 != node).count();
        let shards = report.shards.iter().filter(|shard| shard.replicas.contains(&node)).count();
        Ok(Self { node, shards, copies_now: copies(stores.count()), copies_after: copies(after) })
    }

    fn refuse_fewer_copies(&self) -> Outcomes<()> {
        let Self { node, copies_now, copies_after, .. } = self;
        if copies_after >= copies_now {
            return Ok(());
        }
        Err(Failure::new(
            1,
            "too_few_nodes",
            format!("without node {node} shards would have {copies_after} copies instead of {copies_now}"),
            "add a node with the role store first, or use --force if that is what you want",
        ))
    }
}

fn no_such_node(node: u16) -> Failure {
    Failure::new(1, "no_such_node", format!("the cluster has no node {node}"), "see `swarmmq status`")
}

async fn status(client: &SwarmMq) -> Outcomes<StatusReport> {
    match client.admin(AdminRequest::Status).await? {
        Some(AdminAnswer::Status(report)) => Ok(report),
        _ => Err(unexpected()),
    }
}

async fn ask(client: &SwarmMq, node: u16, request: AdminRequest) -> Outcomes<()> {
    match client.admin(request).await {
        Ok(_) => Ok(()),
        Err(Error::Failed { code: Code::NoSuchNode, .. }) => Err(no_such_node(node)),
        Err(error) => {
            let mut failure = Failure::from(error);
            if failure.code == Code::NotAllowed.text() {
                failure.hint = "add a node with the role store first".into();
            }
            Err(failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::{
        admin::{NodeStatus, ShardStatus},
        id::{ClusterId, ShardId, Term},
    };

    use super::*;

    fn report(nodes: u16) -> StatusReport {
        let node =
            |id| NodeStatus { id: NodeId(id), state: NodeState::Alive, roles: 7, version: String::new() };
        let shard = |id| ShardStatus {
            id: ShardId(id),
            leader: 1,
            term: Term(1),
            replicas: vec![1, 2, 3],
            in_sync: vec![1, 2, 3],
        };
        StatusReport {
            cluster: ClusterId(1),
            nodes: (1..=nodes).map(node).collect(),
            shards: (0..4).map(shard).collect(),
            problems: Vec::new(),
        }
    }

    #[test]
    fn a_node_goes_without_asking_only_if_no_copy_is_missed() {
        let plan = Plan::of(&report(4), 1).unwrap();
        assert_eq!((plan.shards, plan.copies_now, plan.copies_after), (4, 3, 3));
        assert_eq!(plan.refuse_fewer_copies(), Ok(()));
        let failure = Plan::of(&report(3), 1).unwrap().refuse_fewer_copies().unwrap_err();
        assert!(failure.message.contains("1 copies instead of 3"), "{failure:?}");
        assert_eq!(Plan::of(&report(3), 4).unwrap_err().code, "no_such_node");
        // One that is empty already changes nothing.
        let mut drained = report(4);
        drained.nodes[3].state = NodeState::Draining;
        assert_eq!(Plan::of(&drained, 4).unwrap().refuse_fewer_copies(), Ok(()));
    }
}
