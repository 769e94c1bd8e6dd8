//! Which key a session seals with, and when the next one is due: another payload key, or a fresh key of the same one.
//!
//! A session keeps its producer, its epoch, its salt and its sequences when its key changes. So messages stay in their
//! lanes, nothing overtakes and nobody is fenced, and yet no key serves longer than it may. Invariant: the number of
//! renewals only grows within a session, so a key that was left is never taken again.

use std::time::Duration;

use swarmmq_protocol::{
    id::{KeyId, KeyRenewal},
    time::WallTime,
};

use crate::keyring::ClientKeyring;

/// How much one session key may seal, over all shards and addresses. Reaching any of them gives the session a new key;
/// nobody notices.
///
/// By default 2^22 messages, 2^36 bytes and 24 hours. NIST SP 800-38D allows a counted nonce far more messages; what wears
/// out is the number of blocks: 2^32 of them under one key leave an advantage of about 2^-65 in telling it from random
/// (blocks squared / 2^129). The messages are fewer than others allow one data key (5,000,000), the hours bound what is
/// lost with one session key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLimits {
    /// Messages, at least one.
    pub messages: u64,
    /// Bytes of header, ciphertext and tag together; a single message may go beyond.
    pub bytes: u64,
    /// Time from its first message on, by the sender's wall clock.
    pub age: Duration,
}

impl Default for KeyLimits {
    fn default() -> Self {
        Self { messages: 1 << 22, bytes: 1 << 36, age: Duration::from_secs(24 * 3600) }
    }
}

/// The session can take no further key: it has had 2^32 of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoMoreKeys;

/// The key in use and what it has sealed.
#[derive(Debug)]
pub(crate) struct Turn {
    /// `None` before the first message.
    key_id: Option<KeyId>,
    renewal: KeyRenewal,
    messages: u64,
    bytes: u64,
    /// Since when, by the lowest reading of a clock that may be set back.
    since: WallTime,
    /// When another payload key takes over, as the keyring stands. `None`: never.
    next_activation: Option<WallTime>,
    /// The keyring is another one than before.
    is_stale: bool,
}

impl Turn {
    pub(crate) fn new() -> Self {
        Self {
            key_id: None,
            renewal: KeyRenewal(0),
            messages: 0,
            bytes: 0,
            since: WallTime(u64::MAX),
            next_activation: None,
            is_stale: false,
        }
    }

    /// The payload key in use; before the first message there is none.
    pub(crate) fn key_id(&self) -> Option<KeyId> {
        self.key_id
    }

    pub(crate) fn renewal(&self) -> KeyRenewal {
        self.renewal
    }

    /// The keyring was replaced: which key seals is looked up anew. `must_leave`: the key in use is not there any more, or
    /// is another one under the same number.
    pub(crate) fn keyring_replaced(&mut self, must_leave: bool) {
        self.is_stale = true;
        if must_leave {
            // No limit is left: the next message takes another key.
            self.messages = u64::MAX;
        }
    }

    /// Makes sure that the key in use may seal one more message of so many bytes. True: it is a new one.
    pub(crate) fn before_message(
        &mut self,
        keyring: &ClientKeyring,
        limits: &KeyLimits,
        now: WallTime,
        bytes: u64,
    ) -> Result<bool, NoMoreKeys> {
        let mut key_id = self.key_id;
        if key_id.is_none() || self.is_stale || self.next_activation.is_some_and(|at| at <= now) {
            key_id = Some(keyring.sealing_key(now));
        }
        self.since = self.since.min(now);
        let used_up = self.messages > 0
            && (self.messages >= limits.messages
                || self.bytes.saturating_add(bytes) > limits.bytes
                || now.since(self.since) >= limits.age);
        let is_first = self.key_id.is_none();
        let is_new = key_id != self.key_id || used_up;
        if is_new {
            if !is_first {
                // For another payload key too: should the first one come back, its old session key must not.
                self.renewal = KeyRenewal(self.renewal.0.checked_add(1).ok_or(NoMoreKeys)?);
            }
            (self.messages, self.bytes, self.since) = (0, 0, now);
        }
        self.key_id = key_id;
        if is_new || self.is_stale || self.next_activation.is_some_and(|at| at <= now) {
            self.next_activation = keyring.next_activation(now);
            self.is_stale = false;
        }
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(is_new)
    }

    #[cfg(test)]
    pub(crate) fn renewed_before(&mut self, renewal: KeyRenewal) {
        self.renewal = renewal;
    }
}
