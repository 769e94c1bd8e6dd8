//! Judges that watch while a run goes on: who leads, how far everybody is, whether replicas agree and rebuilt nodes equal
//! the living ones.
//!
//! `leaders`: one host serves a shard in a reign. `replicas`: what was applied stays applied, equal indexes mean equal
//! states, and in the end all replicas are where their leader is. `replay`: a node rebuilt from its disk is as it was.
//! `nonces`: never two ciphertexts under one nonce. `pace`: leads leave a node that is slow.

use bytes::Bytes;
use swarmmq_engine::{
    node::{Effects, Input, Node},
    shard::Shard,
};
use swarmmq_protocol::{
    envelope,
    frame::{self, Publish},
    id::{Attempt, Offset, Term},
    time::WallTime,
};

use super::{Event, Phase, Swarm};
use crate::{
    clock::{Clock, MILLISECOND, SECOND, virtual_time},
    disk::Disk,
    history::{Group, Reign},
    plan::PlannedAddress,
};

/// Virtual time a rebuilt node may take to serve.
const REBUILD_TIME_MAX: u64 = 30 * SECOND;
/// States are compared at every so manieth entry.
const SAMPLED: u64 = 32;
/// Pause between looks whether a slow node leads.
const PACE_PAUSE: u64 = SECOND / 4;
/// Entries that a replica may be behind and still count as up to date while work goes on.
const LAG_MAX: u64 = 50;

impl Swarm {
    /// Looks at a node after its turn: at the shards that it says it has touched.
    pub(super) fn watch(&mut self, host: usize, node: &Node, touched: &[usize]) {
        let standing = |shard: &Shard| (shard.is_serving().then(|| shard.term()), shard.state().applied);
        let mut serving = std::mem::take(&mut self.hosts[host].serving);
        serving.resize(node.shards().len(), (None, 0, 0));
        for index in touched {
            let (shard, before) = (&node.shards()[*index], &mut serving[*index]);
            let (term, applied) = standing(shard);
            if (before.0, before.1) == (term, applied) {
                continue;
            }
            if let Some(term) = term.filter(|_| term != before.0) {
                self.crown(host, shard, term);
            }
            // Who belongs to the group no more forgets what it held.
            if applied < before.1 && !shard.state().conf.is_empty() {
                let what = format!(
                    "node {} went back from entry {} to {applied} of shard {}",
                    host + 1,
                    before.1,
                    shard.id().0
                );
                self.history.violation("replicas", what);
            }
            if applied != before.1 && applied.is_multiple_of(SAMPLED) {
                self.compare(host, shard);
            }
            let group = group_code(shard);
            if group != before.2 {
                self.note("group", host as u64, u64::from(shard.id().0) << 32 | applied, group);
                if term.is_some() {
                    self.judge_voters(shard);
                }
            }
            *before = (term, applied, group);
        }
        // What it did not name is as it was; where speed counts it is taken at its word.
        if cfg!(debug_assertions) {
            let same = |(shard, before): (&Shard, &(Option<Term>, u64, u64))| {
                standing(shard) == (before.0, before.1)
            };
            assert!(node.shards().iter().zip(&serving).all(same), "node {} hides a change", host + 1);
        }
        self.hosts[host].serving = serving;
    }

    fn crown(&mut self, host: usize, leader: &Shard, term: Term) {
        let shard = leader.id();
        self.note_returned(leader, term);
        self.note("serves", host as u64, u64::from(shard.0), term.0);
        let boot = self.hosts[host].boot;
        let reign = Reign { at: self.at, host, boot };
        let first = *self.history.reigns.entry((shard, term)).or_insert(reign);
        if (first.host, first.boot) != (host, boot) {
            let what = format!(
                "shard {} has two leaders in reign {}: node {} since {} ms, and node {}",
                shard.0,
                term.0,
                first.host + 1,
                first.at / MILLISECOND,
                host + 1
            );
            self.history.violation("leaders", what);
        }
    }

    /// What a new leader knows to be wanted again needs to wait for nobody.
    fn note_returned(&mut self, leader: &Shard, term: Term) {
        for queue in leader.state().queues.values() {
            let dead = queue.address.is_dead_letter();
            let of = |planned: &PlannedAddress| match dead {
                true => planned.address.dead_letter().is_some_and(|letters| letters == queue.address),
                false => planned.address == queue.address,
            };
            let Some(address) = self.plan.addresses.iter().position(of) else { continue };
            for (name, group) in &queue.groups {
                let known = |known: &Group| {
                    known.address == address && known.dead == dead && known.name == name.as_str()
                };
                let Some(number) = self.history.groups.iter().position(known) else { continue };
                for (offset, retry) in &group.retries {
                    let key = (leader.id(), term, number, Offset(*offset));
                    self.history.returned.insert(key, Attempt(retry.attempt));
                }
            }
        }
    }

    /// Who votes has taken its shard over.
    fn judge_voters(&mut self, leader: &Shard) {
        let empty = leader.state().conf.voters.iter().find_map(|voter| {
            let (host, replica) = self.replica(*voter, leader)?;
            replica.state().conf.is_empty().then_some(host)
        });
        if let Some(host) = empty {
            let what = format!("node {} votes in shard {} and holds nothing", host + 1, leader.id().0);
            self.history.violation("replicas", what);
        }
    }

    /// Equal indexes mean equal states.
    fn compare(&mut self, host: usize, shard: &Shard) {
        let (id, applied) = (shard.id(), shard.state().applied);
        let digest = shard.state().digest();
        self.note("compared", host as u64, u64::from(id.0), applied);
        let (first, of) = *self.digests.entry((id, applied)).or_insert((digest, host));
        if first != digest {
            let what =
                format!("nodes {} and {} differ at entry {applied} of shard {}", of + 1, host + 1, id.0);
            self.history.violation("replicas", what);
        }
    }

    /// What travels under a nonce is noted for the judge.
    pub(super) fn look_at_nonces(&mut self, body: &Bytes) {
        let Ok(publish) = frame::decode::<Publish>(body.clone()) else { return };
        let mut rest: &[u8] = &publish.messages;
        while let Ok((sealed, after)) = envelope::split_sealed(rest) {
            let header = sealed.header();
            let nonce = (header.salt().0, header.shard().0, header.sequence().0);
            let hash = swarmmq_engine::log::crc32c(sealed.bytes());
            let known = *self.history.nonces.entry(nonce).or_insert(hash);
            if known != hash {
                self.history.violation(
                    "nonces",
                    format!("two ciphertexts under the nonce of {}", header.message_id()),
                );
            }
            rest = after;
        }
    }

    /// The host that leads `shard` now: of all that think so, the one with the latest reign.
    pub(super) fn leader_of(&self, shard: usize) -> Option<usize> {
        let term = |host: usize| self.hosts[host].node.as_ref().map(|node| node.shards()[shard].term());
        let serves = |host: &usize| {
            self.hosts[*host].node.as_ref().is_some_and(|node| node.shards()[shard].is_serving())
        };
        (0..self.hosts.len()).filter(serves).max_by_key(|host| term(*host))
    }

    /// A node that is slow while nothing else goes wrong leads nothing, and others do.
    pub(super) fn judge_pace(&mut self, host: usize, until: u64) {
        if self.at >= until || !matches!(self.phase, Phase::Chaos { .. }) {
            return;
        }
        for shard in 0..=self.plan.shards as usize {
            let leader = self.leader_of(shard);
            if leader.is_none_or(|leader| leader == host) {
                let seconds = (until - self.at) as f64 / SECOND as f64;
                let who = leader.map_or("nobody".to_owned(), |leader| format!("node {}", leader + 1));
                let what = format!(
                    "{who} leads shard {shard} though node {} is slow for {seconds:.1} s more",
                    host + 1
                );
                self.history.violation("pace", what);
            }
        }
        self.after(PACE_PAUSE, Event::Pace { host, until });
    }

    /// The leading replica of every shard, or why one has none.
    fn leaders(&self) -> Result<Vec<(usize, &Shard)>, String> {
        let count = self.plan.shards as usize + 1;
        (0..count)
            .map(|index| {
                let Some(host) = self.leader_of(index) else { return Err(self.why_silent(index)) };
                let node = self.hosts[host].node.as_ref().expect("a leader runs");
                Ok((host, &node.shards()[index]))
            })
            .collect()
    }

    fn why_silent(&self, shard: usize) -> String {
        let whys: Vec<String> = (0..self.hosts.len())
            .map(|host| match &self.hosts[host].node {
                None => format!("node {} does not run", host + 1),
                Some(node) => {
                    format!("node {}: {}", host + 1, standing(&node.shards()[shard]))
                }
            })
            .collect();
        format!("shard {shard} is not served: {}", whys.join(", "))
    }

    /// Messages in the queues of all leaders and what one of them waits for, or why one does not serve.
    pub(super) fn depth(&self) -> Result<(u64, String), String> {
        let leaders = self.leaders()?;
        let queues = leaders.iter().flat_map(|(_, shard)| shard.state().queues.values());
        let depth = queues.map(|queue| queue.messages.len() as u64).sum();
        let left = leaders.iter().find_map(|(host, shard)| leftover(*host, shard));
        Ok((depth, left.unwrap_or_else(|| "no queue has any".to_owned())))
    }

    /// Which shard lacks a copy, and why; `None`: every one has all its copies, up to date and on living disks.
    pub(super) fn shortage(&self) -> Option<String> {
        let leaders = match self.leaders() {
            Ok(leaders) => leaders,
            Err(why) => return Some(why),
        };
        let stores = self.stores();
        let copies = usize::from(self.plan.replicas).min(if stores < 3 { 1 } else { stores });
        leaders.iter().find_map(|(host, leader)| {
            let conf = &leader.state().conf;
            let (shard, applied) = (leader.id().0, leader.state().applied);
            if conf.voters.len() < copies {
                return Some(format!(
                    "shard {shard}, led by node {}, has {} voters and {} learners, of {copies}",
                    host + 1,
                    conf.voters.len(),
                    conf.learners.len()
                ));
            }
            conf.voters.iter().find_map(|voter| match self.replica(*voter, leader) {
                Some((host, _)) if self.hosts[host].draining => {
                    Some(format!("node {} is to be empty and votes in shard {shard}", host + 1))
                }
                None => Some(format!("voter {voter:x} of shard {shard} is no more")),
                Some((host, replica)) => {
                    let has = replica.state().applied;
                    (has + LAG_MAX < applied).then(|| {
                        let why = standing(replica);
                        format!("node {} has {has} of {applied} entries of shard {shard}: {why}", host + 1)
                    })
                }
            })
        })
    }

    /// Which shard is still on its way to the replicas that it should have; `None`: every one has them, but for those that
    /// are gone. A leader goes on with such a move whenever it can, also after a power cut: before it is done, groups may
    /// differ from one look to the next.
    pub(super) fn moving(&self) -> Option<String> {
        let leaders = match self.leaders() {
            Ok(leaders) => leaders,
            Err(why) => return Some(why),
        };
        let (_, cluster) = leaders.last()?;
        let members = &cluster.state().catalog.members;
        leaders.iter().find_map(|(host, leader)| {
            let conf = &leader.state().conf;
            let wish = members.wish(leader.id());
            let lives = |name: &u64| self.replica(*name, leader).is_some();
            let possible = wish.voters.iter().all(|name| conf.voters.contains(name) || lives(name))
                && wish.learners.iter().all(|name| conf.contains(*name) || lives(name));
            (possible && !wish.is_met(conf)).then(|| {
                let (shard, has) = (leader.id().0, group_code(leader));
                let wanted: Vec<u64> = wish.voters.iter().map(|voter| voter >> 48).collect();
                format!("shard {shard}, led by node {}, has group {has:x}, not voters {wanted:?}", host + 1)
            })
        })
    }

    /// The living replica with this name of the leader's shard.
    fn replica(&self, name: u64, leader: &Shard) -> Option<(usize, &Shard)> {
        let host = ((name >> 48) as usize).checked_sub(1)?;
        let state = self.hosts.get(host)?;
        let node = state.node.as_ref().filter(|_| state.config.incarnation == name & 0xffff_ffff_ffff)?;
        node.shards().iter().find(|shard| shard.id() == leader.id()).map(|shard| (host, shard))
    }

    /// Which living replica is not where its leader is, and why; `None`: all are, and have the same state.
    pub(super) fn discord(&self) -> Option<String> {
        let leaders = match self.leaders() {
            Ok(leaders) => leaders,
            Err(why) => return Some(why),
        };
        leaders.iter().find_map(|(_, leader)| {
            let state = leader.state();
            let members = state.conf.voters.iter().chain(&state.conf.learners);
            let replicas: Vec<_> = members.filter_map(|name| self.replica(*name, leader)).collect();
            let behind = replicas.iter().find(|(_, replica)| replica.state().applied != state.applied);
            if let Some((host, replica)) = behind {
                let (has, of, shard) = (replica.state().applied, state.applied, leader.id().0);
                let why = standing(replica);
                return Some(format!("node {} is at entry {has} of {of} of shard {shard}: {why}", host + 1));
            }
            let digest = state.digest();
            let other = replicas.iter().find(|(_, replica)| replica.state().digest() != digest);
            other.map(|(host, _)| format!("node {} has another shard {}", host + 1, leader.id().0))
        })
    }

    /// One digest per shard, of its leader.
    pub(super) fn states(&self) -> Vec<[u8; 32]> {
        self.leaders()
            .map(|leaders| leaders.iter().map(|(_, shard)| digest(shard)).collect())
            .unwrap_or_default()
    }

    /// What everybody knows after a power cut of all is what leaders knew before.
    pub(super) fn judge_legacy(&mut self) {
        let states = self.states();
        self.replays += 1;
        let different = self.legacy.iter().zip(&states).filter(|(a, b)| a != b).count();
        if different > 0 || states.len() != self.legacy.len() {
            let what = format!("after a power cut of all, {different} shards are not as they were");
            self.history.violation("replay", what);
        }
    }

    /// Replay = live: a node rebuilt from its disk has the same state as the one that runs. One of many cannot know alone
    /// what is committed: only what it knows as far as the living one is compared.
    pub(super) fn judge_replay(&mut self, host: usize, when: &str) {
        let state = &self.hosts[host];
        let Some(node) = &state.node else { return };
        if node.shards().iter().any(|shard| shard.stopped().is_some()) {
            // After a failed write the disk may hold what the node never learned.
            return;
        }
        let mut disk = state.disk.clone();
        disk.sync();
        let mut rebuilt = match disk.restore(&state.config, state.clock.now(self.at)) {
            Ok((node, _)) => node,
            Err(error) => {
                self.history.violation("replay", format!("{when}, the log cannot be read: {error}"));
                return;
            }
        };
        let alone = self.hosts.len() == 1;
        if alone {
            run_alone(&mut rebuilt, &mut disk, state.clock, self.at);
        }
        let same = |(a, b): &(&Shard, &Shard)| alone || a.state().applied == b.state().applied;
        let pairs = node.shards().iter().zip(rebuilt.shards());
        let different = pairs.filter(same).filter(|(a, b)| digest(a) != digest(b)).count();
        self.replays += 1;
        if different > 0 {
            let what = format!(
                "{when}, {different} rebuilt shards of node {} differ from the living ones",
                host + 1
            );
            self.history.violation("replay", what);
        }
    }
}

/// Lets a rebuilt node elect itself and apply all that its disk holds.
fn run_alone(node: &mut Node, disk: &mut Disk, clock: Clock, from: u64) {
    let mut at = from;
    while !node.report().ready && at < from + REBUILD_TIME_MAX {
        let now = clock.now(at);
        node.handle(now, Input::Woken);
        let mut effects = Effects::default();
        node.flush(now, &mut effects);
        if let Some(append) = effects.append {
            disk.write(append);
            let batch = disk.sync().expect("just written");
            node.handle(now, Input::Synced { batch });
        } else {
            at = node.next_wake().map_or(at + MILLISECOND, |wake| virtual_time(wake).max(at + MILLISECOND));
        }
    }
}

/// What a replica thinks of itself, in words.
fn standing(shard: &Shard) -> String {
    match (shard.stopped(), shard.leader()) {
        (Some(why), _) => why.to_owned(),
        (None, Some(leader)) => format!("node {} leads in reign {}", leader.0, shard.term().0),
        (None, None) => {
            let nodes =
                |replicas: &[u64]| -> Vec<u64> { replicas.iter().map(|replica| replica >> 48).collect() };
            let conf = &shard.state().conf;
            let (voters, learners) = (nodes(&conf.voters), nodes(&conf.learners));
            let (term, applied) = (shard.term().0, shard.state().applied);
            format!(
                "nobody leads in reign {term} (applied {applied}, voters {voters:?}, learners {learners:?})"
            )
        }
    }
}

/// The nodes of a shard's voters, and after an f those of its learners, one hexadecimal digit each.
fn group_code(shard: &Shard) -> u64 {
    let conf = &shard.state().conf;
    let nodes = conf.voters.iter().map(|voter| voter >> 48);
    let learners = conf.learners.iter().map(|learner| learner >> 48);
    nodes.chain([0xf]).chain(learners).fold(0, |code, node| code << 4 | node)
}

/// A queue that is not empty, and what its groups still want, in words.
fn leftover(host: usize, shard: &Shard) -> Option<String> {
    let queue = shard.state().queues.values().find(|queue| !queue.messages.is_empty())?;
    let offset = *queue.messages.keys().next().expect("the queue is not empty");
    let groups: Vec<String> = queue
        .groups
        .iter()
        .filter(|(_, group)| group.wants(offset))
        .map(|(name, group)| {
            let leased = shard.leased(&queue.address, name);
            format!("{name} wants it as attempt {}, leases {leased}", group.attempt(offset).0)
        })
        .collect();
    Some(format!(
        "first message {offset} of {} in shard {}, led by node {}: {}",
        queue.address,
        shard.id().0,
        host + 1,
        groups.join(", ")
    ))
}

/// A restart adds the entry that opens its reign, and looks at the clock; everything else must be equal.
fn digest(shard: &Shard) -> [u8; 32] {
    let mut state = shard.state().clone();
    state.applied = 0;
    state.time = WallTime(0);
    state.digest()
}
