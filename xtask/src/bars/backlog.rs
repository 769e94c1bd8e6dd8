//! Many messages on the disk: how much memory they take, and how long a node with them takes to start.

use super::{
    Setting,
    cluster::Cluster,
    process,
    verdict::{Bar, Figure, Verdict},
};

const MESSAGE_BYTES: usize = 1024;
const MANY: u64 = 1_000_000;
/// Live messages sent before those that are settled, and again after them: both ends of the log are needed.
const LIVE_EACH: u64 = 50_000;

/// Memory with a million messages that nobody has taken.
pub(super) fn memory(setting: &Setting) -> Result<Vec<Verdict>, String> {
    let cluster = Cluster::up(setting, "memory")?;
    cluster.feed(&["send", "bars.backlog", "-"], MANY, MESSAGE_BYTES)?;
    holds(&cluster, "bars.backlog", MANY)?;
    let filled = process::memory(cluster.pid()?)?;
    cluster.restart()?;
    holds(&cluster, "bars.backlog", MANY)?;
    let started = process::memory(cluster.pid()?)?;
    let mb = |bytes: u64| vec![bytes as f64 / 1e6];
    let bar = Bar::NeverAbove(300.0);
    let figures = vec![
        Figure::new("resident with the backlog", "MB", mb(filled.resident), bar),
        Figure::new("most ever while it came", "MB", mb(filled.peak), bar),
        Figure::new("resident after a restart", "MB", mb(started.resident), bar),
        Figure::new("most ever while starting", "MB", mb(started.peak), bar),
    ];
    Ok(vec![Verdict::new("memory", "a backlog of 1,000,000 messages of 1 KiB", figures)])
}

/// Restart with a million settled messages between two heaps of live ones.
pub(super) fn restart(setting: &Setting) -> Result<Vec<Verdict>, String> {
    let repetitions = if setting.quick { 2 } else { 5 };
    let cluster = Cluster::up(setting, "restart")?;
    cluster.feed(&["send", "bars.live", "-"], LIVE_EACH, MESSAGE_BYTES)?;
    cluster.feed(&["send", "bars.settled", "-"], MANY, MESSAGE_BYTES)?;
    let count = MANY.to_string();
    let mut taking = cluster.command(&["recv", "bars.settled", "-n", &count]);
    let taken = taking.stdout(std::process::Stdio::null()).status().map_err(|error| error.to_string())?;
    if !taken.success() {
        return Err(format!("taking the messages: {taken}"));
    }
    cluster.feed(&["send", "bars.live", "-"], LIVE_EACH, MESSAGE_BYTES)?;
    let (mut seconds, mut peaks) = (Vec::new(), Vec::new());
    for _ in 0..repetitions {
        seconds.push(cluster.restart()?);
        peaks.push(process::memory(cluster.pid()?)?.peak as f64 / 1e6);
        holds(&cluster, "bars.live", 2 * LIVE_EACH)?;
        holds(&cluster, "bars.settled", 0)?;
    }
    let figures = vec![
        Figure::new("kill -9 to serving", "s", seconds, Bar::NeverAbove(3.0)),
        Figure::new("most memory while starting", "MB", peaks, Bar::None),
    ];
    let what =
        format!("restart with 1,000,000 settled and 100,000 live messages of 1 KiB, {repetitions} times");
    Ok(vec![Verdict::new("restart", what, figures)])
}

/// A figure about a node that has forgotten its messages would mean nothing.
fn holds(cluster: &Cluster, address: &str, expected: u64) -> Result<(), String> {
    let info = cluster.json(&["address", "info", address])?;
    let mut messages = 0.0;
    for shard in 0.. {
        if info.at(&format!("shards.{shard}")).is_none() {
            break;
        }
        messages += info.number(&format!("shards.{shard}.messages"))?;
    }
    if messages == expected as f64 {
        Ok(())
    } else {
        Err(format!("{address} holds {messages} messages, not {expected}"))
    }
}
