//! When a slot is committed: `Q` hosts have accepted it in one view (protocol.md 4.6).

use std::collections::BTreeMap;
use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{
    Certificate, Digest, Entry, HostId, Incarnation, ReplicaId, Slot, Statement, TwinId, View,
};

use super::Replica;
use crate::io::{Effect, Effects};

/// What this twin knows of the other hosts' acceptance.
#[derive(Debug, Default)]
pub struct Commit {
    /// The last committed slot.
    committed: Slot,
    /// When this twin was last up to date, or last asked for ACKs.
    waiting_since_us: Option<u64>,
    /// Each host's highest ACK of the live view.
    acks: BTreeMap<HostId, (View, Slot)>,
    /// Incarnations above 0 (8).
    incarnations: BTreeMap<HostId, Incarnation>,
}

impl Commit {
    pub const fn committed(&self) -> Slot {
        self.committed
    }

    /// A checkpoint is of a committed slot (5).
    pub fn stand_at(&mut self, slot: Slot) {
        self.committed = self.committed.max(slot);
    }

    /// The incarnation in which this twin believes a host to be.
    pub fn incarnation(&self, host: HostId) -> Incarnation {
        self.incarnations.get(&host).copied().unwrap_or_default()
    }

    /// Whether this host has acknowledged anything in `view` or above it.
    pub fn is_in(&self, host: HostId, view: View) -> bool {
        self.acks.get(&host).is_some_and(|(v, _)| *v >= view)
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
        self.sign_decided(&statement, true, out);
    }

    /// 4.6: with Q ≤ 2 the primary alone needs ACKs. One twin sends them to the leader, which passes them on
    /// to its siblings through the postbox; who does not get them so asks for them.
    pub(super) fn send_ack(&self, view: View, certificate: Certificate, out: &mut Effects) {
        let shape = self.config.shape;
        let beats = matches!(
            certificate.signed.statement,
            Statement::Ack { beat: Some(_), .. }
        );
        let message = Arc::new(PeerMessage::Certificate(certificate));
        if shape.host_quorum() > 2 {
            self.send_to_counterparts(shape.all_hosts(), &message, out);
            return;
        }
        // 6: every twin of the primary host wants to know that its heartbeat was heard.
        if beats {
            self.send_to_counterparts([shape.primary(view)].into_iter(), &message, out);
            return;
        }
        let to = shape.leader(view);
        if to.twin == self.config.twin() {
            out.push(Effect::Send { to, message });
        }
    }

    /// The leader passes the ACK that showed a commit on to its siblings.
    fn relay_ack(&self, certificate: Certificate, out: &mut Effects) {
        if self.is_leader() && self.config.shape.host_quorum() <= 2 {
            out.post_lazy(Entry::Relay { certificate });
        }
    }

    /// A sibling passed a certificate on (3): it is worth what its signatures are worth.
    pub(super) fn handle_relay(
        &mut self,
        sender: TwinId,
        certificate: &Certificate,
        out: &mut Effects,
    ) {
        let from = ReplicaId {
            host: self.config.host(),
            twin: sender,
        };
        if sender == self.config.twin() {
            return;
        }
        // A certificate that fails here may be spoilt for this twin alone: nobody's fault that can be told.
        if let Ok(signed) = self.verify(from, certificate) {
            let _not_for_relays = self.handle_statement(from, &signed, certificate, out);
        }
    }

    /// An ACK certificate of another host that has just been verified.
    pub(super) fn handle_ack_certificate(
        &mut self,
        from: ReplicaId,
        certificate: &Certificate,
        out: &mut Effects,
    ) {
        let Statement::Ack {
            view,
            slot,
            history,
            beat,
        } = certificate.signed.statement
        else {
            return;
        };
        self.note_higher_view(from, view, out);
        let before = self.commit.committed;
        self.handle_ack(certificate.signed.host, view, slot, history);
        if let Some(count) = beat {
            self.note_beat_ack(certificate.signed.host, view, count);
        }
        self.poll_commit();
        if self.commit.committed > before && from.host != self.config.host() {
            self.relay_ack(certificate.clone(), out);
        }
    }

    /// 6: an ACK is sent again until superseded, here to the one who shows that it lacks it.
    pub(super) fn repeat_ack(&self, to: ReplicaId, out: &mut Effects) {
        let (Some(view), (slot, history)) = (self.log.live_view(), self.log.accepted()) else {
            return;
        };
        let statement = Statement::Ack {
            view,
            slot,
            history,
            beat: None,
        };
        if let Some(certificate) = self.book.certificate(&statement) {
            let message = Arc::new(PeerMessage::Certificate(certificate));
            out.push(Effect::Send { to, message });
        }
    }

    pub(super) fn handle_ack(&mut self, host: HostId, view: View, slot: Slot, history: Digest) {
        let current = self.log.current_view();
        if view < current {
            return;
        }
        // Cumulative: the chain below has equal history, so one comparison is enough. Of a view that this host has not
        // installed yet nothing is known to compare with.
        let is_live = self.log.live_view() == Some(view);
        let known = self.history_of(slot).filter(|_| is_live);
        if known.is_some_and(|known| known != history) {
            return;
        }
        let best = self.commit.acks.entry(host).or_insert((view, Slot(0)));
        *best = (view, slot).max(*best);
    }

    /// 4.6: slot `n` is committed when `Q` hosts have accepted it in one view.
    pub(super) fn poll_commit(&mut self) {
        let Some(view) = self.log.live_view() else {
            return;
        };
        let shape = self.config.shape;
        let own = self.surely_accepted();
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
        if self.commit.committed == own {
            self.commit.waiting_since_us = None;
        } else if self.commit.waiting_since_us.is_none() {
            self.commit.waiting_since_us = Some(self.now.mono_us);
        }
    }

    /// Who has accepted more than it knows to be committed asks the others for their ACKs: the answer to a fetch
    /// carries them. The leader repeats its ORDERs instead.
    pub(super) fn commit_timer(&mut self, out: &mut Effects) {
        let due = self
            .commit_deadline()
            .is_some_and(|deadline| deadline <= self.now.mono_us);
        if !due {
            return;
        }
        self.commit.waiting_since_us = Some(self.now.mono_us);
        let wanted = self.commit.committed.next();
        let question = Arc::new(PeerMessage::FetchSlots {
            first: wanted,
            last: wanted,
        });
        self.ask_around(&question, out);
    }

    pub(super) fn commit_deadline(&self) -> Option<u64> {
        if self.is_leader() {
            return None;
        }
        Some(self.commit.waiting_since_us? + self.config.tuning.fetch_after_us)
    }
}
