//! A replica for tests that look inside.

use std::collections::BTreeMap;

use twinbft_types::{
    ClientId, Digest, Epoch, HostId, Incarnation, KeyContext, KeyRing, ProcessId, ReplicaId,
    Request, SecretKey, Seq, Shape, Slot, View, history,
};

use super::Replica;
use super::slots::SlotData;
use crate::config::{CoreConfig, Tuning};

/// Twin 0 of host 0, of three hosts of two twins.
pub fn replica(tuning: Tuning) -> Replica {
    let me = ReplicaId::new(0, 0);
    let secret = SecretKey::from_bytes([1; 32]);
    let id = ProcessId::Twin(me);
    let public = BTreeMap::from([(id, secret.public())]);
    let context = KeyContext {
        cluster_id: "test".to_owned(),
        key_epoch: 0,
    };
    Replica::new(CoreConfig {
        shape: Shape::new(3, 2).expect("a shape"),
        me,
        keys: KeyRing::new(context, id, secret, public),
        epoch: Epoch(0),
        config_digest: Digest::ZERO,
        quarantines: false,
        tuning,
    })
}

/// One slot of a log, and its history.
pub fn slot(slot: Slot, previous: Digest, client: u32) -> (SlotData, Digest) {
    let request = Request {
        client: ClientId {
            key: client,
            session: 1,
        },
        seq: Seq(slot.0),
        operation: bytes::Bytes::from_static(b"operation"),
    };
    let requests = vec![request.reference()];
    let own = history(
        previous,
        slot,
        twinbft_types::batch_digest(&requests),
        slot.0,
    );
    let of_view = (View(0), HostId(0), Incarnation(0));
    let bodies = vec![Some(request)];
    let data = SlotData::new(of_view, own, slot.0, requests, bodies, 0);
    (data, own)
}
