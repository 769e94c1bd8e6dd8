//! How much each subscriber can still take.

use std::collections::BTreeMap;

use super::delivery::SubscriberId;

/// What subscribers may still be sent; shared by the shards of an address.
#[derive(Debug, Default)]
pub struct Credits(BTreeMap<SubscriberId, Credit>);

/// Messages and bytes a subscriber can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Messages.
    pub messages: u32,
    /// Sealed bytes; the last message may overdraw it.
    pub bytes: i64,
}

impl Credits {
    /// Adds to what `subscriber` can take, up to the limits.
    pub fn grant(&mut self, subscriber: SubscriberId, messages: u32, bytes: u64) {
        use swarmmq_protocol::limits::{CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX};
        let credit = self.0.entry(subscriber).or_default();
        credit.messages = credit.messages.saturating_add(messages).min(CREDIT_MESSAGES_MAX);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        credit.bytes = credit.bytes.saturating_add(bytes).min(CREDIT_BYTES_MAX as i64);
    }

    /// Forgets `subscriber`.
    pub fn remove(&mut self, subscriber: SubscriberId) {
        self.0.remove(&subscriber);
    }

    pub(super) fn allows(&self, subscriber: SubscriberId) -> bool {
        self.0.get(&subscriber).is_some_and(|credit| credit.messages > 0 && credit.bytes > 0)
    }

    pub(super) fn spend(&mut self, subscriber: SubscriberId, bytes: u32) {
        let credit = self.0.get_mut(&subscriber).expect("only who has credit is delivered to");
        credit.messages -= 1;
        credit.bytes -= i64::from(bytes);
    }
}
