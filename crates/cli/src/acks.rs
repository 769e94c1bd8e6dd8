//! Acknowledgements under way: not waited for while messages come, but seen through at the end.
//!
//! Their number is bounded by the consumer's credit: the cluster sends nothing more until they are settled.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use swarmmq_client::{Error, PendingAck};
use swarmmq_protocol::error::Code;

/// Time for the last ones to be settled.
const FINISH_TIME_MAX: Duration = Duration::from_secs(10);

/// Acknowledgements whose fate is open, and what became of the others.
#[derive(Default)]
pub(crate) struct Acks {
    pending: VecDeque<PendingAck>,
    failed: u64,
    first_error: Option<Error>,
}

impl Acks {
    pub(crate) fn push(&mut self, ack: PendingAck) {
        self.pending.push_back(ack);
    }

    /// Takes those that are settled, oldest first, without waiting.
    pub(crate) fn reap(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        while let Some(oldest) = self.pending.front_mut()
            && let Poll::Ready(result) = Pin::new(oldest).poll(&mut context)
        {
            self.pending.pop_front();
            self.settled(result);
        }
    }

    /// Waits for the rest, but not for ever: what is open then has an unknown outcome.
    pub(crate) async fn finish(&mut self) {
        let rest = async {
            while let Some(oldest) = self.pending.front_mut() {
                let result = oldest.await;
                self.pending.pop_front();
                self.settled(result);
            }
        };
        if tokio::time::timeout(FINISH_TIME_MAX, rest).await.is_err() {
            let message = format!("no answer in {} s", FINISH_TIME_MAX.as_secs());
            let error = Error::Unknown { code: Code::Deadline, message };
            self.failed += self.pending.len() as u64;
            self.first_error.get_or_insert(error);
            self.pending.clear();
        }
    }

    /// How many did not succeed.
    pub(crate) fn failed(&self) -> u64 {
        self.failed
    }

    /// Why the first of those did not.
    pub(crate) fn into_error(self) -> Option<Error> {
        self.first_error
    }

    fn settled(&mut self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.failed += 1;
            self.first_error.get_or_insert(error);
        }
    }
}
