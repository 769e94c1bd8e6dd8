//! `demo`: a cluster of real processes, real traffic, a node killed while it runs, and a verdict.

pub(crate) mod worker;

use std::{
    fs,
    io::{BufRead, BufReader, IsTerminal, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use serde::Serialize;
use swarmmq_client::{Options, SwarmMq};
use swarmmq_protocol::{
    admin::{AdminAnswer, AdminRequest},
    id::Address,
};

use self::worker::News;
use crate::{
    dev::{self, Cluster},
    discover::load_keyring,
    measure::{Bitmap, Gap, Latency, LatencyReport, millis},
    output::{Failure, Outcomes, note, print, say},
    runtime, signals,
};

const ADDRESS: &str = "demo.orders";
const NODES: u16 = 1;
const PRODUCERS: u16 = 2;
const CONSUMERS: u16 = 2;
/// Messages per second of each producer.
const RATE: u32 = 500;
/// How long producers publish.
const DURATION: Duration = Duration::from_secs(10);
/// When the node is killed.
const FAULT_AT: Duration = Duration::from_secs(4);
/// Time after the load for everything to arrive. A message finds its fate well before.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(15);
const _: () = assert!(worker::DEADLINE.as_secs() < DRAIN_TIME_MAX.as_secs());
const PROGRESS_PAUSE: Duration = Duration::from_millis(250);
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    verdict: Verdict,
    nodes: u16,
    acknowledged: u64,
    delivered: u64,
    lost: u64,
    duplicated: u64,
    unknown: u64,
    faults: Vec<Fault>,
    seconds: f64,
    longest_publish_gap_ms: f64,
    latency_us: LatencyReport,
}

/// What the demo shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Passed,
    /// Something was lost or came twice, or the load did not come to its end.
    Failed,
    /// Nothing is known to be wrong, but the fate of some messages is open.
    Unknown,
}

impl Verdict {
    fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed => 1,
            Self::Unknown => 5,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
struct Fault {
    what: String,
    at_s: f64,
}

/// What reaches the judge.
enum Event {
    News(News),
    Ended(String),
    Interrupted,
}

/// Counts what was acknowledged and what was delivered.
struct Judge {
    acknowledged: Vec<Bitmap>,
    delivered: Vec<Bitmap>,
    unknown: Vec<Bitmap>,
    duplicated: u64,
    gaps: Vec<Gap>,
    latency: Latency,
    done: u16,
    failure: Option<String>,
}

impl Judge {
    fn new() -> Self {
        Self {
            acknowledged: vec![Bitmap::default(); PRODUCERS.into()],
            delivered: vec![Bitmap::default(); PRODUCERS.into()],
            unknown: vec![Bitmap::default(); PRODUCERS.into()],
            duplicated: 0,
            gaps: vec![Gap::default(); PRODUCERS.into()],
            latency: Latency::new(),
            done: 0,
            failure: None,
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Acknowledged { producer, sequence, handed_ns, now_ns } => {
                self.acknowledged[usize::from(producer)].insert(sequence);
                self.gaps[usize::from(producer)].progress(handed_ns, now_ns);
            }
            News::Unknown { producer, sequence, handed_ns, now_ns } => {
                self.unknown[usize::from(producer)].insert(sequence);
                self.gaps[usize::from(producer)].gave_up(handed_ns, now_ns);
            }
            News::Delivered { producer, sequence, latency_ns } => {
                if self.delivered[usize::from(producer)].insert(sequence) {
                    self.latency.record_ns(latency_ns);
                } else {
                    self.duplicated += 1;
                }
            }
            News::Done => self.done += 1,
            News::Failed { message } => {
                self.failure.get_or_insert(message);
            }
        }
    }

    fn count(bitmaps: &[Bitmap]) -> u64 {
        bitmaps.iter().map(Bitmap::len).sum()
    }

    fn missing(&self, bitmaps: &[Bitmap]) -> u64 {
        bitmaps.iter().zip(&self.delivered).map(|(these, seen)| these.missing_in(seen)).sum()
    }

    /// Acknowledged and never delivered.
    fn lost(&self) -> u64 {
        self.missing(&self.acknowledged)
    }

    /// Neither acknowledged nor delivered: a delivery resolves what the answer did not.
    fn unknown(&self) -> u64 {
        self.missing(&self.unknown)
    }

    fn is_complete(&self) -> bool {
        self.done == PRODUCERS && self.lost() == 0
    }

    fn verdict(&self) -> Verdict {
        if !self.is_complete() || self.duplicated > 0 {
            Verdict::Failed
        } else if self.unknown() > 0 {
            Verdict::Unknown
        } else {
            Verdict::Passed
        }
    }
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
        "one node, {PRODUCERS} producers and {CONSUMERS} consumers, each a process of its own; {} messages a second for {} s",
        u32::from(PRODUCERS) * RATE,
        DURATION.as_secs()
    ));
    note(format!("after {} s the node is killed (SIGKILL) and started again", FAULT_AT.as_secs()));
    let cluster = dev::up(&stage.directory, Some(NODES), None, &[])?;
    let mut progress = Progress::new(format!("node 1 runs, process {}", pid_of(&cluster)));
    let began = Instant::now();
    for number in 0..CONSUMERS {
        stage.spawn(
            &cluster,
            &["demo-consumer", "--address", ADDRESS],
            &format!("consumer {number}"),
            events,
        )?;
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
    let mut judge = Judge::new();
    let mut faults = Vec::new();
    let limit = began + DURATION + DRAIN_TIME_MAX;
    while !judge.is_complete() && Instant::now() < limit {
        hear(&mut judge, inbox, PROGRESS_PAUSE)?;
        progress.show(&judge, began);
        if faults.is_empty() && began.elapsed() >= FAULT_AT {
            dev::kill(&stage.directory, 1)?;
            faults.push(Fault { what: "kill -9 node 1".into(), at_s: tenths(began.elapsed()) });
            progress.turn(format!("node 1 was killed, process {} is gone", pid_of(&cluster)), &judge, began);
            let again = dev::start(&stage.directory, 1)?;
            faults.push(Fault { what: "node 1 serves again".into(), at_s: tenths(began.elapsed()) });
            progress.turn(format!("node 1 is back, process {}", pid_of(&again)), &judge, began);
        }
    }
    if judge.is_complete() {
        settle(&cluster, limit)?;
    }
    while hear(&mut judge, inbox, Duration::ZERO)? {}
    progress.end();
    Ok(Report {
        verdict: judge.verdict(),
        nodes: NODES,
        acknowledged: Judge::count(&judge.acknowledged),
        delivered: Judge::count(&judge.delivered),
        lost: judge.lost(),
        duplicated: judge.duplicated,
        unknown: judge.unknown(),
        faults,
        seconds: tenths(began.elapsed()),
        longest_publish_gap_ms: millis(judge.gaps.iter().map(Gap::longest).max().unwrap_or_default()),
        latency_us: judge.latency.report(),
    })
}

fn pid_of(cluster: &Cluster) -> i32 {
    cluster.nodes.iter().find_map(|node| node.pid).unwrap_or_default()
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
    let address = Address::parse(ADDRESS).expect("follows the grammar");
    let keyring = load_keyring(&cluster.keyring.to_string_lossy())?;
    let servers = cluster.nodes.iter().map(|node| node.client.clone()).collect();
    runtime()?.block_on(async {
        let client = SwarmMq::connect(Options::new(servers, keyring)).await?;
        while Instant::now() < limit {
            let answer = client.admin(AdminRequest::AddressInfo { address: address.clone() }).await?;
            let Some(AdminAnswer::Address(info)) = answer else { break };
            if info.groups.iter().all(|group| group.lag_messages == 0 && group.leased == 0) {
                break;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        client.close().await;
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

/// The directory and the processes.
struct Stage {
    directory: PathBuf,
    workers: Vec<Child>,
}

impl Stage {
    fn build() -> Outcomes<Self> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).expect("the operating system gives random bytes");
        let directory =
            std::env::temp_dir().join(format!("swarmmq-demo-{:016x}", u64::from_be_bytes(random)));
        fs::DirBuilder::new().mode(0o700).create(&directory).map_err(|error| {
            Failure::local(
                format!("cannot make {}: {error}", directory.display()),
                "set TMPDIR to a directory with room",
            )
        })?;
        Ok(Self { directory, workers: Vec::new() })
    }

    fn spawn(
        &mut self,
        cluster: &Cluster,
        words: &[&str],
        who: &str,
        events: &Sender<Event>,
    ) -> Outcomes<()> {
        let broken = |error: std::io::Error| {
            Failure::local(format!("cannot start {who}: {error}"), "check process limits")
        };
        let servers: Vec<&str> = cluster.nodes.iter().map(|node| node.client.as_str()).collect();
        let mut child = Command::new(std::env::current_exe().map_err(broken)?)
            .args(words)
            .args(["--servers", &servers.join(",")])
            .arg("--keyring")
            .arg(&cluster.keyring)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(broken)?;
        let output = child.stdout.take().expect("it was asked for a pipe");
        self.workers.push(child);
        let (events, who) = (events.clone(), who.to_owned());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(news) = serde_json::from_str(&line) else { continue };
                if events.send(Event::News(news)).is_err() {
                    return;
                }
            }
            // If the judge has gone, nobody needs to know.
            let _over = events.send(Event::Ended(who)).is_err();
        });
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            // One that has ended already cannot be killed; waiting leaves no dead entry behind either way.
            let _ended = worker.kill().and_then(|()| worker.wait()).is_err();
        }
        clean_up(&self.directory);
    }
}

/// Ends the nodes and removes the directory; what cannot be removed is named.
fn clean_up(directory: &Path) {
    if let Ok(cluster) = Cluster::load(directory) {
        for node in cluster.nodes.iter().filter(|node| node.pid.is_some()) {
            if let Err(failure) = dev::kill(directory, node.id) {
                note(format!("node {} is left behind: {}", node.id, failure.message));
            }
        }
    }
    if let Err(error) = fs::remove_dir_all(directory) {
        note(format!("{} is left behind: {error}", directory.display()));
    }
}

/// One line that changes on a terminal; one line a second, and one at every turn, elsewhere.
struct Progress {
    terminal: bool,
    last: Instant,
    stage: String,
}

impl Progress {
    fn new(stage: String) -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: Instant::now(), stage }
    }

    /// Something happened to the node.
    fn turn(&mut self, stage: String, judge: &Judge, began: Instant) {
        self.stage = stage;
        self.write(judge, began);
    }

    fn show(&mut self, judge: &Judge, began: Instant) {
        let pause = if self.terminal { PROGRESS_PAUSE } else { Duration::from_secs(1) };
        if self.last.elapsed() >= pause {
            self.write(judge, began);
        }
    }

    fn write(&mut self, judge: &Judge, began: Instant) {
        self.last = Instant::now();
        let line = format!(
            "{:5.1} s: {} stored, {} received, {} twice; {}",
            began.elapsed().as_secs_f64(),
            Judge::count(&judge.acknowledged),
            Judge::count(&judge.delivered),
            judge.duplicated,
            self.stage
        );
        if self.terminal {
            let _closed = write!(std::io::stderr().lock(), "\r\x1b[K{line}").is_err();
        } else {
            note(line);
        }
    }

    fn end(&self) {
        if self.terminal {
            note("");
        }
    }
}

fn show(report: &Report) {
    for fault in &report.faults {
        say(format!("{:5.1} s: {}", fault.at_s, fault.what));
    }
    say(format!(
        "{} messages stored and acknowledged, {} received, in {} s",
        report.acknowledged, report.delivered, report.seconds
    ));
    say(format!(
        "lost {}, received twice {}, fate unknown {}",
        report.lost, report.duplicated, report.unknown
    ));
    let ms = |us: f64| (us / 100.0).round() / 10.0;
    say(format!(
        "from producer to consumer: p50 {} ms, p99 {} ms, max {} ms; longest pause of a producer {} ms",
        ms(report.latency_us.p50),
        ms(report.latency_us.p99),
        ms(report.latency_us.max),
        report.longest_publish_gap_ms
    ));
    say(match report.verdict {
        Verdict::Passed => {
            "PASSED: every acknowledged message was received exactly once, though the node was killed in between"
        }
        Verdict::Failed if report.lost + report.duplicated > 0 => {
            "FAILED: messages were lost or received twice; please report this"
        }
        Verdict::Failed => "FAILED: the producers did not come to their end in time",
        Verdict::Unknown => "UNKNOWN: nothing was lost or doubled, but some messages never got an answer",
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_judge_tells_lost_from_duplicated() {
        let mut judge = Judge::new();
        let acknowledged =
            |sequence| News::Acknowledged { producer: 1, sequence, handed_ns: 1_000_000, now_ns: 3_000_000 };
        let delivered = |sequence| News::Delivered { producer: 1, sequence, latency_ns: 5000 };
        [acknowledged(0), acknowledged(1), delivered(0)].into_iter().for_each(|news| judge.hear(news));
        assert_eq!((judge.lost(), judge.duplicated), (1, 0));
        [delivered(1), delivered(0)].into_iter().for_each(|news| judge.hear(news));
        assert_eq!((judge.lost(), judge.duplicated), (0, 1));
        assert!(!judge.is_complete(), "producers still run");
        (0..PRODUCERS).for_each(|_| judge.hear(News::Done));
        assert!(judge.is_complete());
        assert_eq!(judge.gaps[1].longest(), Duration::from_millis(2));
    }

    #[test]
    fn the_verdict_needs_everything_to_be_known() {
        let mut judge = Judge::new();
        assert_eq!(judge.verdict(), Verdict::Failed, "nobody has finished");
        (0..PRODUCERS).for_each(|_| judge.hear(News::Done));
        assert_eq!(judge.verdict(), Verdict::Passed);
        judge.hear(News::Unknown { producer: 0, sequence: 7, handed_ns: 0, now_ns: 5_000_000 });
        assert_eq!((judge.verdict(), judge.unknown()), (Verdict::Unknown, 1));
        assert_eq!(judge.gaps[0].longest(), Duration::from_millis(5), "waiting in vain is a pause too");
        judge.hear(News::Delivered { producer: 0, sequence: 7, latency_ns: 1 });
        assert_eq!(judge.verdict(), Verdict::Passed, "it was stored, as its delivery shows");
        judge.hear(News::Delivered { producer: 0, sequence: 7, latency_ns: 1 });
        assert_eq!(judge.verdict(), Verdict::Failed);
    }

    #[test]
    fn a_report_has_the_promised_fields() {
        let fault = Fault { what: "kill -9 node 1".into(), at_s: 4.0 };
        let report = Report {
            verdict: Verdict::Passed,
            nodes: 1,
            acknowledged: 2,
            delivered: 2,
            lost: 0,
            duplicated: 0,
            unknown: 0,
            faults: vec![fault],
            seconds: 10.0,
            longest_publish_gap_ms: 1.5,
            latency_us: Latency::new().report(),
        };
        let text = serde_json::to_string(&report).unwrap();
        let expected = r#"{"verdict":"passed","nodes":1,"acknowledged":2,"delivered":2,"lost":0,"duplicated":0,"unknown":0,"faults":[{"what":"kill -9 node 1","at_s":4.0}],"seconds":10.0,"longest_publish_gap_ms":1.5,"latency_us":{"#;
        assert!(text.starts_with(expected), "{text}");
    }
}
