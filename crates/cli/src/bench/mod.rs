//! `bench e2e`: load through the whole cluster, with a latency histogram and a check for loss, duplicates and order.
//!
//! Producers run on one thread and consumers on another, each with a connection of its own. They share counters for the
//! progress line only; what was acknowledged and what was delivered is compared when everything has come to rest.
//! `bench routing` is the same load with several policies side by side; `bench connections` is another load test.

pub(crate) mod connections;
mod consume;
mod plan;
mod publish;
pub(crate) mod routing;
mod samples;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use swarmmq_client::{Error, Options};
use swarmmq_protocol::{admin::Order, id::Address, limits::PLAINTEXT_BYTES_MAX};
use tokio::sync::oneshot;

use self::{consume::Delivered, plan::Plan, publish::Published};
use crate::{
    address,
    discover::{CONNECT_TIME_MAX, Target},
    measure::{LatencyReport, millis, per_second},
    output::{Failure, Outcomes, note, print, say},
    parse, runtime, signals,
};

/// Producers or consumers, at most.
const WORKERS_MAX: u16 = 4096;
/// Pause between progress lines.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);

/// What to measure.
#[derive(Args, Clone, Debug)]
pub(crate) struct E2eArgs {
    /// How many producers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(WORKERS_MAX)))]
    producers: u16,
    /// How many consumers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(WORKERS_MAX)))]
    consumers: u16,
    /// Messages per second of all producers together; 0: as many as possible
    #[arg(long, default_value_t = 0.0, value_parser = rate)]
    rate: f64,
    /// Bytes of a message, at least 16
    #[arg(long, default_value = "1KiB", value_parser = parse::bytes)]
    size: u64,
    /// How long to publish
    #[arg(long, default_value = "10", value_parser = parse::duration)]
    duration: Duration,
    /// Messages whose fate is open, per producer
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight: u32,
    /// What to promise and to check: total, key (64 keys per producer) or none (no order is checked)
    #[arg(long, default_value = "total", value_parser = parse::order)]
    order: Order,
    /// Use this address instead of a fresh one
    #[arg(long)]
    address: Option<String>,
    /// Write a line per message to this file: when it was due (microseconds since 1970), microseconds from then until it
    /// was acknowledged and until it was delivered; `-` if it never was
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.0..=1e9).contains(rate));
    rate.ok_or_else(|| format!("{text:?} is no rate: messages per second, or 0"))
}

/// What both threads see at once: for the progress line, and to stop early.
#[derive(Debug, Default)]
struct Shared {
    acknowledged: AtomicU64,
    delivered: AtomicU64,
    stop: AtomicBool,
    interrupted: AtomicBool,
    ended: AtomicBool,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    published: u64,
    acknowledged: u64,
    delivered: u64,
    lost: u64,
    duplicated: u64,
    out_of_order: u64,
    undecryptable: u64,
    unknown: u64,
    failed: u64,
    seconds: f64,
    publish_per_s: f64,
    deliver_per_s: f64,
    latency_us: LatencyReport,
    ack_latency_us: LatencyReport,
    longest_publish_gap_ms: f64,
    longest_delivery_gap_ms: f64,
    client_cpu_us_per_message: f64,
}

impl Report {
    fn new(published: &Published, delivered: &Delivered, seconds: f64, cpu: Duration) -> Self {
        let acknowledged = published.acknowledged();
        let messages = acknowledged.max(1) as f64;
        Self {
            published: published.handed,
            acknowledged,
            delivered: delivered.count(),
            lost: published.missing_in(&delivered.seen),
            duplicated: delivered.duplicated,
            out_of_order: delivered.out_of_order,
            undecryptable: delivered.undecryptable,
            unknown: published.unknown(&delivered.seen),
            failed: published.failed,
            seconds: (seconds * 1000.0).round() / 1000.0,
            publish_per_s: per_second(acknowledged, published.last_ack_ns),
            deliver_per_s: per_second(delivered.count(), delivered.last_ns),
            latency_us: delivered.latency.report(),
            ack_latency_us: published.latency.report(),
            longest_publish_gap_ms: millis(published.longest_gap),
            longest_delivery_gap_ms: millis(delivered.longest_gap()),
            client_cpu_us_per_message: (cpu.as_secs_f64() * 1e8 / messages).round() / 100.0,
        }
    }

    fn show(&self, address: &str) {
        say(format!(
            "{address}: {} published, {} acknowledged, {} delivered in {:.1} s",
            self.published, self.acknowledged, self.delivered, self.seconds
        ));
        say(format!(
            "lost {}, duplicated {}, out of order {}, undecryptable {}, unknown {}, failed {}",
            self.lost, self.duplicated, self.out_of_order, self.undecryptable, self.unknown, self.failed
        ));
        say(format!("published {:.0}/s, delivered {:.0}/s", self.publish_per_s, self.deliver_per_s));
        for (name, latency) in [("delivery", &self.latency_us), ("ack", &self.ack_latency_us)] {
            say(format!(
                "{name} latency: mean {} us, p50 {} us, p99 {} us, p99.9 {} us, max {} us",
                latency.mean, latency.p50, latency.p99, latency.p99_9, latency.max
            ));
        }
        say(format!(
            "longest gap: publish {} ms, delivery {} ms; client cpu {} us per message",
            self.longest_publish_gap_ms, self.longest_delivery_gap_ms, self.client_cpu_us_per_message
        ));
    }

    fn exit_code(&self, interrupted: bool) -> u8 {
        if self.lost + self.duplicated + self.out_of_order + self.undecryptable > 0 {
            1
        } else if self.unknown > 0 {
            5
        } else if self.failed > 0 {
            1
        } else if interrupted {
            130
        } else {
            0
        }
    }
}

/// The command.
pub(crate) fn run(args: &E2eArgs, target: &Target, as_json: bool) -> Outcomes<u8> {
    let plan = Arc::new(plan_of(args)?);
    let Run { report, published, delivered, interrupted } = carry_out(&plan, target)?;
    if let Some(file) = &args.samples {
        samples::write(file, &plan, &published, &delivered).map_err(|error| {
            Failure::local(
                format!("{}: {error}", file.display()),
                "--samples names a file that can be written",
            )
        })?;
    }
    if as_json {
        print(&report);
    } else {
        report.show(plan.address.as_str());
        say("delivery latency:");
        delivered.latency.chart().into_iter().for_each(say);
    }
    Ok(report.exit_code(interrupted))
}

/// What a load came to.
struct Run {
    report: Report,
    published: Published,
    delivered: Delivered,
    interrupted: bool,
}

/// Publishes and consumes as planned.
fn carry_out(plan: &Arc<Plan>, target: &Target) -> Outcomes<Run> {
    let options = target.options(CONNECT_TIME_MAX)?;
    let shared = Arc::new(Shared::default());
    let (ready, joined) = std::sync::mpsc::channel();
    let (tell, told) = oneshot::channel();
    let consumers = {
        let (plan, shared, options) = (Arc::clone(plan), Arc::clone(&shared), options.clone());
        std::thread::Builder::new()
            .name("consumers".into())
            .spawn(move || runtime()?.block_on(consume::run(plan, options, shared, ready, told)))
            .map_err(|error| {
                Failure::local(format!("cannot start: {error}"), "check the limits of the process")
            })?
    };
    // If the consumers cannot join, their thread ends and its result says why.
    let published = match joined.recv() {
        Ok(()) => publish_all(plan, options, &shared, tell),
        Err(_) => Err(Error::Closed.into()),
    };
    let delivered = consumers.join().unwrap_or_else(|_| {
        Err(Failure::new(1, "bench", "the consumers' thread ended", "this is a fault of the load test"))
    });
    shared.ended.store(true, Ordering::Relaxed);
    // The consumers' failure comes first: it is the cause when both failed.
    let delivered = delivered.map_err(|failure| target.explain(failure))?;
    let (published, cpu_before) = published.map_err(|failure| target.explain(failure))?;
    if published.acknowledged() == 0
        && let Some(error) = published.first_error
    {
        return Err(error.into());
    }
    if delivered.strangers > 0 {
        note(format!("{} messages of somebody else were taken and acknowledged", delivered.strangers));
    }
    if let Some(error) = &published.first_error {
        note(format!("the first publish that did not succeed: {error}"));
    }
    let cpu = cpu_time().saturating_sub(cpu_before);
    let report = Report::new(&published, &delivered, plan.now() as f64 / 1e9, cpu);
    Ok(Run { report, published, delivered, interrupted: shared.interrupted.load(Ordering::Relaxed) })
}

fn plan_of(args: &E2eArgs) -> Outcomes<Plan> {
    let sizes = plan::HEADER_BYTES as u64..=PLAINTEXT_BYTES_MAX as u64;
    if !sizes.contains(&args.size) {
        return Err(Failure::usage(
            format!("--size {}: a message has {} to {} bytes", args.size, sizes.start(), sizes.end()),
            "the first bytes say which message it is",
        ));
    }
    let (address, fresh): (Address, bool) = match &args.address {
        Some(given) => (address::sendable(given)?, false),
        None => (fresh_address()?, true),
    };
    Ok(Plan {
        run: u16::from_be_bytes(random()),
        address,
        fresh,
        order: args.order,
        producers: args.producers,
        consumers: args.consumers,
        rate: args.rate,
        size: args.size as usize,
        duration: args.duration,
        in_flight: args.in_flight as usize,
        deadline: None,
        policies: Vec::new(),
        samples: args.samples.is_some(),
        started: std::sync::OnceLock::new(),
    })
}

/// An address that nobody else uses.
fn fresh_address() -> Outcomes<Address> {
    let name: String = random::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
    address::address(&format!("bench.{name}"))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// Runs the producers on this thread, then tells the consumers what they must have seen.
fn publish_all(
    plan: &Arc<Plan>,
    options: Options,
    shared: &Arc<Shared>,
    tell: oneshot::Sender<Vec<crate::measure::Bitmap>>,
) -> Outcomes<(Published, Duration)> {
    let cpu_before = cpu_time();
    plan.started.set(Instant::now()).expect("started once");
    let progress = Arc::clone(shared);
    std::thread::spawn(move || report_progress(&progress));
    let published = runtime()?.block_on(async {
        let watched = Arc::clone(shared);
        tokio::spawn(async move {
            if signals::wait().await.is_ok() {
                note("interrupted: waiting for what is under way");
                watched.interrupted.store(true, Ordering::Relaxed);
                watched.stop.store(true, Ordering::Relaxed);
            }
        });
        publish::run(Arc::clone(plan), options, Arc::clone(shared)).await
    })?;
    // If the consumers have failed, their own story is told.
    let _gone = tell.send(published.acknowledged_by_producer()).is_err();
    Ok((published, cpu_before))
}

fn report_progress(shared: &Shared) {
    let began = Instant::now();
    let mut last = (0, 0);
    loop {
        std::thread::sleep(PROGRESS_PAUSE);
        if shared.ended.load(Ordering::Relaxed) {
            return;
        }
        let now = (shared.acknowledged.load(Ordering::Relaxed), shared.delivered.load(Ordering::Relaxed));
        note(format!(
            "{:.0} s: {} acknowledged (+{}), {} delivered (+{})",
            began.elapsed().as_secs_f64(),
            now.0,
            now.0 - last.0,
            now.1,
            now.1 - last.1
        ));
        last = now;
    }
}

/// What this process has computed so far.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Latency;

    fn report() -> Report {
        let latency = Latency::new().report();
        Report {
            published: 3,
            acknowledged: 3,
            delivered: 3,
            lost: 0,
            duplicated: 0,
            out_of_order: 0,
            undecryptable: 0,
            unknown: 0,
            failed: 0,
            seconds: 1.0,
            publish_per_s: 3.0,
            deliver_per_s: 3.0,
            latency_us: latency,
            ack_latency_us: latency,
            longest_publish_gap_ms: 0.0,
            longest_delivery_gap_ms: 0.0,
            client_cpu_us_per_message: 0.0,
        }
    }

    #[test]
    fn a_report_has_the_promised_fields() {
        let value = serde_json::to_value(report()).unwrap();
        for field in [
            "published",
            "acknowledged",
            "delivered",
            "lost",
            "duplicated",
            "out_of_order",
            "undecryptable",
            "seconds",
            "publish_per_s",
            "deliver_per_s",
            "longest_publish_gap_ms",
            "longest_delivery_gap_ms",
            "client_cpu_us_per_message",
        ] {
            assert!(value[field].is_number(), "{field}");
        }
        for latency in ["latency_us", "ack_latency_us"] {
            for field in ["mean", "p50", "p99", "p99_9", "max"] {
                assert!(value[latency][field].is_number(), "{latency}.{field}");
            }
        }
    }

    #[test]
    fn the_verdict_is_in_the_exit_code() {
        assert_eq!(report().exit_code(false), 0);
        assert_eq!(Report { lost: 1, unknown: 1, ..report() }.exit_code(false), 1);
        assert_eq!(Report { duplicated: 1, ..report() }.exit_code(false), 1);
        assert_eq!(Report { undecryptable: 1, ..report() }.exit_code(false), 1);
        assert_eq!(Report { out_of_order: 1, ..report() }.exit_code(false), 1);
        assert_eq!(Report { unknown: 1, ..report() }.exit_code(true), 5);
        assert_eq!(report().exit_code(true), 130);
    }
}
