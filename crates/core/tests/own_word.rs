//! A twin that was not itself for a while and is again: what a change of the view waits for, and what it only believes to have
//! posted, it posts again (protocol.md 6, "Repetition"; docs/adr/0025).

mod common;

use common::Host;
use twinbft_core::Tuning;
use twinbft_types::wire::PeerMessage;
use twinbft_types::{Digest, HostId, Incarnation, ReplicaId, Slot, Statement, View};

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

/// A host of which twin 1 loses its entries of this name, when the NEW-VIEW has come.
fn backup(name: &'static str) -> Host {
    let mut host = Host::new(2, 3, 2, &patient());
    host.losing = vec![(1, name)];
    let hosts = vec![(HostId(0), Digest::ZERO), (HostId(1), Digest::ZERO)];
    let new_view = Statement::NewView {
        view: VIEW,
        slot: Slot(0),
        history: Digest::ZERO,
        hosts,
    };
    say(&mut host, 1, &new_view);
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
