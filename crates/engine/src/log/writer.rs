//! Places records, gathers them into batches, and knows how far the log is on stable storage.
//!
//! At most one batch is in flight. So a batch record proves, by being there, that everything before it was synced: that
//! is the synced watermark, and it costs one small record per batch.

use bytes::Bytes;
use swarmmq_protocol::time::WallTime;

use super::{
    Append, Config, Position, SegmentWrite, Tail,
    record::{self, Home, KIND_BATCH, Label, MAX_BODY_BYTES, RECORD_HEADER_BYTES, next_chain, record_bytes},
    segment::{SEGMENT_HEADER_BYTES, SegmentHeader},
};

/// Room that a batch begins with, unless the one before took more: growing costs a copy of what is there. Most batches of
/// a quiet node are smaller, and so little room is had from an allocator at once.
const BATCH_BYTES: usize = 1024;
/// Most room that a batch begins with.
const BATCH_BYTES_MAX: usize = 2 << 20;

#[derive(Debug)]
struct Building {
    segment: u32,
    offset: u32,
    bytes: Vec<u8>,
    fresh: bool,
}

/// The writing end of a log.
#[derive(Debug)]
pub struct Writer {
    config: Config,
    tail: Position,
    chain: u64,
    next_batch: u64,
    building: Vec<Building>,
    /// Bytes of the latest batch.
    latest_bytes: usize,
    /// The batch in flight and where it ends.
    in_flight: Option<(u64, Position)>,
    synced_end: Position,
    /// The latest batch record says less than what is synced.
    lags: bool,
    holds_data: bool,
    wall: WallTime,
}

impl Writer {
    /// Goes on at `tail`.
    ///
    /// The segments must hold a largest record: `segment_bytes` at least 16 KiB; larger bodies than fit are a program
    /// error.
    pub fn new(config: Config, tail: Tail) -> Self {
        assert!(config.segment_bytes >= 16 << 10, "segments of {} bytes", config.segment_bytes);
        Self {
            config,
            tail: tail.position,
            chain: tail.chain,
            next_batch: tail.batch,
            building: Vec::new(),
            latest_bytes: 0,
            in_flight: None,
            synced_end: tail.position,
            lags: false,
            holds_data: false,
            wall: WallTime(0),
        }
    }

    /// Largest body that fits into a segment of this log.
    pub fn body_bytes_max(&self) -> usize {
        let room = (self.config.segment_bytes - SEGMENT_HEADER_BYTES) as usize;
        (room - RECORD_HEADER_BYTES * 2 - 64).min(MAX_BODY_BYTES)
    }

    /// Buffers a record for the next batch. Returns where its body will lie. Cost: one copy and one checksum.
    pub fn append(&mut self, kind: u8, shard: u32, index: u64, epoch: u64, body: &[&[u8]]) -> Position {
        assert!(kind != KIND_BATCH, "kind 0 is the log's own");
        self.begin_batch();
        self.holds_data = true;
        self.place(Label { kind, shard, index, epoch }, body)
    }

    fn begin_batch(&mut self) {
        if self.building.is_empty() {
            let number = self.next_batch.to_be_bytes();
            self.place(Label { kind: KIND_BATCH, shard: 0, index: 0, epoch: 0 }, &[&number]);
        }
    }

    fn place(&mut self, label: Label, body: &[&[u8]]) -> Position {
        let body_bytes: usize = body.iter().map(|part| part.len()).sum();
        let bytes = record_bytes(body_bytes) as u32;
        assert!(body_bytes <= self.body_bytes_max(), "a body of {body_bytes} bytes");
        if self.tail.offset == 0 || self.tail.offset + bytes > self.config.segment_bytes {
            self.begin_segment();
        }
        let joins = self.building.last().is_some_and(|building| building.segment == self.tail.segment);
        if !joins {
            self.building.push(Building {
                segment: self.tail.segment,
                offset: self.tail.offset,
                bytes: Vec::with_capacity(self.latest_bytes.clamp(BATCH_BYTES, BATCH_BYTES_MAX)),
                fresh: false,
            });
        }
        let building = self.building.last_mut().expect("pushed above");
        let home = Home { log_id: self.config.log_id, segment: self.tail.segment };
        let crc = record::put(&mut building.bytes, home, self.chain, label, body);
        self.chain = next_chain(self.chain, crc);
        let place = Position { offset: self.tail.offset + RECORD_HEADER_BYTES as u32, ..self.tail };
        self.tail.offset += bytes;
        place
    }

    fn begin_segment(&mut self) {
        let previous_end = self.tail;
        if self.tail.offset != 0 {
            self.tail.segment += 1;
        }
        let header = SegmentHeader {
            log_id: self.config.log_id,
            sequence: self.tail.segment,
            previous_end,
            chain: self.chain,
            created_at: self.wall,
        };
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER_BYTES as usize * 2);
        header.put(&mut bytes);
        self.tail.offset = SEGMENT_HEADER_BYTES;
        self.building.push(Building { segment: self.tail.segment, offset: 0, bytes, fresh: true });
    }

    /// Bytes waiting for the next batch.
    pub fn buffered_bytes(&self) -> usize {
        self.building.iter().map(|building| building.bytes.len()).sum()
    }

    /// The next batch, unless one is in flight or there is nothing to write.
    pub fn take(&mut self, wall: WallTime) -> Option<Append> {
        self.wall = wall;
        if self.in_flight.is_some() || self.building.is_empty() {
            return None;
        }
        let batch = self.next_batch;
        self.next_batch += 1;
        self.in_flight = Some((batch, self.tail));
        // The next one is likely to be as large, give or take.
        self.latest_bytes = self.buffered_bytes() + self.buffered_bytes() / 4;
        let writes = self
            .building
            .drain(..)
            .map(|building| SegmentWrite {
                segment: building.segment,
                offset: building.offset,
                bytes: Bytes::from(building.bytes),
                fresh: building.fresh,
            })
            .collect();
        self.lags = std::mem::take(&mut self.holds_data);
        Some(Append { batch, writes })
    }

    /// The batch is on stable storage.
    pub fn synced(&mut self, batch: u64) {
        let (expected, end) = self.in_flight.take().expect("a batch is in flight");
        assert_eq!(expected, batch, "only the batch in flight can be synced");
        self.synced_end = end;
    }

    /// Of `length` bytes from `place` on, how many may be read and kept: what lies beyond the latest synced batch will be
    /// written later, so a copy of it would be stale.
    pub fn readable(&self, place: Position, length: u32) -> u32 {
        let end = if place.segment < self.synced_end.segment {
            self.config.segment_bytes
        } else {
            self.synced_end.offset
        };
        length.min(end.saturating_sub(place.offset))
    }

    /// Whether something is synced that no batch record says yet.
    pub fn watermark_lags(&self) -> bool {
        self.lags
    }

    /// Buffers a batch record alone, to say that everything is synced.
    pub fn idle_watermark(&mut self) {
        if self.lags {
            self.begin_batch();
        }
    }

    /// The segment that is written now.
    pub fn active_segment(&self) -> u32 {
        self.tail.segment
    }

    /// Where the next record goes.
    pub fn tail(&self) -> Tail {
        Tail { position: self.tail, chain: self.chain, batch: self.next_batch }
    }
}
