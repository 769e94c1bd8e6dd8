//! The swarm on one side, ways to other nodes on the other: a path that changes begins a new conversation.
//!
//! Absent here: which path is the best one and who is alive (`swarm`), what a conversation is (`way`).

use std::{collections::BTreeMap, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use swarmmq_protocol::{
    admin::NodeState,
    codec::Reader,
    id::NodeId,
    packet::{Class, Packet},
    session::peer::PeerHello,
    time::Instant,
};

use super::{Config, Effects, Metric, MetricKind, Node, Now, letter::Letter};
use crate::swarm::{
    Sending, Swarm,
    detector::Verdict,
    gossip::{Acquaintance, Me},
    measure::Peak,
    report::Load,
};

/// How long a relay remembers whose packets it passed on over a link.
const RELAYING: Duration = Duration::from_secs(30);
/// Time without writes after which what the disk took before is slowly forgotten: only new writes can say what it takes now.
const DISK_IDLE: Duration = Duration::from_secs(5);
/// Packets between neighbours: a question...
const PROBE: u8 = 1;
/// ...and its answer.
const ECHO: u8 = 2;

/// The swarm of a node that has just started.
pub(super) fn swarm(config: &Config, now: Now) -> Swarm {
    let config = crate::swarm::Config {
        me: Me { node: config.node, incarnation: config.incarnation, boot: config.boot },
        roles: config.roles,
        release: config.version.clone(),
        secret: config.secret.clone(),
        cluster: config.cluster,
        cluster_secret: config.cluster_secret.clone(),
        seed: config.seed,
    };
    Swarm::new(config, now.monotonic)
}

/// Whose packets this node passed on lately, by the neighbour that they went to.
#[derive(Debug, Default)]
pub(super) struct Relaying {
    /// Origin and destination, and when the latest one passed.
    flows: BTreeMap<NodeId, BTreeMap<(NodeId, NodeId), Instant>>,
    /// Packets, since the start.
    passed: u64,
}

/// How busy this node is, as it notices by itself.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// When it should have had its next turn.
    planned: Option<Instant>,
    /// The latest it came since the last sample.
    lag: Duration,
    lags: Peak,
    syncs: Peak,
    /// Since when a batch is being written.
    writing_since: Option<Instant>,
    synced_at: Option<Instant>,
    next_sample: Option<Instant>,
}

impl Busy {
    /// A batch is handed to the disk.
    pub(super) fn writes(&mut self, now: Instant) {
        self.writing_since = Some(now);
    }

    /// It is on stable storage.
    pub(super) fn synced(&mut self, now: Instant) {
        if let Some(since) = self.writing_since.take() {
            self.syncs.add(now.since(since).as_micros() as u64);
        }
        self.synced_at = Some(now);
    }

    /// There is no disk any more that could be slow.
    pub(super) fn lost_disk(&mut self) {
        self.writing_since = None;
        self.syncs = Peak::default();
    }

    /// The next turn is to come then, if nothing else happens.
    pub(super) fn plan(&mut self, at: Option<Instant>) {
        self.planned = at;
    }

    /// A turn begins.
    fn turn(&mut self, now: Instant) {
        let late = self.planned.take().map_or(Duration::ZERO, |planned| now.since(planned));
        self.lag = self.lag.max(late);
        if self.next_sample.is_none_or(|at| at <= now) {
            self.next_sample = Some(now + crate::swarm::measure::PROBE_PAUSE);
            self.lags.add(std::mem::take(&mut self.lag).as_micros() as u64);
            self.look_at_disk(now);
        }
    }

    /// A batch that is still being written has taken so long at least: a disk that stands still says nothing itself.
    fn look_at_disk(&mut self, now: Instant) {
        match (self.writing_since, self.synced_at) {
            (Some(since), _) if now.since(since) >= crate::swarm::measure::PROBE_PAUSE => {
                self.syncs.add(now.since(since).as_micros() as u64);
            }
            (None, Some(at)) if now.since(at) >= DISK_IDLE => self.syncs.add(0),
            _ => {}
        }
    }
}

fn to_neighbour(kind: u8, stamp: Instant) -> Bytes {
    let mut body = BytesMut::with_capacity(9);
    body.put_u8(kind);
    body.put_u64(stamp.0);
    body.freeze()
}

impl Node {
    /// Whom to gossip with: members, and neighbours, who are about to become members.
    pub(super) fn meet_members(&mut self, now: Now) {
        let members = &self.cluster_shard().state().catalog.members.nodes;
        let known = members.iter().filter_map(|(node, member)| {
            let incarnation = member.incarnation;
            Some((*node, Acquaintance { incarnation, key: member.key? }))
        });
        let mut known: BTreeMap<NodeId, Acquaintance> = known.collect();
        // What a neighbour proved just now is newer than what the cluster remembers.
        for (node, hello) in self.peers.links.iter().filter(|(_, hello)| hello.key != PeerHello::NO_KEY) {
            known.insert(*node, Acquaintance { incarnation: hello.incarnation, key: hello.key });
        }
        known.remove(&self.config.node);
        self.swarm.know(now.monotonic, known);
        self.swarm.set_policy(self.cluster_shard().state().catalog.routing.policy);
    }

    pub(super) fn datagram(&mut self, now: Now, bytes: &[u8]) {
        // Who could not prove who it is hears nothing; what was wrong is counted by the gossip.
        let _counted = self.swarm.datagram(now.monotonic, bytes).is_err();
    }

    /// Lets the swarm have its turn, and takes the paths that it chose.
    pub(super) fn look_around(&mut self, now: Now, out: &mut Effects) {
        self.busy.turn(now.monotonic);
        let us = |peak: &Peak| peak.value().unwrap_or(0).min(u64::from(u32::MAX)) as u32;
        self.swarm.set_load(Load {
            lag_us: us(&self.busy.lags),
            fsync_us: us(&self.busy.syncs),
            queued: self.waiting.len() as u32,
            errors_permille: 0,
            is_draining: self.draining,
        });
        let mut sending = Sending::default();
        self.swarm.turn(now.monotonic, &mut sending);
        out.datagrams.append(&mut sending.datagrams);
        for node in sending.probes {
            let body = to_neighbour(PROBE, now.monotonic);
            self.relayed.push((node, Packet::direct(Class::Heartbeat, self.config.node, node, body)));
        }
        self.reroute(now);
    }

    pub(super) fn reroute(&mut self, now: Now) {
        for (node, path) in self.swarm.reroute(now.monotonic) {
            self.part(now, node, false);
            if let (Some(path), Some(hello)) = (path, self.hello_of(node)) {
                self.begin_anew(now, hello, path);
            }
        }
    }

    /// Whoever says `hello` was reached before: if that was an earlier process of its node, along the same path.
    pub(super) fn recognise(&mut self, now: Now, hello: PeerHello) {
        let path = self.ways.path(hello.node).map(<[NodeId]>::to_vec);
        if let Some(path) = path.filter(|_| !self.ways.is_with(&hello)) {
            self.part(now, hello.node, false);
            self.begin_anew(now, hello, path);
        }
    }

    fn begin_anew(&mut self, now: Now, hello: PeerHello, path: Vec<NodeId>) {
        let node = hello.node;
        self.ways.open(hello, path);
        self.greet(now, node);
    }

    /// What is known of a node without having talked to it: what it said over a link with it, or through others.
    fn hello_of(&self, node: NodeId) -> Option<PeerHello> {
        let linked = self.peers.links.get(&node);
        let Some(report) = self.swarm.report(node) else { return linked.cloned() };
        if let Some(linked) = linked
            && (linked.incarnation != report.incarnation || linked.boot >= report.boot)
        {
            return Some(linked.clone());
        }
        let member = self.cluster_shard().state().catalog.members.nodes.get(&node)?;
        Some(PeerHello {
            cluster: Some(self.config.cluster),
            shard_count: self.config.shard_count,
            node,
            incarnation: report.incarnation,
            boot: report.boot,
            roles: report.roles,
            client: member.client.clone(),
            peer: member.peer.clone(),
            admin: member.admin.clone(),
            gossip: member.gossip.clone(),
            version: report.release.clone(),
            key: member.key.unwrap_or(PeerHello::NO_KEY),
            join: None,
        })
    }

    /// Something from a neighbour that concerns only the link.
    pub(super) fn neighbour_said(&mut self, now: Now, from: NodeId, body: Bytes) {
        let mut reader = Reader::new(body);
        let (kind, stamp) = match (reader.u8(), reader.u64(), reader.end()) {
            (Ok(kind), Ok(stamp), Ok(())) => (kind, Instant(stamp)),
            _ => return self.peers.malformed += 1,
        };
        match kind {
            PROBE => {
                let echo = to_neighbour(ECHO, stamp);
                self.relayed.push((from, Packet::direct(Class::Heartbeat, self.config.node, from, echo)));
            }
            ECHO if stamp <= now.monotonic => {
                self.swarm.answered(now.monotonic, from, now.monotonic.since(stamp));
            }
            _ => self.peers.malformed += 1,
        }
    }

    /// Sends a packet on, or tells its origin that there is no way (safety rule 22). Nothing is stored.
    pub(super) fn relay(&mut self, now: Now, next: NodeId, packet: Packet) {
        let is_router = self.config.roles & PeerHello::ROUTER != 0;
        let (origin, destination) = (packet.origin(), packet.destination());
        if !is_router || !self.peers.links.contains_key(&next) {
            return self.post(origin, Class::Heartbeat, Letter::Broken { destination, next });
        }
        self.relaying.passed += 1;
        let flows = self.relaying.flows.entry(next).or_default();
        flows.insert((origin, destination), now.monotonic);
        self.relayed.push((next, packet));
    }

    /// The link with `next` broke: what was passed on over it may be lost, and only its origins can send it again.
    pub(super) fn tell_of_break(&mut self, now: Now, next: NodeId) {
        let flows = self.relaying.flows.remove(&next).unwrap_or_default();
        for ((origin, destination), at) in flows {
            if now.monotonic.since(at) < RELAYING {
                self.post(origin, Class::Heartbeat, Letter::Broken { destination, next });
            }
        }
    }

    /// How a node that packets should reach seems to be.
    pub(super) fn seems(&self, node: NodeId) -> NodeState {
        match self.swarm.seems(node) {
            Verdict::Alive => NodeState::Alive,
            Verdict::Suspect => NodeState::Suspect,
            Verdict::Dead => NodeState::Dead,
        }
    }

    pub(super) fn swarm_metrics(&self) -> Vec<Metric> {
        let counters = self.swarm.gossip().counters();
        let refused: u64 = counters.refused.iter().sum();
        let mut rtt = Metric::new(
            MetricKind::Gauge,
            "swarmmq_link_rtt_seconds",
            "Smoothed round trip over the link with a node.",
        );
        let mut hops = Metric::new(
            MetricKind::Gauge,
            "swarmmq_route_hops",
            "Links on the path that packets take to a node; 0: there is none.",
        );
        let mut changes = Metric::new(
            MetricKind::Counter,
            "swarmmq_route_changes_total",
            "Changes of the path that packets take to a node.",
        );
        for (node, link) in self.swarm.links().iter().filter(|(_, link)| link.is_open) {
            let seconds = f64::from(link.rtt_us()) / 1e6;
            rtt.samples.push((vec![("node", node.0.to_string())], seconds));
        }
        let mut slow = Metric::new(
            MetricKind::Gauge,
            "swarmmq_node_slow",
            "1 if a node is too slow to lead, as this one believes, itself included.",
        );
        for (node, is_slow) in self.swarm.fitness().all() {
            slow.samples.push((vec![("node", node.0.to_string())], f64::from(u8::from(is_slow))));
        }
        for (node, choice) in self.swarm.choices() {
            let links = choice.path.as_ref().map_or(0, |path| path.len() - 1);
            hops.samples.push((vec![("node", node.0.to_string())], links as f64));
            changes.samples.push((vec![("node", node.0.to_string())], choice.changes as f64));
        }
        let counter = Metric::counter;
        vec![
            counter("swarmmq_gossip_sent_total", "Datagrams handed out.", counters.sent),
            counter("swarmmq_gossip_received_total", "Datagrams taken.", counters.received),
            counter(
                "swarmmq_gossip_refused_total",
                "Datagrams that were not genuine or not for here.",
                refused,
            ),
            counter("swarmmq_relayed_total", "Packets passed on for others.", self.relaying.passed),
            counter(
                "swarmmq_leads_left_total",
                "Leads that this node handed over because it was slow.",
                self.peers.leads_left,
            ),
            rtt,
            hops,
            changes,
            slow,
        ]
    }

    /// When the swarm has something to do by itself.
    pub(super) fn swarm_wake(&self) -> Option<Instant> {
        self.swarm.has_company().then(|| self.swarm.next_wake())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant(1_000_000_000 + millis * 1_000_000)
    }

    /// Turns every 50 ms, each when it was planned.
    fn turns(busy: &mut Busy, millis: std::ops::Range<u64>) {
        for now in millis.step_by(50) {
            busy.turn(at(now));
            busy.plan(Some(at(now + 50)));
        }
    }

    fn disk_ms(busy: &Busy) -> u64 {
        busy.syncs.value().unwrap_or(0) / 1_000
    }

    #[test]
    fn a_disk_that_stands_still_is_slow_before_it_says_so() {
        let mut busy = Busy::default();
        for sync in 0..10 {
            busy.writes(at(sync * 10));
            busy.synced(at(sync * 10 + 1));
        }
        busy.writes(at(100));
        turns(&mut busy, 100..2_000);
        assert!(disk_ms(&busy) >= 1_000, "{}", disk_ms(&busy));
        busy.lost_disk();
        turns(&mut busy, 2_000..4_000);
        assert_eq!(disk_ms(&busy), 0, "a log that has stopped is not slow");
    }

    #[test]
    fn a_disk_without_writes_is_forgiven_after_five_seconds_and_not_before() {
        let mut busy = Busy::default();
        for sync in 0..5 {
            busy.writes(at(sync * 300));
            busy.synced(at(sync * 300 + 300));
        }
        turns(&mut busy, 1_500..6_400);
        assert_eq!(disk_ms(&busy), 300);
        turns(&mut busy, 6_400..20_000);
        assert_eq!(disk_ms(&busy), 0);
    }

    #[test]
    fn one_late_turn_is_an_accident_and_two_are_lateness() {
        let mut busy = Busy::default();
        turns(&mut busy, 0..1_000);
        turns(&mut busy, 6_000..7_000);
        assert_eq!(busy.lags.value(), Some(0));
        turns(&mut busy, 7_300..7_350);
        turns(&mut busy, 7_700..7_750);
        assert!(busy.lags.value().is_some_and(|us| us >= 250_000), "{:?}", busy.lags);
    }
}
