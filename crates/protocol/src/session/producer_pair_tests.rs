//! A producer and a shard in miniature, with a connection between them that loses frames and answers: whatever is
//! lost, each message is stored at most once, under its own sequence, and what the program is told is true.

use std::collections::BTreeSet;

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

/// Both ends and what travels between them.
struct Pair {
    rig: Rig,
    shard: Shard,
    up: VecDeque<Out>,
    down: VecDeque<(Out, u64, Vec<Fate>)>,
    told: BTreeMap<u64, SendResult>,
    tickets: u64,
}

impl Pair {
    fn new() -> Self {
        Self {
            rig: Rig::new(),
            shard: Shard::default(),
            up: VecDeque::new(),
            down: VecDeque::new(),
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
                frame => self.up.push_back(frame),
            }
        }
    }

    fn send(&mut self, count: u64, deadline: Duration) {
        for _ in 0..count {
            // Ticket and sequence are the same number here: there is one shard.
            self.tickets += 1;
            self.step(Input::SendTo { ticket: self.tickets, shard: A, bytes: BYTES, deadline });
        }
    }

    fn connect(&mut self) {
        if !self.rig.session.is_connected() {
            self.step(Input::ConnectWith { messages: 4, bytes: 1 << 20 });
        }
    }

    /// The connection breaks: what is on the way either way is lost.
    fn cut(&mut self) {
        self.up.clear();
        self.down.clear();
        self.step(Input::Disconnect);
    }

    /// The shard takes one frame, if there is one.
    fn take(&mut self, mood: Mood) {
        let Some(frame) = self.up.pop_front() else { return };
        let (request, fates) = self.shard.take(&frame, mood);
        self.down.push_back((frame, request, fates));
    }

    /// The producer hears one answer, if there is one.
    fn hear(&mut self) {
        match self.down.pop_front() {
            None => {}
            Some((Out::Publish { .. }, request, fates)) => self.step(Input::Fates(request, &fates)),
            Some((_, request, fates)) => self.step(Input::Answer(request, fates[0].1, fates[0].2)),
        }
    }

    /// From now on nothing is lost or refused. Goes on until every fate is known and the session is closed.
    fn heal(&mut self) {
        self.connect();
        self.step(Input::Close);
        for _ in 0..2000 {
            if self.up.is_empty() && self.down.is_empty() {
                if self.rig.session.is_closed() {
                    return;
                }
                let at = self.rig.session.next_wake(self.rig.now).expect("something is still to be done");
                self.step(Input::Wait(at.since(self.rig.now)));
            }
            self.take(Mood::Well);
            self.hear();
        }
        panic!("never comes to rest");
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
fn a_connection_cut_anywhere_stores_each_message_once() {
    // Nine messages at four a frame: an opening and three publishes each way, cut after so many of each.
    for (taken, heard) in (0..=4).flat_map(|taken| (0..=taken).map(move |heard| (taken, heard))) {
        for waits in [Duration::ZERO, DEADLINE, DEADLINE + LINGER] {
            let mut pair = Pair::new();
            pair.connect();
            pair.send(9, DEADLINE);
            for n in 0..taken {
                pair.take(Mood::Well);
                if n < heard {
                    pair.hear();
                }
            }
            pair.cut();
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
    Take(Mood),
    Hear,
    Cut,
    Connect,
    Wait(Duration),
}

fn act() -> impl Strategy<Value = Act> {
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
        6 => mood.prop_map(Act::Take),
        5 => Just(Act::Hear),
        1 => Just(Act::Cut),
        2 => Just(Act::Connect),
        2 => wait.prop_map(Act::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_is_lost_or_refused_fates_are_true_and_no_gap_stays(
        acts in prop::collection::vec(act(), 1..80),
    ) {
        let mut pair = Pair::new();
        for act in acts {
            match act {
                Act::Send { count, hurried } => {
                    pair.send(count, if hurried { millis(50) } else { DEADLINE });
                }
                Act::Take(mood) => pair.take(mood),
                Act::Hear => pair.hear(),
                Act::Cut => pair.cut(),
                Act::Connect => pair.connect(),
                Act::Wait(duration) => pair.step(Input::Wait(duration)),
            }
        }
        pair.heal();
        pair.check();
    }
}
