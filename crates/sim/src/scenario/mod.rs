//! Stories worth telling again: each is a plan drawn from a seed and then bent to one story, named after what happened.
//!
//! Seeds find a bug once, with the workload of that day; a story keeps the circumstances that made it likely.

use swarmmq_engine::node::bug::{Bug, Bugs};

use crate::{
    clock::SECOND,
    plan::{CHAOS_TIME_MAX, Fault, Plan, ROLE_INGRESS, ROLE_ROUTER, ROLE_STORE},
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
    Scenario { name: "leaders killed while publishes are in flight", plan: leaders_killed },
    Scenario { name: "a leader in a minority, with clients on both sides", plan: leaders_cut_off },
    Scenario { name: "power cuts of all nodes at once", plan: power_cuts },
    Scenario { name: "a node that loses its disk and comes back", plan: wiped_disks },
    Scenario { name: "a leader that is stopped, deposed and goes on", plan: leaders_stopped },
    Scenario { name: "one way between a leader and a follower is a black hole", plan: black_holes },
    Scenario { name: "a node joins under load, and another is lost for good", plan: one_comes_and_one_goes },
    Scenario { name: "a node is emptied and another removed, under load", plan: emptied_and_removed },
    Scenario { name: "two nodes take connections and three hold the shards", plan: doors_and_stores },
    Scenario { name: "a node that answers in two seconds for half a minute", plan: one_slow },
    Scenario { name: "a node that is a little slow for half a minute", plan: one_a_little_slow },
];

/// A plan for one node with only these faults, each at its own pace.
fn only(seed: u64, faults: &[(Fault, u64)]) -> Plan {
    among(1, seed, faults)
}

/// A plan for several nodes with only these faults, each at its own pace.
fn among(hosts: usize, seed: u64, faults: &[(Fault, u64)]) -> Plan {
    let mut plan = Plan::new(seed, Bugs::NONE).with_hosts(hosts);
    plan.loses_one = false;
    plan.settles_first = true;
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

fn leaders_killed() -> Plan {
    let mut plan = among(5, 201, &[(Fault::CrashLeader, 3 * SECOND)]);
    plan.quiet.clear();
    plan
}

fn leaders_cut_off() -> Plan {
    among(5, 202, &[(Fault::PartitionLeader, 8 * SECOND)])
}

fn power_cuts() -> Plan {
    let mut plan = among(5, 203, &[(Fault::PowerCut, 7 * SECOND)]);
    plan.torn_writes = true;
    plan.quiet.clear();
    plan
}

fn wiped_disks() -> Plan {
    among(5, 204, &[(Fault::Wipe, 6 * SECOND), (Fault::Crash, 11 * SECOND)])
}

fn leaders_stopped() -> Plan {
    among(3, 205, &[(Fault::PauseLeader, 5 * SECOND)])
}

fn black_holes() -> Plan {
    among(3, 206, &[(Fault::BlackHole, 6 * SECOND)])
}

fn one_comes_and_one_goes() -> Plan {
    let mut plan = among(6, 207, &[(Fault::Crash, 9 * SECOND), (Fault::LinkCut, 5 * SECOND)]);
    plan.hosts[5].comes_at = 5 * SECOND;
    plan.loses_one = true;
    plan
}

fn emptied_and_removed() -> Plan {
    among(5, 209, &[(Fault::Drain, 9 * SECOND), (Fault::Remove, 20 * SECOND), (Fault::LinkCut, 7 * SECOND)])
}

fn doors_and_stores() -> Plan {
    let mut plan = among(5, 208, &[(Fault::Crash, 6 * SECOND), (Fault::Cut, 4 * SECOND)]);
    for (index, host) in plan.hosts.iter_mut().enumerate() {
        host.roles = if index < 3 { ROLE_ROUTER | ROLE_STORE } else { ROLE_INGRESS };
    }
    plan
}

fn one_slow() -> Plan {
    slow(210, 2 * SECOND)
}

fn one_a_little_slow() -> Plan {
    slow(211, SECOND / 5)
}

/// The node that leads most is slow from the tenth second on, and nothing else happens.
fn slow(seed: u64, by: u64) -> Plan {
    let mut plan = among(5, seed, &[]);
    plan.shards = 16;
    plan.slowness = Some((by, 30 * SECOND));
    plan.faults = vec![(10 * SECOND, Fault::SlowNode)];
    plan.quiet.clear();
    plan
}

/// What a planted bug needs to show itself, where the usual mix rarely has it.
pub fn hunting(bug: Bug, seed: u64) -> Plan {
    let mut plan = match bug {
        // Two who want to lead and do not hear each other, and between them a voter that restarts and restarts. One seed in a
        // hundred has it that the second asks before the voter hears the first again.
        Bug::ForgetVoteOnRestart => among(
            3,
            seed,
            &[(Fault::LinkCut, SECOND), (Fault::CrashLeader, SECOND), (Fault::Crash, SECOND / 3)],
        ),
        // A leader lost between the copy that it takes and the answer, and a disk too full for the next copy; where
        // producers talk to it themselves nobody is left in between to be unsure.
        Bug::FailWhenUnsure => {
            let mut plan = among(
                5,
                seed,
                &[
                    (Fault::PartitionLeader, 4 * SECOND),
                    (Fault::CrashLeader, 3 * SECOND / 2),
                    (Fault::FullDisk, SECOND / 2),
                ],
            );
            plan.direct = 0;
            plan
        }
        _ => Plan::new(seed, Bugs::NONE),
    };
    plan.bugs = Bugs::only(bug);
    plan
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
