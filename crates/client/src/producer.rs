//! Sending: messages, their receipts, and the handle that a program sends through.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use swarmmq_protocol::{
    admin::Order,
    error::Code,
    id::{Address, MessageId, Offset, ShardId},
    policy::Policy,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout_at,
};

use crate::{
    Error, SendError,
    driver::{Command, Identity, after},
    parse_address,
};

/// Most messages of one producer whose fate may be open.
const IN_FLIGHT_MAX: usize = 1 << 20;

/// A message to be sent.
///
/// Key, headers and body are sealed; nodes see the address, the length, the time and a keyed hash of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where to, e.g. `shop.orders`.
    pub address: String,
    /// Messages of one address with one key keep their order, if the address's order is `key`. At most 256 bytes.
    pub key: Option<Bytes>,
    /// Sealed together with the body. At most 32, together at most 8 KiB.
    pub headers: Vec<(String, Bytes)>,
    /// The payload. With the headers at most 1 MiB.
    pub body: Bytes,
}

impl Message {
    /// Without key and headers.
    pub fn new(address: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { address: address.into(), key: None, headers: Vec::new(), body: body.into() }
    }

    /// With this key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Proof that a message is on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Its name: the same for every copy and every delivery of it.
    pub id: MessageId,
    /// The shard that it lies in.
    pub shard: ShardId,
    /// Its place in the shard; unknown for a copy of an old message.
    pub offset: Option<Offset>,
    /// An earlier copy of the same bytes had been taken, because an answer was lost. Nothing was stored twice.
    pub duplicate: bool,
}

/// How a producer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerOptions {
    /// Messages whose fate is open, at most; at that bound [`Producer::enqueue`] waits. 1 to 1,048,576, by default 256.
    /// Their sealed bytes are bounded too: beyond 64 MiB they wait in this process, unsealed.
    pub in_flight: usize,
    /// Time from [`Producer::send`] or [`Producer::enqueue`] to a message's fate, by default 30 s. When it passes, the
    /// message has failed if it never left this process; otherwise its fate is unknown.
    pub deadline: Duration,
    /// The order that addresses must have or are made with; `None`: whatever they have, or `total`.
    pub order: Option<Order>,
    /// How shards are chosen for messages that any shard may take (order `none`, or `key` without a key); `None`: as the
    /// cluster's settings say. To compare, or to keep out of a comparison.
    pub policy: Option<Policy>,
    /// Make bodies shorter before they are sealed, where that helps; by default not. Nodes and whoever reads the wire see lengths,
    /// and how far a body shrinks says something about what is in it: not for bodies in which a secret stands next to text
    /// that others choose. Consumers of builds from before this option cannot open such messages.
    pub compress: bool,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self { in_flight: 256, deadline: Duration::from_secs(30), order: None, policy: None, compress: false }
    }
}

/// One producer session, made with [`SwarmMq::producer`](crate::SwarmMq::producer). Messages of one producer to one
/// shard keep their order.
///
/// What is unanswered is repeated by itself, with the same bytes: after a broken connection at once, after a refusal
/// that may pass within a budget of repeats and with growing pauses.
///
/// **Dropped**, it takes no more messages; those handed over go on to their fate, which their [`Pending`] still tells.
/// [`Producer::close`] waits for that.
#[derive(Debug)]
pub struct Producer {
    commands: mpsc::UnboundedSender<Command>,
    number: u64,
    window: Arc<Semaphore>,
    options: ProducerOptions,
}

/// Where the fate of a message goes.
pub(crate) type SendReply = oneshot::Sender<Result<Receipt, SendError>>;

/// A message on its way, as the driver sees it.
pub(crate) struct Submission {
    pub(crate) producer: u64,
    pub(crate) address: Address,
    pub(crate) message: Message,
    pub(crate) until: tokio::time::Instant,
    pub(crate) reply: SendReply,
    pub(crate) permit: OwnedSemaphorePermit,
}

impl Producer {
    pub(crate) fn new(
        commands: mpsc::UnboundedSender<Command>,
        mut options: ProducerOptions,
        named: Option<Identity>,
    ) -> Self {
        options.in_flight = options.in_flight.clamp(1, IN_FLIGHT_MAX);
        let number = u64::from_be_bytes(crate::random());
        let window = Arc::new(Semaphore::new(options.in_flight));
        // If the driver is gone, the first send says so.
        let _gone = commands.send(Command::OpenProducer { number, options, named }).is_err();
        Self { commands, number, window, options }
    }

    /// Sends a message. Returns when it is on stable storage, or when it certainly is not, or at the deadline.
    ///
    /// * [`Error::Name`], [`Error::Seal`], [`Error::Failed`], [`Error::Closed`]: it was not stored and will not be.
    /// * [`Error::Unknown`]: it may be stored. Sending the same [`Message`] again is a new message, so it could be stored
    ///   twice.
    /// * Cancel safety: once handed over, a message is sent even if this future is dropped, and its fate stays unknown
    ///   to the program. Before that, while too many are in flight, nothing happens to it.
    pub async fn send(&self, message: Message) -> Result<Receipt, SendError> {
        self.enqueue(message).await?.await
    }

    /// Hands a message over. Its fate comes with the returned handle; the next one may be handed over meanwhile.
    ///
    /// * Waits while [`ProducerOptions::in_flight`] messages are under way, at most until the deadline; then it has failed
    ///   with [`Error::Failed`] and code `deadline`, and nothing was sent.
    /// * The deadline counts from this call, waiting included.
    /// * Cancel safe: a message is handed over when this returns, and not at all if it is dropped before.
    pub async fn enqueue(&self, message: Message) -> Result<Pending, SendError> {
        let address = parse_address(&message.address)?;
        let until = after(self.options.deadline);
        let permit = match Arc::clone(&self.window).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait_for_permit(until).await?,
        };
        let (reply, answer) = oneshot::channel();
        let submission = Submission { producer: self.number, address, message, until, reply, permit };
        self.commands.send(Command::Submit(submission)).map_err(|_| Error::Closed)?;
        Ok(Pending { answer })
    }

    async fn wait_for_permit(&self, until: tokio::time::Instant) -> Result<OwnedSemaphorePermit, SendError> {
        match timeout_at(until, Arc::clone(&self.window).acquire_owned()).await {
            Ok(permit) => permit.map_err(|_| Error::Closed),
            Err(_) => Err(Error::Failed {
                code: Code::Deadline,
                message: format!(
                    "{} messages are in flight and none found its fate in time; nothing was sent",
                    self.options.in_flight
                ),
            }),
        }
    }

    /// Waits until everything handed over before has its fate, good or bad; the handles tell which. At most until the last
    /// deadline. What is handed over meanwhile waits behind it.
    ///
    /// Cancel safe.
    pub async fn flush(&self) {
        let all = self.options.in_flight as u32;
        // The semaphore is never closed; if it were, nothing would be in flight.
        let _permits = self.window.acquire_many(all).await;
    }

    /// Ends the session when everything handed over has its fate: at most the deadline, and
    /// [`Options::close_timeout`](crate::Options::close_timeout) more to tell the shards.
    ///
    /// Cancel safety: dropped, it goes on in the background.
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::CloseProducer { number: self.number, done: Some(done) }).is_ok() {
            // An error means that the whole client ended first.
            let _ended: Result<(), _> = closed.await;
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // Closing twice is harmless; a driver that is gone needs no word.
        let _gone = self.commands.send(Command::CloseProducer { number: self.number, done: None }).is_err();
    }
}

/// The fate of a message handed over with [`Producer::enqueue`]: to be awaited. It resolves as [`Producer::send`] does.
///
/// Cancel safe: it can be awaited by reference, and again. **Dropped**, the message is sent all the same, and nobody
/// learns its fate.
#[derive(Debug)]
#[must_use = "a message is known to be stored only when this was awaited"]
pub struct Pending {
    answer: oneshot::Receiver<Result<Receipt, SendError>>,
}

impl Future for Pending {
    type Output = Result<Receipt, SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|result| result.unwrap_or(Err(Error::cut_off())))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn producer(in_flight: usize, deadline: Duration) -> (Producer, mpsc::UnboundedReceiver<Command>) {
        let (commands, inbox) = mpsc::unbounded_channel();
        let options = ProducerOptions { in_flight, deadline, ..ProducerOptions::default() };
        (Producer::new(commands, options, None), inbox)
    }

    fn message() -> Message {
        Message::new("a.b", "x")
    }

    /// The submissions that were handed over.
    fn handed(inbox: &mut mpsc::UnboundedReceiver<Command>) -> Vec<Submission> {
        let commands = std::iter::from_fn(|| inbox.try_recv().ok());
        commands
            .filter_map(|command| if let Command::Submit(one) = command { Some(one) } else { None })
            .collect()
    }

    #[tokio::test]
    async fn what_does_not_fit_into_the_window_waits_and_fails_at_its_deadline_without_being_sent() {
        let (producer, mut inbox) = producer(2, Duration::from_millis(20));
        let _first = producer.enqueue(message()).await.unwrap();
        let _second = producer.enqueue(message()).await.unwrap();
        let error = producer.enqueue(message()).await.unwrap_err();
        assert!(matches!(error, Error::Failed { code: Code::Deadline, .. }), "{error:?}");
        assert_eq!(handed(&mut inbox).len(), 2);
    }

    #[tokio::test]
    async fn a_fate_makes_room_for_the_next_message() {
        let (producer, mut inbox) = producer(1, Duration::from_secs(10));
        let first = producer.enqueue(message()).await.unwrap();
        let mut next = Box::pin(producer.enqueue(message()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(next.as_mut().poll(&mut context).is_pending());
        let submission = handed(&mut inbox).remove(0);
        submission.reply.send(Err(Error::LeaseLost)).unwrap();
        drop(submission.permit);
        assert_eq!(first.await, Err(Error::LeaseLost));
        drop(next.await.unwrap());
    }

    #[tokio::test]
    async fn flush_waits_for_every_fate() {
        let (producer, mut inbox) = producer(3, Duration::from_secs(10));
        producer.flush().await;
        drop(producer.enqueue(message()).await.unwrap());
        let mut flush = Box::pin(producer.flush());
        let mut context = Context::from_waker(Waker::noop());
        assert!(flush.as_mut().poll(&mut context).is_pending());
        drop(handed(&mut inbox));
        flush.await;
    }

    #[tokio::test]
    async fn a_message_whose_client_vanished_after_the_handover_has_an_unknown_fate() {
        let (producer, mut inbox) = producer(3, Duration::from_secs(10));
        let pending = producer.enqueue(message()).await.unwrap();
        drop(handed(&mut inbox));
        assert!(matches!(pending.await, Err(Error::Unknown { .. })));
        drop(inbox);
        assert_eq!(producer.enqueue(message()).await.unwrap_err(), Error::Closed);
    }

    #[tokio::test]
    async fn a_bad_address_is_refused_before_anything_is_handed_over() {
        let (producer, mut inbox) = producer(3, Duration::from_secs(10));
        let error = producer.send(Message::new("a..b", "x")).await.unwrap_err();
        assert_eq!((error.code(), error.exit_code()), ("invalid_name", 2));
        assert!(handed(&mut inbox).is_empty());
    }
}
