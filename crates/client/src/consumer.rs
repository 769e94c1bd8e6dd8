//! Receiving.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use swarmmq_protocol::{
    admin::Order,
    error::Code,
    frame::{Peek, SettleAction, StartAt},
    id::{Address, GroupName, MessageId, Offset, ShardId},
    limits::FRAME_BYTES_MAX,
    mac,
    session::consumer::DeliveryId,
    time::WallTime,
};
use tokio::sync::{mpsc, oneshot};

use crate::{Error, SettleError, SwarmMq, driver::Command, parse_address};

/// Messages looked at in one request.
const PEEK_MESSAGES: u16 = 256;

/// How a consumer joins a group.
#[derive(Clone, Debug)]
pub struct SubscribeOptions {
    /// Which group; made if it is not there.
    pub group: String,
    /// Where a new group begins; for a group that exists it must be `None`.
    pub start: Option<StartAt>,
    /// Messages held at a time, at most.
    pub credit_messages: u32,
    /// Their sealed bytes.
    pub credit_bytes: u64,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { group: "default".into(), start: None, credit_messages: 256, credit_bytes: 8 << 20 }
    }
}

/// One consumer of a group.
pub struct Consumer {
    commands: mpsc::UnboundedSender<Command>,
    number: u64,
    inbox: mpsc::UnboundedReceiver<Result<Received, Error>>,
}

impl Consumer {
    pub(crate) async fn join(
        commands: mpsc::UnboundedSender<Command>,
        address: &str,
        options: SubscribeOptions,
    ) -> Result<Self, Error> {
        let address = parse_address(address)?;
        let group = GroupName::parse(&options.group)
            .map_err(|error| Error::Name { given: options.group.clone(), error })?;
        let number = u64::from_be_bytes(crate::random());
        let (outbox, inbox) = mpsc::unbounded_channel();
        let (reply, joined) = oneshot::channel();
        commands
            .send(Command::OpenConsumer { number, address, group, options, outbox, reply })
            .map_err(|_| Error::Closed)?;
        let consumer = Self { commands, number, inbox };
        match tokio::time::timeout(Duration::from_secs(30), joined).await {
            Ok(Ok(result)) => result.map(|()| consumer),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::Failed { code: Code::Deadline, message: "no answer in 30 s".into() }),
        }
    }

    /// The next message, opened. `None`: the consumer was closed. Safe to cancel.
    pub async fn next(&mut self) -> Option<Result<Received, Error>> {
        self.inbox.recv().await
    }

    /// The next message if it is here already.
    pub fn try_next(&mut self) -> Option<Result<Received, Error>> {
        self.inbox.try_recv().ok()
    }

    /// Gives back everything that was not settled, and leaves.
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::CloseConsumer { number: self.number, done: Some(done) }).is_ok() {
            // An error means that the whole connection ended first.
            let _ended: Result<(), _> = closed.await;
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // Closing twice is harmless; a driver that is gone needs no word.
        let _gone = self.commands.send(Command::CloseConsumer { number: self.number, done: None }).is_err();
    }
}

/// A message with its lease. Dropped without a settlement, it is held until the consumer closes or this process ends.
#[derive(Debug)]
pub struct Received {
    /// Its name.
    pub id: MessageId,
    /// Where it was sent.
    pub address: String,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its headers.
    pub headers: Vec<(String, Bytes)>,
    /// The payload.
    pub body: Bytes,
    /// Its shard.
    pub shard: ShardId,
    /// Its place.
    pub offset: Offset,
    /// Which delivery of it to the group; above 1 it may have been seen before.
    pub attempt: u32,
    /// When, by the producer's clock.
    pub published_at: WallTime,
    /// Why it is a dead letter; empty if it is none.
    pub dead_reason: String,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) consumer: u64,
}

impl Received {
    fn settle(&self, action: SettleAction, reason: &str) -> PendingAck {
        let (reply, answer) = oneshot::channel();
        let id = DeliveryId { shard: self.shard, offset: self.offset };
        let command =
            Command::Settle { consumer: self.consumer, id, action, reason: reason.to_owned(), reply };
        // If the driver is gone, the dropped reply says so.
        let _gone = self.commands.send(command).is_err();
        PendingAck { answer }
    }

    /// Done with it. Returns when that is committed; [`Error::LeaseLost`] if it is not ours any more.
    pub async fn ack(&self) -> Result<(), SettleError> {
        self.ack_later().await
    }

    /// Done with it; the handle tells when that is committed.
    pub fn ack_later(&self) -> PendingAck {
        self.settle(SettleAction::Ack, "")
    }

    /// Try again: after `delay`, or after the default back-off.
    pub async fn retry_in(&self, delay: Option<Duration>, reason: &str) -> Result<(), SettleError> {
        self.settle(SettleAction::Nack { delay }, reason).await
    }

    /// Never again: it goes to the dead-letter queue with this reason.
    pub async fn dead_letter(&self, reason: &str) -> Result<(), SettleError> {
        self.settle(SettleAction::DeadLetter, reason).await
    }

    /// Given back unprocessed; does not count as a failure.
    pub async fn release(&self) -> Result<(), SettleError> {
        self.settle(SettleAction::Release, "").await
    }
}

/// The end of a settlement: to be awaited.
#[must_use = "a message is known to be settled only when this was awaited"]
pub struct PendingAck {
    answer: oneshot::Receiver<Result<(), SettleError>>,
}

impl Future for PendingAck {
    type Output = Result<(), SettleError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|result| result.unwrap_or(Err(Error::Closed)))
    }
}

/// A message that was looked at, not leased.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its name.
    pub id: MessageId,
    /// Where it was sent.
    pub address: String,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its headers.
    pub headers: Vec<(String, Bytes)>,
    /// The payload.
    pub body: Bytes,
    /// Its shard.
    pub shard: ShardId,
    /// Its place.
    pub offset: Offset,
    /// When, by the producer's clock.
    pub published_at: WallTime,
    /// Why it is a dead letter; empty if it is none.
    pub dead_reason: String,
}

pub(crate) async fn peek(
    client: &SwarmMq,
    address: &str,
    start: Option<StartAt>,
) -> Result<Vec<Seen>, Error> {
    let address = parse_address(address)?;
    let order = client.resolve(&address, false, None).await?;
    let mut seen = Vec::new();
    for shard in shards_of(&address, order, client.shard_count()) {
        let mut from_offset = Offset(0);
        loop {
            let peek = Peek {
                address: address.clone(),
                shard,
                start,
                from_offset,
                messages_max: PEEK_MESSAGES,
                bytes_max: FRAME_BYTES_MAX as u32 / 4,
            };
            let (messages, next, end) =
                client.ask(Duration::from_secs(30), |reply| Command::Peek { peek, reply }).await?;
            seen.extend(messages);
            from_offset = next;
            if end {
                break;
            }
        }
    }
    Ok(seen)
}

/// The shards that hold an address; dead letters lie where their address lies.
fn shards_of(address: &Address, order: Order, shard_count: u32) -> Vec<ShardId> {
    let base = address.as_str().strip_suffix(".dlq").and_then(|base| Address::parse(base).ok());
    match order {
        Order::Total => vec![mac::ring(base.as_ref().unwrap_or(address), None, shard_count)],
        Order::Key | Order::None => (0..shard_count).map(ShardId).collect(),
    }
}
