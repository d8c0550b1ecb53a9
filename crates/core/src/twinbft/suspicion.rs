//! When a twin suspects the primary, and when it takes that back (protocol.md 6, "Suspicion").

use twinbft_types::{Entry, Slot, View};

use super::Replica;
use crate::io::Effects;

/// What a twin's suspicion rests on.
#[derive(Clone, Debug, Default)]
pub struct Suspicion {
    /// The last sign of life of the current view: an ORDER, a HEARTBEAT, its fence or its install.
    sign_us: u64,
    /// The primary host: what `Q − 1` others have acknowledged, and since when they have not acknowledged more.
    unacknowledged: Option<(Slot, u64)>,
    /// Since when another host has left the view that this one is in.
    left_by_another_us: Option<u64>,
    /// Views that have failed in a row: that were left without any progress.
    failures: u32,
    /// What was committed when the view began.
    committed_before: Slot,
    /// Since when the view is as it should be.
    good_since_us: u64,
    /// The view that this twin wishes for, as it has posted it last.
    wished: View,
}

impl Suspicion {
    /// What this twin has wished for in an earlier life (8).
    pub const fn recall(&mut self, wished: View) {
        self.wished = wished;
    }

    /// The view that this twin wishes for.
    pub const fn wished(&self) -> View {
        self.wished
    }
}

impl Replica {
    /// 6: time-outs double for each view that fails and relax after progress.
    fn patience_us(&self) -> u64 {
        let tuning = &self.config.tuning;
        tuning.suspect_after_us << self.suspicion.failures.min(tuning.suspect_doublings_max)
    }

    /// A new ORDER or a new count of a HEARTBEAT: only these reset the timer.
    pub(super) const fn note_sign_of_life(&mut self) {
        self.suspicion.sign_us = self.now.mono_us;
    }

    /// The views below are left: the next one has its own time to begin. One in which something was committed has not
    /// failed, and its time-out was long enough: it relaxes the next one's as time without a suspicion does. Otherwise
    /// a primary that goes wrong again and again would make each change of the view take twice as long as the last.
    pub(super) fn suspect_anew(&mut self, is_left: bool) {
        let committed = self.commit.committed();
        if is_left && committed > self.suspicion.committed_before {
            self.suspicion.failures = self.suspicion.failures.saturating_sub(1);
        } else if is_left {
            self.suspicion.failures += 1;
        }
        self.suspicion.committed_before = committed;
        let now_us = self.now.mono_us;
        self.suspicion.sign_us = now_us;
        self.suspicion.good_since_us = now_us;
        self.suspicion.unacknowledged = None;
        self.forwards.restart(now_us);
    }

    /// 6: a primary suspects itself when `Q − 1` others have not ACKed an ORDER or HEARTBEAT in time.
    fn watch_acknowledgements(&mut self) {
        let committed = self.commit.committed();
        if !self.log.is_primary() || committed >= self.log.accepted().0 {
            self.suspicion.unacknowledged = None;
            return;
        }
        let known = self.suspicion.unacknowledged.map(|(slot, _)| slot);
        if known != Some(committed) {
            self.suspicion.unacknowledged = Some((committed, self.now.mono_us));
        }
    }

    /// 6: "nobody is left behind alone". A host leaves with the wishes of `Q` hosts; when one of these is taken back at once, the
    /// others may never have held as many, and the host waits for a view that nobody else enters. Its VIEW-CHANGE is a safe
    /// host's word that `Q` hosts wished, so who holds it for as long as a primary may be silent wishes, too (docs/adr/0022).
    fn watch_leavers(&mut self) {
        let is_left = self.views.is_left_by_another(self.log.current_view());
        let since = self.suspicion.left_by_another_us;
        self.suspicion.left_by_another_us = is_left.then(|| since.unwrap_or(self.now.mono_us));
    }

    /// Since when something that should have happened has not.
    fn waiting_since(&self) -> Option<u64> {
        let alone = self.config.shape.hosts() == 1;
        let entering = self.log.entering().is_some();
        // One host with nothing to do has nobody to show that it is alive.
        let silence = (!alone || entering).then_some(self.suspicion.sign_us);
        [
            silence,
            self.forwards.oldest_us(),
            self.suspicion.unacknowledged.map(|(_, since)| since),
            self.heartbeats.waiting_since(),
            self.suspicion.left_by_another_us,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Posts SUSPECT when the view's time is over, and takes it back when the reason is gone.
    pub(super) fn poll_suspicion(&mut self, out: &mut Effects) {
        self.watch_acknowledgements();
        self.watch_leavers();
        let current = self.log.current_view();
        let now_us = self.now.mono_us;
        let patience = self.patience_us();
        let is_over = |since: u64| since + patience <= now_us;
        // 8: who has come back by HELLO decides nothing in its old view, and wishes above it. With one host or two nobody
        // else would.
        if self.log.is_silent_primary() {
            self.suspicion.good_since_us = now_us;
            self.wish(current.next(), out);
            return;
        }
        let mut waits = self.waiting_since().is_some_and(is_over);
        if waits {
            self.drop_stale_forwards();
            waits = self.waiting_since().is_some_and(is_over);
        }
        if waits {
            self.suspicion.good_since_us = now_us;
            self.wish(current.next(), out);
            return;
        }
        if self.suspicion.wished > current {
            self.wish(current, out);
        }
        let relaxing = self.suspicion.failures > 0 && self.log.entering().is_none();
        if relaxing && self.suspicion.good_since_us + patience <= now_us {
            self.suspicion.failures -= 1;
            self.suspicion.good_since_us = now_us;
        }
    }

    fn wish(&mut self, view: View, out: &mut Effects) {
        if self.suspicion.wished != view {
            self.suspicion.wished = view;
            self.repeat_soon();
            out.post(Entry::Suspect { view });
        }
    }

    pub(super) fn suspicion_deadline(&self) -> Option<u64> {
        // Who does not speak yet suspects nobody.
        if self.recovery.is_silent() {
            return None;
        }
        let patience = self.patience_us();
        let waits = self.waiting_since().map(|since| since + patience);
        // What is over already has been said; the next news wakes this twin up.
        let next = waits.filter(|at| *at > self.now.mono_us);
        let relaxes = (self.suspicion.failures > 0 && self.log.entering().is_none())
            .then_some(self.suspicion.good_since_us + patience);
        [next, relaxes].into_iter().flatten().min()
    }
}
