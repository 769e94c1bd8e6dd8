//! SIGINT and SIGTERM: the person or the system says stop.

use tokio::signal::unix::{SignalKind, signal};

use crate::output::{Failure, Outcomes};

/// Returns when the process was asked to stop. Asked once more, it ends at once.
pub(crate) async fn wait() -> Outcomes<()> {
    let broken =
        |error: std::io::Error| Failure::local(format!("cannot watch signals: {error}"), "try again");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(broken)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(broken)?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        #[allow(clippy::disallowed_methods, reason = "asked twice means now")]
        std::process::exit(130);
    });
    Ok(())
}
