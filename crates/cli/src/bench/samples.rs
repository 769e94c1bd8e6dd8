//! The times of every message of a load test in a file, for whoever wants to know more than the totals tell: what was
//! during a fault, or second by second.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Plan, consume::Delivered, publish::Published};

/// Writes one line per message, ordered by producer and sequence.
///
/// Fails when the file cannot be written.
pub(super) fn write(
    file: &Path,
    plan: &Plan,
    published: &Published,
    delivered: &Delivered,
) -> std::io::Result<()> {
    // The clock that was measured with has no date: both are read at once.
    let date = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let started = date.saturating_sub(Duration::from_nanos(plan.now()));
    let mut output = BufWriter::new(File::create(file)?);
    for (producer, sequence, due, acknowledged) in published.times() {
        let came = delivered.times.get(&(producer, sequence)).copied();
        writeln!(output, "{}", line(started, due, acknowledged, came))?;
    }
    output.flush()
}

/// One message; all times in nanoseconds since `started`.
fn line(started: Duration, due: u64, acknowledged: Option<u64>, delivered: Option<u64>) -> String {
    let since = |time: Option<u64>| {
        time.map_or_else(|| "-".to_owned(), |time| (time.saturating_sub(due) / 1000).to_string())
    };
    let date = (started + Duration::from_nanos(due)).as_micros();
    format!("{date} {} {}", since(acknowledged), since(delivered))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_date_and_two_durations_in_microseconds() {
        let started = Duration::from_secs(1_700_000_000);
        assert_eq!(line(started, 2_000_000, Some(2_750_000), Some(4_000_900)), "1700000000002000 750 2000");
        assert_eq!(line(started, 0, None, None), "1700000000000000 - -");
    }
}
