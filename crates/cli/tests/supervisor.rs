//! The supervisor with stand-ins for the daemons: start, readiness, restarts, the descriptor store, and the end.

mod common;

use std::time::{Duration, Instant};

use common::Fresh;
use common::fakes::{self, DIES, MUTE, REFUSES, STUBBORN, behave, starts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use twinbft_cli::cluster::Cluster;
use twinbft_cli::supervise::{
    ProcessName, ProcessState, ProcessStatus, Programs, SuperviseError, Supervisor,
};

const BROKER: ProcessName = ProcessName::Broker(0);
const TWIN: ProcessName = ProcessName::Replica(0, 1);
/// Far longer than anything here takes; only a broken supervisor needs it.
const LONG: Duration = Duration::from_secs(30);

#[test]
#[ignore = "the body of the stand-in daemons"]
fn fake_daemon() {
    fakes::run_daemon();
}

struct Fleet {
    cluster: Cluster,
    programs: Programs,
    _fresh: Fresh,
}

impl Fleet {
    fn new(hosts: &str) -> Self {
        let fresh = Fresh::new(&["--hosts", hosts]);
        let programs = fakes::install(fresh.path());
        Self {
            cluster: Cluster::load(fresh.path()).unwrap(),
            programs,
            _fresh: fresh,
        }
    }

    fn start(&self) -> Supervisor {
        Supervisor::start(&self.cluster, &self.programs).unwrap()
    }
}

/// Waits until a process is as wanted.
#[track_caller]
fn until(
    supervisor: &Supervisor,
    name: ProcessName,
    wanted: impl Fn(&ProcessStatus) -> bool,
) -> ProcessStatus {
    let deadline = Instant::now() + LONG;
    let mut version = 0;
    loop {
        let (now_at, processes) = supervisor.wait_change(version, deadline);
        let process = processes
            .into_iter()
            .find(|process| process.name == name)
            .unwrap();
        if wanted(&process) {
            return process;
        }
        assert_ne!(now_at, version, "{process:?}");
        version = now_at;
    }
}

fn ready(process: &ProcessStatus) -> bool {
    process.state == ProcessState::Ready
}

fn gone(pid: Pid) -> bool {
    kill(pid, None).is_err()
}

#[test]
fn everything_becomes_ready_and_ends_when_told() {
    let fleet = Fleet::new("3");
    let supervisor = fleet.start();
    supervisor.wait_ready(LONG).unwrap();
    let states = supervisor.states();
    assert_eq!(states.len(), 9);
    let mut pids: Vec<Pid> = states
        .iter()
        .map(|p| supervisor.pid(p.name).unwrap())
        .collect();
    pids.sort();
    pids.dedup();
    assert_eq!(pids.len(), 9, "each is a process of its own");
    for process in &states {
        assert_eq!(process.detail.as_deref(), Some("well"));
        assert_eq!(
            u32::try_from(process.pid.unwrap()).unwrap(),
            starts(&fleet.cluster, process.name)[0].pid
        );
    }
    let file = fleet.cluster.file.canonicalize().unwrap();
    assert_eq!(
        starts(&fleet.cluster, TWIN)[0].arguments,
        format!("--config {} --host 0 --twin 1", file.display())
    );
    let log = fleet.cluster.layout.log().join("h0t1.log");
    assert!(
        std::fs::read_to_string(log)
            .unwrap()
            .contains("the stand-in of h0/t1 starts")
    );
    let report = supervisor.stop(LONG);
    assert_eq!(report.killed, []);
    assert!(pids.into_iter().all(gone));
}

#[test]
fn a_broker_that_crashes_gets_its_log_back() {
    let fleet = Fleet::new("1");
    let supervisor = fleet.start();
    supervisor.wait_ready(LONG).unwrap();
    let before = until(&supervisor, BROKER, ready);
    assert_eq!((before.kept, before.restarts), (1, 0));
    kill(supervisor.pid(BROKER).unwrap(), Signal::SIGKILL).unwrap();
    let after = until(&supervisor, BROKER, |process| {
        ready(process) && process.restarts == 1
    });
    assert_ne!(after.pid, before.pid);
    let [first, second] = &starts(&fleet.cluster, BROKER)[..] else {
        panic!("two starts")
    };
    assert_eq!(
        (&first.listen_fds, &first.listen_pid, &first.listen_names),
        (&None, &None, &None)
    );
    assert_eq!(second.listen_fds.as_deref(), Some("1"));
    assert_eq!(second.listen_names.as_deref(), Some("twinbft-log-1-0"));
    assert_eq!(second.listen_pid, Some(second.pid.to_string()));
    assert_eq!(second.inherited, Some(format!("log of {}", first.pid)));
    until(&supervisor, TWIN, |process| {
        ready(process) && process.restarts == 0
    });
}

#[test]
fn what_a_host_loses_with_its_power_can_be_dropped() {
    let fleet = Fleet::new("1");
    let supervisor = fleet.start();
    supervisor.wait_ready(LONG).unwrap();
    supervisor.kill(BROKER, Signal::SIGKILL).unwrap();
    until(&supervisor, BROKER, |process| process.pid.is_none());
    supervisor.forget_kept(BROKER).unwrap();
    supervisor.restart(BROKER).unwrap();
    until(&supervisor, BROKER, ready);
    assert_eq!(starts(&fleet.cluster, BROKER)[1].inherited, None);
}

#[test]
fn what_is_killed_on_purpose_stays_down_until_it_is_restarted() {
    let fleet = Fleet::new("1");
    let supervisor = fleet.start();
    supervisor.wait_ready(LONG).unwrap();
    supervisor.kill(TWIN, Signal::SIGKILL).unwrap();
    let down = until(&supervisor, TWIN, |process| {
        process.state == ProcessState::Stopped
    });
    assert_eq!(
        (down.pid, down.detail.as_deref()),
        (None, Some("was killed by signal 9"))
    );
    assert!(matches!(
        supervisor.kill(TWIN, Signal::SIGKILL),
        Err(SuperviseError::NotRunning(TWIN))
    ));
    supervisor.restart(TWIN).unwrap();
    let up = until(&supervisor, TWIN, ready);
    // Restarting what runs gives a new process.
    supervisor.restart(TWIN).unwrap();
    until(&supervisor, TWIN, |process| {
        ready(process) && process.pid != up.pid
    });
    assert_eq!(starts(&fleet.cluster, TWIN).len(), 3);
    assert_eq!(
        starts(&fleet.cluster, BROKER).len(),
        1,
        "nobody else was disturbed"
    );
    // A signal that ends nothing changes nothing.
    supervisor.kill(TWIN, Signal::SIGCONT).unwrap();
    assert_eq!(
        until(&supervisor, TWIN, |_| true).state,
        ProcessState::Ready
    );
    let nobody = ProcessName::Replica(7, 0);
    assert!(
        matches!(supervisor.restart(nobody), Err(SuperviseError::NoProcess(name)) if name == nobody)
    );
}

#[test]
fn a_refused_configuration_is_not_tried_again() {
    let fleet = Fleet::new("1");
    behave(&fleet.cluster, TWIN, REFUSES);
    let supervisor = fleet.start();
    let error = supervisor.wait_ready(LONG).unwrap_err();
    let SuperviseError::NotReady(processes) = &error else {
        panic!("{error}")
    };
    assert_eq!((processes.len(), processes[0].name), (1, TWIN));
    assert!(
        error
            .to_string()
            .contains("h0/t1 (failed: ended with status 64"),
        "{error}"
    );
    assert_eq!(starts(&fleet.cluster, TWIN).len(), 1);
    behave(&fleet.cluster, TWIN, "");
    supervisor.restart(TWIN).unwrap();
    supervisor.wait_ready(LONG).unwrap();
}

#[test]
fn what_dies_before_it_is_ready_is_given_up_after_a_while() {
    let fleet = Fleet::new("1");
    behave(&fleet.cluster, TWIN, DIES);
    let supervisor = fleet.start();
    let failed = until(&supervisor, TWIN, |process| {
        process.state == ProcessState::Failed
    });
    assert_eq!(
        failed.detail.as_deref(),
        Some("ended with status 3 before it was ready")
    );
    assert_eq!(
        (failed.restarts, starts(&fleet.cluster, TWIN).len()),
        (4, 5)
    );
}

#[test]
fn a_replica_waits_for_its_broker_and_the_silent_are_named() {
    let fleet = Fleet::new("1");
    behave(&fleet.cluster, BROKER, MUTE);
    let supervisor = fleet.start();
    until(&supervisor, BROKER, |process| process.pid.is_some());
    let error = supervisor
        .wait_ready(Duration::from_millis(50))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("h0/broker (starting") && error.contains("h0/t0 (starting"),
        "{error}"
    );
    assert_eq!(starts(&fleet.cluster, TWIN).len(), 0);
    until(&supervisor, TWIN, |process| {
        process.detail.as_deref() == Some("waits for its broker")
    });
    behave(&fleet.cluster, BROKER, "");
    supervisor.restart(BROKER).unwrap();
    supervisor.wait_ready(LONG).unwrap();
}

#[test]
fn whoever_does_not_end_is_killed_and_named() {
    let fleet = Fleet::new("1");
    let name = ProcessName::Replica(0, 0);
    behave(&fleet.cluster, name, STUBBORN);
    let supervisor = fleet.start();
    supervisor.wait_ready(LONG).unwrap();
    let pids: Vec<Pid> = supervisor
        .states()
        .iter()
        .map(|p| Pid::from_raw(p.pid.unwrap()))
        .collect();
    let report = supervisor.stop(Duration::from_millis(100));
    assert!(report.killed.contains(&name), "{report:?}");
    assert!(pids.into_iter().all(gone));
}

#[test]
fn a_dropped_supervisor_leaves_nothing_behind() {
    let fleet = Fleet::new("1");
    let supervisor = fleet.start();
    supervisor.wait_ready(LONG).unwrap();
    let pids: Vec<Pid> = supervisor
        .states()
        .iter()
        .map(|p| Pid::from_raw(p.pid.unwrap()))
        .collect();
    drop(supervisor);
    assert!(pids.into_iter().all(gone));
    let run = fleet.cluster.layout.host_run(0);
    let names = std::fs::read_dir(run)
        .unwrap()
        .map(|file| file.unwrap().file_name());
    assert_eq!(
        names.collect::<Vec<_>>(),
        ["genesis"],
        "its sockets are gone, too; what init wrote is there"
    );
}

#[test]
fn processes_run_on_the_cpus_of_their_host() {
    let mut fleet = Fleet::new("1");
    fleet.cluster.config.hosts[0].cpu = vec![0];
    let supervisor = fleet.start();
    supervisor.wait_ready(LONG).unwrap();
    for name in [BROKER, TWIN] {
        assert_eq!(starts(&fleet.cluster, name)[0].cpus, [0]);
    }
}

#[test]
fn hosts_without_cpus_of_their_own_share_what_there_is() {
    let fleet = Fleet::new("2");
    let supervisor = fleet.start();
    supervisor.wait_ready(LONG).unwrap();
    let cpus = |name| starts(&fleet.cluster, name)[0].cpus.clone();
    let all = std::thread::available_parallelism().unwrap().get();
    let shares = [cpus(BROKER), cpus(ProcessName::Broker(1))];
    assert_eq!(cpus(TWIN), shares[0], "a host's processes stay together");
    if all == 1 {
        assert_eq!(shares[0], shares[1]);
    } else {
        assert_eq!(shares.each_ref().map(Vec::len), [all / 2; 2]);
        assert!(
            shares[0].iter().all(|cpu| !shares[1].contains(cpu)),
            "{shares:?}"
        );
    }
}

#[test]
fn a_cpu_that_is_not_there_is_named_in_the_log() {
    let mut fleet = Fleet::new("1");
    fleet.cluster.config.hosts[0].cpu = vec![1023];
    let supervisor = fleet.start();
    until(&supervisor, BROKER, |process| {
        process.state == ProcessState::Failed
    });
    let log = fleet.cluster.layout.log().join("h0-broker.log");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(
        log.contains("pinning to the CPUs [1023] of cluster.toml"),
        "{log}"
    );
}

#[test]
fn missing_programs_and_long_paths_are_said_at_once() {
    let mut fleet = Fleet::new("1");
    let long = fleet.cluster.layout.directory().join("x".repeat(100));
    std::fs::create_dir(&long).unwrap();
    std::fs::copy(&fleet.cluster.file, long.join("cluster.toml")).unwrap();
    let there = Cluster::load(&long).unwrap();
    let error = Supervisor::start(&there, &fleet.programs).unwrap_err();
    assert!(matches!(error, SuperviseError::PathTooLong(_)), "{error}");
    fleet.programs.directory.push("nowhere");
    let error = Supervisor::start(&fleet.cluster, &fleet.programs).unwrap_err();
    assert!(
        error.to_string().contains("nowhere/postbox-broker")
            && error.to_string().contains("--bin-dir")
    );
}
