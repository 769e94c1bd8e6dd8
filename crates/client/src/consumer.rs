//! Receiving: joining a group, messages with their leases, and settling them.

use std::{
    collections::VecDeque,
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
    id::{Address, Attempt, GroupName, MessageId, Offset, ShardId},
    limits::FRAME_BYTES_MAX,
    mac,
    session::consumer::{DeliveryId, Handout},
    time::WallTime,
};
use swarmmq_seal::OpenError;
use tokio::sync::{
    mpsc::{self, error::SendError as NotSent},
    oneshot,
};

use crate::{
    Error, SettleError, SwarmMq,
    driver::{Command, OUTBOX_MESSAGES, Question, Settlement, Subscription, after},
    parse_address,
};

/// Messages looked at in one request.
const PEEK_MESSAGES: u16 = 256;
/// Messages taken from the outbox before the driver is told that there is room again. At half, so that neither waits for
/// the other while messages flow.
const TAKEN_MESSAGES: usize = OUTBOX_MESSAGES / 2;

/// What becomes of a message that cannot be opened, after the program was told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unopened {
    /// It becomes a dead letter, with the reason, and is never delivered to this group again: at once if its seal does not
    /// match or holds no message; if its key is missing, after [`SubscribeOptions::key_patience`]. Where a message of another
    /// address was handed out, which says something of the node and nothing of the message, as with [`Unopened::Retry`].
    #[default]
    DeadLetter,
    /// It counts as a failed attempt: it comes again after the usual back-off, perhaps to a consumer with the right key,
    /// and becomes a dead letter after the usual number of attempts (1 s doubling to 60 s, 10 attempts).
    Retry,
}

/// How a consumer joins a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Which group, by default `default`; made if it is not there. Consumers of one group share the messages of an address,
    /// every group gets all of them.
    pub group: String,
    /// Where a new group begins; for a group that exists it must be `None`. By default the first group of an address
    /// begins at its oldest message, later ones at the end.
    pub start: Option<StartAt>,
    /// Messages held at a time, at most: delivered and not settled. By default 256. With 1, the next one comes only when the
    /// settlement of the one before is committed.
    pub credit_messages: u32,
    /// Their sealed bytes; the last message may go beyond. By default 8 MiB.
    pub credit_bytes: u64,
    /// Time for joining, and for every settlement, by default 30 s.
    pub deadline: Duration,
    /// What becomes of messages that cannot be opened.
    pub unopened: Unopened,
    /// Time for a keyring that is on its way, by default 30 s: so long after a key was first missed, messages that need it are
    /// given back and come again a little later. They count as failed attempts, of which an
    /// address allows 10 and this needs seven. With [`Unopened::DeadLetter`] only.
    pub key_patience: Duration,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self {
            group: "default".into(),
            start: None,
            credit_messages: 256,
            credit_bytes: 8 << 20,
            deadline: Duration::from_secs(30),
            unopened: Unopened::default(),
            key_patience: Duration::from_secs(30),
        }
    }
}

/// What the driver hands to the program.
pub(crate) enum Handed {
    Message(Received),
    Unopened { id: MessageId, delivery: Handout, error: OpenError },
}

/// The reason that a dead letter carries.
pub(crate) fn why_unopened(error: &OpenError) -> String {
    match error {
        OpenError::UnknownKey(id) => format!("undecryptable: no key {} in this keyring", id.0),
        OpenError::Forged => "undecryptable: the seal does not match".into(),
        other => format!("undecryptable: {other}"),
    }
}

/// One consumer of a group, made with [`SwarmMq::subscribe`].
///
/// Messages that it holds are kept for it: their leases are extended in the background, for at most 10 minutes from
/// their delivery. After a broken connection it re-claims what it holds, so that nothing is handed out twice.
///
/// **Dropped**, it leaves its group in the background: what was not settled is given back at once and does not count as
/// an attempt that failed. [`Consumer::close`] waits for that.
#[derive(Debug)]
pub struct Consumer {
    commands: mpsc::UnboundedSender<Command>,
    number: u64,
    /// Bounded by [`OUTBOX_MESSAGES`]; what else was delivered waits in the session, bounded by the credit.
    inbox: mpsc::Receiver<Handed>,
    end: oneshot::Receiver<Error>,
    taken: usize,
    unopened: Unopened,
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
        let (outbox, inbox) = mpsc::channel(OUTBOX_MESSAGES);
        let (why, end) = oneshot::channel();
        let (reply, joined) = oneshot::channel();
        let until = after(options.deadline);
        let unopened = options.unopened;
        let subscription =
            Subscription { number, address, group, options, until, outbox, end: why, joined: reply };
        commands.send(Command::OpenConsumer(Box::new(subscription))).map_err(|_| Error::Closed)?;
        // Made before waiting: if this future is dropped, so is the consumer, which then leaves.
        let consumer = Self { commands, number, inbox, end, taken: 0, unopened };
        joined.await.unwrap_or(Err(Error::Closed)).map(|()| consumer)
    }

    /// The next message, opened. `None`: the consumer has ended, because the client was closed.
    ///
    /// * Waits without a deadline: there may be nothing to receive for long. A node that is gone is noticed and another
    ///   connection made meanwhile.
    /// * [`Error::Open`]: a message cannot be opened. [`SubscribeOptions::unopened`] says what becomes of it; the consumer
    ///   goes on with the next one.
    /// * [`Error::Failed`]: the cluster ended the subscription, for instance because the group was removed. `None` follows.
    /// * Cancel safe: no message is lost if this future is dropped.
    pub async fn next(&mut self) -> Option<Result<Received, Error>> {
        match self.inbox.recv().await {
            Some(handed) => Some(self.take(handed)),
            None => self.end.try_recv().ok().map(Err),
        }
    }

    /// The next message if it is here already; like [`Consumer::next`] otherwise.
    pub fn try_next(&mut self) -> Option<Result<Received, Error>> {
        let handed = self.inbox.try_recv().ok()?;
        Some(self.take(handed))
    }

    fn take(&mut self, handed: Handed) -> Result<Received, Error> {
        self.taken += 1;
        if self.taken == TAKEN_MESSAGES {
            self.taken = 0;
            // If the driver is gone, nothing more will come.
            let _gone = self.commands.send(Command::Taken).is_err();
        }
        match handed {
            Handed::Message(received) => Ok(received),
            Handed::Unopened { id, delivery, error } => {
                // Settled only now that the program is told: otherwise a wrong key would run through a whole backlog
                // before anybody noticed.
                let reason = why_unopened(&error);
                let action = match self.unopened {
                    Unopened::DeadLetter if error != OpenError::Misplaced => SettleAction::DeadLetter,
                    Unopened::DeadLetter | Unopened::Retry => SettleAction::Nack { delay: None },
                };
                // Nobody waits for the end: if the settlement does not hold, the message comes again.
                drop(settle(&self.commands, self.number, delivery, action, reason));
                Err(Error::Open { id: id.to_string(), error })
            }
        }
    }

    /// Gives back everything that was not settled, and leaves. Settlements under way are waited for.
    ///
    /// Takes at most [`Options::close_timeout`](crate::Options::close_timeout); what could not be given back by then, because
    /// the node is gone, is free when its leases run out. Cancel safety: dropped, it goes on in the background.
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::CloseConsumer { number: self.number, done: Some(done) }).is_ok() {
            // An error means that the whole client ended first.
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

/// A message with its lease, to be settled once: with [`ack`](Received::ack), [`retry_in`](Received::retry_in),
/// [`dead_letter`](Received::dead_letter) or [`release`](Received::release).
///
/// Every settlement ends in one of three ways, at the latest at [`SubscribeOptions::deadline`]:
///
/// * `Ok`: committed on stable storage.
/// * [`Error::LeaseLost`]: nothing was settled. The lease ran out or the consumer was closed; another consumer has or had
///   the message.
/// * [`Error::Unknown`]: it may be settled. While the consumer lives the settlement is repeated, and the message is not
///   handed out again meanwhile.
///
/// Cancel safety: a settlement is under way when the future is made and polled once, or with
/// [`ack_later`](Received::ack_later) when that returns; dropping the future gives up its answer and not the settlement.
///
/// **Dropped** without a settlement, the message stays held, until the consumer closes, this process ends, or 10 minutes
/// have passed; then it is delivered again. It holds the client open, as every handle does.
#[derive(Debug)]
pub struct Received {
    /// Its name, the same in every delivery: what a sink remembers that must not act twice.
    pub id: MessageId,
    /// Which address the consumer subscribed to; for a dead letter `ADDRESS.dlq`.
    pub address: String,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its headers.
    pub headers: Vec<(String, Bytes)>,
    /// The payload.
    pub body: Bytes,
    /// Its shard.
    pub shard: ShardId,
    /// Its place in the shard.
    pub offset: Offset,
    /// Which delivery of it to the group; above 1 it may have been seen before.
    pub attempt: u32,
    /// When it was sealed, by the producer's clock.
    pub published_at: WallTime,
    /// Why it is a dead letter; empty if it is none.
    pub dead_reason: String,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) consumer: u64,
}

impl Received {
    fn settle(&self, action: SettleAction, reason: &str) -> PendingAck {
        let id = DeliveryId { shard: self.shard, offset: self.offset };
        let handout = Handout { id, attempt: Attempt(self.attempt) };
        settle(&self.commands, self.consumer, handout, action, reason.to_owned())
    }

    /// Done with it. Returns when that is committed.
    pub async fn ack(&self) -> Result<(), SettleError> {
        self.ack_later().await
    }

    /// Done with it; the handle tells when that is committed. For programs that go on with the next message meanwhile.
    pub fn ack_later(&self) -> PendingAck {
        self.settle(SettleAction::Ack, "")
    }

    /// Try again: after `delay`, or with `None` after the default back-off (1 s, doubling to 60 s). Counts as a failed
    /// attempt; after the last one it becomes a dead letter with this reason, of which the first 256 bytes are kept.
    pub async fn retry_in(&self, delay: Option<Duration>, reason: &str) -> Result<(), SettleError> {
        self.settle(SettleAction::Nack { delay }, reason).await
    }

    /// Never again: it goes to `ADDRESS.dlq` with this reason, of which the first 256 bytes are kept.
    pub async fn dead_letter(&self, reason: &str) -> Result<(), SettleError> {
        self.settle(SettleAction::DeadLetter, reason).await
    }

    /// Given back unprocessed: delivered again at once, perhaps to another consumer. Does not count as a failed attempt.
    pub async fn release(&self) -> Result<(), SettleError> {
        self.settle(SettleAction::Release, "").await
    }
}

/// Where the end of a settlement goes.
pub(crate) type SettleReply = oneshot::Sender<Result<(), SettleError>>;

fn settle(
    commands: &mpsc::UnboundedSender<Command>,
    consumer: u64,
    handout: Handout,
    action: SettleAction,
    reason: String,
) -> PendingAck {
    let (reply, answer) = oneshot::channel();
    let settlement = Settlement { consumer, handout, action, reason, reply };
    if let Err(NotSent(Command::Settle(settlement))) = commands.send(Command::Settle(settlement)) {
        // The client has ended; the receiver is below, so it hears this.
        let _unheard = settlement.reply.send(Err(Error::Closed)).is_err();
    }
    PendingAck { answer }
}

/// The end of a settlement: to be awaited. It resolves as [`Received`] says.
///
/// Cancel safe: it can be awaited by reference, and again. **Dropped**, the settlement happens all the same, and nobody
/// learns whether it held.
#[derive(Debug)]
#[must_use = "a message is known to be settled only when this was awaited"]
pub struct PendingAck {
    answer: oneshot::Receiver<Result<(), SettleError>>,
}

impl Future for PendingAck {
    type Output = Result<(), SettleError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|result| result.unwrap_or(Err(Error::cut_off())))
    }
}

/// A message that was looked at, not leased.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Its place in the shard.
    pub offset: Offset,
    /// When it was sealed, by the producer's clock.
    pub published_at: WallTime,
    /// Why it is a dead letter; empty if it is none.
    pub dead_reason: String,
}

impl SwarmMq {
    /// Looks at messages of an address without leasing them, page by page, oldest first in every shard. Changes nothing.
    ///
    /// * `messages_max`: the look ends after so many, those included that cannot be opened.
    /// * Fails as [`SwarmMq::resolve`] does: the address must be there.
    pub async fn peek_pages(
        &self,
        address: &str,
        start: Option<StartAt>,
        messages_max: usize,
    ) -> Result<Peeking, Error> {
        let address = parse_address(address)?;
        let order = self.resolve(&address, false, None).await?;
        let shards = shards_of(&address, order, self.shard_count()).into();
        Ok(Peeking {
            client: self.clone(),
            address,
            start,
            shards,
            from_offset: Offset(0),
            left: messages_max,
        })
    }
}

/// A look at an address under way, made with [`SwarmMq::peek_pages`]. Holds no messages: each page belongs to the caller.
#[derive(Debug)]
pub struct Peeking {
    client: SwarmMq,
    address: Address,
    start: Option<StartAt>,
    /// Not looked at to their ends; the first one from `from_offset` on.
    shards: VecDeque<ShardId>,
    from_offset: Offset,
    left: usize,
}

impl Peeking {
    /// The next messages, at least one and at most 256 (about 1 MiB, or one message); `None` at the end.
    ///
    /// * Of each message what was seen, or [`Error::Open`] if it cannot be opened, which says which one it is.
    /// * Fails if the cluster does not answer or refuses, with [`Options::deadline`](crate::Options::deadline) for every
    ///   page; can then be asked again.
    /// * Cancel safe: a page that nobody waited for is fetched again.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Result<Seen, Error>>>, Error> {
        while self.left > 0
            && let Some(shard) = self.shards.front().copied()
        {
            let peek = Peek {
                address: self.address.clone(),
                shard,
                start: self.start,
                from_offset: self.from_offset,
                messages_max: u16::try_from(self.left).unwrap_or(u16::MAX).min(PEEK_MESSAGES),
                bytes_max: FRAME_BYTES_MAX as u32 / 4,
            };
            let (mut messages, next, end) =
                self.client.ask(self.client.deadline, |reply| Question::Peek(peek, reply)).await?;
            if end {
                self.shards.pop_front();
                self.from_offset = Offset(0);
            } else if next > self.from_offset {
                self.from_offset = next;
            } else {
                let message = "the node's answer leads nowhere".into();
                return Err(Error::Failed { code: Code::Malformed, message });
            }
            messages.truncate(self.left);
            self.left -= messages.len();
            if !messages.is_empty() {
                return Ok(Some(messages));
            }
        }
        Ok(None)
    }
}

pub(crate) async fn peek(
    client: &SwarmMq,
    address: &str,
    start: Option<StartAt>,
    messages_max: usize,
) -> Result<Vec<Seen>, Error> {
    let mut peeking = client.peek_pages(address, start, messages_max).await?;
    let mut seen = Vec::new();
    while let Some(page) = peeking.next_page().await? {
        for message in page {
            seen.push(message?);
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

#[cfg(test)]
mod tests {
    use swarmmq_protocol::id::ClusterId;

    use super::*;

    #[test]
    fn dead_letters_are_looked_for_where_their_address_lies() {
        let address = Address::parse("shop.orders").unwrap();
        let dead = address.dead_letter().unwrap();
        let there = shards_of(&address, Order::Total, 16);
        assert_eq!(there.len(), 1);
        assert_eq!(shards_of(&dead, Order::Total, 16), there);
        assert_eq!(shards_of(&address, Order::Key, 3), [ShardId(0), ShardId(1), ShardId(2)]);
    }

    /// What the cluster answers to the next look: how many messages (none can be opened), where to go on, whether that is all.
    async fn answer(inbox: &mut mpsc::UnboundedReceiver<Command>, page: (usize, u64, bool)) -> Peek {
        let Some(Command::Ask(Question::Peek(peek, reply), _)) = inbox.recv().await else { panic!() };
        let messages = vec![Err(Error::Open { id: "x".into(), error: OpenError::Forged }); page.0];
        reply.send(Ok((messages, Offset(page.1), page.2))).unwrap();
        peek
    }

    #[tokio::test]
    async fn a_look_goes_from_page_to_page_and_shard_to_shard_and_ends_at_its_number() {
        let (commands, mut inbox) = mpsc::unbounded_channel();
        let client =
            SwarmMq { commands, cluster: ClusterId(1), shard_count: 3, deadline: Duration::from_secs(1) };
        let mut peeking = Peeking {
            client,
            address: Address::parse("a").unwrap(),
            start: None,
            shards: [ShardId(0), ShardId(1), ShardId(2)].into(),
            from_offset: Offset(0),
            left: 302,
        };
        // Shard 1 is empty; shard 2 gives more than it was asked for.
        let looking = async {
            let mut sizes = Vec::new();
            while let Some(page) = peeking.next_page().await.unwrap() {
                sizes.push(page.len());
            }
            sizes
        };
        let answering = async {
            let mut asked = Vec::new();
            for page in [(256, 300, false), (44, 400, true), (0, 0, true), (5, 9, false)] {
                let peek = answer(&mut inbox, page).await;
                asked.push((peek.shard.0, peek.from_offset.0, peek.messages_max));
            }
            asked
        };
        let (sizes, asked) = tokio::join!(looking, answering);
        assert_eq!(asked, [(0, 0, 256), (0, 300, 46), (1, 0, 2), (2, 0, 2)]);
        assert_eq!(sizes, [256, 44, 2]);

        // A node that keeps us where we are is not followed for ever.
        peeking.left = 1;
        let (page, _) = tokio::join!(peeking.next_page(), answer(&mut inbox, (0, 9, false)));
        assert_eq!(page.unwrap_err().code(), "malformed");
    }

    #[tokio::test]
    async fn a_settlement_after_the_client_ended_has_certainly_not_happened() {
        let (commands, inbox) = mpsc::unbounded_channel();
        let id = DeliveryId { shard: ShardId(0), offset: Offset(1) };
        let id = Handout { id, attempt: Attempt(1) };
        let under_way = settle(&commands, 1, id, SettleAction::Ack, String::new());
        drop(inbox);
        let late = settle(&commands, 1, id, SettleAction::Ack, String::new());
        assert_eq!(late.await, Err(Error::Closed));
        assert!(matches!(under_way.await, Err(Error::Unknown { .. })), "it may have been sent");
    }
}
