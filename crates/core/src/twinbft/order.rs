//! A slot is decided on the primary host: sign it and send it to the backups (protocol.md 4.4).

use twinbft_types::{Authenticator, Digest, Entry, HostId, ReplicaId, Slot, Statement, View};

use super::Replica;
use super::slots::SlotData;
use crate::fault::PeerFault;
use crate::hostlog::Candidate;
use crate::io::{Effect, Effects};
use crate::record::Record;

/// Most slots in one answer to a fetch.
pub const FETCH_SLOTS_MAX: u64 = 64;
/// Most bytes of operations in one answer to a fetch.
const FETCH_BYTES_MAX: usize = 4 * 1024 * 1024;

impl Replica {
    /// 4.4: ORDER is decided; each twin then signs it, as soon as it holds the bodies.
    pub(super) fn handle_ordered(
        &mut self,
        view: View,
        slot: Slot,
        candidate: Candidate,
        out: &mut Effects,
    ) {
        let is_written = self.has_written(slot, candidate.history);
        self.leader_ordered(slot);
        self.note_sign_of_life();
        let private = self
            .voting
            .take(slot)
            .expect("every candidate has a private side");
        let is_other = self.history_of(slot) != Some(candidate.history);
        let is_executed = slot <= self.execution.begun() && is_other;
        if is_executed || self.contradicts_committed(slot, candidate.history) {
            // The others have committed another log meanwhile, and this twin, which is ahead of its host, goes by that: it is not
            // overwritten, and what its host says of a view that is over concerns nobody.
            return;
        }
        let endorsed = private.is_endorsed();
        let primary = (
            view,
            self.config.host(),
            self.log.incarnation(self.config.host()),
        );
        let mut data = SlotData::new(
            primary,
            candidate.history,
            candidate.timestamp_us,
            candidate.requests,
            private.bodies,
            self.now.mono_us,
        );
        for signature in private.signatures {
            data.add_signature(signature);
        }
        for (digest, request) in &private.unverified {
            data.fill(*digest, request);
        }
        let is_complete = data.is_complete();
        // A follower that endorsed it has it in its write-ahead log already.
        data.is_persisted = endorsed || is_written;
        self.slots.insert(slot, data);
        if is_complete {
            self.persist_slot(slot, out);
            self.sign_order(slot, out);
        } else {
            self.voting.note_incomplete(slot, self.now.mono_us);
        }
        self.send_order(slot, out);
    }

    /// 3: what a promise rests on is in the write-ahead log before the promise.
    pub(super) fn persist_slot(&mut self, slot: Slot, out: &mut Effects) {
        let Some(previous) = self.history_of(Slot(slot.0 - 1)) else {
            return;
        };
        let data = self.slots.get_mut(slot).expect("just put there");
        if data.is_persisted || !data.is_complete() {
            return;
        }
        data.is_persisted = true;
        out.push(Effect::Persist(data.record(slot, previous)));
    }

    /// The last body of a decided slot has come.
    pub(super) fn handle_completed(&mut self, slot: Slot, out: &mut Effects) {
        self.persist_slot(slot, out);
        self.sign_order(slot, out);
        self.send_order(slot, out);
    }

    /// Signs a slot that this host has decided and this twin holds, unless its ENDORSE did (3).
    fn sign_order(&mut self, slot: Slot, out: &mut Effects) {
        let me = self.config.twin();
        let Some(data) = self.slots.get(slot) else {
            return;
        };
        // 3: a SIGN rests on the slot. Who lacks a body or what lies below leaves it to those who voted.
        let is_own = data.primary == self.config.host();
        let is_signed = data.authenticators.iter().any(|a| a.twin == me);
        // What its view began with, or what this twin has fetched from others while its own log lags, is no decision of its
        // host in that view.
        let is_decided = self.log.decided(slot) == Some((data.view, data.history));
        if !is_own || is_signed || !is_decided || !data.is_persisted {
            return;
        }
        let statement = Statement::Order {
            view: data.view,
            slot,
            history: data.history,
        };
        let lazy = self.is_small(data.bytes());
        let signed = self.signed(statement.clone());
        let authenticator = self.config.keys.sign(self.config.shape, &signed);
        let entry = Entry::Sign {
            statement,
            authenticator: authenticator.clone(),
        };
        out.push(Effect::Persist(Record::Promise(entry.clone())));
        out.push(Effect::Post { entry, lazy });
        if let Some(data) = self.slots.get_mut(slot) {
            data.add_signature(authenticator);
        }
    }

    /// Whether the leader alone serves the backups with this slot, because it is small: that spares them the
    /// wait for a second signature. The others step in when no acceptance follows (docs/adr/0005-small-batches.md).
    fn is_small(&self, bytes: usize) -> bool {
        bytes <= self.config.tuning.serve_all_bytes_max
    }

    /// With two twins a host is silent when one of them is: the leader then serves one twin of a host, and that
    /// one passes a small batch on through the postbox, which is cheaper than the network.
    pub(super) fn relays(&self, bytes: usize) -> bool {
        self.config.shape.unanimous() && self.is_small(bytes)
    }

    /// A sibling's SIGN of an ORDER.
    pub(super) fn handle_order_signature(
        &mut self,
        view: View,
        slot: Slot,
        history: Digest,
        authenticator: &Authenticator,
        out: &mut Effects,
    ) {
        let Some(data) = self.slots.get_mut(slot) else {
            return;
        };
        let is_same = data.view == view && data.history == history;
        if is_same && data.add_signature(authenticator.clone()) {
            self.send_order(slot, out);
        }
    }

    /// 4.4: whoever holds `q` signatures sends the certificate with the bodies to the backups' twins.
    fn send_order(&mut self, slot: Slot, out: &mut Effects) {
        let shape = self.config.shape;
        let quorum = shape.twin_quorum();
        let leads = self.is_leader();
        let Some(data) = self.slots.get(slot) else {
            return;
        };
        let bytes = data.bytes();
        // The first certificate only: what comes later is for those who ask.
        if data.sent || data.authenticators.len() < quorum || (self.is_small(bytes) && !leads) {
            return;
        }
        let all = self.is_small(bytes) && !self.relays(bytes);
        let Some(data) = self.slots.get_mut(slot) else {
            return;
        };
        let Some(message) = data.order(slot, quorum) else {
            return;
        };
        data.sent = true;
        let me = self.config.me;
        for to in shape.receivers(me.host) {
            if all || to.twin == me.twin {
                out.push(Effect::Send {
                    to,
                    message: message.clone(),
                });
            }
        }
    }

    /// Sends again what is decided and not committed after a while: the first sender may be mute to some.
    pub(super) fn order_timer(&mut self, out: &mut Effects) {
        if !self.log.is_primary() {
            return;
        }
        let view = self.log.current_view();
        let now = self.now.mono_us;
        let quorum = self.config.shape.twin_quorum();
        let due: Vec<Slot> = (self.slots.iter_from(self.first_uncommitted()))
            .filter(|(_, data)| data.since_us + self.pause_us(data.repeats) <= now)
            .map(|(slot, _)| slot)
            .collect();
        for slot in due {
            let Some(data) = self.slots.get_mut(slot) else {
                continue;
            };
            data.since_us = now;
            data.repeats += 1;
            let times = data.repeats;
            let Some(message) = data.order(slot, quorum) else {
                continue;
            };
            // Who has acknowledged it has it.
            let lacking: Vec<HostId> = (self.config.shape.all_hosts())
                .filter(|host| self.commit.acknowledged(*host, view) < slot)
                .collect();
            self.ask_hosts(times, lacking, &message, out);
        }
    }

    /// The first slot whose ORDER may have to be sent again. What the view began with is in its NEW-VIEW, and fetched by
    /// its chain.
    fn first_uncommitted(&self) -> Slot {
        let begun = self.log.installed_log().map_or(Slot(0), |log| log.slot);
        self.commit.committed().max(begun).next()
    }

    pub(super) fn order_deadline(&self) -> Option<u64> {
        if !self.log.is_primary() {
            return None;
        }
        let slots = self.slots.iter_from(self.first_uncommitted());
        let due = slots.map(|(_, data)| data.since_us + self.pause_us(data.repeats));
        due.min()
    }

    /// A peer lacks slots (4.5).
    pub(super) fn handle_fetch(
        &mut self,
        from: ReplicaId,
        first: Slot,
        last: Slot,
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        if last < first || last.0 - first.0 >= FETCH_SLOTS_MAX {
            return Err(PeerFault::FetchTooLong { from });
        }
        let quorum = self.config.shape.twin_quorum();
        let mut bytes = 0;
        for slot in (first.0..=last.0).map(Slot) {
            let Some(data) = self.slots.get_mut(slot) else {
                continue;
            };
            bytes += data.bytes();
            if bytes > FETCH_BYTES_MAX {
                break;
            }
            if let Some(message) = data.order(slot, quorum) {
                out.push(Effect::Send { to: from, message });
            }
        }
        if !self.log.is_primary() {
            self.repeat_ack(from, out);
        }
        self.repeat_checkpoints(from, out);
        Ok(())
    }
}
