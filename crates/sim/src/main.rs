//! Runs simulated clusters: `twinbft-sim run --seeds 1000`.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use clap::{Parser, Subcommand};
use twinbft_sim::{Report, Scenario, World};

/// Deterministic simulation of whole clusters.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run many seeds; stop at the first that breaks an invariant.
    Run {
        /// How many.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first.
        #[arg(long, default_value_t = 0)]
        first: u64,
    },
    /// Run one seed and print what happened.
    Seed {
        /// Which.
        seed: u64,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Run { seeds, first } => run(first, seeds),
        Command::Seed { seed } => {
            println!("{:#?}", Scenario::from_seed(seed));
            println!("{:#?}", run_one(seed, true)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_one(seed: u64, traced: bool) -> anyhow::Result<Report> {
    let mut scenario = Scenario::from_seed(seed);
    scenario.traced = traced;
    match World::new(scenario).run() {
        Ok(report) => Ok(report),
        Err(violation) => bail!("seed {seed}: {violation}\nrepeat with: twinbft-sim seed {seed}"),
    }
}

fn run(first: u64, seeds: u64) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    let mut total = Report::default();
    for seed in first..first + seeds {
        let report = run_one(seed, false)?;
        total.steps += report.steps;
        total.messages += report.messages;
        total.slots += report.slots;
        total.view += report.view;
        total.completed += report.completed;
        total.divergences += report.divergences;
        total.culprits += report.culprits;
        total.stalled += report.stalled;
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds, {:.0} a second: {} steps, {} messages, {} slots, {} views, {} operations, {} divergences, {} culprits, {} stalled without state transfer, no violation",
        f64::from(u32::try_from(seeds)?) / seconds,
        total.steps,
        total.messages,
        total.slots,
        total.view,
        total.completed,
        total.divergences,
        total.culprits,
        total.stalled,
    );
    Ok(ExitCode::SUCCESS)
}
