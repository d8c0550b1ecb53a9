//! SHA-256 digests, the history chain and canonical bytes.
//!
//! Canonical bytes are Borsh (borsh.io): fixed-width little-endian integers, `u32` lengths, one byte per
//! enum tag. There is exactly one encoding of each value, and decoders refuse trailing bytes.

use std::fmt;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::Slot;

/// A SHA-256 digest.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, BorshSerialize, BorshDeserialize,
)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of nothing in particular: the history before slot 1.
    pub const ZERO: Self = Self([0; 32]);

    /// SHA-256 of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// SHA-256 of `tag ‖ canonical(value)`.
    #[must_use]
    pub fn of_canonical<T: BorshSerialize + ?Sized>(tag: &[u8; 8], value: &T) -> Self {
        let mut hasher = Hasher::default();
        hasher.take_in(tag);
        value.serialize(&mut hasher).expect("hashing does not fail");
        Self(hasher.finish())
    }

    /// The first four bytes in hexadecimal: enough for people, never for decisions.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

/// Canonical bytes come a few at a time: they are gathered first.
struct Hasher {
    sha: Sha256,
    gathered: [u8; Self::GATHERED_BYTES],
    len: usize,
}

impl Default for Hasher {
    fn default() -> Self {
        Self {
            sha: Sha256::new(),
            gathered: [0; Self::GATHERED_BYTES],
            len: 0,
        }
    }
}

impl Hasher {
    const GATHERED_BYTES: usize = 192;

    fn take_in(&mut self, bytes: &[u8]) {
        if bytes.len() > Self::GATHERED_BYTES - self.len {
            self.sha.update(&self.gathered[..self.len]);
            self.len = 0;
        }
        if bytes.len() > Self::GATHERED_BYTES {
            self.sha.update(bytes);
            return;
        }
        self.gathered[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn finish(mut self) -> [u8; 32] {
        self.sha.update(&self.gathered[..self.len]);
        self.sha.finalize().into()
    }
}

impl borsh::io::Write for Hasher {
    fn write(&mut self, buf: &[u8]) -> borsh::io::Result<usize> {
        self.take_in(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> borsh::io::Result<()> {
        Ok(())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.short())
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// `h_n = H(h_{n−1} ‖ n ‖ d_n ‖ timestamp_n)` (protocol.md 1).
#[must_use]
pub fn history(previous: Digest, slot: Slot, batch: Digest, timestamp_us: u64) -> Digest {
    Digest::of_canonical(b"tbft/his", &(previous, slot, batch, timestamp_us))
}

/// Canonical bytes of a value.
///
/// # Panics
/// Never for the types of this crate: their lengths fit a `u32`.
#[must_use]
pub fn canonical<T: BorshSerialize + ?Sized>(value: &T) -> Vec<u8> {
    borsh::to_vec(value).expect("canonical encoding of a bounded value does not fail")
}

/// Reads canonical bytes back. Refuses trailing bytes.
///
/// # Errors
/// When the bytes are not exactly one encoding of `T`.
pub fn from_canonical<T: BorshDeserialize>(bytes: &[u8]) -> Result<T, DecodeError> {
    T::try_from_slice(bytes).map_err(|e| DecodeError(e.to_string()))
}

/// Bytes that do not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a canonical encoding: {0}")]
pub struct DecodeError(pub String);
