//! CHECKPOINT certificates of the last stable checkpoint and later ones, this host's own included (protocol.md 5): they let those
//! go on who lag, also after this host has lost its log (8). So they are in the write-ahead log, and what comes back from
//! there is verified again.

use std::collections::BTreeMap;

use twinbft_types::{Certificate, HostId, Slot, Statement};

use super::Replica;
use crate::fault::PeerFault;
use crate::io::{Effect, Effects};
use crate::record::{PROOFS_OF_A_HOST_MAX, Record};

/// A certificate may come again with other signatures: it is written ahead so often.
const WRITTEN_MAX: u8 = 4;

/// What hosts have certified.
#[derive(Clone, Debug, Default)]
pub struct Proofs {
    /// With how often each was written ahead. Invariant: of each host at most [`PROOFS_OF_A_HOST_MAX`].
    proofs: BTreeMap<(Slot, HostId), (Certificate, u8)>,
}

impl Proofs {
    /// Takes one over; the lowest of its host gives way. Answers whether it is to be written ahead.
    pub fn insert(&mut self, slot: Slot, certificate: &Certificate) -> bool {
        let host = certificate.signed.host;
        let known = self.proofs.get(&(slot, host));
        if known.is_some_and(|(known, _)| known == certificate) {
            return false;
        }
        let written = known.map_or(0, |(_, written)| *written);
        let is_news = written < WRITTEN_MAX;
        let proof = (certificate.clone(), written + u8::from(is_news));
        self.proofs.insert((slot, host), proof);
        let mut of_host = self.proofs.keys().filter(|(_, of)| *of == host);
        if let Some(lowest) = of_host.next().copied()
            && of_host.count() >= PROOFS_OF_A_HOST_MAX
        {
            self.proofs.remove(&lowest);
        }
        is_news && self.proofs.contains_key(&(slot, host))
    }

    /// What lies below is of no use any more.
    pub fn trim(&mut self, slot: Slot) {
        self.proofs = self.proofs.split_off(&(slot, HostId(0)));
    }

    /// The certificates of this statement about a checkpoint.
    fn of(&self, slot: Slot, statement: &Statement) -> impl Iterator<Item = &Certificate> {
        let of_slot = (slot, HostId(0))..=(slot, HostId(u8::MAX));
        let proofs = self.proofs.range(of_slot).map(|(_, (proof, _))| proof);
        proofs.filter(move |proof| proof.signed.statement == *statement)
    }
}

impl Replica {
    /// Keeps a certificate that is of use to those who lag.
    pub(super) fn keep_proof(&mut self, slot: Slot, certificate: &Certificate, out: &mut Effects) {
        if slot >= self.stable && self.checkpoints.proofs.insert(slot, certificate) {
            out.push(Effect::Persist(Record::Proof(certificate.clone())));
        }
    }

    /// The certificates of a checkpoint that are here, this host's own first.
    pub(super) fn proofs_of(&self, slot: Slot, statement: &Statement) -> Vec<Certificate> {
        let me = self.config.host();
        let own = self.own_proof(slot, statement).into_iter();
        let proofs = self.checkpoints.proofs.of(slot, statement);
        let others = proofs.filter(|proof| proof.signed.host != me);
        own.chain(others.cloned()).collect()
    }

    /// This host's own certificate: of this epoch of its log, or of an earlier one.
    pub(super) fn own_proof(&self, slot: Slot, statement: &Statement) -> Option<Certificate> {
        let me = self.config.host();
        let mut proofs = self.checkpoints.proofs.of(slot, statement);
        let newest = self.book.certificate(statement);
        newest.or_else(|| proofs.find(|proof| proof.signed.host == me).cloned())
    }

    /// What of the write-ahead log was not used at the start because it does not verify; once.
    pub fn take_start_faults(&mut self) -> Vec<PeerFault> {
        std::mem::take(&mut self.recovery.faults)
    }

    /// What the write-ahead log holds of this: a disk may hold anything, and keys change.
    pub(super) fn recall_proofs(&mut self) {
        for certificate in std::mem::take(&mut self.recovery.proofs) {
            let host = certificate.signed.host;
            let Statement::Checkpoint { slot, digest } = certificate.signed.statement else {
                self.recovery.faults.push(PeerFault::VoidProof { host });
                continue;
            };
            let is_own = host == self.config.host();
            let is_valid = if is_own {
                self.is_own_certificate(&certificate)
            } else {
                self.verify(self.config.me, &certificate).is_ok()
            };
            if !is_valid {
                self.recovery.faults.push(PeerFault::VoidProof { host });
            } else if slot >= self.stable {
                let _written = self.checkpoints.proofs.insert(slot, &certificate);
                // A host believes its own word by its own log.
                if slot > self.stable && !is_own {
                    let high_mark = self.high_mark();
                    self.checkpoints.note(host, slot, digest, high_mark);
                }
            }
        }
    }

    /// Whether this twin has signed it, and others with it. Their part only the receivers can verify.
    fn is_own_certificate(&self, certificate: &Certificate) -> bool {
        let shape = self.config.shape;
        let own = self.config.keys.sign(shape, &certificate.signed);
        let authenticators = &certificate.authenticators;
        let twins = authenticators.iter().map(|a| a.twin);
        let twins: std::collections::BTreeSet<_> = twins.collect();
        twins.len() == authenticators.len()
            && twins.len() >= shape.twin_quorum()
            && authenticators.contains(&own)
            && authenticators
                .iter()
                .all(|a| a.twin.0 < shape.twins() && a.macs.len() == own.macs.len())
    }
}

#[cfg(test)]
mod tests {
    use twinbft_types::{Authenticator, Digest, Incarnation, Mac, Signed, TwinId};

    use super::*;

    fn proof(host: u8, slot: u64, signers: u8) -> Certificate {
        let authenticators = (0..signers).map(|twin| Authenticator {
            twin: TwinId(twin),
            macs: vec![Mac([0; 16]); 4],
        });
        Certificate {
            signed: Signed {
                host: HostId(host),
                incarnation: Incarnation(0),
                statement: Statement::Checkpoint {
                    slot: Slot(slot),
                    digest: Digest::ZERO,
                },
            },
            authenticators: authenticators.collect(),
        }
    }

    #[test]
    fn one_that_comes_again_is_written_ahead_only_when_it_differs_and_not_for_ever() {
        let mut proofs = Proofs::default();
        assert!(proofs.insert(Slot(4), &proof(1, 4, 2)));
        assert!(!proofs.insert(Slot(4), &proof(1, 4, 2)));
        let written = (0..20u8).filter(|n| proofs.insert(Slot(4), &proof(1, 4, 3 + n % 2)));
        assert_eq!(written.count(), usize::from(WRITTEN_MAX) - 1);
    }

    #[test]
    fn the_lowest_of_a_host_gives_way_and_other_hosts_stay() {
        let mut proofs = Proofs::default();
        proofs.insert(Slot(4), &proof(2, 4, 2));
        for slot in 1..=9 {
            proofs.insert(Slot(4 * slot), &proof(1, 4 * slot, 2));
        }
        assert!(!proofs.insert(Slot(4), &proof(1, 4, 2)), "it is too low");
        let of_host = |host: u8| {
            let keys = proofs.proofs.keys();
            keys.filter(|(_, of)| *of == HostId(host)).count()
        };
        assert_eq!((of_host(1), of_host(2)), (PROOFS_OF_A_HOST_MAX, 1));
        proofs.trim(Slot(36));
        assert_eq!(proofs.proofs.len(), 1);
    }
}
