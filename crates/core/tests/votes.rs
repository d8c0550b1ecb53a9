//! Votes, bodies and withdrawals on the primary host (protocol.md 4.3), with bad twins and bad clients.

mod common;

use common::Host;
use twinbft_core::Tuning;
use twinbft_types::{
    Attempt, ClientId, Digest, Entry, Request, RequestRef, Seq, SignedRequest, Slot, View,
};

fn propose(slot: u64, previous: Digest, requests: Vec<RequestRef>) -> Entry {
    Entry::Propose {
        view: View(0),
        slot: Slot(slot),
        attempt: Attempt(0),
        previous,
        timestamp_us: common::BEGINNING_US + slot,
        requests,
    }
}

fn nack(host: &Host, slot: u64, requests: Vec<RequestRef>) -> Entry {
    let log = host.twins[0].core.host_log();
    let candidate = log.candidate(Slot(slot)).expect("it is one");
    Entry::Nack {
        view: View(0),
        slot: Slot(slot),
        attempt: candidate.attempt,
        history: candidate.history,
        requests,
    }
}

/// A body that came for a candidate that is void is asked for and given again: two clients, one with MACs for the
/// leader alone and one that sends to the leader alone, stop nobody.
#[test]
fn bodies_that_went_with_a_void_candidate_are_given_again() {
    let mut host = Host::new(0, 3, 2, &Tuning::default());
    let half = host.keys.request(0, 1, &[0]);
    let alone = host.keys.request(1, 1, &[0, 1]);
    host.request(0, &half);
    host.request(0, &alone);
    host.pass(100_000);
    assert_eq!(host.posted(0, "WITHDRAW"), 1);
    assert_eq!((host.accepted(0), host.accepted(1)), (1, 1));
    let statuses = [0, 1].map(|t: usize| host.twins[t].core.history_at(Slot(1)));
    assert!(statuses[0].is_some() && statuses[0] == statuses[1]);
}

/// While a WITHDRAW is under way, a NACK of a lower slot is not forgotten.
#[test]
fn a_withdrawal_under_way_hides_no_lower_one() {
    let mut host = Host::new(0, 3, 3, &Tuning::default());
    host.byzantine = vec![1, 2];
    let (a, b) = (host.keys.request(0, 1, &[0]), host.keys.request(1, 1, &[0]));
    host.request(0, &a);
    host.request(0, &b);
    host.read(0);
    for (slot, request) in [(2, &b), (1, &a)] {
        let entry = nack(&host, slot, vec![request.request.reference()]);
        host.post_as(2, &entry);
    }
    host.settle();
    assert_eq!(host.posted(0, "WITHDRAW"), 2);
    assert_eq!(host.twins[0].core.host_log().tip().0, Slot(0));
}

/// A NACK that names nothing has its grace for each slot.
#[test]
fn every_doubted_slot_is_withdrawn_in_the_end() {
    let mut host = Host::new(0, 3, 3, &Tuning::default());
    host.byzantine = vec![1, 2];
    for key in 0..2 {
        let request = host.keys.request(key, 1, &[0]);
        host.request(0, &request);
    }
    host.read(0);
    for slot in [2, 1] {
        let entry = nack(&host, slot, Vec::new());
        host.post_as(2, &entry);
    }
    host.pass(15_000);
    assert_eq!(host.posted(0, "WITHDRAW"), 0);
    host.pass(10_000);
    assert!(host.posted(0, "WITHDRAW") >= 1);
    let entries = host.entries();
    let first = entries
        .iter()
        .find(|(_, e)| e.name() == "WITHDRAW")
        .map(|(_, e)| e);
    assert!(
        matches!(first, Some(Entry::Withdraw { slot: Slot(1), .. })),
        "{first:?}"
    );
}

/// A NACK that HAVEs bar is no vote: its twin votes again, and takes the body that they vouch for.
#[test]
fn a_twin_whose_nack_was_barred_votes_again() {
    let mut host = Host::new(0, 3, 3, &Tuning::default());
    host.byzantine = vec![2];
    let request = host.keys.request(0, 1, &[0, 2]);
    host.request(0, &request);
    host.read(0);
    host.read(1);
    host.now_us += 6_000;
    host.step(1, twinbft_core::Input::Timer);
    host.read(0);
    assert_eq!(host.posted(0, "BODY"), 1);
    host.holding = vec![1];
    host.read(1);
    let have = Entry::Have {
        request: request.request.reference(),
    };
    host.post_as(0, &have);
    host.post_as(2, &have);
    host.release();
    assert_eq!(host.posted(1, "NACK"), 1);
    host.settle();
    assert_eq!(host.posted(1, "ENDORSE"), 1);
    assert_eq!((host.accepted(0), host.accepted(1)), (1, 1));
}

fn many(count: u64) -> Vec<Request> {
    (1..=count)
        .map(|seq| Request {
            client: ClientId { key: 0, session: 1 },
            seq: Seq(seq),
            operation: bytes::Bytes::from_static(b"never shown"),
        })
        .collect()
}

/// Each missing body of a candidate is asked for once, however many there are.
#[test]
fn a_leader_that_keeps_all_bodies_to_itself_causes_no_storm() {
    let tuning = Tuning {
        batch_requests_max: 5000,
        session_window: 10_000,
        ..Tuning::default()
    };
    let mut host = Host::new(0, 3, 2, &tuning);
    host.byzantine = vec![0];
    let requests = many(5000).iter().map(Request::reference).collect();
    host.post_as(0, &propose(1, Digest::ZERO, requests));
    host.pass(1_000_000);
    assert_eq!(host.posted(1, "NEED"), 5000);
}

/// A body of a decided slot is given by whoever holds it, because a bad leader may not, and its slot is then signed.
#[test]
fn whoever_holds_the_body_of_a_decided_slot_gives_it() {
    let mut host = Host::new(0, 3, 3, &Tuning::default());
    host.byzantine = vec![0];
    let request = host.keys.request(0, 1, &[0, 1, 2]);
    host.request(1, &request);
    host.post_as(
        0,
        &propose(1, Digest::ZERO, vec![request.request.reference()]),
    );
    host.settle();
    assert_eq!((host.accepted(1), host.accepted(2)), (1, 1));
    assert_eq!((host.posted(1, "SIGN"), host.posted(2, "SIGN")), (1, 0));
    host.pass(20_000);
    assert_eq!((host.posted(2, "NEED"), host.posted(1, "BODY")), (1, 1));
    assert_eq!(host.posted(2, "SIGN"), 1);
}

/// 4.3: no (c,s) in the session table: what is executed is endorsed no second time.
#[test]
fn an_executed_request_is_not_endorsed_again() {
    let mut host = Host::new(0, 3, 2, &Tuning::default());
    let request = host.keys.request(0, 1, &[0, 1]);
    host.request(0, &request);
    host.request(1, &request);
    host.settle();
    host.acknowledge(&[1]);
    host.serve(1);
    assert_eq!(host.posted(1, "ENDORSE"), 1);
    host.byzantine = vec![0];
    let (slot, previous) = host.twins[1].core.host_log().accepted();
    let again = propose(slot.0 + 1, previous, vec![request.request.reference()]);
    host.post_as(0, &again);
    host.post_as(0, &Entry::Body { request });
    host.pass(50_000);
    assert_eq!(host.posted(1, "ENDORSE"), 1);
    assert_eq!(host.posted(1, "NACK"), 0);
}

/// 4.3: a timestamp of one microsecond after the one before is never late: a follower whose clock is far ahead costs an
/// attempt now and then, and no more.
#[test]
fn a_clock_far_ahead_stops_nothing() {
    let mut host = Host::new(0, 3, 2, &Tuning::default());
    host.twins[1].skew_us = 60_000_000;
    for seq in 1..=20 {
        let request = host.keys.request(0, seq, &[0, 1]);
        host.request(0, &request);
        host.request(1, &request);
        host.pass(1_000);
        host.acknowledge(&[0, 1]);
        host.serve(0);
        host.serve(1);
        assert_eq!(host.accepted(1), seq);
    }
    assert_eq!(host.posted(1, "NACK"), 1);
}

/// 4.3: HAVEs of one client beyond its bound give way to its newer ones, and are posted again when it asks again.
#[test]
fn a_have_that_gave_way_is_posted_again() {
    let tuning = Tuning {
        session_window: 400,
        ..Tuning::default()
    };
    let mut host = Host::new(0, 3, 2, &tuning);
    let half = host.keys.request(0, 1, &[0]);
    host.request(0, &half);
    host.pass(50_000);
    assert_eq!(host.posted(1, "NACK"), 1);
    let good: Vec<SignedRequest> = (2..=200)
        .map(|s| host.keys.request(0, s, &[0, 1]))
        .collect();
    for request in &good {
        host.request(1, request);
    }
    host.request(0, &good[0]);
    host.settle();
    assert_eq!(host.accepted(0), 0);
    host.step(
        1,
        twinbft_core::Input::Request {
            request: good[0].clone(),
            retransmission: true,
            leader_alone: false,
        },
    );
    host.settle();
    assert_eq!((host.accepted(0), host.accepted(1)), (1, 1));
}
