//! Once nothing disturbs them, nodes agree: each knows which links every other one has, and has a path to it.

use super::look::{Finding, Look};

/// What some node believes of links, or does not know a way to, though it could.
pub(crate) fn judge(look: &Look) -> Vec<Finding> {
    let (connected, ways) = (look.connected(false), look.connected(true));
    let mut found = Vec::new();
    for (host, seen) in look.running() {
        let Some(awake) = seen.awake else { continue };
        for (of, other) in look.running().filter(|(of, _)| *of != host) {
            let Some(hears) = look.hears(&connected, host, of) else { continue };
            let links = other.view.links.values().map(|own| own.since);
            let age = look.age(&[hears, awake, seen.since, links.max().unwrap_or(0)]);
            let is_up = |to: usize| other.view.links.get(&to).is_some_and(|own| own.is_usable);
            let wrong = match (seen.view.told.get(&of), other.life) {
                (Some((life, up)), Some(lives)) if *life == lives => {
                    let mut targets = look.running().map(|(to, _)| to).filter(|to| *to != of);
                    let said = |to: usize| up.get(&to).copied().unwrap_or(false);
                    targets.find(|to| said(*to) != is_up(*to)).map(|to| {
                        let (says, is) = (said(to), is_up(to));
                        format!("believes its link with node {} to be up: {says}, and it is {is}", to + 1)
                    })
                }
                _ => Some("has not heard of its links".to_owned()),
            };
            if let Some(wrong) = wrong {
                found.push((age, format!("node {} {wrong} (node {})", host + 1, of + 1)));
            }
            let Some(way) = ways.get(&(host, of)) else { continue };
            if !seen.view.paths.contains_key(&of) {
                let lost = seen.view.lost.get(&of).copied().unwrap_or(0);
                let age = look.age(&[hears, *way, awake, seen.since, lost]);
                found.push((age, format!("node {} has no path to node {}", host + 1, of + 1)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{super::look::tests::calm, *};
    use crate::clock::SECOND;

    fn ages(look: &Look) -> Vec<u64> {
        judge(look).into_iter().map(|(age, _)| age / SECOND).collect()
    }

    #[test]
    fn a_picture_that_stays_wrong_is_found_and_one_that_cannot_be_right_is_excused() {
        let mut look = calm(3);
        assert_eq!(ages(&look), [0; 0]);
        look.hosts[0].view.told.get_mut(&1).unwrap().1.insert(2, false);
        assert_eq!(ages(&look), [100]);
        look.hosts[1].view.links.get_mut(&0).unwrap().since = 95 * SECOND;
        assert_eq!(ages(&look), [5], "what it says changed just now");
        look.hosts[0].awake = None;
        assert_eq!(ages(&look), [0; 0], "who is stopped hears nothing");
    }

    #[test]
    fn what_was_said_in_an_earlier_life_counts_for_nothing() {
        let mut look = calm(2);
        look.hosts[1].life = Some((1, 2));
        look.hosts[1].since = 80 * SECOND;
        assert_eq!(ages(&look), [20]);
    }

    #[test]
    fn who_can_be_reached_has_a_path() {
        let mut look = calm(4);
        look.hosts[0].view.paths.remove(&3);
        assert_eq!(ages(&look), [100]);
        look.hosts[0].view.lost.insert(3, 99 * SECOND);
        assert_eq!(ages(&look), [1]);
        for pair in [(0, 3), (3, 0), (0, 2), (2, 0)] {
            look.clean.remove(&pair);
        }
        look.hosts[1].is_router = false;
        assert_eq!(ages(&look), [0; 0], "what leads there passes nothing on");
    }
}
