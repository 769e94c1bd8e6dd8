//! Nodes whose turns come late: who leads in their place, for how long, and what they keep.

use super::*;
use crate::shard::member::REPLICAS;

const SLOW: Duration = Duration::from_millis(300);
const LEAVES_WITHIN: Duration = Duration::from_secs(5);
/// Longer than a node stays slow that was slow once.
const RETURNS_WITHIN: Duration = Duration::from_secs(40);

impl Cluster {
    /// From now on each turn of `node` takes so long.
    fn slow_down(&mut self, node: NodeId, turn: Duration) {
        self.hosts.get_mut(&node).unwrap().turn = turn;
    }

    fn led_by(&self, node: NodeId) -> usize {
        let shards = &self.hosts[&node].node.as_ref().unwrap().shards;
        shards.iter().filter(|shard| shard.is_serving()).count()
    }

    /// Nodes that somebody believes to be slow.
    fn slow_nodes(&self) -> BTreeSet<NodeId> {
        let nodes = self.hosts.values().filter_map(|host| host.node.as_ref());
        let slow = nodes.flat_map(|node| node.swarm.fitness().all());
        slow.filter(|(_, is_slow)| *is_slow).map(|(node, _)| node).collect()
    }

    fn leads_left(&self) -> u64 {
        self.hosts.values().map(|host| host.node.as_ref().unwrap().peers.leads_left).sum()
    }

    /// Time passes, and of `node` it is noted when it gets leads (true) and when it loses some.
    fn watch(&mut self, node: NodeId, time: Duration) -> Vec<(Duration, bool, usize)> {
        let (since, mut changes) = (self.now.monotonic, Vec::new());
        let mut leads = self.led_by(node);
        while self.now.monotonic.since(since) < time {
            self.pass(Duration::from_millis(10));
            let now = self.led_by(node);
            if now != leads {
                changes.push((self.now.monotonic.since(since), now > leads, now.abs_diff(leads)));
            }
            leads = now;
        }
        changes
    }
}

/// Five nodes, each leading what it should; and one that leads most.
fn at_rest() -> (Cluster, NodeId, usize) {
    let mut cluster = healthy(5);
    cluster.pass(Duration::from_secs(12));
    let most = (1..=5).map(NodeId).max_by_key(|node| cluster.led_by(*node)).unwrap();
    let leads = cluster.led_by(most);
    assert!(leads >= 2, "{leads} of {SHARDS}");
    assert_eq!(cluster.slow_nodes(), BTreeSet::new());
    (cluster, most, leads)
}

fn groups(cluster: &Cluster) -> Vec<Vec<u64>> {
    let leading = |index: usize| {
        let nodes = cluster.hosts.values().filter_map(|host| host.node.as_ref());
        let shard = nodes.map(|node| &node.shards[index]).find(|shard| shard.is_serving());
        shard.expect("somebody leads").conf().voters.clone()
    };
    (0..=SHARDS as usize).map(leading).collect()
}

#[test]
fn a_slow_node_loses_its_leads_and_gets_them_back_one_by_one() {
    let (mut cluster, slow, leads) = at_rest();
    let before = groups(&cluster);
    cluster.slow_down(slow, SLOW);
    cluster.until("it leads nothing", LEAVES_WITHIN, |cluster| cluster.led_by(slow) == 0);
    assert_eq!(cluster.leads_left(), leads as u64, "by itself, not by elections");
    assert_eq!(groups(&cluster), before, "it holds what it held");
    assert_eq!(cluster.slow_nodes(), BTreeSet::from([slow]));
    let metrics = |cluster: &mut Cluster, of: NodeId| {
        let metrics = cluster.node(of).report().metrics;
        let found = metrics.into_iter().find(|metric| metric.name == "swarmmq_node_slow").unwrap();
        let of_slow = found.samples.into_iter().find(|(labels, _)| labels[0].1 == slow.0.to_string());
        of_slow.expect("everybody is listed").1
    };
    for node in (1..=5).map(NodeId) {
        assert_eq!(metrics(&mut cluster, node), 1.0, "all agree");
        let status = cluster.node(node).status();
        let state = status.nodes.iter().find(|known| known.id == slow).unwrap().state;
        assert_eq!(state, swarmmq_protocol::admin::NodeState::Slow);
        assert!(status.problems.iter().any(|problem| problem.what.contains("slow")), "{:?}", status.problems);
    }
    let said = cluster.node(slow).report().problems;
    assert!(said.iter().any(|problem| problem.contains("slow")), "{said:?}");
    // While it lasts nothing comes back.
    assert_eq!(cluster.watch(slow, Duration::from_secs(30)), []);
    cluster.slow_down(slow, Duration::ZERO);
    let changes = cluster.watch(slow, RETURNS_WITHIN);
    assert_eq!(cluster.led_by(slow), leads, "{changes:?}");
    assert!(changes.iter().all(|(_, comes, count)| *comes && *count == 1), "{changes:?}");
    assert!(changes[0].0 > Duration::from_secs(5), "not before it has been fit for long: {changes:?}");
    let pauses = changes.windows(2).map(|pair| pair[1].0 - pair[0].0);
    pauses.for_each(|pause| assert!(pause >= Duration::from_millis(200), "{changes:?}"));
    assert_eq!(metrics(&mut cluster, slow), 0.0);
}

#[test]
fn of_three_slow_nodes_of_five_two_are_left_and_the_third_keeps_its_leads() {
    let (mut cluster, most, leads) = at_rest();
    let others: Vec<NodeId> = (1..=5).map(NodeId).filter(|node| *node != most).take(2).collect();
    others.iter().for_each(|node| cluster.slow_down(*node, SLOW));
    let called = |cluster: &Cluster, node: NodeId| {
        let fitness = cluster.hosts[&node].node.as_ref().unwrap().swarm.fitness();
        fitness.all().filter(|(_, slow)| *slow).map(|(node, _)| node).collect::<Vec<_>>()
    };
    let agree = |cluster: &mut Cluster| (1..=5).all(|node| called(cluster, NodeId(node)) == others);
    cluster.until("all agree about two", LEAVES_WITHIN, agree);
    cluster.slow_down(most, SLOW * 2 / 3);
    for _ in 0..100 {
        cluster.pass(Duration::from_millis(200));
        assert!(agree(&mut cluster), "a third would be most");
        assert!(cluster.led_by(most) == leads, "where it is led nobody is called slow");
    }
    assert_eq!(others.iter().map(|node| cluster.led_by(*node)).sum::<usize>(), 0);
}

#[test]
fn a_node_that_is_slow_again_and_again_gets_its_leads_back_twice_a_minute_at_most() {
    let (mut cluster, slow, leads) = at_rest();
    let mut lost = Vec::new();
    for _ in 0..10 {
        cluster.slow_down(slow, SLOW);
        lost.extend(cluster.watch(slow, Duration::from_secs(4)));
        cluster.slow_down(slow, Duration::ZERO);
        lost.extend(cluster.watch(slow, Duration::from_secs(14)));
    }
    let gone = lost.iter().filter(|(_, comes, _)| !comes).map(|(_, _, count)| count).sum::<usize>();
    assert!(gone >= leads, "it was slow");
    // Three minutes.
    assert!(gone <= 6 * leads, "{gone} of {leads}: {lost:?}");
}

#[test]
fn a_slow_node_keeps_the_lead_where_nobody_else_can_take_it() {
    let mut cluster = Cluster::new(1);
    cluster.add(2, PeerHello::INGRESS);
    cluster.add(3, PeerHello::INGRESS);
    cluster.until("healthy", HEALTHY_WITHIN, |cluster| cluster.is_healthy());
    cluster.slow_down(NodeId(1), SLOW);
    cluster.until("it is slow", LEAVES_WITHIN, |cluster| cluster.slow_nodes() == BTreeSet::from([NodeId(1)]));
    assert_eq!(cluster.watch(NodeId(1), Duration::from_secs(10)), []);
    assert_eq!(cluster.led_by(NodeId(1)), SHARDS as usize + 1);
}

/// With two slow replicas of three, whoever led would wait for one of them; a quick leader even deposed itself for not hearing
/// most of them in time, again and again.
#[test]
fn where_most_replicas_are_slow_the_lead_stays_and_the_shard_is_served() {
    let (mut cluster, most, _) = at_rest();
    let (shard, voters) = groups(&cluster).into_iter().enumerate().next().unwrap();
    let other = voters.into_iter().map(node_of).find(|node| *node != most).unwrap();
    assert_eq!(cluster.leader(ShardId(shard as u32)), most);
    [most, other].into_iter().for_each(|node| cluster.slow_down(node, SLOW));
    let both = BTreeSet::from([most, other]);
    cluster.until("both are slow", LEAVES_WITHIN, |cluster| cluster.slow_nodes() == both);
    for _ in 0..200 {
        cluster.pass(Duration::from_millis(100));
        assert_eq!(cluster.leader(ShardId(shard as u32)), most);
    }
}

#[test]
fn a_slow_node_that_is_emptied_or_stops_leaves_its_leads_to_nodes_that_are_fit() {
    let (mut cluster, slow, _) = at_rest();
    let other = NodeId(if slow == NodeId(1) { 2 } else { 1 });
    let both = BTreeSet::from([slow, other]);
    // Not so slow that two of three cannot elect anybody in time.
    both.iter().for_each(|node| cluster.slow_down(*node, SLOW / 3));
    cluster.until("both are slow", LEAVES_WITHIN, |cluster| cluster.slow_nodes() == both);
    let before = cluster.led_by(other);
    let client = cluster.connect(NodeId(5));
    let question = AdminRequest::NodeDrain { node: slow, draining: true };
    assert_eq!(asked(&mut cluster, client, question), None);
    let is_empty = |cluster: &mut Cluster| {
        assert!(cluster.led_by(other) <= before, "the other slow one gets nothing");
        let shards = &cluster.hosts[&slow].node.as_ref().unwrap().shards;
        !shards.iter().any(|shard| shard.is_replica() && !shard.is_clusters() || shard.is_leader())
    };
    cluster.until("it is empty", Duration::from_secs(30), is_empty);
    // Now each group has one slow replica at most.
    cluster.until("the other leads nothing", LEAVES_WITHIN, |cluster| cluster.led_by(other) == 0);
    assert!(groups(&cluster).iter().all(|voters| voters.len() >= usize::from(REPLICAS)));
    // One that is fit stops: it hands all to whom it can, and nothing to those who are slow.
    let stops = (1..=5).map(NodeId).find(|node| cluster.led_by(*node) > 0).unwrap();
    cluster.input(stops, Input::Drain);
    cluster.until("it leads nothing", Duration::from_secs(2), |cluster| cluster.led_by(stops) == 0);
    assert_eq!(cluster.led_by(slow) + cluster.led_by(other), 0);
}
