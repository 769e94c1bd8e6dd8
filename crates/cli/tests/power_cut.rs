//! Power cuts under load on a real file system: what was acknowledged is there afterwards, once.
//!
//! The file system is shut down in the middle of everything (`xfs_io -x -c shutdown`): nothing reaches the disk from then
//! on, and what was not synced is gone, as if the power had failed. Needs root, a loop device and xfsprogs; where those
//! are missing it says so past the test harness.

mod cluster;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;

use self::cluster::{Dev, Running, last, ok, signal, until};

/// How often the power fails.
const CUTS: usize = 5;
/// The smallest that mkfs.xfs makes is 300 MB; the log needs some segments.
const DISK_BYTES: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(30);

/// A file system in a file, mounted until this is dropped.
struct Disk {
    image: tempfile::NamedTempFile,
    place: tempfile::TempDir,
}

impl Disk {
    fn make() -> Result<Self, String> {
        let image = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
        image.as_file().set_len(DISK_BYTES).map_err(|error| error.to_string())?;
        let place = tempfile::tempdir().map_err(|error| error.to_string())?;
        let disk = Self { image, place };
        run(Command::new("mkfs.xfs").arg("-q").arg(disk.image.path()))?;
        run(Command::new("xfs_io").arg("-V"))?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image.path()).arg(self.place.path()))
    }

    /// From now on nothing is written any more, not even what the file system has in its own log's buffers.
    fn cut_power(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(self.place.path())).unwrap();
    }

    /// The machine comes back: the file system recovers.
    fn bring_back(&self) {
        self.unmount();
        self.mount().unwrap();
    }

    fn unmount(&self) {
        // Whoever was killed a moment ago may still hold it.
        until("the disk is unmounted", PATIENCE, || {
            run(Command::new("umount").arg(self.place.path())).is_ok()
        });
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let lazily = run(Command::new("umount").arg("-l").arg(self.place.path()));
        if let Err(why) = lazily
            && !std::thread::panicking()
        {
            panic!("the disk stays mounted: {why}");
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.stdout(Stdio::null()).stderr(Stdio::piped()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

/// A node whose data lies on a disk of its own.
struct Node {
    dev: Dev,
    client: String,
    process: Option<Running>,
}

impl Node {
    fn new(data: PathBuf) -> Self {
        let dev = Dev::nothing();
        ok(&dev.run(&["keys", "generate", "--out", "keys", "--insecure-plaintext"]));
        let free: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let address = |n: usize| free[n].local_addr().unwrap().to_string();
        let (client, admin, peer) = (address(0), address(1), address(2));
        let text = format!(
            "[node]\nid = 1\ndata = {data:?}\nkeyring = \"keys/node.keyring\"\n[listen]\ninsecure_plaintext = true\nclient = \"{client}\"\nadmin = \"{admin}\"\npeer = \"{peer}\"\ngossip = \"{peer}\"\n"
        );
        fs::write(dev.path("node.toml"), text).unwrap();
        drop(free);
        Self { dev, client, process: None }
    }

    fn start(&mut self) {
        let mut command = self.dev.command(&["node", "--config", "node.toml"]);
        self.process = Some(Running(command.stderr(Stdio::null()).spawn().unwrap()));
        until("the node serves", PATIENCE, || self.status() == Some(0));
    }

    fn kill(&mut self) {
        let process = self.process.take().unwrap();
        signal(process.pid(), Signal::KILL);
        assert_ne!(process.code(), Some(0));
    }

    fn with<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        [words, &["--servers", &self.client, "--keyring", "keys/client.keyring", "--json"]].concat()
    }

    fn status(&self) -> Option<i32> {
        self.dev.run(&self.with(&["status"])).status.code()
    }
}

#[test]
fn what_was_acknowledged_survives_power_cuts_under_load() {
    // Before the node that lies on it, so that it is dropped after it.
    let disk = match Disk::make() {
        Ok(disk) => disk,
        Err(why) => {
            let skipped = "SKIPPED what_was_acknowledged_survives_power_cuts...: it needs root, loop devices and xfsprogs";
            writeln!(std::io::stderr(), "{skipped}: {why}").unwrap();
            return;
        }
    };
    let mut node = Node::new(disk.place.path().join("data"));
    ok(&node.dev.run(&["init", "--config", "node.toml"]));
    // A cluster that was made is made.
    disk.cut_power();
    disk.bring_back();
    node.start();

    let words =
        ["bench", "e2e", "--producers", "2", "--consumers", "2", "--rate", "3000", "--duration", "20"];
    let words = node.with(&words);
    let mut bench = node.dev.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(bench.stderr.take().unwrap()).lines();
    let (tell, progress) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        lines.map_while(Result::ok).for_each(|line| tell.send(line).unwrap());
    });
    for _ in 0..CUTS {
        // The power fails under load: a node that lost what it had acknowledged would refuse all that follows. The line
        // that is under way may speak of the time before the last cut.
        while progress.try_recv().is_ok() {}
        progress.recv_timeout(PATIENCE).unwrap();
        until("more is acknowledged", PATIENCE, || {
            let line = progress.recv_timeout(PATIENCE).unwrap();
            assert!(line.contains("acknowledged"), "{line}");
            !line.contains("acknowledged (+0)")
        });
        disk.cut_power();
        until("the node notices that its log stopped", PATIENCE, || node.status() == Some(11));
        node.kill();
        disk.bring_back();
        node.start();
    }
    let output = bench.wait_with_output().unwrap();
    reader.join().unwrap();
    let said: Vec<_> = progress.try_iter().collect();
    assert_eq!(output.status.code(), Some(0), "{:?}\n{said:#?}", String::from_utf8_lossy(&output.stdout));
    let report = last(&output);
    for field in ["lost", "duplicated", "out_of_order", "unknown", "failed"] {
        assert_eq!(report[field], 0, "{field} in {report}");
    }
    assert_eq!(report["published"], 60_000, "{report}");
    assert_eq!(report["delivered"], report["acknowledged"]);
    node.kill();
    disk.unmount();
    disk.mount().unwrap();
}
