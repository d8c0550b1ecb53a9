//! Batches below the marks, for those who lag (protocol.md 5: "fetches the snapshot of a stable checkpoint and then the
//! slots after it").
//!
//! Fetching a large state takes long, and under load the others are many checkpoints further when it is here. So what
//! execution and the protocol do not need any more is kept a while, up to a number of bytes, with the checkpoints that
//! were stable meanwhile: one who lags goes from one to the next ([`super::bridge`]).

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use twinbft_types::wire::{ChainSlot, CheckpointOffer, CheckpointParts};
use twinbft_types::{Certificate, Digest, Request, Slot};

use super::slots::SlotData;

/// What a kept slot takes besides its requests, and a request besides its operation, in bytes.
const SLOT_BYTES: usize = 256;
const REQUEST_BYTES: usize = 256;

/// A checkpoint that was stable once.
#[derive(Clone, Debug)]
struct PastCheckpoint {
    parts: CheckpointParts,
    certificates: Vec<Certificate>,
}

/// What is kept of the log below the marks.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// The slot below the first one that is kept, and its history.
    base: (Slot, Digest),
    /// With `h_n`, and the bytes that each takes. Invariant: adjacent slots from `base` on, each extending the one before.
    slots: VecDeque<(Digest, ChainSlot, usize)>,
    bytes: usize,
    /// Invariant: none at or below `base`.
    checkpoints: BTreeMap<Slot, PastCheckpoint>,
}

impl Past {
    /// The last slot that is kept, and its history.
    fn end(&self) -> (Slot, Digest) {
        let last = self.slots.back();
        last.map_or(self.base, |(history, last, _)| (last.slot, *history))
    }

    /// Takes a slot over that falls below the marks. The oldest give way when there are more than `bytes_max`.
    pub fn push(&mut self, slot: Slot, data: SlotData, bytes_max: usize) {
        let end = self.end();
        if end.0.next() != slot || !data.is_complete() || !data.extends(end.1, slot) {
            // A state that was fetched has no batches below it, and what cannot be shown is of no use to anybody.
            *self = Self {
                base: (slot, data.history),
                ..Self::default()
            };
            return;
        }
        let bytes = SLOT_BYTES + data.bytes() + data.requests.len() * REQUEST_BYTES;
        let kept = ChainSlot {
            slot,
            previous: end.1,
            timestamp_us: data.timestamp_us,
            bodies: compact(data.bodies.into_iter().flatten().collect()),
        };
        self.slots.push_back((data.history, kept, bytes));
        self.bytes += bytes;
        while self.bytes > bytes_max
            && let Some((history, oldest, bytes)) = self.slots.pop_front()
        {
            self.bytes -= bytes;
            self.base = (oldest.slot, history);
        }
        self.checkpoints = self.checkpoints.split_off(&self.base.0.next());
    }

    /// A checkpoint gives way to the next one.
    pub fn keep_checkpoint(
        &mut self,
        slot: Slot,
        parts: CheckpointParts,
        certificates: Vec<Certificate>,
    ) {
        let checkpoint = PastCheckpoint {
            parts,
            certificates,
        };
        if slot > self.base.0 {
            self.checkpoints.insert(slot, checkpoint);
        }
    }

    /// The lowest checkpoint above a slot, when the batches above that slot are here.
    pub fn bridge(&self, above: Slot) -> Option<CheckpointOffer> {
        if above < self.base.0 {
            return None;
        }
        let (slot, checkpoint) = self.checkpoints.range(above.next()..).next()?;
        Some(CheckpointOffer {
            slot: *slot,
            parts: checkpoint.parts,
            certificates: checkpoint.certificates.clone(),
        })
    }

    /// A slot that is kept, with its history.
    pub fn get(&self, slot: Slot) -> Option<(Digest, &ChainSlot)> {
        let index = slot.0.checked_sub(self.base.0.0 + 1)?;
        let (history, kept, _) = self.slots.get(usize::try_from(index).ok()?)?;
        Some((*history, kept))
    }

    /// `h_n` of the last slot that is kept, when it is this one.
    pub fn end_at(&self, slot: Slot) -> Option<Digest> {
        let (end, history) = self.end();
        (end == slot).then_some(history)
    }

    /// What is kept, in bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The operations in one piece of memory of their own: as they came they are parts of larger messages, and would keep
/// all of those.
fn compact(mut requests: Vec<Request>) -> Vec<Request> {
    let bytes = requests.iter().map(|request| request.operation.len()).sum();
    let mut memory = BytesMut::with_capacity(bytes);
    for request in &requests {
        memory.extend_from_slice(&request.operation);
    }
    let mut memory: Bytes = memory.freeze();
    for request in &mut requests {
        request.operation = memory.split_to(request.operation.len());
    }
    requests
}

#[cfg(test)]
mod tests {
    use twinbft_types::{
        ClientId, HostId, Incarnation, RequestRef, Seq, View, batch_digest, history,
    };

    use super::*;

    fn data(slot: Slot, previous: Digest) -> SlotData {
        let request = Request {
            client: ClientId { key: 0, session: 1 },
            seq: Seq(slot.0),
            operation: Bytes::from(vec![7; 100]),
        };
        let requests: Vec<RequestRef> = vec![request.reference()];
        let history = history(previous, slot, batch_digest(&requests), slot.0);
        let order = (View(0), HostId(0), Incarnation(0));
        SlotData::new(order, history, slot.0, requests, vec![Some(request)], 0)
    }

    fn parts() -> CheckpointParts {
        CheckpointParts {
            service: Digest::ZERO,
            sessions: Digest::ZERO,
            config: Digest::ZERO,
            history: Digest::ZERO,
            timestamp_us: 0,
        }
    }

    fn filled(first: u64, last: u64, bytes_max: usize) -> Past {
        let mut past = Past::default();
        let mut previous = Digest::ZERO;
        for slot in first..=last {
            let data = data(Slot(slot), previous);
            previous = data.history;
            past.push(Slot(slot), data, bytes_max);
            if slot % 4 == 0 {
                past.keep_checkpoint(Slot(slot), parts(), Vec::new());
            }
        }
        past
    }

    #[test]
    fn the_oldest_give_way_and_their_checkpoints_with_them() {
        let of_one = SLOT_BYTES + REQUEST_BYTES + 100;
        let past = filled(1, 20, 10 * of_one);
        assert_eq!(past.bytes(), 10 * of_one);
        assert_eq!(past.base.0, Slot(10));
        assert_eq!(past.checkpoints.keys().next(), Some(&Slot(12)));
        assert!(past.get(Slot(10)).is_none() && past.get(Slot(11)).is_some());
        assert!(past.get(Slot(20)).is_some() && past.get(Slot(21)).is_none());
    }

    #[test]
    fn the_next_checkpoint_is_offered_to_whoever_can_get_all_slots_below_it() {
        let of_one = SLOT_BYTES + REQUEST_BYTES + 100;
        let past = filled(1, 20, 10 * of_one);
        let offered = |above| past.bridge(Slot(above)).map(|offer| offer.slot.0);
        assert_eq!(offered(9), None, "slot 10 is gone");
        assert_eq!(offered(10), Some(12));
        assert_eq!(offered(12), Some(16));
        assert_eq!(offered(20), None);
        let whole = filled(1, 8, 1 << 20);
        assert_eq!(whole.bridge(Slot(0)).map(|o| o.slot), Some(Slot(4)));
    }

    #[test]
    fn after_a_gap_it_begins_anew_and_each_slot_extends_the_one_before() {
        let mut past = filled(1, 8, 1 << 20);
        let first = data(Slot(30), Digest([1; 32]));
        let history = first.history;
        past.push(Slot(30), first, 1 << 20);
        assert!(past.slots.is_empty() && past.checkpoints.is_empty());
        past.push(Slot(31), data(Slot(31), history), 1 << 20);
        let (_, kept) = past.get(Slot(31)).expect("it extends slot 30");
        assert_eq!(kept.previous, history);
        past.push(Slot(32), data(Slot(32), Digest([9; 32])), 1 << 20);
        assert_eq!((past.base.0, past.slots.len()), (Slot(32), 0));
    }
}
