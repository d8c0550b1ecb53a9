//! Holding a log that somebody else vouches for: its slots are fetched from the end downwards, and each is verified by
//! the history that the one above it names, whoever sent it (protocol.md 5, 6).

use std::collections::BTreeMap;
use std::sync::Arc;

use twinbft_types::wire::{ChainSlot, PeerMessage};
use twinbft_types::{Digest, ReplicaId, Request, RequestRef, Slot, TwinId, batch_digest, history};

use super::Replica;
use super::slots::SlotData;
use crate::fault::PeerFault;
use crate::io::{Effect, Effects};
use crate::mutants::{Rule, out as is_out};
use crate::record::Record;

/// Most slots in one answer.
pub const CHAIN_SLOTS_MAX: usize = 64;
/// Most bytes of operations in one answer; a single larger slot goes alone.
const CHAIN_BYTES_MAX: usize = 1024 * 1024;

/// Logs that are fetched at once: chosen logs of one view differ in what was under way when the old one was left.
const FETCHES_MAX: usize = 4;

/// A log's end that this twin wants to hold, and what it has of it.
#[derive(Clone, Debug)]
struct Fetch {
    target: (Slot, Digest),
    /// Verified slots with their histories. Invariant: without gaps from the target down to `missing`.
    fetched: BTreeMap<Slot, (Digest, ChainSlot)>,
    /// The highest slot that is not fetched, and its history.
    missing: (Slot, Digest),
    /// Whether the fetched slots are in the write-ahead log.
    persisted: bool,
    /// When the next question is due.
    ask_at_us: u64,
    /// How often it was asked, to ask another twin each time.
    asked: usize,
}

impl Fetch {
    /// Whether the log that ends so is this one, or a beginning of it.
    fn contains(&self, end: (Slot, Digest)) -> bool {
        self.target == end || self.missing == end || {
            let fetched = self.fetched.get(&end.0);
            fetched.is_some_and(|(history, _)| *history == end.1)
        }
    }
}

/// The logs that this twin wants to hold. Each stays until the view is left or entered, so that what it has voted for
/// cannot get lost.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    fetches: Vec<Fetch>,
}

impl Chain {
    pub fn len(&self) -> usize {
        self.fetches.iter().map(|fetch| fetch.fetched.len()).sum()
    }

    /// The highest end of a log that is fetched.
    pub fn target(&self) -> Option<Slot> {
        self.fetches.iter().map(|fetch| fetch.target.0).max()
    }

    /// Another view: what was wanted for this one is of no use.
    pub fn forget(&mut self) {
        self.fetches.clear();
    }

    /// Nobody wants this log any more, and none that goes on from there.
    pub fn give_up(&mut self, end: (Slot, Digest)) {
        self.fetches.retain(|fetch| !fetch.contains(end));
    }

    /// Nobody wants the log that ends so for its own sake.
    pub fn want_no_more(&mut self, end: (Slot, Digest)) {
        self.fetches.retain(|fetch| fetch.target != end);
    }

    /// This twin stands at a checkpoint: what is below is not fetched any more, nor a log that does not contain it.
    pub fn stand_at(&mut self, slot: Slot, history: Digest) {
        self.fetches.retain_mut(|fetch| {
            if fetch.missing.0 >= slot {
                return true;
            }
            let contains = fetch.target.0 > slot && fetch.contains((slot, history));
            fetch.missing = (slot, history);
            fetch.fetched = fetch.fetched.split_off(&slot.next());
            contains
        });
    }
}

impl Replica {
    /// Whether this twin's own slots make up the log that ends so. None may lack a body.
    pub(super) fn owns(&self, slot: Slot, history: Digest) -> bool {
        slot >= self.stable
            && self.history_of(slot) == Some(history)
            && (self.stable.0 + 1..=slot.0).all(|n| {
                let data = self.slots.get(Slot(n));
                data.is_some_and(SlotData::is_complete)
            })
    }

    /// The fetch that has everything of this log that this twin's own slots have not.
    fn joined(&self, target: (Slot, Digest)) -> Option<usize> {
        self.chain
            .fetches
            .iter()
            .position(|fetch| fetch.contains(target) && self.owns(fetch.missing.0, fetch.missing.1))
    }

    pub(super) fn is_joined(&self, target: (Slot, Digest)) -> bool {
        self.joined(target).is_some()
    }

    /// Up to here this twin's own slots are known to be committed: what is executed, and what a way by batches has brought. No other
    /// log is put over them.
    pub(super) fn sure_end(&self) -> Slot {
        let brought = self.transfer.bridge.end();
        let held = self.execution.begun().max(brought);
        self.commit.committed().min(held)
    }

    /// Whether another history is known to be committed there.
    pub(super) fn contradicts_committed(&self, slot: Slot, history: Digest) -> bool {
        slot <= self.sure_end() && self.history_of(slot).is_some_and(|own| own != history)
    }

    /// Whether what is fetched of this log shows that it is another one than what is committed.
    pub(super) fn fetched_contradicts(&self, target: (Slot, Digest)) -> bool {
        let mut fetches = self.chain.fetches.iter().filter(|f| f.contains(target));
        fetches.any(|fetch| {
            let mut fetched = fetch.fetched.range(..=target.0);
            self.contradicts_committed(fetch.missing.0, fetch.missing.1)
                || fetched.any(|(slot, (history, _))| self.contradicts_committed(*slot, *history))
        })
    }

    /// The fetched slots of this log above that end of it, when all that this twin's own slots lack is here.
    pub(super) fn joined_above(
        &self,
        target: (Slot, Digest),
        base: (Slot, Digest),
    ) -> Option<Vec<&ChainSlot>> {
        let fetch = &self.chain.fetches[self.joined(target)?];
        if !fetch.contains(base) {
            return None;
        }
        let above = fetch.fetched.range(base.0.next()..=target.0);
        Some(above.map(|(_, (_, fetched))| fetched).collect())
    }

    /// 6: to hold a log is to have its slots durably. Answers whether this twin does, once what it is about to post
    /// has waited for its write-ahead log; if not, it goes to fetch what it lacks.
    pub(super) fn hold(&mut self, slot: Slot, history: Digest, out: &mut Effects) -> bool {
        if is_out(Rule::HoldsChosenLog) {
            return true;
        }
        if self.owns(slot, history) {
            self.persist_up_to(slot, out);
            return true;
        }
        let Some(index) = self.joined((slot, history)) else {
            self.want(slot, history);
            return false;
        };
        self.persist_up_to(self.chain.fetches[index].missing.0, out);
        let fetch = &mut self.chain.fetches[index];
        if !fetch.persisted {
            fetch.persisted = true;
            for (slot, (_, fetched)) in &fetch.fetched {
                out.push(Effect::Persist(Record::Slot {
                    slot: *slot,
                    previous: fetched.previous,
                    timestamp_us: fetched.timestamp_us,
                    bodies: fetched.bodies.clone(),
                    certificate: None,
                }));
            }
        }
        true
    }

    /// Puts into the write-ahead log what no promise has put there before.
    pub(super) fn persist_up_to(&mut self, last: Slot, out: &mut Effects) {
        let mut previous = self.history_of(self.stable);
        let first = self.stable.next();
        for (slot, data) in self.slots.iter_mut_from(first) {
            if slot > last {
                break;
            }
            if !data.is_persisted
                && let Some(previous) = previous
            {
                data.is_persisted = true;
                out.push(Effect::Persist(data.record(slot, previous)));
            }
            previous = Some(data.history);
        }
    }

    pub(super) fn want(&mut self, slot: Slot, history: Digest) {
        if slot > self.high_mark() {
            // What lies beyond the marks comes by state transfer.
            self.transfer.note_beyond(slot);
            return;
        }
        if slot <= self.stable {
            // A snapshot has no slots below it, and no other log.
            return;
        }
        let target = (slot, history);
        let is_wanted = self.chain.fetches.iter().any(|f| f.contains(target));
        if is_wanted || self.chain.fetches.len() >= FETCHES_MAX {
            return;
        }
        self.chain.fetches.push(Fetch {
            target,
            fetched: BTreeMap::new(),
            missing: target,
            persisted: false,
            ask_at_us: self.now.mono_us,
            asked: 0,
        });
    }

    /// The log with which a view begins is the host's from now on: this twin's own slots are brought into line with it,
    /// as far as it holds it. The rest is fetched ([`super::catchup`]). Answers up to where what this twin had is in it.
    pub(super) fn adopt(&mut self, slot: Slot, history: Digest) -> Slot {
        let replaced = self.take_over_chain(slot, history);
        let committed = self.commit.committed();
        let has_lost = self.fetched_contradicts((slot, history));
        let sure = if self.owns(slot, history) {
            // What is committed beyond, and this twin has fetched before it entered, extends it.
            let end = slot.max(committed);
            self.slots.drop_from(end.next());
            replaced.map_or(end, |first| Slot(first.0 - 1))
        } else if self.is_joined((slot, history)) && !has_lost {
            self.join_chain((slot, history))
        } else {
            // Only what is committed is sure to be in it.
            self.slots.drop_from(committed.next());
            committed
        };
        self.chain.forget();
        sure.max(committed)
    }

    /// Makes a log that is joined this twin's own. Answers up to where its own slots were that log's already.
    pub(super) fn join_chain(&mut self, target: (Slot, Digest)) -> Slot {
        let index = self.joined(target).expect("the caller has seen it");
        let sure = self.chain.fetches[index].missing.0;
        self.slots.drop_from(sure.next());
        for (slot, data) in self.take_chain(target) {
            self.slots.insert(slot, data);
        }
        sure
    }

    /// The fetched slots of this log, which is joined, for this twin's own.
    pub(super) fn take_chain(&mut self, target: (Slot, Digest)) -> Vec<(Slot, SlotData)> {
        let index = self.joined(target).expect("the caller has seen it");
        let fetch = self.chain.fetches.swap_remove(index);
        let is_persisted = fetch.persisted;
        let wanted = fetch.fetched.into_iter();
        wanted
            .take_while(|(slot, _)| *slot <= target.0)
            .map(|(slot, (history, fetched))| {
                (slot, self.fetched_data(history, fetched, is_persisted))
            })
            .collect()
    }

    /// The same, when they are here; a longer log that is fetched for a view stays whole.
    pub(super) fn chain_copy(&mut self, target: (Slot, Digest)) -> Option<Vec<(Slot, SlotData)>> {
        let index = self.joined(target)?;
        if self.chain.fetches[index].target == target {
            return Some(self.take_chain(target));
        }
        let fetch = &self.chain.fetches[index];
        let is_persisted = fetch.persisted;
        let wanted = fetch.fetched.range(..=target.0);
        let copied = wanted.map(|(slot, (history, fetched))| {
            (
                *slot,
                self.fetched_data(*history, fetched.clone(), is_persisted),
            )
        });
        Some(copied.collect())
    }

    /// Puts fetched slots among this twin's own; what is known of the same log already is completed.
    pub(super) fn overlay(&mut self, slots: Vec<(Slot, SlotData)>, out: &mut Effects) {
        let other = slots.iter().find(|(slot, data)| {
            let known = self.slots.get(*slot);
            known.is_some_and(|known| known.history != data.history)
        });
        if let Some((slot, _)) = other {
            // 4.7: another log was executed tentatively in its place.
            self.undo_above(Slot(slot.0 - 1), out);
        }
        for (slot, data) in slots {
            match self.slots.get_mut(slot) {
                Some(known) if known.history == data.history => {
                    for body in data.bodies.iter().flatten() {
                        known.fill(body.digest(), body);
                    }
                }
                _ => self.slots.insert(slot, data),
            }
        }
    }

    fn fetched_data(&self, history: Digest, fetched: ChainSlot, is_persisted: bool) -> SlotData {
        let view = self.log.current_view();
        let primary = self.config.shape.primary(view);
        let incarnation = self.log.incarnation(primary);
        let requests: Vec<RequestRef> = fetched.bodies.iter().map(Request::reference).collect();
        let mut data = SlotData::new(
            (view, primary, incarnation),
            history,
            fetched.timestamp_us,
            requests,
            fetched.bodies.into_iter().map(Some).collect(),
            self.now.mono_us,
        );
        data.is_persisted = is_persisted;
        data
    }

    /// One slot of a log, of this twin's own or of one that it holds for a view that is not installed yet.
    fn chain_slot(&self, slot: Slot, history: Digest) -> Option<ChainSlot> {
        if slot == Slot(0) {
            return None;
        }
        let own = self.slots.get(slot).filter(|d| d.history == history);
        let below = Slot(slot.0 - 1);
        let previous = self.history_of(below).or_else(|| self.past.end_at(below));
        if let Some(data) = own.filter(|data| data.is_complete())
            // Below it may stand another log that is committed.
            && let Some(previous) = previous.filter(|previous| data.extends(*previous, slot))
        {
            return Some(ChainSlot {
                slot,
                previous,
                timestamp_us: data.timestamp_us,
                bodies: data.bodies.iter().flatten().cloned().collect(),
            });
        }
        if let Some((_, kept)) = self.past.get(slot).filter(|(h, _)| *h == history) {
            return Some(kept.clone());
        }
        let mut held = self.chain.fetches.iter().map(|f| f.fetched.get(&slot));
        let found = held.find_map(|fetched| fetched.filter(|(h, _)| *h == history));
        found.map(|(_, fetched)| fetched.clone())
    }

    /// Somebody wants the slots below a log's end, that end included.
    pub(super) fn handle_fetch_chain(
        &self,
        from: ReplicaId,
        slot: Slot,
        history: Digest,
        out: &mut Effects,
    ) {
        let (mut slot, mut wanted, mut bytes) = (slot, history, 0);
        let mut chain: Vec<ChainSlot> = Vec::new();
        while chain.len() < CHAIN_SLOTS_MAX
            && let Some(found) = self.chain_slot(slot, wanted)
        {
            bytes += found
                .bodies
                .iter()
                .map(|b| b.operation.len())
                .sum::<usize>();
            if bytes > CHAIN_BYTES_MAX && !chain.is_empty() {
                break;
            }
            (slot, wanted) = (Slot(slot.0 - 1), found.previous);
            chain.push(found);
        }
        if !chain.is_empty() {
            let message = Arc::new(PeerMessage::Chain(chain));
            out.push(Effect::Send { to: from, message });
        }
    }

    pub(super) fn handle_chain(
        &mut self,
        from: ReplicaId,
        chain: Vec<ChainSlot>,
    ) -> Result<(), PeerFault> {
        if chain.len() > CHAIN_SLOTS_MAX {
            return Err(PeerFault::FetchTooLong { from });
        }
        let mut extended = None;
        for fetched in chain {
            if fetched.bodies.len() > self.config.tuning.batch_requests_max {
                return Err(PeerFault::BatchTooLarge { from });
            }
            let requests: Vec<RequestRef> = fetched.bodies.iter().map(Request::reference).collect();
            let batch = batch_digest(&requests);
            let slot = fetched.slot;
            let mut own = history(fetched.previous, slot, batch, fetched.timestamp_us);
            if is_out(Rule::ChainHash)
                && let Some(wanted) = (self.chain.fetches.iter()).find(|f| f.missing.0 == slot)
            {
                own = wanted.missing.1;
            }
            let fits = |fetch: &Fetch| fetch.missing == (slot, own) && slot > self.stable;
            let index = match extended {
                Some(index) if fits(&self.chain.fetches[index]) => index,
                // Its own first slot was right, so it knew what was asked.
                Some(_) => return Err(PeerFault::HistoryMismatch { from }),
                // What fits nowhere may be the answer to an earlier question.
                None => match self.chain.fetches.iter().position(fits) {
                    Some(index) => index,
                    None => return Ok(()),
                },
            };
            if self.owns(slot, own) {
                return Ok(());
            }
            extended = Some(index);
            let now_us = self.now.mono_us;
            let fetch = &mut self.chain.fetches[index];
            fetch.missing = (Slot(slot.0 - 1), fetched.previous);
            fetch.fetched.insert(slot, (own, fetched));
            fetch.ask_at_us = now_us;
        }
        Ok(())
    }

    /// All other twins, neighbours of different hosts, the twins of this one's number first. 4.5: siblings included; what
    /// was decided here and not sent yet is nowhere else.
    pub(super) fn everybody(&self) -> Vec<ReplicaId> {
        let (shape, me) = (self.config.shape, self.config.me);
        let twins = shape.twins();
        let in_turn = (0..twins).map(|offset| TwinId((me.twin.0 + offset) % twins));
        in_turn
            .flat_map(|twin| shape.all_hosts().map(move |host| ReplicaId { host, twin }))
            .filter(|other| *other != me)
            .collect()
    }

    /// Asks for what is missing, another twin each time.
    pub(super) fn chain_timer(&mut self, out: &mut Effects) {
        let targets = self.everybody();
        for index in 0..self.chain.fetches.len() {
            let Fetch {
                missing: (slot, history),
                ask_at_us,
                asked,
                ..
            } = self.chain.fetches[index];
            if ask_at_us > self.now.mono_us || targets.is_empty() || self.owns(slot, history) {
                continue;
            }
            let fetch = &mut self.chain.fetches[index];
            fetch.ask_at_us = self.now.mono_us + self.config.tuning.fetch_after_us;
            fetch.asked = asked.wrapping_add(1);
            let to = targets[asked % targets.len()];
            let message = Arc::new(PeerMessage::FetchChain { slot, history });
            out.push(Effect::Send { to, message });
        }
    }

    pub(super) fn chain_deadline(&self) -> Option<u64> {
        let fetches = self.chain.fetches.iter();
        let open = fetches.filter(|fetch| !self.owns(fetch.missing.0, fetch.missing.1));
        open.map(|fetch| fetch.ask_at_us).min()
    }
}
