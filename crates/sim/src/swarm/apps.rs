//! What programs do with the client's sessions: send, handle, settle, die and come back.

use std::time::Duration;

use swarmmq_engine::node::bug::Bug;
use swarmmq_protocol::{
    frame::{SettleAction, StartAt},
    id::{Address, ConsumerId, GroupName, ShardId},
    limits::RECLAIM_WINDOW,
    session::{
        consumer::{DeliveryId, Handout},
        producer::{SendResult, Slip},
    },
};

use super::{Event, Phase, Swarm};
use crate::{
    client::{
        Client, Role, Step,
        consumer::{ConsumerProcess, Origin, Wanted},
        producer::{Item, ProducerProcess},
    },
    clock::{Clock, MILLISECOND, SECOND, instant, virtual_time},
    history::{Fate, Given, Group, Sent, Wish},
};

/// Keys in use.
const KEYS: u64 = 24;
/// Mean pause between two messages of one producer.
const SEND_PAUSE: u64 = 90 * MILLISECOND;
/// Groups that are made during the chaos, at most.
const LATE_GROUPS_MAX: u64 = 4;

impl Swarm {
    /// Producers and consumers come, all groups that are owed everything exist.
    pub(super) fn open_shop(&mut self) {
        for index in 0..self.plan.consumers.len() {
            let process = self.consumer_process(index, true);
            self.join(Role::Consumer(process));
        }
        self.history.owed =
            (0..self.history.groups.len()).filter(|group| !self.history.groups[*group].dead).collect();
        for _ in 0..self.plan.producers {
            let process = self.producer_process(Clock::default());
            self.join(Role::Producer(Box::new(process)));
        }
        // The visitor, who joins late groups.
        let name = self.consumer_name();
        self.join(Role::Consumer(name));
    }

    pub(super) fn join(&mut self, role: Role) {
        let skew = self.workload.between(0, 120_000) as i64 - 60_000;
        self.clients.push(Client::new(role, Clock::skewed(skew)));
        let client = self.clients.len() - 1;
        self.go_direct(client);
        self.after(client as u64 * MILLISECOND, Event::Dial { client, life: 1 });
    }

    /// The first producers talk to leaders directly, unless it matters where each of them is.
    fn go_direct(&mut self, client: usize) {
        let first = 1 + self.plan.consumers.len();
        if self.mask.is_none() && (first..first + self.plan.direct).contains(&client) {
            self.clients[client].go_direct(self.plan.seed ^ client as u64);
        }
    }

    pub(super) fn producer_process(&mut self, clock: Clock) -> ProducerProcess {
        let addresses = self.plan.addresses.iter().map(|planned| planned.address.clone()).collect();
        let entropy = self.entropy.bytes();
        let slips =
            [(Bug::MoveUndrained, Slip::MoveUndrained), (Bug::ForgetLostCopies, Slip::ForgetLostCopies)];
        let slip = slips.into_iter().find(|(bug, _)| self.plan.bugs.has(*bug)).map(|(_, slip)| slip);
        ProducerProcess::new(&self.keyring, addresses, entropy, clock.wall(self.at), slip)
    }

    /// A consumer without subscriptions.
    fn consumer_name(&mut self) -> ConsumerProcess {
        self.consumer(Vec::new())
    }

    fn consumer(&mut self, wanted: Vec<Wanted>) -> ConsumerProcess {
        let name = self.next_consumer;
        self.next_consumer += 1;
        ConsumerProcess::new(name, ConsumerId(u128::from_be_bytes(self.entropy.bytes())), wanted)
    }

    fn consumer_process(&mut self, index: usize, first: bool) -> ConsumerProcess {
        let planned = self.plan.consumers[index].clone();
        let mut wanted = Vec::new();
        for (address, of) in self.plan.addresses.clone().into_iter().enumerate() {
            let name = planned.group.to_string();
            let number = self.history.group(Group { address, dead: false, name });
            wanted.push(Wanted {
                address: of.address.clone(),
                group: planned.group.clone(),
                number,
                start: None,
                credit: planned.credit,
                extend: planned.extend,
            });
            if planned.dead_letters {
                let group = GroupName::parse("undertaker").expect("a good name");
                let number = self.history.group(Group { address, dead: true, name: group.to_string() });
                wanted.push(Wanted {
                    address: of.address.dead_letter().expect("a short name"),
                    group,
                    number,
                    start: first.then_some(StartAt::Oldest),
                    credit: planned.credit,
                    extend: true,
                });
            }
        }
        self.consumer(wanted)
    }

    /// Sends what the client has to say, and plans its next wake-up.
    pub(super) fn pump(&mut self, client: usize) {
        let now = instant(self.at);
        loop {
            for (connection, bytes) in self.clients[client].pump(now) {
                self.trace.bytes(self.at, "client sends", client as u64, &bytes);
                self.send_to_node(connection, bytes);
            }
            let Some(step) = self.clients[client].next_step(now) else { break };
            match step {
                Step::Dial(node) => {
                    let pause = self.latency();
                    let life = self.clients[client].life;
                    self.after(pause, Event::DialDirect { client, life, node });
                }
                Step::Elsewhere => {
                    let pause = self.latency();
                    let life = self.clients[client].life;
                    self.after(pause, Event::DialElsewhere { client, life });
                }
                Step::GiveUp(connection) => {
                    self.client_leaves(connection);
                    self.client_hears(connection);
                }
                Step::Closed(connection) => self.client_leaves(connection),
            }
        }
        self.listen(client);
        let state = &mut self.clients[client];
        if let Some(wake) = state.next_wake(now) {
            let wake = virtual_time(wake).max(self.at + MILLISECOND / 10);
            if state.wake_at.is_none_or(|planned| planned > wake || planned < self.at) {
                state.wake_at = Some(wake);
                let life = state.life;
                self.push(wake, Event::Wake { client, life });
            }
        }
    }

    /// Takes what the sessions have for the application.
    pub(super) fn listen(&mut self, client: usize) {
        let step = self.trace.steps();
        match &mut self.clients[client].role {
            Role::Operator(_) => {}
            Role::Producer(producer) => {
                let fates = producer.take_fates();
                if producer.session.fenced().is_some() {
                    let code = producer.session.fenced();
                    self.history.violation("sessions", format!("a producer was fenced: {code:?}"));
                }
                for (id, resolution) in fates {
                    let fate = match resolution.result {
                        SendResult::Stored { offset, .. } => Fate::Stored(offset),
                        SendResult::Failed(_) => Fate::Failed,
                        SendResult::Unknown(_) => Fate::Unknown,
                    };
                    self.trace.step(self.at, "told", [client as u64, id.sequence.0, u64::from(id.shard.0)]);
                    let Some(sent) = self.history.sent.get_mut(&id) else { continue };
                    sent.fate = fate;
                    let sent_at = sent.at;
                    self.told_masked(client, id.shard, sent_at, fate);
                }
            }
            Role::Consumer(consumer) => {
                let mut resolutions = Vec::new();
                consumer.take_resolutions(&mut resolutions);
                for resolution in resolutions {
                    if let Some(given) = self.history.given.get_mut(resolution.ticket as usize) {
                        given.result = Some((step, resolution.result));
                    }
                    self.trace.step(
                        self.at,
                        "settled",
                        [client as u64, resolution.ticket, resolution.result as u64],
                    );
                }
                self.hand_over(client);
            }
        }
    }

    /// Gives every delivery to the application at once.
    fn hand_over(&mut self, client: usize) {
        let Role::Consumer(consumer) = &mut self.clients[client].role else { return };
        let name = consumer.name;
        let mut deliveries = Vec::new();
        while let Some(delivery) = consumer.next_delivery() {
            deliveries.push(delivery);
        }
        for (subscription, group, origin, delivery) in deliveries {
            let term = origin.term;
            let id = delivery.id;
            let address = self.address_of(group);
            let opened = self.opener.open_from(&address, id.shard, &delivery.sealed).ok();
            let header = swarmmq_protocol::envelope::split_sealed(&delivery.sealed)
                .map(|(sealed, _)| sealed.header().message_id());
            let Ok(message) = header else {
                self.history.violation("invention", format!("{id:?} is no sealed message"));
                continue;
            };
            // Shard and offset side by side, and so reign and attempt.
            let place = u64::from(id.shard.0) * 1_000_000 + id.offset.0;
            let which = term.0 << 16 | u64::from(delivery.attempt.0);
            self.trace.step(self.at, "given", [client as u64, place, which]);
            let given = self.history.given.len();
            self.history.given.push(Given {
                step: self.trace.steps(),
                at: self.at,
                group,
                consumer: name,
                term,
                id: message,
                shard: id.shard,
                offset: id.offset,
                attempt: delivery.attempt,
                late: self.is_late(group, id.shard, origin),
                hash: opened.map(|opened| hash(&opened.body)),
                dead_reason: delivery.reason,
                wish: None,
                wished_at: 0,
                result: None,
                died: None,
            });
            let pause = self.handling_time(client, group);
            let life = self.clients[client].life;
            self.after(pause, Event::Handled { client, life, subscription, id, given });
        }
    }

    /// Where `group` takes its messages from.
    fn address_of(&self, group: usize) -> Address {
        let group = &self.history.groups[group];
        let address = &self.plan.addresses[group.address].address;
        if group.dead { address.dead_letter().expect("a short name") } else { address.clone() }
    }

    /// Whether what arrives now from `shard` may have been given to others since: while it travelled, waited on the way for
    /// room, or both. What it had travelled before it waited, its node could not know: it is told less than it took.
    fn is_late(&self, group: usize, shard: ShardId, origin: Origin) -> bool {
        let next = self.history.next_reign(shard, origin.term);
        let reclaimed = next.is_some_and(|next| self.at - next.at >= RECLAIM_WINDOW.as_nanos() as u64);
        let (lease, left) = (self.lease_of(group), origin.lease.as_nanos() as u64);
        let (host, handed_at) = self.handed;
        let came_at = handed_at.saturating_sub(lease.saturating_sub(left));
        // Leases are told in whole milliseconds.
        let same = |(at, _): &&(u64, u64)| (*at..=at + MILLISECOND).contains(&came_at);
        let slow = self.hosts[host].slow_turns.iter().filter(same).map(|(_, sent_at)| *sent_at).min();
        let travelled = slow.is_some_and(|sent_at| self.at - sent_at >= lease);
        reclaimed || travelled || self.at - self.sent_at >= lease.min(left)
    }

    fn lease_of(&self, group: usize) -> u64 {
        let settings = &self.plan.addresses[self.history.groups[group].address].settings;
        settings.lease.map_or(SECOND, |lease| lease.as_nanos() as u64)
    }

    fn handling_time(&mut self, client: usize, group: usize) -> u64 {
        let planned = self.plan.consumers.get(client.wrapping_sub(1));
        let usual = planned.map_or(10 * MILLISECOND, |planned| planned.handling);
        if matches!(self.phase, Phase::Drain { .. }) {
            return self.workload.between(MILLISECOND / 2, 20 * MILLISECOND);
        }
        match self.workload.below(100) {
            0 => self.workload.between(SECOND, 12 * SECOND),
            1..4 => self.workload.between(SECOND / 10, 2 * SECOND),
            // Just when the lease runs out.
            4 => self.lease_of(group) - 4 * MILLISECOND + self.workload.below(6 * MILLISECOND),
            _ => self.workload.between(MILLISECOND / 2, usual),
        }
    }

    /// The application is done with a message, one way or another.
    pub(super) fn handled(
        &mut self,
        client: usize,
        life: u64,
        subscription: usize,
        id: DeliveryId,
        given: usize,
    ) {
        if self.clients[client].life != life {
            return;
        }
        let draining = matches!(self.phase, Phase::Drain { .. });
        let dead = self.history.groups[self.history.given[given].group].dead;
        let draw = if draining || dead { 0 } else { self.workload.below(100) };
        let (wish, action) = match draw {
            0..88 => (Wish::Ack, SettleAction::Ack),
            88..91 => (Wish::Nack, SettleAction::Nack { delay: None }),
            91..95 => {
                let delay = Duration::from_millis(self.workload.below(2000));
                (Wish::Nack, SettleAction::Nack { delay: Some(delay) })
            }
            95..98 => (Wish::DeadLetter, SettleAction::DeadLetter),
            _ => (Wish::Nack, SettleAction::Release),
        };
        self.trace.step(self.at, "handled", [client as u64, given as u64, wish as u64]);
        self.history.given[given].wish = Some((self.trace.steps(), wish));
        self.history.given[given].wished_at = self.at;
        if let Role::Consumer(consumer) = &mut self.clients[client].role {
            let handout = Handout { id, attempt: self.history.given[given].attempt };
            consumer.settle(subscription, handout, action, given as u64);
        }
        self.pump(client);
    }

    /// A producer's program sends, then plans when to send again.
    pub(super) fn send(&mut self, client: usize, life: u64, burst: u64) {
        let Phase::Chaos { since } = self.phase else { return };
        if self.clients[client].life != life {
            return;
        }
        if self.plan.is_quiet(self.at - since) {
            self.after(100 * MILLISECOND, Event::Send { client, life, burst: 0 });
            return;
        }
        let address = self.workload.below(self.plan.addresses.len() as u64) as usize;
        let key = self.workload.chance(700).then(|| self.workload.below(KEYS));
        let size = match self.workload.below(100) {
            0 => self.workload.between(2000, 6000),
            1..10 => self.workload.between(300, 2000),
            _ => self.workload.between(16, 300),
        };
        let mut body = vec![0; size as usize];
        self.workload.fill(&mut body);
        let patience = match self.workload.below(10) {
            0 => self.workload.between(20, 1000),
            _ => self.workload.between(1000, 30_000),
        };
        // Half of what may go anywhere goes where its session thinks best.
        let bits = self.workload.bits();
        let item = Item {
            address,
            key,
            body: &body,
            spread: (bits & 1 == 0).then_some(bits >> 32),
            now: instant(self.at),
            deadline: instant(self.at + patience * MILLISECOND),
            wall: self.clients[client].clock.wall(self.at),
        };
        if let Role::Producer(producer) = &mut self.clients[client].role
            && producer.can_send(address, body.len())
        {
            let id = producer.send(&item);
            let sent = Sent { address, key, hash: hash(&body), at: self.at, fate: Fate::Untold };
            self.trace.step(self.at, "send", [client as u64, id.sequence.0, u64::from(id.shard.0)]);
            self.history.sent.insert(id, sent);
            self.pump(client);
        }
        let (pause, burst) = match burst {
            0 if self.workload.chance(15) => (0, self.workload.between(10, 60)),
            0 => (self.workload.between(SEND_PAUSE / 50, 2 * SEND_PAUSE), 0),
            left => (self.workload.between(MILLISECOND / 10, 3 * MILLISECOND), left - 1),
        };
        self.after(pause, Event::Send { client, life, burst });
    }

    /// A process dies with all it knew; another one takes its place.
    pub(super) fn client_dies(&mut self, client: usize) {
        let visitor = client + 1 == self.clients.len();
        let role = match &self.clients[client].role {
            Role::Producer(_) => Role::Producer(Box::new(self.producer_process(self.clients[client].clock))),
            Role::Consumer(_) if visitor => Role::Consumer(self.consumer_name()),
            Role::Consumer(_) => Role::Consumer(self.consumer_process(client - 1, false)),
            Role::Operator(_) => return,
        };
        self.replace(client, role);
    }

    fn replace(&mut self, client: usize, role: Role) {
        let step = self.trace.steps();
        if let Role::Consumer(consumer) = &self.clients[client].role {
            let name = consumer.name;
            let open = self
                .history
                .given
                .iter_mut()
                .filter(|given| given.consumer == name && given.result.is_none());
            open.for_each(|given| given.died = Some(step));
        }
        for connection in self.clients[client].leave() {
            self.client_leaves(connection);
        }
        let before = &self.clients[client];
        let life = before.life + 1;
        let sends = matches!(role, Role::Producer(_));
        self.clients[client] = Client::again(role, before.clock, life);
        self.go_direct(client);
        self.note("new life", client as u64, life, 0);
        let pause = self.scheduling.between(10 * MILLISECOND, 500 * MILLISECOND);
        self.after(pause, Event::Dial { client, life });
        if sends {
            self.after(pause, Event::Send { client, life, burst: 0 });
        }
    }

    /// The visitor leaves where it was and makes a new group of some address.
    pub(super) fn new_group(&mut self) -> bool {
        if self.late_groups >= LATE_GROUPS_MAX {
            return false;
        }
        self.late_groups += 1;
        let address = self.workload.below(self.plan.addresses.len() as u64) as usize;
        let name = format!("late{}", self.late_groups);
        let number = self.history.group(Group { address, dead: false, name });
        let wanted = vec![self.late(number, Some(StartAt::Oldest))];
        let process = self.consumer(wanted);
        self.replace(self.clients.len() - 1, Role::Consumer(process));
        true
    }

    fn late(&self, number: usize, start: Option<StartAt>) -> Wanted {
        let group = &self.history.groups[number];
        Wanted {
            address: self.plan.addresses[group.address].address.clone(),
            group: GroupName::parse(&group.name).expect("a good name"),
            number,
            start,
            credit: 50,
            extend: true,
        }
    }

    /// The visitor comes back for everything that its groups still want.
    pub(super) fn gather_late_groups(&mut self) {
        let groups = &self.history.groups;
        let late: Vec<usize> =
            (0..groups.len()).filter(|group| groups[*group].name.starts_with("late")).collect();
        let wanted = late.into_iter().map(|number| self.late(number, None)).collect();
        let process = self.consumer(wanted);
        self.replace(self.clients.len() - 1, Role::Consumer(process));
    }
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
