//! What was stored, every owed group gets: as a message or, when the group gave it up, as a dead letter.

use super::Case;
use crate::history::Fate;

pub(super) fn judge(case: &Case<'_>) -> Vec<String> {
    let mut lost = Vec::new();
    for (id, sent) in &case.history.sent {
        if !matches!(sent.fate, Fate::Stored(_)) {
            continue;
        }
        for group in &case.history.owed {
            if case.history.groups[*group].address == sent.address && !case.reached(*group, *id) {
                lost.push(format!("{id} was stored, and never given to group {group}"));
            }
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::super::tests::{given, good, objections};

    #[test]
    fn a_stored_message_that_nobody_got_is_lost() {
        let mut history = good(0);
        history.given.remove(1);
        assert_eq!(objections(&history), ["loss"]);
    }

    #[test]
    fn a_dead_letter_of_the_group_counts_and_one_of_another_does_not() {
        let mut history = good(0);
        let mut letter = given(2);
        letter.group = 1;
        letter.offset.0 = 9;
        letter.dead_reason = "group alpha: 3 failed attempts".into();
        history.given[1] = letter;
        assert_eq!(objections(&history), [""; 0]);
        history.given[1].dead_reason = "group beta: 3 failed attempts".into();
        assert_eq!(objections(&history), ["loss", "fates"]);
    }
}
