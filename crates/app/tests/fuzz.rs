//! Fuzz targets of the service `kv`: what clients ask for, and what other hosts send of a state; `scripts/fuzz` drives them by
//! coverage.

mod common;

use bolero::{TypeGenerator, check};
use bytes::Bytes;
use common::{checkpoint, directory, open, put, run};
use prost::Message as _;
use twinbft_app::{Application, ChunkId};
use twinbft_types::Slot;
use twinbft_types::kv::Outcome;

/// Every operation has an outcome, the same on two twins, of which one has been restarted, and so has the state.
#[test]
fn kv_operations() {
    check!()
        .with_iterations(10)
        .with_type::<Vec<Vec<u8>>>()
        .for_each(|operations| {
            let operations: Vec<Bytes> = operations.iter().cloned().map(Bytes::from).collect();
            let (here, there) = (directory(), directory());
            let (mut one, mut other) = (open(&here), open(&there));
            let (first, second) = operations.split_at(operations.len() / 2);
            for (slot, batch) in (1..).zip([first, second]) {
                let results = run(&mut one, slot, batch);
                assert_eq!(run(&mut other, slot, batch), results);
                for result in results {
                    let outcome = Outcome::decode(result).expect("an outcome");
                    assert!(outcome.kind.is_some());
                }
                let made = one.checkpoint(Slot(slot)).expect("works");
                assert_eq!(other.checkpoint(Slot(slot)).expect("works"), made);
                drop(other);
                other = open(&there);
            }
            for operation in &operations {
                let answers = [&one, &other].map(|app| app.query(operation).expect("works"));
                assert_eq!(answers[0], answers[1]);
            }
        });
}

#[derive(Clone, Debug, TypeGenerator)]
struct Sent {
    /// Instead of the chunk that is wanted, or under another name.
    bytes: Vec<u8>,
    id: Option<u64>,
    /// The genuine one with these bits turned.
    bent: Option<(u16, u8)>,
    /// So many genuine ones are taken before.
    after: u8,
}

/// No chunk that is not genuine is taken in, at any depth of the tree.
#[test]
fn chunks() {
    check!()
        .with_iterations(3)
        .with_type::<Vec<Sent>>()
        .for_each(|sent| {
            let (here, there) = (directory(), directory());
            let mut source = open(&here);
            let large = put(b"large", &vec![7; 300_000]);
            let some = (0..20_u8).map(|n| put(&[n], &[n; 30]));
            let all: Vec<Bytes> = some.chain([large]).collect();
            run(&mut source, 1, &all);
            source.checkpoint(Slot(1)).expect("works");
            let snapshot = source.snapshot().expect("works").expect("not at genesis");
            let mut target = open(&there);
            let begun = target.restore_begin(checkpoint(1, snapshot.digest()));
            begun.expect("works");
            for one in sent.iter().take(6) {
                for _ in 0..one.after % 8 {
                    let Some(chunk) = target.restore_wanted(1).pop() else {
                        return;
                    };
                    let bytes = snapshot.read_chunk(chunk).expect("works").expect("there");
                    let taken = target.restore_accept(chunk, &bytes).expect("works");
                    taken.expect("genuine");
                }
                let wanted = target.restore_wanted(usize::MAX);
                let Some(&chunk) = wanted.first() else {
                    return;
                };
                let genuine = snapshot.read_chunk(chunk).expect("works").expect("there");
                let mut bytes = Bytes::from(one.bytes.clone());
                if let Some((at, bits)) = one.bent {
                    let mut near = genuine.to_vec();
                    let at = usize::from(at) % near.len();
                    near[at] ^= bits | 1;
                    bytes = near.into();
                }
                let chunk = one.id.map_or(chunk, ChunkId);
                let taken = target.restore_accept(chunk, &bytes).expect("works");
                assert!(taken.is_err() || !wanted.contains(&chunk) || bytes == genuine);
                assert_eq!(target.restore_wanted(usize::MAX), wanted);
            }
        });
}
