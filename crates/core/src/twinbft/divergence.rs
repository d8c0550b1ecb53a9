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
/// Slots that other hosts asked about; the lowest gives way.
const ASKED_MAX: usize = 256;

/// Divergences seen here, and questions of others about theirs.
#[derive(Clone, Debug, Default)]
pub struct Divergences {
    open: BTreeMap<Slot, Open>,
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
        let open = Open {
            history,
            said,
            verdicts: BTreeMap::new(),
            ask_at_us: self.now.mono_us + self.pause_us(0),
            repeats: 0,
        };
        self.divergences.open.insert(slot, open);
        if self.divergences.open.len() > OPEN_MAX {
            self.divergences.open.pop_first();
        }
        let question = Arc::new(PeerMessage::FetchSlotResult { slot, history });
        self.send_to_counterparts(self.config.shape.all_hosts(), &question, out);
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

    /// Another host's verdict. When `Q` hosts agree, who stands alone is the culprit.
    pub(super) fn handle_slot_result(
        &mut self,
        host: HostId,
        slot: Slot,
        history: Digest,
        results: Digest,
        out: &mut Effects,
    ) {
        let quorum = self.config.shape.host_quorum();
        let Some(open) = self
            .divergences
            .open
            .get_mut(&slot)
            .filter(|open| open.history == history)
        else {
            return;
        };
        open.verdicts.insert(host, results);
        let agree = open.verdicts.values().filter(|d| **d == results).count();
        if agree < quorum {
            return;
        }
        let said = self
            .divergences
            .open
            .remove(&slot)
            .map_or_else(Vec::new, |open| open.said);
        for (twin, kind) in verdict(&said, results) {
            out.push(Effect::Evidence(Event {
                host: self.config.host(),
                twin,
                slot: Some(slot),
                kind,
            }));
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
