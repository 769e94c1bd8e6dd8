//! A producer and a shard in miniature, with connections between them that lose frames and answers, or deliver them long
//! after they broke: whatever happens, each message is stored at most once, under its own sequence, what the program is told
//! is true, and nothing goes two ways at a time.

use std::collections::{BTreeSet, btree_map::Entry};

use proptest::prelude::*;

use super::*;

/// How many messages ended how.
type Fate = (u16, Outcome, Option<Code>);

/// How the shard takes the next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// Refuses without looking, for now.
    Busy,
    /// Refuses without looking, for good; also copies of what it has stored.
    Forbids,
    /// Stores, and loses its log before it can tell.
    Forgets,
}

/// What a shard remembers of one producer; the rules are those of the engine's `dedup.rs`.
#[derive(Default)]
struct Shard {
    open: bool,
    last: u64,
    stored: BTreeSet<u64>,
    skipped: BTreeSet<u64>,
}

impl Shard {
    fn take(&mut self, frame: &Out, mood: Mood) -> (u64, Vec<Fate>) {
        let request = request_of(frame).expect("only frames travel");
        let verdict = match *frame {
            Out::Publish { first, last, .. } => match mood {
                Mood::Busy => vec![((last - first + 1) as u16, Failed, Some(Code::Busy))],
                Mood::Forbids => vec![((last - first + 1) as u16, Failed, Some(Code::NoSuchAddress))],
                Mood::Well => (first..=last).map(|sequence| self.publish(sequence)).collect(),
                Mood::Forgets => {
                    let unknown = |sequence| {
                        self.publish(sequence);
                        (1, Unknown, Some(Code::LogStopped))
                    };
                    (first..=last).map(unknown).collect()
                }
            },
            Out::Open { .. } if mood == Mood::Busy => vec![(1, Failed, Some(Code::NotLeader))],
            Out::Open { .. } => {
                self.open = true;
                vec![(1, Taken, None)]
            }
            Out::Skip { .. } if mood == Mood::Busy => vec![(1, Failed, Some(Code::NotLeader))],
            Out::Skip { first, last, .. } => vec![self.skip(first, last)],
            Out::Close { .. } => vec![(1, Taken, None)],
            Out::Told(..) => unreachable!("only frames travel"),
        };
        (request, verdict)
    }

    fn publish(&mut self, sequence: u64) -> Fate {
        if !self.open {
            return (1, Failed, Some(Code::NotOpen));
        }
        if sequence > self.last + 1 {
            return (1, Failed, Some(Code::Gap));
        }
        if sequence == self.last + 1 {
            self.last = sequence;
            assert!(self.stored.insert(sequence), "stored once");
        }
        (1, Taken, None)
    }

    fn skip(&mut self, first: u64, last: u64) -> Fate {
        if !self.open {
            return (1, Failed, Some(Code::NotOpen));
        }
        if first > self.last + 1 {
            return (1, Failed, Some(Code::Gap));
        }
        if self.stored.range(first..=last).next().is_some() {
            return (1, Failed, Some(Code::Exists));
        }
        self.skipped.extend(first..=last);
        self.last = self.last.max(last);
        (1, Taken, None)
    }
}

const WAYS: [Way; 3] = [Way::Home, Way::Direct(NodeId(1)), Way::Direct(NodeId(2))];

/// What travels over one connection.
#[derive(Default)]
struct Wire {
    up: VecDeque<Out>,
    down: VecDeque<(Out, u64, Vec<Fate>)>,
}

/// Both ends and what travels between them.
struct Pair {
    rig: Rig,
    shard: Shard,
    wires: BTreeMap<Way, Wire>,
    /// Frames of connections that broke: they may still arrive, and nobody hears the answers.
    strays: VecDeque<Out>,
    told: BTreeMap<u64, SendResult>,
    tickets: u64,
}

impl Pair {
    fn new() -> Self {
        Self {
            rig: Rig::new(),
            shard: Shard::default(),
            wires: BTreeMap::new(),
            strays: VecDeque::new(),
            told: BTreeMap::new(),
            tickets: 0,
        }
    }

    fn step(&mut self, input: Input<'_>) {
        for out in self.rig.step(input) {
            match out {
                Out::Told(ticket, result) => {
                    assert_eq!(self.told.insert(ticket, result), None, "a fate is told once");
                }
                frame => self.wires.get_mut(&Way::Home).expect("it is open").up.push_back(frame),
            }
        }
        for (way, frame) in self.rig.pump_direct() {
            self.wires.get_mut(&way).expect("it is open").up.push_back(frame);
        }
        let busy = |wire: &&Wire| !(wire.up.is_empty() && wire.down.is_empty());
        assert!(self.wires.values().filter(busy).count() <= 1, "two ways at a time");
    }

    fn send(&mut self, count: u64, deadline: Duration) {
        for _ in 0..count {
            // Ticket and sequence are the same number here: there is one shard.
            self.tickets += 1;
            self.step(Input::SendTo { ticket: self.tickets, shard: A, bytes: BYTES, deadline });
        }
    }

    fn connect(&mut self, way: Way) {
        if let Entry::Vacant(free) = self.wires.entry(way) {
            free.insert(Wire::default());
            self.rig.session.connected(way, 4, 1 << 20);
            self.step(Input::Wait(Duration::ZERO));
        }
    }

    /// The connection breaks: what is on the way either way is lost, unless it `strays`.
    fn cut(&mut self, way: Way, strays: bool) {
        let Some(wire) = self.wires.remove(&way) else { return };
        if strays {
            self.strays.extend(wire.up);
        }
        self.rig.session.disconnected(way);
        self.step(Input::Wait(Duration::ZERO));
    }

    /// The shard takes one frame of a connection, if there is one.
    fn take(&mut self, way: Way, mood: Mood) {
        let Some(wire) = self.wires.get_mut(&way) else { return };
        let Some(frame) = wire.up.pop_front() else { return };
        let (request, fates) = self.shard.take(&frame, mood);
        wire.down.push_back((frame, request, fates));
    }

    /// The shard takes one frame of a connection that is long gone.
    fn stray(&mut self) {
        if let Some(frame) = self.strays.pop_front() {
            self.shard.take(&frame, Mood::Well);
        }
    }

    /// The producer hears one answer, if there is one.
    fn hear(&mut self, way: Way) {
        match self.wires.get_mut(&way).and_then(|wire| wire.down.pop_front()) {
            None => {}
            Some((Out::Publish { .. }, request, fates)) => self.step(Input::Fates(request, &fates)),
            Some((_, request, fates)) => self.step(Input::Answer(request, fates[0].1, fates[0].2)),
        }
    }

    /// From now on nothing is lost or refused. Goes on until every fate is known and the session is closed.
    fn heal(&mut self) {
        self.connect(Way::Home);
        self.step(Input::Close);
        for _ in 0..2000 {
            if self.wires.values().all(|wire| wire.up.is_empty() && wire.down.is_empty()) {
                if self.rig.session.is_closed() {
                    break;
                }
                let at = self.rig.session.next_wake(self.rig.now).expect("something is still to be done");
                self.step(Input::Wait(at.since(self.rig.now)));
            }
            for way in WAYS {
                self.take(way, Mood::Well);
                self.hear(way);
            }
        }
        assert!(self.rig.session.is_closed(), "never comes to rest");
        while !self.strays.is_empty() {
            self.stray();
        }
    }

    fn check(&self) {
        assert_eq!(self.told.len() as u64, self.tickets, "every fate was told");
        for (ticket, result) in &self.told {
            let stored = self.shard.stored.contains(ticket);
            match result {
                SendResult::Stored { id: named, .. } => {
                    assert!(stored, "{ticket} was told stored");
                    assert_eq!(*named, id(*ticket));
                }
                SendResult::Failed(_) => assert!(!stored, "{ticket} was told failed"),
                SendResult::Unknown(_) => {}
            }
        }
        let closed: BTreeSet<u64> = self.shard.stored.union(&self.shard.skipped).copied().collect();
        assert!(self.shard.stored.is_disjoint(&self.shard.skipped));
        assert_eq!(closed, (1..=self.tickets).collect(), "no gap stays");
    }
}

#[test]
fn a_session_ends_whose_shard_has_lost_what_it_acknowledged() {
    let mut rig = Rig::open();
    let sent = rig.step(Input::SendTo { ticket: 1, shard: A, bytes: BYTES, deadline: millis(50) });
    rig.step(Input::Fates(request(&sent), &[(1, Failed, Some(Code::Gap))]));
    rig.step(Input::Send(&[2]));
    let out = rig.step(Input::Wait(millis(60)));
    let [Out::Skip { .. }, Out::Told(1, SendResult::Failed(Code::Gap))] = out[..] else { panic!("{out:?}") };
    let out = rig.step(Input::Answer(request(&out[..1]), Failed, Some(Code::Gap)));
    assert_eq!(rig.session.fenced(), Some(Code::Gap), "the next session begins anew");
    assert_eq!(out, [Out::Told(2, SendResult::Failed(Code::Gap))], "it was never sent");
}

#[test]
fn a_connection_cut_anywhere_stores_each_message_once() {
    // Nine messages at four a frame: an opening and three publishes each way, cut after so many of each.
    for (taken, heard) in (0..=4).flat_map(|taken| (0..=taken).map(move |heard| (taken, heard))) {
        for waits in [Duration::ZERO, DEADLINE, DEADLINE + LINGER] {
            let mut pair = Pair::new();
            pair.connect(Way::Home);
            pair.send(9, DEADLINE);
            for n in 0..taken {
                pair.take(Way::Home, Mood::Well);
                if n < heard {
                    pair.hear(Way::Home);
                }
            }
            pair.cut(Way::Home, false);
            pair.step(Input::Wait(waits));
            pair.heal();
            pair.check();
            if waits == Duration::ZERO {
                assert_eq!(pair.shard.stored.len(), 9, "cut after {taken} and {heard}");
                let stored = |result: &SendResult| matches!(result, SendResult::Stored { .. });
                assert!(pair.told.values().all(stored), "cut after {taken} and {heard}");
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Send { count: u64, hurried: bool },
    Take(Way, Mood),
    Hear(Way),
    Cut(Way, bool),
    Stray,
    Connect(Way),
    Leave(Way),
    Lead(u16),
    Wait(Duration),
}

/// `ways`: how many connections there may be.
fn act(ways: usize) -> impl Strategy<Value = Act> {
    let way = move || (0..ways).prop_map(|way| WAYS[way]);
    let mood = prop_oneof![
        6 => Just(Mood::Well),
        1 => Just(Mood::Busy),
        1 => Just(Mood::Forbids),
        1 => Just(Mood::Forgets),
    ];
    let wait = prop_oneof![
        4 => Just(millis(5)),
        2 => Just(millis(1500)),
        1 => Just(DEADLINE),
        1 => Just(LINGER),
    ];
    prop_oneof![
        3 => (1..6u64, any::<bool>()).prop_map(|(count, hurried)| Act::Send { count, hurried }),
        6 => (way(), mood).prop_map(|(way, mood)| Act::Take(way, mood)),
        5 => way().prop_map(Act::Hear),
        1 => (way(), any::<bool>()).prop_map(|(way, strays)| Act::Cut(way, strays)),
        1 => Just(Act::Stray),
        2 => way().prop_map(Act::Connect),
        1 => way().prop_map(Act::Leave),
        1 => (1..3u16).prop_map(Act::Lead),
        2 => wait.prop_map(Act::Wait),
    ]
}

fn run(pair: &mut Pair, acts: Vec<Act>) {
    for act in acts {
        match act {
            Act::Send { count, hurried } => pair.send(count, if hurried { millis(50) } else { DEADLINE }),
            Act::Take(way, mood) => pair.take(way, mood),
            Act::Hear(way) => pair.hear(way),
            Act::Cut(way, strays) => pair.cut(way, strays),
            Act::Stray => pair.stray(),
            Act::Connect(way) => pair.connect(way),
            // Who leaves is gone in the end: what leaves and stays would be another story.
            Act::Leave(Way::Home) => {}
            Act::Leave(way) => pair.rig.session.leaving(way),
            Act::Lead(node) => pair.rig.session.learned(&[None, Some(NodeId(node))]),
            Act::Wait(duration) => pair.step(Input::Wait(duration)),
        }
    }
    pair.heal();
    pair.check();
}

proptest! {
    #[test]
    fn whatever_is_lost_or_refused_fates_are_true_and_no_gap_stays(acts in prop::collection::vec(act(1), 1..80)) {
        run(&mut Pair::new(), acts);
    }

    #[test]
    fn whichever_ways_come_and_go_fates_are_true_and_no_gap_stays(acts in prop::collection::vec(act(3), 1..160)) {
        run(&mut Pair::new(), acts);
    }
}
