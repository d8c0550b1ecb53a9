//! The log survives the broker process when a supervisor keeps it, and its loss is never hidden
//! (protocol.md, sections 2 and 8).

mod common;

use common::{Host, append, await_close, read};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use twinbft_postbox::{Channel, Reconnected, Wake};

/// What is unread stays unread.
fn reconnect(channel: &mut Channel) -> Reconnected {
    channel.reconnect().expect("the broker is back")
}

#[test]
fn a_killed_brokers_log_is_continued_and_nothing_is_lost_or_doubled() {
    let mut host = Host::start_small("2");
    let (mut zero, mut one) = (host.connect(0), host.connect(1));
    let mut sent = Vec::new();
    let mut seen = Vec::new();
    for round in 0..5u32 {
        // Some of these are in the log when the broker dies, some in the ring, some in the queue.
        for n in 0..40u32 {
            let payload = (round * 1000 + n).to_le_bytes().to_vec();
            append(&mut zero, &payload);
            sent.push(payload);
        }
        if round % 2 == 0 {
            seen.extend(read(&mut one, 3));
        }
        host.kill();
        host.start_broker();
        assert_eq!(reconnect(&mut zero), Reconnected::SameEpoch);
        assert_eq!(reconnect(&mut one), Reconnected::SameEpoch);
    }
    seen.extend(read(&mut one, sent.len() - seen.len()));
    assert!(seen.iter().map(|entry| entry.0).eq(0..sent.len() as u64));
    assert!(seen.iter().map(|entry| &entry.2).eq(&sent));
    assert_eq!(read(&mut zero, sent.len()), seen);
    assert_eq!(
        (one.reader.epoch(), one.reader.end()),
        (1, sent.len() as u64)
    );
    // The earlier copies were taken back, one at a time.
    assert_eq!(host.supervisor.stored_names(), ["twinbft-log-1-5"]);
    assert_eq!(host.status()["generation"], 5);
}

#[test]
fn head_state_and_numbers_survive_a_restart_after_a_trim() {
    let mut host = Host::start_small("2");
    let (mut zero, mut one) = (host.connect(0), host.connect(1));
    for n in 0..20u8 {
        append(&mut zero, &[n; 900]);
    }
    read(&mut zero, 20);
    read(&mut one, 5);
    for twin in [&mut zero, &mut one] {
        twin.appender
            .trim(16, b"the state")
            .expect("an open channel");
        twin.appender.flush();
    }
    while zero.reader.head() < 16 {
        common::await_news(&mut zero);
    }
    host.kill();
    host.start_broker();
    assert_eq!(reconnect(&mut zero), Reconnected::SameEpoch);
    assert_eq!(reconnect(&mut one), Reconnected::SameEpoch);
    assert_eq!(zero.reader.position(), 20);
    let state = one
        .reader
        .resync()
        .expect("a sound log")
        .expect("it was trimmed");
    assert_eq!(
        (state.position, state.bytes.as_slice()),
        (16, &b"the state"[..])
    );
    assert_eq!(read(&mut one, 4)[3].2, [19; 900]);
    assert_eq!(append(&mut zero, b"next"), 20);
    assert_eq!(read(&mut zero, 1), [(20, 0, b"next".to_vec())]);
}

#[test]
fn a_reader_that_a_trim_has_passed_is_lapped_after_a_reconnect_too() {
    let mut host = Host::start_small("2");
    let (mut zero, mut one) = (host.connect(0), host.connect(1));
    let mut third = Host::connect(&host, 1);
    await_close(&mut one);
    for n in 0..8u8 {
        append(&mut zero, &[n]);
    }
    read(&mut zero, 8);
    for twin in [&mut zero, &mut third] {
        twin.appender.trim(8, b"s").expect("an open channel");
        twin.appender.flush();
    }
    while zero.reader.head() < 8 {
        common::await_news(&mut zero);
    }
    host.kill();
    host.start_broker();
    // This one has read nothing.
    assert_eq!(
        one.reconnect().expect("the broker is back"),
        Reconnected::SameEpoch
    );
    let lapped = twinbft_postbox::ReadError::Lapped { position: 0 };
    assert_eq!(one.reader.poll_next(&mut Vec::new()), Err(lapped));
    assert_eq!(
        one.reader
            .resync()
            .expect("a sound log")
            .map(|state| state.position),
        Some(8)
    );
    assert_eq!(one.reader.poll_next(&mut Vec::new()), Ok(None));
}

#[test]
fn without_a_kept_log_the_epoch_grows_and_unconfirmed_appends_are_given_back() {
    let mut host = Host::start_small("2");
    let mut zero = host.connect(0);
    append(&mut zero, b"seen");
    read(&mut zero, 1);
    host.kill();
    host.supervisor.forget();
    let number = append(&mut zero, b"never seen");
    host.start_broker();
    let expected = Reconnected::NewEpoch {
        abandoned: vec![(number, b"never seen".to_vec())],
    };
    loop {
        // The confirmation of the first entry may not have been looked at.
        let _ = zero.appender.poll();
        if zero.appender.unconfirmed() <= 1 {
            break;
        }
    }
    assert_eq!(reconnect(&mut zero), expected);
    assert_eq!(
        (
            zero.reader.epoch(),
            zero.reader.end(),
            zero.appender.next_number()
        ),
        (2, 0, 0)
    );
    host.kill();
    host.supervisor.forget();
    host.start_broker();
    assert_eq!(host.status()["epoch"], 3);
}

#[test]
fn a_damaged_or_foreign_log_starts_a_new_epoch_and_says_why() {
    let mut host = Host::start_small("2");
    host.kill();
    host.supervisor.forget();
    let junk = memfd_create("junk", MFdFlags::MFD_CLOEXEC).expect("a descriptor is left");
    nix::unistd::write(&junk, &[0xa5; 8192]).expect("there is memory");
    host.supervisor.store("twinbft-log-1-0", junk);
    host.start_broker();
    let status = host.status();
    assert_eq!(status["epoch"], 2);
    let events = status["events"].as_array().expect("a list");
    let lost = events
        .iter()
        .find(|event| event["kind"] == "log-lost")
        .expect("it says so");
    assert!(
        lost["text"].as_str().expect("a text").contains("seals"),
        "{lost}"
    );
}

#[test]
fn sigterm_ends_it_in_order_and_the_watchdog_is_fed() {
    let mut host = Host::start(&[]);
    let mut zero = host.connect(0);
    append(&mut zero, b"last words");
    host.supervisor.await_message("WATCHDOG=1", 3);
    let mut child = host.child.take().expect("it runs");
    kill(
        Pid::from_raw(i32::try_from(child.id()).expect("a pid")),
        Signal::SIGTERM,
    )
    .expect("it is ours");
    assert!(child.wait().expect("it is ours").success());
    assert_eq!(await_close(&mut zero), "the broker stops");
    assert_eq!(zero.reader.end(), 1);
    assert_eq!(
        zero.reader.wait(None, || false),
        Wake::Closed("the broker stops".to_owned())
    );
    host.supervisor.await_message("STOPPING=1", 1);
}

#[test]
fn a_second_broker_in_the_same_directory_is_refused() {
    let host = Host::start(&[]);
    let command = host.command();
    let output = std::process::Command::new(&command[0])
        .args(&command[1..])
        .output()
        .expect("it starts");
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("another broker runs in this directory")
    );
    assert_eq!(host.status()["epoch"], 1, "the first one goes on");
}
