//! What a twin says again about views, to others and in its own log (protocol.md 6, "Repetition").

use std::sync::Arc;

use twinbft_types::wire::PeerMessage;
use twinbft_types::{Entry, HostId, Statement, TwinId, View};

use super::super::Replica;
use crate::io::Effects;

/// WISH, VIEW-CHANGE and NEW-VIEW are sent again after this long, then after twice as long, and so on …
const REPEAT_US: u64 = 20_000;
/// … up to this.
const REPEAT_US_MAX: u64 = 500_000;
/// What the log does not show is posted again when the pause is as long, then after twice as long, up to this: a twin whose quota is
/// full would fill its queue otherwise.
const AGAIN_US_MAX: u64 = 60_000_000;

impl Replica {
    pub(in crate::twinbft) fn repeat_soon(&mut self) {
        self.views.repeat = Some((self.now.mono_us + REPEAT_US, 2 * REPEAT_US));
        self.views.again = (0, REPEAT_US_MAX);
    }

    pub(in crate::twinbft) fn views_deadline(&self) -> Option<u64> {
        let repeat = self.views.repeat.map(|(at_us, _)| at_us);
        let contained = self.contained_deadline();
        [repeat, self.views.wish_due_us, contained]
            .into_iter()
            .flatten()
            .min()
    }

    /// 6: WISH, VIEW-CHANGE and NEW-VIEW are sent again until superseded.
    pub(in crate::twinbft) fn views_timer(&mut self, out: &mut Effects) {
        self.contained_timer(out);
        if self
            .views
            .wish_due_us
            .is_some_and(|at| at <= self.now.mono_us)
        {
            self.sign_wish(out);
        }
        let Some((at_us, every_us)) = self.views.repeat else {
            return;
        };
        if at_us > self.now.mono_us {
            return;
        }
        let statements = self.unsuperseded();
        if statements.is_empty() && !self.awaits_own_word() {
            self.views.repeat = None;
            return;
        }
        let (again_at_us, again_us) = self.views.again;
        if every_us >= REPEAT_US_MAX && again_at_us <= self.now.mono_us {
            let next_us = (2 * again_us).min(AGAIN_US_MAX);
            self.views.again = (self.now.mono_us + again_us, next_us);
            self.post_again(out);
        }
        self.views.repeat = Some((
            self.now.mono_us + every_us,
            (2 * every_us).min(REPEAT_US_MAX),
        ));
        self.views.repeated = self.views.repeated.wrapping_add(1);
        self.views.withdrawals_left = self.views.withdrawals_left.saturating_sub(1);
        let twins = self.config.shape.twins();
        let twin = TwinId(self.config.twin().0.wrapping_add(self.views.repeated) % twins);
        for (statement, hosts) in statements {
            if let Some(certificate) = self.book.certificate(&statement) {
                let message = Arc::new(PeerMessage::Certificate(certificate));
                self.send_to_twin(twin, hosts.into_iter(), &message, out);
            }
        }
    }

    /// What others may still lack, and who.
    fn unsuperseded(&self) -> Vec<(Statement, Vec<HostId>)> {
        let all: Vec<HostId> = self.config.shape.all_hosts().collect();
        let mut statements = Vec::new();
        if let Some(wish) = self.log.last_wish()
            && (wish.view > self.log.current_view() || self.views.withdrawals_left > 0)
        {
            let statement = Statement::Wish {
                view: wish.view,
                epoch: self.config.epoch,
                position: wish.position,
            };
            statements.push((statement, all.clone()));
        }
        if let Some(statement) = self.log.view_change() {
            statements.push((statement, all.clone()));
        }
        if let (Some(statement), Some(view)) = (self.log.new_view(), self.log.live_view()) {
            let lacking: Vec<HostId> = all
                .into_iter()
                .filter(|host| *host != self.config.host() && !self.commit.is_in(*host, view))
                .collect();
            if !lacking.is_empty() {
                statements.push((statement, lacking));
            }
        }
        statements
    }

    /// Whether this twin speaks and is listened to.
    fn is_heard(&self) -> bool {
        !self.recovery.is_silent() && !self.log.is_quarantined(self.config.twin())
    }

    /// Whether this twin has posted a SUSPECT that its log does not show.
    fn awaits_suspect(&self) -> bool {
        self.suspicion.wished() != self.log.standing_of(self.config.twin()).1
    }

    /// Whether this twin has posted a LEAVE that its log does not show and that still counts.
    fn awaits_leave(&self) -> bool {
        let (left, _) = self.log.standing_of(self.config.twin());
        self.views.left > left.max(self.log.current_view())
    }

    fn awaits_own_word(&self) -> bool {
        self.is_heard() && (self.awaits_suspect() || self.awaits_leave())
    }

    /// Posts again what a change of the view waits for and the log does not show after so long. The log loses nothing, so a
    /// correct twin comes here only when its host is slow or has no room for it; one that was not itself for a while and is
    /// again (9) would keep its host out of the view for ever with what it believes to have said. All of it counts once
    /// however often it is posted.
    fn post_again(&mut self, out: &mut Effects) {
        if !self.is_heard() {
            return;
        }
        if self.awaits_suspect() {
            let view = self.suspicion.wished();
            out.post(Entry::Suspect { view });
        }
        if self.awaits_leave()
            && let Some(leave) = self.views.leave.clone()
        {
            out.post(leave);
        }
        let Some(view) = self.log.entering() else {
            return;
        };
        // [`Replica::poll_entering`] posts what the log does not show.
        if self.log.nv_accept_of(self.config.twin()).is_none() {
            self.views.accepted = self.views.accepted.min(View(view.0 - 1));
        }
        self.views.endorsed.clear();
        if self.log.nv_proposals().next().is_none() {
            self.views.proposed.clear();
            self.views.relayed.clear();
        }
    }
}
