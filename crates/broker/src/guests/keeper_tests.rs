//! The keeper against a xenstored that the test plays: nodes in a map, watches that fire when the test says so.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use twinbft_postbox::transport::xen::xenstore::Xenstore;
use twinbft_postbox::transport::xen::xenstore_wire::{HEADER_BYTES, Request, encode};

use super::{Guests, News, Wanted};

/// Longer than anything takes on a loaded machine; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(30);
const OK: &[u8] = b"OK\0";

#[derive(Default)]
struct State {
    nodes: BTreeMap<String, String>,
    permissions: BTreeMap<String, String>,
    /// Refuses to write that often.
    refusals: u32,
    /// Goes when something is written; its event comes before the answer.
    goes_at_write: Option<u16>,
}

/// xenstored.
#[derive(Clone, Default)]
struct Daemon {
    state: Arc<(Mutex<State>, Condvar)>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl Daemon {
    fn connect(&self) -> Xenstore {
        let (ours, theirs) = UnixStream::pair().expect("descriptors are left");
        let clone = ours.try_clone().expect("descriptors are left");
        self.streams.lock().expect("no panic holds it").push(clone);
        let state = self.state.clone();
        std::thread::spawn(move || serve(ours, &state));
        Xenstore::from_fd(theirs.into()).expect("a socket")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let (lock, changed) = &*self.state;
        change(&mut lock.lock().expect("no panic holds it"));
        changed.notify_all();
    }

    fn domain(&self, domid: u16, name: &str, uuid: &str) {
        self.change(|state| {
            let nodes = &mut state.nodes;
            nodes.insert(format!("/local/domain/{domid}/name"), name.to_owned());
            nodes.insert(format!("/local/domain/{domid}/vm"), format!("/vm/{uuid}"));
        });
        self.fire("@introduceDomain");
    }

    fn destroy(&self, domid: u16) {
        let base = format!("/local/domain/{domid}/");
        self.change(|state| state.nodes.retain(|path, _| !path.starts_with(&base)));
        self.fire("@releaseDomain");
    }

    fn fire(&self, what: &str) {
        let bytes = event(what);
        for mut stream in self.streams.lock().expect("no panic holds it").iter() {
            // One that was hung up hears nothing.
            let _gone = stream.write_all(&bytes);
        }
    }

    fn await_state(&self, good: impl Fn(&State) -> bool) {
        let (lock, changed) = &*self.state;
        let state = lock.lock().expect("no panic holds it");
        let (state, timeout) = changed
            .wait_timeout_while(state, PATIENCE, |state| !good(state))
            .expect("no panic holds it");
        assert!(!timeout.timed_out(), "never so: {:?}", state.nodes);
    }
}

fn event(what: &str) -> Vec<u8> {
    let payload = format!("{what}\0token\0");
    let mut bytes = encode(Request::Read, 0, 0, &[payload.as_bytes()]).expect("short");
    bytes[0..4].copy_from_slice(&15u32.to_ne_bytes());
    bytes
}

fn serve(mut stream: UnixStream, shared: &(Mutex<State>, Condvar)) {
    loop {
        let mut header = [0; HEADER_BYTES];
        if stream.read_exact(&mut header).is_err() {
            return;
        }
        let word = |n: usize| u32::from_ne_bytes(*header[4 * n..].first_chunk().expect("16 bytes"));
        let mut payload = vec![0; word(3) as usize];
        stream.read_exact(&mut payload).expect("its payload");
        let (gone, (kind, answer)) = {
            let (lock, changed) = shared;
            let mut state = lock.lock().expect("no panic holds it");
            let gone = (word(0) == 11)
                .then(|| state.goes_at_write.take())
                .flatten();
            if let Some(domid) = gone {
                let base = format!("/local/domain/{domid}/");
                state.nodes.retain(|path, _| !path.starts_with(&base));
            }
            let answer = state.answer(word(0), &payload);
            changed.notify_all();
            (gone, answer)
        };
        if gone.is_some() {
            stream
                .write_all(&event("@releaseDomain"))
                .expect("the keeper waits");
        }
        let mut bytes = encode(Request::Read, word(1), 0, &[&answer]).expect("short");
        bytes[0..4].copy_from_slice(&kind.to_ne_bytes());
        // A keeper that has gone wants no answer.
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

impl State {
    fn answer(&mut self, kind: u32, payload: &[u8]) -> (u32, Vec<u8>) {
        let text = String::from_utf8_lossy(payload).into_owned();
        let (path, rest) = text.split_once('\0').unwrap_or((&text, ""));
        let missing = (16, b"ENOENT\0".to_vec());
        match kind {
            1 => {
                let base = format!("{path}/");
                let below = self
                    .nodes
                    .keys()
                    .filter_map(|node| node.strip_prefix(&base));
                let mut names: Vec<&str> =
                    below.filter_map(|node| node.split('/').next()).collect();
                names.dedup();
                let list: String = names.iter().map(|name| format!("{name}\0")).collect();
                (1, list.into_bytes())
            }
            2 => self
                .nodes
                .get(path)
                .map_or(missing, |value| (2, value.clone().into_bytes())),
            6 => (6, b"1\0".to_vec()),
            11 if self.refusals > 0 => {
                self.refusals -= 1;
                (16, b"EINVAL\0".to_vec())
            }
            11 => {
                self.nodes.insert(path.to_owned(), rest.to_owned());
                (11, OK.to_vec())
            }
            13 => {
                let before = self.nodes.len();
                let below = format!("{path}/");
                self.nodes.retain(|node, _| !node.starts_with(&below));
                if self.nodes.len() < before {
                    (13, OK.to_vec())
                } else {
                    missing
                }
            }
            14 => {
                let who = rest.replace('\0', " ");
                self.permissions
                    .insert(path.to_owned(), who.trim().to_owned());
                (14, OK.to_vec())
            }
            kind => (kind, OK.to_vec()),
        }
    }
}

const UUID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

fn wanted() -> Vec<Wanted> {
    let wanted = |twin, guest: &str| Wanted {
        twin,
        guest: guest.to_owned(),
    };
    vec![wanted(0, "twin-0"), wanted(1, UUID)]
}

fn start(daemon: &Daemon, known: Vec<(u8, u16)>) -> Guests {
    let daemon = daemon.clone();
    Guests::start_with(wanted(), known, move || Ok(daemon.connect())).expect("a thread")
}

/// Waits for news.
fn next(guests: &Guests) -> News {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    loop {
        if let Some(news) = guests.poll_news() {
            return news;
        }
        let timeout = PollTimeout::try_from(PATIENCE).expect("fits");
        let rang = poll(
            &mut [PollFd::new(guests.as_fd(), PollFlags::POLLIN)],
            timeout,
        );
        assert_eq!(rang, Ok(1), "no news");
    }
}

fn appeared(twin: u8, domid: u16) -> News {
    News::Appeared { twin, domid }
}

fn gone(twin: u8, domid: u16) -> News {
    News::Gone { twin, domid }
}

#[test]
fn guests_are_found_by_name_and_by_uuid_and_after_a_reboot_under_their_new_number() {
    let daemon = Daemon::default();
    daemon.domain(3, "twin-0", "11111111-1111-1111-1111-111111111111");
    let guests = start(&daemon, Vec::new());
    assert_eq!(next(&guests), appeared(0, 3));
    daemon.domain(4, "somebody-else", "22222222-2222-2222-2222-222222222222");
    daemon.domain(5, "renamed", &UUID.to_uppercase());
    assert_eq!(next(&guests), appeared(1, 5));
    daemon.destroy(3);
    assert_eq!(next(&guests), gone(0, 3));
    daemon.domain(6, "twin-0", "11111111-1111-1111-1111-111111111111");
    assert_eq!(next(&guests), appeared(0, 6));
    assert_eq!(guests.poll_news(), None);
}

#[test]
fn a_domain_that_went_while_the_broker_was_down_is_said_to_be_gone_first() {
    let daemon = Daemon::default();
    daemon.domain(9, "twin-0", "11111111-1111-1111-1111-111111111111");
    daemon.domain(5, "x", UUID);
    let guests = start(&daemon, vec![(0, 2), (1, 5)]);
    assert_eq!(next(&guests), gone(0, 2));
    assert_eq!(next(&guests), appeared(0, 9));
    assert_eq!(guests.poll_news(), None, "twin 1 is where it was");
}

#[test]
fn what_is_published_is_readable_for_its_guest_alone_and_goes_with_it() {
    let daemon = Daemon::default();
    daemon.domain(5, "x", UUID);
    let guests = start(&daemon, Vec::new());
    assert_eq!(next(&guests), appeared(1, 5));
    let nodes = [("version", "1"), ("state", "ready")];
    let nodes = nodes.map(|(name, value)| (name.to_owned(), value.to_owned()));
    guests.publish(5, nodes.to_vec());
    assert_eq!(next(&guests), News::Published { domid: 5 });
    let state_node = "/local/domain/0/data/twinbft/5/state";
    daemon.await_state(|state| {
        state
            .permissions
            .get(state_node)
            .is_some_and(|who| who == "n0 r5")
            && state
                .nodes
                .get(state_node)
                .is_some_and(|value| value == "ready")
    });
    guests.tell_state(5, "closed: it lied".to_owned());
    daemon.await_state(|state| {
        state
            .nodes
            .get(state_node)
            .is_some_and(|v| v == "closed: it lied")
    });
    daemon.destroy(5);
    assert_eq!(next(&guests), gone(1, 5));
    guests.withdraw(5);
    daemon.await_state(|state| !state.nodes.keys().any(|node| node.contains("twinbft")));
}

/// Its event comes while the keeper waits for an answer, and nothing rings for it afterwards.
#[test]
fn a_domain_that_goes_while_something_is_published_is_noticed() {
    let daemon = Daemon::default();
    daemon.domain(5, "x", UUID);
    let guests = start(&daemon, Vec::new());
    assert_eq!(next(&guests), appeared(1, 5));
    daemon.change(|state| state.goes_at_write = Some(5));
    guests.publish(5, vec![("state".to_owned(), "ready".to_owned())]);
    assert_eq!(next(&guests), News::Published { domid: 5 });
    assert_eq!(next(&guests), gone(1, 5));
}

#[test]
fn what_xenstored_refuses_is_said_once_and_tried_again() {
    let daemon = Daemon::default();
    daemon.domain(5, "x", UUID);
    daemon.change(|state| state.refusals = 1);
    let guests = start(&daemon, Vec::new());
    assert_eq!(next(&guests), appeared(1, 5));
    guests.publish(5, vec![("state".to_owned(), "ready".to_owned())]);
    let News::Trouble(text) = next(&guests) else {
        panic!("it was refused")
    };
    assert!(text.contains("EINVAL"), "{text}");
    assert_eq!(next(&guests), News::Published { domid: 5 });
}

#[test]
fn a_guest_that_makes_trouble_faster_than_xenstored_works_fills_nothing() {
    let daemon = Daemon::default();
    let guests = start(&daemon, Vec::new());
    let orders = 10_000;
    for n in 0..orders {
        guests.tell_state(5, format!("closed: {n}"));
        let pending = guests
            .orders
            .lock()
            .expect("no panic holds it")
            .publications
            .len();
        assert!(pending <= 1, "the latest counts");
    }
    let last = format!("closed: {}", orders - 1);
    let node = "/local/domain/0/data/twinbft/5/state";
    daemon.await_state(|state| state.nodes.get(node).is_some_and(|value| *value == last));
}

#[test]
fn one_that_could_not_be_served_is_told_of_again_and_the_end_waits_for_nobody() {
    let daemon = Daemon::default();
    daemon.domain(3, "twin-0", "11111111-1111-1111-1111-111111111111");
    let mut guests = start(&daemon, Vec::new());
    assert_eq!(next(&guests), appeared(0, 3));
    guests.tell_again(0);
    assert_eq!(next(&guests), appeared(0, 3));
    // More news than are kept: the keeper waits for us, and we for it.
    for domid in 100..300 {
        daemon.domain(domid, "twin-0", "11111111-1111-1111-1111-111111111111");
    }
    guests.tell_state(3, "closed: the broker stops".to_owned());
    guests.finish();
    let node = "/local/domain/0/data/twinbft/3/state";
    daemon.await_state(|state| state.nodes.contains_key(node));
}
