//! The memory that the log's single writer writes: the log itself and its mirrors, which hold the same
//! bytes at the same places. A guest of Xen can map only pages that were granted to it alone, so each
//! twin there has a mirror of its own; the log itself stays the broker's.

use std::ops::Range;

use crate::layout::{MAGIC, RegionLayout, header};
use crate::raw::{PAGE_BYTES, ReadMemory, WriteMemory};

/// The log's memory and that of its mirrors. Every write goes to all of them, in this order, so what
/// the order of two writes tells a reader of the log it tells a reader of a mirror too.
pub(crate) struct Regions {
    log: WriteMemory,
    mirrors: Vec<Mirror>,
}

struct Mirror {
    twin: u8,
    memory: WriteMemory,
    /// Parts of the region that are still to be copied.
    missing: Vec<Range<usize>>,
    /// Nothing is missing, and its first word says so.
    is_whole: bool,
}

impl Regions {
    pub(crate) fn new(log: WriteMemory) -> Self {
        Self {
            log,
            mirrors: Vec::new(),
        }
    }

    fn each(&self) -> impl Iterator<Item = &WriteMemory> {
        std::iter::once(&self.log).chain(self.mirrors.iter().map(|mirror| &mirror.memory))
    }

    pub(crate) fn store_u64(&self, offset: usize, value: u64) {
        self.each()
            .for_each(|region| region.store_u64(offset, value));
    }

    pub(crate) fn store_u64_release(&self, offset: usize, value: u64) {
        self.each()
            .for_each(|region| region.store_u64_release(offset, value));
    }

    pub(crate) fn copy_in(&self, offset: usize, from: &[u8]) {
        self.each().for_each(|region| region.copy_in(offset, from));
    }

    /// Makes fresh memory a mirror of the log, which holds the bytes from `head` to `tail`: from now on every write goes there
    /// too, and `fill` copies what is there already. Replaces an earlier one of the twin.
    pub(crate) fn attach(
        &mut self,
        twin: u8,
        memory: WriteMemory,
        layout: &RegionLayout,
        (head, tail): (u64, u64),
    ) {
        assert!(
            memory.bytes() >= layout.region_bytes(),
            "a mirror is as large as the log"
        );
        // All of the control page but its first word, which says that the rest is there.
        let first = size_of::<u64>();
        copy(&self.log, &memory, first..PAGE_BYTES);
        let mut missing = record_parts(layout, head, tail);
        missing.push(PAGE_BYTES..layout.data_start());
        self.detach(twin);
        self.mirrors.push(Mirror {
            twin,
            memory,
            missing,
            is_whole: false,
        });
    }

    /// Whether a mirror is not whole yet.
    pub(crate) fn is_filling(&self) -> bool {
        self.mirrors.iter().any(|mirror| !mirror.is_whole)
    }

    /// Copies at most so many bytes into a mirror that is not whole. Answers the twin whose mirror is whole now.
    ///
    /// What was written since `attach` is in both already, and is copied again where it lies in a part that was missing.
    pub(crate) fn fill(&mut self, bytes_max: usize) -> Option<u8> {
        let mirror = self.mirrors.iter_mut().find(|mirror| !mirror.is_whole)?;
        let mut left = bytes_max;
        while let Some(part) = mirror.missing.last_mut() {
            let count = part.len().min(left);
            copy(&self.log, &mirror.memory, part.start..part.start + count);
            part.start += count;
            left -= count;
            if part.start < part.end {
                return None;
            }
            mirror.missing.pop();
        }
        mirror.memory.store_u64_release(header!(magic), MAGIC);
        mirror.is_whole = true;
        Some(mirror.twin)
    }

    /// Answers whether the twin had one.
    pub(crate) fn detach(&mut self, twin: u8) -> bool {
        let before = self.mirrors.len();
        self.mirrors.retain(|mirror| mirror.twin != twin);
        self.mirrors.len() != before
    }

    /// Copies the records of another region to the same places of the log.
    pub(crate) fn copy_records(&self, old: &ReadMemory, layout: &RegionLayout, from: u64, to: u64) {
        for part in record_parts(layout, from, to) {
            copy(old, &self.log, part);
        }
    }
}

/// Where the records from `head` to `tail` lie in a region.
fn record_parts(layout: &RegionLayout, head: u64, tail: u64) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut at = head;
    while at < tail {
        let count = (tail - at).min(layout.bytes_to_end(at));
        let start = layout.data_at(at);
        let bytes = usize::try_from(count).expect("not more than the data area");
        parts.push(start..start + bytes);
        at += count;
    }
    parts
}

fn copy(from: &ReadMemory, into: &WriteMemory, part: Range<usize>) {
    let mut buffer = vec![0; part.len().min(64 << 10)];
    let mut at = part.start;
    while at < part.end {
        let count = (part.end - at).min(buffer.len());
        from.copy_out(at, &mut buffer[..count]);
        into.copy_in(at, &buffer[..count]);
        at += count;
    }
}

#[cfg(test)]
#[path = "regions_tests.rs"]
mod tests;
