//! Segment files, and the one thread that writes, syncs and reads them.
//!
//! The first failed write or sync ends the log for good: nothing is retried, because after a failed `fdatasync` nobody
//! knows what the disk holds ("Can applications recover from fsync failures?", ATC 2020).

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use mio::Waker;
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use swarmmq_engine::{
    log::{Append, Position},
    node::ReadRequest,
};

use crate::StartError;

/// Prepared files kept for the next segments.
const SPARES_MAX: usize = 4;
/// Pause without work after which a spare is prepared and space is measured.
const IDLE: Duration = Duration::from_millis(250);
/// Bytes written at once while preparing.
const PREPARE_STEP: usize = 1 << 20;

/// File name of a segment.
pub(crate) fn segment_name(sequence: u32) -> String {
    format!("{sequence:08x}.seg")
}

/// The segments of one log, as files in one directory.
#[derive(Debug)]
pub(crate) struct SegmentFiles {
    directory: PathBuf,
    handle: File,
    segment_bytes: u32,
    open: BTreeMap<u32, File>,
    spares: Vec<PathBuf>,
    next_spare: u64,
}

impl SegmentFiles {
    /// Opens what is there.
    pub(crate) fn open(directory: &Path, segment_bytes: u32) -> Result<Self, StartError> {
        Self::open_io(directory, segment_bytes).map_err(|error| {
            StartError::local(
                format!("cannot open the log in {}: {error}", directory.display()),
                "check the data directory, its permissions and its disk",
            )
        })
    }

    fn open_io(directory: &Path, segment_bytes: u32) -> io::Result<Self> {
        let mut files = Self {
            directory: directory.to_owned(),
            handle: File::open(directory)?,
            segment_bytes,
            open: BTreeMap::new(),
            spares: Vec::new(),
            next_spare: 0,
        };
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(sequence) =
                name.strip_suffix(".seg").and_then(|hex| u32::from_str_radix(hex, 16).ok())
            {
                files.open.insert(sequence, OpenOptions::new().read(true).write(true).open(&path)?);
            } else if let Some(number) =
                name.strip_prefix("spare-").and_then(|number| number.parse::<u64>().ok())
            {
                files.next_spare = files.next_spare.max(number + 1);
                files.spares.push(path);
            } else if name.starts_with("preparing-") {
                fs::remove_file(&path)?;
            }
        }
        Ok(files)
    }

    /// Numbers of the segments.
    pub(crate) fn sequences(&self) -> Vec<u32> {
        self.open.keys().copied().collect()
    }

    /// Size of the disk.
    pub(crate) fn total_bytes(&self) -> u64 {
        fstatvfs(&self.handle).map_or(0, |stat| stat.f_blocks * stat.f_frsize)
    }

    fn free_bytes(&self) -> u64 {
        let free = fstatvfs(&self.handle).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        free + self.spares.len() as u64 * u64::from(self.segment_bytes)
    }

    /// Reads a whole segment into `into`, replacing what it held.
    pub(crate) fn read_whole(&mut self, sequence: u32, into: &mut Vec<u8>) -> Result<(), StartError> {
        into.clear();
        let path = self.directory.join(segment_name(sequence));
        File::open(&path).and_then(|mut file| file.read_to_end(into)).map_err(|error| {
            StartError::local(
                format!("cannot read {}: {error}", path.display()),
                "check the disk; nothing was changed",
            )
        })?;
        Ok(())
    }

    /// Reads bytes of a segment.
    pub(crate) fn read_at(&self, position: Position, length: u32) -> Result<Bytes, String> {
        let file = self
            .open
            .get(&position.segment)
            .ok_or_else(|| format!("segment {} is gone", position.segment))?;
        let mut bytes = vec![0; length as usize];
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], u64::from(position.offset) + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        bytes.truncate(read);
        Ok(Bytes::from(bytes))
    }

    fn append(&mut self, append: &Append) -> io::Result<()> {
        let mut made = false;
        for write in &append.writes {
            if write.fresh {
                self.provide(write.segment)?;
                made = true;
            }
            let file =
                self.open.get(&write.segment).ok_or_else(|| io::Error::other("the segment has no file"))?;
            file.write_all_at(&write.bytes, u64::from(write.offset))?;
        }
        for write in &append.writes {
            self.open[&write.segment].sync_data()?;
        }
        if made {
            self.handle.sync_all()?;
        }
        Ok(())
    }

    /// A file for a new segment: a prepared one, or a fresh one.
    fn provide(&mut self, sequence: u32) -> io::Result<()> {
        let path = self.directory.join(segment_name(sequence));
        if !path.exists()
            && let Some(spare) = self.spares.pop()
        {
            fs::rename(&spare, &path)?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        if file.metadata()?.len() < u64::from(self.segment_bytes) {
            fallocate(&file, FallocateFlags::empty(), 0, u64::from(self.segment_bytes))?;
            file.sync_all()?;
        }
        self.open.insert(sequence, file);
        Ok(())
    }

    /// A segment is not needed any more: its file waits for the next one, or goes.
    fn release(&mut self, sequence: u32) -> io::Result<()> {
        self.open.remove(&sequence);
        let path = self.directory.join(segment_name(sequence));
        if self.spares.len() >= SPARES_MAX {
            return fs::remove_file(&path);
        }
        let spare = self.directory.join(format!("spare-{}", self.next_spare));
        self.next_spare += 1;
        fs::rename(&path, &spare)?;
        self.spares.push(spare);
        Ok(())
    }
}

/// Writes a file of zeros, so that appends into it need not change the file's map of blocks. Runs apart.
fn prepare(directory: &Path, number: u64, segment_bytes: u32) -> io::Result<PathBuf> {
    let path = directory.join(format!("preparing-{number}"));
    let file = File::create(&path)?;
    let zeros = vec![0; PREPARE_STEP];
    let mut at = 0;
    while at < u64::from(segment_bytes) {
        let step = zeros.len().min((u64::from(segment_bytes) - at) as usize);
        file.write_all_at(&zeros[..step], at)?;
        at += step as u64;
    }
    file.sync_all()?;
    let ready = directory.join(format!("spare-{number}"));
    fs::rename(&path, &ready)?;
    Ok(ready)
}

/// What the disk thread is asked.
#[derive(Debug)]
enum Command {
    Append(Append),
    Read(ReadRequest),
    Release(u32),
    Prepared(io::Result<PathBuf>),
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
}

impl Disk {
    /// Starts the thread. `waker` is called whenever there is news.
    pub(crate) fn start(files: SegmentFiles, waker: Arc<Waker>) -> io::Result<Self> {
        let (commands, inbox) = sync_channel(16_384);
        let (outbox, events) = channel();
        let to_itself = commands.clone();
        let thread = std::thread::Builder::new().name("disk".into()).spawn(move || {
            DiskThread { files, outbox, waker, to_itself, failed: false, preparing: false }.run(&inbox);
        })?;
        Ok(Self { commands, events, thread: Some(thread) })
    }

    fn command(&self, command: Command) {
        // The thread outlives every sender; if it is gone the process is ending.
        if self.commands.send(command).is_err() {
            tracing::error!("the disk thread is gone");
        }
    }

    pub(crate) fn append(&self, append: Append) {
        self.command(Command::Append(append));
    }

    pub(crate) fn read(&self, request: ReadRequest) {
        self.command(Command::Read(request));
    }

    pub(crate) fn release(&self, segment: u32) {
        self.command(Command::Release(segment));
    }

    /// News, if there are any.
    pub(crate) fn next_event(&self) -> Option<DiskEvent> {
        self.events.try_recv().ok()
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
    failed: bool,
    preparing: bool,
}

impl DiskThread {
    fn run(&mut self, inbox: &Receiver<Command>) {
        self.tell_space();
        let mut spoken = std::time::Instant::now();
        loop {
            match inbox.recv_timeout(IDLE) {
                Ok(Command::Append(append)) => self.append(&append),
                Ok(Command::Read(request)) => {
                    let result = self.files.read_at(request.position, request.length);
                    self.tell(DiskEvent::Read { ticket: request.ticket, result });
                }
                Ok(Command::Release(segment)) => {
                    if let Err(error) = self.files.release(segment) {
                        tracing::warn!(segment, %error, "a segment could not be put aside");
                    }
                    self.tell_space();
                }
                Ok(Command::Prepared(result)) => {
                    self.preparing = false;
                    match result {
                        Ok(path) => self.files.spares.push(path),
                        Err(error) => tracing::warn!(%error, "no spare segment could be prepared"),
                    }
                }
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => self.prepare_spare(),
            }
            if spoken.elapsed() >= Duration::from_secs(1) {
                spoken = std::time::Instant::now();
                self.tell_space();
            }
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
        if self.failed {
            return;
        }
        let began = std::time::Instant::now();
        match self.files.append(append) {
            Ok(()) => self.tell(DiskEvent::Synced { batch: append.batch, took: began.elapsed() }),
            Err(error) => {
                self.failed = true;
                self.tell(DiskEvent::Failed(error.to_string()));
            }
        }
    }

    fn prepare_spare(&mut self) {
        let room = self.files.free_bytes() > u64::from(self.files.segment_bytes) * 8;
        if self.failed || self.preparing || !self.files.spares.is_empty() || !room {
            return;
        }
        self.preparing = true;
        let directory = self.files.directory.clone();
        let number = self.files.next_spare;
        self.files.next_spare += 1;
        let segment_bytes = self.files.segment_bytes;
        let back = self.to_itself.clone();
        let spawned = std::thread::Builder::new().name("spare".into()).spawn(move || {
            let result = prepare(&directory, number, segment_bytes);
            if back.try_send(Command::Prepared(result)).is_err() {
                tracing::warn!(
                    "the disk thread has no time for a spare segment; it will be found at the next start"
                );
            }
        });
        if let Err(error) = spawned {
            self.preparing = false;
            tracing::warn!(%error, "no thread to prepare a spare segment");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarmmq_engine::log::SegmentWrite;

    const SEGMENT: u32 = 64 << 10;

    fn write(segment: u32, offset: u32, bytes: &'static [u8], fresh: bool) -> Append {
        let bytes = Bytes::from_static(bytes);
        Append { batch: 1, writes: vec![SegmentWrite { segment, offset, bytes, fresh }] }
    }

    #[test]
    fn what_is_appended_is_read_back_after_opening_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = SegmentFiles::open(dir.path(), SEGMENT).unwrap();
        files.append(&write(1, 0, b"hello", true)).unwrap();
        files.append(&write(1, 5, b" there", false)).unwrap();
        let files = SegmentFiles::open(dir.path(), SEGMENT).unwrap();
        assert_eq!(files.sequences(), [1]);
        let read = files.read_at(Position { segment: 1, offset: 0 }, 11).unwrap();
        assert_eq!(read, "hello there");
    }

    #[test]
    fn a_released_file_serves_the_next_segment() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = SegmentFiles::open(dir.path(), SEGMENT).unwrap();
        files.append(&write(1, 0, b"old", true)).unwrap();
        files.append(&write(2, 0, b"new", true)).unwrap();
        files.release(1).unwrap();
        assert_eq!(files.spares.len(), 1);
        files.append(&write(3, 8, b"next", true)).unwrap();
        assert_eq!(files.spares.len(), 0);
        assert_eq!(files.read_at(Position { segment: 3, offset: 0 }, 3).unwrap(), "old", "stale bytes stay");
        assert_eq!(SegmentFiles::open(dir.path(), SEGMENT).unwrap().sequences(), [2, 3]);
    }

    #[test]
    fn a_prepared_file_is_whole_and_zero() {
        let dir = tempfile::tempdir().unwrap();
        let path = prepare(dir.path(), 7, SEGMENT).unwrap();
        assert_eq!(fs::read(path).unwrap(), vec![0; SEGMENT as usize]);
        assert_eq!(SegmentFiles::open(dir.path(), SEGMENT).unwrap().spares.len(), 1);
    }
}
