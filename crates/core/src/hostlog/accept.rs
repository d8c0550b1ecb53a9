//! Acceptance of slots on a backup host (protocol.md 4.5).

use twinbft_types::{Digest, Slot, TwinId, View};

use super::{Decision, HostLog, Invalid};
use crate::mutants::{Rule, out as is_out};

impl HostLog {
    pub(super) fn apply_accept(
        &mut self,
        sender: TwinId,
        view: View,
        slot: Slot,
        history: Digest,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        if self.shape.primary(view) == self.host {
            return Err(Invalid("an ACCEPT on the primary host of its view"));
        }
        // 4.5: between the install of v and its fence; what is already accepted needs no more votes.
        if (self.live_view() != Some(view) && !is_out(Rule::AcceptView))
            || slot <= self.accepted
            || slot.0 > self.accepted.0 + 2 * self.bounds.checkpoint_slots
        {
            return Ok(());
        }
        let votes = self.accepts.entry(slot).or_default();
        let equal = match votes.vote(sender, history) {
            Ok(equal) => equal,
            Err(first) if first == history => return Ok(()),
            Err(_) => return Err(Invalid("two different ACCEPTs for one slot of one view")),
        };
        if equal >= self.shape.twin_quorum() || is_out(Rule::AcceptQuorum) {
            self.accepted = slot;
            self.accepted_history = history;
            self.note_history(view, slot, history);
            self.accepts = self.accepts.split_off(&slot.next());
            out.push(Decision::Accepted {
                view,
                slot,
                history,
            });
        }
        Ok(())
    }
}
