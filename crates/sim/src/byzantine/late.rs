//! Votes at the wrong time ([`super::Double::Belated`]) and signatures too early ([`super::Double::Assembling`]).

use twinbft_types::{
    Authenticator, Certificate, Entry, Incarnation, KeyRing, ReplicaId, Shape, Signed, Statement,
};

/// Statements whose signatures are collected at a time.
const OPEN_MAX: usize = 32;

/// The last vote of each kind, and those that are to be posted again.
#[derive(Debug, Default)]
pub struct Votes {
    last: Vec<Entry>,
    pub late: Vec<Entry>,
}

impl Votes {
    /// An own vote. Whether it is posted now.
    pub fn keeps_back(&mut self, entry: &Entry, hold: bool) -> bool {
        let is_vote = matches!(
            entry,
            Entry::Endorse { .. }
                | Entry::Accept { .. }
                | Entry::NvEndorse { .. }
                | Entry::NvPropose { .. }
                | Entry::NvAccept { .. }
                | Entry::Jump { .. }
        );
        if is_vote {
            let kind = std::mem::discriminant(entry);
            self.last.retain(|e| std::mem::discriminant(e) != kind);
            self.last.push(entry.clone());
        }
        hold && matches!(entry, Entry::NvAccept { .. } | Entry::NvEndorse { .. })
    }

    pub fn note_entry(&mut self, entry: &Entry) {
        if matches!(entry, Entry::Leave { .. }) {
            self.late.clone_from(&self.last);
        }
    }
}

/// The signatures of others on statements of this host.
#[derive(Debug, Default)]
pub struct Signatures {
    pub open: Vec<(Statement, Vec<Authenticator>)>,
}

impl Signatures {
    pub fn note_entry(&mut self, entry: &Entry, me: ReplicaId) {
        let (statement, authenticator) = match entry {
            Entry::Sign {
                statement,
                authenticator,
            } => (statement.clone(), authenticator),
            Entry::Endorse {
                view,
                slot,
                history,
                signature: Some(authenticator),
                ..
            } => {
                let (view, slot, history) = (*view, *slot, *history);
                let statement = Statement::Order {
                    view,
                    slot,
                    history,
                };
                (statement, authenticator)
            }
            _ => return,
        };
        if authenticator.twin == me.twin {
            return;
        }
        let place = self.open.iter().position(|(known, _)| *known == statement);
        let (_, signatures) = match place {
            Some(place) => &mut self.open[place],
            None => {
                if self.open.len() >= OPEN_MAX {
                    self.open.remove(0);
                }
                self.open.push((statement, Vec::new()));
                self.open.last_mut().expect("just pushed")
            }
        };
        signatures.push(authenticator.clone());
    }

    /// A certificate of what `q - 1` others have signed, with its own signature.
    pub fn assemble(&mut self, shape: Shape, me: ReplicaId, keys: &KeyRing) -> Option<Certificate> {
        let needed = shape.twin_quorum() - 1;
        let ready = self.open.iter().position(|(_, s)| s.len() >= needed)?;
        let (statement, mut authenticators) = self.open.swap_remove(ready);
        let signed = Signed {
            host: me.host,
            incarnation: Incarnation(0),
            statement,
        };
        authenticators.push(keys.sign(shape, &signed));
        Some(Certificate {
            signed,
            authenticators,
        })
    }
}
