//! The frames of a consumer: subscriptions, credit, deliveries, settlements, looks.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    FRAME_HEADER_BYTES, FrameKind, begin, finish, millis, put_millis, read_millis, read_outcome, read_sealed,
};
use crate::{
    admin::PutStart,
    codec::{DecodeError, Reader, cut_at, put_name, put_text},
    envelope,
    error::Outcome,
    id::{Address, Attempt, ConsumerId, GroupName, Offset, ShardId, Term},
    limits::{BATCH_MESSAGES_MAX, REASON_BYTES_MAX},
    time::WallTime,
};

/// Where a group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the oldest message there is.
    Oldest,
    /// After the newest.
    End,
    /// At the first message published at this time or later.
    Time(WallTime),
}

/// A message that a consumer says it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Of which shard.
    pub shard: ShardId,
    /// Which.
    pub offset: Offset,
    /// Which delivery of it.
    pub attempt: Attempt,
}

impl Held {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        out.put_u64(self.offset.0);
        out.put_u32(self.attempt.0);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            shard: ShardId(reader.u32()?),
            offset: Offset(reader.u64()?),
            attempt: Attempt(reader.u32()?),
        })
    }
}

/// A consumer joins a group, saying what it holds of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// The connection's number for this subscription.
    pub subscription: u32,
    /// Who; the same over all of its reconnects.
    pub consumer: ConsumerId,
    /// Of which address.
    pub address: Address,
    /// Which group; made if it is not there.
    pub group: GroupName,
    /// Where a new group begins; `None`: the cluster decides.
    pub start: Option<StartAt>,
    /// Messages it can take.
    pub credit_messages: u32,
    /// Sealed bytes it can take.
    pub credit_bytes: u64,
    /// Time the client waits.
    pub deadline: Duration,
    /// What it holds.
    pub held: Vec<Held>,
}

impl Subscribe {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
        out.put_u128(self.consumer.0);
        put_name(out, self.address.as_str());
        put_name(out, self.group.as_str());
        self.start.put(out);
        out.put_u32(self.credit_messages);
        out.put_u64(self.credit_bytes);
        put_millis(out, self.deadline);
        out.put_u32(self.held.len() as u32);
        self.held.iter().for_each(|held| held.put(out));
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let subscription = reader.u32()?;
        let consumer = ConsumerId(reader.u128()?);
        let address = reader.address()?;
        let group = reader.group()?;
        let start = Option::<StartAt>::read(reader)?;
        let credit_messages = reader.u32()?;
        let credit_bytes = reader.u64()?;
        let deadline = read_millis(reader)?;
        let count = reader.u32()? as usize;
        let held = reader.list(count, 16, "held", Held::read)?;
        Ok(Self {
            subscription,
            consumer,
            address,
            group,
            start,
            credit_messages,
            credit_bytes,
            deadline,
            held,
        })
    }
}

/// The consumer has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// Shards of the address and their reigns: what it holds there carries this term from now on.
    pub shards: Vec<(ShardId, Term)>,
    /// What it held and holds no more.
    pub lost: Vec<(ShardId, Offset)>,
}

impl Subscribed {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.shards.len() as u16);
        for (shard, term) in &self.shards {
            out.put_u32(shard.0);
            out.put_u64(term.0);
        }
        out.put_u32(self.lost.len() as u32);
        for (shard, offset) in &self.lost {
            out.put_u32(shard.0);
            out.put_u64(offset.0);
        }
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = usize::from(reader.u16()?);
        let shards =
            reader.list(count, 12, "shards", |reader| Ok((ShardId(reader.u32()?), Term(reader.u64()?))))?;
        let count = reader.u32()? as usize;
        let lost =
            reader.list(count, 12, "lost", |reader| Ok((ShardId(reader.u32()?), Offset(reader.u64()?))))?;
        Ok(Self { shards, lost })
    }
}

/// The consumer leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Which subscription.
    pub subscription: u32,
}

impl Unsubscribe {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { subscription: reader.u32()? })
    }
}

/// The consumer can take more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Which subscription.
    pub subscription: u32,
    /// So many messages more.
    pub messages: u32,
    /// So many sealed bytes more.
    pub bytes: u64,
}

impl Credit {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
        out.put_u32(self.messages);
        out.put_u64(self.bytes);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { subscription: reader.u32()?, messages: reader.u32()?, bytes: reader.u64()? })
    }
}

/// One message for a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliverItem {
    /// Of which shard.
    pub shard: ShardId,
    /// Which.
    pub offset: Offset,
    /// Of which reign the lease is.
    pub term: Term,
    /// Which delivery of it.
    pub attempt: Attempt,
    /// Length of the lease.
    pub lease: Duration,
    /// Why it is a dead letter; empty if it is none.
    pub reason: String,
    /// As its producer sealed it.
    pub sealed: Bytes,
}

/// Messages for a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deliver {
    /// Which subscription.
    pub subscription: u32,
    /// The messages.
    pub items: Vec<DeliverItem>,
}

const DELIVER_ITEM_BYTES_MIN: usize = 29 + envelope::FIXED_BYTES;

impl Deliver {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
        out.put_u16(self.items.len() as u16);
        for item in &self.items {
            let header = DeliverHeader {
                shard: item.shard,
                offset: item.offset,
                term: item.term,
                attempt: item.attempt,
                lease: item.lease,
                reason: &item.reason,
            };
            header.put(out);
            out.put_slice(&item.sealed);
        }
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let subscription = reader.u32()?;
        let count = usize::from(reader.u16()?);
        let items = reader.list(count, DELIVER_ITEM_BYTES_MIN, "items", |reader| {
            let shard = ShardId(reader.u32()?);
            let offset = Offset(reader.u64()?);
            let term = Term(reader.u64()?);
            let attempt = Attempt(reader.u32()?);
            let lease = read_millis(reader)?;
            let reason = reader.name("reason")?;
            Ok(DeliverItem { shard, offset, term, attempt, lease, reason, sealed: read_sealed(reader)? })
        })?;
        Ok(Self { subscription, items })
    }
}

/// Everything of a delivery but its bytes.
#[derive(Clone, Copy, Debug)]
pub struct DeliverHeader<'a> {
    /// Of which shard.
    pub shard: ShardId,
    /// Which.
    pub offset: Offset,
    /// Of which reign the lease is.
    pub term: Term,
    /// Which delivery of it.
    pub attempt: Attempt,
    /// Length of the lease.
    pub lease: Duration,
    /// Why it is a dead letter.
    pub reason: &'a str,
}

impl DeliverHeader<'_> {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        out.put_u64(self.offset.0);
        out.put_u64(self.term.0);
        out.put_u32(self.attempt.0);
        put_millis(out, self.lease);
        put_name(out, self.reason);
    }
}

/// Writes a deliver frame message by message, straight into a connection's output.
#[derive(Debug)]
pub struct DeliverWriter<'a> {
    out: &'a mut BytesMut,
    start: usize,
    count: u16,
}

impl<'a> DeliverWriter<'a> {
    /// Begins a frame.
    pub fn begin(out: &'a mut BytesMut, subscription: u32) -> Self {
        let start = begin(out, FrameKind::Deliver, 0);
        out.put_u32(subscription);
        out.put_u16(0);
        Self { out, start, count: 0 }
    }

    /// Whether a message of `bytes` should go into the next frame.
    pub fn is_full(&self, bytes: usize, frame_bytes: usize) -> bool {
        self.count > 0
            && (self.out.len() - self.start + bytes + 512 > frame_bytes
                || usize::from(self.count) == BATCH_MESSAGES_MAX)
    }

    /// Adds a message.
    pub fn push(&mut self, header: &DeliverHeader<'_>, sealed: &[u8]) {
        header.put(self.out);
        self.out.put_slice(sealed);
        self.count += 1;
    }

    /// Ends the frame.
    pub fn finish(self) {
        let at = self.start + FRAME_HEADER_BYTES + 4;
        self.out[at..at + 2].copy_from_slice(&self.count.to_be_bytes());
        finish(self.out, self.start);
    }
}

/// What a consumer has done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleAction {
    /// Done with it.
    Ack,
    /// Try again later.
    Nack {
        /// `None`: the default back-off.
        delay: Option<Duration>,
    },
    /// Not done yet.
    Extend {
        /// From now.
        duration: Duration,
    },
    /// Never again.
    DeadLetter,
    /// Given back unprocessed.
    Release,
}

/// One message settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleItem {
    /// Of which shard.
    pub shard: ShardId,
    /// Which.
    pub offset: Offset,
    /// Of which reign the lease is.
    pub term: Term,
    /// Which delivery of it.
    pub attempt: Attempt,
    /// What was done.
    pub action: SettleAction,
    /// The consumer's words, for nacks and dead letters.
    pub reason: String,
}

/// What a consumer has done with messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// Which subscription.
    pub subscription: u32,
    /// Time the client waits.
    pub deadline: Duration,
    /// Message by message.
    pub items: Vec<SettleItem>,
}

impl Settle {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
        put_millis(out, self.deadline);
        out.put_u16(self.items.len() as u16);
        for item in &self.items {
            out.put_u32(item.shard.0);
            out.put_u64(item.offset.0);
            out.put_u64(item.term.0);
            out.put_u32(item.attempt.0);
            let (action, argument) = match item.action {
                SettleAction::Ack => (0, 0),
                SettleAction::Nack { delay: None } => (1, u32::MAX),
                SettleAction::Nack { delay: Some(delay) } => (1, millis(delay).min(u32::MAX - 1)),
                SettleAction::Extend { duration } => (2, millis(duration)),
                SettleAction::DeadLetter => (3, 0),
                SettleAction::Release => (4, 0),
            };
            out.put_u8(action);
            out.put_u32(argument);
            put_text(out, cut_at(&item.reason, REASON_BYTES_MAX));
        }
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let subscription = reader.u32()?;
        let deadline = read_millis(reader)?;
        let count = usize::from(reader.u16()?);
        if count > BATCH_MESSAGES_MAX {
            return Err(DecodeError::TooLarge("items"));
        }
        let items = reader.list(count, 31, "items", |reader| {
            let shard = ShardId(reader.u32()?);
            let offset = Offset(reader.u64()?);
            let term = Term(reader.u64()?);
            let attempt = Attempt(reader.u32()?);
            let action = reader.u8()?;
            let argument = reader.u32()?;
            let duration = Duration::from_millis(argument.into());
            let action = match action {
                0 => SettleAction::Ack,
                1 => SettleAction::Nack { delay: (argument != u32::MAX).then_some(duration) },
                2 => SettleAction::Extend { duration },
                3 => SettleAction::DeadLetter,
                4 => SettleAction::Release,
                _ => return Err(DecodeError::Invalid("action")),
            };
            let reason = reader.text_within(REASON_BYTES_MAX, "reason")?;
            Ok(SettleItem { shard, offset, term, attempt, action, reason })
        })?;
        Ok(Self { subscription, deadline, items })
    }
}

/// `count` settlements with the same fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettledRun {
    /// How many.
    pub count: u16,
    /// Their fate.
    pub outcome: Outcome,
    /// Why; 0 when it went well.
    pub code: u16,
}

/// Whether settlements hold, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Covers every item.
    pub runs: Vec<SettledRun>,
}

impl Settled {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.runs.len() as u16);
        for run in &self.runs {
            out.put_u16(run.count);
            out.put_u8(run.outcome.to_u8());
            out.put_u16(run.code);
        }
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = usize::from(reader.u16()?);
        let runs = reader.list(count, 5, "runs", |reader| {
            Ok(SettledRun { count: reader.u16()?, outcome: read_outcome(reader)?, code: reader.u16()? })
        })?;
        Ok(Self { runs })
    }
}

/// Leases that ended without the consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseLost {
    /// Which subscription.
    pub subscription: u32,
    /// Which messages.
    pub items: Vec<Held>,
}

impl LeaseLost {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.subscription);
        out.put_u16(self.items.len() as u16);
        self.items.iter().for_each(|item| item.put(out));
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let subscription = reader.u32()?;
        let count = usize::from(reader.u16()?);
        Ok(Self { subscription, items: reader.list(count, 16, "items", Held::read)? })
    }
}

/// Look at messages without leasing them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peek {
    /// Of which address.
    pub address: Address,
    /// In which shard.
    pub shard: ShardId,
    /// Not before this place.
    pub start: Option<StartAt>,
    /// Not before this offset.
    pub from_offset: Offset,
    /// At most so many.
    pub messages_max: u16,
    /// Hardly more sealed bytes than this.
    pub bytes_max: u32,
}

impl Peek {
    pub(super) fn put(&self, out: &mut BytesMut) {
        put_name(out, self.address.as_str());
        out.put_u32(self.shard.0);
        self.start.put(out);
        out.put_u64(self.from_offset.0);
        out.put_u16(self.messages_max);
        out.put_u32(self.bytes_max);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            address: reader.address()?,
            shard: ShardId(reader.u32()?),
            start: Option::<StartAt>::read(reader)?,
            from_offset: Offset(reader.u64()?),
            messages_max: reader.u16()?,
            bytes_max: reader.u32()?,
        })
    }
}

/// One message seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeekedItem {
    /// Which.
    pub offset: Offset,
    /// Why it is a dead letter; empty if it is none.
    pub reason: String,
    /// As its producer sealed it.
    pub sealed: Bytes,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// Where to look next.
    pub next_offset: Offset,
    /// There is nothing further now.
    pub end: bool,
    /// The messages.
    pub items: Vec<PeekedItem>,
}

impl Peeked {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u64(self.next_offset.0);
        out.put_u8(self.end.into());
        out.put_u16(self.items.len() as u16);
        for item in &self.items {
            out.put_u64(item.offset.0);
            put_name(out, &item.reason);
            out.put_slice(&item.sealed);
        }
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let next_offset = Offset(reader.u64()?);
        let end = reader.flag("end")?;
        let count = usize::from(reader.u16()?);
        let items = reader.list(count, 9 + envelope::FIXED_BYTES, "items", |reader| {
            let offset = Offset(reader.u64()?);
            let reason = reader.name("reason")?;
            Ok(PeekedItem { offset, reason, sealed: read_sealed(reader)? })
        })?;
        Ok(Self { next_offset, end, items })
    }
}
