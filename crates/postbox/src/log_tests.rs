//! Writer and reader together, on plain memory.

use super::*;
use crate::log_view::Entry;
use crate::raw::PAGE_BYTES;
use proptest::prelude::*;

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

fn fresh() -> (LogWriter, Arc<ReadMemory>) {
    let (memory, view) = WriteMemory::heap_pair(region_bytes(&info().limits));
    (
        LogWriter::format(memory, info()).expect("valid limits"),
        view,
    )
}

fn append(writer: &mut LogWriter, sender: u8, payload: &[u8]) -> bool {
    let number = writer.ledger().next_number(sender);
    matches!(writer.append(sender, number, payload), Outcome::Accepted(_))
}

/// What an entry at this position must hold, so that torn bytes show.
fn payload_of(position: u64) -> Vec<u8> {
    let length = usize::try_from(position * 37 % 300).expect("small");
    position
        .to_le_bytes()
        .iter()
        .copied()
        .cycle()
        .take(length)
        .collect()
}

fn trim(writer: &mut LogWriter) -> bool {
    let position = writer.ledger().tail_position() / 4 * 4;
    let state = format!("state {position}");
    let outcomes = [0, 1].map(|twin| writer.trim(twin, position, state.as_bytes()));
    matches!(outcomes[1], TrimOutcome::Agreed { .. })
}

fn read_all(view: &mut LogView) -> Vec<(Entry, Vec<u8>)> {
    let mut seen = Vec::new();
    let mut payload = Vec::new();
    while let Some(entry) = view.poll_next(&mut payload).expect("a sound log") {
        seen.push((entry, payload.clone()));
    }
    seen
}

#[test]
fn nothing_shows_before_it_is_published() {
    let (mut writer, memory) = fresh();
    let mut view = LogView::open(memory).expect("a log");
    assert!(append(&mut writer, 1, b"first"));
    assert_eq!((view.end(), view.poll_next(&mut Vec::new())), (0, Ok(None)));
    assert!(writer.publish());
    let seen = read_all(&mut view);
    assert_eq!(
        seen,
        [(
            Entry {
                position: 0,
                sender: 1,
                append_number: 0
            },
            b"first".to_vec()
        )]
    );
    assert!(!writer.publish(), "there was nothing more");
}

#[test]
fn a_concurrent_reader_sees_right_bytes_or_is_lapped() {
    const ENTRIES: u64 = if cfg!(miri) { 150 } else { 20_000 };
    let (mut writer, memory) = fresh();
    let mut view = LogView::open(memory).expect("a log");
    let writing = std::thread::spawn(move || {
        while writer.ledger().tail_position() < ENTRIES {
            let position = writer.ledger().tail_position();
            let sender = u8::from(position % 2 == 1);
            if !append(&mut writer, sender, &payload_of(position)) {
                assert!(trim(&mut writer), "a quorum makes room");
            }
            writer.publish();
        }
    });
    let (mut read, mut lapped) = (0, 0);
    let mut payload = Vec::new();
    while view.position() < ENTRIES {
        match view.poll_next(&mut payload) {
            Ok(Some(entry)) => {
                assert_eq!(payload, payload_of(entry.position));
                read += 1;
            }
            Ok(None) => std::hint::spin_loop(),
            Err(ReadError::Lapped { .. }) => {
                lapped += 1;
                let state = view
                    .agreed_state()
                    .expect("a sound STATE")
                    .expect("it was trimmed");
                assert_eq!(state.bytes, format!("state {}", state.position).as_bytes());
                // The next trim may be faster; then it is lapped again.
                let _ = view.seek(state.position);
            }
            Err(error) => panic!("{error}"),
        }
    }
    writing.join().expect("the writer ends");
    assert!(read > 0 && read + lapped > 0);
}

#[test]
fn an_adopted_log_is_the_same_log() {
    let (mut writer, memory) = fresh();
    for position in 0..100 {
        if !append(
            &mut writer,
            u8::from(position % 3 == 0),
            &payload_of(position),
        ) {
            assert!(trim(&mut writer));
        }
    }
    writer.publish();
    let (into, copy) = WriteMemory::heap_pair(region_bytes(&info().limits));
    let mut adopted = LogWriter::adopt(into, memory.clone()).expect("a sound log");
    let (mut before, mut after) = (
        LogView::open(memory).expect("a log"),
        LogView::open(copy).expect("a log"),
    );
    assert_eq!(before.agreed_state(), after.agreed_state());
    assert_eq!((before.head(), before.end()), (after.head(), after.end()));
    assert_eq!(read_all(&mut before), read_all(&mut after));
    assert_eq!((after.info().epoch, after.info().generation), (5, 1));
    assert_eq!(
        adopted.ledger().next_number(1),
        writer.ledger().next_number(1)
    );
    assert!(trim(&mut adopted) || trim(&mut adopted));
    assert!(append(&mut adopted, 0, b"and on"));
    adopted.publish();
    assert_eq!(
        read_all(&mut after)
            .last()
            .map(|(_, payload)| payload.clone()),
        Some(b"and on".to_vec())
    );
}

#[test]
fn what_a_killed_broker_had_not_published_is_not_there_and_its_number_is_free() {
    let (mut writer, memory) = fresh();
    assert!(append(&mut writer, 0, b"in"));
    writer.publish();
    assert!(append(&mut writer, 0, b"half-way"));
    let (into, copy) = WriteMemory::heap_pair(region_bytes(&info().limits));
    let adopted = LogWriter::adopt(into, memory).expect("a sound log");
    assert_eq!(adopted.ledger().next_number(0), 1);
    assert_eq!(read_all(&mut LogView::open(copy).expect("a log")).len(), 1);
}

#[test]
fn a_refusal_shows_with_the_confirmations_below_it_and_not_before() {
    let (mut writer, memory) = fresh();
    let view = LogView::open(memory).expect("a log");
    let mut accepted = 0;
    while append(&mut writer, 0, &[1; 300]) {
        accepted += 1;
    }
    assert_eq!((view.refusals(0), view.next_number(0)), (0, 0));
    assert!(writer.publish());
    let refusal = view.last_refusal(0).expect("nobody is writing it");
    assert_eq!(
        (refusal.refusals, refusal.number, refusal.at_head),
        (1, accepted, 0)
    );
    assert_eq!(
        (refusal.reason, view.next_number(0)),
        (Some(Refusal::OverQuota), accepted)
    );
}

/// Flips one bit of a log that has wrapped and was trimmed. Whoever adopts it all the same must get
/// the same entries and numbers. Words that only describe (the host, a counter) may differ: those
/// are compared with the configuration by whoever adopts.
fn flip(byte: usize, bit: u8) {
    let (mut writer, memory) = fresh();
    for position in 0..60 {
        if !append(
            &mut writer,
            u8::from(position % 2 == 1),
            &payload_of(position),
        ) {
            assert!(trim(&mut writer));
        }
    }
    writer.publish();
    let expected = read_all(&mut LogView::open(memory.clone()).expect("a log"));
    let bent = memory.load_u8(byte) ^ (1 << bit);
    writer.memory.copy_in(byte, &[bent]);
    let (into, copy) = WriteMemory::heap_pair(region_bytes(&info().limits));
    if let Ok(view) = LogView::open(memory.clone())
        && region_bytes(&view.info().limits) == region_bytes(&info().limits)
        && let Ok(adopted) = LogWriter::adopt(into, memory)
    {
        assert_eq!(
            read_all(&mut LogView::open(copy).expect("a log")),
            expected,
            "byte {byte} bit {bit}"
        );
        for twin in 0..2 {
            assert_eq!(
                adopted.ledger().next_number(twin),
                writer.ledger().next_number(twin),
                "byte {byte} bit {bit}"
            );
        }
    }
}

#[test]
fn no_flipped_bit_of_the_control_header_loses_an_entry() {
    for byte in 0..size_of::<crate::layout::ControlHeader>() {
        for bit in 0..8 {
            flip(byte, bit);
        }
    }
}

proptest! {
    #[test]
    fn a_flipped_bit_elsewhere_is_an_error_or_without_effect(byte in PAGE_BYTES..3 * PAGE_BYTES + 8192, bit in 0u8..8) {
        flip(byte, bit);
    }
}

/// No broker comes to the last numbers, so a log that says so is damaged; it must not stop who reads it.
#[test]
fn a_log_at_the_end_of_its_numbers_is_damaged() {
    let (writer, memory) = fresh();
    let last = u64::MAX - 7;
    let at = writer.layout.data_at(last);
    writer.memory.copy_in(at, &encode_pad());
    writer.memory.store_u64(state_field!(1u64, offset), last);
    writer.memory.store_u64(header!(tail_offset), 32);
    writer.memory.store_u64(header!(states), 1);
    let mut view = LogView::open(memory).expect("a log");
    let damage = ReadError::Corrupt {
        position: 0,
        what: Corruption::Tail { tail: 32, at: last },
    };
    assert_eq!(view.poll_next(&mut Vec::new()), Err(damage));

    let (writer, memory) = fresh();
    writer.memory.store_u64(header!(generation), u64::MAX);
    let into = WriteMemory::heap(region_bytes(&info().limits));
    let adopted = LogWriter::adopt(into, memory);
    assert!(matches!(adopted, Err(AdoptError::Limits)));
}
