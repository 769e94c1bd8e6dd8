//! The producer through its stories: one step at a time, with every frame it writes read back and checked.

use std::collections::VecDeque;

use super::*;
use crate::{
    error::Outcome::{Failed, Ok as Taken, Unknown},
    frame::{Frame, FrameReader, PublishedRun},
};

const TAG: u16 = 7;
/// Sealed bytes of a message that nobody asked to be larger.
const BYTES: usize = 100;
const A: ShardId = ShardId(1);
const B: ShardId = ShardId(2);
const DEADLINE: Duration = Duration::from_secs(30);

/// What happens to a session.
enum Input<'a> {
    Connect,
    ConnectWith {
        messages: u32,
        bytes: u64,
    },
    Disconnect,
    /// Messages with these tickets, for shard A, in no hurry.
    Send(&'a [u64]),
    SendTo {
        ticket: u64,
        shard: ShardId,
        bytes: usize,
        deadline: Duration,
    },
    /// A frame of fates: how many, how they ended.
    Fates(u64, &'a [(u16, Outcome, Option<Code>)]),
    Answer(u64, Outcome, Option<Code>),
    Close,
    Wait(Duration),
}

/// What a session wishes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Out {
    Open {
        request: u64,
        shard: ShardId,
    },
    /// First and last sequence.
    Publish {
        request: u64,
        shard: ShardId,
        first: u64,
        last: u64,
    },
    Skip {
        request: u64,
        shard: ShardId,
        first: u64,
        last: u64,
    },
    Close {
        request: u64,
        shard: ShardId,
    },
    Told(u64, SendResult),
}

/// A session, its time, and what was sealed under each sequence.
struct Rig {
    session: Producer,
    now: Instant,
    sealed: BTreeMap<(ShardId, u64), Bytes>,
}

impl Rig {
    fn new() -> Self {
        Self::with_window(1 << 20, 64 << 20)
    }

    fn with_window(window_messages: usize, window_bytes: usize) -> Self {
        let session = Producer::new(ProducerConfig {
            policy: None,
            tag: TAG,
            producer: ProducerId(9),
            epoch: ProducerEpoch(3),
            salt: Salt([4; 32]),
            created_at: WallTime(5),
            window_messages,
            window_bytes,
            seed: 11,
            slip: None,
        });
        Self { session, now: Instant::from_millis(1000), sealed: BTreeMap::new() }
    }

    /// Connected, with an open session in shard A.
    fn open() -> Self {
        let mut rig = Self::new();
        rig.step(Input::Connect);
        let open = rig.step(Input::SendTo { ticket: 0, shard: A, bytes: BYTES, deadline: DEADLINE });
        let published = rig.step(Input::Answer(request(&open), Taken, None));
        assert_eq!(rig.step(stored(&published)), [told_stored(0, 1)]);
        rig
    }

    fn submit(&mut self, ticket: u64, shard: ShardId, bytes: usize, deadline: Duration) {
        let sealed = &mut self.sealed;
        let sequence = self.session.submit(ticket, shard, (self.now, self.now + deadline), |sequence| {
            let mut message = sequence.0.to_be_bytes().to_vec();
            message.extend((bytes as u64).to_be_bytes());
            message.extend(ticket.to_be_bytes());
            message.resize(bytes, ticket as u8);
            let message = Bytes::from(message);
            let before = sealed.insert((shard, sequence.0), message.clone());
            assert_eq!(before, None, "a sequence is sealed once");
            Ok::<_, ()>(message)
        });
        assert!(sequence.is_ok());
    }

    /// The only place that touches the session's interface.
    fn step(&mut self, input: Input<'_>) -> Vec<Out> {
        match input {
            Input::Connect => self.session.connected(Way::Home, 65_536, 64 << 20),
            Input::ConnectWith { messages, bytes } => self.session.connected(Way::Home, messages, bytes),
            Input::Disconnect => self.session.disconnected(Way::Home),
            Input::Send(tickets) => {
                tickets.iter().for_each(|ticket| self.submit(*ticket, A, BYTES, DEADLINE));
            }
            Input::SendTo { ticket, shard, bytes, deadline } => self.submit(ticket, shard, bytes, deadline),
            Input::Fates(request, fates) => {
                let runs = fates.iter().map(|(count, outcome, code)| PublishedRun {
                    count: *count,
                    outcome: *outcome,
                    code: code.map_or(0, Code::number),
                    duplicate: false,
                    first_offset: None,
                });
                self.session.published(self.now, request, &Published { runs: runs.collect() });
            }
            Input::Answer(request, outcome, code) => {
                let code = code.map_or(0, Code::number);
                let answer = Answer { outcome, code, message: String::new() };
                self.session.answer(self.now, request, &answer);
            }
            Input::Close => self.session.close(),
            Input::Wait(duration) => self.now = self.now + duration,
        }
        let mut bytes = BytesMut::new();
        self.session.pump(self.now, Way::Home, &mut bytes);
        let mut out = self.read(&bytes);
        let mut resolutions = Vec::new();
        self.session.take_resolutions(&mut resolutions);
        out.extend(resolutions.into_iter().map(|told| Out::Told(told.ticket, told.result)));
        out
    }

    fn read(&self, bytes: &[u8]) -> Vec<Out> {
        let mut reader = FrameReader::new();
        reader.set_authenticated();
        reader.buffer().extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some((header, body)) = reader.next_frame().unwrap() {
            let request = header.request;
            assert!(self.session.owns(request));
            out.push(match Frame::decode(header.kind, body).unwrap() {
                Frame::OpenSession(open) => {
                    assert_eq!((open.producer, open.epoch, open.salt), self.session.identity());
                    assert_eq!(open.created_at, WallTime(5));
                    Out::Open { request, shard: open.shard }
                }
                Frame::Publish(publish) => self.read_publish(request, &publish),
                Frame::Skip(skip) => {
                    assert_eq!((skip.producer, skip.epoch), (ProducerId(9), ProducerEpoch(3)));
                    Out::Skip { request, shard: skip.shard, first: skip.first.0, last: skip.last.0 }
                }
                Frame::CloseSession(close) => {
                    assert_eq!((close.producer, close.epoch), (ProducerId(9), ProducerEpoch(3)));
                    Out::Close { request, shard: close.shard }
                }
                other => panic!("a producer does not send {other:?}"),
            });
        }
        out
    }

    /// Safety rule 1, at every publish of every test: these bytes were sealed under these sequences.
    fn read_publish(&self, request: u64, publish: &Publish) -> Out {
        let shard = publish.shard;
        let first = u64::from_be_bytes(publish.messages[..8].try_into().unwrap());
        let mut at = 0;
        for sequence in first..first + u64::from(publish.count) {
            let sealed = &self.sealed[&(shard, sequence)];
            assert_eq!(&publish.messages[at..at + sealed.len()], sealed, "bytes of sequence {sequence}");
            at += sealed.len();
        }
        assert_eq!(at, publish.messages.len());
        assert!(publish.deadline >= Duration::from_millis(100));
        Out::Publish { request, shard, first, last: first + u64::from(publish.count) - 1 }
    }

    /// Sends `count` messages on an open session and has the first frame of them answered with `fates`.
    fn send_and_answer(&mut self, tickets: &[u64], fates: &[(u16, Outcome, Option<Code>)]) -> Vec<Out> {
        let published = self.step(Input::Send(tickets));
        self.step(Input::Fates(request(&published), fates))
    }

    /// Lets time pass until the session says that it has something to do.
    fn wake(&mut self) -> Vec<Out> {
        let at = self.session.next_wake(self.now).expect("it waits for something");
        self.step(Input::Wait(at.since(self.now)))
    }
}

/// The request number of the only frame in `out`.
fn request(out: &[Out]) -> u64 {
    let requests: Vec<u64> = out.iter().filter_map(request_of).collect();
    assert_eq!(requests.len(), 1, "{out:?}");
    requests[0]
}

fn request_of(out: &Out) -> Option<u64> {
    match out {
        Out::Open { request, .. }
        | Out::Publish { request, .. }
        | Out::Skip { request, .. }
        | Out::Close { request, .. } => Some(*request),
        Out::Told(..) => None,
    }
}

/// First and last sequences of the publishes in `out`; nothing else may be there.
fn published(out: &[Out]) -> Vec<(u64, u64)> {
    let publish = |out: &Out| match out {
        Out::Publish { first, last, .. } => (*first, *last),
        other => panic!("{other:?}"),
    };
    out.iter().map(publish).collect()
}

/// The only frame in `out` was stored.
fn stored(out: &[Out]) -> Input<'static> {
    Input::Answer(request(out), Taken, None)
}

fn id(sequence: u64) -> MessageId {
    MessageId { producer: ProducerId(9), epoch: ProducerEpoch(3), shard: A, sequence: Sequence(sequence) }
}

fn told_stored(ticket: u64, sequence: u64) -> Out {
    Out::Told(ticket, SendResult::Stored { id: id(sequence), offset: None, duplicate: false })
}

fn told_failed(ticket: u64, code: Code) -> Out {
    Out::Told(ticket, SendResult::Failed(code))
}

fn told_unknown(ticket: u64, code: Code) -> Out {
    Out::Told(ticket, SendResult::Unknown(code))
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_session_is_opened_before_its_first_message_and_everything_at_hand_goes_in_one_frame() {
    let mut rig = Rig::new();
    assert_eq!(rig.step(Input::Send(&[10, 11])), [], "not connected");
    let open = rig.step(Input::Connect);
    assert!(matches!(open[..], [Out::Open { shard: A, .. }]), "{open:?}");
    assert_eq!(rig.step(Input::Send(&[12])), [], "the session is not open yet");
    let all = rig.step(Input::Answer(request(&open), Taken, None));
    assert_eq!(published(&all), [(1, 3)]);
    assert_eq!(rig.step(stored(&all)), [told_stored(10, 1), told_stored(11, 2), told_stored(12, 3)]);
    assert_eq!(rig.session.open_messages(), 0);
}

#[test]
fn each_shard_has_a_session_and_sequences_of_its_own() {
    let mut rig = Rig::open();
    let other = rig.step(Input::SendTo { ticket: 20, shard: B, bytes: BYTES, deadline: DEADLINE });
    assert!(matches!(other[..], [Out::Open { shard: B, .. }]), "{other:?}");
    assert_eq!(published(&rig.step(Input::Send(&[21]))), [(2, 2)], "shard A does not wait for shard B");
    let first = rig.step(Input::Answer(request(&other), Taken, None));
    assert!(matches!(first[..], [Out::Publish { shard: B, first: 1, last: 1, .. }]), "{first:?}");
}

#[test]
fn a_stored_message_tells_its_name_its_place_and_whether_it_was_a_copy() {
    let mut rig = Rig::open();
    let out = rig.step(Input::Send(&[1, 2, 3]));
    let run = |count, duplicate, first_offset| PublishedRun {
        count,
        outcome: Taken,
        code: 0,
        duplicate,
        first_offset,
    };
    let runs = vec![run(1, true, Some(Offset(50))), run(2, false, Some(Offset(70)))];
    rig.session.published(rig.now, request(&out), &Published { runs });
    let tell = |ticket, sequence, offset, duplicate| {
        let (id, offset) = (id(sequence), Some(Offset(offset)));
        Out::Told(ticket, SendResult::Stored { id, offset, duplicate })
    };
    assert_eq!(
        rig.step(Input::Wait(millis(0))),
        [tell(1, 2, 50, true), tell(2, 3, 70, false), tell(3, 4, 71, false)]
    );
}

#[test]
fn a_new_connection_repeats_everything_unanswered_and_nothing_else() {
    let mut rig = Rig::open();
    let first = rig.step(Input::Send(&[1, 2]));
    rig.step(Input::Send(&[3]));
    assert_eq!(rig.step(stored(&first)), [told_stored(1, 2), told_stored(2, 3)]);
    rig.step(Input::Disconnect);
    assert_eq!(rig.step(Input::Send(&[4])), []);
    // The session is in the shard's log: it need not be opened again.
    assert_eq!(published(&rig.step(Input::Connect)), [(4, 5)]);
    rig.step(Input::Disconnect);
    let again = rig.step(Input::Connect);
    assert_eq!(published(&again), [(4, 5)]);
    assert_eq!(rig.step(stored(&again)), [told_stored(3, 4), told_stored(4, 5)]);
}

#[test]
fn a_new_connection_does_not_wait_for_the_pauses_of_the_old_one() {
    let mut rig = Rig::open();
    rig.send_and_answer(&[1], &[(1, Failed, Some(Code::Busy))]);
    rig.step(Input::Disconnect);
    assert_eq!(published(&rig.step(Input::Connect)), [(2, 2)]);
}

#[test]
fn answers_of_an_earlier_connection_and_second_answers_change_nothing() {
    let mut rig = Rig::open();
    let old = rig.step(Input::Send(&[1]));
    rig.step(Input::Disconnect);
    let new = rig.step(Input::Connect);
    assert_eq!(rig.step(Input::Answer(request(&old), Failed, Some(Code::Malformed))), []);
    assert_eq!(rig.step(stored(&new)), [told_stored(1, 2)]);
    assert_eq!(rig.step(Input::Answer(request(&new), Failed, Some(Code::Fenced))), []);
    assert_eq!(rig.step(Input::Fates(request(&new), &[(1, Failed, Some(Code::Gap))])), []);
    assert_eq!(rig.session.fenced(), None);
}

#[test]
fn requests_of_others_are_not_ours() {
    let mut rig = Rig::open();
    let ours = request(&rig.step(Input::Send(&[1])));
    assert!(rig.session.owns(ours));
    let others = ours & 0xffff_ffff_ffff | u64::from(TAG + 1) << 48;
    assert!(!rig.session.owns(others));
    assert_eq!(rig.step(Input::Answer(others, Taken, None)), []);
    assert_eq!(rig.step(Input::Fates(others, &[(1, Taken, None)])), []);
    assert_eq!(rig.session.open_messages(), 1);
}

#[test]
fn a_session_whose_opening_got_lost_is_opened_again() {
    let mut rig = Rig::new();
    rig.step(Input::Send(&[1]));
    let lost = rig.step(Input::Connect);
    rig.step(Input::Disconnect);
    let open = rig.step(Input::Connect);
    assert!(matches!(open[..], [Out::Open { .. }]), "{open:?}");
    assert_eq!(rig.step(Input::Answer(request(&lost), Taken, None)), [], "a stale answer opens nothing");
    assert_eq!(published(&rig.step(Input::Answer(request(&open), Taken, None))), [(1, 1)]);
}

#[test]
fn a_session_that_cannot_be_opened_now_is_opened_later() {
    for (outcome, code) in [(Failed, Code::NotLeader), (Unknown, Code::LogStopped)] {
        let mut rig = Rig::new();
        rig.step(Input::Send(&[1]));
        let open = rig.step(Input::Connect);
        assert_eq!(rig.step(Input::Answer(request(&open), outcome, Some(code))), []);
        let again = rig.wake();
        assert!(matches!(again[..], [Out::Open { .. }]), "{again:?}");
        assert_ne!(request(&again), request(&open));
    }
}

#[test]
fn a_shard_that_does_not_know_the_session_is_told_it_again_and_gets_the_same_bytes() {
    let mut rig = Rig::open();
    rig.send_and_answer(&[1, 2], &[(2, Failed, Some(Code::NotOpen))]);
    let open = rig.wake();
    assert!(matches!(open[..], [Out::Open { .. }]), "{open:?}");
    let again = rig.step(Input::Answer(request(&open), Taken, None));
    assert_eq!(published(&again), [(2, 3)]);
}

#[test]
fn a_message_refused_for_good_has_failed_only_when_its_skip_is_committed() {
    let mut rig = Rig::open();
    let skip = rig.send_and_answer(&[1], &[(1, Failed, Some(Code::NotAllowed))]);
    assert!(matches!(skip[..], [Out::Skip { shard: A, first: 2, last: 2, .. }]), "{skip:?}");
    assert_eq!(rig.step(Input::Wait(millis(1000))), [], "nothing is known before the skip is");
    assert_eq!(rig.step(stored(&skip)), [told_failed(1, Code::NotAllowed)]);
    assert_eq!(published(&rig.step(Input::Send(&[2]))), [(3, 3)], "its sequence is never used again");
}

#[test]
fn a_skip_is_asked_until_it_is_answered() {
    let mut rig = Rig::open();
    let skip = rig.send_and_answer(&[1], &[(1, Failed, Some(Code::Forged))]);
    rig.step(Input::Answer(request(&skip), Failed, Some(Code::NotLeader)));
    let skip = rig.wake();
    assert!(matches!(skip[..], [Out::Skip { first: 2, last: 2, .. }]), "{skip:?}");
    rig.step(Input::Answer(request(&skip), Unknown, Some(Code::LogStopped)));
    let lost = rig.wake();
    rig.step(Input::Disconnect);
    let skip = rig.step(Input::Connect);
    assert!(matches!(skip[..], [Out::Skip { first: 2, last: 2, .. }]), "{skip:?}");
    assert_eq!(rig.step(stored(&lost)), [], "a stale answer");
    rig.step(Input::Answer(request(&skip), Failed, Some(Code::NotOpen)));
    let open = rig.wake();
    assert!(matches!(open[..], [Out::Open { .. }]), "{open:?}");
    let skip = rig.step(Input::Answer(request(&open), Taken, None));
    assert_eq!(rig.step(stored(&skip)), [told_failed(1, Code::Forged)]);
}

#[test]
fn a_skip_that_comes_too_late_means_that_the_message_is_stored() {
    let mut rig = Rig::open();
    let skip = rig.send_and_answer(&[1], &[(1, Failed, Some(Code::NoSuchAddress))]);
    let told = rig.step(Input::Answer(request(&skip), Failed, Some(Code::Exists)));
    let stored = SendResult::Stored { id: id(2), offset: None, duplicate: true };
    assert_eq!(told, [Out::Told(1, stored)]);
    assert_eq!(rig.session.open_messages(), 0);
}

#[test]
fn of_several_sequences_given_up_each_is_asked_for_when_one_of_them_was_taken() {
    let mut rig = Rig::open();
    let skip = rig.send_and_answer(&[1, 2, 3], &[(3, Failed, Some(Code::NoSuchAddress))]);
    assert!(matches!(skip[..], [Out::Skip { first: 2, last: 4, .. }]), "{skip:?}");
    let single = rig.step(Input::Answer(request(&skip), Failed, Some(Code::Exists)));
    assert!(matches!(single[..], [Out::Skip { first: 2, last: 2, .. }]), "nothing told yet: {single:?}");
    let next = rig.step(Input::Answer(request(&single), Failed, Some(Code::Exists)));
    let stored = SendResult::Stored { id: id(2), offset: None, duplicate: true };
    assert_eq!(next.last(), Some(&Out::Told(1, stored)));
    let next = rig.step(Input::Answer(request(&next), Taken, None));
    assert_eq!(next.last(), Some(&told_failed(2, Code::NoSuchAddress)));
    let last = rig.step(Input::Answer(request(&next), Taken, None));
    assert_eq!(last, [told_failed(3, Code::NoSuchAddress)]);
    // The next ones that are given up go together again.
    let skip = rig.send_and_answer(&[4, 5], &[(2, Failed, Some(Code::NoSuchAddress))]);
    assert!(matches!(skip[..], [Out::Skip { first: 5, last: 6, .. }]), "{skip:?}");
}

#[test]
fn what_is_given_up_holds_back_what_follows_and_not_what_comes_before() {
    let mut rig = Rig::open();
    let fates =
        [(1, Failed, Some(Code::Busy)), (1, Failed, Some(Code::Forged)), (1, Failed, Some(Code::Gap))];
    assert_eq!(rig.send_and_answer(&[1, 2, 3], &fates), []);
    let before = rig.wake();
    assert_eq!(published(&before), [(2, 2)]);
    assert_eq!(rig.step(Input::Send(&[4])), [], "it would only be a gap");
    let skip = rig.step(stored(&before));
    assert!(matches!(skip[0], Out::Skip { first: 3, last: 3, .. }), "{skip:?}");
    let rest = rig.step(stored(&skip[..1]));
    assert_eq!(published(&rest[..1]), [(4, 5)]);
    assert_eq!(rest[1..], [told_failed(2, Code::Forged)]);
}

#[test]
fn a_message_never_sent_has_failed_at_its_deadline_and_is_never_sent_after() {
    let mut rig = Rig::new();
    rig.step(Input::SendTo { ticket: 1, shard: A, bytes: BYTES, deadline: millis(50) });
    rig.step(Input::SendTo { ticket: 2, shard: A, bytes: BYTES, deadline: millis(500) });
    assert_eq!(rig.step(Input::Wait(millis(49))), []);
    assert_eq!(rig.wake(), [told_failed(1, Code::Deadline)]);
    let open = rig.step(Input::Connect);
    let skip = rig.step(Input::Answer(request(&open), Taken, None));
    assert!(matches!(skip[..], [Out::Skip { first: 1, last: 1, .. }]), "no gap may stay: {skip:?}");
    let rest = rig.step(stored(&skip));
    assert_eq!(published(&rest), [(2, 2)]);
}

#[test]
fn a_message_that_was_sent_is_unknown_at_its_deadline_and_goes_on_being_repeated() {
    let mut rig = Rig::open();
    rig.step(Input::SendTo { ticket: 1, shard: A, bytes: BYTES, deadline: millis(50) });
    rig.step(Input::Disconnect);
    assert_eq!(rig.wake(), [told_unknown(1, Code::Deadline)]);
    assert_eq!(rig.step(Input::Wait(Duration::from_secs(60))), []);
    let copy = rig.step(Input::Connect);
    assert_eq!(published(&copy), [(2, 2)]);
    assert_eq!(rig.step(stored(&copy)), [], "nobody waits for it any more");
    assert_eq!(rig.session.open_messages(), 0);
}

#[test]
fn a_message_refused_until_its_deadline_has_failed_for_the_last_reason_unless_a_copy_has_no_answer() {
    for lose_an_answer in [false, true] {
        let mut rig = Rig::open();
        let mut sent = rig.step(Input::SendTo { ticket: 1, shard: A, bytes: BYTES, deadline: millis(50) });
        if lose_an_answer {
            rig.step(Input::Disconnect);
            sent = rig.step(Input::Connect);
        }
        rig.step(Input::Fates(request(&sent), &[(1, Failed, Some(Code::DiskFull))]));
        let result = if lose_an_answer {
            SendResult::Unknown(Code::Deadline)
        } else {
            SendResult::Failed(Code::DiskFull)
        };
        let told = rig.step(Input::Wait(millis(60)));
        assert!(told.contains(&Out::Told(1, result)), "{told:?}");
    }
}

#[test]
fn a_refusal_after_the_deadline_does_not_turn_unknown_into_failed() {
    let mut rig = Rig::open();
    let sent = rig.step(Input::SendTo { ticket: 1, shard: A, bytes: BYTES, deadline: millis(50) });
    assert_eq!(rig.wake(), [told_unknown(1, Code::Deadline)]);
    let skip = rig.step(Input::Answer(request(&sent), Failed, Some(Code::NotAllowed)));
    assert!(matches!(skip[..], [Out::Skip { first: 2, last: 2, .. }]), "{skip:?}");
    assert_eq!(rig.step(stored(&skip)), []);
}

#[test]
fn what_lingers_too_long_is_given_up() {
    let mut rig = Rig::open();
    rig.step(Input::SendTo { ticket: 1, shard: A, bytes: BYTES, deadline: millis(50) });
    rig.step(Input::Disconnect);
    assert_eq!(rig.wake(), [told_unknown(1, Code::Deadline)]);
    assert_eq!(rig.wake(), []);
    assert_eq!(rig.now, Instant::from_millis(1050) + LINGER);
    let skip = rig.step(Input::Connect);
    assert!(matches!(skip[..], [Out::Skip { first: 2, last: 2, .. }]), "{skip:?}");
}

#[test]
fn what_was_in_flight_when_its_time_was_over_is_given_up_when_it_comes_back() {
    for comes_back_by_refusal in [true, false] {
        let mut rig = Rig::open();
        let sent = rig.step(Input::SendTo { ticket: 1, shard: A, bytes: BYTES, deadline: millis(50) });
        assert_eq!(rig.wake(), [told_unknown(1, Code::Deadline)]);
        rig.step(Input::Wait(LINGER));
        let skip = if comes_back_by_refusal {
            rig.step(Input::Answer(request(&sent), Failed, Some(Code::Busy)));
            rig.wake()
        } else {
            rig.step(Input::Disconnect);
            rig.step(Input::Connect)
        };
        assert!(matches!(skip[..], [Out::Skip { first: 2, last: 2, .. }]), "{skip:?}");
        assert_eq!(rig.step(stored(&skip)), []);
        assert_eq!((rig.session.open_messages(), rig.session.next_wake(rig.now)), (0, None));
    }
}

#[test]
fn a_refusal_that_may_pass_is_answered_by_the_same_bytes_after_growing_pauses() {
    for (outcome, code) in [(Failed, Code::BacklogFull), (Failed, Code::Gap), (Unknown, Code::LogStopped)] {
        let mut rig = Rig::open();
        let mut out = rig.step(Input::Send(&[1]));
        let mut pause = BACKOFF_FIRST;
        for _ in 0..12 {
            assert_eq!(rig.step(Input::Answer(request(&out), outcome, Some(code))), []);
            assert_eq!(rig.step(Input::Wait(pause / 2 - millis(1))), [], "not before half the pause");
            let before = rig.now;
            out = rig.wake();
            assert_eq!(published(&out), [(2, 2)]);
            assert!(rig.now.since(before) <= pause + millis(1), "not after one and a half");
            pause = (pause * 2).min(BACKOFF_MAX);
        }
        assert_eq!(rig.step(stored(&out)), [told_stored(1, 2)]);
        // Success makes the pauses short again.
        assert_eq!(rig.send_and_answer(&[2], &[(1, outcome, Some(code))]), []);
        let wait = rig.session.next_wake(rig.now).unwrap().since(rig.now);
        assert!(wait <= BACKOFF_FIRST * 3 / 2, "{wait:?}");
    }
}

#[test]
fn repeats_beyond_the_budget_wait_longest() {
    let first_pause = |count: u64| {
        let mut rig = Rig::open();
        let tickets: Vec<u64> = (1..=count).collect();
        rig.send_and_answer(&tickets, &[(count as u16, Failed, Some(Code::Busy))]);
        rig.session.next_wake(rig.now).unwrap().since(rig.now)
    };
    // 256 are always allowed, and one per ten that were sent for the first time.
    assert!(first_pause(280) <= BACKOFF_FIRST * 3 / 2);
    assert!(first_pause(290) >= BACKOFF_MAX / 2);
}

#[test]
fn fates_within_one_frame_are_told_apart() {
    let mut rig = Rig::open();
    let fates = [(2, Taken, None), (1, Failed, Some(Code::TooLarge)), (2, Failed, Some(Code::Gap))];
    let out = rig.send_and_answer(&[1, 2, 3, 4, 5], &fates);
    assert_eq!(out, [told_stored(1, 2), told_stored(2, 3)]);
    let skip = rig.wake();
    assert!(matches!(skip[..], [Out::Skip { first: 4, last: 4, .. }]), "{skip:?}");
    let out = rig.step(stored(&skip));
    assert_eq!(published(&out[..1]), [(5, 6)]);
    assert_eq!(out[1..], [told_failed(3, Code::TooLarge)]);
}

#[test]
fn fates_of_messages_that_were_not_in_the_frame_are_not_believed() {
    let mut rig = Rig::open();
    let out = rig.step(Input::Send(&[1]));
    rig.step(Input::Send(&[2]));
    assert_eq!(rig.step(Input::Fates(request(&out), &[(9, Taken, None)])), [told_stored(1, 2)]);
    assert_eq!(rig.session.open_messages(), 1);
}

#[test]
fn a_frame_is_bounded_in_messages_and_in_bytes() {
    let mut rig = Rig::new();
    let tickets: Vec<u64> = (0..5000).collect();
    rig.step(Input::Send(&tickets));
    let half = BATCH_BYTES / 2;
    for ticket in 0..3 {
        rig.step(Input::SendTo { ticket, shard: B, bytes: half, deadline: DEADLINE });
    }
    rig.step(Input::SendTo { ticket: 3, shard: B, bytes: BATCH_BYTES * 2, deadline: DEADLINE });
    let opens = rig.step(Input::Connect);
    let per_frame = (BATCH_BYTES / BYTES).min(BATCH_MESSAGES_MAX) as u64;
    let small = rig.step(stored(&opens[..1]));
    assert_eq!(published(&small), [(1, per_frame), (per_frame + 1, 5000)]);
    let large = rig.step(stored(&opens[1..]));
    assert_eq!(published(&large), [(1, 2), (3, 3), (4, 4)], "one that is too large goes alone");

    let mut rig = Rig::open();
    for ticket in 1..=5000 {
        rig.submit(ticket, A, 24, DEADLINE);
    }
    let many = BATCH_MESSAGES_MAX as u64;
    assert_eq!(published(&rig.step(Input::Wait(millis(0)))), [(2, many + 1), (many + 2, 5001)]);
}

#[test]
fn no_more_is_in_flight_than_the_connection_allows() {
    let mut rig = Rig::open();
    rig.step(Input::Disconnect);
    rig.step(Input::ConnectWith { messages: 3, bytes: 1 << 20 });
    let first = rig.step(Input::Send(&[1, 2, 3, 4, 5]));
    assert_eq!(published(&first), [(2, 4)]);
    assert_eq!(rig.step(Input::Send(&[6])), []);
    let rest = rig.step(Input::Fates(request(&first), &[(2, Taken, None), (1, Failed, Some(Code::Busy))]));
    assert_eq!(rest, [told_stored(1, 2), told_stored(2, 3)], "after a refusal it waits");
    assert_eq!(published(&rig.wake()), [(4, 6)]);

    rig.step(Input::Disconnect);
    let by_bytes = rig.step(Input::ConnectWith { messages: 100, bytes: 2 * BYTES as u64 + 1 });
    assert_eq!(published(&by_bytes), [(4, 5)]);
    let next = rig.step(stored(&by_bytes));
    assert_eq!(published(&next[..1]), [(6, 7)], "an answer makes room again");
}

#[test]
fn there_is_room_for_so_many_messages_and_bytes_and_always_for_one() {
    let mut rig = Rig::with_window(3, 250);
    assert!(rig.session.has_room(1000), "one that is larger than the window must still be possible");
    rig.step(Input::Send(&[1]));
    assert!(rig.session.has_room(150));
    assert!(!rig.session.has_room(151));
    rig.step(Input::Send(&[2]));
    let open = rig.step(Input::Connect);
    assert!(!rig.session.has_room(100));
    let both = rig.step(stored(&open));
    rig.step(stored(&both));
    assert!(rig.session.has_room(250));
    for ticket in 3..6 {
        rig.submit(ticket, A, 24, DEADLINE);
    }
    assert!(!rig.session.has_room(1), "three messages are all");
}

#[test]
fn a_frame_waits_as_long_as_the_most_patient_of_its_messages() {
    let mut rig = Rig::open();
    rig.submit(1, A, BYTES, millis(10));
    rig.submit(2, A, BYTES, millis(700));
    rig.submit(3, A, BYTES, millis(300));
    let mut bytes = BytesMut::new();
    rig.session.pump(rig.now, Way::Home, &mut bytes);
    let publish: Publish = frame::decode(bytes.freeze().slice(frame::FRAME_HEADER_BYTES..)).unwrap();
    assert_eq!(publish.deadline, millis(700));
}

#[test]
fn a_fenced_session_tells_what_may_be_stored_apart_from_what_is_not_and_sends_no_more() {
    for code in [Code::Fenced, Code::StaleSession] {
        let mut rig = Rig::open();
        rig.step(Input::Disconnect);
        rig.step(Input::ConnectWith { messages: 2, bytes: 1 << 20 });
        let out = rig.step(Input::Send(&[1, 2, 3]));
        assert_eq!(published(&out), [(2, 3)]);
        let told = rig.step(Input::Fates(request(&out), &[(1, Taken, None), (1, Failed, Some(code))]));
        assert_eq!(told, [told_stored(1, 2), told_unknown(2, code), told_failed(3, code)]);
        assert_eq!(rig.session.fenced(), Some(code));
        assert!(!rig.session.has_room(1));
        assert_eq!(rig.session.next_wake(rig.now), None);
        assert_eq!(rig.step(Input::Wait(LINGER)), []);
        rig.step(Input::Disconnect);
        assert_eq!(rig.step(Input::Connect), []);
    }
}

#[test]
fn a_refused_opening_or_a_fenced_skip_ends_the_session_too() {
    let mut rig = Rig::new();
    rig.step(Input::Send(&[1]));
    let open = rig.step(Input::Connect);
    let told = rig.step(Input::Answer(request(&open), Failed, Some(Code::StaleSession)));
    assert_eq!(told, [told_failed(1, Code::StaleSession)]);
    assert_eq!(rig.session.fenced(), Some(Code::StaleSession));

    let mut rig = Rig::open();
    let skip = rig.send_and_answer(&[1], &[(1, Failed, Some(Code::Forged))]);
    let told = rig.step(Input::Answer(request(&skip), Failed, Some(Code::Fenced)));
    assert_eq!(told, [told_unknown(1, Code::Fenced)], "its skip was not committed");
    assert_eq!(rig.session.fenced(), Some(Code::Fenced));
}

#[test]
fn the_session_after_a_fenced_one_has_the_whole_window_of_the_connection() {
    let mut rig = Rig::open();
    rig.step(Input::Disconnect);
    rig.step(Input::ConnectWith { messages: 2, bytes: 2 * BYTES as u64 });
    let first = rig.step(Input::Send(&[1]));
    rig.step(Input::Send(&[2]));
    rig.step(Input::Answer(request(&first), Failed, Some(Code::Fenced)));
    let mut fresh = Rig::new();
    fresh.session.adopt_ways(&rig.session);
    assert!(fresh.session.is_connected());
    let open = fresh.step(Input::Send(&[5, 6]));
    assert_eq!(published(&fresh.step(stored(&open))), [(1, 2)]);
}

#[test]
fn closing_waits_for_every_fate_and_then_ends_the_session_in_every_shard() {
    let mut rig = Rig::open();
    let open = rig.step(Input::SendTo { ticket: 1, shard: B, bytes: BYTES, deadline: DEADLINE });
    let last = rig.step(stored(&open));
    let close = rig.step(Input::Close);
    assert!(matches!(close[..], [Out::Close { shard: A, .. }]), "shard B is not done: {close:?}");
    assert!(!rig.session.has_room(1), "no more messages are taken");
    let close_b = rig.step(stored(&last));
    assert!(matches!(close_b[0], Out::Close { shard: B, .. }), "{close_b:?}");
    assert!(!rig.session.is_closed());
    assert_eq!(rig.step(stored(&close)), []);
    // A refusal is as good: the shard forgets the session by itself, only later.
    assert_eq!(rig.step(Input::Answer(request(&close_b), Failed, Some(Code::Fenced))), []);
    assert!(rig.session.is_closed());
    assert_eq!(rig.step(Input::Wait(LINGER)), [], "once is enough");
}

#[test]
fn a_session_that_never_opened_or_was_fenced_is_closed_at_once() {
    let mut rig = Rig::new();
    assert!(!rig.session.is_closed());
    rig.step(Input::Close);
    assert!(rig.session.is_closed());

    let mut rig = Rig::open();
    let out = rig.step(Input::Send(&[1]));
    rig.step(Input::Close);
    assert!(!rig.session.is_closed());
    let told = rig.step(Input::Answer(request(&out), Failed, Some(Code::Fenced)));
    assert_eq!(told, [told_unknown(1, Code::Fenced)], "there is no session left to be closed");
    assert!(rig.session.is_closed());
}

#[test]
fn a_close_whose_answer_got_lost_is_said_again() {
    let mut rig = Rig::open();
    rig.step(Input::Close);
    rig.step(Input::Disconnect);
    assert!(!rig.session.is_closed());
    let again = rig.step(Input::Connect);
    assert!(matches!(again[..], [Out::Close { shard: A, .. }]), "{again:?}");
    rig.step(stored(&again));
    assert!(rig.session.is_closed());
}

#[path = "producer_pair_tests.rs"]
mod pair;
#[path = "producer_ways_tests.rs"]
mod several;
