//! What must be true of every history after healing and a full drain. One judge, one file, one promise.
//!
//! More judges watch while a run goes on: `nonces`, `leaders`, `replicas`, `replay` in `swarm/watch.rs`, and by way of
//! `swarm/lookout.rs` those of routes and of the living, which look at `look` and not at a history.

pub(crate) mod changes;
pub(crate) mod deaths;
mod duplicates;
mod fates;
mod invention;
mod letters;
pub(crate) mod look;
mod loss;
mod offsets;
mod order;
pub(crate) mod paths;
pub(crate) mod pictures;
mod settlements;

use std::collections::BTreeMap;

use swarmmq_protocol::id::MessageId;

use crate::{
    history::{Given, History, Violation},
    plan::Plan,
};

/// Broken promises of one judge that are worth printing.
const SHOWN_MAX: usize = 5;

/// A history, and the views of it that several judges need.
pub(crate) struct Case<'a> {
    plan: &'a Plan,
    history: &'a History,
    /// Deliveries of each message to each group, in order of time.
    given: BTreeMap<(usize, MessageId), Vec<&'a Given>>,
}

impl<'a> Case<'a> {
    fn new(plan: &'a Plan, history: &'a History) -> Self {
        let mut given: BTreeMap<(usize, MessageId), Vec<&Given>> = BTreeMap::new();
        for one in &history.given {
            given.entry((one.group, one.id)).or_default().push(one);
        }
        Self { plan, history, given }
    }

    /// The group that reads the dead letters of `address`, where there is one.
    fn undertaker(&self, address: usize) -> Option<usize> {
        self.history.groups.iter().position(|group| group.dead && group.address == address)
    }

    /// Whether `group` was given the message, or gave it up: then its dead letter was given, with the group's name.
    fn reached(&self, group: usize, id: MessageId) -> bool {
        if self.given.contains_key(&(group, id)) {
            return true;
        }
        let of = &self.history.groups[group];
        let Some(undertaker) = self.undertaker(of.address) else { return false };
        let prefix = format!("group {}:", of.name);
        self.given
            .get(&(undertaker, id))
            .is_some_and(|letters| letters.iter().any(|letter| letter.dead_reason.starts_with(&prefix)))
    }
}

/// One judge: its name, and how it finds broken promises.
type Judge = (&'static str, fn(&Case<'_>) -> Vec<String>);

const JUDGES: &[Judge] = &[
    ("loss", loss::judge),
    ("invention", invention::judge),
    ("duplicates", duplicates::judge),
    ("order", order::judge),
    ("fates", fates::judge),
    ("offsets", offsets::judge),
    ("settlements", settlements::judge),
    ("letters", letters::judge),
];

/// Every promise that `history` breaks, with what was noted while it was made.
pub fn verdict(plan: &Plan, history: &History) -> Vec<Violation> {
    let mut violations = history.violations.clone();
    let case = Case::new(plan, history);
    for (judge, find) in JUDGES {
        let found = find(&case);
        let more = found.len().saturating_sub(SHOWN_MAX);
        violations.extend(found.into_iter().take(SHOWN_MAX).map(|what| Violation { judge, what }));
        if more > 0 {
            violations.push(Violation { judge, what: format!("and {more} more") });
        }
    }
    violations
}

#[cfg(test)]
pub(crate) mod tests {
    use swarmmq_engine::node::bug::Bugs;
    use swarmmq_protocol::{
        id::{Attempt, Offset, ProducerEpoch, ProducerId, Sequence, ShardId, Term},
        session::consumer::SettleResult,
    };

    use super::*;
    use crate::history::{Fate, Group, Sent, Wish};

    /// A message of one producer in shard 0, number `n` from 1.
    pub(crate) fn id(n: u64) -> MessageId {
        MessageId {
            producer: ProducerId(7),
            epoch: ProducerEpoch(1),
            shard: ShardId(0),
            sequence: Sequence(n),
        }
    }

    /// The first delivery of message `n` at step `10 * n`, not settled.
    pub(crate) fn given(n: u64) -> Given {
        Given {
            step: 10 * n,
            at: 0,
            group: 0,
            consumer: 1,
            term: Term(1),
            id: id(n),
            shard: ShardId(0),
            offset: Offset(n),
            attempt: Attempt(1),
            late: false,
            hash: Some(n),
            dead_reason: String::new(),
            wish: None,
            wished_at: 0,
            result: None,
            died: None,
        }
    }

    /// The same, acknowledged one step later and confirmed two steps later.
    pub(crate) fn acked(n: u64) -> Given {
        let given = given(n);
        let step = given.step;
        Given { wish: Some((step + 1, Wish::Ack)), result: Some((step + 2, SettleResult::Done)), ..given }
    }

    /// Three stored messages with key 1 in address `address`, each acknowledged once: nothing is wrong.
    pub(crate) fn good(address: usize) -> History {
        let mut history = History::default();
        for n in 1..=3 {
            let fate = Fate::Stored(Some(Offset(n)));
            history.sent.insert(id(n), Sent { address, key: Some(1), hash: n, at: 0, fate });
            history.given.push(acked(n));
        }
        history.groups.push(Group { address, dead: false, name: "alpha".into() });
        history.groups.push(Group { address, dead: true, name: "undertaker".into() });
        history.owed = vec![0];
        history
    }

    /// Names of the judges that object.
    pub(crate) fn objections(history: &History) -> Vec<&'static str> {
        let plan = Plan::new(1, Bugs::NONE);
        let mut names: Vec<&str> =
            verdict(&plan, history).into_iter().map(|violation| violation.judge).collect();
        names.dedup();
        names
    }

    #[test]
    fn a_good_history_has_no_objections() {
        for address in 0..3 {
            assert_eq!(objections(&good(address)), [""; 0]);
        }
    }
}
