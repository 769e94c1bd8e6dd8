//! Nobody is given what nobody sent: every delivery opens, and says what its sender said, at the address it went to.

use super::Case;

pub(super) fn judge(case: &Case<'_>) -> Vec<String> {
    let mut invented = Vec::new();
    for given in &case.history.given {
        let id = given.id;
        let address = case.history.groups[given.group].address;
        match case.history.sent.get(&id) {
            None => invented.push(format!("{id} was given, and never sent")),
            Some(_) if given.hash.is_none() => invented.push(format!("{id} does not open")),
            Some(sent) if given.hash != Some(sent.hash) => {
                invented.push(format!("{id} says something else than what was sent"));
            }
            Some(sent) if sent.address != address => {
                invented.push(format!("{id} was sent to address {} and given at {address}", sent.address));
            }
            Some(_) => {}
        }
    }
    invented
}

#[cfg(test)]
mod tests {
    use super::super::tests::{good, id, objections};

    #[test]
    fn strange_altered_sealed_and_misplaced_messages_are_inventions() {
        let spoil: [fn(&mut crate::history::History); 4] = [
            |history| {
                history.sent.remove(&id(2));
            },
            |history| history.given[1].hash = Some(99),
            |history| history.given[1].hash = None,
            |history| history.groups[0].address = 1,
        ];
        for spoil in spoil {
            let mut history = good(0);
            spoil(&mut history);
            assert!(objections(&history).contains(&"invention"));
        }
    }
}
