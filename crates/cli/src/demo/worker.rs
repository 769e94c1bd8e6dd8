//! The processes of the demo: a producer and a consumer that tell the judge, line by line, what happened to them.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use swarmmq_client::{Error, Message, Pending, ProducerOptions, Receipt, SubscribeOptions};
use swarmmq_protocol::error::Outcome;

use crate::{
    discover::{CONNECT_TIME_MAX, Target},
    output::{Failure, Outcomes, print},
};

/// Time for a message to find its fate. With the duration of the load it is far below the demo's own limit.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// Acknowledgements under way.
const ACKS_MAX: usize = 256;

/// One line from a worker to the judge. Times are nanoseconds of the machine's monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum News {
    Acknowledged {
        producer: u16,
        sequence: u32,
        handed_ns: u64,
        now_ns: u64,
    },
    Unknown {
        producer: u16,
        sequence: u32,
        handed_ns: u64,
        now_ns: u64,
    },
    /// `late`: at its first attempt, after a later one of the same producer came to the same consumer.
    Delivered {
        producer: u16,
        sequence: u32,
        handed_ns: u64,
        now_ns: u64,
        late: bool,
        /// Flagged as a later attempt.
        again: bool,
    },
    /// A consumer waits for messages.
    Subscribed,
    Done,
    Failed {
        message: String,
    },
}

/// What a producer sends.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProducerArgs {
    #[arg(long)]
    address: String,
    #[arg(long)]
    number: u16,
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    #[arg(long)]
    seconds: u32,
}

/// What a consumer receives.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConsumerArgs {
    #[arg(long)]
    address: String,
}

pub(super) fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// A worker whose judge has died has nobody to work for.
fn end_with_parent() -> Outcomes<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| {
        Failure::local(format!("cannot tie this process to its parent: {error}"), "run it again")
    })
}

fn told<T>(result: Outcomes<T>) -> Outcomes<T> {
    result.inspect_err(|failure| print(&News::Failed { message: failure.message.clone() }))
}

struct InFlight {
    sequence: u32,
    handed_ns: u64,
    pending: Pending,
}

/// `demo-producer`.
pub(crate) async fn produce(args: &ProducerArgs, target: &Target) -> Outcomes<u8> {
    end_with_parent()?;
    told(publish(args, target).await)?;
    print(&News::Done);
    Ok(0)
}

async fn publish(args: &ProducerArgs, target: &Target) -> Outcomes<()> {
    let client = target.connect(CONNECT_TIME_MAX).await?;
    let producer = client.producer(ProducerOptions { deadline: DEADLINE, ..ProducerOptions::default() });
    let window = ProducerOptions::default().in_flight;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / args.rate);
    let mut in_flight: VecDeque<InFlight> = VecDeque::new();
    let mut next = 0;
    let last = args.rate * args.seconds;
    while next < last || !in_flight.is_empty() {
        tokio::select! {
            biased;
            result = fate(&mut in_flight) => {
                let (sent, result) = result;
                let (producer, sequence) = (args.number, sent.sequence);
                let (handed_ns, now_ns) = (sent.handed_ns, now_ns());
                match result {
                    Ok(_) => print(&News::Acknowledged { producer, sequence, handed_ns, now_ns }),
                    Err(error) if error.outcome() == Outcome::Unknown => {
                        print(&News::Unknown { producer, sequence, handed_ns, now_ns });
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            _ = ticks.tick(), if next < last && in_flight.len() < window => {
                let handed_ns = now_ns();
                let body = format!("{} {next} {handed_ns}", args.number);
                let pending = producer.enqueue(Message::new(&args.address, body)).await?;
                in_flight.push_back(InFlight { sequence: next, handed_ns, pending });
                next += 1;
            }
        }
    }
    producer.close().await;
    client.close().await;
    Ok(())
}

/// The fate of the oldest message; never, if there is none. Safe to cancel.
async fn fate(in_flight: &mut VecDeque<InFlight>) -> (InFlight, Result<Receipt, Error>) {
    match in_flight.front_mut() {
        None => std::future::pending().await,
        Some(oldest) => {
            let result = (&mut oldest.pending).await;
            (in_flight.pop_front().expect("looked at above"), result)
        }
    }
}

/// `demo-consumer`: runs until it is ended.
pub(crate) async fn consume(args: &ConsumerArgs, target: &Target) -> Outcomes<u8> {
    end_with_parent()?;
    told(receive(args, target).await)?;
    Ok(0)
}

async fn receive(args: &ConsumerArgs, target: &Target) -> Outcomes<()> {
    let client = target.connect(CONNECT_TIME_MAX).await?;
    let mut consumer = client.subscribe(&args.address, SubscribeOptions::default()).await?;
    print(&News::Subscribed);
    let mut acks = VecDeque::new();
    let mut latest: BTreeMap<u16, u32> = BTreeMap::new();
    while let Some(received) = consumer.next().await {
        let received = received?;
        let (producer, sequence, handed_ns) = parts(&received.body).ok_or_else(|| {
            Failure::new(1, "demo", "a message is not what was sent", "this must never happen")
        })?;
        let latest = latest.entry(producer).or_default();
        let late = received.attempt == 1 && sequence < *latest;
        *latest = sequence.max(*latest);
        // Told first, acknowledged then: what is acknowledged was certainly seen.
        print(&News::Delivered {
            producer,
            sequence,
            handed_ns,
            now_ns: now_ns(),
            late,
            again: received.attempt > 1,
        });
        acks.push_back(received.ack_later());
        if acks.len() > ACKS_MAX
            && let Some(ack) = acks.pop_front()
        {
            // A lease that was lost shows as a duplicate; the judge counts those.
            let _lost = ack.await.is_err();
        }
    }
    Err(Error::Closed.into())
}

fn parts(body: &Bytes) -> Option<(u16, u32, u64)> {
    let text = std::str::from_utf8(body).ok()?;
    let mut parts = text.split(' ');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_survive_the_pipe() {
        for news in [
            News::Acknowledged { producer: 1, sequence: 2, handed_ns: 3, now_ns: 4 },
            News::Unknown { producer: 1, sequence: 2, handed_ns: 3, now_ns: 4 },
            News::Delivered { producer: 1, sequence: 2, handed_ns: 3, now_ns: 4, late: true, again: false },
            News::Subscribed,
            News::Done,
            News::Failed { message: "x".into() },
        ] {
            let line = serde_json::to_string(&news).unwrap();
            assert_eq!(serde_json::from_str::<News>(&line).unwrap(), news);
        }
        assert_eq!(parts(&Bytes::from("1 2 3")), Some((1, 2, 3)));
        assert_eq!(parts(&Bytes::from("1 2")), None);
    }
}
