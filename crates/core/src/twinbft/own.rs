//! Which of this twin's own posts could decide something when they are read back.
//!
//! A twin acts only on what it has read back from the log, its own entries included. But most of them decide
//! nothing before a sibling's follow, and need no wake-up of their own.

use std::collections::VecDeque;

use twinbft_types::{Entry, Slot};

use super::Replica;
use crate::io::Effect;

/// Posts that are remembered; with more under way, every one counts as decisive.
const POSTS_MAX: usize = 1024;

/// What a post waits for.
#[derive(Clone, Debug)]
enum Waits {
    /// Votes of siblings on the same slot.
    Accept(Slot),
    /// Results of siblings for the same slot.
    Results(Slot),
    /// Nothing that this twin could name: it may decide at once.
    Nothing,
    /// It never decides anything for this twin.
    Forever,
}

/// This twin's posts that it has not read back yet, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Own {
    waits: VecDeque<Waits>,
    /// Older ones that are not remembered: they are read back first.
    dropped: usize,
    /// All posts in this epoch of the log, those of earlier lives that are in the log among them.
    posted: u64,
    /// So many of them must be in the log before this twin decides anything new: it does not know what became of them.
    settled_at: u64,
}

impl Own {
    /// Remembers what a step has posted.
    pub fn note_posts(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Post { entry, lazy: _ } = effect {
                self.posted += 1;
                self.waits.push_back(waits(entry));
            }
        }
        while self.waits.len() > POSTS_MAX {
            self.waits.pop_front();
            self.dropped += 1;
        }
    }

    /// They will not all be read back: the log was trimmed beyond this twin.
    pub fn begin_again(&mut self) {
        *self = Self {
            posted: self.posted,
            settled_at: self.posted,
            ..Self::default()
        };
    }

    /// A start has read the log: so many posts of earlier lives are in it, and no others will come.
    pub fn begin(&mut self, appended: u64) {
        self.posted = appended;
    }

    /// One of them was read back.
    pub fn note_read(&mut self) {
        if self.dropped > 0 {
            self.dropped -= 1;
        } else {
            self.waits.pop_front();
        }
    }
}

fn waits(entry: &Entry) -> Waits {
    match entry {
        Entry::Accept { slot, .. } => Waits::Accept(*slot),
        Entry::Results { slot, .. } => Waits::Results(*slot),
        // A leader's proposal is nothing without a follower's vote, and an own signature counts when it is made;
        // the others are for siblings.
        Entry::Propose { .. }
        | Entry::Sign { .. }
        | Entry::Need { .. }
        | Entry::Body { .. }
        | Entry::Relay { .. }
        | Entry::RelayOrder { .. } => Waits::Forever,
        _ => Waits::Nothing,
    }
}

impl Replica {
    /// Whether the log shows all that this twin had posted when it was last lapped. Until then it neither proposes nor
    /// votes: an append whose outcome is unknown is read back before anything else is posted (2), or else it could take
    /// an attempt number twice (4.3).
    pub(super) fn is_settled(&self) -> bool {
        self.log.entries_of(self.config.twin()) >= self.own.settled_at
    }

    /// Whether an own post that was not read back yet could decide something as the log stands: if not, there is
    /// no hurry to read it before a sibling has posted.
    #[must_use]
    pub fn awaits_own_entries(&self) -> bool {
        let quorum = self.config.shape.twin_quorum();
        self.own.waits.len() >= POSTS_MAX
            || self.own.waits.iter().any(|waits| match waits {
                Waits::Accept(slot) => {
                    *slot > self.surely_accepted() && self.log.accept_votes(*slot) + 1 >= quorum
                }
                Waits::Results(slot) => {
                    self.log.result_votes(*slot) + 1 >= quorum && !self.has_replied(*slot)
                }
                Waits::Nothing => true,
                Waits::Forever => false,
            })
    }
}

#[cfg(test)]
mod tests {
    use twinbft_types::{Digest, View};

    use super::*;

    /// With more posts under way than are remembered, those that are read back are still told apart.
    #[test]
    fn more_posts_than_are_remembered_keep_their_order() {
        let mut own = Own::default();
        let posts: Vec<Effect> = (0..POSTS_MAX as u64 + 10)
            .map(|slot| Effect::Post {
                entry: Entry::Accept {
                    view: View(0),
                    slot: Slot(slot),
                    history: Digest::ZERO,
                },
                lazy: false,
            })
            .collect();
        own.note_posts(&posts);
        (0..11).for_each(|_| own.note_read());
        assert!(matches!(own.waits.front(), Some(Waits::Accept(Slot(11)))));
        (0..POSTS_MAX).for_each(|_| own.note_read());
        assert!(own.waits.is_empty());
    }
}
