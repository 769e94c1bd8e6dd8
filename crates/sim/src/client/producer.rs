//! A producer process: one session, one sealer, and what it was told of its messages.

use std::{collections::BTreeMap, time::Duration};

use bytes::BytesMut;
use swarmmq_protocol::{
    admin::Order,
    frame::{self, Frame, Resolve, Welcome},
    id::{Address, MessageId, ProducerEpoch, ProducerId, Salt, ShardId},
    mac,
    session::{
        producer::{Producer, ProducerConfig, Resolution, Slip},
        ways::Way,
    },
    time::{Instant, WallTime},
};
use swarmmq_seal::{ClientKeyring, Draft, Sealer};

/// Tag of requests that belong to no session.
const CONTROL_TAG: u64 = 0xffff;
const SESSION_TAG: u16 = 1;
/// Messages whose fate is open, at most.
const WINDOW_MESSAGES: usize = 96;
const WINDOW_BYTES: usize = 64 << 10;
/// Pause before an address is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// One life of a producer.
#[derive(Debug)]
pub struct ProducerProcess {
    /// The session under test.
    pub session: Producer,
    sealer: Sealer,
    addresses: Vec<Address>,
    orders: BTreeMap<usize, Order>,
    ask_at: Option<Instant>,
    shard_count: u32,
    next_ticket: u64,
    tickets: BTreeMap<u64, MessageId>,
}

/// One message to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Position of its address.
    pub address: usize,
    /// Its key.
    pub key: Option<u64>,
    /// Its body.
    pub body: &'a [u8],
    /// Which shard, where the order leaves that open; `None`: its session chooses.
    pub spread: Option<u64>,
    /// The sender's monotonic clock.
    pub now: Instant,
    /// When its sender stops waiting.
    pub deadline: Instant,
    /// The sender's clock.
    pub wall: WallTime,
}

impl ProducerProcess {
    /// A fresh identity; `entropy` is new for every life.
    pub fn new(
        keyring: &ClientKeyring,
        addresses: Vec<Address>,
        entropy: [u8; 56],
        created_at: WallTime,
        slip: Option<Slip>,
    ) -> Self {
        let producer = ProducerId(u128::from_be_bytes(entropy[..16].try_into().expect("16 bytes")));
        let salt = Salt(entropy[16..48].try_into().expect("32 bytes"));
        let seed = u64::from_be_bytes(entropy[48..].try_into().expect("8 bytes"));
        let epoch = ProducerEpoch(1);
        let session = Producer::new(ProducerConfig {
            policy: None,
            tag: SESSION_TAG,
            producer,
            epoch,
            salt,
            created_at,
            window_messages: WINDOW_MESSAGES,
            window_bytes: WINDOW_BYTES,
            seed,
            slip,
        });
        Self {
            session,
            sealer: Sealer::new(keyring, producer, epoch, salt),
            addresses,
            orders: BTreeMap::new(),
            ask_at: None,
            shard_count: 1,
            next_ticket: 0,
            tickets: BTreeMap::new(),
        }
    }

    pub(super) fn opened(&mut self, way: Way, welcome: &Welcome, out: &mut BytesMut) {
        self.shard_count = welcome.shard_count;
        self.session.set_shards(welcome.shard_count);
        self.session.connected(way, welcome.publish_window_messages, welcome.publish_window_bytes);
        if way == Way::Home {
            self.ask(out);
        }
    }

    fn ask(&mut self, out: &mut BytesMut) {
        self.ask_at = None;
        for (index, address) in self.addresses.iter().enumerate() {
            if !self.orders.contains_key(&index) {
                let resolve = Resolve {
                    address: address.clone(),
                    create: false,
                    order: None,
                    deadline: Duration::from_secs(5),
                };
                frame::encode(&resolve, CONTROL_TAG << 48 | index as u64, out);
            }
        }
    }

    pub(super) fn frame(&mut self, now: Instant, request: u64, frame: Frame) {
        let control = request >> 48 == CONTROL_TAG;
        match frame {
            Frame::Resolved(resolved) if control => {
                self.orders.insert((request & 0xffff) as usize, resolved.order);
            }
            Frame::Answer(_) if control => self.ask_at = Some(now + ASK_AGAIN),
            Frame::Answer(answer) => self.session.answer(now, request, &answer),
            Frame::Published(published) => self.session.published(now, request, &published),
            _ => {}
        }
    }

    pub(super) fn pump(&mut self, now: Instant, open: bool, out: &mut BytesMut) {
        if open && self.ask_at.is_some_and(|at| at <= now) {
            self.ask(out);
        }
        self.session.pump(now, Way::Home, out);
    }

    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        [self.session.next_wake(now), self.ask_at].into_iter().flatten().min()
    }

    /// Whether a message for this address can be sent now.
    pub fn can_send(&self, address: usize, body_bytes: usize) -> bool {
        self.orders.contains_key(&address) && self.session.has_room(body_bytes + 512)
    }

    /// Seals and pins one message. Returns its name.
    pub fn send(&mut self, item: &Item<'_>) -> MessageId {
        let address = &self.addresses[item.address];
        let key = item.key.map(|key| format!("key-{key}"));
        let key = key.as_deref().map(str::as_bytes);
        let order = self.orders[&item.address];
        let shard = match (order, key) {
            (Order::Total, _) => mac::ring(address, None, self.shard_count),
            (Order::Key, Some(key)) => {
                mac::ring(address, Some(&self.sealer.key_hash(address, key)), self.shard_count)
            }
            (Order::Key | Order::None, _) => match item.spread {
                Some(spread) => ShardId((spread % u64::from(self.shard_count)) as u32),
                None => self.session.choose(item.now),
            },
        };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let sealer = &mut self.sealer;
        let sequence = self
            .session
            .submit(ticket, shard, (item.now, item.deadline), |sequence| {
                sealer.seal(&Draft {
                    address,
                    shard,
                    sequence,
                    key,
                    headers: &[],
                    body: item.body,
                    published_at: item.wall,
                    trace: None,
                    compress: false,
                })
            })
            .expect("the session never repeats a sequence");
        let (producer, epoch, _) = self.session.identity();
        let id = MessageId { producer, epoch, shard, sequence };
        self.tickets.insert(ticket, id);
        id
    }

    /// What became known of messages since the last call.
    pub fn take_fates(&mut self) -> Vec<(MessageId, Resolution)> {
        let mut resolutions = Vec::new();
        self.session.take_resolutions(&mut resolutions);
        resolutions
            .into_iter()
            .filter_map(|resolution| Some((self.tickets.remove(&resolution.ticket)?, resolution)))
            .collect()
    }
}
