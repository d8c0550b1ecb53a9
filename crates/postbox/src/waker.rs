//! Waking the thread that sleeps on the log, from any other thread of the same process.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes the one thread that waits in `Reader::wait`. Cloneable; a wake costs a system call only
/// when that thread sleeps, and is never lost: it ends the next wait when there is none now.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    woken: AtomicBool,
    sleeping: AtomicBool,
    /// Watched edge-triggered, so that nobody has to read it.
    event: EventFd,
}

impl Waker {
    /// A waker of its own; hand it to `ConnectOptions` so that it outlives connections.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new() -> std::io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(Inner {
            woken: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            event,
        })))
    }

    /// Ends the current or the next wait.
    pub fn wake(&self) {
        self.0.woken.store(true, Ordering::SeqCst);
        if self.0.sleeping.swap(false, Ordering::SeqCst) {
            // The counter cannot overflow within the age of the universe, so this cannot fail.
            self.0
                .event
                .write(1)
                .expect("an eventfd takes 2^64 wake-ups");
        }
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.0.woken.load(Ordering::SeqCst)
    }

    pub(crate) fn take_woken(&self) -> bool {
        self.is_woken() && self.0.woken.swap(false, Ordering::SeqCst)
    }

    /// The waiting thread: set before its last look at what it waits for.
    pub(crate) fn set_sleeping(&self, sleeping: bool) {
        self.0.sleeping.store(sleeping, Ordering::SeqCst);
    }

    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
