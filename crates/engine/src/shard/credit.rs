//! How much each subscriber can still take, and how much may be on its way to the node where it is.
//!
//! Credit is what one subscriber has room for. Many subscribers of one node together have more than a link holds, so what is
//! on its way to a node has a window of its own, whoever it is for: without it a link is given up for being too full, and
//! everything on it is delivered again.

use std::collections::BTreeMap;

use swarmmq_protocol::id::NodeId;

use super::delivery::SubscriberId;

/// Sealed bytes that may be on their way from a leader to one other node; the last message may overdraw it. Far below what a
/// link holds, also where a relay has the windows of several leaders on one link; and enough for 80 MB/s over 100 ms.
pub const WINDOW_BYTES: u64 = 8 << 20;

/// What subscribers may still be sent; shared by the shards of an address.
#[derive(Debug, Default)]
pub struct Credits {
    credits: BTreeMap<SubscriberId, Credit>,
    windows: BTreeMap<NodeId, Window>,
    /// Those whose windows are full: mostly none, and this is looked at for every subscriber again and again.
    full: Vec<NodeId>,
}

/// Messages and bytes a subscriber can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Credit {
    messages: u32,
    /// Sealed bytes; the last message may overdraw it.
    bytes: i64,
    /// Where it is, if that is another node.
    at: Option<NodeId>,
}

/// Sealed bytes for one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Window {
    /// Leased, and about to be sent.
    chosen: u64,
    /// Sent, and not yet said to have arrived.
    under_way: u64,
}

impl Window {
    fn is_open(self) -> bool {
        self.chosen + self.under_way < WINDOW_BYTES
    }
}

impl Credits {
    /// Adds to what `subscriber` can take, up to the limits.
    ///
    /// * `at`: the node where it is; `None`: this one.
    pub fn grant(&mut self, subscriber: SubscriberId, at: Option<NodeId>, messages: u32, bytes: u64) {
        use swarmmq_protocol::limits::{CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX};
        let credit = self.credits.entry(subscriber).or_default();
        credit.at = at;
        credit.messages = credit.messages.saturating_add(messages).min(CREDIT_MESSAGES_MAX);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        credit.bytes = credit.bytes.saturating_add(bytes).min(CREDIT_BYTES_MAX as i64);
    }

    /// Forgets `subscriber`.
    pub fn remove(&mut self, subscriber: SubscriberId) {
        self.credits.remove(&subscriber);
    }

    /// What was chosen for other nodes has been sent to them, as [`Credits::sent`] was told, or will never be.
    pub fn chosen_is_over(&mut self) {
        for window in self.windows.values_mut() {
            window.chosen = 0;
        }
        self.full.retain(|node| !self.windows[node].is_open());
    }

    /// So many sealed bytes went to `node`.
    pub fn sent(&mut self, node: NodeId, bytes: u64) {
        self.change(node, |window| window.under_way += bytes);
    }

    /// So many of them have arrived. True: nothing more could be sent before, and now it can. Who says so for the first time has
    /// a window from now on; nodes of earlier builds never do, and have none.
    pub fn arrived(&mut self, node: NodeId, bytes: u64) -> bool {
        let was_full = self.full.contains(&node);
        self.windows.entry(node).or_default();
        self.change(node, |window| window.under_way = window.under_way.saturating_sub(bytes));
        was_full && !self.full.contains(&node)
    }

    /// Whatever was on its way to `node` is lost.
    pub fn lost(&mut self, node: NodeId) {
        self.windows.remove(&node);
        self.full.retain(|full| *full != node);
    }

    fn change(&mut self, node: NodeId, how: impl FnOnce(&mut Window)) {
        let Some(window) = self.windows.get_mut(&node) else { return };
        let was_open = window.is_open();
        how(window);
        match (was_open, window.is_open()) {
            (true, false) => self.full.push(node),
            (false, true) => self.full.retain(|full| *full != node),
            _ => {}
        }
    }

    /// Whether somebody waits for what is on its way to another node.
    pub(super) fn has_full_window(&self) -> bool {
        !self.full.is_empty()
    }

    pub(super) fn allows(&self, subscriber: SubscriberId) -> bool {
        self.credits.get(&subscriber).is_some_and(|credit| {
            let is_open = || credit.at.is_none_or(|node| !self.full.contains(&node));
            credit.messages > 0 && credit.bytes > 0 && (self.full.is_empty() || is_open())
        })
    }

    pub(super) fn spend(&mut self, subscriber: SubscriberId, bytes: u32) {
        let credit = self.credits.get_mut(&subscriber).expect("only who has credit is delivered to");
        credit.messages -= 1;
        credit.bytes -= i64::from(bytes);
        if let Some(node) = credit.at {
            self.change(node, |window| window.chosen += u64::from(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SubscriberId = SubscriberId(1);
    const THERE: [SubscriberId; 2] = [SubscriberId(2), SubscriberId(3)];
    const NODE: NodeId = NodeId(2);
    const MIB: u32 = 1 << 20;

    fn credits() -> Credits {
        let mut credits = Credits::default();
        assert!(!credits.arrived(NODE, 0));
        credits.grant(HERE, None, 100, u64::from(100 * MIB));
        THERE.iter().for_each(|there| credits.grant(*there, Some(NODE), 100, u64::from(100 * MIB)));
        credits
    }

    #[test]
    fn the_subscribers_of_one_node_share_its_window() {
        let mut credits = credits();
        for turn in 0..8 {
            assert!(credits.allows(THERE[turn % 2]), "{turn}");
            credits.spend(THERE[turn % 2], MIB);
        }
        assert!(THERE.iter().all(|there| !credits.allows(*there)), "what is only chosen counts");
        assert!(credits.allows(HERE), "who is here needs no link");
        credits.chosen_is_over();
        credits.sent(NODE, u64::from(8 * MIB));
        assert!(!credits.allows(THERE[0]));
        assert!(credits.arrived(NODE, u64::from(2 * MIB)), "it opens");
        assert!(!credits.arrived(NODE, u64::from(MIB)), "it was open");
        assert!(THERE.iter().all(|there| credits.allows(*there)));
    }

    #[test]
    fn what_is_lost_or_was_never_sent_is_not_under_way() {
        let mut credits = credits();
        (0..8).for_each(|_| credits.spend(THERE[0], MIB));
        credits.chosen_is_over();
        assert!(credits.allows(THERE[0]), "its consumer left before it was sent");
        credits.sent(NODE, u64::from(9 * MIB));
        assert!(!credits.allows(THERE[0]));
        credits.lost(NODE);
        assert!(credits.allows(THERE[0]), "another path");
        assert!(!credits.arrived(NODE, 1), "late word of what was lost opens nothing");
        assert!(credits.allows(THERE[0]));
    }

    #[test]
    fn who_never_says_what_has_arrived_is_sent_all_that_it_has_room_for() {
        let mut credits = credits();
        credits.lost(NODE);
        (0..9).for_each(|_| credits.spend(THERE[0], MIB));
        credits.chosen_is_over();
        credits.sent(NODE, u64::from(9 * MIB));
        assert!(credits.allows(THERE[0]));
    }

    #[test]
    fn one_message_may_overdraw_whatever_its_length() {
        let mut credits = credits();
        credits.spend(THERE[0], 8 * MIB - 1);
        assert!(credits.allows(THERE[1]));
        credits.spend(THERE[1], 16 * MIB);
        assert!(!credits.allows(THERE[1]));
    }
}
