//! What a start takes of the slots of its write-ahead log (protocol.md 8).

use twinbft_types::{Digest, Entry, Slot, Statement, View};

use super::super::Replica;
use super::super::slots::SlotData;
use super::KeptSlot;
use twinbft_types::Request;

impl Replica {
    /// Down to where a start keeps slots.
    pub(super) fn floor_of_start(&self) -> Slot {
        let stable = self.stable.min(self.recovery.stable);
        Slot(stable.0.saturating_sub(self.config.tuning.checkpoint_slots))
    }

    /// The checkpoint that this twin stands at may be its own alone: a sibling that lost its disk then has nothing to verify it by
    /// (8, row 2), and needs the slots from the last stable one on. Those below are kept as they always are, one interval at
    /// hand and the rest by its bytes ([`crate::twinbft::past`]): of what others said of the checkpoint a part may be void or lost
    /// (8, incarnations), and a certified history with the slots below it serves those who lag as well.
    pub(super) fn keep_below(&mut self) {
        let (mut slot, mut history) = (self.stable, self.checkpoints.stable_history());
        let floor = self.floor_of_start();
        while slot > floor
            && let Some(kept) = self.recovery.slots.get(&(slot, history))
        {
            let previous = kept.previous;
            let data = self.slot_data(slot, history, kept);
            self.slots.insert(slot, data);
            slot = Slot(slot.0 - 1);
            history = previous;
        }
        let mut below = Vec::new();
        while let Some(kept) = self.recovery.slots.get(&(slot, history)) {
            below.push((slot, history));
            slot = Slot(slot.0 - 1);
            history = kept.previous;
        }
        for (slot, history) in below.into_iter().rev() {
            let data = self.slot_data(slot, history, &self.recovery.slots[&(slot, history)]);
            self.past.push(slot, data, self.config.tuning.retain_bytes);
        }
    }

    /// Takes the slots up to this one over from the write-ahead log, as far down as they are there and needed.
    pub(in crate::twinbft) fn take_over_chain(&mut self, slot: Slot, history: Digest) {
        if self.recovery.slots.is_empty() {
            return;
        }
        let (mut slot, mut history) = (slot, history);
        while slot > self.execution.begun()
            && self
                .slots
                .get(slot)
                .is_none_or(|data| data.history != history)
        {
            let Some(kept) = self.recovery.slots.get(&(slot, history)) else {
                return;
            };
            let previous = kept.previous;
            let data = self.slot_data(slot, history, kept);
            for request in &data.requests {
                self.voting.note_proposed(request.client, request.seq, slot);
            }
            self.slots.insert(slot, data);
            slot = Slot(slot.0 - 1);
            history = previous;
        }
    }

    fn slot_data(&self, slot: Slot, history: Digest, kept: &KeptSlot) -> SlotData {
        let shape = self.config.shape;
        let view = match kept.certificate.as_ref().map(|c| &c.signed.statement) {
            Some(Statement::Order { view, .. }) => *view,
            _ => self.recovery.view_of(slot, history).unwrap_or_default(),
        };
        let primary = shape.primary(view);
        let incarnation = kept.certificate.as_ref().map_or_else(
            || self.log.incarnation(self.config.host()),
            |certificate| certificate.signed.incarnation,
        );
        let mut data = SlotData::new(
            (view, primary, incarnation),
            history,
            kept.timestamp_us,
            kept.bodies.iter().map(Request::reference).collect(),
            kept.bodies.iter().cloned().map(Some).collect(),
            self.now.mono_us,
        );
        data.is_persisted = true;
        for authenticator in kept.certificate.iter().flat_map(|c| &c.authenticators) {
            data.add_signature(authenticator.clone());
        }
        if primary == self.config.host() && slot <= self.log.accepted().0 {
            // Decided, so it may be signed again (release rule); a MAC of the same bytes is the same.
            let statement = Statement::Order {
                view,
                slot,
                history,
            };
            let signed = self.signed(statement);
            data.add_signature(self.config.keys.sign(shape, &signed));
        }
        data
    }

    /// The end of this twin's own chain on a backup host, as far as it holds it: what its host has accepted, and what
    /// it has promised to accept beyond.
    pub(in crate::twinbft) fn raise_tip(&mut self) {
        let Some(view) = self.log.live_view().filter(|_| !self.log.is_primary()) else {
            return;
        };
        let held = match self.first_missing() {
            Some(missing) => Slot(missing.0 - 1),
            None => self.log.accepted().0.max(self.execution.begun()),
        };
        self.backup.raise_tip(held);
        while let Some(slot) = self.promised_next(view) {
            self.backup.raise_tip(slot);
        }
    }

    /// The slot after the tip, when the write-ahead log promises its acceptance in this view.
    fn promised_next(&mut self, view: View) -> Option<Slot> {
        let tip = self.backup.tip();
        let (slot, end) = (tip.next(), self.history_of(tip)?);
        let promised = self.recovery.promises.iter().rev();
        let history = promised.into_iter().find_map(|promise| match promise {
            Entry::Accept {
                view: v,
                slot: s,
                history,
            } if (*v, *s) == (view, slot) => Some(*history),
            _ => None,
        })?;
        let kept = self.recovery.slots.get(&(slot, history))?;
        if kept.previous != end {
            return None;
        }
        let data = self.slot_data(slot, history, kept);
        self.slots.insert(slot, data);
        Some(slot)
    }
}
