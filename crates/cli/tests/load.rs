//! `bench` as whoever measures meets it: what it prints, what it checks, and how it ends.

mod cluster;

use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use self::cluster::{Dev, Running, errors, fails, fails_as_json, last, lines, ok, signal};

/// Everything that scripts read, with its kind.
fn has_every_field(report: &Value) {
    for field in [
        "published",
        "acknowledged",
        "delivered",
        "lost",
        "duplicated",
        "out_of_order",
        "seconds",
        "publish_per_s",
        "deliver_per_s",
        "longest_publish_gap_ms",
        "longest_delivery_gap_ms",
        "client_cpu_us_per_message",
    ] {
        assert!(report[field].is_number(), "{field} in {report}");
    }
    for latency in ["latency_us", "ack_latency_us"] {
        let at = |field: &str| {
            report[latency][field].as_f64().unwrap_or_else(|| panic!("{latency}.{field} in {report}"))
        };
        assert!(0.0 < at("p50") && at("p50") <= at("p99") && at("p99") <= at("p99_9"), "{report}");
        assert!(at("p99_9") <= at("max") * 1.01 && at("mean") > 0.0, "{report}");
    }
    for field in ["lost", "duplicated", "out_of_order"] {
        assert_eq!(report[field], json!(0), "{field} in {report}");
    }
    assert_eq!(report["acknowledged"], report["published"]);
    assert_eq!(report["delivered"], report["published"]);
}

#[test]
fn every_order_is_measured_and_checked_and_leaves_no_address_behind() {
    let dev = Dev::up();
    for order in ["total", "key", "none"] {
        let words =
            ["bench", "e2e", "--producers", "2", "--consumers", "2", "--rate", "1000", "--size", "256"];
        let more =
            ["--duration", "1.2", "--order", order, "--in-flight", "64", "--json", "--samples", "times"];
        let output = dev.run(&[&words[..], &more].concat());
        ok(&output);
        assert_eq!(lines(&output).len(), 1, "progress goes to standard error");
        assert!(errors(&output).contains("acknowledged"), "{}", errors(&output));
        let report = last(&output);
        has_every_field(&report);
        assert_eq!(report["published"], json!(1200), "the rate is the total over producers");
        let times = std::fs::read_to_string(dev.path("times")).unwrap();
        let numbers = |line: &str| line.split(' ').filter(|word| word.parse::<u64>().is_ok()).count();
        assert_eq!(times.lines().filter(|line| numbers(line) == 3).count(), 1200, "all came: {times}");
    }
    assert_eq!(last(&dev.run(&["address", "ls", "--json"])), json!({"addresses": []}));
}

#[test]
fn rate_0_saturates_and_a_given_address_stays() {
    let dev = Dev::up();
    let words = ["bench", "e2e", "--rate", "0", "--size", "1KiB", "--duration", "1s", "--address", "my.load"];
    let output = dev.run(&[&words[..], &["--json"]].concat());
    ok(&output);
    has_every_field(&last(&output));
    assert!(last(&output)["publish_per_s"].as_f64().unwrap() > 1000.0, "{}", last(&output));
    let info = last(&dev.run(&["address", "info", "my.load", "--json"]));
    assert_eq!(
        (&info["groups"][0]["name"], &info["groups"][0]["lag_messages"]),
        (&json!("bench"), &json!(0))
    );
    let text = String::from_utf8(dev.run(&words).stdout).unwrap();
    for part in ["my.load: ", "lost 0, duplicated 0, out of order 0", "p99.9 ", "longest gap: "] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let conflict = dev.run(&[&words[..], &["--order", "key", "--json"]].concat());
    fails_as_json(&conflict, 1, "order_conflict", &["--order"]);
}

#[test]
fn latency_counts_from_the_scheduled_time() {
    let dev = Dev::up();
    // One message in flight: whoever counted from the sending would see one slow message per pause.
    let words = ["bench", "e2e", "--rate", "200", "--in-flight", "1", "--duration", "4", "--json"];
    let command = &mut dev.command(&words);
    let mut bench = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut progress = BufReader::new(bench.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let pid = dev.pid();
    assert!(progress.next().unwrap().contains("acknowledged"));
    signal(pid, Signal::STOP);
    // The next line comes a second later, whether or not anything moves.
    assert!(progress.next().unwrap().contains("acknowledged"));
    signal(pid, Signal::CONT);
    let rest: Vec<String> = progress.collect();
    let mut output = String::new();
    bench.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(bench.code(), Some(0), "{output}{rest:?}");
    let report: Value = serde_json::from_str(&output).unwrap();
    has_every_field(&report);
    assert_eq!(report["published"], json!(800), "nothing that was scheduled is left out");
    for latency in ["latency_us", "ack_latency_us"] {
        assert!(report[latency]["p99"].as_f64().unwrap() > 500_000.0, "{report}");
    }
    assert!(report["longest_publish_gap_ms"].as_f64().unwrap() > 500.0, "{report}");
    assert!(report["longest_delivery_gap_ms"].as_f64().unwrap() > 500.0, "{report}");
}

#[test]
fn an_interrupted_load_is_judged_all_the_same() {
    let dev = Dev::up();
    let command = &mut dev.command(&["bench", "e2e", "--rate", "500", "--duration", "60", "--json"]);
    let mut bench = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut progress = BufReader::new(bench.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(progress.next().unwrap().contains("acknowledged"));
    signal(bench.pid(), Signal::INT);
    let rest: Vec<String> = progress.collect();
    let mut output = String::new();
    bench.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(bench.code(), Some(130), "{output}{rest:?}");
    has_every_field(&serde_json::from_str(&output).unwrap());
}

#[test]
fn a_load_test_without_a_cluster_says_so() {
    let dev = Dev::up();
    ok(&dev.run(&["dev", "down"]));
    fails(&dev.run(&["bench", "e2e", "--duration", "1"]), 3, &["can be reached", "swarmmq dev up"]);
}

#[test]
fn many_connections_are_opened_and_kept_and_leave_no_address_behind() {
    let dev = Dev::up();
    let words = ["bench", "connections", "--connections", "40", "--active", "8", "--duration", "1.5"];
    let output = dev.run(&[&words[..], &["--json"]].concat());
    ok(&output);
    assert_eq!(lines(&output).len(), 1, "progress goes to standard error");
    let report = last(&output);
    let expected = [("opened", 40), ("refused", 0), ("active", 8), ("active_failed", 0), ("silent", 0)];
    for (field, value) in expected {
        assert_eq!(report[field], json!(value), "{field} in {report}");
    }
    assert!(
        report["messages"].as_u64().unwrap() >= 8 && report["seconds"].as_f64().unwrap() >= 1.0,
        "{report}"
    );
    assert!(report["latency_us"]["p99"].as_f64().unwrap() > 0.0, "{report}");
    assert!(errors(&output).contains("40 connections are open"), "{}", errors(&output));
    assert_eq!(last(&dev.run(&["address", "ls", "--json"])), json!({"addresses": []}));
    let text = String::from_utf8(dev.run(&words).stdout).unwrap();
    assert!(text.contains("refused 0, active failed 0 of 8, silent in the end 0"), "{text}");
    let too_many = ["bench", "connections", "--connections", "2", "--active", "3"];
    fails(&dev.run(&too_many), 2, &["--active 3", "--connections"]);
    ok(&dev.run(&["dev", "down"]));
    fails(&dev.run(&["bench", "connections", "--connections", "2", "--active", "1"]), 3, &["swarmmq dev up"]);
}
