//! One look at one group: whom its next messages go to.

use std::collections::BTreeMap;

use swarmmq_protocol::{
    id::{Address, GroupName, Offset},
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
        state::State,
    },
};

/// Sealed bytes of one group after which the next one has its turn.
const TURN_BYTES: u64 = 64 << 10;

/// How a turn of a group ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// Nobody can be sent anything, or there is nothing new to be sent.
    Nothing,
    /// Every message was looked at: nothing is left to go out for the first time.
    All,
    /// Something is missing that others have to bring: credit, bytes from the disk, the horizon in the log.
    Waits,
    /// More can go out, when the other groups had their turn.
    TurnOver,
}

/// What is the same for all groups that are looked at.
pub(super) struct Round<'a> {
    pub(super) now: Instant,
    pub(super) state: &'a State,
    pub(super) cache: &'a Cache,
    pub(super) ahead: u64,
    pub(super) bugs: Bugs,
    pub(super) members: &'a BTreeMap<SubscriberId, Member>,
}

impl Round<'_> {
    /// One turn of a group.
    pub(super) fn turn(
        &self,
        key: &(Address, GroupName),
        run: &mut Run,
        credits: &mut Credits,
        out: &mut Vec<Delivered>,
        needs: &mut Needs,
    ) -> Looked {
        if Deliverer::next_subscriber(run, credits).is_none() {
            return Looked::Nothing;
        }
        // New messages have new offsets, and what comes back is ready: mostly there is nothing to look for.
        if run.ready.is_empty() && run.looked_to == Some(self.state.next_offset) {
            return Looked::Nothing;
        }
        let Some(queue) = self.state.queues.get(&key.0) else { return Looked::Nothing };
        let Some(group) = queue.groups.get(&key.1) else { return Looked::Nothing };
        let mut deliverer = Deliverer { round: self, queue, group, name: &key.1, sent_bytes: 0 };
        let looked = deliverer.run(run, credits, out, needs);
        run.looked_to = (looked == Looked::All).then_some(self.state.next_offset);
        looked
    }
}

/// One look at one group.
struct Deliverer<'a> {
    round: &'a Round<'a>,
    queue: &'a Queue,
    group: &'a Group,
    name: &'a GroupName,
    sent_bytes: u64,
}

impl Deliverer<'_> {
    fn run(
        &mut self,
        run: &mut Run,
        credits: &mut Credits,
        out: &mut Vec<Delivered>,
        needs: &mut Needs,
    ) -> Looked {
        loop {
            let Some(subscriber) = Self::next_subscriber(run, credits) else { return Looked::Waits };
            let Some(offset) = run.ready.first().copied() else { break };
            if !self.queue.messages.contains_key(&offset) || !self.group.wants(offset) {
                run.ready.remove(&offset);
                continue;
            }
            if self.is_over() {
                return Looked::TurnOver;
            }
            if !self.send(run, subscriber, offset, credits, out, needs) {
                return Looked::Waits;
            }
            run.ready.remove(&offset);
        }
        let mut is_over = false;
        let from = run.next.max(self.group.floor);
        for (offset, message) in self.queue.messages.range(from..) {
            let offset = *offset;
            if !self.group.wants(offset) {
                run.next = offset + 1;
                continue;
            }
            is_over = self.is_over();
            if is_over {
                break;
            }
            let Some(subscriber) = Self::next_subscriber(run, credits) else { break };
            if offset >= self.group.horizon && !self.round.bugs.has(Bug::SkipHorizon) {
                break;
            }
            if run.waiting_for_key >= WAITING_FOR_KEY_MAX {
                break;
            }
            if let (Order::Key, Some(key)) = (self.queue.order, message.key)
                && !self.round.bugs.has(Bug::IgnoreKeyLocks)
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
        let is_all = self.queue.messages.last_key_value().is_none_or(|(last, _)| *last < run.next);
        match (is_all, is_over) {
            (true, _) => Looked::All,
            (false, true) => Looked::TurnOver,
            (false, false) => Looked::Waits,
        }
    }

    fn is_over(&self) -> bool {
        self.sent_bytes >= TURN_BYTES
    }

    /// Logs the horizon ahead of time, so that deliveries rarely wait for it.
    fn ask_horizon(&self, run: &mut Run, needs: &mut Needs) {
        let asked = run.horizon_asked.max(self.group.horizon);
        let last = self.queue.messages.last_key_value().map_or(0, |(offset, _)| *offset + 1);
        if last > asked || (run.next + self.round.ahead / 2 > asked && run.next + self.round.ahead > asked) {
            let upto = run.next.max(self.group.horizon) + self.round.ahead;
            if upto > asked {
                run.horizon_asked = upto;
                let (address, group) = (self.queue.address.clone(), self.name.clone());
                needs.events.push(Event::Horizon { address, group, upto: Offset(upto) });
            }
        }
    }

    fn next_subscriber(run: &mut Run, credits: &Credits) -> Option<SubscriberId> {
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
        &mut self,
        run: &mut Run,
        subscriber: SubscriberId,
        offset: u64,
        credits: &mut Credits,
        out: &mut Vec<Delivered>,
        needs: &mut Needs,
    ) -> bool {
        let message = &self.queue.messages[&offset];
        let sealed = match self.round.cache.get(message.place, message.length) {
            Fetched::Missing => {
                needs.reads.push((message.place, message.length));
                return false;
            }
            Fetched::Written(sealed) => sealed,
            Fetched::Read(sealed) => {
                if crate::log::crc32c(&sealed) != message.crc && !self.round.bugs.has(Bug::SkipReadCheck) {
                    needs.rotten.push((self.queue.address.clone(), Offset(offset)));
                    return false;
                }
                sealed
            }
        };
        let lease = self.queue.settings.lease;
        let expires_at = self.round.now + lease;
        let attempt = self.group.attempt(offset);
        let Member { consumer, route, .. } = self.round.members[&subscriber];
        let before = run.leases.insert(
            offset,
            Lease {
                subscriber,
                route,
                consumer,
                attempt,
                since: self.round.now,
                expires_at,
                is_claimed: false,
                settling: None,
            },
        );
        assert!(before.is_none(), "a message has one lease per group");
        run.deadlines.insert((expires_at, offset));
        run.subscribers.rotate_left(1);
        credits.spend(subscriber, message.length);
        self.sent_bytes += u64::from(message.length);
        let reason = message.dead_reason();
        out.push(Delivered { subscriber, offset: Offset(offset), attempt, lease, reason, sealed });
        true
    }
}
