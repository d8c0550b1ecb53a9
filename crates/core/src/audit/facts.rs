//! What a log has shown so far about late slots and views.

use std::collections::BTreeMap;

use twinbft_types::{
    Attempt, Digest, Entry, Position, Slot, Statement, TwinId, View, batch_digest, history,
    results_digest,
};

use super::{Start, What};
use crate::hostlog::{Decision, HostLog};

/// Slots that are remembered; of older ones nothing is said any more.
const SLOTS_MAX: usize = 16_384;
/// HEARTBEATs, VIEW-CHANGEs and NEW-VIEWs that are remembered.
const STATEMENTS_MAX: usize = 4_096;

/// What `q` twins of a host agree on, one of which is correct, is right.
pub(super) const OUTVOTED: What = What::Contradiction {
    problem: "q siblings agree on something else",
    earlier: None,
};

/// A PROPOSE that became a candidate.
#[derive(Clone, Copy, Debug)]
struct Proposed {
    view: View,
    attempt: Attempt,
    history: Digest,
    /// `None` for one that stood in the STATE at the start.
    position: Option<Position>,
}

#[derive(Clone, Copy, Debug)]
struct Vote {
    twin: TwinId,
    view: View,
    attempt: Attempt,
    subject: (bool, Digest),
    position: Position,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    twin: TwinId,
    history: Digest,
    whole: Digest,
    position: Position,
}

#[derive(Debug, Default)]
struct OfSlot {
    proposed: Vec<Proposed>,
    votes: Vec<Vote>,
    said: Vec<Said>,
    ordered: Vec<(View, Digest)>,
    checkpoints: Vec<Digest>,
    /// CHECKPOINTs that were posted.
    states: Vec<Said>,
    results: Vec<(Digest, Digest)>,
}

/// What a log has shown.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) start: Start,
    slots: BTreeMap<Slot, OfSlot>,
    /// Nothing is said about slots up to this one: they were forgotten.
    forgotten: Option<Slot>,
    beats: BTreeMap<(View, u64), (Slot, Digest)>,
    forgotten_beat: Option<(View, u64)>,
    /// VIEW-CHANGEs and NEW-VIEWs in the order in which they were decided.
    views: Vec<Statement>,
    views_forgotten: bool,
}

impl Facts {
    pub(super) fn new(log: &HostLog, is_genesis: bool) -> Self {
        let installed = log.installed_log().map_or(View(0), |log| log.view);
        let accepted = log.accepted().0;
        let mut facts = Self {
            start: Start {
                is_genesis,
                installed,
                fenced_to: log.current_view(),
                accepted,
                beat: log.last_beat(),
            },
            slots: BTreeMap::new(),
            forgotten: None,
            beats: BTreeMap::new(),
            forgotten_beat: None,
            views: Vec::new(),
            views_forgotten: false,
        };
        let mut slot = accepted.next();
        while let Some(candidate) = log.candidate(slot) {
            let (attempt, history) = (candidate.attempt, candidate.history);
            facts
                .slots
                .entry(slot)
                .or_default()
                .proposed
                .push(Proposed {
                    view: installed,
                    attempt,
                    history,
                    position: None,
                });
            slot = slot.next();
        }
        facts
    }

    fn of(&self, slot: Slot) -> Option<&OfSlot> {
        self.slots.get(&slot)
    }

    /// What is wrong with an entry, beside what the automaton says.
    pub(super) fn judge(
        &self,
        _position: Position,
        sender: TwinId,
        entry: &Entry,
        log: &HostLog,
    ) -> Option<What> {
        match entry {
            Entry::Propose {
                view,
                slot,
                attempt,
                previous,
                timestamp_us,
                requests,
            } => {
                let candidate = self.of(*slot)?.proposed(*view, *attempt)?;
                let own = history(*previous, *slot, batch_digest(requests), *timestamp_us);
                // 4.3: an attempt number is above all earlier ones. The automaton ignores the second proposal.
                (candidate.history != own).then_some(What::Contradiction {
                    problem: "two different PROPOSEs under one attempt number",
                    earlier: candidate.position,
                })
            }
            Entry::Endorse {
                view,
                slot,
                attempt,
                history,
                signature,
            } => {
                if signature
                    .as_ref()
                    .is_some_and(|signature| signature.twin != sender)
                {
                    return Some(What::Contradiction {
                        problem: "a signature in another twin's name",
                        earlier: None,
                    });
                }
                self.judge_vote(sender, (*view, *slot, *attempt), (true, *history))
            }
            Entry::Nack {
                view,
                slot,
                attempt,
                history,
                requests: _,
            } => self.judge_vote(sender, (*view, *slot, *attempt), (false, *history)),
            Entry::Results {
                slot,
                history,
                results,
                view: _,
            } if *slot <= log.accepted().0 => {
                let (whole, of) = (whole(results), self.of(*slot)?);
                // 4.8: what a slot gives is a function of its history.
                let said = of.said(sender, *history);
                if let Some(said) = said {
                    return (said.whole != whole).then_some(What::Contradiction {
                        problem: "two different RESULTs for one slot under one history",
                        earlier: Some(said.position),
                    });
                }
                let agreed = of.results.iter().find(|(h, _)| h == history)?.1;
                (agreed != whole).then_some(OUTVOTED)
            }
            Entry::Checkpoint { slot, digest } => {
                let agreed = *self.of(*slot)?.checkpoints.first()?;
                (agreed != *digest).then_some(OUTVOTED)
            }
            _ => None,
        }
    }

    /// 4.3: a follower has one vote on an attempt, and votes on what it has read in the log.
    fn judge_vote(
        &self,
        sender: TwinId,
        (view, slot, attempt): (View, Slot, Attempt),
        subject: (bool, Digest),
    ) -> Option<What> {
        let candidate = self.of(slot).and_then(|of| of.proposed(view, attempt));
        let Some(candidate) = candidate else {
            let never = (self.start.is_genesis || view > self.start.installed)
                && self.forgotten.is_none_or(|forgotten| slot > forgotten);
            return never.then_some(What::Contradiction {
                problem: "a vote on a candidate that the log does not have",
                earlier: None,
            });
        };
        if candidate.history != subject.1 {
            return Some(What::Contradiction {
                problem: "a vote on another history than the candidate's",
                earlier: candidate.position,
            });
        }
        let before = self.of(slot)?.vote(sender, view, attempt)?;
        (before.subject != subject).then_some(What::Contradiction {
            problem: "two different votes on one attempt",
            earlier: Some(before.position),
        })
    }

    /// Remembers an entry that is valid.
    pub(super) fn note_entry(
        &mut self,
        position: Position,
        sender: TwinId,
        entry: &Entry,
        log: &HostLog,
    ) {
        let (slot, view, attempt, subject) = match entry {
            Entry::Endorse {
                view,
                slot,
                attempt,
                history,
                signature: _,
            } => (*slot, *view, *attempt, (true, *history)),
            // 4.3: HAVEs of `q` twins bar it: it is no vote, and its twin may vote again.
            Entry::Nack { requests, .. } if requests.iter().any(|r| log.is_had(r)) => return,
            Entry::Nack {
                view,
                slot,
                attempt,
                history,
                requests: _,
            } => (*slot, *view, *attempt, (false, *history)),
            Entry::Results {
                slot,
                history,
                results,
                view: _,
            } if *slot <= log.accepted().0 => {
                if let Some(of) = self.slots.get_mut(slot)
                    && of.said(sender, *history).is_none()
                {
                    let whole = whole(results);
                    of.said.push(Said {
                        twin: sender,
                        history: *history,
                        whole,
                        position,
                    });
                }
                return;
            }
            Entry::Checkpoint { slot, digest } => {
                let states = &mut self.slot(*slot).states;
                if !states.iter().any(|one| one.twin == sender) {
                    states.push(Said {
                        twin: sender,
                        history: Digest::ZERO,
                        whole: *digest,
                        position,
                    });
                }
                return;
            }
            _ => return,
        };
        if let Some(of) = self.slots.get_mut(&slot)
            && of
                .proposed(view, attempt)
                .is_some_and(|one| one.history == subject.1)
            && of.vote(sender, view, attempt).is_none()
        {
            of.votes.push(Vote {
                twin: sender,
                view,
                attempt,
                subject,
                position,
            });
        }
    }

    /// 9: `q` twins agree, one of which is correct, so whoever has said something else before is wrong.
    pub(super) fn outvoted(&self, decision: &Decision) -> Vec<(Position, TwinId, Slot)> {
        let (slot, history, agreed) = match decision {
            Decision::SlotResult {
                slot,
                history,
                results,
            } => (*slot, Some(*history), *results),
            Decision::Checkpoint { slot, digest } => (*slot, None, *digest),
            _ => return Vec::new(),
        };
        let Some(of) = self.of(slot) else {
            return Vec::new();
        };
        let said = match history {
            Some(_) => &of.said,
            None => &of.states,
        };
        let differs = |one: &&Said| history.is_none_or(|h| one.history == h) && one.whole != agreed;
        let differing = said.iter().filter(differs);
        differing
            .map(|one| (one.position, one.twin, slot))
            .collect()
    }

    pub(super) fn note_decision(&mut self, position: Position, decision: &Decision, log: &HostLog) {
        match decision {
            Decision::Candidate { slot } => {
                let candidate = log.candidate(*slot).expect("it has just become one");
                let (attempt, history) = (candidate.attempt, candidate.history);
                let view = log.live_view().expect("candidates are of a live view");
                self.slot(*slot).proposed.push(Proposed {
                    view,
                    attempt,
                    history,
                    position: Some(position),
                });
            }
            Decision::Ordered {
                view,
                slot,
                candidate,
            } => self.slot(*slot).ordered.push((*view, candidate.history)),
            // RESULTs of it are remembered from here on.
            Decision::Accepted { slot, .. } => {
                self.slot(*slot);
            }
            Decision::Installed { installed: _ } => {
                if let Some(statement) = log.new_view() {
                    self.note_view(statement);
                }
            }
            Decision::Beat {
                view,
                count,
                slot,
                history,
            } => {
                self.beats.insert((*view, *count), (*slot, *history));
                if self.beats.len() > STATEMENTS_MAX {
                    self.forgotten_beat = self.beats.pop_first().map(|(key, _)| key);
                }
            }
            Decision::SlotResult {
                slot,
                history,
                results,
            } => self.slot(*slot).results.push((*history, *results)),
            Decision::Checkpoint { slot, digest } => self.slot(*slot).checkpoints.push(*digest),
            // What was decided before the new epoch is in no log that this audit has read.
            Decision::Opened | Decision::Recovered => *self = Self::new(log, false),
            Decision::Forgotten { .. }
            | Decision::Renewed { .. }
            | Decision::Peered { .. }
            | Decision::Jumped { .. }
            | Decision::Nacked { .. }
            | Decision::Void { .. }
            | Decision::Fenced { .. }
            | Decision::Wished { .. }
            | Decision::NvProposed { .. }
            | Decision::Had { .. }
            | Decision::Retransmitted { .. }
            | Decision::Certified { .. }
            | Decision::ResultsDiverge { .. }
            | Decision::Quarantined { .. }
            | Decision::Readmitted { .. }
            | Decision::CheckpointDiverges { .. } => {}
        }
    }

    /// What the automaton stands at after an entry, however it came there.
    pub(super) fn note_log(&mut self, log: &HostLog) {
        if log.entering().is_some()
            && let Some(statement) = log.view_change()
            && self.views.last() != Some(&statement)
        {
            self.note_view(statement);
        }
    }

    fn note_view(&mut self, statement: Statement) {
        self.views.push(statement);
        if self.views.len() > STATEMENTS_MAX {
            self.views.remove(0);
            self.views_forgotten = true;
        }
    }

    fn slot(&mut self, slot: Slot) -> &mut OfSlot {
        if self.slots.len() >= SLOTS_MAX && !self.slots.contains_key(&slot) {
            let lowest = self.slots.pop_first().map(|(slot, _)| slot);
            self.forgotten = self.forgotten.max(lowest);
        }
        self.slots.entry(slot).or_default()
    }

    /// Whether what was decided about this slot since the start is known.
    pub(super) fn knows(&self, slot: Slot) -> bool {
        self.forgotten.is_none_or(|forgotten| slot > forgotten)
    }

    pub(super) fn has_ordered(&self, view: View, slot: Slot, history: Digest) -> bool {
        self.of(slot)
            .is_some_and(|of| of.ordered.contains(&(view, history)))
    }

    pub(super) fn has_checkpoint(&self, slot: Slot, digest: Digest) -> bool {
        self.of(slot)
            .is_some_and(|of| of.checkpoints.contains(&digest))
    }

    pub(super) fn has_results(&self, slot: Slot, history: Digest, results: Digest) -> bool {
        self.of(slot)
            .is_some_and(|of| of.results.contains(&(history, results)))
    }

    /// Whether HEARTBEAT(view, count) is this; `None` when it is not known any more.
    pub(super) fn has_beat(&self, view: View, count: u64, at: (Slot, Digest)) -> Option<bool> {
        let is_old = self.forgotten_beat.is_some_and(|old| (view, count) <= old);
        (!is_old).then(|| self.beats.get(&(view, count)) == Some(&at))
    }

    /// Whether this VIEW-CHANGE or NEW-VIEW was decided; `None` when it is not known any more.
    pub(super) fn has_view(&self, statement: &Statement) -> Option<bool> {
        let found = self.views.contains(statement);
        (found || !self.views_forgotten).then_some(found)
    }
}

impl OfSlot {
    fn proposed(&self, view: View, attempt: Attempt) -> Option<&Proposed> {
        let mut all = self.proposed.iter();
        all.find(|one| (one.view, one.attempt) == (view, attempt))
    }

    fn vote(&self, twin: TwinId, view: View, attempt: Attempt) -> Option<&Vote> {
        let mut all = self.votes.iter();
        all.find(|one| (one.twin, one.view, one.attempt) == (twin, view, attempt))
    }

    fn said(&self, twin: TwinId, history: Digest) -> Option<&Said> {
        let mut all = self.said.iter();
        all.find(|one| (one.twin, one.history) == (twin, history))
    }
}

fn whole(results: &[twinbft_types::ResultMac]) -> Digest {
    let each: Vec<Digest> = results.iter().map(|result| result.digest).collect();
    results_digest(&each)
}
