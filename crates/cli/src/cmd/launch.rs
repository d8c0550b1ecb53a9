//! The hidden subcommand by which the supervisor starts a daemon.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use twinbft_cli::supervise::{LaunchArgs, launch};

/// Become a daemon of the cluster (for the supervisor's own use)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The supervisor's process id
    #[arg(long)]
    parent: i32,
    /// CPUs to run on
    #[arg(long, value_delimiter = ',')]
    cpu: Vec<u16>,
    /// The network namespace to be in
    #[arg(long)]
    network_namespace: Option<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Returns only when it fails.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let never = launch(&LaunchArgs {
        parent: args.parent,
        cpu: args.cpu.clone(),
        network_namespace: args.network_namespace.clone(),
        command: args.command.clone(),
    })?;
    match never {}
}
