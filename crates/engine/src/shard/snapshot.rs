//! A shard's state as bytes: what a restart begins with, and what a digest is taken of.
//!
//! Payloads are not in it, only where they lie. With `places` the bytes are for this node's disk; without, they are the
//! same on every replica and serve as digest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use swarmmq_protocol::{
    id::{GroupName, KeyHash, Offset, ProducerEpoch, ProducerId, ProducerName, Salt, Sequence},
    policy::Routing,
    time::WallTime,
};

use super::{
    access::Access,
    catalog::{Catalog, Entry, put_setting, read_setting},
    codec::{Malformed, Reader, put_text},
    consensus::Conf,
    dedup::{Producer, Producers, Run},
    event::{Order, Settings, Start, read_address},
    member::Members,
    queue::{DeadLetter, Group, Message, Queue, Retry},
    state::{Live, NOWHERE, State},
};
use crate::{log::Position, node::bug::Bugs};

const VERSION: u8 = 5;
/// The layout before there were principals.
const VERSION_WITHOUT_ACCESS: u8 = 4;
/// The layout before the cluster had settings.
const VERSION_WITHOUT_SETTINGS: u8 = 3;
/// The layout before members had keys.
const VERSION_WITHOUT_KEYS: u8 = 2;

impl State {
    /// Bytes from which [`State::read`] rebuilds the state on this node.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.put(true)
    }

    /// Equal on all replicas that applied the same entries, and after a replay. Cost: O(state).
    pub fn digest(&self) -> [u8; 32] {
        swarmmq_protocol::mac::sha256(&[&self.put(false)])
    }

    /// Rebuilds a state from what [`State::to_bytes`] gave.
    pub fn read(bytes: &[u8], bugs: Bugs) -> Result<Self, Malformed> {
        Self::read_with(bytes, true, bugs)
    }

    /// Bytes for another replica: all but where payloads lie, which is its own affair.
    pub fn to_portable(&self) -> Vec<u8> {
        self.put(false)
    }

    /// Rebuilds a state from what [`State::to_portable`] gave elsewhere. No payload is here yet: see [`State::holes`].
    pub fn read_portable(bytes: &[u8], bugs: Bugs) -> Result<Self, Malformed> {
        Self::read_with(bytes, false, bugs)
    }

    fn read_with(bytes: &[u8], places: bool, bugs: Bugs) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let version = r.u8()?;
        if !(VERSION_WITHOUT_KEYS..=VERSION).contains(&version) {
            return Err(Malformed);
        }
        let time = WallTime(r.u64()?);
        let applied = r.u64()?;
        let next_offset = r.u64()?;
        let conf = read_conf(&mut r)?;
        let producers = read_producers(&mut r)?;
        let mut catalog = read_catalog(&mut r, version > VERSION_WITHOUT_KEYS)?;
        if version > VERSION_WITHOUT_SETTINGS {
            for _ in 0..r.u8()? {
                catalog.routing = catalog.routing.with(read_setting(&mut r)?);
            }
        }
        if version > VERSION_WITHOUT_ACCESS {
            catalog.access = Access::read(&mut r)?;
        }
        let count = r.u32()?;
        let mut queues = BTreeMap::new();
        for _ in 0..count {
            let queue = read_queue(&mut r, places)?;
            queues.insert(queue.address.clone(), queue);
        }
        r.end()?;
        let mut live: BTreeMap<u32, Live> = BTreeMap::new();
        for message in queues.values().flat_map(|queue: &Queue| queue.messages.values()) {
            let entry = live.entry(message.place.segment).or_default();
            entry.messages += 1;
            entry.bytes += u64::from(message.length);
        }
        Ok(Self {
            time,
            applied,
            next_offset,
            conf,
            producers,
            queues,
            catalog,
            live,
            relocated: BTreeMap::new(),
            bugs,
        })
    }

    fn put(&self, places: bool) -> Vec<u8> {
        let messages: usize = self.queues.values().map(|queue| queue.messages.len()).sum();
        let mut out = Vec::with_capacity(256 + messages * 48);
        out.push(VERSION);
        for number in [self.time.0, self.applied, self.next_offset] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        put_conf(&mut out, &self.conf);
        put_producers(&mut out, &self.producers);
        put_catalog(&mut out, &self.catalog);
        out.extend_from_slice(&(self.queues.len() as u32).to_be_bytes());
        self.queues.values().for_each(|queue| put_queue(&mut out, queue, places));
        out
    }
}

fn put_conf(out: &mut Vec<u8>, conf: &Conf) {
    for replicas in [&conf.voters, &conf.learners] {
        out.push(replicas.len() as u8);
        replicas.iter().for_each(|replica| out.extend_from_slice(&replica.to_be_bytes()));
    }
}

fn read_conf(r: &mut Reader<'_>) -> Result<Conf, Malformed> {
    let mut replicas = || {
        let count = r.u8()?;
        (0..count).map(|_| r.u64()).collect::<Result<Vec<u64>, Malformed>>()
    };
    Ok(Conf { voters: replicas()?, learners: replicas()? })
}

fn put_producers(out: &mut Vec<u8>, producers: &Producers) {
    out.extend_from_slice(&(producers.known.len() as u32).to_be_bytes());
    for (id, known) in &producers.known {
        out.extend_from_slice(&id.0.to_be_bytes());
        out.extend_from_slice(&known.epoch.0.to_be_bytes());
        out.extend_from_slice(&known.salt.0);
        out.extend_from_slice(&known.last.0.to_be_bytes());
        out.extend_from_slice(&known.seen_at.0.to_be_bytes());
        out.push(u8::from(known.closed));
        out.push(known.recent.len() as u8);
        for run in &known.recent {
            for number in [run.first.0, run.offset.0, run.count] {
                out.extend_from_slice(&number.to_be_bytes());
            }
        }
        out.extend_from_slice(&(known.skipped.len() as u16).to_be_bytes());
        for (first, last) in &known.skipped {
            out.extend_from_slice(&first.0.to_be_bytes());
            out.extend_from_slice(&last.0.to_be_bytes());
        }
    }
}

fn read_producers(r: &mut Reader<'_>) -> Result<Producers, Malformed> {
    let count = r.u32()?;
    let mut known = BTreeMap::new();
    for _ in 0..count {
        let id = ProducerId(r.u128()?);
        let epoch = ProducerEpoch(r.u64()?);
        let salt = Salt(r.array()?);
        let last = Sequence(r.u64()?);
        let seen_at = WallTime(r.u64()?);
        let closed = r.u8()? != 0;
        let runs = r.u8()?;
        let recent: VecDeque<Run> = (0..runs)
            .map(|_| Ok(Run { first: Sequence(r.u64()?), offset: Offset(r.u64()?), count: r.u64()? }))
            .collect::<Result<_, Malformed>>()?;
        let ranges = r.u16()?;
        let skipped = (0..ranges)
            .map(|_| Ok((Sequence(r.u64()?), Sequence(r.u64()?))))
            .collect::<Result<_, Malformed>>()?;
        known.insert(id, Producer { epoch, salt, last, seen_at, closed, recent, skipped });
    }
    Ok(Producers { known })
}

fn put_catalog(out: &mut Vec<u8>, catalog: &Catalog) {
    out.extend_from_slice(&(catalog.addresses.len() as u32).to_be_bytes());
    for (address, entry) in &catalog.addresses {
        put_text(out, address.as_str());
        out.push(entry.order.to_u8());
        entry.settings.put(out);
        out.push(entry.groups.len() as u8);
        for (group, start) in &entry.groups {
            put_text(out, group.as_str());
            start.put(out);
        }
    }
    out.extend_from_slice(&(catalog.producers.len() as u32).to_be_bytes());
    for (name, epoch) in &catalog.producers {
        put_text(out, name.as_str());
        out.extend_from_slice(&epoch.0.to_be_bytes());
    }
    catalog.members.put(out);
    let settings = catalog.routing.settings();
    out.push(settings.len() as u8);
    settings.iter().for_each(|setting| put_setting(out, setting));
    catalog.access.put(out);
}

fn read_catalog(r: &mut Reader<'_>, keyed: bool) -> Result<Catalog, Malformed> {
    let count = r.u32()?;
    let mut addresses = BTreeMap::new();
    for _ in 0..count {
        let address = read_address(r)?;
        let order = Order::from_u8(r.u8()?).ok_or(Malformed)?;
        let settings = Settings::read(r)?;
        let count = r.u8()?;
        let mut groups = BTreeMap::new();
        for _ in 0..count {
            let group = read_group_name(r)?;
            groups.insert(group, Start::read(r)?);
        }
        addresses.insert(address, Entry { order, settings, groups });
    }
    let count = r.u32()?;
    let mut producers = BTreeMap::new();
    for _ in 0..count {
        let name = ProducerName::parse(r.text()?).map_err(|_| Malformed)?;
        producers.insert(name, ProducerEpoch(r.u64()?));
    }
    let members = Members::read(r, keyed)?;
    Ok(Catalog { addresses, producers, members, routing: Routing::default(), access: Access::default() })
}

fn read_group_name(r: &mut Reader<'_>) -> Result<GroupName, Malformed> {
    GroupName::parse(r.text()?).map_err(|_| Malformed)
}

fn put_queue(out: &mut Vec<u8>, queue: &Queue, places: bool) {
    put_text(out, queue.address.as_str());
    out.push(queue.order.to_u8());
    queue.settings.put(out);
    out.extend_from_slice(&(queue.messages.len() as u32).to_be_bytes());
    for (offset, message) in &queue.messages {
        out.extend_from_slice(&offset.to_be_bytes());
        if places {
            out.extend_from_slice(&message.place.segment.to_be_bytes());
            out.extend_from_slice(&message.place.offset.to_be_bytes());
        }
        out.extend_from_slice(&message.length.to_be_bytes());
        out.extend_from_slice(&message.crc.to_be_bytes());
        out.extend_from_slice(&message.published_at.0.to_be_bytes());
        out.push(u8::from(message.key.is_some()) | u8::from(message.dead.is_some()) << 1);
        if let Some(key) = message.key {
            out.extend_from_slice(&key.0);
        }
        if let Some(dead) = &message.dead {
            put_text(out, dead.group.as_str());
            out.extend_from_slice(&dead.origin.0.to_be_bytes());
            put_text(out, &dead.reason);
        }
    }
    out.push(queue.groups.len() as u8);
    for (name, group) in &queue.groups {
        put_text(out, name.as_str());
        for number in [group.floor, group.horizon, group.dead_lettered] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&(group.settled.len() as u32).to_be_bytes());
        group.settled.iter().for_each(|offset| out.extend_from_slice(&offset.to_be_bytes()));
        out.extend_from_slice(&(group.retries.len() as u32).to_be_bytes());
        for (offset, retry) in &group.retries {
            out.extend_from_slice(&offset.to_be_bytes());
            out.extend_from_slice(&retry.attempt.to_be_bytes());
            out.extend_from_slice(&retry.failures.to_be_bytes());
            out.extend_from_slice(&retry.not_before.0.to_be_bytes());
        }
    }
}

fn read_queue(r: &mut Reader<'_>, places: bool) -> Result<Queue, Malformed> {
    let address = read_address(r)?;
    let order = Order::from_u8(r.u8()?).ok_or(Malformed)?;
    let settings = Settings::read(r)?;
    let mut queue = Queue::new(address, order, settings);
    let count = r.u32()?;
    let mut messages = Vec::new();
    for _ in 0..count {
        let offset = r.u64()?;
        let message = read_message(r, places)?;
        queue.bytes += u64::from(message.length);
        messages.push((offset, message));
    }
    queue.messages = messages.into_iter().collect();
    let count = r.u8()?;
    for _ in 0..count {
        let name = read_group_name(r)?;
        let (floor, horizon, dead_lettered) = (r.u64()?, r.u64()?, r.u64()?);
        let settled = (0..r.u32()?).map(|_| r.u64()).collect::<Result<BTreeSet<u64>, Malformed>>()?;
        let retries = (0..r.u32()?)
            .map(|_| {
                let offset = r.u64()?;
                Ok((offset, Retry { attempt: r.u32()?, failures: r.u32()?, not_before: WallTime(r.u64()?) }))
            })
            .collect::<Result<BTreeMap<u64, Retry>, Malformed>>()?;
        queue.groups.insert(name, Group { floor, settled, horizon, retries, dead_lettered });
    }
    Ok(queue)
}

fn read_message(r: &mut Reader<'_>, places: bool) -> Result<Message, Malformed> {
    let place = if places { Position { segment: r.u32()?, offset: r.u32()? } } else { NOWHERE };
    let length = r.u32()?;
    let crc = r.u32()?;
    let published_at = WallTime(r.u64()?);
    let flags = r.u8()?;
    let key = if flags & 1 != 0 { Some(KeyHash(r.array()?)) } else { None };
    let dead = if flags & 2 != 0 {
        let group = read_group_name(r)?;
        let origin = Offset(r.u64()?);
        Some(Box::new(DeadLetter { group, origin, reason: r.text()?.to_owned() }))
    } else {
        None
    };
    Ok(Message { place, length, crc, published_at, key, dead })
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::policy::{Policy, Setting};

    use super::*;
    use crate::shard::event::{CatalogEvent, Event};

    /// As the version before wrote it: one node, an address with a group, a producer's name, a setting.
    const RECORDED_V4: &str = include_str!("../../testdata/state_v4.hex");

    #[test]
    fn a_state_that_was_recorded_before_there_were_principals_has_none_and_nobody_may_join() {
        let hex = RECORDED_V4.trim();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        assert_eq!(bytes[0], VERSION_WITHOUT_ACCESS);
        let state = State::read(&bytes, Bugs::NONE).unwrap();
        let catalog = &state.catalog;
        assert_eq!(
            (catalog.addresses.len(), catalog.producers.len(), catalog.members.nodes.len()),
            (1, 1, 1)
        );
        assert_eq!(catalog.routing.policy, Policy::P2cEwma);
        assert_eq!(catalog.access, Access::default());
        // Written again it is of this version, and the same.
        let again = State::read(&state.to_bytes(), Bugs::NONE).unwrap();
        assert_eq!(again.digest(), state.digest());
    }

    #[test]
    fn states_of_earlier_layouts_are_read_with_settings_as_they_were_then() {
        let mut state = State::default();
        let set = Event::Catalog(CatalogEvent::Set(Setting::Policy(Policy::RoundRobin)));
        state.apply(WallTime(5), NOWHERE, &set);
        let bytes = state.to_bytes();
        let read = State::read(&bytes, Bugs::NONE).unwrap();
        assert_eq!((read.catalog.routing.policy, read.digest()), (Policy::RoundRobin, state.digest()));
        let mut settings = vec![2];
        state.catalog.routing.settings().iter().for_each(|setting| put_setting(&mut settings, setting));
        let mut access = Vec::new();
        state.catalog.access.put(&mut access);
        // Behind the settings come only principals, and how many queues there are.
        let end = bytes.len() - 4;
        let begin = end - access.len() - settings.len();
        assert_eq!(bytes[begin..end], [settings, access].concat());
        for version in [VERSION_WITHOUT_SETTINGS, VERSION_WITHOUT_KEYS] {
            // Without members the two are alike.
            let mut earlier = [&bytes[..begin], &bytes[end..]].concat();
            earlier[0] = version;
            let read = State::read(&earlier, Bugs::NONE).unwrap();
            assert_eq!(
                (read.time, read.catalog.routing.policy),
                (WallTime(5), Policy::LeastCost),
                "{version}"
            );
        }
        let mut later = bytes;
        later[0] = VERSION + 1;
        assert!(State::read(&later, Bugs::NONE).is_err());
    }
}
