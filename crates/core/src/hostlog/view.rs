//! How a host leaves a view and enters the next one (protocol.md 6).

use borsh::{BorshDeserialize, BorshSerialize};
use twinbft_types::{Digest, Entry, HostId, Position, Slot, Statement, TwinId, View};

use super::votes::TwinSet;
use super::{Decision, HostLog, Invalid};
use crate::mutants::{Rule, out as is_out};

/// NV-PROPOSEs of one view that may gather votes; the oldest gives way.
pub const NV_PROPOSALS_MAX: usize = 16;

/// What this host said when it left the views below `view`: its VIEW-CHANGE, but for the incarnations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct FenceReport {
    view: View,
    last_normal: View,
    accepted: Slot,
    history: Digest,
}

/// The host's newest WISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Wish {
    /// The view wished for.
    pub view: View,
    /// The entry that fixed it.
    pub position: Position,
}

/// An NV-PROPOSE that may gather votes.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct NvProposal {
    /// Where it stands in the log.
    pub position: Position,
    /// The VIEW-CHANGEs that it rests on, by host and digest.
    pub hosts: Vec<(HostId, Digest)>,
    /// The chosen log's end.
    pub slot: Slot,
    /// Its history.
    pub history: Digest,
    /// Who voted for it; the leader by proposing it.
    votes: TwinSet,
}

impl NvProposal {
    /// Whether this twin has voted for it.
    #[must_use]
    pub const fn has_vote_of(&self, twin: TwinId) -> bool {
        self.votes.contains(twin)
    }
}

/// The log with which the installed view began.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Installed {
    /// The view.
    pub view: View,
    /// The chosen log's end.
    pub slot: Slot,
    /// Its history.
    pub history: Digest,
    /// On the primary host: the VIEW-CHANGEs that its NEW-VIEW names.
    pub hosts: Option<Vec<(HostId, Digest)>>,
}

/// What belongs to views and their change.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct ViewState {
    pub(super) wish: Option<Wish>,
    pub(super) report: Option<FenceReport>,
    /// Open proposals of the view that is fenced to and not installed.
    /// Invariant: at most [`NV_PROPOSALS_MAX`], ascending by position.
    proposals: Vec<NvProposal>,
    /// Each twin's latest NV-ACCEPT of that view.
    accepts: Vec<(TwinId, Slot, Digest)>,
    /// `None` while the view of genesis is installed.
    pub(super) installed: Option<Installed>,
    /// The count of the last HEARTBEAT of the installed view.
    beat: u64,
}

impl HostLog {
    /// 6: a twin's latest SUSPECT counts. When `q` twins wish `≥ w` the host wishes for `w`.
    pub(super) fn apply_suspect(&mut self, sender: TwinId, view: View, out: &mut Vec<Decision>) {
        self.suspects[usize::from(sender.0)] = view;
        let mut suspects = self.suspects.clone();
        suspects.sort_unstable_by(|a, b| b.cmp(a));
        // A WISH never falls below the view fenced to.
        let view = suspects[self.shape.twin_quorum() - 1].max(self.current_view());
        if view == self.wish().map_or(self.current_view(), |wish| wish.view) {
            return;
        }
        let wish = Wish {
            view,
            position: Position(self.end.0 - 1),
        };
        self.views.wish = Some(wish);
        out.push(Decision::Wished { wish });
    }

    /// 6: what the host had accepted at the fence is its VIEW-CHANGE, whatever comes later.
    pub(super) fn note_fence(&mut self, view: View) {
        self.views.report = Some(FenceReport {
            view,
            last_normal: self.last_normal,
            accepted: self.accepted,
            history: self.accepted_history,
        });
        self.views.proposals.clear();
        self.views.accepts.clear();
        self.raise_wish(view);
    }

    /// A VIEW-CHANGE(w) or NEW-VIEW(w) counts as its host's WISH(w).
    fn raise_wish(&mut self, view: View) {
        if self.views.wish.is_some_and(|wish| wish.view < view) {
            self.views.wish = None;
        }
    }

    /// 6: NV-PROPOSE(w), its votes and NV-ACCEPT(w) count only between the fence of the views below `w` and the
    /// fence of `w`, and nothing more is to be decided once `w` is installed.
    fn enters(&self, view: View) -> bool {
        (self.fenced_to == view || is_out(Rule::NvWindow)) && self.installed < view
    }

    pub(super) fn apply_nv_propose(
        &mut self,
        sender: TwinId,
        view: View,
        hosts: &[(HostId, Digest)],
        (slot, history): (Slot, Digest),
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        self.check_leader(sender, view)?;
        let distinct = hosts.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let known = hosts.iter().all(|(host, _)| host.0 < self.shape.hosts());
        if !distinct || !known || hosts.len() != self.shape.host_quorum() {
            return Err(Invalid(
                "an NV-PROPOSE that does not rest on Q hosts, ascending",
            ));
        }
        if !self.enters(view) || self.is_silent_in(view) {
            return Ok(());
        }
        let mut votes = TwinSet::default();
        votes.insert(sender);
        let position = Position(self.end.0 - 1);
        if self.views.proposals.len() >= NV_PROPOSALS_MAX {
            self.views.proposals.remove(0);
        }
        self.views.proposals.push(NvProposal {
            position,
            hosts: hosts.to_vec(),
            slot,
            history,
            votes,
        });
        out.push(Decision::NvProposed { position });
        if is_out(Rule::NvQuorum) {
            let hosts = Some(hosts.to_vec());
            self.install(
                Installed {
                    view,
                    slot,
                    history,
                    hosts,
                },
                out,
            );
        }
        Ok(())
    }

    /// 6: the first NV-PROPOSE to gather `q` votes is the only decision.
    pub(super) fn apply_nv_endorse(
        &mut self,
        sender: TwinId,
        view: View,
        proposal: Position,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        let leader = self.shape.leader(view);
        if leader.host != self.host || leader.twin == sender {
            return Err(Invalid(
                "an NV-ENDORSE of a twin that has none in this view",
            ));
        }
        if !self.enters(view) {
            return Ok(());
        }
        let quorum = self.shape.twin_quorum();
        let mut proposals = self.views.proposals.iter_mut();
        let Some(found) = proposals.find(|p| p.position == proposal) else {
            return Ok(());
        };
        found.votes.insert(sender);
        if found.votes.len() >= quorum {
            let installed = Installed {
                view,
                slot: found.slot,
                history: found.history,
                hosts: Some(found.hosts.clone()),
            };
            self.install(installed, out);
        }
        Ok(())
    }

    /// 6: at a host that is not its primary the `q`-th NV-ACCEPT installs the view.
    pub(super) fn apply_nv_accept(
        &mut self,
        sender: TwinId,
        view: View,
        (slot, history): (Slot, Digest),
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        if self.shape.primary(view) == self.host {
            return Err(Invalid("an NV-ACCEPT on the primary host of its view"));
        }
        if !self.enters(view) {
            return Ok(());
        }
        let accepts = &mut self.views.accepts;
        accepts.retain(|(twin, ..)| *twin != sender);
        accepts.push((sender, slot, history));
        let equal = accepts.iter().filter(|a| (a.1, a.2) == (slot, history));
        if equal.count() >= self.shape.twin_quorum() || is_out(Rule::NvAcceptQuorum) {
            let installed = Installed {
                view,
                slot,
                history,
                hosts: None,
            };
            self.install(installed, out);
        }
        Ok(())
    }

    /// 6: last normal view = `w`, `n_acc` = `n`, even if lower than before.
    fn install(&mut self, installed: Installed, out: &mut Vec<Decision>) {
        assert!(
            self.enters(installed.view),
            "a view is installed once, between its fences"
        );
        self.install_without_fence(installed, out);
    }

    /// 8: a host that has forgotten installs the view that it is told of as it is.
    pub(super) fn install_without_fence(&mut self, installed: Installed, out: &mut Vec<Decision>) {
        self.installed = installed.view;
        self.last_normal = installed.view;
        self.accepted = installed.slot;
        self.accepted_history = installed.history;
        self.candidates.clear();
        self.attempts.clear();
        self.accepts.clear();
        // What was said of slots that the new log does not have is of no use to those that take their place.
        self.results.split_off(&installed.slot.next());
        self.histories.split_off(&installed.slot.next());
        self.views.proposals.clear();
        self.views.accepts.clear();
        self.views.beat = 0;
        self.raise_wish(installed.view);
        self.views.installed = Some(installed.clone());
        out.push(Decision::Installed { installed });
    }

    /// 6: HEARTBEAT is fixed by the leader's BEAT before the fence.
    pub(super) fn apply_beat(
        &mut self,
        sender: TwinId,
        view: View,
        count: u64,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        self.check_leader(sender, view)?;
        if self.live_view() != Some(view) {
            return Ok(());
        }
        if count <= self.views.beat {
            return Err(Invalid("a BEAT whose count does not grow"));
        }
        self.views.beat = count;
        out.push(Decision::Beat {
            view,
            count,
            slot: self.accepted,
            history: self.accepted_history,
        });
        Ok(())
    }

    /// The host's newest WISH above the view that it is in; `None` while it wishes for none.
    #[must_use]
    pub fn wish(&self) -> Option<Wish> {
        self.views
            .wish
            .filter(|wish| wish.view > self.current_view())
    }

    /// The newest WISH that the host has fixed, which may have withdrawn an earlier one.
    #[must_use]
    pub const fn last_wish(&self) -> Option<Wish> {
        self.views.wish
    }

    /// The VIEW-CHANGE that the last fence fixed, while its view is not installed.
    #[must_use]
    pub fn view_change(&self) -> Option<Statement> {
        let report = self.views.report?;
        (self.installed < report.view).then(|| Statement::ViewChange {
            view: report.view,
            last_normal: report.last_normal,
            accepted: report.accepted,
            history: report.history,
            incarnations: self.incarnations.clone(),
        })
    }

    /// The log with which the installed view began; `None` in the view of genesis.
    #[must_use]
    pub const fn installed_log(&self) -> Option<&Installed> {
        self.views.installed.as_ref()
    }

    /// The NEW-VIEW of the installed view, when this host is its primary.
    #[must_use]
    pub fn new_view(&self) -> Option<Statement> {
        let installed = self.views.installed.as_ref()?;
        Some(Statement::NewView {
            view: installed.view,
            slot: installed.slot,
            history: installed.history,
            hosts: installed.hosts.clone()?,
        })
    }

    /// The proposals that may still gather votes, oldest first.
    pub fn nv_proposals(&self) -> impl Iterator<Item = &NvProposal> {
        self.views.proposals.iter()
    }

    /// The view that is fenced to and not installed.
    #[must_use]
    pub fn entering(&self) -> Option<View> {
        (self.fenced_to > self.installed).then_some(self.fenced_to)
    }

    /// The count of the last HEARTBEAT of the installed view.
    #[must_use]
    pub const fn last_beat(&self) -> u64 {
        self.views.beat
    }

    /// This twin's NV-ACCEPT of the view that is being entered.
    #[must_use]
    pub fn nv_accept_of(&self, twin: TwinId) -> Option<Entry> {
        let mut accepts = self.views.accepts.iter();
        let (_, slot, history) = accepts.find(|(of, ..)| *of == twin)?;
        Some(Entry::NvAccept {
            view: self.fenced_to,
            slot: *slot,
            history: *history,
        })
    }

    /// This twin's highest LEAVE and latest SUSPECT in the log.
    #[must_use]
    pub fn standing_of(&self, twin: TwinId) -> (View, View) {
        let twin = usize::from(twin.0);
        (self.leaves[twin], self.suspects[twin])
    }
}
