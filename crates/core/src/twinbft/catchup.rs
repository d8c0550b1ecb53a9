//! Slots that this host has accepted and this twin does not hold (protocol.md 5): it fetches them from anybody. The
//! hash chain below a history that its own log names verifies them, whoever sent them ([`super::chain`]).

use twinbft_types::{Digest, Slot, View};

use super::Replica;
use super::slots::SlotData;
use crate::io::Effects;

/// A gap that is being filled.
#[derive(Clone, Debug, Default)]
pub struct CatchUp {
    /// The end of the chain that is fetched for it.
    target: Option<(Slot, Digest)>,
    /// Since when there is a gap.
    since_us: Option<u64>,
    /// The view in which this host's log has lost: what is committed stands in its place.
    lost: Option<View>,
}

impl Replica {
    /// The first slot up to `n_acc` whose execution has not begun and that is not here whole.
    pub(super) fn first_missing(&self) -> Option<Slot> {
        let accepted = self.log.accepted().0;
        let mut slot = self.execution.begun().next();
        while slot <= accepted {
            if !self.holds(slot) {
                return Some(slot);
            }
            slot = slot.next();
        }
        None
    }

    /// The last slot up to `last` that this twin holds with everything below it.
    pub(super) fn held_end(&self, last: Slot) -> Slot {
        let mut slot = self.execution.begun();
        while slot < last && self.holds(slot.next()) {
            slot = slot.next();
        }
        slot
    }

    pub(super) fn holds(&self, slot: Slot) -> bool {
        self.slots.get(slot).is_some_and(SlotData::is_complete)
    }

    /// Fills the first gap below what the host has accepted. While the host changes its view the chain belongs to that,
    /// except at a twin that has lost its disk: it says nothing before it has all of this (8, row 2), so the view waits for it.
    pub(super) fn poll_catchup(&mut self, out: &mut Effects) {
        let missing = self.first_missing();
        let belongs_to_view = self.log.entering().is_some() && !self.recovery.is_silent();
        let Some(first) = missing.filter(|_| !belongs_to_view && !self.has_lost()) else {
            self.end_gap();
            return;
        };
        let now_us = self.now.mono_us;
        let since_us = *self.catchup.since_us.get_or_insert(now_us);
        // What comes a little late comes by itself; a replica that starts does not wait for it.
        let waits = since_us + self.config.tuning.fetch_after_us > now_us;
        if waits && !self.recovery.is_silent() {
            return;
        }
        let kept = self.catchup.target.filter(|(slot, _)| *slot >= first);
        let target = kept.unwrap_or_else(|| self.gap_end(first));
        self.catchup.target = Some(target);
        if self.fetched_contradicts(target) {
            self.lose(target);
        } else if self.is_joined(target) {
            self.fill_gap(target.0, out);
        } else {
            self.want(target.0, target.1);
        }
    }

    /// The host has another log: the end of a gap in the one before may be in nobody's any more.
    pub(super) fn forget_gap(&mut self) {
        self.catchup = CatchUp::default();
    }

    /// 5: the host has jumped over what was fetched for it.
    pub(super) fn leave_gap(&mut self) {
        if let Some(target) = self.catchup.target {
            self.chain.want_no_more(target);
        }
        self.forget_gap();
    }

    fn end_gap(&mut self) {
        self.catchup.target = None;
        self.catchup.since_us = None;
    }

    /// Whether what this host has accepted is known to be no view's any more: another log is committed, so by 6 no later view
    /// begins with this one, and whoever has lost its disk can keep silent about it without having it (8, row 2).
    pub(super) fn has_lost(&self) -> bool {
        let accepted = self.log.accepted();
        // Nobody may have those slots any more; the host's own log remembers the late ones.
        let last = self.sure_end().min(accepted.0);
        let decided = self.log.decided(last);
        let installed = self.log.installed();
        let of_this_view = decided.filter(|(view, _)| *view == installed);
        let differs = |(_, history)| self.contradicts_committed(last, history);
        self.catchup.lost == Some(installed) || of_this_view.is_some_and(differs)
    }

    fn lose(&mut self, end: (Slot, Digest)) {
        self.chain.give_up(end);
        let accepted = self.log.accepted();
        if end == accepted {
            self.catchup.lost = Some(self.log.installed());
        } else {
            // This twin's own slots above the gap are another log's: the host's own tells.
            self.catchup.target = Some(accepted);
            self.want(accepted.0, accepted.1);
        }
    }

    /// The first slot at or behind a gap whose history is known.
    fn gap_end(&self, first: Slot) -> (Slot, Digest) {
        let (accepted, history) = self.log.accepted();
        let mut slots = self.slots.iter_from(first);
        slots
            .next()
            .filter(|(slot, _)| *slot <= accepted)
            .map_or((accepted, history), |(slot, data)| (slot, data.history))
    }

    fn fill_gap(&mut self, last: Slot, out: &mut Effects) {
        let target = self.catchup.target.expect("it is joined");
        let slots = self.take_chain(target);
        self.overlay(slots, out);
        self.persist_up_to(last, out);
        self.rebuild_in_log(last);
        self.end_gap();
        self.raise_tip();
    }

    pub(super) fn catchup_deadline(&self) -> Option<u64> {
        let due = self.catchup.since_us? + self.config.tuning.fetch_after_us;
        self.catchup.target.is_none().then_some(due)
    }
}
