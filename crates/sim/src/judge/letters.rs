//! What a consumer gave up for good lies among the dead letters, with the name of its group; nothing else lies there.

use swarmmq_protocol::session::consumer::SettleResult;

use super::Case;
use crate::history::Wish;

pub(super) fn judge(case: &Case<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for given in &case.history.given {
        let group = &case.history.groups[given.group];
        if group.dead {
            if !given.dead_reason.starts_with("group ") {
                wrong.push(format!("dead letter {} names no group: {:?}", given.id, given.dead_reason));
            }
            continue;
        }
        if !given.dead_reason.is_empty() {
            wrong.push(format!("{} is a dead letter in group {}", given.id, group.name));
        }
        let buried = matches!(given.wish, Some((_, Wish::DeadLetter)))
            && matches!(given.result, Some((_, SettleResult::Done)));
        if !buried {
            continue;
        }
        let prefix = format!("group {}:", group.name);
        let letters = case.undertaker(group.address).and_then(|of| case.given.get(&(of, given.id)));
        let there =
            letters.is_some_and(|letters| letters.iter().any(|one| one.dead_reason.starts_with(&prefix)));
        if !there {
            wrong.push(format!("{} was given up by group {}, and is no dead letter", given.id, group.name));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::super::tests::{given, good, objections};
    use crate::history::Wish;

    #[test]
    fn what_was_given_up_becomes_a_dead_letter() {
        let mut history = good(2);
        history.given[0].wish = Some((11, Wish::DeadLetter));
        assert_eq!(objections(&history), ["letters"]);
        let mut letter = given(1);
        letter.group = 1;
        letter.offset.0 = 50;
        letter.dead_reason = "group alpha: because".into();
        history.given.push(letter);
        assert_eq!(objections(&history), [""; 0]);
    }

    #[test]
    fn dead_and_living_do_not_mix() {
        let mut history = good(2);
        history.given[0].dead_reason = "group alpha: because".into();
        assert_eq!(objections(&history), ["letters"]);
    }
}
