//! Order, as each address promised it: `total` hands first deliveries to one consumer in the order of the log; `key` has
//! one message of a key in flight per group, and gives them in the order of the log.

use std::collections::BTreeMap;

use swarmmq_protocol::{admin::Order, id::Attempt, session::consumer::SettleResult};

use super::Case;
use crate::history::{Given, Wish};

pub(super) fn judge(case: &Case<'_>) -> Vec<String> {
    let mut out_of_order = Vec::new();
    let mut last_first: BTreeMap<_, u64> = BTreeMap::new();
    let mut of_key: BTreeMap<_, Vec<&Given>> = BTreeMap::new();
    for given in &case.history.given {
        let group = &case.history.groups[given.group];
        if group.dead || given.late {
            continue;
        }
        match case.plan.addresses[group.address].order {
            Order::Total if given.attempt == Attempt(1) => {
                let last = last_first.entry((given.group, given.consumer, given.shard)).or_default();
                if given.offset.0 < *last {
                    out_of_order.push(format!(
                        "consumer {} got {} at offset {} after offset {last}",
                        given.consumer, given.id, given.offset.0
                    ));
                }
                *last = given.offset.0.max(*last);
            }
            Order::Key => {
                if let Some(key) = case.history.sent.get(&given.id).and_then(|sent| sent.key) {
                    of_key.entry((given.group, key)).or_default().push(given);
                }
            }
            Order::Total | Order::None => {}
        }
    }
    for ((group, key), deliveries) in &of_key {
        judge_key(*group, *key, deliveries, &mut out_of_order);
    }
    out_of_order
}

fn judge_key(group: usize, key: u64, deliveries: &[&Given], out: &mut Vec<String>) {
    // A confirmed acknowledgement proves that the lease held from the delivery to the wish.
    let mut held: Option<(&Given, u64)> = None;
    let mut highest: Option<&Given> = None;
    for given in deliveries {
        if let Some((holder, until)) = held
            && given.step < until
            && given.id != holder.id
        {
            out.push(format!(
                "group {group} was given {} while {} with the same key {key} was held",
                given.id, holder.id
            ));
        }
        if let Some(higher) = highest
            && given.offset < higher.offset
        {
            out.push(format!(
                "group {group} was given {} at offset {} of key {key} after offset {}",
                given.id, given.offset.0, higher.offset.0
            ));
        }
        if highest.is_none_or(|higher| higher.offset < given.offset) {
            highest = Some(given);
        }
        if let (Some((wished, Wish::Ack)), Some((_, SettleResult::Done))) = (given.wish, given.result)
            && held.is_none_or(|(_, until)| until < wished)
        {
            held = Some((given, wished));
        }
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::session::consumer::SettleResult;

    use super::super::tests::{good, objections};
    use crate::history::Wish;

    #[test]
    fn total_order_is_judged_per_consumer_and_no_order_is_not() {
        let mut history = good(0);
        history.given.swap(0, 1);
        assert_eq!(objections(&history), ["order"]);
        history.given[1].consumer = 2;
        assert_eq!(objections(&history), [""; 0]);
        let mut history = good(2);
        history.given.swap(0, 1);
        assert_eq!(objections(&history), [""; 0]);
    }

    #[test]
    fn two_of_a_key_at_once_are_an_objection() {
        let mut history = good(1);
        history.given[0].wish = Some((25, Wish::Ack));
        assert_eq!(objections(&history), ["order"]);
        history.sent.values_mut().next().unwrap().key = Some(2);
        assert_eq!(objections(&history), [""; 0]);
    }

    #[test]
    fn of_a_key_the_earlier_comes_first() {
        let mut history = good(1);
        for (given, step) in history.given.iter_mut().zip([30, 20, 40]) {
            given.step = step;
            given.wish = Some((step + 1, Wish::Ack));
            given.result = Some((step + 2, SettleResult::Done));
        }
        history.given.swap(0, 1);
        assert_eq!(objections(&history), ["order"]);
    }
}
