//! What a Byzantine twin can say in a state besides what its honest core would: entries of each kind that could do
//! harm there, with the values that matter, and statements under its own signature.

use std::sync::Arc;

use twinbft_core::hostlog::HostLog;
use twinbft_sim::BEGINNING_US;
use twinbft_types::wire::{OrderMessage, PeerMessage};
use twinbft_types::{
    Attempt, Certificate, Digest, Domain, Entry, HostId, Incarnation, Position, ProcessId,
    ReplicaId, RequestRef, ResultMac, Signed, Slot, Statement, View, batch_digest, history,
};

use crate::cases::About;
use crate::model::Model;
use crate::state::State;

/// A lie.
#[derive(Clone, Debug)]
pub enum Lie {
    Post(Entry),
    Send(ReplicaId, Arc<PeerMessage>),
    SendToAll(Arc<PeerMessage>),
}

/// No slot's history.
pub const NOWHERE: Digest = Digest([7; 32]);

impl Model {
    /// All that it could say now, in a fixed order.
    pub(crate) fn lies(&self, state: &State, index: usize) -> Vec<Lie> {
        if self.case.about == About::Views {
            return self.lies_about_views(state, index);
        }
        // What it has read of its own host's log.
        let log = state.nodes[index].core.host_log();
        let me = self.id(index);
        let mut entries = Vec::new();
        self.proposals(log, me, &mut entries);
        votes(log, &mut entries);
        self.results(log, index, &mut entries);
        self.view_entries(log, me, &mut entries);
        let signs = self.false_statements(log).into_iter();
        entries.extend(signs.map(|statement| Entry::Sign {
            authenticator: self.rings[index].sign(self.shape, &self.signed_by(me, &statement)),
            statement,
        }));
        let posts = entries.into_iter().map(Lie::Post);
        posts.chain(self.false_orders(log, index)).collect()
    }

    fn references(&self) -> impl Iterator<Item = RequestRef> + '_ {
        self.requests.iter().map(twinbft_types::Request::reference)
    }

    /// As a leader: another batch for the next slot, or for one that has a candidate, with a new attempt number or not.
    pub(crate) fn proposals(&self, log: &HostLog, me: ReplicaId, entries: &mut Vec<Entry>) {
        let Some(view) = log
            .live_view()
            .filter(|view| self.shape.leader(*view) == me)
        else {
            return;
        };
        let (tip, tip_history) = log.tip();
        let mut propose = |slot, previous, attempt, request| {
            entries.push(Entry::Propose {
                view,
                slot,
                attempt,
                previous,
                timestamp_us: BEGINNING_US + slot.0,
                requests: vec![request],
            });
        };
        for request in self.references() {
            propose(
                tip.next(),
                tip_history,
                log.next_attempt(tip.next()),
                request,
            );
            propose(tip.next(), NOWHERE, log.next_attempt(tip.next()), request);
            if let Some(candidate) = log.candidate(tip) {
                let before = log.tip_before(tip);
                propose(tip, before, log.next_attempt(tip), request);
                propose(tip, before, candidate.attempt, request);
            }
        }
        if let Some(candidate) = log.candidate(tip) {
            entries.push(Entry::Withdraw {
                view,
                slot: tip,
                attempt: candidate.attempt,
            });
        }
    }

    fn results(&self, log: &HostLog, index: usize, entries: &mut Vec<Entry>) {
        let (slot, history) = log.accepted();
        let mut ring = self.rings[index].clone();
        for (number, request) in self.requests.iter().enumerate() {
            let to = ProcessId::Client(u32::try_from(number).expect("few clients"));
            let signed = Signed {
                host: self.id(index).host,
                incarnation: Incarnation(0),
                statement: Statement::Reply {
                    view: None,
                    slot,
                    client: request.client,
                    seq: request.seq,
                    result: NOWHERE,
                },
            };
            let mac = ring.mac(to, Domain::Statement, signed.digest());
            entries.push(Entry::Results {
                slot,
                history,
                view: None,
                results: vec![ResultMac {
                    digest: NOWHERE,
                    mac: mac.expect("a twin knows all clients"),
                }],
            });
        }
        entries.push(Entry::Checkpoint {
            slot,
            digest: NOWHERE,
        });
        entries.push(Entry::Jump {
            slot: slot.next(),
            history: NOWHERE,
        });
    }

    fn view_entries(&self, log: &HostLog, me: ReplicaId, entries: &mut Vec<Entry>) {
        let current = log.current_view();
        let next = current.next();
        entries.push(Entry::Suspect { view: next });
        entries.push(Entry::Leave {
            view: next,
            certificates: Vec::new(),
        });
        if self.case.timeouts == 0 && self.case.hosts == 1 {
            // Nobody else leaves.
            return;
        }
        let entering = log.entering().unwrap_or(next);
        let (accepted, history) = log.accepted();
        let hosts: Vec<(HostId, Digest)> = log
            .nv_proposals()
            .map(|proposal| proposal.hosts.clone())
            .next()
            .unwrap_or_else(|| {
                let change = log.view_change();
                let signed = change.map(|change| self.signed_by(me, &change));
                signed.map(|s| (me.host, s.digest())).into_iter().collect()
            });
        if self.shape.leader(entering) == me {
            for (slot, history) in [(Slot(0), Digest::ZERO), (accepted, history)] {
                entries.push(Entry::NvPropose {
                    view: entering,
                    hosts: hosts.clone(),
                    slot,
                    history,
                });
            }
        }
        for proposal in log.nv_proposals() {
            entries.push(Entry::NvEndorse {
                view: entering,
                proposal: proposal.position,
            });
        }
        entries.push(Entry::NvEndorse {
            view: entering,
            proposal: Position(log.end().0 + 1),
        });
        entries.push(Entry::NvAccept {
            view: entering,
            slot: Slot(0),
            history: Digest::ZERO,
        });
        entries.push(Entry::Accept {
            view: current,
            slot: accepted.next(),
            history: NOWHERE,
        });
    }

    pub(crate) fn signed_by(&self, me: ReplicaId, statement: &Statement) -> Signed {
        Signed {
            host: me.host,
            incarnation: Incarnation(0),
            statement: statement.clone(),
        }
    }

    /// Statements that its host has not decided.
    fn false_statements(&self, log: &HostLog) -> Vec<Statement> {
        if self.case.hosts == 1 {
            return Vec::new();
        }
        let (accepted, history) = log.accepted();
        let view = log.current_view();
        vec![
            Statement::Order {
                view,
                slot: accepted.next(),
                history: NOWHERE,
            },
            Statement::Ack {
                view,
                slot: accepted.next(),
                history,
                beat: None,
            },
            Statement::ViewChange {
                view: view.next(),
                last_normal: View(0),
                accepted: Slot(0),
                history: Digest::ZERO,
                incarnations: vec![Incarnation(0); usize::from(self.case.hosts)],
            },
        ]
    }

    /// A certificate that only this twin signs, once under its own name and once under each sibling's.
    pub(crate) fn self_certified(&self, signed: Signed, index: usize) -> Certificate {
        let own = self.rings[index].sign(self.shape, &signed);
        let authenticators = self.shape.all_twins().map(|twin| {
            let mut copy = own.clone();
            copy.twin = twin;
            copy
        });
        Certificate {
            authenticators: authenticators.collect(),
            signed,
        }
    }

    /// ORDERs that only this twin signs, once under its own name and once under its sibling's, for each other twin.
    fn false_orders(&self, log: &HostLog, index: usize) -> Vec<Lie> {
        let me = self.id(index);
        let Some(view) = log
            .live_view()
            .filter(|view| self.shape.primary(*view) == me.host)
        else {
            return Vec::new();
        };
        let (accepted, previous) = log.accepted();
        let (slot, bodies) = (accepted.next(), vec![self.requests[0].clone()]);
        let timestamp_us = BEGINNING_US + slot.0 + 1;
        let requests: Vec<RequestRef> = self.references().take(1).collect();
        let statement = Statement::Order {
            view,
            slot,
            history: history(previous, slot, batch_digest(&requests), timestamp_us),
        };
        let signed = self.signed_by(me, &statement);
        let order = Arc::new(PeerMessage::Order(OrderMessage {
            certificate: self.self_certified(signed, index),
            timestamp_us,
            bodies,
        }));
        let receivers = self.shape.receivers(me.host);
        receivers.map(|to| Lie::Send(to, order.clone())).collect()
    }
}

/// Votes for and against everything that waits for votes.
fn votes(log: &HostLog, entries: &mut Vec<Entry>) {
    let Some(view) = log.live_view() else {
        return;
    };
    let (accepted, (tip, _)) = (log.accepted().0, log.tip());
    for slot in (accepted.0 + 1..=tip.0).map(Slot) {
        let Some(candidate) = log.candidate(slot) else {
            continue;
        };
        let attempt = candidate.attempt;
        let endorse = |attempt, history| Entry::Endorse {
            view,
            slot,
            attempt,
            history,
            signature: None,
        };
        entries.push(endorse(attempt, candidate.history));
        entries.push(endorse(attempt, NOWHERE));
        entries.push(endorse(Attempt(attempt.0 + 1), candidate.history));
        for requests in [Vec::new(), candidate.requests.clone()] {
            entries.push(Entry::Nack {
                view,
                slot,
                attempt,
                history: candidate.history,
                requests,
            });
        }
    }
}
