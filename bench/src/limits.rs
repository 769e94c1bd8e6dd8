//! What the machine can do at most: a disk written in sequence, and loopback, both ways and one way.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    failure::{During, Failure, Outcome},
    measure::Latency,
    results::Limits,
};

const STEP_BYTES: usize = 16 << 20;
const BLOCK_BYTES: usize = 64 << 10;
const MESSAGE_BYTES: usize = 1024;

/// Measures; `scale` 1 takes a few seconds.
pub(crate) fn measure(directory: &Path, scale: f64) -> Outcome<Limits> {
    let (round_trip_us, round_trip_p99_us) = round_trips(Duration::from_secs(2).mul_f64(scale))?;
    Ok(Limits {
        disk_mb_per_s: disk(directory, (64.0 * scale).ceil() as usize)?,
        round_trip_us,
        round_trip_p99_us,
        loopback_mb_per_s: one_way(Duration::from_secs(2).mul_f64(scale))?,
    })
}

fn disk(directory: &Path, steps: usize) -> Outcome<f64> {
    let path = directory.join("limit");
    let mut file = File::create(&path).during(path.display())?;
    let step: Vec<u8> = (0..STEP_BYTES).map(|n| ((n * n) >> 7) as u8).collect();
    let began = Instant::now();
    for _ in 0..steps {
        file.write_all(&step).during("cannot write to the disk")?;
        file.sync_data().during("cannot sync the disk")?;
    }
    let seconds = began.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok((steps * STEP_BYTES) as f64 / 1e6 / seconds)
}

fn pair() -> Outcome<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    one.set_nodelay(true)?;
    other.set_nodelay(true)?;
    Ok((one, other))
}

fn round_trips(time: Duration) -> Outcome<(f64, f64)> {
    let (mut near, mut far) = pair()?;
    let echo = thread::spawn(move || {
        let mut message = [0; MESSAGE_BYTES];
        while far.read_exact(&mut message).and_then(|()| far.write_all(&message)).is_ok() {}
    });
    let mut latency = Latency::new();
    let mut message = [7; MESSAGE_BYTES];
    let began = Instant::now();
    while began.elapsed() < time {
        let sent = Instant::now();
        near.write_all(&message)?;
        near.read_exact(&mut message)?;
        latency.record_ns(sent.elapsed().as_nanos() as u64);
    }
    drop(near);
    echo.join().map_err(|_| Failure::broken("the echo panicked"))?;
    let report = latency.report();
    Ok((report.p50 * 1e3, report.p99 * 1e3))
}

fn one_way(time: Duration) -> Outcome<f64> {
    let (mut near, mut far) = pair()?;
    let sink = thread::spawn(move || {
        let mut block = vec![0; BLOCK_BYTES];
        let mut total = 0;
        while let Ok(count) = far.read(&mut block) {
            if count == 0 {
                break;
            }
            total += count;
        }
        total
    });
    let block = vec![7; BLOCK_BYTES];
    let began = Instant::now();
    while began.elapsed() < time {
        near.write_all(&block)?;
    }
    drop(near);
    let total = sink.join().map_err(|_| Failure::broken("the sink panicked"))?;
    Ok(total as f64 / 1e6 / began.elapsed().as_secs_f64())
}
