//! What every story of real faults has in common: load all the time, a count of what was done to the nodes, one line of
//! figures at the end. `cargo x chaos` adds the lines up.
#![allow(dead_code, reason = "every test file uses another part of this")]

use std::{
    fmt::Arguments,
    io::Write,
    time::{Duration, Instant},
};

use rustix::event::{Timespec, poll};
use serde_json::Value;

use crate::swarm::{Load, Swarm};

/// What `cargo x chaos` says with it.
const VARIABLE: &str = "SWARMMQ_CHAOS";

/// Whether every story is told by itself, as `cargo x chaos` wants it. Otherwise only a selection is.
pub fn is_told() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Whether the stories are told at length, by hand.
pub fn is_long() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|word| word == "long")
}

/// Messages per second of a load. Programs for debugging are slow, and machines that run tests have more to do.
pub fn rate() -> &'static str {
    if cfg!(debug_assertions) { "200" } else { "1000" }
}

/// Past the test harness, which shows nothing of a test that passes.
pub fn tell(line: Arguments<'_>) {
    let mut errors = std::io::stderr();
    writeln!(errors, "{line}").unwrap();
}

/// How long a fault lasts is a part of the story. Nothing else may wait like this: it waits for conditions.
pub fn lasts(time: Duration) {
    let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    assert_eq!(poll(&mut [], Some(&time)).unwrap(), 0);
}

/// A story that cannot be told here.
pub fn skip(name: &str, needs: &str, why: &str) {
    tell(format_args!("SKIPPED {name}: it needs {needs}: {why}"));
}

/// One story under way.
pub struct Story {
    name: String,
    began: Instant,
    faults: u64,
    messages: u64,
    /// One in a line, so that order over all counts; one by key, so that every shard has work.
    loads: Vec<Load>,
}

impl Story {
    /// Begins, with load by way of these nodes.
    pub fn begin(name: &str, swarm: &Swarm, servers: &[usize]) -> Self {
        let words = |order: &'static str| {
            ["--order", order, "--producers", "2", "--consumers", "2", "--rate", rate(), "--duration", "3600"]
        };
        let loads = ["total", "key"].map(|order| Load::start(swarm, servers, &words(order)));
        Self { loads: loads.into(), ..Self::without_load(name) }
    }

    /// Begins; the story brings its own load.
    pub fn without_load(name: &str) -> Self {
        let loads = Vec::new();
        Self { name: name.to_owned(), began: Instant::now(), faults: 0, messages: 0, loads }
    }

    /// Something was done to a node.
    pub fn fault(&mut self) {
        self.faults += 1;
    }

    /// Messages of a load of its own.
    pub fn count(&mut self, report: &Value) {
        self.messages += report["delivered"].as_u64().unwrap();
    }

    /// Waits until more messages have passed, in every load.
    pub fn flows(&mut self) {
        self.loads.iter_mut().for_each(Load::flows);
    }

    /// The cluster heals, everything flows, and everything that was acknowledged has been delivered, once, in order.
    /// Returns the longest gaps of publishing and delivering.
    pub fn end(mut self, swarm: &mut Swarm) -> (Duration, Duration) {
        swarm.heals();
        self.flows();
        let memory = swarm.nodes.iter().map(|node| node.memory()).max().unwrap_or_default();
        let mut gaps = [Duration::ZERO; 2];
        for load in std::mem::take(&mut self.loads) {
            let report = load.finish();
            self.count(&report);
            for (gap, field) in gaps.iter_mut().zip(["longest_publish_gap_ms", "longest_delivery_gap_ms"]) {
                *gap = (*gap).max(Duration::from_secs_f64(report[field].as_f64().unwrap() / 1000.0));
            }
        }
        swarm.heals();
        self.summary(format_args!(
            "longest gaps: publish {} ms, delivery {} ms; largest node {memory} MiB",
            gaps[0].as_millis(),
            gaps[1].as_millis()
        ));
        (gaps[0], gaps[1])
    }

    /// The line that is added up.
    pub fn summary(&self, figures: Arguments<'_>) {
        tell(format_args!(
            "chaos: {}: {} messages, {} faults, {} s; {figures}",
            self.name,
            self.messages,
            self.faults,
            self.began.elapsed().as_secs()
        ));
    }
}

/// Half of them and 99 of 100 are at most so long; and the longest.
pub fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |per_cent: usize| times[(times.len() * per_cent).div_ceil(100).max(1) - 1].as_millis();
    format!("p50 {} ms, p99 {} ms, longest {} ms of {}", at(50), at(99), at(100), times.len())
}
