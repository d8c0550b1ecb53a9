//! The postbox's shared memory under every order of its atomic accesses that the memory model allows (loom).
//! `scripts/loom` runs it.
#![cfg(loom)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use twinbft_postbox::log_view::{LogView, ReadError};
use twinbft_postbox::log_writer::{LogWriter, region_bytes};
use twinbft_postbox::raw::{PAGE_BYTES, ReadMemory, WriteMemory};
use twinbft_postbox::vchan::{ORDER_MIN, RingConsumer, RingProducer, channel_bytes, initialise};
use twinbft_postbox::{Limits, LogInfo, Outcome, TrimOutcome};

/// Switches of threads that nothing forces, in one run.
const PREEMPTIONS: usize = 3;

fn explore(preemptions: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(run);
}

fn log() -> (LogWriter, Arc<ReadMemory>) {
    let limits = Limits {
        twins: 2,
        log_bytes: 4096,
        entry_bytes_max: 64,
        state_bytes_max: 8,
        trim_every: 1,
    };
    let (memory, view) = WriteMemory::heap_pair(region_bytes(&limits));
    let info = LogInfo {
        limits,
        epoch: 5,
        cluster_tag: 1,
        host: 2,
        generation: 0,
    };
    let writer = LogWriter::format(memory, info).expect("valid limits");
    // loom wants every word made before there are two threads.
    for at in (0..view.bytes()).step_by(8) {
        let _zero = view.load_u64(at);
    }
    (writer, view)
}

/// Every byte of an entry tells its position.
fn append(writer: &mut LogWriter, sender: u8, bytes: usize) {
    let position = writer.ledger().tail_position();
    let number = writer.ledger().next_number(sender);
    let payload = vec![u8::try_from(position).expect("few entries"); bytes];
    let outcome = writer.append(sender, number, &payload);
    assert!(matches!(outcome, Outcome::Accepted(_)));
}

#[test]
fn a_reader_sees_whole_entries_in_order() {
    explore(PREEMPTIONS, || {
        let (mut writer, memory) = log();
        let mut view = LogView::open(memory).expect("a log");
        let broker = thread::spawn(move || {
            for sender in 0..2 {
                append(&mut writer, sender, 8);
                writer.publish();
            }
        });
        let mut payload = Vec::new();
        for _ in 0..3 {
            let position = view.position();
            match view.poll_next(&mut payload).expect("a sound log") {
                Some(entry) => {
                    let byte = u8::try_from(position).expect("few entries");
                    assert_eq!((entry.position, &payload[..]), (position, &[byte; 8][..]));
                }
                None => assert!(position <= 2),
            }
        }
        broker.join().expect("no panic");
    });
}

#[test]
fn a_reader_whose_entry_is_overwritten_is_lapped_and_never_wrong() {
    explore(2, || {
        let (mut writer, memory) = log();
        // An entry of eight bytes, then as many as the log takes.
        append(&mut writer, 0, 8);
        for number in 0..40 {
            append(&mut writer, 1 - number % 2, 64);
        }
        writer.publish();
        let mut view = LogView::open(memory).expect("a log");
        let broker = thread::spawn(move || {
            let all = writer.ledger().tail_position();
            for twin in 0..2 {
                let outcome = writer.trim(twin, all, b"12345678");
                assert!(!matches!(outcome, TrimOutcome::Refused(_)));
            }
            while writer.ledger().tail_offset() < 4096 + 40 {
                append(&mut writer, 0, 8);
            }
            writer.publish();
        });
        let mut payload = Vec::new();
        match view.poll_next(&mut payload) {
            Ok(Some(entry)) => assert_eq!((entry.position, &payload[..]), (0, &[0; 8][..])),
            Ok(None) => panic!("it was there"),
            Err(error) => assert_eq!(error, ReadError::Lapped { position: 0 }),
        }
        broker.join().expect("no panic");
    });
}

#[test]
fn an_agreed_state_is_read_whole() {
    explore(2, || {
        let (mut writer, memory) = log();
        for sender in [0, 1, 0] {
            append(&mut writer, sender, 8);
        }
        writer.publish();
        let view = LogView::open(memory).expect("a log");
        let broker = thread::spawn(move || {
            for position in 1..=3 {
                let state = [u8::try_from(position).expect("three"); 8];
                for twin in 0..2 {
                    writer.trim(twin, position, &state);
                }
            }
        });
        if let Some(state) = view.agreed_state().expect("no damage") {
            let byte = u8::try_from(state.position).expect("three");
            assert_eq!(state.bytes, [byte; 8]);
        }
        broker.join().expect("no panic");
    });
}

fn ring() -> (RingProducer, RingConsumer) {
    let memory = Arc::new(WriteMemory::heap(channel_bytes(ORDER_MIN)));
    initialise(&memory, ORDER_MIN);
    // As in `log`: the indexes and the first bytes of the ring.
    let _zero = (memory.load_u32(0), memory.load_u32(4));
    memory.copy_out(PAGE_BYTES, &mut [0; 32]);
    (
        RingProducer::new(Arc::clone(&memory), ORDER_MIN),
        RingConsumer::new(memory, ORDER_MIN),
    )
}

#[test]
fn a_ring_gives_the_bytes_that_were_written() {
    explore(PREEMPTIONS, || {
        let (mut producer, mut consumer) = ring();
        let twin = thread::spawn(move || {
            for byte in [1, 2] {
                assert_eq!(producer.write(&[byte; 8]), Ok(8));
            }
            producer
        });
        let mut read = 0;
        for _ in 0..3 {
            let available = consumer.available().expect("a sound ring");
            for _ in 0..available / 8 {
                let mut bytes = [0; 8];
                consumer.read(&mut bytes);
                read += 1;
                assert_eq!(bytes, [read; 8]);
            }
            let _told = consumer.release();
        }
        let _producer = twin.join().expect("no panic");
    });
}

#[test]
fn a_consumer_that_sleeps_is_told() {
    explore(PREEMPTIONS, || {
        let (mut producer, mut consumer) = ring();
        // Both wishes stand at the beginning.
        let told = Arc::new(AtomicBool::new(producer.consumer_wants_notice()));
        told.store(false, Ordering::Relaxed);
        let note = Arc::clone(&told);
        let twin = thread::spawn(move || {
            producer.write(&[1; 8]).expect("room");
            if producer.consumer_wants_notice() {
                note.store(true, Ordering::Relaxed);
            }
            producer
        });
        consumer.request_data_notice();
        let sleeps = consumer.available().expect("a sound ring") == 0;
        let _producer = twin.join().expect("no panic");
        assert!(
            !sleeps || told.load(Ordering::Relaxed),
            "it sleeps for ever"
        );
    });
}
