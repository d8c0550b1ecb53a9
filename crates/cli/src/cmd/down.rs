//! `twinbft down`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use twinbft_cli::cluster::Cluster;
use twinbft_cli::supervise::{Running, running};
use twinbft_config::Layout;

/// How often the supervisor's lock is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the kernel may take to bury what was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Stop a cluster that `twinbft up` has started
///
/// Lets every process finish; after --timeout-s seconds they are killed, and it says which.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory of the cluster
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// How long to wait before processes are killed, in seconds
    #[arg(long, value_name = "S", default_value_t = 25)]
    timeout_s: u64,
}

/// Stops the cluster.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // A configuration that was spoilt since must not keep anybody from stopping the cluster.
    let layout = match Cluster::load(&args.directory) {
        Ok(cluster) => cluster.layout,
        Err(_) if args.directory.is_dir() => Layout::new(&args.directory),
        Err(error) => return Err(error.into()),
    };
    let Some(found) = known(&layout)? else {
        println!("Nothing is running in {}.", layout.directory().display());
        return Ok(ExitCode::SUCCESS);
    };
    let supervisor = Pid::from_raw(found.pid);
    send(supervisor, Signal::SIGTERM)?;
    if wait_gone(&layout, Duration::from_secs(args.timeout_s))? {
        println!(
            "Stopped {} processes and their supervisor.",
            found.processes.len()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let left = known(&layout)?.unwrap_or_default();
    // What it has started dies with it.
    send(supervisor, Signal::SIGKILL)?;
    if !wait_gone(&layout, KILL_TIMEOUT)? {
        bail!(
            "the supervisor ({supervisor}) does not end, even on SIGKILL: look at its state with ps"
        );
    }
    let names: Vec<String> = left
        .processes
        .iter()
        .filter(|process| process.pid.is_some())
        .map(|process| process.name.clone())
        .collect();
    println!(
        "Killed the supervisor after {} s, and with it: {}.",
        args.timeout_s,
        if names.is_empty() {
            "nothing else".to_owned()
        } else {
            names.join(", ")
        }
    );
    Ok(ExitCode::FAILURE)
}

/// The supervisor with its pid, once it has written it down.
fn known(layout: &Layout) -> anyhow::Result<Option<Running>> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        match running(layout)? {
            Some(found) if found.pid > 0 => return Ok(Some(found)),
            None => return Ok(None),
            Some(_) if Instant::now() > deadline => {
                bail!(
                    "a supervisor holds {} and does not say who it is",
                    layout.run().display()
                )
            }
            Some(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

fn send(pid: Pid, signal: Signal) -> anyhow::Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => bail!("sending {signal} to the supervisor ({pid}): {error}"),
    }
}

/// Whether the supervisor is gone within `timeout`.
fn wait_gone(layout: &Layout, timeout: Duration) -> anyhow::Result<bool> {
    let deadline = Instant::now() + timeout;
    while running(layout)?.is_some() {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(true)
}
