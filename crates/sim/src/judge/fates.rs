//! What senders were told is true: failed means nowhere, and a message of unknown fate is everywhere or nowhere.

use super::Case;
use crate::history::Fate;

pub(super) fn judge(case: &Case<'_>) -> Vec<String> {
    let mut untrue = Vec::new();
    for (id, sent) in &case.history.sent {
        let of_it = |group: &usize| case.history.groups[*group].address == sent.address;
        let somewhere = (0..case.history.groups.len())
            .filter(of_it)
            .find(|group| case.given.contains_key(&(*group, *id)));
        let Some(somewhere) = somewhere else { continue };
        if sent.fate == Fate::Failed {
            untrue.push(format!("{id} was given to group {somewhere}; its sender was told that it failed"));
        }
        for group in case.history.owed.iter().filter(|group| of_it(group)) {
            if !case.reached(*group, *id) {
                untrue.push(format!("{id} was given to group {somewhere} and not to group {group}"));
            }
        }
    }
    untrue
}

#[cfg(test)]
mod tests {
    use super::super::tests::{good, id, objections};
    use crate::history::{Fate, Group};

    #[test]
    fn a_failed_message_appears_nowhere() {
        let mut history = good(0);
        history.sent.get_mut(&id(2)).unwrap().fate = Fate::Failed;
        assert_eq!(objections(&history), ["fates"]);
        history.given.remove(1);
        assert_eq!(objections(&history), [""; 0]);
    }

    #[test]
    fn an_unknown_message_appears_in_all_groups_or_in_none() {
        let mut history = good(0);
        history.groups.push(Group { address: 0, dead: false, name: "beta".into() });
        history.sent.values_mut().for_each(|sent| sent.fate = Fate::Unknown);
        assert_eq!(objections(&history), [""; 0]);
        history.owed.push(2);
        assert_eq!(objections(&history), ["fates"]);
        history.given.clear();
        assert_eq!(objections(&history), [""; 0]);
    }
}
