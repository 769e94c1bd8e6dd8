//! One node's disk: what is durable, what is only written, and what a crash leaves of it.
//!
//! Segment files keep their bytes when they are recycled. Of the batch in flight at a crash, any subset of sectors may
//! have landed. Absent here: when things happen; that is the host's affair.

use std::collections::BTreeMap;

use bytes::Bytes;
use swarmmq_engine::{
    log::{Append, Config as LogConfig, Position, Recovery, SegmentWrite, Verdict},
    node::{Config, Node, Now, RestoreError},
};

use crate::rng::Rng;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What a crash does to the writes in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// All or nothing.
    Whole,
    /// Any subset of sectors.
    Torn,
}

/// A bit that was turned over, so that it can be turned back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flip {
    segment: u32,
    offset: usize,
    mask: u8,
}

/// Bytes of a segment that one batch wrote.
#[derive(Clone, Copy, Debug)]
struct Extent {
    segment: u32,
    offset: usize,
    length: usize,
}

/// One disk.
#[derive(Clone, Debug)]
pub struct Disk {
    segment_bytes: usize,
    files: BTreeMap<u32, Vec<u8>>,
    /// Released files with their stale bytes.
    spare: Vec<Vec<u8>>,
    in_flight: Option<Append>,
    /// Segments whose files were made for the batch in flight.
    made: Vec<u32>,
    /// Written by the latest synced batch: nothing in the log proves yet that it was synced.
    latest: Vec<Extent>,
    /// Written by batches before it: damage there must be noticed.
    proven: Vec<Extent>,
}

impl Disk {
    /// An empty disk.
    pub fn new(segment_bytes: u32) -> Self {
        Self {
            segment_bytes: segment_bytes as usize,
            files: BTreeMap::new(),
            spare: Vec::new(),
            in_flight: None,
            made: Vec::new(),
            latest: Vec::new(),
            proven: Vec::new(),
        }
    }

    /// Segment files in use.
    pub fn segments(&self) -> usize {
        self.files.len()
    }

    /// Whether a batch is being written.
    pub fn is_writing(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The batch is handed to the operating system.
    pub fn write(&mut self, append: Append) {
        assert!(self.in_flight.is_none(), "at most one batch is in flight");
        self.made.clear();
        for write in append.writes.iter().filter(|write| write.fresh) {
            // A crash may have left the file before its first record was synced: it is used as it is.
            if !self.files.contains_key(&write.segment) {
                let file = self.spare.pop().unwrap_or_else(|| vec![0; self.segment_bytes]);
                self.files.insert(write.segment, file);
                self.made.push(write.segment);
            }
        }
        self.in_flight = Some(append);
    }

    /// The batch in flight is on stable storage. Returns its number.
    pub fn sync(&mut self) -> Option<u64> {
        let append = self.in_flight.take()?;
        self.proven.append(&mut self.latest);
        for write in &append.writes {
            self.land(write, 0, write.bytes.len());
            let (offset, length) = (write.offset as usize, write.bytes.len());
            self.latest.push(Extent { segment: write.segment, offset, length });
        }
        Some(append.batch)
    }

    /// The sync failed: some of the batch landed, the rest never will.
    pub fn fail(&mut self, rng: &mut Rng) {
        if let Some(append) = self.in_flight.take() {
            self.land_some(&append, rng, 500);
        }
    }

    /// The process or the machine dies.
    pub fn crash(&mut self, landing: Landing, rng: &mut Rng) {
        let Some(append) = self.in_flight.take() else { return };
        let share = match landing {
            Landing::Whole => [0, 1000][rng.below(2) as usize],
            Landing::Torn => [50, 500, 900][rng.below(3) as usize],
        };
        for segment in std::mem::take(&mut self.made) {
            // The file itself may never have got its name.
            if share < 1000 && rng.chance(300) {
                let file = self.files.remove(&segment).expect("inserted when it was written");
                self.spare.push(file);
            }
        }
        self.land_some(&append, rng, share);
    }

    fn land_some(&mut self, append: &Append, rng: &mut Rng, share_per_mille: u64) {
        for write in
            append.writes.iter().filter(|write| self.files.contains_key(&write.segment)).collect::<Vec<_>>()
        {
            let (start, end) = (write.offset as usize, write.offset as usize + write.bytes.len());
            let mut at = start;
            while at < end {
                let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
                if rng.chance(share_per_mille) {
                    self.land(write, at - start, next - start);
                }
                at = next;
            }
        }
    }

    fn land(&mut self, write: &SegmentWrite, from: usize, to: usize) {
        let file = self.files.get_mut(&write.segment).expect("a file is made before it is written");
        let offset = write.offset as usize;
        file[offset + from..offset + to].copy_from_slice(&write.bytes[from..to]);
    }

    /// Reads as the operating system does: what is written but not synced is seen.
    pub fn read(&self, position: Position, length: u32) -> Result<Bytes, String> {
        let Some(file) = self.files.get(&position.segment) else {
            return Err(format!("there is no segment {}", position.segment));
        };
        let from = (position.offset as usize).min(file.len());
        let to = (from + length as usize).min(file.len());
        let mut bytes = file[from..to].to_vec();
        for write in self.in_flight.iter().flat_map(|append| &append.writes) {
            let start = write.offset as usize;
            let (low, high) = (start.max(from), (start + write.bytes.len()).min(to));
            if write.segment == position.segment && low < high {
                bytes[low - from..high - from].copy_from_slice(&write.bytes[low - start..high - start]);
            }
        }
        Ok(bytes.into())
    }

    /// The segment's file may be used for another one.
    pub fn release(&mut self, segment: u32) {
        if let Some(file) = self.files.remove(&segment) {
            self.spare.push(file);
        }
        self.proven.retain(|extent| extent.segment != segment);
        self.latest.retain(|extent| extent.segment != segment);
    }

    /// Turns one bit over at rest, somewhere below the synced watermark.
    pub fn flip(&mut self, rng: &mut Rng) -> Option<Flip> {
        let total: usize = self.proven.iter().map(|extent| extent.length).sum();
        if total == 0 {
            return None;
        }
        let mut point = rng.below(total as u64) as usize;
        let extent = self.proven.iter().find(|extent| {
            let here = point < extent.length;
            if !here {
                point -= extent.length;
            }
            here
        })?;
        let flip = Flip { segment: extent.segment, offset: extent.offset + point, mask: 1 << rng.below(8) };
        self.turn(flip);
        Some(flip)
    }

    /// Turns a bit over, or back.
    pub fn turn(&mut self, flip: Flip) {
        if let Some(file) = self.files.get_mut(&flip.segment) {
            file[flip.offset] ^= flip.mask;
        }
    }

    /// Starts a node from what is durable.
    pub fn restore(&self, config: &Config, now: Now) -> Result<(Node, Verdict), RestoreError> {
        let log = LogConfig { segment_bytes: config.segment_bytes, log_id: config.log_id() };
        let mut recovery = Recovery::new(log, self.files.keys().copied().collect());
        let mut restore = Node::restore(config.clone());
        restore.segments(recovery.order());
        for sequence in recovery.order().to_vec() {
            recovery.segment(sequence, &self.files[&sequence], &mut |record| restore.record(&record));
        }
        let verdict = recovery.finish();
        let node = restore.finish(&verdict, now, &mut |position, length| self.read(position, length))?;
        Ok((node, verdict))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn append(batch: u64, offset: u32, bytes: &[u8], fresh: bool) -> Append {
        let write = SegmentWrite { segment: 1, offset, bytes: Bytes::copy_from_slice(bytes), fresh };
        Append { batch, writes: vec![write] }
    }

    #[test]
    fn a_torn_write_lands_in_sectors() {
        let mut rng = Rng::new(3, Stream::Disk);
        let mut disk = Disk::new(8192);
        disk.write(append(1, 0, &[1; 512], true));
        disk.sync();
        let mut torn = 0;
        for _ in 0..50 {
            let mut crashed = disk.clone();
            crashed.write(append(2, 512, &[2; 4096], false));
            assert_eq!(crashed.read(Position { segment: 1, offset: 512 }, 4096).unwrap()[..], [2; 4096]);
            crashed.crash(Landing::Torn, &mut rng);
            let bytes = crashed.read(Position { segment: 1, offset: 0 }, 4608).unwrap();
            assert!(bytes[..512] == [1; 512], "what was synced stays");
            assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            torn += u32::from(bytes[512..].contains(&2) && bytes[512..].contains(&0));
        }
        assert!(torn > 10, "{torn}");
    }

    #[test]
    fn a_recycled_file_keeps_its_stale_bytes() {
        let mut disk = Disk::new(1024);
        disk.write(append(1, 0, &[7; 1024], true));
        disk.sync();
        disk.release(1);
        disk.write(append(2, 0, &[1; 4], true));
        assert_eq!(disk.read(Position { segment: 1, offset: 0 }, 6).unwrap()[..], [1, 1, 1, 1, 7, 7]);
    }
}
