//! Runs a target: its corpus first, then mutations of what went new ways.

use std::{
    alloc::System,
    collections::{HashMap, HashSet},
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::{Duration, Instant},
};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use crate::{mutate::mutate, rng::Rng, targets::Target};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What may be allocated for an input however small it is.
const ALLOCATED_BYTES_FREE: usize = 64 << 10;
/// Inputs that are kept while a run goes on.
const KEPT_MAX: usize = 4096;
/// Inputs of one target that are saved, and how long they may be.
const SAVED_MAX: usize = 160;
const SAVED_BYTES_MAX: usize = 600;
/// Attempts to make a finding smaller.
const SMALLER_TRIES: usize = 20_000;

/// What went wrong, and with what.
pub struct Finding {
    /// The input, made small.
    pub input: Vec<u8>,
    /// What the target said.
    pub what: String,
}

/// What came of a run.
pub struct Outcome {
    /// Executions.
    pub executions: u64,
    /// Ways that were told apart.
    pub ways: usize,
    /// Inputs replayed at the start.
    pub replayed: usize,
    /// The first thing that went wrong.
    pub finding: Option<Finding>,
}

/// How long a run goes on after the corpus was replayed.
pub enum Length {
    /// Not at all.
    Replay,
    /// So long.
    Time(Duration),
    /// So many executions.
    Executions(u64),
}

/// What it gives, or what its panic says.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic".into())
    })
}

/// Executes once: the mark, or what went wrong.
fn execute(target: &Target, input: &[u8]) -> Result<u64, String> {
    let region = Region::new(ALLOCATOR);
    let mark = caught(|| (target.run)(input))?;
    if let Some(per_byte) = target.allocated_per_byte {
        let (allocated, most) =
            (region.change().bytes_allocated, ALLOCATED_BYTES_FREE + per_byte * input.len());
        if allocated > most {
            return Err(format!(
                "{allocated} bytes were allocated for an input of {}; {most} may be",
                input.len()
            ));
        }
    }
    Ok(mark)
}

/// Where the corpus of a target lies: one input per line, in hex.
fn corpus_file(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(format!("{}.hex", target.name))
}

/// Every input that is replayed: the target's own seeds, then what was saved.
fn corpus(target: &Target) -> io::Result<Vec<Vec<u8>>> {
    let mut inputs = caught(target.seeds).map_err(io::Error::other)?;
    match fs::read_to_string(corpus_file(target)) {
        Ok(text) => {
            for line in text.lines() {
                let input = crate::targets::from_hex(line).ok_or_else(|| {
                    io::Error::other(format!("{}: a line is not hex", corpus_file(target).display()))
                })?;
                inputs.push(input);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(inputs)
}

/// Replays the corpus, then mutates for as long as `length` says.
///
/// * `save`: inputs that went new ways become the corpus.
pub fn run(target: &Target, seed: u64, length: &Length, save: bool) -> io::Result<Outcome> {
    let mut outcome = Outcome { executions: 0, ways: 0, replayed: 0, finding: None };
    let mut rng = Rng::new(seed);
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let mut marks = HashSet::new();
    for input in corpus(target)? {
        outcome.replayed += 1;
        outcome.executions += 1;
        match execute(target, &input) {
            Ok(mark) => {
                marks.insert(mark);
                kept.push(input);
            }
            Err(what) => {
                outcome.finding = Some(Finding { input, what });
                return Ok(outcome);
            }
        }
    }
    let until = match length {
        Length::Replay => None,
        Length::Time(time) => Some(Instant::now() + *time),
        Length::Executions(_) => Some(Instant::now() + Duration::from_secs(1 << 30)),
    };
    let executions_max = if let Length::Executions(count) = length { *count } else { u64::MAX };
    let mut input = Vec::new();
    // The clock costs more than many a decoder.
    while until.is_some_and(|until| !outcome.executions.is_multiple_of(64) || Instant::now() < until)
        && outcome.executions < executions_max
    {
        input.clear();
        input.extend_from_slice(&kept[rng.below(kept.len())]);
        let other = &kept[rng.below(kept.len())];
        mutate(&mut input, other, target.bytes_max, &mut rng);
        outcome.executions += 1;
        match execute(target, &input) {
            Ok(mark) => {
                if marks.insert(mark) {
                    if kept.len() < KEPT_MAX {
                        kept.push(input.clone());
                    } else {
                        let place = rng.below(kept.len());
                        kept[place].clone_from(&input);
                    }
                }
            }
            Err(what) => {
                let input = smaller(target, input, &mut rng);
                outcome.finding = Some(Finding { input, what });
                break;
            }
        }
    }
    outcome.ways = marks.len();
    if save {
        write_corpus(target, &kept)?;
    }
    Ok(outcome)
}

/// The shortest input of each way, up to a bound, beside the target's own seeds.
fn write_corpus(target: &Target, kept: &[Vec<u8>]) -> io::Result<()> {
    let seeds: HashSet<Vec<u8>> = (target.seeds)().into_iter().collect();
    let mut shortest: HashMap<u64, &Vec<u8>> = HashMap::new();
    for input in kept.iter().filter(|input| input.len() <= SAVED_BYTES_MAX && !seeds.contains(*input)) {
        let Ok(mark) = execute(target, input) else { continue };
        let best = shortest.entry(mark).or_insert(input);
        if input.len() < best.len() {
            *best = input;
        }
    }
    let mut inputs: Vec<&Vec<u8>> = shortest.into_values().collect();
    inputs.sort_by_key(|input| (input.len(), (*input).clone()));
    // Evenly over all lengths: the shortest alone say little.
    let step = inputs.len().div_ceil(SAVED_MAX).max(1);
    let lines: Vec<String> = inputs.into_iter().step_by(step).map(|input| to_hex(input)).collect();
    let file = corpus_file(target);
    fs::create_dir_all(file.parent().expect("it lies in a folder"))?;
    fs::write(file, lines.join("\n") + "\n")
}

/// The digits of bytes.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes pieces out as long as it still goes wrong.
fn smaller(target: &Target, mut input: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    for _ in 0..SMALLER_TRIES {
        if input.len() < 2 {
            break;
        }
        let mut less = input.clone();
        let from = rng.below(less.len());
        let count = 1 + rng.below((less.len() - from).min(1 + less.len() / 4));
        less.drain(from..from + count);
        if execute(target, &less).is_err() {
            input = less;
        }
    }
    input
}
