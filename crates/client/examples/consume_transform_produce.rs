//! A step of a pipeline: takes orders, makes invoices of them.
//!
//! **What this promises, and what not.** An order is acknowledged only when its invoice is on stable storage, so no order is
//! lost: each leads to an invoice, whatever crashes. But the two are two steps. A crash between them, or a `send`
//! whose outcome is unknown, leads to a second invoice when the order comes again. Nothing in the queue ties the
//! acknowledgement to the send. So every invoice names its order, and whoever reads invoices can drop the second one:
//! `idempotent_sink.rs` does.
//!
//! `swarmmq dev up --nodes 1`, then `cargo run -p swarmmq-client --example consume_transform_produce`
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

mod local;

use std::error::Error;

use swarmmq_client::{Message, ProducerOptions, Received, SubscribeOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = local::connect().await?;
    let producer = client.producer(ProducerOptions::default());
    let options = SubscribeOptions { group: "invoicing".into(), ..SubscribeOptions::default() };
    let mut orders = client.subscribe("shop.orders", options).await?;

    while let Some(order) = orders.next().await {
        let order = order?;
        let settled = match invoice(&order) {
            // Trying again would not make it better.
            None => order.dead_letter("the order is no text").await,
            Some(invoice) => match producer.send(invoice).await {
                Ok(receipt) => {
                    println!("{} -> {}", order.id, receipt.id);
                    order.ack().await
                }
                // Failed or unknown: the order comes again. In the second case there may be two invoices then.
                Err(error) => {
                    println!("{}: {error}", order.id);
                    order.retry_in(None, "the invoice could not be sent").await
                }
            },
        };
        // Lost or unknown: the order comes again, or is settled after all. Either way its invoice is there.
        if let Err(error) = settled {
            println!("{}: {error}", order.id);
        }
    }
    Ok(())
}

/// An invoice for an order: under the same key, so that those of one customer can keep their order, and with the order's
/// message id, which is the same in every delivery of it.
fn invoice(order: &Received) -> Option<Message> {
    let text = std::str::from_utf8(&order.body).ok()?;
    let message =
        Message::new("shop.invoices", format!("invoice for {text}")).header("order", order.id.to_string());
    Some(match &order.key {
        Some(key) => message.key(key.clone()),
        None => message,
    })
}
