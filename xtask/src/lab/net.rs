//! Five machines and the wire between them: network namespaces joined by a bridge in one of its own, and what is done to
//! single links with nftables.
//!
//! The admin ports stay on loopback, and one address for each machine is simplest. So each machine here has an address of
//! 127.0.0.0/8 on its network interface instead of on `lo`, and the kernel is told to let such addresses out: for a node
//! it is loopback, for its packets a wire.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// How many machines, numbered from 1.
pub(super) const MACHINES: u16 = 5;
/// The number of whoever looks at all of them: the bridge is there. No fault concerns it.
const HUB: u16 = 100;
/// How names of ours begin; the number of the process that made them follows.
const NAME: &str = "swlab";

/// Waits until standard input ends: we have closed it, or we are gone. Then ends whatever runs in the namespaces, and
/// removes them, the group of slow processes and the directory.
const CLEAN_UP: &str = r#"
cat >/dev/null
names=$(ip netns list | cut -d ' ' -f 1 | grep "^$1-")
tries=0
while [ "$tries" -lt 100 ]; do
  pids=$(for name in $names; do ip netns pids "$name"; done)
  [ -z "$pids" ] && break
  for pid in $pids; do kill -s KILL "$pid"; done
  tries=$((tries + 1))
  sleep 0.05
done
for name in $names; do ip netns del "$name"; done
[ -d "$3" ] && rmdir -- "$3"
rm -rf -- "$2"
"#;

/// The names of one lab.
#[derive(Clone, Debug)]
pub(super) struct Network {
    prefix: String,
}

impl Network {
    /// The one that the process with this number makes.
    pub(super) fn of(process: u32) -> Self {
        Self { prefix: format!("{NAME}-{process}") }
    }

    /// The one of this name.
    pub(super) fn named(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub(super) fn name(&self) -> &str {
        &self.prefix
    }

    fn namespace(&self, machine: u16) -> String {
        format!("{}-{}", self.prefix, if machine == HUB { 0 } else { machine })
    }

    /// The group of processes that get little processor time.
    pub(super) fn slow_group(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup/cpu").join(&self.prefix)
    }

    /// A program that runs on a machine: it sees that machine's network, and everything else as it is.
    pub(super) fn on(&self, machine: u16, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace(machine))).arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// The same beside the bridge, from where every machine can be reached, whatever is cut between them.
    pub(super) fn beside(&self, program: &Path) -> Command {
        self.on(HUB, program)
    }

    /// Makes machines and wires. Fails where the kernel or the rights do not suffice, and says at what.
    pub(super) fn make(&self) -> Result<(), String> {
        let hub = self.namespace(HUB);
        ip(&["netns", "add", &hub])?;
        self.leave_loopback(HUB)?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        self.give_addresses(HUB, "br0")?;
        for machine in 1..=MACHINES {
            let (name, port) = (self.namespace(machine), format!("p{machine}"));
            ip(&["netns", "add", &name])?;
            self.leave_loopback(machine)?;
            ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            self.give_addresses(machine, "eth0")?;
        }
        // Whatever is asked of nftables later is asked once now: what it lacks is told before anything runs.
        self.drop_on(1, &[Drop::From(2), Drop::Random { percent: 1 }])?;
        self.clear(1)
    }

    /// Takes 127.0.0.0/8 from `lo`, and lets such addresses out.
    fn leave_loopback(&self, machine: u16) -> Result<(), String> {
        let name = self.namespace(machine);
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        ip(&["-n", &name, "addr", "del", "127.0.0.1/8", "dev", "lo"])?;
        let mut shell = self.on(machine, Path::new("sh"));
        call(shell.args(["-c", "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet"])).map(drop)
    }

    fn give_addresses(&self, machine: u16, device: &str) -> Result<(), String> {
        let name = self.namespace(machine);
        ip(&["-n", &name, "addr", "add", &format!("{}/24", address(machine)), "dev", device])?;
        ip(&["-n", &name, "addr", "add", &format!("{}/24", carrier(machine)), "dev", device])
    }

    /// From now on a machine drops what matches, silently, TCP and UDP alike; what it dropped before it takes again.
    pub(super) fn drop_on(&self, machine: u16, drops: &[Drop]) -> Result<(), String> {
        let mut nft = self.on(machine, Path::new("nft"));
        let mut child = nft
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("nft: {error}"))?;
        let mut input = child.stdin.take().expect("piped above");
        input.write_all(ruleset(drops).as_bytes()).map_err(|error| format!("nft: {error}"))?;
        drop(input);
        ended_well("nft", child)
    }

    /// The machine takes everything again.
    pub(super) fn clear(&self, machine: u16) -> Result<(), String> {
        self.drop_on(machine, &[])
    }

    /// Every machine takes everything again.
    pub(super) fn clear_all(&self) -> Result<(), String> {
        (1..=MACHINES).try_for_each(|machine| self.clear(machine))
    }

    /// How many packets all machines have dropped since they were told to.
    pub(super) fn dropped(&self) -> Result<u64, String> {
        let mut packets = 0;
        for machine in 1..=MACHINES {
            let mut nft = self.on(machine, Path::new("nft"));
            packets += counted(&call(nft.args(["list", "ruleset"]))?);
        }
        Ok(packets)
    }

    /// Runs `ip` on a machine.
    pub(super) fn ip_on(&self, machine: u16, words: &[&str]) -> Result<(), String> {
        let name = self.namespace(machine);
        ip(&[&["-n", &name], words].concat())
    }
}

/// What a machine no longer takes from the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drop {
    /// Everything from one other machine.
    From(u16),
    /// Packets from all other machines, by chance.
    Random { percent: u32 },
    /// Packets from one other machine, by chance.
    RandomFrom { machine: u16, percent: u32 },
}

/// What a machine is told. The table is made before it is removed, so that removing it cannot fail.
fn ruleset(drops: &[Drop]) -> String {
    let mut text = String::from("table inet lab\ndelete table inet lab\n");
    if !drops.is_empty() {
        text.push_str(
            "table inet lab {\n chain in {\n  type filter hook input priority 0\n  policy accept\n",
        );
        for drop in drops {
            match drop {
                Drop::From(machine) => {
                    text.push_str(&format!(
                        "  iifname \"eth0\" ip saddr {} counter drop\n",
                        address(*machine)
                    ));
                }
                Drop::RandomFrom { machine, percent } => text.push_str(&format!(
                    "  iifname \"eth0\" ip saddr {} numgen random mod 100 < {percent} counter drop\n",
                    address(*machine)
                )),
                Drop::Random { percent } => text.push_str(&format!(
                    "  iifname \"eth0\" ip saddr {}-{} numgen random mod 100 < {percent} counter drop\n",
                    address(1),
                    address(MACHINES)
                )),
            }
        }
        text.push_str(" }\n}\n");
    }
    text
}

/// The sum of all counters in a ruleset as it is listed.
fn counted(ruleset: &str) -> u64 {
    let counts = ruleset.split("counter packets ").skip(1);
    counts.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// Where a machine is reached.
pub(super) fn address(machine: u16) -> String {
    format!("127.77.0.{machine}")
}

/// Where a machine is reached by packets that carry others.
pub(super) fn carrier(machine: u16) -> String {
    format!("10.77.0.{machine}")
}

/// The same for whoever sits at the bridge.
pub(super) fn hub_carrier() -> String {
    carrier(HUB)
}

/// Removes everything that a lab has made, when that ends, however it ends.
pub(super) struct Cleaner(Child);

impl Cleaner {
    /// * `place`: the directory that goes, too.
    pub(super) fn start(network: &Network, place: &Path) -> Result<Self, String> {
        use std::os::unix::process::CommandExt;

        let mut command = clean_up(network, place);
        command
            .stdin(Stdio::piped())
            // An interruption from the keyboard ends whoever is in our process group: not this one.
            .process_group(0)
            .spawn()
            .map(Self)
            .map_err(|error| format!("cannot start sh: {error}"))
    }
}

impl std::ops::Drop for Cleaner {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            eprintln!("namespaces may be left behind, see `ip netns list`: {error}");
        }
    }
}

fn clean_up(network: &Network, place: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", CLEAN_UP, "clean-up", network.name()]).arg(place).arg(network.slow_group());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Removes what labs have left behind whose process is gone, and tells which; that takes somebody who killed the cleaner.
///
/// * `place_of`: the directory of the lab of a process.
pub(super) fn remove_leftovers(place_of: impl Fn(u32) -> PathBuf) -> Result<(), String> {
    let runs = |process: u32| Path::new(&format!("/proc/{process}")).exists();
    for process in
        makers(&call(Command::new("ip").args(["netns", "list"]))?).filter(|process| !runs(*process))
    {
        let network = Network::of(process);
        eprintln!("removing what an earlier lab left behind: {}", network.name());
        call(clean_up(&network, &place_of(process)).stdin(Stdio::null()))?;
    }
    Ok(())
}

/// The processes that made the namespaces in a list, each once.
fn makers(list: &str) -> impl Iterator<Item = u32> {
    let maker = |line: &str| line.strip_prefix(NAME)?.strip_prefix('-')?.split('-').next()?.parse().ok();
    list.lines().filter_map(maker).collect::<std::collections::BTreeSet<u32>>().into_iter()
}

fn ip(words: &[&str]) -> Result<(), String> {
    call(Command::new("ip").args(words)).map(drop)
}

/// Runs a program to its good end: what it printed.
pub(super) fn call(command: &mut Command) -> Result<String, String> {
    let what = format!("{command:?}").replace('"', "");
    let output = command.output().map_err(|error| format!("{what}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{what}: {}: {} {}", output.status, text(&output.stderr), text(&output.stdout)))
}

fn ended_well(what: &str, child: Child) -> Result<(), String> {
    let output = child.wait_with_output().map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{what}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_replaces_what_was() {
        assert_eq!(ruleset(&[]), "table inet lab\ndelete table inet lab\n");
        let rules = ruleset(&[Drop::From(3), Drop::Random { percent: 30 }]);
        assert!(rules.starts_with(&ruleset(&[])), "{rules}");
        let one = ruleset(&[Drop::RandomFrom { machine: 2, percent: 30 }]);
        assert!(one.contains("ip saddr 127.77.0.2 numgen random mod 100 < 30 counter drop\n"), "{one}");
        assert!(rules.contains("iifname \"eth0\" ip saddr 127.77.0.3 counter drop\n"), "{rules}");
        assert!(
            rules.contains("ip saddr 127.77.0.1-127.77.0.5 numgen random mod 100 < 30 counter drop"),
            "chance spares whoever only looks: {rules}"
        );
    }

    #[test]
    fn what_was_dropped_is_counted() {
        let listed = "  ip saddr 127.77.0.3 counter packets 12 bytes 720 drop\n  numgen random mod 100 < 30 counter packets 30 bytes 9 drop\n";
        assert_eq!(counted(listed), 42);
        assert_eq!(counted("table inet lab {\n}\n"), 0);
    }

    #[test]
    fn leftovers_are_known_by_the_process_that_made_them() {
        let list = "swlab-71-0 (id: 4)\nswlab-71-1\nother-5-1\nswlab-9-5\nswlab-x-1\n";
        assert_eq!(makers(list).collect::<Vec<_>>(), [9, 71]);
        assert_eq!(Network::of(71).namespace(5), "swlab-71-5");
        assert_eq!(Network::named("swlab-71").namespace(HUB), "swlab-71-0");
    }
}
