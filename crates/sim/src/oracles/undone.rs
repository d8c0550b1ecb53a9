//! Invariant 5: in "committed" mode nothing executed is ever undone. A twin executes slot after slot; it never goes back
//! while it lives, except for a tentative suffix, and a state that it fetches is above its own. What it executes again
//! after a restart, or after it has gone back, is compared with what was executed first by invariant 1.

use twinbft_core::Execution;
use twinbft_types::{ReplicaId, Slot};

use super::{Violation, violation};

/// Where the service of one twin stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Undone {
    executed: Slot,
}

impl Undone {
    /// A process that begins with the state after this slot.
    pub const fn begin(executed: Slot) -> Self {
        Self { executed }
    }

    pub fn execute(&mut self, id: ReplicaId, slot: Slot) -> Result<(), Violation> {
        if slot != self.executed.next() {
            return Err(violation(
                5,
                format!("{id} executes {slot} and stands at {}", self.executed),
            ));
        }
        self.executed = slot;
        Ok(())
    }

    /// 4.7: back to the last stable checkpoint, with tentative execution alone.
    pub fn roll_back(
        &mut self,
        id: ReplicaId,
        slot: Slot,
        mode: Execution,
    ) -> Result<(), Violation> {
        if mode == Execution::Committed || slot > self.executed {
            return Err(violation(
                5,
                format!(
                    "{id} stands at {} and undoes all above {slot}",
                    self.executed
                ),
            ));
        }
        self.executed = slot;
        Ok(())
    }

    pub fn restore(&mut self, id: ReplicaId, slot: Slot) -> Result<(), Violation> {
        if slot <= self.executed {
            return Err(violation(
                5,
                format!("{id} stands at {} and goes back to {slot}", self.executed),
            ));
        }
        self.executed = slot;
        Ok(())
    }
}
