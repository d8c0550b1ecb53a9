//! The digest of a `kv` state: what it commits to, and how it is kept up to date key by key.
//!
//! Keys fall into 2^14 buckets by SHA-256. A **leaf** is the hash of one entry (key, revision, value). The leaves
//! of a bucket, in key order, are cut greedily into **parts** of at most [`PART_BYTES_MAX`] bytes of entries, so
//! that a bucket can be sent in bounded pieces; a part's digest is the hash of its leaves, a bucket's digest the
//! hash of its parts. 128 buckets make a **group**, 128 groups the **root**. A group hashes, for each bucket,
//! digest, bytes of entries and the slot of the last deletion in it, so a receiver of the group knows how the
//! rest is cut into chunks.
//!
//! A checkpoint rehashes the leaves of dirty keys, and for each dirty bucket the stored leaves (32 bytes an entry,
//! never the values), then one group per dirty group and the root. The cost is that of the dirty buckets: with `D`
//! dirty keys of `K` it reads about `min(D, 2^14) * K / 2^14` leaves.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use twinbft_types::Digest;

use crate::kv::values::key_hash;

/// How many groups a state has, and how many buckets a group.
pub(crate) const FANOUT: usize = 128;
/// How many buckets a state has.
pub(crate) const BUCKETS: usize = FANOUT * FANOUT;
/// The most bytes of entries in one part, except that a larger entry is a part of its own.
pub(crate) const PART_BYTES_MAX: u64 = 256 << 10;
/// What an encoded entry takes besides key and value.
pub(crate) const ENTRY_OVERHEAD_BYTES: u64 = 20;

const BUCKET_SUMMARY_BYTES: usize = 48;
const PART_SUMMARY_BYTES: usize = 40;

/// When a value was written: slot, and index within its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Revision {
    pub(crate) slot: u64,
    pub(crate) index: u32,
}

impl Revision {
    pub(crate) const BYTES: usize = 12;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.slot.to_le_bytes());
        bytes[8..].copy_from_slice(&self.index.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let (slot, index) = bytes.split_at(8);
        Self {
            slot: u64::from_le_bytes(slot.try_into().expect("8 bytes")),
            index: u32::from_le_bytes(index.try_into().expect("4 bytes")),
        }
    }
}

/// The bucket of a key, below [`BUCKETS`].
///
/// SHA-256, so that a client has to search to pile keys into one bucket; what it wins is slow checkpoints of that
/// bucket, which is bounded by the leaves in it.
pub(crate) fn bucket_of(key: &[u8]) -> u16 {
    let hash = key_hash(key);
    u16::from_be_bytes([hash[0], hash[1]]) >> 2
}

/// The group of a bucket, and its place in it.
///
/// # Panics
/// When there is no such bucket.
pub(crate) fn locate(bucket: u16) -> (u8, usize) {
    let (group, index) = (usize::from(bucket) / FANOUT, usize::from(bucket) % FANOUT);
    assert!(group < FANOUT, "no such bucket");
    (u8::try_from(group).expect("128 groups"), index)
}

/// The hash of one entry.
pub(crate) fn leaf(key: &[u8], revision: Revision, value: &[u8]) -> Digest {
    let key_bytes = u32::try_from(key.len()).expect("keys are bounded");
    let hash = Sha256::new_with_prefix(b"tbft/kvl")
        .chain_update(key_bytes.to_le_bytes())
        .chain_update(key)
        .chain_update(revision.to_bytes())
        .chain_update(value)
        .finalize();
    Digest(hash.into())
}

/// The length of an entry in a chunk.
pub(crate) fn entry_bytes(key_bytes: usize, value_bytes: usize) -> u64 {
    ENTRY_OVERHEAD_BYTES + key_bytes as u64 + value_bytes as u64
}

/// What a bucket index says of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartSummary {
    pub(crate) digest: Digest,
    /// Bytes of entries.
    pub(crate) bytes: u64,
}

/// Takes the leaves of a bucket in key order and cuts them into parts.
#[derive(Clone, Default)]
pub(crate) struct BucketBuilder {
    parts: Vec<PartSummary>,
    /// Leaves and bytes of the part that is being filled.
    open: Option<(Sha256, u64)>,
}

impl BucketBuilder {
    /// Adds a leaf and its entry's length; answers whether the entry begins a new part.
    pub(crate) fn push(&mut self, leaf: &Digest, bytes: u64) -> bool {
        if let Some((hasher, filled)) = &mut self.open
            && *filled + bytes <= PART_BYTES_MAX
        {
            hasher.update(leaf.0);
            *filled += bytes;
            return false;
        }
        self.close();
        let hasher = Sha256::new_with_prefix(b"tbft/kvp").chain_update(leaf.0);
        self.open = Some((hasher, bytes));
        true
    }

    fn close(&mut self) {
        if let Some((hasher, bytes)) = self.open.take() {
            self.parts.push(PartSummary {
                digest: Digest(hasher.finalize().into()),
                bytes,
            });
        }
    }

    /// The parts.
    pub(crate) fn finish(mut self) -> Vec<PartSummary> {
        self.close();
        self.parts
    }
}

pub(crate) fn encode_parts(parts: &[PartSummary]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.len() * PART_SUMMARY_BYTES);
    for part in parts {
        bytes.extend_from_slice(&part.digest.0);
        bytes.extend_from_slice(&part.bytes.to_le_bytes());
    }
    bytes
}

/// Reads what [`encode_parts`] wrote; `None` when the length is no multiple of a part's.
pub(crate) fn decode_parts(bytes: &[u8]) -> Option<Vec<PartSummary>> {
    let (parts, rest) = bytes.as_chunks::<PART_SUMMARY_BYTES>();
    rest.is_empty().then(|| {
        parts
            .iter()
            .map(|part| PartSummary {
                digest: Digest(part[..32].try_into().expect("32 bytes")),
                bytes: u64::from_le_bytes(part[32..].try_into().expect("8 bytes")),
            })
            .collect()
    })
}

/// A bucket's digest and bytes.
pub(crate) fn bucket_digest(parts: &[PartSummary]) -> (Digest, u64) {
    let hash = Sha256::new_with_prefix(b"tbft/kvc")
        .chain_update(encode_parts(parts))
        .finalize();
    // Saturating, because a list that a liar made up reaches this before it is compared.
    let bytes = parts
        .iter()
        .fold(0_u64, |sum, part| sum.saturating_add(part.bytes));
    (Digest(hash.into()), bytes)
}

/// What a group says of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BucketSummary {
    pub(crate) digest: Digest,
    /// Bytes of entries.
    pub(crate) bytes: u64,
    /// The slot of the last deletion of a key of this bucket, or 0.
    pub(crate) deleted_slot: u64,
}

/// 128 adjacent buckets.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Group(pub(crate) [BucketSummary; FANOUT]);

impl Group {
    pub(crate) fn empty() -> Self {
        let (digest, bytes) = bucket_digest(&[]);
        Self(
            [BucketSummary {
                digest,
                bytes,
                deleted_slot: 0,
            }; FANOUT],
        )
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FANOUT * BUCKET_SUMMARY_BYTES);
        for bucket in &self.0 {
            bytes.extend_from_slice(&bucket.digest.0);
            bytes.extend_from_slice(&bucket.bytes.to_le_bytes());
            bytes.extend_from_slice(&bucket.deleted_slot.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` when the length is wrong.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (buckets, rest) = bytes.as_chunks::<BUCKET_SUMMARY_BYTES>();
        if !rest.is_empty() || buckets.len() != FANOUT {
            return None;
        }
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        Some(Self(std::array::from_fn(|i| BucketSummary {
            digest: Digest(buckets[i][..32].try_into().expect("32 bytes")),
            bytes: number(&buckets[i][32..40]),
            deleted_slot: number(&buckets[i][40..]),
        })))
    }

    pub(crate) fn digest(&self) -> Digest {
        Self::digest_of(&self.encode())
    }

    /// The digest of an encoded group.
    pub(crate) fn digest_of(encoded: &[u8]) -> Digest {
        Digest(
            Sha256::new_with_prefix(b"tbft/kvg")
                .chain_update(encoded)
                .finalize()
                .into(),
        )
    }
}

/// The digest of a state whose root chunk (the group digests, one after another) is this.
pub(crate) fn root_digest(root: &[u8]) -> Digest {
    Digest(
        Sha256::new_with_prefix(b"tbft/kvr")
            .chain_update(root)
            .finalize()
            .into(),
    )
}

/// All buckets of one state, in memory (about 0.8 MiB; clones share what did not change).
#[derive(Clone)]
pub(crate) struct Tree {
    groups: Vec<Arc<Group>>,
    group_digests: Vec<Digest>,
    /// Invariant: the greatest `deleted_slot` of all buckets.
    deleted_slot: u64,
}

impl Tree {
    pub(crate) fn empty() -> Self {
        let group = Arc::new(Group::empty());
        let digest = group.digest();
        Self {
            groups: vec![group; FANOUT],
            group_digests: vec![digest; FANOUT],
            deleted_slot: 0,
        }
    }

    pub(crate) fn group(&self, group: u8) -> &Group {
        &self.groups[usize::from(group)]
    }

    pub(crate) fn bucket(&self, bucket: u16) -> &BucketSummary {
        let (group, index) = locate(bucket);
        &self.groups[usize::from(group)].0[index]
    }

    /// The slot of the last deletion of any key, or 0.
    pub(crate) fn deleted_slot(&self) -> u64 {
        self.deleted_slot
    }

    pub(crate) fn set_group(&mut self, number: u8, group: Group) {
        let index = usize::from(number);
        self.group_digests[index] = group.digest();
        let newest = group.0.iter().map(|bucket| bucket.deleted_slot).max();
        self.deleted_slot = self.deleted_slot.max(newest.unwrap_or(0));
        self.groups[index] = Arc::new(group);
    }

    /// Changes buckets; answers the groups that were touched, ascending.
    ///
    /// # Panics
    /// When the buckets do not ascend.
    pub(crate) fn update(&mut self, buckets: &[(u16, BucketSummary)]) -> Vec<u8> {
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0));
        let mut touched = Vec::new();
        for run in buckets.chunk_by(|a, b| locate(a.0).0 == locate(b.0).0) {
            let (number, _) = locate(run[0].0);
            let mut group = self.group(number).clone();
            for (bucket, summary) in run {
                group.0[locate(*bucket).1] = *summary;
            }
            self.set_group(number, group);
            touched.push(number);
        }
        touched
    }

    /// The root chunk.
    pub(crate) fn root(&self) -> Vec<u8> {
        self.group_digests
            .iter()
            .flat_map(|digest| digest.0)
            .collect()
    }

    /// The digest of the state.
    pub(crate) fn digest(&self) -> Digest {
        root_digest(&self.root())
    }
}
