//! SIGTERM and SIGINT mean: stop taking work, finish what is under way, end.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mio::Waker;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

/// Time to finish what is under way.
pub(crate) const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// Whether somebody asked this process to stop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shutdown(Arc<AtomicBool>);

impl Shutdown {
    /// Listens for signals; `waker` is called when one comes.
    pub(crate) fn watch(waker: Arc<Waker>) -> io::Result<Self> {
        let shutdown = Self::default();
        let asked = Arc::clone(&shutdown.0);
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                tracing::info!(signal, "asked to stop");
                asked.store(true, Ordering::SeqCst);
                if let Err(error) = waker.wake() {
                    tracing::error!(%error, "the worker cannot be woken");
                }
            }
        })?;
        Ok(shutdown)
    }

    /// Whether a signal has come.
    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
