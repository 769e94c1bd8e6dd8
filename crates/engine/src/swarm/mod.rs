//! What a node believes about the others: who seems alive, what each says of itself, and which way packets should take. Hints
//! only: nothing that decides about messages, leaders or members is read from here.
//!
//! This file is the composer. It puts what this node measures of its own links (`measure`) and what others say of theirs
//! (`gossip`, `report`) into one picture (`path`), and asks for every node whether the cheapest path through it is better
//! than the one in use by enough (`damping`). What things cost is said in `cost`, why a path is in use in `explain`, who is slow in
//! `fitness`. Absent here: what a change of path means for what is under way (`node/way`).

mod compose;
mod correspondent;
mod cost;
pub mod damping;
pub mod detector;
mod explain;
pub mod fitness;
pub mod gossip;
pub mod measure;
pub mod path;
pub mod report;

#[cfg(test)]
mod gossip_tests;
#[cfg(test)]
mod liar_tests;
#[cfg(test)]
mod route_tests;
#[cfg(test)]
mod statistics_tests;
#[cfg(test)]
mod testbed;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use swarmmq_protocol::{
    datagram::{DatagramError, Life},
    id::{ClusterId, NodeId},
    mac::DualKey,
    node_key::NodeSecret,
    policy::Policy,
    time::Instant,
};

use self::{
    damping::Choice,
    detector::Verdict,
    fitness::{Fitness, Seen},
    gossip::{Acquaintance, Gossip, Me},
    measure::{Link, Links, PROBE_PAUSE},
    path::{AVOIDED_US, Picture},
    report::{LinkReport, Load, Report},
};

/// How long a relay's word that it cannot pass packets on is believed, unless it says more meanwhile.
const DOUBT: Duration = Duration::from_secs(1);
/// How long after a node was last heard what it said of its load counts. What does not change is not said again, so the
/// age of a report says nothing.
const LOAD_COUNTS: Duration = Duration::from_secs(2);

/// Who this node is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number and life.
    pub me: Me,
    /// Role bits.
    pub roles: u8,
    /// What it runs, for people.
    pub release: String,
    /// Its keys.
    pub secret: NodeSecret,
    /// Where it belongs.
    pub cluster: ClusterId,
    /// What all nodes of the cluster have and nobody else.
    pub cluster_secret: DualKey,
    /// Of chance.
    pub seed: u64,
}

/// What is to be sent now.
#[derive(Debug, Default)]
pub struct Sending {
    /// Each in one UDP datagram.
    pub datagrams: Vec<(NodeId, Bytes)>,
    /// Whom to send a probe over the link with it.
    pub probes: Vec<NodeId>,
}

/// One node's view of all the others. See [`Swarm::turn`] and [`Swarm::reroute`].
#[derive(Debug)]
pub struct Swarm {
    config: Config,
    gossip: Gossip,
    known: BTreeMap<NodeId, Acquaintance>,
    links: Links,
    choices: BTreeMap<NodeId, Choice>,
    /// Sessions of the links behind the first one on each path in use.
    sessions: BTreeMap<NodeId, Vec<u32>>,
    /// Processes that have ended, as their own hosts said.
    gone: BTreeMap<NodeId, Option<Life>>,
    /// Links that a relay could not use, and until when that counts.
    doubts: BTreeMap<(NodeId, NodeId), Instant>,
    load: Load,
    /// Packets take links only, and nothing that is measured changes that.
    is_static: bool,
    fitness: Fitness,
    /// Who says of itself that it is slow.
    admitted: BTreeSet<NodeId>,
    next_sample: Instant,
    /// A link came or went, or is not what it was: paths are to be looked at...
    has_news: bool,
    /// ...and others to be told.
    is_urgent: bool,
}

impl Swarm {
    /// Of a node that has just started.
    pub fn new(config: Config, now: Instant) -> Self {
        let gossip = Gossip::new(
            config.me,
            config.secret.clone(),
            config.cluster,
            config.cluster_secret.clone(),
            config.seed,
            now,
        );
        Self {
            links: Links::new(config.me.node, now),
            config,
            gossip,
            known: BTreeMap::new(),
            choices: BTreeMap::new(),
            sessions: BTreeMap::new(),
            gone: BTreeMap::new(),
            doubts: BTreeMap::new(),
            load: Load::default(),
            is_static: false,
            fitness: Fitness::default(),
            admitted: BTreeSet::new(),
            next_sample: now,
            has_news: false,
            is_urgent: false,
        }
    }

    /// Whom this node may talk to: members, and neighbours that are to become members.
    pub fn know(&mut self, now: Instant, known: BTreeMap<NodeId, Acquaintance>) {
        if self.known == known {
            return;
        }
        self.gossip.know(now, &known);
        self.links.keep(|node| known.contains_key(&node));
        self.known = known;
        self.has_news = true;
    }

    /// What all nodes of the cluster have from now on.
    pub fn set_secret(&mut self, secret: DualKey) {
        self.config.cluster_secret = secret.clone();
        self.gossip.set_secret(secret);
    }

    /// How paths are chosen from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        let is_static = !policy.is_adaptive();
        self.has_news |= self.is_static != is_static;
        self.is_static = is_static;
        if is_static {
            self.fitness = Fitness::default();
        }
    }

    /// How busy this node is.
    pub fn set_load(&mut self, load: Load) {
        self.is_urgent |= load.is_draining != self.load.is_draining;
        self.load = load;
    }

    /// A connection with a neighbour is there.
    pub fn link_opened(&mut self, now: Instant, node: NodeId) {
        self.links.opened(now, node);
        self.gone.remove(&node);
        self.link_news();
    }

    /// The connection with a neighbour is gone; `gone`: and so is its process.
    pub fn link_closed(&mut self, now: Instant, node: NodeId, gone: bool) {
        self.links.closed(now, node);
        if gone {
            self.gone.insert(node, self.gossip.report(node).map(Report::life));
            self.gossip.gone(now, node);
        }
        self.link_news();
    }

    fn link_news(&mut self) {
        self.has_news = true;
        self.is_urgent = true;
    }

    /// Something came over the link with a neighbour.
    pub fn heard(&mut self, now: Instant, node: NodeId) {
        self.links.heard(now, node);
    }

    /// A probe came back.
    pub fn answered(&mut self, now: Instant, node: NodeId, rtt: Duration) {
        self.links.answered(now, node, rtt);
    }

    /// A packet to `destination` could not go on over `link`, says the node at its beginning. True: the path in use takes it. What is
    /// said of a path that was left already says nothing about the next one, though the same relay may be on it.
    pub fn path_broken(&mut self, now: Instant, link: (NodeId, NodeId), destination: NodeId) -> bool {
        let path = self.path(destination).unwrap_or_default();
        let is_in_use = path.windows(2).any(|pair| (pair[0], pair[1]) == link);
        if is_in_use {
            self.doubts.insert(link, now + DOUBT);
            self.has_news = true;
        }
        is_in_use
    }

    /// A datagram arrived; whoever sent it hears nothing of it. `Err`: it changed nothing.
    pub fn datagram(&mut self, now: Instant, bytes: &[u8]) -> Result<(), DatagramError> {
        self.gossip.datagram(now, bytes)
    }

    /// What is to be sent now. Call it whenever [`Swarm::next_wake`] says so, and after each burst of inputs.
    pub fn turn(&mut self, now: Instant, out: &mut Sending) {
        let gossip = &self.gossip;
        let mut look = self.links.look(now, |node| gossip.heard_at(node));
        out.probes.append(&mut look.probes);
        if look.changed {
            self.link_news();
        }
        if self.is_urgent || self.next_sample <= now {
            let links = self.links.iter().filter(|(node, _)| self.known.contains_key(node));
            let links = links.map(|(node, link)| self.link_report(now, node, link)).collect();
            let Config { roles, release, .. } = &self.config;
            self.gossip.say(now, *roles, release, self.load, links, std::mem::take(&mut self.is_urgent));
        }
        self.gossip.poll(now, &mut out.datagrams);
    }

    fn link_report(&self, now: Instant, to: NodeId, link: &Link) -> LinkReport {
        let mut rtt_us = coarse(link.rtt_us());
        if link.flaps.clone().is_suppressed(now) {
            rtt_us = rtt_us.max(2 * AVOIDED_US);
        }
        let loss_permille = self.gossip.loss_permille(to) / 10 * 10;
        LinkReport { to, session: link.session, is_up: link.is_usable(), rtt_us, loss_permille }
    }

    /// Looks again which paths to take, and says which changed: to whom, and along which nodes. What was sent along the
    /// earlier path may be lost. `None`: there is no path any more.
    pub fn reroute(&mut self, now: Instant) -> Vec<(NodeId, Option<Vec<NodeId>>)> {
        let is_sample = self.next_sample <= now;
        let has_changed = self.gossip.take_changed();
        if !std::mem::take(&mut self.has_news) && !has_changed && !is_sample {
            return Vec::new();
        }
        if is_sample {
            self.next_sample = now + PROBE_PAUSE;
            self.look_for_slow_nodes(now);
        }
        self.forget_old(now);
        let picture = self.picture(now);
        let mut best: BTreeMap<NodeId, path::Path> = BTreeMap::new();
        let paths =
            if self.is_static { self.direct_paths(&picture) } else { picture.paths(self.config.me.node) };
        for path in paths {
            best.insert(*path.nodes.last().expect("a path has an end"), path);
        }
        let mut changed = Vec::new();
        let targets: BTreeSet<NodeId> = self.choices.keys().chain(best.keys()).copied().collect();
        for node in targets {
            let choice = self.choices.entry(node).or_insert_with(|| Choice::new(now));
            let best = best.get(&node);
            let mut current_us = choice.path.as_ref().and_then(|path| picture.cost_us(path));
            if self.is_static && choice.path.as_ref().is_some_and(|path| path.len() > 2) {
                current_us = None;
            }
            if let (Some(current), Some(best)) = (current_us, best)
                && current >= u64::from(AVOIDED_US)
                && best.cost_us < u64::from(AVOIDED_US)
            {
                current_us = None;
            }
            let moved = choice.consider(now, best, current_us, is_sample);
            let path = choice.path.clone();
            let sessions = path.as_deref().map(|path| self.sessions_along(path)).unwrap_or_default();
            let before = self.sessions.insert(node, sessions);
            // A link behind the first one is another one now: what it carried may be lost.
            if moved || before.is_some_and(|before| before != self.sessions[&node]) {
                changed.push((node, path));
            }
        }
        changed
    }

    /// Every link that is open, however bad.
    fn direct_paths(&self, picture: &Picture) -> Vec<path::Path> {
        let open = self.links.iter().filter(|(_, link)| link.is_open);
        let direct = open.map(|(node, _)| vec![self.config.me.node, node]);
        direct.filter_map(|nodes| Some(path::Path { cost_us: picture.cost_us(&nodes)?, nodes })).collect()
    }

    fn forget_old(&mut self, now: Instant) {
        self.doubts.retain(|_, until| *until > now);
        let gossip = &self.gossip;
        self.gone.retain(|node, life| gossip.report(*node).map(Report::life) == *life);
        let links = &self.links;
        self.choices.retain(|node, choice| {
            choice.path.is_some() || self.known.contains_key(node) || links.get(*node).is_some()
        });
    }

    fn sessions_along(&self, path: &[NodeId]) -> Vec<u32> {
        let session = |pair: &[NodeId]| {
            let report = self.gossip.report(pair[0])?;
            report.links.iter().find(|link| link.to == pair[1]).map(|link| link.session)
        };
        path.windows(2).skip(1).map(|pair| session(pair).unwrap_or(0)).collect()
    }

    /// What this node believes of all links: its own as it measures them, others' as both their ends say.
    fn picture(&self, now: Instant) -> Picture {
        let me = self.config.me.node;
        let mut nodes: BTreeSet<NodeId> = self.known.keys().copied().collect();
        nodes.extend(self.links.iter().map(|(node, _)| node));
        nodes.insert(me);
        let mut picture = Picture::new(nodes.into_iter().collect());
        for report in self.gossip.reports() {
            let relay = self.relay_cost(now, report);
            if report.node != me && relay.is_open() {
                picture.relay(report.node, relay.lag_us);
            }
        }
        for (node, link) in self.links.iter() {
            if let Some(cost) = self.own_cost(now, node, link).us() {
                picture.link(me, node, cost);
            }
        }
        for report in self.gossip.reports().filter(|report| report.node != me) {
            for link in report.links.iter().filter(|link| link.to != me) {
                if let Some(cost) = self.their_cost(report, link).us() {
                    picture.link(report.node, link.to, cost);
                }
            }
        }
        picture
    }

    /// The path in use to `node`, with both ends.
    pub fn path(&self, node: NodeId) -> Option<&[NodeId]> {
        self.choices.get(&node).and_then(|choice| choice.path.as_deref())
    }

    /// Which life of its disk `node` is known by. `None`: it is a stranger.
    pub fn knows(&self, node: NodeId) -> Option<u64> {
        self.known.get(&node).map(|known| known.incarnation)
    }

    /// What a node said of itself last.
    pub fn report(&self, node: NodeId) -> Option<&Report> {
        self.gossip.report(node)
    }

    /// Whether a node seems alive.
    pub fn verdict(&self, node: NodeId) -> Verdict {
        self.gossip.verdict(node)
    }

    /// The same, where what comes over the link with it outweighs what is said.
    pub fn seems(&self, node: NodeId) -> Verdict {
        let link = self.links.get(node);
        let is_heard = link.is_some_and(|link| link.is_usable() && !link.is_unanswered());
        if is_heard { Verdict::Alive } else { self.gossip.verdict(node) }
    }

    /// A node says of itself whether it is slow.
    pub fn admits(&mut self, node: NodeId, is_slow: bool) {
        if is_slow {
            self.admitted.insert(node);
        } else {
            self.admitted.remove(&node);
        }
    }

    /// Its own load this node knows at first hand; that of others is what they say, as long as they are heard.
    fn look_for_slow_nodes(&mut self, now: Instant) {
        if self.is_static {
            return;
        }
        let me = self.config.me.node;
        let seen = |node: NodeId| {
            if self.seems(node) != Verdict::Alive {
                return Seen::Missed;
            }
            let is_fresh = self.gossip.heard_at(node).is_some_and(|at| now.since(at) < LOAD_COUNTS);
            let report = self.gossip.report(node).filter(|_| is_fresh);
            report.map_or(Seen::Unknown, |report| Seen::Takes(fitness::service_us(&report.load)))
        };
        let mut all: BTreeMap<NodeId, Seen> =
            self.known.keys().filter(|node| **node != me).map(|node| (*node, seen(*node))).collect();
        all.insert(me, Seen::Takes(fitness::service_us(&self.load)));
        self.admitted.retain(|node| all.contains_key(node));
        self.fitness.sample(now, &all, &self.admitted);
    }

    /// Which nodes are slow, as this one believes.
    pub fn fitness(&self) -> &Fitness {
        &self.fitness
    }

    /// The gossip, to be looked at.
    pub fn gossip(&self) -> &Gossip {
        &self.gossip
    }

    /// The links, to be looked at.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Which path is in use to each node, and why.
    pub fn choices(&self) -> impl Iterator<Item = (NodeId, &Choice)> {
        self.choices.iter().map(|(node, choice)| (*node, choice))
    }

    /// Whether there is anybody to talk to.
    pub fn has_company(&self) -> bool {
        !self.known.is_empty() || self.links.iter().any(|(_, link)| link.is_open)
    }

    /// When [`Swarm::turn`] has something to do by itself.
    pub fn next_wake(&self) -> Instant {
        let links = self.links.next_wake().unwrap_or(self.next_sample);
        self.gossip.next_wake().min(links).min(self.next_sample)
    }
}

/// What `report` says of the link with `node`.
fn back_from(report: &Report, node: NodeId) -> Option<&LinkReport> {
    report.links.iter().find(|link| link.to == node)
}

/// Rounded to an eighth, so that noise makes no news.
fn coarse(us: u32) -> u32 {
    let drop = (32 - us.leading_zeros()).saturating_sub(4);
    us >> drop << drop
}
