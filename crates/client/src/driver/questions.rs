//! Questions that belong to no session: administration, the order of an address, looks without a lease.
//!
//! Each has a deadline. One whose connection broke is asked again on the next, unless asking twice could do more than
//! asking once: then its outcome is unknown, and the program is told so at once.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    access::AccessRequest,
    admin::{AdminAnswer, AdminRequest, Order},
    envelope,
    error::{Code, Outcome},
    frame::{self, Admin, Answer, Peek, Peeked, Resolve},
    id::Offset,
    time::Instant,
};
use swarmmq_seal::{ClientKeyring, Opener};
use tokio::sync::oneshot;

use super::{refusal, told};
use crate::{Error, Seen};

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What was seen in one look: messages, or why one cannot be shown; where to look next; whether there is nothing further.
pub(crate) type Page = (Vec<Result<Seen, Error>>, Offset, bool);

/// What can be asked.
pub(crate) enum Question {
    Admin(AdminRequest, Reply<Option<AdminAnswer>>),
    Resolve(Resolve, Reply<Order>),
    Peek(Peek, Reply<Page>),
}

impl Question {
    /// Whether the cluster may be another afterwards.
    fn changes(&self) -> bool {
        match self {
            Self::Admin(request, _) => match request {
                AdminRequest::AddressCreate { .. }
                | AdminRequest::AddressSet { .. }
                | AdminRequest::ProducerTakeOver { .. }
                | AdminRequest::NodeDrain { .. }
                | AdminRequest::SettingSet { .. }
                | AdminRequest::NodeRemove { .. } => true,
                AdminRequest::Access(request) => *request != AccessRequest::List,
                AdminRequest::AddressRemove { dry_run, .. }
                | AdminRequest::AddressPurge { dry_run, .. }
                | AdminRequest::GroupSeek { dry_run, .. }
                | AdminRequest::GroupRemove { dry_run, .. } => !dry_run,
                AdminRequest::AddressList
                | AdminRequest::AddressInfo { .. }
                | AdminRequest::GroupList { .. }
                | AdminRequest::Routes
                | AdminRequest::RouteExplain { .. }
                | AdminRequest::SettingList
                | AdminRequest::Status => false,
            },
            Self::Resolve(resolve, _) => resolve.create,
            Self::Peek(..) => false,
        }
    }

    /// Whether asking twice does the same as asking once. Removing twice does not: what was made in between would go
    /// too, and the second answer would say that there was nothing to remove.
    fn may_repeat(&self) -> bool {
        !self.changes()
            || matches!(
                self,
                Self::Resolve(..)
                    | Self::Admin(
                        AdminRequest::AddressCreate { .. }
                            | AdminRequest::AddressSet { .. }
                            | AdminRequest::NodeDrain { .. }
                            | AdminRequest::Access(
                                AccessRequest::Change { .. }
                                    | AccessRequest::Bound { .. }
                                    | AccessRequest::Enable { .. }
                                    | AccessRequest::JoinToken { .. }
                            )
                            | AdminRequest::SettingSet { .. }
                            // Each asking begins a life; only the last one is used.
                            | AdminRequest::ProducerTakeOver { .. },
                        _
                    )
            )
    }

    fn is_awaited(&self) -> bool {
        match self {
            Self::Admin(_, reply) => !reply.is_closed(),
            Self::Resolve(_, reply) => !reply.is_closed(),
            Self::Peek(_, reply) => !reply.is_closed(),
        }
    }

    pub(super) fn fail(self, error: Error) {
        match self {
            Self::Admin(_, reply) => told(reply, Err(error)),
            Self::Resolve(_, reply) => told(reply, Err(error)),
            Self::Peek(_, reply) => told(reply, Err(error)),
        }
    }

    /// Ends without an answer.
    fn give_up(self, sent: bool, why: &str) {
        let (code, message) = (Code::Deadline, why.to_owned());
        let unknown = sent && self.changes();
        self.fail(if unknown { Error::Unknown { code, message } } else { Error::Failed { code, message } });
    }
}

/// Time after which a node that does not know everything yet is asked again.
const LEARNING_PAUSE: Duration = Duration::from_millis(50);

struct Asked {
    question: Question,
    until: Instant,
    /// At least once, on any connection.
    sent: bool,
    /// The node does not know everything yet, as after a start. When it is asked again, and what it said.
    again: Option<(Instant, Answer)>,
}

/// Questions under way. Bounded by the calls of the program that wait: what nobody awaits is dropped.
pub(super) struct Questions {
    asked: BTreeMap<u64, Asked>,
    unsent: VecDeque<u64>,
    next_request: u64,
    opener: Opener,
}

impl Questions {
    /// `tag` marks the requests of this room.
    pub(super) fn new(tag: u64, keyring: &ClientKeyring) -> Self {
        Self {
            asked: BTreeMap::new(),
            unsent: VecDeque::new(),
            next_request: (tag << 48) + 1,
            opener: Opener::new(keyring),
        }
    }

    /// Opens with other keys from now on.
    pub(super) fn take_keyring(&mut self, keyring: &ClientKeyring) {
        self.opener.take_keyring(keyring);
    }

    /// Whether nobody waits for an answer.
    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_empty()
    }

    pub(super) fn ask(&mut self, question: Question, until: Instant) {
        self.asked.insert(self.next_request, Asked { question, until, sent: false, again: None });
        self.unsent.push_back(self.next_request);
        self.next_request += 1;
    }

    /// Writes what was not sent yet, and ends what is late.
    pub(super) fn pump(&mut self, now: Instant, out: &mut BytesMut) {
        self.expire(now);
        for (request, asked) in &mut self.asked {
            if asked.again.as_ref().is_some_and(|(at, _)| *at <= now) {
                asked.again = None;
                self.unsent.push_back(*request);
            }
        }
        while let Some(request) = self.unsent.pop_front() {
            let Some(asked) = self.asked.get_mut(&request) else { continue };
            if !asked.question.is_awaited() {
                // The program stopped waiting before anything was sent: so nothing is.
                self.asked.remove(&request);
                continue;
            }
            asked.sent = true;
            match &asked.question {
                Question::Admin(admin, _) => frame::encode(&Admin(admin.clone()), request, out),
                Question::Resolve(resolve, _) => frame::encode(resolve, request, out),
                Question::Peek(peek, _) => frame::encode(peek, request, out),
            }
        }
    }

    /// Ends what is late. Deadlines pass without a connection too.
    pub(super) fn expire(&mut self, now: Instant) {
        for asked in self.take_where(|asked| asked.until <= now) {
            match asked.again {
                Some((_, refused)) => asked.question.fail(refusal(&refused)),
                None => asked.question.give_up(asked.sent, "no answer in time"),
            }
        }
    }

    fn take_where(&mut self, which: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        let requests: Vec<u64> =
            self.asked.iter().filter(|(_, asked)| which(asked)).map(|(request, _)| *request).collect();
        requests.iter().filter_map(|request| self.asked.remove(request)).collect()
    }

    /// The connection is gone.
    pub(super) fn disconnected(&mut self) {
        let lost = |asked: &Asked| !asked.question.is_awaited() || asked.sent && !asked.question.may_repeat();
        for asked in self.take_where(lost) {
            asked.question.give_up(true, "the connection broke before the answer; it was not asked again");
        }
        self.asked.values_mut().for_each(|asked| asked.again = None);
        self.unsent = self.asked.keys().copied().collect();
    }

    /// The client ends.
    pub(super) fn end(&mut self) {
        for (_, asked) in std::mem::take(&mut self.asked) {
            if asked.sent && asked.question.changes() {
                asked.question.give_up(true, "the client was closed before the answer");
            } else {
                asked.question.fail(Error::Closed);
            }
        }
    }

    fn take(&mut self, request: u64) -> Option<Question> {
        self.asked.remove(&request).map(|asked| asked.question)
    }

    pub(super) fn resolved(&mut self, request: u64, order: Order) {
        if let Some(Question::Resolve(_, reply)) = self.take(request) {
            told(reply, Ok(order));
        }
    }

    pub(super) fn admin(&mut self, request: u64, answer: AdminAnswer) {
        if let Some(Question::Admin(_, reply)) = self.take(request) {
            told(reply, Ok(Some(answer)));
        }
    }

    pub(super) fn peeked(&mut self, request: u64, peeked: Peeked) {
        let Some(Question::Peek(peek, reply)) = self.take(request) else { return };
        let seen = peeked
            .items
            .into_iter()
            .map(|item| self.see(&peek, item.offset, item.reason, &item.sealed))
            .collect();
        told(reply, Ok((seen, peeked.next_offset, peeked.end)));
    }

    /// A node that does not know everything yet has done nothing, and is asked again: it will in a moment.
    pub(super) fn answered(&mut self, now: Instant, request: u64, answer: &Answer) {
        let is_learning = answer.outcome == Outcome::Failed && answer.code == Code::NotLeader.number();
        if let Some(asked) = self.asked.get_mut(&request).filter(|_| is_learning) {
            asked.again = Some((now + LEARNING_PAUSE, answer.clone()));
            asked.sent = false;
            return;
        }
        match self.take(request) {
            Some(Question::Admin(_, reply)) if answer.outcome == Outcome::Ok => told(reply, Ok(None)),
            Some(question) => question.fail(refusal(answer)),
            None => {}
        }
    }

    /// When [`Questions::expire`] has something to do.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let at = |asked: &Asked| asked.again.as_ref().map_or(asked.until, |(at, _)| asked.until.min(*at));
        self.asked.values().map(at).min()
    }

    fn see(&mut self, peek: &Peek, offset: Offset, reason: String, sealed: &Bytes) -> Result<Seen, Error> {
        let (view, _) = envelope::split_sealed(sealed).map_err(|_| Error::Failed {
            code: Code::Malformed,
            message: "the node sent no message".into(),
        })?;
        let header = view.header();
        let opened = self
            .opener
            .open_from(&peek.address, peek.shard, sealed)
            .map_err(|error| Error::Open { id: header.message_id().to_string(), error })?;
        Ok(Seen {
            id: header.message_id(),
            address: header.address().to_owned(),
            key: opened.key,
            headers: opened.headers.into_iter().map(|header| (header.name, header.value)).collect(),
            body: opened.body,
            shard: peek.shard,
            offset,
            published_at: header.published_at(),
            dead_reason: reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::{
        frame::{FrameKind, FrameReader},
        id::Address,
        time::WallTime,
    };

    use super::*;

    const UNTIL: Instant = Instant::from_millis(100);

    fn questions() -> Questions {
        let mut next = 0;
        let keyring = ClientKeyring::generate(WallTime(1), &mut |out| {
            next += 1;
            out.fill(next);
        });
        Questions::new(9, &keyring.unwrap())
    }

    fn sent(questions: &mut Questions, now: Instant) -> Vec<FrameKind> {
        let mut out = BytesMut::new();
        questions.pump(now, &mut out);
        let mut reader = FrameReader::new();
        reader.set_authenticated();
        reader.buffer().extend_from_slice(&out);
        std::iter::from_fn(|| reader.next_frame().unwrap()).map(|(header, _)| header.kind).collect()
    }

    fn admin(
        questions: &mut Questions,
        request: AdminRequest,
    ) -> oneshot::Receiver<Result<Option<AdminAnswer>, Error>> {
        let (reply, answer) = oneshot::channel();
        questions.ask(Question::Admin(request, reply), UNTIL);
        answer
    }

    fn purge() -> AdminRequest {
        AdminRequest::AddressPurge { address: Address::parse("a.b").unwrap(), dry_run: false }
    }

    fn code_and_outcome<T: std::fmt::Debug>(result: Result<T, Error>) -> (&'static str, Outcome) {
        let error = result.unwrap_err();
        (error.code(), error.outcome())
    }

    #[test]
    fn a_question_never_sent_fails_at_its_deadline_and_is_not_sent_later() {
        let mut questions = questions();
        let mut answer = admin(&mut questions, purge());
        assert_eq!(questions.next_wake(), Some(UNTIL));
        questions.expire(UNTIL);
        assert_eq!(code_and_outcome(answer.try_recv().unwrap()), ("deadline", Outcome::Failed));
        assert_eq!(sent(&mut questions, UNTIL), []);
    }

    #[test]
    fn a_change_that_was_sent_is_unknown_at_its_deadline_and_a_look_has_failed() {
        let mut questions = questions();
        let mut change = admin(&mut questions, purge());
        let mut look = admin(&mut questions, AdminRequest::AddressList);
        assert_eq!(sent(&mut questions, Instant(1)), [FrameKind::Admin, FrameKind::Admin]);
        questions.expire(UNTIL);
        assert_eq!(code_and_outcome(change.try_recv().unwrap()), ("deadline", Outcome::Unknown));
        assert_eq!(code_and_outcome(look.try_recv().unwrap()), ("deadline", Outcome::Failed));
    }

    #[test]
    fn after_a_broken_connection_looks_are_repeated_and_removals_are_not() {
        let mut questions = questions();
        let mut change = admin(&mut questions, purge());
        let mut look = admin(&mut questions, AdminRequest::AddressList);
        assert_eq!(sent(&mut questions, Instant(1)).len(), 2);
        let mut later = admin(&mut questions, purge());
        questions.disconnected();
        assert_eq!(code_and_outcome(change.try_recv().unwrap()).1, Outcome::Unknown);
        assert!(look.try_recv().is_err(), "still open");
        assert!(later.try_recv().is_err(), "was not sent before, so it may be sent now");
        assert_eq!(sent(&mut questions, Instant(2)).len(), 2);
    }

    /// A node that had just been started refused what it was asked, and the program was told that it failed.
    #[test]
    fn a_node_that_does_not_know_everything_yet_is_asked_again() {
        let mut questions = questions();
        let mut change = admin(&mut questions, purge());
        assert_eq!(sent(&mut questions, Instant(1)), [FrameKind::Admin]);
        let request = *questions.asked.keys().next().unwrap();
        let learning = Answer {
            outcome: Outcome::Failed,
            code: Code::NotLeader.number(),
            message: "the node does not know everything yet".into(),
        };
        questions.answered(Instant(1), request, &learning);
        assert!(change.try_recv().is_err(), "still open");
        let again = Instant(1) + LEARNING_PAUSE;
        assert_eq!((questions.next_wake(), sent(&mut questions, Instant(2))), (Some(again), vec![]));
        assert_eq!(sent(&mut questions, again), [FrameKind::Admin]);
        questions.answered(again, request, &learning);
        questions.expire(UNTIL);
        assert_eq!(
            code_and_outcome(change.try_recv().unwrap()),
            ("not_leader", Outcome::Failed),
            "to the end"
        );
    }

    #[test]
    fn what_nobody_awaits_is_not_sent() {
        let mut questions = questions();
        drop(admin(&mut questions, purge()));
        assert_eq!(sent(&mut questions, Instant(1)), []);
        assert_eq!(questions.next_wake(), None);
    }

    #[test]
    fn a_client_that_ends_says_which_changes_may_have_happened() {
        let mut questions = questions();
        let mut before = admin(&mut questions, purge());
        assert_eq!(sent(&mut questions, Instant(1)).len(), 1);
        let mut never = admin(&mut questions, purge());
        questions.end();
        assert_eq!(code_and_outcome(before.try_recv().unwrap()).1, Outcome::Unknown);
        assert_eq!(code_and_outcome(never.try_recv().unwrap()), ("closed", Outcome::Failed));
    }
}
