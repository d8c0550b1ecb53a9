//! Holding a log that somebody else vouches for: its slots are fetched from the end downwards, and each is verified by
//! the history that the one above it names, whoever sent it (protocol.md 5, 6).

use std::collections::BTreeMap;
use std::sync::Arc;

use twinbft_types::wire::{ChainSlot, PeerMessage};
use twinbft_types::{Digest, ReplicaId, Request, RequestRef, Slot, batch_digest, history};

use super::Replica;
use super::slots::SlotData;
use crate::fault::PeerFault;
use crate::io::{Effect, Effects};
use crate::record::Record;

/// Most slots in one answer.
pub const CHAIN_SLOTS_MAX: usize = 64;
/// Most bytes of operations in one answer; a single larger slot goes alone.
const CHAIN_BYTES_MAX: usize = 1024 * 1024;

/// A log's end that this twin wants to hold, and what it has of it.
#[derive(Debug, Default)]
pub struct Chain {
    target: Option<(Slot, Digest)>,
    /// Verified slots with their histories. Invariant: without gaps from the target down to `missing`.
    fetched: BTreeMap<Slot, (Digest, ChainSlot)>,
    /// The highest slot that is not fetched, and its history.
    missing: (Slot, Digest),
    /// Whether the fetched slots are in the write-ahead log.
    persisted: bool,
    /// Counts the questions, to ask another twin each time.
    asked: usize,
    /// When the next question is due.
    ask_at_us: u64,
}

impl Chain {
    pub fn len(&self) -> usize {
        self.fetched.len()
    }

    fn reset(&mut self) {
        self.target = None;
        self.fetched.clear();
        self.persisted = false;
    }
}

impl Replica {
    /// Whether this twin's own slots make up the log that ends so. None may lack a body.
    pub(super) fn owns(&self, slot: Slot, history: Digest) -> bool {
        slot >= self.stable
            && self.history_of(slot) == Some(history)
            && (self.stable.0 + 1..=slot.0).all(|n| {
                let data = self.slots.get(Slot(n));
                data.is_some_and(SlotData::is_complete)
            })
    }

    pub(super) fn is_joined(&self, target: (Slot, Digest)) -> bool {
        let (slot, history) = self.chain.missing;
        self.chain.target == Some(target) && self.owns(slot, history)
    }

    /// 6: to hold a log is to have its slots durably. Answers whether this twin does, once what it is about to post
    /// has waited for its write-ahead log; if not, it goes to fetch what it lacks.
    pub(super) fn hold(&mut self, slot: Slot, history: Digest, out: &mut Effects) -> bool {
        if self.owns(slot, history) {
            self.persist_up_to(slot, out);
            return true;
        }
        if self.is_joined((slot, history)) {
            self.persist_up_to(self.chain.missing.0, out);
            if !self.chain.persisted {
                self.chain.persisted = true;
                for (slot, (_, fetched)) in &self.chain.fetched {
                    out.push(Effect::Persist(Record::Slot {
                        slot: *slot,
                        previous: fetched.previous,
                        timestamp_us: fetched.timestamp_us,
                        bodies: fetched.bodies.clone(),
                        certificate: None,
                    }));
                }
            }
            return true;
        }
        self.want(slot, history);
        false
    }

    /// Puts into the write-ahead log what no promise has put there before.
    pub(super) fn persist_up_to(&mut self, last: Slot, out: &mut Effects) {
        let mut previous = self.history_of(self.stable);
        let first = self.stable.next();
        for (slot, data) in self.slots.iter_mut_from(first) {
            if slot > last {
                break;
            }
            if !data.is_persisted
                && let Some(previous) = previous
            {
                data.is_persisted = true;
                out.push(Effect::Persist(data.record(slot, previous)));
            }
            previous = Some(data.history);
        }
    }

    pub(super) fn want(&mut self, slot: Slot, history: Digest) {
        // What lies beyond the marks comes by state transfer.
        if self.chain.target == Some((slot, history)) || slot > self.high_mark() {
            return;
        }
        self.chain.reset();
        self.chain.target = Some((slot, history));
        self.chain.missing = (slot, history);
        self.chain.ask_at_us = self.now.mono_us;
    }

    /// The log with which a view begins is the host's from now on: this twin's own slots are brought into line with
    /// it. Answers whether they are; if not, the rest is fetched.
    pub(super) fn adopt(&mut self, slot: Slot, history: Digest) -> bool {
        self.take_over_chain(slot, history);
        let held = self.owns(slot, history);
        if held {
            self.slots.drop_from(slot.next());
        } else if self.is_joined((slot, history)) {
            self.slots.drop_from(self.chain.missing.0.next());
            self.take_fetched();
        } else {
            // Only what is committed is sure to be in it.
            self.slots.drop_from(self.commit.committed().next());
            self.want(slot, history);
            return false;
        }
        self.chain.reset();
        true
    }

    fn take_fetched(&mut self) {
        for (slot, data) in self.take_chain() {
            self.slots.insert(slot, data);
        }
    }

    /// The fetched slots, for this twin's own.
    pub(super) fn take_chain(&mut self) -> Vec<(Slot, SlotData)> {
        let view = self.log.current_view();
        let primary = self.config.shape.primary(view);
        let incarnation = self.commit.incarnation(primary);
        let is_persisted = self.chain.persisted;
        let fetched = std::mem::take(&mut self.chain.fetched);
        self.chain.reset();
        let data_of = |(slot, (history, fetched)): (Slot, (Digest, ChainSlot))| {
            let requests: Vec<RequestRef> = fetched.bodies.iter().map(Request::reference).collect();
            let mut data = SlotData::new(
                (view, primary, incarnation),
                history,
                fetched.timestamp_us,
                requests,
                fetched.bodies.into_iter().map(Some).collect(),
                self.now.mono_us,
            );
            data.is_persisted = is_persisted;
            (slot, data)
        };
        fetched.into_iter().map(data_of).collect()
    }

    /// Somebody wants the slots below a log's end, that end included.
    pub(super) fn handle_fetch_chain(
        &self,
        from: ReplicaId,
        slot: Slot,
        history: Digest,
        out: &mut Effects,
    ) {
        let (mut slot, mut wanted, mut bytes) = (slot, history, 0);
        let mut chain: Vec<ChainSlot> = Vec::new();
        while chain.len() < CHAIN_SLOTS_MAX
            && slot > Slot(0)
            && let Some(data) = self.slots.get(slot).filter(|d| d.history == wanted)
            && let Some(previous) = self.history_of(Slot(slot.0 - 1))
            && data.is_complete()
        {
            bytes += data.bytes();
            if bytes > CHAIN_BYTES_MAX && !chain.is_empty() {
                break;
            }
            chain.push(ChainSlot {
                slot,
                previous,
                timestamp_us: data.timestamp_us,
                bodies: data.bodies.iter().flatten().cloned().collect(),
            });
            (slot, wanted) = (Slot(slot.0 - 1), previous);
        }
        if !chain.is_empty() {
            let message = Arc::new(PeerMessage::Chain(chain));
            out.push(Effect::Send { to: from, message });
        }
    }

    pub(super) fn handle_chain(
        &mut self,
        from: ReplicaId,
        chain: Vec<ChainSlot>,
    ) -> Result<(), PeerFault> {
        if chain.len() > CHAIN_SLOTS_MAX {
            return Err(PeerFault::FetchTooLong { from });
        }
        for fetched in chain {
            let (slot, wanted) = self.chain.missing;
            // An answer to an earlier question.
            if self.chain.target.is_none() || fetched.slot != slot || self.owns(slot, wanted) {
                return Ok(());
            }
            if fetched.bodies.len() > self.config.tuning.batch_requests_max {
                return Err(PeerFault::BatchTooLarge { from });
            }
            let requests: Vec<RequestRef> = fetched.bodies.iter().map(Request::reference).collect();
            let batch = batch_digest(&requests);
            if history(fetched.previous, slot, batch, fetched.timestamp_us) != wanted {
                return Err(PeerFault::HistoryMismatch { from });
            }
            self.chain.missing = (Slot(slot.0 - 1), fetched.previous);
            self.chain.fetched.insert(slot, (wanted, fetched));
            self.chain.ask_at_us = self.now.mono_us;
            if slot <= self.stable {
                // It leaves this twin's checkpoint aside: state transfer is needed.
                self.chain.reset();
                return Ok(());
            }
        }
        Ok(())
    }

    /// Asks for what is missing, another twin each time.
    pub(super) fn chain_timer(&mut self, out: &mut Effects) {
        let due = self
            .chain_deadline()
            .is_some_and(|deadline| deadline <= self.now.mono_us);
        if !due {
            return;
        }
        self.chain.ask_at_us = self.now.mono_us + self.config.tuning.fetch_after_us;
        let shape = self.config.shape;
        let targets: Vec<ReplicaId> = shape.receivers(self.config.host()).collect();
        if targets.is_empty() {
            return;
        }
        let first = usize::from(self.config.twin().0);
        let stride = usize::from(shape.twins()) + 1;
        let to = targets[(first + self.chain.asked * stride) % targets.len()];
        self.chain.asked += 1;
        let (slot, history) = self.chain.missing;
        let message = Arc::new(PeerMessage::FetchChain { slot, history });
        out.push(Effect::Send { to, message });
    }

    pub(super) fn chain_deadline(&self) -> Option<u64> {
        let target = self.chain.target?;
        (!self.is_joined(target)).then_some(self.chain.ask_at_us)
    }
}
