//! Disks of real nodes that lose power, rot, fill up or fail under load: everything that was acknowledged is delivered
//! exactly once and in order, and the cluster is healthy again.
//!
//! Power cuts and full disks need file systems in files (root, loop devices, xfsprogs), failing syncs need strace; where
//! those are missing a story says so past the test harness. `cargo x chaos` tells each; one runs with all other tests.

mod cluster;
#[path = "cluster/story.rs"]
mod story;
#[path = "cluster/swarm.rs"]
mod swarm;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::{FallocateFlags, fallocate},
    process::Signal,
};

use self::{
    cluster::{signal, until},
    story::{Story, is_long, is_told, skip},
    swarm::{Disk, PATIENCE, Swarm},
};

const NODES: u16 = 5;
/// Room for some segments; mkfs.xfs makes none below 300 MB.
const DISK_BYTES: u64 = 1 << 30;
/// The log's header and first records.
const EARLY: u64 = 4096 + 64;

/// One disk for each node, or why there are none.
fn disks(count: u16) -> Result<Vec<Disk>, String> {
    (0..count).map(|_| Disk::make(DISK_BYTES)).collect()
}

fn data(disks: &[Disk], id: u16) -> Option<PathBuf> {
    disks.get(usize::from(id) - 1).map(|disk| disk.path().join("data"))
}

/// The power of these nodes fails at once, and comes back.
fn cut_power(name: &str, victims: &[usize]) {
    if !is_told() {
        return;
    }
    // Before the nodes that lie on them, so that they are dropped after those.
    let disks = match disks(NODES) {
        Ok(disks) => disks,
        Err(why) => return skip(name, "root, loop devices and xfsprogs", &why),
    };
    let mut swarm = Swarm::on(NODES, |id| data(&disks, id));
    let mut story = Story::begin(name, &swarm, &swarm.everyone());
    for _ in 0..if is_long() { 10 } else { 1 } {
        victims.iter().for_each(|at| disks[*at].cut_power());
        victims.iter().for_each(|at| swarm.kill(*at));
        story.fault();
        if victims.len() * 2 < swarm.nodes.len() {
            story.flows();
        }
        for at in victims {
            disks[*at].bring_back();
            swarm.start(*at);
        }
        swarm.heals();
        story.flows();
    }
    story.end(&mut swarm);
}

#[test]
fn one_node_loses_power() {
    cut_power("power cut of one", &[0]);
}

#[test]
fn three_nodes_lose_power() {
    cut_power("power cut of three", &[1, 2, 3]);
}

#[test]
fn all_nodes_lose_power() {
    cut_power("power cut of five", &[0, 1, 2, 3, 4]);
}

/// The segment in use, or the only one.
fn latest_segment(data: &Path) -> PathBuf {
    let entries = fs::read_dir(data.join("log")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|ending| ending == "seg")).max().unwrap()
}

/// The last byte of a file that is not zero: what was written ends there.
fn end_of(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64
}

fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 1 << (at % 8);
    fs::write(path, bytes).unwrap();
}

/// Changes the log of one stopped node after another, which then comes back.
fn damage(swarm: &mut Swarm, name: &str, victims: &[usize], how: &dyn Fn(&Path, u64)) {
    let mut story = Story::begin(name, swarm, &swarm.everyone());
    for at in victims {
        swarm.stop(*at);
        let segment = latest_segment(&swarm.nodes[*at].data);
        let end = end_of(&segment);
        assert!(end > EARLY, "{} is empty", segment.display());
        how(&segment, end);
        story.fault();
        swarm.start(*at);
        story.flows();
        swarm.heals();
    }
    story.end(swarm);
}

fn flip_early(path: &Path, _: u64) {
    flip(path, EARLY);
}

fn flip_in_the_middle(path: &Path, end: u64) {
    flip(path, end / 2);
}

fn truncate(path: &Path, end: u64) {
    File::options().write(true).open(path).unwrap().set_len(end / 2).unwrap();
}

#[test]
fn a_log_that_rots_is_mended_by_the_others() {
    if is_told() {
        return;
    }
    let mut swarm = Swarm::up(NODES);
    damage(&mut swarm, "a flipped bit", &[1], &flip_in_the_middle);
}

#[test]
fn logs_rot_and_are_cut_short() {
    if !is_told() {
        return;
    }
    let mut swarm = Swarm::up(NODES);
    let victims: &[usize] = if is_long() { &[0, 1, 2, 3, 4] } else { &[0] };
    damage(&mut swarm, "a flipped bit early in the log", victims, &flip_early);
    damage(&mut swarm, "a flipped bit in the middle", victims, &flip_in_the_middle);
    damage(&mut swarm, "a log cut short", &[2], &truncate);
}

#[test]
fn the_disk_of_one_node_is_full() {
    if !is_told() {
        return;
    }
    let name = "a full disk";
    let disk = match Disk::make(DISK_BYTES) {
        Ok(disk) => disk,
        Err(why) => return skip(name, "root, loop devices and xfsprogs", &why),
    };
    let mut swarm = Swarm::on(NODES, |id| (id == 2).then(|| disk.path().join("data")));
    let mut story = Story::begin(name, &swarm, &swarm.everyone());
    let filler = disk.path().join("filler");
    let file = File::create(&filler).unwrap();
    // As much as there is, in pieces that become smaller.
    let mut piece = DISK_BYTES;
    let mut size = 0;
    while piece >= 64 << 10 {
        match fallocate(&file, FallocateFlags::empty(), size, piece) {
            Ok(()) => size += piece,
            Err(_) => piece /= 2,
        }
    }
    story.fault();
    until("the node sees it", PATIENCE, || {
        let number = |name: &str| swarm.nodes[1].metric(name);
        let (free, reserve) = (number("swarmmq_disk_free_bytes"), number("swarmmq_disk_reserve_bytes"));
        free.zip(reserve).is_some_and(|(free, reserve)| free < reserve)
    });
    for _ in 0..3 {
        story.flows();
    }
    assert_eq!(swarm.status(1)["healthy"], false, "a full disk is a problem");
    fs::remove_file(&filler).unwrap();
    drop(file);
    story.end(&mut swarm);
}

#[test]
fn a_sync_of_one_node_fails() {
    if !is_told() {
        return;
    }
    let name = "a failed sync";
    let works = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    if !works.as_ref().is_ok_and(|status| status.success()) {
        return skip(name, "strace and the right to use it", &format!("{works:?}"));
    }
    let mut swarm = Swarm::up(NODES);
    let mut story = Story::begin(name, &swarm, &swarm.everyone());
    let words = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fdatasync",
        "-e",
        "inject=fdatasync:error=EIO:when=300+",
    ];
    for at in [0, 3] {
        swarm.stop(at);
        swarm.start_under(at, &words);
        until("its log stops", PATIENCE, || swarm.nodes[at].log().contains("the log stopped"));
        story.fault();
        for _ in 0..2 {
            story.flows();
        }
        // The node, not the program that watches it; that one ends with it.
        let node = fs::read_to_string(swarm.nodes[at].data.join("lock")).unwrap();
        signal(node.trim().parse().unwrap(), Signal::KILL);
        swarm.ends(at);
        swarm.start(at);
        story.flows();
        swarm.heals();
    }
    story.end(&mut swarm);
}
