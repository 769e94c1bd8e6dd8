//! The consumer through its stories: one step at a time, with every frame it writes read back.

use super::*;
use crate::{
    error::Outcome::{Failed, Ok as Done, Unknown},
    frame::{
        DeliverItem, Frame, FrameReader,
        SettleAction::{Ack, DeadLetter, Release},
        SettledRun,
    },
};

const TAG: u16 = 7;
const S: ShardId = ShardId(1);
/// Sealed bytes of every message.
const BYTES: usize = 100;
const LEASE: Duration = crate::limits::LEASE;
const LOST: Option<Code> = Some(Code::LeaseLost);
const START: StartAt = StartAt::Oldest;

/// What happens to a subscription. Messages are named by their offsets in shard S.
enum Input<'a> {
    Connect,
    Disconnect,
    /// The subscription stands, in this term, without these.
    Subscribed(u64, u64, &'a [u64]),
    /// Offsets and attempts.
    Deliver(&'a [(u64, u32)]),
    DeliverAs {
        term: u64,
        lease: Duration,
        items: &'a [(u64, u32)],
    },
    /// The application takes everything that is ready.
    Take,
    Settle(u64, SettleAction, u64),
    /// The node says that these leases ended.
    Lose(&'a [u64]),
    Fates(u64, &'a [(u16, Outcome, Option<Code>)]),
    Answer(u64, Outcome, Option<Code>),
    Close,
    Wait(Duration),
}

/// What a subscription wishes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Out {
    /// Offsets and attempts of what is held, and credit in messages.
    Subscribe {
        request: u64,
        held: Vec<(u64, u32)>,
        credit: u32,
        start: Option<StartAt>,
    },
    /// Offsets, terms and attempts.
    Settle {
        request: u64,
        items: Vec<(u64, u64, u32, SettleAction)>,
    },
    Credit(u32, u64),
    Unsubscribe {
        request: u64,
    },
    /// Offset and attempt of what the application got.
    Handed(u64, u32),
    Told(u64, SettleResult),
}

/// A subscription and its time.
struct Rig {
    session: Consumer,
    now: Instant,
    /// Under which attempt the application was last given each message.
    handed: BTreeMap<u64, Attempt>,
}

fn handout(offset: u64, attempt: Attempt) -> Handout {
    Handout { id: DeliveryId { shard: S, offset: Offset(offset) }, attempt }
}

impl Rig {
    fn with(change: impl FnOnce(&mut ConsumerConfig)) -> Self {
        let mut config = ConsumerConfig {
            tag: TAG,
            subscription: 40,
            consumer: ConsumerId(9),
            address: Address::parse("shop.orders").unwrap(),
            group: GroupName::parse("billing").unwrap(),
            start: Some(START),
            credit_messages: 10,
            credit_bytes: 10 * BYTES as u64,
            extend: false,
        };
        change(&mut config);
        Self { session: Consumer::new(config), now: Instant::from_millis(1000), handed: BTreeMap::new() }
    }

    fn new() -> Self {
        Self::with(|_| {})
    }

    /// Joined, in term 5.
    fn active() -> Self {
        Self::new().join()
    }

    /// Joined, and keeping its leases.
    fn extending() -> Self {
        Self::with(|config| config.extend = true).join()
    }

    fn join(mut self) -> Self {
        let out = self.step(Input::Connect);
        assert_eq!(self.step(Input::Subscribed(request(&out), 5, &[])), []);
        self
    }

    /// The application has these, at their first attempt.
    fn holding(offsets: &[u64]) -> Self {
        let mut rig = Self::active();
        let items: Vec<(u64, u32)> = offsets.iter().map(|offset| (*offset, 1)).collect();
        rig.step(Input::Deliver(&items));
        rig.step(Input::Take);
        rig
    }

    /// The only place that touches the session's interface.
    fn step(&mut self, input: Input<'_>) -> Vec<Out> {
        let mut out = Vec::new();
        match input {
            Input::Connect => self.session.connected(self.now),
            Input::Disconnect => self.session.disconnected(),
            Input::Subscribed(request, term, lost) => {
                let lost = lost.iter().map(|offset| (S, Offset(*offset))).collect();
                let frame = Subscribed { shards: vec![(S, Term(term))], lost };
                self.session.subscribed(request, &frame);
            }
            Input::Deliver(items) => self.session.deliver(self.now, deliver(5, LEASE, items)),
            Input::DeliverAs { term, lease, items } => {
                self.session.deliver(self.now, deliver(term, lease, items));
            }
            Input::Take => {
                while let Some(delivery) = self.session.next_delivery() {
                    assert_eq!(delivery.sealed, sealed(delivery.id.offset.0));
                    self.handed.insert(delivery.id.offset.0, delivery.attempt);
                    out.push(Out::Handed(delivery.id.offset.0, delivery.attempt.0));
                }
            }
            Input::Settle(offset, action, ticket) => {
                let attempt = self.handed.get(&offset).copied().unwrap_or(Attempt(1));
                self.session.settle(handout(offset, attempt), action, String::new(), ticket);
            }
            Input::Lose(offsets) => {
                let held = |offset: &u64| Held { shard: S, offset: Offset(*offset), attempt: Attempt(1) };
                let items = offsets.iter().map(held).collect();
                self.session.lease_lost(&LeaseLost { subscription: 40, items });
            }
            Input::Fates(request, fates) => {
                let runs = fates.iter().map(|(count, outcome, code)| SettledRun {
                    count: *count,
                    outcome: *outcome,
                    code: code.map_or(0, Code::number),
                });
                self.session.settled(self.now, request, &Settled { runs: runs.collect() });
            }
            Input::Answer(request, outcome, code) => {
                let code = code.map_or(0, Code::number);
                let answer = Answer { outcome, code, message: "why".into() };
                self.session.answer(self.now, request, &answer);
            }
            Input::Close => self.session.close(),
            Input::Wait(duration) => self.now = self.now + duration,
        }
        let mut bytes = BytesMut::new();
        self.session.pump(self.now, &mut bytes);
        self.read(&bytes, &mut out);
        let mut resolutions = Vec::new();
        self.session.take_resolutions(&mut resolutions);
        out.extend(resolutions.into_iter().map(|told| Out::Told(told.ticket, told.result)));
        out
    }

    fn read(&self, bytes: &[u8], out: &mut Vec<Out>) {
        let mut reader = FrameReader::new();
        reader.set_authenticated();
        reader.buffer().extend_from_slice(bytes);
        while let Some((header, body)) = reader.next_frame().unwrap() {
            let request = header.request;
            out.push(match Frame::decode(header.kind, body).unwrap() {
                Frame::Subscribe(frame) => {
                    assert_eq!((frame.subscription, frame.consumer), (40, ConsumerId(9)));
                    assert_eq!((frame.address.as_str(), frame.group.as_str()), ("shop.orders", "billing"));
                    let bytes = u64::from(frame.credit_messages) * BYTES as u64;
                    assert_eq!(frame.credit_bytes, bytes, "every message has the same size here");
                    let held = frame.held.iter().map(|held| (held.offset.0, held.attempt.0)).collect();
                    Out::Subscribe { request, held, credit: frame.credit_messages, start: frame.start }
                }
                Frame::Settle(frame) => {
                    assert_eq!(frame.subscription, 40);
                    assert!(frame.items.len() <= BATCH_MESSAGES_MAX);
                    let item = |item: &SettleItem| (item.offset.0, item.term.0, item.attempt.0, item.action);
                    Out::Settle { request, items: frame.items.iter().map(item).collect() }
                }
                Frame::Credit(frame) => {
                    assert_eq!((frame.subscription, request), (40, 0));
                    Out::Credit(frame.messages, frame.bytes)
                }
                Frame::Unsubscribe(frame) => {
                    assert_eq!(frame.subscription, 40);
                    Out::Unsubscribe { request }
                }
                other => panic!("a consumer does not send {other:?}"),
            });
        }
    }

    /// Lets time pass until the session says that it has something to do.
    fn wake(&mut self) -> Vec<Out> {
        let at = self.session.next_wake().expect("it waits for something");
        self.step(Input::Wait(at.since(self.now)))
    }

    /// Connects again; the node still knows all but `lost`.
    fn reconnect(&mut self, term: u64, lost: &[u64]) -> Vec<Out> {
        self.step(Input::Disconnect);
        let subscribe = self.step(Input::Connect);
        self.step(Input::Subscribed(request(&subscribe), term, lost))
    }
}

fn sealed(offset: u64) -> Bytes {
    vec![offset as u8; BYTES].into()
}

fn deliver(term: u64, lease: Duration, items: &[(u64, u32)]) -> Deliver {
    let items = items.iter().map(|(offset, attempt)| DeliverItem {
        shard: S,
        offset: Offset(*offset),
        term: Term(term),
        attempt: Attempt(*attempt),
        lease,
        reason: String::new(),
        sealed: sealed(*offset),
    });
    Deliver { subscription: 40, items: items.collect() }
}

/// The request number of the only question in `out`.
fn request(out: &[Out]) -> u64 {
    let of = |out: &Out| match out {
        Out::Subscribe { request, .. } | Out::Settle { request, .. } | Out::Unsubscribe { request } => {
            Some(*request)
        }
        Out::Credit(..) | Out::Handed(..) | Out::Told(..) => None,
    };
    let requests: Vec<u64> = out.iter().filter_map(of).collect();
    assert_eq!(requests.len(), 1, "{out:?}");
    requests[0]
}

/// The only thing in `out` is a settle frame with these items.
fn assert_settles(out: &[Out], expected: &[(u64, u64, u32, SettleAction)]) {
    let [Out::Settle { items, .. }] = out else { panic!("{out:?}") };
    assert_eq!(items, expected);
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn joining_says_where_to_begin_and_how_much_may_come() {
    let mut rig = Rig::new();
    assert_eq!(rig.step(Input::Wait(millis(0))), [], "not connected");
    let out = rig.step(Input::Connect);
    let [Out::Subscribe { request, held, credit: 10, start: Some(START) }] = &out[..] else {
        panic!("{out:?}")
    };
    assert_eq!(held, &[]);
    assert!(!rig.session.is_active());
    rig.step(Input::Subscribed(*request, 5, &[]));
    assert!(rig.session.is_active());
}

#[test]
fn where_to_begin_is_said_only_until_the_group_exists() {
    let mut rig = Rig::active();
    rig.step(Input::Disconnect);
    let out = rig.step(Input::Connect);
    assert!(matches!(out[..], [Out::Subscribe { start: None, .. }]), "{out:?}");
}

#[test]
fn a_group_that_our_own_lost_question_made_is_joined() {
    // Lost with the connection, answered unknown, answered too late by a shard that does not serve.
    for answer in [None, Some((Unknown, Code::LogStopped)), Some((Failed, Code::NotLeader))] {
        let mut rig = Rig::new();
        let first = rig.step(Input::Connect);
        let again = match answer {
            None => {
                rig.step(Input::Disconnect);
                rig.step(Input::Connect)
            }
            Some((outcome, code)) => {
                assert_eq!(rig.step(Input::Answer(request(&first), outcome, Some(code))), []);
                rig.wake()
            }
        };
        assert!(matches!(again[..], [Out::Subscribe { start: Some(START), .. }]), "{again:?}");
        let joins = rig.step(Input::Answer(request(&again), Failed, Some(Code::Exists)));
        assert!(matches!(joins[..], [Out::Subscribe { start: None, .. }]), "{joins:?}");
        // Refused once more, it is refused.
        rig.step(Input::Answer(request(&joins), Failed, Some(Code::Exists)));
        assert_eq!(rig.session.refusal().map(|refusal| refusal.code), Some(Code::Exists));
    }
}

#[test]
fn a_subscription_refused_for_good_says_why_and_asks_no_more() {
    for code in [Code::Exists, Code::NoSuchAddress, Code::Limit] {
        let mut rig = Rig::new();
        let out = rig.step(Input::Connect);
        assert_eq!(rig.step(Input::Answer(request(&out), Failed, Some(code))), []);
        assert_eq!(rig.session.refusal(), Some(&Refusal { code, message: "why".into() }));
        assert!(rig.session.is_closed());
        assert_eq!(rig.session.next_wake(), None);
        assert_eq!(rig.step(Input::Wait(Duration::from_secs(9))), []);
        rig.step(Input::Disconnect);
        assert_eq!(rig.step(Input::Connect), []);
    }
}

#[test]
fn a_subscription_that_may_succeed_later_is_tried_again() {
    for (outcome, code) in [(Failed, Code::NotLeader), (Failed, Code::Draining), (Unknown, Code::LogStopped)]
    {
        let mut rig = Rig::new();
        let out = rig.step(Input::Connect);
        assert_eq!(rig.step(Input::Answer(request(&out), outcome, Some(code))), []);
        assert_eq!((rig.session.refusal(), rig.session.is_closed()), (None, false));
        let before = rig.now;
        let again = rig.wake();
        assert_ne!(request(&again), request(&out));
        assert_eq!(rig.now.since(before), RESUBSCRIBE_PAUSE);
    }
}

#[test]
fn messages_are_handed_out_once_and_in_order() {
    let mut rig = Rig::active();
    assert_eq!(rig.step(Input::Deliver(&[(3, 1), (1, 2), (2, 1)])), []);
    let handed = [Out::Handed(3, 1), Out::Handed(1, 2), Out::Handed(2, 1)];
    assert_eq!(rig.step(Input::Take), handed);
    assert_eq!(rig.step(Input::Take), []);
    assert_eq!(rig.session.held().len(), 3);
}

#[test]
fn what_is_held_is_not_handed_out_again_and_is_settled_under_its_newest_lease() {
    let mut rig = Rig::active();
    rig.step(Input::Deliver(&[(1, 1), (2, 1)]));
    assert_eq!(rig.session.next_delivery().map(|delivery| delivery.id.offset), Some(Offset(1)));
    // One is with the application, one waits for it.
    rig.step(Input::DeliverAs { term: 6, lease: LEASE, items: &[(1, 2), (2, 2)] });
    assert_eq!(rig.step(Input::Take), [Out::Handed(2, 1)]);
    assert_eq!(rig.session.held().len(), 2);
    let mut out = rig.step(Input::Settle(1, Ack, 70));
    assert_eq!(out.pop(), Some(Out::Credit(3, 300)), "of two that came again, and of one that is done");
    assert_settles(&out, &[(1, 6, 2, Ack)]);
}

#[test]
fn a_settlement_is_done_only_when_it_is_confirmed() {
    let mut rig = Rig::holding(&[1, 2]);
    let ack = rig.step(Input::Settle(1, Ack, 70));
    assert_settles(&ack, &[(1, 5, 1, Ack)]);
    assert_settles(&rig.step(Input::Settle(2, DeadLetter, 71)), &[(2, 5, 1, DeadLetter)]);
    assert_eq!(rig.session.held().len(), 2);
    assert_eq!(
        rig.step(Input::Fates(request(&ack), &[(1, Done, None)])),
        [Out::Told(70, SettleResult::Done)]
    );
    assert_eq!(rig.session.held().len(), 1);
}

#[test]
fn settlements_at_hand_go_together_in_their_order_and_bounded() {
    let count = BATCH_MESSAGES_MAX as u64 + 1;
    let mut rig = Rig::with(|config| {
        (config.credit_messages, config.credit_bytes) = (5000, 5000 * BYTES as u64);
    })
    .join();
    let items: Vec<(u64, u32)> = (0..count).map(|offset| (offset, 1)).collect();
    rig.step(Input::Deliver(&items));
    rig.step(Input::Take);
    for (offset, ticket) in (0..count).rev().zip(0..) {
        rig.session.settle(handout(offset, Attempt(1)), Ack, String::new(), ticket);
    }
    let out = rig.step(Input::Wait(millis(0)));
    let [Out::Settle { items, .. }, Out::Settle { items: rest, .. }, Out::Credit(..)] = &out[..] else {
        panic!("{} frames", out.len());
    };
    assert!(items.iter().map(|(offset, ..)| *offset).eq((1..count).rev()));
    assert_eq!(rest, &[(0, 5, 1, Ack)]);
}

#[test]
fn what_the_application_does_not_hold_cannot_be_settled() {
    let mut rig = Rig::active();
    rig.step(Input::Deliver(&[(1, 1), (2, 1)]));
    let lost = |ticket| [Out::Told(ticket, SettleResult::LeaseLost)];
    assert_eq!(rig.step(Input::Settle(9, Ack, 70)), lost(70), "never seen");
    assert_eq!(rig.step(Input::Settle(1, Ack, 71)), lost(71), "not handed out yet");
    rig.step(Input::Take);
    rig.step(Input::Settle(1, Ack, 72));
    assert_eq!(rig.step(Input::Settle(1, DeadLetter, 73)), lost(73), "settled already");
}

#[test]
fn what_is_said_of_a_lost_handout_does_not_count_for_the_next_one() {
    let mut rig = Rig::holding(&[1]);
    rig.step(Input::Lose(&[1]));
    rig.step(Input::Deliver(&[(1, 2)]));
    assert_eq!(rig.step(Input::Take), [Out::Handed(1, 2)]);
    rig.session.settle(handout(1, Attempt(1)), SettleAction::Nack { delay: None }, String::new(), 70);
    assert_eq!(rig.step(Input::Wait(millis(0))), [Out::Told(70, SettleResult::LeaseLost)]);
    let settle = rig.step(Input::Settle(1, Ack, 71));
    assert!(matches!(&settle[..], [Out::Settle { items, .. }] if items == &[(1, 5, 2, Ack)]), "{settle:?}");
}

#[test]
fn a_settlement_that_may_succeed_later_is_tried_again_and_the_others_are_not() {
    for (outcome, code) in [(Failed, Code::NotLeader), (Unknown, Code::LogStopped)] {
        let mut rig = Rig::holding(&[1, 2]);
        rig.session.settle(handout(1, Attempt(1)), Ack, String::new(), 70);
        let both = rig.step(Input::Settle(2, Ack, 71));
        let told = rig.step(Input::Fates(request(&both), &[(1, outcome, Some(code)), (1, Done, None)]));
        assert_eq!(told, [Out::Told(71, SettleResult::Done)]);
        let before = rig.now;
        let again = rig.wake();
        assert_eq!(rig.now.since(before), RESUBSCRIBE_PAUSE);
        assert_settles(&again, &[(1, 5, 1, Ack)]);
        let told = rig.step(Input::Fates(request(&again), &[(1, Done, None)]));
        assert_eq!(told, [Out::Told(70, SettleResult::Done)]);
    }
}

#[test]
fn a_plain_answer_to_settlements_speaks_for_all_of_them() {
    let mut rig = Rig::holding(&[1]);
    let ack = rig.step(Input::Settle(1, Ack, 70));
    assert_eq!(rig.step(Input::Answer(request(&ack), Failed, Some(Code::LogStopped))), []);
    let again = rig.wake();
    assert_settles(&again, &[(1, 5, 1, Ack)]);
    assert_eq!(rig.step(Input::Answer(request(&again), Done, None)), [Out::Told(70, SettleResult::Done)]);
}

#[test]
fn a_settlement_that_is_not_allowed_is_told_at_once_and_the_message_can_be_settled_later() {
    let mut rig = Rig::holding(&[1]);
    let ack = rig.step(Input::Settle(1, Ack, 70));
    let denied = Input::Fates(request(&ack), &[(1, Failed, Some(Code::NotAllowed))]);
    assert_eq!(rig.step(denied), [Out::Told(70, SettleResult::NotAllowed)]);
    let again = rig.step(Input::Settle(1, Ack, 71));
    assert_settles(&again, &[(1, 5, 1, Ack)]);
    let told = rig.step(Input::Fates(request(&again), &[(1, Done, None)]));
    assert_eq!(told, [Out::Told(71, SettleResult::Done)]);
}

#[test]
fn a_lost_lease_is_unknown_only_if_an_earlier_copy_may_have_settled() {
    let mut rig = Rig::holding(&[1]);
    let ack = rig.step(Input::Settle(1, Ack, 70));
    let told = rig.step(Input::Fates(request(&ack), &[(1, Failed, LOST)]));
    assert_eq!(told, [Out::Told(70, SettleResult::LeaseLost)]);
    assert_eq!(rig.session.held().len(), 0);

    for (outcome, result) in [(Failed, SettleResult::LeaseLost), (Unknown, SettleResult::Unknown)] {
        let mut rig = Rig::holding(&[1]);
        let first = rig.step(Input::Settle(1, Ack, 70));
        rig.step(Input::Fates(request(&first), &[(1, outcome, Some(Code::LogStopped))]));
        let second = rig.wake();
        let told = rig.step(Input::Fates(request(&second), &[(1, Failed, LOST)]));
        assert_eq!(told, [Out::Told(70, result)], "after {outcome:?}");
    }

    // The connection broke before the answer; the shard still knew the lease, and then settled the first copy.
    let mut rig = Rig::holding(&[1]);
    rig.step(Input::Settle(1, Ack, 70));
    let second = rig.reconnect(6, &[]);
    let told = rig.step(Input::Fates(request(&second), &[(1, Failed, LOST)]));
    assert_eq!(told, [Out::Told(70, SettleResult::Unknown)]);
}

#[test]
fn a_lease_that_ends_takes_its_message_along_wherever_it_is() {
    let mut rig = Rig::holding(&[1, 2, 3, 4]);
    rig.step(Input::Deliver(&[(5, 1)]));
    rig.step(Input::Settle(2, Ack, 70));
    let refused = rig.step(Input::Settle(3, Ack, 71));
    rig.step(Input::Fates(request(&refused), &[(1, Failed, Some(Code::NotLeader))]));
    // 1 with the application, 2 waits for its answer, 3 was refused and waits, 4 is settled too late, 5 was not taken.
    let told = rig.step(Input::Lose(&[1, 2, 3, 4, 5]));
    assert_eq!(
        told[told.len() - 2..],
        [Out::Told(70, SettleResult::Unknown), Out::Told(71, SettleResult::LeaseLost)]
    );
    assert_eq!(rig.step(Input::Take), []);
    assert_eq!(rig.step(Input::Settle(4, Ack, 72)), [Out::Told(72, SettleResult::LeaseLost)]);
    assert_eq!(rig.session.held().len(), 0);
    assert_eq!(rig.step(Input::Wait(RESUBSCRIBE_PAUSE)), [], "nothing is left to be settled");
    assert_eq!(rig.step(Input::Lose(&[8])), [], "others are none of ours");
}

#[test]
fn after_a_reconnect_everything_held_is_named_and_goes_on_in_the_new_term() {
    let mut rig = Rig::holding(&[1, 2]);
    rig.step(Input::Deliver(&[(3, 2)]));
    rig.step(Input::Settle(2, Ack, 70));
    rig.step(Input::Disconnect);
    assert_eq!((rig.session.is_active(), rig.session.held().len()), (false, 3));
    let out = rig.step(Input::Connect);
    // What the application is done with takes no room: it holds two of ten.
    let [Out::Subscribe { request, held, credit: 8, start: None }] = &out[..] else { panic!("{out:?}") };
    assert_eq!(held, &[(1, 1), (2, 1), (3, 2)]);
    assert_settles(&rig.step(Input::Subscribed(*request, 6, &[])), &[(2, 6, 1, Ack)]);
    assert_eq!(rig.step(Input::Take), [Out::Handed(3, 2)], "what waited is handed out as before");
    assert_settles(&rig.step(Input::Settle(1, Ack, 71)), &[(1, 6, 1, Ack)]);
}

#[test]
fn what_was_lost_meanwhile_is_told_and_its_credit_comes_back() {
    let mut rig = Rig::holding(&[1, 2, 3, 4]);
    rig.step(Input::Deliver(&[(5, 1)]));
    rig.step(Input::Settle(1, Ack, 70));
    rig.step(Input::Disconnect);
    assert_eq!(rig.step(Input::Settle(2, Ack, 71)), []);
    let subscribe = rig.step(Input::Connect);
    assert!(matches!(subscribe[..], [Out::Subscribe { credit: 7, .. }]), "{subscribe:?}");
    let out = rig.step(Input::Subscribed(request(&subscribe), 6, &[1, 2, 3, 4, 5]));
    let told = [Out::Told(70, SettleResult::Unknown), Out::Told(71, SettleResult::LeaseLost)];
    assert_eq!(out, [vec![Out::Credit(3, 300)], told.to_vec()].concat());
    assert_eq!(rig.step(Input::Take), []);
}

#[test]
fn a_settlement_made_while_there_is_no_connection_is_sent_on_the_next() {
    let mut rig = Rig::holding(&[1]);
    rig.step(Input::Disconnect);
    assert_eq!(rig.step(Input::Settle(1, Ack, 70)), []);
    let subscribe = rig.step(Input::Connect);
    assert_settles(&rig.step(Input::Subscribed(request(&subscribe), 5, &[])), &[(1, 5, 1, Ack)]);
}

#[test]
fn stale_answers_and_answers_to_others_change_nothing() {
    let mut rig = Rig::holding(&[1]);
    let old = request(&rig.step(Input::Settle(1, Ack, 70)));
    let new = request(&rig.reconnect(6, &[]));
    assert_eq!(rig.step(Input::Fates(old, &[(1, Failed, LOST)])), []);
    assert_eq!(rig.step(Input::Answer(old, Failed, Some(Code::NotLeader))), []);
    assert!(rig.session.owns(new));
    let others = new & 0xffff_ffff_ffff | u64::from(TAG + 1) << 48;
    assert!(!rig.session.owns(others));
    assert_eq!(rig.step(Input::Fates(others, &[(1, Done, None)])), []);
    assert_eq!(rig.session.held().len(), 1);
}

#[test]
fn a_late_answer_about_an_earlier_lease_does_not_end_the_new_one() {
    let mut rig = Rig::holding(&[1]);
    let ack = rig.step(Input::Settle(1, Ack, 70));
    assert_eq!(rig.step(Input::Lose(&[1])), [Out::Told(70, SettleResult::Unknown)]);
    rig.step(Input::Deliver(&[(1, 2)]));
    assert_eq!(rig.step(Input::Fates(request(&ack), &[(1, Failed, LOST)])), []);
    assert_eq!(rig.session.held().len(), 1);
    assert_eq!(rig.step(Input::Take), [Out::Handed(1, 2)]);
    assert_settles(&rig.step(Input::Settle(1, Ack, 71)), &[(1, 5, 2, Ack)]);

    let mut rig = Rig::extending();
    rig.step(Input::Deliver(&[(1, 1)]));
    rig.step(Input::Take);
    let extension = rig.step(Input::Wait(LEASE / 2));
    rig.step(Input::Deliver(&[(1, 2)]));
    rig.step(Input::Fates(request(&extension), &[(1, Failed, LOST)]));
    assert_eq!(rig.session.held().len(), 1);
}

#[test]
fn a_settlement_under_way_is_sent_again_when_the_message_comes_under_a_newer_lease() {
    let mut rig = Rig::holding(&[1]);
    let old = rig.step(Input::Settle(1, Ack, 70));
    let new = rig.step(Input::Deliver(&[(1, 2)]));
    assert_settles(&new, &[(1, 5, 2, Ack)]);
    assert_eq!(rig.step(Input::Fates(request(&old), &[(1, Failed, LOST)])), []);
    let told = rig.step(Input::Fates(request(&new), &[(1, Done, None)]));
    assert_eq!(told, [Out::Told(70, SettleResult::Done)]);
}

/// An application gave a message back. It came again before the answer, was given back again, and so on hundreds of times.
#[test]
fn what_was_given_back_and_comes_again_before_the_answer_is_handed_out_again() {
    for action in [Release, SettleAction::Nack { delay: Some(Duration::ZERO) }] {
        for (end, told) in
            [((1, Done, None), SettleResult::Done), ((1, Failed, LOST), SettleResult::LeaseLost)]
        {
            let mut rig = Rig::holding(&[1]);
            let old = rig.step(Input::Settle(1, action, 70));
            assert_eq!(rig.step(Input::Deliver(&[(1, 2)])), []);
            assert_eq!(rig.step(Input::Take), [Out::Handed(1, 2)]);
            assert_eq!(rig.step(Input::Fates(request(&old), &[end])), [Out::Told(70, told)]);
            assert_settles(&rig.step(Input::Settle(1, Ack, 71)), &[(1, 5, 2, Ack)]);
        }
        let mut rig = Rig::holding(&[1]);
        rig.step(Input::Settle(1, action, 70));
        rig.step(Input::Deliver(&[(1, 2)]));
        assert_eq!(rig.step(Input::Disconnect), [Out::Told(70, SettleResult::Unknown)]);
    }
}

#[test]
fn leases_are_extended_while_messages_are_held_and_not_when_they_are_being_settled() {
    let mut rig = Rig::extending();
    rig.step(Input::Deliver(&[(1, 1), (2, 1), (3, 1)]));
    let extend = SettleAction::Extend { duration: LEASE };
    assert_eq!(rig.session.next_delivery().map(|delivery| delivery.id.offset), Some(Offset(1)));
    assert_eq!(rig.session.next_delivery().map(|delivery| delivery.id.offset), Some(Offset(2)));
    rig.step(Input::Settle(2, Ack, 70));
    let start = rig.now;
    let mut extended = Vec::new();
    while rig.now.since(start) < LEASE * 4 {
        let out = rig.wake();
        if out.is_empty() {
            continue;
        }
        extended.push(rig.now.since(start));
        let [Out::Settle { request, items }] = &out[..] else { panic!("{out:?}") };
        let mut items = items.clone();
        items.sort_unstable_by_key(|item| item.0);
        assert_eq!(items, [(1, 5, 1, extend), (3, 5, 1, extend)]);
        rig.step(Input::Fates(*request, &[(2, Done, None)]));
    }
    let mut ends = Duration::ZERO + LEASE;
    for at in extended {
        assert!(at < ends, "extended at {at:?}, too late for {ends:?}");
        assert!(at >= ends - LEASE / 2, "extended at {at:?}, needlessly early");
        ends = at + LEASE;
    }
    assert!(ends >= LEASE * 4);
}

#[test]
fn a_newer_lease_is_extended_by_its_own_time() {
    let mut rig = Rig::extending();
    rig.step(Input::Deliver(&[(1, 1)]));
    rig.step(Input::Wait(LEASE / 2 - millis(1)));
    rig.step(Input::Deliver(&[(1, 2)]));
    assert_eq!(rig.step(Input::Wait(LEASE / 2 - millis(1))), []);
    let extend = SettleAction::Extend { duration: LEASE };
    assert_settles(&rig.wake(), &[(1, 5, 2, extend)]);
}

#[test]
fn what_is_settled_while_its_extension_waits_is_not_extended() {
    let mut rig = Rig::extending();
    rig.step(Input::Deliver(&[(1, 1), (2, 1)]));
    rig.step(Input::Take);
    let due = rig.now + LEASE / 2;
    while rig.session.next_wake() != Some(due) {
        assert_eq!(rig.wake(), []);
    }
    rig.step(Input::Wait(due.since(rig.now) - millis(10)));
    let refused = rig.step(Input::Settle(1, Ack, 70));
    rig.step(Input::Fates(request(&refused), &[(1, Failed, Some(Code::NotLeader))]));
    assert_eq!(rig.step(Input::Wait(millis(10))), [], "extensions wait out the pause too");
    assert_eq!(rig.step(Input::Settle(2, Ack, 71)), []);
    rig.step(Input::Wait(RESUBSCRIBE_PAUSE - millis(11)));
    assert_settles(&rig.step(Input::Wait(millis(1))), &[(1, 5, 1, Ack), (2, 5, 1, Ack)]);
}

#[test]
fn what_was_lost_while_it_waited_and_is_settled_anew_is_settled_once() {
    let mut rig = Rig::holding(&[1]);
    let refused = rig.step(Input::Settle(1, Ack, 70));
    rig.step(Input::Fates(request(&refused), &[(1, Failed, Some(Code::NotLeader))]));
    assert_eq!(rig.step(Input::Lose(&[1])), [Out::Told(70, SettleResult::LeaseLost)]);
    rig.step(Input::Deliver(&[(1, 2)]));
    rig.step(Input::Take);
    assert_eq!(rig.step(Input::Settle(1, Ack, 71)), []);
    assert_settles(&rig.wake(), &[(1, 5, 2, Ack)]);
}

#[test]
fn leases_that_are_short_from_the_first_message_on_are_extended_in_time() {
    let short = Duration::from_secs(2);
    let mut rig = Rig::extending();
    rig.step(Input::DeliverAs { term: 5, lease: short, items: &[(1, 1)] });
    let start = rig.now;
    let mut out = Vec::new();
    while out.is_empty() {
        out = rig.wake();
    }
    assert_settles(&out, &[(1, 5, 1, SettleAction::Extend { duration: short })]);
    assert!(rig.now.since(start) < short);
}

/// A message that had waited for room on its way came with nothing left of its lease; others were extended by nothing.
#[test]
fn what_is_left_of_one_lease_is_not_what_others_are_extended_by() {
    let mut rig = Rig::extending();
    let extend = SettleAction::Extend { duration: LEASE };
    rig.step(Input::Deliver(&[(1, 1)]));
    rig.step(Input::Wait(LEASE / 2 - millis(1)));
    let out = rig.step(Input::DeliverAs { term: 5, lease: Duration::ZERO, items: &[(2, 1)] });
    assert_settles(&out, &[(2, 5, 1, extend)]);
    rig.step(Input::Fates(request(&out), &[(1, Done, None)]));
    let before = rig.now;
    assert_settles(&rig.wake(), &[(1, 5, 1, extend)]);
    assert_eq!(rig.now.since(before), LEASE / 6, "it looked again and again");
}

#[test]
fn an_extension_that_was_refused_loses_the_message_and_one_that_failed_is_asked_again() {
    let mut rig = Rig::extending();
    rig.step(Input::Deliver(&[(1, 1), (2, 1)]));
    let out = rig.step(Input::Wait(LEASE / 2));
    let [Out::Settle { request, items }] = &out[..] else { panic!("{out:?}") };
    assert_eq!(items.iter().map(|item| item.0).collect::<Vec<_>>(), [2, 1]);
    rig.step(Input::Fates(*request, &[(1, Failed, LOST), (1, Failed, Some(Code::NotLeader))]));
    assert_eq!(rig.session.held().len(), 1);
    assert_settles(&rig.wake(), &[(1, 5, 1, SettleAction::Extend { duration: LEASE })]);
    assert_eq!(rig.step(Input::Take), [Out::Handed(1, 1)]);
}

#[test]
fn leases_of_a_consumer_that_wants_none_extended_run_out() {
    let mut rig = Rig::holding(&[1]);
    assert_eq!(rig.session.next_wake(), None);
    assert_eq!(rig.step(Input::Wait(LEASE)), []);
}

#[test]
fn credit_goes_back_in_large_steps() {
    let settle_all = |credit_messages, credit_bytes| {
        let mut rig = Rig::with(|config| {
            (config.credit_messages, config.credit_bytes) = (credit_messages, credit_bytes);
        });
        rig.session.connected(rig.now);
        rig.session.pump(rig.now, &mut BytesMut::new());
        rig.session.subscribed(u64::from(TAG) << 48 | 1, &Subscribed { shards: vec![], lost: vec![] });
        rig.step(Input::Deliver(&[(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]));
        rig.step(Input::Take);
        let mut credit = Vec::new();
        for offset in 0..7 {
            let sent = rig.step(Input::Settle(offset, Ack, offset));
            let settled = rig.step(Input::Fates(request(&sent), &[(1, Done, None)]));
            for (when, out) in [("sent", sent), ("settled", settled)] {
                let given = out.into_iter().filter(|out| matches!(out, Out::Credit(..)));
                credit.extend(given.map(|out| (offset, when, out)));
            }
        }
        credit
    };
    let quarters = [(2, "sent", Out::Credit(3, 300)), (5, "sent", Out::Credit(3, 300))];
    assert_eq!(settle_all(10, 1 << 20), quarters, "a quarter of the messages");
    assert_eq!(settle_all(1000, 1200), quarters, "a quarter of the bytes");
    let one_by_one: Vec<_> = (0..7).map(|offset| (offset, "settled", Out::Credit(1, 100))).collect();
    assert_eq!(settle_all(1, 100), one_by_one, "the next only when the one before is settled for good");
}

#[test]
fn settlements_that_nobody_answers_make_room_for_less_than_the_credit_again() {
    let mut rig = Rig::holding(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let given =
        |out: Vec<Out>| out.iter().map(|out| if let Out::Credit(n, _) = out { *n } else { 0 }).sum::<u32>();
    let first: u32 = (1..=10).map(|offset| given(rig.step(Input::Settle(offset, Ack, offset)))).sum();
    assert_eq!(first, 9);
    let more: Vec<(u64, u32)> = (11..20).map(|offset| (offset, 1)).collect();
    rig.step(Input::Deliver(&more));
    rig.step(Input::Take);
    let second: u32 = (11..20).map(|offset| given(rig.step(Input::Settle(offset, Ack, offset)))).sum();
    assert_eq!((second, rig.session.held().len()), (0, 19));
}

#[test]
fn the_credit_that_a_repeated_delivery_spent_goes_back_too() {
    let mut rig = Rig::holding(&[1, 2, 3, 4, 5]);
    let again: Vec<(u64, u32)> = (1..=5).map(|offset| (offset, 2)).collect();
    assert_eq!(rig.step(Input::Deliver(&again)), [Out::Credit(5, 500)]);
}

#[path = "consumer_closing_tests.rs"]
mod closing;
#[path = "consumer_pair_tests.rs"]
mod pair;
