//! Packets that go on along their path, and letters that nobody can read.

use super::*;

fn along(class: Class, path: &[u16], letter: &Letter) -> Packet {
    let path = path.iter().map(|node| NodeId(*node)).collect();
    Packet::along(class, path, letter.to_bytes()).unwrap()
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
    let sent = along(Class::Publish, &[1, 2, 3], &letter);
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
    let passed = passes(&mut cluster, 2, 1, along(Class::Publish, &[1, 2, 3], &letter));
    let broken: Vec<_> = passed.iter().filter(|(_, packet)| packet.class == Class::Heartbeat).collect();
    let found = broken.iter().find_map(|(next, packet)| match Letter::read(packet.body.clone()) {
        Ok(Letter::Broken { destination }) => Some((*next, packet.path.clone(), destination)),
        _ => None,
    });
    assert_eq!(found, Some((NodeId(1), vec![NodeId(2), NodeId(1)], NodeId(3))), "{passed:?}");
}

#[test]
fn only_a_router_passes_packets_on() {
    let mut cluster = Cluster::new(3);
    cluster.add(4, PeerHello::INGRESS);
    cluster.until("healthy", HEALTHY_WITHIN, |cluster| cluster.is_healthy());
    let letter = Letter::Health(Health::default());
    let passed = passes(&mut cluster, 4, 1, along(Class::Publish, &[1, 4, 3], &letter));
    assert!(passed.iter().all(|(next, _)| *next == NodeId(1)), "{passed:?}");
}

#[test]
fn a_packet_that_names_another_neighbour_or_no_letter_is_dropped_and_counted() {
    let mut cluster = healthy(3);
    let letter = Letter::Health(Health::default());
    assert_eq!(passes(&mut cluster, 2, 3, along(Class::Publish, &[1, 2], &letter)), []);
    let mut bytes = letter.to_bytes().to_vec();
    bytes.push(0);
    let direct = Packet::direct(Class::Bulk, NodeId(1), NodeId(2), bytes.into());
    assert_eq!(passes(&mut cluster, 2, 1, direct), []);
    assert_eq!(cluster.node(NodeId(2)).peers.malformed, 2);
}
