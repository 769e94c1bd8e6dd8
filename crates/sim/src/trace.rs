//! What happened, step by step: a hash over everything, and the last steps in words.

use std::collections::VecDeque;

use swarmmq_engine::log::crc32c;

/// Steps that are kept for a report.
const KEPT: usize = 30;

/// One step.
#[derive(Clone, Copy, Debug)]
struct Step {
    at: u64,
    what: &'static str,
    numbers: [u64; 3],
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c] = self.numbers;
        write!(f, "{:>14.6} ms  {:<18} {a:>6} {b:>10} {c:>10x}", self.at as f64 / 1e6, self.what)
    }
}

/// The steps of one run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    steps: u64,
    last: VecDeque<Step>,
    keep: usize,
}

impl Trace {
    /// Keeps the last steps, or all of them.
    pub fn new(everything: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            steps: 0,
            last: VecDeque::new(),
            keep: if everything { usize::MAX } else { KEPT },
        }
    }

    /// Notes one step.
    pub fn step(&mut self, at: u64, what: &'static str, numbers: [u64; 3]) {
        let [a, b, c] = numbers;
        for number in [at, what.len() as u64, u64::from(what.as_bytes()[0]), a, b, c] {
            self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        self.steps += 1;
        if self.last.len() >= self.keep {
            self.last.pop_front();
        }
        self.last.push_back(Step { at, what, numbers });
    }

    /// Notes a step together with bytes: all of them count for the hash.
    pub fn bytes(&mut self, at: u64, what: &'static str, number: u64, bytes: &[u8]) {
        self.step(at, what, [number, bytes.len() as u64, u64::from(crc32c(bytes))]);
    }

    /// Equal for equal runs.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many steps there were.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The kept steps in words, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.last.iter().map(Step::to_string).collect()
    }
}
