//! What other threads may know of the core's thread without asking it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// Where the process stands in its life. Every state has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Reading its files.
    Starting = 0,
    /// Connecting to its host's broker, for the first time or again.
    WaitingForPostbox = 1,
    /// Reading the log for the first time.
    Replaying = 2,
    /// The core's own state says more.
    Running = 3,
    /// Told to stop.
    Stopping = 4,
}

impl State {
    const ALL: [Self; 5] = [
        Self::Starting,
        Self::WaitingForPostbox,
        Self::Replaying,
        Self::Running,
        Self::Stopping,
    ];

    /// The name in the status document.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::WaitingForPostbox => "waiting-for-postbox",
            Self::Replaying => "replaying",
            Self::Running => "running",
            Self::Stopping => "stopping",
        }
    }
}

/// Shared between the core's thread and the rest.
#[derive(Debug, Default)]
pub struct Progress {
    state: AtomicU8,
    beats: AtomicU64,
    caught_up: AtomicBool,
    has_core: AtomicBool,
    news: tokio::sync::Notify,
}

impl Progress {
    /// Where the process stands.
    #[must_use]
    pub fn state(&self) -> State {
        State::ALL[usize::from(self.state.load(Ordering::Relaxed))]
    }

    /// A new state; stopping is the last one.
    pub fn set_state(&self, state: State) {
        if self.state() != State::Stopping {
            self.state.store(state as u8, Ordering::Relaxed);
        }
    }

    /// The state's name, unless the core's own says more.
    #[must_use]
    pub fn hiding_state(&self) -> Option<&'static str> {
        let state = self.state();
        (state != State::Running).then(|| state.name())
    }

    /// Whether the core's thread answers questions.
    #[must_use]
    pub fn has_core(&self) -> bool {
        self.has_core.load(Ordering::Relaxed)
    }

    /// The core's thread begins to read the log.
    pub fn set_has_core(&self) {
        self.set_state(State::Replaying);
        self.has_core.store(true, Ordering::Relaxed);
    }

    /// The core's thread is alive.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Grows as long as the core's thread is alive.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Whether the log has been read to its end once.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.caught_up.load(Ordering::Relaxed)
    }

    /// The log has been read to its end.
    pub fn set_caught_up(&self) {
        self.set_state(State::Running);
        self.caught_up.store(true, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// Waits until the log has been read to its end once.
    pub async fn caught_up(&self) {
        while !self.is_caught_up() {
            self.news.notified().await;
        }
    }
}
