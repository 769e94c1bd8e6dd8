//! A cluster of real processes in a directory of its own, which goes when we go, however we go.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    Setting,
    json::{self, Value},
};

/// Waits until standard input ends: we have closed it, or we are gone. Then ends whatever works in the directory (every
/// command that we run does) and the node, and removes the directory, and the one around it once it is empty.
const CLEAN_UP: &str = r#"
cat >/dev/null
for process in /proc/[0-9]*; do
  [ "$(readlink "$process/cwd")" = "$2" ] && kill -s KILL "${process#/proc/}"
done
(cd "$2" && "$1" dev kill 1)
rm -rf -- "$2"
rmdir -- "${2%/*}"
"#;
/// Time for anything that a node does at once.
const PATIENCE: Duration = Duration::from_secs(60);
/// Digits at the beginning of a line that is fed.
const NUMBER_BYTES: usize = 10;
/// Pause between looks at something that takes milliseconds.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// One node, found by every command that is run here.
pub(super) struct Cluster {
    program: PathBuf,
    directory: PathBuf,
    /// A node is a process without a parent, so nothing ends it when we are interrupted. This one does.
    cleaner: Child,
}

impl Cluster {
    /// Starts a fresh node with the usual settings.
    pub(super) fn up(setting: &Setting, name: &str) -> Result<Self, String> {
        let directory = setting.place.join(name);
        std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let cleaner = Command::new("sh")
            .args(["-c", CLEAN_UP, "clean-up"])
            .args([&setting.program, &directory])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // An interruption from the keyboard ends whoever is in our process group: not this one.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start sh: {error}"))?;
        let cluster = Self { program: setting.program.clone(), directory, cleaner };
        cluster.run(&["dev", "up", "--nodes", "1"])?;
        Ok(cluster)
    }

    /// Where it lives.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command of `swarmmq` that finds this cluster.
    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(&self.directory).stdin(Stdio::null());
        command.env_remove("SWARMMQ_SERVERS").env_remove("SWARMMQ_KEYRING");
        command
    }

    /// Runs it to its good end; what it printed.
    pub(super) fn run(&self, words: &[&str]) -> Result<String, String> {
        let said = |error: std::io::Error| format!("swarmmq {}: {error}", words.join(" "));
        let output = self.command(words).output().map_err(said)?;
        if !output.status.success() {
            let printed = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("swarmmq {}: {}: {errors}{printed}", words.join(" "), output.status));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it to its good end; the object that it printed last.
    pub(super) fn json(&self, words: &[&str]) -> Result<Value, String> {
        json::last_line(&self.run(&[words, &["--json"]].concat())?)
    }

    /// Runs it with `count` lines of `bytes` bytes each as its standard input.
    pub(super) fn feed(&self, words: &[&str], count: u64, bytes: usize) -> Result<(), String> {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", words.join(" ")))?;
        let mut input = std::io::BufWriter::with_capacity(1 << 20, child.stdin.take().expect("piped above"));
        // Whoever ends early says why below.
        let padding = format!("{}\n", ".".repeat(bytes.saturating_sub(NUMBER_BYTES)));
        let mut line = |number| write!(input, "{number:0NUMBER_BYTES$}{padding}");
        let fed = (0..count).try_for_each(&mut line).and_then(|()| input.flush());
        drop(input);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        match fed {
            Ok(()) if output.status.success() => Ok(()),
            fed => Err(format!(
                "swarmmq {}: {}, {fed:?}: {}",
                words.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    }

    fn node(&self) -> Result<Value, String> {
        let path = self.directory.join(".swarmmq/cluster.json");
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let cluster = json::parse(&text)?;
        cluster.at("nodes.0").cloned().ok_or_else(|| format!("{} names no node", path.display()))
    }

    /// The process of the node.
    pub(super) fn pid(&self) -> Result<u32, String> {
        Ok(self.node()?.number("pid")? as u32)
    }

    /// Ends the node at once (SIGKILL), and waits until it is gone.
    pub(super) fn kill(&self) -> Result<(), String> {
        self.run(&["dev", "kill", "1"]).map(drop)
    }

    /// Kills the node and starts it again: seconds from the kill until `/readyz` says yes.
    pub(super) fn restart(&self) -> Result<f64, String> {
        let admin = self.node()?.text("admin")?.to_owned();
        let began = Instant::now();
        self.kill()?;
        let mut starting = self.command(&["dev", "start", "1"]);
        let mut starting =
            Running(starting.stdout(Stdio::null()).spawn().map_err(|error| error.to_string())?);
        let seconds = loop {
            if get(&admin, "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                break began.elapsed().as_secs_f64();
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("the node does not serve within {} s", PATIENCE.as_secs()));
            }
            std::thread::sleep(LOOK_PAUSE);
        };
        let status = starting.0.wait().map_err(|error| error.to_string())?;
        if status.success() { Ok(seconds) } else { Err(format!("dev start: {status}")) }
    }

    /// A figure that the node shows to whoever watches it: the sum over its labels.
    pub(super) fn metric(&self, name: &str) -> Result<f64, String> {
        let node = self.node()?;
        let text = get(node.text("admin")?, "/metrics").ok_or("the node shows no metrics")?;
        metric(&text, name).ok_or_else(|| format!("the node has no metric {name}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        if let Err(error) = self.cleaner.wait() {
            eprintln!("{} may be left behind: {error}", self.directory.display());
        }
    }
}

/// A process that ends with us.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill().and_then(|()| self.0.wait()).is_err();
    }
}

/// A command that runs while we do something to the cluster, and tells on standard error how it goes.
pub(crate) struct Load {
    running: Running,
    progress: mpsc::Receiver<String>,
    printed: Option<JoinHandle<String>>,
    said: Vec<String>,
}

impl Load {
    pub(crate) fn start(mut command: Command) -> Result<Self, String> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start a load: {error}"))?;
        let (mut output, errors) =
            (child.stdout.take().expect("piped above"), child.stderr.take().expect("piped above"));
        let running = Running(child);
        let printed = std::thread::spawn(move || {
            let mut text = String::new();
            // What is cut short is no JSON, which is told then.
            let _cut = output.read_to_string(&mut text).is_err();
            text
        });
        let (lines, progress) = mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(errors)
                .lines()
                .map_while(Result::ok)
                .take_while(|line| lines.send(line.clone()).is_ok())
                .count()
        });
        Ok(Self { running, progress, printed: Some(printed), said: Vec::new() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.0.id()
    }

    /// Forgets what it has said until now.
    pub(crate) fn skip(&mut self) {
        self.said.extend(self.progress.try_iter());
    }

    /// Waits until it says something for which `condition` holds.
    pub(crate) fn wait_for(&mut self, condition: impl Fn(&str) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.progress.recv_timeout(left) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(format!("the load stands still; it said last: {}", self.last_words()));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let printed = self.printed();
                    return Err(format!(
                        "the load ended: {}; it said last: {}",
                        printed.trim(),
                        self.last_words()
                    ));
                }
            };
            let found = condition(&line);
            self.said.push(line);
            if found {
                return Ok(());
            }
        }
    }

    /// What it printed, once it has ended.
    fn printed(&mut self) -> String {
        let printed = self.printed.take().map(JoinHandle::join).transpose();
        printed.ok().flatten().unwrap_or_default()
    }

    fn last_words(&self) -> String {
        self.said[self.said.len().saturating_sub(5)..].join(" | ")
    }

    /// Waits for its end: exit code and result.
    pub(crate) fn finish(mut self) -> Result<(Option<i32>, Value), String> {
        // Until standard error ends, which is when the process does.
        self.said.extend(self.progress.iter());
        let status = self.running.0.wait().map_err(|error| error.to_string())?;
        let printed = self.printed();
        let result =
            json::last_line(&printed).map_err(|error| format!("{status}: {error}: {}", self.last_words()))?;
        Ok((status.code(), result))
    }
}

/// The answer to a GET.
pub(crate) fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse().ok()?, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The sum of all values of a metric in Prometheus' text.
pub(crate) fn metric(text: &str, name: &str) -> Option<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.trim().parse::<f64>().ok())?
    };
    let values: Vec<f64> = text.lines().filter_map(value).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_over_its_labels() {
        let text = "# TYPE a counter\na{x=\"1\"} 2\na{x=\"2 3\"} 3.5\nab 100\nb 7\r\n";
        assert_eq!(metric(text, "a"), Some(5.5));
        assert_eq!(metric(text, "b"), Some(7.0));
        assert_eq!(metric(text, "c"), None);
    }

    #[test]
    fn a_load_tells_how_it_goes_and_how_it_ended() {
        let mut load = two_words();
        load.wait_for(|line| line == "two").unwrap();
        let (code, result) = load.finish().unwrap();
        assert_eq!((code, result.number("a")), (Some(3), Ok(1.0)));
    }

    #[test]
    fn a_load_that_ends_too_early_says_with_what() {
        let error = two_words().wait_for(|line| line == "three").unwrap_err();
        assert!(error.contains("ended: {\"a\":1}") && error.contains("one | two"), "{error}");
    }

    fn two_words() -> Load {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one >&2; echo two >&2; echo '{\"a\":1}'; exit 3"]).stdin(Stdio::null());
        Load::start(command).unwrap()
    }
}
