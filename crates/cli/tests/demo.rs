//! The demonstration from end to end, with real processes: 6 replicas, 3 brokers.

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::daemons::build_daemons;
use common::{stderr, stdout, twinbft};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A short demonstration; `extra` arguments.
fn demo(extra: &[&str]) -> Command {
    let directory = build_daemons();
    let mut command = twinbft();
    command
        .arg("demo")
        .arg("--bin-dir")
        .arg(directory)
        .args(extra);
    command
}

fn verdict(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", stdout(output), stderr(output)))
}

#[test]
fn the_whole_demonstration_ends_as_it_must() {
    let output = demo(&["--json", "--duration-s", "2", "--patience-s", "60"])
        .output()
        .unwrap();
    let verdict = verdict(&output);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{verdict:#}\n{}",
        stderr(&output)
    );
    for (field, expected) in [
        ("ok", json!(true)),
        ("problems", json!([])),
        ("culprits", json!(["h1/t1"])),
        ("errors", json!(0)),
        ("lost_writes", json!(0)),
        ("linearizable", json!(true)),
        ("certified_lies", json!(0)),
        ("killed", json!(["h2"])),
    ] {
        assert_eq!(verdict[field], expected, "{field}: {verdict:#}");
    }
    let lie = &verdict["lies"][0];
    assert!(lie["slots_withheld"].as_u64() > Some(0), "{verdict:#}");
    assert_eq!(
        (&lie["results_certified"], &lie["replies_sent"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(lie["certifies_again"], true);
    assert!(verdict["operations"].as_u64() > Some(300), "{verdict:#}");
    assert!(
        verdict["acknowledged_writes"].as_u64() > Some(50),
        "{verdict:#}"
    );
    // Not on a terminal a table stands at the end of each act.
    let shown = stderr(&output);
    assert_eq!(
        shown.matches("cross-checked  diverged").count(),
        4,
        "{shown}"
    );
    assert!(
        shown.contains("Isolation between twins is simulated"),
        "{shown}"
    );
}

/// The check has teeth: when nobody lies, nobody can be named, and the demonstration must not be content.
#[test]
fn without_the_lie_the_demonstration_fails() {
    let arguments = [
        "--json",
        "--duration-s",
        "0.4",
        "--patience-s",
        "2",
        "--no-lie",
    ];
    let output = demo(&arguments).output().unwrap();
    let verdict = verdict(&output);
    assert_eq!(output.status.code(), Some(1), "{verdict:#}");
    assert_eq!(verdict["ok"], false);
    let problems = verdict["problems"].to_string();
    assert!(
        problems.contains("nobody named it as the culprit"),
        "{problems}"
    );
    // All else went well.
    assert_eq!(verdict["linearizable"], true);
    assert_eq!(verdict["culprits"], json!([]));
}

#[test]
fn the_prompt_obeys_a_pipe_and_keeps_to_one_faulty_host() {
    let temporary = tempfile::tempdir().unwrap();
    let kept = temporary.path().join("kept");
    let mut child = demo(&["--interactive", "--patience-s", "60", "--keep"])
        .arg(&kept)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = "byzantine h0/1 wrong-result\nkill h2\nnonsense\nheal\nkill h0\nkill h2\nstatus\nheal\nbyzantine h1/1 mute\nheal\nbyzantine h1/1 no-votes\nheal\nbyzantine h1/0 wrong-result\nquit\n";
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let shown = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    for part in [
        "the culprit is h0/t1",
        "h0/t1 lies, and one faulty host is all",
        "\"nonsense\" is no command",
        "h0/t1 is honest again",
        "h0 is down, until you say heal",
        "down (killed)",
        "h0 is back",
        "h0 is down, and one faulty host is all",
        "h1/t1 does mute",
        "h1/t1 does no-votes",
        "h1/t1 was started again, and is honest",
        "All is as it must be.",
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    let logs = kept.join("log").read_dir().unwrap().count();
    assert_eq!(logs, 9, "one log for each process");
}

/// The temporary directory that a demonstration names.
fn directory_in(shown: &str) -> Option<PathBuf> {
    let place = shown.lines().find_map(|line| line.split_once(" in /"))?.1;
    Some(Path::new("/").join(place))
}

#[test]
fn an_interrupt_stops_everything_and_removes_the_directory() {
    use std::io::BufRead as _;
    let mut child = demo(&["--interactive", "--patience-s", "60"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Its end would end the demonstration, too.
    let _input = child.stdin.take();
    let mut shown = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("Ready after") {
        assert!(shown.read_line(&mut text).unwrap() > 0, "it ended: {text}");
    }
    let directory = directory_in(&text).expect("it names its directory");
    assert!(directory.join("cluster.toml").is_file());
    let pid = i32::try_from(child.id()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(!directory.exists(), "{} is left", directory.display());
    assert_eq!(processes_of(&directory), Vec::<String>::new());
}

/// Processes whose command line names the directory.
fn processes_of(directory: &Path) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(directory.to_str().unwrap()))
        .collect()
}

#[test]
fn without_the_lying_replica_it_says_how_to_get_one() {
    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join("postbox-broker"), "").unwrap();
    let output = twinbft()
        .args(["demo", "--bin-dir"])
        .arg(empty.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    for part in [
        "twinbft-replica-doubles",
        "scripts/demo",
        "cannot be told to lie",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn strange_durations_are_refused() {
    for strange in ["0", "-1", "NaN", "1e9", "soon"] {
        let output = twinbft()
            .args(["demo", "--duration-s", strange])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{strange}");
    }
}
