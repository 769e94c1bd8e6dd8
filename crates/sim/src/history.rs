//! What clients asked, what they were told, and what their applications were given: all that judges look at.

use std::collections::BTreeMap;

use swarmmq_protocol::{
    id::{Attempt, MessageId, Offset, ShardId, Term},
    session::consumer::SettleResult,
};

/// How an attempted publish ended, as its client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nobody was told: its process died, or the run ended.
    Untold,
    /// On stable storage; its place, where it is known.
    Stored(Option<Offset>),
    /// Never, anywhere.
    Failed,
    /// Perhaps.
    Unknown,
}

/// One attempted publish.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Position in the plan's list of addresses.
    pub address: usize,
    /// Its key, where it has one.
    pub key: Option<u64>,
    /// Of its body.
    pub hash: u64,
    /// When it was submitted.
    pub at: u64,
    /// How it ended.
    pub fate: Fate,
}

/// A group, or the dead letters of an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Position of the address in the plan.
    pub address: usize,
    /// Whether it reads the dead letters of that address.
    pub dead: bool,
    /// Its name.
    pub name: String,
}

/// What an application wants done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Done with it.
    Ack,
    /// Again later.
    Nack,
    /// Never again.
    DeadLetter,
}

/// One message given to an application.
#[derive(Clone, Debug)]
pub struct Given {
    /// Number of the step, for order.
    pub step: u64,
    /// Virtual time.
    pub at: u64,
    /// To which group.
    pub group: usize,
    /// To which consumer process; a restarted one is another.
    pub consumer: u64,
    /// In which reign over its shard it was given out.
    pub term: Term,
    /// Its name in the clear header.
    pub id: MessageId,
    /// Of which shard.
    pub shard: ShardId,
    /// Its place.
    pub offset: Offset,
    /// Which delivery.
    pub attempt: Attempt,
    /// It travelled longer than its lease, or than a new leader waits for re-claims: its consumer cannot know, and
    /// others may have had the message since. Only its settlement tells.
    pub late: bool,
    /// Hash of the opened body; `None`: it did not open.
    pub hash: Option<u64>,
    /// Why it is a dead letter; empty if it is none.
    pub dead_reason: String,
    /// What the application wanted, and at which step.
    pub wish: Option<(u64, Wish)>,
    /// Virtual time of the wish.
    pub wished_at: u64,
    /// What it was told, and at which step.
    pub result: Option<(u64, SettleResult)>,
    /// The step at which its process died.
    pub died: Option<u64>,
}

/// One reign over one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// When it was first seen to serve.
    pub at: u64,
    /// On which host.
    pub host: usize,
    /// In which life of the host's process.
    pub boot: u64,
}

/// Everything recorded in one run.
#[derive(Debug, Default)]
pub struct History {
    /// By message.
    pub sent: BTreeMap<MessageId, Sent>,
    /// Groups that exist, in the order of their making.
    pub groups: Vec<Group>,
    /// Of these, the groups that are owed every message.
    pub owed: Vec<usize>,
    /// In order.
    pub given: Vec<Given>,
    /// Who served which shard in which reign, from when on.
    pub reigns: BTreeMap<(ShardId, Term), Reign>,
    /// What was wanted again already when a reign began: by shard, reign, group and offset, as which attempt.
    pub returned: BTreeMap<(ShardId, Term, usize, Offset), Attempt>,
    /// Starts of nodes.
    pub boots: u64,
    /// Nonces and a hash of what was encrypted under them, as seen on the wire.
    pub nonces: BTreeMap<([u8; 32], u32, u64), u32>,
    /// Found while the run went on.
    pub violations: Vec<Violation>,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which judge saw it.
    pub judge: &'static str,
    /// What it saw.
    pub what: String,
}

impl History {
    /// Notes a broken promise.
    pub fn violation(&mut self, judge: &'static str, what: String) {
        self.violations.push(Violation { judge, what });
    }

    /// When the reign after `term` over `shard` began, if there was one.
    pub fn next_reign(&self, shard: ShardId, term: Term) -> Option<Reign> {
        let later = (shard, Term(term.0 + 1))..=(shard, Term(u64::MAX));
        self.reigns.range(later).next().map(|(_, reign)| *reign)
    }

    /// Whether `given` was wanted again when the reign `term` began: its lease had run out, or was given back, before.
    pub fn had_returned(&self, given: &Given, term: Term) -> bool {
        let next = self.returned.get(&(given.shard, term, given.group, given.offset));
        next.is_some_and(|attempt| *attempt > given.attempt)
    }

    /// Number of a group; made if it is new.
    pub fn group(&mut self, group: Group) -> usize {
        if let Some(known) = self.groups.iter().position(|other| *other == group) {
            return known;
        }
        self.groups.push(group);
        self.groups.len() - 1
    }
}
