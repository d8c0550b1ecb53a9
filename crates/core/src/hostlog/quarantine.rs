//! Twins that their siblings do not listen to any more (protocol.md 9, policy `quarantine`).

use std::collections::BTreeMap;

use borsh::{BorshDeserialize, BorshSerialize};
use twinbft_types::TwinId;

use super::votes::TwinSet;
use super::{Decision, HostLog, Invalid};
use crate::mutants::{Rule, out as is_out};

/// Who votes about whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Quarantines {
    /// Who votes to ignore a twin. Invariant: of none that is ignored.
    accused: BTreeMap<TwinId, TwinSet>,
    /// The twins that are ignored, and who votes to listen to them again.
    /// Invariant: at most `m - q`, so that `q` are left.
    ignored: BTreeMap<TwinId, TwinSet>,
}

impl HostLog {
    /// Whether entries of this twin are ignored.
    #[must_use]
    pub fn is_quarantined(&self, twin: TwinId) -> bool {
        self.quarantines.ignored.contains_key(&twin)
    }

    /// The twins whose entries count, lowest first.
    pub fn listened_to(&self) -> impl Iterator<Item = TwinId> + '_ {
        let all = self.shape.all_twins();
        all.filter(|twin| !self.is_quarantined(*twin))
    }

    /// Whether `voter` has posted a QUARANTINE of `twin` that still counts.
    #[must_use]
    pub fn has_accused(&self, voter: TwinId, twin: TwinId) -> bool {
        let votes = self.quarantines.accused.get(&twin);
        votes.is_some_and(|votes| votes.contains(voter))
    }

    /// 9: QUARANTINE entries of `q` distinct twins naming it. `q` stays, so it is never more twins than the host can do
    /// without: the next one stays accused until another one is readmitted.
    pub(super) fn apply_quarantine(
        &mut self,
        sender: TwinId,
        twin: TwinId,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        self.check_accusation(sender, twin)?;
        if self.is_quarantined(twin) {
            return Ok(());
        }
        self.quarantines
            .accused
            .entry(twin)
            .or_default()
            .insert(sender);
        self.poll_quarantine(out);
        Ok(())
    }

    /// 9: it ends with `q` readmission entries.
    pub(super) fn apply_readmit(
        &mut self,
        sender: TwinId,
        twin: TwinId,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        self.check_accusation(sender, twin)?;
        let quorum = self.shape.twin_quorum();
        let Some(votes) = self.quarantines.ignored.get_mut(&twin) else {
            return Ok(());
        };
        votes.insert(sender);
        if votes.len() >= quorum {
            self.quarantines.ignored.remove(&twin);
            out.push(Decision::Readmitted { twin });
            self.poll_quarantine(out);
        }
        Ok(())
    }

    fn check_accusation(&self, sender: TwinId, twin: TwinId) -> Result<(), Invalid> {
        if twin == sender || twin.0 >= self.shape.twins() || self.shape.unanimous() {
            return Err(Invalid(
                "a QUARANTINE or READMIT of its sender, of no twin, or where two twins are all",
            ));
        }
        Ok(())
    }

    fn poll_quarantine(&mut self, out: &mut Vec<Decision>) {
        let quorum = if is_out(Rule::QuarantineQuorum) {
            1
        } else {
            self.shape.twin_quorum()
        };
        let spare = usize::from(self.shape.twins()) - self.shape.twin_quorum();
        let Quarantines { accused, ignored } = &mut self.quarantines;
        while ignored.len() < spare
            && let Some(twin) = (accused.iter())
                .find(|(_, votes)| votes.len() >= quorum)
                .map(|(twin, _)| *twin)
        {
            accused.remove(&twin);
            ignored.insert(twin, TwinSet::default());
            out.push(Decision::Quarantined { twin });
        }
    }
}

#[cfg(test)]
mod tests {
    use twinbft_types::{Attempt, Digest, Entry, HostId, Shape, Slot, View};

    use super::*;
    use crate::config::Tuning;

    fn log(twins: u8) -> HostLog {
        let shape = Shape::new(3, twins).expect("a shape");
        HostLog::genesis(shape, HostId(1), Tuning::default().host_bounds())
    }

    fn apply(log: &mut HostLog, sender: u8, entry: &Entry) -> Vec<Decision> {
        let mut decisions = Vec::new();
        log.apply(TwinId(sender), entry, &mut decisions)
            .expect("a correct twin may post it");
        decisions
    }

    fn quarantine(twin: u8) -> Entry {
        Entry::Quarantine { twin: TwinId(twin) }
    }

    fn readmit(twin: u8) -> Entry {
        Entry::Readmit { twin: TwinId(twin) }
    }

    fn accept(slot: u64) -> Entry {
        Entry::Accept {
            view: View(0),
            slot: Slot(slot),
            history: Digest::of(&slot.to_le_bytes()),
        }
    }

    #[test]
    fn two_of_three_ignore_the_third_and_go_on() {
        let mut log = log(3);
        assert_eq!(apply(&mut log, 0, &quarantine(2)), []);
        // The same twin again is one voice.
        assert_eq!(apply(&mut log, 0, &quarantine(2)), []);
        assert!(!log.is_quarantined(TwinId(2)));
        let decided = Decision::Quarantined { twin: TwinId(2) };
        assert_eq!(apply(&mut log, 1, &quarantine(2)), [decided]);
        // Its entries count for nothing, and two are enough as before.
        apply(&mut log, 2, &accept(1));
        assert_eq!(log.accept_votes(Slot(1)), 0);
        apply(&mut log, 0, &accept(1));
        let decided = apply(&mut log, 1, &accept(1));
        assert!(matches!(decided[..], [Decision::Accepted { .. }]));
        // What it says about others is ignored, too.
        assert_eq!(apply(&mut log, 2, &quarantine(0)), []);
        assert!(!log.has_accused(TwinId(2), TwinId(0)));
    }

    #[test]
    fn an_invalid_entry_of_one_that_is_ignored_is_ignored() {
        let mut log = log(3);
        apply(&mut log, 0, &quarantine(2));
        apply(&mut log, 1, &quarantine(2));
        let wrong = Entry::Endorse {
            view: View(1),
            slot: Slot(1),
            attempt: Attempt(0),
            history: Digest::ZERO,
            signature: None,
        };
        assert_eq!(apply(&mut log, 2, &wrong), []);
    }

    #[test]
    fn it_is_in_state_and_ends_with_the_votes_of_two() {
        let mut log = log(3);
        apply(&mut log, 0, &quarantine(2));
        apply(&mut log, 1, &quarantine(2));
        let shape = Shape::new(3, 3).expect("a shape");
        let mut log = HostLog::from_state(shape, HostId(1), &log.to_state()).expect("its own");
        assert!(log.is_quarantined(TwinId(2)));
        // It cannot readmit itself.
        assert_eq!(apply(&mut log, 2, &readmit(2)), []);
        assert_eq!(apply(&mut log, 0, &readmit(2)), []);
        let decided = Decision::Readmitted { twin: TwinId(2) };
        assert_eq!(apply(&mut log, 1, &readmit(2)), [decided]);
        // Earlier votes are spent.
        assert_eq!(apply(&mut log, 0, &quarantine(2)), []);
        assert!(!log.is_quarantined(TwinId(2)));
    }

    #[test]
    fn a_host_ignores_no_more_than_it_can_do_without() {
        let mut log = log(4);
        for voter in [0, 1, 2] {
            apply(&mut log, voter, &quarantine(3));
        }
        for voter in [0, 1] {
            apply(&mut log, voter, &quarantine(2));
        }
        // Of those that are left, three are the quorum: a second one would silence the host.
        assert_eq!(log.listened_to().count(), 3);
        assert!(log.is_quarantined(TwinId(3)) && !log.is_quarantined(TwinId(2)));
    }

    #[test]
    fn nobody_accuses_itself_and_two_twins_do_not_quarantine() {
        for (twins, sender, twin) in [(3, 1, 1), (3, 1, 3), (2, 0, 1)] {
            for entry in [quarantine(twin), readmit(twin)] {
                let mut decisions = Vec::new();
                let applied = log(twins).apply(TwinId(sender), &entry, &mut decisions);
                assert!(applied.is_err() && decisions.is_empty());
            }
        }
    }

    #[test]
    fn a_new_epoch_needs_no_hello_of_one_that_is_ignored() {
        let shape = Shape::new(3, 3).expect("a shape");
        let bounds = Tuning::default().host_bounds();
        let mut log = HostLog::reopened(shape, HostId(1), bounds);
        let hello = Entry::Hello {
            state: twinbft_types::HelloState {
                leave: View(0),
                last_normal: View(0),
                accepted: Slot(9),
                history: Digest::of(b"nine"),
                incarnations: vec![twinbft_types::Incarnation(0); 3],
            },
        };
        assert_eq!(apply(&mut log, 0, &quarantine(2)), []);
        assert_eq!(apply(&mut log, 0, &hello), []);
        assert_eq!(apply(&mut log, 1, &hello), []);
        let decided = apply(&mut log, 1, &quarantine(2));
        let quarantined = Decision::Quarantined { twin: TwinId(2) };
        assert_eq!(decided, [quarantined, Decision::Opened]);
    }
}
