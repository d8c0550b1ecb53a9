//! `kv` does what a map in memory does, whatever is checkpointed, rolled back or restarted between (protocol.md 4.7,
//! 5), and its incremental digest is that of a full pass.

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{directory, list, open, page, revision, run};
use proptest::prelude::*;
use twinbft_app::{Application, CheckpointWork};
use twinbft_types::Slot;
use twinbft_types::kv::compare_and_swap::Expected;
use twinbft_types::kv::outcome::Kind as Answer;
use twinbft_types::kv::{Absent, Deleted, Item, Mismatch, Nothing, Page, Revision, Value, Written};

type State = BTreeMap<Vec<u8>, (Vec<u8>, Revision)>;

#[derive(Clone, Debug)]
enum Op {
    Get(Vec<u8>),
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    SwapAbsent(Vec<u8>, Option<Vec<u8>>),
    SwapValue(Vec<u8>, Vec<u8>, Option<Vec<u8>>),
    /// Whether the revision is the right one is decided by the slot that it names.
    SwapRevision(Vec<u8>, u64, Option<Vec<u8>>),
    Scan(Vec<u8>, Vec<u8>, u32),
    List(Vec<u8>, u32),
}

#[derive(Clone, Debug)]
enum Step {
    Batch(Vec<Op>),
    Checkpoint,
    CheckpointBegin,
    CheckpointRun,
    Rollback,
    Restart,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(
        prop_oneof![Just(0_u8), Just(b'a'), Just(b'b'), Just(0xff)],
        0..4,
    )
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(0_u8..3, 0..3),
        1 => (0_u8..3, 1_usize..9000).prop_map(|(byte, bytes)| vec![byte; bytes]),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let change = || prop::option::of(value());
    prop_oneof![
        2 => key().prop_map(Op::Get),
        4 => (key(), value()).prop_map(|(k, v)| Op::Put(k, v)),
        3 => key().prop_map(Op::Delete),
        1 => (key(), change()).prop_map(|(k, c)| Op::SwapAbsent(k, c)),
        1 => (key(), value(), change()).prop_map(|(k, v, c)| Op::SwapValue(k, v, c)),
        1 => (key(), 0_u64..20, change()).prop_map(|(k, s, c)| Op::SwapRevision(k, s, c)),
        1 => (key(), key(), 0_u32..5).prop_map(|(s, e, l)| Op::Scan(s, e, l)),
        1 => (key(), 0_u32..5).prop_map(|(p, l)| Op::List(p, l)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(op(), 1..8).prop_map(Step::Batch),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::CheckpointBegin),
        1 => Just(Step::CheckpointRun),
        1 => Just(Step::Rollback),
        1 => Just(Step::Restart),
    ]
}

fn bytes(op: &Op) -> Bytes {
    match op {
        Op::Get(key) => common::get(key),
        Op::Put(key, value) => common::put(key, value),
        Op::Delete(key) => common::delete(key),
        Op::SwapAbsent(key, change) => {
            common::swap(key, Expected::Absent(Nothing {}), change.as_deref())
        }
        Op::SwapValue(key, value, change) => {
            let value = Bytes::copy_from_slice(value);
            common::swap(key, Expected::Value(value), change.as_deref())
        }
        Op::SwapRevision(key, slot, change) => {
            let expected = Expected::Revision(Revision {
                slot: *slot,
                index: 0,
            });
            common::swap(key, expected, change.as_deref())
        }
        Op::Scan(start, end, limit) => common::scan(start, end, *limit),
        Op::List(prefix, limit) => list(prefix, b"", *limit),
    }
}

fn model_swap(
    state: &mut State,
    key: &[u8],
    holds: bool,
    change: Option<&Vec<u8>>,
    now: Revision,
) -> Answer {
    let before = state.get(key).map(|(_, revision)| *revision);
    if !holds {
        return Answer::Mismatch(Mismatch { revision: before });
    }
    match (change, before) {
        (Some(value), _) => {
            state.insert(key.to_vec(), (value.clone(), now));
            Answer::Written(Written {
                revision: Some(now),
            })
        }
        (None, Some(before)) => {
            state.remove(key);
            Answer::Deleted(Deleted {
                revision: Some(before),
            })
        }
        (None, None) => Answer::Absent(Absent {}),
    }
}

fn model_page(
    state: &State,
    limit: u32,
    with_values: bool,
    covers: impl Fn(&[u8]) -> bool,
) -> Answer {
    let limit = if limit == 0 { 1000 } else { limit as usize };
    let all: Vec<_> = state.iter().filter(|(key, _)| covers(key)).collect();
    let items: Vec<Item> = all
        .iter()
        .take(limit)
        .map(|(key, (value, revision))| Item {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(if with_values { value } else { b"" }),
            revision: Some(*revision),
            value_bytes: u32::try_from(value.len()).unwrap(),
        })
        .collect();
    let continuation = match items.last() {
        Some(last) if all.len() > limit => [&last.key[..], b"\0"].concat().into(),
        Some(_) | None => Bytes::new(),
    };
    Answer::Page(Page {
        items,
        continuation,
    })
}

fn model(state: &mut State, op: &Op, now: Revision) -> Answer {
    match op {
        Op::Get(key) => match state.get(key) {
            Some((value, revision)) => Answer::Value(Value {
                value: Bytes::copy_from_slice(value),
                revision: Some(*revision),
            }),
            None => Answer::Absent(Absent {}),
        },
        Op::Put(key, value) => model_swap(state, key, true, Some(value), now),
        Op::Delete(key) => model_swap(state, key, true, None, now),
        Op::SwapAbsent(key, change) => {
            let holds = !state.contains_key(key);
            model_swap(state, key, holds, change.as_ref(), now)
        }
        Op::SwapValue(key, value, change) => {
            let holds = state.get(key).is_some_and(|(found, _)| found == value);
            model_swap(state, key, holds, change.as_ref(), now)
        }
        Op::SwapRevision(key, slot, change) => {
            let expected = revision(*slot, 0);
            let holds = state
                .get(key)
                .is_some_and(|(_, found)| Some(*found) == expected);
            model_swap(state, key, holds, change.as_ref(), now)
        }
        Op::Scan(start, end, limit) => model_page(state, *limit, true, |key| {
            key >= &**start && (end.is_empty() || key < &**end)
        }),
        Op::List(prefix, limit) => model_page(state, *limit, false, |key| key.starts_with(prefix)),
    }
}

/// A checkpoint that was begun, the state it is of, and its work until it is run.
struct Begun {
    slot: u64,
    state: State,
    work: Option<CheckpointWork>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn kv_is_a_map(steps in prop::collection::vec(step(), 1..30)) {
        let directory = directory();
        let mut app = open(&directory);
        let (mut slot, mut state) = (0, State::new());
        let mut durable = (0, State::new());
        let mut begun = Begun { slot: 0, state: State::new(), work: None };
        for step in &steps {
            match step {
                Step::Batch(ops) => {
                    slot += 1;
                    let operations: Vec<_> = ops.iter().map(bytes).collect();
                    let results = run(&mut app, slot, &operations);
                    for ((index, op), result) in (0..).zip(ops).zip(&results) {
                        let expected = model(&mut state, op, Revision { slot, index });
                        prop_assert_eq!(common::answer(result), expected);
                    }
                }
                Step::Checkpoint | Step::CheckpointBegin | Step::CheckpointRun => {
                    if let Some(work) = begun.work.take() {
                        let done = work.run().expect("the store works");
                        prop_assert_eq!(done.slot, Slot(begun.slot));
                        prop_assert_eq!(app.digest_by_full_pass().unwrap(), done.digest);
                        durable = (begun.slot, begun.state.clone());
                    }
                    if !matches!(step, Step::CheckpointRun) && slot > durable.0 {
                        let work = app.checkpoint_begin(Slot(slot)).expect("the store works");
                        begun = Begun { slot, state: state.clone(), work: Some(work) };
                    }
                    if matches!(step, Step::Checkpoint) && let Some(work) = begun.work.take() {
                        let done = work.run().expect("the store works");
                        prop_assert_eq!(app.digest_by_full_pass().unwrap(), done.digest);
                        prop_assert_eq!(app.last_checkpoint(), Some(done));
                        durable = (slot, state.clone());
                    }
                }
                Step::Rollback => {
                    prop_assert_eq!(app.rollback(), Slot(begun.slot));
                    (slot, state) = (begun.slot, begun.state.clone());
                }
                Step::Restart => {
                    begun.work = None;
                    drop(app);
                    app = open(&directory);
                    (slot, state) = durable.clone();
                    begun = Begun { slot, state: state.clone(), work: None };
                    prop_assert_eq!(app.last_checkpoint().map_or(0, |c| c.slot.0), slot);
                }
            }
            let everything = app.query(&common::scan(b"", b"", 0)).expect("the store works");
            let expected = model_page(&state, 0, true, |_| true);
            prop_assert_eq!(common::answer(&everything.result), expected);
        }
    }
}

#[test]
fn pages_that_follow_continuations_cover_everything_once() {
    let directory = directory();
    let mut app = open(&directory);
    // Half of the keys in the store, half in the overlay.
    let keys: Vec<Vec<u8>> = (0..200).map(|i| vec![b'k', i]).collect();
    let puts = |parity: usize| -> Vec<Bytes> {
        let some = keys.iter().skip(parity).step_by(2);
        some.map(|key| common::put(key, b"v")).collect()
    };
    run(&mut app, 1, &puts(0));
    app.checkpoint(Slot(1)).expect("the store works");
    run(&mut app, 2, &puts(1));
    let mut listed = Vec::new();
    let mut continuation = Bytes::new();
    loop {
        let part = app.query(&list(b"k", &continuation, 7)).expect("works");
        let part = page(&part.result);
        assert!(part.items.len() <= 7);
        listed.extend(part.items.into_iter().map(|item| item.key));
        continuation = part.continuation;
        if continuation.is_empty() {
            break;
        }
    }
    assert_eq!(listed, keys);
}

#[test]
fn a_revision_tells_two_writes_of_one_batch_apart() {
    let directory = directory();
    let mut app = open(&directory);
    let results = run(
        &mut app,
        1,
        &[common::put(b"k", b"mine"), common::put(b"k", b"theirs")],
    );
    let Answer::Written(mine) = common::answer(&results[0]) else {
        panic!("a put answers Written");
    };
    let expected = Expected::Revision(mine.revision.expect("a put has a revision"));
    let results = run(&mut app, 2, &[common::swap(b"k", expected, Some(b"lost?"))]);
    assert_eq!(
        common::answer(&results[0]),
        Answer::Mismatch(Mismatch {
            revision: revision(1, 1)
        })
    );
}
