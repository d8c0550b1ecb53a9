//! What a twin writes ahead before it signs the NEW-VIEW that its host has decided (protocol.md 3, 6).

mod common;

use common::Host;
use twinbft_core::{Record, Tuning};
use twinbft_types::{Digest, Entry, HostId, Position, Slot, Statement, View};

/// A view of host 0 whose leader is twin 2.
const VIEW: View = View(6);

/// NV-PROPOSE and NV-ENDORSE are in no write-ahead log: whoever has seen the certificate has a correct signer's word, and that
/// one remembers the view (docs/adr/0023).
#[test]
fn a_new_view_is_remembered_before_it_is_signed() {
    let mut host = Host::new(0, 3, 3, &Tuning::default());
    host.byzantine = vec![0, 2];
    let leave = Entry::Leave {
        view: VIEW,
        certificates: Vec::new(),
    };
    let hosts = vec![(HostId(0), Digest::ZERO), (HostId(1), Digest::ZERO)];
    let propose = Entry::NvPropose {
        view: VIEW,
        hosts,
        slot: Slot(0),
        history: Digest::ZERO,
    };
    for (twin, entry) in [(0, &leave), (2, &leave), (2, &propose)] {
        host.post_as(twin, entry);
    }
    host.settle();
    assert_eq!(host.posted(1, "SIGN"), 1, "the VIEW-CHANGE");
    let installs = |record: &Record| matches!(record, Record::Installed { view: VIEW, .. });
    let records = host.done(1).records.iter();
    assert_eq!(records.filter(|record| installs(record)).count(), 0);
    host.done(1).order.clear();
    let endorse = Entry::NvEndorse {
        view: VIEW,
        proposal: Position(2),
    };
    host.post_as(0, &endorse);
    host.settle();
    assert_eq!(host.posted(1, "SIGN"), 2);
    let signs = |record: &Record| {
        matches!(
            record,
            Record::Promise(Entry::Sign {
                statement: Statement::NewView { view: VIEW, .. },
                ..
            })
        )
    };
    let order = &host.twins[1].done.order;
    let signed = order.iter().position(|name| *name == "SIGN").unwrap();
    let records = &host.twins[1].done.records;
    let last_two = &records[records.len() - 2..];
    assert!(installs(&last_two[0]) && signs(&last_two[1]), "{records:?}");
    let before = order[..signed].iter();
    assert_eq!(before.filter(|name| **name == "persist").count(), 2);
}
