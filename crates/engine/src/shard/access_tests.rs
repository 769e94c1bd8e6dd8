//! Principals, what they make and who joins, as the cluster remembers it: event by event.

use super::{super::catalog::Catalog, *};
use crate::shard::{
    event::{Order, Settings},
    member::{NodeEvent, REPLICAS},
};

fn name(text: &str) -> PrincipalName {
    PrincipalName::parse(text).unwrap()
}

fn rules(texts: &[&str]) -> Rules {
    let mut rules = Rules::default();
    texts.iter().for_each(|text| rules.add(text).unwrap());
    rules
}

fn quotas(of: &[(Quota, u64)]) -> Quotas {
    let mut quotas = Quotas::default();
    of.iter().for_each(|(quota, value)| quotas.set(*quota, *value));
    quotas
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn member(incarnation: u64) -> Member {
    let at = |what: &str| format!("10.0.0.1:{what}");
    Member {
        incarnation,
        roles: 7,
        client: at("1"),
        peer: at("2"),
        gossip: at("3"),
        admin: at("4"),
        key: None,
        draining: false,
    }
}

/// Every event of this room.
pub(in crate::shard) fn every_event() -> Vec<AccessEvent> {
    let till = || name("till-7");
    vec![
        AccessEvent::Added {
            name: till(),
            rules: rules(&["use:shop", "admin:*"]),
            quotas: quotas(&[(Quota::Groups, 3)]),
        },
        AccessEvent::Changed { name: till(), granted: rules(&["admin:a"]), revoked: rules(&["publish:b"]) },
        AccessEvent::Bounded { name: till(), quotas: vec![(Quota::Bytes, 5), (Quota::Groups, 0)] },
        AccessEvent::Rotated { name: till(), previous_until: WallTime(77) },
        AccessEvent::Enabled { name: till(), enabled: false },
        AccessEvent::Removed { name: till() },
        AccessEvent::MadeBy { name: till(), event: Box::new(made("shop.orders")) },
        AccessEvent::TicketMade {
            hash: [7; 32],
            ticket: Ticket { node: Some(NodeId(4)), expires_at: WallTime(9) },
        },
        AccessEvent::JoinedWith { hash: [7; 32], node: NodeId(4), member: member(5) },
    ]
}

fn made(text: &str) -> CatalogEvent {
    CatalogEvent::AddressMade { address: address(text), order: Order::Total, settings: Settings::default() }
}

fn group(text: &str, group: &str) -> CatalogEvent {
    let group = GroupName::parse(group).unwrap();
    CatalogEvent::GroupDefined { address: address(text), group, start: None }
}

fn taken(text: &str) -> CatalogEvent {
    CatalogEvent::ProducerTaken { name: ProducerName::parse(text).unwrap() }
}

/// A catalog, and what becomes of events.
#[derive(Default)]
struct World(Catalog);

impl World {
    fn does(&mut self, event: AccessEvent) -> Outcome {
        self.at(WallTime(1), event)
    }

    fn at(&mut self, time: WallTime, event: AccessEvent) -> Outcome {
        self.0.apply(time, &CatalogEvent::Access(event))
    }

    fn add(&mut self, who: &str, of: &[(Quota, u64)]) -> Outcome {
        self.does(AccessEvent::Added { name: name(who), rules: Rules::default(), quotas: quotas(of) })
    }

    fn by(&mut self, who: &str, event: CatalogEvent) -> Outcome {
        self.does(AccessEvent::MadeBy { name: name(who), event: Box::new(event) })
    }
}

#[test]
fn no_generation_is_ever_given_out_twice() {
    let mut world = World::default();
    assert_eq!(world.add("a", &[]), Outcome::Count(1));
    assert_eq!(world.add("a", &[]), Outcome::Refused(Code::Exists));
    assert_eq!(world.add("b", &[]), Outcome::Count(2));
    let rotated = |who| AccessEvent::Rotated { name: name(who), previous_until: WallTime(50) };
    assert_eq!(world.does(rotated("a")), Outcome::Count(3));
    let principal = &world.0.access.principals[&name("a")];
    assert_eq!((principal.generation, principal.previous), (3, Some((1, WallTime(50)))));
    assert_eq!(world.does(AccessEvent::Removed { name: name("a") }), Outcome::Done);
    assert_eq!(world.add("a", &[]), Outcome::Count(4), "the tokens of before do not come back with the name");
    assert_eq!(world.does(rotated("c")), Outcome::Refused(Code::NoSuchPrincipal));
}

#[test]
fn a_new_principal_may_do_nothing_and_rules_come_and_go_one_by_one() {
    let mut world = World::default();
    world.add("a", &[]);
    assert_eq!(world.0.access.principals[&name("a")].rules, Rules::default());
    let change = |granted: &[&str], revoked: &[&str]| AccessEvent::Changed {
        name: name("a"),
        granted: rules(granted),
        revoked: rules(revoked),
    };
    assert_eq!(world.does(change(&["use:shop"], &[])), Outcome::Done);
    assert_eq!(world.does(change(&["admin:shop"], &["publish:shop", "settle:else"])), Outcome::Done);
    let expected = rules(&["consume:shop", "settle:shop", "admin:shop"]);
    assert_eq!(world.0.access.principals[&name("a")].rules, expected);
    let many: Vec<String> = (0..RULES_MAX).map(|at| format!("admin:a{at}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(world.does(change(&many, &[])), Outcome::Refused(Code::Limit));
    assert_eq!(world.0.access.principals[&name("a")].rules, expected, "nothing of it");
}

#[test]
fn principals_are_bounded() {
    let mut world = World::default();
    for at in 0..PRINCIPALS_MAX {
        assert!(matches!(world.add(&format!("p{at}"), &[]), Outcome::Count(_)));
    }
    assert_eq!(world.add("one-more", &[]), Outcome::Refused(Code::Limit));
}

#[test]
fn what_is_made_counts_against_its_maker_until_it_is_gone() {
    let mut world = World::default();
    world.add("a", &[(Quota::Addresses, 2), (Quota::Groups, 1), (Quota::Producers, 1)]);
    for at in ["x", "y", "y"] {
        assert_eq!(world.by("a", made(at)), Outcome::Done, "{at}");
    }
    assert_eq!(world.by("a", made("z")), Outcome::Refused(Code::Quota));
    assert_eq!(world.by("a", group("x", "g")), Outcome::Done);
    assert_eq!(world.by("a", group("x", "g")), Outcome::Done, "it exists");
    assert_eq!(world.by("a", group("y", "h")), Outcome::Refused(Code::Quota));
    assert_eq!(world.by("a", taken("till")), Outcome::Count(1));
    assert_eq!(world.by("a", taken("till")), Outcome::Count(2), "its own, again");
    assert_eq!(world.by("a", taken("desk")), Outcome::Refused(Code::Quota));
    assert_eq!(world.0.access.made(&name("a")), [2, 1, 1]);

    world.0.apply(WallTime(1), &CatalogEvent::AddressRemoved { address: address("x") });
    assert_eq!(world.0.access.made(&name("a")), [1, 0, 1], "with its group");
    assert_eq!(world.by("a", made("z")), Outcome::Done);
    assert_eq!(world.by("nobody", made("w")), Outcome::Refused(Code::NotAllowed));
}

#[test]
fn what_somebody_else_made_does_not_count_and_a_producer_s_name_is_its_owner_s() {
    let mut world = World::default();
    world.add("a", &[(Quota::Addresses, 1)]);
    world.add("b", &[(Quota::Addresses, 1)]);
    world.0.apply(WallTime(1), &made("x"));
    assert_eq!(world.by("a", made("x")), Outcome::Done);
    assert_eq!(world.0.access.made(&name("a")), [0, 0, 0]);
    assert_eq!(world.by("a", taken("till")), Outcome::Count(1));
    assert_eq!(world.by("b", taken("till")), Outcome::Refused(Code::NotAllowed), "it would fence a");
    assert_eq!(world.0.apply(WallTime(1), &taken("root-s")), Outcome::Count(1));
    assert_eq!(world.by("a", taken("root-s")), Outcome::Refused(Code::NotAllowed));
    assert_eq!(world.0.apply(WallTime(1), &taken("till")), Outcome::Count(2), "root may");
    world.does(AccessEvent::Removed { name: name("a") });
    assert!(world.0.access.owners.is_empty());
}

#[test]
fn a_join_token_lets_one_node_in_once() {
    let mut world = World::default();
    let join = |node: u16, incarnation| AccessEvent::JoinedWith {
        hash: [7; 32],
        node: NodeId(node),
        member: member(incarnation),
    };
    let issue = |node: Option<u16>, until| AccessEvent::TicketMade {
        hash: [7; 32],
        ticket: Ticket { node: node.map(NodeId), expires_at: WallTime(until) },
    };
    assert_eq!(world.does(join(4, 1)), Outcome::Refused(Code::JoinUnknown), "never issued");
    world.does(issue(None, 100));
    assert_eq!(world.at(WallTime(100), join(4, 1)), Outcome::Refused(Code::JoinExpired));
    assert_eq!(world.at(WallTime(99), join(4, 1)), Outcome::Done);
    assert!(world.0.members.nodes.contains_key(&NodeId(4)));
    assert_eq!(world.does(join(5, 1)), Outcome::Refused(Code::JoinUnknown), "spent");
    assert!(!world.0.members.nodes.contains_key(&NodeId(5)));

    world.does(issue(Some(5), 100));
    assert_eq!(world.does(join(6, 1)), Outcome::Refused(Code::JoinOtherNode));
    world.0.apply(WallTime(1), &CatalogEvent::Node(NodeEvent::Removed { node: NodeId(4) }));
    world.does(issue(None, 100));
    assert_eq!(world.does(join(4, 1)), Outcome::Refused(Code::Removed), "that disk never comes back");
    assert_eq!(world.does(join(4, 2)), Outcome::Done, "and the token was not spent by it");
}

#[test]
fn join_tokens_are_bounded_and_expired_ones_make_room() {
    let mut world = World::default();
    let issue = |at: usize, until| {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&at.to_be_bytes());
        AccessEvent::TicketMade { hash, ticket: Ticket { node: None, expires_at: WallTime(until) } }
    };
    for at in 0..JOIN_TOKENS_MAX {
        assert_eq!(world.does(issue(at, 10)), Outcome::Done);
    }
    assert_eq!(world.does(issue(JOIN_TOKENS_MAX, 10)), Outcome::Refused(Code::Limit));
    assert_eq!(world.at(WallTime(10), issue(JOIN_TOKENS_MAX, 20)), Outcome::Done);
    assert_eq!(world.0.access.tickets.len(), 1);
}

#[test]
fn it_all_reads_back_as_it_was_written() {
    let mut world = World::default();
    world.add("a", &[(Quota::Addresses, 5), (Quota::InFlight, 9)]);
    world.add("b", &[]);
    world.by("a", made("x"));
    world.by("a", group("x", "g"));
    world.by("b", taken("till"));
    for event in every_event() {
        world.does(event);
    }
    world.does(AccessEvent::Rotated { name: name("a"), previous_until: WallTime(50) });
    world.does(AccessEvent::TicketMade {
        hash: [9; 32],
        ticket: Ticket { node: None, expires_at: WallTime(9) },
    });
    world.0.access.open_join = true;
    let mut bytes = Vec::new();
    world.0.access.put(&mut bytes);
    let mut reader = Reader::new(&bytes);
    assert_eq!(Access::read(&mut reader), Ok(world.0.access.clone()));
    assert_eq!(reader.end(), Ok(()));
    assert_eq!(world.0.members.replicas, REPLICAS);
    for length in 0..bytes.len() {
        assert!(Access::read(&mut Reader::new(&bytes[..length])).is_err(), "{length} bytes");
    }
}
