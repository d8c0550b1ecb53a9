//! To hold a log as a snapshot (protocol.md 6): "a snapshot above n whose chain is shown to contain `h_n`".
//!
//! A host that missed a view change may find that the log with which the view began is let go everywhere, and fetch a
//! checkpoint above it. That the checkpoint's chain contains that log is not to be seen from its digest; what shows it is
//! a log (k, h_k) of that very view, `k` at or above the checkpoint: ORDER and HEARTBEAT are what the view's primary has
//! decided in it, so that log extends the one with which the view began; and it extends the checkpoint as soon as this
//! twin holds the slots between them, which `h_k` verifies. An ACK shows nothing here: a host that jumped to what a later
//! view has committed acknowledges that in its own view.

use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{Digest, Slot, Statement, View};

use super::Replica;
use crate::io::Effects;

/// A log of the view that is being entered.
#[derive(Clone, Debug, Default)]
pub struct Contained {
    log: Option<(View, Slot, Digest)>,
    /// When to ask for one again.
    ask_at_us: Option<u64>,
    /// How often it was asked.
    asked: u32,
}

impl Replica {
    /// The log of `view` that this twin goes by, as long as it is of use.
    fn log_of(&self, view: View) -> Option<(Slot, Digest)> {
        let (of, slot, history) = self.views.contained.log?;
        let is_useful = of == view && self.stable <= slot && slot <= self.high_mark();
        is_useful.then_some((slot, history))
    }

    /// Whether this twin's checkpoint lies above the log with which the view that it enters began, and nothing shows yet
    /// that it contains it.
    pub(super) fn wants_log_of(&self, view: View) -> bool {
        self.log.entering() == Some(view)
            && self.views.accepted() < view
            && self.log_of(view).is_none()
            && self
                .new_view_in_hand()
                .is_some_and(|(of, slot, ..)| of == view && slot < self.stable)
    }

    /// A statement of the primary of its view that was verified.
    pub(super) fn note_log_of(&mut self, statement: &Statement) {
        let (Statement::Order {
            view,
            slot,
            history,
        }
        | Statement::Heartbeat {
            view,
            slot,
            history,
            ..
        }) = *statement
        else {
            return;
        };
        if slot >= self.stable && self.wants_log_of(view) {
            self.views.contained.log = Some((view, slot, history));
        }
    }

    /// Whether this twin holds the log that ends at `begun`, below its checkpoint, with which `view` began.
    pub(super) fn hold_as_snapshot(&mut self, view: View, begun: Slot, out: &mut Effects) -> bool {
        assert!(
            begun < self.stable,
            "a log above the checkpoint has its slots"
        );
        let Some((slot, history)) = self.log_of(view) else {
            let contained = &mut self.views.contained;
            contained.ask_at_us.get_or_insert(self.now.mono_us);
            return false;
        };
        // `begun < stable <= slot`: both logs of `view`, so the one that is held contains the other.
        self.hold(slot, history, out)
    }

    pub(super) fn contained_deadline(&self) -> Option<u64> {
        self.views.contained.ask_at_us
    }

    /// The primary sends nothing to a twin whose counterpart is mute: the answer to a fetch carries ORDERs.
    pub(super) fn contained_timer(&mut self, out: &mut Effects) {
        let at_us = self.views.contained.ask_at_us;
        if at_us.is_none_or(|at_us| at_us > self.now.mono_us) {
            return;
        }
        let wants = self
            .log
            .entering()
            .is_some_and(|view| self.wants_log_of(view));
        let again_us = self.now.mono_us + self.config.tuning.fetch_after_us;
        self.views.contained.ask_at_us = wants.then_some(again_us);
        if wants {
            let next = self.stable.next();
            let question = Arc::new(PeerMessage::FetchSlots {
                first: next,
                last: next,
            });
            self.views.contained.asked = self.views.contained.asked.wrapping_add(1);
            self.ask_around(self.views.contained.asked, &question, out);
        }
    }
}
