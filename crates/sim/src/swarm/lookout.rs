//! Looks at the whole cluster four times a second, and whenever a node calls another one dead: how things are, what each node
//! believes, and since when nothing is in the way. The judges of routes and of the living say what is wrong with that.
//!
//! Here stand their bounds, and the judge of leases, which needs clients and nodes together. Absent here: what else is wrong (`judge/paths`, `judge/pictures`, `judge/deaths`, `judge/changes`).

use std::collections::BTreeMap;

use swarmmq_engine::{node::Node, shard::delivery::Leased, swarm::detector::Verdict};
use swarmmq_protocol::{
    id::{Attempt, ConsumerId, GroupName, NodeId},
    session::consumer::DeliveryId,
};

use super::{
    Phase, Swarm,
    host::{Host, node_id},
    links::{Pair, pair},
};
use crate::{
    client::{Client, Role},
    clock::{MILLISECOND, SECOND},
    judge::{
        changes::{Changes, What},
        deaths,
        look::{Finding, Life, Look, Own, Seen, View},
        paths, pictures,
    },
    plan::ROLE_ROUTER,
};

/// A packet that takes longer than that to its neighbour waits for something.
const WAITS: u64 = 20 * MILLISECOND;
/// A round of gossip.
const ROUND: u64 = 100 * MILLISECOND;
/// Broken promises of one judge that are told of one run.
const TOLD_MAX: u64 = 5;

/// How long what is wrong may last when nothing is in the way of knowing better, in virtual nanoseconds, where so many datagrams in 1,000 get
/// lost; see the simulator's page.
fn bound(loss_permille: u64) -> u64 {
    match loss_permille {
        0..=10 => 20 * ROUND,
        11..=100 => 25 * ROUND,
        _ => 30 * ROUND,
    }
}

/// Changes of one path in a minute that need no reason.
const CHANGES_MAX: u64 = 2;

/// How long a message may be leased to a consumer that takes part and does not have it, when all is mended: a connection that
/// broke in silence before is left sooner. While faults go on, a leader that does not know it is deposed has leases too.
const ASTRAY_MAX: u64 = 2 * SECOND;

/// What is between two hosts, as far as a change of it means that something happened.
type Marks = (u64, [bool; 2], u64, [u64; 2], [u64; 2]);

/// Since when one pair of hosts is undisturbed.
#[derive(Debug, Default)]
struct Between {
    marks: Marks,
    disturbed_at: u64,
}

/// One host, as it was at the latest look.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    life: Option<Life>,
    since: u64,
    awake: Option<u64>,
}

/// One lease: of which message, in which group, which delivery of it, whose.
type Leasing = (DeliveryId, GroupName, Attempt, ConsumerId);

/// What was noted of earlier looks.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    hosts: Vec<Standing>,
    between: BTreeMap<Pair, Between>,
    /// Of one host with another: its link, and the connection that it is.
    links: BTreeMap<Pair, (Own, u32)>,
    /// In which life of the disk one host knows another, and since when.
    known: BTreeMap<Pair, (u64, u64)>,
    /// Since when one host has no path to another.
    lost: BTreeMap<Pair, u64>,
    /// Whom each host calls dead, a bit each.
    dead: BTreeMap<usize, u64>,
    changes: Changes,
    /// Since when a picture has been wrong in the same way at every look.
    wrong: BTreeMap<String, u64>,
    /// Since when nobody has what is leased.
    astray: BTreeMap<Leasing, u64>,
    told: BTreeMap<&'static str, u64>,
    /// The longest that something was wrong without an excuse, by judge, in nanoseconds; of changes, how many.
    pub(super) longest: BTreeMap<&'static str, u64>,
}

impl Swarm {
    /// Whether a node calls somebody dead whom it did not a turn ago.
    pub(super) fn buries(&mut self, host: usize, node: &Node) -> bool {
        let is_dead = |other: &usize| node.swarm().verdict(node_id(*other)) == Verdict::Dead;
        let others = (0..self.hosts.len()).filter(|other| *other != host);
        let dead = others.filter(is_dead).fold(0, |bits, other| bits | 1 << other);
        let before = self.lookout.dead.insert(host, dead).unwrap_or(0);
        dead & !before != 0
    }

    /// Looks, and lets judges judge.
    pub(super) fn look_out(&mut self) {
        let look = self.see();
        let bound = bound(self.plan.datagram_loss_permille);
        let pictures = self.lookout.lasting(look.at, pictures::judge(&look));
        for (judge, judged) in
            [("paths", paths::judge(&look)), ("pictures", pictures), ("deaths", deaths::judge(&look))]
        {
            judged.into_iter().for_each(|finding| self.weigh(judge, finding, bound));
        }
        if let Some(finding) = self.lookout.changes.look(&look) {
            self.weigh("changes", finding, CHANGES_MAX);
        }
        if !matches!(self.phase, Phase::Drain { .. }) {
            return;
        }
        self.astray().into_iter().for_each(|finding| self.weigh("astray", finding, ASTRAY_MAX));
    }

    fn weigh(&mut self, judge: &'static str, (weight, what): Finding, bound: u64) {
        let longest = self.lookout.longest.entry(judge).or_default();
        *longest = weight.max(*longest);
        if weight <= bound {
            return;
        }
        let told = self.lookout.told.entry(judge).or_default();
        *told += 1;
        if *told <= TOLD_MAX {
            let at = self.at / MILLISECOND;
            let how =
                if judge == "changes" { String::new() } else { format!(" for {} ms", weight / MILLISECOND) };
            self.history.violation(judge, format!("{what}{how}, at {at} ms"));
        }
    }

    /// What is leased to consumers that take part and do not have it, nor is it on its way to them or waits for their room,
    /// and for how long that has been so: nobody else gets it meanwhile.
    fn astray(&mut self) -> Vec<Finding> {
        let shards = 0..self.plan.shards as usize;
        let leaders = shards.filter_map(|index| Some((index, self.leader_of(index)?)));
        let mut now = BTreeMap::new();
        for (index, host) in leaders {
            let shard = &self.hosts[host].node.as_ref().expect("a leader runs").shards()[index];
            for leased in shard.leases() {
                let Leased { group, offset, attempt, consumer, .. } = leased;
                let id = DeliveryId { shard: shard.id(), offset };
                let lacks = |(number, client): (usize, &Client)| {
                    matches!(&client.role, Role::Consumer(process) if process.lacks(&leased, id))
                        && !self.awaits_bytes(number)
                };
                let parks = |host: &Host| {
                    host.node.as_ref().is_some_and(|node| node.parks(consumer, shard.id(), offset))
                };
                if self.clients.iter().enumerate().any(lacks) && !self.hosts.iter().any(parks) {
                    let key = (id, group.clone(), attempt, consumer);
                    let since = self.lookout.astray.get(&key).copied().unwrap_or(self.at);
                    now.insert(key, since);
                }
            }
        }
        self.lookout.astray = now;
        let words = |((id, group, attempt, _), since): (&Leasing, &u64)| {
            let (shard, offset) = (id.shard.0, id.offset.0);
            let what = format!("attempt {} of {shard}/{offset} is leased in {group} to nobody", attempt.0);
            (self.at - since, what)
        };
        self.lookout.astray.iter().map(words).collect()
    }

    /// The whole cluster now.
    fn see(&mut self) -> Look {
        self.lookout.hosts.resize(self.hosts.len(), Standing::default());
        let hosts = (0..self.hosts.len()).map(|host| self.see_host(host)).collect();
        let mut look = Look { at: self.at, hosts, clean: BTreeMap::new() };
        for a in 0..self.hosts.len() {
            for b in a + 1..self.hosts.len() {
                if let Some(since) = self.clean_since(&look, a, b) {
                    look.clean.extend([((a, b), since), ((b, a), since)]);
                }
            }
        }
        look
    }

    fn see_host(&mut self, host: usize) -> Seen {
        let (state, at) = (&self.hosts[host], self.at);
        let life = state.node.as_ref().map(|_| (state.config.incarnation, state.boot));
        let standing = &mut self.lookout.hosts[host];
        if standing.life != life {
            *standing = Standing { life, since: at, awake: standing.awake };
            self.lookout.changes.happened(at, What::Host(host));
        }
        // One that is slow may hear of everything late.
        let is_slow = state.pace.at(at) > 0 || state.busy_until.is_some();
        let is_awake = state.paused_until <= at && !is_slow;
        if standing.awake.is_some() != is_awake {
            standing.awake = is_awake.then_some(at);
            self.lookout.changes.happened(at, What::Host(host));
        }
        let Standing { since, awake, .. } = *standing;
        let is_router = state.planned.roles & ROLE_ROUTER != 0;
        let view = state.node.as_ref().map(|node| self.lookout.view(at, host, self.hosts.len(), node));
        Seen { life, since, awake, is_router, view: view.unwrap_or_default() }
    }

    /// Since when nothing is between two hosts but the usual delays. `None`: something is.
    fn clean_since(&mut self, look: &Look, a: usize, b: usize) -> Option<u64> {
        let at = self.at;
        let between = self.lookout.between.entry((a, b)).or_default();
        if let Some(link) = self.links.get(&pair(a, b)) {
            let marks = link.marks();
            let is_disturbed = link.disturbed_until(WAITS) > at;
            let happened = between.marks != marks || is_disturbed && at >= between.disturbed_at + SECOND;
            between.marks = marks;
            if happened {
                self.lookout.changes.happened(at, What::Link(a, b));
            }
            if happened || is_disturbed {
                between.disturbed_at = at;
            }
            if is_disturbed {
                return None;
            }
        }
        let (near, far) = (&look.hosts[a], &look.hosts[b]);
        let knows = |of: &Seen, whom: usize, life: Life| {
            of.view
                .known
                .get(&whom)
                .filter(|(incarnation, _)| *incarnation == life.0)
                .map(|(_, since)| *since)
        };
        let known = knows(near, b, far.life?)?.max(knows(far, a, near.life?)?);
        let awake = near.awake?.max(far.awake?);
        Some(between.disturbed_at.max(known).max(awake).max(near.since).max(far.since))
    }
}

impl Lookout {
    /// The same findings, but no older than they have been found: a link that is silent for less than the pause between two looks
    /// changes what is told of it, and not what is seen of it here.
    fn lasting(&mut self, at: u64, mut found: Vec<Finding>) -> Vec<Finding> {
        let before = std::mem::take(&mut self.wrong);
        for (age, what) in &mut found {
            let since = before.get(what).copied().unwrap_or(at);
            *age = (*age).min(at - since);
            self.wrong.insert(what.clone(), since);
        }
        found
    }

    /// What the node of `host` believes.
    fn view(&mut self, at: u64, host: usize, hosts: usize, node: &Node) -> View {
        let swarm = node.swarm();
        let index = |node: NodeId| usize::from(node.0).wrapping_sub(1);
        let mut view = View::default();
        for other in (0..hosts).filter(|other| *other != host) {
            let id = node_id(other);
            if let Some(incarnation) = swarm.knows(id) {
                let known = self.known.entry((host, other)).or_insert((incarnation, at));
                if known.0 != incarnation {
                    *known = (incarnation, at);
                }
                view.known.insert(other, *known);
            } else {
                self.known.remove(&(host, other));
            }
            let link = swarm.links().get(id);
            let (is_open, is_usable) = link.map_or((false, false), |link| (link.is_open, link.is_usable()));
            let session = link.map_or(0, |link| link.session);
            let now = (Own { is_open, is_usable, since: at }, session);
            let (own, of) = self.links.entry((host, other)).or_insert(now);
            if (own.is_open, own.is_usable, *of) != (is_open, is_usable, session) {
                (*own, *of) = now;
            }
            view.links.insert(other, *own);
            if let Some(report) = swarm.report(id) {
                let up = report.links.iter().map(|link| (index(link.to), link.is_up)).collect();
                view.told.insert(other, ((report.incarnation, report.boot), up));
            }
            if swarm.path(id).is_some() {
                self.lost.remove(&(host, other));
            } else {
                view.lost.insert(other, *self.lost.entry((host, other)).or_insert(at));
            }
            if swarm.verdict(id) == Verdict::Dead {
                view.dead.push(other);
            }
        }
        for (to, choice) in swarm.choices() {
            view.changes.insert(index(to), choice.changes);
            if let Some(path) = &choice.path {
                view.paths.insert(index(to), path.iter().copied().map(index).collect());
            }
        }
        view
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_engine::node::bug::Bugs;

    use super::*;
    use crate::{plan::Plan, swarm::Phase};

    /// Lets a cluster of three come up, and go on for some seconds.
    fn grown(seconds: u64) -> Swarm {
        let plan = Plan { datagram_loss_permille: 0, ..Plan::new(12, Bugs::NONE).with_hosts(3) };
        let mut swarm = Swarm::new(plan, false);
        pass(&mut swarm, seconds);
        swarm
    }

    /// Lets everything happen for some seconds but what clients do.
    fn pass(swarm: &mut Swarm, seconds: u64) {
        let until = swarm.at + seconds * SECOND;
        while swarm.at < until {
            let (at, event) = swarm.queue.pop().expect("nodes wake up again and again");
            swarm.at = at;
            swarm.happen(event);
            swarm.phase = Phase::Setup;
        }
    }

    #[test]
    fn a_cluster_that_is_left_alone_is_judged_and_found_good() {
        let mut swarm = grown(20);
        let look = swarm.see();
        assert_eq!(look.clean.len(), 6);
        assert!(look.clean.values().all(|since| *since + 10 * SECOND < swarm.at), "{:?}", look.clean);
        assert!(look.running().all(|(_, seen)| seen.view.paths.len() == 2 && seen.view.told.len() == 2));
        assert!(swarm.history.violations.is_empty(), "{:?}", swarm.history.violations);
    }

    #[test]
    fn what_happens_is_noticed_and_what_stays_wrong_is_a_violation() {
        let mut swarm = grown(20);
        swarm.open_hole(0, 1, 3 * SECOND);
        assert_eq!(swarm.see().clean.get(&(0, 1)), None);
        pass(&mut swarm, 8);
        assert!(swarm.see().clean.contains_key(&(0, 1)));
        swarm.pause(2, 5 * SECOND);
        assert_eq!(swarm.see().hosts[2].awake, None);
        pass(&mut swarm, 10);
        assert!(swarm.history.violations.is_empty(), "{:?}", swarm.history.violations);
        // All datagrams get lost, and that is no excuse: nobody hears what the next process on host 3 says.
        swarm.plan.datagram_loss_permille = 1000;
        swarm.kill_for(2, SECOND / 10);
        pass(&mut swarm, 15);
        let judges: Vec<&str> = swarm.history.violations.iter().map(|violation| violation.judge).collect();
        assert!(judges.contains(&"pictures"), "{:?}", swarm.history.violations);
    }
}
