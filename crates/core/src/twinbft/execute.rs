//! Execution in slot order (protocol.md 4.7).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use twinbft_types::{
    ClientId, Digest, Domain, Entry, Mac, ProcessId, Request, RequestRef, ResultMac, Seq, Slot,
    Statement, View,
};

use super::Replica;
use crate::config;
use crate::io::{Effect, Effects, Execute};
use crate::mutants::{Rule, all_in, out as is_out};
use crate::record::Record;
use crate::session::{Kept, SessionImage, SessionTable};

/// Slots that the service may have before it at once.
const OUTSTANDING_MAX: usize = 16;

/// Where execution stands.
#[derive(Clone, Debug, Default)]
pub struct Execution {
    /// The last slot that was handed to the service.
    begun: Slot,
    /// The last slot whose results are known.
    executed: Slot,
    outstanding: VecDeque<Outstanding>,
    /// Nothing more is handed over until this slot is executed and committed, and its checkpoint has begun.
    checkpoint: Option<Slot>,
    /// The last checkpoint begun, or genesis, and the session table there: where an undo leads back to (4.7). The
    /// table is kept only when execution is tentative.
    base: (Slot, SessionImage),
    /// Slots above `base` whose RESULT this twin has posted, when tentative, and their histories.
    answered: BTreeMap<Slot, Digest>,
    /// How often tentatively executed slots were undone.
    undone: u64,
}

#[derive(Clone, Debug)]
struct Outstanding {
    slot: Slot,
    history: Digest,
    /// For each request of the batch, whether it is executed or a no-op.
    plan: Vec<(RequestRef, bool)>,
    /// A view change has dropped it: its results are of no use.
    is_undone: bool,
}

impl Execution {
    pub const fn executed(&self) -> Slot {
        self.executed
    }

    /// Whether the service is executing this request now.
    pub fn is_under_way(&self, client: ClientId, seq: Seq) -> bool {
        let standing = self.outstanding.iter().filter(|slot| !slot.is_undone);
        let mut plans = standing.flat_map(|slot| &slot.plan);
        plans.any(|(request, runs)| *runs && (request.client, request.seq) == (client, seq))
    }

    /// The last slot that was handed to the service.
    pub const fn begun(&self) -> Slot {
        self.begun
    }

    /// Whether the service has answered everything.
    pub fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// The service stands at this checkpoint, and nothing is under way.
    pub fn stand_at(&mut self, slot: Slot, sessions: SessionImage) {
        assert!(self.outstanding.is_empty(), "the service has answered");
        *self = Self {
            begun: slot,
            executed: slot,
            base: (slot, sessions),
            undone: self.undone,
            ..Self::default()
        };
    }

    /// A checkpoint has begun: nothing below it is ever undone.
    pub fn set_base(&mut self, slot: Slot, sessions: SessionImage) {
        self.base = (slot, sessions);
        self.answered = self.answered.split_off(&slot.next());
    }

    /// How often tentatively executed slots were undone.
    pub const fn undone(&self) -> u64 {
        self.undone
    }
}

impl Replica {
    pub(super) fn is_tentative(&self) -> bool {
        self.config.tuning.execution == config::Execution::Tentative
    }

    /// 4.7: the last slot that may be executed: the last committed one, or, when execution is tentative, the last one
    /// that the host has accepted in the view that it is in.
    fn executable(&self) -> Slot {
        let committed = self.commit.committed();
        match self.log.live_view().filter(|_| self.is_tentative()) {
            Some(view) => committed.max(self.commit.counted(view, self.surely_accepted())),
            None => committed,
        }
    }

    /// Hands over what may be executed, in slot order.
    pub(super) fn poll_execution(&mut self, out: &mut Effects) {
        self.poll_checkpoint(out);
        while self.execution.checkpoint.is_none()
            && !self.transfer.is_activating()
            && self.execution.outstanding.len() < OUTSTANDING_MAX
            && self.execution.begun < self.executable()
        {
            let slot = self.execution.begun.next();
            if !self.begin(slot, out) {
                return;
            }
        }
    }

    fn begin(&mut self, slot: Slot, out: &mut Effects) -> bool {
        let Some(data) = self.slots.get(slot).filter(|data| data.is_complete()) else {
            return false;
        };
        let previous = self.history_of(self.execution.begun);
        if previous.is_none_or(|previous| !data.extends(previous, slot)) && all_in() {
            // Slots of two logs, whoever put them here: a host's own is fetched (4.5), and nothing else is executed.
            self.slots.drop_from(slot);
            return false;
        }
        let (timestamp_us, seed) = (data.timestamp_us, data.history);
        let mut plan = Vec::with_capacity(data.requests.len());
        let mut requests: Vec<Request> = Vec::with_capacity(data.requests.len());
        for (reference, body) in data.requests.iter().zip(&data.bodies) {
            // 4.7: what is executed already, or below the window, is a no-op.
            let runs = self.sessions.begin(reference.client, reference.seq, slot);
            if runs {
                requests.push(body.clone().expect("the slot is complete"));
            }
            plan.push((*reference, runs));
        }
        for (reference, _) in &plan {
            self.voting.forget(reference.client, reference.seq);
            self.pool.remove(reference.client, reference.seq);
            self.forwards.remove(reference.client, reference.seq);
            self.leader_executed(reference.client);
        }
        self.execution.begun = slot;
        // What is executed is held, however it came.
        self.backup.raise_tip(slot);
        self.execution.outstanding.push_back(Outstanding {
            slot,
            history: seed,
            plan,
            is_undone: false,
        });
        if slot.0.is_multiple_of(self.config.tuning.checkpoint_slots) {
            self.execution.checkpoint = Some(slot);
        }
        out.push(Effect::Execute(Execute {
            slot,
            timestamp_us,
            seed,
            requests,
        }));
        true
    }

    pub(super) fn handle_executed(&mut self, slot: Slot, results: Vec<Bytes>, out: &mut Effects) {
        let outstanding = self
            .execution
            .outstanding
            .pop_front()
            .expect("the service answers what it was asked");
        assert_eq!(outstanding.slot, slot, "the service answers in order");
        if outstanding.is_undone {
            return;
        }
        let history = outstanding.history;
        self.execution.executed = slot;
        let view = self.reply_view(slot);
        let mut results = results.into_iter();
        let macs: Vec<ResultMac> = outstanding
            .plan
            .iter()
            .map(|(request, runs)| {
                if !runs {
                    return ResultMac {
                        digest: Digest::ZERO,
                        mac: Mac::default(),
                    };
                }
                let result = results.next().expect("one result for each request");
                let digest = Digest::of(&result);
                let kept = Kept {
                    slot,
                    history,
                    digest,
                    result: Some(result),
                };
                self.sessions.finish(request.client, request.seq, kept);
                self.result_mac((view, slot), request, digest)
            })
            .collect();
        assert!(results.next().is_none(), "one result for each request");
        if self.is_tentative() && self.execution.answered.insert(slot, history) == Some(history) {
            // Executed again after an undo: this twin has said so.
            self.reply_late(slot, out);
            self.poll_checkpoint(out);
            return;
        }
        let entry = Entry::Results {
            slot,
            history,
            view,
            results: macs.clone(),
        };
        if !self.transfer.bridge.covers(slot) || self.config.shape.hosts() == 1 {
            // 3, durability rule. With one host there is no other trace of what was executed.
            if self.config.shape.hosts() == 1 || self.is_tentative() {
                out.push(Effect::Persist(Record::Promise(entry.clone())));
            }
            let replied = self.reply_early((view, slot), history, &macs, out);
            // When the replies are out, the siblings need these results for the record only.
            out.push(Effect::Post {
                entry,
                lazy: replied,
            });
        }
        self.reply_late(slot, out);
        self.poll_checkpoint(out);
    }

    /// 5: a checkpoint begins once its slot is executed and *committed*. It outlives this process, so an acceptance that is
    /// foreseen only does not do: a crash before the ACCEPT is posted would leave the state of a log that nobody accepted.
    fn poll_checkpoint(&mut self, out: &mut Effects) {
        let Some(slot) = self.execution.checkpoint else {
            return;
        };
        let is_committed = slot <= self.commit.committed() || is_out(Rule::CommittedCheckpoint);
        let is_foreseen = slot > self.log.accepted().0 && slot <= self.surely_accepted();
        if self.execution.executed == slot && is_committed && !is_foreseen {
            self.execution.checkpoint = None;
            self.begin_checkpoint(slot, out);
        }
    }

    /// 4.7: the host's log has changed, and only up to `sure` is what this twin has executed known to be in it. When it
    /// has executed more, it goes back to its last checkpoint, which is of a committed slot, and executes again.
    pub(super) fn undo_above(&mut self, sure: Slot, out: &mut Effects) {
        if self.execution.begun <= sure || is_out(Rule::Undo) {
            return;
        }
        assert!(self.is_tentative(), "nothing committed is ever undone");
        let (slot, image) = self.execution.base.clone();
        assert!(slot <= sure, "a checkpoint is of a committed slot");
        let bounds = Self::session_bounds(&self.config.tuning);
        self.sessions =
            SessionTable::from_image(bounds, &image).expect("it was made from a session table");
        for outstanding in &mut self.execution.outstanding {
            outstanding.is_undone = true;
        }
        self.execution.begun = slot;
        self.execution.executed = slot;
        self.execution.checkpoint = None;
        self.execution.undone += 1;
        self.replies_undone(slot);
        // A state that is being taken over replaces what the service has.
        if !self.transfer.is_activating() {
            out.push(Effect::Rollback { slot });
        }
    }

    /// 4.8: a tentative reply names the view in which this host has accepted the slot. With Q ≤ 2 a backup knows that
    /// everything that it has accepted is committed (4.6). Like the slots that certify a result, this is read off the log,
    /// so that all twins sign the same words. What a twin that is ahead of its own host executes is committed.
    fn reply_view(&self, slot: Slot) -> Option<View> {
        let view = self.log.installed();
        let shape = self.config.shape;
        let is_known = shape.host_quorum() <= 2 && shape.primary(view) != self.config.host();
        let names = self.is_tentative() && !is_known && slot <= self.surely_accepted();
        (names && !is_out(Rule::ReplyView)).then_some(view)
    }

    /// The views under which this twin may repeat an answer: with none when the slot is committed, and the one that it
    /// gave first. Its siblings may not know of the commit yet, or have restarted.
    pub(super) fn repeat_views(&self, slot: Slot) -> impl Iterator<Item = Option<View>> {
        let committed = (slot <= self.commit.committed()).then_some(None);
        let tentative = self.reply_view(slot).map(Some);
        committed.into_iter().chain(tentative)
    }

    /// 4.8: this twin's signature on REPLY(h, n, c, s, result digest).
    pub(super) fn result_mac(
        &mut self,
        (view, slot): (Option<View>, Slot),
        request: &RequestRef,
        digest: Digest,
    ) -> ResultMac {
        let signed = self.signed(Statement::Reply {
            view,
            slot,
            client: request.client,
            seq: request.seq,
            result: digest,
        });
        let to = ProcessId::Client(request.client.key);
        let mac = self
            .config
            .keys
            .mac(to, Domain::Statement, signed.digest())
            .unwrap_or_default();
        ResultMac { digest, mac }
    }
}

#[cfg(test)]
#[path = "execute_tests.rs"]
mod tests;
