//! What waits to be sent on one stream. It gathers while the stream is busy, so that the next frame takes all of it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A bounded queue towards one stream.
pub(crate) struct Outbox<T> {
    inner: Mutex<Inner<T>>,
    items_max: usize,
    bytes_max: usize,
}

struct Inner<T> {
    items: VecDeque<(usize, T)>,
    bytes: usize,
    dropped: u64,
    closed: bool,
    waker: Option<Waker>,
}

impl<T> Outbox<T> {
    /// At most `items_max` items of together `bytes_max` bytes; one larger item goes alone.
    pub(crate) fn new(items_max: usize, bytes_max: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                items: VecDeque::new(),
                bytes: 0,
                dropped: 0,
                closed: false,
                waker: None,
            }),
            items_max,
            bytes_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item and drops the oldest ones that it leaves no room for: the protocol repeats what matters, and the
    /// newest says most.
    pub(crate) fn push(&self, bytes: usize, item: T) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        while !inner.items.is_empty()
            && (inner.items.len() >= self.items_max || inner.bytes + bytes > self.bytes_max)
        {
            let (gone, _) = inner.items.pop_front().expect("not empty");
            inner.bytes -= gone;
            inner.dropped += 1;
        }
        inner.bytes += bytes;
        inner.items.push_back((bytes, item));
        if let Some(waker) = inner.waker.take() {
            drop(inner);
            waker.wake();
        }
    }

    /// Takes items of about `bytes_target` bytes, at least one. `None` once it is closed.
    pub(crate) fn poll_take(
        &self,
        context: &mut Context<'_>,
        bytes_target: usize,
        taken: &mut Vec<T>,
    ) -> Poll<Option<()>> {
        let mut inner = self.lock();
        if inner.closed {
            return Poll::Ready(None);
        }
        if inner.items.is_empty() {
            inner.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let mut sum = 0;
        while let Some((bytes, _)) = inner.items.front() {
            if !taken.is_empty() && sum + bytes > bytes_target {
                break;
            }
            sum += bytes;
            let (bytes, item) = inner.items.pop_front().expect("seen before");
            inner.bytes -= bytes;
            taken.push(item);
        }
        Poll::Ready(Some(()))
    }

    /// Ends the stream.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.items = VecDeque::new();
        inner.bytes = 0;
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }

    /// Length, bound, dropped.
    pub(crate) fn status(&self) -> crate::queues::QueueStatus {
        let inner = self.lock();
        crate::queues::QueueStatus {
            len: inner.items.len(),
            bound: self.items_max,
            dropped: inner.dropped,
            waited: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(outbox: &Outbox<u32>, target: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        let _ = outbox.poll_take(&mut context, target, &mut taken);
        taken
    }

    #[test]
    fn the_oldest_goes_when_it_is_full() {
        let outbox = Outbox::new(3, 100);
        (0..5).for_each(|n| outbox.push(1, n));
        assert_eq!(outbox.status().dropped, 2);
        assert_eq!(take(&outbox, 100), [2, 3, 4]);
        outbox.push(60, 7);
        outbox.push(60, 8);
        assert_eq!(take(&outbox, 100), [8]);
    }

    #[test]
    fn a_frame_holds_what_fits_and_at_least_one() {
        let outbox = Outbox::new(10, 1000);
        (0..4).for_each(|n| outbox.push(40, n));
        assert_eq!(take(&outbox, 100), [0, 1]);
        assert_eq!(take(&outbox, 10), [2]);
        assert_eq!(take(&outbox, 10), [3]);
        assert_eq!(take(&outbox, 10), [0u32; 0]);
    }

    #[test]
    fn a_closed_outbox_ends_its_stream_and_takes_nothing() {
        let outbox = Outbox::new(10, 1000);
        outbox.push(1, 1);
        outbox.close();
        outbox.push(1, 2);
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(
            outbox.poll_take(&mut context, 10, &mut Vec::new()),
            Poll::Ready(None)
        );
        assert_eq!(outbox.status().len, 0);
    }
}
