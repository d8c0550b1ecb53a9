//! A twin that has less than its sibling after a loss of the host's log: what makes it claim the same (protocol.md 8, row 4).

mod common;

use common::Host;
use common::logs::{chain_of, history_at, log_of, offer};
use twinbft_core::{Input, PeerFault, Record, Recovered, Tuning};
use twinbft_types::wire::{ChainSlot, OrderMessage, PeerMessage};
use twinbft_types::{
    Digest, Entry, Epoch, HelloState, HostId, Incarnation, Position, ReplicaId, Slot, Statement,
    TwinId, View, from_canonical,
};

/// Twin 1 of this host remembers that it has taken part and nothing else; the test plays its sibling.
fn waiting(id: u8) -> Host {
    waiting_of(id, 2)
}

/// The same with more siblings.
fn waiting_of(id: u8, twins: u8) -> Host {
    waiting_with(id, twins, Vec::new())
}

/// The same with more records.
fn waiting_with(id: u8, twins: u8, records: Vec<Record>) -> Host {
    let tuning = Tuning::default();
    let mut host = Host::new(id, 3, twins, &tuning);
    let recovered = Recovered {
        records: std::iter::once(Record::Joined { epoch: Epoch(1) })
            .chain(records)
            .collect(),
        is_new_epoch: true,
        ..Recovered::default()
    };
    host.start_again(1, 2, recovered);
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

/// A sibling's HELLO that names a LEAVE and nothing else.
fn left(view: u64) -> Entry {
    let Entry::Hello { mut state } = claim(0, 0, Digest::ZERO) else {
        unreachable!("it is one");
    };
    state.leave = View(view);
    Entry::Hello { state }
}

/// The LEAVE of each HELLO of twin 1.
fn leaves_said(host: &Host) -> Vec<u64> {
    let entries = host.entries().into_iter();
    let own = entries.filter(|(twin, _)| *twin == 1);
    own.filter_map(|(_, entry)| match entry {
        Entry::Hello { state } => Some(state.leave.0),
        _ => None,
    })
    .collect()
}

fn wish(view: u64) -> Statement {
    Statement::Wish {
        view: View(view),
        epoch: Epoch(1),
        position: Position(7),
    }
}

/// What one twin alone says it has left, and cannot show, no sibling follows: it could be a view from which the host never comes
/// back. The host does not go on below it either, because it may be true.
#[test]
fn a_leave_that_one_twin_alone_claims_is_not_followed() {
    let mut host = waiting_of(1, 3);
    host.post_as(0, &left(1000));
    host.post_as(2, &left(0));
    host.pass(10_000);
    assert_eq!(leaves_said(&host), [0]);
    assert!(host.twins[1].core.host_log().is_opening());
    // Certificates that do not verify, or are of another view, or of no other host, show nothing.
    let mut spoilt = host.keys.certificate(0, &[0, 1, 2], wish(1000));
    spoilt.authenticators.truncate(1);
    let of_own = host.keys.certificate(1, &[0, 1, 2], wish(1000));
    let lower = host.keys.certificate(0, &[0, 1, 2], wish(999));
    let of_no_primary = host.keys.certificate(
        2,
        &[0, 1, 2],
        Statement::NewView {
            view: View(1000),
            slot: Slot(0),
            history: Digest::ZERO,
            hosts: Vec::new(),
        },
    );
    let leave = Entry::Leave {
        view: View(1000),
        certificates: vec![spoilt, of_own, lower, of_no_primary],
    };
    host.post_as(0, &leave);
    host.pass(10_000);
    assert_eq!(leaves_said(&host), [0]);
}

/// 8, AMNESIA: with enough others that take part the host comes back all the same; nobody believes the liar meanwhile.
#[test]
fn a_host_that_waits_for_a_liar_asks_the_others() {
    let mut host = waiting_of(1, 3);
    host.post_as(0, &left(1000));
    host.post_as(2, &left(0));
    host.pass(4_000_000);
    let sends = &host.twins[1].done.sends;
    let nonce = sends.iter().find_map(|(_, message)| match &**message {
        PeerMessage::FetchReport { nonce } => Some(*nonce),
        _ => None,
    });
    let nonce = nonce.expect("it asks whether they remember");
    for other in [0, 2] {
        let statement = Statement::Report {
            of: HostId(1),
            incarnation: Incarnation(0),
            nonce,
        };
        let certificate = host.keys.certificate(other, &[0, 1], statement);
        let message = PeerMessage::Certificate(certificate);
        host.peer(1, ReplicaId::new(other, 1), message);
    }
    host.pass(1_000_000);
    assert_eq!(host.posted(1, "AMNESIA"), 1);
    assert_eq!(leaves_said(&host), [0]);
}

/// 6: with the certificates that it rests on it is followed, and written ahead first: the host's VIEW-CHANGE may rest on it
/// next, and when the log is lost again nobody else may remember it.
#[test]
fn a_leave_that_is_shown_is_followed_and_not_forgotten() {
    let mut host = waiting_of(1, 3);
    let shown = host.keys.certificate(0, &[0, 1, 2], wish(1000));
    let leave = Entry::Leave {
        view: View(1000),
        certificates: vec![shown],
    };
    host.post_as(0, &leave);
    host.post_as(0, &left(1000));
    host.post_as(2, &left(0));
    host.pass(10_000);
    assert_eq!(leaves_said(&host).last(), Some(&1000));
    let promised = |record: &Record| matches!(record, Record::Promise(entry) if *entry == leave);
    assert!(host.twins[1].done.records.iter().any(promised));
    let order = &host.twins[1].done.order;
    let hello = order.iter().rposition(|name| *name == "HELLO").unwrap();
    assert_eq!(order[hello - 1], "persist");
}

/// `q` twins that say so need no certificates: one of them is correct.
#[test]
fn a_leave_that_a_majority_claims_is_followed() {
    let mut host = waiting_of(1, 3);
    host.post_as(0, &left(1000));
    host.post_as(2, &left(1001));
    host.pass(10_000);
    assert_eq!(leaves_said(&host).last(), Some(&1000));
}

/// Where all twins are needed, a lie silences the host in any case; a certificate that is spoilt for one twin must not.
#[test]
fn of_two_twins_one_follows_the_other_a_little() {
    let mut host = waiting(1);
    host.post_as(0, &left(40));
    host.pass(10_000);
    assert_eq!(leaves_said(&host).last(), Some(&40));
    let mut host = waiting(1);
    host.post_as(0, &left(1000));
    host.pass(10_000);
    assert_eq!(leaves_said(&host), [0]);
}

/// A twin that has left shows what that rests on before it says HELLO.
#[test]
fn a_twin_shows_what_its_leave_rests_on() {
    let host = Host::new(1, 3, 2, &Tuning::default());
    let certificates = vec![host.keys.certificate(0, &[0, 1], wish(3))];
    let leave = Entry::Leave {
        view: View(3),
        certificates,
    };
    let mut host = waiting_with(1, 2, vec![Record::Promise(leave.clone())]);
    host.pass(10_000);
    let own: Vec<Entry> = (host.entries().into_iter())
        .filter(|(twin, _)| *twin == 1)
        .map(|(_, entry)| entry)
        .collect();
    assert_eq!(own[0], leave);
    assert_eq!(leaves_said(&host), [3]);
}

/// A view that no host can have reached is no HELLO at all: what goes on from it would come to the end of its numbers.
#[test]
fn a_hello_of_an_impossible_view_is_invalid() {
    for (leave, last_normal) in [(u64::MAX, 0), (0, u64::MAX)] {
        let mut host = waiting_of(1, 3);
        let Entry::Hello { mut state } = claim(last_normal, 0, Digest::ZERO) else {
            unreachable!("it is one");
        };
        state.leave = View(leave);
        host.post_as(0, &Entry::Hello { state });
        host.pass(10_000);
        let faults = &host.twins[1].done.faults;
        assert!(
            matches!(faults[..], [PeerFault::InvalidEntry { .. }]),
            "{faults:?}"
        );
        assert_eq!(host.twins[1].core.host_log().hellos().count(), 1);
    }
}

/// 6: a host that HELLO has brought back between two views has no VIEW-CHANGE of that one, and its leader proposes no log without it.
#[test]
fn a_leader_that_has_no_view_change_of_its_host_proposes_nothing() {
    let view = View(4);
    let leave = Entry::Leave {
        view,
        certificates: Vec::new(),
    };
    let mut host = waiting_with(1, 2, vec![Record::Promise(leave)]);
    assert_eq!(host.shape.leader(view), ReplicaId::new(1, 1));
    let state = HelloState {
        leave: view,
        last_normal: View(0),
        accepted: Slot(0),
        history: Digest::ZERO,
        incarnations: vec![Incarnation(0); 3],
    };
    host.post_as(0, &Entry::Hello { state });
    host.pass(10_000);
    assert_eq!(host.twins[1].core.host_log().entering(), Some(view));
    let change = Statement::ViewChange {
        view,
        last_normal: View(0),
        accepted: Slot(0),
        history: Digest::ZERO,
        incarnations: vec![Incarnation(0); 3],
    };
    for id in [0, 2] {
        let certificate = host.keys.certificate(id, &[0, 1], change.clone());
        let message = PeerMessage::Certificate(certificate);
        host.peer(1, ReplicaId::new(id, 1), message);
    }
    host.pass(10_000_000);
    assert_eq!(host.posted(1, "NV-PROPOSE"), 0);
}

/// Its sibling's claim, for which another host's ORDER vouches, is of a log that has lost: a way by batches has brought this twin
/// what the others have committed in its place.
#[test]
fn a_claim_of_a_log_that_has_lost_is_put_over_nothing() {
    let mut host = waiting(1);
    let checkpoint = Slot(Tuning::default().checkpoint_slots);
    let parts_at = checkpoint.0 - 3;
    let lost = log_of(&host, 0, parts_at, checkpoint.0 - 1);
    let other = log_of(&host, 1, parts_at, checkpoint.0);
    let (slot, history) = (lost.last().unwrap().0.clone(), lost.last().unwrap().1);
    host.post_as(0, &claim(0, slot.slot.0, history));
    host.pass(10_000);
    let order = host.keys.order(slot.slot.0, slot.previous, slot.bodies);
    host.peer(1, ReplicaId::new(1, 0), PeerMessage::Order(order));
    host.pass(10_000);
    let asks = |host: &Host, end: (Slot, Digest)| {
        has_sent(
            host,
            |m| matches!(m, PeerMessage::FetchChain { slot, history } if (*slot, *history) == end),
        )
    };
    assert!(asks(&host, (slot.slot, history)), "it holds it first");
    let agreed = other.last().unwrap().1;
    offer(&mut host, &[0, 2], checkpoint, agreed);
    assert!(asks(&host, (checkpoint, agreed)));
    for part in other.rchunks(64) {
        host.peer(1, ReplicaId::new(2, 1), chain_of(part));
        host.pass(10_000);
    }
    host.serve(1);
    host.peer(1, ReplicaId::new(1, 0), chain_of(&lost[lost.len() - 2..]));
    host.pass(10_000);
    let own = claimed(&host).pop();
    assert_eq!(own, Some((View(0), slot.slot, history)), "its host's word");
    assert_eq!(history_at(&host, slot.slot), Some(other[other.len() - 2].1));
}
