//! The log in plain memory, for the simulator: the same rules, no sharing, no IO.

use std::collections::VecDeque;

use crate::ledger::{AgreedState, Ledger, Limits, LimitsError, Outcome, TrimOutcome};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryEntry<B> {
    /// Index within the epoch.
    pub position: u64,
    /// The twin that appended it.
    pub sender: u8,
    /// The sender's own running number.
    pub append_number: u64,
    /// The payload.
    pub bytes: B,
}

/// What stands at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryRead<'a, B> {
    /// An entry.
    Entry(&'a MemoryEntry<B>),
    /// Nothing yet.
    NotYet,
    /// It was trimmed; resynchronise from the agreed STATE.
    Lapped,
}

/// A host's postbox log in memory. Payloads are of type `B`: one that is cheap to copy need not be copied by readers.
#[derive(Clone, Debug)]
pub struct MemoryLog<B> {
    epoch: u64,
    ledger: Ledger,
    /// Invariant: the positions from `ledger.head_position()` to its tail.
    entries: VecDeque<MemoryEntry<B>>,
}

impl<B: AsRef<[u8]>> MemoryLog<B> {
    /// An empty log of epoch 1.
    ///
    /// # Errors
    /// Limits that no log can be built with.
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        Ok(Self {
            epoch: 1,
            ledger: Ledger::new(limits)?,
            entries: VecDeque::new(),
        })
    }

    /// Appends for `sender`, which must be below `m`, under its running number.
    pub fn append(&mut self, sender: u8, number: u64, bytes: B) -> Outcome {
        let outcome = self
            .ledger
            .append(sender, number, bytes.as_ref().len() as u64);
        match outcome {
            Outcome::Accepted(placed) => self.entries.push_back(MemoryEntry {
                position: placed.position,
                sender,
                append_number: number,
                bytes,
            }),
            Outcome::Refused(_) | Outcome::OutOfOrder { .. } => {}
        }
        outcome
    }

    /// What stands at `position`.
    #[must_use]
    pub fn read(&self, position: u64) -> MemoryRead<'_, B> {
        let Some(index) = position.checked_sub(self.ledger.head_position()) else {
            return MemoryRead::Lapped;
        };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.entries
            .get(index)
            .map_or(MemoryRead::NotYet, MemoryRead::Entry)
    }

    /// Takes a trim proposal of `twin`, which must be below `m`.
    pub fn trim(&mut self, twin: u8, position: u64, state: &[u8]) -> TrimOutcome {
        let outcome = self.ledger.trim(twin, position, state);
        match outcome {
            TrimOutcome::Agreed { from, to } => {
                self.entries
                    .drain(..usize::try_from(to - from).expect("live entries fit memory"));
            }
            TrimOutcome::Held | TrimOutcome::Stale | TrimOutcome::Refused(_) => {}
        }
        outcome
    }

    /// The broker process restarts and the log survives it: only trim proposals are forgotten.
    pub fn restart_kept(&mut self) {
        self.ledger.forget_proposals();
    }

    /// Dom0 loses power: the log is empty and the epoch grows.
    pub fn restart_lost(&mut self) {
        self.epoch += 1;
        self.entries.clear();
        self.ledger = Ledger::new(self.ledger.limits().clone()).expect("they were valid before");
    }

    /// The epoch of the log.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Position of the first retained entry.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.ledger.head_position()
    }

    /// Position behind the last entry.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ledger.tail_position()
    }

    /// What the log was last trimmed with.
    #[must_use]
    pub fn agreed_state(&self) -> Option<&AgreedState> {
        self.ledger.agreed()
    }

    /// The rules' own view: expected numbers, live bytes, limits.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> MemoryLog<Vec<u8>> {
        let limits = Limits {
            twins: 2,
            log_bytes: 4096,
            entry_bytes_max: 96,
            state_bytes_max: 64,
            trim_every: 2,
        };
        MemoryLog::new(limits).expect("valid limits")
    }

    #[test]
    fn entries_are_read_in_one_order_until_they_are_trimmed() {
        let mut log = log();
        for number in 0..2 {
            for sender in 0..2 {
                assert!(matches!(
                    log.append(sender, number, vec![sender]),
                    Outcome::Accepted(_)
                ));
            }
        }
        let senders: Vec<u8> = (0..4)
            .map(|position| match log.read(position) {
                MemoryRead::Entry(entry) => entry.sender,
                other => panic!("position {position}: {other:?}"),
            })
            .collect();
        assert_eq!(senders, [0, 1, 0, 1]);
        assert_eq!(log.read(4), MemoryRead::NotYet);
        log.trim(0, 2, b"state");
        assert_eq!(
            log.trim(1, 2, b"state"),
            TrimOutcome::Agreed { from: 0, to: 2 }
        );
        assert_eq!(log.read(1), MemoryRead::Lapped);
        assert!(matches!(log.read(2), MemoryRead::Entry(entry) if entry.append_number == 1));
        assert_eq!(log.agreed_state().map(|state| state.position), Some(2));
    }

    #[test]
    fn a_restart_keeps_or_loses_the_log() {
        let mut log = log();
        log.append(0, 0, b"a".to_vec());
        log.restart_kept();
        assert_eq!(
            (log.epoch(), log.end(), log.ledger().next_number(0)),
            (1, 1, 1)
        );
        log.restart_lost();
        assert_eq!(
            (log.epoch(), log.end(), log.ledger().next_number(0)),
            (2, 0, 0)
        );
    }
}
