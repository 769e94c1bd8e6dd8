//! Words of the command line: durations, sizes, times; and times back into words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use swarmmq_protocol::{admin::Order, frame::StartAt, time::WallTime};

/// `5`, `1.5s`, `200ms`, `2m`, `1h`: plain numbers are seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no duration, e.g. 5, 200ms, 1h"))?;
    let seconds = match unit {
        "" | "s" => number,
        "ms" => number / 1000.0,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return Err(format!("{unit:?} is no unit of time: ms, s, m, h, d")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is no duration"))
}

/// `1024`, `1KiB`, `8MiB`: plain numbers are bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no size, e.g. 1024, 16KiB"))?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(format!("{unit:?} is no unit of size: KiB, MiB, GiB")),
    };
    number.checked_shl(shift).filter(|bytes| bytes >> shift == number).ok_or(format!("{text:?} is too large"))
}

/// `name=value`.
pub(crate) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is no header: write name=value")),
    }
}

/// `total`, `key` or `none`.
pub(crate) fn order(text: &str) -> Result<Order, String> {
    Order::parse(text).ok_or_else(|| format!("{text:?} is no order: total, key, none"))
}

/// `start`, `end`, `-1h` (so long ago), seconds since 1970, or RFC 3339 in UTC.
pub(crate) fn start(text: &str) -> Result<StartAt, String> {
    match text {
        "start" => return Ok(StartAt::Oldest),
        "end" => return Ok(StartAt::End),
        _ => {}
    }
    if let Some(ago) = text.strip_prefix('-') {
        let ago = duration(ago)?;
        return Ok(StartAt::Time(WallTime(now().0.saturating_sub(ago.as_millis() as u64))));
    }
    if let Some(seconds) = text.parse::<f64>().ok().filter(|seconds| (0.0..1e15).contains(seconds)) {
        return Ok(StartAt::Time(WallTime((seconds * 1000.0) as u64)));
    }
    parse_rfc3339(text).map(StartAt::Time).ok_or_else(|| {
        format!("{text:?} is no place to start: start, end, -1h, or a time like 2026-01-31T12:00:00Z")
    })
}

/// The wall clock.
pub(crate) fn now() -> WallTime {
    WallTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
}

/// Days since 1970 of a date, after "chrono-Compatible Low-Level Date Algorithms" (Hinnant).
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

/// `2026-01-31T12:00:00.123Z`.
pub(crate) fn rfc3339(time: WallTime) -> String {
    let (seconds, millis) = (time.0 / 1000, time.0 % 1000);
    let (year, month, day) = date_of((seconds / 86_400) as i64);
    let of_day = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

fn parse_rfc3339(text: &str) -> Option<WallTime> {
    let (date, clock) = text.split_once(['T', 't', ' '])?;
    let (clock, east_of_utc_s) = match clock.find(['Z', 'z', '+', '-']) {
        Some(at) if clock[at..].eq_ignore_ascii_case("z") => (&clock[..at], 0),
        Some(at) => {
            let (hours, minutes) = clock[at + 1..].split_once(':')?;
            let seconds = number(hours, 23)? * 3600 + number(minutes, 59)? * 60;
            (&clock[..at], if clock[at..].starts_with('-') { -seconds } else { seconds })
        }
        None => return None,
    };
    let (year, rest) = date.split_once('-')?;
    let (month, day) = rest.split_once('-')?;
    let (year, month, day) = (number(year, 9999)?, number(month, 12)?, number(day, 31)?);
    let days = days_of(year, month, day);
    if date_of(days) != (year, month, day) {
        return None;
    }
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let (hour, rest) = whole.split_once(':')?;
    let (minute, second) = rest.split_once(':')?;
    let seconds = number(hour, 23)? * 3600 + number(minute, 59)? * 60 + number(second, 60)?;
    if fraction.is_empty() || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let millis = (format!("0.{fraction}").parse::<f64>().ok()? * 1000.0).floor() as i64;
    u64::try_from((days * 86_400 + seconds - east_of_utc_s) * 1000 + millis).ok().map(WallTime)
}

/// Digits only, at most `max`.
fn number(text: &str, max: i64) -> Option<i64> {
    if text.is_empty() || !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|number| *number <= max)
}

/// HOST:PORT, or several with commas.
pub(crate) fn servers(text: &str) -> Result<Vec<String>, String> {
    let servers: Vec<String> = text.split(',').map(|server| server.trim().to_owned()).collect();
    for server in &servers {
        let valid = server
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
        if !valid {
            return Err(format!("{server:?} is no server: write HOST:PORT, several with commas"));
        }
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert!(duration("5 parsecs").is_err() && duration("").is_err() && duration("-1").is_err());
        assert_eq!(bytes("16KiB"), Ok(16_384));
        assert_eq!(bytes("7"), Ok(7));
        assert!(bytes("1kb").is_err() && bytes("99999999999GiB").is_err());
    }

    #[test]
    fn times_are_written_and_read_back() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_505_445_678, "2026-11-24T07:30:45.678Z"),
        ] {
            assert_eq!(rfc3339(WallTime(millis)), text);
            assert_eq!(start(text), Ok(StartAt::Time(WallTime(millis))));
        }
        assert_eq!(start("2000-02-29T00:00:00Z"), Ok(StartAt::Time(WallTime(951_782_400_000))));
        assert_eq!(start("start"), Ok(StartAt::Oldest));
        assert_eq!(start("2000-02-29T02:00:00+02:00"), Ok(StartAt::Time(WallTime(951_782_400_000))));
        assert_eq!(start("1795505445"), Ok(StartAt::Time(WallTime(1_795_505_445_000))));
        let Ok(StartAt::Time(ago)) = start("-1h") else { panic!("-1h is a time") };
        assert!((3_599_000..3_700_000).contains(&(now().0 - ago.0)));
        let bad = [
            "yesterday",
            "nan",
            "2000-13-01T00:00:00Z",
            "2001-02-29T00:00:00Z",
            "2000-02-29T00:00:00",
            "-",
            "",
        ];
        for bad in bad {
            assert!(start(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn servers_are_hosts_with_ports() {
        assert_eq!(servers("a:1, [::1]:7420"), Ok(vec!["a:1".to_owned(), "[::1]:7420".to_owned()]));
        for bad in ["", "a", "a:", ":1", "a:0", "a:70000", "a:1,"] {
            assert!(servers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_have_a_name_and_a_value() {
        assert_eq!(header("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(header("a").is_err() && header("=b").is_err());
    }
}
