//! The demo as a visitor meets it: separate processes, faults in the middle, a verdict, and nothing left behind.

mod cluster;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use self::cluster::{Dev, Running, SWARMMQ, signal};

/// The demo, with its directory in one of ours.
fn demo(dev: &Dev, words: &[&str]) -> Running {
    let mut command = Command::new(SWARMMQ);
    command.arg("demo").args(words).env("TMPDIR", dev.path("")).stdin(Stdio::null());
    Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Command lines of all processes that name a path below the test's directory.
fn processes(dev: &Dev) -> Vec<String> {
    let below = dev.path("").to_string_lossy().into_owned();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&below))
        .collect()
}

#[test]
fn nodes_are_lost_under_load_and_every_message_comes_exactly_once() {
    let dev = Dev::nothing();
    let began = Instant::now();
    let mut running = demo(&dev, &["--json"]);
    let mut progress = BufReader::new(running.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut seen = Vec::new();
    let loaded =
        progress.by_ref().inspect(|line| seen.push(line.clone())).find(|line| line.contains(" stored"));
    assert!(loaded.is_some(), "{seen:?}");
    let during = processes(&dev).join("\n");
    for part in [" node ", "demo-producer", "demo-consumer"] {
        assert!(during.contains(part), "{part} is a process of its own: {during}");
    }
    let rest: Vec<String> = progress.collect();
    let mut output = String::new();
    running.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(running.code(), Some(0), "{output}\n{rest:#?}");
    assert!(began.elapsed() < Duration::from_secs(45), "it took {:?}", began.elapsed());
    for part in ["kill -9", "started again", "SIGSTOP"] {
        assert!(rest.iter().any(|line| line.contains(part)), "{part}: {rest:#?}");
    }

    let report: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert_eq!(output.lines().count(), 1, "progress goes to standard error");
    for (field, value) in [
        ("nodes", 5),
        ("sent", 18_000),
        ("acknowledged", 18_000),
        ("delivered", 18_000),
        ("lost", 0),
        ("duplicated", 0),
        ("out_of_order", 0),
        ("unknown", 0),
    ] {
        assert_eq!(report[field], json!(value), "{field} in {report}");
    }
    assert_eq!(report["verdict"], "passed");
    let faults = report["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 6);
    let words = ["the leader", "started again", "a follower", "started again", "stands still", "goes on"];
    for (fault, words) in faults.iter().zip(words) {
        assert!(fault["what"].as_str().unwrap().contains(words), "{report}");
        for gap in ["publish_gap_ms", "delivery_gap_ms"] {
            let longest = report[format!("longest_{gap}")].as_f64().unwrap();
            assert!((0.0..=longest).contains(&fault[gap].as_f64().unwrap()) && longest > 0.0, "{report}");
        }
    }
    assert!(report["latency_us"]["p99"].as_f64() >= report["latency_us"]["p50"].as_f64(), "{report}");
    assert_eq!(processes(&dev), [""; 0], "every process has ended");
    assert_eq!(fs::read_dir(dev.path("")).unwrap().count(), 0, "its directory is gone");
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let dev = Dev::nothing();
    let mut running = demo(&dev, &[]);
    let mut progress = BufReader::new(running.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(progress.any(|line| line.contains(" stored")));
    signal(running.pid(), Signal::INT);
    let rest: Vec<String> = progress.collect();
    assert_eq!(running.code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("everything was cleaned up")), "{rest:?}");
    assert_eq!(processes(&dev), [""; 0], "every process has ended");
    assert_eq!(fs::read_dir(dev.path("")).unwrap().count(), 0, "its directory is gone");
}
