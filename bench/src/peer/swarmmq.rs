//! SwarmMQ as it ships: `swarmmq dev up --nodes 5`, three copies, TLS, sealed by the clients, synced before a confirmation.

use std::{
    collections::VecDeque,
    fs,
    future::poll_fn,
    path::PathBuf,
    pin::Pin,
    process::Command,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use serde::Deserialize;
use swarmmq_client::{
    Address, AdminRequest, ClientKeyring, Consumer as ClientConsumer, Message, Options, Order, Pending,
    Producer as ClientProducer, ProducerOptions, Received as ClientReceived, StartAt, SubscribeOptions,
    SwarmMq,
};
use tokio::task::JoinSet;

use super::{Broker, Connector, Consumer, Description, Place, Producer, Received};
use crate::{
    failure::{During, Failure, Outcome},
    plan::{IN_FLIGHT, InOrder, KEYS, Load},
    process::{Pid, check_interrupted, output_of, wait_until},
};

const GROUP: &str = "bench";
/// As many as `swarmmq bench` has.
const CREDIT_MESSAGES: u32 = 1024;
const CREDIT_BYTES: u64 = 32 << 20;
/// Time for a message's fate: longer than any failover.
const DEADLINE: Duration = Duration::from_secs(60);
/// Messages of a backlog: how many are under way while it is made, and how long they are.
const FILL_IN_FLIGHT: usize = 4096;
const FILL_BYTES: usize = 128;
const CONNECTS_AT_ONCE: usize = 64;
const HEALTHY_TIME_MAX: Duration = Duration::from_secs(60);

/// A cluster.
pub(crate) struct Swarm {
    program: PathBuf,
    directory: PathBuf,
    description: Description,
    setup: Setup,
    killed: Option<u16>,
}

/// How many nodes there are, and what there is besides the load that is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) nodes: u16,
    pub(crate) order: Order,
    /// Clients that are connected and do nothing.
    pub(crate) connections: u32,
    /// Addresses that exist.
    pub(crate) addresses: u32,
    /// Groups, each with a consumer that settles everything.
    pub(crate) groups: u16,
    /// Messages that a group nobody consumes in has before it.
    pub(crate) backlog: u64,
}

impl Setup {
    pub(crate) const PLAIN: Self =
        Self { nodes: 5, order: Order::Total, connections: 0, addresses: 1, groups: 1, backlog: 0 };
}

#[derive(Deserialize)]
struct Cluster {
    keyring: PathBuf,
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: u16,
    pid: Option<u32>,
    client: String,
}

#[derive(Deserialize)]
struct AddressInfo {
    shards: Vec<ShardInfo>,
}

#[derive(Deserialize)]
struct ShardInfo {
    /// 0: none.
    leader: u16,
}

#[derive(Deserialize)]
struct Status {
    healthy: bool,
}

impl Swarm {
    /// Starts a cluster like that; what there is besides comes with the address of a load.
    pub(crate) fn with(place: &Place, setup: Setup) -> Outcome<Self> {
        let (in_order, spread) = match setup.order {
            Order::None => (InOrder::None, "one address of order `none` (16 shards)"),
            Order::Key => (InOrder::Key, "one address of order `key` (16 shards, 256 keys)"),
            Order::Total => (InOrder::Producer, "one address of order `total` (one shard)"),
        };
        let copies = if setup.nodes < 3 { 1 } else { 3 };
        let version = output_of(Command::new(&place.swarmmq).arg("--version"))?.trim().to_owned();
        let swarm = Self {
            program: place.swarmmq.clone(),
            directory: place.directory.join("swarm"),
            description: Description {
                version,
                setup: format!("{} nodes, {copies} copies, {spread}, sealed, TLS", setup.nodes),
                durability: "`fdatasync` on a majority".into(),
                in_order,
                replicated: true,
            },
            setup,
            killed: None,
        };
        swarm.dev(&["up", "--nodes", &setup.nodes.to_string()])?;
        swarm.wait_healthy()?;
        Ok(swarm)
    }

    fn cluster(&self) -> Outcome<Cluster> {
        let file = self.directory.join("cluster.json");
        let text = fs::read_to_string(&file).during(file.display())?;
        serde_json::from_str(&text).during(file.display())
    }

    fn dev(&self, words: &[&str]) -> Outcome<String> {
        output_of(Command::new(&self.program).arg("dev").args(words).arg("--dir").arg(&self.directory))
    }

    /// A question to the cluster, answered in JSON.
    fn ask<T: for<'de> Deserialize<'de>>(&self, words: &[&str]) -> Outcome<T> {
        let cluster = self.cluster()?;
        let servers: Vec<String> = running(&cluster).map(|node| node.client.clone()).collect();
        let said = output_of(
            Command::new(&self.program)
                .args(words)
                .arg("--json")
                .args(["--servers", &servers.join(",")])
                .arg("--keyring")
                .arg(&cluster.keyring),
        )?;
        serde_json::from_str(said.trim()).during(format!("swarmmq {}", words.join(" ")))
    }

    fn leader(&self, name: &str) -> Outcome<u16> {
        wait_until("the address has a leader", HEALTHY_TIME_MAX, || {
            let info: AddressInfo = self.ask(&["address", "info", name])?;
            Ok(info.shards.first().map(|shard| shard.leader).filter(|leader| *leader != 0))
        })
    }

    fn wait_healthy(&self) -> Outcome<()> {
        wait_until("the cluster is healthy", HEALTHY_TIME_MAX, || {
            // Until then the answer comes with a bad exit code.
            Ok(self.ask::<Status>(&["status"]).ok().filter(|status| status.healthy).map(|_| ()))
        })
    }
}

fn running(cluster: &Cluster) -> impl Iterator<Item = &Node> {
    cluster.nodes.iter().filter(|node| node.pid.is_some())
}

impl Drop for Swarm {
    fn drop(&mut self) {
        for pid in self.nodes() {
            // Each leads a group of its own.
            pid.kill_group();
        }
    }
}

impl Broker for Swarm {
    type Connector = SwarmConnector;

    fn start(place: &Place, configuration: &str) -> Outcome<Self> {
        let order = match configuration {
            "spread" => Order::None,
            "key" => Order::Key,
            _ => Order::Total,
        };
        Self::with(place, Setup { order, ..Setup::PLAIN })
    }

    fn describe(&self) -> &Description {
        &self.description
    }

    fn nodes(&self) -> Vec<Pid> {
        let Ok(cluster) = self.cluster() else { return Vec::new() };
        running(&cluster).filter_map(|node| node.pid.map(Pid)).collect()
    }

    async fn create(&mut self, name: &str, _load: Load) -> Outcome<()> {
        let address = Address::parse(name).during(name)?;
        let client = self.connector(name, Load::Idle)?.connect().await?;
        client.resolve(&address, true, Some(self.setup.order)).await.during("cannot make the address")?;
        for number in 1..self.setup.addresses {
            let other = Address::parse(&format!("{name}.other-{number}")).during(name)?;
            client.resolve(&other, true, Some(Order::Total)).await.during("cannot make another address")?;
        }
        if self.setup.backlog > 0 {
            fill(&client, name, self.setup.backlog).await?;
        }
        client.close().await;
        Ok(())
    }

    async fn remove(&mut self, name: &str) -> Outcome<()> {
        if self.setup.backlog > 0 {
            // It goes with the cluster; removing millions of messages takes longer than a client waits.
            return Ok(());
        }
        let address = Address::parse(name).during(name)?;
        let client = self.connector(name, Load::Idle)?.connect().await?;
        let removed = client.admin(AdminRequest::AddressRemove { address, dry_run: false }).await;
        client.close().await;
        removed.during("cannot remove the address").map(|_| ())
    }

    fn connector(&self, name: &str, load: Load) -> Outcome<SwarmConnector> {
        let killed = if let Load::Failover { .. } = load { Some(self.leader(name)?) } else { None };
        let cluster = self.cluster()?;
        let survivors = running(&cluster).filter(|node| Some(node.id) != killed);
        let servers = survivors.map(|node| node.client.clone()).collect();
        Ok(SwarmConnector { keyring: cluster.keyring, servers, setup: self.setup })
    }

    async fn kill_leader(&mut self, name: &str) -> Outcome<()> {
        let leader = self.leader(name)?;
        self.killed = Some(leader);
        self.dev(&["kill", &leader.to_string()]).map(|_| ())
    }

    async fn mend(&mut self, _name: &str) -> Outcome<()> {
        if let Some(node) = self.killed.take() {
            self.dev(&["start", &node.to_string()])?;
        }
        self.wait_healthy()
    }
}

/// Publishes `count` small messages that a group must keep in which nobody consumes.
async fn fill(client: &SwarmMq, name: &str, count: u64) -> Outcome<()> {
    let options =
        SubscribeOptions { group: "behind".into(), credit_messages: 1, ..SubscribeOptions::default() };
    client.subscribe(name, options).await.during("cannot make a group")?.close().await;
    let options =
        ProducerOptions { in_flight: FILL_IN_FLIGHT, deadline: DEADLINE, ..ProducerOptions::default() };
    let producer = client.producer(options);
    let mut open = VecDeque::with_capacity(FILL_IN_FLIGHT);
    for number in 0..count {
        check_interrupted()?;
        let body = Bytes::from(format!("{number:0FILL_BYTES$}"));
        open.push_back(producer.enqueue(Message::new(name, body)).await.during("cannot fill")?);
        if open.len() >= FILL_IN_FLIGHT
            && let Some(oldest) = open.pop_front()
        {
            oldest.await.during("cannot fill")?;
        }
    }
    for pending in open {
        pending.await.during("cannot fill")?;
    }
    producer.close().await;
    Ok(())
}

/// Connects to the nodes.
#[derive(Clone)]
pub(crate) struct SwarmConnector {
    keyring: PathBuf,
    servers: Vec<String>,
    setup: Setup,
}

impl SwarmConnector {
    async fn connect(&self) -> Outcome<SwarmMq> {
        let keyring = ClientKeyring::load(&self.keyring).during("cannot read the keyring")?;
        let options = Options::new(self.servers.clone(), keyring);
        SwarmMq::connect(options).await.during("cannot connect to swarmmq")
    }

    /// Clients that do nothing, some at a time.
    async fn idle(&self) -> Outcome<Vec<SwarmMq>> {
        let mut clients = Vec::new();
        while clients.len() < self.setup.connections as usize {
            check_interrupted()?;
            let count = (self.setup.connections as usize - clients.len()).min(CONNECTS_AT_ONCE);
            clients.extend(try_join_all((0..count).map(|_| self.connect())).await?);
        }
        Ok(clients)
    }
}

impl Connector for SwarmConnector {
    type Producer = SwarmProducer;
    type Consumer = SwarmConsumer;

    async fn producer(&self, name: &str, number: u16) -> Outcome<SwarmProducer> {
        let client = self.connect().await?;
        let producer = client.producer(ProducerOptions {
            in_flight: IN_FLIGHT,
            deadline: DEADLINE,
            order: Some(self.setup.order),
            ..ProducerOptions::default()
        });
        let keys = match self.setup.order {
            Order::Key => (0..KEYS).map(|key| Bytes::from(format!("p{number}k{key}"))).collect(),
            Order::Total | Order::None => Vec::new(),
        };
        let in_order = self.setup.order == Order::Total;
        Ok(SwarmProducer { client, producer, address: name.into(), keys, in_order, open: VecDeque::new() })
    }

    async fn consumer(&self, name: &str) -> Outcome<SwarmConsumer> {
        let client = self.connect().await?;
        let options = SubscribeOptions {
            group: GROUP.into(),
            credit_messages: CREDIT_MESSAGES,
            credit_bytes: CREDIT_BYTES,
            // Behind a backlog that is there before.
            start: Some(StartAt::End),
            ..SubscribeOptions::default()
        };
        let mut others = JoinSet::new();
        for number in 1..self.setup.groups {
            let options = SubscribeOptions { group: format!("{GROUP}-{number}"), ..options.clone() };
            let mut other = client.subscribe(name, options).await.during("cannot subscribe")?;
            others.spawn_local(async move {
                while let Some(Ok(received)) = other.next().await {
                    drop(received.ack_later());
                }
            });
        }
        let consumer = client.subscribe(name, options).await.during("cannot subscribe")?;
        Ok(SwarmConsumer { client, consumer, _idle: self.idle().await?, _others: others })
    }
}

/// One connection that publishes.
pub(crate) struct SwarmProducer {
    client: SwarmMq,
    producer: ClientProducer,
    address: String,
    /// By sequence; none unless the order is by key.
    keys: Vec<Bytes>,
    /// They lie in one shard, so confirmations come in order.
    in_order: bool,
    open: VecDeque<(u32, Pending)>,
}

impl SwarmProducer {
    /// Takes the answers that are there. From one shard they come in order, so the oldest message tells whether to go on.
    fn take(&mut self, context: &mut Context<'_>, sequences: &mut Vec<u32>) -> Poll<Outcome<()>> {
        let before = sequences.len();
        let mut failure = None;
        if self.in_order {
            while let Some((sequence, pending)) = self.open.front_mut() {
                let Poll::Ready(result) = Pin::new(pending).poll(context) else { break };
                match result {
                    Ok(_) => sequences.push(*sequence),
                    Err(error) => failure = Some(error),
                }
                self.open.pop_front();
            }
        } else {
            self.open.retain_mut(|(sequence, pending)| match Pin::new(pending).poll(context) {
                Poll::Ready(Ok(_)) => {
                    sequences.push(*sequence);
                    false
                }
                Poll::Ready(Err(error)) => {
                    failure = Some(error);
                    false
                }
                Poll::Pending => true,
            });
        }
        match failure {
            Some(error) => Poll::Ready(Err(Failure::broken(format!("a message was not confirmed: {error}")))),
            None if sequences.len() > before => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl Producer for SwarmProducer {
    async fn send(&mut self, sequence: u32, body: Bytes) -> Outcome<()> {
        let mut message = Message::new(self.address.as_str(), body);
        if !self.keys.is_empty() {
            message.key = Some(self.keys[(sequence % KEYS) as usize].clone());
        }
        let pending = self.producer.enqueue(message).await.during("cannot publish")?;
        self.open.push_back((sequence, pending));
        Ok(())
    }

    async fn confirmed(&mut self, sequences: &mut Vec<u32>) -> Outcome<()> {
        poll_fn(|context| self.take(context, sequences)).await
    }

    async fn close(self) -> u64 {
        self.producer.close().await;
        self.client.close().await;
        // What the library repeats it does not tell; the nodes take it once.
        0
    }
}

/// One connection that consumes.
pub(crate) struct SwarmConsumer {
    client: SwarmMq,
    consumer: ClientConsumer,
    /// Connected as long as this is.
    _idle: Vec<SwarmMq>,
    /// Consumers of other groups.
    _others: JoinSet<()>,
}

impl Consumer for SwarmConsumer {
    type Token = ClientReceived;

    async fn receive(&mut self, messages: &mut Vec<Received<ClientReceived>>) -> Outcome<()> {
        let ended = || Failure::broken("the subscription has ended");
        let mut next = Some(self.consumer.next().await.ok_or_else(ended)?);
        while let Some(result) = next {
            let token = result.during("cannot receive")?;
            messages.push(Received { body: token.body.clone(), again: token.attempt > 1, token });
            next = if messages.len() < CREDIT_MESSAGES as usize { self.consumer.try_next() } else { None };
        }
        Ok(())
    }

    async fn acknowledge(&mut self, token: ClientReceived) -> Outcome<()> {
        // It happens all the same; what does not hold shows as a duplicate.
        drop(token.ack_later());
        Ok(())
    }

    async fn close(self) {
        self.consumer.close().await;
        self.client.close().await;
    }
}
