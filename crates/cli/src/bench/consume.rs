//! The consumers of a load test: one task each, all on one thread, so that what was seen needs no lock.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering, mpsc},
    time::Duration,
};

use swarmmq_client::{Consumer, Error, Options, Received, SubscribeOptions, SwarmMq};
use swarmmq_protocol::{
    admin::{AdminAnswer, AdminRequest},
    id::ShardId,
};
use tokio::{
    sync::{Notify, oneshot, watch},
    task::LocalSet,
    time::Instant,
};

use super::{Shared, plan::Plan};
use crate::{
    acks::Acks,
    discover::CLOSE_TIME_MAX,
    measure::{Bitmap, Gap, Latency},
    output::{Failure, Outcomes, note},
};

const GROUP: &str = "bench";
/// Messages each consumer may hold.
const CREDIT_MESSAGES: u32 = 1024;
/// Time without any delivery after which what is missing counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Time for the last settlements to be committed.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(30);
/// Pause between looks at the group.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// What was seen.
#[derive(Debug)]
pub(super) struct Delivered {
    /// By producer.
    pub(super) seen: Vec<Bitmap>,
    pub(super) duplicated: u64,
    pub(super) out_of_order: u64,
    pub(super) strangers: u64,
    /// Came and could not be opened; these are dead letters now.
    pub(super) undecryptable: u64,
    pub(super) first_undecryptable: Option<Error>,
    pub(super) latency: Latency,
    /// If wanted: when each message came first, in nanoseconds since the start, by producer and sequence.
    pub(super) times: BTreeMap<(u16, u32), u64>,
    pub(super) last_ns: u64,
    gaps: BTreeMap<ShardId, Gap>,
    unsettled: u64,
    /// Why the first of those was not settled.
    unsettled_why: Option<Error>,
    /// Where the first duplicate lies, which attempt it was and when it came, in nanoseconds.
    first_duplicate: Option<(ShardId, u64, u32, u64)>,
    /// Messages still to come, once it is known which ones must.
    missing: Option<Missing>,
}

#[derive(Debug)]
struct Missing {
    acknowledged: Vec<Bitmap>,
    count: u64,
}

impl Delivered {
    fn new(plan: &Plan) -> Self {
        Self {
            seen: vec![Bitmap::default(); plan.producers.into()],
            duplicated: 0,
            out_of_order: 0,
            strangers: 0,
            undecryptable: 0,
            first_undecryptable: None,
            latency: Latency::new(),
            times: BTreeMap::new(),
            last_ns: 0,
            gaps: BTreeMap::new(),
            unsettled: 0,
            unsettled_why: None,
            first_duplicate: None,
            missing: None,
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.seen.iter().map(Bitmap::len).sum()
    }

    pub(super) fn longest_gap(&self) -> Duration {
        self.gaps.values().map(Gap::longest).max().unwrap_or_default()
    }

    fn expect(&mut self, acknowledged: Vec<Bitmap>) {
        let count = acknowledged.iter().zip(&self.seen).map(|(a, seen)| a.missing_in(seen)).sum();
        self.missing = Some(Missing { acknowledged, count });
    }

    /// Whether everything that must come has come.
    fn is_complete(&self) -> bool {
        self.missing.as_ref().is_some_and(|missing| missing.count == 0)
    }

    /// One message was given to a consumer, whose `last` holds the highest sequence it saw in each line.
    fn take(&mut self, plan: &Plan, last: &mut [Option<u32>], received: &Delivery<'_>, now: u64) {
        let Some(stamp) = plan.stamp(received.body) else {
            self.strangers += 1;
            return;
        };
        self.last_ns = now;
        if self.seen[usize::from(stamp.producer)].insert(stamp.sequence) {
            self.latency.record_ns(now.saturating_sub(stamp.scheduled));
            if plan.samples {
                self.times.insert((stamp.producer, stamp.sequence), now);
            }
            let missing = self.missing.as_mut();
            if let Some(missing) =
                missing.filter(|m| m.acknowledged[usize::from(stamp.producer)].contains(stamp.sequence))
            {
                missing.count -= 1;
            }
        } else {
            self.duplicated += 1;
            self.first_duplicate.get_or_insert((received.shard, received.offset, received.attempt, now));
        }
        self.gaps.entry(received.shard).or_default().progress(stamp.scheduled, now);
        if let Some(line) = plan.line(&stamp) {
            let last = &mut last[line];
            // A retry may come late; a first attempt may not.
            self.out_of_order += u64::from(received.attempt == 1 && *last > Some(stamp.sequence));
            *last = (*last).max(Some(stamp.sequence));
        }
    }
}

/// What matters of a received message.
struct Delivery<'a> {
    body: &'a [u8],
    shard: ShardId,
    offset: u64,
    attempt: u32,
}

impl<'a> From<&'a Received> for Delivery<'a> {
    fn from(received: &'a Received) -> Self {
        Self {
            body: &received.body,
            shard: received.shard,
            offset: received.offset.0,
            attempt: received.attempt,
        }
    }
}

/// Consumes until everything in `told` was seen and settled, or nothing comes any more.
pub(super) async fn run(
    plan: Arc<Plan>,
    options: Options,
    shared: Arc<Shared>,
    ready: mpsc::Sender<()>,
    told: oneshot::Receiver<Vec<Bitmap>>,
) -> Outcomes<Delivered> {
    LocalSet::new().run_until(run_here(plan, options, shared, ready, told)).await
}

async fn run_here(
    plan: Arc<Plan>,
    options: Options,
    shared: Arc<Shared>,
    ready: mpsc::Sender<()>,
    told: oneshot::Receiver<Vec<Bitmap>>,
) -> Outcomes<Delivered> {
    let client = SwarmMq::connect(options).await?;
    client.resolve(&plan.address, true, Some(plan.order)).await?;
    let delivered = Rc::new(RefCell::new(Delivered::new(&plan)));
    let news = Rc::new(Notify::new());
    let (stop, stopped) = watch::channel(false);
    let mut tasks = Vec::new();
    for _ in 0..plan.consumers {
        let options = SubscribeOptions {
            group: GROUP.into(),
            credit_messages: CREDIT_MESSAGES,
            ..SubscribeOptions::default()
        };
        let consumer = client.subscribe(plan.address.as_str(), options).await?;
        let worker = Worker {
            plan: Arc::clone(&plan),
            shared: Arc::clone(&shared),
            delivered: Rc::clone(&delivered),
            news: Rc::clone(&news),
            last: vec![None; plan.lines()],
            acks: Acks::default(),
        };
        tasks.push(tokio::task::spawn_local(worker.run(consumer, stopped.clone())));
    }
    // If nobody waits for this, the whole test is over.
    let _gone = ready.send(()).is_err();
    let failed = || tasks.iter().any(tokio::task::JoinHandle::is_finished);
    let mut told = std::pin::pin!(told);
    let acknowledged = loop {
        tokio::select! {
            biased;
            result = &mut told => break result.ok(),
            () = news.notified(), if !failed() => {}
            () = std::future::ready(()), if failed() => {
                // A consumer has failed: the load ends early, and the failure is told below.
                shared.stop.store(true, Ordering::Relaxed);
                break (&mut told).await.ok();
            }
        }
    };
    let mut complete = false;
    if let Some(acknowledged) = acknowledged
        && !failed()
    {
        delivered.borrow_mut().expect(acknowledged);
        complete = drain(&delivered, &news).await && settle(&client, &plan).await;
    }
    // The receivers live in the tasks; one that has failed has none.
    let _nobody = stop.send(true).is_err();
    let mut failure = None;
    for task in tasks {
        let result: Outcomes<()> = task.await.expect("consumers' tasks do not panic and are not cancelled");
        failure = failure.or(result.err());
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    let delivered = Rc::into_inner(delivered).expect("every task that shared it has ended").into_inner();
    if delivered.unsettled > 0 {
        let why = delivered.unsettled_why.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        note(format!("{} acknowledgements of deliveries were lost on the way{why}", delivered.unsettled));
    }
    if let Some((shard, offset, attempt, at)) = delivered.first_duplicate {
        let second = at as f64 / 1e9;
        note(format!(
            "the first duplicate: shard {}, offset {offset}, attempt {attempt}, after {second:.3} s",
            shard.0
        ));
    }
    if let Some(error) = &delivered.first_undecryptable {
        note(format!("the first message that is a dead letter now: {error}"));
    }
    let clean = delivered.duplicated + delivered.out_of_order + delivered.undecryptable == 0;
    if plan.fresh && complete && clean {
        let request = AdminRequest::AddressRemove { address: plan.address.clone(), dry_run: false };
        if let Err(error) = client.admin(request).await {
            note(format!("{} is left behind: {error}", plan.address));
        }
    }
    client.close().await;
    Ok(delivered)
}

/// Waits until everything has come. False: nothing comes any more.
async fn drain(delivered: &RefCell<Delivered>, news: &Notify) -> bool {
    let mut last = (delivered.borrow().last_ns, Instant::now());
    while !delivered.borrow().is_complete() {
        // Ends by itself when there is news; the time limit is for when there is none.
        let _in_time = tokio::time::timeout(Duration::from_secs(1), news.notified()).await.is_ok();
        let now = delivered.borrow().last_ns;
        if now != last.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() > SILENCE_MAX {
            return false;
        }
    }
    true
}

/// Waits until the group has nothing left to settle: a late duplicate would come before that.
async fn settle(client: &SwarmMq, plan: &Plan) -> bool {
    let deadline = Instant::now() + SETTLE_TIME_MAX;
    loop {
        let request = AdminRequest::AddressInfo { address: plan.address.clone() };
        match client.admin(request).await {
            Ok(Some(AdminAnswer::Address(info))) => {
                let group = info.groups.iter().find(|group| group.name.as_str() == GROUP);
                if group.is_none_or(|group| group.lag_messages == 0 && group.leased == 0) {
                    return true;
                }
            }
            Ok(_) => return false,
            Err(error) => note(format!("cannot look at the group: {error}")),
        }
        if Instant::now() > deadline {
            note("the group still has messages to settle");
            return false;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

struct Worker {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    delivered: Rc<RefCell<Delivered>>,
    news: Rc<Notify>,
    last: Vec<Option<u32>>,
    acks: Acks,
}

impl Worker {
    async fn run(mut self, mut consumer: Consumer, mut stopped: watch::Receiver<bool>) -> Outcomes<()> {
        let result = self.consume(&mut consumer, &mut stopped).await;
        self.acks.finish().await;
        {
            let mut delivered = self.delivered.borrow_mut();
            delivered.unsettled += self.acks.failed();
            delivered.unsettled_why = delivered.unsettled_why.take().or(self.acks.into_error());
        }
        let _in_time = tokio::time::timeout(CLOSE_TIME_MAX, consumer.close()).await.is_ok();
        self.news.notify_one();
        result
    }

    async fn consume(
        &mut self,
        consumer: &mut Consumer,
        stopped: &mut watch::Receiver<bool>,
    ) -> Outcomes<()> {
        loop {
            let mut next = tokio::select! {
                biased;
                // A dropped sender means the end as well.
                _ = stopped.changed() => return Ok(()),
                next = consumer.next() => next,
            };
            if next.is_none() {
                return Err(Failure::from(Error::Closed));
            }
            let now = self.plan.now();
            let mut burst = 0;
            while let Some(item) = next {
                let received = match item {
                    Err(error @ Error::Open { .. }) => {
                        let mut delivered = self.delivered.borrow_mut();
                        delivered.undecryptable += 1;
                        delivered.first_undecryptable.get_or_insert(error);
                        next = consumer.try_next();
                        continue;
                    }
                    other => other?,
                };
                self.delivered.borrow_mut().take(&self.plan, &mut self.last, &Delivery::from(&received), now);
                self.acks.push(received.ack_later());
                burst += 1;
                next = if burst < CREDIT_MESSAGES { consumer.try_next() } else { None };
            }
            self.shared.delivered.fetch_add(burst.into(), Ordering::Relaxed);
            if self.delivered.borrow().missing.is_some() {
                self.news.notify_one();
            }
            self.acks.reap();
        }
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::admin::Order;

    use super::{
        super::plan::{Stamp, example},
        *,
    };

    struct Story {
        plan: Plan,
        delivered: Delivered,
        last: Vec<Option<u32>>,
    }

    impl Story {
        fn new(order: Order) -> Self {
            let plan = example(order);
            Self { delivered: Delivered::new(&plan), last: vec![None; plan.lines()], plan }
        }

        fn take(&mut self, producer: u16, sequence: u32, attempt: u32) {
            let body = self.plan.body(Stamp { run: self.plan.run, producer, sequence, scheduled: 0 });
            let delivery = Delivery { body: &body, shard: ShardId(0), offset: 0, attempt };
            self.delivered.take(&self.plan, &mut self.last, &delivery, 1000);
        }

        fn verdict(&self) -> (u64, u64, u64) {
            (self.delivered.count(), self.delivered.duplicated, self.delivered.out_of_order)
        }
    }

    #[test]
    fn a_second_delivery_is_a_duplicate_and_a_late_first_attempt_is_out_of_order() {
        let mut story = Story::new(Order::Total);
        story.take(0, 0, 1);
        story.take(0, 2, 1);
        story.take(1, 0, 1);
        assert_eq!(story.verdict(), (3, 0, 0));
        assert_eq!(story.delivered.times.len(), 3);
        story.take(0, 1, 2);
        assert_eq!(story.verdict(), (4, 0, 0), "a retry may be overtaken");
        story.take(0, 2, 2);
        assert_eq!(story.verdict(), (4, 1, 0));
        story.take(1, 5, 1);
        story.take(1, 4, 1);
        assert_eq!(story.verdict(), (6, 1, 1));
    }

    #[test]
    fn keys_do_not_wait_for_each_other() {
        let mut story = Story::new(Order::Key);
        [65, 0, 64, 1].into_iter().for_each(|sequence| story.take(0, sequence, 1));
        assert_eq!(story.verdict(), (4, 0, 1), "1 after 65 is the same key, 0 and 64 are in order");
    }

    #[test]
    fn it_is_complete_when_all_that_was_acknowledged_was_seen() {
        let mut story = Story::new(Order::None);
        story.take(0, 1, 1);
        assert!(!story.delivered.is_complete());
        let mut acknowledged = vec![Bitmap::default(); 4];
        acknowledged[0].insert(1);
        acknowledged[3].insert(7);
        story.delivered.expect(acknowledged);
        assert!(!story.delivered.is_complete());
        story.take(3, 6, 1);
        story.take(3, 7, 1);
        assert!(story.delivered.is_complete());
    }

    #[test]
    fn messages_of_somebody_else_are_not_counted() {
        let mut story = Story::new(Order::Total);
        let delivery = Delivery { body: b"hello", shard: ShardId(0), offset: 0, attempt: 1 };
        story.delivered.take(&story.plan, &mut story.last, &delivery, 1000);
        assert_eq!((story.verdict(), story.delivered.strangers), ((0, 0, 0), 1));
    }
}
