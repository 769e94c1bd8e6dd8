//! The node is killed again and again under load: nothing acknowledged is lost, doubled or out of order.

use std::process::Command;

use super::{
    Setting,
    cluster::{Cluster, Load},
    verdict::{Bar, Figure, Verdict},
};

/// More than a kill and what is waited for after it ever take; the load is told to stop when all kills are done.
const SECONDS_PER_KILL: usize = 20;

/// Kills, and judges what the load test says.
pub(super) fn run(setting: &Setting) -> Result<Vec<Verdict>, String> {
    let kills = if setting.quick { 5 } else { 50 };
    let cluster = Cluster::up(setting, "crashes")?;
    let duration = (kills * SECONDS_PER_KILL).to_string();
    let mut load = Load::start(cluster.command(&[
        "bench",
        "e2e",
        "--json",
        "--rate",
        "2000",
        "--size",
        "1KiB",
        "--producers",
        "2",
        "--consumers",
        "2",
        "--duration",
        &duration,
    ]))?;
    let mut restarts = Vec::new();
    for number in 1..=kills {
        load.wait_for(moves)?;
        restarts.push(cluster.restart()? * 1000.0);
        if number % 10 == 0 {
            eprintln!("  {number} of {kills} kills");
        }
        // What it said while the node was down is old.
        load.skip();
    }
    load.wait_for(moves)?;
    interrupt(load.pid())?;
    let (code, report) = load.finish()?;
    let count = |field: &str| report.number(field).map(|value| vec![value]);
    let none =
        |what: &str, field: &str| Ok::<_, String>(Figure::new(what, "", count(field)?, Bar::NeverAbove(0.0)));
    let told =
        |what: &str, unit, field: &str| Ok::<_, String>(Figure::new(what, unit, count(field)?, Bar::None));
    let figures = vec![
        none("lost", "lost")?,
        none("duplicated", "duplicated")?,
        none("out of order", "out_of_order")?,
        none("unknown in the end", "unknown")?,
        none("refused", "failed")?,
        told("acknowledged", "", "acknowledged")?,
        told("delivered", "", "delivered")?,
        Figure::new("kill to serving", "ms", restarts, Bar::None),
        told("longest publish gap", "ms", "longest_publish_gap_ms")?,
        told("longest delivery gap", "ms", "longest_delivery_gap_ms")?,
    ];
    let mut verdict = Verdict::new(
        "crashes",
        format!("kill -9 of the node under 2,000 msg/s and restart, {kills} times"),
        figures,
    );
    // 130: interrupted by us, and a good verdict.
    verdict.error = (code != Some(130)).then(|| format!("the load ended with exit code {code:?}"));
    Ok(vec![verdict])
}

/// Asks for an early end, after which everything is judged as usual.
fn interrupt(pid: u32) -> Result<(), String> {
    let status =
        Command::new("sh").args(["-c", "kill -s INT \"$1\"", "interrupt", &pid.to_string()]).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("cannot interrupt the load: {other:?}")),
    }
}

/// Whether a progress line says that messages were both acknowledged and delivered in the last second.
fn moves(line: &str) -> bool {
    let counts: Vec<u64> =
        line.split("(+").skip(1).filter_map(|rest| rest.split(')').next()?.parse().ok()).collect();
    matches!(counts[..], [acknowledged, delivered] if acknowledged > 0 && delivered > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_moves_when_both_ends_do() {
        assert!(moves("3 s: 6000 acknowledged (+2000), 5999 delivered (+1999)"));
        assert!(!moves("3 s: 6000 acknowledged (+2000), 5999 delivered (+0)"));
        assert!(!moves("3 s: 6000 acknowledged (+0), 5999 delivered (+5)"));
        assert!(!moves("warning: something (+1)"));
    }
}
