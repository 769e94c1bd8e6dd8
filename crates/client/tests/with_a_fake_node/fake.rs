//! A node made of a socket and the protocol's frames: it says exactly what a test wants, when the test wants it.

use std::{future::Future, time::Duration};

use bytes::{Bytes, BytesMut};
use swarmmq_client::{ClientKeyring, Options, SwarmMq, Trust};
use swarmmq_protocol::{
    admin::Order,
    error::{Code, Outcome},
    frame::{
        self, Answer, Body, Deliver, DeliverItem, Frame, FrameReader, Publish, Published, PublishedRun,
        Resolved, Settle, Settled, SettledRun, Subscribe, Subscribed,
    },
    id::{
        Address, Attempt, ClusterId, NodeId, Offset, ProducerEpoch, ProducerId, Salt, Sequence, ShardId, Term,
    },
    session::handshake::{Candidates, ServerHandshake},
    time::WallTime,
};
use swarmmq_seal::{Draft, Sealer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Nothing in these tests takes longer, however slow the machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);
/// Shards of the pretended cluster.
pub(crate) const SHARDS: u32 = 4;
const CLUSTER: ClusterId = ClusterId(5);

/// Waits for what must happen.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(LONG, what).await.expect("this must happen long before")
}

/// A keyring of fixed secrets.
pub(crate) fn keyring(seed: u8) -> ClientKeyring {
    let mut next = seed;
    ClientKeyring::generate(WallTime(1), &mut |out| {
        out.fill(next);
        next += 1;
    })
    .and_then(|keyring| keyring.with_trust(Trust::InsecurePlaintext))
    .expect("the four secrets differ")
}

/// A pretended node.
pub(crate) struct FakeNode {
    listener: TcpListener,
    node: NodeId,
}

impl FakeNode {
    pub(crate) async fn start() -> Self {
        Self::start_as(NodeId(1)).await
    }

    pub(crate) async fn start_as(node: NodeId) -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), node }
    }

    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    pub(crate) fn options(&self) -> Options {
        let mut options = Options::new(vec![self.address()], keyring(1));
        options.close_timeout = Duration::from_millis(200);
        options
    }

    /// A client and this node's end of its connection.
    pub(crate) async fn connect(&self, options: Options) -> (SwarmMq, Peer) {
        let (client, peer) = soon(async { tokio::join!(SwarmMq::connect(options), self.accept()) }).await;
        (client.unwrap(), peer)
    }

    /// The next client that completes the handshake; others have given up already.
    pub(crate) async fn accept(&self) -> Peer {
        self.accept_as(CLUSTER).await
    }

    /// The same, as a node of another cluster.
    pub(crate) async fn accept_as(&self, cluster: ClusterId) -> Peer {
        soon(async {
            loop {
                let (stream, _) = self.listener.accept().await.unwrap();
                let mut peer =
                    Peer { stream, reader: FrameReader::new(), watched: false, answers_pings: true };
                if peer.handshake(cluster, self.node).await.is_some() {
                    return peer;
                }
            }
        })
        .await
    }

    /// A connection to which nothing is said.
    pub(crate) async fn accept_silently(&self) -> TcpStream {
        soon(self.listener.accept()).await.unwrap().0
    }
}

/// The node's end of one connection. Dropped, the connection breaks.
pub(crate) struct Peer {
    stream: TcpStream,
    reader: FrameReader,
    /// The client wants to know who leads.
    watched: bool,
    answers_pings: bool,
}

impl Peer {
    async fn handshake(&mut self, cluster: ClusterId, node: NodeId) -> Option<()> {
        let token = keyring(1).access_token();
        let find = |_: &str| Candidates::only(token.clone());
        let mut handshake = ServerHandshake::new(cluster, node, SHARDS, [7; 32]);
        loop {
            let (header, body) = self.read_frame().await?;
            let mut out = BytesMut::new();
            let result = handshake.frame(WallTime(1), header, body, &find, &mut out);
            self.stream.write_all(&out).await.ok()?;
            if result.ok()?.is_some() {
                self.reader.set_authenticated();
                return Some(());
            }
        }
    }

    async fn read_frame(&mut self) -> Option<(frame::FrameHeader, Bytes)> {
        loop {
            if let Some(whole) = self.reader.next_frame().unwrap() {
                return Some(whole);
            }
            if self.stream.read_buf(self.reader.buffer()).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// The client's next frame and its request number; `None`: it has closed the connection. That it wants to know who leads
    /// goes without saying, and so does that this node lives.
    pub(crate) async fn next(&mut self) -> Option<(u64, Frame)> {
        loop {
            let (header, body) = soon(self.read_frame()).await?;
            match Frame::decode(header.kind, body).unwrap() {
                Frame::WatchLeaders(_) => self.watched = true,
                Frame::Ping(_) if self.answers_pings => self.send(header.request, &frame::Pong).await,
                frame => return Some((header.request, frame)),
            }
        }
    }

    /// From now on the test itself answers pings, or does not.
    pub(crate) fn leave_pings(&mut self) {
        self.answers_pings = false;
    }

    /// Whether the client has asked who leads.
    pub(crate) fn watched(&self) -> bool {
        self.watched
    }

    pub(crate) async fn send<B: Body>(&mut self, request: u64, body: &B) {
        let mut out = BytesMut::new();
        frame::encode(body, request, &mut out);
        soon(self.stream.write_all(&out)).await.unwrap();
    }

    /// Returns when the client has dealt with everything sent so far. What it says meanwhile is lost to the test.
    pub(crate) async fn settle_down(&mut self) {
        self.send(99, &frame::Ping).await;
        while !matches!(self.next().await.unwrap(), (99, Frame::Pong(_))) {}
    }

    pub(crate) async fn ok(&mut self, request: u64) {
        self.send(request, &Answer::ok()).await;
    }

    pub(crate) async fn refuse(&mut self, request: u64, code: Code) {
        let answer = Answer { outcome: Outcome::Failed, code: code.number(), message: "no".into() };
        self.send(request, &answer).await;
    }

    /// Is asked for an address's order.
    pub(crate) async fn asked_for_order(&mut self) -> u64 {
        match self.next().await.unwrap() {
            (request, Frame::Resolve(_)) => request,
            other => panic!("{other:?}"),
        }
    }

    /// Is asked for an address's order, and tells it.
    pub(crate) async fn tell_order(&mut self, order: Order) {
        let request = self.asked_for_order().await;
        self.send(request, &Resolved { order, shard_count: SHARDS }).await;
    }

    /// Is asked to open a session, and does.
    pub(crate) async fn open_session(&mut self) {
        match self.next().await.unwrap() {
            (request, Frame::OpenSession(_)) => self.ok(request).await,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn publish(&mut self) -> (u64, Publish) {
        match self.next().await.unwrap() {
            (request, Frame::Publish(publish)) => (request, publish),
            other => panic!("{other:?}"),
        }
    }

    /// The first message of a producer to a new address: everything up to its bytes.
    pub(crate) async fn first_publish(&mut self) -> (u64, Publish) {
        self.tell_order(Order::Total).await;
        self.open_session().await;
        self.publish().await
    }

    pub(crate) async fn stored(&mut self, request: u64, count: u16) {
        let first_offset = Some(Offset(0));
        let run = PublishedRun { count, outcome: Outcome::Ok, code: 0, duplicate: false, first_offset };
        self.send(request, &Published { runs: vec![run] }).await;
    }

    pub(crate) async fn asked_to_subscribe(&mut self) -> (u64, Subscribe) {
        match self.next().await.unwrap() {
            (request, Frame::Subscribe(subscribe)) => (request, subscribe),
            other => panic!("{other:?}"),
        }
    }

    /// Takes a subscriber; `lost` is what it held and holds no more.
    pub(crate) async fn subscribe(&mut self, lost: &[u64]) -> Subscribe {
        let (request, subscribe) = self.asked_to_subscribe().await;
        let lost = lost.iter().map(|offset| (ShardId(0), Offset(*offset))).collect();
        self.send(request, &Subscribed { shards: vec![(ShardId(0), Term(1))], lost }).await;
        subscribe
    }

    pub(crate) async fn deliver(&mut self, subscription: u32, messages: Vec<(u64, Bytes)>) {
        let items = messages
            .into_iter()
            .map(|(offset, sealed)| DeliverItem {
                shard: ShardId(0),
                offset: Offset(offset),
                term: Term(1),
                attempt: Attempt(1),
                lease: Duration::from_secs(30),
                reason: String::new(),
                sealed,
            })
            .collect();
        self.send(0, &Deliver { subscription, items }).await;
    }

    pub(crate) async fn asked_to_settle(&mut self) -> (u64, Settle) {
        match self.next().await.unwrap() {
            (request, Frame::Settle(settle)) => (request, settle),
            other => panic!("{other:?}"),
        }
    }

    /// Answers settlements one by one.
    pub(crate) async fn settled(&mut self, request: u64, fates: &[(Outcome, Option<Code>)]) {
        let run = |(outcome, code): &(Outcome, Option<Code>)| SettledRun {
            count: 1,
            outcome: *outcome,
            code: code.map_or(0, Code::number),
        };
        self.send(request, &Settled { runs: fates.iter().map(run).collect() }).await;
    }
}

/// A message as its producer sealed it, with its number as sequence and body.
pub(crate) fn sealed(keyring: &ClientKeyring, number: u64) -> Bytes {
    let address = Address::parse("shop.orders").unwrap();
    let mut sealer = Sealer::new(keyring, ProducerId(3), ProducerEpoch(1), Salt([9; 32]));
    sealer
        .seal(&Draft {
            address: &address,
            shard: ShardId(0),
            sequence: Sequence(number + 1),
            key: None,
            headers: &[],
            body: &number.to_be_bytes(),
            published_at: WallTime(1),
            trace: None,
            compress: false,
        })
        .unwrap()
}

/// Messages that the client can open, with these numbers as offsets.
pub(crate) fn messages(numbers: impl IntoIterator<Item = u64>) -> Vec<(u64, Bytes)> {
    let keyring = keyring(1);
    numbers.into_iter().map(|number| (number, sealed(&keyring, number))).collect()
}
