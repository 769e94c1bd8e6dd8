//! The read-only door: `/livez`, `/readyz`, `/metrics`, on a thread of its own.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
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
    clock::{self, SUCCESSION_TIME_MAX, Stopwatch, patiently},
    telemetry::{Timings, exposition},
};

/// A worker that has not reported for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Snapshot {
    at: Stopwatch,
    ready: bool,
    reason: String,
    metrics: Arc<str>,
}

/// What the worker last said; nothing while the log is read. The worker replaces it once a second; nobody holds the lock
/// for longer than a copy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<Mutex<Option<Snapshot>>>);

impl Shared {
    /// Replaces what is shown.
    pub(crate) fn publish(&self, report: &Report, timings: &Timings) {
        let snapshot = Snapshot {
            at: Stopwatch::start(),
            ready: report.ready,
            reason: report.reason.clone(),
            metrics: exposition(report, timings, clock::wall()).into(),
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

/// Whether somebody else listens there.
pub(crate) fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// Why a port cannot be used.
pub(crate) fn port_error(what: &str, address: SocketAddr, error: &io::Error) -> StartError {
    if is_in_use(error) {
        return StartError::local(
            format!("the {what} port {address} is in use"),
            format!("stop whoever listens there, or change listen.{what}"),
        );
    }
    StartError::local(format!("cannot listen on {address} ({what}): {error}"), format!("check listen.{what}"))
}

/// Serves what `shared` holds.
pub(crate) fn serve(address: SocketAddr, shared: Shared) -> Result<Admin, StartError> {
    let listener = patiently(SUCCESSION_TIME_MAX, is_in_use, || TcpListener::bind(address))
        .map_err(|error| port_error("admin", address, &error))?;
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

async fn livez(State(shared): State<Shared>) -> Said {
    liveness(shared.with(|snapshot| snapshot.at.elapsed()))
}

/// A status and one line.
type Said = (StatusCode, String);

/// * `age`: time since the worker's last word; `None` while the log is read, which may take long and is no reason to kill
///   the node.
fn liveness(age: Option<Duration>) -> Said {
    match age {
        Some(age) if age < STUCK_AFTER => (StatusCode::OK, "ok\n".to_owned()),
        Some(age) => (StatusCode::SERVICE_UNAVAILABLE, format!("no sign of life for {} s\n", age.as_secs())),
        None => (StatusCode::OK, "starting\n".to_owned()),
    }
}

async fn readyz(State(shared): State<Shared>) -> Said {
    match shared.with(|snapshot| (snapshot.ready, snapshot.reason.clone())) {
        Some((true, _)) => (StatusCode::OK, "ready\n".to_owned()),
        Some((false, reason)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        None => (StatusCode::SERVICE_UNAVAILABLE, "reading the log\n".to_owned()),
    }
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let text = shared.with(|snapshot| Arc::clone(&snapshot.metrics)).unwrap_or_else(|| "".into());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn report(ready: bool, reason: &str) -> Report {
        Report { ready, reason: reason.to_owned(), problems: Vec::new(), metrics: Vec::new() }
    }

    /// What the running server answers: the status line and the body.
    fn get(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    #[test]
    fn the_door_shows_what_the_worker_last_said_and_nothing_else() {
        let shared = Shared::default();
        let bound = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = bound.local_addr().unwrap();
        drop(bound);
        let admin = serve(address, shared.clone()).unwrap();
        assert_eq!(get(address, "/livez"), ("HTTP/1.1 200 OK".into(), "starting\n".into()));
        let (status, body) = get(address, "/readyz");
        assert!(status.contains("503") && body == "reading the log\n", "{status} {body}");

        shared.publish(&report(false, "draining"), &Timings::default());
        let (status, body) = get(address, "/readyz");
        assert!(status.contains("503") && body == "draining\n", "{status} {body}");
        assert_eq!(get(address, "/livez").1, "ok\n");

        shared.publish(&report(true, ""), &Timings::default());
        assert_eq!(get(address, "/readyz"), ("HTTP/1.1 200 OK".into(), "ready\n".into()));
        let (status, body) = get(address, "/metrics");
        assert!(status.contains("200") && body.contains("swarmmq_build_info{"), "{status} {body}");
        assert!(get(address, "/").0.contains("404"));

        let taken = serve(address, shared).err().unwrap();
        assert_eq!(taken.exit_code(), 7);
        assert!(taken.message().contains("in use"), "{taken}");
        admin.stop();
    }

    #[test]
    fn a_worker_that_is_silent_for_five_seconds_is_dead() {
        assert_eq!(liveness(Some(Duration::from_millis(4999))).0, StatusCode::OK);
        let (status, said) = liveness(Some(Duration::from_secs(7)));
        assert_eq!((status, said.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "no sign of life for 7 s\n"));
    }
}
