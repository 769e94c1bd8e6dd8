//! The read-only door: `/livez`, `/readyz`, `/metrics`, on a thread of its own.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use swarmmq_engine::node::Report;
use tokio::sync::oneshot;

use crate::{
    StartError,
    telemetry::{Timings, exposition},
};

/// A worker that has not reported for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Snapshot {
    at: Instant,
    ready: bool,
    reason: String,
    metrics: Arc<str>,
}

/// What the worker last said. The worker replaces it once a second; nobody holds the lock for longer than a copy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<Mutex<Option<Snapshot>>>);

impl Shared {
    /// Replaces what is shown.
    pub(crate) fn publish(&self, report: &Report, timings: &Timings) {
        let snapshot = Snapshot {
            at: Instant::now(),
            ready: report.ready,
            reason: report.reason.clone(),
            metrics: exposition(report, timings).into(),
        };
        *self.0.lock().expect("no holder of this lock panics") = Some(snapshot);
    }

    fn with<T>(&self, look: impl FnOnce(&Snapshot) -> T) -> Option<T> {
        self.0.lock().expect("no holder of this lock panics").as_ref().map(look)
    }
}

/// The thread, from outside.
pub(crate) struct Admin {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Admin {
    /// Ends it.
    pub(crate) fn stop(self) {
        // An error means that it ended by itself, which its own log line says.
        if self.stop.send(()).is_ok() && self.thread.join().is_err() {
            tracing::error!("the admin thread panicked");
        }
    }
}

/// Why a port cannot be used.
pub(crate) fn port_error(what: &str, address: SocketAddr, error: &io::Error) -> StartError {
    if error.kind() == io::ErrorKind::AddrInUse {
        return StartError::local(
            format!("the {what} port {address} is in use"),
            format!("stop whoever listens there, or change listen.{what}"),
        );
    }
    StartError::local(format!("cannot listen on {address} ({what}): {error}"), format!("check listen.{what}"))
}

/// Serves what `shared` holds.
pub(crate) fn serve(address: SocketAddr, shared: Shared) -> Result<Admin, StartError> {
    let listener = TcpListener::bind(address).map_err(|error| port_error("admin", address, &error))?;
    listener.set_nonblocking(true).map_err(|error| port_error("admin", address, &error))?;
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || {
            if let Err(error) = serve_here(listener, shared, stopped) {
                tracing::error!(%error, "the admin port does not serve");
            }
        })
        .map_err(|error| port_error("admin", address, &error))?;
    Ok(Admin { stop, thread })
}

fn serve_here(listener: TcpListener, shared: Shared, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(shared);
        tokio::select! {
            biased;
            // Both a word and a dropped sender mean stop.
            _ = stopped => Ok(()),
            result = axum::serve(listener, router) => result,
        }
    })
}

async fn livez(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.with(|snapshot| snapshot.at.elapsed()) {
        Some(age) if age < STUCK_AFTER => (StatusCode::OK, "ok\n".to_owned()),
        Some(age) => (StatusCode::SERVICE_UNAVAILABLE, format!("no sign of life for {} s\n", age.as_secs())),
        None => (StatusCode::OK, "starting\n".to_owned()),
    }
}

async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.with(|snapshot| (snapshot.ready, snapshot.reason.clone())) {
        Some((true, _)) => (StatusCode::OK, "ready\n".to_owned()),
        Some((false, reason)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        None => (StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned()),
    }
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let text = shared.with(|snapshot| Arc::clone(&snapshot.metrics)).unwrap_or_else(|| "".into());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text.to_string())
}
