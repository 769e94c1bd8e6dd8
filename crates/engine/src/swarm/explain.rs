//! Which paths are in use and why, for whoever looks. Reads the same figures as the decision, and decides nothing.

use std::{collections::BTreeSet, time::Duration};

use swarmmq_protocol::{
    id::NodeId,
    route::{
        LinkFault, LinkFaults, LinkView, LinkWord, RelayView, Route, RouteCandidate, RouteExplanation,
        RouteWhy,
    },
    time::Instant,
};

use super::{
    Swarm, back_from,
    cost::LinkCost,
    damping::{Choice, SAMPLES, Why, worth_us},
    measure::PROBE_PAUSE,
    path::{AVOIDED_US, Picture, RELAY_US},
    report::LinkReport,
};

/// Candidates that are told.
const CANDIDATES_MAX: usize = 5;

impl Swarm {
    /// The path in use to every other node that this one knows, in the order of nodes.
    pub fn routes(&self, now: Instant) -> Vec<Route> {
        let picture = self.picture(now);
        let nodes: BTreeSet<NodeId> = self.known.keys().chain(self.choices.keys()).copied().collect();
        let others = nodes.into_iter().filter(|node| *node != self.config.me.node);
        others.map(|node| self.route(now, &picture, node)).collect()
    }

    fn route(&self, now: Instant, picture: &Picture, to: NodeId) -> Route {
        let unheard = Choice::new(now);
        let choice = self.choices.get(&to).unwrap_or(&unheard);
        Route {
            to,
            path: choice.path.clone().unwrap_or_default(),
            cost_us: choice.path.as_ref().and_then(|path| picture.cost_us(path)),
            before: choice.before.clone().unwrap_or_default(),
            why: match choice.why {
                Why::Found => RouteWhy::Found,
                Why::Broken => RouteWhy::Broken,
                Why::Cheaper { from_us, to_us } => RouteWhy::Cheaper { from_us, to_us },
                Why::Lost => RouteWhy::Lost,
            },
            changed_ms: millis(now.since(choice.changed_at)),
            changes: choice.changes,
        }
    }

    /// Why packets to `to`, another node, take the path that they take. Cost: below a millisecond for ten nodes; bounded for any number.
    pub fn explain(&self, now: Instant, to: NodeId) -> RouteExplanation {
        let me = self.config.me.node;
        let picture = self.picture(now);
        let route = self.route(now, &picture, to);
        let paths = picture.cheapest(me, to, CANDIDATES_MAX);
        let candidates: Vec<RouteCandidate> = paths
            .into_iter()
            .map(|path| {
                let inner = &path.nodes[1..path.nodes.len() - 1];
                let relays_us = inner.iter().filter_map(|node| picture.relay_us(*node)).map(u64::from).sum();
                RouteCandidate { links_us: path.cost_us - relays_us, relays_us, path: path.nodes }
            })
            .collect();
        let relays: Vec<NodeId> = self.gossip.reports().map(|report| report.node).collect();
        let relays: Vec<NodeId> = relays.into_iter().filter(|node| *node != me && *node != to).collect();
        let mut pairs = vec![(me, to)];
        pairs.extend(candidates.iter().flat_map(|candidate| candidate.path.windows(2)).map(|p| (p[0], p[1])));
        pairs.extend(self.links.iter().map(|(node, _)| (me, node)));
        pairs.extend(relays.iter().map(|node| (*node, to)));
        let mut told = BTreeSet::new();
        pairs.retain(|pair| told.insert(*pair));
        let choice = self.choices.get(&to);
        let streak = choice.map_or(0, |choice| choice.streak);
        let needed = choice.map_or(SAMPLES, |choice| choice.samples_needed(now));
        let next = what_next(&route, candidates.first(), (streak, needed));
        RouteExplanation {
            from: me,
            worth_us: route.cost_us.and_then(worth_us),
            streak,
            streak_needed: needed,
            links: pairs.into_iter().map(|(from, to)| self.link_view(now, from, to)).collect(),
            relays: relays.into_iter().filter_map(|node| self.relay_view(now, node)).collect(),
            route,
            candidates,
            next,
        }
    }

    fn link_view(&self, now: Instant, from: NodeId, to: NodeId) -> LinkView {
        let me = self.config.me.node;
        let word = |by: NodeId, link: &LinkReport| LinkWord {
            by,
            rtt_us: link.rtt_us,
            loss_permille: link.loss_permille,
        };
        let there = self.gossip.report(from).and_then(|report| back_from(report, to));
        let back = self.gossip.report(to).and_then(|report| back_from(report, from));
        let (mut words, mut penalty, mut until) = (Vec::new(), 0, Duration::ZERO);
        let cost = if from == me {
            let own = self.links.get(to);
            if let Some(link) = own {
                let loss_permille = self.gossip.loss_permille(to);
                words.push(LinkWord { by: me, rtt_us: link.rtt_us(), loss_permille });
                (penalty, until) = (link.flaps.at(now), link.flaps.suppressed_for(now));
            }
            own.map_or_else(|| without(LinkFault::NoConnection), |link| self.own_cost(now, to, link))
        } else {
            words.extend(there.map(|there| word(from, there)));
            until = self.doubts.get(&(from, to)).map_or(until, |until| until.since(now));
            let report = self.gossip.report(from).zip(there);
            report.map_or_else(
                || without(LinkFault::Unreported),
                |(report, link)| self.their_cost(report, link),
            )
        };
        words.extend(back.map(|back| word(to, back)));
        LinkView {
            from,
            to,
            cost_us: cost.us(),
            half_rtt_us: cost.half_rtt_us,
            loss_us: cost.loss_us,
            faults: cost.faults,
            is_own: from == me,
            words,
            penalty,
            until_ms: millis(until) as u32,
        }
    }

    fn relay_view(&self, now: Instant, node: NodeId) -> Option<RelayView> {
        let cost = self.relay_cost(now, self.gossip.report(node)?);
        Some(RelayView {
            node,
            cost_us: cost.us(),
            surcharge_us: RELAY_US,
            lag_us: cost.lag_us,
            is_router: cost.is_router,
            heard_ms: cost.heard.map(millis),
        })
    }
}

/// A link of which nothing is known but what is wrong with it.
fn without(fault: LinkFault) -> LinkCost {
    let mut faults = LinkFaults::default();
    faults.note(fault, true);
    LinkCost { faults, ..LinkCost::default() }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

fn named(path: &[NodeId]) -> String {
    path.iter().map(|node| node.0.to_string()).collect::<Vec<_>>().join("-")
}

fn ms(us: u64) -> String {
    format!("{}.{:02} ms", us / 1_000, us % 1_000 / 10)
}

/// What would make the path change next, in words.
fn what_next(route: &Route, best: Option<&RouteCandidate>, (streak, needed): (u8, u8)) -> String {
    if route.path.is_empty() {
        return "the first path that leads there is taken at once".to_owned();
    }
    let Some(current_us) = route.cost_us else {
        return "the path does not lead there any more: another one is taken at once, as soon as there is one"
            .to_owned();
    };
    let avoided = u64::from(AVOIDED_US);
    if current_us >= avoided {
        return match best {
            Some(best) if best.cost_us() < avoided => format!(
                "a link on the path is avoided: {} is taken at once, for {}",
                named(&best.path),
                ms(best.cost_us())
            ),
            _ => "a link on every path is avoided: the first path without one is taken at once".to_owned(),
        };
    }
    let failure = "at once if a link or relay on it fails or is to be avoided";
    let samples = format!("{needed} samples in a row, one every {} ms", millis(PROBE_PAUSE));
    let Some(worth) = worth_us(current_us) else {
        return format!("{failure}; no other can save enough, which is 1 ms at least");
    };
    let cheaper = best.filter(|best| best.path != route.path);
    match cheaper {
        Some(best) if best.cost_us() <= worth => {
            let left = needed.saturating_sub(streak);
            let (name, cost) = (named(&best.path), ms(best.cost_us()));
            format!(
                "{failure}; {name} costs {cost}, which is cheaper by enough: it is taken after {left} more of {samples}"
            )
        }
        _ => format!("{failure}; for another that costs {} or less in {samples}", ms(worth)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(path: &[u16]) -> Vec<NodeId> {
        path.iter().copied().map(NodeId).collect()
    }

    fn next(path: &[u16], cost_us: Option<u64>, best: Option<(&[u16], u64)>, streak: u8) -> String {
        let route = Route {
            to: NodeId(2),
            path: nodes(path),
            cost_us,
            before: Vec::new(),
            why: RouteWhy::Found,
            changed_ms: 0,
            changes: 1,
        };
        let best =
            best.map(|(path, cost)| RouteCandidate { path: nodes(path), links_us: cost, relays_us: 0 });
        what_next(&route, best.as_ref(), (streak, SAMPLES))
    }

    #[test]
    fn what_comes_next_follows_from_what_is_in_use() {
        let detour: Option<(&[u16], u64)> = Some((&[1, 3, 2], 1_900));
        assert!(next(&[], None, None, 0).starts_with("the first path"));
        assert!(next(&[1, 2], None, detour, 0).contains("does not lead there any more"));
        assert!(next(&[1, 2], Some(1_000_000), detour, 0).contains("1-3-2 is taken at once, for 1.90 ms"));
        assert!(next(&[1, 2], Some(1_000_000), Some((&[1, 2], 1_000_000)), 0).contains("every path"));
        assert!(next(&[1, 2], Some(200), Some((&[1, 2], 200)), 0).contains("no other can save enough"));
        let far = next(&[1, 2], Some(10_000), Some((&[1, 2], 10_000)), 0);
        assert!(far.contains("costs 8.00 ms or less in 3 samples in a row, one every 200 ms"), "{far}");
        let near = next(&[1, 2], Some(10_000), Some((&[1, 3, 2], 9_000)), 0);
        assert!(near.contains("costs 8.00 ms or less"), "a tenth is not enough: {near}");
        let better = next(&[1, 2], Some(10_000), detour, 1);
        assert!(better.contains("1-3-2 costs 1.90 ms") && better.contains("after 2 more of 3"), "{better}");
    }
}
