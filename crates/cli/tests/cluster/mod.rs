//! A local cluster of real processes, made and removed by the executable under test; and what its output says.
#![allow(dead_code, reason = "every test file uses another part of this")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde_json::Value;

/// The executable.
pub const SWARMMQ: &str = env!("CARGO_BIN_EXE_swarmmq");

/// Says what an attack came to, past the harness, which hides what a passing test prints.
pub fn figures(words: std::fmt::Arguments<'_>) {
    let mut out = std::io::stderr();
    writeln!(out, "attack: {words}").unwrap();
}

/// A directory for a cluster; everything that runs or lies in it is gone when this is dropped.
pub struct Dev {
    root: tempfile::TempDir,
}

impl Dev {
    /// One node that serves.
    pub fn up() -> Self {
        let dev = Self::nothing();
        ok(&dev.run(&["dev", "up", "--nodes", "1"]));
        dev
    }

    /// One node that serves in plain text, for whoever speaks its language by hand.
    pub fn up_in_plain_text() -> Self {
        Self::up_with(1, &["--insecure-plaintext"])
    }

    /// Several nodes, with more words for `dev up`.
    pub fn up_with(nodes: u16, words: &[&str]) -> Self {
        let dev = Self::nothing();
        let nodes = nodes.to_string();
        ok(&dev.run(&[&["dev", "up", "--nodes", &nodes], words].concat()));
        dev
    }

    /// An empty directory.
    pub fn nothing() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    /// Where the cluster lives.
    pub fn directory(&self) -> PathBuf {
        // Canonical, as the executable writes it.
        self.root.path().canonicalize().unwrap().join(".swarmmq")
    }

    /// A path beside it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The executable, in the directory where it finds its cluster by itself.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(SWARMMQ);
        command
            .args(words)
            .current_dir(self.root.path())
            .env_remove("SWARMMQ_SERVERS")
            .env_remove("SWARMMQ_KEYRING")
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs it to its end with this on its standard input.
    pub fn pipe(&self, words: &[&str], input: &[u8]) -> Output {
        // From a file: whoever refuses early would close a pipe in our face.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        self.command(words).stdin(file).output().unwrap()
    }

    /// `cluster.json`.
    pub fn cluster(&self) -> Value {
        read_json(&self.directory().join("cluster.json"))
    }

    /// Something that it says about the first node.
    pub fn node(&self, field: &str) -> String {
        self.node_of(1, field)
    }

    /// Something that it says about a node.
    pub fn node_of(&self, id: u16, field: &str) -> String {
        self.entry(id)[field].as_str().unwrap().to_owned()
    }

    fn entry(&self, id: u16) -> Value {
        let cluster = self.cluster();
        let nodes = cluster["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["id"] == id).expect("there is such a node").clone()
    }

    /// The process of the first node.
    pub fn pid(&self) -> i32 {
        self.pid_of(1)
    }

    /// The process of a node.
    pub fn pid_of(&self, id: u16) -> i32 {
        self.entry(id)["pid"].as_i64().expect("the node runs") as i32
    }

    /// Kills the node from outside, as an accident would, and starts it again.
    pub fn crash_and_start(&self) {
        signal(self.pid(), Signal::KILL);
        ok(&self.run(&["dev", "start", "1"]));
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let cluster = self.cluster();
        for node in cluster["nodes"].as_array().into_iter().flatten() {
            if let Some(pid) = node["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32)) {
                // It may have ended by itself.
                let _ended = kill_process(pid, Signal::KILL).is_err();
            }
        }
    }
}

/// A process that is ended when a test ends early.
pub struct Running(pub Child);

impl Running {
    /// Its number.
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Its exit code.
    pub fn code(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill().and_then(|()| self.0.wait().map(drop)).is_err();
    }
}

/// Sends a signal to a process that must be there.
pub fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Waits until a process that is not ours has ended.
pub fn ended(pid: i32, limit: Duration) {
    let Ok(process) = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else { return };
    let limit_as = Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos().into() };
    let ready = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit_as)).unwrap();
    assert_eq!(ready, 1, "process {pid} did not end within {limit:?}");
}

/// The answer to a GET: status and body.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The JSON in a file; null if there is none.
pub fn read_json(path: &Path) -> Value {
    std::fs::read_to_string(path).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// What was printed, line by line.
pub fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

/// The same, as far as it is JSON: of whoever may have failed.
pub fn read_lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The result: the last line.
pub fn last(output: &Output) -> Value {
    lines(output).pop().unwrap_or_else(|| panic!("nothing printed: {}", errors(output)))
}

/// One field of every line.
pub fn column(output: &Output, field: &str) -> Vec<Value> {
    lines(output).iter().map(|line| line[field].clone()).collect()
}

/// What was said on standard error.
pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It succeeded.
pub fn ok(output: &Output) {
    exits(output, 0);
}

/// It ended with this exit code.
pub fn exits(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {}\nstderr: {}",
        String::from_utf8_lossy(&output.stdout),
        errors(output)
    );
}

/// It failed with this exit code and these words, for people: one message, and what to do.
pub fn fails(output: &Output, code: i32, words: &[&str]) {
    exits(output, code);
    let said = errors(output);
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(said.contains("error: ") && said.contains("  next: "), "{said}");
    words.iter().for_each(|word| assert!(said.contains(word), "{word:?} is not in {said}"));
}

/// It failed with this exit code, code and words, for programs: one object, the last line.
pub fn fails_as_json(output: &Output, exit: i32, code: &str, words: &[&str]) {
    exits(output, exit);
    let error = &last(output)["error"];
    assert_eq!((&error["code"], &error["outcome"]), (&code.into(), &"failed".into()), "{error}");
    assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{error}");
    let said = error.to_string();
    words.iter().for_each(|word| assert!(said.contains(word), "{word:?} is not in {said}"));
}

/// Waits until `condition` holds, which takes time to find out.
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::yield_now();
    }
}

/// Memory that a process holds, in bytes.
pub fn resident_bytes(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
