//! Candidates, votes on them and the decision of ORDER (protocol.md 4.3, 4.4).

use borsh::{BorshDeserialize, BorshSerialize};
use twinbft_types::{
    Attempt, Digest, RequestRef, Shape, Slot, TwinId, View, batch_digest, history,
};

use super::votes::TwinSet;
use super::{Decision, HostLog, Invalid};
use crate::mutants::{Rule, out as is_out};

/// A PROPOSE that may be voted on.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Candidate {
    /// Its attempt number.
    pub attempt: Attempt,
    /// `h_n`.
    pub history: Digest,
    /// The batch's timestamp.
    pub timestamp_us: u64,
    /// The batch.
    pub requests: Vec<RequestRef>,
    /// Who endorsed it; the leader by proposing it.
    endorsed: TwinSet,
    /// Who NACKed it.
    nacked: TwinSet,
}

impl Candidate {
    pub(super) fn new(
        attempt: Attempt,
        previous: Digest,
        slot: Slot,
        timestamp_us: u64,
        requests: &[RequestRef],
    ) -> Self {
        Self {
            attempt,
            history: history(previous, slot, batch_digest(requests), timestamp_us),
            timestamp_us,
            requests: requests.to_vec(),
            endorsed: TwinSet::default(),
            nacked: TwinSet::default(),
        }
    }

    /// Whether a follower NACKed it.
    #[must_use]
    pub const fn is_nacked(&self) -> bool {
        !self.nacked.is_empty()
    }

    /// Whether so many followers NACKed it that `q` votes for it have become impossible.
    #[must_use]
    pub const fn is_hopeless(&self, shape: Shape) -> bool {
        self.nacked.len() + shape.twin_quorum() > shape.twins() as usize
    }

    /// How this twin has voted on it: whether it endorsed it.
    #[must_use]
    pub const fn vote_of(&self, twin: TwinId) -> Option<bool> {
        if self.endorsed.contains(twin) {
            Some(true)
        } else if self.nacked.contains(twin) {
            Some(false)
        } else {
            None
        }
    }

    /// Whether this twin has voted on it.
    #[must_use]
    pub const fn has_vote_of(&self, twin: TwinId) -> bool {
        self.endorsed.contains(twin) || self.nacked.contains(twin)
    }
}

impl HostLog {
    /// Whether this host is primary of `view` and `view` is installed and unfenced.
    fn orders_in(&self, view: View) -> bool {
        let lives =
            self.live_view() == Some(view) || (is_out(Rule::OrderFence) && self.installed == view);
        lives && self.shape.primary(view) == self.host
    }

    pub(super) fn check_leader(&self, sender: TwinId, view: View) -> Result<(), Invalid> {
        let leader = self.shape.leader(view);
        if leader.host == self.host && (leader.twin == sender || is_out(Rule::Proposer)) {
            Ok(())
        } else {
            Err(Invalid("an entry that only the leader of its view posts"))
        }
    }

    pub(super) fn apply_propose(
        &mut self,
        sender: TwinId,
        view: View,
        slot: Slot,
        previous: Digest,
        mut proposal: Candidate,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        self.check_leader(sender, view)?;
        if proposal.requests.is_empty()
            || proposal.requests.len() as u64 > self.bounds.batch_requests_max
        {
            return Err(Invalid("a PROPOSE of no requests or of too many"));
        }
        // 4.3: the first PROPOSE that extends the candidate or decision of n−1 while there is neither for n.
        let (tip, tip_history) = self.tip();
        if !self.orders_in(view)
            || slot != tip.next()
            || (previous != tip_history && !is_out(Rule::Candidate))
            || (self.attempts.get(&slot).is_some_and(|highest| proposal.attempt <= *highest)
                && !is_out(Rule::Attempt))
            // The last number is never taken, so that there always is a next one.
            || proposal.attempt == Attempt(u32::MAX)
            // A leader has no more slots in flight.
            || self.candidates.len() as u64 >= self.bounds.pipeline_depth
        {
            return Ok(());
        }
        self.attempts.insert(slot, proposal.attempt);
        proposal.endorsed.insert(sender);
        self.candidates.push(proposal);
        out.push(Decision::Candidate { slot });
        Ok(())
    }

    /// The candidate that a vote is about, if the vote counts.
    fn voted_on(
        &mut self,
        sender: TwinId,
        view: View,
        slot: Slot,
        (attempt, history): (Attempt, Digest),
    ) -> Result<Option<&mut Candidate>, Invalid> {
        let leader = self.shape.leader(view);
        if leader.host != self.host || leader.twin == sender {
            return Err(Invalid("a vote of a twin that has none in this view"));
        }
        if !self.orders_in(view) {
            return Ok(None);
        }
        let Some(offset) = slot.0.checked_sub(self.accepted.0 + 1) else {
            return Ok(None);
        };
        let candidate = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.candidates.get_mut(offset))
            .filter(|c| {
                let subject = c.attempt == attempt && c.history == history;
                (subject || is_out(Rule::VoteSubject)) && !c.has_vote_of(sender)
            });
        Ok(candidate)
    }

    pub(super) fn apply_endorse(
        &mut self,
        sender: TwinId,
        view: View,
        slot: Slot,
        subject: (Attempt, Digest),
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        let Some(candidate) = self.voted_on(sender, view, slot, subject)? else {
            return Ok(());
        };
        candidate.endorsed.insert(sender);
        self.decide_orders(view, out);
        Ok(())
    }

    /// 4.4: ORDER is decided where the candidate has `q` votes and `n−1` is decided.
    fn decide_orders(&mut self, view: View, out: &mut Vec<Decision>) {
        let ready = self
            .candidates
            .iter()
            .take_while(|c| {
                c.endorsed.len() >= self.shape.twin_quorum() || is_out(Rule::VoteQuorum)
            })
            .count();
        let decided: Vec<Candidate> = self.candidates.drain(..ready).collect();
        for candidate in decided {
            let slot = self.accepted.next();
            self.accepted = slot;
            self.accepted_history = candidate.history;
            self.note_history(view, slot, candidate.history);
            self.attempts.remove(&slot);
            for request in &candidate.requests {
                self.forget_request(request.client, request.seq);
            }
            out.push(Decision::Ordered {
                view,
                slot,
                candidate,
            });
        }
    }

    pub(super) fn apply_nack(
        &mut self,
        sender: TwinId,
        view: View,
        slot: Slot,
        subject: (Attempt, Digest),
        requests: &[RequestRef],
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        // 4.3: HAVEs of `q` twins stand for the MAC and bar a NACK that names it.
        if requests.iter().any(|r| self.is_had(r)) {
            return Ok(());
        }
        let Some(candidate) = self.voted_on(sender, view, slot, subject)? else {
            return Ok(());
        };
        if requests.iter().any(|r| !candidate.requests.contains(r)) {
            return Err(Invalid("a NACK that names a request outside the batch"));
        }
        candidate.nacked.insert(sender);
        for request in requests {
            self.nacked.insert(request.client.key);
        }
        out.push(Decision::Nacked {
            slot,
            requests: requests.to_vec(),
        });
        Ok(())
    }

    pub(super) fn apply_withdraw(
        &mut self,
        sender: TwinId,
        view: View,
        slot: Slot,
        attempt: Attempt,
        out: &mut Vec<Decision>,
    ) -> Result<(), Invalid> {
        self.check_leader(sender, view)?;
        if !self.orders_in(view) {
            return Ok(());
        }
        // 4.3: after a NACK and before the decision.
        let voidable = self
            .candidate(slot)
            .is_some_and(|c| c.attempt == attempt && !c.nacked.is_empty());
        if voidable {
            self.void_from(slot);
            out.push(Decision::Void { from: slot });
        }
        Ok(())
    }

    /// The candidate of `slot` and every one chained on it are void.
    pub(super) fn void_from(&mut self, slot: Slot) {
        let keep = slot.0.saturating_sub(self.accepted.0 + 1);
        self.candidates
            .truncate(usize::try_from(keep).expect("candidates are few"));
    }
}
