//! Whoever runs, is not stopped and is connected with another one, directly or by way of others, is not called dead by it.

use super::look::{Finding, Look};

/// Living nodes that are called dead.
pub(crate) fn judge(look: &Look) -> Vec<Finding> {
    let connected = look.connected(false);
    let mut found = Vec::new();
    for (host, seen) in look.running() {
        for whom in &seen.view.dead {
            let (Some(hears), Some(awake)) = (look.hears(&connected, host, *whom), look.hosts[*whom].awake)
            else {
                continue;
            };
            let age = look.age(&[hears, awake, seen.awake.unwrap_or(look.at), seen.since]);
            found.push((age, format!("node {} calls node {} dead", host + 1, whom + 1)));
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
    fn a_living_node_is_called_dead_only_where_nobody_could_know_better() {
        let mut look = calm(3);
        look.hosts[0].view.dead.push(2);
        assert_eq!(ages(&look), [100]);
        for pair in [(0, 2), (2, 0)] {
            look.clean.remove(&pair);
        }
        look.clean.insert((0, 1), 40 * SECOND);
        assert_eq!(ages(&look), [60], "another one passes it on");
        look.hosts[2].awake = Some(99 * SECOND);
        assert_eq!(ages(&look), [1], "it was stopped until just now");
        look.hosts[2].life = None;
        assert_eq!(ages(&look), [0; 0], "it is dead");
    }
}
