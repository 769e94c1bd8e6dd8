//! A cluster of nodes with their disks, its clients and everything between them, in one thread and in virtual time.
//!
//! The queue of events is the only thing that moves time. `host` runs a node, `life` ends and starts its process, `network`
//! carries bytes of clients, `links` packets between nodes, `apps` is what programs do with the client's sessions, `faults` breaks things, `watch` and `lookout` judge
//! while all that goes on.

mod apps;
mod faults;
mod host;
mod life;
mod links;
mod lookout;
pub mod mask;
mod network;
mod queue;
mod watch;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use swarmmq_engine::node::Input;
use swarmmq_protocol::{
    admin::AdminRequest,
    id::{NodeId, ShardId},
    packet::Packet,
    session::{consumer::DeliveryId, peer::PeerHello},
    time::WallTime,
};
use swarmmq_seal::{ClientKeyring, Opener};

use self::{
    host::{Arrival, Decided, Host},
    links::{Link, Pair},
    lookout::Lookout,
    mask::Mask,
    network::Connection,
    queue::Queue,
};
use crate::{
    client::{Client, Role, operator::Operator},
    clock::{Clock, MILLISECOND, SECOND},
    history::History,
    plan::{CHAOS_TIME_MAX, CHAOS_TIME_MIN, DRAIN_TIME_MAX, Fault, MESSAGES_MIN, Plan},
    rng::{Rng, Stream},
    trace::Trace,
};

/// Pause between looks at whether a phase is over.
const LOOK_PAUSE: u64 = 250 * MILLISECOND;
/// Time after the last message was settled in which nothing may come back.
const AFTERMATH: u64 = 3 * SECOND;
/// Time between the end of the clients and that of the nodes.
const FAREWELL_TIME: u64 = SECOND;
/// All nodes together must come back within that.
const REBIRTH_TIME_MAX: u64 = 60 * SECOND;
/// Setting up without faults must not take longer.
const SETUP_TIME_MAX: u64 = 60 * SECOND;
/// More steps than any run needs: whoever gets here spins.
const STEPS_MAX: u64 = 5_000_000;

/// Something that will happen.
#[derive(Debug)]
enum Event {
    /// A node looks at what came in.
    Turn {
        host: usize,
    },
    /// What a slow node decided comes out.
    TurnEnds {
        host: usize,
        boot: u64,
        decided: Box<Decided>,
    },
    /// A node has been slow for a while: it is looked who leads.
    Pace {
        host: usize,
        until: u64,
    },
    Synced {
        host: usize,
        boot: u64,
    },
    ReadBack {
        host: usize,
        boot: u64,
        ticket: u64,
        result: Result<Bytes, String>,
    },
    /// A node's process dies, if it is still the same.
    Kill {
        host: usize,
        boot: u64,
    },
    Start {
        host: usize,
    },
    Space {
        host: usize,
        free: bool,
    },
    ToNode {
        connection: u64,
        bytes: BytesMut,
    },
    ToClient {
        connection: u64,
        sent_at: u64,
        handed_at: u64,
        bytes: BytesMut,
    },
    /// One end learns that the connection is gone.
    NodeHears {
        connection: u64,
    },
    ClientHears {
        connection: u64,
    },
    /// A datagram arrives.
    Datagram {
        host: usize,
        bytes: Bytes,
    },
    /// A client has waited long enough for the handshake.
    Impatient {
        connection: u64,
    },
    Dial {
        client: usize,
        life: u64,
    },
    /// A client dials a leader besides.
    DialDirect {
        client: usize,
        life: u64,
        node: NodeId,
    },
    /// A client dials another node, because its home is silent.
    DialElsewhere {
        client: usize,
        life: u64,
    },
    Wake {
        client: usize,
        life: u64,
    },
    /// A producer's program has something to send.
    Send {
        client: usize,
        life: u64,
        burst: u64,
    },
    /// A consumer's program is done with a message.
    Handled {
        client: usize,
        life: u64,
        subscription: usize,
        id: DeliveryId,
        given: usize,
    },
    /// Two nodes try to connect.
    Meet {
        pair: Pair,
    },
    /// One end of a link between nodes hears that it is up.
    LinkUp {
        host: usize,
        boot: u64,
        other: usize,
        session: u64,
        hello: Box<PeerHello>,
    },
    LinkDown {
        host: usize,
        boot: u64,
        other: usize,
        session: u64,
    },
    LinkCut {
        pair: Pair,
        time: u64,
    },
    GiveUp {
        pair: Pair,
        session: u64,
    },
    Packet {
        host: usize,
        from: usize,
        session: u64,
        since: u64,
        packet: Packet,
    },
    Fault(Fault),
    /// Links are cut by a mask, or what that did is judged.
    Mask,
    Look,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Setup,
    Chaos {
        since: u64,
    },
    Drain {
        since: u64,
        empty_since: Option<u64>,
    },
    /// Clients are gone, everybody is about to lose power.
    Farewell {
        since: u64,
    },
    /// Everybody lost power and comes back.
    Rebirth {
        since: u64,
    },
    Over,
}

/// A whole run.
pub struct Swarm {
    /// What was drawn for it.
    pub plan: Plan,
    /// For the judges.
    pub history: History,
    /// For reports.
    pub trace: Trace,
    /// Faults that happened, by kind.
    pub faults: BTreeMap<Fault, u64>,
    /// Restarts that found the log torn.
    pub torn: u64,
    /// Restarts that refused a damaged log.
    pub refused_logs: u64,
    /// Rebuilt states that were compared with the living one.
    pub replays: u64,
    /// Virtual time.
    pub at: u64,
    queue: Queue,
    phase: Phase,
    hosts: Vec<Host>,
    digests: BTreeMap<(ShardId, u64), ([u8; 32], usize)>,
    lookout: Lookout,
    links: BTreeMap<Pair, Link>,
    next_session: u64,
    /// Disks lost so far.
    wiped: usize,
    /// The host that is gone for good.
    lost: Option<usize>,
    /// States of the leaders before everybody lost power.
    legacy: Vec<[u8; 32]>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    clients: Vec<Client>,
    keyring: ClientKeyring,
    opener: Opener,
    workload: Rng,
    scheduling: Rng,
    chaos: Rng,
    entropy: Rng,
    next_consumer: u64,
    /// When the bytes that a client reads now were sent.
    sent_at: u64,
    /// Which host handed them on, and when.
    handed: (usize, u64),
    late_groups: u64,
    /// Instead of the usual clients and faults.
    pub mask: Option<Mask>,
}

impl Swarm {
    /// Everything is there, nothing has happened.
    pub fn new(plan: Plan, trace_everything: bool) -> Self {
        let seed = plan.seed;
        let mut entropy = Rng::new(seed, Stream::Entropy);
        let keyring = ClientKeyring::generate(WallTime(1), &mut |out| entropy.fill(out))
            .expect("secrets drawn from a good generator differ");
        let hosts = (0..plan.hosts.len()).map(|index| Host::new(&plan, &keyring, index)).collect();
        let mut swarm = Self {
            history: History::default(),
            trace: Trace::new(trace_everything),
            faults: BTreeMap::new(),
            torn: 0,
            refused_logs: 0,
            replays: 0,
            at: 0,
            queue: Queue::default(),
            phase: Phase::Setup,
            hosts,
            digests: BTreeMap::new(),
            lookout: Lookout::default(),
            links: BTreeMap::new(),
            next_session: 0,
            wiped: 0,
            lost: None,
            legacy: Vec::new(),
            connections: BTreeMap::new(),
            next_connection: 1,
            clients: Vec::new(),
            opener: Opener::new(&keyring),
            keyring,
            workload: Rng::new(seed, Stream::Workload),
            scheduling: Rng::new(seed, Stream::Scheduling),
            chaos: Rng::new(seed, Stream::Faults),
            entropy,
            next_consumer: 1,
            sent_at: 0,
            handed: (0, 0),
            late_groups: 0,
            mask: None,
            plan,
        };
        for host in 0..swarm.hosts.len() {
            if swarm.hosts[host].planned.comes_at == 0 {
                swarm.push(5 * host as u64 * MILLISECOND, Event::Start { host });
            }
        }
        let questions = swarm
            .plan
            .addresses
            .iter()
            .map(|planned| AdminRequest::AddressCreate {
                address: planned.address.clone(),
                order: planned.order,
                settings: planned.settings.clone(),
            })
            .collect();
        swarm.clients.push(Client::new(Role::Operator(Operator::new(questions)), Clock::default()));
        swarm.push(MILLISECOND, Event::Dial { client: 0, life: 1 });
        swarm.push(LOOK_PAUSE, Event::Look);
        swarm
    }

    /// Runs until everything is over, or cannot go on.
    pub fn run(&mut self) {
        while self.phase != Phase::Over {
            let Some((at, event)) = self.queue.pop() else {
                self.history.violation("liveness", "nothing is left to happen".to_owned());
                return;
            };
            self.at = at;
            if self.trace.steps() > STEPS_MAX {
                self.history.violation("liveness", format!("still busy after {STEPS_MAX} steps"));
                return;
            }
            self.happen(event);
        }
    }

    /// How close each judge of routes came to its bound: the longest that something was wrong, in nanoseconds; of changes, how many.
    pub fn margins(&self) -> &BTreeMap<&'static str, u64> {
        &self.lookout.longest
    }

    fn push(&mut self, at: u64, event: Event) {
        self.queue.push(at, event);
    }

    fn after(&mut self, pause: u64, event: Event) {
        self.push(self.at + pause, event);
    }

    fn note(&mut self, what: &'static str, a: u64, b: u64, c: u64) {
        self.trace.step(self.at, what, [a, b, c]);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn { host } => self.turn(host),
            Event::TurnEnds { host, boot, decided } => self.turn_ends(host, boot, decided),
            Event::Pace { host, until } => self.judge_pace(host, until),
            Event::Synced { host, boot } => self.synced(host, boot),
            Event::ReadBack { host, boot, ticket, result } => self.read_back(host, boot, ticket, result),
            Event::Kill { host, boot } => {
                if self.hosts[host].boot == boot {
                    self.kill(host);
                }
            }
            Event::Start { host } => self.start(host),
            Event::Space { host, free } => self.space(host, free),
            Event::ToNode { connection, bytes } => self.reach_node(connection, &bytes),
            Event::ToClient { connection, sent_at, handed_at, bytes } => {
                self.reach_client(connection, (sent_at, handed_at), &bytes);
            }
            Event::NodeHears { connection } => self.node_hears(connection),
            Event::ClientHears { connection } => self.client_hears(connection),
            Event::Impatient { connection } => self.impatient(connection),
            Event::Dial { client, life } => self.dial(client, life),
            Event::DialDirect { client, life, node } => self.dial_direct(client, life, node),
            Event::DialElsewhere { client, life } => self.dial_elsewhere(client, life),
            Event::Wake { client, life } => {
                if self.clients[client].life == life && self.clients[client].wake_at == Some(self.at) {
                    self.clients[client].wake_at = None;
                    self.pump(client);
                }
            }
            Event::Send { client, life, .. } if self.mask.is_some() => self.send_everywhere(client, life),
            Event::Send { client, life, burst } => self.send(client, life, burst),
            Event::Handled { client, life, subscription, id, given } => {
                self.handled(client, life, subscription, id, given);
            }
            Event::Meet { pair } => self.meet(pair),
            Event::LinkUp { host, boot, other, session, hello } => {
                self.link_up((host, boot), other, session, *hello);
            }
            Event::LinkDown { host, boot, other, session } => self.link_down((host, boot), other, session),
            Event::LinkCut { pair, time } => {
                if matches!(self.phase, Phase::Chaos { .. }) {
                    self.cut_link(pair, time);
                }
            }
            Event::GiveUp { pair, session } => self.give_up(pair, session),
            Event::Datagram { host, bytes } => self.arrive(host, Arrival::Input(Input::Datagram { bytes })),
            Event::Packet { host, from, session, since, packet } => {
                self.packet_arrives(host, from, session, since, packet);
            }
            Event::Fault(fault) => {
                if matches!(self.phase, Phase::Chaos { .. }) {
                    self.fault(fault);
                }
            }
            Event::Mask => self.mask_step(),
            Event::Look => self.look(),
        }
    }

    /// Whether the phase is over; if so, begins the next.
    fn look(&mut self) {
        self.look_out();
        match self.phase {
            Phase::Setup => {
                let created = matches!(&self.clients[0].role, Role::Operator(operator) if operator.is_done());
                if created && self.clients.len() == 1 {
                    if self.mask.is_some() { self.open_masked_shop() } else { self.open_shop() }
                } else if created
                    && self.consumers_active()
                    && (!self.plan.settles_first || self.shortage().is_none())
                {
                    self.begin_chaos();
                } else if self.at > SETUP_TIME_MAX {
                    let why = self.shortage().unwrap_or_default();
                    self.history.violation("liveness", format!("setting up takes too long: {why}"));
                    self.phase = Phase::Over;
                }
            }
            Phase::Chaos { .. } if self.mask.is_some() => {}
            Phase::Chaos { since } => {
                let long = self.at - since >= CHAOS_TIME_MIN;
                let much = self.history.sent.len() as u64 >= MESSAGES_MIN;
                if long && much || self.at - since >= CHAOS_TIME_MAX {
                    self.heal();
                    self.phase = Phase::Drain { since: self.at, empty_since: None };
                }
            }
            Phase::Drain { since, empty_since } => {
                self.lose_one();
                let unfinished = self.unfinished();
                let late = self.at - since > DRAIN_TIME_MAX;
                let empty_since = if unfinished.is_none() { empty_since.or(Some(self.at)) } else { None };
                self.phase = Phase::Drain { since, empty_since };
                if let Some(what) = unfinished.filter(|_| late) {
                    self.history.violation("liveness", what);
                    self.phase = Phase::Over;
                } else if empty_since.is_some_and(|empty| self.at - empty >= AFTERMATH) {
                    self.part();
                }
            }
            Phase::Farewell { since } => {
                if self.at - since >= FAREWELL_TIME {
                    self.reboot();
                }
            }
            Phase::Rebirth { since } => {
                let missing = self.discord();
                if missing.is_none() {
                    self.judge_legacy();
                    self.phase = Phase::Over;
                } else if let Some(what) = missing.filter(|_| self.at - since > REBIRTH_TIME_MAX) {
                    self.history.violation("liveness", format!("after a power cut of all: {what}"));
                    self.phase = Phase::Over;
                }
            }
            Phase::Over => {}
        }
        self.after(LOOK_PAUSE, Event::Look);
    }

    fn consumers_active(&self) -> bool {
        self.clients.iter().all(|client| match &client.role {
            Role::Consumer(consumer) => consumer.is_active(),
            Role::Producer(_) => client.is_open(),
            Role::Operator(_) => true,
        })
    }

    fn begin_chaos(&mut self) {
        self.note("chaos begins", 0, 0, 0);
        self.phase = Phase::Chaos { since: self.at };
        for host in 0..self.hosts.len() {
            let comes_at = self.hosts[host].planned.comes_at;
            if comes_at > 0 {
                self.after(comes_at, Event::Start { host });
            }
        }
        if self.mask.is_some() {
            self.begin_masked();
        }
        for (at, fault) in self.plan.faults.clone() {
            self.after(at, Event::Fault(fault));
        }
        for client in 0..self.clients.len() {
            if matches!(self.clients[client].role, Role::Producer(_)) {
                let life = self.clients[client].life;
                self.after(client as u64 * MILLISECOND, Event::Send { client, life, burst: 0 });
            }
        }
    }

    /// When everything has all its copies again, one node may be lost for good.
    fn lose_one(&mut self) {
        if self.plan.loses_one && self.lost.is_none() && self.shortage().is_none() {
            let host = self.chaos.below(self.hosts.len() as u64) as usize;
            if !self.hosts[host].gone {
                self.hosts[host].gone = true;
                self.die(host);
                self.lost = Some(host);
            }
        }
    }

    /// Everything is done. A single node is compared with one rebuilt from its disk; of many, clients take their leave
    /// before all lose power.
    fn part(&mut self) {
        if self.hosts.len() == 1 {
            self.judge_replay(0, "at the end");
            self.phase = Phase::Over;
            return;
        }
        self.note("farewell", 0, 0, 0);
        for client in 0..self.clients.len() {
            self.clients[client].life += 1;
            for connection in self.clients[client].leave() {
                self.client_leaves(connection);
            }
        }
        self.phase = Phase::Farewell { since: self.at };
    }

    /// Everybody loses power at once and comes back; what leaders knew must be known again.
    fn reboot(&mut self) {
        self.legacy = self.states();
        for host in 0..self.hosts.len() {
            self.kill_for(host, (host as u64 + 1) * 10 * MILLISECOND);
        }
        self.phase = Phase::Rebirth { since: self.at };
    }

    /// What keeps the drain from being complete.
    fn unfinished(&self) -> Option<String> {
        let mut open = 0;
        let mut held = 0;
        for client in &self.clients {
            match &client.role {
                Role::Producer(producer) => open += producer.session.open_messages(),
                Role::Consumer(consumer) => {
                    held += consumer.held();
                    if let Some(refusal) = consumer.refusal() {
                        return Some(format!("a subscription ended: {refusal}"));
                    }
                }
                Role::Operator(_) => {}
            }
        }
        let (depth, left) = match self.depth() {
            Ok(found) => found,
            Err(why) => return Some(why),
        };
        if matches!(&self.clients[0].role, Role::Operator(operator) if !operator.is_done()) {
            return Some("the operator has no answer".to_owned());
        }
        if open > 0 || held > 0 || depth > 0 {
            return Some(format!(
                "{open} messages of open fate, {held} held by consumers, {depth} in queues; {left}"
            ));
        }
        if self.plan.loses_one && self.lost.is_none() {
            return Some(format!("no node could be spared: {}", self.shortage().unwrap_or_default()));
        }
        let shortage = if self.lost.is_none() { self.shortage() } else { None };
        shortage.or_else(|| self.moving()).or_else(|| self.discord())
    }
}
