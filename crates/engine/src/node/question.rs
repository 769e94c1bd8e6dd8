//! What a shard's leader can be asked, and its bytes: part of a letter, or handed over within one node.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use swarmmq_protocol::{
    admin::Order,
    codec::{DecodeError, Reader},
    frame::{Body, Peek, SettleAction, SettleItem},
    id::{Address, Attempt, ConsumerId, GroupName, Offset, ShardId, Term},
    time::WallTime,
};

use super::letter::{address, bytes, held, list, put_bytes, put_held, put_text, text};
use crate::shard::event::{Event, Settings, Start};

/// Something that a shard's leader is asked. Whoever asks may be a connection's node or the leader's own.
#[derive(Clone, Debug)]
pub(super) enum Question {
    /// Take these messages; their admission MACs were checked where they came in.
    Publish {
        /// How many.
        count: u16,
        /// Sealed, one after the other.
        messages: Bytes,
    },
    /// Propose this event.
    Propose(Event),
    /// Make sure that the queue and the group exist.
    Prepare { address: Address, order: Order, settings: Settings, group: GroupName, start: Start },
    /// Let a consumer take part.
    Join {
        /// As the asking node numbers it.
        subscriber: u64,
        consumer: ConsumerId,
        /// Rises with every subscription of this consumer, over all its connections.
        order: u64,
        address: Address,
        group: GroupName,
        credit_messages: u32,
        credit_bytes: u64,
        held: Vec<(Offset, Attempt)>,
    },
    /// A consumer takes part no more. Not answered.
    Leave { subscriber: u64 },
    /// A consumer can take more. Not answered.
    Credit { subscriber: u64, messages: u32, bytes: u64 },
    /// Settle these messages.
    Settle { subscriber: u64, items: Vec<SettleItem> },
    /// Show messages.
    Peek(Peek),
    /// Tell up to where the log is applied.
    Mark,
    /// Tell what there is of an address.
    Look {
        address: Address,
        /// For a group that would begin here, how much it would have before it.
        start: Option<Start>,
    },
}

impl Question {
    pub(super) fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Publish { count, messages } => {
                out.put_u8(1);
                out.put_u16(*count);
                put_bytes(out, messages);
            }
            Self::Propose(event) => {
                out.put_u8(2);
                put_bytes(out, &event.to_bytes());
            }
            Self::Prepare { address, order, settings, group, start } => {
                out.put_u8(3);
                put_text(out, address.as_str());
                out.put_u8(order.to_u8());
                put_bytes(out, &settings.to_bytes());
                put_text(out, group.as_str());
                put_start(out, Some(*start));
            }
            Self::Join {
                subscriber,
                consumer,
                order,
                address,
                group,
                credit_messages,
                credit_bytes,
                held,
            } => {
                out.put_u8(4);
                out.put_u64(*subscriber);
                out.put_u128(consumer.0);
                out.put_u64(*order);
                put_text(out, address.as_str());
                put_text(out, group.as_str());
                out.put_u32(*credit_messages);
                out.put_u64(*credit_bytes);
                put_held(out, held);
            }
            Self::Leave { subscriber } => {
                out.put_u8(5);
                out.put_u64(*subscriber);
            }
            Self::Credit { subscriber, messages, bytes } => {
                out.put_u8(6);
                out.put_u64(*subscriber);
                out.put_u32(*messages);
                out.put_u64(*bytes);
            }
            Self::Settle { subscriber, items } => {
                out.put_u8(7);
                out.put_u64(*subscriber);
                out.put_u32(items.len() as u32);
                items.iter().for_each(|item| put_settle(out, item));
            }
            Self::Peek(peek) => {
                out.put_u8(8);
                let mut body = BytesMut::new();
                peek.put(&mut body);
                put_bytes(out, &body);
            }
            Self::Mark => out.put_u8(10),
            Self::Look { address, start } => {
                out.put_u8(9);
                put_text(out, address.as_str());
                put_start(out, *start);
            }
        }
    }

    pub(super) fn read(r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            1 => Self::Publish { count: r.u16()?, messages: bytes(r)? },
            2 => Self::Propose(Event::from_bytes(&bytes(r)?).map_err(|_| DecodeError::Invalid("event"))?),
            3 => Self::Prepare {
                address: address(r)?,
                order: Order::from_u8(r.u8()?).ok_or(DecodeError::Invalid("order"))?,
                settings: Settings::from_bytes(&bytes(r)?).map_err(|_| DecodeError::Invalid("settings"))?,
                group: group(r)?,
                start: start(r)?.ok_or(DecodeError::Invalid("start"))?,
            },
            4 => Self::Join {
                subscriber: r.u64()?,
                consumer: ConsumerId(r.u128()?),
                order: r.u64()?,
                address: address(r)?,
                group: group(r)?,
                credit_messages: r.u32()?,
                credit_bytes: r.u64()?,
                held: held(r)?,
            },
            5 => Self::Leave { subscriber: r.u64()? },
            6 => Self::Credit { subscriber: r.u64()?, messages: r.u32()?, bytes: r.u64()? },
            7 => Self::Settle { subscriber: r.u64()?, items: list(r, 27, settle)? },
            8 => {
                let mut body = Reader::new(bytes(r)?);
                let peek = Peek::read(&mut body)?;
                body.end()?;
                Self::Peek(peek)
            }
            10 => Self::Mark,
            9 => Self::Look { address: address(r)?, start: start(r)? },
            _ => return Err(DecodeError::Invalid("question")),
        })
    }
}

fn put_start(out: &mut BytesMut, start: Option<Start>) {
    let (kind, time) = match start {
        None => (255, 0),
        Some(Start::Oldest) => (0, 0),
        Some(Start::End) => (1, 0),
        Some(Start::Time(time)) => (2, time.0),
    };
    out.put_u8(kind);
    out.put_u64(time);
}

fn start(r: &mut Reader) -> Result<Option<Start>, DecodeError> {
    let (kind, time) = (r.u8()?, r.u64()?);
    match kind {
        255 => Ok(None),
        0 => Ok(Some(Start::Oldest)),
        1 => Ok(Some(Start::End)),
        2 => Ok(Some(Start::Time(WallTime(time)))),
        _ => Err(DecodeError::Invalid("start")),
    }
}

fn group(r: &mut Reader) -> Result<GroupName, DecodeError> {
    GroupName::parse(&text(r)?).map_err(|_| DecodeError::Invalid("group"))
}

fn put_settle(out: &mut BytesMut, item: &SettleItem) {
    out.put_u32(item.shard.0);
    out.put_u64(item.offset.0);
    out.put_u64(item.term.0);
    out.put_u32(item.attempt.0);
    let (kind, time) = match item.action {
        SettleAction::Ack => (0, None),
        SettleAction::Nack { delay } => (1, delay),
        SettleAction::Extend { duration } => (2, Some(duration)),
        SettleAction::DeadLetter => (3, None),
        SettleAction::Release => (4, None),
    };
    out.put_u8(kind);
    out.put_u64(time.map_or(u64::MAX, |time| time.as_millis() as u64));
    put_text(out, &item.reason);
}

fn settle(r: &mut Reader) -> Result<SettleItem, DecodeError> {
    let (shard, offset, term) = (ShardId(r.u32()?), Offset(r.u64()?), Term(r.u64()?));
    let attempt = Attempt(r.u32()?);
    let (kind, time) = (r.u8()?, r.u64()?);
    let time = (time != u64::MAX).then(|| Duration::from_millis(time));
    let action = match kind {
        0 => SettleAction::Ack,
        1 => SettleAction::Nack { delay: time },
        2 => SettleAction::Extend { duration: time.ok_or(DecodeError::Invalid("duration"))? },
        3 => SettleAction::DeadLetter,
        4 => SettleAction::Release,
        _ => return Err(DecodeError::Invalid("action")),
    };
    Ok(SettleItem { shard, offset, term, attempt, action, reason: text(r)? })
}

/// One of each, for whoever tests the letters that they travel in.
#[cfg(test)]
pub(super) fn examples() -> Vec<Question> {
    let (a, g) = (Address::parse("a.b").unwrap(), GroupName::parse("g").unwrap());
    let item = |action| SettleItem {
        shard: ShardId(3),
        offset: Offset(4),
        term: Term(5),
        attempt: Attempt(6),
        action,
        reason: "why".to_owned(),
    };
    let second = Duration::from_secs(1);
    vec![
        Question::Publish { count: 2, messages: Bytes::from_static(b"sealed") },
        Question::Propose(Event::Ticked),
        Question::Prepare {
            address: a.clone(),
            order: Order::Key,
            settings: Settings::default(),
            group: g.clone(),
            start: Start::Time(WallTime(7)),
        },
        Question::Join {
            subscriber: 1,
            consumer: ConsumerId(2),
            address: a.clone(),
            group: g,
            credit_messages: 3,
            credit_bytes: 4,
            order: 7,
            held: vec![(Offset(5), Attempt(6))],
        },
        Question::Leave { subscriber: 1 },
        Question::Credit { subscriber: 1, messages: 2, bytes: 3 },
        Question::Settle {
            subscriber: 1,
            items: vec![
                item(SettleAction::Ack),
                item(SettleAction::Nack { delay: None }),
                item(SettleAction::Nack { delay: Some(second) }),
                item(SettleAction::Extend { duration: second }),
                item(SettleAction::DeadLetter),
                item(SettleAction::Release),
            ],
        },
        Question::Mark,
        Question::Look { address: a, start: None },
    ]
}
