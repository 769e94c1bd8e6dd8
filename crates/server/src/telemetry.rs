//! What the node says, as log lines and as Prometheus text.

use std::{fmt::Write, time::Duration};

use swarmmq_engine::node::{MetricKind, Report};
use tracing_subscriber::EnvFilter;

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
#[derive(Debug, Default)]
pub(crate) struct Timings {
    syncs: [u64; BUCKETS.len() + 1],
    sync_seconds: f64,
    pub(crate) connections_shed: u64,
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

/// Prometheus text exposition.
pub(crate) fn exposition(report: &Report, timings: &Timings) -> String {
    let mut text = String::new();
    let mut last = "";
    for metric in &report.metrics {
        if metric.name != last {
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
            };
            push(
                &mut text,
                format_args!("# HELP {} {}\n# TYPE {} {kind}\n", metric.name, metric.help, metric.name),
            );
            last = metric.name;
        }
        match &metric.label {
            Some((name, value)) => {
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                push(&mut text, format_args!("{}{{{name}=\"{value}\"}} {}\n", metric.name, metric.value));
            }
            None => push(&mut text, format_args!("{} {}\n", metric.name, metric.value)),
        }
    }
    push(
        &mut text,
        format_args!(
            "# HELP swarmmq_connections_shed_total Connections closed because there were too many.\n\
             # TYPE swarmmq_connections_shed_total counter\nswarmmq_connections_shed_total {}\n\
             # HELP swarmmq_log_fsync_seconds Time to write and sync one batch.\n\
             # TYPE swarmmq_log_fsync_seconds histogram\n",
            timings.connections_shed
        ),
    );
    let mut total = 0;
    for (bucket, count) in timings.syncs.iter().enumerate() {
        total += count;
        match BUCKETS.get(bucket) {
            Some(bound) => {
                push(&mut text, format_args!("swarmmq_log_fsync_seconds_bucket{{le=\"{bound}\"}} {total}\n"))
            }
            None => {
                push(&mut text, format_args!("swarmmq_log_fsync_seconds_bucket{{le=\"+Inf\"}} {total}\n"))
            }
        }
    }
    push(
        &mut text,
        format_args!(
            "swarmmq_log_fsync_seconds_sum {}\nswarmmq_log_fsync_seconds_count {total}\n\
             # HELP swarmmq_build_info What runs.\n# TYPE swarmmq_build_info gauge\n\
             swarmmq_build_info{{version=\"{}\"}} 1\n",
            timings.sync_seconds,
            env!("CARGO_PKG_VERSION")
        ),
    );
    text
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarmmq_engine::node::Metric;

    fn metric(label: Option<&str>, value: f64) -> Metric {
        Metric {
            name: "swarmmq_things_total",
            help: "Things.",
            kind: MetricKind::Counter,
            label: label.map(|label| ("code", label.to_owned())),
            value,
        }
    }

    #[test]
    fn numbers_of_one_name_share_their_explanation_and_labels_are_escaped() {
        let metrics = vec![metric(Some("a"), 1.0), metric(Some("b\"\\\n"), 2.5)];
        let text = exposition(
            &Report { ready: true, reason: String::new(), problems: Vec::new(), metrics },
            &Timings::default(),
        );
        let expected = "# HELP swarmmq_things_total Things.\n# TYPE swarmmq_things_total counter\n\
                        swarmmq_things_total{code=\"a\"} 1\nswarmmq_things_total{code=\"b\\\"\\\\\\n\"} 2.5\n";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn the_sync_histogram_is_cumulative() {
        let mut timings = Timings::default();
        [50, 150, 150, 9_000_000].into_iter().for_each(|us| timings.synced(Duration::from_micros(us)));
        let report = Report { ready: true, reason: String::new(), problems: Vec::new(), metrics: Vec::new() };
        let text = exposition(&report, &timings);
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
