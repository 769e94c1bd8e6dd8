//! Who publishes what and when; and how a message says which one it is.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use swarmmq_protocol::{admin::Order, id::Address, policy::Policy};

/// Bytes at the beginning of a body that say which message it is.
///
/// ```text
///  0       2            4              8                16
///  | run u16 | producer u16 | sequence u32 | scheduled u64 (ns) | padding
/// ```
pub(super) const HEADER_BYTES: usize = 16;
/// Keys of each producer with order `key`.
pub(super) const KEYS: u32 = 64;
/// Filler: a long run of zeros would be kinder to a disk than real payloads are.
const PADDING: u8 = b'.';

/// The load.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) run: u16,
    pub(super) address: Address,
    /// Made for this run: it is removed when the verdict is good.
    pub(super) fresh: bool,
    pub(super) order: Order,
    pub(super) producers: u16,
    pub(super) consumers: u16,
    /// Of all producers together; 0: no schedule.
    pub(super) rate: f64,
    pub(super) size: usize,
    pub(super) duration: Duration,
    pub(super) in_flight: usize,
    /// Time for each message's fate; `None`: as long as it takes, and one that fails ends the run.
    pub(super) deadline: Option<Duration>,
    /// Producers take them in turn; none: as the cluster says.
    pub(super) policies: Vec<Policy>,
    /// Whether the times of each message are kept, to be written to a file.
    pub(super) samples: bool,
    pub(super) started: OnceLock<Instant>,
}

impl Plan {
    /// Nanoseconds since the start; 0 before.
    pub(super) fn now(&self) -> u64 {
        self.started.get().map_or(0, |started| started.elapsed().as_nanos() as u64)
    }

    /// How a producer spreads its messages.
    pub(super) fn policy(&self, producer: u16) -> Option<Policy> {
        let count = self.policies.len();
        (count > 0).then(|| self.policies[usize::from(producer) % count])
    }

    /// When a message is to be published: producers take turns. `None`: as soon as there is room.
    pub(super) fn schedule(&self, producer: u16, sequence: u32) -> Option<u64> {
        let place = f64::from(sequence) * f64::from(self.producers) + f64::from(producer);
        (self.rate > 0.0).then(|| (place * 1e9 / self.rate) as u64)
    }

    /// The body of a message.
    pub(super) fn body(&self, stamp: Stamp) -> Bytes {
        let mut body = BytesMut::with_capacity(self.size);
        body.put_u16(stamp.run);
        body.put_u16(stamp.producer);
        body.put_u32(stamp.sequence);
        body.put_u64(stamp.scheduled);
        body.resize(self.size, PADDING);
        body.freeze()
    }

    /// The stamp of a message of this run.
    pub(super) fn stamp(&self, body: &[u8]) -> Option<Stamp> {
        let header: &[u8; HEADER_BYTES] = body.first_chunk()?;
        let stamp = Stamp {
            run: u16::from_be_bytes([header[0], header[1]]),
            producer: u16::from_be_bytes([header[2], header[3]]),
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            scheduled: u64::from_be_bytes(header[8..].try_into().expect("eight bytes are left")),
        };
        (stamp.run == self.run && stamp.producer < self.producers && body.len() == self.size).then_some(stamp)
    }

    /// The key of each producer's messages, by `sequence % KEYS`; none unless the order is by key.
    pub(super) fn keys(&self, producer: u16) -> Vec<Bytes> {
        match self.order {
            Order::Key => (0..KEYS).map(|key| Bytes::from(format!("p{producer}k{key}"))).collect(),
            Order::Total | Order::None => Vec::new(),
        }
    }

    /// In which line of messages, whose order counts, a message stands. `None`: no order was promised.
    pub(super) fn line(&self, stamp: &Stamp) -> Option<usize> {
        match self.order {
            Order::Total => Some(stamp.producer.into()),
            Order::Key => {
                Some(usize::from(stamp.producer) * KEYS as usize + (stamp.sequence % KEYS) as usize)
            }
            Order::None => None,
        }
    }

    /// How many such lines there are.
    pub(super) fn lines(&self) -> usize {
        match self.order {
            Order::Total => self.producers.into(),
            Order::Key => usize::from(self.producers) * KEYS as usize,
            Order::None => 0,
        }
    }
}

/// Which message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) run: u16,
    pub(super) producer: u16,
    pub(super) sequence: u32,
    pub(super) scheduled: u64,
}

#[cfg(test)]
pub(super) fn example(order: Order) -> Plan {
    Plan {
        run: 9,
        address: Address::parse("bench.a").expect("follows the grammar"),
        fresh: true,
        order,
        producers: 4,
        consumers: 2,
        rate: 1000.0,
        size: 100,
        duration: Duration::from_secs(1),
        deadline: None,
        policies: Vec::new(),
        samples: true,
        in_flight: 16,
        started: OnceLock::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn producers_take_turns_on_one_schedule() {
        let plan = example(Order::Total);
        let mut times: Vec<u64> = (0..3)
            .flat_map(|n| (0..4).map(move |p| (p, n)))
            .map(|(p, n)| plan.schedule(p, n).unwrap())
            .collect();
        times.sort_unstable();
        assert_eq!(times, (0..12).map(|n| n * 1_000_000).collect::<Vec<u64>>());
        assert_eq!(Plan { rate: 0.0, ..example(Order::Total) }.schedule(0, 5), None);
    }

    #[test]
    fn a_message_says_which_one_it_is() {
        let plan = example(Order::Total);
        let stamp = Stamp { run: 9, producer: 3, sequence: 70_000, scheduled: 1 << 40 };
        let body = plan.body(stamp);
        assert_eq!(body.len(), 100);
        assert_eq!(plan.stamp(&body), Some(stamp));
        assert_eq!(plan.stamp(&body[..99]), None);
        assert_eq!(plan.stamp(&plan.body(Stamp { run: 8, ..stamp })), None);
        assert_eq!(plan.stamp(b"hello"), None);
    }

    #[test]
    fn order_counts_per_producer_or_per_key_or_not_at_all() {
        let stamp = |producer, sequence| Stamp { run: 9, producer, sequence, scheduled: 0 };
        assert_eq!(example(Order::Total).line(&stamp(2, 65)), Some(2));
        assert_eq!(example(Order::Key).line(&stamp(2, 65)), Some(129));
        assert_eq!(example(Order::None).line(&stamp(2, 65)), None);
        assert_eq!(example(Order::Key).lines(), 256);
    }
}
