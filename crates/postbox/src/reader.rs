//! A twin's way out of the log: reads entries in order, and waits for more with a short adaptive
//! spin before it sleeps.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::ledger::AgreedState;
use crate::link::{Link, ParkedSleeper, Sleeper, Slept};
use crate::log_view::{Entry, LogInfo, LogView, ReadError};
use crate::vchan::WaitFlag;
use crate::waker::Waker;

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The log, the appender, a waker or the caller's own work may have something.
    Ready,
    /// Nothing happened for as long as was asked.
    TimedOut,
    /// The broker is gone or closed the channel, and everything that it published was read.
    /// Reconnect. The broker's reason, empty when it could give none.
    Closed(String),
}

/// How often a resynchronisation may be overtaken by the next trim before it is an error.
const RESYNC_TRIES: u32 = 16;
/// Most waits that are not spun after spinning was in vain.
const SPIN_PAUSE_MAX: u32 = 64;
/// How long the broker's reason is waited for when the channel is known to be closed.
const FAREWELL_WAIT: Duration = Duration::from_millis(100);
/// Looks between two readings of the clock.
const LOOKS_PER_CLOCK: u32 = 16;

/// Spins only as long as spinning pays.
struct Spin {
    limit: Duration,
    /// Waits that still go straight to sleep.
    pause: u32,
    /// The pause after the next spin in vain.
    next_pause: u32,
}

impl Spin {
    fn new(spin_us: u32) -> Self {
        Self {
            limit: Duration::from_micros(u64::from(spin_us)),
            pause: 0,
            next_pause: 1,
        }
    }

    /// Looks for at most `limit`; true when `ready` came true.
    fn run(&mut self, ready: impl Fn() -> bool) -> bool {
        if self.limit.is_zero() {
            return false;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                if ready() {
                    self.next_pause = 1;
                    return true;
                }
                std::hint::spin_loop();
            }
            // Whoever shares this core goes first: what this thread waits for may be its work.
            std::thread::yield_now();
            if start.elapsed() >= self.limit {
                self.pause = self.next_pause;
                self.next_pause = (self.next_pause * 2).min(SPIN_PAUSE_MAX);
                return false;
            }
        }
    }
}

/// A twin's reader.
pub struct Reader {
    link: Arc<Link>,
    view: LogView,
    wait_flag: WaitFlag,
    wakes_for_own: bool,
    waker: Waker,
    sleeper: Box<dyn Sleeper>,
    spin: Spin,
    /// Set when a reconnect found the old place trimmed; cleared by `resync` and `seek`.
    lapped_at: Option<u64>,
    farewell: String,
}

impl Reader {
    pub(crate) fn new(
        link: Arc<Link>,
        view: LogView,
        wait_flag: WaitFlag,
        waker: Waker,
        sleeper: Box<dyn Sleeper>,
        spin_us: u32,
    ) -> Self {
        let spin = Spin::new(spin_us);
        Self {
            link,
            view,
            wait_flag,
            wakes_for_own: true,
            waker,
            sleeper,
            spin,
            lapped_at: None,
            farewell: String::new(),
        }
    }

    /// Reads the next entry into `payload`, whose old content is dropped. `None` at the end. Goes on
    /// to work after the channel was closed, for what was published before.
    ///
    /// # Errors
    /// `Lapped`: call `resync`. `Corrupt`: this log cannot be trusted any more.
    pub fn poll_next(&mut self, payload: &mut Vec<u8>) -> Result<Option<Entry>, ReadError> {
        match self.lapped_at {
            Some(position) => Err(ReadError::Lapped { position }),
            None => self.view.poll_next(payload),
        }
    }

    /// Position of the next entry to be read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.lapped_at.unwrap_or(self.view.position())
    }

    /// The true end of the log now: the position behind the last published entry.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.view.end()
    }

    /// Position of the first retained entry.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.view.head()
    }

    /// Epoch of the log.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.view.info().epoch
    }

    /// Limits and identity of the log.
    #[must_use]
    pub fn info(&self) -> &LogInfo {
        self.view.info()
    }

    /// Goes to `position`; see `LogView::seek`.
    ///
    /// # Errors
    /// `Lapped` or `BeyondEnd`; the reader then stays where it was.
    pub fn seek(&mut self, position: u64) -> Result<(), ReadError> {
        self.view.seek(position)?;
        self.lapped_at = None;
        Ok(())
    }

    /// The STATE that the log was last trimmed with; `None` when it never was.
    ///
    /// # Errors
    /// It is damaged.
    pub fn agreed_state(&self) -> Result<Option<AgreedState>, ReadError> {
        self.view.agreed_state()
    }

    /// Reads the agreed STATE and goes to the position that it belongs to: what a lapped reader and
    /// a new process do first. `None` when the log was never trimmed; then it is read from 0.
    ///
    /// # Errors
    /// The STATE is damaged, or trims came faster than they could be followed.
    pub fn resync(&mut self) -> Result<Option<AgreedState>, ReadError> {
        let mut lapped = ReadError::Lapped {
            position: self.position(),
        };
        for _ in 0..RESYNC_TRIES {
            let state = self.view.agreed_state()?;
            match self.seek(state.as_ref().map_or(0, |state| state.position)) {
                Ok(()) => return Ok(state),
                Err(error @ ReadError::Lapped { .. }) => lapped = error,
                Err(error @ (ReadError::Corrupt { .. } | ReadError::BeyondEnd { .. })) => {
                    return Err(error);
                }
            }
        }
        Err(lapped)
    }

    /// A handle by which other threads end this reader's wait.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Whether [`Self::wait`] ends when nothing but this twin's own entries is new. `true` at first. A twin that
    /// knows that its own entries decide nothing yet spares itself a wake-up; it reads them with the next ones.
    pub fn wake_for_own(&mut self, wakes: bool) {
        self.wakes_for_own = wakes;
    }

    /// Waits until the log has more, the appender can go on, a waker calls, or `more_work` is true,
    /// for at most `timeout` (`None`: for ever). Spins first when that has paid lately.
    pub fn wait(&mut self, timeout: Option<Duration>, more_work: impl Fn() -> bool) -> Wake {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let Self {
            link,
            view,
            waker,
            spin,
            ..
        } = self;
        let ready =
            || view.has_news() || waker.is_woken() || link.appender_has_news(view) || more_work();
        if ready() || (!link.is_closed() && spin.run(ready)) {
            waker.take_woken();
            return Wake::Ready;
        }
        loop {
            if self.link.is_closed() {
                self.hear_farewell();
                return Wake::Closed(self.farewell.clone());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let slept = self.sleep(left, &more_work);
            if self.waker.take_woken() || self.is_ready(&more_work) {
                return Wake::Ready;
            }
            match slept {
                None | Some(Slept::Rung) => {}
                Some(Slept::TimedOut) => return Wake::TimedOut,
                Some(Slept::Closed(farewell)) => {
                    self.link.set_closed();
                    self.farewell = farewell;
                }
            }
        }
    }

    /// What a caller with an event loop of its own watches between [`Self::begin_wait`] and [`Self::end_wait`], for
    /// edges: what the broker rings, and what becomes readable when the channel is closed. Others after a reconnect.
    #[must_use]
    pub fn watched(&self) -> [BorrowedFd<'_>; 2] {
        self.sleeper.watched()
    }

    /// [`Self::wait`] for a caller with an event loop of its own, first half: true when it may sleep until something
    /// that it watches has an edge, and then calls [`Self::end_wait`]. False when there is something to do already.
    pub fn begin_wait(&mut self, more_work: impl Fn() -> bool) -> bool {
        self.sleeper.settle();
        // Appends that somebody forgot to flush would otherwise be waited for in vain.
        if self.link.unflushed.swap(false, Ordering::Relaxed) {
            self.link.bell.ring();
        }
        self.wait_flag.set(self.wakes_for_own);
        let sleeps = !self.is_ready(&more_work);
        if !sleeps {
            self.wait_flag.clear();
        }
        sleeps
    }

    /// Second half.
    pub fn end_wait(&mut self) {
        self.wait_flag.clear();
    }

    /// The broker's reason when the channel is closed; `None` while it is open. Costs a system call while it is open.
    pub fn poll_closed(&mut self) -> Option<String> {
        if !self.link.is_closed()
            && let Slept::Closed(farewell) = self.sleeper.sleep(Some(Duration::ZERO))
        {
            self.link.set_closed();
            self.farewell = farewell;
        }
        if !self.link.is_closed() {
            return None;
        }
        self.hear_farewell();
        Some(self.farewell.clone())
    }

    /// The appender may have seen first that the channel is of no use any more, for example by the next process of this twin,
    /// whose appends it did not send.
    fn hear_farewell(&mut self) {
        let deadline = Instant::now() + FAREWELL_WAIT;
        while self.farewell.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.sleeper.sleep(Some(left)) {
                Slept::Rung => {}
                Slept::TimedOut => "the broker gave no reason".clone_into(&mut self.farewell),
                Slept::Closed(farewell) => {
                    self.farewell = farewell;
                    return;
                }
            }
        }
    }

    /// Whether the channel is known to be closed, or can be seen to be without a system call; then `poll_closed` says so.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.link.is_closed() || self.sleeper.looks_closed()
    }

    /// Unmaps the ring of a closed channel, for good. What was published stays readable, and the place in it is kept.
    pub(crate) fn let_go(&mut self, parked: Arc<Link>) {
        self.wait_flag = WaitFlag::new(parked.ring_memory().clone());
        self.sleeper = Box::new(ParkedSleeper(self.waker.clone()));
        self.link = parked;
    }

    fn is_ready(&self, more_work: &impl Fn() -> bool) -> bool {
        self.view.has_news()
            || self.waker.is_woken()
            || self.link.appender_has_news(&self.view)
            || more_work()
    }

    /// Says that it sleeps, looks once more, and sleeps. `None` when the look found something.
    fn sleep(&mut self, left: Option<Duration>, more_work: &impl Fn() -> bool) -> Option<Slept> {
        // Appends that somebody forgot to flush would otherwise be waited for in vain.
        if self.link.unflushed.swap(false, Ordering::Relaxed) {
            self.link.bell.ring();
        }
        self.waker.set_sleeping(true);
        self.wait_flag.set(self.wakes_for_own);
        let slept = (!self.is_ready(more_work)).then(|| self.sleeper.sleep(left));
        self.wait_flag.clear();
        self.waker.set_sleeping(false);
        slept
    }

    /// Stands where `old` stood, in the fresh region of the same epoch.
    pub(crate) fn take_over(&mut self, old: &Self) -> Result<(), ReadError> {
        let position = old.position();
        match self.view.seek(position) {
            Ok(()) => Ok(()),
            Err(ReadError::Lapped { .. }) => {
                self.lapped_at = Some(position);
                Ok(())
            }
            Err(error @ (ReadError::Corrupt { .. } | ReadError::BeyondEnd { .. })) => Err(error),
        }
    }
}
