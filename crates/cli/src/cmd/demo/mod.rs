//! `twinbft demo`: a cluster of real processes, a liar, a killed host, and a verdict over what clients saw.

mod board;
pub mod director;
mod prompt;
mod script;
pub mod stage;
pub mod verdict;
pub mod view;
pub mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use board::Board;
use director::Director;
use stage::{Setting, Stage};
use twinbft_config::Durability;
use verdict::Findings;

/// What a shell says of a command that Ctrl-C has ended.
const EXIT_INTERRUPTED: u8 = 130;

/// See a cluster catch a lying twin and outlive a killed host
///
/// Runs 3 hosts x 2 twins and 3 brokers as processes of this machine, in a temporary directory, and checks everything
/// that clients see. Then one twin lies, is caught by name, and comes to its senses; and a whole host is killed. The
/// twins share this kernel: their isolation is simulated. Exit status 0 when all is as it must be, 1 otherwise, 130
/// after Ctrl-C, which stops everything.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How long all acts take together, in seconds
    #[arg(long, value_name = "S", default_value_t = 12.0, value_parser = seconds, conflicts_with = "interactive")]
    duration_s: f64,
    /// Say yourself who lies, who is killed, and when
    #[arg(long)]
    interactive: bool,
    /// The verdict as one JSON document on the standard output; everything else goes to the standard error
    #[arg(long)]
    json: bool,
    /// Use this new directory for everything, logs included, and keep it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Where postbox-broker and twinbft-replica-doubles are; by default beside this program
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// How long a single thing may take to happen, in seconds
    #[arg(long, value_name = "S", default_value_t = 15.0, value_parser = seconds, hide = true)]
    patience_s: f64,
    /// Do not let anybody lie, so that the verdict must be bad
    #[arg(long, hide = true)]
    no_lie: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        Ok(_) | Err(_) => Err("not a number of seconds from 0.1 to 3600".to_owned()),
    }
}

/// Runs the demonstration and says the verdict.
///
/// # Errors
/// When it cannot be shown at all.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("starting the runtime")?;
    // From here on a signal means an orderly end.
    let told = runtime
        .block_on(async { Told::new() })
        .context("listening to signals")?;
    let mut board = Board::new(args.json, !args.interactive);
    let started = Instant::now();
    let setting = Setting {
        keep: args.keep.as_deref(),
        bin_dir: args.bin_dir.as_deref(),
        durability: Durability::Memory,
        hosts: stage::HOSTS,
        twins: stage::TWINS,
    };
    let mut stage = Stage::set(&setting, |_, _| Ok(()))?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            biased;
            () = told.wait() => Ok(None),
            findings = show(args, &mut stage, &mut board, started) => findings.map(Some),
        }
    });
    let (report, kept) = stage.stop()?;
    runtime.shutdown_background();
    for name in &report.killed {
        board.say(&format!("{name} did not end in time and was killed"));
    }
    let findings = outcome?;
    let exit = match &findings {
        Some(findings) => conclude(args, findings, &mut board),
        None => {
            board.say("\nInterrupted: all processes are stopped.");
            ExitCode::from(EXIT_INTERRUPTED)
        }
    };
    match kept {
        Some(path) => board.say(&format!("Kept: {} (logs in log/)", path.display())),
        None if findings.is_some_and(|findings| !findings.problems().is_empty()) => {
            board.say("Run it again with --keep DIR to look at the logs.");
        }
        None => {}
    }
    Ok(exit)
}

async fn show(
    args: &Args,
    stage: &mut Stage,
    board: &mut Board,
    started: Instant,
) -> anyhow::Result<Findings> {
    let patience = Duration::from_secs_f64(args.patience_s);
    let mut director = Director::begin(stage, board, started, patience).await?;
    if args.interactive {
        prompt::converse(&mut director).await?;
    } else {
        let duration = Duration::from_secs_f64(args.duration_s);
        script::play(&mut director, duration, !args.no_lie).await?;
    }
    director.finish().await
}

fn conclude(args: &Args, findings: &Findings, board: &mut Board) -> ExitCode {
    if args.json {
        println!("{:#}", findings.json());
    } else {
        board.say(&format!("\n{}", findings.text()));
    }
    if findings.problems().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The signals that mean the end.
pub struct Told([Signal; 3]);

impl Told {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the kernel does not let it.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    /// Until one of them comes.
    pub async fn wait(mut self) {
        let [interrupt, terminate, hang_up] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}
