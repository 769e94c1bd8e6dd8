//! Two ends of a session over a wire in memory: who is let in and who is not, and bytes in every portion.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
};

use swarmmq_protocol::{id::NodeId, limits::UNAUTHENTICATED_BYTES_MAX};

use crate::{Acceptor, Authority, Connector, Host, Identity, Issued, Name, Stream, TlsError, error::Refusal};

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DAY: u64 = 86_400;

/// One direction: bytes under way, how many more it takes, how many it gives at a time.
#[derive(Debug)]
struct Lane {
    bytes: VecDeque<u8>,
    room: usize,
    portion: usize,
    closed: bool,
    total: usize,
}

type Shared = Rc<RefCell<Lane>>;

/// One end of a wire.
#[derive(Debug)]
struct Wire {
    incoming: Shared,
    outgoing: Shared,
}

fn lane() -> Shared {
    let lane =
        Lane { bytes: VecDeque::new(), room: usize::MAX, portion: usize::MAX, closed: false, total: 0 };
    Rc::new(RefCell::new(lane))
}

fn wires() -> (Wire, Wire) {
    let (up, down) = (lane(), lane());
    (Wire { incoming: Rc::clone(&down), outgoing: Rc::clone(&up) }, Wire { incoming: up, outgoing: down })
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut lane = self.incoming.borrow_mut();
        if lane.bytes.is_empty() {
            return if lane.closed { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let portion = lane.portion.min(into.len());
        lane.bytes.read(&mut into[..portion])
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lane = self.outgoing.borrow_mut();
        if lane.room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = bytes.len().min(lane.room);
        lane.room -= count;
        lane.total += count;
        lane.bytes.extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hosts() -> Vec<Host> {
    ["127.0.0.1", "queue.example.com"].iter().filter_map(|host| Host::parse(host)).collect()
}

fn node(number: u16) -> Name {
    Name::Node(NodeId(number))
}

fn identity(issued: &Issued, trusts: &Authority) -> Identity {
    let (certificate, key) = (issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes());
    Identity::from_pem(certificate, key, trusts.certificate_pem().as_bytes()).unwrap()
}

/// A node's identity from this authority.
fn of(authority: &Authority, name: &Name) -> Identity {
    let hosts = if matches!(name, Name::Node(_)) { hosts() } else { Vec::new() };
    identity(&authority.issue(name, &hosts, 10).unwrap(), authority)
}

fn connector(authority: &Authority) -> Connector {
    Connector::new(authority.certificate_pem().as_bytes(), None).unwrap()
}

type Ends = (Stream<Wire>, Stream<Wire>);

/// A client and a node that have not said anything yet.
fn client_and_node() -> Ends {
    let authority = Authority::make(30).unwrap();
    let (near, far) = wires();
    let client = connector(&authority).connect(near, "127.0.0.1").unwrap();
    (client, of(&authority, &node(1)).clients().unwrap().accept(far).unwrap())
}

/// Both ends by turns until neither has more to say.
fn shake((near, far): &mut Ends) -> (io::Result<bool>, io::Result<bool>) {
    let mut results = (Ok(false), Ok(false));
    for _ in 0..8 {
        results = (near.handshake(), far.handshake());
    }
    // What the other end said after this one was done.
    if matches!(results.0, Ok(true)) {
        match near.read(&mut [0; 16]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => results.0 = Err(error),
            Ok(_) => {}
        }
    }
    results
}

fn established() -> Ends {
    let mut ends = client_and_node();
    let (near, far) = shake(&mut ends);
    assert!(near.unwrap() && far.unwrap());
    ends.0.trust();
    ends.1.trust();
    ends
}

/// What failed at the dialling end, and at the accepting one.
fn failures(ends: &mut Ends) -> (Option<TlsError>, Option<TlsError>) {
    let (near, far) = shake(ends);
    let why = |result: io::Result<bool>| result.err().and_then(|error| TlsError::of(&error).cloned());
    (why(near), why(far))
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 % 251) as u8).collect()
}

/// Sends all of `bytes` and reads until they have come, by turns.
fn carry(from: &mut Stream<Wire>, to: &mut Stream<Wire>, bytes: &[u8], buffer: usize) -> Vec<u8> {
    let (mut sent, mut came) = (0, Vec::new());
    let mut room = vec![0; buffer];
    for _ in 0..1_000_000 {
        if sent < bytes.len() {
            match from.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        } else if from.flush().is_ok() && came.len() == bytes.len() {
            return came;
        }
        match to.read(&mut room) {
            Ok(count) => came.extend_from_slice(&room[..count]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    panic!("{} of {} bytes came", came.len(), bytes.len());
}

#[test]
fn what_is_written_is_read_and_nothing_of_it_is_seen_on_the_wire() {
    let (mut near, mut far) = established();
    near.write_all(b"the secret word").unwrap();
    let seen: Vec<u8> = near.socket().outgoing.borrow().bytes.iter().copied().collect();
    assert!(!seen.windows(6).any(|part| part == b"secret"));
    let mut came = [0; 64];
    assert_eq!(far.read(&mut came).unwrap(), 15);
    assert_eq!(&came[..15], b"the secret word");
    assert_eq!(far.read(&mut came).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    far.write_all(b"answer").unwrap();
    assert_eq!(near.read(&mut came).unwrap(), 6);
}

#[test]
fn small_slices_share_a_record_and_large_ones_are_not_copied_together() {
    let (mut near, mut far) = established();
    let wire = |near: &Stream<Wire>| near.socket().outgoing.borrow().total;
    let before = wire(&near);
    let slices = [&b"one "[..], b"two ", b"three"].map(io::IoSlice::new);
    assert_eq!(near.write_vectored(&slices).unwrap(), 13);
    assert_eq!(wire(&near) - before, 13 + 22, "one record: header, type, tag");
    let mut came = [0; 64];
    let count = far.read(&mut came).unwrap();
    assert_eq!(&came[..count], b"one two three");
    let large = pattern(100_000);
    let slices = [io::IoSlice::new(&large), io::IoSlice::new(b"x")];
    let taken = near.write_vectored(&slices).unwrap();
    assert_eq!(taken, 64 << 10);
}

#[test]
fn bytes_come_whole_in_every_portion_and_into_every_buffer() {
    let bytes = pattern(200_000);
    for (portion, buffer) in [(1, 4096), (7, 64), (16_384, 1), (usize::MAX, 100_000), (20_000, 8_193)] {
        let (mut near, mut far) = established();
        let small = &bytes[..if portion == 1 || buffer == 1 { 40_000 } else { bytes.len() }];
        near.socket().outgoing.borrow_mut().portion = portion;
        assert!(carry(&mut near, &mut far, small, buffer) == small, "portions of {portion} into {buffer}");
        assert!(!far.has_more() && !near.has_unsent());
    }
}

#[test]
fn a_handshake_byte_by_byte_is_a_handshake() {
    let mut ends = client_and_node();
    ends.0.socket().outgoing.borrow_mut().portion = 1;
    ends.0.socket().incoming.borrow_mut().portion = 1;
    for _ in 0..10_000 {
        ends.0.handshake().unwrap();
        ends.1.handshake().unwrap();
    }
    assert!(!ends.0.is_handshaking() && !ends.1.is_handshaking());
}

#[test]
fn a_socket_that_takes_little_gets_everything_in_order_and_flush_tells_when() {
    let (mut near, mut far) = established();
    let bytes = pattern(150_000);
    let lane = Rc::clone(&near.socket().outgoing);
    lane.borrow_mut().room = 10;
    let mut sent = near.write(&bytes).unwrap();
    assert_eq!(sent, 64 << 10, "one piece is taken, whatever the socket does");
    assert!(near.has_unsent());
    assert_eq!(near.write(&bytes[sent..]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(near.flush().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let mut came = Vec::new();
    let mut room = vec![0; 50_000];
    while came.len() < bytes.len() {
        lane.borrow_mut().room = 1_000;
        if sent < bytes.len() {
            sent += near.write(&bytes[sent..]).unwrap_or(0);
        } else {
            let _more_to_flush = near.flush().is_err();
        }
        match far.read(&mut room) {
            Ok(count) => came.extend_from_slice(&room[..count]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    assert!(came == bytes && !near.has_unsent());
    near.flush().unwrap();
}

#[test]
fn before_the_handshake_nothing_is_taken_and_its_own_words_go_out() {
    let (mut near, mut far) = client_and_node();
    assert_eq!(near.write(b"early").unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(near.socket().outgoing.borrow().total > 100, "the first word of the handshake");
    assert_eq!(far.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(far.write(b"early").unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(near.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(near.write(b"late").unwrap(), 4);
    assert_eq!(far.read(&mut [0; 8]).unwrap(), 4);
}

#[test]
fn both_ends_learn_who_the_other_is() {
    let authority = Authority::make(30).unwrap();
    let (one, two) = (of(&authority, &node(1)), of(&authority, &node(2)));
    let (near, far) = wires();
    let mut ends =
        (one.dialler().unwrap().dial(near, HOME).unwrap(), two.peers().unwrap().accept(far).unwrap());
    assert_eq!(failures(&mut ends), (None, None));
    assert_eq!((ends.0.peer(), ends.1.peer()), (Some(&node(2)), Some(&node(1))));
    assert!(ends.1.socket().incoming.borrow().total < UNAUTHENTICATED_BYTES_MAX);

    let billing = Name::client("billing").unwrap();
    let pem = authority.certificate_pem().as_bytes();
    for (shown, expected) in [(Some(of(&authority, &billing)), Some(&billing)), (None, None)] {
        let (near, far) = wires();
        let connector = Connector::new(pem, shown.as_ref()).unwrap();
        let mut ends =
            (connector.connect(near, "127.0.0.1").unwrap(), two.clients().unwrap().accept(far).unwrap());
        assert_eq!(failures(&mut ends), (None, None));
        assert_eq!(ends.1.peer(), expected);
    }
}

#[test]
fn a_client_believes_only_the_right_host_of_the_right_authority() {
    let (authority, other) = (Authority::make(30).unwrap(), Authority::make(30).unwrap());
    let served = of(&authority, &node(1)).clients().unwrap();
    let attempt = |connector: &Connector, host: &str| {
        let (near, far) = wires();
        failures(&mut (connector.connect(near, host).unwrap(), served.accept(far).unwrap()))
    };
    for host in ["127.0.0.1", "queue.example.com"] {
        assert_eq!(attempt(&connector(&authority), host), (None, None), "{host}");
    }
    let (near, far) = attempt(&connector(&authority), "127.0.0.2");
    let text = near.unwrap().to_string();
    assert!(text.contains("not for 127.0.0.2") && text.contains("queue.example.com"), "{text}");
    assert!(matches!(far, Some(TlsError::Refused(_))), "{far:?}");
    let (near, far) = attempt(&connector(&other), "127.0.0.1");
    assert_eq!(near, Some(TlsError::UnknownAuthority));
    assert_eq!(far, Some(TlsError::Refused(Refusal::UnknownAuthority)));
    assert!(matches!(
        connector(&authority).connect(wires().0, "not a host").unwrap_err(),
        TlsError::BadHost(_)
    ));
    // While one authority replaces another both are trusted.
    let both = [other.certificate_pem(), authority.certificate_pem()].concat();
    assert_eq!(attempt(&Connector::new(both.as_bytes(), None).unwrap(), "127.0.0.1"), (None, None));
}

/// Serves with a certificate that no identity would be made of.
fn serving(authority: &Authority, issued: &Issued) -> Acceptor {
    crate::identity::serving(authority, issued)
}

#[test]
fn a_certificate_counts_only_in_its_time() {
    let authority = Authority::make(30).unwrap();
    let now = crate::certificate::now();
    for (from, until) in [(now - 9 * DAY, now - 2 * DAY), (now + 2 * DAY, now + 9 * DAY)] {
        let issued = authority.issue_between(&node(1), &hosts(), from, until).unwrap();
        let (near, far) = wires();
        let mut ends = (
            connector(&authority).connect(near, "127.0.0.1").unwrap(),
            serving(&authority, &issued).accept(far).unwrap(),
        );
        let expected = if until < now {
            TlsError::Expired { not_after: Some(until) }
        } else {
            TlsError::NotValidYet { not_before: Some(from) }
        };
        let (near, far) = failures(&mut ends);
        assert_eq!(near, Some(expected));
        assert!(matches!(far, Some(TlsError::Refused(_))), "{far:?}");
        let (certificate, key) = (issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes());
        let error = Identity::from_pem(certificate, key, authority.certificate_pem().as_bytes()).unwrap_err();
        assert!(error.to_string().contains(if until < now { "expired" } else { "has not come" }), "{error}");
    }
}

#[test]
fn a_client_s_certificate_cannot_serve() {
    let authority = Authority::make(30).unwrap();
    let issued = authority.issue(&Name::client("mallory").unwrap(), &[], 10).unwrap();
    let acceptor = serving(&authority, &issued);
    let (near, far) = wires();
    let mut ends = (connector(&authority).connect(near, "127.0.0.1").unwrap(), acceptor.accept(far).unwrap());
    assert_eq!(failures(&mut ends).0, Some(TlsError::WrongUse));
}

#[test]
fn the_peer_port_lets_in_only_the_authority_s_own() {
    let (authority, other) = (Authority::make(30).unwrap(), Authority::make(30).unwrap());
    let served = of(&authority, &node(1)).peers().unwrap();
    // A stranger that trusts this cluster, with a certificate from elsewhere.
    let foreign = identity_that_trusts(&other.issue(&node(2), &hosts(), 10).unwrap(), &other, &authority);
    let (near, far) = wires();
    let mut ends = (foreign.dialler().unwrap().dial(near, HOME).unwrap(), served.accept(far).unwrap());
    let (near, far) = failures(&mut ends);
    assert_eq!(far, Some(TlsError::UnknownAuthority));
    assert_eq!(near, Some(TlsError::Refused(Refusal::UnknownAuthority)));
    // One with none at all, in the language of nodes and in that of clients.
    let (near, far) = wires();
    let mut ends =
        (crate::identity::nameless(&authority).dial(near, HOME).unwrap(), served.accept(far).unwrap());
    let (near, far) = failures(&mut ends);
    assert_eq!((near, far), (Some(TlsError::Refused(Refusal::Missing)), Some(TlsError::NoCertificate)));
    let (near, far) = wires();
    let mut ends = (connector(&authority).connect(near, "127.0.0.1").unwrap(), served.accept(far).unwrap());
    assert_eq!(failures(&mut ends), (Some(TlsError::OtherProtocol), Some(TlsError::OtherProtocol)));
}

/// Trusts one authority and shows a certificate of another.
fn identity_that_trusts(issued: &Issued, own: &Authority, trusted: &Authority) -> Identity {
    let both = [own.certificate_pem(), trusted.certificate_pem()].concat();
    let (certificate, key) = (issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes());
    Identity::from_pem(certificate, key, both.as_bytes()).unwrap()
}

#[test]
fn plain_text_garbage_and_old_versions_are_called_by_their_name() {
    // A TLS 1.2 hello: no supported_versions (RFC 8446, 4.2.1), so 1.2 is all it offers.
    let mut hello = vec![22, 3, 1, 0, 53, 1, 0, 0, 49, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 8, 0, 10, 0, 4, 0, 2, 0, 23]);
    let length = hello.len() - 5;
    hello[4] = length as u8;
    hello[8] = (length - 4) as u8;
    for (said, expected) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "plain_text"),
        (b"\0\0\0\x10SWMQ".to_vec(), "plain_text"),
        (hello, "old_version"),
        ([22, 3, 1, 0, 5, 9, 9, 9, 9, 9].to_vec(), "broken"),
        ([22, 3, 3, 0xff, 0xff].to_vec(), "broken"),
    ] {
        let (near, mut far) = client_and_node();
        let mut wire = near.socket().outgoing.borrow_mut();
        wire.bytes.extend(&said);
        drop(wire);
        let error = far.handshake().unwrap_err();
        let failure = TlsError::of(&error).unwrap();
        assert_eq!(failure.kind(), expected, "{said:?}: {failure}");
        assert!(!failure.hint().is_empty());
        assert_eq!(far.failure(), Some(failure));
        assert!(far.write(b"x").is_err() && far.read(&mut [0; 8]).is_err());
    }
}

#[test]
fn a_plain_server_is_told_from_one_that_is_broken() {
    let (mut near, far) = client_and_node();
    near.handshake().unwrap();
    far.socket().outgoing.borrow_mut().bytes.extend(b"\0\0\0\x10plain");
    assert_eq!(TlsError::of(&near.handshake().unwrap_err()), Some(&TlsError::PlainText));
}

#[test]
fn a_stranger_may_send_eight_kibibytes_and_no_more() {
    let (near, mut far) = client_and_node();
    let mut record = vec![22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb];
    record.resize(UNAUTHENTICATED_BYTES_MAX, 0);
    near.socket().outgoing.borrow_mut().bytes.extend(&record);
    assert!(!far.handshake().unwrap());
    near.socket().outgoing.borrow_mut().bytes.push_back(0);
    assert_eq!(TlsError::of(&far.handshake().unwrap_err()), Some(&TlsError::TooMuch));
    // After the handshake it is still a stranger, until whoever is above trusts it.
    let mut ends = client_and_node();
    let (one, other) = shake(&mut ends);
    assert!(one.unwrap() && other.unwrap());
    ends.0.write_all(&pattern(UNAUTHENTICATED_BYTES_MAX)).unwrap();
    let mut room = vec![0; 64 << 10];
    let read = ends.1.read(&mut room).map(|_| ()).and_then(|()| ends.1.read(&mut room).map(|_| ()));
    assert_eq!(read.err().as_ref().and_then(TlsError::of), Some(&TlsError::TooMuch));
}

#[test]
fn an_end_is_an_end_with_or_without_a_word() {
    let mut buffer = [0; 64];
    let (mut near, mut far) = established();
    near.write_all(b"last").unwrap();
    near.close();
    assert_eq!(far.read(&mut buffer).unwrap(), 4);
    assert_eq!(far.read(&mut buffer).unwrap(), 0, "it said so");

    let (mut near, mut far) = established();
    near.write_all(b"last").unwrap();
    near.socket().outgoing.borrow_mut().closed = true;
    assert_eq!(far.read(&mut buffer).unwrap(), 4);
    assert_eq!(far.read(&mut buffer).unwrap(), 0, "it was cut");

    let (near, mut far) = client_and_node();
    near.socket().outgoing.borrow_mut().closed = true;
    assert_eq!(far.handshake().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_changed_bit_ends_the_session_and_gives_nothing_out() {
    let (mut near, mut far) = established();
    near.write_all(&pattern(100)).unwrap();
    *near.socket().outgoing.borrow_mut().bytes.get_mut(40).unwrap() ^= 1;
    let mut buffer = [0; 200];
    let error = far.read(&mut buffer).unwrap_err();
    assert_eq!(TlsError::of(&error).unwrap().kind(), "broken");
    assert_eq!(buffer, [0; 200]);
    assert!(near.read(&mut buffer).is_err(), "the other end hears of it");
}

#[test]
fn an_idle_session_keeps_no_buffers() {
    let (mut near, mut far) = established();
    let came = carry(&mut near, &mut far, &pattern(300_000), 10_000);
    assert_eq!(came.len(), 300_000);
    for end in [&near, &far] {
        assert_eq!(end.buffered_bytes(), 0);
    }
}

#[test]
fn keys_change_in_time_without_anybody_noticing() {
    let authority = Authority::make(30).unwrap();
    let (near, far) = wires();
    // After so many records a key is used up; real ones last for 2^24.
    let (connector, acceptor) = crate::identity::with_short_lived_keys(&authority, 6);
    let mut ends = (connector.connect(near, "127.0.0.1").unwrap(), acceptor.accept(far).unwrap());
    assert_eq!(failures(&mut ends), (None, None));
    let (mut near, mut far) = ends;
    near.trust();
    far.trust();
    for round in 0..50 {
        let bytes = pattern(1_000 + round);
        assert!(carry(&mut near, &mut far, &bytes, 4096) == bytes, "round {round}");
        assert!(carry(&mut far, &mut near, &bytes, 4096) == bytes, "round {round}, back");
    }
}

#[test]
fn a_plain_stream_is_its_socket() {
    let (near, far) = wires();
    let (mut near, mut far) = (Stream::plain(near), Stream::plain(far));
    near.write_all(b"plain").unwrap();
    assert_eq!(near.socket().outgoing.borrow().bytes.len(), 5);
    let mut buffer = [0; 8];
    assert_eq!(far.read(&mut buffer).unwrap(), 5);
    assert!(far.handshake().unwrap() && !far.is_encrypted() && far.peer().is_none());
    far.close();
    assert!(!far.has_unsent() && !far.has_more());
}
