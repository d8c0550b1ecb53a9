//! `up` and `down` as an operator runs them, with stand-ins for the daemons.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use common::fakes::{self, REFUSES, STUBBORN, behave, starts};
use common::{Fresh, run, stderr, stdout, twinbft};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use twinbft_cli::cluster::Cluster;
use twinbft_cli::supervise::{ProcessName, running};

const TWIN: ProcessName = ProcessName::Replica(0, 1);
/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

#[test]
#[ignore = "the body of the stand-in daemons"]
fn fake_daemon() {
    fakes::run_daemon();
}

/// A cluster that is taken down at the end of the test, however it ends.
struct Site {
    fresh: Fresh,
    cluster: Cluster,
    bin: String,
}

impl Site {
    fn new() -> Self {
        let fresh = Fresh::new(&["--hosts", "1"]);
        let bin = fakes::install(fresh.path()).directory;
        let cluster = Cluster::load(fresh.path()).unwrap();
        Self {
            bin: bin.to_str().unwrap().to_owned(),
            cluster,
            fresh,
        }
    }

    fn up(&self) -> Output {
        run(&[
            "up",
            self.fresh.text(),
            "--bin-dir",
            &self.bin,
            "--timeout-s",
            "30",
        ])
    }

    fn down(&self) -> Output {
        run(&["down", self.fresh.text()])
    }

    /// The processes, the supervisor first.
    fn pids(&self) -> Vec<Pid> {
        let running = running(&self.cluster.layout)
            .unwrap()
            .expect("the cluster runs");
        let processes = running
            .processes
            .iter()
            .map(|process| process.pid.expect("it runs"));
        std::iter::once(running.pid)
            .chain(processes)
            .map(Pid::from_raw)
            .collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Ok(Some(running)) = running(&self.cluster.layout) {
            let _gone = kill(Pid::from_raw(running.pid), Signal::SIGKILL);
        }
    }
}

/// Whether a process runs no more; one that nobody reaps does not run either.
fn ended(pid: Pid) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

#[track_caller]
fn wait_until(wanted: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !wanted() {
        assert!(Instant::now() < deadline, "it never happened");
        std::thread::yield_now();
    }
}

#[test]
fn up_returns_when_all_are_ready_and_down_ends_all() {
    let site = Site::new();
    let output = site.up();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
    let text = stdout(&output);
    for part in [
        "h0/broker  ready",
        "h0/t0      ready",
        "The cluster is ready",
        "simulated",
        "twinbft down",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let pids = site.pids();
    assert_eq!(pids.len(), 4);
    assert!(!pids.iter().any(|pid| ended(*pid)));

    let again = site.up();
    assert_eq!(again.status.code(), Some(1));
    assert!(
        stderr(&again).contains("running already"),
        "{}",
        stderr(&again)
    );
    let init = run(&["init", site.fresh.text(), "--force"]);
    assert_eq!(init.status.code(), Some(1));
    assert!(
        stderr(&init).contains("the cluster is running"),
        "{}",
        stderr(&init)
    );

    let output = site.down();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("Stopped 3 processes"),
        "{}",
        stdout(&output)
    );
    assert!(pids.into_iter().all(ended));
    let output = site.down();
    assert_eq!(
        (
            output.status.code(),
            stdout(&output).contains("Nothing is running")
        ),
        (Some(0), true)
    );
    assert_eq!(
        site.up().status.code(),
        Some(0),
        "and it can be started again"
    );
    assert_eq!(starts(&site.cluster, TWIN).len(), 2);
    assert_eq!(site.down().status.code(), Some(0));
}

#[test]
fn a_supervisor_that_is_killed_takes_its_processes_with_it() {
    let site = Site::new();
    assert_eq!(site.up().status.code(), Some(0));
    let pids = site.pids();
    kill(pids[0], Signal::SIGKILL).unwrap();
    wait_until(|| pids.iter().all(|pid| ended(*pid)));
    // What it left lying about is in nobody's way.
    assert_eq!(site.up().status.code(), Some(0));
    assert_ne!(site.pids()[0], pids[0]);
    assert_eq!(site.down().status.code(), Some(0));
}

#[test]
fn what_dies_is_restarted_in_the_background() {
    let site = Site::new();
    assert_eq!(site.up().status.code(), Some(0));
    let before = site.pids();
    kill(*before.last().unwrap(), Signal::SIGKILL).unwrap();
    let restarted = || {
        let running = running(&site.cluster.layout).unwrap().unwrap();
        let twin = running
            .processes
            .iter()
            .find(|process| process.name == "h0/t1");
        twin.is_some_and(|twin| twin.restarts == 1 && twin.state == "ready")
    };
    wait_until(restarted);
    assert_ne!(site.pids().last(), before.last());
    let log = std::fs::read_to_string(site.cluster.layout.log().join("supervisor.log")).unwrap();
    assert!(
        log.contains("h0/t1      restarting: was killed by signal 9"),
        "{log}"
    );
    assert_eq!(site.down().status.code(), Some(0));
}

#[test]
fn a_cluster_that_does_not_start_says_why_and_leaves_nothing() {
    let site = Site::new();
    behave(&site.cluster, TWIN, REFUSES);
    let output = site.up();
    assert_eq!(output.status.code(), Some(1));
    let complaint = stderr(&output);
    assert!(
        complaint.contains("h0/t1 (failed: ended with status 64"),
        "{complaint}"
    );
    assert!(
        complaint.contains("the stand-in of h0/t1 starts"),
        "its log is shown: {complaint}"
    );
    assert_eq!(running(&site.cluster.layout).unwrap(), None);
    for name in [ProcessName::Broker(0), ProcessName::Replica(0, 0)] {
        for start in starts(&site.cluster, name) {
            assert!(
                ended(Pid::from_raw(i32::try_from(start.pid).unwrap())),
                "{name}"
            );
        }
    }
}

#[test]
fn down_kills_what_does_not_end_and_says_so() {
    let site = Site::new();
    behave(&site.cluster, TWIN, STUBBORN);
    assert_eq!(site.up().status.code(), Some(0));
    let pids = site.pids();
    let output = run(&["down", site.fresh.text(), "--timeout-s", "0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains("Killed the supervisor"),
        "{}",
        stdout(&output)
    );
    assert!(stdout(&output).contains("h0/t1"), "{}", stdout(&output));
    wait_until(|| pids.iter().all(|pid| ended(*pid)));
}

#[test]
fn a_spoilt_configuration_does_not_keep_anybody_from_stopping() {
    let site = Site::new();
    assert_eq!(site.up().status.code(), Some(0));
    site.fresh.replace("key_epoch = 0", "key_epoch = ?");
    assert_eq!(site.down().status.code(), Some(0));
}

#[test]
fn in_the_foreground_it_ends_on_an_interrupt() {
    let site = Site::new();
    let mut child = twinbft()
        .args([
            "up",
            site.fresh.text(),
            "--bin-dir",
            &site.bin,
            "--foreground",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines
        .map_while(Result::ok)
        .find(|line| line.contains("The cluster is ready"));
    assert!(said.is_some());
    let pids = site.pids();
    assert_eq!(pids[0], Pid::from_raw(i32::try_from(child.id()).unwrap()));
    kill(pids[0], Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(pids.into_iter().all(ended));
}
