//! Real processes that are killed, stopped and restarted under load: everything that was acknowledged is delivered exactly
//! once and in order, and the cluster is healthy again.
//!
//! A short selection runs with all other tests; each story by itself with `cargo x chaos`, at length with `--long`.

mod cluster;
#[path = "cluster/story.rs"]
mod story;
#[path = "cluster/swarm.rs"]
mod swarm;

use std::time::{Duration, Instant};

use rustix::process::Signal;

use self::{
    cluster::{ok, until},
    story::{Story, is_long, is_told, lasts, quantiles, rate, tell},
    swarm::{Load, PATIENCE, Swarm},
};

const NODES: u16 = 5;

/// A load of one line of messages at an address of its own, through these nodes.
fn line(swarm: &Swarm, servers: &[usize], address: &str, seconds: &str) -> Load {
    let words = ["--address", address, "--rate", rate(), "--producers", "2", "--duration", seconds];
    Load::start(swarm, servers, &words)
}

/// The shard that a line lies in, and who leads it.
fn led(swarm: &Swarm, address: &str) -> (u64, usize) {
    let shard = swarm.shard_of(address);
    (shard, swarm.leader(shard))
}

fn ms(report: &serde_json::Value, field: &str) -> Duration {
    Duration::from_secs_f64(report[field].as_f64().unwrap() / 1000.0)
}

/// Does something to the leader of a line, again and again, and measures the gap in publishing each time.
fn leaders(name: &str, swarm: &mut Swarm, times: usize, seconds: &str, deed: impl Fn(&mut Swarm, usize)) {
    let mut story = Story::without_load(name);
    let (mut publish, mut deliver) = (Vec::new(), Vec::new());
    let mut address = format!("chaos.{}", name.replace(' ', "-"));
    ok(&swarm.command(&swarm.everyone(), &["send", &address, "first"]).output().unwrap());
    ok(&swarm.command(&swarm.everyone(), &["recv", &address, "-n", "1"]).output().unwrap());
    for n in 0..times {
        let leader = led(swarm, &address).1;
        // Clients that stay connected: another story is about those who are not.
        let ingress = (leader + 1 + n % (usize::from(NODES) - 1)) % usize::from(NODES);
        let mut load = line(swarm, &[ingress], &address, seconds);
        deed(swarm, led(swarm, &address).1);
        story.fault();
        load.flows();
        let report = load.result();
        story.count(&report);
        publish.push(ms(&report, "longest_publish_gap_ms"));
        deliver.push(ms(&report, "longest_delivery_gap_ms"));
        swarm.heals();
        if n % 10 == 9 {
            // Another shard, now and then.
            address = format!("chaos.{}-{n}", name.replace(' ', "-"));
            ok(&swarm.command(&swarm.everyone(), &["send", &address, "first"]).output().unwrap());
            ok(&swarm.command(&swarm.everyone(), &["recv", &address, "-n", "1"]).output().unwrap());
        }
    }
    let memory = swarm.nodes.iter().map(|node| node.memory()).max().unwrap_or_default();
    story.summary(format_args!(
        "gaps: publish {}; delivery {}; largest node {memory} MiB",
        quantiles(publish),
        quantiles(deliver)
    ));
}

fn kill_leaders(swarm: &mut Swarm) {
    let times = if is_long() { 50 } else { 2 };
    leaders("kill of the leader", swarm, times, "4", |swarm, leader| {
        swarm.kill(leader);
        lasts(Duration::from_secs(1));
        swarm.start(leader);
    });
}

fn stop_leaders(swarm: &mut Swarm) {
    let times = if is_long() { 20 } else { 1 };
    leaders("stop of the leader for 2 s", swarm, times, "6", |swarm, leader| {
        swarm.signal(leader, Signal::STOP);
        lasts(Duration::from_secs(2));
        swarm.signal(leader, Signal::CONT);
    });
}

/// A machine that stands still for a moment costs nobody a leader.
fn stop_shortly(swarm: &mut Swarm) {
    let mut story = Story::begin("stop for 0.3 s", swarm, &swarm.everyone());
    for at in swarm.everyone() {
        let before = swarm.leaders((at + 1) % usize::from(NODES));
        swarm.signal(at, Signal::STOP);
        lasts(Duration::from_millis(300));
        swarm.signal(at, Signal::CONT);
        story.fault();
        story.flows();
        assert_eq!(swarm.leaders((at + 1) % usize::from(NODES)), before, "after node {} stood still", at + 1);
    }
    story.end(swarm);
}

fn stop_long(swarm: &mut Swarm) {
    let mut story = Story::begin("stop for 30 s", swarm, &[0, 1]);
    for at in [3, 0] {
        swarm.signal(at, Signal::STOP);
        lasts(Duration::from_secs(30));
        swarm.signal(at, Signal::CONT);
        story.fault();
        story.flows();
        swarm.heals();
    }
    story.end(swarm);
}

fn kill_followers(swarm: &mut Swarm) {
    let mut story = Story::without_load("kill of a follower");
    let address = "chaos.follower";
    let mut load = line(swarm, &swarm.everyone(), address, "3600");
    for _ in 0..if is_long() { 10 } else { 2 } {
        let (shard, leader) = led(swarm, address);
        let status = swarm.status(leader);
        let shards = status["shards"].as_array().unwrap();
        let replicas = &shards.iter().find(|one| one["id"] == shard).unwrap()["replicas"];
        let ids = replicas.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as usize - 1);
        let follower = ids.into_iter().find(|at| *at != leader).unwrap();
        swarm.kill(follower);
        story.fault();
        load.flows();
        swarm.start(follower);
        swarm.heals();
    }
    let report = load.finish();
    story.count(&report);
    story.summary(format_args!(
        "longest publish gap {} ms",
        ms(&report, "longest_publish_gap_ms").as_millis()
    ));
}

/// Frames of producers that each node took from its clients.
fn frames(swarm: &Swarm) -> Vec<f64> {
    swarm.nodes.iter().map(|node| node.metric("swarmmq_publish_frames_total").unwrap_or_default()).collect()
}

fn kill_ingress(swarm: &mut Swarm) {
    let mut story = Story::without_load("kill of the ingress node");
    let mut gaps = Vec::new();
    for n in 0..if is_long() { 20 } else { 2 } {
        let before = frames(swarm);
        let mut load = line(swarm, &swarm.everyone(), &format!("chaos.ingress-{n}"), "6");
        let mut ingress = 0;
        // Shown a second later at most.
        until("the producers' node is seen", PATIENCE, || {
            let more: Vec<f64> =
                frames(swarm).iter().zip(&before).map(|(now, before)| now - before).collect();
            ingress = (0..more.len()).max_by(|a, b| more[*a].total_cmp(&more[*b])).unwrap();
            more[ingress] > 50.0
        });
        swarm.kill(ingress);
        story.fault();
        load.flows();
        swarm.start(ingress);
        let report = load.result();
        story.count(&report);
        gaps.push(ms(&report, "longest_publish_gap_ms"));
        swarm.heals();
    }
    story.summary(format_args!("publish gaps: {}", quantiles(gaps)));
}

fn kill_all(swarm: &mut Swarm) {
    let mut story = Story::begin("kill of all five", swarm, &swarm.everyone());
    let mut times = Vec::new();
    let address = "chaos.all";
    ok(&swarm.command(&swarm.everyone(), &["send", address, "first"]).output().unwrap());
    for n in 0..if is_long() { 10 } else { 1 } {
        let (shard, leader) = led(swarm, address);
        let shards = swarm.status(leader)["shards"].as_array().cloned().unwrap();
        let replicas = shards.iter().find(|one| one["id"] == shard).unwrap()["replicas"].as_array().cloned();
        let three: Vec<usize> =
            replicas.unwrap().iter().map(|id| id.as_u64().unwrap() as usize - 1).collect();
        swarm.everyone().into_iter().for_each(|at| swarm.kill(at));
        story.fault();
        three.iter().for_each(|at| swarm.start(*at));
        let began = Instant::now();
        let body = format!("after kill {n}");
        ok(&swarm.command(&three, &["send", address, &body, "--deadline", "60s"]).output().unwrap());
        times.push(began.elapsed());
        let rest = swarm.everyone().into_iter().filter(|at| !three.contains(at)).collect::<Vec<_>>();
        rest.into_iter().for_each(|at| swarm.start(at));
        story.flows();
        swarm.heals();
    }
    tell(format_args!("kill of all five: writable after the third was started: {}", quantiles(times)));
    story.end(swarm);
}

fn restart_each(swarm: &mut Swarm) {
    let mut story = Story::begin("planned restart of each", swarm, &swarm.everyone());
    for at in swarm.everyone() {
        swarm.stop(at);
        story.fault();
        swarm.start(at);
        swarm.heals();
        story.flows();
    }
    story.end(swarm);
}

fn kill_at_random(swarm: &mut Swarm) {
    let mut story = Story::begin("kill of a random node every 5 s", swarm, &swarm.everyone());
    let mut chance = u64::from(std::process::id());
    let until = Instant::now() + Duration::from_secs(if is_long() { 600 } else { 30 });
    while Instant::now() < until {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (chance >> 33) as usize % swarm.nodes.len();
        swarm.kill(at);
        swarm.start(at);
        story.fault();
        lasts(Duration::from_secs(5));
    }
    story.end(swarm);
}

#[test]
fn nobody_notices_kills_stops_and_restarts() {
    if is_told() {
        return;
    }
    let mut swarm = Swarm::up(NODES);
    kill_leaders(&mut swarm);
    stop_leaders(&mut swarm);
    restart_each(&mut swarm);
    kill_all(&mut swarm);
}

/// Each of these has a cluster of its own; `cargo x chaos` runs them one after the other.
macro_rules! stories {
    ($($name:ident: $tell:ident,)*) => {$(
        #[test]
        fn $name() {
            if is_told() {
                $tell(&mut Swarm::up(NODES));
            }
        }
    )*};
}

stories! {
    the_leader_is_killed: kill_leaders,
    a_follower_is_killed: kill_followers,
    the_ingress_node_is_killed: kill_ingress,
    all_five_are_killed: kill_all,
    nodes_stand_still_for_a_moment: stop_shortly,
    the_leader_stands_still_for_two_seconds: stop_leaders,
    each_node_is_restarted: restart_each,
    a_random_node_is_killed_every_five_seconds: kill_at_random,
}

#[test]
fn a_node_stands_still_for_half_a_minute() {
    if is_long() {
        stop_long(&mut Swarm::up(NODES));
    }
}
