//! `send`: one message, the same one several times, or one per line of standard input.

use std::{
    collections::VecDeque,
    io::{BufRead, Read},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use swarmmq_client::{Error, Message, Pending, Producer, ProducerOptions, Receipt, SwarmMq};
use swarmmq_protocol::{admin::Order, limits::PLAINTEXT_BYTES_MAX};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    address,
    discover::{CLOSE_TIME_MAX, CONNECT_TIME_MAX, Target},
    output::{Failure, Outcomes, note, print, say},
    parse, signals, status,
};

/// Lines read ahead of what was handed over.
const LINES_AHEAD: usize = 256;
/// Time without any answer after which the cluster is asked why.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time for the last answers after an interruption.
const INTERRUPTED_TIME_MAX: Duration = Duration::from_secs(1);

/// What to send.
#[derive(Args, Clone, Debug)]
pub(crate) struct SendArgs {
    /// Where to, e.g. shop.orders
    address: String,
    /// The message; `-` or a pipe: every line of standard input is one
    body: Option<String>,
    /// Messages with the same key keep their order
    #[arg(long)]
    key: Option<String>,
    /// Sealed together with the message; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse::header)]
    headers: Vec<(String, String)>,
    /// Send the message so many times
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// The order that the address must have, or is made with: total, key or none
    #[arg(long, value_parser = parse::order)]
    order: Option<Order>,
    /// Make messages shorter before they are sealed; not where a secret stands next to text that others choose, as lengths
    /// then tell
    #[arg(long)]
    compress: bool,
    /// Time for each message to be stored; then its fate counts as unknown
    #[arg(long, value_name = "S", default_value = "30", value_parser = parse::duration)]
    deadline: Duration,
}

#[derive(Serialize)]
struct Sent<'a> {
    id: String,
    address: &'a str,
    shard: u32,
    offset: Option<u64>,
    duplicate: bool,
}

impl<'a> Sent<'a> {
    fn new(address: &'a str, receipt: &Receipt) -> Self {
        Self {
            id: receipt.id.to_string(),
            address,
            shard: receipt.shard.0,
            offset: receipt.offset.map(|offset| offset.0),
            duplicate: receipt.duplicate,
        }
    }
}

/// Where bodies come from.
enum Bodies {
    Same(Bytes, u64),
    Lines(mpsc::Receiver<Outcomes<Bytes>>),
}

impl Bodies {
    fn of(args: &SendArgs) -> Outcomes<Self> {
        match &args.body {
            Some(body) if body != "-" => Ok(Self::Same(body.clone().into(), args.count)),
            _ if args.count != 1 => Err(Failure::usage(
                "--count is for one BODY, not for standard input",
                "leave one of them out",
            )),
            None if !stdin_is_given() => Err(Failure::usage(
                "no BODY and nothing piped in",
                "give a BODY, or `-` and lines on standard input",
            )),
            _ => Ok(Self::Lines(read_lines())),
        }
    }

    async fn next(&mut self) -> Option<Outcomes<Bytes>> {
        match self {
            Self::Same(_, 0) => None,
            Self::Same(body, left) => {
                *left -= 1;
                Some(Ok(body.clone()))
            }
            Self::Lines(lines) => lines.recv().await,
        }
    }
}

/// Whether somebody feeds standard input: a pipe, a socket or a file, but no terminal and no /dev/null.
fn stdin_is_given() -> bool {
    use rustix::fs::FileType;
    rustix::fs::fstat(std::io::stdin()).is_ok_and(|stat| {
        matches!(
            FileType::from_raw_mode(stat.st_mode),
            FileType::Fifo | FileType::Socket | FileType::RegularFile
        )
    })
}

/// Reads on a thread of its own, which ends with the process: reading cannot be interrupted.
fn read_lines() -> mpsc::Receiver<Outcomes<Bytes>> {
    let (sender, lines) = mpsc::channel(LINES_AHEAD);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        while let Some(line) = next_line(&mut input).transpose() {
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                return;
            }
        }
    });
    lines
}

/// The next message: a line feed ends it and is dropped; an empty line is one; what follows the last line feed is one
/// unless it is empty.
fn next_line(input: &mut impl BufRead) -> Outcomes<Option<Bytes>> {
    let mut line = Vec::new();
    let limit = PLAINTEXT_BYTES_MAX as u64 + 2;
    input.take(limit).read_until(b'\n', &mut line).map_err(|error| {
        Failure::local(format!("cannot read standard input: {error}"), "what was read before was sent")
    })?;
    if line.is_empty() {
        return Ok(None);
    }
    let whole = line.last() == Some(&b'\n');
    if whole {
        line.pop();
    }
    if line.len() > PLAINTEXT_BYTES_MAX {
        return Err(Failure::new(
            6,
            "too_large",
            format!(
                "a line is longer than {PLAINTEXT_BYTES_MAX} bytes; it was not sent, nor was what follows"
            ),
            "make the message smaller",
        ));
    }
    Ok(Some(line.into()))
}

/// The command.
pub(crate) async fn run(args: &SendArgs, target: &Target, as_json: bool) -> Outcomes<u8> {
    address::sendable(&args.address)?;
    let mut bodies = Bodies::of(args)?;
    let client = target.connect(CONNECT_TIME_MAX).await?;
    let options = ProducerOptions {
        order: args.order,
        deadline: args.deadline,
        compress: args.compress,
        ..ProducerOptions::default()
    };
    let in_flight_max = options.in_flight;
    let producer = client.producer(options);
    let mut sending =
        Sending { args, as_json, pending: VecDeque::new(), sent: 0, failure: None, problem: None };
    tokio::select! {
        biased;
        signal = signals::wait() => {
            signal?;
            return Err(sending.interrupted().await);
        }
        () = sending.all(&client, &producer, &mut bodies, in_flight_max) => {}
    }
    if !as_json && !sending.is_told_singly() && (sending.sent > 0 || sending.failure.is_none()) {
        let plural = if sending.sent == 1 { "" } else { "s" };
        say(format!("sent {} message{plural} to {}", sending.sent, args.address));
    }
    if let Some(failure) = sending.failure {
        let problem = match sending.problem {
            None if failure.unknown => Some(status::problem(&client).await),
            told => told,
        };
        return Err(failure.because(problem.as_deref()));
    }
    // Everything has its fate: what is left is courtesy.
    let _in_time = tokio::time::timeout(CLOSE_TIME_MAX, producer.close()).await.is_ok();
    client.close().await;
    Ok(0)
}

struct Sending<'a> {
    args: &'a SendArgs,
    as_json: bool,
    pending: VecDeque<Pending>,
    sent: u64,
    failure: Option<Failure>,
    /// What the cluster said when no answers came.
    problem: Option<String>,
}

impl Sending<'_> {
    async fn all(
        &mut self,
        client: &SwarmMq,
        producer: &Producer,
        bodies: &mut Bodies,
        in_flight_max: usize,
    ) {
        let mut more = true;
        let mut patience = std::pin::pin!(tokio::time::sleep(PATIENCE));
        loop {
            more &= self.failure.is_none();
            if !more && self.pending.is_empty() {
                return;
            }
            let body = tokio::select! {
                biased;
                result = first(&mut self.pending) => {
                    self.settle(result);
                    patience.as_mut().reset(Instant::now() + PATIENCE);
                    continue;
                }
                body = bodies.next(), if more && self.pending.len() < in_flight_max => body,
                () = &mut patience, if !self.pending.is_empty() && self.problem.is_none() => {
                    self.ask_why(client).await;
                    patience.as_mut().reset(Instant::now() + PATIENCE);
                    continue;
                }
            };
            if self.pending.is_empty() {
                patience.as_mut().reset(Instant::now() + PATIENCE);
            }
            match body {
                None => more = false,
                Some(Err(failure)) => self.failure = Some(failure),
                Some(Ok(body)) => {
                    let mut message = Message::new(&self.args.address, body);
                    message.key = self.args.key.clone().map(Bytes::from);
                    message.headers = self
                        .args
                        .headers
                        .iter()
                        .map(|(name, value)| (name.clone(), value.clone().into()))
                        .collect();
                    match producer.enqueue(message).await {
                        Ok(pending) => self.pending.push_back(pending),
                        Err(error) => self.failed(error),
                    }
                }
            }
        }
    }

    /// Nothing is acknowledged: whoever waits is told why, once.
    async fn ask_why(&mut self, client: &SwarmMq) {
        let problem = status::problem(client).await;
        note(format!("waiting: nothing was acknowledged for {} s; {problem}", PATIENCE.as_secs()));
        self.problem = Some(problem);
    }

    /// What was handed over gets the answers that come at once.
    async fn interrupted(&mut self) -> Failure {
        let rest = async {
            while !self.pending.is_empty() {
                let result = first(&mut self.pending).await;
                self.settle(result);
            }
        };
        let _in_time = tokio::time::timeout(INTERRUPTED_TIME_MAX, rest).await.is_ok();
        let open = self.pending.len();
        let sent = self.sent;
        Failure::interrupted(
            open > 0,
            format!("interrupted: {sent} messages are stored, the fate of {open} is unknown"),
        )
    }

    /// Whether every message gets a line of its own.
    fn is_told_singly(&self) -> bool {
        self.args.count == 1 && self.args.body.as_deref().is_some_and(|body| body != "-")
    }

    fn settle(&mut self, result: Result<Receipt, Error>) {
        match result {
            Ok(receipt) => {
                self.sent += 1;
                let address = &self.args.address;
                if self.as_json {
                    print(&Sent::new(address, &receipt));
                } else if self.is_told_singly() {
                    let offset = receipt.offset.map_or("unknown".to_owned(), |offset| offset.0.to_string());
                    say(format!(
                        "sent {} to {address}, shard {}, offset {offset}",
                        receipt.id, receipt.shard.0
                    ));
                }
            }
            Err(error) => self.failed(error),
        }
    }

    /// The first failure is told, but one that may have happened after all is told before one that did not.
    fn failed(&mut self, error: Error) {
        let failure = Failure::from(error);
        if self.failure.as_ref().is_none_or(|known| failure.unknown && !known.unknown) {
            self.failure = Some(failure);
        }
    }
}

/// The fate of the oldest message; never, if there is none. Safe to cancel.
async fn first(pending: &mut VecDeque<Pending>) -> Result<Receipt, Error> {
    match pending.front_mut() {
        None => std::future::pending().await,
        Some(one) => {
            let result = one.await;
            pending.pop_front();
            result
        }
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::id::{MessageId, Offset, ProducerEpoch, ProducerId, Sequence, ShardId};

    use super::*;

    #[test]
    fn a_line_feed_ends_a_message_and_empty_lines_are_messages() {
        let mut input = b"a\n\nb c\r\nlast".as_slice();
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut input).unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["a", "", "b c\r", "last"].map(Bytes::from));
    }

    #[test]
    fn a_line_above_the_limit_is_refused_without_reading_it_whole() {
        let mut just = vec![b'x'; PLAINTEXT_BYTES_MAX];
        just.push(b'\n');
        assert_eq!(next_line(&mut just.as_slice()).unwrap().unwrap().len(), PLAINTEXT_BYTES_MAX);
        let above = vec![b'x'; PLAINTEXT_BYTES_MAX + 10];
        assert_eq!(next_line(&mut above.as_slice()).unwrap_err().exit, 6);
    }

    #[test]
    fn a_receipt_has_the_promised_shape() {
        let shard = ShardId(3);
        let id = MessageId { producer: ProducerId(1), epoch: ProducerEpoch(1), shard, sequence: Sequence(9) };
        let receipt = Receipt { id, shard, offset: Some(Offset(7)), duplicate: false };
        assert_eq!(
            serde_json::to_string(&Sent::new("a.b", &receipt)).unwrap(),
            format!(r#"{{"id":"{id}","address":"a.b","shard":3,"offset":7,"duplicate":false}}"#)
        );
    }
}
