//! The host's log was lost: each twin says what it remembers, and the host goes on from that (protocol.md 8, HELLO).

use std::collections::BTreeSet;
use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{
    Certificate, Digest, Entry, HelloState, HostId, Incarnation, ReplicaId, Slot, Statement,
    TwinId, View,
};

use super::Replica;
use crate::evidence::{Event, EventKind};
use crate::fault::PeerFault;
use crate::io::{Effect, Effects};
use crate::record::Record;

/// The end of a log, and the view that it was accepted in.
type End = (View, Slot, Digest);

/// With `m = q` a sibling's LEAVE is believed without its certificates, which may be spoilt for this twin alone, when it lies no
/// further than this above what this twin knows of itself. A twin that lies silences such a host in any case.
const LEAVE_AHEAD_MAX: u64 = 64;

/// The highest LEAVE of a sibling that rests on certificates, while the host waits for HELLOs.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    view: View,
    /// What it rests on.
    certificates: Vec<Certificate>,
    /// Whether this twin has shown its own.
    has_shown: bool,
}

impl Replica {
    /// What this twin's write-ahead log and checkpoint say of the epoch before: nothing lower than what the host had.
    fn claim(&self) -> HelloState {
        let base = self.stable;
        let mut best: (View, Slot, Digest) = (View(0), Slot(0), Digest::ZERO);
        let mut leave = View(0);
        let mut jump = None;
        for (view, slot, history) in self.recovery.installs() {
            if (view, slot) >= (best.0, best.1) {
                best = (view, slot, history);
            }
        }
        for promise in self.recovery.promises() {
            let (view, slot, history) = match promise {
                Entry::Accept {
                    view,
                    slot,
                    history,
                }
                | Entry::NvAccept {
                    view,
                    slot,
                    history,
                }
                | Entry::Endorse {
                    view,
                    slot,
                    history,
                    ..
                }
                | Entry::Sign {
                    statement:
                        Statement::Order {
                            view,
                            slot,
                            history,
                        },
                    ..
                } => (*view, *slot, *history),
                Entry::Leave { view, .. } => {
                    leave = leave.max(*view);
                    continue;
                }
                Entry::Jump { slot, history } => {
                    jump = Some((*slot, *history));
                    continue;
                }
                _ => continue,
            };
            // A later attempt takes the place of an earlier one.
            if (view, slot) >= (best.0, best.1) {
                best = (view, slot, history);
            }
        }
        let checkpoint = self.history_of(base).map(|history| (base, history));
        for (slot, history) in jump.into_iter().chain(checkpoint) {
            if slot > best.1 {
                best = (best.0, slot, history);
            }
        }
        HelloState {
            leave,
            last_normal: best.0,
            accepted: best.1,
            history: best.2,
            incarnations: self.claimed_incarnations(),
        }
    }

    /// What an operator has ordered a twin to say that remembers nothing: the highest claim of its siblings.
    fn claim_of_siblings(&self) -> Option<HelloState> {
        let me = self.config.twin();
        let siblings = self.log.hellos().filter(|(twin, _)| *twin != me);
        let claims = siblings.map(|(_, hello)| hello);
        claims.max_by_key(|hello| (hello.last_normal, hello.accepted))
    }

    fn claimed_incarnations(&self) -> Vec<Incarnation> {
        let hosts = self.config.shape.all_hosts();
        let promised = |of: HostId| {
            let promises = self.recovery.promises().iter();
            let named = promises.filter_map(|promise| match promise {
                Entry::Peer {
                    host, incarnation, ..
                } if *host == of => Some(*incarnation),
                _ => None,
            });
            named.max().unwrap_or_default()
        };
        hosts
            .map(|host| promised(host).max(self.shown_incarnation(host)))
            .collect()
    }

    /// While the host waits for HELLOs: this twin's own, and again when a sibling has left further.
    pub(super) fn poll_hello(&mut self, out: &mut Effects) {
        if self.recovery.remembers() {
            self.repeat_accusations(out);
        }
        let me = self.config.twin();
        if self.recovery.remembers() {
            self.poll_raise(out);
        }
        let mut claim = if self.recovery.remembers() {
            self.claim()
        } else if let Some(claim) = self.claim_of_siblings() {
            claim
        } else {
            return;
        };
        let said = self.log.hellos().find(|(twin, _)| *twin == me);
        let said = self
            .recovery
            .hello()
            .cloned()
            .or(said.map(|(_, hello)| hello));
        self.show_leave(out);
        if let Some(left) = self.left_by_siblings(&claim) {
            claim.leave = left;
        }
        self.promise_leave(claim.leave, out);
        self.show_incarnations(out);
        if said.as_ref() != Some(&claim) {
            self.recovery.note_hello(claim.clone());
            for host in self.config.shape.all_hosts() {
                self.persist_question(host, out);
            }
            out.post(Entry::Hello { state: claim });
        }
        self.poll_doubt(out);
    }

    /// 6: what this twin's own LEAVE rests on, for its siblings.
    fn show_leave(&mut self, out: &mut Effects) {
        if std::mem::replace(&mut self.recovery.shown.has_shown, true) {
            return;
        }
        let promises = self.recovery.promises().iter();
        let leaves = promises.filter(|promise| matches!(promise, Entry::Leave { .. }));
        let highest = leaves.max_by_key(|promise| match promise {
            Entry::Leave { view, .. } => *view,
            _ => View(0),
        });
        if let Some(leave) = highest.cloned() {
            out.post(leave);
        }
    }

    /// 6: a twin leaves with WISH(`≥ w`) of `Q` hosts, one of which is its own and has no certificate, or with NEW-VIEW(`≥ w`).
    pub(super) fn note_shown(&mut self, sender: TwinId, view: View, certificates: &[Certificate]) {
        if !self.log.is_opening()
            || sender == self.config.twin()
            || view <= self.recovery.shown.view
        {
            return;
        }
        let hosts = usize::from(self.config.shape.hosts());
        let from = ReplicaId {
            host: self.config.host(),
            twin: sender,
        };
        let mut wishing = BTreeSet::new();
        let mut shown = Vec::new();
        let mut is_installed = false;
        for certificate in certificates.iter().take(hosts) {
            let Ok(signed) = self.verify(from, certificate) else {
                continue;
            };
            let level = match &signed.statement {
                Statement::Wish { view, .. } | Statement::ViewChange { view, .. } => *view,
                Statement::NewView { view: of, .. }
                    if self.config.shape.primary(*of) == signed.host =>
                {
                    is_installed |= *of >= view;
                    *of
                }
                _ => continue,
            };
            if level >= view && wishing.insert(signed.host) {
                shown.push(certificate.clone());
            }
        }
        if is_installed || wishing.len() + 1 >= self.config.shape.host_quorum() {
            self.recovery.shown.view = view;
            self.recovery.shown.certificates = shown;
        }
    }

    /// 8: the highest LEAVE of siblings above this twin's own that one of them, who is correct, has posted: it rests on
    /// certificates, or `q` of them say so. What one twin alone says without them could be any view, from which its host
    /// never came back; the host does not go on below it either.
    fn left_by_siblings(&self, own: &HelloState) -> Option<View> {
        let (me, quorum) = (self.config.twin(), self.config.shape.twin_quorum());
        let siblings = self.log.hellos().filter(|(twin, _)| *twin != me);
        let mut leaves: Vec<View> = siblings.map(|(_, hello)| hello.leave).collect();
        leaves.sort_unstable_by(|a, b| b.cmp(a));
        let known = own.leave.max(own.last_normal).max(self.views.highest());
        let near = View(known.0.saturating_add(LEAVE_AHEAD_MAX));
        let believed = |at: usize, view: View| {
            view <= self.recovery.shown.view
                || at + 1 >= quorum
                || self.recovery.follows()
                || (self.config.shape.unanimous() && view <= near)
        };
        let mut leaves = leaves.into_iter().enumerate();
        let highest = leaves.find(|(at, view)| believed(*at, *view));
        highest
            .map(|(_, view)| view)
            .filter(|view| *view > own.leave)
    }

    /// 3, durability rule: what it says it has left, it must not forget. The host's VIEW-CHANGE may rest on this.
    fn promise_leave(&mut self, view: View, out: &mut Effects) {
        if view == View(0) {
            return;
        }
        let certificates = if view <= self.recovery.shown.view {
            self.recovery.shown.certificates.clone()
        } else {
            Vec::new()
        };
        let promise = Entry::Leave { view, certificates };
        let promises = self.recovery.promises().iter();
        let mut leaves =
            promises.filter(|p| matches!(p, Entry::Leave { view: of, .. } if *of >= view));
        if leaves.next().is_none() {
            out.push(Effect::Persist(Record::Promise(promise.clone())));
            self.recovery.note_raised(promise);
        }
    }

    /// Its own slots of the write-ahead log: a sibling that is behind fetches them, and what this one lacks joins them.
    pub(super) fn take_over_claim(&mut self) {
        if self.recovery.remembers() {
            let claim = self.claim();
            let _nothing_replaced = self.take_over_chain(claim.accepted, claim.history);
        }
    }

    /// The highest claim of a sibling, when it is above this twin's own.
    fn higher_claim(&self) -> Option<(TwinId, End)> {
        let (me, own) = (self.config.twin(), self.claim());
        let siblings = self.log.hellos().filter(|(twin, _)| *twin != me);
        let claims = siblings.map(|(twin, hello)| {
            let end = (hello.last_normal, hello.accepted, hello.history);
            (twin, end)
        });
        let highest = claims.max_by_key(|(_, (view, slot, _))| (*view, *slot));
        highest.filter(|(_, (view, slot, _))| (*view, *slot) > (own.last_normal, own.accepted))
    }

    /// 8: one that is behind catches up only on another host's ORDER certificate, or, for its own host's ORDERs, on the checks of
    /// an ENDORSE, and says HELLO again. Its sibling has that certificate in its write-ahead log: it vouches for what its
    /// batch extends, too (4.5), so the slots below come by the hash chain.
    fn poll_raise(&mut self, out: &mut Effects) {
        let Some((sibling, end)) = self.higher_claim() else {
            return;
        };
        let (view, slot, history) = end;
        let is_own = self.config.shape.primary(view) == self.config.host();
        if !is_own && self.recovery.vouched() != Some(end) {
            if self.recovery.may_ask(self.now.mono_us) {
                let to = ReplicaId {
                    host: self.config.host(),
                    twin: sibling,
                };
                let (first, last) = (slot, slot);
                let message = Arc::new(PeerMessage::FetchSlots { first, last });
                out.push(Effect::Send { to, message });
            }
            return;
        }
        if is_own && !self.is_joined((slot, history)) {
            self.want(slot, history);
            return;
        }
        // What is not authentic must not even come into the write-ahead log.
        if is_own && !self.endorses(end) {
            return;
        }
        if !self.hold(slot, history, out) {
            return;
        }
        if !self.owns(slot, history) && !self.fetched_contradicts((slot, history)) {
            self.join_chain((slot, history));
        }
        let promise = Entry::Accept {
            view,
            slot,
            history,
        };
        out.push(Effect::Persist(Record::Promise(promise.clone())));
        self.recovery.note_raised(promise);
    }

    /// 8: what this host has ordered and this twin does not remember passes the checks of an ENDORSE, but for the clock:
    /// bodies are authentic because their clients have sent them here again, as they do until they are answered.
    /// That a later view of this host's own was installed, nobody else vouches for.
    fn endorses(&self, (view, slot, history): End) -> bool {
        let own = self.claim();
        let base = (own.accepted, own.history);
        let Some(above) = self.joined_above((slot, history), base) else {
            return false;
        };
        let mut before_us = self.timestamp_of(own.accepted);
        let mut seen = BTreeSet::new();
        view == own.last_normal
            && above.into_iter().all(|fetched| {
                let is_later = fetched.timestamp_us > before_us;
                before_us = fetched.timestamp_us;
                is_later
                    && fetched.bodies.iter().all(|body| {
                        self.pool.find(&body.reference()).is_some()
                            && seen.insert((body.client, body.seq))
                    })
            })
    }

    /// When the certificate that vouches for a sibling's claim is asked for again.
    pub(super) fn claim_deadline(&self) -> Option<u64> {
        let (_, end) = self.higher_claim().filter(|_| self.recovery.remembers())?;
        let is_own = self.config.shape.primary(end.0) == self.config.host();
        (!is_own && self.recovery.vouched() != Some(end)).then(|| self.recovery.ask_at_us())
    }

    /// An ORDER of another host, while this host waits for HELLOs: it vouches for what a sibling claims.
    pub(super) fn note_claimed(
        &mut self,
        from: ReplicaId,
        certificate: &Certificate,
    ) -> Result<(), PeerFault> {
        let signed = self.verify(from, certificate)?;
        let Statement::Order {
            view,
            slot,
            history,
        } = signed.statement
        else {
            return Ok(());
        };
        let end = (view, slot, history);
        if self.higher_claim().is_some_and(|(_, claim)| claim == end) {
            self.recovery.note_vouched(end);
        }
        Ok(())
    }

    /// A sibling that waits for HELLOs, too, wants the ORDER that this twin's claim rests on.
    pub(super) fn handle_claim_asked(&mut self, from: ReplicaId, slot: Slot, out: &mut Effects) {
        let quorum = self.config.shape.twin_quorum();
        let order = self
            .slots
            .get_mut(slot)
            .and_then(|data| data.order(slot, quorum));
        if let Some(message) = order {
            out.push(Effect::Send { to: from, message });
        }
    }

    /// The host goes on in the new epoch. What a HELLO raised is committed only by what comes now.
    pub(super) fn handle_opened(&mut self, out: &mut Effects) {
        self.adopt_log(out);
        self.rebuild_in_log(self.log.accepted().0);
        let (slot, view) = (self.log.accepted().0, self.log.current_view());
        self.commit.reopen(view, slot);
        if self.recovery.is_ordered() {
            out.push(Effect::Evidence(Event {
                host: self.config.host(),
                twin: None,
                slot: Some(slot),
                kind: EventKind::ByOrder,
            }));
        }
    }
}
