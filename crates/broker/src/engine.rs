//! The loop: for each ready twin move its ring into the log up to a fair bound, publish once, wake
//! the waiting twins once. Nothing here ever waits for a twin.

#[cfg(test)]
mod fuzz;
mod on_xen;

pub use on_xen::readmit;

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, recv};
use twinbft_postbox::cluster_tag;
use twinbft_postbox::frame::FRAME_HEADER_BYTES;
use twinbft_postbox::transport::local::region::LocalLog;
use twinbft_postbox::transport::local::server::BrokerChannel;
use twinbft_postbox::transport::local::wire::{PROTOCOL_VERSION, Rejection, Welcome};

use crate::greeting::{Peer, Pending, Progress, judge};
use crate::guests::Guests;
use crate::journal::Journal;
use crate::json::Object;
use crate::options::BrokerOptions;
use crate::record::{RecordOptions, Recording};
use crate::status::{CONNECTIONS_MAX, StatusConnection};
use crate::supervisor::Supervisor;
use crate::twin::{CloseReason, TURN_FRAMES_MAX, Turn, Twin};

/// Connections that may be greeting at a time, over all twins.
const PENDING_MAX: usize = 16;
/// Accepted connections in one turn of the loop, so that a knocking process starves nobody.
const ACCEPTS_MAX: usize = 8;
/// Turns that a closed ring of `2^ring_order` bytes is drained for: enough for a whole ring of smallest frames, and no more,
/// because a twin that writes on and on must not hold its siblings up.
const fn drain_turns_max(ring_order: u16) -> usize {
    (1 << ring_order) / (TURN_FRAMES_MAX as usize * FRAME_HEADER_BYTES) + 1
}

/// The listening sockets.
pub struct Sockets {
    /// Of each twin, with the user that may connect.
    pub twins: Vec<(UnixListener, u32)>,
    /// For the status document.
    pub status: UnixListener,
}

/// What an epoll event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Signal,
    StatusListener,
    TwinListener(u8),
    Bell,
    Stream(u8),
    Pending(u8),
    Status(u8),
    Recorder,
    Guest(u8),
    Keeper,
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, index) = match self {
            Self::Signal => (0, 0),
            Self::StatusListener => (1, 0),
            Self::TwinListener(twin) => (2, twin),
            Self::Bell => (3, 0),
            Self::Stream(twin) => (4, twin),
            Self::Pending(slot) => (5, slot),
            Self::Status(slot) => (6, slot),
            Self::Recorder => (7, 0),
            Self::Guest(twin) => (8, twin),
            Self::Keeper => (9, 0),
        };
        kind << 8 | u64::from(index)
    }

    fn decode(data: u64) -> Self {
        let index = data.to_le_bytes()[0];
        match data >> 8 {
            0 => Self::Signal,
            1 => Self::StatusListener,
            2 => Self::TwinListener(index),
            3 => Self::Bell,
            4 => Self::Stream(index),
            5 => Self::Pending(index),
            6 => Self::Status(index),
            7 => Self::Recorder,
            8 => Self::Guest(index),
            9 => Self::Keeper,
            kind => unreachable!("we never register kind {kind}"),
        }
    }
}

/// A running broker.
pub struct Broker {
    options: BrokerOptions,
    log: LocalLog,
    twins: Vec<Twin>,
    sockets: Sockets,
    pending: [Option<Pending>; PENDING_MAX],
    status: [Option<StatusConnection>; CONNECTIONS_MAX],
    epoll: Epoll,
    signals: SignalFd,
    supervisor: Supervisor,
    journal: Journal,
    recording: Option<Recording>,
    /// On Xen.
    guests: Option<Guests>,
    started: Instant,
    stopping: bool,
    /// Turns of the loop for which spinning is not tried, and how many it will be next time.
    spin_pause: (u32, u32),
    _lock: Flock<File>,
}

impl Broker {
    pub(crate) fn new(
        options: BrokerOptions,
        log: LocalLog,
        sockets: Sockets,
        supervisor: Supervisor,
        journal: Journal,
        lock: Flock<File>,
    ) -> anyhow::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        mask.thread_block().context("cannot block signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        let signals = signals.context("cannot make a signal descriptor")?;
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll set")?;
        let input = |token: Token| EpollEvent::new(EpollFlags::EPOLLIN, token.encode());
        epoll.add(&signals, input(Token::Signal))?;
        epoll.add(&sockets.status, input(Token::StatusListener))?;
        for (twin, (listener, _)) in (0..).zip(&sockets.twins) {
            epoll.add(listener, input(Token::TwinListener(twin)))?;
        }
        let recording = start_recording(&options, &log)?;
        if let Some(recording) = &recording {
            epoll.add(&recording.bell, input(Token::Recorder))?;
        }
        Ok(Self {
            twins: (0..options.limits.twins).map(Twin::new).collect(),
            options,
            log,
            sockets,
            pending: Default::default(),
            status: Default::default(),
            epoll,
            signals,
            supervisor,
            journal,
            recording,
            guests: None,
            started: Instant::now(),
            stopping: false,
            spin_pause: (0, 1),
            _lock: lock,
        })
    }

    /// Serves until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// The kernel refuses something that a broker cannot go on without.
    pub fn run(&mut self) -> anyhow::Result<()> {
        self.supervisor.notify("READY=1\nSTATUS=waiting for twins");
        while !self.stopping {
            let timeout = self.prepare_sleep();
            self.turn(timeout)?;
        }
        self.stop();
        Ok(())
    }

    /// Sleeps for at most this long, and then looks after everybody once.
    fn turn(&mut self, timeout: EpollTimeout) -> anyhow::Result<()> {
        let mut events = [EpollEvent::empty(); 32];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).context("epoll_wait failed"),
        };
        // The rings first: connections can wait, twins do not like to.
        self.serve_rings();
        for event in &events[..count] {
            self.handle_event(Token::decode(event.data()));
        }
        self.expire(Instant::now());
        Ok(())
    }

    /// How long epoll may sleep; not at all when a ring has something.
    fn prepare_sleep(&mut self) -> EpollTimeout {
        if self.any_ring_ready() || self.spin() {
            return EpollTimeout::ZERO;
        }
        for twin in &self.twins {
            twin.arm();
        }
        if self.any_ring_ready() {
            return EpollTimeout::ZERO;
        }
        let pending = self.pending.iter().flatten().map(Pending::deadline);
        let status = self.status.iter().flatten().map(StatusConnection::deadline);
        let Some(next) = pending
            .chain(status)
            .chain(self.supervisor.next_ping())
            .min()
        else {
            return EpollTimeout::NONE;
        };
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
    }

    fn any_ring_ready(&self) -> bool {
        self.twins.iter().any(Twin::looks_ready)
    }

    /// Looks at the rings for a while before sleeping, as long as that has paid lately.
    fn spin(&mut self) -> bool {
        if self.options.spin_us == 0 {
            return false;
        }
        let (pause, next_pause) = self.spin_pause;
        if pause > 0 {
            self.spin_pause.0 -= 1;
            return false;
        }
        let limit = Duration::from_micros(u64::from(self.options.spin_us));
        let start = Instant::now();
        loop {
            for _ in 0..16 {
                if self.any_ring_ready() {
                    self.spin_pause = (0, 1);
                    return true;
                }
                std::hint::spin_loop();
            }
            // Whoever shares this core goes first: what the broker waits for may be its work.
            std::thread::yield_now();
            if start.elapsed() >= limit {
                self.spin_pause = (next_pause, (next_pause * 2).min(64));
                return false;
            }
        }
    }

    /// One fair turn of each twin, one publish, one wake of each that waits.
    fn serve_rings(&mut self) {
        // Whose appends are all that is new; `None` while there is nothing, or more than one twin's appends.
        let mut sole_author = None;
        let mut is_mixed = false;
        for index in 0..self.twins.len() {
            if !self.twins[index].looks_ready() {
                continue;
            }
            match self.twins[index].take_turn(&mut self.log.writer) {
                Turn::Done { only_appends } => {
                    is_mixed |= !only_appends || sole_author.is_some();
                    sole_author = Some(index);
                }
                Turn::Faulty(fault) => {
                    is_mixed = true;
                    self.close(index, CloseReason::Fault(fault));
                }
            }
        }
        self.publish(sole_author.filter(|_| !is_mixed));
    }

    /// `sole_author`: the twin whose own appends are all that is new, if there is such a one.
    fn publish(&mut self, sole_author: Option<usize>) {
        self.log.writer.publish();
        // What was published (refusals too) must be visible before we look whether somebody sleeps.
        fence(Ordering::SeqCst);
        for (index, twin) in self.twins.iter_mut().enumerate() {
            twin.wake_if_waiting(sole_author == Some(index));
        }
    }

    fn close(&mut self, index: usize, reason: CloseReason) {
        if self.twins[index].close(reason, &self.epoll) {
            // 9: `twinbft evidence` lists those that no correct twin causes.
            let kind = if reason.is_fault() {
                "twin-fault"
            } else {
                "channel"
            };
            self.journal.event(
                kind,
                format!("twin {index}: channel closed: {}", reason.text()),
            );
            self.tell_guest_closed(index, &reason.text());
            self.notify_status();
        }
    }

    fn notify_status(&self) {
        let connected = self.twins.iter().filter(|twin| twin.is_connected()).count();
        self.supervisor.notify(&format!(
            "STATUS={connected} of {} twins connected",
            self.twins.len()
        ));
    }

    fn handle_event(&mut self, token: Token) {
        match token {
            // The loop looks at all rings in every turn.
            Token::Bell => {}
            Token::Signal => {
                if let Ok(Some(signal)) = self.signals.read_signal() {
                    self.journal
                        .event("stop", format!("stopping on signal {}", signal.ssi_signo));
                    self.stopping = true;
                }
            }
            Token::TwinListener(twin) => self.accept_twins(twin),
            Token::Stream(twin) => self.handle_stream(usize::from(twin)),
            Token::Pending(slot) => self.advance_pending(usize::from(slot)),
            Token::StatusListener => self.accept_status(),
            Token::Recorder => self.hear_recorder(),
            Token::Guest(twin) => self.handle_guest(usize::from(twin)),
            Token::Keeper => self.hear_keeper(),
            Token::Status(slot) => {
                let slot = &mut self.status[usize::from(slot)];
                if slot.as_mut().is_some_and(StatusConnection::advance) {
                    *slot = None;
                }
            }
        }
    }

    fn accept_twins(&mut self, twin: u8) {
        for _ in 0..ACCEPTS_MAX {
            let Some(stream) = self.accept(|sockets| &sockets.twins[usize::from(twin)].0) else {
                return;
            };
            let Ok(peer) = Peer::of(&stream) else {
                continue;
            };
            let pending = Pending::new(stream, twin, peer, Instant::now());
            let uid = self.sockets.twins[usize::from(twin)].1;
            if peer.uid != uid {
                self.reject(pending, Rejection::User);
                continue;
            }
            let Some(slot) = self.pending.iter().position(Option::is_none) else {
                self.reject(pending, Rejection::Resources);
                continue;
            };
            let token = Token::Pending(u8::try_from(slot).expect("a few slots"));
            let event =
                EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, token.encode());
            if self.epoll.add(&pending.stream, event).is_ok() {
                self.pending[slot] = Some(pending);
                self.advance_pending(slot);
            }
        }
    }

    fn accept(&mut self, listener: impl Fn(&Sockets) -> &UnixListener) -> Option<UnixStream> {
        match listener(&self.sockets).accept() {
            Ok((stream, _)) => stream.set_nonblocking(true).is_ok().then_some(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                self.journal.event(
                    "accept",
                    format!("cannot accept a connection: {error}; is a limit too low?"),
                );
                None
            }
        }
    }

    fn advance_pending(&mut self, slot: usize) {
        let Some(pending) = &mut self.pending[slot] else {
            return;
        };
        let progress = pending.advance();
        if matches!(progress, Progress::Waiting) {
            return;
        }
        let pending = self.pending[slot].take().expect("looked at just now");
        // It stays open when it becomes a channel, so closing does not take it off the set.
        self.epoll
            .delete(&pending.stream)
            .expect("it was added when it was accepted");
        match progress {
            Progress::Greeted(greeting) => match judge(&greeting, &self.welcome(pending.twin)) {
                None => self.open_channel(pending),
                Some(rejection) => self.reject(pending, rejection),
            },
            Progress::Rejected(rejection) => self.reject(pending, rejection),
            Progress::Gone | Progress::Waiting => {}
        }
    }

    fn reject(&mut self, pending: Pending, rejection: Rejection) {
        let (twin, peer) = (pending.twin, pending.peer);
        self.twins[usize::from(twin)]
            .counters
            .rejections
            .add(rejection.name());
        let who = format!("process {} of user {}", peer.pid, peer.uid);
        self.journal.event(
            "rejected",
            format!(
                "twin {twin}: connection of {who} rejected: {}",
                rejection.name()
            ),
        );
        pending.reject(rejection, &self.welcome(twin));
    }

    fn welcome(&self, twin: u8) -> Welcome {
        let info = self.log.writer.info();
        Welcome {
            version: PROTOCOL_VERSION,
            rejection: None,
            cluster_tag: cluster_tag(&self.options.cluster_id),
            host: self.options.host,
            twin,
            twins: info.limits.twins,
            ring_order: self.options.ring_order,
            epoch: info.epoch,
            next_number: self.log.writer.ledger().next_number(twin),
        }
    }

    fn open_channel(&mut self, pending: Pending) {
        let (twin, peer) = (pending.twin, pending.peer);
        let index = usize::from(twin);
        self.drain_and_close(index, CloseReason::Replaced);
        let limits = self.log.writer.info().limits.clone();
        let channel =
            BrokerChannel::open(pending.stream, &self.welcome(twin), self.log.fd(), &limits);
        let registered = channel.and_then(|channel| {
            let bell = EpollEvent::new(
                EpollFlags::EPOLLIN | EpollFlags::EPOLLET,
                Token::Bell.encode(),
            );
            self.epoll.add(channel.bell(), bell)?;
            let input = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
            self.epoll.add(
                channel.stream(),
                EpollEvent::new(input, Token::Stream(twin).encode()),
            )?;
            Ok(channel)
        });
        match registered {
            Ok(channel) => {
                self.twins[index].connect(channel, peer);
                self.journal.event(
                    "channel",
                    format!(
                        "twin {twin}: connected: process {} of user {}",
                        peer.pid, peer.uid
                    ),
                );
                self.notify_status();
            }
            Err(error) => {
                self.twins[index]
                    .counters
                    .rejections
                    .add(Rejection::Resources.name());
                self.journal.event(
                    "rejected",
                    format!("twin {twin}: cannot open a channel: {error}"),
                );
            }
        }
    }

    /// What a twin wrote before it went counts: the next welcome tells its successor what is in.
    fn drain_and_close(&mut self, index: usize, reason: CloseReason) {
        for _ in 0..drain_turns_max(self.options.ring_order) {
            if !self.twins[index].looks_ready() {
                break;
            }
            if let Turn::Faulty(_) = self.twins[index].take_turn(&mut self.log.writer) {
                break;
            }
        }
        self.publish(None);
        self.close(index, reason);
    }

    /// A twin's socket says something: it is closed, or somebody talks where nobody should. An event
    /// can be of a channel that was replaced since, so the socket itself is asked.
    fn handle_stream(&mut self, index: usize) {
        let Some(channel) = self.twins[index].channel() else {
            return;
        };
        let stream = std::os::fd::AsRawFd::as_raw_fd(channel.stream());
        match recv(stream, &mut [0; 1], MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(count) if count > 0 => self.close(index, CloseReason::UnexpectedBytes),
            Ok(_) | Err(_) => self.drain_and_close(index, CloseReason::HungUp),
        }
    }

    fn accept_status(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            let Some(stream) = self.accept(|sockets| &sockets.status) else {
                return;
            };
            let Some(slot) = self.status.iter().position(Option::is_none) else {
                continue;
            };
            let mut connection = StatusConnection::new(stream, self.document(), Instant::now());
            if connection.advance() {
                continue;
            }
            let token = Token::Status(u8::try_from(slot).expect("a few slots"));
            if self
                .epoll
                .add(
                    &connection,
                    EpollEvent::new(EpollFlags::EPOLLOUT, token.encode()),
                )
                .is_ok()
            {
                self.status[slot] = Some(connection);
            }
        }
    }

    fn hear_recorder(&mut self) {
        let Some(recording) = &self.recording else {
            return;
        };
        let bell = std::os::fd::AsRawFd::as_raw_fd(&recording.bell);
        // More than its events ever ring; what is left rings again.
        let _rung = recv(bell, &mut [0; 64], MsgFlags::MSG_DONTWAIT);
        for text in recording.report.take_events() {
            self.journal.event("record", text);
        }
    }

    fn document(&self) -> String {
        let (info, ledger) = (self.log.writer.info(), self.log.writer.ledger());
        let limits = &info.limits;
        let mut document = Object::new()
            .string("program", "postbox-broker")
            .string("version", env!("CARGO_PKG_VERSION"))
            .string("cluster_id", &self.options.cluster_id)
            .raw("host", self.options.host)
            .raw("pid", std::process::id())
            .raw("uptime_ms", self.started.elapsed().as_millis())
            .string("transport", self.transport_name())
            .raw("epoch", info.epoch)
            .raw("generation", info.generation)
            .raw("log_kept_by_supervisor", self.supervisor.is_there())
            .raw("head", ledger.head_position())
            .raw("tail", ledger.tail_position())
            .raw("live_bytes", ledger.tail_offset() - ledger.head_offset())
            .raw("log_bytes", limits.log_bytes)
            .raw("quota_bytes", limits.quota_bytes())
            .raw("entry_bytes_max", limits.entry_bytes_max)
            .raw("state_bytes_max", limits.state_bytes_max)
            .raw("trim_every", limits.trim_every)
            .optional("record", self.recording.as_ref().map(|r| r.report.json()))
            .array("twins", self.twins.iter().map(|twin| twin.json(ledger)))
            .array("events", self.journal.recent())
            .end();
        document.push('\n');
        document
    }

    /// Ends what took too long.
    fn expire(&mut self, now: Instant) {
        for slot in 0..self.pending.len() {
            if self.pending[slot]
                .as_ref()
                .is_some_and(|pending| pending.deadline() <= now)
            {
                let pending = self.pending[slot].take().expect("looked at just now");
                self.reject(pending, Rejection::NoGreeting);
            }
        }
        for slot in &mut self.status {
            slot.take_if(|connection| connection.deadline() <= now);
        }
        self.supervisor.ping(now);
    }

    fn stop(&mut self) {
        self.supervisor.notify("STOPPING=1\nSTATUS=stopping");
        for index in 0..self.twins.len() {
            self.drain_and_close(index, CloseReason::Stopping);
        }
        if let Some(guests) = &mut self.guests {
            guests.finish();
        }
        if let Some(recording) = &mut self.recording {
            recording.finish();
        }
        self.hear_recorder();
    }
}

/// Records the log where that is asked for.
fn start_recording(options: &BrokerOptions, log: &LocalLog) -> anyhow::Result<Option<Recording>> {
    let Some(dir) = &options.record_dir else {
        return Ok(None);
    };
    let record = RecordOptions {
        dir: dir.clone(),
        bytes_max: options.record_bytes_max,
        cluster_id: options.cluster_id.clone(),
        host: options.host,
    };
    Recording::start(record, log.fd()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_takes_a_whole_ring_of_smallest_frames_and_not_much_more() {
        for order in [12_u16, 14, 18, 20] {
            let frames = drain_turns_max(order) * TURN_FRAMES_MAX as usize;
            let smallest = (1_usize << order) / FRAME_HEADER_BYTES;
            assert!(frames >= smallest, "2^{order}");
            assert!(frames <= smallest + TURN_FRAMES_MAX as usize, "2^{order}");
        }
    }
}
