//! A disk that cannot be gone on with, on one of three real nodes: it joins again as a new one, and nothing is lost.

mod cluster;
#[path = "cluster/swarm.rs"]
mod swarm;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use self::{
    cluster::{ok, until},
    swarm::{Load, PATIENCE, Swarm},
};

const WORDS: &[&str] = &["--order", "key", "--producers", "2", "--rate", "200", "--duration", "300"];

fn identity(data: &Path) -> String {
    fs::read_to_string(data.join("identity.toml")).unwrap()
}

/// What was set aside in a data directory.
fn aside(data: &Path, what: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(what)).collect()
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_node_with_a_corrupt_log_joins_again_as_a_new_disk() {
    let mut swarm = Swarm::up(3);
    let mut load = Load::start(&swarm, &[1, 2], WORDS);
    // The one that made the cluster: it has no seed but itself, and knows the others from before.
    swarm.stop(0);
    let data = swarm.nodes[0].data.clone();
    let segment = data.join("log/00000001.seg");
    flip(&segment, 4096 + 100);
    let damaged = fs::read(&segment).unwrap();
    let before = identity(&data);
    swarm.start(0);
    swarm.heals();
    load.flows();
    load.finish();
    let log = swarm.nodes[0].log();
    for words in ["THE LOG OF THIS DISK IS CORRUPT", "as a new, empty disk", "log.corrupt-"] {
        assert!(log.contains(words), "{words:?} is not in {log}");
    }
    let aside = aside(&data, "log.corrupt-");
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read(aside[0].join("00000001.seg")).unwrap(), damaged, "for whoever wants to look");
    let after = identity(&data);
    assert!(after.contains("founder = false") && after != before, "{after}");
    // The new disk is one like any other.
    swarm.kill(0);
    swarm.start(0);
    swarm.heals();
}

#[test]
fn a_corrupt_log_is_not_touched_while_nobody_of_the_cluster_answers() {
    let mut swarm = Swarm::up(3);
    (0..3).for_each(|at| swarm.stop(at));
    let data = swarm.nodes[1].data.clone();
    let segment = data.join("log/00000001.seg");
    flip(&segment, 4096 + 100);
    let (damaged, before) = (fs::read(&segment).unwrap(), identity(&data));
    swarm.start(1);
    until("it says so", PATIENCE, || swarm.nodes[1].log().contains("nothing is changed until a member"));
    until("it waits", PATIENCE, || {
        std::net::TcpStream::connect(&swarm.nodes[1].admin).is_ok()
            && cluster::get(&swarm.nodes[1].admin, "/readyz").1.contains("a disk with a corrupt log")
    });
    assert_eq!((fs::read(&segment).unwrap(), identity(&data)), (damaged, before));
    assert!(aside(&data, "log.corrupt-").is_empty());
    swarm.start(0);
    swarm.start(2);
    swarm.heals();
    assert_eq!(aside(&data, "log.corrupt-").len(), 1);
}

#[test]
fn a_disk_that_was_rolled_back_joins_again_as_a_new_one() {
    let mut swarm = Swarm::up(3);
    let mut load = Load::start(&swarm, &[0, 1], WORDS);
    swarm.stop(2);
    let data = swarm.nodes[2].data.clone();
    let copy = data.with_file_name("copy");
    ok(&Command::new("cp").arg("-a").args([&data, &copy]).output().unwrap());
    swarm.start(2);
    swarm.heals();
    load.flows();
    swarm.stop(2);
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&copy, &data).unwrap();
    let before = identity(&data);
    swarm.start(2);
    until("it notices", PATIENCE, || !aside(&data, "log.lost-").is_empty());
    swarm.heals();
    load.flows();
    load.finish();
    assert!(swarm.nodes[2].runs(), "{}", swarm.nodes[2].log());
    assert!(swarm.nodes[2].log().contains("THE LOG OF THIS DISK IS LOST"));
    assert_ne!(identity(&data), before);
}
