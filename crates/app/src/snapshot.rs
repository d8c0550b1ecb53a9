//! A checkpoint as chunks that can be fetched from several hosts and verified one by one (protocol.md 5).

use std::fmt;

use bytes::Bytes;
use twinbft_types::{Digest, Slot};

use crate::error::AppError;

/// The name of a chunk within a snapshot. Equal states have equal chunks under equal names, whoever serves them.
/// Its meaning belongs to the service; others carry it as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub u64);

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {:#x}", self.0)
    }
}

/// A chunk that is not what the digest of the state commits to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused {chunk}: {why}")]
pub struct ChunkRefused {
    /// The chunk.
    pub chunk: ChunkId,
    /// What is wrong with it.
    pub why: String,
}

/// A readable checkpoint.
pub trait Snapshot: Send + Sync {
    /// The state is that after this slot.
    fn slot(&self) -> Slot;

    /// The digest of the state.
    fn digest(&self) -> Digest;

    /// One chunk, or `None` when this state has none of that name: names come from outside.
    ///
    /// # Errors
    /// When the store fails; the node must stop.
    fn read_chunk(&self, chunk: ChunkId) -> Result<Option<Bytes>, AppError>;
}
