use std::collections::BTreeMap;

use twinbft_types::{
    ClientId, Digest, Epoch, HostId, Incarnation, KeyContext, KeyRing, ProcessId, ReplicaId,
    Request, SecretKey, Seq, Shape, View, history,
};

use super::*;
use crate::config::CoreConfig;
use crate::twinbft::slots::SlotData;

fn replica() -> Replica {
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
        tuning: config::Tuning::default(),
    })
}

/// One slot of a log, and its history.
fn slot(slot: Slot, previous: Digest, client: u32) -> (SlotData, Digest) {
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

/// However they came to stand together, and whatever is said to be committed.
#[test]
fn what_does_not_extend_what_is_executed_is_let_go() {
    let mut replica = replica();
    let (first, one) = slot(Slot(1), Digest::ZERO, 0);
    let (_, other) = slot(Slot(1), Digest::ZERO, 1);
    let (second, _) = slot(Slot(2), other, 1);
    replica.slots.insert(Slot(1), first);
    replica.slots.insert(Slot(2), second);
    replica.commit.stand_at(Slot(2));
    let mut out = Effects::default();
    replica.poll_execution(&mut out);
    assert_eq!(replica.execution.begun(), Slot(1));
    assert_eq!(replica.history_of(Slot(2)), None);
    // The one that does takes its place.
    let (second, two) = slot(Slot(2), one, 0);
    replica.slots.insert(Slot(2), second);
    replica.poll_execution(&mut out);
    assert_eq!(replica.execution.begun(), Slot(2));
    assert_eq!(replica.history_of(Slot(2)), Some(two));
}
