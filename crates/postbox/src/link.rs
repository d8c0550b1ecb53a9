//! What a channel's reader and appender share on the twin's side, so that one wait covers both.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::log_view::LogView;
use crate::raw::WriteMemory;
use crate::vchan::{ORDER_MIN, channel_bytes, consumer_hint};
use crate::waker::Waker;

/// Tells the broker that its ring has news. A transport's own way.
pub(crate) trait Bell: Send + Sync {
    fn ring(&self);
}

/// Sleeps until the broker or a waker calls. A transport's own way.
pub(crate) trait Sleeper: Send {
    /// Spurious returns are allowed; the caller looks again.
    fn sleep(&self, timeout: Option<Duration>) -> Slept;

    /// Takes off what rang so far, where that does not ring again by itself; the caller looks after it.
    fn settle(&self) {}

    /// Whether the channel seems to be closed, where that can be told for nothing.
    fn looks_closed(&self) -> bool {
        false
    }

    /// What somebody with an event loop of its own watches instead, for edges: what the broker rings, and what becomes
    /// readable when the channel is closed.
    fn watched(&self) -> [BorrowedFd<'_>; 2];
}

/// How a sleep ended.
pub(crate) enum Slept {
    /// Something may have happened.
    Rung,
    /// Nothing did for as long as was asked.
    TimedOut,
    /// The broker is gone or has closed the channel; its last words.
    Closed(String),
}

/// Nobody is there to hear it.
struct NoBell;

impl Bell for NoBell {
    fn ring(&self) {}
}

/// Of a channel that was let go.
pub(crate) struct ParkedSleeper(pub(crate) Waker);

impl Sleeper for ParkedSleeper {
    fn watched(&self) -> [BorrowedFd<'_>; 2] {
        [self.0.event(), self.0.event()]
    }

    fn sleep(&self, _timeout: Option<Duration>) -> Slept {
        Slept::Closed(String::new())
    }
}

/// No value is wanted.
const NOTHING: u64 = u64::MAX;

/// Shared by one channel's reader and appender.
pub(crate) struct Link {
    pub twin: u8,
    pub bell: Box<dyn Bell>,
    ring_memory: Arc<WriteMemory>,
    closed: AtomicBool,
    /// Something was written to the ring and the broker not yet told.
    pub unflushed: AtomicBool,
    /// The appender has frames that wait for a confirmation beyond this number.
    confirmed: AtomicU64,
    /// Refusals that the appender has dealt with.
    refusals_seen: AtomicU64,
    /// The appender waits for the log's head to move above this.
    room_above: AtomicU64,
    /// A trim of this position waits for agreement.
    trim_to: AtomicU64,
    /// The appender waits for the ring's consumer index to differ from this.
    space_at: AtomicU64,
}

impl Link {
    pub(crate) fn new(twin: u8, bell: Box<dyn Bell>, ring_memory: Arc<WriteMemory>) -> Self {
        Self {
            twin,
            bell,
            ring_memory,
            closed: AtomicBool::new(false),
            unflushed: AtomicBool::new(false),
            confirmed: AtomicU64::new(NOTHING),
            refusals_seen: AtomicU64::new(NOTHING),
            room_above: AtomicU64::new(NOTHING),
            trim_to: AtomicU64::new(NOTHING),
            space_at: AtomicU64::new(NOTHING),
        }
    }

    /// Of a channel that was let go: closed, and of memory that nobody shares.
    pub(crate) fn parked(twin: u8) -> Arc<Self> {
        let memory = Arc::new(WriteMemory::heap(channel_bytes(ORDER_MIN)));
        let link = Self::new(twin, Box::new(NoBell), memory);
        link.set_closed();
        Arc::new(link)
    }

    pub(crate) fn ring_memory(&self) -> &Arc<WriteMemory> {
        &self.ring_memory
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_closed(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn await_confirmation(&self, beyond: Option<u64>) {
        self.confirmed
            .store(beyond.unwrap_or(NOTHING), Ordering::Relaxed);
    }

    pub(crate) fn set_refusals_seen(&self, refusals: u64) {
        self.refusals_seen.store(refusals, Ordering::Relaxed);
    }

    pub(crate) fn await_room(&self, above_head: Option<u64>) {
        self.room_above
            .store(above_head.unwrap_or(NOTHING), Ordering::Relaxed);
    }

    pub(crate) fn await_trim(&self, to: Option<u64>) {
        self.trim_to.store(to.unwrap_or(NOTHING), Ordering::Relaxed);
    }

    pub(crate) fn await_space(&self, wanted: bool) {
        let value = if wanted {
            u64::from(consumer_hint(&self.ring_memory))
        } else {
            NOTHING
        };
        self.space_at.store(value, Ordering::Relaxed);
    }

    /// Whether `Appender::poll` would find something that it waits for. Of a closed channel it
    /// would not, and a wait that says so would never come to say that the channel is closed.
    pub(crate) fn appender_has_news(&self, view: &LogView) -> bool {
        if self.is_closed() {
            return false;
        }
        let differs = |seen: &AtomicU64, now: &dyn Fn() -> u64| {
            let seen = seen.load(Ordering::Relaxed);
            seen != NOTHING && seen != now()
        };
        let room_above = self.room_above.load(Ordering::Relaxed);
        let trim_to = self.trim_to.load(Ordering::Relaxed);
        differs(&self.confirmed, &|| view.next_number(self.twin))
            || differs(&self.refusals_seen, &|| view.refusals(self.twin))
            || differs(&self.space_at, &|| {
                u64::from(consumer_hint(&self.ring_memory))
            })
            || (trim_to != NOTHING && view.head() >= trim_to)
            || (room_above != NOTHING && view.head() > room_above)
    }
}
