//! The cross-check of results and checkpoints (protocol.md 4.8, 5, 9).

use borsh::{BorshDeserialize, BorshSerialize};
use twinbft_types::{Digest, ResultMac, Slot, TwinId, results_digest};

use super::{Decision, HostLog, Invalid};

/// Slots whose results are still compared; the lowest gives way.
pub const TALLIES_MAX: usize = 128;
/// Slots whose SLOT-RESULT can still be certified; the lowest gives way.
pub const SLOT_RESULTS_MAX: usize = 512;
/// Checkpoints that are still compared; the lowest gives way.
pub const CHECKPOINTS_MAX: usize = 4;

/// What the twins said about one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct ResultTally {
    said: Vec<Said>,
}

impl ResultTally {
    pub(super) fn len(&self) -> usize {
        self.said.len()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Said {
    twin: TwinId,
    history: Digest,
    whole: Digest,
    each: Vec<Digest>,
}

impl HostLog {
    pub(super) fn apply_results(
        &mut self,
        sender: TwinId,
        slot: Slot,
        history: Digest,
        results: &[ResultMac],
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        // A twin that was helped by other hosts may be ahead of its own host (5): no fault, and nothing to compare.
        if slot > self.accepted {
            return Ok(());
        }
        let lowest = self.results.keys().next().copied();
        if self.results.len() >= TALLIES_MAX && lowest.is_some_and(|lowest| slot < lowest) {
            return Ok(());
        }
        let tally = self.results.entry(slot).or_default();
        if tally
            .said
            .iter()
            .any(|s| s.twin == sender && s.history == history)
        {
            return Ok(());
        }
        let each: Vec<Digest> = results.iter().map(|r| r.digest).collect();
        let said = Said {
            twin: sender,
            history,
            whole: results_digest(&each),
            each,
        };
        Self::compare(self.shape.twin_quorum(), slot, tally, &said, out);
        let decided = out.iter().rev().find_map(|d| match d {
            Decision::SlotResult {
                slot: s, results, ..
            } if *s == slot => Some(*results),
            _ => None,
        });
        tally.said.push(said);
        if tally.said.len() >= usize::from(self.shape.twins()) {
            self.results.remove(&slot);
        } else if self.results.len() > TALLIES_MAX {
            self.results.pop_first();
        }
        if let Some(results) = decided {
            self.slot_results.insert(slot, (history, results));
            if self.slot_results.len() > SLOT_RESULTS_MAX {
                self.slot_results.pop_first();
            }
        }
        Ok(())
    }

    /// 4.8: RESULTs are compared only under equal `h_n`.
    fn compare(
        quorum: usize,
        slot: Slot,
        tally: &ResultTally,
        new: &Said,
        out: &mut Vec<Decision>,
    ) {
        let history = new.history;
        let earlier: Vec<&Said> = tally.said.iter().filter(|s| s.history == history).collect();
        let equal_at = |place: usize| {
            let same = |s: &&&Said| s.each.get(place) == new.each.get(place);
            earlier.iter().filter(same).count() + 1
        };
        let places: Vec<usize> = (0..new.each.len())
            .filter(|place| equal_at(*place) == quorum)
            .collect();
        if !places.is_empty() {
            out.push(Decision::Certified {
                slot,
                history,
                places,
            });
        }
        let whole = earlier.iter().filter(|s| s.whole == new.whole).count() + 1;
        if whole == quorum {
            out.push(Decision::SlotResult {
                slot,
                history,
                results: new.whole,
            });
        }
        if earlier.iter().any(|s| s.whole != new.whole) {
            let said = earlier
                .iter()
                .copied()
                .chain([new])
                .map(|s| (s.twin, s.whole))
                .collect();
            out.push(Decision::ResultsDiverge {
                slot,
                history,
                said,
            });
        }
    }

    pub(super) fn apply_checkpoint(
        &mut self,
        sender: TwinId,
        slot: Slot,
        digest: Digest,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        if slot > self.accepted || !slot.0.is_multiple_of(self.bounds.checkpoint_slots) {
            return Err(Invalid("a CHECKPOINT where there is none"));
        }
        if slot.0 + CHECKPOINTS_MAX as u64 * self.bounds.checkpoint_slots
            <= self.certified_checkpoint.0
        {
            return Ok(());
        }
        let votes = self.checkpoints.entry(slot).or_default();
        let equal = match votes.vote(sender, digest) {
            Ok(equal) => equal,
            Err(first) if first == digest => return Ok(()),
            Err(_) => return Err(Invalid("two different CHECKPOINTs for one slot")),
        };
        if equal == self.shape.twin_quorum() {
            self.certified_checkpoint = slot.max(self.certified_checkpoint);
            out.push(Decision::Checkpoint { slot, digest });
        }
        if votes.differ() {
            out.push(Decision::CheckpointDiverges {
                slot,
                said: votes.iter().collect(),
            });
        }
        if votes.len() >= usize::from(self.shape.twins()) {
            self.checkpoints.remove(&slot);
        } else if self.checkpoints.len() > CHECKPOINTS_MAX {
            self.checkpoints.pop_first();
        }
        Ok(())
    }
}
