//! Off-line audit of one host's log (protocol.md 9): the same automaton that every twin runs, and a memory of what each
//! twin has posted, so that a twin which contradicts itself is named where the automaton merely ignores it.
//!
//! Nobody is named over an entry whose rightness depends on MACs or timers, and nobody over what the log alone does not
//! prove: an audit that begins at a STATE says nothing about what may have been decided before it.

mod facts;
mod signatures;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use twinbft_types::{
    DecodeError, Digest, Entry, HostId, Position, Shape, Slot, TwinId, View, from_canonical,
};

use crate::evidence::Output;
use crate::hostlog::{Bounds, Decision, HostLog, Invalid};
use facts::Facts;

/// Trims whose STATE is remembered for a comparison; the oldest give way.
const TRIMS_MAX: usize = 4096;

/// Something in the log that a host of correct twins does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The entry.
    pub position: Position,
    /// Who appended it.
    pub twin: TwinId,
    /// The entry's name; "UNREADABLE" for one that does not decode.
    pub entry: &'static str,
    /// The slot that it is about, if it is about one.
    pub slot: Option<Slot>,
    /// What is wrong.
    pub what: What,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// No correct twin posts this, whatever it received.
    Invalid {
        /// In words.
        problem: &'static str,
    },
    /// It goes against what the same twin posted before, or against what the log had decided.
    Contradiction {
        /// In words.
        problem: &'static str,
        /// The entry that it goes against, where there is one.
        earlier: Option<Position>,
    },
    /// Twins disagree: one of them is wrong, and this log does not show which.
    Divergence {
        /// About what.
        output: Output,
        /// What each has said so far.
        said: Vec<(TwinId, Digest)>,
    },
}

impl Finding {
    /// Whether the twin that appended it is shown to be wrong; a divergence names nobody.
    #[must_use]
    pub const fn names_twin(&self) -> bool {
        match self.what {
            What::Invalid { .. } | What::Contradiction { .. } => true,
            What::Divergence { .. } => false,
        }
    }
}

/// Follows a log, entry by entry.
#[derive(Debug)]
pub struct Auditor {
    shape: Shape,
    host: HostId,
    log: HostLog,
    facts: Facts,
    /// The digest of STATE at each trim that was due.
    trims: BTreeMap<Position, Digest>,
    decisions: Vec<Decision>,
}

impl Auditor {
    /// From the first entry of a log at genesis.
    #[must_use]
    pub fn genesis(shape: Shape, host: HostId, bounds: Bounds) -> Self {
        Self::with_log(shape, host, HostLog::genesis(shape, host, bounds), true)
    }

    /// From the first entry of a log that begins a later epoch.
    #[must_use]
    pub fn reopened(shape: Shape, host: HostId, bounds: Bounds) -> Self {
        Self::with_log(shape, host, HostLog::reopened(shape, host, bounds), false)
    }

    /// From a trim on.
    ///
    /// # Errors
    /// When the bytes are no STATE of this host at this position.
    pub fn from_state(
        shape: Shape,
        host: HostId,
        position: Position,
        state: &[u8],
    ) -> Result<Self, DecodeError> {
        let log = HostLog::from_state(shape, host, state)?;
        if log.end() != position {
            return Err(DecodeError(format!(
                "this is the state at position {}",
                log.end()
            )));
        }
        Ok(Self::with_log(shape, host, log, false))
    }

    fn with_log(shape: Shape, host: HostId, log: HostLog, is_genesis: bool) -> Self {
        Self {
            shape,
            host,
            facts: Facts::new(&log, is_genesis),
            log,
            trims: BTreeMap::new(),
            decisions: Vec::new(),
        }
    }

    /// The position after the last entry.
    #[must_use]
    pub const fn end(&self) -> Position {
        self.log.end()
    }

    /// The automaton.
    #[must_use]
    pub const fn log(&self) -> &HostLog {
        &self.log
    }

    /// The digest of STATE at `position`; `None` when no trim was due there, or too long ago.
    #[must_use]
    pub fn state_digest(&self, position: Position) -> Option<Digest> {
        self.trims.get(&position).copied()
    }

    /// What the last entry decided, in order.
    #[must_use]
    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    /// Takes in the entry at [`Self::end`]. What it decides may show that an earlier one was wrong.
    pub fn handle_entry(&mut self, sender: TwinId, bytes: &[u8]) -> Vec<Finding> {
        let entry = from_canonical::<Entry>(bytes).ok();
        self.handle_decoded(sender, entry.as_ref(), bytes.len() as u64)
    }

    /// The same for one that its reader has decoded, of this many bytes; `None` for bytes that do not decode.
    pub fn handle_decoded(
        &mut self,
        sender: TwinId,
        entry: Option<&Entry>,
        bytes: u64,
    ) -> Vec<Finding> {
        let position = self.log.end();
        let mut found = Vec::new();
        self.decisions.clear();
        match entry {
            Some(_) | None if sender.0 >= self.shape.twins() => {
                let problem = "the broker stamps only twins of this host";
                found.push(unreadable(position, sender, problem));
                self.log.skip(sender);
            }
            // 9: nobody listens to it, so that nothing follows from what it says.
            Some(_) | None if self.log.is_quarantined(sender) => self.log.skip(sender),
            Some(entry) => self.apply(position, sender, entry, &mut found),
            None => {
                found.push(unreadable(position, sender, "it does not decode"));
                self.log.skip(sender);
            }
        }
        if let Some(trimmed) = self.log.note_bytes(bytes) {
            self.trims.insert(trimmed, Digest::of(&self.log.to_state()));
            if self.trims.len() > TRIMS_MAX {
                self.trims.pop_first();
            }
        }
        found
    }

    fn apply(
        &mut self,
        position: Position,
        sender: TwinId,
        entry: &Entry,
        found: &mut Vec<Finding>,
    ) {
        let mut decisions = std::mem::take(&mut self.decisions);
        let mut outvoted = Vec::new();
        let mut find = |what| {
            found.push(Finding {
                position,
                twin: sender,
                entry: entry.name(),
                slot: entry.slot(),
                what,
            });
        };
        // Before it counts: what an entry decides stands behind it.
        let own = self.facts.judge(position, sender, entry, &self.log);
        let signed = match entry {
            Entry::Sign {
                statement,
                authenticator,
            } => signatures::judge(
                &self.facts,
                &self.log,
                (self.shape, self.host),
                sender,
                statement,
                authenticator,
            ),
            _ => None,
        };
        match self.log.apply(sender, entry, &mut decisions) {
            Err(Invalid(problem)) => find(What::Invalid { problem }),
            Ok(()) => {
                for what in own.into_iter().chain(signed) {
                    find(what);
                }
                self.facts.note_entry(position, sender, entry, &self.log);
            }
        }
        for decision in &decisions {
            self.facts.note_decision(position, decision, &self.log);
            for (position, twin, slot) in self.facts.outvoted(decision) {
                let entry = if matches!(decision, Decision::Checkpoint { .. }) {
                    "CHECKPOINT"
                } else {
                    "RESULT"
                };
                outvoted.push(Finding {
                    position,
                    twin,
                    entry,
                    slot: Some(slot),
                    what: facts::OUTVOTED,
                });
            }
            match decision {
                Decision::ResultsDiverge { said, .. } => find(What::Divergence {
                    output: Output::Results,
                    said: said.clone(),
                }),
                Decision::CheckpointDiverges { said, .. } => find(What::Divergence {
                    output: Output::Checkpoint,
                    said: said.clone(),
                }),
                _ => {}
            }
        }
        found.append(&mut outvoted);
        self.facts.note_log(&self.log);
        self.decisions = decisions;
    }
}

fn unreadable(position: Position, twin: TwinId, problem: &'static str) -> Finding {
    Finding {
        position,
        twin,
        entry: "UNREADABLE",
        slot: None,
        what: What::Invalid { problem },
    }
}

/// Where an audit begins: what was decided up to there is not known.
#[derive(Clone, Copy, Debug)]
struct Start {
    is_genesis: bool,
    installed: View,
    fenced_to: View,
    accepted: Slot,
    beat: u64,
}

impl Start {
    /// Whether a decision about this slot in this view can only have come after the start.
    fn is_after(self, view: View, slot: Slot) -> bool {
        view > self.installed || (view == self.installed && slot > self.accepted)
    }
}
