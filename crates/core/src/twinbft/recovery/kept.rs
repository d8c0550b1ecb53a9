//! What a start takes of the slots of its write-ahead log (protocol.md 8).

use twinbft_types::{Digest, Entry, Slot, Statement, View};

use super::super::Replica;
use super::super::slots::SlotData;
use super::{KeptSlot, Recovery};
use twinbft_types::Request;

impl Recovery {
    /// The view in which this twin has promised something about a slot, and whether that shows its signature on ORDER: a SIGN
    /// does, and an ENDORSE that carries one (3).
    fn promised(&self, slot: Slot, history: Digest) -> Option<(View, bool)> {
        let mut newest = None;
        for promise in self.promises.iter().rev() {
            let (view, s, h, is_signed) = match promise {
                Entry::Endorse {
                    view,
                    slot,
                    history,
                    signature,
                    ..
                } => (view, slot, history, signature.is_some()),
                Entry::Accept {
                    view,
                    slot,
                    history,
                } => (view, slot, history, false),
                Entry::Sign {
                    statement:
                        Statement::Order {
                            view,
                            slot,
                            history,
                        },
                    ..
                } => (view, slot, history, true),
                _ => continue,
            };
            if (*s, *h) != (slot, history) {
                continue;
            }
            if is_signed {
                return Some((*view, true));
            }
            newest.get_or_insert((*view, false));
        }
        newest
    }
}

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

    /// Takes the slots up to this one over from the write-ahead log, as far down as they are there and needed. Answers where they
    /// begin to take the place of others: of another log, which may be executed tentatively.
    pub(in crate::twinbft) fn take_over_chain(
        &mut self,
        slot: Slot,
        history: Digest,
    ) -> Option<Slot> {
        if self.recovery.slots.is_empty() {
            return None;
        }
        let (mut slot, mut history) = (slot, history);
        let sure = self.sure_end();
        let mut taken = Vec::new();
        while slot > sure
            && self
                .slots
                .get(slot)
                .is_none_or(|data| data.history != history)
        {
            // What is below is fetched.
            let Some(kept) = self.recovery.slots.get(&(slot, history)) else {
                break;
            };
            taken.push((slot, self.slot_data(slot, history, kept)));
            history = kept.previous;
            slot = Slot(slot.0 - 1);
        }
        if self.history_of(slot).is_some_and(|own| own != history) {
            // Another log is here: it is committed, and the host's has lost, or it gives way to the whole of that, which is fetched.
            return None;
        }
        let mut replaced = None;
        for (slot, data) in taken {
            if self.slots.history(slot).is_some_and(|h| h != data.history) {
                replaced = Some(slot);
            }
            for request in &data.requests {
                self.voting.note_proposed(request.client, request.seq, slot);
            }
            self.slots.insert(slot, data);
        }
        replaced
    }

    fn slot_data(&self, slot: Slot, history: Digest, kept: &KeptSlot) -> SlotData {
        let shape = self.config.shape;
        let promised = self.recovery.promised(slot, history);
        let decided = self.log.decided(slot).filter(|(_, h)| *h == history);
        let decided = decided.map(|(view, _)| view);
        let order = kept.certificate.as_ref().map(|c| &c.signed.statement);
        let view = match order {
            Some(Statement::Order { view, .. }) => Some(*view),
            _ => {
                let signed = promised.filter(|(_, is_signed)| *is_signed).map(|(v, _)| v);
                signed.or(decided).or(promised.map(|(view, _)| view))
            }
        };
        // As of a slot that was fetched: it is in the log of this view, and nobody's ORDER.
        let view = view.unwrap_or_else(|| self.log.current_view());
        let primary = shape.primary(view);
        let incarnation = kept.certificate.as_ref().map_or_else(
            || self.log.incarnation(primary),
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
        // 3, release rule: what its host has decided there, by its log or by this twin's own promise, may be signed again; a MAC of
        // the same bytes is the same. A slot that stands in the log for another reason may not: it was fetched, perhaps, and was
        // another host's ORDER, or its own of another view.
        let is_signed = promised == Some((view, true)) || decided == Some(view);
        if primary == self.config.host() && slot <= self.log.accepted().0 && is_signed {
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
