//! Who tries too often: failed attempts to authenticate, by the place that they come from.
//!
//! Five failures within a second, then that place is not listened to: for a second, and each failure after that
//! doubles it, up to a minute. A success makes everything good, and so do ten quiet minutes. The table is bounded.
//!
//! Absent here: what an attempt is, and clocks. Loopback is a place like others.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::time::Instant;

/// Failures of one place that are looked at within a second.
const FAILURES_MAX: u32 = 5;
/// Over which failures are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// For so long nobody listens at first...
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// ...and for so long at last.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After so long without a failure everything is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Places that are remembered. When there are more, the one that failed longest ago is forgotten.
const SOURCES_MAX: usize = 4096;

/// Where a connection comes from: an IPv6 address, or an IPv4 address mapped into one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(pub [u8; 16]);

impl Source {
    /// Of an IPv4 address.
    pub fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The part of it that one attacker has: of IPv6, a network of 64 bits.
    fn network(self) -> Self {
        let Self(mut bytes) = self;
        if self.as_v4().is_none() && bytes[..8] != [0; 8] {
            bytes[8..].fill(0);
        }
        Self(bytes)
    }

    fn as_v4(self) -> Option<[u8; 4]> {
        (self.0[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])
            .then(|| [self.0[12], self.0[13], self.0[14], self.0[15]])
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some([a, b, c, d]) = self.as_v4() {
            return write!(f, "{a}.{b}.{c}.{d}");
        }
        for (at, pair) in self.0.chunks_exact(2).enumerate() {
            let colon = if at > 0 { ":" } else { "" };
            write!(f, "{colon}{:x}", u16::from_be_bytes([pair[0], pair[1]]))?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Tries {
    /// Failures since then.
    since: Instant,
    failures: u32,
    last: Instant,
    closed_until: Instant,
    /// The next pause; zero before the first.
    pause: Duration,
}

/// Failed attempts of all places.
#[derive(Debug, Default)]
pub struct Guard {
    tries: BTreeMap<Source, Tries>,
}

impl Guard {
    /// Whether an attempt from `source` is looked at now.
    pub fn listens_to(&self, now: Instant, source: Source) -> bool {
        self.tries.get(&source.network()).is_none_or(|tries| tries.closed_until <= now)
    }

    /// An attempt from `source` that was looked at failed. Cost: O(log places), and O(places) when the table is full.
    pub fn failed(&mut self, now: Instant, source: Source) {
        let source = source.network();
        if !self.tries.contains_key(&source) && self.tries.len() >= SOURCES_MAX {
            self.forget_one(now);
        }
        let tries = self.tries.entry(source).or_insert(Tries {
            since: now,
            failures: 0,
            last: now,
            closed_until: Instant(0),
            pause: Duration::ZERO,
        });
        if now.since(tries.last) >= FORGET_AFTER {
            tries.pause = Duration::ZERO;
        }
        if now.since(tries.since) >= WINDOW {
            (tries.since, tries.failures) = (now, 0);
        }
        tries.failures += 1;
        tries.last = now;
        // Who was not listened to before has used up its patience.
        if tries.failures >= FAILURES_MAX || !tries.pause.is_zero() {
            tries.pause = (tries.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            tries.closed_until = now + tries.pause;
        }
    }

    /// An attempt from `source` succeeded.
    pub fn succeeded(&mut self, source: Source) {
        self.tries.remove(&source.network());
    }

    fn forget_one(&mut self, now: Instant) {
        self.tries.retain(|_, tries| now.since(tries.last) < FORGET_AFTER);
        if self.tries.len() >= SOURCES_MAX
            && let Some(oldest) =
                self.tries.iter().min_by_key(|(_, tries)| tries.last).map(|(source, _)| *source)
        {
            self.tries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Source = Source([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);

    fn at(ms: u64) -> Instant {
        Instant(1_000_000_000 + ms * 1_000_000)
    }

    #[test]
    fn five_failures_in_a_second_are_looked_at_and_then_nobody_listens_twice_as_long_each_time() {
        let mut guard = Guard::default();
        for ms in 0..5 {
            assert!(guard.listens_to(at(ms), HERE));
            guard.failed(at(ms), HERE);
        }
        let mut now = 4;
        for pause in [1, 2, 4, 8, 16, 32, 60, 60].map(|seconds| seconds * 1000) {
            assert!(!guard.listens_to(at(now + pause - 1), HERE), "{pause}");
            now += pause;
            assert!(guard.listens_to(at(now), HERE), "{pause}");
            guard.failed(at(now), HERE);
        }
    }

    #[test]
    fn ten_thousand_guesses_take_more_than_a_week() {
        let (mut guard, mut now, mut looked_at) = (Guard::default(), 0, 0);
        while looked_at < 10_000 {
            if guard.listens_to(at(now), HERE) {
                guard.failed(at(now), HERE);
                looked_at += 1;
            }
            now += 100;
        }
        assert!(now > 6 * 24 * 3_600_000, "{now} ms");
    }

    #[test]
    fn a_person_who_mistypes_now_and_then_is_always_listened_to() {
        let mut guard = Guard::default();
        for try_ in 0..1000 {
            let now = at(try_ * 260);
            assert!(guard.listens_to(now, HERE));
            guard.failed(now, HERE);
        }
    }

    #[test]
    fn a_success_makes_good_and_so_do_ten_quiet_minutes() {
        let mut guard = Guard::default();
        let exhaust = |guard: &mut Guard, from: u64| (0..5).for_each(|ms| guard.failed(at(from + ms), HERE));
        exhaust(&mut guard, 0);
        guard.succeeded(HERE);
        assert!(guard.listens_to(at(5), HERE));
        exhaust(&mut guard, 10);
        guard.failed(at(700_000), HERE);
        assert!(guard.listens_to(at(700_000), HERE), "as if it were the first");
    }

    #[test]
    fn others_are_listened_to_and_one_network_is_one_place() {
        let mut guard = Guard::default();
        let of = |last| Source([0x20, 1, 0xd, 0xb8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, last]);
        (0..5).for_each(|last| guard.failed(at(0), of(last)));
        assert!(!guard.listens_to(at(1), of(77)));
        assert!(guard.listens_to(at(1), HERE) && guard.listens_to(at(1), Source::v4([10, 0, 0, 2])));
        assert!(guard.listens_to(at(1), Source([0x20, 1, 0xd, 0xb8, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1])));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_failed_longest_ago() {
        let mut guard = Guard::default();
        (0..5).for_each(|ms| guard.failed(at(ms), HERE));
        for other in 0..SOURCES_MAX as u64 * 2 {
            let [.., a, b, c] = other.to_be_bytes();
            guard.failed(at(10 + other / 100), Source::v4([11, a, b, c]));
            if other == 100 {
                guard.failed(at(11), HERE);
            }
        }
        assert_eq!(guard.tries.len(), SOURCES_MAX);
        assert!(guard.listens_to(at(100), HERE), "it was forgotten for others that failed later");
    }

    #[test]
    fn sources_read_like_addresses() {
        assert_eq!(HERE.to_string(), "10.0.0.1");
        assert_eq!(Source([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]).to_string(), "0:0:0:0:0:0:0:1");
    }
}
