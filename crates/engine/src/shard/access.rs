//! Who may do what, and who may join, as the cluster's own shard remembers it: principals, who made what, join tokens.
//!
//! No secret is in here. A principal's token follows from the access token and the generation that stands here; of a join
//! token the hash stands here. Quotas of what can be counted for the whole cluster are kept by `apply`, so that two nodes
//! cannot both grant the last one.

use std::collections::BTreeMap;

use swarmmq_protocol::{
    access::{Pattern, PrincipalName, Quota, Quotas, Rule, Rules, Verb},
    error::Code,
    id::{Address, GroupName, NodeId, ProducerName},
    limits::{JOIN_TOKENS_MAX, PRINCIPALS_MAX, RULES_MAX},
    time::WallTime,
};

use super::{
    catalog::{put_catalog, read_catalog},
    codec::{Malformed, Reader, put_text},
    event::{CatalogEvent, put_group, read_address, read_group},
    member::Member,
    state::Outcome,
};

/// What the cluster knows of one principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Of its token.
    pub generation: u64,
    /// The generation before, and until when its token is accepted too.
    pub previous: Option<(u64, WallTime)>,
    /// Whether it is let in.
    pub enabled: bool,
    /// What it may do.
    pub rules: Rules,
    /// What bounds it.
    pub quotas: Quotas,
}

/// Something that one principal made, or took as its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owned {
    /// An address.
    Address(Address),
    /// A group of an address.
    Group(Address, GroupName),
    /// A lasting name of a producer.
    Producer(ProducerName),
}

impl Owned {
    fn quota(&self) -> Quota {
        match self {
            Self::Address(_) => Quota::Addresses,
            Self::Group(..) => Quota::Groups,
            Self::Producer(_) => Quota::Producers,
        }
    }

    fn place(&self) -> usize {
        usize::from(self.quota().to_u8() - Quota::Addresses.to_u8())
    }
}

/// What lets one node join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Only the node of this number.
    pub node: Option<NodeId>,
    /// From then on it lets nobody in.
    pub expires_at: WallTime,
}

/// A change of who may do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessEvent {
    /// A principal exists.
    Added {
        /// Which.
        name: PrincipalName,
        /// What it may do.
        rules: Rules,
        /// What bounds it.
        quotas: Quotas,
    },
    /// A principal may do more, or less.
    Changed {
        /// Which.
        name: PrincipalName,
        /// In addition.
        granted: Rules,
        /// Not any more.
        revoked: Rules,
    },
    /// A principal has other bounds.
    Bounded {
        /// Which.
        name: PrincipalName,
        /// Those that are other now.
        quotas: Vec<(Quota, u64)>,
    },
    /// A principal has another token.
    Rotated {
        /// Which.
        name: PrincipalName,
        /// Until when the one of before is accepted.
        previous_until: WallTime,
    },
    /// A principal is let in, or not any more.
    Enabled {
        /// Which.
        name: PrincipalName,
        /// Whether.
        enabled: bool,
    },
    /// A principal is gone; what it made is nobody's.
    Removed {
        /// Which.
        name: PrincipalName,
    },
    /// What follows was asked for by a principal, and counts against its quotas.
    MadeBy {
        /// Which.
        name: PrincipalName,
        /// An address, a group or a life of a producer.
        event: Box<CatalogEvent>,
    },
    /// One more node may join.
    TicketMade {
        /// SHA-256 of the token's secret.
        hash: [u8; 32],
        /// For whom, until when.
        ticket: Ticket,
    },
    /// A node joins with a token, which is spent by it.
    JoinedWith {
        /// SHA-256 of the token's secret.
        hash: [u8; 32],
        /// Which.
        node: NodeId,
        /// What it said of itself.
        member: Member,
    },
}

impl AccessEvent {
    /// Whether applying it twice does what applying it once does.
    pub fn is_repeatable(&self) -> bool {
        match self {
            Self::Added { .. } | Self::Rotated { .. } | Self::Removed { .. } => false,
            Self::MadeBy { event, .. } => !matches!(**event, CatalogEvent::ProducerTaken { .. }),
            _ => true,
        }
    }
}

/// All principals, what they made, and who may join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// By name; root is not listed.
    pub principals: BTreeMap<PrincipalName, Principal>,
    /// Generations given out so far, to all principals: none is ever given out twice, so that no token comes back with a
    /// name.
    pub generations: u64,
    /// What belongs to whom; what is not listed is nobody's.
    pub owners: BTreeMap<Owned, PrincipalName>,
    /// Join tokens that were not used, by their hash.
    pub tickets: BTreeMap<[u8; 32], Ticket>,
    /// Nodes that know the peer secret need no token.
    pub open_join: bool,
    /// How many addresses, groups and names each principal has: those of `owners`, counted.
    made: BTreeMap<PrincipalName, [u32; 3]>,
}

impl Access {
    /// How many addresses, groups and producer names belong to a principal.
    pub fn made(&self, name: &PrincipalName) -> [u32; 3] {
        self.made.get(name).copied().unwrap_or_default()
    }

    /// Whether a token lets `node` join at `time`.
    pub fn judge(&self, time: WallTime, hash: &[u8; 32], node: NodeId) -> Result<(), Code> {
        let ticket = self.tickets.get(hash).ok_or(Code::JoinUnknown)?;
        if time >= ticket.expires_at {
            return Err(Code::JoinExpired);
        }
        if ticket.node.is_some_and(|only| only != node) {
            return Err(Code::JoinOtherNode);
        }
        Ok(())
    }

    /// What concerns nothing but principals and tokens. The rest is for the catalog.
    pub(super) fn apply(&mut self, time: WallTime, event: &AccessEvent) -> Outcome {
        match event {
            AccessEvent::Added { name, rules, quotas } => {
                if self.principals.contains_key(name) {
                    return Outcome::Refused(Code::Exists);
                }
                if self.principals.len() >= PRINCIPALS_MAX || rules.0.len() > RULES_MAX {
                    return Outcome::Refused(Code::Limit);
                }
                let generation = self.next_generation();
                let (rules, quotas) = (rules.clone(), *quotas);
                let made = Principal { generation, previous: None, enabled: true, rules, quotas };
                self.principals.insert(name.clone(), made);
                Outcome::Count(generation)
            }
            AccessEvent::Changed { name, granted, revoked } => {
                let Some(principal) = self.principals.get_mut(name) else { return unknown() };
                let mut rules = principal.rules.clone();
                rules.0.retain(|rule| !revoked.0.contains(rule));
                rules.0.extend(granted.0.iter().cloned());
                if rules.0.len() > RULES_MAX {
                    return Outcome::Refused(Code::Limit);
                }
                principal.rules = rules;
                Outcome::Done
            }
            AccessEvent::Bounded { name, quotas } => {
                let Some(principal) = self.principals.get_mut(name) else { return unknown() };
                quotas.iter().for_each(|(quota, value)| principal.quotas.set(*quota, *value));
                Outcome::Done
            }
            AccessEvent::Rotated { name, previous_until } => {
                let generation = self.generations + 1;
                let Some(principal) = self.principals.get_mut(name) else { return unknown() };
                principal.previous = Some((principal.generation, *previous_until));
                principal.generation = generation;
                Outcome::Count(self.next_generation())
            }
            AccessEvent::Enabled { name, enabled } => {
                let Some(principal) = self.principals.get_mut(name) else { return unknown() };
                principal.enabled = *enabled;
                Outcome::Done
            }
            AccessEvent::Removed { name } => {
                if self.principals.remove(name).is_none() {
                    return unknown();
                }
                self.owners.retain(|_, owner| owner != name);
                self.made.remove(name);
                Outcome::Done
            }
            AccessEvent::TicketMade { hash, ticket } => {
                // Old ones are kept while there is room: whoever brings one is told that it is too old.
                if self.tickets.len() >= JOIN_TOKENS_MAX {
                    self.tickets.retain(|_, old| time < old.expires_at);
                }
                if self.tickets.len() >= JOIN_TOKENS_MAX {
                    return Outcome::Refused(Code::Limit);
                }
                self.tickets.insert(*hash, *ticket);
                Outcome::Done
            }
            AccessEvent::MadeBy { .. } | AccessEvent::JoinedWith { .. } => {
                unreachable!("the catalog takes these apart")
            }
        }
    }

    fn next_generation(&mut self) -> u64 {
        self.generations += 1;
        self.generations
    }

    /// Whether `name` may have one more of what `owned` is.
    pub(super) fn may_own(&self, name: &PrincipalName, owned: &Owned) -> Result<(), Code> {
        let principal = self.principals.get(name).ok_or(Code::NotAllowed)?;
        let quota = principal.quotas.of(owned.quota());
        let has = u64::from(self.made(name)[owned.place()]);
        if quota > 0 && has >= quota { Err(Code::Quota) } else { Ok(()) }
    }

    /// It is `name`'s from now on.
    pub(super) fn own(&mut self, name: &PrincipalName, owned: Owned) {
        self.made.entry(name.clone()).or_default()[owned.place()] += 1;
        self.owners.insert(owned, name.clone());
    }

    /// It is gone.
    pub(super) fn disown(&mut self, owned: &Owned) {
        if let Some(owner) = self.owners.remove(owned) {
            let made = self.made.get_mut(&owner).expect("whoever owns something is counted");
            made[owned.place()] -= 1;
        }
    }

    /// An address is gone, with its groups. Cost: O(log owned + groups).
    pub(super) fn disown_address(&mut self, address: &Address) {
        self.disown(&Owned::Address(address.clone()));
        let of_address = |owned: &Owned| matches!(owned, Owned::Group(of, _) if of == address);
        let first = Owned::Group(address.clone(), GroupName::parse("-").expect("a name"));
        let groups: Vec<Owned> =
            self.owners.range(first..).map(|(owned, _)| owned.clone()).take_while(of_address).collect();
        groups.iter().for_each(|owned| self.disown(owned));
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.generations.to_be_bytes());
        out.push(self.open_join.into());
        out.extend_from_slice(&(self.principals.len() as u16).to_be_bytes());
        for (name, principal) in &self.principals {
            put_text(out, name.as_str());
            out.extend_from_slice(&principal.generation.to_be_bytes());
            out.push(u8::from(principal.enabled) | u8::from(principal.previous.is_some()) << 1);
            if let Some((generation, until)) = principal.previous {
                out.extend_from_slice(&generation.to_be_bytes());
                out.extend_from_slice(&until.0.to_be_bytes());
            }
            put_rules(out, &principal.rules);
            put_quotas(out, &principal.quotas.iter().collect::<Vec<_>>());
        }
        out.extend_from_slice(&(self.owners.len() as u32).to_be_bytes());
        for (owned, owner) in &self.owners {
            out.push(owned.quota().to_u8());
            match owned {
                Owned::Address(address) => put_text(out, address.as_str()),
                Owned::Group(address, group) => put_group(out, address, group),
                Owned::Producer(name) => put_text(out, name.as_str()),
            }
            put_text(out, owner.as_str());
        }
        out.extend_from_slice(&(self.tickets.len() as u16).to_be_bytes());
        for (hash, ticket) in &self.tickets {
            put_ticket(out, hash, *ticket);
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut access = Self { generations: reader.u64()?, open_join: reader.u8()? != 0, ..Self::default() };
        for _ in 0..reader.u16()? {
            let name = read_principal(reader)?;
            let generation = reader.u64()?;
            let flags = reader.u8()?;
            let previous = if flags & 2 != 0 { Some((reader.u64()?, WallTime(reader.u64()?))) } else { None };
            let rules = read_rules(reader)?;
            let mut quotas = Quotas::default();
            read_quotas(reader)?.into_iter().for_each(|(quota, value)| quotas.set(quota, value));
            let enabled = flags & 1 != 0;
            access.principals.insert(name, Principal { generation, previous, enabled, rules, quotas });
        }
        for _ in 0..reader.u32()? {
            let owned = match Quota::from_u8(reader.u8()?) {
                Some(Quota::Addresses) => Owned::Address(read_address(reader)?),
                Some(Quota::Groups) => {
                    let (address, group) = read_group(reader)?;
                    Owned::Group(address, group)
                }
                Some(Quota::Producers) => {
                    Owned::Producer(ProducerName::parse(reader.text()?).map_err(|_| Malformed)?)
                }
                _ => return Err(Malformed),
            };
            let owner = read_principal(reader)?;
            access.own(&owner, owned);
        }
        for _ in 0..reader.u16()? {
            let (hash, ticket) = read_ticket(reader)?;
            access.tickets.insert(hash, ticket);
        }
        Ok(access)
    }
}

fn unknown() -> Outcome {
    Outcome::Refused(Code::NoSuchPrincipal)
}

/// Kinds of catalog events that are read here.
pub(super) const KINDS: std::ops::RangeInclusive<u8> = 72..=79;

pub(super) fn put_access(out: &mut Vec<u8>, event: &AccessEvent) {
    match event {
        AccessEvent::Added { name, rules, quotas } => {
            out.push(72);
            put_text(out, name.as_str());
            put_rules(out, rules);
            put_quotas(out, &quotas.iter().collect::<Vec<_>>());
        }
        AccessEvent::Changed { name, granted, revoked } => {
            out.push(73);
            put_text(out, name.as_str());
            put_rules(out, granted);
            put_rules(out, revoked);
        }
        AccessEvent::Bounded { name, quotas } => {
            out.push(74);
            put_text(out, name.as_str());
            put_quotas(out, quotas);
        }
        AccessEvent::Rotated { name, previous_until } => {
            out.push(75);
            put_text(out, name.as_str());
            out.extend_from_slice(&previous_until.0.to_be_bytes());
        }
        AccessEvent::Enabled { name, enabled } => {
            out.push(76);
            put_text(out, name.as_str());
            out.push(u8::from(*enabled));
        }
        AccessEvent::Removed { name } => {
            out.push(77);
            put_text(out, name.as_str());
        }
        AccessEvent::MadeBy { name, event } => {
            out.push(78);
            put_text(out, name.as_str());
            put_catalog(out, event);
        }
        AccessEvent::TicketMade { hash, ticket } => {
            out.extend_from_slice(&[79, 1]);
            put_ticket(out, hash, *ticket);
        }
        AccessEvent::JoinedWith { hash, node, member } => {
            out.extend_from_slice(&[79, 2]);
            out.extend_from_slice(hash);
            super::member::NodeEvent::Joined { node: *node, member: member.clone() }.put(out);
        }
    }
}

pub(super) fn read_access(kind: u8, reader: &mut Reader<'_>) -> Result<AccessEvent, Malformed> {
    if kind == 79 {
        return match reader.u8()? {
            1 => {
                let (hash, ticket) = read_ticket(reader)?;
                Ok(AccessEvent::TicketMade { hash, ticket })
            }
            2 => {
                let hash = reader.array()?;
                match super::member::NodeEvent::read(reader)? {
                    super::member::NodeEvent::Joined { node, member } => {
                        Ok(AccessEvent::JoinedWith { hash, node, member })
                    }
                    _ => Err(Malformed),
                }
            }
            _ => Err(Malformed),
        };
    }
    let name = read_principal(reader)?;
    Ok(match kind {
        72 => {
            let rules = read_rules(reader)?;
            let mut quotas = Quotas::default();
            read_quotas(reader)?.into_iter().for_each(|(quota, value)| quotas.set(quota, value));
            AccessEvent::Added { name, rules, quotas }
        }
        73 => AccessEvent::Changed { name, granted: read_rules(reader)?, revoked: read_rules(reader)? },
        74 => AccessEvent::Bounded { name, quotas: read_quotas(reader)? },
        75 => AccessEvent::Rotated { name, previous_until: WallTime(reader.u64()?) },
        76 => AccessEvent::Enabled { name, enabled: reader.u8()? != 0 },
        77 => AccessEvent::Removed { name },
        78 => {
            // Nothing is made by one principal on behalf of another, so there is one level and no more.
            let kind = reader.u8()?;
            if KINDS.contains(&kind) {
                return Err(Malformed);
            }
            AccessEvent::MadeBy { name, event: Box::new(read_catalog(kind, reader)?) }
        }
        _ => return Err(Malformed),
    })
}

fn read_principal(reader: &mut Reader<'_>) -> Result<PrincipalName, Malformed> {
    PrincipalName::parse(reader.text()?).map_err(|_| Malformed)
}

fn put_rules(out: &mut Vec<u8>, rules: &Rules) {
    out.push(rules.0.len() as u8);
    for rule in &rules.0 {
        out.push(rule.verb.to_u8());
        put_text(out, rule.pattern.as_str());
    }
}

fn read_rules(reader: &mut Reader<'_>) -> Result<Rules, Malformed> {
    let mut rules = Rules::default();
    for _ in 0..reader.u8()? {
        let verb = Verb::from_u8(reader.u8()?).ok_or(Malformed)?;
        let pattern = Pattern::parse(reader.text()?).map_err(|_| Malformed)?;
        rules.0.insert(Rule { verb, pattern });
    }
    Ok(rules)
}

fn put_quotas(out: &mut Vec<u8>, quotas: &[(Quota, u64)]) {
    out.push(quotas.len() as u8);
    for (quota, value) in quotas {
        out.push(quota.to_u8());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

fn read_quotas(reader: &mut Reader<'_>) -> Result<Vec<(Quota, u64)>, Malformed> {
    let count = reader.u8()?;
    (0..count).map(|_| Ok((Quota::from_u8(reader.u8()?).ok_or(Malformed)?, reader.u64()?))).collect()
}

fn put_ticket(out: &mut Vec<u8>, hash: &[u8; 32], ticket: Ticket) {
    out.extend_from_slice(hash);
    out.extend_from_slice(&ticket.node.map_or(0, |node| node.0).to_be_bytes());
    out.extend_from_slice(&ticket.expires_at.0.to_be_bytes());
}

fn read_ticket(reader: &mut Reader<'_>) -> Result<([u8; 32], Ticket), Malformed> {
    let hash = reader.array()?;
    let node = Some(NodeId(reader.u16()?)).filter(|node| node.0 > 0);
    Ok((hash, Ticket { node, expires_at: WallTime(reader.u64()?) }))
}

#[cfg(test)]
#[path = "access_tests.rs"]
pub(super) mod tests;
