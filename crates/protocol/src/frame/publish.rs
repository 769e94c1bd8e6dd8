//! The frames of a producer: sessions, sealed messages, sequences given up; and the answer that fits any question.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::{put_millis, read_millis, read_outcome};
use crate::{
    admin::Order,
    codec::{DecodeError, Reader, put_name, put_text},
    error::Outcome,
    id::{Address, Offset, ProducerEpoch, ProducerId, Salt, Sequence, ShardId},
    limits::BATCH_MESSAGES_MAX,
    time::WallTime,
};

/// Which order does an address have?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolve {
    /// Which.
    pub address: Address,
    /// Make it if it is not there.
    pub create: bool,
    /// The order wanted; `None`: whatever it has, or `total` when made.
    pub order: Option<Order>,
    /// Time the client waits.
    pub deadline: Duration,
}

impl Resolve {
    pub(super) fn put(&self, out: &mut BytesMut) {
        put_name(out, self.address.as_str());
        out.put_u8(self.create.into());
        out.put_u8(self.order.map_or(u8::MAX, Order::to_u8));
        put_millis(out, self.deadline);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let address = reader.address()?;
        let create = reader.flag("create")?;
        let order = match reader.u8()? {
            u8::MAX => None,
            number => Some(Order::from_u8(number).ok_or(DecodeError::Invalid("order"))?),
        };
        Ok(Self { address, create, order, deadline: read_millis(reader)? })
    }
}

/// The order of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Fixed at its first use.
    pub order: Order,
    /// Data shards of the cluster.
    pub shard_count: u32,
}

impl Resolved {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u8(self.order.to_u8());
        out.put_u32(self.shard_count);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            order: Order::from_u8(reader.u8()?).ok_or(DecodeError::Invalid("order"))?,
            shard_count: reader.u32()?,
        })
    }
}

/// A producer begins in a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSession {
    /// Which shard.
    pub shard: ShardId,
    /// Who.
    pub producer: ProducerId,
    /// In which life.
    pub epoch: ProducerEpoch,
    /// Of the session.
    pub salt: Salt,
    /// When the session was made.
    pub created_at: WallTime,
    /// Time the client waits.
    pub deadline: Duration,
}

impl OpenSession {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        out.put_u128(self.producer.0);
        out.put_u64(self.epoch.0);
        out.put_slice(&self.salt.0);
        out.put_u64(self.created_at.0);
        put_millis(out, self.deadline);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            shard: ShardId(reader.u32()?),
            producer: ProducerId(reader.u128()?),
            epoch: ProducerEpoch(reader.u64()?),
            salt: Salt(reader.array()?),
            created_at: WallTime(reader.u64()?),
            deadline: read_millis(reader)?,
        })
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What became of it.
    pub outcome: Outcome,
    /// Why, for programs; 0 when it went well.
    pub code: u16,
    /// Why, for people.
    pub message: String,
}

impl Answer {
    /// It went well.
    pub fn ok() -> Self {
        Self { outcome: Outcome::Ok, code: 0, message: String::new() }
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u8(self.outcome.to_u8());
        out.put_u16(self.code);
        put_text(out, &self.message);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { outcome: read_outcome(reader)?, code: reader.u16()?, message: reader.text("message")? })
    }
}

/// Sealed messages of one producer for one shard, with sequences that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Which shard.
    pub shard: ShardId,
    /// Time the client waits.
    pub deadline: Duration,
    /// How many messages.
    pub count: u16,
    /// The messages, one after the other.
    pub messages: Bytes,
}

impl Publish {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        put_millis(out, self.deadline);
        out.put_u16(self.count);
        out.put_slice(&self.messages);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let shard = ShardId(reader.u32()?);
        let deadline = read_millis(reader)?;
        let count = reader.u16()?;
        if count == 0 {
            return Err(DecodeError::Invalid("count"));
        }
        if usize::from(count) > BATCH_MESSAGES_MAX {
            return Err(DecodeError::TooLarge("count"));
        }
        Ok(Self { shard, deadline, count, messages: reader.rest() })
    }
}

/// `count` messages of a publish with the same fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedRun {
    /// How many.
    pub count: u16,
    /// Their fate.
    pub outcome: Outcome,
    /// Why; 0 when it went well.
    pub code: u16,
    /// They were in the log before.
    pub duplicate: bool,
    /// Offset of the first; the others follow. Unknown for old duplicates.
    pub first_offset: Option<Offset>,
}

/// What became of a publish, in the order of its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Covers every message.
    pub runs: Vec<PublishedRun>,
}

impl Published {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.runs.len() as u16);
        for run in &self.runs {
            out.put_u16(run.count);
            out.put_u8(run.outcome.to_u8());
            out.put_u16(run.code);
            out.put_u8(run.duplicate.into());
            out.put_u64(run.first_offset.map_or(u64::MAX, |offset| offset.0));
        }
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = usize::from(reader.u16()?);
        let runs = reader.list(count, 14, "runs", |reader| {
            Ok(PublishedRun {
                count: reader.u16()?,
                outcome: read_outcome(reader)?,
                code: reader.u16()?,
                duplicate: reader.flag("duplicate")?,
                first_offset: Some(reader.u64()?).filter(|offset| *offset != u64::MAX).map(Offset),
            })
        })?;
        Ok(Self { runs })
    }
}

/// Sequences that will never be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// Which shard.
    pub shard: ShardId,
    /// Whose.
    pub producer: ProducerId,
    /// In which life.
    pub epoch: ProducerEpoch,
    /// From here.
    pub first: Sequence,
    /// To here, inclusive.
    pub last: Sequence,
    /// Time the client waits.
    pub deadline: Duration,
}

impl Skip {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        out.put_u128(self.producer.0);
        out.put_u64(self.epoch.0);
        out.put_u64(self.first.0);
        out.put_u64(self.last.0);
        put_millis(out, self.deadline);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let skip = Self {
            shard: ShardId(reader.u32()?),
            producer: ProducerId(reader.u128()?),
            epoch: ProducerEpoch(reader.u64()?),
            first: Sequence(reader.u64()?),
            last: Sequence(reader.u64()?),
            deadline: read_millis(reader)?,
        };
        if skip.first.0 == 0 || skip.first > skip.last {
            return Err(DecodeError::Invalid("sequences"));
        }
        Ok(skip)
    }
}

/// A producer ends in a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseSession {
    /// Which shard.
    pub shard: ShardId,
    /// Who.
    pub producer: ProducerId,
    /// In which life.
    pub epoch: ProducerEpoch,
}

impl CloseSession {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        out.put_u128(self.producer.0);
        out.put_u64(self.epoch.0);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            shard: ShardId(reader.u32()?),
            producer: ProducerId(reader.u128()?),
            epoch: ProducerEpoch(reader.u64()?),
        })
    }
}
