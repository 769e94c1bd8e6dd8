//! As many messages as go through: how many are acknowledged, beside what the disk can do, and what each costs the node.

use super::{
    Setting,
    cluster::Cluster,
    disk,
    process::{Cpu, Look},
    verdict::{Bar, Figure, Verdict, median},
};

/// Bytes of a message's body.
const MESSAGE_BYTES: f64 = 1024.0;
/// Enough on a disk that is fast enough.
const RATE_MIN: f64 = 150_000.0;
/// Enough on any other.
const DISK_SHARE_MIN: f64 = 0.6;
const CPU_US_MAX: f64 = 6.0;

/// Loads and disk writes in turn, so that both meet the same disk.
pub(super) fn run(setting: &Setting) -> Result<Vec<Verdict>, String> {
    let (repetitions, seconds) = if setting.quick { (2, "4") } else { (5, "8") };
    let cluster = Cluster::up(setting, "saturation")?;
    let pid = cluster.pid()?;
    let (mut disk, mut rates, mut delivered, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // The kernel's part is mostly the copy into the page cache, whose price depends on the machine more than on us.
    let (mut user, mut system) = (Vec::new(), Vec::new());
    let (mut client_cpu, mut others) = (Vec::new(), Vec::new());
    for number in 1..=repetitions {
        disk.push(disk::sequential_write(cluster.directory())?);
        let (look, before) = (Look::now()?, Cpu::of(pid)?);
        let report = cluster.json(&[
            "bench",
            "e2e",
            "--rate",
            "0",
            "--in-flight",
            "4096",
            "--size",
            "1KiB",
            "--producers",
            "1",
            "--consumers",
            "1",
            "--duration",
            seconds,
        ])?;
        // Everything is settled when the load test ends: this is the whole life of its messages.
        let node = Cpu::of(pid)?.since(&before);
        others.push(Look::now()?.others_percent_since(&look, node.total()));
        rates.push(report.number("publish_per_s")?);
        delivered.push(report.number("deliver_per_s")?);
        let per_message = 1e6 / report.number("acknowledged")?;
        cpu.push(node.total() * per_message);
        user.push(node.user * per_message);
        system.push(node.system * per_message);
        client_cpu.push(report.number("client_cpu_us_per_message")?);
        eprintln!("  {number} of {repetitions} loads");
    }
    let bar = rate_bar(median(&disk).unwrap_or(f64::INFINITY));
    let what = format!(
        "1 KiB, sealed, as fast as one producer and one consumer go, {repetitions} loads of {seconds} s"
    );
    let others = Figure::new("others' use of the machine", "%", others, Bar::None);
    Ok(vec![
        Verdict::new(
            "throughput",
            what.clone(),
            vec![
                Figure::new("acknowledged", "msg/s", rates, bar),
                Figure::new("delivered", "msg/s", delivered, Bar::None),
                Figure::new(
                    "disk, sequential",
                    "MB/s",
                    disk.iter().map(|rate| rate / 1e6).collect(),
                    Bar::None,
                ),
                others.clone(),
            ],
        ),
        Verdict::new(
            "cpu",
            what,
            vec![
                Figure::new("node, per message", "us", cpu, Bar::AtMost(CPU_US_MAX)),
                Figure::new("of it user", "us", user, Bar::None),
                Figure::new("of it system", "us", system, Bar::None),
                Figure::new("client, per message", "us", client_cpu, Bar::None),
                others,
            ],
        ),
    ])
}

/// What must be acknowledged per second beside a disk that writes so many bytes per second.
fn rate_bar(disk: f64) -> Bar {
    Bar::AtLeast(RATE_MIN.min(DISK_SHARE_MIN * disk / MESSAGE_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_disk_lowers_the_bar_and_a_fast_one_does_not_raise_it() {
        assert_eq!(rate_bar(102_400_000.0), Bar::AtLeast(60_000.0));
        assert_eq!(rate_bar(1e12), Bar::AtLeast(150_000.0));
    }
}
