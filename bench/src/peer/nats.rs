//! NATS JetStream: three servers, a stream with three copies in files, a durable pull consumer, explicit acknowledgement.

use std::{
    collections::BTreeMap,
    fs,
    future::poll_fn,
    path::{Path, PathBuf},
    pin::Pin,
    process::Command,
    task::{self, Poll},
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions,
    jetstream::{
        self, Context, Message,
        consumer::{
            AckPolicy, PullConsumer,
            pull::{self, MessagesError},
        },
        context::{PublishAckFuture, PublishError},
        message::PublishMessage,
        stream::{ClusterInfo, Config, StorageType},
    },
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Broker, Connector, Consumer, Description, Place, Producer, Received};
use crate::{
    failure::{During, Failure, Outcome},
    plan::{InOrder, Load},
    process::{Guarded, Pid, free_ports, listens, output_of, wait_until},
};

const NODES: usize = 3;
const START_TIME_MAX: Duration = Duration::from_secs(60);
const ACK_PENDING_MAX: i64 = 20_000;
const BATCH: usize = 500;
/// After an error the newest pull has so long to recover by itself.
const PULL_PATIENCE: Duration = Duration::from_secs(1);
/// Pulls at a time.
const PULLS_MAX: usize = 16;
/// Pause before what was refused is tried again. One message tries for all: a thousand would be a storm.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// After which a message without an answer is tried again, in a failover; with its id, so that it counts once.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);
/// The same otherwise: long enough for a queue that is full.
const ANSWER_TIME_MAX_QUIET: Duration = Duration::from_secs(30);

/// Three servers.
pub(crate) struct Nats {
    program: PathBuf,
    directory: PathBuf,
    ports: Vec<u16>,
    nodes: Vec<Option<Guarded>>,
    description: Description,
}

impl Nats {
    fn start_node(&mut self, index: usize) -> Outcome<()> {
        let name = format!("n{}", index + 1);
        let log = self.directory.join(format!("{name}.log"));
        let config = self.directory.join(format!("{name}.conf"));
        self.nodes[index] = Some(Guarded::start(Command::new(&self.program).arg("-c").arg(config), &log)?);
        let port = self.ports[index];
        wait_until("a NATS server listens", START_TIME_MAX, || {
            self.nodes[index].as_mut().expect("started above").check()?;
            Ok(listens(port).then_some(()))
        })
    }

    async fn context(&self) -> Outcome<Context> {
        let servers: Vec<String> = self.addresses(None);
        let client = connect(&servers).await?;
        Ok(jetstream::new(client))
    }

    /// Of the servers that run, without one.
    fn addresses(&self, without: Option<usize>) -> Vec<String> {
        (0..NODES)
            .filter(|index| self.nodes[*index].is_some() && Some(*index) != without)
            .map(|index| format!("127.0.0.1:{}", self.ports[index]))
            .collect()
    }

    async fn cluster_of(&self, name: &str) -> Outcome<ClusterInfo> {
        let context = self.context().await?;
        let mut stream = context.get_stream(name).await.during("cannot look at the stream")?;
        let info = stream.info().await.during("cannot look at the stream")?;
        info.cluster.clone().ok_or_else(|| Failure::broken("the stream has no copies"))
    }

    async fn leader(&self, name: &str) -> Outcome<usize> {
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            let leader = self.cluster_of(name).await.ok().and_then(|cluster| cluster.leader);
            let number = leader.and_then(|leader| leader.strip_prefix('n')?.parse::<usize>().ok());
            match number {
                Some(number) if (1..=NODES).contains(&number) => return Ok(number - 1),
                _ if Instant::now() > deadline => return Err(Failure::broken("the stream has no leader")),
                _ => sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// Waits until every copy is up to date.
    async fn wait_whole(&self, name: &str) -> Outcome<()> {
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            let whole = self.cluster_of(name).await.is_ok_and(|cluster| {
                cluster.leader.is_some()
                    && cluster.replicas.len() == NODES - 1
                    && cluster.replicas.iter().all(|replica| replica.current && !replica.offline)
            });
            if whole {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::broken("the copies of the stream do not come up to date"));
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Broker for Nats {
    type Connector = NatsConnector;

    fn start(place: &Place, configuration: &str) -> Outcome<Self> {
        let program = place.nats.clone().ok_or_else(|| Failure::Absent {
            what: "nats-server".into(),
            install: "bash bench/peers.sh, or --nats PATH".into(),
        })?;
        let always = configuration == "always";
        let version = output_of(Command::new(&program).arg("--version"))?.trim().to_owned();
        let ports = free_ports(2 * NODES)?;
        let (clients, routes) = ports.split_at(NODES);
        for index in 0..NODES {
            let config = config(&place.directory, index, clients, routes, always);
            fs::write(place.directory.join(format!("n{}.conf", index + 1)), config)?;
        }
        let mut nats = Self {
            program,
            directory: place.directory.clone(),
            ports: clients.to_vec(),
            nodes: (0..NODES).map(|_| None).collect(),
            description: Description {
                version,
                setup: format!(
                    "3 servers, stream R3, file storage, {}, plain text",
                    if always { "`sync_interval: always`" } else { "default `sync_interval`" }
                ),
                durability: if always {
                    "synced before it is confirmed, in groups".into()
                } else {
                    "page cache of a majority; synced every 2 minutes".into()
                },
                in_order: InOrder::Producer,
                replicated: true,
            },
        };
        (0..NODES).try_for_each(|index| nats.start_node(index))?;
        Ok(nats)
    }

    fn describe(&self) -> &Description {
        &self.description
    }

    fn nodes(&self) -> Vec<Pid> {
        self.nodes.iter().flatten().map(Guarded::pid).collect()
    }

    async fn create(&mut self, name: &str, _load: Load) -> Outcome<()> {
        let context = self.context().await?;
        let config = Config {
            name: name.into(),
            subjects: vec![subject(name)],
            num_replicas: NODES,
            storage: StorageType::File,
            ..Config::default()
        };
        let deadline = Instant::now() + START_TIME_MAX;
        let stream = loop {
            match context.create_stream(config.clone()).await {
                Ok(stream) => break stream,
                // The servers have yet to meet and to elect a leader.
                Err(error) if Instant::now() > deadline => {
                    return Err(Failure::broken(format!("cannot make the stream: {error}")));
                }
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        };
        self.wait_whole(name).await?;
        let consumer = pull::Config {
            durable_name: Some(name.into()),
            ack_policy: AckPolicy::Explicit,
            max_ack_pending: ACK_PENDING_MAX,
            ..pull::Config::default()
        };
        stream.create_consumer(consumer).await.during("cannot make the consumer")?;
        Ok(())
    }

    async fn remove(&mut self, name: &str) -> Outcome<()> {
        self.context().await?.delete_stream(name).await.during("cannot remove the stream")?;
        Ok(())
    }

    fn connector(&self, name: &str, load: Load) -> Outcome<NatsConnector> {
        let fails_over = matches!(load, Load::Failover { .. });
        let without =
            if fails_over { Some(crate::load::runtime()?.block_on(self.leader(name))?) } else { None };
        Ok(NatsConnector { servers: self.addresses(without), fails_over })
    }

    async fn kill_leader(&mut self, name: &str) -> Outcome<()> {
        let leader = self.leader(name).await?;
        if let Some(mut node) = self.nodes[leader].take() {
            node.kill();
        }
        Ok(())
    }

    async fn mend(&mut self, name: &str) -> Outcome<()> {
        for index in 0..NODES {
            if self.nodes[index].is_none() {
                self.start_node(index)?;
            }
        }
        self.wait_whole(name).await
    }
}

fn config(directory: &Path, index: usize, clients: &[u16], routes: &[u16], always: bool) -> String {
    let name = format!("n{}", index + 1);
    let store = directory.join(&name);
    let sync = if always { "sync_interval: always" } else { "" };
    let seeds: Vec<String> = routes.iter().map(|port| format!("nats-route://127.0.0.1:{port}")).collect();
    format!(
        "server_name: {name}\nlisten: \"127.0.0.1:{}\"\njetstream {{ store_dir: \"{}\"\n {sync} }}\n\
         cluster {{ name: bench\n listen: \"127.0.0.1:{}\"\n routes: [{}] }}\n",
        clients[index],
        store.display(),
        routes[index],
        seeds.join(", ")
    )
}

fn subject(name: &str) -> String {
    format!("{name}.in")
}

async fn connect(servers: &[String]) -> Outcome<Client> {
    ConnectOptions::new()
        .ignore_discovered_servers()
        .connect(servers.to_vec())
        .await
        .during("cannot connect to NATS")
}

/// Connects to the servers.
#[derive(Clone)]
pub(crate) struct NatsConnector {
    servers: Vec<String>,
    fails_over: bool,
}

impl NatsConnector {
    /// To another server for each number, as long as there are some.
    async fn context(&self, number: u16) -> Outcome<Context> {
        let mut servers = self.servers.clone();
        let turn = usize::from(number) % servers.len().max(1);
        servers.rotate_left(turn);
        servers.truncate(1);
        let mut context = jetstream::new(connect(&servers).await?);
        context.set_timeout(if self.fails_over { ANSWER_TIME_MAX } else { ANSWER_TIME_MAX_QUIET });
        Ok(context)
    }
}

impl Connector for NatsConnector {
    type Producer = NatsProducer;
    type Consumer = NatsConsumer;

    async fn producer(&self, name: &str, number: u16) -> Outcome<NatsProducer> {
        Ok(NatsProducer {
            context: self.context(number).await?,
            subject: subject(name),
            ids: self.fails_over.then_some(number),
            open: FuturesUnordered::new(),
            refused: BTreeMap::new(),
            probe: None,
            retry_at: None,
            retried: 0,
        })
    }

    async fn consumer(&self, name: &str) -> Outcome<NatsConsumer> {
        let context = self.context(0).await?;
        let consumer: PullConsumer =
            context.get_consumer_from_stream(name, name).await.during("cannot find the consumer")?;
        let pulls = vec![Box::pin(open(&consumer).await?)];
        Ok(NatsConsumer { consumer, pulls, opened_at: Instant::now(), fails_over: self.fails_over })
    }
}

/// A message and how it ended.
type Answer = (u32, Bytes, Result<(), PublishError>);

/// A message that is to be sent.
struct Waiting {
    body: Bytes,
    /// It was, without success.
    was_sent: bool,
}

/// One connection that publishes.
pub(crate) struct NatsProducer {
    context: Context,
    subject: String,
    /// The number of this producer, if messages have ids, so that repeating them is safe.
    ids: Option<u16>,
    open: FuturesUnordered<Pin<Box<dyn Future<Output = Answer>>>>,
    /// Not confirmed, to be sent again; and what came after them.
    refused: BTreeMap<u32, Waiting>,
    /// The one of them that tries whether the rest may follow.
    probe: Option<u32>,
    retry_at: Option<Instant>,
    retried: u64,
}

impl NatsProducer {
    fn message(&self, sequence: u32, body: &Bytes) -> PublishMessage {
        let message = PublishMessage::build().payload(body.clone());
        match self.ids {
            Some(number) => message.message_id(format!("{number}-{sequence}")),
            None => message,
        }
    }

    /// What was sent is awaited with the others.
    fn await_answer(&mut self, sequence: u32, body: Bytes, sent: Result<PublishAckFuture, PublishError>) {
        self.open.push(Box::pin(async move {
            let answer = match sent {
                Ok(sent) => sent.await.map(|_| ()),
                Err(error) => Err(error),
            };
            (sequence, body, answer)
        }));
    }

    fn take(&mut self, (sequence, body, answer): Answer, sequences: &mut Vec<u32>) {
        let was_probe = self.probe.take_if(|probe| *probe == sequence).is_some();
        match answer {
            Ok(()) => {
                sequences.push(sequence);
                if !self.refused.is_empty() && (was_probe || self.probe.is_none()) {
                    // The way is free: the rest follows at once.
                    self.probe = None;
                    self.retry_at = Some(Instant::now());
                }
            }
            Err(_) => {
                self.refused.insert(sequence, Waiting { body, was_sent: true });
                if self.probe.is_none() && (was_probe || self.retry_at.is_none()) {
                    self.retry_at = Some(Instant::now() + RETRY_PAUSE);
                }
            }
        }
    }

    /// In order. Never waits: whoever waits for confirmations may be cancelled, and no message may go with that.
    fn retry(&mut self, all: bool) {
        self.retry_at = None;
        while let Some((sequence, waiting)) = self.refused.pop_first() {
            let message = self.message(sequence, &waiting.body);
            let sending = self.context.send_publish(self.subject.clone(), message);
            let Some(sent) = sending.now_or_never() else {
                // The connection takes no more at the moment.
                self.refused.insert(sequence, waiting);
                self.retry_at = Some(Instant::now() + RETRY_PAUSE);
                break;
            };
            self.retried += u64::from(waiting.was_sent);
            self.await_answer(sequence, waiting.body, sent);
            if !all {
                self.probe = Some(sequence);
                break;
            }
        }
    }
}

impl Producer for NatsProducer {
    async fn send(&mut self, sequence: u32, body: Bytes) -> Outcome<()> {
        if self.refused.is_empty() && self.probe.is_none() {
            let message = self.message(sequence, &body);
            let sent = self.context.send_publish(self.subject.clone(), message).await;
            self.await_answer(sequence, body, sent);
        } else {
            // Behind those before it.
            self.refused.insert(sequence, Waiting { body, was_sent: false });
        }
        Ok(())
    }

    async fn confirmed(&mut self, sequences: &mut Vec<u32>) -> Outcome<()> {
        loop {
            let retry_at = self.retry_at;
            let due = async {
                match retry_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(answer) = self.open.next() => {
                    self.take(answer, sequences);
                    while let Some(Some(answer)) = self.open.next().now_or_never() {
                        self.take(answer, sequences);
                    }
                    if !sequences.is_empty() && self.retry_at.is_none_or(|at| at > Instant::now()) {
                        return Ok(());
                    }
                    if !sequences.is_empty() {
                        self.retry(true);
                        return Ok(());
                    }
                }
                () = due => self.retry(false),
            }
        }
    }

    async fn close(self) -> u64 {
        self.retried
    }
}

/// One connection that consumes.
pub(crate) struct NatsConsumer {
    consumer: PullConsumer,
    /// The newest last. Those before it were given up and may still be fed by a server that has not heard of that: what comes
    /// to nobody comes again only after 30 s.
    pulls: Vec<Pin<Box<pull::Stream>>>,
    opened_at: Instant,
    fails_over: bool,
}

impl NatsConsumer {
    /// The next message or error; `None`: there is no pull any more.
    fn poll(&mut self, context: &mut task::Context<'_>) -> Poll<Option<Result<Message, MessagesError>>> {
        for index in (0..self.pulls.len()).rev() {
            match self.pulls[index].poll_next_unpin(context) {
                Poll::Ready(Some(next)) => return Poll::Ready(Some(next)),
                Poll::Ready(None) => drop(self.pulls.remove(index)),
                Poll::Pending => {}
            }
        }
        if self.pulls.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Pulls anew, if the newest pull has had its time.
    async fn open_another(&mut self) {
        if self.pulls.is_empty() || self.opened_at.elapsed() > PULL_PATIENCE {
            self.opened_at = Instant::now();
            if let Ok(another) = open(&self.consumer).await {
                self.pulls.push(Box::pin(another));
                let surplus = self.pulls.len().saturating_sub(PULLS_MAX);
                self.pulls.drain(..surplus);
            }
        }
        if self.pulls.is_empty() {
            sleep(RETRY_PAUSE).await;
        }
    }
}

async fn open(consumer: &PullConsumer) -> Outcome<pull::Stream> {
    consumer
        .stream()
        .max_messages_per_batch(BATCH)
        .expires(Duration::from_secs(5))
        .heartbeat(Duration::from_secs(1))
        .messages()
        .await
        .during("cannot pull")
}

impl Consumer for NatsConsumer {
    type Token = Message;

    async fn receive(&mut self, messages: &mut Vec<Received<Message>>) -> Outcome<()> {
        let mut next = poll_fn(|context| self.poll(context)).await;
        loop {
            match next {
                Some(Ok(token)) => {
                    // Reading it costs the client something, so only where it matters.
                    let again = self.fails_over && token.info().is_ok_and(|info| info.delivered > 1);
                    messages.push(Received { body: token.payload.clone(), again, token });
                }
                Some(Err(_)) | None if self.fails_over => {
                    self.open_another().await;
                    return Ok(());
                }
                Some(Err(error)) => return Err(Failure::broken(format!("cannot receive: {error}"))),
                None => return Err(Failure::broken("the pull has ended")),
            }
            if messages.len() >= BATCH {
                return Ok(());
            }
            match poll_fn(|context| self.poll(context)).now_or_never() {
                Some(more) => next = more,
                None => return Ok(()),
            }
        }
    }

    async fn acknowledge(&mut self, token: Message) -> Outcome<()> {
        token.ack().await.during("cannot acknowledge")
    }

    async fn close(self) {
        // A moment for acknowledgements that are still on their way out.
        let _pulls = self.pulls;
        sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_name_each_other_and_sync_only_where_asked() {
        let of = |always| config(Path::new("d"), 1, &[1, 2, 3], &[4, 5, 6], always);
        let text = of(false);
        assert!(text.contains("server_name: n2") && text.contains("listen: \"127.0.0.1:2\""), "{text}");
        assert!(
            text.contains("nats-route://127.0.0.1:4, nats-route://127.0.0.1:5, nats-route://127.0.0.1:6")
        );
        assert!(!text.contains("sync_interval") && of(true).contains("sync_interval: always"));
    }
}
