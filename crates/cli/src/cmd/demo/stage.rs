//! The cluster of the demonstration: its directory, its processes, and what can be done to them.

use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::sync::watch;
use twinbft_cli::cluster::Cluster;
use twinbft_cli::supervise::{
    ProcessName, ProcessState, ProcessStatus, Programs, StopReport, Supervisor,
};
use twinbft_config::{Durability, Layout};
use twinbft_types::ReplicaId;

use super::view::{Evidence, Snapshot, read};
use super::workload::CLIENTS as WORKLOAD_CLIENTS;
use crate::cmd::status::Asker;
use crate::cmd::{control, init};

/// Physical machines, in the story.
pub const HOSTS: u8 = 3;
/// Twins of each.
pub const TWINS: u8 = 2;
/// Client keys: those of the workload, and the last for `bench` beside it.
const CLIENTS: u32 = WORKLOAD_CLIENTS + 1;
/// The replica that can be told to lie.
pub const DOUBLES: &str = "twinbft-replica-doubles";
const BROKER: &str = "postbox-broker";
/// How long processes may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Ports below those that the kernel gives to outgoing connections.
const PORTS_FIRST: u16 = 20_000;
const PORTS_GROUP: u16 = 64;
const PORTS_GROUPS: u16 = 195;

/// Where everything lies.
#[derive(Debug)]
enum Place {
    /// Goes at the end.
    Temporary(TempDir),
    /// Stays.
    Kept(PathBuf),
}

impl Place {
    fn make(keep: Option<&Path>) -> anyhow::Result<Self> {
        let Some(directory) = keep else {
            let made = tempfile::Builder::new().prefix("twinbft-demo-").tempdir();
            return Ok(Self::Temporary(
                made.context("making a temporary directory")?,
            ));
        };
        let doing = || format!("making {}", directory.display());
        std::fs::create_dir_all(directory).with_context(doing)?;
        if std::fs::read_dir(directory)
            .with_context(doing)?
            .next()
            .is_some()
        {
            bail!(
                "{} is not empty: name a new directory with --keep",
                directory.display()
            );
        }
        Ok(Self::Kept(directory.canonicalize().with_context(doing)?))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(directory) => directory.path(),
            Self::Kept(path) => path,
        }
    }
}

/// The running cluster.
pub struct Stage {
    /// Its configuration.
    pub cluster: Cluster,
    /// Declared before the directory: what runs there must end first.
    supervisor: Option<Arc<Supervisor>>,
    processes: watch::Receiver<Vec<ProcessStatus>>,
    watcher: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    asker: Asker,
    place: Place,
}

/// How the stage is set.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'s> {
    /// A new directory that stays, in place of a temporary one.
    pub keep: Option<&'s Path>,
    /// Where the programs are; by default beside this one.
    pub bin_dir: Option<&'s Path>,
    /// What the replicas' promises outlive.
    pub durability: Durability,
    /// `N`.
    pub hosts: u8,
    /// `m`.
    pub twins: u8,
}

impl Stage {
    /// Makes a cluster and starts its processes. Does not wait for them. `prepare` comes between the two.
    ///
    /// # Errors
    /// When a program is missing or something cannot be made.
    pub fn set(
        setting: &Setting<'_>,
        prepare: impl FnOnce(&mut Cluster, &mut Programs) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let mut programs = Programs::beside_this_one(setting.bin_dir)?;
        let real = programs.directory.clone();
        check_programs(&real)?;
        let place = Place::make(setting.keep)?;
        let layout = Layout::new(place.path());
        let plan = init::Plan {
            hosts: setting.hosts,
            twins: setting.twins,
            clients: CLIENTS,
            service: "kv",
            base_port: free_ports(setting.hosts, setting.twins)?,
            durability: setting.durability,
        };
        init::create(&layout, plan)?;
        let mut cluster = Cluster::load(place.path())?;
        programs.directory = link_programs(&real, place.path())?;
        prepare(&mut cluster, &mut programs)?;
        let asker = Asker::new(&cluster, 0)?;
        let supervisor = Arc::new(Supervisor::start(&cluster, &programs)?);
        let (processes, watcher) = watch_processes(&supervisor)?;
        Ok(Self {
            cluster,
            supervisor: Some(supervisor),
            processes,
            watcher: Some(watcher),
            asker,
            place,
        })
    }

    /// Whoever keeps the processes.
    ///
    /// # Panics
    /// After the stage was stopped.
    pub fn supervisor(&self) -> &Supervisor {
        self.supervisor
            .as_deref()
            .expect("it is there until the stage is stopped")
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        self.place.path()
    }

    /// Waits until every process is ready.
    ///
    /// # Errors
    /// When one cannot be started, or the time is up.
    pub async fn ready(&mut self, patience: Duration) -> anyhow::Result<()> {
        let is_over = |processes: &Vec<ProcessStatus>| {
            let all = processes
                .iter()
                .all(|process| process.state == ProcessState::Ready);
            let failed = processes
                .iter()
                .any(|process| process.state == ProcessState::Failed);
            !processes.is_empty() && (all || failed)
        };
        // Whoever is not ready by then is named by the supervisor.
        drop(tokio::time::timeout(patience, self.processes.wait_for(is_over)).await);
        let ready = self.supervisor().wait_ready(Duration::ZERO);
        let logs = self.cluster.layout.log();
        ready.with_context(|| {
            format!(
                "the cluster did not start (logs: {}; --keep DIR keeps them)",
                logs.display()
            )
        })
    }

    /// Asks all processes how they are.
    pub async fn look(&self, evidence: &mut Evidence) -> Snapshot {
        read(&self.asker.ask_all().await, evidence)
    }

    /// Tells a replica to misbehave, or with `off` to stop it.
    ///
    /// # Errors
    /// When it does not obey.
    pub fn tell(&self, twin: ReplicaId, double: &str) -> anyhow::Result<()> {
        control::tell(&self.cluster.layout, twin, double)
    }

    /// Kills a twin with SIGKILL; it stays down until [`Self::start_twin`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_twin(&self, twin: ReplicaId) -> anyhow::Result<()> {
        Ok(self.supervisor().kill(twin.into(), Signal::SIGKILL)?)
    }

    /// Starts a twin that was killed, with the disk that it has.
    ///
    /// # Errors
    /// When the supervisor knows no such twin.
    pub fn start_twin(&self, twin: ReplicaId) -> anyhow::Result<()> {
        Ok(self.supervisor().restart(twin.into())?)
    }

    /// The processes of a host. The broker first: twins wait for it.
    pub fn of_host(&self, host: u8) -> impl Iterator<Item = ProcessName> + use<> {
        let twins = self.cluster.config.twin_count();
        let twins = (0..twins).map(move |twin| ProcessName::Replica(host, twin));
        std::iter::once(ProcessName::Broker(host)).chain(twins)
    }

    /// Kills the broker and all twins of a host with SIGKILL; they stay down until [`Self::start_host`].
    ///
    /// # Errors
    /// When one of them does not run.
    pub fn kill_host(&self, host: u8) -> anyhow::Result<()> {
        for name in self.of_host(host) {
            self.supervisor().kill(name, Signal::SIGKILL)?;
        }
        Ok(())
    }

    /// Starts all processes of a host that was killed.
    ///
    /// # Errors
    /// When the supervisor knows no such host.
    pub fn start_host(&self, host: u8) -> anyhow::Result<()> {
        for name in self.of_host(host) {
            self.supervisor().restart(name)?;
        }
        Ok(())
    }

    /// Ends all processes and answers the directory if it stays.
    ///
    /// # Errors
    /// When the directory cannot be removed.
    pub fn stop(mut self) -> anyhow::Result<(StopReport, Option<PathBuf>)> {
        let report = self.end();
        match std::mem::replace(&mut self.place, Place::Kept(PathBuf::new())) {
            Place::Kept(path) => Ok((report, Some(path))),
            Place::Temporary(directory) => {
                let path = directory.path().to_owned();
                directory
                    .close()
                    .with_context(|| format!("removing {}", path.display()))?;
                Ok((report, None))
            }
        }
    }

    fn end(&mut self) -> StopReport {
        let Some(supervisor) = self.supervisor.take() else {
            return StopReport::default();
        };
        if let Some((stop, thread)) = self.watcher.take() {
            stop.store(true, Ordering::Release);
            supervisor.wake();
            // It only passes states on; if it panicked it has said so.
            drop(thread.join());
        }
        Arc::into_inner(supervisor).map_or_else(StopReport::default, |supervisor| {
            supervisor.stop(STOP_TIMEOUT)
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Before the directory goes under their feet.
        self.end();
    }
}

/// The lying replica must be there, and must be one that can lie.
fn check_programs(directory: &Path) -> anyhow::Result<()> {
    for program in [BROKER, DOUBLES] {
        let path = directory.join(program);
        if path.is_file() {
            continue;
        }
        if program == DOUBLES {
            bail!(
                "there is no {}. An ordinary twinbft-replica cannot be told to lie, so the demonstration needs this \
                 build of it. In the source tree, scripts/demo builds everything and runs the demonstration, and so \
                 does: cargo build --release --bin twinbft --bin {BROKER} --bin {DOUBLES} --features \
                 twinbft-replica/byzantine-doubles",
                path.display()
            );
        }
        bail!(
            "there is no {}: build it, or name its directory with --bin-dir",
            path.display()
        );
    }
    Ok(())
}

/// The supervisor starts programs by their usual names: here they lead to the replica that can be told to lie.
fn link_programs(real: &Path, place: &Path) -> anyhow::Result<PathBuf> {
    let real = real
        .canonicalize()
        .with_context(|| format!("finding {}", real.display()))?;
    let directory = place.join("bin");
    let doing = || format!("making {}", directory.display());
    std::fs::create_dir(&directory).with_context(doing)?;
    for (name, program) in [(BROKER, BROKER), ("twinbft-replica", DOUBLES)] {
        symlink(real.join(program), directory.join(name)).with_context(doing)?;
    }
    Ok(directory)
}

/// A base port such that every twin's port is free at the moment.
fn free_ports(hosts: u8, twins: u8) -> anyhow::Result<u16> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).context("asking for random bytes")?;
    let first = u16::from_le_bytes(bytes);
    let found = (0..PORTS_GROUPS).find_map(|n| {
        let base = PORTS_FIRST + PORTS_GROUP * (first.wrapping_add(n) % PORTS_GROUPS);
        let mut ports = (0..hosts)
            .flat_map(|host| (0..twins).map(move |twin| base + u16::from(10 * host + twin)));
        let all_free = ports.all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
        all_free.then_some(base)
    });
    found.context("there are no free ports on 127.0.0.1")
}

type Watched = (
    watch::Receiver<Vec<ProcessStatus>>,
    (Arc<AtomicBool>, JoinHandle<()>),
);

/// Passes the states of the processes on from the supervisor, which blocks, to tasks, which must not.
fn watch_processes(supervisor: &Arc<Supervisor>) -> anyhow::Result<Watched> {
    const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let (sender, receiver) = watch::channel(Vec::new());
    let stop = Arc::new(AtomicBool::new(false));
    let (supervisor, stopped) = (supervisor.clone(), stop.clone());
    let watch = move || {
        let mut version = 0;
        while !stopped.load(Ordering::Acquire) {
            let (now_at, processes) = supervisor.wait_change(version, Instant::now() + A_DAY);
            sender.send_replace(processes);
            version = now_at;
        }
    };
    let thread = std::thread::Builder::new()
        .name("processes".to_owned())
        .spawn(watch);
    Ok((receiver, (stop, thread.context("starting a thread")?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_doubles_the_way_to_get_them_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(BROKER), "").unwrap();
        std::fs::write(directory.path().join("twinbft-replica"), "").unwrap();
        let error = check_programs(directory.path()).unwrap_err().to_string();
        for part in [
            DOUBLES,
            "scripts/demo",
            "--features twinbft-replica/byzantine-doubles",
        ] {
            assert!(error.contains(part), "{error}");
        }
        std::fs::write(directory.path().join(DOUBLES), "").unwrap();
        check_programs(directory.path()).unwrap();
    }

    #[test]
    fn a_directory_to_keep_must_be_empty() {
        let directory = tempfile::tempdir().unwrap();
        let fresh = directory.path().join("fresh");
        assert!(Place::make(Some(&fresh)).unwrap().path().ends_with("fresh"));
        std::fs::write(fresh.join("file"), "").unwrap();
        assert!(
            Place::make(Some(&fresh))
                .unwrap_err()
                .to_string()
                .contains("not empty")
        );
    }

    #[test]
    fn ports_are_free() {
        let base = free_ports(5, 3).unwrap();
        assert!((PORTS_FIRST..32_768).contains(&base));
    }
}
