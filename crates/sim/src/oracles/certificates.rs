//! Invariant 2: no certificate exists that is not a decision of its host's log, and no two decisions of one host
//! contradict. An observer reads every host's log as it grows and keeps what it decides.

use std::collections::{BTreeMap, BTreeSet};

use twinbft_core::Tuning;
use twinbft_core::hostlog::{Bounds, Decision, HostLog};
use twinbft_types::{
    Certificate, Digest, Entry, Epoch, HostId, Incarnation, KeyRing, Position, Shape, Slot,
    Statement, TwinId, View,
};

use super::{Truth, Violation, violation};

/// What a host may decide once only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Order(View, Slot),
    Ack(View, Slot),
    Checkpoint(Slot),
    SlotResult(Slot, Digest),
    Wish(Epoch, Position),
    /// What a host said that forgot gives way to what it says later (8).
    ViewChange(Incarnation, View),
    NewView(View),
    Heartbeat(View, u64),
}

/// What one host has decided so far.
#[derive(Clone, Debug)]
pub struct Observer {
    shape: Shape,
    host: HostId,
    log: HostLog,
    epoch: Epoch,
    bounds: Bounds,
    decided: BTreeSet<(Incarnation, Statement)>,
    once: BTreeMap<Subject, Digest>,
    decisions: Vec<Decision>,
    /// The highest incarnations that logs of earlier epochs showed: what was said of them stays true.
    shown: BTreeMap<HostId, Incarnation>,
}

impl Observer {
    /// Of a host's log, from its beginning.
    #[must_use]
    pub fn new(shape: Shape, host: HostId, tuning: &Tuning) -> Self {
        Self {
            shape,
            host,
            log: HostLog::genesis(shape, host, tuning.host_bounds()),
            epoch: Epoch(1),
            bounds: tuning.host_bounds(),
            decided: BTreeSet::new(),
            once: BTreeMap::new(),
            decisions: Vec::new(),
            shown: BTreeMap::new(),
        }
    }

    /// The log was lost; a new epoch begins.
    pub fn begin_epoch(&mut self, epoch: Epoch) {
        for host in self.shape.all_hosts() {
            self.shown.insert(host, self.shown_incarnation(host));
        }
        self.log = HostLog::reopened(self.shape, self.host, self.bounds);
        self.epoch = epoch;
    }

    fn shown_incarnation(&self, of: HostId) -> Incarnation {
        let before = self.shown.get(&of).copied().unwrap_or_default();
        before.max(self.log.incarnation(of))
    }

    /// The host's automaton.
    pub const fn log(&self) -> &HostLog {
        &self.log
    }

    /// The next entry of the log; `None` for bytes that are none.
    pub fn read(&mut self, sender: TwinId, entry: Option<&Entry>) -> Result<(), Violation> {
        let Some(entry) = entry else {
            self.log.skip(sender);
            return Ok(());
        };
        // What is invalid decides nothing.
        let (log, decisions) = (&mut self.log, &mut self.decisions);
        let _invalid = crate::mutation::pristine(|| log.apply(sender, entry, decisions));
        let mut decisions = std::mem::take(&mut self.decisions);
        for decision in decisions.drain(..) {
            for statement in self.statements_of(decision) {
                self.decide(statement)?;
            }
        }
        self.decisions = decisions;
        Ok(())
    }

    fn decide(&mut self, statement: Statement) -> Result<(), Violation> {
        let incarnation = self.log.incarnation(self.host);
        if let Some(subject) = subject_of(&statement, incarnation) {
            let digest = Digest::of_canonical(b"sim/once", &statement);
            let first = *self.once.entry(subject).or_insert(digest);
            if first != digest {
                return Err(violation(
                    2,
                    format!("{} decided {subject:?} twice: {statement:?}", self.host),
                ));
            }
        }
        self.decided.insert((incarnation, statement));
        Ok(())
    }

    /// Whether this host has decided, as primary of some view, that this is the slot's history (4.4).
    #[must_use]
    pub fn has_ordered(&self, slot: Slot, history: Digest) -> bool {
        self.decided.iter().any(|(_, statement)| {
            matches!(*statement, Statement::Order { slot: s, history: h, .. } if (s, h) == (slot, history))
        })
    }

    fn is_decided(&self, incarnation: Incarnation, statement: &Statement) -> bool {
        // 8: what PEERs show is decided, whatever the nonce of the question.
        if let Statement::Report {
            of,
            incarnation: shown,
            ..
        } = statement
        {
            return of.0 < self.shape.hosts() && *shown <= self.shown_incarnation(*of);
        }
        // 6: the ACK of a heartbeat echoes its count; it is cumulative, and true once the host has accepted the slot.
        let Statement::Ack {
            view,
            slot,
            history,
            beat: Some(_),
        } = *statement
        else {
            return self.decided.contains(&(incarnation, statement.clone()));
        };
        let plain = Statement::Ack {
            view,
            slot,
            history,
            beat: None,
        };
        self.decided.contains(&(incarnation, plain))
            || (self.reached(view) >= slot && !self.once.contains_key(&Subject::Ack(view, slot)))
    }

    /// The last slot that the host has accepted in this view so far.
    fn reached(&self, view: View) -> Slot {
        let first = Subject::Ack(view, Slot(0));
        let last = Subject::Ack(view, Slot(u64::MAX));
        let found = self.once.range(first..=last).next_back();
        found.map_or(Slot(0), |(subject, _)| match subject {
            Subject::Ack(_, slot) => *slot,
            _ => Slot(0),
        })
    }

    /// What a decision lets the host certify. Replies are compared with the executed log instead (invariant 3).
    fn statements_of(&self, decision: Decision) -> Vec<Statement> {
        let ack = |view, slot, history| Statement::Ack {
            view,
            slot,
            history,
            beat: None,
        };
        match decision {
            Decision::Ordered {
                view,
                slot,
                candidate,
            } => vec![Statement::Order {
                view,
                slot,
                history: candidate.history,
            }],
            Decision::Accepted {
                view,
                slot,
                history,
            } => vec![ack(view, slot, history)],
            Decision::Jumped { slot, history } => {
                let live = self.log.live_view().into_iter();
                live.map(|view| ack(view, slot, history)).collect()
            }
            Decision::Installed { installed } => self
                .log
                .new_view()
                .into_iter()
                .chain([ack(installed.view, installed.slot, installed.history)])
                .collect(),
            Decision::Fenced { .. } => self.log.view_change().into_iter().collect(),
            Decision::Wished { wish } => vec![Statement::Wish {
                view: wish.view,
                epoch: self.epoch,
                position: wish.position,
            }],
            Decision::Beat {
                view,
                count,
                slot,
                history,
            } => vec![Statement::Heartbeat {
                view,
                count,
                slot,
                history,
            }],
            Decision::Retransmitted { request } => vec![Statement::Forward {
                client: request.client,
                seq: request.seq,
                digest: request.digest,
            }],
            Decision::Checkpoint { slot, digest } => vec![Statement::Checkpoint { slot, digest }],
            Decision::SlotResult {
                slot,
                history,
                results,
            } => vec![Statement::SlotResult {
                slot,
                history,
                results,
            }],
            Decision::Opened => {
                let (slot, history) = self.log.accepted();
                let live = self.log.live_view().into_iter();
                live.map(|view| ack(view, slot, history)).collect()
            }
            Decision::Renewed { incarnation, nonce } => {
                vec![Statement::Recovery { incarnation, nonce }]
            }
            Decision::Peered {
                host,
                incarnation,
                nonce,
                view,
            } => {
                let (accepted, history) = self.log.accepted();
                vec![Statement::RecoveryAnswer {
                    to: host,
                    incarnation,
                    nonce,
                    view,
                    accepted,
                    history,
                    incarnations: self.log.incarnations().to_vec(),
                }]
            }
            Decision::Forgotten { .. }
            | Decision::Recovered
            | Decision::Quarantined { .. }
            | Decision::Readmitted { .. }
            | Decision::Candidate { .. }
            | Decision::Nacked { .. }
            | Decision::Void { .. }
            | Decision::NvProposed { .. }
            | Decision::Had { .. }
            | Decision::Certified { .. }
            | Decision::ResultsDiverge { .. }
            | Decision::CheckpointDiverges { .. } => Vec::new(),
        }
    }

    /// A twin sends this certificate of this host; `rings` are those of its receivers.
    pub fn check<'a>(
        &self,
        shape: Shape,
        certificate: &Certificate,
        rings: impl Iterator<Item = &'a KeyRing>,
        truth: &mut Truth,
    ) -> Result<(), Violation> {
        let statement = &certificate.signed.statement;
        if certificate.authenticators.len() < shape.twin_quorum()
            || self.is_decided(certificate.signed.incarnation, statement)
        {
            return Ok(());
        }
        for ring in rings {
            if ring.count_valid(shape, certificate) >= shape.twin_quorum() {
                // 5: no log decides a commit; what was executed says whether it is true.
                if let Statement::Committed { slot, history } = *statement {
                    return truth.vouch(slot, history);
                }
                return Err(violation(
                    2,
                    format!(
                        "{} never decided {statement:?}, and it is certified",
                        self.host
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// What a statement is about, when a host may say one thing about it only.
fn subject_of(statement: &Statement, incarnation: Incarnation) -> Option<Subject> {
    Some(match *statement {
        Statement::Order { view, slot, .. } => Subject::Order(view, slot),
        Statement::Ack { view, slot, .. } => Subject::Ack(view, slot),
        Statement::Checkpoint { slot, .. } => Subject::Checkpoint(slot),
        Statement::SlotResult { slot, history, .. } => Subject::SlotResult(slot, history),
        Statement::Wish {
            epoch, position, ..
        } => Subject::Wish(epoch, position),
        Statement::ViewChange { view, .. } => Subject::ViewChange(incarnation, view),
        Statement::NewView { view, .. } => Subject::NewView(view),
        Statement::Heartbeat { view, count, .. } => Subject::Heartbeat(view, count),
        Statement::Reply { .. }
        | Statement::Forward { .. }
        | Statement::Committed { .. }
        | Statement::Recovery { .. }
        | Statement::RecoveryAnswer { .. }
        | Statement::Report { .. } => return None,
    })
}
