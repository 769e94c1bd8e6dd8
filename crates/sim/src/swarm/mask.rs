//! One set of links of five nodes: all others are cut out of a healthy cluster, silently, with a producer at every node that
//! sends to every shard. Who must be served then, and who must not, follows from the links alone (safety rule 23).

use std::collections::BTreeMap;

use swarmmq_engine::shard::member::node_of;
use swarmmq_protocol::id::{ShardId, Term};

use super::{Event, Phase, Swarm, host::node_id, links::Pair};
use crate::{
    client::{Role, producer::Item},
    clock::{Clock, MILLISECOND, SECOND, instant},
    history::{Fate, Sent},
};

/// Pause between two messages of one producer to one shard.
const SEND_PAUSE: u64 = 50 * MILLISECOND;
/// Messages of one producer in one shard whose fate is open, at most: who is not served must not block the others.
const OPEN_MAX: usize = 4;
/// Time in which everything works before the links are cut.
const CALM: u64 = 1500 * MILLISECOND;
/// Time after which leaders are where they belong, so that whatever changes then is due to the cut.
const SETTLED: u64 = 7 * SECOND;
/// Time after the cut in which whoever must be served has to be (the bar of the masks).
pub const LIVE_WITHIN: u64 = 2 * SECOND;
/// How long is looked.
const WATCHED: u64 = 3 * SECOND;
/// Time that a message has.
const PATIENCE: u64 = 30 * SECOND;

/// What happens to links, and what was seen.
#[derive(Debug)]
pub struct Mask {
    /// Between whom nothing passes, in both directions.
    pub cut: Vec<Pair>,
    /// Whether leaders get time to go where they belong first.
    pub settled: bool,
    /// When it was cut.
    pub since: Option<u64>,
    /// The host of each producer, by client.
    homes: BTreeMap<usize, usize>,
    /// Messages of open fate, by client and shard.
    open: BTreeMap<(usize, ShardId), usize>,
    /// Of a host in a shard: the longest time after the cut in which nothing was answered, until the first answer.
    pub served_after: BTreeMap<(usize, ShardId), u64>,
    /// Who led each shard when the links were cut, and who holds it.
    pub before: Vec<(Option<Term>, Vec<usize>)>,
    /// Shards with another reign at the end, of those that some side can serve.
    pub reigns: usize,
}

impl Mask {
    /// Nothing is cut yet.
    pub fn new(cut: Vec<Pair>, settled: bool) -> Self {
        Self {
            cut,
            settled,
            since: None,
            homes: BTreeMap::new(),
            open: BTreeMap::new(),
            served_after: BTreeMap::new(),
            before: Vec::new(),
            reigns: 0,
        }
    }

    /// Hosts that can reach each other over what is left, by the lowest of them.
    pub fn sides(&self, hosts: usize) -> Vec<usize> {
        let mut side: Vec<usize> = (0..hosts).collect();
        for _ in 0..hosts {
            for a in 0..hosts {
                for b in a + 1..hosts {
                    if !self.cut.contains(&(a, b)) {
                        let low = side[a].min(side[b]);
                        (side[a], side[b]) = (low, low);
                    }
                }
            }
        }
        side
    }
}

impl Swarm {
    /// One producer at every node, instead of everybody else.
    pub(super) fn open_masked_shop(&mut self) {
        for host in 0..self.hosts.len() {
            let process = self.producer_process(Clock::default());
            self.join(Role::Producer(Box::new(process)));
            let client = self.clients.len() - 1;
            self.clients[client].home = Some(host);
            self.mask_mut().homes.insert(client, host);
        }
    }

    fn mask_mut(&mut self) -> &mut Mask {
        self.mask.as_mut().expect("asked only in a run with a mask")
    }

    /// A message of `client` to every shard that answers it.
    pub(super) fn send_everywhere(&mut self, client: usize, life: u64) {
        if !matches!(self.phase, Phase::Chaos { .. }) || self.clients[client].life != life {
            return;
        }
        for shard in 0..self.plan.shards {
            let open = self.mask_mut().open.entry((client, ShardId(shard))).or_default();
            if *open >= OPEN_MAX {
                continue;
            }
            let item = Item {
                address: 0,
                key: None,
                body: b"masked",
                spread: Some(u64::from(shard)),
                now: instant(self.at),
                deadline: instant(self.at + PATIENCE),
                wall: self.clients[client].clock.wall(self.at),
            };
            let Role::Producer(producer) = &mut self.clients[client].role else { return };
            if !producer.can_send(0, item.body.len()) {
                continue;
            }
            let id = producer.send(&item);
            *self.mask_mut().open.get_mut(&(client, id.shard)).expect("made above") += 1;
            let sent = Sent { address: 0, key: None, hash: 0, at: self.at, fate: Fate::Untold };
            self.trace.step(self.at, "send", [client as u64, id.sequence.0, u64::from(id.shard.0)]);
            self.history.sent.insert(id, sent);
        }
        self.pump(client);
        self.after(SEND_PAUSE, Event::Send { client, life, burst: 0 });
    }

    /// A producer was told of a message that it sent at `sent_at`.
    pub(super) fn told_masked(&mut self, client: usize, shard: ShardId, sent_at: u64, fate: Fate) {
        let at = self.at;
        let Some(mask) = &mut self.mask else { return };
        let Some(home) = mask.homes.get(&client).copied() else { return };
        if let Some(open) = mask.open.get_mut(&(client, shard)) {
            *open = open.saturating_sub(1);
        }
        if let Some(since) = mask.since
            && matches!(fate, Fate::Stored(_))
            && sent_at >= since
        {
            mask.served_after.entry((home, shard)).or_insert(at - since);
        }
    }

    /// Everything works: a while later links are cut.
    pub(super) fn begin_masked(&mut self) {
        let calm = if self.mask_mut().settled { SETTLED } else { CALM };
        self.after(calm, Event::Mask);
    }

    /// Cuts the links, or looks what that did.
    pub(super) fn mask_step(&mut self) {
        if self.mask_mut().since.is_some() {
            self.judge_mask();
            self.phase = Phase::Over;
            return;
        }
        let before = self.reigns();
        let at = self.at;
        let mask = self.mask_mut();
        mask.since = Some(at);
        mask.before = before;
        for (a, b) in mask.cut.clone() {
            self.open_hole(a, b, 1000 * SECOND);
            self.open_hole(b, a, 1000 * SECOND);
        }
        self.after(WATCHED, Event::Mask);
    }

    /// For every data shard: the highest reign that somebody serves in, and which hosts vote.
    fn reigns(&self) -> Vec<(Option<Term>, Vec<usize>)> {
        let nodes = || self.hosts.iter().filter_map(|host| host.node.as_ref());
        let reign = |shard: usize| {
            let serving = nodes().map(|node| &node.shards()[shard]).filter(|shard| shard.is_serving());
            let leader = serving.max_by_key(|shard| shard.term());
            let voters = leader.map(|shard| shard.conf().voters.iter().map(|voter| node_of(*voter)));
            let voters = voters.into_iter().flatten().map(|node| usize::from(node.0) - 1).collect();
            (leader.map(|shard| shard.term()), voters)
        };
        (0..self.plan.shards as usize).map(reign).collect()
    }

    fn judge_mask(&mut self) {
        let after = self.reigns();
        let mask = self.mask.as_mut().expect("asked only in a run with a mask");
        let sides = mask.sides(self.hosts.len());
        for (shard, (term, voters)) in mask.before.iter().enumerate() {
            let majority = |host: usize| {
                let near = voters.iter().filter(|voter| sides[**voter] == sides[host]).count();
                2 * near > voters.len()
            };
            let is_served = (0..self.hosts.len()).any(majority);
            mask.reigns += usize::from(is_served && after[shard].0 != *term);
            for host in 0..self.hosts.len() {
                let id = ShardId(shard as u32);
                let served = mask.served_after.get(&(host, id)).copied();
                let what = match (majority(host), served) {
                    (true, Some(after)) if after <= LIVE_WITHIN => continue,
                    (false, None) => continue,
                    (true, Some(after)) => format!("only after {} ms", after / MILLISECOND),
                    (true, None) => "not at all".to_owned(),
                    (false, Some(after)) => format!("without a majority, after {} ms", after / MILLISECOND),
                };
                let name = node_id(host).0;
                let replicas: Vec<usize> = voters.iter().map(|voter| voter + 1).collect();
                let text =
                    format!("a client at node {name} was served by shard {shard} ({replicas:?}) {what}");
                self.history.violation("masks", text);
            }
        }
    }
}
