//! Raw shared memory behind a safe face. The only module of the workspace that touches memory which
//! another process can write. (The other two with `unsafe` in them, `transport::local::fds` and
//! `transport::xen::ioctl`, take descriptors over and call the kernel.)
//!
//! It never gives out a slice or a plain reference into such memory: everything is an atomic access
//! or a word-wise atomic copy, so that a racing writer can give us wrong bytes but never undefined
//! behaviour. Offsets are our own (masked or checked by the caller), so a bad one is our bug and
//! panics; it is never a peer's to choose.

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Page size that all layouts here are built on (x86-64 and the Xen ABI).
pub const PAGE_BYTES: usize = 4096;

/// Memory that this process may only read, and that another one may be writing.
pub struct ReadMemory {
    base: NonNull<u8>,
    bytes: usize,
    backing: Backing,
}

enum Backing {
    Mapping,
    /// Plain memory for tests and for tools like Miri; held only to be freed.
    Heap(
        #[allow(dead_code, reason = "owns the allocation that `base` points into")]
        Arc<[AtomicU64]>,
    ),
}

// SAFETY: `ReadMemory` is an address and a length; every access through it is atomic, so sharing it
// between threads adds no race that the other process could not cause anyway. Unsafe is needed
// because a raw pointer field takes the auto traits away.
unsafe impl Send for ReadMemory {}
// SAFETY: as above.
unsafe impl Sync for ReadMemory {}

impl ReadMemory {
    /// Maps the first `bytes` of `fd` read-only and shared.
    ///
    /// # Errors
    /// What mmap(2) answers; EINVAL, too, where the last word is not whole. The caller has checked that
    /// the file is at least that long and that it is sealed against shrinking; otherwise an access could
    /// raise SIGBUS.
    pub fn map(fd: impl AsFd, bytes: usize) -> nix::Result<Self> {
        Self::map_at(fd, 0, bytes)
    }

    /// The same from `offset` on, which is how Xen's grant devices number what they have given out.
    ///
    /// # Errors
    /// What mmap(2) answers.
    pub fn map_at(fd: impl AsFd, offset: u64, bytes: usize) -> nix::Result<Self> {
        map_shared(fd, offset, bytes, ProtFlags::PROT_READ)
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn check(&self, offset: usize, bytes: usize, align: usize) -> NonNull<u8> {
        assert!(
            offset.is_multiple_of(align),
            "offset {offset} is not aligned to {align}"
        );
        assert!(
            bytes <= self.bytes && offset <= self.bytes - bytes,
            "access of {bytes} bytes at {offset} is outside the memory of {} bytes",
            self.bytes
        );
        // SAFETY: the range was just checked to lie inside the allocation. Unsafe is needed for
        // pointer arithmetic on memory that no Rust object describes.
        unsafe { self.base.add(offset) }
    }

    fn word_u8(&self, offset: usize) -> &AtomicU8 {
        let at = self.check(offset, 1, 1);
        // SAFETY: in range, and valid as long as `self`. The other process may write it at any
        // time, which is what an atomic allows. Unsafe is needed to see raw memory as an atomic.
        unsafe { AtomicU8::from_ptr(at.as_ptr()) }
    }

    fn word_u32(&self, offset: usize) -> &AtomicU32 {
        let at = self.check(offset, 4, 4);
        // SAFETY: as in `word_u8`; aligned because `base` is page- or word-aligned and `offset` was
        // checked.
        unsafe { AtomicU32::from_ptr(at.as_ptr().cast()) }
    }

    fn word_u64(&self, offset: usize) -> &AtomicU64 {
        let at = self.check(offset, 8, 8);
        // SAFETY: as in `word_u32`.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
    }

    /// Reads one byte without ordering.
    #[must_use]
    pub fn load_u8(&self, offset: usize) -> u8 {
        self.word_u8(offset).load(Ordering::Relaxed)
    }

    /// Reads a word without ordering.
    #[must_use]
    pub fn load_u32(&self, offset: usize) -> u32 {
        self.word_u32(offset).load(Ordering::Relaxed)
    }

    /// Reads a word; everything that its writer did before is visible afterwards.
    ///
    /// A relaxed load and a fence, because on read-only memory only relaxed loads are defined.
    #[must_use]
    pub fn load_u32_acquire(&self, offset: usize) -> u32 {
        let value = self.load_u32(offset);
        fence(Ordering::Acquire);
        value
    }

    /// Reads a word without ordering.
    #[must_use]
    pub fn load_u64(&self, offset: usize) -> u64 {
        self.word_u64(offset).load(Ordering::Relaxed)
    }

    /// Reads a word; everything that its writer did before is visible afterwards.
    #[must_use]
    pub fn load_u64_acquire(&self, offset: usize) -> u64 {
        let value = self.load_u64(offset);
        fence(Ordering::Acquire);
        value
    }

    /// Copies bytes out, word by word. A racing writer can tear the result but nothing else.
    ///
    /// Whole words at both ends, too: where atomic accesses of different sizes race, Rust defines nothing.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.check(offset, into.len(), 1);
        let lead = offset.next_multiple_of(8).min(offset + into.len()) - offset;
        let (lead_bytes, rest) = into.split_at_mut(lead);
        self.copy_part_out(offset, lead_bytes);
        let mut at = offset + lead;
        let mut words = rest.chunks_exact_mut(8);
        for chunk in &mut words {
            chunk.copy_from_slice(&self.load_u64(at).to_ne_bytes());
            at += 8;
        }
        self.copy_part_out(at, words.into_remainder());
    }

    /// The same within one word.
    fn copy_part_out(&self, offset: usize, into: &mut [u8]) {
        if !into.is_empty() {
            let within = offset % 8;
            let word = self.load_u64(offset - within).to_ne_bytes();
            into.copy_from_slice(&word[within..within + into.len()]);
        }
    }
}

impl Drop for ReadMemory {
    fn drop(&mut self) {
        match self.backing {
            Backing::Mapping => {
                // SAFETY: `base` and `bytes` came from mmap and nobody can hold a reference, as all
                // borrow from `self`. Unsafe is needed because unmapping is a raw system call.
                let result = unsafe { munmap(self.base.cast(), self.bytes) };
                assert!(
                    result.is_ok(),
                    "munmap of our own mapping failed: {result:?}"
                );
            }
            Backing::Heap(_) => {}
        }
    }
}

/// Memory that this process may also write.
pub struct WriteMemory(ReadMemory);

impl Deref for WriteMemory {
    type Target = ReadMemory;
    fn deref(&self) -> &ReadMemory {
        &self.0
    }
}

impl WriteMemory {
    /// Maps the first `bytes` of `fd` readable, writable and shared.
    ///
    /// # Errors
    /// What mmap(2) answers; EPERM when the file is sealed against future writes.
    pub fn map(fd: impl AsFd, bytes: usize) -> nix::Result<Self> {
        Self::map_at(fd, 0, bytes)
    }

    /// The same from `offset` on, which is how Xen's grant devices number what they have given out.
    ///
    /// # Errors
    /// What mmap(2) answers; EINVAL from gntdev when the grant is read-only.
    pub fn map_at(fd: impl AsFd, offset: u64, bytes: usize) -> nix::Result<Self> {
        map_shared(
            fd,
            offset,
            bytes,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        )
        .map(Self)
    }

    /// Zeroed plain memory, whole words of it, for tests of the algorithms without a kernel.
    #[must_use]
    pub fn heap(bytes: usize) -> Self {
        Self::heap_pair(bytes).0
    }

    /// The same with a second, read-only view of it.
    #[must_use]
    pub fn heap_pair(bytes: usize) -> (Self, Arc<ReadMemory>) {
        let bytes = bytes.next_multiple_of(8);
        let words: Arc<[AtomicU64]> = (0..bytes / 8).map(|_| AtomicU64::new(0)).collect();
        let view = |words: Arc<[AtomicU64]>| ReadMemory {
            base: NonNull::from(&*words).cast(),
            bytes,
            backing: Backing::Heap(words),
        };
        (Self(view(words.clone())), Arc::new(view(words)))
    }

    /// Writes a byte without ordering.
    pub fn store_u8(&self, offset: usize, value: u8) {
        self.word_u8(offset).store(value, Ordering::Relaxed);
    }

    /// Writes a word without ordering.
    pub fn store_u32(&self, offset: usize, value: u32) {
        self.word_u32(offset).store(value, Ordering::Relaxed);
    }

    /// Writes a word after everything that was written before.
    pub fn store_u32_release(&self, offset: usize, value: u32) {
        self.word_u32(offset).store(value, Ordering::Release);
    }

    /// Writes a word without ordering.
    pub fn store_u64(&self, offset: usize, value: u64) {
        self.word_u64(offset).store(value, Ordering::Relaxed);
    }

    /// Writes a word after everything that was written before.
    pub fn store_u64_release(&self, offset: usize, value: u64) {
        self.word_u64(offset).store(value, Ordering::Release);
    }

    /// Sets bits of a byte, sequentially consistent.
    pub fn fetch_or_u8(&self, offset: usize, bits: u8) -> u8 {
        self.word_u8(offset).fetch_or(bits, Ordering::SeqCst)
    }

    /// Clears the bits that are not in `bits`, sequentially consistent.
    pub fn fetch_and_u8(&self, offset: usize, bits: u8) -> u8 {
        self.word_u8(offset).fetch_and(bits, Ordering::SeqCst)
    }

    /// Exchanges a word, sequentially consistent.
    pub fn swap_u32(&self, offset: usize, value: u32) -> u32 {
        self.word_u32(offset).swap(value, Ordering::SeqCst)
    }

    /// Copies bytes in, word by word, without ordering. The words at both ends are read and written back whole, so nobody
    /// else may write to them meanwhile; whoever reads may.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len(), 1);
        let lead = offset.next_multiple_of(8).min(offset + from.len()) - offset;
        let (lead_bytes, rest) = from.split_at(lead);
        self.copy_part_in(offset, lead_bytes);
        let mut at = offset + lead;
        let (words, tail) = rest.as_chunks::<8>();
        for word in words {
            self.store_u64(at, u64::from_ne_bytes(*word));
            at += 8;
        }
        self.copy_part_in(at, tail);
    }

    /// The same within one word.
    fn copy_part_in(&self, offset: usize, from: &[u8]) {
        if !from.is_empty() {
            let within = offset % 8;
            let mut word = self.load_u64(offset - within).to_ne_bytes();
            word[within..within + from.len()].copy_from_slice(from);
            self.store_u64(offset - within, u64::from_ne_bytes(word));
        }
    }
}

fn map_shared(
    fd: impl AsFd,
    offset: u64,
    bytes: usize,
    protection: ProtFlags,
) -> nix::Result<ReadMemory> {
    let whole = Some(bytes).filter(|bytes| bytes.is_multiple_of(8));
    let length = whole.and_then(NonZeroUsize::new);
    let length = length.ok_or(nix::errno::Errno::EINVAL)?;
    let offset = i64::try_from(offset).map_err(|_| nix::errno::Errno::EINVAL)?;
    // SAFETY: a fresh shared mapping at an address of the kernel's choice overlaps nothing, and
    // `ReadMemory` unmaps it once. Unsafe is needed because mmap is a raw system call.
    let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, fd, offset)? };
    Ok(ReadMemory {
        base: base.cast(),
        bytes,
        backing: Backing::Mapping,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn copies_round_trip_at_any_alignment(offset in 0usize..40, data in proptest::collection::vec(any::<u8>(), 0..80)) {
            let memory = WriteMemory::heap(128);
            memory.copy_in(offset, &data);
            let mut back = vec![0; data.len()];
            memory.copy_out(offset, &mut back);
            prop_assert_eq!(&back, &data);
            // Nothing outside the range was touched.
            for at in (0..offset).chain(offset + data.len()..128) {
                prop_assert_eq!(memory.load_u8(at), 0);
            }
        }
    }

    #[test]
    #[should_panic(expected = "outside the memory")]
    fn an_offset_of_our_own_that_is_out_of_range_panics() {
        let _ = WriteMemory::heap(64).load_u64(64);
    }
}
