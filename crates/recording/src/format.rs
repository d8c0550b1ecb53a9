//! The bytes of a segment file. Little endian; docs/operations/evidence.md describes them for other readers.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// The first bytes of every segment; the last of them is the version.
const MAGIC: [u8; 8] = *b"tbftrec\x01";
/// Goes into the hash before everything else.
const DOMAIN: &[u8; 8] = b"tbft/rec";
/// Length of a link of the chain.
pub const CHAIN_BYTES: usize = 32;
/// Length of a record's head.
pub(crate) const HEAD_BYTES: usize = 24;
/// The shortest record: head and chain, of an empty entry.
pub const RECORD_BYTES_MIN: usize = HEAD_BYTES + CHAIN_BYTES;
/// Longest name of a cluster in a header.
pub(crate) const CLUSTER_BYTES_MAX: usize = 255;
/// Fixed part of a header: magic, serial, epoch, first position, predecessor's epoch, end and chain, host, whether
/// there is a predecessor and a STATE, length of the cluster's name, length of STATE.
pub(crate) const FIXED_BYTES: usize = 8 + 5 * 8 + CHAIN_BYTES + 4 + 1 + 1 + 2 + 4;

/// A link of the chain: SHA-256 over the link before and what was recorded since.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Chain(pub [u8; CHAIN_BYTES]);

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({self})")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Chain {
    pub(crate) fn of_header(header: &[u8]) -> Self {
        let hash = Sha256::new_with_prefix(DOMAIN).chain_update(header);
        Self(hash.finalize().into())
    }

    pub(crate) fn next(self, head: &[u8; HEAD_BYTES], payload: &[u8]) -> Self {
        let hash = Sha256::new_with_prefix(self.0)
            .chain_update(head)
            .chain_update(payload);
        Self(hash.finalize().into())
    }
}

/// Where a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The epoch of its log.
    pub epoch: u64,
    /// The position after its last entry.
    pub position: u64,
    /// The last link.
    pub chain: Chain,
}

/// What stands at the start of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Of the file, from 0, without gaps.
    pub serial: u64,
    /// The cluster, at most 255 bytes.
    pub cluster_id: String,
    /// The host.
    pub host: u32,
    /// The epoch of the log.
    pub epoch: u64,
    /// The position of the first entry.
    pub first_position: u64,
    /// Where the segment before ended; `None` in the first one.
    pub previous: Option<End>,
    /// What `q` twins agreed to trim the log with at `first_position`.
    /// Invariant: `None` exactly when that is 0.
    pub state: Option<Vec<u8>>,
}

impl SegmentHeader {
    /// The bytes, and the link with which the segment's chain begins.
    ///
    /// # Panics
    /// When the cluster's name is longer than 255 bytes or STATE than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> (Vec<u8>, Chain) {
        assert!(
            self.cluster_id.len() <= CLUSTER_BYTES_MAX,
            "names are short"
        );
        assert_eq!(
            self.state.is_some(),
            self.first_position > 0,
            "a trim and its STATE"
        );
        let none = End {
            epoch: 0,
            position: 0,
            chain: Chain([0; CHAIN_BYTES]),
        };
        let previous = self.previous.unwrap_or(none);
        let state = self.state.as_deref().unwrap_or_default();
        let mut bytes = Vec::with_capacity(FIXED_BYTES + 64 + state.len());
        bytes.extend(MAGIC);
        for number in [
            self.serial,
            self.epoch,
            self.first_position,
            previous.epoch,
            previous.position,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(previous.chain.0);
        bytes.extend(self.host.to_le_bytes());
        bytes.push(u8::from(self.previous.is_some()));
        bytes.push(u8::from(self.state.is_some()));
        let name_bytes = u16::try_from(self.cluster_id.len()).expect("checked above");
        bytes.extend(name_bytes.to_le_bytes());
        let state_bytes = u32::try_from(state.len()).expect("limits keep STATE below 2^32");
        bytes.extend(state_bytes.to_le_bytes());
        assert_eq!(bytes.len(), FIXED_BYTES, "the fixed part");
        bytes.extend(self.cluster_id.as_bytes());
        bytes.extend(state);
        let chain = Chain::of_header(&bytes);
        bytes.extend(chain.0);
        (bytes, chain)
    }
}

/// The fixed part of a header, before anything that it says is believed.
pub(crate) struct Fixed {
    pub(crate) header: SegmentHeader,
    pub(crate) name_bytes: usize,
    pub(crate) state_bytes: usize,
    pub(crate) has_state: bool,
}

/// `None` for bytes that no broker writes.
pub(crate) fn decode_fixed(bytes: &[u8; FIXED_BYTES]) -> Option<Fixed> {
    let u64_at = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("fixed"));
    let u32_at = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("fixed"));
    let flag = |at: usize| match bytes[at] {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    };
    if bytes[..8] != MAGIC {
        return None;
    }
    let chain = Chain(*bytes[48..].first_chunk().expect("fixed"));
    let previous = End {
        epoch: u64_at(32),
        position: u64_at(40),
        chain,
    };
    let (has_previous, has_state) = (flag(84)?, flag(85)?);
    let name_bytes = usize::from(u16::from_le_bytes([bytes[86], bytes[87]]));
    let header = SegmentHeader {
        serial: u64_at(8),
        cluster_id: String::new(),
        host: u32_at(80),
        epoch: u64_at(16),
        first_position: u64_at(24),
        previous: has_previous.then_some(previous),
        state: None,
    };
    if name_bytes > CLUSTER_BYTES_MAX || has_state != (header.first_position > 0) {
        return None;
    }
    Some(Fixed {
        header,
        name_bytes,
        state_bytes: usize::try_from(u32_at(88)).ok()?,
        has_state,
    })
}

/// What stands before an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// Index within the epoch.
    pub position: u64,
    /// The twin that appended it, as the broker stamped it.
    pub sender: u8,
    /// The epoch of the log.
    pub epoch: u64,
}

impl RecordHead {
    /// Adds the record of this entry to `out` and moves the chain on.
    ///
    /// # Panics
    /// When the entry is longer than 4 GiB.
    pub fn encode(&self, payload: &[u8], chain: &mut Chain, out: &mut Vec<u8>) {
        let head = self.head(payload.len());
        *chain = chain.next(&head, payload);
        out.extend(head);
        out.extend(payload);
        out.extend(chain.0);
    }

    fn head(&self, payload_bytes: usize) -> [u8; HEAD_BYTES] {
        let payload_bytes = u32::try_from(payload_bytes).expect("limits keep entries below 2^32");
        let mut head = [0; HEAD_BYTES];
        head[0..4].copy_from_slice(&payload_bytes.to_le_bytes());
        head[4] = self.sender;
        head[8..16].copy_from_slice(&self.position.to_le_bytes());
        head[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        head
    }

    /// The head and the length of the entry after it.
    pub(crate) fn decode(bytes: &[u8; HEAD_BYTES]) -> (Self, u32) {
        let u64_at = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("fixed"));
        let head = Self {
            position: u64_at(8),
            sender: bytes[4],
            epoch: u64_at(16),
        };
        let payload_bytes = u32::from_le_bytes(*bytes.first_chunk().expect("fixed"));
        (head, payload_bytes)
    }
}

/// The name of a segment's file.
#[must_use]
pub fn file_name(serial: u64) -> String {
    format!("{serial:012}.tbrec")
}

pub(crate) fn serial_of(name: &str) -> Option<u64> {
    let serial = name.strip_suffix(".tbrec")?.parse().ok()?;
    (file_name(serial) == name).then_some(serial)
}
