//! What every broker must do here, whatever it is. One more broker is one more file and one line in [`crate::run`].

pub(crate) mod amqp;
pub(crate) mod nats;
pub(crate) mod rabbitmq;
pub(crate) mod redis;
pub(crate) mod resp;
pub(crate) mod swarmmq;
pub(crate) mod wire;

use std::path::PathBuf;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    failure::Outcome,
    plan::{InOrder, Load},
    process::Pid,
};

/// Where programs are, and where they may write.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Empty, and removed afterwards.
    pub(crate) directory: PathBuf,
    pub(crate) swarmmq: PathBuf,
    pub(crate) nats: Option<PathBuf>,
}

/// What a row of the tables is about, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(crate) version: String,
    /// Nodes, copies, how it is configured.
    pub(crate) setup: String,
    /// What a confirmation means.
    pub(crate) durability: String,
    pub(crate) in_order: InOrder,
    /// Whether a node can be lost: it has copies.
    pub(crate) replicated: bool,
}

/// A broker that runs. Dropped, its processes end and its files go.
pub(crate) trait Broker: Sized {
    type Connector: Connector;

    /// Starts all nodes; returns when they serve.
    fn start(place: &Place, configuration: &str) -> Outcome<Self>;

    fn describe(&self) -> &Description;

    /// The first process of every node that runs now.
    fn nodes(&self) -> Vec<Pid>;

    /// Makes an empty queue, stream or address for a load, which nobody else uses.
    async fn create(&mut self, name: &str, load: Load) -> Outcome<()>;

    async fn remove(&mut self, name: &str) -> Outcome<()>;

    /// How clients of the queue are made, on the threads where they live.
    fn connector(&self, name: &str, load: Load) -> Outcome<Self::Connector>;

    /// Kills the node that leads the queue.
    async fn kill_leader(&mut self, name: &str) -> Outcome<()>;

    /// Starts what was killed; returns when all copies are there again.
    async fn mend(&mut self, name: &str) -> Outcome<()>;
}

/// Makes clients. In a failover their own node is not the one that is killed.
pub(crate) trait Connector: Clone + Send + 'static {
    type Producer: Producer;
    type Consumer: Consumer;

    async fn producer(&self, name: &str, number: u16) -> Outcome<Self::Producer>;
    async fn consumer(&self, name: &str) -> Outcome<Self::Consumer>;
}

/// Publishes with confirmation. What was handed over is repeated until it is confirmed.
pub(crate) trait Producer {
    /// Hands a message over, without waiting for its confirmation. What is buffered leaves with the next `confirmed`.
    async fn send(&mut self, sequence: u32, body: Bytes) -> Outcome<()>;

    /// Waits for confirmations; adds their sequences. Cancel safe.
    async fn confirmed(&mut self, sequences: &mut Vec<u32>) -> Outcome<()>;

    /// Takes leave. How many messages had to be sent again.
    async fn close(self) -> u64;
}

/// Receives with explicit acknowledgement.
pub(crate) trait Consumer {
    /// What an acknowledgement needs.
    type Token;

    /// Waits for messages; adds all that are there. Cancel safe.
    async fn receive(&mut self, messages: &mut Vec<Received<Self::Token>>) -> Outcome<()>;

    /// Done with it. What is buffered leaves with the next `receive`.
    async fn acknowledge(&mut self, token: Self::Token) -> Outcome<()>;

    async fn close(self);
}

/// A message.
#[derive(Debug)]
pub(crate) struct Received<Token> {
    pub(crate) body: Bytes,
    /// The broker says that it may have been delivered before.
    pub(crate) again: bool,
    pub(crate) token: Token,
}
