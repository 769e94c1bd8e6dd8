//! What the disk itself can do, measured in the same run as what is compared with it.

use std::{fs::File, io::Write, path::Path, time::Instant};

const STEP_BYTES: usize = 1 << 20;
const STEPS: usize = 1024;

/// Bytes per second of a sequential write of 1 GiB in steps of 1 MiB with one `fdatasync` at the end.
pub(super) fn sequential_write(directory: &Path) -> Result<f64, String> {
    let path = directory.join("disk");
    let written = write(&path).map_err(|error| format!("cannot write {}: {error}", path.display()));
    // Also after a failure: a disk that is full stays full otherwise.
    let removed = std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()));
    written.and_then(|rate| removed.map(|()| rate))
}

fn write(path: &Path) -> std::io::Result<f64> {
    // No zeros: those are cheaper on some disks than what is sealed.
    let step: Vec<u8> = (0..STEP_BYTES).map(|at| (at.wrapping_mul(2_654_435_761) >> 7) as u8).collect();
    let mut file = File::create(path)?;
    let began = Instant::now();
    for _ in 0..STEPS {
        file.write_all(&step)?;
    }
    file.sync_data()?;
    Ok((STEP_BYTES * STEPS) as f64 / began.elapsed().as_secs_f64())
}
