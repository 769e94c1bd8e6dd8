//! Processes: started in groups of their own so that nothing outlives a run, and what the kernel says they have used.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, WaitOptions, kill_process, kill_process_group, set_child_subreaper, waitpid};

use crate::failure::{During, Failure, Outcome};

/// Set by a signal to this process.
pub(crate) static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// Pause between two looks at something that is to happen.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Ends with [`Failure::Interrupted`] after a signal.
pub(crate) fn check_interrupted() -> Outcome<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
}

/// Waits until `look` sees it; an error after `patience`.
pub(crate) fn wait_until<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Outcome<Option<T>>,
) -> Outcome<T> {
    let deadline = Instant::now() + patience;
    loop {
        check_interrupted()?;
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if Instant::now() > deadline {
            return Err(Failure::broken(format!("{what}: not within {} s", patience.as_secs())));
        }
        thread::sleep(LOOK_PAUSE);
    }
}

/// The number of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pid(pub(crate) u32);

impl Pid {
    fn rustix(self) -> Option<rustix::process::Pid> {
        i32::try_from(self.0).ok().and_then(rustix::process::Pid::from_raw)
    }

    /// SIGKILL to the group that this process leads.
    pub(crate) fn kill_group(self) {
        if let Some(pid) = self.rustix() {
            // An error means that nobody is left.
            let _gone = kill_process_group(pid, Signal::KILL).is_err();
        }
    }
}

/// A process that ends, with all that it started in its group, when this is dropped.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Child,
    log: PathBuf,
    ended: bool,
}

impl Guarded {
    /// Starts `command` in a group of its own; what it says goes to the file `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Outcome<Self> {
        check_interrupted()?;
        let name = command.get_program().to_string_lossy().into_owned();
        let out = fs::File::create(log).during(log.display())?;
        let errors = out.try_clone().during(log.display())?;
        command.process_group(0).stdin(Stdio::null()).stdout(out).stderr(errors);
        let child = command.spawn().during(format!("cannot start {name}"))?;
        Ok(Self { child, log: log.to_owned(), ended: false })
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// An error with the last lines of its log if it has ended.
    pub(crate) fn check(&mut self) -> Outcome<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                Err(Failure::broken(format!("a node ended with {status}: {}", last_lines(&self.log))))
            }
        }
    }

    /// SIGKILL to the group; returns when the process is gone.
    pub(crate) fn kill(&mut self) {
        // Once it was waited for, its number may be somebody else's.
        if !self.ended {
            self.pid().kill_group();
            self.ended = self.child.wait().is_ok();
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
    }
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// From now on whoever loses its parent is ours: nodes that detach are not out of reach.
pub(crate) fn adopt_orphans() -> Outcome<()> {
    set_child_subreaper(Pid(std::process::id()).rustix()).during("cannot adopt orphans")
}

/// Ends all that this process and its children started, whatever group it is in. For when no broker should run any more.
pub(crate) fn end_all() {
    let own = Pid(std::process::id());
    // Once more for those that were started meanwhile.
    for _ in 0..2 {
        let family = with_descendants(&[own]);
        let family: Vec<_> = family.into_iter().filter(|pid| *pid != own).filter_map(Pid::rustix).collect();
        for pid in &family {
            // An error means that it has just ended.
            let _gone = kill_process(*pid, Signal::KILL).is_err();
        }
        for pid in family {
            // An error means that it is a child of somebody else, who ended as well.
            let _gone = waitpid(Some(pid), WaitOptions::empty()).is_err();
        }
    }
}

/// Runs a program to its end. An error, with what it said, if that is not a good one.
pub(crate) fn output_of(command: &mut Command) -> Outcome<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().during(format!("cannot start {name}"))?;
    let said = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        Ok(said)
    } else {
        let complaint = String::from_utf8_lossy(&stderr);
        Err(Failure::broken(format!("{name} ended with {status}: {} {}", said.trim(), complaint.trim())))
    }
}

/// Where a program lies, by the path of this process.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Ports on loopback that nobody listens on at the moment, all different.
pub(crate) fn free_ports(count: usize) -> Outcome<Vec<u16>> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<io::Result<_>>()?;
    Ok(listeners
        .iter()
        .map(|listener| listener.local_addr().map(|at| at.port()))
        .collect::<io::Result<_>>()?)
}

/// Whether somebody listens.
pub(crate) fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: Pid,
    ticks: u64,
}

fn stat(pid: Pid) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{}/stat", pid.0)).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name stands in parentheses and may contain some.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: Pid(number(1)? as u32),
        ticks: number(11)? + number(12)?,
    })
}

/// These processes and all that they started.
pub(crate) fn with_descendants(roots: &[Pid]) -> Vec<Pid> {
    let everybody: Vec<(Pid, Pid)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid))
        .filter_map(|pid| Some((pid, stat(pid)?.parent)))
        .collect();
    let mut family = roots.to_vec();
    let mut index = 0;
    while let Some(parent) = family.get(index).copied() {
        family.extend(everybody.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        index += 1;
    }
    family
}

/// What some processes have used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    /// User and system.
    pub(crate) cpu: Duration,
    /// Given to the page cache to be written to a disk.
    pub(crate) disk_bytes: u64,
}

/// What they have used so far. The kernel counts CPU time in hundredths of a second.
pub(crate) fn used(processes: &[Pid]) -> Used {
    let mut used = Used::default();
    for pid in processes {
        used.cpu += Duration::from_millis(10) * stat(*pid).map_or(0, |stat| stat.ticks) as u32;
        used.disk_bytes += number_in(&format!("/proc/{}/io", pid.0), "write_bytes:").unwrap_or(0);
    }
    used
}

/// Resident memory now and at most, in bytes.
pub(crate) fn resident(pid: Pid) -> (u64, u64) {
    let file = format!("/proc/{}/status", pid.0);
    let bytes = |name| number_in(&file, name).unwrap_or(0) * 1024;
    (bytes("VmRSS:"), bytes("VmHWM:"))
}

/// Forgets how much memory a process had at most. Without effect where the kernel does not allow it.
pub(crate) fn forget_peak(pid: Pid) {
    let _not_allowed = fs::write(format!("/proc/{}/clear_refs", pid.0), "5").is_err();
}

fn number_in(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// What this process has computed so far.
pub(crate) fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// What all processors together have computed so far.
pub(crate) fn machine_cpu() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal: without idle and iowait.
    let busy: u64 =
        ticks.iter().enumerate().filter(|(index, _)| !matches!(index, 3 | 4)).map(|(_, t)| t).sum();
    Duration::from_millis(10 * busy)
}

/// How many processors there are.
pub(crate) fn processors() -> u32 {
    thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_mislead() {
        let text = "42 (a) b) c) S 7 42 42 0 -1 4194304 1 2 3 4 150 50 9 9 20 0 1 0 5";
        assert_eq!(parse_stat(text), Some(Stat { state: 'S', parent: Pid(7), ticks: 200 }));
        assert_eq!(parse_stat("42 (a"), None);
    }

    #[test]
    fn nothing_outlives_its_guard() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 300 & echo $!; wait"]);
        let log = directory.path().join("log");
        let guard = Guarded::start(&mut command, &log).unwrap();
        let minute = Duration::from_secs(60);
        let grandchild = wait_until("the shell has started it", minute, || {
            Ok(fs::read_to_string(&log)?.trim().parse().ok().map(Pid))
        })
        .unwrap();
        assert!(with_descendants(&[guard.pid()]).contains(&grandchild));
        drop(guard);
        wait_until("it has ended", minute, || {
            Ok(stat(grandchild).is_none_or(|stat| stat.state == 'Z').then_some(()))
        })
        .unwrap();
    }

    #[test]
    fn ports_are_free_and_different() {
        let mut ports = free_ports(20).unwrap();
        assert!(ports.iter().all(|port| !listens(*port)));
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }
}
