//! Fences: where a host leaves its views (protocol.md 6).

use twinbft_types::{TwinId, View};

use super::{Decision, HostLog};
use crate::mutants::{Rule, out as is_out};

impl HostLog {
    /// 6: a LEAVE counts by its sender and number alone.
    pub(super) fn apply_leave(&mut self, sender: TwinId, view: View, out: &mut Vec<Decision>) {
        let own = &mut self.leaves[usize::from(sender.0)];
        *own = view.max(*own);
        let mut leaves = self.leaves.clone();
        leaves.sort_unstable_by(|a, b| b.cmp(a));
        let quorum = if is_out(Rule::FenceQuorum) {
            1
        } else {
            self.shape.twin_quorum()
        };
        let fence = leaves[quorum - 1];
        if fence > self.fenced_to {
            self.fenced_to = fence;
            // A host that recovered has installed its view without a fence (8).
            if fence <= self.installed {
                return;
            }
            self.note_fence(fence);
            // Nothing after the fence counts for the fenced views.
            if !is_out(Rule::OrderFence) {
                self.candidates.clear();
            }
            self.attempts.clear();
            self.accepts.clear();
            out.push(Decision::Fenced { view: fence });
        }
    }
}
