//! A consumer process: several subscriptions over one connection, and an application behind them.

use std::{collections::BTreeMap, time::Duration};

use bytes::BytesMut;
use swarmmq_engine::shard::delivery::Leased;
use swarmmq_protocol::{
    error::Code,
    frame::{DeliverItem, Frame, SettleAction, StartAt},
    id::{Address, ConsumerId, GroupName, Term},
    session::consumer::{Consumer, ConsumerConfig, Delivery, DeliveryId, Handout, SettleResolution},
    time::Instant,
};

/// One subscription to be made.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Of which address.
    pub address: Address,
    /// In which group.
    pub group: GroupName,
    /// The group's number in the history.
    pub number: usize,
    /// Where it begins, if it is new.
    pub start: Option<StartAt>,
    /// Messages held at a time.
    pub credit: u32,
    /// Keep extending leases.
    pub extend: bool,
}

/// Where a delivery came from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// In which reign it was given out.
    pub term: Term,
    /// What was left of its lease when a node sent it to the client.
    pub lease: Duration,
}

#[derive(Debug)]
struct Subscription {
    wanted: Wanted,
    session: Consumer,
    /// Of what the application has not taken yet: the session keeps that to itself.
    origins: BTreeMap<DeliveryId, Origin>,
}

/// One life of a consumer.
#[derive(Debug)]
pub struct ConsumerProcess {
    /// Names this life in the history.
    pub name: u64,
    consumer: ConsumerId,
    subscriptions: Vec<Subscription>,
}

impl ConsumerProcess {
    /// A fresh identity.
    pub fn new(name: u64, consumer: ConsumerId, wanted: Vec<Wanted>) -> Self {
        let subscriptions = wanted
            .into_iter()
            .enumerate()
            .map(|(index, wanted)| Subscription {
                session: session(consumer, index, &wanted),
                wanted,
                origins: BTreeMap::new(),
            })
            .collect();
        Self { name, consumer, subscriptions }
    }

    /// Whether every group feeds it.
    pub fn is_active(&self) -> bool {
        self.subscriptions.iter().all(|subscription| subscription.session.is_active())
    }

    /// Messages held.
    pub fn held(&self) -> usize {
        self.subscriptions.iter().map(|subscription| subscription.session.held().len()).sum()
    }

    /// Whether a message is leased to this one, which takes part there and does not have it.
    pub fn lacks(&self, leased: &Leased<'_>, id: DeliveryId) -> bool {
        let mut fed = self.subscriptions.iter().filter(|subscription| subscription.session.is_active());
        self.consumer == leased.consumer
            && fed.any(|Subscription { wanted, session, .. }| {
                (&wanted.address, &wanted.group) == (leased.address, leased.group)
                    && !session.held().any(|held| *held == id)
            })
    }

    /// Why a subscription ended for good, where that is no ordinary answer.
    pub fn refusal(&self) -> Option<String> {
        self.subscriptions.iter().find_map(|subscription| {
            let refusal = subscription.session.refusal()?;
            Some(format!(
                "{} {}: {} {}",
                subscription.wanted.address, subscription.wanted.group, refusal.code, refusal.message
            ))
        })
    }

    pub(super) fn disconnected(&mut self) {
        self.subscriptions.iter_mut().for_each(|subscription| subscription.session.disconnected());
    }

    pub(super) fn opened(&mut self, now: Instant) {
        self.subscriptions.iter_mut().for_each(|subscription| subscription.session.connected(now));
    }

    pub(super) fn frame(&mut self, now: Instant, request: u64, frame: Frame) {
        let number = match &frame {
            Frame::Deliver(deliver) => u64::from(deliver.subscription),
            Frame::LeaseLost(lost) => u64::from(lost.subscription),
            _ => request >> 48,
        };
        let Some(index) = (number as usize).checked_sub(1) else { return };
        let Some(subscription) = self.subscriptions.get_mut(index) else { return };
        let session = &mut subscription.session;
        match frame {
            Frame::Deliver(deliver) => {
                let items = deliver.items.iter();
                let origin = |item: &DeliverItem| Origin { term: item.term, lease: item.lease };
                let origins =
                    items.map(|item| (DeliveryId { shard: item.shard, offset: item.offset }, origin(item)));
                subscription.origins.extend(origins);
                session.deliver(now, deliver);
            }
            Frame::LeaseLost(lost) => session.lease_lost(&lost),
            Frame::Subscribed(subscribed) => session.subscribed(request, &subscribed),
            Frame::Settled(settled) => session.settled(now, request, &settled),
            Frame::Answer(answer) => session.answer(now, request, &answer),
            _ => {}
        }
        // Somebody made the group first, or our own first question was carried out and its answer lost.
        let exists = session.refusal().is_some_and(|refusal| refusal.code == Code::Exists);
        if exists && subscription.wanted.start.take().is_some() {
            subscription.session = self::session(self.consumer, index, &subscription.wanted);
            subscription.session.connected(now);
        }
    }

    pub(super) fn pump(&mut self, now: Instant, out: &mut BytesMut) {
        self.subscriptions.iter_mut().for_each(|subscription| subscription.session.pump(now, out));
    }

    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.subscriptions.iter().filter_map(|subscription| subscription.session.next_wake()).min()
    }

    /// The next message for the application: of which subscription, in which group, where it came from, what.
    /// To be asked after all that arrived, until there is none.
    pub fn next_delivery(&mut self) -> Option<(usize, usize, Origin, Delivery)> {
        self.subscriptions.iter_mut().enumerate().find_map(|(index, subscription)| {
            let Some(delivery) = subscription.session.next_delivery() else {
                subscription.origins.clear();
                return None;
            };
            let origin = *subscription.origins.get(&delivery.id).expect("noted when it came");
            Some((index, subscription.wanted.number, origin, delivery))
        })
    }

    /// The application is done with a message.
    pub fn settle(&mut self, subscription: usize, handout: Handout, action: SettleAction, ticket: u64) {
        let reason = if action == SettleAction::Ack { String::new() } else { "because".to_owned() };
        self.subscriptions[subscription].session.settle(handout, action, reason, ticket);
    }

    /// Ends of settlements that became known since the last call.
    pub fn take_resolutions(&mut self, into: &mut Vec<SettleResolution>) {
        self.subscriptions.iter_mut().for_each(|subscription| subscription.session.take_resolutions(into));
    }
}

fn session(consumer: ConsumerId, index: usize, wanted: &Wanted) -> Consumer {
    Consumer::new(ConsumerConfig {
        tag: index as u16 + 1,
        subscription: index as u32 + 1,
        consumer,
        address: wanted.address.clone(),
        group: wanted.group.clone(),
        start: wanted.start,
        credit_messages: wanted.credit,
        credit_bytes: 1 << 20,
        extend: wanted.extend,
    })
}
