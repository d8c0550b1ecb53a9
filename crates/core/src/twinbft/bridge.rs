//! From one stable checkpoint to the next by the batches between them, without their states (protocol.md 5: "and then the
//! slots after it; a certified committed `h_n` and the chain below it verify the slots, whoever sent them").
//!
//! What `Q` hosts certify as CHECKPOINT(n, digest) is committed, and the digest covers `h_n`. So a twin that is many
//! checkpoints behind executes up to the next one, finds that its own digest is the agreed one, which moves its marks,
//! and asks for the one after that. Others keep what this takes ([`super::past`]); where they do not, or where a
//! bridge is too long for the marks, a state is fetched ([`super::transfer`]).

use twinbft_types::wire::CheckpointOffer;
use twinbft_types::{Digest, Slot};

use super::Replica;
use crate::io::Effects;

/// Who has no batches of a checkpoint that it offers says nothing: it is given up after so long.
const PATIENCE_US: u64 = 2_000_000;
/// Who has come a step further waits so long for the next one before it fetches a state: whoever has the batches may have much
/// to do, and so may the service with this twin's own checkpoint.
const NEXT_STEP_US: u64 = 1_000_000;
/// And states are fetched instead for so long.
const STATES_ONLY_US: u64 = 10_000_000;

/// The way to the next checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Bridge {
    /// Where it ends, and since when its batches are waited for.
    target: Option<(Slot, Digest, u64)>,
    /// The end of the last one: the next is asked for at once.
    crossed: Option<Slot>,
    /// When the last step was made: a bridge crossed, an own checkpoint stable, a state taken over.
    stepped_us: Option<u64>,
    /// The stable checkpoint that was seen last.
    stood: Slot,
    /// No bridges before this time.
    not_before_us: u64,
    /// Up to this slot execution goes by what others have committed, not by what this host has accepted.
    end: Slot,
    /// Bridges that this twin has crossed since it started.
    count: u64,
}

impl Bridge {
    /// Whether one is under way.
    pub const fn is_under_way(&self) -> bool {
        self.target.is_some()
    }

    /// Whether this slot is executed for this twin's own sake: its host may never have accepted it, or another log in
    /// its place, so its RESULT would be no statement of the host (4.8).
    pub fn covers(&self, slot: Slot) -> bool {
        slot <= self.end
    }

    /// Where the last one has ended, whatever of it is executed.
    pub const fn end(&self) -> Slot {
        self.end
    }

    /// Whether the last one ended at this slot.
    pub fn ended_at(&self, slot: Slot) -> bool {
        self.crossed == Some(slot)
    }

    /// Bridges that this twin has crossed since it started.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// No state is fetched before.
    pub fn state_not_before_us(&self) -> u64 {
        self.stepped_us.map_or(0, |at| at + NEXT_STEP_US)
    }

    /// When the one under way is given up.
    pub fn deadline(&self) -> Option<u64> {
        Some(self.target?.2 + PATIENCE_US)
    }
}

impl Replica {
    /// `Q` hosts agree on this checkpoint above what this twin has executed: it goes there by the batches if it can.
    pub(super) fn begin_bridge(&mut self, offer: &CheckpointOffer) -> bool {
        let now_us = self.now.mono_us;
        if offer.slot > self.high_mark() || now_us < self.transfer.bridge.not_before_us {
            return false;
        }
        if self.transfer.bridge.target.is_none() {
            let target = (offer.slot, offer.parts.history);
            self.transfer.bridge.target = Some((target.0, target.1, now_us));
            self.want(target.0, target.1);
        }
        true
    }

    /// Crosses as soon as the batches are here. Answers whether one has just been left behind.
    pub(super) fn poll_bridge(&mut self, out: &mut Effects) -> bool {
        if self.transfer.bridge.stood != self.stable {
            self.transfer.bridge.stood = self.stable;
            self.transfer.bridge.stepped_us = Some(self.now.mono_us);
        }
        let Some((slot, history, since_us)) = self.transfer.bridge.target else {
            return false;
        };
        if self.execution.begun() >= slot {
            let bridge = &mut self.transfer.bridge;
            (bridge.target, bridge.crossed) = (None, Some(slot));
            bridge.stepped_us = Some(self.now.mono_us);
            bridge.count += 1;
            return true;
        }
        if self.commit.committed() >= slot && self.owns(slot, history) {
            // The service has not come so far yet, and nobody's patience is at an end because of that.
            self.transfer.bridge.target = Some((slot, history, self.now.mono_us));
            return false;
        }
        if self.owns(slot, history) {
            self.cross(slot, out);
        } else if let Some(slots) = self.chain_copy((slot, history)) {
            self.overlay(slots, out);
            self.rejoin_chain();
            self.cross(slot, out);
        } else if since_us + PATIENCE_US <= self.now.mono_us {
            let bridge = &mut self.transfer.bridge;
            bridge.target = None;
            bridge.not_before_us = self.now.mono_us + STATES_ONLY_US;
        } else {
            // Entering a view forgets what was wanted before.
            self.want(slot, history);
        }
        false
    }

    fn cross(&mut self, slot: Slot, out: &mut Effects) {
        self.persist_up_to(slot, out);
        self.commit.stand_at(slot);
        self.transfer.bridge.end = slot;
        self.rebuild_in_log(slot.max(self.log.accepted().0));
        self.raise_tip();
    }
}
