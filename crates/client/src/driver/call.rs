//! Calls that are waited for: a slab of waiters for each session handle, so that a call allocates nothing of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use slab::Slab;
use twinbft_types::Slot;

use super::error::CallError;

/// A certified answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the service said.
    pub result: Bytes,
    /// Where it was executed; for a fast read, the slot of the last write to what was read.
    pub slot: Slot,
    /// Network steps on its path, as [`crate::session::Event::Completed`] derives them; none for a fast read.
    pub steps: Option<u8>,
    /// Whether it came as a fast read, without being ordered.
    pub fast: bool,
}

/// What becomes of one operation.
pub type CallResult = Result<Answer, CallError>;

#[derive(Debug)]
enum Waiter {
    Waiting(Option<Waker>),
    Done(CallResult),
    /// Nobody waits any more.
    Abandoned,
}

/// The waiters of one session handle.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<Slab<Waiter>>);

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Slab<Waiter>> {
        // No user code runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new call; its tag names it to [`complete`](Self::complete).
    pub(super) fn begin(self: &Arc<Self>) -> Call {
        Call {
            tag: self.lock().insert(Waiter::Waiting(None)),
            waiters: self.clone(),
        }
    }

    pub(super) fn complete(&self, tag: u64, result: CallResult) {
        let tag = usize::try_from(tag).expect("the tag came from a slab");
        let mut waiters = self.lock();
        match std::mem::replace(&mut waiters[tag], Waiter::Abandoned) {
            Waiter::Abandoned => {
                waiters.remove(tag);
            }
            Waiter::Waiting(waker) => {
                waiters[tag] = Waiter::Done(result);
                drop(waiters);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Waiter::Done(_) => unreachable!("a call completes once"),
        }
    }
}

/// A call on its way.
#[derive(Debug)]
pub(super) struct Call {
    waiters: Arc<Waiters>,
    tag: usize,
}

impl Call {
    pub(super) const fn tag(&self) -> u64 {
        self.tag as u64
    }
}

impl Future for Call {
    type Output = CallResult;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<CallResult> {
        let mut waiters = self.waiters.lock();
        match &mut waiters[self.tag] {
            Waiter::Waiting(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            Waiter::Done(result) => {
                let placeholder = Err(CallError::Overloaded { waiting: 0 });
                Poll::Ready(std::mem::replace(result, placeholder))
            }
            Waiter::Abandoned => unreachable!("only dropping abandons"),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut waiters = self.waiters.lock();
        match waiters[self.tag] {
            Waiter::Waiting(_) => waiters[self.tag] = Waiter::Abandoned,
            Waiter::Done(_) | Waiter::Abandoned => {
                waiters.remove(self.tag);
            }
        }
    }
}
