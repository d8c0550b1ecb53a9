//! One connection to one replica: an outbox that fills while the stream is busy, and a task that keeps the stream up.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::{Notify, mpsc};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use twinbft_types::ReplicaId;
use twinbft_types::wire::pb;
use twinbft_types::wire::pb::twin_bft_client::TwinBftClient;

use super::target::{ReplicaAddress, TlsMaterial};

/// Operations beyond this wait for the next frame. A single larger one goes alone.
pub const FRAME_BYTES_TARGET: usize = 512 * 1024;
/// Largest frame that is taken from a replica.
pub const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that wait for one replica. More are dropped, and a retransmission brings them again.
pub const OUTBOX_BYTES_MAX: usize = 32 * 1024 * 1024;
/// What a message takes besides its operation, roughly.
const MESSAGE_BYTES: usize = 96;
/// Frames that wait for the dispatcher, of all replicas together; then the streams wait.
pub(super) const INBOUND_FRAMES_MAX: usize = 256;
const RECONNECT_AFTER_MS: u64 = 50;
const RECONNECT_AFTER_MS_MAX: u64 = 2_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// A frame and the replica whose certificate its connection showed; none when the connection has just come up.
pub(super) type Inbound = (ReplicaId, Option<pb::ReplicaFrame>);

/// How a connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Never tried to the end yet.
    Connecting,
    /// A stream is open.
    Up,
    /// The last attempt or the last stream ended so.
    Down(String),
}

/// What is shared between the dispatcher, the connection's task and its stream.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) replica: ReplicaId,
    inner: Mutex<Inner>,
    /// Told of each change of state.
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Inner {
    state: LinkState,
    waiting: pb::ClientFrame,
    waiting_bytes: usize,
    dropped: u64,
    frames: u64,
    /// Names the stream that may take from here; those of earlier connections may not.
    generation: u64,
    stream: Option<Waker>,
}

impl Link {
    pub(super) fn new(replica: ReplicaId, changed: Arc<Notify>) -> Self {
        Self {
            replica,
            inner: Mutex::new(Inner {
                state: LinkState::Connecting,
                waiting: pb::ClientFrame::default(),
                waiting_bytes: 0,
                dropped: 0,
                frames: 0,
                generation: 0,
                stream: None,
            }),
            changed,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under the lock is whole before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> LinkState {
        self.lock().state.clone()
    }

    /// Frames sent, and messages dropped because the replica was away or the outbox full.
    pub(super) fn counts(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.frames, inner.dropped)
    }

    /// Moves the messages of `frame` into the outbox.
    pub(super) fn append(&self, frame: &mut pb::ClientFrame) {
        let count = frame.requests.len() + frame.queries.len();
        if count == 0 {
            return;
        }
        let bytes = bytes_of(frame);
        let mut inner = self.lock();
        let away = matches!(inner.state, LinkState::Down(_));
        let full = inner.waiting_bytes > 0 && inner.waiting_bytes + bytes > OUTBOX_BYTES_MAX;
        if away || full {
            // 4.1: what matters is sent again; a flood of old requests would help nobody.
            inner.dropped += count as u64;
            frame.requests.clear();
            frame.queries.clear();
            return;
        }
        inner.waiting.requests.append(&mut frame.requests);
        inner.waiting.queries.append(&mut frame.queries);
        inner.waiting_bytes += bytes;
        let stream = inner.stream.take();
        drop(inner);
        if let Some(stream) = stream {
            stream.wake();
        }
    }

    fn begin_stream(self: &Arc<Self>) -> OutboxStream {
        let mut inner = self.lock();
        inner.generation += 1;
        OutboxStream {
            generation: inner.generation,
            link: self.clone(),
        }
    }

    fn set_state(&self, state: LinkState) {
        let mut inner = self.lock();
        if matches!(state, LinkState::Down(_)) {
            inner.waiting = pb::ClientFrame::default();
            inner.waiting_bytes = 0;
            inner.generation += 1;
        }
        if inner.state != state {
            tracing::debug!(replica = %self.replica, ?state, "connection");
            inner.state = state;
        }
        let stream = inner.stream.take();
        drop(inner);
        if let Some(stream) = stream {
            stream.wake();
        }
        self.changed.notify_waiters();
    }
}

const fn message_bytes(operation: &bytes::Bytes) -> usize {
    operation.len() + MESSAGE_BYTES
}

fn bytes_of(frame: &pb::ClientFrame) -> usize {
    let requests = frame.requests.iter().map(|r| message_bytes(&r.operation));
    let queries = frame.queries.iter().map(|q| message_bytes(&q.operation));
    requests.chain(queries).sum()
}

/// The outgoing half: each item is everything that has gathered since the last one.
struct OutboxStream {
    link: Arc<Link>,
    generation: u64,
}

impl Stream for OutboxStream {
    type Item = pb::ClientFrame;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut inner = self.link.lock();
        if inner.generation != self.generation {
            return Poll::Ready(None);
        }
        if inner.waiting_bytes == 0 {
            inner.stream = Some(context.waker().clone());
            return Poll::Pending;
        }
        inner.frames += 1;
        if inner.waiting_bytes <= FRAME_BYTES_TARGET {
            inner.waiting_bytes = 0;
            return Poll::Ready(Some(std::mem::take(&mut inner.waiting)));
        }
        let frame = cut(&mut inner.waiting);
        inner.waiting_bytes -= bytes_of(&frame);
        Poll::Ready(Some(frame))
    }
}

/// Takes the first messages, up to [`FRAME_BYTES_TARGET`] and at least one.
fn cut(waiting: &mut pb::ClientFrame) -> pb::ClientFrame {
    let mut bytes = 0;
    let mut fits = |operation: &bytes::Bytes| {
        let first = bytes == 0;
        bytes += message_bytes(operation);
        first || bytes <= FRAME_BYTES_TARGET
    };
    let requests = waiting
        .requests
        .iter()
        .take_while(|request| fits(&request.operation))
        .count();
    let queries = if requests == waiting.requests.len() {
        waiting
            .queries
            .iter()
            .take_while(|query| fits(&query.operation))
            .count()
    } else {
        0
    };
    pb::ClientFrame {
        requests: waiting.requests.drain(..requests).collect(),
        queries: waiting.queries.drain(..queries).collect(),
    }
}

/// Keeps one connection up for ever: connects, reads until it ends, waits longer each time, and again.
pub(super) async fn keep_up(
    link: Arc<Link>,
    address: ReplicaAddress,
    tls: TlsMaterial,
    inbound: mpsc::Sender<Inbound>,
) {
    let mut wait_ms = RECONNECT_AFTER_MS;
    loop {
        let error = match connect(&address, &tls).await {
            Ok(channel) => {
                wait_ms = RECONNECT_AFTER_MS;
                match read(&link, channel, &inbound).await {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        link.set_state(LinkState::Down(error));
        // Clients that lost the same replica at the same moment should not come back at the same moment.
        let jitter_ms = rand::random_range(0..=wait_ms / 2);
        tokio::time::sleep(Duration::from_millis(wait_ms + jitter_ms)).await;
        wait_ms = (wait_ms * 2).min(RECONNECT_AFTER_MS_MAX);
    }
}

async fn connect(address: &ReplicaAddress, tls: &TlsMaterial) -> Result<Channel, String> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&tls.ca))
        .identity(Identity::from_pem(&tls.certificate, &tls.key))
        .domain_name(&address.tls_name);
    Endpoint::from_shared(address.uri.clone())
        .and_then(|endpoint| endpoint.tls_config(tls))
        .map_err(|error| explain(&error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect()
        .await
        .map_err(|error| explain(&error))
}

/// Reads until the stream breaks (an error) or nobody wants frames any more.
async fn read(
    link: &Arc<Link>,
    channel: Channel,
    inbound: &mpsc::Sender<Inbound>,
) -> Result<(), String> {
    let mut client = TwinBftClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX);
    let mut frames = client
        .client(link.begin_stream())
        .await
        .map_err(|status| explain_status(&status))?
        .into_inner();
    link.set_state(LinkState::Up);
    if inbound.send((link.replica, None)).await.is_err() {
        return Ok(());
    }
    loop {
        match frames.message().await {
            Ok(Some(frame)) => {
                if inbound.send((link.replica, Some(frame))).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => return Err("the replica ended the stream".to_owned()),
            Err(status) => return Err(explain_status(&status)),
        }
    }
}

fn explain_status(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    if text.is_empty() {
        text = status.code().description().to_owned();
    }
    text
}

/// The innermost cause says what happened; the outer ones that something did.
fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(seq: u64, bytes: usize) -> pb::Request {
        pb::Request {
            seq,
            operation: vec![0; bytes].into(),
            ..Default::default()
        }
    }

    fn link() -> Arc<Link> {
        Arc::new(Link::new(ReplicaId::new(0, 0), Arc::new(Notify::new())))
    }

    fn next(stream: &mut OutboxStream) -> Poll<Option<Vec<u64>>> {
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(stream)
            .poll_next(&mut context)
            .map(|frame| frame.map(|frame| frame.requests.iter().map(|r| r.seq).collect()))
    }

    fn append(link: &Link, requests: Vec<pb::Request>) {
        let mut frame = pb::ClientFrame {
            requests,
            queries: vec![],
        };
        link.append(&mut frame);
        assert!(frame.requests.is_empty());
    }

    #[test]
    fn a_frame_takes_what_has_gathered() {
        let link = link();
        let mut stream = link.begin_stream();
        assert_eq!(next(&mut stream), Poll::Pending);
        append(&link, vec![request(1, 10), request(2, 10)]);
        append(&link, vec![request(3, 10)]);
        assert_eq!(next(&mut stream), Poll::Ready(Some(vec![1, 2, 3])));
        assert_eq!(next(&mut stream), Poll::Pending);
    }

    #[test]
    fn large_operations_are_spread_over_frames() {
        let link = link();
        let mut stream = link.begin_stream();
        append(
            &link,
            vec![
                request(1, FRAME_BYTES_TARGET * 2),
                request(2, FRAME_BYTES_TARGET / 3),
                request(3, FRAME_BYTES_TARGET / 3),
                request(4, FRAME_BYTES_TARGET),
            ],
        );
        for expected in [vec![1], vec![2, 3], vec![4]] {
            assert_eq!(next(&mut stream), Poll::Ready(Some(expected)));
        }
        assert_eq!(next(&mut stream), Poll::Pending);
    }

    #[test]
    fn what_is_for_an_absent_replica_is_dropped_and_counted() {
        let link = link();
        let mut old = link.begin_stream();
        append(&link, vec![request(1, 10)]);
        link.set_state(LinkState::Down("gone".into()));
        append(&link, vec![request(2, 10)]);
        assert_eq!(next(&mut old), Poll::Ready(None));
        let mut new = link.begin_stream();
        assert_eq!(next(&mut new), Poll::Pending);
        link.set_state(LinkState::Up);
        append(&link, vec![request(3, 10)]);
        assert_eq!(next(&mut new), Poll::Ready(Some(vec![3])));
        assert_eq!(link.counts(), (1, 1));
    }
}
