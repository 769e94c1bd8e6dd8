//! Other nodes: links that come and go, packets in and out, who says to lead what, and replicas being caught up.
//!
//! What leaders say of their shards is a hint: it decides whom to ask, never what is true.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use swarmmq_protocol::{
    consensus::{Message, MessageKind},
    error::Code,
    id::{Address, NodeId, ShardId},
    limits::PACKET_BYTES_MAX,
    packet::{Arrived, Class, Conversation, Packet},
    policy::Setting,
    session::peer::PeerHello,
    time::Instant,
};

use super::{
    Neighbour, Node, Now, Reading,
    ask::{Asker, Purpose},
    join,
    letter::{Health, Lead, Letter, Parcel},
    question::Question,
    way::Heard,
};
use crate::shard::{
    Work,
    credit::WINDOW_BYTES,
    event::{CatalogEvent, Event},
    intake::{Payload, StatePart, Wanted},
    member::{Member, NodeEvent, node_of},
};

/// Pause between two announcements of a leader.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(500);
/// Pause between looks whether a shard has the replicas that it should.
const STEER_PAUSE: Duration = Duration::from_millis(20);
/// Time a shard stays with its leader before a better placed one takes over.
const SETTLE_TIME: Duration = Duration::from_secs(3);
/// Whoever was slow gets its leads back one after the other: each shard in its turn, whoever leads it meanwhile.
const RETURN_PAUSE: Duration = Duration::from_millis(500);
/// A slow node hands over one lead in this time...
const LEAVE_PAUSE: Duration = Duration::from_millis(100);
/// ...and no more than this many at once, where its turns come later than that.
const LEAVES_MAX: u32 = 8;
/// Bytes of consensus messages in one packet, unless one alone is longer.
const BATCH_BYTES: usize = 1 << 20;
/// Whatever is made up here is bounded far below that.
const TOO_LONG: &str =
    "a packet for another node was too long to be sent: a fault of SwarmMQ, to be reported";
/// Fetches of payloads under way, at most; who asks for more asks again.
const FETCHES_MAX: usize = 64;

/// Payloads being read for another replica.
#[derive(Debug)]
pub(super) struct Fetch {
    to: NodeId,
    shard: ShardId,
    items: Vec<Payload>,
    outstanding: usize,
}

/// What the cluster is to remember of whoever says `hello`.
fn member_of(hello: &PeerHello, draining: bool) -> Member {
    Member {
        incarnation: hello.incarnation,
        roles: hello.roles,
        client: hello.client.clone(),
        peer: hello.peer.clone(),
        gossip: hello.gossip.clone(),
        admin: hello.admin.clone(),
        key: (hello.key != PeerHello::NO_KEY).then_some(hello.key),
        draining,
    }
}

/// What this node keeps about the others.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// Neighbours, and what they said of themselves.
    pub(super) links: BTreeMap<NodeId, PeerHello>,
    /// What leaders said last, by shard; never of an earlier reign than one before.
    pub(super) views: BTreeMap<usize, Lead>,
    /// What other nodes said of their disks.
    health: BTreeMap<NodeId, Health>,
    /// What this one said last.
    told_health: Health,
    mail: Vec<(NodeId, Class, Letter)>,
    /// To be packed; the lists stay and keep their room, nearly every wake-up fills some.
    consensus: BTreeMap<(NodeId, Class), Vec<(ShardId, Message)>>,
    fetches: BTreeMap<u64, Fetch>,
    /// Sealed bytes of deliveries from each leader that it has not been told have arrived.
    arrived: BTreeMap<NodeId, u64>,
    /// With whom links are wanted, as told last.
    told: Vec<Neighbour>,
    next_announcement: Instant,
    next_steer: Instant,
    /// Since when each shard is led from here.
    led_since: BTreeMap<usize, Instant>,
    /// Shards to be announced at once.
    news: BTreeSet<usize>,
    leaving: Leaving,
    /// Leads that others took because this node is slow.
    pub(super) leads_left: u64,
    /// Packets that did not read.
    pub(super) malformed: u64,
    steady: bool,
}

/// Leads that a slow node gives away, step by step.
#[derive(Debug, Default)]
struct Leaving {
    /// What this node told others: that it is slow.
    told: bool,
    /// When the next lead may go.
    next: Instant,
    /// Shards that others were asked to take.
    shards: BTreeSet<usize>,
}

impl Leaving {
    /// One goes. A turn that comes late makes up for those before it, within bounds.
    fn goes(&mut self, now: Instant, shard: usize) {
        let earliest = now.0.saturating_sub((LEAVE_PAUSE * LEAVES_MAX).as_nanos() as u64);
        self.next = self.next.max(Instant(earliest)) + LEAVE_PAUSE;
        self.shards.insert(shard);
    }
}

impl Peers {
    /// Whether `node` said that its disk takes no new messages.
    pub(super) fn is_weak_by_word(&self, node: NodeId) -> bool {
        self.health.get(&node).is_some_and(|health| health.is_below_reserve || health.has_stopped)
    }
}

impl Node {
    /// What this node says about itself to others.
    pub fn hello(&self) -> PeerHello {
        let addresses = &self.config.addresses;
        PeerHello {
            cluster: Some(self.config.cluster),
            shard_count: self.config.shard_count,
            node: self.config.node,
            incarnation: self.config.incarnation,
            boot: self.config.boot,
            roles: self.config.roles,
            client: addresses.client.clone(),
            peer: addresses.peer.clone(),
            admin: addresses.admin.clone(),
            gossip: addresses.gossip.clone(),
            version: self.config.version.clone(),
            key: self.config.secret.public(),
            join: None,
        }
    }

    /// Whether a link with the node that says `hello` is wanted. `Err`: why not, for programs and for people.
    pub fn admits(&self, now: Now, hello: &PeerHello) -> Result<(), (Code, String)> {
        let members = &self.cluster_shard().state().catalog.members;
        if hello.node == self.config.node {
            return Err((Code::NodeConflict, format!("node {} is running already", hello.node.0)));
        }
        if members.removed.contains(&(hello.node, hello.incarnation)) {
            let why = format!("node {} with this disk was removed from the cluster", hello.node.0);
            return Err((Code::Removed, why));
        }
        let other = self.peers.links.get(&hello.node);
        if other.is_some_and(|other| other.incarnation != hello.incarnation) {
            return Err((Code::NodeConflict, format!("another node {} is running", hello.node.0)));
        }
        self.may_join(now, hello).map_err(|code| (code, join::in_words(code).to_owned()))
    }

    pub(super) fn peer_up(&mut self, now: Now, hello: PeerHello) {
        let node = hello.node;
        if self.peers.links.contains_key(&node) {
            self.peer_down(now, node, false);
        }
        self.peers.links.insert(node, hello.clone());
        self.meet_members(now);
        self.swarm.link_opened(now.monotonic, node);
        self.reroute(now);
        self.recognise(now, hello);
        self.welcome(now, node);
    }

    /// What the other end of a new conversation should know at once.
    pub(super) fn greet(&mut self, now: Now, node: NodeId) {
        let led = (0..self.shards.len()).filter(|index| self.shards[*index].is_serving());
        let leads: Vec<Lead> = led.map(|index| self.lead_of(index)).collect();
        if !leads.is_empty() {
            self.post(node, Class::Heartbeat, Letter::Leads(leads));
        }
        self.post(node, Class::Heartbeat, Letter::Health(self.peers.told_health));
        self.post(node, Class::Heartbeat, Letter::Arrived(0));
        if self.peers.leaving.told {
            self.post(node, Class::Heartbeat, Letter::Slow(true));
        }
        self.peers.next_steer = now.monotonic;
        self.peers.steady = false;
    }

    /// Sees to it that whoever has a link is a member, under the addresses that it has now.
    fn welcome(&mut self, now: Now, node: NodeId) {
        let Some(hello) = self.peers.links.get(&node) else { return };
        let cluster = self.shards.len() - 1;
        if !self.cluster_shard().is_current() {
            return;
        }
        let known = self.cluster_shard().state().catalog.members.nodes.get(&node);
        let member = member_of(hello, known.is_some_and(|known| known.draining));
        if known == Some(&member) {
            return;
        }
        let hello = hello.clone();
        let Some(event) = self.joining(now, &hello, member) else { return };
        self.ask(now, cluster, Question::Propose(Event::Catalog(event)), Purpose::Nobody);
    }

    /// The founder of a cluster is its first member.
    pub(super) fn found(&mut self, now: Now) {
        let cluster = self.shards.len() - 1;
        if !self.shards[cluster].is_serving() {
            return;
        }
        let members = &self.shards[cluster].state().catalog.members;
        if members.nodes.contains_key(&self.config.node) || !members.nodes.is_empty() {
            return;
        }
        let member = member_of(&self.hello(), false);
        let copies = NodeEvent::Copies { replicas: self.config.replicas };
        let joined = NodeEvent::Joined { node: self.config.node, member };
        let open = self.config.open_join.then_some(CatalogEvent::Set(Setting::OpenJoin(true)));
        let made = [copies, joined].map(CatalogEvent::Node);
        for event in made.into_iter().chain(open) {
            let event = Event::Catalog(event);
            self.ask(now, cluster, Question::Propose(event), Purpose::Nobody);
        }
    }

    pub(super) fn peer_down(&mut self, now: Now, node: NodeId, gone: bool) {
        if self.peers.links.remove(&node).is_none() {
            return;
        }
        self.swarm.link_closed(now.monotonic, node, gone);
        self.tell_of_break(now, node);
        if gone {
            self.part(now, node, true);
        }
        self.reroute(now);
    }

    /// What was under way between this node and another is lost, as there is no way any more, or another one.
    pub(super) fn part(&mut self, now: Now, node: NodeId, gone: bool) {
        if !self.ways.close(node) {
            return;
        }
        self.peers.health.remove(&node);
        self.swarm.admits(node, false);
        self.peers.consensus.retain(|(to, _), _| *to != node);
        self.peers.mail.retain(|(to, _, _)| *to != node);
        self.peers.fetches.retain(|_, fetch| fetch.to != node);
        for index in 0..self.shards.len() {
            self.shards[index].lost_node(now, node, gone);
            self.dirty[index] = true;
        }
        self.dismiss_all_of(node);
        self.credits.lost(node);
        self.peers.arrived.remove(&node);
        self.forget_looks_of(node);
        self.asks_lost(now, node);
        self.feeds_lost(now, node);
    }

    /// Hands a letter to the mail, if there is a way.
    pub(super) fn post(&mut self, to: NodeId, class: Class, letter: Letter) {
        if self.ways.lead_to(to) {
            self.peers.mail.push((to, class, letter));
        }
    }

    pub(super) fn packet(&mut self, now: Now, from: NodeId, packet: Packet) {
        self.swarm.heard(now.monotonic, from);
        match packet.arrive(self.config.node, from) {
            Ok(Arrived::Here(packet)) if packet.is_between_neighbours() => {
                self.neighbour_said(now, from, packet.body);
            }
            Ok(Arrived::Here(packet)) => {
                let origin = packet.origin();
                if !self.hears(now, origin, packet.conversation) {
                    return;
                }
                match Letter::read(packet.body) {
                    Ok(letter) => self.letter(now, origin, letter),
                    Err(_) => self.peers.malformed += 1,
                }
            }
            Ok(Arrived::Onward { next, packet }) => self.relay(now, next, packet),
            Err(_) => self.peers.malformed += 1,
        }
    }

    /// Whether a packet belongs to the conversation with its origin. If that has begun a new one, so does this node.
    fn hears(&mut self, now: Now, origin: NodeId, said: Conversation) -> bool {
        match self.ways.hear(now.monotonic, origin, said) {
            Heard::Now => true,
            Heard::Anew => {
                let path = self.ways.path(origin).map(<[NodeId]>::to_vec).unwrap_or_default();
                self.part(now, origin, false);
                self.ways.follow(origin, path);
                self.greet(now, origin);
                true
            }
            Heard::Late { remind } => {
                if remind {
                    self.post(origin, Class::Heartbeat, Letter::Health(self.peers.told_health));
                }
                false
            }
            Heard::Strange => false,
        }
    }

    pub(super) fn letter(&mut self, now: Now, from: NodeId, letter: Letter) {
        match letter {
            Letter::Consensus(messages) => {
                for (shard, message) in messages {
                    let Some(index) = self.index_of(shard) else { continue };
                    if node_of(message.from) == from {
                        self.shards[index].step(now, message);
                        self.dirty[index] = true;
                    }
                }
            }
            Letter::Ask { ticket, shard, question } => {
                if let Some(index) = self.index_of(shard) {
                    self.serve(now, index, Asker::There(from, ticket), question);
                }
            }
            Letter::Answer { ticket, answer } => self.replied(now, ticket, from, answer),
            Letter::Deliver { subscriber, shard, term, parcels } => {
                if let Some(index) = self.index_of(shard) {
                    let id = crate::shard::delivery::SubscriberId(subscriber);
                    self.delivery_arrived(from, &parcels);
                    self.hand_out(now, id, index, (from, term), parcels);
                }
            }
            Letter::Arrived(bytes) => self.window_moves(from, bytes),
            Letter::Expired { subscriber, shard, term, items } => {
                if let Some(index) = self.index_of(shard) {
                    let id = crate::shard::delivery::SubscriberId(subscriber);
                    self.leases_gone(id, index, (from, term), &items);
                }
            }
            Letter::Leads(leads) => leads.into_iter().for_each(|lead| self.heard_of(now, from, lead)),
            Letter::StateWanted { shard } => {
                let Some(index) = self.index_of(shard) else { return };
                let parts = self.shards[index].give_state(now, from);
                self.post_state(from, shard, parts);
            }
            Letter::PartsCame { shard, index: of, term, come } => {
                let Some(index) = self.index_of(shard) else { return };
                let parts = self.shards[index].give_more(now, from, (of, term), come);
                self.post_state(from, shard, parts);
            }
            Letter::StatePart { shard, part } => {
                let Some(index) = self.index_of(shard) else { return };
                self.shards[index].take_state(now, from, &part);
                self.dirty[index] = true;
            }
            Letter::PayloadsWanted { shard, items } => self.fetch(now, from, shard, items),
            Letter::Payloads { shard, items } => {
                let Some(index) = self.index_of(shard) else { return };
                self.shards[index].take_payloads(now, from, items, &mut self.writer);
                self.dirty[index] = true;
            }
            Letter::Health(health) => {
                self.peers.health.insert(from, health);
                if health.has_stopped {
                    // It says itself that it can lead nobody: no need to wait until it is missed.
                    for index in 0..self.shards.len() {
                        self.shards[index].lost_node(now, from, true);
                        self.dirty[index] = true;
                    }
                }
            }
            Letter::Slow(is_slow) => self.swarm.admits(from, is_slow),
            Letter::RoutesWanted { ticket, wanted } => {
                let said = self.routes_told(now, wanted);
                self.post(from, Class::Settlement, Letter::Routes { ticket, said });
            }
            Letter::Routes { ticket, said } => self.routes_said(ticket, from, said),
            Letter::Broken { destination, next } => {
                if self.swarm.path_broken(now.monotonic, (from, next), destination) {
                    self.reroute(now);
                }
            }
        }
    }

    /// A leader says what it leads.
    fn heard_of(&mut self, now: Now, from: NodeId, lead: Lead) {
        let Some(index) = self.index_of(lead.shard) else { return };
        if self
            .peers
            .views
            .get(&index)
            .is_some_and(|known| (known.term, known.applied) > (lead.term, lead.applied))
        {
            return;
        }
        let term = lead.term;
        self.shards[index].told_of_group(&lead.voters, &lead.learners, lead.applied, lead.is_settled);
        self.peers.views.insert(index, lead);
        self.led_by(now, index, term, from);
    }

    fn post_state(&mut self, to: NodeId, shard: ShardId, parts: Vec<StatePart>) {
        for part in parts {
            self.post(to, Class::Bulk, Letter::StatePart { shard, part });
        }
    }

    /// Lets a leader know how much of what it sent is here, a quarter of its window at a time.
    fn delivery_arrived(&mut self, from: NodeId, parcels: &[Parcel]) {
        let arrived = self.peers.arrived.entry(from).or_default();
        *arrived += parcels.iter().map(|parcel| parcel.sealed.len() as u64).sum::<u64>();
        if *arrived >= WINDOW_BYTES / 4 {
            let bytes = std::mem::take(arrived);
            self.post(from, Class::Settlement, Letter::Arrived(bytes));
        }
    }

    fn fetch(&mut self, now: Now, to: NodeId, shard: ShardId, wanted: Vec<(Address, u64)>) {
        let Some(index) = self.index_of(shard) else { return };
        if self.peers.fetches.len() >= FETCHES_MAX || !self.shards[index].is_leader() {
            return;
        }
        self.shards[index].pulled(now, to);
        let number = self.number();
        let mut items = Vec::with_capacity(wanted.len());
        let mut reads = Vec::new();
        for (address, offset) in wanted {
            let found = self.shards[index].find_payload(&address, offset);
            let sealed = found.and_then(|(place, length, _)| self.shards[index].cached(place, length));
            if let (Some((place, length, _)), None) = (found, &sealed) {
                reads.push((items.len(), place, length));
            }
            items.push(Payload { address, offset, sealed });
        }
        let outstanding = reads.len();
        self.peers.fetches.insert(number, Fetch { to, shard, items, outstanding });
        for (item, place, length) in reads {
            self.ask_disk(Reading::Fetch { fetch: number, item }, place, length);
        }
        self.finish_fetch(number);
    }

    pub(super) fn fetched(&mut self, number: u64, item: usize, result: Result<Bytes, String>) {
        let Some(fetch) = self.peers.fetches.get_mut(&number) else { return };
        fetch.outstanding -= 1;
        // What cannot be read is no news to whoever asked; it asks again, perhaps another leader.
        match result {
            Ok(sealed) => fetch.items[item].sealed = Some(sealed),
            Err(_) => {
                self.peers.fetches.remove(&number);
                return;
            }
        }
        self.finish_fetch(number);
    }

    fn finish_fetch(&mut self, number: u64) {
        if self.peers.fetches.get(&number).is_some_and(|fetch| fetch.outstanding == 0) {
            let Fetch { to, shard, items, .. } = self.peers.fetches.remove(&number).expect("looked at above");
            self.post(to, Class::Bulk, Letter::Payloads { shard, items });
        }
    }

    /// Takes what a shard wants said to its other replicas.
    pub(super) fn gather(&mut self, now: Now, index: usize, work: &mut Work) {
        let shard = self.shards[index].id();
        for message in work.messages.drain(..) {
            let to = node_of(message.to);
            if !self.ways.lead_to(to) {
                continue;
            }
            let class = match message.kind {
                MessageKind::Append | MessageKind::Snapshot => Class::Consensus,
                MessageKind::AppendResponse => Class::Consensus,
                _ => Class::Heartbeat,
            };
            self.peers.consensus.entry((to, class)).or_default().push((shard, message));
        }
        for (to, wanted) in work.wanted.drain(..) {
            let letter = match wanted {
                Wanted::State => Letter::StateWanted { shard },
                Wanted::Parts { index, term, come } => Letter::PartsCame { shard, index, term, come },
                Wanted::Payloads(items) => Letter::PayloadsWanted { shard, items },
            };
            self.post(to, Class::Bulk, letter);
        }
        if std::mem::take(&mut work.regrouped) {
            self.peers.news.insert(index);
            self.peers.steady = false;
            self.peers.next_steer = now.monotonic;
        }
        self.follow_lead(now, index);
    }

    /// Whether this node leads the shard at `index` may have changed.
    fn follow_lead(&mut self, now: Now, index: usize) {
        let me = self.config.node;
        let shard = &self.shards[index];
        if !shard.is_leader() && self.peers.leaving.shards.remove(&index) {
            self.peers.leads_left += 1;
        }
        if shard.is_serving() {
            let term = shard.term();
            if self.leaders[index] != Some((term, me)) {
                self.peers.led_since.insert(index, now.monotonic);
                self.peers.news.insert(index);
                self.led_by(now, index, term, me);
            }
        } else if self.leaders[index].is_some_and(|(_, node)| node == me) {
            self.peers.led_since.remove(&index);
            self.unled(now, index);
        }
    }

    fn lead_of(&self, index: usize) -> Lead {
        let shard = &self.shards[index];
        let conf = shard.conf();
        Lead {
            shard: shard.id(),
            term: shard.term(),
            applied: shard.state().applied,
            voters: conf.voters.clone(),
            learners: conf.learners.clone(),
            is_settled: shard.is_group_settled(),
            in_sync: shard.in_sync(),
        }
    }

    /// Whether the disk of `node` takes no new messages, as far as known.
    fn is_weak(&self, node: NodeId) -> bool {
        if node == self.config.node {
            return self.is_below_reserve();
        }
        self.peers.is_weak_by_word(node)
    }

    /// Whether this node is too slow to lead, as it judges itself.
    pub(super) fn is_slow(&self) -> bool {
        self.swarm.fitness().is_slow(self.config.node)
    }

    /// Tells others when this node has become slow, or fit again: nobody is to hand it a lead meanwhile.
    fn tell_of_pace(&mut self, now: Now) {
        let is_slow = self.is_slow();
        if is_slow != self.peers.leaving.told {
            self.peers.leaving = Leaving { told: is_slow, next: now.monotonic, ..Leaving::default() };
            self.peers.next_steer = now.monotonic;
            for node in self.ways.nodes() {
                self.post(node, Class::Heartbeat, Letter::Slow(is_slow));
            }
        }
    }

    /// Whether enough replicas of the shard at `index` have room for new messages (safety rule 19).
    pub(super) fn has_room(&self, index: usize) -> bool {
        let voters = &self.shards[index].conf().voters;
        let strong = voters.iter().filter(|voter| !self.is_weak(node_of(**voter))).count();
        strong * 2 > voters.len()
    }

    /// Announces what this node leads: news at once, everything now and then.
    pub(super) fn announce(&mut self, now: Now) {
        let health =
            Health { is_below_reserve: self.is_below_reserve(), has_stopped: self.stopped.is_some() };
        if health != self.peers.told_health {
            self.peers.told_health = health;
            for node in self.ways.nodes() {
                self.post(node, Class::Heartbeat, Letter::Health(health));
            }
        }
        let all = now.monotonic >= self.peers.next_announcement && !self.peers.links.is_empty();
        if all {
            self.peers.next_announcement = now.monotonic + ANNOUNCE_PAUSE;
            for node in self.peers.links.keys().copied().collect::<Vec<_>>() {
                self.welcome(now, node);
            }
        }
        if !all && self.peers.news.is_empty() {
            return;
        }
        let news = std::mem::take(&mut self.peers.news);
        let told: Vec<usize> = (0..self.shards.len())
            .filter(|index| (all || news.contains(index)) && self.shards[*index].is_serving())
            .collect();
        let leads: Vec<Lead> = told.iter().map(|index| self.lead_of(*index)).collect();
        for (index, lead) in told.iter().zip(&leads) {
            self.peers.views.insert(*index, lead.clone());
        }
        if leads.is_empty() {
            return;
        }
        for node in self.ways.nodes() {
            self.post(node, Class::Heartbeat, Letter::Leads(leads.clone()));
        }
    }

    /// Lets every shard led here take a step towards the replicas that it should have, and towards its best leader. A node
    /// that is slow leads only what nobody else can (see `swarm/fitness`).
    pub(super) fn steer(&mut self, now: Now) {
        self.tell_of_pace(now);
        if now.monotonic < self.peers.next_steer {
            return;
        }
        self.peers.next_steer = now.monotonic + STEER_PAUSE;
        self.meet_members(now);
        self.want_links();
        if !self.cluster_shard().is_current() {
            return;
        }
        if self.cluster_shard().state().catalog.members.nodes.is_empty() {
            return;
        }
        let mut steady = true;
        let mut moved = false;
        for index in 0..self.shards.len() {
            if !self.shards[index].is_serving() {
                continue;
            }
            let wish = self.cluster_shard().state().catalog.members.wish(self.shards[index].id());
            let me = self.config.node;
            let ways = &self.ways;
            let is_up = |node: NodeId| node == me || ways.lead_to(node);
            let fitness = self.swarm.fitness();
            let may_lead = |node: NodeId| fitness.may_lead(now.monotonic, node);
            if !self.shards[index].steer(now, &wish, &is_up, &may_lead) {
                steady = false;
                self.dirty[index] = true;
                continue;
            }
            let fits = |replica: &u64| {
                node_of(*replica) != me && is_up(node_of(*replica)) && !self.is_weak(node_of(*replica))
            };
            let heirs: Vec<u64> = wish.voters.iter().copied().filter(fits).collect();
            let swift: Vec<u64> =
                heirs.iter().copied().filter(|replica| may_lead(node_of(*replica))).collect();
            let returns = |best: &u64| {
                let fit_since = fitness.fit_since(node_of(*best));
                fit_since.is_none_or(|since| now.monotonic.since(since) >= RETURN_PAUSE * index as u32)
            };
            let best = wish.voters.first().copied().filter(|best| swift.contains(best) && returns(best));
            if self.is_weak(me) && !heirs.is_empty() {
                let heir = swift.first().or(heirs.first()).copied();
                self.dirty[index] |= self.shards[index].hand_over(heir);
                steady = false;
                continue;
            }
            // With most voters slow, each commit waits for one of them whoever leads; and who leads must hear most of them
            // within an election timeout, which a slow leader gives them and a quick one does not.
            let voters = &self.shards[index].conf().voters;
            let quick = swift.iter().filter(|replica| voters.contains(replica)).count();
            if self.is_slow() && 2 * quick > voters.len() {
                steady = false;
                if self.peers.leaving.next <= now.monotonic && !self.shards[index].is_handing_over() {
                    let shard = &mut self.shards[index];
                    if swift.into_iter().any(|heir| shard.hand_over(Some(heir))) {
                        self.peers.leaving.goes(now.monotonic, index);
                        self.dirty[index] = true;
                    }
                }
                continue;
            }
            let since = self.peers.led_since.get(&index).copied().unwrap_or(now.monotonic);
            if let Some(best) = best
                && !moved
            {
                steady = false;
                if now.monotonic.since(since) > SETTLE_TIME {
                    moved = self.shards[index].hand_over(Some(best));
                    self.dirty[index] |= moved;
                }
            }
        }
        self.peers.steady = steady;
        if steady || moved {
            self.peers.next_steer = now.monotonic + ANNOUNCE_PAUSE;
        }
    }

    /// Says with whom links are wanted, as far as this node knows. Outdated knowledge is better than none: after all nodes
    /// have stopped, nobody leads before the members that the log names have found each other.
    fn want_links(&mut self) {
        let members = &self.cluster_shard().state().catalog.members.nodes;
        let wanted = |(node, member): (&NodeId, &Member)| {
            let (peer, gossip) = (member.peer.clone(), member.gossip.clone());
            (*node != self.config.node).then_some(Neighbour { node: *node, peer, gossip })
        };
        let peers: Vec<Neighbour> = members.iter().filter_map(wanted).collect();
        if self.peers.told != peers {
            self.peers.told.clone_from(&peers);
            self.peers_changed = Some(peers);
        }
    }

    /// A draining node leads nothing for long. A slow heir is better than none.
    pub(super) fn hand_over_all(&mut self, now: Now) {
        for index in 0..self.shards.len() {
            let voters = self.shards[index].conf().voters.clone();
            if voters.len() < 2 {
                continue;
            }
            let fitness = self.swarm.fitness();
            let swift = voters.into_iter().filter(|voter| fitness.may_lead(now.monotonic, node_of(*voter)));
            let shard = &mut self.shards[index];
            if swift.map(Some).chain([None]).any(|heir| shard.hand_over(heir)) {
                self.dirty[index] = true;
            }
        }
    }

    /// Whether another could still take over what this node leads.
    pub(super) fn leads_shared(&self) -> bool {
        self.shards.iter().any(|shard| shard.is_leader() && shard.conf().voters.len() > 1)
    }

    /// Everything for other nodes, in packets.
    pub(super) fn pack(&mut self, out: &mut super::Effects) {
        let ways = &self.ways;
        let mut too_long = false;
        let mut send = |to, class, letter: Letter| {
            let body = letter.to_bytes();
            if body.len() > PACKET_BYTES_MAX {
                too_long = true;
            } else {
                out.packets.extend(ways.wrap(to, class, body));
            }
        };
        for ((to, class), messages) in &mut self.peers.consensus {
            while !messages.is_empty() {
                let batch = messages.drain(..fitting(messages)).collect();
                send(*to, *class, Letter::Consensus(batch));
            }
        }
        for (to, class, letter) in self.peers.mail.drain(..) {
            send(to, class, letter);
        }
        if too_long && !self.counters.problems.iter().any(|problem| problem == TOO_LONG) {
            self.counters.problems.push(TOO_LONG.to_owned());
        }
        let links = &self.peers.links;
        out.packets.extend(self.relayed.drain(..).filter(|(next, _)| links.contains_key(next)));
        out.peers = self.peers_changed.take();
        out.unwanted.extend(std::mem::take(&mut self.unwanted));
    }

    /// When this room has something to do by itself.
    pub(super) fn peers_wake(&self) -> Option<Instant> {
        if self.peers.links.is_empty() {
            return None;
        }
        Some(self.peers.next_announcement.min(self.peers.next_steer))
    }
}

/// How many of these messages, from the first on, go into one packet: at least one.
fn fitting(messages: &[(ShardId, Message)]) -> usize {
    let mut bytes = 0;
    let fits = |(_, message): &&(ShardId, Message)| {
        let first = bytes == 0;
        bytes += message.encoded_bytes();
        first || bytes <= BATCH_BYTES
    };
    messages.iter().take_while(fits).count()
}
