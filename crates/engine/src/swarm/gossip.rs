//! Gossip: ten times a second each node tells others what it knows, in numbers, and sends on what they lack.
//!
//! A datagram carries beats and versions of everybody (the digest), the signed reports and accusations that the receiver lacks,
//! and what the sender would like to have. So whatever one node knows reaches all who can be reached by whatever way, and whatever
//! is lost is sent again, because the next digest shows that it is lacking. What is urgent goes to everybody at once.
//!
//! Trust: a datagram is proven by a key that only the two ends have, a report by the signature of whoever it is about, an accusation by
//! that of its accuser, a life of a node by either. Beats of others are the relay's word (`detector.rs` bounds what it is worth).
//! A datagram counts only if it names this node's present life, so that no recording does; who does not know that life
//! yet, or only an earlier one, is told, and then says it again.
//! Absent here: sockets, addresses, who is a member, what reports are used for.

use std::{collections::BTreeMap, time::Duration};

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    codec::cut_at,
    datagram::{self, DatagramError, Gossiped, Header, Life, Unproven},
    id::{ClusterId, NodeId},
    mac::{DualKey, MacKey},
    node_key::{NodeKey, NodeSecret},
    time::Instant,
};

use super::{
    correspondent::{Correspondent, Kind, Versions},
    detector::{Detector, REFUTING, Source, Verdict},
    report::{
        Accusation, Accusations, DocumentError, LinkReport, Load, RELEASE_BYTES_MAX, Report,
        SignedAccusations, SignedReport,
    },
};
use crate::shard::{consensus::tick_after, member::NODES_MAX};

/// Time between two rounds, on average.
pub const ROUND: Duration = Duration::from_millis(100);
/// Rounds while there is something to be made known in spite of losses: after a start, a stall, an accusation.
const HURRIED_ROUND: Duration = Duration::from_millis(25);
const HURRIED_ROUNDS: u8 = 3;
/// How long after a stall gaps in what comes are the stall's: what came meanwhile may have been dropped at the door.
const CATCHING_UP: Duration = Duration::from_millis(500);
/// Who comes this much too late to a round was stalled.
const STALL: Duration = Duration::from_millis(200);
/// Up to so many others everybody is told in every round.
const ALL_UP_TO: usize = 8;
/// How many are told in a round where there are more, besides one that is not heard.
const FAN_OUT: usize = 3;
/// Most who are told of something urgent in every round until they have it, where there are many.
const INSIST_MAX: usize = 16;
/// Least time between two new versions of a report that is not urgent, among up to nine nodes; the more, the longer.
const VERSION_GAP: Duration = Duration::from_millis(500);
/// What a node learned within this time is sent to whoever may lack it, without waiting for a digest that shows it.
pub(super) const HOT: Duration = Duration::from_millis(1000);
/// Least time between two answers to one node.
const ANSWER_GAP: Duration = Duration::from_millis(20);
/// Least time between two bursts because of others: beats that rose again, accusations against this node.
const BURST_GAP: Duration = Duration::from_millis(20);

/// Which life of which node this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Me {
    /// Its number.
    pub node: NodeId,
    /// Which life of its disk.
    pub incarnation: u64,
    /// Which start of its process, from 1.
    pub boot: u64,
}

/// A node that this one talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acquaintance {
    /// Which life of its disk is meant; others are refused.
    pub incarnation: u64,
    /// Its keys.
    pub key: NodeKey,
}

/// What is counted, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams handed out, and their bytes.
    pub sent: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Datagrams taken.
    pub received: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Datagrams refused, by [`DatagramError::index`].
    pub refused: [u64; DatagramError::REASONS.len()],
    /// Signatures made.
    pub signed: u64,
    /// Signatures checked, good ones and bad ones.
    pub verified: u64,
    /// Reports and accusations that did not read or were not signed by whom they name.
    pub bad_documents: u64,
    /// Times that this node was not run when it was due.
    pub stalls: u64,
}

/// What one node says, as far as it is known here, and since when.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) report: Option<(SignedReport, Instant)>,
    pub(super) accusations: Option<(SignedAccusations, Instant)>,
}

impl Said {
    pub(super) fn versions(&self, life: Life) -> Versions {
        let report = self.report.as_ref().map(|(report, _)| report.content());
        let accusations = self.accusations.as_ref().map(|(accusations, _)| accusations.content());
        Versions {
            boot: life.boot,
            report: report.filter(|report| report.life() == life).map_or(0, |report| report.version),
            accusations: accusations.filter(|said| said.life == life).map_or(0, |said| said.version),
        }
    }
}

/// A report that is to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    roles: u8,
    release: String,
    load: Load,
    links: Vec<LinkReport>,
}

/// One node's part of the gossip. Pure: the time comes in, chance comes from the seed, datagrams go out as values.
pub struct Gossip {
    pub(super) me: NodeId,
    pub(super) life: Life,
    secret: NodeSecret,
    cluster: ClusterId,
    cluster_secret: DualKey,
    tag: u32,
    chance: u64,
    now: Instant,
    beat: u64,
    pub(super) own: Said,
    accusations_version: u64,
    wish: Option<Wish>,
    /// What everybody must have: own report and own accusations.
    insists_on: (u64, u64),
    pub(super) others: BTreeMap<NodeId, Correspondent>,
    pub(super) said: BTreeMap<NodeId, Said>,
    pub(super) detector: Detector,
    next_round: Instant,
    catches_up_until: Instant,
    hurried: u8,
    tells_all: bool,
    burst_at: Option<Instant>,
    answers: Vec<NodeId>,
    is_stirred: bool,
    has_changed: bool,
    fan_out: Option<usize>,
    pub(super) cursor: NodeId,
    counters: Counters,
    buffer: BytesMut,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { me, life, beat, detector, .. } = self;
        f.debug_struct("Gossip")
            .field("me", me)
            .field("life", life)
            .field("beat", beat)
            .field("detector", detector)
            .finish_non_exhaustive()
    }
}

impl Gossip {
    /// A node that knows nobody yet.
    ///
    /// * `cluster_secret`: what all nodes of the cluster have and nobody else; goes into every key of a pair.
    /// * `seed` decides whom it tells when, and nothing else.
    pub fn new(
        me: Me,
        secret: NodeSecret,
        cluster: ClusterId,
        cluster_secret: DualKey,
        seed: u64,
        now: Instant,
    ) -> Self {
        assert!(me.boot > 0, "boots count from 1");
        Self {
            me: me.node,
            life: Life { incarnation: me.incarnation, boot: me.boot },
            secret,
            cluster,
            cluster_secret,
            tag: datagram::cluster_tag(cluster),
            chance: mix(seed ^ u64::from(me.node.0).rotate_left(32) ^ me.boot),
            now,
            beat: 1,
            own: Said::default(),
            accusations_version: 0,
            wish: None,
            insists_on: (0, 0),
            others: BTreeMap::new(),
            said: BTreeMap::new(),
            detector: Detector::new(now),
            next_round: now,
            catches_up_until: now,
            hurried: HURRIED_ROUNDS,
            tells_all: false,
            burst_at: None,
            answers: Vec::new(),
            is_stirred: false,
            has_changed: false,
            fan_out: None,
            cursor: NodeId(0),
            counters: Counters::default(),
            buffer: BytesMut::with_capacity(datagram::DATAGRAM_BODY_BYTES_MAX),
        }
    }

    /// Who may be talked to: members and linked peers. Everybody else is forgotten, and what they send is dropped. Somebody with
    /// another disk or other keys than before is somebody new.
    ///
    /// * Cost: 50 us for each new one. This node itself may be among them and is passed over.
    pub fn know(&mut self, now: Instant, acquaintances: &BTreeMap<NodeId, Acquaintance>) {
        self.now = now;
        let is_known = |node: &NodeId, other: &Correspondent| {
            acquaintances
                .get(node)
                .is_some_and(|now| now.incarnation == other.incarnation && now.key == other.key)
        };
        let strangers: Vec<NodeId> = self
            .others
            .iter()
            .filter(|(node, other)| !is_known(node, other))
            .map(|(node, _)| *node)
            .collect();
        for node in strangers {
            self.others.remove(&node);
            self.said.remove(&node);
            self.detector.remove(node);
            self.others.values_mut().for_each(|other| other.forget(node));
            self.has_changed = true;
        }
        for (node, Acquaintance { incarnation, key }) in acquaintances {
            if *node == self.me || *node == NodeId(0) || self.others.contains_key(node) {
                continue;
            }
            // A key that agrees with nobody: nothing can be said to that node, so it stays a stranger.
            let Some(pair) = self.pair(*node, key) else { continue };
            self.others.insert(*node, Correspondent::new(*incarnation, *key, pair));
            self.said.insert(*node, Said::default());
            self.detector.add(now, *node, *incarnation);
            self.has_changed = true;
            self.hurried = self.hurried.max(1);
        }
    }

    /// The keys of a pair of nodes follow from this from now on. Cost: 50 us for each other node.
    pub fn set_secret(&mut self, secret: DualKey) {
        self.cluster_secret = secret;
        let pairs: Vec<(NodeId, Option<DualKey>)> =
            self.others.iter().map(|(node, other)| (*node, self.pair(*node, &other.key))).collect();
        for (node, pair) in pairs {
            let other = self.others.get_mut(&node).expect("listed just now");
            other.pair = pair.expect("its key agreed before, whatever the secret");
        }
    }

    fn pair(&self, node: NodeId, key: &NodeKey) -> Option<DualKey> {
        let of = |secret: &MacKey| self.secret.pair_key(key, self.cluster, secret, self.me, node);
        let also = self.cluster_secret.also.as_ref().and_then(of);
        Some(DualKey { current: of(&self.cluster_secret.current)?, also })
    }

    /// What this node says of itself from now on. The same again says nothing new. What is not urgent is gathered, up to two
    /// versions a second; what is urgent (a link went, draining) goes to everybody at once, and again in every round until they show that
    /// they have it.
    pub fn say(
        &mut self,
        now: Instant,
        roles: u8,
        release: &str,
        load: Load,
        mut links: Vec<LinkReport>,
        urgent: bool,
    ) {
        self.now = now;
        links.truncate(NODES_MAX);
        let wish = Wish { roles, release: cut_at(release, RELEASE_BYTES_MAX).to_owned(), load, links };
        let is_said = self.own.report.as_ref().is_some_and(|(report, _)| {
            let Report { roles, release, load, links, .. } = report.content();
            (*roles, release, *load, links) == (wish.roles, &wish.release, wish.load, &wish.links)
        });
        self.wish = (!is_said).then_some(wish);
        if urgent && !is_said {
            self.publish(now);
            self.insists_on.0 = self.own.versions(self.life).report;
            self.tells_all = true;
        } else {
            self.publish_if_due(now);
        }
    }

    fn publish_if_due(&mut self, now: Instant) {
        let share = (self.others.len() / ALL_UP_TO).max(1);
        let gap = VERSION_GAP * u32::try_from(share).unwrap_or(u32::MAX);
        if self.own.report.as_ref().is_none_or(|(_, at)| now.since(*at) >= gap) {
            self.publish(now);
        }
    }

    fn publish(&mut self, now: Instant) {
        let Some(Wish { roles, release, load, links }) = self.wish.take() else { return };
        let version = self.own.versions(self.life).report + 1;
        let Life { incarnation, boot } = self.life;
        let report = Report { node: self.me, incarnation, boot, version, roles, release, load, links };
        self.own.report = Some((SignedReport::new(report, &self.secret), now));
        self.counters.signed += 1;
        self.has_changed = true;
    }

    /// This node's own evidence that the process of `node` ended: its host refuses connections. Two such observers, or one and
    /// another that does not hear it, make it dead at once.
    pub fn gone(&mut self, now: Instant, node: NodeId) {
        self.now = now;
        self.detector.gone(node);
        self.is_stirred = true;
    }

    /// Takes what came in by the socket. Nothing is ever answered to what is refused.
    pub fn datagram(&mut self, now: Instant, bytes: &[u8]) -> Result<(), DatagramError> {
        let opened = self.open(bytes);
        let taken = opened.and_then(|(header, body)| self.take(now, header, body));
        match &taken {
            Ok(()) => {
                self.counters.received += 1;
                self.counters.received_bytes += bytes.len() as u64;
            }
            Err(error) => self.counters.refused[error.index()] += 1,
        }
        taken
    }

    fn open(&self, bytes: &[u8]) -> Result<(Header, Gossiped), DatagramError> {
        let unproven = Unproven::read(bytes, self.tag, self.me)?;
        let origin = unproven.origin();
        let other = self.others.get(&origin).ok_or(DatagramError::Stranger(origin))?;
        let (header, body) = unproven.prove(&other.pair)?;
        Ok((header, Gossiped::decode(Bytes::copy_from_slice(body))?))
    }

    /// Takes a datagram that is proven and read.
    pub(super) fn take(&mut self, now: Instant, header: Header, body: Gossiped) -> Result<(), DatagramError> {
        self.awake(now);
        let from = header.origin;
        let other = self.others.get_mut(&from).ok_or(DatagramError::Stranger(from))?;
        let known = self.detector.life(from).expect("whoever is talked to is judged too");
        if header.life.incarnation != other.incarnation || header.life.boot < known.boot {
            return Err(DatagramError::OtherLife);
        }
        // Whoever knows an earlier process of this node, or none, is told of this one. If that were left to it, two that both started
        // anew out of each other's sight would refuse each other for ever.
        let is_stale = header.to.incarnation == self.life.incarnation && header.to.boot < self.life.boot;
        let is_for_this = header.to == self.life;
        if header.to.boot != 0 && !is_stale && !is_for_this {
            return Err(DatagramError::OtherLife);
        }
        if header.life.boot > known.boot {
            (self.is_stirred, self.has_changed) = (true, true);
            self.detector.came_back(now, from, header.life.boot);
            other.begin_anew();
        }
        let is_newest = header.counter > other.window.highest();
        if !other.takes(now, header.counter, now < self.catches_up_until) {
            return Err(DatagramError::Replayed);
        }
        if !is_for_this {
            // Perhaps a recording. The answer names both lives; then it comes again and counts.
            self.answer(now, from);
            return Ok(());
        }
        other.echoed(now, &body);
        let mut is_risen = false;
        for entry in &body.entries {
            let versions =
                Versions { boot: entry.life.boot, report: entry.report, accusations: entry.accusations };
            if entry.node == self.me {
                if entry.life == self.life {
                    other.shows(now, self.me, versions);
                    let ahead = entry.beat.saturating_sub(self.beat);
                    if (1..=u64::from(u32::MAX)).contains(&ahead) {
                        self.beat = entry.beat + 1;
                    }
                }
                continue;
            }
            let Some(life) = self.detector.life(entry.node) else { continue };
            if entry.life.incarnation != life.incarnation {
                continue;
            }
            other.shows(now, entry.node, versions);
            let source = if entry.node == from { Source::Itself } else { Source::Another };
            if source == Source::Another || is_newest {
                is_risen |= self.detector.heard(now, entry.node, entry.life, entry.beat, source);
            }
        }
        for node in &body.wishes {
            other.lacks(*node);
        }
        for bytes in &body.reports {
            self.take_report(now, from, bytes);
        }
        for bytes in &body.accusations {
            self.take_accusations(now, from, bytes);
        }
        if is_risen {
            (self.is_stirred, self.has_changed) = (true, true);
            self.burst(now);
        }
        if self.is_wanted(now, from) || (self.fans_out() && self.wishes(from).next().is_some()) {
            self.answer(now, from);
        }
        Ok(())
    }

    fn take_report(&mut self, now: Instant, from: NodeId, bytes: &Bytes) {
        let taken = SignedReport::read(bytes).and_then(|read| {
            let (node, life, version) = read.claim();
            let Some(key) = self.believable(node, life, version, Kind::Report) else { return Ok(None) };
            self.counters.verified += 1;
            read.verify(&key).map(Some)
        });
        match taken {
            Ok(Some(report)) => {
                let (node, life, version) =
                    (report.content().node, report.content().life(), report.content().version);
                self.proven(now, from, node, life, version, Kind::Report);
                self.said.entry(node).or_default().report = Some((report, now));
                self.has_changed = true;
            }
            Ok(None) => {}
            Err(DocumentError::Malformed(_) | DocumentError::Forged) => self.counters.bad_documents += 1,
        }
    }

    fn take_accusations(&mut self, now: Instant, from: NodeId, bytes: &Bytes) {
        let taken = SignedAccusations::read(bytes).and_then(|read| {
            let (node, life, version) = read.claim();
            let Some(key) = self.believable(node, life, version, Kind::Accusations) else { return Ok(None) };
            self.counters.verified += 1;
            read.verify(&key).map(Some)
        });
        match taken {
            Ok(Some(said)) => {
                let Accusations { node, life, version, accused } = said.content();
                let (node, life, version) = (*node, *life, *version);
                self.detector.accuse(now, node, accused);
                self.refute(now, node, accused);
                self.proven(now, from, node, life, version, Kind::Accusations);
                self.said.entry(node).or_default().accusations = Some((said, now));
                self.is_stirred = true;
            }
            Ok(None) => {}
            Err(DocumentError::Malformed(_) | DocumentError::Forged) => self.counters.bad_documents += 1,
        }
    }

    /// The key to check a document with; none where it is nothing new, or of nobody who is known.
    fn believable(&self, node: NodeId, life: Life, version: u64, kind: Kind) -> Option<NodeKey> {
        let other = self.others.get(&node)?;
        let known = self.detector.life(node)?;
        let has = self.said.get(&node)?.versions(known).of(kind);
        let is_new = life.boot > known.boot || (life.boot == known.boot && version > has);
        (life.incarnation == other.incarnation && is_new).then_some(other.key)
    }

    /// A document proves the life that it names, and that whoever sent it has it.
    fn proven(&mut self, now: Instant, from: NodeId, node: NodeId, life: Life, version: u64, kind: Kind) {
        if self.detector.life(node).is_some_and(|known| known.boot < life.boot) {
            (self.is_stirred, self.has_changed) = (true, true);
            self.detector.came_back(now, node, life.boot);
            if let Some(other) = self.others.get_mut(&node) {
                other.begin_anew();
            }
        }
        if let Some(other) = self.others.get_mut(&from) {
            other.has_at_least(node, life.boot, version, kind);
        }
    }

    /// Whoever is accused says at once that it lives.
    fn refute(&mut self, now: Instant, accuser: NodeId, accused: &[Accusation]) {
        let against_me = |said: &&Accusation| said.node == self.me && said.life == self.life;
        let Some(accusation) = accused.iter().find(against_me) else { return };
        let highest = self.beat.max(accusation.beat.min(self.beat.saturating_add(u64::from(u32::MAX))));
        self.beat = highest + REFUTING;
        self.burst(now);
        self.answer(now, accuser);
    }

    /// Datagrams that are due now, each for one node. To be called when [`Gossip::next_wake`] is reached, and after whatever came in.
    pub fn poll(&mut self, now: Instant, out: &mut Vec<(NodeId, Bytes)>) {
        for (to, is_answer) in self.turn(now) {
            let Some((header, body)) = self.compose(now, to, is_answer) else { continue };
            self.buffer.clear();
            body.encode(&mut self.buffer);
            let pair = &self.others[&to].pair;
            let bytes = datagram::seal(self.tag, &header, &self.buffer, &pair.current);
            self.counters.sent += 1;
            self.counters.sent_bytes += bytes.len() as u64;
            out.push((to, bytes));
        }
    }

    /// Notices what time it is. Who comes late was stalled, and what it missed says nothing about others.
    fn awake(&mut self, now: Instant) {
        self.now = now;
        if now.since(self.next_round) >= STALL {
            self.counters.stalls += 1;
            self.catches_up_until = now + CATCHING_UP;
            self.detector.stalled(now);
            self.beat += REFUTING;
            self.hurried = HURRIED_ROUNDS;
            self.next_round = now;
            self.is_stirred = true;
        }
    }

    /// What there is to be done at this time; returns whom to tell, and whether that is an answer.
    pub(super) fn turn(&mut self, now: Instant) -> Vec<(NodeId, bool)> {
        self.awake(now);
        let is_round = now >= self.next_round;
        if is_round {
            self.beat += 1;
            self.others.values_mut().for_each(|other| other.look_at_losses(now));
            // With a tick of the node, so that a round does not wake anybody by itself. Nodes do not fall into step: they
            // have different ticks.
            self.next_round =
                if self.hurried > 0 { now + HURRIED_ROUND } else { tick_after(self.me, now + ROUND / 2) };
            self.publish_if_due(now);
        }
        if is_round || self.is_stirred || now >= self.detector.deadline() {
            self.is_stirred = false;
            self.has_changed |= self.detector.judge(now);
            self.accuse(now);
        }
        let mut due = Vec::new();
        let is_hurried = self.hurried > 0;
        self.hurried = self.hurried.saturating_sub(is_round.into());
        if self.tells_all || (is_round && (is_hurried || !self.fans_out())) {
            due.extend(self.others.keys());
        } else if is_round {
            self.pick(&mut due);
        }
        self.tells_all = false;
        let answers = std::mem::take(&mut self.answers);
        due.retain(|node| !answers.contains(node));
        let due = due.into_iter().map(|node| (node, false));
        due.chain(answers.into_iter().map(|node| (node, true))).collect()
    }

    /// Signs what this node accuses now, if that changed.
    fn accuse(&mut self, now: Instant) {
        let accused = self.detector.accusations();
        let said = self.own.accusations.as_ref().map_or(&[][..], |(said, _)| &said.content().accused);
        if said == accused {
            return;
        }
        self.accusations_version += 1;
        let accusations =
            Accusations { node: self.me, life: self.life, version: self.accusations_version, accused };
        self.own.accusations = Some((SignedAccusations::new(accusations, &self.secret), now));
        self.counters.signed += 1;
        self.insists_on.1 = self.accusations_version;
        self.tells_all = true;
    }

    pub(super) fn fans_out(&self) -> bool {
        self.fan_out.is_some() || self.others.len() > ALL_UP_TO
    }

    /// Some at random, one that is not heard, and those who lack something urgent.
    fn pick(&mut self, due: &mut Vec<NodeId>) {
        let mut rest: Vec<NodeId> = self.others.keys().copied().collect();
        for _ in 0..self.fan_out.unwrap_or(FAN_OUT).min(rest.len()) {
            let at = self.draw(rest.len());
            due.push(rest.swap_remove(at));
        }
        let unheard: Vec<NodeId> =
            rest.iter().copied().filter(|node| self.detector.verdict(*node) != Verdict::Alive).collect();
        if !unheard.is_empty() {
            due.push(unheard[self.draw(unheard.len())]);
        }
        let insists_on = self.insists_on;
        let lacking = rest.iter().filter(|node| {
            let has = self.others[node].versions(self.me).unwrap_or_default();
            insists_on != (0, 0) && (has.report < insists_on.0 || has.accusations < insists_on.1)
        });
        let lacking: Vec<NodeId> =
            lacking.copied().filter(|node| !due.contains(node)).take(INSIST_MAX).collect();
        due.extend(lacking);
    }

    /// Something that others wait for: everybody is told at once, twice; among many there is a round at once, and they pass it on.
    fn burst(&mut self, now: Instant) {
        if self.burst_at.is_some_and(|at| now.since(at) < BURST_GAP) {
            return;
        }
        self.burst_at = Some(now);
        if self.fans_out() {
            self.next_round = self.next_round.min(now);
        } else {
            self.tells_all = true;
            self.hurried = self.hurried.max(1);
        }
    }

    fn answer(&mut self, now: Instant, to: NodeId) {
        let Some(other) = self.others.get_mut(&to) else { return };
        if other.answered_at.is_none_or(|at| now.since(at) >= ANSWER_GAP) {
            other.answered_at = Some(now);
            self.answers.push(to);
        }
    }

    /// When [`Gossip::poll`] is due again; not later than the time last heard of if something is due already.
    pub fn next_wake(&self) -> Instant {
        if self.tells_all || self.is_stirred || !self.answers.is_empty() {
            return self.now;
        }
        self.next_round.min(self.detector.deadline())
    }

    /// The latest report of `node` that is proven; this node's own for itself.
    pub fn report(&self, node: NodeId) -> Option<&Report> {
        let said = if node == self.me { &self.own } else { self.said.get(&node)? };
        said.report.as_ref().map(|(report, _)| report.content())
    }

    /// All of them, this node's own first.
    pub fn reports(&self) -> impl Iterator<Item = &Report> {
        let all = std::iter::once(&self.own).chain(self.said.values());
        all.filter_map(|said| said.report.as_ref().map(|(report, _)| report.content()))
    }

    /// When the beat of `node` last rose here, whoever passed it on. For this node itself: now.
    pub fn heard_at(&self, node: NodeId) -> Option<Instant> {
        if node == self.me { Some(self.now) } else { self.detector.heard_at(node) }
    }

    /// Whether `node` seems alive. This node itself always does; of strangers nothing is known, which makes them suspect.
    pub fn verdict(&self, node: NodeId) -> Verdict {
        if node == self.me { Verdict::Alive } else { self.detector.verdict(node) }
    }

    /// Whether a report or a verdict changed, or somebody came or went, since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// Of the datagrams from `from`, how many in 1,000 get lost, without noise: 1,000 once none came for twenty seconds, 0 if it is not known.
    pub fn loss_permille(&self, from: NodeId) -> u16 {
        self.others.get(&from).map_or(0, Correspondent::loss_permille)
    }

    /// Of the datagrams to `to`, how many in 1,000 it misses, by its own account.
    pub fn loss_towards_permille(&self, to: NodeId) -> u16 {
        self.others.get(&to).map_or(0, |other| other.their_loss_permille)
    }

    /// Smoothed time there and back of datagrams, without what the other end takes to answer. `None`: not measured yet.
    pub fn round_trip(&self, node: NodeId) -> Option<Duration> {
        self.others.get(&node)?.round_trip
    }

    /// Whether this node has reason to distrust itself: it was stalled lately, or hears hardly anybody.
    pub fn distrusts_itself(&self) -> bool {
        self.detector.factor() > 1
    }

    /// What was counted since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// This node's own beat.
    pub fn beat(&self) -> u64 {
        self.beat
    }

    /// Tells only so many others in a round, as if there were many: to measure how news spreads.
    pub fn limit_fan_out(&mut self, peers: usize) {
        self.fan_out = Some(peers);
    }

    /// A number below `count`, by chance; 0 if `count` is 0.
    fn draw(&mut self, count: usize) -> usize {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((u128::from(mix(self.chance)) * count as u128) >> 64) as usize
    }
}

/// Spreads the bits of `x` (splitmix64).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
