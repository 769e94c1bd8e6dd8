//! What a principal uses of this node, and how whoever uses too much is slowed down.
//!
//! A rate is never kept by a queue: what came is taken, and the connections of its principal are not read again until
//! that much was allowed. TCP then slows whoever sends, and nobody else. While it waits, a client is told that the node
//! lives. Counts and bytes in flight are refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmmq_protocol::{
    access::{PrincipalName, Quota, Quotas},
    frame::Pong,
    id::{ProducerId, ShardId},
    time::Instant,
};

use super::{ConnectionId, Node, Now};

/// What may come at once after a pause: as much as in this time.
const BURST: Duration = Duration::from_secs(1);
/// How often a client that is not read is told that the node lives. Clients leave a node that is silent for longer.
const ALIVE_PAUSE: Duration = Duration::from_millis(200);

/// One rate: until when what came is paid for.
///
/// Source: "virtual scheduling" in ITU-T I.371, the generic cell rate algorithm; here a cell is taken first and paid later.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    paid_until: Instant,
}

impl Rate {
    /// `amount` came, of `rate` a second; 0: there is no rate to keep.
    fn charge(&mut self, now: Instant, amount: u64, rate: u64) {
        if rate == 0 {
            self.paid_until = Instant(0);
            return;
        }
        let cost = u128::from(amount) * 1_000_000_000 / u128::from(rate);
        let from = self.paid_until.max(now - BURST);
        self.paid_until = Instant(from.0.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX)));
    }
}

/// What one principal uses of this node.
#[derive(Debug, Default)]
struct Guest {
    connections: BTreeSet<ConnectionId>,
    in_flight_bytes: u64,
    /// Producers with open sessions, and over how many connections.
    producers: BTreeMap<ProducerId, u32>,
    messages: Rate,
    bytes: Rate,
    /// When its clients are to be told that the node lives.
    next_word: Instant,
}

impl Guest {
    fn paused_until(&self) -> Instant {
        self.messages.paid_until.max(self.bytes.paid_until)
    }
}

/// All principals with connections here, root aside: it has no quotas. As many as there are principals.
#[derive(Debug, Default)]
pub(super) struct Guests {
    guests: BTreeMap<PrincipalName, Guest>,
    /// How often clients had to wait.
    pub(super) pauses: u64,
}

impl Guests {
    /// Connections that a principal has here.
    pub(super) fn connections(&self, name: &PrincipalName) -> u64 {
        self.guests.get(name).map_or(0, |guest| guest.connections.len() as u64)
    }
}

/// Which producers of one connection have open sessions, and in which shards.
pub(super) type Sessions = BTreeMap<ProducerId, BTreeSet<ShardId>>;

impl Node {
    fn quotas_of(&self, name: &PrincipalName) -> Quotas {
        let principals = &self.cluster_shard().state().catalog.access.principals;
        principals.get(name).map(|principal| principal.quotas).unwrap_or_default()
    }

    /// A principal has one connection more.
    pub(super) fn guest_came(&mut self, connection: ConnectionId, name: &PrincipalName) {
        self.guests.guests.entry(name.clone()).or_default().connections.insert(connection);
    }

    /// A connection is gone, and what it had in flight with it.
    pub(super) fn guest_left(
        &mut self,
        connection: ConnectionId,
        name: &PrincipalName,
        bytes: u64,
        sessions: &Sessions,
    ) {
        let Some(guest) = self.guests.guests.get_mut(name) else { return };
        guest.connections.remove(&connection);
        guest.in_flight_bytes -= bytes;
        for producer in sessions.keys() {
            release(&mut guest.producers, *producer);
        }
        // What it owes stays with it, or connecting again would pay everything.
        let known = &self.cluster_shard().state().catalog.access.principals;
        if guest_is_over(&self.guests.guests[name]) && !known.contains_key(name) {
            self.guests.guests.remove(name);
        }
    }

    /// A frame of a client came: `messages` is what it counts for. Returns nothing: what came is taken.
    pub(super) fn charge(&mut self, now: Now, connection: ConnectionId, messages: u64, bytes: u64) {
        let Some(name) = self.name_of(connection).cloned() else { return };
        let quotas = self.quotas_of(&name);
        let Some(guest) = self.guests.guests.get_mut(&name) else { return };
        let was_paused = guest.paused_until() > now.monotonic;
        guest.messages.charge(now.monotonic, messages, quotas.of(Quota::Messages));
        guest.bytes.charge(now.monotonic, bytes, quotas.of(Quota::Bytes));
        if !was_paused && guest.paused_until() > now.monotonic {
            self.guests.pauses += 1;
            guest.next_word = now.monotonic + ALIVE_PAUSE;
        }
    }

    /// Until when nothing more is to be read from a connection. `None`: it may be read.
    pub fn paused_until(&self, now: Instant, connection: ConnectionId) -> Option<Instant> {
        let guest = self.guests.guests.get(self.name_of(connection)?)?;
        Some(guest.paused_until()).filter(|until| *until > now)
    }

    /// Whether a principal may have `bytes` more in flight here.
    pub(super) fn has_room_in_flight(&self, connection: ConnectionId, bytes: u64) -> bool {
        let Some(name) = self.name_of(connection) else { return true };
        let max = self.quotas_of(name).of(Quota::InFlight);
        let used = self.guests.guests.get(name).map_or(0, |guest| guest.in_flight_bytes);
        max == 0 || used + bytes <= max
    }

    /// `bytes` more are in flight, or that many less.
    pub(super) fn count_in_flight(&mut self, connection: ConnectionId, more: u64, less: u64) {
        let Some(name) = self.name_of(connection).cloned() else { return };
        if let Some(guest) = self.guests.guests.get_mut(&name) {
            guest.in_flight_bytes = guest.in_flight_bytes + more - less;
        }
    }

    /// Whether a connection may open a session of `producer`; if so it is counted.
    pub(super) fn opens(&mut self, connection: ConnectionId, producer: ProducerId, shard: ShardId) -> bool {
        let Some(name) = self.name_of(connection).cloned() else { return true };
        let max = self.quotas_of(&name).of(Quota::Producers);
        let Some(guest) = self.guests.guests.get_mut(&name) else { return true };
        let Some(state) = self.connections.get_mut(&connection) else { return true };
        // Without a quota nothing is counted, and nothing grows.
        if max == 0 {
            return true;
        }
        if !guest.producers.contains_key(&producer) && guest.producers.len() as u64 >= max {
            return false;
        }
        if !state.sessions.contains_key(&producer) {
            *guest.producers.entry(producer).or_default() += 1;
        }
        state.sessions.entry(producer).or_default().insert(shard);
        true
    }

    /// A session was closed.
    pub(super) fn closes(&mut self, connection: ConnectionId, producer: ProducerId, shard: ShardId) {
        let Some(name) = self.name_of(connection).cloned() else { return };
        let Some(state) = self.connections.get_mut(&connection) else { return };
        let Some(shards) = state.sessions.get_mut(&producer) else { return };
        shards.remove(&shard);
        if shards.is_empty() {
            state.sessions.remove(&producer);
            if let Some(guest) = self.guests.guests.get_mut(&name) {
                release(&mut guest.producers, producer);
            }
        }
    }

    /// Tells clients that have to wait that the node lives: their questions whether it does are not read.
    pub(super) fn comfort(&mut self, now: Now) {
        let mut waiting = Vec::new();
        for guest in self.guests.guests.values_mut().filter(|guest| guest.next_word <= now.monotonic) {
            if guest.paused_until() > now.monotonic {
                guest.next_word = now.monotonic + ALIVE_PAUSE;
                waiting.extend(guest.connections.iter().copied());
            } else {
                guest.next_word = Instant(u64::MAX);
            }
        }
        waiting.into_iter().for_each(|connection| self.send(connection, 0, &Pong));
    }

    /// When [`Node::comfort`] has something to do.
    pub(super) fn comfort_wake(&self) -> Option<Instant> {
        let guests = self.guests.guests.values();
        let waiting = guests.filter(|guest| guest.next_word < guest.paused_until());
        waiting.map(|guest| guest.next_word).min()
    }
}

fn guest_is_over(guest: &Guest) -> bool {
    guest.connections.is_empty()
}

fn release(producers: &mut BTreeMap<ProducerId, u32>, producer: ProducerId) {
    if let Some(count) = producers.get_mut(&producer) {
        *count -= 1;
        if *count == 0 {
            producers.remove(&producer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(10_000 + ms)
    }

    #[test]
    fn a_rate_is_kept_over_time_with_a_second_of_burst() {
        let mut rate = Rate::default();
        rate.charge(at(0), 100, 100);
        assert!(rate.paid_until <= at(0), "a second's worth may come at once");
        rate.charge(at(0), 50, 100);
        assert_eq!(rate.paid_until, at(500), "the rest is waited for");
        rate.charge(at(500), 1000, 100);
        assert_eq!(rate.paid_until, at(10_500), "however much came");
        rate.charge(at(60_000), 100, 100);
        assert!(rate.paid_until <= at(60_000), "what was not used for long is no more than a second's worth");
    }

    #[test]
    fn whoever_waits_as_told_gets_exactly_the_rate() {
        let (mut rate, mut now, mut taken) = (Rate::default(), at(0), 0);
        while now < at(60_000) {
            rate.charge(now, 7, 100);
            taken += 7;
            now = now.max(rate.paid_until);
        }
        assert!((6_000..=6_110).contains(&taken), "{taken}");
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let mut rate = Rate::default();
        rate.charge(at(0), u64::MAX, 1);
        assert!(rate.paid_until > at(1_000_000));
        rate.charge(at(1), u64::MAX, 0);
        assert!(rate.paid_until < at(0), "the quota was taken back");
    }
}
