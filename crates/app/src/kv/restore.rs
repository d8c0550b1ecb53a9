//! Building a state from verified chunks, in a file beside the one in use.
//!
//! Chunks that were accepted stay accepted over a restart, but for the last few that were not forced to the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::{Durability as Commit, ReadableTable, TableDefinition};
use twinbft_types::Digest;

use crate::application::Checkpoint;
use crate::error::AppError;
use crate::kv::chunks::{Chunk, Piece, decode_entries, pieces, run_from};
use crate::kv::overlay::Written;
use crate::kv::store::{Store, Tables, failed, fixed};
use crate::kv::tree::{
    BucketBuilder, FANOUT, Group, PartSummary, bucket_digest, bucket_of, decode_parts, entry_bytes,
    leaf, locate, root_digest,
};
use crate::options::Durability;
use crate::snapshot::{ChunkId, ChunkRefused};

const DONE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("restored chunks");

/// Chunks are forced to the disk when this much came since the last time.
const SYNC_BYTES: usize = 8 << 20;
/// No part list is longer: 40 bytes for each 256 KiB of one bucket.
const CHUNK_BYTES_MAX: usize = 128 << 20;

/// A restore that is under way.
pub(crate) struct Restoring {
    store: Store,
    target: Checkpoint,
    root: Option<Vec<Digest>>,
    groups: BTreeMap<u8, Box<Group>>,
    part_lists: BTreeMap<u16, Vec<PartSummary>>,
    /// Invariant: what the chunks that are here say is still to come, and nothing that is in `here`.
    missing: BTreeSet<ChunkId>,
    here: BTreeSet<ChunkId>,
    unsynced_bytes: usize,
}

/// A chunk that is what it should be.
enum Verified {
    Root(Vec<Digest>),
    Group(u8, Box<Group>),
    PartList(u16, Vec<PartSummary>),
    Entries(Vec<(u16, Bytes, Written)>),
}

impl Restoring {
    /// Goes on with what the file holds for this checkpoint, or begins afresh.
    pub(crate) fn open(
        path: &Path,
        target: Checkpoint,
        durability: Durability,
        cache_bytes: usize,
    ) -> Result<Self, AppError> {
        match Self::resume(path, target, durability, cache_bytes) {
            Ok(Some(restoring)) => return Ok(restoring),
            // What it holds is of no use; nothing is lost but time.
            Ok(None) | Err(AppError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", path)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let fresh = Self::resume(path, target, durability, cache_bytes)?;
        Ok(fresh.expect("a fresh file belongs to any checkpoint"))
    }

    fn resume(
        path: &Path,
        target: Checkpoint,
        durability: Durability,
        cache_bytes: usize,
    ) -> Result<Option<Self>, AppError> {
        let mut restoring = Self {
            store: Store::open(path, durability, cache_bytes)?,
            target,
            root: None,
            groups: BTreeMap::new(),
            part_lists: BTreeMap::new(),
            missing: BTreeSet::from([Chunk::Root.id()]),
            here: BTreeSet::new(),
            unsynced_bytes: 0,
        };
        let kept = restoring
            .read_kept()
            .map_err(failed("read the restored chunks of", path))?;
        let Some(kept) = kept else {
            return Ok(None);
        };
        // Indexes first: they say which entries to expect. Their kinds are in that order.
        for (id, bytes) in kept {
            let chunk = Chunk::from_id(id).filter(|_| restoring.missing.contains(&id));
            let index = match chunk {
                Some(Chunk::Run(_) | Chunk::Part(..)) => None,
                Some(chunk) => match restoring.verify(chunk, bytes) {
                    Ok(verified) => Some(verified),
                    Err(_) => return Ok(None),
                },
                None => return Ok(None),
            };
            restoring.note(id, index);
        }
        Ok(Some(restoring))
    }

    /// The chunks that the file holds, ascending; `None` when they are of another checkpoint.
    fn read_kept(&self) -> Result<Option<Vec<(ChunkId, Bytes)>>, redb::Error> {
        let txn = self.store.database.begin_write()?;
        let kept = {
            let mut tables = Tables::open(&txn)?;
            let done = txn.open_table(DONE)?;
            let slot = fixed(&tables.meta, "target slot")?.map(u64::from_le_bytes);
            let digest = fixed(&tables.meta, "target digest")?.map(Digest);
            // A file that was completed but not moved into its place names its own slot and no target.
            let fresh = tables.meta.get("slot")?.is_none();
            match (slot, digest) {
                (None, None) if fresh => {
                    let slot = self.target.slot.0.to_le_bytes();
                    tables.meta.insert("target slot", slot.as_slice())?;
                    let digest = self.target.digest.0;
                    tables.meta.insert("target digest", digest.as_slice())?;
                    Some(Vec::new())
                }
                (Some(slot), Some(digest))
                    if slot == self.target.slot.0 && digest == self.target.digest =>
                {
                    let mut kept = Vec::new();
                    for row in done.iter()? {
                        let (id, bytes) = row?;
                        kept.push((ChunkId(id.value()), Bytes::copy_from_slice(bytes.value())));
                    }
                    Some(kept)
                }
                (_, _) => None,
            }
        };
        txn.commit()?;
        Ok(kept)
    }

    pub(crate) fn wanted(&self, max: usize) -> Vec<ChunkId> {
        self.missing.iter().take(max).copied().collect()
    }

    pub(crate) fn accept(
        &mut self,
        id: ChunkId,
        bytes: &[u8],
    ) -> Result<Result<(), ChunkRefused>, AppError> {
        if self.here.contains(&id) {
            return Ok(Ok(()));
        }
        let chunk = Chunk::from_id(id).filter(|_| self.missing.contains(&id));
        let Some(chunk) = chunk else {
            let why = "nobody asked for it".to_owned();
            return Ok(Err(ChunkRefused { chunk: id, why }));
        };
        let verified = match self.verify(chunk, Bytes::copy_from_slice(bytes)) {
            Ok(verified) => verified,
            Err(why) => {
                let why = format!("{chunk}: {why}");
                return Ok(Err(ChunkRefused { chunk: id, why }));
            }
        };
        self.keep(id, &verified, bytes)
            .map_err(failed("write a restored chunk to", &self.store.path))?;
        self.note(id, Some(verified));
        Ok(Ok(()))
    }

    /// Checks a chunk against what is known already. The error says what is wrong.
    fn verify(&self, chunk: Chunk, bytes: Bytes) -> Result<Verified, String> {
        if bytes.len() > CHUNK_BYTES_MAX {
            return Err(format!("it has {} bytes", bytes.len()));
        }
        match chunk {
            Chunk::Root => {
                let (digests, rest) = bytes.as_chunks::<32>();
                if digests.len() != FANOUT || !rest.is_empty() {
                    return Err("its length is not that of a root".into());
                }
                expect(self.target.digest, root_digest(&bytes))?;
                let digests = digests.iter().copied().map(Digest).collect();
                Ok(Verified::Root(digests))
            }
            Chunk::Group(number) => {
                let root = self.root.as_ref().ok_or("the root is not here")?;
                expect(root[usize::from(number)], Group::digest_of(&bytes))?;
                let group = Group::decode(&bytes).ok_or("its length is not that of a group")?;
                Ok(Verified::Group(number, Box::new(group)))
            }
            Chunk::Run(first) => self.verify_run(first, bytes).map(Verified::Entries),
            Chunk::PartList(bucket) => {
                let (number, index) = locate(bucket);
                let group = self.groups.get(&number).ok_or("its group is not here")?;
                let parts = decode_parts(&bytes).ok_or("its length is not that of a list")?;
                expect(group.0[index].digest, bucket_digest(&parts).0)?;
                Ok(Verified::PartList(bucket, parts))
            }
            Chunk::Part(bucket, part) => {
                let list = self.part_lists.get(&bucket).ok_or("its list is not here")?;
                let expected = list
                    .get(part as usize)
                    .ok_or("its bucket has fewer parts")?;
                let (found, entries) = hash_entries(bucket..=bucket, bytes)?;
                match &*found {
                    [(_, parts)] if **parts == [*expected] => Ok(Verified::Entries(entries)),
                    _ => Err("its entries do not hash to what the list says".into()),
                }
            }
        }
    }

    fn verify_run(&self, wanted: u16, bytes: Bytes) -> Result<Vec<(u16, Bytes, Written)>, String> {
        let group = self.groups.get(&locate(wanted).0);
        let group = group.ok_or("its group is not here")?;
        let run = run_from(wanted, group).ok_or("no run begins there")?;
        let (found, entries) = hash_entries(run.clone(), bytes)?;
        let mut found = found.into_iter().peekable();
        for bucket in run {
            let parts = found.next_if(|(other, _)| *other == bucket);
            let digest = bucket_digest(&parts.map(|(_, parts)| parts).unwrap_or_default()).0;
            expect(group.0[locate(bucket).1].digest, digest)
                .map_err(|why| format!("bucket {bucket}: {why}"))?;
        }
        Ok(entries)
    }

    /// Writes a verified chunk to the file.
    fn keep(&mut self, id: ChunkId, verified: &Verified, bytes: &[u8]) -> Result<(), redb::Error> {
        let mut txn = self.store.database.begin_write()?;
        let sync = self.unsynced_bytes + bytes.len() >= SYNC_BYTES;
        if sync {
            txn.set_quick_repair(true);
        } else {
            txn.set_durability(Commit::None)?;
        }
        {
            let mut tables = Tables::open(&txn)?;
            let mut done = txn.open_table(DONE)?;
            match verified {
                Verified::Root(_) | Verified::PartList(..) => {
                    done.insert(id.0, bytes)?;
                }
                Verified::Group(number, _) => {
                    tables.groups.insert(number, bytes)?;
                    done.insert(id.0, bytes)?;
                }
                Verified::Entries(entries) => {
                    for (bucket, key, written) in entries {
                        tables.put(key, written)?;
                        tables.put_leaf(*bucket, key, written)?;
                    }
                    done.insert(id.0, [].as_slice())?;
                }
            }
        }
        txn.commit()?;
        self.unsynced_bytes = if sync {
            0
        } else {
            self.unsynced_bytes + bytes.len()
        };
        Ok(())
    }

    /// Takes note of a chunk that is in the file, and of the chunks that it speaks of.
    fn note(&mut self, id: ChunkId, index: Option<Verified>) {
        let was_missing = self.missing.remove(&id);
        assert!(was_missing, "only missing chunks are kept");
        self.here.insert(id);
        match index {
            Some(Verified::Root(digests)) => {
                let empty = Group::empty().digest();
                let full = (0_u8..)
                    .zip(&digests)
                    .filter(|(_, digest)| **digest != empty);
                self.missing
                    .extend(full.map(|(group, _)| Chunk::Group(group).id()));
                self.root = Some(digests);
            }
            Some(Verified::Group(number, group)) => {
                let ids = pieces(number, &group).into_iter().map(|piece| match piece {
                    Piece::Run { first, .. } => Chunk::Run(first).id(),
                    Piece::Large(bucket) => Chunk::PartList(bucket).id(),
                });
                self.missing.extend(ids);
                self.groups.insert(number, group);
            }
            Some(Verified::PartList(bucket, parts)) => {
                let ids = (0_u32..)
                    .zip(&parts)
                    .map(|(part, _)| Chunk::Part(bucket, part).id());
                self.missing.extend(ids);
                self.part_lists.insert(bucket, parts);
            }
            Some(Verified::Entries(_)) | None => {}
        }
    }

    /// Makes the file a state of its own and closes it.
    pub(crate) fn finish(self) -> Result<PathBuf, AppError> {
        assert!(self.missing.is_empty(), "chunks are still wanted");
        let Self { store, target, .. } = self;
        let stamped = || -> Result<(), redb::Error> {
            let mut txn = store.database.begin_write()?;
            txn.set_quick_repair(true);
            {
                let mut tables = Tables::open(&txn)?;
                tables.meta.remove("target slot")?;
                tables.meta.remove("target digest")?;
                tables.stamp(target)?;
            }
            txn.delete_table(DONE)?;
            txn.commit()?;
            Ok(())
        };
        stamped().map_err(failed("complete the restored state", &store.path))?;
        Ok(store.path)
    }
}

fn expect(expected: Digest, found: Digest) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    Err(format!(
        "it hashes to {} and should to {}",
        found.short(),
        expected.short()
    ))
}

type Hashed = (Vec<(u16, Vec<PartSummary>)>, Vec<(u16, Bytes, Written)>);

/// Hashes the entries of a chunk, which must be of these buckets and in their order.
fn hash_entries(buckets: RangeInclusive<u16>, bytes: Bytes) -> Result<Hashed, String> {
    let entries = decode_entries(bytes).ok_or("it is not a sequence of entries")?;
    let entries: Vec<_> = entries
        .into_iter()
        .map(|(key, written)| (bucket_of(&key), key, written))
        .collect();
    if !entries.is_sorted_by(|a, b| (a.0, &a.1) < (b.0, &b.1)) {
        return Err("its keys are not in order".into());
    }
    if entries.iter().any(|(bucket, ..)| !buckets.contains(bucket)) {
        return Err("it has a key of another bucket".into());
    }
    let hash = |run: &[(u16, Bytes, Written)]| {
        let mut builder = BucketBuilder::default();
        for (_, key, written) in run {
            let digest = leaf(key, written.revision, &written.value);
            builder.push(&digest, entry_bytes(key.len(), written.value.len()));
        }
        (run[0].0, builder.finish())
    };
    let hashed = entries.chunk_by(|a, b| a.0 == b.0).map(hash).collect();
    Ok((hashed, entries))
}
