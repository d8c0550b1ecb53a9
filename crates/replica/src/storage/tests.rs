use std::path::PathBuf;
use std::sync::mpsc;

use proptest::prelude::*;
use twinbft_types::{Certificate, Entry, HostId, Incarnation, Signed, Statement, View};

use super::*;

const OWNER: Digest = Digest([7; 32]);

fn slot(n: u64) -> Record {
    Record::Slot {
        slot: Slot(n),
        previous: Digest([1; 32]),
        timestamp_us: n,
        bodies: Vec::new(),
        certificate: Some(Certificate {
            signed: Signed {
                host: HostId(0),
                incarnation: Incarnation(0),
                statement: Statement::Order {
                    view: View(0),
                    slot: Slot(n),
                    history: Digest([2; 32]),
                },
            },
            authenticators: Vec::new(),
        }),
    }
}

fn leave(view: u64) -> Record {
    Record::Promise(Entry::Leave {
        view: View(view),
        certificates: Vec::new(),
    })
}

fn stable(n: u64) -> Record {
    Record::Stable {
        slot: Slot(n),
        digest: Digest([3; 32]),
    }
}

const GROUP: Policy = Policy::Group {
    commit: Duration::from_millis(1),
};

/// Writes the records with one flush each and closes the log.
fn write(dir: &Path, records: &[Record]) {
    let (mut storage, _) = Storage::open(dir, OWNER, GROUP, || {}).unwrap();
    for record in records {
        storage.append(record).unwrap();
        storage.flush().unwrap();
    }
    storage.close().unwrap();
}

fn only_segment(dir: &Path) -> PathBuf {
    let numbers = segment_numbers(dir).unwrap();
    assert_eq!(numbers.len(), 1);
    segment_path(dir, numbers[0])
}

#[test]
fn what_was_written_is_read_back_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let records = [slot(1), leave(3), slot(2), stable(1)];
    write(dir.path(), &records);
    let found = read_segments(dir.path(), OWNER).unwrap();
    assert_eq!(found.records, records);
    assert_eq!(found.torn, None);
}

#[test]
fn memory_keeps_no_file_and_reveals_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut storage, _) = Storage::open(dir.path(), OWNER, Policy::Memory, || {}).unwrap();
    assert_eq!(storage.append(&slot(1)).unwrap(), 1);
    assert_eq!(storage.revealable(), 1);
    storage.close().unwrap();
    assert_eq!(segment_numbers(dir.path()).unwrap(), Vec::<u64>::new());
}

#[test]
fn group_reveals_what_is_written_and_sync_only_what_is_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (mut storage, _) = Storage::open(dir.path(), OWNER, GROUP, || {}).unwrap();
    storage.append(&slot(1)).unwrap();
    assert_eq!(storage.revealable(), 0);
    storage.flush().unwrap();
    assert_eq!(storage.revealable(), 1);
    storage.close().unwrap();

    let dir = tempfile::tempdir().unwrap();
    let (wake, woken) = mpsc::channel();
    let (mut storage, _) = Storage::open(dir.path(), OWNER, Policy::Sync, move || {
        wake.send(()).unwrap();
    })
    .unwrap();
    storage.append(&slot(1)).unwrap();
    assert_eq!(storage.revealable(), 0);
    storage.flush().unwrap();
    while storage.revealable() == 0 {
        woken.recv().unwrap();
    }
    assert_eq!(storage.status().synced, 1);
}

#[test]
fn a_truncated_record_is_a_torn_tail_that_names_its_place() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[slot(1)]);
    let path = only_segment(dir.path());
    let whole = std::fs::metadata(&path).unwrap().len();
    write(dir.path(), &[]);
    std::fs::remove_file(segment_path(dir.path(), 1)).unwrap();
    let dir2 = tempfile::tempdir().unwrap();
    write(dir2.path(), &[slot(1), slot(2)]);
    let bytes = std::fs::read(only_segment(dir2.path())).unwrap();
    for cut in whole + 1..bytes.len() as u64 {
        std::fs::write(&path, &bytes[..usize::try_from(cut).unwrap()]).unwrap();
        let found = read_segments(dir.path(), OWNER).unwrap();
        assert_eq!(found.records, [slot(1)]);
        let torn = TornTail {
            path: path.clone(),
            offset: whole,
        };
        assert_eq!(found.torn, Some(torn), "cut at {cut}");
    }
}

/// Issue of a full disk: each start cuts what the failed write before it left, and none calls it damage.
#[test]
fn a_torn_tail_is_cut_off_so_that_many_starts_find_what_was_whole() {
    for cut in [0, 10, 63, 64, 70] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[slot(1)]);
        write(dir.path(), &[slot(2)]);
        let path = segment_path(dir.path(), 1);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..cut]).unwrap();
        for start in 0..3 {
            let (storage, found) = Storage::open(dir.path(), OWNER, GROUP, || {}).unwrap();
            storage.close().unwrap();
            assert_eq!(found.records, [slot(1)], "cut at {cut}, start {start}");
            assert_eq!(found.torn.is_some(), start == 0 && cut != 64);
        }
    }
}

/// A file that had grown when the power went, and whose last pages never came to the disk.
#[test]
fn a_hole_of_zeros_at_the_end_is_a_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[slot(1)]);
    let path = only_segment(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let mut grown = whole.clone();
    grown.resize(whole.len() + 300, 0);
    std::fs::write(&path, &grown).unwrap();
    let found = read_segments(dir.path(), OWNER).unwrap();
    assert_eq!(found.records, [slot(1)]);
    assert_eq!(found.torn.unwrap().offset, whole.len() as u64);

    std::fs::write(&path, vec![0; 4096]).unwrap();
    assert_eq!(
        read_segments(dir.path(), OWNER)
            .unwrap()
            .torn
            .unwrap()
            .offset,
        0
    );
}

#[test]
fn a_torn_record_before_a_later_segment_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[slot(1)]);
    write(dir.path(), &[slot(2)]);
    let path = segment_path(dir.path(), 0);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let error = read_segments(dir.path(), OWNER).unwrap_err();
    assert!(
        matches!(&error, ReadError::Corrupt { path: named, offset: 64, .. } if *named == path),
        "{error}"
    );
}

#[test]
fn another_twins_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[slot(1)]);
    let error = read_segments(dir.path(), Digest([8; 32])).unwrap_err();
    assert!(matches!(error, ReadError::Foreign { .. }), "{error}");
}

proptest! {
    /// A flipped bit is an error that names the file and the beginning of the damaged record, or a tail that looks torn
    /// when it hit nothing but the file's end; never a wrong record.
    #[test]
    fn a_flipped_bit_is_named_by_file_and_offset(position in 0usize..2000, bit in 0u8..8) {
        let dir = tempfile::tempdir().unwrap();
        let records = [slot(1), leave(1), slot(2)];
        write(dir.path(), &records);
        let path = only_segment(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        let at = position % bytes.len();
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, &bytes).unwrap();
        let header_padding = 52..64;
        match read_segments(dir.path(), OWNER) {
            Ok(found) => prop_assert!(false, "flip at {at} went unnoticed: {found:?}"),
            Err(ReadError::Corrupt { path: named, offset, .. }) => {
                prop_assert_eq!(named, path);
                prop_assert!(offset <= at as u64);
            }
            Err(ReadError::Foreign { .. }) => prop_assert!(header_padding.contains(&at)),
            Err(error @ ReadError::Io { .. }) => prop_assert!(false, "{error}"),
        }
    }

    /// Random bytes behind a good header are damage or a torn tail, never a panic.
    #[test]
    fn random_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[]);
        let path = only_segment(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        let header = bytes.len();
        bytes.extend_from_slice(&tail);
        std::fs::write(&path, &bytes).unwrap();
        match read_segments(dir.path(), OWNER) {
            Ok(found) => prop_assert!(found.records.is_empty() && (found.torn.is_some() || bytes.len() == header)),
            Err(error) => prop_assert!(matches!(error, ReadError::Corrupt { .. }), "{error}"),
        }
    }
}

#[test]
fn segments_below_the_stable_checkpoint_go_and_promises_without_a_slot_stay() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[leave(5), slot(1), slot(2)]);
    let (mut storage, found) = Storage::open(dir.path(), OWNER, GROUP, || {}).unwrap();
    assert_eq!(found.records.len(), 3);
    storage.append(&slot(3)).unwrap();
    storage.append(&stable(1)).unwrap();
    storage.flush().unwrap();
    assert_eq!(storage.status().segments, 2, "slot 2 is not stable");
    storage.append(&stable(2)).unwrap();
    storage.flush().unwrap();
    storage.close().unwrap();
    assert_eq!(segment_numbers(dir.path()).unwrap(), [1]);
    let found = read_segments(dir.path(), OWNER).unwrap();
    assert!(
        found.records.contains(&leave(5)),
        "a LEAVE is never forgotten"
    );
    assert!(found.records.contains(&slot(3)) && !found.records.contains(&slot(2)));
}

/// Should the postbox's log be lost, what others had certified is nowhere else on this host (protocol.md 5).
#[test]
fn certificates_of_the_stable_checkpoint_outlive_the_segments_they_came_in() {
    let proof = |n: u64| {
        let Record::Slot {
            certificate: Some(certificate),
            ..
        } = slot(n)
        else {
            unreachable!("it has one")
        };
        Record::Proof(certificate)
    };
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[proof(1), slot(1), proof(2), slot(2)]);
    let (mut storage, _) = Storage::open(dir.path(), OWNER, GROUP, || {}).unwrap();
    storage.append(&stable(2)).unwrap();
    storage.flush().unwrap();
    storage.close().unwrap();
    // And another one: what was taken over is taken over again.
    write(dir.path(), &[]);
    write(dir.path(), &[stable(2)]);
    let found = read_segments(dir.path(), OWNER).unwrap();
    assert!(found.numbers[0] > 0, "the first segment is gone");
    assert!(found.records.contains(&proof(2)) && !found.records.contains(&slot(2)));
}

#[test]
fn a_large_log_is_split_and_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut storage, _) = Storage::open(dir.path(), OWNER, GROUP, || {}).unwrap();
    let body = twinbft_types::Request {
        client: twinbft_types::ClientId { key: 0, session: 1 },
        seq: twinbft_types::Seq(1),
        operation: vec![9; 3 << 20].into(),
    };
    for n in 1..=12 {
        let record = Record::Slot {
            slot: Slot(n),
            previous: Digest::ZERO,
            timestamp_us: 0,
            bodies: vec![body.clone()],
            certificate: None,
        };
        storage.append(&record).unwrap();
        storage.flush().unwrap();
    }
    assert_eq!(storage.status().segments, 2);
    storage.append(&stable(12)).unwrap();
    storage.flush().unwrap();
    assert_eq!(storage.status().segments, 1);
    storage.close().unwrap();
    let found = read_segments(dir.path(), OWNER).unwrap();
    assert_eq!(found.records.last(), Some(&stable(12)));
    assert_eq!(
        found.numbers,
        [2],
        "the record of the checkpoint began a third one"
    );
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = Storage::open(&file, OWNER, GROUP, || {}).err().unwrap();
    assert!(
        error.to_string().contains(file.to_str().unwrap()),
        "{error}"
    );
}

/// Whatever goes wrong behind the back of the core's thread reaches it: the node stops.
#[test]
fn a_failure_in_the_background_is_an_error_of_the_next_flush() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[slot(1)]);
    let (wake, woken) = mpsc::channel();
    let wake = move || wake.send(()).unwrap();
    let (mut storage, _) = Storage::open(dir.path(), OWNER, Policy::Sync, wake).unwrap();
    storage.append(&slot(2)).unwrap();
    storage.flush().unwrap();
    while storage.revealable() < 1 {
        woken.recv().unwrap();
    }
    let gone = segment_path(dir.path(), 0);
    std::fs::remove_file(&gone).unwrap();
    storage.append(&stable(1)).unwrap();
    storage.flush().unwrap();
    let error = loop {
        woken.recv().unwrap();
        match storage.flush() {
            Ok(()) => {}
            Err(error) => break error.to_string(),
        }
    };
    assert!(
        error.starts_with("removing") && error.contains(gone.to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn a_new_segment_that_cannot_be_made_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("wal");
    let (mut storage, _) = Storage::open(&logs, OWNER, GROUP, || {}).unwrap();
    std::fs::remove_dir_all(&logs).unwrap();
    let large = Record::Slot {
        slot: Slot(1),
        previous: Digest::ZERO,
        timestamp_us: 0,
        bodies: vec![twinbft_types::Request {
            client: twinbft_types::ClientId { key: 0, session: 1 },
            seq: twinbft_types::Seq(1),
            operation: vec![9; 17 << 20].into(),
        }],
        certificate: None,
    };
    storage.append(&large).unwrap();
    let error = storage.append(&slot(2)).unwrap_err().to_string();
    let path = segment_path(&logs, 1);
    assert!(
        error.contains(path.to_str().unwrap()) && error.contains("free space"),
        "{error}"
    );
}
