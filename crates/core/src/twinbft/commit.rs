//! When a slot is committed: `Q` hosts have accepted it in one view (protocol.md 4.6).

use std::collections::BTreeMap;

use twinbft_types::{Digest, HostId, Incarnation, Slot, Statement, View};

use super::Replica;
use crate::io::Effects;

/// What this twin knows of the other hosts' acceptance.
#[derive(Debug, Default)]
pub struct Commit {
    /// The last committed slot.
    committed: Slot,
    /// Each host's highest ACK of the live view.
    acks: BTreeMap<HostId, (View, Slot)>,
    /// Incarnations above 0 (8).
    incarnations: BTreeMap<HostId, Incarnation>,
}

impl Commit {
    pub const fn committed(&self) -> Slot {
        self.committed
    }

    /// The incarnation in which this twin believes a host to be.
    pub fn incarnation(&self, host: HostId) -> Incarnation {
        self.incarnations.get(&host).copied().unwrap_or_default()
    }

    /// The highest slot that this host has acknowledged in `view`.
    fn acknowledged(&self, host: HostId, view: View) -> Slot {
        self.acks
            .get(&host)
            .filter(|(v, _)| *v == view)
            .map_or(Slot(0), |(_, slot)| *slot)
    }
}

impl Replica {
    /// A backup host has accepted (4.5): it tells the others.
    pub(super) fn handle_accepted(
        &mut self,
        view: View,
        slot: Slot,
        history: Digest,
        out: &mut Effects,
    ) {
        let statement = Statement::Ack {
            view,
            slot,
            history,
            beat: None,
        };
        // Off the client's path: it rides with the RESULT that follows.
        self.sign_decided(statement, true, out);
    }

    /// Whom an ACK goes to (4.6): with Q ≤ 2 the primary alone needs it.
    pub(super) fn ack_receivers(&self, view: View) -> Vec<HostId> {
        let shape = self.config.shape;
        if shape.host_quorum() <= 2 {
            vec![shape.primary(view)]
        } else {
            shape.all_hosts().collect()
        }
    }

    pub(super) fn handle_ack(&mut self, host: HostId, view: View, slot: Slot, history: Digest) {
        if self.log.live_view() != Some(view) {
            return;
        }
        // Cumulative: the chain below has equal history, so one comparison is enough.
        let known = self.history_of(slot);
        if known.is_some_and(|known| known != history) {
            return;
        }
        let best = self.commit.acks.entry(host).or_insert((view, Slot(0)));
        if best.0 != view || best.1 < slot {
            *best = (view, slot);
        }
    }

    /// 4.6: slot `n` is committed when `Q` hosts have accepted it in one view.
    pub(super) fn poll_commit(&mut self) {
        let Some(view) = self.log.live_view() else {
            return;
        };
        let shape = self.config.shape;
        let own = self.log.accepted().0;
        let primary = shape.primary(view);
        let mut accepted: Vec<Slot> = shape
            .all_hosts()
            .map(|host| {
                if host == self.config.host() {
                    own
                } else if host == primary {
                    // Its ORDER certificate counts as its own acceptance.
                    self.backup.tip().max(own)
                } else {
                    self.commit.acknowledged(host, view)
                }
            })
            .collect();
        accepted.sort_unstable_by(|a, b| b.cmp(a));
        // What this host has not accepted itself is not executed here, whoever else has it.
        let committed = accepted[shape.host_quorum() - 1].min(own);
        self.commit.committed = self.commit.committed.max(committed);
    }
}
