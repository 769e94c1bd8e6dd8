//! Ten thousand clients that do nothing, and a hundred that do something and must not suffer from it.

use super::{
    Setting,
    cluster::{Cluster, Load},
    json::Value,
    process,
    verdict::{Bar, Figure, Verdict},
};

const ACTIVE: u32 = 100;
const IDLE: u32 = 10_000;

/// Opens all of them and keeps them for a while.
pub(super) fn run(setting: &Setting) -> Result<Vec<Verdict>, String> {
    let seconds = if setting.quick { "5" } else { "20" };
    let cluster = Cluster::up(setting, "connections")?;
    let pid = cluster.pid()?;
    let (count, active) = ((IDLE + ACTIVE).to_string(), ACTIVE.to_string());
    let mut load = Load::start(cluster.command(&[
        "bench",
        "connections",
        "--json",
        "--connections",
        &count,
        "--active",
        &active,
        "--duration",
        seconds,
    ]))?;
    // Said when the active ones have been active, and before anything is closed. The node's own count is a second old.
    load.wait_for(|line| line.contains("round trips"))?;
    let open = cluster.metric("swarmmq_connections")?;
    let resident = process::memory(pid)?.resident;
    let (code, report) = load.finish()?;
    let peak = process::memory(pid)?.peak;
    let shed = cluster.metric("swarmmq_connections_shed_total")?
        + cluster.metric("swarmmq_connections_refused_total")?;
    let one = |field: &str| report.number(field).map(|value| vec![value]);
    let mb = |bytes: u64| vec![bytes as f64 / 1e6];
    let none = Bar::NeverAbove(0.0);
    let figures = vec![
        Figure::new("resident, all connected", "MB", mb(resident), Bar::NeverAbove(500.0)),
        Figure::new("most ever", "MB", mb(peak), Bar::NeverAbove(500.0)),
        Figure::new("connected at once", "", vec![open], Bar::AtLeast((IDLE + ACTIVE).into())),
        Figure::new("refused", "", one("refused")?, none),
        Figure::new("refused, says the node", "", vec![shed], none),
        Figure::new("active ones that failed", "", one("active_failed")?, none),
        Figure::new("gone in the end", "", one("silent")?, none),
        Figure::new("round trips of the active", "", one("messages")?, Bar::None),
        Figure::new("their p99", "ms", vec![report.number("latency_us.p99")? / 1000.0], Bar::None),
    ];
    let mut verdict =
        Verdict::new("connections", "10,000 idle authenticated connections and 100 active ones", figures);
    verdict.error = (code != Some(0)).then(|| describe(code, &report));
    Ok(vec![verdict])
}

fn describe(code: Option<i32>, report: &Value) -> String {
    match report.text("error.message") {
        Ok(message) => message.to_owned(),
        Err(_) => format!("the clients ended with exit code {code:?}"),
    }
}
