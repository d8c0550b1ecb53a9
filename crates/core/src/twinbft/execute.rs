//! Execution in slot order (protocol.md 4.7).

use std::collections::VecDeque;

use bytes::Bytes;
use twinbft_types::{
    ClientId, Digest, Domain, Entry, Mac, ProcessId, Request, RequestRef, ResultMac, Seq, Slot,
    Statement,
};

use super::Replica;
use crate::io::{Effect, Effects, Execute};
use crate::record::Record;
use crate::session::Kept;

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
    /// Nothing more is handed over until this slot is executed and its checkpoint has begun.
    checkpoint: Option<Slot>,
}

#[derive(Clone, Debug)]
struct Outstanding {
    slot: Slot,
    /// For each request of the batch, whether it is executed or a no-op.
    plan: Vec<(RequestRef, bool)>,
}

impl Execution {
    pub const fn executed(&self) -> Slot {
        self.executed
    }

    /// Whether the service is executing this request now.
    pub fn is_under_way(&self, client: ClientId, seq: Seq) -> bool {
        let mut plans = self.outstanding.iter().flat_map(|slot| &slot.plan);
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

    /// The service stands at this slot, and nothing is under way.
    pub fn stand_at(&mut self, slot: Slot) {
        assert!(self.outstanding.is_empty(), "the service has answered");
        *self = Self {
            begun: slot,
            executed: slot,
            ..Self::default()
        };
    }
}

impl Replica {
    /// Hands over what is committed, in slot order.
    pub(super) fn poll_execution(&mut self, out: &mut Effects) {
        while self.execution.checkpoint.is_none()
            && !self.transfer.is_activating()
            && self.execution.outstanding.len() < OUTSTANDING_MAX
            && self.execution.begun < self.commit.committed()
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
        self.execution
            .outstanding
            .push_back(Outstanding { slot, plan });
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
        let history = self
            .slots
            .get(slot)
            .expect("executing slots are held")
            .history;
        self.execution.executed = slot;
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
                self.result_mac(slot, request, digest)
            })
            .collect();
        assert!(results.next().is_none(), "one result for each request");
        let entry = Entry::Results {
            slot,
            history,
            view: None,
            results: macs.clone(),
        };
        // 3: with one host there is no other trace of what was executed.
        if self.config.shape.hosts() == 1 {
            out.push(Effect::Persist(Record::Promise(entry.clone())));
        }
        if !self.transfer.bridge.covers(slot) || self.config.shape.hosts() == 1 {
            let replied = self.reply_early(slot, history, &macs, out);
            // When the replies are out, the siblings need these results for the record only.
            out.push(Effect::Post {
                entry,
                lazy: replied,
            });
        }
        self.reply_late(slot, out);
        if self.execution.checkpoint == Some(slot) {
            self.begin_checkpoint(slot, out);
            self.execution.checkpoint = None;
        }
    }

    /// 4.8: this twin's signature on REPLY(h, n, c, s, result digest).
    pub(super) fn result_mac(
        &mut self,
        slot: Slot,
        request: &RequestRef,
        digest: Digest,
    ) -> ResultMac {
        let signed = self.signed(Statement::Reply {
            view: None,
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
