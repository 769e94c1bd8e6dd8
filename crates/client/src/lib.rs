//! How a program publishes and consumes.
//!
//! Messages are sealed in this process and opened in the receiver's; `send` returns when a message is on stable storage,
//! exactly once; `ack` fails visibly when the lease was lost. Connections are mended by themselves, and what was
//! unanswered is repeated with the same bytes. Every call ends: with its result, or at its deadline with an [`Error`] that
//! says whether it may have happened.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use swarmmq_client::{ClientKeyring, Message, Options, ProducerOptions, SubscribeOptions, SwarmMq};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let keyring = ClientKeyring::load(Path::new(".swarmmq/client.keyring"))?;
//! let client = SwarmMq::connect(Options::new(vec!["127.0.0.1:7420".into()], keyring)).await?;
//!
//! let producer = client.producer(ProducerOptions::default());
//! let receipt = producer.send(Message::new("shop.orders", "two apples").key("anna")).await?;
//! println!("stored as {}", receipt.id);
//!
//! let mut consumer = client.subscribe("shop.orders", SubscribeOptions::default()).await?;
//! while let Some(received) = consumer.next().await {
//!     let received = received?;
//!     println!("attempt {}: {:?}", received.attempt, received.body);
//!     received.ack().await?; // Err(Error::LeaseLost): somebody else has it
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **Needs** a tokio runtime with I/O and time enabled. One [`SwarmMq`] is one task with one home connection, to any node, and
//! where there is traffic for them direct connections to nodes that lead; all handles made from it share them, may be used
//! from any task, and keep them alive.
//!
//! **Bounds.** A producer has at most [`ProducerOptions::in_flight`] messages under way and then waits; a consumer holds at
//! most [`SubscribeOptions::credit_messages`].
//!
//! **Cancel safety.** Dropping a future of this crate never loses a message and never blocks. What had been handed over
//! goes on, and only its answer is lost; each method says what that means for it.
//!
//! Examples that run against `swarmmq dev up --nodes 1` are in this crate's `examples` folder; a short guide is in
//! `docs/guide/rust-client.md`.

mod connection;
mod consumer;
mod driver;
mod error;
mod producer;

use std::time::Duration;

pub use swarmmq_protocol::{
    access,
    admin::{self, AdminAnswer, AdminRequest, Order},
    error::{Code, Outcome},
    frame::StartAt,
    id::{Address, ClusterId, GroupName, KeyId, MessageId, NameError, Offset, ProducerName, ShardId},
    policy::{self, Policy},
    time::WallTime,
};
pub use swarmmq_seal::{
    ClientKeyring, KeyLimits, KeyState, KeyringError, LoadError, OpenError, PayloadKeyInfo, SealError, Trust,
};
pub use swarmmq_tls::TlsError;
use tokio::sync::{mpsc, oneshot};

use self::{
    connection::Access,
    driver::{Command, Driver, Question, Reply, after},
};
pub use self::{
    consumer::{Consumer, Peeking, PendingAck, Received, Seen, SubscribeOptions, Unopened},
    error::{Error, SendError, SettleError},
    producer::{Message, Pending, Producer, ProducerOptions, Receipt},
};

/// Longest wait for the status of the cluster: whoever asks for it wants to know now.
const STATUS_DEADLINE: Duration = Duration::from_secs(3);

/// Where to connect and as whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// `HOST:PORT` of any nodes of one cluster, tried in an order of this client's own.
    pub servers: Vec<String>,
    /// Keys, and as whom: the keyring says whose token it holds.
    pub keyring: ClientKeyring,
    /// Time for the first connection, by default 10 s. Later ones are tried for as long as there is a handle.
    pub connect_timeout: Duration,
    /// Time for an answer to [`SwarmMq::resolve`], [`SwarmMq::admin`] and [`SwarmMq::peek`], by default 30 s. Producers and
    /// consumers have deadlines of their own.
    pub deadline: Duration,
    /// Time for taking leave of the cluster, by default 5 s: of all sessions together when the client is closed, of one when
    /// a consumer is, and of one after its last fate is known when a producer is.
    pub close_timeout: Duration,
    /// Silence after which a connection counts as broken, by default 10 s, at least 100 ms; after half of it the node is
    /// asked whether it is there. Where there is another node, nodes are asked sooner, and one that does not answer is left
    /// after 0.6 s in all if that other node takes the client, or later if that has lately proved too soon.
    pub silence_max: Duration,
    /// Ask the cluster who leads what, send messages to leaders directly where they can be reached, be at home with the node
    /// that leads what is consumed, and fall back to any node that the cluster names. By default true; otherwise everything
    /// goes by way of one of `servers`.
    pub direct: bool,
    /// How often the file is looked at that the keyring was loaded from, by default every second; `None`: only when the program
    /// says so, with [`SwarmMq::reload_keyring`]. A keyring from elsewhere has no file.
    pub keyring_look: Option<Duration>,
    /// How much one session key may seal before its session takes a fresh one. Smaller limits are safe, larger ones are not.
    pub key_limits: KeyLimits,
}

/// What a client does with its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyringState {
    /// The payload key that seals now.
    pub sealing_key: KeyId,
    /// All payload keys that it holds, lowest first.
    pub keys: Vec<PayloadKeyInfo>,
    /// How often keys were replaced since the client was made.
    pub replaced: u64,
    /// Why the file could not be used at the last look; the keys from before go on.
    pub problem: Option<String>,
    /// Messages told as [`Error::Open`] by consumers that make dead letters of them.
    pub undecryptable: u64,
}

impl Options {
    /// With the usual times.
    pub fn new(servers: Vec<String>, keyring: ClientKeyring) -> Self {
        Self {
            servers,
            keyring,
            connect_timeout: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            close_timeout: Duration::from_secs(5),
            silence_max: Duration::from_secs(10),
            direct: true,
            keyring_look: Some(Duration::from_secs(1)),
            key_limits: KeyLimits::default(),
        }
    }
}

/// A connection to a cluster, shared by its clones.
///
/// It mends itself: when it breaks, or the node says that it is stopping, the next server is tried at once, of those that
/// were named and then of those that the cluster named; when none of them takes it, all are tried again after growing,
/// randomly spread pauses of at most 0.6 s. Servers of another cluster are refused. Messages go to the nodes that lead,
/// where these can be reached, and by way of the home connection otherwise: see [`Options::direct`].
///
/// **Dropped**, it lives on while there are clones, producers, consumers or received messages. With the last of them it ends
/// in the background as with [`SwarmMq::close`].
#[derive(Clone, Debug)]
pub struct SwarmMq {
    commands: mpsc::UnboundedSender<Command>,
    cluster: ClusterId,
    shard_count: u32,
    deadline: Duration,
}

impl SwarmMq {
    /// Connects to the first server that answers and proves that it knows the access token.
    ///
    /// * [`Error::Trust`] if the keyring does not say how nodes are known. Nothing is tried then.
    /// * [`Error::Untrusted`] when the certificates of all servers are refused: trying again will not help.
    /// * [`Error::Unreachable`] after [`Options::connect_timeout`], or at once if no server is named.
    /// * [`Error::Failed`] with code `unauthenticated` or `version` when every server refuses: trying again will not help.
    /// * Cancel safe: nothing is left behind.
    /// * Panics outside of a tokio runtime.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        // Unbounded as a channel, because a handle that is dropped or settled cannot wait. What is in it is bounded by what
        // sends: submissions by in-flight permits, settlements by the messages held, questions by the calls that wait for
        // them, everything else by the number of handles. The driver empties it without waiting for the network.
        let (commands, inbox) = mpsc::unbounded_channel();
        let (ready, first) = oneshot::channel();
        let keeper = commands.downgrade();
        let deadline = options.deadline;
        let access = Access::new(&options.keyring)?;
        tokio::spawn(Driver::new(options, access, inbox, keeper, ready).run());
        let (cluster, shard_count) = first.await.map_err(|_| Error::Closed)??;
        Ok(Self { commands, cluster, shard_count, deadline })
    }

    /// Which cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its data shards; fixed when the cluster was made.
    pub fn shard_count(&self) -> u32 {
        self.shard_count
    }

    /// A producer session of its own. Never waits; if the client has been closed, the first send says so.
    pub fn producer(&self, options: ProducerOptions) -> Producer {
        Producer::new(self.commands.clone(), options, None)
    }

    /// Takes over the producer called `name`, so that at most one process sends under that name: from its first message
    /// to a shard on, messages of an earlier life to that shard are refused with [`Code::Fenced`]. The earlier process
    /// learns it when it sends; it is not renewed by itself, as a producer without a name is.
    ///
    /// A life ends with the process; what it had sent and not heard of is not repeated by the next one.
    ///
    /// * [`Error::Name`]: the name breaks the grammar, which is that of groups.
    /// * [`Error::Failed`]: refused; nobody was fenced. [`Error::Unknown`]: perhaps the life was begun; taking over again
    ///   is safe.
    pub async fn named_producer(&self, name: &str, options: ProducerOptions) -> Result<Producer, Error> {
        let name =
            ProducerName::parse(name).map_err(|error| Error::Name { given: name.to_owned(), error })?;
        match self.admin(AdminRequest::ProducerTakeOver { name }).await? {
            Some(AdminAnswer::Producer { producer, epoch }) => {
                Ok(Producer::new(self.commands.clone(), options, Some((producer, epoch))))
            }
            _ => {
                let message = "the node's answer is not one to this question".into();
                Err(Error::Failed { code: Code::Malformed, message })
            }
        }
    }

    /// Joins a group of an address, which is made if it is not there. Returns when the cluster feeds it.
    ///
    /// * [`Error::Name`]: address or group break the grammar; nothing was sent.
    /// * [`Error::Failed`]: the cluster refuses, for instance with `exists` because the group exists and a start was given; or
    ///   with `deadline`, after which a group that was new may have been made all the same.
    /// * Cancel safe: a consumer that nobody waits for leaves by itself.
    pub async fn subscribe(&self, address: &str, options: SubscribeOptions) -> Result<Consumer, Error> {
        Consumer::join(self.commands.clone(), address, options).await
    }

    /// Asks the cluster. `None`: done, nothing to tell.
    ///
    /// * [`Error::Failed`]: nothing changed. With code `deadline` after [`Options::deadline`], for the status after 3 s.
    /// * [`Error::Unknown`]: it may have changed. Purging, removing and seeking are not repeated by themselves when the
    ///   connection breaks, because that could remove more than was asked for; everything else is.
    /// * Cancel safety: what was sent may happen, what was not will not.
    pub async fn admin(&self, request: AdminRequest) -> Result<Option<AdminAnswer>, Error> {
        let deadline = match request {
            AdminRequest::Status => self.deadline.min(STATUS_DEADLINE),
            _ => self.deadline,
        };
        self.ask(deadline, |reply| Question::Admin(request, reply)).await
    }

    /// The order of an address; made if `create`, with `order` or else `total`.
    ///
    /// [`Error::Failed`] with `order_conflict` if it has another order, with `no_such_address` if it is not there and not to
    /// be made. Repeated by itself when the connection breaks.
    pub async fn resolve(
        &self,
        address: &Address,
        create: bool,
        order: Option<Order>,
    ) -> Result<Order, Error> {
        let resolve = swarmmq_protocol::frame::Resolve {
            address: address.clone(),
            create,
            order,
            deadline: self.deadline,
        };
        self.ask(self.deadline, |reply| Question::Resolve(resolve, reply)).await
    }

    /// Looks at all messages of an address without leasing them, oldest first in every shard. Changes nothing.
    ///
    /// They come into memory all at once: where there may be many, use [`SwarmMq::peek_first`].
    pub async fn peek(&self, address: &str, start: Option<StartAt>) -> Result<Vec<Seen>, Error> {
        consumer::peek(self, address, start, usize::MAX).await
    }

    /// Like [`SwarmMq::peek`], but ends after `messages_max` messages.
    ///
    /// [`Error::Open`] if one of them cannot be opened: it says which. The deadline counts anew for every 256 messages.
    pub async fn peek_first(
        &self,
        address: &str,
        start: Option<StartAt>,
        messages_max: usize,
    ) -> Result<Vec<Seen>, Error> {
        consumer::peek(self, address, start, messages_max).await
    }

    pub(crate) async fn ask<T>(
        &self,
        deadline: Duration,
        question: impl FnOnce(Reply<T>) -> Question,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Ask(question(reply), after(deadline))).map_err(|_| Error::Closed)?;
        // The driver keeps the deadline: it knows whether the question was ever sent.
        answer.await.unwrap_or(Err(Error::cut_off()))
    }

    /// Looks at once at the file that the keyring was loaded from. True: other keys are used from now on.
    ///
    /// * [`Error::Keyring`]: there is no file, or none that can be used; the keys from before go on.
    /// * Cancel safe: the look goes on, and only its answer is lost.
    pub async fn reload_keyring(&self) -> Result<bool, Error> {
        self.change_keyring(Command::ReloadKeyring).await
    }

    /// Uses `keyring` from now on, for programs that keep keys elsewhere than in a file. True: it is another one than before.
    ///
    /// What was sealed is repeated as it is, sessions go on. [`Error::Keyring`]: it belongs to another cluster; nothing
    /// changed. Cancel safety as for [`SwarmMq::reload_keyring`].
    pub async fn use_keyring(&self, keyring: ClientKeyring) -> Result<bool, Error> {
        self.change_keyring(|reply| Command::UseKeyring(keyring, reply)).await
    }

    async fn change_keyring(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<bool, Error>>) -> Command,
    ) -> Result<bool, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| Error::Closed)?;
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// Which keys are used now, and how that went. [`Error::Closed`] if the client has ended.
    pub async fn keyring_state(&self) -> Result<KeyringState, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::TellKeyring(reply)).map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }

    /// Ends all sessions of this connection, whoever holds handles to them: producers finish what is under way, consumers
    /// give back what they hold.
    ///
    /// Takes at most [`Options::close_timeout`]; messages without an answer by then are told to their [`Pending`] as unknown
    /// if they were ever sent. To wait longer for them, [`Producer::close`] or [`Producer::flush`] first. Cancel safety:
    /// dropped, it goes on in the background.
    pub async fn close(self) {
        let (done, ended) = oneshot::channel();
        if self.commands.send(Command::Close { done }).is_ok() {
            // An error means that it had ended already.
            let _ended: Result<(), _> = ended.await;
        }
    }
}

pub(crate) fn parse_address(text: &str) -> Result<Address, Error> {
    Address::parse(text).map_err(|error| Error::Name { given: text.to_owned(), error })
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}
