//! The queues between the threads. Each has a name, a bound, and a policy for the moment when it is full.

use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crossbeam_queue::ArrayQueue;
use tokio::sync::Notify;

use crate::metrics::Counter;

/// Numbers of one queue for operators.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct QueueStatus {
    /// Items in it now.
    pub len: usize,
    /// The most items that it takes.
    pub bound: usize,
    /// Items that were dropped because it was full.
    pub dropped: u64,
    /// How often a sender had to wait because it was full.
    pub waited: u64,
}

/// A queue from tasks of the network thread to the core's thread. When it is full the sender waits, and with it the
/// stream that it reads from: the remote end feels it through flow control.
///
/// It is bounded by items and by bytes, because one request may be as large as a thousand others.
pub struct Lane<T> {
    items: ArrayQueue<(usize, T)>,
    bytes: AtomicUsize,
    bytes_max: usize,
    senders_waiting: AtomicUsize,
    room: Notify,
    waited: Counter,
}

impl<T> Lane<T> {
    /// At most `bound` items of together `bytes_max` bytes; a larger item goes alone.
    #[must_use]
    pub fn new(bound: usize, bytes_max: usize) -> Self {
        Self {
            items: ArrayQueue::new(bound),
            bytes: AtomicUsize::new(0),
            bytes_max,
            senders_waiting: AtomicUsize::new(0),
            room: Notify::new(),
            waited: Counter::default(),
        }
    }

    /// Puts an item in; gives it back when there is no room.
    ///
    /// # Errors
    /// The item.
    pub fn try_push(&self, bytes: usize, item: T) -> Result<(), T> {
        let held = self.bytes.fetch_add(bytes, Ordering::SeqCst);
        if held > 0 && held + bytes > self.bytes_max {
            self.bytes.fetch_sub(bytes, Ordering::SeqCst);
            return Err(item);
        }
        self.items.push((bytes, item)).map_err(|(_, item)| {
            self.bytes.fetch_sub(bytes, Ordering::SeqCst);
            item
        })
    }

    /// Puts an item in, after waiting for room. `before_wait` is called before each wait: the receiver may sleep.
    pub async fn push(&self, bytes: usize, item: T, before_wait: impl Fn()) {
        let Err(mut item) = self.try_push(bytes, item) else {
            return;
        };
        self.waited.add_one();
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            self.senders_waiting.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // Room may have come between the look and the registration.
            match self.try_push(bytes, item) {
                Ok(()) => {
                    self.senders_waiting.fetch_sub(1, Ordering::SeqCst);
                    return;
                }
                Err(back) => item = back,
            }
            before_wait();
            room.await;
            self.senders_waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Takes the oldest item out.
    pub fn pop(&self) -> Option<T> {
        let (bytes, item) = self.items.pop()?;
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        Some(item)
    }

    /// Tells waiting senders of room, when there is any worth the call. After every batch of [`Lane::pop`].
    pub fn tell_room(&self) {
        fence(Ordering::SeqCst);
        if self.senders_waiting.load(Ordering::SeqCst) > 0
            && self.items.len() <= self.items.capacity() / 2
        {
            self.room.notify_waiters();
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Numbers for operators.
    #[must_use]
    pub fn status(&self) -> QueueStatus {
        QueueStatus {
            len: self.items.len(),
            bound: self.items.capacity(),
            dropped: 0,
            waited: self.waited.value(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn an_item_larger_than_the_bytes_goes_alone() {
        let lane = Lane::new(4, 10);
        lane.try_push(100, "large").unwrap();
        assert_eq!(lane.try_push(1, "small"), Err("small"));
        assert_eq!(lane.pop(), Some("large"));
        lane.try_push(6, "a").unwrap();
        assert_eq!(lane.try_push(6, "b"), Err("b"));
        lane.try_push(4, "c").unwrap();
    }

    /// A sender that found the queue full gets on as soon as the receiver has made room, whoever comes first.
    #[test]
    fn a_full_queue_makes_senders_wait_and_loses_nothing() {
        const ITEMS: usize = 10_000;
        let lane = Arc::new(Lane::new(8, 1_000_000));
        let sender = lane.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            runtime.block_on(async {
                for item in 0..ITEMS {
                    sender.push(1, item, || {}).await;
                }
            });
        });
        let mut expected = 0;
        while expected < ITEMS {
            match lane.pop() {
                Some(item) => {
                    assert_eq!(item, expected);
                    expected += 1;
                }
                None => std::thread::yield_now(),
            }
            lane.tell_room();
        }
        thread.join().unwrap();
        assert!(lane.is_empty());
    }
}
