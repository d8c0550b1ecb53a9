//! The service `kv`: an ordered map of keys to values, in a file that may be larger than memory.
//!
//! The operations and their outcomes are the messages of `proto/kv.proto`; their bytes are compared among replicas,
//! so nothing in an outcome depends on anything but the state and the operation.
//!
//! Writes go to an overlay in memory and reach the file only at a checkpoint, in one transaction, so the file is
//! the state of a checkpoint whenever it is opened; what follows is executed again from the replica's log.
//! The overlay is bounded by what `c` slots can write.

mod backend;
mod chunks;
mod layers;
mod overlay;
mod restore;
mod semantics;
mod store;
mod tree;
mod values;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use twinbft_types::{Digest, Slot};

use crate::application::{
    Application, BatchContext, Checkpoint, CheckpointWork, Operation, QueryAnswer,
};
use crate::error::AppError;
use crate::options::{Durability, KvOptions};
use crate::snapshot::{ChunkId, ChunkRefused, Snapshot};
use layers::Layers;
use overlay::Overlay;
use restore::Restoring;
use semantics::Write;
use store::{Store, View, failed};
use tree::Revision;

const STORE_FILE: &str = "kv.redb";
const RESTORE_FILE: &str = "kv.restore.redb";

/// The service `kv`.
pub struct Kv {
    directory: PathBuf,
    durability: Durability,
    options: KvOptions,
    store: Arc<Store>,
    /// The last checkpoint whose work this has seen done.
    base: Arc<View>,
    /// A checkpoint that was begun after `base`.
    frozen: Option<Frozen>,
    /// Invariant: all writes after `frozen`, or after `base` without it.
    overlay: Overlay,
    /// The last slot executed.
    executed: Slot,
    restoring: Option<Restoring>,
}

/// A checkpoint that is being written.
struct Frozen {
    slot: Slot,
    overlay: Arc<Overlay>,
    done: Arc<OnceLock<Arc<View>>>,
}

impl Kv {
    /// Opens the state in this directory, which is made when it is missing.
    ///
    /// # Errors
    /// When an option is out of its bounds or the state cannot be opened.
    pub fn open(
        directory: &Path,
        durability: Durability,
        options: KvOptions,
    ) -> Result<Self, AppError> {
        check(&options)?;
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
        let path = directory.join(STORE_FILE);
        let store = Store::open(&path, durability, options.cache_bytes)?;
        backend::sync_directory(directory, durability).map_err(failed("sync", directory))?;
        Self::with_store(directory, durability, options, store)
    }

    fn with_store(
        directory: &Path,
        durability: Durability,
        options: KvOptions,
        store: Store,
    ) -> Result<Self, AppError> {
        let store = Arc::new(store);
        let base = Arc::new(View::open(&store)?);
        Ok(Self {
            directory: directory.to_path_buf(),
            durability,
            options,
            executed: base.checkpoint.slot,
            store,
            base,
            frozen: None,
            overlay: Overlay::default(),
            restoring: None,
        })
    }

    /// The digest of the last checkpoint, computed from every entry in the file: an audit of the incremental one,
    /// which it must equal. Takes as long as reading everything does.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn digest_by_full_pass(&self) -> Result<Digest, AppError> {
        let view = self.newest_view();
        view.digest_by_full_pass()
            .map_err(failed("read", &self.store.path))
    }

    fn newest_view(&self) -> &Arc<View> {
        let frozen = self.frozen.as_ref();
        frozen
            .and_then(|frozen| frozen.done.get())
            .unwrap_or(&self.base)
    }

    /// Reads from the file what a checkpoint has brought there.
    fn adopt_checkpoint(&mut self) {
        if let Some(view) = self.frozen.as_ref().and_then(|frozen| frozen.done.get()) {
            self.base = Arc::clone(view);
            self.frozen = None;
        }
    }

    fn layers(&self) -> Layers<'_> {
        Layers {
            overlays: [
                Some(&self.overlay),
                self.frozen.as_ref().map(|frozen| &*frozen.overlay),
            ],
            base: &self.base,
        }
    }

    fn restoring(&self) -> &Restoring {
        self.restoring.as_ref().expect("no restore was begun")
    }
}

fn check(options: &KvOptions) -> Result<(), AppError> {
    let remedy = "choose key_bytes_max in 1..=65536, value_bytes_max in 1..=67108864, page_items_max and \
        page_bytes_max above 0";
    let sound = (1..=64 << 10).contains(&options.key_bytes_max)
        && (1..=64 << 20).contains(&options.value_bytes_max)
        && options.page_items_max > 0
        && options.page_bytes_max > 0;
    sound.then_some(()).ok_or_else(|| AppError::Options {
        what: format!("service kv: {options:?} is out of bounds"),
        remedy,
    })
}

impl Application for Kv {
    fn name(&self) -> &'static str {
        "kv"
    }

    fn execute(
        &mut self,
        batch: &BatchContext,
        operations: &[Operation<'_>],
        results: &mut Vec<Bytes>,
    ) -> Result<(), AppError> {
        assert!(batch.slot > self.executed, "slots are executed in order");
        self.adopt_checkpoint();
        for (index, operation) in (0_u32..).zip(operations) {
            let slot = batch.slot.0;
            let revision = Revision { slot, index };
            let answer = semantics::answer(
                &self.options,
                &self.layers(),
                operation.bytes,
                revision,
                true,
            );
            let mut answer = answer.map_err(failed("read", &self.store.path))?;
            match answer.write.take() {
                Some(Write::Put { key, value }) => self.overlay.put(&key, revision, &value),
                Some(Write::Delete { key, bucket }) => self.overlay.delete(&key, bucket, slot),
                None => {}
            }
            results.push(answer.encode().0);
        }
        self.executed = batch.slot;
        Ok(())
    }

    /// The version is that of the value for a get, the last deletion in the key's bucket for a get of an absent
    /// key, the greatest of the items' and the last deletion of any key for a scan or a list.
    fn query(&self, operation: &Bytes) -> Result<QueryAnswer, AppError> {
        let revision = Revision { slot: 0, index: 0 };
        let answer = semantics::answer(&self.options, &self.layers(), operation, revision, false);
        let answer = answer.map_err(failed("read", &self.store.path))?;
        assert!(answer.write.is_none(), "a fast read changes nothing");
        let (result, version) = answer.encode();
        Ok(QueryAnswer { result, version })
    }

    fn checkpoint_begin(&mut self, slot: Slot) -> Result<CheckpointWork, AppError> {
        assert_eq!(
            slot, self.executed,
            "a checkpoint is of the last executed slot"
        );
        self.adopt_checkpoint();
        assert!(
            self.frozen.is_none(),
            "the checkpoint before is not written yet"
        );
        let overlay = Arc::new(std::mem::take(&mut self.overlay));
        let done = Arc::new(OnceLock::new());
        self.frozen = Some(Frozen {
            slot,
            overlay: Arc::clone(&overlay),
            done: Arc::clone(&done),
        });
        let (store, base) = (Arc::clone(&self.store), Arc::clone(&self.base));
        Ok(CheckpointWork::new(move || {
            let view = Arc::new(store.commit(&base, &overlay, slot)?);
            let checkpoint = view.checkpoint;
            assert!(done.set(view).is_ok(), "the work runs once");
            Ok(checkpoint)
        }))
    }

    fn last_checkpoint(&self) -> Option<Checkpoint> {
        let checkpoint = self.newest_view().checkpoint;
        (checkpoint.slot > Slot(0)).then_some(checkpoint)
    }

    fn go_back(&mut self, slot: Slot) -> Result<bool, AppError> {
        assert!(
            self.frozen.is_none() && self.overlay.writes.is_empty(),
            "only a start goes back"
        );
        if self.base.checkpoint.slot == slot {
            return Ok(true);
        }
        let Some(view) = self.store.go_back(&self.base, slot)? else {
            return Ok(false);
        };
        self.base = Arc::new(view);
        self.executed = slot;
        Ok(true)
    }

    fn snapshot(&mut self) -> Result<Option<Arc<dyn Snapshot>>, AppError> {
        let view = Arc::clone(self.newest_view());
        let at_genesis = view.checkpoint.slot == Slot(0);
        Ok((!at_genesis).then_some(view as Arc<dyn Snapshot>))
    }

    fn rollback(&mut self) -> Slot {
        self.adopt_checkpoint();
        self.overlay = Overlay::default();
        let frozen = self.frozen.as_ref();
        self.executed = frozen.map_or(self.base.checkpoint.slot, |frozen| frozen.slot);
        self.executed
    }

    fn restore_begin(&mut self, checkpoint: Checkpoint) -> Result<(), AppError> {
        // The file of an earlier restore is closed before it is opened again.
        self.restoring = None;
        let path = self.directory.join(RESTORE_FILE);
        let restoring =
            Restoring::open(&path, checkpoint, self.durability, self.options.cache_bytes)?;
        self.restoring = Some(restoring);
        Ok(())
    }

    fn restore_wanted(&self, max: usize) -> Vec<ChunkId> {
        self.restoring().wanted(max)
    }

    fn restore_accept(
        &mut self,
        chunk: ChunkId,
        bytes: &[u8],
    ) -> Result<Result<(), ChunkRefused>, AppError> {
        let restoring = self.restoring.as_mut().expect("no restore was begun");
        restoring.accept(chunk, bytes)
    }

    fn restore_activate(&mut self) -> Result<(), AppError> {
        let restoring = self.restoring.take().expect("no restore was begun");
        let restored = restoring.finish()?;
        let path = self.directory.join(STORE_FILE);
        // From here on the old file is without a name; snapshots that are being read keep it open.
        fs::rename(&restored, &path).map_err(failed("rename a restored state to", &path))?;
        backend::sync_directory(&self.directory, self.durability)
            .map_err(failed("sync", &self.directory))?;
        let store = Store::open(&path, self.durability, self.options.cache_bytes)?;
        *self = Self::with_store(&self.directory, self.durability, self.options, store)?;
        Ok(())
    }
}
