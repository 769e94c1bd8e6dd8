//! Administration: the same frames, the same connection, typed questions and answers.

use std::time::Duration;

use bytes::{BufMut, BytesMut};

use crate::{
    access::{AccessRequest, PrincipalInfo, put_principals, read_principals},
    codec::{DecodeError, Reader, put_name, put_text},
    frame::StartAt,
    id::{Address, ClusterId, GroupName, NodeId, ProducerEpoch, ProducerId, ProducerName, ShardId, Term},
    limits::{ADDRESSES_MAX, GROUPS_PER_ADDRESS_MAX},
    route::{NodeRoutes, RouteExplanation},
};

/// What consumers of an address may rely on. Fixed at its first use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Order {
    /// One shard; first deliveries in log order.
    #[default]
    Total,
    /// One message of each key in flight at a time, in order.
    Key,
    /// No promise.
    None,
}

impl Order {
    /// Number on the wire and on disk.
    pub const fn to_u8(self) -> u8 {
        self as u8
    }

    /// From its number.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Total),
            1 => Some(Self::Key),
            2 => Some(Self::None),
            _ => None,
        }
    }

    /// Name in the command line and JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Key => "key",
            Self::None => "none",
        }
    }

    /// From its name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Total, Self::Key, Self::None].into_iter().find(|order| order.text() == text)
    }
}

/// Settings of an address; absent ones stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Messages stay at least this long.
    pub min_age: Option<Duration>,
    /// Failed attempts before a message is dead-lettered.
    pub attempts_max: Option<u32>,
    /// Lease of a delivery.
    pub lease: Option<Duration>,
    /// Sealed bytes waiting in one shard beyond which publishes are refused.
    pub backlog_bytes_max: Option<u64>,
}

impl Settings {
    fn put(&self, out: &mut BytesMut) {
        let present = [
            self.min_age.is_some(),
            self.attempts_max.is_some(),
            self.lease.is_some(),
            self.backlog_bytes_max.is_some(),
        ];
        out.put_u8(present.iter().enumerate().fold(0, |mask, (bit, set)| mask | u8::from(*set) << bit));
        if let Some(min_age) = self.min_age {
            out.put_u64(min_age.as_millis() as u64);
        }
        if let Some(attempts) = self.attempts_max {
            out.put_u32(attempts);
        }
        if let Some(lease) = self.lease {
            out.put_u32(lease.as_millis() as u32);
        }
        if let Some(bytes) = self.backlog_bytes_max {
            out.put_u64(bytes);
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let mask = reader.u8()?;
        if mask & !0x0f != 0 {
            return Err(DecodeError::Invalid("settings"));
        }
        Ok(Self {
            min_age: (mask & 1 != 0).then(|| reader.u64().map(Duration::from_millis)).transpose()?,
            attempts_max: (mask & 2 != 0).then(|| reader.u32()).transpose()?,
            lease: (mask & 4 != 0)
                .then(|| reader.u32().map(|millis| Duration::from_millis(millis.into())))
                .transpose()?,
            backlog_bytes_max: (mask & 8 != 0).then(|| reader.u64()).transpose()?,
        })
    }
}

/// A question to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// Make an address, or find it made with the same order.
    AddressCreate {
        /// Which.
        address: Address,
        /// In which order, for ever.
        order: Order,
        /// At the beginning.
        settings: Settings,
    },
    /// Every address and its order.
    AddressList,
    /// Everything about one address.
    AddressInfo {
        /// Which.
        address: Address,
    },
    /// Change settings.
    AddressSet {
        /// Which.
        address: Address,
        /// Those to change.
        settings: Settings,
    },
    /// Remove an address with its messages, groups and dead letters.
    AddressRemove {
        /// Which.
        address: Address,
        /// Only count.
        dry_run: bool,
    },
    /// Remove the messages of an address.
    AddressPurge {
        /// Which.
        address: Address,
        /// Only count.
        dry_run: bool,
    },
    /// The groups of an address.
    GroupList {
        /// Which.
        address: Address,
    },
    /// Move a group.
    GroupSeek {
        /// Of which address.
        address: Address,
        /// Which.
        group: GroupName,
        /// Where to.
        start: StartAt,
        /// Only count.
        dry_run: bool,
    },
    /// Remove a group.
    GroupRemove {
        /// Of which address.
        address: Address,
        /// Which.
        group: GroupName,
        /// Only count.
        dry_run: bool,
    },
    /// Nodes, shards, problems.
    Status,
    /// Begin the next life of a named producer; sessions of earlier lives are fenced in every shard that it opens.
    ProducerTakeOver {
        /// Which.
        name: ProducerName,
    },
    /// Empty a node, or let it hold shards again.
    NodeDrain {
        /// Which.
        node: NodeId,
        /// Whether it is to hold no shard that another could hold.
        draining: bool,
    },
    /// A node belongs to the cluster no more; its disk can never come back.
    NodeRemove {
        /// Which.
        node: NodeId,
    },
    /// Which way packets take, from every node to every other.
    Routes,
    /// Why packets take the way that they take.
    RouteExplain {
        /// From where: this node explains.
        from: NodeId,
        /// To where.
        to: NodeId,
    },
    /// Change a setting of the cluster, as people write it; [`Setting`](crate::policy::Setting) says which there are.
    SettingSet {
        /// Which.
        name: String,
        /// Its new value.
        value: String,
    },
    /// All settings of the cluster.
    SettingList,
    /// About principals, and who may join.
    Access(AccessRequest),
}

impl AdminRequest {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        match self {
            Self::AddressCreate { address, order, settings } => {
                out.put_u8(1);
                put_name(out, address.as_str());
                out.put_u8(order.to_u8());
                settings.put(out);
            }
            Self::AddressList => out.put_u8(2),
            Self::AddressInfo { address } => {
                out.put_u8(3);
                put_name(out, address.as_str());
            }
            Self::AddressSet { address, settings } => {
                out.put_u8(4);
                put_name(out, address.as_str());
                settings.put(out);
            }
            Self::AddressRemove { address, dry_run } => {
                out.put_u8(5);
                put_name(out, address.as_str());
                out.put_u8((*dry_run).into());
            }
            Self::AddressPurge { address, dry_run } => {
                out.put_u8(6);
                put_name(out, address.as_str());
                out.put_u8((*dry_run).into());
            }
            Self::GroupList { address } => {
                out.put_u8(7);
                put_name(out, address.as_str());
            }
            Self::GroupSeek { address, group, start, dry_run } => {
                out.put_u8(8);
                put_name(out, address.as_str());
                put_name(out, group.as_str());
                Some(*start).put(out);
                out.put_u8((*dry_run).into());
            }
            Self::GroupRemove { address, group, dry_run } => {
                out.put_u8(9);
                put_name(out, address.as_str());
                put_name(out, group.as_str());
                out.put_u8((*dry_run).into());
            }
            Self::Status => out.put_u8(10),
            Self::ProducerTakeOver { name } => {
                out.put_u8(11);
                put_name(out, name.as_str());
            }
            Self::NodeDrain { node, draining } => {
                out.put_u8(12);
                out.put_u16(node.0);
                out.put_u8((*draining).into());
            }
            Self::NodeRemove { node } => {
                out.put_u8(13);
                out.put_u16(node.0);
            }
            Self::Routes => out.put_u8(14),
            Self::RouteExplain { from, to } => {
                out.put_u8(15);
                out.put_u16(from.0);
                out.put_u16(to.0);
            }
            Self::SettingSet { name, value } => {
                out.put_u8(16);
                put_name(out, name);
                put_name(out, value);
            }
            Self::SettingList => out.put_u8(17),
            Self::Access(request) => request.put(out),
        }
    }

    pub(crate) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match reader.u8()? {
            1 => Self::AddressCreate {
                address: reader.address()?,
                order: read_order(reader)?,
                settings: Settings::read(reader)?,
            },
            2 => Self::AddressList,
            3 => Self::AddressInfo { address: reader.address()? },
            4 => Self::AddressSet { address: reader.address()?, settings: Settings::read(reader)? },
            5 => Self::AddressRemove { address: reader.address()?, dry_run: reader.flag("dry_run")? },
            6 => Self::AddressPurge { address: reader.address()?, dry_run: reader.flag("dry_run")? },
            7 => Self::GroupList { address: reader.address()? },
            8 => Self::GroupSeek {
                address: reader.address()?,
                group: reader.group()?,
                start: Option::<StartAt>::read(reader)?.ok_or(DecodeError::Invalid("start"))?,
                dry_run: reader.flag("dry_run")?,
            },
            9 => Self::GroupRemove {
                address: reader.address()?,
                group: reader.group()?,
                dry_run: reader.flag("dry_run")?,
            },
            10 => Self::Status,
            11 => Self::ProducerTakeOver { name: reader.producer_name()? },
            12 => Self::NodeDrain { node: NodeId(reader.u16()?), draining: reader.flag("draining")? },
            13 => Self::NodeRemove { node: NodeId(reader.u16()?) },
            14 => Self::Routes,
            15 => Self::RouteExplain { from: NodeId(reader.u16()?), to: NodeId(reader.u16()?) },
            16 => Self::SettingSet { name: reader.name("name")?, value: reader.name("value")? },
            17 => Self::SettingList,
            verb if AccessRequest::VERBS.contains(&verb) => Self::Access(AccessRequest::read(verb, reader)?),
            _ => return Err(DecodeError::Invalid("admin verb")),
        })
    }
}

/// Start as it travels: absent means that the cluster decides.
pub(crate) trait PutStart: Sized {
    fn put(&self, out: &mut BytesMut);
    fn read(reader: &mut Reader) -> Result<Self, DecodeError>;
}

impl PutStart for Option<StartAt> {
    fn put(&self, out: &mut BytesMut) {
        let (kind, time) = match self {
            None => (0, 0),
            Some(StartAt::Oldest) => (1, 0),
            Some(StartAt::End) => (2, 0),
            Some(StartAt::Time(time)) => (3, time.0),
        };
        out.put_u8(kind);
        out.put_u64(time);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let kind = reader.u8()?;
        let time = reader.u64()?;
        match (kind, time) {
            (0, 0) => Ok(None),
            (1, 0) => Ok(Some(StartAt::Oldest)),
            (2, 0) => Ok(Some(StartAt::End)),
            (3, _) => Ok(Some(StartAt::Time(crate::time::WallTime(time)))),
            _ => Err(DecodeError::Invalid("start")),
        }
    }
}

fn read_order(reader: &mut Reader) -> Result<Order, DecodeError> {
    Order::from_u8(reader.u8()?).ok_or(DecodeError::Invalid("order"))
}

/// One shard of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// Which.
    pub id: ShardId,
    /// Who leads it; 0: nobody.
    pub leader: u16,
    /// Messages there.
    pub messages: u64,
    /// Their sealed bytes.
    pub bytes: u64,
}

/// One group of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its name.
    pub name: GroupName,
    /// Messages it still wants.
    pub lag_messages: u64,
    /// Age of the oldest of them, in milliseconds.
    pub lag_ms: u64,
    /// Messages leased to its consumers.
    pub leased: u64,
    /// Messages it gave up.
    pub dead_lettered: u64,
}

/// Everything about one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressInfo {
    /// Its name.
    pub address: Address,
    /// Its order.
    pub order: Order,
    /// All of its settings.
    pub settings: Settings,
    /// Where it lies.
    pub shards: Vec<ShardInfo>,
    /// Who consumes it.
    pub groups: Vec<GroupInfo>,
}

/// How well a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Serving.
    Alive,
    /// Serving, slower than its peers.
    Slow,
    /// Perhaps gone.
    Suspect,
    /// Gone.
    Dead,
    /// Stopping.
    Draining,
}

impl NodeState {
    const ALL: [Self; 5] = [Self::Alive, Self::Slow, Self::Suspect, Self::Dead, Self::Draining];

    /// Name in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Slow => "slow",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Draining => "draining",
        }
    }
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Which.
    pub id: NodeId,
    /// How well it is.
    pub state: NodeState,
    /// Bit 0 ingress, bit 1 router, bit 2 store.
    pub roles: u8,
    /// What it runs.
    pub version: String,
}

/// One shard of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Which.
    pub id: ShardId,
    /// Who leads it; 0: nobody.
    pub leader: u16,
    /// Current reign.
    pub term: Term,
    /// Who holds it.
    pub replicas: Vec<u16>,
    /// Who of them has everything.
    pub in_sync: Vec<u16>,
}

/// Something a person should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What was seen.
    pub what: String,
    /// What follows from it.
    pub meaning: String,
    /// What to do.
    pub action: String,
}

/// How the cluster is, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusReport {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// Its shards; the cluster's own is not listed.
    pub shards: Vec<ShardStatus>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// An answer to an [`AdminRequest`]; failures come as a plain answer instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAnswer {
    /// To `AddressList`.
    Addresses(Vec<(Address, Order)>),
    /// To `AddressInfo`.
    Address(AddressInfo),
    /// To `GroupList`.
    Groups(Vec<GroupInfo>),
    /// To `AddressRemove`, `AddressPurge`, `GroupSeek`, `GroupRemove`.
    Count {
        /// Messages removed; after a seek or in a dry run, messages concerned.
        messages: u64,
    },
    /// To `Status`.
    Status(StatusReport),
    /// To `ProducerTakeOver`: who the producer is now.
    Producer {
        /// The same for every life.
        producer: ProducerId,
        /// Of this life alone.
        epoch: ProducerEpoch,
    },
    /// To `Routes`: one entry for each node.
    Routes(Vec<NodeRoutes>),
    /// To `RouteExplain`. `None`: the node where the way begins did not answer.
    RouteExplanation(Option<Box<RouteExplanation>>),
    /// To `SettingList`: names and values, as people write them.
    Settings(Vec<(String, String)>),
    /// To `Add` and `Rotate` of a principal: which token it has now.
    Generation(u64),
    /// To `List` of principals.
    Principals(Vec<PrincipalInfo>),
}

impl AdminAnswer {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Addresses(addresses) => {
                out.put_u8(2);
                out.put_u32(addresses.len() as u32);
                for (address, order) in addresses {
                    put_name(out, address.as_str());
                    out.put_u8(order.to_u8());
                }
            }
            Self::Address(info) => {
                out.put_u8(3);
                put_name(out, info.address.as_str());
                out.put_u8(info.order.to_u8());
                info.settings.put(out);
                out.put_u16(info.shards.len() as u16);
                for shard in &info.shards {
                    out.put_u32(shard.id.0);
                    out.put_u16(shard.leader);
                    out.put_u64(shard.messages);
                    out.put_u64(shard.bytes);
                }
                put_groups(out, &info.groups);
            }
            Self::Groups(groups) => {
                out.put_u8(7);
                put_groups(out, groups);
            }
            Self::Count { messages } => {
                out.put_u8(5);
                out.put_u64(*messages);
            }
            Self::Producer { producer, epoch } => {
                out.put_u8(11);
                out.put_u128(producer.0);
                out.put_u64(epoch.0);
            }
            Self::Status(report) => {
                out.put_u8(10);
                put_status(out, report);
            }
            Self::Routes(all) => {
                out.put_u8(14);
                out.put_u16(all.len() as u16);
                all.iter().for_each(|of_node| of_node.put(out));
            }
            Self::RouteExplanation(explanation) => {
                out.put_u8(15);
                out.put_u8(explanation.is_some().into());
                if let Some(explanation) = explanation {
                    explanation.put(out);
                }
            }
            Self::Settings(settings) => {
                out.put_u8(17);
                out.put_u16(settings.len() as u16);
                for (name, value) in settings {
                    put_name(out, name);
                    put_name(out, value);
                }
            }
            Self::Generation(generation) => {
                out.put_u8(18);
                out.put_u64(*generation);
            }
            Self::Principals(principals) => {
                out.put_u8(24);
                put_principals(out, principals);
            }
        }
    }

    pub(crate) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match reader.u8()? {
            2 => {
                let count = reader.u32()? as usize;
                if count > ADDRESSES_MAX * 2 {
                    return Err(DecodeError::TooLarge("addresses"));
                }
                Self::Addresses(
                    reader
                        .list(count, 3, "addresses", |reader| Ok((reader.address()?, read_order(reader)?)))?,
                )
            }
            3 => {
                let address = reader.address()?;
                let order = read_order(reader)?;
                let settings = Settings::read(reader)?;
                let count = usize::from(reader.u16()?);
                let shards = reader.list(count, 22, "shards", |reader| {
                    Ok(ShardInfo {
                        id: ShardId(reader.u32()?),
                        leader: reader.u16()?,
                        messages: reader.u64()?,
                        bytes: reader.u64()?,
                    })
                })?;
                Self::Address(AddressInfo { address, order, settings, shards, groups: read_groups(reader)? })
            }
            5 => Self::Count { messages: reader.u64()? },
            7 => Self::Groups(read_groups(reader)?),
            10 => Self::Status(read_status(reader)?),
            11 => {
                Self::Producer { producer: ProducerId(reader.u128()?), epoch: ProducerEpoch(reader.u64()?) }
            }
            14 => {
                let count = usize::from(reader.u16()?);
                Self::Routes(reader.list(count, NodeRoutes::BYTES_MIN, "nodes", NodeRoutes::read)?)
            }
            15 => {
                let has_answered = reader.flag("has answered")?;
                let explanation = has_answered.then(|| RouteExplanation::read(reader)).transpose()?;
                Self::RouteExplanation(explanation.map(Box::new))
            }
            17 => {
                let count = usize::from(reader.u16()?);
                let one = |reader: &mut Reader| Ok((reader.name("name")?, reader.name("value")?));
                Self::Settings(reader.list(count, 2, "settings", one)?)
            }
            18 => Self::Generation(reader.u64()?),
            24 => Self::Principals(read_principals(reader)?),
            _ => return Err(DecodeError::Invalid("admin answer")),
        })
    }
}

fn put_groups(out: &mut BytesMut, groups: &[GroupInfo]) {
    out.put_u16(groups.len() as u16);
    for group in groups {
        put_name(out, group.name.as_str());
        out.put_u64(group.lag_messages);
        out.put_u64(group.lag_ms);
        out.put_u64(group.leased);
        out.put_u64(group.dead_lettered);
    }
}

fn read_groups(reader: &mut Reader) -> Result<Vec<GroupInfo>, DecodeError> {
    let count = usize::from(reader.u16()?);
    if count > GROUPS_PER_ADDRESS_MAX {
        return Err(DecodeError::TooLarge("groups"));
    }
    reader.list(count, 33, "groups", |reader| {
        Ok(GroupInfo {
            name: reader.group()?,
            lag_messages: reader.u64()?,
            lag_ms: reader.u64()?,
            leased: reader.u64()?,
            dead_lettered: reader.u64()?,
        })
    })
}

fn put_status(out: &mut BytesMut, report: &StatusReport) {
    out.put_u128(report.cluster.0);
    out.put_u16(report.nodes.len() as u16);
    for node in &report.nodes {
        out.put_u16(node.id.0);
        out.put_u8(node.state as u8);
        out.put_u8(node.roles);
        put_name(out, &node.version);
    }
    out.put_u16(report.shards.len() as u16);
    for shard in &report.shards {
        out.put_u32(shard.id.0);
        out.put_u16(shard.leader);
        out.put_u64(shard.term.0);
        for nodes in [&shard.replicas, &shard.in_sync] {
            out.put_u8(nodes.len() as u8);
            nodes.iter().for_each(|node| out.put_u16(*node));
        }
    }
    out.put_u16(report.problems.len() as u16);
    for problem in &report.problems {
        put_text(out, &problem.what);
        put_text(out, &problem.meaning);
        put_text(out, &problem.action);
    }
}

fn read_status(reader: &mut Reader) -> Result<StatusReport, DecodeError> {
    let cluster = ClusterId(reader.u128()?);
    let count = usize::from(reader.u16()?);
    let nodes = reader.list(count, 5, "nodes", |reader| {
        Ok(NodeStatus {
            id: NodeId(reader.u16()?),
            state: *NodeState::ALL
                .get(usize::from(reader.u8()?))
                .ok_or(DecodeError::Invalid("node state"))?,
            roles: reader.u8()?,
            version: reader.name("version")?,
        })
    })?;
    let count = usize::from(reader.u16()?);
    let shards = reader.list(count, 16, "shards", |reader| {
        Ok(ShardStatus {
            id: ShardId(reader.u32()?),
            leader: reader.u16()?,
            term: Term(reader.u64()?),
            replicas: read_nodes(reader)?,
            in_sync: read_nodes(reader)?,
        })
    })?;
    let count = usize::from(reader.u16()?);
    let problems = reader.list(count, 6, "problems", |reader| {
        Ok(Problem {
            what: reader.text("what")?,
            meaning: reader.text("meaning")?,
            action: reader.text("action")?,
        })
    })?;
    Ok(StatusReport { cluster, nodes, shards, problems })
}

fn read_nodes(reader: &mut Reader) -> Result<Vec<u16>, DecodeError> {
    let count = usize::from(reader.u8()?);
    reader.list(count, 2, "nodes", Reader::u16)
}
