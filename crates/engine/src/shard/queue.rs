//! One address in one shard: its messages in log order, and for every group what it still wants.
//!
//! Invariants: a message exists exactly as long as a group wants it, its minimum age has not passed, or the queue has
//! no group; a group wants every message at or above its floor that is not in its `settled` set.
//! Durable state: changed by `apply` only.

use std::collections::{BTreeMap, BTreeSet};

use swarmmq_protocol::{
    id::{Address, Attempt, GroupName, KeyHash, Offset},
    time::WallTime,
};

use super::event::{Order, Settings, Start};
use crate::log::Position;

/// Why a message lies in a dead-letter queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The group that gave it up.
    pub group: GroupName,
    /// Its offset in the queue that it came from.
    pub origin: Offset,
    /// Said by the consumer, or by the shard when attempts ran out.
    pub reason: String,
}

/// A message: everything but its bytes, which lie in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where its sealed bytes lie in this node's log. Local: differs between replicas, absent from digests.
    pub place: Position,
    /// Sealed bytes.
    pub length: u32,
    /// CRC32C of the sealed bytes, checked whenever they are read back.
    pub crc: u32,
    /// When its producer sealed it, by the producer's clock.
    pub published_at: WallTime,
    /// Which key it has; without one it blocks nobody.
    pub key: Option<KeyHash>,
    /// Set in dead-letter queues.
    pub dead: Option<Box<DeadLetter>>,
}

impl Message {
    /// Why it is a dead letter, for people; empty if it is none.
    pub fn dead_reason(&self) -> String {
        self.dead.as_ref().map_or_else(String::new, |dead| format!("group {}: {}", dead.group, dead.reason))
    }
}

/// A message that a group had before and wants again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    /// Number of the next delivery; 2 or more.
    pub attempt: u32,
    /// How often it was refused or ran out of time; giving it back unprocessed does not count.
    pub failures: u32,
    /// Not to be delivered before.
    pub not_before: WallTime,
}

/// A named set of consumers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Everything below is settled or was never wanted.
    pub floor: u64,
    /// Settled at or above the floor, of messages that still exist.
    pub settled: BTreeSet<u64>,
    /// First deliveries may have happened below this offset.
    pub horizon: u64,
    /// Wanted again, by offset.
    pub retries: BTreeMap<u64, Retry>,
    /// Given up so far.
    pub dead_lettered: u64,
}

impl Group {
    /// Whether this group still wants the existing message at `offset`.
    pub fn wants(&self, offset: u64) -> bool {
        offset >= self.floor && !self.settled.contains(&offset)
    }

    /// Which delivery of `offset` comes next.
    pub fn attempt(&self, offset: u64) -> Attempt {
        Attempt(self.retries.get(&offset).map_or(1, |retry| retry.attempt))
    }
}

/// One address in this shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub address: Address,
    /// What consumers may rely on.
    pub order: Order,
    /// What `apply` reads.
    pub settings: Settings,
    /// By offset.
    pub messages: BTreeMap<u64, Message>,
    /// Sealed bytes of all messages.
    pub bytes: u64,
    /// By name.
    pub groups: BTreeMap<GroupName, Group>,
}

impl Queue {
    pub(super) fn new(address: Address, order: Order, settings: Settings) -> Self {
        Self { address, order, settings, messages: BTreeMap::new(), bytes: 0, groups: BTreeMap::new() }
    }

    /// First offset that a group starting at `start` wants.
    pub fn start_offset(&self, start: Start, next_offset: u64) -> u64 {
        match start {
            Start::Oldest => 0,
            Start::End => next_offset,
            Start::Time(time) => self
                .messages
                .iter()
                .find(|(_, message)| message.published_at >= time)
                .map_or(next_offset, |(offset, _)| *offset),
        }
    }

    /// Messages that `group` still wants. Cost: O(messages) if groups differ in progress.
    pub fn lag(&self, group: &Group) -> u64 {
        let from_floor = if self.messages.first_key_value().is_none_or(|(first, _)| *first >= group.floor) {
            self.messages.len()
        } else {
            self.messages.range(group.floor..).count()
        };
        (from_floor - group.settled.len()) as u64
    }

    /// The oldest message that `group` still wants.
    pub fn oldest_wanted(&self, group: &Group) -> Option<&Message> {
        self.messages.range(group.floor..).find(|(offset, _)| !group.settled.contains(offset)).map(|(_, m)| m)
    }

    /// Marks `offset` as settled for `name`. False: nothing changed, it was not wanted any more.
    pub(super) fn settle(&mut self, name: &GroupName, offset: u64) -> bool {
        let Some(group) = self.groups.get_mut(name) else { return false };
        if !self.messages.contains_key(&offset) || !group.wants(offset) {
            return false;
        }
        group.retries.remove(&offset);
        group.settled.insert(offset);
        true
    }

    /// Whether every group has settled `offset` (and there is a group).
    pub(super) fn settled_by_all(&self, offset: u64) -> bool {
        !self.groups.is_empty() && self.groups.values().all(|group| !group.wants(offset))
    }

    /// Removes the message at `offset` and every trace of it in the groups.
    pub(super) fn remove(&mut self, offset: u64) -> Option<Message> {
        let message = self.messages.remove(&offset)?;
        self.bytes -= u64::from(message.length);
        for group in self.groups.values_mut() {
            group.settled.remove(&offset);
            group.retries.remove(&offset);
        }
        Some(message)
    }

    /// Raises the floor of `name` over everything that it has settled, so that its `settled` set stays small.
    pub(super) fn raise_floor(&mut self, name: &GroupName) {
        let Some(group) = self.groups.get_mut(name) else { return };
        if group.settled.is_empty() {
            return;
        }
        let mut floor = group.floor;
        for offset in self.messages.range(group.floor..).map(|(offset, _)| *offset) {
            if !group.settled.remove(&offset) {
                break;
            }
            floor = offset + 1;
        }
        group.floor = floor;
    }

    pub(super) fn check(&self, next_offset: u64) {
        let bytes: u64 = self.messages.values().map(|message| u64::from(message.length)).sum();
        assert_eq!(bytes, self.bytes, "byte count of {}", self.address);
        assert!(self.messages.last_key_value().is_none_or(|(last, _)| *last < next_offset));
        for (name, group) in &self.groups {
            for offset in group.settled.iter().chain(group.retries.keys()) {
                assert!(self.messages.contains_key(offset), "{name} remembers {offset}, which is gone");
            }
            for offset in group.retries.keys() {
                assert!(group.wants(*offset), "{name} retries {offset}, which it settled");
            }
            assert!(group.settled.iter().all(|offset| *offset >= group.floor));
        }
    }
}
