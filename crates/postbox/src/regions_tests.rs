//! A mirror holds what the log holds, and tells its readers the same, whenever it was attached.

use std::sync::Arc;

use proptest::prelude::*;

use crate::ledger::{Limits, Outcome};
use crate::log_view::{Entry, LogInfo, LogView, ReadError};
use crate::log_writer::{LogWriter, region_bytes};
use crate::raw::{ReadMemory, WriteMemory};

fn info() -> LogInfo {
    let limits = Limits {
        twins: 2,
        log_bytes: 8192,
        entry_bytes_max: 300,
        state_bytes_max: 100,
        trim_every: 4,
    };
    LogInfo {
        limits,
        epoch: 5,
        cluster_tag: 1,
        host: 2,
        generation: 0,
    }
}

fn fresh() -> (WriteMemory, Arc<ReadMemory>) {
    WriteMemory::heap_pair(region_bytes(&info().limits))
}

fn writer() -> (LogWriter, Arc<ReadMemory>) {
    let (memory, view) = fresh();
    let writer = LogWriter::format(memory, info()).expect("valid limits");
    (writer, view)
}

fn read_all(view: &mut LogView) -> Result<Vec<(Entry, Vec<u8>)>, ReadError> {
    let (mut seen, mut payload) = (Vec::new(), Vec::new());
    while let Some(entry) = view.poll_next(&mut payload)? {
        seen.push((entry, payload.clone()));
    }
    Ok(seen)
}

/// What readers of both can see, head and STATE included.
fn assert_same(log: &Arc<ReadMemory>, mirror: &Arc<ReadMemory>) {
    let open = |memory: &Arc<ReadMemory>| LogView::open(memory.clone()).expect("a log");
    let (mut log, mut mirror) = (open(log), open(mirror));
    assert_eq!(log.info(), mirror.info());
    assert_eq!((log.head(), log.end()), (mirror.head(), mirror.end()));
    assert_eq!(log.agreed_state(), mirror.agreed_state());
    for twin in 0..2 {
        assert_eq!(log.next_number(twin), mirror.next_number(twin));
        assert_eq!(log.refusals(twin), mirror.refusals(twin));
    }
    assert_eq!(read_all(&mut log), read_all(&mut mirror));
}

fn append(writer: &mut LogWriter, sender: u8, bytes: usize) -> Outcome {
    let number = writer.ledger().next_number(sender);
    writer.append(sender, number, &vec![sender + 1; bytes])
}

#[derive(Clone, Debug)]
enum Step {
    Append(u8, usize),
    Publish,
    Trim,
    Attach(u8),
    Fill(usize),
    Detach(u8),
}

/// What a twin was granted, and whether it was told of it.
type Mirrors = [Option<(Arc<ReadMemory>, bool)>; 2];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..2, 0usize..300).prop_map(|(sender, bytes)| Step::Append(sender, bytes)),
        3 => Just(Step::Publish),
        1 => Just(Step::Trim),
        1 => (0u8..2).prop_map(Step::Attach),
        3 => (0usize..5000).prop_map(Step::Fill),
        1 => (0u8..2).prop_map(Step::Detach),
    ]
}

fn run(step: &Step, writer: &mut LogWriter, mirrors: &mut Mirrors) {
    match *step {
        Step::Append(sender, bytes) => {
            append(writer, sender, bytes);
        }
        Step::Publish => {
            writer.publish();
        }
        Step::Trim => {
            let position = writer.ledger().tail_position() / 4 * 4;
            for twin in 0..2 {
                writer.trim(twin, position, format!("state {position}").as_bytes());
            }
        }
        Step::Attach(twin) => {
            let (memory, view) = fresh();
            writer.attach_mirror(twin, memory);
            mirrors[usize::from(twin)] = Some((view, false));
        }
        Step::Fill(bytes) => {
            if let Some(twin) = writer.fill_mirror(bytes) {
                let mirror = mirrors[usize::from(twin)].as_mut();
                mirror.expect("it was attached").1 = true;
            }
            let is_filling = mirrors.iter().flatten().any(|(_, is_whole)| !is_whole);
            assert_eq!(writer.is_filling(), is_filling);
        }
        Step::Detach(twin) => {
            let had = mirrors[usize::from(twin)].take().is_some();
            assert_eq!(writer.detach_mirror(twin), had);
        }
    }
}

proptest! {
    /// Attached between an append and its publishing, after trims, around the end of the data area, and filled in slices while
    /// all that goes on: from the moment that it is whole, a mirror shows what the log shows. Before that it is no log.
    #[test]
    fn a_mirror_shows_what_the_log_shows(steps in proptest::collection::vec(step(), 1..150)) {
        let (mut writer, log) = writer();
        let mut mirrors = [None, None];
        for step in &steps {
            run(step, &mut writer, &mut mirrors);
            for (mirror, is_whole) in mirrors.iter().flatten() {
                if *is_whole {
                    assert_same(&log, mirror);
                } else {
                    assert!(LogView::open(mirror.clone()).is_err());
                }
            }
        }
    }
}

/// A reader that stands in a mirror goes on reading through appends and trims, and is told when it was
/// lapped, as one of the log is.
#[test]
fn a_reader_of_a_mirror_goes_on_and_is_told_when_it_is_lapped() {
    let (mut writer, _log) = writer();
    let (memory, mirror) = fresh();
    writer.attach_mirror(1, memory);
    assert_eq!(writer.fill_mirror(usize::MAX), Some(1));
    let mut slow = LogView::open(mirror.clone()).expect("a log");
    let mut quick = LogView::open(mirror).expect("a log");
    let mut read = 0;
    for round in 0..20 {
        for sender in [0, 1] {
            while matches!(append(&mut writer, sender, 100), Outcome::Accepted(_)) {}
        }
        writer.publish();
        read += read_all(&mut quick).expect("never lapped").len() as u64;
        assert_eq!(read, writer.ledger().tail_position(), "round {round}");
        run(&Step::Trim, &mut writer, &mut [None, None]);
    }
    assert!(matches!(
        read_all(&mut slow),
        Err(ReadError::Lapped { position: 0 })
    ));
}

#[test]
#[should_panic(expected = "as large as the log")]
fn a_mirror_that_is_too_small_is_our_own_mistake() {
    let (mut writer, _log) = writer();
    writer.attach_mirror(0, WriteMemory::heap(4096));
}
