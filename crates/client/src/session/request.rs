//! One request of the window.

use bytes::Bytes;
use twinbft_types::wire::pb::RefusalReason;
use twinbft_types::{ClientId, Digest, HostId, ReplicaId, Request, Seq, Shape, Slot, TwinId};

use super::event::{Event, FailReason};
use super::tally::{Accepted, ReplyTally};

/// How a place of the window stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PendingState {
    /// Never used, or its request was given up.
    Free,
    /// No answer yet.
    Waiting,
    /// Answered; kept until the number `W` higher takes the place, to judge late replies by.
    Answered { slot: Slot, result: Digest },
}

/// One place of the window, used again and again.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) state: PendingState,
    pub(super) request: Request,
    pub(super) digest: Digest,
    /// The host whose twins got it first.
    pub(super) first_host: HostId,
    /// Whether its first send went to all hosts.
    pub(super) is_announcement: bool,
    /// How often it was sent; 1 is the first send.
    pub(super) rounds: u32,
    pub(super) retransmit_at_us: u64,
    interval_us: u64,
    /// Whether a sending of it stands in the outbox, so that there is never more than one.
    pub(super) queued: bool,
    /// Of a waiting request, always.
    pub(super) tally: Option<ReplyTally>,
    /// The latest refusal of each replica; empty while there is none.
    refusals: Vec<Option<RefusalReason>>,
}

impl Pending {
    pub(super) fn free() -> Self {
        Self {
            state: PendingState::Free,
            request: Request {
                client: ClientId { key: 0, session: 0 },
                seq: Seq(0),
                operation: Bytes::new(),
            },
            digest: Digest::ZERO,
            first_host: HostId(0),
            is_announcement: false,
            rounds: 0,
            retransmit_at_us: 0,
            interval_us: 0,
            queued: false,
            tally: None,
            refusals: Vec::new(),
        }
    }

    pub(super) const fn seq(&self) -> Seq {
        self.request.seq
    }

    pub(super) const fn is_waiting(&self) -> bool {
        matches!(self.state, PendingState::Waiting)
    }

    pub(super) fn begin(
        &mut self,
        request: Request,
        tally: ReplyTally,
        primary: HostId,
        retransmit_at_us: u64,
        interval_us: u64,
    ) {
        assert!(!self.is_waiting(), "the window keeps numbers apart");
        self.state = PendingState::Waiting;
        self.digest = request.digest();
        self.request = request;
        self.first_host = primary;
        self.is_announcement = false;
        self.rounds = 1;
        self.retransmit_at_us = retransmit_at_us;
        self.interval_us = interval_us;
        self.queued = true;
        self.tally = Some(tally);
        self.refusals.clear();
    }

    /// The next retransmission is due later, up to a bound.
    pub(super) fn back_off(&mut self, now_us: u64, interval_us_max: u64) {
        self.interval_us = self
            .interval_us
            .saturating_mul(2)
            .min(interval_us_max)
            .max(1);
        self.retransmit_at_us = now_us.saturating_add(self.interval_us);
        self.rounds = self.rounds.saturating_add(1);
    }

    pub(super) fn complete(&mut self, shape: Shape, accepted: Accepted) -> Event {
        self.release(PendingState::Answered {
            slot: accepted.word.slot,
            result: accepted.word.result,
        });
        Event::Completed {
            seq: self.seq(),
            slot: accepted.word.slot,
            steps: (self.rounds == 1 && !self.is_announcement)
                .then(|| steps(shape, self.first_host, &accepted)),
            hosts: accepted.hosts,
            result: accepted.result,
        }
    }

    pub(super) fn fail(&mut self, reason: FailReason) -> Event {
        self.release(PendingState::Free);
        Event::Failed {
            seq: self.seq(),
            reason,
        }
    }

    /// Lets go of everything that takes memory, but for the tally, which the session takes back.
    fn release(&mut self, state: PendingState) {
        self.state = state;
        self.request.operation = Bytes::new();
        self.refusals = Vec::new();
    }

    pub(super) fn note_refusal(&mut self, shape: Shape, from: ReplicaId, reason: RefusalReason) {
        self.refusals.resize(
            usize::from(shape.hosts()) * usize::from(shape.twins()),
            None,
        );
        self.refusals[index(shape, from)] = Some(reason);
    }

    /// Whether `q` twins of the host refuse for this reason.
    pub(super) fn refused_by(&self, shape: Shape, host: HostId, reason: RefusalReason) -> bool {
        let twins = shape
            .all_twins()
            .filter(|twin| {
                let replica = ReplicaId { host, twin: *twin };
                self.refusals.get(index(shape, replica)) == Some(&Some(reason))
            })
            .count();
        twins >= shape.twin_quorum()
    }

    pub(super) fn hosts_refusing(&self, shape: Shape, reason: RefusalReason) -> usize {
        shape
            .all_hosts()
            .filter(|host| self.refused_by(shape, *host, reason))
            .count()
    }

    pub(super) fn refusals(&self, shape: Shape) -> Vec<(ReplicaId, RefusalReason)> {
        shape
            .all_replicas()
            .zip(&self.refusals)
            .filter_map(|(replica, reason)| Some((replica, (*reason)?)))
            .collect()
    }
}

fn index(shape: Shape, replica: ReplicaId) -> usize {
    let ReplicaId {
        host: HostId(host),
        twin: TwinId(twin),
    } = replica;
    usize::from(host) * usize::from(shape.twins()) + usize::from(twin)
}

/// Whether a replica that says this will say it again, however often it is asked.
pub(super) const fn is_final(reason: RefusalReason) -> bool {
    match reason {
        RefusalReason::UnknownClient
        | RefusalReason::BadMac
        | RefusalReason::TooLarge
        | RefusalReason::SessionExpired
        | RefusalReason::ResultDiscarded => true,
        RefusalReason::Unspecified
        | RefusalReason::OutsideWindow
        | RefusalReason::Busy
        | RefusalReason::Recovering => false,
    }
}

/// The longest chain of messages behind the quorum; [`Event::Completed`] says how it is derived.
fn steps(shape: Shape, primary: HostId, accepted: &Accepted) -> u8 {
    let tentative = accepted.word.view.is_some();
    let backup = if tentative || shape.host_quorum() <= 2 {
        3
    } else {
        4
    };
    let own = if tentative || shape.host_quorum() == 1 {
        2
    } else {
        4
    };
    let of = |host: HostId| if host == primary { own } else { backup };
    shape
        .all_hosts()
        .filter(|host| accepted.hosts & (1 << host.0) != 0)
        .map(of)
        .max()
        .unwrap_or(0)
}
