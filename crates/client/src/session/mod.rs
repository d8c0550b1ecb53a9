//! One session of a client, without clock, socket or thread (protocol.md 4.1, 4.9, 7).
//!
//! The driver feeds what arrives into the `handle_*` methods, with the time where it matters, and takes out what is
//! to be sent and what has happened with the `poll_*` methods until they give `None`. Time is in microseconds from any
//! start, the same for all calls. Nothing that a replica sends makes a session panic, grow without bound, or complete
//! a request with a result that `Q` hosts have not certified.

mod config;
mod event;
mod fault;
mod keys;
mod query;
mod reads;
mod request;
mod tally;
mod transmit;
mod view;

pub use config::SessionConfig;
pub use event::{Event, FailReason, FallBackReason, SubmitError};
pub use fault::{FaultCounters, ReplicaFault};
pub use keys::SharedKeys;
pub use transmit::{Message, Transmit};
pub use view::ViewHints;

use std::collections::VecDeque;

use bytes::Bytes;
use twinbft_types::wire::Reply;
use twinbft_types::wire::pb::RefusalReason;
use twinbft_types::{HostId, ReplicaId, Request, Seq, View};

use reads::Reads;
use request::{Pending, PendingState};
use tally::ReplyTally;
use transmit::{Outbox, What};

/// With more requests of a session under way than this, each twin of the primary host gets its own copy.
const LEADER_ALONE_REQUESTS_MAX: usize = 2;

/// One session: requests in a window, certified results out, and fast reads.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    view: View,
    /// Request `s` stands at `s mod W`. Invariant: all numbers in `base .. next` are here.
    requests: Vec<Pending>,
    /// The lowest number without an answer.
    base: Seq,
    /// The next number to give out.
    next: Seq,
    waiting: usize,
    /// Not later than the earliest deadline of a waiting request.
    next_timeout_us: u64,
    reads: Reads,
    outbox: Outbox,
    events: VecDeque<Event>,
    faults: FaultCounters,
    late_replies: u64,
    /// Tallies of requests that are done, for the next ones. Invariant: cleared; never more than the window.
    spare: Vec<ReplyTally>,
    closed: Option<RefusalReason>,
    /// Whether the next request goes to everybody.
    announce: bool,
    /// Whether other sessions of this client have much under way.
    crowded: bool,
}

impl Session {
    /// A fresh session. Its [`SessionConfig::client`] must never have been used before: the number of a request
    /// begins at 1, and replicas execute each number once.
    ///
    /// # Panics
    /// When the window is 0.
    #[must_use]
    pub fn new(config: SessionConfig) -> Self {
        assert!(config.window > 0, "a session needs a window");
        let window = usize::try_from(config.window).expect("a window fits the memory");
        Self {
            view: View(0),
            requests: vec![Pending::free(); window],
            base: Seq(1),
            next: Seq(1),
            waiting: 0,
            next_timeout_us: u64::MAX,
            reads: Reads::new(&config),
            outbox: Outbox::default(),
            events: VecDeque::new(),
            faults: FaultCounters::default(),
            late_replies: 0,
            spare: Vec::new(),
            closed: None,
            announce: config.announce,
            crowded: false,
            config,
        }
    }

    /// Takes a request on. It is transmitted until its answer is here, whoever still waits for it.
    ///
    /// # Errors
    /// When the window is full, the operation is too large, or the session is closed; nothing has happened then.
    pub fn submit(&mut self, now_us: u64, operation: Bytes) -> Result<Seq, SubmitError> {
        if let Some(reason) = self.closed {
            return Err(SubmitError::Closed { reason });
        }
        if operation.len() > self.config.operation_bytes_max {
            return Err(SubmitError::TooLarge {
                bytes: operation.len(),
                bytes_max: self.config.operation_bytes_max,
            });
        }
        if self.next.0 - self.base.0 >= self.config.window {
            return Err(SubmitError::WindowFull {
                lowest_unanswered: self.base,
            });
        }
        let seq = self.next;
        self.next = seq.next();
        self.waiting += 1;
        let request = Request {
            client: self.config.client,
            seq,
            operation,
        };
        let retransmit_at_us = now_us.saturating_add(self.config.retransmit_after_us);
        let primary = self.primary();
        let index = self.index(seq);
        let tally = self
            .spare
            .pop()
            .unwrap_or_else(|| ReplyTally::new(self.config.shape));
        self.requests[index].begin(
            request,
            tally,
            primary,
            retransmit_at_us,
            self.config.retransmit_after_us,
        );
        self.next_timeout_us = self.next_timeout_us.min(retransmit_at_us);
        if std::mem::take(&mut self.announce) {
            self.requests[index].is_announcement = true;
            self.outbox.push_announcement(seq);
        } else if self.goes_to_leader_alone(index) {
            let leader = self.config.shape.leader(self.view);
            self.outbox.push_to_leader(seq, leader);
        } else {
            self.outbox.push_first_send(seq, primary);
        }
        Ok(seq)
    }

    /// Begins a fast read (protocol.md 7). It ends with [`Event::QueryCompleted`] or [`Event::QueryFallBack`].
    ///
    /// # Errors
    /// When too many are open, the operation is too large, or the session is closed.
    pub fn query(
        &mut self,
        now_us: u64,
        operation: Bytes,
    ) -> Result<twinbft_types::Nonce, SubmitError> {
        if let Some(reason) = self.closed {
            return Err(SubmitError::Closed { reason });
        }
        let nonce = self.reads.begin(&self.config, now_us, operation)?;
        self.outbox.push_query(nonce);
        Ok(nonce)
    }

    /// A REPLY that `from`, as the transport authenticated it, has sent.
    pub fn handle_reply(&mut self, from: ReplicaId, reply: &Reply) {
        if reply.host.0 >= self.config.shape.hosts() {
            return self.faults.add(ReplicaFault::UnknownHost);
        }
        if from.host != reply.host {
            return self.faults.add(ReplicaFault::ForeignSender);
        }
        if reply.client != self.config.client {
            return self.faults.add(ReplicaFault::WrongClient);
        }
        if reply.slot.0 == 0 {
            return self.faults.add(ReplicaFault::GenesisSlot);
        }
        if reply.seq.0 == 0 || reply.seq >= self.next {
            return self.faults.add(ReplicaFault::UnknownSeq);
        }
        let index = self.index(reply.seq);
        let pending = &mut self.requests[index];
        if pending.seq() != reply.seq || !pending.is_waiting() {
            return self.handle_late_reply(index, reply);
        }
        let tally = pending.tally.as_mut().expect("a waiting request has one");
        let accepted = tally.handle_reply(
            &self.config.keys,
            self.config.client,
            reply,
            &mut self.faults,
        );
        if let Some(accepted) = accepted {
            let event = pending.complete(self.config.shape, accepted);
            self.finish(index, event);
        }
    }

    /// The answer is known already. A correct host's late reply agrees with it; only one that does not is looked at.
    fn handle_late_reply(&mut self, index: usize, reply: &Reply) {
        self.late_replies += 1;
        let pending = &self.requests[index];
        let PendingState::Answered { slot, result } = pending.state else {
            return;
        };
        let agrees = reply.slot == slot && reply.outcome.digest() == result;
        // A tentative reply may stem from a view that was dropped since (4.7).
        if pending.seq() != reply.seq || agrees || reply.view.is_some() {
            return;
        }
        if tally::is_certified(
            self.config.shape,
            &self.config.keys,
            self.config.client,
            reply,
            &mut self.faults,
        ) {
            self.faults.add(ReplicaFault::ContradictsAccepted);
        }
    }

    /// One replica's word that it will not serve a request. Not authenticated beyond its connection, so it takes
    /// `q` twins of a host to hurry a retransmission, and those of `Q` hosts to give a request up.
    pub fn handle_refusal(
        &mut self,
        now_us: u64,
        from: ReplicaId,
        seq: Seq,
        reason: RefusalReason,
    ) {
        if !self.config.shape.contains(from) {
            return self.faults.add(ReplicaFault::UnknownHost);
        }
        if reason == RefusalReason::Unspecified {
            return self.faults.add(ReplicaFault::UnknownRefusal);
        }
        if seq.0 == 0 || seq >= self.next {
            return self.faults.add(ReplicaFault::UnknownSeq);
        }
        let index = self.index(seq);
        let pending = &mut self.requests[index];
        if pending.seq() != seq || !pending.is_waiting() {
            return;
        }
        pending.note_refusal(self.config.shape, from, reason);
        if !request::is_final(reason) {
            return;
        }
        if pending.hosts_refusing(self.config.shape, reason) >= self.config.shape.host_quorum() {
            self.give_up(seq, reason);
        } else if pending.rounds == 1
            && pending.refused_by(self.config.shape, pending.first_host, reason)
        {
            // The host that got it first will not order it: ask the others now.
            pending.retransmit_at_us = now_us;
            self.next_timeout_us = self.next_timeout_us.min(now_us);
        }
    }

    fn give_up(&mut self, seq: Seq, reason: RefusalReason) {
        let index = self.index(seq);
        let event = self.requests[index].fail(FailReason::Refused(reason));
        self.finish(index, event);
        if reason == RefusalReason::ResultDiscarded {
            // It was executed: the session goes on behind it.
            return;
        }
        self.closed = Some(reason);
        for seq in (self.base.0..self.next.0).map(Seq) {
            let index = self.index(seq);
            if self.requests[index].is_waiting() {
                let event = self.requests[index].fail(FailReason::SessionClosed(reason));
                self.finish(index, event);
            }
        }
    }

    fn finish(&mut self, index: usize, event: Event) {
        let tally = self.requests[index].tally.take();
        let mut tally = tally.expect("a waiting request had one");
        tally.clear();
        self.spare.push(tally);
        self.events.push_back(event);
        self.waiting -= 1;
        while self.base < self.next && !self.requests[self.index(self.base)].is_waiting() {
            self.base = self.base.next();
        }
        if self.waiting == 0 {
            self.next_timeout_us = u64::MAX;
        }
    }

    /// One twin's answer to a fast read, as [`twinbft_types::wire::answer_from_wire`] reads it.
    pub fn handle_answer(
        &mut self,
        from: ReplicaId,
        answer: &twinbft_types::QueryAnswer,
        result: &Bytes,
        mac: &twinbft_types::Mac,
    ) {
        if !self.config.shape.contains(answer.replica) {
            return self.faults.add(ReplicaFault::UnknownHost);
        }
        if from != answer.replica {
            return self.faults.add(ReplicaFault::ForeignSender);
        }
        if answer.client != self.config.client {
            return self.faults.add(ReplicaFault::WrongClient);
        }
        if let Some(event) =
            self.reads
                .handle_answer(&self.config.keys, answer, result, mac, &mut self.faults)
        {
            self.events.push_back(event);
        }
    }

    /// The view to believe in has changed: first sends go to its primary host from now on. See [`ViewHints`].
    pub fn set_view(&mut self, view: View) {
        self.view = view;
    }

    /// Whether much is under way besides this session: then a copy for each twin of the primary host costs nothing, as
    /// it shares a frame with others. See [`SessionConfig::leader_alone_bytes_max`].
    pub const fn set_crowded(&mut self, crowded: bool) {
        self.crowded = crowded;
    }

    fn goes_to_leader_alone(&self, index: usize) -> bool {
        !self.crowded
            && self.waiting <= LEADER_ALONE_REQUESTS_MAX
            && self.config.shape.twins() > 1
            && self.requests[index].request.operation.len() < self.config.leader_alone_bytes_max
    }

    /// A replica has a new connection to this client: see [`SessionConfig::announce`].
    pub const fn announce(&mut self) {
        self.announce = self.config.announce;
    }

    /// What is to be sent next. A message may be lost; the session repeats what matters.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        loop {
            match self.outbox.front()? {
                What::Request(seq) => {
                    let index = usize::try_from(seq.0 % self.config.window).unwrap_or(0);
                    let pending = &mut self.requests[index];
                    if pending.seq() == seq && pending.is_waiting() {
                        return Some(self.outbox.request(&self.config, pending));
                    }
                    self.outbox.drop_front();
                }
                What::Query(nonce) => {
                    if let Some(query) = self.reads.open(nonce) {
                        return Some(self.outbox.query(&self.config, query));
                    }
                    self.outbox.drop_front();
                }
            }
        }
    }

    /// What has happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) at the latest. It may turn out to be too early, which
    /// does no harm; it is never too late.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let next = self.next_timeout_us.min(self.reads.next_timeout_us());
        (next != u64::MAX).then_some(next)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now_us: u64) {
        if now_us >= self.next_timeout_us {
            self.next_timeout_us = u64::MAX;
            for seq in (self.base.0..self.next.0).map(Seq) {
                let index = self.index(seq);
                let pending = &mut self.requests[index];
                if !pending.is_waiting() {
                    continue;
                }
                if pending.retransmit_at_us <= now_us {
                    pending.back_off(now_us, self.config.retransmit_us_max);
                    if !pending.queued {
                        pending.queued = true;
                        self.outbox.push_retransmission(seq);
                    }
                }
                self.next_timeout_us = self.next_timeout_us.min(pending.retransmit_at_us);
            }
        }
        self.reads.handle_timeout(now_us, &mut self.events);
    }

    /// Requests without an answer.
    #[must_use]
    pub const fn outstanding(&self) -> usize {
        self.waiting
    }

    /// How many more requests the window takes now.
    #[must_use]
    pub const fn room(&self) -> u64 {
        self.config.window - (self.next.0 - self.base.0)
    }

    /// Why the session takes nothing more, when the replicas have refused it for good.
    #[must_use]
    pub const fn closed(&self) -> Option<RefusalReason> {
        self.closed
    }

    /// Who this session is.
    #[must_use]
    pub const fn client(&self) -> twinbft_types::ClientId {
        self.config.client
    }

    /// The hosts that have certified an answer to this request so far, and the refusals of single replicas: for the
    /// message of whoever gives up waiting. `None` when the request is not waiting.
    #[must_use]
    pub fn progress(&self, seq: Seq) -> Option<Progress> {
        let pending = &self.requests[self.index(seq)];
        let tally = pending.tally.as_ref().filter(|_| pending.seq() == seq)?;
        Some(Progress {
            answered: tally.hosts_heard(),
            refusals: pending.refusals(self.config.shape),
            rounds: pending.rounds,
        })
    }

    /// What replicas did wrong, as far as this session has seen it.
    #[must_use]
    pub const fn faults(&self) -> &FaultCounters {
        &self.faults
    }

    /// Replies that came after their request was answered: ordinary, one for each request in a healthy cluster of
    /// three hosts.
    #[must_use]
    pub const fn late_replies(&self) -> u64 {
        self.late_replies
    }

    fn primary(&self) -> HostId {
        self.config.shape.primary(self.view)
    }

    fn index(&self, seq: Seq) -> usize {
        usize::try_from(seq.0 % self.config.window).expect("below the window, which fits")
    }
}

/// How far a request has come that is not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Hosts that certified some outcome, one bit each.
    pub answered: u32,
    /// The latest refusal of each replica that refused.
    pub refusals: Vec<(ReplicaId, RefusalReason)>,
    /// How often the request was sent: 1 to the primary's twins, more to everybody.
    pub rounds: u32,
}
