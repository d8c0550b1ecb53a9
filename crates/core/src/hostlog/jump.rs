//! A host that lags takes a committed slot over (protocol.md 5).

use twinbft_types::{Digest, Slot, TwinId};

use super::{Decision, HostLog};
use crate::mutants::{Rule, out as is_out};

impl HostLog {
    /// 5: `q` equal JUMPs set `n_acc = n` if `n > n_acc`, and otherwise do nothing; of each twin its latest counts. The
    /// primary of an installed view does not jump.
    pub(super) fn apply_jump(
        &mut self,
        sender: TwinId,
        slot: Slot,
        history: Digest,
        out: &mut Vec<Decision>,
    ) {
        self.jumps.retain(|(twin, ..)| *twin != sender);
        self.jumps.push((sender, slot, history));
        let equal = self.jumps.iter().filter(|j| (j.1, j.2) == (slot, history));
        if equal.count() < self.shape.twin_quorum()
            || (slot <= self.accepted && !is_out(Rule::JumpRaises))
            || self.is_primary()
        {
            return;
        }
        self.accepted = slot;
        self.accepted_history = history;
        self.accepts = self.accepts.split_off(&slot.next());
        // What was accepted below, in a view that was left elsewhere, may be another log than the committed one.
        self.histories = self.histories.split_off(&slot.next());
        out.push(Decision::Jumped { slot, history });
    }

    /// The latest JUMP of each twin.
    pub fn jumps(&self) -> impl Iterator<Item = (TwinId, Slot, Digest)> + '_ {
        self.jumps.iter().copied()
    }
}
