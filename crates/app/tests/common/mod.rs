//! What the tests of `kv` share: operations, batches, outcomes.
#![allow(dead_code, reason = "each test file uses a part of it")]

use bytes::Bytes;
use prost::Message as _;
use tempfile::TempDir;
use twinbft_app::kv::Kv;
use twinbft_app::{Application, BatchContext, Checkpoint, Durability, KvOptions, Operation};
use twinbft_types::kv::compare_and_swap::{Expected, Replacement};
use twinbft_types::kv::operation::Kind as Op;
use twinbft_types::kv::outcome::Kind as Answer;
use twinbft_types::kv::{self, Nothing, Outcome, Page, Revision};
use twinbft_types::{ClientId, Digest, Seq, Slot};

pub fn encode(op: Op) -> Bytes {
    kv::Operation { kind: Some(op) }.encode_to_vec().into()
}

pub fn put(key: &[u8], value: &[u8]) -> Bytes {
    let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    encode(Op::Put(kv::Put { key, value }))
}

pub fn get(key: &[u8]) -> Bytes {
    let key = Bytes::copy_from_slice(key);
    encode(Op::Get(kv::Get { key }))
}

pub fn delete(key: &[u8]) -> Bytes {
    let key = Bytes::copy_from_slice(key);
    encode(Op::Delete(kv::Delete { key }))
}

pub fn scan(start: &[u8], end: &[u8], limit: u32) -> Bytes {
    let (start, end) = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
    encode(Op::Scan(kv::Scan { start, end, limit }))
}

pub fn list(prefix: &[u8], continuation: &[u8], limit: u32) -> Bytes {
    encode(Op::List(kv::List {
        prefix: Bytes::copy_from_slice(prefix),
        continuation: Bytes::copy_from_slice(continuation),
        limit,
    }))
}

pub fn swap(key: &[u8], expected: Expected, new_value: Option<&[u8]>) -> Bytes {
    let replacement = match new_value {
        Some(value) => Replacement::NewValue(Bytes::copy_from_slice(value)),
        None => Replacement::Delete(Nothing {}),
    };
    encode(Op::CompareAndSwap(kv::CompareAndSwap {
        key: Bytes::copy_from_slice(key),
        expected: Some(expected),
        replacement: Some(replacement),
    }))
}

pub fn revision(slot: u64, index: u32) -> Option<Revision> {
    Some(Revision { slot, index })
}

pub fn answer(result: &Bytes) -> Answer {
    let outcome = Outcome::decode(result.clone()).expect("a result is an Outcome");
    outcome.kind.expect("an Outcome has a kind")
}

pub fn page(result: &Bytes) -> Page {
    match answer(result) {
        Answer::Page(page) => page,
        other => panic!("not a page: {other:?}"),
    }
}

pub fn failure_code(result: &Bytes) -> kv::FailureCode {
    match answer(result) {
        Answer::Failure(failure) => failure.code(),
        other => panic!("not a failure: {other:?}"),
    }
}

/// Executes one slot.
pub fn run(app: &mut dyn Application, slot: u64, operations: &[Bytes]) -> Vec<Bytes> {
    let batch: Vec<_> = (1..)
        .zip(operations)
        .map(|(seq, bytes)| Operation {
            client: ClientId { key: 1, session: 2 },
            seq: Seq(seq),
            bytes,
        })
        .collect();
    let context = BatchContext {
        slot: Slot(slot),
        timestamp_us: 1_000_000 + slot,
        seed: Digest::of(&slot.to_le_bytes()),
    };
    let mut results = Vec::new();
    app.execute(&context, &batch, &mut results)
        .expect("the store works");
    assert_eq!(results.len(), operations.len());
    results
}

pub const SMALL_CACHE: KvOptions = KvOptions {
    cache_bytes: 1 << 20,
    key_bytes_max: 4 << 10,
    value_bytes_max: 1 << 20,
    page_items_max: 1000,
    page_bytes_max: 1 << 20,
};

pub fn open(directory: &TempDir) -> Kv {
    Kv::open(directory.path(), Durability::Memory, SMALL_CACHE).expect("opens")
}

pub fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

pub fn checkpoint(slot: u64, digest: Digest) -> Checkpoint {
    Checkpoint {
        slot: Slot(slot),
        digest,
    }
}
