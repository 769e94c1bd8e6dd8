//! The segments of one log as files: `{sequence:08x}.seg`, and prepared ones waiting as `spare-{n}`.
//!
//! A file changes its role by being renamed, and every rename is on stable storage before the file is written under its
//! new name. Otherwise a power cut could bring a released segment back with the bytes of a later one, which is
//! indistinguishable from rot.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, fstatvfs};
use swarmmq_engine::log::{Append, Position, SegmentWrite};

use super::direct::{self, Direct};
use crate::StartError;

/// Files kept for later segments; more than these give their space back.
const SPARES_MAX: usize = 4;
/// Spares that are touched only when the disk is full, so that settlements can go on (safety rule 19).
const SPARES_RESERVED: usize = 1;
/// Segments of free space beside which a second spare is worth having.
const ROOMY: u64 = 8;
/// Bytes written at once while preparing.
const PREPARE_STEP: usize = 1 << 20;
/// Pause between such steps: the log's own syncs go first.
const PREPARE_PAUSE: Duration = Duration::from_millis(5);

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
    /// For reads, for syncs, and for writes where there is no other way.
    open: BTreeMap<u32, File>,
    /// None where the file system knows no direct writes.
    direct: Option<Direct>,
    /// The segment that was written last, open for writes that leave the page cache alone.
    past_cache: Option<(u32, File)>,
    spares: Vec<PathBuf>,
    next_spare: u64,
    /// The log has gone over to a new segment since the start: it grows, so the next file is wanted soon.
    grows: bool,
    /// Creating files fails as on a full disk.
    #[cfg(test)]
    full: bool,
}

impl SegmentFiles {
    /// Opens what is there. What a killed process wrote and renamed without syncing is synced first: recovery must not
    /// build on bytes that the next power cut takes away.
    pub(crate) fn open(directory: &Path, segment_bytes: u32) -> Result<Self, StartError> {
        Self::open_io(directory, segment_bytes).map_err(|error| {
            StartError::local(
                format!("cannot open the log in {}: {error}", directory.display()),
                "check the data directory, its permissions and its disk; nothing was changed",
            )
        })
    }

    fn open_io(directory: &Path, segment_bytes: u32) -> io::Result<Self> {
        let mut files = Self {
            directory: directory.to_owned(),
            handle: File::open(directory)?,
            segment_bytes,
            open: BTreeMap::new(),
            // A last block that reaches beyond the segment would make the file longer than others expect.
            direct: segment_bytes.is_multiple_of(direct::BLOCK as u32).then(Direct::new),
            past_cache: None,
            spares: Vec::new(),
            next_spare: 0,
            grows: false,
            #[cfg(test)]
            full: false,
        };
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(sequence) =
                name.strip_suffix(".seg").and_then(|hex| u32::from_str_radix(hex, 16).ok())
            {
                let file = OpenOptions::new().read(true).write(true).open(&path)?;
                file.sync_data()?;
                files.open.insert(sequence, file);
            } else if let Some(number) =
                name.strip_prefix("spare-").and_then(|number| number.parse::<u64>().ok())
            {
                files.next_spare = files.next_spare.max(number + 1);
                files.spares.push(path);
            } else if name.starts_with("preparing-") {
                fs::remove_file(&path)?;
            }
        }
        files.handle.sync_all()?;
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

    /// What the log may still use.
    pub(crate) fn free_bytes(&self) -> u64 {
        usable_bytes(self.unused_bytes(), self.spares.len(), self.segment_bytes)
    }

    /// Free space of the disk.
    fn unused_bytes(&self) -> u64 {
        fstatvfs(&self.handle).map_or(0, |stat| stat.f_bavail * stat.f_frsize)
    }

    /// Reads a whole segment into `into`, replacing what it held. From the disk, not from memory: after a failed sync
    /// the two differ, and what counts is what the next power cut leaves.
    pub(crate) fn read_whole(&mut self, sequence: u32, into: &mut Vec<u8>) -> Result<(), StartError> {
        into.clear();
        let path = self.directory.join(segment_name(sequence));
        let read = File::open(&path).and_then(|mut file| {
            // A hint; where it is not understood, reading works all the same.
            if let Err(error) = fadvise(&file, 0, None, Advice::DontNeed) {
                tracing::debug!(%error, "cached pages stay");
            }
            file.read_to_end(into)
        });
        read.map(|_| ()).map_err(|error| {
            StartError::local(
                format!("cannot read {}: {error}", path.display()),
                "check the disk; nothing was changed",
            )
        })
    }

    /// Reads exactly these bytes of a segment.
    pub(crate) fn read_at(&self, position: Position, length: u32) -> Result<Bytes, String> {
        let file = self
            .open
            .get(&position.segment)
            .ok_or_else(|| format!("segment {} is gone", position.segment))?;
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, u64::from(position.offset))
            .map_err(|error| format!("{length} bytes at {position:?}: {error}"))?;
        Ok(Bytes::from(bytes))
    }

    /// Writes all of a batch, then syncs every file that it touched, then the directory if files are new in it.
    pub(super) fn append(&mut self, append: &Append) -> io::Result<()> {
        let mut made = false;
        for write in &append.writes {
            if write.fresh {
                self.provide(write.segment)?;
                made = true;
            }
            self.write(write)?;
        }
        for write in &append.writes {
            self.open[&write.segment].sync_data()?;
        }
        if made {
            self.handle.sync_all()?;
        }
        // A file system that is shut down during a sync may call it done (XFS on Linux 6.18: one of forty), because what
        // it waited for was dropped. Reads are refused from before that on.
        append.writes.iter().try_for_each(|write| self.open[&write.segment].read_exact_at(&mut [0], 0))
    }

    fn write(&mut self, write: &SegmentWrite) -> io::Result<()> {
        let SegmentWrite { segment, offset, bytes, .. } = write;
        self.open_past_cache(*segment)?;
        let file = self.open.get(segment).ok_or_else(|| io::Error::other("the segment has no file"))?;
        if let (Some(direct), Some((_, past_cache))) = (&mut self.direct, &self.past_cache) {
            match direct.write(past_cache, file, *segment, *offset, bytes) {
                Err(error) if direct::is_unknown(&error) => {
                    tracing::warn!(%error, "this disk takes no direct writes: the log goes by way of the page cache");
                    self.direct = None;
                }
                done => return done,
            }
        }
        file.write_all_at(bytes, u64::from(*offset))
    }

    /// Opens `segment` for direct writes, if it is not and such are known here.
    fn open_past_cache(&mut self, segment: u32) -> io::Result<()> {
        if self.direct.is_none() || self.past_cache.as_ref().is_some_and(|(open, _)| *open == segment) {
            return Ok(());
        }
        self.past_cache =
            Direct::open(&self.directory.join(segment_name(segment)))?.map(|file| (segment, file));
        if self.past_cache.is_none() {
            tracing::info!("this file system knows no direct writes: the log goes by way of the page cache");
            self.direct = None;
        }
        Ok(())
    }

    /// A file for a new segment: a prepared one, a fresh one, and on a full disk the one held back.
    fn provide(&mut self, sequence: u32) -> io::Result<()> {
        let path = self.directory.join(segment_name(sequence));
        // The first segment is made by `init`; a later one may be left by a crash before its first record was synced.
        let file = if path.exists() || self.spares.len() <= SPARES_RESERVED {
            match self.create(&path) {
                Err(error) if is_full(&error) && !self.spares.is_empty() => {
                    tracing::warn!("the disk is full: the log goes on in the segment held back for this");
                    self.take_spare(&path)?
                }
                created => created?,
            }
        } else {
            self.take_spare(&path)?
        };
        self.grows |= sequence > 1;
        self.open.insert(sequence, file);
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() < u64::from(self.segment_bytes) {
            #[cfg(test)]
            if self.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            fallocate(&file, FallocateFlags::empty(), 0, u64::from(self.segment_bytes))?;
            file.sync_all()?;
        }
        Ok(file)
    }

    /// Renames over what may lie there: a file that could not be made whole.
    fn take_spare(&mut self, path: &Path) -> io::Result<File> {
        let spare = self.spares.pop().ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        fs::rename(&spare, path)?;
        self.handle.sync_all()?;
        self.create(path)
    }

    /// A segment is not needed any more: its file waits for the next one, or goes. An error means that the directory
    /// cannot be synced.
    pub(super) fn release(&mut self, sequence: u32) -> io::Result<()> {
        self.open.remove(&sequence);
        let path = self.directory.join(segment_name(sequence));
        let spare = self.directory.join(format!("spare-{}", self.next_spare));
        self.next_spare += 1;
        let kept = self.spares.len() < SPARES_MAX;
        let done = if kept { fs::rename(&path, &spare) } else { fs::remove_file(&path) };
        if let Err(error) = done {
            // The file stays where it is and costs space; the next start gives it back again.
            tracing::warn!(sequence, %error, "a segment could not be put aside");
            return Ok(());
        }
        self.handle.sync_all()?;
        if kept {
            self.spares.push(spare);
        }
        Ok(())
    }

    /// What should be prepared now, if anything: at once the spare that is held back; one to use only while the disk is
    /// idle and the log grows, because under load writing zeros costs more than it saves (4 % of throughput, measured).
    pub(super) fn wanted(&mut self, idle: bool) -> Option<Preparation> {
        let room = match self.spares.len().checked_sub(SPARES_RESERVED) {
            None => SPARES_RESERVED as u64 + 1,
            Some(0) if idle && self.grows => ROOMY,
            Some(_) => return None,
        };
        if self.unused_bytes() < room * u64::from(self.segment_bytes) {
            return None;
        }
        let number = self.next_spare;
        self.next_spare += 1;
        Some(Preparation { directory: self.directory.clone(), number, segment_bytes: self.segment_bytes })
    }

    /// A prepared file joins the spares.
    pub(super) fn prepared(&mut self, path: PathBuf) {
        self.spares.push(path);
    }
}

/// Free space and spares, but for what is held back: where publishes are refused because this is used up, settlements
/// can still go over into one more segment.
fn usable_bytes(unused_bytes: u64, spares: usize, segment_bytes: u32) -> u64 {
    let segment_bytes = u64::from(segment_bytes);
    (unused_bytes + spares as u64 * segment_bytes).saturating_sub(SPARES_RESERVED as u64 * segment_bytes)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A spare to be made, away from the disk thread.
#[derive(Debug)]
pub(super) struct Preparation {
    directory: PathBuf,
    number: u64,
    segment_bytes: u32,
}

impl Preparation {
    /// Writes a file of zeros, so that appends into it need not change the file's map of blocks. `None`: `stop` was set.
    pub(super) fn make(&self, stop: &AtomicBool) -> io::Result<Option<PathBuf>> {
        let path = self.directory.join(format!("preparing-{}", self.number));
        let ready = self.directory.join(format!("spare-{}", self.number));
        let whole = self.fill(&path, stop).and_then(|whole| {
            if whole {
                fs::rename(&path, &ready)?;
            }
            Ok(whole)
        });
        if !matches!(whole, Ok(true))
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::debug!(%error, "an unfinished spare stays until the next start");
        }
        Ok(whole?.then_some(ready))
    }

    fn fill(&self, path: &Path, stop: &AtomicBool) -> io::Result<bool> {
        let file = File::create(path)?;
        let zeros = vec![0; PREPARE_STEP];
        let mut at = 0;
        while at < u64::from(self.segment_bytes) {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let step = zeros.len().min((u64::from(self.segment_bytes) - at) as usize);
            file.write_all_at(&zeros[..step], at)?;
            file.sync_data()?;
            at += step as u64;
            std::thread::sleep(PREPARE_PAUSE);
        }
        file.sync_all()?;
        // Whoever writes it next does so past the page cache.
        if let Err(error) = fadvise(&file, 0, None, Advice::DontNeed) {
            tracing::debug!(%error, "cached pages stay");
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u32 = 64 << 10;

    fn write(segment: u32, offset: u32, bytes: &'static [u8], fresh: bool) -> Append {
        let bytes = Bytes::from_static(bytes);
        Append { batch: 1, writes: vec![SegmentWrite { segment, offset, bytes, fresh }] }
    }

    fn open(directory: &tempfile::TempDir) -> SegmentFiles {
        SegmentFiles::open(directory.path(), SEGMENT).unwrap()
    }

    fn prepare(files: &mut SegmentFiles) -> PathBuf {
        files.wanted(true).unwrap().make(&AtomicBool::new(false)).unwrap().unwrap()
    }

    #[test]
    fn what_is_appended_is_read_back_after_opening_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = open(&dir);
        files.append(&write(1, 0, b"hello", true)).unwrap();
        files.append(&write(1, 5, b" there", false)).unwrap();
        let mut files = open(&dir);
        assert_eq!(files.sequences(), [1]);
        let read = files.read_at(Position { segment: 1, offset: 0 }, 11).unwrap();
        assert_eq!(read, "hello there");
        let mut whole = vec![7; 3];
        files.read_whole(1, &mut whole).unwrap();
        assert_eq!(whole.len(), SEGMENT as usize);
        assert!(whole.starts_with(b"hello there"));
    }

    #[test]
    fn appends_by_way_of_the_page_cache_and_past_it_go_on_from_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = open(&dir);
        files.append(&write(1, 0, b"past ", true)).unwrap();
        files.direct = None;
        files.append(&write(1, 5, b"through ", false)).unwrap();
        let mut files = open(&dir);
        files.append(&write(1, 13, b"past", false)).unwrap();
        assert_eq!(files.read_at(Position { segment: 1, offset: 0 }, 18).unwrap(), "past through past\0");
        // Too short by half a block for the last one to be whole.
        let odd = SegmentFiles::open(dir.path(), SEGMENT - 2048).unwrap();
        assert!(odd.direct.is_none());
    }

    #[test]
    fn a_read_is_whole_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = open(&dir);
        files.append(&write(1, 0, b"hello", true)).unwrap();
        assert!(files.read_at(Position { segment: 1, offset: SEGMENT - 4 }, 5).is_err());
        assert!(files.read_at(Position { segment: 2, offset: 0 }, 1).is_err());
    }

    /// As on a file system that is shut down while it syncs: the sync is said to be done, and reads are refused.
    #[test]
    fn a_sync_that_was_said_done_does_not_count_where_nothing_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = open(&dir);
        files.append(&write(1, 0, b"hello", true)).unwrap();
        let blind = OpenOptions::new().write(true).open(dir.path().join(segment_name(1))).unwrap();
        let sighted = files.open.insert(1, blind).unwrap();
        assert!(files.append(&write(1, 5, b" there", false)).is_err());
        files.open.insert(1, sighted);
        let written = files.read_at(Position { segment: 1, offset: 0 }, 11).unwrap();
        assert_eq!(written, "hello there", "it was refused for the read alone");
    }

    #[test]
    fn a_batch_may_go_over_into_the_next_segment() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = open(&dir);
        let writes = [write(1, SEGMENT - 3, b"end", true), write(2, 0, b"begin", true)];
        let writes = writes.into_iter().flat_map(|append| append.writes).collect();
        files.append(&Append { batch: 1, writes }).unwrap();
        let files = open(&dir);
        assert_eq!(files.read_at(Position { segment: 1, offset: SEGMENT - 3 }, 3).unwrap(), "end");
        assert_eq!(files.read_at(Position { segment: 2, offset: 0 }, 5).unwrap(), "begin");
    }

    #[test]
    fn a_released_file_serves_a_later_segment() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = open(&dir);
        for segment in 1..=3 {
            files.append(&write(segment, 0, b"old", true)).unwrap();
        }
        files.release(1).unwrap();
        files.release(2).unwrap();
        assert_eq!(files.spares.len(), 2);
        files.append(&write(4, 8, b"next", true)).unwrap();
        assert_eq!(files.spares.len(), SPARES_RESERVED, "one is held back");
        assert_eq!(files.read_at(Position { segment: 4, offset: 0 }, 3).unwrap(), "old", "stale bytes stay");
        assert_eq!(open(&dir).sequences(), [3, 4]);
    }

    #[test]
    fn more_than_four_spares_give_their_space_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = open(&dir);
        for segment in 1..=7 {
            files.append(&write(segment, 0, b"x", true)).unwrap();
        }
        for segment in 1..=6 {
            files.release(segment).unwrap();
        }
        let files = open(&dir);
        assert_eq!((files.sequences(), files.spares.len()), (vec![7], SPARES_MAX));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1 + SPARES_MAX);
    }

    #[test]
    fn on_a_full_disk_the_log_goes_on_in_the_spare_held_back_and_then_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = open(&dir);
        files.append(&write(1, 0, b"x", true)).unwrap();
        let spare = prepare(&mut files);
        files.prepared(spare);
        files.full = true;
        files.append(&write(2, 0, b"y", true)).unwrap();
        assert_eq!(files.read_at(Position { segment: 2, offset: 0 }, 2).unwrap(), "y\0"[..]);
        let error = files.append(&write(3, 0, b"z", true)).unwrap_err();
        assert!(is_full(&error), "{error}");
    }

    #[test]
    fn whoever_may_use_a_segment_leaves_one_for_settlements() {
        let segment = u64::from(SEGMENT);
        for spares in 0..4 {
            for unused in (0..4 * segment).step_by(1 << 10) {
                let usable = usable_bytes(unused, spares, SEGMENT);
                let obtainable = unused / segment + spares as u64;
                assert!(
                    usable < segment || obtainable >= 2,
                    "{usable} with {spares} spares and {unused} free"
                );
            }
        }
    }

    #[test]
    fn a_prepared_file_is_whole_and_zero_and_an_interrupted_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = open(&dir);
        let stopped = files.wanted(true).unwrap().make(&AtomicBool::new(true)).unwrap();
        assert_eq!(stopped, None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let path = prepare(&mut files);
        assert_eq!(fs::read(path).unwrap(), vec![0; SEGMENT as usize]);
        fs::write(dir.path().join("preparing-9"), "left by a crash").unwrap();
        assert_eq!(open(&dir).spares.len(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_spare_held_back_is_wanted_at_once_and_a_second_one_by_an_idle_log_that_grows() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = open(&dir);
        files.append(&write(1, 0, b"x", true)).unwrap();
        let spare = files.wanted(false).unwrap().make(&AtomicBool::new(false)).unwrap().unwrap();
        files.prepared(spare);
        assert!(files.wanted(true).is_none());
        files.append(&write(2, 0, b"x", true)).unwrap();
        assert!(files.wanted(false).is_none());
        assert!(files.wanted(true).is_some());
    }
}
