//! What there is, for whoever looks: one leader's view of an address, views put together, the state of the cluster.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use swarmmq_protocol::{
    admin::{
        self, AddressInfo, AdminAnswer, AdminRequest, GroupInfo, NodeState, NodeStatus, Problem, ShardInfo,
        ShardStatus, StatusReport,
    },
    codec::{DecodeError, Reader},
    error::Code,
    id::{Address, GroupName, NodeId, ShardId},
    policy::Setting,
    time::WallTime,
};

use super::{
    Node, Now, operation,
    report::{Figures, earlier},
};
use crate::shard::{
    event::{Settings, Start},
    member::node_of,
    queue::Group,
};

/// One shard's view of an address.
struct View {
    shard: ShardId,
    leader: NodeId,
    messages: u64,
    bytes: u64,
    /// How much a group would have before it that began where the question said.
    ahead: u64,
    groups: Vec<(GroupName, Figures)>,
}

impl View {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.shard.0);
        out.put_u16(self.leader.0);
        for number in [self.messages, self.bytes, self.ahead] {
            out.put_u64(number);
        }
        out.put_u8(self.groups.len() as u8);
        for (name, figures) in &self.groups {
            out.put_u8(name.as_str().len() as u8);
            out.put_slice(name.as_str().as_bytes());
            out.put_u64(figures.lag);
            out.put_u64(figures.oldest.map_or(u64::MAX, |oldest| oldest.0));
            out.put_u64(figures.leased);
            out.put_u64(figures.dead_lettered);
        }
    }

    fn read(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let (shard, leader) = (ShardId(r.u32()?), NodeId(r.u16()?));
        let (messages, bytes, ahead) = (r.u64()?, r.u64()?, r.u64()?);
        let count = r.u8()?;
        let mut groups = Vec::new();
        for _ in 0..count {
            let length = usize::from(r.u8()?);
            let name = r.take(length)?;
            let name = std::str::from_utf8(&name).ok().and_then(|name| GroupName::parse(name).ok());
            let name = name.ok_or(DecodeError::Invalid("group"))?;
            let (lag, oldest) = (r.u64()?, r.u64()?);
            let oldest = (oldest != u64::MAX).then_some(WallTime(oldest));
            groups.push((name, Figures { lag, oldest, leased: r.u64()?, dead_lettered: r.u64()? }));
        }
        r.end()?;
        Ok(Self { shard, leader, messages, bytes, ahead, groups })
    }
}

impl Node {
    /// What the shard at `index`, led from here, has of `address`.
    pub(super) fn view(&self, index: usize, address: &Address, start: Option<Start>) -> Bytes {
        let shard = &self.shards[index];
        let mut view = View {
            shard: shard.id(),
            leader: self.config.node,
            messages: 0,
            bytes: 0,
            ahead: 0,
            groups: Vec::new(),
        };
        if let Some(queue) = shard.state().queues.get(address) {
            view.messages = queue.messages.len() as u64;
            view.bytes = queue.bytes;
            if let Some(start) = start {
                let floor = queue.start_offset(start, shard.state().next_offset);
                view.ahead = queue.lag(&Group { floor, ..Group::default() });
            }
            for name in queue.groups.keys() {
                let mut figures = Figures::default();
                figures.add(shard, queue, name);
                view.groups.push((name.clone(), figures));
            }
        }
        let mut out = BytesMut::new();
        view.put(&mut out);
        out.freeze()
    }

    /// Puts the views of all shards of an address together.
    pub(super) fn looked(
        &self,
        now: Now,
        question: &AdminRequest,
        views: Vec<Bytes>,
    ) -> Result<AdminAnswer, Code> {
        let catalog = &self.cluster_shard().state().catalog;
        if matches!(question, AdminRequest::AddressList) {
            let addresses = catalog.addresses.iter().map(|(a, entry)| (a.clone(), entry.order)).collect();
            return Ok(AdminAnswer::Addresses(addresses));
        }
        if matches!(question, AdminRequest::SettingList) {
            let open_join = Setting::OpenJoin(catalog.access.open_join);
            let settings = catalog.routing.settings().into_iter().chain([open_join]);
            let settings = settings.map(|setting| (setting.name().into(), setting.value())).collect();
            return Ok(AdminAnswer::Settings(settings));
        }
        if matches!(question, AdminRequest::Access(_)) {
            return Ok(self.principals());
        }
        let mut all = Vec::new();
        for view in views {
            all.push(View::read(view).map_err(|_| Code::Malformed)?);
        }
        all.sort_by_key(|view| view.shard);
        let ahead = all.iter().map(|view| view.ahead).sum();
        let messages = all.iter().map(|view| view.messages).sum();
        match question {
            AdminRequest::AddressInfo { address } => {
                self.address_info(now, address, all).map(AdminAnswer::Address)
            }
            AdminRequest::GroupList { address } => {
                self.address_info(now, address, all).map(|info| AdminAnswer::Groups(info.groups))
            }
            AdminRequest::AddressRemove { .. } | AdminRequest::AddressPurge { .. } => {
                Ok(AdminAnswer::Count { messages })
            }
            AdminRequest::GroupRemove { address, group, .. } => {
                let info = self.address_info(now, address, all)?;
                let found = info.groups.iter().find(|info| info.name == *group).ok_or(Code::NoSuchGroup)?;
                Ok(AdminAnswer::Count { messages: found.lag_messages })
            }
            AdminRequest::GroupSeek { address, group, .. } => {
                let known =
                    catalog.addresses.get(address).is_some_and(|entry| entry.groups.contains_key(group));
                if known { Ok(AdminAnswer::Count { messages: ahead }) } else { Err(Code::NoSuchGroup) }
            }
            _ => Err(Code::State),
        }
    }

    fn address_info(&self, now: Now, address: &Address, views: Vec<View>) -> Result<AddressInfo, Code> {
        let addresses = &self.cluster_shard().state().catalog.addresses;
        let entry = addresses
            .get(address)
            .or_else(|| addresses.get(&operation::base_of(address)))
            .ok_or(Code::NoSuchAddress)?;
        let mut groups: BTreeMap<GroupName, Figures> = BTreeMap::new();
        let mut shards = Vec::new();
        let is_one = views.len() == 1;
        for view in views {
            if is_one || view.messages > 0 || !view.groups.is_empty() {
                let View { shard: id, leader, messages, bytes, .. } = view;
                shards.push(ShardInfo { id, leader: leader.0, messages, bytes });
            }
            for (name, figures) in view.groups {
                let sum = groups.entry(name).or_default();
                sum.lag += figures.lag;
                sum.oldest = earlier(sum.oldest, figures.oldest);
                sum.leased += figures.leased;
                sum.dead_lettered += figures.dead_lettered;
            }
        }
        let groups = groups
            .into_iter()
            .map(|(name, figures)| GroupInfo {
                name,
                lag_messages: figures.lag,
                lag_ms: figures.oldest.map_or(0, |oldest| now.wall.since(oldest).as_millis() as u64),
                leased: figures.leased,
                dead_lettered: figures.dead_lettered,
            })
            .collect();
        let settings = wire_settings(&entry.settings);
        Ok(AddressInfo { address: address.clone(), order: entry.order, settings, shards, groups })
    }

    /// The cluster as this node sees it: members as committed, who answers now, what leaders said of their shards.
    pub(super) fn status(&self) -> StatusReport {
        let me = self.config.node;
        let members = &self.cluster_shard().state().catalog.members;
        let mut nodes: Vec<NodeStatus> = members
            .nodes
            .iter()
            .map(|(node, member)| {
                let link = self.ways.hello(*node);
                let state = match () {
                    () if *node == me && self.draining || member.draining => NodeState::Draining,
                    () if *node == me => NodeState::Alive,
                    () if link.is_none() => NodeState::Dead,
                    () => self.seems(*node),
                };
                let is_slow = state == NodeState::Alive && self.swarm.fitness().is_slow(*node);
                let state = if is_slow { NodeState::Slow } else { state };
                let version =
                    if *node == me { Some(&self.config.version) } else { link.map(|link| &link.version) };
                NodeStatus {
                    id: *node,
                    state,
                    roles: member.roles,
                    version: version.cloned().unwrap_or_default(),
                }
            })
            .collect();
        if nodes.is_empty() {
            let (state, roles, version) = (NodeState::Alive, self.config.roles, self.config.version.clone());
            nodes.push(NodeStatus { id: me, state, roles, version });
        }
        let mut problems = self.own_problems();
        for node in nodes.iter().filter(|node| node.state == NodeState::Dead) {
            problems.push(Problem {
                what: format!("node {} cannot be reached from node {}", node.id.0, me.0),
                meaning: "shards with a replica there have one copy less".to_owned(),
                action: format!("start it, or `swarmmq node remove {}` if it is gone for good", node.id.0),
            });
        }
        for node in nodes.iter().filter(|node| node.state == NodeState::Slow) {
            problems.push(Problem {
                what: format!("node {} is slow", node.id.0),
                meaning: "it leads nothing that another can; its copies come late".to_owned(),
                action: "look at its disk and at what else its machine does; it comes back by itself"
                    .to_owned(),
            });
        }
        let mut shards = Vec::new();
        for index in 0..self.shards.len() {
            let (status, problem) = self.shard_status(index);
            problems.extend(problem);
            if index + 1 < self.shards.len() {
                shards.push(status);
            }
        }
        StatusReport { cluster: self.config.cluster, nodes, shards, problems }
    }

    fn shard_status(&self, index: usize) -> (ShardStatus, Option<Problem>) {
        let shard = &self.shards[index];
        let names = |replicas: &[u64]| -> Vec<u16> {
            let mut nodes: Vec<u16> = replicas.iter().map(|replica| node_of(*replica).0).collect();
            nodes.sort_unstable();
            nodes.dedup();
            nodes
        };
        let view = self.peers.views.get(&index);
        let leader = self.leaders[index];
        let (voters, in_sync) = if shard.is_serving() {
            (names(&shard.conf().voters), names(&shard.in_sync()))
        } else {
            let voters = view.map_or_else(|| names(&shard.conf().voters), |view| names(&view.voters));
            // What a leader said that is lost now is old news.
            let in_sync =
                view.filter(|_| leader.is_some()).map_or_else(Vec::new, |view| names(&view.in_sync));
            (voters, in_sync)
        };
        let in_sync: Vec<u16> = in_sync.into_iter().filter(|node| voters.contains(node)).collect();
        let name = if shard.is_clusters() {
            "the cluster's own shard".to_owned()
        } else {
            format!("shard {}", shard.id().0)
        };
        let copies = self.cluster_shard().state().catalog.members.wish(shard.id()).voters.len();
        let problem = if leader.is_none() {
            Some(Problem {
                what: format!("{name} has no leader"),
                meaning: "fewer than half of its replicas answer, or they are electing; what needs it waits, then fails"
                    .to_owned(),
                action: format!("start the nodes that hold it: {voters:?}"),
            })
        } else if in_sync.len() < voters.len() {
            Some(Problem {
                what: format!("{name} has {} of {} replicas in sync", in_sync.len(), voters.len()),
                meaning: "it goes on, and survives fewer losses".to_owned(),
                action: "wait if a replica is being caught up; start the node that is missing".to_owned(),
            })
        } else if voters.len() < copies {
            Some(Problem {
                what: format!("{name} has {} of {copies} replicas", voters.len()),
                meaning: "it survives fewer losses until the others have caught up".to_owned(),
                action: "wait; start the nodes that are missing".to_owned(),
            })
        } else {
            None
        };
        let status = ShardStatus {
            id: shard.id(),
            leader: leader.map_or(0, |(_, node)| node.0),
            term: leader.map_or(shard.term(), |(term, _)| term),
            replicas: voters,
            in_sync,
        };
        (status, problem)
    }

    fn own_problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self
            .counters
            .problems
            .iter()
            .map(|what| Problem {
                what: what.clone(),
                meaning:
                    "publishes and settlements that need it are refused; nothing acknowledged is lost by this"
                        .to_owned(),
                action: "read the node's log, mend the disk, then restart the node".to_owned(),
            })
            .collect();
        if self.is_below_reserve() {
            problems.push(Problem {
                what: format!("{} bytes free, the reserve is {}", self.free_bytes, self.config.reserve_bytes),
                meaning: "publishes are refused until there is space; deliveries and settlements go on"
                    .to_owned(),
                action: "free space on the disk, or let consumers catch up".to_owned(),
            });
        }
        if let Some(warning) = &self.counters.certificate {
            problems.push(Problem {
                what: warning.clone(),
                meaning: "once it has expired, clients and nodes that connect to this node refuse it; connections that stand go on"
                    .to_owned(),
                action: "renew it: `swarmmq certs renew --ca DIR FILE`; the node takes the new one while it runs"
                    .to_owned(),
            });
        }
        problems
    }
}

fn wire_settings(settings: &Settings) -> admin::Settings {
    admin::Settings {
        min_age: Some(settings.min_age),
        attempts_max: Some(settings.attempts_max),
        lease: Some(settings.lease),
        backlog_bytes_max: Some(settings.backlog_bytes_max),
    }
}
