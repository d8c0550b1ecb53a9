//! The invariants of protocol.md 11, one file each, checked while the simulation runs.

mod agreement;
mod busy;
mod certificates;
mod evidence;
mod histories;
mod linear;
mod memory;
mod once;
mod progress;
mod time;
mod undone;
mod window;

use std::collections::BTreeMap;
use std::fmt;

use twinbft_core::Execute;
use twinbft_types::{ClientId, Digest, Seq, Slot};

pub use busy::Busy;
pub use certificates::Observer;
pub use evidence::{check_audit, check_event};
pub use histories::check_histories;
pub use linear::check_linearizable;
pub use memory::check_footprint;
pub use progress::check_progress;
pub use undone::Undone;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which, by its number in section 11; 0 for a panic, 10 for a busy loop.
    pub invariant: u8,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {}: {}", self.invariant, self.what)
    }
}

/// A slot's history and what it executed.
type Executed = (Digest, Vec<(ClientId, Seq, bytes::Bytes)>);

/// What all correct twins together have executed.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// Each slot's history and what it executed, as the first twin did.
    slots: BTreeMap<Slot, Executed>,
    /// What valid COMMITTED certificates say of slots.
    vouched: BTreeMap<Slot, Digest>,
    executed: BTreeMap<(ClientId, Seq), Slot>,
    /// The time of the last slot.
    timestamp_us: u64,
    /// By session: the numbers that were executed, without those below the window.
    windows: BTreeMap<ClientId, window::Executed>,
    /// `W`.
    window: u64,
    /// Registers after the last slot, and the slot of each write.
    writes: BTreeMap<u8, Vec<(Slot, u64)>>,
}

impl Truth {
    /// With clients whose window is `window`.
    pub fn new(window: u64) -> Self {
        Self {
            window,
            ..Self::default()
        }
    }

    /// A correct twin is about to execute this.
    ///
    /// # Errors
    /// The first broken invariant.
    pub fn execute(&mut self, execute: &Execute, latest_us: u64) -> Result<(), Violation> {
        let (slot, history, requests) = (execute.slot, execute.seed, &execute.requests[..]);
        let first = agreement::check(&self.slots, slot, history, requests)?;
        if first {
            if let Some(said) = self.vouched.get(&slot).filter(|said| **said != history) {
                return Err(violation(
                    2,
                    format!(
                        "{slot} is certified as committed with history {said:?}, and is {history:?}"
                    ),
                ));
            }
            time::check(&mut self.timestamp_us, latest_us, execute)?;
            window::check(&mut self.windows, self.window, requests)?;
            once::check(&mut self.executed, slot, requests)?;
            for request in requests {
                if let Some(crate::service::Operation::Write { key, value }) =
                    crate::service::Operation::decode(&request.operation)
                {
                    self.writes.entry(key).or_default().push((slot, value));
                }
            }
            let what = requests
                .iter()
                .map(|r| (r.client, r.seq, r.operation.clone()))
                .collect();
            self.slots.insert(slot, (history, what));
        }
        Ok(())
    }

    /// Whether this slot executed this request.
    #[must_use]
    pub fn holds(&self, slot: Slot, client: ClientId, seq: Seq) -> bool {
        let executed = self.slots.get(&slot);
        executed.is_some_and(|(_, what)| what.iter().any(|(c, s, _)| (*c, *s) == (client, seq)))
    }

    /// A valid certificate says that this slot is committed.
    pub fn vouch(&mut self, slot: Slot, history: Digest) -> Result<(), Violation> {
        let executed = self.slots.get(&slot).map(|(history, _)| *history);
        let known = *self.vouched.entry(slot).or_insert(history);
        if known == history && executed.is_none_or(|executed| executed == history) {
            return Ok(());
        }
        Err(violation(
            2,
            format!("{slot} is certified as committed with history {history:?}"),
        ))
    }

    /// The last executed slot.
    pub fn last(&self) -> Slot {
        self.slots.keys().next_back().copied().unwrap_or_default()
    }
}

pub fn violation(invariant: u8, what: impl Into<String>) -> Violation {
    Violation {
        invariant,
        what: what.into(),
    }
}
