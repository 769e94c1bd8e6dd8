//! `demo`: five nodes as processes, real traffic, faults while it runs, and a verdict.

mod judge;
mod progress;
mod stage;
pub(crate) mod worker;

use std::{
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde::Serialize;
use swarmmq_client::{Options, SwarmMq};
use swarmmq_protocol::{
    admin::{AdminAnswer, AdminRequest},
    id::Address,
};

use self::{
    judge::{Judge, Verdict},
    progress::Progress,
    stage::Stage,
    worker::{News, now_ns},
};
use crate::{
    dev::{self, Cluster},
    discover::load_keyring,
    measure::LatencyReport,
    output::{Failure, Outcomes, note, print, say},
    runtime, signals,
};

const ADDRESS: &str = "demo.orders";
const NODES: u16 = 5;
const PRODUCERS: u16 = 2;
const CONSUMERS: u16 = 2;
/// Messages per second of each producer.
const RATE: u32 = 500;
/// How long producers publish.
const DURATION: Duration = Duration::from_secs(18);
/// What goes wrong, and when.
const FAULTS: [(Duration, Blow); 6] = [
    (Duration::from_secs(3), Blow::KillLeader),
    (Duration::from_secs(6), Blow::Restart),
    (Duration::from_secs(8), Blow::KillFollower),
    (Duration::from_secs(10), Blow::Restart),
    (Duration::from_secs(12), Blow::Freeze),
    (Duration::from_secs(14), Blow::Thaw),
];
/// Time after the load for everything to arrive. A message finds its fate well before.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(15);
const _: () = assert!(worker::DEADLINE.as_secs() < DRAIN_TIME_MAX.as_secs());
/// Time for consumers to join.
const JOIN_TIME_MAX: Duration = Duration::from_secs(10);
const PROGRESS_PAUSE: Duration = Duration::from_millis(250);
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Something that goes wrong, or is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    KillLeader,
    KillFollower,
    /// Of the node that was killed.
    Restart,
    Freeze,
    Thaw,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    verdict: Verdict,
    nodes: u16,
    sent: u64,
    acknowledged: u64,
    delivered: u64,
    lost: u64,
    duplicated: u64,
    redelivered: u64,
    out_of_order: u64,
    unknown: u64,
    faults: Vec<Fault>,
    seconds: f64,
    longest_publish_gap_ms: f64,
    longest_delivery_gap_ms: f64,
    latency_us: LatencyReport,
    /// The first of the lost messages, as `producer:sequence`.
    missing: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Fault {
    what: String,
    at_s: f64,
    /// Longest time a producer with something to send saw no acknowledgement, until the next fault.
    publish_gap_ms: f64,
    /// Longest time messages waited and none was delivered.
    delivery_gap_ms: f64,
}

/// What reaches the judge.
enum Event {
    News(News),
    Ended(String),
    Interrupted,
}

/// The command.
pub(crate) fn run(as_json: bool) -> Outcomes<u8> {
    let (events, inbox) = mpsc::channel();
    watch_signals(events.clone())?;
    // Dropped on every way out: processes end and the directory goes.
    let mut stage = Stage::build()?;
    let result = play(&mut stage, &events, &inbox);
    drop(stage);
    let report = result?;
    if as_json {
        print(&report);
    } else {
        show(&report);
    }
    Ok(report.verdict.exit_code())
}

fn play(stage: &mut Stage, events: &Sender<Event>, inbox: &Receiver<Event>) -> Outcomes<Report> {
    note(format!(
        "{NODES} nodes, {PRODUCERS} producers and {CONSUMERS} consumers, each a process of its own; {} messages a second for {} s",
        u32::from(PRODUCERS) * RATE,
        DURATION.as_secs()
    ));
    note(
        "meanwhile the leader is killed (SIGKILL), then a follower, then a node stands still for 2 s (SIGSTOP)",
    );
    let starting = Instant::now();
    let cluster = dev::up(&stage.directory, Some(NODES), None, &[], false)?;
    let made = starting.elapsed();
    let began = Instant::now();
    let mut progress = Progress::new(format!(
        "{NODES} nodes serve, {:.1} s after the first was started",
        made.as_secs_f64()
    ));
    for number in 0..CONSUMERS {
        let words = ["demo-consumer", "--address", ADDRESS];
        stage.spawn(&cluster, &words, &format!("consumer {number}"), events)?;
    }
    let mut judge = Judge::new();
    let limit = Instant::now() + JOIN_TIME_MAX;
    while !judge.is_ready() {
        hear(&mut judge, inbox, LOOK_PAUSE)?;
        if Instant::now() > limit {
            return Err(Failure::new(1, "demo", "the consumers cannot join", "run it again"));
        }
    }
    for number in 0..PRODUCERS {
        let (number, rate, seconds) = (number.to_string(), RATE.to_string(), DURATION.as_secs().to_string());
        let words = [
            "demo-producer",
            "--address",
            ADDRESS,
            "--number",
            &number,
            "--rate",
            &rate,
            "--seconds",
            &seconds,
        ];
        stage.spawn(&cluster, &words, &format!("producer {number}"), events)?;
    }
    let limit = Instant::now() + DURATION + DRAIN_TIME_MAX;
    let mut script =
        Script { cluster: &cluster, down: None, next: 0, load_began: Instant::now(), faults: Vec::new() };
    while !judge.is_complete() && Instant::now() < limit {
        hear(&mut judge, inbox, PROGRESS_PAUSE)?;
        progress.show(&judge, began);
        if let Some(blow) = script.due() {
            script.strike(stage, blow, &mut judge, &mut progress, began)?;
        }
    }
    if judge.is_complete() {
        settle(&cluster, limit)?;
    }
    while hear(&mut judge, inbox, Duration::ZERO)? {}
    progress.end();
    let mut faults = script.faults;
    for (number, fault) in faults.iter_mut().enumerate() {
        (fault.publish_gap_ms, fault.delivery_gap_ms) = judge.gaps_ms(number);
    }
    let (longest_publish_gap_ms, longest_delivery_gap_ms) = judge.longest_gaps_ms();
    Ok(Report {
        verdict: judge.verdict(),
        nodes: NODES,
        sent: judge.sent(),
        acknowledged: judge.acknowledged(),
        delivered: judge.delivered(),
        lost: judge.lost(),
        duplicated: judge.duplicated,
        redelivered: judge.redelivered,
        out_of_order: judge.out_of_order,
        unknown: judge.unknown(),
        faults,
        seconds: tenths(began.elapsed()),
        longest_publish_gap_ms,
        longest_delivery_gap_ms,
        latency_us: judge.latency(),
        missing: judge.lost_names(),
    })
}

/// The faults, one after the other.
struct Script<'a> {
    cluster: &'a Cluster,
    /// The node that is down or stands still.
    down: Option<u16>,
    next: usize,
    load_began: Instant,
    faults: Vec<Fault>,
}

impl Script<'_> {
    fn due(&mut self) -> Option<Blow> {
        let (at, blow) = FAULTS.get(self.next).copied()?;
        (self.load_began.elapsed() >= at).then(|| {
            self.next += 1;
            blow
        })
    }

    fn strike(
        &mut self,
        stage: &Stage,
        blow: Blow,
        judge: &mut Judge,
        progress: &mut Progress,
        began: Instant,
    ) -> Outcomes<()> {
        let victim = match (blow, self.down.take()) {
            (Blow::Restart | Blow::Thaw, Some(node)) => node,
            (Blow::Restart | Blow::Thaw, None) => return Ok(()),
            (Blow::KillFollower, _) => replicas(self.cluster)?.1,
            (Blow::KillLeader | Blow::Freeze, _) => replicas(self.cluster)?.0,
        };
        judge.fault(now_ns());
        let at_s = tenths(began.elapsed());
        let what = match blow {
            Blow::KillLeader | Blow::KillFollower => {
                let which = if blow == Blow::KillLeader { "the leader" } else { "a follower" };
                dev::kill(&stage.directory, victim)?;
                self.down = Some(victim);
                format!("kill -9 node {victim}, {which}")
            }
            Blow::Restart => {
                dev::start(&stage.directory, victim)?;
                format!("node {victim} started again")
            }
            Blow::Freeze => {
                dev::tell(&stage.directory, victim, Signal::STOP)?;
                self.down = Some(victim);
                format!("node {victim}, the leader, stands still for 2 s (SIGSTOP)")
            }
            Blow::Thaw => {
                dev::tell(&stage.directory, victim, Signal::CONT)?;
                format!("node {victim} goes on (SIGCONT)")
            }
        };
        progress.turn(what.clone(), judge, began);
        self.faults.push(Fault { what, at_s, publish_gap_ms: 0.0, delivery_gap_ms: 0.0 });
        Ok(())
    }
}

/// Who leads the shard that is measured, and one who follows.
fn replicas(cluster: &Cluster) -> Outcomes<(u16, u16)> {
    let broken = || Failure::new(1, "demo", "the cluster does not say who leads", "run it again");
    with_client(cluster, async |client| {
        let address = Address::parse(ADDRESS).expect("follows the grammar");
        let limit = Instant::now() + JOIN_TIME_MAX;
        loop {
            let info = client.admin(AdminRequest::AddressInfo { address: address.clone() }).await?;
            let status = client.admin(AdminRequest::Status).await?;
            let (Some(AdminAnswer::Address(info)), Some(AdminAnswer::Status(status))) = (info, status) else {
                return Err(broken());
            };
            let shard = info.shards.first().ok_or_else(broken)?.id;
            let shard = status.shards.iter().find(|known| known.id == shard).ok_or_else(broken)?;
            if let Some(follower) = shard.replicas.iter().find(|node| **node != shard.leader)
                && shard.leader != 0
            {
                return Ok((shard.leader, *follower));
            }
            if Instant::now() > limit {
                return Err(broken());
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    })
}

fn with_client<T>(cluster: &Cluster, work: impl AsyncFnOnce(&SwarmMq) -> Outcomes<T>) -> Outcomes<T> {
    let keyring = load_keyring(&cluster.keyring.to_string_lossy())?;
    let servers = cluster.nodes.iter().map(|node| node.client.clone()).collect();
    runtime()?.block_on(async {
        let client = SwarmMq::connect(Options::new(servers, keyring)).await?;
        let result = work(&client).await;
        client.close().await;
        result
    })
}

fn tenths(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

/// Takes everything that has arrived, waiting at most `patience` for the first of it. False: nothing came.
fn hear(judge: &mut Judge, inbox: &Receiver<Event>, patience: Duration) -> Outcomes<bool> {
    let mut next = inbox.recv_timeout(patience);
    let heard = next.is_ok();
    let until = Instant::now() + patience;
    loop {
        match next {
            Ok(Event::News(news)) => judge.hear(news),
            Ok(Event::Ended(who)) if !who.starts_with("producer") || judge.failure.is_some() => {
                let why = judge.failure.clone().unwrap_or_else(|| "it said nothing".into());
                return Err(Failure::new(1, "demo", format!("{who} ended: {why}"), "run it again"));
            }
            Ok(Event::Ended(_)) => {}
            Ok(Event::Interrupted) => {
                return Err(Failure::interrupted(false, "interrupted; everything was cleaned up"));
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(heard),
        }
        if patience > Duration::ZERO && Instant::now() > until {
            return Ok(heard);
        }
        next = inbox.try_recv().map_err(|_| RecvTimeoutError::Timeout);
    }
}

/// Waits until the group has nothing left to settle: a late duplicate would come before that.
fn settle(cluster: &Cluster, limit: Instant) -> Outcomes<()> {
    with_client(cluster, async |client| {
        let address = Address::parse(ADDRESS).expect("follows the grammar");
        while Instant::now() < limit {
            let answer = client.admin(AdminRequest::AddressInfo { address: address.clone() }).await?;
            let Some(AdminAnswer::Address(info)) = answer else { break };
            if info.groups.iter().all(|group| group.lag_messages == 0 && group.leased == 0) {
                break;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        Ok(())
    })
}

fn watch_signals(events: Sender<Event>) -> Outcomes<()> {
    let runtime = runtime()?;
    std::thread::spawn(move || {
        // Cleaning up is not to be interrupted: what comes after the first signal is not heard.
        let waited = runtime.block_on(signals::wait());
        drop(runtime);
        if waited.is_ok() {
            // If the judge has gone, the demo is over.
            let _over = events.send(Event::Interrupted).is_err();
        }
    });
    Ok(())
}

fn show(report: &Report) {
    for fault in &report.faults {
        say(format!(
            "{:5.1} s: {}; longest pause until the next fault: publishing {} ms, delivering {} ms",
            fault.at_s, fault.what, fault.publish_gap_ms, fault.delivery_gap_ms
        ));
    }
    say(format!(
        "{} messages sent, {} stored and acknowledged, {} received, in {} s",
        report.sent, report.acknowledged, report.delivered, report.seconds
    ));
    say(format!(
        "lost {}, received twice {}, out of order {}, fate unknown {}; given again and flagged {}",
        report.lost, report.duplicated, report.out_of_order, report.unknown, report.redelivered
    ));
    if !report.missing.is_empty() {
        say(format!("not received, as producer:sequence: {}", report.missing.join(" ")));
    }
    let ms = |us: f64| (us / 100.0).round() / 10.0;
    say(format!(
        "from producer to consumer: p50 {} ms, p99 {} ms, max {} ms",
        ms(report.latency_us.p50),
        ms(report.latency_us.p99),
        ms(report.latency_us.max),
    ));
    say(match report.verdict {
        Verdict::Passed => {
            "PASSED: every acknowledged message was received exactly once and in order, though nodes were lost in between"
        }
        Verdict::Failed if report.lost + report.duplicated + report.out_of_order > 0 => {
            "FAILED: messages were lost, received twice or out of order; please report this"
        }
        Verdict::Failed => "FAILED: the producers did not come to their end in time",
        Verdict::Unknown => "UNKNOWN: nothing was lost or doubled, but some messages never got an answer",
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Latency;

    #[test]
    fn a_report_has_the_promised_fields() {
        let fault =
            Fault { what: "kill -9 node 1".into(), at_s: 4.0, publish_gap_ms: 40.0, delivery_gap_ms: 41.5 };
        let report = Report {
            verdict: Verdict::Passed,
            nodes: 5,
            sent: 2,
            acknowledged: 2,
            delivered: 2,
            lost: 0,
            duplicated: 0,
            redelivered: 0,
            out_of_order: 0,
            unknown: 0,
            faults: vec![fault],
            seconds: 10.0,
            longest_publish_gap_ms: 40.0,
            longest_delivery_gap_ms: 41.5,
            latency_us: Latency::new().report(),
            missing: vec!["0:17".into()],
        };
        let text = serde_json::to_string(&report).unwrap();
        let expected = r#"{"verdict":"passed","nodes":5,"sent":2,"acknowledged":2,"delivered":2,"lost":0,"duplicated":0,"redelivered":0,"out_of_order":0,"unknown":0,"faults":[{"what":"kill -9 node 1","at_s":4.0,"publish_gap_ms":40.0,"delivery_gap_ms":41.5}],"seconds":10.0,"longest_publish_gap_ms":40.0,"longest_delivery_gap_ms":41.5,"latency_us":{"#;
        assert!(text.starts_with(expected) && text.ends_with(r#","missing":["0:17"]}"#), "{text}");
    }

    #[test]
    fn faults_come_one_after_the_other_while_messages_flow() {
        assert!(FAULTS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(FAULTS.iter().all(|(at, _)| *at < DURATION));
    }
}
