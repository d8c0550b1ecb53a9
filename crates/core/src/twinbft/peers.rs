//! Another host has forgotten its promises and asks (protocol.md 8, last row): this host reports what it knows of its
//! incarnation, notes the new one durably, and answers with what it has accepted.

use std::collections::BTreeMap;
use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{
    Certificate, Digest, Entry, HostId, Incarnation, ReplicaId, Slot, Statement, View,
};

use super::Replica;
use crate::io::{Effect, Effects};
use crate::record::Record;

/// A twin posts PEER for one host, and signs a REPORT for it, at most this often.
const EVERY_US: u64 = 10_000;

/// A RECOVERY that was asked.
#[derive(Clone, Debug)]
struct Question {
    incarnation: Incarnation,
    nonce: Digest,
    /// It, for the write-ahead log and for siblings.
    certificate: Certificate,
    /// Whether it waits for an answer.
    is_open: bool,
    /// When this twin may post the next PEER for it.
    next_us: u64,
    /// Whether a HELLO can rest on it.
    is_persisted: bool,
}

/// Questions of hosts that have forgotten. Invariant: one for each host of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    questions: BTreeMap<HostId, Question>,
    /// When this twin may sign the next REPORT about a host.
    reports_us: BTreeMap<HostId, u64>,
    /// RECOVERYs that were passed on to siblings while they compare what they remember.
    relayed: BTreeMap<HostId, Incarnation>,
}

impl Replica {
    /// A twin of a host that has forgotten wants to know what this host knows of it.
    pub(super) fn handle_fetch_report(
        &mut self,
        from: ReplicaId,
        nonce: Digest,
        out: &mut Effects,
    ) {
        if self.recovery.is_silent() || self.log.is_opening() {
            return;
        }
        let statement = Statement::Report {
            of: from.host,
            incarnation: self.log.incarnation(from.host),
            nonce,
        };
        if let Some(certificate) = self.book.certificate(&statement) {
            let message = Arc::new(PeerMessage::Certificate(certificate));
            out.push(Effect::Send { to: from, message });
            return;
        }
        self.sign_report(&statement, from.host, out);
    }

    /// What this host's PEERs show is decided already, whatever the nonce; one bad twin cannot make others sign without end.
    pub(super) fn sign_report(&mut self, statement: &Statement, of: HostId, out: &mut Effects) {
        let next_us = self.peers.reports_us.entry(of).or_default();
        if *next_us <= self.now.mono_us {
            *next_us = self.now.mono_us + EVERY_US;
            self.sign_decided(statement, false, out);
        }
    }

    /// A sibling has signed a REPORT: what the log shows is signed by all.
    pub(super) fn join_report(&mut self, statement: &Statement, out: &mut Effects) {
        if let Statement::Report {
            of, incarnation, ..
        } = statement
            && of.0 < self.config.shape.hosts()
            && *of != self.config.host()
            && !self.log.is_opening()
            && !self.recovery.is_silent()
            && self.log.incarnation(*of) == *incarnation
        {
            self.sign_report(statement, *of, out);
        }
    }

    /// A verified RECOVERY of another host. It is posted as PEER, and posted again, until its answer stands.
    pub(super) fn handle_recovery(
        &mut self,
        host: HostId,
        (incarnation, nonce): (Incarnation, Digest),
        certificate: &Certificate,
    ) {
        if incarnation < self.log.incarnation(host) {
            return;
        }
        let known = self.peers.questions.get(&host);
        let same = known.filter(|q| (q.incarnation, q.nonce) == (incarnation, nonce));
        let question = Question {
            incarnation,
            nonce,
            certificate: certificate.clone(),
            is_open: true,
            next_us: known.map_or(0, |q| q.next_us),
            is_persisted: same.is_some_and(|q| q.is_persisted),
        };
        if known.is_none_or(|q| q.incarnation <= incarnation) {
            self.peers.questions.insert(host, question);
        }
    }

    /// What stands in the write-ahead log of an earlier life (8, HELLO).
    pub(super) fn recall_questions(&mut self) {
        let certificates: Vec<Certificate> = self
            .recovery
            .promises()
            .iter()
            .filter_map(|promise| match promise {
                Entry::Relay { certificate } => Some(certificate.clone()),
                _ => None,
            })
            .collect();
        for certificate in certificates {
            if let Statement::Recovery { incarnation, nonce } = certificate.signed.statement {
                let host = certificate.signed.host;
                self.handle_recovery(host, (incarnation, nonce), &certificate);
                if let Some(question) = self.peers.questions.get_mut(&host) {
                    question.is_open = false;
                    question.is_persisted = true;
                }
            }
        }
    }

    /// While siblings compare what they remember: the highest incarnation of a host that this twin can show.
    pub(super) fn shown_incarnation(&self, host: HostId) -> Incarnation {
        let question = self.peers.questions.get(&host);
        question.map_or(Incarnation(0), |q| q.incarnation)
    }

    /// A sibling's HELLO names a lower incarnation than this twin can show.
    pub(super) fn show_incarnations(&mut self, out: &mut Effects) {
        for host in self.config.shape.all_hosts() {
            let shown = self.shown_incarnation(host);
            let lacks = self
                .log
                .hellos()
                .any(|(_, hello)| hello.incarnations[usize::from(host.0)] < shown);
            if lacks && self.peers.relayed.get(&host).is_none_or(|r| *r < shown) {
                self.peers.relayed.insert(host, shown);
                let certificate = self.peers.questions[&host].certificate.clone();
                out.post(Entry::Relay { certificate });
            }
        }
    }

    /// Makes durable what a HELLO or a PEER is about to rest on.
    pub(super) fn persist_question(&mut self, host: HostId, out: &mut Effects) {
        let Some(question) = self.peers.questions.get_mut(&host) else {
            return;
        };
        if !question.is_persisted {
            question.is_persisted = true;
            let certificate = question.certificate.clone();
            let (incarnation, nonce) = (question.incarnation, question.nonce);
            let peer = Entry::Peer {
                host,
                incarnation,
                nonce,
            };
            out.push(Effect::Persist(Record::Promise(Entry::Relay {
                certificate,
            })));
            out.push(Effect::Persist(Record::Promise(peer)));
        }
    }

    /// 8: a PEER counts while a view is installed and unfenced; else it is posted again.
    pub(super) fn poll_peers(&mut self, out: &mut Effects) {
        let Some(view) = self.log.live_view() else {
            return;
        };
        let now_us = self.now.mono_us;
        let open = self.peers.questions.iter();
        let open: Vec<HostId> = open
            .filter(|(_, q)| q.is_open && q.next_us <= now_us)
            .map(|(host, _)| *host)
            .collect();
        for host in open {
            self.persist_question(host, out);
            let (accepted, history) = self.log.accepted();
            let Some(question) = self.peers.questions.get_mut(&host) else {
                continue;
            };
            question.is_open = false;
            question.next_us = now_us + EVERY_US;
            let (incarnation, nonce) = (question.incarnation, question.nonce);
            let answer = self.answer_to(host, (incarnation, nonce), (view, accepted, history));
            // Nothing has happened since the last answer: it is as fresh as another would be.
            if let Some(certificate) = self.book.certificate(&answer) {
                self.send_answer(host, certificate, out);
                continue;
            }
            out.post(Entry::Peer {
                host,
                incarnation,
                nonce,
            });
        }
    }

    fn answer_to(
        &self,
        to: HostId,
        (incarnation, nonce): (Incarnation, Digest),
        (view, accepted, history): (View, Slot, Digest),
    ) -> Statement {
        Statement::RecoveryAnswer {
            to,
            incarnation,
            nonce,
            view,
            accepted,
            history,
            incarnations: self.log.incarnations().to_vec(),
        }
    }

    /// `q` twins have noted it: the answer is what the host has accepted now.
    pub(super) fn handle_peered(
        &mut self,
        host: HostId,
        question: (Incarnation, Digest),
        view: View,
        out: &mut Effects,
    ) {
        let (accepted, history) = self.log.accepted();
        let answer = self.answer_to(host, question, (view, accepted, history));
        self.sign_decided(&answer, false, out);
    }

    /// The answer goes to every twin of the host that asks: each verifies it for itself.
    pub(super) fn send_answer(&self, to: HostId, certificate: Certificate, out: &mut Effects) {
        if to.0 >= self.config.shape.hosts() || to == self.config.host() {
            return;
        }
        let message = Arc::new(PeerMessage::Certificate(certificate));
        for twin in self.config.shape.all_twins() {
            out.push(Effect::Send {
                to: ReplicaId { host: to, twin },
                message: message.clone(),
            });
        }
    }

    pub(super) fn peers_deadline(&self) -> Option<u64> {
        self.log.live_view()?;
        let open = self.peers.questions.values().filter(|q| q.is_open);
        open.map(|q| q.next_us).min()
    }
}
