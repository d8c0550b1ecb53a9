//! The file of a `kv` state. It holds exactly the state of one checkpoint, whenever it is opened.
//!
//! Tables: `entries` key → revision ‖ value, or what says that it lies in `pieces` ([`super::values`]); `leaves`
//! bucket ‖ key → leaf digest ‖ length of the value; `groups` group → its buckets, absent while empty; `meta`. A
//! checkpoint is one transaction over all of them.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{
    Builder, Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, Table,
    TableDefinition, WriteTransaction,
};
use twinbft_types::{Digest, Slot};

use crate::application::{CHECKPOINTS_KEPT, Checkpoint};
use crate::error::AppError;
use crate::kv::backend::Backend;
use crate::kv::overlay::{Overlay, Written};
use crate::kv::tree::{
    BucketBuilder, BucketSummary, FANOUT, Group, Tree, bucket_digest, bucket_of, entry_bytes, leaf,
};
use crate::kv::values::{self, BytesTable, Row, bad_row};
use crate::options::Durability;

pub(crate) type ReadBytesTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
const PIECES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("pieces");
const LEAVES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("leaves");
const GROUPS: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("groups");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const FORMAT: &[u8] = b"twinbft kv 2";
const LEAF_VALUE_BYTES: usize = 36;

/// An open file.
pub(crate) struct Store {
    pub(crate) database: Database,
    pub(crate) path: PathBuf,
}

/// Turns an error of redb into one that says what, where and what to do.
pub(crate) fn failed<E: Into<redb::Error>>(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> AppError {
    let path = path.to_path_buf();
    move |error| match error.into() {
        redb::Error::DatabaseAlreadyOpen => AppError::InUse { path },
        redb::Error::Corrupted(what) => AppError::Corrupt { path, what },
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            AppError::Corrupt {
                path,
                what: error.to_string(),
            }
        }
        error => AppError::Storage {
            doing,
            path,
            cause: Box::new(error),
        },
    }
}

/// The tables of a write transaction.
pub(crate) struct Tables<'t> {
    entries: BytesTable<'t>,
    pieces: BytesTable<'t>,
    pub(crate) leaves: BytesTable<'t>,
    pub(crate) groups: Table<'t, u8, &'static [u8]>,
    pub(crate) meta: Table<'t, &'static str, &'static [u8]>,
}

impl<'t> Tables<'t> {
    pub(crate) fn open(txn: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            entries: txn.open_table(ENTRIES)?,
            pieces: txn.open_table(PIECES)?,
            leaves: txn.open_table(LEAVES)?,
            groups: txn.open_table(GROUPS)?,
            meta: txn.open_table(META)?,
        })
    }

    pub(crate) fn put(&mut self, key: &[u8], written: &Written) -> Result<(), redb::Error> {
        values::put(&mut self.entries, &mut self.pieces, key, written)
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), redb::Error> {
        values::remove(&mut self.entries, &mut self.pieces, key)
    }

    pub(crate) fn put_leaf(
        &mut self,
        bucket: u16,
        key: &[u8],
        written: &Written,
    ) -> Result<(), redb::Error> {
        let mut stored = [0; LEAF_VALUE_BYTES];
        stored[..32].copy_from_slice(&leaf(key, written.revision, &written.value).0);
        let value_bytes = u32::try_from(written.value.len()).expect("values are bounded");
        stored[32..].copy_from_slice(&value_bytes.to_le_bytes());
        self.leaves
            .insert(&*leaf_key(bucket, key), stored.as_slice())?;
        Ok(())
    }

    /// Marks the file as the state of this checkpoint.
    pub(crate) fn stamp(&mut self, checkpoint: Checkpoint) -> Result<(), redb::Error> {
        self.meta.insert("format", FORMAT)?;
        self.meta
            .insert("slot", checkpoint.slot.0.to_le_bytes().as_slice())?;
        self.meta.insert("digest", checkpoint.digest.0.as_slice())?;
        Ok(())
    }
}

fn leaf_key(bucket: u16, key: &[u8]) -> Vec<u8> {
    let mut leaf_key = Vec::with_capacity(2 + key.len());
    leaf_key.extend_from_slice(&bucket.to_be_bytes());
    leaf_key.extend_from_slice(key);
    leaf_key
}

/// What is stored of a leaf.
pub(crate) struct StoredLeaf<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) digest: Digest,
    pub(crate) value_bytes: u32,
}

fn parse_leaf<'a>(key: &'a [u8], value: &[u8]) -> Option<StoredLeaf<'a>> {
    let (_bucket, key) = key.split_first_chunk::<2>()?;
    let value: &[u8; LEAF_VALUE_BYTES] = value.try_into().ok()?;
    let (digest, value_bytes) = value.split_first_chunk::<32>()?;
    Some(StoredLeaf {
        key,
        digest: Digest(*digest),
        value_bytes: u32::from_le_bytes(value_bytes.try_into().ok()?),
    })
}

impl Store {
    /// Opens the file, or makes an empty one, and reads its checkpoint.
    pub(crate) fn open(
        path: &Path,
        durability: Durability,
        cache_bytes: usize,
    ) -> Result<Self, AppError> {
        let doing = "open the store";
        let backend = Backend::open(path, durability).map_err(failed(doing, path))?;
        Self::with_backend(path, backend, cache_bytes)
    }

    pub(crate) fn with_backend(
        path: &Path,
        backend: Backend,
        cache_bytes: usize,
    ) -> Result<Self, AppError> {
        let doing = "open the store";
        let database = Builder::new()
            .set_cache_size(cache_bytes)
            .create_with_backend(backend)
            .map_err(failed(doing, path))?;
        let store = Self {
            database,
            path: path.to_path_buf(),
        };
        store.check_format().map_err(|error| match error {
            Ok(store_error) => failed(doing, path)(store_error),
            Err(found) => AppError::Corrupt {
                path: path.to_path_buf(),
                what: format!("its format is {found:?} and not {FORMAT:?}"),
            },
        })?;
        Ok(store)
    }

    /// Makes the tables of a new file; the outer error is redb's, the inner one a format that is not ours.
    fn check_format(&self) -> Result<(), Result<redb::Error, Vec<u8>>> {
        let stored = self.transact(|tables| {
            let found = tables.meta.get("format")?.map(|f| f.value().to_vec());
            if found.is_none() {
                tables.meta.insert("format", FORMAT)?;
            }
            Ok(found)
        });
        match stored {
            Ok(None) => Ok(()),
            Ok(Some(found)) if found == FORMAT => Ok(()),
            Ok(Some(found)) => Err(Err(found)),
            Err(error) => Err(Ok(error)),
        }
    }

    /// Runs a durable transaction.
    fn transact<T>(
        &self,
        body: impl FnOnce(&mut Tables<'_>) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let txn = self.begin()?;
        let result = body(&mut Tables::open(&txn)?)?;
        txn.commit()?;
        Ok(result)
    }

    fn begin(&self) -> Result<WriteTransaction, redb::Error> {
        let mut txn = self.database.begin_write()?;
        // Without this, a file as large as the state would be walked after every kill.
        txn.set_quick_repair(true);
        Ok(txn)
    }

    /// Runs a durable transaction after which the state before it, that of `base`, can still be gone back to. Gives what can.
    fn transact_above(
        &self,
        base: &View,
        body: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::Error>,
    ) -> Result<Vec<Earlier>, redb::Error> {
        let txn = self.begin()?;
        let savepoint = txn.persistent_savepoint()?;
        let mut earlier = base.earlier.clone();
        earlier.push(Earlier {
            slot: base.checkpoint.slot,
            savepoint,
        });
        let surplus = (earlier.len() + 1).saturating_sub(CHECKPOINTS_KEPT);
        earlier.drain(..surplus);
        // Also what an undone transaction has left.
        let all: Vec<u64> = txn.list_persistent_savepoints()?.collect();
        for id in all {
            if !earlier.iter().any(|kept| kept.savepoint == id) {
                txn.delete_persistent_savepoint(id)?;
            }
        }
        {
            let mut tables = Tables::open(&txn)?;
            let encoded: Vec<u8> = earlier.iter().flat_map(Earlier::encode).collect();
            tables.meta.insert("earlier", &*encoded)?;
            body(&mut tables)?;
        }
        txn.commit()?;
        Ok(earlier)
    }

    /// Makes the state of an earlier checkpoint the file's own again, when it is kept.
    pub(crate) fn go_back(
        self: &Arc<Self>,
        base: &View,
        slot: Slot,
    ) -> Result<Option<View>, AppError> {
        let Some(earlier) = base.earlier.iter().find(|earlier| earlier.slot == slot) else {
            return Ok(None);
        };
        let restore = || -> Result<(), redb::Error> {
            let mut txn = self.begin()?;
            let savepoint = txn.get_persistent_savepoint(earlier.savepoint)?;
            txn.restore_savepoint(&savepoint)?;
            txn.commit()?;
            Ok(())
        };
        restore().map_err(failed("go back to an earlier checkpoint in", &self.path))?;
        View::open(self).map(Some)
    }

    /// Brings the file from the checkpoint that `base` shows to `slot` in one transaction.
    pub(crate) fn commit(
        self: &Arc<Self>,
        base: &View,
        overlay: &Overlay,
        slot: Slot,
    ) -> Result<View, AppError> {
        let mut tree = base.tree.clone();
        let earlier = self
            .transact_above(base, |tables| {
                let mut dirty = Vec::with_capacity(overlay.writes.len());
                for (key, write) in &overlay.writes {
                    match write {
                        Some(written) => tables.put(key, written)?,
                        None => tables.remove(key)?,
                    }
                    dirty.push((bucket_of(key), key, write));
                }
                // In the order of the leaves table, so that neighbours are written together.
                dirty.sort_unstable_by_key(|(bucket, key, _)| (*bucket, *key));
                for (bucket, key, write) in &dirty {
                    match write {
                        Some(written) => tables.put_leaf(*bucket, key, written)?,
                        None => drop(tables.leaves.remove(&*leaf_key(*bucket, key))?),
                    }
                }
                let summaries = rehash(tables, &dirty_buckets(&dirty, overlay), &tree, overlay)?;
                for group in tree.update(&summaries) {
                    let encoded = tree.group(group).encode();
                    tables.groups.insert(group, &*encoded)?;
                }
                tables.stamp(Checkpoint {
                    slot,
                    digest: tree.digest(),
                })
            })
            .map_err(failed("write a checkpoint to", &self.path))?;
        View::of(self, tree, slot, earlier).map_err(failed("read", &self.path))
    }
}

/// A checkpoint that the file can go back to.
#[derive(Clone, Copy, Debug)]
struct Earlier {
    slot: Slot,
    savepoint: u64,
}

impl Earlier {
    const BYTES: usize = 16;

    fn encode(&self) -> impl Iterator<Item = u8> + use<> {
        let [slot, savepoint] = [self.slot.0, self.savepoint].map(u64::to_le_bytes);
        slot.into_iter().chain(savepoint)
    }

    fn decode(bytes: &[u8]) -> Self {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        Self {
            slot: Slot(number(0)),
            savepoint: number(8),
        }
    }
}

fn dirty_buckets<T>(dirty: &[(u16, &Bytes, T)], overlay: &Overlay) -> Vec<u16> {
    let mut buckets: Vec<u16> = dirty.iter().map(|(bucket, ..)| *bucket).collect();
    buckets.extend(overlay.deleted_slots.keys());
    buckets.sort_unstable();
    buckets.dedup();
    buckets
}

/// Hashes these buckets again from their stored leaves.
fn rehash(
    tables: &Tables<'_>,
    buckets: &[u16],
    tree: &Tree,
    overlay: &Overlay,
) -> Result<Vec<(u16, BucketSummary)>, redb::Error> {
    let mut summaries = Vec::with_capacity(buckets.len());
    for &bucket in buckets {
        let mut builder = BucketBuilder::default();
        let (first, end) = leaf_range(bucket);
        for row in tables.leaves.range(first.as_slice()..end.as_slice())? {
            let (key, value) = row?;
            let leaf = parse_leaf(key.value(), value.value()).ok_or_else(bad_leaf)?;
            let bytes = entry_bytes(leaf.key.len(), leaf.value_bytes as usize);
            builder.push(&leaf.digest, bytes);
        }
        let (digest, bytes) = bucket_digest(&builder.finish());
        let before = tree.bucket(bucket).deleted_slot;
        let deleted_slot = overlay.deleted_slots.get(&bucket).copied();
        summaries.push((
            bucket,
            BucketSummary {
                digest,
                bytes,
                deleted_slot: deleted_slot.unwrap_or(before),
            },
        ));
    }
    Ok(summaries)
}

/// The first leaf key of a bucket and, where there is one, of the bucket after it.
fn leaf_range(bucket: u16) -> ([u8; 2], [u8; 2]) {
    (bucket.to_be_bytes(), (bucket + 1).to_be_bytes())
}

fn bad_leaf() -> redb::Error {
    redb::Error::Corrupted("a row of the table leaves has a wrong length".into())
}

/// The state of one checkpoint, readable as long as this lives.
pub(crate) struct View {
    pub(crate) store: Arc<Store>,
    pub(crate) entries: ReadBytesTable,
    pieces: ReadBytesTable,
    leaves: ReadBytesTable,
    pub(crate) tree: Tree,
    pub(crate) checkpoint: Checkpoint,
    /// What the file can go back to, the oldest first. Invariant: fewer than [`CHECKPOINTS_KEPT`].
    earlier: Vec<Earlier>,
    /// The tables read what this keeps.
    _txn: ReadTransaction,
}

impl View {
    fn of(
        store: &Arc<Store>,
        tree: Tree,
        slot: Slot,
        earlier: Vec<Earlier>,
    ) -> Result<Self, redb::Error> {
        let txn = store.database.begin_read()?;
        Ok(Self {
            store: Arc::clone(store),
            entries: txn.open_table(ENTRIES)?,
            pieces: txn.open_table(PIECES)?,
            leaves: txn.open_table(LEAVES)?,
            checkpoint: Checkpoint {
                slot,
                digest: tree.digest(),
            },
            tree,
            earlier,
            _txn: txn,
        })
    }

    /// Reads the checkpoint that a file holds: genesis when it is new.
    pub(crate) fn open(store: &Arc<Store>) -> Result<Self, AppError> {
        let (tree, slot, digest) = Self::read_tree(store).map_err(failed("read", &store.path))?;
        let earlier = Self::read_earlier(store).map_err(failed("read", &store.path))?;
        let view = Self::of(store, tree, slot, earlier).map_err(failed("read", &store.path))?;
        if digest.is_some_and(|digest| digest != view.checkpoint.digest) {
            return Err(AppError::Corrupt {
                path: store.path.clone(),
                what: "its groups do not hash to the digest of its checkpoint".into(),
            });
        }
        Ok(view)
    }

    /// What the file says that it can go back to, as far as it can: going back has taken away what came after.
    fn read_earlier(store: &Store) -> Result<Vec<Earlier>, redb::Error> {
        let txn = store.database.begin_read()?;
        let meta = txn.open_table(META)?;
        let encoded = meta.get("earlier")?;
        let encoded = encoded.as_ref().map_or(&[][..], |e| e.value());
        let earlier = encoded.chunks_exact(Earlier::BYTES).map(Earlier::decode);
        let kept: Vec<u64> = store
            .database
            .begin_write()?
            .list_persistent_savepoints()?
            .collect();
        Ok(earlier.filter(|e| kept.contains(&e.savepoint)).collect())
    }

    fn read_tree(store: &Store) -> Result<(Tree, Slot, Option<Digest>), redb::Error> {
        let txn = store.database.begin_read()?;
        let groups = txn.open_table(GROUPS)?;
        let mut tree = Tree::empty();
        for row in groups.iter()? {
            let (number, encoded) = row?;
            let number = number.value();
            let group = Group::decode(encoded.value()).filter(|_| usize::from(number) < FANOUT);
            let group = group.ok_or_else(|| {
                redb::Error::Corrupted("a row of the table groups has a wrong length".into())
            })?;
            tree.set_group(number, group);
        }
        let meta = txn.open_table(META)?;
        let slot = fixed(&meta, "slot")?.map(u64::from_le_bytes);
        let digest = fixed(&meta, "digest")?.map(Digest);
        Ok((tree, Slot(slot.unwrap_or(0)), digest))
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Written>, redb::Error> {
        let Some(stored) = self.entries.get(key)? else {
            return Ok(None);
        };
        self.written(key, stored.value()).map(Some)
    }

    /// What a row of the table `entries` stands for.
    pub(crate) fn written(&self, key: &[u8], stored: &[u8]) -> Result<Written, redb::Error> {
        let row = Row::parse(stored).ok_or_else(bad_row)?;
        Ok(Written {
            revision: row.revision,
            value: row.value(key, &self.pieces)?.into(),
        })
    }

    /// Calls back for each leaf of these buckets, by bucket, then key, until it answers `false`.
    pub(crate) fn leaves(
        &self,
        buckets: RangeInclusive<u16>,
        mut each: impl FnMut(&StoredLeaf<'_>) -> Result<bool, redb::Error>,
    ) -> Result<(), redb::Error> {
        let (first, _) = leaf_range(*buckets.start());
        let (_, end) = leaf_range(*buckets.end());
        for row in self.leaves.range(first.as_slice()..end.as_slice())? {
            let (key, value) = row?;
            let leaf = parse_leaf(key.value(), value.value()).ok_or_else(bad_leaf)?;
            if !each(&leaf)? {
                break;
            }
        }
        Ok(())
    }

    /// The digest of the state, from every entry and not from stored leaves. The slots of deletions cannot be
    /// recomputed and are taken as they are.
    pub(crate) fn digest_by_full_pass(&self) -> Result<Digest, redb::Error> {
        let mut builders = vec![BucketBuilder::default(); crate::kv::tree::BUCKETS];
        // Entries come in key order, so each bucket gets its leaves in key order.
        for row in self.entries.iter()? {
            let (key, stored) = row?;
            let key = key.value();
            let written = self.written(key, stored.value())?;
            let digest = leaf(key, written.revision, &written.value);
            builders[usize::from(bucket_of(key))]
                .push(&digest, entry_bytes(key.len(), written.value.len()));
        }
        let summaries: Vec<_> = (0_u16..)
            .zip(builders)
            .map(|(bucket, builder)| {
                let (digest, bytes) = bucket_digest(&builder.finish());
                let deleted_slot = self.tree.bucket(bucket).deleted_slot;
                (
                    bucket,
                    BucketSummary {
                        digest,
                        bytes,
                        deleted_slot,
                    },
                )
            })
            .collect();
        let mut tree = Tree::empty();
        tree.update(&summaries);
        Ok(tree.digest())
    }
}

/// Reads a row of fixed length.
pub(crate) fn fixed<const N: usize>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<[u8; N]>, redb::Error> {
    let Some(stored) = table.get(key)? else {
        return Ok(None);
    };
    let array = stored.value().try_into();
    let array = array.map_err(|_| redb::Error::Corrupted("a row has a wrong length".into()))?;
    Ok(Some(array))
}
