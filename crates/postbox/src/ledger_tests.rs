//! The rules of protocol.md section 2, one test each, and a random walk over all of them.

use super::*;
use proptest::prelude::*;

fn small(twins: u8) -> Limits {
    // The smallest log for entries of 96 bytes (records of 128), so that it wraps often.
    Limits {
        twins,
        log_bytes: 4096,
        entry_bytes_max: 96,
        state_bytes_max: 64,
        trim_every: 4,
    }
}

fn ledger(twins: u8) -> Ledger {
    Ledger::new(small(twins)).expect("valid limits")
}

fn accept(ledger: &mut Ledger, sender: u8, payload_bytes: u64) -> Placed {
    match ledger.append(sender, ledger.next_number(sender), payload_bytes) {
        Outcome::Accepted(placed) => placed,
        other => panic!("not accepted: {other:?}"),
    }
}

#[test]
fn positions_count_from_zero_over_all_senders() {
    let mut ledger = ledger(3);
    let positions: Vec<u64> = [0, 2, 1, 0]
        .map(|sender| accept(&mut ledger, sender, 8).position)
        .into();
    assert_eq!(positions, [0, 1, 2, 3]);
    assert_eq!((ledger.next_number(0), ledger.next_number(1)), (2, 1));
}

#[test]
fn only_the_next_number_is_accepted() {
    let mut ledger = ledger(2);
    assert_eq!(ledger.append(0, 1, 8), Outcome::OutOfOrder { expected: 0 });
    accept(&mut ledger, 0, 8);
    assert_eq!(ledger.append(0, 0, 8), Outcome::OutOfOrder { expected: 1 });
}

#[test]
fn a_refused_append_keeps_its_number_and_bars_what_follows() {
    let mut ledger = ledger(2);
    assert_eq!(ledger.append(0, 0, 97), Outcome::Refused(Refusal::TooLarge));
    assert_eq!(ledger.append(0, 1, 8), Outcome::OutOfOrder { expected: 0 });
    assert_eq!(accept(&mut ledger, 0, 96).position, 0);
    assert_eq!(
        ledger.append(0, 1, u64::MAX),
        Outcome::Refused(Refusal::TooLarge)
    );
}

#[test]
fn a_spamming_twin_leaves_the_others_their_share() {
    let mut ledger = ledger(2);
    while let Outcome::Accepted(_) = ledger.append(0, ledger.next_number(0), 96) {}
    assert_eq!(
        ledger.append(0, ledger.next_number(0), 96),
        Outcome::Refused(Refusal::OverQuota)
    );
    let share = ledger.limits().quota_bytes() / 128;
    for _ in 0..share {
        accept(&mut ledger, 1, 96);
    }
    assert_eq!(ledger.live_bytes(0), ledger.live_bytes(1));
}

#[test]
fn a_trim_needs_a_quorum_of_distinct_twins_with_the_same_state() {
    let mut ledger = ledger(3);
    for _ in 0..9 {
        accept(&mut ledger, 0, 8);
    }
    assert_eq!(ledger.trim(0, 8, b"right"), TrimOutcome::Held);
    assert_eq!(
        ledger.trim(0, 8, b"right"),
        TrimOutcome::Held,
        "the same twin twice is one twin"
    );
    assert_eq!(ledger.trim(1, 8, b"wrong"), TrimOutcome::Held);
    assert_eq!(
        ledger.trim(2, 4, b"right"),
        TrimOutcome::Held,
        "another position is another trim"
    );
    assert_eq!(
        ledger.trim(2, 8, b"right"),
        TrimOutcome::Agreed { from: 0, to: 8 }
    );
    assert_eq!(
        ledger.agreed(),
        Some(&AgreedState {
            position: 8,
            bytes: b"right".to_vec()
        })
    );
    assert_eq!(
        (
            ledger.head_position(),
            ledger.tail_position(),
            ledger.live_bytes(0)
        ),
        (8, 9, 40)
    );
    assert_eq!(
        ledger.trim(1, 8, b"right"),
        TrimOutcome::Stale,
        "positions below the head are gone"
    );
}

#[test]
fn only_a_twins_latest_proposal_is_held() {
    let mut ledger = ledger(2);
    for _ in 0..8 {
        accept(&mut ledger, 0, 8);
    }
    assert_eq!(ledger.trim(0, 8, b"s8"), TrimOutcome::Held);
    assert_eq!(ledger.trim(0, 4, b"s4"), TrimOutcome::Stale);
    assert_eq!(ledger.trim(1, 4, b"s4"), TrimOutcome::Held);
    assert_eq!(
        ledger.trim(1, 8, b"s8"),
        TrimOutcome::Agreed { from: 0, to: 8 }
    );
}

#[test]
fn a_wrong_proposal_can_be_corrected_at_the_same_position() {
    let mut ledger = ledger(2);
    for _ in 0..4 {
        accept(&mut ledger, 0, 8);
    }
    assert_eq!(ledger.trim(0, 4, b"lie"), TrimOutcome::Held);
    assert_eq!(ledger.trim(1, 4, b"truth"), TrimOutcome::Held);
    assert_eq!(
        ledger.trim(0, 4, b"truth"),
        TrimOutcome::Agreed { from: 0, to: 4 }
    );
}

#[test]
fn impossible_trims_are_refused() {
    let mut ledger = ledger(2);
    accept(&mut ledger, 0, 8);
    assert_eq!(
        ledger.trim(0, 3, b""),
        TrimOutcome::Refused(TrimRefusal::NotAMultiple)
    );
    assert_eq!(
        ledger.trim(0, 4, b""),
        TrimOutcome::Refused(TrimRefusal::BeyondEnd)
    );
    assert_eq!(
        ledger.trim(0, 0, &[0; 65]),
        TrimOutcome::Refused(TrimRefusal::StateTooLarge)
    );
    assert_eq!(ledger.trim(0, 0, b""), TrimOutcome::Stale);
}

#[test]
fn a_trim_needs_no_room() {
    let mut ledger = ledger(2);
    for sender in [0, 1] {
        while let Outcome::Accepted(_) = ledger.append(sender, ledger.next_number(sender), 96) {}
    }
    assert_eq!(ledger.trim(0, 4, b"s"), TrimOutcome::Held);
    assert_eq!(
        ledger.trim(1, 4, b"s"),
        TrimOutcome::Agreed { from: 0, to: 4 }
    );
    accept(&mut ledger, 0, 96);
}

#[test]
fn limits_are_checked() {
    assert_eq!(
        Limits {
            twins: 1,
            ..small(2)
        }
        .validate(),
        Err(LimitsError::Twins(1))
    );
    assert_eq!(
        Limits {
            twins: 9,
            ..small(2)
        }
        .validate(),
        Err(LimitsError::Twins(9))
    );
    assert!(matches!(
        Limits {
            trim_every: 0,
            ..small(2)
        }
        .validate(),
        Err(LimitsError::Range {
            name: "trim_every",
            ..
        })
    ));
    assert!(matches!(
        Limits {
            log_bytes: 5000,
            ..small(2)
        }
        .validate(),
        Err(LimitsError::LogTooSmall { .. })
    ));
    assert!(matches!(
        Limits {
            entry_bytes_max: 2000,
            ..small(2)
        }
        .validate(),
        Err(LimitsError::LogTooSmall { .. })
    ));
    for twins in 2..=TWINS_MAX {
        assert_eq!(Limits::new(twins).validate(), Ok(()));
    }
}

proptest! {
    /// Whatever twins ask for: the log never overruns itself, a record never wraps, an append within
    /// quota is never refused, and a restored ledger is the same as the one before.
    #[test]
    fn a_random_walk_keeps_the_invariants(
        twins in 2u8..=4,
        steps in proptest::collection::vec((0u8..4, 0u64..=96, 0u64..5), 1..400),
    ) {
        let mut ledger = ledger(twins);
        let limits = ledger.limits().clone();
        let mut entries: VecDeque<(u8, u32)> = VecDeque::new();
        for (who, payload_bytes, choice) in steps {
            let twin = who % twins;
            if choice == 0 {
                let position = ledger.tail_position() / 4 * 4;
                for twin in 0..twins {
                    if let TrimOutcome::Agreed { from, to } = ledger.trim(twin, position, b"s") {
                        entries.drain(..usize::try_from(to - from).expect("small"));
                    }
                }
                prop_assert_eq!(ledger.head_position(), position);
            } else {
                let bytes = u32::try_from(payload_bytes).expect("small");
                let fits = ledger.live_bytes(twin) + u64::from(record_bytes(bytes)) <= limits.quota_bytes();
                let head_offset = ledger.head_offset();
                match ledger.append(twin, ledger.next_number(twin), payload_bytes) {
                    Outcome::Accepted(placed) => {
                        prop_assert!(fits);
                        let end = placed.offset + u64::from(record_bytes(bytes));
                        prop_assert!(end - head_offset <= limits.log_bytes);
                        prop_assert!(placed.offset / limits.log_bytes == (end - 1) / limits.log_bytes);
                        entries.push_back((twin, bytes));
                    }
                    Outcome::Refused(refusal) => {
                        prop_assert_eq!(refusal, Refusal::OverQuota);
                        prop_assert!(!fits);
                    }
                    Outcome::OutOfOrder { .. } => prop_assert!(false, "the number was the expected one"),
                }
            }
            let live: u64 = (0..twins).map(|twin| ledger.live_bytes(twin)).sum();
            prop_assert_eq!(live, entries.iter().map(|&(_, bytes)| u64::from(record_bytes(bytes))).sum::<u64>());
        }
        let retained = Retained {
            head_position: ledger.head_position(),
            head_offset: ledger.head_offset(),
            next_numbers: (0..twins).map(|twin| ledger.next_number(twin)).collect(),
            entries: entries.into(),
            agreed: ledger.agreed().cloned(),
        };
        let restored = Ledger::restore(limits, retained).expect("a ledger leads there");
        prop_assert_eq!(restored.tail_offset(), ledger.tail_offset());
        prop_assert_eq!(restored.tail_position(), ledger.tail_position());
        for twin in 0..twins {
            prop_assert_eq!(restored.live_bytes(twin), ledger.live_bytes(twin));
        }
    }
}
