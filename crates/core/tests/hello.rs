//! A twin that has less than its sibling after a loss of the host's log: what makes it claim the same (protocol.md 8, row 4).

mod common;

use common::Host;
use twinbft_core::{CoreConfig, Input, Record, Recovered, Replica, Tuning};
use twinbft_types::wire::{ChainSlot, OrderMessage, PeerMessage};
use twinbft_types::{
    Digest, Entry, Epoch, HelloState, Incarnation, ProcessId, ReplicaId, Slot, Statement, TwinId,
    View, from_canonical,
};

/// Twin 1 of this host remembers that it has taken part and nothing else; the test plays its sibling.
fn waiting(id: u8) -> Host {
    let tuning = Tuning::default();
    let mut host = Host::new(id, 3, 2, &tuning);
    host.byzantine = vec![0];
    let me = ReplicaId::new(id, 1);
    let config = CoreConfig {
        shape: host.shape,
        me,
        keys: host.keys.ring(ProcessId::Twin(me)),
        epoch: Epoch(2),
        config_digest: Digest::ZERO,
        quarantines: false,
        tuning,
    };
    let recovered = Recovered {
        records: vec![Record::Joined { epoch: Epoch(1) }],
        is_new_epoch: true,
        ..Recovered::default()
    };
    host.twins[1].core = Replica::recover(config, recovered).unwrap();
    host
}

fn claim(view: u64, slot: u64, history: Digest) -> Entry {
    Entry::Hello {
        state: HelloState {
            leave: View(0),
            last_normal: View(view),
            accepted: Slot(slot),
            history,
            incarnations: vec![Incarnation(0); 3],
        },
    }
}

/// What twin 1 has claimed, one after the other.
fn claimed(host: &Host) -> Vec<(View, Slot, Digest)> {
    let own = host.log.iter().filter(|(sender, _)| *sender == TwinId(1));
    let entries = own.map(|(_, bytes)| from_canonical::<Entry>(bytes).unwrap());
    entries
        .filter_map(|entry| match entry {
            Entry::Hello { state } => Some((state.last_normal, state.accepted, state.history)),
            _ => None,
        })
        .collect()
}

fn history_of(order: &OrderMessage) -> Digest {
    match order.certificate.signed.statement {
        Statement::Order { history, .. } => history,
        _ => unreachable!("it is an ORDER"),
    }
}

fn has_sent(host: &Host, wanted: impl Fn(&PeerMessage) -> bool) -> bool {
    host.twins[1].done.sends.iter().any(|(_, m)| wanted(m))
}

#[test]
fn another_hosts_order_vouches_for_a_siblings_claim() {
    let mut host = waiting(1);
    let body = host.keys.request(0, 1, &[0, 1]).request;
    let order = host.keys.order(1, Digest::ZERO, vec![body]);
    let history = history_of(&order);
    host.post_as(0, &claim(0, 1, history));
    host.pass(10_000);
    assert_eq!(claimed(&host), [(View(0), Slot(0), Digest::ZERO)]);
    let wanted = |m: &PeerMessage| {
        matches!(
            m,
            PeerMessage::FetchSlots {
                first: Slot(1),
                last: Slot(1)
            }
        )
    };
    assert!(has_sent(&host, wanted));

    // One signature is nobody's word.
    let from = ReplicaId::new(1, 0);
    let mut lone = order.clone();
    lone.certificate.authenticators.truncate(1);
    let message = PeerMessage::Order(lone);
    host.step(1, Input::Peer { from, message });
    host.pass(10_000);
    assert_eq!(host.twins[1].done.faults.len(), 1);
    let asks = |m: &PeerMessage| matches!(m, PeerMessage::FetchChain { .. });
    assert!(!has_sent(&host, asks));

    let message = PeerMessage::Order(order.clone());
    host.step(1, Input::Peer { from, message });
    host.pass(10_000);
    assert!(has_sent(&host, asks), "it holds the slot first");
    assert_eq!(claimed(&host).len(), 1);
    let message = PeerMessage::Chain(vec![ChainSlot {
        slot: Slot(1),
        previous: Digest::ZERO,
        timestamp_us: order.timestamp_us,
        bodies: order.bodies,
    }]);
    host.step(1, Input::Peer { from, message });
    host.pass(10_000);
    assert_eq!(claimed(&host).last(), Some(&(View(0), Slot(1), history)));
    let records = &host.twins[1].done.records;
    let slot = records
        .iter()
        .position(|r| matches!(r, Record::Slot { slot: Slot(1), .. }));
    let promise = records
        .iter()
        .position(|r| matches!(r, Record::Promise(Entry::Accept { .. })));
    assert!(slot.is_some() && slot < promise, "{records:?}");
}

/// The sibling's claim of a slot of their own host in this view, with all that it needs: its batch, and its client's request.
fn claims_an_own_slot(view: u64, is_asked: bool) -> (Host, Digest) {
    let mut host = waiting(0);
    let request = host.keys.request(0, 1, &[0, 1]);
    let order = host
        .keys
        .order(1, Digest::ZERO, vec![request.request.clone()]);
    let history = history_of(&order);
    host.post_as(0, &claim(view, 1, history));
    host.pass(10_000);
    let from = ReplicaId::new(0, 0);
    let message = PeerMessage::Chain(vec![ChainSlot {
        slot: Slot(1),
        previous: Digest::ZERO,
        timestamp_us: order.timestamp_us,
        bodies: order.bodies,
    }]);
    host.step(1, Input::Peer { from, message });
    if is_asked {
        host.step(
            1,
            Input::Request {
                request,
                retransmission: true,
                leader_alone: false,
            },
        );
    }
    host.pass(100_000);
    (host, history)
}

fn has_written_a_slot(host: &Host) -> bool {
    let mut records = host.twins[1].done.records.iter();
    records.any(|record| matches!(record, Record::Slot { .. }))
}

/// A slot of its own host is claimed once its client has sent the request here again, and before that not even written down.
#[test]
fn a_slot_of_its_own_host_waits_for_its_client() {
    let (host, _) = claims_an_own_slot(0, false);
    assert_eq!(claimed(&host), [(View(0), Slot(0), Digest::ZERO)]);
    assert!(!has_written_a_slot(&host));
    let (host, history) = claims_an_own_slot(0, true);
    assert_eq!(claimed(&host).last(), Some(&(View(0), Slot(1), history)));
    assert!(has_written_a_slot(&host));
}

/// That a later view of the host's own was installed nobody else vouches for: a liar would make its host's log the one with the
/// largest last normal view, and so undo what others have committed.
#[test]
fn a_view_of_its_own_that_a_twin_does_not_remember_is_not_claimed() {
    let (host, _) = claims_an_own_slot(3, true);
    assert_eq!(claimed(&host), [(View(0), Slot(0), Digest::ZERO)]);
    assert!(!has_written_a_slot(&host));
}
