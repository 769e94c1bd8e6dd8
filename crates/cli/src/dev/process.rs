//! The processes of a local cluster: started, told apart from strangers, waited for. There is no supervisor.

use std::{
    fs::{self, OpenOptions},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};

use super::directory::{Cluster, Node, STOP_TIME_MAX, local};
use crate::output::{Failure, Outcomes};

/// Time for nodes to serve.
pub(crate) const START_TIME_MAX: Duration = Duration::from_secs(20);
/// Pause between looks at something that cannot be waited for.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// Whether `pid` is a node of ours: process numbers are used again. One that is ending is waited for: it still holds its
/// data directory and its ports.
pub(crate) fn is_node(pid: i32, config: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    if line.is_empty() {
        // Its memory has gone already, its files perhaps not. (A dead one counts as ended at once.)
        wait_gone(pid, STOP_TIME_MAX);
        return false;
    }
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    words.contains(&b"node".as_slice()) && words.contains(&config.as_os_str().as_encoded_bytes())
}

/// Waits until every thread of a process has ended and its files are closed. False: it did not in time.
pub(crate) fn wait_gone(pid: i32, limit: Duration) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return true };
    // What cannot be opened is not there any more.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Ok(0) => return false,
            Ok(_) => return true,
            // A signal came in between.
            Err(_) if Instant::now() < deadline => {}
            Err(_) => return false,
        }
    }
}

pub(crate) fn signal(pid: i32, signal: Signal) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// A node that was just started and does not serve yet.
pub(crate) struct Starting {
    pub(crate) id: u16,
    child: Child,
    written_before: usize,
}

/// Starts a node. From here on `cluster.json` names its process: a node that runs is never forgotten.
pub(crate) fn spawn(directory: &Path, cluster: &mut Cluster, id: u16) -> Outcomes<Starting> {
    let node = cluster.node(id)?.clone();
    let log = node.log();
    let written_before = fs::metadata(&log).map_or(0, |metadata| metadata.len()) as usize;
    let output =
        OpenOptions::new().create(true).append(true).open(&log).map_err(|error| local(directory, &error))?;
    let errors = output.try_clone().map_err(|error| local(directory, &error))?;
    let program = std::env::current_exe().map_err(|error| local(directory, &error))?;
    let child = Command::new(program)
        .args(["node", "--own-session", "--config"])
        .arg(&node.config)
        .env_remove("SWARMMQ_KEYRING")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|error| {
            Failure::local(format!("cannot start node {id}: {error}"), "check the program's permissions")
        })?;
    cluster.node_mut(id)?.pid = i32::try_from(child.id()).ok();
    cluster.save(directory)?;
    Ok(Starting { id, child, written_before })
}

impl Starting {
    /// Whether the node says that it serves; why not, if it has ended.
    ///
    /// * `alone`: too few others run for every shard to have a leader, so that is not waited for.
    pub(crate) fn is_up(&mut self, node: &Node, alone: bool) -> Outcomes<bool> {
        // First of all: a stranger who answers on our port does not count.
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(self.why_it_ended(node, status.code()));
        }
        Ok(serves(&node.admin, alone))
    }

    fn why_it_ended(&self, node: &Node, code: Option<i32>) -> Failure {
        let said = fs::read(node.log()).unwrap_or_default();
        let said = String::from_utf8_lossy(said.get(self.written_before..).unwrap_or_default()).into_owned();
        let line =
            |mark: &str| said.lines().find_map(|line| line.trim().strip_prefix(mark).map(str::to_owned));
        let message = line("error: ").unwrap_or_else(|| format!("exit code {code:?}"));
        let hint = line("next: ").unwrap_or_else(|| format!("read {}", node.log().display()));
        let exit = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        Failure::new(exit.max(1), "node_ended", format!("node {} ended at once: {message}", self.id), hint)
    }
}

pub(crate) fn not_ready(node: &Node) -> Failure {
    Failure::new(
        3,
        "not_ready",
        format!("node {} runs and does not serve after {} s", node.id, START_TIME_MAX.as_secs()),
        format!("read {}", node.log().display()),
    )
}

/// Whether a node is ready, or as far as it can be while others are missing.
pub(crate) fn serves(admin: &str, alone: bool) -> bool {
    let Some(answer) = http_get(admin, "/readyz") else { return false };
    answer.starts_with("HTTP/1.1 200") || alone && answer.contains("no leader")
}

/// The answer to a GET on loopback, head and body.
fn http_get(address: &str, path: &str) -> Option<String> {
    let address: SocketAddr = address.parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_no_node_of_ours_is_not_taken_for_one() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!is_node(own, Path::new("d/node-1/node.toml")));
        assert!(!is_node(i32::MAX, Path::new("d/node-1/node.toml")));
    }
}
