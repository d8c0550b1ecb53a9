//! The life of one process: start, wait for its end, pause, start again.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use twinbft_config::Layout;

use super::shared::{Locked, ProcessState, Shared, Slot, Wanted};
use super::{BROKER, LAUNCH, ProcessName, Programs, REPLICA};

/// The pause before the second start; doubles with each one after that.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A process that was ready for so long has recovered from whatever it died of.
const RECOVERED_AFTER: Duration = Duration::from_secs(10);
/// After so many ends in a row that were never ready, there is no point in trying again.
const UNREADY_ENDS_MAX: u32 = 5;
/// Daemons end so when trying again changes nothing: a wrong configuration, or a state that needs recovery.
const EXITS_FOR_GOOD: [i32; 2] = [64, 65];
/// The first descriptor of the sd_listen_fds protocol.
const LISTEN_FDS_START: i32 = 3;

/// How to start a process.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) name: ProcessName,
    pub(super) notify_socket: PathBuf,
    launcher: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    cpu: Vec<u16>,
    namespace: Option<PathBuf>,
}

impl Spec {
    pub(super) fn new(
        name: ProcessName,
        layout: &Layout,
        file: &Path,
        programs: &Programs,
        cpu: &[u16],
    ) -> Self {
        let run = layout.host_run(name.host());
        let own = programs.replica_configurations.get(&name);
        let file = own
            .map_or(file, PathBuf::as_path)
            .to_string_lossy()
            .into_owned();
        let mut arguments = vec!["--config".to_owned(), file, "--host".to_owned()];
        arguments.push(name.host().to_string());
        let (program, notify) = match name {
            ProcessName::Broker(_) => (BROKER, "notify-b".to_owned()),
            ProcessName::Replica(_, twin) => {
                arguments.extend(["--twin".to_owned(), twin.to_string()]);
                arguments.extend(programs.replica_arguments.iter().cloned());
                (REPLICA, format!("notify-{twin}"))
            }
        };
        Self {
            name,
            notify_socket: run.join(notify),
            launcher: programs.launcher.clone(),
            program: programs.directory.join(program),
            arguments,
            log: layout.log().join(format!("{}.log", name.file_stem())),
            cpu: cpu.to_vec(),
            namespace: programs.namespaces.get(&name.host()).cloned(),
        }
    }
}

/// Runs until the process is wanted [`Wanted::Gone`].
pub(super) fn keep(spec: &Spec, shared: &Shared) {
    let mut ends = Ends::default();
    loop {
        let mut slot = shared.slot(spec.name);
        // What is wanted may change at any time, and so may the broker.
        loop {
            let may_start = slot.may_start();
            match slot.get().wanted {
                Wanted::Gone => {
                    slot.get().state = ProcessState::Stopped;
                    slot.publish();
                    return;
                }
                Wanted::Running if may_start => break,
                Wanted::Running => slot.get().detail = Some("waits for its broker".to_owned()),
                Wanted::Down => {}
            }
            slot = slot.wait(None);
        }
        match start(spec, slot.get()) {
            Ok(mut child) => {
                slot.publish();
                drop(slot);
                let status = wait_for_end(&mut child, spec.name, shared);
                pause(shared.slot(spec.name), &mut ends, status);
            }
            Err(error) => {
                let slot_now = slot.get();
                slot_now.state = ProcessState::Failed;
                slot_now.wanted = Wanted::Down;
                slot_now.detail = Some(error);
                slot.publish();
            }
        }
    }
}

/// Starts the process. The lock is held, so whoever wants it gone sees its pid.
fn start(spec: &Spec, slot: &mut Slot) -> Result<Child, String> {
    let log = OpenOptions::new().create(true).append(true).open(&spec.log);
    let log = log.map_err(|error| format!("opening {}: {error}", spec.log.display()))?;
    let in_log = |error: io::Error| format!("starting {}: {error}", spec.program.display());
    let mut mappings = Vec::new();
    let mut names = Vec::new();
    for ((name, fd), child_fd) in slot.kept.iter().zip(LISTEN_FDS_START..) {
        mappings.push(FdMapping {
            parent_fd: fd.try_clone().map_err(in_log)?,
            child_fd,
        });
        names.push(name.clone());
    }
    let mut command = Command::new(&spec.launcher);
    command
        .arg(LAUNCH)
        .arg("--parent")
        .arg(std::process::id().to_string());
    if !spec.cpu.is_empty() {
        let cpus: Vec<String> = spec.cpu.iter().map(ToString::to_string).collect();
        command.arg("--cpu").arg(cpus.join(","));
    }
    if let Some(namespace) = &spec.namespace {
        command.arg("--network-namespace").arg(namespace);
    }
    command.arg("--").arg(&spec.program).args(&spec.arguments);
    command
        .env("NOTIFY_SOCKET", &spec.notify_socket)
        // Their output is a file.
        .env("NO_COLOR", "1")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_FDNAMES");
    if !names.is_empty() {
        command.env("LISTEN_FDS", names.len().to_string());
        command.env("LISTEN_FDNAMES", names.join(":"));
    }
    let mappings = command.fd_mappings(mappings);
    mappings.map_err(|error| format!("passing descriptors to {}: {error}", spec.name))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(in_log)?)
        .stderr(log);
    let child = command.spawn().map_err(|error| {
        format!(
            "starting {} for {}: {error}",
            spec.launcher.display(),
            spec.name
        )
    })?;
    let pid = i32::try_from(child.id()).expect("process ids are positive and fit");
    slot.pid = Some(Pid::from_raw(pid));
    slot.state = ProcessState::Starting;
    slot.ready_since = None;
    slot.hurry = false;
    slot.detail = None;
    Ok(child)
}

/// Waits without the lock, and reaps with it: until then the pid cannot be given to another process.
fn wait_for_end(child: &mut Child, name: ProcessName, shared: &Shared) -> ExitStatus {
    let pid = i32::try_from(child.id()).expect("process ids are positive and fit");
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::Pid(Pid::from_raw(pid)), flags) {
            Ok(_) => break,
            Err(nix::Error::EINTR) => {}
            Err(error) => panic!("waiting for {name}, our own child: {error}"),
        }
    }
    let mut slot = shared.slot(name);
    let status = child.wait().expect("it has ended and is ours");
    slot.get().pid = None;
    slot.publish();
    status
}

/// What is known of the ends so far.
#[derive(Default)]
struct Ends {
    in_a_row: u32,
    unready: u32,
}

/// Notes how the process ended and waits before the next start.
fn pause(mut slot: Locked<'_>, ends: &mut Ends, status: ExitStatus) {
    let now = Instant::now();
    let process = slot.get();
    let how = describe(status);
    match process.ready_since.take() {
        Some(since) if now.duration_since(since) >= RECOVERED_AFTER => *ends = Ends::default(),
        Some(_) => ends.unready = 0,
        None => ends.unready += 1,
    }
    if process.wanted != Wanted::Running || process.hurry {
        *ends = Ends::default();
        process.detail = Some(how);
        process.state = match process.wanted {
            Wanted::Running => ProcessState::Restarting,
            Wanted::Down | Wanted::Gone => ProcessState::Stopped,
        };
        process.restarts += u32::from(process.wanted == Wanted::Running);
        slot.publish();
        return;
    }
    let for_good = status
        .code()
        .is_some_and(|code| EXITS_FOR_GOOD.contains(&code));
    if for_good || ends.unready >= UNREADY_ENDS_MAX {
        process.state = ProcessState::Failed;
        process.wanted = Wanted::Down;
        process.detail = Some(format!("{how} before it was ready"));
        *ends = Ends::default();
        slot.publish();
        return;
    }
    let deadline = now + (PAUSE_MIN * 2_u32.saturating_pow(ends.in_a_row)).min(PAUSE_MAX);
    ends.in_a_row = (ends.in_a_row + 1).min(16);
    process.state = ProcessState::Restarting;
    process.restarts += 1;
    process.detail = Some(how);
    slot.publish();
    while slot.get().wanted == Wanted::Running && !slot.get().hurry && Instant::now() < deadline {
        slot = slot.wait(Some(deadline));
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
