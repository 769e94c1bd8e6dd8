//! How a node's process ends and begins: crashes, drains, pauses, lost disks, and starts from what a disk holds.

use std::collections::BTreeSet;

use swarmmq_engine::{log::Verdict, node::Input, node::RestoreError};

use super::{Event, Phase, Swarm, host::Arrival};
use crate::{
    clock::{MILLISECOND, SECOND},
    disk::{Disk, Landing},
};

/// A drain that takes longer is ended by force.
const DRAIN_TIME_MAX: u64 = 10 * SECOND;

impl Swarm {
    /// Asks a node to stop; ends it by force if that takes too long.
    pub(super) fn drain(&mut self, host: usize) {
        if self.hosts[host].is_up() {
            self.arrive(host, Arrival::Input(Input::Drain));
            let boot = self.hosts[host].boot;
            self.after(DRAIN_TIME_MAX, Event::Kill { host, boot });
        }
    }

    /// The node said that nothing is left to do.
    pub(super) fn drained(&mut self, host: usize) {
        self.note("drained", host as u64, 0, 0);
        self.judge_replay(host, "after a drain");
        self.stop(host);
        let pause = self.chaos.between(5, 500) * MILLISECOND;
        self.after(pause, Event::Start { host });
    }

    /// The process dies at once, and is started again after a pause.
    pub(super) fn kill(&mut self, host: usize) {
        let pause = match self.chaos.below(10) {
            0 => self.chaos.between(1000, 6000),
            1..4 => self.chaos.between(100, 1500),
            _ => self.chaos.between(1, 100),
        };
        self.kill_for(host, pause * MILLISECOND);
    }

    /// The process dies at once, and is started again after `pause`.
    pub(super) fn kill_for(&mut self, host: usize, pause: u64) {
        if self.hosts[host].is_up() {
            self.die(host);
            self.after(pause, Event::Start { host });
        }
    }

    /// The process dies at once.
    pub(super) fn die(&mut self, host: usize) {
        let landing = if self.plan.torn_writes { Landing::Torn } else { Landing::Whole };
        let state = &mut self.hosts[host];
        let writing = state.disk.is_writing();
        state.disk.crash(landing, &mut state.rng);
        self.note("crash", host as u64, self.hosts[host].boot, u64::from(writing));
        self.stop(host);
    }

    pub(super) fn stop(&mut self, host: usize) {
        let state = &mut self.hosts[host];
        state.node = None;
        state.serving.clear();
        state.inbox.clear();
        state.paused_until = 0;
        state.busy_until = None;
        state.kill_at_write = false;
        state.fail_sync = false;
        let of_it = self.connections.iter().filter(|(_, connection)| connection.host == host);
        let open: Vec<u64> = of_it.map(|(number, _)| *number).collect();
        open.into_iter().for_each(|connection| self.node_leaves(connection));
        self.queue.cancel_turn(host);
        self.links_of_the_dead(host);
    }

    /// Nothing is processed for a while; what arrives waits.
    pub(super) fn pause(&mut self, host: usize, time: u64) {
        self.note("stopped", host as u64, time, 0);
        self.hosts[host].paused_until = self.at + time;
    }

    /// The machine loses its disk and gets an empty one, which is another life.
    pub(super) fn wipe(&mut self, host: usize) {
        let segment_bytes = self.plan.segment_bytes;
        if self.hosts[host].is_up() {
            self.die(host);
        }
        let state = &mut self.hosts[host];
        state.disk = Disk::new(segment_bytes);
        state.flip = None;
        state.flip_next = false;
        state.config.incarnation += 1000;
        state.config.founder = false;
        self.note("wiped", host as u64, self.hosts[host].config.incarnation, 0);
        let pause = self.chaos.between(10, 4000) * MILLISECOND;
        self.after(pause, Event::Start { host });
    }

    /// Starts a node from what its disk holds.
    pub(super) fn start(&mut self, host: usize) {
        let many = self.hosts.len() > 1;
        let state = &mut self.hosts[host];
        if state.is_up() || state.gone {
            return;
        }
        if std::mem::take(&mut state.flip_next) {
            state.flip = state.disk.flip(&mut state.rng);
        }
        let now = state.clock.now(self.at);
        let flip = state.flip.take();
        state.boot += 1;
        state.config.boot = state.boot;
        // Who was never told of others begins with the seed.
        let seed = usize::from(host == 0);
        state.wanted = if many { BTreeSet::from([seed]) } else { BTreeSet::new() };
        match state.disk.restore(&state.config, now) {
            Ok((node, verdict)) => {
                self.torn += u64::from(matches!(verdict, Verdict::Torn { .. }));
                state.node = Some(Box::new(node));
                let (boot, segments, free_bytes) = (state.boot, state.disk.segments(), state.free_bytes);
                self.note("start", host as u64, boot, segments as u64);
                self.history.boots += 1;
                self.forget_connections();
                self.arrive(host, Arrival::Input(Input::DiskSpace { free_bytes }));
                self.turn_by(host, self.at);
                self.connect_all(host);
            }
            Err(RestoreError::Corrupt { .. }) if flip.is_some() => {
                self.note("log refused", host as u64, 0, 0);
                self.refused_logs += 1;
                // Somebody brings the copy back that was made before.
                flip.into_iter().for_each(|flip| self.hosts[host].disk.turn(flip));
                self.after(100 * MILLISECOND, Event::Start { host });
            }
            Err(error) => {
                self.history.violation("recovery", format!("node {} does not start: {error}", host + 1));
                self.phase = Phase::Over;
            }
        }
    }
}
