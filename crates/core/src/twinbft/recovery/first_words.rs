//! What a twin says first when its start is over (protocol.md 8).

use twinbft_types::{Digest, Entry, Incarnation, Slot, Statement, View, canonical};

use super::super::Replica;
use super::super::quarantine::standing;
use super::RESULTS_AGAIN;
use crate::io::{Effect, Effects};
use crate::record::Record;

impl Replica {
    /// The first words: promises that the log lacks, then what was held back and the log lacks.
    pub(super) fn speak_again(&mut self, out: &mut Effects) {
        let floor = self.floor_of_start();
        let recovery = std::mem::take(&mut self.recovery);
        // The retained log may reach further down than what this twin and its siblings stand at (11.9).
        self.trim_slots(floor);
        let (left, wished) = self.log.standing_of(self.config.twin());
        let promised = |view_of: fn(&Entry) -> Option<View>| {
            let views = recovery.promises.iter().filter_map(view_of);
            views.max().unwrap_or_default()
        };
        let accepted = promised(|entry| match entry {
            Entry::NvAccept { view, .. } => Some(*view),
            _ => None,
        });
        let leaves = recovery.promises.iter().filter_map(|entry| match entry {
            Entry::Leave { view, .. } => Some((*view, entry)),
            _ => None,
        });
        let leave = leaves.max_by_key(|(view, _)| *view);
        let promised_left = leave.map_or(View(0), |(view, _)| view);
        let leave = leave.map(|(_, entry)| entry.clone());
        self.views.recall(left.max(promised_left), leave, accepted);
        self.suspicion.recall(wished);
        self.suspect_anew(false);
        self.forwards.forget_posted();
        self.heartbeats.reset(self.now.mono_us);
        let is_posted = |entry: &Entry| recovery.posted.contains(&Digest::of(&canonical(entry)));
        // Appends are FIFO, so the log has every promise before the last one that it shows.
        let is_shown = |entry: &Entry| {
            // A READMIT here says what the host has decided, and is no word of this twin's.
            !matches!(entry, Entry::Readmit { .. }) && is_posted(entry)
        };
        let shown = recovery.promises.iter().rposition(is_shown);
        let first = shown.map_or(0, |last| last + 1);
        if !recovery.remembers || recovery.is_new_epoch {
            // 8: what the host has accepted is in the new write-ahead log; from here on it counts.
            self.persist_state(out);
            let epoch = self.config.epoch;
            out.push(Effect::Persist(Record::Joined { epoch }));
        }
        // Those of an earlier epoch are in what the HELLOs said.
        let first = if recovery.is_new_epoch {
            recovery.promises.len()
        } else {
            first
        };
        let accused = standing(&recovery.promises);
        for promise in &recovery.promises[first..] {
            if matches!(promise, Entry::Quarantine { twin } if !accused.contains(twin)) {
                continue;
            }
            if self.still_counts(promise) {
                out.post(promise.clone());
            }
        }
        // The service may have made a checkpoint durable just before its CHECKPOINT was promised: others wait for it.
        let (slot, digest) = (self.stable, self.checkpoints.stable_digest());
        let checkpoint = Entry::Checkpoint { slot, digest };
        if slot > Slot(0) && slot <= self.log.accepted().0 && !is_posted(&checkpoint) {
            self.say_checkpoint(slot, digest, out);
        }
        for (entry, lazy) in recovery.held {
            if !is_posted(&entry) && self.is_still_wanted(&entry) {
                out.push(Effect::Post { entry, lazy });
            }
        }
        self.sign_recalled_checkpoint(out);
        if let Some(view) = self.log.live_view().filter(|_| !self.log.is_primary()) {
            // 6: an ACK is sent again until superseded; its signatures may lie below the log's head.
            let (slot, history) = self.log.accepted();
            if slot > Slot(0) {
                self.handle_accepted(view, slot, history, out);
            }
        }
    }

    /// 8, row 2: the host's state, and what this twin has promised in the log that it has read, go into its new write-ahead log
    /// before it counts again: when the log is lost, too, they are nowhere else, and a HELLO would say less than the host had.
    fn persist_state(&self, out: &mut Effects) {
        let (slot, history) = self.log.accepted();
        out.push(Effect::Persist(Record::Installed {
            view: self.log.installed(),
            slot,
            history,
        }));
        let hosts = self.config.shape.all_hosts();
        let renewed = hosts.filter(|host| self.log.incarnation(*host) > Incarnation(0));
        let peers = renewed.map(|host| Entry::Peer {
            host,
            incarnation: self.log.incarnation(host),
            nonce: Digest::ZERO,
        });
        let ignored = self.config.shape.all_twins();
        let me = self.config.twin();
        let ignored = ignored.filter(|twin| *twin != me && self.log.is_quarantined(*twin));
        let accusations = ignored.map(|twin| Entry::Quarantine { twin });
        let promises = self.log.promises_of(me);
        for mut promise in promises.into_iter().chain(peers).chain(accusations) {
            if let Entry::Leave { view, certificates } = &mut promise {
                *certificates = self.wishes_for(*view);
            }
            out.push(Effect::Persist(Record::Promise(promise)));
        }
    }

    /// Whether a promise that the log may lack still decides something; those that do not need not be repeated.
    fn still_counts(&mut self, promise: &Entry) -> bool {
        let accepted = self.log.accepted().0;
        match promise {
            Entry::Endorse {
                view,
                slot,
                attempt,
                history,
                ..
            } => {
                let me = self.config.twin();
                let candidate = self.log.candidate(*slot).is_some_and(|candidate| {
                    (candidate.attempt, candidate.history) == (*attempt, *history)
                        && !candidate.has_vote_of(me)
                });
                let counts = candidate && self.log.live_view() == Some(*view);
                if counts {
                    self.voting.recall_own(*slot, *attempt, true);
                }
                counts
            }
            Entry::Accept { view, slot, .. } => {
                self.log.live_view() == Some(*view) && *slot > accepted
            }
            Entry::Checkpoint { slot, .. } => *slot <= accepted,
            Entry::Leave { view, .. } => {
                view.0 > 0 && !self.log.has_left(self.config.twin(), View(view.0 - 1))
            }
            Entry::Jump { slot, .. } => *slot > accepted,
            Entry::Results { .. } => self.is_still_wanted(promise),
            // Whoever asked asks again.
            Entry::Peer { .. } | Entry::Relay { .. } | Entry::ResultAgain { .. } => false,
            // 3, release rule: what this log has decided. It may be of another epoch than the promise.
            Entry::Sign {
                statement:
                    Statement::Order {
                        view,
                        slot,
                        history,
                    },
                ..
            } => {
                *slot > self.commit.committed()
                    && self.log.decided(*slot) == Some((*view, *history))
            }
            Entry::Sign { statement, .. } => self.log.new_view().as_ref() == Some(statement),
            Entry::Quarantine { twin } => self.still_accuses(*twin),
            Entry::Readmit { .. } => false,
            _ => true,
        }
    }

    fn is_still_wanted(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Results { slot, .. } => {
                self.log.result_votes(*slot) > 0 || slot.0 + RESULTS_AGAIN > self.log.accepted().0.0
            }
            Entry::Accept { view, slot, .. } => {
                self.log.live_view() == Some(*view) && *slot > self.log.accepted().0
            }
            // It may have been readmitted in what was read since.
            Entry::Quarantine { twin } => self.is_accused(*twin) && self.still_accuses(*twin),
            _ => true,
        }
    }
}
