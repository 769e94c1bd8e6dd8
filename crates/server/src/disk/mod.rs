//! The one thread that writes, syncs and reads the log's files.
//!
//! The first failed write or sync ends the log for good: nothing is retried, because after a failed `fdatasync` nobody
//! knows what the disk holds ("Can applications recover from fsync failures?", ATC 2020). A batch overtakes reads that
//! wait, so that catching up from the disk costs others at most one read.

mod direct;
mod files;

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use mio::Waker;
use swarmmq_engine::{log::Append, node::ReadRequest};

use self::files::Preparation;
pub(crate) use self::files::{SegmentFiles, segment_name};
use crate::clock::Stopwatch;

/// Commands under way. A node asks for one batch, one read per shard and 64 copies at a time: this is never reached, and
/// if it were, the worker would wait for the disk.
const COMMANDS_MAX: usize = 4096;
/// Pause without work after which the disk counts as idle.
const IDLE: Duration = Duration::from_millis(250);
/// Pause between measurements of space.
const SPACE_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a spare could not be prepared.
const PREPARE_AGAIN: Duration = Duration::from_secs(10);

/// What the disk thread is asked.
#[derive(Debug)]
enum Command {
    Append(Append),
    Read(ReadRequest),
    Release(u32),
    Prepared(io::Result<Option<PathBuf>>),
    Stop,
}

/// What the disk thread tells.
#[derive(Debug)]
pub(crate) enum DiskEvent {
    /// A batch is on stable storage; how long writing and syncing took.
    Synced { batch: u64, took: Duration },
    /// The log ended.
    Failed(String),
    /// Bytes, or why not.
    Read { ticket: u64, result: Result<Bytes, String> },
    /// Space left.
    Space { free_bytes: u64 },
}

/// The disk thread, from outside.
#[derive(Debug)]
pub(crate) struct Disk {
    commands: SyncSender<Command>,
    events: Receiver<DiskEvent>,
    thread: Option<JoinHandle<()>>,
    lost: bool,
}

impl Disk {
    /// Starts the thread. `waker` is called whenever there is news.
    pub(crate) fn start(files: SegmentFiles, waker: Arc<Waker>) -> io::Result<Self> {
        let (commands, inbox) = sync_channel(COMMANDS_MAX);
        let (outbox, events) = channel();
        let to_itself = commands.clone();
        let thread = std::thread::Builder::new().name("disk".into()).spawn(move || {
            DiskThread {
                files,
                outbox,
                waker,
                to_itself,
                reads: VecDeque::new(),
                failed: None,
                preparer: None,
                stop_preparing: Arc::new(AtomicBool::new(false)),
                prepare_failed: None,
            }
            .run(&inbox);
        })?;
        Ok(Self { commands, events, thread: Some(thread), lost: false })
    }

    fn command(&self, command: Command) {
        // `next_event` reports a thread that is gone.
        if self.commands.send(command).is_err() {
            tracing::error!("the disk thread is gone");
        }
    }

    /// Asks for a batch to be written and synced.
    pub(crate) fn append(&self, append: Append) {
        self.command(Command::Append(append));
    }

    /// Asks for bytes.
    pub(crate) fn read(&self, request: ReadRequest) {
        self.command(Command::Read(request));
    }

    /// Gives a segment back.
    pub(crate) fn release(&self, segment: u32) {
        self.command(Command::Release(segment));
    }

    /// News, if there are any. A thread that ended by itself is a failed disk: nobody would ever answer.
    pub(crate) fn next_event(&mut self) -> Option<DiskEvent> {
        match self.events.try_recv() {
            Ok(event) => Some(event),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) if self.lost => None,
            Err(TryRecvError::Disconnected) => {
                self.lost = true;
                Some(DiskEvent::Failed("the disk thread ended".into()))
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the disk thread panicked");
        }
    }
}

struct DiskThread {
    files: SegmentFiles,
    outbox: Sender<DiskEvent>,
    waker: Arc<Waker>,
    to_itself: SyncSender<Command>,
    /// Reads that wait until nothing is to be written.
    reads: VecDeque<ReadRequest>,
    failed: Option<String>,
    preparer: Option<JoinHandle<()>>,
    stop_preparing: Arc<AtomicBool>,
    prepare_failed: Option<Stopwatch>,
}

impl DiskThread {
    fn run(&mut self, inbox: &Receiver<Command>) {
        self.tell_space();
        let mut measured = Stopwatch::start();
        loop {
            let pause = if self.reads.is_empty() { IDLE } else { Duration::ZERO };
            let command = inbox.recv_timeout(pause);
            let idle = command.is_err() && self.reads.is_empty();
            match command {
                Ok(Command::Append(append)) => self.append(&append),
                Ok(Command::Read(request)) => self.reads.push_back(request),
                Ok(Command::Release(segment)) => self.release(segment),
                Ok(Command::Prepared(result)) => self.prepared(result),
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(request) = self.reads.pop_front() {
                        self.read(request);
                    }
                }
            }
            self.prepare(idle);
            if measured.elapsed() >= SPACE_PAUSE {
                measured = Stopwatch::start();
                self.tell_space();
            }
        }
        self.stop_preparing.store(true, Ordering::Relaxed);
        if let Some(preparer) = self.preparer.take()
            && preparer.join().is_err()
        {
            tracing::error!("the thread that prepares segments panicked");
        }
    }

    fn tell(&self, event: DiskEvent) {
        // Nobody listens only while the process ends.
        let heard = self.outbox.send(event).is_ok();
        if heard && let Err(error) = self.waker.wake() {
            tracing::error!(%error, "the worker cannot be woken");
        }
    }

    fn tell_space(&self) {
        self.tell(DiskEvent::Space { free_bytes: self.files.free_bytes() });
    }

    fn append(&mut self, append: &Append) {
        if self.failed.is_some() {
            return;
        }
        let began = Stopwatch::start();
        match self.files.append(append) {
            Ok(()) => {
                self.tell(DiskEvent::Synced { batch: append.batch, took: began.elapsed() });
                if append.writes.iter().any(|write| write.fresh) {
                    self.tell_space();
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.failed = Some(error.to_string());
        self.tell(DiskEvent::Failed(error.to_string()));
    }

    fn read(&self, request: ReadRequest) {
        let result = match &self.failed {
            Some(why) => Err(format!("the log stopped: {why}")),
            None => self.files.read_at(request.position, request.length),
        };
        self.tell(DiskEvent::Read { ticket: request.ticket, result });
    }

    /// Reads of the segment that were asked for before come first.
    fn release(&mut self, segment: u32) {
        let (of_it, others) = self.reads.drain(..).partition(|read| read.position.segment == segment);
        self.reads = others;
        let of_it: VecDeque<ReadRequest> = of_it;
        of_it.into_iter().for_each(|request| self.read(request));
        if self.failed.is_some() {
            return;
        }
        match self.files.release(segment) {
            Ok(()) => self.tell_space(),
            Err(error) => self.fail(&error),
        }
    }

    fn prepare(&mut self, idle: bool) {
        let resting = self.prepare_failed.is_some_and(|since| since.elapsed() < PREPARE_AGAIN);
        if self.failed.is_some() || self.preparer.is_some() || resting {
            return;
        }
        let Some(preparation) = self.files.wanted(idle) else { return };
        match self.spawn(preparation) {
            Ok(thread) => self.preparer = Some(thread),
            Err(error) => self.prepared(Err(error)),
        }
    }

    fn spawn(&self, preparation: Preparation) -> io::Result<JoinHandle<()>> {
        let (back, stop) = (self.to_itself.clone(), Arc::clone(&self.stop_preparing));
        std::thread::Builder::new().name("spare".into()).spawn(move || {
            let result = preparation.make(&stop);
            // Nobody listens only while the process ends; the next start finds the file.
            if back.send(Command::Prepared(result)).is_err() {
                tracing::debug!("a spare segment comes too late");
            }
        })
    }

    fn prepared(&mut self, result: io::Result<Option<PathBuf>>) {
        self.preparer = None;
        self.prepare_failed = None;
        match result {
            Ok(Some(path)) => {
                self.files.prepared(path);
                self.tell_space();
            }
            Ok(None) => {}
            Err(error) => {
                self.prepare_failed = Some(Stopwatch::start());
                tracing::warn!(%error, "no spare segment could be prepared");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};
    use swarmmq_engine::log::{Position, SegmentWrite};

    /// Far above what any step here takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Bench {
        poll: Poll,
        disk: Disk,
        directory: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let files = SegmentFiles::open(directory.path(), 64 << 10).unwrap();
            let poll = Poll::new().unwrap();
            let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
            Self { disk: Disk::start(files, waker).unwrap(), poll, directory }
        }

        fn append(&self, batch: u64, segment: u32, fresh: bool) {
            let bytes = Bytes::from_static(b"bytes");
            let writes = vec![SegmentWrite { segment, offset: 0, bytes, fresh }];
            self.disk.append(Append { batch, writes });
        }

        fn read(&self, ticket: u64, segment: u32) {
            self.disk.read(ReadRequest { ticket, position: Position { segment, offset: 0 }, length: 5 });
        }

        /// The next news but for space, in short.
        fn hear(&mut self) -> String {
            loop {
                match self.hear_any() {
                    DiskEvent::Synced { batch, .. } => return format!("synced {batch}"),
                    DiskEvent::Failed(_) => return "failed".into(),
                    DiskEvent::Read { ticket, result } => {
                        return format!("read {ticket} {}", if result.is_ok() { "ok" } else { "failed" });
                    }
                    DiskEvent::Space { .. } => {}
                }
            }
        }

        fn hear_any(&mut self) -> DiskEvent {
            let began = Stopwatch::start();
            let mut events = Events::with_capacity(8);
            loop {
                if let Some(event) = self.disk.next_event() {
                    return event;
                }
                assert!(began.elapsed() < PATIENCE, "no news from the disk");
                self.poll.poll(&mut events, Some(PATIENCE)).unwrap();
            }
        }
    }

    #[test]
    fn batches_are_synced_and_read_back_and_the_reader_is_woken() {
        let mut bench = Bench::new();
        bench.append(1, 1, true);
        assert_eq!(bench.hear(), "synced 1");
        bench.read(7, 1);
        assert_eq!(bench.hear(), "read 7 ok");
        bench.read(8, 9);
        assert_eq!(bench.hear(), "read 8 failed");
    }

    #[test]
    fn reads_asked_for_before_a_release_are_still_answered() {
        let mut bench = Bench::new();
        bench.append(1, 1, true);
        bench.append(2, 2, true);
        bench.read(7, 1);
        bench.disk.release(1);
        bench.read(8, 1);
        assert_eq!(bench.hear(), "synced 1");
        assert_eq!(bench.hear(), "synced 2");
        assert_eq!(bench.hear(), "read 7 ok");
        assert_eq!(bench.hear(), "read 8 failed");
    }

    #[test]
    fn after_the_first_failure_everything_is_refused() {
        let mut bench = Bench::new();
        bench.append(1, 1, true);
        bench.append(2, 5, false);
        bench.append(3, 1, false);
        bench.read(7, 1);
        bench.disk.release(1);
        assert_eq!(bench.hear(), "synced 1");
        assert_eq!(bench.hear(), "failed", "segment 5 has no file");
        assert_eq!(bench.hear(), "read 7 failed", "batch 3 was neither written nor reported");
        bench.read(8, 1);
        assert_eq!(bench.hear(), "read 8 failed");
        assert!(bench.directory.path().join(segment_name(1)).exists());
    }

    #[test]
    fn an_idle_disk_prepares_one_spare_and_tells_the_space() {
        let mut bench = Bench::new();
        let spare = bench.directory.path().join("spare-0");
        let began = Stopwatch::start();
        let mut told = 0;
        while !spare.exists() || told < 2 {
            assert!(began.elapsed() < PATIENCE, "no spare after {told} reports");
            if let DiskEvent::Space { free_bytes } = bench.hear_any() {
                assert!(free_bytes > 0);
                told += 1;
            }
        }
    }
}
