//! The moment between fork and the daemon: what must be done in the child itself, by a program of our own, so that
//! nothing unsafe is needed.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

/// The hidden subcommand that becomes a daemon.
pub const LAUNCH: &str = "launch-child";

/// What to become, and how.
#[derive(Clone, Debug)]
pub struct LaunchArgs {
    /// The supervisor; when it dies the child must die, too.
    pub parent: i32,
    /// The CPUs to run on; empty: all.
    pub cpu: Vec<u16>,
    /// The network namespace to be in; none: the supervisor's.
    pub network_namespace: Option<PathBuf>,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

/// Why a child could not become what it should.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Nothing to start.
    #[error("no program is named")]
    NoProgram,
    /// The supervisor died before the child could tie itself to it.
    #[error("the supervisor is gone")]
    ParentGone,
    /// The kernel refused.
    #[error("{0}: {1}")]
    Kernel(String, nix::Error),
    /// A file cannot be opened.
    #[error("{0}: {1}")]
    File(String, std::io::Error),
    /// The program cannot be executed.
    #[error("executing {0:?}: {1}")]
    Exec(OsString, std::io::Error),
}

/// Becomes the program: dies with the supervisor, runs on the CPUs named, and finds itself addressed in
/// `LISTEN_PID` when it inherits descriptors.
///
/// # Errors
/// Returns only when it fails.
pub fn launch(args: &LaunchArgs) -> Result<Infallible, LaunchError> {
    let (program, arguments) = args.command.split_first().ok_or(LaunchError::NoProgram)?;
    // SIGKILL and not SIGTERM: a supervisor that was killed leaves nobody to see to a slow end.
    set_pdeathsig(Signal::SIGKILL).map_err(|error| {
        LaunchError::Kernel("asking to die with the supervisor".to_owned(), error)
    })?;
    if getppid() != Pid::from_raw(args.parent) {
        return Err(LaunchError::ParentGone);
    }
    if !args.cpu.is_empty() {
        let doing = format!("pinning to the CPUs {:?} of cluster.toml", args.cpu);
        let failed = |error| LaunchError::Kernel(doing.clone(), error);
        let mut set = CpuSet::new();
        for cpu in &args.cpu {
            set.set(usize::from(*cpu)).map_err(failed)?;
        }
        sched_setaffinity(Pid::from_raw(0), &set).map_err(failed)?;
    }
    if let Some(path) = &args.network_namespace {
        let doing = || format!("entering the network namespace {}", path.display());
        let namespace = File::open(path).map_err(|error| LaunchError::File(doing(), error))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|error| LaunchError::Kernel(doing(), error))?;
    }
    let mut command = Command::new(program);
    command.args(arguments);
    if std::env::var_os("LISTEN_FDS").is_some() {
        command.env("LISTEN_PID", std::process::id().to_string());
    }
    Err(LaunchError::Exec(program.clone(), command.exec()))
}
