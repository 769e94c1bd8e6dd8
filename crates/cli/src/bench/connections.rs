//! `bench connections`: many clients at once, most of them idle, and whether any was refused, failed or fell silent.
//!
//! All of them live on one thread, each with a connection of its own. The idle ones are there first: the active ones
//! must find room beside them.

use std::{cell::RefCell, rc::Rc, time::Duration};

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use swarmmq_client::{Error, Message, Options, ProducerOptions, SubscribeOptions, SwarmMq};
use swarmmq_protocol::{admin::AdminRequest, id::Address};
use tokio::{
    sync::watch,
    task::LocalSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    address,
    discover::{CLOSE_TIME_MAX, CONNECT_TIME_MAX, Target},
    measure::{Latency, LatencyReport},
    output::{Failure, Outcomes, note, print, say},
    parse, runtime, signals,
};

/// Connections, at most: one address has so many ports.
const CONNECTIONS_MAX: u32 = 60_000;
/// Connections that are made, asked or closed at the same time: more would measure the queue of the listening socket.
const AT_ONCE: usize = 64;
/// Pause between two messages of an active client.
const PAUSE: Duration = Duration::from_secs(1);
/// Time for a message to come back before its client counts as failed.
const ROUND_TRIP_TIME_MAX: Duration = Duration::from_secs(10);
/// Files open besides the connections.
const OTHER_FILES: u64 = 64;
const BODY_BYTES: usize = 1024;
const GROUP: &str = "bench";

/// How many, and for how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConnectionsArgs {
    /// How many connections, the active ones among them
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)))]
    connections: u32,
    /// How many of them send a message every second, and receive it
    #[arg(long, default_value_t = 10)]
    active: u32,
    /// How long, once all are open
    #[arg(long, default_value = "10", value_parser = parse::duration)]
    duration: Duration,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    connections: u32,
    opened: usize,
    /// Wanted and not opened.
    refused: usize,
    active: usize,
    active_failed: usize,
    /// Opened and without an answer in the end.
    silent: usize,
    /// Sent, received and acknowledged.
    messages: u64,
    open_seconds: f64,
    seconds: f64,
    latency_us: LatencyReport,
}

impl Report {
    fn show(&self) {
        say(format!("{} of {} connections opened in {} s", self.opened, self.connections, self.open_seconds));
        say(format!(
            "refused {}, active failed {} of {}, silent in the end {}",
            self.refused, self.active_failed, self.active, self.silent
        ));
        let latency = &self.latency_us;
        say(format!(
            "{} round trips: p50 {} us, p99 {} us, max {} us",
            self.messages, latency.p50, latency.p99, latency.max
        ));
    }

    fn exit_code(&self, interrupted: bool) -> u8 {
        match self.refused + self.active_failed + self.silent {
            0 if interrupted => 130,
            0 => 0,
            _ => 1,
        }
    }
}

/// The command.
pub(crate) fn run(args: &ConnectionsArgs, target: &Target, as_json: bool) -> Outcomes<u8> {
    if args.active > args.connections {
        return Err(Failure::usage(
            format!("--active {}: there are only {} connections", args.active, args.connections),
            "give more --connections",
        ));
    }
    raise_file_limit(u64::from(args.connections) + OTHER_FILES)?;
    let mut options = target.options(CONNECT_TIME_MAX)?;
    // Thousands of clients in one process stand for thousands of processes, each of which would look for itself.
    options.keyring_look = None;
    let (report, interrupted) = runtime()?
        .block_on(LocalSet::new().run_until(all(args, options)))
        .map_err(|failure| target.explain(failure))?;
    if as_json {
        print(&report);
    } else {
        report.show();
    }
    Ok(report.exit_code(interrupted))
}

/// Every connection is a file of this process.
fn raise_file_limit(needed: u64) -> Outcomes<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|files| files >= needed) {
        return Ok(());
    }
    let raised = limit.maximum.is_none_or(|files| files >= needed)
        && setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_ok();
    if raised {
        return Ok(());
    }
    Err(Failure::new(
        6,
        "limit",
        format!("this process may not open {needed} files"),
        "raise the hard limit (`ulimit -Hn`), or use fewer --connections",
    ))
}

async fn all(args: &ConnectionsArgs, options: Options) -> Outcomes<(Report, bool)> {
    let (stop, stopped) = watch::channel(false);
    let watching = tokio::task::spawn_local(async move {
        if signals::wait().await.is_ok() {
            note("interrupted: closing what is open");
            // Whoever would hear it may have ended.
            let _nobody = stop.send(true).is_err();
        }
        // Kept, so that waiting for the end of it is waiting for a signal.
        stop.closed().await;
    });
    let began = Instant::now();
    // Alone, so that a cluster that is not there is told at once.
    let first = SwarmMq::connect(options.clone()).await?;
    let mut refusals = Vec::new();
    let idle_count = args.connections - args.active;
    let mut idle = open(&options, idle_count.saturating_sub(1), &stopped, &mut refusals).await;
    let mut active = open(&options, args.active - u32::from(idle_count == 0), &stopped, &mut refusals).await;
    if idle_count > 0 {
        idle.push(first)
    } else {
        active.push(first)
    }
    let open_seconds = began.elapsed().as_secs_f64();
    note(format!("{} connections are open after {open_seconds:.1} s", idle.len() + active.len()));
    let tally = Rc::new(RefCell::new(Tally { latency: Latency::new(), messages: 0, first_error: None }));
    let failed = act(args, &active, &stopped, &tally).await?;
    note(format!("{} round trips", tally.borrow().messages));
    let interrupted = *stopped.borrow();
    let opened = idle.len() + active.len();
    let clients: Vec<SwarmMq> = idle.into_iter().chain(active).collect();
    let silent = if interrupted { 0 } else { silent(&clients).await };
    let tally = Rc::into_inner(tally).expect("every task that shared it has ended").into_inner();
    if let Some(error) = refusals.first() {
        note(format!("the first client that was refused: {error}"));
    }
    if let Some(failure) = &tally.first_error {
        note(format!("the first client that failed: {}", failure.message));
    }
    close(clients).await;
    watching.abort();
    let rounded = |seconds: f64| (seconds * 1000.0).round() / 1000.0;
    let report = Report {
        connections: args.connections,
        opened,
        refused: if interrupted { refusals.len() } else { args.connections as usize - opened },
        active: args.active as usize,
        active_failed: failed,
        silent,
        messages: tally.messages,
        open_seconds: rounded(open_seconds),
        seconds: rounded(began.elapsed().as_secs_f64()),
        latency_us: tally.latency.report(),
    };
    Ok((report, interrupted))
}

/// Opens `count` connections, some at a time; why others could not be opened goes to `refusals`. A refusal comes slowly:
/// each of those who open gives up at its first one.
async fn open(
    options: &Options,
    count: u32,
    stopped: &watch::Receiver<bool>,
    refusals: &mut Vec<Error>,
) -> Vec<SwarmMq> {
    let left = Rc::new(RefCell::new(count));
    let tasks: Vec<_> = (0..AT_ONCE.min(count as usize))
        .map(|_| {
            let (options, left, stopped) = (options.clone(), Rc::clone(&left), stopped.clone());
            tokio::task::spawn_local(async move {
                let (mut clients, mut refusals) = (Vec::new(), Vec::new());
                while !*stopped.borrow() && refusals.is_empty() && take_one(&left) {
                    match SwarmMq::connect(options.clone()).await {
                        Ok(client) => clients.push(client),
                        Err(error) => refusals.push(error),
                    }
                }
                (clients, refusals)
            })
        })
        .collect();
    let mut clients = Vec::with_capacity(count as usize);
    for task in tasks {
        let (some, refused) = task.await.expect("the task does not panic and is not cancelled");
        clients.extend(some);
        refusals.extend(refused);
    }
    clients
}

fn take_one(left: &RefCell<u32>) -> bool {
    let mut left = left.borrow_mut();
    let there = *left > 0;
    *left = left.saturating_sub(1);
    there
}

/// What all active clients have seen.
#[derive(Debug)]
struct Tally {
    latency: Latency,
    messages: u64,
    first_error: Option<Failure>,
}

/// Lets every active client work until the time is over; how many could not.
async fn act(
    args: &ConnectionsArgs,
    clients: &[SwarmMq],
    stopped: &watch::Receiver<bool>,
    tally: &Rc<RefCell<Tally>>,
) -> Outcomes<usize> {
    let now = Instant::now();
    let end = now + args.duration;
    let name = super::fresh_address()?;
    let mut tasks = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        let active = Active {
            client: client.clone(),
            address: address::address(&format!("{name}.{number}"))?,
            // Spread over the pause: nothing but chance makes real clients act in step.
            next: now + PAUSE.mul_f64(number as f64 / clients.len() as f64),
            end,
            tally: Rc::clone(tally),
        };
        tasks.push(tokio::task::spawn_local(active.run(stopped.clone())));
    }
    let mut failed = 0;
    for task in tasks {
        if let Err(failure) = task.await.expect("the task does not panic and is not cancelled") {
            failed += 1;
            tally.borrow_mut().first_error.get_or_insert(failure);
        }
    }
    // Idle ones are to be kept that long even if nobody is active.
    if clients.is_empty() {
        wait_until(end, &mut stopped.clone()).await;
    }
    Ok(failed)
}

/// Waits; false: it is to stop instead.
async fn wait_until(time: Instant, stopped: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        biased;
        _ = stopped.wait_for(|stopped| *stopped) => false,
        () = sleep_until(time) => true,
    }
}

/// A client that talks to itself through the cluster.
struct Active {
    client: SwarmMq,
    address: Address,
    next: Instant,
    end: Instant,
    tally: Rc<RefCell<Tally>>,
}

impl Active {
    async fn run(self, mut stopped: watch::Receiver<bool>) -> Outcomes<()> {
        let talked = self.talk(&mut stopped).await;
        let request = AdminRequest::AddressRemove { address: self.address.clone(), dry_run: false };
        if let Err(error) = self.client.admin(request).await {
            note(format!("{} is left behind: {error}", self.address));
        }
        talked
    }

    async fn talk(&self, stopped: &mut watch::Receiver<bool>) -> Outcomes<()> {
        let options = SubscribeOptions { group: GROUP.into(), ..SubscribeOptions::default() };
        let mut consumer = self.client.subscribe(self.address.as_str(), options).await?;
        let producer = self.client.producer(ProducerOptions::default());
        let mut next = self.next;
        while next < self.end && wait_until(next, stopped).await {
            let began = Instant::now();
            let round_trip = async {
                let receipt =
                    producer.send(Message::new(self.address.as_str(), vec![b'.'; BODY_BYTES])).await?;
                let received = consumer.next().await.ok_or(Error::Closed)??;
                if received.id != receipt.id {
                    let what = format!("{} came instead of {}", received.id, receipt.id);
                    return Err(Failure::new(1, "bench", what, "this should be reported"));
                }
                let took = began.elapsed();
                received.ack().await?;
                Ok(took)
            };
            let took = timeout(ROUND_TRIP_TIME_MAX, round_trip).await.map_err(|_| {
                let what = format!("a message did not come back within {} s", ROUND_TRIP_TIME_MAX.as_secs());
                Failure::new(1, "bench", what, "see `swarmmq status`")
            })??;
            let mut tally = self.tally.borrow_mut();
            tally.messages += 1;
            tally.latency.record_ns(took.as_nanos() as u64);
            next += PAUSE;
        }
        // Courtesy; what counts has come back.
        let _in_time =
            timeout(CLOSE_TIME_MAX, async { tokio::join!(producer.close(), consumer.close()) }).await.is_ok();
        Ok(())
    }
}

/// How many do not answer any more. Each asks on its own connection.
async fn silent(clients: &[SwarmMq]) -> usize {
    let mut silent = 0;
    for some in clients.chunks(AT_ONCE) {
        let asked: Vec<_> = some
            .iter()
            .map(|client| {
                let client = client.clone();
                tokio::task::spawn_local(async move { client.admin(AdminRequest::Status).await.is_err() })
            })
            .collect();
        for answer in asked {
            silent += usize::from(answer.await.expect("the task does not panic and is not cancelled"));
        }
    }
    silent
}

async fn close(clients: Vec<SwarmMq>) {
    let mut clients = clients.into_iter().peekable();
    while clients.peek().is_some() {
        let closing: Vec<_> =
            clients.by_ref().take(AT_ONCE).map(|client| tokio::task::spawn_local(client.close())).collect();
        for closed in closing {
            closed.await.expect("the task does not panic and is not cancelled");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            connections: 3,
            opened: 3,
            refused: 0,
            active: 1,
            active_failed: 0,
            silent: 0,
            messages: 1,
            open_seconds: 0.1,
            seconds: 1.0,
            latency_us: Latency::new().report(),
        }
    }

    #[test]
    fn any_client_without_service_is_a_bad_verdict() {
        assert_eq!(report().exit_code(false), 0);
        assert_eq!(report().exit_code(true), 130);
        assert_eq!(Report { refused: 1, ..report() }.exit_code(true), 1);
        assert_eq!(Report { active_failed: 1, ..report() }.exit_code(false), 1);
        assert_eq!(Report { silent: 1, ..report() }.exit_code(false), 1);
    }

    #[test]
    fn a_limit_that_suffices_is_left_alone() {
        let before = getrlimit(Resource::Nofile);
        assert!(raise_file_limit(1).is_ok());
        assert_eq!(getrlimit(Resource::Nofile).current, before.current);
        assert_eq!(raise_file_limit(u64::MAX - 1).map_err(|failure| failure.exit), Err(6));
    }
}
