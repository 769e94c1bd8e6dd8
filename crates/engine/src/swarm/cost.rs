//! What links and relays cost, and what is wrong with them. Decisions and explanations read the same figures.

use std::time::Duration;

use swarmmq_protocol::{
    id::NodeId,
    route::{LinkFault, LinkFaults},
    time::Instant,
};

use super::{
    Swarm, back_from,
    measure::Link,
    path::{AVOIDED_US, RELAY_US},
    report::{LinkReport, Report},
};
use crate::shard::member::ROLE_ROUTER;

/// How long after it opened a link may be unknown to its other end.
const OPENING: Duration = Duration::from_secs(1);
/// Loss below this, in 1,000, is noise.
const LOSS_NOISE_PERMILLE: u32 = 20;
/// What each lost packet in 1,000 costs: TCP waits at least 200 ms before it repeats the last of a burst.
const LOSS_US: u32 = 200;
/// A node whose beat has not risen for so long passes nothing on; whether it lives is another question, with more time.
const RELAY_UNHEARD: Duration = Duration::from_millis(350);
/// Longest delay in a node that is believed, in microseconds.
const LAG_US_MAX: u32 = 200_000;

/// What one direction of a link costs, in parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkCost {
    pub(super) half_rtt_us: u32,
    pub(super) loss_us: u32,
    pub(super) faults: LinkFaults,
}

impl LinkCost {
    fn new(rtt_us: u32, loss_permille: u16, faults: LinkFaults) -> Self {
        let loss_us = u32::from(loss_permille).saturating_sub(LOSS_NOISE_PERMILLE) * LOSS_US;
        Self { half_rtt_us: rtt_us / 2, loss_us, faults }
    }

    /// One way, in microseconds. `None`: it is not used.
    pub(super) fn us(self) -> Option<u32> {
        let sum = self.half_rtt_us.saturating_add(self.loss_us);
        let cost = if self.faults.avoid() { sum.max(AVOIDED_US) } else { sum };
        (!self.faults.exclude()).then_some(cost)
    }
}

/// What passing a node costs, in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RelayCost {
    pub(super) lag_us: u32,
    pub(super) is_router: bool,
    pub(super) heard: Option<Duration>,
}

impl RelayCost {
    /// Whether packets may pass it.
    pub(super) fn is_open(self) -> bool {
        self.is_router && self.heard.is_some_and(|heard| heard < RELAY_UNHEARD)
    }

    /// In microseconds. `None`: nothing passes it.
    pub(super) fn us(self) -> Option<u32> {
        self.is_open().then(|| self.lag_us.saturating_add(RELAY_US))
    }
}

impl Swarm {
    /// Own measurement outweighs claims; only that a neighbour hears nothing, nobody but it can know.
    pub(super) fn own_cost(&self, now: Instant, node: NodeId, link: &Link) -> LinkCost {
        let is_new = now.since(link.opened_at) < OPENING;
        let theirs = self.gossip.report(node).and_then(|report| back_from(report, self.config.me.node));
        let mut faults = LinkFaults::default();
        faults.note(LinkFault::NoConnection, !link.is_open);
        faults.note(LinkFault::Silent, link.is_silent);
        faults.note(LinkFault::Unheard, !is_new && theirs.is_some_and(|theirs| !theirs.is_up));
        faults.note(LinkFault::Suppressed, link.flaps.clone().is_suppressed(now));
        let loss = self.gossip.loss_permille(node).max(theirs.map_or(0, |theirs| theirs.loss_permille));
        LinkCost::new(link.rtt_us(), loss, faults)
    }

    /// What both ends say counts, and the worse of it: who claims to be near captures nothing.
    pub(super) fn their_cost(&self, report: &Report, link: &LinkReport) -> LinkCost {
        let back = self.gossip.report(link.to).and_then(|other| back_from(other, report.node));
        let mut faults = LinkFaults::default();
        faults.note(LinkFault::Doubted, self.doubts.contains_key(&(report.node, link.to)));
        faults.note(LinkFault::Gone, self.gone.contains_key(&link.to));
        faults.note(LinkFault::DownByFrom, !link.is_up);
        faults.note(LinkFault::DownByTo, back.is_some_and(|back| !back.is_up));
        faults.note(LinkFault::Unreported, back.is_none());
        let rtt_us = link.rtt_us.max(back.map_or(0, |back| back.rtt_us));
        // Who avoids a link of its own says so by a round trip that no link has.
        faults.note(LinkFault::Suppressed, rtt_us >= 2 * AVOIDED_US);
        LinkCost::new(rtt_us, link.loss_permille.max(back.map_or(0, |back| back.loss_permille)), faults)
    }

    /// What passing the node costs that says `report`.
    pub(super) fn relay_cost(&self, now: Instant, report: &Report) -> RelayCost {
        RelayCost {
            lag_us: report.load.lag_us.min(LAG_US_MAX),
            is_router: report.roles & ROLE_ROUTER != 0,
            heard: self.gossip.heard_at(report.node).map(|at| now.since(at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(rtt_us: u32, loss_permille: u16, fault: Option<LinkFault>) -> LinkCost {
        let mut faults = LinkFaults::default();
        fault.into_iter().for_each(|fault| faults.note(fault, true));
        LinkCost::new(rtt_us, loss_permille, faults)
    }

    #[test]
    fn a_link_costs_half_a_round_trip_and_what_it_loses() {
        assert_eq!(cost(400, 0, None).us(), Some(200));
        assert_eq!(cost(400, 20, None).us(), Some(200), "noise");
        assert_eq!(cost(400, 70, None).us(), Some(200 + 10_000));
    }

    #[test]
    fn what_is_only_avoided_has_a_price_and_what_is_down_has_none() {
        assert_eq!(cost(400, 0, Some(LinkFault::Silent)).us(), Some(AVOIDED_US));
        assert_eq!(cost(400, 0, Some(LinkFault::NoConnection)).us(), None);
    }

    #[test]
    fn only_a_router_that_was_heard_just_now_relays() {
        let relay = RelayCost { lag_us: 100, is_router: true, heard: Some(Duration::from_millis(100)) };
        assert_eq!(relay.us(), Some(RELAY_US + 100));
        assert_eq!(RelayCost { is_router: false, ..relay }.us(), None);
        assert_eq!(RelayCost { heard: None, ..relay }.us(), None);
        assert_eq!(RelayCost { heard: Some(RELAY_UNHEARD), ..relay }.us(), None);
    }
}
