//! What the sub-commands do.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
#[cfg(feature = "mutants")]
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::bail;
#[cfg(feature = "mutants")]
use twinbft_core::mutants::Rule;
use twinbft_sim::{Report, Scenario, Tracer, World, run_caught};

use crate::{Mutants, One, Seeds};

/// Seeds that one job takes at a time.
const PIECE: u64 = 250;

/// What many runs came to.
#[derive(Default)]
struct Total {
    report: Report,
    /// The broken invariants, one for each seed that broke one.
    violations: Vec<u8>,
    seconds: f64,
}

/// Runs seeds until the first violation, or all of them, on `jobs` threads; what comes of it does not depend on how many.
fn total(seeds: Seeds) -> anyhow::Result<Total> {
    let begin = Instant::now();
    if seeds.keep_going {
        // A panic is one line here, as any other violation.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let sum = Mutex::new((Total::default(), BTreeSet::new(), 0));
    std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..seeds.jobs)
            .map(|_| {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let piece = next.fetch_add(1, Ordering::Relaxed);
                        if piece * PIECE >= seeds.seeds {
                            break;
                        }
                        let done = run_piece(seeds, piece)
                            .inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
                        add_piece(seeds, piece, &done, &sum);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        jobs.into_iter()
            .try_for_each(|job| job.join().expect("a job catches panics of runs"))
    })?;
    let (mut total, ..) = sum.into_inner().expect("no job panics");
    total.seconds = begin.elapsed().as_secs_f64();
    Ok(total)
}

/// Adds up, and says how far all seeds are done without a gap.
fn add_piece(seeds: Seeds, piece: u64, done: &Total, sum: &Mutex<(Total, BTreeSet<u64>, u64)>) {
    let mut sum = sum.lock().expect("no job panics");
    let (total, apart, gapless) = &mut *sum;
    total.report.add(&done.report);
    total.violations.extend(&done.violations);
    apart.insert(piece);
    let before = *gapless * PIECE / seeds.progress.max(1);
    while apart.remove(gapless) {
        *gapless += 1;
    }
    if *gapless * PIECE / seeds.progress.max(1) > before {
        eprintln!(
            "all seeds below {} are done, {} violations so far",
            seeds.first + (*gapless * PIECE).min(seeds.seeds),
            total.violations.len()
        );
    }
}

fn run_piece(seeds: Seeds, piece: u64) -> anyhow::Result<Total> {
    let mut total = Total::default();
    let end = seeds.seeds.min((piece + 1) * PIECE);
    for seed in seeds.first + piece * PIECE..seeds.first + end {
        match run_caught(drawn(seed, seeds.small)) {
            Ok(report) => total.report.add(&report),
            Err(violation) if seeds.keep_going => {
                total.violations.push(violation.invariant);
                let what = violation.to_string();
                let line = what.lines().next().unwrap_or_default();
                println!("seed {seed}: {line}");
            }
            Err(violation) => bail!(
                "seed {seed}: {violation}\nrepeat with: twinbft-sim seed {seed}{small}\nmake it smaller with: twinbft-sim shrink {seed}{small}",
                small = of_small(seeds.small)
            ),
        }
    }
    Ok(total)
}

fn drawn(seed: u64, small: bool) -> Scenario {
    if small {
        Scenario::small(seed)
    } else {
        Scenario::from_seed(seed)
    }
}

/// What repeats a seed of the small clusters.
const fn of_small(small: bool) -> &'static str {
    if small { " --small" } else { "" }
}

const fn code(violations: u64) -> ExitCode {
    if violations == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

pub fn run(seeds: Seeds) -> anyhow::Result<ExitCode> {
    let Total {
        report: total,
        violations,
        seconds,
    } = total(seeds)?;
    println!(
        "{} seeds, {:.0} a second: {} steps, {} messages, {} slots, {} views, {} undone, {} crashes, {} operations, {} divergences, {} culprits, {} stalled without state transfer, {} violations",
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
        violations.len(),
    );
    print_detection(&total, &violations);
    Ok(code(violations.len() as u64))
}

pub fn detection(seeds: Seeds) -> anyhow::Result<ExitCode> {
    let total = total(seeds)?;
    print_detection(&total.report, &total.violations);
    Ok(code(total.violations.len() as u64))
}

/// What became of the wrong outputs of single twins.
fn print_detection(total: &Report, violations: &[u8]) {
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
}

pub fn seed(one: &One) -> anyhow::Result<ExitCode> {
    let scenario = drawn(one.seed, one.small).edited(&one.without);
    println!("{scenario:#?}");
    let report = World::new(scenario, Tracer::digesting()).run();
    report_of(one, report)
}

pub fn trace(one: &One) -> anyhow::Result<ExitCode> {
    let scenario = drawn(one.seed, one.small).edited(&one.without);
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

pub fn shrink(seed: u64, small: bool) -> anyhow::Result<ExitCode> {
    std::panic::set_hook(Box::new(|_| {}));
    let Some(smallest) = twinbft_sim::shrink(&drawn(seed, small)) else {
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
        "{} scenarios tried; repeat the smallest with: twinbft-sim trace {seed}{}{without}",
        smallest.tried,
        of_small(small)
    );
    Ok(ExitCode::FAILURE)
}

/// The core has its rules for good unless it is built with the feature `mutants`: this builds and runs that.
#[cfg(not(feature = "mutants"))]
pub fn mutants(mutants: &Mutants) -> anyhow::Result<ExitCode> {
    let seeds = mutants.seeds;
    let rules = mutants.rules.iter().flat_map(|rule| ["--rules", rule]);
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
            "--jobs",
            &seeds.jobs.to_string(),
        ])
        .args(rules)
        .status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Takes out one rule at a time.
#[cfg(feature = "mutants")]
pub fn mutants(mutants: &Mutants) -> anyhow::Result<ExitCode> {
    let seeds = mutants.seeds;
    let wanted = |rule: &Rule| {
        let name = format!("{rule:?}");
        mutants.rules.is_empty() || mutants.rules.contains(&name)
    };
    std::panic::set_hook(Box::new(|_| {}));
    let rules: Vec<Rule> = Rule::ALL.into_iter().filter(wanted).collect();
    let (next, survivors) = (AtomicUsize::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..seeds.jobs {
            scope.spawn(|| {
                while let Some(rule) = rules.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !is_caught(*rule, seeds) {
                        survivors.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let survivors = survivors.into_inner();
    println!("{survivors} survive");
    Ok(code(survivors))
}

/// Whether one of the seeds notices that this rule is out, which one, and how.
#[cfg(feature = "mutants")]
fn is_caught(rule: Rule, seeds: Seeds) -> bool {
    let range = seeds.first..seeds.first + seeds.seeds;
    let Some((seed, violation)) = twinbft_sim::mutation::first_to_catch(rule, range) else {
        println!("{rule:?}: SURVIVES {} seeds", seeds.seeds);
        return false;
    };
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
    true
}
