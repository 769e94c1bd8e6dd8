//! Operations whose client is gone.

use super::*;

/// A node that knew no leader kept an instruction for a client that had left, and carried it out after the one that the same
/// client had given by way of another node.
#[test]
fn what_a_client_that_is_gone_had_asked_for_is_not_begun() {
    let mut cluster = healthy(5);
    let cut_off = cluster.connect(NodeId(4));
    let drain = |draining| AdminRequest::NodeDrain { node: NodeId(5), draining };
    let others: Vec<NodeId> = [1, 2, 3, 5].map(NodeId).into();
    others.iter().for_each(|other| cluster.cut(NodeId(4), *other));
    cluster.send(cut_off, &Frame::Admin(Admin(drain(false))));
    cluster.input(NodeId(4), Input::Disconnected { connection: cut_off.1 });
    let client = cluster.connect(NodeId(2));
    assert_eq!(asked(&mut cluster, client, drain(true)), None);
    others.iter().for_each(|other| cluster.link(NodeId(4), *other));
    cluster.pass(Duration::from_secs(5));
    let members = &cluster.node(NodeId(2)).cluster_shard().state().catalog.members;
    assert!(members.nodes[&NodeId(5)].draining);
}
