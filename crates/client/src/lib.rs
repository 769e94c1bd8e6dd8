//! How a program publishes and consumes.
//!
//! Messages are sealed in this process and opened in the receiver's; `send` returns when a message is on stable storage,
//! exactly once; `ack` fails visibly when the lease was lost. Connections are mended by themselves, and what was
//! unanswered is repeated with the same bytes.

mod connection;
mod consumer;
mod driver;
mod error;
mod producer;

use std::time::Duration;

use swarmmq_protocol::{
    admin::{AdminAnswer, AdminRequest, Order},
    frame::StartAt,
    id::{Address, ClusterId},
};
use swarmmq_seal::ClientKeyring;
use tokio::sync::{mpsc, oneshot};

use self::{
    connection::Reply,
    driver::{Command, Driver},
};
pub use self::{
    consumer::{Consumer, PendingAck, Received, Seen, SubscribeOptions},
    error::{Error, SendError, SettleError},
    producer::{Message, Pending, Producer, ProducerOptions, Receipt},
};

/// Where to connect and as whom.
#[derive(Clone)]
pub struct Options {
    /// HOST:PORT of any nodes.
    pub servers: Vec<String>,
    /// Keys and access token.
    pub keyring: ClientKeyring,
    /// Name told to the node.
    pub principal: String,
    /// Time for the first connection.
    pub connect_timeout: Duration,
}

impl Options {
    /// With the usual time to connect.
    pub fn new(servers: Vec<String>, keyring: ClientKeyring) -> Self {
        Self { servers, keyring, principal: "client".into(), connect_timeout: Duration::from_secs(10) }
    }
}

/// A connection to a cluster, shared by its clones. It mends itself; it ends with [`SwarmMq::close`] or the last clone.
#[derive(Clone)]
pub struct SwarmMq {
    commands: mpsc::UnboundedSender<Command>,
    cluster: ClusterId,
    shard_count: u32,
}

impl SwarmMq {
    /// Connects to the first server that answers and proves itself.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (ready, first) = oneshot::channel();
        let keeper = commands.downgrade();
        tokio::spawn(Driver::new(options, inbox, keeper, ready).run());
        let (cluster, shard_count) = first.await.map_err(|_| Error::Closed)??;
        Ok(Self { commands, cluster, shard_count })
    }

    /// Which cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its data shards.
    pub fn shard_count(&self) -> u32 {
        self.shard_count
    }

    /// A producer session of its own.
    pub fn producer(&self, options: ProducerOptions) -> Producer {
        Producer::new(self.commands.clone(), options)
    }

    /// Joins a group of an address. Returns when the cluster feeds it.
    pub async fn subscribe(&self, address: &str, options: SubscribeOptions) -> Result<Consumer, Error> {
        Consumer::join(self.commands.clone(), address, options).await
    }

    /// Asks the cluster. `None`: done, nothing to tell.
    pub async fn admin(&self, request: AdminRequest) -> Result<Option<AdminAnswer>, Error> {
        let deadline = if request == AdminRequest::Status { 3 } else { 30 };
        self.ask(Duration::from_secs(deadline), |reply| Command::Admin { request, reply }).await
    }

    /// The order of an address; made if `create`.
    pub async fn resolve(
        &self,
        address: &Address,
        create: bool,
        order: Option<Order>,
    ) -> Result<Order, Error> {
        let address = address.clone();
        self.ask(Duration::from_secs(30), |reply| Command::Resolve { address, create, order, reply }).await
    }

    /// Looks at the messages of an address without leasing them, oldest first in every shard.
    pub async fn peek(&self, address: &str, start: Option<StartAt>) -> Result<Vec<Seen>, Error> {
        consumer::peek(self, address, start).await
    }

    pub(crate) async fn ask<T>(
        &self,
        deadline: Duration,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| Error::Closed)?;
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::Unknown {
                code: swarmmq_protocol::error::Code::Deadline,
                message: format!("no answer in {} s", deadline.as_secs()),
            }),
        }
    }

    /// Ends all sessions of this connection: producers finish, consumers give back what they hold.
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
