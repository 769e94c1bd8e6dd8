//! Sending.

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
    id::{Address, MessageId, Offset, ShardId},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{Error, SendError, driver::Command, parse_address};

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub address: String,
    /// Messages of one address with one key keep their order.
    pub key: Option<Bytes>,
    /// Sealed together with the body.
    pub headers: Vec<(String, Bytes)>,
    /// The payload.
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
    /// Its name.
    pub id: MessageId,
    /// Its shard.
    pub shard: ShardId,
    /// Its place; unknown for a copy of an old message.
    pub offset: Option<Offset>,
    /// An earlier copy of the same bytes had been taken.
    pub duplicate: bool,
}

/// How a producer sends.
#[derive(Clone, Copy, Debug)]
pub struct ProducerOptions {
    /// Messages whose fate is open, at most.
    pub in_flight: usize,
    /// Time after which a send ends as failed (never sent) or unknown.
    pub deadline: Duration,
    /// The order that addresses must have or are made with; `None`: whatever they have.
    pub order: Option<Order>,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self { in_flight: 256, deadline: Duration::from_secs(30), order: None }
    }
}

/// One producer session. Messages of one producer to one shard keep their order.
pub struct Producer {
    commands: mpsc::UnboundedSender<Command>,
    number: u64,
    window: Arc<Semaphore>,
    options: ProducerOptions,
}

/// A message on its way, as the driver sees it.
pub(crate) struct Submission {
    pub(crate) producer: u64,
    pub(crate) address: Address,
    pub(crate) message: Message,
    pub(crate) deadline: Duration,
    pub(crate) reply: oneshot::Sender<Result<Receipt, SendError>>,
    pub(crate) permit: OwnedSemaphorePermit,
}

impl Producer {
    pub(crate) fn new(commands: mpsc::UnboundedSender<Command>, options: ProducerOptions) -> Self {
        let number = u64::from_be_bytes(crate::random());
        let window = Arc::new(Semaphore::new(options.in_flight.max(1)));
        // If the driver is gone, the first send says so.
        let _gone = commands.send(Command::OpenProducer { number, options }).is_err();
        Self { commands, number, window, options }
    }

    /// Sends a message. Returns when it is on stable storage, or when it definitely is not, or at the deadline.
    pub async fn send(&self, message: Message) -> Result<Receipt, SendError> {
        self.enqueue(message).await?.await
    }

    /// Hands a message over, waiting only while too many are under way. The fate comes with the returned handle.
    pub async fn enqueue(&self, message: Message) -> Result<Pending, SendError> {
        let address = parse_address(&message.address)?;
        let permit = Arc::clone(&self.window).acquire_owned().await.map_err(|_| Error::Closed)?;
        let (reply, answer) = oneshot::channel();
        let submission = Submission {
            producer: self.number,
            address,
            message,
            deadline: self.options.deadline,
            reply,
            permit,
        };
        self.commands.send(Command::Submit(submission)).map_err(|_| Error::Closed)?;
        Ok(Pending { answer })
    }

    /// Ends the session when everything sent has its fate.
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::CloseProducer { number: self.number, done: Some(done) }).is_ok() {
            // An error means that the whole connection ended first.
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

/// The fate of a message handed over with [`Producer::enqueue`]: to be awaited.
#[must_use = "a message is known to be stored only when this was awaited"]
pub struct Pending {
    answer: oneshot::Receiver<Result<Receipt, SendError>>,
}

impl Future for Pending {
    type Output = Result<Receipt, SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|result| result.unwrap_or(Err(Error::Closed)))
    }
}
