//! What a replica has seen of faults (protocol.md 9), on its disk: so that a restart does not forget who lied, and so that
//! `twinbft evidence` can tell while the cluster is down.
//!
//! One line for each event, with a checksum in front; two files that follow each other, so that a twin which lies a
//! million times fills no disk. Nothing here is a promise: what is lost with the machine's power is evidence, and no
//! rule of the protocol rests on it. A line that is damaged is named and passed over, and never shown.
#![forbid(unsafe_code)]

mod file;
mod record;

#[cfg(test)]
mod tests;

pub use file::{Damage, FILE_BYTES_MAX, Found, Store, StoreError, read};
pub use record::Record;
