//! The leader makes batches and proposes them (protocol.md 4.2, 4.3).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use twinbft_types::{
    Attempt, ClientId, Digest, Entry, RequestRef, Seq, Slot, batch_digest, history,
};

use super::Replica;
use crate::hostlog::Candidate;
use crate::io::{Effect, Effects};
use crate::record::Record;
use crate::session::Standing;

/// While this many slots are in flight, requests gather into a full batch first (4.2).
const EAGER_SLOTS: u64 = 2;

/// How long a candidate with a NACK that names no request may still gather `q` votes, in microseconds.
const NACK_GRACE_US: u64 = 20_000;

/// So many voided attempts in a row cost nothing: each client can cause one.
const VOIDS_FREE: u32 = 4;
/// The pause after one more, doubled for each that follows, up to 128 times.
const VOID_PAUSE_US: u64 = 1_000;

/// How long after a late timestamp was NACKed each slot follows the one before it by a microsecond only.
const CAUTION_US: u64 = 1_000_000;

/// What only the leader keeps.
#[derive(Clone, Debug, Default)]
pub struct Leader {
    queue: VecDeque<(ClientId, Seq)>,
    queued: BTreeSet<(ClientId, Seq)>,
    /// Requests beyond their session's window as this twin has executed it; bounded by the pool.
    early: BTreeSet<(ClientId, Seq)>,
    /// The end of what this twin has proposed, read back or not.
    /// Invariant: `None` unless something was proposed since the last void or fence.
    tip: Option<Tip>,
    /// A WITHDRAW of this candidate is under way: propose nothing until it is read back.
    withdrawing: Option<(Slot, Attempt)>,
    /// Candidates that were voided since the last decision, and when to propose again after them.
    voids: u32,
    resume_at_us: u64,
    /// Candidates with a NACK. Invariant: none of a void or decided candidate.
    doubted: BTreeMap<Slot, Doubt>,
    /// Until then a follower's clock may be far ahead of this twin's.
    cautious_until_us: u64,
    /// Undecided slots that were put into the write-ahead log when they were proposed, and their histories.
    written: BTreeMap<Slot, Digest>,
}

/// What a NACK says about a candidate.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    /// When to withdraw it.
    withdraw_at_us: u64,
    /// A NACK named no request: its timestamp is late.
    is_late: bool,
}

#[derive(Clone, Copy, Debug)]
struct Tip {
    slot: Slot,
    history: Digest,
    timestamp_us: u64,
}

impl Leader {
    pub fn enqueue(&mut self, client: ClientId, seq: Seq) {
        if self.queued.insert((client, seq)) {
            self.queue.push_back((client, seq));
        }
    }

    fn enqueue_first(&mut self, client: ClientId, seq: Seq) {
        if self.queued.insert((client, seq)) {
            self.queue.push_front((client, seq));
        }
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }
}

impl Replica {
    /// Whether this twin leads the installed, unfenced view.
    pub(super) fn is_leader(&self) -> bool {
        self.log
            .live_view()
            .is_some_and(|view| self.config.shape.leader(view) == self.config.me)
    }

    /// 4.2: with nothing in flight a single request goes at once; while slots are in flight requests gather.
    pub(super) fn poll_proposal(&mut self, out: &mut Effects) {
        self.poll_withdrawal(out);
        while self.may_propose() {
            let batch = self.gather();
            if batch.is_empty() {
                return;
            }
            self.propose(batch, out);
        }
    }

    fn may_propose(&self) -> bool {
        if self.leader.queue.is_empty()
            || self.leader.withdrawing.is_some()
            || self.leader.resume_at_us > self.now.mono_us
            || !self.is_leader()
            // It orders behind what it holds.
            || self.first_missing().is_some()
        {
            return false;
        }
        let tuning = &self.config.tuning;
        let tip = self.proposal_tip().slot;
        let in_flight = tip.0 - self.commit.committed().0.min(tip.0);
        let full = self.leader.queue.len() >= tuning.batch_requests_max;
        tip < self.high_mark()
            && in_flight < tuning.pipeline_depth
            && (full || self.slots_under_way(tip) < EAGER_SLOTS)
    }

    fn proposal_tip(&self) -> Tip {
        self.leader.tip.unwrap_or_else(|| {
            let (slot, history) = self.log.tip();
            Tip {
                slot,
                history,
                timestamp_us: self.timestamp_of(slot),
            }
        })
    }

    /// The timestamp of a candidate or of a slot that this twin holds.
    pub(super) fn timestamp_of(&self, slot: Slot) -> u64 {
        if let Some(candidate) = self.log.candidate(slot) {
            return candidate.timestamp_us;
        }
        if slot == self.stable {
            return self.checkpoints.stable_timestamp_us();
        }
        self.slots.get(slot).map_or(0, |data| data.timestamp_us)
    }

    fn gather(&mut self) -> Vec<RequestRef> {
        let tuning = &self.config.tuning;
        let mut batch: Vec<RequestRef> = Vec::new();
        let mut bytes = 0;
        while batch.len() < tuning.batch_requests_max
            && let Some(&(client, seq)) = self.leader.queue.front()
        {
            let Some((digest, request)) = self.pool.by_number(client, seq) else {
                self.leader.drop_first();
                continue;
            };
            let size = request.request.operation.len();
            if !batch.is_empty() && bytes + size > tuning.batch_bytes_max {
                break;
            }
            let reference = RequestRef {
                client,
                seq,
                digest,
            };
            let proposable = match self.sessions.standing(client, seq) {
                Standing::Open => true,
                // Its window opens with the execution of what is in flight.
                Standing::Early => {
                    self.leader.early.insert((client, seq));
                    false
                }
                Standing::Executed | Standing::Expired => {
                    self.pool.remove(client, seq);
                    false
                }
            };
            self.leader.drop_first();
            if !proposable || self.voting.is_in_log(client, seq) {
                continue;
            }
            // 4.3: after a NACK only with HAVEs of q twins; `Had` enqueues it again.
            if self.log.is_nacked(client) && !self.log.is_had(&reference) {
                continue;
            }
            bytes += size;
            batch.push(reference);
        }
        batch
    }

    fn propose(&mut self, requests: Vec<RequestRef>, out: &mut Effects) {
        let view = self.log.live_view().expect("checked by may_propose");
        let tip = self.proposal_tip();
        let slot = tip.slot.next();
        // 4.3: such a timestamp is never late, whatever the followers' clocks.
        let timestamp_us = if self.now.mono_us < self.leader.cautious_until_us {
            tip.timestamp_us + 1
        } else {
            self.now.wall_us.max(tip.timestamp_us + 1)
        };
        self.leader.tip = Some(Tip {
            slot,
            history: history(tip.history, slot, batch_digest(&requests), timestamp_us),
            timestamp_us,
        });
        for request in &requests {
            self.voting.note_proposed(request.client, request.seq, slot);
        }
        // Behind the PROPOSE, because a follower keeps a BODY only for what it knows to be proposed.
        let bodies: Vec<Entry> = self
            .pool
            .alone(&requests)
            .map(|request| Entry::Body {
                request: request.clone(),
            })
            .collect();
        self.write_proposal(&requests, tip, out);
        out.post(Entry::Propose {
            view,
            slot,
            attempt: self.log.next_attempt(slot),
            previous: tip.history,
            timestamp_us,
            requests,
        });
        for body in bodies {
            out.post(body);
        }
    }

    /// 3, durability rule: a PROPOSE is the leader's vote, and rests on the slot. Where the others go on without this host they leave
    /// the view when nobody has the slot any more, so the leader may write it when it is decided. With one host or two nobody
    /// goes on, and the follower whose ENDORSE decides it may be the twin that loses its disk.
    fn write_proposal(&mut self, requests: &[RequestRef], before: Tip, out: &mut Effects) {
        let shape = self.config.shape;
        if shape.host_quorum() < usize::from(shape.hosts()) {
            return;
        }
        let proposed = self.leader.tip.expect("just set");
        let found = requests.iter().map(|request| self.pool.find(request));
        let Some(bodies) = found.map(|signed| Some(signed?.request.clone())).collect() else {
            return;
        };
        out.push(Effect::Persist(Record::Slot {
            slot: proposed.slot,
            previous: before.history,
            timestamp_us: proposed.timestamp_us,
            bodies,
            certificate: None,
        }));
        self.leader.written.insert(proposed.slot, proposed.history);
    }

    /// Whether this decided slot is in the write-ahead log since it was proposed.
    pub(super) fn has_written(&self, slot: Slot, history: Digest) -> bool {
        self.leader.written.get(&slot) == Some(&history)
    }

    /// 4.3: the leader withdraws a candidate that got a NACK. At once when a request is named (its client's
    /// next ones need HAVEs, which bar such a NACK) or when `q` votes have become impossible; otherwise one
    /// bad follower could void every attempt, so the others get [`NACK_GRACE_US`] to decide it.
    pub(super) fn handle_nacked(&mut self, slot: Slot, named: bool) {
        if self.is_leader() {
            self.doubt(slot, named);
        }
    }

    fn doubt(&mut self, slot: Slot, named: bool) {
        let Some(candidate) = self.log.candidate(slot) else {
            return;
        };
        let is_due = named || candidate.is_hopeless(self.config.shape);
        let now = self.now.mono_us;
        let at_us = if is_due { now } else { now + NACK_GRACE_US };
        let doubt = self.leader.doubted.entry(slot).or_insert(Doubt {
            withdraw_at_us: at_us,
            is_late: false,
        });
        doubt.withdraw_at_us = doubt.withdraw_at_us.min(at_us);
        doubt.is_late |= !named;
    }

    /// Withdraws the lowest candidate whose time has come, one at a time. Which candidates were NACKed is read off
    /// the log, so that none is forgotten while another one's WITHDRAW is under way.
    fn poll_withdrawal(&mut self, out: &mut Effects) {
        if self.leader.withdrawing.is_some() || !self.is_leader() {
            return;
        }
        let (first, last) = (self.log.accepted().0.next(), self.log.tip().0);
        for slot in (first.0..=last.0).map(Slot) {
            let is_nacked = self.log.candidate(slot).is_some_and(Candidate::is_nacked);
            if is_nacked && !self.leader.doubted.contains_key(&slot) {
                self.doubt(slot, false);
            }
        }
        let now = self.now.mono_us;
        let mut due = self.leader.doubted.iter();
        let due = due.find(|(_, doubt)| doubt.withdraw_at_us <= now);
        if let Some((&slot, &doubt)) = due {
            if doubt.is_late {
                self.leader.cautious_until_us = now + CAUTION_US;
            }
            self.withdraw(slot, out);
        }
    }

    pub(super) fn leader_deadline(&self) -> Option<u64> {
        // Who starts again, or has not taken its log over yet, proposes and withdraws nothing.
        if !self.is_leader() || self.recovery.is_silent() || !self.is_settled() {
            return None;
        }
        // While a WITHDRAW is under way the others wait for it.
        let is_free = self.leader.withdrawing.is_none();
        let doubts = self.leader.doubted.values().filter(|_| is_free);
        let doubted = doubts.map(|doubt| doubt.withdraw_at_us).min();
        let resume_at_us = self.leader.resume_at_us;
        let resumes = (resume_at_us > self.now.mono_us).then_some(resume_at_us);
        [doubted, resumes].into_iter().flatten().min()
    }

    /// A follower that NACKs everything must not keep the host busy with attempts: after a few, each waits twice as
    /// long as the one before.
    fn back_off(&mut self) {
        self.leader.voids = self.leader.voids.saturating_add(1);
        let doublings = self.leader.voids.saturating_sub(VOIDS_FREE).min(7);
        if self.leader.voids > VOIDS_FREE {
            self.leader.resume_at_us = self.now.mono_us + (VOID_PAUSE_US << doublings);
        }
    }

    fn withdraw(&mut self, slot: Slot, out: &mut Effects) {
        let (Some(view), Some(candidate)) = (self.log.live_view(), self.log.candidate(slot)) else {
            return;
        };
        self.leader.withdrawing = Some((slot, candidate.attempt));
        out.post(Entry::Withdraw {
            view,
            slot,
            attempt: candidate.attempt,
        });
    }

    /// Candidates from `from` on are void: their requests go to the head of the queue.
    pub(super) fn leader_voided(&mut self, from: Slot) {
        if self.is_leader() {
            self.back_off();
        }
        let requests = self.voting.take_void(from);
        self.leader.tip = None;
        self.leader.withdrawing = None;
        self.leader.doubted.split_off(&from);
        self.leader.written.split_off(&from);
        if self.is_leader() {
            for (client, seq) in requests.into_iter().rev() {
                self.leader.enqueue_first(client, seq);
            }
        }
    }

    /// The log was replaced by a STATE, which may have passed candidates that this twin doubted: which are NACKed is read
    /// off it anew.
    pub(super) fn leader_adopts(&mut self) {
        self.leader.doubted.clear();
    }

    /// A request was dropped from the pool. What the leader remembers of such requests stays within twice the pool.
    pub(super) fn leader_evicted(&mut self, client: ClientId, seq: Seq) {
        self.leader.early.remove(&(client, seq));
        if self.leader.queue.len() > 2 * self.config.tuning.pending_requests_max {
            let pool = &self.pool;
            let is_pooled = |r: &(ClientId, Seq)| pool.by_number(r.0, r.1).is_some();
            self.leader.queue.retain(is_pooled);
            self.leader.queued.retain(is_pooled);
        }
    }

    /// A request of this session was executed: later ones may have come into its window.
    pub(super) fn leader_executed(&mut self, client: ClientId) {
        if self.leader.early.is_empty() {
            return;
        }
        let opened: Vec<(ClientId, Seq)> = self
            .leader
            .early
            .range((client, Seq(0))..=(client, Seq(u64::MAX)))
            .filter(|(c, s)| self.sessions.standing(*c, *s) != Standing::Early)
            .copied()
            .collect();
        for (client, seq) in opened {
            self.leader.early.remove(&(client, seq));
            self.leader.enqueue(client, seq);
        }
    }

    /// The view is installed: whatever waits here waits for this leader.
    pub(super) fn leader_enters(&mut self) {
        if self.is_leader() {
            self.leader.voids = 0;
            self.leader.resume_at_us = 0;
            for (client, seq) in self.pool.all() {
                self.leader.enqueue(client, seq);
            }
        }
    }

    /// A slot is decided: a WITHDRAW of it came too late.
    pub(super) fn leader_ordered(&mut self, slot: Slot) {
        self.heartbeats.note_busy(self.now.mono_us);
        self.leader.voids = 0;
        self.leader.resume_at_us = 0;
        if self.leader.withdrawing.is_some_and(|(s, _)| s <= slot) {
            self.leader.withdrawing = None;
        }
        self.leader.doubted = self.leader.doubted.split_off(&slot.next());
        self.leader.written = self.leader.written.split_off(&slot.next());
    }

    /// 4.3: `q` twins vouch for a request of a client that was NACKed.
    pub(super) fn leader_had(&mut self, request: &RequestRef) {
        self.voting_had(request);
        if self.is_leader() && self.pool.find(request).is_some() {
            self.leader.enqueue(request.client, request.seq);
        }
    }
}

impl Leader {
    fn drop_first(&mut self) {
        if let Some(first) = self.queue.pop_front() {
            self.queued.remove(&first);
        }
    }
}
