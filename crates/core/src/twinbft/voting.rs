//! Followers vote on candidates; whoever has a body that a sibling lacks posts it (protocol.md 4.3).

use std::collections::{BTreeMap, BTreeSet};

use twinbft_types::{
    Attempt, Authenticator, ClientId, Digest, Entry, Request, RequestRef, Seq, SignedRequest, Slot,
    Statement, TwinId,
};

use super::Replica;
use crate::evidence::{Event, EventKind};
use crate::io::{Effect, Effects};
use crate::mutants::{Rule, out as is_out};
use crate::record::Record;
use crate::session::Standing;

/// Digests for which this twin remembers that it posted NEED or BODY.
const REMEMBERED_MAX: usize = 4096;

/// This twin's side of the live candidates.
#[derive(Debug, Default)]
pub struct Voting {
    candidates: BTreeMap<Slot, Private>,
    /// Requests of candidates and of decided slots whose execution has not begun.
    in_log: BTreeMap<(ClientId, Seq), Slot>,
    /// Decided slots of which this twin lacks bodies; only for m > q.
    incomplete: BTreeMap<Slot, u64>,
    /// Those of them that have become complete in this step.
    completed: Vec<Slot>,
    needed: BTreeSet<Digest>,
    given: BTreeSet<Digest>,
}

/// What a twin knows of a candidate besides the log.
#[derive(Debug)]
pub struct Private {
    attempt: Attempt,
    pub requests: Vec<RequestRef>,
    pub bodies: Vec<Option<Request>>,
    /// Signatures on ORDER that came with ENDORSEs (3: only for m = q).
    pub signatures: Vec<Authenticator>,
    /// Requests whose BODY failed here.
    failed: Vec<RequestRef>,
    /// Their bodies: a decision in spite of this twin vouches for them.
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

/// What a follower makes of a candidate.
enum Judgement {
    Endorse,
    Nack(Vec<RequestRef>),
    Wait,
}

impl Private {
    /// Whether this twin endorsed it, and so has it in its write-ahead log.
    pub fn is_endorsed(&self) -> bool {
        self.voted == Some(Vote::Endorse)
    }
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
        self.incomplete.insert(slot, now_us);
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

/// Remembers that something was posted for this digest; whether it is the first time.
fn remember(set: &mut BTreeSet<Digest>, digest: Digest) -> bool {
    if set.len() >= REMEMBERED_MAX {
        set.clear();
    }
    set.insert(digest)
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
        {
            private.signatures.push(authenticator.clone());
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
        if !private.proper || t <= previous_us {
            return Judgement::Wait;
        }
        // 4.3: what is merely early waits.
        if slot > self.high_mark() || t > (previous_us + 1).max(clock.saturating_add(bound)) {
            return Judgement::Wait;
        }
        // 4.3: a late timestamp is NACKed naming no request.
        if t < clock.saturating_sub(bound) && t != previous_us + 1 {
            return Judgement::Nack(Vec::new());
        }
        let mut failed = private.failed.clone();
        failed.retain(|request| !self.log.is_had(request));
        if !failed.is_empty() {
            return Judgement::Nack(failed);
        }
        let complete = private.bodies.iter().all(Option::is_some);
        let early = private
            .requests
            .iter()
            .any(|r| self.sessions.standing(r.client, r.seq) == Standing::Early);
        if complete && (!early || is_out(Rule::ClientWindow)) {
            Judgement::Endorse
        } else {
            Judgement::Wait
        }
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
        let signs = self.config.shape.unanimous() && self.views.left() <= view;
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

    /// 4.3: NEED is answered by the leader and by whoever posted HAVE, once a digest.
    pub(super) fn handle_need(&mut self, sender: TwinId, digest: Digest, out: &mut Effects) {
        if sender == self.config.twin() || !self.log.is_primary() {
            return;
        }
        let Some(request) = self.find_body(digest) else {
            return;
        };
        let client = request.request.client;
        let had =
            self.log.is_nacked(client) && self.pool.find(&request.request.reference()).is_some();
        // A leader asks when it has lost by a restart what it proposed.
        let lost = self
            .log
            .live_view()
            .is_some_and(|view| self.config.shape.leader(view).twin == sender);
        if (self.is_leader() || had || lost) && remember(&mut self.voting.given, digest) {
            out.post(Entry::Body { request });
        }
    }

    /// A body that a live candidate or a decided slot names.
    fn find_body(&self, digest: Digest) -> Option<SignedRequest> {
        let mut references = self
            .voting
            .candidates
            .values()
            .flat_map(|private| &private.requests);
        if let Some(reference) = references.find(|r| r.digest == digest) {
            return self.pool.find(reference).cloned();
        }
        // Decided: the digest alone vouches for it.
        let request = self.slots.find_body(digest)?.clone();
        Some(SignedRequest {
            request,
            host: self.config.host(),
            macs: Vec::new(),
        })
    }

    /// An authentic body: fills it in wherever this twin lacks it.
    pub(super) fn fill_body(&mut self, digest: Digest, request: &Request) {
        self.voting.fill(digest, request);
        let slots = &mut self.slots;
        let completed = &mut self.voting.completed;
        self.voting.incomplete.retain(|slot, _| {
            slots.get_mut(*slot).is_some_and(|data| {
                data.fill(digest, request);
                if data.is_complete() {
                    completed.push(*slot);
                }
                !data.is_complete()
            })
        });
    }

    /// Slots whose missing bodies have come since they were decided go to the write-ahead log.
    pub(super) fn poll_completed(&mut self, out: &mut Effects) {
        for slot in std::mem::take(&mut self.voting.completed) {
            if self.slots.get(slot).is_some() {
                self.persist_slot(slot, out);
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
            if private.requests.contains(&reference) {
                private.unverified.push((digest, signed.request.clone()));
                if from_leader {
                    private.failed.push(reference);
                }
            }
        }
    }

    /// Asks for bodies that have not come from their clients in time.
    pub(super) fn voting_timer(&mut self, out: &mut Effects) {
        let leads = self.is_leader();
        let due = self
            .now
            .mono_us
            .saturating_sub(self.config.tuning.need_after_us);
        let candidates = self.voting.candidates.values();
        let mut missing: Vec<Digest> = candidates
            .filter(|private| private.seen_us <= due && !leads)
            .flat_map(|private| private.requests.iter().zip(&private.bodies))
            .filter(|(_, body)| body.is_none())
            .map(|(request, _)| request.digest)
            .collect();
        for (slot, _) in self
            .voting
            .incomplete
            .iter()
            .filter(|(_, since)| **since <= due)
        {
            missing.extend(
                self.slots
                    .get(*slot)
                    .map(super::slots::SlotData::missing)
                    .unwrap_or_default(),
            );
        }
        for digest in missing {
            if remember(&mut self.voting.needed, digest) {
                out.post(Entry::Need { digest });
            }
        }
    }

    pub(super) fn voting_deadline(&self) -> Option<u64> {
        let leads = self.is_leader();
        let unasked = |digest: &Digest| !self.voting.needed.contains(digest);
        let waits = |private: &&Private| {
            let mut pairs = private.requests.iter().zip(&private.bodies);
            !leads
                && private.voted.is_none()
                && pairs.any(|(r, b)| b.is_none() && unasked(&r.digest))
        };
        let candidate = self
            .voting
            .candidates
            .values()
            .find(waits)
            .map(|p| p.seen_us);
        let slot = self
            .voting
            .incomplete
            .iter()
            .find(|(slot, _)| {
                let data = self.slots.get(**slot);
                data.is_some_and(|data| data.missing().iter().any(unasked))
            })
            .map(|(_, since)| *since);
        let first = [candidate, slot].into_iter().flatten().min()?;
        Some(first + self.config.tuning.need_after_us)
    }
}
