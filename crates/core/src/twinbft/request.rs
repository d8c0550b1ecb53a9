//! A client's request reaches this twin (protocol.md 4.1).

use twinbft_types::{ClientId, Domain, Entry, ProcessId, RequestRef, Seq, SignedRequest};

use super::Replica;
use super::pool::Inserted;
use crate::fault::PeerFault;
use crate::io::{Effect, Effects, Refusal};
use crate::mutants::{Rule, out as is_out};
use crate::session::Standing;

impl Replica {
    pub(super) fn handle_request(
        &mut self,
        request: SignedRequest,
        (retransmission, leader_alone): (bool, bool),
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        let (client, seq) = (request.request.client, request.request.seq);
        let refuse = |out: &mut Effects, reason| {
            out.push(Effect::Refuse {
                client,
                seq,
                reason,
            });
        };
        let digest = match self.authenticate(&request) {
            Ok(digest) => digest,
            Err(fault) => {
                match fault {
                    PeerFault::UnknownClient { .. } => refuse(out, Refusal::UnknownClient),
                    PeerFault::RequestTooLarge { .. } => refuse(out, Refusal::TooLarge),
                    _ => refuse(out, Refusal::BadMac),
                }
                return Err(fault);
            }
        };
        match self.sessions.standing(client, seq) {
            Standing::Executed => {
                if retransmission {
                    self.answer_again(client, seq, out);
                }
                return Ok(());
            }
            Standing::Expired => {
                refuse(out, Refusal::SessionExpired);
                return Err(PeerFault::SessionExpired { key: client.key });
            }
            // A correct client may be ahead of a twin that lags, by one window at most; or of one that starts again and knows
            // no session yet.
            Standing::Early
                if !self.log.is_opening()
                    && (self.is_far_ahead(client, seq) || !self.is_known_session(client)) =>
            {
                refuse(out, Refusal::OutsideWindow);
                return Err(PeerFault::OutsideWindow { key: client.key });
            }
            Standing::Early | Standing::Open => {}
        }
        let is_primary = self.log.is_primary();
        // A first copy that reaches a backup only tells it of the client's stream.
        if !is_primary && !retransmission {
            return Ok(());
        }
        let reference = RequestRef {
            client,
            seq,
            digest,
        };
        let full_request = request.request.clone();
        let (inserted, dropped) = {
            let voting = &self.voting;
            let is_needed = |client, seq| voting.is_in_log(client, seq);
            self.pool.insert(digest, request, leader_alone, is_needed)
        };
        for (client, seq) in dropped {
            self.leader_evicted(client, seq);
        }
        match inserted {
            Inserted::New | Inserted::Known => {}
            Inserted::Conflict => {
                return Err(PeerFault::ConflictingRequest { key: client.key });
            }
            Inserted::Full => {
                refuse(out, Refusal::Busy);
                return Err(PeerFault::Busy);
            }
        }
        // 6: a twin of any host that has not executed it says so.
        if retransmission && self.sessions.standing(client, seq) == Standing::Open {
            self.note_retransmission(reference, out);
        }
        if !is_primary {
            return Ok(());
        }
        if inserted == Inserted::Known {
            if retransmission {
                self.vouch_again(&reference, out);
            }
            return Ok(());
        }
        self.fill_body(digest, &full_request);
        // 4.3: after a NACK, HAVEs of q twins stand for this client's MACs.
        if self.log.is_nacked(client) {
            out.post(Entry::Have { request: reference });
        }
        if self.is_leader() {
            self.leader.enqueue(client, seq);
        }
        Ok(())
    }

    /// Checks size, key and MAC; answers with the request's digest.
    pub(super) fn authenticate(
        &mut self,
        signed: &SignedRequest,
    ) -> Result<twinbft_types::Digest, PeerFault> {
        let key = signed.request.client.key;
        let limit = self.config.tuning.request_bytes_max;
        let bytes = signed.request.operation.len();
        if bytes > limit {
            return Err(PeerFault::RequestTooLarge { key, bytes, limit });
        }
        if !self.config.keys.knows(ProcessId::Client(key)) {
            return Err(PeerFault::UnknownClient { key });
        }
        let digest = signed.request.digest();
        let own = usize::from(self.config.twin().0);
        let shape = self.config.shape;
        let authentic = signed.host == self.config.host()
            && signed.macs.len() == usize::from(shape.twins())
            && self.config.keys.verify(
                ProcessId::Client(key),
                Domain::Request,
                digest,
                &signed.macs[own],
            );
        if authentic || is_out(Rule::ClientMac) {
            Ok(digest)
        } else {
            Err(PeerFault::BadClientMac { key })
        }
    }

    /// 4.3: what this twin posted for a NACKed client's request may have given way to newer ones.
    fn vouch_again(&mut self, reference: &RequestRef, out: &mut Effects) {
        if !self.log.is_nacked(reference.client) {
            return;
        }
        if !self.log.has_have_of(self.config.twin(), reference) {
            out.post(Entry::Have {
                request: *reference,
            });
        }
        if self.is_leader() && self.log.is_had(reference) {
            self.leader.enqueue(reference.client, reference.seq);
        }
    }

    /// Whether anything of this session was executed, is in the log or waits: an early request of another one would
    /// wait for ever, for requests that may never come.
    fn is_known_session(&self, client: ClientId) -> bool {
        let window = Seq(self.config.tuning.session_window);
        self.sessions.has_session(client)
            || self.voting.is_session_in_log(client, window)
            || self.pool.has_session(client, window)
    }

    fn is_far_ahead(&self, client: ClientId, seq: Seq) -> bool {
        let window = self.config.tuning.session_window;
        seq.0 > window && self.sessions.standing(client, Seq(seq.0 - window)) == Standing::Early
    }
}
