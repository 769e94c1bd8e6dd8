//! A second delivery says so: attempts of one message in one group rise from delivery to delivery, and nothing that was
//! out when a reign ended is given again before its holder could claim it back (safety rule 10).

use swarmmq_protocol::limits::RECLAIM_WINDOW;

use super::Case;
use crate::{clock::MILLISECOND, history::Wish};

pub(super) fn judge(case: &Case<'_>) -> Vec<String> {
    let mut doubled = Vec::new();
    let window = RECLAIM_WINDOW.as_nanos() as u64;
    for ((group, id), deliveries) in &case.given {
        let dead = case.history.groups[*group].dead;
        let timely: Vec<_> = deliveries.iter().filter(|given| !given.late).collect();
        for pair in timely.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            // Two groups may bury one message: two letters with two offsets.
            if dead && first.offset != second.offset {
                continue;
            }
            if first.offset != second.offset {
                doubled.push(format!(
                    "{id} lies at {} and at {} for group {group}",
                    first.offset.0, second.offset.0
                ));
            }
            if second.attempt <= first.attempt {
                doubled.push(format!(
                    "{id} was given to group {group} as attempt {} in reign {} at {} ms after attempt {} in reign {} at {} ms",
                    second.attempt.0,
                    second.term.0,
                    second.at / MILLISECOND,
                    first.attempt.0,
                    first.term.0,
                    first.at / MILLISECOND
                ));
            }
            let reign = case.history.reigns.get(&(second.shard, second.term));
            let began = reign.map_or(0, |reign| reign.at);
            // Whoever claimed it back, even one that got it late, may have given it back since.
            let given_back = deliveries.iter().any(|earlier| {
                earlier.step >= first.step
                    && matches!(earlier.wish, Some((step, Wish::Nack)) if step < second.step)
            });
            // With attempts between them that nobody was given, the first holder had lost it long before.
            let next = second.attempt.0 == first.attempt.0 + 1;
            let over = given_back || case.history.had_returned(first, second.term);
            if next && first.term < second.term && second.at < began + window && !over {
                doubled.push(format!(
                    "{id} was given to group {group} again {} ms after reign {} began: who had it since {} ms in reign {} could not claim it back",
                    second.at.saturating_sub(began) / MILLISECOND,
                    second.term.0,
                    first.at / MILLISECOND,
                    first.term.0
                ));
            }
        }
    }
    doubled
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::id::{Attempt, Offset, ShardId, Term};

    use super::super::tests::{acked, given, good, objections};
    use crate::{
        clock::SECOND,
        history::{Reign, Wish},
    };

    #[test]
    fn a_second_delivery_without_the_flag_is_a_duplicate() {
        let mut history = good(2);
        history.given[0] = given(1);
        let mut again = acked(1);
        again.step = 50;
        history.given.push(again);
        assert!(objections(&history).contains(&"duplicates"));
        let last = history.given.last_mut().unwrap();
        last.attempt = Attempt(2);
        last.wish = None;
        last.result = None;
        assert_eq!(objections(&history), [""; 0]);
    }

    #[test]
    fn one_message_at_two_places_is_a_duplicate() {
        let mut history = good(2);
        let mut again = given(1);
        again.offset = Offset(8);
        again.attempt = Attempt(2);
        history.given.push(again);
        assert!(objections(&history).contains(&"duplicates"));
    }

    #[test]
    fn a_new_leader_waits_for_those_who_hold() {
        let mut history = good(2);
        history.given[0] = given(1);
        let reign = Reign { at: 10 * SECOND, host: 0, boot: 2 };
        history.reigns.insert((ShardId(0), Term(2)), reign);
        let mut again = given(1);
        again.attempt = Attempt(2);
        again.term = Term(2);
        again.step = 60;
        again.at = 11 * SECOND;
        history.given.push(again);
        assert_eq!(objections(&history), ["duplicates"]);
        history.given[0].wish = Some((11, Wish::Nack));
        assert_eq!(objections(&history), [""; 0]);
        history.given[0].wish = Some((11, Wish::Ack));
        assert_eq!(objections(&history), ["duplicates"]);
        // Its lease had run out, and that was logged, before the reign began.
        history.returned.insert((ShardId(0), Term(2), 0, Offset(1)), Attempt(2));
        assert_eq!(objections(&history), [""; 0]);
        history.returned.clear();
        history.given.last_mut().unwrap().at = 12 * SECOND;
        assert_eq!(objections(&history), [""; 0]);
    }
}
