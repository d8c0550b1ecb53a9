//! The service of the simulation: registers that know who wrote them last.

use std::collections::BTreeMap;

use bytes::Bytes;
use twinbft_types::{Digest, Slot};

/// An operation: `[0, key]` reads, `[1, key, value × 8]` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read { key: u8 },
    Write { key: u8, value: u64 },
}

impl Operation {
    pub fn encode(self) -> Bytes {
        match self {
            Self::Read { key } => Bytes::copy_from_slice(&[0, key]),
            Self::Write { key, value } => {
                let mut bytes = vec![1, key];
                bytes.extend(value.to_le_bytes());
                bytes.into()
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0, key] => Some(Self::Read { key: *key }),
            [1, key, value @ ..] => Some(Self::Write {
                key: *key,
                value: u64::from_le_bytes(value.try_into().ok()?),
            }),
            _ => None,
        }
    }
}

/// The value of a register and the slot that wrote it.
type Register = (u64, u64);

/// One replica's service.
#[derive(Clone, Debug, Default)]
pub struct Service {
    registers: BTreeMap<u8, Register>,
    executed: u64,
}

impl Service {
    /// Executes one operation of `slot`; both kinds answer with the value before.
    pub fn execute(&mut self, slot: u64, operation: &[u8]) -> Bytes {
        self.executed = slot;
        match Operation::decode(operation) {
            Some(Operation::Read { key }) => self.value(key),
            Some(Operation::Write { key, value }) => {
                let before = self.value(key);
                self.registers.insert(key, (value, slot));
                before
            }
            None => Bytes::from_static(b"?"),
        }
    }

    pub fn note_slot(&mut self, slot: u64) {
        self.executed = slot;
    }

    /// A fast read: the value, and the slot of the last write to it.
    pub fn query(&self, operation: &[u8]) -> (Bytes, u64) {
        match Operation::decode(operation) {
            Some(Operation::Read { key }) => {
                let version = self.registers.get(&key).map_or(0, |(_, slot)| *slot);
                (self.value(key), version)
            }
            Some(Operation::Write { .. }) | None => (Bytes::from_static(b"?"), self.executed),
        }
    }

    fn value(&self, key: u8) -> Bytes {
        let value = self.registers.get(&key).map_or(0, |(value, _)| *value);
        Bytes::copy_from_slice(&value.to_le_bytes())
    }

    pub fn digest(&self) -> Digest {
        let all: Vec<(u8, u64, u64)> = self
            .registers
            .iter()
            .map(|(key, (value, slot))| (*key, *value, *slot))
            .collect();
        Digest::of(&twinbft_types::canonical(&all))
    }

    /// The state as the one chunk that it has.
    pub fn read_chunk(&self, chunk: u64) -> Option<Bytes> {
        (chunk == Restoring::CHUNK).then(|| twinbft_types::canonical(&self.registers).into())
    }
}

/// A state that is fetched.
#[derive(Clone, Debug)]
pub struct Restoring {
    /// The state after this slot.
    pub slot: Slot,
    digest: Digest,
    service: Option<Service>,
}

impl Restoring {
    /// The only chunk of a state.
    pub const CHUNK: u64 = 0;

    pub const fn begin(slot: Slot, digest: Digest) -> Self {
        Self {
            slot,
            digest,
            service: None,
        }
    }

    /// Whether the chunk is what the digest commits to.
    pub fn accept(&mut self, chunk: u64, bytes: &[u8]) -> bool {
        let registers = twinbft_types::from_canonical(bytes).unwrap_or_default();
        let service = Service {
            registers,
            executed: self.slot.0,
        };
        let is_right = chunk == Self::CHUNK && service.digest() == self.digest;
        if is_right {
            self.service = Some(service);
        }
        is_right
    }

    pub fn wanted(&self) -> Vec<u64> {
        if self.service.is_some() {
            Vec::new()
        } else {
            vec![Self::CHUNK]
        }
    }

    pub fn finish(self) -> Service {
        self.service.expect("every chunk is here")
    }
}
