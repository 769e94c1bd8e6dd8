//! Routes that are looked at: by way of any node, with what is cut, silent or made up.

use swarmmq_protocol::{
    admin::{AdminAnswer, AdminRequest},
    frame::AdminReply,
    route::{LinkFault, NodeRoutes, RouteExplanation, RouteWhy},
};

use super::{super::super::survey::Wanted, *};

fn routes(cluster: &mut Cluster, client: (NodeId, ConnectionId)) -> BTreeMap<u16, NodeRoutes> {
    let answer = cluster.ask(client, &Frame::Admin(Admin(AdminRequest::Routes)));
    let Frame::AdminReply(AdminReply(AdminAnswer::Routes(all))) = answer else { panic!("{answer:?}") };
    all.into_iter().map(|of_node| (of_node.from.0, of_node)).collect()
}

fn question(from: u16, to: u16) -> Frame {
    Frame::Admin(Admin(AdminRequest::RouteExplain { from: NodeId(from), to: NodeId(to) }))
}

fn explain(
    cluster: &mut Cluster,
    client: (NodeId, ConnectionId),
    from: u16,
    to: u16,
) -> Option<RouteExplanation> {
    let answer = cluster.ask(client, &question(from, to));
    let Frame::AdminReply(AdminReply(AdminAnswer::RouteExplanation(said))) = answer else {
        panic!("{answer:?}")
    };
    said.map(|said| *said)
}

#[test]
fn any_node_tells_the_routes_of_all() {
    let mut cluster = healthy(5);
    cluster.pass(Duration::from_secs(1));
    let client = cluster.connect(NodeId(4));
    let all = routes(&mut cluster, client);
    assert_eq!(all.len(), 5);
    for (from, of_node) in all {
        let routes = of_node.routes.unwrap_or_else(|| panic!("node {from} did not answer"));
        assert_eq!(routes.len(), 4);
        for route in routes {
            assert_eq!(route.path, [NodeId(from), route.to]);
            assert!(route.why == RouteWhy::Found && route.cost_us.is_some(), "{route:?}");
        }
    }
    let said = explain(&mut cluster, client, 1, 2).expect("it is there");
    assert_eq!(
        (said.from, said.route.to, &said.candidates[0].path),
        (NodeId(1), NodeId(2), &said.route.path)
    );
}

#[test]
fn a_cut_pair_shows_the_detour_and_why() {
    let mut cluster = healthy(5);
    cluster.pass(Duration::from_secs(1));
    cluster.cut(NodeId(1), NodeId(2));
    cluster.pass(Duration::from_millis(500));
    let client = cluster.connect(NodeId(4));
    let all = routes(&mut cluster, client);
    let of_one = all[&1].routes.as_ref().unwrap();
    let route = of_one.iter().find(|route| route.to == NodeId(2)).unwrap();
    assert_eq!((route.path.len(), route.before.as_slice()), (3, &[NodeId(1), NodeId(2)][..]), "{route:?}");
    assert!(route.why == RouteWhy::Broken && route.changes == 2, "{route:?}");
    assert!((400..600).contains(&route.changed_ms), "{route:?}");
    let said = explain(&mut cluster, client, 1, 2).unwrap();
    assert_eq!(said.route.path, route.path);
    let direct = &said.links[0];
    assert_eq!((direct.from, direct.to, direct.cost_us), (NodeId(1), NodeId(2), None));
    assert!(direct.faults.iter().any(|fault| fault == LinkFault::NoConnection), "{direct:?}");
    assert_eq!(direct.penalty / 100, 9, "it failed once, half a second ago");
    assert!(said.candidates.iter().all(|candidate| candidate.path.len() > 2), "{:?}", said.candidates);
}

#[test]
fn who_does_not_answer_is_named() {
    let mut cluster = healthy(5);
    cluster.pass(Duration::from_secs(1));
    let client = cluster.connect(NodeId(1));
    // It stands still, and nobody can know yet.
    cluster.hosts.get_mut(&NodeId(4)).unwrap().node = None;
    let began = cluster.now.monotonic;
    let all = routes(&mut cluster, client);
    let took = cluster.now.monotonic.since(began);
    assert!(took < Duration::from_millis(1_200), "{took:?}");
    let silent: Vec<u16> =
        all.iter().filter(|(_, said)| said.routes.is_none()).map(|(node, _)| *node).collect();
    assert_eq!((all.len(), silent), (5, vec![4]));
    assert_eq!(explain(&mut cluster, client, 4, 1), None);
    assert!(explain(&mut cluster, client, 1, 4).is_some(), "the way to it can be explained");
    assert!(cluster.node(NodeId(1)).surveys.is_empty());
}

#[test]
fn a_node_without_a_log_tells_as_much_as_others() {
    let mut cluster = healthy(5);
    cluster.pass(Duration::from_secs(1));
    let client = cluster.connect(NodeId(1));
    cluster.input(NodeId(1), Input::DiskFailed { what: "a test".into() });
    cluster.hosts.get_mut(&NodeId(4)).unwrap().node = None;
    let now = cluster.now;
    cluster.node(NodeId(1)).survey_routes(now, client.1, 1);
    let node = cluster.node(NodeId(1));
    assert!(node.next_wake().unwrap() <= node.survey_wake().unwrap(), "it asks again in time");
    let began = cluster.now.monotonic;
    let all = routes(&mut cluster, client);
    let took = cluster.now.monotonic.since(began);
    assert!(took < Duration::from_millis(1_200), "{took:?}");
    let answered: Vec<u16> =
        all.iter().filter(|(_, said)| said.routes.is_some()).map(|(node, _)| *node).collect();
    assert_eq!(answered, [1, 2, 3, 5]);
}

#[test]
fn nodes_that_are_not_there_and_ways_to_nowhere_are_refused() {
    let mut cluster = healthy(3);
    let client = cluster.connect(NodeId(1));
    for (from, to, expected) in [(9, 1, Code::NoSuchNode), (1, 9, Code::NoSuchNode), (2, 2, Code::NotAllowed)]
    {
        let Frame::Answer(answer) = cluster.ask(client, &question(from, to)) else { panic!() };
        assert_eq!(Code::from_number(answer.code), Some(expected), "{answer:?}");
    }
    assert_eq!(cluster.node(NodeId(1)).connections[&client.1].operations, 0);
}

#[test]
fn who_is_gone_is_not_answered_and_what_was_not_asked_is_not_heard() {
    let mut cluster = healthy(3);
    let client = cluster.connect(NodeId(1));
    let now = cluster.now;
    cluster.node(NodeId(1)).survey_routes(now, client.1, 1);
    let ticket = *cluster.node(NodeId(1)).surveys.keys().next().unwrap();
    let said = cluster.node(NodeId(3)).routes_told(now, Wanted::Routes);
    let malformed = cluster.node(NodeId(1)).peers.malformed;
    for (from, said) in [(2, said), (2, Bytes::from_static(b"junk"))] {
        cluster.node(NodeId(1)).letter(now, NodeId(from), Letter::Routes { ticket, said });
    }
    assert_eq!(cluster.node(NodeId(1)).peers.malformed, malformed + 2, "another's word, and no word");
    let said = cluster.node(NodeId(2)).routes_told(now, Wanted::Routes);
    let nobody = Letter::Routes { ticket: ticket + 1, said };
    cluster.node(NodeId(1)).letter(now, NodeId(2), nobody);
    assert_eq!(cluster.node(NodeId(1)).surveys.len(), 1);
    cluster.input(NodeId(1), Input::Disconnected { connection: client.1 });
    assert!(cluster.node(NodeId(1)).surveys.is_empty());
    cluster.pass(Duration::from_secs(2));
}
