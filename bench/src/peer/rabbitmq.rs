//! RabbitMQ: three nodes, a quorum queue with three members, confirmed persistent messages, explicit acknowledgement.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::{
    Broker, Connector, Consumer, Description, Place, Producer, Received,
    amqp::{
        FRAME_BODY, FRAME_HEADER, FRAME_METHOD, GREETING, Method, Said, Value, body_size, put_publish, said,
        take_frame,
    },
    wire::Wire,
};
use crate::{
    failure::{Failure, Outcome},
    plan::{InOrder, Load},
    process::{Guarded, Pid, find_program, free_ports, listens, wait_until},
};

const NODES: usize = 3;
const CHANNEL: u16 = 1;
const PREFETCH: u16 = 2000;
const START_TIME_MAX: Duration = Duration::from_secs(120);
/// Where Debian and the upstream packages put the script that does not change the user.
const SCRIPTS: [&str; 2] = ["/usr/lib/rabbitmq/bin/rabbitmq-server", "/opt/rabbitmq/sbin/rabbitmq-server"];

/// Three nodes and the name service that they find each other by.
pub(crate) struct RabbitMq {
    script: PathBuf,
    directory: PathBuf,
    ports: Vec<u16>,
    distribution_ports: Vec<u16>,
    names_port: u16,
    nodes: Vec<Option<Guarded>>,
    _names: Guarded,
    description: Description,
    /// The node on which the next queue is made, and which leads it.
    leader: usize,
}

impl RabbitMq {
    fn start_node(&mut self, index: usize) -> Outcome<()> {
        let name = format!("r{}", index + 1);
        let data = self.directory.join(&name);
        fs::create_dir_all(&data)?;
        let config = data.join("rabbitmq.conf");
        fs::write(&config, configuration(index, self.ports[index]))?;
        fs::write(data.join("env"), "")?;
        fs::write(data.join("plugins"), "[].\n")?;
        let mut command = Command::new(&self.script);
        command
            .env("HOME", &self.directory)
            // Without a shell around it that would do something when it ends.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("RABBITMQ_NODENAME", format!("{name}@localhost"))
            .env("RABBITMQ_CONF_ENV_FILE", data.join("env"))
            .env("RABBITMQ_CONFIG_FILE", &config)
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", data.join("plugins"))
            .env("RABBITMQ_MNESIA_BASE", data.join("data"))
            .env("RABBITMQ_LOG_BASE", data.join("log"))
            .env("RABBITMQ_PID_FILE", data.join("pid"))
            .env("RABBITMQ_DIST_PORT", self.distribution_ports[index].to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            .env("ERL_EPMD_PORT", self.names_port.to_string());
        self.nodes[index] = Some(Guarded::start(&mut command, &self.directory.join(format!("{name}.log")))?);
        Ok(())
    }

    /// Waits until a node serves clients; it does when it has joined the others.
    fn wait_serving(&mut self, index: usize) -> Outcome<()> {
        let port = self.ports[index];
        wait_until("a RabbitMQ node listens", START_TIME_MAX, || {
            if let Some(node) = &mut self.nodes[index] {
                node.check()?;
            }
            Ok(listens(port).then_some(()))
        })
    }
}

fn configuration(index: usize, port: u16) -> String {
    let mut text = format!("listeners.tcp.1 = 127.0.0.1:{port}\n");
    // The first one waits for nobody.
    if index > 0 {
        text += "cluster_formation.peer_discovery_backend = classic_config\n";
        text += "cluster_formation.classic_config.nodes.1 = r1@localhost\n";
    }
    text
}

fn absent(what: &str) -> Failure {
    Failure::Absent { what: what.into(), install: "apt-get install rabbitmq-server".into() }
}

impl Broker for RabbitMq {
    type Connector = RabbitConnector;

    fn start(place: &Place, _configuration: &str) -> Outcome<Self> {
        let script = SCRIPTS.iter().map(Path::new).find(|script| script.is_file()).map(Path::to_owned);
        let script =
            script.or_else(|| find_program("rabbitmq-server")).ok_or_else(|| absent("rabbitmq-server"))?;
        let epmd = find_program("epmd").ok_or_else(|| absent("epmd, of Erlang"))?;
        let ports = free_ports(2 * NODES + 1)?;
        let names_port = ports[2 * NODES];
        let mut command = Command::new(epmd);
        command.args(["-address", "127.0.0.1", "-port", &names_port.to_string()]);
        let names = Guarded::start(&mut command, &place.directory.join("epmd.log"))?;
        wait_until("epmd listens", START_TIME_MAX, || Ok(listens(names_port).then_some(())))?;
        let mut rabbit = Self {
            script,
            directory: place.directory.clone(),
            ports: ports[..NODES].to_vec(),
            distribution_ports: ports[NODES..2 * NODES].to_vec(),
            names_port,
            nodes: (0..NODES).map(|_| None).collect(),
            _names: names,
            description: Description {
                version: String::new(),
                setup: "3 nodes, quorum queue with 3 members, plain text".into(),
                durability: "write-ahead log synced on a majority, in groups".into(),
                in_order: InOrder::Producer,
                replicated: true,
            },
            leader: NODES - 1,
        };
        rabbit.start_node(0)?;
        rabbit.wait_serving(0)?;
        for index in 1..NODES {
            rabbit.start_node(index)?;
            rabbit.wait_serving(index)?;
        }
        let connection = crate::load::runtime()?.block_on(Connection::open(rabbit.ports[0]))?;
        rabbit.description.version = format!("RabbitMQ {}", connection.version);
        Ok(rabbit)
    }

    fn describe(&self) -> &Description {
        &self.description
    }

    fn nodes(&self) -> Vec<Pid> {
        self.nodes.iter().flatten().map(Guarded::pid).collect()
    }

    async fn create(&mut self, name: &str, _load: Load) -> Outcome<()> {
        // A queue is led by the node on which it was made; by turns, so that each is killed once.
        self.leader = (self.leader + 1) % NODES;
        let mut connection = Connection::open(self.ports[self.leader]).await?;
        let arguments = [
            ("x-queue-type", Value::Text("quorum")),
            ("x-quorum-initial-group-size", Value::Number(NODES as i32)),
            ("x-queue-leader-locator", Value::Text("client-local")),
        ];
        // Durable.
        let declare = Method::new(50, 10).u16(0).short(name).u8(0b10).table(&arguments);
        connection.call(declare, (50, 11)).await
    }

    async fn remove(&mut self, name: &str) -> Outcome<()> {
        let port = self.ports[self.leader];
        let delete = Method::new(50, 40).u16(0).short(name).u8(0);
        Connection::open(port).await?.call(delete, (50, 41)).await
    }

    fn connector(&self, _name: &str, load: Load) -> Outcome<RabbitConnector> {
        let leader = if let Load::Failover { .. } = load { Some(self.leader) } else { None };
        let ports =
            (0..NODES).filter(|index| Some(*index) != leader).map(|index| self.ports[index]).collect();
        Ok(RabbitConnector { ports })
    }

    async fn kill_leader(&mut self, _name: &str) -> Outcome<()> {
        if let Some(mut node) = self.nodes[self.leader].take() {
            node.kill();
        }
        Ok(())
    }

    async fn mend(&mut self, _name: &str) -> Outcome<()> {
        for index in 0..NODES {
            if self.nodes[index].is_none() {
                // The listening socket of the one before must be gone, or its port would answer for the new one.
                let port = self.ports[index];
                wait_until("a killed node has gone", START_TIME_MAX, || Ok((!listens(port)).then_some(())))?;
                self.start_node(index)?;
                self.wait_serving(index)?;
            }
        }
        Ok(())
    }
}

/// Connects to the nodes by turns.
#[derive(Clone)]
pub(crate) struct RabbitConnector {
    ports: Vec<u16>,
}

impl RabbitConnector {
    fn port(&self, number: u16) -> u16 {
        self.ports[usize::from(number) % self.ports.len()]
    }
}

impl Connector for RabbitConnector {
    type Producer = RabbitProducer;
    type Consumer = RabbitConsumer;

    async fn producer(&self, name: &str, number: u16) -> Outcome<RabbitProducer> {
        let mut connection = Connection::open(self.port(number)).await?;
        connection.call(Method::new(85, 10).u8(0), (85, 11)).await?;
        Ok(RabbitProducer { connection, queue: name.into(), open: VecDeque::new(), first_tag: 1, retried: 0 })
    }

    async fn consumer(&self, name: &str) -> Outcome<RabbitConsumer> {
        let mut connection = Connection::open(self.port(0)).await?;
        connection.call(Method::new(60, 10).u32(0).u16(PREFETCH).u8(0), (60, 11)).await?;
        let consume = Method::new(60, 20).u16(0).short(name).short("bench").u8(0).table(&[]);
        connection.call(consume, (60, 21)).await?;
        Ok(RabbitConsumer { connection, coming: None })
    }
}

/// One connection with one channel.
struct Connection {
    wire: Wire,
    version: String,
}

impl Connection {
    async fn open(port: u16) -> Outcome<Self> {
        let mut connection = Self { wire: Wire::connect(port).await?, version: String::new() };
        connection.wire.out.extend_from_slice(GREETING);
        match connection.said().await? {
            Said::Start { version } => connection.version = version,
            other => return Err(Failure::broken(format!("RabbitMQ said {other:?}"))),
        }
        let start = Method::new(10, 11).table(&[]).short("PLAIN").long(b"\0guest\0guest").short("en_US");
        start.put(&mut connection.wire.out, 0);
        match connection.said().await? {
            Said::Tune { channels_max, frame_max } => {
                // No heartbeats: a failover here closes sockets.
                let tune = Method::new(10, 31).u16(channels_max).u32(frame_max).u16(0);
                tune.put(&mut connection.wire.out, 0);
            }
            other => return Err(Failure::broken(format!("RabbitMQ said {other:?}"))),
        }
        Method::new(10, 40).short("/").short("").u8(0).put(&mut connection.wire.out, 0);
        connection.await_done((10, 41)).await?;
        connection.call(Method::new(20, 10).short(""), (20, 11)).await?;
        Ok(connection)
    }

    /// Calls a method and waits for its answer.
    async fn call(&mut self, method: Method, answer: (u16, u16)) -> Outcome<()> {
        method.put(&mut self.wire.out, CHANNEL);
        self.await_done(answer).await
    }

    async fn await_done(&mut self, (class, number): (u16, u16)) -> Outcome<()> {
        match self.said().await? {
            Said::Done(c, n) if (c, n) == (class, number) => Ok(()),
            other => Err(Failure::broken(format!("RabbitMQ said {other:?}"))),
        }
    }

    /// The next method. For conversations before messages flow.
    async fn said(&mut self) -> Outcome<Said> {
        loop {
            while let Some(frame) = take_frame(&mut self.wire.input)? {
                if frame.kind == FRAME_METHOD {
                    return match said(frame.payload)? {
                        Said::Closed(why) => Err(Failure::broken(format!("RabbitMQ closed: {why}"))),
                        other => Ok(other),
                    };
                }
            }
            self.wire.turn().await?;
        }
    }
}

/// One connection that publishes.
pub(crate) struct RabbitProducer {
    connection: Connection,
    queue: String,
    /// By tag, from `first_tag` on; `None`: its fate is known.
    open: VecDeque<Option<(u32, Bytes)>>,
    first_tag: u64,
    retried: u64,
}

impl RabbitProducer {
    fn publish(&mut self, sequence: u32, body: Bytes) {
        put_publish(&mut self.connection.wire.out, CHANNEL, &self.queue, &body);
        self.open.push_back(Some((sequence, body)));
    }

    /// The messages whose fate is told by a tag.
    fn told(&mut self, tag: u64, multiple: bool) -> Vec<(u32, Bytes)> {
        let Some(index) = tag.checked_sub(self.first_tag).map(|index| index as usize) else {
            return Vec::new();
        };
        let from = if multiple { 0 } else { index };
        let until = (index + 1).min(self.open.len());
        let told = (from..until).filter_map(|index| self.open[index].take()).collect();
        while self.open.front().is_some_and(Option::is_none) {
            self.open.pop_front();
            self.first_tag += 1;
        }
        told
    }
}

impl Producer for RabbitProducer {
    async fn send(&mut self, sequence: u32, body: Bytes) -> Outcome<()> {
        self.publish(sequence, body);
        Ok(())
    }

    async fn confirmed(&mut self, sequences: &mut Vec<u32>) -> Outcome<()> {
        while sequences.is_empty() {
            self.connection.wire.turn().await?;
            while let Some(frame) = take_frame(&mut self.connection.wire.input)? {
                if frame.kind != FRAME_METHOD {
                    continue;
                }
                match said(frame.payload)? {
                    Said::Confirmed { tag, multiple } => {
                        sequences.extend(self.told(tag, multiple).into_iter().map(|(sequence, _)| sequence));
                    }
                    Said::Refused { tag, multiple } => {
                        for (sequence, body) in self.told(tag, multiple) {
                            self.retried += 1;
                            self.publish(sequence, body);
                        }
                    }
                    Said::Closed(why) => return Err(Failure::broken(format!("RabbitMQ closed: {why}"))),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    async fn close(self) -> u64 {
        self.retried
    }
}

/// One connection that consumes.
pub(crate) struct RabbitConsumer {
    connection: Connection,
    coming: Option<Coming>,
}

/// A message whose frames have not all come.
struct Coming {
    tag: u64,
    again: bool,
    /// Known from the header on.
    size: Option<usize>,
    body: BytesMut,
}

impl Consumer for RabbitConsumer {
    type Token = u64;

    async fn receive(&mut self, messages: &mut Vec<Received<u64>>) -> Outcome<()> {
        while messages.is_empty() {
            self.connection.wire.turn().await?;
            while let Some(frame) = take_frame(&mut self.connection.wire.input)? {
                match (frame.kind, &mut self.coming) {
                    (FRAME_METHOD, _) => match said(frame.payload)? {
                        Said::Deliver { tag, again } => {
                            self.coming = Some(Coming { tag, again, size: None, body: BytesMut::new() });
                        }
                        Said::Closed(why) => return Err(Failure::broken(format!("RabbitMQ closed: {why}"))),
                        Said::Done(60, 30) => return Err(Failure::broken("RabbitMQ ended the subscription")),
                        _ => {}
                    },
                    (FRAME_HEADER, Some(coming)) => coming.size = Some(body_size(frame.payload)?),
                    (FRAME_BODY, Some(coming)) => coming.body.extend_from_slice(&frame.payload),
                    _ => {}
                }
                if let Some(Coming { tag, again, body, .. }) =
                    self.coming.take_if(|coming| coming.size == Some(coming.body.len()))
                {
                    messages.push(Received { body: body.freeze(), again, token: tag });
                }
            }
        }
        Ok(())
    }

    async fn acknowledge(&mut self, tag: u64) -> Outcome<()> {
        Method::new(60, 80).u64(tag).u8(0).put(&mut self.connection.wire.out, CHANNEL);
        Ok(())
    }

    async fn close(mut self) {
        // Courtesy: the queue is removed next.
        let _gone = self.connection.wire.flush().await.is_err();
    }
}
