//! A fuzz target: one twin does what it likes to its socket and to the memory of its ring, between any two turns of the
//! broker, and the other one never notices. `scripts/fuzz` drives it by coverage.
//!
//! The ring of a Xen guest is the same memory under the same code; that it is emptied for the guest's next process is in
//! `crates/postbox/tests/fuzz.rs`.

use std::cell::RefCell;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bolero::{TypeGenerator, check};
use twinbft_postbox::frame::{encode_append, encode_trim};
use twinbft_postbox::log_view::{LogInfo, LogView};
use twinbft_postbox::raw::{PAGE_BYTES, WriteMemory};
use twinbft_postbox::transport::local::fds::receive_with_fds;
use twinbft_postbox::transport::local::region::ReadMemoryFile;
use twinbft_postbox::transport::local::wire::{Greeting, PROTOCOL_VERSION, WELCOME_BYTES};
use twinbft_postbox::vchan::{RingProducer, channel_bytes};
use twinbft_postbox::{Limits, cluster_tag, socket_path, status_socket_path};

use super::*;
use crate::journal::LogFormat;

const CLUSTER: &str = "fuzz";
const HOST: u32 = 3;
const ORDER: u16 = 12;
const RING_BYTES: u32 = 1 << ORDER;
/// Where the producer's index stands in the shared page.
const PROD: usize = 4;
pub(super) const HOSTILE: u8 = 0;
const HONEST: u8 = 1;

#[derive(Clone, Debug, TypeGenerator)]
enum Act {
    /// The hostile twin connects, with a greeting or with anything.
    Connect { instead: Option<Vec<u8>> },
    /// Bytes on its socket.
    Say(Vec<u8>),
    /// Its socket is closed.
    HangUp,
    /// Bytes anywhere in its memory.
    Scribble { at: u16, bytes: Vec<u8> },
    /// Its index as it likes.
    Index(u32),
    /// Its index a bit further.
    Announce(u16),
    /// A frame that is well formed.
    Append { number: u8, bytes: u16 },
    /// The same, of a trim.
    Trim { position: u8, state: u16 },
    /// One turn of the broker.
    Turn,
    /// The honest twin appends, and trims where it can.
    Honest { trim: bool },
}

/// What a broker needs and what outlives it.
pub(super) struct Kit {
    dir: tempfile::TempDir,
    sockets: Sockets,
    /// Kept, so that a million brokers write few lines.
    journal: Journal,
    lock: Flock<File>,
}

thread_local! {
    static KIT: RefCell<Option<Kit>> = const { RefCell::new(None) };
}

pub(super) fn kit() -> Kit {
    let dir = tempfile::tempdir().expect("a directory");
    let listen = |path: std::path::PathBuf| {
        let listener = UnixListener::bind(path).expect("a fresh directory");
        listener.set_nonblocking(true).expect("a socket");
        listener
    };
    let own = nix::unistd::Uid::effective().as_raw();
    let twins = [HOSTILE, HONEST];
    let twins = twins.map(|twin| (listen(socket_path(dir.path(), twin)), own));
    let file = File::create(dir.path().join("broker.lock")).expect("a fresh directory");
    let lock = Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock);
    Kit {
        sockets: Sockets {
            twins: twins.into(),
            status: listen(status_socket_path(dir.path())),
        },
        journal: Journal::new(LogFormat::Text, HOST),
        lock: lock.map_err(|(_, error)| error).expect("nobody else's"),
        dir,
    }
}

pub(super) fn broker(kit: Kit, log_bytes: u64) -> (Broker, tempfile::TempDir) {
    let Kit {
        dir,
        sockets,
        journal,
        lock,
    } = kit;
    let (path, id) = (dir.path().to_owned(), CLUSTER.to_owned());
    let mut options = BrokerOptions::new(path.clone(), path, id, HOST, 2);
    options.limits = Limits {
        log_bytes,
        entry_bytes_max: 4000,
        state_bytes_max: 4096,
        trim_every: 2,
        ..Limits::new(2)
    };
    options.ring_order = ORDER;
    let log = LocalLog::create(LogInfo {
        limits: options.limits.clone(),
        epoch: 1,
        cluster_tag: cluster_tag(CLUSTER),
        host: HOST,
        generation: 0,
    });
    let supervisor = Supervisor::from_environment().expect("none, or one that is there");
    let log = log.expect("there is memory");
    let broker = Broker::new(options, log, sockets, supervisor, journal, lock);
    (broker.expect("descriptors are left"), dir)
}

fn turn(broker: &mut Broker) {
    broker.turn(EpollTimeout::ZERO).expect("the kernel works");
}

fn greeting(twin: u8) -> [u8; 32] {
    let greeting = Greeting {
        version: PROTOCOL_VERSION,
        cluster_tag: cluster_tag(CLUSTER),
        host: HOST,
        twin,
    };
    greeting.encode()
}

/// A twin's side of a connection.
struct Side {
    stream: UnixStream,
    /// The log, the ring, and two bells; none when it was turned away.
    fds: Vec<OwnedFd>,
    memory: Option<Arc<WriteMemory>>,
}

fn connect(broker: &mut Broker, twin: u8, words: &[u8]) -> Side {
    let path = socket_path(&broker.options.dir, twin);
    let mut stream = UnixStream::connect(path).expect("it listens");
    stream.set_nonblocking(true).expect("a socket");
    stream.write_all(words).expect("it fits");
    // It is accepted in one turn and its greeting may be read in the next.
    turn(broker);
    turn(broker);
    let mut bytes = [0; WELCOME_BYTES];
    let fds = match receive_with_fds(&stream, &mut bytes) {
        Ok((_, fds)) => fds,
        Err(_) => Vec::new(),
    };
    let memory = fds.get(1).map(|ring| {
        let memory = WriteMemory::map(ring, channel_bytes(ORDER));
        Arc::new(memory.expect("its own ring may be written"))
    });
    Side {
        stream,
        fds,
        memory,
    }
}

/// The twin that keeps to the rules.
pub(super) struct Honest {
    side: Side,
    ring: RingProducer,
    view: LogView,
    appended: Vec<[u8; 8]>,
    seen: usize,
}

impl Honest {
    pub(super) fn connect(broker: &mut Broker) -> Self {
        let side = connect(broker, HONEST, &greeting(HONEST));
        let memory = side.memory.clone().expect("it is taken");
        let log = ReadMemoryFile::open(&side.fds[0]).expect("a log");
        Self {
            ring: RingProducer::new(memory, ORDER),
            view: LogView::open(log.memory).expect("a log"),
            side,
            appended: Vec::new(),
            seen: 0,
        }
    }

    pub(super) fn act(&mut self, broker: &mut Broker, trim: bool) {
        let number = self.appended.len() as u64;
        let entry = (number ^ 0xfeed).to_le_bytes();
        let mut bytes = encode_append(number, &entry);
        if trim {
            bytes.extend(encode_trim(self.view.end() / 2 * 2, b"state"));
        }
        assert_eq!(self.ring.write(&bytes), Ok(bytes.len()));
        self.appended.push(entry);
        turn(broker);
        self.read();
        assert_eq!(self.seen, self.appended.len(), "it was not served");
    }

    /// Looks at the log: what is this twin's there is what it appended.
    fn read(&mut self) {
        let mut payload = Vec::new();
        while let Some(entry) = self.view.poll_next(&mut payload).expect("a sound log") {
            assert!(entry.sender <= HONEST);
            if entry.sender == HONEST {
                assert_eq!(payload, self.appended[self.seen]);
                self.seen += 1;
            }
        }
    }
}

fn act(broker: &mut Broker, hostile: &mut Option<Side>, act: &Act) {
    if let Act::Connect { instead } = act {
        let words = instead.clone();
        let words = words.unwrap_or_else(|| greeting(HOSTILE).into());
        *hostile = Some(connect(broker, HOSTILE, &words));
        return;
    }
    let Some(side) = hostile else {
        return;
    };
    match act {
        Act::Say(bytes) => {
            // The broker may have hung up.
            let _ = side.stream.write(bytes);
        }
        Act::HangUp => {
            let _ = side.stream.shutdown(std::net::Shutdown::Both);
        }
        _ => {}
    }
    let Some(memory) = &side.memory else {
        return;
    };
    let prod = memory.load_u32(PROD);
    let frame = match act {
        Act::Scribble { at, bytes } => {
            let at = usize::from(*at) % (memory.bytes() - bytes.len());
            memory.copy_in(at, bytes);
            return;
        }
        Act::Index(prod) => return memory.store_u32(PROD, *prod),
        Act::Announce(more) => {
            return memory.store_u32(PROD, prod.wrapping_add(u32::from(*more)));
        }
        Act::Append { number, bytes } => {
            encode_append((*number).into(), &vec![7; usize::from(*bytes) % 4100])
        }
        Act::Trim { position, state } => {
            encode_trim((*position).into(), &b"state"[..usize::from(*state) % 6])
        }
        Act::Connect { .. } | Act::Say(_) | Act::HangUp | Act::Turn | Act::Honest { .. } => return,
    };
    for (n, byte) in (0..RING_BYTES).zip(&frame) {
        let within = prod.wrapping_add(n) % RING_BYTES;
        memory.store_u8(PAGE_BYTES + within as usize, *byte);
    }
    let length = u32::try_from(frame.len()).expect("short");
    memory.store_u32(PROD, prod.wrapping_add(length));
}

fn check_others(broker: &Broker) -> serde_json::Value {
    assert!(broker.twins[usize::from(HONEST)].is_connected());
    let ledger = broker.log.writer.ledger();
    assert!(ledger.live_bytes(HOSTILE) <= ledger.limits().quota_bytes());
    let status: serde_json::Value = serde_json::from_str(&broker.document()).expect("JSON");
    assert_eq!(status["twins"][1]["closings"], serde_json::json!({}));
    status
}

#[test]
fn a_twin() {
    check!()
        .with_iterations(200)
        .with_type::<Vec<Act>>()
        .for_each(|acts| {
            let (mut broker, dir) = broker(KIT.take().unwrap_or_else(kit), 65_536);
            let mut honest = Honest::connect(&mut broker);
            let mut hostile = Some(connect(&mut broker, HOSTILE, &greeting(HOSTILE)));
            for one in acts {
                match one {
                    Act::Turn => turn(&mut broker),
                    Act::Honest { trim } => honest.act(&mut broker, *trim),
                    one => act(&mut broker, &mut hostile, one),
                }
                honest.read();
            }
            check_others(&broker);
            // Wherever the broker stands in the ring, one of these two indexes is impossible.
            if let Some(memory) = hostile.as_ref().and_then(|side| side.memory.as_ref()) {
                for prod in [0, 1 << 31] {
                    memory.store_u32(PROD, prod);
                    turn(&mut broker);
                }
                assert!(broker.twins[usize::from(HOSTILE)].channel().is_none());
            }
            honest.act(&mut broker, false);
            check_others(&broker);
            drop(honest.side);
            let Broker {
                sockets,
                journal,
                _lock: lock,
                ..
            } = broker;
            KIT.set(Some(Kit {
                dir,
                sockets,
                journal,
                lock,
            }));
        });
}
