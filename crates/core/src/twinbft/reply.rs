//! Cross-checked results go out to clients (protocol.md 4.8).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use twinbft_types::wire::{Outcome, Reply};
use twinbft_types::{
    ClientId, Digest, Entry, HostId, Mac, RequestRef, ResultMac, Seq, Slot, TwinId,
};

use super::Replica;
use crate::io::{Effect, Effects, Refusal};

/// Slots whose MACs are kept until their replies are sent; the lowest gives way.
const SLOTS_MAX: usize = 256;
/// In batches up to this size the twin whose RESULT completes the certificate sends all replies.
const LAST_SENDS_MAX: usize = 8;
/// Retransmissions under way; the oldest gives way.
const AGAIN_MAX: usize = 1024;
/// The same request is answered again at most this often.
const AGAIN_EVERY_US: u64 = 50_000;

/// What each twin said about one slot, for the MACs in it.
type Said = Vec<(TwinId, Digest, Vec<ResultMac>)>;

/// Replies under way.
#[derive(Clone, Debug, Default)]
pub struct Replies {
    slots: BTreeMap<Slot, Said>,
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
    said: Vec<(TwinId, Slot, Digest, ResultMac)>,
}

impl Replies {
    pub fn len(&self) -> usize {
        self.slots.len() + self.again.len()
    }

    pub const fn cross_checked(&self) -> u64 {
        self.cross_checked
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
        slot: Slot,
        history: Digest,
        results: &[ResultMac],
    ) {
        // What counts for nothing in the log is not kept either: no reply may rest on it, and it may be large.
        let is_batch = results.len() <= self.config.tuning.batch_requests_max;
        if !self.log.compares(slot) || !is_batch {
            return;
        }
        let said = self.replies.slots.entry(slot).or_default();
        if said.iter().any(|(twin, _, _)| *twin == sender) {
            return;
        }
        said.push((sender, history, results.to_vec()));
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
                && let Some((digest, macs)) = self.matching_macs(slot, history, *place)
            {
                self.send_reply(request, (slot, digest), macs, false, out);
            }
        }
    }

    /// With m = q, and when the siblings' RESULTs are in the log already and agree with this twin's, the replies
    /// are certified by what this twin is about to post: it sends those that are its to send. Answers whether all
    /// of the slot's are. A REPLY is signed under release: the slot is decided or accepted in the log (4.8).
    pub(super) fn reply_early(
        &mut self,
        slot: Slot,
        history: Digest,
        own: &[ResultMac],
        out: &mut Effects,
    ) -> bool {
        let shape = self.config.shape;
        let Some(said) = self.replies.slots.get(&slot) else {
            return false;
        };
        let equal = |(_, h, results): &(TwinId, Digest, Vec<ResultMac>)| {
            let same = |(a, b): (&ResultMac, &ResultMac)| a.digest == b.digest;
            *h == history && results.len() == own.len() && results.iter().zip(own).all(same)
        };
        let me = self.config.twin();
        let others = said.iter().filter(|(twin, _, _)| *twin != me).count();
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
                .filter_map(|(twin, _, results)| Some((*twin, results.get(place)?.mac)))
                .collect();
            macs.push((self.config.twin(), own.mac));
            self.send_reply(request, (slot, own.digest), macs, false, out);
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

    /// The MACs of the twins whose result at this place is the certified one.
    fn matching_macs(
        &self,
        slot: Slot,
        history: Digest,
        place: usize,
    ) -> Option<(Digest, Vec<(TwinId, Mac)>)> {
        let said: Vec<(TwinId, ResultMac)> = self
            .replies
            .slots
            .get(&slot)?
            .iter()
            .filter(|(_, h, _)| *h == history)
            .filter_map(|(twin, _, results)| Some((*twin, *results.get(place)?)))
            .collect();
        quorum_of(&said, self.config.shape.twin_quorum())
    }

    fn send_reply(
        &self,
        request: &RequestRef,
        (slot, digest): (Slot, Digest),
        macs: Vec<(TwinId, Mac)>,
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
            Some(result) if again || result.len() <= 32 || self.sends_result(request) => {
                Outcome::Result(result.clone())
            }
            Some(_) | None => Outcome::Digest(kept.digest),
        };
        out.push(Effect::Reply(Reply {
            host: self.config.host(),
            incarnation: self.log.incarnation(self.config.host()),
            slot,
            view: None,
            client: request.client,
            seq: request.seq,
            outcome,
            macs,
        }));
    }

    /// 4.8: the host `(c + s) mod N` sends the result itself.
    fn sends_result(&self, request: &RequestRef) -> bool {
        let number = u64::from(request.client.key)
            .wrapping_add(request.client.session)
            .wrapping_add(request.seq.0);
        let hosts = u64::from(self.config.shape.hosts());
        HostId(u8::try_from(number % hosts).expect("below N")) == self.config.host()
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
        let result = self.result_mac(kept.slot, &request, kept.digest);
        out.post(Entry::ResultAgain {
            client,
            seq,
            slot: kept.slot,
            history: kept.history,
            view: None,
            result,
        });
    }

    /// A twin's answer to a retransmission is in the log; when `q` agree, all send.
    pub(super) fn handle_result_again(
        &mut self,
        sender: TwinId,
        (client, seq): (ClientId, Seq),
        slot: Slot,
        history: Digest,
        result: ResultMac,
        out: &mut Effects,
    ) {
        let again = self.replies.again(client, seq);
        again.said.retain(|(twin, ..)| *twin != sender);
        again.said.push((sender, slot, history, result));
        let said: Vec<(TwinId, ResultMac)> = again
            .said
            .iter()
            .filter(|(_, s, h, _)| *s == slot && *h == history)
            .map(|(twin, _, _, result)| (*twin, *result))
            .collect();
        let quorum = quorum_of(&said, self.config.shape.twin_quorum());
        if let Some((digest, macs)) = quorum {
            let request = RequestRef {
                client,
                seq,
                digest: Digest::ZERO,
            };
            self.send_reply(&request, (slot, digest), macs, true, out);
        }
    }
}

/// The result that `quorum` twins agree on, with their MACs.
fn quorum_of(said: &[(TwinId, ResultMac)], quorum: usize) -> Option<(Digest, Vec<(TwinId, Mac)>)> {
    said.iter().find_map(|(_, candidate)| {
        let macs: Vec<(TwinId, Mac)> = said
            .iter()
            .filter(|(_, result)| result.digest == candidate.digest)
            .map(|(twin, result)| (*twin, result.mac))
            .collect();
        (macs.len() >= quorum).then_some((candidate.digest, macs))
    })
}
