//! A consumer and a group in miniature, with a connection between them that loses frames and answers: nothing is handed
//! out twice under one lease, what the program is told is true, and nobody starves.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MESSAGES: u64 = 30;

/// How the group takes the next question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// Refuses without looking, for now.
    Busy,
    /// Does it, and loses its log before it can tell.
    Forgets,
}

/// What travels down.
#[derive(Clone, Debug)]
enum Down {
    Subscribed(u64, u64, Vec<u64>),
    Deliver(u64, Vec<(u64, u32)>),
    Fates(u64, Vec<(u16, Outcome, Option<Code>)>),
    Answer(u64, Outcome, Option<Code>),
    Lost(Vec<u64>),
}

/// One group of one queue in one shard; the rules are those of the engine's `delivery.rs`.
struct Group {
    term: u64,
    /// Attempts of what is wanted.
    wanted: BTreeMap<u64, u32>,
    leased: BTreeSet<u64>,
    /// `None`: nobody is subscribed.
    credit: Option<u32>,
    /// Acknowledged by the consumer, in this order.
    acked: Vec<u64>,
}

impl Group {
    fn take(&mut self, question: &Out, mood: Mood) -> Option<Down> {
        match question {
            Out::Subscribe { request, .. } if mood == Mood::Busy => {
                Some(Down::Answer(*request, Failed, Some(Code::NotLeader)))
            }
            Out::Subscribe { request, held, credit, .. } => {
                self.credit = Some(*credit);
                let ours = |(offset, attempt): &&(u64, u32)| {
                    self.leased.contains(offset) && self.wanted.get(offset) == Some(attempt)
                };
                let lost = held.iter().filter(|held| !ours(held)).map(|(offset, _)| *offset).collect();
                Some(Down::Subscribed(*request, self.term, lost))
            }
            Out::Settle { request, items } => {
                let fates = items.iter().map(|item| self.settle(*item, mood)).collect();
                Some(Down::Fates(*request, fates))
            }
            Out::Credit(messages, _) => {
                self.credit = self.credit.map(|credit| credit + messages);
                None
            }
            Out::Unsubscribe { request } => {
                self.credit = None;
                Some(Down::Answer(*request, Done, None))
            }
            Out::Handed(..) | Out::Told(..) => unreachable!("only frames travel"),
        }
    }

    fn settle(
        &mut self,
        (offset, term, attempt, action): (u64, u64, u32, SettleAction),
        mood: Mood,
    ) -> (u16, Outcome, Option<Code>) {
        let ours = self.credit.is_some()
            && term == self.term
            && self.leased.contains(&offset)
            && self.wanted.get(&offset) == Some(&attempt);
        if mood == Mood::Busy {
            return (1, Failed, Some(Code::NotLeader));
        }
        if !ours {
            return (1, Failed, LOST);
        }
        match action {
            Ack => {
                self.leased.remove(&offset);
                self.wanted.remove(&offset);
                self.acked.push(offset);
            }
            Release => self.give_back(offset),
            other => panic!("nobody asked for {other:?}"),
        }
        if mood == Mood::Forgets { (1, Unknown, Some(Code::LogStopped)) } else { (1, Done, None) }
    }

    fn give_back(&mut self, offset: u64) {
        self.leased.remove(&offset);
        *self.wanted.get_mut(&offset).expect("only what is wanted is leased") += 1;
    }

    fn deliver(&mut self) -> Option<Down> {
        let credit = self.credit.as_mut()?;
        let free = self.wanted.iter().filter(|(offset, _)| !self.leased.contains(offset));
        let items: Vec<(u64, u32)> =
            free.take(*credit as usize).map(|(offset, attempt)| (*offset, *attempt)).collect();
        *credit -= items.len() as u32;
        self.leased.extend(items.iter().map(|(offset, _)| *offset));
        (!items.is_empty()).then_some(Down::Deliver(self.term, items))
    }

    /// Every lease runs out; some are taken and settled by somebody else.
    fn expire(&mut self, stolen: u64) -> Vec<u64> {
        let ended: Vec<u64> = self.leased.iter().copied().collect();
        for offset in &ended {
            self.give_back(*offset);
            if offset % 4 < stolen {
                self.wanted.remove(offset);
            }
        }
        ended
    }
}

/// Both ends, what travels between them, and a program that acknowledges everything once.
struct Pair {
    rig: Rig,
    group: Group,
    connected: bool,
    up: VecDeque<Out>,
    down: VecDeque<Down>,
    /// The highest attempt of each message that the program has seen.
    seen: BTreeMap<u64, u32>,
    holding: VecDeque<u64>,
    /// What each settlement is about, and its end.
    tickets: Vec<(u64, Option<SettleResult>)>,
    /// Acknowledgements that the group has taken, by ticket.
    applied: BTreeSet<usize>,
}

impl Pair {
    fn new() -> Self {
        let wanted = (0..MESSAGES).map(|offset| (offset, 1)).collect();
        Self {
            rig: Rig::with(|config| {
                (config.credit_messages, config.credit_bytes) = (4, 4 * BYTES as u64);
            }),
            group: Group { term: 5, wanted, leased: BTreeSet::new(), credit: None, acked: Vec::new() },
            connected: false,
            up: VecDeque::new(),
            down: VecDeque::new(),
            seen: BTreeMap::new(),
            holding: VecDeque::new(),
            tickets: Vec::new(),
            applied: BTreeSet::new(),
        }
    }

    fn step(&mut self, input: Input<'_>) {
        for out in self.rig.step(input) {
            match out {
                Out::Told(ticket, result) => {
                    let end = &mut self.tickets[ticket as usize].1;
                    assert_eq!(end.replace(result), None, "an end is told once");
                }
                Out::Handed(offset, attempt) => {
                    let before = self.seen.insert(offset, attempt);
                    assert!(before < Some(attempt), "{offset} at attempt {attempt} after {before:?}");
                    // A later attempt takes the place of an earlier one that was lost.
                    self.holding.retain(|held| *held != offset);
                    self.holding.push_back(offset);
                }
                frame => self.up.push_back(frame),
            }
        }
        assert!(
            self.rig.session.held().len() <= 4 + 3,
            "more is held than credit and what may go ahead of commits"
        );
    }

    fn acknowledge(&mut self) {
        let Some(offset) = self.holding.pop_front() else { return };
        self.tickets.push((offset, None));
        self.step(Input::Settle(offset, Ack, self.tickets.len() as u64 - 1));
    }

    fn connect(&mut self) {
        if !self.connected {
            self.connected = true;
            self.step(Input::Connect);
        }
    }

    fn cut(&mut self) {
        self.connected = false;
        self.group.credit = None;
        self.up.clear();
        self.down.clear();
        self.step(Input::Disconnect);
    }

    /// The group takes one question, if there is one, and delivers what it can.
    fn take(&mut self, mood: Mood) {
        let acked = self.group.acked.len();
        if let Some(question) = self.up.pop_front() {
            self.down.extend(self.group.take(&question, mood));
        }
        for offset in &self.group.acked[acked..] {
            let ticket = self.tickets.iter().rposition(|(of, _)| of == offset).expect("somebody asked");
            assert!(self.applied.insert(ticket), "settled once");
        }
        self.down.extend(self.group.deliver());
    }

    fn hear(&mut self) {
        match self.down.pop_front() {
            None => {}
            Some(Down::Subscribed(request, term, lost)) => {
                self.step(Input::Subscribed(request, term, &lost));
            }
            Some(Down::Deliver(term, items)) => {
                self.step(Input::DeliverAs { term, lease: LEASE, items: &items });
            }
            Some(Down::Fates(request, fates)) => self.step(Input::Fates(request, &fates)),
            Some(Down::Answer(request, outcome, code)) => self.step(Input::Answer(request, outcome, code)),
            Some(Down::Lost(offsets)) => self.step(Input::Lose(&offsets)),
        }
    }

    fn expire(&mut self, stolen: u64, tells: bool) {
        let ended = self.group.expire(stolen);
        if tells && self.group.credit.is_some() {
            self.down.push_back(Down::Lost(ended));
        }
    }

    /// Carries everything, without loss and refusal, until nothing moves.
    fn settle_down(&mut self) {
        for _ in 0..5000 {
            self.take(Mood::Well);
            self.hear();
            self.step(Input::Take);
            self.acknowledge();
            if self.up.is_empty() && self.down.is_empty() && self.holding.is_empty() {
                let Some(at) = self.rig.session.next_wake() else { return };
                self.step(Input::Wait(at.since(self.rig.now)));
            }
        }
        panic!("never comes to rest");
    }

    fn check(&self) {
        for (ticket, (offset, result)) in self.tickets.iter().enumerate() {
            let settled = self.applied.contains(&ticket);
            match result.unwrap_or_else(|| panic!("the end of {offset} was never told")) {
                SettleResult::Done => assert!(settled, "{offset} was told done"),
                SettleResult::LeaseLost | SettleResult::NotAllowed => {
                    assert!(!settled, "{offset} was told that nothing was settled");
                }
                SettleResult::Unknown => {}
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Take(Mood),
    Hear,
    Hand,
    Acknowledge,
    Expire { stolen: u64, tells: bool },
    NewTerm,
    Cut,
    Connect,
    Wait(Duration),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let mood = prop_oneof![6 => Just(Mood::Well), 1 => Just(Mood::Busy), 1 => Just(Mood::Forgets)];
    let act = prop_oneof![
        6 => mood.prop_map(Act::Take),
        6 => Just(Act::Hear),
        3 => Just(Act::Hand),
        4 => Just(Act::Acknowledge),
        1 => (0..3u64, any::<bool>()).prop_map(|(stolen, tells)| Act::Expire { stolen, tells }),
        1 => Just(Act::NewTerm),
        1 => Just(Act::Cut),
        2 => Just(Act::Connect),
        2 => prop_oneof![Just(millis(5)), Just(RESUBSCRIBE_PAUSE), Just(LEASE)].prop_map(Act::Wait),
    ];
    prop::collection::vec(act, 1..120)
}

fn play(acts: Vec<Act>) -> Pair {
    let mut pair = Pair::new();
    for act in acts {
        match act {
            Act::Take(mood) => pair.take(mood),
            Act::Hear => pair.hear(),
            Act::Hand => pair.step(Input::Take),
            Act::Acknowledge => pair.acknowledge(),
            Act::Expire { stolen, tells } => pair.expire(stolen, tells),
            Act::NewTerm => {
                pair.group.term += 1;
                pair.cut();
            }
            Act::Cut => pair.cut(),
            Act::Connect => pair.connect(),
            Act::Wait(duration) => pair.step(Input::Wait(duration)),
        }
    }
    pair
}

proptest! {
    #[test]
    fn whatever_is_lost_or_refused_ends_are_true_and_everything_is_settled(acts in acts()) {
        let mut pair = play(acts);
        pair.connect();
        pair.settle_down();
        // What the program was given, and lost without being told, comes again when its lease has run out.
        pair.group.expire(0);
        pair.settle_down();
        pair.check();
        prop_assert!(pair.group.wanted.is_empty(), "{:?} were never settled", pair.group.wanted);
    }

    #[test]
    fn whatever_is_under_way_closing_leaves_nothing_leased(acts in acts()) {
        let mut pair = play(acts);
        pair.connect();
        pair.step(Input::Close);
        // Leases that were lost on their way down run out by themselves.
        let mut known: BTreeMap<u64, u32> =
            pair.rig.session.held.iter().map(|(id, message)| (id.offset.0, message.attempt.0)).collect();
        for down in &pair.down {
            if let Down::Deliver(_, items) = down {
                known.extend(items.iter().copied());
            }
        }
        pair.group.leased.retain(|offset| known.get(offset) == pair.group.wanted.get(offset));
        pair.settle_down();
        pair.check();
        prop_assert!(pair.rig.session.is_closed());
        prop_assert_eq!(&pair.group.leased, &BTreeSet::new());
    }
}
