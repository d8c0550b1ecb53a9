//! `twinbft evidence`: what replicas and brokers have seen of faults, whether the cluster runs or not.

mod gather;
mod picture;
mod when;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use twinbft_cli::cluster::Cluster;

use crate::cmd::status::Asker;

pub use gather::Seen;

/// List what the cluster has seen of faults, and who is named
///
/// Asks every replica and the brokers of this machine, reads what replicas of this machine have written in their data
/// directories, and audits the records of brokers where there are any; with the cluster down, the files alone. What a
/// twin says of its sibling is its word: one that lies about results may lie about this, too. Exit status 0 when
/// nobody is named, 1 when a twin is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// cluster.toml, or the directory that it is in
    #[arg(long, value_name = "FILE|DIR", default_value = ".")]
    config: PathBuf,
    /// The administrator whose certificate to use
    #[arg(long, value_name = "ID", default_value_t = 0)]
    admin: u32,
    /// One JSON document, with every event
    #[arg(long)]
    json: bool,
    /// Do not audit the brokers' records, which takes a while when they are large
    #[arg(long)]
    no_records: bool,
}

/// Gathers and shows.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::load(&args.config)?;
    let mut seen = Seen::new(&cluster);
    match Asker::new(&cluster, args.admin) {
        Ok(asker) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.context("starting the runtime")?;
            seen.take_answers(&runtime.block_on(asker.ask_all()));
        }
        // The files are here all the same.
        Err(error) => seen.note_silence(format!("no process was asked: {error:#}")),
    }
    seen.read_files(&cluster)?;
    if !args.no_records {
        seen.audit_records(&cluster)?;
    }
    if args.json {
        println!("{:#}", seen.json());
    } else {
        print!("{}", picture::text(&seen));
    }
    Ok(if seen.named().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
