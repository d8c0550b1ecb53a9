//! Where everything lies in the log region. Page 0 is the control header, then two STATE areas, then
//! the circular data area. The same for a local memfd and for a mirror granted to a Xen guest.
//!
//! The structs here are never instantiated over shared memory; only their offsets are used.

use std::mem::{offset_of, size_of};

use crate::ledger::{Limits, TWINS_MAX};
use crate::raw::PAGE_BYTES;

/// First word of every log region ("TWINLOG1").
pub const MAGIC: u64 = 0x3147_4f4c_4e49_5754;
/// Version of the region's layout and of the record format.
pub const VERSION: u32 = 1;
/// All records start at multiples of this.
pub const RECORD_ALIGN: usize = 8;

/// One twin's words, written by the broker alone.
#[repr(C)]
pub struct TwinBlock {
    /// The only append number that the broker accepts next from this twin.
    pub next_number: u64,
    /// Number of the last refused append.
    pub refused_number: u64,
    /// Head position when it was refused: room was made when the head is above it.
    pub refused_at_head: u64,
    /// Why: a `Refusal` as number.
    pub refused_reason: u64,
    /// How many refusals there were; written last.
    pub refusals: u64,
    /// Bytes that this twin's records hold in the log.
    pub live_bytes: u64,
    /// The same count, written first: a reader that sees the two differ comes back later.
    pub refusals_begun: u64,
    /// Zero.
    pub reserved: u64,
}

/// One of the two places of an agreed STATE.
#[repr(C)]
pub struct StateSlot {
    /// The position that the log was trimmed to with this STATE.
    pub position: u64,
    /// Byte offset of that position.
    pub offset: u64,
    /// Length of the STATE.
    pub bytes: u64,
    /// crc32c of the STATE, seeded with the epoch.
    pub crc: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

/// Page 0.
#[repr(C)]
pub struct ControlHeader {
    /// `MAGIC`.
    pub magic: u64,
    /// `VERSION`.
    pub version: u64,
    /// Number of twins.
    pub twins: u64,
    /// Epoch of the log.
    pub epoch: u64,
    /// Size of the data area.
    pub log_bytes: u64,
    /// Largest payload of an entry.
    pub entry_bytes_max: u64,
    /// Largest STATE.
    pub state_bytes_max: u64,
    /// `k`.
    pub trim_every: u64,
    /// Guards against a log of another cluster.
    pub cluster_tag: u64,
    /// The host that the log belongs to.
    pub host: u64,
    /// Grows each time that a restarted broker copies the log into a fresh region.
    pub generation: u64,
    /// Zero.
    pub reserved0: [u64; 5],
    /// Byte offset behind the last published record. On its own cache line: it changes most often.
    pub tail_offset: u64,
    /// Position behind the last published entry; stored after `tail_offset`.
    pub tail_position: u64,
    /// Zero.
    pub reserved1: [u64; 14],
    /// Byte offset of the first retained record.
    pub head_offset: u64,
    /// Position of the first retained entry; stored before `head_offset`.
    pub head_position: u64,
    /// Number of STATEs agreed so far; STATE `n` is in slot `n % 2`. Zero: none yet.
    pub states: u64,
    /// Zero.
    pub reserved2: [u64; 13],
    /// The two STATE slots.
    pub state_slots: [StateSlot; 2],
    /// The twins.
    pub twin_blocks: [TwinBlock; TWINS_MAX as usize],
}

const _: () = {
    assert!(size_of::<TwinBlock>() == 8 * 8);
    assert!(size_of::<StateSlot>() == 8 * 8);
    // The sum of the fields: no padding anywhere, as all are words.
    assert!(size_of::<ControlHeader>() == (16 + 16 + 16) * 8 + 2 * 64 + TWINS_MAX as usize * 64);
    assert!(size_of::<ControlHeader>() <= PAGE_BYTES);
    assert!(offset_of!(ControlHeader, tail_offset) == 128);
    assert!(offset_of!(ControlHeader, head_offset) == 256);
    assert!(offset_of!(ControlHeader, state_slots) == 384);
    assert!(offset_of!(ControlHeader, twin_blocks) == 512);
};

/// Offset of a field in the control header.
macro_rules! header {
    ($field:ident) => {
        std::mem::offset_of!($crate::layout::ControlHeader, $field)
    };
}
pub(crate) use header;

/// Offset of a field in a twin's block.
macro_rules! twin_field {
    ($twin:expr, $field:ident) => {
        std::mem::offset_of!($crate::layout::ControlHeader, twin_blocks)
            + usize::from($twin) * std::mem::size_of::<$crate::layout::TwinBlock>()
            + std::mem::offset_of!($crate::layout::TwinBlock, $field)
    };
}
pub(crate) use twin_field;

/// Offset of a field in the slot of STATE number `n`.
macro_rules! state_field {
    ($n:expr, $field:ident) => {
        std::mem::offset_of!($crate::layout::ControlHeader, state_slots)
            + usize::from($n % 2 == 1) * std::mem::size_of::<$crate::layout::StateSlot>()
            + std::mem::offset_of!($crate::layout::StateSlot, $field)
    };
}
pub(crate) use state_field;

/// Sizes and places that follow from the limits of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    state_area_bytes: usize,
    log_bytes: usize,
}

impl RegionLayout {
    /// The layout for limits that were validated.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let state_area_bytes = (limits.state_bytes_max as usize).next_multiple_of(PAGE_BYTES);
        let log_bytes =
            usize::try_from(limits.log_bytes).expect("validated limits fit the address space");
        Self {
            state_area_bytes,
            log_bytes,
        }
    }

    /// Size of the whole region.
    #[must_use]
    pub fn region_bytes(&self) -> usize {
        self.data_start() + self.log_bytes
    }

    /// Where the area of STATE number `n` starts.
    #[must_use]
    pub fn state_start(&self, n: u64) -> usize {
        PAGE_BYTES + usize::from(n % 2 == 1) * self.state_area_bytes
    }

    /// Where the circular data area starts.
    #[must_use]
    pub fn data_start(&self) -> usize {
        PAGE_BYTES + 2 * self.state_area_bytes
    }

    /// Where the byte of a monotonic offset lies in the region.
    #[must_use]
    pub fn data_at(&self, offset: u64) -> usize {
        let within = offset % self.log_bytes as u64;
        self.data_start() + usize::try_from(within).expect("smaller than log_bytes")
    }

    /// Bytes from a monotonic offset to the end of the data area.
    #[must_use]
    pub fn bytes_to_end(&self, offset: u64) -> u64 {
        bytes_to_end(self.log_bytes as u64, offset)
    }
}

/// Bytes from a monotonic offset to the next multiple of the data area's size.
#[must_use]
pub fn bytes_to_end(log_bytes: u64, offset: u64) -> u64 {
    log_bytes - offset % log_bytes
}
