//! One run from seed to verdict, and the hunt for planted bugs.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use swarmmq_engine::node::bug::Bug;

use crate::{
    clock::{MILLISECOND, SECOND},
    history::{Fate, Violation},
    judge,
    plan::{Fault, Plan},
    scenario,
    swarm::{Swarm, mask::Mask},
};

/// Seeds after which a planted bug counts as not found.
pub const HUNT_SEEDS_MAX: u64 = 600;

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which run.
    pub seed: u64,
    /// Broken promises; none in a good run.
    pub violations: Vec<Violation>,
    /// Messages that clients tried to publish.
    pub sent: u64,
    /// Of these, told to be stored.
    pub stored: u64,
    /// Deliveries to applications.
    pub given: u64,
    /// Faults that happened, by kind.
    pub faults: BTreeMap<Fault, u64>,
    /// Starts of nodes.
    pub boots: u64,
    /// Starts that found a torn batch.
    pub torn: u64,
    /// Starts that refused a damaged log.
    pub refused_logs: u64,
    /// Rebuilt nodes that were compared with the living one.
    pub replays: u64,
    /// How close each judge of routes came to its bound: nanoseconds in which something was wrong; of changes, how many.
    pub margins: BTreeMap<&'static str, u64>,
    /// Virtual seconds.
    pub seconds: f64,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// Steps of the run.
    pub steps: u64,
    /// The last of them in words, or all of them where that was asked for.
    pub lines: Vec<String>,
}

/// Runs `plan` to its end and judges it.
pub fn run(plan: Plan, trace_everything: bool) -> Outcome {
    let seed = plan.seed;
    let mut swarm = Swarm::new(plan, trace_everything);
    // A broken invariant of the code under test is a verdict too, not the end of the simulator.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| swarm.run())) {
        swarm.history.violation("assertion", words_of(&*panic));
    }
    let history = &swarm.history;
    let stored = history.sent.values().filter(|sent| matches!(sent.fate, Fate::Stored(_))).count();
    Outcome {
        seed,
        violations: judge::verdict(&swarm.plan, history),
        sent: history.sent.len() as u64,
        stored: stored as u64,
        given: history.given.len() as u64,
        boots: history.boots,
        faults: swarm.faults.clone(),
        torn: swarm.torn,
        refused_logs: swarm.refused_logs,
        replays: swarm.replays,
        margins: swarm.margins().clone(),
        seconds: swarm.at as f64 / SECOND as f64,
        trace_hash: swarm.trace.hash(),
        steps: swarm.trace.steps(),
        lines: swarm.trace.lines(),
    }
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}

/// Sets of links that five nodes can have.
pub const MASKS: u64 = 1 << 10;

/// How a cluster did with one set of links.
#[derive(Clone, Debug)]
pub struct MaskOutcome {
    /// Which.
    pub mask: u64,
    /// Who was not served and should have been, or the other way round.
    pub violations: Vec<Violation>,
    /// Messages that clients tried to publish.
    pub sent: u64,
    /// How long those who had to be served waited after the cut, in milliseconds, one for each client and shard.
    pub waits_ms: Vec<u64>,
    /// All nodes are still connected, by whatever ways.
    pub is_whole: bool,
    /// Shards that changed their leader.
    pub reigns: usize,
}

/// Cuts all links but those of `mask` out of a healthy cluster of five: bit 0 is the link 1-2, then 1-3, up to 4-5.
///
/// * `settled`: leaders get time to go where they belong first, so that changes of leaders mean something.
pub fn run_mask(mask: u64, settled: bool) -> MaskOutcome {
    let pairs = (0..5).flat_map(|a| (a + 1..5).map(move |b| (a, b)));
    let cut = pairs.enumerate().filter(|(bit, _)| mask & 1 << bit == 0).map(|(_, pair)| pair).collect();
    let mut swarm = Swarm::new(Plan::calm(mask + 1), false);
    swarm.mask = Some(Mask::new(cut, settled));
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| swarm.run())) {
        swarm.history.violation("assertion", words_of(&*panic));
    }
    let history = &swarm.history;
    let mask_seen = swarm.mask.as_ref().expect("set above");
    MaskOutcome {
        mask,
        violations: history.violations.clone(),
        sent: history.sent.len() as u64,
        waits_ms: mask_seen.served_after.values().map(|after| after / MILLISECOND).collect(),
        is_whole: mask_seen.sides(5).iter().all(|side| *side == 0),
        reigns: mask_seen.reigns,
    }
}

/// Runs seeds with `bug` planted until a judge objects. `None`: no judge did.
pub fn hunt(bug: Bug, first_seed: u64) -> Option<Outcome> {
    (first_seed..first_seed + HUNT_SEEDS_MAX)
        .map(|seed| run(scenario::hunting(bug, seed), false))
        .find(|outcome| !outcome.violations.is_empty())
}

#[cfg(test)]
mod tests {
    use swarmmq_engine::node::bug::Bugs;

    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_trace_byte_for_byte() {
        let traced = || run(Plan::new(3, Bugs::NONE), true);
        let (first, second) = (traced(), traced());
        assert_eq!(first.violations, []);
        assert_eq!(first.lines, second.lines);
        assert_eq!(first.trace_hash, second.trace_hash);
        assert_ne!(first.trace_hash, run(Plan::new(4, Bugs::NONE), false).trace_hash);
    }

    #[test]
    fn a_run_is_long_and_busy_enough_to_mean_something() {
        let outcome = run(Plan::new(5, Bugs::NONE), false);
        assert_eq!(outcome.violations, []);
        assert!(outcome.seconds >= 60.0 && outcome.sent >= 1000, "{outcome:?}");
        assert!(outcome.given > 2 * outcome.stored, "two groups get everything: {outcome:?}");
    }

    #[test]
    fn a_planted_bug_is_found() {
        let outcome = hunt(Bug::ForgetDedupOnRestart, 1).expect("a judge objects");
        assert!(!outcome.violations.is_empty());
    }
}
