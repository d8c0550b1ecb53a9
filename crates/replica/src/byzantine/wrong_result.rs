//! The double that lies about results.

use std::collections::BTreeMap;

use twinbft_core::{Effect, Effects};
use twinbft_types::{
    ClientId, Digest, Domain, Entry, HostId, Incarnation, KeyRing, ProcessId, ResultMac, Seq,
    Signed, Slot, Statement,
};

/// Slots whose requests are remembered: more than the core executes ahead of its RESULTs.
const SLOTS_MAX: usize = 64;

/// Alters digests and signs the altered ones.
pub(super) struct WrongResult {
    host: HostId,
    incarnation: Incarnation,
    keys: KeyRing,
    /// Whose requests the last slots executed, in order, no-ops left out.
    executed: BTreeMap<Slot, Vec<(ClientId, Seq)>>,
}

impl WrongResult {
    pub(super) fn new(host: HostId, incarnation: Incarnation, keys: KeyRing) -> Self {
        Self {
            host,
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

    fn alter(
        &mut self,
        result: &mut ResultMac,
        view: Option<twinbft_types::View>,
        slot: Slot,
        client: ClientId,
        seq: Seq,
    ) {
        result.digest.0[0] ^= 0xff;
        let signed = Signed {
            host: self.host,
            incarnation: self.incarnation,
            statement: Statement::Reply {
                view,
                slot,
                client,
                seq,
                result: result.digest,
            },
        };
        let to = ProcessId::Client(client.key);
        result.mac = self
            .keys
            .mac(to, Domain::Statement, signed.digest())
            .unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use twinbft_core::Execute;
    use twinbft_types::{KeyContext, Mac, ReplicaId, Request, SecretKey};

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

    #[test]
    fn the_lie_has_a_valid_signature_and_no_ops_stay_as_they_are() {
        let twin = ProcessId::Twin(ReplicaId::new(1, 0));
        let client = ProcessId::Client(0);
        let public = BTreeMap::from([
            (twin, SecretKey::from_bytes([1; 32]).public()),
            (client, SecretKey::from_bytes([2; 32]).public()),
        ]);
        let mut double = WrongResult::new(HostId(1), Incarnation(0), ring(twin, 1, &public));
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
        let signed = Signed {
            host: HostId(1),
            incarnation: Incarnation(0),
            statement: Statement::Reply {
                view: None,
                slot: Slot(5),
                client: id,
                seq: Seq(3),
                result: results[1].digest,
            },
        };
        let mut client_ring = ring(client, 2, &public);
        assert!(client_ring.verify(twin, Domain::Statement, signed.digest(), &results[1].mac));
    }
}
