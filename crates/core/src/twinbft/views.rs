//! A view is left and the next one is entered (protocol.md 6).
//!
//! WISHes of `Q` hosts make a twin post LEAVE; the log fences; the host's VIEW-CHANGE is what its log says at the fence;
//! the leader of the next view proposes the log with which it begins once it holds it; everybody installs it with the
//! log in hand. What is fixed is read off the log ([`crate::hostlog`]); here is what a twin hears, holds and repeats.

mod repetition;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{
    Certificate, Digest, Entry, Epoch, HostId, Incarnation, Position, ReplicaId, Signed, Slot,
    Statement, TwinId, View,
};

use super::Replica;
use super::contained::Contained;
use crate::hostlog::{Installed, NvProposal, Wish};
use crate::io::{Effect, Effects};
use crate::mutants::{Rule, out as is_out};
use crate::record::Record;

/// NV-PROPOSEs that a leader posts for one view, unless its log shows none of them for long.
const PROPOSALS_MAX: usize = 16;
/// How often a WISH that takes one back is sent again.
const WITHDRAWALS_MAX: u8 = 8;

/// A twin signs a new WISH of its host at most this often: the newest counts, and a bad twin may change its mind for ever.
const WISH_EVERY_US: u64 = 20_000;

/// What numbers a WISH among those of its host.
type WishOrder = (Incarnation, Epoch, Position);

/// What another host has said about views.
#[derive(Clone, Debug, Default)]
struct Remote {
    /// Its newest WISH.
    wish: Option<(WishOrder, View, Certificate)>,
    /// Its VIEW-CHANGE for the highest view.
    view_change: Option<(View, Certificate)>,
    /// Its NEW-VIEW for the highest view.
    new_view: Option<(View, Certificate)>,
}

impl Remote {
    /// 6: a VIEW-CHANGE(w) or NEW-VIEW(w) counts as its host's WISH(w); a WISH never falls below it.
    fn level(&self) -> (View, Option<&Certificate>) {
        let wish = self.wish.as_ref().map(|(_, view, c)| (*view, c));
        let view_change = self.view_change.as_ref().map(|(view, c)| (*view, c));
        let new_view = self.new_view.as_ref().map(|(view, c)| (*view, c));
        [wish, view_change, new_view]
            .into_iter()
            .flatten()
            .max_by_key(|(view, _)| *view)
            .map_or((View(0), None), |(view, c)| (view, Some(c)))
    }
}

/// What a twin knows of views besides its host's log.
#[derive(Clone, Debug, Default)]
pub struct Views {
    /// The highest LEAVE that this twin has posted, read back or not.
    left: View,
    /// That entry, as this twin's write-ahead log has it.
    leave: Option<Entry>,
    remotes: BTreeMap<HostId, Remote>,
    /// The highest level of another host.
    highest: View,
    /// The sets of VIEW-CHANGEs for which this leader has proposed a log.
    proposed: BTreeSet<Vec<(HostId, Digest)>>,
    /// VIEW-CHANGEs that this leader has passed on to its siblings.
    relayed: BTreeSet<Digest>,
    /// NV-PROPOSEs that this twin has voted for.
    endorsed: BTreeSet<Position>,
    /// The view for which this twin has posted NV-ACCEPT.
    accepted: View,
    /// A log of the view that is being entered, when this twin has the log with which it began in a snapshot alone.
    pub(super) contained: Contained,
    /// When to send again, and how long to wait after that.
    repeat: Option<(u64, u64)>,
    /// When to look again for what this twin has posted, and how long to wait after that.
    again: (u64, u64),
    /// Counts the repetitions, to serve another twin each time.
    repeated: u8,
    /// How often a WISH that takes one back is sent again: nothing supersedes it.
    withdrawals_left: u8,
    /// When this twin last signed a WISH, and when it is to sign the newest one.
    wish_signed_us: Option<u64>,
    wish_due_us: Option<u64>,
    /// When to ask for the NEW-VIEW of a higher view again.
    ask_at_us: u64,
    /// Views that this host has installed since the process began.
    changes: u64,
}

impl Views {
    pub const fn left(&self) -> View {
        self.left
    }

    /// The highest level of another host.
    pub const fn highest(&self) -> View {
        self.highest
    }

    pub const fn accepted(&self) -> View {
        self.accepted
    }

    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether another host has left this view, by its VIEW-CHANGE.
    pub fn is_left_by_another(&self, view: View) -> bool {
        let left = |r: &Remote| r.view_change.as_ref().is_some_and(|(of, _)| *of > view);
        self.highest > view && self.remotes.values().any(left)
    }

    /// What this twin has said in an earlier life (8): up to where it has left, the LEAVE that its write-ahead log has, and the
    /// view for which it has posted NV-ACCEPT.
    pub fn recall(&mut self, left: View, leave: Option<Entry>, accepted: View) {
        self.left = self.left.max(left);
        self.leave = leave;
        self.accepted = self.accepted.max(accepted);
    }
}

impl Replica {
    // ---- what others say ----

    /// A verified WISH, VIEW-CHANGE or NEW-VIEW of another host.
    pub(super) fn note_view_statement(&mut self, signed: &Signed, certificate: &Certificate) {
        let remote = self.views.remotes.entry(signed.host).or_default();
        match &signed.statement {
            Statement::Wish {
                view,
                epoch,
                position,
            } => {
                let order = (signed.incarnation, *epoch, *position);
                // Only a host's newest counts, and a lower one withdraws.
                if remote
                    .wish
                    .as_ref()
                    .is_none_or(|(newest, ..)| order > *newest)
                {
                    remote.wish = Some((order, *view, certificate.clone()));
                }
            }
            Statement::ViewChange { view, .. } => {
                // 8: what a host said before it forgot gives way to what it says now, of whichever view.
                let held = remote.view_change.as_ref();
                let before = held.map(|(_, c)| c.signed.incarnation);
                if before.is_some_and(|before| before < signed.incarnation) {
                    remote.view_change = None;
                }
                if before.is_none_or(|before| before <= signed.incarnation) {
                    replace(&mut remote.view_change, *view, certificate);
                }
            }
            Statement::NewView { view, .. } => replace(&mut remote.new_view, *view, certificate),
            Statement::Order { .. }
            | Statement::Ack { .. }
            | Statement::Reply { .. }
            | Statement::Forward { .. }
            | Statement::Checkpoint { .. }
            | Statement::Heartbeat { .. }
            | Statement::Committed { .. }
            | Statement::SlotResult { .. }
            | Statement::Recovery { .. }
            | Statement::RecoveryAnswer { .. }
            | Statement::Report { .. } => return,
        }
        self.views.highest = self.views.highest.max(remote.level().0);
    }

    /// The certificates that a sibling's LEAVE rests on: they help this twin to post its own.
    pub(super) fn handle_leave(
        &mut self,
        sender: TwinId,
        view: View,
        certificates: &[Certificate],
        out: &mut Effects,
    ) {
        self.note_shown(sender, view, certificates);
        for certificate in certificates
            .iter()
            .take(usize::from(self.config.shape.hosts()))
        {
            self.handle_relay(sender, certificate, out);
        }
    }

    /// 6: a host that sees a higher view asks for its NEW-VIEW.
    pub(super) fn note_higher_view(&mut self, from: ReplicaId, view: View, out: &mut Effects) {
        let known = self.new_view_in_hand().map_or(View(0), |(view, ..)| view);
        if view <= self.log.current_view().max(known) || self.views.ask_at_us > self.now.mono_us {
            return;
        }
        self.views.ask_at_us = self.now.mono_us + self.config.tuning.fetch_after_us;
        // What a sibling passed on comes from the primary of that view.
        let relayed = from.host == self.config.host();
        let host = if relayed {
            self.config.shape.primary(view)
        } else {
            from.host
        };
        if host == self.config.host() {
            return;
        }
        let twin = from.twin;
        let message = Arc::new(PeerMessage::FetchNewView { view });
        out.push(Effect::Send {
            to: ReplicaId { host, twin },
            message,
        });
    }

    /// Somebody lacks the NEW-VIEW of this view: whoever has it, or a later one, passes it on.
    pub(super) fn handle_fetch_new_view(&self, from: ReplicaId, view: View, out: &mut Effects) {
        let own = self.log.new_view().and_then(|s| self.book.certificate(&s));
        let others = self.new_view_in_hand().map(|(.., c)| c.clone());
        let newest = [own, others]
            .into_iter()
            .flatten()
            .filter_map(|c| Some((new_view_of(&c)?.0, c)))
            .max_by_key(|(view, _)| *view)
            .filter(|(held, _)| *held >= view);
        if let Some((_, certificate)) = newest {
            let message = Arc::new(PeerMessage::Certificate(certificate));
            out.push(Effect::Send { to: from, message });
        }
    }

    /// The NEW-VIEW of the highest view that another host has certified here.
    pub(super) fn new_view_in_hand(&self) -> Option<(View, Slot, Digest, &Certificate)> {
        let remotes = self.views.remotes.values();
        let newest = remotes
            .filter_map(|r| r.new_view.as_ref())
            .max_by_key(|(view, _)| *view)?;
        let (view, slot, history) = new_view_of(&newest.1)?;
        Some((view, slot, history, &newest.1))
    }

    // ---- what becomes possible ----

    /// Leaves, proposes, votes, accepts and adopts as soon as that is possible.
    pub(super) fn poll_views(&mut self, out: &mut Effects) {
        if self.views.highest > self.log.current_view() || self.log.wish().is_some() {
            self.poll_leave(out);
        }
        if let Some(view) = self.log.entering() {
            self.poll_entering(view, out);
        }
    }

    /// 6: WISH(≥ w) of `Q` hosts, for the largest such `w`, or NEW-VIEW(w): LEAVE(w) with those certificates.
    fn poll_leave(&mut self, out: &mut Effects) {
        let current = self.log.current_view();
        let own = self.log.wish().map_or(current, |wish| wish.view);
        let mut levels: Vec<View> = self.views.remotes.values().map(|r| r.level().0).collect();
        levels.push(own);
        levels.resize(usize::from(self.config.shape.hosts()), View(0));
        levels.sort_unstable_by(|a, b| b.cmp(a));
        let wished = levels[self.config.shape.host_quorum() - 1];
        let installed = self.new_view_in_hand().map_or(View(0), |(view, ..)| view);
        let view = wished.max(installed);
        if view <= current.max(self.views.left) {
            return;
        }
        self.views.left = view;
        self.repeat_soon();
        self.post_leave(view, out);
    }

    fn post_leave(&mut self, view: View, out: &mut Effects) {
        let new_view = self.new_view_in_hand().filter(|(of, ..)| *of >= view);
        let certificates = match new_view {
            Some((.., certificate)) => vec![certificate.clone()],
            None => self.wishes_for(view),
        };
        let entry = Entry::Leave { view, certificates };
        self.views.leave = Some(entry.clone());
        out.push(Effect::Persist(Record::Promise(entry.clone())));
        out.post(entry);
    }

    /// What others have certified that counts as a WISH for this view or a later one.
    pub(super) fn wishes_for(&self, view: View) -> Vec<Certificate> {
        let remotes = self.views.remotes.values();
        remotes
            .filter(|r| r.level().0 >= view)
            .filter_map(|r| r.level().1.cloned())
            .take(self.config.shape.host_quorum())
            .collect()
    }

    fn poll_entering(&mut self, view: View, out: &mut Effects) {
        let shape = self.config.shape;
        if shape.leader(view) == self.config.me {
            self.poll_nv_propose(view, out);
        } else if shape.primary(view) == self.config.host() {
            self.poll_nv_endorse(view, out);
        } else {
            self.poll_nv_accept(view, out);
        }
    }

    /// The VIEW-CHANGEs for this view that this twin has, its own host's first.
    fn view_changes(&self, view: View) -> Vec<Signed> {
        let own = self.log.view_change().map(|s| self.signed(s));
        let others = self.views.remotes.values().filter_map(|r| {
            let (of, certificate) = r.view_change.as_ref()?;
            (*of == view).then(|| certificate.signed.clone())
        });
        own.into_iter().chain(others).collect()
    }

    /// 6: while undecided the leader proposes a log for each new usable set of VIEW-CHANGEs, once it holds it. Its own
    /// host's is in all of them: no sibling can lack that one.
    fn poll_nv_propose(&mut self, view: View, out: &mut Effects) {
        if self.log.view_change().is_none() {
            return;
        }
        let changes = self.view_changes(view);
        let quorum = self.config.shape.host_quorum();
        let Some((own, others)) = changes.split_first() else {
            return;
        };
        for chosen in subsets(others, quorum - 1) {
            if self.views.proposed.len() >= PROPOSALS_MAX {
                return;
            }
            let mut set: Vec<&Signed> = chosen;
            set.push(own);
            set.sort_unstable_by_key(|signed| signed.host);
            let Some((slot, history)) = choose(&set) else {
                continue;
            };
            let hosts: Vec<(HostId, Digest)> = set.iter().map(|s| (s.host, s.digest())).collect();
            if self.views.proposed.contains(&hosts) || !self.hold(slot, history, out) {
                continue;
            }
            self.relay_view_changes(&hosts, out);
            self.views.proposed.insert(hosts.clone());
            out.post(Entry::NvPropose {
                view,
                hosts,
                slot,
                history,
            });
        }
    }

    /// A sibling can verify an NV-PROPOSE only with the VIEW-CHANGEs that it names.
    fn relay_view_changes(&mut self, hosts: &[(HostId, Digest)], out: &mut Effects) {
        for (host, digest) in hosts {
            let remote = self.views.remotes.get(host);
            if let Some((_, certificate)) = remote.and_then(|r| r.view_change.as_ref())
                && self.views.relayed.insert(*digest)
            {
                let certificate = certificate.clone();
                out.post(Entry::Relay { certificate });
            }
        }
    }

    /// 6: a sibling endorses what it has verified, once it holds that log too.
    fn poll_nv_endorse(&mut self, view: View, out: &mut Effects) {
        let me = self.config.twin();
        let changes = self.view_changes(view);
        let open: Vec<NvProposal> = self
            .log
            .nv_proposals()
            .filter(|p| !p.has_vote_of(me) && !self.views.endorsed.contains(&p.position))
            .cloned()
            .collect();
        for proposal in open {
            let set: Option<Vec<&Signed>> = proposal
                .hosts
                .iter()
                .map(|(host, digest)| {
                    let mut all = changes.iter();
                    all.find(|s| s.host == *host && s.digest() == *digest)
                })
                .collect();
            let chosen = set.and_then(|set| choose(&set));
            let is_chosen = chosen == Some((proposal.slot, proposal.history));
            if (is_chosen || is_out(Rule::NvChosen))
                && self.hold(proposal.slot, proposal.history, out)
            {
                self.views.endorsed.insert(proposal.position);
                out.post(Entry::NvEndorse {
                    view,
                    proposal: proposal.position,
                });
            }
        }
    }

    /// 6: at another host a twin that holds the chosen log posts NV-ACCEPT.
    fn poll_nv_accept(&mut self, view: View, out: &mut Effects) {
        let Some((of, slot, history, _)) = self.new_view_in_hand() else {
            return;
        };
        if of != view || self.views.accepted >= view {
            return;
        }
        let holds = if slot < self.stable {
            self.hold_as_snapshot(view, slot, out)
        } else {
            self.hold(slot, history, out)
        };
        if !holds {
            return;
        }
        self.views.accepted = view;
        let entry = Entry::NvAccept {
            view,
            slot,
            history,
        };
        out.push(Effect::Persist(Record::Promise(entry.clone())));
        out.post(entry);
    }

    // ---- what the log has decided ----

    /// The host has a new WISH, or takes one back.
    pub(super) fn handle_wished(&mut self, out: &mut Effects) {
        let due_us = self.views.wish_signed_us.map_or(0, |at| at + WISH_EVERY_US);
        if due_us > self.now.mono_us {
            self.views.wish_due_us = Some(due_us);
        } else {
            self.sign_wish(out);
        }
    }

    fn sign_wish(&mut self, out: &mut Effects) {
        self.views.wish_due_us = None;
        let Some(Wish { view, position }) = self.log.last_wish() else {
            return;
        };
        self.views.wish_signed_us = Some(self.now.mono_us);
        let statement = Statement::Wish {
            view,
            epoch: self.config.epoch,
            position,
        };
        self.sign_decided(&statement, false, out);
        let withdraws = view <= self.log.current_view();
        self.views.withdrawals_left = if withdraws { WITHDRAWALS_MAX } else { 0 };
        self.repeat_soon();
    }

    /// All views below this one are fenced: the host's VIEW-CHANGE is fixed.
    pub(super) fn handle_fenced(&mut self, out: &mut Effects) {
        let next = self.log.accepted().0.next();
        self.leader_voided(next);
        self.backup.leave_view();
        self.views.proposed.clear();
        self.views.relayed.clear();
        self.views.endorsed.clear();
        self.chain.forget();
        self.heartbeats.reset(self.now.mono_us);
        self.suspect_anew(true);
        if let Some(statement) = self.log.view_change() {
            self.sign_decided(&statement, false, out);
        }
        self.repeat_soon();
    }

    pub(super) fn handle_installed(&mut self, installed: &Installed, out: &mut Effects) {
        let (view, slot, history) = (installed.view, installed.slot, installed.history);
        self.views.changes += 1;
        self.views.contained = Contained::default();
        self.heartbeats.reset(self.now.mono_us);
        self.suspect_anew(false);
        self.leader_voided(slot.next());
        self.backup.leave_view();
        self.forget_gap();
        let sure = self.adopt(slot, history);
        self.undo_above(sure, out);
        self.replies_dropped(slot);
        self.reads_dropped(slot);
        self.backup.set_tip(self.held_end(slot));
        self.rebuild_in_log(slot);
        if let Some(statement) = self.log.new_view() {
            self.sign_decided(&statement, false, out);
            self.leader_enters();
        } else {
            // 6: the host then ACKs (w, n).
            self.handle_accepted(view, slot, history, out);
            // 5: what the host had jumped to before it entered lies beyond the log with which the view began.
            let committed = self.commit.committed();
            if committed > slot {
                self.jump(committed, out);
            }
            // Its checkpoint is above what the install has lowered n_acc to.
            if slot < self.stable {
                self.jump(self.stable, out);
            }
        }
        self.forward_again(out);
        self.repeat_soon();
    }

    /// 4.3: no request stands twice in the log up to `n`.
    pub(super) fn rebuild_in_log(&mut self, last: Slot) {
        let first = self.execution.begun().next();
        let requests = self.slots.iter_from(first).flat_map(|(slot, data)| {
            let ids = data.requests.iter().map(|r| (r.client, r.seq));
            ids.map(move |id| (id, slot))
        });
        let requests: Vec<_> = requests.take_while(|(_, slot)| *slot <= last).collect();
        self.voting.set_in_log(requests, last);
    }
}

fn replace(held: &mut Option<(View, Certificate)>, view: View, certificate: &Certificate) {
    // One that came again may bring more signatures.
    if held.as_ref().is_none_or(|(of, _)| view >= *of) {
        *held = Some((view, certificate.clone()));
    }
}

fn new_view_of(certificate: &Certificate) -> Option<(View, Slot, Digest)> {
    let Statement::NewView {
        view,
        slot,
        history,
        ..
    } = certificate.signed.statement
    else {
        return None;
    };
    Some((view, slot, history))
}

/// 6: the log with the largest (last normal view, `n_acc`). `None` for an unusable set: one in which one member's vector
/// of incarnations outdates another member (8).
fn choose(set: &[&Signed]) -> Option<(Slot, Digest)> {
    let mut best: Option<(View, Slot, Digest)> = None;
    for signed in set {
        let Statement::ViewChange {
            last_normal,
            accepted,
            history,
            incarnations,
            ..
        } = &signed.statement
        else {
            return None;
        };
        let outdates = |other: &&&Signed| {
            let known = incarnations.get(usize::from(other.host.0));
            known.is_some_and(|known| *known > other.incarnation)
        };
        if set.iter().any(|other| outdates(&other)) && !is_out(Rule::Incarnations) {
            return None;
        }
        let this = (*last_normal, *accepted, *history);
        if best.is_none_or(|best| (best.0, best.1) < (this.0, this.1)) {
            best = Some(this);
        }
    }
    best.map(|(_, slot, history)| (slot, history))
}

/// All subsets of `size` members, in the order of their members.
fn subsets(of: &[Signed], size: usize) -> Vec<Vec<&Signed>> {
    if size == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (place, first) in of.iter().enumerate() {
        for mut rest in subsets(&of[place + 1..], size - 1) {
            rest.insert(0, first);
            all.push(rest);
            if all.len() > 4 * PROPOSALS_MAX {
                return all;
            }
        }
    }
    all
}
