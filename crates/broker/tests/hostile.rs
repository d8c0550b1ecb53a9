//! Whatever comes in, on a ring or a socket, closes at most the channel that it came in on, with an
//! event that says why; the other twin never notices.

mod common;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use common::{CLUSTER, Host, PATIENCE, append, read};
use twinbft_postbox::raw::WriteMemory;
use twinbft_postbox::transport::local::fds::receive_with_fds;
use twinbft_postbox::transport::local::wire::{Greeting, PROTOCOL_VERSION, WELCOME_BYTES, Welcome};
use twinbft_postbox::vchan::{RingProducer, channel_bytes};
use twinbft_postbox::{ConnectError, cluster_tag, connect, socket_path, status_socket_path};

const PROD: usize = 4;

/// A twin that has been taken over: it holds its channel's memory and does what it likes.
struct Hostile {
    stream: UnixStream,
    memory: Arc<WriteMemory>,
    bell: OwnedFd,
    order: u16,
}

impl Hostile {
    fn connect(host: &Host, twin: u8) -> Self {
        let mut stream =
            UnixStream::connect(socket_path(host.sockets(), twin)).expect("the broker listens");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time-out is allowed");
        let greeting = Greeting {
            version: PROTOCOL_VERSION,
            cluster_tag: cluster_tag(CLUSTER),
            host: 3,
            twin,
        };
        stream
            .write_all(&greeting.encode())
            .expect("the broker reads");
        let mut bytes = [0; WELCOME_BYTES];
        let (count, mut fds) = receive_with_fds(&stream, &mut bytes).expect("a welcome");
        assert_eq!(count, WELCOME_BYTES);
        let order = Welcome::decode(&bytes).expect("a welcome").ring_order;
        let memory =
            WriteMemory::map(&fds[1], channel_bytes(order)).expect("its own ring may be written");
        Self {
            stream,
            memory: Arc::new(memory),
            bell: fds.remove(2),
            order,
        }
    }

    fn ring(&self) {
        nix::unistd::write(&self.bell, &1u64.to_ne_bytes()).expect("an eventfd");
    }

    /// The broker hangs up; its last words.
    fn farewell(mut self) -> String {
        let mut text = String::new();
        let _ = self.stream.read_to_string(&mut text);
        text
    }
}

fn closings(host: &Host, twin: usize) -> serde_json::Value {
    host.status()["twins"][twin]["closings"].clone()
}

#[test]
fn impossible_indexes_close_that_channel_only() {
    let host = Host::start_small("2");
    let mut honest = host.connect(1);
    for prod in [4097, 0x8000_0000, u32::MAX] {
        let hostile = Hostile::connect(&host, 0);
        hostile.memory.store_u32(PROD, prod);
        hostile.ring();
        let farewell = hostile.farewell();
        assert!(farewell.contains("producer index"), "{farewell}");
        append(&mut honest, b"unmoved");
        assert_eq!(read(&mut honest, 1)[0].2, b"unmoved");
    }
    assert_eq!(closings(&host, 0), serde_json::json!({"ring-fault": 3}));
    let status = host.status();
    let events = status["events"].as_array().expect("a list");
    assert!(events.iter().any(|event| {
        event["text"]
            .as_str()
            .is_some_and(|text| text.contains("producer index"))
    }));
}

#[test]
fn random_frames_close_that_channel_or_are_refused() {
    let host = Host::start_small("2");
    let mut honest = host.connect(1);
    // A fixed sequence of bytes without pattern; the property tests of the decoder have random ones.
    let mut word = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..50u64 {
        let hostile = Hostile::connect(&host, 0);
        let mut producer = RingProducer::new(hostile.memory.clone(), hostile.order);
        let mut bytes = Vec::new();
        for _ in 0..64 {
            word = word
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(round | 1);
            bytes.extend(word.to_le_bytes());
        }
        if round % 2 == 0 {
            // A good kind and clean reserved bytes lead further in.
            bytes[4..8].copy_from_slice(&[1, 0, 0, 0]);
        }
        assert_eq!(producer.write(&bytes), Ok(512));
        hostile.ring();
        append(&mut honest, &round.to_le_bytes());
        assert_eq!(read(&mut honest, 1)[0].2, round.to_le_bytes());
    }
    assert_eq!(honest.reader.end(), 50, "nothing of it came into the log");
}

#[test]
fn half_a_header_neither_blocks_nor_busies_the_broker() {
    let host = Host::start_small("2");
    let mut honest = host.connect(1);
    let hostile = Hostile::connect(&host, 0);
    let mut producer = RingProducer::new(hostile.memory.clone(), hostile.order);
    assert_eq!(producer.write(&[9, 0, 0, 0, 1, 0, 0]), Ok(7));
    hostile.ring();
    append(&mut honest, b"through");
    read(&mut honest, 1);
    // The broker has taken the bytes, so nothing looks ready any more.
    assert_eq!(hostile.memory.load_u32(0), 7);
    assert_eq!(closings(&host, 0), serde_json::json!({}));
}

#[test]
fn bytes_after_the_greeting_close_the_channel() {
    let host = Host::start_small("2");
    let mut hostile = Hostile::connect(&host, 0);
    hostile
        .stream
        .write_all(b"and another thing")
        .expect("the broker is there");
    let _ = hostile.farewell();
    assert_eq!(
        closings(&host, 0),
        serde_json::json!({"unexpected-bytes": 1})
    );
}

#[test]
fn garbage_on_any_socket_disturbs_nobody() {
    let host = Host::start_small("2");
    let (mut zero, mut one) = (host.connect(0), host.connect(1));
    let paths = [
        socket_path(host.sockets(), 0),
        socket_path(host.sockets(), 1),
        status_socket_path(host.sockets()),
    ];
    for round in 0..30u8 {
        for path in &paths {
            let mut stream = UnixStream::connect(path).expect("the broker listens");
            stream
                .set_read_timeout(Some(PATIENCE))
                .expect("a time-out is allowed");
            // The broker may hang up in the middle of it.
            let _ = stream.write_all(&vec![round.wrapping_mul(37); 1 + usize::from(round) * 50]);
            if round % 3 == 0 {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
        append(&mut zero, &[round]);
        append(&mut one, &[round]);
        assert_eq!(read(&mut zero, 2).len(), 2);
        assert_eq!(read(&mut one, 2).len(), 2);
    }
    let status = host.status();
    assert_eq!(status["twins"][0]["connected"], true);
    assert!(
        status["twins"][0]["rejections"]["no-greeting"]
            .as_u64()
            .expect("a number")
            > 0,
        "{status}"
    );
    assert_eq!(
        status["twins"][0]["connections"], 1,
        "the channels were never replaced"
    );
}

#[test]
fn more_silent_connections_than_slots_do_not_lock_a_twin_out_for_long() {
    let host = Host::start_small("2");
    let silent: Vec<UnixStream> = (0..40)
        .map(|_| UnixStream::connect(socket_path(host.sockets(), 0)).expect("the broker listens"))
        .collect();
    // Connections over the number of slots are answered at once, those in slots after their time.
    for mut stream in silent {
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time-out is allowed");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        assert_eq!(answer.len(), WELCOME_BYTES);
    }
    append(&mut host.connect(0), b"in");
}

#[test]
fn mismatches_are_clear_errors_on_both_sides() {
    let host = Host::start_small("2");
    let good = host.options(0);
    let path = socket_path(host.sockets(), 0);
    let cases = [
        (
            twinbft_postbox::ConnectOptions {
                cluster_tag: 1,
                ..good.clone()
            },
            "another cluster",
            "cluster",
        ),
        (
            twinbft_postbox::ConnectOptions {
                host: 4,
                ..good.clone()
            },
            "serves host 3",
            "host",
        ),
        (
            twinbft_postbox::ConnectOptions {
                twin: 1,
                ..good.clone()
            },
            "belongs to twin 0",
            "twin",
        ),
    ];
    for (options, words, counter) in cases {
        let Err(error) = connect(&path, &options) else {
            panic!("{words}: it must be refused")
        };
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(host.status()["twins"][0]["rejections"][counter], 1);
    }
    let mut old = UnixStream::connect(&path).expect("the broker listens");
    let greeting = Greeting {
        version: 99,
        cluster_tag: good.cluster_tag,
        host: 3,
        twin: 0,
    };
    old.write_all(&greeting.encode()).expect("the broker reads");
    let mut answer = [0; WELCOME_BYTES];
    old.read_exact(&mut answer).expect("an answer");
    assert_eq!(
        Welcome::decode(&answer).map(|welcome| welcome.version),
        Ok(PROTOCOL_VERSION)
    );
    assert_eq!(host.status()["twins"][0]["rejections"]["version"], 1);
    let nowhere = connect(&host.sockets().join("nowhere.sock"), &good);
    assert!(matches!(nowhere, Err(ConnectError::Socket { .. })));
}

#[test]
fn another_user_is_turned_away() {
    let own = nix::unistd::Uid::effective().as_raw();
    let flag = format!("0={}", own + 1);
    let host = Host::start(&["--uid", &flag]);
    // Whether the greeting or the rejection comes first is up to the kernel: the words must not be.
    for _ in 0..200 {
        let Err(error) = connect(&socket_path(host.sockets(), 0), &host.options(0)) else {
            panic!("it must be refused");
        };
        // Root is let through the file's permissions and stopped by the broker.
        assert!(
            error.to_string().contains("another user") || own != 0,
            "{error}"
        );
    }
    append(&mut host.connect(1), b"the right user");
}
