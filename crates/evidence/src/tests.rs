use std::fs;

use twinbft_core::{Event, EventKind};
use twinbft_types::{Digest, HostId, ReplicaId, Slot, TwinId};

use super::*;

fn culprit(twin: u8, slot: u64, time_us: u64) -> Record {
    let event = Event {
        host: HostId(1),
        twin: Some(TwinId(twin)),
        slot: Some(Slot(slot)),
        kind: EventKind::Culprit {
            agreed: Digest([1; 32]),
            said: Digest([2; 32]),
        },
    };
    Record::new(ReplicaId::new(1, 0), &event, time_us)
}

fn noted(store: &mut Store, record: Record) -> Record {
    store.note(record).expect("a temporary directory")
}

#[test]
fn what_was_seen_is_there_after_a_restart_and_counted_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, found) = Store::open(dir.path()).unwrap();
    assert_eq!(found, Found::default());
    noted(&mut store, culprit(1, 7, 10));
    noted(&mut store, culprit(1, 8, 20));
    drop(store);
    let (mut store, found) = Store::open(dir.path()).unwrap();
    assert_eq!(found.damage, []);
    let slots: Vec<_> = found.records.iter().map(|one| one.slot).collect();
    assert_eq!(slots, [Some(7), Some(8)]);
    assert_eq!(noted(&mut store, culprit(1, 9, 30)).count, 3);
    assert_eq!(store.totals()["culprit"], 3);
}

#[test]
fn a_damaged_line_is_named_and_nothing_of_it_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    for slot in 0..3 {
        noted(&mut store, culprit(1, slot, slot));
    }
    let path = dir.path().join("evidence.log");
    let whole = fs::read(&path).unwrap();
    let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    // Whatever byte of the second line is bent, and however, the other two are there and it is not.
    for at in second..whole.len() {
        if whole[second..=at].contains(&b'\n') {
            break;
        }
        let mut bent = whole.clone();
        bent[at] ^= 0x01;
        fs::write(&path, &bent).unwrap();
        let found = read(dir.path()).unwrap();
        assert!(!found.records.iter().any(|one| one.slot == Some(1)), "{at}");
        assert!(found.records.iter().any(|one| one.slot == Some(0)), "{at}");
        assert!(found.records.iter().any(|one| one.slot == Some(2)), "{at}");
        assert_eq!(found.damage[0].line, 2, "{at}");
    }
}

#[test]
fn a_torn_end_is_named_and_written_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    noted(&mut store, culprit(1, 1, 1));
    noted(&mut store, culprit(1, 2, 2));
    drop(store);
    let path = dir.path().join("evidence.log");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    let (mut store, found) = Store::open(dir.path()).unwrap();
    assert_eq!(found.records.len(), 1);
    assert!(found.damage[0].to_string().contains("cut off"), "{found:?}");
    noted(&mut store, culprit(1, 3, 3));
    let slots: Vec<_> = read(dir.path())
        .unwrap()
        .records
        .iter()
        .map(|one| one.slot)
        .collect();
    assert_eq!(slots, [Some(1), Some(3)]);
}

#[test]
fn behind_an_event_without_its_newline_the_next_one_has_a_line_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    noted(&mut store, culprit(1, 1, 1));
    drop(store);
    let path = dir.path().join("evidence.log");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    noted(&mut store, culprit(1, 2, 2));
    let found = read(dir.path()).unwrap();
    assert_eq!(found.damage, []);
    assert_eq!(found.records.len(), 2);
}

#[test]
fn a_flood_fills_no_disk_and_the_first_of_each_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    noted(&mut store, culprit(0, 1, 1));
    // Of those that follow each other quickly only the first ones are written.
    for n in 0..10_000 {
        noted(&mut store, culprit(1, n, 2));
    }
    let bytes = || {
        let files = fs::read_dir(dir.path()).unwrap();
        files
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum::<u64>()
    };
    assert!(bytes() < 100 * 1024, "{}", bytes());
    // For ever, one a second.
    for second in 0..12_000 {
        noted(&mut store, culprit(1, 0, second * 1_000_000));
    }
    assert!(bytes() < 3 * FILE_BYTES_MAX, "{}", bytes());
    drop(store);
    let (store, found) = Store::open(dir.path()).unwrap();
    assert_eq!(found.damage, []);
    assert!(found.records.iter().any(|one| one.twin == Some(0)));
    assert!(
        found
            .records
            .iter()
            .any(|one| one.twin == Some(1) && one.count == 1)
    );
    assert_eq!(store.totals()["culprit"], 22_001);
}

#[test]
fn random_bytes_are_no_events() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    for n in 0..2_000_u32 {
        bytes.extend_from_slice(&Digest::of(&n.to_le_bytes()).0);
    }
    fs::write(dir.path().join("evidence.old.log"), &bytes).unwrap();
    fs::write(dir.path().join("evidence.log"), [b'a'; 10_000]).unwrap();
    let found = read(dir.path()).unwrap();
    assert_eq!(found.records, []);
    assert!(found.damage.len() > 100);
}

#[test]
fn a_count_at_its_end_stays_there() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    noted(&mut store, culprit(1, 7, 10));
    drop(store);
    let last = Record {
        count: u64::MAX,
        ..culprit(1, 8, 20)
    };
    let other = Record {
        count: u64::MAX,
        ..culprit(0, 8, 20)
    };
    let lines = [last, other].map(|record| file::encode(&record));
    fs::write(dir.path().join("evidence.log"), lines.concat()).unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    assert_eq!(noted(&mut store, culprit(1, 9, 30)).count, u64::MAX);
    assert_eq!(store.totals()["culprit"], u64::MAX);
}
