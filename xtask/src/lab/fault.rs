//! What goes wrong between five nodes or in one of them, by name; how it is brought about, and how it is mended.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    delay::LongWay,
    net::{Drop, MACHINES, Network, call},
    nodes::Nodes,
};

/// The nodes with clients. Faults of single links are between these two, faults of single nodes in one of the others.
pub(super) const A: u16 = 1;
pub(super) const B: u16 = 2;

/// How long a process is stopped.
const FREEZE: Duration = Duration::from_secs(2);
/// A node that answers in about two seconds: how long it is stopped, and how long it works in between.
const STOPPED: Duration = Duration::from_millis(1900);
const WORKING: Duration = Duration::from_millis(100);
/// Processor time of a slow node in every tenth of a second, in microseconds: 5 % of one processor.
const QUOTA_US: &str = "5000";

/// Time for strace to get hold of a thread.
const ATTACHING: Duration = Duration::from_secs(5);
/// Pause between looks whether it has.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// One thing that goes wrong.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    /// For people.
    pub(super) what: &'static str,
    pub(super) kind: Kind,
    /// The longest time in which no publish is answered, in milliseconds; where a document names one.
    pub(super) publish_gap_ms_max: Option<f64>,
    /// The longest time in which nothing is delivered, likewise.
    pub(super) delivery_gap_ms_max: Option<f64>,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    Cut,
    CutOneWay,
    Loss {
        percent: u32,
    },
    /// Of packets between A and B, in each direction.
    LossyLink {
        percent: u32,
    },
    /// Of packets between A and B, in each direction.
    Delay {
        ms: u64,
    },
    SlowCpu,
    Isolated,
    Freeze,
    /// Stopped again and again.
    Stutter,
    /// How much longer each sync takes.
    SlowSync {
        ms: u64,
    },
}

/// All of them, in the order in which they are told.
pub(super) const FAULTS: &[Fault] = &[
    fault("control", "nothing", Kind::Nothing, None, None),
    // Rule 23 and the masks: whoever has a majority is served within 2 s. No leader changes, so consumers need not wait.
    fault("cut", "A and B cut from each other", Kind::Cut, Some(2000.0), Some(2000.0)),
    fault("cut-one-way", "B does not hear A, A hears B", Kind::CutOneWay, Some(2000.0), Some(2000.0)),
    fault("loss10", "every link loses 10 % in each direction", Kind::Loss { percent: 10 }, None, None),
    fault("loss30", "every link loses 30 % in each direction", Kind::Loss { percent: 30 }, None, None),
    fault("delay", "20 ms more in each direction between A and B", Kind::Delay { ms: 20 }, None, None),
    fault("slow-cpu", "one node without clients has 5 % of a processor", Kind::SlowCpu, None, None),
    fault("isolated", "one node without clients cut from all others", Kind::Isolated, Some(2000.0), None),
    // The page of figures: SIGSTOP of a leader for 2 s.
    fault("freeze", "one node without clients stopped for 2 s", Kind::Freeze, Some(3000.0), None),
    fault(
        "slow-fsync",
        "every sync of one node without clients takes 150 ms more",
        Kind::SlowSync { ms: 150 },
        None,
        None,
    ),
];

pub(super) const fn fault(
    name: &'static str,
    what: &'static str,
    kind: Kind,
    publish_gap_ms_max: Option<f64>,
    delivery_gap_ms_max: Option<f64>,
) -> Fault {
    Fault { name, what, kind, publish_gap_ms_max, delivery_gap_ms_max }
}

/// A fault that is there, and what it takes to end it.
pub(super) enum Present {
    Nothing,
    /// Packets are dropped.
    Net,
    Long(LongWay),
    Slow,
    Stopped,
    Stuttering(Stutter),
    Traced(Child),
}

impl Kind {
    /// How long it lasts within a load of so many seconds.
    pub(super) fn lasts(self, load: Duration) -> Duration {
        if self == Self::Freeze { FREEZE } else { load / 2 }
    }

    /// What this machine lacks for it.
    pub(super) fn lacks(self, network: &Network) -> Option<String> {
        match self {
            Self::Delay { .. } => {
                let words = ["link", "add", "trial", "type", "vxlan", "id", "1", "dstport", "4790"];
                let made =
                    network.ip_on(A, &words).and_then(|()| network.ip_on(A, &["link", "del", "trial"]));
                made.err().map(|error| format!("VXLAN: {error}"))
            }
            Self::SlowCpu => {
                let group = network.slow_group();
                let made = fs::create_dir_all(&group)
                    .and_then(|()| fs::read_to_string(group.join("cpu.cfs_quota_us")).map(drop));
                made.err().map(|error| {
                    format!("control groups, version 1, with `cpu`: {}: {error}", group.display())
                })
            }
            Self::SlowSync { .. } => {
                let works = call(Command::new("strace").args(["-f", "-o", "/dev/null", "true"]));
                works.err().map(|error| format!("strace and the right to use it: {error}"))
            }
            _ => None,
        }
    }

    /// Brings it about.
    ///
    /// * `victim`: the node concerned, if it is a single one.
    pub(super) fn begin(self, network: &Network, nodes: &Nodes<'_>, victim: u16) -> Result<Present, String> {
        match self {
            Self::Nothing => return Ok(Present::Nothing),
            Self::Cut => {
                network.drop_on(A, &[Drop::From(B)])?;
                network.drop_on(B, &[Drop::From(A)])?;
            }
            Self::CutOneWay => network.drop_on(B, &[Drop::From(A)])?,
            Self::Loss { percent } => {
                (1..=MACHINES)
                    .try_for_each(|machine| network.drop_on(machine, &[Drop::Random { percent }]))?;
            }
            Self::LossyLink { percent } => {
                network.drop_on(A, &[Drop::RandomFrom { machine: B, percent }])?;
                network.drop_on(B, &[Drop::RandomFrom { machine: A, percent }])?;
            }
            Self::Delay { ms } => {
                return LongWay::make(network, [A, B], Duration::from_millis(ms)).map(Present::Long);
            }
            Self::SlowCpu => {
                write(&network.slow_group().join("cpu.cfs_quota_us"), QUOTA_US)?;
                write(&network.slow_group().join("cgroup.procs"), &nodes.pid(victim).to_string())?;
                return Ok(Present::Slow);
            }
            Self::Isolated => {
                let others: Vec<u16> = (1..=MACHINES).filter(|machine| *machine != victim).collect();
                let from_all: Vec<Drop> = others.iter().map(|machine| Drop::From(*machine)).collect();
                network.drop_on(victim, &from_all)?;
                others.iter().try_for_each(|machine| network.drop_on(*machine, &[Drop::From(victim)]))?;
            }
            Self::Freeze => {
                signal("STOP", nodes.pid(victim))?;
                return Ok(Present::Stopped);
            }
            Self::Stutter => return Ok(Present::Stuttering(Stutter::begin(nodes.pid(victim)))),
            Self::SlowSync { ms } => return trace(nodes.pid(victim), ms).map(Present::Traced),
        }
        Ok(Present::Net)
    }
}

impl Present {
    /// Mends it. Fails also if it had no effect at all: then nothing was shown.
    pub(super) fn end(self, network: &Network, nodes: &Nodes<'_>, victim: u16) -> Result<(), String> {
        match self {
            Self::Nothing => Ok(()),
            Self::Net => {
                let dropped = network.dropped()?;
                network.clear_all()?;
                had_effect(dropped, "packet was dropped")
            }
            Self::Long(way) => had_effect(way.end(network, [A, B])?, "packet took the long way"),
            Self::Slow => {
                let group = network.slow_group();
                write(&group.join("cpu.cfs_quota_us"), "-1")?;
                had_effect(
                    throttled(&read(&group.join("cpu.stat"))?),
                    "time the node had to wait for its share",
                )
            }
            Self::Stopped => signal("CONT", nodes.pid(victim)),
            Self::Stuttering(stutter) => had_effect(stutter.end()?, "signal stopped the node"),
            Self::Traced(mut tracer) => {
                signal("TERM", tracer.id())?;
                tracer.wait().map(drop).map_err(|error| format!("strace: {error}"))
            }
        }
    }
}

fn had_effect(count: u64, what: &str) -> Result<(), String> {
    if count > 0 { Ok(()) } else { Err(format!("the fault had no effect: no {what}")) }
}

/// How often a group of processes had used up its share.
fn throttled(stat: &str) -> u64 {
    stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")?.parse().ok()).unwrap_or(0)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn signal(name: &str, process: u32) -> Result<(), String> {
    let line = format!("kill -s {name} {process}");
    call(Command::new("sh").args(["-c", &line])).map(drop)
}

/// Somebody who stops a process, lets it work for a moment, and stops it again, until this goes.
pub(super) struct Stutter {
    /// Nothing is ever sent; its end ends the waiting.
    go: Sender<()>,
    thread: JoinHandle<Result<u64, String>>,
}

impl Stutter {
    fn begin(process: u32) -> Self {
        let (go, gone) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            for times in 1.. {
                signal("STOP", process)?;
                let ended = gone.recv_timeout(STOPPED);
                signal("CONT", process)?;
                if ended != Err(RecvTimeoutError::Timeout)
                    || gone.recv_timeout(WORKING) != Err(RecvTimeoutError::Timeout)
                {
                    return Ok(times);
                }
            }
            unreachable!("there is always a next number")
        });
        Self { go, thread }
    }

    /// Lets it work again. How often it was stopped.
    fn end(self) -> Result<u64, String> {
        drop(self.go);
        self.thread.join().map_err(|_| "whoever stopped the node broke down".to_owned())?
    }
}

/// Slows the syncs of a node down. Only the thread that syncs is traced: the others would pay for every call.
fn trace(process: u32, ms: u64) -> Result<Child, String> {
    let disk = thread_of(process, "disk")?;
    let inject = format!("inject=fdatasync:delay_enter={}", ms * 1000);
    let mut command = Command::new("strace");
    command.args(["-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", &inject, "-p", &disk.to_string()]);
    let tracer = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut tracer = tracer.map_err(|error| format!("strace: {error}"))?;
    let status = format!("/proc/{process}/task/{disk}/status");
    let attached = format!("TracerPid:\t{}\n", tracer.id());
    let began = Instant::now();
    while !read(Path::new(&status))?.contains(&attached) {
        let ended = tracer.try_wait().map_err(|error| format!("strace: {error}"))?;
        if ended.is_some() || began.elapsed() > ATTACHING {
            return Err(format!("strace does not get hold of thread {disk}: {ended:?}"));
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    Ok(tracer)
}

/// The thread of a process that bears a name.
fn thread_of(process: u32, name: &str) -> Result<u32, String> {
    let tasks = format!("/proc/{process}/task");
    let entries = fs::read_dir(&tasks).map_err(|error| format!("{tasks}: {error}"))?;
    let is_it = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("comm")).is_ok_and(|said| said.trim_end() == name)
    };
    let thread = entries.filter_map(Result::ok).find(is_it);
    let number = thread.and_then(|entry| entry.file_name().to_string_lossy().parse().ok());
    number.ok_or_else(|| format!("process {process} has no thread {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_found_by_its_name() {
        let (ready, wait) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("lab-sought".into()).spawn(move || {
            ready.send(()).unwrap();
            assert!(ended.recv().is_err(), "it lives until it is let go");
        });
        wait.recv().unwrap();
        let own = std::process::id();
        assert_ne!(thread_of(own, "lab-sought").unwrap(), own);
        assert!(thread_of(own, "lab-missing").unwrap_err().contains("lab-missing"));
        drop(end);
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn a_process_that_stutters_works_on_afterwards() {
        let mut process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let stutter = Stutter::begin(process.id());
        let state = format!("/proc/{}/stat", process.id());
        let began = Instant::now();
        while !read(Path::new(&state)).unwrap().contains(" T ") {
            assert!(began.elapsed() < ATTACHING, "it is never stopped");
        }
        assert_eq!(stutter.end(), Ok(1));
        drop(process.stdin.take());
        assert!(process.wait().unwrap().success(), "it reads its end");
    }

    #[test]
    fn a_fault_without_effect_shows_nothing() {
        assert_eq!(throttled("nr_periods 12\nnr_throttled 9\nthrottled_time 1\n"), 9);
        assert_eq!(had_effect(1, "packet was dropped"), Ok(()));
        assert!(
            had_effect(throttled(""), "packet was dropped").unwrap_err().contains("no packet was dropped")
        );
    }

    #[test]
    fn faults_have_different_names_and_end_before_the_load_does() {
        let names: std::collections::BTreeSet<&str> = FAULTS.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), FAULTS.len());
        for fault in FAULTS {
            let load = Duration::from_secs(super::super::SECONDS_MIN);
            assert!(super::super::warm_up(load) + fault.kind.lasts(load) < load, "{}", fault.name);
        }
    }
}
