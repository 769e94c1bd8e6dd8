//! Links between nodes in one process, over real sockets: who stays linked with whom, and what becomes of everybody else.

use std::{
    io::{Read, Write},
    net::{self, TcpListener as StdListener},
    time::Duration,
};

use bytes::Bytes;
use mio::{Events, Poll};
use swarmmq_protocol::{
    id::ClusterId,
    mac::MacKey,
    packet::{Class, PacketReader},
};
use swarmmq_tls::{Authority, Host, Identity, Name};

use super::*;
use crate::clock::{Clock, Stopwatch};

/// Far above what any step here takes.
const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: [u8; 32] = [7; 32];

/// Remembers what it is told.
struct Recorder {
    hello: PeerHello,
    unwanted: Option<(NodeId, Code)>,
    turned_away: Vec<Code>,
    events: Vec<PeerEvent>,
}

impl Owner for Recorder {
    fn hello(&self) -> PeerHello {
        self.hello.clone()
    }

    fn admits(&self, _: Now, hello: &PeerHello) -> Result<(), (Code, String)> {
        match self.unwanted {
            Some((node, code)) if node == hello.node => Err((code, "not here".into())),
            _ => Ok(()),
        }
    }

    fn turned_away(&mut self, _: Now, _: Option<Source>, _: Option<NodeId>, code: Code) {
        self.turned_away.push(code);
    }

    fn hear(&mut self, _: Now, event: PeerEvent) {
        self.events.push(event);
    }
}

fn hello(node: u16, peer: SocketAddr) -> PeerHello {
    PeerHello {
        cluster: Some(ClusterId(5)),
        shard_count: 16,
        node: NodeId(node),
        incarnation: u64::from(node) * 10,
        boot: 1,
        roles: 7,
        client: String::new(),
        peer: peer.to_string(),
        admin: String::new(),
        gossip: String::new(),
        version: "test".into(),
        key: PeerHello::NO_KEY,
        join: None,
    }
}

/// The links of one node, with a clock that can be moved ahead.
struct Place {
    poll: Poll,
    peers: Peers,
    owner: Recorder,
    clock: Clock,
    ahead: Duration,
    address: SocketAddr,
}

impl Place {
    fn new(node: u16) -> Self {
        Self::with(node, &[], |_| {})
    }

    fn with(node: u16, seeds: &[SocketAddr], change: impl FnOnce(&mut PeerHello)) -> Self {
        let address = free_address();
        let mut hello = hello(node, address);
        change(&mut hello);
        Self::at(hello, address, seeds)
    }

    fn at(hello: PeerHello, address: SocketAddr, seeds: &[SocketAddr]) -> Self {
        let poll = Poll::new().unwrap();
        let clock = Clock::start();
        let owner = Recorder { hello, unwanted: None, turned_away: Vec::new(), events: Vec::new() };
        let registry = poll.registry().try_clone().unwrap();
        let secret = MacKey::new(SECRET).into();
        let peers =
            Peers::start(registry, Some(address), seeds, secret, Security::Plain, &owner, clock.now())
                .unwrap();
        Self { poll, peers, owner, clock, ahead: Duration::ZERO, address }
    }

    fn now(&self) -> Now {
        let now = self.clock.now();
        Now { monotonic: now.monotonic + self.ahead, ..now }
    }

    /// One turn of a worker's loop.
    fn turn(&mut self) {
        let mut events = Events::with_capacity(256);
        self.poll.poll(&mut events, Some(Duration::from_millis(1))).unwrap();
        let now = self.now();
        let mut budget = 1 << 20;
        for event in &events {
            self.peers.serve(now, event, &mut budget, &mut self.owner);
        }
        self.peers.turn(now, &mut budget, &mut self.owner);
        self.peers.flush(now, &mut self.owner);
    }

    fn knows(&mut self, others: &[&Place]) {
        let list: Vec<_> =
            others.iter().map(|other| (other.owner.hello.node, other.address.to_string())).collect();
        self.peers.set_members(self.now(), &list, &mut self.owner);
    }

    fn send(&mut self, to: u16, class: Class, body: &'static [u8]) {
        let packet = Packet::direct(class, self.owner.hello.node, NodeId(to), Bytes::from_static(body));
        let now = self.now();
        self.peers.send(now, NodeId(to), packet, &mut self.owner);
    }

    fn is_linked(&self, node: u16) -> bool {
        self.peers.up.contains_key(&NodeId(node))
    }

    /// What it was told, in short, and forgets it.
    fn heard(&mut self) -> Vec<String> {
        let said = |event: PeerEvent| match event {
            PeerEvent::Up(hello) => format!("up {}.{}", hello.node.0, hello.boot),
            PeerEvent::Down { node, gone } => format!("down {} gone={gone}", node.0),
            PeerEvent::Packet { from, packet } => {
                format!("{} from {}", String::from_utf8_lossy(&packet.body), from.0)
            }
        };
        std::mem::take(&mut self.owner.events).into_iter().map(said).collect()
    }
}

/// An address that was free a moment ago, below what the kernel gives to diallers.
fn free_address() -> SocketAddr {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Turns all of them until `done`.
fn until(places: &mut [&mut Place], what: &str, mut done: impl FnMut(&mut [&mut Place]) -> bool) {
    let began = Stopwatch::start();
    while !done(places) {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        places.iter_mut().for_each(|place| place.turn());
    }
}

/// Turns `place` while `talk` runs on a thread of its own, and gives its result.
fn beside<T: Send>(place: &mut Place, talk: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let talk = scope.spawn(talk);
        until(&mut [place], "the conversation", |_| talk.is_finished());
        talk.join().unwrap()
    })
}

/// Another node's end of a connection, moved by hand; it blocks.
struct Puppet {
    stream: net::TcpStream,
    buffer: BytesMut,
}

impl Puppet {
    fn of(stream: net::TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, buffer: BytesMut::new() }
    }

    fn dial(to: SocketAddr, me: PeerHello) -> Result<Self, PeerError> {
        let mut puppet = Self::of(net::TcpStream::connect(to).unwrap());
        let mut first = BytesMut::new();
        let handshake = PeerHandshake::dial(MacKey::new(SECRET), me, None, [3; 32], None, &mut first);
        puppet.meet(handshake, first).map(|_| puppet)
    }

    fn accept(listener: &StdListener, me: PeerHello) -> Result<Self, PeerError> {
        let mut puppet = Self::of(listener.accept().unwrap().0);
        let handshake = PeerHandshake::accept(MacKey::new(SECRET), me, [4; 32]);
        puppet.meet(handshake, BytesMut::new()).map(|_| puppet)
    }

    fn meet(&mut self, mut handshake: PeerHandshake, first: BytesMut) -> Result<PeerHello, PeerError> {
        let mut out = first;
        loop {
            let met = handshake.advance(&mut self.buffer, &mut out);
            self.stream.write_all(&out.split()).unwrap();
            match met {
                Ok(Some(hello)) => return Ok(hello),
                Ok(None) => assert!(self.more(), "closed during the handshake"),
                Err(error) => return Err(error),
            }
        }
    }

    /// False: the other end has closed.
    fn more(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                count > 0
            }
            Err(error) => {
                assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "waited in vain for bytes");
                false
            }
        }
    }

    fn is_closed(&mut self) -> bool {
        !self.more()
    }
}

fn refused_with<T>(result: Result<T, PeerError>) -> Code {
    match result {
        Err(error @ PeerError::Refused { .. }) => error.code(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("let in"),
    }
}

#[test]
fn two_nodes_keep_one_link_and_use_it_both_ways() {
    let (mut one, mut two) = (Place::new(1), Place::new(2));
    one.knows(&[&two]);
    two.knows(&[&one]);
    until(&mut [&mut one, &mut two], "a link", |all| all[0].is_linked(2) && all[1].is_linked(1));
    assert_eq!((one.heard(), two.heard()), (vec!["up 2.1".into()], vec!["up 1.1".into()]));
    one.send(2, Class::Consensus, b"there");
    two.send(1, Class::Heartbeat, b"back");
    let mut heard = (Vec::new(), Vec::new());
    until(&mut [&mut one, &mut two], "packets", |all| {
        heard.0.extend(all[0].heard());
        heard.1.extend(all[1].heard());
        !heard.0.is_empty() && !heard.1.is_empty()
    });
    assert_eq!(heard, (vec!["back from 2".into()], vec!["there from 1".into()]));
    assert_eq!((one.peers.links.len(), two.peers.links.len()), (1, 1));
    assert!(one.peers.is_quiet() && two.peers.is_quiet());
}

/// That the kernel does so, `cargo x lab --fault cut --seconds 80` shows: nothing here can cut a connection in silence.
#[test]
fn both_ends_of_a_link_give_up_what_is_never_confirmed() {
    let (mut one, mut two) = (Place::new(1), Place::new(2));
    one.knows(&[&two]);
    two.knows(&[&one]);
    until(&mut [&mut one, &mut two], "a link", |all| all[0].is_linked(2) && all[1].is_linked(1));
    for place in [&one, &two] {
        for entry in place.peers.links.values() {
            assert_eq!(sockopt::tcp_user_timeout(entry.link.stream.socket()).unwrap(), UNCONFIRMED_MS_MAX);
        }
    }
}

#[test]
fn the_higher_dials_too_if_the_lower_does_not() {
    let (mut one, mut two) = (Place::new(1), Place::new(2));
    two.knows(&[&one]);
    two.turn();
    assert!(two.peers.links.is_empty(), "the lower has a second");
    two.ahead = Duration::from_secs(1);
    until(&mut [&mut one, &mut two], "a link", |all| all[0].is_linked(2) && all[1].is_linked(1));
}

#[test]
fn when_both_dial_at_once_one_link_remains() {
    for _ in 0..20 {
        let (mut one, mut two) = (Place::new(1), Place::new(2));
        one.knows(&[&two]);
        two.knows(&[&one]);
        two.ahead = Duration::from_secs(1);
        until(&mut [&mut one, &mut two], "one link", |all| {
            let settled = |place: &Place, other| place.peers.links.len() == 1 && place.is_linked(other);
            settled(all[0], 2) && settled(all[1], 1)
        });
        let last = |heard: Vec<String>| heard.last().cloned();
        assert_eq!(last(one.heard()), Some("up 2.1".into()));
        assert_eq!(last(two.heard()), Some("up 1.1".into()));
    }
}

#[test]
fn of_two_connections_that_crossed_the_one_of_the_lower_stays() {
    // This end is the lower, and dialled.
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let theirs = hello(2, listener.local_addr().unwrap());
    let mut one = Place::new(1);
    let address = one.address;
    let list = [(NodeId(2), theirs.peer.clone())];
    one.peers.set_members(one.now(), &list, &mut one.owner);
    let _link = beside(&mut one, || Puppet::accept(&listener, theirs.clone()).unwrap());
    until(&mut [&mut one], "a link", |all| all[0].is_linked(2));
    let second = beside(&mut one, || Puppet::dial(address, theirs.clone()));
    assert_eq!(refused_with(second), Code::Busy);
    assert_eq!(one.heard(), ["up 2.1"]);
    // Much later they cannot have crossed: the other end has lost the first.
    one.ahead = CROSSING_TIME_MAX;
    let _second = beside(&mut one, || Puppet::dial(address, theirs.clone()).unwrap());
    until(&mut [&mut one], "the second", |all| all[0].owner.events.len() == 2);
    assert_eq!(one.heard(), ["down 2 gone=false", "up 2.1"]);

    // This end is the higher, and dialled.
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let theirs = hello(2, listener.local_addr().unwrap());
    let mut five = Place::new(5);
    let address = five.address;
    let list = [(NodeId(2), theirs.peer.clone())];
    five.peers.set_members(five.now(), &list, &mut five.owner);
    five.ahead = Duration::from_secs(1);
    let mut first = beside(&mut five, || Puppet::accept(&listener, theirs.clone()).unwrap());
    until(&mut [&mut five], "a link", |all| all[0].is_linked(2));
    let _second = beside(&mut five, || Puppet::dial(address, theirs.clone()).unwrap());
    until(&mut [&mut five], "the second", |all| all[0].owner.events.len() == 3);
    assert_eq!(five.heard(), ["up 2.1", "down 2 gone=false", "up 2.1"]);
    assert!(beside(&mut five, || first.is_closed()));
}

#[test]
fn a_number_that_is_taken_is_refused_and_the_link_stays() {
    let mut one = Place::new(1);
    let address = one.address;
    let theirs = hello(2, free_address());
    let _link = beside(&mut one, || Puppet::dial(address, theirs.clone()).unwrap());
    for (incarnation, boot) in [(99, 1), (theirs.incarnation, 0)] {
        let impostor = PeerHello { incarnation, boot, ..theirs.clone() };
        let refused = beside(&mut one, || Puppet::dial(address, impostor));
        assert_eq!(refused_with(refused), Code::NodeConflict);
    }
    let itself = hello(1, free_address());
    let refused = beside(&mut one, || Puppet::dial(address, itself));
    assert!(matches!(refused, Err(PeerError::SameNode(NodeId(1)))));
    assert_eq!(one.heard(), ["up 2.1"]);
    assert!(one.is_linked(2));
}

#[test]
fn a_node_whose_number_is_taken_ends_when_it_was_told_so_for_a_while() {
    let mut one = Place::new(1);
    let address = one.address;
    let theirs = hello(2, free_address());
    let _link = beside(&mut one, || Puppet::dial(address, theirs).unwrap());
    let mut impostor = Place::with(2, &[one.address], |hello| hello.incarnation = 99);
    until(&mut [&mut one, &mut impostor], "a refusal", |all| all[1].peers.conflict.is_some());
    assert_eq!(impostor.peers.take_fatal(), None, "the other may just be ending");
    impostor.ahead = Duration::from_secs(4);
    let mut fatal = None;
    until(&mut [&mut one, &mut impostor], "the end", |all| {
        fatal = all[1].peers.take_fatal();
        fatal.is_some()
    });
    let fatal = fatal.unwrap();
    assert_eq!(fatal.exit_code(), 2);
    assert!(fatal.message().contains("this node's number") && fatal.hint().contains("node.id"), "{fatal}");
    assert_eq!(impostor.heard(), [""; 0]);
    assert_eq!(one.heard(), ["up 2.1"]);
}

#[test]
fn a_later_boot_takes_over_and_proves_the_earlier_process_gone() {
    let mut one = Place::new(1);
    let address = one.address;
    let theirs = hello(2, free_address());
    let mut old = beside(&mut one, || Puppet::dial(address, theirs.clone()).unwrap());
    let later = PeerHello { boot: 2, ..theirs };
    let _new = beside(&mut one, || Puppet::dial(address, later).unwrap());
    until(&mut [&mut one], "the new one", |all| all[0].owner.events.len() == 3);
    assert_eq!(one.heard(), ["up 2.1", "down 2 gone=true", "up 2.2"]);
    assert!(beside(&mut one, || old.is_closed()));
}

#[test]
fn who_is_not_wanted_hears_why_and_is_no_link() {
    let mut one = Place::new(1);
    one.owner.unwanted = Some((NodeId(2), Code::Removed));
    let address = one.address;
    let refused = beside(&mut one, || Puppet::dial(address, hello(2, free_address())));
    assert_eq!(refused_with(refused), Code::Removed);
    assert!(one.heard().is_empty());
}

#[test]
fn a_process_that_ends_is_reported_as_gone() {
    let (mut one, mut two) = (Place::new(1), Place::new(2));
    one.knows(&[&two]);
    until(&mut [&mut one, &mut two], "a link", |all| all[0].is_linked(2) && all[1].is_linked(1));
    drop(two);
    let mut heard = Vec::new();
    until(&mut [&mut one], "the end", |all| {
        heard.extend(all[0].heard());
        heard.len() == 2
    });
    assert_eq!(heard, ["up 2.1", "down 2 gone=true"]);
}

#[test]
fn a_connection_that_breaks_between_processes_that_live_is_made_again() {
    let (mut one, mut two) = (Place::new(1), Place::new(2));
    one.knows(&[&two]);
    two.knows(&[&one]);
    until(&mut [&mut one, &mut two], "a link", |all| all[0].is_linked(2) && all[1].is_linked(1));
    for place in [&mut one, &mut two] {
        place.heard();
    }
    let token = one.peers.up[&NodeId(2)];
    one.peers.links[&token].link.stream.socket().shutdown(net::Shutdown::Both).unwrap();
    let mut heard = [Vec::new(), Vec::new()];
    until(&mut [&mut one, &mut two], "a new link", |all| {
        for (place, heard) in all.iter_mut().zip(&mut heard) {
            heard.extend(place.heard());
        }
        heard.iter().all(|heard| heard.len() >= 2)
    });
    assert_eq!(heard[0][..2], ["down 2 gone=false", "up 2.1"]);
    assert_eq!(heard[1][..2], ["down 1 gone=false", "up 1.1"]);
}

#[test]
fn a_process_that_stands_still_is_not_gone() {
    // Its kernel takes connections; nobody answers.
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let theirs = hello(2, listener.local_addr().unwrap());
    let mut one = Place::new(1);
    let address = one.address;
    let link = beside(&mut one, || Puppet::dial(address, theirs).unwrap());
    until(&mut [&mut one], "a link", |all| all[0].is_linked(2));
    drop(link);
    until(&mut [&mut one], "the break", |all| !all[0].is_linked(2));
    assert_eq!(one.heard(), ["up 2.1"], "not before it is known whether it is gone");
    one.ahead = Duration::from_millis(100);
    until(&mut [&mut one], "the verdict", |all| !all[0].owner.events.is_empty());
    assert_eq!(one.heard(), ["down 2 gone=false"]);
}

#[test]
fn a_joining_node_asks_its_seeds_in_turn_and_is_no_link_yet() {
    let mut one = Place::new(1);
    let seeds = [free_address(), one.address];
    let mut joiner = Place::with(2, &seeds, |hello| (hello.cluster, hello.shard_count) = (None, 0));
    until(&mut [&mut one, &mut joiner], "an answer", |all| !all[1].owner.events.is_empty());
    let [PeerEvent::Up(member)] = &joiner.owner.events[..] else { panic!("{:?}", joiner.owner.events) };
    assert_eq!((member.cluster, member.shard_count), (Some(ClusterId(5)), 16));
    assert!(joiner.peers.seeds_in_words().contains("refused"), "{}", joiner.peers.seeds_in_words());
    until(&mut [&mut one, &mut joiner], "the end of it", |all| all[0].peers.links.is_empty());
    assert!(one.heard().is_empty() && !joiner.is_linked(1));
}

#[test]
fn a_node_with_an_identity_and_without_members_gets_in_through_a_seed() {
    let mut one = Place::new(1);
    let mut two = Place::with(2, &[one.address], |_| {});
    until(&mut [&mut one, &mut two], "a link", |all| all[0].is_linked(2) && all[1].is_linked(1));
    two.knows(&[&one]);
    two.turn();
    assert_eq!((one.heard(), two.heard()), (vec!["up 2.1".into()], vec!["up 1.1".into()]));
}

#[test]
fn a_seed_of_another_cluster_ends_a_node_that_knows_nobody_else() {
    let mut one = Place::new(1);
    let mut two = Place::with(2, &[one.address], |hello| hello.cluster = Some(ClusterId(6)));
    let mut fatal = None;
    until(&mut [&mut one, &mut two], "the end", |all| {
        fatal = all[1].peers.take_fatal();
        fatal.is_some()
    });
    let fatal = fatal.unwrap();
    assert_eq!(fatal.exit_code(), 2);
    assert!(fatal.message().contains("another cluster"), "{fatal}");
}

#[test]
fn another_secret_is_found_out_and_waited_for() {
    let mut one = Place::new(1);
    let mut two = Place::with(2, &[one.address], |_| {});
    two.peers.secret = MacKey::new([8; 32]).into();
    until(&mut [&mut one, &mut two], "words", |all| {
        all[1].peers.seeds_in_words().contains("secret does not match")
    });
    assert_eq!(two.peers.take_fatal(), None);
    assert!(one.heard().is_empty() && two.heard().is_empty());
}

/// What a node with this certificate shows and believes.
fn certified(authority: &Authority, node: u16) -> Security {
    let hosts = [Host::parse("127.0.0.1").unwrap()];
    let issued = authority.issue(&Name::Node(NodeId(node)), &hosts, 10).unwrap();
    let (certificate, key) = (issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes());
    Security::of(&Identity::from_pem(certificate, key, authority.certificate_pem().as_bytes()).unwrap())
        .unwrap()
}

#[test]
fn links_with_certificates_carry_packets_of_every_size() {
    let authority = Authority::make(10).unwrap();
    let (mut one, mut two) = (Place::new(1), Place::new(2));
    one.peers.set_security(certified(&authority, 1));
    two.peers.set_security(certified(&authority, 2));
    one.knows(&[&two]);
    two.knows(&[&one]);
    until(&mut [&mut one, &mut two], "a link", |all| all[0].is_linked(2) && all[1].is_linked(1));
    assert_eq!((one.heard(), two.heard()), (vec!["up 2.1".to_owned()], vec!["up 1.1".to_owned()]));
    let large: &'static [u8] = vec![b'x'; 3 << 20].leak();
    one.send(2, Class::Bulk, large);
    one.send(2, Class::Bulk, b"last");
    let mut lengths = Vec::new();
    until(&mut [&mut one, &mut two], "both packets", |all| {
        lengths.extend(all[1].heard().iter().map(String::len));
        lengths.len() == 2
    });
    assert_eq!(lengths, [large.len() + " from 1".len(), "last from 1".len()]);
    until(&mut [&mut one, &mut two], "quiet", |all| all[0].peers.is_quiet());
}

#[test]
fn a_node_with_another_one_s_certificate_is_turned_away_by_either_end() {
    let authority = Authority::make(10).unwrap();
    for (accepting, dialling, says) in [
        (1, 3, "the certificate is for node 3, the hello says node 2"),
        (3, 2, "the certificate is for node 3, the hello says node 1"),
    ] {
        let mut one = Place::new(1);
        let mut two = Place::with(2, &[one.address], |_| {});
        one.peers.set_security(certified(&authority, accepting));
        two.peers.set_security(certified(&authority, dialling));
        until(&mut [&mut one, &mut two], "words", |all| all[1].peers.seeds_in_words().contains(says));
        // Whoever has the wrong one may take the other for a link until it hears the verdict.
        let honest = if accepting == 1 { &mut one } else { &mut two };
        assert!(honest.heard().is_empty());
    }
}

#[test]
fn what_is_no_session_is_counted_by_its_reason() {
    let (authority, other) = (Authority::make(10).unwrap(), Authority::make(10).unwrap());
    let mut one = Place::new(1);
    let mut two = Place::with(2, &[one.address], |_| {});
    one.peers.set_security(certified(&authority, 1));
    two.peers.set_security(certified(&other, 2));
    until(&mut [&mut one, &mut two], "words", |all| {
        all[1].peers.seeds_in_words().contains("not trusted here")
    });
    until(&mut [&mut one, &mut two], "the count", |all| {
        all[1].peers.failures().contains_key(&("out", "unknown_authority"))
            && all[0].peers.failures().keys().any(|(port, reason)| (*port, *reason) == ("peer", "refused"))
    });
    // Plain text, spoken by a node without certificates.
    two.peers.set_security(Security::Plain);
    until(&mut [&mut one, &mut two], "the count", |all| {
        all[0].peers.failures().contains_key(&("peer", "plain_text"))
    });
    assert!(one.heard().is_empty() && two.heard().is_empty());
}

#[test]
fn a_seed_that_is_the_node_itself_is_left_out() {
    let address = free_address();
    let mut one = Place::at(hello(1, address), address, &[address]);
    until(&mut [&mut one], "the insight", |all| {
        all[0].peers.seeds_in_words().is_empty() && all[0].peers.links.is_empty()
    });
    assert_eq!((one.peers.take_fatal(), one.peers.conflict), (None, None));
}

#[test]
fn garbage_and_floods_before_the_handshake_cost_little() {
    let mut one = Place::new(1);
    let address = one.address;
    for garbage in [vec![0xff; 64], vec![0; 20 << 10], b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let closed = beside(&mut one, move || {
            let mut puppet = Puppet::of(net::TcpStream::connect(address).unwrap());
            // The other end may have closed before it was offered everything.
            let offered = puppet.stream.write_all(&garbage);
            while puppet.more() {}
            offered.is_ok() || offered.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock)
        });
        assert!(closed);
    }
    let mut idle = Vec::new();
    for _ in 0..3 * STRANGERS_MAX {
        idle.push(net::TcpStream::connect(address).unwrap());
        one.turn();
        assert!(one.peers.links.len() <= STRANGERS_MAX);
    }
    let _node = beside(&mut one, || Puppet::dial(address, hello(2, free_address())).unwrap());
    until(&mut [&mut one], "a link", |all| all[0].is_linked(2));
    one.ahead = UNAUTHENTICATED_TIME_MAX;
    one.turn();
    assert_eq!(one.peers.links.len(), 1, "whoever says nothing is gone after two seconds");
    assert_eq!(one.heard(), ["up 2.1"]);
}

#[test]
fn a_peer_that_takes_nothing_is_given_up() {
    static LARGE: [u8; 4 << 20] = [0; 4 << 20];
    let mut one = Place::new(1);
    let address = one.address;
    let list = [(NodeId(2), free_address().to_string())];
    let _slow = beside(&mut one, || Puppet::dial(address, hello(2, free_address())).unwrap());
    one.peers.set_members(one.now(), &list, &mut one.owner);
    let token = one.peers.up[&NodeId(2)];
    until(&mut [&mut one], "a full socket", |all| {
        all[0].send(2, Class::Bulk, &LARGE);
        all[0].turn();
        all[0].peers.links[&token].link.is_blocked()
    });
    one.ahead = Duration::from_millis(9_900);
    one.turn();
    assert!(one.is_linked(2));
    one.ahead = Duration::from_secs(12);
    one.turn();
    assert_eq!(one.heard(), ["up 2.1", "down 2 gone=false"]);

    let _slow = beside(&mut one, || Puppet::dial(address, hello(2, free_address())).unwrap());
    until(&mut [&mut one], "a link", |all| all[0].is_linked(2));
    for _ in 0..20 {
        one.send(2, Class::Bulk, &LARGE);
    }
    assert_eq!(one.heard(), ["up 2.1", "down 2 gone=false"], "too much waits");
}

#[test]
fn bytes_that_are_no_packet_end_the_link() {
    let mut one = Place::new(1);
    let address = one.address;
    let mut node = beside(&mut one, || Puppet::dial(address, hello(2, free_address())).unwrap());
    node.stream.write_all(&[0, 0, 0, 1, 9]).unwrap();
    until(&mut [&mut one], "the end", |all| !all[0].is_linked(2) && all[0].owner.events.len() == 2);
    assert_eq!(one.heard(), ["up 2.1", "down 2 gone=false"]);
    assert!(beside(&mut one, || node.is_closed()));
}

#[test]
fn who_is_no_member_any_more_is_let_go_with_the_last_word() {
    let mut one = Place::new(1);
    let address = one.address;
    let theirs = hello(2, free_address());
    let mut node = beside(&mut one, || Puppet::dial(address, theirs.clone()).unwrap());
    one.peers.set_members(one.now(), &[(NodeId(2), theirs.peer)], &mut one.owner);
    one.send(2, Class::Heartbeat, b"farewell");
    one.peers.set_members(one.now(), &[], &mut one.owner);
    assert_eq!(one.heard(), ["up 2.1", "down 2 gone=false"]);
    let word = beside(&mut one, || {
        while node.more() {}
        let mut reader = PacketReader::new();
        *reader.buffer() = node.buffer.split();
        reader.next().unwrap().unwrap().body
    });
    assert_eq!(word, &b"farewell"[..]);
}
