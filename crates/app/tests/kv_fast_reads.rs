//! The version of a fast read keeps its promise (protocol.md 7): when a read gives the same result and version in
//! the states after slots a < b, it gives that same result in every state between them.

mod common;

use std::collections::HashMap;

use bytes::Bytes;
use common::{answer, delete, directory, get, list, open, put, run, scan};
use proptest::prelude::*;
use twinbft_app::Application;
use twinbft_types::Slot;
use twinbft_types::kv::outcome::Kind as Answer;

/// Few keys and values, so that what was read keeps coming back.
fn operation() -> impl Strategy<Value = Bytes> {
    let key = || 0_u8..4;
    prop_oneof![
        (key(), 0_u8..2).prop_map(|(key, value)| put(&[key], &[value])),
        key().prop_map(|key| delete(&[key])),
    ]
}

fn reads() -> Vec<Bytes> {
    let gets = (0_u8..4).map(|key| get(&[key]));
    let ranges = [
        scan(b"", b"", 0),
        scan(&[1], &[3], 0),
        scan(b"", b"", 1),
        list(&[2], b"", 0),
        list(b"", b"", 2),
    ];
    gets.chain(ranges).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equal_answers_mean_nothing_happened_between(
        slots in prop::collection::vec(
            (prop::collection::vec(operation(), 0..3), prop::bool::weighted(0.2)), 1..60),
    ) {
        let directory = directory();
        let mut app = open(&directory);
        // For each read, by (result, version): the last slot at which it was given.
        let mut seen: Vec<HashMap<(Bytes, u64), u64>> = vec![HashMap::new(); reads().len()];
        let mut before: Vec<Option<(Bytes, u64)>> = vec![None; reads().len()];
        for ((operations, checkpoint), slot) in slots.iter().zip(1..) {
            run(&mut app, slot, operations);
            if *checkpoint {
                app.checkpoint(Slot(slot)).expect("works");
            }
            for (read, (seen, before)) in reads().iter().zip(seen.iter_mut().zip(&mut before)) {
                let now = app.query(read).expect("works");
                let now = (now.result, now.version);
                let last = seen.insert(now.clone(), slot);
                // Seen before means seen in the slot before, or with a result that never changed since.
                let unchanged = before.as_ref().is_some_and(|(result, _)| *result == now.0);
                prop_assert!(
                    last.is_none_or(|last| last + 1 == slot || unchanged),
                    "{:?} came back at slot {} as it was at {:?}", read, slot, last
                );
                prop_assert!(now.1 <= slot);
                *before = Some(now);
            }
        }
    }
}

#[test]
fn a_key_that_came_and_went_shows_in_the_version_of_its_absence() {
    let directory = directory();
    let mut app = open(&directory);
    let never = app.query(&get(b"k")).expect("works");
    run(&mut app, 1, &[put(b"k", b"v")]);
    run(&mut app, 2, &[delete(b"k")]);
    let again = app.query(&get(b"k")).expect("works");
    assert_eq!(never.result, again.result);
    assert_eq!((never.version, again.version), (0, 2));
    app.checkpoint(Slot(2)).expect("works");
    drop(app);
    let app = open(&directory);
    assert_eq!(app.query(&get(b"k")).expect("works"), again);
}

#[test]
fn a_read_of_what_did_not_change_keeps_its_version_while_other_keys_are_written() {
    let directory = directory();
    let mut app = open(&directory);
    run(&mut app, 1, &[put(b"k", b"v")]);
    let before = app.query(&get(b"k")).expect("works");
    let range = app.query(&scan(b"k", b"l", 0)).expect("works");
    for slot in 2..50 {
        run(&mut app, slot, &[put(format!("x{slot}").as_bytes(), b"v")]);
    }
    assert_eq!(app.query(&get(b"k")).expect("works"), before);
    assert_eq!(app.query(&scan(b"k", b"l", 0)).expect("works"), range);
    assert!(matches!(answer(&before.result), Answer::Value(_)));
}
