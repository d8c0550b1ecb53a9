//! The broker records its log, and goes on with the record after SIGKILL (protocol.md, section 9).

mod common;

use common::{Host, append, read};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use twinbft_recording::{Item, Recording};

#[test]
fn a_record_goes_on_over_a_kill_and_a_stop_and_the_status_tells() {
    let record = tempfile::tempdir().expect("a directory");
    let dir = record.path().to_str().expect("plain names");
    let mut host = Host::start(&["--record-dir", dir]);
    let mut zero = host.connect(0);
    for n in 0..50u8 {
        append(&mut zero, &[n]);
    }
    read(&mut zero, 50);
    host.kill();
    host.start_broker();
    zero.reconnect().expect("the broker is back");
    for n in 50..80u8 {
        append(&mut zero, &[n]);
    }
    read(&mut zero, 30);
    let status = host.status();
    assert_eq!(status["record"]["dir"], dir);
    assert_eq!(status["record"]["gaps"], 0);
    assert_eq!(status["record"]["problem"], serde_json::Value::Null);

    // Stopped in order, it records what it has taken in.
    let mut child = host.child.take().expect("it runs");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, Signal::SIGTERM).expect("it is ours");
    assert!(child.wait().expect("it is ours").success());
    let mut recording = Recording::open(record.path()).expect("it is there");
    let (mut seen, mut payload) = (Vec::new(), Vec::new());
    while let Some(item) = recording.next(&mut payload).expect("it is whole") {
        if let Item::Entry(head) = item {
            assert_eq!((head.sender, head.epoch), (0, 1));
            assert_eq!(payload, [u8::try_from(head.position).expect("a few")]);
            seen.push(head.position);
        }
    }
    assert!(seen.into_iter().eq(0..80));
}

#[test]
fn a_broker_whose_record_cannot_be_written_serves_all_the_same_and_says_so() {
    let record = tempfile::tempdir().expect("a directory");
    let path = record.path().join("file");
    std::fs::write(&path, "in the way").expect("there is room");
    let host = Host::start(&["--record-dir", path.to_str().expect("plain names")]);
    let mut zero = host.connect(0);
    append(&mut zero, b"served");
    assert_eq!(read(&mut zero, 1)[0].2, b"served");
    // The recorder's first turn comes before or after this; its event is journaled either way.
    let problem = loop {
        let status = host.status();
        if let Some(problem) = status["record"]["problem"].as_str() {
            break problem.to_owned();
        }
    };
    assert!(problem.contains("not recording"), "{problem}");
    let events = loop {
        let status = host.status();
        let events = status["events"].as_array().expect("a list").clone();
        if events.iter().any(|event| event["kind"] == "record") {
            break events;
        }
    };
    assert!(events.iter().any(|event| event["text"] == problem.as_str()));
}
