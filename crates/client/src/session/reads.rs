//! The fast reads of a session (protocol.md 7).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use twinbft_types::mutants::{Rule, out as is_out};
use twinbft_types::{ClientId, Digest, Domain, Mac, Nonce, Query, QueryAnswer};

use super::config::SessionConfig;
use super::event::{Event, FallBackReason, SubmitError};
use super::fault::{FaultCounters, ReplicaFault};
use super::keys::SharedKeys;
use super::query::{QueryState, QueryTally};

#[derive(Debug)]
pub(super) struct OpenRead {
    pub(super) query: Query,
    pub(super) digest: Digest,
    deadline_us: u64,
    tally: QueryTally,
}

/// All open fast reads. Bounded by [`SessionConfig::queries_max`].
#[derive(Debug)]
pub(super) struct Reads {
    client: ClientId,
    open: BTreeMap<Nonce, OpenRead>,
    next: Nonce,
}

impl Reads {
    pub(super) const fn new(config: &SessionConfig) -> Self {
        Self {
            client: config.client,
            open: BTreeMap::new(),
            next: Nonce(1),
        }
    }

    pub(super) fn begin(
        &mut self,
        config: &SessionConfig,
        now_us: u64,
        operation: Bytes,
    ) -> Result<Nonce, SubmitError> {
        if operation.len() > config.operation_bytes_max {
            return Err(SubmitError::TooLarge {
                bytes: operation.len(),
                bytes_max: config.operation_bytes_max,
            });
        }
        if self.open.len() >= config.queries_max {
            return Err(SubmitError::TooManyQueries {
                open: self.open.len(),
            });
        }
        let nonce = self.next;
        self.next = nonce.next();
        let query = Query {
            client: self.client,
            nonce,
            operation,
        };
        let read = OpenRead {
            digest: query.digest(),
            query,
            deadline_us: now_us.saturating_add(config.query_timeout_us),
            tally: QueryTally::new(config.shape),
        };
        self.open.insert(nonce, read);
        Ok(nonce)
    }

    pub(super) fn open(&self, nonce: Nonce) -> Option<&OpenRead> {
        self.open.get(&nonce)
    }

    /// Takes in an answer of a replica of the cluster to this session.
    pub(super) fn handle_answer(
        &mut self,
        keys: &SharedKeys,
        answer: &QueryAnswer,
        result: &Bytes,
        mac: &Mac,
        faults: &mut FaultCounters,
    ) -> Option<Event> {
        let nonce = answer.nonce;
        if nonce.0 == 0 || nonce >= self.next {
            faults.add(ReplicaFault::UnknownNonce);
            return None;
        }
        // A read that is done: its late answers are ordinary.
        let read = self.open.get_mut(&nonce)?;
        // The digest that the MAC covers must be the one of these bytes, or the result would be anybody's.
        let authentic = answer.result == Digest::of(result)
            && keys
                .lock()
                .verify(answer.replica, Domain::QueryAnswer, answer.digest(), mac);
        if !authentic && !is_out(Rule::AnswerMac) {
            faults.add(ReplicaFault::BadAnswerMac);
            return None;
        }
        let event = match read.tally.handle_answer(answer, result, faults) {
            QueryState::Open => return None,
            QueryState::Done { version, result } => Event::QueryCompleted {
                nonce,
                version,
                result,
            },
            QueryState::Impossible => Event::QueryFallBack {
                nonce,
                reason: FallBackReason::NoAgreement,
            },
        };
        self.open.remove(&nonce);
        Some(event)
    }

    /// Reads begin in the order of their deadlines, so the first one is the earliest.
    pub(super) fn next_timeout_us(&self) -> u64 {
        self.open
            .first_key_value()
            .map_or(u64::MAX, |(_, read)| read.deadline_us)
    }

    pub(super) fn handle_timeout(&mut self, now_us: u64, events: &mut VecDeque<Event>) {
        while let Some(entry) = self.open.first_entry() {
            if entry.get().deadline_us > now_us {
                break;
            }
            events.push_back(Event::QueryFallBack {
                nonce: *entry.key(),
                reason: FallBackReason::TimedOut,
            });
            entry.remove();
        }
    }
}
