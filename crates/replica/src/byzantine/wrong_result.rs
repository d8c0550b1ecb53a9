//! The double that lies about results.

use std::collections::BTreeMap;

use twinbft_core::{Effect, Effects};
use twinbft_types::wire::{Outcome, Reply};
use twinbft_types::{
    ClientId, Digest, Domain, Entry, Incarnation, KeyRing, Mac, ProcessId, ReplicaId, ResultMac,
    Seq, Signed, Slot, Statement,
};

/// Slots whose requests are remembered: more than the core executes ahead of its RESULTs.
const SLOTS_MAX: usize = 64;

/// Alters digests and signs the altered ones.
pub(super) struct WrongResult {
    me: ReplicaId,
    incarnation: Incarnation,
    keys: KeyRing,
    /// Whose requests the last slots executed, in order, no-ops left out.
    executed: BTreeMap<Slot, Vec<(ClientId, Seq)>>,
}

impl WrongResult {
    pub(super) fn new(me: ReplicaId, incarnation: Incarnation, keys: KeyRing) -> Self {
        Self {
            me,
            incarnation,
            keys,
            executed: BTreeMap::new(),
        }
    }

    /// Remembers whose results a slot will have.
    pub(super) fn observe(&mut self, effects: &Effects) {
        for effect in &effects.0 {
            if let Effect::Execute(batch) = effect {
                let requests = batch.requests.iter().map(|r| (r.client, r.seq)).collect();
                self.executed.insert(batch.slot, requests);
                if self.executed.len() > SLOTS_MAX {
                    self.executed.pop_first();
                }
            }
        }
    }

    /// Lies.
    pub(super) fn rewrite(&mut self, effects: &mut Effects) {
        for effect in &mut effects.0 {
            // A twin that completes a certificate may send the reply itself; this one has the same lie for clients.
            if let Effect::Reply(reply) = effect {
                self.alter_reply(reply);
            }
            let Effect::Post { entry, .. } = effect else {
                continue;
            };
            match entry {
                Entry::Results {
                    slot,
                    view,
                    results,
                    ..
                } => {
                    let (slot, view) = (*slot, *view);
                    let requests = self.executed.get(&slot).cloned().unwrap_or_default();
                    // No-ops have no digest, and the service never saw them.
                    let real = results
                        .iter_mut()
                        .filter(|result| result.digest != Digest::ZERO);
                    for (result, (client, seq)) in real.zip(requests) {
                        self.alter(result, view, slot, client, seq);
                    }
                }
                Entry::ResultAgain {
                    client,
                    seq,
                    slot,
                    view,
                    result,
                    ..
                } => {
                    self.alter(result, *view, *slot, *client, *seq);
                }
                _ => {}
            }
        }
    }

    /// Whatever outcome a reply has, it becomes another one. The sibling's MAC is over the truth and stays: this is
    /// all that a liar has of it.
    fn alter_reply(&mut self, reply: &mut Reply) {
        reply.outcome = match &reply.outcome {
            Outcome::Result(result) => Outcome::Result([&result[..], b"!"].concat().into()),
            Outcome::Digest(digest) => {
                let mut digest = *digest;
                digest.0[0] ^= 0xff;
                Outcome::Digest(digest)
            }
        };
        let (view, slot, client, seq) = (reply.view, reply.slot, reply.client, reply.seq);
        let own = self.sign(view, slot, client, seq, reply.outcome.digest());
        for (twin, mac) in &mut reply.macs {
            if *twin == self.me.twin {
                *mac = own;
            }
        }
    }

    fn alter(
        &mut self,
        result: &mut ResultMac,
        view: Option<twinbft_types::View>,
        slot: Slot,
        client: ClientId,
        seq: Seq,
    ) {
        result.digest.0[0] ^= 0xff;
        result.mac = self.sign(view, slot, client, seq, result.digest);
    }

    /// The MAC over a result for its client.
    fn sign(
        &mut self,
        view: Option<twinbft_types::View>,
        slot: Slot,
        client: ClientId,
        seq: Seq,
        result: Digest,
    ) -> Mac {
        let signed = Signed {
            host: self.me.host,
            incarnation: self.incarnation,
            statement: Statement::Reply {
                view,
                slot,
                client,
                seq,
                result,
            },
        };
        let to = ProcessId::Client(client.key);
        self.keys
            .mac(to, Domain::Statement, signed.digest())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use twinbft_core::Execute;
    use twinbft_types::{HostId, KeyContext, Request, SecretKey, TwinId};

    use super::*;

    fn ring(
        me: ProcessId,
        own: u8,
        public: &BTreeMap<ProcessId, twinbft_types::PublicKey>,
    ) -> KeyRing {
        let context = KeyContext {
            cluster_id: "test".to_owned(),
            key_epoch: 0,
        };
        KeyRing::new(
            context,
            me,
            SecretKey::from_bytes([own; 32]),
            public.clone(),
        )
    }

    const ME: ReplicaId = ReplicaId::new(1, 0);

    /// The double, and the client that verifies what it signs.
    fn double() -> (WrongResult, KeyRing) {
        let (twin, client) = (ProcessId::Twin(ME), ProcessId::Client(0));
        let public = BTreeMap::from([
            (twin, SecretKey::from_bytes([1; 32]).public()),
            (client, SecretKey::from_bytes([2; 32]).public()),
        ]);
        let double = WrongResult::new(ME, Incarnation(0), ring(twin, 1, &public));
        (double, ring(client, 2, &public))
    }

    fn reply_statement(slot: Slot, client: ClientId, seq: Seq, result: Digest) -> Signed {
        Signed {
            host: HostId(1),
            incarnation: Incarnation(0),
            statement: Statement::Reply {
                view: None,
                slot,
                client,
                seq,
                result,
            },
        }
    }

    #[test]
    fn a_reply_that_it_sends_itself_is_the_same_lie_and_the_siblings_mac_is_left() {
        let (mut double, mut client) = double();
        let id = ClientId { key: 0, session: 9 };
        let siblings = Mac([7; 16]);
        for truth in [
            Outcome::Result("truth".into()),
            Outcome::Digest(Digest::of(b"truth")),
        ] {
            let mut effects = Effects::default();
            effects.push(Effect::Reply(Reply {
                host: HostId(1),
                incarnation: Incarnation(0),
                slot: Slot(5),
                view: None,
                client: id,
                seq: Seq(3),
                outcome: truth.clone(),
                macs: vec![(TwinId(1), siblings), (TwinId(0), Mac::default())],
            }));
            double.rewrite(&mut effects);
            let Some(Effect::Reply(reply)) = effects.0.last() else {
                panic!("the reply is still there");
            };
            assert_ne!(reply.outcome.digest(), truth.digest());
            assert_eq!(reply.macs[0], (TwinId(1), siblings));
            let signed = reply_statement(Slot(5), id, Seq(3), reply.outcome.digest());
            let from = ProcessId::Twin(ME);
            assert!(client.verify(from, Domain::Statement, signed.digest(), &reply.macs[1].1));
        }
    }

    #[test]
    fn the_lie_has_a_valid_signature_and_no_ops_stay_as_they_are() {
        let (mut double, mut client_ring) = double();
        let twin = ProcessId::Twin(ME);
        let id = ClientId { key: 0, session: 9 };
        let mut effects = Effects::default();
        effects.push(Effect::Execute(Execute {
            slot: Slot(5),
            timestamp_us: 0,
            seed: Digest::ZERO,
            requests: vec![Request {
                client: id,
                seq: Seq(3),
                operation: bytes::Bytes::new(),
            }],
        }));
        let no_op = ResultMac {
            digest: Digest::ZERO,
            mac: Mac::default(),
        };
        let honest = ResultMac {
            digest: Digest::of(b"result"),
            mac: Mac::default(),
        };
        effects.post(Entry::Results {
            slot: Slot(5),
            history: Digest([1; 32]),
            view: None,
            results: vec![no_op, honest],
        });
        double.observe(&effects);
        double.rewrite(&mut effects);
        let Some(Effect::Post {
            entry: Entry::Results { results, .. },
            ..
        }) = effects.0.last()
        else {
            panic!("the post is still there");
        };
        assert_eq!(results[0], no_op);
        assert_ne!(results[1].digest, honest.digest);
        let signed = reply_statement(Slot(5), id, Seq(3), results[1].digest);
        assert!(client_ring.verify(twin, Domain::Statement, signed.digest(), &results[1].mac));
    }
}
