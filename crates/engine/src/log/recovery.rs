//! From files to verdicts: what is whole, what is a torn tail, what is rot.
//!
//! The rule: the first place where the chain of whole records ends is the tail, *unless* a whole batch record lies
//! beyond it. A batch is begun only when the one before is synced, so such a record proves that what is missing had been
//! on stable storage: that is rot. Otherwise the missing bytes belong to the one batch that was in flight, of which any
//! part may have reached the disk, and which nobody was promised.

use super::{
    Config, Position, Tail,
    record::{
        self, ALIGN, BATCH_BODY_BYTES, Home, KIND_BATCH, RECORD_HEADER_BYTES, RecordRef, could_be_batch,
        next_chain, record_bytes,
    },
    segment::{SEGMENT_HEADER_BYTES, SegmentHeader},
};

/// What a log is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is whole to the end.
    Clean {
        /// Where writing goes on.
        tail: Tail,
    },
    /// The batch in flight at the crash is missing in part. Nobody was promised any of it.
    Torn {
        /// Where writing goes on.
        tail: Tail,
        /// Where something lies that is no whole record.
        cut_at: Position,
    },
    /// Records that had been synced are damaged. Nothing is cut.
    Corrupt {
        /// From the first damaged byte to the next batch that is whole.
        ranges: Vec<(Position, Position)>,
        /// Where the whole records end before the first damage.
        tail: Option<Tail>,
    },
}

/// Reads segments in the order of their numbers.
#[derive(Debug)]
pub struct Recovery {
    config: Config,
    order: Vec<u32>,
    next: usize,
    tail: Tail,
    /// Where the whole records ended for good, and whether something non-blank lies there.
    end: Option<(Position, bool)>,
    corrupt: Vec<(Position, Position)>,
    started: bool,
}

impl Recovery {
    /// For the segments with these numbers, in any order.
    pub fn new(config: Config, mut segments: Vec<u32>) -> Self {
        segments.sort_unstable();
        segments.dedup();
        Self {
            config,
            order: segments,
            next: 0,
            tail: Tail::fresh(),
            end: None,
            corrupt: Vec::new(),
            started: false,
        }
    }

    /// The order in which [`Recovery::segment`] wants them.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// Reads one segment whole. `visit` is given every record that is whole and in its place.
    pub fn segment(&mut self, sequence: u32, bytes: &[u8], visit: &mut dyn FnMut(RecordRef<'_>)) {
        assert_eq!(self.order.get(self.next), Some(&sequence), "segments are read in their order");
        self.next += 1;
        if SegmentHeader::is_foreign(bytes, self.config.log_id) {
            // Not ours to write over, whatever it is.
            let whole = |offset| Position { segment: sequence, offset };
            self.stop(whole(0), true);
            self.corrupt.push((whole(0), whole(bytes.len() as u32)));
            return;
        }
        let mut at = 0;
        if self.end.is_none() {
            match self.enter(sequence, bytes) {
                Some(offset) => at = self.walk(sequence, bytes, offset, visit),
                None => self.stop(Position { segment: sequence, offset: 0 }, !blank(bytes)),
            }
        }
        let Some((end, _)) = self.end else { return };
        // Whatever comes now lies beyond the end. Does it prove that the end should not be there?
        let header = SegmentHeader::read(bytes, self.config.log_id, sequence).is_some();
        let mut from = at.max(SEGMENT_HEADER_BYTES as usize).next_multiple_of(ALIGN);
        if !header {
            // A batch record behind the header was written together with it: it does not prove that the header was
            // synced. The next one would.
            from = from.max(SEGMENT_HEADER_BYTES as usize + record_bytes(BATCH_BODY_BYTES));
        }
        if let Some(proof) = find_batch(self.home(sequence), bytes, from) {
            self.corrupt.push((end, Position { segment: sequence, offset: proof as u32 }));
            self.resync(sequence, bytes, proof);
        }
    }

    /// Where the records of a segment begin, if the segment continues the one before it.
    fn enter(&mut self, sequence: u32, bytes: &[u8]) -> Option<usize> {
        let header = SegmentHeader::read(bytes, self.config.log_id, sequence)?;
        if self.started {
            let follows = sequence == self.tail.position.segment + 1
                && header.previous_end == self.tail.position
                && header.chain == self.tail.chain;
            if !follows {
                return None;
            }
        }
        self.started = true;
        self.tail.chain = header.chain;
        self.tail.position = Position { segment: sequence, offset: SEGMENT_HEADER_BYTES };
        Some(SEGMENT_HEADER_BYTES as usize)
    }

    /// Visits whole records from `at`. Returns where they end.
    fn walk(
        &mut self,
        sequence: u32,
        bytes: &[u8],
        mut at: usize,
        visit: &mut dyn FnMut(RecordRef<'_>),
    ) -> usize {
        while let Some(found) = record::read(self.home(sequence), &bytes[at..]) {
            if found.chain != self.tail.chain {
                break;
            }
            if found.label.kind == KIND_BATCH {
                let number: [u8; 8] = found.body.try_into().unwrap_or_default();
                self.tail.batch = u64::from_be_bytes(number) + 1;
            } else {
                visit(RecordRef {
                    kind: found.label.kind,
                    shard: found.label.shard,
                    index: found.label.index,
                    epoch: found.label.epoch,
                    position: Position { segment: sequence, offset: (at + RECORD_HEADER_BYTES) as u32 },
                    body: found.body,
                });
            }
            at += found.bytes;
            self.tail.chain = next_chain(self.tail.chain, found.crc);
            self.tail.position.offset = at as u32;
        }
        let last = self.next == self.order.len();
        let next_follows = !last && self.order[self.next] == sequence + 1;
        let proof = find_batch(self.home(sequence), bytes, at.next_multiple_of(ALIGN)).is_some();
        if proof || !next_follows {
            let rest = &bytes[at..];
            self.stop(Position { segment: sequence, offset: at as u32 }, !blank(rest));
        }
        at
    }

    fn home(&self, segment: u32) -> Home {
        Home { log_id: self.config.log_id, segment }
    }

    fn stop(&mut self, at: Position, dirty: bool) {
        // A segment that does not follow is a hole at the end of the one before.
        let end = if self.started && at.offset == 0 { self.tail.position } else { at };
        self.end.get_or_insert((end, dirty));
    }

    /// After rot: counts on from a whole batch, only to name further damage.
    fn resync(&mut self, sequence: u32, bytes: &[u8], from: usize) {
        let mut at = from;
        while let Some(found) = record::read(self.home(sequence), &bytes[at..]) {
            at += found.bytes;
        }
        if let Some(proof) = find_batch(self.home(sequence), bytes, at.next_multiple_of(ALIGN)) {
            self.corrupt.push((
                Position { segment: sequence, offset: at as u32 },
                Position { segment: sequence, offset: proof as u32 },
            ));
            self.resync(sequence, bytes, proof);
        }
    }

    /// All segments were read.
    pub fn finish(self) -> Verdict {
        assert_eq!(self.next, self.order.len(), "every segment was read");
        if !self.corrupt.is_empty() {
            let tail = self.started.then_some(self.tail);
            return Verdict::Corrupt { ranges: self.corrupt, tail };
        }
        match self.end {
            Some((cut_at, true)) => Verdict::Torn { tail: self.tail, cut_at },
            _ => Verdict::Clean { tail: self.tail },
        }
    }
}

/// The first whole batch record of this segment at or after `from`.
fn find_batch(home: Home, bytes: &[u8], from: usize) -> Option<usize> {
    (from..bytes.len().saturating_sub(RECORD_HEADER_BYTES)).step_by(ALIGN).find(|at| {
        could_be_batch(&bytes[*at..])
            && record::read(home, &bytes[*at..]).is_some_and(|found| found.label.kind == KIND_BATCH)
    })
}

/// Whether the next record, if there were one, has not been begun.
fn blank(bytes: &[u8]) -> bool {
    bytes.iter().take(RECORD_HEADER_BYTES).all(|byte| *byte == 0)
}
