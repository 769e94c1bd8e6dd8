//! Sends messages: one by one, and many at a time.
//!
//! `swarmmq dev up --nodes 1`, then `cargo run -p swarmmq-client --example publish`
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

mod local;

use std::error::Error;

use swarmmq_client::{Message, Outcome, ProducerOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = local::connect().await?;
    let producer = client.producer(ProducerOptions::default());

    // One by one: when `send` returns, the message survives a power cut.
    let message = Message::new("shop.orders", "two apples").key("anna").header("source", "example");
    match producer.send(message).await {
        Ok(receipt) => println!("stored as {} in shard {}", receipt.id, receipt.shard.0),
        // Certainly not stored: sending it again is safe.
        Err(error) if error.outcome() == Outcome::Failed => return Err(error.into()),
        // Perhaps stored. The library has repeated it, with the same bytes, until the deadline; a `send` of our own would
        // be a new message.
        Err(error) => return Err(format!("look before sending it again: {error}").into()),
    }

    // Many at a time: `enqueue` returns when a message is handed over, and waits while 256 are under way.
    let mut pending = Vec::new();
    for number in 0..1000 {
        pending.push(producer.enqueue(Message::new("shop.orders", format!("order {number}"))).await?);
    }
    let mut stored = 0;
    for fate in pending {
        match fate.await {
            Ok(_) => stored += 1,
            Err(error) => println!("one was not: {error}"),
        }
    }
    println!("{stored} of 1000 stored");

    producer.close().await;
    client.close().await;
    Ok(())
}
