//! What lies on a disk, and what replicas send each other of it: log records, entries, snapshots.

use std::{collections::BTreeMap, sync::OnceLock};

use bytes::Bytes;
use swarmmq_engine::{
    log::{Recovery, Verdict},
    node::bug::Bugs,
    shard::{
        event::{Entry, EntryWriter},
        state::State,
    },
};
use swarmmq_protocol::{
    admin::{AdminRequest, Order, Settings},
    frame::{Admin, Frame, StartAt, Subscribe},
    id::{Address, ConsumerId, GroupName},
};

use super::{Mark, magnitude};
use crate::world::{Sender, World, log_config};

/// Bytes of the log that inputs are about: enough for all records of the seed.
const IMAGE_BYTES: usize = 14 << 10;

/// A node that has seen something: addresses, groups, messages, settlements.
fn lived() -> World {
    let mut world = World::new();
    let client = world.client();
    let address = |name: &str| Address::parse(name).expect("an address");
    for (name, order) in [("a", Order::Total), ("b", Order::Key)] {
        let settings = Settings { attempts_max: Some(2), ..Settings::default() };
        let request = AdminRequest::AddressCreate { address: address(name), order, settings };
        world.send(client, &Frame::Admin(Admin(request)));
    }
    for number in 1..3 {
        let mut sender = Sender::new(number);
        world.send(client, &sender.open());
        for bytes in [10, 100] {
            world.send(client, &sender.publish(bytes));
        }
    }
    let subscribe = Subscribe {
        subscription: 1,
        consumer: ConsumerId(1),
        address: address("a"),
        group: GroupName::parse("g").expect("a name"),
        start: Some(StartAt::Oldest),
        credit_messages: 2,
        credit_bytes: 1000,
        deadline: std::time::Duration::from_secs(10),
        held: Vec::new(),
    };
    world.send(client, &Frame::Subscribe(subscribe));
    world.pass(std::time::Duration::from_secs(2));
    world
}

/// What the first segment of such a node holds.
fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let world = lived();
        let first = world.disk.values().next().expect("it wrote something");
        first[..first.len().min(IMAGE_BYTES)].to_vec()
    })
}

/// The records of the whole image, by place.
fn whole() -> &'static BTreeMap<(u32, u32), Vec<u8>> {
    static RECORDS: OnceLock<BTreeMap<(u32, u32), Vec<u8>>> = OnceLock::new();
    RECORDS.get_or_init(|| records(image()).0)
}

fn records(image: &[u8]) -> (BTreeMap<(u32, u32), Vec<u8>>, Verdict) {
    let config = log_config();
    let mut segment = image.to_vec();
    segment.resize(config.segment_bytes as usize, 0);
    let mut found = BTreeMap::new();
    let mut recovery = Recovery::new(config, vec![1]);
    recovery.segment(1, &segment, &mut |record| {
        let at = (record.position.segment, record.position.offset);
        found.insert(at, [&[record.kind], record.body].concat());
    });
    (found, recovery.finish())
}

pub(super) fn logs() -> Vec<Vec<u8>> {
    vec![image().to_vec()]
}

/// A damaged log: whatever is read from it was there before it was damaged, in the same place.
pub(super) fn log(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    let (found, verdict) = records(input);
    for (at, body) in &found {
        assert_eq!(whole().get(at), Some(body), "a record that nobody wrote");
    }
    mark.note(magnitude(found.len()));
    mark.note(std::mem::discriminant(&verdict));
    mark.done()
}

pub(super) fn entries() -> Vec<Vec<u8>> {
    // Kinds of records are a byte, then the body follows: entries are those that read.
    let bodies = whole().values().map(|record| record[1..].to_vec());
    let entries: Vec<Vec<u8>> =
        bodies.filter(|body| Entry::read(&Bytes::copy_from_slice(body)).is_ok()).collect();
    assert!(entries.len() > 5, "the seed has entries");
    entries
}

/// An entry of a shard's log: what reads is written again as it was.
pub(super) fn entry(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    match Entry::read(&Bytes::copy_from_slice(input)) {
        Ok(entry) => {
            mark.note(magnitude(entry.events.len()));
            for event in &entry.events {
                mark.note(std::mem::discriminant(event));
            }
            if !entry.events.is_empty() {
                let mut writer = EntryWriter::default();
                for event in &entry.events {
                    assert!(writer.push(event, usize::MAX).is_none(), "there is room");
                }
                let again = writer.finish(entry.time);
                let read = Entry::read(&Bytes::from(again));
                assert_eq!(read.as_ref(), Ok(&entry), "an entry changes as it is written and read");
            }
        }
        Err(_) => mark.note("malformed"),
    }
    mark.done()
}

pub(super) fn snapshots() -> Vec<Vec<u8>> {
    lived().node.shards().iter().map(|shard| shard.state().to_portable()).collect()
}

/// A shard's state as another replica sends it: what reads is written so that it reads the same.
pub(super) fn snapshot(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    match State::read_portable(input, Bugs::NONE) {
        Ok(state) => {
            let written = state.to_portable();
            let again = State::read_portable(&written, Bugs::NONE);
            let again = again.expect("it was written by ourselves").to_portable();
            assert!(again == written, "a state changes as it is written and read");
            mark.note(magnitude(written.len()));
        }
        Err(_) => mark.note(("malformed", magnitude(input.len()))),
    }
    mark.done()
}
