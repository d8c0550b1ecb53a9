//! The open streams of clients, and which client is on which of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use twinbft_types::ClientId;

use super::convert::FramePart;
use super::outbox::Outbox;
use super::routes::{Routes, StreamId};
use crate::queues::QueueStatus;

/// Clients (keys and sessions) whose streams are remembered.
const CLIENTS_MAX: usize = 64 * 1024;
/// Open streams of one client key; one more is refused.
const STREAMS_PER_KEY_MAX: usize = 256;
/// Parts that wait for one client's stream; the oldest are dropped, and the client asks again.
const STREAM_PARTS_MAX: usize = 16 * 1024;
/// Bytes of them.
const STREAM_BYTES_MAX: usize = 16 << 20;

/// All client streams.
pub(super) struct Hub {
    inner: Mutex<Inner>,
    view: AtomicU64,
}

struct Inner {
    routes: Routes,
    streams: HashMap<StreamId, Open>,
    next: StreamId,
    dropped_by_closed: u64,
}

struct Open {
    key: u32,
    outbox: Arc<Outbox<FramePart>>,
}

impl Hub {
    pub(super) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                routes: Routes::new(CLIENTS_MAX),
                streams: HashMap::new(),
                next: 1,
                dropped_by_closed: 0,
            }),
            view: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new stream of client key `key`; `None` when it has too many.
    pub(super) fn open(&self, key: u32) -> Option<(StreamId, Arc<Outbox<FramePart>>)> {
        let mut inner = self.lock();
        if inner
            .streams
            .values()
            .filter(|open| open.key == key)
            .count()
            >= STREAMS_PER_KEY_MAX
        {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        let outbox = Arc::new(Outbox::new(STREAM_PARTS_MAX, STREAM_BYTES_MAX));
        let open = Open {
            key,
            outbox: outbox.clone(),
        };
        inner.streams.insert(id, open);
        if self.view() > 0 {
            tell_view(&outbox);
        }
        Some((id, outbox))
    }

    /// Ends a stream.
    pub(super) fn close(&self, id: StreamId) {
        let mut inner = self.lock();
        if let Some(open) = inner.streams.remove(&id) {
            inner.dropped_by_closed += open.outbox.status().dropped;
            open.outbox.close();
        }
    }

    /// These clients were heard of on a stream.
    pub(super) fn note(&self, id: StreamId, clients: impl IntoIterator<Item = ClientId>) {
        let mut inner = self.lock();
        let mut last = None;
        for client in clients {
            // Neighbours in a frame are often of one session.
            if last.replace(client) != Some(client) {
                inner.routes.note(client, id);
            }
        }
    }

    /// Puts parts on the streams of their clients; answers for how many there is no stream.
    pub(super) fn deliver(&self, parts: impl Iterator<Item = (ClientId, FramePart)>) -> u64 {
        let inner = self.lock();
        let mut lost = 0;
        for (client, part) in parts {
            let bytes = part.bytes();
            let mut outboxes = inner
                .routes
                .streams(client)
                .filter_map(|id| inner.streams.get(&id))
                .map(|open| &open.outbox)
                .peekable();
            if outboxes.peek().is_none() {
                lost += 1;
            }
            let mut part = Some(part);
            while let Some(outbox) = outboxes.next() {
                let copy = if outboxes.peek().is_some() {
                    part.clone()
                } else {
                    part.take()
                };
                outbox.push(bytes, copy.expect("the last one takes it"));
            }
        }
        lost
    }

    /// The view that frames carry as a hint.
    pub(super) fn view(&self) -> u64 {
        self.view.load(Ordering::Relaxed)
    }

    /// A new one is told to all clients: of a host's replies one twin may send all, and a client believes `q` twins.
    pub(super) fn set_view(&self, view: u64) {
        if self.view() == view {
            return;
        }
        // Under the lock, so that a stream that opens now has either the old view told anew or the new one.
        let inner = self.lock();
        self.view.store(view, Ordering::Relaxed);
        inner
            .streams
            .values()
            .for_each(|open| tell_view(&open.outbox));
    }

    /// All client streams as one queue, and how many there are.
    pub(super) fn status(&self) -> (QueueStatus, usize) {
        let inner = self.lock();
        let mut sum = QueueStatus {
            len: 0,
            bound: STREAM_PARTS_MAX,
            dropped: inner.dropped_by_closed,
            waited: 0,
        };
        for open in inner.streams.values() {
            let status = open.outbox.status();
            sum.len += status.len;
            sum.dropped += status.dropped;
        }
        (sum, inner.streams.len())
    }
}

/// A frame is sent for this alone, when nothing else is.
fn tell_view(outbox: &Outbox<FramePart>) {
    outbox.push(FramePart::View.bytes(), FramePart::View);
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use twinbft_types::wire::pb;

    use super::*;

    const CLIENT: ClientId = ClientId { key: 3, session: 4 };

    fn part(seq: u64) -> FramePart {
        FramePart::Refusal(pb::Refusal {
            seq,
            ..pb::Refusal::default()
        })
    }

    fn taken(outbox: &Outbox<FramePart>) -> Vec<FramePart> {
        let mut taken = Vec::new();
        let _ = outbox.poll_take(
            &mut Context::from_waker(std::task::Waker::noop()),
            usize::MAX,
            &mut taken,
        );
        taken
    }

    #[test]
    fn a_reply_goes_to_all_streams_that_its_client_was_seen_on() {
        let hub = Hub::new();
        let (first, one) = hub.open(3).unwrap();
        let (second, two) = hub.open(3).unwrap();
        let (_, other) = hub.open(3).unwrap();
        hub.note(first, [CLIENT]);
        hub.note(second, [CLIENT, CLIENT]);
        assert_eq!(hub.deliver([(CLIENT, part(1))].into_iter()), 0);
        assert_eq!(taken(&one), [part(1)]);
        assert_eq!(taken(&two), [part(1)]);
        assert_eq!(taken(&other), []);
        hub.close(first);
        hub.close(second);
        assert_eq!(hub.deliver([(CLIENT, part(2))].into_iter()), 1);
    }

    #[test]
    fn a_new_view_is_told_on_every_stream_and_on_those_that_open_later() {
        let hub = Hub::new();
        let (_, early) = hub.open(3).unwrap();
        hub.set_view(0);
        assert_eq!(taken(&early), []);
        hub.set_view(2);
        hub.set_view(2);
        assert_eq!(taken(&early), [FramePart::View]);
        let (_, late) = hub.open(4).unwrap();
        assert_eq!(taken(&late), [FramePart::View]);
        assert_eq!(hub.view(), 2);
    }

    #[test]
    fn one_key_has_a_bounded_number_of_streams() {
        let hub = Hub::new();
        let opened = (0..STREAMS_PER_KEY_MAX + 10)
            .filter(|_| hub.open(1).is_some())
            .count();
        assert_eq!(opened, STREAMS_PER_KEY_MAX);
        assert!(hub.open(2).is_some());
    }
}
