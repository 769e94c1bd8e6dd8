//! The log under crashes and rot: every cut, every landing order of one batch, every flipped byte.

use std::collections::BTreeMap;

use proptest::prelude::*;
use swarmmq_protocol::time::WallTime;

use super::*;

const CONFIG: Config = Config { segment_bytes: 16 << 10, log_id: 7 };
const SECTOR: usize = 512;

/// Segment files as a disk would hold them.
#[derive(Clone, Debug, Default)]
struct Disk(BTreeMap<u32, Vec<u8>>);

impl Disk {
    fn write(&mut self, segment: u32, offset: usize, bytes: &[u8]) {
        let file = self.0.entry(segment).or_insert_with(|| vec![0; CONFIG.segment_bytes as usize]);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn apply(&mut self, append: &Append) {
        append.writes.iter().for_each(|write| self.write(write.segment, write.offset as usize, &write.bytes));
    }

    fn recover(&self) -> (Vec<(u64, Vec<u8>)>, Verdict) {
        let mut recovery = Recovery::new(CONFIG, self.0.keys().copied().collect());
        let mut records = Vec::new();
        for sequence in recovery.order().to_vec() {
            recovery.segment(sequence, &self.0[&sequence], &mut |record| {
                let file = &self.0[&record.position.segment];
                let at = record.position.offset as usize;
                assert_eq!(
                    &file[at..at + record.body.len()],
                    record.body,
                    "the place is where the body lies"
                );
                records.push((record.index, record.body.to_vec()));
            });
        }
        (records, recovery.finish())
    }
}

fn body(index: u64, length: usize) -> Vec<u8> {
    (0..length).map(|n| (index as usize * 31 + n * 7) as u8 | 1).collect()
}

/// Writes batches of records with these body lengths. Returns the disk before the last batch, and the last batch.
fn write(batches: &[Vec<usize>]) -> (Disk, Append, Vec<(u64, Vec<u8>)>, Writer) {
    let mut writer = Writer::new(CONFIG, Tail::fresh());
    let mut disk = Disk::default();
    let mut records = Vec::new();
    let mut last = None;
    for lengths in batches {
        if let Some(append) = last.take() {
            disk.apply(&append);
            writer.synced(append.batch);
        }
        for length in lengths {
            let index = records.len() as u64;
            let bytes = body(index, *length);
            let (a, b) = bytes.split_at(bytes.len() / 2);
            writer.append(1, 3, index, 9, &[a, b]);
            records.push((index, bytes));
        }
        last = writer.take(WallTime(5));
    }
    (disk, last.expect("there is a last batch"), records, writer)
}

#[test]
fn what_was_written_is_read_back_in_order_and_writing_goes_on() {
    let (mut disk, last, records, mut writer) = write(&[vec![10, 5000, 0], vec![8000, 9000], vec![1, 2, 3]]);
    disk.apply(&last);
    writer.synced(last.batch);
    let (found, verdict) = disk.recover();
    assert_eq!(found, records);
    let Verdict::Clean { tail } = verdict else { panic!("{verdict:?}") };
    assert_eq!(tail, writer.tail());

    let mut resumed = Writer::new(CONFIG, tail);
    resumed.append(1, 3, 99, 9, &[b"more"]);
    disk.apply(&resumed.take(WallTime(6)).unwrap());
    let (found, verdict) = disk.recover();
    assert_eq!(found.last(), Some(&(99, b"more".to_vec())));
    assert!(matches!(verdict, Verdict::Clean { .. }), "{verdict:?}");
}

#[test]
fn nothing_more_is_taken_while_a_batch_is_in_flight() {
    let mut writer = Writer::new(CONFIG, Tail::fresh());
    writer.append(1, 0, 1, 1, &[b"a"]);
    let first = writer.take(WallTime(0)).unwrap();
    writer.append(1, 0, 2, 1, &[b"b"]);
    assert!(writer.take(WallTime(0)).is_none());
    writer.synced(first.batch);
    assert!(writer.take(WallTime(0)).is_some());
}

#[test]
fn an_idle_watermark_is_written_once() {
    let mut writer = Writer::new(CONFIG, Tail::fresh());
    writer.append(1, 0, 1, 1, &[b"a"]);
    let first = writer.take(WallTime(0)).unwrap();
    writer.synced(first.batch);
    assert!(writer.watermark_lags());
    writer.idle_watermark();
    let second = writer.take(WallTime(0)).unwrap();
    writer.synced(second.batch);
    assert!(!writer.watermark_lags());
}

/// Any part of the batch in flight may have reached the disk: nothing synced is lost, nothing is called rot, and what is
/// kept of the batch is a prefix.
fn judge_landing(disk: &Disk, synced: usize, records: &[(u64, Vec<u8>)], what: &str) {
    let (found, verdict) = disk.recover();
    assert!(!matches!(verdict, Verdict::Corrupt { .. }), "{what}: {verdict:?}");
    assert!(found.len() >= synced, "{what}: {} of {synced} synced records", found.len());
    assert_eq!(found, records[..found.len()], "{what}");
}

#[test]
fn every_subset_of_sectors_of_the_last_batch_may_land() {
    for batches in [
        vec![vec![100, 300], vec![700, 40, 1100, 900, 10]],
        // The last batch goes over into a fresh segment.
        vec![vec![6000, 4000], vec![700, 1500, 600]],
        // The very first batch of a log.
        vec![vec![300, 1000]],
    ] {
        let (before, last, records, _) = write(&batches);
        let synced: usize = batches[..batches.len() - 1].iter().map(Vec::len).sum();
        let mut sectors = Vec::new();
        for write in &last.writes {
            let (start, end) = (write.offset as usize, write.offset as usize + write.bytes.len());
            let mut at = start;
            while at < end {
                let next = ((at / SECTOR + 1) * SECTOR).min(end);
                let used = write.bytes[at - start..next - start].iter().any(|byte| *byte != 0);
                if used {
                    sectors.push((write.segment, at, write.bytes.slice(at - start..next - start)));
                }
                at = next;
            }
        }
        assert!(sectors.len() <= 14, "{} sectors", sectors.len());
        for subset in 0..1u32 << sectors.len() {
            let mut disk = before.clone();
            for (_, (segment, at, bytes)) in sectors.iter().enumerate().filter(|(n, _)| subset >> n & 1 == 1)
            {
                disk.write(*segment, *at, bytes);
            }
            judge_landing(&disk, synced, &records, &format!("subset {subset:b}"));
        }
    }
}

#[test]
fn writing_goes_on_after_a_torn_batch_and_its_leftovers_stay_harmless() {
    let (before, last, records, _) = write(&[vec![100, 300], vec![700, 40, 1100, 900, 10]]);
    let end = last.writes[0].bytes.len();
    for hole in (0..end).step_by(SECTOR) {
        let mut disk = before.clone();
        let write = &last.writes[0];
        let mut torn = write.bytes.to_vec();
        torn[hole..(hole + SECTOR).min(end)].fill(0);
        disk.write(write.segment, write.offset as usize, &torn);
        let (found, verdict) = disk.recover();
        let (Verdict::Torn { tail, .. } | Verdict::Clean { tail }) = verdict else { panic!("{verdict:?}") };
        let mut writer = Writer::new(CONFIG, tail);
        for round in 0..3 {
            writer.append(1, 3, 100 + round, 9, &[&body(round, 200)]);
            let append = writer.take(WallTime(6)).unwrap();
            disk.apply(&append);
            writer.synced(append.batch);
            let (again, verdict) = disk.recover();
            assert!(!matches!(verdict, Verdict::Corrupt { .. }), "hole {hole}, round {round}: {verdict:?}");
            assert_eq!(again[..found.len()], records[..found.len()]);
            assert_eq!(again.len(), found.len() + round as usize + 1, "hole {hole}, round {round}");
        }
    }
}

#[test]
fn every_flipped_byte_below_the_watermark_is_reported_and_no_wrong_byte_is_served() {
    // More than 256 KiB of records over many segments; then a watermark, then one unsynced batch.
    let batches: Vec<Vec<usize>> = (0..60).map(|n| vec![100 + n * 13, 3000, 17, 1500 + n]).collect();
    let (mut disk, last, records, mut writer) = write(&batches);
    disk.apply(&last);
    writer.synced(last.batch);
    writer.idle_watermark();
    let watermark = writer.take(WallTime(5)).unwrap();
    let end = Position { segment: watermark.writes[0].segment, offset: watermark.writes[0].offset };
    disk.apply(&watermark);
    let bytes: usize = records.iter().map(|(_, body)| body.len()).sum();
    assert!(bytes >= 256 << 10, "{bytes}");

    let mut flipped = 0;
    for (segment, file) in &disk.0 {
        // Only this segment and what follows it are read anew for each flip: what lies before is untouched.
        let first = segment.saturating_sub(1).max(1);
        let mut window = Disk(disk.0.range(first..=segment + 1).map(|(n, f)| (*n, f.clone())).collect());
        let used = used_bytes(&disk, *segment, end);
        assert!(used <= file.len());
        let expected: Vec<(u64, Vec<u8>)> = window.recover().0;
        for at in 0..used {
            let mask = 1 << (at % 8);
            window.0.get_mut(segment).unwrap()[at] ^= mask;
            let (found, verdict) = window.recover();
            assert!(matches!(verdict, Verdict::Corrupt { .. }), "segment {segment} byte {at}: {verdict:?}");
            assert!(
                found.len() <= expected.len() && found == expected[..found.len()],
                "segment {segment} byte {at}"
            );
            window.0.get_mut(segment).unwrap()[at] ^= mask;
            flipped += 1;
        }
    }
    assert!(flipped >= 256 << 10, "{flipped}");
}

/// Bytes of a segment that hold header or records, up to the watermark.
fn used_bytes(disk: &Disk, segment: u32, end: Position) -> usize {
    if segment == end.segment {
        return end.offset as usize;
    }
    let file = &disk.0[&segment];
    let mut at = SEGMENT_HEADER_BYTES as usize;
    while let Some(found) = record::read(record::Home { log_id: CONFIG.log_id, segment }, &file[at..]) {
        at += found.bytes;
    }
    at
}

#[test]
fn old_records_of_a_recycled_segment_are_not_records() {
    let (mut disk, last, records, mut writer) = write(&[vec![100; 20], vec![50; 3]]);
    disk.apply(&last);
    writer.synced(last.batch);
    // The same file bytes come back under a later number, with a new header in front.
    let stale = disk.0[&1].clone();
    disk.0.insert(2, stale);
    let (found, verdict) = disk.recover();
    assert_eq!(found, records);
    assert!(!matches!(verdict, Verdict::Corrupt { .. }), "{verdict:?}");
    while writer.active_segment() == 1 {
        writer.append(1, 3, 500, 9, &[&body(1, 900)]);
    }
    let append = writer.take(WallTime(6)).unwrap();
    disk.apply(&append);
    let (found, verdict) = disk.recover();
    assert!(found.len() > records.len());
    assert!(!matches!(verdict, Verdict::Corrupt { .. }), "{verdict:?}");
}

#[test]
fn a_message_that_looks_like_a_batch_record_proves_nothing() {
    // A client knows everything but the log's name; its message is torn by a crash.
    let forge = |log_id| {
        let mut forged = Vec::new();
        let label = record::Label { kind: record::KIND_BATCH, shard: 0, index: 0, epoch: 0 };
        record::put(&mut forged, record::Home { log_id, segment: 1 }, 0, label, &[&99u64.to_be_bytes()]);
        let mut writer = Writer::new(CONFIG, Tail::fresh());
        let mut disk = Disk::default();
        for body in [&[7; 64][..], &forged] {
            let place = writer.append(1, 3, 1, 1, &[body]);
            let append = writer.take(WallTime(1)).unwrap();
            disk.apply(&append);
            writer.synced(append.batch);
            disk.0.get_mut(&1).unwrap()[place.offset as usize - 1] ^= u8::from(body == forged);
        }
        disk.recover().1
    };
    assert!(matches!(forge(CONFIG.log_id ^ 1), Verdict::Torn { .. }));
    assert!(
        matches!(forge(CONFIG.log_id), Verdict::Corrupt { .. }),
        "the trick works for who knows the name"
    );
}

#[test]
fn a_missing_a_swapped_and_a_foreign_segment_are_corruption() {
    let batches: Vec<Vec<usize>> = (0..12).map(|_| vec![3000, 1500]).collect();
    let (mut disk, last, _, _) = write(&batches);
    disk.apply(&last);
    assert!(disk.0.len() >= 4);
    let mut missing = disk.clone();
    missing.0.remove(&2);
    let mut swapped = disk.clone();
    let two = swapped.0[&2].clone();
    let three = swapped.0.insert(3, two).unwrap();
    swapped.0.insert(2, three);
    let mut shortened = disk.clone();
    shortened.0.get_mut(&2).unwrap().truncate(6000);
    for (what, disk) in [("missing", missing), ("swapped", swapped), ("shortened", shortened)] {
        let (_, verdict) = disk.recover();
        assert!(matches!(verdict, Verdict::Corrupt { .. }), "{what}: {verdict:?}");
    }
    let mut recovery = Recovery::new(Config { log_id: 8, ..CONFIG }, disk.0.keys().copied().collect());
    let mut seen = 0;
    for sequence in recovery.order().to_vec() {
        recovery.segment(sequence, &disk.0[&sequence], &mut |_| seen += 1);
    }
    assert_eq!(seen, 0);
    assert!(matches!(recovery.finish(), Verdict::Corrupt { .. }));
}

proptest! {
    #[test]
    fn recovery_gives_back_exactly_what_was_synced(
        batches in prop::collection::vec(prop::collection::vec(0usize..5000, 1..6), 1..12),
        cut in 0.0f64..1.0,
    ) {
        let (before, last, records, _) = write(&batches);
        let synced: usize = batches[..batches.len() - 1].iter().map(Vec::len).sum();
        let mut disk = before;
        let total: usize = last.writes.iter().map(|write| write.bytes.len()).sum();
        let mut left = (total as f64 * cut) as usize;
        for write in &last.writes {
            let part = left.min(write.bytes.len());
            disk.write(write.segment, write.offset as usize, &write.bytes[..part]);
            left -= part;
        }
        judge_landing(&disk, synced, &records, "prefix");
    }
}
