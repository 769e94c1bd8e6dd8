//! Routes that are looked at, with five nodes as real processes.

mod cluster;

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use self::cluster::{Dev, Running, errors, exits, fails, fails_as_json, last, ok, signal, until};

const PATIENCE: Duration = Duration::from_secs(20);

fn routes(dev: &Dev) -> Vec<Value> {
    let output = dev.run(&["route", "ls", "--json"]);
    ok(&output);
    last(&output)["routes"].as_array().unwrap().clone()
}

fn is_direct(route: &Value) -> bool {
    route["path"] == json!([route["from"], route["to"]])
}

#[test]
fn five_nodes_have_twenty_routes_that_are_told_explained_and_watched() {
    let dev = Dev::up_with(5, &[]);
    // A node that was busy starting may have been passed by for a moment.
    until("all routes are direct", PATIENCE, || {
        let routes = routes(&dev);
        routes.len() == 20 && routes.iter().all(is_direct)
    });
    let output = dev.run(&["route", "ls", "--json"]);
    assert_eq!(last(&output)["unanswered"], json!([]));
    let table = dev.run(&["route", "ls"]);
    ok(&table);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.starts_with("FROM  TO  PATH") && table.lines().count() == 21, "{table}");

    let output = dev.run(&["route", "explain", "2", "5", "--json"]);
    ok(&output);
    let said = last(&output);
    assert_eq!(
        (&said["candidates"][0]["path"], &said["candidates"][0]["in_use"]),
        (&json!([2, 5]), &json!(true))
    );
    assert_eq!(said["candidates"].as_array().unwrap().len(), 5, "{said}");
    let direct = &said["links"][0];
    assert_eq!(
        (&direct["from"], &direct["to"], &direct["own"]),
        (&json!(2), &json!(5), &json!(true)),
        "{said}"
    );
    assert_eq!(direct["said"].as_array().unwrap().len(), 2, "both ends: {said}");
    let people = dev.run(&["route", "explain", "2", "5"]);
    ok(&people);
    let people = String::from_utf8(people.stdout).unwrap();
    for word in
        ["from node 2 to node 5: 2-5", "changes next: at once", "measured by 2", "reported by 5", "passes on"]
    {
        assert!(people.contains(word), "{word:?} is not in {people}");
    }

    fails(&dev.run(&["route", "explain", "1", "9"]), 1, &["no node 9", "swarmmq status"]);
    fails_as_json(&dev.run(&["route", "explain", "9", "1", "--json"]), 1, "no_such_node", &["no node 9"]);
    fails(&dev.run(&["route", "explain", "3", "3"]), 2, &["name two nodes"]);

    let mut watch = dev.command(&["route", "watch", "--json"]);
    let mut watch = Running(watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut notes = BufReader::new(watch.0.stderr.take().unwrap()).lines();
    assert!(notes.next().unwrap().unwrap().contains("watching 20 routes"));
    let mut told = BufReader::new(watch.0.stdout.take().unwrap()).lines();
    ok(&dev.run(&["dev", "kill", "5"]));
    let lost = loop {
        let line: Value = serde_json::from_str(&told.next().unwrap().unwrap()).unwrap();
        if line["to"] == 5 {
            break line;
        }
        assert!(line["from"] == 5 || line["node"] == 5, "only node 5 is concerned: {line}");
    };
    assert_eq!(
        (&lost["path"], &lost["old_path"][1], &lost["why"]),
        (&json!([]), &json!(5), &json!("lost")),
        "{lost}"
    );
    signal(watch.pid(), Signal::INT);
    assert_eq!(watch.code(), Some(130));

    let output = dev.run(&["route", "explain", "5", "1"]);
    exits(&output, 3);
    assert!(errors(&output).contains("node 5 did not answer"), "{}", errors(&output));
    assert_eq!(last(&dev.run(&["route", "ls", "--json"]))["unanswered"], json!([5]));
    ok(&dev.run(&["dev", "down"]));
    fails(&dev.run(&["route", "ls", "--timeout", "1s"]), 3, &["swarmmq dev up"]);
}

#[test]
fn settings_hold_on_every_node_and_over_restarts_and_policies_are_compared_side_by_side() {
    let dev = Dev::up_with(3, &[]);
    let settings = |dev: &Dev| last(&dev.run(&["settings", "ls", "--json"]));
    assert_eq!(
        settings(&dev),
        json!({ "routing.policy": "least-cost", "routing.cohort": "none", "cluster.open_join": "true" })
    );
    ok(&dev.run(&["settings", "set", "routing.cohort=p2c-ewma:100"]));
    ok(&dev.run(&["settings", "set", "routing.policy=static-hash", "--json"]));
    fails(&dev.run(&["settings", "set", "routing.policy=fast"]), 2, &["static-hash", "least-cost"]);
    fails(&dev.run(&["settings", "set", "colour=red"]), 2, &["no setting `colour`", "routing.policy"]);
    let set = json!({ "routing.policy": "static-hash", "routing.cohort": "p2c-ewma:100", "cluster.open_join": "true" });
    for node in 1..=3 {
        let servers = dev.node_of(node, "client");
        let output = dev.run(&["settings", "ls", "--json", "--servers", &servers]);
        ok(&output);
        assert_eq!(last(&output), set, "node {node}");
    }

    let output = dev.run(&["bench", "routing", "--duration", "2s", "--within", "10s", "--json"]);
    ok(&output);
    let compared = last(&output);
    let policies = compared["policies"].as_array().unwrap();
    assert_eq!(policies.iter().map(|of| &of["policy"]).collect::<Vec<_>>(), ["static-hash", "least-cost"]);
    for of in policies {
        assert_eq!((&of["published"], &of["acknowledged"]), (&json!(1000), &json!(1000)), "{compared}");
        assert!(of["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{compared}");
    }
    assert_eq!((&compared["lost"], &compared["duplicated"]), (&json!(0), &json!(0)));
    exits(&dev.run(&["bench", "routing", "--policies", "best"]), 2);

    ok(&dev.run(&["dev", "down"]));
    ok(&dev.run(&["dev", "up"]));
    assert_eq!(settings(&dev), set);
}
