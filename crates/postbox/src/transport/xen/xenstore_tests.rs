//! The client against a xenstored of our own at the other end of a socket pair.

use std::io::{Read, Write};
use std::thread::JoinHandle;

use super::*;
use crate::transport::xen::xenstore_wire::HEADER_BYTES;

type Request4 = (u32, u32, Vec<u8>);
/// `(kind, payload)`; the request's id is filled in, and 15 is an event.
type Reply = (u32, &'static [u8]);

/// Answers each request with the next list of replies, and then closes. Gives back the requests.
fn daemon(script: Vec<Vec<Reply>>) -> (Xenstore, JoinHandle<Vec<Request4>>) {
    let (ours, mut theirs) = UnixStream::pair().expect("descriptors are left");
    let thread = std::thread::spawn(move || {
        let mut requests = Vec::new();
        for replies in script {
            let mut header = [0; HEADER_BYTES];
            theirs.read_exact(&mut header).expect("a request");
            let word =
                |n: usize| u32::from_ne_bytes(*header[4 * n..].first_chunk().expect("16 bytes"));
            let mut payload = vec![0; word(3) as usize];
            theirs.read_exact(&mut payload).expect("its payload");
            requests.push((word(0), word(2), payload));
            for (kind, payload) in replies {
                let mut bytes = encode(Request::Read, word(1), 0, &[payload]).expect("short");
                bytes[0..4].copy_from_slice(&kind.to_ne_bytes());
                theirs.write_all(&bytes).expect("the client reads");
            }
        }
        requests
    });
    (Xenstore::from_fd(ours.into()).expect("a socket"), thread)
}

#[test]
fn values_are_read_and_what_is_not_there_is_none() {
    let (mut store, daemon) = daemon(vec![vec![(2, b"5")], vec![(16, b"ENOENT\0")]]);
    assert_eq!(store.read("domid"), Ok(Some(b"5".to_vec())));
    assert_eq!(store.read("data/nothing"), Ok(None));
    let requests = daemon.join().expect("the daemon ends");
    assert_eq!(requests[0], (2, 0, b"domid\0".to_vec()));
}

#[test]
fn a_refusal_says_what_was_asked_and_what_helps() {
    let (mut store, daemon) = daemon(vec![vec![(16, b"EACCES\0")]]);
    let error = store.write("/local/domain/0/x", b"1").expect_err("refused");
    let text = error.to_string();
    assert!(
        text.starts_with("cannot Write /local/domain/0/x in xenstore: EACCES"),
        "{text}"
    );
    daemon.join().expect("the daemon ends");
}

#[test]
fn events_that_come_between_are_kept_and_told_once() {
    let event: Reply = (15, b"@releaseDomain\0gone\0");
    let (mut store, daemon) = daemon(vec![vec![(4, b"OK\0"), event], vec![event, (2, b"x")]]);
    store.watch("@releaseDomain", "gone").expect("watched");
    assert_eq!(store.read("a"), Ok(Some(b"x".to_vec())));
    daemon.join().expect("the daemon ends");
    // The daemon is gone by now; what it said before is not lost with it.
    let event = store.poll_event().expect("kept").expect("not lost");
    assert_eq!(event.token, "gone");
    assert_eq!(
        store.poll_event().map_err(|error| error.errno),
        Err(Errno::EPIPE)
    );
}

#[test]
fn a_transaction_is_tried_again_while_others_write() {
    let (mut store, daemon) = daemon(vec![
        vec![(6, b"7\0")],
        vec![(11, b"OK\0")],
        vec![(16, b"EAGAIN\0")],
        vec![(6, b"8\0")],
        vec![(11, b"OK\0")],
        vec![(7, b"OK\0")],
    ]);
    let mut runs = 0;
    store
        .transaction(|transaction| {
            runs += 1;
            transaction.write("/a", b"1")
        })
        .expect("the second one holds");
    assert_eq!(runs, 2);
    let requests = daemon.join().expect("the daemon ends");
    let numbers: Vec<u32> = requests
        .iter()
        .map(|(_, transaction, _)| *transaction)
        .collect();
    assert_eq!(numbers, [0, 7, 7, 0, 8, 8]);
    assert_eq!(requests[5].2, b"T\0".to_vec());
}

#[test]
fn a_transaction_whose_body_fails_is_taken_back() {
    let (mut store, daemon) = daemon(vec![
        vec![(6, b"7\0")],
        vec![(16, b"EACCES\0")],
        vec![(7, b"OK\0")],
    ]);
    let error = store.transaction(|transaction| transaction.write("/a", b"1"));
    assert_eq!(error.map_err(|error| error.errno), Err(Errno::EACCES));
    assert_eq!(
        daemon.join().expect("the daemon ends")[2].2,
        b"F\0".to_vec()
    );
}

#[test]
fn a_daemon_that_does_not_answer_is_given_up() {
    let (mut store, daemon) = daemon(vec![vec![], vec![]]);
    store.set_answer_max(Duration::from_millis(1));
    let error = store.read("domid").expect_err("no answer");
    assert_eq!(error.errno, Errno::ETIMEDOUT);
    assert!(error.to_string().contains("patience = 1 ms"), "{error}");
    // A late answer must never be taken for the next one's.
    assert_eq!(
        store.read("domid").map_err(|error| error.errno),
        Err(Errno::EPIPE)
    );
    drop(store);
    assert!(daemon.join().is_err(), "its second request never comes");
}

#[test]
fn a_daemon_that_talks_nonsense_is_given_up() {
    for reply in [(2, &b"other"[..]), (15, b"no token")] {
        let (ours, mut theirs) = UnixStream::pair().expect("descriptors are left");
        let mut store = Xenstore::from_fd(ours.into()).expect("a socket");
        let mut bytes = encode(Request::Read, 99, 0, &[reply.1]).expect("short");
        bytes[0..4].copy_from_slice(&u32::to_ne_bytes(reply.0));
        theirs.write_all(&bytes).expect("there is room");
        let error = store.read("domid").expect_err("nonsense");
        assert_eq!(error.errno, Errno::EPROTO);
    }
}
