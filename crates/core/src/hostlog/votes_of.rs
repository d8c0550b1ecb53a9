//! What a twin has said that this log can still count, as the entries that say it (protocol.md 8, row 2: "its promises are there").

use twinbft_types::{Entry, TwinId};

use super::HostLog;

impl HostLog {
    /// Votes of this twin that are open or that no fence and no install has passed over: what it must not forget once its disk is new.
    #[must_use]
    pub fn promises_of(&self, twin: TwinId) -> Vec<Entry> {
        let mut promises = Vec::new();
        let left = self.leaves[usize::from(twin.0)];
        if left > self.installed {
            promises.push(Entry::Leave {
                view: left,
                certificates: Vec::new(),
            });
        }
        let view = self.installed;
        for (slot, votes) in &self.accepts {
            let own = votes.iter().filter(|(of, _)| *of == twin);
            promises.extend(own.map(|(_, history)| Entry::Accept {
                view,
                slot: *slot,
                history,
            }));
        }
        let first = self.accepted.next();
        let leads = self.shape.leader(view).twin == twin;
        let slots = std::iter::successors(Some(first), |slot| Some(slot.next()));
        for (slot, candidate) in slots.zip(&self.candidates).filter(|_| !leads) {
            if candidate.vote_of(twin) == Some(true) {
                promises.push(Entry::Endorse {
                    view,
                    slot,
                    attempt: candidate.attempt,
                    history: candidate.history,
                    signature: None,
                });
            }
        }
        promises.extend(self.nv_accept_of(twin));
        let own = self
            .jumps
            .iter()
            .filter(|(of, slot, _)| *of == twin && *slot > self.accepted);
        promises.extend(own.map(|(_, slot, history)| Entry::Jump {
            slot: *slot,
            history: *history,
        }));
        promises
    }
}
