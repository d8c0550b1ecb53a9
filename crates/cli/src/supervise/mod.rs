//! Runs the brokers and replicas of a cluster on this machine, in place of systemd: starts them, keeps the logs
//! that brokers entrust to it, restarts what dies, and stops all of it.
//!
//! Each process has a *keeper*, a thread that starts it and waits for its end; the thread is the one whose death
//! kills the child, so it lives as long as the supervisor. One more thread reads what the processes notify.
//! Nothing here wakes up while nothing happens.

mod cores;
mod keeper;
mod launch;
mod name;
mod notify;
mod run_file;
mod shared;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use twinbft_config::Layout;

use crate::cluster::Cluster;
use keeper::Spec;
use notify::{Notices, ReaderLife};
use shared::{Shared, Wanted};

pub use launch::{LAUNCH, LaunchArgs, launch};
pub use name::{ProcessName, UnknownName};
pub use run_file::{RunFile, Running, running};
pub use shared::{ProcessState, ProcessStatus};

/// The daemons' programs.
pub const PROGRAMS: [&str; 2] = [BROKER, REPLICA];
const BROKER: &str = "postbox-broker";
const REPLICA: &str = "twinbft-replica";
/// The longest path of a Unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What can go wrong around a cluster's processes.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// A program is not where it should be.
    #[error("there is no {}: build it, or name its directory with --bin-dir", .0.display())]
    NoProgram(PathBuf),
    /// The cluster's directory has too long a name for sockets in it.
    #[error("the path {} has {} bytes and a socket's may have {SOCKET_PATH_BYTES_MAX}: use a directory with a shorter name", .0.display(), .0.as_os_str().len())]
    PathTooLong(PathBuf),
    /// A file or directory.
    #[error("{doing} {}: {cause}", .path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What came of it.
        cause: std::io::Error,
    },
    /// A thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// Another supervisor runs this cluster.
    #[error("the cluster is running already (supervisor {}): twinbft down stops it", .0.pid)]
    Running(Running),
    /// There is no such process in this cluster.
    #[error("this cluster has no process {0}")]
    NoProcess(ProcessName),
    /// The process is not there at the moment.
    #[error("{0} is not running")]
    NotRunning(ProcessName),
    /// The kernel did not deliver a signal.
    #[error("sending {signal} to {name}: {cause}")]
    Signal {
        /// Which.
        signal: Signal,
        /// To whom.
        name: ProcessName,
        /// Why not.
        cause: nix::Error,
    },
    /// Not everything became ready.
    #[error("{}", not_ready(.0))]
    NotReady(Vec<ProcessStatus>),
}

fn not_ready(processes: &[ProcessStatus]) -> String {
    let list: Vec<String> = processes
        .iter()
        .map(|process| match &process.detail {
            Some(detail) => format!("{} ({}: {detail})", process.name, process.state.name()),
            None => format!("{} ({})", process.name, process.state.name()),
        })
        .collect();
    format!("not ready in time: {}", list.join(", "))
}

/// Where programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The `twinbft` executable, which sets up a child and then becomes it.
    pub launcher: PathBuf,
    /// The directory of `postbox-broker` and `twinbft-replica`.
    pub directory: PathBuf,
    /// More arguments for every replica, like `--byzantine-control`.
    pub replica_arguments: Vec<String>,
    /// Replicas with a configuration of their own, beside the cluster's.
    pub replica_configurations: BTreeMap<ProcessName, PathBuf>,
    /// Hosts whose processes run in a network namespace of their own, and where it is bound.
    pub namespaces: BTreeMap<u8, PathBuf>,
}

impl Programs {
    /// For use within the `twinbft` executable; `directory` is by default the one that it lies in.
    ///
    /// # Errors
    /// When this executable cannot be found.
    pub fn beside_this_one(directory: Option<&Path>) -> Result<Self, SuperviseError> {
        let launcher = std::env::current_exe().map_err(|cause| SuperviseError::File {
            doing: "finding",
            path: PathBuf::from("this executable"),
            cause,
        })?;
        let beside = launcher.parent().unwrap_or(Path::new("/"));
        Ok(Self {
            directory: directory.unwrap_or(beside).to_owned(),
            launcher,
            replica_arguments: Vec::new(),
            replica_configurations: BTreeMap::new(),
            namespaces: BTreeMap::new(),
        })
    }
}

/// What had to be done to stop.
#[derive(Clone, Debug, Default)]
pub struct StopReport {
    /// Processes that did not end on SIGTERM in time and were killed.
    pub killed: Vec<ProcessName>,
}

/// All processes of a cluster. When it is dropped they are killed; [`Supervisor::stop`] lets them finish.
#[derive(Debug)]
pub struct Supervisor {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    reader: Option<ReaderLife>,
}

impl Supervisor {
    /// Starts every broker and replica of `cluster`, replicas when their host's broker is ready. Does not wait.
    ///
    /// # Errors
    /// When programs are missing, or files of the cluster cannot be made.
    pub fn start(cluster: &Cluster, programs: &Programs) -> Result<Self, SuperviseError> {
        let layout = absolute(&cluster.layout)?;
        let file = absolute_path(&cluster.file)?;
        for program in PROGRAMS {
            let path = programs.directory.join(program);
            if !path.is_file() {
                return Err(SuperviseError::NoProgram(path));
            }
        }
        make_directory(&layout.log())?;
        let hosts = &cluster.config.hosts;
        let cpus = cores::available();
        let mut specs = Vec::new();
        for (place, host) in hosts.iter().enumerate() {
            let cpu = if host.cpu.is_empty() {
                cores::share(&cpus, place, hosts.len())
            } else {
                host.cpu.clone()
            };
            make_directory(&layout.host_run(host.id))?;
            let broker = ProcessName::Broker(host.id);
            let twins = host
                .twins
                .iter()
                .map(|twin| ProcessName::Replica(host.id, twin.id));
            for name in std::iter::once(broker).chain(twins) {
                let spec = Spec::new(name, &layout, &file, programs, &cpu);
                if spec.notify_socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
                    return Err(SuperviseError::PathTooLong(spec.notify_socket));
                }
                specs.push(spec);
            }
        }
        Self::start_all(specs)
    }

    fn start_all(specs: Vec<Spec>) -> Result<Self, SuperviseError> {
        let shared = Arc::new(Shared::new(specs.iter().map(|spec| spec.name)));
        let sockets = specs.iter().map(|spec| spec.notify_socket.as_path());
        let (notices, reader) = Notices::bind(sockets, Arc::clone(&shared))?;
        // From here on dropping `supervisor` ends the threads that are already there.
        let mut supervisor = Self {
            shared,
            threads: Vec::new(),
            reader: Some(reader),
        };
        let spawn = |name: String, run: Box<dyn FnOnce() + Send>| {
            let builder = std::thread::Builder::new().name(name).stack_size(256 << 10);
            builder.spawn(run).map_err(SuperviseError::Thread)
        };
        supervisor.threads.push(spawn(
            "notices".to_owned(),
            Box::new(move || notices.run()),
        )?);
        for spec in specs {
            let shared = Arc::clone(&supervisor.shared);
            let name = spec.name.to_string();
            let thread = spawn(name, Box::new(move || keeper::keep(&spec, &shared)))?;
            supervisor.threads.push(thread);
        }
        Ok(supervisor)
    }

    /// Waits until every process has said that it is ready.
    ///
    /// # Errors
    /// Those that are not when the time is up, or at once when one cannot be started at all.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), SuperviseError> {
        let deadline = Instant::now() + timeout;
        let mut version = 0;
        loop {
            let (now_at, processes) = self.wait_change(version, deadline);
            let failed = processes
                .iter()
                .any(|process| process.state == ProcessState::Failed);
            let waited_for: Vec<ProcessStatus> = processes
                .into_iter()
                .filter(|process| process.state != ProcessState::Ready)
                .filter(|process| !failed || process.state == ProcessState::Failed)
                .collect();
            if waited_for.is_empty() {
                return Ok(());
            }
            if failed || now_at == version {
                return Err(SuperviseError::NotReady(waited_for));
            }
            version = now_at;
        }
    }

    /// Waits until something has changed since `version` (0: since never) or the deadline, and answers the
    /// version and state of now. The same version means that the time was up.
    #[must_use]
    pub fn wait_change(&self, version: u64, deadline: Instant) -> (u64, Vec<ProcessStatus>) {
        self.shared.wait_change(version, deadline)
    }

    /// Lets everyone who waits for a change look again.
    pub fn wake(&self) {
        self.shared.wake();
    }

    /// How all processes are.
    #[must_use]
    pub fn states(&self) -> Vec<ProcessStatus> {
        self.shared.wait_change(0, Instant::now()).1
    }

    /// The process id of `name` while it runs.
    #[must_use]
    pub fn pid(&self, name: ProcessName) -> Option<Pid> {
        let found = self
            .states()
            .into_iter()
            .find(|process| process.name == name)?;
        found.pid.map(Pid::from_raw)
    }

    /// Sends a signal to a process. One that it ends by (SIGKILL, SIGTERM, SIGINT, SIGQUIT, SIGABRT) also
    /// keeps it down until [`Self::restart`]; it is [`ProcessState::Stopped`] then.
    ///
    /// # Errors
    /// When there is no such process or it does not run.
    pub fn kill(&self, name: ProcessName, signal: Signal) -> Result<(), SuperviseError> {
        self.shared.kill(name, signal)
    }

    /// Starts a process that was killed or has failed; one that runs is ended by SIGTERM and started again.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn restart(&self, name: ProcessName) -> Result<(), SuperviseError> {
        self.shared.restart(name)
    }

    /// Drops what a process has entrusted to the supervisor, as a power failure of its host would.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn forget_kept(&self, name: ProcessName) -> Result<(), SuperviseError> {
        self.shared.with(name, |slot| slot.kept.clear())
    }

    /// Ends all processes, replicas first: SIGTERM, and SIGKILL for those of a kind that take longer than
    /// `timeout`.
    #[must_use]
    pub fn stop(mut self, timeout: Duration) -> StopReport {
        self.end(timeout)
    }

    fn end(&mut self, timeout: Duration) -> StopReport {
        let mut report = StopReport::default();
        for brokers in [false, true] {
            let kind = |name: ProcessName| matches!(name, ProcessName::Broker(_)) == brokers;
            self.shared.signal_all(kind, Signal::SIGTERM, Wanted::Gone);
            let left = self.shared.wait_gone(kind, Instant::now() + timeout);
            self.shared.signal_all(kind, Signal::SIGKILL, Wanted::Gone);
            report.killed.extend(left);
        }
        self.reader = None;
        for thread in self.threads.drain(..) {
            // A keeper that panicked has said so; what it kept dies with its thread.
            drop(thread.join());
        }
        report
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.end(Duration::ZERO);
        }
    }
}

fn absolute(layout: &Layout) -> Result<Layout, SuperviseError> {
    absolute_path(layout.directory()).map(Layout::new)
}

fn absolute_path(path: &Path) -> Result<PathBuf, SuperviseError> {
    path.canonicalize().map_err(|cause| SuperviseError::File {
        doing: "finding",
        path: path.to_owned(),
        cause,
    })
}

fn make_directory(path: &Path) -> Result<(), SuperviseError> {
    std::fs::create_dir_all(path).map_err(|cause| SuperviseError::File {
        doing: "making",
        path: path.to_owned(),
        cause,
    })
}
