//! Load while the node is killed again and again: nothing acknowledged is lost, doubled or out of order.

mod cluster;

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use self::cluster::{Dev, last, ok};

/// How often the node is killed.
const CRASHES: usize = 4;

fn load_through_crashes(order: &str) {
    let dev = Dev::up();
    let words = [
        "bench",
        "e2e",
        "--producers",
        "3",
        "--consumers",
        "2",
        "--rate",
        "2000",
        "--size",
        "256",
        "--duration",
        "8",
        "--order",
        order,
        "--json",
    ];
    let mut bench = dev.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut progress = BufReader::new(bench.stderr.take().unwrap()).lines();
    for _ in 0..CRASHES {
        // A line of progress a second: the load runs.
        let line = progress.next().unwrap().unwrap();
        assert!(line.contains("acknowledged"), "{line}");
        dev.crash_and_start();
    }
    let rest = std::thread::spawn(move || progress.map_while(Result::ok).collect::<Vec<_>>());
    let output = bench.wait_with_output().unwrap();
    let said = rest.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{:?}\n{said:#?}", String::from_utf8_lossy(&output.stdout));
    let report = last(&output);
    for field in ["lost", "duplicated", "out_of_order", "unknown", "failed"] {
        assert_eq!(report[field], 0, "{field} in {report}");
    }
    assert_eq!(report["delivered"], report["acknowledged"]);
    assert_eq!(report["published"], 16_000, "{report}");
    ok(&dev.run(&["status"]));
}

#[test]
fn total_order_survives_crashes() {
    load_through_crashes("total");
}

#[test]
fn key_order_survives_crashes() {
    load_through_crashes("key");
}

#[test]
fn no_order_survives_crashes() {
    load_through_crashes("none");
}
