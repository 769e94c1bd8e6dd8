//! Who seems alive, suspect or dead, from beats that rise or do not.
//!
//! Every node counts a beat, ten a second, and beats travel by whatever way gossip finds; so silence means that *nobody* who talks to
//! this node heard the other. How long a silence is too long follows from how regularly the beats of that node came before.
//! Silence alone makes a suspect. Dead takes two observers, and what an observer says is signed by it.
//! A node that was stalled itself, or hears hardly anybody, distrusts itself before it suspects others.
//! Absent here: datagrams, signatures, measurements of links.
//!
//! Sources: "The phi accrual failure detector" (SRDS 2004) for thresholds from the gaps seen, here as mean and deviation, the way
//! TCP does it; "Lifeguard" (DSN 2018) for the observer that suspects itself first.

use std::{collections::BTreeMap, time::Duration};

use swarmmq_protocol::{datagram::Life, id::NodeId, time::Instant};

use super::report::{ACCUSED_MAX, Accusation};

/// Silence beyond the usual gap that means nothing: pauses of 300 ms, with what it takes to hear of their end.
const PAUSE: Duration = Duration::from_millis(400);
/// Silence of a suspect, beyond what made it one, until two observers make it dead. With [`PAUSE`] and a gap it outlasts a stall of one second.
const RESPITE: Duration = Duration::from_millis(750);
/// Usual gap before any was seen, and the least that is believed.
const GAP_MIN: Duration = Duration::from_millis(100);
/// Longest gap that counts: a single long silence says little about the next one.
const GAP_MAX: Duration = Duration::from_millis(500);
/// How many deviations above the mean a gap may last; among many nodes, whose beats come by chance, twice as many.
const DEVIATIONS: u32 = 4;
const MANY: usize = 9;
/// Silence allowed to a node that was never heard: it may be starting, or this one is.
const NEVER_HEARD: Duration = Duration::from_secs(3);
/// How long this node takes the word of two others when it has no silence of its own to go by.
const WORD_OF_OTHERS: Duration = Duration::from_millis(1000);
/// Time for which a node that had reason to distrust itself goes on doing so.
const DISTRUST: Duration = Duration::from_secs(5);
/// Factor on all patience after a stall, doubled with each further one, and its bound.
const STALLED_FACTOR: u32 = 2;
const STALLED_FACTOR_MAX: u32 = 8;
/// Factor on all patience while most others seem silent.
const ISOLATED_FACTOR: u32 = 4;
/// Beats above the one in an accusation that do not refute it yet: the last ones before the silence, on roundabout ways.
const SILENT_SLACK: u64 = 2;
const GONE_SLACK: u64 = 3;
/// How far an accuser may be ahead of this node's own knowledge.
const LEAD_MAX: u64 = 50;
/// How far a beat passed on by others may jump at once, and how fast it may rise: twice as fast as honest ones do, and bursts.
const JUMP_MAX: u64 = 64;
const RISE_MIN: Duration = Duration::from_millis(25);

/// By how much an accused node raises its beat, so that no accusation stands.
pub const REFUTING: u64 = GONE_SLACK + 1;

/// What a node believes of another. A hint: nothing is decided about messages or members by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Heard lately, by whatever way.
    Alive,
    /// Not heard for longer than usual. For a while, or for as long as nobody confirms it.
    Suspect,
    /// At least two observers agree. Until it is heard again: who is gone for good is for the members to say.
    Dead,
}

/// Where a beat was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the newest datagram of that node itself: right, whatever others said.
    Itself,
    /// In what another node passed on.
    Another,
}

/// One node's judgement of all others.
#[derive(Debug)]
pub struct Detector {
    subjects: BTreeMap<NodeId, Subject>,
    /// What others accuse, and since when it stands.
    said: BTreeMap<NodeId, Vec<(Accusation, Instant)>>,
    factor: u32,
    distrusts_until: Instant,
    deadline: Instant,
}

#[derive(Debug)]
struct Subject {
    life: Life,
    beat: u64,
    /// Whether `beat` is known at all in this life.
    has_beat: bool,
    moved_at: Instant,
    heard_at: Option<Instant>,
    /// Since when silence counts.
    quiet_since: Instant,
    mean: Duration,
    deviation: Duration,
    /// The beat at which its host refused this node.
    gone: Option<u64>,
    /// The beat at which it was called dead, or the first one known since: what brings it back is measured by that one.
    dead_at: u64,
    /// This node accuses it.
    is_accused: bool,
    verdict: Verdict,
}

impl Subject {
    fn new(now: Instant, incarnation: u64) -> Self {
        Self {
            life: Life { incarnation, boot: 0 },
            beat: 0,
            has_beat: false,
            moved_at: now,
            heard_at: None,
            quiet_since: now,
            mean: GAP_MIN,
            deviation: GAP_MIN / 2,
            gone: None,
            dead_at: 0,
            is_accused: false,
            verdict: Verdict::Alive,
        }
    }

    fn suspect_after(&self, deviations: u32) -> Duration {
        if self.heard_at.is_none() {
            return NEVER_HEARD;
        }
        PAUSE + self.mean.max(GAP_MIN) + self.deviation * deviations
    }

    fn sample(&mut self, gap: Duration) {
        let gap = gap.min(GAP_MAX);
        let off = gap.abs_diff(self.mean);
        self.mean = (self.mean * 15 + gap) / 16;
        self.deviation = (self.deviation * 15 + off) / 16;
    }

    /// Whether `accusation` is about this life and was not refuted by a later beat.
    fn stands(&self, accusation: &Accusation) -> bool {
        let slack = if accusation.is_gone { GONE_SLACK } else { SILENT_SLACK };
        accusation.life == self.life
            && self.beat <= accusation.beat.saturating_add(slack)
            && accusation.beat <= self.beat.saturating_add(LEAD_MAX)
    }

    fn hear(&mut self, now: Instant) {
        if let Some(before) = self.heard_at {
            self.sample(now.since(before));
        }
        self.heard_at = Some(now);
        self.quiet_since = now;
        self.gone = None;
        self.is_accused = false;
        self.verdict = Verdict::Alive;
    }
}

impl Detector {
    /// Nobody is known yet.
    pub fn new(now: Instant) -> Self {
        Self {
            subjects: BTreeMap::new(),
            said: BTreeMap::new(),
            factor: 1,
            distrusts_until: now,
            deadline: Instant(u64::MAX),
        }
    }

    /// From now on `node` counts, in this life of its disk; what was known of another one is forgotten.
    pub fn add(&mut self, now: Instant, node: NodeId, incarnation: u64) {
        self.subjects.insert(node, Subject::new(now, incarnation));
        self.said.remove(&node);
    }

    /// `node` does not count any more, nor does what it said.
    pub fn remove(&mut self, node: NodeId) {
        self.subjects.remove(&node);
        self.said.remove(&node);
    }

    /// The latest life of `node` that is proven; boot 0 where none is.
    pub fn life(&self, node: NodeId) -> Option<Life> {
        self.subjects.get(&node).map(|subject| subject.life)
    }

    /// Its highest beat in that life.
    pub fn beat(&self, node: NodeId) -> u64 {
        self.subjects.get(&node).map_or(0, |subject| subject.beat)
    }

    /// When its beat last rose here. `None`: never, or it is not known.
    pub fn heard_at(&self, node: NodeId) -> Option<Instant> {
        self.subjects.get(&node)?.heard_at
    }

    /// What this node believes of `node`. Of a node that it does not know: that it is suspect.
    pub fn verdict(&self, node: NodeId) -> Verdict {
        self.subjects.get(&node).map_or(Verdict::Suspect, |subject| subject.verdict)
    }

    /// A later life of `node` is proven. Where an earlier one was known, the node came back; else this may be old news.
    pub fn came_back(&mut self, now: Instant, node: NodeId, boot: u64) {
        let Some(subject) = self.subjects.get_mut(&node).filter(|subject| subject.life.boot < boot) else {
            return;
        };
        let (is_news, heard_at) = (subject.life.boot > 0, subject.heard_at);
        let mut fresh = Subject::new(now, subject.life.incarnation);
        (fresh.mean, fresh.deviation) = (subject.mean, subject.deviation);
        fresh.quiet_since = subject.quiet_since;
        fresh.verdict = subject.verdict;
        fresh.life.boot = boot;
        *subject = fresh;
        if is_news {
            subject.hear(now);
        } else {
            subject.heard_at = heard_at;
        }
    }

    /// `beat` of `node` was read. Returns whether it rose while somebody thought ill of that node: others want to know.
    ///
    /// A lying relay can keep a dead node looking alive, for as long as it lies; beats carry no signature. It cannot make a living one look
    /// dead: a beat from the node itself counts in any case, and what others pass on may not run away from it.
    pub fn heard(&mut self, now: Instant, node: NodeId, life: Life, beat: u64, source: Source) -> bool {
        let Some(subject) = self.subjects.get_mut(&node).filter(|subject| subject.life == life) else {
            return false;
        };
        if source == Source::Another {
            // Who passes on that it knows no beat says nothing.
            if beat == 0 {
                return false;
            }
            if !subject.has_beat {
                // The first one may be as old as anything: it is what later ones are measured by.
                (subject.beat, subject.has_beat, subject.moved_at) = (beat, true, now);
                subject.dead_at = beat;
                return false;
            }
            let paces = now.since(subject.moved_at).as_nanos() / RISE_MIN.as_nanos();
            let highest = subject.beat.saturating_add(JUMP_MAX).saturating_add(paces as u64);
            if beat <= subject.beat || beat > highest {
                return false;
            }
        }
        let is_late = match (subject.gone, subject.verdict) {
            (Some(gone), _) => beat <= gone.saturating_add(GONE_SLACK),
            (None, Verdict::Dead) => {
                source == Source::Another && beat <= subject.dead_at.saturating_add(SILENT_SLACK)
            }
            _ => false,
        };
        let was_ill = subject.verdict != Verdict::Alive || subject.is_accused;
        if is_late {
            subject.beat = subject.beat.max(beat);
            return false;
        }
        (subject.beat, subject.has_beat, subject.moved_at) = (beat, true, now);
        subject.hear(now);
        was_ill || self.said.values().flatten().any(|(accusation, _)| accusation.node == node)
    }

    /// This node's own evidence: `node`'s host refuses connections, so its process ended.
    pub fn gone(&mut self, node: NodeId) {
        if let Some(subject) = self.subjects.get_mut(&node) {
            subject.gone.get_or_insert(subject.beat);
        }
    }

    /// What `accuser` says now, all of it; its signature was checked.
    pub fn accuse(&mut self, now: Instant, accuser: NodeId, accused: &[Accusation]) {
        let before = self.said.remove(&accuser).unwrap_or_default();
        let since = |accusation: &Accusation| {
            let same = |(old, _): &&(Accusation, Instant)| {
                old.node == accusation.node
                    && old.life == accusation.life
                    && accusation.beat.abs_diff(old.beat) <= SILENT_SLACK
            };
            before.iter().find(same).map_or(now, |(_, since)| *since)
        };
        let said: Vec<_> = accused.iter().map(|accusation| (*accusation, since(accusation))).collect();
        if !said.is_empty() {
            self.said.insert(accuser, said);
        }
    }

    /// This node was not run for a while. What it did not hear meanwhile says nothing about others: everybody's silence begins anew,
    /// and for some time it is more patient.
    pub fn stalled(&mut self, now: Instant) {
        for subject in self.subjects.values_mut().filter(|subject| subject.verdict != Verdict::Dead) {
            subject.quiet_since = now;
        }
        let factor = if now < self.distrusts_until { self.factor * 2 } else { STALLED_FACTOR };
        self.distrust(now, factor.min(STALLED_FACTOR_MAX));
    }

    fn deviations(&self) -> u32 {
        if self.subjects.len() < MANY { DEVIATIONS } else { 2 * DEVIATIONS }
    }

    fn distrust(&mut self, now: Instant, factor: u32) {
        self.factor = factor;
        self.distrusts_until = now + DISTRUST;
    }

    /// Forms all verdicts anew. Returns whether one changed. Cost: O(nodes), and O(nodes x accusations) while there are any.
    pub fn judge(&mut self, now: Instant) -> bool {
        if now >= self.distrusts_until {
            self.factor = 1;
        }
        if self.is_isolated(now) {
            self.distrust(now, self.factor.max(ISOLATED_FACTOR));
        }
        let factor = self.factor;
        self.deadline = if factor > 1 { self.distrusts_until } else { Instant(u64::MAX) };
        let living = self.subjects.values().filter(|subject| subject.verdict != Verdict::Dead).count();
        let dead: Vec<NodeId> =
            self.said.keys().copied().filter(|by| self.verdict(*by) == Verdict::Dead).collect();
        let deviations = self.deviations();
        let mut changed = false;
        for (node, subject) in &mut self.subjects {
            let silence = now.since(subject.quiet_since);
            let suspect_after = subject.suspect_after(deviations) * factor;
            let is_silent = silence >= suspect_after;
            if subject.verdict == Verdict::Dead {
                subject.is_accused |= is_silent || subject.gone.is_some();
                continue;
            }
            subject.is_accused = is_silent || subject.gone.is_some();
            let (mut others, mut gone, mut lasting) = (0, usize::from(subject.gone.is_some()), 0);
            for (accuser, accusations) in &self.said {
                if accuser == node || dead.contains(accuser) {
                    continue;
                }
                let standing =
                    accusations.iter().find(|(said, _)| said.node == *node && subject.stands(said));
                let Some((said, since)) = standing else { continue };
                others += 1;
                gone += usize::from(said.is_gone);
                if now.since(*since) >= WORD_OF_OTHERS {
                    lasting += 1;
                } else {
                    self.deadline = self.deadline.min(*since + WORD_OF_OTHERS);
                }
            }
            // Whoever else could confirm it: not itself, not who is dead.
            let is_alone = living <= 1;
            let dead_after = suspect_after + RESPITE * factor * if is_alone { 2 } else { 1 };
            let observers = others + usize::from(subject.is_accused);
            let is_dead = if is_alone {
                silence >= if subject.gone.is_some() { suspect_after } else { dead_after }
            } else {
                (observers >= 2 && (gone >= 1 || silence >= dead_after)) || lasting >= 2
            };
            let verdict = match is_dead {
                true => Verdict::Dead,
                false if subject.is_accused || others >= 2 => Verdict::Suspect,
                false => Verdict::Alive,
            };
            for at in [suspect_after, dead_after].map(|after| subject.quiet_since + after) {
                if at > now {
                    self.deadline = self.deadline.min(at);
                }
            }
            changed |= verdict != subject.verdict;
            subject.verdict = verdict;
            if verdict == Verdict::Dead {
                subject.dead_at = subject.beat;
            }
        }
        changed
    }

    /// Whether more than half of those who could be heard are silent at once: then it is more likely this node that is cut off. Noticed
    /// before the first of them is suspect; of two, only when both are, because one is easily missed for a moment when the other crashed.
    /// Of one other node nothing can be told.
    fn is_isolated(&self, now: Instant) -> bool {
        let counts = |subject: &&Subject| subject.verdict != Verdict::Dead && subject.gone.is_none();
        let all = self.subjects.values().filter(counts).count();
        let tenths = if all > 2 { 7 } else { 10 };
        let is_silent = |subject: &&Subject| {
            now.since(subject.quiet_since) >= subject.suspect_after(self.deviations()) * tenths / 10
        };
        let silent = self.subjects.values().filter(counts).filter(is_silent).count();
        all >= 2 && silent * 2 > all
    }

    /// Whom this node accuses, by the last judgement.
    pub fn accusations(&self) -> Vec<Accusation> {
        let accused = self.subjects.iter().filter(|(_, subject)| subject.is_accused);
        let accusations = accused.map(|(node, subject)| Accusation {
            node: *node,
            life: subject.life,
            beat: subject.gone.unwrap_or(subject.beat),
            is_gone: subject.gone.is_some(),
        });
        accusations.take(ACCUSED_MAX).collect()
    }

    /// When a verdict can change though nothing is heard.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Factor on all patience; above 1 this node distrusts itself.
    pub fn factor(&self) -> u32 {
        self.factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: NodeId = NodeId(9);
    const LIFE: Life = Life { incarnation: 1, boot: 1 };

    const fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    /// Three others besides X, all of them heard until 1.0 s.
    fn detector() -> Detector {
        let mut detector = Detector::new(at(0));
        for node in [NodeId(1), NodeId(2), NodeId(3), X] {
            detector.add(at(0), node, 1);
            detector.came_back(at(0), node, 1);
        }
        for beat in 1..=10 {
            everybody_but(&mut detector, NodeId(0), beat * 100);
        }
        detector
    }

    fn everybody_but(detector: &mut Detector, silent: NodeId, millis: u64) {
        for node in [NodeId(1), NodeId(2), NodeId(3), X] {
            if node != silent {
                detector.heard(at(millis), node, LIFE, millis / 100, Source::Itself);
            }
        }
        detector.judge(at(millis));
    }

    /// X is silent from 1.0 s until then; the others are heard.
    fn silent_until(detector: &mut Detector, millis: u64) {
        for at in 11..=millis / 100 {
            everybody_but(detector, X, at * 100);
        }
    }

    fn accusation(beat: u64, is_gone: bool) -> Accusation {
        Accusation { node: X, life: LIFE, beat, is_gone }
    }

    #[test]
    fn silence_makes_a_suspect_and_only_a_second_observer_makes_it_dead() {
        let mut detector = detector();
        silent_until(&mut detector, 1_400);
        assert_eq!((detector.verdict(X), detector.accusations()), (Verdict::Alive, vec![]));
        silent_until(&mut detector, 1_800);
        assert_eq!(
            (detector.verdict(X), detector.accusations()),
            (Verdict::Suspect, vec![accusation(10, false)])
        );
        silent_until(&mut detector, 20_000);
        assert_eq!(detector.verdict(X), Verdict::Suspect);
        detector.accuse(at(20_000), NodeId(1), &[accusation(10, false)]);
        assert!(detector.judge(at(20_000)));
        assert_eq!(detector.verdict(X), Verdict::Dead);
        assert!(detector.heard(at(20_100), X, LIFE, 13, Source::Another));
        assert_eq!((detector.verdict(X), detector.accusations()), (Verdict::Alive, vec![]));
    }

    #[test]
    fn an_end_that_two_saw_or_one_and_another_misses_it_is_dead_at_once() {
        let mut two = detector();
        two.gone(X);
        two.judge(at(1_010));
        assert_eq!(two.verdict(X), Verdict::Suspect);
        two.accuse(at(1_010), NodeId(1), &[accusation(11, true)]);
        two.judge(at(1_010));
        assert_eq!(two.verdict(X), Verdict::Dead);
        let mut by_hearsay = detector();
        by_hearsay.accuse(at(1_010), NodeId(1), &[accusation(10, true)]);
        by_hearsay.judge(at(1_010));
        assert_eq!(by_hearsay.verdict(X), Verdict::Alive, "one liar");
        by_hearsay.accuse(at(1_020), NodeId(2), &[accusation(10, false)]);
        by_hearsay.judge(at(1_020));
        assert_eq!(by_hearsay.verdict(X), Verdict::Dead);
    }

    #[test]
    fn the_last_beats_of_a_process_that_ended_do_not_bring_it_back_and_later_ones_do() {
        let mut detector = detector();
        detector.gone(X);
        detector.accuse(at(1_010), NodeId(1), &[accusation(10, true)]);
        detector.judge(at(1_010));
        assert!(!detector.heard(at(1_015), X, LIFE, 11, Source::Another));
        assert_eq!(detector.verdict(X), Verdict::Dead);
        assert!(detector.heard(at(1_500), X, LIFE, 14, Source::Another));
        assert_eq!(detector.verdict(X), Verdict::Alive);
        detector.judge(at(1_500));
        assert_eq!(detector.verdict(X), Verdict::Alive, "refuted");
    }

    /// Beats that came one by one were each taken for the last of the node that had died, and raised what the next one was measured
    /// by: who had been restarted while a link was cut called a living node dead until that one refuted it.
    #[test]
    fn beats_that_come_one_by_one_bring_a_node_back() {
        let mut detector = detector();
        silent_until(&mut detector, 2_500);
        detector.accuse(at(2_500), NodeId(1), &[accusation(10, false)]);
        detector.judge(at(2_500));
        assert_eq!(detector.verdict(X), Verdict::Dead);
        for beat in 11..=12 {
            detector.heard(at(2_000 + beat * 100), X, LIFE, beat, Source::Another);
            assert_eq!(detector.verdict(X), Verdict::Dead, "perhaps its last ones");
        }
        assert!(detector.heard(at(3_300), X, LIFE, 13, Source::Another));
        assert_eq!(detector.verdict(X), Verdict::Alive);
        // The same where the first beat that is known is read after the verdict.
        let mut fresh = Detector::new(at(0));
        for node in [NodeId(1), NodeId(2), X] {
            fresh.add(at(0), node, 1);
        }
        for millis in (100..=6_000).step_by(100) {
            for node in [NodeId(1), NodeId(2)] {
                fresh.came_back(at(millis), node, 1);
                fresh.heard(at(millis), node, LIFE, millis / 100, Source::Itself);
            }
            let accused = Accusation { life: Life { incarnation: 1, boot: 0 }, ..accusation(0, false) };
            fresh.accuse(at(millis), NodeId(1), &[accused]);
            fresh.judge(at(millis));
        }
        assert_eq!(fresh.verdict(X), Verdict::Dead, "never heard");
        fresh.came_back(at(6_000), X, 1);
        for beat in 500..=503 {
            fresh.heard(at(6_000 + (beat - 499) * 100), X, LIFE, beat, Source::Another);
        }
        assert_eq!(fresh.verdict(X), Verdict::Alive);
    }

    /// Nodes that had just started themselves passed on beat 0 of one that was cut off; measured by that, its real beat ran away, and a
    /// living node was called dead for ten seconds.
    #[test]
    fn that_another_knows_no_beat_is_no_beat() {
        let mut detector = detector();
        detector.add(at(1_000), X, 1);
        detector.came_back(at(1_000), X, 1);
        assert!(!detector.heard(at(1_100), X, LIFE, 0, Source::Another));
        assert!(!detector.heard(at(1_200), X, LIFE, 478, Source::Another), "the first one");
        detector.heard(at(1_300), X, LIFE, 479, Source::Another);
        assert_eq!((detector.beat(X), detector.heard_at(X)), (479, Some(at(1_300))));
    }

    #[test]
    fn a_later_boot_is_a_return() {
        let mut detector = detector();
        silent_until(&mut detector, 3_000);
        detector.accuse(at(3_000), NodeId(1), &[accusation(10, false)]);
        detector.judge(at(3_000));
        assert_eq!(detector.verdict(X), Verdict::Dead);
        detector.came_back(at(3_000), X, 2);
        detector.judge(at(3_000));
        assert_eq!((detector.verdict(X), detector.beat(X)), (Verdict::Alive, 0));
        assert!(!detector.heard(at(3_100), X, LIFE, 99, Source::Itself), "of the life before");
    }

    #[test]
    fn what_others_pass_on_may_not_run_away() {
        let mut detector = detector();
        assert!(!detector.heard(at(1_000), X, LIFE, 1 << 40, Source::Another));
        assert_eq!(detector.beat(X), 10);
        detector.heard(at(1_000), X, LIFE, 70, Source::Another);
        assert_eq!(detector.beat(X), 70);
        detector.heard(at(1_100), X, LIFE, 11, Source::Itself);
        assert_eq!((detector.beat(X), detector.heard_at(X)), (11, Some(at(1_100))), "its own word counts");
    }

    #[test]
    fn the_first_beat_that_is_heard_of_a_node_says_nothing_of_today() {
        let mut detector = Detector::new(at(0));
        detector.add(at(0), X, 1);
        detector.came_back(at(10), X, 1);
        detector.heard(at(20), X, LIFE, 500, Source::Another);
        assert_eq!((detector.beat(X), detector.heard_at(X)), (500, None));
        detector.heard(at(30), X, LIFE, 501, Source::Another);
        assert_eq!(detector.heard_at(X), Some(at(30)));
    }

    #[test]
    fn two_others_are_believed_after_a_second_by_who_was_stalled() {
        let mut detector = detector();
        for accuser in [NodeId(1), NodeId(2)] {
            detector.accuse(at(1_000), accuser, &[accusation(10, false)]);
        }
        detector.stalled(at(1_900));
        detector.judge(at(1_900));
        assert_eq!((detector.verdict(X), detector.factor()), (Verdict::Suspect, 2));
        assert_eq!(detector.deadline(), at(2_000));
        everybody_but(&mut detector, X, 2_000);
        assert_eq!(detector.verdict(X), Verdict::Dead);
        assert_eq!(detector.accusations(), []);
    }

    #[test]
    fn who_hears_hardly_anybody_takes_its_accusations_back() {
        let mut detector = detector();
        silent_until(&mut detector, 1_800);
        assert_eq!(detector.accusations().len(), 1);
        for millis in (1_900..3_000).step_by(100) {
            detector.heard(at(millis), NodeId(1), LIFE, millis / 100, Source::Itself);
            detector.judge(at(millis));
        }
        assert_eq!((detector.factor(), detector.accusations()), (ISOLATED_FACTOR, vec![]));
    }

    #[test]
    fn lossy_ways_make_patient() {
        let mut steady = Subject::new(at(0), 1);
        let mut lossy = Subject::new(at(0), 1);
        for n in 0..200 {
            steady.sample(Duration::from_millis(98 + n % 5));
            lossy.sample(Duration::from_millis(if n % 3 == 0 { 200 } else { 100 }));
        }
        steady.heard_at = Some(at(0));
        lossy.heard_at = Some(at(0));
        assert!(steady.suspect_after(4) < Duration::from_millis(520));
        assert!(lossy.suspect_after(4) > Duration::from_millis(650));
    }
}
