//! Two nodes meet, or do not: through its stories, and whatever is said by whom.

use super::*;
use crate::packet::{Class, Packet, PacketReader};

type Verdict = Result<Option<PeerHello>, PeerError>;

fn hello(node: u16) -> PeerHello {
    PeerHello {
        cluster: Some(ClusterId(5)),
        shard_count: 16,
        node: NodeId(node),
        incarnation: 3,
        boot: 4,
        roles: PeerHello::INGRESS | PeerHello::STORE,
        client: format!("10.0.0.{node}:7400"),
        peer: format!("10.0.0.{node}:7401"),
        admin: format!("10.0.0.{node}:7402"),
        gossip: format!("10.0.0.{node}:7403"),
        version: "0.1.0".to_owned(),
        key: PeerHello::NO_KEY,
        join: None,
    }
}

fn secret(byte: u8) -> MacKey {
    MacKey::new([byte; 32])
}

/// Two ends and what is on its way between them.
struct Pair {
    dialler: PeerHandshake,
    acceptor: PeerHandshake,
    up: BytesMut,
    down: BytesMut,
}

impl Pair {
    fn of(dial: (u8, PeerHello, Option<u16>), accept: (u8, PeerHello)) -> Self {
        Self::with(dial, accept, None)
    }

    fn with(dial: (u8, PeerHello, Option<u16>), accept: (u8, PeerHello), token: Option<JoinToken>) -> Self {
        let mut up = BytesMut::new();
        let expected = dial.2.map(NodeId);
        let dialler = PeerHandshake::dial(secret(dial.0), dial.1, expected, [1; 32], token, &mut up);
        let acceptor = PeerHandshake::accept(secret(accept.0), accept.1, [2; 32]);
        Self { dialler, acceptor, up, down: BytesMut::new() }
    }

    fn example() -> Self {
        Self::of((7, hello(1), Some(2)), (7, hello(2)))
    }

    fn accept(&mut self) -> Verdict {
        self.acceptor.advance(&mut self.up, &mut self.down)
    }

    fn dial(&mut self) -> Verdict {
        self.dialler.advance(&mut self.down, &mut self.up)
    }

    /// Carries the four messages, each through `spoil` with its step, and gives both verdicts, dialler first.
    fn run(mut self, mut spoil: impl FnMut(u8, &mut BytesMut)) -> (Verdict, Verdict) {
        spoil(HELLO, &mut self.up);
        let mut accepted = self.accept();
        spoil(ACCEPT, &mut self.down);
        let mut dialled = self.dial();
        if dialled == Ok(None) {
            spoil(PROOF, &mut self.up);
        }
        if accepted == Ok(None) {
            accepted = self.accept();
        }
        if dialled == Ok(None) {
            spoil(READY, &mut self.down);
            dialled = self.dial();
        }
        (dialled, accepted)
    }
}

fn untouched(_: u8, _: &mut BytesMut) {}

fn refused(verdict: &Verdict) -> Option<Code> {
    let Err(PeerError::Refused { code, .. }) = verdict else { return None };
    Code::from_number(*code)
}

#[test]
fn two_nodes_meet_over_the_same_secret() {
    let (dialled, accepted) = Pair::example().run(untouched);
    assert_eq!((dialled, accepted), (Ok(Some(hello(2))), Ok(Some(hello(1)))));
}

#[test]
fn a_node_that_joins_knows_no_cluster_yet() {
    let joining = PeerHello { cluster: None, shard_count: 0, ..hello(1) };
    let (dialled, accepted) = Pair::of((7, joining.clone(), None), (7, hello(2))).run(untouched);
    assert_eq!((dialled, accepted), (Ok(Some(hello(2))), Ok(Some(joining.clone()))));
    let (dialled, accepted) = Pair::of((7, hello(2), None), (7, joining.clone())).run(untouched);
    assert_eq!((dialled, accepted), (Ok(Some(joining)), Ok(Some(hello(2)))));
}

/// While a secret is replaced, keyring by keyring: any two nodes of two steps that follow each other meet, with a join token too.
#[test]
fn two_nodes_meet_while_their_secret_is_replaced() {
    let dual = |current, also: Option<u8>| DualKey { current: secret(current), also: also.map(secret) };
    let steps = [dual(7, None), dual(7, Some(8)), dual(8, Some(7)), dual(8, None)];
    for (i, one) in steps.iter().enumerate() {
        for (j, other) in steps.iter().enumerate() {
            let (mut up, down) = (BytesMut::new(), BytesMut::new());
            let dialler = PeerHandshake::dial(one.clone(), hello(1), None, [1; 32], Some(token()), &mut up);
            let acceptor = PeerHandshake::accept(other.clone(), hello(2), [2; 32]);
            let (dialled, accepted) = Pair { dialler, acceptor, up, down }.run(untouched);
            if i.abs_diff(j) > 1 {
                assert!(i.abs_diff(j) < 3 || dialled == Err(PeerError::WrongSecret), "{i} {j}");
                continue;
            }
            assert_eq!(dialled, Ok(Some(hello(2))), "{i} {j}");
            let join = Some(join_token::hash(token().secret()));
            assert_eq!(accepted, Ok(Some(PeerHello { join, ..hello(1) })), "{i} {j}");
        }
    }
}

fn token() -> JoinToken {
    JoinToken::new(ClusterId(5), [0xab; 32])
}

#[test]
fn a_join_token_reaches_an_acceptor_that_has_proven_itself_and_nobody_who_listens() {
    let mut heard = Vec::new();
    let pair = Pair::with((7, hello(1), None), (7, hello(2)), Some(token()));
    let (dialled, accepted) = pair.run(|_, bytes| heard.extend_from_slice(bytes));
    assert_eq!(dialled, Ok(Some(hello(2))));
    let hash = join_token::hash(token().secret());
    assert_eq!(accepted, Ok(Some(PeerHello { join: Some(hash), ..hello(1) })));
    assert!(!heard.windows(8).any(|bytes| token().secret().starts_with(bytes) || hash.starts_with(bytes)));

    // Who does not know the secret between nodes gets no proof, and no token.
    let mut sent = 0;
    let pair = Pair::with((7, hello(1), None), (8, hello(2)), Some(token()));
    let (dialled, _) = pair.run(|step, bytes| sent += if step == PROOF { bytes.len() } else { 0 });
    assert_eq!((dialled, sent), (Err(PeerError::WrongSecret), 0));
}

#[test]
fn a_flipped_bit_of_a_join_token_is_a_wrong_proof() {
    for bit in 0..8 * 32 {
        let pair = Pair::with((7, hello(1), None), (7, hello(2)), Some(token()));
        let (_, accepted) = pair.run(|step, bytes| {
            if step == PROOF {
                let at = bytes.len() - 1 - bit / 8;
                bytes[at] ^= 1 << (bit % 8);
            }
        });
        assert_eq!(accepted, Err(PeerError::WrongSecret), "bit {bit}");
    }
}

#[test]
fn a_node_of_the_version_before_gets_no_token_that_it_could_not_read() {
    let mut pair = Pair::with((7, hello(1), None), (7, hello(2)), Some(token()));
    let mine = pair.up.split().freeze().slice(LENGTH_BYTES + 1..);
    let mut theirs = BytesMut::from(&hello(2).bytes(&[2; 32])[..]);
    theirs[PEER_MAGIC.len()..PEER_MAGIC.len() + 4].copy_from_slice(&[0, 2, 0, 2]);
    let hellos = sha256(&[&mine, &theirs]);
    put(ACCEPT, &[&theirs, &secret(7).sign(&[ACCEPT_LABEL, &hellos])], &mut pair.down);
    assert_eq!(pair.dial(), Ok(None));
    let proof = secret(7).sign(&[DIAL_LABEL, &hellos]);
    assert_eq!(pair.up[LENGTH_BYTES + 1..], proof, "as that version wants it");
}

#[test]
fn packets_begin_right_behind_the_last_message() {
    let mut pair = Pair::example();
    assert_eq!((pair.accept(), pair.dial()), (Ok(None), Ok(None)));
    let packet = |from, to| Packet::direct(Class::Bulk, NodeId(from), NodeId(to), Bytes::from_static(b"x"));
    assert!(pair.accept().unwrap().is_some());
    packet(2, 1).encode(&mut pair.down);
    assert!(pair.dial().unwrap().is_some());
    let mut reader = PacketReader::new();
    *reader.buffer() = pair.down;
    assert_eq!(reader.next(), Ok(Some(packet(2, 1))));
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let mut pair = Pair::example();
    let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
    let mut met = [None, None];
    for _ in 0..3 {
        for byte in pair.up.split() {
            up.put_u8(byte);
            met[1] = pair.acceptor.advance(&mut up, &mut pair.down).unwrap();
        }
        for byte in pair.down.split() {
            down.put_u8(byte);
            met[0] = pair.dialler.advance(&mut down, &mut pair.up).unwrap();
        }
    }
    assert_eq!(met, [Some(hello(2)), Some(hello(1))]);
}

#[test]
fn a_wrong_secret_is_found_out_by_both() {
    let (dialled, accepted) = Pair::of((7, hello(1), None), (8, hello(2))).run(untouched);
    assert_eq!(dialled, Err(PeerError::WrongSecret));
    assert_eq!(refused(&accepted), Some(Code::Unauthenticated));

    // A dialler that goes on all the same is found out by the acceptor.
    let mut pair = Pair::example();
    assert_eq!(pair.accept(), Ok(None));
    put(PROOF, &[&[0; 32]], &mut pair.up);
    assert_eq!(pair.accept(), Err(PeerError::WrongSecret));
    assert_eq!(refused(&pair.dial()), Some(Code::Unauthenticated));
}

#[test]
fn nodes_that_cannot_be_peers_say_so_to_each_other() {
    let other = PeerHello { cluster: Some(ClusterId(6)), ..hello(2) };
    let wrong_cluster = PeerError::WrongCluster { ours: ClusterId(5), theirs: ClusterId(6) };
    let unexpected = PeerError::Unexpected { wanted: NodeId(3), found: NodeId(2) };
    for (expected, answering, why) in [
        (None, other, wrong_cluster),
        (None, hello(1), PeerError::SameNode(NodeId(1))),
        (Some(3), hello(2), unexpected),
    ] {
        let (dialled, accepted) = Pair::of((7, hello(1), expected), (7, answering)).run(untouched);
        assert_eq!(refused(&accepted), Some(why.code()));
        assert_eq!(dialled, Err(why));
    }
}

#[test]
fn an_acceptor_judges_by_itself_too() {
    // A dialler that does not look.
    for (claimed, why) in [
        (
            PeerHello { cluster: Some(ClusterId(6)), ..hello(1) },
            PeerError::WrongCluster { ours: ClusterId(5), theirs: ClusterId(6) },
        ),
        (hello(2), PeerError::SameNode(NodeId(2))),
    ] {
        let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
        let (mut up, mut down) = (BytesMut::new(), BytesMut::new());
        let mine = claimed.bytes(&[1; 32]);
        put(HELLO, &[&mine], &mut up);
        assert_eq!(acceptor.advance(&mut up, &mut down), Ok(None), "nothing is said before the proof");
        let theirs = down.split().freeze().slice(LENGTH_BYTES + 1..);
        let hellos = sha256(&[&mine, &theirs[..theirs.len() - PROOF_BYTES]]);
        put(PROOF, &[&secret(7).sign(&[DIAL_LABEL, &hellos])], &mut up);
        assert_eq!(acceptor.advance(&mut up, &mut down), Err(why.clone()));
        assert_eq!(&down[LENGTH_BYTES..LENGTH_BYTES + 1], &[REFUSED], "{why}");
    }
}

#[test]
fn an_acceptor_can_refuse_whom_it_has_recognised() {
    let mut pair = Pair::example();
    assert_eq!((pair.accept(), pair.dial()), (Ok(None), Ok(None)));
    assert_eq!(pair.accept(), Ok(Some(hello(1))));
    refuse(Code::Removed, "node 1 was removed", &mut pair.down);
    let why = PeerError::Refused { code: 29, message: "node 1 was removed".to_owned() };
    assert_eq!(why.code(), Code::Removed);
    assert_eq!(pair.dial(), Err(why));
    assert!(pair.up.is_empty(), "a refusal is not answered");
}

#[test]
fn one_flipped_bit_anywhere_and_nobody_who_received_it_believes() {
    for step in [HELLO, ACCEPT, PROOF, READY] {
        let mut bits = 0;
        let met = Pair::example().run(|at, bytes| bits = if at == step { bytes.len() * 8 } else { bits });
        assert!(met.0.is_ok() && bits > 0);
        for bit in 0..bits {
            let (dialled, accepted) = Pair::example().run(|at, bytes| {
                if at == step {
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            });
            assert!(!matches!(dialled, Ok(Some(_))), "step {step}, bit {bit}");
            // Before `Ready` the acceptor has believed already, and rightly.
            assert_eq!(matches!(accepted, Ok(Some(_))), step == READY, "step {step}, bit {bit}");
        }
    }
}

#[test]
fn a_proof_that_is_sent_back_proves_nothing() {
    // To the acceptor: its own proof.
    let mut pair = Pair::example();
    assert_eq!(pair.accept(), Ok(None));
    let accept = pair.down.split();
    put(PROOF, &[&accept[accept.len() - PROOF_BYTES..]], &mut pair.up);
    assert_eq!(pair.accept(), Err(PeerError::WrongSecret));
    // To the dialler: its own hello, with a proof that another acceptor made for it.
    let mut pair = Pair::example();
    let mine = pair.up.clone().freeze().slice(LENGTH_BYTES + 1..);
    put(ACCEPT, &[&mine, &accept[accept.len() - PROOF_BYTES..]], &mut pair.down);
    assert_eq!(pair.dial(), Err(PeerError::WrongSecret));
}

#[test]
fn a_proof_does_not_serve_on_another_connection() {
    let mut pair = Pair::example();
    let hello_message = pair.up.clone();
    assert_eq!((pair.accept(), pair.dial()), (Ok(None), Ok(None)));
    let mut second = PeerHandshake::accept(secret(7), hello(2), [3; 32]);
    let mut replayed = hello_message;
    replayed.unsplit(pair.up);
    assert_eq!(second.advance(&mut replayed, &mut BytesMut::new()), Err(PeerError::WrongSecret));
}

#[test]
fn a_node_that_dials_itself_notices() {
    let (dialled, _) = Pair::of((7, hello(1), None), (7, hello(1))).run(untouched);
    assert_eq!(dialled, Err(PeerError::SameNode(NodeId(1))));
}

#[test]
fn no_version_in_common_is_said_before_the_rest_is_read() {
    let mut later = BytesMut::new();
    put(HELLO, &[&PEER_MAGIC, &[0, 4, 0, 5], b"something else"], &mut later);
    let mut out = BytesMut::new();
    let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
    assert_eq!(acceptor.advance(&mut later, &mut out), Err(PeerError::Version));
    let mut pair = Pair::example();
    pair.down = out;
    assert_eq!(refused(&pair.dial()), Some(Code::Version));
}

#[test]
fn a_message_cut_short_inside_is_malformed_and_one_under_way_is_waited_for() {
    let whole = Pair::example().up.freeze();
    for length in 0..whole.len() {
        let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
        let mut under_way = BytesMut::from(&whole[..length]);
        assert_eq!(acceptor.advance(&mut under_way, &mut BytesMut::new()), Ok(None), "{length}");
        if length > LENGTH_BYTES {
            let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
            let mut short = BytesMut::new();
            short.put_u32((length - LENGTH_BYTES) as u32);
            short.put_slice(&whole[LENGTH_BYTES..length]);
            let verdict = acceptor.advance(&mut short, &mut BytesMut::new());
            assert_eq!(verdict, Err(PeerError::Malformed), "{length}");
        }
    }
}

#[test]
fn too_many_bytes_are_refused_before_they_come() {
    let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
    let mut claimed = BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]);
    assert_eq!(acceptor.advance(&mut claimed, &mut BytesMut::new()), Err(PeerError::TooLarge));
    // Together, too: each of the two alone would be allowed.
    let mut pair = Pair::example();
    let hello_bytes = pair.up.len();
    assert_eq!(pair.accept(), Ok(None));
    pair.up.put_u32((UNAUTHENTICATED_BYTES_MAX - hello_bytes - LENGTH_BYTES + 1) as u32);
    assert_eq!(pair.accept(), Err(PeerError::TooLarge));
}

#[test]
fn any_other_step_ends_the_handshake_and_then_it_stays_over() {
    for step in (0..=u8::MAX).filter(|step| *step != HELLO) {
        let mut acceptor = PeerHandshake::accept(secret(7), hello(2), [2; 32]);
        let (mut buffer, mut out) = (BytesMut::new(), BytesMut::new());
        put(step, &[], &mut buffer);
        assert_eq!(acceptor.advance(&mut buffer, &mut out), Err(PeerError::Malformed));
        out.clear();
        buffer.put_slice(b"more");
        assert_eq!(acceptor.advance(&mut buffer, &mut out), Err(PeerError::Malformed));
        assert_eq!((buffer.len(), out.len()), (4, 0));
    }
}

#[test]
fn long_texts_are_cut_and_a_hello_always_fits() {
    let long = "ä".repeat(300);
    let texts = [&long; 4].map(Clone::clone);
    let [client, peer, admin, gossip] = texts;
    let me = PeerHello { client, peer, admin, gossip, version: long, ..hello(1) };
    let bytes = me.bytes(&[1; 32]);
    assert!(LENGTH_BYTES + 1 + bytes.len() + PROOF_BYTES < UNAUTHENTICATED_BYTES_MAX / 2);
    let (read, _) = PeerHello::read(bytes).unwrap();
    assert_eq!((read.client.len(), read.version.len()), (254, 64));
    assert_eq!(PeerHello::read(hello(0).bytes(&[1; 32])), Err(PeerError::Malformed));
}
