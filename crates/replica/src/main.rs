//! `twinbft-replica`: one twin of one host.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;
use twinbft_config::{ClusterConfig, Layout, MembershipError};
use twinbft_replica::genesis::NeedsRecovery;
use twinbft_replica::node::{self, NodeOptions};
use twinbft_replica::storage::{ReadError, StorageError};
use twinbft_types::ReplicaId;

/// The configuration or the command line is wrong (sysexits.h: EX_USAGE).
const EXIT_CONFIG: u8 = 64;
/// There is a state that this version cannot go on from; starting again changes nothing (sysexits.h: EX_DATAERR).
const EXIT_NEEDS_RECOVERY: u8 = 65;

/// Runs one replica of a TwinBFT cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The cluster's configuration; keys, certificates, sockets and data lie beside it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The host that this replica belongs to.
    #[arg(long, value_name = "H")]
    host: u8,
    /// Its number on that host.
    #[arg(long, value_name = "T")]
    twin: u8,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    /// What is logged, as in RUST_LOG, which this overrides.
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// The daemon, under whichever name it was built.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let failed = error.use_stderr();
            // Nothing better can be done when even this cannot be printed.
            let _unprintable = error.print();
            return if failed {
                ExitCode::from(EXIT_CONFIG)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let config = match ClusterConfig::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if config.twin(arguments.host, arguments.twin).is_none() {
        eprintln!(
            "{} has hosts 0 to {} with twins 0 to {}, and no twin {} of host {}; check --host and --twin",
            arguments.config.display(),
            config.host_count() - 1,
            config.twin_count() - 1,
            arguments.twin,
            arguments.host
        );
        return ExitCode::from(EXIT_CONFIG);
    }
    if let Err(error) = start_logging(&arguments) {
        eprintln!("--log-level or RUST_LOG: {error}; for example: info,twinbft_replica=debug");
        return ExitCode::from(EXIT_CONFIG);
    }
    die_of_panics();
    let options = NodeOptions {
        layout: Layout::of_file(&arguments.config),
        config,
        me: ReplicaId::new(arguments.host, arguments.twin),
    };
    // Spans put host and twin on every line, whichever thread writes it.
    let span = tracing::error_span!("replica", host = arguments.host, twin = arguments.twin);
    let _entered = span.enter();
    match node::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            // Once is enough, and never is too little.
            if !tracing::enabled!(tracing::Level::ERROR) {
                eprintln!("twinbft-replica: {error:#}");
            }
            if error.is::<NeedsRecovery>() || is_damage(&error) {
                ExitCode::from(EXIT_NEEDS_RECOVERY)
            } else if error.is::<MembershipError>() {
                ExitCode::from(EXIT_CONFIG)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Whether files of this twin are damaged, or somebody else's: starting again changes nothing.
fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(
            cause.downcast_ref(),
            Some(StorageError::Read(
                ReadError::Corrupt { .. } | ReadError::Foreign { .. }
            ))
        )
    })
}

fn start_logging(arguments: &Arguments) -> Result<(), tracing_subscriber::filter::ParseError> {
    let wanted = arguments
        .log_level
        .clone()
        .or_else(|| std::env::var("RUST_LOG").ok());
    let filter = EnvFilter::try_new(wanted.as_deref().unwrap_or("info"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Human => builder.with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// A broken invariant in any thread ends the process: a replica with a dead part must not speak on.
fn die_of_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        tracing::error!("a broken invariant ends this replica: {panic}");
        std::process::abort();
    }));
}
