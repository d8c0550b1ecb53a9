//! What the broker knows of one twin: its channel, if it has one, and its counters.

use std::collections::BTreeMap;

use nix::sys::epoll::Epoll;
use twinbft_postbox::frame::{Frame, FrameFault};
use twinbft_postbox::log_writer::LogWriter;
use twinbft_postbox::transport::local::server::BrokerChannel;
use twinbft_postbox::transport::xen::DomId;
use twinbft_postbox::transport::xen::guest::Guest;
use twinbft_postbox::vchan::Peer as Live;
use twinbft_postbox::{Ledger, Outcome, TrimOutcome};

use crate::greeting::Peer;
use crate::json::Object;
use crate::port::Port;

/// Frames that one twin may have in one turn, so that none starves another.
pub const TURN_FRAMES_MAX: u32 = 128;
/// Bytes of entries after which a turn ends.
const TURN_BYTES_MAX: usize = 256 << 10;

/// Why a channel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The twin's process closed it or ended.
    HungUp,
    /// The twin connected anew.
    Replaced,
    /// The twin broke the rules of the ring or of its frames.
    Fault(FrameFault),
    /// Something came in on the socket after the greeting.
    UnexpectedBytes,
    /// The guest's domain is not there any more.
    DomainGone,
    /// The broker stops.
    Stopping,
}

impl CloseReason {
    /// For counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::HungUp => "hung-up",
            Self::Replaced => "replaced",
            Self::Fault(FrameFault::Ring(_)) => "ring-fault",
            Self::Fault(FrameFault::Kind(_) | FrameFault::Reserved) => "frame-fault",
            Self::UnexpectedBytes => "unexpected-bytes",
            Self::DomainGone => "domain-gone",
            Self::Stopping => "broker-stopping",
        }
    }

    /// Whether the twin did what no correct twin does.
    pub const fn is_fault(self) -> bool {
        match self {
            Self::Fault(_) | Self::UnexpectedBytes => true,
            Self::HungUp | Self::Replaced | Self::DomainGone | Self::Stopping => false,
        }
    }

    /// For people.
    pub fn text(self) -> String {
        match self {
            Self::HungUp => "the twin's process closed it or ended".to_owned(),
            Self::Replaced => "the twin connected anew".to_owned(),
            Self::Fault(fault) => format!("the twin broke the channel's rules: {fault}"),
            Self::UnexpectedBytes => {
                "something came in on the socket after the greeting".to_owned()
            }
            Self::DomainGone => "its domain is gone".to_owned(),
            Self::Stopping => "the broker stops".to_owned(),
        }
    }
}

/// Counts by a name that is a literal of ours, so the number of names is bounded.
#[derive(Default)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// One more.
    pub fn add(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    fn json(&self) -> String {
        self.0
            .iter()
            .fold(Object::new(), |object, (name, count)| {
                object.raw(name, count)
            })
            .end()
    }
}

/// What a twin did so far.
#[derive(Default)]
pub struct Counters {
    entries: u64,
    entry_bytes: u64,
    out_of_order: u64,
    wakeups: u64,
    connections: u64,
    refused: Counts,
    trims: Counts,
    /// Channels that ended.
    pub closings: Counts,
    /// Connections that never became a channel.
    pub rejections: Counts,
}

/// What became of a turn.
pub enum Turn {
    /// The ring is empty, or the turn was long enough.
    Done {
        /// Whether all that happened are appends that were accepted.
        only_appends: bool,
    },
    /// The channel must be closed.
    Faulty(FrameFault),
}

/// One twin.
pub struct Twin {
    id: u8,
    port: Option<Port>,
    /// A guest's process uses the channel, and it was said so.
    is_in_use: bool,
    /// What it did so far.
    pub counters: Counters,
}

impl Twin {
    /// Not connected yet.
    pub fn new(id: u8) -> Self {
        Self {
            id,
            port: None,
            is_in_use: false,
            counters: Counters::default(),
        }
    }

    /// The socket's channel, if there is one.
    pub fn channel(&self) -> Option<&BrokerChannel> {
        match &self.port {
            Some(Port::Socket(channel, _)) => Some(channel),
            Some(Port::Guest(_)) | None => None,
        }
    }

    /// The guest, if there is one.
    pub fn guest(&self) -> Option<&Guest> {
        match &self.port {
            Some(Port::Guest(guest)) => Some(guest),
            Some(Port::Socket(..)) | None => None,
        }
    }

    /// Whether the twin can append and read.
    pub fn is_connected(&self) -> bool {
        match &self.port {
            Some(Port::Socket(..)) => true,
            Some(Port::Guest(guest)) => guest.is_open() && guest.peer() == Live::Up,
            None => false,
        }
    }

    /// Connects a channel where there is none.
    pub fn connect(&mut self, channel: BrokerChannel, peer: Peer) {
        assert!(self.port.is_none(), "a twin has one channel at a time");
        self.counters.connections += 1;
        self.port = Some(Port::Socket(channel, peer));
    }

    /// Serves a guest where none is served.
    pub fn admit(&mut self, guest: Guest) {
        assert!(self.port.is_none(), "a twin is one guest at a time");
        self.port = Some(Port::Guest(guest));
    }

    /// Whether a process of the guest has begun to use the channel since it was asked last.
    pub fn take_connected(&mut self) -> bool {
        let is_connected = self.is_connected();
        let was = std::mem::replace(&mut self.is_in_use, is_connected);
        let is_new = self.is_in_use && !was;
        self.counters.connections += u64::from(is_new);
        is_new
    }

    /// The domain whose process has let go of the ring, if there is one: it is to be renewed.
    pub fn let_go(&self) -> Option<DomId> {
        let guest = self.guest()?;
        (guest.peer() == Live::Gone).then(|| guest.domid())
    }

    /// Empties a guest's ring for its next process.
    pub fn renew(&mut self) {
        self.is_in_use = false;
        if let Some(Port::Guest(guest)) = &mut self.port {
            guest.renew();
        }
    }

    /// Takes a guest's ring off its descriptor. Answers false when the event channel is broken.
    pub fn settle(&self) -> bool {
        self.guest().is_none_or(|guest| guest.settle().is_ok())
    }

    /// Closes the channel. Answers whether there was one. A guest stays admitted: its pages are its own as long as its
    /// domain lives.
    pub fn close(&mut self, reason: CloseReason, epoll: &Epoll) -> bool {
        if !self.port.as_ref().is_some_and(Port::is_open) {
            return false;
        }
        self.counters.closings.add(reason.name());
        match self.port.take() {
            Some(Port::Socket(channel, _)) => {
                // The twin holds the bell too, so closing our descriptor would not take it off the set.
                epoll
                    .delete(channel.bell())
                    .expect("it was added when the channel was opened");
                epoll
                    .delete(channel.stream())
                    .expect("it was added when the channel was opened");
                channel.close(&reason.text());
            }
            Some(Port::Guest(mut guest)) => {
                guest.close();
                self.port = Some(Port::Guest(guest));
            }
            None => unreachable!("it was just looked at"),
        }
        self.is_in_use = false;
        true
    }

    /// Gives back what a guest was granted, when its domain is gone. The mirror is the log's to drop.
    pub fn release(&mut self, epoll: &Epoll) {
        if let Some(Port::Guest(guest)) = self.port.take_if(|port| matches!(port, Port::Guest(_))) {
            // The supervisor holds it too.
            epoll
                .delete(&guest)
                .expect("it was added when the guest was admitted");
        }
    }

    /// Whether the ring seems to hold something.
    pub fn looks_ready(&self) -> bool {
        self.port.as_ref().is_some_and(Port::looks_ready)
    }

    /// Asks for the bell at the next write.
    pub fn arm(&self) {
        if let Some(port) = &self.port {
            port.arm();
        }
    }

    /// Wakes the twin when it sleeps on the log. `only_own`: nothing but its own entries was published.
    pub fn wake_if_waiting(&mut self, only_own: bool) {
        let port = self.port.as_ref();
        if port.is_some_and(|port| port.wake_if_waiting(only_own)) {
            self.counters.wakeups += 1;
        }
    }

    /// Moves what is in the ring into the log, up to a fair bound.
    pub fn take_turn(&mut self, log: &mut LogWriter) -> Turn {
        let Some(port) = &mut self.port else {
            return Turn::Done { only_appends: true };
        };
        let mut bytes = 0;
        let mut frames = 0;
        let entries_before = self.counters.entries;
        let mut end = Turn::Done { only_appends: true };
        for _ in 0..TURN_FRAMES_MAX {
            match port.poll_frame() {
                Ok(Some(frame)) => {
                    bytes += handle_frame(self.id, &frame, log, &mut self.counters);
                    frames += 1;
                }
                Ok(None) => break,
                Err(fault) => {
                    end = Turn::Faulty(fault);
                    break;
                }
            }
            if bytes >= TURN_BYTES_MAX {
                break;
            }
        }
        port.release();
        if matches!(end, Turn::Done { .. }) {
            let only_appends = self.counters.entries - entries_before == frames;
            end = Turn::Done { only_appends };
        }
        end
    }

    /// The twin's part of the status document.
    pub fn json(&self, ledger: &Ledger) -> String {
        let peer = match &self.port {
            Some(Port::Socket(_, peer)) => Some(peer),
            Some(Port::Guest(_)) | None => None,
        };
        let counters = &self.counters;
        Object::new()
            .raw("twin", self.id)
            .raw("connected", self.is_connected())
            .optional("pid", peer.map(|peer| peer.pid))
            .optional("uid", peer.map(|peer| peer.uid))
            .optional("domid", self.guest().map(Guest::domid))
            .optional("granted_pages", self.guest().map(Guest::granted_pages))
            .raw("connections", counters.connections)
            .raw("next_number", ledger.next_number(self.id))
            .raw("live_bytes", ledger.live_bytes(self.id))
            .raw("appended_entries", counters.entries)
            .raw("appended_bytes", counters.entry_bytes)
            .raw("refused", counters.refused.json())
            .raw("out_of_order", counters.out_of_order)
            .raw("trims", counters.trims.json())
            .raw("wakeups", counters.wakeups)
            .raw("closings", counters.closings.json())
            .raw("rejections", counters.rejections.json())
            .end()
    }
}

/// Puts one frame into the log. Answers the bytes that it cost.
fn handle_frame(
    twin: u8,
    frame: &Frame<'_>,
    log: &mut LogWriter,
    counters: &mut Counters,
) -> usize {
    match *frame {
        Frame::Append { number, payload } => {
            let outcome = log.append(twin, number, payload);
            count_append(counters, outcome, payload.len() as u64);
            payload.len()
        }
        Frame::AppendTooLarge {
            number,
            payload_bytes: _,
        } => {
            count_append(counters, log.append_too_large(twin, number), 0);
            0
        }
        Frame::Trim { position, state } => {
            let name = match log.trim(twin, position, state) {
                TrimOutcome::Held => "held",
                TrimOutcome::Agreed { .. } => "agreed",
                TrimOutcome::Stale => "stale",
                TrimOutcome::Refused(refusal) => refusal.name(),
            };
            counters.trims.add(name);
            state.len()
        }
        Frame::TrimTooLarge => {
            counters
                .trims
                .add(twinbft_postbox::TrimRefusal::StateTooLarge.name());
            0
        }
    }
}

fn count_append(counters: &mut Counters, outcome: Outcome, payload_bytes: u64) {
    match outcome {
        Outcome::Accepted(_) => {
            counters.entries += 1;
            counters.entry_bytes += payload_bytes;
        }
        Outcome::Refused(refusal) => counters.refused.add(refusal.name()),
        Outcome::OutOfOrder { .. } => counters.out_of_order += 1,
    }
}
