//! Links between nodes: one for each pair, packets in order within a class, and all the ways in which they break.
//!
//! A link that is reset tells both ends, each in its own time. One that is a black hole tells nobody: what is sent waits, as
//! TCP repeats it, until the hole closes or somebody loses patience. Absent here: which links break when (`faults`).

use bytes::Bytes;
use swarmmq_engine::node::{Input, Neighbour};
use swarmmq_protocol::{
    id::NodeId,
    packet::{Class, Packet},
};

use super::{
    Event, Swarm,
    host::{Arrival, node_id},
    network::Slowness,
};
use crate::{
    clock::{MILLISECOND, SECOND},
    judge::paths,
};

/// Classes of packets.
const CLASSES: usize = Class::ALL.len();
/// Pauses between attempts to connect.
const ATTEMPT_PAUSE: (u64, u64) = (20 * MILLISECOND, 400 * MILLISECOND);
/// How long an end waits for bytes that were sent into a black hole.
const PATIENCE: (u64, u64) = (8 * SECOND, 25 * SECOND);
/// Nanoseconds that one byte takes on the wire: 100 MB/s.
const BYTE_TIME: u64 = 10;

/// Two hosts, the lower one first.
pub(super) type Pair = (usize, usize);

/// The pair of `a` and `b`.
pub(super) fn pair(a: usize, b: usize) -> Pair {
    (a.min(b), a.max(b))
}

/// What is between two hosts.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Number of the latest connection; bytes of earlier ones do not arrive.
    session: u64,
    /// Whether the lower and the higher end think that it is up.
    up: [bool; 2],
    /// When each end hears that the connection is there.
    up_at: [u64; 2],
    /// The connection is broken; the ends may not know yet.
    broken: bool,
    /// No connection can be made until then, and whoever tries learns that at once.
    pub(super) cut_until: u64,
    /// Somebody is trying to connect.
    trying: bool,
    /// To the higher end, and to the lower one.
    ways: [Way; 2],
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// When the latest packet of each class arrives.
    last_at: [u64; CLASSES],
    /// Nothing arrives before that.
    hole_until: u64,
    slow: Slowness,
    /// What would arrive from then on is lost with its connection.
    lost_from: u64,
}

fn end(pair: Pair, host: usize) -> usize {
    usize::from(host == pair.1)
}

impl Link {
    /// What changes when something happens to it.
    pub(super) fn marks(&self) -> (u64, [bool; 2], u64, [u64; 2], [u64; 2]) {
        let Self { session, up, cut_until, ways: [there, back], .. } = self;
        let holes = [there.hole_until, back.hole_until];
        (*session, *up, *cut_until, holes, [there.slow.until, back.slow.until])
    }

    /// Until when something is in the way of what the two ends send each other: a fault, or packets that arrive more than `usual`
    /// later.
    pub(super) fn disturbed_until(&self, usual: u64) -> u64 {
        let way = |way: &Way| {
            let last_at = way.last_at.iter().max().copied().unwrap_or(0);
            way.hole_until.max(way.slow.until + way.slow.by).max(last_at.saturating_sub(usual))
        };
        self.ways.iter().map(way).max().unwrap_or(0).max(self.cut_until)
    }

    fn is_hole(&self, at: u64) -> bool {
        self.ways.iter().any(|way| way.hole_until > at)
    }
}

impl Swarm {
    /// Whether one of the two wants a link with the other.
    fn is_wanted(&self, (a, b): Pair) -> bool {
        let wants = |host: usize, other: usize| self.hosts[host].wanted.contains(&other);
        self.hosts[a].is_up() && self.hosts[b].is_up() && (wants(a, b) || wants(b, a))
    }

    /// A node says with whom it wants links.
    pub(super) fn want(&mut self, host: usize, peers: &[Neighbour]) {
        let wanted = peers.iter().map(|peer| usize::from(peer.node.0) - 1).filter(|other| *other != host);
        self.hosts[host].wanted = wanted.collect();
        self.connect_all(host);
        let unwanted: Vec<usize> = (0..self.hosts.len())
            .filter(|other| {
                *other != host && self.is_linked(host, *other) && !self.is_wanted(pair(host, *other))
            })
            .collect();
        unwanted.into_iter().for_each(|other| self.break_link(pair(host, other)));
    }

    fn is_linked(&self, host: usize, other: usize) -> bool {
        let pair = pair(host, other);
        self.links.get(&pair).is_some_and(|link| link.up[end(pair, host)])
    }

    /// Connects `host` with everybody who is wanted and not there.
    pub(super) fn connect_all(&mut self, host: usize) {
        for other in 0..self.hosts.len() {
            if other != host {
                self.try_soon(pair(host, other));
            }
        }
    }

    fn try_soon(&mut self, pair: Pair) {
        if !self.is_wanted(pair) {
            return;
        }
        let pause = self.scheduling.between(ATTEMPT_PAUSE.0, ATTEMPT_PAUSE.1);
        let link = self.links.entry(pair).or_default();
        let there = link.session > 0 && !link.broken;
        if !there && !link.trying {
            link.trying = true;
            self.after(pause, Event::Meet { pair });
        }
    }

    /// Two hosts try to connect.
    pub(super) fn meet(&mut self, (a, b): Pair) {
        let pair = (a, b);
        self.links.entry(pair).or_default().trying = false;
        if !self.is_wanted(pair) {
            return;
        }
        let link = &self.links[&pair];
        let stopped = self.hosts[a].paused_until.max(self.hosts[b].paused_until) > self.at;
        if link.cut_until > self.at || link.is_hole(self.at) || stopped {
            self.try_soon(pair);
            return;
        }
        let (Some(node_a), Some(node_b)) = (&self.hosts[a].node, &self.hosts[b].node) else { return };
        let (hello_a, hello_b) = (node_a.hello(), node_b.hello());
        let (now_a, now_b) = (self.hosts[a].clock.now(self.at), self.hosts[b].clock.now(self.at));
        if node_a.admits(now_a, &hello_b).is_err() || node_b.admits(now_b, &hello_a).is_err() {
            self.note("not admitted", a as u64, b as u64, 0);
            self.try_soon(pair);
            return;
        }
        let delays = [self.latency(), self.latency()];
        self.next_session += 1;
        let session = self.next_session;
        let at = self.at;
        let link = self.links.get_mut(&pair).expect("made above");
        link.session = session;
        link.broken = false;
        link.up_at = delays.map(|delay| at + delay);
        for (way, to) in [(0, 1), (1, 0)] {
            let way = &mut link.ways[way];
            way.last_at = [link.up_at[to]; CLASSES];
            way.lost_from = u64::MAX;
        }
        self.note("meet", a as u64, b as u64, session);
        for (host, other, hello) in [(a, b, hello_b), (b, a, hello_a)] {
            let at = self.links[&pair].up_at[end(pair, host)];
            let boot = self.hosts[host].boot;
            self.push(at, Event::LinkUp { host, boot, other, session, hello: Box::new(hello) });
        }
    }

    /// One end hears that a connection is there. If it thought that an earlier one was still up, that one is gone.
    pub(super) fn link_up(
        &mut self,
        (host, boot): (usize, u64),
        other: usize,
        session: u64,
        hello: swarmmq_protocol::session::peer::PeerHello,
    ) {
        let pair = pair(host, other);
        let link = self.links.get_mut(&pair).expect("it was made when they met");
        if self.hosts[host].boot != boot
            || !self.hosts[host].is_up()
            || link.session != session
            || link.broken
        {
            return;
        }
        if std::mem::replace(&mut link.up[end(pair, host)], true) {
            let node = node_id(other);
            self.arrive(host, Arrival::Input(Input::PeerDown { node, gone: false }));
        }
        self.note("link up", host as u64, other as u64, session);
        self.arrive(host, Arrival::Input(Input::PeerUp { hello }));
    }

    /// A packet goes to its next hop. `since` is when its origin sent it.
    pub(super) fn send_packet(&mut self, host: usize, to: NodeId, packet: Packet, since: u64) {
        let other = usize::from(to.0).wrapping_sub(1);
        self.trace.bytes(self.at, "packet", (host as u64) << 8 | u64::from(to.0), &packet.body);
        if let Some(what) = paths::packet(self.hosts.len(), node_id(host), to, &packet) {
            self.history.violation("paths", what);
        }
        let latency = self.latency();
        let back = self.scheduling.below(SECOND);
        let pair = pair(host, other);
        let me = end(pair, host);
        let Some(link) = self.links.get_mut(&pair) else { return };
        if !link.up[me] || link.broken {
            return;
        }
        let session = link.session;
        let way = &mut link.ways[me];
        let mut at = self.at + latency + way.slow.at(self.at) + packet.body.len() as u64 * BYTE_TIME;
        if way.hole_until > self.at {
            at = at.max(way.hole_until + back);
        }
        let last = &mut way.last_at[usize::from(packet.class.to_u8())];
        *last = at.max(*last);
        let at = *last;
        self.push(at, Event::Packet { host: other, from: host, session, since, packet });
    }

    /// A packet arrives, if its connection still carries anything.
    pub(super) fn packet_arrives(
        &mut self,
        host: usize,
        from: usize,
        session: u64,
        since: u64,
        packet: Packet,
    ) {
        let pair = pair(host, from);
        let Some(link) = self.links.get_mut(&pair) else { return };
        if link.session != session || !link.up[end(pair, host)] {
            return;
        }
        if self.at >= link.ways[end(pair, from)].lost_from {
            return;
        }
        let from = node_id(from);
        self.arrive(host, Arrival::Packet { since, input: Input::Packet { from, packet } });
    }

    /// A datagram goes its way, at once or never, and not always once. Cuts and holes swallow it.
    pub(super) fn send_datagram(&mut self, host: usize, to: NodeId, bytes: Bytes) {
        let other = usize::from(to.0).wrapping_sub(1);
        if other >= self.hosts.len() || self.scheduling.chance(self.plan.datagram_loss_permille) {
            return;
        }
        let copies = if self.scheduling.chance(5) { 2 } else { 1 };
        for _ in 0..copies {
            let mut at = self.at + self.latency();
            let pair = pair(host, other);
            if let Some(link) = self.links.get(&pair) {
                let way = &link.ways[end(pair, host)];
                if link.cut_until > self.at || way.hole_until > self.at {
                    return;
                }
                at += way.slow.at(self.at);
            }
            self.push(at, Event::Datagram { host: other, bytes: bytes.clone() });
        }
    }

    /// The connection between two hosts breaks: packets under way may be lost, and each end hears of it in its own time.
    pub(super) fn break_link(&mut self, pair: Pair) {
        let delays =
            [0, 1].map(|_| if self.chaos.chance(800) { self.chaos.below(2) } else { self.chaos.below(3000) });
        self.break_after(pair, delays.map(|delay| delay * MILLISECOND));
    }

    fn break_after(&mut self, pair: Pair, delays: [u64; 2]) {
        let partly = if self.chaos.chance(500) { self.chaos.below(MILLISECOND) } else { 0 };
        let Some(link) = self.links.get_mut(&pair) else { return };
        if link.session == 0 || link.broken {
            return;
        }
        link.broken = true;
        let session = link.session;
        for way in &mut link.ways {
            way.lost_from = self.at + partly;
        }
        for (host, other, delay) in [(pair.0, pair.1, delays[0]), (pair.1, pair.0, delays[1])] {
            let boot = self.hosts[host].boot;
            self.after(delay, Event::LinkDown { host, boot, other, session });
        }
    }

    /// One end hears that a connection is gone, and asks whether the other process is gone too.
    pub(super) fn link_down(&mut self, (host, boot): (usize, u64), other: usize, session: u64) {
        let pair = pair(host, other);
        let link = self.links.get_mut(&pair).expect("it was made when they met");
        let current = link.session == session && self.hosts[host].boot == boot && self.hosts[host].is_up();
        if current && std::mem::take(&mut link.up[end(pair, host)]) {
            let reachable = link.cut_until <= self.at && !link.is_hole(self.at);
            let gone = reachable && !self.hosts[other].is_up();
            self.note("link down", host as u64, other as u64, u64::from(gone));
            let node = node_id(other);
            self.arrive(host, Arrival::Input(Input::PeerDown { node, gone }));
        }
        self.try_soon(pair);
    }

    /// A process has ended: its connections are reset.
    pub(super) fn links_of_the_dead(&mut self, host: usize) {
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            let pair = pair(host, other);
            let delay = self.chaos.between(MILLISECOND / 10, 5 * MILLISECOND);
            self.break_after(pair, [delay; 2]);
            if let Some(link) = self.links.get_mut(&pair) {
                link.up[end(pair, host)] = false;
            }
        }
    }

    /// Two hosts cannot connect for a while; what they had is reset.
    pub(super) fn cut_link(&mut self, pair: Pair, time: u64) {
        let until = self.at + time;
        let link = self.links.entry(pair).or_default();
        link.cut_until = link.cut_until.max(until);
        self.note("link cut", pair.0 as u64, pair.1 as u64, time);
        self.break_link(pair);
    }

    /// What `from` sends to `to` does not arrive for a while, and nobody is told. Whoever waits too long gives up.
    pub(super) fn open_hole(&mut self, from: usize, to: usize, time: u64) {
        let pair = pair(from, to);
        let until = self.at + time;
        let link = self.links.entry(pair).or_default();
        let way = &mut link.ways[end(pair, from)];
        way.hole_until = way.hole_until.max(until);
        let session = link.session;
        self.note("hole", from as u64, to as u64, time);
        let patience = self.chaos.between(PATIENCE.0, PATIENCE.1);
        self.after(patience, Event::GiveUp { pair, session });
    }

    /// An end gives a connection up that has carried nothing for long.
    pub(super) fn give_up(&mut self, pair: Pair, session: u64) {
        let link = &self.links[&pair];
        if link.session == session && link.is_hole(self.at) {
            let delays = [0, 1].map(|_| self.chaos.below(4 * SECOND));
            self.break_after(pair, delays);
        }
    }

    /// One direction takes longer for a while.
    pub(super) fn slow_way(&mut self, from: usize, to: usize, slowness: Slowness) {
        let pair = pair(from, to);
        self.links.entry(pair).or_default().ways[end(pair, from)].slow = slowness;
    }

    /// Nothing is cut any more; what was sent into a hole is lost with its connection.
    pub(super) fn mend_links(&mut self) {
        let pairs: Vec<Pair> = self.links.keys().copied().collect();
        for pair in pairs {
            let hole = self.links[&pair].is_hole(self.at);
            let link = self.links.get_mut(&pair).expect("listed above");
            link.cut_until = 0;
            for way in &mut link.ways {
                way.hole_until = 0;
                way.slow = Slowness::default();
            }
            if hole {
                self.break_link(pair);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use swarmmq_engine::node::bug::Bugs;

    use super::*;
    use crate::plan::Plan;

    /// Two hosts that run and are linked; nothing else happens.
    fn linked() -> Swarm {
        let mut swarm = Swarm::new(Plan::new(11, Bugs::NONE).with_hosts(2), false);
        swarm.queue.clear();
        swarm.start(0);
        swarm.start(1);
        until(&mut swarm, |swarm| swarm.is_linked(0, 1) && swarm.is_linked(1, 0));
        swarm.hosts[1].inbox.clear();
        swarm
    }

    /// Lets what concerns links happen until `done`, and nothing else.
    fn until(swarm: &mut Swarm, done: impl Fn(&Swarm) -> bool) {
        while !done(swarm) {
            let (at, event) = swarm.queue.pop().expect("something is still to happen");
            swarm.at = at;
            if !matches!(event, Event::Turn { .. } | Event::Synced { .. } | Event::Start { .. }) {
                swarm.happen(event);
            }
        }
    }

    fn packet(class: Class, number: u8) -> Packet {
        Packet::direct(class, node_id(0), node_id(1), Bytes::copy_from_slice(&[number]))
    }

    /// Class and number of what arrived at host 1, in order.
    fn arrived(swarm: &Swarm) -> Vec<(Class, u8)> {
        let packets = swarm.hosts[1].inbox.iter().filter_map(|arrival| match arrival {
            Arrival::Packet { input: Input::Packet { packet, .. }, .. } => {
                Some((packet.class, packet.body[0]))
            }
            _ => None,
        });
        packets.collect()
    }

    fn downs(swarm: &Swarm, host: usize) -> Vec<bool> {
        let inputs = swarm.hosts[host].inbox.iter().filter_map(|arrival| match arrival {
            Arrival::Input(Input::PeerDown { gone, .. }) => Some(*gone),
            _ => None,
        });
        inputs.collect()
    }

    #[test]
    fn classes_overtake_each_other_and_nothing_overtakes_its_own_class() {
        let mut swarm = linked();
        for number in 0..100 {
            let class = Class::ALL[usize::from(number % 2) * 3];
            let at = swarm.at;
            swarm.send_packet(0, node_id(1), packet(class, number), at);
        }
        until(&mut swarm, |swarm| arrived(swarm).len() == 100);
        let all = arrived(&swarm);
        for class in [Class::Heartbeat, Class::Delivery] {
            let of: Vec<u8> = all.iter().filter(|(of, _)| *of == class).map(|(_, number)| *number).collect();
            assert!(of.is_sorted() && of.len() == 50, "{of:?}");
        }
        assert!(!all.iter().map(|(_, number)| *number).is_sorted());
    }

    #[test]
    fn a_hole_keeps_what_is_sent_into_it_and_tells_nobody() {
        let mut swarm = linked();
        swarm.open_hole(0, 1, 3 * SECOND);
        let closes = swarm.at + 3 * SECOND;
        for number in 0..10 {
            let at = swarm.at;
            swarm.send_packet(0, node_id(1), packet(Class::Consensus, number), at);
        }
        until(&mut swarm, |swarm| arrived(swarm).len() == 10);
        assert!(swarm.at >= closes);
        assert!(arrived(&swarm).is_sorted());
        assert_eq!(downs(&swarm, 1), []);
    }

    #[test]
    fn each_end_hears_once_that_a_link_broke_and_whether_the_other_process_is_gone() {
        let mut swarm = linked();
        swarm.cut_link((0, 1), SECOND);
        until(&mut swarm, |swarm| !swarm.is_linked(0, 1) && !swarm.is_linked(1, 0));
        assert_eq!((downs(&swarm, 0), downs(&swarm, 1)), (vec![false], vec![false]));
        until(&mut swarm, |swarm| swarm.is_linked(0, 1) && swarm.is_linked(1, 0));
        swarm.die(0);
        until(&mut swarm, |swarm| !swarm.is_linked(1, 0));
        assert_eq!(downs(&swarm, 1), [false, true]);
    }
}
