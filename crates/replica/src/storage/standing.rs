//! Promises that belong to no slot and so are never trimmed: the newest of each kind is copied to the head of every
//! new segment, which makes older segments free to go once their slots are.

use std::collections::BTreeMap;

use twinbft_core::{PROOFS_OF_A_HOST_MAX, Record};
use twinbft_types::{Entry, HostId, Slot, Statement, TwinId};

/// What a newer record replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    // First: it voids what stands before it in a segment.
    Forgotten,
    Joined,
    Installed,
    Stable,
    Checkpoint,
    Jump,
    Leave,
    NvPropose,
    NvEndorse,
    NvAccept,
    NewView,
    Peer(HostId),
    Membership(TwinId),
    Hello,
    Amnesia,
    Question(HostId),
    // A CHECKPOINT of a host.
    Proof(HostId, Slot),
}

/// The newest record of each kind. Invariant: bounded by the shape of the cluster, not by its history.
#[derive(Debug, Default)]
pub(crate) struct Standing(BTreeMap<Key, Record>);

impl Standing {
    /// Takes note of a record.
    pub(crate) fn note(&mut self, record: &Record) {
        match record {
            // What came before is void once the epoch is joined; the stable checkpoint is what it was, and what was certified, too.
            Record::Forgotten { .. } => self
                .0
                .retain(|key, _| matches!(key, Key::Stable | Key::Proof(..))),
            // From here on nothing is void, and a copy of that record must not stand behind what is promised now.
            Record::Joined { .. } => {
                self.0.remove(&Key::Forgotten);
            }
            // 5: what lies below is of no use any more.
            Record::Stable { slot, .. } => {
                self.0
                    .retain(|key, _| !matches!(key, Key::Proof(_, of) if of < slot));
            }
            Record::Promise(_)
            | Record::Slot { .. }
            | Record::Proof(_)
            | Record::Installed { .. } => {}
        }
        let Some(key) = key(record) else {
            return;
        };
        self.0.insert(key, record.clone());
        if let Key::Proof(host, _) = key {
            self.bound_proofs(host);
        }
    }

    /// The lowest of a host gives way, as it does in memory.
    fn bound_proofs(&mut self, host: HostId) {
        let of_host = Key::Proof(host, Slot(0))..=Key::Proof(host, Slot(u64::MAX));
        let mut kept = self.0.range(of_host).map(|(key, _)| *key);
        if let Some(lowest) = kept.next()
            && kept.count() >= PROOFS_OF_A_HOST_MAX
        {
            self.0.remove(&lowest);
        }
    }

    /// What a new segment begins with.
    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.0.values()
    }
}

/// The kind under which a record stands; `None` when it goes with its slot.
fn key(record: &Record) -> Option<Key> {
    match record {
        Record::Forgotten { .. } => Some(Key::Forgotten),
        Record::Joined { .. } => Some(Key::Joined),
        Record::Installed { .. } => Some(Key::Installed),
        Record::Stable { .. } => Some(Key::Stable),
        Record::Proof(certificate) => {
            let signed = &certificate.signed;
            Some(Key::Proof(signed.host, signed.statement.slot()?))
        }
        Record::Slot { .. } => None,
        Record::Promise(entry) => match entry {
            Entry::Checkpoint { .. } => Some(Key::Checkpoint),
            Entry::Jump { .. } => Some(Key::Jump),
            Entry::Leave { .. } => Some(Key::Leave),
            Entry::NvPropose { .. } => Some(Key::NvPropose),
            Entry::NvEndorse { .. } => Some(Key::NvEndorse),
            Entry::NvAccept { .. } => Some(Key::NvAccept),
            Entry::Peer { host, .. } => Some(Key::Peer(*host)),
            // The RECOVERY that a PEER rests on.
            Entry::Relay { certificate } => Some(Key::Question(certificate.signed.host)),
            Entry::Quarantine { twin } | Entry::Readmit { twin } => Some(Key::Membership(*twin)),
            Entry::Hello { .. } => Some(Key::Hello),
            Entry::Amnesia { .. } => Some(Key::Amnesia),
            Entry::Sign { statement, .. } => match statement {
                Statement::NewView { .. } => Some(Key::NewView),
                Statement::Order { .. }
                | Statement::Ack { .. }
                | Statement::Reply { .. }
                | Statement::Forward { .. }
                | Statement::Checkpoint { .. }
                | Statement::Heartbeat { .. }
                | Statement::Wish { .. }
                | Statement::ViewChange { .. }
                | Statement::Committed { .. }
                | Statement::SlotResult { .. }
                | Statement::Recovery { .. }
                | Statement::RecoveryAnswer { .. }
                | Statement::Report { .. } => None,
            },
            Entry::Propose { .. }
            | Entry::Endorse { .. }
            | Entry::Nack { .. }
            | Entry::Withdraw { .. }
            | Entry::Need { .. }
            | Entry::Body { .. }
            | Entry::Have { .. }
            | Entry::Accept { .. }
            | Entry::Results { .. }
            | Entry::ResultAgain { .. }
            | Entry::Retransmission { .. }
            | Entry::Suspect { .. }
            | Entry::Beat { .. }
            | Entry::RelayOrder { .. } => None,
        },
    }
}

/// The slot that a record belongs to: its segment must stay until that slot is below a stable checkpoint.
pub(crate) fn slot_of(record: &Record) -> Option<Slot> {
    match record {
        Record::Slot { slot, .. } => Some(*slot),
        Record::Stable { .. }
        | Record::Joined { .. }
        | Record::Forgotten { .. }
        | Record::Proof(_)
        | Record::Installed { .. } => None,
        Record::Promise(entry) => entry.slot(),
    }
}

#[cfg(test)]
mod tests {
    use twinbft_types::{Certificate, Digest, Epoch, Incarnation, Signed, View};

    use super::*;

    #[test]
    fn what_voids_promises_does_not_stand_behind_later_ones() {
        let mut standing = Standing::default();
        let certificates = Vec::new();
        let leave = |view| {
            Record::Promise(Entry::Leave {
                view: View(view),
                certificates: certificates.clone(),
            })
        };
        let epoch = Epoch(2);
        standing.note(&leave(1));
        standing.note(&Record::Forgotten { epoch });
        standing.note(&leave(2));
        let records: Vec<_> = standing.records().cloned().collect();
        assert_eq!(records, [Record::Forgotten { epoch }, leave(2)]);
        standing.note(&Record::Joined { epoch });
        let records: Vec<_> = standing.records().cloned().collect();
        assert_eq!(records, [Record::Joined { epoch }, leave(2)]);
    }

    fn proof(host: u8, slot: u64) -> Record {
        Record::Proof(Certificate {
            signed: Signed {
                host: HostId(host),
                incarnation: Incarnation(0),
                statement: Statement::Checkpoint {
                    slot: Slot(slot),
                    digest: Digest::ZERO,
                },
            },
            authenticators: Vec::new(),
        })
    }

    #[test]
    fn certificates_stay_from_the_stable_checkpoint_on_and_are_few() {
        let mut standing = Standing::default();
        for slot in 1..=9 {
            standing.note(&proof(1, slot));
        }
        standing.note(&proof(2, 7));
        standing.note(&proof(2, 6));
        let kept = |standing: &Standing| standing.records().cloned().collect::<Vec<_>>();
        let all = [
            proof(1, 6),
            proof(1, 7),
            proof(1, 8),
            proof(1, 9),
            proof(2, 6),
            proof(2, 7),
        ];
        assert_eq!(kept(&standing), all);
        let stable = Record::Stable {
            slot: Slot(7),
            digest: Digest::ZERO,
        };
        standing.note(&stable);
        let forgotten = Record::Forgotten { epoch: Epoch(2) };
        standing.note(&forgotten);
        let all = [
            forgotten,
            stable,
            proof(1, 7),
            proof(1, 8),
            proof(1, 9),
            proof(2, 7),
        ];
        assert_eq!(kept(&standing), all, "what was certified stays so");
    }
}
