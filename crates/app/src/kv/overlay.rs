//! What was written since a checkpoint.
//!
//! Bound: between two checkpoints lie `c` slots, and a write holds no more than its request brought, so an overlay
//! holds at most `c * max_batch_bytes` of keys and values plus about 150 bytes for each key. While a checkpoint is
//! written there are two of them.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::kv::tree::Revision;

/// A value and when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) revision: Revision,
    pub(crate) value: Bytes,
}

/// Writes that are not in the store yet. A key with `None` is deleted.
#[derive(Default)]
pub(crate) struct Overlay {
    pub(crate) writes: BTreeMap<Bytes, Option<Written>>,
    /// The slot of the last deletion in each bucket that saw one.
    pub(crate) deleted_slots: BTreeMap<u16, u64>,
    /// The greatest of them, or 0.
    pub(crate) deleted_slot: u64,
}

impl Overlay {
    pub(crate) fn put(&mut self, key: &[u8], revision: Revision, value: &[u8]) {
        // Copies, because what was received is a slice of a whole frame and would keep all of it in memory.
        let written = Written {
            revision,
            value: Bytes::copy_from_slice(value),
        };
        if let Some(entry) = self.writes.get_mut(key) {
            *entry = Some(written);
        } else {
            self.writes
                .insert(Bytes::copy_from_slice(key), Some(written));
        }
    }

    pub(crate) fn delete(&mut self, key: &[u8], bucket: u16, slot: u64) {
        assert!(slot >= self.deleted_slot, "slots are executed in order");
        self.writes.insert(Bytes::copy_from_slice(key), None);
        self.deleted_slots.insert(bucket, slot);
        self.deleted_slot = slot;
    }
}
