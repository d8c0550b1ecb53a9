//! `twinbft up`: a cluster on this machine, in the background.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use twinbft_cli::cluster::Cluster;
use twinbft_cli::supervise::{
    ProcessName, ProcessState, ProcessStatus, Programs, RunFile, SuperviseError, Supervisor,
    running,
};
use twinbft_config::OnCulprit;

use crate::cmd::guard::{Guard, run_command};

/// How long a process may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Logs that are shown when processes do not start.
const LOGS_MAX: usize = 3;
/// Lines of a log that are shown when its process does not start.
const LOG_LINES: usize = 5;
/// How much of the end of a log is looked at for them.
const LOG_BYTES: u64 = 16 << 10;

/// Start a cluster on this machine and return when it is ready
///
/// Runs a broker for each host and a replica for each twin in the background, restarts what dies, and keeps the
/// brokers' logs when a broker is restarted. Output goes to DIR/log. Twins on one machine share its kernel: their
/// isolation is simulated.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory of the cluster
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Stay in the foreground until Ctrl-C
    #[arg(long)]
    foreground: bool,
    /// Where postbox-broker and twinbft-replica are; by default beside this program
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// How long to wait until all processes are ready, in seconds
    #[arg(long, value_name = "S", default_value_t = 20)]
    timeout_s: u64,
    /// The background half of this command
    #[arg(long, hide = true)]
    daemon: bool,
}

/// Starts the cluster.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::load(&args.directory)?;
    if args.daemon || args.foreground {
        return supervise(args, &cluster);
    }
    if let Some(other) = running(&cluster.layout)? {
        return Err(SuperviseError::Running(other).into());
    }
    start_daemon(args, &cluster)
}

// ---- the command's half ----

/// Starts this program again as the supervisor, passes on what it says, and returns when it is ready.
fn start_daemon(args: &Args, cluster: &Cluster) -> anyhow::Result<ExitCode> {
    let log_dir = cluster.layout.log();
    fs::create_dir_all(&log_dir).with_context(|| format!("making {}", log_dir.display()))?;
    let log_path = log_dir.join("supervisor.log");
    let log = File::options().create(true).append(true).open(&log_path);
    let log = log.with_context(|| format!("opening {}", log_path.display()))?;
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.arg("up").arg(&args.directory).arg("--daemon");
    command.arg("--timeout-s").arg(args.timeout_s.to_string());
    if let Some(bin_dir) = &args.bin_dir {
        command.arg("--bin-dir").arg(bin_dir);
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn();
    let mut child = child.context("starting the supervisor")?;
    let output = child.stdout.take().expect("it is piped");
    for line in BufReader::new(output).lines() {
        let line = line.context("listening to the supervisor")?;
        match line.split_at_checked(2) {
            Some((PROGRESS, text)) => println!("{text}"),
            Some((READY, text)) => {
                println!("{text}");
                return Ok(ExitCode::SUCCESS);
            }
            Some((FAILED, text)) => eprintln!("{text}"),
            Some(_) | None => println!("{line}"),
        }
    }
    let status = child.wait().context("waiting for the supervisor")?;
    bail!(
        "the cluster did not start ({status}); see {}",
        log_path.display()
    );
}

/// How the supervisor marks its lines.
const PROGRESS: &str = "+ ";
const READY: &str = "= ";
const FAILED: &str = "! ";

// ---- the supervisor's half ----

/// Where the supervisor reports to.
struct Reports {
    /// To the command that started it, line by line with a mark; otherwise to people.
    marked: bool,
}

impl Reports {
    /// The reader may be gone, which is no reason to stop.
    fn say(&self, mark: &str, text: &str) {
        let mut out = std::io::stdout().lock();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            // Nobody listens after the line that is marked as the last one.
            let mark = match (self.marked, mark) {
                (false, _) => "",
                (true, READY) if lines.peek().is_some() => PROGRESS,
                (true, mark) => mark,
            };
            let _written = writeln!(out, "{mark}{line}");
        }
        let _flushed = out.flush();
    }
}

fn supervise(args: &Args, cluster: &Cluster) -> anyhow::Result<ExitCode> {
    let reports = Reports {
        marked: args.daemon,
    };
    if args.daemon {
        nix::unistd::setsid().context("leaving the terminal")?;
    }
    let outcome = supervise_until_told(args, cluster, &reports);
    if let (Err(error), true) = (&outcome, args.daemon) {
        reports.say(FAILED, &format!("twinbft: {error:#}"));
    }
    outcome
}

fn supervise_until_told(
    args: &Args,
    cluster: &Cluster,
    reports: &Reports,
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("starting the runtime")?;
    let mut run_file = RunFile::take(&cluster.layout)?;
    // From here on a signal means an orderly end, also while the cluster starts.
    let told = runtime
        .block_on(async { Told::new() })
        .context("listening to signals")?;
    let programs = Programs::beside_this_one(args.bin_dir.as_deref())?;
    let started = Instant::now();
    let supervisor = Supervisor::start(cluster, &programs)?;
    let ready = wait_ready(
        &supervisor,
        Duration::from_secs(args.timeout_s),
        &mut run_file,
        reports,
    );
    if let Err(error) = ready {
        let left = supervisor.states();
        drop(supervisor.stop(STOP_TIMEOUT));
        let logs = failed_logs(cluster, &left);
        bail!("{error}{logs}");
    }
    run_file.note(&supervisor.states())?;
    let place = cluster.layout.directory().display();
    let took = started.elapsed().as_millis();
    reports.say(
        READY,
        &format!("The cluster is ready after {took} ms. Isolation between twins is simulated: they share this \
                  kernel.\nState: twinbft status --config {place}\nStop:  twinbft down {place}"),
    );
    run_until(&supervisor, &mut run_file, || {
        runtime.block_on(async {
            tokio::select! {
                () = told.wait() => {}
                () = guard(cluster, &supervisor) => {}
            }
        });
    });
    let report = supervisor.stop(STOP_TIMEOUT);
    for name in &report.killed {
        eprintln!(
            "twinbft: {name} did not end within {} s and was killed",
            STOP_TIMEOUT.as_secs()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Carries the policy `restart` out (protocol.md 9), for ever; with another policy it only waits.
async fn guard(cluster: &Cluster, supervisor: &Supervisor) {
    let evidence = &cluster.config.evidence;
    if evidence.on_culprit == OnCulprit::Restart {
        match Guard::new(cluster, 0) {
            Ok(mut guard) => {
                guard
                    .watch(async |(host, twin)| match &evidence.restart_command {
                        Some(command) => run_command(command.clone(), (host, twin)).await,
                        None => Ok(supervisor.restart(ProcessName::Replica(host, twin))?),
                    })
                    .await;
            }
            Err(error) => eprintln!("twinbft: nobody is restarted when it lies: {error:#}"),
        }
    }
    std::future::pending().await
}

/// Writes changes down until `told` returns.
fn run_until(supervisor: &Supervisor, run_file: &mut RunFile, told: impl FnOnce() + Send) {
    const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            told();
            stop.store(true, Ordering::Release);
            supervisor.wake();
        });
        let (mut version, mut known) = (0, supervisor.states());
        while !stop.load(Ordering::Acquire) {
            let (now_at, processes) = supervisor.wait_change(version, Instant::now() + A_DAY);
            for process in changes(&known, &processes) {
                eprintln!("{}", describe(process));
            }
            if let Err(error) = run_file.note(&processes) {
                eprintln!("twinbft: {error}");
            }
            (version, known) = (now_at, processes);
        }
    });
}

/// Waits and says what becomes ready.
fn wait_ready(
    supervisor: &Supervisor,
    timeout: Duration,
    run_file: &mut RunFile,
    reports: &Reports,
) -> Result<(), SuperviseError> {
    let deadline = Instant::now() + timeout;
    let (mut version, mut known) = (0, Vec::new());
    loop {
        let (now_at, processes) = supervisor.wait_change(version, deadline);
        for process in changes(&known, &processes).filter(|p| p.state != ProcessState::Starting) {
            reports.say(PROGRESS, &describe(process));
        }
        run_file.note(&processes)?;
        let done = processes
            .iter()
            .all(|process| process.state == ProcessState::Ready);
        let failed = processes
            .iter()
            .any(|process| process.state == ProcessState::Failed);
        if done || failed || now_at == version {
            // Says which, and why.
            return supervisor.wait_ready(Duration::ZERO);
        }
        (version, known) = (now_at, processes);
    }
}

/// The processes whose state differs from what is known.
fn changes<'p>(
    known: &[ProcessStatus],
    processes: &'p [ProcessStatus],
) -> impl Iterator<Item = &'p ProcessStatus> {
    let same = |process: &ProcessStatus| {
        let mut known = known.iter();
        known.any(|old| old.name == process.name && old.state == process.state)
    };
    let changed: Vec<_> = processes.iter().filter(|process| !same(process)).collect();
    changed.into_iter()
}

fn describe(process: &ProcessStatus) -> String {
    let mut text = format!("{:<10} {}", process.name.to_string(), process.state.name());
    if let Some(pid) = process.pid {
        text.push_str(&format!(" (pid {pid})"));
    }
    if let Some(detail) = &process.detail {
        text.push_str(&format!(": {detail}"));
    }
    text
}

/// The last lines of the logs of those that did not start.
fn failed_logs(cluster: &Cluster, processes: &[ProcessStatus]) -> String {
    let mut text = String::new();
    let failed = |process: &&ProcessStatus| process.state == ProcessState::Failed;
    let any_failed = processes.iter().any(|process| failed(&process));
    let unready = processes
        .iter()
        .filter(|process| process.state != ProcessState::Ready);
    // Those that were given up, and while none was, those that are still awaited.
    for process in unready
        .filter(|process| failed(process) || !any_failed)
        .take(LOGS_MAX)
    {
        let path = cluster
            .layout
            .log()
            .join(format!("{}.log", process.name.file_stem()));
        let Ok(lines) = last_lines(&path) else {
            continue;
        };
        text.push_str(&format!("\n{}:", path.display()));
        for line in lines {
            text.push_str(&format!("\n  {line}"));
        }
    }
    text
}

fn last_lines(path: &Path) -> std::io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(end.saturating_sub(LOG_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    Ok(lines[lines.len().saturating_sub(LOG_LINES)..].to_vec())
}

/// The signals that mean the end.
struct Told {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Told {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
