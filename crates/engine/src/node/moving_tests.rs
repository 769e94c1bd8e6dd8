//! Groups that change: nodes emptied and removed, and what is left of a group when some of them are lost.

use swarmmq_protocol::consensus::{Message, MessageKind};

use super::*;
use crate::shard::intake::StatePart;

#[test]
fn a_drained_node_holds_nothing_and_a_removed_one_is_not_let_in_again() {
    let mut cluster = healthy(4);
    let client = cluster.connect(NodeId(2));
    let drain = AdminRequest::NodeDrain { node: NodeId(4), draining: true };
    assert_eq!(asked(&mut cluster, client, drain), None);
    let is_empty = |cluster: &mut Cluster| {
        let status = cluster.node(NodeId(2)).status();
        status.shards.iter().all(|shard| !shard.replicas.contains(&4) && shard.in_sync.len() == 3)
    };
    cluster.until("node 4 is empty", Duration::from_secs(20), is_empty);
    let state = |cluster: &mut Cluster| cluster.node(NodeId(1)).status().nodes[3].state;
    assert_eq!(state(&mut cluster), NodeState::Draining);

    let hello = cluster.node(NodeId(4)).hello();
    assert_eq!(asked(&mut cluster, client, AdminRequest::NodeRemove { node: NodeId(4) }), None);
    cluster.pass(Duration::from_millis(100));
    let now = cluster.now;
    assert_eq!(cluster.node(NodeId(1)).admits(now, &hello).unwrap_err().0, Code::Removed);
    let nobody = AdminRequest::NodeRemove { node: NodeId(9) };
    assert_eq!(asked(&mut cluster, client, nobody), Some(Code::NoSuchNode));
}

#[test]
fn the_last_node_that_holds_data_cannot_be_removed() {
    let mut cluster = Cluster::new(1);
    cluster.add(2, 3);
    let both = |cluster: &mut Cluster| cluster.node(NodeId(2)).status().nodes.len() == 2;
    cluster.until("both are members", Duration::from_secs(5), both);
    let client = cluster.connect(NodeId(2));
    let remove = |node| AdminRequest::NodeRemove { node: NodeId(node) };
    assert_eq!(asked(&mut cluster, client, remove(1)), Some(Code::NotAllowed));
    assert_eq!(asked(&mut cluster, client, remove(2)), None);
}

/// A replica forgot its log as soon as it had left. After a power cut the others, who had not stored yet that the leave was
/// committed, still counted on its vote; with one of them gone for good, nobody could lead.
#[test]
fn a_replica_that_left_forgets_nothing_before_most_others_have_stored_that_it_left() {
    let mut cluster = healthy(5);
    let client = cluster.connect(NodeId(1));
    let leader = cluster.leader(ShardId(0));
    let voters = cluster.node(leader).shards[0].conf().voters.clone();
    let leaver = voters.into_iter().map(node_of).find(|node| *node != leader).unwrap();
    assert_eq!(asked(&mut cluster, client, AdminRequest::NodeDrain { node: leaver, draining: true }), None);
    cluster.until("it has left and forgotten", Duration::from_secs(20), |cluster| {
        cluster.node(leaver).shards[0].conf().is_empty()
    });
    let voters = cluster.node(leader).shards[0].conf().voters.clone();
    let knows = |replica: &&u64| {
        let host = &cluster.hosts[&node_of(**replica)];
        let mut restarted = restore_as(host.config.clone(), &host.disk, cluster.now).unwrap();
        restarted.flush(cluster.now, &mut Effects::default());
        let known = &restarted.shards[0].conf().voters;
        !known.is_empty() && known.iter().all(|voter| node_of(*voter) != leaver)
    };
    assert!(voters.iter().filter(knows).count() * 2 > voters.len(), "who restarts now counts on its vote");
}

/// A replica that had left was asked to follow again and confirmed the first of the entries it lacked. Then it heard, late,
/// that it had left, and forgot what its leader counted on from now on.
#[test]
fn what_was_said_before_a_replica_followed_again_does_not_make_it_forget() {
    let mut cluster = healthy(3);
    let index = 0;
    let leader = cluster.leader(ShardId(0));
    let voters = cluster.node(leader).shards[index].conf().voters.clone();
    let (from, to) = (cluster.hosts[&leader].config.replica(), *voters.last().unwrap());
    let to = if to == from { voters[0] } else { to };
    let others: Vec<u64> = voters.iter().copied().filter(|voter| *voter != to).collect();
    let (follower, now) = (node_of(to), cluster.now);
    let has = cluster.node(follower).shards[index].state().applied;
    let term = cluster.node(follower).shards[index].term().0;
    let append =
        Message { kind: MessageKind::Append, from, to, term, commit: has + 20, ..Message::default() };
    let tell = |cluster: &mut Cluster, applied| {
        cluster.node(follower).shards[index].told_of_group(&others, &[], applied, true);
        cluster.node(follower).dirty[index] = true;
        cluster.run();
        cluster.node(follower).shards[index].conf().is_empty()
    };
    cluster.node(follower).shards[index].step(now, append);
    assert!(!tell(&mut cluster, has + 10), "it was said before");
    assert!(tell(&mut cluster, has + 20));
}

/// The leader of three took the vote of one that was here and kept the vote of one that was lost: two, who could not commit.
#[test]
fn a_group_gives_up_no_voter_it_needs_while_another_is_lost() {
    let mut cluster = healthy(3);
    let mut sender = Sender::new(1);
    let shard = sender.shard("a", None, false);
    let leader = cluster.leader(shard);
    let others: Vec<NodeId> = (1..=3).map(NodeId).filter(|node| *node != leader).collect();
    let (drained, lost) = (others[0], others[1]);
    let client = cluster.connect(leader);
    cluster.make(client, "a");
    let voters = |cluster: &mut Cluster| cluster.node(leader).shards[shard.0 as usize].conf().voters.clone();
    let before = voters(&mut cluster);
    cluster.kill(lost);
    assert_eq!(asked(&mut cluster, client, AdminRequest::NodeDrain { node: drained, draining: true }), None);
    cluster.pass(Duration::from_secs(10));
    assert_eq!(voters(&mut cluster), before);
    cluster.publish(client, &mut sender, "a");
    cluster.start(lost);
    cluster.until("the drained node is empty", Duration::from_secs(20), |cluster| {
        voters(cluster).into_iter().all(|voter| node_of(voter) != drained)
    });
    cluster.publish(client, &mut sender, "a");
}

/// All parts of a state were sent at once. Of a shard with three million messages that was more than a link holds: it was
/// given up for being too full, the state was asked for again, and whoever needed it never got it.
#[test]
fn a_large_state_is_given_a_few_parts_at_a_time() {
    let mut cluster = healthy(3);
    let sender = Sender::new(1);
    let shard = sender.shard("a", None, false);
    let index = shard.0 as usize;
    let leader = cluster.leader(shard);
    let lost = (1..=3).map(NodeId).find(|node| *node != leader).unwrap();
    let client = cluster.connect(leader);
    cluster.make(client, "a");
    assert_eq!(cluster.ask(client, &sender.open(shard)), Frame::Answer(Answer::ok()));
    cluster.kill(lost);
    let (frames, per_frame) = (1_700, 250);
    for first in (0..frames).map(|frame| 1 + frame * per_frame) {
        let sealed = (first..first + per_frame).flat_map(|n| sender.seal(shard, "a", None, n, 0)).collect();
        let Frame::Published(Published { runs }) =
            cluster.ask(client, &sender.frame(shard, per_frame as u16, sealed))
        else {
            panic!()
        };
        assert_eq!(runs[0].outcome, Outcome::Ok, "{runs:?}");
    }
    let now = cluster.now;
    let shards = &mut cluster.node(leader).shards;
    let given = shards[index].give_state(now, lost);
    let (of, parts) = ((given[0].index, given[0].term), given[0].parts);
    assert!((9..=12).contains(&parts), "{parts} parts");
    let numbers = |parts: Vec<StatePart>| parts.iter().map(|part| part.part).collect::<Vec<_>>();
    assert_eq!(numbers(given), [0, 1, 2, 3]);
    assert_eq!(numbers(shards[index].give_more(now, lost, of, u32::MAX)), [4, 5, 6, 7], "a lie");
    assert_eq!(numbers(shards[index].give_more(now, lost, of, 4)), [], "so many are under way");
    assert_eq!(numbers(shards[index].give_more(now, lost, of, 5)), [8]);
    assert_eq!(numbers(shards[index].give_more(now, lost, (of.0, of.1 + 1), 9)), [], "another one");
    assert_eq!(numbers(shards[index].give_more(now, lost, of, 9)), (9..parts).collect::<Vec<_>>());
    cluster.start(lost);
    cluster.until("it has all of it", Duration::from_secs(10), |cluster| {
        let applied =
            |node: NodeId| cluster.hosts[&node].node.as_ref().unwrap().shards[index].state().applied;
        applied(lost) == applied(leader)
    });
    let queues = &cluster.node(lost).shards[index].state().queues;
    let messages = &queues[&Address::parse("a").unwrap()].messages;
    assert_eq!(messages.len(), frames as usize * per_frame as usize);
}
