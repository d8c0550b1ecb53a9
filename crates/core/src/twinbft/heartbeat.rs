//! An idle primary shows that it is alive (protocol.md 6, HEARTBEAT).

use std::collections::BTreeMap;

use twinbft_types::{Digest, Entry, HostId, ReplicaId, Slot, Statement, View};

use super::Replica;
use crate::io::Effects;

/// The leader posts a BEAT when it has decided nothing for this part of `suspect_after`.
const BEATS_PER_SUSPICION: u64 = 4;

/// Heartbeats sent and received.
#[derive(Clone, Debug, Default)]
pub struct Heartbeats {
    /// The leader: when it last ordered something or posted a BEAT.
    busy_us: u64,
    /// The leader: the BEAT that it posted last, read back or not.
    posted: (View, u64),
    /// When this twin last signed a HEARTBEAT or the ACK of one: a bad leader may post BEATs without end.
    signed_us: u64,
    /// The primary host: a HEARTBEAT that `Q − 1` others have not acknowledged, and since when it waits.
    waiting: Option<(u64, u64)>,
    /// The highest count that each host has acknowledged in a view.
    acknowledged: BTreeMap<HostId, (View, u64)>,
    /// A backup: the highest count that it has received in a view.
    heard: (View, u64),
    /// A HEARTBEAT whose slot this host has not accepted yet.
    pending: Option<(View, u64, Slot, Digest)>,
}

impl Heartbeats {
    /// Since when a HEARTBEAT waits for `Q − 1` others.
    pub fn waiting_since(&self) -> Option<u64> {
        self.waiting.map(|(_, since)| since)
    }

    /// The leader has ordered something.
    pub const fn note_busy(&mut self, now_us: u64) {
        self.busy_us = now_us;
    }

    /// Another view: what was sent and received in the old one is forgotten.
    pub fn reset(&mut self, now_us: u64) {
        self.busy_us = now_us;
        self.waiting = None;
        self.pending = None;
    }
}

impl Replica {
    fn beat_interval(&self) -> u64 {
        (self.config.tuning.suspect_after_us / BEATS_PER_SUSPICION).max(1)
    }

    /// At most twice as often as a correct leader beats.
    fn may_sign_beat(&mut self) -> bool {
        let last_us = self.heartbeats.signed_us;
        let may = last_us == 0 || last_us + self.beat_interval() / 2 <= self.now.mono_us;
        if may {
            self.heartbeats.signed_us = self.now.mono_us;
        }
        may
    }

    pub(super) fn beat_deadline(&self) -> Option<u64> {
        (self.is_leader() && self.config.shape.hosts() > 1)
            .then_some(self.heartbeats.busy_us + self.beat_interval())
    }

    pub(super) fn beat_timer(&mut self, out: &mut Effects) {
        let due = self
            .beat_deadline()
            .is_some_and(|at| at <= self.now.mono_us);
        if let Some(view) = self.log.live_view().filter(|_| due) {
            self.heartbeats.busy_us = self.now.mono_us;
            let next = (view, self.log.last_beat() + 1);
            // One that waits for room in the postbox says as much as many.
            if self.heartbeats.posted < next {
                self.heartbeats.posted = next;
                let (view, count) = next;
                out.post(Entry::Beat { view, count });
            }
        }
    }

    /// The log has fixed HEARTBEAT(v, count, n, h).
    pub(super) fn handle_beat(
        &mut self,
        (view, count): (View, u64),
        (slot, history): (Slot, Digest),
        out: &mut Effects,
    ) {
        self.note_sign_of_life();
        if !self.may_sign_beat() {
            return;
        }
        self.heartbeats
            .waiting
            .get_or_insert((count, self.now.mono_us));
        let statement = Statement::Heartbeat {
            view,
            count,
            slot,
            history,
        };
        self.sign_decided(&statement, false, out);
    }

    /// A backup: the primary is alive, and its last slot is this one. Answers whether that is news.
    pub(super) fn handle_heartbeat(
        &mut self,
        from: ReplicaId,
        (view, count): (View, u64),
        (slot, history): (Slot, Digest),
        out: &mut Effects,
    ) -> bool {
        if self.log.live_view() != Some(view) {
            self.note_higher_view(from, view, out);
            return false;
        }
        // Only a new count resets a timer.
        if (view, count) <= self.heartbeats.heard {
            return false;
        }
        self.heartbeats.heard = (view, count);
        self.note_sign_of_life();
        self.hear_of(slot);
        self.heartbeats.pending = Some((view, count, slot, history));
        self.poll_heartbeat(out);
        true
    }

    /// 6: the ACK of a heartbeat echoes its count; it is true once the host has accepted the slot.
    pub(super) fn poll_heartbeat(&mut self, out: &mut Effects) {
        let Some((view, count, slot, history)) = self.heartbeats.pending else {
            return;
        };
        if self.log.accepted().0 < slot || self.log.live_view() != Some(view) {
            return;
        }
        self.heartbeats.pending = None;
        if !self.may_sign_beat() {
            return;
        }
        let statement = Statement::Ack {
            view,
            slot,
            history,
            beat: Some(count),
        };
        self.sign_decided(&statement, false, out);
    }

    /// The primary: a backup has acknowledged this count.
    pub(super) fn note_beat_ack(&mut self, host: HostId, view: View, count: u64) {
        let best = self.heartbeats.acknowledged.entry(host).or_default();
        *best = (view, count).max(*best);
        let Some((waiting, _)) = self.heartbeats.waiting else {
            return;
        };
        let acknowledged = self.heartbeats.acknowledged.values();
        let enough = acknowledged.filter(|ack| **ack >= (view, waiting)).count();
        if enough + 1 >= self.config.shape.host_quorum() {
            self.heartbeats.waiting = None;
        }
    }
}
