//! A queue that is emptied as a whole: whoever takes, takes everything that has come since.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Many senders, one receiver. What is in it is bounded by its users: each item stands for an operation that its
/// submitter waits for, and windows and queues bound those.
#[derive(Debug)]
pub(crate) struct Mailbox<T>(Mutex<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    items: Vec<T>,
    receiver: Option<Waker>,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            items: Vec::new(),
            receiver: None,
        }))
    }
}

impl<T> Mailbox<T> {
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        // A panic while pushing leaves a whole queue behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, item: T) {
        let mut inner = self.lock();
        inner.items.push(item);
        let receiver = inner.receiver.take();
        drop(inner);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
    }

    /// Moves all of `items` in, under one lock and with one wake-up.
    pub(crate) fn append(&self, items: &mut Vec<T>) {
        if items.is_empty() {
            return;
        }
        let mut inner = self.lock();
        inner.items.append(items);
        let receiver = inner.receiver.take();
        drop(inner);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
    }

    /// Takes everything into `taken`, which is empty: the two change places, so no memory is allocated.
    pub(crate) fn poll_take(&self, context: &mut Context<'_>, taken: &mut Vec<T>) -> Poll<()> {
        debug_assert!(taken.is_empty(), "what was taken before is used up");
        let mut inner = self.lock();
        if inner.items.is_empty() {
            inner.receiver = Some(context.waker().clone());
            return Poll::Pending;
        }
        std::mem::swap(&mut inner.items, taken);
        Poll::Ready(())
    }
}
