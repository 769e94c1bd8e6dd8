//! The producers of a load test: one task each, paced by the schedule and not by the answers.

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::Serialize;
use swarmmq_client::{Error, Message, Options, Pending, Producer, ProducerOptions, Receipt, SwarmMq};
use swarmmq_protocol::{admin::Order, error::Outcome, id::ShardId, policy::Policy};
use tokio::{io::unix::AsyncFd, task};

use super::{
    Shared,
    plan::{KEYS, Plan, Stamp},
};
use crate::{
    discover::CLOSE_TIME_MAX,
    measure::{Bitmap, Gap, Latency, LatencyReport},
    output::{Failure, Outcomes},
};

/// Time after the load in which what is open may still find its fate.
const RESOLVE_TIME_MAX: Duration = Duration::from_secs(60);
/// Shortest pause between bursts: at high rates a few messages go together. Grows with the number of producers.
const PAUSE_NS_MIN: u64 = 100_000;
/// Longest pause: how late a wish to stop is noticed.
const PAUSE_NS_MAX: u64 = 50_000_000;
/// Producers that share the shortest pause.
const PRODUCERS_PER_PAUSE: u64 = 4;

/// What became of the messages of one cohort.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OfPolicy {
    pub(super) policy: &'static str,
    pub(super) published: u64,
    /// In time.
    pub(super) acknowledged: u64,
    /// From when they were to be sent to their answers; of those that were answered in time.
    pub(super) latency_us: LatencyReport,
}

/// What became of all messages.
#[derive(Debug)]
pub(super) struct Published {
    producers: Vec<One>,
    pub(super) handed: u64,
    pub(super) failed: u64,
    pub(super) first_error: Option<Error>,
    pub(super) latency: Latency,
    pub(super) longest_gap: Duration,
    pub(super) last_ack_ns: u64,
}

impl Published {
    pub(super) fn acknowledged(&self) -> u64 {
        self.producers.iter().map(|one| one.acknowledged.len()).sum()
    }

    /// What became of the messages that were spread by one policy.
    pub(super) fn of_policy(&self, plan: &Plan, policy: Policy) -> OfPolicy {
        let mut latency = Latency::new();
        let mut of =
            OfPolicy { policy: policy.name(), published: 0, acknowledged: 0, latency_us: latency.report() };
        for (number, one) in (0..).zip(&self.producers) {
            if plan.policy(number) == Some(policy) {
                of.published += one.handed;
                of.acknowledged += one.acknowledged.len();
                latency.add(&one.latency);
            }
        }
        of.latency_us = latency.report();
        of
    }

    /// If they were kept, the times of all messages: producer, sequence, when it was due and when it was acknowledged.
    pub(super) fn times(&self) -> impl Iterator<Item = (u16, u32, u64, Option<u64>)> {
        (0..).zip(&self.producers).flat_map(|(producer, one)| {
            one.times
                .iter()
                .map(move |(sequence, (due, acknowledged))| (producer, *sequence, *due, *acknowledged))
        })
    }

    pub(super) fn acknowledged_by_producer(&self) -> Vec<Bitmap> {
        self.producers.iter().map(|one| one.acknowledged.clone()).collect()
    }

    /// Acknowledged and not seen.
    pub(super) fn missing_in(&self, seen: &[Bitmap]) -> u64 {
        self.producers.iter().zip(seen).map(|(one, seen)| one.acknowledged.missing_in(seen)).sum()
    }

    /// Neither acknowledged nor refused nor seen: a delivery resolves what the answer did not.
    pub(super) fn unknown(&self, seen: &[Bitmap]) -> u64 {
        let of =
            |(one, seen): (&One, &Bitmap)| one.unknown.iter().filter(|n| !seen.contains(**n)).count() as u64;
        self.producers.iter().zip(seen).map(of).sum()
    }
}

/// What became of one producer's messages.
#[derive(Debug)]
struct One {
    acknowledged: Bitmap,
    unknown: Vec<u32>,
    handed: u64,
    failed: u64,
    first_error: Option<Error>,
    latency: Latency,
    /// If wanted: when each message was due and when it was acknowledged, in nanoseconds since the start, by sequence.
    times: BTreeMap<u32, (u64, Option<u64>)>,
    gaps: BTreeMap<ShardId, Gap>,
    /// Of messages whose answer never came, in whichever shard.
    unanswered: Gap,
    last_ack_ns: u64,
}

struct InFlight {
    sequence: u32,
    scheduled: u64,
    handed: u64,
    pending: Pending,
}

/// Publishes everything and waits for the fate of every message.
pub(super) async fn run(plan: Arc<Plan>, options: Options, shared: Arc<Shared>) -> Outcomes<Published> {
    let client = SwarmMq::connect(options).await?;
    let mut tasks = Vec::new();
    for number in 0..plan.producers {
        let producer = client.producer(ProducerOptions {
            in_flight: plan.in_flight,
            deadline: plan.deadline.unwrap_or(plan.duration + RESOLVE_TIME_MAX),
            order: Some(plan.order),
            policy: plan.policy(number),
            compress: false,
        });
        let pacer = Pacer::new().map_err(|error| {
            Failure::local(format!("cannot make a timer: {error}"), "check process limits")
        })?;
        let worker = Worker {
            plan: Arc::clone(&plan),
            shared: Arc::clone(&shared),
            number,
            keys: plan.keys(number),
            in_flight: VecDeque::with_capacity(plan.in_flight),
            one: One {
                acknowledged: Bitmap::default(),
                unknown: Vec::new(),
                handed: 0,
                failed: 0,
                first_error: None,
                latency: Latency::new(),
                times: BTreeMap::new(),
                gaps: BTreeMap::new(),
                unanswered: Gap::default(),
                last_ack_ns: 0,
            },
        };
        // Looking at many answers in a row must not count as hogging the thread: the next look would begin anew.
        tasks.push(tokio::spawn(task::unconstrained(worker.run(producer, pacer))));
    }
    let mut published = Published {
        producers: Vec::new(),
        handed: 0,
        failed: 0,
        first_error: None,
        latency: Latency::new(),
        longest_gap: Duration::ZERO,
        last_ack_ns: 0,
    };
    for one in tasks {
        let one = one.await.expect("producers' tasks do not panic and are not cancelled")?;
        published.handed += one.handed;
        published.failed += one.failed;
        published.first_error = published.first_error.take().or_else(|| one.first_error.clone());
        published.latency.add(&one.latency);
        published.last_ack_ns = published.last_ack_ns.max(one.last_ack_ns);
        let longest = one.gaps.values().chain([&one.unanswered]).map(Gap::longest).max();
        published.longest_gap = published.longest_gap.max(longest.unwrap_or_default());
        published.producers.push(one);
    }
    client.close().await;
    Ok(published)
}

struct Worker {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    number: u16,
    keys: Vec<Bytes>,
    in_flight: VecDeque<InFlight>,
    one: One,
}

impl Worker {
    async fn run(mut self, producer: Producer, mut pacer: Pacer) -> Outcomes<One> {
        let end = u64::try_from(self.plan.duration.as_nanos()).unwrap_or(u64::MAX);
        let pause_min = PAUSE_NS_MIN * u64::from(self.plan.producers).div_ceil(PRODUCERS_PER_PAUSE);
        let mut next = 0;
        let mut sending = true;
        loop {
            let mut now = self.plan.now();
            sending &= !self.shared.stop.load(Ordering::Relaxed);
            let mut due = now;
            while sending && self.in_flight.len() < self.plan.in_flight {
                due = self.plan.schedule(self.number, next).unwrap_or(now);
                if due >= end || next == u32::MAX {
                    sending = false;
                } else if due > now {
                    break;
                } else {
                    self.hand_over(&producer, next, due, now).await?;
                    next += 1;
                    now = self.plan.now();
                }
            }
            if !sending && self.in_flight.is_empty() {
                break;
            }
            let has_room = sending && self.in_flight.len() < self.plan.in_flight;
            let pause = due.saturating_sub(now).clamp(pause_min, PAUSE_NS_MAX.max(pause_min));
            tokio::select! {
                biased;
                () = poll_fn(|context| self.take_answers(context)) => {}
                result = pacer.pause(pause), if has_room => result.map_err(|error| {
                    Failure::local(format!("a timer failed: {error}"), "check process limits")
                })?,
            }
        }
        // Everything has its fate: what is left is courtesy, which a shard that is gone does not return.
        let _in_time = tokio::time::timeout(CLOSE_TIME_MAX, producer.close()).await.is_ok();
        Ok(self.one)
    }

    async fn hand_over(
        &mut self,
        producer: &Producer,
        sequence: u32,
        scheduled: u64,
        now: u64,
    ) -> Outcomes<()> {
        let body = self.plan.body(Stamp { run: self.plan.run, producer: self.number, sequence, scheduled });
        let mut message = Message::new(self.plan.address.as_str(), body);
        if !self.keys.is_empty() {
            message.key = Some(self.keys[(sequence % KEYS) as usize].clone());
        }
        let pending = producer.enqueue(message).await?;
        self.one.handed += 1;
        self.in_flight.push_back(InFlight { sequence, scheduled, handed: now, pending });
        Ok(())
    }

    /// Takes the answers that are there; ready if there was one. Within one shard they come in order, so there the
    /// oldest message tells whether to look further.
    fn take_answers(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let now = self.plan.now();
        let before = self.in_flight.len();
        if self.plan.order == Order::Total {
            while let Some(oldest) = self.in_flight.front_mut() {
                let Poll::Ready(result) = Pin::new(&mut oldest.pending).poll(context) else { break };
                let sent = self.in_flight.pop_front().expect("looked at above");
                self.one.settle(&sent, result, now, &self.shared, &self.plan);
            }
        } else {
            let (one, shared, plan) = (&mut self.one, &self.shared, &self.plan);
            self.in_flight.retain_mut(|sent| match Pin::new(&mut sent.pending).poll(context) {
                Poll::Ready(result) => {
                    one.settle(sent, result, now, shared, plan);
                    false
                }
                Poll::Pending => true,
            });
        }
        if self.in_flight.len() < before { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl One {
    fn settle(
        &mut self,
        sent: &InFlight,
        result: Result<Receipt, Error>,
        now: u64,
        shared: &Shared,
        plan: &Plan,
    ) {
        if plan.samples {
            self.times.insert(sent.sequence, (sent.scheduled, result.is_ok().then_some(now)));
        }
        match result {
            Ok(receipt) => {
                self.acknowledged.insert(sent.sequence);
                self.latency.record_ns(now.saturating_sub(sent.scheduled));
                self.gaps.entry(receipt.shard).or_default().progress(sent.handed, now);
                self.last_ack_ns = now;
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                if error.outcome() == Outcome::Unknown {
                    self.unknown.push(sent.sequence);
                    self.unanswered.gave_up(sent.handed, now);
                } else {
                    self.failed += 1;
                    // Where nothing but time ends a message, the next ones would fail as well, only faster.
                    if plan.deadline.is_none() {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                }
                self.first_error.get_or_insert(error);
            }
        }
    }
}

/// A timer of the kernel: the runtime's own counts milliseconds, which is coarser than what is measured here.
struct Pacer(AsyncFd<OwnedFd>);

impl Pacer {
    fn new() -> std::io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe; an `OwnedFd` keeps every promise that it asks for"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self(timer))
    }

    /// Safe to cancel: setting the timer forgets an earlier expiry.
    async fn pause(&mut self, nanoseconds: u64) -> std::io::Result<()> {
        let nanoseconds = nanoseconds.max(1);
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: (nanoseconds / 1_000_000_000) as _,
                tv_nsec: (nanoseconds % 1_000_000_000) as _,
            },
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        let mut expiries = [0; 8];
        loop {
            let mut ready = self.0.readable().await?;
            match rustix::io::read(&self.0, &mut expiries) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
