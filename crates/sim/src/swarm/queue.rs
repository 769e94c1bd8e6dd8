//! What is still to happen, in order of time; of what happens at one time, what was said first comes first.
//!
//! The heap holds only times and places; events lie still until they happen. Turns of hosts are apart: each host has at most
//! one to come, and with nearly every packet it comes sooner than was planned, which a heap would take as one more event.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::Event;

/// Events to come.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Time, number, and place in `events`.
    order: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    next: u64,
    /// Time and number of the turn that each host has to come, and the first of them with its host.
    turns: Vec<Option<(u64, u64)>>,
    first_turn: Option<((u64, u64), usize)>,
}

impl Queue {
    pub(super) fn push(&mut self, at: u64, event: Event) {
        self.next += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.order.push(Reverse((at, self.next, place)));
    }

    /// A host has its turn at `at`, unless it has one sooner.
    pub(super) fn plan_turn(&mut self, host: usize, at: u64) {
        if self.turns.len() <= host {
            self.turns.resize(host + 1, None);
        }
        if self.turns[host].is_none_or(|(planned, _)| planned > at) {
            self.next += 1;
            self.turns[host] = Some((at, self.next));
            self.find_first_turn();
        }
    }

    /// A host has no turn to come.
    pub(super) fn cancel_turn(&mut self, host: usize) {
        if let Some(turn) = self.turns.get_mut(host) {
            *turn = None;
            self.find_first_turn();
        }
    }

    fn find_first_turn(&mut self) {
        let turns = self.turns.iter().enumerate();
        self.first_turn = turns.filter_map(|(host, turn)| turn.map(|turn| (turn, host))).min();
    }

    /// The next event and its time.
    pub(super) fn pop(&mut self) -> Option<(u64, Event)> {
        if let Some((turn, host)) = self.first_turn
            && self.order.peek().is_none_or(|Reverse((at, number, _))| turn < (*at, *number))
        {
            self.cancel_turn(host);
            return Some((turn.0, Event::Turn { host }));
        }
        let Reverse((at, _, place)) = self.order.pop()?;
        self.free.push(place);
        let event = self.events[place].take().expect("it lies there until its time has come");
        Some((at, event))
    }

    #[cfg(test)]
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_their_making() {
        let mut queue = Queue::default();
        for (at, host) in [(5, 1), (3, 2), (5, 3), (1, 4)] {
            queue.push(at, Event::Start { host });
        }
        let mut hosts = Vec::new();
        while let Some((at, Event::Start { host })) = queue.pop() {
            hosts.push((at, host));
            if host == 4 {
                queue.push(2, Event::Start { host: 5 });
            }
        }
        assert_eq!(hosts, [(1, 4), (2, 5), (3, 2), (5, 1), (5, 3)]);
    }

    #[test]
    fn a_host_has_one_turn_at_the_earliest_time_that_was_planned() {
        let mut queue = Queue::default();
        queue.push(5, Event::Look);
        for (host, at) in [(0, 9), (2, 5), (0, 4), (0, 7), (1, 1)] {
            queue.plan_turn(host, at);
        }
        queue.cancel_turn(1);
        let mut order = Vec::new();
        while let Some((at, event)) = queue.pop() {
            order.push((at, if let Event::Turn { host } = event { Some(host) } else { None }));
        }
        assert_eq!(order, [(4, Some(0)), (5, None), (5, Some(2))]);
    }
}
