//! A checkpoint of `kv` as chunks.
//!
//! From the root down, each chunk is verified by a digest that a chunk before it holds: the **root** (128 group
//! digests) by the digest of the state, a **group** (48 bytes for each of its 128 buckets) by the root, a **run** of
//! adjacent buckets with at most 256 KiB of entries by their buckets' digests. A bucket with more is fetched as its
//! **part list**, verified by the bucket's digest, and then **part** by part, each verified by the list. An empty
//! group has no chunks. So no chunk but a part list of an absurdly full bucket is above 256 KiB, except that a part
//! may be one larger value, and none needs any other to be sent along.

use std::fmt;
use std::ops::RangeInclusive;

use bytes::{Buf as _, Bytes};
use twinbft_types::{Digest, Slot};

use crate::error::AppError;
use crate::kv::overlay::Written;
use crate::kv::store::{StoredLeaf, View, failed};
use crate::kv::tree::{
    BUCKETS, BucketBuilder, FANOUT, Group, PART_BYTES_MAX, Revision, encode_parts, entry_bytes,
    locate,
};
use crate::snapshot::{ChunkId, Snapshot};

/// What a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    Root,
    Group(u8),
    /// All runs are known by their first bucket; the group says where they end.
    Run(u16),
    PartList(u16),
    Part(u16, u32),
}

impl Chunk {
    pub(crate) fn id(self) -> ChunkId {
        let id =
            |kind: u64, index: u64, part: u32| ChunkId(kind << 56 | index << 32 | u64::from(part));
        match self {
            Self::Root => id(0, 0, 0),
            Self::Group(group) => id(1, group.into(), 0),
            Self::Run(first) => id(2, first.into(), 0),
            Self::PartList(bucket) => id(3, bucket.into(), 0),
            Self::Part(bucket, part) => id(4, bucket.into(), part),
        }
    }

    pub(crate) fn from_id(id: ChunkId) -> Option<Self> {
        let index = u16::try_from(id.0 >> 32 & 0xff_ffff).ok()?;
        let part = u32::try_from(id.0 & 0xffff_ffff).ok()?;
        let chunk = match id.0 >> 56 {
            0 => Self::Root,
            1 => Self::Group(u8::try_from(index).ok()?),
            2 => Self::Run(index),
            3 => Self::PartList(index),
            4 => Self::Part(index, part),
            _ => return None,
        };
        let in_range = match chunk {
            Self::Root => true,
            Self::Group(group) => usize::from(group) < FANOUT,
            Self::Run(bucket) | Self::PartList(bucket) | Self::Part(bucket, _) => {
                usize::from(bucket) < BUCKETS
            }
        };
        (in_range && chunk.id() == id).then_some(chunk)
    }
}

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => write!(f, "root"),
            Self::Group(group) => write!(f, "group {group}"),
            Self::Run(first) => write!(f, "run of buckets from {first}"),
            Self::PartList(bucket) => write!(f, "part list of bucket {bucket}"),
            Self::Part(bucket, part) => write!(f, "part {part} of bucket {bucket}"),
        }
    }
}

/// How the entries of a group are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Both ends included.
    Run {
        first: u16,
        last: u16,
    },
    Large(u16),
}

const _: () = assert!(FANOUT == 1 << 7, "the shift below");

/// The pieces of a group, ascending. Empty buckets begin and end none.
pub(crate) fn pieces(number: u8, group: &Group) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut run: Option<(u16, u16, u64)> = None;
    for (index, summary) in (0_u16..).zip(&group.0) {
        let bucket = u16::from(number) << 7 | index;
        if summary.bytes == 0 {
            continue;
        }
        run = match run {
            Some((first, _, filled)) if filled + summary.bytes <= PART_BYTES_MAX => {
                Some((first, bucket, filled + summary.bytes))
            }
            before => {
                pieces.extend(before.map(|(first, last, _)| Piece::Run { first, last }));
                if summary.bytes > PART_BYTES_MAX {
                    pieces.push(Piece::Large(bucket));
                    None
                } else {
                    Some((bucket, bucket, summary.bytes))
                }
            }
        };
    }
    pieces.extend(run.map(|(first, last, _)| Piece::Run { first, last }));
    pieces
}

/// The run of a group that begins with this bucket.
pub(crate) fn run_from(wanted: u16, group: &Group) -> Option<RangeInclusive<u16>> {
    let (number, _) = locate(wanted);
    let mut pieces = pieces(number, group).into_iter();
    pieces.find_map(|piece| match piece {
        Piece::Run { first, last } if first == wanted => Some(first..=last),
        Piece::Run { .. } | Piece::Large(_) => None,
    })
}

/// Appends an entry to a chunk: length of the key, key, revision, length of the value, value.
fn encode_entry(chunk: &mut Vec<u8>, key: &[u8], written: &Written) {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("bounded");
    chunk.extend_from_slice(&length(key).to_le_bytes());
    chunk.extend_from_slice(key);
    chunk.extend_from_slice(&written.revision.to_bytes());
    chunk.extend_from_slice(&length(&written.value).to_le_bytes());
    chunk.extend_from_slice(&written.value);
}

/// The entries of a chunk, or `None` when it is cut short or has bytes too many.
pub(crate) fn decode_entries(mut chunk: Bytes) -> Option<Vec<(Bytes, Written)>> {
    fn take(chunk: &mut Bytes) -> Option<Bytes> {
        let bytes = chunk.try_get_u32_le().ok()? as usize;
        (bytes <= chunk.len()).then(|| chunk.split_to(bytes))
    }
    let mut entries = Vec::new();
    while !chunk.is_empty() {
        let key = take(&mut chunk)?;
        let mut revision = [0; Revision::BYTES];
        chunk.try_copy_to_slice(&mut revision).ok()?;
        let value = take(&mut chunk)?;
        let revision = Revision::from_bytes(revision);
        entries.push((key, Written { revision, value }));
    }
    Some(entries)
}

impl View {
    fn read(&self, chunk: Chunk) -> Result<Option<Bytes>, redb::Error> {
        match chunk {
            Chunk::Root => Ok(Some(self.tree.root().into())),
            Chunk::Group(group) => {
                let group = self.tree.group(group);
                Ok((*group != Group::empty()).then(|| group.encode().into()))
            }
            Chunk::Run(first) => self.read_run(first),
            Chunk::PartList(bucket) => {
                if self.tree.bucket(bucket).bytes <= PART_BYTES_MAX {
                    return Ok(None);
                }
                let mut builder = BucketBuilder::default();
                self.leaves(bucket..=bucket, |leaf| {
                    builder.push(&leaf.digest, bytes_of(leaf));
                    Ok(true)
                })?;
                Ok(Some(encode_parts(&builder.finish()).into()))
            }
            Chunk::Part(bucket, part) => self.read_part(bucket, part),
        }
    }

    fn read_run(&self, wanted: u16) -> Result<Option<Bytes>, redb::Error> {
        let run = run_from(wanted, self.tree.group(locate(wanted).0));
        let Some(run) = run else {
            return Ok(None);
        };
        let mut chunk = Vec::new();
        self.leaves(run, |leaf| {
            self.append(&mut chunk, leaf)?;
            Ok(true)
        })?;
        Ok(Some(chunk.into()))
    }

    fn read_part(&self, bucket: u16, wanted: u32) -> Result<Option<Bytes>, redb::Error> {
        if self.tree.bucket(bucket).bytes <= PART_BYTES_MAX {
            return Ok(None);
        }
        let mut chunk = Vec::new();
        let mut builder = BucketBuilder::default();
        // The number of the part that the last leaf fell into, plus one.
        let mut parts = 0;
        self.leaves(bucket..=bucket, |leaf| {
            parts += u32::from(builder.push(&leaf.digest, bytes_of(leaf)));
            let part = parts - 1;
            if part == wanted {
                self.append(&mut chunk, leaf)?;
            }
            Ok(part <= wanted)
        })?;
        Ok((wanted < parts).then(|| chunk.into()))
    }

    fn append(&self, chunk: &mut Vec<u8>, leaf: &StoredLeaf<'_>) -> Result<(), redb::Error> {
        let written = self.get(leaf.key)?.ok_or_else(|| {
            redb::Error::Corrupted("the table leaves has a key that entries has not".into())
        })?;
        encode_entry(chunk, leaf.key, &written);
        Ok(())
    }
}

fn bytes_of(leaf: &StoredLeaf<'_>) -> u64 {
    entry_bytes(leaf.key.len(), leaf.value_bytes as usize)
}

impl Snapshot for View {
    fn slot(&self) -> Slot {
        self.checkpoint.slot
    }

    fn digest(&self) -> Digest {
        self.checkpoint.digest
    }

    fn read_chunk(&self, chunk: ChunkId) -> Result<Option<Bytes>, AppError> {
        let Some(chunk) = Chunk::from_id(chunk) else {
            return Ok(None);
        };
        self.read(chunk).map_err(failed("read", &self.store.path))
    }
}
