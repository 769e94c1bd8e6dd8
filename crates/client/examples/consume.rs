//! Receives messages and settles each of them.
//!
//! `swarmmq dev up --nodes 1`, then `cargo run -p swarmmq-client --example consume`; it ends with ctrl-c.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

mod local;

use std::error::Error;

use swarmmq_client::{Error as QueueError, Received, SubscribeOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = local::connect().await?;
    let options = SubscribeOptions { group: "example".into(), ..SubscribeOptions::default() };
    let mut consumer = client.subscribe("shop.orders", options).await?;
    println!("waiting for messages of shop.orders");

    loop {
        let next = tokio::select! {
            next = consumer.next() => next,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                break;
            }
        };
        let received = match next {
            Some(Ok(received)) => received,
            // Sealed under a key that our keyring does not hold. It comes again later, and after ten attempts it is
            // in `shop.orders.dlq` with this reason.
            Some(Err(error @ QueueError::Open { .. })) => {
                println!("skipped: {error}");
                continue;
            }
            Some(Err(error)) => return Err(error.into()),
            None => break,
        };
        // The lease is extended while we work, for up to ten minutes.
        let settled = match handle(&received) {
            Ok(()) => received.ack().await,
            // Later again, with growing pauses; after ten attempts it is a dead letter with this reason.
            Err(reason) => received.retry_in(None, reason).await,
        };
        match settled {
            Ok(()) => {}
            // Somebody else has it by now: what we did may be done twice. `idempotent_sink.rs` shows what helps.
            Err(error @ QueueError::LeaseLost) => println!("{}: {error}", received.id),
            Err(error) => println!("{}: not known to be settled: {error}", received.id),
        }
    }
    // What we hold and have not settled goes to others at once.
    consumer.close().await;
    client.close().await;
    Ok(())
}

fn handle(received: &Received) -> Result<(), &'static str> {
    let text = std::str::from_utf8(&received.body).map_err(|_| "the body is no text")?;
    println!("{} (attempt {}): {text}", received.id, received.attempt);
    Ok(())
}
