//! What judges of routes and of the living look at: a whole cluster at one moment, as it is and as each of its nodes believes it to be.
//!
//! All such judges work alike. They find what should not be, and say for how long everything has been there that its node
//! needs to know better. Only the caller knows how long that may take (`swarm/lookout`): shorter is news under way.

use std::collections::BTreeMap;

/// A broken promise, and for how long nothing has excused it, in nanoseconds.
pub(crate) type Finding = (u64, String);

/// Which life of a node: of its disk, and of its process.
pub(crate) type Life = (u64, u64);

/// A cluster. Hosts are numbered from 0, times are virtual nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Now.
    pub(crate) at: u64,
    /// Every host.
    pub(crate) hosts: Vec<Seen>,
    /// Since when nothing has disturbed what two hosts send each other, both of them run, awake, and know each other.
    pub(crate) clean: BTreeMap<(usize, usize), u64>,
}

/// One host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Which life of its node; `None`: its process has ended.
    pub(crate) life: Option<Life>,
    /// Since when that is so.
    pub(crate) since: u64,
    /// Since when it has not been stopped; `None`: it is.
    pub(crate) awake: Option<u64>,
    /// Whether it passes packets on.
    pub(crate) is_router: bool,
    /// What its node believes; empty where none runs.
    pub(crate) view: View,
}

/// What one node believes, by host.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Whom it knows, in which life of the disk, and since when.
    pub(crate) known: BTreeMap<usize, (u64, u64)>,
    /// Its own links.
    pub(crate) links: BTreeMap<usize, Own>,
    /// What others say of their links, as far as it has heard: in which life, and which are up.
    pub(crate) told: BTreeMap<usize, (Life, BTreeMap<usize, bool>)>,
    /// Paths in use, with both ends.
    pub(crate) paths: BTreeMap<usize, Vec<usize>>,
    /// Since when there is no path, where there is none.
    pub(crate) lost: BTreeMap<usize, u64>,
    /// How often the path to each host has changed.
    pub(crate) changes: BTreeMap<usize, u64>,
    /// Whom it calls dead.
    pub(crate) dead: Vec<usize>,
}

/// A link as one of its ends has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    /// There is a connection...
    pub(crate) is_open: bool,
    /// ...that carries something.
    pub(crate) is_usable: bool,
    /// Since when both are as they are.
    pub(crate) since: u64,
}

impl Look {
    /// Hosts whose nodes run.
    pub(crate) fn running(&self) -> impl Iterator<Item = (usize, &Seen)> {
        self.hosts.iter().enumerate().filter(|(_, seen)| seen.life.is_some())
    }

    /// Since when each two running hosts have been connected by clean links, directly or by way of others; `routers`: only of
    /// those that pass packets on. Of several ways the one that is clean for longest counts.
    pub(crate) fn connected(&self, routers: bool) -> BTreeMap<(usize, usize), u64> {
        let mut since = self.clean.clone();
        for (middle, seen) in self.running().filter(|(_, seen)| !routers || seen.is_router) {
            let Some(awake) = seen.awake else { continue };
            for a in 0..self.hosts.len() {
                let Some(first) = since.get(&(a, middle)).copied() else { continue };
                for b in (0..self.hosts.len()).filter(|b| *b != a && *b != middle) {
                    let Some(second) = since.get(&(middle, b)).copied() else { continue };
                    let by_way = first.max(second).max(awake);
                    let known = since.entry((a, b)).or_insert(by_way);
                    *known = by_way.min(*known);
                }
            }
        }
        since
    }

    /// Since when news of `whom` gets to `host`: both are connected, and everybody in between knows `whom`. `None`: it does not.
    pub(crate) fn hears(
        &self,
        connected: &BTreeMap<(usize, usize), u64>,
        host: usize,
        whom: usize,
    ) -> Option<u64> {
        let life = self.hosts[whom].life?;
        let mut since = connected.get(&(host, whom)).copied()?.max(self.hosts[whom].since);
        let near = self.running().filter(|(other, _)| {
            *other != whom && (*other == host || connected.contains_key(&(host, *other)))
        });
        for (_, other) in near {
            let (incarnation, known_since) = other.view.known.get(&whom).copied()?;
            if incarnation != life.0 {
                return None;
            }
            since = since.max(known_since);
        }
        Some(since)
    }

    /// For how long what began at the latest of `times` has lasted.
    pub(crate) fn age(&self, times: &[u64]) -> u64 {
        self.at.saturating_sub(times.iter().copied().max().unwrap_or(0))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::clock::SECOND;

    /// `count` hosts that have run for a hundred seconds, all linked and all knowing each other: nothing is wrong.
    pub(crate) fn calm(count: usize) -> Look {
        let mut look = Look { at: 100 * SECOND, ..Look::default() };
        for host in 0..count {
            let others = || (0..count).filter(move |other| *other != host);
            let own = Own { is_open: true, is_usable: true, since: 0 };
            let told = |of: usize| {
                let up = (0..count).filter(|to| *to != of).map(|to| (to, true)).collect();
                (of, ((1, 1), up))
            };
            let view = View {
                known: others().map(|other| (other, (1, 0))).collect(),
                links: others().map(|other| (other, own)).collect(),
                told: others().map(told).collect(),
                paths: others().map(|other| (other, vec![host, other])).collect(),
                lost: BTreeMap::new(),
                changes: others().map(|other| (other, 1)).collect(),
                dead: Vec::new(),
            };
            let seen = Seen { life: Some((1, 1)), since: 0, awake: Some(0), is_router: true, view };
            look.hosts.push(seen);
            look.clean.extend(others().map(|other| ((host, other), 0)));
        }
        look
    }

    #[test]
    fn the_way_that_is_clean_for_longest_counts_and_relays_may_have_to_be_routers() {
        let mut look = calm(4);
        for (a, b, since) in [(0, 1, Some(90)), (0, 2, Some(10)), (1, 2, Some(20)), (0, 3, None)] {
            for pair in [(a, b), (b, a)] {
                look.clean.remove(&pair);
                look.clean.extend(since.map(|since| (pair, since * SECOND)));
            }
        }
        assert_eq!(look.connected(true)[&(0, 1)], 10 * SECOND, "by way of 3 and 4");
        assert_eq!(look.connected(true)[&(0, 3)], 10 * SECOND);
        look.hosts[2].is_router = false;
        assert_eq!(look.connected(true)[&(0, 1)], 90 * SECOND);
        assert_eq!(look.connected(false)[&(0, 1)], 10 * SECOND);
    }

    #[test]
    fn news_needs_everybody_on_its_way_to_know_whom_it_is_about() {
        let mut look = calm(3);
        let connected = look.connected(false);
        assert_eq!(look.hears(&connected, 0, 1), Some(0));
        look.hosts[2].view.known.insert(1, (1, 70 * SECOND));
        assert_eq!(look.hears(&connected, 0, 1), Some(70 * SECOND));
        look.hosts[2].view.known.insert(1, (9, 70 * SECOND));
        assert_eq!(look.hears(&connected, 0, 1), None, "another disk");
    }
}
