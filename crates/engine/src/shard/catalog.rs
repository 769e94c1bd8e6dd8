//! Cluster facts, held by the cluster's own shard: which addresses exist, in which order, and which groups consume them.
//!
//! An address's order is committed here at its first use, so that clients cannot disagree about it; a group is defined
//! here before it is made in the shards of its address.

use std::collections::BTreeMap;

use swarmmq_protocol::{
    access::PrincipalName,
    error::Code,
    id::{Address, GroupName, ProducerEpoch, ProducerName},
    limits::{ADDRESSES_MAX, GROUPS_PER_ADDRESS_MAX, PRODUCER_NAMES_MAX},
    policy::{Routing, Setting},
    time::WallTime,
};

use super::{
    access::{self, Access, AccessEvent, Owned, put_access, read_access},
    codec::{Malformed, Reader, put_text},
    event::{CatalogEvent, Order, Settings, Start, put_group, read_address, read_group},
    member::{Members, NodeEvent},
    state::Outcome,
};

/// What the cluster knows of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Fixed at creation.
    pub order: Order,
    /// Changed by `address set`.
    pub settings: Settings,
    /// Its groups and where each began.
    pub groups: BTreeMap<GroupName, Start>,
}

/// All cluster facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// By address; dead-letter queues are not listed, they come with their address.
    pub addresses: BTreeMap<Address, Entry>,
    /// Which life of each named producer is the latest.
    pub producers: BTreeMap<ProducerName, ProducerEpoch>,
    /// Which nodes there are.
    pub members: Members,
    /// How ways and shards are chosen.
    pub routing: Routing,
    /// Who may do what, and who may join.
    pub access: Access,
}

impl Catalog {
    /// * `time`: the stamp of the entry.
    pub(super) fn apply(&mut self, time: WallTime, event: &CatalogEvent) -> Outcome {
        match event {
            CatalogEvent::Node(event) => self.members.apply(event),
            CatalogEvent::Access(AccessEvent::MadeBy { name, event }) => self.made_by(time, name, event),
            CatalogEvent::Access(AccessEvent::JoinedWith { hash, node, member }) => {
                if let Err(code) = self.access.judge(time, hash, *node) {
                    return Outcome::Refused(code);
                }
                let joined = NodeEvent::Joined { node: *node, member: member.clone() };
                let outcome = self.members.apply(&joined);
                if outcome == Outcome::Done {
                    self.access.tickets.remove(hash);
                }
                outcome
            }
            CatalogEvent::Access(event) => self.access.apply(time, event),
            CatalogEvent::Set(Setting::OpenJoin(open)) => {
                self.access.open_join = *open;
                Outcome::Done
            }
            CatalogEvent::Set(setting) => {
                self.routing = self.routing.with(*setting);
                Outcome::Done
            }
            CatalogEvent::ProducerTaken { name } => {
                if !self.producers.contains_key(name) && self.producers.len() >= PRODUCER_NAMES_MAX {
                    return Outcome::Refused(Code::Limit);
                }
                let epoch = self.producers.entry(name.clone()).or_insert(ProducerEpoch(0));
                epoch.0 += 1;
                Outcome::Count(epoch.0)
            }
            CatalogEvent::AddressMade { address, order, settings } => {
                if let Some(entry) = self.addresses.get(address) {
                    return if entry.order == *order {
                        Outcome::Done
                    } else {
                        Outcome::Refused(Code::OrderConflict)
                    };
                }
                if self.addresses.len() >= ADDRESSES_MAX {
                    return Outcome::Refused(Code::Limit);
                }
                let entry = Entry { order: *order, settings: settings.clone(), groups: BTreeMap::new() };
                self.addresses.insert(address.clone(), entry);
                Outcome::Done
            }
            CatalogEvent::AddressChanged { address, settings } => match self.addresses.get_mut(address) {
                Some(entry) => {
                    entry.settings = settings.clone();
                    Outcome::Done
                }
                None => Outcome::Refused(Code::NoSuchAddress),
            },
            CatalogEvent::AddressRemoved { address } => match self.addresses.remove(address) {
                Some(_) => {
                    self.access.disown_address(address);
                    Outcome::Done
                }
                None => Outcome::Refused(Code::NoSuchAddress),
            },
            CatalogEvent::GroupDefined { address, group, start } => {
                let Some(entry) = self.addresses.get_mut(address) else {
                    return Outcome::Refused(Code::NoSuchAddress);
                };
                if entry.groups.contains_key(group) {
                    return Outcome::Done;
                }
                if entry.groups.len() >= GROUPS_PER_ADDRESS_MAX {
                    return Outcome::Refused(Code::Limit);
                }
                // The first group starts at the oldest message, later ones at the end, unless told otherwise.
                let start = start.unwrap_or(if entry.groups.is_empty() { Start::Oldest } else { Start::End });
                entry.groups.insert(group.clone(), start);
                Outcome::Done
            }
            CatalogEvent::GroupDropped { address, group } => {
                let Some(entry) = self.addresses.get_mut(address) else {
                    return Outcome::Refused(Code::NoSuchAddress);
                };
                match entry.groups.remove(group) {
                    Some(_) => {
                        self.access.disown(&Owned::Group(address.clone(), group.clone()));
                        Outcome::Done
                    }
                    None => Outcome::Refused(Code::NoSuchGroup),
                }
            }
        }
    }

    /// What a principal asked for: within its quotas, and its own if it is new.
    fn made_by(&mut self, time: WallTime, name: &PrincipalName, event: &CatalogEvent) -> Outcome {
        let (owned, exists) = match event {
            CatalogEvent::AddressMade { address, .. } => {
                (Owned::Address(address.clone()), self.addresses.contains_key(address))
            }
            CatalogEvent::GroupDefined { address, group, .. } => {
                let known = self.addresses.get(address).is_some_and(|entry| entry.groups.contains_key(group));
                (Owned::Group(address.clone(), group.clone()), known)
            }
            CatalogEvent::ProducerTaken { name: producer } => {
                let owned = Owned::Producer(producer.clone());
                let exists = self.producers.contains_key(producer);
                // A life that begins fences the one before: that is for whoever had it.
                if exists && self.access.owners.get(&owned) != Some(name) {
                    return Outcome::Refused(Code::NotAllowed);
                }
                (owned, exists)
            }
            _ => return Outcome::Refused(Code::NotAllowed),
        };
        if exists {
            return self.apply(time, event);
        }
        if let Err(code) = self.access.may_own(name, &owned) {
            return Outcome::Refused(code);
        }
        let outcome = self.apply(time, event);
        if matches!(outcome, Outcome::Done | Outcome::Count(_)) {
            self.access.own(name, owned);
        }
        outcome
    }
}

pub(super) fn put_catalog(out: &mut Vec<u8>, event: &CatalogEvent) {
    match event {
        CatalogEvent::Access(event) => put_access(out, event),
        CatalogEvent::Set(setting) => {
            out.push(71);
            put_setting(out, setting);
        }
        CatalogEvent::Node(event) => {
            out.push(70);
            event.put(out);
        }
        CatalogEvent::ProducerTaken { name } => {
            out.push(69);
            put_text(out, name.as_str());
        }
        CatalogEvent::AddressMade { address, order, settings } => {
            out.push(64);
            put_text(out, address.as_str());
            out.push(order.to_u8());
            settings.put(out);
        }
        CatalogEvent::AddressChanged { address, settings } => {
            out.push(65);
            put_text(out, address.as_str());
            settings.put(out);
        }
        CatalogEvent::AddressRemoved { address } => {
            out.push(66);
            put_text(out, address.as_str());
        }
        CatalogEvent::GroupDefined { address, group, start } => {
            out.push(67);
            put_group(out, address, group);
            out.push(u8::from(start.is_some()));
            start.unwrap_or(Start::Oldest).put(out);
        }
        CatalogEvent::GroupDropped { address, group } => {
            out.push(68);
            put_group(out, address, group);
        }
    }
}

pub(super) fn read_catalog(kind: u8, reader: &mut Reader<'_>) -> Result<CatalogEvent, Malformed> {
    Ok(match kind {
        64 => CatalogEvent::AddressMade {
            address: read_address(reader)?,
            order: Order::from_u8(reader.u8()?).ok_or(Malformed)?,
            settings: Settings::read(reader)?,
        },
        65 => {
            CatalogEvent::AddressChanged { address: read_address(reader)?, settings: Settings::read(reader)? }
        }
        69 => {
            CatalogEvent::ProducerTaken { name: ProducerName::parse(reader.text()?).map_err(|_| Malformed)? }
        }
        70 => CatalogEvent::Node(NodeEvent::read(reader)?),
        71 => CatalogEvent::Set(read_setting(reader)?),
        kind if access::KINDS.contains(&kind) => CatalogEvent::Access(read_access(kind, reader)?),
        66 => CatalogEvent::AddressRemoved { address: read_address(reader)? },
        67 => {
            let (address, group) = read_group(reader)?;
            let told = reader.u8()? != 0;
            let start = Start::read(reader)?;
            CatalogEvent::GroupDefined { address, group, start: told.then_some(start) }
        }
        68 => {
            let (address, group) = read_group(reader)?;
            CatalogEvent::GroupDropped { address, group }
        }
        _ => return Err(Malformed),
    })
}

/// As people write it: what a later version adds is refused by name, not misread.
pub(super) fn put_setting(out: &mut Vec<u8>, setting: &Setting) {
    put_text(out, setting.name());
    put_text(out, &setting.value());
}

pub(super) fn read_setting(reader: &mut Reader<'_>) -> Result<Setting, Malformed> {
    let name = reader.text()?;
    Setting::parse(name, reader.text()?).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn made(order: Order) -> CatalogEvent {
        CatalogEvent::AddressMade { address: address("a"), order, settings: Settings::default() }
    }

    #[test]
    fn the_order_of_an_address_is_fixed_at_its_first_use() {
        let mut catalog = Catalog::default();
        assert_eq!(catalog.apply(WallTime(1), &made(Order::Key)), Outcome::Done);
        assert_eq!(catalog.apply(WallTime(1), &made(Order::Key)), Outcome::Done);
        assert_eq!(catalog.apply(WallTime(1), &made(Order::Total)), Outcome::Refused(Code::OrderConflict));
    }

    #[test]
    fn settings_are_changed_one_by_one() {
        let mut catalog = Catalog::default();
        let set = |name, value| CatalogEvent::Set(Setting::parse(name, value).unwrap());
        assert_eq!(catalog.apply(WallTime(1), &set("routing.policy", "round-robin")), Outcome::Done);
        assert_eq!(catalog.apply(WallTime(1), &set("routing.cohort", "p2c-ewma:50")), Outcome::Done);
        let values = catalog.routing.settings().map(|setting| setting.value());
        assert_eq!(values, ["round-robin", "p2c-ewma:50"]);
    }

    #[test]
    fn every_life_of_a_named_producer_has_a_higher_epoch() {
        let mut catalog = Catalog::default();
        let taken = |name| CatalogEvent::ProducerTaken { name: ProducerName::parse(name).unwrap() };
        assert_eq!(catalog.apply(WallTime(1), &taken("till")), Outcome::Count(1));
        assert_eq!(catalog.apply(WallTime(1), &taken("till")), Outcome::Count(2));
        assert_eq!(catalog.apply(WallTime(1), &taken("other")), Outcome::Count(1));
    }

    #[test]
    fn the_first_group_starts_at_the_oldest_message_and_later_ones_at_the_end() {
        let mut catalog = Catalog::default();
        catalog.apply(WallTime(1), &made(Order::Total));
        for name in ["one", "two"] {
            let group = GroupName::parse(name).unwrap();
            catalog.apply(
                WallTime(1),
                &CatalogEvent::GroupDefined { address: address("a"), group, start: None },
            );
        }
        let starts: Vec<Start> = catalog.addresses[&address("a")].groups.values().copied().collect();
        assert_eq!(starts, [Start::Oldest, Start::End]);
    }
}
