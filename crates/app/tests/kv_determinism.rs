//! Equal batches give equal results and equal digests, whatever else the instances went through (protocol.md 4.8, 5).

mod common;

use bytes::Bytes;
use common::{delete, directory, get, open, put, run, scan, swap};
use proptest::prelude::*;
use twinbft_app::Application;
use twinbft_types::Slot;
use twinbft_types::kv::Nothing;
use twinbft_types::kv::compare_and_swap::Expected;

fn operation() -> impl Strategy<Value = Bytes> {
    let key = || (0_u8..40).prop_map(|key| vec![b'k', key]);
    let value = || prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        5 => (key(), value()).prop_map(|(key, value)| put(&key, &value)),
        2 => key().prop_map(|key| delete(&key)),
        1 => key().prop_map(|key| get(&key)),
        1 => (key(), value()).prop_map(|(key, value)| {
            swap(&key, Expected::Absent(Nothing {}), Some(&value))
        }),
        1 => key().prop_map(|key| scan(&key, b"", 5)),
        1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Bytes::from),
    ]
}

fn index(slot: u64) -> usize {
    usize::try_from(slot).expect("few slots") - 1
}

fn batches() -> impl Strategy<Value = Vec<Vec<Bytes>>> {
    prop::collection::vec(prop::collection::vec(operation(), 0..12), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// One instance runs straight through and checkpoints once, at the end. The other checkpoints where it is told
    /// to, and crashes where it is told to, each time executing again what followed its last checkpoint.
    #[test]
    fn restarts_and_checkpoints_leave_no_trace(
        batches in batches(),
        events in prop::collection::vec((any::<bool>(), any::<bool>()), 40),
    ) {
        let (one, other) = (directory(), directory());
        let last = batches.len() as u64;
        let mut straight = open(&one);
        let expected: Vec<_> =
            (1..).zip(&batches).map(|(slot, batch)| run(&mut straight, slot, batch)).collect();
        let digest = straight.checkpoint(Slot(last)).expect("works");

        let mut bumpy = open(&other);
        for ((slot, batch), (checkpoint, crash)) in (1..).zip(&batches).zip(&events) {
            prop_assert_eq!(&run(&mut bumpy, slot, batch), &expected[index(slot)]);
            if *checkpoint {
                bumpy.checkpoint(Slot(slot)).expect("works");
            }
            if *crash {
                drop(bumpy);
                bumpy = open(&other);
                let from = bumpy.last_checkpoint().map_or(0, |checkpoint| checkpoint.slot.0);
                for again in from + 1..=slot {
                    let results = run(&mut bumpy, again, &batches[index(again)]);
                    prop_assert_eq!(&results, &expected[index(again)]);
                }
            }
        }
        if bumpy.last_checkpoint().is_none_or(|checkpoint| checkpoint.slot < Slot(last)) {
            bumpy.checkpoint(Slot(last)).expect("works");
        }
        prop_assert_eq!(bumpy.last_checkpoint().expect("just taken").digest, digest);
    }

    /// The digest stays while only reads, refusals and failed swaps are executed, and changes with any write.
    #[test]
    fn the_digest_changes_with_the_state_alone(batches in batches(), key in 0_u8..50) {
        let directory = directory();
        let mut app = open(&directory);
        let mut slot = 0;
        for batch in &batches {
            slot += 1;
            run(&mut app, slot, batch);
        }
        let before = app.checkpoint(Slot(slot)).expect("works");
        let absent = [b'x', key];
        slot += 1;
        run(&mut app, slot, &[
            get(&[b'k', key]),
            scan(b"", b"", 0),
            delete(&absent),
            swap(&absent, Expected::Value(Bytes::new()), Some(b"new")),
            Bytes::from_static(b"\xff\xff garbage"),
        ]);
        prop_assert_eq!(app.checkpoint(Slot(slot)).expect("works"), before);

        slot += 1;
        run(&mut app, slot, &[put(&absent, b"v")]);
        let written = app.checkpoint(Slot(slot)).expect("works");
        prop_assert_ne!(written, before);
        // The same value again is a new write: its revision is part of the state.
        slot += 1;
        run(&mut app, slot, &[put(&absent, b"v")]);
        let rewritten = app.checkpoint(Slot(slot)).expect("works");
        prop_assert_ne!(rewritten, written);
        // A deletion is remembered: the entries are those of the beginning, the state is not.
        slot += 1;
        run(&mut app, slot, &[delete(&absent)]);
        let deleted = app.checkpoint(Slot(slot)).expect("works");
        prop_assert_ne!(deleted, before);
        prop_assert_ne!(deleted, rewritten);
    }
}
