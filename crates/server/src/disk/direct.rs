//! Appends past the page cache (`O_DIRECT`): the disk takes bytes from our own buffer.
//!
//! Nobody reads the log again but whoever lags, so a copy of all of it in the kernel's memory is work for nothing: it was
//! the largest single cost of a node under load, and made a small synced append twice as dear. Such writes are of whole
//! blocks, so the last block of a log is written again with every batch until it is full. What was synced of it before is
//! written with the same bytes: a block that is torn by a power cut keeps them, whichever part of it is new.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;

/// What offsets, lengths and memory are multiples of: at least the logical block of any disk that is common.
pub(super) const BLOCK: usize = 4096;
/// Bytes of one write. The buffer that it is gathered in stays in the processor's cache.
const STEP: usize = 512 << 10;

/// The end of the log as it was written last.
#[derive(Debug, Default)]
struct End {
    segment: u32,
    /// Where its last block begins.
    block: u64,
    /// How much of that block is written.
    length: usize,
}

/// Writes whole blocks from a buffer of its own.
#[derive(Debug)]
pub(super) struct Direct {
    /// One block, of which the end's bytes are those that are written, then a step and the block that it ends in.
    memory: Vec<u8>,
    /// Where in `memory` a multiple of a block lies.
    aligned: usize,
    end: End,
}

impl Direct {
    pub(super) fn new() -> Self {
        let memory = vec![0; STEP + 2 * BLOCK];
        let aligned = memory.as_ptr().addr().wrapping_neg() % BLOCK;
        Self { memory, aligned, end: End::default() }
    }

    /// Opens a file for such writes; `None` where the file system does not know them.
    pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
        let flags = OFlags::DIRECT.bits().cast_signed();
        match File::options().write(true).custom_flags(flags).open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if is_unknown(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes `bytes` at `offset` of the segment and zeros up to the end of the last block. What lies before them in
    /// their first block is kept: known from the latest write, or read with `cached`.
    ///
    /// An error for which [`is_unknown`] holds says that this disk takes no such writes; others may have written a part.
    pub(super) fn write(
        &mut self,
        file: &File,
        cached: &File,
        segment: u32,
        offset: u32,
        bytes: &[u8],
    ) -> io::Result<()> {
        let before = offset as usize % BLOCK;
        let mut at = u64::from(offset) - before as u64;
        let known = (self.end.segment, self.end.block, self.end.length) == (segment, at, before);
        if before > 0 && !known {
            let head = self.span(0..before);
            cached.read_exact_at(&mut self.memory[head], at)?;
        }
        let mut held = before;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(STEP - held));
            rest = later;
            let filled = held + now.len();
            let whole = filled.next_multiple_of(BLOCK);
            let (body, padding, all) =
                (self.span(held..filled), self.span(filled..whole), self.span(0..whole));
            self.memory[body].copy_from_slice(now);
            self.memory[padding].fill(0);
            self.end = End::default();
            file.write_all_at(&self.memory[all], at)?;
            // The last block, if it is not full, is where the next write begins.
            let full = filled - filled % BLOCK;
            let tail = self.span(full..filled);
            self.memory.copy_within(tail, self.aligned);
            held = filled - full;
            at += full as u64;
            self.end = End { segment, block: at, length: held };
        }
        Ok(())
    }

    fn span(&self, range: Range<usize>) -> Range<usize> {
        self.aligned + range.start..self.aligned + range.end
    }
}

/// Whether an error says that direct writes are not to be had here, before anything was written.
pub(super) fn is_unknown(error: &io::Error) -> bool {
    matches!(
        rustix::io::Errno::from_io_error(error),
        Some(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_comes_in_whatever_pieces_lies_in_the_file_as_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        let length = 4 << 20;
        std::fs::write(&path, vec![7; length]).unwrap();
        let cached = File::open(&path).unwrap();
        let Some(file) = Direct::open(&path).unwrap() else {
            eprintln!("SKIPPED: the file system of the temporary directory knows no direct writes");
            return;
        };
        let mut direct = Direct::new();
        let mut expected = Vec::new();
        let sizes = [1, 4095, 4096, 100, 3996, 10_000, STEP, 1, STEP - 1, STEP + 1, 3 * STEP / 2, 5];
        for (round, size) in sizes.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..size).map(|n| (n * 31 + round) as u8).collect();
            direct.write(&file, &cached, 1, expected.len() as u32, &bytes).unwrap();
            expected.extend(bytes);
            if round % 3 == 2 {
                // Another life of the process: it has to look at what is there.
                direct = Direct::new();
            }
            let mut found = vec![0; expected.len()];
            cached.read_exact_at(&mut found, 0).unwrap();
            assert!(found == expected, "after {size} bytes");
        }
        let whole = std::fs::read(&path).unwrap();
        let end = expected.len().next_multiple_of(BLOCK);
        assert_eq!(whole.len(), length);
        assert!(whole[expected.len()..end].iter().all(|byte| *byte == 0), "zeros to the end of the block");
        assert!(whole[end..].iter().all(|byte| *byte == 7), "and nothing beyond");
    }

    #[test]
    fn two_segments_do_not_take_each_others_last_block() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["one", "two"].map(|name| {
            let path = dir.path().join(name);
            std::fs::write(&path, vec![0; 2 * BLOCK]).unwrap();
            (Direct::open(&path).unwrap(), File::open(&path).unwrap())
        });
        let mut direct = Direct::new();
        for (text, at) in [("ab", 0), ("cd", 2), ("ef", 4)] {
            for (segment, (file, cached)) in (1..).zip(&files) {
                let Some(file) = file else {
                    eprintln!("SKIPPED: the file system of the temporary directory knows no direct writes");
                    return;
                };
                let text = if segment == 1 { text.to_owned() } else { text.to_uppercase() };
                direct.write(file, cached, segment, at, text.as_bytes()).unwrap();
            }
        }
        let begins = files.map(|(_, cached)| {
            let mut found = [0; 7];
            cached.read_exact_at(&mut found, 0).unwrap();
            found
        });
        assert_eq!(begins, [*b"abcdef\0", *b"ABCDEF\0"]);
    }
}
