//! From one program to the other at a rate that leaves the machine mostly idle.

use super::{
    Setting,
    cluster::Cluster,
    process::{Cpu, Look},
    verdict::{Bar, Figure, Verdict},
};

/// Loads of 1,000 messages a second. Latency counts from the time at which a message was due.
pub(super) fn run(setting: &Setting) -> Result<Vec<Verdict>, String> {
    let (repetitions, seconds) = if setting.quick { (1, "5") } else { (3, "10") };
    let cluster = Cluster::up(setting, "latency")?;
    let pid = cluster.pid()?;
    let (mut p50, mut p99, mut ack, mut others) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repetitions {
        let (look, before) = (Look::now()?, Cpu::of(pid)?);
        let report =
            cluster.json(&["bench", "e2e", "--rate", "1000", "--size", "1KiB", "--duration", seconds])?;
        others.push(Look::now()?.others_percent_since(&look, Cpu::of(pid)?.since(&before).total()));
        p50.push(report.number("latency_us.p50")? / 1000.0);
        p99.push(report.number("latency_us.p99")? / 1000.0);
        ack.push(report.number("ack_latency_us.p50")? / 1000.0);
    }
    let figures = vec![
        Figure::new("p50", "ms", p50, Bar::AtMost(0.8)),
        Figure::new("p99", "ms", p99, Bar::AtMost(4.0)),
        Figure::new("p50 of the acknowledgement", "ms", ack, Bar::None),
        Figure::new("others' use of the machine", "%", others, Bar::None),
    ];
    let what = format!("end to end, 1,000 msg/s of 1 KiB, {repetitions} loads of {seconds} s");
    Ok(vec![Verdict::new("latency", what, figures)])
}
