//! A replica starts again (protocol.md 8): from its write-ahead log, the checkpoint that its service stands at and the
//! retained postbox log; or, when its disk is gone, from the postbox log and the other hosts.
//!
//! It first reads the log up to where it ended at the start ([`Phase::Replaying`]), then fetches what it lacks of the
//! slots that its host has accepted ([`Phase::CatchingUp`]). Until both are done it is silent: what it would post is
//! held back, and what its log already has of that is dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use twinbft_types::wire::{CheckpointParts, PeerMessage};
use twinbft_types::{
    DecodeError, Digest, Entry, Epoch, HelloState, Position, Request, RequestRef, Slot, Statement,
    View, batch_digest, canonical, history,
};

use super::Replica;
use super::amnesia::Amnesia;
use super::quarantine::standing;
use super::slots::SlotData;
use crate::config::CoreConfig;
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
    certificate: Option<twinbft_types::Certificate>,
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

    /// The view in which this twin promised something about a slot.
    fn view_of(&self, slot: Slot, history: Digest) -> Option<View> {
        self.promises.iter().rev().find_map(|promise| {
            let (view, s, h) = match promise {
                Entry::Endorse {
                    view,
                    slot,
                    history,
                    ..
                }
                | Entry::Accept {
                    view,
                    slot,
                    history,
                } => (view, slot, history),
                Entry::Sign {
                    statement:
                        Statement::Order {
                            view,
                            slot,
                            history,
                        },
                    ..
                } => (view, slot, history),
                _ => return None,
            };
            ((*s, *h) == (slot, history)).then_some(*view)
        })
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
        self.recall_checkpoint();
        self.backup.leave_view();
        self.backup.set_tip(self.held_end(accepted));
        self.take_over_chain(accepted, accepted_history);
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

    /// Down to where a start keeps slots.
    fn floor_of_start(&self) -> Slot {
        let stable = self.stable.min(self.recovery.stable);
        Slot(stable.0.saturating_sub(self.config.tuning.checkpoint_slots))
    }

    /// The checkpoint that this twin stands at may be its own alone: a sibling that lost its disk then has nothing to verify it by
    /// (8, row 2), and needs the slots from the last stable one on. Those below are kept as they always are, one interval at
    /// hand and the rest by its bytes ([`super::past`]): of what others said of the checkpoint a part may be void or lost
    /// (8, incarnations), and a certified history with the slots below it serves those who lag as well.
    fn keep_below(&mut self) {
        let (mut slot, mut history) = (self.stable, self.checkpoints.stable_history());
        let floor = self.floor_of_start();
        while slot > floor
            && let Some(kept) = self.recovery.slots.get(&(slot, history))
        {
            let previous = kept.previous;
            let data = self.slot_data(slot, history, kept);
            self.slots.insert(slot, data);
            slot = Slot(slot.0 - 1);
            history = previous;
        }
        let mut below = Vec::new();
        while let Some(kept) = self.recovery.slots.get(&(slot, history)) {
            below.push((slot, history));
            slot = Slot(slot.0 - 1);
            history = kept.previous;
        }
        for (slot, history) in below.into_iter().rev() {
            let data = self.slot_data(slot, history, &self.recovery.slots[&(slot, history)]);
            self.past.push(slot, data, self.config.tuning.retain_bytes);
        }
    }

    /// Takes the slots up to this one over from the write-ahead log, as far down as they are there and needed.
    pub(super) fn take_over_chain(&mut self, slot: Slot, history: Digest) {
        if self.recovery.slots.is_empty() {
            return;
        }
        let (mut slot, mut history) = (slot, history);
        while slot > self.execution.begun()
            && self
                .slots
                .get(slot)
                .is_none_or(|data| data.history != history)
        {
            let Some(kept) = self.recovery.slots.get(&(slot, history)) else {
                return;
            };
            let previous = kept.previous;
            let data = self.slot_data(slot, history, kept);
            for request in &data.requests {
                self.voting.note_proposed(request.client, request.seq, slot);
            }
            self.slots.insert(slot, data);
            slot = Slot(slot.0 - 1);
            history = previous;
        }
    }

    fn slot_data(&self, slot: Slot, history: Digest, kept: &KeptSlot) -> SlotData {
        let shape = self.config.shape;
        let view = match kept.certificate.as_ref().map(|c| &c.signed.statement) {
            Some(Statement::Order { view, .. }) => *view,
            _ => self.recovery.view_of(slot, history).unwrap_or_default(),
        };
        let primary = shape.primary(view);
        let incarnation = kept.certificate.as_ref().map_or_else(
            || self.log.incarnation(self.config.host()),
            |certificate| certificate.signed.incarnation,
        );
        let mut data = SlotData::new(
            (view, primary, incarnation),
            history,
            kept.timestamp_us,
            kept.bodies.iter().map(Request::reference).collect(),
            kept.bodies.iter().cloned().map(Some).collect(),
            self.now.mono_us,
        );
        data.is_persisted = true;
        for authenticator in kept.certificate.iter().flat_map(|c| &c.authenticators) {
            data.add_signature(authenticator.clone());
        }
        if primary == self.config.host() && slot <= self.log.accepted().0 {
            // Decided, so it may be signed again (release rule); a MAC of the same bytes is the same.
            let statement = Statement::Order {
                view,
                slot,
                history,
            };
            let signed = self.signed(statement);
            data.add_signature(self.config.keys.sign(shape, &signed));
        }
        data
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
        let lacks = self.first_missing().is_some();
        if self.recovery.phase == Phase::CatchingUp && !lacks {
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

    /// The first words: promises that the log lacks, then what was held back and the log lacks.
    fn speak_again(&mut self, out: &mut Effects) {
        let floor = self.floor_of_start();
        let recovery = std::mem::take(&mut self.recovery);
        // The retained log may reach further down than what this twin and its siblings stand at (11.9).
        self.trim_slots(floor);
        let (left, wished) = self.log.standing_of(self.config.twin());
        let promised = |view_of: fn(&Entry) -> Option<View>| {
            let views = recovery.promises.iter().filter_map(view_of);
            views.max().unwrap_or_default()
        };
        let accepted = promised(|entry| match entry {
            Entry::NvAccept { view, .. } => Some(*view),
            _ => None,
        });
        let promised_left = promised(|entry| match entry {
            Entry::Leave { view, .. } => Some(*view),
            _ => None,
        });
        self.views.recall(left.max(promised_left), accepted);
        self.suspicion.recall(wished);
        self.suspect_anew(false);
        self.forwards.forget_posted();
        self.heartbeats.reset(self.now.mono_us);
        let is_posted = |entry: &Entry| recovery.posted.contains(&Digest::of(&canonical(entry)));
        // Appends are FIFO, so the log has every promise before the last one that it shows.
        let is_shown = |entry: &Entry| {
            // A READMIT here says what the host has decided, and is no word of this twin's.
            !matches!(entry, Entry::Readmit { .. }) && is_posted(entry)
        };
        let shown = recovery.promises.iter().rposition(is_shown);
        let first = shown.map_or(0, |last| last + 1);
        if !recovery.remembers || recovery.is_new_epoch {
            // 8: what the host has accepted is in the new write-ahead log; from here on it counts.
            let epoch = self.config.epoch;
            out.push(Effect::Persist(Record::Joined { epoch }));
        }
        // Those of an earlier epoch are in what the HELLOs said.
        let first = if recovery.is_new_epoch {
            recovery.promises.len()
        } else {
            first
        };
        let accused = standing(&recovery.promises);
        for promise in &recovery.promises[first..] {
            if matches!(promise, Entry::Quarantine { twin } if !accused.contains(twin)) {
                continue;
            }
            if self.still_counts(promise) {
                out.post(promise.clone());
            }
        }
        // The service may have made a checkpoint durable just before its CHECKPOINT was promised: others wait for it.
        let (slot, digest) = (self.stable, self.checkpoints.stable_digest());
        let checkpoint = Entry::Checkpoint { slot, digest };
        if slot > Slot(0) && slot <= self.log.accepted().0 && !is_posted(&checkpoint) {
            out.push(Effect::Persist(Record::Promise(checkpoint.clone())));
            out.post(checkpoint);
        }
        for (entry, lazy) in recovery.held {
            if !is_posted(&entry) && self.is_still_wanted(&entry) {
                out.push(Effect::Post { entry, lazy });
            }
        }
        self.sign_recalled_checkpoint(out);
        if let Some(view) = self.log.live_view().filter(|_| !self.log.is_primary()) {
            // 6: an ACK is sent again until superseded; its signatures may lie below the log's head.
            let (slot, history) = self.log.accepted();
            if slot > Slot(0) {
                self.handle_accepted(view, slot, history, out);
            }
        }
    }

    /// Whether a promise that the log may lack still decides something; those that do not need not be repeated.
    fn still_counts(&mut self, promise: &Entry) -> bool {
        let accepted = self.log.accepted().0;
        match promise {
            Entry::Endorse {
                view,
                slot,
                attempt,
                history,
                ..
            } => {
                let me = self.config.twin();
                let candidate = self.log.candidate(*slot).is_some_and(|candidate| {
                    (candidate.attempt, candidate.history) == (*attempt, *history)
                        && !candidate.has_vote_of(me)
                });
                let counts = candidate && self.log.live_view() == Some(*view);
                if counts {
                    self.voting.recall_own(*slot, *attempt, true);
                }
                counts
            }
            Entry::Accept { view, slot, .. } => {
                self.log.live_view() == Some(*view) && *slot > accepted
            }
            Entry::Checkpoint { slot, .. } => *slot <= accepted,
            Entry::Leave { view, .. } => {
                view.0 > 0 && !self.log.has_left(self.config.twin(), View(view.0 - 1))
            }
            Entry::Jump { slot, .. } => *slot > accepted,
            Entry::Results { .. } => self.is_still_wanted(promise),
            // Whoever asked asks again.
            Entry::Peer { .. } | Entry::Relay { .. } | Entry::ResultAgain { .. } => false,
            Entry::Sign {
                statement: Statement::Order { slot, .. },
                ..
            } => *slot > self.commit.committed(),
            Entry::Quarantine { twin } => self.still_accuses(*twin),
            Entry::Readmit { .. } => false,
            _ => true,
        }
    }

    fn is_still_wanted(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Results { slot, .. } => {
                self.log.result_votes(*slot) > 0 || slot.0 + RESULTS_AGAIN > self.log.accepted().0.0
            }
            Entry::Accept { view, slot, .. } => {
                self.log.live_view() == Some(*view) && *slot > self.log.accepted().0
            }
            // It may have been readmitted in what was read since.
            Entry::Quarantine { twin } => self.is_accused(*twin) && self.still_accuses(*twin),
            _ => true,
        }
    }
}

impl Replica {
    /// The end of this twin's own chain on a backup host, as far as it holds it: what its host has accepted, and what
    /// it has promised to accept beyond.
    pub(super) fn raise_tip(&mut self) {
        let Some(view) = self.log.live_view().filter(|_| !self.log.is_primary()) else {
            return;
        };
        let held = match self.first_missing() {
            Some(missing) => Slot(missing.0 - 1),
            None => self.log.accepted().0.max(self.execution.begun()),
        };
        self.backup.raise_tip(held);
        while let Some(slot) = self.promised_next(view) {
            self.backup.raise_tip(slot);
        }
    }

    /// The slot after the tip, when the write-ahead log promises its acceptance in this view.
    fn promised_next(&mut self, view: View) -> Option<Slot> {
        let tip = self.backup.tip();
        let (slot, end) = (tip.next(), self.history_of(tip)?);
        let promised = self.recovery.promises.iter().rev();
        let history = promised.into_iter().find_map(|promise| match promise {
            Entry::Accept {
                view: v,
                slot: s,
                history,
            } if (*v, *s) == (view, slot) => Some(*history),
            _ => None,
        })?;
        let kept = self.recovery.slots.get(&(slot, history))?;
        if kept.previous != end {
            return None;
        }
        let data = self.slot_data(slot, history, kept);
        self.slots.insert(slot, data);
        Some(slot)
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
