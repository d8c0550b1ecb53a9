//! The state of late checkpoints is given to those who lag (protocol.md 5), no faster than is good for the others.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use twinbft_types::wire::{
    CheckpointOffer, CheckpointParts, ChunkMessage, ChunkName, PeerMessage, StatePart,
};
use twinbft_types::{ReplicaId, Slot, Statement};

use super::Replica;
use crate::fault::PeerFault;
use crate::io::{Effect, Effects};
use crate::session::{SessionChunks, SessionImage};

/// Late checkpoints whose state is kept for others.
const LATE_MAX: usize = 3;
/// Older ones that are kept while somebody fetches them.
const LEASES_MAX: usize = 2;
/// A fetch is given up by the server when nothing was asked for so long.
const LEASE_US: u64 = 10_000_000;
/// Questions for chunks that wait; one more is dropped, and asked again.
const QUEUE_MAX: usize = 64;
/// Chunks that the service reads at a time.
const READING_MAX: usize = 4;

/// A checkpoint whose state others may fetch.
#[derive(Clone, Debug)]
struct Kept {
    parts: CheckpointParts,
    sessions: SessionChunks,
    asked_us: Option<u64>,
}

/// What is given away.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    /// Invariant: at most [`LATE_MAX`] and [`LEASES_MAX`] together.
    kept: BTreeMap<Slot, Kept>,
    queue: VecDeque<(ReplicaId, ChunkName)>,
    reading: VecDeque<(ReplicaId, ChunkName)>,
    /// When what was sent has been paid for.
    free_at_us: u64,
}

impl Serving {
    /// This twin stands at this checkpoint, and its service has the snapshot.
    pub fn keep(&mut self, slot: Slot, parts: CheckpointParts, sessions: SessionImage) {
        let kept = Kept {
            parts,
            sessions: SessionChunks::new(sessions),
            asked_us: None,
        };
        self.kept.insert(slot, kept);
    }

    pub fn len(&self) -> usize {
        self.queue.len() + self.reading.len()
    }
}

impl Replica {
    /// This twin's own checkpoint is made: from now on others may have its state.
    pub(super) fn keep_checkpoint(
        &mut self,
        slot: Slot,
        parts: CheckpointParts,
        sessions: SessionImage,
        out: &mut Effects,
    ) {
        self.serving.keep(slot, parts, sessions);
        self.forget_checkpoints(out);
    }

    fn forget_checkpoints(&mut self, out: &mut Effects) {
        let now_us = self.now.mono_us;
        let kept = &mut self.serving.kept;
        let before = kept.len();
        let late: Vec<Slot> = kept.keys().rev().take(LATE_MAX).copied().collect();
        let leased = |kept: &Kept| kept.asked_us.is_some_and(|at| at + LEASE_US > now_us);
        let leases: Vec<Slot> = kept
            .iter()
            .rev()
            .filter(|(slot, kept)| !late.contains(slot) && leased(kept))
            .map(|(slot, _)| *slot)
            .take(LEASES_MAX)
            .collect();
        kept.retain(|slot, _| late.contains(slot) || leases.contains(slot));
        if kept.len() < before {
            let slots = kept.keys().copied().collect();
            out.push(Effect::KeepSnapshots { slots });
        }
    }

    /// Somebody lags: this twin offers the next checkpoint that can be reached by batches, and the one whose state it has.
    /// It also vouches for what it knows to be committed.
    pub(super) fn handle_fetch_checkpoint(
        &mut self,
        from: ReplicaId,
        above: Slot,
        out: &mut Effects,
    ) {
        self.vouch_to(from, above, out);
        let offers = [self.past.bridge(above), self.stable_offer(above)];
        for mut offer in offers.into_iter().flatten() {
            // A host believes its own word by its own log.
            offer.certificates.retain(|c| c.signed.host != from.host);
            out.push(Effect::Send {
                to: from,
                message: Arc::new(PeerMessage::Checkpoint(Box::new(offer))),
            });
        }
    }

    fn stable_offer(&self, above: Slot) -> Option<CheckpointOffer> {
        let slot = self.stable;
        let kept = self.serving.kept.get(&slot).filter(|_| slot > above)?;
        let digest = kept.parts.digest();
        let own = Statement::Checkpoint { slot, digest };
        Some(CheckpointOffer {
            slot,
            parts: kept.parts,
            certificates: self.proofs_of(slot, &own),
        })
    }

    /// The stable checkpoint is about to be followed by another one: those who lag may still go by it.
    pub(super) fn keep_past_checkpoint(&mut self) {
        if let Some(offer) = self.stable_offer(Slot(0)) {
            self.past
                .keep_checkpoint(offer.slot, offer.parts, offer.certificates);
        }
    }

    pub(super) fn handle_fetch_chunk(
        &mut self,
        from: ReplicaId,
        name: ChunkName,
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        let now_us = self.now.mono_us;
        let Some(kept) = self.serving.kept.get_mut(&name.slot) else {
            send_chunk(from, name, None, out);
            return Ok(());
        };
        kept.asked_us = Some(now_us);
        let waits = |(to, n): &(ReplicaId, ChunkName)| (*to, *n) == (from, name);
        if self.serving.queue.iter().any(waits) {
            return Ok(());
        }
        if self.serving.queue.len() >= QUEUE_MAX {
            return Err(PeerFault::TooManyChunks { from });
        }
        self.serving.queue.push_back((from, name));
        Ok(())
    }

    /// Gives away what has its turn and its rate.
    pub(super) fn poll_serving(&mut self, out: &mut Effects) {
        while self.serving.free_at_us <= self.now.mono_us
            && self.serving.reading.len() < READING_MAX
            && let Some((to, name)) = self.serving.queue.pop_front()
        {
            match name.part {
                StatePart::Service => {
                    self.serving.reading.push_back((to, name));
                    let (slot, id) = (name.slot, name.id);
                    out.push(Effect::ReadChunk { slot, id });
                }
                StatePart::Sessions => {
                    let kept = self.serving.kept.get_mut(&name.slot);
                    let bytes = kept.and_then(|kept| kept.sessions.chunk(name.id));
                    self.pay_for(bytes.as_ref());
                    send_chunk(to, name, bytes, out);
                }
            }
        }
    }

    fn pay_for(&mut self, bytes: Option<&Bytes>) {
        let bytes = bytes.map_or(0, Bytes::len) as u64;
        let rate = self.config.tuning.transfer_bytes_per_s.max(1);
        let free = self.serving.free_at_us.max(self.now.mono_us);
        self.serving.free_at_us = free + bytes.saturating_mul(1_000_000) / rate;
    }

    pub(super) fn serving_deadline(&self) -> Option<u64> {
        let waits = !self.serving.queue.is_empty() && self.serving.reading.len() < READING_MAX;
        waits.then_some(self.serving.free_at_us)
    }

    /// The service has read a chunk.
    pub(super) fn handle_chunk_read(
        &mut self,
        slot: Slot,
        id: u64,
        bytes: Option<Bytes>,
        out: &mut Effects,
    ) {
        let (to, name) = self
            .serving
            .reading
            .pop_front()
            .expect("the service answers what it was asked");
        assert_eq!((name.slot, name.id), (slot, id), "it answers in order");
        self.pay_for(bytes.as_ref());
        send_chunk(to, name, bytes, out);
    }
}

fn send_chunk(to: ReplicaId, name: ChunkName, bytes: Option<Bytes>, out: &mut Effects) {
    let message = Arc::new(PeerMessage::Chunk(ChunkMessage { name, bytes }));
    out.push(Effect::Send { to, message });
}
