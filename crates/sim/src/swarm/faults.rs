//! What goes wrong, one kind after the other, and how everything is mended before the drain.

use super::{Event, Swarm};
use crate::{
    client::Role,
    clock::{MILLISECOND, SECOND},
    plan::Fault,
};

impl Swarm {
    /// Lets one fault happen, if it can happen now.
    pub(super) fn fault(&mut self, fault: Fault) {
        self.note(fault.text(), 0, 0, 0);
        let happened = match fault {
            Fault::Crash => {
                if self.chaos.chance(500) {
                    self.host.kill_at_write = true;
                } else {
                    self.kill();
                }
                true
            }
            Fault::GracefulRestart => {
                self.drain();
                self.host.is_up()
            }
            Fault::Cut | Fault::SlowLink => {
                let live = self.live_connections();
                let which = (!live.is_empty()).then(|| live[self.chaos.below(live.len() as u64) as usize]);
                match which {
                    Some(connection) if fault == Fault::Cut => self.cut(connection),
                    Some(connection) => self.slow(connection),
                    None => {}
                }
                which.is_some()
            }
            Fault::CutAll => {
                self.live_connections().into_iter().for_each(|connection| self.cut(connection));
                true
            }
            Fault::SlowDisk => {
                self.host.slow_until = self.at + self.chaos.between(SECOND / 5, 3 * SECOND);
                if self.chaos.chance(300) {
                    self.host.kill_at_write = true;
                }
                true
            }
            Fault::FullDisk => {
                self.fill_disk();
                true
            }
            Fault::SyncError => {
                self.host.fail_sync = true;
                true
            }
            Fault::ClockJump => {
                let by = self.chaos.between(1000, 3_600_000) as i64;
                self.host.clock.jump(if self.chaos.chance(500) { by } else { -by });
                true
            }
            Fault::BitFlip => {
                self.host.flip_next = true;
                self.kill();
                true
            }
            Fault::ReadFlip => {
                self.host.rotten_until = self.at + 2 * SECOND;
                true
            }
            Fault::ConsumerCrash | Fault::ProducerCrash => {
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
            Fault::NewGroup => self.new_group(),
        };
        *self.faults.entry(fault).or_default() += u64::from(happened);
    }

    /// A disk that is nearly full gets space again and loses it again, in quick succession.
    fn fill_disk(&mut self) {
        let mut at = 0;
        for _ in 0..self.chaos.between(1, 6) {
            self.after(at, Event::Space { free: false });
            let longest = if self.chaos.chance(300) { 1500 } else { 20 };
            at += self.chaos.between(MILLISECOND, longest * MILLISECOND);
            self.after(at, Event::Space { free: true });
            at += self.chaos.between(MILLISECOND, 30 * MILLISECOND);
        }
    }

    /// Nothing breaks any more; what is broken is mended.
    pub(super) fn heal(&mut self) {
        self.note("heal", 0, 0, 0);
        self.host.slow_until = 0;
        self.host.rotten_until = 0;
        self.host.fail_sync = false;
        self.host.kill_at_write = false;
        self.host.flip_next = false;
        self.after(6 * SECOND, Event::Space { free: true });
        self.gather_late_groups();
    }
}
