//! The rules that are read off the log alone, entry by entry.

use twinbft_types::{Attempt, Mac, ResultMac, batch_digest, history};

use super::*;

const BOUNDS: Bounds = Bounds {
    checkpoint_slots: 4,
    batch_requests_max: 8,
    pipeline_depth: 6,
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
        log.skip(TwinId(0));
        let bytes = if number < 16 { 10 } else { 900 };
        due.extend(log.note_bytes(bytes));
    }
    assert_eq!(due, [8, 16, 20, 24].map(Position));
}

fn results(slot: u64, history: Digest, each: &[u8]) -> Entry {
    let results = each
        .iter()
        .map(|byte| ResultMac {
            digest: Digest([*byte; 32]),
            mac: Mac::default(),
        })
        .collect();
    Entry::Results {
        slot: Slot(slot),
        history,
        view: None,
        results,
    }
}

/// A primary that has decided slot 1.
fn decided(twins: u8) -> (HostLog, Digest) {
    let mut log = primary(twins);
    let (one, h1) = propose(1, 0, Digest::ZERO, 1);
    apply(&mut log, 0, &one);
    for twin in 1..=u8::try_from(log.shape.twin_quorum() - 1).unwrap() {
        apply(&mut log, twin, &endorse(1, 0, h1));
    }
    assert_eq!(log.accepted(), (Slot(1), h1));
    (log, h1)
}

fn is_certified(decisions: &[Decision]) -> bool {
    let certifies = |d: &Decision| matches!(d, Decision::Certified { .. });
    decisions.iter().any(certifies)
}

/// 4.8, 9: a twin's first RESULT of a slot counts, and only under the history that the host decided. So a twin that
/// invents histories does not close the tally of the others.
#[test]
fn invented_histories_do_not_close_a_tally() {
    let (mut log, h1) = decided(3);
    let mut out = Vec::new();
    for number in 0..4 {
        let invented = results(1, Digest([number; 32]), &[7]);
        assert!(log.apply(TwinId(2), &invented, &mut out).is_err());
    }
    assert_eq!(out, []);
    assert_eq!(apply(&mut log, 0, &results(1, h1, &[7])), []);
    assert!(is_certified(&apply(&mut log, 1, &results(1, h1, &[7]))));
    assert_eq!(log.result_votes(Slot(1)), 2);
    assert_eq!(log.results[&Slot(1)].listed(), 0);
    // The third twin's first word counts, its second one does not.
    apply(&mut log, 2, &results(1, h1, &[7]));
    assert_eq!(log.result_votes(Slot(1)), 0);
}

/// 4.8: no correct twin posts a RESULT that is longer than a batch.
#[test]
fn a_result_longer_than_a_batch_is_invalid() {
    let (mut log, h1) = decided(2);
    let mut out = Vec::new();
    for length in [0, 9] {
        let entry = results(1, h1, &vec![1; length]);
        assert!(log.apply(TwinId(1), &entry, &mut out).is_err());
    }
    apply(&mut log, 1, &results(1, h1, &[1; 8]));
    assert_eq!(log.result_votes(Slot(1)), 1);
}

/// 4.8: results are compared one by one while any of them may still be certified.
#[test]
fn results_are_certified_one_by_one_and_as_a_whole() {
    let (mut log, h1) = decided(3);
    apply(&mut log, 0, &results(1, h1, &[1, 2]));
    let one_by_one = apply(&mut log, 1, &results(1, h1, &[1, 3]));
    assert!(matches!(
        &one_by_one[..],
        [Decision::Certified { places, .. }, Decision::ResultsDiverge { .. }] if *places == [0]
    ));
    let whole = apply(&mut log, 2, &results(1, h1, &[1, 2]));
    assert!(matches!(
        &whole[..],
        [Decision::Certified { places, .. }, Decision::ResultsDiverge { .. }, Decision::SlotResult { .. }]
            if *places == [1]
    ));
}

/// 2: candidates are no more than a leader has in flight.
#[test]
fn a_leader_has_no_more_candidates_than_slots_in_flight() {
    let mut log = primary(2);
    let mut previous = Digest::ZERO;
    for slot in 1..=20 {
        let (entry, next) = propose(slot, 0, previous, slot);
        apply(&mut log, 0, &entry);
        previous = next;
    }
    assert_eq!(log.tip().0, Slot(BOUNDS.pipeline_depth));
}

/// 4.3: what a twin may hold is bounded for it alone and for each client key, and goes with the request's execution.
#[test]
fn haves_are_bounded_for_each_twin_and_each_key() {
    let mut log = primary(2);
    let of = |key: u32, seq: u64| RequestRef {
        client: ClientId { key, session: 1 },
        seq: Seq(seq),
        digest: Digest::ZERO,
    };
    for seq in 0..2 * votes::REQUESTS_OF_A_KEY_MAX as u64 {
        let request = of(1, seq);
        apply(&mut log, 0, &Entry::Have { request });
    }
    assert_eq!(log.haves.len(), votes::REQUESTS_OF_A_KEY_MAX);
    // The oldest gave way, and may be posted again.
    assert!(!log.has_have_of(TwinId(0), &of(1, 0)));
    apply(&mut log, 0, &Entry::Have { request: of(1, 0) });
    assert!(log.has_have_of(TwinId(0), &of(1, 0)));
    for key in 2..1000 {
        let request = of(key, 1);
        apply(&mut log, 0, &Entry::Have { request });
    }
    assert_eq!(log.haves.len(), votes::REQUESTS_OF_A_TWIN_MAX);
    let other = RequestRef {
        digest: Digest([9; 32]),
        ..of(999, 1)
    };
    apply(&mut log, 1, &Entry::Have { request: other });
    log.forget_request(other.client, other.seq);
    assert_eq!(log.haves.len(), votes::REQUESTS_OF_A_TWIN_MAX - 1);
    assert!(!log.has_have_of(TwinId(1), &other));
}

/// 2: whatever is posted, STATE fits where the configuration says that it must.
#[test]
fn state_stays_within_its_bound_with_every_part_full() {
    for twins in [2, 3, 8] {
        let bounds = crate::Tuning::default().host_bounds();
        let shape = Shape::new(3, twins).unwrap();
        let mut log = HostLog::genesis(shape, HostId(0), bounds);
        log.accepted = Slot(10 * bounds.checkpoint_slots);
        let batch = usize::try_from(bounds.batch_requests_max).unwrap();
        fill_results(&mut log, batch);
        fill_requests(&mut log);
        let voters: Vec<u8> = (0..twins).collect();
        for slot in 1..=2 * bounds.checkpoint_slots {
            let votes = log.accepts.entry(Slot(log.accepted.0 + slot)).or_default();
            for twin in &voters {
                votes.vote(TwinId(*twin), Digest([*twin; 32])).unwrap();
            }
        }
        for number in 1..=8 {
            let slot = Slot(number * bounds.checkpoint_slots);
            let digest = Digest([1; 32]);
            apply(&mut log, 0, &Entry::Checkpoint { slot, digest });
        }
        let mut previous = log.accepted_history;
        for slot in log.accepted.0 + 1..=log.accepted.0 + 2 * bounds.pipeline_depth {
            let requests = vec![request(slot); batch];
            let entry = Entry::Propose {
                view: View(0),
                slot: Slot(slot),
                attempt: Attempt(0),
                previous,
                timestamp_us: slot,
                requests: requests.clone(),
            };
            apply(&mut log, 0, &entry);
            previous = history(previous, Slot(slot), batch_digest(&requests), slot);
        }
        let (bytes, most) = (log.to_state().len() as u64, bounds.state_bytes_max(shape));
        assert!(bytes <= most, "m={twins}: {bytes} bytes, bound {most}");
        assert!(
            bytes > most / 10 * 9,
            "m={twins}: {bytes} of {most}: what is not full?"
        );
        assert!(most <= 1 << 20, "m={twins}: {most} do not fit the default");
        assert_eq!(
            HostLog::from_state(shape, HostId(0), &log.to_state()).unwrap(),
            log
        );
    }
}

/// Every twin but one has said something else about every open slot, and many slots have their SLOT-RESULT.
fn fill_results(log: &mut HostLog, batch: usize) {
    let twins = log.shape.twins();
    for slot in 1..=log.accepted.0 {
        for twin in 0..u8::try_from(log.shape.twin_quorum()).unwrap() {
            apply(log, twin, &results(slot, Digest::ZERO, &[3]));
        }
        log.note_history(View(0), Slot(slot), Digest::ZERO);
    }
    log.results.clear();
    for slot in 1..=log.accepted.0 {
        for twin in 0..twins - 1 {
            // The lists of late slots are full ones, and those of early ones must give way.
            let entry = results(slot, Digest::ZERO, &vec![twin; batch]);
            apply(log, twin, &entry);
        }
    }
}

fn fill_requests(log: &mut HostLog) {
    for key in 0..4096 {
        let request = RequestRef {
            client: ClientId { key, session: 1 },
            seq: Seq(1),
            digest: Digest::ZERO,
        };
        for twin in log.shape.all_twins().map(|t| t.0).collect::<Vec<_>>() {
            apply(log, twin, &Entry::Have { request });
            apply(log, twin, &Entry::Retransmission { request });
        }
        log.nacked.insert(key);
    }
}
