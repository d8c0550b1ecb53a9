use twinbft_types::{Entry, Shape};

use super::*;
use crate::config::Tuning;

const ME: HostId = HostId(1);

fn log(host: HostId, twins: u8) -> HostLog {
    let shape = Shape::new(3, twins).expect("a shape");
    HostLog::reopened(shape, host, Tuning::default().host_bounds())
}

fn apply(log: &mut HostLog, twin: u8, entry: &Entry) -> Vec<Decision> {
    let mut decisions = Vec::new();
    log.apply(TwinId(twin), entry, &mut decisions)
        .expect("a correct twin posts it");
    decisions
}

fn amnesia(of: u8) -> Entry {
    let nonce = Digest([of; 32]);
    Entry::Amnesia { nonce }
}

fn hello(slot: u64, incarnations: [u64; 3]) -> Entry {
    Entry::Hello {
        state: HelloState {
            leave: View(0),
            last_normal: View(0),
            accepted: Slot(slot),
            history: Digest::ZERO,
            incarnations: incarnations.map(Incarnation).to_vec(),
        },
    }
}

fn peer(host: HostId, incarnation: u64, nonce: Digest) -> Entry {
    let incarnation = Incarnation(incarnation);
    Entry::Peer {
        host,
        incarnation,
        nonce,
    }
}

fn nv_accept(view: u64, slot: u64) -> Entry {
    Entry::NvAccept {
        view: View(view),
        slot: Slot(slot),
        history: Digest([7; 32]),
    }
}

/// A log whose two twins have forgotten and agreed on incarnation 3.
fn renewed() -> (HostLog, Digest) {
    let mut log = log(ME, 2);
    apply(&mut log, 0, &amnesia(8));
    apply(&mut log, 1, &amnesia(9));
    let nonce = log.forgotten().expect("both have");
    apply(&mut log, 0, &peer(ME, 3, nonce));
    apply(&mut log, 1, &peer(ME, 3, nonce));
    (log, nonce)
}

#[test]
fn amnesia_of_q_twins_comes_before_a_hello() {
    let mut log = log(ME, 2);
    assert_eq!(apply(&mut log, 0, &hello(5, [0; 3])), []);
    assert_eq!(apply(&mut log, 1, &amnesia(9)), []);
    // Who has forgotten does not remember later, and one that remembers does not open the log alone.
    assert_eq!(apply(&mut log, 1, &hello(5, [0; 3])), []);
    assert!(log.forgotten().is_none());
    let decisions = apply(&mut log, 0, &amnesia(8));
    let nonce = log.forgotten().expect("both have");
    assert_eq!(decisions, [Decision::Forgotten { nonce }]);
    assert_eq!(apply(&mut log, 0, &hello(5, [0; 3])), []);
    assert!(log.live_view().is_none());
}

#[test]
fn an_amnesia_after_the_hellos_is_too_late() {
    let mut log = log(ME, 2);
    apply(&mut log, 0, &hello(5, [0; 3]));
    assert_eq!(apply(&mut log, 1, &hello(5, [0; 3])), [Decision::Opened]);
    apply(&mut log, 0, &amnesia(8));
    apply(&mut log, 1, &amnesia(9));
    assert!(log.forgotten().is_none());
    assert_eq!(log.live_view(), Some(View(0)));
}

#[test]
fn q_equal_words_fix_the_incarnation_and_only_after_that_a_view_is_installed() {
    let mut log = log(ME, 2);
    apply(&mut log, 0, &amnesia(8));
    apply(&mut log, 1, &amnesia(9));
    let nonce = log.forgotten().expect("both have");
    apply(&mut log, 0, &nv_accept(0, 5));
    assert_eq!(apply(&mut log, 1, &nv_accept(0, 5)), []);
    apply(&mut log, 0, &peer(ME, 3, nonce));
    // Another question's, and another number.
    assert_eq!(apply(&mut log, 1, &peer(ME, 3, Digest::ZERO)), []);
    assert_eq!(apply(&mut log, 1, &peer(ME, 2, nonce)), []);
    let incarnation = Incarnation(3);
    let decisions = apply(&mut log, 1, &peer(ME, 3, nonce));
    assert_eq!(decisions, [Decision::Renewed { incarnation, nonce }]);
    assert_eq!(log.incarnation(ME), incarnation);
}

#[test]
fn the_qth_nv_accept_installs_without_a_fence() {
    let (mut log, _) = renewed();
    assert_eq!(apply(&mut log, 0, &nv_accept(2, 5)), []);
    assert_eq!(apply(&mut log, 1, &nv_accept(2, 6)), []);
    assert!(log.live_view().is_none());
    let decisions = apply(&mut log, 0, &nv_accept(2, 6));
    assert!(matches!(
        decisions[..],
        [Decision::Recovered, Decision::Installed { .. }]
    ));
    assert_eq!(log.live_view(), Some(View(2)));
    assert_eq!(log.accepted(), (Slot(6), Digest([7; 32])));
    assert!(log.forgotten().is_none() && !log.is_opening());
}

#[test]
fn a_host_does_not_recover_into_a_view_of_its_own() {
    let (mut log, _) = renewed();
    apply(&mut log, 0, &nv_accept(1, 5));
    assert_eq!(apply(&mut log, 1, &nv_accept(1, 5)), []);
    assert!(log.is_opening());
}

#[test]
fn what_was_learned_of_other_hosts_must_be_equal_and_stays() {
    let (mut log, nonce) = renewed();
    apply(&mut log, 0, &peer(HostId(2), 4, nonce));
    apply(&mut log, 0, &nv_accept(0, 5));
    assert_eq!(apply(&mut log, 1, &nv_accept(0, 5)), []);
    apply(&mut log, 1, &peer(HostId(2), 4, nonce));
    let decisions = apply(&mut log, 1, &nv_accept(0, 5));
    assert_eq!(decisions.len(), 2);
    let known = [0, 3, 4].map(Incarnation);
    assert_eq!(log.incarnations(), known);
}

#[test]
fn a_raised_incarnation_voids_what_was_accepted_before() {
    let (mut log, nonce) = renewed();
    apply(&mut log, 0, &nv_accept(0, 5));
    apply(&mut log, 0, &peer(ME, 9, nonce));
    assert_eq!(apply(&mut log, 1, &peer(ME, 9, nonce)).len(), 1);
    assert_eq!(apply(&mut log, 1, &nv_accept(0, 5)), []);
    assert_eq!(apply(&mut log, 0, &nv_accept(0, 5)).len(), 2);
}

/// 8: a PEER only counts while a view is installed and unfenced.
#[test]
fn a_peer_counts_in_a_live_view_alone() {
    let shape = Shape::new(3, 2).expect("a shape");
    let mut log = HostLog::genesis(shape, ME, Tuning::default().host_bounds());
    let (asks, nonce) = (HostId(2), Digest([5; 32]));
    assert_eq!(apply(&mut log, 0, &peer(asks, 1, nonce)), []);
    let peered = Decision::Peered {
        host: asks,
        incarnation: Incarnation(1),
        nonce,
        view: View(0),
    };
    assert_eq!(apply(&mut log, 1, &peer(asks, 1, nonce)), [peered]);
    assert_eq!(log.incarnation(asks), Incarnation(1));
    for twin in 0..2 {
        let certificates = Vec::new();
        let view = View(1);
        apply(&mut log, twin, &Entry::Leave { view, certificates });
    }
    for twin in 0..2 {
        assert_eq!(apply(&mut log, twin, &peer(asks, 2, nonce)), []);
    }
    assert_eq!(log.incarnation(asks), Incarnation(1));
}

#[test]
fn a_lower_incarnation_is_not_noted_and_a_question_may_be_repeated() {
    let shape = Shape::new(3, 2).expect("a shape");
    let mut log = HostLog::genesis(shape, ME, Tuning::default().host_bounds());
    let (asks, nonce) = (HostId(2), Digest([5; 32]));
    for _ in 0..2 {
        apply(&mut log, 0, &peer(asks, 2, nonce));
        assert_eq!(apply(&mut log, 1, &peer(asks, 2, nonce)).len(), 1);
    }
    apply(&mut log, 0, &peer(asks, 1, nonce));
    assert_eq!(apply(&mut log, 1, &peer(asks, 1, nonce)), []);
    let unknown = peer(HostId(3), 1, nonce);
    assert!(log.apply(TwinId(0), &unknown, &mut Vec::new()).is_err());
}

/// 8: claims are compared part by part, and incarnations are one.
#[test]
fn a_hello_that_knows_less_of_incarnations_waits() {
    let mut log = log(ME, 2);
    apply(&mut log, 0, &hello(5, [0, 0, 4]));
    assert_eq!(apply(&mut log, 1, &hello(5, [0, 0, 0])), []);
    assert_eq!(apply(&mut log, 1, &hello(5, [0, 0, 4])), [Decision::Opened]);
    assert_eq!(log.incarnation(HostId(2)), Incarnation(4));
}
