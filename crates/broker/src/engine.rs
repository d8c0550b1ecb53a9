//! The loop: for each ready twin move its ring into the log up to a fair bound, publish once, wake
//! the waiting twins once. Nothing here ever waits for a twin.

mod connections;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod mirror_tests;
mod on_xen;
mod token;

pub use on_xen::readmit;

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, recv};
use twinbft_postbox::frame::FRAME_HEADER_BYTES;
use twinbft_postbox::transport::local::region::LocalLog;
use twinbft_postbox::transport::local::wire::Rejection;

use crate::greeting::Pending;
use crate::guests::Guests;
use crate::journal::Journal;
use crate::json::Object;
use crate::options::BrokerOptions;
use crate::record::{RecordOptions, Recording};
use crate::status::{CONNECTIONS_MAX, StatusConnection};
use crate::supervisor::Supervisor;
use crate::twin::{CloseReason, TURN_FRAMES_MAX, Turn, Twin};
use token::Token;

/// Connections that may be greeting at a time, over all twins.
const PENDING_MAX: usize = 16;
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
        self.fill_mirrors();
        Ok(())
    }

    /// How long epoll may sleep; not at all when a ring has something, or a mirror lacks something.
    fn prepare_sleep(&mut self) -> EpollTimeout {
        if self.any_ring_ready() || self.log.writer.is_filling() || self.spin() {
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
