//! One log, one order, the sender stamped by the channel (protocol.md, section 2).

mod common;

use common::{Host, append, await_close, read};
use twinbft_postbox::{AppendError, Wake};

#[test]
fn two_twins_read_the_same_entries_in_the_same_order() {
    let host = Host::start(&[]);
    let (mut zero, mut one) = (host.connect(0), host.connect(1));
    for number in 0..500u64 {
        append(&mut zero, &number.to_le_bytes());
        append(&mut one, &(number + 1000).to_le_bytes());
    }
    let seen = read(&mut zero, 1000);
    assert_eq!(seen, read(&mut one, 1000));
    assert!(
        seen.iter().map(|entry| entry.0).eq(0..1000),
        "positions have no gap"
    );
    for sender in 0..2 {
        let own = seen
            .iter()
            .filter(|entry| entry.1 == sender)
            .map(|entry| entry.2.clone());
        let first = u64::from(sender) * 1000;
        assert!(
            own.eq((first..first + 500).map(|number| number.to_le_bytes().to_vec())),
            "each twin is FIFO"
        );
    }
    assert_eq!((zero.reader.end(), zero.reader.epoch()), (1000, 1));
}

#[test]
fn an_entry_larger_than_the_ring_is_streamed_through_it() {
    let host = Host::start(&["--ring-order", "12"]);
    let (mut zero, mut one) = (host.connect(0), host.connect(1));
    let big: Vec<u8> = (0..2_097_152u32).map(|n| n.to_le_bytes()[1]).collect();
    let writer = std::thread::spawn(move || {
        append(&mut zero, b"before");
        append(&mut zero, &big);
        append(&mut zero, b"after");
        let seen = read(&mut zero, 3);
        assert_eq!(
            zero.appender.append(&[0; 2_097_153]),
            Err(AppendError::TooLarge {
                bytes: 2_097_153,
                bytes_max: 2_097_152
            })
        );
        (seen, big)
    });
    let seen = read(&mut one, 3);
    let (theirs, big) = writer.join().expect("the writer ends");
    assert_eq!(seen[1].2, big);
    assert_eq!(seen, theirs);
}

#[test]
fn a_new_process_of_a_twin_goes_on_with_the_number_and_closes_the_old_channel() {
    let host = Host::start(&[]);
    let mut old = host.connect(0);
    assert_eq!(append(&mut old, b"a"), 0);
    let mut new = host.connect(0);
    // What the old process had written before counts.
    assert_eq!(append(&mut new, b"b"), 1);
    assert!(await_close(&mut old).contains("connected anew"));
    assert_eq!(old.appender.append(b"c"), Err(AppendError::Closed));
    let seen: Vec<Vec<u8>> = read(&mut new, 2).into_iter().map(|entry| entry.2).collect();
    assert_eq!(seen, [b"a", b"b"]);
}

#[test]
fn a_wait_ends_by_time_by_a_waker_and_by_other_work() {
    let host = Host::start(&[]);
    let mut twin = host.connect(0);
    let brief = Some(std::time::Duration::from_millis(1));
    assert_eq!(twin.reader.wait(brief, || false), Wake::TimedOut);
    assert_eq!(twin.reader.wait(None, || true), Wake::Ready);
    let waker = twin.reader.waker();
    let thread = std::thread::spawn(move || waker.wake());
    assert_eq!(twin.reader.wait(None, || false), Wake::Ready);
    thread.join().expect("it only wakes");
    assert_eq!(
        twin.reader.wait(brief, || false),
        Wake::TimedOut,
        "a wake ends one wait"
    );
    twin.reader.waker().wake();
    assert_eq!(
        twin.reader.wait(None, || false),
        Wake::Ready,
        "a wake before the wait is not lost"
    );
}

#[test]
fn eight_twins_share_one_log() {
    let host = Host::start(&["--twins", "8"]);
    let mut twins: Vec<_> = (0..8).map(|twin| host.connect(twin)).collect();
    for twin in &mut twins {
        append(twin, b"hello");
    }
    let seen = read(&mut twins[0], 8);
    for twin in &mut twins[1..] {
        assert_eq!(read(twin, 8), seen);
    }
}
