//! Requests that a host's twins wait for together (protocol.md 6, FORWARD).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use twinbft_types::wire::{ForwardMessage, PeerMessage};
use twinbft_types::{
    Certificate, ClientId, Entry, ReplicaId, RequestRef, Seq, SignedRequest, Statement,
};

use super::Replica;
use crate::fault::PeerFault;
use crate::io::{Effect, Effects};
use crate::mutants::{Rule, out as is_out};
use crate::session::Standing;

/// Requests for which timers run; more are not forwarded until some are executed.
const TIMERS_MAX: usize = 4096;
/// Those of one client key.
const TIMERS_OF_A_KEY_MAX: usize = 256;
/// FORWARDs are sent again after this long, then after twice as long, up to [`REPEAT_US_MAX`].
const REPEAT_US: u64 = 100_000;
const REPEAT_US_MAX: u64 = 1_000_000;

/// Requests that `q` twins of this host wait for.
#[derive(Clone, Debug, Default)]
pub struct Forwards {
    /// Each with its digest and since when its timer runs.
    waiting: BTreeMap<(ClientId, Seq), (RequestRef, u64)>,
    /// What this twin has posted a RETRANSMISSION of and not read back.
    posted: BTreeSet<(ClientId, Seq)>,
    /// When FORWARDs are sent again, and how long to wait after that.
    repeat: Option<(u64, u64)>,
}

impl Forwards {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// It is executed, whatever its digest.
    pub fn remove(&mut self, client: ClientId, seq: Seq) {
        if !self.waiting.is_empty() {
            self.waiting.remove(&(client, seq));
        }
        if !self.posted.is_empty() {
            self.posted.remove(&(client, seq));
        }
    }

    /// Since when the one that has waited longest does.
    pub fn oldest_us(&self) -> Option<u64> {
        self.waiting.values().map(|(_, since)| *since).min()
    }

    /// A start is over: what was to be posted meanwhile was not.
    pub fn forget_posted(&mut self) {
        self.posted.clear();
    }

    /// An own RETRANSMISSION was read back.
    pub fn note_read(&mut self, request: &RequestRef) {
        self.posted.remove(&(request.client, request.seq));
    }

    /// How many of one client key wait.
    fn of_key(&self, key: u32) -> usize {
        let first = (ClientId { key, session: 0 }, Seq(0));
        let last = (
            ClientId {
                key,
                session: u64::MAX,
            },
            Seq(u64::MAX),
        );
        self.waiting.range(first..=last).count()
    }

    /// A new view gets its own time for everything.
    pub fn restart(&mut self, now_us: u64) {
        for (_, since) in self.waiting.values_mut() {
            *since = now_us;
        }
    }
}

impl Replica {
    /// A client's authentic retransmission of something that this twin has not executed and that is inside its window.
    pub(super) fn note_retransmission(&mut self, request: RequestRef, out: &mut Effects) {
        let (own, quorum) = self.log.retransmitted(self.config.twin(), &request);
        if quorum {
            self.start_timer(request);
        }
        let key = (request.client, request.seq);
        if !own && self.forwards.posted.len() < TIMERS_MAX && self.forwards.posted.insert(key) {
            out.post(Entry::Retransmission { request });
        }
    }

    fn start_timer(&mut self, request: RequestRef) {
        let key = (request.client, request.seq);
        let open = self.sessions.standing(request.client, request.seq) == Standing::Open;
        let has_room = self.forwards.waiting.len() < TIMERS_MAX
            && self.forwards.of_key(request.client.key) < TIMERS_OF_A_KEY_MAX;
        if open && has_room {
            let now_us = self.now.mono_us;
            self.forwards
                .waiting
                .entry(key)
                .or_insert((request, now_us));
        }
    }

    /// 6: `q` twins posted a retransmission: the host certifies FORWARD, and a timer runs.
    pub(super) fn handle_retransmitted(&mut self, request: RequestRef, out: &mut Effects) {
        if self.sessions.standing(request.client, request.seq) != Standing::Open {
            return;
        }
        self.start_timer(request);
        if self.forwards.repeat.is_none() {
            self.forwards.repeat = Some((self.now.mono_us + REPEAT_US, 2 * REPEAT_US));
        }
        if self.config.shape.hosts() > 1 {
            self.sign_decided(&forward(&request), false, out);
        }
    }

    /// Certified: to the primary's twins, with the body, which this twin may have from the client.
    pub(super) fn send_forward(
        &self,
        certificate: Certificate,
        request: RequestRef,
        out: &mut Effects,
    ) {
        let shape = self.config.shape;
        let primary = shape.primary(self.log.current_view());
        let Some(signed) = self.pool.find(&request) else {
            return;
        };
        if primary == self.config.host() {
            return;
        }
        let message = Arc::new(PeerMessage::Forward(ForwardMessage {
            certificate,
            request: signed.request.clone(),
        }));
        for twin in shape.all_twins() {
            let to = ReplicaId {
                host: primary,
                twin,
            };
            out.push(Effect::Send {
                to,
                message: message.clone(),
            });
        }
    }

    pub(super) fn forward_deadline(&self) -> Option<u64> {
        self.forwards.repeat.map(|(at_us, _)| at_us)
    }

    /// A FORWARD may be lost, or come before the primary has installed its view.
    pub(super) fn forward_timer(&mut self, out: &mut Effects) {
        let Some((at_us, every_us)) = self.forwards.repeat else {
            return;
        };
        if at_us > self.now.mono_us {
            return;
        }
        self.drop_stale_forwards();
        let next = (
            self.now.mono_us + every_us,
            (2 * every_us).min(REPEAT_US_MAX),
        );
        self.forwards.repeat = (!self.forwards.waiting.is_empty()).then_some(next);
        self.forward_again(out);
    }

    /// A new primary has to hear of what waits.
    pub(super) fn forward_again(&mut self, out: &mut Effects) {
        let waiting: Vec<RequestRef> = self
            .forwards
            .waiting
            .values()
            .map(|(request, _)| *request)
            .collect();
        for request in waiting {
            if let Some(certificate) = self.book.certificate(&forward(&request)) {
                self.send_forward(certificate, request, out);
            }
        }
    }

    /// 6: on the primary host a FORWARD stands for the client's MAC, and entitles to HAVE.
    pub(super) fn handle_forward(
        &mut self,
        from: ReplicaId,
        message: ForwardMessage,
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        let signed = self.verify(from, &message.certificate)?;
        let Statement::Forward {
            client,
            seq,
            digest,
        } = signed.statement
        else {
            return Err(PeerFault::UnexpectedStatement {
                from,
                statement: "certificate of something else with a FORWARD's request",
            });
        };
        let request = message.request;
        let reference = request.reference();
        if reference
            != (RequestRef {
                client,
                seq,
                digest,
            })
            && !is_out(Rule::ForwardRequest)
        {
            return Err(PeerFault::UnexpectedStatement {
                from,
                statement: "FORWARD with another request",
            });
        }
        if !self.log.is_primary()
            || !matches!(
                self.sessions.standing(client, seq),
                Standing::Open | Standing::Early
            )
        {
            return Ok(());
        }
        self.pool.vouched(
            digest,
            SignedRequest {
                request: request.clone(),
                host: self.config.host(),
                macs: Vec::new(),
            },
        );
        self.fill_body(digest, &request);
        if self.log.is_nacked(client) && !self.log.has_have_of(self.config.twin(), &reference) {
            out.post(Entry::Have { request: reference });
        }
        if self.is_leader() {
            self.leader.enqueue(client, seq);
        }
        Ok(())
    }

    /// What left its window or was executed in a way that this twin did not see is waited for no longer.
    pub(super) fn drop_stale_forwards(&mut self) {
        let sessions = &self.sessions;
        self.forwards
            .waiting
            .retain(|(client, seq), _| sessions.standing(*client, *seq) == Standing::Open);
    }
}

fn forward(request: &RequestRef) -> Statement {
    Statement::Forward {
        client: request.client,
        seq: request.seq,
        digest: request.digest,
    }
}
