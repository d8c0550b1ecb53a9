//! When twins disagree about results: the other hosts say who is right (protocol.md 9).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{Certificate, Digest, HostId, ReplicaId, Slot, Statement, TwinId};

use super::Replica;
use super::checkpoint::two_sides;
use crate::evidence::{Event, EventKind, Output};
use crate::io::{Effect, Effects};

/// Divergences that wait for a verdict; the lowest slot gives way.
const OPEN_MAX: usize = 64;
/// Checkpoints about which twins disagree and that are not stable yet; the lowest gives way.
const OPEN_CHECKPOINTS_MAX: usize = 8;
/// Slots that other hosts asked about; the lowest gives way.
const ASKED_MAX: usize = 256;

/// Divergences seen here, and questions of others about theirs.
#[derive(Clone, Debug, Default)]
pub struct Divergences {
    open: BTreeMap<Slot, Open>,
    checkpoints: BTreeMap<Slot, Vec<(TwinId, Digest)>>,
    asked: BTreeMap<Slot, BTreeSet<HostId>>,
    count: u64,
}

#[derive(Clone, Debug)]
struct Open {
    history: Digest,
    said: Vec<(TwinId, Digest)>,
    verdicts: BTreeMap<HostId, Digest>,
    /// When the other hosts are asked again, and how often they were: the question or the answers may be lost.
    ask_at_us: u64,
    repeats: u32,
}

impl Divergences {
    pub fn count(&mut self) {
        self.count += 1;
    }

    pub const fn total(&self) -> u64 {
        self.count
    }
}

impl Replica {
    /// RESULTs differ under equal history: an event, and a question to all other hosts.
    pub(super) fn handle_results_diverge(
        &mut self,
        slot: Slot,
        history: Digest,
        said: Vec<(TwinId, Digest)>,
        out: &mut Effects,
    ) {
        self.divergences.count();
        let Some((ours, theirs)) = two_sides(&said, self.config.twin()) else {
            return;
        };
        out.push(Effect::Evidence(Event {
            host: self.config.host(),
            twin: None,
            slot: Some(slot),
            kind: EventKind::Divergence {
                output: Output::Results,
                ours,
                theirs,
            },
        }));
        // One more twin may have spoken: what hosts have said about the slot stands.
        let before = self.divergences.open.remove(&slot);
        let before = before.filter(|open| open.history == history);
        let mut verdicts = before.map_or_else(BTreeMap::new, |open| open.verdicts);
        // With m > q the host may have decided; it is one of the `Q` that agree.
        if let Some((decided, results)) = self.log.slot_result(slot)
            && decided == history
        {
            verdicts.insert(self.config.host(), results);
        }
        let open = Open {
            history,
            said,
            verdicts,
            ask_at_us: self.now.mono_us + self.pause_us(0),
            repeats: 0,
        };
        self.divergences.open.insert(slot, open);
        if self.divergences.open.len() > OPEN_MAX {
            self.divergences.open.pop_first();
        }
        let question = Arc::new(PeerMessage::FetchSlotResult { slot, history });
        self.send_to_counterparts(self.config.shape.all_hosts(), &question, out);
        self.judge_results(slot, out);
    }

    /// Asks again, and another twin of each host, about what no verdict has come for.
    pub(super) fn divergence_timer(&mut self, out: &mut Effects) {
        let now = self.now.mono_us;
        let due: Vec<(Slot, Digest, u32)> = (self.divergences.open.iter())
            .filter(|(_, open)| open.ask_at_us <= now)
            .map(|(slot, open)| (*slot, open.history, open.repeats))
            .collect();
        for (slot, history, repeats) in due {
            let question = Arc::new(PeerMessage::FetchSlotResult { slot, history });
            self.ask_around(repeats + 1, &question, out);
            let pause = self.pause_us(repeats + 1);
            if let Some(open) = self.divergences.open.get_mut(&slot) {
                open.repeats += 1;
                open.ask_at_us = now + pause;
            }
        }
    }

    pub(super) fn divergence_deadline(&self) -> Option<u64> {
        let open = self.divergences.open.values();
        open.map(|open| open.ask_at_us).min()
    }

    /// Another host asks for SLOT-RESULT(n, h_n, results digest).
    pub(super) fn handle_fetch_slot_result(
        &mut self,
        from: ReplicaId,
        slot: Slot,
        history: Digest,
        out: &mut Effects,
    ) {
        let asked = self.divergences.asked.entry(slot).or_default();
        asked.insert(from.host);
        if self.divergences.asked.len() > ASKED_MAX {
            self.divergences.asked.pop_first();
        }
        let Some((own_history, results)) = self.log.slot_result(slot) else {
            return;
        };
        if own_history != history {
            return;
        }
        let statement = Statement::SlotResult {
            slot,
            history,
            results,
        };
        match self.book.certificate(&statement) {
            Some(certificate) => out.push(Effect::Send {
                to: from,
                message: Arc::new(PeerMessage::Certificate(certificate)),
            }),
            None => self.sign_decided(&statement, false, out),
        }
    }

    /// This host's log has decided SLOT-RESULT: it is signed when somebody asked.
    pub(super) fn handle_own_slot_result(
        &mut self,
        slot: Slot,
        history: Digest,
        results: Digest,
        out: &mut Effects,
    ) {
        self.handle_slot_result(self.config.host(), slot, history, results, out);
        if self.divergences.asked.contains_key(&slot) {
            let statement = Statement::SlotResult {
                slot,
                history,
                results,
            };
            self.sign_decided(&statement, false, out);
        }
    }

    /// A SLOT-RESULT certificate of this host is complete: it goes to those who asked.
    pub(super) fn send_slot_result(
        &mut self,
        slot: Slot,
        certificate: Certificate,
        out: &mut Effects,
    ) {
        let hosts = self.divergences.asked.remove(&slot).unwrap_or_default();
        let message = Arc::new(PeerMessage::Certificate(certificate));
        self.send_to_counterparts(hosts.into_iter(), &message, out);
    }

    /// A host's verdict, this one's included.
    pub(super) fn handle_slot_result(
        &mut self,
        host: HostId,
        slot: Slot,
        history: Digest,
        results: Digest,
        out: &mut Effects,
    ) {
        let open = self.divergences.open.get_mut(&slot);
        if let Some(open) = open.filter(|open| open.history == history) {
            open.verdicts.insert(host, results);
            self.judge_results(slot, out);
        }
    }

    /// 9: when `Q` hosts agree, who stands alone is the culprit.
    fn judge_results(&mut self, slot: Slot, out: &mut Effects) {
        let quorum = self.config.shape.host_quorum();
        let Some(open) = self.divergences.open.get(&slot) else {
            return;
        };
        let agreed = open.verdicts.values().copied().find(|results| {
            let equal = open.verdicts.values().filter(|other| *other == results);
            equal.count() >= quorum
        });
        if let Some(agreed) = agreed {
            let open = self.divergences.open.remove(&slot);
            let said = open.map_or_else(Vec::new, |open| open.said);
            self.name_culprits(slot, &said, agreed, out);
        }
    }

    fn name_culprits(
        &mut self,
        slot: Slot,
        said: &[(TwinId, Digest)],
        agreed: Digest,
        out: &mut Effects,
    ) {
        for (twin, kind) in verdict(said, agreed) {
            out.push(Effect::Evidence(Event {
                host: self.config.host(),
                twin,
                slot: Some(slot),
                kind,
            }));
            if let Some(twin) = twin {
                self.accuse(twin, slot, out);
            }
        }
    }

    /// CHECKPOINTs differ. What `Q` hosts certify about that slot says who is right; it may have come already.
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
        if slot > self.stable {
            let open = &mut self.divergences.checkpoints;
            open.insert(slot, said.to_vec());
            if open.len() > OPEN_CHECKPOINTS_MAX {
                open.pop_first();
            }
        } else if slot == self.stable
            && let Some(agreed) = self.checkpoints.judged_digest()
        {
            self.name_culprits(slot, said, agreed, out);
        }
    }

    /// A checkpoint is stable, and `Q` hosts are known to have certified this digest, or nobody is named.
    pub(super) fn judge_checkpoint(
        &mut self,
        slot: Slot,
        agreed: Option<Digest>,
        out: &mut Effects,
    ) {
        let later = self.divergences.checkpoints.split_off(&slot.next());
        let mut upto = std::mem::replace(&mut self.divergences.checkpoints, later);
        if let Some(said) = upto.remove(&slot)
            && let Some(agreed) = agreed
        {
            self.name_culprits(slot, &said, agreed, out);
        }
    }
}

/// 9: the twins that differ from what `Q` hosts agree on; when none matches, nobody is named.
fn verdict(said: &[(TwinId, Digest)], agreed: Digest) -> Vec<(Option<TwinId>, EventKind)> {
    if said.iter().all(|(_, digest)| *digest != agreed) {
        return vec![(None, EventKind::NotDeterministic { agreed })];
    }
    said.iter()
        .filter(|(_, digest)| *digest != agreed)
        .map(|(twin, digest)| {
            let kind = EventKind::Culprit {
                agreed,
                said: *digest,
            };
            (Some(*twin), kind)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stands_alone_is_named_and_nobody_when_all_are_wrong() {
        let (right, wrong) = (Digest::of(b"right"), Digest::of(b"wrong"));
        let named = verdict(&[(TwinId(0), right), (TwinId(1), wrong)], right);
        assert_eq!(named.len(), 1);
        assert_eq!(named[0].0, Some(TwinId(1)));
        let nobody = verdict(&[(TwinId(0), wrong), (TwinId(1), wrong)], right);
        assert_eq!(nobody[0].0, None);
        assert_eq!(nobody[0].1.name(), "not-deterministic");
    }
}
