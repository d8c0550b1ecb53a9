//! What bad input and bad circumstances get.

mod common;

use std::fs;

use bytes::Bytes;
use common::{
    SMALL_CACHE, answer, delete, directory, encode, failure_code, get, list, open, page, put,
    revision, run, scan,
};
use proptest::prelude::*;
use twinbft_app::kv::Kv;
use twinbft_app::{AppError, Application, Durability, KvOptions, ServiceOptions};
use twinbft_types::Slot;
use twinbft_types::kv::operation::Kind as Op;
use twinbft_types::kv::outcome::Kind as Answer;
use twinbft_types::kv::{CompareAndSwap, FailureCode, Written};

#[test]
fn a_value_of_one_mebibyte_is_accepted_and_one_byte_more_is_not() {
    let directory = directory();
    let mut app = open(&directory);
    let value = vec![9; (1 << 20) + 1];
    let key = vec![1; (4 << 10) + 1];
    let results = run(
        &mut app,
        1,
        &[
            put(&key[1..], &value[1..]),
            put(&key[1..], &value),
            put(&key, b""),
            get(&key),
            get(&key[1..]),
        ],
    );
    let revision = revision(1, 0);
    assert_eq!(answer(&results[0]), Answer::Written(Written { revision }));
    assert_eq!(failure_code(&results[1]), FailureCode::ValueTooLong);
    assert_eq!(failure_code(&results[2]), FailureCode::KeyTooLong);
    assert_eq!(failure_code(&results[3]), FailureCode::KeyTooLong);
    let Answer::Value(found) = answer(&results[4]) else {
        panic!("the first put stands");
    };
    assert_eq!(found.value, value[1..]);
    app.checkpoint(Slot(1)).expect("works");
    let answered = app.query(&get(&key[1..])).expect("works");
    assert_eq!(answered.result, results[4]);
}

#[test]
fn writes_and_half_operations_are_refused_as_fast_reads() {
    let directory = directory();
    let app = open(&directory);
    for operation in [put(b"k", b"v"), delete(b"k")] {
        let answered = app.query(&operation).expect("works");
        assert_eq!(failure_code(&answered.result), FailureCode::NotARead);
        assert_eq!(answered.version, 0);
    }
    let half = encode(Op::CompareAndSwap(CompareAndSwap::default()));
    for operation in [half, Bytes::new()] {
        let answered = app.query(&operation).expect("works");
        assert_eq!(failure_code(&answered.result), FailureCode::Malformed);
    }
}

#[test]
fn pages_are_bounded_in_bytes() {
    let directory = directory();
    let mut app = open(&directory);
    for slot in 1..=40_u8 {
        run(&mut app, slot.into(), &[put(&[slot], &vec![slot; 600_000])]);
        if slot % 8 == 0 {
            app.checkpoint(Slot(slot.into())).expect("works");
        }
    }
    let first = page(&app.query(&scan(b"", b"", 0)).expect("works").result);
    assert_eq!(first.items.len(), 1, "two of them are above 1 MiB");
    assert_eq!(first.continuation, &[1, 0][..]);
    // A list gives no values, but it may not read the whole store either.
    let names = page(&app.query(&list(b"", b"", 0)).expect("works").result);
    assert_eq!(names.items.len(), 27, "16 MiB of values");
    let rest = list(b"", &names.continuation, 0);
    let rest = page(&app.query(&rest).expect("works").result);
    assert_eq!((rest.items.len(), rest.continuation.len()), (13, 0));
    assert!(
        rest.items
            .iter()
            .all(|item| item.value_bytes == 600_000 && item.value.is_empty())
    );
}

#[test]
fn a_state_larger_than_its_cache_is_kept_and_found() {
    let directory = directory();
    let mut app = open(&directory);
    let value = |slot: u64, i: u64| vec![u8::try_from((slot ^ i) % 251).expect("small"); 4000];
    let key = |slot: u64, i: u64| format!("{i:03}/{slot:03}").into_bytes();
    // 16 MB through a cache of 1 MiB.
    for slot in 1..=40 {
        let puts: Vec<Bytes> = (0..100)
            .map(|i| put(&key(slot, i), &value(slot, i)))
            .collect();
        run(&mut app, slot, &puts);
        if slot % 4 == 0 {
            app.checkpoint(Slot(slot)).expect("works");
        }
    }
    let digest = app.last_checkpoint().expect("taken").digest;
    assert_eq!(app.digest_by_full_pass().expect("works"), digest);
    drop(app);
    let app = open(&directory);
    for (slot, i) in [(1, 0), (20, 50), (40, 99)] {
        let Answer::Value(found) = answer(&app.query(&get(&key(slot, i))).expect("works").result)
        else {
            panic!("it was put");
        };
        assert_eq!(found.value, value(slot, i));
    }
}

proptest! {
    #[test]
    fn bytes_that_are_no_operation_get_one_answer(garbage in prop::collection::vec(any::<u8>(), 0..80)) {
        let (one, other) = (directory(), directory());
        let (mut one, mut other) = (open(&one), open(&other));
        let operations = [Bytes::from(garbage)];
        let results = run(&mut one, 1, &operations);
        prop_assert_eq!(&run(&mut other, 1, &operations), &results);
        answer(&results[0]);
        let fast = one.query(&operations[0]).expect("works");
        prop_assert_eq!(other.query(&operations[0]).expect("works"), fast);
    }
}

#[test]
fn errors_of_the_node_say_what_where_and_what_to_do() {
    let directory = directory();
    let path = directory.path();
    let first = open(&directory);
    let second = Kv::open(path, Durability::Memory, SMALL_CACHE).err();
    let text = second.expect("it is in use").to_string();
    assert!(
        text.contains("kv.redb is in use") && text.contains("stop that replica"),
        "{text}"
    );
    drop(first);

    fs::write(path.join("kv.redb"), vec![0xa5; 100_000]).expect("writable");
    let damaged = Kv::open(path, Durability::Memory, SMALL_CACHE).err();
    let text = damaged.expect("not a store").to_string();
    assert!(
        text.contains("kv.redb is damaged") && text.contains("move it away"),
        "{text}"
    );

    fs::write(path.join("file"), b"").expect("writable");
    let nowhere = Kv::open(&path.join("file/below"), Durability::Memory, SMALL_CACHE).err();
    let text = nowhere.expect("a file is no directory").to_string();
    assert!(
        text.contains("create") && text.contains("file/below"),
        "{text}"
    );

    let options = KvOptions {
        key_bytes_max: 0,
        ..SMALL_CACHE
    };
    let refused = Kv::open(path, Durability::Memory, options).err();
    assert!(matches!(refused, Some(AppError::Options { .. })));
}

#[test]
fn services_are_opened_by_name() {
    let directory = directory();
    let options = |name: &str| ServiceOptions {
        name: name.into(),
        directory: Some(directory.path().join(name)),
        durability: Durability::Sync,
        ..ServiceOptions::default()
    };
    for name in twinbft_app::SERVICES {
        let mut app = twinbft_app::open(&options(name)).expect("opens");
        assert_eq!(app.name(), *name);
        run(&mut *app, 1, &[put(b"k", b"v")]);
        let digest = app.checkpoint(Slot(1)).expect("works");
        assert_eq!(app.last_checkpoint(), Some(common::checkpoint(1, digest)));
    }
    let unknown = twinbft_app::open(&options("sql")).err().expect("unknown");
    assert!(unknown.to_string().contains("choose one of"), "{unknown}");
    let homeless = ServiceOptions {
        directory: None,
        ..options("kv")
    };
    assert!(matches!(
        twinbft_app::open(&homeless),
        Err(AppError::Options { .. })
    ));
}
