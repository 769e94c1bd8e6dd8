//! Questions to shards, wherever they are led. Whoever asks need not know: a question goes to the leader, and when that
//! one is lost it is asked again at the next one, as long as repeating it does no harm.
//!
//! A question that may have been heard by a leader that did not answer is *unsure*: what another leader refuses then is
//! not refused, its outcome is unknown (safety rule 2).

use std::time::Duration;

use swarmmq_protocol::{
    error::Code,
    id::{NodeId, Term},
    packet::Class,
    time::Instant,
};

use super::{ConnectionId, Node, Now, bug::Bug, letter::Letter, operation::OperationId, question::Question};
use crate::shard::{
    Answer,
    delivery::SubscriberId,
    event::{CatalogEvent, Event},
};

/// Time after which a question that nobody answers ends.
const ASK_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause between looks for questions that have waited too long.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Why a question was asked.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    Publish {
        connection: ConnectionId,
        request: u64,
        count: u16,
        bytes: u64,
    },
    /// A plain yes or no.
    Plain {
        connection: ConnectionId,
        request: u64,
    },
    Operation(OperationId),
    Join {
        subscriber: SubscriberId,
        index: usize,
    },
    Settle {
        settlement: u64,
        items: Vec<u16>,
    },
    Peek {
        connection: ConnectionId,
        request: u64,
    },
    /// A node is to become a member, or one learns of its state.
    Nobody,
}

/// A question under way.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) index: usize,
    question: Question,
    purpose: Purpose,
    /// Who was asked; `None`: no leader is known.
    at: Option<NodeId>,
    /// A leader that was lost may have heard it.
    unsure: bool,
    since: Instant,
}

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// This node, under this number.
    Here(u64),
    /// Another node, under its number.
    There(NodeId, u64),
}

impl Question {
    /// Whether asking twice does what asking once does.
    fn is_repeatable(&self) -> bool {
        match self {
            Self::Propose(event) => {
                !matches!(
                    event,
                    Event::QueuePurged { .. }
                        | Event::QueueRemoved { .. }
                        | Event::GroupRemoved { .. }
                        | Event::GroupSought { .. }
                        | Event::Catalog(CatalogEvent::ProducerTaken { .. })
                ) && !matches!(event, Event::Catalog(CatalogEvent::Access(event)) if !event.is_repeatable())
            }
            // Its subscriber is another one at the next leader.
            Self::Settle { .. } => false,
            _ => true,
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Publish { .. } => Class::Publish,
            _ => Class::Settlement,
        }
    }
}

impl Node {
    /// Asks the leader of the shard at `index`. The answer goes where `purpose` says.
    pub(super) fn ask(&mut self, now: Now, index: usize, question: Question, purpose: Purpose) {
        let number = self.number();
        let asked = Asked { index, question, purpose, at: None, unsure: false, since: now.monotonic };
        self.asked.insert(number, asked);
        self.route(now, number);
    }

    /// Sends a question that is not answered to `node`.
    pub(super) fn tell(&mut self, now: Now, node: NodeId, index: usize, question: Question) {
        if node == self.config.node {
            self.serve(now, index, Asker::Here(0), question);
        } else {
            let class = question.class();
            let shard = self.shards[index].id();
            self.post(node, class, Letter::Ask { ticket: 0, shard, question });
        }
    }

    /// Takes the questions of an operation back, unless somebody may have heard one of them. Returns whether it did.
    pub(super) fn take_back(&mut self, operation: OperationId) -> bool {
        let is_its = |asked: &Asked| matches!(asked.purpose, Purpose::Operation(id) if id == operation);
        let was_heard = |asked: &Asked| is_its(asked) && (asked.at.is_some() || asked.unsure);
        if self.asked.values().any(was_heard) {
            return false;
        }
        self.asked.retain(|_, asked| !is_its(asked));
        true
    }

    fn route(&mut self, now: Now, number: u64) {
        let Some(asked) = self.asked.get_mut(&number) else { return };
        let index = asked.index;
        let Some((_, node)) = self.leaders[index] else { return };
        asked.at = Some(node);
        // A claim says what is held when it is sent: while it waited for a leader, the consumer may have lost something.
        if let (Purpose::Join { subscriber, .. }, Question::Join { held, .. }) =
            (&asked.purpose, &mut asked.question)
            && let Some(subscriber) = self.subscribers.get(subscriber)
        {
            *held = subscriber.held_in(index);
        }
        let question = asked.question.clone();
        if node == self.config.node {
            self.serve(now, index, Asker::Here(number), question);
        } else {
            if let Question::Publish { count, .. } = question {
                self.counters.passed_on += u64::from(count);
            }
            let class = question.class();
            let shard = self.shards[index].id();
            self.post(node, class, Letter::Ask { ticket: number, shard, question });
        }
    }

    /// A leader announced itself, or this node leads. What waits for it is asked now.
    pub(super) fn led_by(&mut self, now: Now, index: usize, term: Term, node: NodeId) {
        match self.leaders[index] {
            Some((known, of)) if known > term || (known == term && of == node) => return,
            _ => self.leaders[index] = Some((term, node)),
        }
        self.audience.outdated();
        // Whoever was asked in an earlier reign answers no more, or too late.
        let open: Vec<u64> =
            self.asked.iter().filter(|(_, asked)| asked.index == index).map(|(number, _)| *number).collect();
        for number in open {
            self.ask_elsewhere(now, number, true);
        }
        self.feeds_follow(now, index);
    }

    /// Nobody is known to lead the shard at `index` any more.
    pub(super) fn unled(&mut self, now: Now, index: usize) {
        if self.leaders[index].take().is_some() {
            self.audience.outdated();
            self.feeds_follow(now, index);
        }
    }

    /// A question's leader is lost. `perhaps`: it may have heard it.
    fn ask_elsewhere(&mut self, now: Now, mut number: u64, perhaps: bool) {
        let Some(asked) = self.asked.get_mut(&number) else { return };
        if asked.at.take().is_some() {
            asked.unsure |= perhaps;
            if perhaps && !asked.question.is_repeatable() {
                self.conclude(now, number, Answer::Unknown(Code::NotLeader));
                return;
            }
        }
        if matches!(asked.purpose, Purpose::Join { .. }) {
            // This copy may go to the same leader, who then takes back what it sent behind its answer to the one before: that
            // answer must open nothing, so each copy has its own number.
            let asked = self.asked.remove(&number).expect("found above");
            number = self.number();
            self.asked.insert(number, asked);
        }
        self.route(now, number);
    }

    /// A subscription is over: nobody is asked for it again. Returns who may have heard it.
    pub(super) fn forget_joins(&mut self, of: SubscriberId) -> Vec<NodeId> {
        let is_its =
            |asked: &Asked| matches!(asked.purpose, Purpose::Join { subscriber, .. } if subscriber == of);
        let asked_at =
            self.asked.values().filter(|asked| is_its(asked)).filter_map(|asked| asked.at).collect();
        self.asked.retain(|_, asked| !is_its(asked));
        asked_at
    }

    /// `node` cannot be reached: whatever it was asked is open again.
    pub(super) fn asks_lost(&mut self, now: Now, node: NodeId) {
        for index in 0..self.shards.len() {
            if self.leaders[index].is_some_and(|(_, leader)| leader == node) {
                self.unled(now, index);
            }
        }
        let lost: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, asked)| asked.at == Some(node))
            .map(|(number, _)| *number)
            .collect();
        for number in lost {
            self.ask_elsewhere(now, number, true);
        }
    }

    /// `from` answers a question.
    pub(super) fn replied(&mut self, now: Now, number: u64, from: NodeId, answer: Answer) {
        let Some(asked) = self.asked.get(&number) else { return };
        if asked.at != Some(from) {
            return;
        }
        let index = asked.index;
        let perhaps = match answer {
            Answer::Refused(Code::NotLeader) => false,
            Answer::Unknown(Code::NotLeader) => true,
            answer => {
                self.conclude(now, number, answer);
                return;
            }
        };
        if self.leaders[index].is_some_and(|(_, leader)| leader == from) {
            self.unled(now, index);
        }
        self.ask_elsewhere(now, number, perhaps);
    }

    fn conclude(&mut self, now: Now, number: u64, answer: Answer) {
        let Some(asked) = self.asked.remove(&number) else { return };
        let from = asked.at.unwrap_or(self.config.node);
        let answer = match answer {
            // One copy was refused, another may be in.
            Answer::Refused(code) if asked.unsure && !self.config.bugs.has(Bug::FailWhenUnsure) => {
                Answer::Unknown(code)
            }
            answer => answer,
        };
        match asked.purpose {
            Purpose::Publish { connection, request, count, bytes } => {
                let unsure = asked.unsure && !self.config.bugs.has(Bug::FailWhenUnsure);
                self.published(connection, request, count, bytes, unsure, &answer);
            }
            Purpose::Plain { connection, request } => self.plain(connection, request, &answer),
            Purpose::Operation(id) => self.operation_answered(now, id, answer),
            Purpose::Join { subscriber, index } => self.joined(now, subscriber, index, from, answer),
            Purpose::Settle { settlement, items } => self.settled(settlement, &items, &answer),
            Purpose::Peek { connection, request } => self.peeked(connection, request, answer),
            Purpose::Nobody => {}
        }
    }

    /// Ends questions that have waited too long. Nobody leads, or whoever does is silent.
    pub(super) fn give_up_asking(&mut self, now: Now) {
        if now.monotonic < self.next_ask_look {
            return;
        }
        self.next_ask_look = now.monotonic + LOOK_PAUSE;
        let late: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, asked)| now.monotonic.since(asked.since) >= ASK_TIME_MAX)
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            // The end of one may have ended others: a consumer that is refused in one shard asks no other.
            let Some(asked) = self.asked.get(&number) else { continue };
            let heard = asked.at.is_some();
            let answer =
                if heard { Answer::Unknown(Code::QuorumLost) } else { Answer::Refused(Code::QuorumLost) };
            self.conclude(now, number, answer);
        }
    }

    /// When [`Node::give_up_asking`] has something to do.
    pub(super) fn asking_wake(&self) -> Option<Instant> {
        (!self.asked.is_empty()).then_some(self.next_ask_look)
    }
}
