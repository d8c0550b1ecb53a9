//! Cross-checked results go out to clients (protocol.md 4.8).

use std::collections::{BTreeMap, VecDeque};

use twinbft_types::wire::{Outcome, Reply};
use twinbft_types::{
    ClientId, Digest, Entry, HostId, Mac, RequestRef, ResultMac, Seq, Slot, TwinId,
};

use super::Replica;
use crate::io::{Effect, Effects, Refusal};

/// Slots whose MACs are kept until their replies are sent; the lowest gives way.
const SLOTS_MAX: usize = 256;
/// Retransmissions under way; the oldest gives way.
const AGAIN_MAX: usize = 1024;
/// The same request is answered again at most this often.
const AGAIN_EVERY_US: u64 = 50_000;

/// What each twin said about one slot, for the MACs in it.
type Said = Vec<(TwinId, Digest, Vec<ResultMac>)>;

/// Replies under way.
#[derive(Debug, Default)]
pub struct Replies {
    slots: BTreeMap<Slot, Said>,
    /// Certified requests of slots that this twin has not executed yet itself.
    late: BTreeMap<Slot, (Digest, Vec<usize>)>,
    again: BTreeMap<(ClientId, Seq), Again>,
    again_order: VecDeque<(ClientId, Seq)>,
    /// Requests in cross-checked, certified results.
    cross_checked: u64,
}

#[derive(Debug, Default)]
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
        let said = self.replies.slots.entry(slot).or_default();
        if said.iter().any(|(twin, _, _)| *twin == sender) {
            return;
        }
        said.push((sender, history, results.to_vec()));
        if self.replies.slots.len() > SLOTS_MAX {
            self.replies.slots.pop_first();
        }
    }

    /// `q` twins agree on these requests' results: the designated twin sends the replies.
    pub(super) fn handle_certified(
        &mut self,
        slot: Slot,
        history: Digest,
        places: Vec<usize>,
        out: &mut Effects,
    ) {
        self.replies.cross_checked += places.len() as u64;
        if self.execution.executed() < slot {
            let late = self.replies.late.entry(slot);
            late.or_insert_with(|| (history, Vec::new()))
                .1
                .extend(places);
            if self.replies.late.len() > SLOTS_MAX {
                self.replies.late.pop_first();
            }
        } else {
            self.reply_certified(slot, history, &places, out);
        }
    }

    /// This twin has executed a slot whose results its siblings had certified before.
    pub(super) fn reply_late(&mut self, slot: Slot, out: &mut Effects) {
        if let Some((history, places)) = self.replies.late.remove(&slot) {
            self.reply_certified(slot, history, &places, out);
        }
    }

    fn reply_certified(
        &mut self,
        slot: Slot,
        history: Digest,
        places: &[usize],
        out: &mut Effects,
    ) {
        let Some(data) = self.slots.get(slot).filter(|data| data.history == history) else {
            return;
        };
        for place in places {
            let Some(request) = data.requests.get(*place) else {
                continue;
            };
            if self.is_designated(request.client, slot)
                && let Some((digest, macs)) = self.matching_macs(slot, history, *place)
            {
                self.send_reply(request, (slot, digest), macs, false, out);
            }
        }
        let all = usize::from(self.config.shape.twins());
        if self
            .replies
            .slots
            .get(&slot)
            .is_some_and(|said| said.len() >= all)
        {
            self.replies.slots.remove(&slot);
        }
    }

    /// 4.8: one designated twin, `(c + n) mod m`, sends the reply.
    fn is_designated(&self, client: ClientId, slot: Slot) -> bool {
        let number = u64::from(client.key)
            .wrapping_add(client.session)
            .wrapping_add(slot.0);
        number % u64::from(self.config.shape.twins()) == u64::from(self.config.twin().0)
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
            incarnation: self.config.incarnation,
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
