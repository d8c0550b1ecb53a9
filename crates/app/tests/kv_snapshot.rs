//! A snapshot travels chunk by chunk, each verified on its own, and arrives whole or not at all (protocol.md 5).

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{checkpoint, delete, directory, get, open, put, run, scan};
use proptest::prelude::*;
use twinbft_app::kv::Kv;
use twinbft_app::{Application, ChunkId, Snapshot};
use twinbft_types::Slot;

/// A state with runs, a bucket of several parts and a part with one large value.
fn filled(app: &mut Kv) {
    let small = |i: u32| put(&i.to_be_bytes(), &vec![7; i as usize % 500]);
    let some: Vec<Bytes> = (0..2000).map(small).collect();
    run(app, 1, &some);
    let large: Vec<Bytes> = (0..4_u8).map(|i| put(&[i], &vec![i; 400_000])).collect();
    run(app, 2, &large);
    let gone: Vec<Bytes> = (0..100_u32).map(|i| delete(&i.to_be_bytes())).collect();
    run(app, 3, &gone);
    app.checkpoint(Slot(3)).expect("works");
}

/// Fetches everything; `each` sees each chunk before it is accepted.
fn fetch(
    app: &mut Kv,
    from: &dyn Snapshot,
    mut each: impl FnMut(&mut Kv, ChunkId, &Bytes),
) -> usize {
    let mut fetched = 0;
    loop {
        let wanted = app.restore_wanted(16);
        if wanted.is_empty() {
            return fetched;
        }
        for chunk in wanted {
            let bytes = from.read_chunk(chunk).expect("works");
            let bytes = bytes.expect("what is wanted is there");
            each(app, chunk, &bytes);
            app.restore_accept(chunk, &bytes)
                .expect("works")
                .expect("genuine");
            fetched += 1;
        }
    }
}

fn everything(app: &Kv) -> Vec<Bytes> {
    let mut pages = Vec::new();
    let mut start = Bytes::new();
    loop {
        let answer = app.query(&scan(&start, b"", 0)).expect("works");
        start = common::page(&answer.result).continuation;
        pages.push(answer.result);
        if start.is_empty() {
            return pages;
        }
    }
}

#[test]
fn a_restored_state_is_the_state() {
    let (here, there) = (directory(), directory());
    let mut source = open(&here);
    filled(&mut source);
    let snapshot = source.snapshot().expect("works").expect("not at genesis");
    let mut target = open(&there);
    run(&mut target, 1, &[put(b"old", b"state"), put(b"k", b"old")]);
    target
        .restore_begin(checkpoint(3, snapshot.digest()))
        .expect("works");
    let mut largest = 0;
    fetch(&mut target, &*snapshot, |_, _, bytes| {
        largest = largest.max(bytes.len())
    });
    assert!(
        largest <= 400_000 + 100,
        "one large value and its key: {largest}"
    );
    target.restore_activate().expect("works");
    assert_eq!(target.last_checkpoint(), source.last_checkpoint());
    assert_eq!(everything(&target), everything(&source));
    assert_eq!(
        target.digest_by_full_pass().expect("works"),
        snapshot.digest()
    );
    for missing in [&b"old"[..], &5_u32.to_be_bytes()] {
        let both = [&target, &source].map(|app| app.query(&get(missing)).expect("works"));
        assert_eq!(both[0], both[1]);
    }
    // It goes on as its source does, over a restart too.
    drop(target);
    let mut target = open(&there);
    let more = [put(b"k", b"new"), delete(&7_u32.to_be_bytes()), get(&[1])];
    assert_eq!(run(&mut target, 4, &more), run(&mut source, 4, &more));
    assert_eq!(
        target.checkpoint(Slot(4)).expect("works"),
        source.checkpoint(Slot(4)).expect("works")
    );
}

#[test]
fn an_empty_state_is_its_root() {
    let (here, there) = (directory(), directory());
    let mut source = open(&here);
    assert!(
        source.snapshot().expect("works").is_none(),
        "genesis needs no snapshot"
    );
    run(&mut source, 9, &[get(b"k")]);
    source.checkpoint(Slot(9)).expect("works");
    let snapshot = source.snapshot().expect("works").expect("taken");
    let mut target = open(&there);
    target
        .restore_begin(checkpoint(9, snapshot.digest()))
        .expect("works");
    assert_eq!(fetch(&mut target, &*snapshot, |_, _, _| {}), 1);
    target.restore_activate().expect("works");
    assert_eq!(target.last_checkpoint(), source.last_checkpoint());
}

#[test]
fn a_changed_chunk_is_refused_by_name() {
    let (here, there) = (directory(), directory());
    let mut source = open(&here);
    filled(&mut source);
    let snapshot = source.snapshot().expect("works").expect("taken");
    let mut target = open(&there);
    target
        .restore_begin(checkpoint(3, snapshot.digest()))
        .expect("works");
    let mut refused = 0;
    fetch(&mut target, &*snapshot, |target, chunk, genuine| {
        let mut flips = vec![0, genuine.len() / 2, genuine.len() - 1];
        flips.extend((1..8).map(|i| (0x9e37_79b9 * i) % genuine.len()));
        let flipped = flips.into_iter().map(|at| {
            let mut bytes = genuine.to_vec();
            bytes[at] ^= 1 << (at % 8);
            bytes
        });
        let cut = genuine[..genuine.len() - 1].to_vec();
        let longer = [genuine, &b"\0"[..]].concat();
        for wrong in flipped.chain([cut, longer, Vec::new()]) {
            let refusal = target.restore_accept(chunk, &wrong).expect("works");
            let refusal = refusal.expect_err("it was changed");
            assert_eq!(refusal.chunk, chunk);
            assert!(
                refusal.to_string().contains(&chunk.to_string()),
                "{refusal}"
            );
            assert!(target.restore_wanted(usize::MAX).contains(&chunk));
            refused += 1;
        }
    });
    assert!(refused > 1000);
    target.restore_activate().expect("works");
    assert_eq!(
        target.digest_by_full_pass().expect("works"),
        snapshot.digest()
    );
}

#[test]
fn a_restore_goes_on_after_a_restart_and_forgets_other_checkpoints() {
    let (here, there) = (directory(), directory());
    let mut source = open(&here);
    filled(&mut source);
    let snapshot = source.snapshot().expect("works").expect("taken");
    let goal = checkpoint(3, snapshot.digest());
    let mut target = open(&there);
    target.restore_begin(goal).expect("works");
    for _ in 0..3 {
        for chunk in target.restore_wanted(40) {
            let bytes = snapshot.read_chunk(chunk).expect("works").expect("there");
            target
                .restore_accept(chunk, &bytes)
                .expect("works")
                .expect("genuine");
        }
    }
    let wanted = target.restore_wanted(usize::MAX);
    drop(target);
    let mut target = open(&there);
    target.restore_begin(goal).expect("works");
    assert_eq!(target.restore_wanted(usize::MAX), wanted);
    // Another checkpoint: from the beginning.
    let digest = source.checkpoint(Slot(3)).expect("the same state again");
    assert_eq!(digest, snapshot.digest());
    target.restore_begin(checkpoint(4, digest)).expect("works");
    assert_eq!(target.restore_wanted(usize::MAX).len(), 1);
    target.restore_begin(goal).expect("works");
    fetch(&mut target, &*snapshot, |_, _, _| {});
    target.restore_activate().expect("works");
    assert_eq!(
        target.digest_by_full_pass().expect("works"),
        snapshot.digest()
    );
}

#[test]
fn a_snapshot_stays_what_it_was_while_execution_goes_on() {
    let (here, there) = (directory(), directory());
    let mut source = open(&here);
    filled(&mut source);
    let snapshot = source.snapshot().expect("works").expect("taken");
    let mut slot = 3;
    let mut target = open(&there);
    target
        .restore_begin(checkpoint(3, snapshot.digest()))
        .expect("works");
    fetch(&mut target, &*snapshot, |_, chunk, _| {
        slot += 1;
        let key = u32::try_from(chunk.0 % 2000).expect("small").to_be_bytes();
        run(&mut source, slot, &[put(&key, b"newer"), delete(&[1])]);
        if slot % 16 == 0 {
            source.checkpoint(Slot(slot)).expect("works");
        }
    });
    assert!(slot > 50);
    target.restore_activate().expect("works");
    assert_eq!(
        target.digest_by_full_pass().expect("works"),
        snapshot.digest()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Names and bytes of chunks come from outside.
    #[test]
    fn made_up_chunks_are_refused(
        ids in prop::collection::vec(any::<u64>(), 20),
        small in prop::collection::vec((0_u64..6, 0_u64..200, 0_u64..3), 20),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (here, there) = (directory(), directory());
        let mut source = open(&here);
        run(&mut source, 1, &[put(b"a", b"1"), put(b"b", b"2")]);
        source.checkpoint(Slot(1)).expect("works");
        let snapshot = source.snapshot().expect("works").expect("taken");
        let mut target = open(&there);
        target.restore_begin(checkpoint(1, snapshot.digest())).expect("works");
        let mut genuine = BTreeMap::new();
        fetch(&mut target, &*snapshot, |_, chunk, bytes| {
            genuine.insert(chunk, bytes.clone());
        });
        target.restore_begin(checkpoint(2, snapshot.digest())).expect("works");
        let near = small.iter().map(|(kind, index, part)| kind << 56 | index << 32 | part);
        for id in ids.iter().copied().chain(near).map(ChunkId) {
            prop_assert_eq!(snapshot.read_chunk(id).expect("works"), genuine.get(&id).cloned());
            prop_assert!(target.restore_accept(id, &garbage).expect("works").is_err());
        }
        fetch(&mut target, &*snapshot, |target, chunk, _| {
            let refused = target.restore_accept(chunk, &garbage).expect("works").is_err();
            assert!(refused);
        });
    }
}
