//! One run of a load: producers on one thread, the consumer on another, and this one looks on and takes the figures.
//!
//! The same code for every broker: only clients and nodes differ. What was confirmed and what was delivered is compared
//! when everything has come to rest.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Runtime,
    sync::Notify,
    task::{self, LocalSet},
};

use crate::{
    failure::{During, Failure, Outcome},
    measure::{Bitmap, Gap, Latency},
    pacer::Pacer,
    peer::{Broker, Connector, Consumer, Producer, Received},
    plan::{IN_FLIGHT, InOrder, KEYS, Load, Plan, Stamp},
    process::{
        Pid, Used, check_interrupted, forget_peak, machine_cpu, own_cpu, processors, resident, used,
        with_descendants,
    },
    results::{Figures, Traffic},
};

/// Time for clients to connect.
const READY_TIME_MAX: Duration = Duration::from_secs(60);
/// Time after the load in which what is open may still be confirmed.
const RESOLVE_TIME_MAX: Duration = Duration::from_secs(60);
/// Silence after which what is missing counts as lost. Longer than the 30 s after which SwarmMQ and NATS deliver again what
/// was on its way to a consumer when a node died.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Silence after which nothing more is awaited if only messages without confirmation are missing.
const SILENCE: Duration = Duration::from_secs(2);
/// Time for duplicates to come, when everything has come once.
const GRACE: Duration = Duration::from_millis(500);
/// From when clients are ready to the start.
const RUN_UP: Duration = Duration::from_millis(100);
/// From the beginning of the window until the leader is killed.
const KILL_AFTER: Duration = Duration::from_secs(1);
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Longest time for which a producer that waits for room does not look.
const ROOM_PAUSE_NS: u64 = 1_000_000;
/// Places for open messages of one producer: more than may be open, because they need not be confirmed in order.
const OPEN_SLOTS: usize = 1 << 16;
/// Longest pause of a producer: how late it notices that it is to stop.
const PAUSE_NS_MAX: u64 = 50_000_000;

/// What the threads see at once.
#[derive(Debug, Default)]
struct Shared {
    started: OnceLock<Instant>,
    published: AtomicU64,
    confirmed: AtomicU64,
    /// Each message once.
    received: AtomicU64,
    /// A producer waits for the consumer.
    waiting: AtomicBool,
    room: Notify,
    /// Somebody failed: everybody stops.
    failed: AtomicBool,
    finished: Notify,
}

impl Shared {
    /// Nanoseconds since the start; 0 before.
    fn now(&self) -> u64 {
        self.started
            .get()
            .map_or(0, |started| Instant::now().saturating_duration_since(*started).as_nanos() as u64)
    }

    fn backlog(&self) -> u64 {
        self.published.load(Ordering::Relaxed).saturating_sub(self.received.load(Ordering::Relaxed))
    }
}

/// A runtime on this thread.
pub(crate) fn runtime() -> Outcome<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().during("cannot start a runtime")
}

/// What it costs to have the broker there, without clients.
pub(crate) fn idle<B: Broker>(broker: &B, plan: &Plan) -> Outcome<Figures> {
    pause(plan.warm_up)?;
    let before = Sample::take(broker);
    before.forget_peaks();
    pause(plan.window)?;
    Ok(before.until_now(broker))
}

/// Runs a load. The queue called `name` is made for it, and removed when all is well.
pub(crate) fn run<B: Broker>(broker: &mut B, plan: &Plan, name: &str) -> Outcome<Figures> {
    let runtime = runtime()?;
    runtime.block_on(broker.create(name, plan.load))?;
    let connector = broker.connector(name, plan.load)?;
    let shared = Arc::new(Shared::default());
    let (ready, is_ready) = mpsc::channel();
    let consumer = {
        let (connector, shared, plan, name) =
            (connector.clone(), Arc::clone(&shared), plan.clone(), name.to_owned());
        let ready = ready.clone();
        spawn("consumer", move || {
            on_thread(&Arc::clone(&shared), consume(connector, shared, plan, name, ready))
        })?
    };
    // The group of the consumer is there before anything is published.
    let consumer_ready = is_ready.recv_timeout(READY_TIME_MAX);
    let producers = {
        let (shared, plan, name) = (Arc::clone(&shared), plan.clone(), name.to_owned());
        spawn("producers", move || {
            on_thread(&Arc::clone(&shared), produce(connector, shared, plan, name, ready))
        })?
    };
    let all_ready = consumer_ready.is_ok() && is_ready.recv_timeout(READY_TIME_MAX).is_ok();
    let watched = if all_ready {
        watch(broker, plan, name, &shared, &runtime)
    } else {
        Err(Failure::broken("clients could not connect"))
    };
    if watched.is_err() {
        shared.failed.store(true, Ordering::Relaxed);
    }
    shared.started.get_or_init(Instant::now);
    let published = join(producers);
    if published.is_ok() && watched.is_ok() {
        drain(&shared)?;
    }
    shared.finished.notify_one();
    let delivered = join(consumer);
    // The clients' failure comes first: it is the cause when others failed too.
    let (published, delivered) = (published?, delivered?);
    let mut figures = watched?;
    figures.traffic = Some(traffic(plan, published, &delivered, &mut figures));
    if let Load::Failover { .. } = plan.load {
        runtime.block_on(broker.mend(name))?;
    }
    runtime.block_on(broker.remove(name))?;
    Ok(figures)
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> Outcome<T> + Send + 'static,
) -> Outcome<thread::JoinHandle<Outcome<T>>> {
    thread::Builder::new().name(name.into()).spawn(body).during("cannot start a thread")
}

fn join<T>(thread: thread::JoinHandle<Outcome<T>>) -> Outcome<T> {
    thread.join().unwrap_or_else(|_| {
        Err(Failure::broken("a client's thread panicked; that is a fault of this program"))
    })
}

/// Runs a future on this thread; if it fails, everybody stops.
fn on_thread<T>(shared: &Shared, future: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    // Looking at many answers in a row must not count as hogging the thread: the next look would begin anew.
    let result =
        runtime().and_then(|runtime| LocalSet::new().block_on(&runtime, task::unconstrained(future)));
    if result.is_err() {
        shared.failed.store(true, Ordering::Relaxed);
        shared.finished.notify_one();
    }
    result
}

fn pause(time: Duration) -> Outcome<()> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        check_interrupted()?;
        thread::sleep(left.min(Duration::from_millis(200)));
    }
    Ok(())
}

/// Starts the clients, waits for the window and takes the figures of machine and nodes at both ends.
fn watch<B: Broker>(
    broker: &mut B,
    plan: &Plan,
    name: &str,
    shared: &Shared,
    runtime: &Runtime,
) -> Outcome<Figures> {
    let started = Instant::now() + RUN_UP;
    shared.started.set(started).expect("nobody else starts it");
    let until = |end: Duration| -> Outcome<()> {
        while let Some(left) =
            (started + end).checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            check_interrupted()?;
            if shared.failed.load(Ordering::Relaxed) {
                return Err(Failure::broken("a client failed"));
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
        Ok(())
    };
    until(plan.warm_up)?;
    let before = Sample::take(broker);
    before.forget_peaks();
    if let Load::Failover { .. } = plan.load {
        until(plan.warm_up + KILL_AFTER)?;
        runtime.block_on(broker.kill_leader(name))?;
    }
    until(plan.warm_up + plan.window)?;
    Ok(before.until_now(broker))
}

/// Waits until everything has come, or nothing comes any more.
fn drain(shared: &Shared) -> Outcome<()> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        check_interrupted()?;
        let received = shared.received.load(Ordering::Relaxed);
        if received >= shared.published.load(Ordering::Relaxed) || shared.failed.load(Ordering::Relaxed) {
            return pause(GRACE);
        }
        if received != last {
            (last, since) = (received, Instant::now());
        }
        let all_confirmed = received >= shared.confirmed.load(Ordering::Relaxed);
        if since.elapsed() > if all_confirmed { SILENCE } else { SILENCE_MAX } {
            return Ok(());
        }
        thread::sleep(LOOK_PAUSE);
    }
}

/// What machine and processes have used so far.
struct Sample {
    at: Instant,
    nodes: Vec<Pid>,
    servers: Used,
    clients: Duration,
    machine: Duration,
}

impl Sample {
    fn take<B: Broker>(broker: &B) -> Self {
        let nodes = broker.nodes();
        Self {
            at: Instant::now(),
            servers: used(&with_descendants(&nodes)),
            nodes,
            clients: own_cpu(),
            machine: machine_cpu(),
        }
    }

    fn forget_peaks(&self) {
        self.nodes.iter().copied().for_each(forget_peak);
    }

    fn until_now<B: Broker>(&self, broker: &B) -> Figures {
        let now = Self::take(broker);
        let seconds = (now.at - self.at).as_secs_f64();
        let cores = |after: Duration, before: Duration| after.saturating_sub(before).as_secs_f64() / seconds;
        let mib = |bytes: u64| (bytes as f64 / 1_048_576.0 * 10.0).round() / 10.0;
        let memory: Vec<_> = now.nodes.iter().map(|pid| resident(*pid)).collect();
        let server_cores = cores(now.servers.cpu, self.servers.cpu);
        let client_cores = cores(now.clients, self.clients);
        let busy_cores = cores(now.machine, self.machine);
        Figures {
            seconds,
            nodes: now.nodes.len() as u32,
            server_cores,
            client_cores,
            other_cores: (busy_cores - server_cores - client_cores).max(0.0),
            busy_share: busy_cores / f64::from(processors()),
            disk_bytes: now.servers.disk_bytes.saturating_sub(self.servers.disk_bytes),
            resident_mib: memory.iter().map(|(now, _)| mib(*now)).collect(),
            peak_mib: memory.iter().map(|(_, most)| mib(*most)).collect(),
            traffic: None,
        }
    }
}

/// What became of the messages of all producers.
struct Published {
    confirmed: Vec<Bitmap>,
    handed: u64,
    retried: u64,
    latency: Latency,
    gap: Gap,
    confirmed_in_window: u64,
}

async fn produce<C: Connector>(
    connector: C,
    shared: Arc<Shared>,
    plan: Plan,
    name: String,
    ready: mpsc::Sender<()>,
) -> Outcome<Published> {
    let mut producers = Vec::new();
    for number in 0..plan.producers {
        producers.push(connector.producer(&name, number).await?);
    }
    // Whoever would hear it has given up, and says so by `failed`.
    let _gone = ready.send(()).is_err();
    while shared.started.get().is_none() && !shared.failed.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (begin, end) = plan.window_ns();
    let published = Rc::new(RefCell::new(Published {
        confirmed: vec![Bitmap::default(); plan.producers.into()],
        handed: 0,
        retried: 0,
        latency: Latency::new(),
        gap: Gap::between(begin, end),
        confirmed_in_window: 0,
    }));
    let plan = Rc::new(plan);
    let mut tasks = Vec::new();
    for (number, producer) in (0..).zip(producers) {
        let worker = Worker {
            number,
            plan: Rc::clone(&plan),
            shared: Arc::clone(&shared),
            published: Rc::clone(&published),
            open: vec![None; OPEN_SLOTS],
            open_count: 0,
        };
        tasks.push(task::spawn_local(task::unconstrained(Box::pin(worker.run(producer)))));
    }
    for task in tasks {
        task.await.expect("producers do not panic and are not cancelled")?;
    }
    Ok(Rc::into_inner(published).expect("every task that shared it has ended").into_inner())
}

struct Worker {
    number: u16,
    plan: Rc<Plan>,
    shared: Arc<Shared>,
    published: Rc<RefCell<Published>>,
    /// Messages without confirmation, by sequence modulo their number: which, and when it was due.
    open: Vec<Option<(u32, u64)>>,
    open_count: usize,
}

impl Worker {
    async fn run<P: Producer>(mut self, mut producer: P) -> Outcome<()> {
        let mut pacer = Pacer::new().during("cannot make a timer")?;
        let end = self.plan.window_ns().1;
        let give_up = end + RESOLVE_TIME_MAX.as_nanos() as u64;
        let mut next = 0;
        let mut sending = true;
        let mut sequences = Vec::with_capacity(IN_FLIGHT);
        loop {
            let mut now = self.shared.now();
            let mut pause = PAUSE_NS_MAX;
            sending &= !self.shared.failed.load(Ordering::Relaxed);
            while sending && self.open_count < IN_FLIGHT && self.open[next as usize % OPEN_SLOTS].is_none() {
                let due = self.plan.due(self.number, next).unwrap_or(now);
                if due >= end || next == u32::MAX {
                    sending = false;
                } else if due > now {
                    pause = due - now;
                    break;
                } else if self.shared.backlog() >= self.plan.backlog() {
                    self.shared.waiting.store(true, Ordering::Relaxed);
                    pause = ROOM_PAUSE_NS;
                    break;
                } else {
                    let body = self.plan.body(Stamp { producer: self.number, sequence: next, due });
                    producer.send(next, body).await?;
                    self.open[next as usize % OPEN_SLOTS] = Some((next, due));
                    self.open_count += 1;
                    self.shared.published.fetch_add(1, Ordering::Relaxed);
                    next += 1;
                    now = self.shared.now();
                }
            }
            if !sending
                && (self.open_count == 0 || now > give_up || self.shared.failed.load(Ordering::Relaxed))
            {
                break;
            }
            tokio::select! {
                biased;
                result = producer.confirmed(&mut sequences), if self.open_count > 0 => result?,
                () = self.shared.room.notified(), if pause == ROOM_PAUSE_NS => {}
                result = pacer.pause(pause.min(PAUSE_NS_MAX)) => result.during("a timer failed")?,
            }
            self.settle(&mut sequences);
        }
        let retried = producer.close().await;
        let mut published = self.published.borrow_mut();
        published.handed += u64::from(next);
        published.retried += retried;
        Ok(())
    }

    fn settle(&mut self, sequences: &mut Vec<u32>) {
        if sequences.is_empty() {
            return;
        }
        let now = self.shared.now();
        let (begin, end) = self.plan.window_ns();
        let mut published = self.published.borrow_mut();
        for sequence in sequences.drain(..) {
            let slot = &mut self.open[sequence as usize % OPEN_SLOTS];
            // A second confirmation of a message that was repeated says nothing new.
            let Some((_, due)) = slot.take_if(|(open, _)| *open == sequence) else { continue };
            self.open_count -= 1;
            published.confirmed[usize::from(self.number)].insert(sequence);
            self.shared.confirmed.fetch_add(1, Ordering::Relaxed);
            if (begin..end).contains(&due) {
                published.latency.record_ns(now.saturating_sub(due));
            }
            published.confirmed_in_window += u64::from((begin..end).contains(&now));
        }
        published.gap.event(now);
    }
}

/// What was delivered.
struct Delivered {
    seen: Vec<Bitmap>,
    /// By line of messages whose order counts.
    highest: Vec<Option<u32>>,
    duplicated: u64,
    out_of_order: u64,
    latency: Latency,
    gap: Gap,
    in_window: u64,
}

impl Delivered {
    fn new(plan: &Plan) -> Self {
        let (begin, end) = plan.window_ns();
        Self {
            seen: vec![Bitmap::default(); plan.producers.into()],
            highest: vec![None; usize::from(plan.producers) * KEYS as usize],
            duplicated: 0,
            out_of_order: 0,
            latency: Latency::new(),
            gap: Gap::between(begin, end),
            in_window: 0,
        }
    }

    /// One message came. True: for the first time.
    fn take(&mut self, plan: &Plan, body: &[u8], again: bool, now: u64) -> bool {
        let Some(stamp) = plan.stamp(body) else { return false };
        let (begin, end) = plan.window_ns();
        let producer = usize::from(stamp.producer);
        self.gap.event(now);
        if !self.seen[producer].insert(stamp.sequence) {
            self.duplicated += 1;
            return false;
        }
        // A repeated delivery may come late; a first one may not.
        if let Some(line) = plan.line(stamp) {
            let highest = &mut self.highest[line];
            self.out_of_order += u64::from(!again && *highest > Some(stamp.sequence));
            *highest = (*highest).max(Some(stamp.sequence));
        }
        if (begin..end).contains(&stamp.due) {
            self.latency.record_ns(now.saturating_sub(stamp.due));
        }
        self.in_window += u64::from((begin..end).contains(&now));
        true
    }
}

async fn consume<C: Connector>(
    connector: C,
    shared: Arc<Shared>,
    plan: Plan,
    name: String,
    ready: mpsc::Sender<()>,
) -> Outcome<Delivered> {
    let mut consumer = connector.consumer(&name).await?;
    // Whoever would hear it has given up, and says so by `failed`.
    let _gone = ready.send(()).is_err();
    let mut delivered = Delivered::new(&plan);
    let mut messages: Vec<Received<_>> = Vec::new();
    loop {
        tokio::select! {
            biased;
            result = consumer.receive(&mut messages) => result?,
            () = shared.finished.notified() => break,
        }
        let now = shared.now();
        let mut fresh = 0;
        for Received { body, again, token } in messages.drain(..) {
            fresh += u64::from(delivered.take(&plan, &body, again, now));
            consumer.acknowledge(token).await?;
        }
        shared.received.fetch_add(fresh, Ordering::Relaxed);
        if shared.waiting.swap(false, Ordering::Relaxed) {
            shared.room.notify_waiters();
        }
    }
    consumer.close().await;
    Ok(delivered)
}

fn traffic(plan: &Plan, published: Published, delivered: &Delivered, figures: &mut Figures) -> Traffic {
    let confirmed: u64 = published.confirmed.iter().map(Bitmap::len).sum();
    let seen: u64 = delivered.seen.iter().map(Bitmap::len).sum();
    let window = plan.window.as_secs_f64();
    let per_message = |total: f64| total / delivered.in_window.max(1) as f64;
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    Traffic {
        published: published.handed,
        confirmed,
        delivered: seen,
        lost: published.confirmed.iter().zip(&delivered.seen).map(|(one, seen)| one.missing_in(seen)).sum(),
        undelivered: published.handed.saturating_sub(seen),
        unconfirmed: published.handed - confirmed,
        duplicated: delivered.duplicated,
        out_of_order: (plan.in_order != InOrder::None).then_some(delivered.out_of_order),
        retried: published.retried,
        per_s: delivered.in_window as f64 / window,
        confirmed_per_s: published.confirmed_in_window as f64 / window,
        delivery_ms: delivered.latency.report(),
        confirmation_ms: published.latency.report(),
        server_us_per_message: per_message(figures.server_cores * figures.seconds * 1e6),
        client_us_per_message: per_message(figures.client_cores * figures.seconds * 1e6),
        disk_bytes_per_message: per_message(figures.disk_bytes as f64),
        publish_gap_ms: millis(published.gap.longest()),
        delivery_gap_ms: millis(delivered.gap.longest()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let second = Duration::from_secs(1);
        Plan {
            run: 1,
            load: Load::Saturation { size: 64 },
            producers: 2,
            warm_up: second,
            window: second,
            in_order: InOrder::Producer,
        }
    }

    #[test]
    fn a_second_delivery_is_a_duplicate_and_a_late_first_one_is_out_of_order() {
        let plan = plan();
        let mut delivered = Delivered::new(&plan);
        let mut take = |producer, sequence, again| {
            let body = plan.body(Stamp { producer, sequence, due: 1_500_000_000 });
            delivered.take(&plan, &body, again, 1_600_000_000)
        };
        assert!(take(0, 0, false) && take(0, 2, false) && take(1, 0, false));
        assert!(take(0, 1, true), "a repeated delivery may be overtaken");
        assert!(!take(0, 2, true));
        assert!(take(1, 5, false) && take(1, 4, false));
        assert!(!delivered.take(&plan, b"of somebody else", false, 1_600_000_000));
        assert_eq!((delivered.duplicated, delivered.out_of_order, delivered.in_window), (1, 1, 6));
    }

    #[test]
    fn only_what_was_due_in_the_window_counts_for_latency() {
        let plan = plan();
        let mut delivered = Delivered::new(&plan);
        for (sequence, due, now) in [
            (0, 500_000_000, 1_100_000_000),
            (1, 1_000_000_000, 1_004_000_000),
            (2, 1_900_000_000, 2_500_000_000),
        ] {
            delivered.take(&plan, &plan.body(Stamp { producer: 0, sequence, due }), false, now);
        }
        assert_eq!(delivered.in_window, 2, "came within the window");
        let report = delivered.latency.report();
        assert!((report.p50 - 4.0).abs() < 0.1 && (report.max - 600.0).abs() < 1.0, "{report:?}");
    }
}
