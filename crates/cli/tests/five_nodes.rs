//! Five nodes as real processes: what a loss costs, what a restart costs, who may come back.

mod cluster;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    process::{Output, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};
use swarmmq_client::{
    ClientKeyring, Message, MessageId, Options, ProducerOptions, SubscribeOptions, SwarmMq,
};

use self::cluster::{Dev, column, errors, exits, fails, last, ok, signal, until};

const PATIENCE: Duration = Duration::from_secs(30);

/// Five processes at a time are enough for a small machine.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn status(dev: &Dev) -> (i32, Value) {
    let output = dev.run(&["status", "--json"]);
    (output.status.code().unwrap(), last(&output))
}

fn numbers(value: &Value) -> Vec<u16> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u16).collect()
}

/// Sends through one node, with a deadline.
fn send(dev: &Dev, node: u16, address: &str, body: &str, deadline: &str) -> Output {
    let server = dev.node_of(node, "client");
    let keyring = dev.directory().join("client.keyring");
    let keyring = keyring.to_str().unwrap();
    dev.run(&[
        "send",
        address,
        body,
        "--deadline",
        deadline,
        "--json",
        "--servers",
        &server,
        "--keyring",
        keyring,
    ])
}

fn receive(dev: &Dev, node: u16, address: &str, count: usize) -> Vec<Value> {
    let server = dev.node_of(node, "client");
    let keyring = dev.directory().join("client.keyring");
    let count = count.to_string();
    let words = ["recv", address, "-n", &count, "--timeout", "40s", "--json", "--servers", &server];
    let output = dev.run(&[&words[..], &["--keyring", keyring.to_str().unwrap()]].concat());
    ok(&output);
    column(&output, "body")
}

/// One address for every shard.
fn addresses(dev: &Dev) -> Vec<(String, u64)> {
    let mut found: Vec<(String, u64)> = Vec::new();
    for number in 0..40 {
        let address = format!("a{number}");
        let output = send(dev, 1, &address, "first", "20s");
        ok(&output);
        let shard = last(&output)["shard"].as_u64().unwrap();
        if found.iter().all(|(_, known)| *known != shard) {
            found.push((address, shard));
        }
        if found.len() == 6 {
            break;
        }
    }
    found
}

#[test]
fn a_lost_node_degrades_and_a_lost_majority_stops_only_its_own_shards() {
    let _alone = alone();
    let dev = Dev::up_with(5, &[]);
    let (code, healthy) = status(&dev);
    assert_eq!((code, &healthy["healthy"]), (0, &json!(true)), "{healthy}");
    assert_eq!(healthy["nodes"].as_array().unwrap().len(), 5);
    let shards = healthy["shards"].as_array().unwrap();
    assert!(shards.iter().all(|shard| shard["in_sync"].as_array().unwrap().len() == 3), "{healthy}");
    fails(&dev.run(&["dev", "up", "--nodes", "3"]), 2, &["5 nodes"]);

    let addresses = addresses(&dev);
    let (address, shard) = &addresses[0];
    assert_eq!(receive(&dev, 4, address, 1), ["first"], "any node serves any address");

    let victims = numbers(&shards[*shard as usize]["replicas"])[..2].to_vec();
    ok(&dev.run(&["dev", "kill", &victims[0].to_string()]));
    // While others are elected, its shards have no leader.
    until("the cluster is degraded", PATIENCE, || status(&dev).0 == 10);
    assert_eq!(status(&dev).1["state"], "degraded");
    let others: Vec<u16> = (1..=5).filter(|node| !victims.contains(node)).collect();
    ok(&send(&dev, others[0], address, "second", "20s"));
    assert_eq!(receive(&dev, others[1], address, 1), ["second"]);

    ok(&dev.run(&["dev", "kill", &victims[1].to_string()]));
    let (code, report) = status(&dev);
    assert_eq!((code, &report["state"]), (11, &json!("critical")), "{report}");
    let began = Instant::now();
    let output = send(&dev, others[0], address, "third", "1500ms");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!([3, 5].contains(&output.status.code().unwrap()), "{}", last(&output));
    assert!(last(&output)["error"]["code"].is_string(), "{}", last(&output));
    let serves = |shard: u64| {
        let replicas = numbers(&shards[shard as usize]["replicas"]);
        replicas.iter().filter(|node| victims.contains(node)).count() < 2
    };
    let (spared, _) = addresses.iter().find(|(_, shard)| serves(*shard)).expect("another shard");
    ok(&send(&dev, others[1], spared, "fourth", "20s"));

    for victim in &victims {
        ok(&dev.run(&["dev", "start", &victim.to_string()]));
    }
    // Leads may still be on their way back to where they belong.
    until("the cluster is healthy again", PATIENCE, || status(&dev).0 == 0);
    ok(&send(&dev, victims[0], address, "fifth", "20s"));
    // The third had no certain end: it may have been stored.
    let bodies = receive(&dev, victims[1], address, 1);
    assert!(bodies == ["third"] || bodies == ["fifth"], "{bodies:?}");
    assert_eq!(receive(&dev, victims[1], spared, 2), ["first", "fourth"]);
}

#[test]
fn planned_restarts_of_every_node_cost_no_message() {
    let _alone = alone();
    let dev = Dev::up_with(5, &[]);
    let words = ["bench", "e2e", "--producers", "2", "--consumers", "2", "--rate", "400", "--duration", "10"];
    let mut bench = dev.command(&[&words[..], &["--json"]].concat());
    let mut bench = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut progress = BufReader::new(bench.stderr.take().unwrap()).lines();
    let line = progress.next().unwrap().unwrap();
    assert!(line.contains("acknowledged"), "{line}");
    for node in 1..=5_u16 {
        let node = node.to_string();
        ok(&dev.run(&["dev", "stop", &node]));
        ok(&dev.run(&["dev", "start", &node]));
    }
    let rest = std::thread::spawn(move || progress.map_while(Result::ok).collect::<Vec<_>>());
    let output = bench.wait_with_output().unwrap();
    let said = rest.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{:?}\n{said:#?}", String::from_utf8_lossy(&output.stdout));
    let report = last(&output);
    for field in ["lost", "duplicated", "out_of_order", "unknown", "failed"] {
        assert_eq!(report[field], 0, "{field} in {report}");
    }
    assert_eq!(report["published"], 4000, "{report}");
    until("the cluster is healthy", PATIENCE, || status(&dev).0 == 0);
}

/// Messages that these nodes took from clients, and those of them that they sent on to a leader.
fn taken_and_passed_on(dev: &Dev, nodes: &[u16]) -> (f64, f64) {
    let count = |node: u16, name: &str| {
        let text = cluster::get(&dev.node_of(node, "admin"), "/metrics").1;
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).expect("a number")
    };
    let sum = |name: &str| nodes.iter().map(|node| count(*node, name)).sum();
    (sum("swarmmq_messages_accepted_total"), sum("swarmmq_messages_passed_on_total"))
}

/// Waits until so many messages in a row went straight to whoever leads.
fn goes_to_leaders(dev: &Dev, nodes: &[u16]) {
    let mut since = taken_and_passed_on(dev, nodes);
    until("messages go to leaders", PATIENCE, || {
        let now = taken_and_passed_on(dev, nodes);
        if now.1 > since.1 {
            since = now;
        }
        now.0 - since.0 >= 200.0
    });
}

#[test]
fn clients_that_know_one_server_talk_to_leaders_and_lose_nothing_when_one_is_killed() {
    let _alone = alone();
    let dev = Dev::up_with(5, &[]);
    let server = dev.node_of(1, "client");
    let keyring = dev.directory().join("client.keyring");
    let words = ["bench", "e2e", "--producers", "2", "--consumers", "2", "--rate", "400", "--duration", "12"];
    let where_from =
        ["--order", "key", "--json", "--servers", &server, "--keyring", keyring.to_str().unwrap()];
    let mut bench = dev.command(&[&words[..], &where_from].concat());
    let bench = bench.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    goes_to_leaders(&dev, &[1, 2, 3, 4, 5]);

    let leaders: BTreeSet<u64> = status(&dev).1["shards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shard| shard["leader"].as_u64().unwrap())
        .collect();
    let victim =
        leaders.into_iter().find(|node| *node > 1).expect("not everything is led by one node") as u16;
    ok(&dev.run(&["dev", "kill", &victim.to_string()]));
    let others: Vec<u16> = (1..=5).filter(|node| *node != victim).collect();
    goes_to_leaders(&dev, &others);

    let output = bench.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{:?}", String::from_utf8_lossy(&output.stdout));
    let report = last(&output);
    for field in ["lost", "duplicated", "out_of_order", "unknown", "failed"] {
        assert_eq!(report[field], 0, "{field} in {report}");
    }
    assert_eq!(report["published"], 4800, "{report}");
}

/// The longest time between two of these.
fn longest_gap(times: &[Instant]) -> Duration {
    times.windows(2).map(|pair| pair[1] - pair[0]).max().expect("at least two")
}

/// Sends one message after the other through the home connection until told to stop. Returns their ids and when each was
/// stored.
async fn publish_until(client: SwarmMq, stop: Arc<AtomicBool>) -> (Vec<MessageId>, Vec<Instant>) {
    let producer = client.producer(ProducerOptions::default());
    let (mut sent, mut times) = (Vec::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        sent.push(producer.send(Message::new("steady", "x")).await.unwrap().id);
        times.push(Instant::now());
    }
    (sent, times)
}

#[test]
fn a_client_whose_node_stands_still_moves_to_another_and_loses_nothing() {
    let _alone = alone();
    // Two nodes that lead nothing: whoever waits waits for its way in, not for a new leader.
    let dev = Dev::up_with(5, &["--roles", "4=ingress", "--roles", "5=ingress"]);
    tokio::runtime::Runtime::new().unwrap().block_on(publish_while_the_entry_stands_still(&dev));
}

async fn publish_while_the_entry_stands_still(dev: &Dev) {
    let keyring = ClientKeyring::load(&dev.directory().join("client.keyring")).unwrap();
    let doors: Vec<String> = [4, 5].iter().map(|node| dev.node_of(*node, "client")).collect();
    let mut options = Options::new(doors, keyring);
    options.direct = false;
    let (sender, receiver) = (options.clone(), options);
    let receiver = SwarmMq::connect(receiver).await.unwrap();
    let mut consumer = receiver.subscribe("steady", SubscribeOptions::default()).await.unwrap();
    let sender = SwarmMq::connect(sender).await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn(publish_until(sender, Arc::clone(&stop)));
    let taken = |node: u16| taken_and_passed_on(dev, &[node]).0;
    let mut entry = None;
    until("messages come in", PATIENCE, || {
        entry = [4, 5].into_iter().find(|node| taken(*node) >= 200.0);
        entry.is_some()
    });
    let (entry, other) = if entry == Some(4) { (4, 5) } else { (5, 4) };
    let before = taken(other);
    signal(dev.pid_of(entry), Signal::STOP);
    until("they come in elsewhere", PATIENCE, || taken(other) >= before + 200.0);
    signal(dev.pid_of(entry), Signal::CONT);
    // What waited in the node that stood still arrives after all, and is known.
    until("it is well again", PATIENCE, || status(dev).0 == 0);
    let before = taken(other);
    until("messages still come in", PATIENCE, || taken(other) >= before + 200.0);
    stop.store(true, Ordering::Relaxed);
    let (sent, times) = publishing.await.unwrap();
    assert!(longest_gap(&times) < Duration::from_millis(1500), "{:?}", longest_gap(&times));

    let mut received = Vec::new();
    while received.len() < sent.len() {
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("nothing is lost");
        let message = next.unwrap().unwrap();
        received.push(message.id);
        message.ack().await.unwrap();
    }
    let more = tokio::time::timeout(Duration::from_secs(3), consumer.next()).await;
    assert!(more.is_err(), "one more than was sent: {more:?}");
    let once: BTreeSet<MessageId> = received.iter().copied().collect();
    assert_eq!(once, sent.into_iter().collect());
}

#[test]
fn all_killed_at_once_remember_everything() {
    let _alone = alone();
    let dev = Dev::up_with(5, &[]);
    ok(&dev.run(&["address", "create", "kept", "--order", "none"]));
    ok(&dev.run(&["send", "kept", "x", "--count", "200"]));
    for node in 1..=5 {
        signal(dev.pid_of(node), Signal::KILL);
    }
    // At once: some of them are still ending.
    ok(&dev.run(&["dev", "up", "--nodes", "5"]));
    let received = dev.run(&["recv", "kept", "-n", "200", "--timeout", "40s", "--json"]);
    ok(&received);
    let ids: BTreeSet<String> = column(&received, "id").iter().map(Value::to_string).collect();
    assert_eq!(ids.len(), 200);
    until("the cluster is healthy", PATIENCE, || status(&dev).0 == 0);
    ok(&dev.run(&["dev", "down"]));
}

#[test]
fn a_wiped_disk_comes_back_as_a_new_one_and_a_removed_one_does_not() {
    let _alone = alone();
    let dev = Dev::up_with(4, &[]);
    ok(&dev.run(&["send", "a", "x", "--count", "20"]));
    // The founder is nothing special.
    ok(&dev.run(&["dev", "kill", "1"]));
    fs::remove_dir_all(dev.node_of(1, "data")).unwrap();
    ok(&dev.run(&["dev", "start", "1"]));
    until("the cluster is healthy again", PATIENCE, || status(&dev).0 == 0);

    let added = dev.run(&["node", "add", "--json"]);
    ok(&added);
    assert_eq!(last(&added)["id"], 5);
    until("it is healthy with five", PATIENCE, || status(&dev).0 == 0);
    assert_eq!(status(&dev).1["nodes"].as_array().unwrap().len(), 5);

    let config = dev.node_of(2, "config");
    let foretold = dev.run(&["node", "remove", "2", "--dry-run", "--json"]);
    ok(&foretold);
    assert_eq!((&last(&foretold)["node"], &last(&foretold)["copies_after"]), (&json!(2), &json!(3)));
    let removed = dev.run(&["node", "remove", "2", "--timeout", "40s"]);
    ok(&removed);
    assert!(errors(&removed).contains("node 2 still holds"), "{}", errors(&removed));
    let ids: Vec<Value> =
        dev.cluster()["nodes"].as_array().unwrap().iter().map(|n| n["id"].clone()).collect();
    assert_eq!(ids, [1, 3, 4, 5], "it is off the list");
    until("the rest is healthy", PATIENCE, || status(&dev).0 == 0);
    fails(&dev.run(&["node", "drain", "2"]), 1, &["no node 2"]);

    let back = dev.run(&["node", "--config", &config]);
    exits(&back, 7);
    assert!(errors(&back).contains("does not belong to the cluster any more"), "{}", errors(&back));
    until("nobody minds", PATIENCE, || status(&dev).0 == 0);
    let received = dev.run(&["recv", "a", "-n", "20", "--timeout", "40s", "--json"]);
    ok(&received);
    // Three are left after the next one, then none may go without saying so.
    ok(&dev.run(&["node", "remove", "5", "--timeout", "40s"]));
    fails(&dev.run(&["node", "drain", "3"]), 1, &["copies instead of 3"]);
}

#[test]
fn nodes_without_a_disk_take_clients_for_those_that_have_one() {
    let _alone = alone();
    let roles = ["--roles", "4=ingress,router", "--roles", "5=ingress"];
    let dev = Dev::up_with(5, &roles);
    let (code, report) = status(&dev);
    assert_eq!(code, 0, "{report}");
    for shard in report["shards"].as_array().unwrap() {
        assert_eq!(numbers(&shard["replicas"]), [1, 2, 3]);
    }
    assert_eq!(report["nodes"][4]["roles"], json!(["ingress"]));
    ok(&send(&dev, 4, "a", "through four", "20s"));
    assert_eq!(receive(&dev, 5, "a", 1), ["through four"]);
    ok(&dev.run(&["dev", "up", "--nodes", "5", "--roles", "5=ingress"]));
    fails(&dev.run(&["dev", "up", "--nodes", "5", "--roles", "3=ingress"]), 2, &["other roles"]);
}
