//! Judges that watch while a run goes on: who leads, how far everybody is, whether replicas agree and rebuilt nodes equal
//! the living ones.
//!
//! `leaders`: one host serves a shard in a reign. `replicas`: what was applied stays applied, equal indexes mean equal
//! states, and in the end all replicas are where their leader is. `replay`: a node rebuilt from its disk is as it was.
//! `nonces`: never two ciphertexts under one nonce.

use bytes::Bytes;
use swarmmq_engine::{
    node::{Effects, Input, Node},
    shard::Shard,
};
use swarmmq_protocol::{
    envelope,
    frame::{self, Publish},
    id::{ShardId, Term},
    time::WallTime,
};

use super::Swarm;
use crate::{
    clock::{MILLISECOND, SECOND, virtual_time},
    history::Reign,
};

/// Virtual time a rebuilt node may take to serve.
const REBUILD_TIME_MAX: u64 = 30 * SECOND;
/// States are compared at every so manieth entry.
const SAMPLED: u64 = 32;

impl Swarm {
    /// Looks at a node after its turn.
    pub(super) fn watch(&mut self, host: usize, node: &Node) {
        let mut serving = std::mem::take(&mut self.hosts[host].serving);
        serving.resize(node.shards().len(), (None, 0));
        for (shard, before) in node.shards().iter().zip(&mut serving) {
            let term = shard.is_serving().then(|| shard.term());
            let applied = shard.state().applied;
            if *before == (term, applied) {
                continue;
            }
            if let Some(term) = term.filter(|_| term != before.0) {
                self.crown(host, shard.id(), term);
            }
            if applied < before.1 {
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
            *before = (term, applied);
        }
        self.hosts[host].serving = serving;
    }

    fn crown(&mut self, host: usize, shard: ShardId, term: Term) {
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
                    let shard = &node.shards()[shard];
                    format!("node {}: {}", host + 1, shard.stopped().unwrap_or("does not lead"))
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

    /// Replay = live: a node rebuilt from its disk has the same state as the one that runs.
    pub(super) fn judge_replay(&mut self, host: usize, when: &str) {
        let state = &self.hosts[host];
        let Some(node) = &state.node else { return };
        if node.shards().iter().any(|shard| shard.stopped().is_some()) {
            // After a failed write the disk may hold what the node never learned.
            return;
        }
        let live = digests(node);
        let mut disk = state.disk.clone();
        disk.sync();
        let mut at = self.at;
        let mut node = match disk.restore(&state.config, state.clock.now(at)) {
            Ok((node, _)) => node,
            Err(error) => {
                self.history.violation("replay", format!("{when}, the log cannot be read: {error}"));
                return;
            }
        };
        while !node.report().ready && at < self.at + REBUILD_TIME_MAX {
            let now = state.clock.now(at);
            node.handle(now, Input::Woken);
            let mut effects = Effects::default();
            node.flush(now, &mut effects);
            if let Some(append) = effects.append {
                disk.write(append);
                let batch = disk.sync().expect("just written");
                node.handle(now, Input::Synced { batch });
            } else {
                at = node
                    .next_wake()
                    .map_or(at + MILLISECOND, |wake| virtual_time(wake).max(at + MILLISECOND));
            }
        }
        self.replays += 1;
        let rebuilt = digests(&node);
        let different = live.iter().zip(&rebuilt).filter(|(a, b)| a != b).count();
        if different > 0 || live.len() != rebuilt.len() {
            self.history.violation(
                "replay",
                format!("{when}, {different} rebuilt shards differ from the living ones"),
            );
        }
    }
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

/// One digest per shard. A restart adds the entry that opens its reign, and looks at the clock; everything else must be
/// equal.
fn digests(node: &Node) -> Vec<[u8; 32]> {
    node.shards()
        .iter()
        .map(|shard| {
            let mut state = shard.state().clone();
            state.applied = 0;
            state.time = WallTime(0);
            state.digest()
        })
        .collect()
}
