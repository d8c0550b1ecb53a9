//! The memory that the log's single writer writes: the log itself and its mirrors, which hold the same
//! bytes at the same places. A guest of Xen can map only pages that were granted to it alone, so each
//! twin there has a mirror of its own; the log itself stays the broker's.

use crate::layout::{MAGIC, RegionLayout, header};
use crate::raw::{PAGE_BYTES, ReadMemory, WriteMemory};

/// The log's memory and that of its mirrors. Every write goes to all of them, in this order, so what
/// the order of two writes tells a reader of the log it tells a reader of a mirror too.
pub(crate) struct Regions {
    log: WriteMemory,
    /// With the twin that each is for.
    mirrors: Vec<(u8, WriteMemory)>,
}

impl Regions {
    pub(crate) fn new(log: WriteMemory) -> Self {
        Self {
            log,
            mirrors: Vec::new(),
        }
    }

    fn each(&self) -> impl Iterator<Item = &WriteMemory> {
        std::iter::once(&self.log).chain(self.mirrors.iter().map(|(_, mirror)| mirror))
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

    /// Makes fresh memory a mirror of the log, which holds the bytes from `head` to `tail`. Replaces
    /// an earlier one of the twin.
    pub(crate) fn attach(
        &mut self,
        twin: u8,
        mirror: WriteMemory,
        layout: &RegionLayout,
        (head, tail): (u64, u64),
    ) {
        assert!(
            mirror.bytes() >= layout.region_bytes(),
            "a mirror is as large as the log"
        );
        // All of the control page but its first word, which says that the rest is there.
        let first = size_of::<u64>();
        copy(&self.log, &mirror, first, PAGE_BYTES - first);
        copy(
            &self.log,
            &mirror,
            PAGE_BYTES,
            layout.data_start() - PAGE_BYTES,
        );
        copy_records(&self.log, &mirror, layout, head, tail);
        mirror.store_u64_release(header!(magic), MAGIC);
        self.detach(twin);
        self.mirrors.push((twin, mirror));
    }

    /// Answers whether the twin had one.
    pub(crate) fn detach(&mut self, twin: u8) -> bool {
        let before = self.mirrors.len();
        self.mirrors.retain(|(of, _)| *of != twin);
        self.mirrors.len() != before
    }

    /// Copies the records of another region to the same places of the log.
    pub(crate) fn copy_records(&self, old: &ReadMemory, layout: &RegionLayout, from: u64, to: u64) {
        copy_records(old, &self.log, layout, from, to);
    }
}

fn copy_records(
    from: &ReadMemory,
    into: &WriteMemory,
    layout: &RegionLayout,
    head: u64,
    tail: u64,
) {
    let mut at = head;
    while at < tail {
        let count = (tail - at).min(layout.bytes_to_end(at));
        let bytes = usize::try_from(count).expect("not more than the data area");
        copy(from, into, layout.data_at(at), bytes);
        at += count;
    }
}

fn copy(from: &ReadMemory, into: &WriteMemory, start: usize, bytes: usize) {
    let mut buffer = vec![0; bytes.min(64 << 10)];
    let mut at = start;
    while at < start + bytes {
        let count = (start + bytes - at).min(buffer.len());
        from.copy_out(at, &mut buffer[..count]);
        into.copy_in(at, &buffer[..count]);
        at += count;
    }
}

#[cfg(test)]
#[path = "regions_tests.rs"]
mod tests;
