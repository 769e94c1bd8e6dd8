//! No packet passes a node twice or more links than there are others, and no path is in use that everybody concerned has
//! had time to know to be dead: over a process that has ended, or a link that both its ends call down.

use swarmmq_protocol::{id::NodeId, packet::Packet};

use super::look::{Finding, Look, Own};

/// Time in which an end hears that its connection broke, at most: longer than the network of the simulator takes to tell.
const HEARS_OF_BREAK: u64 = 4 * crate::clock::SECOND;

/// What is wrong with a packet that `from` hands to its link with `to` in a cluster of `nodes`.
pub(crate) fn packet(nodes: usize, from: NodeId, to: NodeId, packet: &Packet) -> Option<String> {
    let (path, hop) = (&packet.path, usize::from(packet.hop));
    let twice = path.iter().enumerate().any(|(place, node)| path[..place].contains(node));
    // Each link takes one step of the path: so what a packet passed is the path up to here.
    let is_step = path.get(hop) == Some(&from) && path.get(hop + 1) == Some(&to);
    let is_good = !twice && path.len() <= nodes && is_step;
    (!is_good).then(|| format!("node {} sends node {} a packet at step {hop} of {path:?}", from.0, to.0))
}

/// Paths in use that should not be.
pub(crate) fn judge(look: &Look) -> Vec<Finding> {
    let connected = look.connected(false);
    let mut found = Vec::new();
    for (host, seen) in look.running() {
        let Some(awake) = seen.awake else { continue };
        for (to, path) in &seen.view.paths {
            for link in path.windows(2) {
                let Some((since, witness, what)) = dead_since(look, host, link[0], link[1]) else { continue };
                let told = if witness == host { Some(0) } else { look.hears(&connected, host, witness) };
                let Some(told) = told else { continue };
                let age = look.age(&[since, told, awake, seen.since]);
                let nodes: Vec<usize> = path.iter().map(|node| node + 1).collect();
                found.push((
                    age,
                    format!("node {} reaches node {} along {nodes:?}, {what}", host + 1, to + 1),
                ));
            }
        }
    }
    found
}

/// Since when the link from `x` to `y` on a path of `host` has been dead to whom, who can tell, and why it is.
fn dead_since(look: &Look, host: usize, x: usize, y: usize) -> Option<(u64, usize, String)> {
    let (near, far) = (look.hosts.get(x)?, look.hosts.get(y)?);
    // Where `x` has ended, the link before this one says so.
    near.life?;
    let own = near.view.links.get(&y).copied();
    let own = own.unwrap_or(Own { is_open: false, is_usable: false, since: near.since });
    if far.life.is_none() {
        let heard = if own.is_open { far.since + HEARS_OF_BREAK } else { far.since.max(own.since) };
        let awake = near.awake?.max(near.since);
        return Some((heard.max(awake), x, format!("though node {} does not run", y + 1)));
    }
    let back = far.view.links.get(&x).copied();
    let back = back.unwrap_or(Own { is_open: false, is_usable: false, since: far.since });
    // An own link that is only silent is the last resort: it is used where nothing else leads on.
    let is_down = if x == host { !own.is_open && !back.is_open } else { !own.is_usable && !back.is_usable };
    let since = own.since.max(back.since).max(near.since).max(far.since);
    is_down.then(|| {
        (
            since.max(near.awake.unwrap_or(look.at)),
            x,
            format!("though {} and {} are not linked", x + 1, y + 1),
        )
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use swarmmq_protocol::packet::Class;

    use super::{super::look::tests::calm, *};
    use crate::clock::SECOND;

    fn ages(look: &Look) -> Vec<u64> {
        judge(look).into_iter().map(|(age, _)| age / SECOND).collect()
    }

    #[test]
    fn a_path_to_a_process_that_ended_may_last_as_long_as_the_news_takes() {
        let mut look = calm(3);
        assert_eq!(ages(&look), [0; 0]);
        look.hosts[2].life = None;
        look.hosts[2].since = 90 * SECOND;
        look.clean.retain(|(a, b), _| *a != 2 && *b != 2);
        look.hosts[0].view.links.get_mut(&2).unwrap().is_open = false;
        look.hosts[1].view.paths.remove(&2);
        assert_eq!(ages(&look), [10], "its own link told node 1");
        look.hosts[0].view.links.get_mut(&2).unwrap().is_open = true;
        assert_eq!(ages(&look), [6], "nobody told it yet");
        look.hosts[0].view.links.get_mut(&2).unwrap().is_open = false;
        look.hosts[0].view.paths.insert(2, vec![0, 1, 2]);
        look.hosts[1].view.links.get_mut(&2).unwrap().is_open = false;
        look.clean.insert((0, 1), 97 * SECOND);
        assert_eq!(ages(&look), [3], "node 2 can tell it since then");
        look.clean.remove(&(0, 1));
        assert_eq!(ages(&look), [0; 0], "nobody can");
    }

    #[test]
    fn a_link_that_both_ends_call_down_is_passed_by_nobody() {
        let mut look = calm(3);
        look.hosts[0].view.paths.insert(2, vec![0, 1, 2]);
        for (a, b, since) in [(1, 2, 60), (2, 1, 70)] {
            let link = look.hosts[a].view.links.get_mut(&b).unwrap();
            (link.is_usable, link.since) = (false, since * SECOND);
        }
        let of_node_1 = ages(&look);
        assert_eq!(of_node_1, [30], "but as the last resort of its own ends");
        look.hosts[1].view.links.get_mut(&2).unwrap().is_usable = true;
        assert_eq!(ages(&look), [0; 0], "one end is not sure");
    }

    #[test]
    fn a_packet_goes_step_by_step_and_never_in_circles() {
        let node = NodeId;
        let along = |path: &[u16], hop: u8| {
            let path = path.iter().copied().map(NodeId).collect();
            Packet { path, hop, ..Packet::direct(Class::Publish, node(1), node(2), Bytes::new()) }
        };
        assert_eq!(packet(3, node(1), node(3), &along(&[1, 3, 2], 0)), None);
        assert_eq!(packet(3, node(3), node(2), &along(&[1, 3, 2], 1)), None);
        assert!(packet(3, node(3), node(2), &along(&[1, 3, 2], 0)).is_some(), "it does not go on");
        assert!(packet(3, node(1), node(2), &along(&[1, 2, 1], 0)).is_some(), "a circle");
        assert!(packet(2, node(1), node(2), &along(&[1, 2, 3], 0)).is_some(), "too many links");
    }
}
