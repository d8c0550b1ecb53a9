//! Whatever is done to a file, the record that is wrong is named, and nothing wrong is believed.

use std::fs;
use std::path::Path;

use super::*;

const CLUSTER: &str = "test";

fn header(serial: u64, first_position: u64, previous: Option<End>) -> SegmentHeader {
    SegmentHeader {
        serial,
        cluster_id: CLUSTER.to_owned(),
        host: 2,
        epoch: 1,
        first_position,
        previous,
        state: (first_position > 0).then(|| b"the state".to_vec()),
    }
}

/// Writes a segment of these entries; where it ends, and the offset of each record.
fn write(dir: &Path, header: &SegmentHeader, entries: &[&[u8]]) -> (End, Vec<u64>) {
    let (mut bytes, mut chain) = header.encode();
    let mut offsets = Vec::new();
    let mut position = header.first_position;
    for payload in entries {
        offsets.push(bytes.len() as u64);
        let head = RecordHead {
            position,
            sender: u8::from(position % 2 == 1),
            epoch: header.epoch,
        };
        head.encode(payload, &mut chain, &mut bytes);
        position += 1;
    }
    fs::write(dir.join(file_name(header.serial)), bytes).expect("there is room");
    let end = End {
        epoch: header.epoch,
        position,
        chain,
    };
    (end, offsets)
}

/// The positions and payloads of a recording, how its segments join, and its damage.
type Read = (Vec<(u64, Vec<u8>)>, Vec<Joins>, Option<Damage>);

fn read(dir: &Path) -> Read {
    let mut recording = Recording::open(dir).expect("it is there");
    let (mut entries, mut joins, mut payload) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        match recording.next(&mut payload) {
            Ok(Some(Item::Entry(head))) => entries.push((head.position, payload.clone())),
            Ok(Some(Item::Segment { joins: how, .. })) => joins.push(how),
            Ok(None) => return (entries, joins, None),
            Err(damage) => return (entries, joins, Some(damage)),
        }
    }
}

const ENTRIES: [&[u8]; 4] = [b"one", b"", b"a somewhat longer entry", b"last"];

#[test]
fn every_flipped_byte_and_every_cut_names_the_record_and_nothing_after_it_is_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, offsets) = write(dir.path(), &header(0, 8, None), &ENTRIES);
    let path = dir.path().join(file_name(0));
    let whole = fs::read(&path).expect("it is there");
    let before = |at: usize| offsets.iter().rposition(|offset| *offset <= at as u64);
    let check = |what: &str, at: usize, is_torn: bool| {
        let (entries, _, damage) = read(dir.path());
        let damage = damage.unwrap_or_else(|| panic!("{what} at {at} went unnoticed"));
        let (offset, good) = before(at).map_or((0, 0), |n| (offsets[n], n));
        assert_eq!(
            (damage.offset, entries.len()),
            (offset, good),
            "{what} at {at}: {damage}"
        );
        assert!(
            damage.to_string().contains("000000000000.tbrec"),
            "{damage}"
        );
        assert!(!is_torn || damage.is_torn, "{what} at {at}: {damage}");
        let right = ENTRIES.iter().take(good);
        assert!(
            entries
                .iter()
                .map(|entry| entry.1.as_slice())
                .eq(right.copied())
        );
    };
    for at in 0..whole.len() {
        for bit in [1, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= bit;
            fs::write(&path, bytes).expect("there is room");
            check("a flip", at, false);
        }
        // A cut exactly between two records leaves a whole, shorter segment: its successor's link shows it.
        if !offsets.contains(&(at as u64)) {
            fs::write(&path, &whole[..at]).expect("there is room");
            check("a cut", at, true);
        }
    }
    fs::write(&path, &whole).expect("there is room");
    assert!(read(dir.path()).2.is_none());
}

#[test]
fn segments_join_repeat_and_show_their_gaps() {
    let dir = tempfile::tempdir().expect("a directory");
    let (end, _) = write(dir.path(), &header(0, 0, None), &ENTRIES);
    // Repeats the entries 2 and 3.
    let (end, _) = write(
        dir.path(),
        &header(1, 2, Some(end)),
        &[ENTRIES[2], ENTRIES[3], b"new"],
    );
    let (end, _) = write(dir.path(), &header(2, 8, Some(end)), &[b"after a gap"]);
    let mut next = header(3, 0, Some(end));
    next.epoch = 2;
    write(dir.path(), &next, &[b"new epoch"]);
    let (entries, joins, damage) = read(dir.path());
    assert!(damage.is_none(), "{damage:?}");
    assert!(
        entries
            .iter()
            .map(|entry| entry.0)
            .eq([0, 1, 2, 3, 4, 8, 0])
    );
    assert_eq!(entries[4].1, b"new");
    assert_eq!(
        joins,
        [
            Joins::First,
            Joins::Continues,
            Joins::Gap { missing: 3 },
            Joins::NewEpoch
        ]
    );

    // The oldest may go, and reading begins with the next one's STATE; one in the midst may not.
    fs::remove_file(dir.path().join(file_name(0))).expect("it is there");
    let (entries, joins, damage) = read(dir.path());
    assert!(damage.is_none());
    assert_eq!((entries[0].0, joins[0]), (2, Joins::First));
    fs::remove_file(dir.path().join(file_name(2))).expect("it is there");
    let (_, _, damage) = read(dir.path());
    assert!(damage.expect("noticed").problem.contains("segment 2"));
}

#[test]
fn a_segment_that_was_cut_between_records_is_missed_by_its_successor() {
    let dir = tempfile::tempdir().expect("a directory");
    let (end, offsets) = write(dir.path(), &header(0, 0, None), &ENTRIES);
    write(dir.path(), &header(1, 4, Some(end)), &[b"new"]);
    let path = dir.path().join(file_name(0));
    let whole = fs::read(&path).expect("it is there");
    let cut = usize::try_from(offsets[3]).expect("small");
    fs::write(&path, &whole[..cut]).expect("there is room");
    let (entries, _, damage) = read(dir.path());
    assert_eq!(entries.len(), 3);
    let damage = damage.expect("noticed");
    assert!(damage.problem.contains("ends otherwise"), "{damage}");
    assert!(damage.path.ends_with(file_name(1)), "{damage}");
}
