//! Cross-checked results go out to clients (protocol.md 4.8).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use twinbft_types::wire::{Outcome, Reply};
use twinbft_types::{
    ClientId, Digest, Entry, HostId, Mac, RequestRef, ResultMac, Seq, Slot, TwinId, View,
};

use super::Replica;
use crate::io::{Effect, Effects, Refusal};
use crate::record::Record;

/// Slots whose MACs are kept until their replies are sent; the lowest gives way.
const SLOTS_MAX: usize = 256;
/// In batches up to this size the twin whose RESULT completes the certificate sends all replies.
const LAST_SENDS_MAX: usize = 8;
/// Retransmissions under way; the oldest gives way.
const AGAIN_MAX: usize = 1024;
/// The same request is answered again at most this often.
const AGAIN_EVERY_US: u64 = 50_000;

/// What a twin said about one slot, for the MACs in it.
#[derive(Clone, Debug)]
struct Said {
    twin: TwinId,
    /// Only when tentative (4.8).
    view: Option<View>,
    history: Digest,
    results: Vec<ResultMac>,
}

/// A result that `q` twins certify: the view in which it is tentative, its digest, and their MACs.
type Certified = (Option<View>, Digest, Vec<(TwinId, Mac)>);

/// Replies under way.
#[derive(Clone, Debug, Default)]
pub struct Replies {
    slots: BTreeMap<Slot, Vec<Said>>,
    /// Certified requests of slots that this twin has not executed yet itself.
    late: BTreeMap<Slot, (TwinId, Digest, Vec<usize>)>,
    /// Slots whose replies went out before this twin's RESULT was read back.
    early: BTreeSet<Slot>,
    again: BTreeMap<(ClientId, Seq), Again>,
    again_order: VecDeque<(ClientId, Seq)>,
    /// Requests in cross-checked, certified results.
    cross_checked: u64,
}

#[derive(Clone, Debug, Default)]
struct Again {
    posted_us: Option<u64>,
    /// Of each twin its latest tentative word and its latest committed one.
    said: Vec<AgainSaid>,
}

#[derive(Clone, Debug)]
struct AgainSaid {
    twin: TwinId,
    view: Option<View>,
    slot: Slot,
    history: Digest,
    result: ResultMac,
}

impl Replies {
    pub fn len(&self) -> usize {
        self.slots.len() + self.again.len()
    }

    pub const fn cross_checked(&self) -> u64 {
        self.cross_checked
    }

    /// Drops what was said of slots above this one.
    fn drop_above(&mut self, slot: Slot) {
        let above = slot.next();
        self.slots.split_off(&above);
        self.late.split_off(&above);
        self.early.split_off(&above);
    }

    fn again(&mut self, client: ClientId, seq: Seq) -> &mut Again {
        let key = (client, seq);
        if !self.again.contains_key(&key) {
            if self.again_order.len() >= AGAIN_MAX
                && let Some(oldest) = self.again_order.pop_front()
            {
                self.again.remove(&oldest);
            }
            self.again_order.push_back(key);
        }
        self.again.entry(key).or_default()
    }
}

impl Replica {
    /// A twin's RESULT is in the log: keep its MACs until the replies are out.
    pub(super) fn note_results(
        &mut self,
        sender: TwinId,
        (view, slot, history): (Option<View>, Slot, Digest),
        results: &[ResultMac],
    ) {
        // What counts for nothing in the log is not kept either: no reply may rest on it, and it may be large.
        let is_batch = results.len() <= self.config.tuning.batch_requests_max;
        if !self.log.compares(slot) || !is_batch {
            return;
        }
        let said = self.replies.slots.entry(slot).or_default();
        // As the log counts them: a twin's first, or its first of a later view.
        if said.iter().any(|s| s.twin == sender && s.view >= view) {
            return;
        }
        said.retain(|s| s.twin != sender);
        said.push(Said {
            twin: sender,
            view,
            history,
            results: results.to_vec(),
        });
        if self.replies.slots.len() > SLOTS_MAX {
            self.replies.slots.pop_first();
        }
    }

    /// `q` twins agree on these requests' results, by the RESULT that `last` posted.
    pub(super) fn handle_certified(
        &mut self,
        last: TwinId,
        slot: Slot,
        history: Digest,
        places: Vec<usize>,
        out: &mut Effects,
    ) {
        self.replies.cross_checked += places.len() as u64;
        if self.has_replied(slot) {
            return;
        }
        if self.execution.executed() < slot {
            let late = self.replies.late.entry(slot);
            late.or_insert_with(|| (last, history, Vec::new()))
                .2
                .extend(places);
            if self.replies.late.len() > SLOTS_MAX {
                self.replies.late.pop_first();
            }
        } else {
            self.reply_certified(last, slot, history, &places, out);
        }
    }

    /// A view begins with a log that ends here (6): nothing that was said of slots beyond counts for those that take
    /// their place.
    pub(super) fn replies_dropped(&mut self, end: Slot) {
        self.replies.drop_above(end);
    }

    /// Slots above this one are executed again, perhaps others: what certifies their results may come again too.
    pub(super) fn replies_undone(&mut self, base: Slot) {
        self.replies.late.split_off(&base.next());
        self.replies.early.split_off(&base.next());
    }

    /// This twin has executed a slot whose results its siblings had certified before.
    pub(super) fn reply_late(&mut self, slot: Slot, out: &mut Effects) {
        if let Some((last, history, places)) = self.replies.late.remove(&slot) {
            self.reply_certified(last, slot, history, &places, out);
        }
    }

    fn reply_certified(
        &mut self,
        last: TwinId,
        slot: Slot,
        history: Digest,
        places: &[usize],
        out: &mut Effects,
    ) {
        let Some(data) = self.slots.get(slot).filter(|data| data.history == history) else {
            return;
        };
        let batch = data.requests.len();
        for place in places {
            let Some(request) = data.requests.get(*place) else {
                continue;
            };
            if self.sends_reply(request.client, slot, batch, last)
                && let Some(certified) = self.matching_macs(slot, history, *place)
            {
                self.send_reply(request, slot, certified, false, out);
            }
        }
    }

    /// With m = q, and when the siblings' RESULTs are in the log already and agree with this twin's, the replies
    /// are certified by what this twin is about to post: it sends those that are its to send. Answers whether all
    /// of the slot's are. A REPLY is signed under release: the slot is decided or accepted in the log (4.8).
    pub(super) fn reply_early(
        &mut self,
        (view, slot): (Option<View>, Slot),
        history: Digest,
        own: &[ResultMac],
        out: &mut Effects,
    ) -> bool {
        let shape = self.config.shape;
        let Some(said) = self.replies.slots.get(&slot) else {
            return false;
        };
        let equal = |s: &Said| {
            let same = |(a, b): (&ResultMac, &ResultMac)| a.digest == b.digest;
            (s.view, s.history) == (view, history)
                && s.results.len() == own.len()
                && s.results.iter().zip(own).all(same)
        };
        let me = self.config.twin();
        let others = said.iter().filter(|s| s.twin != me).count();
        let is_last = others == said.len()
            && others + 1 == usize::from(shape.twins())
            && said.iter().all(equal);
        let is_small = own.len() <= LAST_SENDS_MAX;
        if !shape.unanimous() || !is_last || !is_small {
            return false;
        }
        let data = self.slots.get(slot).expect("executing slots are held");
        for (place, (request, own)) in data.requests.iter().zip(own).enumerate() {
            let mut macs: Vec<(TwinId, Mac)> = said
                .iter()
                .filter_map(|s| Some((s.twin, s.results.get(place)?.mac)))
                .collect();
            macs.push((self.config.twin(), own.mac));
            self.send_reply(request, slot, (view, own.digest, macs), false, out);
        }
        self.replies.early.insert(slot);
        if self.replies.early.len() > SLOTS_MAX {
            self.replies.early.pop_first();
        }
        true
    }

    /// Whether the replies of this slot went out before this twin's RESULT was read back.
    pub(super) fn has_replied(&self, slot: Slot) -> bool {
        self.replies.early.contains(&slot)
    }

    /// All twins have posted their results of this slot: nothing more comes of them.
    pub(super) fn close_results(&mut self, slot: Slot) {
        if self.log.result_votes(slot) == 0 {
            if !self.replies.late.contains_key(&slot) {
                self.replies.slots.remove(&slot);
            }
            self.replies.early.remove(&slot);
        }
    }

    /// 4.8: one twin sends the reply: `(c + n) mod m`. In a small batch with m = q, the one whose RESULT completes
    /// the certificate: it can do so at once, which spares the client a wake-up of the other
    /// (docs/adr/0008-last-twin-replies.md).
    fn sends_reply(&self, client: ClientId, slot: Slot, batch: usize, last: TwinId) -> bool {
        let shape = self.config.shape;
        if shape.unanimous() && batch <= LAST_SENDS_MAX {
            return last == self.config.twin();
        }
        let number = u64::from(client.key)
            .wrapping_add(client.session)
            .wrapping_add(slot.0);
        // 9: clients need not wait for one that nobody listens to.
        let mut senders = self.log.listened_to();
        let count = self.log.listened_to().count() as u64;
        let place = usize::try_from(number % count).expect("a host has few twins");
        senders.nth(place) == Some(self.config.twin())
    }

    /// The MACs of the twins whose result at this place is the certified one, in one view.
    fn matching_macs(&self, slot: Slot, history: Digest, place: usize) -> Option<Certified> {
        let said: Vec<(TwinId, Option<View>, ResultMac)> = self
            .replies
            .slots
            .get(&slot)?
            .iter()
            .filter(|s| s.history == history)
            .filter_map(|s| Some((s.twin, s.view, *s.results.get(place)?)))
            .collect();
        quorum_of(&said, self.config.shape.twin_quorum())
    }

    fn send_reply(
        &self,
        request: &RequestRef,
        slot: Slot,
        (view, digest, macs): Certified,
        again: bool,
        out: &mut Effects,
    ) {
        // A no-op has no reply, and neither has a result that is not this twin's own.
        let Some(kept) = self
            .sessions
            .kept(request.client, request.seq)
            .filter(|kept| kept.slot == slot && kept.digest == digest)
        else {
            return;
        };
        let outcome = match &kept.result {
            Some(result) if again || result.len() <= 32 || self.sends_result(request, slot) => {
                Outcome::Result(result.clone())
            }
            Some(_) | None => Outcome::Digest(kept.digest),
        };
        out.push(Effect::Reply(Reply {
            host: self.config.host(),
            incarnation: self.log.incarnation(self.config.host()),
            slot,
            view,
            client: request.client,
            seq: request.seq,
            outcome,
            macs,
        }));
    }

    /// 4.8: the host `(c + s) mod N` sends the result itself. So does the primary when that host is more than the pipeline
    /// behind it: it may be down, and the client would have to send again, which takes it half a second.
    fn sends_result(&self, request: &RequestRef, slot: Slot) -> bool {
        let number = u64::from(request.client.key)
            .wrapping_add(request.client.session)
            .wrapping_add(request.seq.0);
        let hosts = u64::from(self.config.shape.hosts());
        let sender = HostId(u8::try_from(number % hosts).expect("below N"));
        let is_behind = || {
            let known = self.commit.acknowledged(sender, self.log.installed());
            known.0 + self.config.tuning.pipeline_depth < slot.0
        };
        sender == self.config.host() || (self.log.is_primary() && is_behind())
    }

    /// 4.8: on a retransmission twins post RESULT afresh from the session table.
    pub(super) fn answer_again(&mut self, client: ClientId, seq: Seq, out: &mut Effects) {
        // Its reply goes out when the service has answered.
        if self.execution.is_under_way(client, seq) {
            return;
        }
        let Some(kept) = self.sessions.kept(client, seq).cloned() else {
            out.push(Effect::Refuse {
                client,
                seq,
                reason: Refusal::ResultDiscarded,
            });
            return;
        };
        if kept.result.is_none() {
            out.push(Effect::Refuse {
                client,
                seq,
                reason: Refusal::ResultDiscarded,
            });
        }
        let now = self.now.mono_us;
        let again = self.replies.again(client, seq);
        if again.posted_us.is_some_and(|at| at + AGAIN_EVERY_US > now) {
            return;
        }
        again.posted_us = Some(now);
        let request = RequestRef {
            client,
            seq,
            digest: Digest::ZERO,
        };
        let views: Vec<Option<View>> = self.repeat_views(kept.slot).collect();
        for view in views {
            let entry = Entry::ResultAgain {
                client,
                seq,
                slot: kept.slot,
                history: kept.history,
                view,
                result: self.result_mac((view, kept.slot), &request, kept.digest),
            };
            // 3, durability rule.
            if view.is_some() {
                out.push(Effect::Persist(Record::Promise(entry.clone())));
            }
            out.post(entry);
        }
    }

    /// A twin's answer to a retransmission is in the log; when `q` agree, all send.
    pub(super) fn handle_result_again(
        &mut self,
        sender: TwinId,
        (client, seq): (ClientId, Seq),
        (view, slot, history): (Option<View>, Slot, Digest),
        result: ResultMac,
        out: &mut Effects,
    ) {
        let again = self.replies.again(client, seq);
        again
            .said
            .retain(|s| s.twin != sender || s.view.is_some() != view.is_some());
        again.said.push(AgainSaid {
            twin: sender,
            view,
            slot,
            history,
            result,
        });
        let said: Vec<(TwinId, Option<View>, ResultMac)> = again
            .said
            .iter()
            .filter(|s| (s.view, s.slot, s.history) == (view, slot, history))
            .map(|s| (s.twin, s.view, s.result))
            .collect();
        let quorum = quorum_of(&said, self.config.shape.twin_quorum());
        if let Some(certified) = quorum {
            let request = RequestRef {
                client,
                seq,
                digest: Digest::ZERO,
            };
            self.send_reply(&request, slot, certified, true, out);
        }
    }
}

/// The result that `quorum` twins agree on, in one view, with their MACs.
fn quorum_of(said: &[(TwinId, Option<View>, ResultMac)], quorum: usize) -> Option<Certified> {
    said.iter().find_map(|(_, view, candidate)| {
        let macs: Vec<(TwinId, Mac)> = said
            .iter()
            .filter(|(_, v, result)| (v, result.digest) == (view, candidate.digest))
            .map(|(twin, _, result)| (*twin, result.mac))
            .collect();
        (macs.len() >= quorum).then_some((*view, candidate.digest, macs))
    })
}
