//! A new epoch of the log begins with what the twins remember of the one before (protocol.md 8, HELLO).

use twinbft_types::{HelloState, Incarnation, TwinId, View};

use super::amnesia::Opening;
use super::{Bounds, Decision, HostLog, Invalid};

/// No host gets so far by leaving one view after the other. What goes on from a higher one would come to the end of its numbers.
const VIEW_MAX: View = View(u64::MAX / 2);

impl HostLog {
    /// The state before the first entry of a later epoch: nothing counts until the twins have said what they remember.
    #[must_use]
    pub fn reopened(
        shape: twinbft_types::Shape,
        host: twinbft_types::HostId,
        bounds: Bounds,
    ) -> Self {
        Self {
            opening: Some(Opening::default()),
            ..Self::genesis(shape, host, bounds)
        }
    }

    /// Whether the host waits for its twins' HELLOs.
    #[must_use]
    pub const fn is_opening(&self) -> bool {
        self.opening.is_some()
    }

    /// Each twin's latest HELLO, while the host waits for them.
    pub fn hellos(&self) -> impl Iterator<Item = (TwinId, HelloState)> + '_ {
        let opening = self.opening.iter();
        opening.flat_map(|opening| opening.hellos.iter().cloned())
    }

    /// 8: claims are compared part by part. The host goes on when the HELLOs of all twins that are not quarantined
    /// stand and `q` equal the highest claim, its log fenced to the highest LEAVE.
    pub(super) fn apply_hello(
        &mut self,
        sender: TwinId,
        state: &HelloState,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        if state.incarnations.len() != self.incarnations.len() {
            return Err(Invalid("a HELLO for a cluster of another size"));
        }
        if state.leave.max(state.last_normal) > VIEW_MAX {
            return Err(Invalid(
                "a HELLO that names a view which no host can have reached",
            ));
        }
        let Some(opening) = &mut self.opening else {
            return Ok(());
        };
        // Who has forgotten does not remember later.
        if opening.has_forgotten(sender) {
            return Ok(());
        }
        let hellos = &mut opening.hellos;
        hellos.retain(|(twin, _)| *twin != sender);
        hellos.push((sender, state.clone()));
        self.poll_opening(out);
        Ok(())
    }

    /// Opens the log when what was said is enough.
    pub(super) fn poll_opening(&mut self, out: &mut Vec<Decision>) {
        let (all, quorum) = (self.listened_to().count(), self.shape.twin_quorum());
        let Some(opening) = &self.opening else {
            return;
        };
        let hellos: Vec<(TwinId, HelloState)> = (opening.hellos.iter())
            .filter(|(twin, _)| !self.is_quarantined(*twin))
            .cloned()
            .collect();
        let claim = |hello: &HelloState| (hello.last_normal, hello.accepted);
        let highest = hellos.iter().max_by_key(|(_, hello)| claim(hello));
        let Some((_, highest)) = highest.cloned() else {
            return;
        };
        let equal = hellos.iter().filter(|(_, hello)| {
            claim(hello) == claim(&highest) && hello.history == highest.history
        });
        let leave = hellos.iter().map(|(_, hello)| hello.leave).max();
        let leave = leave.unwrap_or_default();
        let left = hellos.iter().filter(|(_, hello)| hello.leave == leave);
        let incarnations: Vec<Incarnation> = (0..self.incarnations.len())
            .filter_map(|host| {
                hellos
                    .iter()
                    .map(|(_, hello)| hello.incarnations[host])
                    .max()
            })
            .collect();
        let know = |host: usize| {
            let know = hellos.iter();
            know.filter(|(_, hello)| hello.incarnations[host] == incarnations[host])
                .count()
        };
        let agreed = (0..incarnations.len()).all(|host| know(host) >= quorum);
        if hellos.len() < all || equal.count() < quorum || left.count() < quorum || !agreed {
            return;
        }
        for (twin, hello) in &hellos {
            self.leaves[usize::from(twin.0)] = hello.leave;
        }
        self.opening = None;
        self.incarnations = incarnations;
        self.installed = highest.last_normal;
        self.last_normal = highest.last_normal;
        self.fenced_to = leave;
        self.accepted = highest.accepted;
        self.accepted_history = highest.history;
        self.silent_to = Some(leave.max(highest.last_normal));
        out.push(Decision::Opened);
    }

    /// Whether this host is the primary of its view and may decide nothing in it (8): it wishes above it.
    #[must_use]
    pub fn is_silent_primary(&self) -> bool {
        let is_installed = self.fenced_to <= self.installed && !self.is_opening();
        is_installed && self.is_silent_in(self.installed)
    }

    /// 8: up to the highest view that any HELLO named, the host decides nothing as its primary: what it had decided there
    /// may be forgotten.
    pub(super) fn is_silent_in(&self, view: View) -> bool {
        self.silent_to.is_some_and(|last| view <= last) && self.shape.primary(view) == self.host
    }
}

#[cfg(test)]
mod tests {
    use twinbft_types::{Attempt, Digest, Entry, HostId, Position, Shape, Slot};

    use super::*;
    use crate::config::Tuning;

    fn hello(leave: u64, last_normal: u64, accepted: u64) -> Entry {
        Entry::Hello {
            state: HelloState {
                leave: View(leave),
                last_normal: View(last_normal),
                accepted: Slot(accepted),
                history: Digest::of(&accepted.to_le_bytes()),
                incarnations: vec![Incarnation(0); 3],
            },
        }
    }

    fn log(host: u8) -> HostLog {
        let shape = Shape::new(3, 2).expect("a shape");
        HostLog::reopened(shape, HostId(host), Tuning::default().host_bounds())
    }

    fn apply(log: &mut HostLog, twin: u8, entry: &Entry) -> Vec<Decision> {
        let mut decisions = Vec::new();
        log.apply(TwinId(twin), entry, &mut decisions)
            .expect("a correct twin posts it");
        decisions
    }

    #[test]
    fn a_host_goes_on_once_all_have_said_the_highest_claim() {
        let mut log = log(1);
        assert_eq!(apply(&mut log, 0, &hello(0, 0, 9)), []);
        // One that is behind says so, and then that it has caught up.
        assert_eq!(apply(&mut log, 1, &hello(0, 0, 8)), []);
        assert!(log.is_opening() && log.live_view().is_none());
        assert_eq!(apply(&mut log, 1, &hello(0, 0, 9)), [Decision::Opened]);
        assert_eq!(log.accepted().0, Slot(9));
        assert_eq!(log.live_view(), Some(View(0)));
        assert_eq!(log.end(), Position(3));
    }

    #[test]
    fn nothing_counts_before_and_a_leave_is_kept() {
        let mut log = log(1);
        let accept = Entry::Accept {
            view: View(0),
            slot: Slot(1),
            history: Digest::ZERO,
        };
        assert_eq!(apply(&mut log, 0, &accept), []);
        assert_eq!(apply(&mut log, 0, &hello(2, 1, 9)), []);
        assert_eq!(apply(&mut log, 1, &hello(2, 1, 9)), [Decision::Opened]);
        assert_eq!(log.accept_votes(Slot(1)), 0);
        assert_eq!(log.entering(), Some(View(2)));
    }

    /// NV-PROPOSE and NV-ENDORSE are in no write-ahead log: this is why they need not be (docs/adr/0023).
    #[test]
    fn a_primary_that_may_have_forgotten_decides_no_new_view_there() {
        let mut log = log(0);
        apply(&mut log, 0, &hello(3, 0, 9));
        apply(&mut log, 1, &hello(3, 0, 9));
        assert_eq!(log.entering(), Some(View(3)));
        let propose = Entry::NvPropose {
            view: View(3),
            hosts: vec![(HostId(0), Digest::ZERO), (HostId(1), Digest::ZERO)],
            slot: Slot(7),
            history: Digest::ZERO,
        };
        assert_eq!(apply(&mut log, 1, &propose), []);
        let endorse = Entry::NvEndorse {
            view: View(3),
            proposal: Position(2),
        };
        assert_eq!(apply(&mut log, 0, &endorse), []);
        assert_eq!(log.installed(), View(0));
        // Nor does it say again what it had when it left: others may know another VIEW-CHANGE of it.
        assert_eq!(log.view_change(), None);
    }

    #[test]
    fn a_primary_that_may_have_forgotten_orders_nothing_in_that_view() {
        let mut log = log(0);
        apply(&mut log, 0, &hello(0, 0, 9));
        apply(&mut log, 1, &hello(0, 0, 9));
        assert!(!log.is_opening() && !log.is_primary());
        let propose = Entry::Propose {
            view: View(0),
            slot: Slot(10),
            attempt: Attempt(0),
            previous: log.accepted().1,
            timestamp_us: 1,
            requests: vec![twinbft_types::RequestRef {
                client: twinbft_types::ClientId { key: 0, session: 1 },
                seq: twinbft_types::Seq(1),
                digest: Digest::ZERO,
            }],
        };
        assert_eq!(apply(&mut log, 0, &propose), []);
    }
}
