//! The only source of chance: small seeded generators, one per purpose, so that more faults do not change the workload.

/// What a generator is for. Each purpose draws its own numbers from the same seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// What goes wrong, and when.
    Faults,
    /// What clients send and how applications behave.
    Workload,
    /// How long things take.
    Scheduling,
    /// Identities, nonces, salts.
    Entropy,
    /// Which part of a write reached the disk.
    Disk,
}

/// xoshiro256**, seeded through SplitMix64.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The generator of `seed` for one purpose.
    pub fn new(seed: u64, stream: Stream) -> Self {
        let mut state = seed ^ (stream as u64 + 1).wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self([0; 4].map(|_: u64| split_mix(&mut state)))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// From `low` up to but not including `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low)
    }

    /// True so many times of a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// Random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let bits = self.bits().to_le_bytes();
            chunk.copy_from_slice(&bits[..chunk.len()]);
        }
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_one_seed_differ_and_repeat() {
        let draw = |stream| Rng::new(7, stream).bits();
        assert_eq!(draw(Stream::Faults), draw(Stream::Faults));
        assert_ne!(draw(Stream::Faults), draw(Stream::Workload));
    }

    #[test]
    fn numbers_stay_below_their_bound() {
        let mut rng = Rng::new(1, Stream::Disk);
        assert!((0..1000).all(|_| rng.below(3) < 3 && (5..9).contains(&rng.between(5, 9))));
    }
}
