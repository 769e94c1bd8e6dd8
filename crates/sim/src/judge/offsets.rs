//! One place, one message: whoever speaks of an offset of a shard speaks of the same message, sender or receiver.

use std::collections::BTreeMap;

use swarmmq_protocol::id::{MessageId, Offset, ShardId};

use super::Case;
use crate::history::Fate;

pub(super) fn judge(case: &Case<'_>) -> Vec<String> {
    let mut contradictions = Vec::new();
    let mut places: BTreeMap<(ShardId, Offset), (MessageId, &str)> = BTreeMap::new();
    let told = case.history.sent.iter().filter_map(|(id, sent)| match sent.fate {
        Fate::Stored(Some(offset)) => Some((id.shard, offset, (*id, "told"))),
        _ => None,
    });
    let given = case.history.given.iter().map(|given| (given.shard, given.offset, (given.id, "given")));
    for (shard, offset, (id, how)) in told.chain(given) {
        let (first, by) = *places.entry((shard, offset)).or_insert((id, how));
        if first != id {
            let (offset, shard) = (offset.0, shard.0);
            contradictions
                .push(format!("offset {offset} of shard {shard} is {first}, {by}, and {id}, {how}"));
        }
    }
    contradictions
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::id::Offset;

    use super::super::tests::{good, objections};

    #[test]
    fn two_messages_at_one_offset_are_an_objection() {
        let mut history = good(2);
        history.given[1].offset = Offset(1);
        assert_eq!(objections(&history), ["offsets"]);
    }
}
