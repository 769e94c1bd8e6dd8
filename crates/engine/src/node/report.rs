//! What a node says about itself: answers to operators who look, and the numbers behind `/metrics` and `/readyz`.

use std::collections::BTreeMap;

use swarmmq_protocol::{
    id::{Address, GroupName},
    time::WallTime,
};

use super::Node;
use crate::shard::{
    Shard,
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
    pub(super) passed_on: u64,
    pub(super) connections: u64,
    pub(super) refused_connections: u64,
    pub(super) malformed: u64,
    pub(super) snapshots: u64,
    pub(super) moved: u64,
    pub(super) problems: Vec<String>,
    /// Not a count: the latest word on this node's certificate.
    pub(super) certificate: Option<String>,
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

    pub(super) fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
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
        let silent = self.leaders.iter().filter(|leader| leader.is_none()).count();
        let reason = match (&self.stopped, self.draining, silent) {
            (Some(why), _, _) => format!("the log stopped: {why}"),
            (None, true, _) => "draining".to_owned(),
            (None, false, 0) => String::new(),
            (None, false, silent) => format!("{silent} shards have no leader yet"),
        };
        let mut problems = self.counters.problems.clone();
        if self.is_below_reserve() {
            problems.push("the disk is below its reserve: publishes are refused".to_owned());
        }
        if self.is_slow() {
            problems.push("this node is slow: others lead in its place where they can".to_owned());
        }
        problems.extend(self.counters.certificate.clone());
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
                "swarmmq_messages_passed_on_total",
                "Messages of clients sent on to the node that leads their shard.",
                counters.passed_on,
            ),
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
        let mut refusals = Metric::new(
            MetricKind::Counter,
            "swarmmq_refusals_total",
            "Connections, requests and joins that were refused, by reason.",
        );
        let by_reason = self.audit.refusals.iter();
        refusals.samples =
            by_reason.map(|(code, count)| (vec![("reason", (*code).to_owned())], *count as f64)).collect();
        metrics.push(refusals);
        metrics.push(counter(
            "swarmmq_pauses_total",
            "Times that a principal was slowed down because of its quotas.",
            self.guests.pauses,
        ));
        metrics.extend(self.swarm_metrics());
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
            gauge("swarmmq_shards", "Shards of the cluster, its own included.", self.shards.len() as u64),
            gauge("swarmmq_shards_serving", "Shards that this node leads.", serving as u64),
            gauge("swarmmq_peers", "Nodes with a link to this one.", self.peers.links.len() as u64),
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
        let serving = || self.shards.iter().filter(|shard| shard.is_serving());
        let queues = || serving().flat_map(|shard| shard.state().queues.values());
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
        let groups = addresses.iter().flat_map(|(a, entry)| entry.groups.keys().map(move |group| (a, group)));
        let mut counted_max = COUNTED_MAX;
        for (address, group) in groups.take(GROUPS_LISTED_MAX) {
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
        for shard in self.shards.iter().filter(|shard| shard.is_serving()) {
            let Some(queue) = shard.state().queues.get(address) else { continue };
            if let Some(found) = queue.groups.get(group) {
                *counted_max = counted_max.checked_sub(cost(queue, found))?;
                figures.add(shard, queue, group);
            }
        }
        Some(figures)
    }
}

/// What a group has before it.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) lag: u64,
    pub(super) oldest: Option<WallTime>,
    pub(super) leased: u64,
    pub(super) dead_lettered: u64,
}

impl Figures {
    /// Adds those of one shard, where the group must be. Cost: [`cost`].
    pub(super) fn add(&mut self, shard: &Shard, queue: &Queue, name: &GroupName) {
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

pub(super) fn earlier(a: Option<WallTime>, b: Option<WallTime>) -> Option<WallTime> {
    [a, b].into_iter().flatten().min()
}

/// As [`MetricKind::Age`] has it.
fn stamp(since: Option<WallTime>) -> f64 {
    since.map_or(f64::INFINITY, |since| since.0 as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::Position,
        shard::{
            event::{Order, Settings},
            queue::Message,
        },
    };

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
