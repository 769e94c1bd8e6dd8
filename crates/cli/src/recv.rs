//! `recv`: prints messages, and acknowledges each after its line has left this process.

use std::{collections::BTreeMap, io::Write, time::Duration};

use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use swarmmq_client::{Consumer, Error, Received, Seen, SubscribeOptions, SwarmMq};
use swarmmq_protocol::frame::StartAt;
use tokio::time::Instant;

use crate::{
    acks::Acks,
    address,
    discover::{CLOSE_TIME_MAX, CONNECT_TIME_MAX, Target},
    group,
    output::{Failure, Outcomes, base64, note},
    parse, signals,
};

/// Messages held at a time, at most.
const CREDIT_MAX: u64 = 256;
/// Lines printed before they are flushed, at most.
const LINES_PER_FLUSH: usize = 256;
/// Messages that cannot be opened are told of one by one, up to so many; then they are only counted.
const UNOPENED_TOLD_MAX: u64 = 10;

/// What to receive.
#[derive(Args, Clone, Debug)]
pub(crate) struct RecvArgs {
    /// From where, e.g. shop.orders
    address: String,
    /// Consumers of one group share the messages
    #[arg(long, default_value = "default", conflicts_with = "peek")]
    group: String,
    /// End after so many
    #[arg(short = 'n', long = "number", value_name = "N")]
    number: Option<u64>,
    /// Where a new group begins: start, end, or a time (2026-01-31T12:00:00Z, seconds since 1970, -1h)
    #[arg(long, value_name = "WHERE", allow_hyphen_values = true, value_parser = parse::start)]
    from: Option<StartAt>,
    /// Look without taking, in no group; ends with what is there now, or after N
    #[arg(long)]
    peek: bool,
    /// How long to wait for a missing payload key before messages that need it become dead letters
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse::duration)]
    key_patience: Duration,
    /// End after this time; exit 8 if that is before N messages
    #[arg(long, value_name = "S", value_parser = parse::duration)]
    timeout: Option<Duration>,
}

/// One message, as printed.
#[derive(Serialize)]
struct Line<'a> {
    id: String,
    address: &'a str,
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    headers: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    shard: u32,
    offset: u64,
    attempt: u32,
    published_at: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    dead_reason: &'a str,
}

impl<'a> Line<'a> {
    fn texts(key: Option<&'a Bytes>, headers: &'a [(String, Bytes)], body: &'a Bytes) -> Self {
        let key_text = key.map(|key| std::str::from_utf8(key).ok());
        let body_text = std::str::from_utf8(body).ok();
        Self {
            id: String::new(),
            address: "",
            key: key_text.flatten().map(str::to_owned),
            key_base64: key.filter(|_| key_text == Some(None)).map(|key| base64(key)),
            headers: headers
                .iter()
                .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value).into_owned()))
                .collect(),
            body: body_text,
            body_base64: body_text.is_none().then(|| base64(body)),
            shard: 0,
            offset: 0,
            attempt: 0,
            published_at: String::new(),
            dead_reason: "",
        }
    }

    fn received(message: &'a Received) -> Self {
        Self {
            id: message.id.to_string(),
            address: &message.address,
            shard: message.shard.0,
            offset: message.offset.0,
            attempt: message.attempt,
            published_at: parse::rfc3339(message.published_at),
            dead_reason: &message.dead_reason,
            ..Self::texts(message.key.as_ref(), &message.headers, &message.body)
        }
    }

    fn seen(message: &'a Seen) -> Self {
        Self {
            id: message.id.to_string(),
            address: &message.address,
            shard: message.shard.0,
            offset: message.offset.0,
            published_at: parse::rfc3339(message.published_at),
            dead_reason: &message.dead_reason,
            ..Self::texts(message.key.as_ref(), &message.headers, &message.body)
        }
    }
}

/// Standard output: lines are buffered until they are flushed together.
struct Out {
    buffer: Vec<u8>,
    as_json: bool,
}

impl Out {
    fn line(&mut self, line: &Line<'_>, body: &[u8]) {
        if self.as_json {
            serde_json::to_writer(&mut self.buffer, line).expect("plain fields can be written to memory");
        } else {
            self.buffer.extend_from_slice(body);
        }
        self.buffer.push(b'\n');
    }

    /// False: nobody reads any more.
    fn flush(&mut self) -> bool {
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_all(&self.buffer).and_then(|()| stdout.flush()).is_ok();
        self.buffer.clear();
        written
    }
}

enum End {
    Enough,
    TimeOut,
    Signal,
    OutputClosed,
}

/// The command.
pub(crate) async fn run(args: &RecvArgs, target: &Target, as_json: bool) -> Outcomes<u8> {
    address::address(&args.address)?;
    group::name(&args.group)?;
    let until = args.timeout.map(|timeout| Instant::now() + timeout);
    let connect_time = args.timeout.unwrap_or(CONNECT_TIME_MAX).min(CONNECT_TIME_MAX);
    let stopped = |what: &str| Err(Failure::interrupted(false, format!("interrupted {what}")));
    if args.peek {
        return tokio::select! {
            biased;
            result = look(args, target, connect_time, as_json) => result,
            signal = signals::wait() => {
                signal?;
                stopped("before everything was looked at")
            }
        };
    }
    tokio::select! {
        biased;
        // Later, while messages are held, the loop itself listens to signals.
        result = prepare(args, target, connect_time) => {
            let (client, consumer) = result?;
            receive(args, client, consumer, until, as_json).await
        }
        signal = signals::wait() => {
            signal?;
            stopped("before anything was received")
        }
    }
}

async fn prepare(args: &RecvArgs, target: &Target, connect_time: Duration) -> Outcomes<(SwarmMq, Consumer)> {
    let client = target.connect(connect_time).await?;
    let credit = args.number.unwrap_or(CREDIT_MAX).clamp(1, CREDIT_MAX) as u32;
    let options = SubscribeOptions {
        group: args.group.clone(),
        start: args.from,
        credit_messages: credit,
        key_patience: args.key_patience,
        ..SubscribeOptions::default()
    };
    let consumer = client.subscribe(&args.address, options).await?;
    Ok((client, consumer))
}

/// Prints page by page what is there. A message that cannot be opened is told of on standard error and passed over: it
/// must not hide the others. The command then ends with its exit code, after the last message.
async fn look(args: &RecvArgs, target: &Target, connect_time: Duration, as_json: bool) -> Outcomes<u8> {
    let client = target.connect(connect_time).await?;
    let number = args.number.map_or(usize::MAX, |number| usize::try_from(number).unwrap_or(usize::MAX));
    let mut peeking = client.peek_pages(&args.address, args.from, number).await?;
    let mut out = Out { buffer: Vec::new(), as_json };
    let mut seen: u64 = 0;
    let mut unopened = Unopened::default();
    while let Some(page) = peeking.next_page().await? {
        for message in page {
            seen += 1;
            match message {
                Ok(message) => out.line(&Line::seen(&message), &message.body),
                Err(error) => unopened.tell("passed over", error),
            }
        }
        if !out.flush() {
            // Whoever closed the pipe has seen enough.
            break;
        }
    }
    unopened.into_failure(seen).map_or(Ok(0), Err)
}

/// Messages that came and could not be opened.
#[derive(Default)]
struct Unopened {
    first: Option<Error>,
    count: u64,
}

impl Unopened {
    fn tell(&mut self, fate: &str, error: Error) {
        self.count += 1;
        if self.count <= UNOPENED_TOLD_MAX {
            note(format!("{fate}: {error}"));
        }
        self.first.get_or_insert(error);
    }

    fn into_failure(self, seen: u64) -> Option<Failure> {
        let failure = Failure::from(self.first?);
        let message =
            format!("{} of {seen} messages cannot be opened; the first: {}", self.count, failure.message);
        Some(Failure { message, ..failure })
    }
}

async fn receive(
    args: &RecvArgs,
    client: SwarmMq,
    mut consumer: Consumer,
    until: Option<Instant>,
    as_json: bool,
) -> Outcomes<u8> {
    let mut acks = Acks::default();
    let mut printed = 0;
    let mut unopened = Unopened::default();
    let result =
        print_until_end(args, &mut consumer, until, as_json, &mut acks, (&mut printed, &mut unopened)).await;
    acks.finish().await;
    // What was not acknowledged goes back to the group at once; without a connection, when its lease runs out.
    let _in_time = tokio::time::timeout(CLOSE_TIME_MAX, consumer.close()).await.is_ok();
    client.close().await;
    if acks.failed() > 0 {
        note(format!(
            "{} messages that were printed are not known to be acknowledged and may come again",
            acks.failed()
        ));
    }
    let seen = printed + unopened.count;
    let failure = acks.into_error().map(Failure::from);
    let end = result?;
    let failure = failure.or(unopened.into_failure(seen));
    match (end, failure) {
        (_, Some(failure)) => Err(failure),
        (End::Enough, None) => Ok(0),
        (End::TimeOut, None) => match args.number {
            None => Ok(0),
            Some(number) => Err(Failure::new(
                8,
                "timeout",
                format!("{printed} of {number} messages came in time"),
                "give a longer --timeout, or look with `swarmmq address info`",
            )),
        },
        (End::Signal, None) => {
            Err(Failure::interrupted(false, format!("interrupted after {printed} messages")))
        }
        (End::OutputClosed, None) => Err(Failure::new(
            1,
            "output_closed",
            "nobody reads the output; what was not printed goes back",
            "",
        )),
    }
}

async fn print_until_end(
    args: &RecvArgs,
    consumer: &mut Consumer,
    until: Option<Instant>,
    as_json: bool,
    acks: &mut Acks,
    (printed, unopened): (&mut u64, &mut Unopened),
) -> Outcomes<End> {
    let mut out = Out { buffer: Vec::new(), as_json };
    let mut stop = std::pin::pin!(signals::wait());
    let left = |printed: u64| args.number.map_or(u64::MAX, |number| number.saturating_sub(printed));
    while left(*printed) > 0 {
        let mut next = tokio::select! {
            biased;
            signal = &mut stop => {
                signal?;
                return Ok(End::Signal);
            }
            () = sleep_until(until) => return Ok(End::TimeOut),
            next = consumer.next() => next,
        };
        let came = next.is_some();
        let mut held = Vec::new();
        let mut failure = None;
        while let Some(item) = next {
            match item {
                Ok(received) => {
                    out.line(&Line::received(&received), &received.body);
                    held.push(received);
                }
                // Whoever has opened something has the right keyring, so it is the message's fault.
                Err(error @ Error::Open { .. }) if *printed + held.len() as u64 > 0 => {
                    unopened.tell("a dead letter now", error);
                }
                // One message is enough to know a wrong keyring by: with it, the others would follow.
                Err(error) => failure = Some(error),
            }
            if failure.is_some() || held.len() >= LINES_PER_FLUSH || held.len() as u64 >= left(*printed) {
                break;
            }
            next = consumer.try_next();
        }
        if held.is_empty() && failure.is_none() && !came {
            // The consumer ended without a reason of its own.
            return Err(Error::Closed.into());
        }
        if !out.flush() {
            return Ok(End::OutputClosed);
        }
        *printed += held.len() as u64;
        held.iter().for_each(|received| acks.push(received.ack_later()));
        acks.reap();
        if let Some(error) = failure {
            return Err(error.into());
        }
    }
    Ok(End::Enough)
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_promised_shape() {
        let body = Bytes::from("hello");
        let line = Line {
            id: "i".into(),
            address: "a.b",
            offset: 7,
            attempt: 1,
            published_at: "1970-01-01T00:00:00.000Z".into(),
            ..Line::texts(None, &[], &body)
        };
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"id":"i","address":"a.b","key":null,"headers":{},"body":"hello","shard":0,"offset":7,"attempt":1,"published_at":"1970-01-01T00:00:00.000Z"}"#
        );
    }

    #[test]
    fn a_body_that_is_no_text_is_base64() {
        let (key, body) = (Bytes::from("k"), Bytes::from_static(&[0xff, 0xfe]));
        let headers = [("h".to_owned(), Bytes::from("v"))];
        let value = serde_json::to_value(Line::texts(Some(&key), &headers, &body)).unwrap();
        assert_eq!((&value["body"], &value["body_base64"]), (&serde_json::Value::Null, &"//4=".into()));
        assert_eq!((&value["key"], &value["headers"]["h"]), (&"k".into(), &"v".into()));
        let value = serde_json::to_value(Line::texts(Some(&body), &[], &key)).unwrap();
        assert_eq!((&value["key"], &value["key_base64"]), (&serde_json::Value::Null, &"//4=".into()));
    }

    #[test]
    fn acknowledged_means_flushed_before() {
        let body = Bytes::from("x");
        let mut out = Out { buffer: Vec::new(), as_json: false };
        out.line(&Line::texts(None, &[], &body), &body);
        assert_eq!(out.buffer, b"x\n");
    }
}
