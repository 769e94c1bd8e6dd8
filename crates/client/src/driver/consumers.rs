//! The consumers of one connection: opens what is delivered, hands it to the program, and carries settlements back.
//!
//! A message that cannot be opened waits until the keyring's file was looked at, which takes milliseconds. If its key is still
//! not there it is given back for a while, in silence: a keyring may be on its way. In the end the program is told.
//!
//! A message waits in its session until the program is about to need it, because there it can still be taken back when
//! its lease is lost; only [`OUTBOX_MESSAGES`] at a time lie opened in a consumer's outbox.

use std::{collections::BTreeMap, time::Duration};

use bytes::BytesMut;
use swarmmq_protocol::{
    envelope,
    error::Code,
    frame::{self, Answer, Deliver, LeaseLost, SettleAction, Settled, Subscribed, Unsubscribe},
    id::{Address, ConsumerId, GroupName, KeyId, ShardId},
    session::consumer::{self, ConsumerConfig, Delivery, Handout, SettleResolution, SettleResult},
    time::Instant,
};
use swarmmq_seal::{ClientKeyring, OpenError, Opened, Opener};
use tokio::sync::{mpsc, oneshot};

use super::{Command, Tags, clock::Clock, told};
use crate::{
    Error, Received, SettleError, SubscribeOptions, Unopened,
    consumer::{Handed, SettleReply, why_unopened},
};

/// Messages that lie opened and ready for the program, at most. Enough that a program which takes them in bursts rarely
/// waits for the driver, few enough that few can lose their lease there unnoticed.
pub(crate) const OUTBOX_MESSAGES: usize = 64;

/// Pause after which it is worth looking at the keyring's file again because a message cannot be opened.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// Longest wait for such a look: a file system that hangs must not keep the other messages.
const LOOK_TIME_MAX: Duration = Duration::from_secs(5);
/// Shortest and longest time for which a message whose key is missing is given back.
const MISSING_PAUSE_MIN: Duration = Duration::from_secs(1);
const MISSING_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Missing keys that are remembered. Whoever invents more of them gets more patience, bounded by the attempts of the address.
const MISSING_KEYS_MAX: usize = 1024;
/// Ticket of settlements whose end nobody waits for.
const NOBODY: u64 = 0;

/// A consumer to be made.
pub(crate) struct Subscription {
    pub(crate) number: u64,
    pub(crate) address: Address,
    pub(crate) group: GroupName,
    pub(crate) options: SubscribeOptions,
    /// Joined by then, or not at all.
    pub(crate) until: tokio::time::Instant,
    pub(crate) outbox: mpsc::Sender<Handed>,
    /// Why it ended, told before the outbox closes.
    pub(crate) end: oneshot::Sender<Error>,
    pub(crate) joined: oneshot::Sender<Result<(), Error>>,
}

/// A settlement to be made.
pub(crate) struct Settlement {
    pub(crate) consumer: u64,
    pub(crate) handout: Handout,
    pub(crate) action: SettleAction,
    pub(crate) reason: String,
    pub(crate) reply: SettleReply,
}

struct State {
    tag: u64,
    session: consumer::Consumer,
    /// From where it is fed.
    shards: Vec<ShardId>,
    address: Address,
    /// Time for a settlement.
    deadline: Duration,
    unopened: Unopened,
    key_patience: Duration,
    /// What could not be opened, and until when it waits for a look at the keyring's file.
    stuck: Option<(Delivery, Instant)>,
    outbox: mpsc::Sender<Handed>,
    end: oneshot::Sender<Error>,
    joined: Option<(Instant, oneshot::Sender<Result<(), Error>>)>,
    /// Settlements whose end is open, and until when it is waited for. All wait equally long, so the first is the next.
    waiting: BTreeMap<u64, (Instant, SettleReply)>,
    closing_until: Option<Instant>,
    done: Vec<oneshot::Sender<()>>,
}

pub(super) struct Consumers {
    clock: Clock,
    /// For handles given to the program; does not keep the driver alive.
    commands: mpsc::WeakUnboundedSender<Command>,
    keys: Keys,
    goodbye: Duration,
    connected: bool,
    states: BTreeMap<u64, State>,
    next_ticket: u64,
    /// Subscriptions that ended here and not yet at the node.
    farewells: Vec<u64>,
    settlements: Vec<SettleResolution>,
}

impl Consumers {
    /// `goodbye`: how long a closed consumer may take to give back what it holds.
    pub(super) fn new(
        clock: Clock,
        keyring: &ClientKeyring,
        commands: mpsc::WeakUnboundedSender<Command>,
        goodbye: Duration,
    ) -> Self {
        Self {
            clock,
            commands,
            keys: Keys {
                opener: Opener::new(keyring),
                has_file: keyring.source().is_some(),
                looked_at: None,
                wants_look: false,
                missing: BTreeMap::new(),
                undecryptable: 0,
            },
            goodbye,
            connected: false,
            states: BTreeMap::new(),
            next_ticket: 1,
            farewells: Vec::new(),
            settlements: Vec::new(),
        }
    }

    /// Whether a message waits for a look at the keyring's file.
    pub(super) fn wants_look(&self) -> bool {
        self.keys.wants_look
    }

    /// The keyring's file was looked at: whoever waited for that goes on.
    pub(super) fn looked(&mut self) {
        self.keys.looked_at = Some(self.clock.now());
        self.keys.wants_look = false;
    }

    /// Opens with other keys from now on.
    pub(super) fn take_keyring(&mut self, keyring: &ClientKeyring) {
        self.keys.opener.take_keyring(keyring);
        self.keys.has_file = keyring.source().is_some();
        for key in keyring.payload_keys() {
            self.keys.missing.remove(&key.id);
        }
    }

    /// Messages told to the program that become dead letters because they cannot be opened.
    pub(super) fn undecryptable(&self) -> u64 {
        self.keys.undecryptable
    }

    pub(super) fn connected(&mut self) {
        self.connected = true;
        let now = self.clock.now();
        self.states.values_mut().for_each(|state| state.session.connected(now));
    }

    pub(super) fn disconnected(&mut self) {
        self.connected = false;
        self.farewells.clear();
        for state in self.states.values_mut() {
            state.session.disconnected();
        }
    }

    pub(super) fn open(&mut self, tags: &mut Tags, subscription: Subscription) {
        let Subscription { number, address, group, options, until, outbox, end, joined } = subscription;
        let Some(tag) = tags.consumer(number) else {
            let message = "too many producers and consumers on one connection".into();
            told(joined, Err(Error::Failed { code: Code::Limit, message }));
            return;
        };
        let mut session = consumer::Consumer::new(ConsumerConfig {
            tag: tag as u16,
            subscription: tag as u32,
            consumer: ConsumerId(u128::from_be_bytes(crate::random())),
            address: address.clone(),
            group,
            start: options.start,
            credit_messages: options.credit_messages.max(1),
            credit_bytes: options.credit_bytes.max(1),
            extend: true,
        });
        if self.connected {
            session.connected(self.clock.now());
        }
        let state = State {
            tag,
            session,
            shards: Vec::new(),
            address,
            deadline: options.deadline,
            unopened: options.unopened,
            key_patience: options.key_patience,
            stuck: None,
            outbox,
            end,
            joined: Some((self.clock.of(until), joined)),
            waiting: BTreeMap::new(),
            closing_until: None,
            done: Vec::new(),
        };
        self.states.insert(number, state);
    }

    pub(super) fn settle(&mut self, settlement: Settlement) {
        let Settlement { consumer, handout, action, reason, reply } = settlement;
        let Some(state) = self.states.get_mut(&consumer) else {
            // A consumer that is gone has given everything back.
            told(reply, Err(Error::LeaseLost));
            return;
        };
        self.next_ticket += 1;
        let until = self.clock.now() + state.deadline;
        state.waiting.insert(self.next_ticket, (until, reply));
        state.session.settle(handout, action, reason, self.next_ticket);
    }

    /// A consumer gives back what it holds and leaves, or is gone soon.
    pub(super) fn close(&mut self, number: u64, done: Option<oneshot::Sender<()>>) {
        let until = self.clock.now() + self.goodbye;
        if let Some(state) = self.states.get_mut(&number) {
            state.session.close();
            state.closing_until.get_or_insert(until);
            state.done.extend(done);
        }
    }

    pub(super) fn close_all(&mut self) {
        let until = self.clock.now() + self.goodbye;
        for state in self.states.values_mut() {
            state.session.close();
            state.closing_until.get_or_insert(until);
        }
    }

    /// Whether no consumer is left.
    pub(super) fn is_idle(&self) -> bool {
        self.states.is_empty()
    }

    /// Whether no consumer holds anything.
    pub(super) fn is_quiet(&self) -> bool {
        self.states.values().all(|state| state.session.held().len() == 0)
    }

    /// From where consumers are fed.
    pub(super) fn shards(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.states.values().flat_map(|state| state.shards.iter().copied())
    }

    /// Whether all consumers have joined, and hold and await nothing.
    pub(super) fn is_at_rest(&self) -> bool {
        self.farewells.is_empty()
            && self.states.values().all(|state| state.session.is_active() && state.session.held().len() == 0)
    }

    pub(super) fn delivered(&mut self, number: u64, deliver: Deliver) {
        if let Some(state) = self.states.get_mut(&number) {
            state.session.deliver(self.clock.now(), deliver);
        }
    }

    pub(super) fn lease_lost(&mut self, number: u64, lost: &LeaseLost) {
        if let Some(state) = self.states.get_mut(&number) {
            state.session.lease_lost(lost);
        }
    }

    pub(super) fn subscribed(&mut self, number: u64, request: u64, subscribed: &Subscribed) {
        if let Some(state) = self.states.get_mut(&number) {
            state.session.subscribed(request, subscribed);
            state.shards = subscribed.shards.iter().map(|(shard, _)| *shard).collect();
        }
    }

    pub(super) fn settled(&mut self, number: u64, request: u64, settled: &Settled) {
        if let Some(state) = self.states.get_mut(&number) {
            state.session.settled(self.clock.now(), request, settled);
        }
    }

    pub(super) fn answered(&mut self, number: u64, request: u64, answer: &Answer) {
        if let Some(state) = self.states.get_mut(&number) {
            state.session.answer(self.clock.now(), request, answer);
        }
    }

    /// Writes what can be sent.
    pub(super) fn pump(&mut self, out: &mut BytesMut) {
        let now = self.clock.now();
        for subscription in self.farewells.drain(..) {
            // Nobody waits for the answer: it finds no owner.
            frame::encode(&Unsubscribe { subscription: subscription as u32 }, subscription << 48, out);
        }
        self.states.values_mut().for_each(|state| state.session.pump(now, out));
    }

    /// Tells the program what became known, and hands out messages. Deadlines pass without a connection too.
    pub(super) fn tell(&mut self, tags: &mut Tags) {
        let now = self.clock.now();
        let commands = self.commands.upgrade();
        let mut over = Vec::new();
        for (number, state) in &mut self.states {
            state.session.take_resolutions(&mut self.settlements);
            for SettleResolution { ticket, result } in self.settlements.drain(..) {
                if let Some((_, reply)) = state.waiting.remove(&ticket) {
                    told(reply, end(result));
                }
            }
            while let Some(first) = state.waiting.first_entry()
                && first.get().0 <= now
            {
                told(first.remove().1, Err(unknown("no answer in time")));
            }
            if let Some((until, joined)) = state.joined.take() {
                if state.session.is_active() {
                    told(joined, Ok(()));
                } else if until <= now {
                    let message = "no answer in time; a new group may have been made".into();
                    told(joined, Err(Error::Failed { code: Code::Deadline, message }));
                    state.session.close();
                    state.closing_until.get_or_insert(now + self.goodbye);
                } else {
                    state.joined = Some((until, joined));
                }
            }
            if state.session.is_closed() || state.closing_until.is_some_and(|until| until <= now) {
                over.push(*number);
            } else if let Some(commands) = &commands {
                hand_out(now, *number, state, &mut self.keys, commands);
            }
        }
        for number in over {
            let Some(state) = self.states.remove(&number) else { continue };
            tags.release(state.tag);
            if self.connected && !state.session.is_closed() {
                self.farewells.push(state.tag);
            }
            state.finish();
        }
    }

    /// When [`Consumers::pump`] or [`Consumers::tell`] has something to do without any input.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let wakes = self.states.values().flat_map(|state| {
            let settlement = state.waiting.first_key_value().map(|(_, (until, _))| *until);
            let joined = state.joined.as_ref().map(|(until, _)| *until);
            let session = state.session.next_wake().filter(|_| self.connected);
            let stuck = state.stuck.as_ref().map(|(_, until)| *until);
            [settlement, joined, session, state.closing_until, stuck]
        });
        let farewell = self.farewells.first().map(|_| Instant(0));
        wakes.chain([farewell]).flatten().min()
    }

    /// The client ends.
    pub(super) fn end(&mut self) {
        std::mem::take(&mut self.states).into_values().for_each(State::finish);
    }
}

impl State {
    /// Tells the program what is certain when the consumer is gone.
    fn finish(self) {
        let refusal = self
            .session
            .refusal()
            .map(|refusal| Error::Failed { code: refusal.code, message: refusal.message.clone() });
        if let Some((_, joined)) = self.joined {
            told(joined, Err(refusal.unwrap_or(Error::Closed)));
        } else if let Some(refusal) = refusal {
            // The program may have dropped its handle.
            let _unheard = self.end.send(refusal).is_err();
        }
        for (_, reply) in self.waiting.into_values() {
            told(reply, Err(unknown("the consumer ended before the answer")));
        }
        for done in self.done {
            let _unheard = done.send(()).is_err();
        }
    }
}

/// The keys that messages are opened with, and what is known of those that are missing. Of all consumers together.
struct Keys {
    opener: Opener,
    has_file: bool,
    /// When the file was looked at last, or a look took too long.
    looked_at: Option<Instant>,
    wants_look: bool,
    /// Since when keys were found to be missing.
    missing: BTreeMap<KeyId, Instant>,
    undecryptable: u64,
}

/// What becomes of a delivery.
enum Fate {
    Opened(Opened),
    /// It may open when the file was looked at.
    Look,
    /// Its key is missing: it is to come again after this time.
    Later(Duration, OpenError),
    Unopened(OpenError),
}

impl Keys {
    fn judge(
        &mut self,
        now: Instant,
        address: &Address,
        (unopened, patience): (Unopened, Duration),
        delivery: &Delivery,
    ) -> Fate {
        let opened = self.opener.open_from(address, delivery.id.shard, &delivery.sealed);
        let error = match opened {
            Ok(opened) => return Fate::Opened(opened),
            Err(error) => error,
        };
        // Another keyring helps if the key is missing, or is another one under the same number.
        let may_help = matches!(error, OpenError::UnknownKey(_) | OpenError::Forged);
        let looked_lately = self.looked_at.is_some_and(|at| now < at + LOOK_PAUSE);
        if may_help && self.has_file && !looked_lately {
            return Fate::Look;
        }
        match error {
            OpenError::UnknownKey(id) if unopened == Unopened::DeadLetter => {
                let waited = now.since(self.missing_since(id, now));
                let left = patience.saturating_sub(waited);
                if left.is_zero() {
                    return Fate::Unopened(error);
                }
                // As long as it has been missing: few attempts, and soon after the key has come.
                Fate::Later(waited.clamp(MISSING_PAUSE_MIN, MISSING_PAUSE_MAX).min(left), error)
            }
            _ => Fate::Unopened(error),
        }
    }

    fn missing_since(&mut self, id: KeyId, now: Instant) -> Instant {
        if let Some(since) = self.missing.get(&id) {
            return *since;
        }
        if self.missing.len() >= MISSING_KEYS_MAX
            && let Some(oldest) = self.missing.iter().min_by_key(|(_, since)| **since).map(|(id, _)| *id)
        {
            self.missing.remove(&oldest);
        }
        self.missing.insert(id, now);
        now
    }
}

/// Opens what was delivered and hands it to the program, as far as the outbox has room.
fn hand_out(
    now: Instant,
    number: u64,
    state: &mut State,
    keys: &mut Keys,
    commands: &mpsc::UnboundedSender<Command>,
) {
    let State { outbox, session, address, unopened, key_patience, stuck, .. } = state;
    // A full outbox is looked at again when the program has taken from it; a closed one belongs to a consumer that the
    // program has dropped, whose close command is on the way.
    while let Ok(place) = outbox.try_reserve() {
        let (delivery, until) = match stuck.take() {
            // Until then, or until the file was looked at.
            Some((delivery, until)) => (delivery, Some(until)),
            None => match session.next_delivery() {
                Some(delivery) => (delivery, None),
                None => break,
            },
        };
        if until.is_some_and(|until| until <= now) {
            // The look takes too long; the next one may take as long.
            keys.looked_at = Some(now);
        }
        match keys.judge(now, address, (*unopened, *key_patience), &delivery) {
            Fate::Opened(opened) => {
                place.send(Handed::Message(received(number, address, delivery, opened, commands)))
            }
            Fate::Look => {
                keys.wants_look = true;
                *stuck = Some((delivery, until.unwrap_or(now + LOOK_TIME_MAX)));
                break;
            }
            Fate::Later(delay, error) => {
                let action = SettleAction::Nack { delay: Some(delay) };
                session.settle(delivery.handout(), action, why_unopened(&error), NOBODY);
            }
            Fate::Unopened(error) => {
                keys.undecryptable += u64::from(*unopened == Unopened::DeadLetter);
                let (view, _) =
                    envelope::split_sealed(&delivery.sealed).expect("checked when the frame was read");
                let id = view.header().message_id();
                place.send(Handed::Unopened { id, delivery: delivery.handout(), error });
            }
        }
    }
}

fn received(
    number: u64,
    address: &Address,
    delivery: Delivery,
    opened: Opened,
    commands: &mpsc::UnboundedSender<Command>,
) -> Received {
    let (view, _) = envelope::split_sealed(&delivery.sealed).expect("it was opened");
    let header = view.header();
    Received {
        id: header.message_id(),
        address: address.as_str().to_owned(),
        key: opened.key,
        headers: opened.headers.into_iter().map(|header| (header.name, header.value)).collect(),
        body: opened.body,
        shard: delivery.id.shard,
        offset: delivery.id.offset,
        attempt: delivery.attempt.0,
        published_at: header.published_at(),
        dead_reason: delivery.reason,
        commands: commands.clone(),
        consumer: number,
    }
}

fn end(result: SettleResult) -> Result<(), SettleError> {
    match result {
        SettleResult::Done => Ok(()),
        SettleResult::LeaseLost => Err(Error::LeaseLost),
        SettleResult::NotAllowed => Err(Error::Failed {
            code: Code::NotAllowed,
            message: "this principal may not settle here".into(),
        }),
        SettleResult::Unknown => Err(Error::Unknown {
            code: Code::LeaseLost,
            message: "the connection broke before the answer, and the lease is gone".into(),
        }),
    }
}

fn unknown(why: &str) -> Error {
    Error::Unknown { code: Code::Deadline, message: why.to_owned() }
}
