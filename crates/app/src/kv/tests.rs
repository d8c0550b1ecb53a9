//! What needs a look inside: a disk that is full.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prost::Message as _;
use twinbft_types::kv::operation::Kind;
use twinbft_types::kv::{self, Put};
use twinbft_types::{ClientId, Seq};

use super::backend::Backend;
use super::*;

fn open_with_switch(directory: &Path) -> (Kv, Arc<AtomicBool>) {
    let path = directory.join(STORE_FILE);
    let backend = Backend::open(&path, Durability::Memory).expect("opens");
    let full = backend.full_switch();
    let options = KvOptions::default();
    let store = Store::with_backend(&path, backend, 1 << 20).expect("opens");
    let kv = Kv::with_store(directory, Durability::Memory, options, store).expect("opens");
    (kv, full)
}

fn fill(kv: &mut Kv, slot: u64) {
    let put = |i: u64| {
        let key = Bytes::from(format!("key {slot} {i}"));
        let value = Bytes::from(vec![7; 10_000]);
        let kind = Some(Kind::Put(Put { key, value }));
        Bytes::from(kv::Operation { kind }.encode_to_vec())
    };
    let puts: Vec<Bytes> = (0..50).map(put).collect();
    let operations: Vec<_> = puts
        .iter()
        .map(|bytes| Operation {
            client: ClientId { key: 0, session: 0 },
            seq: Seq(1),
            bytes,
        })
        .collect();
    let batch = BatchContext {
        slot: Slot(slot),
        timestamp_us: slot,
        seed: Digest::ZERO,
    };
    let mut results = Vec::new();
    kv.execute(&batch, &operations, &mut results)
        .expect("writes go to memory");
}

#[test]
fn a_full_disk_stops_the_node_and_leaves_the_checkpoint_before() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (mut kv, full) = open_with_switch(directory.path());
    fill(&mut kv, 1);
    let digest = kv.checkpoint(Slot(1)).expect("the disk has room");
    fill(&mut kv, 2);
    full.store(true, Ordering::Relaxed);
    let error = kv.checkpoint(Slot(2)).expect_err("the disk is full");
    let text = error.to_string();
    assert!(
        matches!(error, AppError::Storage { .. })
            && text.contains("write a checkpoint to")
            && text.contains(STORE_FILE)
            && text.contains("free space"),
        "{text}"
    );
    drop(kv);
    let kv = Kv::open(directory.path(), Durability::Memory, KvOptions::default())
        .expect("the file is whole");
    let expected = Checkpoint {
        slot: Slot(1),
        digest,
    };
    assert_eq!(kv.last_checkpoint(), Some(expected));
    assert_eq!(kv.digest_by_full_pass().expect("readable"), digest);
}

/// Protocol.md 8, row 2: a start stands at the last stable checkpoint, though this twin has made others since.
#[test]
fn the_last_checkpoints_can_be_gone_back_to() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let open = || Kv::open(directory.path(), Durability::Memory, KvOptions::default());
    let mut kv = open().expect("new");
    let mut digests = Vec::new();
    for slot in 1..=5 {
        fill(&mut kv, slot);
        digests.push(kv.checkpoint(Slot(slot)).expect("the disk has room"));
    }
    drop(kv);
    let mut kv = open().expect("whole");
    assert!(!kv.go_back(Slot(2)).expect("readable"), "no longer kept");
    assert_eq!(kv.last_checkpoint().expect("made").slot, Slot(5));
    assert!(kv.go_back(Slot(4)).expect("readable"));
    assert!(kv.go_back(Slot(3)).expect("readable"));
    assert!(!kv.go_back(Slot(5)).expect("readable"), "it is undone");
    drop(kv);
    let mut kv = open().expect("whole");
    let stands = kv.last_checkpoint().expect("made");
    assert_eq!((stands.slot, stands.digest), (Slot(3), digests[2]));
    assert_eq!(kv.digest_by_full_pass().expect("readable"), digests[2]);
    for slot in 4..=8 {
        fill(&mut kv, slot);
        let digest = kv.checkpoint(Slot(slot)).expect("the disk has room");
        assert!(slot > 5 || digest == digests[usize::try_from(slot).expect("small") - 1]);
    }
    drop(kv);
    let mut kv = open().expect("whole");
    assert!(kv.go_back(Slot(6)).expect("readable"));
    assert_eq!(kv.last_checkpoint().expect("made").slot, Slot(6));
}
