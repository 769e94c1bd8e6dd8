//! What a node says about itself: answers to operators who look, and the numbers behind `/metrics` and `/readyz`.

use std::collections::BTreeMap;

use swarmmq_protocol::{
    admin::{
        self, AddressInfo, AdminAnswer, AdminRequest, GroupInfo, NodeState, NodeStatus, Order, Problem,
        ShardInfo, ShardStatus, StatusReport,
    },
    error::Code,
    id::{Address, GroupName},
    time::WallTime,
};

use super::{Node, Now, operation};
use crate::shard::{
    Shard,
    event::Settings,
    queue::{Group, Queue},
};

/// Groups with numbers of their own in `/metrics`: the first of all, by address and name.
const GROUPS_LISTED_MAX: usize = 200;
/// Messages walked over for these numbers in one report, together: about a millisecond each second, in which nothing
/// else happens; more would be seen in the latency of everybody.
const COUNTED_MAX: usize = 1 << 15;

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
    /// A gauge that grows by itself, in seconds: its values are where it counts from, in milliseconds since 1970; infinite
    /// where there is nothing to count from, which is zero seconds. Whoever shows it has a clock, which this crate has not.
    Age,
}

/// Names and values of the labels of one number.
pub type Labels = Vec<(&'static str, String)>;

/// Numbers of one meaning, as Prometheus wants them.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Name with unit.
    pub name: &'static str,
    /// What it means; must be understood alone.
    pub help: &'static str,
    /// How it moves.
    pub kind: MetricKind,
    /// Now; one for each combination of labels. None where nothing is known yet.
    pub samples: Vec<(Labels, f64)>,
}

impl Metric {
    /// Without any number yet.
    pub fn new(kind: MetricKind, name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind, samples: Vec::new() }
    }

    fn one(kind: MetricKind, name: &'static str, help: &'static str, value: f64) -> Self {
        Self { samples: vec![(Labels::new(), value)], ..Self::new(kind, name, help) }
    }

    fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self::one(MetricKind::Counter, name, help, value as f64)
    }

    fn gauge(name: &'static str, help: &'static str, value: u64) -> Self {
        Self::one(MetricKind::Gauge, name, help, value as f64)
    }
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
    /// Numbers and readiness. Cost: O(queues), plus some ten thousand messages where groups differ in progress.
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
        let counters = &self.counters;
        let counter = Metric::counter;
        let mut metrics = vec![
            counter("swarmmq_messages_accepted_total", "Messages taken into the log.", counters.accepted),
            counter(
                "swarmmq_messages_deduplicated_total",
                "Copies of messages that were taken before.",
                counters.deduplicated,
            ),
        ];
        let mut rejected = Metric::new(
            MetricKind::Counter,
            "swarmmq_messages_rejected_total",
            "Messages refused, by reason.",
        );
        let by_reason = counters.refused.iter();
        rejected.samples =
            by_reason.map(|(code, count)| (vec![("code", (*code).to_owned())], *count as f64)).collect();
        metrics.push(rejected);
        metrics.extend([
            counter("swarmmq_publish_frames_total", "Publish frames received.", counters.publish_frames),
            counter(
                "swarmmq_messages_delivered_total",
                "Deliveries: messages sent to consumers, again or for the first time.",
                counters.delivered,
            ),
            counter(
                "swarmmq_messages_redelivered_total",
                "Deliveries of messages that the group had been sent before.",
                counters.redelivered,
            ),
            counter(
                "swarmmq_messages_settled_total",
                "Settlements committed: done with, to be tried again, given back or given up.",
                counters.settled,
            ),
            counter(
                "swarmmq_leases_expired_total",
                "Leases that ran out before a settlement.",
                counters.expired,
            ),
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
        metrics.extend(self.queue_metrics());
        metrics.extend(self.group_metrics());
        let gauge = Metric::gauge;
        let cache: usize = self.shards.iter().map(Shard::cache_bytes).sum();
        let serving = self.shards.iter().filter(|shard| shard.is_serving()).count();
        let segments = self.space.segments.len() as u64;
        let mut free = Metric::new(MetricKind::Gauge, "swarmmq_disk_free_bytes", "Space left for the log.");
        // Until the disk has said it, nobody knows.
        if self.free_bytes != u64::MAX {
            free.samples.push((Labels::new(), self.free_bytes as f64));
        }
        metrics.extend([
            gauge("swarmmq_connections", "Connections open.", self.connections.len() as u64),
            gauge("swarmmq_subscriptions", "Subscriptions open.", self.subscribers.len() as u64),
            gauge("swarmmq_cache_bytes", "Payload bytes in memory.", cache as u64),
            gauge("swarmmq_log_segments", "Log segments in use.", segments),
            gauge(
                "swarmmq_log_bytes",
                "Size of the log segments in use.",
                segments * u64::from(self.config.segment_bytes),
            ),
            gauge(
                "swarmmq_shards",
                "Shards that this node should serve, the cluster's own included.",
                self.shards.len() as u64,
            ),
            gauge("swarmmq_shards_serving", "Shards that it serves.", serving as u64),
            free,
            gauge(
                "swarmmq_disk_reserve_bytes",
                "Space left below which publishes are refused.",
                self.config.reserve_bytes,
            ),
            gauge("swarmmq_log_stopped", "1 after a disk error.", u64::from(self.stopped.is_some())),
        ]);
        metrics
    }

    fn queue_metrics(&self) -> Vec<Metric> {
        let queues = || self.shards.iter().flat_map(|shard| shard.state().queues.values());
        let (mut depth, mut bytes, mut dead, mut oldest) = (0, 0, 0, None);
        for queue in queues() {
            depth += queue.messages.len() as u64;
            bytes += queue.bytes;
            if queue.address.is_dead_letter() {
                dead += queue.messages.len() as u64;
            } else if let Some((_, message)) = queue.messages.first_key_value() {
                oldest = earlier(oldest, Some(message.published_at));
            }
        }
        let gauge = Metric::gauge;
        vec![
            gauge("swarmmq_queue_depth", "Messages held, dead letters included.", depth),
            gauge("swarmmq_queue_bytes", "Sealed bytes of the messages held.", bytes),
            gauge("swarmmq_queue_dead_letters", "Dead letters held.", dead),
            Metric::one(
                MetricKind::Age,
                "swarmmq_queue_oldest_age_seconds",
                "Age of the oldest message held, dead letters aside.",
                stamp(oldest),
            ),
        ]
    }

    /// One series for each group and meaning, and bounds for both: there may be a million groups, and counting what one
    /// of them still wants may mean walking over a whole backlog, while nothing else happens.
    fn group_metrics(&self) -> Vec<Metric> {
        let series = |kind, name, help| Metric::new(kind, name, help);
        let mut messages = series(
            MetricKind::Gauge,
            "swarmmq_group_lag_messages",
            "Messages that a group still wants, by address and group.",
        );
        let mut seconds = series(
            MetricKind::Age,
            "swarmmq_group_lag_seconds",
            "Age of the oldest message that a group still wants, by address and group.",
        );
        let mut leased = series(
            MetricKind::Gauge,
            "swarmmq_group_leased_messages",
            "Messages that consumers of a group hold, by address and group.",
        );
        let mut dead = series(
            MetricKind::Counter,
            "swarmmq_group_dead_lettered_total",
            "Messages that a group gave up since it was made, by address and group.",
        );
        let addresses = &self.cluster_shard().state().catalog.addresses;
        let count: usize = addresses.values().map(|entry| entry.groups.len()).sum();
        // A shard that has not read all of its log would tell of the past.
        let is_known = self.shards.iter().all(|shard| shard.is_serving() || shard.stopped().is_some());
        let groups = addresses.iter().flat_map(|(a, entry)| entry.groups.keys().map(move |group| (a, group)));
        let mut counted_max = COUNTED_MAX;
        for (address, group) in groups.take(if is_known { GROUPS_LISTED_MAX } else { 0 }) {
            let Some(figures) = self.figures(address, group, &mut counted_max) else { continue };
            let labels = || vec![("address", address.to_string()), ("group", group.to_string())];
            messages.samples.push((labels(), figures.lag as f64));
            seconds.samples.push((labels(), stamp(figures.oldest)));
            leased.samples.push((labels(), figures.leased as f64));
            dead.samples.push((labels(), figures.dead_lettered as f64));
        }
        let unlisted = count - messages.samples.len();
        let gauge = Metric::gauge;
        vec![
            gauge("swarmmq_addresses", "Addresses.", addresses.len() as u64),
            gauge("swarmmq_groups", "Groups of all addresses.", count as u64),
            gauge(
                "swarmmq_groups_unlisted",
                "Groups without numbers of their own here: too many, or too far apart to be counted.",
                unlisted as u64,
            ),
            messages,
            seconds,
            leased,
            dead,
        ]
    }

    /// What a group has before it, in all shards. `None`: counting it would exceed `counted_max`, which is lowered otherwise.
    fn figures(&self, address: &Address, group: &GroupName, counted_max: &mut usize) -> Option<Figures> {
        let mut figures = Figures::default();
        for index in self.with_queue(address) {
            let shard = &self.shards[index];
            let queue = &shard.state().queues[address];
            if let Some(found) = queue.groups.get(group) {
                *counted_max = counted_max.checked_sub(cost(queue, found))?;
                figures.add(shard, queue, group);
            }
        }
        Some(figures)
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
        let mut groups: BTreeMap<&GroupName, Figures> = BTreeMap::new();
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
            for name in queue.groups.keys() {
                groups.entry(name).or_default().add(shard, queue, name);
            }
        }
        let settings = wire_settings(&entry.settings);
        let groups = groups
            .into_iter()
            .map(|(name, figures)| GroupInfo {
                name: name.clone(),
                lag_messages: figures.lag,
                lag_ms: figures.oldest.map_or(0, |oldest| now.wall.since(oldest).as_millis() as u64),
                leased: figures.leased,
                dead_lettered: figures.dead_lettered,
            })
            .collect();
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

/// What a group has before it.
#[derive(Debug, Default)]
struct Figures {
    lag: u64,
    oldest: Option<WallTime>,
    leased: u64,
    dead_lettered: u64,
}

impl Figures {
    /// Adds those of one shard, where the group must be. Cost: [`cost`].
    fn add(&mut self, shard: &Shard, queue: &Queue, name: &GroupName) {
        let group = &queue.groups[name];
        self.lag += queue.lag(group);
        self.oldest = earlier(self.oldest, queue.oldest_wanted(group).map(|oldest| oldest.published_at));
        self.leased += shard.leased(&queue.address, name);
        self.dead_lettered += group.dead_lettered;
    }
}

/// Messages to walk over for what `group` still wants, at most.
fn cost(queue: &Queue, group: &Group) -> usize {
    let behind = queue.messages.first_key_value().is_some_and(|(first, _)| *first < group.floor);
    group.settled.len() + if behind { queue.messages.len() } else { 0 }
}

fn earlier(a: Option<WallTime>, b: Option<WallTime>) -> Option<WallTime> {
    [a, b].into_iter().flatten().min()
}

/// As [`MetricKind::Age`] has it.
fn stamp(since: Option<WallTime>) -> f64 {
    since.map_or(f64::INFINITY, |since| since.0 as f64)
}

fn wire_settings(settings: &Settings) -> admin::Settings {
    admin::Settings {
        min_age: Some(settings.min_age),
        attempts_max: Some(settings.attempts_max),
        lease: Some(settings.lease),
        backlog_bytes_max: Some(settings.backlog_bytes_max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{log::Position, shard::queue::Message};

    fn queue(offsets: std::ops::Range<u64>) -> Queue {
        let message = Message {
            place: Position { segment: 1, offset: 0 },
            length: 0,
            crc: 0,
            published_at: WallTime(1),
            key: None,
            dead: None,
        };
        Queue {
            address: Address::parse("a").unwrap(),
            order: Order::Total,
            settings: Settings::default(),
            messages: offsets.map(|offset| (offset, message.clone())).collect(),
            bytes: 0,
            groups: BTreeMap::new(),
        }
    }

    #[test]
    fn counting_walks_over_messages_only_where_groups_differ_in_progress() {
        let queue = queue(10..1000);
        let group = |floor, settled: &[u64]| Group {
            floor,
            settled: settled.iter().copied().collect(),
            ..Group::default()
        };
        assert_eq!(cost(&queue, &group(10, &[])), 0, "the slowest group of all");
        assert_eq!(cost(&queue, &group(0, &[11, 12])), 2);
        assert_eq!(cost(&queue, &group(500, &[])), 990);
    }

    #[test]
    fn nothing_to_count_from_is_infinitely_late_and_so_of_no_age() {
        assert_eq!(stamp(earlier(None, None)), f64::INFINITY);
        assert_eq!(stamp(earlier(Some(WallTime(7)), None)), 7.0);
        assert_eq!(stamp(earlier(Some(WallTime(7)), Some(WallTime(5)))), 5.0);
    }
}
