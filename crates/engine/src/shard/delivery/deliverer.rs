//! One look at one group: whom its next messages go to.

use std::collections::BTreeMap;

use swarmmq_protocol::{
    id::{GroupName, Offset},
    time::Instant,
};

use super::{Delivered, Lease, Member, Needs, Run, SubscriberId, WAITING_FOR_KEY_MAX};
use crate::{
    node::bug::{Bug, Bugs},
    shard::{
        cache::{Cache, Fetched},
        credit::Credits,
        event::{Event, Order},
        queue::{Group, Queue},
    },
};

/// What it looks at.
pub(super) struct Deliverer<'a> {
    pub(super) now: Instant,
    pub(super) queue: &'a Queue,
    pub(super) group: &'a Group,
    pub(super) name: &'a GroupName,
    pub(super) cache: &'a Cache,
    pub(super) ahead: u64,
    pub(super) bugs: Bugs,
    pub(super) members: &'a BTreeMap<SubscriberId, Member>,
}

impl Deliverer<'_> {
    /// Returns whether every message was looked at: nothing is left to go out for the first time.
    pub(super) fn run(
        &mut self,
        run: &mut Run,
        credits: &mut Credits,
        out: &mut Vec<Delivered>,
        needs: &mut Needs,
    ) -> bool {
        loop {
            let Some(subscriber) = Self::next_subscriber(run, credits) else { return false };
            let Some(offset) = run.ready.first().copied() else { break };
            if !self.queue.messages.contains_key(&offset) || !self.group.wants(offset) {
                run.ready.remove(&offset);
                continue;
            }
            if !self.send(run, subscriber, offset, credits, out, needs) {
                return false;
            }
            run.ready.remove(&offset);
        }
        let from = run.next.max(self.group.floor);
        for (offset, message) in self.queue.messages.range(from..) {
            let offset = *offset;
            if !self.group.wants(offset) {
                run.next = offset + 1;
                continue;
            }
            let Some(subscriber) = Self::next_subscriber(run, credits) else { break };
            if offset >= self.group.horizon && !self.bugs.has(Bug::SkipHorizon) {
                break;
            }
            if run.waiting_for_key >= WAITING_FOR_KEY_MAX {
                break;
            }
            if let (Order::Key, Some(key)) = (self.queue.order, message.key)
                && !self.bugs.has(Bug::IgnoreKeyLocks)
                && !run.lock_key(key, offset)
            {
                run.next = offset + 1;
                continue;
            }
            if !self.send(run, subscriber, offset, credits, out, needs) {
                break;
            }
            run.next = offset + 1;
        }
        self.ask_horizon(run, needs);
        self.queue.messages.last_key_value().is_none_or(|(last, _)| *last < run.next)
    }

    /// Logs the horizon ahead of time, so that deliveries rarely wait for it.
    fn ask_horizon(&self, run: &mut Run, needs: &mut Needs) {
        let asked = run.horizon_asked.max(self.group.horizon);
        let last = self.queue.messages.last_key_value().map_or(0, |(offset, _)| *offset + 1);
        if last > asked || (run.next + self.ahead / 2 > asked && run.next + self.ahead > asked) {
            let upto = run.next.max(self.group.horizon) + self.ahead;
            if upto > asked {
                run.horizon_asked = upto;
                let (address, group) = (self.queue.address.clone(), self.name.clone());
                needs.events.push(Event::Horizon { address, group, upto: Offset(upto) });
            }
        }
    }

    pub(super) fn next_subscriber(run: &mut Run, credits: &Credits) -> Option<SubscriberId> {
        for _ in 0..run.subscribers.len() {
            let first = *run.subscribers.front()?;
            if credits.allows(first) {
                return Some(first);
            }
            run.subscribers.rotate_left(1);
        }
        None
    }

    /// False: the bytes are not at hand; deliveries of this group wait for them.
    fn send(
        &self,
        run: &mut Run,
        subscriber: SubscriberId,
        offset: u64,
        credits: &mut Credits,
        out: &mut Vec<Delivered>,
        needs: &mut Needs,
    ) -> bool {
        let message = &self.queue.messages[&offset];
        let sealed = match self.cache.get(message.place, message.length) {
            Fetched::Missing => {
                needs.reads.push((message.place, message.length));
                return false;
            }
            Fetched::Written(sealed) => sealed,
            Fetched::Read(sealed) => {
                if crate::log::crc32c(&sealed) != message.crc && !self.bugs.has(Bug::SkipReadCheck) {
                    needs.rotten.push((self.queue.address.clone(), Offset(offset)));
                    return false;
                }
                sealed
            }
        };
        let lease = self.queue.settings.lease;
        let expires_at = self.now + lease;
        let attempt = self.group.attempt(offset);
        let Member { consumer, route, .. } = self.members[&subscriber];
        let before = run.leases.insert(
            offset,
            Lease {
                subscriber,
                route,
                consumer,
                attempt,
                since: self.now,
                expires_at,
                is_claimed: false,
                settling: None,
            },
        );
        assert!(before.is_none(), "a message has one lease per group");
        run.deadlines.insert((expires_at, offset));
        run.subscribers.rotate_left(1);
        credits.spend(subscriber, message.length);
        let reason = message.dead_reason();
        out.push(Delivered { subscriber, offset: Offset(offset), attempt, lease, reason, sealed });
        true
    }
}
