//! The next entry of the postbox log: the host decides, and this twin carries it out.

use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{
    Certificate, Entry, Position, ReplicaId, RequestRef, Statement, TwinId, from_canonical,
};

use super::Replica;
use crate::evidence::{Event, EventKind};
use crate::fault::PeerFault;
use crate::hostlog::{Decision, Invalid};
use crate::io::{Effect, Effects};
use crate::mutants::{Rule, out as is_out};
use crate::record::Record;

impl Replica {
    pub(super) fn handle_entry(
        &mut self,
        position: Position,
        sender: TwinId,
        bytes: &[u8],
        out: &mut Effects,
    ) -> Result<(), PeerFault> {
        assert_eq!(position, self.log.end(), "entries come without gaps");
        let from = ReplicaId {
            host: self.config.host(),
            twin: sender,
        };
        if sender == self.config.twin() {
            self.own.note_read();
            self.note_posted(bytes);
        }
        self.note_heard(sender, out);
        let mut slot = None;
        let result = match from_canonical::<Entry>(bytes) {
            // 9: nothing that it says is listened to.
            Ok(_) | Err(_) if self.log.is_quarantined(sender) => {
                self.log.skip(sender);
                Ok(())
            }
            Ok(entry) => {
                slot = entry.slot();
                self.apply(sender, &entry, out)
                    .map_err(|Invalid(problem)| PeerFault::InvalidEntry { from, problem })
            }
            Err(error) => {
                self.log.skip(sender);
                Err(PeerFault::MalformedEntry {
                    from,
                    problem: error.0,
                })
            }
        };
        if let Err(fault) = &result {
            let problem = match fault {
                PeerFault::InvalidEntry { problem, .. } => problem,
                _ => "it does not decode",
            };
            out.push(Effect::Evidence(Event {
                host: from.host,
                twin: Some(sender),
                slot,
                kind: EventKind::Invalid { problem },
            }));
        }
        self.trim_log(bytes.len(), out);
        result
    }

    fn apply(&mut self, sender: TwinId, entry: &Entry, out: &mut Effects) -> Result<(), Invalid> {
        self.note_before(sender, entry);
        let mut decisions = std::mem::take(&mut self.decisions);
        let valid = self.log.apply(sender, entry, &mut decisions);
        self.book.renew(self.log.incarnation(self.config.host()));
        for decision in decisions.drain(..) {
            self.carry_out(sender, decision, out);
        }
        self.decisions = decisions;
        valid?;
        self.act_on(sender, entry, out);
        if let Entry::Results { slot, .. } = entry {
            self.close_results(*slot);
        }
        Ok(())
    }

    /// What decisions that this entry makes will need.
    fn note_before(&mut self, sender: TwinId, entry: &Entry) {
        match entry {
            Entry::Endorse {
                slot,
                attempt,
                signature: Some(signature),
                ..
            } if self.is_well_formed(signature, sender) => {
                self.note_signature(*slot, *attempt, signature)
            }
            Entry::Results {
                slot,
                history,
                results,
                view,
            } => self.note_results(sender, (*view, *slot, *history), results),
            _ => {}
        }
    }

    fn carry_out(&mut self, sender: TwinId, decision: Decision, out: &mut Effects) {
        match decision {
            Decision::Candidate { slot } => self.candidate_appeared(slot),
            Decision::Nacked { slot, requests } => {
                self.vouch(&requests, out);
                self.handle_nacked(slot, !requests.is_empty());
            }
            Decision::Void { from } => self.leader_voided(from),
            Decision::Ordered {
                view,
                slot,
                candidate,
            } => self.handle_ordered(view, slot, candidate, out),
            Decision::Accepted {
                view,
                slot,
                history,
            } => self.handle_accepted(view, slot, history, out),
            Decision::Jumped { slot, history: _ } => self.handle_jumped(slot, out),
            Decision::Opened => self.handle_opened(out),
            Decision::Forgotten { nonce: _ } => self.void_promises(out),
            Decision::Recovered => {}
            Decision::Renewed { incarnation, nonce } => self.handle_renewed(incarnation, nonce),
            Decision::Peered {
                host,
                incarnation,
                nonce,
                view,
            } => self.handle_peered(host, (incarnation, nonce), view, out),
            Decision::Fenced { view: _ } => self.handle_fenced(out),
            Decision::Wished { wish: _ } => self.handle_wished(out),
            Decision::Installed { installed } => {
                let (view, slot, history) = (installed.view, installed.slot, installed.history);
                out.push(Effect::Persist(Record::Installed {
                    view,
                    slot,
                    history,
                }));
                self.handle_installed(&installed, out);
            }
            Decision::Beat {
                view,
                count,
                slot,
                history,
            } => self.handle_beat((view, count), (slot, history), out),
            // Looked at when this twin can judge it.
            Decision::NvProposed { position: _ } => {}
            Decision::Had { request } => self.leader_had(&request),
            Decision::Retransmitted { request } => self.handle_retransmitted(request, out),
            Decision::Certified {
                slot,
                history,
                places,
            } => self.handle_certified(sender, slot, history, places, out),
            Decision::SlotResult {
                slot,
                history,
                results,
            } => self.handle_own_slot_result(slot, history, results, out),
            Decision::ResultsDiverge {
                slot,
                history,
                said,
            } => self.handle_results_diverge(slot, history, said, out),
            Decision::Checkpoint { slot, digest } => self.handle_own_checkpoint(slot, digest, out),
            Decision::Quarantined { twin } => self.handle_quarantined(twin, out),
            Decision::Readmitted { twin } => self.handle_readmitted(twin, out),
            Decision::CheckpointDiverges { slot, said } => {
                self.handle_checkpoint_divergence(slot, &said, out);
            }
        }
    }

    /// What the entry asks of this twin besides what the host decided.
    fn act_on(&mut self, sender: TwinId, entry: &Entry, out: &mut Effects) {
        match entry {
            Entry::Endorse { slot, attempt, .. } if sender == self.config.twin() => {
                self.voting.recall_own(*slot, *attempt, true);
            }
            Entry::Nack { slot, attempt, .. } if sender == self.config.twin() => {
                self.voting.recall_own(*slot, *attempt, false);
                self.own_nack_read(*slot, *attempt);
            }
            Entry::Jump { slot, .. } => self.handle_jump_entry(*slot, out),
            Entry::Need { digest } => self.handle_need(sender, *digest, out),
            Entry::Body { request } => self.handle_body(sender, request),
            Entry::Sign {
                statement,
                authenticator,
            } if self.is_well_formed(authenticator, sender) => {
                self.handle_sign(statement, authenticator, out);
            }
            Entry::Retransmission { request } if sender == self.config.twin() => {
                self.forwards.note_read(request);
            }
            Entry::Accept { view, slot, .. } => self.note_sibling_accept(*view, *slot),
            Entry::Leave { view, certificates } => {
                self.handle_leave(sender, *view, certificates, out);
            }
            Entry::Relay { certificate } => self.handle_relay(sender, certificate, out),
            Entry::RelayOrder { order } => self.handle_relayed_order(sender, order, out),
            Entry::ResultAgain {
                client,
                seq,
                slot,
                history,
                view,
                result,
            } => {
                let what = (*view, *slot, *history);
                self.handle_result_again(sender, (*client, *seq), what, *result, out);
            }
            _ => {}
        }
    }

    /// A sibling's own authenticator with exactly one MAC for each receiver: nothing larger goes into a certificate.
    fn is_well_formed(&self, authenticator: &twinbft_types::Authenticator, sender: TwinId) -> bool {
        let receivers = self.config.shape.receivers(self.config.host()).count();
        (authenticator.twin == sender || is_out(Rule::SignSender))
            && authenticator.macs.len() == receivers
    }

    fn handle_sign(
        &mut self,
        statement: &Statement,
        authenticator: &twinbft_types::Authenticator,
        out: &mut Effects,
    ) {
        match statement {
            Statement::Order {
                view,
                slot,
                history,
            } => {
                self.handle_order_signature(*view, *slot, *history, authenticator, out);
                return;
            }
            // A sibling was asked: what the log has decided is signed by all.
            Statement::SlotResult {
                slot,
                history,
                results,
            } if self.log.slot_result(*slot) == Some((*history, *results)) => {
                self.sign_decided(statement, false, out);
            }
            Statement::Ack {
                view,
                slot,
                history,
                beat: None,
            } => self.join_ack(*view, *slot, *history, out),
            Statement::Report { .. } => self.join_report(statement, out),
            Statement::Committed { slot, history } => self.join_committed(*slot, *history, out),
            _ => {}
        }
        if let Some(certificate) = self.book.sign(statement, authenticator.clone()) {
            self.send_certificate(statement, certificate, out);
        }
    }

    /// A certificate of this host is complete.
    pub(super) fn send_certificate(
        &mut self,
        statement: &Statement,
        certificate: Certificate,
        out: &mut Effects,
    ) {
        match statement {
            Statement::Ack { view, .. } => self.send_ack(*view, certificate, out),
            Statement::Checkpoint { slot, .. } => {
                let message = Arc::new(PeerMessage::Certificate(certificate.clone()));
                self.send_to_counterparts(self.config.shape.all_hosts(), &message, out);
                self.keep_proof(*slot, &certificate, out);
            }
            Statement::SlotResult { slot, .. } => self.send_slot_result(*slot, certificate, out),
            Statement::Heartbeat { .. }
            | Statement::Wish { .. }
            | Statement::ViewChange { .. }
            | Statement::NewView { .. } => {
                let message = Arc::new(PeerMessage::Certificate(certificate));
                self.send_to_counterparts(self.config.shape.all_hosts(), &message, out);
            }
            Statement::Forward {
                client,
                seq,
                digest,
            } => {
                let request = RequestRef {
                    client: *client,
                    seq: *seq,
                    digest: *digest,
                };
                self.send_forward(certificate, request, out);
            }
            Statement::Committed { .. } => self.send_committed(&certificate, out),
            Statement::RecoveryAnswer { to, .. } | Statement::Report { of: to, .. } => {
                self.send_answer(*to, certificate, out);
            }
            // ORDERs are sent with their batches, REPLYs to clients, RECOVERYs until they are answered.
            Statement::Order { .. } | Statement::Reply { .. } | Statement::Recovery { .. } => {}
        }
    }

    /// 2: when the log has grown, what lies below can go: what is still needed of it is in STATE.
    fn trim_log(&mut self, bytes: usize, out: &mut Effects) {
        if let Some(position) = self.log.note_bytes(bytes as u64) {
            out.push(Effect::Trim {
                position,
                state: self.log.to_state().into(),
            });
        }
    }
}
