//! What the node says, as log lines and as Prometheus text.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use swarmmq_engine::node::{MetricKind, Report};
use swarmmq_protocol::time::WallTime;
use tracing_subscriber::EnvFilter;

use crate::{clock, tls::Numbers};

/// Upper bounds of the sync histogram, in seconds.
const BUCKETS: [f64; 10] = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0];

/// Log lines go to standard error: text, or JSON with `SWARMMQ_LOG_FORMAT=json`; `SWARMMQ_LOG` filters them.
pub(crate) fn init() {
    let wish = std::env::var("SWARMMQ_LOG").unwrap_or_else(|_| "info".to_owned());
    let (filter, misread) = match EnvFilter::try_new(&wish) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let json = std::env::var("SWARMMQ_LOG_FORMAT").is_ok_and(|format| format == "json");
    let result = if json { builder.json().try_init() } else { builder.try_init() };
    if let Err(error) = result {
        // A test or an embedding program was first; its lines go where it wants them.
        tracing::debug!(%error, "log output is already set up");
    }
    if let Some(error) = misread {
        tracing::warn!(%error, "SWARMMQ_LOG is no filter; using info");
    }
}

/// What only the shell can measure.
#[derive(Debug)]
pub(crate) struct Timings {
    started: WallTime,
    syncs: [u64; BUCKETS.len() + 1],
    sync_seconds: f64,
    pub(crate) connections_shed: u64,
    /// Datagrams to other nodes that could not be sent.
    pub(crate) datagrams_lost: u64,
    pub(crate) certificates: Numbers,
    /// How many keys of each kind count, and how often the changed file was taken and was not.
    pub(crate) keyring: ([(&'static str, usize); 3], (u64, u64)),
    /// Sessions that did not come about, by port and kind.
    pub(crate) tls_failures: BTreeMap<(&'static str, &'static str), u64>,
}

impl Default for Timings {
    /// Nothing measured yet; the node begins to serve.
    fn default() -> Self {
        Self {
            started: clock::wall(),
            syncs: [0; BUCKETS.len() + 1],
            sync_seconds: 0.0,
            connections_shed: 0,
            datagrams_lost: 0,
            certificates: Numbers::default(),
            keyring: ([("access_token", 1), ("admission_key", 1), ("peer_secret", 0)], (0, 0)),
            tls_failures: BTreeMap::new(),
        }
    }
}

impl Timings {
    /// One batch was written and synced.
    pub(crate) fn synced(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.syncs[bucket] += 1;
        self.sync_seconds += seconds;
    }
}

/// Prometheus text exposition, version 0.0.4. What has no number yet is explained all the same.
pub(crate) fn exposition(report: &Report, timings: &Timings, now: WallTime) -> String {
    let mut text = String::new();
    for metric in &report.metrics {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge | MetricKind::Age => "gauge",
        };
        explain(&mut text, metric.name, metric.help, kind);
        for (labels, value) in &metric.samples {
            let value = match metric.kind {
                MetricKind::Age => ((now.0 as f64 - value) / 1000.0).max(0.0),
                MetricKind::Counter | MetricKind::Gauge => *value,
            };
            number(&mut text, metric.name, labels.iter().map(|(name, value)| (*name, value.as_str())), value);
        }
    }
    let mut one = |name, help, kind, value| {
        explain(&mut text, name, help, kind);
        number(&mut text, name, [], value);
    };
    one(
        "swarmmq_connections_shed_total",
        "Connections closed because there were too many.",
        "counter",
        timings.connections_shed as f64,
    );
    one(
        "swarmmq_gossip_unsent_total",
        "Datagrams to other nodes that could not be sent.",
        "counter",
        timings.datagrams_lost as f64,
    );
    one(
        "swarmmq_start_time_seconds",
        "When this process began to serve, in seconds since 1970.",
        "gauge",
        timings.started.0 as f64 / 1000.0,
    );
    certificates(&mut text, timings);
    keyring(&mut text, timings);
    explain(&mut text, "swarmmq_log_fsync_seconds", "Time to write and sync one batch.", "histogram");
    let mut total = 0;
    for (bucket, count) in timings.syncs.iter().enumerate() {
        total += count;
        let bound = BUCKETS.get(bucket).map_or_else(|| "+Inf".to_owned(), f64::to_string);
        number(&mut text, "swarmmq_log_fsync_seconds_bucket", [("le", bound.as_str())], total as f64);
    }
    number(&mut text, "swarmmq_log_fsync_seconds_sum", [], timings.sync_seconds);
    number(&mut text, "swarmmq_log_fsync_seconds_count", [], total as f64);
    explain(&mut text, "swarmmq_build_info", "What runs.", "gauge");
    number(&mut text, "swarmmq_build_info", [("version", env!("CARGO_PKG_VERSION"))], 1.0);
    text
}

fn keyring(text: &mut String, timings: &Timings) {
    let (counts, (reloads, failures)) = timings.keyring;
    explain(
        text,
        "swarmmq_keyring_keys",
        "Keys of this kind that count: 2 while one replaces the other.",
        "gauge",
    );
    for (key, count) in counts {
        number(text, "swarmmq_keyring_keys", [("key", key)], count as f64);
    }
    explain(
        text,
        "swarmmq_keyring_reloads_total",
        "Times that a changed keyring was read, by result.",
        "counter",
    );
    for (result, count) in [("ok", reloads), ("failed", failures)] {
        number(text, "swarmmq_keyring_reloads_total", [("result", result)], count as f64);
    }
}

fn certificates(text: &mut String, timings: &Timings) {
    let Numbers { not_after, reloads, failures } = timings.certificates;
    explain(
        text,
        "swarmmq_tls_certificate_expires_at_seconds",
        "Until when this node's certificate is valid, in seconds since 1970. Without TLS there is none.",
        "gauge",
    );
    if let Some(at) = not_after {
        number(text, "swarmmq_tls_certificate_expires_at_seconds", [], at as f64);
    }
    explain(
        text,
        "swarmmq_tls_reloads_total",
        "Times that changed certificate files were read, by result.",
        "counter",
    );
    for (result, count) in [("ok", reloads), ("failed", failures)] {
        number(text, "swarmmq_tls_reloads_total", [("result", result)], count as f64);
    }
    explain(
        text,
        "swarmmq_tls_failures_total",
        "TLS sessions that did not come about, by port and reason.",
        "counter",
    );
    for ((port, reason), count) in &timings.tls_failures {
        let labels = [("port", *port), ("reason", *reason)];
        number(text, "swarmmq_tls_failures_total", labels, *count as f64);
    }
}

fn explain(text: &mut String, name: &str, help: &str, kind: &str) {
    push(text, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
}

fn number<'a>(
    text: &mut String,
    name: &str,
    labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    value: f64,
) {
    text.push_str(name);
    let mut open = '{';
    for (label, content) in labels {
        let content = content.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        push(text, format_args!("{open}{label}=\"{content}\""));
        open = ',';
    }
    push(text, format_args!("{} {value}\n", if open == ',' { "}" } else { "" }));
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarmmq_engine::node::Metric;

    const NOW: WallTime = WallTime(10_000);

    fn report(metrics: Vec<Metric>) -> Report {
        Report { ready: true, reason: String::new(), problems: Vec::new(), metrics }
    }

    fn metric(kind: MetricKind, samples: &[(&[&'static str], f64)]) -> Metric {
        let labelled = |values: &[&str]| {
            ["a", "b"].into_iter().zip(values.iter().map(|value| (*value).to_owned())).collect()
        };
        let mut metric = Metric::new(kind, "swarmmq_things", "Things.");
        metric.samples = samples.iter().map(|(labels, value)| (labelled(labels), *value)).collect();
        metric
    }

    fn shown(metric: Metric) -> String {
        let text = exposition(&report(vec![metric]), &Timings::default(), NOW);
        text.split_once("# HELP swarmmq_connections_shed_total").unwrap().0.to_owned()
    }

    #[test]
    fn numbers_of_one_name_share_their_explanation_and_labels_are_escaped() {
        let metric = metric(MetricKind::Counter, &[(&[], 1e12), (&["x"], 1.0), (&["b\"\\\n", "y"], 2.5)]);
        assert_eq!(
            shown(metric),
            "# HELP swarmmq_things Things.\n# TYPE swarmmq_things counter\n\
             swarmmq_things 1000000000000\nswarmmq_things{a=\"x\"} 1\n\
             swarmmq_things{a=\"b\\\"\\\\\\n\",b=\"y\"} 2.5\n"
        );
    }

    #[test]
    fn what_has_no_number_yet_is_explained_all_the_same() {
        let expected = "# HELP swarmmq_things Things.\n# TYPE swarmmq_things gauge\n";
        assert_eq!(shown(metric(MetricKind::Gauge, &[])), expected);
    }

    #[test]
    fn an_age_counts_from_its_stamp_and_is_never_negative() {
        let ages = [(&["x"][..], 8500.0), (&["ahead"], 11_000.0), (&["nothing"], f64::INFINITY)];
        let text = shown(metric(MetricKind::Age, &ages));
        for line in [
            "# TYPE swarmmq_things gauge",
            "swarmmq_things{a=\"x\"} 1.5",
            "swarmmq_things{a=\"ahead\"} 0",
            "swarmmq_things{a=\"nothing\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn the_sync_histogram_is_cumulative() {
        let mut timings = Timings::default();
        [50, 150, 150, 9_000_000].into_iter().for_each(|us| timings.synced(Duration::from_micros(us)));
        let text = exposition(&report(Vec::new()), &timings, NOW);
        for line in [
            "bucket{le=\"0.0001\"} 1",
            "bucket{le=\"0.0002\"} 3",
            "bucket{le=\"1\"} 3",
            "bucket{le=\"+Inf\"} 4",
            "count 4",
        ] {
            assert!(text.contains(&format!("swarmmq_log_fsync_seconds_{line}\n")), "{line} is not in {text}");
        }
    }
}
