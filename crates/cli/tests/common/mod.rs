//! A local cluster of real processes, made and removed by the executable under test.
#![allow(dead_code, reason = "every test file uses another part of this")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// The executable.
pub const SWARMMQ: &str = env!("CARGO_BIN_EXE_swarmmq");

/// A directory with a cluster; both are gone when this is dropped.
pub struct Dev {
    root: tempfile::TempDir,
}

impl Dev {
    /// One node that serves.
    pub fn up() -> Self {
        let dev = Self { root: tempfile::tempdir().unwrap() };
        let directory = dev.directory();
        ok(&dev.run(&["dev", "up", "--nodes", "1", "--dir", directory.to_str().unwrap()]));
        dev
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

    /// `cluster.json`.
    pub fn cluster(&self) -> Value {
        read_json(&self.directory().join("cluster.json"))
    }

    /// The process of the node.
    pub fn pid(&self) -> u64 {
        self.cluster()["nodes"][0]["pid"].as_u64().expect("the node runs")
    }

    /// Kills the node from outside, as an accident would, and starts it again.
    pub fn crash_and_start(&self) {
        let killed = Command::new("kill").args(["-9", &self.pid().to_string()]).status().unwrap();
        assert!(killed.success());
        ok(&self.run(&["dev", "start", "1"]));
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if let Some(pid) = self.cluster()["nodes"][0]["pid"].as_u64() {
            // It may have ended by itself.
            let _ended = Command::new("kill").args(["-9", &pid.to_string()]).output();
        }
    }
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

/// The result: the last line.
pub fn last(output: &Output) -> Value {
    lines(output)
        .pop()
        .unwrap_or_else(|| panic!("nothing printed: {}", String::from_utf8_lossy(&output.stderr)))
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
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Waits until `condition` holds.
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::yield_now();
    }
}
