//! The host automaton: everything that a host decides, as a function of its postbox log alone.
//!
//! Every correct twin of a host feeds the same entries into it and reads the same decisions off it
//! (protocol.md, "The idea in one paragraph"). It knows no message of another host, no timer, no body and no
//! MAC. An off-line audit runs the same code over a recorded log.

mod accept;
mod amnesia;
mod bounds;
mod fence;
mod hello;
mod jump;
mod order;
mod quarantine;
mod results;
mod view;
mod votes;
mod votes_of;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod view_tests;

use std::collections::BTreeMap;

use crate::mutants::{Rule, out as is_out};
use borsh::{BorshDeserialize, BorshSerialize};
use twinbft_types::{
    ClientId, Digest, Entry, HostId, Incarnation, Position, RequestRef, Seq, Shape, Slot, TwinId,
    View, canonical, from_canonical,
};

use amnesia::{Asked, Opening};
pub use order::Candidate;
use quarantine::Quarantines;
use results::ResultTally;
use view::ViewState;
pub use view::{Installed, NvProposal, Wish};
pub use votes::TwinSet;
use votes::{BoundedVotes, KeyedVotes, NackedKeys};

/// What one entry made of the log's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A PROPOSE became the candidate of its slot (4.3).
    Candidate {
        /// The slot.
        slot: Slot,
    },
    /// A candidate got a NACK (4.3); the leader withdraws it.
    Nacked {
        /// The slot.
        slot: Slot,
        /// The requests that it names; none for a late timestamp.
        requests: Vec<RequestRef>,
    },
    /// Candidates from this slot on are void (4.3).
    Void {
        /// The first void slot.
        from: Slot,
    },
    /// ORDER is decided (4.4).
    Ordered {
        /// In which view.
        view: View,
        /// The slot.
        slot: Slot,
        /// The candidate that was decided.
        candidate: Candidate,
    },
    /// The host has accepted everything up to a slot (4.5).
    Accepted {
        /// In which view.
        view: View,
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
    },
    /// `q` twins hold a committed slot beyond what the host had accepted (5): it is accepted.
    Jumped {
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
    },
    /// The twins have said what they remember of the epoch before (8): the host goes on from there.
    Opened,
    /// `q` twins remember nothing of the epoch before (8): the host asks the others.
    Forgotten {
        /// What the answers must carry.
        nonce: Digest,
    },
    /// The host that has forgotten has a new incarnation (8): RECOVERY is decided.
    Renewed {
        /// It.
        incarnation: Incarnation,
        /// What the answers must carry.
        nonce: Digest,
    },
    /// The host that had forgotten takes part again; the view that it is told of is installed next.
    Recovered,
    /// `q` twins have noted that another host has a new incarnation (8): the answer is decided, from what this host has accepted.
    Peered {
        /// Who asked.
        host: HostId,
        /// Its incarnation.
        incarnation: Incarnation,
        /// What the answer carries.
        nonce: Digest,
        /// The installed view.
        view: View,
    },
    /// All views below this one are fenced (6).
    Fenced {
        /// The view.
        view: View,
    },
    /// The host has a new WISH, higher or lower than the one before (6).
    Wished {
        /// It.
        wish: Wish,
    },
    /// The leader of the view that is fenced to proposes the log with which it begins (6).
    NvProposed {
        /// Where.
        position: Position,
    },
    /// A view is installed (6).
    Installed {
        /// It, and the log with which it begins.
        installed: Installed,
    },
    /// HEARTBEAT is fixed (6).
    Beat {
        /// The view.
        view: View,
        /// Its count.
        count: u64,
        /// The last decided slot.
        slot: Slot,
        /// Its history.
        history: Digest,
    },
    /// `q` twins posted HAVE for this request (4.3).
    Had {
        /// The request.
        request: RequestRef,
    },
    /// `q` twins posted a retransmission of this request (6).
    Retransmitted {
        /// The request.
        request: RequestRef,
    },
    /// `q` twins posted the same result for these requests of a slot (4.8).
    Certified {
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
        /// Places in the batch.
        places: Vec<usize>,
    },
    /// `q` twins posted the same results for the whole slot: SLOT-RESULT is decided (9).
    SlotResult {
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
        /// The digest of the results.
        results: Digest,
    },
    /// Twins disagree about the results of a slot with equal history (9).
    ResultsDiverge {
        /// The slot.
        slot: Slot,
        /// `h_n`.
        history: Digest,
        /// What each twin said so far.
        said: Vec<(TwinId, Digest)>,
    },
    /// `q` twins posted the same state digest (5).
    Checkpoint {
        /// The slot.
        slot: Slot,
        /// The digest.
        digest: Digest,
    },
    /// `q` twins have named this one: its entries are ignored from here on (9).
    Quarantined {
        /// It.
        twin: TwinId,
    },
    /// `q` twins listen to it again: its entries count from here on (9).
    Readmitted {
        /// It.
        twin: TwinId,
    },
    /// Twins disagree about a state digest (9).
    CheckpointDiverges {
        /// The slot.
        slot: Slot,
        /// What each twin said so far.
        said: Vec<(TwinId, Digest)>,
    },
}

/// An entry that no correct twin would post, whatever it received (protocol.md 9): what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid(pub &'static str);

/// Numbers that bound the automaton; equal on all twins of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Bounds {
    /// `c`.
    pub checkpoint_slots: u64,
    /// Most requests of a batch.
    pub batch_requests_max: u64,
    /// Most slots that are proposed and not decided.
    pub pipeline_depth: u64,
    /// `k`: trims are at multiples of this position.
    pub trim_multiple: u64,
    /// A trim is due after so many entries …
    pub trim_entries: u64,
    /// … or after so many bytes of them.
    pub trim_bytes: u64,
}

/// The state of a host as its log determines it: STATE of `trim` (protocol.md 2) is its encoding.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct HostLog {
    shape: Shape,
    host: HostId,
    bounds: Bounds,
    /// The position after the last entry.
    end: Position,
    /// Where the last trim was due.
    trimmed_to: Position,
    /// Bytes of entries since then.
    bytes_since_trim: u64,

    /// Entries of each twin so far: one that was lapped learns by it which of its own are in.
    appended: Vec<u64>,

    /// The view that was last installed; 0 at genesis.
    installed: View,
    /// All views below this one are fenced.
    fenced_to: View,
    /// Each twin's highest LEAVE.
    leaves: Vec<View>,
    /// Each twin's latest SUSPECT.
    suspects: Vec<View>,

    /// `n_acc`. On the primary host, the last decided slot.
    accepted: Slot,
    /// `h_{n_acc}`.
    accepted_history: Digest,
    /// The view of the last installed log.
    last_normal: View,
    /// WISH, VIEW-CHANGE, NEW-VIEW and HEARTBEAT.
    views: ViewState,
    /// The incarnation of every host, as PEER entries show it (8).
    incarnations: Vec<Incarnation>,

    /// The live candidates of slots `accepted + 1 …`, without gaps.
    /// Invariant: empty unless this host is primary of the installed, unfenced view; at most `pipeline_depth`.
    candidates: Vec<Candidate>,
    /// The highest attempt seen of undecided slots.
    attempts: BTreeMap<Slot, twinbft_types::Attempt>,
    /// Votes of ACCEPT above `accepted`.
    /// Invariant: keys lie in `(accepted, accepted + 2c]`.
    accepts: BTreeMap<Slot, KeyedVotes<Digest>>,

    /// A new epoch, before the host takes part in it.
    opening: Option<Opening>,
    /// PEERs about hosts that have asked (8). Invariant: of each host the latest of each twin.
    asked: BTreeMap<HostId, Asked>,
    /// Up to this view the host decides nothing as a primary, because a HELLO named it.
    silent_to: Option<View>,

    /// Who is ignored, and who is accused.
    quarantines: Quarantines,

    /// Each twin's latest JUMP.
    jumps: Vec<(TwinId, Slot, Digest)>,

    /// Keys of clients that were named in a NACK.
    nacked: NackedKeys,
    haves: BoundedVotes,
    retransmissions: BoundedVotes,

    /// Open RESULT tallies. Invariant: at most [`results::TALLIES_MAX`].
    results: BTreeMap<Slot, ResultTally>,
    /// The histories of late slots and the views in which they were decided or accepted.
    /// Invariant: at most [`results::TALLIES_MAX`].
    histories: BTreeMap<Slot, (View, Digest)>,
    /// Decided SLOT-RESULTs of late slots. Invariant: at most [`results::SLOT_RESULTS_MAX`].
    slot_results: BTreeMap<Slot, (Digest, Digest)>,
    /// Open CHECKPOINT tallies. Invariant: at most [`results::CHECKPOINTS_MAX`].
    checkpoints: BTreeMap<Slot, KeyedVotes<Digest>>,
    /// The last decided CHECKPOINT.
    certified_checkpoint: Slot,
    /// Its digest.
    certified_digest: Digest,
}

impl HostLog {
    /// The state before the first entry of the first epoch.
    #[must_use]
    pub fn genesis(shape: Shape, host: HostId, bounds: Bounds) -> Self {
        let twins = usize::from(shape.twins());
        Self {
            shape,
            host,
            bounds,
            end: Position(0),
            trimmed_to: Position(0),
            bytes_since_trim: 0,
            installed: View(0),
            fenced_to: View(0),
            appended: vec![0; twins],
            leaves: vec![View(0); twins],
            suspects: vec![View(0); twins],
            accepted: Slot(0),
            accepted_history: Digest::ZERO,
            last_normal: View(0),
            views: ViewState::default(),
            incarnations: vec![Incarnation(0); usize::from(shape.hosts())],
            candidates: Vec::new(),
            attempts: BTreeMap::new(),
            accepts: BTreeMap::new(),
            opening: None,
            asked: BTreeMap::new(),
            silent_to: None,
            quarantines: Quarantines::default(),
            jumps: Vec::new(),
            nacked: NackedKeys::default(),
            haves: BoundedVotes::default(),
            retransmissions: BoundedVotes::default(),
            results: BTreeMap::new(),
            histories: BTreeMap::new(),
            slot_results: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            certified_checkpoint: Slot(0),
            certified_digest: Digest::ZERO,
        }
    }

    /// STATE: everything below [`Self::end`] that any rule can still use (protocol.md 2).
    #[must_use]
    pub fn to_state(&self) -> Vec<u8> {
        if is_out(Rule::OpenTallies) {
            let mut state = self.clone();
            state.accepts.clear();
            state.results.clear();
            state.checkpoints.clear();
            return canonical(&state);
        }
        canonical(self)
    }

    /// Takes up an agreed STATE.
    ///
    /// # Errors
    /// When the bytes are no STATE of this host.
    pub fn from_state(
        shape: Shape,
        host: HostId,
        bytes: &[u8],
    ) -> Result<Self, twinbft_types::DecodeError> {
        let state: Self = from_canonical(bytes)?;
        if state.shape != shape || state.host != host {
            return Err(twinbft_types::DecodeError(format!(
                "this is the state of {} in a cluster of another shape",
                state.host
            )));
        }
        Ok(state)
    }

    /// Takes in the entry at [`Self::end`], which `sender` appended, and adds what it decides to `out`.
    ///
    /// # Errors
    /// When no correct twin would have posted it. It is then as if it were not there; the position counts.
    pub fn apply(
        &mut self,
        sender: TwinId,
        entry: &Entry,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        assert!(
            sender < TwinId(self.shape.twins()),
            "the broker stamps twins of this host only"
        );
        self.end = self.end.next();
        self.appended[usize::from(sender.0)] += 1;
        // 9: entries after the q-th QUARANTINE are ignored.
        if self.is_quarantined(sender) {
            return Ok(());
        }
        if self.is_opening() {
            return self.apply_opening(sender, entry, out);
        }
        match entry {
            Entry::Propose {
                view,
                slot,
                attempt,
                previous,
                timestamp_us,
                requests,
            } => {
                let proposal = Candidate::new(*attempt, *previous, *slot, *timestamp_us, requests);
                self.apply_propose(sender, *view, *slot, *previous, proposal, out)
            }
            Entry::Endorse {
                view,
                slot,
                attempt,
                history,
                signature,
            } => {
                if signature.is_some() && !self.shape.unanimous() {
                    return Err(Invalid("an ENDORSE with a signature though m > q"));
                }
                self.apply_endorse(sender, *view, *slot, (*attempt, *history), out)
            }
            Entry::Nack {
                view,
                slot,
                attempt,
                history,
                requests,
            } => self.apply_nack(sender, *view, *slot, (*attempt, *history), requests, out),
            Entry::Withdraw {
                view,
                slot,
                attempt,
            } => self.apply_withdraw(sender, *view, *slot, *attempt, out),
            Entry::Have { request } => {
                if self.haves.vote(sender, *request, self.shape) {
                    out.push(Decision::Had { request: *request });
                }
                Ok(())
            }
            Entry::Retransmission { request } => {
                if self.retransmissions.vote(sender, *request, self.shape) {
                    out.push(Decision::Retransmitted { request: *request });
                }
                Ok(())
            }
            Entry::Accept {
                view,
                slot,
                history,
            } => self.apply_accept(sender, *view, *slot, *history, out),
            Entry::Results {
                slot,
                history,
                results,
                view,
            } => self.apply_results(sender, (*view, *slot, *history), results, out),
            Entry::Checkpoint { slot, digest } => {
                self.apply_checkpoint(sender, *slot, *digest, out)
            }
            Entry::Suspect { view } => {
                self.apply_suspect(sender, *view, out);
                Ok(())
            }
            Entry::Leave { view, .. } => {
                self.apply_leave(sender, *view, out);
                Ok(())
            }
            // These carry signatures, bodies and questions; they decide nothing by themselves.
            Entry::Need { .. }
            | Entry::Body { .. }
            | Entry::Sign { .. }
            | Entry::ResultAgain { .. }
            | Entry::Relay { .. }
            | Entry::RelayOrder { .. } => Ok(()),
            Entry::NvPropose {
                view,
                hosts,
                slot,
                history,
            } => self.apply_nv_propose(sender, *view, hosts, (*slot, *history), out),
            Entry::NvEndorse { view, proposal } => {
                self.apply_nv_endorse(sender, *view, *proposal, out)
            }
            Entry::NvAccept {
                view,
                slot,
                history,
            } => self.apply_nv_accept(sender, *view, (*slot, *history), out),
            Entry::Beat { view, count } => self.apply_beat(sender, *view, *count, out),
            Entry::Jump { slot, history } => {
                self.apply_jump(sender, *slot, *history, out);
                Ok(())
            }
            Entry::Peer {
                host,
                incarnation,
                nonce,
            } => self.apply_peer(sender, (*host, *incarnation, *nonce), out),
            Entry::Quarantine { twin } => self.apply_quarantine(sender, *twin, out),
            Entry::Readmit { twin } => self.apply_readmit(sender, *twin, out),
            // They are too late.
            Entry::Hello { .. } | Entry::Amnesia { .. } => Ok(()),
        }
    }

    /// 8: nothing else counts before the host takes part in a new epoch.
    fn apply_opening(
        &mut self,
        sender: TwinId,
        entry: &Entry,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        match entry {
            Entry::Hello { state } => return self.apply_hello(sender, state, out),
            Entry::Amnesia { nonce } => self.apply_amnesia(sender, *nonce, out),
            Entry::Peer {
                host,
                incarnation,
                nonce,
            } => return self.apply_peer(sender, (*host, *incarnation, *nonce), out),
            Entry::NvAccept {
                view,
                slot,
                history,
            } => self.apply_recovery_accept(sender, (*view, *slot, *history), out),
            // 9: a quarantine outlives the epoch in the memory of those who voted for it.
            Entry::Quarantine { twin } => {
                self.apply_quarantine(sender, *twin, out)?;
                self.poll_opening(out);
            }
            _ => {}
        }
        Ok(())
    }

    /// The position after the last entry.
    #[must_use]
    pub const fn end(&self) -> Position {
        self.end
    }

    /// The largest fenced-to or installed view (4.3).
    #[must_use]
    pub fn current_view(&self) -> View {
        self.installed.max(self.fenced_to)
    }

    /// The view that was last installed, fenced or not.
    #[must_use]
    pub const fn installed(&self) -> View {
        self.installed
    }

    /// The installed view while it is not fenced: the one in which this host orders or accepts.
    #[must_use]
    pub fn live_view(&self) -> Option<View> {
        let is_live = self.fenced_to <= self.installed
            && !self.is_opening()
            && !self.is_silent_in(self.installed);
        is_live.then_some(self.installed)
    }

    /// Whether this host is primary of its installed, unfenced view.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.live_view()
            .is_some_and(|view| self.shape.primary(view) == self.host)
    }

    /// `n_acc` and `h_{n_acc}`. On the primary host, the last decided slot.
    #[must_use]
    pub const fn accepted(&self) -> (Slot, Digest) {
        (self.accepted, self.accepted_history)
    }

    /// The live candidate of a slot.
    #[must_use]
    pub fn candidate(&self, slot: Slot) -> Option<&Candidate> {
        let offset = slot.0.checked_sub(self.accepted.0 + 1)?;
        self.candidates.get(usize::try_from(offset).ok()?)
    }

    /// The last slot with a decision or a live candidate, and its history.
    #[must_use]
    pub fn tip(&self) -> (Slot, Digest) {
        let count = self.candidates.len() as u64;
        let history = self
            .candidates
            .last()
            .map_or(self.accepted_history, |c| c.history);
        (Slot(self.accepted.0 + count), history)
    }

    /// The history of `slot − 1`, which the live candidate of `slot` extends.
    ///
    /// # Panics
    /// When `slot` has no live candidate.
    #[must_use]
    pub fn tip_before(&self, slot: Slot) -> Digest {
        if slot == self.accepted.next() {
            return self.accepted_history;
        }
        self.candidate(Slot(slot.0 - 1))
            .expect("candidates are contiguous")
            .history
    }

    /// Counts the bytes of the entry that was just taken in or passed over. When the log has grown enough, answers
    /// with the position below which it can go (2): every twin proposes the same ones.
    pub fn note_bytes(&mut self, bytes: u64) -> Option<Position> {
        self.bytes_since_trim += bytes;
        let entries = self.end.0 - self.trimmed_to.0;
        let grown =
            entries >= self.bounds.trim_entries || self.bytes_since_trim >= self.bounds.trim_bytes;
        if !grown || !self.end.0.is_multiple_of(self.bounds.trim_multiple) {
            return None;
        }
        self.trimmed_to = self.end;
        self.bytes_since_trim = 0;
        Some(self.end)
    }

    /// Passes over an entry that does not decode: its position counts all the same.
    pub fn skip(&mut self, sender: TwinId) {
        self.end = self.end.next();
        if let Some(appended) = self.appended.get_mut(usize::from(sender.0)) {
            *appended += 1;
        }
    }

    /// How many entries this twin has appended in this epoch.
    #[must_use]
    pub fn entries_of(&self, twin: TwinId) -> u64 {
        self.appended[usize::from(twin.0)]
    }

    /// The lowest attempt number that a new PROPOSE for this slot may carry.
    #[must_use]
    pub fn next_attempt(&self, slot: Slot) -> twinbft_types::Attempt {
        self.attempts
            .get(&slot)
            .map_or(twinbft_types::Attempt(0), |a| a.next())
    }

    /// Twins other than `me` that have posted ACCEPT with this history for a slot that is not accepted yet. What an earlier
    /// life of `me` has posted is the same vote as what it posts now.
    #[must_use]
    pub fn equal_accepts_of_siblings(&self, me: TwinId, slot: Slot, history: Digest) -> usize {
        self.accepts.get(&slot).map_or(0, |votes| {
            votes.iter().filter(|v| v.0 != me && v.1 == history).count()
        })
    }

    /// Twins that have posted ACCEPT for a slot that is not accepted yet.
    #[must_use]
    pub fn accept_votes(&self, slot: Slot) -> usize {
        self.accepts.get(&slot).map_or(0, KeyedVotes::len)
    }

    /// Whether this twin has posted LEAVE of `view`.
    #[must_use]
    pub fn has_left(&self, twin: TwinId, view: View) -> bool {
        self.leaves[usize::from(twin.0)] > view
    }

    /// Whether this twin has posted a retransmission of this request (6), and whether `q` twins have.
    #[must_use]
    pub fn retransmitted(&self, twin: TwinId, request: &RequestRef) -> (bool, bool) {
        (
            self.retransmissions.is_held(twin, request),
            self.retransmissions.has_quorum(request, self.shape),
        )
    }

    /// Twins that have posted RESULT for a slot whose tally is open.
    #[must_use]
    pub fn result_votes(&self, slot: Slot) -> usize {
        self.results.get(&slot).map_or(0, ResultTally::len)
    }

    /// Whether this client's requests need HAVEs of `q` twins before they are proposed (4.3).
    #[must_use]
    pub fn is_nacked(&self, client: ClientId) -> bool {
        self.nacked.contains(client.key)
    }

    /// Whether `q` twins posted HAVE for this request (4.3).
    #[must_use]
    pub fn is_had(&self, request: &RequestRef) -> bool {
        self.haves.has_quorum(request, self.shape)
    }

    /// Whether this twin's HAVE for this request still stands (4.3).
    #[must_use]
    pub fn has_have_of(&self, twin: TwinId, request: &RequestRef) -> bool {
        self.haves.is_held(twin, request)
    }

    /// The decided SLOT-RESULT of a late slot: `h_n` and the results' digest.
    #[must_use]
    pub fn slot_result(&self, slot: Slot) -> Option<(Digest, Digest)> {
        self.slot_results.get(&slot).copied()
    }

    /// What is kept about single requests can go: the slot that holds it is decided.
    fn forget_request(&mut self, client: ClientId, seq: Seq) {
        self.haves.forget(client, seq);
        self.retransmissions.forget(client, seq);
    }
}
