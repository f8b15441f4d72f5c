//! The loop: pick an input, mutate it, run the target, keep inputs with new behaviour, stop at the first failure.
//!
//! Invariant: the same seed, corpus and number of executions run the same inputs.

use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::mutate::mutate;
use crate::random::{Random, digest};
use crate::targets::{Target, Verdict};

/// Longest processor time that one input may take, of all threads together.
const MAX_TIME: Duration = Duration::from_secs(1);
/// Largest memory of the process, in bytes.
const MAX_MEMORY: u64 = 256 << 20;

/// When to stop, and whether to keep the corpus.
pub struct Limits {
    pub time: Duration,
    pub executions: u64,
    pub seed: u64,
    pub keeps: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(60), executions: u64::MAX, seed: 1, keeps: false }
    }
}

/// The counts of a run.
pub struct Report {
    pub executions: u64,
    pub bytes: u64,
    pub elapsed: Duration,
    pub corpus: usize,
    pub traits: usize,
    pub slowest: Duration,
    pub peak_memory: u64,
}

/// Run the target on one file.
pub fn run_file(target: &Target, path: &Path) -> Result<(), String> {
    let input = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let verdict = guarded(target, &input)?;
    println!("{}: {} traits, 0 failures", target.name, verdict.traits.len());
    Ok(())
}

/// Run the target until a limit is reached.
///
/// # Errors
/// The first failure: where its input was written, and what was wrong.
pub fn run(target: &Target, limits: &Limits) -> Result<Report, String> {
    let mut random = Random::new(limits.seed);
    let mut corpus = seeds(target);
    let mut seen: HashSet<u64> = HashSet::new();
    let start = Instant::now();
    let mut report = Report {
        executions: 0,
        bytes: 0,
        elapsed: Duration::ZERO,
        corpus: 0,
        traits: 0,
        slowest: Duration::ZERO,
        peak_memory: 0,
    };
    let seeded = corpus.len();
    let mut next_seed = 0;
    while report.executions < limits.executions.max(seeded as u64) && start.elapsed() < limits.time {
        let mut input = match corpus.get(next_seed).filter(|_| next_seed < seeded) {
            Some(seed) => seed.clone(),
            None => random.pick(&corpus).clone(),
        };
        if next_seed >= seeded {
            let head: Vec<u8> = input.iter().take(target.head).copied().collect();
            let other = random.pick(&corpus).clone();
            mutate(&mut input, &other, target.words, target.limit, &mut random);
            if random.below(8) > 0 {
                input.splice(..head.len().min(input.len()), head);
            }
        }
        let before = Instant::now();
        let verdict = guarded(target, &input)?;
        let took = before.elapsed();
        if took > MAX_TIME
            && let Some(busy) = processor_time(target, &input)?
            && busy > MAX_TIME
        {
            return Err(failure(target, &input, &format!("took {} ms", busy.as_millis())));
        }
        report.executions += 1;
        report.bytes += input.len() as u64;
        report.slowest = report.slowest.max(took);
        let is_new = verdict.traits.into_iter().fold(false, |is_new, mark| seen.insert(mark) | is_new);
        if next_seed >= seeded && is_new {
            corpus.push(input);
        }
        next_seed += 1;
    }
    if limits.keeps {
        keep_smallest(target, &corpus)?;
    }
    report.peak_memory = peak_memory();
    if report.peak_memory > MAX_MEMORY {
        return Err(format!("the process grew to {} MiB", report.peak_memory >> 20));
    }
    (report.elapsed, report.corpus, report.traits) = (start.elapsed(), corpus.len(), seen.len());
    Ok(report)
}

/// Run an input again for the processor time that it takes: the clock goes on while a busy machine runs something else.
/// `None` where the system does not say.
fn processor_time(target: &Target, input: &[u8]) -> Result<Option<Duration>, String> {
    let before = processor_times();
    guarded(target, input)?;
    Ok(processor_times().zip(before).map(|(after, before)| after.saturating_sub(before)))
}

/// Time that the threads of this process have run.
fn processor_times() -> Option<Duration> {
    let tasks = fs::read_dir("/proc/self/task").ok()?;
    let nanoseconds = tasks.flatten().map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    nanoseconds.sum::<Option<u64>>().map(Duration::from_nanos)
}

fn guarded(target: &Target, input: &[u8]) -> Result<Verdict, String> {
    match catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        Ok(Ok(verdict)) => Ok(verdict),
        Ok(Err(what)) => Err(failure(target, input, &what)),
        Err(_) => Err(failure(target, input, "panicked; see the message above")),
    }
}

/// Store the input and say how to run it again.
fn failure(target: &Target, input: &[u8], what: &str) -> String {
    let path = root().join("findings").join(format!("{}-{:016x}", target.name, digest(input)));
    let written = fs::create_dir_all(root().join("findings")).and_then(|()| fs::write(&path, input));
    let name = target.name;
    match written {
        Ok(()) => format!(
            "{what}\n  run it again: cargo run --profile fuzz -p protperf-fuzz -- --target {name} --file {}",
            path.display()
        ),
        Err(error) => format!("{what}\n  the input could not be written: {error}"),
    }
}

/// Make the folder hold the smallest inputs that show every trait, and no others.
fn keep_smallest(target: &Target, corpus: &[Vec<u8>]) -> Result<(), String> {
    let folder = root().join("corpus").join(target.name);
    let refused = |error| format!("{}: {error}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(refused)?;
    }
    fs::create_dir_all(&folder).map_err(refused)?;
    let mut by_size: Vec<&Vec<u8>> = corpus.iter().collect();
    by_size.sort_by_key(|input| (input.len(), digest(input)));
    let mut seen: HashSet<u64> = HashSet::new();
    for input in by_size {
        let verdict = guarded(target, input)?;
        if verdict.traits.into_iter().fold(false, |is_new, mark| seen.insert(mark) | is_new) {
            fs::write(folder.join(format!("{:016x}", digest(input))), input).map_err(refused)?;
        }
    }
    Ok(())
}

/// The corpus, in an order that does not depend on the file system, and never empty.
fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let own = root().join("corpus").join(target.name);
    let shared = target.uses_fasta_files.then(|| root().join("../tests/fasta/files"));
    let mut paths: Vec<PathBuf> = [Some(own), shared]
        .into_iter()
        .flatten()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .collect();
    paths.sort();
    let small = |input: &Vec<u8>| input.len() <= target.limit;
    let mut seeds: Vec<Vec<u8>> = paths.iter().filter_map(|path| fs::read(path).ok()).filter(small).collect();
    seeds.push(Vec::new());
    seeds
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Largest resident memory of this process in bytes; 0 where the system does not say.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kilobytes| kilobytes << 10)
}
