//! Fast reads, without ordering (protocol.md 7).

use std::collections::BTreeMap;

use bytes::Bytes;
use twinbft_types::{Digest, Domain, Mac, Position, ProcessId, Query, QueryAnswer, Slot, View};

use super::Replica;
use crate::fault::PeerFault;
use crate::io::{Effect, Effects, Refusal};
use crate::mutants::{Rule, out as is_out};

/// Fast reads that may wait; one more is refused, and its client reads in order.
const READS_MAX: usize = 8192;

/// Fast reads under way.
#[derive(Clone, Debug, Default)]
pub struct Reads {
    pending: BTreeMap<u64, Pending>,
    next_token: u64,
    /// The first token that still waits for the log or for execution.
    first_waiting: u64,
}

#[derive(Clone, Debug)]
struct Pending {
    query: Query,
    /// The true end of the log when the query came.
    log_end: Position,
    /// `n_acc` as of that entry, once this twin has read so far.
    target: Option<Slot>,
    asked: bool,
    /// The installed view when the service was asked, when execution is tentative (7).
    view: Option<View>,
}

impl Reads {
    pub fn len(&self) -> usize {
        self.pending.len()
    }
}

impl Replica {
    pub(super) fn handle_query(
        &mut self,
        query: Query,
        mac: &Mac,
        log_end: Position,
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        let key = query.client.key;
        let refuse = |out: &mut Effects, reason| {
            out.push(Effect::RefuseQuery {
                client: query.client,
                nonce: query.nonce,
                reason,
            });
        };
        // 7: a recovering twin answers nothing.
        if self.recovery.is_silent() {
            refuse(out, Refusal::Recovering);
            return Ok(());
        }
        let limit = self.config.tuning.request_bytes_max;
        if query.operation.len() > limit {
            refuse(out, Refusal::TooLarge);
            let bytes = query.operation.len();
            return Err(PeerFault::RequestTooLarge { key, bytes, limit });
        }
        let from = ProcessId::Client(key);
        if !self.config.keys.knows(from) {
            refuse(out, Refusal::UnknownClient);
            return Err(PeerFault::UnknownClient { key });
        }
        if !self
            .config
            .keys
            .verify(from, Domain::Query, query.digest(), mac)
        {
            refuse(out, Refusal::BadMac);
            return Err(PeerFault::BadClientMac { key });
        }
        if self.reads.pending.len() >= READS_MAX {
            refuse(out, Refusal::Busy);
            return Err(PeerFault::TooManyQueries);
        }
        let pending = Pending {
            query,
            log_end,
            target: None,
            asked: false,
            view: None,
        };
        self.reads.pending.insert(self.reads.next_token, pending);
        self.reads.next_token += 1;
        Ok(())
    }

    /// 7: answers only after execution up to `n_acc` as of the entry at the end of the log on arrival.
    pub(super) fn poll_reads(&mut self, out: &mut Effects) {
        let end = self.log.end();
        let (accepted, executed) = (self.log.accepted().0, self.execution.executed());
        let view = self.is_tentative().then(|| self.log.installed());
        let mut first_waiting = self.reads.next_token;
        for (token, pending) in self.reads.pending.range_mut(self.reads.first_waiting..) {
            if pending.target.is_none() && (end >= pending.log_end || is_out(Rule::ReadLogEnd)) {
                pending.target = Some(accepted);
            }
            if pending.asked {
                continue;
            }
            if pending.target.is_some_and(|target| target <= executed) {
                pending.asked = true;
                // What the service has been handed is in the log of this view, or committed.
                pending.view = view;
                out.push(Effect::Query {
                    token: *token,
                    operation: pending.query.operation.clone(),
                });
            } else {
                first_waiting = first_waiting.min(*token);
            }
        }
        self.reads.first_waiting = first_waiting;
    }

    /// A view begins with a log that ends here (6): what was accepted beyond is no more, and nobody can have seen it as
    /// committed, so no read has to wait for it.
    pub(super) fn reads_dropped(&mut self, end: Slot) {
        let first = self.reads.first_waiting;
        for (_, pending) in self.reads.pending.range_mut(first..) {
            pending.target = pending.target.map(|target| target.min(end));
        }
    }

    pub(super) fn handle_queried(
        &mut self,
        token: u64,
        result: Bytes,
        version: u64,
        out: &mut Effects,
    ) {
        let pending = self
            .reads
            .pending
            .remove(&token)
            .expect("the service answers what it was asked");
        let (client, view) = (pending.query.client, pending.view);
        let answer = QueryAnswer {
            replica: self.config.me,
            client,
            nonce: pending.query.nonce,
            view,
            version,
            result: Digest::of(&result),
        };
        let to = ProcessId::Client(client.key);
        if let Some(mac) = self
            .config
            .keys
            .mac(to, Domain::QueryAnswer, answer.digest())
        {
            out.push(Effect::Answer {
                answer,
                result,
                mac,
            });
        }
    }
}
