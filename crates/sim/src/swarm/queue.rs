//! What is still to happen, in order of time; of what happens at one time, what was said first comes first.
//!
//! The heap holds only times and places; events lie still until they happen.

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

    /// The next event and its time.
    pub(super) fn pop(&mut self) -> Option<(u64, Event)> {
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
}
