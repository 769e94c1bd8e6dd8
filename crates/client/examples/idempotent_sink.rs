//! Acts once per invoice in the outside world, however often an invoice is delivered or was sent.
//!
//! The queue delivers again after a crash between the effect and its acknowledgement, and a pipeline may send an invoice
//! twice (`consume_transform_produce.rs`). The cure is the same for both: **store the effect and the name of its cause
//! together, so that one is there exactly when the other is**, and look before acting. With a database that is one
//! transaction with a unique column. Here it is one line of a file: written whole and synced, or cut at the next start.
//!
//! `swarmmq dev up --nodes 1`, then `cargo run -p swarmmq-client --example idempotent_sink`
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

mod local;

use std::{
    collections::BTreeSet,
    error::Error,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
};

use swarmmq_client::{Received, SubscribeOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut ledger = Ledger::open("ledger.txt")?;
    let client = local::connect().await?;
    let options = SubscribeOptions { group: "ledger".into(), ..SubscribeOptions::default() };
    let mut invoices = client.subscribe("shop.invoices", options).await?;
    while let Some(invoice) = invoices.next().await {
        let invoice = invoice?;
        let new = ledger.book(&cause(&invoice), &String::from_utf8_lossy(&invoice.body))?;
        println!("{}: {}", invoice.id, if new { "booked" } else { "was booked before" });
        if let Err(error) = invoice.ack().await {
            // Perhaps it comes again, and then is found in the ledger.
            println!("{}: {error}", invoice.id);
        }
    }
    Ok(())
}

/// What must not act twice: the order that led to this invoice if it names one, otherwise the message itself.
fn cause(invoice: &Received) -> String {
    let order = invoice.headers.iter().find(|(name, _)| name == "order");
    order.map_or_else(|| invoice.id.to_string(), |(_, id)| String::from_utf8_lossy(id).into_owned())
}

/// Lines `CAUSE<TAB>EFFECT`. Grows for ever; a real one forgets causes older than any redelivery.
struct Ledger {
    file: File,
    known: BTreeSet<String>,
}

impl Ledger {
    fn open(path: &str) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // What a crash left of a line was never acknowledged: its invoice comes again.
        bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        file.set_len(bytes.len() as u64)?;
        file.sync_data()?;
        let text = String::from_utf8_lossy(&bytes);
        let known = text.lines().filter_map(|line| line.split('\t').next()).map(str::to_owned).collect();
        Ok(Self { known, file })
    }

    /// Books `effect` unless `cause` has had its effect. True: it is on stable storage now, and was not before.
    fn book(&mut self, cause: &str, effect: &str) -> io::Result<bool> {
        if self.known.contains(cause) {
            return Ok(false);
        }
        self.file.write_all(format!("{cause}\t{}\n", effect.replace('\n', " ")).as_bytes())?;
        self.file.sync_data()?;
        self.known.insert(cause.to_owned());
        Ok(true)
    }
}
