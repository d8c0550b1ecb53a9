//! A sibling that stopped posting (protocol.md 9, `mute`).
//!
//! Silence alone says nothing: an idle host posts little. But a twin whose own posts land one after the other while its
//! sibling has none in between sees what an operator wants to know. It is no accusation: a twin that died is mute, too.

use twinbft_types::TwinId;

use super::Replica;
use crate::evidence::{Event, EventKind};
use crate::io::{Effect, Effects};

/// A sibling is mute after this many times `suspect_after`: later than whatever its silence makes others do.
const MUTE_AFTER: u64 = 4;
/// And after so many own entries: at the end of its traffic a host may owe nobody an entry.
const OWN_ENTRIES_MIN: u32 = 4;

/// What came since the last entry of each sibling.
#[derive(Clone, Debug, Default)]
pub struct Mutes {
    /// By twin. Invariant: as long as the host has twins, or empty.
    siblings: Vec<Silence>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Silence {
    /// When the first own entry was read behind the sibling's last one.
    since_us: Option<u64>,
    own_entries: u32,
    is_reported: bool,
}

impl Mutes {
    /// Some entries were passed over: whoever was not heard may have spoken there.
    pub fn begin_again(&mut self) {
        for silence in &mut self.siblings {
            silence.since_us = None;
            silence.own_entries = 0;
        }
    }
}

impl Replica {
    /// An entry of `sender` was read.
    pub(super) fn note_heard(&mut self, sender: TwinId, out: &mut Effects) {
        if self.recovery.is_replaying() {
            return;
        }
        let twins = usize::from(self.config.shape.twins());
        self.mutes.siblings.resize(twins, Silence::default());
        let me = self.config.twin();
        if sender != me {
            self.mutes.siblings[usize::from(sender.0)] = Silence::default();
            return;
        }
        let now = self.now.mono_us;
        let patience = MUTE_AFTER * self.config.tuning.suspect_after_us;
        for twin in self.config.shape.all_twins().filter(|twin| *twin != me) {
            let silence = &mut self.mutes.siblings[usize::from(twin.0)];
            let since = *silence.since_us.get_or_insert(now);
            silence.own_entries = silence.own_entries.saturating_add(1);
            let is_mute = now - since >= patience && silence.own_entries >= OWN_ENTRIES_MIN;
            if !is_mute || silence.is_reported || self.log.is_quarantined(twin) {
                continue;
            }
            silence.is_reported = true;
            out.push(Effect::Evidence(Event {
                host: self.config.host(),
                twin: Some(twin),
                slot: None,
                kind: EventKind::Mute,
            }));
        }
    }
}
