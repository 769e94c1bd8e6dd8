//! The directory and the processes of a demo; everything is gone when it is over.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::Sender,
};

use super::Event;
use crate::{
    dev::{self, Cluster},
    output::{Failure, Outcomes, note},
};

/// The directory and the processes.
pub(super) struct Stage {
    pub(super) directory: PathBuf,
    workers: Vec<Child>,
}

impl Stage {
    pub(super) fn build() -> Outcomes<Self> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).expect("the operating system gives random bytes");
        let directory =
            std::env::temp_dir().join(format!("swarmmq-demo-{:016x}", u64::from_be_bytes(random)));
        fs::DirBuilder::new().mode(0o700).create(&directory).map_err(|error| {
            Failure::local(
                format!("cannot make {}: {error}", directory.display()),
                "set TMPDIR to a directory with room",
            )
        })?;
        Ok(Self { directory, workers: Vec::new() })
    }

    pub(super) fn spawn(
        &mut self,
        cluster: &Cluster,
        words: &[&str],
        who: &str,
        events: &Sender<Event>,
    ) -> Outcomes<()> {
        let broken = |error: std::io::Error| {
            Failure::local(format!("cannot start {who}: {error}"), "check process limits")
        };
        let servers: Vec<&str> = cluster.nodes.iter().map(|node| node.client.as_str()).collect();
        let mut child = Command::new(std::env::current_exe().map_err(broken)?)
            .args(words)
            .args(["--servers", &servers.join(",")])
            .arg("--keyring")
            .arg(&cluster.keyring)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(broken)?;
        let output = child.stdout.take().expect("it was asked for a pipe");
        self.workers.push(child);
        let (events, who) = (events.clone(), who.to_owned());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(news) = serde_json::from_str(&line) else { continue };
                if events.send(Event::News(news)).is_err() {
                    return;
                }
            }
            // If the judge has gone, nobody needs to know.
            let _over = events.send(Event::Ended(who)).is_err();
        });
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            // One that has ended already cannot be killed; waiting leaves no dead entry behind either way.
            let _ended = worker.kill().and_then(|()| worker.wait()).is_err();
        }
        clean_up(&self.directory);
    }
}

/// Ends the nodes and removes the directory; what cannot be removed is named.
fn clean_up(directory: &Path) {
    if let Ok(cluster) = Cluster::load(directory) {
        for node in cluster.nodes.iter().filter(|node| node.pid.is_some()) {
            if let Err(failure) = dev::kill(directory, node.id) {
                note(format!("node {} is left behind: {}", node.id, failure.message));
            }
        }
    }
    if let Err(error) = fs::remove_dir_all(directory) {
        note(format!("{} is left behind: {error}", directory.display()));
    }
}
