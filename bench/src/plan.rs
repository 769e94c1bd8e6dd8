//! The work: who publishes what and when, and how a message says which one it is. The same for every broker.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Producers where nothing else is said, each with a connection of its own. There is one consumer.
pub(crate) const PRODUCERS: u16 = 4;
/// Messages of one producer that are not confirmed, at most.
pub(crate) const IN_FLIGHT: usize = 256;
/// Messages published and not received yet, at most: otherwise saturation would measure the length of a queue.
const BACKLOG: u64 = 4096;
/// Their bytes, at most. Only messages above 16 KiB notice.
const BACKLOG_BYTES: u64 = 64 << 20;
/// Keys of each producer, where messages have keys.
pub(crate) const KEYS: u32 = 64;
/// Shortest pause between bursts of a schedule.
const PAUSE_NS: u64 = 500_000;
/// Bytes at the beginning of a body that say which message it is.
///
/// ```text
///  0       2            4              8                16
///  | run u16 | producer u16 | sequence u32 | due u64 (ns) | padding
/// ```
pub(crate) const HEADER_BYTES: usize = 16;

/// What is asked of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Load {
    /// Nothing: what it costs to be there.
    Idle,
    /// On a schedule that does not wait for answers.
    Rate { size: u32, per_s: u32 },
    /// As fast as the bounds on open messages allow.
    Saturation { size: u32 },
    /// On a schedule, and the leader is killed meanwhile.
    Failover { size: u32, per_s: u32 },
}

impl Load {
    pub(crate) fn size(self) -> u32 {
        match self {
            Self::Idle => 0,
            Self::Rate { size, .. } | Self::Saturation { size } | Self::Failover { size, .. } => size,
        }
    }

    /// Of all producers together; `None`: no schedule.
    pub(crate) fn per_s(self) -> Option<u32> {
        match self {
            Self::Idle | Self::Saturation { .. } => None,
            Self::Rate { per_s, .. } | Self::Failover { per_s, .. } => Some(per_s),
        }
    }

    /// As people call it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Idle => "idle".into(),
            Self::Rate { per_s, size } => format!("{} msg/s of {}", thousands(per_s.into()), bytes(size)),
            Self::Saturation { size } => format!("saturation, {}", bytes(size)),
            Self::Failover { .. } => "failover".into(),
        }
    }
}

/// With a comma before every three digits.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// With a unit.
pub(crate) fn bytes(number: u32) -> String {
    if number >= 1024 && number.is_multiple_of(1024) {
        format!("{} KiB", number / 1024)
    } else {
        format!("{number} B")
    }
}

/// Which messages are promised to come in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InOrder {
    /// Those of one producer.
    Producer,
    /// Those of one producer with one key.
    Key,
    None,
}

/// One run of a load.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Told apart from other runs' messages by this.
    pub(crate) run: u16,
    pub(crate) load: Load,
    pub(crate) producers: u16,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    pub(crate) in_order: InOrder,
}

impl Plan {
    /// When a message is due, in nanoseconds from the start: producers take turns, and at high rates a few go together.
    /// `None`: as soon as there is room.
    pub(crate) fn due(&self, producer: u16, sequence: u32) -> Option<u64> {
        let per_s = u64::from(self.load.per_s()?);
        let place = u64::from(sequence) * u64::from(self.producers) + u64::from(producer);
        let together = (per_s * PAUSE_NS / 1_000_000_000).max(1);
        Some(place / together * together * 1_000_000_000 / per_s)
    }

    /// Messages published and not received yet, at most.
    pub(crate) fn backlog(&self) -> u64 {
        (BACKLOG_BYTES / u64::from(self.load.size().max(1))).clamp(1, BACKLOG)
    }

    /// When what counts begins and ends, in nanoseconds from the start.
    pub(crate) fn window_ns(&self) -> (u64, u64) {
        let begin = self.warm_up.as_nanos() as u64;
        (begin, begin + self.window.as_nanos() as u64)
    }

    /// In which line of messages, whose order counts, a message stands. `None`: no order was promised.
    pub(crate) fn line(&self, stamp: Stamp) -> Option<usize> {
        match self.in_order {
            InOrder::Producer => Some(stamp.producer.into()),
            InOrder::Key => {
                Some(usize::from(stamp.producer) * KEYS as usize + (stamp.sequence % KEYS) as usize)
            }
            InOrder::None => None,
        }
    }

    pub(crate) fn body(&self, stamp: Stamp) -> Bytes {
        let size = self.load.size() as usize;
        let mut body = BytesMut::with_capacity(size);
        body.put_u16(self.run);
        body.put_u16(stamp.producer);
        body.put_u32(stamp.sequence);
        body.put_u64(stamp.due);
        // A run of one byte would be kinder to a broker that compresses than real payloads are.
        let mut filler = u64::from(stamp.sequence) << 16 | u64::from(stamp.producer) | 1;
        while body.len() + 8 <= size {
            filler ^= filler << 13;
            filler ^= filler >> 7;
            filler ^= filler << 17;
            body.put_u64(filler);
        }
        body.resize(size, b'.');
        body.freeze()
    }

    /// The stamp of a message of this run.
    pub(crate) fn stamp(&self, body: &[u8]) -> Option<Stamp> {
        let header: &[u8; HEADER_BYTES] = body.first_chunk()?;
        let run = u16::from_be_bytes([header[0], header[1]]);
        let stamp = Stamp {
            producer: u16::from_be_bytes([header[2], header[3]]),
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            due: u64::from_be_bytes(header[8..].try_into().expect("eight bytes are left")),
        };
        let ours =
            run == self.run && stamp.producer < self.producers && body.len() == self.load.size() as usize;
        ours.then_some(stamp)
    }
}

/// Which message it is, and when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) producer: u16,
    pub(crate) sequence: u32,
    pub(crate) due: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(load: Load) -> Plan {
        let second = Duration::from_secs(1);
        Plan {
            run: 9,
            load,
            producers: PRODUCERS,
            warm_up: second,
            window: 2 * second,
            in_order: InOrder::Producer,
        }
    }

    fn dues(per_s: u32, count: u32) -> Vec<u64> {
        let plan = plan(Load::Rate { size: 100, per_s });
        let mut dues: Vec<u64> = (0..count)
            .flat_map(|n| (0..PRODUCERS).map(move |p| (p, n)))
            .map(|(p, n)| plan.due(p, n).unwrap())
            .collect();
        dues.sort_unstable();
        dues
    }

    #[test]
    fn producers_take_turns_on_one_schedule() {
        assert_eq!(dues(1000, 2), (0..8).map(|n| n * 1_000_000).collect::<Vec<u64>>());
        assert_eq!(plan(Load::Saturation { size: 100 }).due(0, 5), None);
    }

    #[test]
    fn at_high_rates_messages_go_together() {
        let dues = dues(10_000, 5);
        assert_eq!(dues.len(), 20);
        for (index, due) in dues.into_iter().enumerate() {
            assert_eq!(due, index as u64 / 5 * 500_000);
        }
    }

    #[test]
    fn large_messages_wait_in_smaller_numbers() {
        let backlog = |size| plan(Load::Saturation { size }).backlog();
        assert_eq!([16, 16_384, 131_072, 1 << 20].map(backlog), [4096, 4096, 512, 64]);
    }

    #[test]
    fn a_message_says_which_one_it_is() {
        let plan = plan(Load::Saturation { size: 100 });
        let stamp = Stamp { producer: 3, sequence: 70_000, due: 1 << 40 };
        let body = plan.body(stamp);
        assert_eq!(body.len(), 100);
        assert_eq!(plan.stamp(&body), Some(stamp));
        assert_eq!(plan.stamp(&body[..99]), None);
        assert_eq!(Plan { run: 8, ..plan.clone() }.stamp(&body), None);
        assert_eq!(plan.stamp(b"hello"), None);
    }

    #[test]
    fn order_counts_per_producer_or_per_key_or_not_at_all() {
        let of = |in_order| Plan { in_order, ..plan(Load::Idle) };
        let stamp = |producer, sequence| Stamp { producer, sequence, due: 0 };
        assert_eq!(of(InOrder::Producer).line(stamp(2, 65)), Some(2));
        assert_eq!(of(InOrder::Key).line(stamp(2, 65)), Some(129));
        assert_eq!(of(InOrder::None).line(stamp(2, 65)), None);
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            ["1", "999", "1,000", "1,234,567"],
            [1, 999, 1000, 1_234_567].map(thousands).each_ref().map(String::as_str)
        );
        assert_eq!(
            (bytes(128), bytes(1024), bytes(16_384)),
            ("128 B".into(), "1 KiB".into(), "16 KiB".into())
        );
    }
}
