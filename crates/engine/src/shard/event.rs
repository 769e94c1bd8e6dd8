//! What a shard remembers, one event at a time, and the bytes of an entry that carries them.
//!
//! ```text
//! entry  0        1          9         11
//!        | ver u8 | time u64 | count u16 | event ...            (big-endian)
//! event  | kind u8 | body |
//! ```
//! Kinds are never reused. Messages inside an entry lie there exactly as their producer sealed them, so that the log is
//! the message store too.

use std::time::Duration;

use bytes::Bytes;
use swarmmq_protocol::{
    id::{Address, Attempt, GroupName, Offset, ProducerEpoch, ProducerId, ProducerName, Salt, Sequence},
    limits::{ATTEMPTS_MAX, LEASE},
    policy::Setting,
    time::WallTime,
};

use super::{
    access::AccessEvent,
    catalog::{put_catalog, read_catalog},
    codec::{Malformed, Reader, put_text},
    member::NodeEvent,
};

/// Version of the entry layout.
const ENTRY_VERSION: u8 = 1;
/// Bytes before the first event.
pub(super) const ENTRY_HEADER_BYTES: usize = 11;

pub use swarmmq_protocol::admin::Order;

/// What operators may change about an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Messages stay at least this long, settled or not.
    pub min_age: Duration,
    /// Failed attempts before a message is dead-lettered.
    pub attempts_max: u32,
    /// Lease of a delivery.
    pub lease: Duration,
    /// Sealed bytes waiting in one shard beyond which publishes are refused.
    pub backlog_bytes_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_age: Duration::ZERO,
            attempts_max: ATTEMPTS_MAX,
            lease: LEASE,
            backlog_bytes_max: 16 << 30,
        }
    }
}

impl Settings {
    /// Dead-letter queues keep their messages until somebody settles them.
    pub(super) fn for_dead_letters(&self) -> Self {
        Self { min_age: Duration::ZERO, ..self.clone() }
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        self.put(&mut out);
        out
    }

    /// From its bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let settings = Self::read(&mut reader)?;
        reader.end()?;
        Ok(settings)
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.min_age.as_millis() as u64).to_be_bytes());
        out.extend_from_slice(&self.attempts_max.to_be_bytes());
        out.extend_from_slice(&(self.lease.as_millis() as u32).to_be_bytes());
        out.extend_from_slice(&self.backlog_bytes_max.to_be_bytes());
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            min_age: Duration::from_millis(reader.u64()?),
            attempts_max: reader.u32()?,
            lease: Duration::from_millis(u64::from(reader.u32()?)),
            backlog_bytes_max: reader.u64()?,
        })
    }
}

/// Where a group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest message there is.
    Oldest,
    /// After the newest.
    End,
    /// At the first message published at this time or later.
    Time(WallTime),
}

impl Start {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        let (kind, time) = match self {
            Self::Oldest => (0, 0),
            Self::End => (1, 0),
            Self::Time(time) => (2, time.0),
        };
        out.push(kind);
        out.extend_from_slice(&u64::to_be_bytes(time));
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let kind = reader.u8()?;
        let time = reader.u64()?;
        match kind {
            0 => Ok(Self::Oldest),
            1 => Ok(Self::End),
            2 => Ok(Self::Time(WallTime(time))),
            _ => Err(Malformed),
        }
    }
}

/// Why a leased message is wanted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Given back unprocessed, or perhaps never received. Does not count as a failure.
    Released,
    /// Its lease ran out.
    Expired,
    /// The consumer refused it; `None`: the default back-off.
    Refused {
        /// Not to be delivered again before.
        delay: Option<Duration>,
    },
}

/// One message wanted again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Which.
    pub offset: Offset,
    /// Which delivery of it ended. If it is not the current one, nothing changes: a return counts once.
    pub attempt: Attempt,
    /// Why.
    pub cause: Cause,
    /// The consumer's words, kept if this was the last attempt.
    pub reason: String,
}

/// An event of the cluster's own shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogEvent {
    /// Something about the nodes of the cluster.
    Node(NodeEvent),
    /// A named producer begins its next life.
    ProducerTaken {
        /// Which.
        name: ProducerName,
    },
    /// An address exists, in this order for ever.
    AddressMade {
        /// Which.
        address: Address,
        /// Fixed now.
        order: Order,
        /// At the beginning.
        settings: Settings,
    },
    /// An address has other settings.
    AddressChanged {
        /// Which.
        address: Address,
        /// All of them.
        settings: Settings,
    },
    /// An address is gone.
    AddressRemoved {
        /// Which.
        address: Address,
    },
    /// A group is defined; the shards of the address make it next.
    GroupDefined {
        /// Of which address.
        address: Address,
        /// Its name.
        group: GroupName,
        /// Where it begins; `None`: oldest for the first group, end for later ones.
        start: Option<Start>,
    },
    /// A group is gone.
    GroupDropped {
        /// Of which address.
        address: Address,
        /// Its name.
        group: GroupName,
    },
    /// A setting of the cluster has another value.
    Set(Setting),
    /// Who may do what, or join, is other than before.
    Access(AccessEvent),
}

/// Something a shard remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A producer begins.
    Opened {
        /// Who.
        producer: ProducerId,
        /// In which life.
        epoch: ProducerEpoch,
        /// Of its session.
        salt: Salt,
        /// When the session was made, by the producer's clock.
        created_at: WallTime,
    },
    /// A producer ends.
    Closed {
        /// Who.
        producer: ProducerId,
        /// In which life.
        epoch: ProducerEpoch,
    },
    /// Sequences that will never carry a message.
    Skipped {
        /// Whose.
        producer: ProducerId,
        /// In which life.
        epoch: ProducerEpoch,
        /// From here.
        first: Sequence,
        /// To here, inclusive.
        last: Sequence,
    },
    /// A batch of sealed messages, one after the other.
    Published {
        /// The bytes, a slice of the entry.
        messages: Bytes,
        /// Where they begin in the entry.
        at: u32,
    },
    /// The address has a queue in this shard.
    QueueMade {
        /// Its name.
        address: Address,
        /// As the cluster's shard has it.
        order: Order,
        /// As the cluster's shard has them.
        settings: Settings,
    },
    /// Other settings.
    QueueChanged {
        /// Which queue.
        address: Address,
        /// All of them.
        settings: Settings,
    },
    /// The queue is gone, with its messages.
    QueueRemoved {
        /// Which queue.
        address: Address,
    },
    /// The queue's messages are gone.
    QueuePurged {
        /// Which queue.
        address: Address,
    },
    /// A group consumes the queue.
    GroupMade {
        /// Which queue.
        address: Address,
        /// Which group.
        group: GroupName,
        /// Where it begins.
        start: Start,
    },
    /// A group consumes it no more.
    GroupRemoved {
        /// Which queue.
        address: Address,
        /// Which group.
        group: GroupName,
    },
    /// A group goes elsewhere.
    GroupSought {
        /// Which queue.
        address: Address,
        /// Which group.
        group: GroupName,
        /// Where to.
        start: Start,
    },
    /// First deliveries to the group may have happened below this offset.
    Horizon {
        /// Which queue.
        address: Address,
        /// Which group.
        group: GroupName,
        /// Exclusive.
        upto: Offset,
    },
    /// The group is done with these.
    Settled {
        /// Which queue.
        address: Address,
        /// Which group.
        group: GroupName,
        /// First offset and count of each range.
        ranges: Vec<(Offset, u32)>,
    },
    /// The group wants these again.
    Returned {
        /// Which queue.
        address: Address,
        /// Which group.
        group: GroupName,
        /// Which messages and why.
        items: Vec<Returned>,
    },
    /// The group gives this one up.
    Buried {
        /// Which queue.
        address: Address,
        /// Which group.
        group: GroupName,
        /// Which message.
        offset: Offset,
        /// The consumer's words.
        reason: String,
    },
    /// Time passed; something may be old enough to go.
    Ticked,
    /// Of the cluster's own shard.
    Catalog(CatalogEvent),
}

impl Event {
    /// Writes the event behind an entry's header or its earlier events.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Opened { producer, epoch, salt, created_at } => {
                out.push(1);
                put_producer(out, *producer, *epoch);
                out.extend_from_slice(&salt.0);
                out.extend_from_slice(&created_at.0.to_be_bytes());
            }
            Self::Closed { producer, epoch } => {
                out.push(2);
                put_producer(out, *producer, *epoch);
            }
            Self::Skipped { producer, epoch, first, last } => {
                out.push(3);
                put_producer(out, *producer, *epoch);
                out.extend_from_slice(&first.0.to_be_bytes());
                out.extend_from_slice(&last.0.to_be_bytes());
            }
            Self::Published { messages, .. } => {
                out.push(4);
                out.extend_from_slice(&(messages.len() as u32).to_be_bytes());
                out.extend_from_slice(messages);
            }
            Self::QueueMade { address, order, settings } => {
                out.push(5);
                put_text(out, address.as_str());
                out.push(order.to_u8());
                settings.put(out);
            }
            Self::QueueChanged { address, settings } => {
                out.push(6);
                put_text(out, address.as_str());
                settings.put(out);
            }
            Self::QueueRemoved { address } => {
                out.push(7);
                put_text(out, address.as_str());
            }
            Self::QueuePurged { address } => {
                out.push(8);
                put_text(out, address.as_str());
            }
            Self::GroupMade { address, group, start } => {
                out.push(9);
                put_group(out, address, group);
                start.put(out);
            }
            Self::GroupRemoved { address, group } => {
                out.push(10);
                put_group(out, address, group);
            }
            Self::GroupSought { address, group, start } => {
                out.push(11);
                put_group(out, address, group);
                start.put(out);
            }
            Self::Horizon { address, group, upto } => {
                out.push(12);
                put_group(out, address, group);
                out.extend_from_slice(&upto.0.to_be_bytes());
            }
            Self::Settled { address, group, ranges } => {
                out.push(13);
                put_group(out, address, group);
                out.extend_from_slice(&(ranges.len() as u16).to_be_bytes());
                for (first, count) in ranges {
                    out.extend_from_slice(&first.0.to_be_bytes());
                    out.extend_from_slice(&count.to_be_bytes());
                }
            }
            Self::Returned { address, group, items } => {
                out.push(14);
                put_group(out, address, group);
                out.extend_from_slice(&(items.len() as u16).to_be_bytes());
                for item in items {
                    put_returned(out, item);
                }
            }
            Self::Buried { address, group, offset, reason } => {
                out.push(15);
                put_group(out, address, group);
                out.extend_from_slice(&offset.0.to_be_bytes());
                put_text(out, reason);
            }
            Self::Ticked => out.push(16),
            Self::Catalog(event) => put_catalog(out, event),
        }
    }

    /// Its bytes, outside of any entry.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// From its bytes.
    pub fn from_bytes(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let event = Self::read(&mut reader, bytes)?;
        reader.end()?;
        Ok(event)
    }

    fn read(reader: &mut Reader<'_>, entry: &Bytes) -> Result<Self, Malformed> {
        Ok(match reader.u8()? {
            1 => {
                let (producer, epoch) = read_producer(reader)?;
                Self::Opened {
                    producer,
                    epoch,
                    salt: Salt(reader.array()?),
                    created_at: WallTime(reader.u64()?),
                }
            }
            2 => {
                let (producer, epoch) = read_producer(reader)?;
                Self::Closed { producer, epoch }
            }
            3 => {
                let (producer, epoch) = read_producer(reader)?;
                let (first, last) = (Sequence(reader.u64()?), Sequence(reader.u64()?));
                Self::Skipped { producer, epoch, first, last }
            }
            4 => {
                let length = reader.u32()? as usize;
                let at = reader.position();
                reader.take(length)?;
                Self::Published { messages: entry.slice(at..at + length), at: at as u32 }
            }
            5 => Self::QueueMade {
                address: read_address(reader)?,
                order: Order::from_u8(reader.u8()?).ok_or(Malformed)?,
                settings: Settings::read(reader)?,
            },
            6 => Self::QueueChanged { address: read_address(reader)?, settings: Settings::read(reader)? },
            7 => Self::QueueRemoved { address: read_address(reader)? },
            8 => Self::QueuePurged { address: read_address(reader)? },
            9 => {
                let (address, group) = read_group(reader)?;
                Self::GroupMade { address, group, start: Start::read(reader)? }
            }
            10 => {
                let (address, group) = read_group(reader)?;
                Self::GroupRemoved { address, group }
            }
            11 => {
                let (address, group) = read_group(reader)?;
                Self::GroupSought { address, group, start: Start::read(reader)? }
            }
            12 => {
                let (address, group) = read_group(reader)?;
                Self::Horizon { address, group, upto: Offset(reader.u64()?) }
            }
            13 => {
                let (address, group) = read_group(reader)?;
                let count = reader.u16()?;
                let ranges = (0..count)
                    .map(|_| Ok((Offset(reader.u64()?), reader.u32()?)))
                    .collect::<Result<_, Malformed>>()?;
                Self::Settled { address, group, ranges }
            }
            14 => {
                let (address, group) = read_group(reader)?;
                let count = reader.u16()?;
                let items = (0..count).map(|_| read_returned(reader)).collect::<Result<_, Malformed>>()?;
                Self::Returned { address, group, items }
            }
            15 => {
                let (address, group) = read_group(reader)?;
                Self::Buried {
                    address,
                    group,
                    offset: Offset(reader.u64()?),
                    reason: reader.text()?.to_owned(),
                }
            }
            16 => Self::Ticked,
            kind => Self::Catalog(read_catalog(kind, reader)?),
        })
    }
}

/// An entry's events and its stamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// By the leader's clock; never below the stamp of an earlier entry.
    pub time: WallTime,
    /// In the order in which they take effect.
    pub events: Vec<Event>,
}

impl Entry {
    /// Reads an entry back. Every entry a shard proposed can be read; an error means that the log holds something else.
    pub fn read(data: &Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(data);
        if reader.u8()? != ENTRY_VERSION {
            return Err(Malformed);
        }
        let time = WallTime(reader.u64()?);
        let count = reader.u16()?;
        let events = (0..count).map(|_| Event::read(&mut reader, data)).collect::<Result<_, Malformed>>()?;
        reader.end()?;
        Ok(Self { time, events })
    }
}

/// Collects events into the bytes of one entry.
#[derive(Debug, Default)]
pub struct EntryWriter {
    bytes: Vec<u8>,
    count: u16,
    /// Bytes to begin with: growing costs a copy of what is there.
    room: usize,
}

impl EntryWriter {
    /// Adds an event. Where the entry would be longer than `bytes_max` the event begins another one, and what was there
    /// before is returned.
    pub fn push(&mut self, event: &Event, bytes_max: usize) -> Option<Self> {
        let (before, count) = (self.bytes.len(), self.count);
        if before == 0 {
            self.bytes.reserve(self.room);
        }
        self.bytes.resize(before.max(ENTRY_HEADER_BYTES), 0);
        event.put(&mut self.bytes);
        self.count += 1;
        if count == 0 || self.bytes.len() <= bytes_max {
            return None;
        }
        let mut next = Self { bytes: vec![0; ENTRY_HEADER_BYTES], count: 1, room: 0 };
        next.bytes.extend(self.bytes.drain(before..));
        self.count = count;
        Some(std::mem::replace(self, next))
    }

    /// An empty entry that is likely to be as long as this one, give or take.
    pub fn next(&self) -> Self {
        Self { bytes: Vec::new(), count: 0, room: self.bytes.len() + self.bytes.len() / 4 }
    }

    /// Events so far.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The entry, stamped.
    pub fn finish(self, time: WallTime) -> Vec<u8> {
        let mut bytes = self.bytes;
        bytes[0] = ENTRY_VERSION;
        bytes[1..9].copy_from_slice(&time.0.to_be_bytes());
        bytes[9..11].copy_from_slice(&self.count.to_be_bytes());
        // It is kept for a while, and counted by its length.
        if bytes.capacity() > 2 * bytes.len() {
            bytes.shrink_to_fit();
        }
        bytes
    }
}

fn put_producer(out: &mut Vec<u8>, producer: ProducerId, epoch: ProducerEpoch) {
    out.extend_from_slice(&producer.0.to_be_bytes());
    out.extend_from_slice(&epoch.0.to_be_bytes());
}

fn read_producer(reader: &mut Reader<'_>) -> Result<(ProducerId, ProducerEpoch), Malformed> {
    Ok((ProducerId(reader.u128()?), ProducerEpoch(reader.u64()?)))
}

pub(super) fn put_group(out: &mut Vec<u8>, address: &Address, group: &GroupName) {
    put_text(out, address.as_str());
    put_text(out, group.as_str());
}

pub(super) fn read_address(reader: &mut Reader<'_>) -> Result<Address, Malformed> {
    Address::parse(reader.text()?).map_err(|_| Malformed)
}

pub(super) fn read_group(reader: &mut Reader<'_>) -> Result<(Address, GroupName), Malformed> {
    Ok((read_address(reader)?, GroupName::parse(reader.text()?).map_err(|_| Malformed)?))
}

fn put_returned(out: &mut Vec<u8>, item: &Returned) {
    out.extend_from_slice(&item.offset.0.to_be_bytes());
    out.extend_from_slice(&item.attempt.0.to_be_bytes());
    let (kind, delay) = match item.cause {
        Cause::Released => (0, 0),
        Cause::Expired => (1, 0),
        Cause::Refused { delay: None } => (2, 0),
        Cause::Refused { delay: Some(delay) } => (3, delay.as_millis() as u32),
    };
    out.push(kind);
    out.extend_from_slice(&u32::to_be_bytes(delay));
    put_text(out, &item.reason);
}

fn read_returned(reader: &mut Reader<'_>) -> Result<Returned, Malformed> {
    let offset = Offset(reader.u64()?);
    let attempt = Attempt(reader.u32()?);
    let kind = reader.u8()?;
    let delay = Duration::from_millis(u64::from(reader.u32()?));
    let cause = match kind {
        0 => Cause::Released,
        1 => Cause::Expired,
        2 => Cause::Refused { delay: None },
        3 => Cause::Refused { delay: Some(delay) },
        _ => return Err(Malformed),
    };
    Ok(Returned { offset, attempt, cause, reason: reader.text()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_event() -> Vec<Event> {
        let of_access = super::super::access::tests::every_event().into_iter();
        let of_access = of_access.map(|event| Event::Catalog(CatalogEvent::Access(event)));
        other_events().into_iter().chain(of_access).collect()
    }

    fn other_events() -> Vec<Event> {
        let address = Address::parse("shop.orders").unwrap();
        let group = GroupName::parse("billing").unwrap();
        let settings = Settings::default();
        let (producer, epoch) = (ProducerId(7), ProducerEpoch(2));
        let (a, g) = (|| address.clone(), || group.clone());
        let returned =
            |cause| Returned { offset: Offset(5), attempt: Attempt(3), cause, reason: "no".into() };
        vec![
            Event::Opened { producer, epoch, salt: Salt([3; 32]), created_at: WallTime(9) },
            Event::Closed { producer, epoch },
            Event::Skipped { producer, epoch, first: Sequence(1), last: Sequence(4) },
            Event::QueueMade { address: a(), order: Order::Key, settings: settings.clone() },
            Event::QueueChanged { address: a(), settings: settings.clone() },
            Event::QueueRemoved { address: a() },
            Event::QueuePurged { address: a() },
            Event::GroupMade { address: a(), group: g(), start: Start::Time(WallTime(77)) },
            Event::GroupRemoved { address: a(), group: g() },
            Event::GroupSought { address: a(), group: g(), start: Start::End },
            Event::Horizon { address: a(), group: g(), upto: Offset(1024) },
            Event::Settled { address: a(), group: g(), ranges: vec![(Offset(1), 2), (Offset(9), 1)] },
            Event::Returned {
                address: a(),
                group: g(),
                items: vec![
                    returned(Cause::Released),
                    returned(Cause::Expired),
                    returned(Cause::Refused { delay: None }),
                    returned(Cause::Refused { delay: Some(Duration::from_secs(5)) }),
                ],
            },
            Event::Buried { address: a(), group: g(), offset: Offset(8), reason: "poison".into() },
            Event::Ticked,
            Event::Catalog(CatalogEvent::AddressMade {
                address: a(),
                order: Order::None,
                settings: settings.clone(),
            }),
            Event::Catalog(CatalogEvent::AddressChanged { address: a(), settings }),
            Event::Catalog(CatalogEvent::AddressRemoved { address: a() }),
            Event::Catalog(CatalogEvent::ProducerTaken { name: ProducerName::parse("till-7").unwrap() }),
            Event::Catalog(CatalogEvent::GroupDefined { address: a(), group: g(), start: None }),
            Event::Catalog(CatalogEvent::GroupDropped { address: a(), group: g() }),
            Event::Catalog(CatalogEvent::Set(Setting::Policy(swarmmq_protocol::policy::Policy::StaticHash))),
            Event::Catalog(CatalogEvent::Set(Setting::Cohort(None))),
            Event::Catalog(CatalogEvent::Set(Setting::OpenJoin(true))),
        ]
    }

    #[test]
    fn every_event_reads_back_as_it_was_written() {
        let mut writer = EntryWriter::default();
        let events = every_event();
        assert!(events.iter().all(|event| writer.push(event, usize::MAX).is_none()));
        let data = Bytes::from(writer.finish(WallTime(123)));
        assert_eq!(Entry::read(&data), Ok(Entry { time: WallTime(123), events }));
    }

    #[test]
    fn messages_are_found_at_their_place_in_the_entry() {
        let mut writer = EntryWriter::default();
        writer.push(&Event::Ticked, 100);
        writer.push(&Event::Published { messages: Bytes::from_static(b"sealed"), at: 0 }, 100);
        let data = Bytes::from(writer.finish(WallTime(1)));
        let entry = Entry::read(&data).unwrap();
        let Event::Published { messages, at } = &entry.events[1] else { panic!("a publish was written") };
        assert_eq!(messages, "sealed");
        assert_eq!(&data[*at as usize..*at as usize + 6], b"sealed");
    }

    #[test]
    fn an_entry_cut_anywhere_is_malformed() {
        let mut writer = EntryWriter::default();
        assert!(every_event().iter().all(|event| writer.push(event, usize::MAX).is_none()));
        let data = Bytes::from(writer.finish(WallTime(123)));
        for length in 0..data.len() {
            assert_eq!(Entry::read(&data.slice(..length)), Err(Malformed), "{length} bytes");
        }
    }
}
