//! A replica starts again (protocol.md 8): from its write-ahead log, the checkpoint that its service stands at and the
//! retained postbox log; or, when its disk is gone, from the postbox log and the other hosts.
//!
//! It first reads the log up to where it ended at the start ([`Phase::Replaying`]), then fetches what it lacks of the
//! slots that its host has accepted ([`Phase::CatchingUp`]). Until both are done it is silent: what it would post is
//! held back, and what its log already has of that is dropped.

mod first_words;
mod kept;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use twinbft_types::wire::{CheckpointParts, PeerMessage};
use twinbft_types::{
    Certificate, DecodeError, Digest, Entry, Epoch, HelloState, Position, Request, RequestRef,
    Slot, View, batch_digest, canonical, history,
};

use super::Replica;
use super::amnesia::Amnesia;
use super::hello::Shown;
use crate::config::CoreConfig;
use crate::fault::PeerFault;
use crate::hostlog::HostLog;
use crate::io::{Checkpoint, Effect, Effects};
use crate::record::{Record, last_stable};
use crate::session::SessionTable;

/// Posts that are held back at most; the oldest give way. They are signatures and results, which are asked for again.
const HELD_MAX: usize = 4096;
/// What vouches for a sibling's claim is asked for again after so long.
const ASK_EVERY_US: u64 = 50_000;
/// Results of slots before the last accepted ones are posted again only when a sibling waits for them.
const RESULTS_AGAIN: u64 = 16;

/// What a replica finds when it starts again.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The records of its write-ahead log, oldest first; none when its disk is gone.
    pub records: Vec<Record>,
    /// The checkpoint that its service stands at, with the digest of the service's state; `None` at genesis.
    pub checkpoint: Option<(Checkpoint, Digest)>,
    /// STATE of the last trim and its position; `None` when the postbox log was never trimmed.
    pub log_state: Option<(Position, Bytes)>,
    /// The position after the last entry of the postbox log. Entries up to it are fed first.
    pub log_end: Position,
    /// Whether this twin's promises are of an earlier epoch of the log.
    pub is_new_epoch: bool,
    /// Whether some of them can have been lost (8): with the log lost too, this host has forgotten.
    pub is_unsure: bool,
    /// Whether an operator has ordered to believe what this host's disks hold (8).
    pub is_ordered: bool,
    /// Fresh and not to be guessed: this twin's part of its host's nonce, should the host have forgotten.
    pub nonce: Digest,
}

/// Where a start stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is over.
    #[default]
    Running,
    /// Reading the postbox log up to this position.
    Replaying { until: Position },
    /// The log is of a new epoch: waiting until the host's twins have said what they remember.
    Opening,
    /// The host has forgotten: asking the others, and fetching what they name.
    Asking,
    /// Fetching what its host has accepted and it does not hold.
    CatchingUp,
}

/// Promises, the last install, and whether an epoch was joined, before the host forgot.
type Before = (Vec<Entry>, Option<(View, Slot, Digest)>, bool);

/// What the disk remembered at the start.
#[derive(Clone, Copy, Debug, Default)]
enum Memory {
    #[default]
    Whole,
    Unsure,
    Lost,
}

/// A slot of the write-ahead log.
#[derive(Clone, Debug)]
struct KeptSlot {
    previous: Digest,
    timestamp_us: u64,
    bodies: Vec<Request>,
    certificate: Option<Certificate>,
}

/// What only a start needs.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    phase: Phase,
    /// Whether the write-ahead log is whole: this twin has taken part with it before.
    remembers: bool,
    /// Whether its promises are of an earlier epoch.
    is_new_epoch: bool,
    /// What the disk remembered.
    memory: Memory,
    /// Whether an operator has ordered to believe what the disks hold.
    is_ordered: bool,
    /// Whether this twin, which remembers nothing, is to say what its siblings say.
    follows: bool,
    /// The HELLO that was posted last.
    hello: Option<HelloState>,
    /// What siblings have shown of their LEAVEs.
    pub(super) shown: Shown,
    /// A sibling's claim for which another host's certificate vouches.
    vouched: Option<(View, Slot, Digest)>,
    /// When that certificate is asked for again.
    ask_at_us: u64,
    /// The last stable checkpoint of the write-ahead log.
    stable: Slot,
    /// The last install in the write-ahead log.
    installed: Option<(View, Slot, Digest)>,
    /// Slots of the write-ahead log, by number and history: of one number several may have been voted for.
    slots: BTreeMap<(Slot, Digest), KeptSlot>,
    /// Certificates of the write-ahead log about checkpoints, until they are verified, oldest first.
    pub(super) proofs: Vec<Certificate>,
    /// What of it did not verify, until it is asked for.
    pub(super) faults: Vec<PeerFault>,
    /// Promises of the write-ahead log, oldest first.
    promises: Vec<Entry>,
    /// The digests of its records.
    known: BTreeSet<Digest>,
    /// The digests of own entries in the postbox log.
    posted: BTreeSet<Digest>,
    /// Posts that wait for the end of the start. Invariant: at most [`HELD_MAX`].
    held: VecDeque<(Entry, bool)>,
}

impl Recovery {
    /// Whether the replica says nothing yet.
    pub fn is_silent(&self) -> bool {
        self.phase != Phase::Running
    }

    pub fn is_replaying(&self) -> bool {
        matches!(self.phase, Phase::Replaying { .. })
    }

    /// The name of what is being done.
    pub const fn state(&self) -> Option<&'static str> {
        match self.phase {
            Phase::Running => None,
            Phase::Replaying { .. } => Some("replaying"),
            Phase::Asking => Some("recovering"),
            Phase::Opening if self.remembers => Some("waiting-for-hellos"),
            Phase::Opening => Some("has-forgotten"),
            Phase::CatchingUp => Some("catching-up"),
        }
    }

    pub const fn remembers(&self) -> bool {
        self.remembers
    }

    /// Whether the write-ahead log has what was promised in this epoch.
    pub const fn has_joined(&self) -> bool {
        self.remembers && !self.is_new_epoch
    }

    /// What the disk remembers, given whether promises may be missing and whether an operator has ordered to believe it.
    fn take_memory(&mut self, (is_unsure, is_ordered): &(bool, bool)) {
        if matches!(self.memory, Memory::Whole) && *is_unsure {
            self.memory = Memory::Unsure;
        }
        self.remembers &= !is_unsure || *is_ordered;
        self.is_ordered = *is_ordered;
        self.follows = *is_ordered && !self.remembers;
    }

    /// Whether an operator has ordered to believe what the disks hold.
    pub const fn is_ordered(&self) -> bool {
        self.is_ordered
    }

    /// What the disk remembered.
    pub const fn memory(&self) -> &'static str {
        match self.memory {
            Memory::Whole => "whole",
            Memory::Unsure => "unsure",
            Memory::Lost => "lost",
        }
    }

    /// Whether an operator has ordered this twin, which remembers nothing, to say what its siblings say.
    pub const fn follows(&self) -> bool {
        self.follows
    }

    /// 8: what was promised is void.
    pub fn forget_promises(&mut self) {
        self.remembers = false;
        self.installed = None;
        self.promises.clear();
        self.hello = None;
    }

    /// Promises of the write-ahead log, oldest first.
    pub fn promises(&self) -> &[Entry] {
        &self.promises
    }

    /// The last install in the write-ahead log.
    pub fn installs(&self) -> impl Iterator<Item = (View, Slot, Digest)> {
        self.installed.into_iter()
    }

    pub const fn hello(&self) -> Option<&HelloState> {
        self.hello.as_ref()
    }

    /// A sibling's claim for which another host's certificate vouches.
    pub const fn vouched(&self) -> Option<(View, Slot, Digest)> {
        self.vouched
    }

    pub const fn note_vouched(&mut self, end: (View, Slot, Digest)) {
        self.vouched = Some(end);
    }

    /// What a sibling claims is promised here, too.
    pub fn note_raised(&mut self, promise: Entry) {
        self.promises.push(promise);
    }

    /// Whether a sibling is to be asked now for what vouches for its claim.
    pub const fn may_ask(&mut self, now_us: u64) -> bool {
        let is_due = self.ask_at_us <= now_us;
        if is_due {
            self.ask_at_us = now_us + ASK_EVERY_US;
        }
        is_due
    }

    /// When it is asked again, while it is of use.
    pub const fn ask_at_us(&self) -> u64 {
        self.ask_at_us
    }

    pub fn note_hello(&mut self, hello: HelloState) {
        self.hello = Some(hello);
    }

    /// The body of a request in the write-ahead log.
    pub fn body(&self, slot: Slot, history: Digest, reference: &RequestRef) -> Option<&Request> {
        let kept = self.slots.get(&(slot, history))?;
        let bodies = kept.bodies.iter();
        bodies
            .filter(|body| body.client == reference.client && body.seq == reference.seq)
            .find(|body| body.digest() == reference.digest)
    }

    /// Whether the write-ahead log promises another history for this slot of this view.
    pub fn contradicts_accept(&self, view: View, slot: Slot, history: Digest) -> bool {
        self.promises.iter().any(|promise| {
            matches!(promise, Entry::Accept { view: v, slot: s, history: h }
                if (*v, *s) == (view, slot) && *h != history)
        })
    }

    fn new(records: Vec<Record>, until: Position, epoch: Epoch) -> Self {
        let mut recovery = Self {
            phase: Phase::Replaying { until },
            stable: last_stable(&records),
            ..Self::default()
        };
        // What was promised before the host forgot, until it has taken part again.
        let mut before: Option<Before> = None;
        let mut forgotten_in = None;
        for record in records {
            recovery.known.insert(Digest::of(&canonical(&record)));
            match record {
                Record::Promise(entry) => recovery.promises.push(entry),
                Record::Slot {
                    slot,
                    previous,
                    timestamp_us,
                    bodies,
                    certificate,
                } => {
                    let requests: Vec<RequestRef> = bodies.iter().map(Request::reference).collect();
                    let own = history(previous, slot, batch_digest(&requests), timestamp_us);
                    let kept = KeptSlot {
                        previous,
                        timestamp_us,
                        bodies,
                        certificate,
                    };
                    recovery.slots.insert((slot, own), kept);
                }
                Record::Joined { .. } => {
                    recovery.remembers = true;
                    before = None;
                }
                Record::Forgotten { epoch } => {
                    let promised = std::mem::take(&mut recovery.promises);
                    before.get_or_insert((promised, recovery.installed, recovery.remembers));
                    recovery.forget_promises();
                    forgotten_in = Some(epoch);
                }
                Record::Installed {
                    view,
                    slot,
                    history,
                } => recovery.installed = Some((view, slot, history)),
                Record::Stable { .. } => {}
                Record::Proof(certificate) => recovery.proofs.push(certificate),
            }
        }
        recovery.memory = if recovery.remembers || before.as_ref().is_some_and(|b| b.2) {
            Memory::Whole
        } else {
            Memory::Lost
        };
        // It never took part in that epoch, and this is another: what it remembered before is what it remembers.
        if let Some(before) = before
            && forgotten_in != Some(epoch)
        {
            (recovery.promises, recovery.installed, recovery.remembers) = before;
        }
        recovery
    }

    fn hold(&mut self, entry: Entry, lazy: bool) {
        // Wishes and signs of life are of their moment.
        if matches!(
            entry,
            Entry::Suspect { .. } | Entry::Beat { .. } | Entry::Retransmission { .. }
        ) {
            return;
        }
        if self.held.len() >= HELD_MAX {
            self.held.pop_front();
        }
        self.held.push_back((entry, lazy));
    }
}

impl Replica {
    /// A replica that starts again. Feed it the entries of the postbox log from [`Recovered::log_state`]'s position
    /// (or from 0) on, and [`crate::Input::Timer`] when [`Self::deadline`] says so; everything else may come too.
    ///
    /// # Errors
    /// When STATE or the session table does not decode, or is of another host.
    pub fn recover(config: CoreConfig, recovered: Recovered) -> Result<Self, DecodeError> {
        let mut replica = Self::new(config);
        if let Some((position, state)) = &recovered.log_state {
            let (shape, host) = (replica.config.shape, replica.config.host());
            replica.log = HostLog::from_state(shape, host, state)?;
            if replica.log.end() != *position {
                return Err(DecodeError(format!(
                    "the STATE at {position} is that of {}",
                    replica.log.end()
                )));
            }
        }
        if let Some((checkpoint, service)) = recovered.checkpoint {
            let parts = replica.stand_at(&checkpoint, service)?;
            // A sibling that lost its disk may have nobody else to fetch it from.
            let (slot, sessions) = (checkpoint.slot, checkpoint.sessions);
            replica.serving.keep(slot, parts, sessions);
        }
        let epoch = replica.config.epoch;
        let recovered_memory = (
            recovered.is_new_epoch && recovered.is_unsure,
            recovered.is_ordered,
        );
        replica.recovery = Recovery::new(recovered.records, recovered.log_end, epoch);
        replica.recovery.is_new_epoch = recovered.is_new_epoch;
        replica.recovery.take_memory(&recovered_memory);
        replica.amnesia = Amnesia::new(recovered.nonce);
        replica.recall_proofs();
        replica.keep_below();
        let mut nothing = Effects::default();
        replica.adopt_log(&mut nothing);
        assert!(nothing.0.is_empty(), "nothing is executed yet");
        replica.recall_questions();
        Ok(replica)
    }

    /// The service stands at this checkpoint.
    pub(super) fn stand_at(
        &mut self,
        checkpoint: &Checkpoint,
        service: Digest,
    ) -> Result<CheckpointParts, DecodeError> {
        let bounds = Self::session_bounds(&self.config.tuning);
        self.sessions = SessionTable::from_image(bounds, &checkpoint.sessions)?;
        let base = self.is_tentative().then(|| checkpoint.sessions.clone());
        self.execution
            .stand_at(checkpoint.slot, base.unwrap_or_default());
        self.commit.stand_at(checkpoint.slot);
        self.stable = checkpoint.slot;
        self.chain.stand_at(checkpoint.slot, checkpoint.history);
        let digest = self.sessions.digest();
        let parts = CheckpointParts {
            service,
            sessions: digest,
            config: self.config.config_digest,
            history: checkpoint.history,
            timestamp_us: checkpoint.timestamp_us,
        };
        self.checkpoints.stand_at(checkpoint.slot, &parts);
        Ok(parts)
    }

    /// 2: a twin that lags past the end resynchronises from the agreed STATE and nothing else.
    pub(super) fn handle_lapped(&mut self, position: Position, state: &[u8], out: &mut Effects) {
        let (shape, host) = (self.config.shape, self.config.host());
        let log = HostLog::from_state(shape, host, state);
        // One of `q` twins is correct, and has made it from its own automaton.
        self.log = log.expect("q twins agreed on a STATE of this host");
        assert_eq!(self.log.end(), position, "STATE is that of its position");
        self.own.begin_again();
        self.mutes.begin_again();
        self.adopt_log(out);
        // The host may have certified in the meantime what this twin said before: nobody says it again.
        self.sign_recalled_checkpoint(out);
        self.poll_stable(out);
    }

    /// The host's automaton was replaced by an agreed STATE: this twin's own side of it follows.
    pub(super) fn adopt_log(&mut self, out: &mut Effects) {
        self.book.renew(self.log.incarnation(self.config.host()));
        let (accepted, accepted_history) = self.log.accepted();
        let committed = self.commit.committed();
        // Only what is committed is sure to be in the host's log. Above it may stand what a view change has dropped meanwhile.
        let sure = if self.owns(accepted, accepted_history) {
            accepted.max(committed)
        } else {
            committed
        };
        self.slots.drop_from(sure.next());
        self.undo_above(sure, out);
        self.forget_gap();
        self.recall_checkpoint();
        self.backup.leave_view();
        self.backup.set_tip(self.held_end(accepted));
        let _undone_already = self.take_over_chain(accepted, accepted_history);
        self.leader_voided(accepted.next());
        self.leader_adopts();
        let mut slot = accepted.next();
        while self.log.candidate(slot).is_some() {
            self.candidate_appeared(slot);
            let (me, candidate) = (self.config.twin(), self.log.candidate(slot));
            if let Some((attempt, endorsed)) =
                candidate.and_then(|c| Some((c.attempt, c.vote_of(me)?)))
            {
                self.voting.recall_own(slot, attempt, endorsed);
            }
            slot = slot.next();
        }
        self.raise_tip();
    }

    /// Own entries of the log are this twin's memory of what it has said.
    pub(super) fn note_posted(&mut self, bytes: &[u8]) {
        if self.recovery.is_replaying() {
            self.recovery.posted.insert(Digest::of(bytes));
        }
    }

    /// Until the start is over nothing is revealed: posts are held back, questions alone go out.
    pub(super) fn silence(&mut self, before: usize, out: &mut Effects) {
        let replaying = self.recovery.is_replaying();
        for effect in out.0.split_off(before) {
            match effect {
                // A question promises nothing.
                Effect::Post {
                    entry: entry @ Entry::Need { .. },
                    lazy,
                } if !replaying => out.push(Effect::Post { entry, lazy }),
                Effect::Post { entry, lazy } => self.recovery.hold(entry, lazy),
                Effect::Send { to, message } => {
                    // Nor does what the receiver verifies against what it knows: a sibling may wait for it.
                    let promises_nothing = matches!(
                        *message,
                        PeerMessage::FetchSlots { .. }
                            | PeerMessage::FetchChain { .. }
                            | PeerMessage::FetchNewView { .. }
                            | PeerMessage::FetchReport { .. }
                            | PeerMessage::FetchCheckpoint { .. }
                            | PeerMessage::FetchChunk(_)
                            | PeerMessage::Chain(_)
                            | PeerMessage::Chunk(_)
                    );
                    // Another host's ORDER, for a sibling that waits for HELLOs.
                    let passes_on =
                        matches!(*message, PeerMessage::Order(_)) && to.host == self.config.host();
                    if (promises_nothing || passes_on) && !replaying {
                        out.push(Effect::Send { to, message });
                    }
                }
                Effect::Persist(record) => {
                    let is_known = replaying
                        && self
                            .recovery
                            .known
                            .contains(&Digest::of(&canonical(&record)));
                    if !is_known {
                        out.push(Effect::Persist(record));
                    }
                }
                Effect::Reply(_) | Effect::Answer { .. } => {}
                Effect::Execute(_)
                | Effect::Rollback { .. }
                | Effect::Checkpoint(_)
                | Effect::KeepSnapshots { .. }
                | Effect::ReadChunk { .. }
                | Effect::RestoreBegin { .. }
                | Effect::RestoreChunk { .. }
                | Effect::RestoreActivate(_)
                | Effect::Query { .. }
                | Effect::Refuse { .. }
                | Effect::RefuseQuery { .. }
                | Effect::Trim { .. }
                | Effect::Evidence(_) => out.push(effect),
            }
        }
    }

    /// Goes on with the start; when it is over, what was held back is posted.
    pub(super) fn poll_recovery(&mut self, out: &mut Effects) {
        if let Phase::Replaying { until } = self.recovery.phase
            && self.log.end() >= until
        {
            self.recovery.phase = Phase::Opening;
            self.own.begin(self.log.entries_of(self.config.twin()));
            if self.log.is_opening() {
                // 8: before anything is said.
                self.take_over_claim();
            }
        }
        if matches!(self.recovery.phase, Phase::Opening | Phase::Asking) {
            if self.log.is_opening() {
                if self.log.forgotten().is_some() {
                    self.recovery.phase = Phase::Asking;
                }
                if self.is_forgetful() {
                    self.poll_amnesia(out);
                } else {
                    self.poll_hello(out);
                }
            } else {
                self.void_an_earlier_incarnation(out);
                self.recovery.phase = Phase::CatchingUp;
                self.raise_tip();
            }
        }
        if self.recovery.phase == Phase::CatchingUp
            && (self.first_missing().is_none() || self.has_lost())
        {
            self.recovery.phase = Phase::Running;
            self.raise_tip();
            self.speak_again(out);
        }
    }

    /// When the start can go on without an input of its own.
    pub(super) fn recovery_deadline(&self) -> Option<u64> {
        match self.recovery.phase {
            Phase::Replaying { until } if self.log.end() >= until => Some(self.now.mono_us),
            Phase::Replaying { .. }
            | Phase::Opening
            | Phase::Asking
            | Phase::CatchingUp
            | Phase::Running => None,
        }
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
