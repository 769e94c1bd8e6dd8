//! Packets that go on along their path, and letters that nobody can read.

use super::*;

/// As the first node of `path` would send it, in its conversation with the last one.
fn along(cluster: &mut Cluster, class: Class, path: &[u16], letter: &Letter) -> Packet {
    let path: Vec<NodeId> = path.iter().map(|node| NodeId(*node)).collect();
    let (origin, destination) = (path[0], *path.last().unwrap());
    let (_, usual) = cluster.node(origin).ways.wrap(destination, class, Bytes::new()).unwrap();
    Packet::along(class, path, letter.to_bytes()).unwrap().within(usual.conversation)
}

/// What `node` sends when it is given `packet` by `from`.
fn passes(cluster: &mut Cluster, node: u16, from: u16, packet: Packet) -> Vec<(NodeId, Packet)> {
    cluster.run();
    cluster.input(NodeId(node), Input::Packet { from: NodeId(from), packet });
    let mut effects = Effects::default();
    let now = cluster.now;
    cluster.node(NodeId(node)).flush(now, &mut effects);
    effects.packets
}

#[test]
fn a_packet_goes_on_along_its_path_unchanged_and_is_opened_only_at_its_end() {
    let mut cluster = healthy(3);
    let letter = Letter::Health(Health { is_below_reserve: true, has_stopped: false });
    let sent = along(&mut cluster, Class::Publish, &[1, 2, 3], &letter);
    let passed = passes(&mut cluster, 2, 1, sent.clone());
    assert_eq!(passed.len(), 1, "{passed:?}");
    let (next, packet) = &passed[0];
    assert_eq!((*next, packet.hop, &packet.path, &packet.body), (NodeId(3), 1, &sent.path, &sent.body));
    assert!(!cluster.node(NodeId(2)).peers.is_weak_by_word(NodeId(1)), "it was not for the relay");
    assert_eq!(passes(&mut cluster, 3, 2, packet.clone()), []);
    assert!(
        cluster.node(NodeId(3)).peers.is_weak_by_word(NodeId(1)),
        "the end takes it as the origin's word"
    );
}

#[test]
fn a_relay_without_a_way_says_so_to_the_origin_and_keeps_nothing() {
    let mut cluster = healthy(3);
    cluster.cut(NodeId(2), NodeId(3));
    let letter = Letter::Health(Health::default());
    let sent = along(&mut cluster, Class::Publish, &[1, 2, 3], &letter);
    let passed = passes(&mut cluster, 2, 1, sent);
    let broken: Vec<_> = passed.iter().filter(|(_, packet)| packet.class == Class::Heartbeat).collect();
    let found = broken.iter().find_map(|(next, packet)| match Letter::read(packet.body.clone()) {
        Ok(Letter::Broken { destination, next: behind }) => {
            Some((*next, packet.path.clone(), destination, behind))
        }
        _ => None,
    });
    let three = NodeId(3);
    assert_eq!(found, Some((NodeId(1), vec![NodeId(2), NodeId(1)], three, three)), "{passed:?}");
}

#[test]
fn only_a_router_passes_packets_on() {
    let mut cluster = Cluster::new(3);
    cluster.add(4, PeerHello::INGRESS);
    cluster.until("healthy", HEALTHY_WITHIN, |cluster| cluster.is_healthy());
    let letter = Letter::Health(Health::default());
    let sent = along(&mut cluster, Class::Publish, &[1, 4, 3], &letter);
    let passed = passes(&mut cluster, 4, 1, sent);
    assert!(passed.iter().all(|(next, _)| *next == NodeId(1)), "{passed:?}");
}

#[test]
fn a_packet_that_names_another_neighbour_or_no_letter_is_dropped_and_counted() {
    let mut cluster = healthy(3);
    let letter = Letter::Health(Health::default());
    let mut sent = along(&mut cluster, Class::Bulk, &[1, 2], &letter);
    assert_eq!(passes(&mut cluster, 2, 3, sent.clone()), []);
    let mut bytes = sent.body.to_vec();
    bytes.push(0);
    sent.body = bytes.into();
    assert_eq!(passes(&mut cluster, 2, 1, sent), []);
    assert_eq!(cluster.node(NodeId(2)).peers.malformed, 2);
}

/// A path that was left may still hold packets: they come after what was sent along the next one.
#[test]
fn a_packet_of_an_earlier_conversation_changes_nothing_and_is_answered() {
    let mut cluster = healthy(3);
    let letter = Letter::Health(Health { is_below_reserve: true, has_stopped: false });
    let late = along(&mut cluster, Class::Publish, &[1, 2], &letter);
    cluster.cut(NodeId(1), NodeId(2));
    cluster.link(NodeId(1), NodeId(2));
    let passed = passes(&mut cluster, 2, 1, late);
    assert!(!cluster.node(NodeId(2)).peers.is_weak_by_word(NodeId(1)));
    let to_origin = passed.iter().filter(|(_, packet)| packet.destination() == NodeId(1)).count();
    assert_eq!(to_origin, 1, "{passed:?}");
}

/// One end hears that something may be lost, the other does not: both must forget what was under way.
#[test]
fn a_conversation_that_one_end_begins_anew_is_begun_by_both() {
    let mut cluster = healthy(3);
    let (one, two) = (NodeId(1), NodeId(2));
    let hello = cluster.node(two).hello();
    let before = along(&mut cluster, Class::Publish, &[2, 1], &Letter::Health(Health::default()));
    cluster.input(one, Input::PeerUp { hello });
    cluster.run();
    let after = along(&mut cluster, Class::Publish, &[2, 1], &Letter::Health(Health::default()));
    assert_eq!(after.conversation.number, before.conversation.number + 1);
    cluster.until("healthy", HEALTHY_WITHIN, |cluster| cluster.is_healthy());
}

/// A process started anew while its node was reached by way of another, and linked before anybody had heard that the earlier
/// one had ended.
#[test]
fn a_path_that_leads_to_another_process_begins_anew() {
    let mut cluster = healthy(3);
    let (one, two) = (NodeId(1), NodeId(2));
    cluster.cut(one, two);
    cluster.until("a detour", Duration::from_secs(1), |cluster| {
        cluster.node(one).ways.path(two).is_some_and(|path| path.len() == 3)
    });
    let mut hello = cluster.node(two).hello();
    hello.boot += 1;
    cluster.input(one, Input::PeerUp { hello: hello.clone() });
    assert_eq!(cluster.node(one).ways.path(two).map(<[NodeId]>::len), Some(3), "it is not left for that");
    assert!(cluster.node(one).ways.is_with(&hello));
}

/// It could not be told from a dead one, and was left as a relay.
#[test]
fn a_node_without_a_log_still_gossips() {
    let mut cluster = healthy(3);
    let two = NodeId(2);
    cluster.input(two, Input::DiskFailed { what: "test".to_owned() });
    cluster.run();
    let now = cluster.now.monotonic;
    let wake = cluster.node(two).next_wake().expect("it has something to do");
    assert!(wake.since(now) <= Duration::from_millis(200), "{wake:?}");
}
