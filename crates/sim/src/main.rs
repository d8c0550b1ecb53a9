//! Runs simulated clusters: `twinbft-sim run --seeds 1000`.
#![forbid(unsafe_code)]

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use twinbft_sim::Edit;

/// Deterministic simulation of whole clusters.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run many seeds; stop at the first that breaks an invariant.
    Run(Seeds),
    /// Run many seeds and count what became of the wrong outputs of single twins.
    Detection(Seeds),
    /// Run one seed and print its scenario and what it came to.
    Seed(One),
    /// Run one seed and print everything that happens, and its digest.
    Trace(One),
    /// Take out one rule at a time and print how many seeds it takes until that is caught.
    Mutants(Mutants),
    /// Take things out of a failing seed's scenario while it still fails, and print the smallest that does.
    Shrink {
        /// Which.
        seed: u64,
        /// Of the small clusters.
        #[arg(long)]
        small: bool,
    },
}

#[derive(clap::Args, Clone, Copy)]
struct Seeds {
    /// How many.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Go on after a violation and print one line for each.
    #[arg(long)]
    keep_going: bool,
    /// How many at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Small clusters alone: up to three hosts of two twins.
    #[arg(long)]
    small: bool,
    /// Say on standard error how far it is, every so many seeds; `--first` goes on from there.
    #[arg(long, default_value_t = 20_000)]
    progress: u64,
}

#[derive(clap::Args)]
struct Mutants {
    #[command(flatten)]
    seeds: Seeds,
    /// Of the rules only these, by their names in `twinbft_types::mutants`.
    #[arg(long, value_delimiter = ',')]
    rules: Vec<String>,
}

#[derive(clap::Args)]
struct One {
    /// Which.
    seed: u64,
    /// Of the small clusters, as `run --small` draws them.
    #[arg(long)]
    small: bool,
    /// Take something out of the seed's scenario first: fault:2, double:1/0, client:3, operations:4, depth,
    /// fast-reads, loss, duplication, delay, batch, pipeline. As `shrink` prints them.
    #[arg(long, value_delimiter = ',')]
    without: Vec<Edit>,
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Run(seeds) => commands::run(seeds),
        Command::Detection(seeds) => commands::detection(seeds),
        Command::Seed(one) => commands::seed(&one),
        Command::Trace(one) => commands::trace(&one),
        Command::Mutants(mutants) => commands::mutants(&mutants),
        Command::Shrink { seed, small } => commands::shrink(seed, small),
    }
}
