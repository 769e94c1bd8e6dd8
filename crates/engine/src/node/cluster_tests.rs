//! Several nodes stepped by hand over a network without faults: who becomes a member, who leads, what a crash costs.

use swarmmq_protocol::{admin::NodeState, packet::Class, session::peer::PeerHello};

use super::{
    letter::{Health, Letter},
    question::Question,
    *,
};
use crate::shard::member::node_of;

struct Host {
    config: Config,
    node: Option<Node>,
    disk: BTreeMap<u32, Vec<u8>>,
    inboxes: BTreeMap<ConnectionId, (FrameReader, VecDeque<(u64, Frame)>)>,
    /// How long each of its turns takes, when the next one can come, and what waits for it.
    turn: Duration,
    next_turn: Instant,
    waiting: Vec<Input>,
}

/// Nodes, the links between them, and one clock.
struct Cluster {
    hosts: BTreeMap<NodeId, Host>,
    now: Now,
    packets: VecDeque<(NodeId, NodeId, Packet)>,
    /// Under way; where a link is cut, none pass.
    datagrams: VecDeque<(NodeId, NodeId, Bytes)>,
    links: BTreeSet<(NodeId, NodeId)>,
    /// From whom to whom packets are slow, and those that wait there.
    slow: Option<(NodeId, NodeId)>,
    late: VecDeque<(NodeId, NodeId, Packet)>,
    next: u64,
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

impl Cluster {
    fn new(count: u16) -> Self {
        let now = Now { monotonic: Instant(1_000_000_000), wall: WallTime(1_000_000) };
        let mut cluster = Self {
            hosts: BTreeMap::new(),
            now,
            packets: VecDeque::new(),
            datagrams: VecDeque::new(),
            links: BTreeSet::new(),
            slow: None,
            late: VecDeque::new(),
            next: 1,
        };
        for node in 1..=count {
            cluster.add(node, 7);
        }
        cluster
    }

    fn add(&mut self, number: u16, roles: u8) {
        let node = NodeId(number);
        let config = Config {
            node,
            incarnation: 90 + u64::from(number),
            founder: number == 1,
            roles,
            secret: NodeSecret::new([number as u8; 32]),
            seed: 7 + u64::from(number),
            addresses: Addresses { client: format!("client{number}"), ..Addresses::default() },
            cache_bytes_max: 1 << 20,
            ..config()
        };
        let (disk, inboxes) = (BTreeMap::new(), BTreeMap::new());
        let (turn, next_turn, waiting) = (Duration::ZERO, Instant(0), Vec::new());
        self.hosts.insert(node, Host { config, node: None, disk, inboxes, turn, next_turn, waiting });
        self.start(node);
    }

    fn start(&mut self, node: NodeId) {
        let host = self.hosts.get_mut(&node).unwrap();
        host.config.boot += 1;
        host.node = Some(restore_as(host.config.clone(), &host.disk, self.now).unwrap());
        let others: Vec<NodeId> = self
            .hosts
            .iter()
            .filter(|(id, host)| **id != node && host.node.is_some())
            .map(|(id, _)| *id)
            .collect();
        others.into_iter().for_each(|other| self.link(node, other));
    }

    fn link(&mut self, a: NodeId, b: NodeId) {
        self.links.insert(pair(a, b));
        for (of, to) in [(a, b), (b, a)] {
            let hello = self.node(of).hello();
            let now = self.now;
            self.node(to).admits(now, &hello).unwrap();
            self.input(to, Input::PeerUp { hello });
        }
    }

    /// The process ends; what was not synced is gone, which here is nothing.
    fn kill(&mut self, node: NodeId) {
        let host = self.hosts.get_mut(&node).unwrap();
        host.node = None;
        host.inboxes.clear();
        host.waiting.clear();
        self.packets.retain(|(from, to, _)| *from != node && *to != node);
        let gone: Vec<NodeId> = self.hosts.keys().copied().filter(|other| *other != node).collect();
        for other in gone {
            if self.links.remove(&pair(node, other)) && self.hosts[&other].node.is_some() {
                self.input(other, Input::PeerDown { node, gone: true });
            }
        }
    }

    /// No packet passes between the two, and both notice.
    fn cut(&mut self, a: NodeId, b: NodeId) {
        self.links.remove(&pair(a, b));
        self.packets.retain(|(from, to, _)| pair(*from, *to) != pair(a, b));
        self.input(a, Input::PeerDown { node: b, gone: false });
        self.input(b, Input::PeerDown { node: a, gone: false });
    }

    fn node(&mut self, node: NodeId) -> &mut Node {
        self.hosts.get_mut(&node).unwrap().node.as_mut().expect("it runs")
    }

    fn input(&mut self, node: NodeId, input: Input) {
        let now = self.now;
        self.node(node).handle(now, input);
    }

    /// Something for a node that may be busy, or not run.
    fn arrive(&mut self, node: NodeId, input: Input) {
        let host = self.hosts.get_mut(&node).unwrap();
        match &mut host.node {
            Some(_) if host.next_turn > self.now.monotonic => host.waiting.push(input),
            Some(runs) => runs.handle(self.now, input),
            None => {}
        }
    }

    /// Everything that can happen now.
    fn run(&mut self) {
        for _ in 0..10_000 {
            let mut quiet = true;
            for (id, host) in &mut self.hosts {
                let Some(node) = &mut host.node else { continue };
                if host.next_turn > self.now.monotonic {
                    continue;
                }
                host.next_turn = self.now.monotonic + host.turn;
                host.waiting.drain(..).for_each(|input| node.handle(self.now, input));
                let mut effects = Effects::default();
                node.flush(self.now, &mut effects);
                for (to, packet) in effects.packets {
                    assert!(
                        self.links.contains(&pair(*id, to)),
                        "a packet from {id:?} to {to:?} without a link"
                    );
                    self.packets.push_back((*id, to, packet));
                }
                let datagrams = effects.datagrams.into_iter();
                self.datagrams.extend(datagrams.map(|(to, bytes)| (*id, to, bytes)));
                if let Some(append) = effects.append {
                    quiet = false;
                    for write in &append.writes {
                        let file =
                            host.disk.entry(write.segment).or_insert_with(|| vec![0; SEGMENT as usize]);
                        file[write.offset as usize..write.offset as usize + write.bytes.len()]
                            .copy_from_slice(&write.bytes);
                    }
                    node.handle(self.now, Input::Synced { batch: append.batch });
                }
                for read in effects.reads {
                    quiet = false;
                    let bytes = &host.disk[&read.position.segment][read.position.offset as usize..];
                    let bytes = Bytes::copy_from_slice(&bytes[..(read.length as usize).min(bytes.len())]);
                    node.handle(self.now, Input::Read { ticket: read.ticket, result: Ok(bytes) });
                }
                for segment in effects.release {
                    host.disk.remove(&segment);
                }
                for (connection, bytes) in effects.sends {
                    let Some((reader, inbox)) = host.inboxes.get_mut(&connection) else { continue };
                    reader.set_authenticated();
                    reader.buffer().extend_from_slice(&bytes);
                    while let Some((header, body)) = reader.next_frame().unwrap() {
                        inbox.push_back((header.request, Frame::decode(header.kind, body).unwrap()));
                    }
                }
            }
            while let Some((from, to, packet)) = self.packets.pop_front() {
                quiet = false;
                if self.slow == Some((from, to)) {
                    self.late.push_back((from, to, packet));
                } else {
                    self.arrive(to, Input::Packet { from, packet });
                }
            }
            while let Some((from, to, bytes)) = self.datagrams.pop_front() {
                if self.links.contains(&pair(from, to)) {
                    self.arrive(to, Input::Datagram { bytes });
                }
            }
            if quiet {
                return;
            }
        }
        panic!("the nodes never come to rest");
    }

    fn pass(&mut self, duration: Duration) {
        let until = self.now.monotonic + duration;
        while self.now.monotonic < until {
            self.now.monotonic = self.now.monotonic + Duration::from_millis(10);
            self.now.wall = self.now.wall.plus(Duration::from_millis(10));
            self.run();
        }
    }

    /// Lets time pass until `test` holds.
    fn until(&mut self, what: &str, most: Duration, test: impl Fn(&mut Self) -> bool) {
        let until = self.now.monotonic + most;
        self.run();
        while !test(self) {
            assert!(self.now.monotonic < until, "not within {most:?}: {what}");
            self.pass(Duration::from_millis(10));
        }
    }

    fn is_healthy(&self) -> bool {
        let nodes: Vec<&Node> = self.hosts.values().filter_map(|host| host.node.as_ref()).collect();
        let stores = nodes.iter().filter(|node| node.config.roles & 4 != 0).count();
        let copies = if stores < 3 { 1 } else { 3 };
        nodes.iter().all(|node| node.report().ready)
            && (0..=SHARDS as usize).all(|index| {
                nodes.iter().any(|node| {
                    let shard = &node.shards[index];
                    let in_sync = shard.in_sync();
                    let synced = shard.conf().voters.iter().filter(|voter| in_sync.contains(voter)).count();
                    let whole = shard.conf().voters.len() == copies || shard.is_clusters();
                    shard.is_serving() && synced >= copies && whole
                })
            })
    }

    fn leader(&self, shard: ShardId) -> NodeId {
        let leads =
            |host: &&Host| host.node.as_ref().is_some_and(|node| node.shards[shard.0 as usize].is_serving());
        self.hosts.values().find(leads).expect("somebody leads").config.node
    }

    fn connect(&mut self, node: NodeId) -> (NodeId, ConnectionId) {
        let connection = ConnectionId(self.next);
        self.next += 1;
        self.hosts.get_mut(&node).unwrap().inboxes.insert(connection, (FrameReader::new(), VecDeque::new()));
        self.input(node, Input::Connected { connection, nonce: [3; 32], source: HERE });
        let mut out = BytesMut::new();
        let mut handshake = ClientHandshake::start(MacKey::new([1; 32]), ROOT, [4; 32], &mut out);
        while !self.node(node).is_authenticated(connection) {
            self.bytes(node, connection, &mut out);
            for (request, frame) in self.take((node, connection)) {
                let mut bytes = BytesMut::new();
                frame.encode(request, &mut bytes);
                let mut reader = FrameReader::new();
                reader.buffer().extend_from_slice(&bytes);
                let (header, body) = reader.next_frame().unwrap().unwrap();
                handshake.frame(header, body, &mut out).unwrap();
            }
        }
        (node, connection)
    }

    fn bytes(&mut self, node: NodeId, connection: ConnectionId, bytes: &mut BytesMut) {
        let mut reader = FrameReader::new();
        reader.set_authenticated();
        reader.buffer().extend_from_slice(&bytes.split());
        while let Some((header, body)) = reader.next_frame().unwrap() {
            self.input(node, Input::Frame { connection, header, body });
        }
        self.run();
    }

    fn take(&mut self, client: (NodeId, ConnectionId)) -> Vec<(u64, Frame)> {
        self.hosts.get_mut(&client.0).unwrap().inboxes.get_mut(&client.1).unwrap().1.drain(..).collect()
    }

    fn send(&mut self, client: (NodeId, ConnectionId), frame: &Frame) -> u64 {
        let request = self.next;
        self.next += 1;
        let mut bytes = BytesMut::new();
        frame.encode(request, &mut bytes);
        self.bytes(client.0, client.1, &mut bytes);
        request
    }

    fn answer(&mut self, client: (NodeId, ConnectionId), request: u64) -> Option<Frame> {
        let inbox = &mut self.hosts.get_mut(&client.0).unwrap().inboxes.get_mut(&client.1).unwrap().1;
        let at = inbox.iter().position(|(of, _)| *of == request)?;
        inbox.remove(at).map(|(_, frame)| frame)
    }

    /// Asks and lets time pass until the answer is there.
    fn ask(&mut self, client: (NodeId, ConnectionId), frame: &Frame) -> Frame {
        let request = self.send(client, frame);
        for _ in 0..1_500 {
            if let Some(answer) = self.answer(client, request) {
                return answer;
            }
            self.pass(Duration::from_millis(10));
        }
        panic!("no answer to {frame:?}");
    }

    fn deliveries(&mut self, client: (NodeId, ConnectionId)) -> Vec<DeliverItem> {
        let frames = self.take(client).into_iter();
        frames
            .flat_map(
                |(_, frame)| {
                    if let Frame::Deliver(Deliver { items, .. }) = frame { items } else { Vec::new() }
                },
            )
            .collect()
    }

    fn make(&mut self, client: (NodeId, ConnectionId), address: &str) {
        let answer = self.ask(client, &resolve(address, Order::Total));
        assert!(matches!(answer, Frame::Resolved(_)), "{answer:?}");
    }

    fn join(
        &mut self,
        client: (NodeId, ConnectionId),
        address: &str,
        group: &str,
        consumer: u128,
        credit: u32,
    ) {
        let answer = self.ask(client, &subscribe(address, group, consumer, credit, vec![]));
        assert!(matches!(answer, Frame::Subscribed(_)), "{answer:?}");
    }

    fn publish(&mut self, client: (NodeId, ConnectionId), sender: &mut Sender, address: &str) -> bool {
        let shard = sender.shard(address, None, false);
        let next = match sender.next.get(&shard) {
            Some(next) => *next,
            None => {
                assert_eq!(self.ask(client, &sender.open(shard)), Frame::Answer(Answer::ok()));
                1
            }
        };
        let frame = sender.frame(shard, 1, sender.seal(shard, address, None, next, 10));
        let Frame::Published(Published { runs }) = self.ask(client, &frame) else { panic!() };
        assert_eq!(runs[0].outcome, Outcome::Ok, "{runs:?}");
        sender.next.insert(shard, next + 1);
        runs[0].duplicate
    }
}

fn restore_as(config: Config, disk: &BTreeMap<u32, Vec<u8>>, now: Now) -> Result<Node, RestoreError> {
    let mut recovery = Recovery::new(config.log(), disk.keys().copied().collect());
    let mut restore = Node::restore(config);
    restore.segments(recovery.order());
    for sequence in recovery.order().to_vec() {
        recovery.segment(sequence, &disk[&sequence], &mut |record| restore.record(&record));
    }
    restore.finish(&recovery.finish(), now, &mut |position, length| {
        let from = position.offset as usize;
        Ok(Bytes::copy_from_slice(&disk[&position.segment][from..from + length as usize]))
    })
}

fn resolve(address: &str, order: Order) -> Frame {
    Frame::Resolve(Resolve {
        address: Address::parse(address).unwrap(),
        create: true,
        order: Some(order),
        deadline: DEADLINE,
    })
}

const HEALTHY_WITHIN: Duration = Duration::from_secs(3);

fn healthy(count: u16) -> Cluster {
    let mut cluster = Cluster::new(count);
    cluster.until("healthy", HEALTHY_WITHIN, |cluster| cluster.is_healthy());
    cluster
}

#[test]
fn five_nodes_that_start_empty_become_one_cluster_with_three_copies_of_each_shard() {
    let mut cluster = healthy(5);
    cluster.pass(Duration::from_millis(200));
    for shard in 0..SHARDS {
        let holders: Vec<NodeId> = cluster
            .hosts
            .values()
            .filter(|host| host.node.as_ref().unwrap().shards[shard as usize].is_replica())
            .map(|host| host.config.node)
            .collect();
        assert_eq!(holders.len(), 3, "shard {shard} on {holders:?}");
        let leader = cluster.leader(ShardId(shard));
        let voters = cluster.node(leader).shards[shard as usize].conf().voters.clone();
        assert_eq!(voters.into_iter().map(node_of).collect::<Vec<_>>(), holders);
    }
}

#[test]
fn any_node_takes_messages_and_consumers_for_any_shard() {
    let mut cluster = healthy(5);
    let mut sender = Sender::new(1);
    for node in 1..=5 {
        let client = cluster.connect(NodeId(node));
        cluster.make(client, "a");
        assert!(!cluster.publish(client, &mut sender, "a"));
    }
    let mut got = Vec::new();
    for node in 1..=5 {
        let client = cluster.connect(NodeId(node));
        let group = format!("g{node}");
        cluster.join(client, "a", &group, 1, 10);
        cluster.pass(Duration::from_millis(20));
        let items = cluster.deliveries(client);
        let all: Vec<&DeliverItem> = items.iter().collect();
        if !all.is_empty() {
            let Frame::Settled(settled) = cluster.ask(client, &settle(1, &all, SettleAction::Ack)) else {
                panic!()
            };
            assert!(settled.runs.iter().all(|run| run.outcome == Outcome::Ok), "{settled:?}");
        }
        got.push(items.len());
    }
    assert_eq!(got, [5, 0, 0, 0, 0], "the first group gets what there is, later ones begin at the end");
}

#[test]
fn a_killed_leader_costs_no_message_and_a_repeated_one_is_no_second() {
    let mut cluster = healthy(5);
    let mut sender = Sender::new(1);
    let shard = sender.shard("a", None, false);
    let leader = cluster.leader(shard);
    let edge = NodeId(if leader == NodeId(1) { 2 } else { 1 });
    let client = cluster.connect(edge);
    cluster.make(client, "a");
    cluster.join(client, "a", "g", 1, 100);
    for _ in 0..5 {
        cluster.publish(client, &mut sender, "a");
    }
    let held = cluster.deliveries(client);
    assert_eq!(held.len(), 5);
    cluster.kill(leader);
    let began = cluster.now.monotonic;
    cluster.publish(client, &mut sender, "a");
    let gap = cluster.now.monotonic.since(began);
    assert!(gap < Duration::from_millis(300), "{gap:?} without a leader, though its end was seen");
    // What is held is still held: it can be settled, and is not given again.
    cluster.pass(Duration::from_millis(100));
    let all: Vec<&DeliverItem> = held.iter().collect();
    let Frame::Settled(settled) = cluster.ask(client, &settle(1, &all, SettleAction::Ack)) else { panic!() };
    assert!(settled.runs.iter().all(|run| run.outcome == Outcome::Ok), "{settled:?}");
    cluster.pass(Duration::from_secs(5));
    let more = cluster.deliveries(client);
    assert_eq!(
        more.iter().map(|item| (item.offset.0, item.attempt.0)).collect::<Vec<_>>(),
        [(held.len() as u64, 1)]
    );
    // The old leader comes back and learns what it missed.
    cluster.start(leader);
    cluster.until("healthy again", HEALTHY_WITHIN, |cluster| cluster.is_healthy());
    let digests: BTreeSet<[u8; 32]> = cluster
        .hosts
        .values()
        .map(|host| &host.node.as_ref().unwrap().shards[shard.0 as usize])
        .filter(|shard| shard.is_replica())
        .map(|shard| shard.state().digest())
        .collect();
    assert_eq!(digests.len(), 1);
}

#[test]
fn a_node_that_its_consumer_has_left_does_not_give_back_what_came_by_way_of_another() {
    let mut cluster = healthy(5);
    let mut sender = Sender::new(1);
    let leader = cluster.leader(sender.shard("a", None, false));
    let edges: Vec<NodeId> = (1..=5).map(NodeId).filter(|node| *node != leader).collect();
    let before = cluster.connect(edges[0]);
    cluster.make(before, "a");
    cluster.join(before, "a", "g", 1, 0);
    // It moves, which the first node does not hear of, and then loses the second one too.
    let after = cluster.connect(edges[1]);
    cluster.join(after, "a", "g", 1, 10);
    cluster.publish(after, &mut sender, "a");
    let held = cluster.deliveries(after);
    assert_eq!(held.len(), 1);
    cluster.input(after.0, Input::Disconnected { connection: after.1 });
    cluster.cut(edges[0], leader);
    cluster.pass(Duration::from_millis(50));
    cluster.link(edges[0], leader);
    cluster.pass(Duration::from_millis(200));
    let other = cluster.connect(leader);
    cluster.join(other, "a", "g", 2, 10);
    cluster.pass(Duration::from_millis(100));
    assert_eq!(cluster.deliveries(other), []);
    let item = &held[0];
    let claim = vec![Held { shard: item.shard, offset: item.offset, attempt: item.attempt }];
    let back = cluster.connect(edges[2]);
    let Frame::Subscribed(found) = cluster.ask(back, &subscribe("a", "g", 1, 10, claim)) else { panic!() };
    assert_eq!(found.lost, []);
}

#[test]
fn a_minority_cut_off_takes_nothing_and_the_rest_goes_on() {
    let mut cluster = healthy(5);
    let mut sender = Sender::new(1);
    let shard = sender.shard("a", None, false);
    let leader = cluster.leader(shard);
    let others: Vec<NodeId> = (1..=5).map(NodeId).filter(|node| *node != leader).collect();
    let inside = cluster.connect(leader);
    let outside = cluster.connect(others[0]);
    cluster.make(outside, "a");
    cluster.publish(outside, &mut sender, "a");
    for other in others {
        cluster.cut(leader, other);
    }
    let next = sender.next[&shard];
    let frame = sender.frame(shard, 1, sender.seal(shard, "a", None, next, 10));
    let lost = cluster.send(inside, &frame);
    cluster.publish(outside, &mut sender, "a");
    cluster.pass(Duration::from_secs(15));
    let Some(Frame::Published(published)) = cluster.answer(inside, lost) else { panic!("it has to end") };
    assert_eq!(published.runs[0].outcome, Outcome::Unknown, "{published:?}");
}

#[test]
fn everybody_killed_at_once_remembers_everything() {
    let mut cluster = healthy(5);
    let mut sender = Sender::new(1);
    let client = cluster.connect(NodeId(1));
    cluster.make(client, "a");
    for _ in 0..20 {
        cluster.publish(client, &mut sender, "a");
    }
    for node in (1..=5).map(NodeId) {
        cluster.kill(node);
    }
    for node in (1..=5).map(NodeId) {
        cluster.start(node);
    }
    cluster.until("healthy again", Duration::from_secs(5), |cluster| cluster.is_healthy());
    let client = cluster.connect(NodeId(3));
    cluster.join(client, "a", "g", 1, 100);
    cluster.pass(Duration::from_millis(50));
    assert_eq!(cluster.deliveries(client).len(), 20);
}

/// Two of three came back and knew only how to reach the third, which did not: nobody led, so nobody said who else there is.
#[test]
fn who_comes_back_alone_wants_links_with_those_that_its_log_names() {
    let mut cluster = healthy(3);
    for node in (1..=3).map(NodeId) {
        cluster.kill(node);
    }
    for node in [NodeId(2), NodeId(3)] {
        let host = &cluster.hosts[&node];
        let mut alone = restore_as(host.config.clone(), &host.disk, cluster.now).unwrap();
        let mut effects = Effects::default();
        alone.flush(cluster.now, &mut effects);
        let wanted = effects.peers.expect("it says so at once").into_iter().map(|peer| peer.node);
        let others: Vec<NodeId> = (1..=3).map(NodeId).filter(|other| *other != node).collect();
        assert_eq!(wanted.collect::<Vec<_>>(), others);
    }
}

#[test]
fn a_new_node_takes_over_shards_with_their_messages() {
    let mut cluster = healthy(3);
    let mut sender = Sender::new(1);
    let client = cluster.connect(NodeId(1));
    let addresses = ["a", "b", "c", "d", "e", "f"];
    for address in addresses {
        cluster.make(client, address);
        for _ in 0..5 {
            cluster.publish(client, &mut sender, address);
        }
    }
    cluster.add(4, 7);
    cluster.add(5, 7);
    let moved = |cluster: &mut Cluster| {
        let of = |node: u16| cluster.hosts[&NodeId(node)].node.as_ref().unwrap();
        let holds = |node: u16| (0..SHARDS as usize).any(|index| of(node).shards[index].is_replica());
        cluster.is_healthy() && (holds(4) || holds(5))
    };
    cluster.until("shards have moved", Duration::from_secs(5), moved);
    cluster.pass(Duration::from_secs(2));
    let holders = |cluster: &Cluster, index: usize| {
        cluster.hosts.values().filter(|host| host.node.as_ref().unwrap().shards[index].is_replica()).count()
    };
    assert!((0..SHARDS as usize).all(|index| holders(&cluster, index) == 3), "who left has let go");
    let holes: u64 = cluster
        .hosts
        .values()
        .flat_map(|host| &host.node.as_ref().unwrap().shards)
        .map(|shard| shard.state().hole_count())
        .sum();
    assert_eq!(holes, 0);
    // Restarts find what was taken over.
    for node in (1..=5).map(NodeId) {
        cluster.kill(node);
    }
    for node in (1..=5).map(NodeId) {
        cluster.start(node);
    }
    cluster.until("healthy again", Duration::from_secs(5), |cluster| cluster.is_healthy());
    let client = cluster.connect(NodeId(5));
    for (number, address) in addresses.iter().enumerate() {
        cluster.join(client, address, "g", number as u128 + 1, 100);
    }
    cluster.pass(Duration::from_millis(50));
    assert_eq!(cluster.deliveries(client).len(), 30);
}

#[test]
fn nodes_that_take_clients_hold_no_shard_and_serve_every_shard() {
    let mut cluster = Cluster::new(1);
    cluster.add(2, 7);
    cluster.add(3, 7);
    cluster.add(4, PeerHello::INGRESS);
    cluster.add(5, PeerHello::INGRESS);
    cluster.until("healthy", HEALTHY_WITHIN, |cluster| cluster.is_healthy());
    let mut sender = Sender::new(1);
    let client = cluster.connect(NodeId(4));
    cluster.make(client, "a");
    cluster.publish(client, &mut sender, "a");
    let other = cluster.connect(NodeId(5));
    cluster.join(other, "a", "g", 1, 10);
    cluster.pass(Duration::from_millis(20));
    assert_eq!(cluster.deliveries(other).len(), 1);
    for node in [4, 5].map(NodeId) {
        let holds = |shard: &Shard| !shard.is_clusters() && shard.is_replica();
        assert!(!cluster.node(node).shards.iter().any(holds));
    }
}

#[test]
fn new_messages_wait_for_room_on_most_replicas_and_settlements_do_not() {
    let mut cluster = healthy(3);
    let mut sender = Sender::new(1);
    let client = cluster.connect(NodeId(1));
    cluster.make(client, "a");
    cluster.join(client, "a", "g", 1, 10);
    cluster.publish(client, &mut sender, "a");
    let held = cluster.deliveries(client);
    let shard = sender.shard("a", None, false);
    let leader = cluster.leader(shard);
    let followers: Vec<NodeId> = [1, 2, 3].map(NodeId).into_iter().filter(|node| *node != leader).collect();
    cluster.input(followers[0], Input::DiskSpace { free_bytes: 10 });
    cluster.publish(client, &mut sender, "a");
    cluster.input(followers[1], Input::DiskSpace { free_bytes: 10 });
    cluster.run();
    let next = sender.next[&shard];
    let frame = sender.frame(shard, 1, sender.seal(shard, "a", None, next, 10));
    let Frame::Published(published) = cluster.ask(client, &frame) else { panic!() };
    assert_eq!(
        (published.runs[0].outcome, published.runs[0].code),
        (Outcome::Failed, Code::DiskFull.number())
    );
    let all: Vec<&DeliverItem> = held.iter().collect();
    let Frame::Settled(settled) = cluster.ask(client, &settle(1, &all, SettleAction::Ack)) else { panic!() };
    assert_eq!(settled.runs[0].outcome, Outcome::Ok);
    cluster.input(followers[0], Input::DiskSpace { free_bytes: 1 << 30 });
    cluster.run();
    cluster.publish(client, &mut sender, "a");
}

#[test]
fn a_leader_whose_log_stops_is_followed_at_once() {
    let mut cluster = healthy(5);
    let mut sender = Sender::new(1);
    let shard = sender.shard("a", None, false);
    let leader = cluster.leader(shard);
    let edge = NodeId(if leader == NodeId(1) { 2 } else { 1 });
    let client = cluster.connect(edge);
    cluster.make(client, "a");
    cluster.publish(client, &mut sender, "a");
    let began = cluster.now.monotonic;
    cluster.input(leader, Input::DiskFailed { what: "a test".into() });
    cluster.publish(client, &mut sender, "a");
    let gap = cluster.now.monotonic.since(began);
    assert!(gap < Duration::from_millis(300), "{gap:?}");
    assert_ne!(cluster.leader(shard), leader);
}

fn asked(cluster: &mut Cluster, client: (NodeId, ConnectionId), request: AdminRequest) -> Option<Code> {
    let Frame::Answer(answer) = cluster.ask(client, &Frame::Admin(Admin(request))) else { panic!() };
    Code::from_number(answer.code)
}

#[test]
fn a_node_that_goes_and_comes_back_at_once_loses_nothing_it_had_promised() {
    let mut cluster = healthy(5);
    let mut sender = Sender::new(1);
    let client = cluster.connect(NodeId(1));
    cluster.make(client, "a");
    let mut sent = 0;
    for round in 0..40u64 {
        let node = NodeId(2 + (round % 4) as u16);
        let drain = |draining| AdminRequest::NodeDrain { node, draining };
        assert_eq!(asked(&mut cluster, client, drain(true)), None);
        cluster.publish(client, &mut sender, "a");
        cluster.pass(Duration::from_millis(10 * (round % 7)));
        assert_eq!(asked(&mut cluster, client, drain(false)), None);
        cluster.publish(client, &mut sender, "a");
        cluster.pass(Duration::from_millis(10 * (round % 5)));
        sent += 2;
    }
    cluster.until("healthy again", Duration::from_secs(20), |cluster| cluster.is_healthy());
    for host in cluster.hosts.values() {
        assert_eq!(host.node.as_ref().unwrap().stopped, None);
    }
    cluster.join(client, "a", "g", 1, 1000);
    cluster.pass(Duration::from_millis(50));
    assert_eq!(cluster.deliveries(client).len(), sent);
}

/// A consumer had moved from one node to another; the join of the first came late, named nothing, and gave back what the
/// consumer held by way of the second.
#[test]
fn a_join_that_comes_after_a_younger_one_takes_nothing_from_it() {
    let mut cluster = healthy(5);
    let mut sender = Sender::new(1);
    let client = cluster.connect(NodeId(1));
    cluster.make(client, "a");
    cluster.join(client, "a", "g", 1, 10);
    let shard = sender.shard("a", None, false);
    let leader = cluster.leader(shard);
    cluster.publish(client, &mut sender, "a");
    assert_eq!(cluster.deliveries(client).len(), 1);
    let join = |order, subscriber| Question::Join {
        subscriber,
        consumer: ConsumerId(1),
        order,
        address: Address::parse("a").unwrap(),
        group: GroupName::parse("g").unwrap(),
        credit_messages: 0,
        credit_bytes: 0,
        held: Vec::new(),
    };
    let attempt = |cluster: &mut Cluster| {
        cluster.pass(Duration::from_millis(20));
        let queue =
            &cluster.node(leader).shards[shard.0 as usize].state().queues[&Address::parse("a").unwrap()];
        queue.groups[&GroupName::parse("g").unwrap()].attempt(0)
    };
    let now = cluster.now;
    let asker = Asker::There(NodeId(if leader == NodeId(2) { 3 } else { 2 }), 1);
    cluster.node(leader).serve(now, shard.0 as usize, asker, join(1, 900));
    assert_eq!(attempt(&mut cluster), Attempt(1), "it is older");
    cluster.node(leader).serve(now, shard.0 as usize, asker, join(u64::MAX, 901));
    assert_eq!(attempt(&mut cluster), Attempt(2), "a younger one says that nothing is held");
}

#[path = "claim_tests.rs"]
mod claim;
#[path = "feed_tests.rs"]
mod feed;
#[path = "handover_tests.rs"]
mod handover;
#[path = "leaders_tests.rs"]
mod leaders;
#[path = "moving_tests.rs"]
mod moving;
#[path = "operation_tests.rs"]
mod operation;
#[path = "relay_tests.rs"]
mod relay;
#[path = "slow_tests.rs"]
mod slow;
#[path = "survey_tests.rs"]
mod survey;
