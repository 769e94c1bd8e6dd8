//! Which order an address has: asked once, remembered, asked again when an answer may have changed.
//!
//! A question that was refused for now is asked again after a growing pause; whoever waits for it has a deadline of its
//! own. Asking makes an address that is not there, so asking again is harmless.

use std::{collections::BTreeMap, time::Duration};

use bytes::BytesMut;
use swarmmq_protocol::{
    admin::Order,
    error::{Code, Outcome},
    frame::{self, Answer, Resolve},
    id::Address,
    time::Instant,
};

use super::refusal;
use crate::Error;

/// First pause before a question that was refused for now is asked again; doubles up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Time the node may take to answer.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Wanted {
    /// With which order it is made if it is not there; `None`: the cluster decides.
    order: Option<Order>,
    /// When to ask; `None`: the question is under way.
    ask_at: Option<Instant>,
    pause: Duration,
}

/// What one connection's producers know about addresses.
///
/// Bounded: what is known by the addresses that the cluster allows, what is asked by the messages that wait for it.
#[derive(Debug)]
pub(super) struct Orders {
    known: BTreeMap<Address, Order>,
    wanted: BTreeMap<Address, Wanted>,
    asked: BTreeMap<u64, Address>,
    next_request: u64,
}

impl Orders {
    /// Nothing is known. `tag` marks the requests of this room.
    pub(super) fn new(tag: u64) -> Self {
        Self {
            known: BTreeMap::new(),
            wanted: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_request: (tag << 48) + 1,
        }
    }

    /// The order of `address`, if it is known.
    pub(super) fn get(&self, address: &Address) -> Option<Order> {
        self.known.get(address).copied()
    }

    /// Asks for `address` unless that is under way. `order`: with which it is made if it is not there.
    pub(super) fn want(&mut self, address: &Address, order: Option<Order>) {
        if !self.wanted.contains_key(address) {
            let wanted = Wanted { order, ask_at: Some(Instant(0)), pause: PAUSE_FIRST };
            self.wanted.insert(address.clone(), wanted);
        }
    }

    /// Nobody waits for `address` any more.
    pub(super) fn unwant(&mut self, address: &Address) {
        self.wanted.remove(address);
    }

    /// The cluster no longer agrees with what is known: the address was removed, or made anew in another order.
    pub(super) fn forget(&mut self, address: &Address) {
        self.known.remove(address);
    }

    /// Writes the questions that are due.
    pub(super) fn pump(&mut self, now: Instant, out: &mut BytesMut) {
        for (address, wanted) in &mut self.wanted {
            if wanted.ask_at.is_some_and(|at| at <= now) {
                wanted.ask_at = None;
                let resolve = Resolve {
                    address: address.clone(),
                    create: true,
                    order: wanted.order,
                    deadline: DEADLINE,
                };
                self.asked.insert(self.next_request, address.clone());
                frame::encode(&resolve, self.next_request, out);
                self.next_request += 1;
            }
        }
    }

    /// The connection is gone: what was asked is asked again on the next one.
    pub(super) fn disconnected(&mut self) {
        self.asked.clear();
        self.wanted.values_mut().for_each(|wanted| wanted.ask_at = Some(Instant(0)));
    }

    /// An address and its order; `None`: nobody asked.
    pub(super) fn resolved(&mut self, request: u64, order: Order) -> Option<Address> {
        let address = self.asked.remove(&request)?;
        self.wanted.remove(&address);
        self.known.insert(address.clone(), order);
        Some(address)
    }

    /// A refusal. `Some`: it is final, and this is why.
    pub(super) fn refused(
        &mut self,
        now: Instant,
        request: u64,
        answer: &Answer,
    ) -> Option<(Address, Error)> {
        let address = self.asked.remove(&request)?;
        let wanted = self.wanted.get_mut(&address)?;
        let code = Code::from_number(answer.code).unwrap_or(Code::Malformed);
        if code == Code::OrderConflict && wanted.order.is_some() {
            // Others may wait for the same address and take any order: each is judged by itself once it is known.
            wanted.order = None;
            wanted.ask_at = Some(now);
            return None;
        }
        if code.is_transient() || answer.outcome == Outcome::Unknown {
            wanted.ask_at = Some(now + wanted.pause);
            wanted.pause = (wanted.pause * 2).min(PAUSE_MAX);
            return None;
        }
        self.wanted.remove(&address);
        Some((address, refusal(answer)))
    }

    /// When [`Orders::pump`] has something to write.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.wanted.values().filter_map(|wanted| wanted.ask_at).min()
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::frame::{Frame, FrameReader};

    use super::*;

    fn address() -> Address {
        Address::parse("shop.orders").unwrap()
    }

    /// Pumps, and takes the questions that came out.
    fn asked(orders: &mut Orders, now: Instant) -> Vec<(u64, Option<Order>)> {
        let mut out = BytesMut::new();
        orders.pump(now, &mut out);
        let mut reader = FrameReader::new();
        reader.set_authenticated();
        reader.buffer().extend_from_slice(&out);
        std::iter::from_fn(|| reader.next_frame().unwrap())
            .map(|(header, body)| match Frame::decode(header.kind, body).unwrap() {
                Frame::Resolve(resolve) => (header.request, resolve.order),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn no(code: Code) -> Answer {
        Answer { outcome: Outcome::Failed, code: code.number(), message: String::new() }
    }

    #[test]
    fn an_address_is_asked_for_once_and_remembered() {
        let mut orders = Orders::new(7);
        orders.want(&address(), Some(Order::Key));
        orders.want(&address(), None);
        let questions = asked(&mut orders, Instant(1));
        assert_eq!(questions, [((7 << 48) + 1, Some(Order::Key))]);
        assert_eq!(asked(&mut orders, Instant(2)), []);
        assert_eq!(orders.resolved(questions[0].0, Order::Key), Some(address()));
        assert_eq!(orders.get(&address()), Some(Order::Key));
        assert_eq!(orders.resolved(questions[0].0, Order::Total), None, "answered already");
    }

    #[test]
    fn what_may_pass_is_asked_again_after_a_growing_pause_and_what_is_final_is_told() {
        let mut orders = Orders::new(7);
        orders.want(&address(), None);
        let now = Instant::from_millis(5);
        let (request, _) = asked(&mut orders, now)[0];
        assert_eq!(orders.refused(now, request, &no(Code::NotLeader)), None);
        assert_eq!(orders.next_wake(), Some(now + PAUSE_FIRST));
        assert_eq!(asked(&mut orders, now), []);

        let later = now + PAUSE_FIRST;
        let (request, _) = asked(&mut orders, later)[0];
        assert_eq!(orders.refused(later, request, &no(Code::QuorumLost)), None);
        assert_eq!(orders.next_wake(), Some(later + PAUSE_FIRST * 2));

        let (request, _) = asked(&mut orders, Instant(u64::MAX))[0];
        let (of, error) = orders.refused(later, request, &no(Code::NotAllowed)).unwrap();
        assert_eq!((of, error.code()), (address(), "not_allowed"));
        assert_eq!(orders.next_wake(), None);
    }

    #[test]
    fn another_order_than_wanted_is_no_failure_for_those_who_take_any() {
        let mut orders = Orders::new(7);
        orders.want(&address(), Some(Order::Key));
        let (request, _) = asked(&mut orders, Instant(1))[0];
        assert_eq!(orders.refused(Instant(1), request, &no(Code::OrderConflict)), None);
        assert_eq!(asked(&mut orders, Instant(1)), [((7 << 48) + 2, None)]);
    }

    #[test]
    fn a_broken_connection_asks_again_and_a_removed_address_is_forgotten() {
        let mut orders = Orders::new(7);
        orders.want(&address(), None);
        let (old, _) = asked(&mut orders, Instant(1))[0];
        orders.disconnected();
        let (new, _) = asked(&mut orders, Instant(2))[0];
        assert_eq!(orders.resolved(old, Order::None), None, "an answer of the old connection");
        assert_eq!(orders.resolved(new, Order::Total), Some(address()));
        orders.forget(&address());
        assert_eq!(orders.get(&address()), None);
    }
}
