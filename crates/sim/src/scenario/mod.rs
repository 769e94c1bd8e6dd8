//! Stories worth telling again: each is a plan drawn from a seed and then bent to one story, named after what happened.
//!
//! Seeds find a bug once, with the workload of that day; a story keeps the circumstances that made it likely.

use swarmmq_engine::node::bug::Bugs;

use crate::{
    clock::SECOND,
    plan::{CHAOS_TIME_MAX, Fault, Plan},
};

/// One story.
pub struct Scenario {
    /// What happened.
    pub name: &'static str,
    /// The plan that makes it happen.
    pub plan: fn() -> Plan,
}

/// Every story, in the order of their discovery.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "a backlog read from disk while the log grows behind it",
        plan: backlog_behind_a_small_cache,
    },
    Scenario { name: "a crash at every other write", plan: crashes_during_writes },
    Scenario {
        name: "a disk that is full again and again while messages expire",
        plan: skips_on_a_full_disk,
    },
    Scenario {
        name: "a log that is recycled under dead letters, with restarts",
        plan: recycled_under_dead_letters,
    },
    Scenario { name: "connections that break before anything is settled", plan: cuts_before_settlements },
    Scenario { name: "syncs that fail, and what was half written then", plan: failed_syncs },
    Scenario { name: "rot found at every restart", plan: rot_at_every_restart },
];

/// A plan for one node with only these faults, each at its own pace.
fn only(seed: u64, faults: &[(Fault, u64)]) -> Plan {
    among(1, seed, faults)
}

/// A plan for several nodes with only these faults, each at its own pace.
fn among(hosts: usize, seed: u64, faults: &[(Fault, u64)]) -> Plan {
    let mut plan = Plan::new(seed, Bugs::NONE).with_hosts(hosts);
    plan.faults = faults
        .iter()
        .flat_map(|(fault, pause)| (1..CHAOS_TIME_MAX / pause).map(move |n| (n * pause, *fault)))
        .collect();
    plan.faults.sort_unstable();
    plan
}

fn backlog_behind_a_small_cache() -> Plan {
    let mut plan = only(101, &[(Fault::ConsumerCrash, 4 * SECOND), (Fault::CutAll, 9 * SECOND)]);
    plan.cache_bytes = 4 << 10;
    plan.segment_bytes = 1 << 20;
    plan
}

fn crashes_during_writes() -> Plan {
    let mut plan = only(102, &[(Fault::Crash, 2 * SECOND)]);
    plan.torn_writes = true;
    plan.quiet.clear();
    plan
}

fn skips_on_a_full_disk() -> Plan {
    only(103, &[(Fault::FullDisk, 2 * SECOND), (Fault::Crash, 5 * SECOND), (Fault::Cut, SECOND)])
}

fn recycled_under_dead_letters() -> Plan {
    let mut plan = only(104, &[(Fault::Crash, 5 * SECOND), (Fault::GracefulRestart, 12 * SECOND)]);
    plan.segment_bytes = 128 << 10;
    plan.shards = 4;
    for address in &mut plan.addresses {
        address.settings.attempts_max = Some(1);
    }
    plan
}

fn cuts_before_settlements() -> Plan {
    only(105, &[(Fault::Cut, SECOND / 2), (Fault::CutAll, 5 * SECOND)])
}

fn failed_syncs() -> Plan {
    only(106, &[(Fault::SyncError, 5 * SECOND), (Fault::SlowDisk, 7 * SECOND)])
}

fn rot_at_every_restart() -> Plan {
    only(107, &[(Fault::BitFlip, 4 * SECOND), (Fault::ReadFlip, 9 * SECOND)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::run;

    #[test]
    fn every_story_ends_well_and_is_what_it_says() {
        for scenario in ALL {
            let plan = (scenario.plan)();
            let kinds: Vec<Fault> = plan.faults.iter().map(|(_, fault)| *fault).collect();
            let outcome = run(plan, false);
            assert_eq!(outcome.violations, [], "{}", scenario.name);
            for fault in kinds {
                assert!(outcome.faults.contains_key(&fault), "{}: no {}", scenario.name, fault.text());
            }
        }
    }
}
