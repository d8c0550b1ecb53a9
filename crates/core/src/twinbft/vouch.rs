//! COMMITTED(n, h_n): one host's word that a slot is committed is enough for another one to fetch it and jump
//! (protocol.md 5). Otherwise one bad twin that spoils its MACs for one receiver could keep that host behind.
//!
//! No entry of the log decides it: a twin signs what it knows, and `q` signatures are a certificate, because one correct
//! signer is enough for it to be true.

use std::collections::BTreeSet;
use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{Certificate, Digest, Entry, ReplicaId, Slot, Statement};

use super::Replica;
use crate::io::{Effect, Effects};
use crate::mutants::{Rule, out as is_out};

/// A twin signs COMMITTED at most this often of its own accord, whoever asks.
const SIGN_EVERY_US: u64 = 50_000;

/// What this twin vouches for, and what others have vouched for to it.
#[derive(Clone, Debug, Default)]
pub struct Vouching {
    /// What it has signed last for somebody who lags, and when.
    signed: Option<(Slot, Digest, u64)>,
    /// Who waits for that certificate. Invariant: twins of this cluster.
    askers: BTreeSet<ReplicaId>,
    /// The highest slot that another host has certified as committed, while this twin does not know it itself.
    certified: Option<(Slot, Digest)>,
    /// The highest one that this twin has posted JUMP for on such a word.
    jumped: Slot,
}

impl Replica {
    /// Somebody lags and asks for what is committed above a slot.
    pub(super) fn vouch_to(&mut self, asker: ReplicaId, above: Slot, out: &mut Effects) {
        let committed = self.commit.committed();
        // A sibling knows what its host has committed from the log that both read.
        if committed <= above || asker.host == self.config.host() || self.recovery.is_silent() {
            return;
        }
        let last = self.vouching.signed;
        let is_late = |at: u64| at + SIGN_EVERY_US <= self.now.mono_us;
        if let Some((slot, history, at)) = last
            && !is_late(at)
        {
            let statement = Statement::Committed { slot, history };
            match self.book.certificate(&statement) {
                Some(certificate) if slot > above => send_to(asker, certificate, out),
                Some(_) => {}
                None => drop(self.vouching.askers.insert(asker)),
            }
            return;
        }
        let Some(history) = self.history_of(committed) else {
            return;
        };
        self.vouching.signed = Some((committed, history, self.now.mono_us));
        let statement = Statement::Committed {
            slot: committed,
            history,
        };
        if let Some(certificate) = self.book.certificate(&statement) {
            send_to(asker, certificate, out);
            return;
        }
        self.vouching.askers.insert(asker);
        if self.book.decide(&statement) {
            self.sign_known(&statement, out);
        } else {
            // A sibling that did not know of the commit then may know now.
            self.post_signature(&statement, out);
        }
    }

    /// A sibling vouches for a slot: so does this twin, if it knows the same.
    pub(super) fn join_committed(&mut self, slot: Slot, history: Digest, out: &mut Effects) {
        let statement = Statement::Committed { slot, history };
        if slot <= self.commit.committed()
            && self.history_of(slot) == Some(history)
            && self.book.decide(&statement)
        {
            self.sign_known(&statement, out);
        }
    }

    fn sign_known(&mut self, statement: &Statement, out: &mut Effects) {
        let authenticator = self.post_signature(statement, out);
        if let Some(certificate) = self.book.sign(statement, authenticator) {
            self.send_committed(&certificate, out);
        }
    }

    fn post_signature(
        &self,
        statement: &Statement,
        out: &mut Effects,
    ) -> twinbft_types::Authenticator {
        let signed = self.signed(statement.clone());
        let authenticator = self.config.keys.sign(self.config.shape, &signed);
        out.post(Entry::Sign {
            statement: statement.clone(),
            authenticator: authenticator.clone(),
        });
        authenticator
    }

    /// `q` twins vouch for it: whoever waits for it gets it.
    pub(super) fn send_committed(&mut self, certificate: &Certificate, out: &mut Effects) {
        for asker in std::mem::take(&mut self.vouching.askers) {
            send_to(asker, certificate.clone(), out);
        }
    }

    /// Another host's certified word that a slot is committed. It helps the siblings too.
    pub(super) fn handle_committed(
        &mut self,
        from: ReplicaId,
        (slot, history): (Slot, Digest),
        certificate: &Certificate,
        out: &mut Effects,
    ) {
        let known = self.vouching.certified.map_or(Slot(0), |(slot, _)| slot);
        if slot <= known.max(self.commit.committed()) || is_out(Rule::Committed) {
            return;
        }
        self.vouching.certified = Some((slot, history));
        if from.host != self.config.host() {
            out.post(Entry::Relay {
                certificate: certificate.clone(),
            });
        }
    }

    /// Whether this twin holds this slot and another host has certified it as committed.
    pub(super) fn is_vouched(&self, slot: Slot, history: Digest) -> bool {
        self.vouching.certified.is_some_and(|(certified, end)| {
            slot <= certified && self.owns(certified, end) && self.history_of(slot) == Some(history)
        })
    }

    /// 5: fetches what is certified as committed, and jumps once it is held durably. It counts as committed here when the
    /// host has accepted it, because RESULTs count from there on.
    pub(super) fn poll_vouched(&mut self, out: &mut Effects) {
        let Some((slot, history)) = self.vouching.certified else {
            return;
        };
        let (accepted, end) = self.log.accepted();
        if slot <= self.commit.committed() {
            self.vouching.certified = None;
        } else if slot <= accepted {
            // What this host has accepted instead is of an older view: it gets the higher NEW-VIEW. A primary does not jump, so what a
            // twin of it has of the log is its host's; when it starts again it may not have all of it yet.
            let is_same = self.log.is_primary() && (accepted, end) == (slot, history);
            if is_same || self.owns(slot, history) {
                self.commit.stand_at(slot);
                self.vouching.certified = None;
            }
        } else if !self.log.is_primary()
            && self.vouching.jumped < slot
            && self.hold(slot, history, out)
        {
            if !self.owns(slot, history) {
                let sure = self.join_chain((slot, history));
                self.undo_above(sure.max(self.commit.committed()), out);
                self.backup.set_tip(slot);
                self.rebuild_in_log(slot);
            }
            self.backup.raise_tip(slot);
            self.vouching.jumped = slot;
            self.jump(slot, out);
        }
    }
}

fn send_to(to: ReplicaId, certificate: Certificate, out: &mut Effects) {
    let message = Arc::new(PeerMessage::Certificate(certificate));
    out.push(Effect::Send { to, message });
}
