//! The receiving end: takes deliveries, filters what it already holds, settles, re-claims after a reconnect.
//!
//! A message is *held* from its delivery until its settlement is confirmed or its lease is known to be lost. What is
//! held is never handed out a second time, and is re-claimed before a new leader delivers it to anybody else.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use crate::{
    error::{Code, Outcome},
    frame::{
        self, Answer, Credit, Deliver, Held, LeaseLost, Settle, SettleAction, SettleItem, Settled, StartAt,
        Subscribe, Subscribed, Unsubscribe,
    },
    id::{Address, Attempt, ConsumerId, GroupName, Offset, ShardId, Term},
    limits::BATCH_MESSAGES_MAX,
    time::Instant,
};

/// Pause between looks for leases that need extending, as a share of the lease.
const EXTEND_LOOK_SHARE: u32 = 6;
/// No address has shorter leases: what comes with less is what is left of one.
const LEASE_MIN: Duration = Duration::from_millis(100);
/// First pause before a refused subscription is tried again.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(50);
/// Ticket of settlements that the application did not ask for.
const NOBODY: u64 = u64::MAX;
/// Time the node may take to answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// Who consumes what, and how much at a time.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// Upper 16 bits of every request number, so that answers find their way.
    pub tag: u16,
    /// The connection's number for this subscription.
    pub subscription: u32,
    /// Who; the same over all reconnects.
    pub consumer: ConsumerId,
    /// Of which address.
    pub address: Address,
    /// In which group.
    pub group: GroupName,
    /// Where a new group begins.
    pub start: Option<StartAt>,
    /// Messages held at a time.
    pub credit_messages: u32,
    /// Their sealed bytes.
    pub credit_bytes: u64,
    /// Keep extending leases while messages are held.
    pub extend: bool,
}

/// Which message, for this consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId {
    /// Of which shard.
    pub shard: ShardId,
    /// Which.
    pub offset: Offset,
}

/// One time that a message was handed to the application. If its lease is lost and it is handed out again, that is
/// another time, and what is said of the first one does not count for the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handout {
    /// Which message.
    pub id: DeliveryId,
    /// Which delivery of it, when it was handed out.
    pub attempt: Attempt,
}

/// A message for the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Which.
    pub id: DeliveryId,
    /// Which delivery of it to the group.
    pub attempt: Attempt,
    /// Why it is a dead letter; empty if it is none.
    pub reason: String,
    /// As its producer sealed it.
    pub sealed: Bytes,
}

impl Delivery {
    /// For its settlement.
    pub fn handout(&self) -> Handout {
        Handout { id: self.id, attempt: self.attempt }
    }
}

/// How a settlement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleResult {
    /// Committed.
    Done,
    /// The lease was not ours any more: nothing was settled; somebody else has or had the message.
    LeaseLost,
    /// The connection broke between the settlement and its answer, and the message is gone now: most likely settled.
    Unknown,
    /// The principal may not settle here. Nothing was settled, and the message is held as before.
    NotAllowed,
}

/// The end of one settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettleResolution {
    /// As given with the settlement.
    pub ticket: u64,
    /// How it ended.
    pub result: SettleResult,
}

/// Why a subscription ended for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Buffered,
    WithApplication,
    /// A settlement waits to be sent, or for its answer.
    Settling {
        ticket: u64,
        action: SettleAction,
        reason: String,
        /// A copy waits for its answer.
        under_way: bool,
        /// An earlier copy has no certain answer: it may have settled the message.
        unsure: bool,
    },
}

impl Stage {
    fn settling(ticket: u64, action: SettleAction, reason: String) -> Self {
        Self::Settling { ticket, action, reason, under_way: false, unsure: false }
    }

    fn release() -> Self {
        Self::settling(NOBODY, SettleAction::Release, String::new())
    }

    fn is_under_way(&self) -> bool {
        matches!(self, Self::Settling { under_way: true, .. })
    }

    /// The copy under way will have no answer, or none that counts. False: there is none.
    fn give_up_copy(&mut self) -> bool {
        let Self::Settling { under_way, unsure, .. } = self else { return false };
        *unsure |= *under_way;
        std::mem::take(under_way)
    }
}

#[derive(Debug)]
struct Message {
    attempt: Attempt,
    /// The delivery that the application has or will get; later ones only renewed the lease.
    handed_as: Attempt,
    term: Term,
    bytes: u64,
    expires_at: Instant,
    stage: Stage,
    /// Its credit was given back before its settlement is known to be committed.
    is_ahead: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Detached,
    /// Connected, not subscribed; try at this time.
    Idle(Instant),
    Subscribing,
    Active,
    Leaving,
    Gone,
}

/// One subscription.
#[derive(Debug)]
pub struct Consumer {
    config: ConsumerConfig,
    link: Link,
    /// A subscription that said where to begin was sent; its fate may be open.
    start_asked: bool,
    start_told: bool,
    /// The subscription was made with credit, so messages may be coming.
    fed: bool,
    held: BTreeMap<DeliveryId, Message>,
    ready: VecDeque<Delivery>,
    /// To be settled, in order.
    queue: VecDeque<DeliveryId>,
    extensions: Vec<DeliveryId>,
    asked: BTreeMap<u64, Asked>,
    next_request: u64,
    owed_messages: u32,
    owed_bytes: u64,
    /// Of messages whose credit was given back ahead.
    ahead_messages: u32,
    ahead_bytes: u64,
    resolutions: Vec<SettleResolution>,
    refusal: Option<Refusal>,
    closing: bool,
    /// The longest lease that came with a message. One that waited for room on its way comes with what is left of its own,
    /// perhaps nothing: extended by that, others would end.
    lease: Duration,
    next_look: Instant,
    retry_at: Instant,
}

#[derive(Debug)]
enum Asked {
    /// With a start that an earlier one had too.
    Subscribe {
        start_again: bool,
    },
    Unsubscribe,
    Settle(Vec<AskedItem>),
}

/// What was asked about one lease. An answer that comes when the message is held under a later one says nothing of it.
#[derive(Clone, Copy, Debug)]
struct AskedItem {
    id: DeliveryId,
    attempt: Attempt,
    /// By how much its lease is to last longer from now; `None`: a settlement.
    extension: Option<Duration>,
    /// The message was to be given back and came again before the answer, which is only told: the ticket, and whether an
    /// earlier copy has no certain answer.
    overtaken: Option<(u64, bool)>,
}

impl Consumer {
    /// A subscription to be made on the next connection.
    pub fn new(config: ConsumerConfig) -> Self {
        let next_request = (u64::from(config.tag) << 48) + 1;
        Self {
            config,
            link: Link::Detached,
            start_asked: false,
            start_told: false,
            fed: false,
            held: BTreeMap::new(),
            ready: VecDeque::new(),
            queue: VecDeque::new(),
            extensions: Vec::new(),
            asked: BTreeMap::new(),
            next_request,
            owed_messages: 0,
            owed_bytes: 0,
            ahead_messages: 0,
            ahead_bytes: 0,
            resolutions: Vec::new(),
            refusal: None,
            closing: false,
            lease: LEASE_MIN,
            next_look: Instant(0),
            retry_at: Instant(0),
        }
    }

    /// Whether `request` was asked by this session.
    pub fn owns(&self, request: u64) -> bool {
        request >> 48 == u64::from(self.config.tag)
    }

    /// The connection's number for this subscription.
    pub fn subscription(&self) -> u32 {
        self.config.subscription
    }

    /// Whether the group feeds this consumer now.
    pub fn is_active(&self) -> bool {
        self.link == Link::Active
    }

    /// Why it ended for good, if it did.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// Messages held.
    pub fn held(&self) -> impl ExactSizeIterator<Item = &DeliveryId> {
        self.held.keys()
    }

    /// A connection is open.
    pub fn connected(&mut self, now: Instant) {
        if self.link == Link::Detached {
            self.link = Link::Idle(now);
        }
    }

    /// The connection is gone. What is held stays held, to be re-claimed.
    pub fn disconnected(&mut self) {
        if self.link == Link::Gone {
            return;
        }
        self.link = Link::Detached;
        for asked in std::mem::take(&mut self.asked).into_values() {
            let Asked::Settle(which) = asked else { continue };
            let overtaken = which.into_iter().filter_map(|item| item.overtaken);
            overtaken.for_each(|(ticket, _)| self.resolve(ticket, SettleResult::Unknown));
        }
        self.extensions.clear();
        for message in self.held.values_mut() {
            message.stage.give_up_copy();
        }
    }

    /// The next message for the application.
    pub fn next_delivery(&mut self) -> Option<Delivery> {
        let delivery = self.ready.pop_front()?;
        if let Some(message) = self.held.get_mut(&delivery.id) {
            message.stage = Stage::WithApplication;
        }
        Some(delivery)
    }

    /// Settles a message that the application holds. The result comes with `ticket`.
    ///
    /// [`SettleAction::Extend`] is not for here: leases of held messages are extended by themselves.
    pub fn settle(&mut self, handout: Handout, action: SettleAction, reason: String, ticket: u64) {
        let id = handout.id;
        match self.held.get_mut(&id) {
            Some(message)
                if message.stage == Stage::WithApplication && message.handed_as == handout.attempt =>
            {
                message.stage = Stage::settling(ticket, action, reason);
                self.queue.push_back(id);
                self.go_ahead(id);
            }
            _ => self.resolutions.push(SettleResolution { ticket, result: SettleResult::LeaseLost }),
        }
    }

    /// Gives back everything that is held, then leaves.
    pub fn close(&mut self) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.ready.clear();
        for (id, message) in &mut self.held {
            if matches!(message.stage, Stage::Buffered | Stage::WithApplication) {
                message.stage = Stage::release();
                self.queue.push_back(*id);
            }
        }
    }

    /// Whether closing is complete.
    pub fn is_closed(&self) -> bool {
        self.link == Link::Gone
            || self.refusal.is_some()
            || (self.closing && self.link == Link::Detached && self.held.is_empty())
    }

    /// Ends of settlements that became known since the last call.
    pub fn take_resolutions(&mut self, into: &mut Vec<SettleResolution>) {
        into.append(&mut self.resolutions);
    }

    fn request(&mut self, asked: Asked) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        self.asked.insert(request, asked);
        request
    }

    /// Writes what can be sent now.
    pub fn pump(&mut self, now: Instant, out: &mut BytesMut) {
        match self.link {
            Link::Idle(at) if at <= now => self.subscribe(out),
            Link::Active => {
                self.look_for_extensions(now);
                if self.retry_at <= now {
                    self.send_settlements(out);
                }
                // As long as there is credit, what is given back may come back at once: leave right behind it.
                if self.closing && (self.fed || self.held.is_empty()) {
                    self.link = Link::Leaving;
                    let request = self.request(Asked::Unsubscribe);
                    frame::encode(&Unsubscribe { subscription: self.config.subscription }, request, out);
                    return;
                }
                self.replenish(out);
            }
            _ => {}
        }
    }

    fn subscribe(&mut self, out: &mut BytesMut) {
        if self.closing && self.held.is_empty() {
            self.link = Link::Gone;
            return;
        }
        if self.only_listens() {
            return;
        }
        self.link = Link::Subscribing;
        self.fed = !self.closing;
        let start = self.config.start.filter(|_| !self.start_told);
        let start_again = start.is_some() && self.start_asked;
        self.start_asked |= start.is_some();
        let held = self
            .held
            .iter()
            .map(|(id, message)| Held { shard: id.shard, offset: id.offset, attempt: message.attempt })
            .collect();
        let held_messages = self.held.len() as u32 - self.ahead_messages;
        let held_bytes = self.held.values().map(|message| message.bytes).sum::<u64>() - self.ahead_bytes;
        let subscribe = Subscribe {
            subscription: self.config.subscription,
            consumer: self.config.consumer,
            address: self.config.address.clone(),
            group: self.config.group.clone(),
            start,
            credit_messages: if self.closing {
                0
            } else {
                self.config.credit_messages.saturating_sub(held_messages)
            },
            credit_bytes: if self.closing { 0 } else { self.config.credit_bytes.saturating_sub(held_bytes) },
            deadline: DEADLINE,
            held,
        };
        self.owed_messages = 0;
        self.owed_bytes = 0;
        let request = self.request(Asked::Subscribe { start_again });
        frame::encode(&subscribe, request, out);
    }

    /// Whether, closing, all that is held waits only for answers, which need no subscription.
    fn only_listens(&self) -> bool {
        self.closing
            && !self.held.is_empty()
            && self.held.values().all(|message| message.stage.is_under_way())
    }

    fn look_for_extensions(&mut self, now: Instant) {
        if now < self.next_look || !self.config.extend || self.held.is_empty() {
            return;
        }
        self.next_look = now + self.lease / EXTEND_LOOK_SHARE;
        let soon = now + self.lease / 2;
        for (id, message) in &mut self.held {
            if message.expires_at <= soon && matches!(message.stage, Stage::Buffered | Stage::WithApplication)
            {
                self.extensions.push(*id);
            }
        }
    }

    fn send_settlements(&mut self, out: &mut BytesMut) {
        while !self.queue.is_empty() || !self.extensions.is_empty() {
            let mut items = Vec::new();
            let mut which = Vec::new();
            while items.len() < BATCH_MESSAGES_MAX
                && let Some(id) = self.queue.pop_front()
            {
                let Some(message) = self.held.get_mut(&id) else { continue };
                let Stage::Settling { action, reason, under_way: under_way @ false, .. } = &mut message.stage
                else {
                    continue;
                };
                *under_way = true;
                which.push(AskedItem { id, attempt: message.attempt, extension: None, overtaken: None });
                items.push(SettleItem {
                    shard: id.shard,
                    offset: id.offset,
                    term: message.term,
                    attempt: message.attempt,
                    action: *action,
                    reason: reason.clone(),
                });
            }
            while items.len() < BATCH_MESSAGES_MAX
                && let Some(id) = self.extensions.pop()
            {
                let Some(message) = self.held.get_mut(&id) else { continue };
                if matches!(message.stage, Stage::Settling { .. }) {
                    continue;
                }
                which.push(AskedItem {
                    id,
                    attempt: message.attempt,
                    extension: Some(self.lease),
                    overtaken: None,
                });
                items.push(SettleItem {
                    shard: id.shard,
                    offset: id.offset,
                    term: message.term,
                    attempt: message.attempt,
                    action: SettleAction::Extend { duration: self.lease },
                    reason: String::new(),
                });
            }
            if items.is_empty() {
                return;
            }
            let request = self.request(Asked::Settle(which));
            let settle = Settle { subscription: self.config.subscription, deadline: DEADLINE, items };
            frame::encode(&settle, request, out);
        }
    }

    /// Gives credit back in large steps: when a quarter of it was used up and settled.
    fn replenish(&mut self, out: &mut BytesMut) {
        let due = !self.closing
            && self.owed_messages > 0
            && (self.owed_messages * 4 >= self.config.credit_messages
                || self.owed_bytes * 4 >= self.config.credit_bytes);
        if due {
            let credit = Credit {
                subscription: self.config.subscription,
                messages: std::mem::take(&mut self.owed_messages),
                bytes: std::mem::take(&mut self.owed_bytes),
            };
            frame::encode(&credit, 0, out);
        }
    }

    fn owe(&mut self, bytes: u64) {
        self.owed_messages += 1;
        self.owed_bytes += bytes;
    }

    /// What the application is done with makes room for the next message before its settlement is committed, or credit would
    /// bound the rate by how long commits take. Nearly as much again as the credit may be under way like that; who has room
    /// for one gets the next only when the one before is settled for good.
    fn go_ahead(&mut self, id: DeliveryId) {
        let Some(message) = self.held.get_mut(&id).filter(|message| !message.is_ahead) else { return };
        let bytes = message.bytes;
        let fits = self.ahead_messages + 1 < self.config.credit_messages
            && self.ahead_bytes.saturating_add(bytes) <= self.config.credit_bytes;
        if fits {
            message.is_ahead = true;
            self.ahead_messages += 1;
            self.ahead_bytes += bytes;
            self.owe(bytes);
        }
    }

    /// A message is held no more, and uses no credit.
    fn forget(&mut self, id: DeliveryId) -> Option<Message> {
        let message = self.held.remove(&id)?;
        if message.is_ahead {
            self.ahead_messages -= 1;
            self.ahead_bytes -= message.bytes;
        } else {
            self.owe(message.bytes);
        }
        Some(message)
    }

    /// Takes messages. Those that are held already are not handed out again.
    pub fn deliver(&mut self, now: Instant, frame: Deliver) {
        for item in frame.items {
            let id = DeliveryId { shard: item.shard, offset: item.offset };
            let bytes = item.sealed.len() as u64;
            let expires_at = now + item.lease;
            self.lease = self.lease.max(item.lease);
            // The pause so far may be the share of a longer lease.
            self.next_look = self.next_look.min(now + item.lease / EXTEND_LOOK_SHARE);
            let known = self.held.get(&id);
            let (is_held, is_ahead) = (known.is_some(), known.is_some_and(|message| message.is_ahead));
            if is_held {
                self.owe(bytes);
            }
            if is_held && !self.came_back(id, item.attempt) {
                // The same message under a newer lease: we hold it already, so only the lease is new.
                let message = self.held.get_mut(&id).expect("looked at above");
                message.attempt = item.attempt;
                message.term = item.term;
                message.expires_at = expires_at;
                if message.stage.give_up_copy() {
                    self.queue.push_back(id);
                }
                continue;
            }
            let mut stage = Stage::Buffered;
            if self.closing {
                stage = Stage::release();
                self.queue.push_back(id);
            } else {
                self.ready.push_back(Delivery {
                    id,
                    attempt: item.attempt,
                    reason: item.reason,
                    sealed: item.sealed,
                });
            }
            self.held.insert(
                id,
                Message {
                    attempt: item.attempt,
                    handed_as: item.attempt,
                    term: item.term,
                    bytes,
                    expires_at,
                    stage,
                    is_ahead,
                },
            );
        }
    }

    /// Whether a held message, which comes as `attempt` now, was being given back: then it has done so, or its lease had run
    /// out before. Given back once more under its new lease it would come and go without end, as long as deliveries overtake
    /// answers; its application is to have it again.
    fn came_back(&mut self, id: DeliveryId, attempt: Attempt) -> bool {
        let Some(message) = self.held.get(&id).filter(|message| message.attempt < attempt) else {
            return false;
        };
        let Stage::Settling { ticket, action, under_way: true, unsure, .. } = message.stage else {
            return false;
        };
        if !matches!(action, SettleAction::Nack { .. } | SettleAction::Release) {
            return false;
        }
        let asked = |item: &&mut AskedItem| {
            item.id == id && item.attempt == message.attempt && item.extension.is_none()
        };
        let mut items = self.asked.values_mut().filter_map(|asked| match asked {
            Asked::Settle(which) => Some(which),
            _ => None,
        });
        match items.find_map(|which| which.iter_mut().find(asked)) {
            Some(item) => item.overtaken = Some((ticket, unsure)),
            None => self.resolve(ticket, SettleResult::Unknown),
        }
        true
    }

    /// Takes the answer to a subscription.
    pub fn subscribed(&mut self, request: u64, frame: &Subscribed) {
        if !matches!(self.asked.remove(&request), Some(Asked::Subscribe { .. })) {
            return;
        }
        self.link = Link::Active;
        self.start_told = true;
        for (shard, offset) in &frame.lost {
            self.lose(DeliveryId { shard: *shard, offset: *offset });
        }
        let terms: BTreeMap<ShardId, Term> = frame.shards.iter().copied().collect();
        self.queue.clear();
        for (id, message) in &mut self.held {
            if let Some(term) = terms.get(&id.shard) {
                message.term = *term;
            }
            if matches!(message.stage, Stage::Settling { under_way: false, .. }) {
                self.queue.push_back(*id);
            }
        }
        // Credit was granted for what was free when we asked; what was lost since is free too.
    }

    /// A lease ended without us.
    fn lose(&mut self, id: DeliveryId) {
        let Some(message) = self.forget(id) else { return };
        match message.stage {
            Stage::Buffered => self.ready.retain(|delivery| delivery.id != id),
            Stage::WithApplication => {}
            Stage::Settling { ticket, under_way, unsure, .. } => {
                let result =
                    if under_way || unsure { SettleResult::Unknown } else { SettleResult::LeaseLost };
                self.resolve(ticket, result);
            }
        }
    }

    /// Takes the news that leases ended.
    pub fn lease_lost(&mut self, frame: &LeaseLost) {
        for item in &frame.items {
            let id = DeliveryId { shard: item.shard, offset: item.offset };
            if self.held.get(&id).is_some_and(|message| message.attempt == item.attempt) {
                self.lose(id);
            }
        }
    }

    fn resolve(&mut self, ticket: u64, result: SettleResult) {
        if ticket != NOBODY {
            self.resolutions.push(SettleResolution { ticket, result });
        }
    }

    /// Takes the answer to settlements.
    pub fn settled(&mut self, now: Instant, request: u64, frame: &Settled) {
        let Some(Asked::Settle(which)) = self.asked.remove(&request) else { return };
        let fates =
            frame.runs.iter().flat_map(|run| std::iter::repeat_n((run.outcome, run.code), run.count.into()));
        self.conclude(now, which.into_iter().zip(fates));
    }

    fn conclude(&mut self, now: Instant, fates: impl Iterator<Item = (AskedItem, (Outcome, u16))>) {
        for (asked, (outcome, code)) in fates {
            let id = asked.id;
            if let Some((ticket, unsure)) = asked.overtaken {
                let result = match outcome {
                    Outcome::Ok => SettleResult::Done,
                    Outcome::Failed if !unsure => SettleResult::LeaseLost,
                    _ => SettleResult::Unknown,
                };
                self.resolve(ticket, result);
                continue;
            }
            let Some(message) = self.held.get_mut(&id) else { continue };
            if message.attempt != asked.attempt {
                continue;
            }
            let lost = outcome == Outcome::Failed && code == Code::LeaseLost.number();
            if let Some(duration) = asked.extension {
                if outcome == Outcome::Ok {
                    message.expires_at = message.expires_at.max(now + duration);
                } else if lost {
                    self.lose(id);
                }
                continue;
            }
            let Stage::Settling { ticket, under_way, unsure, .. } = &mut message.stage else { continue };
            if outcome == Outcome::Ok || lost {
                let result = match (lost, *unsure) {
                    (false, _) => SettleResult::Done,
                    (true, true) => SettleResult::Unknown,
                    (true, false) => SettleResult::LeaseLost,
                };
                let ticket = *ticket;
                self.forget(id);
                self.resolve(ticket, result);
            } else if outcome == Outcome::Failed && code == Code::NotAllowed.number() && !*unsure {
                let ticket = *ticket;
                message.stage = Stage::WithApplication;
                self.resolve(ticket, SettleResult::NotAllowed);
            } else {
                // Not now, or unknown: the same settlement again, a little later.
                *under_way = false;
                *unsure |= outcome == Outcome::Unknown;
                self.queue.push_back(id);
                self.retry_at = now + RESUBSCRIBE_PAUSE;
            }
        }
    }

    /// Takes any other answer.
    pub fn answer(&mut self, now: Instant, request: u64, answer: &Answer) {
        let code = Code::from_number(answer.code).unwrap_or(Code::Malformed);
        let failed = answer.outcome == Outcome::Failed;
        match self.asked.remove(&request) {
            Some(Asked::Subscribe { start_again: true }) if failed && code == Code::Exists => {
                // The earlier one may have made the group, which then begins where it said.
                self.start_told = true;
                self.link = Link::Idle(now);
            }
            Some(Asked::Subscribe { .. }) if failed && !code.is_transient() => {
                self.refusal = Some(Refusal { code, message: answer.message.clone() });
                self.link = Link::Gone;
            }
            Some(Asked::Subscribe { .. }) => self.link = Link::Idle(now + RESUBSCRIBE_PAUSE),
            Some(Asked::Unsubscribe) => {
                self.link = if self.held.is_empty() { Link::Gone } else { Link::Idle(now) };
            }
            Some(Asked::Settle(which)) => {
                // A plain answer to settlements speaks for all of them.
                let fate = (answer.outcome, answer.code);
                self.conclude(now, which.into_iter().zip(std::iter::repeat(fate)));
            }
            None => {}
        }
    }

    /// When [`Consumer::pump`] has something to do without any input.
    pub fn next_wake(&self) -> Option<Instant> {
        match self.link {
            Link::Idle(at) => Some(at).filter(|_| !self.only_listens()),
            Link::Active => {
                let look = (self.config.extend && !self.held.is_empty()).then_some(self.next_look);
                let retry = (!self.queue.is_empty()).then_some(self.retry_at);
                [look, retry].into_iter().flatten().min()
            }
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "consumer_tests.rs"]
mod tests;
