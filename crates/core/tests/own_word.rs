//! A twin that was not itself for a while and is again: what a change of the view waits for, and what it only believes to have
//! posted, it posts again (protocol.md 6, "Repetition"; docs/adr/0025).

mod common;

use common::Host;
use twinbft_core::{Record, Tuning};
use twinbft_types::wire::PeerMessage;
use twinbft_types::{Digest, Entry, HostId, Incarnation, ReplicaId, Slot, Statement, TwinId, View};

const SECOND_US: u64 = 1_000_000;
const VIEW: View = View(1);

/// Everybody of another host says this.
fn say(host: &mut Host, from: u8, statement: &Statement) {
    for twin in 0..2 {
        let certificate = host.keys.certificate(from, &[0, 1], statement.clone());
        let message = PeerMessage::Certificate(certificate);
        host.peer(twin, ReplicaId::new(from, twin), message);
    }
}

fn installed(host: &Host) -> Vec<View> {
    let twins = host.twins.iter();
    twins.map(|t| t.core.host_log().installed()).collect()
}

/// The host does not enter the view while entries of this name are lost, and does when they no longer are.
fn enters_when_the_twin_is_itself_again(mut host: Host, twin: u8, name: &'static str) {
    assert_eq!(installed(&host), [View(0), View(0)], "{name}");
    host.pass(SECOND_US);
    assert_eq!(installed(&host), [View(0), View(0)], "{name}");
    assert_eq!(host.posted(twin, name), 0);
    host.losing.clear();
    host.pass(SECOND_US);
    assert_eq!(installed(&host), [VIEW, VIEW], "{name}");
    let posted = host.posted(twin, name);
    host.pass(10 * SECOND_US);
    assert_eq!(host.posted(twin, name), posted, "{name} is said for ever");
}

/// Nobody suspects anybody.
fn patient() -> Tuning {
    Tuning {
        suspect_after_us: 1 << 50,
        ..Tuning::default()
    }
}

/// Of host 1: the view begins with nothing.
fn new_view() -> Statement {
    Statement::NewView {
        view: VIEW,
        slot: Slot(0),
        history: Digest::ZERO,
        hosts: vec![(HostId(0), Digest::ZERO), (HostId(1), Digest::ZERO)],
    }
}

/// A host of which twin 1 loses its entries of this name, when the NEW-VIEW has come.
fn backup(name: &'static str) -> Host {
    let mut host = Host::new(2, 3, 2, &patient());
    host.losing = vec![(1, name)];
    say(&mut host, 1, &new_view());
    host.settle();
    host
}

#[test]
fn a_backup_enters_the_view() {
    for name in ["LEAVE", "NV-ACCEPT"] {
        enters_when_the_twin_is_itself_again(backup(name), 1, name);
    }
}

/// A log that has no room for long: what waits for room stays little.
#[test]
fn what_finds_no_room_is_said_more_and_more_rarely() {
    for name in ["LEAVE", "NV-ACCEPT"] {
        let mut host = backup(name);
        host.pass(120 * SECOND_US);
        let said = host.done(1).order.iter().filter(|of| **of == name).count();
        // At once, after 0.6 s, and then after 0.5, 1, 2, … 60 s.
        assert!((7..=10).contains(&said), "{name}: {said}");
    }
}

/// What it shows may be taken back meanwhile: a poorer LEAVE must not take the place of the first one in the write-ahead log.
#[test]
fn a_leave_is_written_ahead_once() {
    let mut host = backup("LEAVE");
    host.pass(120 * SECOND_US);
    let is_leave = |record: &&Record| matches!(record, Record::Promise(Entry::Leave { .. }));
    let written = host.done(1).records.iter().filter(is_leave).count();
    assert_eq!(written, 1);
}

/// 9: nobody listens to it, so it would repeat itself for as long as its host is between two views.
#[test]
fn who_is_ignored_says_nothing_again() {
    let mut host = Host::new(2, 3, 3, &patient());
    host.byzantine = vec![0, 2];
    for accuser in [0, 2] {
        host.post_as(accuser, &Entry::Quarantine { twin: TwinId(1) });
    }
    host.settle();
    assert!(host.twins[1].core.host_log().is_quarantined(TwinId(1)));
    for twin in [0, 2] {
        let leave = Entry::Leave {
            view: VIEW,
            certificates: Vec::new(),
        };
        host.post_as(twin, &leave);
    }
    let certificate = host.keys.certificate(1, &[0, 1, 2], new_view());
    let message = PeerMessage::Certificate(certificate);
    host.peer(1, ReplicaId::new(1, 1), message);
    host.settle();
    assert_eq!(host.twins[1].core.host_log().entering(), Some(VIEW));
    host.pass(120 * SECOND_US);
    assert_eq!(host.posted(1, "NV-ACCEPT"), 1);
    // Listened to again it does not wait for as long as it has waited so far.
    for accuser in [0, 2] {
        host.post_as(accuser, &Entry::Readmit { twin: TwinId(1) });
    }
    host.pass(2 * SECOND_US);
    assert_eq!(host.posted(1, "NV-ACCEPT"), 2);
}

#[test]
fn a_primary_begins_the_view() {
    for (twin, name) in [
        (0, "LEAVE"),
        (1, "LEAVE"),
        (0, "NV-PROPOSE"),
        (1, "NV-ENDORSE"),
    ] {
        let mut host = Host::new(1, 3, 2, &patient());
        host.losing = vec![(twin, name)];
        let view_change = Statement::ViewChange {
            view: VIEW,
            last_normal: View(0),
            accepted: Slot(0),
            history: Digest::ZERO,
            incarnations: vec![Incarnation(0); 3],
        };
        say(&mut host, 0, &view_change);
        say(&mut host, 2, &view_change);
        host.settle();
        enters_when_the_twin_is_itself_again(host, twin, name);
    }
}

#[test]
fn a_host_wishes() {
    let mut host = Host::new(1, 3, 2, &Tuning::default());
    host.losing = vec![(1, "SUSPECT")];
    host.pass(2 * SECOND_US);
    assert_eq!(host.posted(0, "SUSPECT"), 1);
    assert_eq!(host.twins[0].core.host_log().wish(), None);
    host.losing.clear();
    host.pass(SECOND_US);
    let wish = host.twins[0].core.host_log().wish();
    assert_eq!(wish.map(|wish| wish.view), Some(VIEW));
    assert_eq!(host.posted(1, "SUSPECT"), 1);
    assert_eq!(host.posted(0, "SUSPECT"), 1, "the log shows it");
}
