//! The recorded postbox log of one host (protocol.md 9): a directory of segment files, each a header and records, all
//! of them linked by one SHA-256 chain. The broker writes it, an auditor reads it.
//!
//! A segment begins with what the log was last trimmed with (STATE), so that an audit can begin at any segment whose
//! predecessors are gone. Segments overlap: each repeats what its predecessor recorded since that trim.
//!
//! This crate never interprets an entry or a STATE, and it holds no more than one record of a file in memory. It is
//! part of the broker's trusted base and depends on nothing but SHA-256.
#![forbid(unsafe_code)]

mod format;
mod recording;
mod segment;

#[cfg(test)]
mod tests;

pub use format::{CHAIN_BYTES, Chain, End, RECORD_BYTES_MIN, RecordHead, SegmentHeader, file_name};
pub use recording::{Item, Joins, Recording, segments};
pub use segment::{Damage, SegmentReader};
