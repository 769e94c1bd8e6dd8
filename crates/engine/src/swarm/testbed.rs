//! A network in miniature for the tests of this folder: machines with gossip on them, loss, delay, stalls, cuts; one seed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use bytes::Bytes;
use swarmmq_protocol::{
    datagram::{Gossiped, Header},
    id::{ClusterId, NodeId},
    mac::MacKey,
    node_key::NodeSecret,
    time::Instant,
};

use super::{
    detector::Verdict,
    gossip::{Acquaintance, Gossip, Me},
    report::Load,
};

pub(super) const CLUSTER: ClusterId = ClusterId(42);

/// What is under way: bytes, or what they would say, where only the machines are of interest.
enum Parcel {
    Sealed(Bytes),
    Open(Box<(Header, Gossiped)>),
}

enum Event {
    Arrives {
        from: usize,
        to: usize,
        parcel: Parcel,
    },
    Wakes(usize),
    Resumes(usize),
    /// The host of the second refuses a connection of the first.
    Refused(usize, usize),
}

struct Queued {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub(super) struct Machine {
    pub gossip: Gossip,
    pub is_up: bool,
    stalled: bool,
    waiting: Vec<(usize, Parcel)>,
    wakes_at: u64,
    boot: u64,
}

pub(super) struct Testbed {
    pub now: Instant,
    pub machines: Vec<Machine>,
    /// Whether bytes travel, with MACs, instead of values.
    pub seals: bool,
    pub loss_permille: u64,
    /// Datagrams that wait at most at the door of a machine that is stalled; more are dropped.
    pub room: usize,
    pub sent: u64,
    /// Every change of a verdict: when, whose, about whom, which.
    pub verdicts: Vec<(Instant, usize, usize, Verdict)>,
    last: Vec<Vec<Verdict>>,
    cut: Vec<Vec<bool>>,
    queue: BinaryHeap<Reverse<Queued>>,
    order: u64,
    chance: u64,
    fan_out: Option<usize>,
}

pub(super) fn node(index: usize) -> NodeId {
    NodeId(index as u16 + 1)
}

pub(super) fn secret(index: usize) -> NodeSecret {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(index as u64 + 1).to_be_bytes());
    NodeSecret::new(seed)
}

pub(super) fn acquaintances(count: usize) -> BTreeMap<NodeId, Acquaintance> {
    let known = |index| (node(index), Acquaintance { incarnation: 1, key: secret(index).public() });
    (0..count).map(known).collect()
}

fn gossip(index: usize, boot: u64, seed: u64, now: Instant) -> Gossip {
    let me = Me { node: node(index), incarnation: 1, boot };
    Gossip::new(me, secret(index), CLUSTER, MacKey::new([9; 32]).into(), seed, now)
}

impl Testbed {
    /// `count` machines that know each other and begin within 100 ms.
    pub fn new(count: usize, seed: u64) -> Self {
        let mut bed = Self {
            now: Instant::from_millis(1_000),
            machines: Vec::new(),
            seals: false,
            loss_permille: 0,
            room: usize::MAX,
            sent: 0,
            verdicts: Vec::new(),
            last: vec![vec![Verdict::Alive; count]; count],
            cut: vec![vec![false; count]; count],
            queue: BinaryHeap::new(),
            order: 0,
            chance: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed,
            fan_out: None,
        };
        let known = acquaintances(count);
        for index in 0..count {
            let mut gossip = gossip(index, 1, seed, bed.now);
            gossip.know(bed.now, &known);
            gossip.say(bed.now, 7, "0.1.0", Load::default(), Vec::new(), false);
            let machine = Machine {
                gossip,
                is_up: true,
                stalled: false,
                waiting: Vec::new(),
                wakes_at: u64::MAX,
                boot: 1,
            };
            bed.machines.push(machine);
            let at = bed.now.0 + bed.draw(100_000_000);
            bed.put(at, Event::Wakes(index));
        }
        bed
    }

    pub fn limit_fan_out(&mut self, peers: usize) {
        self.fan_out = Some(peers);
        self.machines.iter_mut().for_each(|machine| machine.gossip.limit_fan_out(peers));
    }

    pub fn draw(&mut self, below: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        ((u128::from(self.chance.wrapping_mul(0x2545_f491_4f6c_dd1d)) * u128::from(below)) >> 64) as u64
    }

    fn put(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Queued { at, order: self.order, event }));
    }

    /// Nothing gets from `from` to `to` any more, or again.
    pub fn cut(&mut self, from: usize, to: usize, is_cut: bool) {
        self.cut[from][to] = is_cut;
    }

    /// Nothing gets from one side to the other, or everything again.
    pub fn split(&mut self, side: &[usize], is_cut: bool) {
        for from in 0..self.machines.len() {
            for to in 0..self.machines.len() {
                if side.contains(&from) != side.contains(&to) {
                    self.cut[from][to] = is_cut;
                }
            }
        }
    }

    pub fn crash(&mut self, index: usize) {
        self.machines[index].is_up = false;
        self.machines[index].waiting.clear();
    }

    /// The process is stopped, and goes on after `pause` as if nothing had happened.
    pub fn stall(&mut self, index: usize, pause: Duration) {
        if !self.machines[index].stalled {
            self.machines[index].stalled = true;
            self.put((self.now + pause).0, Event::Resumes(index));
        }
    }

    pub fn start(&mut self, index: usize) {
        let seed = self.draw(u64::MAX);
        let (now, boot) = (self.now, self.machines[index].boot + 1);
        let mut gossip = gossip(index, boot, seed, now);
        gossip.know(now, &acquaintances(self.machines.len()));
        gossip.say(now, 7, "0.1.0", Load::default(), Vec::new(), false);
        if let Some(peers) = self.fan_out {
            gossip.limit_fan_out(peers);
        }
        let machine = &mut self.machines[index];
        (machine.gossip, machine.is_up, machine.boot, machine.wakes_at) = (gossip, true, boot, u64::MAX);
        self.last[index].fill(Verdict::Alive);
        self.settle(index);
    }

    /// Some of the links of whoever just crashed break, and its host refuses: at once, or after a second for each try that is lost.
    pub fn refuse(&mut self, crashed: usize) {
        for index in 0..self.machines.len() {
            if index == crashed {
                continue;
            }
            let mut at = self.now.0 + 1_000_000 + self.draw(4_000_000);
            while self.draw(1000) < self.loss_permille || self.draw(1000) < self.loss_permille {
                at += 1_000_000_000;
            }
            self.put(at, Event::Refused(index, crashed));
        }
    }

    /// Runs until nothing is left before `until`.
    pub fn run_until(&mut self, until: Instant) {
        self.run_while(until, |_| true);
    }

    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Runs until `goes_on` denies it, asked after every event, or until `until`.
    pub fn run_while(&mut self, until: Instant, mut goes_on: impl FnMut(&Self) -> bool) {
        while goes_on(self) {
            match self.queue.peek() {
                Some(Reverse(next)) if next.at <= until.0 => {}
                _ => break,
            }
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.now = Instant(self.now.0.max(next.at));
            self.step(next.event);
        }
        if self.queue.peek().is_none_or(|Reverse(next)| next.at > until.0) {
            self.now = until;
        }
    }

    fn step(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Arrives { from, to, parcel } => {
                let machine = &mut self.machines[to];
                if !machine.is_up {
                    return;
                }
                if machine.stalled {
                    if machine.waiting.len() < self.room {
                        machine.waiting.push((from, parcel));
                    }
                    return;
                }
                machine.take(now, parcel);
                self.settle(to);
            }
            Event::Wakes(index) => {
                let machine = &mut self.machines[index];
                if machine.wakes_at <= now.0 {
                    machine.wakes_at = u64::MAX;
                }
                self.settle(index);
            }
            Event::Resumes(index) => {
                self.machines[index].stalled = false;
                for (_, parcel) in std::mem::take(&mut self.machines[index].waiting) {
                    self.machines[index].take(now, parcel);
                }
                self.settle(index);
            }
            Event::Refused(index, whom) => {
                if self.machines[index].is_up && !self.machines[whom].is_up {
                    self.machines[index].gossip.gone(now, node(whom));
                    self.settle(index);
                }
            }
        }
    }

    /// Lets a machine do what is due, and notes what it believes now.
    pub fn settle(&mut self, index: usize) {
        let now = self.now;
        if !self.machines[index].is_up || self.machines[index].stalled {
            return;
        }
        if self.machines[index].gossip.next_wake() <= now {
            let gossip = &mut self.machines[index].gossip;
            let mut parcels = Vec::new();
            if self.seals {
                let mut out = Vec::new();
                gossip.poll(now, &mut out);
                parcels.extend(out.into_iter().map(|(to, bytes)| (to, Parcel::Sealed(bytes))));
            } else {
                for (to, is_answer) in gossip.turn(now) {
                    let parcel =
                        gossip.compose(now, to, is_answer).map(|composed| Parcel::Open(Box::new(composed)));
                    parcels.extend(parcel.map(|parcel| (to, parcel)));
                }
            }
            for (to, parcel) in parcels {
                self.send(index, usize::from(to.0) - 1, parcel);
            }
        }
        let machine = &mut self.machines[index];
        let wake = machine.gossip.next_wake().0.max(now.0 + 1);
        if wake < machine.wakes_at {
            machine.wakes_at = wake;
            self.put(wake, Event::Wakes(index));
        }
        if self.machines[index].gossip.take_changed() {
            for other in 0..self.machines.len() {
                let verdict = self.machines[index].gossip.verdict(node(other));
                if std::mem::replace(&mut self.last[index][other], verdict) != verdict {
                    self.verdicts.push((now, index, other, verdict));
                }
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, parcel: Parcel) {
        self.sent += 1;
        let is_lost = self.draw(1000) < self.loss_permille;
        if is_lost || self.cut[from][to] || to >= self.machines.len() {
            return;
        }
        let at = self.now.0 + 200_000 + self.draw(2_800_000);
        self.put(at, Event::Arrives { from, to, parcel });
    }

    /// Whether everybody who runs believes this of `whom`.
    pub fn all_believe(&self, whom: usize, verdict: Verdict) -> bool {
        let mut running = self.machines.iter().enumerate().filter(|(_, machine)| machine.is_up);
        running.all(|(index, machine)| index == whom || machine.gossip.verdict(node(whom)) == verdict)
    }

    /// Whether everybody who runs believes that everybody is alive.
    pub fn all_alive(&self) -> bool {
        (0..self.machines.len()).all(|whom| self.all_believe(whom, Verdict::Alive))
    }
}

impl Machine {
    fn take(&mut self, now: Instant, parcel: Parcel) {
        // Refused or not: what is refused is counted, and stories look at the counts.
        match parcel {
            Parcel::Sealed(bytes) => drop(self.gossip.datagram(now, &bytes)),
            Parcel::Open(open) => drop(self.gossip.take(now, open.0, open.1)),
        }
    }
}
