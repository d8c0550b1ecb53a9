//! The cross-check of results and checkpoints (protocol.md 4.8, 5, 9).

use std::collections::BTreeMap;

use borsh::{BorshDeserialize, BorshSerialize};
use twinbft_types::{Digest, ResultMac, Slot, TwinId, View, results_digest};

use super::{Decision, HostLog, Invalid};
use crate::mutants::{Rule, out as is_out};

/// Slots whose results are still compared; the lowest gives way.
pub const TALLIES_MAX: usize = 128;
/// Digests of single results that are kept, of all tallies together; the lists of the lowest slots give way. Results
/// of such a slot are then compared as a whole, and no longer one by one.
pub const LISTED_DIGESTS_MAX: usize = 4096;
/// Slots whose SLOT-RESULT can still be certified; the lowest gives way.
pub const SLOT_RESULTS_MAX: usize = 512;
/// Checkpoints that are still compared; the lowest gives way.
pub const CHECKPOINTS_MAX: usize = 4;

/// What the twins said about one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct ResultTally {
    /// Each twin's first RESULT, or its first of a later view. Invariant: of distinct twins.
    said: Vec<Said>,
    /// The digests of each whole that was said, once, while they can still certify something.
    lists: BTreeMap<Digest, Vec<Digest>>,
}

impl ResultTally {
    pub(super) fn len(&self) -> usize {
        self.said.len()
    }

    pub(super) fn listed(&self) -> usize {
        self.lists.values().map(Vec::len).sum()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Said {
    twin: TwinId,
    /// The view in which the host had accepted the slot, when tentative (4.8).
    view: Option<View>,
    history: Digest,
    whole: Digest,
}

impl HostLog {
    pub(super) fn apply_results(
        &mut self,
        sender: TwinId,
        (view, slot, history): (Option<View>, Slot, Digest),
        results: &[ResultMac],
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        if results.is_empty() || results.len() as u64 > self.bounds.batch_requests_max {
            return Err(Invalid("a RESULT of no requests or of too many"));
        }
        if view.is_some_and(|view| view > self.installed) {
            return Err(Invalid("a RESULT of a view that its host has not entered"));
        }
        if !self.compares(slot) {
            return Ok(());
        }
        // A tentative RESULT of a view that was left may be of a log that the next one has dropped (4.7).
        let is_of_now = view.is_none_or(|view| view == self.installed);
        let known = self.histories.get(&slot);
        if is_of_now && known.is_some_and(|(v, known)| *v == self.installed && *known != history) {
            return Err(Invalid("a RESULT under a history that its host never had"));
        }
        let tally = self.results.entry(slot).or_default();
        if tally
            .said
            .iter()
            .any(|s| s.twin == sender && s.view >= view)
        {
            return Ok(());
        }
        tally.said.retain(|s| s.twin != sender);
        let each: Vec<Digest> = results.iter().map(|r| r.digest).collect();
        let whole = results_digest(&each);
        tally.said.push(Said {
            twin: sender,
            view,
            history,
            whole,
        });
        let alone = is_out(Rule::ResultQuorum);
        let quorum = if alone { 1 } else { self.shape.twin_quorum() };
        let results = tally.compare(quorum, slot, each, out);
        // One of an older view may come again under the history of this one.
        let is_one = tally.said.iter().all(|s| s.history == history);
        if tally.said.len() >= usize::from(self.shape.twins()) && is_one {
            self.results.remove(&slot);
        }
        self.shed_results();
        if let Some(results) = results {
            self.slot_results.insert(slot, (history, results));
            if self.slot_results.len() > SLOT_RESULTS_MAX {
                self.slot_results.pop_first();
            }
        }
        Ok(())
    }

    /// Whether a RESULT for this slot counts here.
    ///
    /// A twin that was helped by other hosts may be ahead of its own host (5): no fault, and nothing to compare. That
    /// such a RESULT counts for nothing is also what makes an early reply safe: with m = q, a RESULT of a sibling that
    /// counts stands behind the own ACCEPT in the log, so a twin that answers a client by it has read its own
    /// acceptance back ([`crate::Replica`], `reply_early`).
    #[must_use]
    pub fn compares(&self, slot: Slot) -> bool {
        let lowest = self.results.keys().next().copied();
        let is_old = self.results.len() >= TALLIES_MAX && lowest.is_some_and(|low| slot < low);
        slot <= self.accepted && !is_old
    }

    /// Lets the lowest give way until the rest is within its bounds.
    fn shed_results(&mut self) {
        if self.results.len() > TALLIES_MAX {
            self.results.pop_first();
        }
        let mut listed: usize = self.results.values().map(ResultTally::listed).sum();
        for tally in self.results.values_mut() {
            if listed <= LISTED_DIGESTS_MAX {
                break;
            }
            listed -= tally.listed();
            tally.lists.clear();
        }
    }

    /// The view and history of a late slot, as this host decided or accepted it.
    pub(crate) fn decided(&self, slot: Slot) -> Option<(View, Digest)> {
        self.histories.get(&slot).copied()
    }

    /// What the results of late slots must be under; without a bound a twin could invent histories.
    pub(super) fn note_history(&mut self, view: View, slot: Slot, history: Digest) {
        self.histories.insert(slot, (view, history));
        if self.histories.len() > TALLIES_MAX {
            self.histories.pop_first();
        }
    }
}

impl HostLog {
    /// The last CHECKPOINT that this host has certified.
    #[must_use]
    pub fn certified_checkpoint(&self) -> Option<(Slot, Digest)> {
        let last = (self.certified_checkpoint, self.certified_digest);
        (last.0 > Slot(0)).then_some(last)
    }
}

impl ResultTally {
    /// 4.8: RESULTs are compared only under equal `h_n`. The last of `said` is new and says `each`; answers with what
    /// is now decided for the whole slot.
    fn compare(
        &mut self,
        quorum: usize,
        slot: Slot,
        each: Vec<Digest>,
        out: &mut Vec<Decision>,
    ) -> Option<Digest> {
        let (new, earlier) = self.said.split_last().expect("the new one");
        let (history, whole) = (new.history, new.whole);
        let earlier: Vec<&Said> = earlier.iter().filter(|s| s.history == history).collect();
        let equal = earlier.iter().filter(|s| s.whole == whole).count() + 1;
        let equal_at = |place: usize| {
            let same = |s: &&&Said| {
                s.whole == whole
                    || (self.lists.get(&s.whole))
                        .is_some_and(|list| list.get(place) == each.get(place))
            };
            earlier.iter().filter(same).count() + 1
        };
        let places: Vec<usize> = (0..each.len())
            .filter(|place| equal_at(*place) == quorum)
            .collect();
        if !places.is_empty() {
            out.push(Decision::Certified {
                slot,
                history,
                places,
            });
        }
        if earlier.iter().any(|s| s.whole != whole) {
            let said = (earlier.iter().copied().chain([new]))
                .map(|s| (s.twin, s.whole))
                .collect();
            out.push(Decision::ResultsDiverge {
                slot,
                history,
                said,
            });
        }
        if equal == quorum {
            // No other whole can reach a quorum any more, and every place of this one is certified.
            self.lists.clear();
            out.push(Decision::SlotResult {
                slot,
                history,
                results: whole,
            });
        } else if equal < quorum && !self.is_settled(quorum) {
            self.lists.insert(whole, each);
        }
        (equal == quorum).then_some(whole)
    }

    /// Whether `q` twins said the same whole under the same history.
    fn is_settled(&self, quorum: usize) -> bool {
        self.said.iter().any(|one| {
            let same = |s: &&Said| s.history == one.history && s.whole == one.whole;
            self.said.iter().filter(same).count() >= quorum
        })
    }
}

impl HostLog {
    /// A twin that was helped by other hosts is ahead of its own (5): its word counts between the marks, where a bad twin can
    /// open two tallies more. What comes earlier is lost.
    pub(crate) const fn last_checkpoint_that_counts(&self) -> Slot {
        Slot(self.accepted.0 + 2 * self.bounds.checkpoint_slots)
    }

    pub(super) fn apply_checkpoint(
        &mut self,
        sender: TwinId,
        slot: Slot,
        digest: Digest,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        if !slot.0.is_multiple_of(self.bounds.checkpoint_slots) {
            return Err(Invalid("a CHECKPOINT where there is none"));
        }
        if slot > self.last_checkpoint_that_counts() {
            return Ok(());
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
            if slot > self.certified_checkpoint {
                self.certified_checkpoint = slot;
                self.certified_digest = digest;
            }
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
