//! What goes wrong, one kind after the other, and how everything is mended before the drain.

use swarmmq_protocol::admin::AdminRequest;

use super::{
    Event, Swarm,
    host::{Host, node_id},
    links::pair,
    network::Slowness,
};
use crate::{
    client::Role,
    clock::{MILLISECOND, SECOND},
    plan::{Fault, ROLE_STORE},
};

/// Time in which a slow node must have lost the leads that quicker ones can take.
const LEAVES_WITHIN: u64 = 5 * SECOND;
/// Nodes that must be left to hold shards when one goes.
const COPIES: usize = 3;

impl Swarm {
    /// Lets one fault happen, if it can happen now.
    pub(super) fn fault(&mut self, fault: Fault) {
        self.note(fault.text(), 0, 0, 0);
        let happened = match fault {
            Fault::Cut | Fault::SlowLink | Fault::CutAll => self.client_link_fault(fault),
            Fault::ConsumerCrash | Fault::ProducerCrash => self.client_crash(fault),
            Fault::NewGroup => self.new_group(),
            Fault::SlowDisk
            | Fault::DiskStall
            | Fault::FullDisk
            | Fault::SyncError
            | Fault::ReadFlip
            | Fault::BitFlip => self.disk_fault(fault),
            Fault::LinkCut
            | Fault::BlackHole
            | Fault::LinkSlow
            | Fault::LinkFlap
            | Fault::Partition
            | Fault::PartitionLeader => self.link_fault(fault),
            _ => self.host_fault(fault),
        };
        *self.faults.entry(fault).or_default() += u64::from(happened);
    }

    fn client_link_fault(&mut self, fault: Fault) -> bool {
        let live = self.live_connections();
        if live.is_empty() {
            return false;
        }
        let one = live[self.chaos.below(live.len() as u64) as usize];
        match fault {
            Fault::Cut => self.cut(one),
            Fault::SlowLink => self.slow(one),
            _ => live.into_iter().for_each(|connection| self.cut(connection)),
        }
        true
    }

    fn client_crash(&mut self, fault: Fault) -> bool {
        let consumer = fault == Fault::ConsumerCrash;
        let which: Vec<usize> = (0..self.clients.len())
            .filter(|client| match self.clients[*client].role {
                Role::Consumer(_) => consumer,
                Role::Producer(_) => !consumer,
                Role::Operator(_) => false,
            })
            .collect();
        let client = which[self.chaos.below(which.len() as u64) as usize];
        self.client_dies(client);
        true
    }

    fn disk_fault(&mut self, fault: Fault) -> bool {
        let Some(host) = self.some_host() else { return false };
        match fault {
            Fault::SlowDisk => {
                self.hosts[host].slow_until = self.at + self.chaos.between(SECOND / 5, 3 * SECOND);
                self.hosts[host].kill_at_write |= self.chaos.chance(300);
            }
            Fault::DiskStall => {
                self.hosts[host].stalled_until = self.at + self.chaos.between(SECOND / 2, 10 * SECOND);
            }
            Fault::FullDisk => self.fill_disk(host),
            Fault::SyncError => self.hosts[host].fail_sync = true,
            Fault::ReadFlip => self.hosts[host].rotten_until = self.at + 2 * SECOND,
            _ => {
                self.hosts[host].flip_next = true;
                self.kill(host);
            }
        }
        true
    }

    fn host_fault(&mut self, fault: Fault) -> bool {
        let Some(host) = self.some_host() else { return false };
        match fault {
            Fault::Crash if self.chaos.chance(500) => self.hosts[host].kill_at_write = true,
            Fault::Crash => self.kill(host),
            Fault::CrashLeader => match self.some_leader() {
                Some(leader) => self.kill(leader),
                None => return false,
            },
            Fault::CrashSome => self.crash_some(),
            Fault::PowerCut => self.power_cut(),
            Fault::GracefulRestart => self.drain(host),
            Fault::Pause => self.pause_for_a_while(host),
            Fault::PauseLeader => match self.some_leader() {
                Some(leader) => self.pause_for_a_while(leader),
                None => return false,
            },
            Fault::ClockJump => {
                let by = self.chaos.between(1000, 3_600_000) as i64;
                self.hosts[host].clock.jump(if self.chaos.chance(500) { by } else { -by });
            }
            Fault::Wipe => return self.wipe_one(host),
            Fault::Drain => return self.empty_one(host),
            Fault::Remove => return self.remove_one(host),
            Fault::SlowNode => self.slow_down(host),
            _ => return false,
        }
        true
    }

    /// Fewer than half of the disks are lost in a run, each only when everything has all its copies.
    fn wipe_one(&mut self, host: usize) -> bool {
        let few = self.wiped < (self.hosts.len() - 1) / 2;
        let safe = few && self.hosts.len() >= 3 && self.shortage().is_none();
        if safe {
            self.wiped += 1;
            self.wipe(host);
        }
        safe
    }

    /// Nodes that hold shards and are to go on doing so.
    pub(super) fn stores(&self) -> usize {
        let stays = |host: &&Host| {
            host.planned.roles & ROLE_STORE != 0 && host.boot > 0 && !host.gone && !host.draining
        };
        self.hosts.iter().filter(stays).count()
    }

    /// One node at a time is emptied while work goes on; the next time it may hold shards again.
    fn empty_one(&mut self, host: usize) -> bool {
        let emptied = self.hosts.iter().position(|host| host.draining);
        let host = emptied.unwrap_or(host);
        let draining = emptied.is_none();
        let possible =
            !draining || self.stores() > COPIES && self.hosts[host].planned.roles & ROLE_STORE != 0;
        if possible {
            self.hosts[host].draining = draining;
            self.note("empty", host as u64, u64::from(draining), 0);
            self.instruct(AdminRequest::NodeDrain { node: node_id(host), draining });
        }
        possible
    }

    /// A node that dies for good counts as a lost disk. The first one stays: who comes with an empty disk asks it.
    fn remove_one(&mut self, host: usize) -> bool {
        let few = self.wiped < (self.hosts.len() - 1) / 2 && self.stores() > COPIES;
        let doors = self
            .hosts
            .iter()
            .enumerate()
            .any(|(other, state)| other != host && state.is_ingress() && state.boot > 0 && !state.gone);
        let safe = host > 0 && few && doors && self.shortage().is_none();
        if safe {
            self.wiped += 1;
            self.hosts[host].gone = true;
            self.hosts[host].draining = false;
            self.die(host);
            self.note("removed", host as u64, 0, 0);
            self.instruct(AdminRequest::NodeRemove { node: node_id(host) });
        }
        safe
    }

    fn instruct(&mut self, question: AdminRequest) {
        self.clients[0].instruct(question);
        self.pump(0);
    }

    fn link_fault(&mut self, fault: Fault) -> bool {
        let count = self.hosts.len() as u64;
        if count < 2 {
            return false;
        }
        let from = self.chaos.below(count) as usize;
        let to = (from + self.chaos.between(1, count) as usize) % self.hosts.len();
        match fault {
            Fault::LinkCut => {
                let time = self.outage();
                self.cut_link(pair(from, to), time);
            }
            Fault::BlackHole => {
                let time = self.outage();
                self.open_hole(from, to, time);
                if self.chaos.chance(300) {
                    self.open_hole(to, from, time);
                }
            }
            Fault::LinkSlow => {
                let until = self.at + self.chaos.between(SECOND, 8 * SECOND);
                let by = self.chaos.between(SECOND / 20, 3 * SECOND);
                self.slow_way(from, to, Slowness { until, by });
            }
            Fault::LinkFlap => {
                let mut at = 0;
                for _ in 0..self.chaos.between(3, 12) {
                    let time = self.chaos.between(SECOND / 20, SECOND);
                    self.after(at, Event::LinkCut { pair: pair(from, to), time });
                    at += time + self.chaos.between(SECOND / 10, 3 * SECOND);
                }
            }
            Fault::PartitionLeader => match self.some_leader() {
                Some(leader) => self.partition(leader),
                None => return false,
            },
            _ => self.partition(from),
        }
        true
    }

    fn outage(&mut self) -> u64 {
        if self.chaos.chance(200) {
            self.chaos.between(5 * SECOND, 30 * SECOND)
        } else {
            self.chaos.between(SECOND / 5, 5 * SECOND)
        }
    }

    /// `one`, and perhaps others, but fewer than half, are on their own.
    fn partition(&mut self, one: usize) {
        let count = self.hosts.len();
        let size = self.chaos.between(1, (count as u64 - 1) / 2 + 1).max(1) as usize;
        let minority: Vec<usize> = (0..size).map(|n| (one + n) % count).collect();
        let time = self.outage();
        // They may hear of it, or not; or one side may still hear the other.
        let way = self.chaos.below(4);
        for inside in &minority {
            for outside in (0..count).filter(|host| !minority.contains(host)) {
                match way {
                    0 | 1 => self.cut_link(pair(*inside, outside), time),
                    2 => {
                        self.open_hole(*inside, outside, time);
                        self.open_hole(outside, *inside, time);
                    }
                    _ => self.open_hole(*inside, outside, time),
                }
            }
        }
    }

    /// A host whose node runs.
    fn some_host(&mut self) -> Option<usize> {
        let up: Vec<usize> = (0..self.hosts.len()).filter(|host| self.hosts[*host].is_up()).collect();
        (!up.is_empty()).then(|| up[self.chaos.below(up.len() as u64) as usize])
    }

    /// A host whose node leads a shard.
    fn some_leader(&mut self) -> Option<usize> {
        let shard = self.chaos.below(u64::from(self.plan.shards) + 1) as usize;
        self.leader_of(shard)
    }

    /// Up to all nodes die at once, some of them for longer.
    fn crash_some(&mut self) {
        for host in 0..self.hosts.len() {
            if self.chaos.chance(500) {
                let longest = if self.chaos.chance(300) { 20_000 } else { 1000 };
                let pause = self.chaos.between(1, longest) * MILLISECOND;
                self.kill_for(host, pause);
            }
        }
    }

    /// All machines lose power at once, and start again one after the other.
    fn power_cut(&mut self) {
        for host in 0..self.hosts.len() {
            let pause = self.chaos.between(1, 3000) * MILLISECOND;
            self.kill_for(host, pause);
        }
    }

    fn pause_for_a_while(&mut self, host: usize) {
        let time = match self.chaos.below(10) {
            0 => self.chaos.between(5 * SECOND, 30 * SECOND),
            1..5 => self.chaos.between(SECOND, 5 * SECOND),
            _ => self.chaos.between(300 * MILLISECOND, SECOND),
        };
        self.pause(host, time);
    }

    /// Mostly a little slow, as busy machines are; now and then so that nobody waits for it.
    fn slow_down(&mut self, host: usize) {
        if let Some((by, time)) = self.plan.slowness {
            let host = self.leads_most();
            let until = self.at + time;
            self.note("slow", host as u64, by, time);
            self.hosts[host].pace = Slowness { until, by };
            self.after(LEAVES_WITHIN, Event::Pace { host, until });
            return;
        }
        let longest = [50, 300, 2_000][self.chaos.below(3) as usize];
        let by = self.chaos.between(5, longest) * MILLISECOND;
        let time = self.chaos.between(SECOND, 12 * SECOND);
        self.note("slow", host as u64, by, time);
        self.hosts[host].pace = Slowness { until: self.at + time, by };
    }

    fn leads_most(&self) -> usize {
        let leaders: Vec<usize> =
            (0..=self.plan.shards as usize).filter_map(|shard| self.leader_of(shard)).collect();
        let count = |host: &usize| leaders.iter().filter(|leader| *leader == host).count();
        (0..self.hosts.len()).max_by_key(count).expect("there are hosts")
    }

    /// A disk that is nearly full gets space again and loses it again, in quick succession.
    fn fill_disk(&mut self, host: usize) {
        let mut at = 0;
        for _ in 0..self.chaos.between(1, 6) {
            self.after(at, Event::Space { host, free: false });
            let longest = if self.chaos.chance(300) { 1500 } else { 20 };
            at += self.chaos.between(MILLISECOND, longest * MILLISECOND);
            self.after(at, Event::Space { host, free: true });
            at += self.chaos.between(MILLISECOND, 30 * MILLISECOND);
        }
    }

    /// Nothing breaks any more; what is broken is mended.
    pub(super) fn heal(&mut self) {
        self.note("heal", 0, 0, 0);
        for host in 0..self.hosts.len() {
            let state = &mut self.hosts[host];
            state.slow_until = 0;
            state.stalled_until = 0;
            state.rotten_until = 0;
            state.fail_sync = false;
            state.kill_at_write = false;
            state.flip_next = false;
            state.paused_until = 0;
            state.pace = Slowness::default();
            self.turn_by(host, self.at);
            self.after(6 * SECOND, Event::Space { host, free: true });
        }
        self.mend_links();
        self.gather_late_groups();
    }
}
