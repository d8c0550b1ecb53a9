//! What the sub-commands do.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use twinbft_sim::{Report, Scenario, Tracer, World, run_caught};

use crate::{One, Seeds};

/// The sum of many reports.
fn total(seeds: Seeds) -> anyhow::Result<(Report, Vec<u8>, f64)> {
    let begin = Instant::now();
    let mut total = Report::default();
    let mut violations = Vec::new();
    if seeds.keep_going {
        // A panic is one line here, as any other violation.
        std::panic::set_hook(Box::new(|_| {}));
    }
    for seed in seeds.first..seeds.first + seeds.seeds {
        match run_caught(Scenario::from_seed(seed)) {
            Ok(report) => total.add(&report),
            Err(violation) if seeds.keep_going => {
                violations.push(violation.invariant);
                let what = violation.to_string();
                let line = what.lines().next().unwrap_or_default();
                println!("seed {seed}: {line}");
            }
            Err(violation) => bail!(
                "seed {seed}: {violation}\nrepeat with: twinbft-sim seed {seed}\nmake it smaller with: twinbft-sim shrink {seed}"
            ),
        }
    }
    Ok((total, violations, begin.elapsed().as_secs_f64()))
}

const fn code(violations: u64) -> ExitCode {
    if violations == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

pub fn run(seeds: Seeds) -> anyhow::Result<ExitCode> {
    let (total, violations, seconds) = total(seeds)?;
    let violations = violations.len() as u64;
    println!(
        "{} seeds, {:.0} a second: {} steps, {} messages, {} slots, {} views, {} undone, {} crashes, {} operations, {} divergences, {} culprits, {} stalled without state transfer, {violations} violations",
        seeds.seeds,
        seeds.seeds as f64 / seconds,
        total.steps,
        total.messages,
        total.slots,
        total.view,
        total.undone,
        total.crashes,
        total.completed,
        total.divergences,
        total.culprits,
        total.stalled,
    );
    Ok(code(violations))
}

pub fn detection(seeds: Seeds) -> anyhow::Result<ExitCode> {
    let (total, violations, _) = total(seeds)?;
    let count = |of: &[u8]| violations.iter().filter(|v| of.contains(v)).count() as u64;
    let (let_out, alarms) = (count(&[1, 2, 3, 4]), count(&[6, 7]));
    let d = total.detection;
    let wrong = d.wrong_results + d.wrong_checkpoints + d.wrong_answers + d.wrong_messages;
    println!(
        "wrong outputs of single twins: {wrong} ({} results, {} checkpoints, {} fast reads, {} statements and replies)",
        d.wrong_results, d.wrong_checkpoints, d.wrong_answers, d.wrong_messages
    );
    println!("runs in which one was let out (invariants 1 to 4): {let_out}");
    println!(
        "results and checkpoints that were reported as a divergence: {} of {}",
        d.diverged,
        d.wrong_results + d.wrong_checkpoints
    );
    println!(
        "results whose twin was named (N > 2): {} of {}",
        d.named, d.nameable
    );
    println!(
        "false alarms (invariants 6, 7): {alarms} in {} messages and entries of correct twins",
        total.honest
    );
    println!(
        "other violations: {}",
        violations.len() as u64 - let_out - alarms
    );
    Ok(code(violations.len() as u64))
}

pub fn seed(one: &One) -> anyhow::Result<ExitCode> {
    let scenario = Scenario::from_seed(one.seed).edited(&one.without);
    println!("{scenario:#?}");
    let report = World::new(scenario, Tracer::digesting()).run();
    report_of(one, report)
}

pub fn trace(one: &One) -> anyhow::Result<ExitCode> {
    let scenario = Scenario::from_seed(one.seed).edited(&one.without);
    let report = World::new(scenario, Tracer::printing()).run();
    report_of(one, report)
}

fn report_of(
    one: &One,
    report: Result<Report, twinbft_sim::Violation>,
) -> anyhow::Result<ExitCode> {
    match report {
        Ok(report) => {
            println!("{report:#?}");
            println!("digest of the trace: {}", report.trace);
            Ok(ExitCode::SUCCESS)
        }
        Err(violation) => bail!("seed {}: {violation}", one.seed),
    }
}

pub fn shrink(seed: u64) -> anyhow::Result<ExitCode> {
    std::panic::set_hook(Box::new(|_| {}));
    let Some(smallest) = twinbft_sim::shrink(seed) else {
        println!("seed {seed} breaks nothing");
        return Ok(ExitCode::SUCCESS);
    };
    println!("{:#?}", smallest.scenario);
    println!("{}", smallest.violation);
    let edits: Vec<String> = smallest.edits.iter().map(ToString::to_string).collect();
    let without = if edits.is_empty() {
        String::new()
    } else {
        format!(" --without {}", edits.join(","))
    };
    println!(
        "{} scenarios tried; repeat the smallest with: twinbft-sim trace {seed}{without}",
        smallest.tried
    );
    Ok(ExitCode::FAILURE)
}

/// The core has its rules for good unless it is built with the feature `mutants`: this builds and runs that.
#[cfg(not(feature = "mutants"))]
pub fn mutants(seeds: Seeds) -> anyhow::Result<ExitCode> {
    let status = std::process::Command::new(env!("CARGO"))
        .args([
            "run",
            "--release",
            "-p",
            "twinbft-sim",
            "--features",
            "mutants",
            "--",
            "mutants",
        ])
        .args([
            "--seeds",
            &seeds.seeds.to_string(),
            "--first",
            &seeds.first.to_string(),
        ])
        .status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Takes out one rule at a time.
#[cfg(feature = "mutants")]
pub fn mutants(seeds: Seeds) -> anyhow::Result<ExitCode> {
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = 0;
    for rule in twinbft_core::mutants::Rule::ALL {
        let range = seeds.first..seeds.first + seeds.seeds;
        match twinbft_sim::mutation::first_to_catch(rule, range) {
            Some((seed, violation)) => {
                let tries = seed - seeds.first + 1;
                let what = violation.to_string();
                let line: String = what
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .chars()
                    .take(110)
                    .collect();
                println!("{rule:?}: caught after {tries} seeds (seed {seed}): {line}");
            }
            None => {
                survivors += 1;
                println!("{rule:?}: SURVIVES {} seeds", seeds.seeds);
            }
        }
    }
    println!("{survivors} survive");
    Ok(code(survivors))
}
