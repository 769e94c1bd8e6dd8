//! Which shard takes a message that any shard may take.
//!
//! Only a matter of speed: once chosen, a message stays with its shard whatever happens. What a shard costs is the time
//! from here to its answer, as this session measured it, or the age of what waits there, if that is more: so a shard
//! whose leader stops answering is left before its first answer is late. Fast to believe worse, slow to believe better.
//! A shard that is left gets single messages now and then, the rarer the more each one costs.
//!
//! Source of the cost: "peak EWMA", as in the load balancers of Finagle and Linkerd.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    id::ShardId,
    policy::{Policy, mix},
    time::Instant,
};

/// Messages to one shard before the next one has its turn: what goes together is stored together.
const RUN: u32 = 32;
/// As good as the best one is who costs at most a fifth more...
const SAME_SHARE: u64 = 5;
/// ...or so much, in microseconds: less than that is noise.
const SAME_US: u64 = 1_000;
/// Where two are drawn, those that cost this many times as much as the best one are left out.
const OUTLIER_FACTOR: u64 = 4;
/// Time in which a shard's past weighs half against one new and better answer.
const MEMORY_US: u64 = 2_000_000;
/// A shard that was left gets a message every so many times what it costs...
const PROBE_FACTOR: u64 = 10;
/// ...within these bounds, in microseconds.
const PROBE_US: RangeInclusive<u64> = 100_000..=10_000_000;

/// Of a session's messages one in so many goes to a shard that was left, however many those are: of a hundred not one is slow for it...
const PROBE_SHARE: u32 = 250;
/// ...but a session that sends little still learns.
const PROBE_PAUSE: Duration = Duration::from_secs(10);

/// What of a session waits in one shard.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    /// Messages.
    pub(super) messages: usize,
    /// Since when the first of them does.
    pub(super) since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// Time to an answer, in microseconds; `None`: not known yet.
    level_us: Option<u64>,
    sampled_at: Instant,
    probe_at: Instant,
}

impl Standing {
    fn take(&mut self, now: Instant, took_us: u64) {
        let dt = us(now.since(self.sampled_at));
        self.sampled_at = now;
        self.level_us = Some(match self.level_us {
            None => took_us,
            Some(level) if took_us >= level => (level + 3 * took_us) / 4,
            Some(level) => {
                let gain = level - took_us;
                level
                    - (gain / 4).max((u128::from(gain) * u128::from(dt) / u128::from(dt + MEMORY_US)) as u64)
            }
        });
    }
}

fn us(time: Duration) -> u64 {
    time.as_micros() as u64
}

/// The choice of one session.
#[derive(Clone, Debug)]
pub struct Spread {
    policy: Policy,
    shards: Vec<Standing>,
    /// The shard whose turn it is, for how many more messages, and beyond which cost it has no turn any more.
    at: usize,
    left: u32,
    bearable_us: u64,
    turn: u64,
    chance: u64,
    /// Since the last message to a shard that was left.
    since_probe: u32,
    probed_at: Instant,
}

impl Spread {
    /// Over one shard as yet; `seed` of chance.
    pub fn new(seed: u64) -> Self {
        let (policy, shards) = (Policy::default(), vec![Standing::default()]);
        Self {
            policy,
            shards,
            at: 0,
            left: 0,
            bearable_us: 0,
            turn: seed >> 1,
            chance: seed,
            since_probe: PROBE_SHARE,
            probed_at: Instant(0),
        }
    }

    /// Over so many shards; the first turn is anybody's, so that not all sessions begin alike.
    pub(super) fn set_shards(&mut self, count: u32) {
        let count = count.max(1) as usize;
        if self.shards.len() != count {
            self.shards.resize(count, Standing::default());
            (self.at, self.left) = ((self.chance % count as u64) as usize, 0);
        }
    }

    /// How it chooses from now on. What was measured stays.
    pub fn set_policy(&mut self, policy: Policy) {
        if self.policy != policy {
            (self.policy, self.left) = (policy, 0);
        }
    }

    /// A shard has another leader: what was measured says nothing any more.
    pub(super) fn moved(&mut self, shard: ShardId) {
        if let Some(standing) = self.shards.get_mut(shard.0 as usize) {
            *standing = Standing::default();
        }
    }

    /// A shard has answered after so long. Refusals that may pass are no answers: what was refused waits on.
    pub(super) fn answered(&mut self, now: Instant, shard: ShardId, took: Duration) {
        if let Some(standing) = self.shards.get_mut(shard.0 as usize) {
            standing.take(now, us(took));
        }
    }

    /// Where the next message goes. `waiting`: what of this session waits in a shard. Cost: O(shards) once per run.
    pub(super) fn choose(&mut self, now: Instant, waiting: impl Fn(ShardId) -> Waiting) -> ShardId {
        let count = self.shards.len();
        if !self.policy.is_adaptive() {
            self.turn += 1;
            let run = self.turn / u64::from(RUN);
            let number = if self.policy == Policy::StaticHash { mix(run) } else { run };
            return ShardId((number % count as u64) as u32);
        }
        self.since_probe = self.since_probe.saturating_add(1);
        let of = |shard: usize| waiting(ShardId(shard as u32));
        if self.left > 0 && self.cost_us(now, self.at, of(self.at)).is_some_and(|us| us <= self.bearable_us) {
            self.left -= 1;
            return ShardId(self.at as u32);
        }
        let waits: Vec<Waiting> = (0..count).map(of).collect();
        let costs: Vec<Option<u64>> =
            (0..count).map(|shard| self.cost_us(now, shard, waits[shard])).collect();
        let at = self.at;
        let in_turn = |step: usize| (at + step) % count;
        // One message each to shards that nothing is known of...
        let fresh =
            (1..=count).map(in_turn).find(|shard| costs[*shard].is_none() && waits[*shard].messages == 0);
        let best = costs.iter().flatten().min().copied();
        let limit = best.map_or(u64::MAX, |best| match self.policy {
            Policy::P2cEwma => OUTLIER_FACTOR * (best + SAME_US),
            _ => best + (best / SAME_SHARE).max(SAME_US),
        });
        let is_left = |shard: &usize| costs[*shard].is_some_and(|cost| cost > limit);
        // ...and to such that were left, to hear whether they are better.
        let may_probe = self.since_probe >= PROBE_SHARE || now.since(self.probed_at) >= PROBE_PAUSE;
        let probe = (1..=count).map(in_turn).find(|shard| {
            may_probe && is_left(shard) && waits[*shard].messages == 0 && self.shards[*shard].probe_at <= now
        });
        if let Some(shard) = fresh.or(probe) {
            if fresh.is_none() {
                (self.since_probe, self.probed_at) = (0, now);
            }
            let cost = costs[shard].unwrap_or(0);
            let pause = (cost * PROBE_FACTOR).clamp(*PROBE_US.start(), *PROBE_US.end());
            self.chance = mix(self.chance.wrapping_add(1));
            let jittered = pause * (900 + self.chance % 200) / 1000;
            self.shards[shard].probe_at = now + Duration::from_micros(jittered);
            (self.at, self.left) = (shard, 0);
            return ShardId(shard as u32);
        }
        let equal = |shard: &usize| costs[*shard].is_some_and(|cost| cost <= limit);
        let chosen = match self.policy {
            Policy::P2cEwma => {
                let drawable: Vec<usize> = (0..count).filter(equal).collect();
                self.better_of_two(&drawable, &costs, &waits).unwrap_or_else(|| in_turn(1))
            }
            _ => (1..=count).map(in_turn).find(equal).unwrap_or_else(|| in_turn(1)),
        };
        self.at = chosen;
        self.left = RUN - 1;
        self.bearable_us = costs[chosen].map_or(u64::MAX, |cost| 2 * (cost + SAME_US));
        ShardId(chosen as u32)
    }

    fn better_of_two(&mut self, among: &[usize], costs: &[Option<u64>], waits: &[Waiting]) -> Option<usize> {
        let mut drawn = || {
            self.chance = mix(self.chance.wrapping_add(1));
            among.get((self.chance % among.len().max(1) as u64) as usize).copied()
        };
        let (one, other) = (drawn()?, drawn()?);
        let weight = |shard: usize| {
            costs[shard].unwrap_or(0) as u128 * (waits[shard].messages as u128 / u128::from(RUN) + 1)
        };
        Some(if weight(one) <= weight(other) { one } else { other })
    }

    /// What the next message to a shard would have to wait, in microseconds. `None`: nothing is known.
    fn cost_us(&self, now: Instant, shard: usize, waiting: Waiting) -> Option<u64> {
        let age = waiting.since.map(|since| us(now.since(since)));
        match (self.shards[shard].level_us, age) {
            (Some(level), age) => Some(level.max(age.unwrap_or(0))),
            (None, Some(age)) if age >= SAME_US => Some(age),
            (None, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARDS: usize = 16;

    /// Shards that answer after so long each, in microseconds, and a session that sends one message a millisecond.
    struct Bed {
        spread: Spread,
        answers_us: [u64; SHARDS],
        open: Vec<(usize, Instant, Instant)>,
        now: Instant,
        sent: [u32; SHARDS],
        late: u32,
    }

    impl Bed {
        fn new(policy: Policy) -> Self {
            let mut spread = Spread::new(7);
            spread.set_shards(SHARDS as u32);
            spread.set_policy(policy);
            let answers_us = [800; SHARDS];
            let (open, now, sent) = (Vec::new(), Instant(1_000_000_000), [0; SHARDS]);
            Self { spread, answers_us, open, now, sent, late: 0 }
        }

        /// Sends for so many milliseconds; counts what takes longer than a second.
        fn run(&mut self, millis: u64) {
            self.sent = [0; SHARDS];
            for _ in 0..millis {
                let spread = &mut self.spread;
                self.open.retain(|(shard, since, until)| {
                    if *until <= self.now {
                        spread.answered(self.now, ShardId(*shard as u32), self.now.since(*since));
                    }
                    *until > self.now
                });
                let open = &self.open;
                let shard = spread.choose(self.now, |shard| {
                    let of: Vec<Instant> = open
                        .iter()
                        .filter(|(at, ..)| *at == shard.0 as usize)
                        .map(|(_, at, _)| *at)
                        .collect();
                    Waiting { messages: of.len(), since: of.first().copied() }
                });
                let shard = shard.0 as usize;
                self.sent[shard] += 1;
                self.late += u32::from(self.answers_us[shard] > 1_000_000);
                let until = self.now + Duration::from_micros(self.answers_us[shard]);
                self.open.push((shard, self.now, until));
                self.now = self.now + Duration::from_millis(1);
            }
        }
    }

    #[test]
    fn every_policy_spreads_evenly_over_shards_that_are_equally_good() {
        for policy in Policy::ALL {
            let mut bed = Bed::new(policy);
            bed.run(32_000);
            assert!(bed.sent.iter().all(|sent| (900..3_200).contains(sent)), "{policy}: {:?}", bed.sent);
        }
    }

    #[test]
    fn a_shard_that_stops_answering_is_left_within_milliseconds_and_found_again() {
        for (policy, is_adaptive) in Policy::ALL.map(|policy| (policy, policy.is_adaptive())) {
            let mut bed = Bed::new(policy);
            bed.run(5_000);
            // One node of five leads three of sixteen shards, and takes two seconds for half a minute.
            for shard in [2, 7, 12] {
                bed.answers_us[shard] = 2_000_000;
            }
            bed.late = 0;
            bed.run(30_000);
            if is_adaptive {
                assert!(bed.late <= 30, "{policy}: {} of 30,000", bed.late);
            } else {
                assert!((4_500..6_800).contains(&bed.late), "{policy}: {} of 30,000", bed.late);
            }
            bed.answers_us = [800; SHARDS];
            bed.run(20_000);
            bed.run(16_000);
            // Of two the better one is taken, so what was slow comes back slower.
            let least = if policy == Policy::P2cEwma { 20 } else { 300 };
            assert!([2, 7, 12].iter().all(|shard| bed.sent[*shard] > least), "{policy}: {:?}", bed.sent);
        }
    }

    #[test]
    fn one_late_answer_is_soon_forgiven() {
        let mut bed = Bed::new(Policy::LeastCost);
        bed.run(2_000);
        bed.spread.answered(bed.now, ShardId(3), Duration::from_millis(30));
        bed.run(1_000);
        assert!(bed.sent[3] <= 8, "{:?}", bed.sent);
        bed.run(3_000);
        bed.run(3_000);
        assert!(bed.sent[3] > 60, "{:?}", bed.sent);
    }

    #[test]
    fn of_a_hundred_messages_not_one_is_slow_for_shards_that_were_left() {
        for policy in [Policy::LeastCost, Policy::P2cEwma] {
            let mut bed = Bed::new(policy);
            bed.run(2_000);
            for shard in [2, 7, 12] {
                bed.answers_us[shard] = 30_000;
            }
            bed.run(2_000);
            bed.run(20_000);
            let slow: u32 = [2, 7, 12].map(|shard| bed.sent[shard]).iter().sum();
            assert!((20..=100).contains(&slow), "{policy}: {slow} of 20,000");
        }
    }

    #[test]
    fn a_new_leader_is_tried_at_once_and_with_one_message() {
        let mut bed = Bed::new(Policy::LeastCost);
        bed.run(2_000);
        bed.answers_us[5] = 2_000_000;
        bed.run(3_000);
        bed.answers_us[5] = 800;
        bed.open.retain(|(shard, ..)| *shard != 5);
        bed.spread.moved(ShardId(5));
        bed.run(40);
        assert!((1..=2).contains(&bed.sent[5]) || bed.sent[5] == 33, "{:?}", bed.sent);
        bed.run(2_000);
        assert!(bed.sent[5] > 60, "{:?}", bed.sent);
    }

    #[test]
    fn a_burst_before_the_first_answer_goes_everywhere() {
        let mut spread = Spread::new(3);
        spread.set_shards(16);
        let mut sent = [0usize; 16];
        let now = Instant(1);
        for _ in 0..16 * 64 {
            let counts = sent;
            let shard = spread.choose(now, |shard| {
                let messages = counts[shard.0 as usize];
                Waiting { messages, since: (messages > 0).then_some(now) }
            });
            sent[shard.0 as usize] += 1;
        }
        assert!(sent.iter().all(|sent| (32..=97).contains(sent)), "{sent:?}");
    }
}
