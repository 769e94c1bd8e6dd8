//! Who may do what: names of principals, rules over addresses, quotas, and how administration speaks of them.
//!
//! A principal has rules and nothing else: what no rule allows is refused. A rule names one verb, and the addresses below
//! one prefix. See docs/decisions/0014-access.md.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use bytes::{BufMut, BytesMut};

use crate::{
    codec::{DecodeError, Reader, put_name},
    id::{Address, GroupName, NameError, NodeId},
    limits::{PRINCIPALS_MAX, RULES_MAX},
    time::WallTime,
};

/// The built-in principal that may do everything. Its token is the access token itself.
pub const ROOT: &str = "root";
/// What clients called themselves before there were principals: root, too.
pub const ROOT_BEFORE: &str = "client";

/// The name of a principal: one segment, as for groups, and not that of the built-in one. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrincipalName(Arc<str>);

impl PrincipalName {
    /// Parses and checks `text`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if is_root(text) {
            return Err(NameError::Reserved);
        }
        GroupName::parse(text).map(|name| Self(name.as_str().into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PrincipalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a name means the built-in principal.
pub fn is_root(name: &str) -> bool {
    name == ROOT || name == ROOT_BEFORE
}

/// What can be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// To send to an address.
    Publish = 1,
    /// To receive from it, with and without a lease.
    Consume = 2,
    /// To ack, nack, extend and dead-letter what was received.
    Settle = 3,
    /// To make, change and remove addresses and groups; with `*`, everything that concerns the whole cluster.
    Admin = 4,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Publish, Self::Consume, Self::Settle, Self::Admin];

    /// Number on the wire and on disk.
    pub const fn to_u8(self) -> u8 {
        self as u8
    }

    /// From its number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.to_u8() == number)
    }

    /// As people write it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Consume => "consume",
            Self::Settle => "settle",
            Self::Admin => "admin",
        }
    }

    /// By its name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.text() == text)
    }
}

/// Which addresses a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pattern {
    /// `*`: every address, and what concerns the whole cluster.
    All,
    /// This address and all below it: `shop` covers `shop` and `shop.orders`, and not `shopping`.
    Under(Address),
}

impl Pattern {
    /// As people write it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text == "*" { Ok(Self::All) } else { Address::parse(text).map(Self::Under) }
    }

    /// Whether it is about `address`.
    pub fn covers(&self, address: &str) -> bool {
        match self {
            Self::All => true,
            Self::Under(prefix) => address
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
        }
    }

    /// As people write it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::All => "*",
            Self::Under(prefix) => prefix.as_str(),
        }
    }
}

/// One thing that is allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// What.
    pub verb: Verb,
    /// Where.
    pub pattern: Pattern,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.verb.text(), self.pattern.as_str())
    }
}

/// Why a rule was not understood. Nothing changed. Blame: caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleError {
    /// Not of the form VERB:PREFIX.
    Form,
    /// No such verb.
    Verb(String),
    /// The prefix is no address.
    Prefix(NameError),
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => write!(f, "not of the form VERB:PREFIX"),
            Self::Verb(verb) => {
                write!(
                    f,
                    "no verb {verb:?}; there are publish, consume, settle, admin, and use for the first three"
                )
            }
            Self::Prefix(error) => write!(f, "the prefix is neither * nor an address: {error}"),
        }
    }
}

impl std::error::Error for RuleError {}

/// All that a principal may do, at most [`RULES_MAX`] rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(pub BTreeSet<Rule>);

impl Rules {
    /// Adds what `text` allows, as people write it: `VERB:PREFIX`, `VERB:*`, or `use:PREFIX` for publish, consume and settle.
    pub fn add(&mut self, text: &str) -> Result<(), RuleError> {
        let (verb, pattern) = text.split_once(':').ok_or(RuleError::Form)?;
        let verbs: &[Verb] = match verb {
            "use" => &[Verb::Publish, Verb::Consume, Verb::Settle],
            _ => &[Verb::parse(verb).ok_or_else(|| RuleError::Verb(verb.to_owned()))?],
        };
        let pattern = Pattern::parse(pattern).map_err(RuleError::Prefix)?;
        self.0.extend(verbs.iter().map(|verb| Rule { verb: *verb, pattern: pattern.clone() }));
        Ok(())
    }

    /// Whether `verb` is allowed on `address`. `None`: on the whole cluster, which only a rule over `*` allows.
    pub fn allows(&self, verb: Verb, address: Option<&str>) -> bool {
        self.0.iter().any(|rule| {
            rule.verb == verb
                && address.map_or(rule.pattern == Pattern::All, |address| rule.pattern.covers(address))
        })
    }

    /// Whether anything is allowed on `address`.
    pub fn touch(&self, address: &str) -> bool {
        Verb::ALL.into_iter().any(|verb| self.allows(verb, Some(address)))
    }

    /// Whether `verb` is allowed anywhere.
    pub fn have(&self, verb: Verb) -> bool {
        self.0.iter().any(|rule| rule.verb == verb)
    }

    fn put(&self, out: &mut BytesMut) {
        out.put_u8(self.0.len() as u8);
        for rule in &self.0 {
            out.put_u8(rule.verb.to_u8());
            put_name(out, rule.pattern.as_str());
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = usize::from(reader.u8()?);
        if count > RULES_MAX {
            return Err(DecodeError::TooLarge("rules"));
        }
        let rules = reader.list(count, 3, "rules", |reader| {
            let verb = Verb::from_u8(reader.u8()?).ok_or(DecodeError::Invalid("verb"))?;
            let pattern = Pattern::parse(&reader.name("prefix")?);
            Ok(Rule { verb, pattern: pattern.map_err(|_| DecodeError::Invalid("prefix"))? })
        })?;
        Ok(Self(rules.into_iter().collect()))
    }
}

/// Something that is bounded for each principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quota {
    /// Connections to one node at a time.
    Connections = 1,
    /// Messages, and other requests, in a second at one node.
    Messages = 2,
    /// Sealed bytes published in a second at one node.
    Bytes = 3,
    /// Sealed bytes published and not answered at one node.
    InFlight = 4,
    /// Addresses that it made. Above zero: its first use of an address that it may publish to or consume makes it.
    Addresses = 5,
    /// Groups that it made. Above zero: its first use of a group of an address that it may consume makes it.
    Groups = 6,
    /// Producers with open sessions at one node, and lasting names.
    Producers = 7,
}

impl Quota {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Connections,
        Self::Messages,
        Self::Bytes,
        Self::InFlight,
        Self::Addresses,
        Self::Groups,
        Self::Producers,
    ];

    /// Number on the wire and on disk.
    pub const fn to_u8(self) -> u8 {
        self as u8
    }

    /// From its number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|quota| quota.to_u8() == number)
    }

    /// As people write it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Messages => "messages_per_second",
            Self::Bytes => "bytes_per_second",
            Self::InFlight => "in_flight_bytes",
            Self::Addresses => "addresses",
            Self::Groups => "groups",
            Self::Producers => "producers",
        }
    }

    /// By its name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quota| quota.text() == text)
    }
}

/// What bounds a principal, beside the bounds of everybody (see [`limits`](crate::limits)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas([u64; 7]);

impl Quotas {
    /// A bound; 0: there is none of this principal's own.
    pub fn of(&self, quota: Quota) -> u64 {
        self.0[usize::from(quota.to_u8()) - 1]
    }

    /// With another bound.
    pub fn set(&mut self, quota: Quota, value: u64) {
        self.0[usize::from(quota.to_u8()) - 1] = value;
    }

    /// Those that are not 0.
    pub fn iter(&self) -> impl Iterator<Item = (Quota, u64)> + '_ {
        Quota::ALL.into_iter().map(|quota| (quota, self.of(quota))).filter(|(_, value)| *value > 0)
    }
}

/// Bounds to change; each at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuotaChanges(pub Vec<(Quota, u64)>);

impl QuotaChanges {
    fn put(&self, out: &mut BytesMut) {
        out.put_u8(self.0.len() as u8);
        for (quota, value) in &self.0 {
            out.put_u8(quota.to_u8());
            out.put_u64(*value);
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = usize::from(reader.u8()?);
        if count > Quota::ALL.len() {
            return Err(DecodeError::TooLarge("quotas"));
        }
        let one = |reader: &mut Reader| {
            let quota = Quota::from_u8(reader.u8()?).ok_or(DecodeError::Invalid("quota"))?;
            Ok((quota, reader.u64()?))
        };
        reader.list(count, 9, "quotas", one).map(Self)
    }
}

/// A question about principals, or about who may join; all need `admin:*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessRequest {
    /// Make a principal. One that exists is refused.
    Add {
        /// Which.
        name: PrincipalName,
        /// What it may do.
        rules: Rules,
        /// What bounds it.
        quotas: QuotaChanges,
    },
    /// Allow more, or less.
    Change {
        /// Whom.
        name: PrincipalName,
        /// What is allowed in addition.
        granted: Rules,
        /// What is not allowed any more.
        revoked: Rules,
    },
    /// Change quotas.
    Bound {
        /// Whose.
        name: PrincipalName,
        /// Which; 0 removes one.
        quotas: QuotaChanges,
    },
    /// Begin the next generation of its token.
    Rotate {
        /// Whose.
        name: PrincipalName,
        /// The token of before is accepted for so long.
        overlap: Duration,
    },
    /// Let it in, or not.
    Enable {
        /// Whom.
        name: PrincipalName,
        /// Whether.
        enabled: bool,
    },
    /// Forget it. What it made stays.
    Remove {
        /// Whom.
        name: PrincipalName,
    },
    /// All of them.
    List,
    /// Let one more node join.
    JoinToken {
        /// SHA-256 of the token's secret; the cluster never learns more.
        hash: [u8; 32],
        /// Only the node of this number.
        node: Option<NodeId>,
        /// It can be used for so long.
        expires: Duration,
    },
}

impl AccessRequest {
    /// Verbs of administration that are read here.
    pub(crate) const VERBS: std::ops::RangeInclusive<u8> = 18..=25;

    pub(crate) fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Add { name, rules, quotas } => {
                out.put_u8(18);
                put_name(out, name.as_str());
                rules.put(out);
                quotas.put(out);
            }
            Self::Change { name, granted, revoked } => {
                out.put_u8(19);
                put_name(out, name.as_str());
                granted.put(out);
                revoked.put(out);
            }
            Self::Bound { name, quotas } => {
                out.put_u8(20);
                put_name(out, name.as_str());
                quotas.put(out);
            }
            Self::Rotate { name, overlap } => {
                out.put_u8(21);
                put_name(out, name.as_str());
                out.put_u64(overlap.as_millis() as u64);
            }
            Self::Enable { name, enabled } => {
                out.put_u8(22);
                put_name(out, name.as_str());
                out.put_u8((*enabled).into());
            }
            Self::Remove { name } => {
                out.put_u8(23);
                put_name(out, name.as_str());
            }
            Self::List => out.put_u8(24),
            Self::JoinToken { hash, node, expires } => {
                out.put_u8(25);
                out.put_slice(hash);
                out.put_u16(node.map_or(0, |node| node.0));
                out.put_u64(expires.as_millis() as u64);
            }
        }
    }

    pub(crate) fn read(verb: u8, reader: &mut Reader) -> Result<Self, DecodeError> {
        let millis = |reader: &mut Reader| reader.u64().map(Duration::from_millis);
        Ok(match verb {
            18 => Self::Add {
                name: read_principal(reader)?,
                rules: Rules::read(reader)?,
                quotas: QuotaChanges::read(reader)?,
            },
            19 => Self::Change {
                name: read_principal(reader)?,
                granted: Rules::read(reader)?,
                revoked: Rules::read(reader)?,
            },
            20 => Self::Bound { name: read_principal(reader)?, quotas: QuotaChanges::read(reader)? },
            21 => Self::Rotate { name: read_principal(reader)?, overlap: millis(reader)? },
            22 => Self::Enable { name: read_principal(reader)?, enabled: reader.flag("enabled")? },
            23 => Self::Remove { name: read_principal(reader)? },
            24 => Self::List,
            25 => Self::JoinToken {
                hash: reader.array()?,
                node: Some(NodeId(reader.u16()?)).filter(|node| node.0 > 0),
                expires: millis(reader)?,
            },
            _ => return Err(DecodeError::Invalid("admin verb")),
        })
    }
}

fn read_principal(reader: &mut Reader) -> Result<PrincipalName, DecodeError> {
    PrincipalName::parse(&reader.name("principal")?).map_err(|_| DecodeError::Invalid("principal"))
}

/// What the cluster knows of a principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrincipalInfo {
    /// Its name.
    pub name: PrincipalName,
    /// Whether it is let in.
    pub enabled: bool,
    /// Of its token; never used twice, by whatever principal.
    pub generation: u64,
    /// Until when the token of before is accepted.
    pub previous_until: Option<WallTime>,
    /// What it may do.
    pub rules: Rules,
    /// What bounds it.
    pub quotas: Quotas,
    /// How many addresses, groups and lasting producer names are its own.
    pub made: [u32; 3],
}

impl PrincipalInfo {
    const BYTES_MIN: usize = 2 + 1 + 8 + 1 + 1 + 1 + 12;

    fn put(&self, out: &mut BytesMut) {
        put_name(out, self.name.as_str());
        out.put_u8(self.enabled.into());
        out.put_u64(self.generation);
        out.put_u8(self.previous_until.is_some().into());
        self.previous_until.iter().for_each(|until| out.put_u64(until.0));
        self.rules.put(out);
        QuotaChanges(self.quotas.iter().collect()).put(out);
        self.made.iter().for_each(|count| out.put_u32(*count));
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let (name, enabled, generation) = (read_principal(reader)?, reader.flag("enabled")?, reader.u64()?);
        let has_previous = reader.flag("previous")?;
        let previous_until = has_previous.then(|| reader.u64().map(WallTime)).transpose()?;
        let rules = Rules::read(reader)?;
        let mut quotas = Quotas::default();
        for (quota, value) in QuotaChanges::read(reader)?.0 {
            quotas.set(quota, value);
        }
        let made = [reader.u32()?, reader.u32()?, reader.u32()?];
        Ok(Self { name, enabled, generation, previous_until, rules, quotas, made })
    }
}

pub(crate) fn put_principals(out: &mut BytesMut, principals: &[PrincipalInfo]) {
    out.put_u16(principals.len() as u16);
    principals.iter().for_each(|principal| principal.put(out));
}

pub(crate) fn read_principals(reader: &mut Reader) -> Result<Vec<PrincipalInfo>, DecodeError> {
    let count = usize::from(reader.u16()?);
    if count > PRINCIPALS_MAX {
        return Err(DecodeError::TooLarge("principals"));
    }
    reader.list(count, PrincipalInfo::BYTES_MIN, "principals", PrincipalInfo::read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Rules {
        let mut rules = Rules::default();
        texts.iter().for_each(|text| rules.add(text).unwrap());
        rules
    }

    #[test]
    fn a_rule_allows_its_verb_below_its_prefix_and_nothing_else() {
        let addresses = ["shop", "shop.orders", "shop.orders.dlq", "shopping", "shop-2", "other.shop", "sho"];
        for verb in Verb::ALL {
            let rules = rules(&[&format!("{}:shop", verb.text())]);
            for asked in Verb::ALL {
                for (at, address) in addresses.iter().enumerate() {
                    let expected = asked == verb && at < 3;
                    assert_eq!(rules.allows(asked, Some(address)), expected, "{asked:?} {address}");
                }
                assert!(!rules.allows(asked, None), "a prefix says nothing of the cluster");
            }
        }
    }

    #[test]
    fn a_star_covers_every_address_and_the_cluster_for_its_verb_alone() {
        for verb in Verb::ALL {
            let rules = rules(&[&format!("{}:*", verb.text())]);
            for asked in Verb::ALL {
                assert_eq!(rules.allows(asked, Some("any.thing")), asked == verb);
                assert_eq!(rules.allows(asked, None), asked == verb);
            }
        }
    }

    #[test]
    fn without_a_rule_nothing_is_allowed() {
        let none = Rules::default();
        for verb in Verb::ALL {
            assert!(!none.allows(verb, Some("a")) && !none.allows(verb, None) && !none.have(verb));
        }
        assert!(!none.touch("a"));
    }

    #[test]
    fn use_stands_for_three_verbs_and_not_for_administration() {
        let all = rules(&["use:shop.orders"]);
        let texts: Vec<String> = all.0.iter().map(Rule::to_string).collect();
        assert_eq!(texts, ["publish:shop.orders", "consume:shop.orders", "settle:shop.orders"]);
        assert!(all.touch("shop.orders") && !all.touch("shop"));
    }

    #[test]
    fn what_is_no_rule_is_told_apart() {
        let mut rules = Rules::default();
        assert_eq!(rules.add("publish"), Err(RuleError::Form));
        assert_eq!(rules.add("send:a"), Err(RuleError::Verb("send".into())));
        assert_eq!(rules.add("publish:a.*"), Err(RuleError::Prefix(NameError::Character('*'))));
        assert_eq!(rules.add("publish:"), Err(RuleError::Prefix(NameError::EmptySegment)));
        assert_eq!(rules, Rules::default());
    }

    #[test]
    fn the_names_of_the_built_in_principal_are_nobody_else_s() {
        for name in [ROOT, ROOT_BEFORE] {
            assert_eq!(PrincipalName::parse(name), Err(NameError::Reserved));
        }
        assert_eq!(PrincipalName::parse("till-7").unwrap().as_str(), "till-7");
        assert!(PrincipalName::parse("a.b").is_err());
    }

    #[test]
    fn quotas_are_found_by_their_names() {
        let mut quotas = Quotas::default();
        for (at, quota) in Quota::ALL.into_iter().enumerate() {
            assert_eq!(Quota::parse(quota.text()), Some(quota));
            quotas.set(quota, at as u64);
        }
        assert_eq!(quotas.iter().count(), 6, "0 is no bound");
        assert_eq!(quotas.of(Quota::Producers), 6);
    }
}
