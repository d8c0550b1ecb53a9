//! A backup takes over what the primary ordered (protocol.md 4.5).

use std::collections::BTreeMap;
use std::sync::Arc;

use twinbft_types::wire::{OrderMessage, PeerMessage};
use twinbft_types::{
    Authenticator, Digest, Entry, ReplicaId, Request, RequestRef, Slot, Statement, TwinId, View,
    batch_digest, history,
};

use super::Replica;
use super::order::FETCH_SLOTS_MAX;
use super::slots::SlotData;
use crate::fault::PeerFault;
use crate::io::{Effect, Effects};
use crate::mutants::{Rule, out as is_out};
use crate::record::Record;

/// Bytes of operations in orders that wait for their turn; the highest slots give way, and are fetched when it comes.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// Orders with valid certificates beyond the next slot. Whether a batch belongs to its certificate shows when its turn
/// comes, so one of each sender waits.
#[derive(Clone, Debug, Default)]
struct Waiting {
    /// Invariant: slots lie between the marks.
    orders: BTreeMap<(Slot, ReplicaId), OrderMessage>,
    /// Of their operations. Invariant: at most [`WAITING_BYTES_MAX`].
    bytes: usize,
}

impl Waiting {
    fn insert(&mut self, slot: Slot, from: ReplicaId, order: OrderMessage) {
        let of_slot = (slot, ReplicaId::new(0, 0))..=(slot, ReplicaId::new(u8::MAX, u8::MAX));
        let is_same =
            |o: &OrderMessage| o.timestamp_us == order.timestamp_us && o.bodies == order.bodies;
        if self.orders.range(of_slot).any(|(_, known)| is_same(known)) {
            return;
        }
        self.bytes += operation_bytes(&order);
        if let Some(replaced) = self.orders.insert((slot, from), order) {
            self.bytes -= operation_bytes(&replaced);
        }
        while self.bytes > WAITING_BYTES_MAX
            && let Some((_, highest)) = self.orders.pop_last()
        {
            self.bytes -= operation_bytes(&highest);
        }
    }

    fn drop_up_to(&mut self, slot: Slot) {
        while let Some(first) = self
            .orders
            .first_entry()
            .filter(|first| first.key().0 <= slot)
        {
            self.bytes -= operation_bytes(&first.remove());
        }
    }

    /// The next one of this slot; those of lower ones are dropped.
    fn take(&mut self, slot: Slot) -> Option<(ReplicaId, OrderMessage)> {
        while let Some(first) = self.orders.first_entry() {
            let (at, from) = *first.key();
            if at > slot {
                return None;
            }
            let order = first.remove();
            self.bytes -= operation_bytes(&order);
            if at == slot {
                return Some((from, order));
            }
        }
        None
    }
}

fn operation_bytes(order: &OrderMessage) -> usize {
    order.bodies.iter().map(|r| r.operation.len()).sum()
}

/// What only a backup keeps.
#[derive(Clone, Debug, Default)]
pub struct Backup {
    /// The last slot of this twin's own chain.
    tip: Slot,
    waiting: Waiting,
    /// The last slot whose acceptance by this host is certain, read back or not.
    foreseen: Slot,
    /// The signatures on ACKs of such slots, posted behind the ACCEPTs and not counted before these are read back.
    foreseen_acks: BTreeMap<Slot, (Statement, Authenticator)>,
    /// The highest slot between the marks that anybody spoke of.
    heard: Slot,
    /// Since when `heard` lies beyond the tip.
    behind_since_us: Option<u64>,
    /// Counts the fetches, to ask another twin each time.
    asked: usize,
}

impl Backup {
    pub fn waiting_len(&self) -> usize {
        self.waiting.orders.len()
    }

    /// The last slot of this twin's own chain.
    pub const fn tip(&self) -> Slot {
        self.tip
    }

    /// Another log takes the place of this twin's chain (6).
    pub const fn set_tip(&mut self, tip: Slot) {
        self.tip = tip;
    }

    /// A view is fenced or installed: what waits for the one before is worth nothing any more.
    pub fn leave_view(&mut self) {
        self.waiting = Waiting::default();
        self.foreseen_acks.clear();
        self.foreseen = Slot(0);
        self.heard = Slot(0);
        self.behind_since_us = None;
    }

    /// Whether somebody spoke of slots that have not come.
    pub fn has_gap(&self) -> bool {
        self.heard > self.tip && self.behind_since_us.is_some()
    }

    /// This twin holds its chain up to here.
    pub fn raise_tip(&mut self, slot: Slot) {
        self.tip = self.tip.max(slot);
        self.waiting.drop_up_to(self.tip);
    }
}

impl Replica {
    pub(super) fn handle_order(
        &mut self,
        from: ReplicaId,
        order: OrderMessage,
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        let Statement::Order {
            view,
            slot,
            history: _,
        } = order.certificate.signed.statement
        else {
            return Err(PeerFault::UnexpectedStatement {
                from,
                statement: "certificate of something else with an ORDER's batch",
            });
        };
        if self.config.shape.primary(view) != order.certificate.signed.host {
            return Err(PeerFault::NotPrimary { from });
        }
        if self.log.is_opening() {
            return self.note_claimed(from, &order.certificate);
        }
        if self.log.live_view() != Some(view) {
            if view > self.log.current_view() {
                self.verify(from, &order.certificate)?;
                self.note_higher_view(from, view, out);
            } else if self.wants_log_of(view) {
                let signed = self.verify(from, &order.certificate)?;
                self.note_log_of(&signed.statement);
            }
            return Ok(());
        }
        if self.log.is_primary() {
            return Ok(());
        }
        if slot <= self.backup.tip {
            // The primary repeats what it does not know to be accepted: the ACK was lost (6, "Repetition").
            self.repeat_ack(from, out);
            return Ok(());
        }
        if self.backup.waiting.orders.contains_key(&(slot, from)) {
            return Ok(());
        }
        self.hear_of(slot);
        if slot > self.high_mark() {
            // No fault of the sender's: this twin lags, has heard of the slot, and fetches it.
            return Ok(());
        }
        if self.is_too_large(&order) {
            return Err(PeerFault::BatchTooLarge { from });
        }
        self.verify(from, &order.certificate)?;
        if slot > self.backup.tip.next() {
            // 4.5: out-of-order slots wait.
            self.backup.waiting.insert(slot, from, order);
            return Ok(());
        }
        self.accept(from, order, out)?;
        self.catch_up_note();
        Ok(())
    }

    /// 4.2: no leader makes such a batch.
    fn is_too_large(&self, order: &OrderMessage) -> bool {
        let tuning = &self.config.tuning;
        let largest = order.bodies.iter().map(|r| r.operation.len()).max();
        order.bodies.len() > tuning.batch_requests_max
            || largest.is_some_and(|bytes| bytes > tuning.request_bytes_max)
            || (order.bodies.len() > 1 && operation_bytes(order) > tuning.batch_bytes_max)
    }

    /// 4.5: a valid certificate for the installed view and the next slot that extends this twin's chain.
    fn accept(
        &mut self,
        from: ReplicaId,
        order: OrderMessage,
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        let signed = &order.certificate.signed;
        let Statement::Order {
            view,
            slot,
            history: claimed,
        } = signed.statement
        else {
            unreachable!("checked when it came in");
        };
        let previous = self.chain_end();
        let requests: Vec<RequestRef> = order.bodies.iter().map(Request::reference).collect();
        let extended = history(previous, slot, batch_digest(&requests), order.timestamp_us);
        // A promise of an earlier life stands (8).
        let differs = extended != claimed && !is_out(Rule::OrderHistory);
        if differs || self.recovery.contradicts_accept(view, slot, claimed) {
            return Err(PeerFault::HistoryMismatch { from });
        }
        if self.contradicts_committed(slot, claimed) {
            // It was right in its view, which is over.
            return Ok(());
        }
        let relayed = self.config.shape.leader(view) == from
            && self.relays(order.bodies.iter().map(|r| r.operation.len()).sum());
        let relay = relayed.then(|| Entry::RelayOrder {
            order: order.clone(),
        });
        let mut data = SlotData::new(
            (view, signed.host, signed.incarnation),
            claimed,
            order.timestamp_us,
            requests,
            order.bodies.iter().cloned().map(Some).collect(),
            self.now.mono_us,
        );
        for authenticator in &order.certificate.authenticators {
            data.add_signature(authenticator.clone());
        }
        data.is_persisted = true;
        self.note_sign_of_life();
        self.slots.insert(slot, data);
        self.backup.tip = slot;
        let entry = Entry::Accept {
            view,
            slot,
            history: claimed,
        };
        out.push(Effect::Persist(Record::Slot {
            slot,
            previous,
            timestamp_us: order.timestamp_us,
            bodies: order.bodies,
            certificate: Some(order.certificate),
        }));
        out.push(Effect::Persist(Record::Promise(entry.clone())));
        out.post(entry);
        // Behind the ACCEPT, so that a sibling knows of it when it takes the order over.
        if let Some(relay) = relay {
            out.post(relay);
        }
        self.foresee_acceptance(view, slot, claimed, out);
        Ok(())
    }

    /// With m = q this twin's ACCEPT completes the quorum as soon as it is posted, if the siblings' are in the log
    /// already: every fence of `v` needs this twin's own LEAVE, and its appends are FIFO (the argument of
    /// protocol.md 3 for an ENDORSE that carries its signature). So it need not wait to read it back.
    fn foresee_acceptance(&mut self, view: View, slot: Slot, history: Digest, out: &mut Effects) {
        let shape = self.config.shape;
        let me = self.config.twin();
        let siblings = self.log.equal_accepts_of_siblings(me, slot, history);
        let is_last = siblings + 1 == usize::from(shape.twins());
        if shape.unanimous() && is_last && self.views.left() <= view {
            self.backup.foreseen = self.backup.foreseen.max(slot);
            self.handle_accepted(view, slot, history, out);
        }
    }

    /// The signature on the ACK goes behind the ACCEPT, so whoever reads it has read that. But no certificate may leave
    /// this twin before the ACCEPT is in the log: if it never came there, the host would have forgotten what it said.
    pub(super) fn foresee_ack(
        &mut self,
        slot: Slot,
        statement: Statement,
        lazy: bool,
        out: &mut Effects,
    ) {
        let signed = self.signed(statement.clone());
        let authenticator = self.config.keys.sign(self.config.shape, &signed);
        let entry = Entry::Sign {
            statement: statement.clone(),
            authenticator: authenticator.clone(),
        };
        out.push(Effect::Post { entry, lazy });
        let acks = &mut self.backup.foreseen_acks;
        acks.insert(slot, (statement, authenticator));
    }

    /// Own ACCEPTs of foreseen slots were read back: the signatures that were posted behind them count from now on.
    pub(super) fn count_foreseen_acks(&mut self, out: &mut Effects) {
        let above = self.log.accepted().0.next();
        let above = self.backup.foreseen_acks.split_off(&above);
        for (statement, authenticator) in
            std::mem::replace(&mut self.backup.foreseen_acks, above).into_values()
        {
            if self.book.decide(&statement)
                && let Some(certificate) = self.book.sign(&statement, authenticator)
            {
                self.send_certificate(&statement, certificate, out);
            }
        }
    }

    /// The last slot that this host has accepted, or is certain to accept by what this twin has posted.
    pub(super) fn surely_accepted(&self) -> Slot {
        self.log.accepted().0.max(self.backup.foreseen)
    }

    /// A sibling passed an ORDER on (3): it is worth what its signatures are worth.
    pub(super) fn handle_relayed_order(
        &mut self,
        sender: TwinId,
        order: &OrderMessage,
        out: &mut Effects,
    ) {
        let Statement::Order { slot, .. } = order.certificate.signed.statement else {
            return;
        };
        // What was said before the start is fetched when it is still missing afterwards.
        if sender == self.config.twin() || slot <= self.backup.tip || self.recovery.is_replaying() {
            return;
        }
        let from = ReplicaId {
            host: self.config.host(),
            twin: sender,
        };
        // Whose fault a bad one is cannot be told: its MACs may be spoilt for this twin alone.
        if self.handle_order(from, order.clone(), out).is_err() {
            self.hear_of(slot);
        }
    }

    /// 4.5: what waited for the slot before it.
    pub(super) fn poll_waiting(&mut self, out: &mut Effects) {
        while let Some((from, order)) = self.backup.waiting.take(self.backup.tip.next()) {
            let Statement::Order { slot, .. } = order.certificate.signed.statement else {
                unreachable!("checked when it came in");
            };
            // A wrong batch under a valid certificate: the right one may wait behind it, or is fetched.
            if self.accept(from, order, out).is_err() {
                self.hear_of(slot);
                continue;
            }
            self.catch_up_note();
        }
        if self.backup.heard <= self.backup.tip {
            self.backup.behind_since_us = None;
        }
    }

    fn chain_end(&self) -> Digest {
        self.history_of(self.backup.tip)
            .expect("the tip of the chain is held")
    }

    /// Somebody spoke of this slot: when it does not come, it is fetched.
    pub(super) fn hear_of(&mut self, slot: Slot) {
        self.backup.heard = self.backup.heard.max(slot.min(self.high_mark()));
        if self.backup.heard > self.backup.tip && self.backup.behind_since_us.is_none() {
            self.backup.behind_since_us = Some(self.now.mono_us);
        }
    }

    fn catch_up_note(&mut self) {
        self.backup.behind_since_us =
            (self.backup.heard > self.backup.tip).then_some(self.now.mono_us);
    }

    /// A sibling accepted a slot (4.5): if this twin has not received it, it asks around.
    pub(super) fn note_sibling_accept(&mut self, view: View, slot: Slot) {
        if self.log.live_view() == Some(view) && slot > self.backup.tip {
            self.hear_of(slot);
        }
    }

    /// 4.5: a gap is fetched from any twin, another one each time.
    pub(super) fn backup_timer(&mut self, out: &mut Effects) {
        let due = self
            .backup_deadline()
            .is_some_and(|deadline| deadline <= self.now.mono_us);
        // What the view began with is fetched by its chain, not by ORDERs of this view.
        let Some(view) = self.log.live_view().filter(|_| due) else {
            return;
        };
        self.backup.behind_since_us = Some(self.now.mono_us);
        let shape = self.config.shape;
        let primary = shape.primary(view);
        let me = self.config.me;
        // The primary's twins first, then those of the other backups.
        let targets: Vec<ReplicaId> = shape
            .receivers(me.host)
            .filter(|r| r.host == primary)
            .chain(shape.receivers(me.host).filter(|r| r.host != primary))
            .collect();
        if targets.is_empty() {
            return;
        }
        let to = targets[(usize::from(me.twin.0) + self.backup.asked) % targets.len()];
        self.backup.asked += 1;
        let first = self.backup.tip.next();
        let last = Slot(self.backup.heard.0.min(first.0 + FETCH_SLOTS_MAX - 1));
        out.push(Effect::Send {
            to,
            message: Arc::new(PeerMessage::FetchSlots { first, last }),
        });
    }

    pub(super) fn backup_deadline(&self) -> Option<u64> {
        let is_backup = self.log.live_view().is_some() && !self.log.is_primary();
        if !is_backup || self.first_missing().is_some() {
            return None;
        }
        Some(self.backup.behind_since_us? + self.config.tuning.fetch_after_us)
    }
}
