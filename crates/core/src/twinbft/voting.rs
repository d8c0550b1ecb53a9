//! Followers vote on candidates; whoever has a body that a sibling lacks posts it (protocol.md 4.3).

use std::collections::{BTreeMap, BTreeSet};

use twinbft_types::{
    Attempt, Authenticator, ClientId, Digest, Entry, Request, RequestRef, Seq, SignedRequest, Slot,
    Statement, TwinId,
};

use super::Replica;
use crate::evidence::{Event, EventKind};
use crate::hostlog::Candidate;
use crate::io::{Effect, Effects};
use crate::mutants::{Rule, out as is_out};
use crate::record::Record;
use crate::session::Standing;

/// This twin's side of the live candidates.
#[derive(Clone, Debug, Default)]
pub struct Voting {
    candidates: BTreeMap<Slot, Private>,
    /// Requests of candidates and of decided slots whose execution has not begun.
    in_log: BTreeMap<(ClientId, Seq), Slot>,
    /// Decided slots of which this twin lacks bodies; only for m > q.
    incomplete: BTreeMap<Slot, Incomplete>,
    /// Those of them that have become complete in this step.
    completed: Vec<Slot>,
    /// Bodies of decided slots that this twin has posted, each once. Invariant: of slots that are held.
    given: BTreeMap<Slot, BTreeSet<Digest>>,
}

/// A decided slot of which this twin lacks bodies.
#[derive(Clone, Debug)]
struct Incomplete {
    since_us: u64,
    /// Bodies for which NEED was posted.
    asked: BTreeSet<Digest>,
}

/// What a twin knows of a candidate besides the log.
#[derive(Clone, Debug)]
pub struct Private {
    attempt: Attempt,
    pub requests: Vec<RequestRef>,
    pub bodies: Vec<Option<Request>>,
    /// Bodies for which this twin posted NEED. It goes with the candidate: what came for a void one is gone, too.
    asked: BTreeSet<Digest>,
    /// Bodies that this twin posted, each once.
    given: BTreeSet<Digest>,
    /// Signatures on ORDER that came with ENDORSEs (3: only for m = q), one of each twin.
    pub signatures: Vec<Authenticator>,
    /// Requests whose BODY failed here, each once.
    failed: Vec<RequestRef>,
    /// Their bodies, each once: a decision in spite of this twin, or HAVEs, vouch for them.
    pub unverified: Vec<(Digest, Request)>,
    /// No request twice.
    proper: bool,
    voted: Option<Vote>,
    seen_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vote {
    Endorse,
    Nack,
}

impl Private {
    /// Whether this twin endorsed it, and so has made its slot durable.
    pub fn is_endorsed(&self) -> bool {
        self.voted == Some(Vote::Endorse)
    }

    /// Bodies that are missing and that this twin has not asked for.
    fn unasked(&self) -> impl Iterator<Item = Digest> + '_ {
        (self.requests.iter().zip(&self.bodies))
            .filter(|(request, body)| body.is_none() && !self.asked.contains(&request.digest))
            .map(|(request, _)| request.digest)
    }
}

/// What a follower makes of a candidate.
enum Judgement {
    Endorse,
    Nack(Vec<RequestRef>),
    Wait,
}

impl Voting {
    /// The leader is about to post a PROPOSE with this request.
    pub fn note_proposed(&mut self, client: ClientId, seq: Seq, slot: Slot) {
        self.in_log.insert((client, seq), slot);
    }

    /// Whether this request is in the log and not yet executed.
    pub fn is_in_log(&self, client: ClientId, seq: Seq) -> bool {
        self.in_log.contains_key(&(client, seq))
    }

    /// Execution of this request has begun.
    pub fn forget(&mut self, client: ClientId, seq: Seq) {
        self.in_log.remove(&(client, seq));
    }

    /// Drops everything from `from` on that is not decided; answers with its requests, in order.
    pub fn take_void(&mut self, from: Slot) -> Vec<(ClientId, Seq)> {
        self.candidates.split_off(&from);
        let mut requests: Vec<(Slot, (ClientId, Seq))> = self
            .in_log
            .iter()
            .filter(|(_, slot)| **slot >= from)
            .map(|(request, slot)| (*slot, *request))
            .collect();
        requests.sort_unstable();
        for (_, request) in &requests {
            self.in_log.remove(request);
        }
        requests.into_iter().map(|(_, request)| request).collect()
    }

    /// Another log begins: these requests are in it and not executed. `last` is its end.
    pub fn set_in_log(
        &mut self,
        requests: impl IntoIterator<Item = ((ClientId, Seq), Slot)>,
        last: Slot,
    ) {
        self.in_log.retain(|_, slot| *slot > last);
        self.in_log.extend(requests);
    }

    /// The private side of a candidate that is now decided.
    pub fn take(&mut self, slot: Slot) -> Option<Private> {
        self.candidates.remove(&slot)
    }

    /// This twin has voted on a candidate, in this life or an earlier one.
    pub fn recall_own(&mut self, slot: Slot, attempt: Attempt, endorsed: bool) {
        let live = self.candidates.get_mut(&slot);
        if let Some(private) = live.filter(|private| private.attempt == attempt) {
            private.voted = Some(if endorsed { Vote::Endorse } else { Vote::Nack });
        }
    }

    /// A slot was decided without all bodies being here.
    pub fn note_incomplete(&mut self, slot: Slot, now_us: u64) {
        let incomplete = Incomplete {
            since_us: now_us,
            asked: BTreeSet::new(),
        };
        self.incomplete.insert(slot, incomplete);
    }

    /// Whether a request of this session with a number up to `seq` is in the log and not yet executed.
    pub fn is_session_in_log(&self, client: ClientId, seq: Seq) -> bool {
        let mut range = self.in_log.range((client, Seq(0))..=(client, seq));
        range.next().is_some()
    }

    /// A body has come: fills it in wherever a candidate lacks it.
    fn fill(&mut self, digest: Digest, request: &Request) {
        for private in self.candidates.values_mut() {
            for (reference, body) in private.requests.iter().zip(&mut private.bodies) {
                if reference.digest == digest && body.is_none() {
                    *body = Some(request.clone());
                }
            }
        }
    }

    fn lacks(&self, digest: Digest) -> bool {
        let missing = |private: &Private| {
            let mut pairs = private.requests.iter().zip(&private.bodies);
            pairs.any(|(reference, body)| reference.digest == digest && body.is_none())
        };
        self.candidates.values().any(missing)
    }
}

impl Replica {
    /// A PROPOSE became the candidate of its slot.
    pub(super) fn candidate_appeared(&mut self, slot: Slot) {
        let candidate = self.log.candidate(slot).expect("just decided");
        let requests = candidate.requests.clone();
        let history = candidate.history;
        let find = |r: &RequestRef| match self.pool.find(r) {
            Some(signed) => Some(signed.request.clone()),
            None => self.recovery.body(slot, history, r).cloned(),
        };
        let bodies = requests.iter().map(find).collect();
        let mut proper = true;
        for request in &requests {
            let key = (request.client, request.seq);
            let earlier = *self.voting.in_log.entry(key).or_insert(slot);
            proper &= earlier == slot;
        }
        let distinct: BTreeSet<_> = requests.iter().map(|r| (r.client, r.seq)).collect();
        proper &= distinct.len() == requests.len();
        let private = Private {
            attempt: candidate.attempt,
            requests,
            bodies,
            asked: BTreeSet::new(),
            given: BTreeSet::new(),
            signatures: Vec::new(),
            failed: Vec::new(),
            unverified: Vec::new(),
            proper,
            voted: None,
            seen_us: self.now.mono_us,
        };
        self.voting.candidates.insert(slot, private);
    }

    /// An ENDORSE brought its signature along.
    pub(super) fn note_signature(
        &mut self,
        slot: Slot,
        attempt: Attempt,
        authenticator: &Authenticator,
    ) {
        if let Some(private) = self.voting.candidates.get_mut(&slot)
            && private.attempt == attempt
            && (private.signatures.iter()).all(|a| a.twin != authenticator.twin)
        {
            private.signatures.push(authenticator.clone());
        }
    }

    /// This twin's own NACK was read back. When it does not count, HAVEs bar it (4.3): the twin votes again.
    pub(super) fn own_nack_read(&mut self, slot: Slot, attempt: Attempt) {
        let me = self.config.twin();
        let counts = |candidate: &Candidate| candidate.has_vote_of(me);
        if !self.log.candidate(slot).is_some_and(counts)
            && let Some(private) = self.voting.candidates.get_mut(&slot)
            && private.attempt == attempt
        {
            private.voted = None;
        }
    }

    /// HAVEs of `q` twins stand for the MAC of a request whose BODY failed here (4.3).
    pub(super) fn voting_had(&mut self, request: &RequestRef) {
        let mut unverified = (self.voting.candidates.values()).flat_map(|p| &p.unverified);
        let body = unverified.find(|(digest, _)| *digest == request.digest);
        if let Some((digest, body)) = body.cloned() {
            self.fill_body(digest, &body);
        }
    }

    /// 4.3: a follower votes in slot order, and endorses `n` only if it endorsed `n−1` or that is decided.
    pub(super) fn poll_votes(&mut self, out: &mut Effects) {
        if self.voting.candidates.is_empty() || !self.log.is_primary() || self.is_leader() {
            return;
        }
        // What it has not got is neither in its log of requests nor has it a time.
        if self.first_missing().is_some() {
            return;
        }
        let mut slot = self.log.accepted().0.next();
        while let Some(private) = self.voting.candidates.get(&slot) {
            match private.voted {
                Some(Vote::Endorse) => {}
                Some(Vote::Nack) => return,
                None => match self.judge(slot, private) {
                    Judgement::Endorse => self.endorse(slot, out),
                    Judgement::Nack(requests) => {
                        self.nack(slot, requests, out);
                        return;
                    }
                    Judgement::Wait => return,
                },
            }
            slot = slot.next();
        }
    }

    fn judge(&self, slot: Slot, private: &Private) -> Judgement {
        let candidate = self
            .log
            .candidate(slot)
            .expect("private sides follow the log");
        let previous_us = self.timestamp_of(Slot(slot.0 - 1));
        let (clock, bound) = (self.now.wall_us, self.config.tuning.clock_bound_us);
        let t = candidate.timestamp_us;
        // A leader that proposes a request twice or lets time go back gets no vote at all.
        if !private.proper || (t <= previous_us && !is_out(Rule::Timestamp)) {
            return Judgement::Wait;
        }
        // 4.3: what is merely early waits.
        let is_early = t > (previous_us + 1).max(clock.saturating_add(bound));
        if slot > self.high_mark() || (is_early && !is_out(Rule::Timestamp)) {
            return Judgement::Wait;
        }
        // 4.3: a late timestamp is NACKed naming no request.
        let is_late = t < clock.saturating_sub(bound) && t != previous_us + 1;
        if is_late && !is_out(Rule::Timestamp) {
            return Judgement::Nack(Vec::new());
        }
        let mut failed = private.failed.clone();
        failed.retain(|request| !self.log.is_had(request));
        if !failed.is_empty() {
            return Judgement::Nack(failed);
        }
        let complete = private.bodies.iter().all(Option::is_some);
        // 4.3: no (c,s) in the session table; it waits for its leader to be replaced. One whose session has expired
        // meanwhile is executed as a no-op: its leader could not foresee it.
        let waits =
            private
                .requests
                .iter()
                .any(|r| match self.sessions.standing(r.client, r.seq) {
                    Standing::Early | Standing::Executed => true,
                    Standing::Open | Standing::Expired => false,
                });
        let waits = waits && !is_out(Rule::ClientWindow);
        if complete && !waits && self.is_within_bytes(&private.bodies) {
            Judgement::Endorse
        } else {
            Judgement::Wait
        }
    }

    /// 4.2: a batch of more than one request has at most `max_batch_bytes`.
    fn is_within_bytes(&self, bodies: &[Option<Request>]) -> bool {
        let bytes: usize = (bodies.iter().flatten()).map(|r| r.operation.len()).sum();
        bodies.len() == 1 || bytes <= self.config.tuning.batch_bytes_max
    }

    fn endorse(&mut self, slot: Slot, out: &mut Effects) {
        let view = self.log.live_view().expect("only while the view is live");
        let candidate = self.log.candidate(slot).expect("judged");
        let (attempt, history) = (candidate.attempt, candidate.history);
        let timestamp_us = candidate.timestamp_us;
        let private = self.voting.candidates.get_mut(&slot).expect("judged");
        private.voted = Some(Vote::Endorse);
        let bodies: Vec<Request> = private.bodies.iter().flatten().cloned().collect();
        // 3: with two twins a follower's ENDORSE carries its signature, unless it has posted its own LEAVE.
        let early = self.config.shape.unanimous() || is_out(Rule::Release);
        let signs = early && self.views.left() <= view;
        let signature = signs.then(|| {
            let statement = Statement::Order {
                view,
                slot,
                history,
            };
            let signed = self.signed(statement);
            self.config.keys.sign(self.config.shape, &signed)
        });
        let previous = self.log.tip_before(slot);
        let entry = Entry::Endorse {
            view,
            slot,
            attempt,
            history,
            signature,
        };
        out.push(Effect::Persist(Record::Slot {
            slot,
            previous,
            timestamp_us,
            bodies,
            certificate: None,
        }));
        out.push(Effect::Persist(Record::Promise(entry.clone())));
        out.post(entry);
    }

    fn nack(&mut self, slot: Slot, requests: Vec<RequestRef>, out: &mut Effects) {
        let view = self.log.live_view().expect("only while the view is live");
        let candidate = self.log.candidate(slot).expect("judged");
        let (attempt, history) = (candidate.attempt, candidate.history);
        if let Some(private) = self.voting.candidates.get_mut(&slot) {
            private.voted = Some(Vote::Nack);
        }
        for request in &requests {
            out.push(Effect::Evidence(Event {
                host: self.config.host(),
                twin: None,
                slot: Some(slot),
                kind: EventKind::BadClient {
                    client_key: request.client.key,
                },
            }));
        }
        out.post(Entry::Nack {
            view,
            slot,
            attempt,
            history,
            requests,
        });
    }

    /// After a NACK this twin vouches for what it holds of the named clients (4.3).
    pub(super) fn vouch(&self, requests: &[RequestRef], out: &mut Effects) {
        let keys: BTreeSet<u32> = requests.iter().map(|r| r.client.key).collect();
        for key in keys {
            for request in self.pool.of_key(key) {
                out.post(Entry::Have { request });
            }
        }
    }

    /// 4.3: NEED is answered by the leader and by whoever posted HAVE; for a decided slot by everybody, because a bad
    /// leader may keep the body to itself. Once a candidate and digest.
    pub(super) fn handle_need(&mut self, sender: TwinId, digest: Digest, out: &mut Effects) {
        if sender == self.config.twin() {
            return;
        }
        // A leader asks when it has lost by a restart what it proposed.
        let view = self.log.live_view().filter(|_| self.log.is_primary());
        let leader = view.map(|view| self.config.shape.leader(view).twin);
        let leads = leader == Some(self.config.twin()) || leader == Some(sender);
        let named = |private: &&mut Private| private.requests.iter().any(|r| r.digest == digest);
        if let Some(private) = self.voting.candidates.values_mut().find(named) {
            let named = private.requests.iter().find(|r| r.digest == digest);
            let Some(request) = named.and_then(|r| self.pool.find(r)) else {
                return;
            };
            if (leads || self.log.is_nacked(request.request.client)) && private.given.insert(digest)
            {
                let request = request.clone();
                out.post(Entry::Body { request });
            }
        } else if let Some((slot, request)) = self.slots.find_body(digest) {
            if self.voting.given.entry(slot).or_default().insert(digest) {
                // Decided: the digest alone vouches for it.
                let request = SignedRequest {
                    request: request.clone(),
                    host: self.config.host(),
                    macs: Vec::new(),
                };
                out.post(Entry::Body { request });
            }
            let slots = &self.slots;
            self.voting
                .given
                .retain(|slot, _| slots.get(*slot).is_some());
        }
    }

    /// An authentic body: fills it in wherever this twin lacks it.
    pub(super) fn fill_body(&mut self, digest: Digest, request: &Request) {
        self.voting.fill(digest, request);
        let (slots, completed) = (&mut self.slots, &mut self.voting.completed);
        self.voting.incomplete.retain(|slot, _| {
            let Some(data) = slots.get_mut(*slot) else {
                return false;
            };
            data.fill(digest, request);
            if data.is_complete() {
                completed.push(*slot);
            }
            !data.is_complete()
        });
    }

    /// Slots whose missing bodies have come since they were decided go to the write-ahead log, and are signed.
    pub(super) fn poll_completed(&mut self, out: &mut Effects) {
        for slot in std::mem::take(&mut self.voting.completed) {
            if self.slots.get(slot).is_some() {
                self.handle_completed(slot, out);
            }
        }
    }

    /// Whether a decided slot lacks this body here.
    fn slot_lacks(&self, digest: Digest) -> bool {
        let mut slots = self.voting.incomplete.keys();
        slots.any(|slot| self.slots.get(*slot).is_some_and(|data| data.lacks(digest)))
    }

    /// A BODY is in the log. Only what fails in the leader's BODY is NACKed (4.3).
    pub(super) fn handle_body(&mut self, sender: TwinId, signed: &SignedRequest) {
        let digest = signed.request.digest();
        if sender == self.config.twin() && !self.recovery.is_replaying() {
            return;
        }
        if self.slot_lacks(digest) {
            self.fill_body(digest, &signed.request);
            return;
        }
        if !self.voting.lacks(digest) {
            return;
        }
        let reference = RequestRef {
            client: signed.request.client,
            seq: signed.request.seq,
            digest,
        };
        // HAVEs of q twins stand for the MAC.
        if self.log.is_had(&reference) || self.authenticate(signed).is_ok() {
            self.fill_body(digest, &signed.request);
            return;
        }
        let from_leader = self
            .log
            .live_view()
            .is_some_and(|view| self.config.shape.leader(view).twin == sender);
        for private in self.voting.candidates.values_mut() {
            if !private.requests.contains(&reference) {
                continue;
            }
            if private.unverified.iter().all(|(known, _)| *known != digest) {
                private.unverified.push((digest, signed.request.clone()));
            }
            if from_leader && !private.failed.contains(&reference) {
                private.failed.push(reference);
            }
        }
    }

    /// Asks for bodies that have not come from their clients in time, once a candidate or decided slot.
    pub(super) fn voting_timer(&mut self, out: &mut Effects) {
        let tuning = &self.config.tuning;
        let due = self.now.mono_us.saturating_sub(tuning.need_after_us);
        let mut missing: Vec<Digest> = Vec::new();
        // The candidates are few: as many as may be in flight. A leader has what it proposes.
        let leads = self.is_leader();
        for private in self.voting.candidates.values_mut() {
            if !leads && private.seen_us <= due {
                let unasked: Vec<Digest> = private.unasked().collect();
                private.asked.extend(&unasked);
                missing.extend(unasked);
            }
        }
        for (slot, incomplete) in &mut self.voting.incomplete {
            if incomplete.since_us <= due {
                let data = self.slots.get(*slot);
                let unasked = data.map(|d| d.missing()).unwrap_or_default();
                missing.extend(unasked.into_iter().filter(|d| incomplete.asked.insert(*d)));
            }
        }
        for digest in missing {
            out.post(Entry::Need { digest });
        }
    }

    pub(super) fn voting_deadline(&self) -> Option<u64> {
        let waits =
            |private: &&Private| private.voted.is_none() && private.unasked().next().is_some();
        let mut candidates = self.voting.candidates.values();
        let candidate = candidates.find(waits).map(|p| p.seen_us);
        let candidate = candidate.filter(|_| !self.is_leader());
        let slot = self
            .voting
            .incomplete
            .iter()
            .find_map(|(slot, incomplete)| {
                let missing = self.slots.get(*slot)?.missing();
                let unasked = missing.iter().any(|d| !incomplete.asked.contains(d));
                unasked.then_some(incomplete.since_us)
            });
        let first = [candidate, slot].into_iter().flatten().min()?;
        Some(first + self.config.tuning.need_after_us)
    }
}
