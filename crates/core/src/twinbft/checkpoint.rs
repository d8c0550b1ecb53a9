//! Checkpoints and what they let go (protocol.md 5).

use std::collections::BTreeMap;

use twinbft_types::{Digest, Entry, HostId, Slot, Statement, TwinId};

use super::Replica;
use crate::evidence::{Event, EventKind, Output};
use crate::io::{Effect, Effects};
use crate::record::Record;

/// Checkpoints that are kept of one host; its lowest gives way.
const OF_A_HOST_MAX: usize = 4;

/// What the hosts say about the state at checkpoints.
#[derive(Debug, Default)]
pub struct Checkpoints {
    /// This twin's own digests above `L`, with the history and timestamp of their slots.
    own: BTreeMap<Slot, Own>,
    /// What each host certified, this one included.
    certified: BTreeMap<HostId, BTreeMap<Slot, Digest>>,
    stable: Own,
}

#[derive(Clone, Copy, Debug, Default)]
struct Own {
    digest: Digest,
    history: Digest,
    timestamp_us: u64,
}

impl Checkpoints {
    /// `h_L`.
    pub const fn stable_history(&self) -> Digest {
        self.stable.history
    }

    /// The timestamp of slot `L`.
    pub const fn stable_timestamp_us(&self) -> u64 {
        self.stable.timestamp_us
    }

    fn note(&mut self, host: HostId, slot: Slot, digest: Digest) {
        let of_host = self.certified.entry(host).or_default();
        of_host.insert(slot, digest);
        if of_host.len() > OF_A_HOST_MAX {
            of_host.pop_first();
        }
    }

    /// The highest checkpoint above what `floor` says that `quorum` hosts certified with one digest.
    fn agreed(&self, floor: Slot, quorum: usize) -> Option<(Slot, Digest)> {
        let mut count: BTreeMap<(Slot, Digest), usize> = BTreeMap::new();
        for (slot, digest) in self.certified.values().flatten() {
            *count.entry((*slot, *digest)).or_default() += 1;
        }
        count
            .into_iter()
            .rev()
            .find(|((slot, _), n)| *slot > floor && *n >= quorum)
            .map(|(key, _)| key)
    }
}

impl Replica {
    /// The service has made its state at `slot` durable: this twin posts the digest of all that is replicated.
    pub(super) fn handle_checkpointed(&mut self, slot: Slot, service: Digest, out: &mut Effects) {
        let data = self
            .slots
            .get(slot)
            .expect("executed slots above L are held");
        let (history, timestamp_us) = (data.history, data.timestamp_us);
        let sessions = self.sessions.digest();
        let parts = (
            service,
            sessions,
            self.config.config_digest,
            history,
            timestamp_us,
        );
        let digest = Digest::of_canonical(b"tbft/chk", &parts);
        let own = Own {
            digest,
            history,
            timestamp_us,
        };
        self.checkpoints.own.insert(slot, own);
        let entry = Entry::Checkpoint { slot, digest };
        out.push(Effect::Persist(Record::Promise(entry.clone())));
        out.post(entry);
        self.execution.checkpoint_done();
        self.poll_stable(out);
    }

    /// `q` twins have the same digest: the host certifies CHECKPOINT(n, digest) to all.
    pub(super) fn handle_own_checkpoint(&mut self, slot: Slot, digest: Digest, out: &mut Effects) {
        self.checkpoints.note(self.config.host(), slot, digest);
        self.sign_decided(Statement::Checkpoint { slot, digest }, true, out);
        self.poll_stable(out);
    }

    /// Another host's CHECKPOINT certificate.
    pub(super) fn handle_checkpoint(
        &mut self,
        host: HostId,
        slot: Slot,
        digest: Digest,
        out: &mut Effects,
    ) {
        if slot > self.stable {
            self.checkpoints.note(host, slot, digest);
            self.poll_stable(out);
        }
    }

    /// 5: `Q` hosts with equal `(n, digest)` make it stable; `L = n`.
    fn poll_stable(&mut self, out: &mut Effects) {
        let quorum = self.config.shape.host_quorum();
        let Some((slot, digest)) = self.checkpoints.agreed(self.stable, quorum) else {
            return;
        };
        let Some(own) = self.checkpoints.own.get(&slot).copied() else {
            // This twin is behind; it gets there by executing, or by state transfer.
            return;
        };
        if own.digest != digest {
            out.push(Effect::Evidence(Event {
                host: self.config.host(),
                twin: Some(self.config.twin()),
                slot: Some(slot),
                kind: EventKind::Culprit {
                    agreed: digest,
                    said: own.digest,
                },
            }));
            self.checkpoints.own.remove(&slot);
            return;
        }
        self.stable = slot;
        self.checkpoints.stable = own;
        self.checkpoints.own = self.checkpoints.own.split_off(&slot.next());
        for of_host in self.checkpoints.certified.values_mut() {
            *of_host = of_host.split_off(&slot.next());
        }
        // One interval more is kept for those who lag a little.
        let keep = self.config.tuning.checkpoint_slots;
        self.slots.trim(Slot(slot.0.saturating_sub(keep)));
        out.push(Effect::Persist(Record::Stable { slot, digest }));
    }

    /// The highest checkpoint that `Q` hosts agree on, when this twin has not reached it.
    pub(super) fn behind(&self) -> Option<Slot> {
        let quorum = self.config.shape.host_quorum();
        let (slot, _) = self.checkpoints.agreed(self.stable, quorum)?;
        (slot > self.execution.executed()).then_some(slot)
    }

    pub(super) fn handle_checkpoint_divergence(
        &mut self,
        slot: Slot,
        said: &[(TwinId, Digest)],
        out: &mut Effects,
    ) {
        self.divergences.count();
        let Some((ours, theirs)) = two_sides(said, self.config.twin()) else {
            return;
        };
        out.push(Effect::Evidence(Event {
            host: self.config.host(),
            twin: None,
            slot: Some(slot),
            kind: EventKind::Divergence {
                output: Output::Checkpoint,
                ours,
                theirs,
            },
        }));
    }
}

/// This twin's word (or the first, when it has given none) and the first that differs from it.
pub fn two_sides(said: &[(TwinId, Digest)], me: TwinId) -> Option<(Digest, Digest)> {
    let ours = said
        .iter()
        .find(|(twin, _)| *twin == me)
        .or_else(|| said.first())?
        .1;
    let theirs = said.iter().find(|(_, digest)| *digest != ours)?.1;
    Some((ours, theirs))
}
