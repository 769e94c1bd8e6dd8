//! What a node says about itself: answers to operators who look, and the numbers behind `/metrics` and `/readyz`.

use std::collections::BTreeMap;

use swarmmq_protocol::{
    admin::{
        self, AddressInfo, AdminAnswer, AdminRequest, GroupInfo, NodeState, NodeStatus, Order, Problem,
        ShardInfo, ShardStatus, StatusReport,
    },
    error::Code,
    id::{Address, GroupName},
};

use super::{Node, Now, operation};
use crate::shard::{
    Shard,
    event::Settings,
    queue::{Group, Queue},
};

/// Counts since the process started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: u64,
    pub(super) deduplicated: u64,
    pub(super) refused: BTreeMap<&'static str, u64>,
    pub(super) delivered: u64,
    pub(super) redelivered: u64,
    pub(super) expired: u64,
    pub(super) settled: u64,
    pub(super) publish_frames: u64,
    pub(super) connections: u64,
    pub(super) refused_connections: u64,
    pub(super) malformed: u64,
    pub(super) snapshots: u64,
    pub(super) moved: u64,
    pub(super) problems: Vec<String>,
}

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only up.
    Counter,
    /// Up and down.
    Gauge,
}

/// One number, as Prometheus wants it.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Name with unit.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// How it moves.
    pub kind: MetricKind,
    /// Name and value of its label, if it has one.
    pub label: Option<(&'static str, String)>,
    /// Now.
    pub value: f64,
}

/// What a node says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Whether it serves every shard that it should.
    pub ready: bool,
    /// Why not, for people.
    pub reason: String,
    /// What is wrong now, in words that stay the same as long as it is.
    pub problems: Vec<String>,
    /// Numbers.
    pub metrics: Vec<Metric>,
}

impl Node {
    /// Numbers and readiness. Cost: O(queues), plus O(messages) where groups differ in progress.
    pub fn report(&self) -> Report {
        let silent = self.shards.iter().filter(|shard| !shard.is_serving()).count();
        let reason = match (&self.stopped, self.draining, silent) {
            (Some(why), _, _) => format!("the log stopped: {why}"),
            (None, true, _) => "draining".to_owned(),
            (None, false, 0) => String::new(),
            (None, false, silent) => format!("{silent} shards do not serve yet"),
        };
        let mut problems = self.counters.problems.clone();
        if self.is_below_reserve() {
            problems.push("the disk is below its reserve: publishes are refused".to_owned());
        }
        Report { ready: reason.is_empty(), reason, problems, metrics: self.metrics() }
    }

    fn metrics(&self) -> Vec<Metric> {
        let mut metrics = Vec::new();
        let counter = |name, help, value: u64| Metric {
            name,
            help,
            kind: MetricKind::Counter,
            label: None,
            value: value as f64,
        };
        let gauge =
            |name, help, value: f64| Metric { name, help, kind: MetricKind::Gauge, label: None, value };
        let counters = &self.counters;
        metrics.extend([
            counter("swarmmq_messages_accepted_total", "Messages taken into the log.", counters.accepted),
            counter("swarmmq_messages_deduplicated_total", "Copies recognised.", counters.deduplicated),
            counter("swarmmq_messages_delivered_total", "Messages sent to consumers.", counters.delivered),
            counter("swarmmq_leases_expired_total", "Leases that ran out.", counters.expired),
            counter("swarmmq_messages_redelivered_total", "Of these, sent again.", counters.redelivered),
            counter("swarmmq_messages_settled_total", "Settlements committed.", counters.settled),
            counter("swarmmq_publish_frames_total", "Publish frames received.", counters.publish_frames),
            counter("swarmmq_connections_total", "Connections accepted.", counters.connections),
            counter(
                "swarmmq_connections_refused_total",
                "Handshakes that failed.",
                counters.refused_connections,
            ),
            counter(
                "swarmmq_frames_malformed_total",
                "Connections closed for bad bytes.",
                counters.malformed,
            ),
            counter("swarmmq_log_snapshots_total", "Shard snapshots written.", counters.snapshots),
            counter("swarmmq_log_moved_total", "Messages copied out of old segments.", counters.moved),
        ]);
        for (code, count) in &counters.refused {
            metrics.push(Metric {
                label: Some(("code", (*code).to_owned())),
                ..counter("swarmmq_messages_rejected_total", "Messages refused, by reason.", *count)
            });
        }
        let queues = || self.shards.iter().flat_map(|shard| shard.state().queues.values());
        let depth: usize = queues().map(|queue| queue.messages.len()).sum();
        let bytes: u64 = queues().map(|queue| queue.bytes).sum();
        let cache: usize = self.shards.iter().map(Shard::cache_bytes).sum();
        let serving = self.shards.iter().filter(|shard| shard.is_serving()).count();
        metrics.extend([
            gauge("swarmmq_queue_depth", "Messages held.", depth as f64),
            gauge("swarmmq_queue_bytes", "Their sealed bytes.", bytes as f64),
            gauge("swarmmq_connections", "Connections open.", self.connections.len() as f64),
            gauge("swarmmq_subscriptions", "Subscriptions open.", self.subscribers.len() as f64),
            gauge("swarmmq_cache_bytes", "Payload bytes in memory.", cache as f64),
            gauge("swarmmq_log_segments", "Log segments in use.", self.space.segments.len() as f64),
            gauge("swarmmq_shards_serving", "Shards that serve, the cluster's own included.", serving as f64),
            gauge("swarmmq_disk_free_bytes", "Space left for the log.", self.free_bytes as f64),
            gauge(
                "swarmmq_log_stopped",
                "1 after a disk error.",
                f64::from(u8::from(self.stopped.is_some())),
            ),
        ]);
        metrics
    }

    /// Answers a question that changes nothing.
    pub(super) fn look(&self, now: Now, question: &AdminRequest) -> Result<AdminAnswer, Code> {
        match question {
            AdminRequest::AddressList => {
                let addresses = &self.cluster_shard().state().catalog.addresses;
                Ok(AdminAnswer::Addresses(
                    addresses.iter().map(|(a, entry)| (a.clone(), entry.order)).collect(),
                ))
            }
            AdminRequest::AddressInfo { address } => {
                self.address_info(now, address).map(AdminAnswer::Address)
            }
            AdminRequest::GroupList { address } => {
                self.address_info(now, address).map(|info| AdminAnswer::Groups(info.groups))
            }
            AdminRequest::AddressRemove { address, .. } | AdminRequest::AddressPurge { address, .. } => {
                let info = self.address_info(now, address)?;
                Ok(AdminAnswer::Count { messages: info.shards.iter().map(|shard| shard.messages).sum() })
            }
            AdminRequest::GroupRemove { address, group, .. } => {
                let info = self.address_info(now, address)?;
                let found = info.groups.iter().find(|info| info.name == *group).ok_or(Code::NoSuchGroup)?;
                Ok(AdminAnswer::Count { messages: found.lag_messages })
            }
            AdminRequest::GroupSeek { address, group, start, .. } => {
                let start = operation::start_of(*start);
                let mut messages = 0;
                for index in self.with_queue(address) {
                    let state = self.shards[index].state();
                    let queue = &state.queues[address];
                    if !queue.groups.contains_key(group) {
                        return Err(Code::NoSuchGroup);
                    }
                    let floor = queue.start_offset(start, state.next_offset);
                    messages += queue.lag(&Group { floor, ..Group::default() });
                }
                Ok(AdminAnswer::Count { messages })
            }
            AdminRequest::Status => Ok(AdminAnswer::Status(self.status())),
            AdminRequest::AddressCreate { .. }
            | AdminRequest::AddressSet { .. }
            | AdminRequest::ProducerTakeOver { .. } => {
                unreachable!("changes are operations")
            }
        }
    }

    fn address_info(&self, now: Now, address: &Address) -> Result<AddressInfo, Code> {
        let catalog = &self.cluster_shard().state().catalog;
        let entry = catalog
            .addresses
            .get(address)
            .or_else(|| catalog.addresses.get(&operation::base_of(address)))
            .ok_or(Code::NoSuchAddress)?;
        let leader = |shard: &Shard| if shard.is_serving() { self.config.node.0 } else { 0 };
        let mut groups: BTreeMap<GroupName, GroupInfo> = BTreeMap::new();
        let mut shards = Vec::new();
        let homes = match entry.order {
            Order::Total => self.shards_of(address, entry.order),
            Order::Key | Order::None => self.with_queue(address),
        };
        for index in homes {
            let shard = &self.shards[index];
            let queue = shard.state().queues.get(address);
            shards.push(ShardInfo {
                id: shard.id(),
                leader: leader(shard),
                messages: queue.map_or(0, |queue| queue.messages.len() as u64),
                bytes: queue.map_or(0, |queue| queue.bytes),
            });
            let Some(queue) = queue else { continue };
            queue.groups.keys().for_each(|name| add_group(&mut groups, now, shard, queue, name));
        }
        let settings = wire_settings(&entry.settings);
        let groups = groups.into_values().collect();
        Ok(AddressInfo { address: address.clone(), order: entry.order, settings, shards, groups })
    }

    fn status(&self) -> StatusReport {
        let node = self.config.node.0;
        let state = if self.draining { NodeState::Draining } else { NodeState::Alive };
        let data = &self.shards[..self.shards.len() - 1];
        let shards = data
            .iter()
            .map(|shard| ShardStatus {
                id: shard.id(),
                leader: if shard.is_serving() { node } else { 0 },
                term: shard.term(),
                replicas: vec![node],
                in_sync: if shard.stopped().is_none() { vec![node] } else { Vec::new() },
            })
            .collect();
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
        StatusReport {
            cluster: self.config.cluster,
            nodes: vec![NodeStatus {
                id: self.config.node,
                state,
                roles: 0b111,
                version: self.config.version.clone(),
            }],
            shards,
            problems,
        }
    }
}

fn add_group(
    groups: &mut BTreeMap<GroupName, GroupInfo>,
    now: Now,
    shard: &Shard,
    queue: &Queue,
    name: &GroupName,
) {
    let group = &queue.groups[name];
    let info = groups.entry(name.clone()).or_insert_with(|| GroupInfo {
        name: name.clone(),
        lag_messages: 0,
        lag_ms: 0,
        leased: 0,
        dead_lettered: 0,
    });
    info.lag_messages += queue.lag(group);
    let age =
        queue.oldest_wanted(group).map_or(0, |oldest| now.wall.since(oldest.published_at).as_millis() as u64);
    info.lag_ms = info.lag_ms.max(age);
    info.leased += shard.leased(&queue.address, name);
    info.dead_lettered += group.dead_lettered;
}

fn wire_settings(settings: &Settings) -> admin::Settings {
    admin::Settings {
        min_age: Some(settings.min_age),
        attempts_max: Some(settings.attempts_max),
        lease: Some(settings.lease),
        backlog_bytes_max: Some(settings.backlog_bytes_max),
    }
}
