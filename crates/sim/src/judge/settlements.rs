//! Settled stays settled: after a confirmed acknowledgement the group never gets the message again; of all who had it only
//! one is told that its acknowledgement counted; and it counts only while its lease is its own.

use swarmmq_protocol::session::consumer::SettleResult;

use super::Case;
use crate::history::{Given, Wish};

pub(super) fn judge(case: &Case<'_>) -> Vec<String> {
    let mut undone = Vec::new();
    for ((group, id), deliveries) in &case.given {
        let mut settled: Option<&Given> = None;
        for given in deliveries {
            let Some((confirmed, wished)) = confirmed(given) else { continue };
            if let Some(first) = settled
                && first.offset == given.offset
            {
                undone.push(format!("{id} was settled twice in group {group}"));
            }
            settled = Some(given);
            for other in deliveries.iter().filter(|other| other.offset == given.offset) {
                if other.step > confirmed && !other.late {
                    undone.push(format!("{id} was settled in group {group}, and given again"));
                }
                if held_by_another(case, *group, other, given, wished) {
                    undone.push(format!("{id} was settled in group {group} while another consumer had it"));
                }
            }
        }
    }
    undone
}

/// When a final settlement was confirmed and wished, in steps.
fn confirmed(given: &Given) -> Option<(u64, u64)> {
    match (given.wish, given.result) {
        (Some((wished, Wish::Ack | Wish::DeadLetter)), Some((confirmed, SettleResult::Done))) => {
            Some((confirmed, wished))
        }
        _ => None,
    }
}

/// Whether `other` had the lease for sure when the owner of `given` settled: it was given the message less than a lease
/// ago, wanted nothing yet, and no new reign over the shard began meanwhile. The owner may have got a newer lease of a message
/// that it still held; then nobody else has one.
fn held_by_another(case: &Case<'_>, group: usize, other: &Given, given: &Given, wished: u64) -> bool {
    let address = case.history.groups[group].address;
    let lease = case.plan.addresses[address].settings.lease.map_or(0, |lease| lease.as_nanos() as u64);
    !other.late
        && other.consumer != given.consumer
        && given.step < other.step
        && other.step < wished
        && other.wish.is_none_or(|(step, _)| step > wished)
        && given.wished_at < other.at + lease / 2
        && case.history.next_reign(other.shard, other.term).is_none_or(|next| next.at > given.wished_at)
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::{id::Attempt, session::consumer::SettleResult};

    use super::super::tests::{acked, given, good, objections};
    use crate::{clock::SECOND, history::Wish};

    #[test]
    fn nothing_comes_back_after_a_confirmed_acknowledgement() {
        let mut history = good(2);
        let mut again = given(1);
        again.step = 60;
        again.attempt = Attempt(2);
        history.given.push(again);
        assert_eq!(objections(&history), ["settlements"]);
        history.given[0].result = Some((70, SettleResult::LeaseLost));
        assert_eq!(objections(&history), [""; 0]);
    }

    #[test]
    fn one_acknowledgement_counts() {
        let mut history = good(2);
        history.given[0].wish = Some((70, Wish::Ack));
        history.given[0].result = Some((71, SettleResult::Done));
        let mut again = acked(1);
        again.step = 60;
        again.attempt = Attempt(2);
        again.wish = Some((61, Wish::Ack));
        history.given.push(again);
        assert_eq!(objections(&history), ["settlements"]);
        history.given[3].result = Some((62, SettleResult::LeaseLost));
        assert_eq!(objections(&history), [""; 0]);
    }

    #[test]
    fn who_has_no_lease_any_more_settles_nothing() {
        let mut history = good(2);
        history.given[0].wish = Some((70, Wish::Ack));
        history.given[0].wished_at = 11 * SECOND;
        history.given[0].result = Some((71, SettleResult::Done));
        let mut again = given(1);
        again.step = 60;
        again.at = 10 * SECOND;
        again.consumer = 2;
        again.attempt = Attempt(2);
        history.given.push(again);
        assert_eq!(objections(&history), ["settlements"]);
        history.given[3].at = SECOND;
        assert_eq!(objections(&history), [""; 0]);
    }
}
