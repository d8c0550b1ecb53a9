//! A replica that is behind the others' checkpoints fetches the state of one (protocol.md 5): chunk by chunk, from
//! several twins of several hosts at once, each chunk verified on its own against the digest that `Q` hosts certified, or
//! one after a while (docs/adr/0026-without-its-disk.md). It takes no more in a second than it may, because what it writes
//! may cost the others more than what they send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use twinbft_types::wire::{
    CheckpointOffer, CheckpointParts, ChunkMessage, ChunkName, PeerMessage, StatePart,
};
use twinbft_types::{Digest, Entry, ReplicaId, Slot, Statement};

use super::Replica;
use super::bridge::Bridge;
use crate::config::Tuning;
use crate::evidence::{Event, EventKind};
use crate::fault::PeerFault;
use crate::io::{Checkpoint, Effect, Effects};
use crate::mutants::{Rule, out as is_out};
use crate::record::Record;
use crate::session::SessionFetch;

/// Who makes no progress for so many times `fetch_after` asks for a checkpoint.
const PATIENCE_FETCHES: u64 = 10;
/// It asks again after so long.
const ASK_EVERY_US: u64 = 500_000;
/// A chunk that does not come is asked of another twin after so long: a server may have a queue.
const CHUNK_PATIENCE_US: u64 = 1_000_000;
/// Who makes no progress for so long takes one host's word for a checkpoint.
const LONE_WORD_US: u64 = 2_000_000;
/// And not the same one again for so long, should nobody have that state.
const LONE_AGAIN_US: u64 = 10_000_000;
/// Chunks under way from one server.
const OF_A_SERVER_MAX: usize = 4;
/// Chunks under way, those that the service is writing included.
const UNDER_WAY_MAX: usize = 24;

/// How a fetch goes.
#[derive(Clone, Debug, Default)]
pub struct Transfer {
    /// Where execution stands still, and since when.
    stuck: Option<(Slot, u64)>,
    ask_at_us: u64,
    /// The end of a log that this twin is to hold, beyond its marks.
    beyond: Slot,
    fetching: Option<Fetching>,
    /// The way to the next checkpoint by batches.
    pub(super) bridge: Bridge,
    candidate: Option<Candidate>,
    /// The last checkpoint that was fetched on one host's word, and when that began.
    lone: Option<(Slot, u64)>,
    /// Checkpoints that this twin took over since it started.
    done: u64,
}

/// The highest checkpoint whose state was offered. What `Q` hosts agree on is better than one host's word.
#[derive(Clone, Debug)]
struct Candidate {
    offer: CheckpointOffer,
    is_agreed: bool,
    /// When the first one was offered: a way by batches is better, and may be offered a little later.
    since_us: u64,
}

/// A chunk that was asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    server: ReplicaId,
    at_us: u64,
    /// What it was taken to cost, in time.
    pays_us: u64,
}

/// A checkpoint that is fetched.
#[derive(Clone, Debug)]
struct Fetching {
    slot: Slot,
    parts: CheckpointParts,
    sessions: SessionFetch,
    /// What the service wants; `None` until it has said so for the first time.
    wanted: Option<BTreeSet<u64>>,
    asked: BTreeMap<(StatePart, u64), Asked>,
    /// Chunks that the service verifies and writes, and who sent them.
    writing: BTreeMap<u64, ReplicaId>,
    /// Servers that have not got this state, or sent a wrong chunk.
    useless: BTreeSet<ReplicaId>,
    /// Servers that did not answer in time.
    late: BTreeSet<ReplicaId>,
    /// Whether a chunk has come since all servers were late for the last time.
    has_come: bool,
    /// Of the last chunk that came: the next one is taken to be as long.
    chunk_bytes: u64,
    /// When what was asked for has been paid for: what has come by its length, what is under way by what it is taken to be.
    free_at_us: u64,
    next_server: usize,
    chunks: u64,
    /// Everything is here, and the service makes it its state.
    activating: bool,
}

/// How far a fetch is, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferProgress {
    /// The checkpoint.
    pub slot: Slot,
    /// Chunks that are here.
    pub chunks: u64,
    /// Chunks that are known to be needed so far.
    pub known: u64,
}

impl Transfer {
    pub fn progress(&self) -> Option<TransferProgress> {
        let fetching = self.fetching.as_ref()?;
        let wanted = fetching.wanted.as_ref().map_or(1, BTreeSet::len);
        let open = wanted + fetching.sessions.wanted(usize::MAX).len();
        Some(TransferProgress {
            slot: fetching.slot,
            chunks: fetching.chunks,
            known: fetching.chunks + open as u64,
        })
    }

    /// A log that this twin is to hold ends beyond its marks.
    pub fn note_beyond(&mut self, slot: Slot) {
        self.beyond = self.beyond.max(slot);
    }

    pub const fn done(&self) -> u64 {
        self.done
    }

    pub fn is_activating(&self) -> bool {
        self.fetching.as_ref().is_some_and(|f| f.activating)
    }

    pub const fn is_fetching(&self) -> bool {
        self.fetching.is_some()
    }
}

impl Replica {
    /// Whether a slot is known to exist that is not here, nor executed.
    fn lacks_next(&self) -> bool {
        let mut next = self.execution.begun().next();
        // Some may be here that this host has not accepted.
        while self.holds(next) {
            next = next.next();
        }
        self.log.accepted().0 >= next
            || self.backup.has_gap()
            || self.transfer.beyond >= next
            || self.chain.target().is_some_and(|end| end >= next)
            || self.behind().is_some()
    }

    /// Whether this twin may be behind without knowing of any slot: it has left a view that others may have stayed in, or
    /// hears nothing of its primary.
    fn hears_nothing(&self) -> bool {
        self.log.entering().is_some() || self.suspicion.wished() > self.log.current_view()
    }

    /// Notices that execution stands still, asks for a checkpoint, and for its chunks.
    pub(super) fn poll_transfer(&mut self, out: &mut Effects) {
        if self.poll_bridge(out) {
            self.transfer.ask_at_us = self.now.mono_us;
        }
        let begun = self.execution.begun();
        if !self.lacks_next() && !self.hears_nothing() {
            self.transfer.stuck = None;
        } else if self.transfer.stuck.is_none_or(|(slot, _)| slot != begun) {
            self.transfer.stuck = Some((begun, self.now.mono_us));
        }
        let target = self.transfer.fetching.as_ref().map(|f| f.slot);
        if target.is_some_and(|slot| slot <= begun) && !self.transfer.is_activating() {
            // The slots came after all.
            self.transfer.fetching = None;
        }
        if self.transfer.is_fetching() {
            self.ask_for_chunks(out);
            self.finish_fetch(out);
        } else if self.transfer.bridge.is_under_way() {
            self.transfer.candidate = None;
        } else if self.candidate_at().is_some_and(|at| at <= self.now.mono_us) {
            let candidate = self.transfer.candidate.take();
            if let Some(candidate) = candidate.filter(|c| c.offer.slot > begun) {
                if !candidate.is_agreed {
                    self.transfer.lone = Some((candidate.offer.slot, self.now.mono_us));
                }
                self.begin_fetch(&candidate.offer, out);
            }
        } else if self
            .ask_checkpoint_at()
            .is_some_and(|at| at <= self.now.mono_us)
        {
            self.transfer.ask_at_us = self.now.mono_us + ASK_EVERY_US;
            let above = begun.min(self.commit.committed());
            let question = Arc::new(PeerMessage::FetchCheckpoint { above });
            self.send_to_all(&question, out);
        }
    }

    fn candidate_at(&self) -> Option<u64> {
        let at = self.transfer.candidate.as_ref()?.since_us + self.config.tuning.fetch_after_us;
        Some(at.max(self.transfer.bridge.state_not_before_us()))
    }

    fn ask_checkpoint_at(&self) -> Option<u64> {
        let (stuck, since) = self.transfer.stuck?;
        let within = Slot(self.stable.0 + self.config.tuning.checkpoint_slots);
        if self.transfer.bridge.ended_at(stuck) && stuck <= within {
            return Some(self.transfer.ask_at_us);
        }
        let fetches = if self.recovery.is_silent() {
            2
        } else {
            PATIENCE_FETCHES
        };
        let patience = fetches * self.config.tuning.fetch_after_us;
        Some((since + patience).max(self.transfer.ask_at_us))
    }

    fn send_to_all(&self, message: &Arc<PeerMessage>, out: &mut Effects) {
        for to in self.everybody() {
            let message = message.clone();
            out.push(Effect::Send { to, message });
        }
    }

    pub(super) fn transfer_deadline(&self) -> Option<u64> {
        match &self.transfer.fetching {
            Some(fetching) => {
                let asked = fetching
                    .asked
                    .values()
                    .map(|asked| asked.at_us + CHUNK_PATIENCE_US);
                let pays = Some(fetching.free_at_us).filter(|at| *at > self.now.mono_us);
                asked.min().into_iter().chain(pays).min()
            }
            None if self.transfer.bridge.is_under_way() => self.transfer.bridge.deadline(),
            None => self.candidate_at().or_else(|| self.ask_checkpoint_at()),
        }
    }

    /// Somebody offers a checkpoint. It counts when `Q` hosts have certified its digest, or one when nothing else helps.
    pub(super) fn handle_offer(
        &mut self,
        from: ReplicaId,
        offer: &CheckpointOffer,
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        let digest = offer.parts.digest();
        if offer.parts.config != self.config.config_digest {
            return Err(PeerFault::OtherConfiguration { from });
        }
        let statement = Statement::Checkpoint {
            slot: offer.slot,
            digest,
        };
        let hosts = usize::from(self.config.shape.hosts());
        for certificate in offer.certificates.iter().take(hosts) {
            // One may be spoilt for this twin alone; the others tell.
            if certificate.signed.statement == statement
                && let Ok(signed) = self.verify(from, certificate)
            {
                self.handle_statement(from, &signed, certificate, out)?;
            }
        }
        if self.transfer.is_fetching() || !self.lacks_next() {
            return Ok(());
        }
        let is_agreed = self.is_agreed(offer.slot, digest) || is_out(Rule::CheckpointAgreed);
        let is_of_use = is_agreed || self.is_enough(offer.slot, digest);
        if offer.slot <= self.execution.begun() || !is_of_use {
            return Ok(());
        }
        // Behind a bridge its own digest would wait for `Q` hosts again.
        if (is_agreed && self.begin_bridge(offer)) || self.transfer.bridge.is_under_way() {
            return Ok(());
        }
        let known = self.transfer.candidate.as_ref();
        if known.is_none_or(|c| (c.is_agreed, c.offer.slot) < (is_agreed, offer.slot)) {
            let since_us = known.map_or(self.now.mono_us, |candidate| candidate.since_us);
            self.transfer.candidate = Some(Candidate {
                offer: offer.clone(),
                is_agreed,
                since_us,
            });
        }
        Ok(())
    }

    /// The words that make up a quorum may be gone, one with the log of a host and one with another host: whoever has waited for
    /// long takes one host's for it. It is as true: no host certifies a checkpoint before the slot is committed (5). When nobody
    /// has that state, it is not tried again for a while.
    fn is_enough(&self, slot: Slot, digest: Digest) -> bool {
        let now_us = self.now.mono_us;
        let begun = self.execution.begun();
        let stuck = self.transfer.stuck.filter(|(slot, _)| *slot == begun);
        let tried = self.transfer.lone.filter(|(tried, _)| *tried == slot);
        stuck.is_some_and(|(_, since_us)| since_us + LONE_WORD_US <= now_us)
            && tried.is_none_or(|(_, at_us)| at_us + LONE_AGAIN_US <= now_us)
            && self.is_said(slot, digest)
    }

    fn begin_fetch(&mut self, offer: &CheckpointOffer, out: &mut Effects) {
        self.transfer.fetching = Some(Fetching {
            slot: offer.slot,
            parts: offer.parts,
            sessions: SessionFetch::new(offer.parts.sessions),
            wanted: None,
            asked: BTreeMap::new(),
            writing: BTreeMap::new(),
            useless: BTreeSet::new(),
            late: BTreeSet::new(),
            has_come: false,
            chunk_bytes: 0,
            free_at_us: 0,
            next_server: 0,
            chunks: 0,
            activating: false,
        });
        out.push(Effect::RestoreBegin {
            slot: offer.slot,
            digest: offer.parts.service,
        });
    }

    /// The service wants these chunks, as far as it knows; with what it made of one that was handed to it.
    pub(super) fn handle_restoring(
        &mut self,
        slot: Slot,
        chunk: Option<(u64, bool)>,
        wanted: Vec<u64>,
        out: &mut Effects,
    ) {
        let Some(fetching) = self.transfer.fetching.as_mut().filter(|f| f.slot == slot) else {
            return;
        };
        fetching.wanted = Some(wanted.into_iter().collect());
        let sender = chunk.and_then(|(id, _)| fetching.writing.remove(&id));
        match (chunk, sender) {
            (Some((_, true)), _) => fetching.chunks += 1,
            (Some((_, false)), Some(from)) => {
                fetching.useless.insert(from);
                out.push(Effect::Evidence(Event {
                    host: from.host,
                    twin: Some(from.twin),
                    slot: Some(slot),
                    kind: EventKind::Invalid {
                        problem: "a chunk of its state that is not what Q hosts certified",
                    },
                }));
            }
            (Some((_, false)), None) | (None, _) => {}
        }
    }

    /// A chunk has come. It is verified on its own, whoever sent it.
    pub(super) fn handle_chunk(
        &mut self,
        from: ReplicaId,
        chunk: ChunkMessage,
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        let ChunkName { slot, part, id } = chunk.name;
        let Some(fetching) = self.transfer.fetching.as_mut().filter(|f| f.slot == slot) else {
            return Ok(());
        };
        let Some(asked) = fetching.asked.remove(&(part, id)) else {
            return Ok(());
        };
        let Some(bytes) = chunk.bytes else {
            fetching.useless.insert(from);
            return Ok(());
        };
        fetching.has_come = true;
        fetching.chunk_bytes = bytes.len() as u64;
        let paid = fetching.free_at_us + pays_us(&self.config.tuning, fetching.chunk_bytes);
        fetching.free_at_us = paid.saturating_sub(asked.pays_us);
        match part {
            StatePart::Service => {
                fetching.writing.insert(id, from);
                out.push(Effect::RestoreChunk { id, bytes });
            }
            StatePart::Sessions => match fetching.sessions.accept(id, &bytes) {
                Ok(()) => fetching.chunks += 1,
                Err(problem) => {
                    fetching.useless.insert(from);
                    return Err(PeerFault::BadChunk { from, problem });
                }
            },
        }
        Ok(())
    }

    fn ask_for_chunks(&mut self, out: &mut Effects) {
        let now_us = self.now.mono_us;
        let servers = self.everybody();
        let Some(fetching) = self.transfer.fetching.as_mut() else {
            return;
        };
        // Who does not answer is not asked again as long as there are others that do.
        let late = fetching.asked.iter();
        let late: Vec<_> = late
            .filter(|(_, asked)| asked.at_us + CHUNK_PATIENCE_US <= now_us)
            .map(|(name, asked)| (*name, asked.server))
            .collect();
        for (name, server) in late {
            fetching.asked.remove(&name);
            fetching.late.insert(server);
        }
        if !servers.iter().any(|server| fetching.is_of_use(*server)) {
            let has_come = std::mem::replace(&mut fetching.has_come, false);
            if !has_come || fetching.late.is_empty() {
                // Nobody has this state any more: there is a newer one.
                self.transfer.fetching = None;
                self.transfer.ask_at_us = now_us;
                return;
            }
            // All have much to do, and what is here already would have to come again.
            fetching.late.clear();
        }
        let service = fetching.wanted.iter().flatten();
        let service = service
            .filter(|id| !fetching.writing.contains_key(id))
            .map(|id| (StatePart::Service, *id));
        let sessions = fetching.sessions.wanted(UNDER_WAY_MAX).into_iter();
        let open: Vec<(StatePart, u64)> = sessions
            .map(|id| (StatePart::Sessions, id))
            .chain(service)
            .filter(|name| !fetching.asked.contains_key(name))
            .take(UNDER_WAY_MAX)
            .collect();
        for name in open {
            let under_way = fetching.asked.len() + fetching.writing.len();
            if under_way >= UNDER_WAY_MAX || fetching.free_at_us > now_us {
                return;
            }
            let Some(server) = fetching.poll_server(&servers) else {
                return;
            };
            let asked = Asked {
                server,
                at_us: now_us,
                pays_us: pays_us(&self.config.tuning, fetching.chunk_bytes),
            };
            fetching.asked.insert(name, asked);
            fetching.free_at_us = fetching.free_at_us.max(now_us) + asked.pays_us;
            let name = ChunkName {
                slot: fetching.slot,
                part: name.0,
                id: name.1,
            };
            let message = Arc::new(PeerMessage::FetchChunk(name));
            out.push(Effect::Send {
                to: server,
                message,
            });
        }
    }

    /// Everything is here: the service makes it its state as soon as it has nothing else to do.
    fn finish_fetch(&mut self, out: &mut Effects) {
        let is_idle = self.execution.is_idle();
        let Some(fetching) = self.transfer.fetching.as_mut() else {
            return;
        };
        let is_whole = fetching.wanted.as_ref().is_some_and(BTreeSet::is_empty)
            && fetching.writing.is_empty()
            && fetching.sessions.wanted(1).is_empty();
        if !is_whole || !is_idle || fetching.activating {
            return;
        }
        fetching.activating = true;
        out.push(Effect::RestoreActivate(Checkpoint {
            slot: fetching.slot,
            history: fetching.parts.history,
            timestamp_us: fetching.parts.timestamp_us,
            sessions: fetching.sessions.image(),
        }));
    }

    /// The service stands at the fetched checkpoint.
    pub(super) fn handle_restored(&mut self, slot: Slot, out: &mut Effects) {
        let fetching = self.transfer.fetching.take().expect("it was asked to");
        assert_eq!(fetching.slot, slot, "one fetch at a time");
        let parts = fetching.parts;
        let checkpoint = Checkpoint {
            slot,
            history: parts.history,
            timestamp_us: parts.timestamp_us,
            sessions: fetching.sessions.image(),
        };
        let digest = parts.digest();
        let is_exact = self.is_certified(slot, digest);
        self.stand_at(&checkpoint, parts.service)
            .expect("every session was verified");
        self.transfer.done += 1;
        self.transfer.stuck = None;
        out.push(Effect::Persist(Record::Stable { slot, digest }));
        self.checkpoints.note_stable(slot, digest, is_exact);
        self.keep_checkpoint(slot, parts, checkpoint.sessions, out);
        self.rejoin_chain();
        self.rebuild_in_log(self.log.accepted().0);
        if self.log.accepted().0 < slot {
            self.jump(slot, out);
        }
    }

    /// The slots above a fetched checkpoint stay as far as they extend it.
    pub(super) fn rejoin_chain(&mut self) {
        let keep = self.config.tuning.checkpoint_slots;
        self.slots.trim(Slot(self.stable.0.saturating_sub(keep)));
        let mut end = self.stable;
        while let Some(previous) = self.history_of(end)
            && let Some(data) = self.slots.get(end.next())
            && data.extends(previous, end.next())
        {
            end = end.next();
        }
        self.slots.drop_from(end.next());
        self.backup
            .set_tip(self.stable.max(self.backup.tip().min(end)));
        self.raise_tip();
    }

    /// 5: a twin posts JUMP only for a slot that it knows to be committed and holds durably.
    pub(super) fn jump(&mut self, slot: Slot, out: &mut Effects) {
        let Some(history) = self.history_of(slot) else {
            return;
        };
        let entry = Entry::Jump { slot, history };
        out.push(Effect::Persist(Record::Promise(entry.clone())));
        out.post(entry);
    }

    /// 5: a twin that can verify a sibling's JUMP posts the same one.
    pub(super) fn handle_jump_entry(&mut self, slot: Slot, out: &mut Effects) {
        let me = self.config.twin();
        let is_known = slot <= self.commit.committed() && slot <= self.execution.executed();
        let wanted = self.log.jumps().find_map(|(twin, s, history)| {
            let is_own = twin != me && s == slot && self.history_of(s) == Some(history);
            (is_own && (is_known || self.is_vouched(s, history))).then_some(history)
        });
        let has_posted = self.log.jumps().any(|(twin, s, _)| twin == me && s >= slot);
        if wanted.is_some() && !has_posted && slot > self.log.accepted().0 {
            self.jump(slot, out);
        }
    }

    /// The host has taken a committed slot over. What this twin accepted beyond it was too early to count.
    pub(super) fn handle_jumped(&mut self, slot: Slot, out: &mut Effects) {
        self.leave_gap();
        let (accepted, history) = self.log.accepted();
        // After a restart it may be in the write-ahead log, and the log before still in its place.
        if let Some(first) = self.take_over_chain(accepted, history) {
            self.undo_above(Slot(first.0 - 1), out);
            self.slots.drop_from(accepted.next());
            self.backup.set_tip(self.held_end(accepted));
            self.rebuild_in_log(accepted);
        }
        let tip = self.backup.tip();
        if let Some(view) = self.log.live_view().filter(|_| !self.log.is_primary()) {
            if tip > slot
                && let Some(history) = self.history_of(tip)
            {
                out.post(Entry::Accept {
                    view,
                    slot: tip,
                    history,
                });
            }
            let (slot, history) = self.log.accepted();
            self.handle_accepted(view, slot, history, out);
        }
    }
}

/// How long so many bytes take at the rate that a state may be taken at.
fn pays_us(tuning: &Tuning, bytes: u64) -> u64 {
    bytes.saturating_mul(1_000_000) / tuning.transfer_bytes_per_s.max(1)
}

impl Fetching {
    /// The next server that may be useful and has not too much to do for this twin.
    fn poll_server(&mut self, servers: &[ReplicaId]) -> Option<ReplicaId> {
        for _ in 0..servers.len() {
            let server = servers[self.next_server % servers.len()];
            self.next_server += 1;
            let asked = self.asked.values();
            let busy = asked.filter(|asked| asked.server == server).count();
            if self.is_of_use(server) && busy < OF_A_SERVER_MAX {
                return Some(server);
            }
        }
        None
    }

    fn is_of_use(&self, server: ReplicaId) -> bool {
        !self.useless.contains(&server) && !self.late.contains(&server)
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
