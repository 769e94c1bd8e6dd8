//! Which session a request number belongs to: its upper 16 bits are the session's tag on this connection.

use std::collections::BTreeMap;

/// Requests that belong to no session.
pub(super) const QUESTIONS: u64 = 0xffff;
/// Requests about the orders of addresses.
pub(super) const ORDERS: u64 = 0xfffe;
/// The highest tag of a session; so many producers and consumers can be open at a time.
const HIGHEST: u64 = 0xfffd;

/// A session, by the number that the program's handle carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Producer(u64),
    Consumer(u64),
}

/// The tags in use.
#[derive(Debug, Default)]
pub(super) struct Tags {
    owners: BTreeMap<u64, Owner>,
    last: u64,
}

impl Tags {
    /// A tag for a producer's session; `None`: all are in use.
    pub(super) fn producer(&mut self, number: u64) -> Option<u64> {
        self.take(Owner::Producer(number))
    }

    /// A tag for a consumer's session; `None`: all are in use.
    pub(super) fn consumer(&mut self, number: u64) -> Option<u64> {
        self.take(Owner::Consumer(number))
    }

    /// Tags are taken in turn: the longer one is not reused, the surer that no late answer is meant for its last owner.
    fn take(&mut self, owner: Owner) -> Option<u64> {
        if self.owners.len() as u64 == HIGHEST {
            return None;
        }
        loop {
            self.last = self.last % HIGHEST + 1;
            if let std::collections::btree_map::Entry::Vacant(free) = self.owners.entry(self.last) {
                free.insert(owner);
                return Some(self.last);
            }
        }
    }

    pub(super) fn release(&mut self, tag: u64) {
        self.owners.remove(&tag);
    }

    /// Whose tag it is.
    pub(super) fn owner(&self, tag: u64) -> Option<Owner> {
        self.owners.get(&tag).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_reused_as_late_as_possible_and_run_out() {
        let mut tags = Tags::default();
        assert_eq!(tags.producer(5), Some(1));
        tags.release(1);
        assert_eq!(tags.consumer(6), Some(2), "1 is free, but rests");
        assert_eq!((tags.owner(1), tags.owner(2)), (None, Some(Owner::Consumer(6))));
        for tag in 3..=HIGHEST {
            assert_eq!(tags.producer(7), Some(tag));
        }
        assert_eq!(tags.producer(8), Some(1), "begun again from the front");
        assert_eq!(tags.consumer(9), None, "all are in use");
        assert_eq!(tags.owner(ORDERS), None);
        assert_eq!(tags.owner(QUESTIONS), None);
    }
}
