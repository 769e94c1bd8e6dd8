//! What the kernel says about processes and the machine: computing time and memory, from `/proc`.

use std::fs;

/// Ticks of `/proc` per second: `USER_HZ`, which Linux promises to programs whatever it uses itself.
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// Resident now.
    pub(super) resident: u64,
    /// The most that ever was resident.
    pub(super) peak: u64,
}

/// Memory of a process now.
pub(super) fn memory(pid: u32) -> Result<Memory, String> {
    let text = read(&format!("/proc/{pid}/status"))?;
    parse_memory(&text).ok_or_else(|| format!("process {pid} has no memory"))
}

/// Seconds that a process has computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cpu {
    pub(super) user: f64,
    /// In the kernel on its behalf.
    pub(super) system: f64,
}

impl Cpu {
    /// Until now.
    pub(super) fn of(pid: u32) -> Result<Self, String> {
        let text = read(&format!("/proc/{pid}/stat"))?;
        let [user, system, ..] =
            parse_ticks(&text).ok_or_else(|| format!("cannot read the times of process {pid}"))?;
        let seconds = |ticks: u64| ticks as f64 / TICKS_PER_SECOND;
        Ok(Self { user: seconds(user), system: seconds(system) })
    }

    pub(super) fn since(&self, before: &Self) -> Self {
        Self { user: self.user - before.user, system: self.system - before.system }
    }

    pub(super) fn total(&self) -> f64 {
        self.user + self.system
    }
}

/// How busy the machine was between two looks, and with what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    busy: u64,
    total: u64,
    /// Of this tool and of the children that it has waited for.
    ours: u64,
}

impl Look {
    pub(super) fn now() -> Result<Self, String> {
        let (busy, total) = parse_machine(&read("/proc/stat")?).ok_or("cannot read /proc/stat")?;
        let own = parse_ticks(&read("/proc/self/stat")?).ok_or("cannot read /proc/self/stat")?;
        Ok(Self { busy, total, ours: own.iter().sum() })
    }

    /// Share of the machine, in percent, that neither we, nor our children, nor the node (which computed for
    /// `node_seconds`) have used since: other programs, and the kernel's own threads. Much of it makes figures worthless.
    pub(super) fn others_percent_since(&self, before: &Self, node_seconds: f64) -> f64 {
        let since = |now: u64, before: u64| now.saturating_sub(before) as f64;
        let ours = since(self.ours, before.ours) + node_seconds * TICKS_PER_SECOND;
        let others = (since(self.busy, before.busy) - ours).max(0.0);
        100.0 * others / since(self.total, before.total).max(1.0)
    }
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))
}

fn parse_memory(status: &str) -> Option<Memory> {
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some(Memory { resident: kib("VmRSS")? * 1024, peak: kib("VmHWM")? * 1024 })
}

/// User and system time, of the process and of its children that were waited for (fields 14 to 17 of proc_pid_stat(5)).
fn parse_ticks(stat: &str) -> Option<[u64; 4]> {
    // The program's name may hold spaces and parentheses; what follows the last one is numbers.
    let (_, numbers) = stat.rsplit_once(')')?;
    let mut fields = numbers.split_whitespace().skip(11).map(|field| field.parse::<u64>().ok());
    Some([fields.next()??, fields.next()??, fields.next()??, fields.next()??])
}

/// Busy and all ticks of all CPUs. Waiting for a disk is not busy; time stolen by the host is.
fn parse_machine(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    let [_, _, _, idle, waiting, ..] = fields[..] else { return None };
    let total = fields.iter().sum();
    Some((total - idle - waiting, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "Name:\tx\nVmPeak:\t  999 kB\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\n";
        assert_eq!(parse_memory(text), Some(Memory { resident: 200 << 10, peak: 300 << 10 }));
        assert_eq!(parse_memory("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn times_come_after_a_name_that_may_hold_anything() {
        let text = "7 (a b) c) S 1 7 7 0 -1 4 1 2 3 4 150 50 30 20 20 0 3 0 99 1 2";
        assert_eq!(parse_ticks(text), Some([150, 50, 30, 20]));
        assert_eq!(parse_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn waiting_for_a_disk_is_not_busy() {
        let text = "cpu  10 1 20 500 100 2 3 4 0 0\ncpu0 1 1 1 1\n";
        assert_eq!(parse_machine(text), Some((40, 640)));
        assert_eq!(parse_machine("cpu  1 2\n"), None);
    }

    #[test]
    fn what_we_did_not_use_others_did() {
        let before = Look { busy: 100, total: 1000, ours: 40 };
        let after = Look { busy: 300, total: 1400, ours: 90 };
        assert!((after.others_percent_since(&before, 1.0) - 12.5).abs() < 1e-9);
        assert!(
            after.others_percent_since(&before, 9.0).abs() < 1e-9,
            "ticks are coarse; it is never negative"
        );
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let pid = std::process::id();
        let memory = memory(pid).unwrap();
        assert!(0 < memory.resident && memory.resident <= memory.peak);
        let cpu = Cpu::of(pid).unwrap();
        assert!(cpu.total() >= cpu.user && cpu.since(&cpu).total() == 0.0);
        let look = Look::now().unwrap();
        assert!(look.busy <= look.total);
    }
}
