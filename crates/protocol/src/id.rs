//! Names of things. Two integers of different meaning are two types.

use std::{fmt, sync::Arc};

use crate::limits::{ADDRESS_BYTES_MAX, SEGMENT_BYTES_MAX};

/// A node of the cluster, 1..=65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

/// One replicated log. Data shards count from 0; [`ShardId::CLUSTER`] is the cluster's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u32);

impl ShardId {
    /// The shard that holds cluster facts: addresses, groups, members.
    pub const CLUSTER: Self = Self(u32::MAX);
}

/// A cluster, drawn at random by `swarmmq init`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u128);

/// A producer: 128 random bits, or the hash of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProducerId(pub u128);

/// Which life of a producer. A higher epoch fences the lower ones in the shards it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProducerEpoch(pub u64);

/// A producer's message number within one (epoch, shard). Counts from 1 without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

/// A message's place in its shard; assigned when it is applied, never reused. Counts from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

/// A leader's reign over a shard (Raft's term).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

/// A payload key of an address, by number in the keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

/// A consumer process: 128 random bits, stable over its reconnects, so that it can re-claim its leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId(pub u128);

/// Keyed hash of a message's key; equal keys of one cluster have equal hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub [u8; 16]);

/// How often a producer session has taken a new key, for whatever reason. Part of what each of its keys is derived from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRenewal(pub u32);

/// Fresh 256 random bits of one producer session; makes its session key unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Salt(pub [u8; 32]);

/// Which delivery of a message to a group this is. Counts from 1; above 1 the message may have been seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u32);

/// What names a message for ever, in every copy and on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// Who sent it.
    pub producer: ProducerId,
    /// In which life.
    pub epoch: ProducerEpoch,
    /// Through which shard.
    pub shard: ShardId,
    /// Which one.
    pub sequence: Sequence,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}-{}-{}-{}", self.producer.0, self.epoch.0, self.shard.0, self.sequence.0)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Why a text is no address or group. Nothing changed. Blame: caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameError {
    /// No characters, or two dots in a row, or a dot at an end.
    EmptySegment,
    /// Longer than the limit, in bytes.
    TooLong {
        /// Length found.
        length: usize,
        /// Longest allowed.
        max: usize,
    },
    /// Outside `[A-Za-z0-9_-]`.
    Character(char),
    /// A leading `_` is kept for the system.
    Reserved,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptySegment => write!(f, "empty name or empty segment between dots"),
            Self::TooLong { length, max } => write!(f, "{length} bytes where at most {max} are allowed"),
            Self::Character(c) => write!(f, "character {c:?} is not one of A-Z a-z 0-9 _ -"),
            Self::Reserved => write!(f, "a leading _ is reserved for the system"),
        }
    }
}

impl std::error::Error for NameError {}

fn check_segment(segment: &str) -> Result<(), NameError> {
    if segment.is_empty() {
        return Err(NameError::EmptySegment);
    }
    if let Some(c) = segment.chars().find(|c| !(c.is_ascii_alphanumeric() || *c == '_' || *c == '-')) {
        return Err(NameError::Character(c));
    }
    if segment.len() > SEGMENT_BYTES_MAX {
        return Err(NameError::TooLong { length: segment.len(), max: SEGMENT_BYTES_MAX });
    }
    Ok(())
}

/// Where messages are sent: dot-separated segments, e.g. `shop.orders`. Case-sensitive; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Arc<str>);

impl Address {
    /// Parses and checks `text` against the grammar.
    ///
    /// Addresses whose last segment is `dlq` are accepted; see [`Address::is_dead_letter`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.len() > ADDRESS_BYTES_MAX {
            return Err(NameError::TooLong { length: text.len(), max: ADDRESS_BYTES_MAX });
        }
        if text.starts_with('_') {
            return Err(NameError::Reserved);
        }
        text.split('.').try_for_each(check_segment)?;
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is a dead-letter queue: received from, never sent to.
    pub fn is_dead_letter(&self) -> bool {
        self.0.rsplit('.').next() == Some("dlq")
    }

    /// The dead-letter queue of this address; itself if it is one. `None` where the name would be too long.
    pub fn dead_letter(&self) -> Option<Self> {
        if self.is_dead_letter() {
            return Some(self.clone());
        }
        (self.0.len() + 4 <= ADDRESS_BYTES_MAX).then(|| Self(format!("{}.dlq", self.0).into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A named set of consumers of an address: one segment. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName(Arc<str>);

impl GroupName {
    /// Parses and checks `text`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.starts_with('_') {
            return Err(NameError::Reserved);
        }
        check_segment(text)?;
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The lasting name of a producer: one segment, as for groups. Whoever takes it over fences whoever had it before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProducerName(Arc<str>);

impl ProducerName {
    /// Parses and checks `text`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        GroupName::parse(text).map(|name| Self(name.0))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProducerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_the_grammar() {
        for good in ["a", "shop.orders", "A-1_b.c", "shop.orders.dlq"] {
            assert!(Address::parse(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", NameError::EmptySegment),
            ("a..b", NameError::EmptySegment),
            (".a", NameError::EmptySegment),
            ("_sys", NameError::Reserved),
            ("a.*", NameError::Character('*')),
            ("ä", NameError::Character('ä')),
            (&"x".repeat(65), NameError::TooLong { length: 65, max: 64 }),
        ] {
            assert_eq!(Address::parse(bad), Err(why), "{bad}");
        }
        assert!(matches!(Address::parse(&"x.".repeat(140)), Err(NameError::TooLong { .. })));
    }

    #[test]
    fn a_dead_letter_queue_is_its_own_dead_letter_queue() {
        let dlq = Address::parse("shop.orders").unwrap().dead_letter().unwrap();
        assert_eq!(dlq.as_str(), "shop.orders.dlq");
        assert_eq!(dlq.dead_letter().unwrap(), dlq);
    }
}
