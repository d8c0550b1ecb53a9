//! The rules that are read off the log alone, entry by entry.

use twinbft_types::{Attempt, batch_digest, history};

use super::*;

const BOUNDS: Bounds = Bounds {
    checkpoint_slots: 4,
    batch_requests_max: 8,
    trim_multiple: 4,
    trim_entries: 8,
    trim_bytes: 1000,
};

fn primary(twins: u8) -> HostLog {
    HostLog::genesis(Shape::new(3, twins).unwrap(), HostId(0), BOUNDS)
}

fn backup(twins: u8) -> HostLog {
    HostLog::genesis(Shape::new(3, twins).unwrap(), HostId(1), BOUNDS)
}

fn request(number: u64) -> RequestRef {
    RequestRef {
        client: ClientId { key: 0, session: 1 },
        seq: Seq(number),
        digest: Digest::of(&number.to_le_bytes()),
    }
}

fn propose(slot: u64, attempt: u32, previous: Digest, number: u64) -> (Entry, Digest) {
    let requests = vec![request(number)];
    let next = history(previous, Slot(slot), batch_digest(&requests), slot);
    let entry = Entry::Propose {
        view: View(0),
        slot: Slot(slot),
        attempt: Attempt(attempt),
        previous,
        timestamp_us: slot,
        requests,
    };
    (entry, next)
}

fn endorse(slot: u64, attempt: u32, history: Digest) -> Entry {
    Entry::Endorse {
        view: View(0),
        slot: Slot(slot),
        attempt: Attempt(attempt),
        history,
        signature: None,
    }
}

fn nack(slot: u64, attempt: u32, history: Digest, requests: Vec<RequestRef>) -> Entry {
    Entry::Nack {
        view: View(0),
        slot: Slot(slot),
        attempt: Attempt(attempt),
        history,
        requests,
    }
}

fn withdraw(slot: u64, attempt: u32) -> Entry {
    Entry::Withdraw {
        view: View(0),
        slot: Slot(slot),
        attempt: Attempt(attempt),
    }
}

fn apply(log: &mut HostLog, twin: u8, entry: &Entry) -> Vec<Decision> {
    let mut out = Vec::new();
    log.apply(TwinId(twin), entry, &mut out)
        .expect("the entry is one that a correct twin may post");
    out
}

/// 4.3: the candidate is the first PROPOSE that extends the log; others are ignored.
#[test]
fn only_the_first_extending_proposal_is_the_candidate() {
    let mut log = primary(2);
    let (first, h1) = propose(1, 0, Digest::ZERO, 1);
    let (rival, rival_h1) = propose(1, 1, Digest::ZERO, 2);
    assert_eq!(
        apply(&mut log, 0, &first),
        [Decision::Candidate { slot: Slot(1) }]
    );
    assert_eq!(apply(&mut log, 0, &rival), []);
    assert_eq!(apply(&mut log, 1, &endorse(1, 1, rival_h1)), []);
    let (gap, _) = propose(3, 0, h1, 3);
    assert_eq!(apply(&mut log, 0, &gap), []);
    let decided = apply(&mut log, 1, &endorse(1, 0, h1));
    assert!(matches!(
        decided[..],
        [Decision::Ordered { slot: Slot(1), .. }]
    ));
    assert_eq!(log.accepted(), (Slot(1), h1));
}

/// 4.4: a slot is decided only when the one before it is.
#[test]
fn slots_are_decided_in_order() {
    let mut log = primary(3);
    let (one, h1) = propose(1, 0, Digest::ZERO, 1);
    let (two, h2) = propose(2, 0, h1, 2);
    apply(&mut log, 0, &one);
    apply(&mut log, 0, &two);
    assert_eq!(apply(&mut log, 1, &endorse(2, 0, h2)), []);
    let decided = apply(&mut log, 2, &endorse(1, 0, h1));
    let slots: Vec<Slot> = decided
        .iter()
        .filter_map(|d| match d {
            Decision::Ordered { slot, .. } => Some(*slot),
            _ => None,
        })
        .collect();
    assert_eq!(slots, [Slot(1), Slot(2)]);
}

/// 4.3: WITHDRAW after a NACK voids the candidate and what is chained on it; the next attempt counts.
#[test]
fn withdrawal_voids_the_chain_and_needs_a_nack() {
    let mut log = primary(2);
    let (one, h1) = propose(1, 0, Digest::ZERO, 1);
    let (two, _) = propose(2, 0, h1, 2);
    apply(&mut log, 0, &one);
    apply(&mut log, 0, &two);
    assert_eq!(apply(&mut log, 0, &withdraw(1, 0)), []);
    apply(&mut log, 1, &nack(1, 0, h1, vec![request(1)]));
    assert!(log.is_nacked(request(1).client));
    assert_eq!(
        apply(&mut log, 0, &withdraw(1, 0)),
        [Decision::Void { from: Slot(1) }]
    );
    assert_eq!(log.tip(), (Slot(0), Digest::ZERO));
    // A vote for the void attempt is nothing, and its number cannot come again.
    assert_eq!(apply(&mut log, 1, &endorse(1, 0, h1)), []);
    assert_eq!(apply(&mut log, 0, &one), []);
    let (again, h1) = propose(1, 1, Digest::ZERO, 3);
    assert_eq!(
        apply(&mut log, 0, &again),
        [Decision::Candidate { slot: Slot(1) }]
    );
    assert_eq!(apply(&mut log, 1, &endorse(1, 1, h1)).len(), 1);
}

/// 4.3: HAVEs of `q` twins bar a NACK that names the request.
#[test]
fn have_of_a_quorum_bars_a_nack() {
    let mut log = primary(3);
    let have = Entry::Have {
        request: request(1),
    };
    apply(&mut log, 0, &have);
    assert_eq!(
        apply(&mut log, 1, &have),
        [Decision::Had {
            request: request(1)
        }]
    );
    let (one, h1) = propose(1, 0, Digest::ZERO, 1);
    apply(&mut log, 0, &one);
    assert_eq!(apply(&mut log, 2, &nack(1, 0, h1, vec![request(1)])), []);
    assert!(!log.is_nacked(request(1).client));
}

/// 4.5: `q` equal ACCEPTs between install and fence; one twin's word is nothing.
#[test]
fn a_backup_accepts_by_quorum_and_not_after_its_fence() {
    let mut log = backup(2);
    let accept = |slot: u64| Entry::Accept {
        view: View(0),
        slot: Slot(slot),
        history: Digest::of(&slot.to_le_bytes()),
    };
    assert_eq!(apply(&mut log, 0, &accept(1)), []);
    assert_eq!(apply(&mut log, 0, &accept(1)), []);
    assert_eq!(apply(&mut log, 1, &accept(1)).len(), 1);
    assert_eq!(log.accepted().0, Slot(1));
    apply(&mut log, 0, &accept(2));
    let leave = Entry::Leave {
        view: View(1),
        certificates: Vec::new(),
    };
    assert_eq!(apply(&mut log, 0, &leave), []);
    assert_eq!(
        apply(&mut log, 1, &leave),
        [Decision::Fenced { view: View(1) }]
    );
    assert_eq!(apply(&mut log, 1, &accept(2)), []);
    assert_eq!(log.accepted().0, Slot(1));
    assert_eq!(log.live_view(), None);
}

/// 6: the fence of a view ends its votes as well.
#[test]
fn nothing_after_the_fence_is_ordered() {
    let mut log = primary(2);
    let (one, h1) = propose(1, 0, Digest::ZERO, 1);
    apply(&mut log, 0, &one);
    for twin in [0, 1] {
        let leave = Entry::Leave {
            view: View(2),
            certificates: Vec::new(),
        };
        apply(&mut log, twin, &leave);
    }
    assert_eq!(apply(&mut log, 1, &endorse(1, 0, h1)), []);
    assert_eq!(log.accepted().0, Slot(0));
    assert_eq!(log.current_view(), View(2));
}

/// 9: what no correct twin would post is told apart from what merely came late.
#[test]
fn entries_that_no_correct_twin_posts_are_invalid() {
    let mut log = primary(2);
    let (one, h1) = propose(1, 0, Digest::ZERO, 1);
    let mut out = Vec::new();
    assert!(log.apply(TwinId(1), &one, &mut out).is_err());
    assert!(log.apply(TwinId(0), &endorse(1, 0, h1), &mut out).is_err());
    let accept = Entry::Accept {
        view: View(0),
        slot: Slot(1),
        history: h1,
    };
    assert!(log.apply(TwinId(1), &accept, &mut out).is_err());
    assert_eq!(log.end(), Position(3));
    assert!(out.is_empty());
}

/// 2: STATE is everything that the log determines.
#[test]
fn state_survives_its_encoding() {
    let mut log = primary(3);
    let (one, h1) = propose(1, 0, Digest::ZERO, 1);
    let (two, _) = propose(2, 0, h1, 2);
    for entry in [&one, &two] {
        apply(&mut log, 0, entry);
    }
    apply(&mut log, 1, &endorse(1, 0, h1));
    apply(
        &mut log,
        1,
        &Entry::Have {
            request: request(9),
        },
    );
    let state = log.to_state();
    let shape = Shape::new(3, 3).unwrap();
    assert_eq!(HostLog::from_state(shape, HostId(0), &state).unwrap(), log);
    assert!(HostLog::from_state(shape, HostId(1), &state).is_err());
    assert!(HostLog::from_state(shape, HostId(0), &state[1..]).is_err());
}

/// 2: a trim is due after enough entries or bytes, at a multiple of `k` only.
#[test]
fn trims_are_due_by_entries_or_bytes_at_multiples_of_k() {
    let mut log = backup(2);
    let mut due = Vec::new();
    for number in 0..24 {
        log.skip();
        let bytes = if number < 16 { 10 } else { 900 };
        due.extend(log.note_bytes(bytes));
    }
    assert_eq!(due, [8, 16, 20, 24].map(Position));
}
