//! The policy `quarantine`: this twin's votes about its siblings (protocol.md 9). What the host decides of them is in
//! [`crate::hostlog`].

use std::collections::{BTreeMap, BTreeSet};

use twinbft_types::{Entry, Slot, TwinId};

use super::Replica;
use crate::evidence::{Event, EventKind};
use crate::io::{Effect, Effects};
use crate::record::Record;

/// This twin's own side of quarantines.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    /// Siblings that it has voted to ignore, whether or not that was read back.
    accused: BTreeSet<TwinId>,
    /// Up to these slots nothing is held against a twin that was readmitted: it was judged for them.
    forgiven: BTreeMap<TwinId, Slot>,
}

impl Replica {
    /// `Q` hosts show that a sibling was wrong about `slot`.
    pub(super) fn accuse(&mut self, twin: TwinId, slot: Slot, out: &mut Effects) {
        let is_forgiven = (self.quarantine.forgiven.get(&twin)).is_some_and(|upto| slot <= *upto);
        if !self.config.quarantines || self.config.shape.unanimous() || is_forgiven {
            return;
        }
        self.vote_to_ignore(twin, out);
    }

    fn vote_to_ignore(&mut self, twin: TwinId, out: &mut Effects) {
        let me = self.config.twin();
        if twin == me || self.log.is_quarantined(twin) || self.log.has_accused(me, twin) {
            return;
        }
        if self.quarantine.accused.insert(twin) {
            let entry = Entry::Quarantine { twin };
            // 3, durability rule: it survives a restart.
            out.push(Effect::Persist(Record::Promise(entry.clone())));
            out.post(entry);
        }
    }

    /// An operator wants a sibling to be listened to again.
    pub(super) fn handle_readmit(&mut self, twin: TwinId, out: &mut Effects) {
        if twin != self.config.twin() && self.log.is_quarantined(twin) {
            out.post(Entry::Readmit { twin });
        }
    }

    pub(super) fn handle_quarantined(&mut self, twin: TwinId, out: &mut Effects) {
        self.quarantine.accused.remove(&twin);
        self.report_standing(twin, EventKind::Quarantined, out);
    }

    pub(super) fn handle_readmitted(&mut self, twin: TwinId, out: &mut Effects) {
        self.quarantine.accused.remove(&twin);
        let upto = self.log.accepted().0;
        self.quarantine.forgiven.insert(twin, upto);
        // So that a restart does not vote against it once more.
        out.push(Effect::Persist(Record::Promise(Entry::Readmit { twin })));
        self.report_standing(twin, EventKind::Readmitted, out);
        if twin == self.config.twin() {
            // What it has posted meanwhile was not heard.
            self.adopt_log(out);
            self.repeat_soon();
        }
    }

    fn report_standing(&self, twin: TwinId, kind: EventKind, out: &mut Effects) {
        out.push(Effect::Evidence(Event {
            host: self.config.host(),
            twin: Some(twin),
            slot: None,
            kind,
        }));
    }

    /// In a new epoch: what this twin has voted for in an earlier one stands until `q` twins readmit (9).
    pub(super) fn repeat_accusations(&mut self, out: &mut Effects) {
        let me = self.config.twin();
        for twin in standing(self.recovery.promises()) {
            let is_known = self.log.is_quarantined(twin) || self.log.has_accused(me, twin);
            if !is_known && self.quarantine.accused.insert(twin) {
                out.post(Entry::Quarantine { twin });
            }
        }
    }

    /// Whether this twin has voted to ignore a sibling and the host has not decided since.
    pub(super) fn is_accused(&self, twin: TwinId) -> bool {
        self.quarantine.accused.contains(&twin)
    }

    /// Whether a QUARANTINE that the log may lack is still meant.
    pub(super) fn still_accuses(&self, twin: TwinId) -> bool {
        let me = self.config.twin();
        !self.log.is_quarantined(twin) && !self.log.has_accused(me, twin)
    }
}

/// The twins about which a write-ahead log says QUARANTINE last, and not READMIT.
pub(super) fn standing(promises: &[Entry]) -> BTreeSet<TwinId> {
    let mut accused = BTreeSet::new();
    for promise in promises {
        match promise {
            Entry::Quarantine { twin } => {
                accused.insert(*twin);
            }
            Entry::Readmit { twin } => {
                accused.remove(twin);
            }
            _ => {}
        }
    }
    accused
}
