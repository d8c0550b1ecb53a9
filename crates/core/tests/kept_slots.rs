//! Slots that a start takes from its write-ahead log (protocol.md 8), and whose ORDERs they are (3).

mod common;

use common::{BEGINNING_US, Host};
use twinbft_core::{Record, Recovered, Tuning};
use twinbft_types::wire::PeerMessage;
use twinbft_types::{
    Attempt, Certificate, Digest, Entry, Epoch, HostId, Position, ReplicaId, Request, RequestRef,
    Slot, Statement, View, batch_digest, history,
};

/// A view of host 0 whose leader is twin 2.
const VIEW: View = View(6);

/// Twin 1 of host 0 starts again with slot 1 in its write-ahead log, and these promises; in the log its host has entered [`VIEW`] with
/// that slot. Its siblings are the test's.
fn started(promises: &[Entry]) -> (Host, Digest) {
    let tuning = Tuning::default();
    let mut host = Host::new(0, 3, 3, &tuning);
    let bodies = vec![host.keys.request(0, 1, &[0, 1]).request];
    let requests: Vec<RequestRef> = bodies.iter().map(Request::reference).collect();
    let timestamp_us = BEGINNING_US + 1;
    let own = history(Digest::ZERO, Slot(1), batch_digest(&requests), timestamp_us);
    let slot = Record::Slot {
        slot: Slot(1),
        previous: Digest::ZERO,
        timestamp_us,
        bodies,
        certificate: None,
    };
    let mut records = vec![Record::Joined { epoch: Epoch(1) }, slot];
    records.extend(promises.iter().cloned().map(Record::Promise));
    let entries = [
        (0, leave()),
        (2, leave()),
        (
            2,
            Entry::NvPropose {
                view: VIEW,
                hosts: vec![(HostId(0), Digest::ZERO), (HostId(1), Digest::ZERO)],
                slot: Slot(1),
                history: own,
            },
        ),
        (
            0,
            Entry::NvEndorse {
                view: VIEW,
                proposal: Position(2),
            },
        ),
    ];
    let recovered = Recovered {
        records,
        log_end: Position(entries.len() as u64),
        ..Recovered::default()
    };
    host.start_again(1, 1, recovered);
    for (twin, entry) in &entries {
        host.post_as(*twin, entry);
    }
    host.pass(10_000);
    assert_eq!(host.accepted(1), 1);
    (host, own)
}

fn leave() -> Entry {
    Entry::Leave {
        view: VIEW,
        certificates: Vec::new(),
    }
}

/// The ORDER of slot 1 that it gives away once a sibling has signed it in this view.
fn given_away(host: &mut Host, view: View, history: Digest) -> Option<Certificate> {
    let statement = Statement::Order {
        view,
        slot: Slot(1),
        history,
    };
    let certificate = host.keys.certificate(0, &[0], statement.clone());
    let authenticator = certificate.authenticators[0].clone();
    host.post_as(
        0,
        &Entry::Sign {
            statement,
            authenticator,
        },
    );
    host.pass(10_000);
    host.done(1).sends.clear();
    let (first, last) = (Slot(1), Slot(1));
    let question = PeerMessage::FetchSlots { first, last };
    host.peer(1, ReplicaId::new(1, 1), question);
    let mut sends = host.twins[1].done.sends.iter();
    sends.find_map(|(_, message)| match &**message {
        PeerMessage::Order(order) => Some(order.certificate.clone()),
        _ => None,
    })
}

/// With what its view began no twin has ordered, whatever view the slot is said to be of: with a sibling that lies, its signature would
/// make a certificate of that, and a backup that is left in that view would take the slot for committed.
#[test]
fn a_slot_without_a_promise_is_signed_in_no_view() {
    for view in [View(0), View(3), VIEW] {
        let (mut host, history) = started(&[]);
        assert_eq!(given_away(&mut host, view, history), None, "{view}");
    }
}

/// An ENDORSE alone does not tell whether the slot was decided in that view.
#[test]
fn a_slot_that_was_endorsed_is_not_signed_for_that() {
    let (_, history) = started(&[]);
    let endorse = Entry::Endorse {
        view: View(3),
        slot: Slot(1),
        attempt: Attempt(0),
        history,
        signature: None,
    };
    let (mut host, history) = started(&[endorse]);
    assert_eq!(given_away(&mut host, View(3), history), None);
}

/// What this twin has signed in an earlier life it signs again.
#[test]
fn a_slot_that_was_signed_is_signed_again() {
    let (host, history) = started(&[]);
    let statement = Statement::Order {
        view: View(3),
        slot: Slot(1),
        history,
    };
    let own = host.keys.certificate(0, &[1], statement.clone());
    let sign = Entry::Sign {
        statement: statement.clone(),
        authenticator: own.authenticators[0].clone(),
    };
    let (mut host, history) = started(&[sign]);
    let given = given_away(&mut host, View(3), history).expect("q twins have signed it");
    assert_eq!(given.signed.statement, statement);
}
