//! Fuzz targets of the postbox: its records and messages, and shared memory that the other side fills as it likes.
//! `scripts/fuzz` drives them by coverage, a plain run of the tests takes the stored corpus (`__fuzz__/`) and some random
//! inputs. The broker around the ring has its own target (`crates/broker/src/engine/fuzz.rs`).

use std::convert::Infallible;
use std::sync::Arc;

use bolero::{TypeGenerator, check};
use twinbft_postbox::frame::{Frame, FrameAssembler, FrameFault};
use twinbft_postbox::log_view::{LogInfo, LogView, ReadError};
use twinbft_postbox::log_writer::{LogWriter, region_bytes};
use twinbft_postbox::raw::{PAGE_BYTES, ReadMemory, WriteMemory};
use twinbft_postbox::record::{HEADER_BYTES, Header, PAD_HEADER_BYTES, decode, encode_pad};
use twinbft_postbox::transport::local::wire::{Greeting, Welcome};
use twinbft_postbox::transport::xen::descriptor::Descriptor;
use twinbft_postbox::transport::xen::xenstore_wire::{Decoder, Message, WireError};
use twinbft_postbox::vchan::{
    Peer, RingConsumer, RingProducer, WaitFlag, channel_bytes, client, initialise, read_page, reset,
};
use twinbft_postbox::{Limits, MemoryLog, MemoryRead, Outcome};

const ORDER: u16 = 12;
const RING_BYTES: u32 = 1 << ORDER;
/// Where the indexes stand in the shared page.
const CONS: usize = 0;
const PROD: usize = 4;

fn small() -> Limits {
    Limits {
        log_bytes: 8192,
        entry_bytes_max: 600,
        state_bytes_max: 300,
        trim_every: 2,
        ..Limits::new(2)
    }
}

#[test]
fn records() {
    check!()
        .with_iterations(1000)
        .for_each(|bytes: &[u8]| match decode(bytes) {
            Ok(Header::Entry(header)) => assert_eq!(header.encode(), bytes[..HEADER_BYTES]),
            Ok(Header::Pad) => assert_eq!(encode_pad(), bytes[..PAD_HEADER_BYTES]),
            Err(_) => {}
        });
}

#[test]
fn greetings() {
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
        // What is reserved is not looked at, so only what was understood comes back.
        if let Some(Ok(greeting)) = bytes.first_chunk().map(Greeting::decode) {
            assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
        }
        if let Some(Ok(welcome)) = bytes.first_chunk().map(Welcome::decode) {
            assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
        }
    });
}

/// What xenstored says and other domains choose: cut anywhere, it is the same messages.
#[test]
fn xenstore() {
    fn all(decoder: &mut Decoder, bytes: &[u8], into: &mut Vec<Message>) -> Result<(), WireError> {
        decoder.feed(bytes);
        while let Some(message) = decoder.poll()? {
            into.push(message);
        }
        Ok(())
    }
    check!()
        .with_iterations(1000)
        .with_type::<(Vec<u8>, Vec<u8>)>()
        .for_each(|(first, second)| {
            let (mut whole, mut cut) = (Vec::new(), Vec::new());
            let of_whole = all(
                &mut Decoder::default(),
                &[&first[..], second].concat(),
                &mut whole,
            );
            let mut decoder = Decoder::default();
            let of_cut = all(&mut decoder, first, &mut cut)
                .and_then(|()| all(&mut decoder, second, &mut cut));
            assert_eq!((of_whole, whole), (of_cut, cut));
        });
}

/// What stands in a guest's directory in xenstore: lines of a name, `=`, a value.
#[test]
fn descriptors() {
    check!().with_iterations(1000).for_each(|bytes: &[u8]| {
        let read = |name: &str| {
            let line = bytes
                .split(|byte| *byte == b'\n')
                .find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
            Ok::<_, Infallible>(line.map(<[u8]>::to_vec))
        };
        let Ok(decoded) = Descriptor::decode(read);
        if let Ok(descriptor) = decoded {
            let nodes = descriptor.encode();
            let again = Descriptor::decode(|name| {
                let node = nodes.iter().find(|(of, _)| of == name);
                Ok::<_, Infallible>(node.map(|(_, value)| value.clone().into_bytes()))
            });
            assert_eq!(again, Ok(Ok(descriptor)));
        }
    });
}

/// What a guest does to its ring, and the broker in between.
#[derive(Clone, Debug, TypeGenerator)]
enum RingAct {
    /// Bytes anywhere in the shared page or the ring.
    Scribble { at: u16, bytes: Vec<u8> },
    /// The producer's index, by what the broker has not read yet.
    Announce { unread: u16 },
    /// The producer's index as it likes.
    Index(u32),
    /// A header that leads further in.
    Header { kind: bool, bytes: u16, number: u8 },
    /// The broker looks.
    Poll,
    /// The broker looks whether the guest sleeps.
    Wake { only_own: bool },
}

/// Whatever stands in a ring, and however its indexes move between two looks: the broker takes no byte that was not
/// announced, an index that is impossible is a fault and nothing else is, and a ring that was emptied serves again.
#[test]
fn ring() {
    check!()
        .with_iterations(1000)
        .with_type::<Vec<RingAct>>()
        .for_each(|acts| {
            let memory = Arc::new(WriteMemory::heap(channel_bytes(ORDER)));
            initialise(&memory, ORDER);
            let limits = small();
            let mut ring = Broker::new(&memory, &limits);
            for act in acts {
                match act {
                    RingAct::Scribble { at, bytes } => {
                        let at = usize::from(*at) % (memory.bytes() - bytes.len());
                        memory.copy_in(at, bytes);
                    }
                    RingAct::Announce { unread } => memory.store_u32(
                        PROD,
                        ring.cons
                            .wrapping_add(u32::from(*unread) % (RING_BYTES + 8)),
                    ),
                    RingAct::Index(prod) => memory.store_u32(PROD, *prod),
                    RingAct::Header {
                        kind,
                        bytes,
                        number,
                    } => {
                        let header = [u32::from(*bytes), 1 + u32::from(*kind), (*number).into(), 0];
                        for (word, value) in header.into_iter().enumerate() {
                            let within = ring.cons as usize + 4 * word;
                            let at = PAGE_BYTES + (within % RING_BYTES as usize) / 4 * 4;
                            memory.store_u32(at, value);
                        }
                    }
                    RingAct::Poll => ring.poll(&memory, &limits),
                    RingAct::Wake { only_own } => {
                        let flag = WaitFlag::new(memory.clone());
                        assert!(!flag.take(*only_own) || !flag.take(false), "woken once");
                    }
                }
                let _ = read_page(&memory);
            }
            // Its next process finds an empty ring that works.
            drop(ring);
            reset(&memory, ORDER);
            let mut ring = Broker::new(&memory, &limits);
            let mut producer = RingProducer::new(memory.clone(), ORDER);
            let bytes = twinbft_postbox::frame::encode_append(0, b"again");
            assert_eq!(producer.write(&bytes), Ok(bytes.len()));
            let consumer = ring.consumer.as_mut().expect("a fresh one");
            let frame = ring.assembler.poll_frame(consumer).expect("a good frame");
            let payload = &b"again"[..];
            assert_eq!(frame, Some(Frame::Append { number: 0, payload }));
        });
}

/// What the broker holds of a guest, and what the test knows of it.
struct Broker {
    /// `None` from a fault on.
    consumer: Option<RingConsumer>,
    assembler: FrameAssembler,
    /// What was read.
    cons: u32,
    /// What the last look found announced.
    seen: u32,
}

impl Broker {
    fn new(memory: &Arc<WriteMemory>, limits: &Limits) -> Self {
        Self {
            consumer: Some(RingConsumer::new(memory.clone(), ORDER)),
            assembler: FrameAssembler::new(limits),
            cons: 0,
            seen: 0,
        }
    }

    fn poll(&mut self, memory: &Arc<WriteMemory>, limits: &Limits) {
        if client(memory) == Peer::Gone {
            // As `Guest::renew` does; the consumer that is dropped says that it is gone, and a new one is there.
            self.consumer = None;
            reset(memory, ORDER);
            *self = Self::new(memory, limits);
        }
        let Some(consumer) = &mut self.consumer else {
            return;
        };
        let prod = memory.load_u32(PROD);
        let unread = prod.wrapping_sub(self.cons);
        let possible = unread <= RING_BYTES && unread >= self.seen.wrapping_sub(self.cons);
        match self.assembler.poll_frame(consumer) {
            Ok(frame) => {
                assert!(possible, "an index of {prod} passed at {}", self.cons);
                match frame {
                    Some(Frame::Append { payload, .. }) => {
                        assert!(payload.len() <= limits.entry_bytes_max as usize);
                    }
                    Some(Frame::Trim { state, .. }) => {
                        assert!(state.len() <= limits.state_bytes_max as usize);
                    }
                    Some(Frame::AppendTooLarge { payload_bytes, .. }) => {
                        assert!(payload_bytes > limits.entry_bytes_max);
                    }
                    Some(Frame::TrimTooLarge) | None => {}
                }
                self.seen = prod;
                // The broker never looks at the shared copy of its own index.
                memory.store_u32(CONS, self.cons);
                let _ = consumer.release();
                let cons = memory.load_u32(CONS);
                assert!(cons.wrapping_sub(self.cons) <= unread, "read too far");
                self.cons = cons;
            }
            Err(fault) => {
                let by_index = matches!(fault, FrameFault::Ring(_));
                assert_eq!(by_index, !possible, "{fault}");
                self.consumer = None;
            }
        }
    }
}

/// A rule-abiding or a foolish twin.
#[derive(Clone, Debug, TypeGenerator)]
enum LogAct {
    Append {
        twin: bool,
        skip: bool,
        bytes: u16,
    },
    Trim {
        twin: bool,
        position: u8,
        state: u16,
    },
    Publish,
    Restart,
}

/// The log in shared memory does what the rules in plain memory say, over restarts too, and a reader sees it.
#[test]
fn log() {
    check!()
        .with_iterations(300)
        .with_type::<Vec<LogAct>>()
        .for_each(|acts| {
            let (mut writer, mut memory) = fresh_log();
            let mut model: MemoryLog<Vec<u8>> = MemoryLog::new(small()).expect("good limits");
            for act in acts {
                match act {
                    LogAct::Append { twin, skip, bytes } => {
                        let twin = u8::from(*twin);
                        let number = model.ledger().next_number(twin) + u64::from(*skip);
                        let payload = vec![bytes.to_le_bytes()[0]; usize::from(*bytes) % 700];
                        let outcome = writer.append(twin, number, &payload);
                        assert_eq!(model.append(twin, number, payload), outcome);
                        assert!(!*skip || matches!(outcome, Outcome::OutOfOrder { .. }));
                    }
                    LogAct::Trim {
                        twin,
                        position,
                        state,
                    } => {
                        let state = vec![3; usize::from(*state) % 400];
                        let (twin, position) = (u8::from(*twin), u64::from(*position));
                        let outcome = writer.trim(twin, position, &state);
                        assert_eq!(model.trim(twin, position, &state), outcome);
                    }
                    LogAct::Publish => {
                        writer.publish();
                    }
                    LogAct::Restart => {
                        writer.publish();
                        model.restart_kept();
                        let (into, view) = WriteMemory::heap_pair(region_bytes(&small()));
                        writer = LogWriter::adopt(into, memory).expect("our own log");
                        memory = view;
                    }
                }
            }
            writer.publish();
            let mut view = LogView::open(memory).expect("our own log");
            assert_eq!(view.position(), model.head());
            assert_eq!(view.agreed_state(), Ok(model.agreed_state().cloned()));
            let mut payload = Vec::new();
            while let Some(entry) = view.poll_next(&mut payload).expect("our own log") {
                match model.read(entry.position) {
                    MemoryRead::Entry(of) => {
                        assert_eq!((of.sender, &of.bytes), (entry.sender, &payload));
                    }
                    other => panic!("not in the model: {other:?}"),
                }
            }
            assert_eq!(view.position(), model.end());
        });
}

fn fresh_log() -> (LogWriter, Arc<ReadMemory>) {
    let info = LogInfo {
        limits: small(),
        epoch: 3,
        cluster_tag: 4,
        host: 1,
        generation: 0,
    };
    let (into, view) = WriteMemory::heap_pair(region_bytes(&small()));
    (LogWriter::format(into, info).expect("good limits"), view)
}

/// Damage of a log, and what its readers do.
#[derive(Clone, Debug, TypeGenerator)]
enum RegionAct {
    /// A word of the control page.
    Word {
        at: u8,
        value: u64,
    },
    /// Bytes anywhere.
    Scribble {
        at: u16,
        bytes: Vec<u8>,
    },
    Read,
    Seek(u64),
    State,
    Reopen,
    Adopt,
}

/// A log that is not what a broker writes: named as that, and nothing that is out of its bounds is given out.
#[test]
fn region() {
    check!()
        .with_iterations(1000)
        .with_type::<Vec<RegionAct>>()
        .for_each(|acts| {
            let (mut writer, _) = fresh_log();
            for number in 0..12 {
                for twin in 0..2 {
                    let payload = vec![twin; 1 + 30 * usize::try_from(number).expect("small")];
                    writer.append(twin, number, &payload);
                }
            }
            for twin in 0..2 {
                writer.trim(twin, 6, b"the state");
            }
            let (region, shown) = WriteMemory::heap_pair(region_bytes(&small()));
            writer.attach_mirror(0, region);
            assert_eq!(writer.fill_mirror(usize::MAX), Some(0));
            writer.publish();
            // The mirror's writer is gone, so its memory is the test's to bend.
            let mut bytes = vec![0; shown.bytes()];
            shown.copy_out(0, &mut bytes);
            let (region, shown) = WriteMemory::heap_pair(bytes.len());
            region.copy_in(0, &bytes);
            let mut view = LogView::open(shown.clone()).expect("sound so far");
            let mut payload = Vec::new();
            for act in acts {
                match act {
                    RegionAct::Word { at, value } => {
                        region.store_u64(usize::from(*at) % 80 * 8, *value);
                    }
                    RegionAct::Scribble { at, bytes } => {
                        let at = usize::from(*at) % (region.bytes() - bytes.len());
                        region.copy_in(at, bytes);
                    }
                    RegionAct::Read => match view.poll_next(&mut payload) {
                        Ok(Some(entry)) => {
                            assert!(entry.sender < view.info().limits.twins);
                            assert!(payload.len() <= view.info().limits.entry_bytes_max as usize);
                            assert_eq!(entry.position + 1, view.position());
                        }
                        Ok(None) | Err(ReadError::Lapped { .. } | ReadError::Corrupt { .. }) => {}
                        Err(error @ ReadError::BeyondEnd { .. }) => panic!("{error}"),
                    },
                    RegionAct::Seek(to) => {
                        if view.seek(*to).is_ok() {
                            assert_eq!(view.position(), *to);
                        }
                    }
                    RegionAct::State => {
                        if let Ok(Some(state)) = view.agreed_state() {
                            assert!(
                                state.bytes.len() <= view.info().limits.state_bytes_max as usize
                            );
                        }
                    }
                    RegionAct::Reopen => {
                        if let Ok(opened) = LogView::open(shown.clone()) {
                            view = opened;
                        }
                    }
                    RegionAct::Adopt => {
                        // Larger limits than the region has room for are refused before this.
                        if let Ok(opened) = LogView::open(shown.clone()) {
                            let bytes = region_bytes(&opened.info().limits);
                            let _ = LogWriter::adopt(WriteMemory::heap(bytes), shown.clone());
                        }
                    }
                }
                let _ = (view.end(), view.head(), view.has_news());
            }
        });
}
