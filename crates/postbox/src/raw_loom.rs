//! What `raw` gives, in loom's memory: no mapping, no `unsafe`, every word an atomic that loom watches.
//!
//! A word is made at the first access, in that access's size. What is then accessed in another size is put together, or
//! changed by a load and a store: only bytes of records are, and they have one writer.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// As in `raw`.
pub const PAGE_BYTES: usize = 4096;

/// Four bytes.
#[derive(Clone)]
enum Unit {
    Low(Arc<AtomicU64>),
    High(Arc<AtomicU64>),
    Int(Arc<AtomicU32>),
    Bytes([Arc<AtomicU8>; 4]),
}

/// Memory that this process may only read.
pub struct ReadMemory {
    units: Arc<Mutex<BTreeMap<usize, Unit>>>,
    bytes: usize,
}

impl ReadMemory {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn check(&self, offset: usize, bytes: usize) {
        assert!(offset.is_multiple_of(bytes) && offset + bytes <= self.bytes);
    }

    /// The eight bytes at `offset`, unless they are in use in smaller parts.
    fn long(&self, offset: usize) -> Option<Arc<AtomicU64>> {
        self.check(offset, 8);
        let mut units = self.units.lock().expect("nobody panics with it");
        match (units.get(&offset), units.get(&(offset + 4))) {
            (Some(Unit::Low(word)), _) => Some(Arc::clone(word)),
            (None, None) => {
                let word = Arc::new(AtomicU64::new(0));
                units.insert(offset, Unit::Low(Arc::clone(&word)));
                units.insert(offset + 4, Unit::High(Arc::clone(&word)));
                Some(word)
            }
            _ => None,
        }
    }

    fn unit(&self, offset: usize, made: impl FnOnce() -> Unit) -> Unit {
        self.check(offset, 4);
        let mut units = self.units.lock().expect("nobody panics with it");
        units.entry(offset).or_insert_with(made).clone()
    }

    fn int(&self, offset: usize) -> Unit {
        self.unit(offset, || Unit::Int(Arc::new(AtomicU32::new(0))))
    }

    fn byte(&self, offset: usize) -> Unit {
        let byte = |_| Arc::new(AtomicU8::new(0));
        self.unit(offset & !3, || Unit::Bytes([0, 1, 2, 3].map(byte)))
    }

    /// As in `raw`.
    #[must_use]
    pub fn load_u8(&self, offset: usize) -> u8 {
        match self.byte(offset) {
            Unit::Bytes(bytes) => bytes[offset & 3].load(Ordering::Relaxed),
            Unit::Int(_) | Unit::Low(_) | Unit::High(_) => {
                self.load_u32(offset & !3).to_ne_bytes()[offset & 3]
            }
        }
    }

    /// As in `raw`.
    #[must_use]
    pub fn load_u32(&self, offset: usize) -> u32 {
        let half = |word: &AtomicU64, at: usize| {
            let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        match self.int(offset) {
            Unit::Int(word) => word.load(Ordering::Relaxed),
            Unit::Low(word) => half(&word, 0),
            Unit::High(word) => half(&word, 4),
            Unit::Bytes(bytes) => {
                u32::from_ne_bytes(bytes.map(|byte| byte.load(Ordering::Relaxed)))
            }
        }
    }

    /// As in `raw`.
    #[must_use]
    pub fn load_u32_acquire(&self, offset: usize) -> u32 {
        let value = self.load_u32(offset);
        fence(Ordering::Acquire);
        value
    }

    /// As in `raw`.
    #[must_use]
    pub fn load_u64(&self, offset: usize) -> u64 {
        let Some(word) = self.long(offset) else {
            let halves = [offset, offset + 4].map(|at| self.load_u32(at).to_ne_bytes());
            return u64::from_ne_bytes(*halves.as_flattened().as_array().expect("eight bytes"));
        };
        word.load(Ordering::Relaxed)
    }

    /// As in `raw`.
    #[must_use]
    pub fn load_u64_acquire(&self, offset: usize) -> u64 {
        let value = self.load_u64(offset);
        fence(Ordering::Acquire);
        value
    }

    /// As in `raw`.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let mut at = 0;
        while at < into.len() {
            if (offset + at).is_multiple_of(8) && into.len() - at >= 8 {
                into[at..at + 8].copy_from_slice(&self.load_u64(offset + at).to_ne_bytes());
                at += 8;
            } else {
                into[at] = self.load_u8(offset + at);
                at += 1;
            }
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
    /// Zeroed memory with a second, read-only view of it. Inside `loom::model` only.
    #[must_use]
    pub fn heap_pair(bytes: usize) -> (Self, Arc<ReadMemory>) {
        let units = Arc::default();
        let view = |units| ReadMemory { units, bytes };
        (Self(view(Arc::clone(&units))), Arc::new(view(units)))
    }

    /// Zeroed memory.
    #[must_use]
    pub fn heap(bytes: usize) -> Self {
        Self::heap_pair(bytes).0
    }

    /// As in `raw`.
    pub fn store_u8(&self, offset: usize, value: u8) {
        match self.byte(offset) {
            Unit::Bytes(bytes) => bytes[offset & 3].store(value, Ordering::Relaxed),
            Unit::Int(_) | Unit::Low(_) | Unit::High(_) => {
                let mut bytes = self.load_u32(offset & !3).to_ne_bytes();
                bytes[offset & 3] = value;
                self.store_u32(offset & !3, u32::from_ne_bytes(bytes));
            }
        }
    }

    fn put_u32(&self, offset: usize, value: u32, ordering: Ordering) {
        let half = |word: &AtomicU64, at: usize| {
            let mut bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            word.store(u64::from_ne_bytes(bytes), ordering);
        };
        match self.int(offset) {
            Unit::Int(word) => word.store(value, ordering),
            Unit::Low(word) => half(&word, 0),
            Unit::High(word) => half(&word, 4),
            Unit::Bytes(bytes) => {
                for (byte, value) in bytes.iter().zip(value.to_ne_bytes()) {
                    byte.store(value, ordering);
                }
            }
        }
    }

    fn put_u64(&self, offset: usize, value: u64, ordering: Ordering) {
        let Some(word) = self.long(offset) else {
            let bytes = value.to_ne_bytes();
            for (at, half) in bytes.as_chunks::<4>().0.iter().enumerate() {
                self.put_u32(offset + 4 * at, u32::from_ne_bytes(*half), ordering);
            }
            return;
        };
        word.store(value, ordering);
    }

    /// As in `raw`.
    pub fn store_u32(&self, offset: usize, value: u32) {
        self.put_u32(offset, value, Ordering::Relaxed);
    }

    /// As in `raw`.
    pub fn store_u32_release(&self, offset: usize, value: u32) {
        self.put_u32(offset, value, Ordering::Release);
    }

    /// As in `raw`.
    pub fn store_u64(&self, offset: usize, value: u64) {
        self.put_u64(offset, value, Ordering::Relaxed);
    }

    /// As in `raw`.
    pub fn store_u64_release(&self, offset: usize, value: u64) {
        self.put_u64(offset, value, Ordering::Release);
    }

    fn byte_of(&self, offset: usize) -> Arc<AtomicU8> {
        match self.byte(offset) {
            Unit::Bytes(bytes) => Arc::clone(&bytes[offset & 3]),
            Unit::Int(_) | Unit::Low(_) | Unit::High(_) => panic!("a flag shares no word"),
        }
    }

    /// As in `raw`.
    pub fn fetch_or_u8(&self, offset: usize, bits: u8) -> u8 {
        self.byte_of(offset).fetch_or(bits, Ordering::SeqCst)
    }

    /// As in `raw`.
    pub fn fetch_and_u8(&self, offset: usize, bits: u8) -> u8 {
        self.byte_of(offset).fetch_and(bits, Ordering::SeqCst)
    }

    /// As in `raw`.
    pub fn swap_u32(&self, offset: usize, value: u32) -> u32 {
        match self.int(offset) {
            Unit::Int(word) => word.swap(value, Ordering::SeqCst),
            Unit::Bytes(_) | Unit::Low(_) | Unit::High(_) => panic!("a flag shares no word"),
        }
    }

    /// As in `raw`.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        let mut at = 0;
        while at < from.len() {
            if let Some(word) = from[at..].first_chunk::<8>()
                && (offset + at).is_multiple_of(8)
            {
                self.store_u64(offset + at, u64::from_ne_bytes(*word));
                at += 8;
            } else {
                self.store_u8(offset + at, from[at]);
                at += 1;
            }
        }
    }
}
