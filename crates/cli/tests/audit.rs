//! `twinbft audit` over records that are made here: what it finds, what it says, how it ends.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use twinbft_config::ClusterConfig;
use twinbft_recording::{RecordHead, SegmentHeader, file_name};
use twinbft_types::{
    Attempt, ClientId, Digest, Entry, RequestRef, Seq, Slot, View, batch_digest, canonical, history,
};

/// A log of host 0 in which slot 1 is decided.
fn decided() -> (Vec<(u8, Entry)>, Digest) {
    let requests = vec![RequestRef {
        client: ClientId { key: 0, session: 1 },
        seq: Seq(1),
        digest: Digest::of(b"request"),
    }];
    let next = history(Digest::ZERO, Slot(1), batch_digest(&requests), 5);
    let propose = Entry::Propose {
        view: View(0),
        slot: Slot(1),
        attempt: Attempt(0),
        previous: Digest::ZERO,
        timestamp_us: 5,
        requests,
    };
    (vec![(0, propose), (1, endorse(next))], next)
}

fn endorse(history: Digest) -> Entry {
    Entry::Endorse {
        view: View(0),
        slot: Slot(1),
        attempt: Attempt(0),
        history,
        signature: None,
    }
}

/// A cluster's directory with a record of host 0.
fn recorded(entries: &[(u8, Entry)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let config = ClusterConfig::example(3, 2, 1, 7100);
    std::fs::write(dir.path().join("cluster.toml"), config.to_toml()).expect("there is room");
    let header = SegmentHeader {
        serial: 0,
        cluster_id: config.cluster.id,
        host: 0,
        epoch: 1,
        first_position: 0,
        previous: None,
        state: None,
    };
    let (mut bytes, mut chain) = header.encode();
    for (position, (sender, entry)) in (0..).zip(entries) {
        let head = RecordHead {
            position,
            sender: *sender,
            epoch: 1,
        };
        head.encode(&canonical(entry), &mut chain, &mut bytes);
    }
    std::fs::create_dir(dir.path().join("h0")).expect("there is room");
    std::fs::write(dir.path().join("h0").join(file_name(0)), bytes).expect("there is room");
    dir
}

fn audit(dir: &Path, json: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinbft"));
    command.arg("audit").arg(dir.join("h0"));
    command
        .arg("--config")
        .arg(dir)
        .args(json.then_some("--json"));
    command.output().expect("the command is there")
}

#[test]
fn a_host_of_correct_twins_has_nothing_to_answer_for() {
    let dir = recorded(&decided().0);
    let output = audit(dir.path(), false);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        text.contains("there is no entry that a correct twin would not have posted"),
        "{text}"
    );
    assert!(
        text.contains("verified up to position 2 of epoch 1"),
        "{text}"
    );
}

#[test]
fn the_first_wrong_entry_is_named_with_its_twin_and_position() {
    let (mut entries, next) = decided();
    entries.push((0, endorse(next)));
    entries.push((1, endorse(Digest::of(b"another"))));
    let dir = recorded(&entries);
    let output = audit(dir.path(), true);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let first = &report["first"];
    assert_eq!(
        (&first["position"], &first["twin"]),
        (&2.into(), &0.into()),
        "{report:#}"
    );
    assert_eq!(
        (&first["entry"], &first["kind"]),
        (&"ENDORSE".into(), &"invalid".into())
    );
    assert_eq!(report["findings"][1]["kind"], "contradiction");
    assert_eq!(report["findings"][1]["twin"], 1);
    let text = audit(dir.path(), false).stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(
        text.contains("verdict") && text.contains("position 2: h0/t0 posted ENDORSE"),
        "{text}"
    );
}

#[test]
fn a_damaged_record_is_named_with_its_offset_and_a_missing_one_is_no_success() {
    let dir = recorded(&decided().0);
    let path = dir.path().join("h0").join(file_name(0));
    let mut bytes = std::fs::read(&path).expect("it is there");
    *bytes.last_mut().expect("it is not empty") ^= 1;
    std::fs::write(&path, bytes).expect("there is room");
    let output = audit(dir.path(), true);
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["entries"], 1);
    let file = report["damage"]["file"].as_str().expect("a file");
    assert!(file.ends_with(&file_name(0)) && report["damage"]["offset"].as_u64() > Some(0));
    std::fs::remove_file(&path).expect("it is there");
    assert_eq!(audit(dir.path(), false).status.code(), Some(66));
}
