//! `twinbft evidence` with the cluster down: from what replicas wrote in their data directories.

mod common;

use std::fs;

use common::{Fresh, run, stderr, stdout};
use serde_json::Value;
use twinbft_config::Layout;
use twinbft_core::{Event, EventKind};
use twinbft_evidence::{Record, Store};
use twinbft_types::{Digest, HostId, ReplicaId, Slot, TwinId};

fn culprit(host: u8, twin: u8, slot: u64) -> Event {
    Event {
        host: HostId(host),
        twin: Some(TwinId(twin)),
        slot: Some(Slot(slot)),
        kind: EventKind::Culprit {
            agreed: Digest([0xaa; 32]),
            said: Digest([0xbb; 32]),
        },
    }
}

/// `by` has seen these, a second after each other.
fn wrote(fresh: &Fresh, by: ReplicaId, events: &[Event]) {
    let data = Layout::new(fresh.path()).twin_data(by.host.0, by.twin.0);
    let (mut store, _) = Store::open(&data).unwrap();
    for (event, second) in events.iter().zip(1_700_000_000..) {
        store
            .note(Record::new(by, event, second * 1_000_000))
            .unwrap();
    }
}

fn evidence(fresh: &Fresh, more: &[&str]) -> std::process::Output {
    let mut arguments = vec!["evidence", "--config", fresh.text()];
    arguments.extend(more);
    run(&arguments)
}

#[test]
fn a_quiet_cluster_names_nobody() {
    let fresh = Fresh::new(&[]);
    let output = evidence(&fresh, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("Nobody is named."), "{text}");
    assert!(text.contains("does not answer"), "{text}");
}

#[test]
fn a_culprit_is_in_the_picture_the_summary_and_the_table() {
    let fresh = Fresh::new(&[]);
    wrote(
        &fresh,
        ReplicaId::new(1, 0),
        &[culprit(1, 1, 12), culprit(1, 1, 31)],
    );
    let output = evidence(&fresh, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = stdout(&output);
    let row = text.lines().find(|line| line.starts_with("h1")).unwrap();
    assert!(row.contains("CULPRIT (2x)"), "{text}");
    assert!(text.contains("h1/t1 is the culprit, says h1/t0"), "{text}");
    for part in ["12–31", "aaaaaaaa", "bbbbbbbb", "2023-11-14 22:13:20"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let document = stdout(&evidence(&fresh, &["--json"]));
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["events"].as_array().unwrap().len(), 2);
    assert_eq!(document["events"][0]["ours"], "aa".repeat(32));
    let named = &document["twins"][0];
    assert_eq!(
        (&named["host"], &named["twin"], &named["charge"]),
        (&1.into(), &1.into(), &"culprit".into())
    );
}

#[test]
fn two_that_accuse_each_other_are_both_shown_as_such() {
    let fresh = Fresh::new(&[]);
    wrote(&fresh, ReplicaId::new(0, 0), &[culprit(0, 1, 5)]);
    wrote(&fresh, ReplicaId::new(0, 1), &[culprit(0, 0, 5)]);
    let text = stdout(&evidence(&fresh, &[]));
    assert!(text.contains("h0/t0 and h0/t1 accuse each other"), "{text}");
}

#[test]
fn a_damaged_line_is_named_and_not_shown() {
    let fresh = Fresh::new(&[]);
    let by = ReplicaId::new(1, 0);
    wrote(&fresh, by, &[culprit(1, 1, 12), culprit(1, 1, 31)]);
    let path = Layout::new(fresh.path())
        .twin_data(1, 0)
        .join("evidence.log");
    let text = fs::read_to_string(&path).unwrap();
    // Another twin, so that somebody else would be blamed.
    fs::write(&path, text.replacen("\"twin\":1", "\"twin\":0", 1)).unwrap();
    let text = stdout(&evidence(&fresh, &[]));
    assert!(
        text.contains("evidence.log line 1: it does not match its checksum"),
        "{text}"
    );
    assert!(!text.contains("h1/t0 is the culprit"), "{text}");
    assert!(text.contains("h1/t1 is the culprit"), "{text}");
}

#[test]
fn what_is_about_another_host_is_not_believed() {
    let fresh = Fresh::new(&[]);
    wrote(
        &fresh,
        ReplicaId::new(1, 0),
        &[culprit(0, 1, 12), culprit(1, 7, 12)],
    );
    let output = evidence(&fresh, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
}
