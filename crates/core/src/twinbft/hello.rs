//! The host's log was lost: each twin says what it remembers, and the host goes on from that (protocol.md 8, HELLO).

use twinbft_types::{Digest, Entry, HelloState, HostId, Incarnation, Slot, Statement, View};

use super::Replica;
use crate::io::Effects;

impl Replica {
    /// What this twin's write-ahead log and checkpoint say of the epoch before: nothing lower than what the host had.
    fn claim(&self) -> HelloState {
        let base = self.stable;
        let mut best: (View, Slot, Digest) = (View(0), Slot(0), Digest::ZERO);
        let mut leave = View(0);
        let mut jump = None;
        for (view, slot, history) in self.recovery.installs() {
            if (view, slot) >= (best.0, best.1) {
                best = (view, slot, history);
            }
        }
        for promise in self.recovery.promises() {
            let (view, slot, history) = match promise {
                Entry::Accept {
                    view,
                    slot,
                    history,
                }
                | Entry::NvAccept {
                    view,
                    slot,
                    history,
                }
                | Entry::Endorse {
                    view,
                    slot,
                    history,
                    ..
                }
                | Entry::Sign {
                    statement:
                        Statement::Order {
                            view,
                            slot,
                            history,
                        },
                    ..
                } => (*view, *slot, *history),
                Entry::Leave { view, .. } => {
                    leave = leave.max(*view);
                    continue;
                }
                Entry::Jump { slot, history } => {
                    jump = Some((*slot, *history));
                    continue;
                }
                _ => continue,
            };
            // A later attempt takes the place of an earlier one.
            if (view, slot) >= (best.0, best.1) {
                best = (view, slot, history);
            }
        }
        let checkpoint = self.history_of(base).map(|history| (base, history));
        for (slot, history) in jump.into_iter().chain(checkpoint) {
            if slot > best.1 {
                best = (best.0, slot, history);
            }
        }
        HelloState {
            leave,
            last_normal: best.0,
            accepted: best.1,
            history: best.2,
            incarnations: self.claimed_incarnations(),
        }
    }

    /// What an operator has ordered a twin to say that remembers nothing: the highest claim of its siblings.
    fn claim_of_siblings(&self) -> Option<HelloState> {
        let me = self.config.twin();
        let siblings = self.log.hellos().filter(|(twin, _)| *twin != me);
        let claims = siblings.map(|(_, hello)| hello);
        claims.max_by_key(|hello| (hello.last_normal, hello.accepted))
    }

    fn claimed_incarnations(&self) -> Vec<Incarnation> {
        let hosts = self.config.shape.all_hosts();
        let promised = |of: HostId| {
            let promises = self.recovery.promises().iter();
            let named = promises.filter_map(|promise| match promise {
                Entry::Peer {
                    host, incarnation, ..
                } if *host == of => Some(*incarnation),
                _ => None,
            });
            named.max().unwrap_or_default()
        };
        hosts
            .map(|host| promised(host).max(self.shown_incarnation(host)))
            .collect()
    }

    /// While the host waits for HELLOs: this twin's own, and again when a sibling has left further.
    pub(super) fn poll_hello(&mut self, out: &mut Effects) {
        if self.recovery.remembers() {
            self.repeat_accusations(out);
        }
        let me = self.config.twin();
        let mut claim = if self.recovery.remembers() {
            self.claim()
        } else if let Some(claim) = self.claim_of_siblings() {
            claim
        } else {
            return;
        };
        let said = self.log.hellos().find(|(twin, _)| *twin == me);
        let said = self
            .recovery
            .hello()
            .cloned()
            .or(said.map(|(_, hello)| hello));
        let left = self.log.hellos().map(|(_, hello)| hello.leave).max();
        claim.leave = claim.leave.max(left.unwrap_or_default());
        self.show_incarnations(out);
        if said.as_ref() != Some(&claim) {
            self.recovery.note_hello(claim.clone());
            for host in self.config.shape.all_hosts() {
                self.persist_question(host, out);
            }
            out.post(Entry::Hello { state: claim });
        }
        self.poll_doubt(out);
    }

    /// The host goes on in the new epoch. What a HELLO raised is committed only by what comes now.
    pub(super) fn handle_opened(&mut self, out: &mut Effects) {
        self.adopt_log(out);
        let (slot, view) = (self.log.accepted().0, self.log.current_view());
        self.commit.reopen(view, slot);
    }
}
