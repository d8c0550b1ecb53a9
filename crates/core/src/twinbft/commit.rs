//! When a slot is committed: `Q` hosts have accepted it in one view (protocol.md 4.6).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{
    Certificate, Digest, Entry, HOSTS_MAX, HostId, ReplicaId, Slot, Statement, TwinId, View,
};

use super::Replica;
use crate::io::{Effect, Effects};
use crate::mutants::{Rule, out as is_out};

/// A batch of at most this many requests is acknowledged together with others (docs/adr/0009-lazy-acks.md).
const LAZY_REQUESTS_MAX: usize = 4;
/// Of small batches, every so many slots are acknowledged at once; at most half the pipeline.
const LAZY_SLOTS: u64 = 4;
/// And what was accepted is acknowledged after this long at the latest, in microseconds.
const LAZY_US: u64 = 2_000;
/// When the next slot follows a late ACK as soon as this, so many times in a row and never without an ACK, somebody
/// seems to wait for ACKs: a client that cannot reach the other backup, say.
const HURRY_WITHIN_US: u64 = 3_000;
const HURRY_AFTER: u32 = 3;
/// Then so many slots are acknowledged at once.
const HURRY_SLOTS: u64 = 256;
/// Acceptances that are remembered until their ACK, or a later one, is signed.
const PUT_OFF_MAX: usize = 64;
/// The longest pause between two repetitions, in microseconds.
const PAUSE_MAX_US: u64 = 1_000_000;

/// What this twin knows of the other hosts' acceptance.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// The last committed slot.
    committed: Slot,
    /// What HELLOs have restored, and the view that it belongs to.
    reopened: Option<(View, Slot)>,
    /// When this twin was last up to date, or last asked for ACKs.
    waiting_since_us: Option<u64>,
    /// How often it has asked since the last commit.
    repeats: u32,
    /// What this twin does about ACKs of its own host.
    acking: Acking,
    /// This host's newest ACK that is certified.
    own: Option<Certificate>,
    /// Each host's highest ACK of the live view.
    acks: BTreeMap<HostId, (View, Slot)>,
}

/// ACKs that this twin has put off (docs/adr/0009-lazy-acks.md).
#[derive(Clone, Debug, Default)]
struct Acking {
    /// The last slot that this twin signed an ACK for.
    signed: (View, Slot),
    /// The last acceptance that was noted: each is, when it is foreseen or read back, whichever is first.
    noted: (View, Slot),
    /// Since when acceptances go without an ACK, and how many.
    unsigned: Option<(u64, u32)>,
    /// Acceptances above `signed` whose ACK was put off. Invariant: at most [`PUT_OFF_MAX`].
    put_off: BTreeSet<(View, Slot)>,
    /// When an ACK of one slot was last signed because time was up.
    late_us: Option<u64>,
    /// How often somebody seemed to wait for such a one, in a row.
    waits_in_row: u32,
    /// Up to this slot ACKs are signed at once.
    hurry_until: Slot,
}

impl Acking {
    fn note_accepted(&mut self, slot: Slot, now_us: u64) {
        let late = self.late_us.take();
        if late.is_some_and(|at| at + HURRY_WITHIN_US > now_us) {
            self.waits_in_row += 1;
        }
        // Whoever goes on without an ACK does not wait for it.
        if self.unsigned.is_some() {
            self.waits_in_row = 0;
        }
        if self.waits_in_row >= HURRY_AFTER {
            self.hurry_until = Slot(slot.0 + HURRY_SLOTS);
            self.waits_in_row = HURRY_AFTER - 1;
        }
    }

    fn put_off(&mut self, what: (View, Slot), now_us: u64) {
        self.unsigned.get_or_insert((now_us, 0)).1 += 1;
        self.put_off.insert(what);
        if self.put_off.len() > PUT_OFF_MAX {
            self.put_off.pop_first();
        }
    }

    fn note_signed(&mut self, what: (View, Slot)) {
        self.signed = what;
        self.unsigned = None;
        self.put_off.retain(|waits| *waits > what);
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.unsigned?.0 + LAZY_US)
    }
}

impl Commit {
    pub const fn committed(&self) -> Slot {
        self.committed
    }

    /// A checkpoint is of a committed slot (5).
    pub fn stand_at(&mut self, slot: Slot) {
        self.committed = self.committed.max(slot);
    }

    /// 8: HELLO restores `n_acc`, never a commit: up to this slot, in this view, only ACKs of others show one.
    pub const fn reopen(&mut self, view: View, slot: Slot) {
        self.reopened = Some((view, slot));
    }

    /// What an acceptance in `view` up to `slot` that is not certified by another host is worth.
    pub fn counted(&self, view: View, slot: Slot) -> Slot {
        match self.reopened {
            Some((of, restored)) if of == view && slot <= restored => Slot(0),
            Some(_) | None => slot,
        }
    }

    /// Whether this host has acknowledged anything in `view` or above it.
    pub fn is_in(&self, host: HostId, view: View) -> bool {
        self.acks.get(&host).is_some_and(|(v, _)| *v >= view)
    }

    /// The highest slot that this host has acknowledged in `view`.
    pub fn acknowledged(&self, host: HostId, view: View) -> Slot {
        self.acks
            .get(&host)
            .filter(|(v, _)| *v == view)
            .map_or(Slot(0), |(_, slot)| *slot)
    }
}

impl Replica {
    /// A backup host has accepted (4.5): it tells the others, several slots at a time when nobody waits for it.
    pub(super) fn handle_accepted(
        &mut self,
        view: View,
        slot: Slot,
        history: Digest,
        out: &mut Effects,
    ) {
        if slot <= self.log.accepted().0 {
            self.count_foreseen_acks(out);
        }
        let acking = &mut self.commit.acking;
        if acking.noted >= (view, slot) {
            return;
        }
        acking.noted = (view, slot);
        acking.note_accepted(slot, self.now.mono_us);
        if self.may_ack_later(slot) {
            let now_us = self.now.mono_us;
            self.commit.acking.put_off((view, slot), now_us);
            return;
        }
        // Off the client's path: it rides with the RESULT that follows.
        self.sign_ack((view, slot, history), true, out);
    }

    /// With three hosts the client has its quorum from the backups alone, and nobody waits for an ACK of a small
    /// batch but the primary's own copy of the state (docs/adr/0009-lazy-acks.md).
    fn acks_are_lazy(&self) -> bool {
        let shape = self.config.shape;
        shape.host_quorum() == 2 && shape.hosts() == 3
    }

    /// The slots are the same for all twins, so that their signatures meet in one certificate.
    fn may_ack_later(&self, slot: Slot) -> bool {
        let tuning = &self.config.tuning;
        let every = LAZY_SLOTS.min(tuning.pipeline_depth / 2).max(1);
        self.acks_are_lazy()
            && self.is_small_batch(slot)
            && slot > self.commit.acking.hurry_until
            && !slot.0.is_multiple_of(every)
            && !slot.0.is_multiple_of(tuning.checkpoint_slots)
    }

    fn is_small_batch(&self, slot: Slot) -> bool {
        let data = self.slots.get(slot);
        data.is_some_and(|data| data.requests.len() <= LAZY_REQUESTS_MAX)
    }

    /// How many of the slots that the leader has proposed up to `tip` make requests gather (4.2): those that are not
    /// committed, but for small ones that are decided, because their ACKs are late on purpose.
    pub(super) fn slots_under_way(&self, tip: Slot) -> u64 {
        let first = self.commit.committed.next();
        if !self.acks_are_lazy() {
            return (tip.0 + 1).saturating_sub(first.0);
        }
        let under_way = (first.0..=tip.0).filter(|slot| !self.is_small_batch(Slot(*slot)));
        under_way.count() as u64
    }

    fn sign_ack(
        &mut self,
        (view, slot, history): (View, Slot, Digest),
        lazy: bool,
        out: &mut Effects,
    ) {
        self.commit.acking.note_signed((view, slot));
        let statement = Statement::Ack {
            view,
            slot,
            history,
            beat: None,
        };
        // An acceptance that is only foreseen: nothing may leave before it is read back.
        if slot > self.log.accepted().0 && !is_out(Rule::Release) {
            self.foresee_ack(slot, statement, lazy, out);
        } else {
            self.sign_decided(&statement, lazy, out);
        }
    }

    /// A sibling signed an ACK: what the log has decided is signed by all, or there would be no certificate. A slot below
    /// one that the log has accepted is accepted too, but the log need not have decided that one by itself: of a bad twin
    /// that posts its ACCEPTs in another order only the highest may count.
    pub(super) fn join_ack(&mut self, view: View, slot: Slot, history: Digest, out: &mut Effects) {
        let decided = self.log.live_view() == Some(view)
            && slot <= self.surely_accepted()
            && self.commit.acking.put_off.contains(&(view, slot))
            && self.history_of(slot) == Some(history);
        if decided && !self.log.is_primary() && self.commit.acking.signed < (view, slot) {
            self.sign_ack((view, slot, history), false, out);
        }
    }

    /// What was accepted is acknowledged in time.
    fn ack_timer(&mut self, out: &mut Effects) {
        let acking = &mut self.commit.acking;
        if acking.deadline().is_none_or(|at| at > self.now.mono_us) {
            return;
        }
        let alone = acking.unsigned.take().is_some_and(|(_, count)| count == 1);
        let Some(view) = self.log.live_view() else {
            return;
        };
        let (slot, history) = self.log.accepted();
        if self.commit.acking.signed < (view, slot) && !self.log.is_primary() {
            self.commit.acking.late_us = alone.then_some(self.now.mono_us);
            self.sign_ack((view, slot, history), false, out);
        }
    }

    /// 4.6: with Q ≤ 2 the primary alone needs ACKs. One twin sends them to the leader, which passes them on
    /// to its siblings through the postbox; who does not get them so asks for them.
    pub(super) fn send_ack(&mut self, view: View, certificate: Certificate, out: &mut Effects) {
        let shape = self.config.shape;
        let beats = matches!(
            certificate.signed.statement,
            Statement::Ack { beat: Some(_), .. }
        );
        self.commit.own = Some(certificate.clone());
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
        let newest = self.commit.own.as_ref().filter(|certificate| {
            let signed = &certificate.signed.statement;
            matches!(signed, Statement::Ack { view, .. } if self.log.live_view() == Some(*view))
        });
        if let Some(certificate) = newest {
            let message = Arc::new(PeerMessage::Certificate(certificate.clone()));
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
        let mut accepted = [Slot(0); HOSTS_MAX as usize];
        for (host, accepted) in shape.all_hosts().zip(&mut accepted) {
            *accepted = if host == self.config.host() {
                self.commit.counted(view, own)
            } else if host == primary {
                // Its ORDER certificate counts as its own acceptance.
                self.commit.counted(view, self.backup.tip().max(own))
            } else {
                self.commit.acknowledged(host, view)
            };
        }
        accepted.sort_unstable_by(|a, b| b.cmp(a));
        // What this host has not accepted itself is not executed here, whoever else has it: its RESULT would come too early
        // to count. A host that lags by more than a checkpoint cannot be waited for: its twins go on, each at its own pace,
        // until they meet at a checkpoint and take the host along (5, JUMP).
        let quorum = if is_out(Rule::CommitQuorum) {
            1
        } else {
            shape.host_quorum()
        };
        let known = accepted[quorum - 1];
        let interval = self.config.tuning.checkpoint_slots;
        let lags_behind = |slot: Slot| own.0 + interval < slot.0;
        let committed = if lags_behind(known) {
            known
        } else {
            known.min(own)
        };
        let tip = self.backup.tip();
        let wanted = if lags_behind(tip) { tip } else { own };
        let progresses = committed > self.commit.committed;
        self.commit.committed = self.commit.committed.max(committed);
        if self.commit.committed >= wanted {
            self.commit.waiting_since_us = None;
            self.commit.repeats = 0;
        } else if self.commit.waiting_since_us.is_none() || progresses {
            // While slots are committed there is nothing to ask for.
            self.commit.waiting_since_us = Some(self.now.mono_us);
            self.commit.repeats = 0;
        }
    }

    /// Who has accepted more than it knows to be committed asks the others for their ACKs: the answer to a fetch
    /// carries them.
    pub(super) fn commit_timer(&mut self, out: &mut Effects) {
        self.ack_timer(out);
        let due = self
            .question_deadline()
            .is_some_and(|deadline| deadline <= self.now.mono_us);
        if !due {
            return;
        }
        self.commit.waiting_since_us = Some(self.now.mono_us);
        self.commit.repeats += 1;
        let wanted = self.first_not_held();
        let question = Arc::new(PeerMessage::FetchSlots {
            first: wanted,
            last: wanted,
        });
        self.ask_around(self.commit.repeats, &question, out);
    }

    pub(super) fn commit_deadline(&self) -> Option<u64> {
        let deadlines = [self.commit.acking.deadline(), self.question_deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// The leader repeats its ORDERs instead, as soon as it says anything.
    fn question_deadline(&self) -> Option<u64> {
        if self.is_leader() && !self.recovery.is_silent() {
            return None;
        }
        let pause = self.pause_us(self.commit.repeats);
        Some(self.commit.waiting_since_us? + pause)
    }

    /// How long to wait for an answer that did not come so often: twice as long each time, up to a second.
    pub(super) fn pause_us(&self, repeats: u32) -> u64 {
        let first = self.config.tuning.fetch_after_us;
        (first << repeats.min(10)).min(PAUSE_MAX_US).max(first)
    }

    /// The slot after all that this twin holds: who asks for it wants the certificates that come with the answer, and
    /// no bodies that it has.
    pub(super) fn first_not_held(&self) -> Slot {
        self.backup.tip().max(self.log.accepted().0).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One slot that is acknowledged because time was up, and the next one right behind it.
    fn late(acking: &mut Acking, slot: u64, now_us: u64) {
        acking.note_accepted(Slot(slot), now_us);
        acking.put_off((View(0), Slot(slot)), now_us);
        assert!(acking.deadline().is_some_and(|at| at <= now_us + LAZY_US));
        acking.note_signed((View(0), Slot(slot)));
        acking.late_us = Some(now_us + LAZY_US);
    }

    #[test]
    fn who_waits_for_late_acks_again_and_again_gets_them_at_once() {
        let mut acking = Acking::default();
        let mut now_us = 0;
        for slot in 1..=3 {
            late(&mut acking, slot, now_us);
            now_us += LAZY_US + 500;
        }
        assert_eq!(acking.hurry_until, Slot(0));
        acking.note_accepted(Slot(4), now_us);
        assert_eq!(acking.hurry_until, Slot(4 + HURRY_SLOTS));
    }

    #[test]
    fn who_goes_on_without_an_ack_or_comes_back_later_does_not_wait_for_it() {
        let mut acking = Acking::default();
        for slot in 0..10 {
            let now_us = slot * (LAZY_US + HURRY_WITHIN_US);
            late(&mut acking, slot + 1, now_us);
        }
        let mut now_us = 1_000_000;
        for slot in (20..60).step_by(2) {
            late(&mut acking, slot, now_us);
            // The next but one comes without an ACK of the next.
            now_us += LAZY_US + 500;
            acking.note_accepted(Slot(slot + 1), now_us);
            acking.put_off((View(0), Slot(slot + 1)), now_us);
            now_us += 100;
            acking.note_accepted(Slot(slot + 2), now_us);
        }
        assert_eq!(acking.hurry_until, Slot(0));
    }
}
