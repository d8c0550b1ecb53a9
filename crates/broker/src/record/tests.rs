//! The recorder over a log in this process: what it writes, what it keeps, and what it says when it cannot.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use twinbft_postbox::log_view::{LogInfo, LogView};
use twinbft_postbox::transport::local::region::{LocalLog, ReadMemoryFile};
use twinbft_postbox::{Limits, Outcome, TrimOutcome, cluster_tag};
use twinbft_recording::{Item, Joins, file_name};

use super::recorder::Recorder;
use super::report::Report;
use super::*;

const CLUSTER: &str = "c";
/// Of an entry's payload: 31 of them fill a quarter of the log.
const PAYLOAD_BYTES: usize = 256;

struct Fixture {
    log: LocalLog,
    numbers: [u64; 2],
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let info = LogInfo {
            limits: Limits {
                twins: 2,
                log_bytes: 32 << 10,
                entry_bytes_max: 1024,
                state_bytes_max: 1024,
                trim_every: 4,
            },
            epoch: 1,
            cluster_tag: cluster_tag(CLUSTER),
            host: 1,
            generation: 0,
        };
        Self {
            log: LocalLog::create(info).expect("there is memory"),
            numbers: [0; 2],
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    fn options(&self, bytes_max: u64) -> RecordOptions {
        RecordOptions {
            dir: self.dir.path().join("h1"),
            bytes_max,
            cluster_id: CLUSTER.to_owned(),
            host: 1,
        }
    }

    fn recorder(&self, bytes_max: u64) -> (Recorder, Arc<Report>) {
        let options = self.options(bytes_max);
        let region = ReadMemoryFile::open(self.log.fd().as_fd()).expect("sealed");
        let view = LogView::open(region.memory).expect("a log");
        let (_near, far) = UnixStream::pair().expect("descriptors are left");
        let report = Arc::new(Report::new(&options, far));
        (Recorder::new(options, view, report.clone()), report)
    }

    fn append(&mut self, count: u64) {
        for _ in 0..count {
            let position = self.log.writer.ledger().tail_position();
            let sender = u8::from(position % 2 == 1);
            let number = &mut self.numbers[usize::from(sender)];
            let mut payload = vec![sender; PAYLOAD_BYTES];
            payload[..8].copy_from_slice(&position.to_le_bytes());
            let outcome = self.log.writer.append(sender, *number, &payload);
            assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
            *number += 1;
        }
        self.log.writer.publish();
    }

    fn trim(&mut self, position: u64) {
        let state = format!("state {position}");
        self.log.writer.trim(0, position, state.as_bytes());
        let outcome = self.log.writer.trim(1, position, state.as_bytes());
        assert!(matches!(outcome, TrimOutcome::Agreed { .. }), "{outcome:?}");
    }

    fn read(&self) -> (Vec<u64>, Vec<Joins>) {
        read(&self.options(0).dir)
    }
}

/// The positions of the entries in a record, and how its segments join.
fn read(dir: &Path) -> (Vec<u64>, Vec<Joins>) {
    let mut recording = twinbft_recording::Recording::open(dir).expect("it is there");
    let (mut positions, mut joins, mut payload) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(item) = recording.next(&mut payload).expect("it is whole") {
        match item {
            Item::Entry(head) => {
                assert_eq!(payload[..8], head.position.to_le_bytes());
                assert_eq!(
                    (payload.len(), u64::from(head.sender)),
                    (PAYLOAD_BYTES, head.position % 2)
                );
                positions.push(head.position);
            }
            Item::Segment { header, joins: how } => {
                let first = header.first_position;
                let state = (first > 0).then(|| format!("state {first}").into_bytes());
                assert_eq!((header.state, header.host, header.epoch), (state, 1, 1));
                assert_eq!(header.cluster_id, CLUSTER);
                joins.push(how);
            }
        }
    }
    (positions, joins)
}

#[test]
fn what_is_appended_is_recorded_over_restarts_without_a_gap() {
    let mut fixture = Fixture::new();
    let (mut recorder, report) = fixture.recorder(1 << 20);
    fixture.append(20);
    recorder.turn();
    assert_eq!((report.numbers().end, report.numbers().problem), (20, None));
    fixture.trim(12);
    fixture.append(3);
    recorder.turn();
    // Killed: what it has not read is still in the log.
    drop(recorder);
    fixture.append(5);
    let (mut recorder, report) = fixture.recorder(1 << 20);
    recorder.turn();
    fixture.append(2);
    recorder.finish();
    assert_eq!((report.numbers().gaps, report.numbers().errors), (0, 0));
    assert_eq!(report.take_events(), [""; 0]);
    let (positions, joins) = fixture.read();
    assert!(positions.into_iter().eq(0..30));
    assert_eq!(joins, [Joins::First, Joins::Continues]);
}

#[test]
fn the_oldest_go_when_the_bound_is_reached() {
    let mut fixture = Fixture::new();
    let bytes_max = 80 << 10;
    let (mut recorder, report) = fixture.recorder(bytes_max);
    for round in 0..60u64 {
        fixture.append(16);
        recorder.turn();
        assert!(
            report.numbers().bytes <= bytes_max,
            "{:?}",
            report.numbers()
        );
        fixture.trim(round * 16 + 8);
        recorder.turn();
    }
    recorder.finish();
    let numbers = report.numbers();
    assert!(numbers.dropped > 0 && numbers.segments > 2, "{numbers:?}");
    let counted = (numbers.end, numbers.gaps, numbers.errors, numbers.problem);
    assert_eq!(counted, (960, 0, 0, None));
    let (positions, joins) = fixture.read();
    assert!(positions[0] > 0 && positions.iter().copied().eq(positions[0]..960));
    assert!(
        joins[1..].iter().all(|how| *how == Joins::Continues),
        "{joins:?}"
    );
}

#[test]
fn a_recorder_that_the_log_has_passed_marks_the_gap_and_goes_on() {
    let mut fixture = Fixture::new();
    let (mut recorder, report) = fixture.recorder(1 << 20);
    fixture.append(10);
    recorder.turn();
    fixture.append(20);
    fixture.trim(24);
    fixture.append(60);
    fixture.trim(48);
    recorder.turn();
    recorder.turn();
    recorder.finish();
    assert_eq!(report.numbers().gaps, 1);
    let events = report.take_events();
    assert_eq!(events, ["a gap: entries 10 to 47 are in no file"]);
    let (positions, joins) = fixture.read();
    assert!(positions.into_iter().eq((0..10).chain(48..90)));
    assert_eq!(joins, [Joins::First, Joins::Gap { missing: 38 }]);
}

#[test]
fn a_directory_that_cannot_be_written_is_reported_and_no_other_hosts_record_is_touched() {
    let mut fixture = Fixture::new();
    fixture.append(4);
    let dir = fixture.options(0).dir;
    fs::write(&dir, "in the way").expect("there is room");
    let (mut recorder, report) = fixture.recorder(1 << 20);
    recorder.turn();
    let numbers = report.numbers();
    assert_eq!((numbers.errors, numbers.end), (1, 0));
    let problem = numbers.problem.expect("named");
    assert!(
        problem.contains("h1") && problem.contains("next attempt"),
        "{problem}"
    );
    assert_eq!(report.take_events(), [problem]);
    // Once more at the end, without waiting.
    fs::remove_file(&dir).expect("it is there");
    recorder.finish();
    assert_eq!(report.numbers().problem, None);
    assert_eq!(report.take_events(), ["recording again"]);
    assert!(fixture.read().0.into_iter().eq(0..4));

    let mut foreign = fixture.options(1 << 20);
    foreign.host = 2;
    let region = ReadMemoryFile::open(fixture.log.fd()).expect("sealed");
    let view = LogView::open(region.memory).expect("a log");
    let (_near, far) = UnixStream::pair().expect("descriptors are left");
    let report = Arc::new(Report::new(&foreign, far));
    Recorder::new(foreign, view, report.clone()).turn();
    let problem = report.numbers().problem.expect("named");
    assert!(
        problem.contains("record of host 1 of cluster 'c'"),
        "{problem}"
    );
    assert!(fixture.read().0.into_iter().eq(0..4));
}

#[test]
fn a_torn_end_is_cut_off_and_a_damaged_record_is_left_for_the_auditor() {
    let mut fixture = Fixture::new();
    let (mut recorder, _) = fixture.recorder(1 << 20);
    fixture.append(6);
    recorder.finish();
    let path = fixture.options(0).dir.join(file_name(0));
    let whole = fs::read(&path).expect("it is there");
    fs::write(&path, &whole[..whole.len() - 5]).expect("there is room");
    let (mut recorder, report) = fixture.recorder(1 << 20);
    fixture.append(2);
    recorder.finish();
    assert_eq!(report.numbers().problem, None);
    let (positions, joins) = fixture.read();
    assert!(positions.into_iter().eq(0..8));
    assert_eq!(joins, [Joins::First, Joins::Continues]);

    let path = fixture.options(0).dir.join(file_name(1));
    let mut bytes = fs::read(&path).expect("it is there");
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).expect("there is room");
    let (mut recorder, report) = fixture.recorder(1 << 20);
    recorder.finish();
    let events = report.take_events();
    assert!(
        events.len() == 1 && events[0].contains("does not match its hash"),
        "{events:?}"
    );
    assert!(events[0].contains(&file_name(1)), "{events:?}");
    assert_eq!(fs::read(&path).expect("it is there"), bytes);
}
