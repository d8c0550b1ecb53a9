//! A fuzz target of the evidence file; `scripts/fuzz` drives it by coverage. Every line but those that are marked has a good
//! checksum, which no fuzzer finds by itself.

use std::fs;

use bolero::check;
use twinbft_core::{Event, EventKind};
use twinbft_evidence::{Record, Store, read};
use twinbft_types::{Digest, HostId, ReplicaId};

/// A line is an event or named as damaged; and the replica that finds the file writes behind it.
#[test]
fn evidence() {
    thread_local! {
        static DIR: tempfile::TempDir = tempfile::tempdir().expect("a directory");
    }
    check!().with_iterations(300).for_each(|bytes: &[u8]| {
        let path = DIR.with(|dir| dir.path().to_owned());
        let mut file = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (json, end) = match line.strip_suffix(b"\n") {
                Some(json) => (json, &b"\n"[..]),
                None => (line, &b""[..]),
            };
            match json.strip_prefix(b"!") {
                Some(anything) => file.extend_from_slice(anything),
                None => {
                    let check = Digest::of_canonical(b"tbft/evi", json).to_string();
                    file.extend_from_slice(&check.as_bytes()[..16]);
                    file.push(b' ');
                    file.extend_from_slice(json);
                }
            }
            file.extend_from_slice(end);
        }
        fs::write(path.join("evidence.log"), &file).expect("there is room");
        let found = read(&path).expect("a directory");
        let lines = file.split(|byte| *byte == b'\n');
        let lines = lines.filter(|line| !line.is_empty()).count();
        // Equal events are one.
        assert!(found.records.len() + found.damage.len() <= lines);
        assert!(found.damage.iter().all(|damage| damage.line >= 1));

        let (mut store, same) = Store::open(&path).expect("there is room");
        assert_eq!(same, found);
        let event = Event {
            host: HostId(1),
            twin: None,
            slot: None,
            kind: EventKind::Mute,
        };
        let noted = store.note(Record::new(ReplicaId::new(1, 0), &event, u64::MAX));
        let noted = noted.expect("there is room");
        drop(store);
        let again = read(&path).expect("a directory");
        let is_new = !found.records.iter().any(|record| record.is_same(&noted));
        assert!(!is_new || again.records.contains(&noted), "{noted:?}");
        assert_eq!(again.damage.len(), found.damage.len());
        for file in ["evidence.log", "evidence.old.log"] {
            let _ = fs::remove_file(path.join(file));
        }
    });
}
