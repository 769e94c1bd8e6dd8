//! SIGTERM and SIGINT mean: stop taking work, finish what is under way, end. SIGHUP means: read the certificates and the keyring again.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mio::{Events, Poll, Token, Waker};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::StartError;

/// Says that a thread has news, or a signal came.
pub(crate) const NEWS: Token = Token(1);
/// Time to finish what is under way.
pub(crate) const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// What this process waits with: sockets, news of threads, signals.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) poll: Poll,
    pub(crate) waker: Arc<Waker>,
    pub(crate) shutdown: Shutdown,
}

impl Watch {
    /// From now on a signal does not end the process: it is asked to stop.
    pub(crate) fn start() -> Result<Self, StartError> {
        Self::start_io().map_err(|error| {
            StartError::local(format!("cannot start: {error}"), "check the limits of the process")
        })
    }

    fn start_io() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), NEWS)?);
        let shutdown = Shutdown::watch(Arc::clone(&waker))?;
        Ok(Self { poll, waker, shutdown })
    }

    /// Waits for events, or for at most `timeout`.
    pub(crate) fn wait(&mut self, events: &mut Events, timeout: Duration) -> Result<(), StartError> {
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                Err(StartError::local(format!("waiting for events failed: {error}"), "restart the node"))
            }
            _ => Ok(()),
        }
    }
}

/// What somebody asked this process to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shutdown {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Shutdown {
    /// Listens for signals; `waker` is called when one comes.
    fn watch(waker: Arc<Waker>) -> io::Result<Self> {
        let shutdown = Self::default();
        let asked = shutdown.clone();
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    tracing::info!("asked to read the certificates and the keyring again");
                    asked.reload.store(true, Ordering::SeqCst);
                } else {
                    tracing::info!(signal, "asked to stop");
                    asked.stop.store(true, Ordering::SeqCst);
                }
                if let Err(error) = waker.wake() {
                    tracing::error!(%error, "the worker cannot be woken");
                }
            }
        })?;
        Ok(shutdown)
    }

    /// Whether it is to stop.
    pub(crate) fn is_asked(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Whether it is to read its certificates again; asked once, answered once.
    pub(crate) fn take_reload(&self) -> bool {
        self.reload.swap(false, Ordering::SeqCst)
    }
}
