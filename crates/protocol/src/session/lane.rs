//! A lane: what one producer has for one shard, from the first message without a certain fate on.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;

use super::ways::Way;
use crate::{error::Code, time::Instant};

/// First pause after a refusal that may pass; doubles up to [`BACKOFF_MAX`].
pub(super) const BACKOFF_FIRST: Duration = Duration::from_millis(5);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// To be sent, again or for the first time.
    Pending,
    InFlight,
    /// Its sequence is to be closed; then it has failed.
    Doomed(Code),
    Skipping(Code),
    Done,
}

#[derive(Debug)]
pub(super) struct Item {
    pub(super) ticket: u64,
    pub(super) sealed: Bytes,
    /// When it was handed over.
    pub(super) since: Instant,
    pub(super) deadline: Instant,
    pub(super) stage: Stage,
    pub(super) ever_sent: bool,
    /// A copy has no certain answer: its connection broke, or nobody knew.
    pub(super) unsure: bool,
    /// Why the latest copy was refused.
    pub(super) refusal: Option<Code>,
    /// The caller knows the fate already.
    pub(super) told: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    Unopened,
    Opening,
    Open,
    Closing,
    Closed,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) door: Door,
    /// The way of what was sent last.
    pub(super) way: Way,
    /// Questions of this lane without an answer, all on that way.
    pub(super) unanswered: u32,
    /// Sequence of the first item.
    pub(super) first: u64,
    pub(super) items: VecDeque<Item>,
    /// Items before this one are not pending; only a hint where to look.
    pub(super) look_from: usize,
    pub(super) pending: usize,
    /// Items that are doomed or being skipped: nothing behind them can be taken yet.
    pub(super) doomed: usize,
    pub(super) retry_at: Instant,
    pub(super) backoff: Duration,
    pub(super) skipping: bool,
    /// A range was refused because a message had been taken under one of its sequences: they are asked for one by one.
    pub(super) skip_singly: bool,
    /// No deadline of any item lies before.
    pub(super) next_deadline: Instant,
}

impl Lane {
    pub(super) fn new() -> Self {
        Self {
            door: Door::Unopened,
            way: Way::Home,
            unanswered: 0,
            first: 1,
            items: VecDeque::new(),
            look_from: 0,
            pending: 0,
            doomed: 0,
            retry_at: Instant(0),
            backoff: BACKOFF_FIRST,
            skipping: false,
            skip_singly: false,
            next_deadline: Instant(u64::MAX),
        }
    }

    /// Whether there is something to send, now or after a pause: most lanes wait for answers, or for messages.
    pub(super) fn has_work(&self) -> bool {
        self.pending > 0 || self.doomed > 0 || self.door == Door::Unopened && !self.items.is_empty()
    }

    /// After a refusal that may pass.
    pub(super) fn pause(&mut self, now: Instant) {
        self.retry_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    /// What is unanswered is to be sent again. `unsure`: it may have arrived.
    pub(super) fn take_back(&mut self, unsure: bool) {
        self.unanswered = 0;
        self.door = match self.door {
            Door::Opening => Door::Unopened,
            Door::Closing => Door::Open,
            other => other,
        };
        self.skipping = false;
        self.look_from = 0;
        for item in &mut self.items {
            match item.stage {
                Stage::InFlight => {
                    item.stage = Stage::Pending;
                    item.unsure |= unsure;
                    self.pending += 1;
                    self.next_deadline = self.next_deadline.min(item.deadline);
                }
                Stage::Skipping(code) => item.stage = Stage::Doomed(code),
                _ => {}
            }
        }
    }
}
