//! Fuzzes protperf's parsers: mutates inputs and judges the answers by oracles.
//!
//! `protperf-fuzz [--target NAME] [--seconds S] [--executions N] [--seed K] [--keep] [--file PATH]`
//!
//! Without `--target` every target runs for `--seconds` (default 60). The corpus is the folder `fuzz/corpus/NAME`
//! and, for `fasta` and `archive`, the small files of `tests/fasta/files`. An input that shows a trait of behaviour
//! not seen before joins the corpus in memory; with `--keep` the folder holds the smallest such inputs afterwards.
//! `--file` runs one input and nothing else.

#![forbid(unsafe_code)]

mod driver;
mod mutate;
mod random;
mod targets;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use driver::{Limits, Report};
use targets::TARGETS;

struct Options {
    targets: Vec<&'static targets::Target>,
    limits: Limits,
    file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("protperf-fuzz: {message}");
            return ExitCode::from(2);
        }
    };
    let mut failed = false;
    for target in &options.targets {
        let outcome = match &options.file {
            Some(path) => driver::run_file(target, path),
            None => driver::run(target, &options.limits).map(|report| print(target.name, &report)),
        };
        if let Err(message) = outcome {
            eprintln!("{}: {message}", target.name);
            failed = true;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn print(name: &str, report: &Report) {
    let Report { executions, bytes, elapsed, corpus, traits, slowest, peak_memory } = report;
    let seconds = elapsed.as_secs_f64();
    println!(
        "{name}: {executions} executions in {seconds:.0} s ({:.0} per second, {:.1} MB), corpus {corpus}, traits {traits}, \
         slowest {:.1} ms, peak memory {} MiB, 0 failures",
        *executions as f64 / seconds,
        *bytes as f64 / 1e6,
        slowest.as_secs_f64() * 1e3,
        peak_memory >> 20,
    );
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { targets: TARGETS.iter().collect(), limits: Limits::default(), file: None };
    while let Some(flag) = arguments.next() {
        if flag == "--keep" {
            options.limits.keeps = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{flag} takes a number, not '{value}'"));
        match flag.as_str() {
            "--target" => {
                let names = TARGETS.map(|target| target.name).join(", ");
                let target = TARGETS.iter().find(|target| target.name == value);
                options.targets = vec![target.ok_or_else(|| format!("no target '{value}'; choose from {names}"))?];
            }
            "--seconds" => options.limits.time = Duration::from_secs(number()?),
            "--executions" => options.limits.executions = number()?,
            "--seed" => options.limits.seed = number()?,
            "--file" => options.file = Some(value.into()),
            _ => return Err(format!("no option '{flag}'; see fuzz/src/main.rs")),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A short run with the same inputs each time, so that known faults stay mended.
    #[test]
    fn every_target_holds_over_its_corpus_and_some_mutations() {
        for target in &TARGETS {
            let limits = Limits { executions: target.quick, time: Duration::MAX, ..Limits::default() };
            let report = driver::run(target, &limits).unwrap_or_else(|message| panic!("{}: {message}", target.name));
            assert!(report.executions >= target.quick);
        }
    }
}
